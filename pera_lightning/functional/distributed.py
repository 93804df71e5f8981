"""Tensors of which each process holds a part (torch's DTensor), without importing what makes them."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_distributed(tensor: object) -> bool:
    """Whether a tensor is a DTensor: each process holds a part of it, or a copy that is kept the same."""
    return hasattr(tensor, "placements")


def whole(tensor: Any) -> Tensor:
    """The tensor from its parts; collective, every process gets all of it. A plain tensor is returned as it is."""
    return tensor.full_tensor() if is_distributed(tensor) else tensor


def own_part(tensor: Any) -> Tensor:
    """What this process holds of a tensor, sharing memory; of a plain one all of it."""
    return tensor.to_local() if is_distributed(tensor) else tensor
