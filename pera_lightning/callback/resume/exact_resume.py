"""Going on from a checkpoint as the run would have gone on without the interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from pera_lightning.callback.copied_networks import averaged_counts, restore_averaged_counts
from pera_lightning.callback.resume.accumulated_gradients import (
    accumulated_gradients,
    accumulated_weights,
    restore_gradients,
)
from pera_lightning.callback.resume.loop_progress import (
    begin_epoch,
    begin_next_epoch,
    go_on_within_epoch,
    is_finished_epoch,
    owe_validation,
    owes_validation,
)
from pera_lightning.callback.resume.random_state import random_states, restore_random_states
from pera_lightning.callback.resume.restored_state import check_loops, name_checkpoint, restoring, stop_naming
from pera_lightning.callback.resume.resume_limits import warn_of_limits
from pera_lightning.checkpoint.training.training_checkpoint import PROCESSES
from pera_lightning.models.parallel.strategy_kind import kind_of
from pera_lightning.run_log.messages import rank_zero_warn


class ExactResume(pl.Callback):
    """Goes on from a checkpoint as the run would have gone on without the interruption, to the same bits.

    Lightning brings back weights, optimizers and schedules. This callback adds the states of all random generators (of
    every process), gradients that waited for more batches, and where in the loops the run stood: in the middle of an
    epoch, at its end, or with a validation still to come. It needs no adapters: any Trainer can have it. `PeraCallback`
    brings it along.

    A DataLoader that is to go on in the middle of an epoch needs a state of its own, such as torchdata's
    `StatefulDataLoader`; what cannot go on exactly is named in a warning when the run resumes.

    Raises:
        CheckpointError: When the run resumes, and the file is damaged or belongs to another run.
    """

    # The iterator of a DataLoader draws seeds when it is made. After the end of an epoch the next one is made between
    # `on_fit_start` and `on_train_start`, or before both if `configure_optimizers` asks for the number of steps, and is
    # then made anew with the states that belong to it; in the middle of an epoch it had been made long before the
    # checkpoint, so there the states come back in `on_train_start`, before the next batch is fetched.

    def __init__(self) -> None:
        self._stands_back = False
        self.forget()

    def forget(self) -> None:
        """A later fit of the same Trainer is none that resumes."""
        self._resumes = False
        self._path: str | Path | None = None
        self._process: dict[str, Any] | None = None
        # Where the checkpoint holds a finished epoch; empty without loaders that keep a state.
        self._loader_states: list[dict[str, Any]] | None = None
        self._owes_validation = False
        self._averaged: dict[str, int] = {}
        self._fit_started = False
        self._iterates_early = False

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        name_checkpoint(trainer)
        callbacks = getattr(trainer, "callbacks", ())
        # One that PeraCallback brings along leaves the work to the user's own.
        self._stands_back = self not in callbacks and any(isinstance(other, ExactResume) for other in callbacks)

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what a resumed run needs; collective where there are several processes."""
        if self._stands_back:
            return
        mine = {
            "random": random_states(),
            "gradients": accumulated_gradients(trainer, pl_module),
            "weights": accumulated_weights(pl_module),
            "sharded": kind_of(trainer.strategy).shards_adapter,
            "averaged": averaged_counts(pl_module),
        }
        checkpoint[PROCESSES] = _gathered(mine)
        owe_validation(trainer, checkpoint["loops"]["fit_loop"])

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what this process needs for the fit that follows, and put the progress of the loops right."""
        if trainer.state.fn != TrainerFn.FITTING or self._stands_back:
            return
        check_loops(trainer, checkpoint)
        # Checkpoints of other Trainers hold nothing.
        if PROCESSES not in checkpoint:
            rank_zero_warn(
                "The checkpoint was written without PeraCallback or ExactResume, or a part of it is missing: the "
                "random numbers (dropout, shuffling) will differ from those of an uninterrupted run, and gradients "
                "accumulated since the last optimizer step are left out."
            )
            return
        self._path = trainer.ckpt_path
        self._resumes, self._process = True, _own(checkpoint[PROCESSES])
        self._averaged = checkpoint[PROCESSES][0].get("averaged", {})
        fit_loop = checkpoint["loops"]["fit_loop"]
        self._owes_validation = owes_validation(fit_loop)
        if is_finished_epoch(fit_loop):
            self._loader_states = begin_next_epoch(fit_loop)
        # Some strategies load only after on_fit_start.
        if self._fit_started:
            self._restore_random_states()

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore before the Trainer makes the iterator over the training data."""
        self._fit_started = True
        self._iterates_early = trainer.fit_loop._data_fetcher is not None
        self._restore_random_states()

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the next epoch, or restore before what is left of one that had begun."""
        within_epoch = trainer.fit_loop.epoch_loop.batch_progress.current.ready > 0
        if self._loader_states is not None:
            warn_of_limits(trainer, within_epoch=False)
            begin_epoch(trainer, self._loader_states, self._restore_random_states, again=self._iterates_early)
        elif self._resumes and within_epoch:
            warn_of_limits(trainer, within_epoch=True)
            self._restore_random_states()
            go_on_within_epoch(trainer, self._restore_random_states, owed=self._owes_validation)
        with restoring(self._path):
            if self._process is not None:
                restore_gradients(pl_module, self._process["gradients"], self._process.get("weights"))
            restore_averaged_counts(pl_module, self._averaged)
        self.forget()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # Lightning calls no teardown after an exception.
        self.teardown(trainer, pl_module, str(trainer.state.stage))

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        stop_naming(trainer)
        self.forget()

    def _restore_random_states(self) -> None:
        if self._process is None:
            return
        with restoring(self._path):
            restore_random_states(self._process["random"])


def _gathered(mine: dict[str, Any]) -> list[dict[str, Any]]:
    _, ranks = _rank_and_ranks()
    if ranks == 1:
        return [mine]
    gathered: list[Any] = [None] * ranks
    torch.distributed.all_gather_object(gathered, mine)
    return gathered


def _own(processes: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What this process needs; None where the run goes on with another number of processes."""
    rank, ranks = _rank_and_ranks()
    if ranks == len(processes):
        return processes[rank]
    rank_zero_warn(
        f"The checkpoint was written by {len(processes)} processes and training goes on in {ranks}: the random "
        "numbers (dropout, shuffling) and gradients accumulated since the last optimizer step will differ from those "
        "of an uninterrupted run. Resume with as many processes to get the same."
    )
    return None


def _rank_and_ranks() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
