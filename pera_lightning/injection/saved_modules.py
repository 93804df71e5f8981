"""Modules that are trained and saved whole beside the adapters (`modules_to_save`)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pera_lightning.injection.names import clean_name

# A plain attribute on the module: the values it had before training. It must not enter state dicts, and it is
# what disabling and removing the adapter bring back.
_ORIGINAL = "_pera_original_state"


def mark_saved(module: nn.Module) -> None:
    """Make a module trainable as a whole and keep its present values for `swap_saved`."""
    setattr(module, _ORIGINAL, {key: value.detach().clone() for key, value in _tensors(module)})
    module.requires_grad_(True)


def saved_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The marked modules of a model with their clean names."""
    for name, module in model.named_modules():
        if hasattr(module, _ORIGINAL):
            yield clean_name(name), module


def forget_saved(module: nn.Module) -> None:
    """Remove the mark and the kept values; the present values stay."""
    delattr(module, _ORIGINAL)


@torch.no_grad()
def swap_saved(module: nn.Module) -> None:
    """Exchange the present values with the kept ones; twice is as never."""
    kept: dict[str, Tensor] = getattr(module, _ORIGINAL)
    for key, value in _tensors(module):
        present = value.detach().clone()
        value.copy_(kept[key])
        kept[key] = present


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
