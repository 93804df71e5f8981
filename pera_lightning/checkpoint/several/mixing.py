"""The weighted sum of several adapters as one adapter."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from pera_lightning.config import PeraConfig
from pera_lightning.errors import ConfigError, InjectionError
from pera_lightning.functional import expanded_rank
from pera_lightning.injection import (
    DetachedAdapter,
    InjectionPlan,
    InjectionReport,
    LayerPlan,
    TokenPlan,
    adapted_layers,
    inject_plan,
    remove_adapter,
    token_layers,
)
from pera_lightning.injection.detached import modules_of, owner_of
from pera_lightning.injection.targets.names import within_any
from pera_lightning.layers import PeraLinear, TokenRowsLayer, scaled_factors

Weighted = Mapping[str, tuple[DetachedAdapter, float]]
"""Adapters by name, each with its weight."""


@torch.no_grad()
def inject_mixture(model: nn.Module, adapters: Weighted) -> InjectionReport:
    """Put the weighted sum of adapters into a model without adapters. All or nothing.

    The mixture is the base plus the weighted sum of the changes that the adapters make to its parameters.

    - `dW = sum_i w_i dW_i`, exactly: the change is a polynomial in A and B, so these do not add; but each dW is the
      product of its expanded factors, and side by side those make the sum. That is an adapter of order 1 and of rank
      `sum_i K_i`, a plain LoRA. Layers that only some adapt are adapted with what those bring.
    - Token rows: `delta[t] = sum_i w_i delta_i[t]`, for all tokens that one of them trains.
    - Modules saved whole and biases: `v = v0 + sum_i w_i (v_i - v0)`, the same rule.
    - Dropout is 0.

    Raises:
        ConfigError: A weight is 0 or not finite.
        InjectionError: One adapts a layer that another trains whole or rows of, or a buffer (running statistics)
            differs from the base's.
        TargetError: A layer is no longer in the model.
    """
    plan = _plan(adapters)
    saved = _mixed_saved(model, adapters)
    report = inject_plan(model, plan)
    try:
        for name, layer in adapted_layers(model):
            _fill(layer, [(one.layers[name], weight) for one, weight in adapters.values() if name in one.layers])
        for name, rows in token_layers(model):
            _add_rows(rows, [(one.rows[name], weight) for one, weight in adapters.values() if name in one.rows])
        for tensor, value in saved:
            tensor.copy_(value)
    except BaseException:
        remove_adapter(model)
        raise
    return report


def _plan(adapters: Weighted) -> InjectionPlan:
    _check_weights(adapters)
    ranks: dict[str, int] = {}
    for adapter, _ in adapters.values():
        for name, layer in adapter.layers.items():
            config = layer.config
            ranks[name] = ranks.get(name, 0) + expanded_rank(layer.rank, config.order, config.terms)
    saved = {name: mark for adapter, _ in adapters.values() for name, mark in adapter.saved.items()}
    whole = [name for name, mark in saved.items() if mark.only is None]
    _refuse_both_ways(ranks, whole, {name for adapter, _ in adapters.values() for name in adapter.rows})
    kept = [name for name in saved if not within_any(name, [other for other in whole if other != name])]
    config = PeraConfig(max(ranks.values()), order=1, target_modules=list(ranks))
    layers = {name: LayerPlan(rank, None) for name, rank in ranks.items()}
    return InjectionPlan(config, layers, tuple(kept), tokens=_tokens(adapters))


def _check_weights(adapters: Weighted) -> None:
    wrong = [f"{name!r}: {weight!r}" for name, (_, weight) in adapters.items() if not _is_weight(weight)]
    if wrong or not adapters:
        raise ConfigError(
            "A mixture needs weights.",
            got=", ".join(wrong) or "no adapter",
            expected="a finite number other than 0 for each adapter that takes part",
            fix="give each a number, such as 0.5; leave out those of weight 0",
        )


def _is_weight(weight: object) -> bool:
    return isinstance(weight, (int, float)) and not isinstance(weight, bool) and math.isfinite(weight) and weight != 0


def _tokens(adapters: Weighted) -> dict[str, TokenPlan]:
    """The union of the trained rows."""
    plans: dict[str, TokenPlan] = {}
    for adapter, _ in adapters.values():
        for name, plan in adapter.tokens.items():
            ids = {*plan.ids, *(plans[name].ids if name in plans else ())}
            plans[name] = TokenPlan(tuple(sorted(ids)), plan.tied)
    return plans


def _refuse_both_ways(adapted: Mapping[str, int], whole: list[str], rows: Collection[str]) -> None:
    both = [name for name in (*adapted, *rows) if within_any(name, whole)]
    both += [name for name in rows if name in adapted]
    if both:
        raise InjectionError(
            "One adapter adapts what another trains whole, or trains rows of.",
            got=f"{both[0]!r}, which the adapters treat in different ways",
            expected="each layer treated in one way by all adapters of a mixture",
            fix="train them with the same targets and modules_to_save",
        )


def _fill(layer: PeraLinear, parts: list[tuple[PeraLinear, float]]) -> None:
    """Set the factors of a layer of order 1 to the expanded ones of others, side by side."""
    device = layer.pera_A.device
    lefts, rights = [], []
    for part, weight in parts:
        left, right = scaled_factors(part)
        lefts.append(weight * left.to(device))
        rights.append(right.to(device))
    left, right = torch.cat(lefts, dim=1), torch.cat(rights, dim=0)
    share = _even_share(left.norm(dim=0), right.norm(dim=1))
    layer.pera_B.copy_(left / share)
    layer.pera_A.copy_(right * share[:, None])


def _add_rows(layer: TokenRowsLayer, parts: list[tuple[TokenRowsLayer, float]]) -> None:
    delta, tokens = layer.token_rows.delta, layer.token_rows.tokens
    for part, weight in parts:
        places = torch.searchsorted(tokens, part.token_rows.tokens.to(tokens.device))
        delta.index_add_(0, places, part.token_rows.delta.to(delta), alpha=weight)


def _even_share(left: Tensor, right: Tensor) -> Tensor:
    """What to move from left to right columns for equal norms: products of small entries leave the range of float16.

    Powers of two, so that nothing is rounded.
    """
    share = torch.exp2(torch.round(torch.log2(left / right) / 2))
    return torch.where((left > 0) & (right > 0), share, torch.ones_like(share))


def _mixed_saved(model: nn.Module, adapters: Weighted) -> list[tuple[Tensor, Tensor]]:
    """The base's tensors that are trained beside the factors, each with its value in the mixture."""
    mixed: dict[int, tuple[Tensor, Tensor]] = {}
    for adapter, weight in adapters.values():
        for tensor, trained in _trained(modules_of(model, adapter), adapter):
            dtype = torch.promote_types(tensor.dtype, torch.float32)
            change = trained.to(tensor.device, dtype) - tensor.to(dtype)
            _, value = mixed.get(id(tensor), (tensor, tensor.to(dtype)))
            mixed[id(tensor)] = tensor, value + weight * change
    return list(mixed.values())


def _trained(modules: Mapping[str, nn.Module], adapter: DetachedAdapter) -> Iterator[tuple[Tensor, Tensor]]:
    """The base's parameters that an adapter trains, and what they are there.

    Of modules that share a tensor, the first holds its trained value and the others the base's: no change.
    """
    for name, mark in adapter.saved.items():
        module = modules[owner_of(name, mark)]
        present = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for key, trained in mark.values.items():
            tensor = present[key]
            if isinstance(tensor, nn.Parameter):
                yield tensor, trained
            elif not torch.equal(tensor, trained.to(tensor.device, tensor.dtype)):
                raise InjectionError(
                    "Buffers of modules trained whole cannot be mixed.",
                    got=f"{key!r} of {name!r}, which training has changed",
                    expected="modules whose parameters alone have changed",
                    fix="use one of the adapters, or train one on all of the data",
                )
