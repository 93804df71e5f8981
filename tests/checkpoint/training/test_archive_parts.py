"""torch and Python find the same parts in an archive, or it is refused."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pera_lightning.checkpoint.training.archive_parts import ArchiveDamage, archive_parts
from tests.support.repacked import parts_of, write_parts


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save({"a": torch.arange(4), "b": torch.ones(3)}, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_parts_are_where_torch_finds_them(saved: Path) -> None:
    reader = torch._C.PyTorchFileReader(str(saved))
    with saved.open("rb") as file:
        parts = archive_parts(file)
    assert sorted(parts) == sorted(reader.get_all_records())
    for name, (place, size) in parts.items():
        assert place == reader.get_record_offset(name)
        assert saved.read_bytes()[place : place + size] == reader.get_record(name)


def test_other_writers_are_read(saved: Path) -> None:
    write_parts(saved, parts_of(saved))
    assert torch.load(saved, weights_only=True)["b"].tolist() == [1, 1, 1]
    with saved.open("rb") as file:
        assert archive_parts(file).keys() == {name.partition("/")[2] for name in parts_of(saved)}


def renamed(old: str, new: str) -> Callable[[Path], None]:
    return lambda path: write_parts(path, {name.replace(old, new): part for name, part in parts_of(path).items()})


def twice(path: Path) -> None:
    parts = parts_of(path)
    write_parts(path, {**parts, "a/DATA.pkl": parts["a/data.pkl"]})


def comment(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"x"


def behind(path: Path) -> None:
    """Python looks no further than this, torch for the end before it."""
    path.write_bytes(path.read_bytes() + b"PK\x05\x06\0\0")


def before(path: Path) -> None:
    """Python moves all places by what is before, torch none."""
    write_parts(path, parts_of(path))
    path.write_bytes(b"PK\x03\x04" + path.read_bytes())


def second_list(path: Path) -> None:
    """A list where the end says that it is, and another one right before the end, where Python looks."""
    write_parts(path, parts_of(path))
    held = path.read_bytes()
    size, begin = struct.unpack_from("<LL", held, len(held) - 10)
    path.write_bytes(held[: begin + size] + held[begin:])


def second_large_end(path: Path) -> None:
    held = path.read_bytes()
    place = len(held) - 22 - 20
    assert held[place : place + 4] == b"PK\x06\x07"
    path.write_bytes(held[: place + 8] + struct.pack("<Q", 7) + held[place + 16 :])


def fewer(path: Path) -> None:
    """torch takes as many as are counted, Python all that are there."""
    write_parts(path, parts_of(path))
    held = bytearray(path.read_bytes())
    for place in (len(held) - 14, len(held) - 12):
        held[place] -= 1
    path.write_bytes(held)


def over_one_another(path: Path) -> None:
    write_parts(path, parts_of(path))
    held = bytearray(path.read_bytes())
    (begin,) = struct.unpack_from("<L", held, len(held) - 6)
    first = struct.unpack_from("<3H", held, begin + 28)
    second = begin + 46 + sum(first)
    held[second + 42 : second + 46] = held[begin + 42 : begin + 46]
    path.write_bytes(held)


def zero_in_a_name(path: Path) -> None:
    """To Python a name ends at a zero byte."""
    renamed("version", "versio_")(path)
    path.write_bytes(path.read_bytes().replace(b"versio_", b"versio\0"))


SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "behind": (behind, "behind its end"),
    "comment": (comment, "behind its end"),
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-5]) and None, "no end"),
    "nothing": (lambda path: path.write_bytes(b"PK\x03\x04") and None, "too few"),
    "before": (before, "between its list of parts and its end"),
    "second list": (second_list, "between its list of parts and its end"),
    "second large end": (second_large_end, "two ends"),
    "fewer": (fewer, "two lists"),
    "over one another": (over_one_another, "one is over the other"),
    "compressed": (lambda path: write_parts(path, parts_of(path), compressed=True), "compressed"),
    "other case": (twice, "two parts of one name"),
    "two folders": (renamed("a/version", "b/version"), "in one folder"),
    "no folder": (renamed("a/version", "version"), "in one folder"),
    "zero in a name": (zero_in_a_name, "no plain text"),
    "other letters": (renamed("version", "versión"), "no plain text"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_could_be_read_in_two_ways_is_refused(saved: Path, name: str) -> None:
    spoil, words = SPOILED[name]
    spoil(saved)
    with pytest.raises(ArchiveDamage, match=words):
        archive_parts(io.BytesIO(saved.read_bytes()))
