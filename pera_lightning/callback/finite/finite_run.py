"""That a run's losses, gradients, weights and checkpoints are finite."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import Tensor

from pera_lightning.callback.finite.diverged import HALF_CURES, anywhere, diverged, infinite_moments, infinite_weights
from pera_lightning.callback.finite.finite_checkpoints import guard_checkpoints
from pera_lightning.callback.finite.gradient_check import GradientCheck
from pera_lightning.callback.finite.loss_check import LossCheck
from pera_lightning.checkpoint.finite_values import describe_infinite
from pera_lightning.run_log.messages import rank_zero_warn


class FiniteRun:
    """What `PeraCallback` asks at each moment of a fit."""

    def __init__(self) -> None:
        self._losses = LossCheck()
        self._gradients = GradientCheck(self._losses)

    def on_train_start(self, trainer: pl.Trainer) -> None:
        """Begin to look."""
        self._gradients.watch(trainer)
        guard_checkpoints(trainer)

    def on_train_batch(self, batch: object) -> None:
        """Note what the module is given, for a message; None when it is done with it."""
        self._losses.batch = batch

    def on_before_backward(self, trainer: pl.Trainer, loss: Tensor) -> None:
        """Note a loss.

        Raises:
            TrainingError: See `LossCheck` and `GradientCheck`.
        """
        self._gradients.look()
        self._losses.note(trainer, loss)

    def look(self) -> None:
        """Before a step or a checkpoint.

        Raises:
            TrainingError: What was noted last is not finite.
        """
        self._gradients.look()
        self._losses.look()

    def on_fit_end(self, trainer: pl.Trainer) -> None:
        """Before the adapter is written; collective.

        Raises:
            TrainingError: The last loss, the last gradients or the weights are not finite.
        """
        self.look()
        self._gradients.skipped.tell()
        weights = infinite_weights(trainer)
        if anywhere(trainer, found=bool(weights)):
            raise diverged(trainer, "The trained weights are", f"the end of the fit, step {trainer.global_step}")
        moments = infinite_moments(trainer)
        if moments:
            rank_zero_warn(
                f"PERA: the optimizer holds {describe_infinite(moments)} that are not finite; the parameters they "
                f"belong to are trained no more. To mend it, {HALF_CURES}."
            )

    def forget(self) -> None:
        """After a run, or one that was broken off."""
        self._losses.forget()
        self._gradients.forget()
