"""Calls of the system that fail while a folder is written."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from pera_lightning.errors import FolderError
from pera_lightning.storage import left_folders
from pera_lightning.storage import whole_folder as module
from pera_lightning.storage.atomic import replacing
from pera_lightning.storage.folder_kind import COMMIT
from pera_lightning.storage.whole_folder import whole_folder
from tests.support.folder_kinds import NOTE, names, read, refuse_exchange, write


def test_a_file_within_is_told_of_as_the_folder(tmp_path: Path) -> None:
    def spoil() -> None:
        with whole_folder(tmp_path / "note", NOTE) as new, replacing(new / "text"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(FolderError, match=r"(?s)The folder cannot be written.*note, for a note: No space") as raised:
        spoil()
    assert ".pera-" not in str(raised.value)


def test_a_link_that_is_not_removed_at_once_is_not_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "note", "one")
    (tmp_path / "note/other").write_text("mine")
    refuse_exchange(monkeypatch)
    unlink, refused = Path.unlink, []

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self.name == "other" and not refused:
            refused.append(self)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    for text in ("two", "three"):
        write(tmp_path / "note", text)
    assert refused
    assert names(tmp_path) == ["note", "note/note.json", "note/other", "note/text"]
    assert read(tmp_path / "note") == "three"


def test_a_mount_point_without_room_keeps_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "note", "one")
    refuse_exchange(monkeypatch)

    def refuse(new: Path, target: Path) -> bool:
        if new.exists() and target.parent != new.parent:
            raise OSError(errno.EXDEV if target.name == COMMIT else errno.ENOTEMPTY, "another device")
        return False

    def full(source: Path, copy: Path) -> None:
        copy.mkdir()
        (copy / "text").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "_took_empty_place", refuse)
    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(FolderError, match="No space left"):
        write(tmp_path / "note", "two")
    assert names(tmp_path) == ["note", "note/note.json", "note/text"]
    assert read(tmp_path / "note") == "one"


@pytest.mark.parametrize("fails", ["owned", "read_regular"])
def test_an_old_state_that_cannot_be_looked_at_is_left_to_the_next_writer(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The new one is in its place: that is no error."""
    write(tmp_path / "note", "one")
    (tmp_path / "note/other").write_text("mine")
    exchange = module.exchange

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:

        def exchange_and_fail(one: Path, other: Path) -> None:
            exchange(one, other)
            patch.setattr(left_folders, fails, refuse)

        patch.setattr(module, "exchange", exchange_and_fail)
        write(tmp_path / "note", "two")
    assert not caplog.text
    assert read(tmp_path / "note") == "two"
    write(tmp_path / "note", "three")
    assert names(tmp_path) == ["note", "note/note.json", "note/other", "note/text"]
