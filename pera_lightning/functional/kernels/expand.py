"""Triton: the expansion of both factors in one launch.

A `right` (width, in) and a `left` (out, width), the shapes in which torch's products take the weights of a linear
layer: `y = (x right^T) left^T`. Products, coefficients and scaling are taken in float32 (float64 for float64) and
rounded once.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK_K = 16
"""Expanded columns of a program; `Tables` pads its rows to it."""
BLOCK = 128
"""Columns of A or rows of B of a program."""


@triton.jit
def magnitude(largest, FLOAT16: tl.constexpr, COMPUTE: tl.constexpr):
    """The power of two below the largest entry of A; 1 in other dtypes than float16. See `float16_magnitude`."""
    if FLOAT16:
        exponent = tl.load(largest).to(tl.int32, bitcast=True) & 0x7F800000
        power = tl.where(exponent > 0, exponent.to(tl.float32, bitcast=True), 1.0)
    else:
        power = tl.full((), 1.0, COMPUTE)
    return power


@triton.jit
def member_products(factor, base, stride, members, k, there, each, ORDER: tl.constexpr, COMPUTE: tl.constexpr):
    """The products of the components `members[k]` of a factor, which lie at `base + component * stride`.

    Every member but the first comes with the number `each`.
    """
    component = tl.load(members + k * ORDER)
    value = tl.load(factor + base + component.to(tl.int64) * stride, mask=there, other=0.0).to(COMPUTE)
    for position in tl.static_range(1, ORDER):
        component = tl.load(members + k * ORDER + position)
        place = factor + base + component.to(tl.int64) * stride
        member = tl.load(place, mask=there & (component >= 0), other=1.0).to(COMPUTE)
        value *= tl.where(component >= 0, member * each, 1.0)
    return value


@triton.jit
def expand_kernel(
    A,
    B,
    h,
    members,
    scales,
    largest,
    right,
    left,
    in_features,
    out_features,
    rank,
    columns,
    width,
    HAS_H: tl.constexpr,
    FLOAT16: tl.constexpr,
    ORDER: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`right` from the first programs, `left` from the others; see `Tables` for members and scales."""
    k_blocks = tl.cdiv(width, BLOCK_K)
    right_blocks = tl.cdiv(in_features, BLOCK)
    program = tl.program_id(0)
    k = (program % k_blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
    block = program // k_blocks
    power = magnitude(largest, FLOAT16, COMPUTE)
    if block < right_blocks:
        right_row = k[:, None]
        right_column = (block * BLOCK + tl.arange(0, BLOCK))[None, :].to(tl.int64)
        within = right_column < in_features
        there = (right_row < columns) & within
        product = member_products(A, right_column, in_features, members, right_row, there, 1.0 / power, ORDER, COMPUTE)
        place = right + right_row.to(tl.int64) * in_features + right_column
        tl.store(place, product.to(right.dtype.element_ty), mask=(right_row < width) & within)
    else:
        row = ((block - right_blocks) * BLOCK + tl.arange(0, BLOCK))[:, None].to(tl.int64)
        column = k[None, :]
        real = column < columns
        inside = real & (row < out_features)
        value = member_products(B, row * rank, 1, members, column, inside, power, ORDER, COMPUTE)
        value *= tl.load(scales + column)
        if HAS_H:
            value *= tl.load(h + column - rank, mask=(column >= rank) & real, other=1.0).to(COMPUTE)
        target = left + row * width + column
        tl.store(target, value.to(left.dtype.element_ty), mask=(column < width) & (row < out_features))
