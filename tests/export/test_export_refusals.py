"""What cannot be exported, and that nothing is written then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pera_lightning import adapter_disabled, export_lora, save_adapter
from pera_lightning.errors import AdapterFileError, ConfigError, ExportError, InjectionError
from pera_lightning.injection import adapted_layers
from tests.support.exports import adapted
from tests.support.models import tied_llama, tiny_gpt2, tiny_llama, token_ids

# PEFT looks at an attribute of transformers that is about to be renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def huge_norm() -> nn.Module:
    model = adapted(modules_to_save=["model.norm"])
    with torch.no_grad():
        model.model.norm.weight.fill_(1e5)
    return model


class Module(nn.Module):
    """As a LightningModule keeps its model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = model


def test_a_module_around_the_model(tmp_path: Path) -> None:
    # PEFT would not find the layers under these names, and say nothing.
    module = Module(adapted())
    with pytest.raises(
        ExportError, match=r"(?s)a Module with the model in its 'net'.*export_lora\(module\.net, \.\.\.\)"
    ):
        export_lora(module, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export_lora(module, tmp_path / "own", to="safetensors").exact


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "biases": (lambda: adapted(tiny_gpt2, bias="adapted"), {}, "PEFT would leave out a part .*trained biases"),
    "tokens": (lambda: adapted(trainable_tokens=[5, 7]), {}, "PEFT would leave out .*trained rows of tokens"),
    "embedding": (
        lambda: adapted(target_modules=["q_proj", "embed_tokens"]),
        {"to": "vllm"},
        "vLLM would leave out .*adapted embeddings: model.embed_tokens",
    ),
    "tied head": (
        lambda: adapted(tied_llama, target_modules=["q_proj", "lm_head"]),
        {"to": "vllm"},
        "vLLM would leave out .*tied to the embedding: lm_head",
    ),
    "saved": (lambda: adapted(modules_to_save=["norm"]), {"to": "vllm"}, "vLLM would leave out .*modules saved whole"),
    "saved head, tied": (
        lambda: adapted(tied_llama, modules_to_save=["lm_head"]),
        {},
        "PEFT would leave out .*the tie between a module saved whole and another module: lm_head",
    ),
    "saved embedding, tied": (
        lambda: adapted(tied_llama, modules_to_save=["embed_tokens"]),
        {"to": "safetensors"},
        "A file of factors would leave out .*the tie .*: model.embed_tokens",
    ),
    "overflow of what is saved": (huge_norm, {"dtype": torch.float16}, "'model.norm.weight' beyond torch.float16"),
    "rank": (lambda: adapted(rank=31), {"to": "vllm"}, "vLLM takes no LoRA of this rank.*527"),
    "overflow": (lambda: adapted(scale=3e5), {"dtype": torch.float16}, "does not fit the dtype"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    make, options, message = REFUSED[name]
    with pytest.raises(ExportError, match=f"(?s){message}"):
        export_lora(make(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_vllm_takes_a_cut_one(tmp_path: Path) -> None:
    assert export_lora(adapted(rank=31), tmp_path, 16, to="vllm").rank == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank cannot have this value"),
        ({"rank": 3, "max_error": 0.1}, "Either the rank or the error"),
        ({"max_error": 1.5}, "max_error is the relative error"),
        ({"max_error": float("nan")}, "max_error is the relative error"),
        ({"dtype": torch.float64}, "floating dtype that servers read"),
        ({"to": "ollama"}, "no such target of an export"),
        ({"inputs": token_ids()}, r"(?s)one call of the model after the other.*a Tensor.*inputs=\[\.\.\.\]"),
        ({"inputs": {"input_ids": token_ids()}}, "(?s)one call of the model after the other.*a dict"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        export_lora(adapted(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_sources_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(InjectionError, match="holds no adapter"):
        export_lora(tiny_llama(), tmp_path / "out")
    with pytest.raises(AdapterFileError, match="config is missing"):
        export_lora(tmp_path / "nowhere", tmp_path / "out")
    model = adapted()
    next(iter(adapted_layers(model)))[1].merge()
    with pytest.raises(InjectionError, match=r"(?s)beside its base.*1 merged layers"):
        export_lora(model, tmp_path / "out")
    model = adapted()
    with (
        adapter_disabled(model),
        pytest.raises(InjectionError, match=r"(?s)14 disabled layers.*outside of adapter_disabled"),
    ):
        export_lora(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_of_two_adapters(tmp_path: Path) -> None:
    save_adapter(adapted(target_modules=["q_proj"]), tmp_path / "one")
    save_adapter(adapted(target_modules=["v_proj"]), tmp_path / "other")
    (tmp_path / "one/adapter_model.safetensors").replace(tmp_path / "other/adapter_model.safetensors")
    with pytest.raises(AdapterFileError, match="do not belong together"):
        export_lora(tmp_path / "other", tmp_path / "out")


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    model = adapted()
    with torch.no_grad():
        next(iter(adapted_layers(model)))[1].pera_B[0, 0] = float("nan")
    with pytest.raises(ExportError, match="not finite"):
        export_lora(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
