from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pera_lightning.cli.fit.base_comparison import check_comparison, write_comparison
from pera_lightning.cli.fit.predictions import check_predictions, write_predictions
from pera_lightning.errors import DataError, FolderError
from pera_lightning.storage.temporaries import temporary_name


@pytest.mark.parametrize(
    ("batches", "rows"),
    [
        ([["alpha", "béta"], ["gamma"]], [{"prediction": "alpha"}, {"prediction": "béta"}, {"prediction": "gamma"}]),
        ([torch.tensor([[1.0, 2.0], [3.0, 4.0]])], [{"prediction": [1.0, 2.0]}, {"prediction": [3.0, 4.0]}]),
        (
            [{"labels": torch.tensor([1, 0]), "texts": ["a", "b"]}, {"labels": torch.tensor([1]), "texts": ["c"]}],
            [{"labels": 1, "texts": "a"}, {"labels": 0, "texts": "b"}, {"labels": 1, "texts": "c"}],
        ),
    ],
)
def test_a_row_for_every_example(tmp_path: Path, batches: list[Any], rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "new" / "predictions.jsonl"
    assert write_predictions(batches, path) == len(rows)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == rows


@pytest.mark.parametrize(
    "batch", [None, (torch.ones(2), torch.ones(2)), "text", torch.tensor(1.0), [object()], {"a": 1}]
)
def test_what_is_no_row_writes_nothing(tmp_path: Path, batch: Any) -> None:
    with pytest.raises((DataError, TypeError)):
        write_predictions([["alpha"], batch], tmp_path / "predictions.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_columns_of_unequal_length_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        write_predictions([{"labels": [1, 0], "texts": ["a"]}], tmp_path / "predictions.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_others_is_no_place_for_predictions(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text("mine")
    with pytest.raises(FolderError, match=r"(?s)The file is not ours.*predictions.jsonl.*--overwrite true"):
        check_predictions(path)
    check_predictions(path, overwrite=True)
    assert path.read_text() == "mine"
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", path / "below"):
        with pytest.raises(FolderError, match="The file is not ours"):
            check_predictions(place, overwrite=True)


def test_predictions_of_an_earlier_call_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    for text in ("one", "two"):
        check_predictions(path)
        write_predictions([[text]], path)
        assert json.loads(path.read_text()) == {"prediction": text}
    assert sorted(found.name for found in tmp_path.iterdir()) == [".predictions.jsonl.pera", "predictions.jsonl"]


def test_a_file_that_was_put_in_their_place_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "predictions.jsonl"
    write_predictions([["one"]], path)
    path.rename(tmp_path / "kept.jsonl")
    for _ in range(2):
        path.write_text("mine")
        with pytest.raises(FolderError, match="The file is not ours"):
            check_predictions(path)
        with pytest.raises(FolderError, match="The file is not ours"):
            write_predictions([["two"]], path)
        assert path.read_text() == "mine"
        path.unlink()
        # A write that fails leaves no mark of what it did not write.
        (tmp_path / ".predictions.jsonl.pera").unlink(missing_ok=True)

        def refuse(*_: object) -> None:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", refuse)
            with pytest.raises(FolderError, match=r"(?s)cannot be written.*/predictions.jsonl: "):
                write_predictions([["three"]], path)
        assert [found.name for found in tmp_path.iterdir()] == ["kept.jsonl"]


def test_a_link_to_predictions_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    write_predictions([["one"]], tmp_path / "disk/predictions.jsonl")
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "disk/predictions.jsonl")
    check_predictions(link)
    write_predictions([["two"]], link)
    assert link.is_symlink()
    assert json.loads((tmp_path / "disk/predictions.jsonl").read_text()) == {"prediction": "two"}
    check_predictions(tmp_path / "disk/predictions.jsonl")


def test_predictions_of_a_killed_process_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before and after the file takes its place."""
    path, mark = tmp_path / "predictions.jsonl", tmp_path / ".predictions.jsonl.pera"
    write_predictions([["one"]], path)
    earlier = path.read_bytes()
    write_predictions([["two"]], path)
    for content in (earlier, path.read_bytes()):
        path.write_bytes(content)
        check_predictions(path)
    mark.write_text("[" * 100_000)
    with pytest.raises(FolderError, match="The file is not ours"):
        check_predictions(path)


def test_what_a_killed_process_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left = temporary_name("predictions.jsonl").replace(f"-{os.getpid()}-", f"-{process.pid}-")
    (tmp_path / left).write_text("half")
    write_predictions([["one"]], tmp_path / "predictions.jsonl")
    assert sorted(found.name for found in tmp_path.iterdir()) == [".predictions.jsonl.pera", "predictions.jsonl"]


def test_a_full_disk_leaves_the_predictions_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "predictions.jsonl"
    write_predictions([["one"]], path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(FolderError, match=r"(?s)cannot be written.*predictions.jsonl: No space left"):
        write_predictions([["two"]], path)
    assert json.loads(path.read_text()) == {"prediction": "one"}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_comparison_with_the_base_replaces_its_like_only(tmp_path: Path) -> None:
    path = tmp_path / "comparison.csv"
    for value in (1.0, 2.0):
        check_comparison(path)
        write_comparison({"test_loss": (value, 0.5)}, path)
    assert path.read_text().splitlines() == ["metric,base,adapted", "test_loss,2.0,0.5"]
    path.write_text("name,price\nscrews,3\n")
    with pytest.raises(FolderError, match="The file is not ours"):
        check_comparison(path)
