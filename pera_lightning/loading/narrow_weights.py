"""Embeddings and head stored in 16 bits under activations in 32, for CPUs that are slow at 16-bit arithmetic."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pera_lightning.base_layers import base_of

CHUNK = 1 << 22
"""Weights that are widened at a time."""


class NarrowEmbedding(nn.Embedding):
    """An embedding whose rows are widened when they are looked up.

    Args:
        table: The embedding whose weight is shared.
        dtype: Of the output.
    """

    ROWS_AS_STORED = True
    """What it returns are the rows of its weight, so that token rows can be trained."""

    def __init__(self, table: nn.Embedding, dtype: torch.dtype) -> None:
        super().__init__(1, 1, padding_idx=None, device="meta")
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.padding_idx = table.padding_idx
        self.weight = table.weight
        self.wide = dtype

    def forward(self, input: Tensor) -> Tensor:
        """Shape (..., embedding_dim), the wide dtype."""
        return super().forward(input).to(self.wide)


class NarrowLinear(nn.Linear):
    """A linear layer that computes in its input's dtype, a part of its weight at a time.

    Args:
        layer: The layer whose weight and bias are shared.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, input: Tensor) -> Tensor:
        """Shape (..., out), the input's dtype."""
        rows = max(1, CHUNK // self.in_features)
        output = torch.cat([F.linear(input, part.to(input.dtype)) for part in self.weight.split(rows)], dim=-1)
        return output if self.bias is None else output + self.bias.to(input.dtype)


def widen_activations(model: nn.Module, dtype: torch.dtype) -> None:
    """Have a quantised transformers model compute in `dtype` while its embeddings and head stay stored as they are.

    Norms and biases, which are small, are converted. Models whose embeddings or head are of a kind of their own (scaled
    ones) are left as they are: right, only slow.

    Args:
        model: A model with `get_input_embeddings` and `get_output_embeddings`.
        dtype: Of the activations.
    """
    table, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    if type(table) is not nn.Embedding or type(head) is not nn.Linear:
        return
    model.set_input_embeddings(NarrowEmbedding(table, dtype))  # type: ignore[operator]
    model.set_output_embeddings(NarrowLinear(head))  # type: ignore[operator]
    for module in model.modules():
        base = base_of(module)
        stored = isinstance(module, NarrowEmbedding | NarrowLinear) or (base and base.quantization(module))
        for name, value in module.named_parameters(recurse=False):
            if value.is_floating_point() and not (stored and name == "weight"):
                value.data = value.data.to(dtype)
