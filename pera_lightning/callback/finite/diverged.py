"""The error of a run whose numbers are no longer finite: what was found, what it has done, where to go on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from pera_lightning.callback.finite.last_good import where_to_go_on
from pera_lightning.checkpoint import adapter_state_dict
from pera_lightning.checkpoint.finite_values import describe_infinite, infinite_values, not_finite
from pera_lightning.errors import TrainingError
from pera_lightning.injection import clean_name

CURES = (
    "lower the learning rate or coefficient_scale, warm up longer, clip gradients (Trainer(gradient_clip_val=1.0)), or "
    "use bf16 instead of fp16"
)
DATA_CURE = "mend the rows of the data that hold them, or leave them out"
START_CURES = (
    "no step was made yet, so no learning rate can help: look at the data and at the base (adapter_disabled(module) "
    "gives what it computes alone), or use bf16 instead of fp16"
)
HALF_CURES = (
    "use the precision bf16-true, 32-true or 16-mixed: in float16 the squares of small gradients are 0, those of large "
    "ones infinite, and Adam's eps of 1e-8 is 0"
)


def diverged(trainer: Any, cause: str, got: str, *, joint: bool = False, batch: object = None) -> TrainingError:
    """The error that ends a run.

    Args:
        trainer: Of the run.
        cause: What is not finite: the beginning of a sentence.
        got: Where and when it was found.
        joint: Whether all processes stop here, so that they can ask each other.
        batch: What the module is given at this moment, which may be the cause.
    """
    data = _infinite_data(batch)
    found = f"; of the data, {describe_infinite(data)} are not finite" if data else ""
    weights, moments = infinite_weights(trainer), infinite_moments(trainer)
    ruined = bool(weights or moments) or (joint and anywhere(trainer, found=bool(weights or moments)))
    return TrainingError(
        f"{cause} not finite; training stops.",
        got=f"{got}{found}; {_state(weights, moments, elsewhere=ruined)}",
        expected="finite losses, gradients, weights and moments",
        fix=f"{DATA_CURE if data else cures(trainer)}; {where_to_go_on(trainer)}",
    )


def cures(trainer: Any) -> str:
    """What can be done against numbers that grow too large."""
    module = getattr(trainer, "lightning_module", None)
    trained = adapter_state_dict(module).values() if module is not None else ()
    if any(value.dtype == torch.float16 for value in trained):
        return HALF_CURES
    return START_CURES if getattr(trainer, "global_step", None) == 0 else CURES


def _infinite_data(batch: object) -> dict[str, int]:
    """Name of each floating tensor in a batch that holds NaN or infinity -> how many; a mask may hold -infinity."""
    leaves = {f"batch{keystr(path)}": value for path, value in tree_flatten_with_path(batch)[0]}
    tensors = {name: value for name, value in leaves.items() if isinstance(value, Tensor)}
    floating = {name: value for name, value in tensors.items() if value.is_floating_point() and value.itemsize > 1}
    counts = {name: int((value.isnan() | value.isposinf()).sum()) for name, value in floating.items()}
    return {name: count for name, count in counts.items() if count}


def _state(weights: dict[str, int], moments: dict[str, int], *, elsewhere: bool) -> str:
    words = []
    if weights:
        words.append(f"the adapter in memory holds {describe_infinite(weights)} that are not finite")
    if moments:
        words.append(f"the optimizer holds {describe_infinite(moments)} that are not finite")
    if not words and elsewhere:
        words.append("the adapter or its optimizer holds values that are not finite in another process")
    return " and ".join(words) or "before the weights take harm: adapter and optimizer in memory are finite"


def infinite_weights(trainer: Any) -> dict[str, int]:
    """Name -> number of values that are not finite, of what is trained, in this process."""
    module = getattr(trainer, "lightning_module", None)
    return {} if module is None else infinite_values(module, adapter_state_dict(module))


def infinite_moments(trainer: Any) -> dict[str, int]:
    """The same of the optimizers' states, by parameter."""
    return not_finite(dict(_moments(trainer)))


def _moments(trainer: Any) -> Iterator[tuple[str, Tensor]]:
    names = parameter_names(trainer)
    for optimizer in getattr(trainer, "optimizers", ()):
        for parameter, state in getattr(optimizer, "state", {}).items():
            for key, value in state.items() if isinstance(state, dict) else ():
                # Single numbers are counts and bounds, which may begin at infinity.
                if isinstance(value, Tensor) and value.numel() > 1:
                    yield f"{key} of {names.get(id(parameter), type(optimizer).__name__)}", value


def parameter_names(trainer: Any) -> dict[int, str]:
    """Id of a parameter of the module -> its name."""
    module = getattr(trainer, "lightning_module", None)
    return {} if module is None else {id(value): clean_name(name) for name, value in module.named_parameters()}


def anywhere(trainer: Any, *, found: bool) -> bool:
    """Whether any process has found something; collective."""
    if getattr(trainer, "world_size", 1) == 1:
        return found
    answer = torch.full((1,), float(found), device=trainer.strategy.root_device)
    torch.distributed.all_reduce(answer, torch.distributed.ReduceOp.MAX)
    return bool(answer.item())
