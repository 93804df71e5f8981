"""The files beside the weights of a model: config, generation config, tokenizer, code, licence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from pera_lightning.export.export_report import REPORT_FILE
from pera_lightning.export.merged.base_files import MODEL_CONFIG_FILE
from pera_lightning.storage.recognition.adapter_kind import CONFIG_FILE
from pera_lightning.visible_text import visible_logger

logger = visible_logger(__name__)

SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken", ".py"})
"""Of the files that a model or its tokenizer is loaded from; weights and states of optimizers have others."""
LICENCES = ("LICENSE", "NOTICE", "USE_POLICY")
TEMPLATES = "additional_chat_templates"
_NOT_COPIED = frozenset({MODEL_CONFIG_FILE, CONFIG_FILE, REPORT_FILE, "trainer_state.json"})


def copy_companions(base: Path, folder: Path) -> None:
    """Copy what belongs to a model beside its weights and `config.json`; what is there already stays.

    Args:
        base: Folder of the model.
        folder: Where to.
    """
    for path in sorted(base.iterdir()):
        if path.is_file() and _belongs(path) and _is_here(path, base) and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    if (base / TEMPLATES).is_dir() and not (folder / TEMPLATES).exists():
        (folder / TEMPLATES).mkdir()
        for path in sorted((base / TEMPLATES).iterdir()):
            if path.is_file() and _is_here(path, base):
                shutil.copyfile(path, folder / TEMPLATES / path.name)


def write_model_config(config: dict[str, Any], folder: Path, dtype: torch.dtype | None) -> None:
    """Write `config.json`, which names the dtype that the weights have now."""
    if dtype is not None:
        # transformers 4 called it torch_dtype, and 5 reads both.
        field = "torch_dtype" if "torch_dtype" in config else "dtype"
        config = {**config, field: str(dtype).removeprefix("torch.")}
    (folder / MODEL_CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _belongs(path: Path) -> bool:
    if path.name in _NOT_COPIED or path.name.endswith(".index.json") or path.name.endswith("_results.json"):
        return False
    return path.suffix in SUFFIXES or path.name.startswith(LICENCES)


def _is_here(path: Path, base: Path) -> bool:
    """Whether a file is in the model's folder, or in the hub's cache that its links lead to: not the user's own."""
    home, found = base.resolve(), path.resolve()
    cached = home.parent.name == "snapshots" and found.is_relative_to(home.parent.parent / "blobs")
    if cached or found.is_relative_to(home):
        return True
    logger.warning("%s is not copied: it is a link to %s, outside of the model's folder", path, found)
    return False
