"""Where an export may be written."""

from __future__ import annotations

import json
from pathlib import Path

from pera_lightning.checkpoint.adapter_files import CONFIG_FILE
from pera_lightning.checkpoint.manifest import PEFT_TYPE
from pera_lightning.errors import ExportError


def check_place(folder: Path) -> None:
    """Raise ExportError if an export would replace a PERA adapter or a file; nothing is written."""
    if folder.exists() and not folder.is_dir():
        raise ExportError(
            "The export needs a folder.", got=f"the file {folder}", expected="a new or empty folder", fix="name another"
        )
    if _holds_pera(folder):
        raise ExportError(
            "The export would take the place of a PERA adapter.",
            got=f"{folder}, which holds one",
            expected="a folder of its own",
            fix="name another; the PERA adapter is the one to train on and to export again",
        )


def _holds_pera(folder: Path) -> bool:
    try:
        values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("peft_type") == PEFT_TYPE
