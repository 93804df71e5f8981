"""Where an adapter folder was expected: what is there instead, and what to do with it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pera_lightning.did_you_mean import did_you_mean, near_paths
from pera_lightning.errors import AdapterFileError
from pera_lightning.storage.recognition.found_instead import PATH, found_instead
from pera_lightning.storage.remote import Place

_DEFAULT = "check the path, or save the adapter again"


def missing_adapter(path: Place) -> AdapterFileError:
    """The error for an adapter's config that is not there.

    Args:
        path: Of the config, in what was named as an adapter folder.
    """
    folder = path.parent
    # A fit writes its adapter into a folder of this name beside its checkpoints.
    inside = folder / "adapter"
    # Any: file systems have errors of their own, and this is for the cure only.
    with contextlib.suppress(Exception):
        if (inside / path.name).is_file():
            return _error(f"no file {path}", f"name {inside}")
    found = found_instead(folder)
    if found is None:
        return _error(
            f"{folder}, which is a checkpoint of a Trainer",
            f"make a folder of it: `consolidate --checkpoint {folder} --out FOLDER`; or give it to fit, validate, test "
            "or predict as ckpt_path",
        )
    if found.what == "nothing":
        meant = near_paths(folder) if isinstance(folder, Path) else []
        return _error(f"no file {path}", did_you_mean(meant, _DEFAULT))
    return _error(f"{folder}, which is {found.what}", _DEFAULT if found.cure == PATH else found.cure)


def _error(got: str, fix: str) -> AdapterFileError:
    return AdapterFileError(
        "The adapter's config is missing.", got=got, expected="a folder written by save_adapter", fix=fix
    )
