"""How much the polynomial part of an adapter takes part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from pera_lightning.export.lora.plain_lora import NO_LOSS
from pera_lightning.functional import expand, expanded_rank
from pera_lightning.functional.distributed import whole
from pera_lightning.functional.precision import without_autocast
from pera_lightning.injection import adapted_layers
from pera_lightning.layers import PeraLinear

NO_EFFECT = NO_LOSS**2
"""Share of the energy (squared norm) of dW below which a part of it has no practical effect."""
AT_ONCE = 1 << 24
"""Entries of expanded factors that exist at one time: 64 MB."""


def polynomial_energy(layer: PeraLinear) -> float:
    """Frobenius norm of the polynomial part of dW over that of its linear part.

    Both norms come from Gram matrices of the factors, `|L R|^2 = sum((L^T L) * (R R^T))`, so that no (out, in)
    matrix is ever built. Collective where the adapter is sharded over processes.

    Returns:
        The ratio; 0.0 at order 1 and for an adapter still at its start, where both parts are zero.
    """
    return _mean_energy([layer]).item()


def mean_energy(model: nn.Module) -> float:
    """Mean of `polynomial_energy` over the adapted layers of a model; 0.0 without any."""
    return mean_energy_tensor(model).item()


def mean_energy_tensor(model: nn.Module) -> Tensor:
    """`mean_energy` as a float32 scalar on the adapter's device, which need not wait for anybody to read it."""
    return _mean_energy([layer for _, layer in adapted_layers(model)])


@torch.no_grad()
def _mean_energy(layers: list[PeraLinear]) -> Tensor:
    if not layers:
        return torch.zeros(())
    device = layers[0].pera_A.device
    # Layers without polynomial terms add nothing to the sum.
    energies = [_energies(alike).to(device, non_blocking=True) for alike in _alike(layers)]
    return torch.cat([torch.zeros(1, device=device), *energies]).sum() / len(layers)


def _alike(layers: Iterable[PeraLinear]) -> Iterator[list[PeraLinear]]:
    """Layers with polynomial terms that can be computed as one, a few at a time."""
    groups = defaultdict(list)
    for layer in layers:
        if layer.pera_h is not None:
            A, B = layer.pera_A, layer.pera_B
            groups[A.device, A.dtype, A.shape, B.shape, layer.config.order, layer.config.terms].append(layer)
    for group in groups.values():
        first = group[0]
        columns = expanded_rank(first.rank, first.config.order, first.config.terms)
        count = max(1, AT_ONCE // (columns * (first.pera_A.shape[1] + first.pera_B.shape[0])))
        yield from (group[start : start + count] for start in range(0, len(group), count))


def _energies(layers: list[PeraLinear]) -> Tensor:
    """The energies (layers,) of layers that are alike."""
    rank, order, terms = layers[0].rank, layers[0].config.order, layers[0].config.terms
    A, B, coefficients = (
        torch.stack([whole(value) for value in values]).float()
        for values in (
            [layer.pera_A for layer in layers],
            [layer.pera_B for layer in layers],
            [layer.coefficients for layer in layers],
        )
    )
    left, right = expand(B, 2, order, terms), expand(A, 1, order, terms)
    with without_autocast(A.device.type):
        # Entry (i, j): the inner product of the expanded components i and j, as matrices (out, in).
        inner = (left.mT @ left) * (right @ right.mT)
        linear = inner[:, :rank, :rank].sum((1, 2))
        polynomial = (coefficients[:, :, None] * inner[:, rank:, rank:] * coefficients[:, None]).sum((1, 2))
    # Rounding may leave a tiny negative number where the parts cancel.
    return torch.where(linear > 0, polynomial.clamp_min(0) / linear, 0).sqrt()
