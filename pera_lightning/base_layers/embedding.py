"""Embedding tables: `nn.Embedding`, a linear map of one-hot vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from pera_lightning.base_layers.base import Base


class EmbeddingBase(Base):
    """`nn.Embedding`: the weight is stored as (in, out), one row per token."""

    name = "torch.nn.Embedding (by name)"
    linear = False
    transposed = True

    def accepts(self, layer: nn.Module) -> bool:
        """Plain tables: subclasses scale their rows, and `max_norm` changes the stored ones at every call."""
        if type(layer) is not nn.Embedding or "weight" not in layer._parameters:
            return False
        return layer.weight.is_floating_point() and layer.max_norm is None and not layer.sparse

    def plain_forward(self) -> Callable[..., Any]:
        """That of `nn.Embedding`."""
        return nn.Embedding.forward

    def features(self, layer: nn.Module) -> tuple[int, int]:
        """`(num_embeddings, embedding_dim)` of the table."""
        return layer.num_embeddings, layer.embedding_dim  # type: ignore[return-value]
