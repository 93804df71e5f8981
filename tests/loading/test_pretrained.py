from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.errors import ConfigError
from pera_lightning.loading.pretrained import PretrainedSource, load_causal_lm, native_dtype
from pera_lightning.loading.pretrained_tokenizer import load_tokenizer
from pera_lightning.loading.stored_weights import StoredWeights
from pera_lightning.models.generation import generate_answers
from pera_lightning.models.gradient_checkpointing import enable_gradient_checkpointing
from tests.support.gguf_files import reads_gguf
from tests.support.models import randomise_adapter, tiny_gpt2, tiny_llama, token_ids
from tests.support.pretrained import character_tokenizer, save_pretrained

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def warnings_of_transformers(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_loads_a_folder(
    tmp_path: Path, build: Callable[[], nn.Module], warnings_of_transformers: Callable[[], list[str]]
) -> None:
    saved = build()
    source = PretrainedSource(save_pretrained(tmp_path, saved))
    model = load_causal_lm(source, attn_implementation="eager")
    tokenizer = load_tokenizer(source)
    ids = torch.tensor(tokenizer("hello")["input_ids"])[None]
    torch.testing.assert_close(model(ids).logits, saved(ids).logits)
    assert model.config._attn_implementation == "eager"
    assert tokenizer.decode(ids[0]) == "hello"
    assert tokenizer.pad_token == "<pad>"
    assert warnings_of_transformers() == []


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", torch.bfloat16), ("float32", torch.float32), ("float16", torch.float16)],
)
def test_dtype(tmp_path: Path, dtype: str, expected: torch.dtype) -> None:
    folder = save_pretrained(tmp_path, tiny_llama().to(torch.bfloat16))
    model = load_causal_lm(PretrainedSource(folder), dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_tokenizer_without_a_pad_token_pads_with_its_end(tmp_path: Path) -> None:
    folder = save_pretrained(tmp_path, tokenizer=character_tokenizer(pad_token=None))
    tokenizer = load_tokenizer(PretrainedSource(folder))
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<eos>", "<eos>")


def test_tokenizer_without_pad_and_end(tmp_path: Path) -> None:
    folder = save_pretrained(tmp_path, tokenizer=character_tokenizer(pad_token=None, eos_token=None))
    with pytest.raises(ConfigError, match="no token to pad with"):
        load_tokenizer(PretrainedSource(folder))


def test_name() -> None:
    assert PretrainedSource("org/model").name == "org/model"
    assert PretrainedSource("org/model", "q4.gguf").name == "org/model/q4.gguf"


@pytest.mark.parametrize("load", [load_causal_lm, load_tokenizer])
@pytest.mark.parametrize("pretrained", ["/no/such/folder", "./missing", "~/model", "a/b/c", r"C:\models\x"])
def test_missing_folder(load: Callable[..., Any], pretrained: str) -> None:
    with pytest.raises(ConfigError, match="folder of the pretrained model does not exist"):
        load(PretrainedSource(pretrained))


@pytest.mark.parametrize("load", [load_causal_lm, load_tokenizer])
def test_hub_id_that_cannot_be_reached(load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="check the id, the revision and the network") as caught:
        load(PretrainedSource("some-org/some-model"))
    assert "none of this name in" in str(caught.value)


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"name the folder that holds config\.json"):
        load_causal_lm(PretrainedSource(str(tmp_path)))
    (tmp_path / "model.gguf").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"set gguf_file: model\.gguf"):
        load_causal_lm(PretrainedSource(str(tmp_path)))


def test_file_instead_of_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"gguf_file: model\.gguf"):
        load_tokenizer(PretrainedSource(str(file)))


@pytest.mark.parametrize("load", [load_causal_lm, load_tokenizer])
def test_missing_gguf_file_names_near_ones(tmp_path: Path, load: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="this one has none"):
        load(PretrainedSource(str(tmp_path), "model-q4.gguf"))
    for name in ("model-Q4.gguf", "other.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=r"one of model-Q4\.gguf, other\.gguf"):
        load(PretrainedSource(str(tmp_path), "model-q4.gguf"))


@reads_gguf
@pytest.mark.parametrize("load", [load_causal_lm, load_tokenizer])
def test_damaged_gguf_file(tmp_path: Path, load: Callable[..., Any]) -> None:
    (tmp_path / "model.gguf").write_bytes(b"something else")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load(PretrainedSource(str(tmp_path), "model.gguf"))


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_missing_gguf_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    (tmp_path / "model.gguf").write_bytes(b"")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(ConfigError, match=rf"{package} is not installed\n(.|\n)*pera-lightning\[gguf\]"):
        load_causal_lm(PretrainedSource(str(tmp_path), "model.gguf"))


def test_truncated_weights(tmp_path: Path) -> None:
    folder = save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ConfigError, match="check that the folder is complete"):
        load_causal_lm(PretrainedSource(folder))


