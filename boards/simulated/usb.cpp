// A board at the end of a pseudo-terminal: its USB, with a host and the host's driver for modems.
//
//   simulator DESCRIPTOR OSCILLATOR_HZ
//
// DESCRIPTOR is the terminal's other end. The host resets the bus, reads the device's descriptors,
// gives it an address and a configuration, and passes bytes between the terminal and the bulk
// endpoints as it finds them. It is a correct one, so whatever breaks a rule that it relies on ends
// the program with a sentence. SIGUSR1 takes the PLL's lock away for a while, as a brown-out does.
//
// Compiled for full speed, at the pins D+ and D-, or with HIGH_SPEED at those of a transceiver with
// ULPI, which is modelled. "USB" in comments is the Universal Serial Bus Specification 2.0.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "Vlichen_board.h"
#include "verilated.h"

namespace {

using Bytes = std::vector<uint8_t>;

enum Pid : uint8_t {
    OUT = 0xE1, IN = 0x69, SOF = 0xA5, SETUP = 0x2D, PING = 0xB4,
    DATA0 = 0xC3, DATA1 = 0x4B, ACK = 0xD2, NAK = 0x5A, STALL = 0x1E,
};

[[noreturn]] void fail(const std::string& what) {
    std::fprintf(stderr, "the device breaks the rules of USB: %s\n", what.c_str());
    std::exit(3);
}

// Of a token's 11 bits, and of data: USB 8.3.5.
uint16_t crc5(uint16_t bits) {
    uint8_t crc = 0x1F;
    for (int i = 0; i < 11; ++i) {
        const bool apart = ((bits >> i) ^ crc) & 1;
        crc = uint8_t(crc >> 1 ^ (apart ? 0x14 : 0));
    }
    return uint16_t(~crc & 0x1F);
}

uint16_t crc16(const uint8_t* data, size_t size) {
    uint16_t crc = 0xFFFF;
    for (size_t i = 0; i < size; ++i) {
        crc ^= data[i];
        for (int k = 0; k < 8; ++k) crc = uint16_t(crc >> 1 ^ (crc & 1 ? 0xA001 : 0));
    }
    return uint16_t(~crc);
}

enum State : uint8_t { SE0 = 0, J = 1, K = 2 };

#ifndef HIGH_SPEED

// USB's wires at full speed, four steps a bit. Nobody drives them for longer than a packet; then
// the pull-ups make J.
class Wires {
 public:
    static constexpr double kStepHz = 48e6;
    static constexpr int kStepsPerBit = 4;
    static constexpr uint64_t kFrameSteps = 48000;           // USB 7.1.12: a millisecond
    static constexpr uint64_t kGap = 3 * kStepsPerBit;       // between packets of the host
    static constexpr uint64_t kPatience = 18 * kStepsPerBit; // USB 7.1.19.1: for an answer
    static constexpr unsigned kBulk = 64;

    explicit Wires(Vlichen_board* top) : top_(top) {}

    bool attached() const { return top_->pulled; }

    // One step; true when a packet of the device is whole.
    bool step() {
        if (!line_.empty()) {
            drive(line_.front());
            if (++held_ == kStepsPerBit) {
                held_ = 0;
                line_.pop_front();
            }
            return false;
        }
        release();
        return listen(top_->d_p_now ? (top_->d_n_now ? J : J) : (top_->d_n_now ? K : SE0));
    }

    bool sending() const { return !line_.empty(); }
    bool hearing() const { return phase_ >= 0; }
    const Bytes& packet() const { return packet_; }

    void send(const Bytes& packet) {
        State state = J;
        int ones = 0;
        const auto bit = [&](bool one) {
            if (!one) state = state == J ? K : J;
            line_.push_back(state);
            ones = one ? ones + 1 : 0;
            if (ones == 6) {  // USB 7.1.9: stuffing
                state = state == J ? K : J;
                line_.push_back(state);
                ones = 0;
            }
        };
        for (int i = 0; i < 7; ++i) bit(false);
        bit(true);
        for (const uint8_t byte : packet)
            for (int i = 0; i < 8; ++i) bit(byte >> i & 1);
        for (const State last : {SE0, SE0, J}) line_.push_back(last);
        phase_ = -1;
    }

    // Steps of a reset, and of what comes after.
    bool reset(uint64_t step) {
        if (step < 4800) {
            drive(SE0);
            return false;
        }
        release();
        return step > 9600;
    }

 private:
    void drive(State state) {
        top_->host_drives = 1;
        top_->host_d_p = state == J;
        top_->host_d_n = state == K;
    }
    void release() { top_->host_drives = 0; }

