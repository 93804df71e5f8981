"""`PeraLinear` over 4-bit and 8-bit layers: same mathematics as over the weight that their bits stand for."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import PeraConfig, PeraLinear, adapter_disabled, inject_adapter
from pera_lightning.base_layers import base_of, quantize_linear
from pera_lightning.errors import InjectionError
from tests.support.reference import reference_delta_weight

KINDS = ("nf4", "nf4-dq", "fp4", "int8")
# Relative error against float64 arithmetic with the same weights; int8 rounds its inputs to 8 bits in eval mode.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
INT8_TOLERANCE = 2e-2


def adapted(kind: Any, dtype: torch.dtype = torch.float32, **options: Any) -> PeraLinear:
    layer = PeraLinear(quantize_linear(nn.Linear(70, 38, dtype=dtype), kind), PeraConfig(3, **options))
    with torch.no_grad():
        layer.pera_B.normal_(std=0.1)
        if layer.pera_h is not None:
            layer.pera_h.normal_(std=0.1)
    return layer


def reference_weight(layer: PeraLinear) -> Tensor:
    base = base_of(layer.base_layer).weight(layer.base_layer).double()
    return base + reference_delta_weight(
        layer.pera_A.detach(), layer.pera_B.detach(), layer.pera_h.detach(), 2, "full", layer.scaling
    )


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_starts_as_the_base_bit_by_bit(kind: Any, dtype: torch.dtype) -> None:
    base = quantize_linear(nn.Linear(70, 38, dtype=dtype), kind)
    x = torch.randn(5, 70, dtype=dtype)
    expected = base(x)
    layer = PeraLinear(base, PeraConfig(3, dropout=0.5))
    assert torch.equal(layer(x), expected)
    assert (layer.in_features, layer.out_features) == (70, 38)
    assert {value.dtype for value in layer.adapter().values()} == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_output_and_gradients(kind: Any, dtype: torch.dtype) -> None:
    layer = adapted(kind, dtype).train()
    x = torch.randn(2, 5, 70, dtype=dtype, requires_grad=True)
    out = layer(x)
    assert out.dtype == dtype
    grad = torch.randn_like(out)
    out.backward(grad)

    exact = {name: value.detach().double().requires_grad_() for name, value in layer.adapter().items()}
    wide = x.detach().double().requires_grad_()
    A, B, h = exact["pera_A"], exact["pera_B"], exact["pera_h"]
    left = torch.cat([B, *(B[:, i : i + 1] * B[:, j : j + 1] for i in range(3) for j in range(i, 3))], dim=1)
    right = torch.cat([A, *(A[i : i + 1] * A[j : j + 1] for i in range(3) for j in range(i, 3))])
    change = left * torch.cat([torch.ones(3, dtype=torch.float64), h]) @ right
    base = base_of(layer.base_layer).weight(layer.base_layer).double()
    expected = nn.functional.linear(wide, base + change, layer.bias.double())
    expected.backward(grad.double())

    assert relative(out, expected) < TOLERANCE[dtype]
    assert relative(x.grad, wide.grad) < TOLERANCE[dtype]
    for name, value in layer.adapter().items():
        assert value.grad.dtype == torch.float32
        assert relative(value.grad, exact[name].grad) < TOLERANCE[dtype], name
    assert all(value.grad is None for value in layer.base_layer.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("into", ["auto", "dequantized", "requantized"])
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_merge_and_unmerge(kind: Any, dtype: torch.dtype, into: Any, used: bool) -> None:
    layer = adapted(kind, dtype).eval()
    x = torch.randn(5, 70, dtype=dtype)
    y = layer(x) if used else copy.deepcopy(layer)(x)
    wanted, quantized = reference_weight(layer), layer.base_layer
    stored = quantized.weight.detach().clone()
    layer.merge(into)
    assert layer.merged
    assert layer.quantization == kind
    merged = layer(x)
    assert merged.dtype == dtype
    if into == "requantized":
        assert layer.base_layer is quantized
        assert 1e-3 < relative(layer.weight, wanted) < {"int8": 0.01}.get(kind, 0.16)
    else:
        assert type(layer.base_layer) is nn.Linear
        assert relative(layer.weight, wanted) < TOLERANCE[dtype]
        assert relative(merged, y) < (INT8_TOLERANCE if kind == "int8" else TOLERANCE[dtype])
    layer.unmerge()
    assert layer.base_layer is quantized
    assert torch.equal(quantized.weight, stored)
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("into", ["dequantized", "requantized"])
def test_disabling_while_merged(into: Any) -> None:
    model = nn.Sequential(quantize_linear(nn.Linear(70, 38), "nf4"))
    x = torch.randn(5, 70)
    expected = model(x)
    inject_adapter(model, PeraConfig(3))
    with torch.no_grad():
        model[0].pera_B.normal_()
    model.eval()
    model[0].merge(into)
    merged = model(x)
    with adapter_disabled(model):
        assert torch.equal(model(x), expected)
    assert torch.equal(model(x), merged)


def test_effective_weight() -> None:
    layer = adapted("nf4", torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert relative(layer.weight, reference_weight(layer)) < TOLERANCE[torch.bfloat16]
    layer.enabled = False
    assert torch.equal(layer.weight.float(), base_of(layer.base_layer).weight(layer.base_layer).bfloat16().float())


def test_moving_and_train_mode_while_merged_reach_the_quantised_layer() -> None:
    layer = adapted("nf4", torch.bfloat16).eval()
    layer.merge()
    layer.to(torch.float32)
    assert layer.base_layer.weight.dtype == torch.float32
    layer.train()
    layer.unmerge()
    assert layer.base_layer.bias.dtype == torch.float32
    assert layer.base_layer.training


@pytest.mark.parametrize("kind", ["nf4-dq", "int8"])
@pytest.mark.parametrize("merged", [False, True])
def test_copies_and_pickles(kind: Any, merged: bool) -> None:
    layer = adapted(kind).eval()
    x = torch.randn(5, 70)
    y = layer(x)
    if merged:
        layer.merge()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        if merged:
            twin.unmerge()
        assert torch.equal(twin(x), y)


def test_gradient_reaches_the_input_in_eval_mode() -> None:
    layer = adapted("nf4").eval()
    x = torch.randn(5, 70, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, reference_weight(layer).sum(0).float().expand(5, 70), rtol=1e-4, atol=1e-5)


def test_an_exchanged_base_is_followed_or_refused() -> None:
    layer = PeraLinear(nn.Linear(70, 38), PeraConfig(3))
    layer.base_layer = quantize_linear(layer.base_layer, "nf4")
    assert layer.quantization == "nf4"
    layer.base_layer = nn.Conv1d(70, 38, 1)
    with pytest.raises(InjectionError, match="exchanged"):
        layer.merge()


def test_there_is_no_other_way_to_merge_one_layer() -> None:
    layer = adapted("nf4")
    with pytest.raises(InjectionError, match="merge_adapter"):
        layer.merge("original")
    assert not layer.merged
