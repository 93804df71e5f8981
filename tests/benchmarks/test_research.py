"""Statements of docs/RESEARCH.md that are mathematics, not measurements."""

from __future__ import annotations

import pytest
import torch

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.injection import adapted_layers, parameter_groups
from pera_lightning.layers import PeraLinear
from tests.support.models import randomise_adapter


def trained(steps: int, *, scale: float, h_lr_factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """dW and h times its scale after some steps of AdamW on a small regression, in float64."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5)).double()
    inject_adapter(model, PeraConfig(rank=2, coefficient_scale=scale))
    x, y = torch.randn(32, 6).double(), torch.randn(32, 5).double()
    groups = parameter_groups(model.named_parameters(), learning_rate=1e-2, h_lr_factor=h_lr_factor)
    optimizer = torch.optim.AdamW(groups, weight_decay=0, eps=1e-300)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    [(_, layer)] = adapted_layers(model)
    assert layer.coefficients is not None
    return layer.delta_weight().detach(), layer.coefficients.detach()


def test_coefficient_scale_is_the_learning_rate_of_h_to_adam() -> None:
    by_scale, by_rate = trained(30, scale=30, h_lr_factor=1), trained(30, scale=1, h_lr_factor=30)
    for left, right in zip(by_scale, by_rate, strict=True):
        assert torch.allclose(left, right, rtol=1e-9, atol=0)
    plain = trained(30, scale=1, h_lr_factor=1)
    assert not torch.allclose(by_scale[0], plain[0], rtol=1e-2)
    assert by_scale[1].abs().max() == pytest.approx(30 * plain[1].abs().max().item(), rel=0.9)


def random_layer(**options: float) -> PeraLinear:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5)).double()
    inject_adapter(model, PeraConfig(rank=2, **options))  # type: ignore[arg-type]
    randomise_adapter(model)
    [(_, layer)] = adapted_layers(model)
    assert isinstance(layer, PeraLinear)
    return layer


@pytest.mark.parametrize("order", [2, 3])
@torch.no_grad()
def test_sizes_of_the_factors_can_be_traded_without_a_change(order: int) -> None:
    layer = random_layer(order=order)
    expected = layer.delta_weight()
    layer.pera_A.mul_(7)
    layer.pera_B.div_(7)
    assert torch.allclose(layer.delta_weight(), expected, rtol=1e-12, atol=0)


@torch.no_grad()
def test_a_smaller_alpha_is_a_larger_coefficient_scale() -> None:
    expected = random_layer(alpha=2, coefficient_scale=7).delta_weight()
    layer = random_layer(alpha=2 / 7)
    layer.pera_B.mul_(7)
    assert torch.allclose(layer.delta_weight(), expected, rtol=1e-12, atol=0)
