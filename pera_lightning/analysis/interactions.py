"""How strongly the rank components of an adapter act together on given inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import Tensor, nn

from pera_lightning.errors import InjectionError
from pera_lightning.export.probe import model_outputs
from pera_lightning.functional import monomials
from pera_lightning.functional.precision import without_autocast
from pera_lightning.injection import original_names
from pera_lightning.layers import PeraEmbedding, PeraLinear
from pera_lightning.layers.scaled_factors import scaled_factors

Interactions = dict[str, Tensor]
"""Layer -> matrix S of shape (r, r), symmetric, float32."""


def interaction_strength(model: nn.Module, inputs: Sequence[Any]) -> Interactions:
    """How strongly pairs of rank components act together, on the tokens that reach each layer.

    Let gates g multiply the columns of B, `b_i -> g_i b_i`. Then the adapter's output `dW(g) x` is a polynomial in g,
    and its mixed second derivatives tell how far the effect of one component depends on another one:

        S_ij = mean over tokens of | d^2 (dW(g) x) / dg_i dg_j |  /  mean over tokens of | dW x |,  both at g = 1

    At order 2 that is `scaling * |h_ij| * |(a_i * a_j) . x| * |b_i * b_j|` over the mean output, twice that where
    i = j. A plain LoRA is linear in g: its S is zero.

    This is a measure of this project, of the adapter alone. The paper's Eq. 12 derives the output of the whole model by
    a hidden state: see `hidden_interactions`.

    Args:
        model: A model with adapters, unmerged and whole on this process. It is called in eval mode.
        inputs: What to call it with: a tensor, a tuple of arguments or a dict of keyword arguments for each call.
            Padding counts like any other token.

    Returns:
        A matrix for each adapted layer that was called and that has products; empty at order 1.

    Raises:
        InjectionError: The model holds no adapter, or one that is merged.
    """
    layers = {name: layer for name, layer in original_names(model) if isinstance(layer, PeraLinear)}
    if not layers or any(layer.merged for layer in layers.values()):
        raise InjectionError(
            "Interactions are measured on adapters beside their bases.",
            got="merged layers" if layers else "a model without PERA layers",
            expected="a model with an unmerged adapter",
            fix="call unmerge() on the layers first" if layers else "load the adapter first",
        )
    sums = {name: _Sums(layer) for name, layer in layers.items() if layer.pera_h is not None}
    with torch.no_grad(), ExitStack() as hooks:
        for name, found in sums.items():
            hooks.enter_context(layers[name].register_forward_pre_hook(found.hear))
        for values in inputs:
            model_outputs(model, values)
    return {name: found.strengths() for name, found in sums.items() if found.tokens}


class _Sums:
    """Norms of one layer's output and of its second derivatives, summed over tokens."""

    def __init__(self, layer: PeraLinear) -> None:
        self._rank = layer.rank
        self._embedding = isinstance(layer, PeraEmbedding)
        self._left, self._right = scaled_factors(layer)
        self._gram = self._left.T @ self._left
        self._pairs = _derivatives(layer)
        # Up to order 2 a pair has one column, whose norm takes no product with the others.
        self._several = {pair: terms for pair, terms in self._pairs.items() if len(terms) > 1}
        self._outputs = self._gram.new_zeros(())
        self._columns = self._gram.new_zeros(len(self._gram))
        self._sums = dict.fromkeys(self._several, self._outputs)
        self.tokens = 0

    def hear(self, layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        """Count the tokens of one call of the layer, as its hook."""
        x = arguments[0]
        with without_autocast(x.device.type):
            if self._embedding:
                middle = self._right.T[x.reshape(-1)]
            else:
                middle = x.reshape(-1, x.shape[-1]).to(self._right.dtype) @ self._right.T
            self.tokens += len(middle)
            self._outputs = self._outputs + _norms(middle, self._gram)
            self._columns += middle.abs().sum(0)
            for pair, terms in self._several.items():
                columns, factors = list(terms), torch.tensor(list(terms.values())).to(middle)
                gram = self._gram[columns][:, columns]
                self._sums[pair] = self._sums[pair] + _norms(middle[:, columns] * factors, gram)

    def strengths(self) -> Tensor:
        """S; zero where the adapter's output is."""
        strengths = torch.zeros(self._rank, self._rank)
        single = self._columns * self._left.norm(dim=0)
        for (i, j), terms in self._pairs.items():
            if (i, j) in self._sums:
                strengths[i, j] = self._sums[i, j]
            else:
                [(column, factor)] = terms.items()
                strengths[i, j] = factor * single[column]
            strengths[j, i] = strengths[i, j]
        outputs = self._outputs.float().cpu()
        return strengths / outputs if outputs > 0 else torch.zeros_like(strengths)


def _norms(middle: Tensor, gram: Tensor) -> Tensor:
    """Sum over the rows z of `middle` of the norm of `L z`, where `gram` is `L^T L`."""
    # Rounding may leave a tiny negative number where the columns cancel.
    return ((middle @ gram) * middle).sum(-1).clamp_min(0).sqrt().sum()


def _derivatives(layer: PeraLinear) -> dict[tuple[int, int], dict[int, float]]:
    """Pair (i, j), i <= j -> columns whose monomial has both, with its second derivative by g_i and g_j at 1."""
    found: dict[tuple[int, int], dict[int, float]] = {}
    every = monomials(layer.rank, layer.config.order, layer.config.terms)
    for column, indices in enumerate(every, start=layer.rank):
        powers = Counter(indices)
        for i, j in combinations_with_replacement(sorted(powers), 2):
            value = powers[i] * (powers[j] - (i == j))
            if value:
                found.setdefault((i, j), {})[column] = float(value)
    return found
