"""An adapter's operands, kept as long as the factors have the values they were made of."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

from pera_lightning.functional.observation import is_observed, is_transformed
from pera_lightning.functional.operands import Operands

Factors = tuple[Tensor, Tensor, Tensor | None]
"""A, B and h."""


class OperandCache:
    """Holds the expanded factors of one layer between calls in eval mode.

    Each call compares the factors with a copy of those that the operands were made of: nothing else sees every change
    (torch's version counters miss edits of `.data`, the steps of fused optimizers and whatever writes to the memory by
    other means). Copies and pickles of a layer start with an empty cache.
    """

    def __init__(self) -> None:
        # Key, copies of the factors, operands. Replaced as one, because threads may share a layer.
        self._held: tuple[tuple[Hashable, ...], Factors, Operands] | None = None

    def get(self, factors: Factors, key: tuple[Hashable, ...], prepare: Callable[[Factors], Operands]) -> Operands:
        """What is held for these factors and this key; made by `prepare` if nothing is.

        Args:
            factors: What the operands are made of; they `can_be_compared`.
            key: Whatever else they depend on.
            prepare: Makes them.
        """
        A, B, h = factors
        key = (*key, A.dtype, A.shape, B.dtype, B.shape)
        if h is not None:
            key = (*key, h.dtype, h.shape)
        held = self._held
        if held is None or held[0] != key or not _are_equal(held[1], factors):
            # Made of the copies: another thread may change the factors at this moment.
            copies = A.detach().clone(), B.detach().clone(), None if h is None else h.detach().clone()
            held = self._held = (key, copies, prepare(copies))
        return held[2]

    def clear(self) -> None:
        """Give the memory back."""
        self._held = None

    def __reduce__(self) -> tuple[Any, ...]:
        return OperandCache, ()


def can_be_compared(x: Tensor, A: Tensor, B: Tensor, h: Tensor | None) -> bool:
    """Whether a layer with these factors may look at their bits before it takes an input.

    On a CPU, with plain tensors. On other devices the CPU would have to wait for the answer, at every layer.
    """
    if not (A.is_cpu and B.is_cpu and A.is_contiguous() and B.is_contiguous()):
        return False
    if h is not None and not (h.is_cpu and h.is_contiguous()):
        return False
    if is_transformed() or is_observed(x, A, B, h):
        return False
    # A negative view holds the same bits as its negation.
    return not (A.is_neg() or B.is_neg() or (h is not None and h.is_neg()))


def _are_equal(held: Factors, factors: Factors) -> bool:
    (A, B, h), (held_A, held_B, held_h) = factors, held
    if not (_have_equal_bits(A, held_A) and _have_equal_bits(B, held_B)):
        return False
    return h is None or held_h is None or _have_equal_bits(h, held_h)


# torch.equal goes entry by entry: up to ten times the time, a tenth of a token's.
_compare_memory = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None).memcmp
_compare_memory.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def _have_equal_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two contiguous tensors of one dtype and shape hold the same bits."""
    return _compare_memory(one.data_ptr(), other.data_ptr(), one.nbytes) == 0
