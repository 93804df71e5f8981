"""The list of tensors of several processes' checkpoint: torch's own reader is the reference, but runs what it names."""

from __future__ import annotations

import builtins
import enum
import io
import os
import pickle
import random
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import metadata as torchs
from torch.distributed.checkpoint.filesystem import _StorageInfo

from pera_lightning.checkpoint.training.distributed_metadata import PlainReader, read_metadata
from pera_lightning.checkpoint.training.pickle_walk import refuse_endless_pickle
from pera_lightning.errors import CheckpointError
from tests.support.hostile_checkpoints import Touch, in_an_entry, in_the_list

STATE: dict[str, Any] = {
    "state_dict": {
        "a.pera_A": torch.arange(12.0).view(3, 4),
        "a.pera_B": torch.randn(5, 3, dtype=torch.bfloat16),
        "scalar": torch.tensor(2.5),
        "nothing": torch.zeros(0, 3),
        "whole numbers": torch.arange(7, dtype=torch.int64),
        "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "trained": torch.nn.Parameter(torch.randn(2, dtype=torch.float16)),
    },
    "optimizer_0": {"param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "foreach": None}], "state": {}},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "checkpoint"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(STATE, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "checkpoint"))


def change(folder: Path, by: Callable[[Any], object]) -> None:
    held = pickle.loads((folder / ".metadata").read_bytes())
    by(held)
    (folder / ".metadata").write_bytes(pickle.dumps(held))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_reads_what_torch_reads(folder: Path, protocol: int) -> None:
    expected = pickle.loads((folder / ".metadata").read_bytes())
    (folder / ".metadata").write_bytes(pickle.dumps(expected, protocol))
    found = read_metadata(folder)
    assert found.storage_data == expected.storage_data
    assert found.state_dict_metadata.keys() == expected.state_dict_metadata.keys()
    for key, entry in expected.state_dict_metadata.items():
        read: Any = found.state_dict_metadata[key]
        assert type(read) is type(entry)
        if isinstance(entry, torchs.TensorStorageMetadata):
            assert (read.size, read.chunks) == (entry.size, entry.chunks)
            assert read.properties.dtype == entry.properties.dtype


@pytest.mark.parametrize("protocol", range(4, 6))
def test_members_of_enumerations_as_some_versions_of_python_write_them(
    folder: Path, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_name(self: enum.Enum, _: int) -> tuple[Any, ...]:
        return getattr, (type(self), self.name)

    monkeypatch.setattr(torchs._MEM_FORMAT_ENCODING, "__reduce_ex__", by_name)
    held = pickle.loads((folder / ".metadata").read_bytes())
    (folder / ".metadata").write_bytes(pickle.dumps(held, protocol))
    assert b"getattr" in (folder / ".metadata").read_bytes()
    assert read_metadata(folder).storage_data == held.storage_data


def test_tensors_are_loaded_with_it(folder: Path) -> None:
    found = {"state_dict": {key: torch.zeros_like(value.detach()) for key, value in STATE["state_dict"].items()}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(found, storage_reader=PlainReader(folder), no_dist=True)
    for key, value in STATE["state_dict"].items():
        assert torch.equal(found["state_dict"][key], value), key


class Calls:
    """When it is unpickled, a function is called."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


CALLS: dict[str, Callable[[Path], Any]] = {
    "touch": Touch,
    "system": lambda mark: Calls(os.system, f"touch {mark}"),
    "eval": lambda mark: Calls(eval, f"open({str(mark)!r}, 'w')"),
    "import": lambda mark: Calls(builtins.__import__, "antigravity"),
    "attribute of a known class": lambda mark: Calls(getattr, torchs.Metadata, "__init__"),
    "attribute of the enumeration": lambda mark: Calls(getattr, torchs._MEM_FORMAT_ENCODING, "__init__"),
    "torch's loader": lambda mark: Calls(torch.load, str(mark)),
    "a tensor": lambda mark: torch.zeros(2),
    "a module": lambda mark: torch.nn.Linear(1, 1),
}


@pytest.mark.parametrize("place", ["state_dict_metadata", "storage_data", "planner_data", "version", "all"])
@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_called(folder: Path, tmp_path: Path, name: str, place: str) -> None:
    mark = tmp_path / "called"
    payload = CALLS[name](mark)
    if place == "all":
        (folder / ".metadata").write_bytes(pickle.dumps(payload))
    else:
        change(folder, lambda held: setattr(held, place, payload))
    with pytest.raises(CheckpointError, match="list of tensors is missing, damaged or none that torch writes"):
        read_metadata(folder)
    assert not mark.exists()


def test_torch_itself_would_call_it(folder: Path, tmp_path: Path) -> None:
    """So the files of these tests are what they are meant to be."""
    for number, hostile in enumerate((in_the_list, in_an_entry)):
        mark = tmp_path / str(number)
        hostile(folder, mark)
        state = {"optimizer_0": {"param_groups": [{"lr": 0.0, "betas": (0.0, 0.0), "foreach": None}], "state": {}}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load(state, checkpoint_id=folder, no_dist=True)
        assert mark.exists()


@pytest.mark.parametrize("pair", [("torch.distributed.checkpoint.metadata", "Metadata"), ("torch", "Size")])
def test_classes_stay_as_they_are(folder: Path, pair: tuple[str, str]) -> None:
    """The opcode BUILD sets attributes of whatever is on the stack."""
    before = dict(vars(torchs.Metadata))
    module, name = pair
    payload = b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\nN}X\x01\x00\x00\x00aK\x01s\x86b."
    (folder / ".metadata").write_bytes(payload)
    with pytest.raises(CheckpointError):
        read_metadata(folder)
    assert dict(vars(torchs.Metadata)) == before


def entry(held: Any, key: str = "state_dict.a.pera_A") -> Any:
    return held.state_dict_metadata[key]


def place_of(held: Any, **fields: Any) -> None:
    index = next(index for index in held.storage_data if index.fqn == "state_dict.a.pera_A")
    held.storage_data[index] = _StorageInfo(**{**vars(held.storage_data[index]), **fields})


WRONG: dict[str, tuple[Callable[[Any], object], str]] = {
    "a file above": (lambda held: place_of(held, relative_path="../x"), "outside"),
    "a file anywhere": (lambda held: place_of(held, relative_path="/etc/passwd"), "outside"),
    "a file of Windows": (lambda held: place_of(held, relative_path="..\\x"), "outside"),
    "a zero byte": (lambda held: place_of(held, relative_path="a\0b"), "outside"),
    "the folder": (lambda held: place_of(held, relative_path=".."), "outside"),
    "no name": (lambda held: place_of(held, relative_path=""), "outside"),
    "another file": (lambda held: place_of(held, relative_path="__7_0.distcp"), r"__7_0\.distcp"),
    "behind the end": (lambda held: place_of(held, offset=1 << 40), "cut off"),
    "before the beginning": (lambda held: place_of(held, offset=-1), "in place of a number"),
    "too short": (lambda held: place_of(held, length=3), "no room"),
    "compressed": (lambda held: place_of(held, transform_descriptors=["stream.zstd"]), "compressed"),
    "a large tensor": (lambda held: setattr(entry(held), "size", torch.Size([10**9, 10**6])), "no room"),
    "a huge tensor": (lambda held: setattr(entry(held), "size", torch.Size([10**18, 4])), "in place of a number"),
    "a negative size": (lambda held: setattr(entry(held), "size", (-3, 4)), "in place of a number"),
    "a size of flags": (lambda held: setattr(entry(held), "size", (True, 4)), "in place of a number"),
    "no parts": (lambda held: setattr(entry(held), "chunks", []), "no room"),
    "a part outside": (lambda held: setattr(entry(held).chunks[0], "offsets", torch.Size([1, 0])), "a part of"),
    "a part twice": (lambda held: entry(held).chunks.append(entry(held).chunks[0]), "no room"),
    "no place": (lambda held: held.storage_data.clear(), "no room"),
    "no dtype": (lambda held: setattr(entry(held).properties, "dtype", "float32"), "without a dtype"),
    "names of numbers": (lambda held: held.state_dict_metadata.update({7: entry(held)}), "a name"),
    "a list of entries": (lambda held: setattr(held, "state_dict_metadata", [1]), "no lists"),
    "other entries": (lambda held: held.state_dict_metadata.update(b={"size": (3,)}), "in place of Tensor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused(folder: Path, name: str) -> None:
    by, words = WRONG[name]
    change(folder, by)
    with pytest.raises(CheckpointError, match=words):
        read_metadata(folder)


def test_parts_that_share_their_place_are_refused(folder: Path) -> None:
    """A small file would become many large tensors."""

    def by(held: Any) -> None:
        index = next(index for index in held.storage_data if index.fqn == "state_dict.a.pera_A")
        for number in range(100):
            held.state_dict_metadata[f"state_dict.{number}"] = entry(held)
            again = torchs.MetadataIndex(f"state_dict.{number}", index.offset, index.index)
            held.storage_data[again] = held.storage_data[index]

    change(folder, by)
    with pytest.raises(CheckpointError, match="smaller than all parts together"):
        read_metadata(folder)


def test_damaged_lists_end_in_our_error_or_are_whole(folder: Path) -> None:
    random_ = random.Random(0)
    data = (folder / ".metadata").read_bytes()
    refused = 0
    for _ in range(400):
        changed = bytearray(data[: random_.choice([len(data), random_.randrange(len(data))])])
        for _ in range(random_.randrange(3)):
            changed[random_.randrange(len(changed))] ^= 1 << random_.randrange(8)
        (folder / ".metadata").write_bytes(changed)
        try:
            read_metadata(folder)
        except CheckpointError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo, os.mkdir, Path.exists])
def test_pipes_and_folders_in_its_place_are_refused(folder: Path, make: Callable[[Path], object]) -> None:
    (folder / ".metadata").unlink()
    make(folder / ".metadata")
    with pytest.raises(CheckpointError, match=r"list of tensors is missing, damaged"):
        read_metadata(folder)


ENDLESS = {
    # Written by hand: Python's own pickler would not come to an end.
    "deep": b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.",
    "doubled": b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"Ns.",
    "doubled by DUP": b"\x80\x02})" + b"2\x86" * 60 + b"Ns.",
    "in a set": b"\x80\x04\x8f()" + b"2\x86" * 60 + b"\x90.",
    "in a frozen set": b"\x80\x04()" + b"2\x86" * 60 + b"\x91.",
    "in a dict at once": b"\x80\x02()" + b"2\x86" * 60 + b"Nd.",
    "among others": b"\x80\x02}(NN)" + b"2\x86" * 60 + b"Nu.",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_tuples_are_refused_at_once(folder: Path, name: str) -> None:
    (folder / ".metadata").write_bytes(ENDLESS[name])
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="tuples without end"):
        read_metadata(folder)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_are_walked_to_their_end(protocol: int) -> None:
    value = {("a", (1, (2, 3))): [{1, 2}, frozenset([(1, 2)]), {"b": (0.5, None, True, b"x", bytearray(b"y"))}]}
    value["again", (1, 2)] = value[next(iter(value))]
    for held in (value, {index: (index, str(index)) for index in range(5000)}, STATE["optimizer_0"], Path("x")):
        file = io.BytesIO(pickle.dumps(held, protocol))
        refuse_endless_pickle(file)
        assert file.tell() == 0
