"""A GGUF model with a LoRA merged into it: a copy of the base's file in which only the adapted weights differ."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pera_lightning.checkpoint import Manifest
from pera_lightning.checkpoint.adapter_mismatch import file_difference
from pera_lightning.errors import ExportError
from pera_lightning.export.gguf.gguf_names import GgufBase
from pera_lightning.export.gguf.gguf_tensors import (
    DTYPES,
    OURS,
    check_gguf_file,
    decoded,
    encoded,
    gguf_reader,
    tensor_type,
)
from pera_lightning.export.lora.lora_factors import LoraFactors
from pera_lightning.export.lora.lora_losses import LLAMA_CPP, refuse_losses
from pera_lightning.export.lora.plain_lora import PlainLora
from pera_lightning.export.merged.merge_report import MergeReport, Norms, rounding_norms
from pera_lightning.storage.atomic import replacing
from pera_lightning.storage.gguf_header import gguf_package
from pera_lightning.storage.out_folder import check_room
from pera_lightning.storage.remote import local_path

MERGED_GGUF_FILE = "model.gguf"
_FORM = "merged model"


def write_merged_gguf(
    lora: PlainLora,
    base_file: str | Path,
    path: str | Path,
    dtype: torch.dtype = torch.float16,
    *,
    overwrite: bool = False,
) -> MergeReport:
    """Copy a base model's GGUF file and merge a LoRA into it, one weight after the other.

    Metadata, tokenizer and the weights without an adapter are copied as they are, quantised ones too. Adapted weights
    are dequantised, changed and written in `dtype`; llama.cpp's `llama-quantize` makes them small again.

    Args:
        lora: The LoRA.
        base_file: The base model, in one file.
        path: The file to write; its folder is made if needed.
        dtype: Of the merged weights.
        overwrite: Whether the path may be a file that was not written here; never the base model's.

    Returns:
        What the dtype rounds.

    Raises:
        ExportError: The gguf package is missing, the base cannot be read, is of a kind that is not known here or not
            the adapter's (by its shapes, and by some weights that the adapter keeps), a merged weight does not fit the
            dtype, or a LoRA cannot hold all of the adapter.
        FolderError: The file is somebody else's, there is no room, or it cannot be written.
    """
    gguf, path = gguf_package(), local_path(path, "path")
    kind = tensor_type(dtype)
    refuse_losses(LLAMA_CPP, lora.manifest, linear_only=True)
    reader = gguf_reader(base_file)
    base = GgufBase.of_file(reader)
    names = base.tensor_names(lora.factors)
    factors = {names[layer]: factors for layer, factors in lora.factors.items()}
    _check_base(reader, base_file, base, factors)
    _check_sample(reader, base_file, base, names, lora.manifest)
    _check_place(path, base_file)
    check_gguf_file(path, _FORM, overwrite=overwrite)
    sizes = (t.n_elements * dtype.itemsize if t.name in factors else int(t.n_bytes) for t in reader.tensors)
    with replacing(path) as temporary:
        check_room(temporary, sum(map(int, sizes)))
        with closing(gguf.GGUFWriter(temporary, base.architecture)) as writer:
            _copy_metadata(reader, writer)
            writer.add_string(OURS, _FORM)
            for tensor in reader.tensors:
                _announce(writer, tensor, kind if tensor.name in factors else None, dtype.itemsize)
            errors = _write_tensors(reader, writer, base, factors, dtype)
    return MergeReport.of({layer: errors[name] for layer, name in names.items()}, "dequantized")


def _write_tensors(
    reader: Any, writer: Any, base: GgufBase, factors: dict[str, LoraFactors], dtype: torch.dtype
) -> dict[str, Norms]:
    """Write the head of the file and all weights; returns what the merged ones lost by rounding."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    errors = {}
    for tensor in reader.tensors:
        if tensor.name in factors:
            exact = _exact(tensor, factors[tensor.name], base)
            merged = _narrow(tensor.name, exact, dtype)
            errors[tensor.name] = rounding_norms(merged.double(), exact)
            writer.write_tensor_data(encoded(merged))
        else:
            writer.write_tensor_data(tensor.data)
    return errors


