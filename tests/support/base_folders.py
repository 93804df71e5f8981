"""Base models and adapters as folders, and what is in them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import nn

from pera_lightning import PeraConfig, inject_adapter, save_adapter
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
