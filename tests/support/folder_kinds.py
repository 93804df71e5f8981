"""A kind of folder for tests of how folders are written: a state is a text that two files hold."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from pera_lightning.storage import whole_folder as whole_folder_module
from pera_lightning.storage.folder_kind import FolderKind
from pera_lightning.storage.journal import settle
from pera_lightning.storage.remote import Place
from pera_lightning.storage.whole_folder import whole_folder

NOTE = FolderKind(
    "a note",
    marker="note.json",
    recognise=lambda values: values.get("kind") == "note",
    files=("text", "part-*", "pictures"),
    beside=("*.ckpt",),
)


def write(folder: Place, text: str, *, overwrite: bool = False, parts: int = 0) -> None:
    """Write a state of a note."""
    with whole_folder(folder, NOTE, overwrite=overwrite) as new:
        (new / "text").write_text(text)
        for number in range(parts):
            (new / f"part-{number}").write_text(text)
        (new / "note.json").write_text(json.dumps({"kind": "note", "text": text}))


def read(folder: Path) -> str | None:
    """The state in a folder, None without one; fails where it is a mixture."""
    settle(folder, NOTE)
    marker, text = folder / "note.json", folder / "text"
    if not marker.exists():
        assert not text.exists()
        return None
    told = json.loads(marker.read_text())["text"]
    assert text.read_text() == told
    return str(told)


def names(folder: Path) -> list[str]:
    """Of all files and folders below one."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refuse_exchange(monkeypatch: pytest.MonkeyPatch, code: int = errno.EINVAL) -> None:
    """Let no two folders change places, as on a network file system."""

    def refuse(one: Path, other: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(whole_folder_module, "exchange", refuse)
