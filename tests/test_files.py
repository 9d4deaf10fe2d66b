"""Writing files: whole or not at all, whatever the disk, the folder and the name are like."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lichen import files
from lichen.errors import UserError
from lichen.files import same_file, temporary_name, write_atomically, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("length", [1, 242, 243, 250, 255])
def test_names_of_any_length(tmp_path, length):
    path = tmp_path / ("x" * length)
    for data in (b"one", b"two"):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert names(tmp_path) == [path.name]


def test_a_name_that_is_too_long_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"^cannot write .*: File name too long\.$"):
        write_atomically(tmp_path / ("x" * 256), b"")


def test_names_that_are_no_utf8(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9-\xff")
    write_atomically(path, b"data")
    assert [os.fsencode(name) for name in os.listdir(os.fsencode(tmp_path))] == [b"caf\xe9-\xff"]  # noqa: PTH208


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_file(tmp_path, monkeypatch, failing):
    path = tmp_path / "result"
    path.write_bytes(b"earlier")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "replace":
        monkeypatch.setattr(Path, "replace", full)
    elif failing == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(files, "_neighbour", lambda folder: _on_a_full_device(folder))
    with pytest.raises(UserError, match=r"^cannot write .*result: No space left on device\.$"):
        write_atomically(path, b"later" * 100_000)
    assert path.read_bytes() == b"earlier"
    assert names(tmp_path) == ["result"]


def _on_a_full_device(folder: Path) -> tuple[int, Path]:
    path = folder / ".lichen-x"
    path.touch()
    return os.open("/dev/full", os.O_WRONLY), path


def test_a_limit_on_file_sizes(tmp_path):
    """A real refusal by the system, in a process of its own."""
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from lichen.files import write_atomically\n"
        "from lichen.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_atomically(sys.argv[1], bytes(2000))\n"
        "except UserError as error:\n    print(error)\n"
    )
    path = tmp_path / "result"
    path.write_bytes(b"earlier")
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.stdout == f"cannot write {path}: File too large.\n"
    assert path.read_bytes() == b"earlier" and names(tmp_path) == ["result"]


def test_links_stay_and_are_followed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_bytes(b"earlier")
    (tmp_path / "link").symlink_to("there/file")
    (tmp_path / "new").symlink_to("there/other")
    write_atomically(tmp_path / "link", b"later")
    write_atomically(tmp_path / "new", b"first")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "new").is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == b"later"
    assert (tmp_path / "there" / "other").read_bytes() == b"first"


def test_permissions(tmp_path):
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "new", b"")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    (tmp_path / "new").chmod(0o600)
    write_atomically(tmp_path / "new", b"again")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


def test_a_protected_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "protected"
    path.write_bytes(b"earlier")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anything
    with pytest.raises(UserError, match="protected: it is write-protected"):
        write_atomically(path, b"later")
    assert path.read_bytes() == b"earlier"


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS])
def test_where_only_the_file_itself_can_be_written(tmp_path, monkeypatch, number):
    """A file that is a mount point, or one in a folder of somebody else."""
    path = tmp_path / "mounted"
    path.write_bytes(b"an earlier, longer file")
    inode = path.stat().st_ino

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "replace", refuse)
    write_atomically(path, b"later")
    assert path.read_bytes() == b"later" and path.stat().st_ino == inode
    assert names(tmp_path) == ["mounted"]
    real = os.fsync
    calls = []

    def full_once(handle):
        calls.append(handle)
        if len(calls) == 2:  # the first is the neighbour's
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full_once)
    with pytest.raises(UserError, match="No space left"):
        write_atomically(path, b"later still")
    assert path.read_bytes() == b"later"


def test_devices_and_pipes_are_written_to(tmp_path):
    before = os.stat("/dev/null")  # noqa: PTH116
    write_atomically("/dev/null", b"gone")
    assert os.path.samestat(before, os.stat("/dev/null"))  # noqa: PTH116
    with pytest.raises(UserError, match=r"^cannot write /dev/full: No space left on device\.$"):
        write_atomically("/dev/full", b"much")
    with pytest.raises(UserError, match="Is a directory"):
        write_atomically(tmp_path, b"")
    with pytest.raises(UserError, match="No such file or directory"):
        write_atomically(tmp_path / "nowhere" / "file", b"")
    assert names(tmp_path) == []


def test_text_is_the_same_in_every_locale(tmp_path):
    code = (
        "import sys\nfrom lichen.files import write_text\n"
        "write_text(sys.argv[1], 'Bj\\u00f8ntegaard\\n\\udcff\\n')\n"
    )
    for i, locale in enumerate(("C", "C.UTF-8")):
        environment = {
            **os.environ,
            "LC_ALL": locale,
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
        }
        subprocess.run([sys.executable, "-c", code, tmp_path / str(i)], env=environment, check=True)
    expected = b"Bj\xc3\xb8ntegaard\n\\udcff\n"
    assert [(tmp_path / str(i)).read_bytes() for i in range(2)] == [expected] * 2


def test_json_is_ascii(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Bjøntegaard \udcff"})
    assert (tmp_path / "a.json").read_bytes() == b'{\n  "name": "Bj\\u00f8ntegaard \\udcff"\n}\n'


def test_other_names_of_one_file(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "")
    (tmp_path / "hard").hardlink_to(tmp_path / "a")
    (tmp_path / "soft").symlink_to("a")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("b")
    monkeypatch.chdir(tmp_path)
    for other in ("a", "./a", "folder/../a", "hard", "soft"):
        assert same_file(tmp_path / "a", other), other
    assert same_file("dangling", "folder/../b")
    assert not same_file("a", "folder") and not same_file("a", "b")


def test_temporary_names_fit():
    for length in (1, 250, 251, 255):
        name = "é" * (length // 2) + "x" * (length % 2)
        made = temporary_name(name, ".part")
        assert len(os.fsencode(made)) <= 255 and made.endswith(".part")
        assert made == temporary_name(name, ".part")
    assert temporary_name("out", ".part") == "out.part"
    long = "x" * 250
    assert temporary_name(long + "a", ".part") != temporary_name(long + "b", ".part")


SOURCES = Path(__file__).parents[1]
ROOMS = ("lichen", "network", "hw", "sim", "codec", "boards", "quant", "models")


def test_a_private_file_is_nobody_elses(tmp_path):
    path = tmp_path / "code"
    mask = os.umask(0)
    try:
        for data in (b"one", b"two"):
            files.write_privately(path, data)
            assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (data, 0o600)
            path.chmod(0o666)
    finally:
        os.umask(mask)
    with pytest.raises(UserError, match="nowhere"):
        files.write_privately(tmp_path / "nowhere" / "code", b"")


def test_nothing_else_writes_or_reads_text_in_the_environments_encoding():
    """One helper writes, and no text depends on the locale: every call says its encoding."""
    import ast

    found = []
    for room in ROOMS:
        for path in sorted((SOURCES / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                said = {keyword.arg for keyword in node.keywords}
                if node.func.attr in ("read_text", "write_text") and "encoding" not in said:
                    called = node.func.value
                    if not (isinstance(called, ast.Name) and called.id == "files"):
                        found.append(f"{path.relative_to(SOURCES)}:{node.lineno}")
                if node.func.attr == "mkstemp":
                    found.append(f"{path.relative_to(SOURCES)}:{node.lineno}")
    assert found == []
