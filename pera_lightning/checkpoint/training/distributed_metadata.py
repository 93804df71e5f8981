"""The list of tensors in a checkpoint that several processes wrote, read without running anything that it names.

`torch.distributed.checkpoint` writes it as a pickle, `.metadata`, and reads it by `pickle.load`, which may call any
function. Here what is in the file becomes plain records first, and of these torch's objects are made, field by field.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from typing_extensions import override

from pera_lightning.checkpoint.training.pickle_walk import refuse_endless_pickle
from pera_lightning.errors import CheckpointError

METADATA_FILE = ".metadata"
_LARGEST_FILE = 1 << 28
"""Bytes; a part of a tensor takes some hundred."""


class _Fields:
    """What the file holds in place of an object: with what it is made, and its state. Nothing is called."""

    def __init__(self, *values: Any) -> None:
        self.values = values
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Metadata(_Fields):
    pass


class _Tensor(_Fields):
    pass


class _Properties(_Fields):
    pass


class _Chunk(_Fields):
    pass


class _Bytes(_Fields):
    pass


class _Index(_Fields):
    pass


class _Info(_Fields):
    pass


class _Ignored(_Fields):
    """Layouts, paths and other things that nobody needs for reading."""


class _MemoryFormat(_Fields):
    pass


class _MemberOfMemoryFormat(_Fields):
    """Stands for `getattr`, with which some versions of Python write members of enumerations, and these alone."""

    def __init__(self, owner: Any, name: Any) -> None:
        if owner is not _MemoryFormat or not str(name).startswith("TORCH_"):
            raise pickle.UnpicklingError("builtins.getattr")
        super().__init__(owner, name)


_HERE, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
_KNOWN: dict[tuple[str, str], Any] = {
    (_HERE, "Metadata"): _Metadata,
    (_HERE, "TensorStorageMetadata"): _Tensor,
    (_HERE, "TensorProperties"): _Properties,
    (_HERE, "ChunkStorageMetadata"): _Chunk,
    (_HERE, "BytesStorageMetadata"): _Bytes,
    (_HERE, "MetadataIndex"): _Index,
    (_HERE, "StorageMeta"): _Ignored,
    (_HERE, "_MEM_FORMAT_ENCODING"): _MemoryFormat,
    (_FILES, "_StorageInfo"): _Info,
    ("torch", "Size"): tuple,
    ("torch.serialization", "_get_layout"): _Ignored,
    ("builtins", "getattr"): _MemberOfMemoryFormat,
    **{(module, kind): _Ignored for module in ("pathlib", "pathlib._local") for kind in ("PosixPath", "WindowsPath")},
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
}
"""All that torch writes, from 2.8 to 2.13, and nothing else."""


class _Unpickler(pickle.Unpickler):
    @override
    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module, name))
        if known is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no list of tensors needs")
        return known


class PlainReader(FileSystemReader):
    """Reads what `FileSystemReader` reads, but the list of tensors as `read_metadata` does."""

    @override
    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        return read_metadata(Path(self.path))


def read_metadata(folder: Path) -> Metadata:
    """Read the list of tensors in a folder, of torch's classes, without the planner's own notes.

    A folder whose list is read here can be given to torch's reader: that would call nothing but what makes the list.

    Args:
        folder: Of a checkpoint that was written with `torch.distributed.checkpoint`.

    Raises:
        CheckpointError: The list is missing, damaged, or names what is no part of such a list; or a file that it names
            is not in the folder.
    """
    path = folder / METADATA_FILE
    try:
        # A pipe would be waited for.
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        with path.open("rb") as file:
            refuse_endless_pickle(file)
            held = _Unpickler(file).load()
        metadata = _metadata(held)
    # Any: there is hardly an error that a damaged pickle does not raise.
    except Exception as error:
        raise CheckpointError(
            "The checkpoint's list of tensors is missing, damaged or none that torch writes.",
            got=f"{path}: {str(error).strip() or type(error).__name__}",
            expected="the file as torch.distributed.checkpoint wrote it",
            fix="copy the whole folder, hidden files too, or go on from an earlier checkpoint",
        ) from error
    _refuse_missing(folder, metadata.storage_data.values())
    return metadata


def archives(metadata: Metadata) -> list[tuple[str, int, int]]:
    """Of each part that a list names: its file, where it begins in it, and its bytes, which `torch.save` wrote."""
    return [(info.relative_path, info.offset, info.length) for info in metadata.storage_data.values()]


def _metadata(held: Any) -> Metadata:
    fields = _state(held, _Metadata)
    entries, places = fields["state_dict_metadata"], fields["storage_data"]
    _expect(isinstance(entries, dict) and isinstance(places, dict), "no lists of entries and of places")
    storage = {_index(index): _info(info) for index, info in places.items()}
    tensors = {_text(key): _entry(value) for key, value in entries.items()}
    for key, entry in tensors.items():
        if isinstance(entry, TensorStorageMetadata):
            _check_room(key, entry, storage)
    return Metadata(tensors, storage_data=storage, storage_meta=StorageMeta())


def _entry(held: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if type(held) is _Bytes:
        return BytesStorageMetadata()
    fields = _state(held, _Tensor)
    # Dtype, layout, whether a gradient is needed, memory format, whether it is pinned.
    dtype = _state(fields["properties"], _Properties, tuple)[0]
    _expect(isinstance(dtype, torch.dtype), "a tensor without a dtype")
    size, chunks = _size(fields["size"]), fields["chunks"]
    _expect(isinstance(chunks, list), "a tensor without parts")
    return TensorStorageMetadata(TensorProperties(dtype=dtype), size, [_chunk(chunk, size) for chunk in chunks])


def _chunk(held: Any, size: torch.Size) -> ChunkStorageMetadata:
    fields = _state(held, _Chunk)
    offsets, sizes = _size(fields["offsets"]), _size(fields["sizes"])
    inside = len(offsets) == len(sizes) == len(size) and all(
        begin + length <= whole for begin, length, whole in zip(offsets, sizes, size, strict=True)
    )
    _expect(inside, f"a part of {tuple(sizes)} at {tuple(offsets)} in a tensor of {tuple(size)}")
    return ChunkStorageMetadata(offsets, sizes)


def _index(held: Any) -> MetadataIndex:
    fields = _state(held, _Index)
    offset, index = fields.get("offset"), fields.get("index")
    return MetadataIndex(
        _text(fields["fqn"]),
        None if offset is None else _size(offset),
        None if index is None else _count(index),
    )


def _info(held: Any) -> _StorageInfo:
    fields = _state(held, _Info)
    name = _text(fields["relative_path"])
    _expect(not set(name) & set("/\\:\0") and name not in ("", ".", ".."), f"a file {name!r} outside of the folder")
    _expect(not fields.get("transform_descriptors"), "compressed parts")
    return _StorageInfo(name, _count(fields["offset"]), _count(fields["length"]))


def _check_room(key: str, entry: TensorStorageMetadata, storage: dict[MetadataIndex, _StorageInfo]) -> None:
    """That the parts make up the tensor, and that the files are large enough for them."""
    parts = [(math.prod(chunk.sizes), storage.get(MetadataIndex(key, chunk.offsets))) for chunk in entry.chunks]
    width = entry.properties.dtype.itemsize
    complete = sum(count for count, _ in parts) == math.prod(entry.size)
    _expect(complete and all(info and count * width <= info.length for count, info in parts), f"no room for {key!r}")


def _refuse_missing(folder: Path, places: Collection[_StorageInfo]) -> None:
    ends: dict[str, int] = {}
    for info in places:
        ends[info.relative_path] = max(info.offset + info.length, ends.get(info.relative_path, 0))
    sizes = {name: (folder / name).stat().st_size if (folder / name).is_file() else -1 for name in ends}
    short = [name for name, end in ends.items() if sizes[name] < end]
    # Every part has its own place.
    if short or sum(info.length for info in places) > sum(sizes.values()):
        raise CheckpointError(
            "A file of the checkpoint is missing or cut off.",
            got=f"{folder / short[0]}" if short else f"{folder}, whose files are smaller than all parts together",
            expected="the files of all processes that wrote it",
            fix="copy the whole folder, or go on from an earlier checkpoint",
        )


def _state(held: Any, kind: type[_Fields], of: type[Any] = dict) -> Any:
    _expect(type(held) is kind and isinstance(held.state, of), f"something else in place of {kind.__name__[1:]}")
    return held.state


def _size(held: Any) -> torch.Size:
    _expect(isinstance(held, tuple), "no size")
    return torch.Size([_count(value) for value in held])


def _count(held: Any) -> int:
    _expect(type(held) is int and 0 <= held < 1 << 48, f"{held!r} in place of a number")
    return int(held)


def _text(held: Any) -> str:
    _expect(type(held) is str, "something else in place of a name")
    return str(held)


def _expect(right: object, got: str) -> None:
    if not right:
        raise ValueError(f"it has {got}")
