"""Dropout masks that are drawn again instead of being stored."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

LEVELS = 1 << 16
"""A 16-bit number decides about an entry: one draw of 64 bits, good for four, costs what one Bernoulli draw does."""


def draw_seed() -> int:
    """A seed from torch's CPU generator: the run's own seed decides it, and activation checkpointing repeats it."""
    return int(torch.randint(1 << 62, (), device="cpu"))


def met_dropout(dropout: float) -> float:
    """The probability that `keep_mask` really has: a multiple of 1 / 65536 below 1."""
    return min(round(dropout * LEVELS), LEVELS - 1) / LEVELS


def keep_mask(seed: int, shape: Sequence[int], device: torch.device, dtype: torch.dtype, dropout: float) -> Tensor:
    """Which entries survive; the same seed gives the same mask.

    Args:
        seed: From `draw_seed`.
        shape: Of the mask.
        device: Of the mask. A CUDA GPU gives another mask than a CPU; other devices get the CPU's.
        dtype: Of the mask.
        dropout: Probability of losing an entry, above 0, as `met_dropout` gives it.

    Returns:
        Tensor of 1 where an entry is kept and 0 where it is lost.
    """
    if device.type == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    # Elsewhere generators may be missing, or draw no 64 bits.
    source = device if device.type == "cuda" else torch.device("cpu")
    generator = torch.Generator(source).manual_seed(seed)
    count = prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=source)
    words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    numbers = words.view(torch.int16)[:count].view(shape)
    # A comparison would be natural; on a CPU this gives the same and takes a third of the time.
    last_lost = round(dropout * LEVELS) - LEVELS // 2 - 1
    return numbers.clamp_(last_lost, last_lost + 1).sub_(last_lost).to(dtype).to(device)
