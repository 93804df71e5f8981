"""The modules of a model, and whether this thread is within a forward pass of one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from weakref import WeakSet

from torch import nn

_FORWARD = frozenset({"_wrapped_call_impl", "_call_impl", "forward"})


def parts_of(model: nn.Module) -> WeakSet[nn.Module]:
    """All modules of a model, which another thread may be changing; they are not kept alive."""
    found: WeakSet[nn.Module] = WeakSet()
    waiting: list[nn.Module | None] = [model]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in found:
            found.add(one)
            waiting += list(one._modules.values())
    return found


def unwrapped(model: nn.Module) -> Iterator[nn.Module]:
    """The model, and what is in it under the names of torch's wrappers, which begin with an underscore."""
    yield model
    for name, child in model._modules.items():
        if name.startswith("_") and child is not None:
            yield from unwrapped(child)


def own_inner_pass(model: nn.Module) -> nn.Module | None:
    """The part of the model, not itself nor what a wrapper of torch wraps, whose forward pass this thread is in."""
    passes = [module for module in _passes(sys._getframe()) if isinstance(module, nn.Module)]
    inner = parts_of(model) - WeakSet(unwrapped(model)) if passes else ()
    return next((module for module in passes if module in inner), None)


def _passes(frame: FrameType | None) -> Iterator[object]:
    while frame is not None:
        code = frame.f_code
        if code.co_name in _FORWARD and code.co_argcount:
            yield frame.f_locals.get(code.co_varnames[0])
        frame = frame.f_back
