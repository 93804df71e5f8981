"""`merge_adapter`: from an adapted model to a plain one."""

from __future__ import annotations

import logging

import torch
from torch import nn

from pera_lightning.errors import InjectionError
from pera_lightning.injection import adapted_layers
from pera_lightning.injection.inject import take_out
from pera_lightning.layers import PeraLinear

logger = logging.getLogger(__name__)


@torch.no_grad()
def merge_adapter(model: nn.Module) -> nn.Module:
    """Fold every adapter into its base weight and put the plain layers back, in place. All or nothing.

    The merged model computes what the adapted one did, up to the rounding to the base's dtype, which is
    reported as the largest relative error of a weight matrix (Frobenius norm).

    Args:
        model: A model with adapters.

    Returns:
        The same model without adapters. Modules saved whole keep their trained values.

    Raises:
        InjectionError: The model holds no adapter, an adapter holds a value that is not finite, or an adapted
            weight is shared with another module (a tied embedding), which the merge would change too.
    """
    layers = dict(adapted_layers(model))
    if not layers:
        raise InjectionError(
            "There is no adapter to merge.",
            got="a model without adapters",
            expected="a model with adapters",
            fix="load_adapter(model, folder) first",
        )
    _refuse_tied(model, layers)
    for layer in layers.values():
        layer.refuse_infinite()
    errors = {}
    for name, layer in layers.items():
        if layer.merged:
            layer.unmerge()
        errors[name] = layer.merge_for_good()
    take_out(model)
    worst = max(errors, key=errors.__getitem__)
    logger.info("merged %d layers; largest relative rounding error %.1e (%s)", len(errors), errors[worst], worst)
    return model


def _refuse_tied(model: nn.Module, layers: dict[str, PeraLinear]) -> None:
    for name, layer in layers.items():
        weight = layer.base_layer.weight
        owners = [
            owner
            for owner, module in model.named_modules()
            if any(parameter is weight for parameter in module._parameters.values())
        ]
        if len(owners) > 1:
            raise InjectionError(
                "An adapted weight is tied to another module, which a merge would change too.",
                got=f"the weight of {name!r} also belongs to {', '.join(owners)}",
                expected="weights of their own in adapted layers",
                fix="leave it out with exclude_modules, or untie the weights before training",
            )
