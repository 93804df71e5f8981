"""The adapter folder that a fit leaves behind."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
from torch import nn

from pera_lightning.callback.adapter_root import adapter_root, prefix_of
from pera_lightning.callback.trained.best_checkpoint import EarlierBests, StepsOfBests, WrittenWeights, best_weights
from pera_lightning.callback.trained.measured_steps import StepsOfMetrics
from pera_lightning.callback.trained.run_summary import run_summary
from pera_lightning.callback.trained.written_checkpoints import written_checkpoints
from pera_lightning.checkpoint import Manifest, adapter_state_dict, write_adapter
from pera_lightning.checkpoint.adapter_files import refuse_infinite
from pera_lightning.checkpoint.adapter_folder import check_adapter_place
from pera_lightning.checkpoint.manifest.manifest import base_name
from pera_lightning.errors import AdapterFileError, PeraError, one_line
from pera_lightning.functional.distributed import whole
from pera_lightning.injection import clean_name
from pera_lightning.injection.saved_modules import kept_infinities
from pera_lightning.run_log.messages import rank_zero_info
from pera_lightning.storage.out_folder import check_out_folder
from pera_lightning.storage.recognition.adapter_kind import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from pera_lightning.storage.remote import Place, place

_SMALL_FILES = 1 << 20
"""Bytes to spare for what is written beside the weights."""
_FILES = (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE)


class TrainedAdapter:
    """Looks before a fit whether its adapter can be written, and writes it at the end."""

    def __init__(self) -> None:
        self._earlier = EarlierBests()
        self._steps_of_bests = StepsOfBests()
        self._steps_of_metrics = StepsOfMetrics()
        self._trainer: weakref.ref[pl.Trainer] | None = None
        # Whether this fit has begun to train.
        self._trained = False
        self._folder: Place | None = None

    def on_setup(self, trainer: pl.Trainer, new: bool) -> None:
        """When the module has its adapters, before a checkpoint is loaded into them.

        Args:
            trainer: The Trainer.
            new: Whether they start anew. Others go on with a run, of which this Trainer knows what was best.
        """
        if new or self._trainer is None or self._trainer() is not trainer:
            self._earlier.note(trainer)
        self._trainer = weakref.ref(trainer)

    def on_evaluation_start(self, trainer: pl.Trainer) -> None:
        """Before a validation computes its metrics."""
        self._steps_of_metrics.on_evaluation_start(trainer)

    def on_validation_end(self, trainer: pl.Trainer) -> None:
        """When they are computed."""
        self._steps_of_metrics.on_validation_end(trainer)

    def on_fit_start(self, trainer: pl.Trainer, root: nn.Module, chosen: str | None) -> None:
        """Look at the place, and say that the adapter of an earlier fit is there while it can still be moved.

        Args:
            trainer: The Trainer.
            root: The module that the adapter's names begin in.
            chosen: `adapter_dir`.

        Raises:
            ConfigError: In every process, if nothing can be written there, or it is somebody else's folder.
        """
        self._trained = False
        self._steps_of_bests = StepsOfBests()
        self._steps_of_metrics = StepsOfMetrics()
        # Once, so that it stays the same if the working directory changes.
        folder = self._folder = adapter_folder(trainer, chosen)
        if getattr(trainer, "fast_dev_run", False):
            return
        size = sum(value.numel() * value.element_size() for value in adapter_state_dict(root).values())
        problem = trainer.strategy.broadcast(
            _problem(folder, size, base_name(root)) if trainer.is_global_zero else None
        )
        if problem is not None:
            raise problem
        if trainer.is_global_zero and (folder / CONFIG_FILE).is_file():
            rank_zero_info(f"PERA: {folder} holds an adapter, which this fit's will replace at its end")

    def on_train_start(self, trainer: pl.Trainer) -> None:
        """Called when there is something to train; only then is there something new to write."""
        self._trained = True
        # Those of the run that goes on, whose steps were not seen.
        self._steps_of_bests.note(trainer, None)
        if trainer.ckpt_path:
            self._earlier.forget()

    def on_save_checkpoint(self, trainer: pl.Trainer) -> None:
        """While a checkpoint is written."""
        self._steps_of_bests.note(trainer, trainer.global_step)

    def on_exception(self, trainer: pl.Trainer) -> None:
        """Say that nothing was written, and what holds the adapter."""
        if self._trained and trainer.is_global_zero:
            checkpoints = written_checkpoints(trainer)
            told = f"PERA: the fit ended before its time and has not written {self._folder}; "
            if checkpoints:
                last = shlex.quote(str(checkpoints[0]))
                told += (
                    f"its last checkpoint is {checkpoints[0]}. `pera_lightning consolidate --checkpoint {last} --out "
                    "FOLDER` makes an adapter folder of it; fit with it as ckpt_path goes on"
                )
            else:
                told += "no checkpoint was written"
            # Lightning calls them after this.
            if any(getattr(one, "save_on_exception", False) for one in trainer.checkpoint_callbacks):
                told += "; a ModelCheckpoint with save_on_exception writes the present state, and says where"
            # Where the module is still at hand.
            if hasattr(sys, "ps1"):
                told += "; save_adapter(module, folder) writes what the module holds"
            rank_zero_info(told)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, manifest: Manifest) -> None:
        """Write the adapter of the best checkpoint where a ModelCheckpoint monitors a metric, else the present one.

        A fit that found nothing left to do leaves the folder of the run that did it alone. The first process writes;
        all return when it is written.

        Args:
            trainer: The Trainer at the end of its fit.
            pl_module: The module with the adapters.
            manifest: Of the adapter.

        Raises:
            AdapterFileError: In every process, if the folder cannot be written; the adapter is then at another place,
                which the message names.
        """
        if not self._trained or self._folder is None or getattr(trainer, "fast_dev_run", False):
            return
        root = adapter_root(pl_module)
        # In every process, whatever is written in the end: sharded tensors come from all of them.
        present = {key: whole(value) for key, value in adapter_state_dict(root).items()}
        problem = None
        if trainer.is_global_zero:
            prefix = clean_name(prefix_of(pl_module, root))
            weights = best_weights(trainer, prefix, present, self._earlier, self._steps_of_bests)
            if isinstance(weights, str):
                reason = f" ({weights})" if weights else ""
                weights = WrittenWeights(present, f"step {trainer.global_step}, the last one{reason}")
            weights = self._steps_of_metrics.tell(weights)
            constants = kept_infinities(root)
            about = run_summary(trainer, weights.origin)
            write = partial(write_adapter, manifest=manifest, run=about, constants=constants)
            problem = _not_finite(self._folder, weights, constants)
            problem = problem or _write(self._folder, _other_places(trainer), weights, write)
        # All wait here until it is written.
        problem = trainer.strategy.broadcast(problem)
        if problem is not None:
            raise problem


def adapter_folder(trainer: pl.Trainer, chosen: str | None) -> Place:
    """Where the adapter goes at the end of the fit; collective, as the Trainer's `log_dir` is."""
    folder = place(chosen) if chosen else place(trainer.log_dir or trainer.default_root_dir) / "adapter"
    return folder.absolute() if isinstance(folder, Path) else folder


