"""Adapter-only checkpoints, under Lightning's `DeepSpeedStrategy` too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch.serialization import safe_globals

from pera_lightning.callback.strategies.checkpoint_contents import keep_base_out
from pera_lightning.callback.strategies.checkpoint_objects import plain_values_alone
from pera_lightning.callback.strategies.model_parallel import stop_checking
from pera_lightning.checkpoint import install_state_hooks


def keep_adapter_alone(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Install the hooks of the module's state, and let them be there when a checkpoint is loaded.

    What else goes into a checkpoint is looked through when one is written (`keep_base_out`).

    To validate, test and predict, DeepSpeedStrategy takes all hooks off the module, and loads the checkpoint right
    after that; so a function is put in the way of its `load_checkpoint`, for one call. `stop_checking` takes it away.

    Args:
        trainer: The Trainer with its strategy.
        pl_module: The module with the adapters.
    """
    install_state_hooks(pl_module)
    strategy = trainer.strategy
    keep_base_out(strategy)
    if not isinstance(strategy, DeepSpeedStrategy):
        return

    def load_checkpoint(checkpoint_path: str | Path, **options: Any) -> dict[str, Any]:
        stop_checking(trainer)
        install_state_hooks(pl_module)
        with safe_globals(_of_deepspeed()), plain_values_alone(checkpoint_path, options):
            return strategy.load_checkpoint(checkpoint_path, **options)

    strategy.__dict__["load_checkpoint"] = load_checkpoint


def _of_deepspeed() -> list[Any]:
    """The classes of objects that DeepSpeed puts into its files; to make them runs nothing else."""
    from deepspeed.runtime.fp16 import loss_scaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    names = ("LossScaler", "DynamicLossScaler", "LossScaleProfile", "LossScaleProfileDefaults", "LossScaleConfig")
    # Not all versions have all of them.
    scalers = [getattr(loss_scaler, name) for name in names if hasattr(loss_scaler, name)]
    return [*scalers, ZeroStageEnum, fragment_address]
