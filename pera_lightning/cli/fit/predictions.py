"""What `predict` found, as a file with a row for each example."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pera_lightning.errors import DataError
from pera_lightning.storage.atomic import check_file, replacing
from pera_lightning.storage.remote import Place


def check_predictions(path: Place, *, overwrite: bool = False) -> None:
    """Raise FolderError unless predictions may be written to a file: there is none, or they are of an earlier call.

    Args:
        path: The file. Beside it a hidden file of the same name and `.pera` tells that we wrote it.
        overwrite: Whether it may be another one.
    """
    check_file(path, lambda path: _mark(path).is_file(), overwrite=overwrite)


def _mark(path: Any) -> Any:
    return path.parent / f".{path.name}.pera"


def write_predictions(batches: Sequence[Any], path: Path) -> int:
    """Write predictions as JSONL, in the order of the data.

    Args:
        batches: What `predict_step` returned for every batch: a mapping of names to values of all examples, or the
            values themselves, which then are named "prediction". Values are a tensor (B, ...) or a list of B.
        path: The file.

    Returns:
        The number of rows.

    Raises:
        DataError: `predict_step` returned something else; nothing is written.
        TypeError: A value has no place in JSON, or a tensor has no dimension; nothing is written.
        ValueError: The values of a mapping are not equally many; nothing is written.
    """
    rows = [row for batch in batches for row in _rows(batch)]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    with replacing(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
        # First: without it, nobody's predictions would be in the way of the next.
        _mark(path).write_text(f"{path.name} was written by pera_lightning, which may replace it.\n", encoding="utf-8")
    return len(rows)


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    named = batch if isinstance(batch, Mapping) else {"prediction": batch}
    for values in named.values():
        if not isinstance(values, (Tensor, list)):
            raise DataError(
                "Predictions are no rows.",
                got=f"{type(values).__name__} from predict_step",
                expected="a tensor or a list with a value for each example, or a mapping of names to such values",
                fix="return these; the predictions of this run are not written",
            )
    columns = {name: values.tolist() if isinstance(values, Tensor) else values for name, values in named.items()}
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))
