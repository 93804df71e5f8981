"""How much the weight files of a model hold, by their headers: of those that transformers reads, within bounds."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pera_lightning.errors import shown
from pera_lightning.form_bounds import is_whole
from pera_lightning.storage.bounded_json import JsonError, parse_json
from pera_lightning.storage.regular_file import open_regular

LONGEST_HEADER = 32 << 20
MOST_PARTS = 3_000_000
"""Of a header or an index; a tensor takes about ten in the one, and one in the other."""
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MOST_DIMENSIONS = 16
_MOST_SIZE = 2**63


class WeightsDamage(Exception):
    """Weight files that no model can be loaded from, and why."""


class StoredWeights(NamedTuple):
    """How much the files of a model hold.

    Attributes:
        tensors: How many tensors; 0 if that is not known.
        values: How many values in all of them; of packed ones as many as they may be.
    """

    tensors: int
    values: int


def weights_in(folder: Path) -> StoredWeights:
    """What the headers of the safetensors files say that transformers loads a model from; others are not looked at.

    Raises:
        WeightsDamage: A header or the index is damaged.
        OSError: A file cannot be read.
    """
    entries = [entry for path in _files(folder) for entry in _header(path)]
    return StoredWeights(len(entries), sum(map(_values, entries)))


def _files(folder: Path) -> list[Path]:
    """The files in the order in which transformers looks for them; none if it will read a pickle."""
    named = _named_by_config(folder)
    if named is not None and not named.endswith(".index.json"):
        return [_inside(folder, named)]
    if named is None and (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    index = _inside(folder, named or _INDEX)
    return sorted({_inside(index.parent, name) for name in _indexed(index)}) if index.is_file() else []


def _named_by_config(folder: Path) -> str | None:
    try:
        with open_regular(folder / "config.json") as file:
            values = json.loads(file.read(LONGEST_HEADER))
    except (OSError, ValueError, RecursionError):  # which transformers will say, or does not need
        return None
    name = values.get("transformers_weights") if isinstance(values, dict) else None
    return name if isinstance(name, str) else None


def _inside(folder: Path, name: str) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise WeightsDamage(f"a file of weights is named {shown(name)}, which leads out of the folder")
    return folder / path


def _indexed(index: Path) -> Iterator[str]:
    with open_regular(index) as file:
        values = _parsed(index, file.read(LONGEST_HEADER + 1))
    names = values.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise WeightsDamage(f"{index.name} is no index of tensors and their files")
    yield from dict.fromkeys(names.values())


def _header(path: Path) -> list[dict[str, Any]]:
    with open_regular(path) as file:
        beginning = file.read(8)
        length = struct.unpack("<Q", beginning)[0] if len(beginning) == 8 else 0
        if length > LONGEST_HEADER:
            raise WeightsDamage(f"{path.name} says of itself that its header takes {length:,} bytes")
        content = file.read(length)
    entries = _parsed(path, content)
    entries.pop("__metadata__", None)
    wrong = next((name for name, entry in entries.items() if not _is_entry(entry)), None)
    if wrong is not None:
        raise WeightsDamage(
            f"{path.name} is no safetensors file: {shown(wrong)} is {shown(entries[wrong])}, and not a dtype, "
            f"a shape of at most {_MOST_DIMENSIONS} sizes and two data_offsets"
        )
    return list(entries.values())


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    offsets: Any = entry.get("data_offsets")
    return _are_sizes(entry.get("shape"), _MOST_DIMENSIONS) and _are_sizes(offsets, 2) and len(offsets) == 2


def _are_sizes(values: Any, most: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= most
        and all(is_whole(value) and 0 <= value < _MOST_SIZE for value in values)
    )


def _parsed(path: Path, content: bytes) -> dict[str, Any]:
    try:
        values = parse_json(content, most_bytes=LONGEST_HEADER, most_parts=MOST_PARTS)
    except JsonError as error:
        raise WeightsDamage(f"{path.name} is no safetensors file, or no index of such files: {error}") from None
    if not isinstance(values, dict):
        raise WeightsDamage(
            f"{path.name} is no safetensors file, or no index of such files: it holds no object of JSON"
        )
    return values


def _values(entry: dict[str, Any]) -> int:
    begin, end = entry["data_offsets"]
    whole_numbers = not entry["dtype"].startswith(("F", "BF"))
    # Whole numbers hold quantised weights, of two bits and more.
    return 4 * max(end - begin, 0) if whole_numbers else math.prod(entry["shape"])
