"""LoftQ start (arXiv 2310.08659): the factors begin with what quantisation took from the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from pera_lightning.base_layers import base_of, expect_base
from pera_lightning.concurrency import in_turn
from pera_lightning.errors import ConfigError, InjectionError
from pera_lightning.form_bounds import check_rank
from pera_lightning.injection.targets.names import adapted_layers
from pera_lightning.injection.untrained import note_start
from pera_lightning.layers import PeraLinear
from pera_lightning.visible_text import visible_logger

logger = visible_logger(__name__)

# Of the randomised SVD (Halko et al., 2011): spectra of quantisation errors are flat, which takes many iterations.
OVERSAMPLING = 16
POWER_ITERATIONS = 8


@dataclass(frozen=True)
class LoftqReport:
    """How far the adapted weights start from the floating ones.

    Attributes:
        layers: Number of layers.
        error_before: `|W - Q| / |W|` over all layers (Frobenius norm), Q the plainly quantised weight.
        error_after: `|W - Q - scaling B A| / |W|`.
    """

    layers: int
    error_before: float
    error_after: float

    def __str__(self) -> str:
        return (
            f"LoftQ start of {self.layers} layers: relative error of the weights "
            f"{self.error_before:.4f} -> {self.error_after:.4f}"
        )


@in_turn
@torch.no_grad()
def init_loftq(model: nn.Module, float_model: nn.Module, *, steps: int = 1) -> LoftqReport:
    """Set A and B so that `Q + scaling B A` is as close to the floating weight W as the rank allows, and h to 0.

    Per layer and step: `Q <- quantise(W - scaling B A)` (with one step Q stays as it is), then A and B from the
    truncated singular value decomposition of `(W - Q) / scaling`, the singular values shared evenly. Adapted layers
    that are not quantised are left alone.

    Args:
        model: A model with new adapters over a quantised base.
        float_model: A module that holds the floating weights under the same names.
        steps: Number of alternations. With more than one the base's bits change for good: `remove_adapter` and
            `adapter_disabled` do not bring the first ones back.

    Returns:
        The relative error of the weights before and after.

    Raises:
        ConfigError: No adapted layer is quantised, or a floating weight is missing, not finite or of another shape;
            nothing is changed then.
        InjectionError: An adapter is merged.
    """
    check_rank(steps, "steps", fix="use 1, the usual one")
    layers = {name: layer for name, layer in adapted_layers(model) if layer.quantization is not None}
    check_float_model(layers, float_model)
    _check_start(layers, float_model)
    before = after = total = 0.0
    for name, layer in layers.items():
        weight = float_weight(float_model, name).to(layer.pera_A.device, torch.float32)
        before += _squared(weight - expect_base(layer.base_layer).weight(layer.base_layer))
        after += _squared(_start(layer, weight, steps))
        total += _squared(weight)
    note_start(model)
    total = max(total, torch.finfo(torch.float32).tiny)
    report = LoftqReport(len(layers), (before / total) ** 0.5, (after / total) ** 0.5)
    logger.info("%s", report)
    return report


def _check_start(layers: dict[str, PeraLinear], float_model: nn.Module) -> None:
    for name, layer in layers.items():
        if layer.merged:
            raise InjectionError(
                "The start of a merged adapter would be measured against itself.",
                got=f"{name!r} is merged",
                expected="an unmerged adapter",
                fix="call unmerge() on the layers first",
            )
        if not torch.isfinite(float_weight(float_model, name)).all():
            raise ConfigError(
                "A floating weight cannot be approximated.",
                got=f"{name!r} with NaN or infinity",
                expected="finite weights",
                fix="load the floating model again",
            )


def check_float_model(layers: Mapping[str, nn.Module], float_model: nn.Module) -> None:
    """Raise ConfigError unless there are quantised layers and a floating weight of the right shape for each."""
    if not layers:
        raise ConfigError(
            "A LoftQ start makes up for quantisation.",
            got="no adapted layer over a quantised base",
            expected="a 4-bit or 8-bit base",
            fix="quantise the base first (quantize_model, or quantization in PeraCausalLM), or use init='default'",
        )
    for name, layer in layers.items():
        found, wanted = _shape_in(float_model, name), (layer.out_features, layer.in_features)
        if found != wanted:
            raise ConfigError(
                "The floating weights do not fit the adapted model.",
                got=f"{name!r}: {'no floating linear layer' if found is None else found}",
                expected=f"a floating weight of shape {wanted} under this name",
                fix="give the model that was quantised, before quantisation, with the same module names",
            )


def float_weight(float_model: nn.Module, name: str) -> Tensor:
    """The floating weight (out, in) of the layer of this name."""
    layer = float_model.get_submodule(name)
    return expect_base(layer).weight(layer).detach()


def _shape_in(float_model: nn.Module, name: str) -> tuple[int, int] | None:
    layer = dict(float_model.named_modules()).get(name)
    base = None if layer is None else base_of(layer)
    if layer is None or base is None or base.quantization(layer) is not None:
        return None
    in_features, out_features = base.features(layer)
    return out_features, in_features


def _start(layer: PeraLinear, weight: Tensor, steps: int) -> Tensor:
    """Set the factors of one layer; returns what remains of `weight` beside base and adapter."""
    layer.reset_parameters()
    base = expect_base(layer.base_layer)
    if steps > 1:
        layer.base_layer.loftq_steps = steps  # type: ignore[assignment]
    for _ in range(steps):
        if steps > 1:
            # Also in the first step, where B is 0: an earlier start may have changed the bits.
            base.write(layer.base_layer, weight - layer.delta_weight())
        residual = weight - base.weight(layer.base_layer)
        left, right = _low_rank(residual / layer.scaling, layer.rank)
        layer.pera_B.copy_(left)
        layer.pera_A.copy_(right)
    return residual - layer.delta_weight()


def _low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`left (out, rank)` and `right (rank, in)` whose product is close to the best approximation of this rank."""
    # Seeded, so that the same weights give the same start in every process and run.
    with torch.random.fork_rng([matrix.device] if matrix.device.type == "cuda" else []):
        torch.manual_seed(0)
        count = min(rank + OVERSAMPLING, *matrix.shape)
        U, S, V = torch.svd_lowrank(matrix, q=count, niter=POWER_ITERATIONS)
    kept = min(rank, count)
    root = S[:kept].sqrt()
    left = torch.zeros(matrix.shape[0], rank, dtype=matrix.dtype, device=matrix.device)
    right = torch.zeros(rank, matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    left[:, :kept], right[:kept] = U[:, :kept] * root, (V[:, :kept] * root).T
    return left, right


def _squared(matrix: Tensor) -> float:
    return cast("float", matrix.float().square().sum().item())
