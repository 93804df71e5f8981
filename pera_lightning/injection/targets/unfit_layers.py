"""Layers on which an adapter would count, be saved and be wrong, found out before anything is changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torch import nn

from pera_lightning.base_layers import base_of, beyond_multiplying, describe_supported
from pera_lightning.errors import InjectionError, TargetError
from pera_lightning.layers.call_hooks import hook_reads_weight

SHARING = ("DistributedDataParallel", "FullyShardedDataParallel")
"""Classes of torch that note at their start which gradients processes share."""


def not_plain(names: Iterable[str], modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """The layers that are linear by class and do more than multiply by their forward, and what that is.

    Not those where the user did something to one layer, which would be adapted without it: they are refused.
    """
    found = {name: beyond_multiplying(modules[name]) for name in names if "forward" not in vars(modules[name])}
    return {name: what for name, what in found.items() if what is not None}


def refuse_unfit(names: Collection[str], modules: Mapping[str, nn.Module]) -> None:
    """Raise TargetError if an adapter on one of the layers would not do what it does elsewhere.

    Args:
        names: Of the layers to adapt.
        modules: All modules of the model by clean names.
    """
    for name in names:
        _refuse_unsupported(name, modules[name])
        _refuse_more(name, modules[name])
    _refuse_within_peft(names, modules)


def refuse_wrapped(model: nn.Module) -> None:
    """Raise InjectionError if processes share the gradients of what the model held at an earlier time only."""
    for name, module in model.named_modules():
        kind = next((kind for kind in type(module).__mro__ if kind.__name__ in SHARING), None)
        if kind is not None and kind.__module__.startswith("torch."):
            raise InjectionError(
                "The model was wrapped for several processes first: each would train the adapter by itself.",
                got=f"{name or 'the model itself'!r} of kind {kind.__name__}",
                expected="a model that is wrapped when the adapter is in it",
                fix="inject the adapter first, or into the model inside, and wrap the model after that",
            )


def _refuse_unsupported(name: str, layer: nn.Module) -> None:
    if base_of(layer) is None:
        kind = type(layer)
        if isinstance(layer, nn.Linear) and "weight" not in layer._parameters:
            raise TargetError(
                "A target computes its weight at each call: nothing could be merged into it.",
                got=f"{name!r} of kind {kind.__qualname__}, whose weight is no parameter",
                expected="a weight that is a parameter",
                fix="leave it out with exclude_modules; or fix its weight first: remove_parametrizations (weight, "
                "spectral or orthogonal norm), remove_weight_norm or prune.remove, all in torch.nn.utils",
            )
        raise TargetError(
            "A target is a linear layer of a kind that is not supported.",
            got=f"{name!r} of kind {kind.__module__}.{kind.__qualname__}",
            expected=f"layers of kind {describe_supported()}",
            fix="leave it out with exclude_modules; or load the model without that quantisation, or run one batch "
            "through lazy layers",
        )


def _refuse_more(name: str, layer: nn.Module) -> None:
    what = beyond_multiplying(layer)
    if what is None and hook_reads_weight(layer):
        what = "has a hook that reads its weight, which under an adapter is the frozen one"
    if what is not None:
        raise TargetError(
            "A target is no plain linear layer: an adapter on it would be wrong, or could not be merged.",
            got=f"{name!r} of kind {type(layer).__name__}, which {what}",
            expected="layers that return the product with their weight",
            fix="leave it out with exclude_modules; or put a plain layer inside it and adapt that one; or take the "
            "replaced forward or the hook off (hooks may be set on the adapted layer after the injection)",
        )


def _refuse_within_peft(names: Collection[str], modules: Mapping[str, nn.Module]) -> None:
    owners = {id(part): name for name, module in modules.items() if _is_of_peft(module) for part in module.modules()}
    within = [name for name in names if id(modules[name]) in owners]
    if within:
        raise TargetError(
            "A target is inside an adapter of PEFT, which reads the weights of its layers.",
            got=f"{within[0]!r} in {owners[id(modules[within[0]])]!r}",
            expected="a model without other adapters in the adapted layers",
            fix="model = model.merge_and_unload() (or unload()) first; or leave these layers out with exclude_modules",
        )


def _is_of_peft(module: nn.Module) -> bool:
    bases = [kind for kind in type(module).__mro__ if kind.__module__.startswith("peft.")]
    return any(kind.__name__ in ("BaseTunerLayer", "AuxiliaryTrainingWrapper") for kind in bases)