    bool listen(State now) {
        if (phase_ < 0) {
            if (last_ == J && now == K) {
                phase_ = 0;
                bits_.clear();
                before_ = J;
            }
            last_ = now;
            return false;
        }
        phase_ = now == last_ ? phase_ + 1 : 0;
        last_ = now;
        if (phase_ % kStepsPerBit != kStepsPerBit / 2) return false;
        if (now == SE0) {
            phase_ = -1;
            return unpack();
        }
        bits_.push_back(now == before_);
        before_ = now;
        if (bits_.size() > 10000) fail("a packet without an end");
        return false;
    }

    bool unpack() {
        packet_.clear();
        int ones = 0, count = -8;
        uint8_t byte = 0;
        for (const bool bit : bits_) {
            if (ones == 6) {
                if (bit) fail("seven ones in a row");
                ones = 0;
                continue;
            }
            ones = bit ? ones + 1 : 0;
            byte = uint8_t(byte >> 1 | (bit ? 0x80 : 0));
            if (++count % 8) continue;
            if (count == 0 && byte != 0x80) fail("a packet that does not begin with SYNC");
            if (count > 0) packet_.push_back(byte);
        }
        if (count <= 0 || count % 8) fail("a packet that is no whole bytes");
        return true;
    }

    Vlichen_board* top_;
    std::deque<State> line_;
    int held_ = 0, phase_ = -1;
    State last_ = J, before_ = J;
    std::vector<bool> bits_;
    Bytes packet_;
};

#else

// A transceiver with ULPI ("UTMI+ Low Pin Interface Specification" 1.1), a step a cycle of its 60
// MHz, which is a byte's time at high speed.
class Wires {
 public:
    static constexpr double kStepHz = 60e6;
    static constexpr uint64_t kFrameSteps = 7500;  // USB 7.1.12: a microframe
    static constexpr uint64_t kGap = 11;           // USB 7.1.18.2: 88 bits
    static constexpr uint64_t kPatience = 102;     // USB 7.1.19.2: 816 bits
    static constexpr unsigned kBulk = 512;

    explicit Wires(Vlichen_board* top) : top_(top) {}

    // Its pull-up: TermSelect, and not held in reset.
    bool attached() const { return !top_->ulpi_rst && (function_ & 0x4 || high_); }

    // Before the clock's edge: takes what the device shows, and chooses what to show it next.
    bool step() {
        const uint8_t data = top_->ulpi_data;
        const bool stop = top_->ulpi_stp, nxt = top_->ulpi_nxt, dir = top_->ulpi_dir;
        uint8_t say = 0;
        bool whole = false, next = false, turn = false;
        if (top_->ulpi_rst) {
            mode_ = IDLE;
            function_ = kAtFirst;
            high_ = false;
            told_ = -1;
            out_.clear();
            state_ = J;
        } else if (dir) {
            if (!out_.empty()) {
                const Item item = out_.front();
                out_.pop_front();
                turn = true;
                say = item.byte;
                next = item.valid;
            }
        } else if (mode_ == IDLE && data != 0) {
            command_ = data;
            mode_ = COMMAND;
            next = true;
        } else if (mode_ == COMMAND && nxt) {
            next = true;
            mode_ = command_ >> 6 == 1 ? TRANSMIT : command_ >> 6 == 2 ? WRITE : READ;
            if (mode_ == READ) fail("a register is read, which is not modelled");
            if (mode_ == TRANSMIT) {
                packet_.clear();
                chirps_ = function_ >> 3 & 2;
                const uint8_t pid = command_ & 0xF;
                if (!chirps_) packet_.push_back(uint8_t(pid | (~pid & 0xF) << 4));
            }
        } else if (mode_ == TRANSMIT && nxt) {
            next = !stop;
            if (stop) {
                mode_ = IDLE;
                whole = !chirps_;
                if (chirps_) ++device_chirps_;
            } else if (!chirps_) {
                packet_.push_back(data);
            }
        } else if (mode_ == WRITE && nxt) {
            if ((command_ & 0x3F) == 0x04) write_function(data);
            mode_ = STOP;
        } else if (mode_ == STOP && stop) {
            mode_ = IDLE;
        } else if (mode_ == IDLE && data == 0) {
            if (!out_.empty()) {
                turn = next = true;  // DIR and NXT together: a packet comes
            } else if (told_ != state_) {
                out_.push_back({status(0), false});
                told_ = state_;
                turn = true;
            }
        }
        say_ = say;
        next_ = next;
        turn_ = turn;
        return whole;
    }

