"""What a model card tells of the run behind an adapter."""

from __future__ import annotations

import math

import lightning.pytorch as pl

_METRICS = 12
"""Of more metrics, a card would be unreadable."""


def run_summary(trainer: pl.Trainer, origin: str) -> dict[str, str]:
    """Rows of the card: steps, data, which weights, and the last metrics.

    Args:
        trainer: The Trainer at the end of its fit.
        origin: Step and checkpoint that the adapter is of.
    """
    rows = {"trained": f"{_epochs(trainer)}{trainer.global_step} steps"}
    data = getattr(getattr(trainer, "datamodule", None), "train_source", None)
    if data:
        rows["data"] = data
    rows["weights"] = f"of {origin}"
    metrics = sorted(trainer.callback_metrics.items())[:_METRICS]
    return rows | {f"{name}, last": f"{float(value):.4g}" for name, value in metrics}


def _epochs(trainer: pl.Trainer) -> str:
    """Passes through the data, also begun ones: Lightning counts those as whole."""
    batches, in_epoch = trainer.fit_loop.epoch_loop.total_batch_idx + 1, trainer.num_training_batches
    return f"{batches / in_epoch:.3g} epochs, " if math.isfinite(in_epoch) and in_epoch > 0 else ""
