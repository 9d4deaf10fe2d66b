"""Output folders: links, mounts, read-only parents, full disks, two at once."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lichen.boards.build import folder as module
from lichen.boards.build.folder import complete_folder
from lichen.errors import UserError


class FailedError(Exception):
    """Keeps the folder, as a failed build does."""


def fill(folder: Path, text: str = "new", more: dict[str, str] | None = None) -> None:
    with complete_folder(folder, marker="report.json", field="device",
                         keep_after=(FailedError,)) as part:  # fmt: skip
        (part / "logs").mkdir()
        (part / "logs" / "log").write_text(text)
        (part / "top.bit").write_text(text)
        for name, content in (more or {}).items():
            (part / name).write_text(content)
        (part / "report.json").write_text(json.dumps({"device": text}))


def holds(folder: Path, text: str) -> bool:
    """Whether a folder is exactly what `fill` makes."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return (
        names == ["logs", "logs/log", "report.json", "top.bit"]
        and (folder / "top.bit").read_text() == text
        and json.loads((folder / "report.json").read_text()) == {"device": text}
    )


def others(folder: Path, *expected: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(expected)


def no_renames_of(monkeypatch, target: Path, number: int) -> None:
    """As for a mount point, or a folder whose parent is read-only."""
    real = Path.rename

    def rename(self: Path, to: Path) -> Path:
        if target in (self, Path(to)):
            raise OSError(number, os.strerror(number))
        return real(self, to)

    monkeypatch.setattr(Path, "rename", rename)


def test_new_and_replaced(tmp_path):
    fill(tmp_path / "out", "one", {"stray": ""})
    fill(tmp_path / "out", "two")
    assert holds(tmp_path / "out", "two") and others(tmp_path, "out")


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_stays_and_leads_to_the_result(tmp_path, dangling):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk/results")
    if not dangling:
        (tmp_path / "disk" / "results").mkdir()
    for text in ("one", "two"):
        fill(tmp_path / "out", text)
        assert (tmp_path / "out").is_symlink()
        assert holds(tmp_path / "disk" / "results", text)
    assert others(tmp_path, "disk", "out") and others(tmp_path / "disk", "results")


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV, errno.EACCES])
def test_a_folder_that_cannot_be_exchanged(tmp_path, monkeypatch, known, number):
    """A mount point, whether one can tell beforehand or not: its files are exchanged."""
    out = tmp_path / "out"
    out.mkdir()
    no_renames_of(monkeypatch, out, number)
    if known:
        monkeypatch.setattr(Path, "is_mount", lambda path: path == out)
    for text in ("one", "two"):
        inode = out.stat().st_ino
        fill(out, text)
        assert holds(out, text) and out.stat().st_ino == inode
    assert others(tmp_path, "out")


