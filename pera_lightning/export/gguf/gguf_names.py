"""What a GGUF file calls the layers of a model, and how it orders their rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pera_lightning.errors import ExportError
from pera_lightning.storage.gguf_header import gguf_package

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "granite": "granite",
    "smollm3": "smollm3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
}
"""`model_type` of a transformers config -> `general.architecture` of its GGUF files.

Only models whose every linear layer is one tensor of the file, by itself or with rows in another order.
"""
PAIRED = frozenset({"llama", "granite", "smollm3"})
"""Architectures whose rotary embedding turns neighbouring rows in llama.cpp, but halves of a head in transformers."""
_CONVERTER = (
    "export the merged model with --to merged (merge_adapter(model) in Python), save it with its tokenizer, and run "
    "llama.cpp's convert_hf_to_gguf.py on that folder"
)


@dataclass(frozen=True)
class GgufBase:
    """The base model, as far as an adapter's file depends on it.

    Attributes:
        architecture: `general.architecture` of its GGUF file.
        blocks: Number of its blocks.
        heads: Number of query heads.
        kv_heads: Number of key heads.
    """

    architecture: str
    blocks: int
    heads: int
    kv_heads: int

    @classmethod
    def of(cls, config: Any) -> GgufBase:
        """From the config of a transformers model; only plain attributes are read.

        Raises:
            ExportError: llama.cpp keeps the layers of such a model in a way that is not known here.
        """
        kind = getattr(config, "model_type", None)
        if kind not in ARCHITECTURES:
            raise _unknown(f"a model of the type {kind!r}", ARCHITECTURES)
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return cls(ARCHITECTURES[kind], config.num_hidden_layers, config.num_attention_heads, kv_heads)

    @classmethod
    def of_file(cls, reader: Any) -> GgufBase:
        """From a base model's GGUF file, opened with `gguf.GGUFReader`.

        Raises:
            ExportError: It holds no model, or one whose layers are kept in a way that is not known here.
        """
        name = _value(reader, "general.architecture")
        known = sorted(set(ARCHITECTURES.values()))
        if name not in known:
            raise _unknown(f"a GGUF file of the architecture {name!r}", known)
        blocks, heads = _value(reader, f"{name}.block_count"), _value(reader, f"{name}.attention.head_count")
        kv_heads = _value(reader, f"{name}.attention.head_count_kv") or heads
        counts = (blocks, heads, kv_heads)
        if not all(isinstance(count, int) and count > 0 for count in counts):
            raise _unknown(f"a GGUF file with {blocks!r} blocks of {heads!r} and {kv_heads!r} heads", known)
        return cls(name, blocks, heads, kv_heads)

    def tensor_names(self, layers: Iterable[str]) -> dict[str, str]:
        """Name of a layer in the model -> name of its weight in a GGUF file.

        Raises:
            ExportError: The gguf package is missing, or a layer has no tensor of its own.
        """
        gguf = gguf_package()
        architecture = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        known = gguf.get_tensor_name_map(architecture, self.blocks)
        found = {layer: known.get_name(layer) for layer in layers}
        missing = [layer for layer, name in found.items() if name is None]
        if missing:
            raise ExportError(
                "A GGUF file has no tensor for an adapted layer.",
                got=f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''} in {self.blocks} blocks of "
                f"{self.architecture!r}",
                expected="layers named as in the transformers model, e.g. model.layers.0.self_attn.q_proj",
                fix=_CONVERTER,
            )
        return {layer: f"{name}.weight" for layer, name in found.items()}

    def to_file(self, tensor: str, rows: Tensor) -> Tensor:
        """Rows (outputs) of a weight in the order of the file: `(head, half, pair)` becomes `(head, pair, half)`."""
        heads = self._rotated_heads(tensor)
        return rows if heads is None else rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)

    def to_model(self, tensor: str, rows: Tensor) -> Tensor:
        """The inverse of `to_file`."""
        heads = self._rotated_heads(tensor)
        return rows if heads is None else rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)

    def fits(self, tensor: str, rows: int) -> bool:
        """Whether a weight with so many rows can be brought into the other order."""
        heads = self._rotated_heads(tensor)
        return heads is None or rows % (2 * heads) == 0

    def _rotated_heads(self, tensor: str) -> int | None:
        if self.architecture not in PAIRED:
            return None
        counts = {"attn_q": self.heads, "attn_k": self.kv_heads}
        return counts.get(tensor.removesuffix(".weight").rpartition(".")[2])


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _unknown(got: str, known: Iterable[str]) -> ExportError:
    return ExportError(
        "How llama.cpp keeps the layers of this model is not known here.",
        got=got,
        expected=f"one of {', '.join(known)}",
        fix=_CONVERTER,
    )
