"""Base models and adapters as folders, and what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pera_lightning import PeraConfig, inject_adapter, save_adapter
from pera_lightning.export.lora.plain_lora import PeraTensors
from pera_lightning.export.merged.merged_shards import merge_shards
from tests.support.models import randomise_adapter

SHARD = "20KB"


def digests(folder: Path) -> dict[str, str]:
    """A hash of every file."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def save_base_and_adapter(model: Any, folder: Path, config: PeraConfig | None = None) -> tuple[Path, Path]:
    """Save a transformers model in several small files, adapt it, and save the adapter; returns both folders."""
    base = folder / "base"
    model.save_pretrained(base, max_shard_size=SHARD)
    return base, adapt_and_save(model, folder / "adapter", config, base)


def adapt_and_save(model: nn.Module, folder: Path, config: PeraConfig | None, base: Path) -> Path:
    """Give a model an adapter that does something and save it."""
    inject_adapter(model, config or PeraConfig(2))
    randomise_adapter(model, 0.1)
    return save_adapter(model, folder, base_model=str(base))


def merge_files(adapter: Path, base: Path, out: Path, dtype: torch.dtype | None = None) -> Any:
    """Merge an adapter into the files of its base; returns the report."""
    out.mkdir()
    return merge_shards(PeraTensors.of(adapter), base, out, dtype=dtype)


def all_tensors(folder: Path) -> dict[str, Tensor]:
    return {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}


def rewrite(base: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Replace the files of a base by a single one with other content."""
    tensors = all_tensors(base)
    for file in [*base.glob("*.safetensors"), base / "model.safetensors.index.json"]:
        file.unlink(missing_ok=True)
    change(tensors)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


def add_tied_head(base: Path) -> None:
    rewrite(base, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
