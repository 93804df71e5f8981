"""An adapter folder: where one may be written, and reading both of its files as one save wrote them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, load_file
from torch import Tensor

from pera_lightning.checkpoint.adapter_fit import check_alone
from pera_lightning.checkpoint.adapter_tensors import check_tensors
from pera_lightning.checkpoint.checksums import damage
from pera_lightning.checkpoint.manifest.manifest import Manifest, read_manifest
from pera_lightning.errors import AdapterFileError, FolderError, PeraError, one_line
from pera_lightning.storage.folder_kind import COMMIT, check_ours
from pera_lightning.storage.journal import settle
from pera_lightning.storage.recognition.adapter_kind import ADAPTER, CONFIG_FILE, WEIGHTS_FILE
from pera_lightning.storage.regular_file import check_regular
from pera_lightning.storage.remote import Place, RemotePath, place

_TRIES = 100
_PAUSE = 0.002
"""Seconds, beside a writer; a little longer each time."""


def check_adapter_place(folder: Place, base_model: str | None, *, overwrite: bool = False, **options: Any) -> None:
    """Raise FolderError unless an adapter may be written into a folder; nothing is changed.

    Args:
        folder: The folder, here or at a URL.
        base_model: Name or path of the base model, whose own folder it must not be.
        overwrite: Whether the folder may hold other things too.
        **options: As of `check_ours`.
    """
    if isinstance(folder, Path) and base_model and is_folder_of(folder, base_model):
        raise FolderError(
            "An adapter in the folder of its base model makes that unloadable.",
            got=f"{folder}, which is {base_model}",
            expected="a folder of its own",
            fix="name another folder",
        )
    check_ours(folder, ADAPTER, overwrite=overwrite, **options)


def is_folder_of(folder: Path, base_model: str) -> bool:
    """Whether a folder is that of a base model, which may be named by a file in it."""
    base = Path(base_model)
    try:
        return (base.parent if base.is_file() else base).samefile(folder)
    except (OSError, ValueError):
        return False


def read_adapter(directory: str | Place) -> tuple[Manifest, dict[str, Tensor]]:
    """What an adapter folder holds, without a model to put it into.

    Raises:
        AdapterFileError: A file is missing or damaged, the two do not belong together, or no model could compute with
            them.
    """
    folder = place(directory)
    manifest, tensors, problem = read_both(folder)
    check_tensors(manifest, tensors, folder)
    nested = [name for name in manifest.layers if f"{name}.pera_A" not in tensors]
    if nested:
        raise AdapterFileError(
            "An adapter inside another one cannot be read without its model.",
            got=f"{folder}: layer {nested[0]!r} is inside an adapted one",
            expected="adapted layers beside each other",
            fix="load_adapter(model, folder), and go on with the model",
        )
    refuse_damage(problem)
    check_alone(manifest, tensors, folder)
    return manifest, tensors


def refuse_damage(problem: AdapterFileError | None) -> None:
    """Raise what `read_both` found, if it found something."""
    if problem is not None:
        raise problem


def read_weights(path: Place) -> dict[str, Tensor]:
    """The tensors of an adapter's safetensors file.

    Raises:
        AdapterFileError: The file is missing or damaged.
    """
    try:
        if isinstance(path, RemotePath):
            return load(path.read_bytes())
        check_regular(path)
        return load_file(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise AdapterFileError(
            "The adapter's weights are missing.",
            got=f"no file {path}",
            expected="a folder written by save_adapter",
            fix="check the path, or save the adapter again",
        ) from None
    except PeraError:
        raise
    # Any: a damaged header makes of torch and safetensors what it says.
    except Exception as error:
        raise AdapterFileError(
            "The adapter's weights cannot be read.",
            got=f"{path}: {one_line(error)}",
            expected="a whole safetensors file",
            fix="copy or save it again; it is truncated or of another format",
        ) from error


def read_both(folder: Place) -> tuple[Manifest, dict[str, Tensor], AdapterFileError | None]:
    """Manifest and tensors of one save, also beside a process that writes the folder again and again.

    Returns:
        Both, and an error to raise if they are damaged or of two saves: later, if nothing else says more of it.

    Raises:
        AdapterFileError: A file is missing or cannot be read.
    """
    for number in range(_TRIES):
        _settled(folder)
        before, last = _state(folder), number == _TRIES - 1
        try:
            manifest, tensors = read_manifest(folder / CONFIG_FILE), read_weights(folder / WEIGHTS_FILE)
        except AdapterFileError:
            if last or not _changes(folder, before):
                raise
        else:
            problem = damage(manifest.checksums, tensors, folder)
            if last or (manifest.checksums and not problem) or not _changes(folder, before):
                break
        time.sleep(_PAUSE * (number + 1))
    return manifest, tensors, problem


def _changes(folder: Place, before: list[object]) -> bool:
    """Whether files are others than before, or on their way: a writer may have stopped between any two of them."""
    return _settled(folder) or _state(folder) != before


def _settled(folder: Place) -> bool:
    try:
        return settle(folder, ADAPTER)
    except OSError:
        # Without permission to write there is nothing to do but wait for who has it.
        return isinstance(folder, Path) and os.path.lexists(folder / COMMIT)


def stored_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each in memory of its own: safetensors refuses tied ones. None is copied for nothing."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in tensors.items():
        value = value.detach().cpu().contiguous()
        memory = value.untyped_storage()
        if memory.data_ptr() in seen or memory.nbytes() != value.nbytes:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        found[key] = value
    return found


def _state(folder: Place) -> list[object]:
    """What tells that the files are others than before."""
    found: list[object] = []
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        path = folder / name
        try:
            if isinstance(path, Path):
                entry = path.stat()
                found.append((entry.st_ino, entry.st_size, entry.st_mtime_ns))
            else:
                found.append(path.changed())
        # Any: each file system has errors of its own.
        except Exception:
            found.append(None)
    return found