def _problem(folder: Place, size: int, base_model: str | None) -> PeraError | None:
    """Why an adapter cannot be written; None if it can."""
    option = "PeraCallback's adapter_dir"
    try:
        check_out_folder(folder, bytes_needed=size + _SMALL_FILES, names=_FILES, option=option)
        check_adapter_place(folder, base_model, permit=None, option=option)
    except PeraError as error:
        return error
    return None


def _not_finite(folder: Place, weights: WrittenWeights, constants: Collection[str]) -> AdapterFileError | None:
    """What is wrong with the adapter itself, and so in every folder; None if nothing is."""
    try:
        refuse_infinite({key: value for key, value in weights.tensors.items() if key not in constants}, folder)
    except AdapterFileError as error:
        return error
    return None


def _write(
    folder: Place, others: Iterable[Path], weights: WrittenWeights, write: Callable[..., object]
) -> AdapterFileError | None:
    """Write the adapter, else somewhere else; then what is to be raised."""
    try:
        # What has come into the folder since it was looked at stays; only of our own names nothing may have.
        write(folder, weights.tensors, overwrite=not any((folder / name).exists() for name in _FILES))
    # Any: a remote file system has errors of its own, and what was trained must not be lost by one.
    except Exception as error:
        cause = error.__cause__ or error
        return _rescue(f"{folder}: {one_line(cause)}", others, weights, write)
    rank_zero_info(f"PERA: adapter of {weights.origin} written to {folder}")
    return None


def _rescue(
    problem: str, others: Iterable[Path], weights: WrittenWeights, write: Callable[..., object]
) -> AdapterFileError:
    tried = []
    for above in others:
        tried.append(str(above))
        with contextlib.suppress(Exception):
            rescued = _written_below(above, weights, write)
            return AdapterFileError(
                "The trained adapter could not be written to its folder; it is in another one.",
                got=problem,
                expected="a folder that can be written to; the one named may hold the adapter of an earlier fit",
                fix=f"load the adapter of {weights.origin} from {rescued}, or move that folder to where it belongs",
            )
    return AdapterFileError(
        "The trained adapter cannot be written.",
        got=f"{problem} (nor to {', '.join(tried)})",
        expected="a folder that can be written to",
        fix="make room; the checkpoints of this run hold the adapter too (`consolidate` makes a folder of one), and in "
        "an interactive session the module still does: save_adapter(module, folder)",
    )


def _written_below(above: Path, weights: WrittenWeights, write: Callable[..., object]) -> str:
    above.mkdir(parents=True, exist_ok=True)
    # A new one, so that nothing is replaced.
    rescued = tempfile.mkdtemp(prefix="adapter-", dir=above)
    try:
        write(rescued, weights.tensors)
    except BaseException:
        shutil.rmtree(rescued, ignore_errors=True)
        raise
    return rescued


def _other_places(trainer: pl.Trainer) -> Iterator[Path]:
    root = place(trainer.default_root_dir)
    if isinstance(root, Path):
        yield root
    for found in (Path.cwd, lambda: Path(tempfile.gettempdir())):
        # The working directory may have been deleted, and there may be no place for temporary files.
        with contextlib.suppress(OSError):
            yield found()
