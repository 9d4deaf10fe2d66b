"""A transform as an ONNX graph with QONNX's ``Quant`` nodes, exact like the golden model.

Sums of products are ``Conv`` and ``ConvTranspose`` in float32: as long as the products of an output
add up to less than 2**24 in magnitude, every partial sum is an integer that float32 holds, in
whatever order they are added. Weights that could add up to more are dealt to several convolutions,
whose sums are added as int64. Everything else (`lichen.network.arithmetic`) is in int64, with
the standard operators Add, Sub, Mul, Div, Mod, Clip, Where, Less and Gather. ``Quant`` nodes say
how wide the integers are, and change none of them.

ONNX has no arithmetic right shift. ``(v + half) >> s`` is
``(v + half + 2**62) / 2**s - 2**(62 - s)``: the dividend is positive, and there division rounds
down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lichen.network.arithmetic import (
    NORM_BITS,
    ROOT_TABLES,
    SATURATION_MAX,
    SATURATION_MIN,
    TABLE_FRACTION_BITS,
    TABLE_FRACTION_SHIFT,
    TABLE_INDEX_SHIFT,
)
from lichen.network.network import Network
from lichen.network.stage import SHIFT_MAX, Convolution, Format, Normalization, Requantizer, Stage
from lichen.network.transform import Transform

if TYPE_CHECKING:
    import onnx

OPSET = 17
IR_VERSION = 8
"""Of the standard: what every runtime of the last years reads."""

QUANT_DOMAIN = "qonnx.custom_op.general"

EXACT_BITS = 24
"""Integers of smaller magnitude than 2**24 are exact in float32."""

DIGIT_BITS = 6
"""Where even one product may be too large, weights are taken apart into digits of so many bits."""

LIFT_BITS = 62
"""What is added before a shift, as a power of two: more than any value, and no overflow with it."""


def onnx_model(network: Network, name: str, height: int, width: int) -> onnx.ModelProto:
    """One transform of a network as an ONNX model.

    Parameters
    ----------
    network : Network
    name : str
        Of the transform.
    height, width : int
        Of its input. The shapes in the graph are fixed, as QONNX's executor wants them.

    Returns
    -------
    onnx.ModelProto
        Input ``input`` (1, in, height, width) and output ``output`` (1, out, height', width') are
        float32 tensors of integers. Every stage's result is the tensor ``STAGE.output``; other
        tensors and nodes carry their stage's name, too.

    Raises ValueError for a transform that is not there or an input too small for it, ImportError
    without the package onnx.
    """
    from onnx import helper

    transform = network.transform(name)
    graph = _Graph()
    x = _transform(graph, transform, transform.sizes(height, width))
    proto = helper.make_graph(
        graph.nodes,
        name,
        [graph.infos.pop("input")],
        [graph.infos.pop(x)],
        initializer=list(graph.initializers.values()),
        value_info=list(graph.infos.values()),
        doc_string=f"{name} of {network.title}: integers, in float32 and int64 tensors",
    )
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(QUANT_DOMAIN, 1)],
        producer_name="lichen",
        ir_version=IR_VERSION,
    )
    helper.set_model_props(model, {"network": network.title, "transform": name})
    return model


class _Graph:
    """Nodes, constants and shapes, as they come; every tensor has the name of what it is."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.infos: dict[str, Any] = {}
        self.scope = ""

    def constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        """A constant of the stage at hand."""
        from onnx import numpy_helper

        name = f"{self.scope}{name}"
        array = np.asarray(value, dtype=dtype)
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def scalar(self, value: int, dtype: Any = np.int64) -> str:
        """A constant that all stages share, named by its value."""
        scope, self.scope = self.scope, ""
        name = self.constant(f"{np.dtype(dtype).name}_{value}", value, dtype)
        self.scope = scope
        return name

    def tensor(self, name: str, shape: tuple[int, ...], dtype: Any) -> str:
        """Declare a tensor by its whole name."""
        from onnx import helper

        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.infos[name] = helper.make_tensor_value_info(name, element, shape)
        return name

    def node(
        self,
        kind: str,
        inputs: list[str],
        name: str,
        shape: tuple[int, ...],
        dtype: Any = np.int64,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Append a node of the stage at hand; its one output has its name."""
        from onnx import helper

        name = self.tensor(f"{self.scope}{name}", shape, dtype)
        self.nodes.append(
            helper.make_node(kind, inputs, [name], name=name, domain=domain, **attributes)
        )
        return name


class _Values:
    """Integer arithmetic on tensors of one shape, (1, channels, height, width)."""

    def __init__(self, graph: _Graph, shape: tuple[int, ...]):
        self.graph, self.shape = graph, shape

    def __call__(
        self, kind: str, name: str, *inputs: str, dtype: Any = np.int64, **more: Any
    ) -> str:
        return self.graph.node(kind, list(inputs), name, self.shape, dtype, **more)

    def cast(self, x: str, name: str, dtype: Any) -> str:
        from onnx import helper

        to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self("Cast", name, x, dtype=dtype, to=to)

    def clip(self, x: str, name: str, lo: int, hi: int) -> str:
        return self("Clip", name, x, self.graph.scalar(lo), self.graph.scalar(hi))

    def channels(self, name: str, values: npt.NDArray) -> str:
        """A constant for every channel."""
        return self.graph.constant(name, np.asarray(values).reshape(-1, 1, 1))

    def floor_shift(self, x: str, name: str, s: int) -> str:
        """``x >> s`` of values that are not negative."""
        return self("Div", name, x, self.graph.scalar(1 << s)) if s else x

    def rshift_round(self, x: str, name: str, s: int | npt.NDArray) -> str:
        """`arithmetic.rshift_round`, the shift one for all or one for each channel."""
        if not np.any(s):
            return x
        lift, divisor, lowered = _shift_constants(s)
        if np.ndim(s) == 0:
            constants = [self.graph.scalar(int(value)) for value in (lift, divisor, lowered)]
        else:
            names = ("lift", "divisor", "lowered")
            constants = [
                self.channels(f"{name}.{what}", value)
                for what, value in zip(names, (lift, divisor, lowered), strict=True)
            ]
        return self._shift(x, name, *constants)

    def rshift_round_by(self, x: str, name: str, index: str, shifts: list[int]) -> str:
        """`arithmetic.rshift_round`, every value by the shift that its index selects."""
        constants = []
        names = ("lift", "divisor", "lowered")
        tables = _shift_constants(np.array(shifts, dtype=np.int64))
        for what, table in zip(names, tables, strict=True):
            constant = self.graph.constant(f"{name}.{what}s", table)
            constants.append(self("Gather", f"{name}.{what}", constant, index))
        return self._shift(x, name, *constants)

    def _shift(self, x: str, name: str, lift: str, divisor: str, lowered: str) -> str:
        lifted = self("Add", f"{name}.lifted", x, lift)
        return self("Sub", name, self("Div", f"{name}.divided", lifted, divisor), lowered)

    def saturate(self, x: str, name: str) -> str:
        return self.clip(x, name, SATURATION_MIN, SATURATION_MAX)

    def quant(self, x: str, name: str, bits: int, *, signed: bool, narrow: bool) -> str:
        """The same values, in float32, with their width."""
        return _quant(self.graph, x, name, self.shape, bits, signed=signed, narrow=narrow)

    def output(self, x: str, name: str, form: Format) -> str:
        """Values of a format as the float32 tensor that the next convolution reads."""
        return self.quant(
            self.cast(x, f"{name}.float", np.float32),
            name,
            form.bits,
            signed=form.signed,
            narrow=form.signed and form.lo > -(1 << (form.bits - 1)),
        )


def _shift_constants(s: int | npt.NDArray) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray]:
    """What is added, what divides and what is taken off again; see the module."""
    shift = np.asarray(s, dtype=np.int64)
    one = np.int64(1)
    half = (one << shift) >> 1
    return half + (one << LIFT_BITS), one << shift, one << (LIFT_BITS - shift)


def _quant(
    graph: _Graph,
    x: str,
    name: str,
    shape: tuple[int, ...],
    bits: int,
    *,
    signed: bool,
    narrow: bool,
) -> str:
    scale, zero = graph.scalar(1, np.float32), graph.scalar(0, np.float32)
    width = graph.scalar(bits, np.float32)
    return graph.node(
        "Quant",
        [x, scale, zero, width],
        name,
        shape,
        np.float32,
        domain=QUANT_DOMAIN,
        signed=int(signed),
        narrow=int(narrow),
        rounding_mode="ROUND",
    )


def _transform(graph: _Graph, transform: Transform, sizes: list[tuple[int, int]]) -> str:
    """All stages; returns the name of the last tensor."""
    shape = (1, transform.in_channels, *sizes[0])
    x = graph.tensor("input", shape, np.float32)
    form = transform.input
    narrow = form.signed and form.lo > -(1 << (form.bits - 1))
    x = _quant(graph, x, "input.integers", shape, form.bits, signed=form.signed, narrow=narrow)
    for stage, source, size in zip(transform.stages, transform.sources, sizes[1:], strict=True):
        graph.scope = f"{stage.name}."
        x = _stage(graph, stage, source, x, size)
    graph.scope = ""
    return graph.node(
        "Identity", [x], "output", (1, transform.out_channels, *sizes[-1]), np.float32
    )


def _stage(graph: _Graph, stage: Stage, source: Format, x: str, size: tuple[int, int]) -> str:
    values = _Values(graph, (1, stage.out_channels, *size))
    sums = _sums(values, "convolution", stage.convolution, source, x)
    bias = values.channels("bias", stage.convolution.bias)
    accumulator = values("Add", "accumulator", sums, bias)
    y = _requantize(values, stage.requantizer, accumulator)
    if stage.normalization is None:
        return values.output(y, "output", stage.requantizer.output)
    return _normalize(values, stage.normalization, stage.requantizer.output, y)


def _sums(values: _Values, name: str, conv: Convolution, source: Format, x: str) -> str:
    """Exact sums of products, without the bias, as int64."""
    attributes: dict[str, Any] = {
        "kernel_shape": [conv.kernel] * 2,
        "strides": [conv.stride] * 2,
        "pads": [conv.padding] * 4,
    }
    if conv.transposed:
        attributes["output_padding"] = [conv.output_padding] * 2
    total = ""
    parts = exact_parts(conv.weight.astype(np.int64), source.magnitude)
    for number, (weight, shift) in enumerate(parts):
        part = name if len(parts) == 1 else f"{name}{number}"
        w = weight.swapaxes(0, 1) if conv.transposed else weight
        constant = values.graph.constant(f"{part}.weight", w, np.float32)
        quantized = _quant(
            values.graph,
            constant,
            f"{part}.weight.integers",
            w.shape,
            conv.weight_bits,
            signed=True,
            narrow=True,
        )
        kind = "ConvTranspose" if conv.transposed else "Conv"
        y = values(kind, part, x, quantized, dtype=np.float32, **attributes)
        y = values.cast(y, f"{part}.sums", np.int64)
        if shift:
            y = values("Mul", f"{part}.shifted", y, values.graph.scalar(1 << shift))
        total = values("Add", f"{part}.total", total, y) if total else y
    return total


def exact_parts(
    weight: npt.NDArray[np.int64], most: int
) -> list[tuple[npt.NDArray[np.int64], int]]:
    """Weights dealt to convolutions that float32 computes exactly.

    Parameters
    ----------
    weight : int64 array (out, in, kernel, kernel)
    most : int
        Greatest magnitude of the inputs.

    Returns
    -------
    list of (weights, shift)
        Arrays of the same shape; the sum of ``weights << shift`` is ``weight``. For none of them
        do the magnitudes of an output's products add up to 2**24 or more.
    """
    limit = ((1 << EXACT_BITS) - 1) // most
    if int(np.abs(weight).max()) > limit:
        half = 1 << (DIGIT_BITS - 1)
        low = ((weight + half) & (2 * half - 1)) - half
        high = exact_parts((weight - low) >> DIGIT_BITS, most)
        return exact_parts(low, most) + [(part, shift + DIGIT_BITS) for part, shift in high]
    flat = np.abs(weight).reshape(len(weight), -1)
    parts, begin = [], 0
    while begin < flat.shape[1]:
        sums = flat[:, begin:].cumsum(axis=1).max(axis=0)
        end = begin + max(1, int(np.searchsorted(sums, limit, side="right")))
        part = np.zeros_like(weight).reshape(len(weight), -1)
        part[:, begin:end] = weight.reshape(len(weight), -1)[:, begin:end]
        parts.append((part.reshape(weight.shape), 0))
        begin = end
    return parts


def _requantize(values: _Values, r: Requantizer, accumulator: str) -> str:
    """`arithmetic.requantize`, or `arithmetic.requantize_leaky`."""
    d = np.asarray(r.pre_shift, dtype=np.int64)
    a = values.saturate(values.rshift_round(accumulator, "shifted", d), "saturated")
    m = values.channels("multiplier", r.multiplier)
    if r.negative_multiplier is not None:
        below = values("Less", "negative", a, values.graph.scalar(0), dtype=np.bool_)
        other = values.channels("negative_multiplier", r.negative_multiplier)
        m = values("Where", "factor", below, other, m)
    product = values("Mul", "product", a, m)
    rounded = values.rshift_round(product, "rounded", r.shift)
    return values.clip(rounded, "x", r.output.lo, r.output.hi)


def _normalize(values: _Values, norm: Normalization, source: Format, x: str) -> str:
    """`arithmetic.norm_input`, the norm's sums, and `arithmetic.normalize`."""
    graph = values.graph
    graph.scope += "norm."
    u = values("Mul", "square", x, x) if norm.kind.squares else values("Abs", "magnitude", x)
    u = values.floor_shift(u, "u.shifted", norm.u_shift)
    u = values.cast(u, "u.float", np.float32)
    u = values.quant(u, "u", norm.u_bits, signed=False, narrow=False)
    total = ""
    parts = exact_parts(norm.gamma.astype(np.int64)[:, :, None, None], norm.u_max(source))
    for number, (gamma, shift) in enumerate(parts):
        part = "gamma" if len(parts) == 1 else f"gamma{number}"
        constant = graph.constant(f"{part}.weight", gamma, np.float32)
        # a digit below others has a sign
        quantized = _quant(
            graph,
            constant,
            f"{part}.integers",
            gamma.shape,
            norm.gamma_bits + 1 if gamma.min() < 0 else norm.gamma_bits,
            signed=bool(gamma.min() < 0),
            narrow=False,
        )
        y = values("Conv", part, u, quantized, dtype=np.float32, kernel_shape=[1, 1])
        y = values.cast(y, f"{part}.sums", np.int64)
        if shift:
            y = values("Mul", f"{part}.shifted", y, graph.scalar(1 << shift))
        total = values("Add", f"{part}.total", total, y) if total else y
    n = values("Add", "n", total, values.channels("beta", norm.beta))
    r, e = _normalized_root(values, norm, n)
    p = values.rshift_round(values("Mul", "x_root", x, r), "x_root.rounded", norm.product_shift)
    p = values.saturate(p, "p")
    product = values("Mul", "product", p, values.channels("multiplier", norm.multiplier))
    sign = -1 if norm.kind.inverse else 1
    # a shift that no norm of this network selects may lie out of range
    shifts = [norm.shift + sign * i for i in range(norm.exponent_max(source) + 1)]
    y = values.rshift_round_by(product, "rounded", e, [min(max(s, 0), SHIFT_MAX) for s in shifts])
    y = values.clip(y, "clipped", norm.output.lo, norm.output.hi)
    graph.scope = graph.scope.removesuffix("norm.")
    return values.output(y, "output", norm.output)


def _normalized_root(values: _Values, norm: Normalization, n: str) -> tuple[str, str]:
    """`arithmetic.normalized_root`: mantissa and exponent."""
    scalar = values.graph.scalar
    even = norm.kind.squares
    zeros = ""
    for step in (16, 8, 4, 2) if even else (16, 8, 4, 2, 1):
        small = values("Less", f"below{step}", n, scalar(1 << (NORM_BITS - step)), dtype=np.bool_)
        factor = values("Where", f"factor{step}", small, scalar(1 << step), scalar(1))
        n = values("Mul", f"n{step}", n, factor)
        found = values("Where", f"zeros{step}", small, scalar(step), scalar(0))
        zeros = values("Add", f"zeros{step}.total", zeros, found) if zeros else found
    e = values("Sub", "exponent2", scalar(NORM_BITS - 1), zeros)
    e = values.floor_shift(e, "exponent", int(even))
    index = values.floor_shift(n, "index", TABLE_INDEX_SHIFT)
    fraction = values.floor_shift(n, "fraction.unmasked", TABLE_FRACTION_SHIFT)
    fraction = values("Mod", "fraction", fraction, scalar(1 << TABLE_FRACTION_BITS))
    table = ROOT_TABLES[norm.kind]
    value = values("Gather", "value", values.graph.constant("values", table[:, 0]), index)
    slope = values("Gather", "slope", values.graph.constant("slopes", table[:, 1]), index)
    rise = values("Mul", "rise", slope, fraction)
    rise = values.rshift_round(rise, "rise.rounded", TABLE_FRACTION_BITS)
    return values("Add", "root", value, rise), e
