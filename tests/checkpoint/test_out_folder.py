from __future__ import annotations

import os
from pathlib import Path

import pytest

from pera_lightning.checkpoint.out_folder import check_out_folder
from pera_lightning.errors import ConfigError


def test_folders_that_are_there_or_can_be_made(tmp_path: Path) -> None:
    check_out_folder(tmp_path)
    check_out_folder(tmp_path / "new" / "below")
    assert not (tmp_path / "new").exists()


def test_paths_that_are_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_out_folder(Path("new/below"))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="which is a file"):
        check_out_folder(Path("file/below"))


def test_places_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, got in (("file", "a file"), ("file/below", "a file"), ("link/below", "a link to nothing")):
        with pytest.raises(ConfigError, match=f"which is {got}"):
            check_out_folder(tmp_path / name)


def test_folders_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(ConfigError, match=r"(?s)Nothing can be written there.*may write to"):
        check_out_folder(tmp_path / "new")
