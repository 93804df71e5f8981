"""Which calls of a model are running: read off the stacks of all threads, so that a call itself does nothing for it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from types import FrameType
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

FORWARD = frozenset({"_wrapped_call_impl", "_call_impl", "forward"})
"""Functions of a module that are a forward pass."""

CALLS = FORWARD | {"generate", "training_step", "validation_step", "test_step", "predict_step"}
"""Those that a user takes for one call, though they make several forward passes."""


class ModelParts:
    """A model as its calls are recognised: its modules, and those of others that hold it.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        # Not to keep what a change takes away, such as floating layers while they are quantised.
        self._parts = WeakSet(_below(model))
        self._others: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
        self._inner = self._parts - WeakSet(_unwrapped(model))

    def __iter__(self) -> Iterator[nn.Module]:
        yield from self._parts

    def overlap(self, other: ModelParts) -> bool:
        """Whether both have a module in common."""
        return not self._parts.isdisjoint(other._parts)

    def hold(self, module: object) -> bool:
        """Whether an object is one of the parts."""
        return module in self._parts

    def concern(self, module: object) -> bool:
        """Whether a call of an object computes with the model: a part of it, or a module that holds it."""
        if not isinstance(module, nn.Module):
            return False
        if self.hold(module):
            return True
        if module not in self._others:
            self._others[module] = any(part is self.model for part in _below(module))
        return self._others[module]

    def is_inner(self, module: object) -> bool:
        """Whether an object is a part, and neither the model itself nor what a wrapper of torch wraps."""
        return module in self._inner


def outermost_call(frame: FrameType | None, parts: ModelParts) -> FrameType | None:
    """The outermost call of a model on a stack, whose innermost frame is given; None if there is none."""
    found = None
    for one in _stack(frame):
        if one.f_code.co_name in CALLS and parts.concern(owner_of(one)):
            found = one
    return found


def pass_around(frame: FrameType, module: nn.Module, parts: ModelParts) -> FrameType | None:
    """The innermost forward pass of a part of the model on a stack, other than that of a module itself."""
    passes = (one for one in _stack(frame) if one.f_code.co_name in FORWARD)
    return next((one for one in passes if (owner := owner_of(one)) is not module and parts.hold(owner)), None)


def calls_of_others(parts: ModelParts) -> dict[FrameType, int]:
    """The outermost calls of a model that run in other threads, with the ids of these threads."""
    # Without the interpreter's lock the stack of a running thread must not be read.
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return {}
    own = threading.get_ident()
    stacks = {ident: frame for ident, frame in sys._current_frames().items() if ident != own}
    calls = {ident: outermost_call(frame, parts) for ident, frame in stacks.items()}
    return {call: ident for ident, call in calls.items() if call is not None}


def own_inner_pass(model: nn.Module) -> FrameType | None:
    """The forward pass of a part of the model, not of the model itself, that this thread is in."""
    passes = [one for one in _stack(sys._getframe()) if one.f_code.co_name in FORWARD]
    parts = ModelParts(model) if passes else None
    return next((one for one in passes if parts is not None and parts.is_inner(owner_of(one))), None)


def owner_of(frame: FrameType) -> object:
    """The first argument of the function that a frame runs: of a method, its object."""
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _stack(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _below(module: nn.Module) -> Iterator[nn.Module]:
    """As `modules()`, for trees that another thread may be changing."""
    seen: set[int] = set()
    waiting: list[nn.Module | None] = [module]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += list(one._modules.values())


def _unwrapped(model: nn.Module) -> Iterator[nn.Module]:
    """The model, and what is in it under the names of torch's wrappers, which begin with an underscore."""
    yield model
    for name, child in model._modules.items():
        if name.startswith("_") and child is not None:
            yield from _unwrapped(child)
