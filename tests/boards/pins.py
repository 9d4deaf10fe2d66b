# amaranth: UnusedElaboratable=no
"""A host at the pins of a board: what a script of symbols sends, and what comes back.

The board is the whole of what a bitstream holds, as Verilog of its platform; only the vendor's
cells have models in their place, those of the pads and of the PLL below.
"""

from __future__ import annotations

import re

import numpy as np
from amaranth.hdl import ClockSignal, Instance, Module, Mux, ResetInserter, Signal
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.boards.board import Board
from lichen.boards.ecp5.pll import PLL
from lichen.boards.link import protocol
from lichen.boards.link.uart import BREAK_BITS, Receiver, Transmitter
from lichen.boards.top import UARTTop
from lichen.hw.device.ecp5 import cell_models
from lichen.hw.verilog import emit
from lichen.sim.harness import TOP

CYCLES_PER_BIT = 8

MODELS = f"""
module IB (input I, output O);
  assign O = I;
endmodule

module OBZ (input I, input T, output O);
  assign O = T | I;  // pulled up
endmodule

module OFS1P3DX (input SCLK, input SP, input CD, input D, output reg Q);
  always @(posedge SCLK) if (CD) Q <= 0; else if (SP) Q <= D;
endmodule

// Without its parameters: what the dividers make is a test of its own.
module EHXPLLL (
    input CLKI, CLKFB, RST, STDBY, PHASESEL0, PHASESEL1, PHASEDIR, PHASESTEP, PHASELOADREG,
    input PLLWAKESYNC, ENCLKOP,
    output CLKOP, CLKOS, LOCK
);
  assign CLKOP = CLKI;
  assign CLKOS = CLKI;
  assign LOCK = {TOP}.locked;
endmodule
"""


class Do(enum.IntEnum):
    """Symbols of a script that are no bytes."""

    BREAK = 0
    STATUS = 1
    """Wait until another status packet has come."""
    LOSE_LOCK = 2
    LOCK = 3
    PAUSE = 4
    """Wait for three symbols."""


BYTE, PIXEL, DO = 0, 1, 2


def script(*parts: bytes | Do | np.ndarray) -> np.ndarray:
    """A script: bytes of headers, pixels (bytes sent as credits allow), and what else to do."""
    symbols: list[int] = []
    for part in parts:
        if isinstance(part, Do):
            symbols.append(DO << 8 | part)
        elif isinstance(part, bytes):
            symbols += part
        else:
            symbols += (PIXEL << 8 | int(value) for value in part.reshape(-1))
    return np.array(symbols).reshape(1, -1, 1)


def events(*parts: protocol.Status | int) -> np.ndarray:
    """What the tap ``events`` shows of status packets, and of counts of credits before them."""
    seen: list[int] = []
    credits = 0
    for part in parts:
        if isinstance(part, int):
            credits = part
        else:
            seen += [protocol.KIND_STATUS, *part.pack(), credits]
            credits = 0
    return np.array(seen).reshape(1, -1, 1)


