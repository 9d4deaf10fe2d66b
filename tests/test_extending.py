"""docs/extending.md keeps its word: a unit kind, a device and a latent touch few files each.

Each dummy is a set of changed and new files. They are put into a copy of the sources, and a
program there uses what they add. The copy knows nothing else of it.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

from tests.hw.mutants import ROOT, copy_tree
from tests.limits import run_bounded

FILES_MAX = 5

LAST = "\n# the end of the file\n"
"""In `DUMMIES`, instead of text that is replaced."""

Change = tuple[str, str]

KIND: dict[str, Change | str] = {
    "hw/stage/pointwise.py": '''
        # amaranth: UnusedElaboratable=no
        """Convolutions of one pixel, a kind of their own."""

        from __future__ import annotations

        from lichen.hw.stage.conv import Convolution, ConvUnit
        from lichen.network.description import Stage


        class PointwiseUnit(ConvUnit):
            """A dummy: `ConvUnit` by another name."""


        class Pointwise(Convolution):
            """A convolution of one pixel."""

            unit = PointwiseUnit

            @property
            def name(self) -> str:
                return f"{self.stage.name}_point"

            @staticmethod
            def fits(stage: Stage) -> bool:
                return stage.convolution.kernel == 1 and not stage.convolution.transposed
    ''',
    "hw/stage/conv.py": (
        "return not stage.convolution.transposed",
        "return not stage.convolution.transposed and stage.convolution.kernel > 1",
    ),
    "hw/stage/kinds.py": (
        "    PlainConvolution,\n    Tr",
        "    PlainConvolution,\n    Pointwise,\n    Tr",
    ),
    "hw/stage/kinds.py ": (
        "from lichen.hw.stage.norm import",
        "from lichen.hw.stage.pointwise import Pointwise\nfrom lichen.hw.stage.norm import",
    ),
}

KIND_USED = """
    import numpy as np
    from lichen.hw.device.device import Resources
    from lichen.hw.plan.planner import plan
    from lichen.hw.stage.pointwise import PointwiseUnit
    from lichen.network.description import Activation
    from lichen.network.random import StageShape, random_transform
    from lichen.sim.golden import run_stages
    from lichen.sim.runner import Simulator

    shapes = [
        StageShape(out_channels=4, kernel=3, activation=Activation.GDN),
        StageShape(out_channels=5, kernel=1, stride=1, padding=0),
    ]
    transform = random_transform(np.random.default_rng(1), shapes)
    found = plan(transform, Resources(dsp=40, bram=40, lut=40_000), max_width=8)
    pipeline = found.pipeline
    assert pipeline.names == ["conv1", "conv1_norm", "conv2_point"], pipeline.names
    assert isinstance(pipeline.units[-1], PointwiseUnit)
    frame = np.random.default_rng(2).integers(0, 256, (6, 8, 3))
    result = Simulator(pipeline, simulator="icarus").run([frame], run_stages(transform, frame)[-1:])
    assert result.ok and result.cycles == pipeline.predicted_cycles(6, 8), result
"""

DEVICE: dict[str, Change | str] = {
    "hw/device/dummy.py": '''
        """A family that is none: narrower multipliers, smaller blocks."""

        from __future__ import annotations

        from dataclasses import replace

        from lichen.hw.device.device import BlockCell, MultiplierCell
        from lichen.hw.device.ecp5 import ECP5

        DUMMY = replace(
            ECP5,
            name="dummy",
            parts="DUMMY",
            multiplier=MultiplierCell(bits=16, latency=2),
            block=BlockCell(shapes=((256, 16), (512, 8)), latency=1, luts=200),
            cells=None,
        )
    ''',
    "hw/device/families.py": (
        "for device in (ECP5, PORTABLE)}",
        "for device in (ECP5, PORTABLE, DUMMY)}",
    ),
    "hw/device/families.py ": (
        "from lichen.hw.device.ecp5 import ECP5\n",
        "from lichen.hw.device.dummy import DUMMY\nfrom lichen.hw.device.ecp5 import ECP5\n",
    ),
    "boards/dummy/__init__.py": '''
        """The one board of the dummy family."""

        from __future__ import annotations

        from lichen.boards.record import UART, Board, Programmer
        from lichen.hw.device.device import Resources
        from lichen.hw.device.dummy import DUMMY

        BOARDS = (
            Board(
                name="dummy-1",
                title="Dummy 1",
                family=DUMMY,
                device="DUMMY-1",
                package="NONE",
                speed="1",
                budget=Resources(dsp=400, bram=600, lut=200_000),
                lut_share=0.65,
                oscillator_hz=25_000_000,
                clock_mhz=50.0,
                aim_mhz=100.0,
                uart=UART(baud=1_000_000),
                programmer=Programmer(board="dummy", usb="Dummy"),
                entry="lichen.boards.dummy:make",
            ),
        )
    ''',
    "boards/dummy/family.py": '''
        """Its clocks and programs: one clock for all, and yosys alone."""

        from __future__ import annotations

        from types import SimpleNamespace

        from lichen.boards.build.tools import YOSYS

        TITLE = "Dummy"
        toolchain = SimpleNamespace(tools=(YOSYS,), placers=("usual", "spread"))


        def clock(*, input_hz, output_hz):
            return SimpleNamespace(output_hz=float(input_hz), output_mhz=input_hz / 1e6)


        def clock_below(*, input_hz, limit_hz):
            return clock(input_hz=input_hz, output_hz=limit_hz)


        def device_in(header):
            return None
    ''',
    "boards/board.py": ("for board in ECP5_BOARDS}", "for board in (*ECP5_BOARDS, *DUMMY_BOARDS)}"),
    "boards/board.py ": (
        "from lichen.boards.ecp5.boards import",
        "from lichen.boards.dummy import BOARDS as DUMMY_BOARDS\n"
        "from lichen.boards.ecp5.boards import",
    ),
}

DEVICE_USED = """
    import json, sys
    from lichen.boards.board import BOARDS
    from lichen.boards.build.toolchain import all_tools
    from lichen.cli import cli

    assert BOARDS["dummy-1"].pll().output_mhz == 25.0
    assert list(all_tools()) == ["yosys", "nextpnr-ecp5", "ecppack", "openFPGALoader"]
    cli(
        ["plan", "tiny", "--board", "dummy-1", "--transform", "g_a", "--json", "plan.json"],
        standalone_mode=False,
    )
    planned = json.load(open("plan.json"))
    assert planned["board"] == "dummy-1", planned["board"]
    cli(["boards"], standalone_mode=False)
