"""Triton: from the gradients of the expanded factors to those of A, B and h, in one launch.

The transposed Jacobian of `expand`. Every entry of a gradient is one sum, taken by one program in one order (for h one
sum for each block of rows of B, added up afterwards), so that the same inputs give the same bits. Sums are taken in
float32 (float64 for float64).
"""

from __future__ import annotations

import triton
import triton.language as tl

from pera_lightning.functional.kernels.expand import magnitude, member_products

BLOCK_I = 8
"""Components of a program; `Tables` pads its entries to it."""
BLOCK = 128
"""Columns of A, or rows of B, of a program."""
BLOCK_K = 16
"""Coefficients of a program."""


@triton.jit
def derivative_sums(
    grad,
    grad_base,
    grad_stride,
    factor,
    base,
    stride,
    entries,
    scales,
    h,
    i,
    there,
    rank,
    each,
    LEFT: tl.constexpr,
    COUNT: tl.constexpr,
    HAS_H: tl.constexpr,
    ORDER: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """What the `COUNT` products with component i hand to it: their gradients, times the other members."""
    total = tl.zeros(there.shape, dtype=COMPUTE)
    for position in range(COUNT):
        entry = entries + (i * COUNT + position) * (ORDER + 1)
        k = tl.load(entry)
        weight = tl.load(entry + 1).to(COMPUTE)
        if LEFT:
            weight *= tl.load(scales + k)
        if LEFT and HAS_H:
            weight *= tl.load(h + k - rank, mask=k >= rank, other=1.0).to(COMPUTE)
        value = tl.load(grad + grad_base + k.to(tl.int64) * grad_stride, mask=there, other=0.0).to(COMPUTE) * weight
        for other in tl.static_range(ORDER - 1):
            component = tl.load(entry + 2 + other)
            place = factor + base + component.to(tl.int64) * stride
            member = tl.load(place, mask=there & (component >= 0), other=1.0).to(COMPUTE)
            value *= tl.where(component >= 0, member * each, 1.0)
        total += value
    return total


# Numbers that depend on which gradients are wanted: nothing is to be compiled anew for them.
@triton.jit(do_not_specialize=["A_programs", "B_programs"])
def fold_kernel(
    right_grad,
    left_grad,
    A,
    B,
    h,
    members,
    scales,
    entries,
    largest,
    A_grad,
    B_grad,
    h_sums,
    in_features,
    out_features,
    rank,
    columns,
    width,
    A_programs,
    B_programs,
    COUNT: tl.constexpr,
    HAS_H: tl.constexpr,
    FLOAT16: tl.constexpr,
    ORDER: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A's gradient from the first programs, B's from the next, for h's sums over `BLOCK` rows from the last."""
    program = tl.program_id(0)
    i_blocks = tl.cdiv(rank, BLOCK_I)
    power = magnitude(largest, FLOAT16, COMPUTE)
    if program < A_programs:
        A_row = (program % i_blocks) * BLOCK_I + tl.arange(0, BLOCK_I)[:, None]
        A_column = (program // i_blocks * BLOCK + tl.arange(0, BLOCK))[None, :].to(tl.int64)
        A_there = (A_row < rank) & (A_column < in_features)
        A_total = derivative_sums(
            right_grad, A_column, in_features, A, A_column, in_features, entries, scales, h, A_row, A_there, rank,
            1.0 / power, False, COUNT, False, ORDER, COMPUTE,
        )  # fmt: skip
        A_place = A_grad + A_row.to(tl.int64) * in_features + A_column
        tl.store(A_place, A_total.to(A_grad.dtype.element_ty), mask=A_there)
    elif program < A_programs + B_programs:
        B_program = program - A_programs
        B_column = (B_program % i_blocks) * BLOCK_I + tl.arange(0, BLOCK_I)[None, :]
        B_row = (B_program // i_blocks * BLOCK + tl.arange(0, BLOCK))[:, None].to(tl.int64)
        B_there = (B_column < rank) & (B_row < out_features)
        B_total = derivative_sums(
            left_grad, B_row * width, 1, B, B_row * rank, 1, entries, scales, h, B_column, B_there, rank,
            power, True, COUNT, HAS_H, ORDER, COMPUTE,
        )  # fmt: skip
        tl.store(B_grad + B_row * rank + B_column, B_total.to(B_grad.dtype.element_ty), mask=B_there)
    elif HAS_H:
        h_program = program - A_programs - B_programs
        k_blocks = tl.cdiv(columns - rank, BLOCK_K)
        block = h_program // k_blocks
        k = rank + (h_program % k_blocks) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
        row = (block * BLOCK + tl.arange(0, BLOCK))[:, None].to(tl.int64)
        there = (k < columns) & (row < out_features)
        value = tl.load(left_grad + row * width + k, mask=there, other=0.0).to(COMPUTE)
        value *= member_products(B, row * rank, 1, members, k, there, power, ORDER, COMPUTE) * tl.load(scales + k)
        place = h_sums + block.to(tl.int64) * (columns - rank) + k - rank
        tl.store(place, tl.sum(value, axis=0)[None, :], mask=k < columns)
