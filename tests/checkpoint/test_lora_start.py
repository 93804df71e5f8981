"""PERA adapters that start from a LoRA of PEFT, and what is no such LoRA."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

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
from pera_lightning.errors import AdapterFileError, ConfigError, InjectionError, PeraError
from pera_lightning.injection import adapted_layers
from tests.support.models import randomise_adapter, tiny_bert_classifier, tiny_gpt2, tiny_llama, token_ids

CLOSE = {"rtol": 0, "atol": 1e-5}


def make(build: Callable[[], nn.Module]) -> nn.Module:
    """The same base every time, as if it were pretrained."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return build()


def logits(model: nn.Module) -> Tensor:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        return model(input_ids=token_ids()).logits


def peft_lora(model: nn.Module, folder: Path, **options: Any) -> nn.Module:
    """A LoRA that PEFT made and saved, with values as training would give them."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        # Remarks about embeddings that are saved along, tied layers and Conv1D.
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, LoraConfig(**options)).eval()
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(3)
            for name, value in wrapped.named_parameters():
                if value.requires_grad:
                    value.normal_(std=0.3) if "lora_" in name else value.add_(0.3 * torch.randn_like(value))
        wrapped.save_pretrained(folder)
    return wrapped


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


def tied_llama() -> nn.Module:
    return tiny_llama(tie_word_embeddings=True)


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


def test_ties_that_are_kept(tmp_path: Path) -> None:
    options = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    wanted = logits(peft_lora(make(tied_llama), tmp_path, r=2, target_modules=["q_proj"], **options))
    model = make(tied_llama)
    inject_lora(model, tmp_path)
    torch.testing.assert_close(logits(model), wanted, **CLOSE)


def test_two_models_with_one_lora_train_apart(plain: Path) -> None:
    first, second = make(tiny_llama), make(tiny_llama)
    inject_lora(first, plain)
    inject_lora(second, plain)
    before = copy.deepcopy(dict(second.named_parameters()))
    train(first, 1)
    assert all(torch.equal(value, before[name]) for name, value in second.named_parameters())
