"""Cells of the Lattice ECP5, where what synthesis infers is not good enough.

A component whose ``elaborate`` is given an ECP5 platform makes these cells; given none, it makes
a behavioural twin, which is what simulators without vendor models run. Tests hold the two
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Signal, Value

from lichen.hw.device.device import (
    BlockCell,
    BlockWrite,
    Cells,
    Device,
    MultiplierCell,
    SmallRam,
)

MULTIPLIER_BITS = 18
"""Width of MULT18X18D's operands."""

MULTIPLIER_LATENCY = 3
"""Cycles through MULT18X18D's input, pipeline and output registers."""


class Target:
    """Stands for the device where there is no board's platform: to emit the cells as Verilog."""

    device = "LFE5U"


def cell_models() -> dict[str, str]:
    """Behavioural Verilog of the family's cells that gateware is made of, by their names."""
    folder = resources.files(__package__) / "cells" / "ecp5"
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    return {file.name.removesuffix(".v"): file.read_text(encoding="utf-8") for file in files}


def _multiply(m: Module, name: str, a: Value, b: Value, p: Signal) -> None:
    """``p`` is ``a * b`` `MULTIPLIER_LATENCY` cycles later, in one MULT18X18D.

    Operands stand at the top of the cell's inputs with zeros below: so no sign has to be spread
    over input pins, and the product stands at the top of the output.
    """
    ports: dict[str, Value] = {}
    shapes = a.shape(), b.shape()
    for port, value in (("A", a), ("B", b)):
        width = len(value)
        bits = Cat(Const(0, MULTIPLIER_BITS - width), value.as_unsigned())
        ports |= {f"i_{port}{i}": bits[i] for i in range(MULTIPLIER_BITS)}
        ports[f"i_SIGNED{port}"] = Const(value.shape().signed, 1)
        ports[f"i_SOURCE{port}"] = Const(0, 1)
    ports |= {f"i_C{i}": Const(0, 1) for i in range(MULTIPLIER_BITS)}
    for i in range(4):
        ports |= {f"i_CLK{i}": Const(0, 1), f"i_CE{i}": Const(1, 1), f"i_RST{i}": Const(0, 1)}
    ports["i_CLK0"] = ClockSignal()
    product = Signal(2 * MULTIPLIER_BITS, name=f"{name}_product")
    ports |= {f"o_P{i}": product[i] for i in range(len(product))}
    registers: dict[str, str] = {}
    for register in ("INPUTA", "INPUTB", "PIPELINE", "OUTPUT"):
        registers |= {
            f"p_REG_{register}_CLK": "CLK0",
            f"p_REG_{register}_CE": "CE0",
            f"p_REG_{register}_RST": "RST0",
        }
    m.submodules[name] = Instance("MULT18X18D", **registers, **ports)
    low = 2 * MULTIPLIER_BITS - len(a) - len(b)
    assert p.shape().width == sum(s.width for s in shapes)
    m.d.comb += p.eq(product[low:])


def _and_add(m: Module, name: str, lanes: Sequence[tuple[Value, Value]], signed: bool) -> Value:
    """``sum(Mux(bit, value, 0))`` of two (bit, value) lanes, combinational.

    Both ANDs and the addition share one carry chain, a lookup table a bit (CCU2C; the lookup
    tables compute AB xor CD, and AB where the carry needs an operand).
    """
    (bit0, value0), (bit1, value1) = lanes
    width = len(value0) + 1
    extend = [
        [*value, value[-1] if signed else Const(0, 1)] for value in (value0, value1)
    ]  # one more bit holds the sum
    result = Signal(width, name=f"{name}_sum")
    carry: Value = Const(0, 1)
    for i in range(0, width, 2):
        ports: dict[str, Value] = {"i_CIN": carry}
        for half in range(2):
            inside = i + half < width
            at = [e[i + half] if inside else Const(0, 1) for e in extend]
            ports |= {
                f"i_A{half}": at[0],
                f"i_B{half}": bit0 if inside else Const(0, 1),
                f"i_C{half}": at[1],
                f"i_D{half}": bit1 if inside else Const(0, 1),
            }
            if inside:
                ports[f"o_S{half}"] = result[i + half]
        carry = Signal(name=f"{name}_carry_{i}")
        if i + 2 < width:
            ports["o_COUT"] = carry
        m.submodules[f"{name}_{i}"] = Instance(
            "CCU2C",
            p_INIT0=Const(0x7888, 16),
            p_INIT1=Const(0x7888, 16),
            p_INJECT1_0="NO",
            p_INJECT1_1="NO",
            **ports,
        )
    return result.as_signed() if signed else result


BLOCK_ADDRESS_BITS = 14
"""Address inputs of DP16KD: of its bits at width 1; wider words leave the lower ones out."""

BLOCK_ROWS = 64
"""Initial values of DP16KD come in so many parameters of 16 words of 18 bits."""

BLOCK_LATENCY = 2
"""Cycles from address to data through DP16KD's input and output registers."""


