from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pera_lightning.cli.predictions import write_predictions
from pera_lightning.errors import DataError


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
