"""The house: rooms are links, arrows run one way, and what is installed is what is here."""

from __future__ import annotations

import ast
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("boards", "codec", "hw", "models", "network", "quant", "report", "sim")

# What a room may import beside itself; docs/architecture.md has the same table.
MAY = {
    "network": set(),
    "models": {"network"},
    "hw": {"network"},
    "sim": {"network", "hw"},
    "codec": {"network", "sim", "hw", "models"},
    "boards": {"network", "hw", "sim", "codec", "models"},
    "quant": {"network", "models", "hw", "sim", "codec"},
    "report": {"network", "models", "hw", "sim", "codec", "boards"},
}
LINES_MAX = 600

# Folders of a room, from the ground up.
FLOORS = {
    "hw": ("device", "engine", "stage", "plan"),
    "quant": ("float", "calibration", "training", "draq", "slim", "search"),
}
TORCH_FREE = ("network", "hw", "sim", "codec", "boards", "models", "report")


def modules() -> dict[str, Path]:
    """Every module of the project by the name it is imported as."""
    found = {}
    for folder in (*ROOMS, "lichen"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if folder == "lichen" and len(parts) > 1 and parts[1] in ROOMS:
                continue  # through the link
            name = ".".join(parts if folder == "lichen" else ("lichen", *parts))
            found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, *, lazy: bool) -> set[str]:
    """Modules that a file imports; those inside functions only if ``lazy``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    typing_only = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    names = set()
    for node in ast.walk(tree):
        if node in typing_only or (node in inside and not lazy):
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


MODULES = modules()
ARROWS = [
    (name, target)
    for name, path in MODULES.items()
    for target in sorted(imports(path, lazy=True) & set(MODULES))
    if target != name
]


def room(name: str) -> str:
    """The room of a module; the command line is ``lichen``."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "lichen"


def test_every_room_is_linked():
    for name in ROOMS:
        link = ROOT / "lichen" / name
        assert link.is_symlink(), name
        assert link.readlink() == Path("..") / name


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_a_file_can_be_read_at_a_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_MAX


def test_every_import_in_the_checkout_is_a_module_of_it():
    for name, path in MODULES.items():
        for target in imports(path, lazy=True):
            if target.startswith("lichen.") and target.rpartition(".")[0] not in MODULES:
                pytest.fail(f"{name} imports {target}, which is not here")


def test_no_room_imports_one_above_it():
    for name, target in ARROWS:
        here, there = room(name), room(target)
        if here == there or here == "lichen" or target in ("lichen", "lichen.errors"):
            continue
        if there == "lichen":
            shared = target.split(".")[1] not in ("cli", "commands")
            assert shared, f"{name} imports the command line ({target})"
            continue
        assert there in MAY[here], f"{name} imports {target}: {here} may not import {there}"


@pytest.mark.parametrize("house", FLOORS)
def test_folders_of_a_room_import_downwards(house):
    floors = FLOORS[house]
    for name, target in ARROWS:
        if room(name) == house == room(target):
            here, there = name.split(".")[2:3], target.split(".")[2:3]
            if here and there and here[0] in floors and there[0] in floors:
                up = floors.index(there[0]) > floors.index(here[0])
                assert not up, f"{name} imports {target}, which stands above it"


def test_no_circle_of_imports():
    """Of modules as they load; an import inside a function is not part of loading."""
    graph = {n: sorted(imports(p, lazy=False) & set(MODULES) - {n}) for n, p in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in graph[name]:
                # a package is loaded before its modules, whoever imports them
                if not name.startswith(target + "."):
                    visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_torch_stays_in_quant():
    for name, path in MODULES.items():
        if room(name) in TORCH_FREE:
            found = {t.partition(".")[0] for t in imports(path, lazy=True)}
            assert not found & {"torch", "compressai", "torchvision"}, name


@pytest.mark.slow
def test_the_sdist_builds_a_wheel_of_all_that_is_here(tmp_path):
    """From a clone, so that nothing untracked is counted."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    build = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=clone, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        assert not any("lichen/lichen/lichen" in name for name in tar.getnames())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", tmp_path, archive], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        held = {n for n in file.namelist() if n.startswith("lichen/") and n.endswith(".py")}
    tracked = subprocess.run(
        ["git", "ls-files", "--", *ROOMS, "lichen"],
        cwd=clone,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    ours = {f if f.startswith("lichen/") else f"lichen/{f}" for f in tracked if f.endswith(".py")}
    assert held == ours
