"""Starting a Triton kernel with as little Python as can be."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from torch import Tensor
from triton.runtime import driver

ALIGNMENT = 16
"""Bytes. Triton compiles a kernel of its own for tensors that start elsewhere."""


class _Compiled(NamedTuple):
    """A kernel in the form that `CompiledKernel.__getitem__` of Triton 3.3 to 3.9 starts, taken apart."""

    run: Callable[..., None]
    function: Any
    metadata: Any
    stream: Callable[[int], int]
    device: int


class Launcher:
    """One kernel and its compiled forms.

    Triton's own way of starting a kernel works out each time, argument by argument, which compiled form fits: several
    times what an operation of torch costs. Here the caller's key says it.

    Args:
        kernel: What `triton.jit` made.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._compiled: dict[Hashable, _Compiled] = {}

    def __call__(self, key: Hashable, programs: int, tensors: tuple[Tensor, ...], *others: Any) -> None:
        """Start the kernel on the current stream of the tensors' device, which is the current one.

        Args:
            key: Stands for the device, the dtypes and all that Triton compiles for in `others`: values of constants,
                and of a number whether it is 1, a multiple of 16, beyond 32 bits.
            programs: Size of the grid.
            tensors: The first arguments.
            *others: The rest, constants included.
        """
        if programs == 0:
            return
        compiled = self._compiled.get(key)
        if compiled is None:
            self._compile(key, programs, tensors, others)
            return
        places, together = [], 0
        for tensor in tensors:
            place = tensor.data_ptr()
            places.append(place)
            together |= place
        if together % ALIGNMENT:
            self._kernel[(programs,)](*tensors, *others)
            return
        run, function, metadata, stream, device = compiled
        # No metadata of the launch and no hooks: they are for Triton's own profiler.
        run(programs, 1, 1, stream(device), function, metadata, None, None, None, *places, *others)

    def _compile(self, key: Hashable, programs: int, tensors: tuple[Tensor, ...], others: tuple[Any, ...]) -> None:
        compiled = self._kernel[(programs,)](*tensors, *others)
        # Triton's interpreter gives nothing back, and other places would give another form.
        if compiled is not None and not any(tensor.data_ptr() % ALIGNMENT for tensor in tensors):
            stream, device = driver.active.get_current_stream, driver.active.get_current_device()
            self._compiled[key] = _Compiled(compiled.run, compiled.function, compiled.packed_metadata, stream, device)


def number_key(value: int) -> int:
    """The part of a key that Triton's treatment of a number makes up."""
    return -1 if value == 1 else (value % 16 == 0) + 2 * (value > 0x7FFFFFFF)
