"""Modules whose gradients are not finite while their losses are, and fits that stop at it."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from pera_lightning import PeraCallback, load_adapter
from pera_lightning.checkpoint.training.training_checkpoint import read_checkpoint
from pera_lightning.errors import TrainingError
from pera_lightning.injection import adapted_layers
from tests.support.callback_fits import make_trainer
from tests.support.models import Regressor


class _Spoil(torch.autograd.Function):
    """Adds 0; the gradient of `parameter` becomes `bad` in its first place."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, parameter: Tensor, bad: float) -> Tensor:
        ctx.like, ctx.bad = parameter, bad
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        spoiled = torch.zeros_like(ctx.like)
        spoiled.view(-1)[0] = ctx.bad
        return gradient, spoiled, None


class Spoiled(Regressor):
    """Spoils the gradient of its first layer's B in the batches `at` of the run.

    Args:
        at: Numbers of batches, from 0.
        bad: What stands in the gradient.
        optimizer: Class of the optimizer.
    """

    def __init__(
        self,
        at: Collection[int],
        bad: float = math.nan,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        **options: Any,
    ) -> None:
        super().__init__()
        self.at, self.bad, self.kind, self.options = at, bad, optimizer, {"lr": 0.02, **options}
        self.batches = 0
        self.seen: list[dict[str, Tensor]] = []

    def spoiled(self, loss: Tensor) -> Tensor:
        """The loss, in whose backward pass the gradient is spoiled if it is time."""
        self.seen.append({name: value.detach().clone() for name, value in self.named_parameters()})
        now = self.batches in self.at
        self.batches += 1
        first = next(layer for _, layer in adapted_layers(self))
        return _Spoil.apply(loss, first.pera_B, self.bad) if now else loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.spoiled(super().training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.kind((value for value in self.parameters() if value.requires_grad), **self.options)


def fit(folder: Path, module: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    torch.manual_seed(1)
    pera = PeraCallback(rank=2, adapter_dir=str(folder / "adapter"), **options.pop("pera", {}))
    trainer = make_trainer(folder, pera, *callbacks, **{"limit_val_batches": 0, **options})
    trainer.fit(module)
    return trainer


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(folder: Path, module: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> str:
    """The message of a fit that stops; nothing it leaves behind holds NaN, and the adapter there is as it was."""
    good = Regressor()
    fit(folder, good, enable_checkpointing=False)
    before = content(folder / "adapter")
    with pytest.raises(TrainingError) as caught:
        fit(folder, module, *callbacks, **options)
    assert content(folder / "adapter") == before
    load_adapter(good, folder / "adapter")
    for path in folder.rglob("*.ckpt"):
        assert all(value.isfinite().all() for value in read_checkpoint(path).tensors().values())
    return str(caught.value)
