"""Predictions as people read them: each with the row that it is of, and classes by their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BasePredictionWriter
from typing_extensions import override

from pera_lightning.data.data_module import TokenisedDataModule
from pera_lightning.models.causal_lm import PeraCausalLM
from pera_lightning.models.sequence_classifier import PeraSequenceClassifier
from pera_lightning.run_log.quiet import ignore_warning

Rows = list[dict[str, Any]]


class NumbersOfRows(BasePredictionWriter):
    """Has Lightning keep which rows a process predicts: under several of them each has its share.

    Attributes:
        numbers: Of the rows in the order of their predictions; none where the data says none.
    """

    def __init__(self) -> None:
        super().__init__("epoch")
        self.numbers: list[int] = []
        # Of a loader that makes its own batches it cannot.
        ignore_warning("Couldn't infer the batch indices")

    @override
    def write_on_epoch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, predictions: Any, batch_indices: Sequence[Any]
    ) -> None:
        self.numbers = [number for loader in batch_indices for batch in loader for number in batch]


def readable_predictions(rows: Rows, numbers: Sequence[int], module: Any, data: Any) -> Rows:
    """What is written of predictions.

    Args:
        rows: What `predict_step` said of every row.
        numbers: Of these rows in the data; without them, or with more or fewer, nothing is said of the data.
        module: What predicted them; what ours say gets names, and of others all stays as it is.
        data: Its data module, if there is one; ours tell the row's text and its true label or answer.
    """
    rows = [_named(row, module) for row in rows]
    if len(numbers) != len(rows):
        return rows
    own = isinstance(data, TokenisedDataModule)
    about = (data.described(number) if own else {"index": number} for number in numbers)
    return [{**found, **row} for found, row in zip(about, rows, strict=True)]


def _named(row: dict[str, Any], module: Any) -> dict[str, Any]:
    if isinstance(module, PeraCausalLM):
        return {"answer": row.pop("prediction"), **row} if "prediction" in row else row
    if not isinstance(module, PeraSequenceClassifier) or "scores" not in row:
        return row
    if "labels" not in row:
        return {"score": row["scores"]}
    label, scores, names = row["labels"], row["scores"], module.labels
    if names is None:
        return {"label": label, "scores": scores}
    return {"label": names[label], "scores": dict(zip(map(str, names), scores, strict=True))}
