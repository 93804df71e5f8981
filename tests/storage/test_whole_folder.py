from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pera_lightning.errors import FolderError
from pera_lightning.storage import whole_folder as module
from pera_lightning.storage.folder_kind import check_ours
from pera_lightning.storage.remote import RemotePath
from pera_lightning.storage.temporaries import is_stale, is_temporary, temporary_name
from pera_lightning.storage.whole_folder import whole_folder
from tests.support.folder_kinds import NOTE, names, read, refuse_exchange, write

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="folders change places on Linux")


def test_folders_that_are_new_or_empty(tmp_path: Path) -> None:
    write(tmp_path / "new/below", "one")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "one")
    assert names(tmp_path) == [
        "empty", "empty/note.json", "empty/text", "new", "new/below", "new/below/note.json", "new/below/text",
    ]  # fmt: skip
    assert read(tmp_path / "new/below") == read(tmp_path / "empty") == "one"


@linux
def test_a_folder_of_ours_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path / "note", "one", parts=3)
    before = (tmp_path / "note").stat().st_ino
    write(tmp_path / "note", "two", parts=1)
    assert read(tmp_path / "note") == "two"
    assert (tmp_path / "note").stat().st_ino != before
    assert names(tmp_path) == ["note", "note/note.json", "note/part-0", "note/text"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.EBUSY])
def test_where_folders_cannot_change_places(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "note", "one", parts=3)
    refuse_exchange(monkeypatch, code)
    write(tmp_path / "note", "two", parts=1)
    assert read(tmp_path / "note") == "two"
    assert names(tmp_path) == ["note", "note/note.json", "note/part-0", "note/text"]


def test_files_of_others_stay(tmp_path: Path) -> None:
    write(tmp_path / "note", "one", parts=3)
    (tmp_path / "note/own").mkdir()
    (tmp_path / "note/own/file").write_text("mine")
    (tmp_path / "note/other").write_text("mine")
    before = (tmp_path / "note").stat().st_ino
    write(tmp_path / "note", "two", parts=1)
    assert read(tmp_path / "note") == "two"
    assert (tmp_path / "note").stat().st_ino == before
    assert names(tmp_path / "note") == ["note.json", "other", "own", "own/file", "part-0", "text"]


