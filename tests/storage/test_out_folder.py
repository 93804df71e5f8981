from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from pera_lightning.errors import ConfigError
from pera_lightning.storage.out_folder import check_out_folder


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
    def refuse(*, dir: Path, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(ConfigError, match=r"(?s)Nothing can be written there.*new: Permission denied.*may write to"):
        check_out_folder(tmp_path / "new")


def test_folders_where_the_files_are_to_be(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    with pytest.raises(ConfigError, match=r"(?s)A folder is where a file is to be written.*weights"):
        check_out_folder(tmp_path, names=["config", "weights"])


def test_more_than_there_is_room_for(tmp_path: Path) -> None:
    check_out_folder(tmp_path, bytes_needed=1 << 20)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"with room for 4,611,686,018,427\.4 MB"):
        check_out_folder(tmp_path, bytes_needed=1 << 62)
