"""What a run of a comparison leaves besides its metrics: losses, times, memory and sizes."""

from __future__ import annotations

import gc
import math
import re
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from pera_lightning.analysis import mean_energy
from pera_lightning.errors import ConfigError
from pera_lightning.models.accumulation.weighted_accumulation import WeightedAccumulation

MEGABYTE = 1e6


class RunRecord(Callback):
    """Watches one run; refuses before the training what cannot be compared after it.

    Args:
        selection: Name of the metric to select by, logged in validation.
    """

    def __init__(self, selection: str) -> None:
        self.selection = selection
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.energy = 0.0
        self.is_finite = True
        self.trainable = 0
        self.steps = 0
        self.peak_mb = math.nan
        self._started = self._waiting = 0.0
        self._batches: list[float] = []

    @property
    def step_ms(self) -> float:
        """Median milliseconds of an optimizer step; NaN before the first."""
        return 1000 * statistics.median(self.seconds) if self.seconds else math.nan

    def last_losses(self) -> float | None:
        """Mean loss of the last tenth of the steps."""
        last = [loss for loss in self.losses[-max(1, len(self.losses) // 10) :] if math.isfinite(loss)]
        return statistics.fmean(last) if last else None

    @override
    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        # Some modules log nothing here; theirs is known after the first true validation only.
        if logged:
            value_of(logged, self.selection)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.trainable = sum(value.numel() for value in pl_module.parameters() if value.requires_grad)
        forget_peak(pl_module.device)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._started = time.perf_counter()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Asking for the loss waits for the GPU, so that the time is the step's.
        self._batches.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)
        self._waiting += time.perf_counter() - self._started
        if trainer.global_step != self.steps:
            self.steps = trainer.global_step
            self.seconds.append(self._waiting)
            self._waiting = 0.0
            self.losses.append(self._loss_of_step(pl_module))

    def _loss_of_step(self, pl_module: pl.LightningModule) -> float:
        weighed, batches = WeightedAccumulation.of(pl_module), self._batches
        self._batches = []
        if weighed is None or weighed.loss is None:
            return statistics.fmean(batches)
        return float(weighed.loss)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.peak_mb = peak_megabytes(pl_module.device)

    @override
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Of the weights that were tested: after training they may be those of an earlier checkpoint.
        self.energy = mean_energy(pl_module)
        trained = [value for value in pl_module.parameters() if value.requires_grad]
        self.is_finite = all(bool(value.isfinite().all()) for value in trained)


def value_of(metrics: Mapping[str, float], name: str) -> float | None:
    """A metric that was logged; None where it is not finite.

    Raises:
        ConfigError: It was not logged.
    """
    if name not in metrics:
        raise ConfigError(
            "The model does not log the metric to compare by.",
            got=f"no {name} in validation and test",
            expected=", ".join(sorted(metrics)) or f"a LightningModule that logs {name}",
            fix="name one that is logged with --metric: loss for val_loss and test_loss, or both names",
        )
    return metrics[name] if math.isfinite(metrics[name]) else None


_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak(device: torch.device) -> None:
    """Begin anew with what `peak_megabytes` tells."""
    # What an earlier run of this process has left.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        try:
            # Linux: the most memory that was resident is what is resident now.
            _FORGET.write_text("5")
        except OSError:
            return


def peak_megabytes(device: torch.device) -> float:
    """The most memory since `forget_peak`: of tensors on a GPU, of this process on a CPU; NaN where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MEGABYTE
    if device.type != "cpu":
        return math.nan
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text("utf-8"))
    except OSError:
        return math.nan
    return int(found[1]) * 1024 / MEGABYTE if found else math.nan


def folder_megabytes(folder: Path) -> float:
    """Size of the tensors that an adapter's folder holds; NaN without any."""
    sizes = [path.stat().st_size for path in folder.rglob("*.safetensors")] if folder.is_dir() else []
    return sum(sizes) / MEGABYTE if sizes else math.nan
