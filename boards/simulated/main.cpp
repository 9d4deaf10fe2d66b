// A board at the end of a pseudo-terminal: its serial line as bytes.
//
//   simulator DESCRIPTOR CYCLES_PER_BIT
//
// DESCRIPTOR is the terminal's other end. SIGUSR1 takes the PLL's lock away for a while, as a
// brown-out does. The program ends when whoever has started it does.

#include <cstdint>
#include <cstdlib>
#include <deque>
#include <memory>

#include "Vlichen_board.h"
#include "verilated.h"

namespace {

constexpr uint64_t kAskCycles = 64;     // between two looks at the terminal
constexpr double kIdleBits = 20000;     // states come four times as often

// The board's receiver, from bytes.
class Sender {
 public:
    explicit Sender(double cycles_per_bit) : bit_(cycles_per_bit) {}

    bool idle() const { return bits_ == 0 && queue_.empty(); }
    void push_back(uint8_t byte) { queue_.push_back(byte); }
    bool wants() const { return queue_.size() < 64; }

    // The level of the line in the next cycle.
    bool step() {
        if (bits_ == 0) {
            if (queue_.empty()) return true;
            shift_ = uint32_t{queue_.front()} << 1 | 1u << 9;
            queue_.pop_front();
            bits_ = 10;
            left_ += bit_;  // what a bit was longer than whole cycles is made up for
        }
        const bool level = shift_ & 1;
        left_ -= 1;
        if (left_ < 1) {
            shift_ >>= 1;
            if (--bits_ > 0) left_ += bit_;
        }
        return level;
    }

 private:
    double bit_, left_ = 0;
    uint32_t shift_ = 0;
    int bits_ = 0;
    std::deque<uint8_t> queue_;
};

// The board's transmitter, to bytes.
class Receiver {
 public:
    explicit Receiver(double cycles_per_bit) : bit_(cycles_per_bit) {}

    bool idle() const { return bits_ < 0; }

    // Takes the level of the line in a cycle; true if `byte` is complete.
    bool step(bool level) {
        if (bits_ < 0) {
            if (level) return false;
            bits_ = 0;
            left_ = bit_ / 2;
        }
        left_ -= 1;
        if (left_ >= 0) return false;
        left_ += bit_;
        if (bits_ == 0) {
            if (level) bits_ = -1;  // a spike
            else bits_ = 1;
            return false;
        }
        if (bits_ <= 8) {
            byte = uint8_t(byte >> 1 | (level ? 0x80 : 0));
            ++bits_;
            return false;
        }
        bits_ = -1;
        return level;
    }

    uint8_t byte = 0;

 private:
    double bit_, left_ = 0;
    int bits_ = -1;
};

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    Terminal terminal(std::atoi(argv[1]));
    const double cycles_per_bit = std::atof(argv[2]);
    live_with_parent();

    VerilatedContext* const context = Verilated::threadContextp();
    context->commandArgs(argc, argv);
    auto top = std::make_unique<Vlichen_board>(context, "");
    Sender sender(cycles_per_bit);
    Receiver receiver(cycles_per_bit);
    uint64_t cycle = 0, lock_at = kLockCycles, spoke = 0;
    const uint64_t idle_cycles = uint64_t(kIdleBits * cycles_per_bit);

    top->clk = 0;
    top->rx = 1;
    top->locked = 0;
    while (!context->gotFinish()) {
        if (brown_out) {
            brown_out = 0;
            lock_at = cycle + kLockCycles;
        }
        top->locked = cycle >= lock_at;
        top->rx = sender.step();
        top->clk = 1;
        top->eval();
        top->clk = 0;
        top->eval();
        ++cycle;
        if (receiver.step(top->tx)) {
            terminal.put(receiver.byte);
            spoke = cycle;
        }
        if (cycle % kAskCycles) continue;
        if (!terminal.flush()) break;
        if (!sender.wants()) continue;
        if (!terminal.fetch(sender, 256)) break;
        if (!sender.idle()) spoke = cycle;
        // Nobody speaks, so no session is open: time may stand still until somebody does.
        if (sender.idle() && receiver.idle() && cycle > lock_at && cycle - spoke > idle_cycles)
            terminal.nap();
    }
    top->final();
    return 0;
}
