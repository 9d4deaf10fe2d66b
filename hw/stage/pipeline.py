# amaranth: UnusedElaboratable=no
"""A whole transform as a pipeline of engines: pixels in, latents out."""

from __future__ import annotations

from amaranth.hdl import Module, ResetInserter, Shape, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect

from lichen.hw.device.unit import Resources, Unit, lanes_of
from lichen.hw.engine.core import Core
from lichen.hw.engine.feed import FEED_LATENCY
from lichen.hw.engine.gate import FrameGate
from lichen.hw.engine.window import SIZE_BITS, SIZE_LATENCY
from lichen.hw.plan import timing
from lichen.hw.stage.conv import ConvUnit
from lichen.hw.stage.folding import Folding
from lichen.hw.stage.norm import NormUnit
from lichen.network.description import Stage, Transform


class Pipeline(Unit):
    """One convolution engine, and normalization where there is one, per stage.

    Frames follow each other without any command, of one size without a pause. The size belongs
    to a frame's first beat, as if it were part of its payload: another size waits by itself until
    every unit has run empty (`lichen.hw.engine.gate`).

    Parameters
    ----------
    transform : Transform
        Plain convolutions only.
    folding : Folding
    debug : bool
        Adds an observer port ``tap_NAME`` for every stage's output stream, and a bit ``busy_NAME``
        for every unit that says when its array is given operands.
    restartable : bool
        Adds the port ``restart``.

    Members
    -------
    i : In(stream), ``in_lanes`` channels a beat
        Input in raster order, channels in groups; lanes past the last channel are ignored.
    o : Out(stream), ``out_lanes`` channels a beat
        Output likewise; lanes past the last channel are undefined.
    width, height : In(16)
        Of the frame whose first beat is offered; width at most ``folding.max_width``. They do
        not matter with any other beat.
    restart : In(1), where there is one
        Drops all frames in flight, if held for `restart_cycles`. It walks from unit to unit, a
        register each, so that no net spans the device.
    """

    def __init__(
        self,
        transform: Transform,
        folding: Folding,
        *,
        debug: bool = False,
        restartable: bool = False,
    ):
        folding.check(transform)
        self.transform, self.folding, self.debug = transform, folding, debug
        self.restartable = restartable
        self.in_lanes = folding.stages[0].convolution.lanes
        self.out_lanes = folding.stages[-1].chains
        self.units: list[ConvUnit | NormUnit] = []
        self.taps: list[str] = []
        lanes, width = self.in_lanes, folding.max_width
        ports: dict[str, object] = {}
        for stage, source, fold in zip(
            transform.stages, transform.sources, folding.stages, strict=True
        ):
            conv = ConvUnit(
                stage=stage,
                source=source,
                i_lanes=lanes,
                pixels=fold.convolution.pixels,
                chains=fold.chains,
                chain_length=fold.convolution.chain_length,
                lanes=fold.convolution.lanes,
                max_width=width,
                backend=fold.convolution.backend,
            )
            self.units.append(conv)
            if stage.normalization is not None:
                assert fold.normalization is not None
                norm = NormUnit(
                    normalization=stage.normalization,
                    source=stage.requantizer.output,
                    pixels=fold.normalization.pixels,
                    chains=fold.chains,
                    chain_length=fold.normalization.chain_length,
                    lanes=fold.normalization.lanes,
                    backend=fold.normalization.backend,
                )
                self.units.append(norm)
            lanes, width = fold.chains, max(1, stage.convolution.output_size(width))
            if debug:
                ports |= {f"busy_{name}": Out(1) for name in self._names_of(stage)}
                self.taps.append(stage.name)
                payload = self.units[-1].o.payload.shape()
                ports[f"tap_{stage.name}"] = Out(
                    wiring.Signature({"payload": Out(payload), "valid": Out(1), "ready": Out(1)})
                )
        self.gate = FrameGate(
            shape=self.units[0].i.payload.shape(),
            beats=self.units[0].regroup.i_beats,
            settle=SIZE_LATENCY * len(transform.stages),
        )
        out = transform.output
        self._out_shape = Shape(out.bits, signed=out.signed)
        super().__init__(
            wiring.Signature(
                {
                    "i": In(stream.Signature(self.units[0].i.payload.shape())),
                    "o": Out(stream.Signature(lanes_of(self._out_shape, self.out_lanes))),
                    "width": In(SIZE_BITS),
                    "height": In(SIZE_BITS),
                    **({"restart": In(1)} if restartable else {}),
                    **ports,
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        names = iter(self._names())
        gate, source = self.gate, self.gate.o
        size = gate.frame_width, gate.frame_height
        m.d.comb += [
            gate.i.payload.eq(self.i.payload),
            gate.i.valid.eq(self.i.valid),
            self.i.ready.eq(gate.i.ready),
            gate.width.eq(self.width),
            gate.height.eq(self.height),
        ]
        stage = 0
        # Both walk from unit to unit, a register each. A unit that is empty behind units that are
        # stays so.
        restart = self.restart if self.restartable else None
        empty = gate.drain
        for unit in self.units:
            name = next(names)
            if restart is None:
                m.submodules[name] = unit
            else:
                here = Signal(name=f"restart_{name}")
                m.d.sync += here.eq(restart)
                m.submodules[name] = ResetInserter(here)(unit)
                if unit is self.units[0]:
                    m.submodules.gate = ResetInserter(here)(gate)
                restart = here
            empty_here = Signal(name=f"empty_{name}")
            m.d.sync += empty_here.eq(empty & unit.empty)
            empty = empty_here
            connect(m, source, unit.i)
            m.d.comb += unit.width.eq(size[0])
            if isinstance(unit, ConvUnit):
                m.d.comb += unit.height.eq(size[1])
                size = (unit.out_width, unit.out_height)
            if self.debug:
                m.d.comb += getattr(self, f"busy_{name}").eq(unit.core.feed.step)
            source = unit.o
            ends = isinstance(unit, NormUnit) or unit.stage.normalization is None
            if self.debug and ends:
                tap = getattr(self, f"tap_{self.taps[stage]}")
                m.d.comb += [
                    tap.payload.as_value().eq(source.payload.as_value()),
                    tap.valid.eq(source.valid),
                    tap.ready.eq(source.ready),
                ]
                stage += 1
        if restart is None:
            m.submodules.gate = gate
        m.d.comb += gate.empty.eq(empty)
        for lane in range(self.out_lanes):
            m.d.comb += self.o.payload[lane].eq(source.payload[lane])
        m.d.comb += [self.o.valid.eq(source.valid), source.ready.eq(self.o.ready)]
        return m

    @staticmethod
    def _names_of(stage: Stage) -> list[str]:
        names = [stage.name]
        if stage.normalization is not None:
            names.append(f"{stage.name}_norm")
        return names

    def _names(self) -> list[str]:
        return [name for stage in self.transform.stages for name in self._names_of(stage)]

    @property
    def restart_cycles(self) -> int:
        """How long ``restart`` must be high: registers without a reset have to run empty."""
        longest = max(
            FEED_LATENCY + unit.core.array.latency + Core.latency + unit.post.latency
            for unit in self.units
        )
        return longest + len(self.units)

    def resources(self) -> Resources:
        return Resources.total(part.resources() for part in (self.gate, *self.units))

    def stage_resources(self) -> dict[str, Resources]:
        """What each unit takes, by its name; normalizations are called STAGE_norm."""
        return {
            name: unit.resources() for name, unit in zip(self._names(), self.units, strict=True)
        }

    def multipliers(self) -> dict[str, int]:
        """Products a cycle of each unit's array, by its name."""
        shapes = [(unit.core.shape, unit.core.lanes) for unit in self.units]
        return {
            name: shape.pixels * shape.chains * shape.chain_length * lanes
            for name, (shape, lanes) in zip(self._names(), shapes, strict=True)
        }

    def macs(self, height: int, width: int) -> dict[str, int]:
        """Multiplications that a frame needs, by unit; those that fill up an array not counted."""
        needed: list[int] = []
        sizes = self.transform.sizes(height, width)[1:]
        for stage, size in zip(self.transform.stages, sizes, strict=True):
            needed.append(stage.convolution.macs(*size))
            if stage.normalization is not None:
                needed.append(stage.normalization.macs(*size))
        return dict(zip(self._names(), needed, strict=True))

    def predicted_cycles(self, height: int, width: int) -> int:
        """Cycles from the first beat accepted to the last beat leaving, both included.

        For one frame, without stalls from outside. Exact.
        """
        return timing.cycles(self, height, width)
