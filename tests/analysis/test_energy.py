from __future__ import annotations

import pytest
import torch
from torch import nn

from pera_lightning import PeraConfig, PeraLinear
from pera_lightning.analysis import mean_energy, polynomial_energy
from tests.support.models import randomise_adapter
from tests.support.reference import reference_delta_weight


@pytest.mark.parametrize(("order", "terms"), [(2, "full"), (2, "square"), (3, "cross")])
@pytest.mark.parametrize("scale", [1.0, 30.0, "auto"])
def test_is_the_ratio_of_dense_norms(order: int, terms: str, scale: float | str) -> None:
    model = nn.Sequential(
        PeraLinear(nn.Linear(9, 7), PeraConfig(3, order, terms=terms, alpha=5, coefficient_scale=scale)),
        PeraLinear(nn.Linear(7, 5), PeraConfig(3, order, terms=terms, coefficient_scale=scale)),
    )
    randomise_adapter(model)
    expected = []
    for layer in model:
        arguments = (layer.pera_A, layer.pera_B)
        whole = reference_delta_weight(*arguments, layer.coefficients, order, terms, layer.scaling)
        linear = reference_delta_weight(*arguments, None, 1, terms, layer.scaling)
        expected.append(((whole - linear).norm() / linear.norm()).item())
        assert polynomial_energy(layer) == pytest.approx(expected[-1], rel=1e-4)
    assert mean_energy(model) == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_zero_at_the_start_and_at_order_one() -> None:
    assert polynomial_energy(PeraLinear(nn.Linear(4, 4), PeraConfig(2))) == 0.0
    layer = PeraLinear(nn.Linear(4, 4), PeraConfig(2, 1))
    randomise_adapter(layer)
    assert polynomial_energy(layer) == 0.0
    assert mean_energy(nn.Linear(2, 2)) == 0.0


def test_half_precision_factors() -> None:
    layer = PeraLinear(nn.Linear(9, 7), PeraConfig(3))
    randomise_adapter(layer)
    exact = polynomial_energy(layer)
    assert polynomial_energy(layer.to(torch.bfloat16)) == pytest.approx(exact, rel=0.05)
