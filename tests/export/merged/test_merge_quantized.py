"""The three ways of merging over a quantised base."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from pera_lightning import PeraConfig, inject_adapter, merge_adapter, quantize_model
from pera_lightning.base_layers import base_of
from pera_lightning.errors import ConfigError, InjectionError
from pera_lightning.export import merge_and_report
from pera_lightning.export.merged import room
from pera_lightning.injection import adapted_layers, stored_bytes
from pera_lightning.loading.narrow_weights import widen_activations
from tests.support.models import randomise_adapter, tiny_gpt2, tiny_llama, token_ids
from tests.support.quantized import bits, same_bits

KINDS = ("nf4", "nf4-dq", "fp4", "int8")
# Relative error of the dequantised merge's logits. int8 layers round their inputs to 8 bits, plain ones do not.
LOGITS = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 3e-3}
INT8_LOGITS = 3e-2


def llama() -> nn.Module:
    """Rows of whole blocks: others are unpacked wrongly on some CPUs (bases/narrow_rows.py)."""
    return tiny_llama(hidden_size=64, intermediate_size=128)


def adapted_pair(kind: Any, make: Any = llama, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """An adapted quantised model and the floating one that it was made of."""
    floating = make().to(dtype)
    model = copy.deepcopy(floating)
    quantize_model(model, kind)
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model, 0.05)
    return model, floating


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.float()


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", LOGITS)
@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_by_default_the_outputs_stay_and_the_model_is_plain(make: Any, kind: Any, dtype: torch.dtype) -> None:
    if make is tiny_gpt2 and dtype == torch.float16 and kind == "int8":
        dtype = torch.float32
    model, _ = adapted_pair(kind, make, dtype)
    ids = token_ids()
    expected = logits(model, ids)
    assert merge_adapter(model) is model
    assert relative(logits(model, ids), expected) < (INT8_LOGITS if kind == "int8" else LOGITS[dtype])
    assert not any(isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt) for module in model.modules())
    assert {value.dtype for value in model.parameters()} == {dtype}
    assert not list(adapted_layers(model))


@pytest.mark.parametrize("kind", KINDS)
def test_onto_the_original_weights(kind: Any) -> None:
    model, floating = adapted_pair(kind)
    changes = {name: layer.delta_weight().detach() for name, layer in adapted_layers(model)}
    merge_adapter(model, into="original", original=floating)
    for name, change in changes.items():
        wanted = floating.get_submodule(name).weight + change
        torch.testing.assert_close(model.get_submodule(name).weight, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_requantized(kind: Any) -> None:
    model, _ = adapted_pair(kind)
    size, ids = stored_bytes(model), token_ids()
    expected = logits(model, ids)
    wanted = {name: layer.merged_weight().detach() for name, layer in adapted_layers(model)}
    report = merge_and_report(model, into="requantized")
    for name, weight in wanted.items():
        layer = model.get_submodule(name)
        assert base_of(layer).quantization(layer) == kind
        assert relative(base_of(layer).weight(layer), weight) < (0.01 if kind == "int8" else 0.14)
    assert stored_bytes(model) < size
    assert relative(logits(model, ids), expected) == pytest.approx(report.logit_error, rel=1)


def test_report() -> None:
    reports = {}
    for into in ("dequantized", "original", "requantized"):
        torch.manual_seed(0)
        model, floating = adapted_pair("nf4")
        wanted = {name: layer.merged_weight().detach() for name, layer in adapted_layers(model)}
        given = {"original": floating} if into == "original" else {}
        report = merge_and_report(model, into=into, **given)
        error = norm = 0.0
        for name, weight in wanted.items():
            layer = model.get_submodule(name)
            error += (base_of(layer).weight(layer) - weight).square().sum().item()
            norm += weight.square().sum().item()
        assert report.weight_error == pytest.approx((error / norm) ** 0.5, rel=1e-4, abs=1e-9)
        assert report.into == into
        assert report.layers == 14
        assert report.worst_error >= report.weight_error
        reports[into] = report
    assert reports["dequantized"].logit_error < 1e-5
    assert reports["original"].logit_error > 1e-3
    assert reports["requantized"].logit_error > 1e-3


def test_report_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model, _ = adapted_pair("nf4")
    with caplog.at_level(logging.INFO, logger="pera_lightning"):
        merge_adapter(model, into="requantized")
    message = caplog.records[-1].getMessage()
    assert "merged 14 layers (requantized)" in message
    assert "of the outputs on the probe" in message


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 64)
        self.rest = nn.Linear(64, 64)
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.head(torch.tanh(self.rest(torch.tanh(self.body(scale * x)))))


@pytest.mark.parametrize("probe", [torch.ones(2, 64), (torch.ones(2, 64), 2.0), {"x": torch.ones(2, 64)}, None])
def test_probe(probe: Any) -> None:
    model = Classifier().train()
    quantize_model(model, "nf4")
    inject_adapter(model, PeraConfig(2, target_modules=["body"]))
    randomise_adapter(model, 0.05)
    report = merge_and_report(model, into="requantized", probe=probe)
    assert (report.logit_error is None) == (probe is None)
    assert all(module.training for module in model.modules())


def test_layers_without_an_adapter_become_plain_too() -> None:
    model = Classifier()
    floating = copy.deepcopy(model)
    quantize_model(model, "nf4")
    inject_adapter(model, PeraConfig(2, target_modules=["body"]))
    twin = copy.deepcopy(model)
    quantised = base_of(model.rest).weight(model.rest)
    merge_adapter(model)
    assert torch.equal(model.rest.weight, quantised)
    merge_adapter(twin, into="original", original=floating)
    assert torch.equal(twin.rest.weight, floating.rest.weight)


def test_embeddings_stored_narrower_than_the_model_computes() -> None:
    model = tiny_llama().to(torch.bfloat16)
    quantize_model(model, "nf4", compute_dtype=torch.float32)
    widen_activations(model, torch.float32)
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model, 0.05)
    ids = token_ids()
    expected = logits(model, ids)
    merge_adapter(model)
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.float32
    assert relative(logits(model, ids), expected) < LOGITS[torch.float32]


def test_merged_before(tmp_path: Path) -> None:
    model, _ = adapted_pair("nf4")
    ids = token_ids()
    expected = logits(model, ids)
    for _, layer in adapted_layers(model):
        layer.merge()
    torch.testing.assert_close(logits(model, ids), expected, rtol=1e-4, atol=1e-5)
    merge_adapter(model)
    torch.testing.assert_close(logits(model, ids), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_merged_transformers_model_is_saved_and_loaded_as_plain(tmp_path: Path, kind: str) -> None:
    tiny_llama().save_pretrained(tmp_path / "plain")
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if kind == "nf4" else {"load_in_8bit": True}
    config = BitsAndBytesConfig(**options)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=config)
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model, 0.05)
    merge_adapter(model)
    model.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = token_ids()
    assert torch.equal(logits(loaded, ids), logits(model, ids))
    assert not hasattr(loaded.config, "quantization_config")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"into": "bf16"}, ConfigError, "auto, dequantized, requantized"),
        ({"into": "original"}, ConfigError, "together with the floating model"),
        ({"original": tiny_llama()}, ConfigError, "together with the floating model"),
        ({"into": "original", "original": tiny_llama(hidden_size=64, intermediate_size=40)}, ConfigError, "gate_proj"),
    ],
)
def test_wrong_input_changes_nothing(options: Any, error: type[Exception], words: str) -> None:
    model, _ = adapted_pair("nf4")
    before = bits(model)
    with pytest.raises(error, match=words):
        merge_adapter(model, **options)
    assert same_bits(bits(model), before)
    assert len(list(adapted_layers(model))) == 14


def test_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = adapted_pair("nf4", dtype=torch.bfloat16)
    needed = 2 * sum(layer.in_features * layer.out_features for _, layer in adapted_layers(model))
    before = bits(model)
    monkeypatch.setattr(room, "free_bytes", lambda device: needed - 1)
    with pytest.raises(InjectionError, match="no room for the merged weights"):
        merge_adapter(model)
    assert same_bits(bits(model), before)
    assert len(list(adapted_layers(model))) == 14
    # Fits after all in the bits it had.
    merge_adapter(copy.deepcopy(model), into="requantized")
    monkeypatch.setattr(room, "free_bytes", lambda device: needed)
    merge_adapter(model)


def test_free_bytes() -> None:
    free = room.free_bytes(torch.device("cpu"))
    assert free is None or 1e6 < free < 1e14


@pytest.mark.parametrize("way", ["in place", "from_pretrained"])
def test_a_merged_gpt2_is_saved_and_loaded(tmp_path: Path, way: str) -> None:
    """Its class expects Conv1D layers, which hold the weight the other way round."""
    tiny_gpt2().save_pretrained(tmp_path / "plain")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    options = {"quantization_config": config} if way == "from_pretrained" else {}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", **options)
    if way == "in place":
        quantize_model(model, "nf4")
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model, 0.05)
    ids = token_ids()
    expected = logits(model, ids)
    merge_adapter(model)
    model.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert relative(logits(loaded, ids), expected) < LOGITS[torch.float32]


@pytest.mark.parametrize("wrong", [None, nn.Identity(), nn.Linear(64, 8)])
def test_the_original_of_every_quantised_layer_is_checked_first(wrong: nn.Module | None) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 2))
    original = nn.Sequential(copy.deepcopy(model[0]), *([] if wrong is None else [wrong]))
    quantize_model(model, "nf4")
    inject_adapter(model, PeraConfig(2, target_modules=["0"]))
    before = bits(model)
    with pytest.raises(ConfigError, match="'1'"):
        merge_adapter(model, into="original", original=original)
    assert same_bits(bits(model), before)
    assert len(list(adapted_layers(model))) == 1


def test_a_shared_layer_without_an_adapter_stays_shared() -> None:
    shared = nn.Linear(64, 64)
    model = nn.Sequential(shared, nn.Linear(64, 64), shared, nn.Linear(64, 2))
    quantize_model(model, "nf4")
    inject_adapter(model, PeraConfig(2, target_modules=["1"]))
    merge_adapter(model)
    assert type(model[0]) is nn.Linear
    assert model[0] is model[2]