def test_missing_weights_are_not_left_random(tmp_path: Path) -> None:
    folder = save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["lm_head.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="lacks 1 weights of a LlamaForCausalLM") as caught:
        load_causal_lm(PretrainedSource(folder))
    assert "no lm_head.weight" in str(caught.value)


def test_model_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ConfigError, match="Unrecognized configuration class"):
        load_causal_lm(PretrainedSource(str(tmp_path)))


def test_unknown_attention(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='"fast"` is not supported'):
        load_causal_lm(PretrainedSource(save_pretrained(tmp_path)), attn_implementation="fast")


def test_code_of_a_repository_does_not_run_unasked(tmp_path: Path) -> None:
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(ConfigError, match="trust_remote_code"):
        load_causal_lm(PretrainedSource(str(tmp_path)))


def loss_and_gradients(model: nn.Module, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    loss = model(ids, labels=ids, use_cache=False).loss
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return loss, list(torch.autograd.grad(loss, trained))


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_gradient_checkpointing_reaches_adapters_over_a_frozen_base(build: Callable[[], nn.Module]) -> None:
    model = build()
    inject_adapter(model, PeraConfig(rank=2, dropout=0.3))
    randomise_adapter(model)
    ids = token_ids()
    model.train()
    expected_loss, expected = loss_and_gradients(model, ids)
    enable_gradient_checkpointing(model)
    calls: list[str] = []
    layer = next(module for module in model.modules() if type(module).__name__ in ("LlamaMLP", "GPT2MLP"))
    layer.register_forward_pre_hook(lambda module, args: calls.append("forward"))
    loss, gradients = loss_and_gradients(model, ids)
    assert len(calls) == 2, "the layer was not recomputed in the backward pass"
    torch.testing.assert_close(loss, expected_loss)
    for got, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_gradient_checkpointing_unsupported() -> None:
    model = tiny_llama()
    model.supports_gradient_checkpointing = False
    with pytest.raises(ConfigError, match="set gradient_checkpointing: false"):
        enable_gradient_checkpointing(model)


@reads_gguf
def test_gguf_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed blocks could not be trained through; whether transformers packs depends on what is installed."""
    from transformers import AutoModelForCausalLM

    (tmp_path / "model.gguf").write_bytes(b"")
    seen: dict[str, Any] = {}

    def from_pretrained(name: str, **options: Any) -> Any:
        seen.update(options)
        return tiny_llama(), {"missing_keys": []}

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    # The file is no real one.
    monkeypatch.setattr(PretrainedSource, "weights", lambda source: StoredWeights(0, 0))
    load_causal_lm(PretrainedSource(str(tmp_path), "model.gguf"))
    assert seen["gguf_file"] == "model.gguf"
    # Older versions of transformers always unpack, and have no such option.
    if hasattr(transformers, "GgufConfig"):
        assert seen["quantization_config"].dequantize is True


@pytest.mark.real_model
def test_real_gguf(smollm2_folder: Path, warnings_of_transformers: Callable[[], list[str]]) -> None:
    source = PretrainedSource(str(smollm2_folder), GGUF_FILE)
    tokenizer, model = load_tokenizer(source), load_causal_lm(source)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, native_dtype())}
    # A plain dense model, as if loaded from safetensors.
    assert not getattr(model, "is_quantized", False)
    assert not hasattr(model.config, "quantization_config")
    assert {type(module) for name, module in model.named_modules() if name.endswith("_proj")} == {nn.Linear}
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    with torch.inference_mode():
        assert torch.isfinite(model(torch.tensor([prompt])).logits).all()
    answers = generate_answers(model, tokenizer, [torch.tensor(prompt)], max_new_tokens=10)
    assert answers == ["The capital of France is Paris."]
    assert warnings_of_transformers() == []
