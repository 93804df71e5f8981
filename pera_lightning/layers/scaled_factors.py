"""An adapted layer's weight change as two thin matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from pera_lightning.functional.precision import without_autocast
from pera_lightning.functional.weight import expanded_factors
from pera_lightning.layers.pera_linear import PeraLinear


@torch.no_grad()
def scaled_factors(layer: PeraLinear) -> tuple[Tensor, Tensor]:
    """The plain LoRA that the layer's adapter equals: `dW = left @ right`, with everything that scales it in `left`.

    Returns:
        Shapes (out, K) and (K, in), in float32 or better.
    """
    dtype = torch.promote_types(layer.pera_A.dtype, torch.float32)
    coefficients = layer.coefficients
    with without_autocast(layer.pera_A.device.type):
        left, right = expanded_factors(
            layer.pera_A.to(dtype),
            layer.pera_B.to(dtype),
            None if coefficients is None else coefficients.to(dtype),
            order=layer.config.order,
            terms=layer.config.terms,
        )
    return left * layer.scaling, right
