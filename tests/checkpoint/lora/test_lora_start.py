"""PERA adapters that start from a LoRA of PEFT."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pera_lightning import (
    PeraConfig,
    adapter_disabled,
    export_lora,
    inject_adapter,
    inject_lora,
    load_adapter,
    quantize_model,
    remove_adapter,
    save_adapter,
)
from pera_lightning.injection import adapted_layers
from tests.support.lora_folders import CLOSE, logits, make, peft_lora
from tests.support.models import randomise_adapter, tied_llama, tiny_bert_classifier, tiny_gpt2, tiny_llama, token_ids


def load_with_peft(model: nn.Module, folder: Path) -> nn.Module:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, folder).eval()


def train(model: nn.Module, steps: int = 2) -> None:
    optimizer = torch.optim.Adam((value for value in model.parameters() if value.requires_grad), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=token_ids()).logits.float().square().mean().backward()
        optimizer.step()


LORAS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "llama": (tiny_llama, {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}),
    "patterns": (
        tiny_llama,
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": r".*\.(q_proj|v_proj|up_proj)",
            "rank_pattern": {"q_proj": 2, r"model\.layers\.1\.mlp\.up_proj": 3},
            "alpha_pattern": {"^model.layers.0.*v_proj": 5, "up_proj": 3},
        },
    ),
    "rslora": (
        tiny_llama,
        {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": "all-linear", "rank_pattern": {"k_proj": 9}},
    ),
    "some layers": (tiny_llama, {"r": 2, "target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "embeddings": (tiny_llama, {"r": 3, "target_modules": ["embed_tokens", "q_proj", "lm_head"]}),
    "tied": (tied_llama, {"r": 3, "target_modules": ["embed_tokens", "lm_head"]}),
    "gpt2": (tiny_gpt2, {"r": 3, "lora_alpha": 9, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "classifier": (
        tiny_bert_classifier,
        {"r": 2, "target_modules": ["query"], "modules_to_save": ["pooler"], "task_type": "SEQ_CLS"},
    ),
}


@pytest.mark.parametrize("name", LORAS)
def test_it_starts_where_the_lora_of_peft_ended_and_goes_on(name: str, tmp_path: Path) -> None:
    build, options = LORAS[name]
    wanted = logits(peft_lora(make(build), tmp_path / "lora", **options))
    model = make(build)
    base = logits(model)
    report = inject_lora(model, tmp_path / "lora")
    torch.testing.assert_close(logits(model), wanted, **CLOSE)
    assert (wanted - base).abs().max() > 0.01
    with adapter_disabled(model):
        torch.testing.assert_close(logits(model), base, rtol=0, atol=0)
    layers = dict(adapted_layers(model))
    assert len(report.adapted) == len(layers)
    assert all(not layer.pera_h.any() for layer in layers.values())
    before = {key: value.clone() for key, value in model.named_parameters() if not value.requires_grad}
    train(model)
    assert all(layer.pera_h.any() for layer in layers.values())
    assert all(torch.equal(dict(model.named_parameters())[key], value) for key, value in before.items())
    trained = logits(model)
    assert (trained - wanted).abs().max() > 1e-3

    export_lora(model, tmp_path / "export")
    torch.testing.assert_close(logits(load_with_peft(make(build), tmp_path / "export")), trained, **CLOSE)
    save_adapter(model, tmp_path / "adapter")
    for path in (tmp_path / "lora").iterdir():
        path.unlink()
    fresh = make(build)
    load_adapter(fresh, tmp_path / "adapter")
    assert torch.equal(logits(fresh), trained)
    remove_adapter(fresh)
    assert torch.equal(logits(fresh), base)


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (tiny_llama, {"rank": 3, "alpha": 5, "target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 2}}),
        (tiny_llama, {"rank": 2, "target_modules": ["embed_tokens", "q_proj"]}),
        (tiny_gpt2, {"rank": 3, "order": 3}),
        (tiny_bert_classifier, {"rank": 2, "modules_to_save": ["classifier"]}),
    ],
)
def test_an_export_comes_back_as_it_was(
    build: Callable[[], nn.Module], options: dict[str, Any], tmp_path: Path
) -> None:
    model = make(build)
    inject_adapter(model, PeraConfig(**options))
    randomise_adapter(model)
    if "modules_to_save" in options:
        with torch.no_grad():
            model.classifier.weight.normal_()
    export_lora(model, tmp_path / "first")
    again = make(build)
    report = inject_lora(again, tmp_path / "first", order=1)
    assert all(layer.pera_h is None for _, layer in adapted_layers(again))
    assert report.saved == tuple(options.get("modules_to_save", ()))
    torch.testing.assert_close(logits(again), logits(model), **CLOSE)
    export_lora(again, tmp_path / "second")
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-6, atol=1e-7)
    configs = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("first", "second")]
    assert configs[0] == configs[1]


ODD_KEYS: list[dict[str, int]] = [
    {"self.attn.v_proj": 3},
    {"v_pro.": 3},
    {"layers.0.self.attn.v_proj": 3, "v_proj": 20},
    {"v_proj": 20, "layers.0.self.attn.v_proj": 3},
    {"......": 3},
    {"model.layers.0.self_attn.v_proj": 3, "model.layers...self_attn.q_proj": 5},
    {"proj": 3, "1.self_attn.q_proj": 4, "q_pro.": 5},
    {"": 3, "q_proj": 5},
    {"x|v_proj": 3},
    {"v_proj)|(q_proj": 3},
    {"^v_proj": 3},
    {"v_proj$": 5},
    {r"layers\.0\..*": 3, "q_proj": 5},
    {"(?i:V_PROJ)": 3},
    {r"\w+_proj": 3},
    {"V_proj": 3},
    {"attn.v_proj": 3},
    {"tn.v_proj": 3},
    {"model.model.layers.0.self_attn.v_proj": 3},
]


@pytest.mark.parametrize("pattern", ODD_KEYS, ids=str)
def test_keys_of_patterns_mean_what_they_mean_to_peft(pattern: dict[str, int], tmp_path: Path) -> None:
    options: dict[str, Any] = {"r": 2, "lora_alpha": 9, "target_modules": ["q_proj", "v_proj"]}
    # PEFT sorts the keys of the file; factors made by another order do not fit its own ranks then.
    ranks = pattern if list(pattern) == sorted(pattern) else {}
    peft_lora(make(tiny_llama), tmp_path, rank_pattern=ranks, alpha_pattern=pattern, **options)
    wanted = logits(load_with_peft(make(tiny_llama), tmp_path))
    model = make(tiny_llama)
    inject_lora(model, tmp_path)
    torch.testing.assert_close(logits(model), wanted, **CLOSE)


@pytest.mark.parametrize("ends", [["norm"], ["layernorm"], ["t_layernorm", "head"], ["e_proj", "m"]])
def test_modules_are_saved_by_the_end_of_their_names(ends: list[str], tmp_path: Path) -> None:
    wanted = logits(
        peft_lora(make(tiny_llama), tmp_path / "lora", r=2, target_modules=["q_proj"], modules_to_save=ends)
    )
    model = make(tiny_llama)
    report = inject_lora(model, tmp_path / "lora")
    torch.testing.assert_close(logits(model), wanted, **CLOSE)
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    whole = {key.removeprefix("base_model.model.") for key in stored if ".lora_" not in key}
    assert whole == {key for key in model.state_dict() if key.startswith(tuple(f"{name}." for name in report.saved))}
    save_adapter(model, tmp_path / "adapter")
    fresh = make(tiny_llama)
    load_adapter(fresh, tmp_path / "adapter")
    assert torch.equal(logits(fresh), logits(model))


def test_options_of_the_training_to_come(tmp_path: Path) -> None:
    peft_lora(make(tiny_llama), tmp_path, r=2, lora_alpha=6, lora_dropout=0.5, target_modules=["q_proj"])
    model = make(tiny_llama)
    inject_lora(model, tmp_path, 3, terms="square", dropout=0.1, coefficient_scale="auto")
    layer = next(layer for _, layer in adapted_layers(model))
    assert layer.config == PeraConfig(
        2,
        3,
        terms="square",
        alpha=6,
        dropout=0.1,
        coefficient_scale="auto",
        target_modules=[f"model.layers.{index}.self_attn.q_proj" for index in range(2)],
    )
    assert layer.pera_h.shape == (4,)


def test_over_a_quantised_base_in_half_precision(tmp_path: Path) -> None:
    def build() -> nn.Module:
        model = tiny_llama(hidden_size=64, intermediate_size=64).to(torch.bfloat16)
        quantize_model(model, "nf4")
        return model

    peft = peft_lora(make(build), tmp_path, r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"])
    model = make(build)
    inject_lora(model, tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    for name, layer in adapted_layers(model):
        assert layer.quantization == "nf4"
        assert layer.pera_A.dtype == torch.float32
        assert torch.equal(layer.pera_A, stored[f"base_model.model.{name}.lora_A.weight"])
    torch.testing.assert_close(logits(model), logits(peft), rtol=0, atol=0.02)


def test_ties_that_are_kept(tmp_path: Path) -> None:
    options = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    wanted = logits(peft_lora(make(tied_llama), tmp_path, r=2, target_modules=["q_proj"], **options))
    model = make(tied_llama)
    inject_lora(model, tmp_path)
    torch.testing.assert_close(logits(model), wanted, **CLOSE)


def test_two_models_with_one_lora_train_apart(tmp_path: Path) -> None:
    peft_lora(make(tiny_llama), tmp_path, r=2, target_modules=["q_proj"])
    first, second = make(tiny_llama), make(tiny_llama)
    inject_lora(first, tmp_path)
    inject_lora(second, tmp_path)
    before = copy.deepcopy(dict(second.named_parameters()))
    train(first, 1)
    assert all(torch.equal(value, before[name]) for name, value in second.named_parameters())
