"""Reading the tensors of a checkpoint that holds objects too, without making or calling any of them."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from types import ModuleType
from typing import IO, Any

import torch
from torch._utils import _rebuild_parameter, _rebuild_tensor_v2

from pera_lightning.errors import CheckpointError


class _Anything(type):
    """Takes whatever pickle does to classes, functions and objects; calls make nothing."""

    def __call__(cls, *args: Any, **options: Any) -> Any:
        return cls

    def __setstate__(cls, state: object) -> None:
        pass

    def __setitem__(cls, key: object, value: object) -> None:
        pass

    def append(cls, value: object) -> None:
        pass

    extend = add = append


class Placeholder(metaclass=_Anything):
    """Stands for any object, class or function that is not made, and for all that they would make."""

    dtype = torch.uint8
    """Of a storage whose type is not known; torch asks for it."""

    def __new__(cls, *args: Any, **options: Any) -> Any:
        """Pickle wants a class here, and gets what stands for the object too."""
        return cls


class _Called:
    """A function that may be called; pickle can set attributes, which then are those of this object alone."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


_MADE: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}
"""What plain tensors are made with."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        made = _MADE.get((module, name))
        return Placeholder if made is None else _Called(made)


def load_without_objects(file: IO[bytes]) -> Any:
    """What `torch.save` wrote: containers, numbers, text and tensors, and a `Placeholder` for everything else.

    Nothing is imported and nothing called that the file names, but what makes plain tensors: the file need not be
    trusted, as little as with `torch.load(weights_only=True)`, which raises where this goes on.

    Args:
        file: The file, which can be searched.

    Raises:
        CheckpointError: It is no file of `torch.save`, or a program (TorchScript).
    """
    if not zipfile.is_zipfile(file):
        raise _no_tensors("no archive")
    with zipfile.ZipFile(file) as archive:
        if any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist()):
            raise _no_tensors("a TorchScript program")
    file.seek(0)
    module: Any = ModuleType("pickle_without_objects")
    module.Unpickler = _Unpickler
    return torch.load(file, map_location="cpu", weights_only=False, pickle_module=module)


def _no_tensors(what: str) -> CheckpointError:
    return CheckpointError(
        f"The file is {what}.",
        got=f"a file that is {what}",
        expected="what torch.save writes",
        fix="correct the path, or copy the file again",
    )
