"""The parts of a file of `torch.save`, found in such a way that torch cannot find others.

It is a zip archive, which two readers may take for different ones: by what follows its end, by two lists of parts, by
names that differ in case. Here the bytes have to be in the one order that torch writes, which leaves no choice.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterable
from typing import IO, NamedTuple

START = b"PK\x03\x04"
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_LARGE_END = struct.Struct("<4sQ2H2L4Q")
_LOCAL = struct.Struct("<4s5H3L2H")


class ArchiveDamage(ValueError):
    """The archive is none that torch writes; the message says what is wrong with it."""


class _End(NamedTuple):
    """What the end of an archive says of the list of its parts."""

    number: int
    size: int
    begin: int
    place: int
    """Where the end itself begins."""


def archive_parts(file: IO[bytes]) -> dict[str, tuple[int, int]]:
    """The parts of an archive, by their names below its one folder: where their bytes begin, and how many there are.

    Args:
        file: The archive, which can be searched.

    Raises:
        ArchiveDamage: It is none that torch writes.
        Exception: Of any kind, if it is damaged.
    """
    end = _end(file)
    # There is nothing between the list and the end, and nothing before the first part, so that all count alike.
    _expect(end.begin + end.size == end.place, "something between its list of parts and its end")
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        _expect(archive.start_dir == end.begin and len(parts) == end.number, "two lists of parts")
    root = parts[0].filename.partition("/")[0] + "/" if parts else ""
    for part in parts:
        _check_part(part, root)
    names = [part.filename.removeprefix(root) for part in parts]
    _expect(len({name.lower() for name in names}) == len(names), "two parts of one name")
    places = _places(file, parts, end.begin)
    return {name: (place, part.file_size) for name, place, part in zip(names, places, parts, strict=True)}


def _end(file: IO[bytes]) -> _End:
    size = file.seek(0, os.SEEK_END)
    place = size - _END.size
    _expect(place >= 0, "too few bytes")
    sign, disk, first_disk, here, count, length, begin, comment = _END.unpack(_bytes(file, place, _END.size))
    _expect(sign == b"PK\x05\x06" and not comment, "something behind its end, or no end")
    before = place - _LOCATOR.size
    if before >= _LARGE_END.size and _bytes(file, before, 4) == b"PK\x06\x07":
        place = before - _LARGE_END.size
        sign, first_disk, found, _ = _LOCATOR.unpack(_bytes(file, before, _LOCATOR.size))
        _expect(found == place, "two ends")
        held = _LARGE_END.unpack(_bytes(file, place, _LARGE_END.size))
        _expect(held[:2] == (b"PK\x06\x06", _LARGE_END.size - 12), "two ends")
        disk, here, count, length, begin = held[4], *held[6:]
    _expect(not disk and not first_disk and here == count, "several volumes")
    return _End(count, length, begin, place)


def _check_part(part: zipfile.ZipInfo, root: str) -> None:
    name = part.orig_filename
    _expect(name.isascii() and name.isprintable() and name == part.filename, "names that are no plain text")
    _expect(len(root) > 1 and name.startswith(root) and name != root, "parts that are not in one folder")
    _expect(part.compress_type == zipfile.ZIP_STORED and part.file_size == part.compress_size, "compressed parts")
    _expect(not part.flag_bits & 0x2041, "encrypted parts")


def _places(file: IO[bytes], parts: Iterable[zipfile.ZipInfo], end: int) -> list[int]:
    """Where the bytes of the parts begin; each part has its own place."""
    places, taken = [], []
    for part in parts:
        held = _LOCAL.unpack(_bytes(file, part.header_offset, _LOCAL.size))
        _expect(held[0] == START, "parts that are not where its list says")
        places.append(part.header_offset + _LOCAL.size + held[-2] + held[-1])
        taken.append((part.header_offset, places[-1] + part.file_size))
    edges = [edge for span in sorted(taken) for edge in span]
    _expect(edges == sorted(edges) and (not edges or edges[-1] <= end), "parts of which one is over the other")
    return places


def _bytes(file: IO[bytes], place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)


def _expect(right: object, got: str) -> None:
    if not right:
        raise ArchiveDamage(got)
