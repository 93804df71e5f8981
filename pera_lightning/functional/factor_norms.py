"""Inner products and norms of matrices that are known as products of thin factors, without building them."""

from __future__ import annotations

from torch import Tensor

from pera_lightning.functional.precision import without_autocast


def product_inner(left: Tensor, right: Tensor, other_left: Tensor, other_right: Tensor) -> Tensor:
    """Frobenius inner product of `left @ right` and `other_left @ other_right`.

    It is `tr((L R)^T L' R')`, the sum of the entries of `(L^T L') * (R R'^T)`.

    Args:
        left: (out, K).
        right: (K, in).
        other_left: (out, M), on any device.
        other_right: (M, in), on any device.
    """
    with without_autocast(left.device.type):
        return ((left.T @ other_left.to(left.device)) * (right @ other_right.to(left.device).T)).sum()


def product_norm(left: Tensor, right: Tensor) -> Tensor:
    """Frobenius norm of `left @ right`; see `product_inner`."""
    # Rounding may leave a tiny negative number where the parts cancel.
    return product_inner(left, right, left, right).clamp_min(0).sqrt()
