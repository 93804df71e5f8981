"""Layers whose weight the model reads instead of calling the layer."""

from __future__ import annotations

from torch import nn


def read_by_torch(model: nn.Module) -> set[int]:
    """The ids of layers whose weights torch's own attention modules read.

    The projection after attention always; the two linear layers of an encoder layer on the fast path, which torch takes
    in eval mode without gradients.
    """
    read: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            read.add(id(module.out_proj))
        elif isinstance(module, nn.TransformerEncoderLayer):
            read |= {id(module.linear1), id(module.linear2)}
    return read
