"""The files as llama.cpp itself applies them. Skipped by name where it is not; see `ALLOWED_SKIPS`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.export.gguf.gguf_adapter import write_gguf_adapter
from pera_lightning.export.gguf.gguf_names import PAIRED
from pera_lightning.export.gguf.gguf_writing import write_merged_gguf
from pera_lightning.export.lora.plain_lora import PeraTensors, plain_lora
from tests.conftest import NO_LLAMA_CPP
from tests.support.models import randomise_adapter, tiny_llama
from tests.support.tiny_gguf import tiny_qwen2, write_base_gguf

pytestmark = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason=NO_LLAMA_CPP)
TOKENS = [5, 17, 3, 42, 42, 8, 60, 11, 29, 33, 7, 50]
BOTH = ["adapter", "merged"]


def llama_cpp_logits(model: Path, adapter: Path | None = None) -> Tensor:
    import llama_cpp

    path = None if adapter is None else str(adapter)
    # A cache of keys and values in float32, type 0: nothing is rounded then.
    options = {"n_ctx": 64, "logits_all": True, "n_threads": 1, "type_k": 0, "type_v": 0, "verbose": False}
    llama = llama_cpp.Llama(str(model), lora_path=path, **options)
    try:
        llama.eval(TOKENS)
        return torch.tensor(llama.scores[: len(TOKENS)])
    finally:
        llama.close()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(torch.tensor([TOKENS])).logits[0]


def base(make: Any, path: Path, **options: object) -> nn.Module:
    """A tiny model, written as a GGUF file, whose attention is not almost even."""
    model = make(hidden_size=64, **options)
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() == 2:
                value.mul_(4)
    write_base_gguf(model, path)
    return model


def exported(model: nn.Module, folder: Path, form: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """What llama.cpp computes with an export of the model's adapter."""
    lora = plain_lora(PeraTensors.of(model), dtype=dtype)
    if form == "merged":
        write_merged_gguf(lora, folder / "base.gguf", folder / "merged.gguf", dtype)
        return llama_cpp_logits(folder / "merged.gguf")
    write_gguf_adapter(lora, folder / "adapter.gguf", model.config)
    return llama_cpp_logits(folder / "base.gguf", folder / "adapter.gguf")


@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2])
def test_logits_are_the_adapted_models(tmp_path: Path, make: Any, tied: bool, form: str) -> None:
    model = base(make, tmp_path / "base.gguf", tie_word_embeddings=tied)
    before = logits(model)
    torch.testing.assert_close(llama_cpp_logits(tmp_path / "base.gguf"), before, atol=1e-5, rtol=0)
    # Every linear layer, the head where it is one of its own.
    inject_adapter(model, PeraConfig(rank=2, target_modules=r".*_proj" if tied else r".*_proj|lm_head"))
    randomise_adapter(model)
    assert (logits(model) - before).abs().max() > 0.5
    torch.testing.assert_close(exported(model, tmp_path, form), logits(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)], ids=str)
def test_half_precision(tmp_path: Path, dtype: torch.dtype, within: float, form: str) -> None:
    model = base(tiny_llama, tmp_path / "base.gguf")
    inject_adapter(model, PeraConfig(rank=2))
    randomise_adapter(model)
    torch.testing.assert_close(exported(model, tmp_path, form, dtype), logits(model), atol=within, rtol=0)


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2])
def test_another_order_of_rows_would_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    model = base(make, tmp_path / "base.gguf")
    inject_adapter(model, PeraConfig(rank=2, target_modules=["q_proj", "k_proj"]))
    randomise_adapter(model)
    # Turned where it must not be, and not turned where it must.
    monkeypatch.setattr("pera_lightning.export.gguf.gguf_names.PAIRED", PAIRED ^ {model.config.model_type})
    assert (exported(model, tmp_path, "adapter") - logits(model)).abs().max() > 0.05
