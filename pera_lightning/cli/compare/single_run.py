"""One training of a comparison, as `fit` runs it, and its result."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from typing_extensions import override

from pera_lightning.analysis.method_comparison import ComparedRun
from pera_lightning.cli.compare.peft_callback import PeftCallback
from pera_lightning.cli.compare.run_record import RunRecord, folder_megabytes, value_of
from pera_lightning.cli.compare.settings import RESULT
from pera_lightning.cli.fit.trainer import PeraCLI, chosen_callbacks, make_cli
from pera_lightning.cli.screen import tell
from pera_lightning.errors import ConfigError, PeraError, TrainingError, one_line
from pera_lightning.storage.atomic import replacing

ADAPTER = "adapter"


@dataclass(frozen=True)
class Cell:
    """A run of a comparison that is to be made.

    Attributes:
        method: Name of the method.
        learning_rate: Its learning rate.
        seed: Its seed.
        words: Everything that `fit` is called with.
        selection: Name of the metric to select by, logged in validation.
        report: Name of the metric to report, logged in test.
        folder: Where its logs, its adapter and its result go.
        trainer: Options of the Trainer in its config.
        peft: Fields of PEFT's configuration where the method is PEFT's; None for those of ours.
    """

    method: str
    learning_rate: float
    seed: int
    words: tuple[str, ...]
    selection: str
    report: str
    folder: Path
    trainer: dict[str, Any]
    peft: dict[str, Any] | None = None

    def result(self) -> ComparedRun | None:
        """The result of an earlier call; None where there is none."""
        path = self.folder / RESULT
        return read_result(path) if path.is_file() else None


def read_result(path: Path) -> ComparedRun:
    """The result of a run.

    Raises:
        ConfigError: It is damaged.
    """
    try:
        return ComparedRun(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            "The result of a run is damaged.",
            got=f"{path}: {one_line(error)}",
            expected="the file as compare wrote it",
            fix="delete it, and the run is made again",
        ) from error


def run_cell(cell: Cell) -> ComparedRun:
    """Train, validate and test in this process, and write the result into the cell's folder.

    What would be printed goes to log.txt beside it.

    Raises:
        ConfigError: Validation or test logs no such metric.
        PeraError: Anything that `fit` refuses; a loss that is not finite is a result, not an error.
    """
    cell.folder.mkdir(parents=True, exist_ok=True)
    for left in ("logs", "checkpoints"):
        # Of a run that was interrupted.
        shutil.rmtree(cell.folder / left, ignore_errors=True)
    with in_its_folder(cell, f"{cell.folder}: this run ended the comparison; runs that are finished are kept."):
        found = _measure(cell)
    keep_result(cell, found)
    return found


@contextlib.contextmanager
def in_its_folder(cell: Cell, told: str) -> Iterator[None]:
    """Send what is printed to log.txt, and say on the screen what gave up.

    Args:
        cell: The run.
        told: What is said.
    """
    try:
        with _written_to(cell.folder / "log.txt"):
            yield
    except SystemExit as stop:
        # Parsers leave with 2; Lightning with 1 where a run is interrupted.
        if stop.code != 2:
            raise
        raise _refused(cell) from stop
    except PeraError:
        tell(told)
        raise


@contextlib.contextmanager
def _written_to(path: Path) -> Iterator[None]:
    """Send what is printed to a file, and hush the loggers that write to the screen they found at their import."""
    from transformers.utils import logging as transformers_logging

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels, verbosity = [logger.level for logger in loggers], transformers_logging.get_verbosity()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    try:
        with path.open("w", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _refused(cell: Cell) -> ConfigError:
    """What the command line of `fit` wrote before it gave up, which nobody would see in the log."""
    _, _, message = (cell.folder / "log.txt").read_text(encoding="utf-8").rpartition("error:")
    return ConfigError(
        f"`fit` does not take the options of {cell.method}.",
        got=message.strip() or "no message",
        expected="options that `fit` takes",
        fix="correct them in the config, in --methods or after the options of compare",
    )


def keep_result(cell: Cell, found: ComparedRun) -> None:
    """Write a result to where `Cell.result` finds it."""
    with replacing(cell.folder / RESULT) as temporary:
        temporary.write_text(json.dumps(found.to_dict(), indent=1), encoding="utf-8")


def _measure(cell: Cell) -> ComparedRun:
    record, began = RunRecord(cell.selection), time.perf_counter()
    metrics: dict[str, float] = {}
    reason = ""
    try:
        metrics = train_and_test(cell, record)
    except TrainingError as error:
        if "not finite" not in str(error):
            raise
        reason = one_line(error)
    values = [None if reason else value_of(metrics, name) for name in (cell.selection, cell.report)]
    if not reason and None in values:
        reason = f"{cell.selection if values[0] is None else cell.report} is not finite"
    losses = [name for name, value in metrics.items() if "loss" in name and not math.isfinite(value)]
    if not reason and (losses or not record.is_finite):
        # Of such outputs and weights an accuracy is still some number.
        values, reason = [None, None], f"{losses[0] if losses else 'a weight'} is not finite"
    return ComparedRun(
        method=cell.method,
        learning_rate=cell.learning_rate,
        seed=cell.seed,
        selection=values[0],
        report=values[1],
        metrics=metrics,
        train_loss=record.last_losses(),
        energy=0.0 if reason else record.energy,
        trainable=record.trainable,
        steps=record.steps,
        step_ms=record.step_ms,
        reason=reason,
        peak_mb=record.peak_mb,
        disk_mb=folder_megabytes(cell.folder / ADAPTER),
        minutes=(time.perf_counter() - began) / 60,
    )


def train_and_test(cell: Cell, *watching: Callback) -> dict[str, float]:
    """Train, validate and test; returns the metrics of the weights that the config calls best, else of the last.

    Args:
        cell: The run.
        *watching: Callbacks besides those of its config.
    """
    metrics: dict[str, float] = {}
    fit = make_cli(_compared_fit(cell, *watching), ["fit", *cell.words])
    trainer, best = fit.trainer, _best_checkpoint(fit.trainer)
    for evaluate in (trainer.validate, trainer.test):
        evaluate(fit.model, datamodule=fit.datamodule, ckpt_path=best, verbose=False)
        # Lightning forgets those of the fit, and of the other stage.
        metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    return metrics


def _compared_fit(cell: Cell, *watching: Callback) -> type[PeraCLI]:
    """The command line of a run whose files all go into the cell's folder, whatever its config says."""
    folder = cell.folder

    class ComparedFit(PeraCLI):
        @override
        def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
            options = self._get(self.config_init, "trainer")
            # A checkpoint that is the best of something decides the result; others would only take space.
            kept = [part for part in chosen_callbacks(options) if _is_best(part) or not isinstance(part, Checkpoint)]
            for callback in kept:
                if isinstance(callback, ModelCheckpoint):
                    callback.dirpath = str(folder / "checkpoints")
            options["callbacks"] = [*kept, *watching]
            options["logger"] = CSVLogger(folder, name="logs", version="")
            options["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in kept)
            options["enable_progress_bar"] = options["enable_model_summary"] = False
            # One batch shows what validation logs; Lightning restores the random state after it.
            options["num_sanity_val_steps"] = 1
            if cell.peft is not None:
                self.config_init[self.subcommand].pera = self._of_peft(cell.peft)
            return super().instantiate_trainer(**kwargs)

        def _of_peft(self, method: dict[str, Any]) -> PeftCallback:
            config = self.config_init[self.subcommand].pera.config
            return PeftCallback(config, method, folder / ADAPTER)

    return ComparedFit


def _is_best(callback: Callback) -> bool:
    return isinstance(callback, ModelCheckpoint) and callback.monitor is not None


def _best_checkpoint(trainer: pl.Trainer) -> str | None:
    found = next((callback for callback in trainer.checkpoint_callbacks if _is_best(callback)), None)
    return (getattr(found, "best_model_path", "") or None) if found is not None else None
