"""Starting a Triton kernel with as little Python as can be."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 16
"""Bytes. Triton compiles a kernel of its own for tensors that start elsewhere."""


class Launcher:
    """One kernel and its compiled forms.

    Triton's own way of starting a kernel works out each time, argument by argument, which compiled form fits: several
    times what an operation of torch costs. Here the caller's key says it.

    Args:
        kernel: What `triton.jit` made.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._compiled: dict[Hashable, Any] = {}

    def __call__(self, key: Hashable, programs: int, tensors: tuple[Tensor, ...], *others: Any) -> None:
        """Start the kernel on the current stream of the tensors' device.

        Args:
            key: Stands for the device, the dtypes and all that Triton compiles for in `others`: values of constants,
                and of a number whether it is 1, a multiple of 16, beyond 32 bits.
            programs: Size of the grid.
            tensors: The first arguments.
            *others: The rest, constants included.
        """
        if programs == 0:
            return
        device = tensors[0].device
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                self._start(key, programs, tensors, others)
        else:
            self._start(key, programs, tensors, others)

    def _start(self, key: Hashable, programs: int, tensors: tuple[Tensor, ...], others: tuple[Any, ...]) -> None:
        places = 0
        for tensor in tensors:
            places |= tensor.data_ptr()
        aligned = places % ALIGNMENT == 0
        compiled = self._compiled.get(key) if aligned else None
        if compiled is not None:
            compiled[programs, 1, 1](*tensors, *others)
            return
        compiled = self._kernel[(programs,)](*tensors, *others)
        # Triton's interpreter gives nothing back.
        if aligned and compiled is not None:
            self._compiled[key] = compiled


def number_key(value: int) -> int:
    """The part of a key that Triton's treatment of a number makes up."""
    return -1 if value == 1 else (value % 16 == 0) + 2 * (value > 0x7FFFFFFF)
