"""Whether a layer that is called gives the product with its weight as it is.

An adapter adds to what a layer returns, and a merge adds to its weight: both give the same only if nothing stands
between the two. Layers are judged by what they do. A class that computes by the forward of its kind (`nn.Linear` and so
on) is plain. Any other is tried, with random numbers in place of everything it holds: a change of its weight must
change what it returns by the product with that change. So branches beside the product (LoRA layers of some libraries)
are right, and scales, masks, norms and quantisation around it are not.
"""

from __future__ import annotations

import copy
import functools
import inspect
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn

from pera_lightning.base_layers.base import Base
from pera_lightning.base_layers.registry import base_of, describe_supported
from pera_lightning.errors import TargetError
from pera_lightning.functional.precision import without_autocast

SMALL = (3, 5)
"""(out, in) of the layer that a class is tried with first."""
LARGEST = 2**18
"""Entries of a weight up to which a class is tried in the layer's own size too; larger ones are cut down."""
INPUTS = (((7,), 1.0), ((2, 3), 100.0), ((40,), 10.0), ((2, 2, 3), 1e4))
"""What comes before the features (few rows, a sequence, many rows, a dimension more), and the size of the numbers.

What is clamped or quantised shows on large ones.
"""
TOLERANCE = 1e-4
"""Of products that are summed in another order, in single precision."""
AUTOCAST_TOLERANCE = 0.05
"""Of the same in bfloat16."""


def beyond_multiplying(layer: nn.Module) -> str | None:
    """What a layer does when it is called, beyond adding to the product with its weight.

    The layer, its tensors and the random state stay as they are. Module hooks are not looked at: those of an adapted
    layer see what it returns as a whole.

    Args:
        layer: A layer that some `Base` accepts, on any device.

    Returns:
        Words for a message, or None if it does nothing of the kind.
    """
    base = base_of(layer)
    replaced = replaced_forward(layer)
    if base is None or replaced is not None:
        return replaced
    kind: Any = type(layer)
    stored = layer._parameters.get("weight")
    if stored is not None and layer.weight is not stored:
        return "hands out another weight than it holds"
    if kind.forward is base.plain_forward() and _is_own(kind) and kind.__call__ is nn.Module.__call__:
        return None
    if not base.linear or base.quantization(layer) is not None:
        return "has a forward of its own"
    if len(inspect.signature(kind.forward).parameters) > 2:
        return "takes other arguments than features"
    return _tried(layer, base)


def _is_own(kind: type[nn.Module]) -> bool:
    """Whether the forward of a kind is the one that its library came with, not one that others have put there."""
    owner = next(parent for parent in kind.__mro__ if "forward" in vars(parent))
    home = getattr(kind.forward, "__globals__", {}).get("__name__", "")
    return home.partition(".")[0] == owner.__module__.partition(".")[0]


def adaptable_base(layer: nn.Module, *, linear: bool) -> Base:
    """The `Base` of a layer that an adapter is to sit on.

    Args:
        layer: The layer.
        linear: Whether it is to be called with feature vectors, or with ids.

    Raises:
        TargetError: It is of no supported kind, or does more than multiply.
    """
    base, what = base_of(layer), beyond_multiplying(layer)
    if base is None or base.linear != linear or what is not None:
        raise TargetError(
            "No adapter can sit on this layer.",
            got=type(layer).__name__ + ("" if what is None else f", which {what}"),
            expected=describe_supported(),
            fix="name linear layers in target_modules",
        )
    return base


def replaced_forward(layer: nn.Module) -> str | None:
    """What stands in the way where a forward was set on a layer itself, in words; None if nothing does."""
    forward: Any = vars(layer).get("forward")
    if isinstance(forward, functools.partial) and forward.func.__module__ == "accelerate.hooks":
        hook = vars(layer)["_hf_hook"]
        if getattr(hook, "offload", False):
            return "has no weight between its calls, since accelerate off-loads it"
        if not _only_places(hook):
            return f"has a hook of accelerate ({type(hook).__name__}) that may change what it computes"
        forward = vars(layer)["_old_forward"]
    # What torch.compile makes of a function leads to it. So does what others wrap, which does more.
    while getattr(forward, "__globals__", {}).get("__name__", "").startswith("torch._dynamo"):
        forward = forward.__wrapped__
    own = getattr(forward, "__self__", None) is layer and forward.__func__ is type(layer).forward
    return None if forward is None or own else "has a forward that was replaced on the instance"


def _only_places(hook: Any) -> bool:
    """Whether a hook of accelerate moves tensors between devices or dtypes, and nothing else."""
    if type(hook).__module__ != "accelerate.hooks" or hook.no_grad or getattr(hook, "offload", False):
        return False
    return all(map(_only_places, getattr(hook, "hooks", ())))