def _block_ram(
    m: Module,
    name: str,
    *,
    width: int,
    init: Sequence[int],
    address: Value,
    data: Signal,
    write: BlockWrite | None = None,
) -> None:
    """``data`` is the word at ``address`` `BLOCK_LATENCY` cycles later, out of one DP16KD.

    Its output register is in use, which makes a block RAM as fast as the logic around it:
    synthesis never finds that register by itself.

    Parameters
    ----------
    width : int
        Of the block's shape: 36, 18, 9, 4, 2 or 1. Words may be narrower.
    init : sequence of int
        Initial words from address 0; the rest is 0.
    address : Value
    data : Signal
        At most ``width`` bits.
    write : BlockWrite or None
    """
    free_bits = (width * 8 // 9 if width >= 9 else width).bit_length() - 1

    def inputs(letter: str, value: Value) -> dict[str, Value]:
        bits = Cat(Const(0, free_bits), value)
        return {
            f"i_AD{letter}{i}": bits[i] if i < len(bits) else Const(0, 1)
            for i in range(BLOCK_ADDRESS_BITS)
        }

    enable = Const(0, 1) if write is None else write.enable
    ports: dict[str, Value] = {}
    ports |= inputs("A", Const(0, 1) if write is None else write.address)
    ports |= inputs("B", address)
    word = Const(0, 36) if write is None else Cat(write.data, Const(0, 36))[:36]
    for i in range(18):
        ports |= {f"i_DIA{i}": word[i], f"i_DIB{i}": word[18 + i] if width == 36 else Const(0, 1)}
    out = Signal(36, name=f"{name}_out")
    # At 36 bits both halves leave by the one read port.
    low, high = ("DOA", "DOB") if width == 36 else ("DOB", "DOA")
    for i in range(18):
        ports |= {f"o_{low}{i}": out[i], f"o_{high}{i}": out[18 + i]}
    if width >= 18:
        # The lowest address bits are byte enables.
        ports |= {f"i_ADA{i}": enable if width == 36 else Const(1, 1) for i in range(width // 9)}
    for letter in "AB":
        ports |= {
            f"i_CLK{letter}": ClockSignal(),
            f"i_CE{letter}": Const(1, 1),
            f"i_OCE{letter}": Const(1, 1),
            f"i_RST{letter}": Const(0, 1),
            f"i_WE{letter}": Const(0, 1),
        }
        ports |= {f"i_CS{letter}{i}": Const(0, 1) for i in range(3)}
    ports["i_WEA"] = Const(1, 1) if width == 36 else enable
    ports["i_CEA"] = enable
    parameters: dict[str, object] = {
        f"p_INITVAL_{row:02X}": Const(value, 320)
        for row, value in enumerate(_block_rows(init, width))
    }
    for letter in "AB":
        parameters |= {
            f"p_DATA_WIDTH_{letter}": width,
            f"p_REGMODE_{letter}": "OUTREG",
            f"p_WRITEMODE_{letter}": "NORMAL",
            f"p_CSDECODE_{letter}": "0b000",
            f"p_CLK{letter}MUX": f"CLK{letter}",
        }
    parameters |= {"p_RESETMODE": "SYNC", "p_ASYNC_RESET_RELEASE": "SYNC", "p_GSR": "DISABLED"}
    m.submodules[name] = Instance("DP16KD", **parameters, **ports)
    m.d.comb += data.eq(out)


def _block_rows(init: Sequence[int], width: int) -> list[int]:
    """The initial values' parameters. Words of 1, 2 and 4 bits leave every ninth bit out, and
    every 18 bits take 20 of a parameter."""
    bits = 0
    for i, word in enumerate(init):
        position = i * width if width >= 9 else i * width // 8 * 9 + i * width % 8
        bits |= word << position
    rows = []
    for row in range(BLOCK_ROWS):
        value = 0
        for i in range(16):
            value |= (bits >> ((row * 16 + i) * 18) & 0x3FFFF) << (20 * i)
        rows.append(value)
    return rows


class ECP5Cells(Cells):
    """MULT18X18D, DP16KD and CCU2C, made explicitly."""

    def multiply(self, m: Module, name: str, a: Value, b: Value, p: Signal) -> None:
        _multiply(m, name, a, b, p)

    def block_ram(
        self,
        m: Module,
        name: str,
        *,
        width: int,
        init: Sequence[int],
        address: Value,
        data: Signal,
        write: BlockWrite | None = None,
    ) -> None:
        _block_ram(m, name, width=width, init=init, address=address, data=data, write=write)

    def and_add(
        self, m: Module, name: str, lanes: Sequence[tuple[Value, Value]], signed: bool
    ) -> Value:
        return _and_add(m, name, lanes, signed)


ECP5 = Device(
    name="ecp5",
    parts="LFE5U",
    multiplier=MultiplierCell(bits=MULTIPLIER_BITS, latency=MULTIPLIER_LATENCY),
    block=BlockCell(
        # DP16KD, the first as PDPW16KD
        shapes=((512, 36), (1024, 18), (2048, 9), (4096, 4), (8192, 2), (16384, 1)),
        latency=BLOCK_LATENCY,
        luts=400,
    ),
    small=SmallRam(depth=16, width=4, luts=6),  # TRELLIS_DPR16X4
    chain_ends=4,
    cells=ECP5Cells(),
)
"""LFE5U and LFE5UM: MULT18X18D, DP16KD, TRELLIS_DPR16X4 and CCU2C."""
