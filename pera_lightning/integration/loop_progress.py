"""The progress of Lightning's loops in a checkpoint, put right where a run would not go on as it should.

Lightning goes on wrongly from two kinds of checkpoints:

- An epoch's last batch is done. Four moments (after the batch, after the validation, at the end of the epoch, behind
  it) leave four states of the loops. From some, with `max_steps`, one more batch of the epoch that is over is trained,
  or the iterator over the data is made twice; a loader that keeps its own state skips the next epoch (its state says
  that everything was read) or loses its random numbers. All of them mean the same: the next epoch begins.
- A validation was to follow the batch. It would be left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from torch.utils._pytree import tree_leaves

# In the state of a fit loop, `checkpoint["loops"]["fit_loop"]`.
_BATCHES = "epoch_loop.batch_progress"
_VALIDATION = "epoch_loop.val_loop.batch_progress"


def owe_validation(trainer: pl.Trainer, fit_loop: dict[str, Any]) -> None:
    """Where a validation follows the batch after which a checkpoint is written, let a resumed run begin with it.

    Args:
        trainer: The Trainer that writes the checkpoint.
        fit_loop: `checkpoint["loops"]["fit_loop"]`, changed in place.
    """
    batches = fit_loop[_BATCHES]
    after_batch = batches["total"]["completed"] == batches["total"]["processed"] - 1
    if not after_batch or not _validation_follows(trainer):
        return
    for counts in (batches["total"], batches["current"]):
        _complete(counts)
    # A validation whose first batch was not processed: the one state from which Lightning runs it.
    fit_loop[_VALIDATION]["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    _reset(fit_loop[_VALIDATION]["current"])
    fit_loop[_VALIDATION]["is_last_batch"] = False


def _validation_follows(trainer: pl.Trainer) -> bool:
    epochs = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or (epochs is not None and (trainer.current_epoch + 1) % epochs):
        return False
    if trainer.val_check_batch is None:  # By the clock.
        return False
    if trainer.val_check_batch == float("inf"):
        return bool(trainer.is_last_batch)
    batch = trainer.fit_loop.total_batch_idx if epochs is None else trainer.fit_loop.batch_idx
    return (batch + 1) % trainer.val_check_batch == 0


def owes_validation(fit_loop: dict[str, Any]) -> bool:
    """Whether a checkpoint's loops go on with a validation."""
    counts = fit_loop[_VALIDATION]["total"]
    return bool(counts["processed"] == counts["started"] - 1)


def is_finished_epoch(fit_loop: dict[str, Any]) -> bool:
    """Whether nothing of the epoch is left in a checkpoint's loops, neither a batch nor a validation."""
    batches = fit_loop[_BATCHES]
    done = batches["current"]["processed"] == batches["current"]["ready"]
    return bool(batches["is_last_batch"]) and done and not owes_validation(fit_loop)


def begin_next_epoch(fit_loop: dict[str, Any]) -> list[dict[str, Any]]:
    """Turn the state of a finished epoch into the one at the beginning of the next.

    Args:
        fit_loop: `checkpoint["loops"]["fit_loop"]`, changed in place.

    Returns:
        The states of the loaders that keep one, taken out of `fit_loop`: for `begin_epoch`.
    """
    epochs = fit_loop["epoch_progress"]
    # Within the epoch loop, checkpoints are written before the step that the loggers see is counted.
    if epochs["total"]["processed"] < epochs["total"]["started"]:
        fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    for counts in (*epochs.values(), fit_loop[_BATCHES]["total"]):
        _complete(counts)
    optimizer = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for progress in (fit_loop[_BATCHES], fit_loop["epoch_loop.scheduler_progress"], *optimizer.values()):
        _reset(progress["current"])
    _reset(fit_loop[_VALIDATION]["total"])
    fit_loop[_BATCHES]["is_last_batch"] = False
    states: list[dict[str, Any]] = fit_loop["state_dict"].pop("combined_loader", [])
    return states


def _complete(counts: dict[str, int]) -> None:
    counts.update(dict.fromkeys(counts, counts["ready"]))


def _reset(counts: dict[str, int]) -> None:
    counts.update(dict.fromkeys(counts, 0))


def begin_epoch(trainer: pl.Trainer, states: list[dict[str, Any]], restore_random_states: Callable[[], None]) -> None:
    """Begin the first epoch of a run that resumes behind a finished one; called in `on_train_start`.

    Args:
        trainer: The Trainer, whose iterator over the training data is made already.
        states: What `begin_next_epoch` returned.
        restore_random_states: Called before the iterator is made anew, which draws random numbers.
    """
    # With max_steps, Lightning takes every resumed epoch for one that had begun.
    trainer.fit_loop.epoch_loop.restarting = False
    fetcher = trainer.fit_loop._data_fetcher
    if not states or fetcher is None:
        return
    loaders = [loader for loader in tree_leaves(trainer.train_dataloader) if hasattr(loader, "load_state_dict")]
    for loader, state in zip(loaders, states, strict=True):
        loader.load_state_dict(state)
        # The iterator that takes the state is the one of the epoch that is over.
        iter(loader)
    restore_random_states()
    iter(fetcher)


def begin_validation(trainer: pl.Trainer) -> None:
    """Go on with the validation that a checkpoint owes; called in `on_train_start`."""
    # The batch that never was must not be counted, or the next checkpoint would seem to owe a validation too.
    trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset()
