"""What the Triton kernels over ragged rows share: whose row it is, and the widths of tiles."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def owner(offsets_ptr, rows, B, BLOCK: tl.constexpr):
    """The owner of each row, `[BLOCK]` int64: the last of B whose first row is at or before it.

    By bisection over `offsets` `[B + 1]`, all rows at once; owners may be without rows. B is at least 1.
    """
    low = tl.zeros([BLOCK], dtype=tl.int64)
    span = B
    while span > 1:
        half = span // 2
        begin = tl.load(offsets_ptr + low + half).to(tl.int64)
        low = tl.where(begin <= rows, low + half, low)
        span -= half
    return low


def power_of_two(width: int) -> int:
    """The least power of two that holds `width`, and at least 16: tiles are powers of two."""
    return max(16, 1 << (width - 1).bit_length())
