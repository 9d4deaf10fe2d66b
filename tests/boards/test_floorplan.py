"""Floorplans: legal places, short wires, the same ones everywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess

import numpy as np
import pytest

from lichen.boards.ecp5.floorplan import density, netlist, plan
from lichen.boards.ecp5.floorplan.fabric import fabric, pins
from lichen.boards.ecp5.floorplan.picture import critical_path
from lichen.boards.ecp5.floorplan.place import Effort, Placement, lateness
from lichen.boards.ecp5.floorplan.plan import FloorplanError, apply, make
from lichen.boards.ecp5.toolchain import NEXTPNR_ECP5
from lichen.errors import UserError

from .netlists import Builder, ring

SIZES = {"12F": (28, 56, 24), "25F": (28, 56, 24), "45F": (72, 108, 44), "85F": (156, 208, 84)}
"""Multipliers, block RAMs and thousands of lookup tables, from Lattice's family data sheet."""

DEVICES = [f"LFE5U-{size}" for size in SIZES] + [
    f"LFE5UM{kind}-{size}" for kind in ("", "5G") for size in ("25F", "45F", "85F")
]

QUICK = Effort(spread=200, growth=1.1, settle=20, rounds=2)
"""Enough for a handful of macros."""


def floor(design, device="LFE5U-25F", **options):
    settings = {"pads": {}, "aim_hz": 110e6, "tries": 1, "effort": QUICK} | options
    return make(design["modules"]["top"], device=device, **settings)


@pytest.mark.parametrize("device", DEVICES)
def test_places_are_the_devices_own(device):
    found = fabric(device)
    multipliers, memories, tables = SIZES[device.split("-")[1]]
    assert (len(found.multipliers), len(found.memories)) == (multipliers, memories)
    assert round(8 * len(found.logic_x) / 1000) == tables
    for places, pattern in (
        (found.multipliers, r"X(\d+)/Y(\d+)/MULT18_[0145]"),
        (found.memories, r"X(\d+)/Y(\d+)/EBR[0-3]"),
    ):
        assert len(set(places.names)) == len(places)
        at = [re.fullmatch(pattern, name).groups() for name in places.names]
        assert np.array_equal(np.array(at, int), np.stack([places.x, places.y], axis=1))
        assert places.x.max() < found.width and places.y.max() < found.height
    # Four multipliers share a block's clocks and enables.
    assert set(np.bincount(found.multipliers.blocks)) == {4}


def test_a_known_place_and_a_known_pin():
    assert "X4/Y10/MULT18_0" in fabric("LFE5U-85F").multipliers.names
    # The clock tree's multiplexer stands where a first block RAM would.
    assert "X69/Y22/EBR0" in fabric("LFE5U-85F").memories.names
    assert pins("LFE5U-85F", "CABGA381")["G2"] == (0, 47)


def test_an_unknown_device_and_an_unknown_package():
    with pytest.raises(UserError, match=r"the places of LFE5U-99F are not known; `pip install"):
        fabric("LFE5U-99F")
    with pytest.raises(UserError, match=r"LFE5U-25F has no package 'DIP8'; known: CABGA256, "):
        pins("LFE5U-25F", "DIP8")


@pytest.mark.parametrize(("stages", "device"), [(14, "LFE5U-12F"), (3, "LFE5U-45F")])
def test_one_cell_a_place_and_every_macro_has_one(stages, device):
    """Fourteen stages take every multiplier of the smallest device."""
    design = ring(stages)
    found = floor(design, device)
    cells = design["modules"]["top"]["cells"]
    macros = {n: c["type"] for n, c in cells.items() if c["type"] in ("MULT18X18D", "DP16KD")}
    assert set(found.places) == set(macros)
    assert len(set(found.places.values())) == len(macros)
    legal = {
        "MULT18X18D": set(fabric(device).multipliers.names),
        "DP16KD": set(fabric(device).memories.names),
    }
    assert all(found.places[name] in legal[kind] for name, kind in macros.items())
    # What it says of itself is what it did.
    at = dict(zip(found.names, zip(found.x, found.y, strict=True), strict=True))
    for name, place in found.places.items():
        x, y = re.match(r"X(\d+)/Y(\d+)/", place).groups()
        assert at[name] == (int(x) + 0.5, int(y) + 0.5)


