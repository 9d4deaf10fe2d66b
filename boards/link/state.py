"""What a link's device remembers: the phase it is in, and its registers."""

from __future__ import annotations

from amaranth.hdl import Signal
from amaranth.lib import enum, stream

from lichen.boards.link.protocol import Kind
from lichen.boards.port.port import RESET_CYCLES


class Phase(enum.Enum):
    IDLE = 0
    CHECK = 1
    INPUT = 2
    DRAIN = 3
    HALT = 4
    ABORT = 5
    RESET = 6
    FILL = 7


class Registers:
    """What the parts of the link share.

    Registers but for ``raised`` (an error of a frame's header, which holds for a cycle) and the
    streams to and from the transform of the frame.
    """

    def __init__(self, transforms: int) -> None:
        self.phase = Signal(Phase)
        self.quiet = Signal(range(RESET_CYCLES))
        self.errors = Signal(8)
        self.stuck = Signal(8)
        self.raised = Signal(8)
        # Of the session: the one that is open, and the one that will be.
        self.session = Signal(32)
        self.wanted = Signal(32)
        self.tag = Signal(8)
        self.again = Signal()
        self.said = Signal()
        self.page = Signal(8)
        self.opened_wanted = Signal()
        self.info_wanted = Signal()
        self.state_wanted = Signal()
        # Of the frame: its transform, and what has come of it.
        self.which = Signal(range(max(2, transforms)))
        self.width = Signal(16)
        self.height = Signal(16)
        self.expected = Signal(32)
        self.byte = Signal(17)
        self.byte_last = Signal(17)
        self.column = Signal(16)
        self.row = Signal(16)
        self.column_last = Signal(16)
        self.row_last = Signal(16)
        self.byte_end = Signal()
        self.column_end = Signal()
        self.row_end = Signal()
        self.frame_fits = Signal()
        self.load_fits = Signal()
        # Of the load: its checksum, whether it is one, and whether it has begun. Which transforms
        # hold a whole one.
        self.crc = Signal(32)
        self.is_load = Signal()
        self.filling = Signal()
        self.loaded = Signal(max(2, transforms))
        self.passed = Signal()  # a byte has, to the transform, a cycle ago
        self.input_done = Signal()
        self.counting = Signal()
        self.to = stream.Signature(8).create(path=("to",))
        self.back = stream.Signature(8).create(path=("back",))
        # Of the packet that is coming, settled long before it has arrived: its kind, and whether
        # it names the session that is open.
        self.kinds = {kind: Signal(name=f"is_{kind.name.lower()}") for kind in Kind}
        self.ours = Signal()
        # Counters.
        self.clock = Signal(32)
        self.frames = Signal(32)
        self.cycles = Signal(32)
        self.damaged = Signal(16)
        self.lost = Signal(16)
        self.framing = Signal(16)
