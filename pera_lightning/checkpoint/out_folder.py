"""Folders that results are written to, looked at before the work that they are the end of."""

from __future__ import annotations

import os
from pathlib import Path

from pera_lightning.errors import ConfigError


def check_out_folder(folder: Path) -> None:
    """Raise ConfigError unless files can be written into a folder that is there or still to be made."""
    found = nearest_existing(folder)
    if not found.is_dir():
        raise ConfigError(
            "What is written needs a folder.",
            got=f"{found}, which is {'a link to nothing' if found.is_symlink() else 'a file'}",
            expected="a folder, new or not",
            fix="name another with --out",
        )
    if not os.access(found, os.W_OK | os.X_OK):
        raise ConfigError(
            "Nothing can be written there.",
            got=str(found),
            expected="a folder that this user may write to",
            fix="name another with --out",
        )


def nearest_existing(path: Path) -> Path:
    """The path, or the nearest one above it that is there already; links to nothing are there."""
    return next(found for found in (path, *path.absolute().parents) if found.exists() or found.is_symlink())