    // After the edge.
    void show() {
        top_->phy_data = say_;
        top_->phy_nxt = next_;
        top_->phy_dir = turn_;
    }

    bool sending() const { return !out_.empty() || turn_; }
    bool hearing() const { return mode_ == TRANSMIT; }
    const Bytes& packet() const { return packet_; }

    void send(const Bytes& packet) {
        state_ = J;  // the bus is busy
        for (int i = 0; i < kAround; ++i) out_.push_back({status(1), false});
        for (const uint8_t byte : packet) out_.push_back({byte, true});
        state_ = SE0;
        told_ = SE0;
        out_.push_back({status(0), false});
    }

    // Steps of a reset, and of finding out the speed: USB 7.1.7.5.
    bool reset(uint64_t step) {
        if (step == 0) {
            state_ = J;
            device_chirps_ = 0;
            high_ = false;
        }
        if (step == 1000) state_ = SE0;
        if (device_chirps_ == 0) {
            if (step > 600000) fail("it does not chirp");
            chirped_ = step;
            return false;
        }
        const uint64_t since = step - chirped_, turn = since / kChirp;
        if (turn < 12) state_ = turn % 2 ? J : K;
        else state_ = SE0;
        if (turn < 20) return false;
        high_ = (function_ & 0x7) == 0;
        if (!high_) fail("it does not take high speed");
        return true;
    }

 private:
    enum Mode { IDLE, COMMAND, TRANSMIT, WRITE, READ, STOP };
    struct Item {
        uint8_t byte;
        bool valid;
    };
    static constexpr uint8_t kAtFirst = 0x41;
    static constexpr int kAround = 5;          // SYNC and the end of a packet, in bytes
    static constexpr uint64_t kChirp = 3000;   // 50 us each

    // What RXCMD says: the line's state, VBUS, whether a packet comes.
    uint8_t status(int active) const { return uint8_t(state_ | 0x0C | active << 4); }

    void write_function(uint8_t value) { function_ = value; }

    Vlichen_board* top_;
    Mode mode_ = IDLE;
    uint8_t command_ = 0, function_ = kAtFirst;
    uint8_t say_ = 0;
    bool next_ = false, turn_ = false, high_ = false;
    int chirps_ = 0, device_chirps_ = 0, told_ = -1;
    uint64_t chirped_ = 0;
    State state_ = J;
    std::deque<Item> out_;
    Bytes packet_;
};

#endif

// Clocks of any frequencies, and the wires at one of them.
class Board {
 public:
    Board(int descriptor, double oscillator_hz)
        : terminal(descriptor), top_(new Vlichen_board), wires_(top_.get()),
          ratio_(oscillator_hz / Wires::kStepHz) {}

    ~Board() { top_->final(); }

    // One step of the wires; true when a packet of the device is whole.
    bool step() {
        if (brown_out) {
            brown_out = 0;
            lock_at_ = cycle_ + kLockCycles;
        }
        // The oscillator's edges up to this step.
        for (due_ += ratio_; due_ >= 1; due_ -= 1) {
            top_->locked = cycle_ >= lock_at_;
            top_->clk = 1;
            top_->eval();
            top_->clk = 0;
            top_->eval();
            ++cycle_;
        }
        ++steps;
#ifdef HIGH_SPEED
        top_->eval();
#endif
        const bool whole = wires_.step();
#ifndef HIGH_SPEED
        top_->clk_usb = steps % 4 < 2;  // it rises with the faster one
#endif
        top_->clk_step = 1;
        top_->eval();
#ifdef HIGH_SPEED
        wires_.show();
        top_->eval();
#endif
        top_->clk_step = 0;
        top_->eval();
        if (steps % kAskSteps == 0 && !terminal.flush()) std::exit(0);
        return whole;
    }

    Wires& wires() { return wires_; }
    bool locked() const { return cycle_ > lock_at_; }

    Terminal terminal;
    uint64_t steps = 0;

 private:
    static constexpr uint64_t kAskSteps = 256;

    std::unique_ptr<Vlichen_board> top_;
    Wires wires_;
    double ratio_, due_ = 0;
    uint64_t cycle_ = 0, lock_at_ = kLockCycles;
};

struct Gone {};  // the device has left the bus

class Host {
 public:
    explicit Host(Board& board) : board_(board) {}

