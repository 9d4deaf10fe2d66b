# amaranth: UnusedElaboratable=no
"""The device's end of `lichen.boards.link.protocol`: pixels to the pipeline, latents back."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, ResetInserter, Shape, Signal, unsigned
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.boards.link import protocol
from lichen.boards.link.fifo import Fifo
from lichen.boards.link.packer import PixelPacker
from lichen.boards.link.protocol import Error, State, Stuck
from lichen.boards.link.sender import PacketSender
from lichen.boards.link.serializer import LatentSerializer
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive

RESET_CYCLES = 256
"""How long a reset lasts: until what is on its way through free-running registers is gone."""


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
    a cycle.
    """

    def __init__(self) -> None:
        self.phase = Signal(_Phase)
        self.errors, self.stuck, self.raised = Signal(8), Signal(8), Signal(8)
        self.status_wanted, self.status_clears = Signal(), Signal()
        # Of the command.
        self.index, self.command = Signal(range(protocol.HEADER_BYTES)), Signal(8)
        self.expected, self.more = Signal(32), Signal()
        # Of the frame's pixels.
        self.column, self.row = Signal(16), Signal(16)
        self.column_last, self.row_last = Signal(16), Signal(16)
        self.pixels_done = Signal()
        self.consumed = Signal(range(protocol.CREDIT_BYTES))
        self.earned, self.owed = Signal(), Signal(4)
        self.quiet = Signal(range(RESET_CYCLES))


