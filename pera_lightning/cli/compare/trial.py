"""A few steps of a run before a comparison begins: whether its method runs at all, and how long a whole run takes."""

from __future__ import annotations

import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from pera_lightning.cli.compare.single_run import Cell, in_its_folder, train_and_test
from pera_lightning.errors import ConfigError, PeraError, TrainingError, one_line

STEPS = 4
"""Of a trial; the first one, which makes ready what later ones use, does not count."""
EPOCHS_OF_LIGHTNING = 1000
"""What a Trainer trains that is told no length."""


def minutes_of(cell: Cell) -> float:
    """About how many minutes a run takes at most, by a trial of it that leaves nothing behind.

    Args:
        cell: The run.

    Returns:
        NaN where its length is not known, or the trial diverges.

    Raises:
        PeraError: The run cannot be made.
    """
    with tempfile.TemporaryDirectory() as folder:
        short = {"max_steps": STEPS, "limit_val_batches": 1, "limit_test_batches": 1}
        words = [word for name, value in short.items() for word in (f"--trainer.{name}", str(value))]
        adapter = ("--pera.adapter_dir", str(Path(folder) / "adapter"))
        tried = dataclasses.replace(cell, words=(*cell.words, *words, *adapter), folder=Path(folder))
        times = Times(cell.trainer)
        try:
            with in_its_folder(tried, f"A trial of {cell.method} failed before the first run."):
                train_and_test(tried, times)
        except TrainingError as error:
            if "not finite" not in str(error):
                raise
            return math.nan
        except PeraError:
            raise
        except Exception as error:
            if cell.peft is None:
                raise
            raise ConfigError(
                f"The method {cell.method} fails in its first steps.",
                got=one_line(error),
                expected="a method of PEFT that trains and tests this model",
                fix="correct its options in --methods, or leave it out",
            ) from error
        return times.minutes()


class Times(Callback):
    """Times the parts of a run that is cut short, and notes how many of each the whole run has.

    Args:
        options: Of the Trainer of the whole run.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._began = self._started = time.perf_counter()
        self._setup = self._batches = 0.0
        self._seconds: dict[str, list[float]] = {"train": [], "val": [], "test": []}
        self._numbers = {"val": 0.0, "test": 0.0}

    def minutes(self) -> float:
        """How long the whole run takes; NaN where its length is not known."""
        accumulated = self._options.get("accumulate_grad_batches") or 1
        # Of a stream the number is endless.
        of_epoch = math.ceil(self._batches / accumulated) if math.isfinite(self._batches) else math.inf
        batches = self._steps(of_epoch) * accumulated
        # Once more on the weights that are tested.
        between = self._between_validations()
        validations = 1 + (math.floor(batches / between) if math.isfinite(batches / between) else 0)
        numbers = {"train": batches, "val": validations * self._numbers["val"], "test": self._numbers["test"]}
        seconds = self._setup + sum(number * self._each(part) for part, number in numbers.items() if number)
        return seconds / 60 if math.isfinite(seconds) else math.nan

    def _each(self, part: str) -> float:
        found = self._seconds[part]
        return statistics.median(found[1:] or found or [math.nan])

    def _steps(self, of_epoch: float) -> float:
        steps, epochs = self._options.get("max_steps", -1), self._options.get("max_epochs")
        if epochs is None:
            epochs = EPOCHS_OF_LIGHTNING if steps == -1 else -1
        return min(math.inf if steps == -1 else steps, math.inf if epochs == -1 else epochs * of_epoch)

    def _between_validations(self) -> float:
        interval = self._options.get("val_check_interval")
        every = self._options.get("check_val_every_n_epoch") or 1
        if isinstance(interval, int):
            return max(1, interval)
        return max(1.0, self._batches * (interval if isinstance(interval, float) and interval < 1 else every))

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._setup = time.perf_counter() - self._began
        self._batches = float(trainer.num_training_batches)
        self._numbers["val"] = _batches_of(trainer.val_dataloaders, self._options.get("limit_val_batches"))

    @override
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._numbers["test"] = _batches_of(trainer.test_dataloaders, self._options.get("limit_test_batches"))

    @override
    def on_train_batch_start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    @override
    def on_validation_batch_start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    @override
    def on_test_batch_start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Asking for the loss waits for the GPU.
        float(outputs["loss"])
        self._seconds["train"].append(time.perf_counter() - self._started)

    @override
    def on_validation_batch_end(self, *_: Any) -> None:
        self._seconds["val"].append(time.perf_counter() - self._started)

    @override
    def on_test_batch_end(self, *_: Any) -> None:
        self._seconds["test"].append(time.perf_counter() - self._started)


def _batches_of(loaders: Any, limit: float | None) -> float:
    """How many batches an evaluation has; endless where nobody knows."""
    try:
        lengths = [len(loader) for loader in tree_leaves(loaders)]
    except TypeError:
        # Of streams only a limit is known.
        return float(limit) if isinstance(limit, int) else math.inf
    if isinstance(limit, int):
        return float(sum(min(limit, length) for length in lengths))
    return float(sum(int(length * (1.0 if limit is None else limit)) for length in lengths))
