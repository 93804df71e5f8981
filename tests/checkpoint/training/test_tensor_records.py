"""A pickle makes nothing that is larger than its file: neither tensors, nor bytes, nor sets without end."""

from __future__ import annotations

import _codecs
import argparse
import collections
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pera_lightning.checkpoint.training import tensor_records
from pera_lightning.checkpoint.training.archive_parts import ArchiveDamage, archive_parts
from pera_lightning.checkpoint.training.tensor_records import check_records
from tests.support.repacked import endless_key

T = torch.arange(24.0).reshape(4, 6)


def check(path: Path) -> None:
    with path.open("rb") as file:
        parts = archive_parts(file)
        place, size = parts["data.pkl"]
        file.seek(place)
        pickled = io.BytesIO(file.read(size))
    check_records(pickled, {name[5:]: size for name, (_, size) in parts.items() if name.startswith("data/")})


class Sub(torch.Tensor):
    pass


def with_attribute() -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(T)
    parameter.note = 3  # type: ignore[attr-defined]
    return parameter


RIGHT: dict[str, Any] = {
    "tensors": [T, T.t(), T[1:3, ::2], torch.zeros(0, 3), torch.tensor(1.0), torch.arange(5).expand(1, -1)],
    "dtypes": [T.to(dtype) for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.int8, torch.uint16)],
    "views": [T.to(torch.complex64).conj(), T.to(torch.complex64).conj().imag],
    "meta": torch.empty(3, device="meta"),
    "parameters": [torch.nn.Parameter(T), with_attribute()],
    "subclass": T.as_subclass(Sub),
    "optimizer": torch.optim.Adam([torch.nn.Parameter(T)]).state_dict(),
    "module": torch.nn.Linear(2, 2),
    "states": torch.nn.Linear(2, 2).state_dict(),
    "sets": [{1, 2}, collections.OrderedDict(a=1), collections.Counter("abc"), frozenset({1})],
    "bytes": [b"\0\xff", b"", bytearray(b"abc\xff"), bytearray()],
    "plain": [torch.Size([1, 2]), torch.device("cpu"), torch.bfloat16, 1j, None, 2**70],
    "objects": [np.arange(3), np.float64(3), argparse.Namespace(a=1), Path("a")],
    "storages": [torch.UntypedStorage(10)],
    "classes": [torch.Tensor, torch.nn.Parameter, bytearray],
    "shared": [T, T.view(-1), T[0]],
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_torch_writes_passes(tmp_path: Path, name: str) -> None:
    torch.save({"a": RIGHT[name]}, tmp_path / "a")
    check(tmp_path / "a")


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_other_layouts_pass(tmp_path: Path) -> None:
    torch.save(torch.quantize_per_tensor(T, 0.1, 3, torch.qint8), tmp_path / "a")
    check(tmp_path / "a")
    torch.save([T.to_sparse(), T.to_sparse_csr(), torch.nested.nested_tensor([T, T])], tmp_path / "a")
    check(tmp_path / "a")


LARGER = {
    "expanded": torch.ones(1, 1).expand(20_000, 20_000),
    "by a little": torch.ones(1).expand(3, 4),
    "windows": torch.arange(10).unfold(0, 5, 1),
    "parameter": torch.nn.Parameter(torch.ones(1).expand(3, 4)),
    "inside": {"a": [(torch.ones(1).expand(10**9),)]},
}


@pytest.mark.parametrize("name", LARGER)
def test_tensors_larger_than_their_memory_are_refused(tmp_path: Path, name: str) -> None:
    torch.save({"a": LARGER[name]}, tmp_path / "a")
    with pytest.raises(ArchiveDamage, match="elements, of shape"):
        check(tmp_path / "a")


class Call:
    """Pickled as a call."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def of_type(*args: Any) -> Call:
    return Call(torch._tensor._rebuild_from_type_v2, *args)


CALLS = {
    "bytearray": Call(bytearray, 10**12),
    "bytearray of an encoding": Call(bytearray, "a" * 100, "punycode"),
    "tensor": Call(torch.FloatTensor, 10**10),
    "storage": Call(torch.storage.UntypedStorage, 10**10),
    "plain tensor": Call(torch.Tensor, 10**10),
    "by another function": of_type(bytearray, torch.Tensor, (10**12,), {}),
    "state of a tensor": Call(
        torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (1,), (1,), False, state=(1,)
    ),
    "hex": Call(_codecs.encode, "a", "hex"),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_torch_allows_and_never_writes_are_refused(name: str) -> None:
    with pytest.raises(ArchiveDamage):
        check_records(io.BytesIO(pickle.dumps(CALLS[name], 2)), {})


def test_sets_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_records, "_THINGS", 10_000)
    keys = endless_key()[4:-4]
    for name in (b"c__builtin__\nset\n", b"ccollections\nOrderedDict\n", b"ccollections\nCounter\n"):
        with pytest.raises(ArchiveDamage, match="without end"):
            check_records(io.BytesIO(b"\x80\x02" + name + b"(](" + keys + b"etR."), {})


def test_functions_are_not_changed() -> None:
    with pytest.raises(ArchiveDamage, match="changed by a state"):
        check_records(io.BytesIO(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b."), {})


@pytest.mark.parametrize("count", [5, -1, True, "1"])
def test_storages_are_as_large_as_the_file_holds(count: Any) -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, held: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if held == "here" else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump("here")
    stream.seek(0)
    with pytest.raises(ArchiveDamage):
        check_records(stream, {"0": 16})
