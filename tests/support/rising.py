"""Fits whose metric gets worse, and what their adapter folders hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from pera_lightning import load_adapter
from tests.support.models import Regressor


class Rising(Regressor):
    """Whose metric gets worse from epoch to epoch, so that the first checkpoint is the best."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.save_hyperparameters()

    def on_validation_epoch_end(self) -> None:
        self.log("worse", float(self.trainer.global_step))


def rising(folder: Path, **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder / "checkpoints", **{"monitor": "worse", "save_last": True, **options})


def factors(folder: Path) -> dict[str, torch.Tensor]:
    loaded = Regressor()
    load_adapter(loaded, folder)
    return {name: value for name, value in loaded.named_parameters() if "pera" in name}


def is_of(folder: Path, module: torch.nn.Module | str) -> bool:
    """Whether a folder holds the adapter of a module, or of a checkpoint."""
    if isinstance(module, str):
        wanted = torch.load(module, weights_only=False)["state_dict"]
    else:
        wanted = dict(module.named_parameters())
    return all(torch.equal(value, wanted[name]) for name, value in factors(folder).items())


def weights_row(folder: Path) -> str:
    return next(line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| weights |"))