def test_a_parent_that_cannot_be_written(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    real = Path.mkdir

    def mkdir(self: Path, *arguments, **options) -> None:
        if self.parent == tmp_path and not self.exists():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        real(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    for text in ("one", "two"):
        fill(out, text)
        assert holds(out, text)
    with pytest.raises(UserError, match=r"^cannot write .*other\.part: Permission denied\.$"):
        fill(tmp_path / "other")


def test_the_folder_one_works_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("one", "two"):
        fill(Path(), text)
        assert holds(tmp_path, text)
        assert Path.cwd() == tmp_path and Path("top.bit").read_text() == text


def test_what_cannot_be_moved_up_is_put_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    fill(out, "one")
    monkeypatch.setattr(Path, "is_mount", lambda path: path == out)
    no_renames_of(monkeypatch, out / "top.bit", errno.EIO)
    with pytest.raises(UserError) as caught:
        fill(out, "two")
    part = out / ".lichen-part"
    assert str(caught.value) == (
        f"cannot write {out}: Input/output error; what was made is in {part}."
    )
    assert (part / "top.bit").read_text() == "two"
    shutil.rmtree(part)
    assert holds(out, "one")


def test_a_full_disk_while_moving_leaves_both(tmp_path, monkeypatch):
    """The result lies beside the mount, and the sentence says where; the earlier one stays."""
    out = tmp_path / "out"
    fill(out, "one")
    no_renames_of(monkeypatch, out, errno.EXDEV)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.shutil, "copytree", full)
    with pytest.raises(UserError, match=r"No space left on device; what was made is in .*\.part"):
        fill(out, "two")
    assert holds(out, "one")
    assert (tmp_path / "out.part" / "top.bit").read_text() == "two"


def test_a_full_disk_while_filling(tmp_path):
    fill(tmp_path / "out", "one")
    with (
        pytest.raises(UserError, match=r"^cannot write .*out: No space left on device\.$"),
        complete_folder(tmp_path / "out", marker="report.json", field="device") as part,
        Path("/dev/full").open("wb") as file,
    ):
        (part / "half").touch()
        file.write(bytes(10))
        file.flush()
    assert holds(tmp_path / "out", "one") and others(tmp_path, "out")


@pytest.mark.parametrize("length", [250, 251, 255])
def test_long_names(tmp_path, length):
    out = tmp_path / ("x" * length)
    fill(out, "one")
    fill(out, "two")
    assert holds(out, "two") and others(tmp_path, out.name)
    with pytest.raises(UserError, match=r"^cannot write .*: File name too long\.$"):
        fill(tmp_path / ("x" * 256))


@pytest.mark.parametrize(
    "content",
    ["", "no JSON", "[]", '{"golden": {}, "build": {}}', '{"device"'],
)
def test_a_report_of_something_else_protects_its_folder(tmp_path, content):
    """The demonstration has a report.json, too, beside all that it made."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text(content)
    (tmp_path / "out" / "photo.png").touch()
    with pytest.raises(UserError, match="out exists and holds something else"):
        fill(tmp_path / "out")
    assert others(tmp_path / "out", "photo.png", "report.json")


def test_files_in_the_way(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file exists and holds something else"):
        fill(tmp_path / "file")
    (tmp_path / "out.part").write_text("mine")
    with pytest.raises(UserError, match=r"^cannot write .*out\.part: File exists\.$"):
        fill(tmp_path / "out")
    assert (tmp_path / "file").read_text() == (tmp_path / "out.part").read_text() == "mine"


def test_after_a_failure_the_part_is_there_for_the_next_to_replace(tmp_path):
    def fails() -> None:
        with complete_folder(tmp_path / "out", marker="report.json", field="device",
                             keep_after=(FailedError,)) as part:  # fmt: skip
            (part / "log").touch()
            raise FailedError

    with pytest.raises(FailedError):
        fails()
    assert others(tmp_path, "out.part")
    fill(tmp_path / "out")
    assert holds(tmp_path / "out", "new") and others(tmp_path, "out")


def test_the_other_finishes_between_opening_and_locking(tmp_path, monkeypatch):
    """What was opened is the finished folder by then, and must not be emptied."""
    real = module.fcntl.flock
    calls = []

    def flock(handle: int, operation: int) -> None:
        calls.append(handle)
        if len(calls) == 1:
            (tmp_path / "out.part" / "theirs").touch()
            (tmp_path / "out.part").rename(tmp_path / "elsewhere")
        real(handle, operation)

    monkeypatch.setattr(module.fcntl, "flock", flock)
    fill(tmp_path / "out")
    assert holds(tmp_path / "out", "new") and others(tmp_path / "elsewhere", "theirs")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts, and another user's rights, take root")
@pytest.mark.parametrize("what", ["mount", "bind mount", "nobody"])
def test_real_mounts_and_a_real_read_only_parent(tmp_path, what):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from tests.boards.test_folder import fill, holds\n"
        "for text in ('one', 'two'):\n"
        "    fill(Path(sys.argv[2]), text)\n"
        "    assert holds(Path(sys.argv[2]), text)\n"
    )
    root = Path(__file__).parents[2]
    out, disk = tmp_path / "volume", tmp_path / "disk"
    out.mkdir()
    disk.mkdir()
    if what == "nobody":
        out.chmod(0o777)
        for path in (tmp_path, *tmp_path.parents[:-2]):
            path.chmod(path.stat().st_mode | 0o055)
        before = ["setpriv", "--reuid", "65534", "--clear-groups"]
    else:
        mount = "-t tmpfs none" if what == "mount" else f"--bind {disk}"
        before = ["unshare", "--mount", "sh", "-c", f'mount {mount} "$0" && exec "$@"', str(out)]
    done = subprocess.run(
        [*before, sys.executable, "-B", "-c", code, str(root), str(out)],
        capture_output=True, text=True, env=os.environ | {"HOME": str(out)},
    )  # fmt: skip
    if "permission denied" in done.stderr or "not permitted" in done.stderr:
        pytest.skip("no mounts here")
    assert done.returncode == 0, done.stderr
    assert others(tmp_path, "volume", "disk")
    assert what == "mount" or holds(disk if what == "bind mount" else out, "two")
