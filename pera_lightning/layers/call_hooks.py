"""The hooks of a layer that is adapted: they see and change what the adapted layer gives, not its base alone.

Hooks move from a base to the layer around it, and back when the adapter is taken out or merged. Their handles stay
good, because the dictionaries move that the handles point to.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn

from pera_lightning.layers.hook_code import reads_weight

KINDS = (
    ("_forward_pre_hooks", ("_forward_pre_hooks_with_kwargs",)),
    ("_forward_hooks", ("_forward_hooks_with_kwargs", "_forward_hooks_always_called")),
    ("_backward_pre_hooks", ()),
    ("_backward_hooks", ()),
)
"""Where torch keeps the hooks of a module, and what it notes about them."""

PLACING = ("torch.distributed.", "accelerate.", "deepspeed.", "transformers.integrations.", "transformers.distributed.")
"""Packages whose hooks gather, split or move the tensors of the very module that they are set on."""


class OnBase:
    """A hook of a base on the adapted layer around it: it is given the base, as ever.

    Hooks know their module: by identity, as a key, or by attributes set on it.
    """

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook

    def __call__(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What torch calls the hook with, the module exchanged."""
        return self.hook(layer.base_layer, *args, **kwargs)


def lift_hooks(layer: nn.Module, base_layer: nn.Module) -> None:
    """Move the hooks of a base to the adapted layer around it."""
    _move(base_layer, layer, OnBase, _is_placing)


def lower_hooks(layer: nn.Module, base_layer: nn.Module) -> None:
    """Undo `lift_hooks`; hooks that were set on the adapted layer meanwhile stay with the base too.

    Not those by which torch computes a tensor of the adapted layer (pruning of a factor): its base has none such.
    """
    _move(layer, base_layer, lambda hook: hook.hook if isinstance(hook, OnBase) else hook, _stays_with_adapter)


def carry_hooks(replaced: nn.Module, layer: nn.Module) -> None:
    """Move the hooks of a layer to the one that is put in its place."""
    _move(replaced, layer, lambda hook: hook, _is_placing)


def changes_output(layer: nn.Module) -> bool:
    """Whether a layer has forward hooks, or forward pre-hooks, that may change what it returns."""
    return any(not _is_placing(hook) for name, _ in KINDS[:2] for hook in vars(layer)[name].values())


def hook_reads_weight(layer: nn.Module) -> bool:
    """Whether the code of a hook reads the weight of its module, which is the base's alone under an adapter."""
    hooks = [hook for name, _ in KINDS for hook in vars(layer)[name].values() if not _is_placing(hook)]
    return any(reads_weight(hook.hook if isinstance(hook, OnBase) else hook, layer) for hook in hooks)


def _move(source: nn.Module, target: nn.Module, convert: Callable[[Any], Any], stays: Callable[[Any], bool]) -> None:
    for name, notes in KINDS:
        hooks, present = vars(source)[name], vars(target)[name]
        staying = OrderedDict((key, hook) for key, hook in hooks.items() if stays(hook))
        if len(staying) == len(hooks):
            continue
        coming = [(key, convert(hook)) for key, hook in hooks.items() if key not in staying]
        # Hooks before the call run from the outside in, those after it from the inside out.
        ordered = [*coming, *present.items()] if name == "_forward_pre_hooks" else [*present.items(), *coming]
        hooks.clear()
        hooks.update(ordered)
        _exchange(source, target, name, hooks, staying)
        for note in notes:
            noted = vars(source)[note]
            rest = OrderedDict((key, noted.pop(key)) for key in list(noted) if key in staying)
            noted.update(vars(target)[note])
            _exchange(source, target, note, noted, rest)
    if source._is_full_backward_hook is not None:
        target._is_full_backward_hook = source._is_full_backward_hook
    if not (source._backward_hooks or source._backward_pre_hooks):
        source._is_full_backward_hook = None


def _exchange(source: nn.Module, target: nn.Module, name: str, moving: Any, staying: Any) -> None:
    vars(target)[name], vars(source)[name] = moving, staying


def _is_placing(hook: Any) -> bool:
    function = _function(hook)
    owner = getattr(function, "__module__", None) or type(function).__module__
    return f"{owner}.".startswith(PLACING)


def _stays_with_adapter(hook: Any) -> bool:
    return _is_placing(hook) or (not isinstance(hook, OnBase) and type(hook).__module__.startswith("torch.nn.utils."))


def _function(hook: Any) -> Any:
    while isinstance(hook, functools.partial | OnBase):
        hook = hook.func if isinstance(hook, functools.partial) else hook.hook
    return hook
