"""Division of run-time sizes."""

from __future__ import annotations

from amaranth.hdl import Value


def divide_by_stride(value: Value, by: int) -> Value:
    """``value // by`` for ``by`` 1 .. 4 and ``value`` below 2**17, without a divider."""
    if by & (by - 1) == 0:
        return value >> (by.bit_length() - 1)
    # 2**19 / 3 rounded up is exact up to 2**18; written as shifts so that no multiplier is used
    constant = 174763
    terms = [value << bit for bit in range(constant.bit_length()) if constant >> bit & 1]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total >> 19
