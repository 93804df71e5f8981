"""Reading JSON that others have written: bounded in size, depth and numbers, so that it costs little."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from pera_lightning.errors import shown
from pera_lightning.storage.regular_file import open_regular
from pera_lightning.storage.remote import Place

MOST_BYTES = 16 << 20
MOST_PARTS = 1_000_000
"""Of values; each takes fifty bytes or more of memory, and may take one of the file."""
MOST_DEPTH = 64
MOST_DIGITS = 64


class JsonError(ValueError):
    """A file or a value is no JSON that is read here, and why; readers make an error for the user of it."""


def read_json(path: Place) -> Any:
    """What a JSON file holds.

    Args:
        path: A plain file; folders, pipes and devices are refused before anything is opened.

    Raises:
        OSError: There is no such file, or it cannot be read.
        JsonError: It is none, names a key twice, or is beyond the bounds.
    """
    if not isinstance(path, Path):
        return parse_json(path.read_bytes(MOST_BYTES + 1))
    with open_regular(path) as file:
        return parse_json(file.read(MOST_BYTES + 1))


def parse_json(content: bytes, *, most_bytes: int = MOST_BYTES, most_parts: int = MOST_PARTS) -> Any:
    """What JSON in UTF-8 holds.

    Args:
        content: The bytes.
        most_bytes: How many there may be.
        most_parts: How many values they may be of.

    Raises:
        JsonError: It is none, names a key twice, or is beyond the bounds.
    """
    if len(content) > most_bytes:
        raise JsonError(f"more than {most_bytes:,} bytes")
    if sum(map(content.count, (b",", b"[", b"{"))) > most_parts:
        raise JsonError(f"more than {most_parts:,} values")
    try:
        text = content.decode("utf-8")
        values = json.loads(
            text, object_pairs_hook=_object, parse_int=_whole, parse_float=_float, parse_constant=_refuse_constant
        )
    except JsonError:
        raise
    except ValueError as error:
        raise JsonError(str(error)) from None
    except RecursionError:
        raise JsonError(f"nested more than {MOST_DEPTH} deep") from None
    check_plain(values, most_parts)
    return values


def check_plain(values: object, most_parts: int = MOST_PARTS) -> None:
    """Raise JsonError unless values are of plain types, as JSON has them: finite, valid text, not nested too deep."""
    level: list[object] = [values]
    count = 0
    for _ in range(MOST_DEPTH):
        count += len(level)
        if count > 2 * most_parts:
            raise JsonError(f"more than {2 * most_parts:,} values")
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return
    raise JsonError(f"nested more than {MOST_DEPTH} deep")


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise JsonError(f"{shown(name)} as a name")
            _check_text(name)
        return value.values()
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, float):
        _check_finite(value)
    elif isinstance(value, int):
        _check_size(value)
    elif value is not None:
        raise JsonError(f"{shown(value)}, which is of no plain type")
    return ()


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise JsonError(f"half a character in {text[:100]!a}") from None


def _check_finite(value: float) -> None:
    if not math.isfinite(value):
        raise JsonError(f"{value}, which is no finite number")


def _check_size(value: int) -> None:
    if abs(value) >= 10**MOST_DIGITS:
        raise JsonError(f"a whole number of more than {MOST_DIGITS} digits")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = set()
        for name, _ in pairs:
            if name in names:
                raise JsonError(f"{shown(name)} twice in one object")
            names.add(name)
    return values


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise JsonError(f"a whole number of {len(text):,} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonError(f"{text[:50]}, which is no finite number")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise JsonError(f"{text}, which is no finite number")
