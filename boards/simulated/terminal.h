// The host's end of a simulated board: a pseudo-terminal, and a signal that means a brown-out.

#pragma once

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <vector>

constexpr uint64_t kLockCycles = 2000;  // of the PLL after power-up, and of a brown-out

inline volatile sig_atomic_t brown_out = 0;

inline void on_brown_out(int) { brown_out = 1; }

// Ends with whoever has started the program.
inline void live_with_parent() {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    signal(SIGUSR1, on_brown_out);
    signal(SIGHUP, SIG_IGN);
}

class Terminal {
 public:
    explicit Terminal(int descriptor) : descriptor_(descriptor) {}

    void put(uint8_t byte) {
        if (out_.size() < kQueue) out_.push_back(byte);
    }

    // How many bytes more the host may have before it must read.
    size_t room() const { return out_.size() < kQueue ? kQueue - out_.size() : 0; }

    // Passes on what was put; false when the other end is gone.
    bool flush() {
        if (out_.empty()) return true;
        const ssize_t done = write(descriptor_, out_.data(), out_.size());
        if (done > 0) out_.erase(out_.begin(), out_.begin() + done);
        return done >= 0 || errno == EAGAIN || errno == EINTR;
    }

    // Takes at most `most` bytes that the host has written; false when the other end is gone.
    template <typename Queue>
    bool fetch(Queue& queue, size_t most) {
        uint8_t heard[1024];
        const ssize_t count = read(descriptor_, heard, most < sizeof heard ? most : sizeof heard);
        for (ssize_t i = 0; i < count; ++i) queue.push_back(heard[i]);
        return count > 0 || (count < 0 && (errno == EAGAIN || errno == EINTR));
    }

    // Waits a moment for the host.
    void nap() const {
        pollfd wait{descriptor_, short(POLLIN | (out_.empty() ? 0 : POLLOUT)), 0};
        poll(&wait, 1, kNapMs);
    }

 private:
    static constexpr size_t kQueue = 1 << 14;  // bytes that wait for a host to read
    static constexpr int kNapMs = 20;

    int descriptor_;
    std::vector<uint8_t> out_;
};
