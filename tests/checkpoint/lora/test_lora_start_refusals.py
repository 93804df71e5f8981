"""LoRAs that cannot be gone on from, and that the model stays as it was then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pera_lightning import PeraConfig, inject_adapter, inject_lora
from pera_lightning.errors import AdapterFileError, ConfigError, InjectionError, PeraError
from tests.support.lora_folders import make, peft_lora
from tests.support.models import tied_llama, tiny_bert_classifier, tiny_gpt2, tiny_llama

LORA = {"r": 2, "target_modules": ["q_proj"]}
NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    peft_lora(make(tiny_llama), folder, **LORA)
    return folder


def refuse(model: nn.Module, folder: Path, words: str, error: type[PeraError] = AdapterFileError) -> None:
    """It is refused, and the model stays as it was."""
    before = {name: (value.clone(), value.requires_grad) for name, value in model.named_parameters()}
    modules = list(model.modules())
    with pytest.raises(error, match=words):
        inject_lora(model, folder)
    assert list(model.modules()) == modules
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    for name, (value, trainable) in before.items():
        assert after[name].requires_grad == trainable
        assert after[name].is_meta or torch.equal(after[name], value)


def changed(plain: Path, folder: Path, **values: Any) -> Path:
    """A LoRA with other entries in its config."""
    for path in plain.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **values}))
    return folder


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"peft_type": "IA3"}, "This is no LoRA"),
        ({"peft_type": "PERA"}, "load_adapter"),
        ({"use_dora": True}, "use_dora=True"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"target_parameters": ["experts.weight"]}, "target_parameters"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "base that was changed"),
        ({"init_lora_weights": "olora"}, "base that was changed"),
        ({"r": "many"}, "config is damaged"),
        ({"lora_alpha": 0}, "config is damaged"),
        ({"lora_alpha": None}, "(?s)config is damaged.*needs its alpha"),
        ({"rank_pattern": {"(": 2}}, "config is damaged"),
        ({"rank_pattern": {"q_proj": 3}}, "do not belong together"),
        ({"rank_pattern": {r"(([a-z_0-9]+\.?)+)+!": 3, "q_proj": 3}}, "do not belong together"),
        ({"alpha_pattern": {"(?=q)q_proj": 3}}, "(?s)config is damaged.*bounded time"),
        ({"alpha_pattern": {"q" * 1_001: 3}}, "(?s)config is damaged.*too long"),
        ({"alpha_pattern": [3]}, "config is damaged"),
    ],
)
def test_configs_that_are_refused(values: dict[str, Any], words: str, plain: Path, tmp_path: Path) -> None:
    refuse(make(tiny_llama), changed(plain, tmp_path, **values), words)


Tensors = dict[str, Tensor]


def put(key: str, value: Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({key: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop(NAME), "factor of the LoRA is missing"),
        (lambda tensors: tensors.pop(NAME.replace("_A", "_B")), "lora_B.weight"),
        (lambda tensors: tensors.clear(), "adapts no layer"),
        (put(NAME.replace("_A.weight", "_magnitude_vector"), torch.ones(32)), "lora_magnitude_vector"),
        (put(NAME.replace("_A.weight", "_B.bias"), torch.ones(32)), "tensors that a plain one does not have"),
        (put("base_model.model.x.token_adapter.trainable_tokens_delta", torch.ones(2)), "trainable_tokens_delta"),
        (put("base_model.model.model.norm.bias", torch.ones(32)), "changes the base"),
        (put("base_model.model.model.embed_tokens.weight", torch.ones(64, 32)), "changes the base"),
        (put("base_model.model.model.embed_tokens.weight", torch.ones(65, 32)), "changes the base"),
        (put(NAME, torch.ones(2, 31)), "from 31 to 32 features, here 32 to 32"),
        (put(NAME, torch.ones(3, 32)), "do not belong together"),
        (put(NAME, torch.ones(2, 32, 3, 3)), "do not belong together"),
        (put(NAME, torch.full((2, 32), float("nan"))), "not finite"),
    ],
)
def test_tensors_that_are_refused(change: Callable[[Tensors], object], words: str, plain: Path, tmp_path: Path) -> None:
    folder = changed(plain, tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    refuse(make(tiny_llama), folder, words)


def test_files_that_are_refused(plain: Path, tmp_path: Path) -> None:
    model = make(tiny_llama)
    refuse(model, tmp_path / "nowhere", "config is missing")
    folder = changed(plain, tmp_path)
    (folder / "adapter_model.safetensors").write_bytes(b"broken")
    refuse(model, folder, "cannot be read")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refuse(model, folder, r"(?s)a pickle.*save_pretrained")
    (folder / "adapter_model.bin").unlink()
    refuse(model, folder, "weights are missing")
    (folder / "adapter_config.json").write_text("{")
    refuse(model, folder, "no JSON")


def test_models_that_do_not_fit(plain: Path, tmp_path: Path) -> None:
    refuse(make(tiny_gpt2), plain, "a layer that the model does not have")
    refuse(make(lambda: tiny_llama(num_hidden_layers=1)), plain, r"(?s)layers.1.self_attn.q_proj.*near names.*q_proj")
    refuse(make(lambda: tiny_llama(hidden_size=64)), plain, "from 32 to 32 features, here 64 to 64")
    adapted = make(tiny_llama)
    inject_adapter(adapted, PeraConfig(2))
    refuse(adapted, plain, "holds adapters already", InjectionError)
    with torch.device("meta"):
        empty = tiny_llama()
    refuse(empty, plain, "on the meta device", InjectionError)
    with pytest.raises(ConfigError, match="order"):
        inject_lora(make(tiny_llama), plain, order=0)


class Convolving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)


def test_layers_that_cannot_be_adapted_in_this_way(plain: Path, tmp_path: Path) -> None:
    peft_lora(Convolving(), tmp_path / "conv", r=2, target_modules=["conv", "out"])
    refuse(Convolving(), tmp_path / "conv", "convolutions")
    peft_lora(make(tiny_llama), tmp_path / "embeddings", r=2, target_modules=["embed_tokens"])
    wrong = make(tiny_llama)
    wrong.model.embed_tokens = nn.Linear(64, 32)
    refuse(wrong, tmp_path / "embeddings", "of kind Linear")


def test_modules_saved_whole_that_do_not_fit(plain: Path, tmp_path: Path) -> None:
    peft_lora(make(tiny_bert_classifier), tmp_path, r=2, target_modules=["query"], modules_to_save=["classifier"])
    headless = make(tiny_bert_classifier)
    del headless.classifier
    refuse(headless, tmp_path, "a module that the model does not have")
    other = make(tiny_bert_classifier)
    other.classifier = nn.Linear(32, 5)
    refuse(other, tmp_path, r"(?s)other sizes.*classifier")


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    ],
)
def test_ties_that_peft_breaks_or_makes(options: dict[str, Any], tmp_path: Path) -> None:
    peft_lora(make(tied_llama), tmp_path, **{"r": 2, "target_modules": ["q_proj"], **options})
    refuse(make(tied_llama), tmp_path, "tied weights otherwise")
