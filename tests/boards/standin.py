# amaranth: UnusedElaboratable=no
"""A small pipeline with the ports of the real one: multipliers, a weight ROM, lanes, faults."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from amaranth.hdl import Cat, Module, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.memory import Ram
from lichen.hw.device.multiplier import Multiplier

ROM_WORDS = 1024
SLOTS = 8  # ROM words per pixel


class Standin(wiring.Component):
    """Position-dependent 1x1 convolution: ``y[k] = sum(w[8 * pixel + k, c] * x[c])``.

    ``fault`` is None, ``deaf`` (takes two pixels, then no more), ``mute`` (makes no latents) or
    ``chatty`` (makes one beat too many per pixel).
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_channels: int = 5,
        in_lanes: int = 2,
        out_lanes: int = 2,
        bits: int = 12,
        fault: str | None = None,
        max_width: int = 64,
    ):
        self.in_lanes, self.out_lanes, self.bits = in_lanes, out_lanes, bits
        self.fault = fault
        self.max_width = max_width
        self.transform = SimpleNamespace(
            in_channels=in_channels, out_channels=out_channels, stages=[]
        )
        rng = np.random.default_rng(1)
        self.weights = rng.integers(-128, 128, (ROM_WORDS, in_channels))
        super().__init__(
            wiring.Signature(
                {
                    "i": In(stream.Signature(data.ArrayLayout(unsigned(8), in_lanes))),
                    "o": Out(stream.Signature(data.ArrayLayout(signed(bits), out_lanes))),
                    "width": In(16),
                    "height": In(16),
                }
            )
        )

    def golden(self, pixels: np.ndarray, first: int = 0) -> np.ndarray:
        """(positions, in) uint8 -> (positions, out) int; ``first`` pixels went before."""
        base = (np.arange(len(pixels)) + first) * SLOTS
        rows = (base[:, None] + np.arange(self.transform.out_channels)) % ROM_WORDS
        sums = np.einsum("pkc,pc->pk", self.weights[rows], pixels.astype(np.int64))
        half = 1 << (self.bits - 1)
        return (sums + half) % (2 * half) - half

    def resources(self, device: Device) -> Resources:
        bram = self._make_rom().resources(device).bram
        return Resources(dsp=self.transform.in_channels, bram=bram, lut=80)

    def predicted_cycles(self, height: int, width: int) -> int:
        return 50 * height * width

    def _make_rom(self) -> Ram:
        words = [
            int(sum((int(w) & 0xFF) << (8 * c) for c, w in enumerate(row))) for row in self.weights
        ]
        return Ram(depth=ROM_WORDS, width=8 * len(self.weights[0]), init=words, writable=False)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        ins, outs = self.transform.in_channels, self.transform.out_channels
        m.submodules.rom = rom = self._make_rom()
        x = Signal(data.ArrayLayout(unsigned(8), ins))
        group, pixel = Signal(range(-(-ins // self.in_lanes))), Signal(range(ROM_WORDS // SLOTS))
        k, wait = Signal(range(SLOTS + 1)), Signal(range(8))
        taken = Signal(range(8))
        lane = Signal(range(self.out_lanes))
        products = []
        for c in range(ins):
            m.submodules[f"multiplier_{c}"] = mul = Multiplier(
                a_shape=signed(8), b_shape=unsigned(8)
            )
            m.d.comb += [mul.a.eq(rom.r_data[8 * c : 8 * c + 8].as_signed()), mul.b.eq(x[c])]
            products.append(mul.p)
        m.d.comb += rom.r_addr.eq(Cat(k[:3], pixel))

        with m.FSM():
            with m.State("TAKE"):
                m.d.comb += self.i.ready.eq((taken != 2) if self.fault == "deaf" else 1)
                with m.If(self.i.valid & self.i.ready):
                    for g in range(-(-ins // self.in_lanes)):
                        with m.If(group == g):
                            for i in range(min(self.in_lanes, ins - g * self.in_lanes)):
                                m.d.sync += x[g * self.in_lanes + i].eq(self.i.payload[i])
                    m.d.sync += group.eq(group + 1)
                    with m.If(group == -(-ins // self.in_lanes) - 1):
                        m.d.sync += [group.eq(0), k.eq(0), wait.eq(0), lane.eq(0)]
                        with m.If(taken != 7):
                            m.d.sync += taken.eq(taken + 1)
                        m.next = "MULTIPLY"
            with m.State("MULTIPLY"):
                m.d.sync += wait.eq(wait + 1)
                with m.If(wait == 6):
                    for i in range(self.out_lanes):
                        with m.If(lane == i):
                            m.d.sync += self.o.payload[i].eq(sum(products))
                    m.d.sync += [lane.eq(lane + 1), k.eq(k + 1), wait.eq(0)]
                    full = (lane == self.out_lanes - 1) | (k == outs - 1)
                    with m.If(full):
                        m.d.sync += lane.eq(0)
                        m.next = "GIVE"
            with m.State("GIVE"):
                m.d.comb += self.o.valid.eq(self.fault != "mute")
                with m.If(self.o.ready | (self.fault == "mute")):
                    m.next = "MULTIPLY"
                    with m.If(k >= outs):
                        m.d.sync += pixel.eq(pixel + 1)
                        m.next = "EXTRA" if self.fault == "chatty" else "TAKE"
            with m.State("EXTRA"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    m.next = "TAKE"
        return m
