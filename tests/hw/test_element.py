# amaranth: UnusedElaboratable=no
"""Dot-product elements: what they sum, and that ECP5 cells and behavioural twin agree."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import Shape, signed, unsigned

from lichen.hw.device import ecp5
from lichen.hw.device.multiplier import Multiplier
from lichen.hw.engine.element import ELEMENTS, Backend, Element, packs
from lichen.hw.verilog import emit

CASES = [
    (Backend.PORTABLE, signed(8), signed(6), 3),
    (Backend.DSP, signed(8), signed(8), 4),
    (Backend.DSP, unsigned(8), signed(7), 1),
    (Backend.DSP, unsigned(10), unsigned(8), 5),
    (Backend.PACKED, signed(8), signed(6), 4),
    (Backend.PACKED, signed(8), signed(6), 1),
    (Backend.PACKED, signed(8), signed(4), 3),
    (Backend.PACKED, unsigned(8), signed(5), 8),
    (Backend.PACKED, signed(7), signed(6), 2),
    (Backend.LUT, signed(8), signed(6), 8),
    (Backend.LUT, signed(7), signed(4), 3),
    (Backend.LUT, unsigned(8), signed(5), 4),
    (Backend.LUT, unsigned(8), unsigned(7), 2),
    (Backend.LUT, signed(5), signed(2), 1),
]


def draw(rng: np.random.Generator, shape: Shape, size, *, symmetric: bool) -> np.ndarray:
    """Values of a shape, its extremes among them often."""
    lo = -(1 << (shape.width - 1)) + symmetric if shape.signed else 0
    hi = (1 << (shape.width - shape.signed)) - 1
    values = rng.integers(lo, hi + 1, size)
    extreme = rng.choice([lo, hi, 0, min(1, hi), max(-1, lo)], size)
    return np.where(rng.random(size) < 0.3, extreme, values)


def pack(values: np.ndarray, width: int) -> str:
    """Rows of values as hexadecimal words, the first value lowest."""
    words = []
    for row in values.reshape(len(values), -1).tolist():
        word = sum((int(v) & ((1 << width) - 1)) << (i * width) for i, v in enumerate(row))
        words.append(f"{word:x}")
    return "\n".join(words) + "\n"


def run(element: Element, platform: object, a: np.ndarray, w: np.ndarray, folder: Path):
    """Totals of the element, one row a cycle, as Icarus computes them."""
    folder.mkdir()
    cycles, ways = len(a), element.ways
    bits = {"a": a[0].size * element.a_shape.width, "w": w[0].size * element.w_shape.width}
    bits["t"] = ways * element.total_shape.width
    (folder / "a.hex").write_text(pack(a, element.a_shape.width))
    (folder / "w.hex").write_text(pack(element.encode(w), element.w_shape.width))
    latency, total_shape = element.latency, element.total_shape
    (folder / "element.v").write_text(emit(element, "element", platform))
    (folder / "bench.v").write_text(f"""
