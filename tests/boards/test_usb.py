# amaranth: UnusedElaboratable=no
"""USB in place of the serial line: the top at its pins, and a host that keeps to the rules."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from amaranth.hdl import Module, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.boards.board import BOARDS, ULX3S_85F, find
from lichen.boards.build import achieved
from lichen.boards.build.report import read_placement
from lichen.boards.design import Bitstream, Design, fold
from lichen.boards.ecp5 import pll as plls
from lichen.boards.ecp5.pll import PLL, retune
from lichen.boards.ecp5.toolchain import PRIMITIVES
from lichen.boards.host import connection
from lichen.boards.host.connection import Connection
from lichen.boards.host.engine import from_bytes, to_bytes
from lichen.boards.host.serial import SerialLine
from lichen.boards.host.session import Frame
from lichen.boards.link.rate import FULL_SPEED, HIGH_SPEED
from lichen.boards.port.port import TransformPort
from lichen.boards.record import Board
from lichen.boards.simulated import board as simulated
from lichen.boards.top import Top
from lichen.cli import main
from lichen.errors import UserError
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.ecp5 import ECP5
from lichen.models import load_network
from lichen.sim.golden import run_transform

from . import fakes
from .simulation import DIGEST, job, make_top
from .standin import Standin
from .test_board import check_limits

FULL = ULX3S_85F.with_link("usb")
HIGH = find("ecpix5-85f").with_link("usb")


ULPI = {
    *("M26", "L25", "L26", "K25", "K26", "J23", "P25", "H25"),
    *("H24", "F22", "F23", "H23", "E23"),
}
"""Pins of the ECPIX-5's transceiver: data, then clock, DIR, NXT, STP and reset."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board is asked for before its host has found it: that takes the simulator a while."""
    monkeypatch.setattr(connection, "ANSWER_S", 300.0)


def connect(board: simulated.SimulatedBoard) -> Connection:
    return Connection(SerialLine(board.port, 3_000_000), patience_s=300)


def test_a_link_is_a_property_of_the_board():
    assert set(ULX3S_85F.links) == {"uart", "usb"}
    assert ULX3S_85F.link is ULX3S_85F.uart and FULL.link is FULL.usb
    spared = FULL.budget.bram - FULL.pipeline_budget.bram
    assert spared == FULL.usb.bram != ULX3S_85F.uart.bram
    with pytest.raises(UserError, match="the ULX3S 85F has no link 'usb'; it has uart"):
        replace(ULX3S_85F, usb=None).with_link("usb")


def test_without_luna_a_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "luna", None)
    with pytest.raises(UserError, match=r"luna-usb, .* pip install 'lichen\[usb\]'"):
        FULL.link.line(FULL.oscillator_hz)


@pytest.mark.parametrize("board", BOARDS.values(), ids=lambda board: board.name)
def test_what_is_set_aside_is_what_it_takes(board: Board):
    board = board.with_link("usb")
    top = make_top(board)
    link = top.link_resources(ECP5)
    assert (link.dsp, link.bram) == (0, board.link.bram)
    assert link.lut <= board.link.lut


@pytest.mark.parametrize("name", ["ulx3s-25f", "orangecrab-25f"])
def test_the_clocks_of_full_speed(name):
    """Within the PLL's data sheet, and within what USB allows, with 100 ppm for the oscillator."""
    board = find(name)
    pll = PLL.choose(input_hz=board.oscillator_hz, output_hz=plls.USB_HZ)
    made = check_limits(pll, Fraction(board.oscillator_hz, 10**6))
    assert abs(float(made) / 48 - 1) < 2500e-6 - 100e-6
    assert float(made) / 4 >= 3.125 and 4 * pll.output_div <= 128


@pytest.mark.parametrize(
    ("name", "pins", "domains"),
    [
        ("ulx3s-25f", {"D15", "E15", "B12"}, 2),
        ("orangecrab-85f", {"N1", "M2", "N2"}, 2),
        ("ecpix5-45f", ULPI, 1),
    ],
)
def test_usb_is_on_the_boards_pins(name, pins, domains):
    board = find(name).with_link("usb")
    pll = board.pll()
    platform, elaboratable = board.platform(make_top(board), pll)
    files = platform.prepare(elaboratable, "top", emit_src=False).files
    text = {key: v if isinstance(v, str) else v.decode() for key, v in files.items()}
    found = set(re.findall(r'^LOCATE COMP "\S+" SITE "(\w+)";', text["top.lpf"], re.M))
    assert pins < found and not found & {"L4", "M1", "N17", "M18", "R26", "R24"}
    assert text["top.v"].count("EHXPLLL #(") == domains
    # The design's clock can still be changed after routing, and USB's stays.
    if domains == 2:
        quarter = int(re.findall(r"\.CLKOS2_DIV\(32'd(\d+)\)", text["top.v"])[0])
        assert f".CLKOP_DIV(32'd{quarter // 4})" in text["top.v"]
    else:
        assert re.search(r'^FREQUENCY (NET|PORT) "\S+" 60000000.0 HZ;', text["top.lpf"], re.M)


