"""What is trained and saved beside the factors: modules whole (`modules_to_save`), and biases (`bias`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from pera_lightning.injection.shared_memory import SharedMemory
from pera_lightning.injection.targets.names import clean_name, original_names, own_modules

# A plain attribute on the module: the values it had before training. It must not enter state dicts, and it is
# what disabling and removing the adapter bring back.
_ORIGINAL = "_pera_original_state"


@dataclass
class Mark:
    """The other values of what is trained: those before training, or the trained ones while the adapter is out.

    Attributes:
        values: Of all tensors of a module, or of the one parameter `only`.
        only: Name of the one parameter that is trained; None for the module as a whole.
    """

    values: dict[str, Tensor]
    only: str | None


def memory_of_saved(model: nn.Module) -> SharedMemory | None:
    """What `swap_saved` has to know of a model's memory; None where nothing is marked."""
    return SharedMemory(model) if any(True for _ in marked_modules(model)) else None


def mark_saved(module: nn.Module, only: str | None = None) -> None:
    """Make a module trainable and keep its present values for `swap_saved`.

    Args:
        module: The module.
        only: Name of the one parameter that is meant; None for the module as a whole.
    """
    tensors = dict(_tensors(module)) if only is None else {only: cast("Tensor", getattr(module, only))}
    # The kept values become the module's own again: no inference tensors, which could not be trained.
    with torch.inference_mode(mode=False):
        values = {key: value.detach().clone() for key, value in tensors.items()}
    setattr(module, _ORIGINAL, Mark(values, only))
    for parameter in saved_parameters(module):
        parameter.requires_grad_(True)


def marked_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The marked modules of a model and the names that they, or the parameters meant in them, had at injection."""
    for name, module in original_names(model):
        if hasattr(module, _ORIGINAL):
            own = getattr(module, _ORIGINAL).only
            yield name if own is None else f"{name}.{own}", module


def saved_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model that are trained whole, with their clean names."""
    return ((name, module) for name, module in marked_modules(model) if getattr(module, _ORIGINAL).only is None)


def saved_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of a marked module that are trained."""
    own = getattr(module, _ORIGINAL).only
    yield from module.parameters() if own is None else [getattr(module, own)]


def saved_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Everything that belongs to the marks of a model, by its clean name in the model's state dict."""
    for name, module in own_modules(model):
        if not hasattr(module, _ORIGINAL):
            continue
        own = getattr(module, _ORIGINAL).only
        tensors = module.state_dict() if own is None else {own: getattr(module, own)}
        for key, value in tensors.items():
            if isinstance(value, Tensor):
                yield f"{clean_name(name)}.{key}", value


def kept_infinities(model: nn.Module) -> set[str]:
    """Buffers of modules saved whole that are infinite where they were before training: constants, such as masks.

    Returns:
        Their names, as in `saved_tensors`.
    """
    found = set()
    for path, module in own_modules(model):
        if not hasattr(module, _ORIGINAL):
            continue
        kept: Mark = getattr(module, _ORIGINAL)
        for name, value in module.named_buffers() if kept.only is None else ():
            before = kept.values[name].to(value.device)
            infinite = ~value.isfinite()
            if infinite.any() and torch.equal(value[infinite], before[infinite].to(value.dtype)):
                found.add(f"{clean_name(path)}.{name}")
    return found


def forget_saved(module: nn.Module) -> None:
    """Remove the mark and the kept values; the present values stay."""
    delattr(module, _ORIGINAL)


@torch.no_grad()
def swap_saved(module: nn.Module, memory: SharedMemory | None = None) -> None:
    """Exchange the present values with the kept ones; twice is as never.

    No parameter is replaced, and nothing is copied but what shares memory with another tensor.

    Of several modules, exchange back in the opposite order: they may share tensors.

    Args:
        module: A marked module.
        memory: Of the model that it is in.
    """
    mark: Mark = getattr(module, _ORIGINAL)
    present = dict(_tensors(module))
    # The model may have been moved or converted since. All first: where memory is short nothing is exchanged.
    moved = {key: kept.to(present[key].device, present[key].dtype) for key, kept in mark.values.items()}
    shared = {key for key in moved if memory is not None and memory.has_views(present[key])}
    copied = {key: present[key].detach().clone() for key in shared}
    for key, kept in moved.items():
        tensor = present[key]
        if key in shared:
            # Other tensors are views of the same memory: its values are exchanged.
            mark.values[key] = copied[key]
            tensor.data.copy_(kept)
        else:
            mark.values[key] = tensor.detach()
            tensor.data = kept


def take_mark(module: nn.Module, memory: SharedMemory | None = None) -> Mark:
    """Give a marked module its original values back; returns the mark, which holds the trained ones now."""
    swap_saved(module, memory)
    mark: Mark = getattr(module, _ORIGINAL)
    forget_saved(module)
    return mark


def put_mark(module: nn.Module, mark: Mark, memory: SharedMemory | None = None) -> None:
    """Undo `take_mark`."""
    setattr(module, _ORIGINAL, mark)
    swap_saved(module, memory)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
