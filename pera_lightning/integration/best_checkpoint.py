"""The adapter of the best checkpoint of a run."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from pera_lightning.checkpoint.comparison import shapes
from pera_lightning.checkpoint.training_checkpoint import read_checkpoint
from pera_lightning.errors import CheckpointError


def tensors_of(checkpoint: Path, prefix: str, wanted: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The adapter in a checkpoint; None, with a warning, if it cannot be read or is of another run."""
    try:
        held = read_checkpoint(checkpoint)
    except CheckpointError as error:
        rank_zero_warn(
            f"The adapter folder gets the adapter of the last step instead of the best checkpoint's. {error}"
        )
        return None
    if {key: held.shapes.get(prefix + key) for key in wanted} != shapes(wanted):
        rank_zero_warn(
            f"The best checkpoint {checkpoint} holds another adapter (is the ModelCheckpoint of an earlier run used "
            "again?); the adapter folder gets the adapter of the last step instead."
        )
        return None
    tensors = held.tensors()
    return {key: tensors[prefix + key] for key in wanted}


def best_checkpoint(trainer: pl.Trainer) -> Path | None:
    """File or folder of the best checkpoint, if a ModelCheckpoint monitors a metric and has saved one."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            path = Path(callback.best_model_path)
            if path.exists():
                return path
    return None
