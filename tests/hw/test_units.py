# amaranth: UnusedElaboratable=no
"""Corner values of the requantizer and of the normalization's scaling, in Amaranth's simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Shape
from amaranth.sim import Simulator

from lichen.hw.device.memory import Ram
from lichen.hw.engine.normalize import Normalize
from lichen.hw.engine.requantize import Requantize
from lichen.network.arithmetic import ROOT_TABLES, NormKind, normalize, requantize_leaky
from lichen.network.description import Format, Normalization, Requantizer

SETTLE = Ram.latency + 2
"""Cycles from a beat's index to its constants."""


def run(unit: Any, inputs: dict[str, np.ndarray], output: str) -> np.ndarray:
    """Free-running: a value of every input each cycle, the output `latency` cycles later."""
    count = len(next(iter(inputs.values())))
    got: list[int] = []

    async def bench(ctx: Any) -> None:
        for _ in range(SETTLE):
            await ctx.tick()
        for t in range(count + unit.latency):
            if t >= unit.latency:
                got.append(ctx.get(getattr(unit, output)[0]))
            for name, values in inputs.items():
                ctx.set(getattr(unit, name)[0], int(values[min(t, count - 1)]))
            await ctx.tick()

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return np.array(got)


@pytest.mark.parametrize(
    ("d", "m", "negative", "s", "lo", "hi", "bias"),
    [
        (0, 131071, None, 17, -127, 127, 0),
        (1, 77777, None, 14, -127, 127, -3),
        (2, 65536, None, 16, 0, 255, 100),
        (3, 1, None, 0, -2, 1, 0),
        (0, 0, None, 5, -127, 127, 0),
        (1, 90000, 9000, 13, -127, 127, 7),
    ],
)
def test_requantizer_exhaustively(
    d: int, m: int, negative: int | None, s: int, lo: int, hi: int, bias: int
) -> None:
    """Every accumulator of 12 bits."""
    output = Format(bits=9, signed=True, lo=lo, hi=hi)
    constants = Requantizer(
        pre_shift=np.array([d]),
        multiplier=np.array([m]),
        negative_multiplier=None if negative is None else np.array([negative]),
        shift=s,
        output=output,
    )
    unit = Requantize(
        bias=[bias], constants=constants, accumulator_shape=Shape(14, signed=True), lanes=1
    )
    acc = np.arange(-2048, 2048)
    expected = requantize_leaky(acc + bias, d, m, m if negative is None else negative, s, lo, hi)
    np.testing.assert_array_equal(run(unit, {"acc": acc}, "x"), expected)


@pytest.mark.parametrize("leaky", [False, True])
def test_requantizer_of_several_channels(leaky: bool) -> None:
    """Two lanes, five channels of which each has constants of its own."""
    rng = np.random.default_rng(3)
    channels, lanes, count = 5, 2, 60
    bias, d = np.array([-900, 5, 0, 700, -3]), np.array([3, 2, 5, 2, 4])
    m = rng.integers(1, 131072, channels)
    negative = rng.integers(1, 131072, channels) if leaky else None
    constants = Requantizer(
        pre_shift=d,
        multiplier=m,
        negative_multiplier=negative,
        shift=15,
        output=Format(bits=9, signed=True, lo=-255, hi=255),
    )
    unit = Requantize(
        bias=bias.tolist(), constants=constants, accumulator_shape=Shape(14, signed=True), lanes=2
    )
    beats = np.resize([0, 2, 1, 1, 0], count)
    acc = rng.integers(-4000, 4000, (count, lanes))
    got: list[list[int]] = []

    async def bench(ctx: Any) -> None:
        for t in range(count + SETTLE + unit.latency):
            ctx.set(unit.beat, int(beats[min(t, count - 1)]))
            now = min(max(t - SETTLE + 1, 0), count - 1)
            for lane in range(lanes):
                ctx.set(unit.acc[lane], int(acc[now, lane]))
            if t >= SETTLE - 1 + unit.latency:
                got.append([ctx.get(unit.x[lane]) for lane in range(lanes)])
            await ctx.tick()

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    for values, beat, row in zip(acc, beats, got, strict=False):
        for lane in range(lanes):
            c = beat * lanes + lane
            if c < channels:
                low = m[c] if negative is None else negative[c]
                wanted = requantize_leaky(values[lane] + bias[c], d[c], m[c], low, 15, -255, 255)
                assert row[lane] == wanted, f"Requantize: channel {c}"


def test_requantizer_at_its_saturation() -> None:
    """Around the borders of 18 bits, of every shift, and at the ends of a wide accumulator."""
    rng = np.random.default_rng(0)
    edges = [e << d for e in (131071, 131072, -131072, -131073) for d in (0, 5, 20)]
    acc = np.array([e + o for e in (*edges, 0) for o in range(-40, 41)] + [-(2**39), 2**39 - 1])
    acc = np.concatenate([acc, rng.integers(-(2**39), 2**39, 500)])
    for d, m, s in ((5, 131071, 35), (20, 3, 0), (31, 131071, 17)):
        constants = Requantizer(
            pre_shift=np.array([d]),
            multiplier=np.array([m]),
            shift=s,
            output=Format(bits=16, signed=True, lo=-32768, hi=32767),
        )
        unit = Requantize(
            bias=[0], constants=constants, accumulator_shape=Shape(41, signed=True), lanes=1
        )
        expected = requantize_leaky(acc, d, m, m, s, -32768, 32767)
        np.testing.assert_array_equal(run(unit, {"acc": acc}, "x"), expected)


@pytest.mark.parametrize("kind", list(NormKind))
def test_normalization_at_the_borders_of_its_table(kind: NormKind) -> None:
    """Around every binade and node of the table, with x at its extremes and in between."""
    near = [2**k + o for k in range(32) for o in (-1, 0, 1)] + [2**32 - 1]
    nodes = [(i << 24 >> z) + o for i in range(64, 256) for z in (0, 13) for o in (-1, 0)]
    n = np.array([v for v in (*near, *nodes) if 1 <= v < 2**32])
    x = np.resize([-32767, 32767, -1, 1, 0, 12345, -20000], len(n))
    norm = Normalization(
        kind=kind,
        gamma_bits=12,
        gamma=np.array([[4095]]),
        beta=np.array([1]),
        u_bits=16,
        u_shift=14 if kind.squares else 0,
        product_shift=14,
        multiplier=np.array([98765]),
        shift=31 if kind.inverse else 4,
        output=Format(bits=16, signed=True, lo=-32768, hi=32767),
    )
    source = Format(bits=16, signed=True, lo=-32767, hi=32767)
    # norms that this gamma and a small beta reach, and with a large one the greatest there are
    large = norm.model_copy(update={"beta": np.array([2**32 - 1 - 4095 * 65535])})
    for constants, values in ((norm, n[n < 4095 * 32000]), (large, n[n >= int(large.beta[0])])):
        inputs = {"sum": values - int(constants.beta[0]), "x": x[: len(values)]}
        expected = normalize(
            inputs["x"],
            values,
            ROOT_TABLES[kind],
            kind.squares,
            kind.inverse,
            14,
            98765,
            constants.shift,
            -32768,
            32767,
        )
        unit = Normalize(normalization=constants, source=source, lanes=1)
        np.testing.assert_array_equal(run(unit, inputs, "y"), expected)
