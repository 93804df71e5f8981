"""Adapter folders of quantised bases: what they record, and what they refuse."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pera_lightning import PeraConfig, inject_adapter, load_adapter, quantize_model, remove_adapter, save_adapter
from pera_lightning.checkpoint import install_state_hooks, manifest_of
from pera_lightning.errors import AdapterFileError, CheckpointError
from pera_lightning.injection import adapted_layers
from tests.support.models import randomise_adapter, tiny_llama, token_ids
from tests.support.quantized import bits, same_bits


def model_of(kind: Any) -> nn.Module:
    torch.manual_seed(3)
    model = tiny_llama()
    if kind != "none":
        quantize_model(model, kind)
    return model


def saved(kind: Any, folder: Path, **options: Any) -> nn.Module:
    model = model_of(kind)
    inject_adapter(model, PeraConfig(2, **options), float_model=model_of("none"))
    randomise_adapter(model)
    save_adapter(model, folder)
    return model


@pytest.mark.parametrize("kind", ["nf4", "nf4-dq", "int8"])
def test_round_trip(tmp_path: Path, kind: str) -> None:
    trained = saved(kind, tmp_path)
    assert all(".pera_" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_quantization"] == [kind]
    assert kind in (tmp_path / "README.md").read_text()
    model, ids = model_of(kind), token_ids()
    load_adapter(model, tmp_path)
    assert torch.equal(model(ids).logits, trained(ids).logits)


@pytest.mark.parametrize(("trained", "present"), [("nf4", "none"), ("none", "nf4"), ("nf4", "nf4-dq"), ("int8", "nf4")])
@pytest.mark.parametrize("adapted_before", [False, True])
def test_another_base_is_refused(tmp_path: Path, trained: str, present: str, adapted_before: bool) -> None:
    saved(trained, tmp_path)
    model, ids = model_of(present), token_ids()
    if adapted_before:
        inject_adapter(model, PeraConfig(2))
    expected, before = model(ids).logits, bits(model)
    words = {"none": "not quantised"}
    with pytest.raises(
        AdapterFileError, match=f"{words.get(trained, trained)}; this one is {words.get(present, present)}"
    ):
        load_adapter(model, tmp_path)
    assert same_bits(bits(model), before)
    assert torch.equal(model(ids).logits, expected)
    load_adapter(model, tmp_path, allow_other_quantization=True)
    assert not torch.equal(model(ids).logits, expected)


def test_folders_from_before_quantised_bases(tmp_path: Path) -> None:
    saved("none", tmp_path)
    path = tmp_path / "adapter_config.json"
    values = json.loads(path.read_text())
    del values["base_quantization"]
    path.write_text(json.dumps(values))
    load_adapter(model_of("none"), tmp_path)
    with pytest.raises(AdapterFileError, match="not quantised; this one is nf4"):
        load_adapter(model_of("nf4"), tmp_path)


def test_a_base_that_loftq_changed_is_made_again(tmp_path: Path) -> None:
    trained = saved("nf4", tmp_path, init="loftq", loftq_steps=3)
    model, ids = model_of("nf4"), token_ids()
    with pytest.raises(AdapterFileError, match="float_model"):
        load_adapter(model, tmp_path)
    assert not list(adapted_layers(model))
    load_adapter(model, tmp_path, float_model=model_of("none"))
    assert torch.equal(model(ids).logits, trained(ids).logits)


def test_one_step_of_loftq_needs_no_floating_weights(tmp_path: Path) -> None:
    trained = saved("nf4", tmp_path, init="loftq")
    model, ids = model_of("nf4"), token_ids()
    load_adapter(model, tmp_path)
    assert torch.equal(model(ids).logits, trained(ids).logits)


def test_state_dict_holds_the_adapter_alone() -> None:
    model = model_of("nf4-dq")
    inject_adapter(model, PeraConfig(2))
    install_state_hooks(model)
    state = model.state_dict()
    assert len(state) == 14 * 3
    assert all(".pera_" in key for key in state)
    model.load_state_dict(state)


@pytest.mark.parametrize(("stored", "present"), [("nf4", "none"), ("none", "nf4")])
def test_state_dicts_of_whole_models_are_refused(stored: str, present: str) -> None:
    plain = model_of(stored).state_dict()
    model = model_of(present)
    inject_adapter(model, PeraConfig(2))
    install_state_hooks(model)
    before = bits(copy.deepcopy(model))
    with pytest.raises(CheckpointError, match="looks like a checkpoint of the plain model"):
        model.load_state_dict(plain)
    assert same_bits(bits(model), before)


def test_manifest_while_merged() -> None:
    model = model_of("nf4")
    inject_adapter(model, PeraConfig(2))
    for _, layer in adapted_layers(model):
        layer.merge()
    assert manifest_of(model).quantization == ("nf4",)


def test_a_changed_base_is_known_as_such(tmp_path: Path) -> None:
    """Whatever is injected into a base that LoftQ changed does not pass for an adapter of the plain one."""
    trained = saved("nf4", tmp_path / "loftq", init="loftq", loftq_steps=2)
    ids = token_ids()
    expected = trained(ids).logits
    remove_adapter(trained)
    # Made again, from the floating weights and not from what is there.
    load_adapter(trained, tmp_path / "loftq", float_model=model_of("none"))
    assert torch.equal(trained(ids).logits, expected)
    remove_adapter(trained)
    inject_adapter(trained, PeraConfig(2))
    save_adapter(trained, tmp_path / "plain")
    with pytest.raises(AdapterFileError, match="nf4 after 2 LoftQ steps; this one is nf4"):
        load_adapter(model_of("nf4"), tmp_path / "plain")


def test_state_dicts_over_merged_layers_are_refused() -> None:
    model = model_of("none")
    inject_adapter(model, PeraConfig(2))
    install_state_hooks(model)
    state = model.state_dict()
    next(adapted_layers(model))[1].merge()
    with pytest.raises(CheckpointError, match="merged"):
        model.load_state_dict(state)
