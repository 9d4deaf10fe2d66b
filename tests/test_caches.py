"""Caches are a convenience: read-only, full, damaged or somebody else's, work goes on."""

from __future__ import annotations

import errno
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lichen import caches
from lichen.errors import UserError
from lichen.sim import runner, verilator

ROOT = Path(__file__).parents[1]


@pytest.fixture
def anew(tmp_path, monkeypatch):
    """Temporary files of this test's own, and nothing decided yet."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(caches.tempfile, "tempdir", str(tmp_path / "tmp"))
    for variable in (caches.VARIABLE, "MPLCONFIGDIR", "YOWASP_CACHE_DIR"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    caches.prepare.cache_clear()
    caches.folder.cache_clear()
    yield tmp_path
    caches.prepare.cache_clear()
    caches.folder.cache_clear()


def test_what_can_be_written_is_used(anew, monkeypatch, capsys):
    monkeypatch.setenv(caches.VARIABLE, str(anew / "cache"))
    assert caches.folder("x") == anew / "cache" / "lichen" / "x"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("where", ["/dev/null/home", "~", "relative"])
def test_what_cannot_is_replaced_once_and_for_everybody(anew, monkeypatch, capsys, where):
    """Without a home, "~" stays itself, and is no folder to make where one happens to be."""
    monkeypatch.chdir(anew)
    monkeypatch.setattr(
        caches, "_user_folder", lambda: Path(os.environ.get(caches.VARIABLE, where))
    )
    instead = anew / "tmp" / f"lichen-cache-{os.getuid()}"
    for _ in range(3):
        assert caches.folder("x") == instead / "lichen" / "x"
        caches.prepare()
    assert capsys.readouterr().err == (
        f"lichen: {where} cannot be written; caches go to {instead}.\n"
    )
    assert os.environ[caches.VARIABLE] == str(instead)
    assert os.environ["MPLCONFIGDIR"] == str(instead / "matplotlib")
    assert instead.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in anew.iterdir()] == ["tmp"]


@pytest.mark.parametrize("planted", ["writable", "link", "file", "another's"])
def test_a_folder_that_others_may_have_filled_is_not_used(anew, monkeypatch, planted):
    """What lies in a cache is run."""
    folder = anew / "tmp" / f"lichen-cache-{os.getuid()}"
    if planted == "link":
        (anew / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(anew / "elsewhere")
    elif planted == "file":
        folder.touch()
    else:
        folder.mkdir(mode=0o700)
        if planted == "writable":
            folder.chmod(0o777)
        else:
            monkeypatch.setattr(caches.os, "getuid", lambda: os.geteuid() + 1)
            folder.rename(folder.with_name(f"lichen-cache-{os.geteuid() + 1}"))
            folder = folder.with_name(f"lichen-cache-{os.geteuid() + 1}")
    monkeypatch.setenv(caches.VARIABLE, "/dev/null/x")
    made = caches.user_folder()
    assert made != folder and made.parent == folder.parent
    assert made.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def compiled(tmp_path):
    """Make a function of a module of its own, compiled through `caches.jit`."""
    (tmp_path / "twice.py").write_text(
        "from lichen import caches\n@caches.jit()\ndef twice(x):\n    return 2 * x\n"
    )

    def load():
        spec = importlib.util.spec_from_file_location("twice", tmp_path / "twice.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.twice

    return load


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("content", [b"", b"\x80\x05", b"\x80\x04N."])
def test_a_damaged_numba_cache_is_made_anew(compiled, tmp_path, suffix, content):
    assert compiled()(3) == 6
    (file,) = (tmp_path / "__pycache__").glob(f"*{suffix}")
    whole = file.read_bytes()
    file.write_bytes(content)
    again = compiled()
    assert again(3) == 6 and again(1.5) == 3.0
    assert len(file.read_bytes()) >= len(whole)
    assert compiled()._cache.load_overload(again.signatures[0], again.targetctx) is not None


def test_a_full_disk_does_not_stop_what_is_compiled(compiled, monkeypatch):
    from numba.core.caching import IndexDataCacheFile

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(IndexDataCacheFile, "save", full)
    assert compiled()(3) == 6


def test_no_place_at_all_does_not_either(compiled, monkeypatch):
    from numba.core.caching import CacheImpl

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    assert compiled()(3) == 6


# Simulators ---------------------------------------------------------------------------------


def create(folder: Path) -> None:
    (folder / "memories").mkdir()
    (folder / "memories" / "rom").write_text("0")
    (folder / "simulator").write_text("binary")


def test_a_ready_simulator_of_somebody_else(tmp_path, monkeypatch):
    built = verilator._cached(tmp_path, "verilator-x", create)

    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(verilator.os, "utime", refuse)
    monkeypatch.setattr(verilator.tempfile, "mkdtemp", refuse)
    assert verilator._cached(tmp_path, "verilator-x", create) == built
    with pytest.raises(UserError, match=r"^cannot write to the build folder .*: Operation not"):
        verilator._cached(tmp_path, "verilator-y", create)


@pytest.mark.parametrize("lost", ["simulator", "memories/rom", "contents.json", "cut"])
def test_half_a_simulator_is_made_anew(tmp_path, lost):
    built = verilator._cached(tmp_path, "verilator-x", create)
    if lost == "cut":
        (built / "simulator").write_text("bin")
    else:
        (built / lost).unlink()
    assert verilator._cached(tmp_path, "verilator-x", create) == built
    assert (built / "simulator").read_text() == "binary"
    assert (built / "memories" / "rom").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["verilator-x"]


def test_a_failed_or_interrupted_build_leaves_nothing(tmp_path):
    for error in (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()):

        def fails(folder: Path, error=error) -> None:
            create(folder)
            raise error

        with pytest.raises((UserError, KeyboardInterrupt)):
            verilator._cached(tmp_path, "verilator-x", fails)
        assert not list(tmp_path.iterdir())


def test_what_was_killed_is_tidied_up_after_a_day(tmp_path):
    old, new = tmp_path / "building-old", tmp_path / "building-new"
    for path in (old, new):
        path.mkdir()
        create(path)
    long_ago = time.time() - 2 * 86400
    os.utime(old, (long_ago, long_ago))
    verilator._forget(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["building-new"]


def test_a_full_disk_is_named_not_the_compilers_complaint(tmp_path):
    shout = ["sh", "-c", "echo a; echo 'x.s: fatal error: No space left on device'; exit 1"]
    with pytest.raises(UserError, match=r"^cannot build in .*: No space left on device \(sh\)\.$"):
        verilator._run(shout, cwd=tmp_path)
    with pytest.raises(RuntimeError, match="failed"):
        verilator._run(["false"])


def test_tools_run_elsewhere_so_paths_are_absolute(tmp_path, monkeypatch):
    """A build folder, programs and modules that are named from where one works."""
    asked = []

    def cached(cache: Path, name: str, create: object) -> Path:
        asked.append(cache)
        cache.mkdir(exist_ok=True)
        return cache / name

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verilator, "_cached", cached)
    bench = SimpleNamespace(design="", bench="", memories={})
    verilator.build(bench, simulator="icarus", cache=Path("sims"))
    assert asked == [tmp_path / "sims"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool").touch(mode=0o755)
    monkeypatch.setenv("PATH", "bin")
    assert verilator.find_tool("tool", "tool") == str(tmp_path / "bin" / "tool")
    monkeypatch.setattr(sys, "path", ["", "modules", *sys.path])
    paths = runner._environment(tmp_path)["PYTHONPATH"].split(os.pathsep)
    assert paths[:2] == [str(tmp_path), str(tmp_path / "modules")]


READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 77
mount --bind "$2" "$2" && mount -o remount,bind,ro "$2" || exit 77
shift 2
exec "$@"
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_commands_with_home_and_package_read_only(tmp_path):
    for name in ("home", "tmp", "here"):
        (tmp_path / name).mkdir()
    environment = {
        **{k: v for k, v in os.environ.items() if k != caches.VARIABLE},
        "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    photo = sorted((ROOT / "models" / "calibration").glob("*.png"))[0]
    for arguments in (
        ["encode", photo, "-o", "a.lic", "-m", "tiny"],
        ["plan", "tiny", "--board", "ulx3s-85f", "--multipliers", "16", "--plot", "a.svg"],
        ["generate", "tiny", "--board", "ulx3s-85f", "--multipliers", "16", "-o", "out"],
    ):
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", ROOT, tmp_path / "home",
             sys.executable, "-m", "lichen.cli", *arguments],
            cwd=tmp_path / "here", env=environment, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode == 77:
            pytest.skip("no mounts here")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("\n") == 1 and "caches go to" in done.stderr
    assert not list((tmp_path / "home").iterdir())
