// The main loop of a Verilator simulation under cocotb.
//
// cocotb's own main loop visits every callback queue at every clock edge, and its clock is a
// callback too. Here the clock toggles in the innermost loop; cocotb is served when `done` of the
// test bench changes, and when a callback is due that it asked for.

#include <memory>

#include "Vlichen_bench.h"
#include "verilated.h"
#include "verilated_vpi.h"

#if VM_TRACE
#include "verilated_fst_c.h"
#endif

extern "C" void vlog_startup_routines_bootstrap(void);

namespace {

constexpr vluint64_t kHalfPeriod = 5;

vluint64_t now = 0;

#if VM_TRACE
std::unique_ptr<VerilatedFstC> trace;
#endif

void settle() {
    while (VerilatedVpi::callValueCbs()) {
    }
}

void dump() {
#if VM_TRACE
    if (trace) trace->dump(now);
#endif
}

void advance() {
    now += kHalfPeriod;
    Verilated::threadContextp()->time(now);
}

// One time step as the standard orders it: active and inertial writes, read-write, read-only.
void step(Vlichen_bench& top) {
    do {
        do {
            top.eval();
            VerilatedVpi::clearEvalNeeded();
            VerilatedVpi::doInertialPuts();
            settle();
        } while (VerilatedVpi::evalNeeded());
        VerilatedVpi::callCbs(cbReadWriteSynch);
        VerilatedVpi::doInertialPuts();
        settle();
    } while (VerilatedVpi::evalNeeded());
    VerilatedVpi::callCbs(cbReadOnlySynch);
    dump();
}

void finish() {
    VerilatedVpi::callCbs(cbEndOfSimulation);
#if VM_TRACE
    if (trace) trace->close();
#endif
}

}  // namespace

int main(int argc, char** argv) {
    VerilatedContext* const context = Verilated::threadContextp();
    context->commandArgs(argc, argv);
    context->fatalOnVpiError(false);
    auto top = std::make_unique<Vlichen_bench>(context, "");
#if VM_TRACE
    context->traceEverOn(true);
    trace = std::make_unique<VerilatedFstC>();
    top->trace(trace.get(), 99);
    trace->open("waves.fst");
#endif
    Verilated::addExitCb([](void*) { finish(); }, nullptr);

    vlog_startup_routines_bootstrap();
    VerilatedVpi::callCbs(cbStartOfSimulation);
    settle();

    top->clk = 0;
    while (!context->gotFinish()) {
        step(*top);
        const vluint64_t deadline = VerilatedVpi::cbNextDeadline();
        const auto done = top->done;
        // Nobody listens before the deadline, a change of `done`, or the next time step if that
        // was asked for: until then the clock just runs.
        bool quiet = true;
        while (quiet) {
            advance();
            top->clk = !top->clk;
            quiet = !VerilatedVpi::callCbs(cbNextSimTime) && now < deadline && top->done == done
                    && !context->gotFinish();
            if (quiet) {
                top->eval();
                dump();
            }
        }
        settle();
        VerilatedVpi::callTimedCbs();
        settle();
    }
    top->final();
    finish();
    return context->errorCount() > 0 ? 1 : 0;
}
