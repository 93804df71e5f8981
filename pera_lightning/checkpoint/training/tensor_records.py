"""What a pickle of `torch.save` would make, found out without making any of it.

`torch.load(weights_only=True)` calls what makes tensors, sets and bytes, with whatever the file gives to it: tensors of
a few bytes that are as large as their sizes say, `bytearray(10**12)`, sets of tuples that take years to hash.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import IO, Any

import torch
from torch._utils import IMPORT_MAPPING, NAME_MAPPING
from typing_extensions import override

from pera_lightning.checkpoint.training.archive_parts import ArchiveDamage
from pera_lightning.checkpoint.training.without_objects import Placeholder

_THINGS = 10_000_000
"""In all that sets and their like are made of, counted as often as they are in it."""
_LATIN = ("latin1", "latin-1")
_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_WIDTHS = {name: dtype.itemsize for name, dtype in torch.storage._storage_type_to_dtype_map().items()}
"""Bytes of an element of a storage, by the name of its class."""
_WITH_STORAGE = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor")
_WITH_PARTS = (
    *("_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_sparse_tensor", "_rebuild_nested_tensor"),
    *("_rebuild_meta_tensor_no_storage", "_rebuild_wrapper_subclass", "_rebuild_device_tensor_from_cpu_tensor"),
)
"""These make tensors of tensors that were made before, or without memory."""
_OF_THINGS = (
    *("builtins.set", "builtins.complex", "collections.Counter", "collections.OrderedDict", "torch.Size"),
    *("torch.device", "torch.serialization._get_layout"),
)
_NEVER_CALLED = {
    "torch.Tensor",
    *(f"{kind.__module__}.{kind.__name__}" for kind in (*torch._tensor_classes, *torch._storage_classes)),
}
"""torch would let them be called, with sizes; nothing that it writes does."""


class _Inert:
    """Stands for something of torch; a pickle may do nothing to it but what torch's own do."""

    def __setstate__(self, state: object) -> None:
        raise ArchiveDamage("something of torch that is changed by a state")


class _Tensor(_Inert):
    pass


class _Storage(_Inert):
    def __init__(self, size: int, width: int) -> None:
        self.size, self.width = size, width


class _Call(_Inert):
    """A function of torch, or a class, by what a call of it has to be looked at for."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self._function = name, function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def check_records(file: IO[bytes], sizes: Mapping[str, int]) -> None:
    """Raise ArchiveDamage if a pickle would make something larger than the file that it is in.

    Args:
        file: The pickle, which `refuse_endless_pickle` has let pass.
        sizes: Key of a storage, in lower case as torch compares them -> its bytes in the file.

    Raises:
        ArchiveDamage: As said, or the pickle calls what no file of torch does.
        Exception: Of any kind, if it is damaged.
    """
    _Unpickler(file, sizes).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], sizes: Mapping[str, int]) -> None:
        super().__init__(file)
        self._sizes = sizes
        self._things = 0
        calls: dict[str, Callable[..., Any]] = {
            **{f"torch._utils.{name}": partial(self._tensor, name) for name in _WITH_STORAGE},
            **{f"torch._utils.{name}": _tensor_of_parts for name in _WITH_PARTS},
            **dict.fromkeys(_OF_THINGS, self._things_made),
            **{name: partial(_never, name) for name in _NEVER_CALLED},
            "torch._tensor._rebuild_from_type_v2": _of_type,
            "_codecs.encode": _bytes_made,
            "builtins.bytearray": _bytes_made,
        }
        self._known = _DTYPES | {name: _Call(name, function) for name, function in calls.items()}

    @override
    def find_class(self, module: str, name: str) -> Any:
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        return self._known.get(f"{module}.{name}", Placeholder)

    @override
    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, count = pid
        width = _width(storage)
        present = self._sizes.get(str(key).lower(), -1)
        _expect(kind in ("storage", b"storage") and type(count) is int, "a storage without a size")
        _expect(0 <= count * width <= present, f"a storage of {count * width:,} bytes in {max(present, 0):,}")
        return _Storage(count * width, width)

    def _tensor(self, function: str, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Tensor:
        width = rest[2].itemsize if function == "_rebuild_tensor_v3" else storage.width
        _check_size(storage.size // width, offset, size, stride)
        return _Tensor()

    def _things_made(self, *args: Any) -> Any:
        self._things += _count(args, _THINGS - self._things)
        # As sizes, they are looked at again.
        return args[0] if len(args) == 1 and type(args[0]) is tuple else Placeholder


def _width(storage: Any) -> int:
    _expect(isinstance(storage, _Call), "a storage of no type")
    name = storage.name.rpartition(".")[2]
    return 1 if name == "UntypedStorage" else _WIDTHS[name]


def _check_size(present: int, offset: Any, size: Sequence[int], stride: Sequence[int]) -> None:
    """That a tensor has no more elements than its memory, and none beside it."""
    whole = all(type(value) is int and value >= 0 for value in (offset, *size, *stride)) and len(size) == len(stride)
    _expect(whole, "a tensor with sizes that are none")
    count = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if count else 0
    if count > present or (count and last >= present):
        raise ArchiveDamage(f"a tensor of {count:,} elements, of shape {tuple(size)}, in the memory of {present:,}")


def _tensor_of_parts(*_: Any) -> _Tensor:
    return _Tensor()


def _of_type(function: Callable[..., Any], _: Any, args: Sequence[Any], *state: Any) -> Any:
    return function(*args)


def _bytes_made(*args: Any) -> Any:
    # Of bytes, which are a placeholder here, or of a text that holds them.
    right = args in ((), (Placeholder,)) or (len(args) == 2 and type(args[0]) is str and args[1] in _LATIN)
    _expect(right, "bytes that are made in another way than torch's")
    return Placeholder


def _never(name: str, *_: Any) -> Any:
    raise ArchiveDamage(f"a call of {name}")


def _count(held: Any, most: int) -> int:
    """How many things are in nested containers, counted as often as they are in them."""
    count, waiting = 0, [held]
    while waiting:
        one = waiting.pop()
        inside = (*one, *one.values()) if isinstance(one, dict) else one
        if isinstance(inside, (tuple, list, set)):
            count += 1 + len(inside)
            _expect(count <= most, "containers without end in one another")
            waiting += inside
    return count


def _expect(right: object, got: str) -> None:
    if not right:
        raise ArchiveDamage(got)
