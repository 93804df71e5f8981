"""Callbacks that cannot live beside adapters over a frozen base."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import ModelPruning, StochasticWeightAveraging

from pera_lightning.errors import TrainingError
from pera_lightning.models.parallel.strategy_kind import kind_of

# WeightAveraging is not in older versions.
_AVERAGING: Any = (StochasticWeightAveraging, getattr(lightning_callbacks, "WeightAveraging", ()))


def refuse_conflicting_callbacks(trainer: pl.Trainer) -> None:
    """Raise if a callback would change weights that adapter-only checkpoints do not hold, or cannot work.

    Args:
        trainer: The Trainer with its callbacks.

    Raises:
        TrainingError: ModelPruning is among the callbacks, or one that averages weights where modules are sharded.
    """
    callbacks = getattr(trainer, "callbacks", ())
    averaging = [part for part in callbacks if isinstance(part, _AVERAGING)]
    if averaging and kind_of(trainer.strategy).shards_base:
        raise TrainingError(
            "Weights of a sharded module cannot be averaged.",
            got=f"{type(averaging[0]).__name__} under {type(trainer.strategy).__name__}",
            expected="no averaging, or a strategy that leaves modules whole",
            fix="leave the callback out, or use strategy 'ddp'",
        )
    if any(isinstance(callback, ModelPruning) for callback in callbacks):
        raise TrainingError(
            "ModelPruning would change the frozen base, which checkpoints do not hold.",
            got="ModelPruning beside PeraCallback",
            expected="a base that stays as it is",
            fix="prune and save the model first, then train the adapter on the pruned one; or merge the trained "
            "adapter and prune the merged model",
        )
