"""Putting modules in the place of others, wherever a model may call them from."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MethodType
from typing import Any

from torch import nn

REGISTERED = frozenset(vars(nn.Module()))
"""Where torch itself keeps what belongs to a module."""

DEEPEST, LONGEST = 3, 10_000
"""How far lists in lists are looked through, and the length from which on they hold data and not layers."""


def replace_modules(model: nn.Module, replacements: Mapping[int, nn.Module]) -> None:
    """Put `replacements[id(child)]` in the place of every child, wherever it is registered.

    A model may also keep children in plain lists, tuples and dicts, or one of their methods, and call them from there:
    those are exchanged too.
    """
    # The list is taken first: the walk must not enter what it has just put in.
    modules = list(model.modules())
    replaced = {id(part) for module in modules if id(module) in replacements for part in module.modules()}
    for parent in modules:
        # named_children() would leave out the second name of a layer that is registered twice.
        for name, child in list(parent._modules.items()):
            if id(child) in replacements:
                parent.add_module(name, replacements[id(child)])
                _compile_again(parent)
        if id(parent) not in replaced:
            for name, value in list(vars(parent).items()):
                if name not in REGISTERED and value is not (new := _exchanged(value, replacements)):
                    parent.__dict__[name] = new


def _exchanged(value: Any, replacements: Mapping[int, nn.Module], depth: int = 0) -> Any:
    """What stands for a value that an attribute holds; lists and dicts are changed in place."""
    if isinstance(value, nn.Module):
        return replacements.get(id(value), value)
    if isinstance(value, MethodType) and id(value.__self__) in replacements:
        return getattr(replacements[id(value.__self__)], value.__name__)
    if type(value) not in (list, tuple, dict) or depth == DEEPEST or len(value) > LONGEST:
        return value
    keys = list(value) if type(value) is dict else range(len(value))
    new = {key: _exchanged(value[key], replacements, depth + 1) for key in keys}
    changed = [key for key in keys if new[key] is not value[key]]
    if type(value) is tuple:
        return tuple(new.values()) if changed else value
    for key in changed:
        value[key] = new[key]
    return value


def _compile_again(parent: Any) -> None:
    """Have what `torch.compile(module)` returned call the module that it holds now, compiled with the same options."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    # Nothing is compiled before torch has loaded its compiler.
    if dynamo is not None and isinstance(parent, dynamo.OptimizedModule):
        # It calls the module that it was made with, not the one that it holds.
        parent._initialize()
        parent._torchdynamo_orig_callable = parent._orig_mod.forward
