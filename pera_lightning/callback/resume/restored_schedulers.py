"""Whether a learning rate scheduler can go on with a state out of a checkpoint; it takes whatever is there."""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pera_lightning.callback.resume.restored_options import is_finite_number
from pera_lightning.errors import shown

_OF_VERSIONS = {"verbose", "_is_initial", "_get_lr_called_within_step"}
"""What some versions of torch keep, and others do not."""
_OF_ALL = {"last_epoch", "_step_count", "base_lrs", "_last_lr"}
_THEIRS = {"lr_lambdas", "_scale_fn_custom"}
"""Attributes of functions that the user gives."""
_COUNTS = {"last_epoch", "_step_count", "num_bad_epochs", "cooldown_counter"}
_MOST = 1 << 53


def scheduler_problem(scheduler: Any, held: Any) -> str | None:
    """In words, why a scheduler cannot go on with a state; None if it can.

    Args:
        scheduler: As the run has made it; of one that is not torch's only what torch keeps counts.
        held: What a checkpoint has for it.
    """
    if not isinstance(scheduler, LRScheduler):
        return None
    name = type(scheduler).__name__
    own = scheduler.state_dict()
    is_torchs = type(scheduler).__module__ == LRScheduler.__module__
    known = own if is_torchs else {key: own[key] for key in _OF_ALL & own.keys()}
    if not isinstance(held, Mapping):
        return f"the state of {name} is {shown(held)}"
    problem = next(_differences(type(scheduler), known, held, name, is_whole=is_torchs), None)
    if not problem and "total_steps" in known and held["last_epoch"] > held["total_steps"]:
        problem = f"{name}.last_epoch is {held['last_epoch']}, of {held['total_steps']} steps in all"
    return problem or (_trial_problem(scheduler, held) if is_torchs else None)


def _differences(
    kind: type, own: Mapping[str, Any], held: Mapping[str, Any], where: str, *, is_whole: bool
) -> Iterator[str]:
    for key in held:
        names_more = key == "optimizer" or not isinstance(key, str) or hasattr(kind, key)
        if names_more and key not in own.keys() | _OF_VERSIONS:
            yield f"it has {shown(key)} for {where}, which is no part of a state"
    names = own.keys() - _OF_VERSIONS - held.keys()
    more = held.keys() - own.keys() - _OF_VERSIONS if is_whole else ()
    for keys, is_what in ((names, "missing"), (more, "new")):
        if keys:
            yield f"it is of another scheduler: {sorted(map(str, keys))} is {is_what} for {where}"
    for key in own.keys() & held.keys():
        yield from _value_problems(own[key], held[key], f"{where}.{key}", key)


def _value_problems(own: Any, held: Any, where: str, key: str) -> Iterator[str]:
    if isinstance(own, Counter):
        # Milestones, and how often each is there: a run may have others.
        alike = isinstance(held, dict) and all(type(number) is int and number >= 0 for number in _numbers(held))
    elif isinstance(own, Mapping):
        alike = isinstance(held, Mapping) and (
            key in _THEIRS or held.keys() - _OF_VERSIONS == own.keys() - _OF_VERSIONS
        )
        for name in own if alike and key not in _THEIRS else ():
            if name in held:
                yield from _value_problems(own[name], held[name], f"{where}.{name}", name)
    elif isinstance(own, list | tuple):
        alike = isinstance(held, list | tuple) and len(held) == len(own)
        for number, pair in enumerate(zip(own, held, strict=True) if alike else ()):
            yield from _value_problems(*pair, f"{where}[{number}]", key)
    else:
        alike = _is_alike(own, held, key)
    if not alike:
        yield f"{where} is {shown(held)}, where the run's own is {shown(own)}"


def _numbers(counts: Mapping[Any, Any]) -> Iterator[Any]:
    yield from counts.keys()
    yield from counts.values()


def _is_alike(own: Any, held: Any, key: str) -> bool:
    if own is None or isinstance(own, str):
        return bool(type(held) is type(own) and held == own)
    if isinstance(own, bool):
        return isinstance(held, bool)
    if key in _COUNTS:
        return type(held) is int and -(own == -1) <= held < _MOST
    if not isinstance(own, int | float | Tensor):
        # Functions are the run's own.
        return False
    if isinstance(own, float) and math.isinf(own):
        # The best metric so far, before there is any.
        return is_finite_number(held) or (isinstance(held, float) and math.isinf(held))
    return is_finite_number(held) and (float(own) < 0 or float(held) >= 0)


def _trial_problem(scheduler: LRScheduler, held: Mapping[str, Any]) -> str | None:
    """What a copy of a scheduler, over an optimizer that nobody needs, says to a step from a state."""
    if _has_functions(scheduler):
        return None
    try:
        _step(scheduler, scheduler.state_dict())
    # Any: one that cannot be tried is not judged.
    except Exception:
        return None
    try:
        _step(scheduler, held)
    except ValueError:
        # Some have an end, as OneCycleLR, and a run need not step any more.
        return None
    except Exception as error:
        return f"{type(scheduler).__name__} cannot step with its state: {type(error).__name__}: {error}"
    return None


def _step(scheduler: LRScheduler, held: Mapping[str, Any]) -> None:
    optimizer = SGD([nn.Parameter(torch.zeros(()))])
    optimizer.param_groups[:] = [
        {**group, "params": [nn.Parameter(torch.zeros(()))]} for group in copy.deepcopy(_options(scheduler))
    ]
    tried = copy.deepcopy(scheduler, {id(scheduler.optimizer): optimizer})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tried.load_state_dict(copy.deepcopy(dict(held)))
        for _ in range(2):
            tried.step(1.0) if isinstance(tried, ReduceLROnPlateau) else tried.step()


def _has_functions(scheduler: Any) -> bool:
    """Whether it would call functions of its user; a copy of them may take a whole module along."""
    held = vars(scheduler)
    return any(held.get(name) for name in _THEIRS) or any(map(_has_functions, held.get("_schedulers", ())))


def _options(scheduler: LRScheduler) -> list[dict[str, Any]]:
    groups = scheduler.optimizer.param_groups
    return [{name: value for name, value in group.items() if name != "params"} for group in groups]
