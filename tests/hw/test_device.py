"""Families of devices: costs are asked of them, and a new one is a record."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from amaranth.hdl import signed

from lichen import models
from lichen.hw.device.device import BlockCell, MultiplierCell, Resources, SmallRam
from lichen.hw.device.ecp5 import ECP5, Target
from lichen.hw.device.families import FAMILIES, PORTABLE, device_of
from lichen.hw.device.memory import Ram, pieces
from lichen.hw.device.multiplier import Multiplier
from lichen.hw.plan.planner import evaluate, plan

NARROW = replace(
    ECP5,
    name="narrow",
    parts="NARROW",
    multiplier=MultiplierCell(bits=16, latency=2),
    block=BlockCell(shapes=((256, 16), (512, 8), (1024, 4), (2048, 2)), latency=1, luts=200),
    small=SmallRam(depth=32, width=2, luts=2),
    chain_ends=0,
    cells=None,
)
"""A family that is none: narrower multipliers, smaller blocks, cheaper chains."""


def test_a_platform_tells_its_family():
    assert device_of(None) is PORTABLE
    assert device_of(Target()) is ECP5
    assert device_of(type("P", (), {"device": "LFE5UM5G-85F"})()) is ECP5
    assert device_of(type("P", (), {"device": "iCE40UP5K"})()) is PORTABLE


@pytest.mark.parametrize("device", FAMILIES.values(), ids=lambda d: d.name)
def test_records_hold_what_units_rely_on(device):
    depths = [depth for depth, _ in device.block.shapes]
    assert depths == sorted(depths)
    assert all(depth & (depth - 1) == 0 for depth in depths)
    assert device.multiplier.latency <= Multiplier.latency
    assert device.block.latency <= Ram.latency


def test_costs_are_those_of_the_device():
    ram = Ram(depth=512, width=36)
    assert ram.resources(ECP5) == Resources(bram=1)
    assert ram.resources(NARROW).bram == 5  # 512 words of 8 bits each
    product = Multiplier(a_shape=signed(18), b_shape=signed(18))
    assert product.resources(ECP5).dsp == 1
    assert product.resources(NARROW).dsp == 4  # composed
    small = Multiplier(a_shape=signed(16), b_shape=signed(8))
    assert small.resources(NARROW).dsp == 1
    assert ECP5.chain_luts(9) - NARROW.chain_luts(9) == ECP5.chain_ends


def test_blocks_have_shapes_of_the_device():
    for piece in pieces(NARROW, 1600, 40, False):
        assert not piece.block or (piece.depth, piece.width) in NARROW.block.shapes


def test_a_plan_asks_its_device():
    """The same folding takes other primitives elsewhere, and as many cycles."""
    transform = models.load_network("tiny").transform("g_a")
    budget = Resources(dsp=400, bram=400, lut=80_000)
    found = plan(transform, budget, device=NARROW, max_width=64, multipliers=60)
    assert found.device is NARROW
    other = evaluate(transform, found.folding, device=ECP5)
    assert other.cycles_per_frame == found.cycles_per_frame
    # only the 18x18 multiplications of requantizers and roots are composed of four
    assert other.resources.dsp < found.resources.dsp <= 4 * other.resources.dsp
    assert other.resources.bram < found.resources.bram


@dataclass(frozen=True, kw_only=True)
class WithLarge(Resources):
    """Of a family with a memory of its own."""

    large: int = 0


def test_a_family_may_have_primitives_of_its_own():
    have = WithLarge(dsp=8, bram=30, lut=5280, large=4)
    assert have.overruns(Resources(dsp=8)) == []
    assert have.overruns(WithLarge(large=5)) == ["1 large too many (5 of 4)"]
    assert (have + WithLarge(large=1)).large == 5
    assert have.percent(50) == WithLarge(dsp=4, bram=15, lut=2640, large=2)