@linux
def test_plain_files_of_others_come_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is another one, and every file of others in it the same."""
    write(tmp_path / "note", "one", parts=3)
    other = tmp_path / "note/other"
    other.write_text("mine")
    before, exchanged = other.stat().st_ino, []
    exchange = module.exchange

    def spy(one: Path, two: Path) -> None:
        exchanged.append(sorted(os.listdir(one)))
        exchange(one, two)

    monkeypatch.setattr(module, "exchange", spy)
    with other.open("a") as still_open:
        write(tmp_path / "note", "two", parts=1)
        still_open.write(", and more")
    assert exchanged == [["note.json", "other", "part-0", "text"]]
    assert other.read_text() == "mine, and more"
    assert (other.stat().st_ino, other.stat().st_nlink) == (before, 1)
    assert names(tmp_path) == ["note", "note/note.json", "note/other", "note/part-0", "note/text"]


@pytest.mark.parametrize("fails", ["link", "exchange"])
def test_plain_files_of_others_stay_where_they_cannot_come_along(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "note", "one")
    (tmp_path / "note/other").write_text("mine")

    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.EPERM, "cannot")

    monkeypatch.setattr(*((os, "link") if fails == "link" else (module, "exchange")), refuse)
    write(tmp_path / "note", "two", parts=1)
    assert read(tmp_path / "note") == "two"
    assert (tmp_path / "note/other").stat().st_nlink == 1
    assert names(tmp_path) == ["note", "note/note.json", "note/other", "note/part-0", "note/text"]


def test_the_working_directory_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path(), "one")
    write(Path(), "two")
    assert read(Path()) == read(tmp_path) == "two"
    assert os.getcwd() == str(tmp_path)
    assert names(tmp_path) == ["note.json", "text"]


def test_links_to_folders_stay(tmp_path: Path) -> None:
    write(tmp_path / "note", "one")
    (tmp_path / "link").symlink_to(tmp_path / "note")
    write(tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "note") == "two"


def test_permissions_stay(tmp_path: Path) -> None:
    write(tmp_path / "note", "one")
    plain = (tmp_path / "note").stat().st_mode
    (tmp_path / "reference").mkdir()
    assert plain == (tmp_path / "reference").stat().st_mode
    (tmp_path / "note").chmod(0o750)
    write(tmp_path / "note", "two")
    assert (tmp_path / "note").stat().st_mode & 0o7777 == 0o750


def test_names_as_long_as_names_can_be(tmp_path: Path) -> None:
    for name in ("n" * 255, "\N{SNOWMAN}" * 85):
        for text in ("one", "two"):
            write(tmp_path / name, text)
        assert read(tmp_path / name) == "two"


def test_after_an_exception_all_is_as_it_was(tmp_path: Path) -> None:
    def spoil(folder: Path) -> None:
        with whole_folder(folder, NOTE) as new:
            (new / "text").write_text("half")
            raise RuntimeError("interrupted")

    write(tmp_path / "note", "one")
    before = names(tmp_path)
    for folder in ("note", "new", "new/below"):
        with pytest.raises(RuntimeError, match="interrupted"):
            spoil(tmp_path / folder)
    assert names(tmp_path) == before
    assert read(tmp_path / "note") == "one"


def test_what_the_system_refuses(tmp_path: Path) -> None:
    write(tmp_path / "note", "one")
    with (
        pytest.raises(FolderError, match=r"(?s)cannot be written to.*note, for a note: No space.*room for 1,234 bytes"),
        whole_folder(tmp_path / "note", NOTE, bytes_needed=1234),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert read(tmp_path / "note") == "one"
    assert len(names(tmp_path)) == 3
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(FolderError, match="The folder cannot be written to"):
            write(tmp_path / name, "one")


def test_a_parent_that_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "note", "one")
    mkdir = Path.mkdir

    def refuse(self: Path, *arguments: object, **options: object) -> None:
        if self.parent == tmp_path and not self.exists():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        mkdir(self, *arguments, **options)  # type: ignore[arg-type]

    # Root may write everywhere.
    monkeypatch.setattr(Path, "mkdir", refuse)
    write(tmp_path / "note", "two")
    assert read(tmp_path / "note") == "two"
    assert names(tmp_path) == ["note", "note/note.json", "note/text"]
    with pytest.raises(FolderError, match=r"(?s)The folder cannot be written to.*Permission denied"):
        write(tmp_path / "new", "one")


def files_of_others(folder: Path) -> None:
    (folder / "README.md").write_text("mine")


def own_names_of_others(folder: Path) -> None:
    (folder / "text").write_text("mine")
    (folder / "note.json").write_text('{"kind": "letter"}')


def damaged_marker(folder: Path) -> None:
    (folder / "note.json").write_text('{"kind": "no')


def nested_marker(folder: Path) -> None:
    (folder / "note.json").write_text("[" * 100_000)


@pytest.mark.parametrize("fill", [files_of_others, own_names_of_others, damaged_marker, nested_marker])
def test_folders_of_others_are_refused(fill: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    fill(tmp_path / "theirs")
    (tmp_path / "theirs/part-7").write_text("mine")
    before = {path: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    with pytest.raises(FolderError, match=r"(?s)The folder is not ours.*theirs with '.*part-7.*overwrite=True"):
        write(tmp_path / "theirs", "one")
    assert {path: path.read_bytes() for path in (tmp_path / "theirs").iterdir()} == before
    write(tmp_path / "theirs", "one", overwrite=True)
    assert read(tmp_path / "theirs") == "one"
    assert (tmp_path / "theirs/part-7").read_text() == "mine"


def test_a_folder_where_a_file_belongs_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "note/text/mine").mkdir(parents=True)
    with pytest.raises(FolderError, match=r"(?s)cannot be written to.*'text' is a folder there"):
        write(tmp_path / "note", "one", overwrite=True)
    assert names(tmp_path) == ["note", "note/text", "note/text/mine"]


def test_what_may_lie_beside(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").touch()
    check_ours(tmp_path, NOTE)
    (tmp_path / "last").touch()
    with pytest.raises(FolderError, match="not ours"):
        check_ours(tmp_path, NOTE, permit=None)


def test_folders_at_urls() -> None:
    folder = RemotePath("memory://whole/note")
    write(folder, "one")
    write(folder, "two")
    assert (folder / "text").read_text("utf-8") == "two"
    assert folder.names() == ["note.json", "text"]
    (RemotePath("memory://whole/theirs")).write({"README.md": Path(__file__)})
    with pytest.raises(FolderError, match=r"(?s)not ours.*memory://whole/theirs with 'README.md'"):
        write(RemotePath("memory://whole/theirs"), "one")


def test_what_dead_processes_left_is_removed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    own, elsewhere = temporary_name("note"), ".note.pera-00000000-1-00000000"
    living = own.replace(f"-{os.getpid()}-", f"-{os.getppid()}-")
    dead = own.replace(f"-{os.getpid()}-", f"-{process.pid}-")
    assert all(map(is_temporary, (dead, living, elsewhere)))
    assert is_stale(dead)
    assert not is_stale(living)
    assert not is_stale(elsewhere)
    write(tmp_path / "note", "one")
    (tmp_path / "note/mine").touch()
    for parent in (tmp_path, tmp_path / "note"):
        for name in (dead, living, elsewhere):
            (parent / name / "new").mkdir(parents=True)
            (parent / name / "new/text").touch()
    write(tmp_path / "note", "two")
    left = {name for name in names(tmp_path) if "pera" in name and name.count(os.sep) <= 1 and not name.endswith("new")}
    assert left == {living, elsewhere, f"note/{living}", f"note/{elsewhere}"}
    assert read(tmp_path / "note") == "two"


@linux
def test_a_file_that_comes_into_the_old_folder_at_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "note", "one")
    exchange = module.exchange

    def late(one: Path, other: Path) -> None:
        (other / "mine").write_text("late")
        exchange(one, other)

    monkeypatch.setattr(module, "exchange", late)
    write(tmp_path / "note", "two")
    assert names(tmp_path) == ["note", "note/mine", "note/note.json", "note/text"]
    assert read(tmp_path / "note") == "two"
