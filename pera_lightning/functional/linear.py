"""The adapter's contribution to a linear layer's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pera_lightning.config import Terms, check_dropout
from pera_lightning.errors import ConfigError
from pera_lightning.functional.weight import expanded_factors

Path = Literal["auto", "factored", "dense"]


def pera_linear(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    h: Tensor | None = None,
    *,
    order: int = 2,
    terms: Terms = "full",
    scaling: float = 1.0,
    dropout: float = 0.0,
    training: bool = False,
    path: Path = "auto",
) -> Tensor:
    """What a PERA adapter adds to the output of its frozen linear layer: `dropout(x) dW^T`.

    The factors are expanded in their own dtype and only then rounded to the dtype of x, because a product of
    two small entries loses more in half precision than each of them.

    Args:
        x: Input, shape (..., in), floating; no leading dimension, several and empty ones are all right.
        A: Shape (rank, in), floating.
        B: Shape (out, rank), the dtype of A.
        h: Coefficients, shape (number of monomials,); None when there are none.
        order: Highest degree; 1 is LoRA.
        terms: Which monomials take part, see `monomials`.
        scaling: Factor on the result.
        dropout: Probability of zeroing an entry of x (the others grow by `1 / (1 - dropout)`).
        training: Whether dropout is active.
        path: How to compute. "factored": two thin products through the K expanded columns. "dense": build dW,
            then one product. "auto" chooses.

    Returns:
        Tensor of shape (..., out) and the dtype of x (under autocast: autocast's dtype). A bias is no part
        of the adapter.

    Raises:
        ConfigError: Shapes do not fit, or an option is out of range.
    """
    check_dropout(dropout)
    if path not in PATHS:
        raise ConfigError(
            "Unknown way to compute.",
            got=repr(path),
            expected=" or ".join(map(repr, PATHS)),
            fix="use 'auto'",
        )
    if x.dim() == 0 or x.shape[-1] != A.shape[-1]:
        raise ConfigError(
            "The input does not fit the adapter.",
            got=f"x of shape {tuple(x.shape)}",
            expected=f"(..., {A.shape[-1]})",
            fix="the last dimension of x is the layer's in_features",
        )
    left, right = expanded_factors(A, B, h, order=order, terms=terms)
    if dropout > 0 and training:
        x = F.dropout(x, dropout)
    return PATHS[path](x, left, right) * scaling


def _factored(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return F.linear(F.linear(x, right.to(x.dtype)), left.to(x.dtype))


def _dense(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    # Built outside autocast: the sum over K terms keeps the factors' precision.
    with torch.autocast(x.device.type, enabled=False):
        weight = left @ right
    return F.linear(x, weight.to(x.dtype))


# The seam for faster ways: each takes (x, left (out, K), right (K, in)) and returns x (left @ right)^T.
PATHS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "auto": _factored,
    "factored": _factored,
    "dense": _dense,
}