def test_the_clock_of_a_routed_design_changes_and_usbs_does_not():
    """Also where both PLLs have equal dividers."""
    own = next(part for part in fakes.CONFIG.split("\n\n") if "EHXPLLL" in part)
    of_usb = own.replace("CLKOS2_ENABLE DISABLED", "CLKOS2_ENABLE ENABLED")
    assert of_usb != own
    before, after = ULX3S_85F.pll(), ULX3S_85F.pll(110)
    changed = retune(f"{fakes.CONFIG}\n\n{of_usb}", before, after)
    assert of_usb in changed and retune(fakes.CONFIG, before, after) in changed


def forget_usb(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if only serial lines had been built."""
    known = tuple(build for build in achieved.records() if build.link == "uart")
    monkeypatch.setattr(achieved, "records", lambda: known)


def test_plans_over_usb_call_nothing_built(monkeypatch):
    forget_usb(monkeypatch)
    clock = achieved.expected_clock(FULL, Resources(dsp=10, bram=10, lut=1000))
    assert clock.source.startswith("not built over full-speed USB; ")
    assert clock.interval_mhz is not None
    over_uart = achieved.expected_clock(ULX3S_85F, Resources(dsp=10, bram=10, lut=1000))
    assert over_uart.limit_mhz == clock.limit_mhz


def test_a_plan_over_usb(monkeypatch, capsys):
    forget_usb(monkeypatch)
    plans = {}
    small = ("--transform", "g_a", "--multipliers", "24", "--max-width", "64", "--json", "-")
    for link in ("uart", "usb"):
        main(["plan", "tiny", "--board", "ulx3s-85f", "--link", link, *small])
        plans[link] = json.loads(capsys.readouterr().out)
        assert plans[link]["link"] == link
    # 12 Mbit/s, shared, in place of 3 and the other way for itself.
    assert 2 < plans["usb"]["fps_link"] / plans["uart"]["fps_link"] < 4
    assert plans["usb"]["clock_source"].startswith("not built over full-speed USB; ")


def test_a_serial_lines_rate_is_not_usbs(capsys):
    with pytest.raises(SystemExit):
        main(["board-sim", "tiny", "--board", "ulx3s-85f", "--link", "usb", "--speed", "1000"])
    assert "--speed is that of a serial line; USB has but its own." in capsys.readouterr().err


def test_other_clocks_that_are_too_slow_are_told(tmp_path):
    """USB's, beside the system's, whose own limit is no failure."""
    limits = {"clk": (90, 100), "$glbnet$usb_clk": (59, 60), "line_clk": (200, 25)}
    report = {
        "fmax": {name: {"achieved": a, "constraint": c} for name, (a, c) in limits.items()},
        "utilization": {name: {"used": 1} for name in
                        ("MULT18X18D", "DP16KD", "TRELLIS_COMB", "TRELLIS_FF")},
    }  # fmt: skip
    (tmp_path / "report.json").write_text(json.dumps(report))
    placed = read_placement(tmp_path / "report.json", "clk", PRIMITIVES)
    assert (placed.fmax_mhz, placed.slow) == (90, ("usb_clk",))


def test_bulk_transactions_are_those_of_the_tables_of_usb():
    """USB 2.0, tables 5-9 and 5-10: 1 216 000 and 53 248 000 bytes a second at most."""
    for bulk, rate in ((FULL_SPEED, 1_216_000), (HIGH_SPEED, 53_248_000)):
        assert bulk.most * bulk.packet / bulk.period_s == pytest.approx(rate)
        # Of a frame that only goes up: a little of it is states coming back, asked for as often.
        seconds = bulk.seconds([(10**7, 1)])
        assert 10**7 / rate < seconds < 1.6 * 10**7 / rate


@pytest.fixture(scope="module")
def full() -> Iterator[simulated.SimulatedBoard]:
    with simulated.running(simulated.build(FULL, make_top(FULL)), FULL) as found:
        yield found


def test_frames_go_through_full_speed(full):
    """The real encoder and decoder; bit stuffing, toggles and checksums are the host's to check."""
    host = connect(full)
    found = host.identity
    assert (found.digest, found.line_hz, found.input_slots) == (DIGEST, 12_000_000, 16)
    assert host.clock_hz() == FULL.oscillator_hz
    for seed, (which, *size) in enumerate([(0, 16, 16), (1, 8, 6), (0, 5, 16), (0, 1, 1)]):
        one = job(seed, which, *size)
        assert host.run(one.frame) == one.golden, f"transform {which}, a frame of {size}"
    assert host.repeated == 0
    tally = host.session.tally
    assert tally.repeated_packets == tally.damaged == tally.repeats_asked == 0
    host.close()


def test_a_frame_takes_the_time_that_plans_say_at_full_speed(full):
    host = connect(full)
    one = job(1, 1, 100, 16)  # latents of two bytes in, pixels out
    assert host.run(one.frame) == one.golden
    told = FULL_SPEED.seconds([(len(one.frame.payload), len(one.golden))])
    print(host.session.cycles / FULL.oscillator_hz, told)
    assert host.session.cycles / FULL.oscillator_hz == pytest.approx(told, rel=0.2)
    host.close()


def test_a_device_that_was_reset_is_found_again(full):
    """The PLL loses its lock: the device leaves the bus, and comes back without an address."""
    host = connect(full)
    one = job(3, 0, 16, 16)
    assert host.run(one.frame) == one.golden
    full.brown_out()
    assert host.run(one.frame) == one.golden
    assert host.counters()["frames"] == 1
    host.close()


class Echo(wiring.Component):
    """A pipeline that takes a byte a cycle and gives it back: nothing but the link takes time."""

    def __init__(self) -> None:
        self.transform = SimpleNamespace(in_channels=1, out_channels=1, stages=[])
        lanes = [stream.Signature(data.ArrayLayout(shape(8), 1)) for shape in (unsigned, signed)]
        size = {"width": In(16), "height": In(16)}
        super().__init__(wiring.Signature({"i": In(lanes[0]), "o": Out(lanes[1]), **size}))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += [
            self.o.payload[0].eq(self.i.payload[0]),
            self.o.valid.eq(self.i.valid),
            self.i.ready.eq(self.o.ready),
        ]
        return m

    def resources(self, device: Device) -> Resources:
        return Resources()


@pytest.fixture(scope="module")
def high() -> Iterator[simulated.SimulatedBoard]:
    pipelines = {"g_a": Standin(), "g_s": Echo()}
    top = Top(
        ports=[
            TransformPort(name=name, pipeline=pipeline, max_width=1024)
            for name, pipeline in pipelines.items()
        ],
        link=HIGH.link,
        clock_hz=HIGH.oscillator_hz,
        oscillator_hz=HIGH.oscillator_hz,
        digest=DIGEST,
    )
    with simulated.running(simulated.build(HIGH, top), HIGH) as found:
        yield found


def test_frames_go_through_high_speed(high):
    """Through a transceiver: the speed is found by chirps, packets have 512 bytes."""
    host = connect(high)
    assert (host.identity.line_hz, host.identity.input_slots) == (480_000_000, 64)
    pixels = np.random.default_rng(0).integers(0, 256, (16 * 16, 3))
    golden = Standin().golden(pixels)
    payload = pixels.astype(np.uint8).tobytes()
    frame = Frame(transform=0, width=16, height=16, payload=payload, expected=2 * golden.size)
    assert host.run(frame) == golden.astype("<i2").tobytes()
    assert host.repeated == host.session.tally.damaged == 0
    host.close()


def test_a_frame_takes_the_time_that_plans_say_at_high_speed(high):
    """With bytes both ways, as many as the bus takes."""
    host = connect(high)
    payload = np.random.default_rng(1).integers(0, 256, 96 * 1024, dtype=np.uint8).tobytes()
    frame = Frame(transform=1, width=1024, height=96, payload=payload, expected=len(payload))
    assert host.run(frame) == payload
    told = HIGH_SPEED.seconds([(len(payload), len(payload))])
    print(host.session.cycles / HIGH.oscillator_hz, told)
    assert host.session.cycles / HIGH.oscillator_hz == pytest.approx(told, rel=0.25)
    host.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ulx3s-85f", "orangecrab-85f", "ecpix5-85f"])
def test_tiny_over_usb(name):
    """A shipped network on every board's USB: a frame of 16x16, both ways."""
    board = find(name).with_link("usb")
    network = load_network("tiny")
    names = ("g_a", "g_s")
    foldings = fold(network, names, board, max_width=64, multipliers=24)
    designs = [Design.make(network, n, f) for n, f in zip(names, foldings, strict=True)]
    top = Bitstream(designs=tuple(designs)).top(board, board.pll(board.oscillator_hz / 1e6))
    with simulated.running(simulated.build(board, top), board) as running:
        host = connect(running)
        values = np.random.default_rng(5).integers(0, 256, (16, 16, 3))
        for index, (transform, form) in enumerate(
            zip((d.transform for d in designs), host.identity.transforms, strict=True)
        ):
            golden = run_transform(transform, values)
            frame = Frame(
                transform=index,
                width=values.shape[1],
                height=values.shape[0],
                payload=to_bytes(values, transform.input, form.in_bytes),
                expected=golden.size * form.out_bytes,
            )
            raw = host.run(frame)
            got = from_bytes(raw, transform.output, form.out_bytes).reshape(golden.shape)
            np.testing.assert_array_equal(got, golden)
            values = golden
        host.close()
