from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from pera_lightning import PeraConfig, PeraLinear
from pera_lightning.errors import InjectionError, TargetError

# Relative error of merged against unmerged outputs.
MERGE_TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-6, torch.bfloat16: 4e-2, torch.float16: 5e-3}


def adapted(base: nn.Module, config: PeraConfig | None = None) -> PeraLinear:
    layer = PeraLinear(base, config or PeraConfig(3))
    with torch.no_grad():
        layer.pera_B.normal_(std=0.3)
        if layer.pera_h is not None:
            layer.pera_h.normal_(std=0.3)
    return layer


def make_base(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    base = Conv1D(7, 10) if kind == "conv1d" else nn.Linear(10, 7, bias=kind == "linear")
    return base.to(dtype)


KINDS = ["linear", "no_bias", "conv1d"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", MERGE_TOLERANCE)
def test_starts_as_the_base_bit_by_bit(kind: str, dtype: torch.dtype) -> None:
    base = make_base(kind, dtype)
    x = torch.randn(5, 10, dtype=dtype)
    expected = base(x)
    assert torch.equal(PeraLinear(base, PeraConfig(3, dropout=0.5))(x), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", MERGE_TOLERANCE)
def test_merge_computes_the_same_and_unmerge_restores_the_bits(kind: str, dtype: torch.dtype) -> None:
    base = make_base(kind, dtype)
    bits = copy.deepcopy(base.state_dict())
    layer = adapted(base).eval()
    x = torch.randn(5, 10, dtype=dtype)
    y = layer(x)
    layer.merge()
    assert layer.merged
    assert not torch.equal(base.weight, bits["weight"])
    error = (layer(x) - y).abs().max() / y.abs().max()
    assert error <= MERGE_TOLERANCE[dtype]
    layer.unmerge()
    assert not layer.merged
    assert all(torch.equal(value, bits[key]) for key, value in base.state_dict().items())
    assert torch.equal(layer(x), y)


def test_effective_weight() -> None:
    layer = adapted(make_base("linear"))
    x = torch.randn(4, 10)
    torch.testing.assert_close(nn.functional.linear(x, layer.weight, layer.bias), layer(x))
    layer.enabled = False
    assert torch.equal(layer.weight, layer.base_layer.weight)


@pytest.mark.parametrize(("order", "count"), [(1, None), (2, 6), (3, 16)])
def test_parameters(order: int, count: int | None) -> None:
    layer = PeraLinear(nn.Linear(10, 7), PeraConfig(3, order))
    assert layer.pera_A.shape == (3, 10)
    assert layer.pera_B.shape == (7, 3)
    assert (None if layer.pera_h is None else layer.pera_h.numel()) == count
    names = {name for name, _ in layer.named_parameters() if not name.startswith("base_layer")}
    assert names == set(layer.ADAPTER_PARAMETERS) - ({"pera_h"} if count is None else set())
    assert not any(isinstance(module, nn.Linear) for module in layer.children() if module is not layer.base_layer)


def test_start_of_A_is_that_of_lora() -> None:
    layer = PeraLinear(nn.Linear(300, 7), PeraConfig(64))
    bound = 1 / math.sqrt(300)
    assert layer.pera_A.abs().max() <= bound
    assert layer.pera_A.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not layer.pera_B.any()
    assert not layer.pera_h.any()


@pytest.mark.parametrize(
    ("dtype", "factor_dtype"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_factor_dtype(dtype: torch.dtype, factor_dtype: torch.dtype) -> None:
    layer = PeraLinear(nn.Linear(4, 4, dtype=dtype), PeraConfig(2))
    assert {layer.pera_A.dtype, layer.pera_B.dtype, layer.pera_h.dtype} == {factor_dtype}
    assert layer(torch.randn(2, 4, dtype=dtype)).dtype == dtype


def test_factors_follow_the_device_of_their_layer() -> None:
    layer = PeraLinear(nn.Linear(4, 4, device="meta"), PeraConfig(2))
    assert layer.pera_A.is_meta
    assert layer.pera_h.is_meta


def test_coefficient_scale() -> None:
    plain = adapted(nn.Linear(12, 5), PeraConfig(2, 3))
    times_ten = copy.deepcopy(plain)
    times_ten.config = PeraConfig(2, 3, coefficient_scale=10.0)
    torch.testing.assert_close(times_ten.coefficients, 10 * plain.pera_h)
    auto = copy.deepcopy(plain)
    auto.config = PeraConfig(2, 3, coefficient_scale="auto")
    factor = torch.tensor([6.0] * 3 + [36.0] * 4)  # sqrt(3 * 12) = 6 per degree above the first
    torch.testing.assert_close(auto.coefficients, factor * plain.pera_h)


def test_scaling_and_rank_of_its_own() -> None:
    layer = PeraLinear(nn.Linear(4, 4), PeraConfig(2, alpha=6), rank=3)
    assert layer.scaling == 2
    assert layer.pera_A.shape == (3, 4)
    assert PeraLinear(nn.Linear(4, 4), PeraConfig(4, alpha=6, use_rslora=True)).scaling == 3


def test_merged_layer_refuses_training() -> None:
    layer = adapted(nn.Linear(4, 4)).train()
    layer.merge()
    with pytest.raises(InjectionError, match="unmerge"):
        layer(torch.randn(2, 4))
    with torch.no_grad():
        layer(torch.randn(2, 4))
    with pytest.raises(InjectionError, match="already"):
        layer.merge()
    layer.unmerge()
    with pytest.raises(InjectionError, match="not merged"):
        layer.unmerge()


def test_modules_inside_the_base_keep_their_mode() -> None:
    base = nn.Linear(4, 4)
    base.dropout = nn.Dropout().eval()
    layer = adapted(base)
    layer.merge()
    layer.unmerge()
    assert layer.training
    assert base.training
    assert not base.dropout.training


def test_infinite_values_are_not_merged() -> None:
    layer = adapted(nn.Linear(4, 4))
    before = layer.base_layer.weight.clone()
    with torch.no_grad():
        layer.pera_B[0, 0] = float("nan")
    with pytest.raises(InjectionError, match="pera_B"):
        layer.merge()
    assert not layer.merged
    assert torch.equal(layer.base_layer.weight, before)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 1), nn.Embedding(3, 4), nn.LayerNorm(4)])
def test_unsupported_layers(layer: nn.Module) -> None:
    with pytest.raises(TargetError, match=type(layer).__name__):
        PeraLinear(layer, PeraConfig(2))


def test_packed_linear_is_no_dense_linear() -> None:
    packed = nn.Linear(4, 4)
    packed.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(TargetError):
        PeraLinear(packed, PeraConfig(2))


def test_copies_and_pickles() -> None:
    layer = adapted(nn.Linear(4, 4)).eval()
    layer.merge()
    x = torch.randn(2, 4)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
        twin.unmerge()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(dtype: torch.dtype) -> None:
    layer = adapted(nn.Linear(10, 7, dtype=dtype))
    x = torch.randn(3, 10, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(value.grad.isfinite().all() for value in (layer.pera_A, layer.pera_B, layer.pera_h))
