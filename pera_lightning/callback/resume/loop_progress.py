"""The progress of Lightning's loops in a checkpoint, put right where a run would not go on as it should.

Lightning goes on wrongly from two kinds of checkpoints:

- An epoch's last batch is done. From some of its states, with `max_steps` or where no validation follows, one more
  batch of the epoch that is over is trained, or the iterator over the data is made twice; a loader that keeps its own
  state skips the next epoch (its state says that everything was read) or loses its random numbers.
- A validation was to follow the batch. It would be left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from torch.utils._pytree import tree_leaves

from pera_lightning.run_log.messages import rank_zero_warn

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
    if not _is_after_batch(batches) or not validation_follows(trainer):
        return
    for counts in (batches["total"], batches["current"]):
        _complete(counts)
    # A validation whose first batch was not processed: the one state from which Lightning runs it.
    fit_loop[_VALIDATION]["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
    _reset(fit_loop[_VALIDATION]["current"])
    fit_loop[_VALIDATION]["is_last_batch"] = False


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether the Trainer validates after the present batch; by the clock it never does, which nobody can foresee."""
    epochs = trainer.check_val_every_n_epoch
    if not trainer.enable_validation or (epochs is not None and (trainer.current_epoch + 1) % epochs):
        return False
    if trainer.val_check_batch is None:
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
    """Whether in a checkpoint's loops the epoch was at its end, or at the end of a last batch without validation."""
    batches, epochs = fit_loop[_BATCHES], fit_loop["epoch_progress"]["total"]
    if not batches["is_last_batch"] or batches["current"]["processed"] != batches["current"]["ready"]:
        return False
    return _is_after_batch(batches) or bool(epochs["processed"] == epochs["started"])


def _is_after_batch(batches: dict[str, Any]) -> bool:
    """Whether a batch was processed, and what follows it was still to come."""
    return bool(batches["total"]["completed"] == batches["total"]["processed"] - 1)


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


def begin_epoch(
    trainer: pl.Trainer, states: list[dict[str, Any]], restore_random_states: Callable[[], None], *, again: bool
) -> None:
    """Begin the first epoch of a run that resumes behind a finished one; called in `on_train_start`.

    Args:
        trainer: The Trainer, whose iterator over the training data is made already.
        states: What `begin_next_epoch` returned.
        restore_random_states: Called before the iterator is made anew, which draws random numbers.
        again: Whether the iterator was made with other random states, so that a new one is needed in any case.
    """
    # With max_steps, Lightning takes every resumed epoch for one that had begun.
    trainer.fit_loop.epoch_loop.restarting = False
    if states:
        _load(stateful_loaders(trainer), states)
    if states or again:
        restart_iterator(trainer, restore_random_states)


def _load(loaders: list[Any], states: list[dict[str, Any]]) -> None:
    # A loader with another number of workers, or another loader, keeps a state of another form.
    if [loader.state_dict().keys() for loader in loaders] != [state.keys() for state in states]:
        rank_zero_warn(
            "The training data is read by other loaders (or another number of workers) than in the run that wrote the "
            "checkpoint: the order of the data will differ from that of an uninterrupted run."
        )
        return
    for loader, state in zip(loaders, states, strict=True):
        loader.load_state_dict(state)
        # The iterator that takes the state is the one of the epoch that is over; some samplers (torchdata's
        # StatefulDistributedSampler) take it only when they are asked for a row.
        next(iter(loader), None)


def stateful_loaders(trainer: pl.Trainer) -> list[Any]:
    """The training loaders that keep their own state."""
    return [loader for loader in tree_leaves(trainer.train_dataloader) if hasattr(loader, "load_state_dict")]


def restart_iterator(trainer: pl.Trainer, restore_random_states: Callable[[], None]) -> None:
    """Make the iterator over the training data anew, with the same random numbers."""
    restore_random_states()
    fetcher = trainer.fit_loop._data_fetcher
    if fetcher is not None:
        iter(fetcher)


def go_on_within_epoch(trainer: pl.Trainer, restore_random_states: Callable[[], None], *, owed: bool) -> None:
    """Go on behind a batch; called in `on_train_start`.

    Args:
        trainer: The Trainer, which has loaded its loops.
        restore_random_states: Called before the iterator is made anew, where that is needed.
        owed: Whether the checkpoint owes a validation.
    """
    loop = trainer.fit_loop
    if owed:
        # The batch that never was must not be counted, or the next checkpoint would seem to owe a validation too.
        loop.epoch_loop.val_loop.batch_progress.total.reset()
    if validation_follows(trainer):
        return
    # The checkpoint is one behind a validation, or before it, and now there is none.
    if owed:
        loop.epoch_loop._batches_that_stepped += 1
    if trainer.is_last_batch:
        loop.epoch_progress.increment_processed()
        loop.epoch_progress.increment_completed()
        loop.epoch_loop.batch_progress.reset_on_run()
        loop.reset_restart_stage()
        loop.epoch_loop.restarting = False
        if stateful_loaders(trainer):
            restart_iterator(trainer, restore_random_states)
