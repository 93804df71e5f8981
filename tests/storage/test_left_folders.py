"""What killed writers leave: it is removed, and never takes the place of what is there now."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pera_lightning.storage import whole_folder as module
from pera_lightning.storage.folder_kind import FolderKind
from pera_lightning.storage.whole_folder import whole_folder
from tests.support.folder_kinds import names, read, write

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="folders change places on Linux")

OTHER = FolderKind("a letter", marker="letter.json", recognise=lambda values: values.get("kind") == "letter")


def killed(act: Callable[[], None], monkeypatch: pytest.MonkeyPatch, late: Callable[[], None] | None = None) -> None:
    """Write, and leave what a process leaves that is killed when the folders have changed places."""
    exchange = module.exchange

    def exchange_late(one: Path, other: Path) -> None:
        if late:
            late()
        exchange(one, other)

    with monkeypatch.context() as patch:
        patch.setattr(module, "exchange", exchange_late)
        patch.setattr(module, "clean", lambda *_: None)
        act()


def letter(folder: Path) -> None:
    with whole_folder(folder, OTHER) as new:
        (new / "letter.json").write_text('{"kind": "letter"}')


@pytest.fixture
def note(tmp_path: Path) -> Path:
    write(tmp_path / "note", "one", parts=2)
    (tmp_path / "note/mine").write_text("version 1")
    return tmp_path / "note"


def test_a_file_that_was_replaced_by_an_older_one_stays(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(lambda: write(note, "two"), monkeypatch)
    (note.parent / "draft").write_text("an older draft")
    os.utime(note.parent / "draft", (1e9, 1e9))
    (note.parent / "draft").replace(note / "mine")
    write(note, "three")
    assert (note / "mine").read_text() == "an older draft"
    assert names(note.parent) == ["note", "note/mine", "note/note.json", "note/text"]


def test_a_deleted_file_does_not_come_back(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(lambda: write(note, "two"), monkeypatch)
    (note / "mine").unlink()
    write(note, "three")
    assert names(note.parent) == ["note", "note/note.json", "note/text"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_nothing_of_another_kind_comes_into_a_new_folder(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    letter(tmp_path / "out")
    if when == "before":
        monkeypatch.setattr(module, "_commit", lambda *_: None)
    killed(lambda: letter(tmp_path / "out"), monkeypatch)
    monkeypatch.undo()
    (tmp_path / "out/letter.json").unlink()
    for text in ("one", "two"):
        write(tmp_path / "out", text)
    assert read(tmp_path / "out") == "two"
    assert names(tmp_path) == ["out", "out/note.json", "out/text"]


def test_a_file_that_came_late_comes_back(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(lambda: write(note, "two"), monkeypatch, lambda: (note / "late").write_text("mine") and None)
    assert not (note / "late").exists()
    write(note, "three")
    assert names(note.parent) == ["note", "note/late", "note/mine", "note/note.json", "note/text"]


def test_a_file_that_came_late_survives_where_the_folder_is_another(
    note: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    killed(lambda: write(note, "two"), monkeypatch, lambda: (note / "late").write_text("mine") and None)
    for name in os.listdir(note):
        (note / name).unlink()
    with caplog.at_level(logging.WARNING):
        write(note, "three")
    assert read(note) == "three"
    [left] = list(note.parent.rglob("late"))
    assert left.read_text() == "mine"
    assert str(left.parent) in caplog.text
    assert names(note) == ["note.json", "text"]


def test_a_later_version_of_a_file_is_kept(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As editors write: a new file in the place of the old one, while the folders change places."""

    def edit() -> None:
        (note / "edited").write_text("version 2")
        (note / "edited").replace(note / "mine")

    exchange = module.exchange
    monkeypatch.setattr(module, "exchange", lambda one, other: (edit(), exchange(one, other)))
    write(note, "two")
    assert (note / "mine").read_text() == "version 2"
    assert names(note.parent) == ["note", "note/mine", "note/note.json", "note/text"]


def test_a_file_that_could_not_be_removed_at_once_stays_out(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink, refused = Path.unlink, []

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self.name == "part-1" and not refused:
            refused.append(self)
            raise PermissionError(13, "Permission denied")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    write(note, "two", parts=1)
    assert refused
    assert names(note.parent) == ["note", "note/mine", "note/note.json", "note/part-0", "note/text"]


def test_what_an_interrupted_writer_left_is_removed_by_the_same_process(
    note: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def interrupt(self: Path, missing_ok: bool = False) -> None:
        if self.name == "text":
            raise KeyboardInterrupt
        unlink(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write(note, "two")
    assert any("pera-" in name for name in names(note.parent))
    write(note, "three")
    assert names(note.parent) == ["note", "note/mine", "note/note.json", "note/text"]
