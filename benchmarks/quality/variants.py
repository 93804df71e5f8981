"""Forms and starts of PERA that `docs/RESEARCH.md` tries; as callbacks, because none of them is an option."""

from __future__ import annotations

import dataclasses
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from pera_lightning.injection import adapted_layers
from pera_lightning.layers import PeraLinear


def rms(values: Tensor) -> float:
    """Root mean square of the entries."""
    return values.detach().square().mean().sqrt().item()


class FollowingScale(Callback):
    """Products as large as the factors' own entries throughout training, not only at its start.

    Before every step `coefficient_scale` of a layer becomes 1 / RMS(A), or 1 / (RMS(A) RMS(B)), with which the
    expanded columns of B have the RMS of the plain ones too. No gradient passes through the scale. For order 2.

    Args:
        of_both: Whether it follows B too, from the first step at which B is not zero.
    """

    def __init__(self, of_both: bool = False) -> None:
        self.of_both = of_both

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        for _, layer in adapted_layers(pl_module):
            layer.config = dataclasses.replace(layer.config, coefficient_scale=self.scale(layer, trainer))

    def scale(self, layer: PeraLinear, trainer: pl.Trainer) -> float:
        """That of a layer before a step."""
        return 1 / (rms(layer.pera_A) * ((rms(layer.pera_B) or 1.0) if self.of_both else 1.0))


class DrawnCoefficients(Callback):
    """h starts at random values around 0 instead of at 0; the model still starts as its base, since B is 0.

    Args:
        std: Their standard deviation.
    """

    def __init__(self, std: float) -> None:
        self.std = std

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for _, layer in adapted_layers(pl_module):
            if layer.pera_h is not None:
                torch.nn.init.normal_(layer.pera_h, std=self.std)


class NaturalScale(Callback):
    """A starts with an RMS of 1, so that its products do too."""

    @override
    @torch.no_grad()
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for _, layer in adapted_layers(pl_module):
            layer.pera_A.div_(rms(layer.pera_A))


class PenalisedCoefficients(Callback):
    """Adds `penalty / 2 * |h|^2` to the loss.

    Args:
        penalty: Its factor.
    """

    def __init__(self, penalty: float) -> None:
        self.penalty = penalty

    @override
    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        for _, layer in adapted_layers(pl_module):
            h = layer.pera_h
            if h is not None and h.grad is not None:
                h.grad.add_(h, alpha=self.penalty)
