"""Whether an optimizer can go on with a state out of a checkpoint; it takes whatever is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from pera_lightning.callback.resume.restored_options import Group, is_finite_number, option_problems, size, trial
from pera_lightning.errors import shown
from pera_lightning.functional.distributed import own_part

_TORCH, _BITSANDBYTES = "torch.optim", "bitsandbytes.optim"
"""Modules of the optimizers whose states and options are known."""
_SQUARES = {
    *("exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "row_var", "col_var", "variance", "exp_inf"),
    *("step_size", "absmax1", "absmax2", "state2"),
}
"""States that are means of squares, or norms: the optimizer takes their square roots, or divides by them."""
_QUANTIZED = {"state1", "state2", "absmax1", "absmax2", "qmap1", "qmap2"}
"""What bitsandbytes computes its moments from."""
_COUNTS = (torch.float32, torch.float64, torch.int32, torch.int64)
_MOST = 1 << 53
States = Sequence[tuple[Tensor, Any]]


def own_groups(optimizer: Optimizer) -> list[Group]:
    """The parameter groups as they are, to compare with what loading makes of them."""
    return [dict(group) for group in optimizer.param_groups]


def held_problem(optimizer: Optimizer, held: Any) -> str | None:
    """In words, why an optimizer cannot go on with a state; None if it can.

    Args:
        optimizer: As the run has made it, before its `load_state_dict`.
        held: What a checkpoint has for it. For optimizers that are neither torch's nor bitsandbytes' it is only looked
            at whether its tensors have memory of their own.
    """
    if not _is_judged(optimizer):
        tensors = [value for value in tree_leaves(held) if isinstance(value, Tensor)]
        return next((why for value in tensors if (why := _memory_problem("state", value))), None)
    groups, states = (held.get(name) for name in ("param_groups", "state")) if isinstance(held, Mapping) else ((), ())
    if not isinstance(groups, list) or not isinstance(states, Mapping) or not all(map(_is_group, groups)):
        return f"it is no state of an optimizer: {shown(held)}"
    counts = [[len(group["params"]) for group in part] for part in (groups, optimizer.param_groups)]
    if counts[0] != counts[1]:
        return f"its groups have {counts[0]} parameters, and those of the run {counts[1]}"
    named = [key for group in groups for key in group["params"]]
    unknown = [key for key in states if key not in named]
    if unknown or len(set(named)) != len(named):
        return f"it has states of parameters {shown(unknown)}, with groups of {shown(named)}"
    pairs = zip(own_groups(optimizer), groups, strict=True)
    return _problem(optimizer, [(own, group, _states(own["params"], group["params"], states)) for own, group in pairs])


def optimizer_problem(optimizer: Optimizer, before: Sequence[Group]) -> str | None:
    """The same of an optimizer that has taken a state.

    Args:
        optimizer: After its `load_state_dict`.
        before: Its groups before it, of `own_groups`.
    """
    if not _is_judged(optimizer) or len(before) != len(optimizer.param_groups):
        return None
    pairs = zip(before, optimizer.param_groups, strict=True)
    states = optimizer.state
    return _problem(
        optimizer, [(own, group, _states(group["params"], group["params"], states)) for own, group in pairs]
    )


def _states(parameters: Sequence[Tensor], keys: Sequence[Any], states: Mapping[Any, Any]) -> States:
    """The parameters that have a state, each with its own."""
    return [(value, states[key]) for value, key in zip(parameters, keys, strict=True) if key in states]


def _problem(optimizer: Optimizer, groups: Sequence[tuple[Group, Group, States]]) -> str | None:
    kind, seen = type(optimizer), set[int]()
    for own, held, states in groups:
        problem = next(option_problems(kind, own, held), None)
        ranks = {value.dim() for value, _ in states} or {value.dim() for value in own["params"][:1]}
        # bitsandbytes' steps need a GPU, and keep of small parameters something else.
        steps = kind.__module__.startswith(_TORCH)
        trials = {} if problem else {rank: trial(kind, own, held, rank, steps=steps) for rank in ranks}
        problem = problem or next((said for _, said in trials.values() if said), None)
        for parameter, state in () if problem else states:
            usual = trials[parameter.dim()][0]
            problem = problem or next(_state_problems(state, usual, parameter, seen), None)
        if problem:
            return problem
    return None


def _state_problems(state: Any, usual: Mapping[str, Any], parameter: Tensor, seen: set[int]) -> Iterator[str]:
    if not isinstance(state, Mapping) or (usual and state.keys() != usual.keys()):
        found = sorted(map(str, state)) if isinstance(state, Mapping) else shown(state)
        yield f"the optimizer keeps {found} of a parameter, and usually {sorted(usual)}"
        return
    for name, found in _flat(state):
        value = usual.get(name)
        if name == "step":
            problem = None if _is_count(found) else f"the optimizer's step is {shown(found)}, where a count is usual"
        elif isinstance(value, Tensor) and value.dim() == 0 and parameter.dim():
            is_number = is_finite_number(own_part(found))
            problem = None if is_number else f"the optimizer's {name} is {shown(found)}, where a number is usual"
        else:
            problem = _moment_problem(name, found, value, parameter)
        if problem is None and isinstance(found, Tensor):
            problem = _sharing_problem(name, found, parameter, seen)
        if problem:
            yield problem


def _flat(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values; bitsandbytes has some of its own within another dict in its files."""
    for name, value in state.items():
        yield from _flat(value) if isinstance(value, Mapping) else ((str(name), value),)


