"""The header of a GGUF file, read with bounds before any library believes its counts.

The gguf package and transformers make as many objects as a file says it has entries, and layers as its metadata says
there are blocks. Here every count is held against the bytes that are there, and every size against the tensors.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from math import isfinite, prod
from pathlib import Path
from typing import Any

from pera_lightning.requirements import require

_MOST_ELEMENTS = 2_000_000
"""Of all arrays together: the largest vocabularies have under a million, merges and scores included."""
_LONGEST_TEXT = 1 << 24
_LONGEST_NAME = 1_000
_LONGEST_TOKENS = 1_000_000_000
"""Sum of the squares of the lengths of all texts in arrays: tokens are taken apart at every place."""
_MOST_DIMENSIONS = 4
_MOST_ALIGNMENT = 1 << 16
_BLOCK = re.compile(r"blk\.(\d{1,6})\.")
# What layers are made by, and hence what a layer or a number of them takes.
_SIZES = re.compile(
    r"(embedding_length.*|feed_forward_length|vocab_size|expert_.*(count|length)|leading_dense_block_count"
    r"|attention\.(head_count(_kv)?|(key|value)_length.*|.*_lora_rank|indexer\..*)|rope\.dimension_count.*"
    r"|ssm\..*|shortconv\..*|.*block_count)"
)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_INTEGERS = frozenset({0, 1, 2, 3, 4, 5, 10, 11})
_STRING, _ARRAY, _UINT32 = 8, 9, 4


def gguf_package() -> Any:
    """The gguf package.

    Raises:
        ConfigError: It is not installed, or too old.
    """
    require("Reading and writing GGUF files", "gguf", extra="gguf")
    import gguf

    return gguf


class GgufDamage(ValueError):
    """What is wrong with a GGUF file."""


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself.

    Attributes:
        fields: Key -> number, text, or for an array the numbers in it (of texts: how many).
        shapes: Name of a tensor -> its dimensions, the fastest first.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def elements(self) -> int:
        """Number of all values in the tensors."""
        return sum(prod(shape) for shape in self.shapes.values())


def read_header(path: str | Path) -> GgufHeader:
    """Read and check the header of a GGUF file; in time and memory of what is in the file.

    Raises:
        GgufDamage: It is damaged, cut off, or says of itself what cannot be.
        OSError: The file cannot be read.
    """
    path = Path(path)
    status = path.stat()
    if not path.is_file():
        raise GgufDamage("it is no regular file")
    return _read(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _read(path: str, size: int, _changed: int) -> GgufHeader:
    if size < 24:
        raise GgufDamage(f"it has {size} bytes, fewer than a header")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _Reader(content).read()


class _Reader:
    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._place = 0
        self._order = "<"
        self._elements = self._squares = 0
        self._header = GgufHeader()
        self._types = {int(kind): sizes for kind, sizes in gguf_package().GGML_QUANT_SIZES.items()}

    def read(self) -> GgufHeader:
        if self._content[:4] != b"GGUF":
            raise GgufDamage("it does not begin with GGUF")
        self._place = 4
        [version] = struct.unpack_from("<I", self._content, 4)
        self._order = ">" if version & 0xFFFF == 0 else "<"
        version = self._number("I")
        if version not in (2, 3):
            raise GgufDamage(f"it is of version {version}, not 2 or 3")
        tensors, fields = self._number("Q"), self._number("Q")
        # The shortest field: a length, a type and a byte; of a tensor: length, dimensions, type and offset.
        self._check_count("fields", fields, least=13)
        for _ in range(fields):
            self._read_field()
        self._check_count("tensors", tensors, least=32)
        ranges = [self._read_tensor() for _ in range(tensors)]
        self._check_data(ranges)
        _check_sizes(self._header)
        return self._header

    def _number(self, kind: str) -> Any:
        width = struct.calcsize("=" + kind)
        self._check_room(width)
        [value] = struct.unpack_from(self._order + kind, self._content, self._place)
        self._place += width
        return value

    def _check_room(self, count: int) -> None:
        if count > len(self._content) - self._place:
            raise GgufDamage(f"{count:,} bytes are to follow byte {self._place:,}, and it has {len(self._content):,}")

    def _check_count(self, what: str, count: int, least: int) -> None:
        if count * least > len(self._content) - self._place:
            raise GgufDamage(f"it says it has {count:,} {what}, more than fit into {len(self._content):,} bytes")

    def _text(self, longest: int, what: str) -> str:
        length = self._number("Q")
        self._check_room(length)
        if length > longest:
            raise GgufDamage(f"{what} has {length:,} bytes, more than {longest:,}")
        content = self._content[self._place : self._place + length]
        self._place += length
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise GgufDamage(f"{what} is no UTF-8 text: {error}") from None

    def _read_field(self) -> None:
        key = self._text(_LONGEST_NAME, "a key")
        if not key or key in self._header.fields:
            raise GgufDamage(f"its field {key!r} has no name, or comes twice")
        kind = self._number("I")
        if key == "general.alignment" and kind != _UINT32:
            raise GgufDamage("its alignment is no whole number of 32 bits")
        self._header.fields[key] = self._array(key) if kind == _ARRAY else self._value(kind, key)

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._text(_LONGEST_TEXT, f"{key!r}")
        if kind not in _SCALARS:
            raise GgufDamage(f"its field {key!r} is of the unknown type {kind}")
        return self._number(_SCALARS[kind])

    def _array(self, key: str) -> Any:
        kind, count = self._number("I"), self._number("Q")
        if kind not in (*_SCALARS, _STRING):
            raise GgufDamage(f"its array {key!r} is of the unknown type {kind}")
        self._elements += count
        if self._elements > _MOST_ELEMENTS:
            raise GgufDamage(f"its arrays up to {key!r} have {self._elements:,} entries, more than any vocabulary")
        if kind != _STRING:
            numbers = f"{count}{_SCALARS[kind]}"
            width = struct.calcsize("=" + numbers)
            self._check_room(width)
            found = struct.unpack_from(self._order + numbers, self._content, self._place)
            self._place += width
            return list(found) if kind in _INTEGERS else []
        self._check_count(f"texts in {key!r}", count, least=8)
        for _ in range(count):
            self._squares += len(self._text(_LONGEST_TEXT, f"a text in {key!r}")) ** 2
        if self._squares > _LONGEST_TOKENS:
            raise GgufDamage(f"the texts up to {key!r} are longer than those of any vocabulary")
        return count

    def _read_tensor(self) -> tuple[str, int, int]:
        """Its name, where it begins and how many bytes it has."""
        name = self._text(_LONGEST_NAME, "the name of a tensor")
        if not name or name in self._header.shapes:
            raise GgufDamage(f"its tensor {name!r} has no name, or comes twice")
        count = self._number("I")
        if not 1 <= count <= _MOST_DIMENSIONS:
            raise GgufDamage(f"its tensor {name!r} has {count:,} dimensions")
        shape = tuple(self._number("Q") for _ in range(count))
        if min(shape) < 1:
            raise GgufDamage(f"its tensor {name!r} is empty, of shape {shape}")
        kind, offset = self._number("I"), self._number("Q")
        if kind not in self._types:
            raise GgufDamage(f"its tensor {name!r} is of the unknown type {kind}")
        block, width = self._types[kind]
        if shape[0] % block:
            raise GgufDamage(f"the rows of its tensor {name!r} are no whole blocks: {shape[0]:,} values of {block}")
        self._header.shapes[name] = shape
        return name, offset, prod(shape) // block * width

    def _check_data(self, ranges: list[tuple[str, int, int]]) -> None:
        alignment = self._header.fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= _MOST_ALIGNMENT or alignment & (alignment - 1):
            raise GgufDamage(f"its alignment is {alignment!r}")
        start = -(-self._place // alignment) * alignment
        end = 0
        for name, offset, size in sorted(ranges, key=lambda entry: entry[1]):
            if offset < end or offset % alignment:
                raise GgufDamage(f"its tensor {name!r} begins at {offset:,}, within another one or out of line")
            end = offset + size
            if start + end > len(self._content):
                raise GgufDamage(f"its tensor {name!r} ends at byte {start + end:,}, and it has {len(self._content):,}")


def _check_sizes(header: GgufHeader) -> None:
    """Hold what layers are made by against the tensors."""
    architecture = header.fields.get("general.architecture")
    if not isinstance(architecture, str):
        raise GgufDamage(f"its architecture is {architecture!r}")
    if header.fields.get("split.count", 1) not in (0, 1):
        raise GgufDamage("it is one of several files; merge them with llama.cpp's llama-gguf-split")
    blocks = {int(found[1]) for name in header.shapes if (found := _BLOCK.match(name))}
    largest = max((size for shape in header.shapes.values() for size in shape), default=0)
    for key, value in header.fields.items():
        name = key.removeprefix(f"{architecture}.")
        if name != key and isinstance(value, float) and not isfinite(value):
            raise GgufDamage(f"{key!r} is {value}, which is not finite")
        if name == key or not _SIZES.fullmatch(name):
            continue
        most = max(blocks, default=-1) + 1 if name == "block_count" else largest
        numbers = value if isinstance(value, list) else [value]
        if not all(type(number) is int and 0 <= number <= most for number in numbers):
            raise GgufDamage(f"{key!r} is {_shown(value)}, and the tensors have at most {most:,}")
        if name in ("block_count", "attention.head_count", "embedding_length") and not any(numbers):
            raise GgufDamage(f"{key!r} is {_shown(value)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
