"""Strategies of Lightning that adapters over a frozen base cannot run under, refused before anything is loaded."""

from __future__ import annotations

import reprlib
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy

from pera_lightning.base_layers import base_of
from pera_lightning.errors import ConfigError
from pera_lightning.requirements import EXCLUDES_FROZEN, require

_SHARDED = (
    "shard with ModelParallelStrategy (FSDP2), which keeps every parameter as it is: --config "
    "configs/strategies/fsdp2.yaml; a base that fits on one GPU needs no sharding: strategy 'ddp'"
)


def refuse_impossible_strategy(
    trainer: pl.Trainer, pl_module: pl.LightningModule, polynomial_start_step: int = 0
) -> None:
    """Raise if the adapter could not be trained and saved rightly under the Trainer's strategy.

    Args:
        trainer: The Trainer with its strategy.
        pl_module: The module that adapters are to be injected into.
        polynomial_start_step: As PeraCallback has it.

    Raises:
        ConfigError: It is DeepSpeed's ZeRO stage 3, DeepSpeed whose checkpoints would hold the base, DeepSpeed with a
            `polynomial_start_step`, FSDPStrategy with options that do not go with adapters, or either over a quantised
            base.
    """
    strategy = getattr(trainer, "strategy", None)
    if isinstance(strategy, FSDPStrategy):
        _check_fsdp(strategy)
    refuse_quantized(trainer, pl_module)
    if isinstance(strategy, DeepSpeedStrategy):
        _check_deepspeed(strategy)
        if polynomial_start_step:
            raise ConfigError(
                "DeepSpeed keeps gradients where the polynomial coefficients' cannot be held back.",
                got=f"strategy: DeepSpeedStrategy with polynomial_start_step={polynomial_start_step}",
                expected="polynomial_start_step=0",
                fix="leave polynomial_start_step out, or use --config configs/strategies/ddp.yaml",
            )


def refuse_quantized(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Raise ConfigError under DeepSpeed and FSDP1 over a base that is quantised, or will be."""
    strategy = getattr(trainer, "strategy", None)
    if not isinstance(strategy, DeepSpeedStrategy | FSDPStrategy):
        return
    quantization = _quantization(pl_module)
    if quantization is not None:
        raise ConfigError(
            "DeepSpeed and FSDP1 are not supported over a quantised base.",
            got=f"strategy: {type(strategy).__name__} over a base in {quantization}",
            expected="a base that is not quantised",
            fix="use --config configs/strategies/ddp.yaml, under which each GPU holds the quantised base whole, or "
            "configs/strategies/fsdp2.yaml, which shards it in 4 bits",
        )


def _check_fsdp(strategy: FSDPStrategy) -> None:
    options: dict[str, Any] = {**strategy.kwargs, "state_dict_type": strategy._state_dict_type}
    allowed = {"use_orig_params": True, "state_dict_type": "full", "ignored_states": None, "ignored_modules": None}
    for name, value in allowed.items():
        if options.get(name, value) != value:
            raise ConfigError(
                "PERA keeps the adapter out of what FSDP1 shards, and saves it from the first process.",
                got=f"strategy: FSDPStrategy with {name}={reprlib.repr(options[name])} beside PeraCallback",
                expected=f"{name}={value!r}, the default",
                fix=f"leave {name} out, as configs/strategies/fsdp.yaml does",
            )


def _check_deepspeed(strategy: DeepSpeedStrategy) -> None:
    require("DeepSpeed beside PeraCallback", "lightning", oldest=EXCLUDES_FROZEN, instead=f"; or {_SHARDED}")
    if strategy.zero_stage_3:
        raise ConfigError(
            "DeepSpeed's ZeRO stage 3 leaves layers without their weights, so that no adapter can be fitted to them.",
            got="strategy: DeepSpeedStrategy with stage 3 beside PeraCallback",
            expected="stage 1 or 2",
            fix=_SHARDED,
        )
    if not strategy.exclude_frozen_parameters:
        raise ConfigError(
            "DeepSpeed's checkpoints would hold the frozen base.",
            got="strategy: DeepSpeedStrategy with exclude_frozen_parameters: false, its default",
            expected="adapter-only checkpoints",
            fix="set exclude_frozen_parameters: true, as configs/strategies/deepspeed_zero2.yaml does; by name "
            "('deepspeed_stage_2') it cannot be set",
        )


def _quantization(pl_module: pl.LightningModule) -> str | None:
    """What the module will load its base in, or has it in already."""
    chosen = getattr(pl_module, "quantization", None)
    if chosen is not None:
        return str(chosen)
    found = ((base_of(module), module) for module in pl_module.modules())
    return next((kind for base, module in found if base is not None and (kind := base.quantization(module))), None)
