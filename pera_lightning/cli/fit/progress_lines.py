"""Progress as lines, for logs and pipes, where a bar would show nothing until its end."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from typing_extensions import override

from pera_lightning.cli.screen import tell
from pera_lightning.visible_text import visible

EVERY = 30.0
"""Seconds after which there is a further line."""
PARTS = 20
"""A line for each of so many parts of a training too, unless the last one is less than `LEAST` seconds old."""
LEAST = 5.0


class ProgressLines(ProgressBar):
    """Prints in the first process how far a run is: step, epoch, what the model logs, rate and remaining time.

    Metrics are read for these lines alone, so that a GPU need not wait for others.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled = True
        self._began = self._told_at = 0.0
        self._first_step = self._told_step = 0

    @override
    def disable(self) -> None:
        self._is_enabled = False

    @override
    def enable(self) -> None:
        self._is_enabled = True

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.monotonic()
        self._first_step = self._told_step = trainer.global_step
        # The first step has a line, so that one sees that there are steps.
        self._told_at = -math.inf

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, total = trainer.global_step, _total_steps(trainer)
        if step == self._told_step or not self._is_enabled:
            return
        seconds = time.monotonic() - self._told_at
        is_part = total is not None and step - self._told_step >= total / PARTS
        if seconds >= EVERY or (is_part and seconds >= LEAST) or step == total:
            self._tell_step(trainer, _numbers(trainer, outputs))

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # A short one needs no line.
        self._told_at = time.monotonic()

    @override
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        counts = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._tell_batch("validation", counts, batch_idx, dataloader_idx)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._is_enabled and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._tell_step(trainer, _numbers(trainer))

    @override
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._told_at = time.monotonic()

    @override
    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._tell_batch("test", trainer.num_test_batches, batch_idx, dataloader_idx)

    @override
    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._told_at = time.monotonic()

    @override
    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._tell_batch("prediction", trainer.num_predict_batches, batch_idx, dataloader_idx)

    def _tell_step(self, trainer: pl.Trainer, numbers: Mapping[str, float]) -> None:
        step, total, now = trainer.global_step, _total_steps(trainer), time.monotonic()
        rate = (step - self._first_step) / max(now - self._began, 1e-9)
        epochs = "" if trainer.max_epochs in (None, -1) else f" of {trainer.max_epochs}"
        parts = [
            f"step {step:,}" + ("" if total is None else f" of {total:,}"),
            f"epoch {trainer.current_epoch + 1}{epochs}",
            *(f"{visible(name)} {value:.4g}" for name, value in numbers.items()),
            f"{rate:.3g} steps/s",
            *([] if total is None or step > total or not rate else [f"{_clock((total - step) / rate)} left"]),
        ]
        tell(", ".join(parts))
        self._told_step, self._told_at = step, now

    def _tell_batch(self, what: str, counts: list[int | float] | int, index: int, loader: int) -> None:
        now = time.monotonic()
        if not self._is_enabled or now - self._told_at < EVERY:
            return
        count = counts[loader] if isinstance(counts, list) else counts
        of = f" of {count:,}" if math.isfinite(count) else ""
        data = f", data {loader + 1} of {len(counts)}" if isinstance(counts, list) and len(counts) > 1 else ""
        tell(f"{what}: batch {index + 1:,}{of}{data}")
        self._told_at = now


def _total_steps(trainer: pl.Trainer) -> int | None:
    """Optimizer steps of the whole training; None where it has no end that is known."""
    total = trainer.estimated_stepping_batches
    return int(total) if 0 < total < math.inf else None


def _numbers(trainer: pl.Trainer, outputs: Any = None) -> dict[str, float]:
    """What the model logs for its progress bar; its loss where it logs none."""
    shown = {name: float(value) for name, value in trainer.progress_bar_metrics.items()}
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if isinstance(loss, Tensor) and loss.numel() == 1 and not any("loss" in name for name in shown):
        return {"loss": loss.item() * trainer.accumulate_grad_batches} | shown
    return shown


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
