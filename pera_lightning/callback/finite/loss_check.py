"""A run stops at a loss that is not finite."""

from __future__ import annotations

import math
from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pera_lightning.callback.finite.diverged import diverged
from pera_lightning.callback.finite.late_number import LateNumber, LateNumbers

_KEPT = 64
"""Losses that a message can tell of."""


class _Noted(NamedTuple):
    flag: LateNumber
    trainer: Any
    step: int
    epoch: int


class LossCheck:
    """Stops training before a loss that is not finite reaches the weights.

    On a CPU before the backward pass. On a GPU, which that would make wait for Python in every step, before the
    optimizer's step: the loss was known when the forward pass ended, and the GPU still has the backward pass to do
    while Python looks at it. So the check costs the GPU nothing and comes in time.

    Of several processes none stops alone, as the others would wait for it: what one sees it keeps until the step, when
    the gradients of all tell it to all (`GradientCheck`).
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """After a run that was broken off."""
        self._noted: _Noted | None = None
        # What the module is given now.
        self.batch: object = None
        # Of this process, since the last step: whether any was bad, and the losses themselves.
        self.seen: Tensor | None = None
        self._losses: deque[LateNumbers] = deque(maxlen=_KEPT)

    def note(self, trainer: Any, loss: Tensor) -> None:
        """Before a backward pass.

        Args:
            trainer: The Trainer.
            loss: The loss; scaled where the Trainer has a GradScaler.

        Raises:
            TrainingError: This loss is not finite (on a GPU: the one before, if the optimizer made no step since).
        """
        self.look()
        loss = loss.detach()
        # A scaled loss may become infinite; its step is left out then.
        bad = loss.isnan() if grad_scaler(trainer) else ~loss.isfinite()
        self._losses.append(LateNumbers(loss if loss.numel() == 1 else bad.sum() / loss.numel()))
        flag = bad.any().float()
        if getattr(trainer, "world_size", 1) > 1:
            self.seen = flag if self.seen is None else torch.maximum(flag, self.seen)
            return
        self._noted = _Noted(LateNumber(flag), trainer, trainer.global_step, trainer.current_epoch)
        if not self._noted.flag.late:
            self.look()

    def look(self) -> None:
        """Before the weights change, a checkpoint is written, or the training ends.

        Raises:
            TrainingError: The last loss is not finite.
        """
        noted, self._noted = self._noted, None
        if noted is not None and noted.flag.read():
            place = f"{self.last()} at step {noted.step}, epoch {noted.epoch}"
            raise diverged(noted.trainer, "The loss is", place, batch=self.batch)

    def last(self) -> str:
        """The first bad loss of this process since the last step, or its last one, in words."""
        losses = [value for numbers in self._losses for value in numbers.read_all()]
        bad = [value for value in losses if not math.isfinite(value)]
        return f"loss {(bad or losses)[-1]}" if losses else "an unknown loss"


def grad_scaler(trainer: Any) -> Any:
    """The Trainer's GradScaler, or None."""
    return getattr(getattr(trainer, "precision_plugin", None), "scaler", None)
