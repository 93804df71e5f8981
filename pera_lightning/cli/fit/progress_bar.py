"""A progress bar that does not hold up what it shows."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar
from typing_extensions import override

INTERVAL = 0.5
"""Seconds for which numbers that were read stay on the bar."""


class PeraProgressBar(RichProgressBar):
    """A rich progress bar that reads metrics a few times a second, and at the end of epochs and validations.

    Lightning's reads them after every batch, for which a GPU has to have done everything before; until the next batch
    is queued it has nothing to do.
    """

    def __init__(self) -> None:
        super().__init__()
        self._numbers: dict[str, Any] = {}
        self._read_at = -math.inf

    @override
    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        now = time.monotonic()
        if now - self._read_at >= INTERVAL:
            self._numbers, self._read_at = super().get_metrics(trainer, pl_module), now
        return self._numbers

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read_at = -math.inf
        super().on_train_epoch_end(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read_at = -math.inf
        super().on_validation_end(trainer, pl_module)
