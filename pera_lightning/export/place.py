"""Where an export may be written."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pera_lightning.checkpoint.adapter_folder import is_folder_of
from pera_lightning.errors import FolderError
from pera_lightning.export.export_report import REPORT_FILE
from pera_lightning.export.gguf.gguf_adapter import GGUF_FILE
from pera_lightning.export.gguf.gguf_writing import MERGED_GGUF_FILE
from pera_lightning.export.lora.factors_format import FACTORS_FILE
from pera_lightning.storage.bounded_json import JsonError, read_json
from pera_lightning.storage.folder_kind import FolderKind, check_ours, listed_files
from pera_lightning.storage.out_folder import check_out_folder
from pera_lightning.storage.recognition.adapter_kind import CARD_FILE, CONFIG_FILE, PEFT_TYPE, WEIGHTS_FILE

_PEFT = (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE)
_OF_EARLIER_VERSIONS = {
    "peft": _PEFT,
    "vllm": _PEFT,
    "safetensors": (FACTORS_FILE,),
    "llamacpp": (GGUF_FILE,),
    "gguf": (MERGED_GGUF_FILE,),
}
"""What they wrote beside a report that did not list it. Of merged models nobody knows it any more."""


def export_kind(to: str) -> FolderKind:
    """What an export to a form is recognised by.

    Args:
        to: The form, as in its report.
    """
    return FolderKind(
        f"an export to {to!r}",
        marker=REPORT_FILE,
        recognise=lambda values: values.get("to") == to and "versions" in values and bool(_written(values, to)),
        listed=lambda values: _written(values, to),
    )


def check_place(folder: Path, to: str, *, base: str | None = None, overwrite: bool = False) -> None:
    """Raise FolderError unless an export may be written into a folder; nothing is written.

    Args:
        folder: New, empty, or an earlier export of the same form.
        to: Its form, as in its report.
        base: Name or path of the adapter's base model.
        overwrite: Whether the folder may be another one, but for that of the base and that of a PERA adapter.
    """
    if _values(folder / CONFIG_FILE).get("peft_type") == PEFT_TYPE:
        raise FolderError(
            "The export would take the place of a PERA adapter.",
            got=f"{folder}, which holds one",
            expected="a folder of its own",
            fix="name another; the PERA adapter is the one to train on and to export again",
        )
    if base is not None and is_folder_of(folder, base):
        raise FolderError(
            "The export would take the place of its base model.",
            got=f"{folder}, which is {base}",
            expected="a folder of its own",
            fix="name another; the base is needed to load the adapter, and to export it again",
        )
    check_ours(folder, export_kind(to), overwrite=overwrite)
    check_out_folder(folder)


def _written(values: dict[str, Any], to: str) -> Collection[str]:
    return listed_files(values) or _OF_EARLIER_VERSIONS.get(to, ())


def _values(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
    except (OSError, JsonError):
        return {}
    return values if isinstance(values, dict) else {}
