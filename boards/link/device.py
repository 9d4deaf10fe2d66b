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
from lichen.hw.device.unit import Resources, Unit, check_positive

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


class Link(Unit):
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
        received, outgoing = self._received, self._outgoing
        packer, serializer, sender = self._packer, self._serializer, self._sender
        flush = Signal()
        m.submodules.received = ResetInserter(flush)(received)
        m.submodules.outgoing = ResetInserter(flush)(outgoing)
        m.submodules.packer = ResetInserter(self.reset)(packer)
        m.submodules.serializer = ResetInserter(self.reset)(serializer)
        m.submodules.sender = sender
        wiring.connect(m, packer.o, wiring.flipped(self.pixels))
        wiring.connect(m, wiring.flipped(self.latents), serializer.i)
        wiring.connect(m, outgoing.o, sender.latents)
        wiring.connect(m, sender.o, wiring.flipped(self.tx))

        phase = Signal(_Phase)
        raised, errors, stuck = Signal(8), Signal(8), Signal(8)
        status_wanted, status_clears = Signal(), Signal()
        in_flight, active = Signal(), Signal()
        byte = received.o.payload

        m.d.comb += [
            self.rx.ready.eq(1),
            received.i.payload.eq(self.rx.payload),
            received.i.valid.eq(self.rx.valid),
            in_flight.eq((phase == _Phase.PIXELS) | (phase == _Phase.DRAIN)),
            active.eq(in_flight | (phase == _Phase.HEADER) | (phase == _Phase.CHECK)),
            self.busy.eq(in_flight),
            self.failed.eq(phase == _Phase.HALT),
        ]

        # Latents to bytes, as many as the host expects.
        expected, more = Signal(32), Signal()
        m.d.comb += [
            outgoing.i.payload.eq(serializer.o.payload),
            outgoing.i.valid.eq(serializer.o.valid & in_flight & more),
            serializer.o.ready.eq(outgoing.i.ready & in_flight & more),
        ]
        with m.If(outgoing.i.valid & outgoing.i.ready):
            m.d.sync += [expected.eq(expected - 1), more.eq(expected != 1)]

        # Packets.
        consumed = Signal(range(protocol.CREDIT_BYTES))
        owed = Signal(4)
        earned = Signal()
        m.d.sync += owed.eq(owed + earned - sender.credit_taken)
        m.d.comb += [
            sender.credit.eq((owed != 0) & in_flight),
            sender.status.eq(status_wanted),
            sender.state.eq(Mux(self.failed, State.HALTED, Mux(in_flight, State.BUSY, State.IDLE))),
            sender.errors.eq(errors),
            sender.stuck.eq(stuck),
        ]
        # Between an abort and the status that ends it nothing else may be said.
        silent = (phase == _Phase.ABORT) | (phase == _Phase.RESET)
        m.d.comb += sender.level.eq(Mux(silent, 0, outgoing.level))
        with m.If(sender.status_taken):
            m.d.sync += [status_wanted.eq(0), status_clears.eq(0)]
            with m.If(status_clears):
                m.d.sync += [errors.eq(0), stuck.eq(0)]

        # Commands and pixels.
        index = Signal(range(protocol.HEADER_BYTES))
        command = Signal(8)
        column, row = Signal(16), Signal(16)
        column_last, row_last = Signal(16), Signal(16)
        pixels_done = Signal()
        quiet = Signal(range(RESET_CYCLES))
        prefix = protocol.MAGIC + bytes([protocol.VERSION])
        m.d.comb += packer.i.payload.eq(byte)

        with m.Switch(phase):
            with m.Case(_Phase.HEADER):
                m.d.comb += received.o.ready.eq(1)
                with m.If(received.o.valid):
                    m.d.sync += index.eq(index + 1)
                    with m.Switch(index):
                        for i, value in enumerate(prefix):
                            with m.Case(i):
                                m.d.comb += raised.eq(Mux(byte == value, 0, Error.MAGIC))
                        with m.Case(3):
                            m.d.sync += command.eq(byte)
                            known = (byte == protocol.FRAME) | (byte == protocol.STATUS)
                            m.d.comb += raised.eq(Mux(known, 0, Error.MAGIC))
                        for i, field in ((4, self.width), (6, self.height)):
                            for j in range(2):
                                with m.Case(i + j):
                                    m.d.sync += field[8 * j : 8 * j + 8].eq(byte)
                        for j in range(4):
                            with m.Case(8 + j):
                                m.d.sync += expected[8 * j : 8 * j + 8].eq(byte)
                    with m.If(index == protocol.HEADER_BYTES - 1):
                        m.d.sync += [index.eq(0), phase.eq(_Phase.CHECK)]
            with m.Case(_Phase.CHECK):
                m.d.sync += [
                    column.eq(0),
                    row.eq(0),
                    column_last.eq(self.width - 1),
                    row_last.eq(self.height - 1),
                    pixels_done.eq(0),
                    more.eq(1),
                    consumed.eq(0),
                    owed.eq(0),
                ]
                with m.If(command == protocol.STATUS):
                    m.d.sync += [status_wanted.eq(1), phase.eq(_Phase.HEADER)]
                with m.Elif(
                    (self.width == 0)
                    | (self.width > self.max_width)
                    | (self.height == 0)
                    | (expected == 0)
                ):
                    m.d.comb += raised.eq(Error.SIZE)
                with m.Else():
                    m.d.sync += phase.eq(_Phase.PIXELS)
            with m.Case(_Phase.PIXELS):
                with m.If(~pixels_done):
                    m.d.comb += [
                        packer.i.valid.eq(received.o.valid),
                        received.o.ready.eq(packer.i.ready),
                    ]
                with m.If(received.o.valid & received.o.ready):
                    m.d.sync += consumed.eq(consumed + 1)
                    m.d.comb += earned.eq(consumed == protocol.CREDIT_BYTES - 1)
                with m.If(packer.pixel):
                    m.d.sync += column.eq(column + 1)
                    with m.If(column == column_last):
                        m.d.sync += [column.eq(0), row.eq(row + 1)]
                        with m.If(row == row_last):
                            m.d.sync += pixels_done.eq(1)
                with m.If(pixels_done & ~packer.o.valid):
                    m.d.sync += phase.eq(_Phase.DRAIN)
            with m.Case(_Phase.DRAIN):
                with m.If(~more & (outgoing.level == 0) & (owed == 0) & sender.idle):
                    m.d.sync += [status_wanted.eq(1), phase.eq(_Phase.HEADER)]
            with m.Case(_Phase.HALT):
                m.d.comb += received.o.ready.eq(1)
            with m.Case(_Phase.ABORT):
                # Wait for the packet that has begun: its length was promised.
                m.d.comb += self.reset.eq(1)
                with m.If(sender.idle & ~status_wanted):
                    m.d.sync += [phase.eq(_Phase.RESET), quiet.eq(0)]
            with m.Case(_Phase.RESET):
                m.d.comb += [self.reset.eq(1), flush.eq(1)]
                m.d.sync += [quiet.eq(quiet + 1), index.eq(0), more.eq(0)]
                with m.If(quiet == RESET_CYCLES - 1):
                    m.d.sync += [
                        status_wanted.eq(1),
                        status_clears.eq(1),
                        phase.eq(_Phase.HEADER),
                    ]

        # The watchdog.
        waited = Signal(range(self.timeout + 1))
        moved = (
            self.rx.valid
            | (self.pixels.valid & self.pixels.ready)
            | (self.latents.valid & self.latents.ready)
            | (self.tx.valid & self.tx.ready)
        )
        barks = Signal()
        m.d.comb += barks.eq(waited == self.timeout)
        m.d.sync += waited.eq(Mux(moved | ~in_flight | barks, 0, waited + 1))
        with m.If(barks & in_flight):
            hangs = self.pixels.valid & ~self.pixels.ready
            m.d.sync += stuck.eq(
                Mux((phase == _Phase.PIXELS) & ~hangs, Stuck.HOST, 0)
                | Mux(hangs, Stuck.PIXELS, 0)
                | Mux(phase == _Phase.DRAIN, Stuck.LATENTS, 0)
            )

        # Errors stop everything that is active; a break gets out of anything.
        surplus = serializer.o.valid & (
            (in_flight & ~more) | ((phase == _Phase.HEADER) & (index == 0))
        )
        failure = Signal(8)
        m.d.comb += failure.eq(
            raised
            | Mux(self.overrun | (self.rx.valid & ~received.i.ready), Error.OVERRUN, 0)
            | Mux(self.framing, Error.FRAMING, 0)
            | Mux(barks & in_flight, Error.WATCHDOG, 0)
            | Mux(surplus, Error.SURPLUS, 0)
        )
        with m.If(active & (failure != 0)):
            m.d.sync += [errors.eq(errors | failure), status_wanted.eq(1), phase.eq(_Phase.HALT)]
        with m.If(self.break_):
            m.d.sync += phase.eq(_Phase.ABORT)
        return m

    def resources(self) -> Resources:
        parts = (self._received, self._outgoing, self._packer, self._serializer, self._sender)
        return Resources.total(part.resources() for part in parts) + Resources(lut=450)
