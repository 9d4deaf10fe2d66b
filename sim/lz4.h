// The part of liblz4 that Verilator's writer of FST files calls, so that no header has to be
// installed: blocks in the LZ4 format (lz4/doc/lz4_Block_format.md), found greedily with a table of
// hashes. Any LZ4 decoder reads them.

#ifndef LICHEN_LZ4_H
#define LICHEN_LZ4_H

#include <cstdint>
#include <cstring>
#include <vector>

// Worst case: all literals, a byte of length for every 255 of them, and the token.
inline int LZ4_compressBound(int size) { return size + size / 255 + 16; }

namespace lichen_lz4 {

constexpr int kMinMatch = 4;       // shortest match there is
constexpr int kLastLiterals = 5;   // a block ends in so many literals
constexpr int kMatchLimit = 12;    // and no match begins so close to its end
constexpr int kMaxOffset = 65535;
constexpr int kHashBits = 13;

inline uint32_t read32(const uint8_t* p) {
    uint32_t value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

// The part of a length that does not fit its four bits in the token.
inline uint8_t* put_length(uint8_t* out, int length) {
    for (length -= 15; length >= 255; length -= 255) *out++ = 255;
    *out++ = static_cast<uint8_t>(length);
    return out;
}

// A run of literals, and the match behind it; the last run has none (match 0).
inline uint8_t* put_sequence(uint8_t* out, const uint8_t* literals, int count, int offset, int match) {
    const int extra = match ? match - kMinMatch : 0;
    *out++ = static_cast<uint8_t>((count < 15 ? count : 15) << 4 | (extra < 15 ? extra : 15));
    if (count >= 15) out = put_length(out, count);
    std::memcpy(out, literals, count);
    out += count;
    if (match) {
        *out++ = static_cast<uint8_t>(offset);
        *out++ = static_cast<uint8_t>(offset >> 8);
        if (extra >= 15) out = put_length(out, extra);
    }
    return out;
}

}  // namespace lichen_lz4

// The target must have room for LZ4_compressBound(size) bytes. Returns the bytes written.
inline int LZ4_compress_default(const char* source, char* target, int size, int) {
    using namespace lichen_lz4;
    const uint8_t* const in = reinterpret_cast<const uint8_t*>(source);
    uint8_t* out = reinterpret_cast<uint8_t*>(target);
    std::vector<int> seen(1 << kHashBits, -1);
    int literals = 0;
    for (int at = 0; at < size - kMatchLimit;) {
        int& slot = seen[(read32(in + at) * 2654435761u) >> (32 - kHashBits)];
        const int before = slot;
        slot = at;
        if (before < 0 || at - before > kMaxOffset || read32(in + before) != read32(in + at)) {
            ++at;
            continue;
        }
        int length = kMinMatch;
        while (at + length < size - kLastLiterals && in[before + length] == in[at + length]) ++length;
        out = put_sequence(out, in + literals, at - literals, at - before, length);
        at += length;
        literals = at;
    }
    out = put_sequence(out, in + literals, size - literals, 0, 0);
    return static_cast<int>(out - reinterpret_cast<uint8_t*>(target));
}

#endif
