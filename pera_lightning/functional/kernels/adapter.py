"""The kernels for adapters of one shape, with everything that never changes worked out once."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton.language as tl
from torch import Tensor

from pera_lightning.errors import ConfigError
from pera_lightning.form_bounds import column_count
from pera_lightning.functional.form import Form
from pera_lightning.functional.kernels import drop as drop_module
from pera_lightning.functional.kernels import expand as expand_module
from pera_lightning.functional.kernels import fold as fold_module
from pera_lightning.functional.kernels.availability import interpreted, unavailable_reason
from pera_lightning.functional.kernels.launch import Launcher, number_key
from pera_lightning.functional.kernels.tables import compute_dtype, padded_width, tables_of
from pera_lightning.functional.precision import in_dtype

_expand = Launcher(expand_module.expand_kernel)
_fold = Launcher(fold_module.fold_kernel)
_drop = Launcher(drop_module.drop_kernel)


class AdapterKernels:
    """The kernels for one form and shape.

    Args:
        form: Order, terms and constant factors.
        rank: Number of components.
        in_features: Length of the rows of A.
        out_features: Rows of B.
        dtype: Of the expanded factors and their gradients.
        factor_dtype: Of A, B, h and their gradients.
        device: Of all tensors.

    Raises:
        ConfigError: No kernel runs on the device.
    """

    def __init__(
        self,
        form: Form,
        rank: int,
        in_features: int,
        out_features: int,
        dtype: torch.dtype,
        factor_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        _refuse(device)
        self._rank, self._in, self._out = rank, in_features, out_features
        self._dtype, self._factor_dtype, self._device = dtype, factor_dtype, device
        self._columns, self._width = column_count(rank, form.order, form.terms), padded_width(form, rank)
        self._compute = compute_dtype(torch.promote_types(dtype, factor_dtype))
        self._tables = tables_of(form, rank, self._compute, device)
        compute = tl.float64 if self._compute == torch.float64 else tl.float32
        self._float16 = dtype == torch.float16 and form.order > 1
        self._constants = (self._columns > rank, self._float16, form.order, compute)
        numbers = (in_features, out_features, rank, self._columns, self._width)
        self._numbers = numbers
        self._key = (
            device,
            dtype,
            factor_dtype,
            *self._constants[:3],
            self._tables.per_component,
            *map(number_key, numbers),
        )
        blocks = _blocks(in_features, expand_module.BLOCK) + _blocks(out_features, expand_module.BLOCK)
        self._expand_programs = blocks * _blocks(self._width, expand_module.BLOCK_K)
        components = _blocks(rank, fold_module.BLOCK_I)
        self._A_programs = components * _blocks(in_features, fold_module.BLOCK)
        self._row_blocks = _blocks(out_features, fold_module.BLOCK)
        self._B_programs = components * self._row_blocks
        self._right_shape, self._left_shape = (self._width, in_features), (out_features, self._width)
        self._sums_shape = (self._row_blocks, self._columns - rank)
        self._expand_others = (*numbers, *self._constants, expand_module.BLOCK_K, expand_module.BLOCK)
        fold_blocks = (fold_module.BLOCK_I, fold_module.BLOCK, fold_module.BLOCK_K)
        self._fold_constants = (self._tables.per_component, *self._constants, *fold_blocks)
        self._h_programs = self._row_blocks * _blocks(self._columns - rank, fold_module.BLOCK_K)

    def expand(self, A: Tensor, B: Tensor, h: Tensor | None, largest: Tensor | None) -> tuple[Tensor, Tensor]:
        """The expanded factors: `right` (width, in) and `left` (out, width) with coefficients and scaling.

        Args:
            A: Shape (rank, in).
            B: Shape (out, rank).
            h: Coefficients without their constant factors; None where there are none.
            largest: The largest absolute entry of A in float32, for factors in float16; see `float16_magnitude`.
        """
        right = torch.empty(self._right_shape, dtype=self._dtype, device=self._device)
        left = torch.empty(self._left_shape, dtype=self._dtype, device=self._device)
        factors = self._contiguous(A, B, h)
        _expand(
            self._key,
            self._expand_programs,
            (*factors, self._tables.members, self._tables.scales, self._scale(largest), right, left),
            *self._expand_others,
        )
        return right, left

    def fold(
        self,
        right_grad: Tensor | None,
        left_grad: Tensor | None,
        A: Tensor,
        B: Tensor,
        h: Tensor | None,
        largest: Tensor | None,
        want_h: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of A, B and h from those of `right` and `left`.

        Args:
            right_grad: Shape (width, in), contiguous; None where A's gradient is not wanted.
            left_grad: Shape (out, width), contiguous; None where neither B's nor h's gradient is wanted.
            A: Shape (rank, in).
            B: Shape (out, rank).
            h: Coefficients, or None.
            largest: As for `expand`.
            want_h: Whether the gradient of h is wanted.

        Returns:
            Those of A and B in their shapes and dtype; for that of h the sums over blocks of rows of B, float32 or
            better, which are still to be added up: shape (blocks, number of monomials). None where not wanted.
        """
        want_h = want_h and h is not None and self._columns > self._rank
        A_grad = B_grad = None
        if right_grad is not None:
            A_grad = torch.empty(A.shape, dtype=self._factor_dtype, device=self._device)
        if left_grad is not None:
            B_grad = torch.empty(B.shape, dtype=self._factor_dtype, device=self._device)
        # One row per block, and not one sum by all programs at once: that would have another order each time.
        sums = torch.empty(self._sums_shape, dtype=self._compute, device=self._device) if want_h else None
        A_programs = 0 if A_grad is None else self._A_programs
        B_programs = 0 if B_grad is None else self._B_programs
        # Memory is read as of this dtype, whatever an autocast around may have made of it.
        first = in_dtype(_either(right_grad, left_grad), self._dtype)
        grads = first, first if left_grad is None else in_dtype(left_grad, self._dtype)
        factors = self._contiguous(A, B, h)
        _fold(
            self._key,
            A_programs + B_programs + (self._h_programs if want_h else 0),
            (
                *grads,
                *factors,
                *self._tables,
                self._scale(largest),
                _either(A_grad, B_grad),
                _either(B_grad, A_grad),
                self._tables.scales if sums is None else sums,
            ),
            *self._numbers,
            A_programs,
            B_programs,
            *self._fold_constants,
        )
        return A_grad, B_grad, sums

    @staticmethod
    def drop(x: Tensor, seed: Tensor, lost: int, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """See `drop`."""
        return drop(x, seed, lost, dtype, out)

    def try_out(self, with_drop: bool) -> None:
        """Compile and start each kernel, in Triton's way and in the short one: what does not work is to raise here."""
        A, B, h = (
            torch.zeros(shape, dtype=self._factor_dtype, device=self._device)
            for shape in ((self._rank, self._in), (self._out, self._rank), (self._columns - self._rank,))
        )
        largest = torch.zeros((), dtype=torch.float32, device=self._device)
        seed = torch.zeros(1, dtype=torch.int64, device=self._device)
        for _ in range(2):
            right, left = self.expand(A, B, h, largest)
            self.fold(right, left, A, B, h, largest, want_h=True)
            if with_drop:
                drop(left, seed, 1, self._dtype)
        # A kernel that fails tells so only then; while a graph is captured nothing may wait.
        if self._device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize(self._device)

    def _contiguous(self, A: Tensor, B: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Something in the place of an h that is not there, too."""
        if A.is_contiguous() and B.is_contiguous() and (h is None or h.is_contiguous()):
            return A, B, B if h is None else h
        return A.contiguous(), B.contiguous(), (B if h is None else h).contiguous()

    def _scale(self, largest: Tensor | None) -> Tensor:
        # Products in other dtypes have no need of it, and no kernel then looks at it.
        if not self._float16:
            return self._tables.scales
        assert largest is not None, "factors in float16 need the largest entry of A"
        return largest


adapter_kernels = lru_cache(maxsize=1024)(AdapterKernels)
"""The kernels of a shape, made once."""


def drop(x: Tensor, seed: Tensor, lost: int, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The entries of x that a seed keeps, zeros in place of the others; the same each time.

    Args:
        x: Any shape.
        seed: int64 of one entry, on the device of x.
        lost: How many of 65536 entries are lost, on average.
        dtype: Of the result.
        out: Where to write it; a contiguous x itself is all right.

    Raises:
        ConfigError: No kernel runs on the device.
    """
    device, count = x.device, x.numel()
    _refuse(device)
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=dtype, device=device) if out is None else out
    key = (device, x.dtype, out.dtype, number_key(count))
    _drop(key, _blocks(count, drop_module.ENTRIES), (x, out, seed), count, lost, drop_module.DRAWS)
    return out


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _either(first: Tensor | None, other: Tensor | None) -> Tensor:
    """The first, or something that a kernel may be given in its place and never looks at."""
    found = other if first is None else first
    assert found is not None, "nothing is wanted"
    return found


def _refuse(device: torch.device) -> None:
    if device.type == "cuda" or interpreted():
        return
    raise ConfigError(
        "A kernel was asked for where none runs.",
        got=f"tensors on {device}: {unavailable_reason(device)}",
        expected="tensors on a CUDA GPU",
        fix="call pera_linear, which takes plain operations elsewhere",
    )
