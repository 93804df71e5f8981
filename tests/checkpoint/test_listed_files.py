"""Folders whose marker lists what was written into them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pera_lightning.errors import FolderError
from pera_lightning.storage.folder_kind import COMMIT, FolderKind, check_ours, listed_files
from pera_lightning.storage.held_folder import identity
from pera_lightning.storage.journal import RECORD, settle
from pera_lightning.storage.whole_folder import whole_folder
from tests.support.folder_kinds import NOTE, names

LISTED = FolderKind(
    "a list",
    marker="list.json",
    recognise=lambda values: "files" in values,
    listed=listed_files,
)


def write_listed(folder: Path, *names: str, overwrite: bool = False) -> None:
    with whole_folder(folder, LISTED, overwrite=overwrite) as new:
        for name in names:
            (new / name).write_text("ours")
        (new / "list.json").write_text(json.dumps({"files": names}))


@pytest.mark.parametrize("mine", [(), ("mine",)])
def test_what_the_marker_lists_is_replaced_and_nothing_else(tmp_path: Path, mine: tuple[str, ...]) -> None:
    write_listed(tmp_path / "out", "one", "two")
    for name in mine:
        (tmp_path / "out" / name).write_text("mine")
    write_listed(tmp_path / "out", "two", "three")
    assert names(tmp_path) == sorted(["out", *(f"out/{name}" for name in ("list.json", "three", "two", *mine))])
    (tmp_path / "out/one").write_text("mine")
    with pytest.raises(FolderError, match=r"(?s)not ours.*out with 'one'"):
        write_listed(tmp_path / "out", "one")
    with pytest.raises(FolderError, match=r"(?s)not ours.*out with 'one'"):
        check_ours(tmp_path / "out", LISTED, names=["one"])
    write_listed(tmp_path / "out", "three")
    assert (tmp_path / "out/one").read_text() == "mine"
    write_listed(tmp_path / "out", "one", overwrite=True)
    assert (tmp_path / "out/one").read_text() == "ours"


def test_commits_of_others_bring_and_remove_nothing(tmp_path: Path) -> None:
    """What a folder from elsewhere may hold: a link, and names that lead out of it."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private/key").write_text("mine")
    (tmp_path / "note").mkdir()
    (tmp_path / "note" / COMMIT).symlink_to(tmp_path / "private")
    settle(tmp_path / "note", NOTE)
    (tmp_path / "note" / COMMIT).unlink()
    (tmp_path / "note" / COMMIT).mkdir()
    told: dict[str, object] = {"before": {}, "left": {"../private/key": identity(tmp_path / "private/key")}}
    told["folder"] = identity(tmp_path / "note")
    (tmp_path / "note" / COMMIT / RECORD).write_text(json.dumps(told))
    settle(tmp_path / "note", NOTE)
    assert names(tmp_path) == ["note", "private", "private/key"]
