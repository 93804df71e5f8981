"""A plain LoRA as a GGUF adapter: what llama.cpp loads with `--lora`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from torch import Tensor

from pera_lightning.errors import AdapterFileError
from pera_lightning.export.gguf.gguf_names import GgufBase
from pera_lightning.export.gguf.gguf_tensors import OURS, check_gguf_file, decoded, encoded, gguf_reader, tensor_type
from pera_lightning.export.lora.lora_factors import LoraFactors, StoredLora
from pera_lightning.export.lora.lora_losses import LLAMA_CPP, refuse_losses
from pera_lightning.export.lora.plain_lora import PlainLora
from pera_lightning.storage.atomic import replacing
from pera_lightning.storage.gguf_header import gguf_package
from pera_lightning.storage.remote import local_path

GGUF_FILE = "adapter.gguf"
_FORM = "adapter"
_A, _B = ".lora_a", ".lora_b"


def write_gguf_adapter(lora: PlainLora, path: str | Path, config: Any, *, overwrite: bool = False) -> None:
    """Write the file for `llama-cli --lora`, in the dtype of the factors.

    Args:
        lora: The LoRA.
        path: The file; its folder is made if needed.
        config: Of the transformers model that the adapter belongs to (`model.config`).
        overwrite: Whether the path may be a file that was not written here.

    Raises:
        FolderError: The file is somebody else's, or cannot be written.
        ExportError: The gguf package is missing, the model is of a kind that is not known here, or llama.cpp would not
            apply all of the adapter.
    """
    gguf, base, path = gguf_package(), GgufBase.of(config), local_path(path, "path")
    check_gguf_file(path, _FORM, overwrite=overwrite)
    refuse_losses(LLAMA_CPP, lora.manifest, linear_only=True)
    tensors = {name: (encoded(value), tensor_type(value.dtype)) for name, value in _tensors(lora, base).items()}
    with replacing(path) as temporary, closing(gguf.GGUFWriter(temporary, base.architecture)) as writer:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_string(OURS, _FORM)
        # llama.cpp divides it by the rank of each tensor.
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(lora.rank))
        for name, (data, kind) in tensors.items():
            writer.add_tensor(name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def read_gguf_adapter(path: str | Path, config: Any, layers: Iterable[str]) -> StoredLora:
    """What a GGUF adapter holds, float32, in the model's order of rows.

    Args:
        path: The file.
        config: Of the transformers model.
        layers: Names of the adapted layers.

    Returns:
        As they are in the file: without alpha / rank, which is 1 in files written here.

    Raises:
        AdapterFileError: The file does not hold exactly these layers.
        ExportError: The gguf package is missing, the file cannot be read, or the model is of a kind that is not known
            here.
    """
    base = GgufBase.of(config)
    names = base.tensor_names(layers)
    found = {tensor.name: tensor for tensor in gguf_reader(path).tensors}
    wanted = {name + end for name in names.values() for end in (_A, _B)}
    if wanted != set(found):
        raise AdapterFileError(
            "The GGUF adapter does not hold the layers of the model.",
            got=f"{path} with {len(wanted - set(found))} tensors missing and {len(set(found) - wanted)} others",
            expected=f"{len(wanted)} tensors for {len(names)} layers",
            fix="export it again",
        )
    factors = {
        layer: LoraFactors(decoded(found[name + _A]), base.to_model(name, decoded(found[name + _B])))
        for layer, name in names.items()
    }
    return StoredLora(factors, {})


def _tensors(lora: PlainLora, base: GgufBase) -> dict[str, Tensor]:
    found = {}
    for layer, name in base.tensor_names(lora.factors).items():
        down, up = lora.factors[layer]
        found[name + _A], found[name + _B] = down, base.to_file(name, up)
    return found
