"""The folder `.pera-commit`: only what we wrote is moved, and nothing that somebody has put there since is replaced."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pera_lightning.errors import FolderError
from pera_lightning.storage import journal
from pera_lightning.storage import whole_folder as module
from pera_lightning.storage.folder_kind import COMMIT
from pera_lightning.storage.held_folder import HeldFolder, identity
from pera_lightning.storage.journal import RECORD, settle
from tests.support.folder_kinds import NOTE, names, read, write


@pytest.fixture
def note(tmp_path: Path) -> Iterator[Path]:
    """A folder of ours that stays, since it holds another folder."""
    write(tmp_path / "note", "one", parts=2)
    (tmp_path / "note/own").mkdir()
    (tmp_path / "note/own/file").write_text("mine")
    yield tmp_path / "note"
    assert (tmp_path / "note/own/file").read_text() == "mine"


def interrupted(note: Path, monkeypatch: pytest.MonkeyPatch, text: str = "two") -> None:
    """Put a new state into the folder, without moving anything to its place."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", lambda *_: None)
        write(note, text, parts=1)
    assert (note / COMMIT / RECORD).is_file()


def forged(note: Path, **parts: object) -> Path:
    commit = note / COMMIT
    commit.mkdir()
    told = {"folder": identity(note), "before": {}, "left": {}, **parts}
    (commit / RECORD).write_text(json.dumps(told))
    return commit


def fifo(note: Path) -> None:
    (note / COMMIT).mkdir()
    os.mkfifo(note / COMMIT / RECORD)


def device(note: Path) -> None:
    (note / COMMIT).mkdir()
    (note / COMMIT / RECORD).symlink_to("/dev/zero")


def sparse(note: Path) -> None:
    (note / COMMIT).mkdir()
    with (note / COMMIT / RECORD).open("wb") as file:
        file.truncate(3 << 30)


def nested(note: Path) -> None:
    (note / COMMIT).mkdir()
    (note / COMMIT / RECORD).write_text("[" * 200_000)


def folder_of_record(note: Path) -> None:
    (note / COMMIT / RECORD).mkdir(parents=True)


def no_record(note: Path) -> None:
    (note / COMMIT).mkdir()
    (note / COMMIT / "note.json").write_text('{"kind": "note", "text": "forged"}')


def marker_that_is_a_folder(note: Path) -> None:
    (forged(note, before={"note.json": None}) / "note.json").mkdir()


def own_folder(note: Path) -> None:
    commit = forged(note, before={"own": identity(note / "own"), "note.json": identity(note / "note.json")})
    (commit / "note.json").write_text('{"kind": "note", "text": "forged"}')
    (commit / "own").mkdir()


def folder_over_a_file(note: Path) -> None:
    before = {name: identity(note / name) for name in ("text", "note.json")}
    commit = forged(note, before=before)
    (commit / "note.json").write_text('{"kind": "note", "text": "forged"}')
    (commit / "text").mkdir()


def link(note: Path) -> None:
    commit = forged(note, before={"text": identity(note / "text"), "note.json": identity(note / "note.json")})
    (commit / "note.json").write_text('{"kind": "note", "text": "forged"}')
    (commit / "text").symlink_to(note / "own/file")


def odd_record(note: Path) -> None:
    commit = forged(note, before={"note.json": 7})
    (commit / "note.json").write_text('{"kind": "note", "text": "forged"}')


def plain_file(note: Path) -> None:
    (note / COMMIT).write_text("mine")


FORGED = [
    *(fifo, device, sparse, nested, folder_of_record, no_record, marker_that_is_a_folder, own_folder),
    *(folder_over_a_file, link, odd_record, plain_file),
]


@pytest.mark.parametrize("forge", FORGED)
def test_what_is_not_ours_is_left_alone(note: Path, forge: Callable[[Path], None]) -> None:
    forge(note)
    before = names(note)
    assert not settle(note, NOTE)
    assert read(note) == "one"
    with pytest.raises(FolderError, match=rf"(?s)Something else is where.*{COMMIT}: .*move it away"):
        write(note, "two")
    assert names(note) == before
    assert json.loads((note / "note.json").read_text())["text"] == "one"


def test_a_record_removes_nothing_that_is_not_of_the_kind(note: Path) -> None:
    (note / "mine.csv").write_text("mine")
    commit = forged(note, before={"note.json": identity(note / "note.json")})
    told = json.loads((commit / RECORD).read_text()) | {"left": {"mine.csv": identity(note / "mine.csv")}}
    (commit / RECORD).write_text(json.dumps(told))
    (commit / "note.json").write_text('{"kind": "note", "text": "one"}')
    settle(note, NOTE)
    assert (note / "mine.csv").read_text() == "mine"


def test_what_was_interrupted_is_finished(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(note, monkeypatch)
    assert (note / "text").read_text() == "one"
    assert settle(note, NOTE)
    assert not settle(note, NOTE)
    assert names(note) == ["note.json", "own", "own/file", "part-0", "text"]
    assert read(note) == "two"


@pytest.mark.parametrize("name", ["text", "note.json"])
def test_what_somebody_has_put_there_since_stays(note: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `cp backup/* note/`; an older time does not matter."""
    interrupted(note, monkeypatch)
    content = (note / name).read_text() + " "
    (note / "new").write_text(content)
    os.utime(note / "new", (1e9, 1e9))
    (note / "new").replace(note / name)
    assert not settle(note, NOTE)
    assert (note / name).read_text() == content
    write(note, "three", overwrite=True)
    assert read(note) == "three"
    assert names(note) == ["note.json", "own", "own/file", "text"]


def test_a_copy_of_the_folder_is_finished_too(tmp_path: Path, note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(note, monkeypatch)
    shutil.copytree(note, tmp_path / "copy")
    assert read(tmp_path / "copy") == "two"


def test_a_writer_that_was_overtaken_tells_again(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell, others = journal.tell, ["between"]

    def overtaken(*arguments: object) -> None:
        tell(*arguments)  # type: ignore[arg-type]
        if others:
            write(note, others.pop(), parts=3)

    monkeypatch.setattr(journal, "tell", overtaken)
    write(note, "two", parts=1)
    assert read(note) == "two"
    assert names(note) == ["note.json", "own", "own/file", "part-0", "text"]


def fail(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    move, left = HeldFolder.move, [None] * times

    def refuse(self: HeldFolder, *arguments: object) -> None:
        if left:
            left.pop()
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        move(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(HeldFolder, "move", refuse)


def test_a_move_that_fails_once_is_tried_again(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, 1)
    write(note, "two", parts=1)
    assert read(note) == "two"


def test_moves_that_fail_leave_the_new_state_and_say_so(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fail(patch, 100)
        with pytest.raises(FolderError, match=r"(?s)is written, but not all.*note, for a note: Permission denied"):
            write(note, "two", parts=1)
    assert read(note) == "two"
