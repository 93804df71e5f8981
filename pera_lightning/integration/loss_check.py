"""A run stops at a loss that is not finite."""

from __future__ import annotations

import math
from typing import NamedTuple

import lightning.pytorch as pl
from torch import Tensor

from pera_lightning.errors import TrainingError
from pera_lightning.integration.late_number import LateNumber


class _Noted(NamedTuple):
    loss: LateNumber
    step: int
    epoch: int


class LossCheck:
    """Stops training before a loss that is not finite reaches the weights.

    On a CPU before the backward pass. On a GPU, which that would make wait for Python in every step, before the
    optimizer's step: the loss was known when the forward pass ended, and the GPU still has the backward pass to do
    while Python looks at it. So the check costs the GPU nothing and comes in time.

    Under several processes each one looks at its own loss.
    """

    def __init__(self) -> None:
        self._noted: _Noted | None = None

    def note(self, trainer: pl.Trainer, loss: Tensor) -> None:
        """Before a backward pass.

        Raises:
            TrainingError: This loss is not finite (on a GPU: the one before, if the optimizer made no step since).
        """
        self.look()
        number = LateNumber(loss if loss.numel() == 1 else loss.detach().float().mean())
        self._noted = _Noted(number, trainer.global_step, trainer.current_epoch)
        if not number.late:
            self.look()

    def look(self) -> None:
        """Before the weights change, a checkpoint is written, or the training ends.

        Raises:
            TrainingError: The last loss is not finite.
        """
        noted, self._noted = self._noted, None
        if noted is None:
            return
        loss = noted.loss.read()
        if not math.isfinite(loss):
            raise TrainingError(
                "The loss is not finite; training stops before the weights take harm.",
                got=f"loss {loss} at step {noted.step}, epoch {noted.epoch}",
                expected="a finite loss",
                fix="lower the learning rate or coefficient_scale, warm up longer, clip gradients "
                "(Trainer(gradient_clip_val=1.0)), or use bf16 instead of fp16; the last checkpoint is good",
            )

    def forget(self) -> None:
        """After a run that was broken off."""
        self._noted = None
