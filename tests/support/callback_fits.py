"""Fits with a PeraCallback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from pera_lightning import PeraCallback
from tests.support.models import Regressor
from tests.support.trainers import cpu_trainer


def make_trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return cpu_trainer(folder, *callbacks, **{"log_every_n_steps": 1, "num_sanity_val_steps": 0, **options})


def best_checkpoint(folder: Path, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder / "checkpoints", monitor="val_loss", **options)


def trained_regressor(folder: Path) -> tuple[pl.Trainer, Regressor, Path]:
    """A fit with a best checkpoint."""
    torch.manual_seed(0)
    checkpoint = best_checkpoint(folder, save_last=True)
    module = Regressor()
    trainer = make_trainer(folder, PeraCallback(rank=2), checkpoint)
    trainer.fit(module)
    return trainer, module, Path(checkpoint.best_model_path)