def _moment_problem(name: str, found: Any, usual: Any, parameter: Tensor) -> str | None:
    if isinstance(usual, Tensor):
        # Of the trial's sizes each stands for one of the parameter's.
        sizes = {1: 1, **dict(zip(size(parameter.dim()), parameter.shape, strict=True))}
        wanted = tuple(sizes[length] for length in usual.shape)
        shape = tuple(found.shape) if isinstance(found, Tensor) else None
        if shape != wanted:
            return f"the optimizer's {name} is of shape {shape}, for a parameter of shape {tuple(parameter.shape)}"
        if not found.is_floating_point():
            return f"the optimizer's {name} is of {found.dtype}"
    if not isinstance(found, Tensor):
        return None
    return _memory_problem(name, found) or _value_problem(name, found, parameter, is_known=isinstance(usual, Tensor))


def _value_problem(name: str, found: Tensor, parameter: Tensor, *, is_known: bool) -> str | None:
    known = is_known or name in _SQUARES | _QUANTIZED or found.shape == parameter.shape
    if not known or not found.is_floating_point():
        return None
    part = own_part(found)
    # Loading makes the parameter's dtype of it.
    if not part.to(parameter.dtype if parameter.is_floating_point() else part.dtype).isfinite().all():
        return f"the optimizer's {name} holds values that are not finite"
    if name in _SQUARES and (part < 0).any():
        return f"the optimizer's {name} holds values below 0, where squares are usual"
    return None


def _memory_problem(name: str, found: Tensor) -> str | None:
    """Whether a tensor is not plain: sparse, without memory, or with elements in one place."""
    part = own_part(found)
    if part.layout != torch.strided or part.is_meta or part.is_quantized:
        return f"the optimizer's {name} is no plain tensor: {part.layout} on {part.device}"
    expected = 1
    if part.numel() == 0:
        return None
    for stride, length in sorted(zip(part.stride(), part.shape, strict=True)):
        if length > 1 and stride != expected:
            return f"the optimizer's {name} has strides {part.stride()} for the shape {tuple(part.shape)}"
        expected *= length
    return None


def _sharing_problem(name: str, found: Tensor, parameter: Tensor, seen: set[int]) -> str | None:
    """Whether a moment or a count lies in the memory of another; tables such as bitsandbytes' may."""
    if found.numel() == 0 or (name != "step" and found.shape != parameter.shape):
        return None
    storage = own_part(found).untyped_storage().data_ptr()
    if storage and storage in seen:
        return f"the optimizer's {name} shares its memory with another state"
    seen.add(storage)
    return None


def _is_count(value: Any) -> bool:
    if isinstance(value, Tensor):
        value = own_part(value)
        if value.dtype not in _COUNTS:
            return False
    return is_finite_number(value) and 0 <= float(value) < _MOST


def _is_group(group: Any) -> bool:
    return isinstance(group, Mapping) and isinstance(group.get("params"), list)


def _is_judged(optimizer: Optimizer) -> bool:
    return type(optimizer).__module__.startswith((_TORCH, _BITSANDBYTES))
