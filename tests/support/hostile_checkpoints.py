"""Checkpoints that run something when they are unpickled: they make a file that a test then looks for."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata


class Touch:
    """When it is unpickled, the file is made."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def in_the_list(folder: Path, mark: Path) -> None:
    """In the list of tensors."""
    held = pickle.loads((folder / ".metadata").read_bytes())
    held.planner_data = Touch(mark)
    (folder / ".metadata").write_bytes(pickle.dumps(held))


def in_an_entry(folder: Path, mark: Path) -> None:
    """In place of a number that is no tensor, as learning rates are."""
    held = pickle.loads((folder / ".metadata").read_bytes())
    torch.save(Touch(mark), folder / "__9_0.distcp")
    length = (folder / "__9_0.distcp").stat().st_size
    key = next(key for key, entry in held.state_dict_metadata.items() if isinstance(entry, BytesStorageMetadata))
    index = next(index for index in held.storage_data if index.fqn == key)
    held.storage_data[index] = replace(held.storage_data[index], relative_path="__9_0.distcp", offset=0, length=length)
    (folder / ".metadata").write_bytes(pickle.dumps(held))


def in_the_rest(folder: Path, mark: Path) -> None:
    """Among the hyperparameters."""
    held = torch.load(folder / "meta.pt", weights_only=True)
    torch.save(held | {"hyper_parameters": {"a": Touch(mark)}}, folder / "meta.pt")


HOSTILE: dict[str, Callable[[Path, Path], None]] = {"list": in_the_list, "entry": in_an_entry, "rest": in_the_rest}


def make_hostile(folder: Path, name: str) -> Path:
    """A copy of a checkpoint of several processes, which makes a file beside it."""
    copy = folder.with_name(f"hostile-{name}")
    shutil.copytree(folder, copy)
    HOSTILE[name](copy, mark_of(copy))
    return copy


def mark_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-called")
