# amaranth: UnusedElaboratable=no
"""The device's end of `lichen.boards.link.protocol`: bytes to the transforms, and back."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Array, Const, Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lichen.boards.link import protocol
from lichen.boards.link.control import Control, packed
from lichen.boards.link.filler import Filler
from lichen.boards.link.intake import Intake
from lichen.boards.link.outlet import Outlet
from lichen.boards.link.protocol import Error, Flag, Kind, Layout, State, Stuck
from lichen.boards.link.receiver import PacketReceiver
from lichen.boards.link.state import Phase, Registers
from lichen.boards.port.fill import Fill
from lichen.boards.port.format import PortFormat
from lichen.boards.port.port import RESET_CYCLES, PortSignature
from lichen.hw.device.device import Device, Resources
from lichen.hw.device.gateware import Gateware, check_positive
from lichen.hw.engine.skid import Skid


def _pages(
    capabilities: bytes, formats: Sequence[PortFormat], fills: Sequence[Fill]
) -> dict[int, bytes]:
    """What never changes, by the numbers of pages."""
    found = {protocol.PAGE_CAPABILITIES: capabilities}
    for number, form in enumerate(formats):
        found[protocol.PAGE_TRANSFORMS + number] = protocol.transform_page(form)
    for number, fill in enumerate(fills):
        found[protocol.PAGE_FILLS + number] = protocol.fill_page(fill)
        for stage, page in enumerate(protocol.stage_pages(fill)):
            found[protocol.stage_number(number, stage)] = page
    return found


def _fields(header: Value, layout: Layout) -> dict[str, Value]:
    """The fields of a payload."""
    return {f.name: header[8 * at : 8 * (at + f.size)] for f, at in layout.places()}


class Link(Gateware):
    """Speaks the protocol on two byte streams, with one transform at a time.

    Parameters
    ----------
    formats : sequence of PortFormat
        Of the transforms; 1 to `protocol.TRANSFORMS_MAX` of them.
    timeout : int
        Cycles without any movement, while the transform could move, after which the watchdog barks.
    digest : bytes
        SHA-256 that tells the host which network this is.
    fills : sequence of Fill
        What the transforms are filled with at run time: of all of them, or of none.
    oscillator_hz, line_hz : int
        Of the line's clock, and bits a second of the line.
    clock_hz : float
        Of the ``sync`` domain.
    heartbeat_s : float or None
        Seconds between two states that are sent unasked; None for those that the line takes for
        `protocol.HEARTBEAT_BYTES`.
    input_slots, output_slots : int
        Packets in sequence that there is room for, powers of two from 2 to 64.

    Members
    -------
    rx : In(stream of 8)
        Never stalled.
    bad : In(1)
        A pulse: a byte was lost on the way to ``rx``.
    hold : In(1)
        Start anew; for three cycles or more.
    tx : Out(stream of 8)
    ratio : In(16)
        See `protocol.COUNTERS`.
    ports : array of In(PortSignature)
        Those of the transforms, in the order of ``formats``.
    busy, failed, open : Out(1)
        For lamps: a frame is in flight; an error has stopped the device; a session is open.
    """

    def __init__(
        self,
        *,
        formats: Sequence[PortFormat],
        timeout: int,
        digest: bytes,
        fills: Sequence[Fill] = (),
        oscillator_hz: int,
        line_hz: int,
        clock_hz: float,
        heartbeat_s: float | None = None,
        input_slots: int = 8,
        output_slots: int = 8,
    ):
        check_positive(timeout=timeout, oscillator_hz=oscillator_hz, line_hz=line_hz)
        if not 1 <= len(formats) <= protocol.TRANSFORMS_MAX:
            raise ValueError(f"1 to {protocol.TRANSFORMS_MAX} transforms, not {len(formats)}")
        if not isinstance(digest, bytes) or len(digest) != protocol.DIGEST_BYTES:
            raise ValueError(f"digest must be {protocol.DIGEST_BYTES} bytes, not {digest!r}")
        if len(fills) not in (0, len(formats)):
            raise ValueError("either all transforms are filled at run time, or none")
        self.formats, self.fills, self.timeout = tuple(formats), tuple(fills), timeout
        if heartbeat_s is None:  # a byte has a start and a stop bit
            heartbeat_s = 10 * protocol.HEARTBEAT_BYTES / line_hz
        self.heartbeat = round(heartbeat_s * clock_hz)
        capabilities = protocol.CAPABILITIES.pack(
            version=protocol.VERSION,
            transforms=len(formats),
            input_slots=input_slots,
            output_slots=output_slots,
            digest=digest,
            oscillator_hz=oscillator_hz,
            line_hz=line_hz,
            heartbeat=self.heartbeat,
        )
        self._receiver = PacketReceiver()
        self._control = Control(pages=_pages(capabilities, self.formats, self.fills))
        self._filler = Filler(words=[fill.words for fill in fills]) if fills else None
        self._intake = Intake(slots=input_slots)
        self._outlet = Outlet(slots=output_slots)
        # The link and a transform may be far apart.
        self._input, self._output = Skid(shape=8), Skid(shape=8)
        super().__init__(
            wiring.Signature(
                {
                    "rx": In(stream.Signature(8)),
                    "bad": In(1),
                    "hold": In(1),
                    "tx": Out(stream.Signature(8)),
                    "ratio": In(16),
                    "ports": In(PortSignature(loads=bool(fills))).array(len(formats)),
                    "busy": Out(1),
                    "failed": Out(1),
                    "open": Out(1),
                }
            )
        )

    def elaborate(self, platform: object) -> Module:
        m, whole = Module(), Module()  # what is here, and that with the parts it consists of
        held = Signal(init=1)
        whole.d.sync += held.eq(self.hold)
        whole.submodules.own = ResetInserter(held)(m)
        state = Registers(len(self.formats))
        phase = state.phase
        silent = Signal()
        flush = Signal(init=1)
        m.d.comb += [
            self.busy.eq((phase == Phase.INPUT) | (phase == Phase.DRAIN) | (phase == Phase.FILL)),
            self.failed.eq(phase == Phase.HALT),
            silent.eq((phase == Phase.ABORT) | (phase == Phase.RESET)),
        ]
        # A cycle late: hundreds of registers, all over the link, and it lasts `RESET_CYCLES`. It is
        # what holds the parts, too, without a choice of two on the way to them.
        m.d.sync += flush.eq(phase == Phase.RESET)
        # A cycle late: 32 bits on the way to all that asks were the slowest path of a whole design.
        m.d.sync += self.open.eq(state.session != protocol.ENDED)
        receiver, intake, outlet = self._receiver, self._intake, self._outlet
        whole.submodules.receiver = ResetInserter(held)(receiver)
        whole.submodules.control = ResetInserter(flush)(self._control)
        whole.submodules.intake = ResetInserter(flush)(intake)
        whole.submodules.outlet = ResetInserter(flush)(outlet)
        whole.submodules.input = ResetInserter(flush)(self._input)
        whole.submodules.output = ResetInserter(flush)(self._output)
        if self._filler is not None:
            whole.submodules.filler = ResetInserter(flush)(self._filler)
        wiring.connect(m, wiring.flipped(self.rx), receiver.i)
        wiring.connect(m, outlet.o, wiring.flipped(self.tx))
        m.d.comb += [
            receiver.bad.eq(self.bad),
            receiver.session.eq(state.session),
            outlet.session.eq(state.session),
            outlet.pause.eq(silent),
            outlet.ends.eq(phase == Phase.DRAIN),
        ]
        self._reach_transform(m, state, reset=silent)
        self._take_packets(m, state, silent)
        self._judge_header(m, state)
        self._speak(m, state)
        self._count(m, state)
        with m.Switch(phase):
            with m.Case(Phase.IDLE):
                with m.If(intake.header_valid):
                    m.d.sync += phase.eq(Phase.CHECK)
            with m.Case(Phase.CHECK):
                self._check_header(m, state)
            with m.Case(Phase.INPUT):
                self._take_input(m, state)
            with m.Case(Phase.DRAIN):
                with m.If(outlet.complete):
                    frames = state.frames + ~state.is_load
                    m.d.sync += [phase.eq(Phase.IDLE), state.frames.eq(frames)]
            with m.Case(Phase.FILL):
                if self._filler is not None:
                    self._take_load(m, state, self._filler)
            with m.Case(Phase.ABORT):
                # Wait for the packet that has begun, so that the line stays in step.
                with m.If(outlet.idle):
                    m.d.sync += [phase.eq(Phase.RESET), state.quiet.eq(0)]
            with m.Case(Phase.RESET):
                self._wait_out_reset(m, state)
        failure = self._failures(m, state)
        with m.If(~silent & (phase != Phase.HALT) & (failure != 0)):
            m.d.sync += [
                state.errors.eq(state.errors | failure),
                state.state_wanted.eq(1),
                phase.eq(Phase.HALT),
            ]
        # Last, for an opening gets out of anything.
        opens = Signal()
        ends = state.kinds[Kind.CLOSE]
        m.d.comb += opens.eq(
            receiver.arrived & ((state.kinds[Kind.OPEN] & ~state.ours) | (ends & ~silent))
        )
        with m.If(opens):
            m.d.sync += [
                phase.eq(Phase.ABORT),
                state.session.eq(protocol.ENDED),
                state.wanted.eq(Mux(ends, protocol.ENDED, receiver.head.start)),
            ]
        return whole

    def _reach_transform(self, m: Module, state: Registers, *, reset: Value) -> None:
        """The streams of the frame's transform; the others rest."""
        source, target, outlet = self._input, self._output, self._outlet
        for number, port in enumerate(self.ports):
            chosen = state.which == number
            m.d.comb += [
                port.width.eq(state.width),
                port.height.eq(state.height),
                port.reset.eq(reset),
                port.i.payload.eq(source.o.payload),
                port.i.valid.eq(source.o.valid & chosen),
                port.o.ready.eq(target.i.ready & chosen),
            ]
        m.d.comb += [
            source.o.ready.eq(Array(port.i.ready for port in self.ports)[state.which]),
            target.i.payload.eq(Array(port.o.payload for port in self.ports)[state.which]),
            target.i.valid.eq(Array(port.o.valid for port in self.ports)[state.which]),
        ]
        if self._filler is not None:
            m.d.comb += [self._filler.which.eq(state.which), self._filler.crc.eq(state.crc)]
            for load, port in zip(self._filler.loads, self.ports, strict=True):
                wiring.connect(m, load, wiring.flipped(port.load))
        # What passes is watched and counted at the link's ends, where all is near.
        wiring.connect(m, state.to, source.i)
        wiring.connect(m, target.o, wiring.flipped(state.back))
        m.d.comb += [
            outlet.i.payload.eq(state.back.payload),
            outlet.i.valid.eq(state.back.valid & self.busy),
            state.back.ready.eq(outlet.i.ready & self.busy),
        ]

    def _take_packets(self, m: Module, state: Registers, silent: Value) -> None:
        """What the host's packets ask for."""
        receiver, intake, outlet = self._receiver, self._intake, self._outlet
        head, arrived, kinds = receiver.head, receiver.arrived, state.kinds
        m.d.sync += [flag.eq(head.kind == kind) for kind, flag in kinds.items()]
        m.d.sync += state.ours.eq(head.start == state.session)
        sequenced = kinds[Kind.FRAME] | kinds[Kind.LOAD] | kinds[Kind.INPUT]
        m.d.comb += [
            intake.w_en.eq(receiver.w_en),
            intake.w_data.eq(receiver.w_data),
            intake.offset.eq(receiver.offset),
            intake.begins.eq(receiver.begins),
            intake.arrived.eq(arrived & sequenced & ~silent & ~self.failed & self.open),
            intake.is_frame.eq(kinds[Kind.FRAME]),
            intake.is_load.eq(kinds[Kind.LOAD]),
            intake.number.eq(head.number),
            intake.length.eq(receiver.length),
        ]
        acks = arrived & kinds[Kind.ACK] & ~silent
        flags = protocol.ACK.places()
        at = {field.name: 8 * place for field, place in flags}
        again = head.start[at["flags"]]
        m.d.comb += [
            outlet.ack.eq(acks),
            outlet.ack_number.eq(head.number),
            outlet.ack_again.eq(again),
        ]
        with m.If(intake.freed):
            m.d.sync += state.state_wanted.eq(1)
        # A gap is told once; then the host asks by an ACK, and is told again.
        with m.If(intake.accepted):
            m.d.sync += [state.again.eq(0), state.said.eq(0)]
        with m.If((intake.gap | receiver.broken) & self.open & ~state.said):
            m.d.sync += [state.again.eq(1), state.said.eq(1), state.state_wanted.eq(1)]
        with m.If(acks):
            m.d.sync += state.tag.eq(head.start[at["tag"] : at["tag"] + 8])
            with m.If(head.start[at["flags"] + 1]):
                m.d.sync += [state.state_wanted.eq(1), state.again.eq(0), state.said.eq(0)]
        with m.If(arrived & kinds[Kind.READ]):
            m.d.sync += [state.info_wanted.eq(1), state.page.eq(head.number)]
        with m.If(arrived & kinds[Kind.OPEN] & state.ours & self.open):
            m.d.sync += state.opened_wanted.eq(1)

    def _speak(self, m: Module, state: Registers) -> None:
        """Packets out of sequence, as they are wanted."""
        control, intake, outlet = self._control, self._intake, self._outlet
        doing = Mux(self.failed, State.HALTED, Mux(self.busy, State.BUSY, State.IDLE))
        m.d.comb += [
            control.opened.eq(state.opened_wanted),
            control.info.eq(state.info_wanted),
            control.state.eq(state.state_wanted & self.open),
            control.session.eq(state.session),
            control.page.eq(state.page),
            control.number.eq(intake.expected),
            control.fields.eq(
                packed(
                    protocol.STATE,
                    {
                        "limit": intake.limit,
                        "sent": outlet.sent,
                        "tag": state.tag,
                        "flags": Mux(state.again, Flag.AGAIN, 0),
                        "state": doing,
                        "errors": state.errors,
                        "stuck": state.stuck,
                        "clock": state.clock,
                    },
                )
            ),
            control.counters.eq(
                packed(
                    protocol.COUNTERS,
                    {
                        "session": state.session,
                        "frames": state.frames,
                        "cycles": state.cycles,
                        "damaged": state.damaged,
                        "lost": state.lost,
                        "framing": state.framing,
                        "ratio": self.ratio,
                    },
                )
            ),
            outlet.ready.eq(control.ready),
            control.taken.eq(outlet.taken),
        ]
        wiring.connect(m, control.o, outlet.single)
        if self._filler is not None:
            filler, of = self._filler, control.digest_of[: len(state.which)]
            holds = self._holds(state, of)
            m.d.comb += [
                filler.told.eq(of),
                filler.told_at.eq(control.digest_at),
                control.digest.eq(Mux(holds, filler.digest, 0)),
            ]
        beat = Signal(range(self.heartbeat))
        with m.If(control.opened_taken):
            m.d.sync += state.opened_wanted.eq(0)
        with m.If(control.info_taken):
            m.d.sync += state.info_wanted.eq(0)
        with m.If(control.state_taken):
            m.d.sync += [state.state_wanted.eq(0), state.again.eq(0)]
        m.d.sync += beat.eq(beat + 1)
        with m.If(control.state_taken):
            m.d.sync += beat.eq(0)
        with m.Elif(beat == self.heartbeat - 1):
            m.d.sync += [beat.eq(0), state.state_wanted.eq(1)]

    def _count(self, m: Module, state: Registers) -> None:
        """Cycles and mishaps."""
        # A cycle late, both of them: what passes has come a long way.
        ends = Signal()
        m.d.sync += state.passed.eq(state.to.valid & state.to.ready)
        m.d.sync += ends.eq(state.back.valid & state.back.ready)
        m.d.sync += state.clock.eq(state.clock + 1)
        m.d.sync += state.framing.eq(state.framing + self.bad)
        m.d.sync += state.damaged.eq(state.damaged + self._receiver.broken)
        m.d.sync += state.lost.eq(state.lost + self._intake.gap)
        # Those up to the last byte of output are the frame's.
        cycles = Signal(32)
        with m.If(state.counting):
            m.d.sync += cycles.eq(cycles + 1)
        with m.If(state.passed & ~state.counting):
            m.d.sync += [state.counting.eq(1), cycles.eq(2)]
        with m.If(ends):
            m.d.sync += state.cycles.eq(cycles)
        with m.If(~self.busy):
            m.d.sync += state.counting.eq(0)
        m.d.comb += self._outlet.cycles.eq(state.cycles)

    def _judge_header(self, m: Module, state: Registers) -> None:
        """Whether the header that waits is of something that can be done, a cycle before it is
        checked: what that decides reaches far."""
        intake = self._intake
        fields = _fields(intake.header, protocol.FRAME)
        which = fields["transform"][: len(state.which)]
        widest = Array(Const(f.max_width, 16) for f in self.formats)[which]
        width, height = fields["width"], fields["height"]
        known = fields["transform"] < len(self.formats)
        something = (width != 0) & (height != 0) & (fields["expected"] != 0)
        m.d.sync += state.frame_fits.eq(known & (width <= widest) & something & intake.header_fits)
        if self.fills:
            fields = _fields(intake.header, protocol.LOAD)
            which = fields["transform"][: len(state.which)]
            takes = Array(Const(fill.words, 32) for fill in self.fills)[which]
            known = fields["transform"] < len(self.fills)
            m.d.sync += state.load_fits.eq(known & (fields["words"] == takes) & intake.header_fits)

    def _check_header(self, m: Module, state: Registers) -> None:
        """Begin the frame or the load that the host announces."""
        with m.If(self._intake.header_is_load):
            self._check_load(m, state)
        with m.Else():
            self._check_frame(m, state)

    def _check_load(self, m: Module, state: Registers) -> None:
        intake = self._intake
        m.d.comb += intake.header_taken.eq(1)
        m.d.sync += state.is_load.eq(1)
        if self._filler is None:
            m.d.comb += state.raised.eq(Error.LOAD)
            return
        fields = _fields(intake.header, protocol.LOAD)
        which = fields["transform"][: len(state.which)]
        m.d.sync += [state.which.eq(which), state.crc.eq(fields["crc"])]
        with m.If(state.load_fits):
            # What it held is no more, whatever becomes of the load.
            m.d.sync += [state.loaded.bit_select(which, 1).eq(0), state.cycles.eq(0)]
            m.d.sync += [state.filling.eq(0), state.phase.eq(Phase.FILL)]
        with m.Else():
            m.d.comb += state.raised.eq(Error.LOAD)

    def _take_load(self, m: Module, state: Registers, filler: Filler) -> None:
        """Bytes to the filler until the load is whole."""
        source, outlet = self._intake.o, self._outlet
        m.d.sync += state.filling.eq(1)
        m.d.comb += [
            filler.begin.eq(~state.filling),
            filler.i.payload.eq(source.payload),
            filler.i.valid.eq(source.valid),
            source.ready.eq(filler.i.ready),
        ]
        with m.If(filler.whole):
            with m.If(filler.right):
                m.d.comb += [outlet.begin.eq(1), outlet.none.eq(1)]
                m.d.sync += state.loaded.bit_select(state.which, 1).eq(1)
                m.d.sync += state.phase.eq(Phase.DRAIN)
            with m.Else():
                m.d.comb += state.raised.eq(Error.LOAD)

    def _check_frame(self, m: Module, state: Registers) -> None:
        intake, outlet = self._intake, self._outlet
        fields = _fields(intake.header, protocol.FRAME)
        which = fields["transform"][: len(state.which)]
        bytes_last = Array(Const(f.in_position - 1, 17) for f in self.formats)[which]
        width, height = fields["width"], fields["height"]
        m.d.comb += intake.header_taken.eq(1)
        m.d.sync += [
            *(s.eq(0) for s in (state.byte, state.column, state.row)),
            state.which.eq(which),
            state.width.eq(width),
            state.height.eq(height),
            state.byte_last.eq(bytes_last),
            state.column_last.eq(width - 1),
            state.row_last.eq(height - 1),
            state.byte_end.eq(bytes_last == 0),
            state.column_end.eq(width == 1),
            state.row_end.eq(height == 1),
            state.input_done.eq(0),
            state.is_load.eq(0),
        ]
        with m.If(~state.frame_fits):
            m.d.comb += state.raised.eq(Error.SIZE)
        with m.Elif(~self._holds(state, which)):
            m.d.comb += state.raised.eq(Error.EMPTY)
        with m.Else():
            m.d.comb += [outlet.begin.eq(1), outlet.expected.eq(fields["expected"])]
            m.d.sync += state.phase.eq(Phase.INPUT)

    def _take_input(self, m: Module, state: Registers) -> None:
        """Bytes to the transform until the frame is whole.

        A byte is counted in the cycle after it has passed, in which none does: whether it does
        comes out of the intake's queue and reaches the counts far too late otherwise.
        """
        source, target = self._intake.o, state.to
        shut = state.input_done | state.passed
        m.d.comb += [
            target.payload.eq(source.payload),
            target.valid.eq(source.valid & ~shut),
            source.ready.eq(target.ready & ~shut),
        ]

        def step(count: Signal, at_end: Signal, last: Signal) -> None:
            """Count on; whether that is the last one is known when the next byte comes."""
            with m.If(at_end):
                m.d.sync += [count.eq(0), at_end.eq(last == 0)]
            with m.Else():
                m.d.sync += [count.eq(count + 1), at_end.eq(count + 1 == last)]

        with m.If(state.passed):
            step(state.byte, state.byte_end, state.byte_last)
            with m.If(state.byte_end):
                step(state.column, state.column_end, state.column_last)
                with m.If(state.column_end):
                    step(state.row, state.row_end, state.row_last)
                    with m.If(state.row_end):
                        m.d.sync += state.input_done.eq(1)
        with m.If(state.input_done):
            m.d.sync += state.phase.eq(Phase.DRAIN)

    def _wait_out_reset(self, m: Module, state: Registers) -> None:
        """Until nothing is left of what was; then say that the session is open."""
        m.d.sync += [
            state.quiet.eq(state.quiet + 1),
            *(s.eq(0) for s in (state.errors, state.stuck, state.tag, state.again, state.said)),
            *(s.eq(0) for s in (state.opened_wanted, state.state_wanted)),
        ]
        with m.If(state.quiet == RESET_CYCLES - 1):
            m.d.sync += [
                state.phase.eq(Phase.IDLE),
                state.session.eq(state.wanted),
                state.opened_wanted.eq(state.wanted != protocol.ENDED),
            ]

    def _failures(self, m: Module, state: Registers) -> Signal:
        """What was wrong a cycle ago, the watchdog's bark among it."""
        intake, outlet, phase = self._intake, self._outlet, state.phase
        hangs = state.to.valid & ~state.to.ready
        silence = (phase == Phase.DRAIN) & outlet.more & ~state.back.valid
        # Output that has no room on the way to the host holds the transform back by right.
        waits = (hangs | silence) & ~(state.back.valid & ~state.back.ready)
        moved = (state.to.valid & state.to.ready) | (state.back.valid & state.back.ready)
        waited = Signal(range(self.timeout + 1))
        barks = Signal()
        m.d.comb += barks.eq(waited == self.timeout)
        m.d.sync += waited.eq(Mux(moved | ~waits | barks, 0, waited + 1))
        with m.If(barks):
            m.d.sync += state.stuck.eq(Mux(hangs, Stuck.INPUT, Stuck.OUTPUT))
        surplus = state.back.valid & (
            (self.busy & ~outlet.more) | ((phase == Phase.IDLE) & self.open)
        )
        in_frame = (phase == Phase.INPUT) | (phase == Phase.FILL)
        drained = (phase == Phase.IDLE) | (phase == Phase.DRAIN)
        # Input where none is due, and a frame or a load within another.
        astray = (intake.o.valid & drained) | (intake.header_valid & in_frame)
        failure = Signal(8)
        m.d.sync += failure.eq(
            state.raised
            | Mux(astray, Error.ORDER, 0)
            | Mux(barks, Error.WATCHDOG, 0)
            | Mux(surplus, Error.SURPLUS, 0)
        )
        return failure

    def _holds(self, state: Registers, which: Value) -> Value:
        """Whether a transform has its constants."""
        return state.loaded.bit_select(which, 1) if self.fills else Const(1)

    def resources(self, device: Device) -> Resources:
        engines: tuple[Gateware, ...]
        engines = (self._receiver, self._control, self._intake, self._outlet)
        if self._filler is not None:
            engines += (self._filler,)
        parts: tuple[Gateware, ...] = (*engines, self._input, self._output)
        return Resources.total(part.resources(device) for part in parts) + Resources(lut=720)
