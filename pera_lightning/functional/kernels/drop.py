"""Triton: dropout whose mask is a function of a seed and a place, so that it is never stored.

The same kernel makes the dropped input and, going back, takes the gradient through the mask.
"""

from __future__ import annotations

import triton
import triton.language as tl

DRAWS = 256
"""Draws of a program. One draw of Philox, 128 bits, decides about eight neighbours, which one thread reads at once."""
ENTRIES = 8 * DRAWS
"""Entries of a program."""


# A probability is no shape: nothing is to be compiled anew for one that 16 divides.
@triton.jit(do_not_specialize=["lost"])
def drop_kernel(x, out, seed, count, lost, DRAWS: tl.constexpr):
    """`out = x` where a 16-bit number is at least `lost`, else 0; both flat, of `count` entries.

    Of the entry at `8 d + 4 s + 2 t + u` the number is half u (0: the lower) of word `s + 2 t` of draw d.
    """
    block = tl.program_id(0).to(tl.int64)
    draw = block * DRAWS + tl.arange(0, DRAWS)
    low, high = (draw & 0xFFFFFFFF).to(tl.uint32), (draw >> 32).to(tl.uint32)
    zero = low * 0
    first, second, third, fourth = tl.philox(tl.load(seed), low, high, zero, zero)
    words = tl.join(tl.join(first, second), tl.join(third, fourth))
    numbers = tl.reshape(tl.join(words & 0xFFFF, words >> 16), (8 * DRAWS,))
    place = block * (8 * DRAWS) + tl.arange(0, 8 * DRAWS)
    there = place < count
    kept = tl.where(numbers >= lost, tl.load(x + place, mask=there, other=0.0), 0.0)
    tl.store(out + place, kept.to(out.dtype.element_ty), mask=there)
