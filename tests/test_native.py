"""Loops in machine code: the same anew or from the cache, and none from anybody else."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest

from lichen import caches, native

ROOT = Path(__file__).parents[1]
SIGNATURES = {"twice": ("int32[2]", "int64", "int32[2]")}


def build(inline):
    @inline
    def double(v, plus):
        return 2 * v + plus

    def twice(x, plus, out):
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                out[i, j] = double(x[i, j], plus)
        return x.shape[0]

    return {"twice": twice}


@pytest.fixture(scope="module")
def objects():
    """Machine code, made once for all tests."""
    return native._compile(llvm, build, SIGNATURES)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache of the test's own, of mode 0700 as ours are."""
    place = tmp_path / "kernels"
    place.mkdir(mode=0o700)
    monkeypatch.setattr(native, "_folder", lambda: place)
    monkeypatch.setattr(native, "_loaded", {})
    return place


@pytest.fixture
def anew(monkeypatch, objects):
    """The loops as a new process would get them, and how often it compiles."""

    def load():
        compiled = []
        monkeypatch.setattr(native, "_loaded", {})
        monkeypatch.setattr(native, "_compile", lambda *_: compiled.append(1) or objects)
        return native.load("test", build, SIGNATURES, [Path(__file__)]), len(compiled)

    return load


def works(loops) -> bool:
    x = np.arange(12, dtype=np.int32).reshape(3, 4)
    out = np.zeros_like(x)
    return loops.twice(x, 5, out) == 3 and np.array_equal(out, 2 * x + 5)


def test_what_is_kept_is_not_compiled_again(folder, anew):
    first, compiled = anew()
    assert compiled == 1 and works(first)
    (file,) = folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    again, compiled = anew()
    assert compiled == 0 and works(again)
    assert works(native.interpreted(build))


@pytest.mark.parametrize("place", [0, 20, 60, -40, -1])
def test_damage_is_compiled_away(folder, anew, place):
    anew()
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    for damaged in (
        bytes(b ^ (i == place % len(whole)) for i, b in enumerate(whole)), whole[:place], b"",
    ):  # fmt: skip
        file.write_bytes(damaged)
        loops, compiled = anew()
        assert compiled == 1 and works(loops) and file.read_bytes() == whole


@pytest.mark.parametrize("fault", ["writable", "another's"])
def test_what_others_may_have_written_is_not_loaded(folder, anew, monkeypatch, fault):
    anew()
    (file,) = folder.iterdir()
    if fault == "writable":
        file.chmod(0o622)
    else:
        monkeypatch.setattr(caches.os, "getuid", lambda: os.geteuid() + 1)
    loops, compiled = anew()
    assert compiled == 1 and works(loops)


def test_a_folder_that_others_can_write_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv(caches.VARIABLE, str(tmp_path))
    monkeypatch.setattr(caches.tempfile, "tempdir", str(tmp_path))
    for decided in (caches.prepare, caches.private_folder):
        decided.cache_clear()
    try:
        own = caches.private_folder("kernels")
        assert own == tmp_path / "lichen" / "kernels" and own.stat().st_mode & 0o777 == 0o700
        own.chmod(0o777)
        caches.private_folder.cache_clear()
        other = caches.private_folder("kernels")
        assert other != own and other.stat().st_mode & 0o022 == 0
    finally:
        for decided in (caches.prepare, caches.private_folder):
            decided.cache_clear()


def test_no_room_stops_nobody(folder, anew):
    folder.rmdir()
    loops, compiled = anew()
    assert compiled == 1 and works(loops)


@pytest.mark.parametrize("change", ["source", "processor", "signature", "numba"])
def test_other_sources_processors_and_compilers_have_files_of_their_own(
    folder, tmp_path, monkeypatch, change
):
    source = tmp_path / "source.py"
    source.write_text("one")
    key = native._key(llvm, "", [source])
    assert native._key(llvm, "", [source]) == key
    signature = ""
    if change == "source":
        source.write_text("two")
    elif change == "processor":
        monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    elif change == "signature":
        signature = "other"
    else:
        monkeypatch.setattr(native, "_versions", lambda: [b"0", b"1"])
    assert native._key(llvm, signature, [source]) != key


def test_threads_that_come_at_once_compile_once(folder, monkeypatch, objects):
    compiled, found = [], []

    def compile_slowly(*_):
        compiled.append(1)
        time.sleep(0.05)
        return objects

    monkeypatch.setattr(native, "_compile", compile_slowly)

    def run() -> None:
        found.append(works(native.load("test", build, SIGNATURES, [])))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4 and compiled == [1]


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((3, 4), np.int64),
        np.zeros((3, 4, 1), np.int32),
        np.zeros((3, 8), np.int32)[:, ::2],
    ],
)
def test_arrays_that_it_would_misread_are_refused(folder, anew, x):
    loops, _ = anew()
    out = np.zeros((3, 4), np.int32)
    with pytest.raises(TypeError, match=r"^twice takes int32 in 2 dimensions without gaps, not "):
        loops.twice(x, 1, out)
    with pytest.raises(TypeError):
        loops.twice(native.pin(np.zeros(3, np.int32)), 1, out)
    with pytest.raises(TypeError, match="takes 3 arguments"):
        loops.twice(out, 1)


def test_loops_that_raise_or_allocate_are_refused():
    def bad(inline):
        def twice(x, plus, out):
            return np.zeros(plus).sum()

        return {"twice": twice}

    with pytest.raises(RuntimeError, match=r"^the loop twice needs .*it may raise or allocate"):
        native._compile(llvm, bad, SIGNATURES)


def test_coding_needs_no_compiler_once_it_has_run(tmp_path):
    """And no other package that takes long to load."""
    photo = sorted((ROOT / "models" / "calibration").glob("*.png"))[0]
    code = (
        "import sys; from lichen.cli import main; "
        "main(['encode', sys.argv[1], '-o', 'a.lic', '-m', 'tiny']); "
        "main(['decode', 'a.lic', '-o', 'a.png']); "
        "slow = {'numba', 'scipy', 'torch', 'matplotlib', 'amaranth', 'pandas', 'tqdm'}; "
        "print(sorted(slow & set(sys.modules)))"
    )
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code, photo], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
        )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]", done.stdout
