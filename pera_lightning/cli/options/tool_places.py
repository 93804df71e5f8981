"""Files and folders that tools are given, looked for before anything is imported; see `places.py` for those of fits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pera_lightning.cli.options.given import Given
from pera_lightning.cli.options.places import check_checkpoint
from pera_lightning.did_you_mean import did_you_mean, near_paths
from pera_lightning.errors import AdapterFileError, ConfigError
from pera_lightning.loading.model_place import check_model_place
from pera_lightning.storage.folder_kind import is_ours
from pera_lightning.storage.recognition.adapter_kind import ADAPTER, CONFIG_FILE
from pera_lightning.storage.recognition.missing_adapter import missing_adapter
from pera_lightning.storage.remote import local_name, place

_READ = ("data", "folder", "include_path", "rows", "tasks")
"""Options that name what has to be on this machine."""


def check_tool_places(given: Sequence[Given], adapters: Sequence[str] = ()) -> None:
    """Refuse paths that do not exist.

    Args:
        given: Options of a tool.
        adapters: Folders of adapters that were given without a name.

    Raises:
        AdapterFileError: There is no such adapter.
        CheckpointError: There is no such checkpoint, or it is something else.
        ConfigError: There is no such model, file or folder.
    """
    last = {one.key: one.value for one in given}
    for name in (*adapters, last.get("adapter"), last.get("against")):
        _check_adapter(name)
    if base := last.get("base"):
        check_model_place(local_name(base, "the base model"))
    if checkpoint := last.get("checkpoint"):
        check_checkpoint("consolidate", checkpoint, as_archive=True)
    for option in _READ:
        path = place(last.get(option) or ".")
        names = option == "tasks" and task_names(last.get(option) or ".")
        if isinstance(path, Path) and not path.exists() and not names:
            raise ConfigError(
                "The file or folder does not exist.",
                got=f"--{option} {path} (from {Path.cwd()})",
                expected="a path that exists",
                fix=did_you_mean(near_paths(path), "correct the path"),
            )


def task_names(tasks: str) -> list[str]:
    """The names of tasks that stand for `--tasks`, separated by commas; none where it is a folder."""
    path = place(tasks)
    is_folder = not isinstance(path, Path) or path.exists() or re.search(r"[/\\]|^[.~]", tasks) is not None
    return [] if is_folder else [name for part in tasks.split(",") if (name := part.strip())]


def _check_adapter(name: str | None) -> None:
    path = place(name) if name else None
    if not isinstance(path, Path):
        return
    if path.is_dir():
        # Files of a folder may be on their way.
        if not is_ours(path, ADAPTER) and not (path / CONFIG_FILE).exists():
            raise missing_adapter(path / CONFIG_FILE)
        return
    consolidate = f"make a folder of it: `pera_lightning consolidate --checkpoint {path} --out FOLDER`"
    raise AdapterFileError(
        "There is no such adapter.",
        got=f"{path} (from {Path.cwd()}), which is {'a file' if path.exists() else 'nothing'}",
        expected="a folder that a fit or save_adapter has written",
        fix=consolidate if path.is_file() else did_you_mean(near_paths(path), "correct the path"),
    )
