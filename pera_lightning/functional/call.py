"""What a call of the adapter depends on besides its tensors, worked out once for each shape."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pera_lightning.config import PeraConfig
from pera_lightning.families import Terms
from pera_lightning.form_bounds import column_count
from pera_lightning.functional.cost import Sizes, backward_path, forward_path, keeps_middle
from pera_lightning.functional.expansion.coefficient_scale import degree_factors
from pera_lightning.functional.form import Form
from pera_lightning.functional.fused.dropout_mask import keep_mask, met_dropout
from pera_lightning.functional.precision import as_matrix, in_dtype

Path = Literal["auto", "factored", "dense", "implicit"]


class Options(NamedTuple):
    """The form of an adapter and how to compute it; see `pera_linear`."""

    order: int
    terms: Terms
    scaling: float
    factors: tuple[float, ...]
    """Constant factors of the coefficients of degree 2, 3, ... up to the order."""
    dropout: float = 0.0
    """Zero while not training."""
    path: Path = "auto"

    def form(self) -> Form:
        """Without dropout's share of the scaling."""
        return Form(self.order, self.terms, self.scaling, self.factors)


def options_of(config: PeraConfig, scaling: float, in_features: int, training: bool) -> Options:
    """Of a layer with these inputs and this scaling."""
    factors = degree_factors(config.coefficient_scale, config.order, in_features)
    return Options(config.order, config.terms, scaling, factors, config.dropout if training else 0.0)


class Call(NamedTuple):
    """Ways, dtype and constants of the calls of one shape."""

    form: Form
    dtype: torch.dtype
    """Of the products with x."""
    dropout: float
    """As the masks meet it."""
    forward_path: str
    backward_path: str
    """A backward pass has no implicit form."""
    keeps_middle: bool

    def mask(self, seed: int | None, x: Tensor) -> Tensor | None:
        """(tokens, in): 1 where an entry of x is kept, 0 where it is lost; None without dropout. The same each time."""
        if seed is None:
            return None
        return keep_mask(seed, (x.numel() // x.shape[-1], x.shape[-1]), x.device, self.dtype, self.dropout)

    def dropped(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The input as (tokens, in) in the dtype of the products, its lost entries zero."""
        flat = in_dtype(as_matrix(x), self.dtype)
        return flat if mask is None else flat * mask


def chosen_path(options: Options, tokens: int, rank: int, n: int, m: int, kind: str, prepared: bool = False) -> str:
    """The path asked for, or the cheapest; see `call_of` and `forward_path`."""
    if options.path != "auto":
        return options.path
    return forward_path(_sizes(options, tokens, rank, n, m, kind), prepared)


def cheapest_paths(options: Options, tokens: int, rank: int, n: int, m: int, kind: str) -> tuple[str, str]:
    """The ways forward and back; see `call_of`. A backward pass has no implicit form."""
    sizes = _sizes(options, tokens, rank, n, m, kind)
    chosen = chosen_path(options, tokens, rank, n, m, kind)
    middle = chosen == "factored" and keeps_middle(sizes)
    return chosen, {"auto": backward_path(sizes, middle), "implicit": "factored"}.get(options.path, options.path)


def _sizes(options: Options, tokens: int, rank: int, n: int, m: int, kind: str) -> Sizes:
    columns = column_count(rank, options.order, options.terms)
    return Sizes(tokens, n, m, rank, columns, options.order, kind == "cpu")


@lru_cache(maxsize=4096)
def call_of(options: Options, tokens: int, rank: int, n: int, m: int, dtype: torch.dtype, kind: str) -> Call:
    """The cheapest ways for a shape.

    Args:
        options: The adapter's form, and how to compute.
        tokens: Rows of x.
        rank: Of the adapter.
        n: Length of a row of x.
        m: Length of a row of the output.
        dtype: Of the products.
        kind: Type of device.
    """
    order, terms, scaling, factors, dropout, _ = options
    chosen, back = cheapest_paths(options, tokens, rank, n, m, kind)
    middle = chosen == "factored" and keeps_middle(_sizes(options, tokens, rank, n, m, kind))
    dropout = met_dropout(dropout)
    form = Form(order, terms, scaling / (1 - dropout), factors)
    return Call(form, dtype, dropout, chosen, back, middle)