def columns_apart(places):
    """Columns between the multipliers of each stage and its block RAM, summed."""
    column = {name: int(re.match(r"X(\d+)/", place)[1]) for name, place in places.items()}
    return sum(abs(x - column[name.rsplit(".", 1)[0] + ".memory"]) for name, x in column.items())


def test_what_belongs_together_stands_together():
    """In the order of their names, which says nothing, the same macros lie twice as far."""
    found = floor(ring(8))
    where = fabric("LFE5U-25F")
    naive = {}
    for kind, places in (("times", where.multipliers), ("memory", where.memories)):
        some = sorted(name for name in found.places if kind in name)
        naive |= dict(zip(some, places.names[:: len(places) // len(some)], strict=False))
    assert columns_apart(found.places) < columns_apart(naive) / 2


@pytest.mark.parametrize("corner", [(0, 2), (72, 48)])
def test_pads_pull(corner):
    """Memories on wires to one pad take the places that are nearest to it."""
    build = Builder()
    for i in range(4):
        net = build.net()
        build.cell(f"memory{i}", "DP16KD", CLKA=2, DOA0=net)
        build.pad(f"pin{i}", net)
    found = floor(build.design(), pads={f"pin{i}": corner for i in range(4)})
    places = fabric("LFE5U-25F").memories
    away = abs(places.x - corner[0]) + abs(places.y - corner[1])
    nearest = {places.names[i] for i in np.argsort(away, kind="stable")[:4]}
    assert set(found.places.values()) == nearest


def chain(depth):
    """A multiplier behind whose product lie ``depth`` lookup tables and a flip-flop."""
    build = Builder()
    net = build.net()
    build.cell("times", "MULT18X18D", CLK0=2, P0=net)
    for i in range(depth):
        net = build.table(f"table{i}", net)
    build.flip_flop("held", net)
    return netlist.parse(build.design()["modules"]["top"])


def test_paths_take_what_their_cells_and_wires_do():
    module = chain(3)
    placement = Placement(module, fabric("LFE5U-25F"), pads={}, period_ns=9.0, seed=1)
    placement.x[:] = [10.5, 12.5, 12.5, 15.5, 15.5, *placement.x[5:]]
    placement.y[:] = [10.5, 10.5, 11.5, 11.5, 11.5, *placement.y[5:]]
    launch, table, wires, tiles = 1.0, 0.24, 4, 2 + 1 + 3 + 0
    expected = launch + 3 * table + wires * 0.35 + tiles * 0.065
    assert placement.path_lengths() == pytest.approx(4 * [expected])
    # A path that takes no more than it may is not late.
    assert lateness(placement) == 0.0
    placement.period_ns = expected
    assert lateness(placement) == pytest.approx(1.0)


def test_late_paths_pull():
    """A multiplier goes to the pads it has more wires to, unless a path the other way is late."""
    build = Builder()
    slow, *products = (build.net() for _ in range(3))
    words = [build.net() for _ in range(12)]
    build.cell("times", "MULT18X18D", CLK0=2, P0=slow, P1=products[0], P2=products[1])
    for i in range(15):
        slow = build.table(f"table{i}", slow)
    outputs = {f"DOA{i}": net for i, net in enumerate(words)}
    build.cell("memory", "DP16KD", CLKA=2, ADA0=slow, **outputs)
    for side, nets in (("left", products), ("right", words)):
        for i, net in enumerate(nets):
            build.pad(f"{side}{i}", net)
    pads = {name: (0 if name.startswith("left") else 72, 20) for name in build.ports}
    column = {}
    for timing in (0.0, 1.0):
        effort = dataclasses.replace(QUICK, spread=400, growth=1.02, timing=timing)
        found = floor(build.design(), pads=pads, effort=effort, aim_hz=100e6)
        column[timing] = int(found.places["times"].split("/")[0][1:])
    assert column[0.0] < 10
    assert column[1.0] > 30


def test_the_same_seed_gives_the_same_places():
    design = ring(3)
    before = json.dumps(design)
    first, again, other = floor(design), floor(design), floor(design, seed=2)
    assert json.dumps(design) == before  # not touched
    assert first.places == again.places and first.describe() == again.describe()
    assert first.places != other.places


def test_the_same_places_on_every_machine():
    """Recorded on one; sums in another order, or another exponential, would end elsewhere."""
    found = floor(ring(10), device="LFE5U-45F", seed=3)
    digest = hashlib.sha256(json.dumps(sorted(found.places.items())).encode()).hexdigest()
    assert digest[:16] == "be34eba0265030f2"


@pytest.mark.parametrize("device", ["LFE5U-25F", "LFE5U-45F", "LFE5U-85F"])
def test_cosines_are_rounded_away_from_their_last_bits(device):
    """No cosine lies so near to where rounding turns that the last bits would decide."""
    found = fabric(device)
    for bins in {found.width, found.height, -(-found.width // 9), -(-found.height // 12)}:
        exact = np.cos(
            np.pi * np.arange(bins)[:, None] * (2 * np.arange(bins)[None, :] + 1) / (2 * bins)
        )
        scaled = exact * 2.0**density.COSINE_BITS
        turn = abs(scaled - np.floor(scaled) - 0.5)
        assert turn.min() > 2.0**-18
        assert np.array_equal(density.cosines(bins) * 2.0**density.COSINE_BITS, np.rint(scaled))


def test_the_field_is_that_of_poissons_equation():
    """Its divergence is the charge, less the mean, up to the steps of the grid."""
    grid = density.Grid.over(40, 30, 1.0, 1.0)
    x, y = np.meshgrid(np.arange(40) + 0.5, np.arange(30) + 0.5, indexing="ij")
    wave_x, wave_y = np.pi * 2 / 40, np.pi * 3 / 30
    charge = np.cos(wave_x * x) * np.cos(wave_y * y)
    field_x, _ = grid.field(charge + 7.0)
    expected = -wave_x * np.sin(wave_x * x) * np.cos(wave_y * y) / (wave_x**2 + wave_y**2)
    assert abs(field_x - expected)[1:-1].max() < 0.02 * abs(expected).max()


def test_fillers_keep_a_small_design_together():
    """A hundred flip-flops in a row take a corner's worth of tiles, not the whole device."""
    build = Builder()
    net = build.net()
    for i in range(400):
        net = build.flip_flop(f"q{i}", net)
    build.cell("memory", "DP16KD", CLKA=2, ADA0=net)
    found = floor(build.design(), device="LFE5U-85F")
    assert found.wire_length < 800


def test_nothing_to_place():
    build = Builder()
    build.flip_flop("q", build.net())
    assert floor(build.design()) is None


def test_more_than_there_is_room_for():
    with pytest.raises(FloorplanError, match="30 multipliers have no room: LFE5U-25F has 28"):
        floor(ring(15))


def test_too_many_control_signals_for_a_block():
    """All multipliers of the smallest device, each with two enables of its own."""
    design = ring(14)
    cells = design["modules"]["top"]["cells"].values()
    for i, cell in enumerate(c for c in cells if c["type"] == "MULT18X18D"):
        cell["connections"] |= {"CE0": [5000 + 2 * i], "CE1": [5001 + 2 * i]}
        cell["port_directions"] |= {"CE0": "input", "CE1": "input"}
    with pytest.raises(FloorplanError, match="8 different CE signals"):
        floor(design, "LFE5U-12F")


def test_best_of_several_starts(monkeypatch):
    design = ring(3)
    with monkeypatch.context() as context:
        context.setattr(plan, "TRIES", 1)
        # Of three starts a seed, seed 1 has numbers 3, 4 and 5.
        alone = [floor(design, seed=seed, tries=1) for seed in (3, 4, 5)]
    found = floor(design, tries=3)
    assert found.tries == [one.wire_length for one in alone]
    assert found.places in [one.places for one in alone]


def test_the_worst_path_of_a_report():
    """As nextpnr 0.11 writes it; only the clock's own paths count, and of those the wires."""

    def step(kind, *ends):
        loads = {
            end: {"cell": "c", "loc": list(loc), "port": "Q"}
            for end, loc in zip(("from", "to"), ends, strict=True)
        }
        return {"type": kind, "delay": 1.0, **loads}

    path = [
        step("clk-to-q", (4, 22), (4, 22)),
        step("routing", (4, 22), (5, 13)),
        step("logic", (5, 13), (5, 13)),
        step("routing", (5, 13), (5, 14)),
        step("setup", (5, 14), (5, 14)),
    ]
    report = {
        "critical_paths": [
            {"from": "<async>", "to": "posedge $glbnet$clk", "path": [path[1]]},
            {"from": "posedge $glbnet$clk", "to": "posedge $glbnet$clk", "path": path},
        ]
    }
    assert critical_path(report, "clk") == [(4, 22), (5, 13), (5, 13), (5, 14)]
    assert critical_path(report, "clk25") == [] == critical_path({}, "clk")


LPF = """LOCATE COMP "led_0__io" SITE "B2";
IOBUF PORT "led_0__io" IO_TYPE=LVCMOS33 DRIVE=4;
  LOCATE COMP "bus[3]" SITE "C1" ;
FREQUENCY NET "clk" 110000000 HZ;"""


def test_locations_of_pads():
    assert netlist.locations(LPF) == {"led_0__io": "B2", "bus[3]": "C1"}


def test_apply_writes_the_places_into_the_netlist(tmp_path):
    design = ring(2)
    (tmp_path / "top.json").write_text(json.dumps(design))
    (tmp_path / "top.lpf").write_text(LPF)
    found = apply(
        tmp_path / "top.json", tmp_path / "top.lpf",
        device="LFE5U-25F", package="CABGA381", aim_hz=110e6, tries=1, effort=QUICK,
    )  # fmt: skip
    written = json.loads((tmp_path / "top.json").read_text())
    for name, cell in written["modules"]["top"]["cells"].items():
        assert cell["attributes"].pop("BEL", None) == found.places.get(name)
    assert written == design


def nextpnr(folder, design, device, *options):
    """Place a netlist with the real nextpnr; returns it as it was placed."""
    (folder / "in.json").write_text(json.dumps(design))
    (folder / "in.lpf").write_text("")
    flag = {"LFE5U-": "--", "LFE5UM-": "--um-", "LFE5UM5G-": "--um5g-"}[device[:-3]]
    done = subprocess.run(
        [
            *(NEXTPNR_ECP5.find(), f"{flag}{device[-3:-1]}k", "--package", "CABGA381"),
            *("--json", "in.json", "--lpf", "in.lpf", "--lpf-allow-unconstrained", "--no-route"),
            *("--write", "out.json", "--placer-heap-timingweight", "30", *options),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "out.json").read_text())


def placed_wire_length(design, placed):
    """Half perimeters by nextpnr's places of all cells of the original netlist, in tiles."""
    where = {}
    for name, cell in placed["modules"]["top"]["cells"].items():
        if "NEXTPNR_BEL" in cell["attributes"]:
            where[name] = [
                int(v) for v in re.findall(r"\d+", cell["attributes"]["NEXTPNR_BEL"])[:2]
            ]
    module = netlist.parse(design["modules"]["top"])
    at = np.array([where[name] for name in module.names])
    return sum(
        np.ptp(at[module.members[a:b]], axis=0).sum()
        for a, b in zip(module.pointer[:-1], module.pointer[1:], strict=True)
    )


def test_wires_are_shorter_than_nextpnrs_own(tmp_path):
    design = ring(12)
    own = placed_wire_length(design, nextpnr(tmp_path, design, "LFE5U-25F"))
    found = floor(design)
    for name, place in found.places.items():
        design["modules"]["top"]["cells"][name]["attributes"]["BEL"] = place
    placed = nextpnr(tmp_path, design, "LFE5U-25F")
    for name, place in found.places.items():
        assert placed["modules"]["top"]["cells"][name]["attributes"]["NEXTPNR_BEL"] == place
    assert placed_wire_length(design, placed) < own


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_nextpnr_takes_every_place_of_every_device(tmp_path, device):
    build = Builder()
    where = fabric(device)
    for kind, places in (("MULT18X18D", where.multipliers), ("DP16KD", where.memories)):
        for place in places.names:
            build.cell(place, kind, **({"CLK0": 2} if kind[0] == "M" else {"CLKA": 2}))
            build.cells[place]["attributes"]["BEL"] = place
    placed = nextpnr(tmp_path, build.design(), device, "--report", "report.json")
    cells = placed["modules"]["top"]["cells"]
    for name in build.cells:
        assert cells[name]["attributes"]["NEXTPNR_BEL"] == name
    used = json.loads((tmp_path / "report.json").read_text())["utilization"]
    for kind in ("MULT18X18D", "DP16KD"):
        assert used[kind]["used"] == used[kind]["available"]