def _tried(layer: nn.Module, base: Base) -> str | None:
    own = base.features(layer)[::-1]
    with torch.random.fork_rng(devices=[]), without_autocast("cpu"), torch.device("cpu"):
        # Small first: the layer may be large, or have no memory. What depends on sizes shows on the second.
        cut = own if own[0] * own[1] <= LARGEST else (_cut_down(own[0]), _cut_down(own[1]))
        results = [_tried_in(layer, base, SMALL), _tried_in(layer, base, cut)]
        if all(isinstance(result, Exception) for result in results) and cut != own:
            # Its other tensors may fit its own sizes only.
            results.append(_tried_in(layer, base, own))
    found = [result for result in results if isinstance(result, str)]
    if found or None in results:
        return found[0] if found else None
    return f"cannot be called with features alone ({type(results[-1]).__name__})"


def _cut_down(size: int) -> int:
    """A size that can be computed with, and divided by the same powers of two up to 64."""
    return size if size <= 512 else 448 + size % 64


def _tried_in(layer: nn.Module, base: Base, sizes: tuple[int, int]) -> str | Exception | None:
    result: str | Exception | None = None
    # In double precision a large branch drowns no difference; some code computes in single precision by itself.
    for dtype in (torch.float64, torch.float32):
        try:
            found = _difference(_twin(layer, base, sizes, dtype), base, sizes, dtype)
        except Exception as error:  # whatever the code of an unknown class raises
            result = error if result is None else result
        else:
            if found is None:
                return None
            result = found
    return result


def _difference(twin: nn.Module, base: Base, sizes: tuple[int, int], dtype: torch.dtype) -> str | None:
    change = torch.randn(sizes, dtype=dtype)
    weight = cast("nn.Parameter", twin._parameters["weight"])
    with torch.no_grad():
        changed = nn.Parameter(base.stored(base.weight(twin) + change))
    for training, gradients in product((False, True), (None, False, True)):
        twin.train(training)
        for parameter in (weight, changed):
            parameter.requires_grad_(bool(gradients))
        for autocast in (False, True) if gradients is None else (False,):
            with torch.set_grad_enabled(gradients is not None), torch.autocast("cpu", torch.bfloat16, autocast):
                found = _changed_output(twin, (weight, changed), change, autocast)
            if found is not None:
                return found
    return None


def _changed_output(
    twin: nn.Module, weights: tuple[nn.Parameter, nn.Parameter], change: Tensor, rounds: bool
) -> str | None:
    for shape, scale in INPUTS:
        x = scale * torch.randn(*shape, change.shape[1], dtype=change.dtype)
        before = _called(twin, x)
        twin._parameters["weight"] = weights[1]
        after = _called(twin, x)
        twin._parameters["weight"] = weights[0]
        if not isinstance(before, Tensor) or not isinstance(after, Tensor):
            return f"returns a {type(before).__name__}"
        with without_autocast("cpu"), torch.no_grad():
            expected = x @ change.T
            if before.shape != expected.shape:
                return "returns another shape than the product with its weight has"
            error = (after.to(x.dtype) - before.to(x.dtype) - expected).norm()
            # Not in double precision, which autocast leaves alone, unless the code goes over to another.
            rounding = AUTOCAST_TOLERANCE * (expected.norm() + before.norm()) if rounds else 0.0
            if not error <= TOLERANCE * expected.norm() + rounding:
                return "does more to what its weight gives than to add to it"
    return None


def _called(twin: nn.Module, x: Tensor) -> Any:
    torch.manual_seed(0)
    return twin(x.clone())


def _twin(layer: nn.Module, base: Base, sizes: tuple[int, int], dtype: torch.dtype) -> nn.Module:
    """A layer of the same class and options, without hooks, over other numbers."""
    # Neither __init__, whose arguments nobody knows, nor a __new__ of a class that wraps others.
    twin: nn.Module = object.__new__(type(layer))
    for name, value in vars(layer).items():
        kept = copy.copy(value) if isinstance(value, dict | list | set) else value
        twin.__dict__[name] = _other_numbers(kept, dtype) if isinstance(kept, Tensor) else kept
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        twin.__dict__[hooks].clear()
    _set_sizes(twin, *sizes)
    for name, child in twin._modules.items():
        twin._modules[name] = copy.deepcopy(child)
    for part in twin.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                tensors[name] = None if tensor is None else _other_numbers(tensor, dtype)  # type: ignore[assignment]
    twin._parameters["weight"] = nn.Parameter(base.stored(torch.randn(sizes, dtype=dtype)))
    if twin._parameters.get("bias") is not None:
        twin._parameters["bias"] = nn.Parameter(torch.randn(sizes[0], dtype=dtype))
    return twin


def _set_sizes(twin: nn.Module, out_features: int, in_features: int) -> None:
    # Those of nn.Linear and of Conv1D.
    sizes = {"in_features": in_features, "out_features": out_features, "nx": in_features, "nf": out_features}
    twin.__dict__.update({name: size for name, size in sizes.items() if name in vars(twin)})


def _other_numbers(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers that show where they are used: scales that begin at one, products that begin at zero, open masks."""
    if tensor.is_floating_point():
        other = torch.rand(tensor.shape, dtype=dtype) + 0.5
    elif tensor.dtype in (torch.bool, torch.uint8) and not tensor.is_meta:
        other = (tensor.detach().cpu() == 0).to(tensor.dtype)
    else:
        other = torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor.detach().cpu().clone()
    return nn.Parameter(other, requires_grad=False) if isinstance(tensor, nn.Parameter) else other
