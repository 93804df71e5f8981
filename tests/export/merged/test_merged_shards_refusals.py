"""What cannot be merged from the files of a base, and that nothing is written then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pera_lightning import PeraConfig, save_adapter
from pera_lightning.errors import AdapterFileError, ConfigError, ExportError, PeraError
from tests.support.base_folders import add_tied_head, merge_files, rewrite, save_base_and_adapter
from tests.support.earlier_adapters import forget_checksums
from tests.support.models import tiny_gpt2, tiny_llama


def test_values_that_do_not_fit_the_dtype(tmp_path: Path) -> None:
    model = tiny_llama()
    base, _ = save_base_and_adapter(model, tmp_path)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.pera_B.fill_(1e4)
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(ExportError, match=r"up_proj\.weight' beyond torch\.float16"):
        merge_files(tmp_path / "adapter", base, tmp_path / "out", torch.float16)


def config_of(base: Path, **values: Any) -> None:
    path = base / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def forget_kinds(adapter: Path) -> None:
    path = forget_checksums(adapter) / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architecture": None, "layer_traits": {}}))


def rename_layers(base: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if "q_proj" in key]:
            tensors[key.replace("q_proj", "query")] = tensors.pop(key)

    rewrite(base, change)


def make_infinite(adapter: Path) -> None:
    path = forget_checksums(adapter) / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.pera_h"][0] = float("nan")
    save_file(tensors, path)


HEAD = "model.embed_tokens.weight"
TIED = {"tie_word_embeddings": True}
SAVED_EMBEDDING = PeraConfig(2, modules_to_save=["embed_tokens"])
REFUSALS: dict[str, tuple[dict[str, Any], PeraConfig, Callable[[Path, Path], Any], type[PeraError], str]] = {
    "quantised files": (
        {},
        PeraConfig(2),
        lambda base, adapter: config_of(base, quantization_config={"quant_method": "gptq"}),
        ConfigError,
        r"quantization_config \(gptq\)",
    ),
    "old adapter": ({}, PeraConfig(2), lambda base, adapter: forget_kinds(adapter), ExportError, "earlier version"),
    "other names": (
        {},
        PeraConfig(2),
        lambda base, adapter: rename_layers(base),
        ExportError,
        r"without model\.layers\.0\.self_attn\.q_proj\.weight, .*(.|\n)*in_memory=True",
    ),
    "not finite": ({}, PeraConfig(2), lambda base, adapter: make_infinite(adapter), AdapterFileError, "up_proj.pera_h"),
    "tied head": (
        TIED,
        PeraConfig(2, target_modules=["lm_head"]),
        lambda base, adapter: None,
        ExportError,
        "tied to another module(.|\n)*lm_head",
    ),
    "saved head that is tied": (
        TIED,
        PeraConfig(2, modules_to_save=["lm_head"]),
        lambda base, adapter: None,
        ExportError,
        "shares its weight with another one(.|\n)*'lm_head.weight'(.|\n)*in_memory=True",
    ),
    "saved embedding that is there twice": (
        TIED,
        SAVED_EMBEDDING,
        lambda base, adapter: add_tied_head(base),
        ExportError,
        "'model.embed_tokens.weight' and 'lm_head.weight' with the same values",
    ),
    "resized embedding": (
        {},
        SAVED_EMBEDDING,
        lambda base, adapter: rewrite(base, lambda tensors: tensors.update({HEAD: torch.zeros(60, 32)})),
        ExportError,
        r"shape \(60, 32\)(.|\n)*\(64, 32\)",
    ),
    "token that is not there": (
        {},
        PeraConfig(2, trainable_tokens=[3, 61]),
        lambda base, adapter: rewrite(base, lambda tensors: tensors.update({HEAD: torch.zeros(60, 32)})),
        ExportError,
        r"shape \(60, 32\)(.|\n)*\(62, 32\)",
    ),
    "other base": (
        {},
        PeraConfig(2),
        lambda base, adapter: tiny_llama().save_pretrained(base, max_shard_size="20KB"),
        ConfigError,
        "other weights",
    ),
    "missing file": (
        {},
        PeraConfig(2),
        lambda base, adapter: next(base.glob("*-00002-*")).unlink(),
        ConfigError,
        "model-00002-of",
    ),
    "truncated file": (
        {},
        PeraConfig(2),
        lambda base, adapter: next(base.glob("*-00002-*")).write_bytes(b"half"),
        ConfigError,
        "model-00002-of",
    ),
    "no safetensors": (
        {},
        PeraConfig(2),
        lambda base, adapter: [file.unlink() for file in base.glob("model*")],
        ConfigError,
        r"index\.json",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_before_anything_is_written(tmp_path: Path, case: str) -> None:
    options, config, spoil, error, words = REFUSALS[case]
    base, adapter = save_base_and_adapter(tiny_llama(**options), tmp_path, config)
    spoil(base, adapter)
    with pytest.raises(error, match=words):
        merge_files(adapter, base, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_transposed_weight_is_not_mistaken(tmp_path: Path) -> None:
    """GPT-2's c_proj is square: only the kind of the layer tells which way round it is."""
    model = tiny_gpt2()
    base, adapter = save_base_and_adapter(model, tmp_path, PeraConfig(2, target_modules=["attn.c_proj"]))
    path = forget_checksums(adapter) / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "layer_traits": {}}))
    with pytest.raises(ConfigError, match="other weights"):
        merge_files(adapter, base, tmp_path / "out")
