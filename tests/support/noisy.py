"""A run in which every source of randomness matters, to see whether an interrupted one goes on the same."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pera_lightning import PeraCallback
from tests.support.models import Regressor
from tests.support.trainers import SAFE_LOADING

BATCHES = 6


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Rows that are augmented by noise when they are read."""

    def __init__(self, noise: float = 0.1) -> None:
        self.noise = noise
        generator = torch.Generator().manual_seed(3)
        self.x, self.y = torch.randn(48, 6, generator=generator), torch.randn(48, 2, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.x[row] + self.noise * torch.randn(6), self.y[row]


class Noisy(Regressor):
    """Dropout, augmented and shuffled data, draws from numpy and `random`, a schedule; writes everything down."""

    def __init__(self, loader: Any = DataLoader, workers: int = 0, noise: float = 0.1) -> None:
        super().__init__()
        self.loader = loader
        self.workers = workers
        self.rows = Rows(noise)
        self.dropout = nn.Dropout(0.2)
        self.losses: dict[tuple[int, int], Tensor] = {}
        self.validations: dict[tuple[int, int, int], Tensor] = {}

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(
            self.net(self.dropout(x)) * random.uniform(0.9, 1.1) + np.random.normal(0, 0.1), y
        )
        self.losses[self.current_epoch, batch_idx] = loss.detach()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x + 0.1 * torch.randn_like(x)), y)
        self.validations[self.current_epoch, self.global_step, batch_idx] = loss
        self.log("val_loss", loss)

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)]

    def train_dataloader(self) -> DataLoader:
        return self.loader(self.rows, batch_size=8, shuffle=True, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        return self.loader(self.rows, batch_size=24)


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class SaveAfter(pl.Callback):
    """Writes one checkpoint more, after the given batch of the first epoch."""

    def __init__(self, batch: int, path: Path) -> None:
        self.batch = batch
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (0, self.batch):
            trainer.save_checkpoint(self.path)


def train(folder: Path, module: Noisy, seed: int, ckpt_path: str | Path | None = None, **options: Any) -> pl.Trainer:
    """Train with checkpoints in `folder`.

    Args:
        folder: Where everything is written.
        module: What is trained.
        seed: Of all generators.
        ckpt_path: Checkpoint to go on from.
        options: `saving` for the ModelCheckpoint, `save_after` a batch, `beside` it other callbacks than adapters, the
            rest for the Trainer.
    """
    seed_everything(seed)
    saving = {"save_top_k": -1, **options.pop("saving", {})}
    adapters = PeraCallback(2, dropout=0.1, coefficient_scale="auto")
    callbacks: list[pl.Callback] = list(options.pop("beside", [adapters]))
    callbacks.append(ModelCheckpoint(folder, filename="{step}", **saving))
    if "save_after" in options:
        callbacks.append(SaveAfter(options.pop("save_after"), folder / "extra.ckpt"))
    settings: dict[str, Any] = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "max_epochs": 3,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    trainer = pl.Trainer(callbacks=callbacks, **{**settings, **options})
    trainer.fit(module, ckpt_path=ckpt_path, **SAFE_LOADING)
    return trainer
