from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pera_lightning import PeraConfig
from pera_lightning.export.lora.lora_factors import LoraFactors, exact_factors, padded, relative_rounding, spectrum
from pera_lightning.functional import expanded_rank
from pera_lightning.injection import LayerPlan
from tests.conftest import ROOT
from tests.support.reference import reference_delta_weight, reference_monomials

CASES = json.loads((ROOT / "tests/golden/pera_cases.json").read_text())
# Factors are float64.
TOLERANCE = {"rtol": 1e-12, "atol": 1e-14}


def draw(
    rank: int, out: int, into: int, config: PeraConfig, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(3)
    count = expanded_rank(rank, config.order, config.terms) - rank
    A = torch.randn(rank, into, generator=generator)
    B = torch.randn(out, rank, generator=generator) * scale
    return A, B, torch.randn(count, generator=generator) if count else None


def factors_of(config: PeraConfig, out: int = 7, into: int = 5, **plan: Any) -> tuple[LoraFactors, Tensor]:
    """A layer's factors, and its weight change by explicit loops."""
    layer = LayerPlan(**{"rank": config.rank, "alpha": config.alpha, **plan})
    A, B, h = draw(layer.rank, out, into, config)
    scaled = h if h is None else h.double() * (1.0 if config.coefficient_scale == "auto" else config.coefficient_scale)
    if h is not None and config.coefficient_scale == "auto":
        lengths = map(len, reference_monomials(layer.rank, config.order, config.terms))
        degrees = torch.tensor(list(lengths), dtype=torch.float64)
        scaled = h.double() * (3.0 * into) ** ((degrees - 1) / 2)
    scaling = config.scaling(layer.rank, layer.alpha)
    wanted = reference_delta_weight(A.double(), B.double(), scaled, config.order, config.terms, scaling)
    return exact_factors(A, B, h, config, layer), wanted


@pytest.mark.parametrize(
    "config",
    [
        PeraConfig(3, 1),
        PeraConfig(1, 2),
        PeraConfig(4, 2),
        PeraConfig(4, 2, terms="square"),
        PeraConfig(4, 2, terms="cross", alpha=3.0),
        PeraConfig(3, 3, alpha=5.0, use_rslora=True),
        PeraConfig(3, 2, coefficient_scale=30.0),
        PeraConfig(2, 4, coefficient_scale="auto"),
    ],
    ids=str,
)
def test_product_is_the_weight_change(config: PeraConfig) -> None:
    factors, wanted = factors_of(config)
    assert factors.rank == expanded_rank(config.rank, config.order, config.terms)
    torch.testing.assert_close(factors.up @ factors.down, wanted, **TOLERANCE)


def test_a_layer_of_another_rank_and_alpha() -> None:
    factors, wanted = factors_of(PeraConfig(4, 2), rank=2, alpha=7.0)
    assert factors.rank == expanded_rank(2, 2)
    torch.testing.assert_close(factors.up @ factors.down, wanted, **TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_cases(case: dict[str, Any]) -> None:
    config = PeraConfig(case["rank"], case["order"], terms=case["terms"])
    alpha = case["scaling"] * case["rank"]
    A, B, h = (torch.tensor(case[key], dtype=torch.float64) if case[key] else None for key in "ABh")
    assert A is not None
    assert B is not None
    factors = exact_factors(A, B, h, config, LayerPlan(case["rank"], alpha))
    wanted = torch.tensor(case["delta_weight"], dtype=torch.float64)
    torch.testing.assert_close(factors.up @ factors.down, wanted, **TOLERANCE)


def test_both_sides_share_the_size_of_a_component() -> None:
    config = PeraConfig(4, 2)
    A, B, h = draw(4, 9, 6, config, scale=1e-4)
    factors = exact_factors(A, B, h, config, LayerPlan(4, None))
    torch.testing.assert_close(factors.up.norm(dim=0), factors.down.norm(dim=1), **TOLERANCE)


def test_small_products_survive_half_precision() -> None:
    # b * b of 1e-5 is 1e-10, which float16 does not have.
    config = PeraConfig(2, 2, terms="square", coefficient_scale=1e6)
    A, B, h = draw(2, 64, 48, config, scale=1e-5)
    assert h is not None
    exact = exact_factors(A, B * 0 + 1e-5, h, config, LayerPlan(2, None))
    written = LoraFactors(*(part.half() for part in exact))
    polynomial = written.up[:, 2:].double() @ written.down[2:].double()
    wanted = exact.up[:, 2:] @ exact.down[2:]
    assert ((polynomial - wanted).norm() / wanted.norm()).item() < 1e-3  # float16 keeps 11 bits


@pytest.mark.parametrize("zero", ["B", "h", "A"])
def test_zeros_stay_zeros(zero: str) -> None:
    config = PeraConfig(3, 2)
    parts = dict(zip("ABh", draw(3, 5, 4, config), strict=True))
    parts[zero] = torch.zeros_like(parts[zero])
    factors = exact_factors(*parts.values(), config, LayerPlan(3, None))
    assert all(torch.isfinite(part).all() for part in factors)
    assert spectrum(factors).lost(1) < 1
    assert relative_rounding(factors, factors) == 0


@pytest.mark.parametrize(("out", "into"), [(40, 30), (5, 30), (40, 4), (3, 3)])
def test_spectrum_is_that_of_the_dense_matrix(out: int, into: int) -> None:
    factors, wanted = factors_of(PeraConfig(4, 2), out, into)
    values = spectrum(factors)
    dense = torch.linalg.svdvals(wanted)
    torch.testing.assert_close(values.values[: len(dense)], dense[: len(values.values)], rtol=1e-10, atol=1e-10)
    for rank in (1, 2, 3):
        cut = values.cut(rank)
        error = (cut.up @ cut.down - wanted).norm() / wanted.norm()
        best = dense[rank:].norm() / dense.norm()
        torch.testing.assert_close(error, best, rtol=1e-8, atol=1e-10)
        assert values.lost(rank) == pytest.approx(best.item(), rel=1e-8, abs=1e-10)


def test_smallest_rank() -> None:
    factors, wanted = factors_of(PeraConfig(4, 2), 40, 30)
    dense, values = torch.linalg.svdvals(wanted), spectrum(factors)
    for max_error in (0.5, 0.1, 1e-3):
        rank = values.smallest_rank(max_error)
        assert (dense[rank:].norm() / dense.norm()).item() <= max_error
        assert rank == 1 or (dense[rank - 1 :].norm() / dense.norm()).item() > max_error


def test_padding_changes_nothing() -> None:
    factors, wanted = factors_of(PeraConfig(2, 2))
    wider = padded(factors, 9)
    assert (wider.rank, wider.up.shape, wider.down.shape) == (9, (7, 9), (9, 5))
    torch.testing.assert_close(wider.up @ wider.down, wanted, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_that_of_the_dense_matrix(dtype: torch.dtype) -> None:
    factors, wanted = factors_of(PeraConfig(4, 2), 40, 30)
    rounded = LoraFactors(*(part.to(dtype) for part in factors))
    error = (rounded.up.double() @ rounded.down.double() - wanted).norm() / wanted.norm()
    assert relative_rounding(factors, rounded) == pytest.approx(error.item(), rel=1e-6)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest number of entries that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.entries = max(self.entries, value.numel())
        return result


def test_a_large_layer_is_cut_without_its_dense_matrix() -> None:
    config, out, into = PeraConfig(16, 2), 4096, 14336
    A, B, h = draw(16, out, into, config)
    with LargestTensor() as largest:
        exact = exact_factors(A, B, h, config, LayerPlan(16, None))
        cut = spectrum(exact).cut(32)
        relative_rounding(cut, LoraFactors(*(part.float() for part in cut)))
    assert exact.rank == 152
    assert (cut.down.shape, cut.up.shape) == ((32, into), (out, 32))
    # The larger factor, and no more; the dense matrix has 27 times as many.
    assert largest.entries <= 152 * into
