"""Adapters under Lightning's `DeepSpeedStrategy`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DeepSpeedStrategy

from pera_lightning.checkpoint import install_state_hooks


def restore_hooks_before_loading(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Have the hooks of the module's state there when the next checkpoint is loaded.

    To validate, test and predict, the strategy takes all hooks off the module, and loads the checkpoint right after
    that; so a function is put in the way of its `load_checkpoint`, for one call. `stop_checking` takes it away.

    Args:
        trainer: The Trainer; under other strategies nothing is done.
        pl_module: The module with the adapters.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DeepSpeedStrategy):
        return

    def load_checkpoint(checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        del strategy.__dict__["load_checkpoint"]
        install_state_hooks(pl_module)
        return strategy.load_checkpoint(checkpoint_path, weights_only=weights_only)

    strategy.__dict__["load_checkpoint"] = load_checkpoint
