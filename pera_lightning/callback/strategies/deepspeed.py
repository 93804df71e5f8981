"""Adapters under Lightning's `DeepSpeedStrategy`: ZeRO's stages 1 and 2, which leave layers their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch.serialization import safe_globals
from typing_extensions import override

from pera_lightning.callback.strategies.refuse_quantized import SHARD_INSTEAD, refuse_quantized
from pera_lightning.callback.strategies.strategy import RunStrategy
from pera_lightning.checkpoint import Manifest, install_state_hooks
from pera_lightning.errors import ConfigError
from pera_lightning.requirements import EXCLUDES_FROZEN, require
from pera_lightning.storage.recognition.no_checkpoint import refuse_other_folders
from pera_lightning.storage.remote import place


class DeepSpeedRun(RunStrategy):
    """See `RunStrategy`."""

    writes_to_urls = False
    takes_adapter_folders = False

    @override
    def refuse(self, pl_module: pl.LightningModule, polynomial_start_step: int) -> None:
        refuse_quantized(self.strategy, pl_module)
        require("DeepSpeed beside PeraCallback", "lightning", oldest=EXCLUDES_FROZEN, instead=f"; or {SHARD_INSTEAD}")
        if self.strategy.zero_stage_3:
            raise ConfigError(
                "DeepSpeed's ZeRO stage 3 leaves layers without their weights, so that no adapter can be fitted to "
                "them.",
                got="strategy: DeepSpeedStrategy with stage 3 beside PeraCallback",
                expected="stage 1 or 2",
                fix=SHARD_INSTEAD,
            )
        if not self.strategy.exclude_frozen_parameters:
            raise ConfigError(
                "DeepSpeed's checkpoints would hold the frozen base.",
                got="strategy: DeepSpeedStrategy with exclude_frozen_parameters: false, its default",
                expected="adapter-only checkpoints",
                fix="set exclude_frozen_parameters: true, as configs/strategies/deepspeed_zero2.yaml does; by name "
                "('deepspeed_stage_2') it cannot be set",
            )
        if polynomial_start_step:
            raise ConfigError(
                "DeepSpeed keeps gradients where the polynomial coefficients' cannot be held back.",
                got=f"strategy: DeepSpeedStrategy with polynomial_start_step={polynomial_start_step}",
                expected="polynomial_start_step=0",
                fix="leave polynomial_start_step out, or use --config configs/strategies/ddp.yaml",
            )

    @override
    def refuse_module(self, pl_module: pl.LightningModule) -> None:
        refuse_quantized(self.strategy, pl_module)
        super().refuse_module(pl_module)

    @override
    def load_checkpoint(
        self, pl_module: pl.LightningModule, present: Manifest, path: str | Path, options: dict[str, Any]
    ) -> dict[str, Any]:
        refuse_other_folders(place(path))
        # To validate, test and predict, the strategy takes all hooks off the module right before it loads.
        install_state_hooks(pl_module)
        with safe_globals(_of_deepspeed()):
            return self.load_plain_values(path, options)


def _of_deepspeed() -> list[Any]:
    """The classes of objects that DeepSpeed puts into its files; to make them runs nothing else."""
    from deepspeed.runtime.fp16 import loss_scaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    names = ("LossScaler", "DynamicLossScaler", "LossScaleProfile", "LossScaleProfileDefaults", "LossScaleConfig")
    # Not all versions have all of them.
    scalers = [getattr(loss_scaler, name) for name in names if hasattr(loss_scaler, name)]
    return [*scalers, ZeroStageEnum, fragment_address]
