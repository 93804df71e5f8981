"""Injecting into a LightningModule, with the floating weights that a LoftQ start takes."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import nn

from pera_lightning.callback.adapter_root import adapter_root, prefix_of
from pera_lightning.config import PeraConfig
from pera_lightning.injection import InjectionReport, clean_name, inject_adapter


def inject_into(module: pl.LightningModule, config: PeraConfig) -> InjectionReport:
    """`inject_adapter`, with what the module's method `float_model()` returns where `config` wants a LoftQ start.

    Args:
        module: The module; its `float_model()` returns the model that its `adapter_root` was before quantisation.
        config: The adapter's options.
    """
    load = getattr(module, "float_model", None)
    if config.init != "loftq" or load is None:
        return inject_adapter(module, config)
    prefix = clean_name(prefix_of(module, adapter_root(module)))
    return inject_adapter(module, config, float_model=_under(prefix, load()))


def _under(prefix: str, model: nn.Module) -> nn.Module:
    """A module that holds `model` under a dotted name."""
    for name in reversed(prefix.rstrip(".").split(".") if prefix else []):
        holder = nn.Module()
        holder.add_module(name, model)
        model = holder
    return model
