"""Whether an optimizer can go on with the state that it has taken from a checkpoint; it takes whatever is there."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from numbers import Number

from torch import Tensor
from torch.optim import Optimizer

_OF_THE_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "acc_delta", "sum")
"""What torch's optimizers keep for each value of a parameter."""


def optimizer_problem(optimizer: Optimizer) -> str | None:
    """In words, what of an optimizer is of another form than that of a new one; None if it can step.

    Args:
        optimizer: After its `load_state_dict`. Of optimizers that are not torch's the options alone are looked at.
    """
    return next(_problems(optimizer), None)


def _problems(optimizer: Optimizer) -> Iterator[str]:
    for group in optimizer.param_groups:
        for name, default in optimizer.defaults.items():
            if name in group and not _is_alike(group[name], default):
                yield f"the optimizer's {name} is {reprlib.repr(group[name])}, where {default!r} is usual"
    if not type(optimizer).__module__.startswith("torch.optim"):
        return
    for parameter, state in optimizer.state.items():
        moments = state if isinstance(state, Mapping) else {"state": state}
        for name, value in moments.items():
            if name not in (*_OF_THE_PARAMETER, "state") or value is None:
                continue
            if not isinstance(value, Tensor):
                yield f"the optimizer's {name} is {reprlib.repr(value)}"
            elif value.shape != parameter.shape:
                shapes = f"{tuple(value.shape)}, for a parameter of shape {tuple(parameter.shape)}"
                yield f"the optimizer's {name} is of shape {shapes}"


def _is_alike(value: object, default: object) -> bool:
    # Learning rates and others may be tensors.
    if isinstance(default, Number) and not isinstance(default, bool):
        return isinstance(value, Number | Tensor)
    if isinstance(default, Sequence) and not isinstance(default, str):
        if not isinstance(value, Sequence) or len(value) != len(default):
            return False
        return all(_is_alike(*pair) for pair in zip(value, default, strict=True))
    return True