module bench;
    reg clk = 0;
    reg [{bits["a"] - 1}:0] as [0:{cycles - 1}], a = 0;
    reg [{bits["w"] - 1}:0] ws [0:{cycles - 1}], w = 0;
    wire [{bits["t"] - 1}:0] t;
    integer i;
    element dut (.clk(clk), .rst(1'b0), .a(a), .w(w), .total(t));
    initial begin
        $readmemh("a.hex", as);
        $readmemh("w.hex", ws);
        for (i = 0; i < {cycles + latency}; i = i + 1) begin
            if (i < {cycles}) begin a = as[i]; w = ws[i]; end
            #1;
            if (i >= {latency}) $display("%h", t);
            #4 clk = 1;
            #5 clk = 0;
        end
        $finish(0);
    end
endmodule
""")
    files = ["element.v", "bench.v"]
    if platform is not None:
        (folder / "cells.v").write_text("\n".join(ecp5.cell_models().values()))
        files.append("cells.v")
    subprocess.run(
        ["iverilog", "-g2012", "-s", "bench", "-o", "bench.vvp", *files], cwd=folder, check=True
    )
    done = subprocess.run(
        ["vvp", "-n", "bench.vvp"], cwd=folder, check=True, capture_output=True, text=True
    )
    words = [int(line, 16) for line in done.stdout.split()]
    width = total_shape.width
    totals = np.array(
        [[(word >> (v * width)) & ((1 << width) - 1) for v in range(ways)] for word in words]
    )
    if total_shape.signed:
        totals -= (totals >> (width - 1)) << width
    return totals


@pytest.mark.parametrize(("backend", "a_shape", "w_shape", "lanes"), CASES)
@pytest.mark.parametrize("platform", [None, ecp5.Target()], ids=["twin", "cells"])
def test_sums(backend, a_shape, w_shape, lanes, platform, tmp_path):
    rng = np.random.default_rng([lanes, a_shape.width, w_shape.width])
    element = ELEMENTS[backend](a_shape=a_shape, w_shape=w_shape, lanes=lanes)
    a = draw(rng, a_shape, (3000, lanes), symmetric=False)
    w = draw(rng, w_shape, (3000, element.ways, lanes), symmetric=w_shape.signed)
    totals = run(element, platform, a, w, tmp_path / "run")
    assert np.array_equal(totals, np.einsum("ns,nvs->nv", a, w))


def test_cells_are_made_for_the_device_alone():
    def text(platform):
        element = ELEMENTS[Backend.PACKED](a_shape=signed(8), w_shape=signed(6), lanes=2)
        return emit(element, "element", platform)

    assert "MULT18X18D" not in text(None)
    assert text(ecp5.Target()).count("MULT18X18D") == 2


@pytest.mark.parametrize("w_bits", range(2, 11))
@pytest.mark.parametrize("a", [signed(8), unsigned(8), signed(6), signed(12)])
def test_packing_is_offered_exactly_where_it_is_exact(a, w_bits):
    """Against the definition: both products come back for all weights at the extremes of a."""
    shift, most = 18 - w_bits, (1 << (w_bits - 1)) - 1
    w0, w1 = (g.ravel() for g in np.meshgrid(*[np.arange(-most, most + 1)] * 2))
    lo = -(1 << (a.width - 1)) if a.signed else 0
    hi = (1 << (a.width - a.signed)) - 1
    exact = True
    for x in (lo, lo + 1, hi, hi - 1):
        product = (w1 * (1 << shift) + w0) * x
        low = product & ((1 << shift) - 1)
        borrow = ((product >> shift) ^ (w1 & x)) & 1
        exact &= bool(np.all(low - (borrow << shift) == w0 * x))
        exact &= bool(np.all((product >> shift) + borrow == w1 * x))
    assert packs(a, signed(w_bits)) == exact


def test_parameters_of_a_multiplier():
    """A sign bit more where an unsigned operand meets a signed one: 18 bits hold both."""
    Multiplier(a_shape=unsigned(17), b_shape=signed(18))
    for name, shapes in (("a_shape", (19, 4)), ("b_shape", (4, 19)), ("a_shape", (0, 4))):
        with pytest.raises(ValueError, match=f"{name} must be 1 to 18 bits wide as a multiplier"):
            Multiplier(a_shape=unsigned(shapes[0]), b_shape=unsigned(shapes[1]))
    with pytest.raises(ValueError, match="a_shape must be 1 to 18 bits wide as a multiplier"):
        Multiplier(a_shape=unsigned(18), b_shape=signed(18))


def test_parameters_of_an_element():
    with pytest.raises(TypeError, match="lanes must be a positive integer, not 0"):
        ELEMENTS[Backend.DSP](a_shape=signed(8), w_shape=signed(8), lanes=0)
    message = r"two products of signed\(8\) and signed\(8\) do not fit one multiplier"
    with pytest.raises(ValueError, match=message):
        ELEMENTS[Backend.PACKED](a_shape=signed(8), w_shape=signed(8), lanes=1)
