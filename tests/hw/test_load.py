# amaranth: UnusedElaboratable=no
"""What is filled at run time: memories, registers, post-processing, and who fits a template."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Elaboratable, Module, ResetInserter, Shape, Signal
from amaranth.sim import Simulator

from lichen.hw.device.load import ADDRESS_BITS, LoadRegister, Place, image, placed
from lichen.hw.device.memory import FastRom, Ram
from lichen.hw.engine.normalize import Normalize
from lichen.hw.engine.requantize import SHIFT_SPAN, Requantize, ShiftRanges
from lichen.hw.plan import planner
from lichen.hw.stage.loaded import StageTemplate, filled, loadable, templates
from lichen.hw.stage.pipeline import Pipeline
from lichen.models import load_network
from lichen.network.arithmetic import ROOT_TABLES, NormKind, normalize, requantize
from lichen.network.description import Activation, Format, Normalization, Requantizer, Transform
from lichen.network.random import StageShape, random_transform
from tests.hw.cases import random_case, random_upsampling

ARRIVES = 6
"""Cycles after which a word is where it belongs."""


async def write(ctx: Any, bus: Any, writes: list[tuple[int, int]]) -> None:
    """A word every other cycle."""
    for address, data in writes:
        ctx.set(bus.address, address)
        ctx.set(bus.data, data)
        ctx.set(bus.strobe, 1)
        await ctx.tick()
        ctx.set(bus.strobe, 0)
        await ctx.tick()
    for _ in range(ARRIVES):
        await ctx.tick()


def words_of(rng: np.random.Generator, depth: int, width: int) -> list[int]:
    return [
        int.from_bytes(rng.bytes(-(-width // 8)), "little") >> (-width % 8) for _ in range(depth)
    ]


def loaded(kind: type[Ram], depth: int, width: int, words: list[int]) -> Ram:
    """A memory without words of its own."""
    if kind is FastRom:
        return FastRom(depth=depth, width=width, init=words, loads=True)
    return Ram(depth=depth, width=width, init=words, writable=False, loads=True)


def simulate(unit: Any, bench: Any) -> None:
    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("kind", [Ram, FastRom])
@pytest.mark.parametrize(
    ("depth", "width"), [(1, 3), (20, 7), (100, 80), (600, 36), (1100, 40), (33, 400)]
)
def test_a_memory_holds_what_it_is_filled_with(kind, depth, width) -> None:
    """Between neighbours in the map, which are written, too."""
    rng = np.random.default_rng(depth)
    words = words_of(rng, depth, width)
    memory = loaded(kind, depth, width, words)
    before, behind = (LoadRegister(width=5, word=word) for word in (9, 21))
    parts = {"before": before, "memory": memory, "behind": behind}
    places = placed(parts)
    addresses = [*rng.permutation(depth).tolist(), 0, depth - 1]
    read: list[int] = []

    async def bench(ctx: Any) -> None:
        writes = image([memory])
        neighbours = [places["before"].base, places["behind"].base]
        # what is nobody's changes nothing
        strange = [(address, 0x123456789) for address in (*neighbours, (1 << ADDRESS_BITS) - 1)]
        await write(ctx, memory.load, writes + strange)
        for address in addresses:
            ctx.set(memory.r_addr, address)
            await ctx.tick()
            read.append(ctx.get(memory.r_data))
        for _ in range(memory.latency):
            await ctx.tick()
            read.append(ctx.get(memory.r_data))

    simulate(memory, bench)
    assert read[memory.latency - 1 :][: len(addresses)] == [words[a] for a in addresses]


def test_late_fields_are_filled_like_others() -> None:
    rng = np.random.default_rng(5)
    late = (0, 1, 2, 3, 0)
    for depth in (40, 700):
        words = words_of(rng, depth, 16 * len(late))
        rom = FastRom(depth=depth, width=16 * len(late), init=words, late=late, loads=True)
        read: list[int] = []

        async def bench(ctx: Any, rom: FastRom = rom, read: list[int] = read) -> None:
            await write(ctx, rom.load, image([rom]))
            for address in range(rom.depth):
                ctx.set(rom.r_addr, address)
                await ctx.tick()
                read.append(ctx.get(rom.r_data))

        simulate(rom, bench)
        for k, cycles in enumerate(late):
            wait = rom.latency - 1 + cycles
            got = [word >> 16 * k & 0xFFFF for word in read[wait:]]
            assert got == [word >> 16 * k & 0xFFFF for word in words[: len(words) - wait]]


def test_a_map_has_no_overlaps_and_an_end() -> None:
    parts = {
        f"m{k}": loaded(Ram, depth, width, [0])
        for k, (depth, width) in enumerate([(5, 37), (1, 3), (600, 400), (2, 36), (64, 73)])
    }
    taken: set[int] = set()
    for place in placed(parts).values():
        assert place.base % place.size == 0
        addresses = {address for address, _ in place.writes([0] * place.depth)}
        assert len(addresses) == place.depth * place.chunks and not addresses & taken
        taken |= addresses
    huge = {f"m{k}": loaded(Ram, 1 << 22, 36, [0]) for k in range(5)}
    with pytest.raises(ValueError, match="the constants take 20971520 addresses"):
        placed(huge)
    with pytest.raises(ValueError, match="there must be 3 words, not 2"):
        list(Place(0, 3, 8).writes([1, 2]))
    with pytest.raises(ValueError, match="must not be writable"):
        Ram(depth=4, width=4, init=[0], loads=True)
    with pytest.raises(ValueError, match="1 to 36 bits, not 37"):
        LoadRegister(width=37, word=0)


def test_what_was_filled_in_survives_a_reset() -> None:
    register = LoadRegister(width=7, word=99)
    register.place = Place(40, 1, 7)
    reset = Signal()

    class Top(Elaboratable):
        def elaborate(self, platform: object) -> Module:
            m = Module()
            m.submodules.register = ResetInserter(reset)(register)
            return m

    async def bench(ctx: Any) -> None:
        await write(ctx, register.load, image([register]))
        ctx.set(reset, 1)
        await ctx.tick()
        await ctx.tick()
        assert ctx.get(register.value) == 99

    simulate(Top(), bench)


def run(unit: Any, inputs: dict[str, np.ndarray], output: str) -> np.ndarray:
    """Filled with its constants, then a value of every input each cycle."""
    parts = {"channels": unit.rom, "shifts": unit.shifts}
    placed(parts)
    count = len(next(iter(inputs.values())))
    got: list[int] = []

    async def bench(ctx: Any) -> None:
        await write(ctx, unit.load, image(parts.values()))
        for t in range(count + unit.latency):
            if t >= unit.latency:
                got.append(ctx.get(getattr(unit, output)[0]))
            for name, values in inputs.items():
                ctx.set(getattr(unit, name)[0], int(values[min(t, count - 1)]))
            await ctx.tick()

    simulate(unit, bench)
    return np.array(got)


@pytest.mark.parametrize("pre_cycles", [1, 2])
@pytest.mark.parametrize(
    ("least", "d", "m", "s_least", "s", "lo", "hi", "bias"),
    [
        (0, 0, 131071, 12, 17, -127, 127, 0),
        (1, 8, 77777, 0, 0, -127, 127, -3),
        (0, 2, 65536, 9, 16, 0, 255, 100),
        (2, 3, 1, 0, 7, -2, 1, 0),
    ],
)
def test_requantizer_with_any_shift(pre_cycles, least, d, m, s_least, s, lo, hi, bias) -> None:
    """Every accumulator of 12 bits; the same latency as with shifts in the gateware."""
    constants = Requantizer(
        pre_shift=np.array([d]),
        multiplier=np.array([m]),
        shift=s,
        output=Format(bits=9, signed=True, lo=lo, hi=hi),
    )
    fixed = {"bias": [bias], "constants": constants, "accumulator_shape": Shape(14, signed=True)}
    ranges = ShiftRanges(pre_shift=least, shift=s_least, u_shift=None, pre_cycles=pre_cycles)
    unit = Requantize(**fixed, lanes=1, ranges=ranges)
    acc = np.arange(-2048, 2048)
    expected = requantize(acc + bias, d, m, s, lo, hi)
    np.testing.assert_array_equal(run(unit, {"acc": acc}, "x"), expected)
    assert unit.latency == Requantize(**fixed, lanes=1).latency + pre_cycles - 1


@pytest.mark.parametrize("kind", list(NormKind))
def test_normalization_with_any_shift(kind: NormKind) -> None:
    rng = np.random.default_rng(3)
    source = Format(bits=12, signed=True, lo=-2047, hi=2047)
    for a, least in ((3, 0), (9, 2)):
        b = 24 if kind.inverse and kind.squares else 40 if kind.inverse else 9
        constants = Normalization(
            kind=kind,
            gamma_bits=4,
            gamma=np.array([[3]]),
            beta=np.array([77]),
            u_bits=12,
            u_shift=10 if kind.squares else 0,
            product_shift=a,
            multiplier=np.array([99999]),
            shift=b,
            output=Format(bits=10, signed=True, lo=-511, hi=511),
        )
        unit = Normalize(normalization=constants, source=source, lanes=1, product_shift=least)
        x = rng.integers(-2047, 2048, 400)
        sums = rng.integers(0, 1 << 14, 400) >> rng.integers(0, 13, 400)
        rest = (ROOT_TABLES[kind], kind.squares, kind.inverse, a, 99999, b, -511, 511)
        expected = normalize(x, sums + 77, *rest)
        np.testing.assert_array_equal(run(unit, {"x": x, "sum": sums}, "y"), expected)
        plain = Normalize(normalization=constants, source=source, lanes=1)
        assert unit.latency == plain.latency


@pytest.mark.parametrize("make", [random_case, random_upsampling])
def test_cycles_do_not_depend_on_where_constants_are(make) -> None:
    for seed in range(1, 6):
        case = make(seed)
        size = case.image.shape[:2]
        loaded = Pipeline(loadable(case.transform), case.folding)
        assert loaded.predicted_cycles(*size) == case.pipeline().predicted_cycles(*size)
        assert {"weights", "channels", "shifts"} == {n.split(".")[1] for n in loaded.loadables}


SHAPES = [
    StageShape(out_channels=6, kernel=3, activation=Activation.GDN),
    StageShape(out_channels=5, kernel=3, stride=1, activation=Activation.LEAKY_RELU),
]


def transform(seed: int, shapes: list[StageShape] = SHAPES) -> Transform:
    return random_transform(np.random.default_rng(seed), shapes)


def changed(one: Transform, stage: int, part: str, **update: Any) -> Transform:
    stages = list(one.stages)
    record = getattr(stages[stage], part).model_copy(update=update)
    stages[stage] = stages[stage].model_copy(update={part: record})
    return one.model_copy(update={"stages": stages})


def test_narrower_stages_are_filled_up_with_zeros() -> None:
    """The channels that are there come out as before."""
    from lichen.sim.golden import run_stages

    wide = transform(1)
    narrow = transform(2, [StageShape(**{**vars(SHAPES[0]), "out_channels": 4}), SHAPES[1]])
    held = filled(narrow, templates(wide))
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (9, 10, 3))
    for own, wider in zip(run_stages(narrow, image), run_stages(held, image), strict=True):
        channels = own.shape[2]
        np.testing.assert_array_equal(wider[..., :channels], own)
        assert not wider[..., channels:].any()


def test_what_does_not_fit_is_said() -> None:
    one = transform(1)
    fixed = templates(one)
    wider = transform(2, [StageShape(**{**vars(SHAPES[0]), "out_channels": 8}), SHAPES[1]])
    least = fixed[0].shift
    far = changed(one, 0, "requantizer", shift=least + SHIFT_SPAN + 1)
    heavy = changed(one, 0, "convolution", bias=np.full(6, 1 << 40))
    cases = [
        (wider, r"stage conv1 has out_channels 8 where the core has 6"),
        (changed(one, 1, "convolution", weight_bits=11), "stage conv2 has weight_bits 11 where"),
        (far, rf"stage conv1 has shift {least + 8}, and the core takes {least} .. {least + 7}"),
        (heavy, r"stage conv1 needs accumulators of \d+ bits, and the core has \d+"),
        (one.model_copy(update={"stages": one.stages[:1]}), "it has 1 stages, and the core 2"),
    ]
    for other, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            filled(other, fixed)


@pytest.mark.parametrize(("family", "widest"), [("small", "q2"), ("small-opt", "q2")])
def test_a_family_that_ships_fits_one_core(family, widest) -> None:
    for name in ("g_a", "g_s"):
        fixed = templates(load_network(f"{family}-{widest}").transform(name))
        channels = [template.out_channels for template in fixed]
        for quality in ("q1", "q2", "q3", "q4"):
            own = load_network(f"{family}-{quality}").transform(name)
            if all(s.out_channels <= c for s, c in zip(own.stages, channels, strict=True)):
                held = filled(own, fixed)
                assert [stage.out_channels for stage in held.stages] == channels
            else:
                assert (family, name, quality) == ("small-opt", "g_s", "q1")


def test_templates_go_through_json() -> None:
    for template in templates(transform(1)):
        text = json.dumps(template.model_dump())
        assert StageTemplate.model_validate(json.loads(text)) == template


def test_a_plan_with_constants_from_outside_costs_what_its_pipeline_says() -> None:
    """And more than with those inside, in lookup tables."""
    from lichen.boards.board import find

    one = transform(1)
    board = find("ulx3s-85f")
    budget = board.pipeline_budget
    found = planner.plan(loadable(one), budget, max_width=64, multipliers=16, frame=(64, 64))
    fixed = Pipeline(one, found.folding).resources(board.family)
    assert found.resources.lut > fixed.lut and found.resources.dsp == fixed.dsp
    assert found.resources.bram >= fixed.bram