class Link(Gateware):
    """Speaks the protocol on two byte streams.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of a pixel and of a latent position, up to 65535.
    in_lanes, out_lanes : int
        Channels per beat of the pixel and latent streams.
    latent_shape : Shape
        Of one latent value, up to 16 bits.
    max_width : int
        Widest frame in pixels, up to 65535.
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
    pixels : Out(stream of in_lanes x unsigned(8))
    latents : In(stream of out_lanes x latent_shape)
    width, height : Out(16)
        Size of the frame in flight.
    reset : Out(1)
        Resets the pipeline.
    busy, failed : Out(1)
        For lamps: a frame is in flight; an error has stopped the device.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        in_lanes: int,
        out_lanes: int,
        latent_shape: Shape,
        max_width: int,
        timeout: int,
        digest: bytes,
    ):
        check_positive(
            in_channels=in_channels,
            out_channels=out_channels,
            in_lanes=in_lanes,
            out_lanes=out_lanes,
            max_width=max_width,
            timeout=timeout,
        )
        for name, value in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("max_width", max_width),
        ):
            if value > 0xFFFF:
                raise ValueError(f"{name} must be at most 65535, not {value!r}")
        if not isinstance(digest, bytes) or len(digest) != 4:
            raise ValueError(f"digest must be 4 bytes, not {digest!r}")
        self.max_width, self.timeout = max_width, timeout
        self._received = Fifo(shape=8, depth=protocol.WINDOW_BYTES)
        self._outgoing = Fifo(shape=8, depth=protocol.LATENT_PACKET_BYTES)
        self._packer = PixelPacker(channels=in_channels, lanes=in_lanes)
        self._serializer = LatentSerializer(
            channels=out_channels, lanes=out_lanes, shape=latent_shape
        )
        self._sender = PacketSender(
            status=protocol.Status(
                max_width=max_width,
                in_channels=in_channels,
                out_channels=out_channels,
                latent_bytes=protocol.latent_bytes(Shape.cast(latent_shape).width),
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
                    "pixels": Out(stream.Signature(data.ArrayLayout(unsigned(8), in_lanes))),
                    "latents": In(stream.Signature(data.ArrayLayout(latent_shape, out_lanes))),
                    "width": Out(16),
                    "height": Out(16),
                    "reset": Out(1),
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
        m.submodules.packer = ResetInserter(self.reset)(self._packer)
        m.submodules.serializer = ResetInserter(self.reset)(self._serializer)
        m.submodules.sender = self._sender
        wiring.connect(m, self._packer.o, wiring.flipped(self.pixels))
        wiring.connect(m, wiring.flipped(self.latents), self._serializer.i)
        wiring.connect(m, self._outgoing.o, self._sender.latents)
        wiring.connect(m, self._sender.o, wiring.flipped(self.tx))

        state = _Registers()
        phase = state.phase
        in_flight = self.busy
        silent = (phase == _Phase.ABORT) | (phase == _Phase.RESET)
        m.d.comb += [
            in_flight.eq((phase == _Phase.PIXELS) | (phase == _Phase.DRAIN)),
            self.failed.eq(phase == _Phase.HALT),
            self.reset.eq(silent),
            flush.eq(phase == _Phase.RESET),
            self.rx.ready.eq(1),
            self._received.i.payload.eq(self.rx.payload),
            self._received.i.valid.eq(self.rx.valid),
            self._packer.i.payload.eq(self._received.o.payload),
            # Between an abort and the status that ends it nothing else may be said.
            self._sender.level.eq(Mux(silent, 0, self._outgoing.level)),
        ]
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

    def _send_latents(self, m: Module, state: _Registers) -> None:
        """Latents to bytes, as many as the host expects."""
        source, target = self._serializer.o, self._outgoing.i
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
                    m.d.sync += state.command.eq(byte)
                    known = (byte == protocol.FRAME) | (byte == protocol.STATUS)
                    m.d.comb += raised.eq(Mux(known, 0, Error.MAGIC))
                for start, width, field in (
                    (4, 2, self.width),
                    (6, 2, self.height),
                    (8, 4, state.expected),
                ):
                    for j in range(width):
                        with m.Case(start + j):
                            m.d.sync += field[8 * j : 8 * j + 8].eq(byte)
            with m.If(index == protocol.HEADER_BYTES - 1):
                m.d.sync += [index.eq(0), state.phase.eq(_Phase.CHECK)]

    def _check_header(self, m: Module, state: _Registers) -> None:
        """Begin what the command asks for."""
        too_wide = self.width > self.max_width
        nothing = (self.width == 0) | (self.height == 0) | (state.expected == 0)
        m.d.sync += [
            state.column.eq(0),
            state.row.eq(0),
            state.column_last.eq(self.width - 1),
            state.row_last.eq(self.height - 1),
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
        """Bytes to pixels until the frame is whole; credits for what was taken."""
        source, packer = self._received.o, self._packer
        with m.If(~state.pixels_done):
            m.d.comb += [
                packer.i.valid.eq(source.valid),
                source.ready.eq(packer.i.ready),
            ]
        with m.If(source.valid & source.ready):
            m.d.sync += state.consumed.eq(state.consumed + 1)
            m.d.comb += state.earned.eq(state.consumed == protocol.CREDIT_BYTES - 1)
        with m.If(packer.pixel):
            m.d.sync += state.column.eq(state.column + 1)
            with m.If(state.column == state.column_last):
                m.d.sync += [state.column.eq(0), state.row.eq(state.row + 1)]
                with m.If(state.row == state.row_last):
                    m.d.sync += state.pixels_done.eq(1)
        with m.If(state.pixels_done & ~packer.o.valid):
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
            | (self.pixels.valid & self.pixels.ready)
            | (self.latents.valid & self.latents.ready)
            | (self.tx.valid & self.tx.ready)
        )
        waited = Signal(range(self.timeout + 1))
        barks = Signal()
        m.d.comb += barks.eq(waited == self.timeout)
        m.d.sync += waited.eq(Mux(moved | ~in_flight | barks, 0, waited + 1))
        with m.If(barks & in_flight):
            hangs = self.pixels.valid & ~self.pixels.ready
            m.d.sync += state.stuck.eq(
                Mux((phase == _Phase.PIXELS) & ~hangs, Stuck.HOST, 0)
                | Mux(hangs, Stuck.PIXELS, 0)
                | Mux(phase == _Phase.DRAIN, Stuck.LATENTS, 0)
            )
        surplus = self._serializer.o.valid & (
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
        parts = (self._received, self._outgoing, self._packer, self._serializer, self._sender)
        return Resources.total(part.resources(device) for part in parts) + Resources(lut=450)
