"""Callbacks that cannot live beside adapters over a frozen base."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelPruning

from pera_lightning.errors import TrainingError


def refuse_conflicting_callbacks(trainer: pl.Trainer) -> None:
    """Raise if a callback would change weights that adapter-only checkpoints do not hold.

    Raises:
        TrainingError: ModelPruning is among the callbacks.
    """
    if any(isinstance(callback, ModelPruning) for callback in getattr(trainer, "callbacks", ())):
        raise TrainingError(
            "ModelPruning would change the frozen base, which checkpoints do not hold.",
            got="ModelPruning beside PeraCallback",
            expected="a base that stays as it is",
            fix="prune and save the model first, then train the adapter on the pruned one; or merge the trained "
            "adapter and prune the merged model",
        )
