"""Where an export may be written."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pera_lightning.checkpoint.adapter_files import CONFIG_FILE
from pera_lightning.checkpoint.manifest import PEFT_TYPE
from pera_lightning.checkpoint.out_folder import nearest_existing
from pera_lightning.errors import ExportError
from pera_lightning.export.export_report import REPORT_FILE


def check_place(folder: Path, to: str) -> None:
    """Raise ExportError unless a folder is new, empty, or an earlier export of the same form; nothing is written.

    Args:
        folder: Where an export is to be written.
        to: Its form, as in its report.
    """
    with _writing(folder):
        _check_folder(folder)
        if _is_empty(folder) or _form_in(folder) == to:
            return
    raise ExportError(
        "The export would mix with other files.",
        got=f"{folder}, which is not empty" + (f" but an export to {_form_in(folder)!r}" if _form_in(folder) else ""),
        expected="a new or empty folder, or an earlier export of the same form",
        fix="name another",
    )


def check_new(folder: Path) -> None:
    """Raise ExportError unless a folder is new or empty; nothing is written."""
    with _writing(folder):
        _check_folder(folder)
        if _is_empty(folder):
            return
    raise ExportError(
        "A merged model needs a folder of its own.",
        got=f"{folder}, which is not empty",
        expected="a new or empty folder",
        fix="name another",
    )


def _check_folder(folder: Path) -> None:
    found = nearest_existing(folder)
    if not found.is_dir():
        raise ExportError(
            "The export needs a folder.",
            got=f"{found}, which is {'a link to nothing' if found.is_symlink() else 'a file'}",
            expected="a new or empty folder",
            fix="name another",
        )
    if _values(folder / CONFIG_FILE).get("peft_type") == PEFT_TYPE:
        raise ExportError(
            "The export would take the place of a PERA adapter.",
            got=f"{folder}, which holds one",
            expected="a folder of its own",
            fix="name another; the PERA adapter is the one to train on and to export again",
        )


def _is_empty(folder: Path) -> bool:
    return not folder.exists() or not any(folder.iterdir())


def _form_in(folder: Path) -> str | None:
    """The form of the export in a folder; None if there is none."""
    return _values(folder / REPORT_FILE).get("to")


def _values(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A temporary folder to write to; what is in it comes to `folder` when all went well.

    Args:
        folder: New, empty, or with files that may be replaced.

    Yields:
        The temporary folder. After an exception it is deleted, and `folder` is as it was.

    Raises:
        ExportError: The folder cannot be written to.
    """
    target = folder.resolve()
    with _writing(folder):
        # Inside of a folder that is there: beside it may be another file system, or one that is read-only.
        place = target if target.exists() else target.parent
        place.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".pera-", dir=place))
    try:
        yield temporary
        with _writing(folder):
            _move(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move(temporary: Path, target: Path) -> None:
    if not target.exists():
        # mkdtemp makes private folders; the result should be as open as any other new one.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        temporary.replace(target)
        return
    # The report last: without it, it is no whole export.
    for path in sorted(temporary.iterdir(), key=lambda path: path.name == REPORT_FILE):
        path.replace(target / path.name)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExportError(
            "The export cannot be written.",
            got=f"{folder}: {error}",
            expected="a folder that you may write to, with room",
            fix="name another",
        ) from error
