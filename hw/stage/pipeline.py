# amaranth: UnusedElaboratable=no
"""A whole transform as a pipeline of engines: one tensor in, another one out."""

from __future__ import annotations

from amaranth.hdl import Module, ResetInserter, Shape, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, lanes_of
from lichen.hw.device.load import LoadSignature, image, placed
from lichen.hw.engine.feed import FEED_LATENCY
from lichen.hw.engine.gate import FrameGate
from lichen.hw.engine.row_buffer import SIZE_BITS, SIZE_LATENCY
from lichen.hw.stage import timing
from lichen.hw.stage.folding import ArrayFolding, Folding
from lichen.hw.stage.kind import UnitKind
from lichen.hw.stage.kinds import check_folding, transform_units
from lichen.hw.stage.unit import StageUnit
from lichen.network.description import Transform

DEBUG_BITS = ("busy", "starts", "beats")
"""What a pipeline shows of each unit's array: it is given operands, a group starts; of its output:
a beat leaves."""


class Pipeline(Gateware):
    """One convolution engine, and normalization where there is one, per stage.

    Frames follow each other without any command, of one size without a pause. The size belongs
    to a frame's first beat, as if it were part of its payload: another size waits by itself until
    every unit has run empty (`lichen.hw.engine.gate`).

    Parameters
    ----------
    transform : Transform
        Of `lichen.hw.stage.loaded` where its constants are filled at run time.
    folding : Folding
    debug : bool
        Adds an observer port ``tap_NAME`` for every stage's output stream, and the `DEBUG_BITS`
        ``busy_NAME``, ``starts_NAME`` and ``beats_NAME`` for every unit.
    restartable : bool
        Adds the port ``restart``.

    Attributes
    ----------
    kinds, units, arrays : list
        Of every unit its kind, its gateware, and how its array is folded.
    loadables : dict of str to Loadable
        What is filled at run time, by names as ``conv1.weights``; empty where all is fixed.
    places : dict of str to Place
        Where it lies in the map of the bus.

    Members
    -------
    i : In(stream), ``in_lanes`` channels a beat
        Input in raster order, every pixel in as many beats as its channels take; lanes past the
        last channel are ignored.
    o : Out(stream), ``out_lanes`` channels a beat
        Output likewise; lanes past the last channel are undefined.
    width, height : In(16)
        Of the frame whose first beat is offered; width at most ``folding.max_width``. They do
        not matter with any other beat.
    restart : In(1), where there is one
        Drops all frames in flight, if held for `restart_cycles`. It walks from unit to unit and
        through the parts of each, a register each, so that no net spans the device.
    load : In(LoadSignature), where something is filled at run time
        To be used while no frame is under way. It walks from unit to unit likewise.
    """

    def __init__(
        self,
        transform: Transform,
        folding: Folding,
        *,
        debug: bool = False,
        restartable: bool = False,
    ):
        check_folding(folding, transform)
        self.transform, self.folding, self.debug = transform, folding, debug
        self.restartable = restartable
        self.in_lanes = folding.stages[0].convolution.lanes
        self.out_lanes = folding.stages[-1].chains
        self.kinds: list[UnitKind] = []
        self.units: list[StageUnit] = []
        self.arrays: list[ArrayFolding] = []
        self._taps: dict[str, str] = {}  # stages by the names of their last units
        lanes, width = self.in_lanes, folding.max_width
        ports: dict[str, object] = {}
        for kinds, fold in zip(transform_units(transform), folding.stages, strict=True):
            for kind in kinds:
                array = fold.array(kind.slot)
                unit = kind.component(array, chains=fold.chains, i_lanes=lanes, max_width=width)
                self.kinds.append(kind)
                self.units.append(unit)
                self.arrays.append(array)
                lanes, width = fold.chains, max(1, unit.output_size(1, width)[1])
                if debug:
                    ports |= {f"{bit}_{kind.name}": Out(1) for bit in DEBUG_BITS}
            if debug:
                name = kinds[-1].stage.name
                self._taps[kinds[-1].name] = name
                payload = unit.o.payload.shape()
                ports[f"tap_{name}"] = Out(
                    wiring.Signature({"payload": Out(payload), "valid": Out(1), "ready": Out(1)})
                )
        self.gate = FrameGate(
            shape=self.units[0].i.payload.shape(),
            beats=self.units[0].i_beats,
            settle=SIZE_LATENCY * len(transform.stages),
        )
        self.loadables = {
            f"{kind.name}.{name}": part
            for kind, unit in zip(self.kinds, self.units, strict=True)
            for name, part in unit.loadables.items()
        }
        self.places = placed(self.loadables)
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
                    **({"load": In(LoadSignature())} if self.loadables else {}),
                    **ports,
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        gate, source = self.gate, self.gate.o
        size = gate.frame_width, gate.frame_height
        m.d.comb += [
            gate.i.payload.eq(self.i.payload),
            gate.i.valid.eq(self.i.valid),
            self.i.ready.eq(gate.i.ready),
            gate.width.eq(self.width),
            gate.height.eq(self.height),
        ]
        # Both walk from unit to unit, a register each. A unit that is empty behind units that are
        # stays so.
        restart = self.restart if self.restartable else None
        load = self.load if self.loadables else None
        empty = gate.drain
        for kind, unit in zip(self.kinds, self.units, strict=True):
            name = kind.name
            m.submodules[name] = unit
            if restart is not None:
                unit.restart, restart = restart, unit.restarted
            empty_here = Signal(name=f"empty_{name}")
            m.d.sync += empty_here.eq(empty & unit.empty)
            empty = empty_here
            connect(m, source, unit.i)
            if load is not None:
                load = self._load(m, load, unit, name)
            m.d.comb += [unit.width.eq(size[0]), unit.height.eq(size[1])]
            size = (unit.out_width, unit.out_height)
            if self.debug:
                bits = unit.core.feed.step, unit.core.feed.start, unit.o.valid & unit.o.ready
                for bit, value in zip(DEBUG_BITS, bits, strict=True):
                    m.d.comb += getattr(self, f"{bit}_{name}").eq(value)
            source = unit.o
            if name in self._taps:
                tap = getattr(self, f"tap_{self._taps[name]}")
                m.d.comb += [
                    tap.payload.as_value().eq(source.payload.as_value()),
                    tap.valid.eq(source.valid),
                    tap.ready.eq(source.ready),
                ]
        if restart is None:
            m.submodules.gate = gate
        else:  # the last one: nothing comes to a unit that is being reset
            m.submodules.gate = ResetInserter(restart)(gate)
        m.d.comb += gate.empty.eq(empty)
        for lane in range(self.out_lanes):
            m.d.comb += self.o.payload[lane].eq(source.payload[lane])
        m.d.comb += [self.o.valid.eq(source.valid), source.ready.eq(self.o.ready)]
        return m

    @staticmethod
    def _load(
        m: Module, bus: wiring.PureInterface, unit: StageUnit, name: str
    ) -> wiring.PureInterface:
        """Give a unit the bus behind a register, and the next unit what this one gets."""
        m.d.sync += unit.load.strobe.eq(bus.strobe)
        for member in ("address", "data"):
            value = getattr(bus, member)
            held = Signal(len(value), name=f"load_{member}_{name}", reset_less=True)
            m.d.sync += held.eq(value)
            m.d.comb += getattr(unit.load, member).eq(held)
        return unit.load

    def image(self) -> list[tuple[int, int]]:
        """Addresses and data that fill everything with the transform's constants."""
        return image(self.loadables.values())

    @property
    def names(self) -> list[str]:
        """Of the units; normalizations are called STAGE_norm."""
        return [kind.name for kind in self.kinds]

    @property
    def taps(self) -> list[str]:
        """Stages whose output is observed, in pipeline order."""
        return list(self._taps.values())

    @property
    def restart_cycles(self) -> int:
        """How long ``restart`` must be high: registers without a reset have to run empty."""
        longest = max(FEED_LATENCY + unit.core.array.latency + unit.latency for unit in self.units)
        return longest + sum(len(unit.submodules) for unit in self.units)

    def resources(self, device: Device) -> Resources:
        return Resources.total(part.resources(device) for part in (self.gate, *self.units))

    def stage_resources(self, device: Device) -> dict[str, Resources]:
        """What each unit takes, by its name."""
        return {
            name: unit.resources(device) for name, unit in zip(self.names, self.units, strict=True)
        }

    def multipliers(self) -> dict[str, int]:
        """Products a cycle of each unit's array, by its name."""
        shapes = [(unit.core.shape, unit.core.lanes) for unit in self.units]
        return {
            name: shape.pixels * shape.chains * shape.chain_length * lanes
            for name, (shape, lanes) in zip(self.names, shapes, strict=True)
        }

    def macs(self, height: int, width: int) -> dict[str, int]:
        """Multiplications that a frame needs, by unit; those that fill up an array not counted."""
        needed, size = {}, (height, width)
        for kind, unit in zip(self.kinds, self.units, strict=True):
            size = unit.output_size(*size)
            needed[kind.name] = kind.macs(*size)
        return needed

    def predicted_cycles(self, height: int, width: int) -> int:
        """Cycles from the first beat accepted to the last beat leaving, both included.

        For one frame, without stalls from outside. Exact.
        """
        return timing.cycles(self, height, width)
