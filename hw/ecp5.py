"""Cells of the Lattice ECP5, where what synthesis infers is not good enough.

A component whose ``elaborate`` is given an ECP5 platform makes these cells; given none, it makes
a behavioural twin, which is what simulators without vendor models run. Tests hold the two
together.
"""

from __future__ import annotations

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Mux, Signal, Value

MULTIPLIER_BITS = 18
"""Width of MULT18X18D's operands."""

MULTIPLIER_LATENCY = 3
"""Cycles through MULT18X18D's input, pipeline and output registers."""


class Target:
    """Stands for the device where there is no board's platform: to emit the cells as Verilog."""

    device = "LFE5U"


def on_ecp5(platform: object) -> bool:
    """Whether ``elaborate(platform)`` is to make ECP5 cells."""
    return str(getattr(platform, "device", "")).startswith("LFE5U")


def multiply(m: Module, name: str, a: Value, b: Value, p: Signal) -> None:
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


def and_add(
    m: Module, platform: object, name: str, lanes: list[tuple[Value, Value]], signed: bool
) -> Value:
    """``sum(Mux(bit, value, 0))`` of one or two (bit, value) lanes, combinational.

    With two lanes on the ECP5 both ANDs and the addition share one carry chain, a lookup table
    a bit (CCU2C; the lookup tables compute AB xor CD, and AB where the carry needs an operand).
    """
    if len(lanes) == 1 or not on_ecp5(platform):
        total = None
        for bit, value in lanes:
            gated = Mux(bit, value, 0)
            total = gated if total is None else total + gated
        assert total is not None
        return total
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
