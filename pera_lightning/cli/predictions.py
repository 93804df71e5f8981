"""What `predict` found, as a file with a row for each example."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pera_lightning.checkpoint.atomic import replacing
from pera_lightning.errors import DataError


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
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
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
