"""How long a training took, logged with the metrics of its test."""

from __future__ import annotations

import math
import time

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from benchmarks.paper.settings import TRAINING_MINUTES


class TrainingTime(Callback):
    """Logs the minutes from the first step to the last, with the validations between them, as table 5 has them."""

    def __init__(self) -> None:
        self._started = self._minutes = math.nan

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.perf_counter()

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._minutes = (time.perf_counter() - self._started) / 60

    @override
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log(TRAINING_MINUTES, self._minutes)
