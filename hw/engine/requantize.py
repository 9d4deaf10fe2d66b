# amaranth: UnusedElaboratable=no
"""The requantizer: from accumulators to activations, a lane a cycle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amaranth.hdl import Module, Mux, Shape, Signal, Value, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, lanes_of, shape_of
from lichen.hw.device.load import LoadRegister, LoadSignature
from lichen.hw.device.memory import Ram
from lichen.hw.device.multiplier import WIDEST, multiplier_resources
from lichen.hw.engine.pipe import PIPE_MULTIPLY, Pipe
from lichen.network.arithmetic import ceil_div
from lichen.network.description import Normalization, Requantizer

SHIFT_BITS = 3
SHIFT_SPAN = (1 << SHIFT_BITS) - 1
"""A shift that is filled at run time is one of so many more than its least."""


@dataclass(frozen=True)
class ShiftRanges:
    """Least values of shifts that are filled at run time; each reaches `SHIFT_SPAN` further.

    Attributes
    ----------
    pre_shift, shift : int
        Of ``d`` and ``s``.
    u_shift : int or None
        Of the ``t`` of a normalization that follows.
    pre_cycles : int
        Cycles that the shift by ``d`` takes, 1 or 2.
    """

    pre_shift: int
    shift: int
    u_shift: int | None
    pre_cycles: int


def constant_words(fields: Sequence[tuple[Sequence[int], int]], lanes: int) -> list[int]:
    """Constants of ``lanes`` channels packed into one word per beat.

    Each field is (value per channel, width); within a word the lanes follow each other, within
    a lane the fields. Channels past the last are 0.
    """
    channels = len(fields[0][0])
    lane_bits = sum(width for _, width in fields)
    words = []
    for beat in range(ceil_div(channels, lanes)):
        word = 0
        for lane in range(lanes):
            channel = beat * lanes + lane
            if channel >= channels:
                break
            shift = lane * lane_bits
            for values, width in fields:
                word |= (int(values[channel]) & ((1 << width) - 1)) << shift
                shift += width
        words.append(word)
    return words


class Requantize(Gateware):
    """`lichen.network.arithmetic.requantize` for ``lanes`` channels a cycle, free running.

    Adds the bias, rescales, clips; where a normalization follows, computes its ``u`` as well,
    while the value is at hand.

    Parameters
    ----------
    bias : sequence of int
        Per channel.
    constants : Requantizer
    accumulator_shape : Shape
        Of the sums without bias; the sum with it must fit as well.
    lanes : int
        Channels per beat.
    normalization : Normalization or None
        What follows.
    ranges : ShiftRanges or None
        Where all constants are filled at run time: between what shifts may be chosen.

    Members
    -------
    load : In(LoadSignature), only with ``ranges``
    beat : In
        Index of the beat within its pixel, `Ram.latency + 1` cycles before its sums.
    acc : In (lanes)
    x : Out (lanes)
        `latency` cycles after ``acc``.
    u : Out (lanes), where a normalization follows.
    """

    def __init__(
        self,
        *,
        bias: Sequence[int],
        constants: Requantizer,
        accumulator_shape: Shape,
        lanes: int,
        normalization: Normalization | None = None,
        ranges: ShiftRanges | None = None,
    ):
        self.constants, self.lanes, self.normalization = constants, lanes, normalization
        self.ranges = ranges
        self.accumulator_shape = Shape.cast(accumulator_shape)
        self.x_shape = shape_of(constants.output.lo, constants.output.hi)
        ports = {
            "beat": In(range(ceil_div(len(bias), lanes))),
            "acc": In(lanes_of(self.accumulator_shape, lanes)),
            "x": Out(lanes_of(self.x_shape, lanes)),
        }
        if normalization is not None:
            self.u_shape = unsigned(normalization.u_bits)
            ports["u"] = Out(lanes_of(self.u_shape, lanes))
        if ranges is not None:
            ports["load"] = In(LoadSignature())
        super().__init__(wiring.Signature(ports))

        shifts = [int(d) for d in constants.pre_shift]
        self._leaky = constants.negative_multiplier is not None
        if ranges is None:
            self._bias_shape = shape_of(min(0, int(min(bias))), max(0, int(max(bias))))
            self._base_shift = min(shifts)
            self._extra_shift = max(shifts) - self._base_shift
            self._pre_cycles = 1 + bool(self._extra_shift)
        else:
            self._bias_shape = self.accumulator_shape
            self._base_shift, self._extra_shift = ranges.pre_shift, SHIFT_SPAN
            self._pre_cycles = ranges.pre_cycles
        self._fields: list[tuple[Sequence[int], int]] = [
            (bias, self._bias_shape.width),
            (constants.multiplier, 17),
        ]
        layout: dict[str, object] = {"bias": self._bias_shape, "m": unsigned(17)}
        if self._leaky:
            assert constants.negative_multiplier is not None
            self._fields.append((constants.negative_multiplier, 17))
            layout["m_negative"] = unsigned(17)
        if self._extra_shift:
            width = self._extra_shift.bit_length()
            self._fields.append(([d - self._base_shift for d in shifts], width))
            layout["d"] = unsigned(width)
        self._layout = data.StructLayout(layout)
        words = constant_words(self._fields, lanes)
        self.rom = Ram(
            depth=len(words),
            width=lanes * self._layout.size,
            init=words,
            writable=False,
            loads=ranges is not None,
            registered=True,
        )
        self.shifts = None if ranges is None else self._shifts(ranges)

    def _shifts(self, ranges: ShiftRanges) -> LoadRegister:
        """The register of the shifts that all channels share, each from its least on."""
        word = self.constants.shift - ranges.shift
        width = SHIFT_BITS
        if self.normalization is not None:
            assert ranges.u_shift is not None
            word |= (self.normalization.u_shift - ranges.u_shift) << SHIFT_BITS
            width += SHIFT_BITS
        return LoadRegister(width=width, word=word)

    @property
    def latency(self) -> int:
        """Cycles from ``acc`` to ``x``."""
        cycles = 3 + PIPE_MULTIPLY + self._pre_cycles + self._leaky + 1
        if self.normalization is not None:
            cycles += PIPE_MULTIPLY if self.normalization.kind.squares else 1
        return cycles

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.rom = self.rom
        m.d.comb += self.rom.r_addr.eq(self.beat)
        word = Signal(lanes_of(self._layout, self.lanes), reset_less=True)
        m.d.sync += word.as_value().eq(self.rom.r_data)
        out, norm, ranges = self.constants.output, self.normalization, self.ranges
        if self.shifts is not None:
            m.submodules.shifts = self.shifts
            connect(m, flipped(self.load), self.rom.load)
            connect(m, flipped(self.load), self.shifts.load)
        for lane in range(self.lanes):
            pipe = Pipe(m, f"lane{lane}")
            constant = word[lane]
            total = Signal(self.accumulator_shape, name=f"total_{lane}")
            m.d.comb += total.eq(self.acc[lane] + constant.bias)
            pipe.put(m=constant.m)
            if self._leaky:
                pipe.put(m_negative=constant.m_negative)
            if self._extra_shift:
                pipe.put(d=constant.d)
            pipe.register(a=total)
            if ranges is not None:
                more = pipe["d"]
                pipe.drop("d")
                pipe.shift_round_from("a", ranges.pre_shift, more, ranges.pre_cycles)
            elif self._extra_shift:
                amount = Signal(5, name=f"amount_{lane}")
                m.d.comb += amount.eq(pipe["d"] + self._base_shift)
                pipe.put(amount=amount)
                pipe.drop("d")
                pipe.shift_round_by("a", "amount", self._base_shift + self._extra_shift)
            else:
                pipe.shift_round("a", self._base_shift)
            pipe.saturate18("a")
            if self._leaky:
                pipe.register(m=Mux(pipe["a"] < 0, pipe["m_negative"], pipe["m"]))
                pipe.drop("m_negative")
            pipe.multiply("y", "a", "m")
            if ranges is None or self.shifts is None:
                pipe.shift_round("y", self.constants.shift)
            else:
                pipe.shift_round_from("y", ranges.shift, self.shifts.value[:SHIFT_BITS], 1)
            pipe.clamp("y", out.lo, out.hi)
            if norm is None:
                m.d.comb += self.x[lane].eq(pipe["y"])
                continue
            if norm.kind.squares:
                pipe.put(x=pipe["y"], z=pipe["y"])  # x travels on beside its square
                pipe.multiply("u", "y", "z")
            else:
                pipe.register(x=pipe["y"], u=Mux(pipe["y"] < 0, -pipe["y"], pipe["y"]))
            m.d.comb += [
                self.x[lane].eq(pipe["x"]),
                self.u[lane].eq(self._shifted(pipe["u"].as_unsigned(), norm)),
            ]
        assert pipe.latency == self.latency
        return m

    def _shifted(self, u: Value, norm: Normalization) -> Value:
        """``u`` without the bits that its format has no place for."""
        if self.shifts is None or self.ranges is None:
            return u >> norm.u_shift
        return u[self.ranges.u_shift :] >> self.shifts.value[SHIFT_BITS:]

    def resources(self, device: Device) -> Resources:
        squares = self.normalization is not None and self.normalization.kind.squares
        bits = self.accumulator_shape.width
        products = multiplier_resources(device, WIDEST, WIDEST) * (1 + squares)
        lane = products + Resources(lut=3 * bits + 80)
        shifts = Resources()
        if self.shifts is not None:
            lane += Resources(lut=self._shift_luts)
            shifts = self.shifts.resources(device)
        return lane * self.lanes + self.rom.resources(device) + shifts

    @property
    def _shift_luts(self) -> int:
        """Lookup tables of a lane that choose between the shifts: a bit, four of eight."""
        u = self.u_shape.width if self.normalization is not None else 0
        return 4 * (self.accumulator_shape.width + self.x_shape.width + u)
