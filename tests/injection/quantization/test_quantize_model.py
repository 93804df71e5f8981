"""Quantising a floating model in place, one layer at a time."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from torch import nn

from pera_lightning import PeraConfig, inject_adapter, quantize_model, remove_adapter
from pera_lightning.base_layers import base_of
from pera_lightning.errors import ConfigError, InjectionError, TargetError
from pera_lightning.injection import adapted_layers, adapter_bytes, parameter_count, stored_bytes
from tests.support.models import tiny_bert_classifier, tiny_gpt2, tiny_llama, token_ids
from tests.support.quantized import QUANTIZATION_ERROR, bits, same_bits

KIND_OF_LAYER = {"nf4": bnb.nn.Linear4bit, "nf4-dq": bnb.nn.Linear4bit, "fp4": bnb.nn.Linear4bit}


@pytest.mark.parametrize("kind", QUANTIZATION_ERROR)
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_bert_classifier])
def test_quantises_linear_layers_and_nothing_else(make: Any, kind: Any) -> None:
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ids = token_ids()
    expected = model(ids).logits
    report = quantize_model(model, kind)
    assert report.quantized
    # Head, pooler, embeddings and norms.
    for name, module in model.named_modules():
        base = base_of(module)
        if name in report.quantized:
            assert isinstance(module, KIND_OF_LAYER.get(kind, bnb.nn.Linear8bitLt))
            assert base.quantization(module) == kind
        else:
            assert base is None or base.quantization(module) is None
            for key, value in module.named_parameters(recurse=False):
                assert torch.equal(value, before[f"{name}.{key}" if name else key])
    found = model(ids).logits
    assert ((found - expected).norm() / expected.norm()).item() < 0.3
    assert report.bytes_after < report.bytes_before
    assert "MB" in str(report)


def test_the_head_stays_floating() -> None:
    model = tiny_llama()
    assert quantize_model(model, "nf4").left == ("lm_head",)
    assert type(model.lm_head) is nn.Linear


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 64)
        self.body = nn.Linear(64, 64)
        self.tied = nn.Linear(64, 64, bias=False)
        self.tied.weight = self.table.weight
        self.head = nn.Linear(64, 3)


def test_tied_weights_stay() -> None:
    model = Tied()
    report = quantize_model(model, "nf4")
    assert report.quantized == ("body",)
    assert set(report.left) == {"tied", "head"}
    assert model.tied.weight is model.table.weight


def test_a_shared_layer_is_quantised_once() -> None:
    shared = nn.Linear(64, 64)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(64, 3))
    assert quantize_model(model, "nf4").quantized == ("0",)
    assert model[0] is model[2]


def test_never_holds_two_copies() -> None:
    """When a layer is quantised, the floating weights of all earlier ones are gone already."""
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)), nn.Linear(64, 3))
    weights = [weakref.ref(layer.weight) for layer in model[:4]]
    alive = []
    original = bnb.functional.quantize_4bit

    def spy(*args: Any, **kwargs: Any) -> Any:
        gc.collect()
        alive.append(sum(weight() is not None for weight in weights))
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bnb.functional, "quantize_4bit", spy)
        quantize_model(model, "nf4")
    assert alive == [4, 3, 2, 1]
    assert all(weight() is None for weight in weights)


def test_bytes_and_counts() -> None:
    model = nn.Sequential(nn.Linear(256, 256, bias=False), nn.Linear(256, 8))
    assert parameter_count(model) == 256 * 256 + 256 * 8 + 8
    report = quantize_model(model, "nf4")
    assert parameter_count(model) == 256 * 256 + 256 * 8 + 8
    assert report.bytes_before == 4 * parameter_count(model)
    # Half a byte each, a float32 scale to 64, the 16 values; and the head.
    assert report.bytes_after == stored_bytes(model) == 256 * 256 // 2 + 256 * 256 // 64 * 4 + 64 + 4 * (256 * 8 + 8)
    injection = inject_adapter(model, PeraConfig(2, 1))
    assert injection.total == 256 * 256 + 256 * 8 + 8 + 2 * 2 * 256
    assert adapter_bytes(model) == 4 * 2 * 2 * 256


@pytest.mark.parametrize("skip", [["0"], ["inner"], ["1.inner"]])
def test_skipped_modules(skip: list[str]) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ModuleDict({"inner": nn.Linear(64, 64)}), nn.Linear(64, 3))
    report = quantize_model(model, "nf4", skip_modules=skip)
    assert len(report.quantized) == 1
    assert not any(name.endswith(skip[0]) for name in report.quantized)


def test_options_reach_the_layers() -> None:
    model = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 3))
    quantize_model(model, "fp4", blocksize=128, compute_dtype=torch.bfloat16, quant_storage=torch.float32)
    layer: Any = model[0]
    assert layer.compute_dtype == torch.bfloat16
    assert layer.weight.dtype == layer.quant_storage == torch.float32
    assert base_of(layer).quantization(layer) == "fp4, blocks of 128"


@pytest.mark.parametrize(
    ("break_it", "error", "words"),
    [
        (lambda m: quantize_model(m, "nf4", skip_modules=["q_prj"]), TargetError, "q_proj"),
        (lambda m: quantize_model(m, "nf4", skip_modules=["model"]), TargetError, "no linear layer to quantise"),
        (lambda m: quantize_model(m, "nf5"), ConfigError, "nf4-dq"),
        (lambda m: quantize_model(m, "int8", blocksize=64), ConfigError, "one scale for each row"),
        (lambda m: quantize_model(m.double(), "nf4"), TargetError, "float64"),
        (lambda m: (m.model.layers[1].double(), quantize_model(m, "nf4")), TargetError, "float64"),
        (lambda m: quantize_model(m, "nf4", skip_modules="lm_head"), ConfigError, "a list"),
        (lambda m: quantize_model(m, "nf4", compute_dtype="bfloat16"), ConfigError, "few dtypes"),
        (lambda m: quantize_model(m, "nf4", quant_storage=torch.int8), ConfigError, "few dtypes"),
        (lambda m: quantize_model(m, "int8", quant_storage=torch.bfloat16), ConfigError, "one scale for each row"),
        (lambda m: quantize_model(m, "nf4", device="meta"), ConfigError, "no such device"),
    ],
)
def test_wrong_input_changes_nothing(break_it: Any, error: type[Exception], words: str) -> None:
    model = tiny_llama()
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(error, match=words):
        break_it(model)
    assert [type(module) for module in model.modules()] == kinds


def test_not_twice_and_not_under_adapters() -> None:
    model = tiny_llama()
    quantize_model(model, "nf4")
    with pytest.raises(InjectionError, match="quantised already"):
        quantize_model(model, "nf4")
    inject_adapter(model, PeraConfig(2))
    with pytest.raises(InjectionError, match="holds adapters already"):
        quantize_model(model, "nf4")
    with pytest.raises(InjectionError, match="holds adapters already"):
        inject_adapter(model, PeraConfig(2))


def test_factors_are_never_quantised() -> None:
    """Whoever quantises the linear layers of an adapted model finds none in a factor."""
    from transformers import BitsAndBytesConfig
    from transformers.integrations import replace_with_bnb_linear

    model = tiny_llama()
    inject_adapter(model, PeraConfig(2))
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    replace_with_bnb_linear(model, modules_to_not_convert=["lm_head"], quantization_config=options)
    layers = [layer for _, layer in adapted_layers(model)]
    assert all(isinstance(layer.base_layer, bnb.nn.Linear4bit) for layer in layers)
    for layer in layers:
        assert [type(value) for value in layer.adapter().values()] == [nn.Parameter] * 3
        assert {value.dtype for value in layer.adapter().values()} == {torch.float32}
    for _, layer in adapted_layers(model):
        assert not any(isinstance(module, nn.Linear) for module in layer.children() if module is not layer.base_layer)


@pytest.mark.parametrize("kind", ["nf4-dq", "int8"])
def test_injection_and_removal_change_no_bit(kind: Any) -> None:
    model = tiny_llama()
    quantize_model(model, kind)
    before, ids = bits(model), token_ids()
    expected = model(ids).logits
    inject_adapter(model, PeraConfig(2))
    assert torch.equal(model(ids).logits, expected)
    trainable = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trainable
    assert all(".pera_" in name for name in trainable)
    remove_adapter(model)
    assert same_bits(bits(model), before)
    assert torch.equal(model(ids).logits, expected)


def test_a_quantised_module_is_not_trained_whole() -> None:
    model = tiny_llama()
    quantize_model(model, "nf4")
    with pytest.raises(TargetError, match=r"'model.layers.0.mlp.*', quantised as nf4"):
        inject_adapter(model, PeraConfig(2, modules_to_save=["mlp"], target_modules=["q_proj"]))


@pytest.mark.parametrize("shape", [(5, 7), (1, 7)])
def test_weights_that_do_not_fill_the_storage(shape: tuple[int, int]) -> None:
    model = nn.Sequential(nn.Linear(*shape), nn.Linear(shape[1], 64), nn.Linear(64, 2))
    with pytest.raises(TargetError, match="whole elements of quant_storage"):
        quantize_model(model, "nf4", quant_storage=torch.float32)
    assert [type(module) for module in model] == [nn.Linear] * 3


@pytest.mark.parametrize("training", [False, True])
def test_torchs_attention_reads_its_own_weights(training: bool) -> None:
    layer = nn.TransformerEncoderLayer(64, 2, 64, batch_first=True, dropout=0.0)
    model = nn.Sequential(layer, nn.Linear(64, 64), nn.Linear(64, 2))
    report = quantize_model(model, "nf4")
    assert report.quantized == ("1",)
    with torch.no_grad():
        assert model.train(training)(torch.randn(2, 5, 64)).isfinite().all()
