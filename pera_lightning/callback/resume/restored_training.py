"""The states of optimizers and schedules in a checkpoint, looked at before any of them is taken over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn

from pera_lightning.callback.resume.restored_optimizers import held_problem
from pera_lightning.callback.resume.restored_schedulers import scheduler_problem
from pera_lightning.errors import CheckpointError, shown

EARLIER = "go on from an earlier one; `consolidate` makes a folder of its adapter alone"


def check_training_state(trainer: pl.Trainer, path: str | Path) -> None:
    """Look at what the Trainer is about to take over for a fit.

    Args:
        trainer: Before its `restore_training_state`.
        path: The checkpoint.

    Raises:
        CheckpointError: The optimizers or schedulers of the run cannot go on with it.
    """
    held: Mapping[str, Any] = trainer._checkpoint_connector._loaded_checkpoint
    if trainer.state.fn != TrainerFn.FITTING:
        return
    # Strategies that load states themselves have done so; where there are none Lightning says so.
    loads = type(trainer.strategy).load_optimizer_state_dict is Strategy.load_optimizer_state_dict
    if loads and "optimizer_states" in held:
        refuse_optimizer(optimizers_problem(trainer.optimizers, held["optimizer_states"]), path)
    problem = None
    # It puts a scheduler of its own in place of the run's when its time has come.
    averages = any(isinstance(callback, StochasticWeightAveraging) for callback in getattr(trainer, "callbacks", ()))
    if "lr_schedulers" in held and not averages:
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        problem = schedulers_problem(schedulers, held["lr_schedulers"])
    if problem is not None:
        raise CheckpointError(
            "The learning rate scheduler cannot go on from the checkpoint.",
            got=f"{path}: {problem}",
            expected="a whole file of a run with the same schedulers",
            fix=f"make them as in the run that wrote it; if it is damaged, {EARLIER}",
        )


def optimizers_problem(optimizers: Sequence[Any], states: Any) -> str | None:
    """In words, why optimizers cannot go on with the states in a checkpoint; None if they can."""
    return _problem("optimizers", optimizers, states, held_problem)


def schedulers_problem(schedulers: Sequence[Any], states: Any) -> str | None:
    """The same of schedulers."""
    return _problem("schedulers", schedulers, states, scheduler_problem)


def _problem(what: str, own: Sequence[Any], states: Any, look: Callable[[Any, Any], str | None]) -> str | None:
    if not isinstance(states, list) or len(states) != len(own):
        found = f"{len(states)} states" if isinstance(states, list) else shown(states)
        return f"it holds {found} of {what}, and the run has {len(own)}"
    return next(filter(None, map(look, own, states)), None)


def refuse_optimizer(problem: str | None, path: str | Path) -> None:
    """Raise CheckpointError for what is said against the state of an optimizer; None is nothing."""
    if problem is not None:
        raise CheckpointError(
            "The optimizer cannot go on from the checkpoint.",
            got=f"{path}: {problem}",
            expected="a whole file of a run with the same optimizers, made with the same options",
            fix=f"make them as in the run that wrote it; if it is damaged, {EARLIER}",
        )
