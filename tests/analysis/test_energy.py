from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pera_lightning import PeraConfig, PeraLinear
from pera_lightning.analysis import energy, mean_energy, polynomial_energy
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


def many(layers: int) -> nn.Sequential:
    """Layers of two shapes by turns; some without polynomial terms."""
    shapes = [(9, 7), (7, 9)] * (layers // 2)
    model = nn.Sequential(*[PeraLinear(nn.Linear(*shape), PeraConfig(3)) for shape in shapes])
    model.append(PeraLinear(nn.Linear(9, 7), PeraConfig(3, order=1)))
    model.append(PeraLinear(nn.Linear(9, 7), PeraConfig(3), rank=2))
    randomise_adapter(model)
    return model


@pytest.mark.parametrize("at_once", [1 << 24, 9 * (9 + 7) * 3, 1])
def test_layers_together_are_the_mean_of_the_single_ones(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "AT_ONCE", at_once)
    model = many(10)
    single = [polynomial_energy(layer) for layer in model]
    assert mean_energy(model) == pytest.approx(sum(single) / 12, rel=1e-5)


class Counter(TorchDispatchMode):
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_the_operations_do_not_grow_with_the_layers() -> None:
    counts = []
    for layers in (4, 40):
        model = many(layers)
        mean_energy(model)
        with Counter() as counter:
            mean_energy(model)
        counts.append(counter.count)
    assert counts[0] == counts[1] > 0
