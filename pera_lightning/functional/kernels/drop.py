"""Triton: dropout whose mask is a function of a seed and a place, so that it is never stored.

The same kernel makes the dropped input and, going back, takes the gradient through the mask.
"""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = 512
"""Draws of a program. One draw of Philox, 128 bits, decides about eight entries, `GROUP` apart."""
ENTRIES = 8 * GROUP
"""Entries of a program."""


@triton.jit
def _write_kept(x, out, number, place, count, lost):
    there = place < count
    value = tl.load(x + place, mask=there, other=0.0)
    kept = tl.where((number & 0xFFFF) >= lost, value, 0.0)
    tl.store(out + place, kept.to(out.dtype.element_ty), mask=there)


# A probability is no shape: nothing is to be compiled anew for one that 16 divides.
@triton.jit(do_not_specialize=["lost"])
def drop_kernel(x, out, seed, count, lost, GROUP: tl.constexpr):
    """`out = x` where a 16-bit number is at least `lost`, else 0; both flat, of `count` entries."""
    block = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, GROUP)
    draw = block * GROUP + lane
    low, high = (draw & 0xFFFFFFFF).to(tl.uint32), (draw >> 32).to(tl.uint32)
    zero = low * 0
    first, second, third, fourth = tl.philox(tl.load(seed), low, high, zero, zero)
    place = block * (8 * GROUP) + lane
    _write_kept(x, out, first, place, count, lost)
    _write_kept(x, out, first >> 16, place + GROUP, count, lost)
    _write_kept(x, out, second, place + 2 * GROUP, count, lost)
    _write_kept(x, out, second >> 16, place + 3 * GROUP, count, lost)
    _write_kept(x, out, third, place + 4 * GROUP, count, lost)
    _write_kept(x, out, third >> 16, place + 5 * GROUP, count, lost)
    _write_kept(x, out, fourth, place + 6 * GROUP, count, lost)
    _write_kept(x, out, fourth >> 16, place + 7 * GROUP, count, lost)
