"""What a LightningModule says about its adapter: where its names begin, and what is trained whole beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from torch import nn

from pera_lightning.config import PeraConfig
from pera_lightning.injection import adapter_layers, marked_modules
from pera_lightning.injection.copies import following


def adapter_root(module: nn.Module) -> nn.Module:
    """The module that a saved adapter can be loaded into without Lightning.

    - what the module itself names by an attribute `adapter_root`;
    - else the transformers model inside it that holds every adapted layer (but those of copies that are not trained),
      so that the folder loads into the plain model;
    - else the module itself.
    """
    own = getattr(module, "adapter_root", None)
    if isinstance(own, nn.Module):
        return own
    wanted = _adapter_modules(module)
    for part in module.modules():
        is_pretrained = hasattr(part, "base_model_prefix") and hasattr(part, "get_output_embeddings")
        if is_pretrained and wanted == _adapter_modules(part):
            return part
    return module


def chat_options(module: pl.LightningModule) -> Mapping[str, Any]:
    """How the data module of a run makes text of conversations, as it says in an attribute `chat_options`."""
    trainer = module._trainer
    return getattr(getattr(trainer, "datamodule", None), "chat_options", None) or {}


def with_own_modules(config: PeraConfig, module: nn.Module) -> PeraConfig:
    """The options with the names that the module lists in an attribute `modules_to_save`: a head of its task.

    Args:
        config: The adapter's options.
        module: The module, after its model was built.
    """
    listed = getattr(module, "modules_to_save", None) or ()
    own = [name for name in listed if name not in config.modules_to_save]
    return dataclasses.replace(config, modules_to_save=(*config.modules_to_save, *own)) if own else config


def prefix_of(module: nn.Module, part: nn.Module) -> str:
    """Dotted name of `part` in `module` with a dot at the end; empty if it is the module itself."""
    name = next(name for name, candidate in module.named_modules() if candidate is part)
    return f"{name}." if name else ""


def _adapter_modules(module: nn.Module) -> set[int]:
    parts = {id(part) for _, part in (*adapter_layers(module), *marked_modules(module))}
    return parts - following(module)
