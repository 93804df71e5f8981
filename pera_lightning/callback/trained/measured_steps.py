"""At which steps a validation computed the metrics that checkpoints are chosen by."""

from __future__ import annotations

import dataclasses

import lightning.pytorch as pl
from torch import Tensor

from pera_lightning.callback.trained.best_checkpoint import WrittenWeights, monitoring
from pera_lightning.run_log.messages import rank_zero_warn


class StepsOfMetrics:
    """Remembers the values of monitored metrics by the steps of their validations.

    A ModelCheckpoint that saves between validations (`every_n_train_steps`) takes the metric of the last one for that
    of the weights it writes.
    """

    def __init__(self) -> None:
        self._before: dict[str, Tensor | None] = {}
        self._found: dict[tuple[str, float], set[int]] = {}

    def on_evaluation_start(self, trainer: pl.Trainer) -> None:
        """Note which values are there already."""
        names = {str(callback.monitor) for callback in monitoring(trainer)}
        # Kept, so that no other one comes to the same place in memory.
        self._before = {name: trainer.callback_metrics.get(name) for name in names}

    def on_validation_end(self, trainer: pl.Trainer) -> None:
        """Note which are new."""
        if trainer.sanity_checking:
            return
        for name, before in self._before.items():
            value = trainer.callback_metrics.get(name)
            if value is not None and value is not before:
                self._found.setdefault((name, float(value)), set()).add(trainer.global_step)

    def tell(self, weights: WrittenWeights) -> WrittenWeights:
        """Say in a warning, and in the origin of the weights, if others were measured than those that are written."""
        measured = self._found.get(weights.score, set()) if weights.score else set()
        if not measured or weights.step is None or weights.step in measured:
            return weights
        steps = ", ".join(map(str, sorted(measured)))
        words = f"{weights.score[0]} was computed at step {steps}, not for these weights"  # type: ignore[index]
        rank_zero_warn(
            f"PERA: the adapter folder gets {weights.origin}: {words}. Let ModelCheckpoint save when a validation ends "
            "(without every_n_train_steps and train_time_interval) where the best is to be the best measured."
        )
        return dataclasses.replace(weights, origin=f"{weights.origin}: {words}")
