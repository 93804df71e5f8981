"""Tensors of a kind that an adapter is made of: numbers in memory, one beside the other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pera_lightning.errors import CheckpointError


def check_plain(tensors: Mapping[str, Tensor], where: object) -> None:
    """Raise CheckpointError for sparse, nested, quantised and other tensors, which not even have a shape at times.

    Args:
        tensors: By their names.
        where: What they are of, for the message.
    """
    for name, tensor in tensors.items():
        other = _other_kind(tensor)
        if other is not None:
            raise CheckpointError(
                "The checkpoint holds a tensor of another kind than adapters do.",
                got=f"{where}: {name!r}, {other}",
                expected="plain tensors, as PeraCallback writes them",
                fix="take another checkpoint of the run; in your own code make them plain before they are saved "
                "(to_dense(), dequantize())",
            )


def _other_kind(tensor: Tensor) -> str | None:
    """What is other about a tensor; None about plain ones. The values are not touched."""
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout is not torch.strided:
        return f"of the layout {tensor.layout}"
    if tensor.is_quantized:
        return f"quantised, of {tensor.dtype}"
    if tensor.is_meta:
        return "without values (on the device meta)"
    return None if type(tensor) in (Tensor, nn.Parameter) else f"of the class {type(tensor).__name__}"