    // Until the program ends, or the device has left.
    void talk() {
        while (!board_.wires().attached() || !board_.locked()) board_.step();
        wait(1000);
        for (uint64_t i = 0; !board_.wires().reset(i); ++i) board_.step();
        wait(1000);
        address_ = 0;
        enumerate();
        uint64_t spoke = board_.steps;
        while (true) {
            if (queue_.size() < 4 * bulk_ && !board_.terminal.fetch(queue_, 4 * bulk_))
                std::exit(0);
            const bool said = !queue_.empty() && give();
            const bool heard = board_.terminal.room() >= bulk_ && take();
            if (said || heard) spoke = board_.steps;
            // Nobody speaks, so no session is open: time may stand still until somebody does.
            else if (queue_.empty() && board_.steps - spoke > kIdleSteps) board_.terminal.nap();
        }
    }

 private:
    static constexpr uint64_t kIdleSteps = uint64_t(Wires::kStepHz / 50);  // states come sooner
    static constexpr int kTries = 3;  // USB 10.2.6

    void wait(uint64_t steps) {
        for (uint64_t i = 0; i < steps; ++i)
            if (board_.step()) fail("a packet that nobody has asked for");
    }

    void send(const Bytes& packet) {
        if (!board_.wires().attached()) throw Gone{};
        board_.wires().send(packet);
        do {
            if (board_.step()) fail("a packet within one of the host's");
        } while (board_.wires().sending());
    }

    // The device's answer; empty where there is none.
    Bytes answer() {
        for (uint64_t i = 0; i < Wires::kPatience || board_.wires().hearing(); ++i)
            if (board_.step()) return board_.wires().packet();
        return {};
    }

    void token(Pid pid, unsigned endpoint) {
        frame();
        const uint16_t bits = uint16_t(address_ | endpoint << 7);
        const uint16_t all = uint16_t(bits | crc5(bits) << 11);
        send({pid, uint8_t(all), uint8_t(all >> 8)});
    }

    // Begins a frame when it is time: what keeps the device from falling asleep.
    void frame() {
        wait(Wires::kGap);
        if (board_.steps - framed_ < Wires::kFrameSteps) return;
        framed_ = board_.steps;
        const uint16_t number = uint16_t(framed_ / Wires::kFrameSteps & 0x7FF);
        const uint16_t all = uint16_t(number | crc5(number) << 11);
        send({SOF, uint8_t(all), uint8_t(all >> 8)});
        wait(Wires::kGap);
    }

    // One transaction; what the device answers, its checksum off.
    Bytes ask(unsigned endpoint) {
        token(IN, endpoint);
        Bytes found = answer();
        if (found.empty() || (found[0] != DATA0 && found[0] != DATA1)) return found;
        if (found.size() < 3) fail("data without a checksum");
        const size_t size = found.size() - 2;
        const uint16_t told = uint16_t(found[size] | found[size + 1] << 8);
        if (told != crc16(found.data() + 1, size - 1)) fail("data with a wrong checksum");
        found.resize(size);
        wait(Wires::kGap);
        send({ACK});
        return found;
    }

    Bytes tell(Pid pid, unsigned endpoint, bool odd, const Bytes& data) {
        token(pid, endpoint);
        wait(Wires::kGap);
        Bytes packet{odd ? DATA1 : DATA0};
        packet.insert(packet.end(), data.begin(), data.end());
        const uint16_t crc = crc16(data.data(), data.size());
        packet.push_back(uint8_t(crc));
        packet.push_back(uint8_t(crc >> 8));
        send(packet);
        return answer();
    }

    static bool is(const Bytes& packet, Pid pid) { return packet.size() == 1 && packet[0] == pid; }

    void silent(int& tries) {
        if (!board_.wires().attached()) throw Gone{};
        if (++tries == kTries) fail("it does not answer");
    }

    // A control transfer; false when it is refused. Reads where `length` is not 0 and `out` empty.
    bool control(uint8_t type, uint8_t request, uint16_t value, uint16_t index, uint16_t length,
                 const Bytes& out, Bytes* in) {
        const Bytes setup{type, request, uint8_t(value), uint8_t(value >> 8), uint8_t(index),
                          uint8_t(index >> 8), uint8_t(length), uint8_t(length >> 8)};
        for (int tries = 0; !is(tell(SETUP, 0, false, setup), ACK);) silent(tries);
        bool odd = true;
        int tries = 0;
        while (in && in->size() < length) {
            const Bytes got = ask(0);
            if (got.empty()) silent(tries);
            else if (is(got, STALL)) return false;
            else if (!is(got, NAK)) {
                if (got[0] != (odd ? DATA1 : DATA0)) fail("a control endpoint's toggle is wrong");
                odd = !odd;
                in->insert(in->end(), got.begin() + 1, got.end());
                if (got.size() - 1 < 64) break;
            }
        }
        if (!out.empty()) {
            while (true) {
                const Bytes got = tell(OUT, 0, odd, out);
                if (is(got, ACK)) break;
                if (is(got, STALL)) return false;
                if (got.empty()) silent(tries);
            }
        }
        // The status: the other way round, without data.
        while (true) {
            const Bytes got = in ? tell(OUT, 0, true, {}) : ask(0);
            if (is(got, STALL)) return false;
            if (got.empty()) silent(tries);
            else if (!is(got, NAK)) return true;
        }
    }