"""

LATENT: dict[str, Change | str] = {
    "network/flow.py": (
        '    Latent(name="z", source="y", analysis="h_a", synthesis="h_s"),\n',
        '    Latent(name="z", source="y", analysis="h_a", synthesis="h_s"),\n'
        '    Latent(name="w", source="z", analysis="k_a", synthesis="k_s"),\n',
    ),
    "codec/parts.py": ("    XMP = 6\n", "    XMP = 6\n    W = 7\n"),
}

LATENT_USED = """
    import numpy as np
    from lichen import codec
    from lichen.codec.container import Container
    from lichen.hw.stage.kinds import transform_units
    from lichen.network.description import Activation, Format
    from lichen.network.file import load, save
    from lichen.network.random import (
        UP, StageShape, random_contexts, random_hyperprior, random_tables, random_transform,
        symmetric,
    )
    from lichen.sim import golden
    from lichen.sim.flow import through

    rng, code = np.random.default_rng(3), symmetric(8)
    known = random_hyperprior(1, n=6, m=8)
    k_a = random_transform(
        rng, [StageShape(out_channels=5, kernel=5, output=code)], in_channels=6, source=code
    )
    parameters = Format(bits=16, signed=False, lo=0, hi=(1 << 16) - 1)
    last = StageShape(out_channels=6, output=parameters, activation=Activation.RELU, **UP)
    k_s = random_transform(rng, [last], in_channels=5, source=code)
    tables = {"z": random_tables(rng, 1, code), "w": random_tables(rng, 5, code)}
    transforms = dict(known.transforms) | {"k_a": k_a, "k_s": k_s}
    network = known.model_copy(
        update={"transforms": transforms, "entropy": dict(known.entropy) | tables}
    )
    save(network, "with-w.lichen")
    network = load("with-w.lichen")  # which checks it
    assert [latent.name for latent in network.latents] == ["y", "z", "w"]
    assert network.frames(100, 200)["k_s"] == (1, 2), network.frames(100, 200)
    image = rng.integers(0, 256, (70, 100, 3), dtype=np.uint8)
    latents = golden.analysis(network, image)
    assert [segment.name for segment in latents.segments] == ["w", "z", "y"]
    assert all(np.ptp(segment.symbols) > 0 for segment in latents.segments)
    for one in (network, random_contexts(4, network)):
        data = codec.encode(image, one)
        expected = golden.reconstruct(network, latents)
        assert np.array_equal(codec.decode(data, one), expected)
    size = network.padded(70, 100)
    padded = np.zeros((*size, 3), np.uint8)
    seen = []
    through(network, padded, lambda key, x: seen.append(key) or golden.run_transform(
        network.transforms[key], x))
    assert seen == ["g_a", "h_a", "k_a", "k_s", "h_s", "g_s"], seen
    assert len(list(transform_units(network.transform("k_s")))) == 1
"""

DUMMIES = {
    "unit kind": (KIND, KIND_USED),
    "device": (DEVICE, DEVICE_USED),
    "latent": (LATENT, LATENT_USED),
}


def apply(changes: dict[str, Change | str], folder: Path) -> list[str]:
    """Make the changes; which files they touch. A blank after a path tells a second change."""
    for path, change in changes.items():
        file = folder / path.strip()
        if isinstance(change, str):
            assert not file.exists(), file
            file.parent.mkdir(exist_ok=True)
            file.write_text(textwrap.dedent(change).lstrip("\n"))
            continue
        text = file.read_text()
        assert text.count(change[0]) == 1, (path, change[0])
        file.write_text(text.replace(*change))
    return sorted({path.strip() for path in changes})


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    copy_tree(folder)
    return folder


@pytest.mark.parametrize("name", DUMMIES)
def test_a_dummy_touches_few_files(name: str, sources: Path, tmp_path: Path) -> None:
    changes, used = DUMMIES[name]
    folder = tmp_path / "copy"
    shutil.copytree(sources, folder, symlinks=True)
    files = apply(changes, folder)
    print(f"{name}: {', '.join(files)}")
    assert len(files) <= FILES_MAX, files
    done = run_bounded(
        [sys.executable, "-c", textwrap.dedent(used)],
        600,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_dummies_are_none_of_the_project() -> None:
    """What they add is not there yet: each would fail without its files."""
    for changes, _ in DUMMIES.values():
        for path, change in changes.items():
            file = ROOT / path.strip()
            assert (
                not file.exists() if isinstance(change, str) else change[1] not in file.read_text()
            )
