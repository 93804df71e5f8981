"""Whether the weights that a merge is going to store fit the dtype that it stores them in; before it stores any."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from pera_lightning.base_layers import expect_base
from pera_lightning.layers import PeraLinear, scaled_factors
from pera_lightning.layers.merging import fits, refuse_overflow


@torch.no_grad()
def refuse_sums_beyond(
    layers: Mapping[str, PeraLinear], starts: Mapping[str, Tensor], plain_dtype: torch.dtype | None
) -> None:
    """Raise InjectionError if base plus adapter of a layer is beyond the dtype that it is going to be rounded to.

    The sum itself is only made where the sizes of base and factors leave it open.

    Args:
        layers: The layers to merge, by name; one that is merged has its sum in its base.
        starts: Name -> weight (out, in) to add to in place of the base's.
        plain_dtype: Of the plain layers that come in the place of quantised ones; None if these are quantised again.
    """
    for name, layer in layers.items():
        base, below = expect_base(layer.base_layer), layer.base_layer
        dense = layer.quantization is None
        dtype = base.written_dtype(below) if dense or plain_dtype is None else plain_dtype
        start = starts.get(name)
        if layer.merged and start is None:
            merged = base.weight(below)
            refuse_overflow(merged, dtype, partial(base.weight, below), name)
            continue
        weight = base.weight(below) if start is None else start
        if not _surely_fits(layer, weight, dtype):
            refuse_overflow(layer.merged_weight(start), dtype, partial(_itself, weight), name)


def _itself(weight: Tensor) -> Tensor:
    return weight


def _surely_fits(layer: PeraLinear, weight: Tensor, dtype: torch.dtype) -> bool:
    left, right = scaled_factors(layer)
    bound = (left.abs().amax(0) * right.abs().amax(1)).sum().double()
    ends = torch.stack([weight.amin(), weight.amax()]).double()
    return fits(torch.stack([ends[0] - bound, ends[1] + bound]), dtype)