    Bytes descriptor(uint16_t value, uint16_t length) {
        Bytes found;
        if (!control(0x80, 6, value, 0, length, {}, &found)) fail("it refuses a descriptor");
        return found;
    }

    void enumerate() {
        const Bytes device = descriptor(0x100, 18);
        if (device.size() != 18 || device[1] != 1) fail("its device descriptor is none");
        if (!control(0, 5, 5, 0, 0, {}, nullptr)) fail("it refuses its address");
        address_ = 5;
        wait(2000);
        if (descriptor(0x100, 18) != device) fail("its device descriptor has changed");
        const Bytes head = descriptor(0x200, 9);
        const Bytes all = descriptor(0x200, uint16_t(head.at(2) | head.at(3) << 8));
        bool data = false;
        in_ = out_ = 0;
        for (size_t at = 0; at + 1 < all.size(); at += all[at]) {
            if (all[at] < 2 || at + all[at] > all.size()) fail("its descriptors do not fit");
            if (all[at + 1] == 4) data = all.at(at + 5) == 0x0A;
            if (all[at + 1] != 5 || !data) continue;
            if (all.at(at + 3) != 2) fail("an endpoint for data that is not bulk");
            (all[at + 2] & 0x80 ? in_ : out_) = all[at + 2] & 0xF;
            bulk_ = unsigned(all.at(at + 4) | all.at(at + 5) << 8);
        }
        if (!in_ || !out_ || bulk_ != Wires::kBulk) fail("it has no pair of bulk endpoints");
        if (!control(0, 9, 1, 0, 0, {}, nullptr)) fail("it refuses its configuration");
        // As a driver does that opens a modem; what it may refuse is no fault.
        const Bytes coding{0x00, 0xC6, 0x2D, 0x00, 0, 0, 8};
        if (!control(0x21, 0x20, 0, 0, 7, coding, nullptr)) fail("it refuses SET_LINE_CODING");
        control(0x21, 0x22, 3, 0, 0, {}, nullptr);
        odd_in_ = odd_out_ = false;
        ping_ = false;
    }

    // Passes on a packet of what the host has written; whether the device took it.
    bool give() {
        if (ping_) {
            token(PING, out_);
            if (!is(answer(), ACK)) return false;
            ping_ = false;
        }
        Bytes data;
        for (size_t i = 0; i < queue_.size() && i < bulk_; ++i) data.push_back(queue_[i]);
        const Bytes got = tell(OUT, out_, odd_out_, data);
        if (is(got, STALL)) fail("a bulk endpoint stalls");
        if (!is(got, ACK)) {
            if (got.empty()) silent(silence_);
#ifdef HIGH_SPEED
            ping_ = is(got, NAK);
#endif
            return false;
        }
        silence_ = 0;
        odd_out_ = !odd_out_;
        queue_.erase(queue_.begin(), queue_.begin() + long(data.size()));
        return true;
    }

    // Takes a packet of what the device has to say; whether there was one.
    bool take() {
        const Bytes got = ask(in_);
        if (is(got, STALL)) fail("a bulk endpoint stalls");
        if (got.empty()) silent(silence_);
        if (got.empty() || is(got, NAK)) return false;
        silence_ = 0;
        if (got[0] != (odd_in_ ? DATA1 : DATA0)) return true;  // once more what was heard
        odd_in_ = !odd_in_;
        for (size_t i = 1; i < got.size(); ++i) board_.terminal.put(got[i]);
        return true;
    }

    Board& board_;
    unsigned address_ = 0, in_ = 0, out_ = 0, bulk_ = Wires::kBulk;
    bool odd_in_ = false, odd_out_ = false, ping_ = false;
    int silence_ = 0;
    uint64_t framed_ = 0;
    std::deque<uint8_t> queue_;
};

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    live_with_parent();
    Board board(std::atoi(argv[1]), std::atof(argv[2]));
    while (true) {
        Host host(board);
        try {
            host.talk();
        } catch (const Gone&) {
        }
    }
}
