"""An adapted layer as a plain LoRA: exactly, or cut to a smaller rank."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pera_lightning.config import PeraConfig
from pera_lightning.functional.expansion.coefficient_scale import scaled_coefficients
from pera_lightning.functional.factor_norms import product_norm
from pera_lightning.functional.weight import expanded_factors
from pera_lightning.injection import LayerPlan


class LoraFactors(NamedTuple):
    """The weight change `up @ down` of one layer, coefficients and scaling included."""

    down: Tensor
    """LoRA's A, shape (rank, in)."""
    up: Tensor
    """LoRA's B, shape (out, rank)."""

    @property
    def rank(self) -> int:
        """Number of rows of `down` and columns of `up`."""
        return self.down.shape[0]


class StoredLora(NamedTuple):
    """What the files of an export hold, by the names of the model."""

    factors: dict[str, LoraFactors]
    """Layer name -> factors as they are in the file: without alpha / r."""
    saved: dict[str, Tensor]
    """The tensors of the modules saved whole."""


class Spectrum(NamedTuple):
    """The thin singular value decomposition `left @ diag(values) @ right` of a weight change."""

    left: Tensor
    """Shape (out, k), orthonormal columns, with k at most K."""
    values: Tensor
    """Shape (k,), falling."""
    right: Tensor
    """Shape (k, in), orthonormal rows."""

    def lost(self, rank: int) -> float:
        """Relative error (Frobenius norm) of keeping only the first `rank` values; 0 for a change of zero."""
        total = self.values.square().sum()
        return 0.0 if total == 0 else (self.values[rank:].square().sum() / total).sqrt().item()

    def smallest_rank(self, max_error: float) -> int:
        """The fewest values, at least one, whose `lost` is at most `max_error`."""
        return next(rank for rank in range(1, len(self.values) + 1) if self.lost(rank) <= max_error)

    def cut(self, rank: int) -> LoraFactors:
        """The best approximation of a rank (Eckart-Young), half of each singular value on either side."""
        root = self.values[:rank].sqrt()
        return LoraFactors(root[:, None] * self.right[:rank], self.left[:, :rank] * root)


@torch.no_grad()
def exact_factors(A: Tensor, B: Tensor, h: Tensor | None, config: PeraConfig, layer: LayerPlan) -> LoraFactors:
    """The expanded factors of a layer: the LoRA of rank K that PERA is (paper Eq. 6 to 8).

    Column i of `up` and row i of `down` get the same norm: products of small entries of B would vanish in half
    precision otherwise.

    Args:
        A: Shape (rank, in).
        B: Shape (out, rank).
        h: Shape (number of monomials,), as trained; None at order 1.
        config: The adapter's options.
        layer: Rank and alpha of this layer.

    Returns:
        Factors in float64.
    """
    A, B = A.double(), B.double()
    if h is not None:
        scale = config.coefficient_scale
        h = scaled_coefficients(h.double(), scale, layer.rank, config.order, config.terms, A.shape[1])
    up, down = expanded_factors(A, B, h, order=config.order, terms=config.terms)
    return _balanced(LoraFactors(down, up * config.scaling(layer.rank, layer.alpha)))


def _balanced(factors: LoraFactors) -> LoraFactors:
    down, up = factors
    ratio = (up.norm(dim=0) / down.norm(dim=1)).sqrt()
    # A component that is zero on one side is zero altogether.
    used = ratio.isfinite() & (ratio > 0)
    return LoraFactors(torch.where(used[:, None], down * ratio[:, None], 0.0), torch.where(used, up / ratio, 0.0))


def spectrum(factors: LoraFactors) -> Spectrum:
    """Singular values of `up @ down` from QR of both and the decomposition of a K x K core; never the dense matrix."""
    left, left_core = torch.linalg.qr(factors.up)
    right, right_core = torch.linalg.qr(factors.down.T)
    inner_left, values, inner_right = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    return Spectrum(left @ inner_left, values, inner_right @ right.T)


def padded(factors: LoraFactors, rank: int) -> LoraFactors:
    """The same weight change with zeros appended up to a rank."""
    missing = rank - factors.rank
    return LoraFactors(F.pad(factors.down, (0, 0, 0, missing)), F.pad(factors.up, (0, missing)))


def relative_rounding(factors: LoraFactors, rounded: LoraFactors) -> float:
    """Relative error (Frobenius norm) of the weight change after rounding its factors; never the dense matrix."""
    down, up = rounded.down.double(), rounded.up.double()
    # up' down' - up down = (up' - up) down + up' (down' - down): both terms are small, nothing cancels.
    left = torch.cat([up - factors.up, up], dim=1)
    right = torch.cat([factors.down, down - factors.down])
    norm = product_norm(factors.up, factors.down).item()
    return 0.0 if norm == 0 else product_norm(left, right).item() / norm
