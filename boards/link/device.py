# amaranth: UnusedElaboratable=no
"""The device's end of `lichen.boards.link.protocol`: bytes to the transforms, and back."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Array, Const, Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import enum, stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.boards.link import protocol
from lichen.boards.link.fifo import Fifo
from lichen.boards.link.protocol import Error, State, Stuck
from lichen.boards.link.sender import PacketSender
from lichen.boards.port.format import PortFormat
from lichen.boards.port.port import RESET_CYCLES, PortSignature
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive


class _Phase(enum.Enum):
    HEADER = 0
    CHECK = 1
    PIXELS = 2
    DRAIN = 3
    HALT = 4
    ABORT = 5
    RESET = 6


class _Registers:
    """What the parts of the link share.

    Registers but for ``raised`` (an error of the header) and ``earned`` (a credit), which hold for
    a cycle, and the streams to and from the transform of the frame.
    """

    def __init__(self, transforms: int) -> None:
        self.phase = Signal(_Phase)
        self.errors, self.stuck, self.raised = Signal(8), Signal(8), Signal(8)
        self.status_wanted, self.status_clears = Signal(), Signal()
        # Of the command.
        self.index, self.command = Signal(range(protocol.HEADER_BYTES)), Signal(8)
        self.expected, self.more = Signal(32), Signal()
        # Of the frame: its transform, and what has come of it.
        self.which = Signal(range(max(2, transforms)))
        self.width, self.height = Signal(16), Signal(16)
        self.byte, self.byte_last = Signal(17), Signal(17)
        self.column, self.row = Signal(16), Signal(16)
        self.column_last, self.row_last = Signal(16), Signal(16)
        self.pixels_done = Signal()
        self.consumed = Signal(range(protocol.CREDIT_BYTES))
        self.earned, self.owed = Signal(), Signal(4)
        self.quiet = Signal(range(RESET_CYCLES))
        self.to, self.back = (stream.Signature(8).create() for _ in range(2))


class Link(Gateware):
    """Speaks the protocol on two byte streams, with one transform at a time.

    Parameters
    ----------
    formats : sequence of PortFormat
        Of the transforms; 1 to `protocol.TRANSFORMS` of them.
    timeout : int
        Cycles without any movement, while a frame is in flight, after which the watchdog barks.
    digest : bytes
        4 bytes that tell the host which network this is.

    Members
    -------
    rx : In(stream of 8)
        Never stalled; a byte that finds no room is an overrun.
    overrun, framing, break_ : In(1)
        Pulses of the receiver.
    tx : Out(stream of 8)
    ports : array of In(PortSignature)
        Those of the transforms, in the order of ``formats``.
    busy, failed : Out(1)
        For lamps: a frame is in flight; an error has stopped the device.
    """

    def __init__(self, *, formats: Sequence[PortFormat], timeout: int, digest: bytes):
        check_positive(timeout=timeout)
        if not 1 <= len(formats) <= protocol.TRANSFORMS:
            raise ValueError(f"1 to {protocol.TRANSFORMS} transforms, not {len(formats)}")
        if not isinstance(digest, bytes) or len(digest) != 4:
            raise ValueError(f"digest must be 4 bytes, not {digest!r}")
        self.formats, self.timeout = tuple(formats), timeout
        self._received = Fifo(shape=8, depth=protocol.WINDOW_BYTES)
        self._outgoing = Fifo(shape=8, depth=protocol.LATENT_PACKET_BYTES)
        first = self.formats[0]
        self._sender = PacketSender(
            status=protocol.Status(
                max_width=first.max_width,
                in_channels=first.in_channels,
                out_channels=first.out_channels,
                latent_bytes=first.out_bytes,
                digest=digest,
            )
        )
        super().__init__(
            wiring.Signature(
                {
                    "rx": In(stream.Signature(8)),
                    "overrun": In(1),
                    "framing": In(1),
                    "break_": In(1),
                    "tx": Out(stream.Signature(8)),
                    "ports": In(PortSignature()).array(len(formats)),
                    "busy": Out(1),
                    "failed": Out(1),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        flush = Signal()
        m.submodules.received = ResetInserter(flush)(self._received)
        m.submodules.outgoing = ResetInserter(flush)(self._outgoing)
        m.submodules.sender = self._sender
        wiring.connect(m, self._outgoing.o, self._sender.latents)
        wiring.connect(m, self._sender.o, wiring.flipped(self.tx))

        state = _Registers(len(self.formats))
        phase = state.phase
        in_flight = self.busy
        silent = (phase == _Phase.ABORT) | (phase == _Phase.RESET)
        m.d.comb += [
            in_flight.eq((phase == _Phase.PIXELS) | (phase == _Phase.DRAIN)),
            self.failed.eq(phase == _Phase.HALT),
            flush.eq(phase == _Phase.RESET),
            self.rx.ready.eq(1),
            self._received.i.payload.eq(self.rx.payload),
            self._received.i.valid.eq(self.rx.valid),
            # Between an abort and the status that ends it nothing else may be said.
            self._sender.level.eq(Mux(silent, 0, self._outgoing.level)),
        ]
        self._reach_transform(m, state, reset=silent)
        self._send_latents(m, state)
        self._send_status(m, state)
        with m.Switch(phase):
            with m.Case(_Phase.HEADER):
                self._take_header(m, state)
            with m.Case(_Phase.CHECK):
                self._check_header(m, state)
            with m.Case(_Phase.PIXELS):
                self._take_pixels(m, state)
            with m.Case(_Phase.DRAIN):
                said = (self._outgoing.level == 0) & (state.owed == 0) & self._sender.idle
                with m.If(~state.more & said):
                    m.d.sync += [state.status_wanted.eq(1), phase.eq(_Phase.HEADER)]
            with m.Case(_Phase.HALT):
                m.d.comb += self._received.o.ready.eq(1)
            with m.Case(_Phase.ABORT):
                # Wait for the packet that has begun: its length was promised.
                with m.If(self._sender.idle & ~state.status_wanted):
                    m.d.sync += [phase.eq(_Phase.RESET), state.quiet.eq(0)]
            with m.Case(_Phase.RESET):
                self._wait_out_reset(m, state)
        # Errors stop everything that is active; a break gets out of anything.
        active = in_flight | (phase == _Phase.HEADER) | (phase == _Phase.CHECK)
        failure = self._failures(m, state)
        with m.If(active & (failure != 0)):
            m.d.sync += [
                state.errors.eq(state.errors | failure),
                state.status_wanted.eq(1),
                phase.eq(_Phase.HALT),
            ]
        with m.If(self.break_):
            m.d.sync += phase.eq(_Phase.ABORT)
        return m

    def _reach_transform(self, m: Module, state: _Registers, *, reset: Value) -> None:
        """The streams of the frame's transform; the others rest."""
        for number, port in enumerate(self.ports):
            chosen = state.which == number
            m.d.comb += [
                port.width.eq(state.width),
                port.height.eq(state.height),
                port.reset.eq(reset),
                port.i.payload.eq(state.to.payload),
                port.i.valid.eq(state.to.valid & chosen),
                port.o.ready.eq(state.back.ready & chosen),
            ]
        m.d.comb += [
            state.to.payload.eq(self._received.o.payload),
            state.to.ready.eq(Array(port.i.ready for port in self.ports)[state.which]),
            state.back.payload.eq(Array(port.o.payload for port in self.ports)[state.which]),
            state.back.valid.eq(Array(port.o.valid for port in self.ports)[state.which]),
        ]

    def _send_latents(self, m: Module, state: _Registers) -> None:
        """Latents to bytes, as many as the host expects."""
        source, target = state.back, self._outgoing.i
        opened = self.busy & state.more
        m.d.comb += [
            target.payload.eq(source.payload),
            target.valid.eq(source.valid & opened),
            source.ready.eq(target.ready & opened),
        ]
        with m.If(target.valid & target.ready):
            m.d.sync += [
                state.expected.eq(state.expected - 1),
                state.more.eq(state.expected != 1),
            ]

    def _send_status(self, m: Module, state: _Registers) -> None:
        """Credits and status, as they are owed."""
        sender = self._sender
        doing = Mux(self.failed, State.HALTED, Mux(self.busy, State.BUSY, State.IDLE))
        m.d.sync += state.owed.eq(state.owed + state.earned - sender.credit_taken)
        m.d.comb += [
            sender.credit.eq((state.owed != 0) & self.busy),
            sender.status.eq(state.status_wanted),
            sender.state.eq(doing),
            sender.errors.eq(state.errors),
            sender.stuck.eq(state.stuck),
        ]
        with m.If(sender.status_taken):
            m.d.sync += [state.status_wanted.eq(0), state.status_clears.eq(0)]
            with m.If(state.status_clears):
                m.d.sync += [state.errors.eq(0), state.stuck.eq(0)]

    def _take_header(self, m: Module, state: _Registers) -> None:
        """The bytes of a command, each to its field."""
        prefix = protocol.MAGIC + bytes([protocol.VERSION])
        source = self._received.o
        byte, index, raised = source.payload, state.index, state.raised
        m.d.comb += source.ready.eq(1)
        with m.If(source.valid):
            m.d.sync += index.eq(index + 1)
            with m.Switch(index):
                for i, value in enumerate(prefix):
                    with m.Case(i):
                        m.d.comb += raised.eq(Mux(byte == value, 0, Error.MAGIC))
                with m.Case(3):
                    number = (byte - protocol.FRAME)[:8]
                    frame = number < len(self.formats)
                    m.d.sync += state.command.eq(byte)
                    with m.If(frame):
                        m.d.sync += state.which.eq(number)
                    known = frame | (byte == protocol.STATUS)
                    m.d.comb += raised.eq(Mux(known, 0, Error.MAGIC))
                for start, width, field in (
                    (4, 2, state.width),
                    (6, 2, state.height),
                    (8, 4, state.expected),
                ):
                    for j in range(width):
                        with m.Case(start + j):
                            m.d.sync += field[8 * j : 8 * j + 8].eq(byte)
            with m.If(index == protocol.HEADER_BYTES - 1):
                m.d.sync += [index.eq(0), state.phase.eq(_Phase.CHECK)]

    def _check_header(self, m: Module, state: _Registers) -> None:
        """Begin what the command asks for."""
        widest = Array(Const(f.max_width, 16) for f in self.formats)[state.which]
        bytes_last = Array(Const(f.in_position - 1, 17) for f in self.formats)[state.which]
        too_wide = state.width > widest
        nothing = (state.width == 0) | (state.height == 0) | (state.expected == 0)
        m.d.sync += [
            *(s.eq(0) for s in (state.byte, state.column, state.row)),
            state.byte_last.eq(bytes_last),
            state.column_last.eq(state.width - 1),
            state.row_last.eq(state.height - 1),
            state.pixels_done.eq(0),
            state.more.eq(1),
            state.consumed.eq(0),
            state.owed.eq(0),
        ]
        with m.If(state.command == protocol.STATUS):
            m.d.sync += [state.status_wanted.eq(1), state.phase.eq(_Phase.HEADER)]
        with m.Elif(too_wide | nothing):
            m.d.comb += state.raised.eq(Error.SIZE)
        with m.Else():
            m.d.sync += state.phase.eq(_Phase.PIXELS)

    def _take_pixels(self, m: Module, state: _Registers) -> None:
        """Bytes to the transform until the frame is whole; credits for what was taken."""
        source, target = self._received.o, state.to
        with m.If(~state.pixels_done):
            m.d.comb += [target.valid.eq(source.valid), source.ready.eq(target.ready)]
        with m.If(source.valid & source.ready):
            m.d.sync += [state.consumed.eq(state.consumed + 1), state.byte.eq(state.byte + 1)]
            m.d.comb += state.earned.eq(state.consumed == protocol.CREDIT_BYTES - 1)
            with m.If(state.byte == state.byte_last):
                m.d.sync += [state.byte.eq(0), state.column.eq(state.column + 1)]
                with m.If(state.column == state.column_last):
                    m.d.sync += [state.column.eq(0), state.row.eq(state.row + 1)]
                    with m.If(state.row == state.row_last):
                        m.d.sync += state.pixels_done.eq(1)
        with m.If(state.pixels_done):
            m.d.sync += state.phase.eq(_Phase.DRAIN)

    def _wait_out_reset(self, m: Module, state: _Registers) -> None:
        """Until nothing is left of the old frame; then say so."""
        m.d.sync += [state.quiet.eq(state.quiet + 1), state.index.eq(0), state.more.eq(0)]
        with m.If(state.quiet == RESET_CYCLES - 1):
            m.d.sync += [
                state.status_wanted.eq(1),
                state.status_clears.eq(1),
                state.phase.eq(_Phase.HEADER),
            ]

    def _failures(self, m: Module, state: _Registers) -> Signal:
        """What is wrong in this cycle, the watchdog's bark among it."""
        in_flight, phase = self.busy, state.phase
        moved = (
            self.rx.valid
            | (state.to.valid & state.to.ready)
            | (state.back.valid & state.back.ready)
            | (self.tx.valid & self.tx.ready)
        )
        waited = Signal(range(self.timeout + 1))
        barks = Signal()
        m.d.comb += barks.eq(waited == self.timeout)
        m.d.sync += waited.eq(Mux(moved | ~in_flight | barks, 0, waited + 1))
        with m.If(barks & in_flight):
            hangs = state.to.valid & ~state.to.ready
            m.d.sync += state.stuck.eq(
                Mux((phase == _Phase.PIXELS) & ~hangs, Stuck.HOST, 0)
                | Mux(hangs, Stuck.PIXELS, 0)
                | Mux(phase == _Phase.DRAIN, Stuck.LATENTS, 0)
            )
        surplus = state.back.valid & (
            (in_flight & ~state.more) | ((phase == _Phase.HEADER) & (state.index == 0))
        )
        no_room = self.rx.valid & ~self._received.i.ready
        failure = Signal(8)
        m.d.comb += failure.eq(
            state.raised
            | Mux(self.overrun | no_room, Error.OVERRUN, 0)
            | Mux(self.framing, Error.FRAMING, 0)
            | Mux(barks & in_flight, Error.WATCHDOG, 0)
            | Mux(surplus, Error.SURPLUS, 0)
        )
        return failure

    def resources(self, device: Device) -> Resources:
        parts = (self._received, self._outgoing, self._sender)
        own = Resources(lut=450 + 30 * (len(self.formats) - 1))
        return Resources.total(part.resources(device) for part in parts) + own
