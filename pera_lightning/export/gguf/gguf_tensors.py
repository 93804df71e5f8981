"""Between torch tensors and those of GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pera_lightning.errors import ExportError, one_line
from pera_lightning.storage.atomic import check_file
from pera_lightning.storage.gguf_header import gguf_package, read_header
from pera_lightning.storage.remote import Place

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""Those of LoRAs and merged weights, as GGUF calls them."""

OURS = "pera_lightning.form"
"""Metadata of files that are written here: what they hold."""


def gguf_reader(path: str | Path) -> Any:
    """A `gguf.GGUFReader` of a file.

    Raises:
        ConfigError: The gguf package is missing or too old.
        ExportError: The file cannot be read.
    """
    gguf = gguf_package()
    try:
        read_header(path)
        return gguf.GGUFReader(path)
    except Exception as error:  # the package's own checks raise this and that
        raise ExportError(
            "The GGUF file cannot be read.",
            got=f"{path}: {one_line(error, kind=False)}",
            expected="a complete GGUF file",
            fix="correct the path, or get the file again",
        ) from error


def check_gguf_file(path: Path, form: str, *, overwrite: bool) -> None:
    """Raise FolderError unless a GGUF file is new, or was written here and holds the same.

    Args:
        path: The file that is to be written.
        form: What it is to hold, as under `OURS`.
        overwrite: Whether it may be another one.
    """

    def is_ours(path: Place) -> bool:
        try:
            field = gguf_reader(str(path)).get_field(OURS)
        except ExportError:
            return False
        return field is not None and field.contents() == form

    check_file(path, is_ours, overwrite=overwrite)


def tensor_type(dtype: torch.dtype) -> Any:
    """The `gguf.GGMLQuantizationType` of a dtype.

    Raises:
        ExportError: It is none of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise ExportError(
            "A GGUF file has no such dtype for weights.",
            got=str(dtype),
            expected=", ".join(map(str, DTYPES)),
            fix="use torch.float32, or torch.float16 for half the size",
        )
    return gguf_package().GGMLQuantizationType[DTYPES[dtype]]


def encoded(value: Tensor) -> Any:
    """A matrix as the numpy array that the gguf package writes."""
    value = value.detach().cpu().contiguous()
    # numpy has no bfloat16: bytes then, as for quantised tensors.
    return (value.view(torch.uint8) if value.dtype == torch.bfloat16 else value).numpy()


def decoded(tensor: Any) -> Tensor:
    """A tensor of a `gguf.GGUFReader`, dequantised to float32.

    Raises:
        ExportError: Its type cannot be dequantised.
    """
    try:
        values = gguf_package().dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ExportError(
            "The GGUF file holds a tensor of a type that the gguf package does not unpack.",
            got=f"{tensor.name!r}: {one_line(error, kind=False)}",
            expected="floating values, or blocks that llama.cpp writes",
            fix="take the file as llama.cpp wrote it; if it is of a new type, upgrade gguf",
        ) from error
    # A copy: what the reader gives is a view of the file.
    return torch.tensor(values, dtype=torch.float32)
