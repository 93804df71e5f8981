"""Which way to compute is cheapest: a small model in multiply-adds.

With N tokens, n inputs, m outputs, rank r and K expanded columns:

| | forward | backward |
|---|---|---|
| factored | `N K (m + n)` | `2 N K (m + n)`, and `N K n` where x A^T is computed again |
| dense | `K m n + N m n` | `3 K m n + 2 N m n` |
| implicit | `N (r + 1)^order (m + n)` | - (one of the others) |

All but implicit also write and read the expanded factors, `K (m + n)` entries; implicit has more operations, each of
which takes its time to start.
"""

from __future__ import annotations

from typing import NamedTuple

# What moving one entry through memory costs, in multiply-adds of a large matrix product: 0.2 ns against 7 ps on two
# AVX-512 cores. Not fitted to any GPU.
MEMORY = 30
# The implicit way's small products and sums run at a fraction of the speed of a large matrix product.
IMPLICIT_SLOWNESS = 4
# Starting an operation, in multiply-adds: 6 us on such a CPU; 5 us beside a GPU that does 2e14 a second, a guess.
START_ON_CPU = 900_000
START_ON_GPU = 1_000_000_000
IMPLICIT_OPERATIONS = 5
"""More than the factored way has, for each degree from 2 on."""


FEW_TOKENS = 64
"""Up to so many, the expanded factors are kept between calls: making them costs more than using them."""


class Sizes(NamedTuple):
    """What the cost of one call depends on."""

    tokens: int
    in_features: int
    out_features: int
    rank: int
    columns: int
    """K, the expanded rank."""
    order: int
    on_cpu: bool


def forward_path(sizes: Sizes, prepared: bool = False) -> str:
    """The cheapest of "factored", "dense" and "implicit" for a forward pass.

    Args:
        sizes: Of the call.
        prepared: The operands are kept between calls, so that only their use counts and not their making.
    """
    tokens, n, m, rank, columns, order, on_cpu = sizes
    if order == 1:
        return "factored"
    expanded, weight = columns * (m + n), m * n
    started = IMPLICIT_OPERATIONS * (order - 1) * (START_ON_CPU if on_cpu else START_ON_GPU)
    costs = {
        "factored": (tokens + MEMORY) * expanded,
        "dense": (tokens + MEMORY) * weight + (0 if prepared else columns * weight + MEMORY * expanded),
        "implicit": IMPLICIT_SLOWNESS * tokens * (rank + 1) ** order * (m + n) + started,
    }
    # Not min(): a compiler that takes the number of tokens for a symbol knows no key.
    best = "factored"
    for path in ("dense", "implicit"):
        if costs[path] < costs[best]:
            best = path
    return best


def backward_path(sizes: Sizes, middle_kept: bool) -> str:
    """The cheaper of "factored" and "dense" for a backward pass.

    Args:
        sizes: Of the call.
        middle_kept: Whether x A^T (tokens, K) was kept in the forward pass.
    """
    tokens, n, m, _, columns, _, _ = sizes
    factored = tokens * columns * (2 * (m + n) + (0 if middle_kept else n))
    dense = (3 * columns + 2 * tokens + 2 * MEMORY) * m * n
    return "dense" if dense < factored else "factored"


def keeps_middle(sizes: Sizes) -> bool:
    """Whether to keep the middle x right^T (tokens, K) for the backward pass.

    An entry kept saves n multiply-adds: a bargain in wide layers, where the middle also adds little to x itself.
    """
    return sizes.in_features >= 1024 and sizes.columns <= 0.15 * sizes.in_features