def _exact(tensor: Any, factors: LoraFactors, base: GgufBase) -> Tensor:
    change = base.to_file(tensor.name, factors.up.double() @ factors.down.double())
    return decoded(tensor).double() + change.cpu()


def _narrow(name: str, exact: Tensor, dtype: torch.dtype) -> Tensor:
    merged = exact.to(dtype)
    if not torch.isfinite(merged).all():
        raise ExportError(
            "A merged weight does not fit the dtype.",
            got=f"values of {name!r} beyond {dtype}",
            expected="a dtype that holds them",
            fix="use torch.bfloat16 or torch.float32",
        )
    return merged


def _copy_metadata(reader: Any, writer: Any) -> None:
    gguf = gguf_package()
    # The writer has its own for the first; the second would no longer be true, and llama.cpp counts types without it.
    left_out = {gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.FILE_TYPE, OURS}
    for field in reader.fields.values():
        if field.name in left_out or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = field.contents()
        # The package writes no empty arrays.
        if inner is None or value:
            writer.add_key_value(field.name, value, kind, sub_type=inner)
    alignment = reader.get_field(gguf.Keys.General.ALIGNMENT)
    if alignment is not None:
        writer.data_alignment = alignment.contents()


def _announce(writer: Any, tensor: Any, kind: Any | None, itemsize: int) -> None:
    """Tell a writer of a tensor to come; of a merged one if it has a type of its own."""
    data = tensor.data
    if kind is None:
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    else:
        shape = [int(size) for size in reversed(tensor.shape)]
        # The type is given, so that of the array does not count, unless it is uint8: then the shape would be in bytes.
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), tensor.n_elements * itemsize, kind)


def _check_place(path: Path, base_file: str | Path) -> None:
    if path.exists() and path.samefile(base_file):
        raise ExportError(
            "The merged model would take the place of its base.",
            got=str(path),
            expected="a file of its own",
            fix="name another",
        )


def _check_base(reader: Any, base_file: str | Path, base: GgufBase, factors: dict[str, LoraFactors]) -> None:
    if reader.endianess != gguf_package().GGUFEndian.LITTLE:
        raise ExportError(
            "The GGUF file is written for big-endian machines.",
            got=str(base_file),
            expected="a little-endian file",
            fix="convert it with gguf-convert-endian of the gguf package",
        )
    shapes = {tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors}
    for name, (down, up) in factors.items():
        wanted = (up.shape[0], down.shape[1])
        if shapes.get(name) != wanted:
            raise ExportError(
                "The GGUF file is not the adapter's base model.",
                got=f"{base_file} with {name!r} of shape {shapes.get(name)}",
                expected=f"shape {wanted}",
                fix="name the base model's file; of one in several files, merge them with llama.cpp's llama-gguf-split",
            )
        if not base.fits(name, wanted[0]):
            raise ExportError(
                "The GGUF file contradicts itself.",
                got=f"{base_file}: {base.heads} and {base.kv_heads} heads, and {name!r} with {wanted[0]} rows",
                expected="as many rows in each head",
                fix="get the file again",
            )


def _check_sample(
    reader: Any, base_file: str | Path, base: GgufBase, names: dict[str, str], manifest: Manifest
) -> None:
    stored = {tensor.name: tensor for tensor in reader.tensors}
    adapted = {layer: stored[name] for layer, name in names.items()}

    def read(tensor: Any) -> Tensor:
        return base.to_model(tensor.name, decoded(tensor))

    floating = all(tensor.tensor_type.name in DTYPES.values() for tensor in adapted.values())
    weights = {layer: partial(read, tensor) for layer, tensor in adapted.items()}
    difference = file_difference(manifest, weights, floating=floating)
    if difference:
        raise ExportError(
            "The GGUF file is not the adapter's base model.",
            got=f"{base_file}: {difference}",
            expected=f"the weights of {manifest.base_model or 'the model it was trained on'}",
            fix="name the file that was made of that model",
        )
