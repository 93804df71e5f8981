"""The refusal of a quantised base, for strategies that cannot run over one."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.strategies import Strategy

from pera_lightning.base_layers import base_of
from pera_lightning.errors import ConfigError

SHARD_INSTEAD = (
    "shard with ModelParallelStrategy (FSDP2), which keeps every parameter as it is: --config "
    "configs/strategies/fsdp2.yaml; a base that fits on one GPU needs no sharding: strategy 'ddp'"
)


def refuse_quantized(strategy: Strategy, pl_module: pl.LightningModule) -> None:
    """Raise ConfigError if the base of a module is quantised, or will be.

    Args:
        strategy: Lightning's, which cannot run it.
        pl_module: The module, which may have no model yet.
    """
    quantization = _quantization(pl_module)
    if quantization is not None:
        raise ConfigError(
            "This strategy is not supported over a quantised base.",
            got=f"strategy: {type(strategy).__name__} over a base in {quantization}",
            expected="a base that is not quantised",
            fix="use --config configs/strategies/ddp.yaml, under which each GPU holds the quantised base whole, or "
            "configs/strategies/fsdp2.yaml, which shards it in 4 bits",
        )


def _quantization(pl_module: pl.LightningModule) -> str | None:
    """What the module will load its base in, or has it in already."""
    chosen = getattr(pl_module, "quantization", None)
    if chosen is not None:
        return str(chosen)
    found = ((base_of(module), module) for module in pl_module.modules())
    return next((kind for base, module in found if base is not None and (kind := base.quantization(module))), None)
