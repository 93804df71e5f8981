"""What a checkpoint of Lightning's Trainer holds of an adapter: a file, or a folder that several processes wrote."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pera_lightning.checkpoint.manifest.manifest import Manifest
from pera_lightning.checkpoint.training.checkpoint_archive import check_archive, check_parts
from pera_lightning.checkpoint.training.named_objects import reason_of_torch
from pera_lightning.checkpoint.training.plain_tensors import check_plain
from pera_lightning.checkpoint.training.without_objects import load_without_objects
from pera_lightning.errors import CheckpointError, PeraError, one_line
from pera_lightning.storage.recognition.found_instead import found_instead
from pera_lightning.storage.remote import Place, RemotePath, place

META_FILE = "meta.pt"
"""In a folder: all but tensors of model and optimizers."""
PROCESSES = "pera_processes"
"""Key of what each process needs to go on, in the order of their ranks."""
_MODEL = "state_dict"
_DEEPSPEED_FILE = "checkpoint/mp_rank_00_model_states.pt"
"""In a folder of DeepSpeed's stages 1 and 2: all but the optimizer's state; the model is not split."""
_DEEPSPEED_MODEL = "module"


@dataclass(frozen=True)
class TrainingCheckpoint:
    """The adapter in a checkpoint.

    Attributes:
        path: The file or folder.
        shapes: Name of a tensor, relative to the LightningModule -> its shape.
        manifest: Of the adapter; None if PeraCallback did not write it.
        sharded: Whether it was written under a strategy that shards the module.
        step: Optimizer steps that were done; None if it does not say.
        callbacks: States of the callbacks, by their keys.
    """

    path: Place
    shapes: dict[str, tuple[int, ...]]
    manifest: Manifest | None
    sharded: bool
    step: int | None
    callbacks: dict[str, Any]

    @property
    def distributed(self) -> bool:
        """Whether it is a folder that several processes wrote."""
        return self.path.is_dir()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their names, whole, on the CPU. Reads them from disk, in this process alone."""
        single = _single_file(self.path)
        if single is not None:
            file, model = single
            return _tensors(file, _load(file), model)
        from torch.distributed.checkpoint import CheckpointException, load

        from pera_lightning.checkpoint.training.distributed_metadata import PlainReader, archives, read_metadata

        assert isinstance(self.path, Path)
        check_parts(self.path, archives(read_metadata(self.path)))
        sizes = _stored(self.path)
        found = {key: torch.zeros(entry.size, dtype=entry.properties.dtype) for key, entry in sizes.items()}
        with warnings.catch_warnings():
            # It says that it reads alone, which is what it was asked for.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            try:
                load(found, storage_reader=PlainReader(self.path), no_dist=True)
            except (CheckpointException, OSError) as error:
                raise CheckpointError(
                    "The checkpoint cannot be read.",
                    # Reports of several processes end with what went wrong.
                    got=f"{self.path}: {(str(error).strip().splitlines() or [type(error).__name__])[-1]}",
                    expected="the files of all processes that wrote it",
                    fix="copy the whole folder, or go on from an earlier checkpoint",
                ) from error
        return {key.removeprefix(f"{_MODEL}."): value for key, value in found.items()}


def read_checkpoint(path: str | Place) -> TrainingCheckpoint:
    """Look into a checkpoint; tensors are read later.

    Only tensors and plain values are read, whatever objects are in it; nothing that it names is called.

    Args:
        path: A `.ckpt` file, here or at a URL, or the folder that DeepSpeed or a strategy with
            `save_distributed_checkpoint=True` wrote, which has to be local.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged.
    """
    path = place(path)
    single = _single_file(path)
    if isinstance(path, Path) and path.is_dir() and (path / META_FILE).is_file():
        held = _load(path / META_FILE)
        prefix = f"{_MODEL}."
        shapes = {key.removeprefix(prefix): tuple(entry.size) for key, entry in _stored(path).items()}
    elif single is not None:
        file, model = single
        held = _load(file)
        shapes = {key: tuple(value.shape) for key, value in _tensors(path, held, model).items()}
    else:
        found = found_instead(path)
        raise CheckpointError(
            "There is no checkpoint of a Trainer here.",
            got=f"{path}, which is {found.what if found else 'no checkpoint'}",
            expected=f"a .ckpt file, a folder with {META_FILE} and .distcp files, or one with {_DEEPSPEED_FILE}",
            fix=found.cure if found else "correct the path",
        )
    step, callbacks = held.get("global_step"), held.get("callbacks")
    return TrainingCheckpoint(
        path,
        shapes,
        manifest_in(held),
        _is_sharded(held),
        step if isinstance(step, int) else None,
        callbacks if isinstance(callbacks, dict) else {},
    )


def _single_file(path: Place) -> tuple[Place, str] | None:
    """The one file that holds the whole model, with the key it is under; None if there is none."""
    if path.is_file():
        return path, _MODEL
    file = path / _DEEPSPEED_FILE
    return (file, _DEEPSPEED_MODEL) if file.is_file() else None


def _load(path: Place) -> dict[str, Any]:
    check_archive(path)
    try:
        held = _load_plain(path)
    # Whatever it is, a damaged file raises it below too.
    except Exception as refused:
        try:
            with path.open() if isinstance(path, RemotePath) else path.open("rb") as file:
                held = load_without_objects(file)
        except Exception as error:
            reason = error if isinstance(refused, pickle.UnpicklingError) else refused
            raise CheckpointError(
                "The checkpoint is damaged.",
                got=f"{path}: {one_line(reason) if isinstance(reason, PeraError) else reason_of_torch(reason)}",
                expected="a whole file",
                fix="if it was cut off, go on from an earlier one",
            ) from error
    if not isinstance(held, dict):
        raise CheckpointError(
            "The file is no checkpoint of a Trainer.",
            got=f"{path}, which holds a {type(held).__name__}",
            expected="a dict with the module's state",
            fix="correct the path",
        )
    return held


def _load_plain(path: Place) -> Any:
    if isinstance(path, RemotePath):
        with path.open() as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def _tensors(path: Place, held: dict[str, Any], model: str) -> dict[str, Tensor]:
    """The module's tensors by their names; a damaged file may hold anything in their place."""
    found = held.get(model)
    entries = found.items() if isinstance(found, dict) else ()
    tensors = {key: value for key, value in entries if isinstance(key, str) and isinstance(value, Tensor)}
    check_plain(tensors, path)
    return tensors


def _stored(folder: Path) -> dict[str, Any]:
    """Key -> metadata of the model's tensors in a folder."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from pera_lightning.checkpoint.training.distributed_metadata import read_metadata

    held = read_metadata(folder).state_dict_metadata
    return {
        key: entry
        for key, entry in held.items()
        if key.startswith(f"{_MODEL}.") and isinstance(entry, TensorStorageMetadata)
    }


def manifest_in(held: Mapping[str, Any]) -> Manifest | None:
    """Of the adapter in what a checkpoint holds; None if PeraCallback did not write it."""
    states = held.get("callbacks")
    for state in states.values() if isinstance(states, dict) else ():
        if isinstance(state, dict) and isinstance(state.get("adapter"), dict):
            return Manifest.from_dict(state["adapter"])
    return None


def _is_sharded(held: dict[str, Any]) -> bool:
    processes = held.get(PROCESSES)
    first = processes[0] if isinstance(processes, list) and processes else {}
    return isinstance(first, dict) and first.get("sharded", False)