class Pins(wiring.Component):
    """The host, and the board as an instance of the module ``board``.

    Streams: ``i`` the script, ``o`` bytes of latents, the tap ``events`` every other packet: its
    kind and payload, and after a status how many credits had come since the last.
    """

    taps = ("events",)

    def __init__(self) -> None:
        tap = wiring.Signature(
            {"payload": Out(data.ArrayLayout(8, 1)), "valid": Out(1), "ready": Out(1)}
        )
        super().__init__(
            wiring.Signature(
                {
                    "i": In(stream.Signature(data.ArrayLayout(10, 1))),
                    "o": Out(stream.Signature(data.ArrayLayout(8, 1))),
                    "tap_events": Out(tap),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        line = {"clock_hz": 1e6 * CYCLES_PER_BIT, "baud": 1_000_000}
        # Under this name the model of the PLL looks for it.
        locked = Signal()
        lost = Signal()
        m.d.comb += lost.eq(~locked)
        m.submodules.sender = sender = Transmitter(**line)
        m.submodules.receiver = receiver = ResetInserter(lost)(Receiver(**line))
        m.submodules.parser = parser = ResetInserter(lost)(Parser())
        low = Signal(range(CYCLES_PER_BIT * BREAK_BITS + 1))
        to_board = Signal(init=1)
        m.d.sync += to_board.eq(sender.tx & (low == 0))
        m.submodules.board = Instance(
            "board",
            i_clk25_0__io=ClockSignal(),
            i_uart_0__rx__io=to_board,
            o_uart_0__tx__io=receiver.rx,
        )
        wiring.connect(m, receiver.o, parser.i)
        m.d.comb += [
            self.o.payload[0].eq(parser.latents.payload),
            self.o.valid.eq(parser.latents.valid),
            parser.latents.ready.eq(self.o.ready),
            self.tap_events.payload[0].eq(parser.events.payload),
            self.tap_events.valid.eq(parser.events.valid),
            self.tap_events.ready.eq(1),
            parser.events.ready.eq(1),
        ]

        value, kind = self.i.payload[0][:8], self.i.payload[0][8:]
        ahead = Signal(range(protocol.WINDOW_BYTES + 1))
        statuses, wanted = Signal(8), Signal(8)
        wait = Signal(8)
        sends = Signal()
        m.d.comb += [
            sender.i.payload.eq(value),
            sends.eq((kind == BYTE) | ((kind == PIXEL) & (ahead != protocol.WINDOW_BYTES))),
            sender.i.valid.eq(self.i.valid & sends & (wait == 0)),
        ]
        pixel = sender.i.valid & sender.i.ready & (kind == PIXEL)
        m.d.sync += ahead.eq(ahead + pixel - Mux(parser.credit, protocol.CREDIT_BYTES, 0))
        m.d.sync += [low.eq(Mux(low == 0, 0, low - 1)), wait.eq(Mux(wait == 0, 0, wait - 1))]
        m.d.sync += statuses.eq(statuses + parser.status)
        with m.If(parser.status | lost):
            m.d.sync += ahead.eq(0)
        with m.If(self.i.valid & (wait == 0)):
            with m.If(kind != DO):
                m.d.comb += self.i.ready.eq(sender.i.ready & sends)
            with m.Elif(value == Do.STATUS):
                m.d.comb += self.i.ready.eq(statuses != wanted)
                with m.If(self.i.ready):
                    m.d.sync += wanted.eq(wanted + 1)
            with m.Elif(value == Do.BREAK):
                # The break ends with the wait; the line is high for a symbol before more.
                m.d.comb += self.i.ready.eq(sender.i.ready)
                with m.If(self.i.ready):
                    m.d.sync += [
                        low.eq(BREAK_BITS * CYCLES_PER_BIT),
                        wait.eq((BREAK_BITS + 2) * CYCLES_PER_BIT),
                    ]
            with m.Else():
                m.d.comb += self.i.ready.eq(1)
                with m.If(value == Do.PAUSE):
                    m.d.sync += wait.eq(3 * CYCLES_PER_BIT)
                with m.Else():
                    m.d.sync += locked.eq(value == Do.LOCK)
        return m


class Parser(wiring.Component):
    """Packets of the device, taken apart."""

    def __init__(self) -> None:
        line = stream.Signature(8)
        ports = {"i": In(line), "latents": Out(line), "events": Out(line)}
        super().__init__(wiring.Signature({**ports, "credit": Out(1), "status": Out(1)}))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        kind, left, credits = Signal(8), Signal(8), Signal(8)
        taken = self.i.valid & self.i.ready
        m.d.sync += [self.status.eq(0)]
        with m.FSM():
            with m.State("KIND"):
                known = (self.i.payload == protocol.KIND_LATENTS) | (
                    self.i.payload == protocol.KIND_CREDIT
                )
                m.d.comb += [
                    self.i.ready.eq(1),
                    self.events.payload.eq(self.i.payload),
                    self.events.valid.eq(self.i.valid & ~known),
                ]
                with m.If(taken):
                    m.d.sync += kind.eq(self.i.payload)
                    m.next = "LENGTH"
            with m.State("LENGTH"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(taken):
                    m.d.sync += left.eq(self.i.payload)
                    m.next = "PAYLOAD"
                    with m.If(self.i.payload == 0):
                        m.next = "KIND"
                        m.d.comb += self.credit.eq(kind == protocol.KIND_CREDIT)
                        m.d.sync += credits.eq(credits + self.credit)
            with m.State("PAYLOAD"):
                latent = kind == protocol.KIND_LATENTS
                m.d.comb += [
                    self.latents.payload.eq(self.i.payload),
                    self.events.payload.eq(self.i.payload),
                    self.latents.valid.eq(self.i.valid & latent),
                    self.events.valid.eq(self.i.valid & ~latent),
                    self.i.ready.eq(Mux(latent, self.latents.ready, 1)),
                ]
                with m.If(taken):
                    m.d.sync += left.eq(left - 1)
                    with m.If(left == 1):
                        m.next = "KIND"
                        with m.If(kind == protocol.KIND_STATUS):
                            m.next = "COUNT"
            with m.State("COUNT"):
                m.d.comb += [self.events.payload.eq(credits), self.events.valid.eq(1)]
                m.d.sync += [credits.eq(0), self.status.eq(1)]
                m.next = "KIND"
        return m


def wired(board: Board, top: UARTTop, pll: PLL) -> str:
    """Verilog of `Pins` as the bench wants it, with the board and all models."""
    platform, elaboratable = board.platform(top, pll)
    files = platform.prepare(elaboratable, "top", emit_src=False).files
    text = files["top.v"]
    text = text.decode() if isinstance(text, bytes) else text
    text, count = re.subn(r"^module top\(", "module board(", text, flags=re.MULTILINE)
    assert count == 1
    text, count = re.subn(r"\bEHXPLLL #\(.*?\) pll \(", "EHXPLLL pll (", text, flags=re.DOTALL)
    assert count == 1
    return "\n".join([emit(Pins(), TOP), text, MODELS, *cell_models().values()])
