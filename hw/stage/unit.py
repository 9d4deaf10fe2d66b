# amaranth: UnusedElaboratable=no
"""A unit of a pipeline: an array, what feeds it and what follows."""

from __future__ import annotations

from abc import abstractmethod

from amaranth.hdl import Module, ResetInserter, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, delayed
from lichen.hw.device.load import Loadable, LoadSignature
from lichen.hw.device.memory import CreditFifo, fifo_depth
from lichen.hw.engine.core import Core
from lichen.hw.engine.normalize import Normalize
from lichen.hw.engine.pixel_buffer import PixelBuffer
from lichen.hw.engine.regroup import Regroup
from lichen.hw.engine.requantize import Requantize
from lichen.hw.engine.row_buffer import SIZE_BITS, RowBuffer

Feeder = RowBuffer | PixelBuffer
Post = Requantize | Normalize


class StageUnit(Gateware):
    """What all units have in common: regrouper, feeder, core, what follows it, output queue.

    Parameters
    ----------
    source, payload : Layout
        Of a beat of the input and of the output.
    regroup, feeder, core : Gateware
        From the input to the sums.
    post : Gateware
        From the sums to the output, of a fixed latency.

    Members
    -------
    i : In(stream)
    o : Out(stream)
    width, height : In(16)
        Of the input.
    out_width, out_height : Out(16)
        Of the output.
    empty : Out(1)
        Between two frames, and nothing of the earlier one is on its way.
    load : In(LoadSignature), only when ``loads``

    Attributes
    ----------
    restart : Signal or None
        What resets everything inside, part after part; set before elaboration.
    restarted : Signal
        Where there is one: resets the last part, as many cycles later as there are `submodules`.
    """

    def __init__(
        self,
        *,
        source: data.Layout,
        payload: data.Layout,
        regroup: Regroup,
        feeder: Feeder,
        core: Core,
        post: Post,
    ):
        self.regroup, self.feeder, self.core, self.post = regroup, feeder, core, post
        self.fifo = CreditFifo(shape=payload, depth=fifo_depth(self.latency))
        self.restart: Signal | None = None
        self.restarted = Signal()
        super().__init__(
            wiring.Signature(
                {
                    "i": In(stream.Signature(source)),
                    "o": Out(stream.Signature(payload)),
                    "width": In(SIZE_BITS),
                    "height": In(SIZE_BITS),
                    "out_width": Out(SIZE_BITS),
                    "out_height": Out(SIZE_BITS),
                    "empty": Out(1),
                    **({"load": In(LoadSignature())} if self.loads else {}),
                }
            )
        )

    @property
    def loads(self) -> bool:
        """Whether its constants are filled at run time."""
        return self.core.rom.loads

    @property
    def loadables(self) -> dict[str, Loadable]:
        """What is filled at run time, by name."""
        if self.post.shifts is None:
            return {}
        return {"weights": self.core.rom, "channels": self.post.rom, "shifts": self.post.shifts}

    def elaborate(self, platform: object) -> Module:
        """All but what lies between regrouper and feeder, and between core and queue."""
        m = Module()
        regroup, core, post, fifo = self.regroup, self.core, self.post, self.fifo
        self._add_parts(m)
        m.d.comb += [
            regroup.i.valid.eq(self.i.valid),
            self.i.ready.eq(regroup.i.ready),
            core.credit.eq(fifo.credit),
            fifo.take.eq(core.o_issue),
            post.beat.eq(core.o_beat),
            fifo.push.eq(delayed(m, core.o_issue, self.latency, "push")),
            self.o.payload.eq(fifo.o.payload),
            self.o.valid.eq(fifo.o.valid),
            fifo.o.ready.eq(self.o.ready),
        ]
        connect(m, self.feeder.feed, core.feed)
        if self.loads:
            connect(m, flipped(self.load), core.load)
            connect(m, flipped(self.load), post.load)
        return m

    def _add_parts(self, m: Module) -> None:
        """Add the submodules; a restart walks through them, a register each.

        Registers side by side would be one to synthesis, and hurry to wherever the farthest part
        lies.
        """
        restart = self.restart
        for name, part in self.submodules.items():
            if restart is None:
                m.submodules[name] = part
            else:
                here = Signal(name=f"restart_{name}")
                m.d.sync += here.eq(restart)
                m.submodules[name] = ResetInserter(here)(part)
                restart = here
        if restart is not None:
            m.d.comb += self.restarted.eq(restart)

    @property
    def i_beats(self) -> int:
        """Beats of the input per pixel."""
        return self.regroup.i_beats

    @property
    def latency(self) -> int:
        """Cycles from a beat's leaving its drain bank to its reaching the output queue."""
        return Core.latency + self.post.latency

    @property
    @abstractmethod
    def feeding(self) -> dict[str, Gateware]:
        """What lies between regrouper and core, by name."""

    @property
    def submodules(self) -> dict[str, Gateware]:
        """What can be restarted, in the order in which data walk through it."""
        behind = {"core": self.core, "post": self.post, "fifo": self.fifo}
        return {"regroup": self.regroup, **self.feeding, **behind}

    @property
    def parts(self) -> tuple[Gateware, ...]:
        """Everything inside that answers for resources."""
        return tuple(self.submodules.values())

    @abstractmethod
    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns made of an input of this size."""

    def line_resources(self, device: Device) -> Resources:
        """What the memories that hold pixels for the array take."""
        return Resources.total(ram.resources(device) for ram in self.feeder.rams)

    def timing(self, height: int, width: int) -> dict[str, int | tuple[int, ...]]:
        """The unit's row of the cycle model for an input of this size, by `cycles.UNIT`'s names."""
        return {
            **self.regroup.timing(),
            **self.feeder.timing(height, width),
            **self.core.shape.timing(),
            "post_latency": self.latency,
            "fifo_depth": self.fifo.depth,
        }

    def resources(self, device: Device) -> Resources:
        return Resources.total(part.resources(device) for part in self.parts)
