"""Options of an optimizer's parameter groups in a checkpoint, against those of the run that goes on from it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pera_lightning.errors import shown

Group = Mapping[str, Any]
_HOW = {"foreach", "fused", "capturable", "differentiable"}
"""How a step is computed; a trial on the CPU goes without them."""
_FASTER = {"foreach", "fused"}
"""Which of them a run may have otherwise, as on another device: they say nothing of what a step is."""
_ADDED = {*_HOW, "maximize", "nesterov", "amsgrad", "centered", "decoupled_weight_decay"}
"""What a file of an older torch may not have: its `load_state_dict` puts these there."""


def option_problems(kind: type[Optimizer], own: Group, held: Group) -> Iterator[str]:
    """In words, what of a held group the optimizer cannot go on with, or would go on with as another optimizer.

    Args:
        kind: An optimizer whose constructor judges its options.
        own: The group as the run has made it.
        held: As the checkpoint has it.
    """
    options = inspect.signature(kind).parameters.keys() & own.keys() - {"params"}
    lost = sorted(options - held.keys() - _ADDED)
    if lost:
        yield f"it is of another optimizer: it has no {lost[0]!r} for {kind.__name__}"
        return
    for name in sorted(own.keys() & held.keys() - {"params"}):
        if name in _FASTER:
            if held[name] is not None and not isinstance(held[name], bool):
                yield f"the optimizer's {name} is {shown(held[name])}, which is no switch"
            continue
        is_alike = _is_alike if name in options else _is_alike_number
        if not is_alike(own[name], held[name], may_be_tensor=name == "lr"):
            yield f"the optimizer's {name} is {shown(held[name])}, where the run's own is {shown(own[name])}"


def trial(
    kind: type[Optimizer], own: Group, held: Group, rank: int, *, steps: bool
) -> tuple[Mapping[str, Any], str | None]:
    """Make an optimizer with the options of a group and step with it, where one with the run's own can.

    Args:
        kind: Of the optimizer.
        own: The group as the run has made it.
        held: As the checkpoint has it.
        rank: How many dimensions the parameter has.
        steps: Whether to step, or to leave it to the constructor.

    Returns:
        What it keeps of a parameter of the shape `size(rank)`, nothing where it cannot be tried; and what the
        optimizer says against the options.
    """
    for look in (_step, _made) if steps else (_made,):
        try:
            look(kind, own, rank)
        # Any: what it wants besides, such as a GPU or a closure, is its own affair.
        except Exception:
            continue
        try:
            kept = look(kind, {**own, **held}, rank)
        except Exception as error:
            return {}, f"an optimizer with its options cannot step: {type(error).__name__}: {error}"
        return (kept if isinstance(kept, Mapping) else {}), None
    return {}, None


def size(rank: int) -> tuple[int, ...]:
    """Of a parameter to try an optimizer with: all sizes differ, and none is 1."""
    return tuple(range(2, 2 + rank))


def _step(kind: type[Optimizer], group: Group, rank: int) -> Mapping[str, Any]:
    optimizer, parameter = _made(kind, group, rank)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state[parameter]


def _made(kind: type[Optimizer], group: Group, rank: int) -> tuple[Optimizer, nn.Parameter]:
    taken = inspect.signature(kind).parameters.keys() & group.keys() - {"params"} - _HOW
    parameter = nn.Parameter(torch.zeros(size(rank)))
    return kind([parameter], **{name: _plain(group[name]) for name in taken}), parameter


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _is_alike(own: Any, held: Any, *, may_be_tensor: bool) -> bool:
    if isinstance(own, Sequence) and not isinstance(own, str):
        if not isinstance(held, list | tuple) or len(held) != len(own):
            return False
        return all(_is_alike(*pair, may_be_tensor=may_be_tensor) for pair in zip(own, held, strict=True))
    if own is None or isinstance(own, bool | str):
        # torch puts the one where an older file had none, and has the other as its default.
        return type(held) in (type(own), *((bool, type(None)) if not own else ())) and (
            held == own or not (held or own)
        )
    return _is_alike_number(own, held, may_be_tensor=may_be_tensor)


def _is_alike_number(own: Any, held: Any, *, may_be_tensor: bool) -> bool:
    if isinstance(own, bool) or not isinstance(own, int | float | Tensor):
        return True
    if isinstance(held, Tensor):
        return (may_be_tensor or isinstance(own, Tensor)) and is_finite_number(held)
    return is_finite_number(held)


def is_single(value: Tensor) -> bool:
    """Whether a tensor is plain and of one element, which may be read."""
    return value.layout == torch.strided and not value.is_meta and value.numel() == 1


def is_finite_number(value: Any) -> bool:
    """Whether a value is a real number, or a tensor of one, that float32 holds."""
    if isinstance(value, Tensor):
        if not is_single(value) or value.dtype == torch.bool or value.is_complex():
            return False
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    limit = torch.finfo(torch.float32).max
    # Compared, not converted: whole numbers may be too large for a float. With what is no number it is false.
    return bool(-limit <= value <= limit)
