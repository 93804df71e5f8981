"""Philox 4x32-10 (Salmon et al. 2011), for the tests: whole numbers, no Triton."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_WORD = np.uint64(0xFFFFFFFF)


def philox(seed: int, draws: np.ndarray) -> list[np.ndarray]:
    """Four 32-bit words of each draw, as uint64."""
    counters = [draws & _WORD, draws >> np.uint64(32), np.zeros_like(draws), np.zeros_like(draws)]
    keys = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        first, second = np.uint64(0xD2511F53) * counters[0], np.uint64(0xCD9E8D57) * counters[2]
        counters = [
            (second >> np.uint64(32)) ^ counters[1] ^ np.uint64(keys[0]),
            second & _WORD,
            (first >> np.uint64(32)) ^ counters[3] ^ np.uint64(keys[1]),
            first & _WORD,
        ]
        keys = [(keys[0] + 0x9E3779B9) & 0xFFFFFFFF, (keys[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counters


def reference_mask(seed: int, shape: tuple[int, ...], lost: int) -> Tensor:
    """1 where `drop_kernel` keeps an entry."""
    count = int(np.prod(shape))
    place = np.arange(count, dtype=np.uint64)
    words = np.stack(philox(seed, place // np.uint64(8)))
    eighth = place % np.uint64(8)
    s, t, u = eighth // np.uint64(4), eighth // np.uint64(2) % np.uint64(2), eighth % np.uint64(2)
    chosen = words[(s + np.uint64(2) * t).astype(np.int64), np.arange(count)]
    numbers = (chosen >> (np.uint64(16) * u)) & np.uint64(0xFFFF)
    return torch.from_numpy((numbers >= lost).astype(np.float64)).reshape(shape)
