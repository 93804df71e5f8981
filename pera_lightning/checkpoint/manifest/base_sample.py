"""A few weights of the base, kept with the adapter: enough to notice that it is put on another one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pera_lightning.base_layers import base_of
from pera_lightning.functional.distributed import is_distributed
from pera_lightning.injection import adapted_layers, marked_modules
from pera_lightning.injection.copies import following
from pera_lightning.injection.saved_modules import saved_parameters
from pera_lightning.injection.shared_memory import SharedMemory
from pera_lightning.layers import PeraLinear, stored_weight

BaseSample = Mapping[str, Sequence[float]]
"""Layer name -> some of its weights."""

LAYERS = 16
WEIGHTS = 8
SAME_STORAGE = 0.02
"""Largest relative difference in a layer where neither base is quantised; bfloat16 rounds by less than 0.004."""
OTHER_STORAGE = 0.5
"""The same over all layers where one is quantised; 4 bits are off by 0.1, another base by 1.4."""


@torch.no_grad()
def base_sample(model: nn.Module) -> dict[str, list[float]]:
    """Eight weights, spread evenly, of each of at most 16 adapted layers, spread evenly.

    Layers whose weights are not here are left out: on the meta device, sharded over processes, or merged; and those
    that share theirs with a module trained whole.
    """
    layers = list(adapted_layers(model))
    chosen = dict(layers[:: math.ceil(len(layers) / LAYERS)])
    weights = {name: _weight(layer) for name, layer in frozen_layers(model)[0] if name in chosen}
    return {name: spread(weight) for name, weight in weights.items() if weight is not None}


def frozen_layers(model: nn.Module) -> tuple[list[tuple[str, PeraLinear]], int]:
    """The adapted layers whose weights are here and stay as they are, by name; and how many are adapted in all."""
    trained = {id(value) for _, module in marked_modules(model) for value in saved_parameters(module)}
    layers, copied, memory = list(adapted_layers(model)), following(model), SharedMemory(model)
    found = [
        (name, layer)
        for name, layer in layers
        if not layer.merged
        and not memory.reaches(stored_weight(layer), trained)
        and _is_here(stored_weight(layer))
        # An average of equal weights is only about the same.
        and id(layer) not in copied
    ]
    return found, len(layers)


def _is_here(stored: Any) -> bool:
    return not (is_distributed(stored) or stored.dim() != 2 or stored.is_meta)


def _weight(layer: PeraLinear) -> Tensor | None:
    base = base_of(layer.base_layer)
    return None if base is None else base.weight(layer.base_layer)


def spread(weight: Tensor) -> list[float]:
    """The sample of one weight (out, in), which is not copied."""
    columns = weight.shape[1]
    places = torch.linspace(0, weight.numel() - 1, WEIGHTS, dtype=torch.float64).long().to(weight.device)
    return [float(f"{value:.5g}") for value in weight[places // columns, places % columns].tolist()]


def sample_difference(stored: BaseSample, present: BaseSample, *, same_storage: bool) -> str | None:
    """In words, if two samples are not of the same base; None if they may be.

    Args:
        stored: Of the base that the adapter was trained on.
        present: Of the one at hand.
        same_storage: Whether neither is quantised.
    """
    names = [name for name in stored if name in present]
    if not same_storage:
        there, here = ([value for name in names for value in sample[name]] for sample in (stored, present))
        distance = _distance(there, here)
        return f"the weights differ by {distance:.0%} of their size" if distance > OTHER_STORAGE else None
    differing = [name for name in names if _distance(stored[name], present[name]) > SAME_STORAGE]
    if not differing:
        return None
    distance = _distance(stored[differing[0]], present[differing[0]])
    return (
        f"{len(differing)} of {len(names)} compared layers have other weights, e.g. {differing[0]!r}, whose weights "
        f"differ by {distance:.1%} of their size"
    )


def _distance(there: Sequence[float], here: Sequence[float]) -> float:
    if len(there) != len(here):
        return math.inf
    size = math.hypot(*there)
    distance = math.dist(there, here)
    return distance / size if size else math.inf if distance else 0.0
