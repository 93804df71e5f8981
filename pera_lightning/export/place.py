"""Where an export may be written."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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


def check_new(folder: Path) -> None:
    """Raise ExportError unless a folder is new or empty; nothing is written."""
    check_place(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ExportError(
            "A merged model needs a folder of its own.",
            got=f"{folder}, which is not empty",
            expected="a new or empty folder",
            fix="name another, or delete it",
        )


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` to write to; it becomes `folder` when all went well.

    Args:
        folder: A new or empty folder.

    Yields:
        The temporary folder. After an exception it is deleted, and there is nothing new at `folder`.
    """
    parent = folder.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=parent))
    try:
        yield temporary
        # mkdtemp makes private folders; the result should be as open as any other new one.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
