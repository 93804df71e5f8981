"""Cards say how the base is loaded: its class, its labels, its quantisation."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pera_lightning import PeraConfig, export_lora, inject_adapter, save_adapter
from pera_lightning.checkpoint import Manifest, manifest_of
from pera_lightning.checkpoint.base_code import base_code
from pera_lightning.checkpoint.model_card import model_card
from tests.support.models import randomise_adapter, tiny_llama


def classifier(labels: int) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=labels, **sizes)).eval()


def adapted(model: nn.Module, **options: Any) -> Manifest:
    inject_adapter(model, PeraConfig(2, **options))
    return manifest_of(model, "org/base")


@pytest.mark.parametrize("labels", [1, 4])
def test_as_many_labels_as_the_head_has(tmp_path: Path, labels: int) -> None:
    model = classifier(labels)
    adapted(model, modules_to_save=["classifier"], exclude_modules=["classifier"])
    save_adapter(model, tmp_path / "adapter", base_model="org/base")
    export_lora(tmp_path / "adapter", tmp_path / "lora")
    for folder in ("adapter", "lora"):
        card = (tmp_path / folder / "README.md").read_text()
        assert f"AutoModelForSequenceClassification.from_pretrained('org/base', num_labels={labels})" in card
        assert "CausalLM" not in card


@pytest.mark.parametrize(
    ("kind", "words"), [("nf4-dq", "load_in_4bit=True"), ("int8", "load_in_8bit=True"), ("none", "('org/base')\n")]
)
def test_the_quantisation_of_the_base(kind: str, words: str) -> None:
    model = tiny_llama()
    manifest = dataclasses.replace(adapted(model), quantization=(kind,))
    card = model_card(manifest, 1, {})
    assert words in card
    code = card.split("```python")[1].split("```")[0]
    compile(code, "card", "exec")
    assert ("BitsAndBytesConfig" in code.split("model =")[0]) == (kind != "none")


def test_a_file_of_llama_cpp() -> None:
    code = base_code(dataclasses.replace(adapted(tiny_llama()), base_model="folder/model.gguf"))
    assert code is not None
    assert code.call == "AutoModelForCausalLM.from_pretrained('folder', gguf_file='model.gguf')"


def test_other_modules_are_left_to_their_owner() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    manifest = adapted(model)
    assert base_code(manifest) is None
    card = model_card(manifest, 1, {})
    assert "# model: the module that was adapted" in card
    assert "python -m" not in card


def test_the_card_of_a_module_of_ones_own_holds_code_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    start = copy.deepcopy(model)
    inject_adapter(model, PeraConfig(rank=2, target_modules=["0"]))
    randomise_adapter(model)
    save_adapter(model, "this folder")
    x = torch.randn(3, 4)
    with torch.no_grad():
        wanted = model(x)
    load, serve = [part.split("```")[0] for part in Path("this folder/README.md").read_text().split("```python")[1:]]
    loaded = copy.deepcopy(start)
    exec(load + serve.replace("[...]", "[x]"), {"model": loaded, "torch": torch, "x": x})
    start.load_state_dict(torch.load("merged.pt", weights_only=True))
    with torch.no_grad():
        # float32: one rounding of the merged weight.
        torch.testing.assert_close(start(x), wanted, rtol=1e-5, atol=1e-5)
    assert Path("lora/adapter_model.safetensors").is_file()
