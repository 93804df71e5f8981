"""The adapter of the best checkpoint of a run."""

from __future__ import annotations

import pickle
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from pera_lightning.checkpoint.comparison import shapes


def tensors_of(checkpoint: Path, prefix: str, wanted: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The adapter in a checkpoint; None, with a warning, if it cannot be read or is of another run."""
    try:
        stored = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    except pickle.UnpicklingError:
        rank_zero_warn(
            f"The best checkpoint {checkpoint} holds more than tensors and plain values (hyperparameters that are "
            "objects?) and is not unpickled; the adapter folder gets the adapter of the last step instead."
        )
        return None
    tensors = {key: stored[prefix + key] for key in wanted if prefix + key in stored}
    if shapes(tensors) != shapes(wanted):
        rank_zero_warn(
            f"The best checkpoint {checkpoint} holds another adapter (is the ModelCheckpoint of an earlier run used "
            "again?); the adapter folder gets the adapter of the last step instead."
        )
        return None
    return tensors


def best_checkpoint(trainer: pl.Trainer) -> Path | None:
    """File of the best checkpoint, if a ModelCheckpoint monitors a metric and has saved one."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_path:
            path = Path(callback.best_model_path)
            if path.is_file():
                return path
    return None
