"""How much the polynomial part of an adapter takes part."""

from __future__ import annotations

import torch
from torch import nn

from pera_lightning.functional import expand
from pera_lightning.functional.distributed import whole
from pera_lightning.functional.products import product_norm
from pera_lightning.injection import adapted_layers
from pera_lightning.layers import PeraLinear


@torch.no_grad()
def polynomial_energy(layer: PeraLinear) -> float:
    """Frobenius norm of the polynomial part of dW over that of its linear part.

    Both norms come from Gram matrices of the factors, `|L R|^2 = sum((L^T L) * (R R^T))`, so that no (out, in)
    matrix is ever built. Collective where the adapter is sharded over processes.

    Returns:
        The ratio; 0.0 at order 1 and for an adapter still at its start, where both parts are zero.
    """
    coefficients = layer.coefficients
    if coefficients is None:
        return 0.0
    coefficients = whole(coefficients)
    order, terms = layer.config.order, layer.config.terms
    left = expand(whole(layer.pera_B).float(), 1, order, terms)
    right = expand(whole(layer.pera_A).float(), 0, order, terms)
    linear = product_norm(left[:, : layer.rank], right[: layer.rank])
    polynomial = product_norm(left[:, layer.rank :] * coefficients.float(), right[layer.rank :])
    return (polynomial / linear).item() if linear > 0 else 0.0


def mean_energy(model: nn.Module) -> float:
    """Mean of `polynomial_energy` over the adapted layers of a model; 0.0 without any."""
    energies = [polynomial_energy(layer) for _, layer in adapted_layers(model)]
    return sum(energies) / len(energies) if energies else 0.0
