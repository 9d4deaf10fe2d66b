"""The checksum of packets in gateware, a byte at a time."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Value

from lichen.boards.link.protocol import CRC_POLYNOMIAL

CRC_BITS = 32


def advanced(register: Value, byte: Value) -> Value:
    """The register of CRC-32 after one more byte; see `CRC_POLYNOMIAL`.

    A byte's effect is the sum of those of its bits, so every bit of the result is one sum modulo 2.
    """
    inner = register[:8] ^ byte
    effects = [_shifted(1 << i) for i in range(8)]
    bits = []
    for j in range(CRC_BITS):
        terms = [inner[i] for i in range(8) if effects[i] >> j & 1]
        terms.append(register[j + 8] if j + 8 < CRC_BITS else Const(0, 1))
        bits.append(Cat(*terms).xor())
    return Cat(*bits)


def _shifted(register: int) -> int:
    """What eight steps make of a register."""
    for _ in range(8):
        register = register >> 1 ^ (CRC_POLYNOMIAL if register & 1 else 0)
    return register
