"""Dropout masks that are drawn again instead of being stored."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

_LEVELS = 1 << 16
"""A 16-bit number decides about an entry: one draw of 64 bits, good for four, costs what one Bernoulli draw does."""


def draw_seed() -> int:
    """A seed from torch's CPU generator: the run's own seed decides it, and activation checkpointing repeats it."""
    return int(torch.randint(1 << 62, ()))


def keep_mask(seed: int, shape: Sequence[int], device: torch.device, dtype: torch.dtype, dropout: float) -> Tensor:
    """Which entries survive; the same seed gives the same mask.

    Args:
        seed: From `draw_seed`.
        shape: Of the mask.
        device: Of the mask. Another kind of device gives another mask.
        dtype: Of the mask.
        dropout: Probability of losing an entry, met to 1 / 65536.

    Returns:
        Tensor of 1 where an entry is kept and 0 where it is lost.
    """
    generator = torch.Generator(device).manual_seed(seed)
    count = prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=device)
    words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    numbers = words.view(torch.int16)[:count].view(shape)
    last_lost = round(dropout * _LEVELS) - _LEVELS // 2 - 1
    if last_lost < torch.iinfo(torch.int16).min:
        return torch.ones(shape, dtype=dtype, device=device)
    # A comparison would be natural; on a CPU this gives the same and takes a third of the time.
    last_lost = min(last_lost, torch.iinfo(torch.int16).max - 1)
    return numbers.clamp_(last_lost, last_lost + 1).sub_(last_lost).to(dtype)
