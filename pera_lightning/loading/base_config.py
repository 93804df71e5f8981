"""Whether the config of a base model is one of its weights: what it says is looked at before transformers builds it."""

from __future__ import annotations

import json
import math
import re
import reprlib
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from pera_lightning.storage.regular_file import open_regular

_LONGEST_HEADER = 100 << 20
"""Bytes, as in safetensors itself."""
_LAYERS = re.compile(r"(num|n)_.*layers?|n_layer|(en|de)coder_layers|layers")
_SHARES = re.compile(r".*(dropout|pdrop)(_prob)?")
_SMALL = re.compile(r"(.*_)?(eps|epsilon)")
_MOST = 1e30
"""Of a number; products of it are still finite in float32."""
_SPARE = 10_000_000
"""Values of a model that need not be in its files: tables of positions, masks."""


class ConfigDamage(Exception):
    """A config that no model of these weights can have, and why."""


class StoredWeights(NamedTuple):
    """How much the files of a model hold.

    Attributes:
        tensors: How many tensors; 0 if that is not known.
        values: How many values in all of them; of packed ones as many as they may be.
    """

    tensors: int
    values: int


def weights_in(folder: Path) -> StoredWeights:
    """What the headers of the safetensors files in a folder say.

    Raises:
        ConfigDamage: A header is damaged.
        OSError: A file cannot be read.
    """
    entries = [entry for path in sorted(folder.glob("*.safetensors")) for entry in _header(path).values()]
    return StoredWeights(len(entries), sum(map(_values, entries)))


def check_base_config(values: Mapping[str, Any], weights: StoredWeights) -> None:
    """Raise ConfigDamage for a config that a model cannot be built by, or not compute with.

    Args:
        values: The config as plain values.
        weights: What its files hold.
    """
    for name, value in _numbers(values):
        problem = _problem(name.rpartition(".")[2], value, weights)
        if problem:
            raise ConfigDamage(f"its config says {name} = {reprlib.repr(value)}, {problem}")


def check_base_size(build: Callable[[], nn.Module], weights: StoredWeights) -> None:
    """Raise ConfigDamage if a config makes a model that is larger than its files.

    Args:
        build: Makes the model on the meta device.
        weights: What its files hold; nothing is looked at if that is not known.
    """
    if not weights.values:
        return
    model = build()
    found = sum(value.numel() for value in (*model.parameters(), *model.buffers()))
    if found > 2 * weights.values + _SPARE:
        raise ConfigDamage(f"its config makes a model of {found:,} values, and its files hold {weights.values:,}")


def _problem(name: str, value: float, weights: StoredWeights) -> str | None:
    if isinstance(value, float) and not abs(value) <= _MOST:
        return "with which nothing can be computed"
    if _SMALL.fullmatch(name) and not 0 <= value <= 1:
        return "where a small number is added to what is divided by"
    if _SHARES.fullmatch(name) and not 0 <= value <= 1:
        return "where a share is meant"
    if name == "rope_theta" and not 0 < value <= _MOST:
        return "where the base of a power is meant"
    if weights.tensors and _LAYERS.fullmatch(name) and value > weights.tensors:
        return f"and its files hold {weights.tensors:,} tensors"
    return None


def _numbers(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """All numbers with their names; those in lists, which may be open intervals, are left out."""
    for key, value in values.items():
        name = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping):
            yield from _numbers(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def _header(path: Path) -> dict[str, Any]:
    with open_regular(path) as file:
        beginning = file.read(8)
        length = struct.unpack("<Q", beginning)[0] if len(beginning) == 8 else 0
        content = file.read(length) if length <= _LONGEST_HEADER else b""
    try:
        entries = json.loads(content)
        return {name: entry for name, entry in entries.items() if name != "__metadata__"}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ConfigDamage(f"{path.name} is no safetensors file: {error}") from None


def _values(entry: Any) -> int:
    try:
        begin, end = entry["data_offsets"]
        whole = not str(entry["dtype"]).startswith(("F", "BF"))
        # Whole numbers hold quantised weights, of two bits and more.
        return 4 * (end - begin) if whole else math.prod(entry["shape"])
    except (KeyError, TypeError, ValueError):
        return 0
