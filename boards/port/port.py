# amaranth: UnusedElaboratable=no
"""A pipeline whose input and output are bytes: what a link talks to.

This is all that a link knows of a transform, whichever it is: two streams of bytes, the size of
the input and a reset; `PortFormat` says what the bytes are.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, ResetInserter, Shape, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.boards.port.fill import Fill
from lichen.boards.port.format import PortFormat, value_bytes
from lichen.boards.port.packer import Packer
from lichen.boards.port.serializer import Serializer
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware
from lichen.hw.device.load import LoadSignature
from lichen.hw.engine.skid import Skid

RESET_CYCLES = 256
"""How long a reset lasts: until what is on its way through free-running registers is gone."""


class PortSignature(wiring.Signature):
    """The port of a transform, as the transform sees it.

    Members
    -------
    i : In(stream of 8)
        Bytes of the input.
    o : Out(stream of 8)
        Bytes of the output.
    width, height : In(16)
        Size of the input in positions, steady from the first byte of a frame to the last.
    load : In(LoadSignature()), only if ``loads``
        Constants.
    reset : In(1)
        Drops all frames in flight, if held for `RESET_CYCLES`. Bytes offered meanwhile are lost,
        and what is said meanwhile does not matter.
    """

    def __init__(self, *, loads: bool = False) -> None:
        super().__init__(
            {
                "i": In(stream.Signature(8)),
                "o": Out(stream.Signature(8)),
                "width": In(16),
                "height": In(16),
                "reset": In(1),
                **({"load": In(LoadSignature())} if loads else {}),
            }
        )


class TransformPort(Gateware):
    """A pipeline between a `Packer` and a `Serializer`; members are those of a `PortSignature`.

    Registers lie between these and the outside, in both directions: whoever talks to the port may
    be far away.

    Frames follow each other without any command; a frame of another size may be offered at once.

    Parameters
    ----------
    name : str
        Of the transform.
    pipeline : wiring.Component
        With streams ``i`` and ``o`` of lanes, ports ``width`` and ``height``, perhaps ``restart``,
        the attribute ``transform``, and ``resources()``.
    max_width : int
        Widest input that the pipeline was generated for.

    Attributes
    ----------
    format : PortFormat
    fill : Fill or None
        What the pipeline is filled with at run time, where it is.
    """

    def __init__(self, *, name: str, pipeline: Any, max_width: int):
        self.pipeline = pipeline
        source, target = pipeline.i.payload.shape(), pipeline.o.payload.shape()
        in_shape, out_shape = Shape.cast(source.elem_shape), Shape.cast(target.elem_shape)
        transform = pipeline.transform
        self._packer = Packer(channels=transform.in_channels, lanes=source.length, shape=in_shape)
        self._serializer = Serializer(
            channels=transform.out_channels, lanes=target.length, shape=out_shape
        )
        self._input, self._output = Skid(shape=8), Skid(shape=8)
        self.format = PortFormat(
            name=name,
            max_width=max_width,
            in_channels=transform.in_channels,
            in_bytes=value_bytes(in_shape.width),
            out_channels=transform.out_channels,
            out_bytes=value_bytes(out_shape.width),
        )
        loads = "load" in pipeline.signature.members
        self.fill = Fill.of(pipeline) if loads else None
        super().__init__(PortSignature(loads=loads))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pipeline = self.pipeline
        # A register of its own: the net is the largest of all, and nothing waits for it.
        restart = Signal(init=1)
        m.d.sync += restart.eq(self.reset)
        m.submodules.input = source = ResetInserter(restart)(self._input)
        m.submodules.packer = packer = ResetInserter(restart)(self._packer)
        m.submodules.serializer = serializer = ResetInserter(restart)(self._serializer)
        m.submodules.output = target = ResetInserter(restart)(self._output)
        if "restart" in pipeline.signature.members:
            assert pipeline.restart_cycles < RESET_CYCLES
            m.submodules.pipeline = pipeline
            m.d.comb += pipeline.restart.eq(restart)
        else:
            m.submodules.pipeline = ResetInserter(restart)(pipeline)
        # As late as the first byte that they go with.
        m.d.sync += [pipeline.width.eq(self.width), pipeline.height.eq(self.height)]
        if self.fill is not None:
            bus, far = self.load, pipeline.load
            m.d.sync += [
                far.strobe.eq(bus.strobe),
                far.address.eq(bus.address),
                far.data.eq(bus.data),
            ]
        wiring.connect(m, wiring.flipped(self.i), source.i)
        wiring.connect(m, source.o, packer.i)
        wiring.connect(m, packer.o, pipeline.i)
        wiring.connect(m, pipeline.o, serializer.i)
        wiring.connect(m, serializer.o, target.i)
        wiring.connect(m, target.o, wiring.flipped(self.o))
        return m

    def resources(self, device: Device) -> Resources:
        return self.byte_resources(device) + self.pipeline_resources(device)

    def byte_resources(self, device: Device) -> Resources:
        """What turns bytes into beats and back."""
        parts = (self._input, self._packer, self._serializer, self._output)
        return Resources.total(part.resources(device) for part in parts)

    def pipeline_resources(self, device: Device) -> Resources:
        """The pipeline's own answer."""
        own = self.pipeline.resources(device)
        return Resources(dsp=own.dsp, bram=own.bram, lut=own.lut)
