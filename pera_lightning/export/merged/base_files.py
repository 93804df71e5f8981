"""The safetensors files of a base model, read tensor by tensor."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pera_lightning.errors import ConfigError
from pera_lightning.storage.bounded_json import read_json

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MODEL_CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is.

    Attributes:
        file: Name of the file.
        shape: Its shape.
    """

    file: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class BaseFiles:
    """A model as `save_pretrained` writes it: one safetensors file, or several and an index.

    Attributes:
        folder: Where it is.
        tensors: Key -> where it is.
        config: The content of `config.json`.
        index: The content of the index; None with a single file.
    """

    folder: Path
    tensors: dict[str, StoredTensor]
    config: dict[str, Any]
    index: dict[str, Any] | None

    @classmethod
    def of(cls, folder: Path) -> BaseFiles:
        """Read what there is, without any weight.

        Raises:
            ConfigError: A file is missing or damaged.
        """
        config, index = _json(folder / MODEL_CONFIG_FILE), None
        names = [SINGLE_FILE]
        if not (folder / SINGLE_FILE).is_file():
            index = _json(folder / INDEX_FILE)
            names = _names(folder, index)
        tensors = {key: tensor for name in names for key, tensor in _stored(folder / name).items()}
        lost = [] if index is None else sorted(index["weight_map"].keys() - tensors.keys())
        if lost:
            raise _unreadable(folder / INDEX_FILE, f"it lists {lost[0]!r}, which is in none of its files")
        return cls(folder, tensors, config, index)

    @cached_property
    def files(self) -> list[str]:
        """Names of the files."""
        return sorted({tensor.file for tensor in self.tensors.values()})

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of most tensors."""
        return Counter(self.read(key).dtype for key in self.tensors).most_common(1)[0][0]

    def keys(self, file: str) -> list[str]:
        """The tensors in a file."""
        return [key for key, tensor in self.tensors.items() if tensor.file == file]

    def read(self, key: str) -> Tensor:
        """One tensor. It is mapped, not copied: read it only."""
        file = self.folder / self.tensors[key].file
        try:
            with safe_open(file, framework="pt") as opened:
                return opened.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise _unreadable(file, error) from error


def is_complete(folder: Path) -> bool:
    """Whether a folder holds a config and the safetensors files of a whole model."""
    if not (folder / MODEL_CONFIG_FILE).is_file():
        return False
    if (folder / SINGLE_FILE).is_file():
        return True
    if not (folder / INDEX_FILE).is_file():
        return False
    return all((folder / name).is_file() for name in _names(folder, _json(folder / INDEX_FILE)))


def _names(folder: Path, index: dict[str, Any]) -> list[str]:
    """The files that an index names, which have to be in its own folder: some will be written by the same name."""
    listed = index.get("weight_map")
    if not isinstance(listed, dict):
        raise _unreadable(folder / INDEX_FILE, "it has no weight_map")
    for name in listed.values():
        if not isinstance(name, str) or set(name) & set("/\\:\0") or not name.endswith(".safetensors"):
            raise _unreadable(folder / INDEX_FILE, f"it names {name!r}, which is no safetensors file of this folder")
    return sorted(set(listed.values()))


def _stored(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            keys = list(opened.keys())
            return {key: StoredTensor(file.name, tuple(opened.get_slice(key).get_shape())) for key in keys}
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error


def _json(file: Path) -> dict[str, Any]:
    try:
        values = read_json(file)
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error
    if not isinstance(values, dict):
        raise _unreadable(file, f"a {type(values).__name__}")
    return values


def _unreadable(file: Path, error: object) -> ConfigError:
    return ConfigError(
        "The base model's files cannot be read.",
        got=f"{file}: {error}",
        expected="a folder with config.json and whole safetensors files, as save_pretrained writes them",
        fix="copy or download it again, or name another folder",
    )
