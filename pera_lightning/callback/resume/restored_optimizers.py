"""Whether an optimizer can go on with the state that it has taken from a checkpoint; it takes whatever is there."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def optimizer_problem(optimizer: Optimizer) -> str | None:
    """In words, what of an optimizer is of another form than that of a new one; None if it can step.

    Args:
        optimizer: After its `load_state_dict`. Of optimizers that are not torch's the options alone are looked at.
    """
    return next(_problems(optimizer), None)


def _problems(optimizer: Optimizer) -> Iterator[str]:
    kind = type(optimizer)
    options = inspect.signature(kind).parameters.keys() & optimizer.defaults.keys() if _is_of_torch(kind) else set()
    for group in optimizer.param_groups:
        # What an older version of torch did not have, its `load_state_dict` has put there.
        lost = sorted(options - group.keys())
        if lost:
            yield f"it is of another optimizer: it has no {lost[0]!r} for {kind.__name__}"
        for name, default in optimizer.defaults.items():
            if name in group and not _is_alike(group[name], default):
                yield f"the optimizer's {name} is {reprlib.repr(group[name])}, where {default!r} is usual"
        known = [parameter for parameter in group["params"] if parameter in optimizer.state]
        usual = {rank: _state_after_a_step(kind, group, rank) for rank in {value.dim() for value in known}}
        for parameter in known:
            yield from _differences(optimizer.state[parameter], usual[parameter.dim()], parameter)


def _differences(state: Any, usual: Mapping[str, Any], parameter: Tensor) -> Iterator[str]:
    if not usual:
        return
    if not isinstance(state, Mapping) or state.keys() != usual.keys():
        found = sorted(map(str, state)) if isinstance(state, Mapping) else reprlib.repr(state)
        yield f"the optimizer keeps {found} of a parameter, and usually {sorted(usual)}"
        return
    for name, value in usual.items():
        found = state[name]
        if not isinstance(value, Tensor):
            continue
        shape = tuple(found.shape) if isinstance(found, Tensor) else None
        if value.dim() and value.shape == _size(parameter.dim()) and shape != tuple(parameter.shape):
            yield f"the optimizer's {name} is of shape {shape}, for a parameter of shape {tuple(parameter.shape)}"
        if value.dim() == 0 and not isinstance(found, Number) and (shape is None or found.numel() != 1):
            yield f"the optimizer's {name} is {reprlib.repr(found)}, where a number is usual"


def _is_of_torch(kind: type[Optimizer]) -> bool:
    return kind.__module__.startswith("torch.optim")


def _size(rank: int) -> tuple[int, ...]:
    """Of a parameter to try an optimizer with."""
    return tuple(range(2, 2 + rank))


def _state_after_a_step(kind: type[Optimizer], group: Mapping[str, Any], rank: int) -> Mapping[str, Any]:
    """What an optimizer of torch keeps of a parameter with so many dimensions; nothing where it cannot be tried."""
    if not _is_of_torch(kind):
        return {}
    taken = inspect.signature(kind).parameters
    parameter = nn.Parameter(torch.zeros(_size(rank)))
    parameter.grad = torch.zeros(_size(rank))
    try:
        new = kind([parameter], **{name: value for name, value in group.items() if name in taken and name != "params"})
        new.step()
    # Any: what it wants besides, such as a GPU or a closure, is its own affair.
    except Exception:
        return {}
    return new.state[parameter]


def _is_alike(value: object, default: object) -> bool:
    # Learning rates and others may be tensors.
    if isinstance(default, Number) and not isinstance(default, bool):
        return isinstance(value, Number | Tensor)
    if isinstance(default, Sequence) and not isinstance(default, str):
        if not isinstance(value, Sequence) or len(value) != len(default):
            return False
        return all(_is_alike(*pair) for pair in zip(value, default, strict=True))
    return True
