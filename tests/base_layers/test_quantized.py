"""Reading, writing and restoring what bitsandbytes stores."""

from __future__ import annotations

import logging
import sys
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.base_layers import base_of, is_linear_like, quantize_linear
from pera_lightning.base_layers.bitsandbytes_linear import BLOCKSIZES
from pera_lightning.errors import ConfigError, InjectionError, TargetError
from tests.support.quantized import QUANTIZATION_ERROR, int8_weight, nf4_weight

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found.float() - wanted.float()).norm() / wanted.float().norm()).item()


@pytest.mark.parametrize("kind", QUANTIZATION_ERROR)
@pytest.mark.parametrize("dtype", DTYPES)
# Odd sizes: neither rows nor the whole fill the last block.
@pytest.mark.parametrize("shape", [(70, 38), (64, 64), (10, 1)])
def test_weight(kind: Any, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    plain = nn.Linear(*shape, dtype=dtype)
    nn.init.normal_(plain.weight)
    layer = quantize_linear(plain, kind)
    base = base_of(layer)
    assert base.features(layer) == shape
    assert base.quantization(layer) == kind
    weight = base.weight(layer)
    assert weight.shape == plain.weight.shape
    assert weight.dtype == torch.float32
    assert relative(weight, plain.weight) < (QUANTIZATION_ERROR[kind] if shape[1] > 1 else 0.3)
    assert torch.equal(layer.bias, plain.bias)
    assert base.dtype(layer) == dtype


@pytest.mark.parametrize(("kind", "reference"), [("nf4", nf4_weight), ("int8", int8_weight)])
def test_weight_is_what_the_stored_bits_stand_for(kind: Any, reference: Any) -> None:
    layer = quantize_linear(nn.Linear(70, 38), kind)
    torch.testing.assert_close(base_of(layer).weight(layer), reference(layer), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", QUANTIZATION_ERROR)
def test_weight_is_what_the_layer_multiplies_with(kind: Any) -> None:
    layer = quantize_linear(nn.Linear(70, 38), kind)
    found = layer(torch.eye(70)) - layer.bias
    # int8 multiplies in training mode with the dequantised weight too.
    torch.testing.assert_close(found.T, base_of(layer).weight(layer), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("blocksize", BLOCKSIZES)
def test_blocksize(blocksize: int) -> None:
    layer = quantize_linear(nn.Linear(128, 64), "nf4", blocksize=blocksize)
    assert layer.weight.quant_state.blocksize == blocksize
    expected = "nf4" if blocksize == 64 else f"nf4, blocks of {blocksize}"
    assert base_of(layer).quantization(layer) == expected
    base_of(layer).write(layer, torch.randn(64, 128))
    assert layer.weight.quant_state.blocksize == blocksize
    assert layer.weight.quant_state.absmax.numel() == 64 * 128 // blocksize or blocksize == 4096


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float32])
def test_quant_storage(storage: torch.dtype) -> None:
    plain = nn.Linear(128, 64)
    layer = quantize_linear(plain, "nf4", quant_storage=storage)
    base = base_of(layer)
    assert layer.weight.dtype == storage
    expected = base_of(byte := quantize_linear(plain, "nf4")).weight(byte)
    assert torch.equal(base.weight(layer), expected)
    base.write(layer, plain.weight.detach())
    assert layer.weight.dtype == storage
    assert torch.equal(base.weight(layer), expected)


@pytest.mark.parametrize("kind", QUANTIZATION_ERROR)
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_write_and_restore(kind: Any, used: bool) -> None:
    layer = quantize_linear(nn.Linear(70, 38), kind)
    base, x, parameter = base_of(layer), torch.randn(3, 70), layer.weight
    if used:  # the first use of an 8-bit layer moves its scales
        layer(x)
    before, snapshot = base.weight(layer), base.snapshot(layer)
    new = torch.randn(38, 70)
    base.write(layer, new)
    assert layer.weight is parameter
    assert base.quantization(layer) == kind
    assert relative(base.weight(layer), new) < QUANTIZATION_ERROR[kind]
    assert relative(layer(x), nn.functional.linear(x, new, layer.bias)) < 1.5 * QUANTIZATION_ERROR[kind]
    base.restore(layer, snapshot)
    assert torch.equal(base.weight(layer), before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_writing_keeps_the_dtype(dtype: torch.dtype) -> None:
    layer = quantize_linear(nn.Linear(70, 38, dtype=dtype), "nf4")
    base_of(layer).write(layer, torch.randn(38, 70))
    assert base_of(layer).dtype(layer) == dtype


@pytest.mark.parametrize("kind", ["nf4", "nf4-dq", "int8"])
def test_scales_are_all_that_is_stored_beside_the_weight(kind: Any) -> None:
    layer = quantize_linear(nn.Linear(256, 128), kind)
    counted = sum(value.numel() * value.element_size() for value in base_of(layer).scales(layer))
    count = 256 * 128
    # A scale to 64 weights in float32, or in uint8 with a scale to 256 of them; 16 values of NF4, 256 of the scales.
    expected = {
        "nf4": count / 64 * 4 + 64,
        "nf4-dq": count / 64 + count / 64 / 256 * 4 + 64 + 1024 + 4,
        "int8": 128 * 4,
    }
    assert counted == expected[kind]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_conv1d(kind: Any) -> None:
    plain = Conv1D(38, 70)
    layer = quantize_linear(plain, kind)
    x = torch.randn(3, 70)
    assert base_of(layer).features(layer) == (70, 38)
    assert relative(layer(x), plain(x)) < 1.5 * QUANTIZATION_ERROR[kind]


def test_layers_before_their_quantisation() -> None:
    """bitsandbytes quantises when a layer is moved to its device; until then it holds the plain weight."""
    for layer in (bnb.nn.Linear4bit(12, 8, quant_type="nf4"), bnb.nn.Linear8bitLt(12, 8, has_fp16_weights=False)):
        base = base_of(layer)
        weight = layer.weight.detach().clone()
        assert torch.equal(base.weight(layer), weight)
        assert base.scales(layer) == []
        snapshot = base.snapshot(layer)
        base.write(layer, weight + 1)
        assert torch.equal(base.weight(layer), weight + 1)
        base.restore(layer, snapshot)
        assert torch.equal(base.weight(layer), weight)
        assert base.quantization(layer) in ("nf4-dq", "int8")


def test_never_repacked_for_inference() -> None:
    """On CPUs with bf16 instructions bitsandbytes repacks in eval mode, and no gradient passes any more."""
    model = nn.Sequential(quantize_linear(nn.Linear(64, 64), "nf4"), quantize_linear(nn.Linear(64, 64), "nf4-dq"))
    for layer in model:
        layer.support_avx512bf16_for_cpu = True
    inject_adapter(model, PeraConfig(2, target_modules=["0"]))
    before = model[1].weight.clone()
    # It repacks where no gradient is asked for.
    with torch.no_grad():
        model.eval()(torch.randn(2, 64))
    assert torch.equal(model[1].weight, before)
    for layer in (model[0].base_layer, model[1]):
        assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)


def test_a_repacked_layer_is_refused() -> None:
    model = nn.Sequential(quantize_linear(nn.Linear(64, 64), "nf4"), nn.Linear(64, 3))
    state = model[0].weight.quant_state
    model[0].weight.data, model[0].weight.quant_state = bnb.functional._convert_weight_packed_for_cpu(
        model[0].weight.data, state
    )
    with pytest.raises(InjectionError, match="load the model again"):
        inject_adapter(model, PeraConfig(2))
    assert isinstance(model[0], bnb.nn.Linear4bit)


def test_int8_says_once_that_it_casts(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(*(quantize_linear(nn.Linear(8, 8), "int8") for _ in range(3)))
    inject_adapter(model, PeraConfig(2))
    with caplog.at_level(logging.WARNING, logger="bitsandbytes"), torch.no_grad():
        for _ in range(3):
            model.eval()(torch.randn(2, 8))
    assert sum("inputs will be cast" in record.getMessage() for record in caplog.records) <= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantization": "nf3"}, "nf4, nf4-dq, fp4, int8"),
        ({"quantization": "int8", "blocksize": 64}, "one scale for each row"),
        ({"quantization": "int8", "compute_dtype": torch.bfloat16}, "int8 without them"),
        ({"quantization": "nf4", "blocksize": 48}, "one of 32, 64"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        quantize_linear(nn.Linear(8, 8), **options)


@pytest.mark.parametrize("layer", [nn.Linear(8, 8, dtype=torch.float64), nn.Embedding(8, 8)])
def test_layers_that_cannot_be_quantised(layer: nn.Module) -> None:
    with pytest.raises(TargetError, match="cannot be quantised"):
        quantize_linear(layer, "nf4")


def test_a_quantised_layer_is_not_quantised_again() -> None:
    with pytest.raises(TargetError, match="Linear4bit"):
        quantize_linear(quantize_linear(nn.Linear(8, 8), "nf4"), "nf4")


def test_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"pip install \"pera-lightning\[quant\]\""):
        quantize_linear(nn.Linear(8, 8), "nf4")
    assert base_of(nn.Linear(8, 8)) is not None


class PackedLinear(nn.Module):
    """As GPTQ and AWQ have them: no nn.Linear, integers for weights."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 8, 8
        self.register_buffer("qweight", torch.zeros(1, 8, dtype=torch.int32))


class Float8Linear(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 8)
        self.weight = nn.Parameter(self.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)


@pytest.mark.parametrize("make", [PackedLinear, Float8Linear, lambda: bnb.nn.Linear8bitLt(8, 8, has_fp16_weights=True)])
def test_unknown_quantised_layers_are_named_and_refused(make: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 8), make(), nn.Linear(8, 3))
    assert is_linear_like(model[1])
    with pytest.raises(TargetError, match=f"'1' of kind .*{type(model[1]).__name__}"):
        inject_adapter(model, PeraConfig(2))
    assert type(model[0]) is nn.Linear
