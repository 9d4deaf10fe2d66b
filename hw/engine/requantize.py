# amaranth: UnusedElaboratable=no
"""The requantizer: from accumulators to activations, a lane a cycle."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Module, Mux, Shape, Signal, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, lanes_of, shape_of
from lichen.hw.device.memory import Ram
from lichen.hw.device.multiplier import WIDEST, multiplier_resources
from lichen.hw.engine.pipe import PIPE_MULTIPLY, Pipe
from lichen.network.arithmetic import ceil_div
from lichen.network.description import Normalization, Requantizer


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

    Members
    -------
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
    ):
        self.constants, self.lanes, self.normalization = constants, lanes, normalization
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
        super().__init__(wiring.Signature(ports))

        self._bias_shape = shape_of(min(0, int(min(bias))), max(0, int(max(bias))))
        shifts = [int(d) for d in constants.pre_shift]
        self._base_shift = min(shifts)
        self._extra_shift = max(shifts) - self._base_shift
        self._leaky = constants.negative_multiplier is not None
        fields: list[tuple[Sequence[int], int]] = [
            (bias, self._bias_shape.width),
            (constants.multiplier, 17),
        ]
        layout: dict[str, object] = {"bias": self._bias_shape, "m": unsigned(17)}
        if self._leaky:
            assert constants.negative_multiplier is not None
            fields.append((constants.negative_multiplier, 17))
            layout["m_negative"] = unsigned(17)
        if self._extra_shift:
            width = self._extra_shift.bit_length()
            fields.append(([d - self._base_shift for d in shifts], width))
            layout["d"] = unsigned(width)
        self._layout = data.StructLayout(layout)
        words = constant_words(fields, lanes)
        self.rom = Ram(
            depth=len(words), width=lanes * self._layout.size, init=words, writable=False
        )

    @property
    def latency(self) -> int:
        """Cycles from ``acc`` to ``x``."""
        cycles = 4 + PIPE_MULTIPLY + bool(self._extra_shift) + self._leaky + 1
        if self.normalization is not None:
            cycles += PIPE_MULTIPLY if self.normalization.kind.squares else 1
        return cycles

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.rom = self.rom
        m.d.comb += self.rom.r_addr.eq(self.beat)
        word = Signal(lanes_of(self._layout, self.lanes), reset_less=True)
        m.d.sync += word.as_value().eq(self.rom.r_data)
        out, norm = self.constants.output, self.normalization
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
            if self._extra_shift:
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
            pipe.shift_round("y", self.constants.shift)
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
                self.u[lane].eq(pipe["u"].as_unsigned() >> norm.u_shift),
            ]
        assert pipe.latency == self.latency
        return m

    def resources(self, device: Device) -> Resources:
        squares = self.normalization is not None and self.normalization.kind.squares
        bits = self.accumulator_shape.width
        products = multiplier_resources(device, WIDEST, WIDEST) * (1 + squares)
        lane = products + Resources(lut=3 * bits + 80)
        return lane * self.lanes + self.rom.resources(device)
