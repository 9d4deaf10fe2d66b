"""The host's end of the protocol, without a line and without a clock of its own.

What came is given to `Session.receive`, what is to be sent is asked of `Session.send`; nothing
waits. So the same code talks to a serial port, to gateware in a simulator and to a line that loses
bytes. What was lost is told by the order of what comes: a line delivers what it delivers in the
order it was sent in, so a state that answers an ACK has seen all that was sent before that, and a
state that says which packets were sent comes behind them. Time is the device's: its states carry
its clock.
"""

from __future__ import annotations

import secrets
import zlib
from dataclasses import dataclass, field
from typing import Any

from lichen.boards.link import packet, protocol
from lichen.boards.link.packet import Damaged, Packet
from lichen.boards.link.protocol import Error, Flag, Kind, State, Stuck, ahead
from lichen.boards.port.fill import WORD_BYTES, Fill
from lichen.boards.port.format import PortFormat
from lichen.hw.stage.folding import Folding

CLOCK = 1 << 32
"""The device's clock counts modulo this."""


class LinkError(Exception):
    """A frame cannot be finished in this session; the message says why."""


class HaltedError(LinkError):
    """The device has stopped with an error.

    Attributes
    ----------
    errors : Error
    """

    def __init__(self, errors: Error, stuck: Stuck):
        super().__init__(_halted(errors, stuck))
        self.errors = errors


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a device is.

    Attributes
    ----------
    transforms : tuple of PortFormat
    digest : bytes
        The SHA-256 of the network (`lichen.network.identity.static_digest`); zeros where the
        transforms are filled at run time.
    fills : tuple of Fill
        What the transforms are filled with then.
    input_slots, output_slots : int
        Packets in sequence that may be under way.
    oscillator_hz, line_hz : int
        Frequency of the line's clock, bits a second of the line.
    heartbeat : int
        The device's cycles between two states that it sends unasked.
    """

    transforms: tuple[PortFormat, ...]
    digest: bytes
    fills: tuple[Fill, ...] = ()
    input_slots: int
    output_slots: int
    oscillator_hz: int
    line_hz: int
    heartbeat: int


@dataclass(frozen=True, kw_only=True)
class Load:
    """What fills a transform, and the network that it is of.

    Attributes
    ----------
    transform : int
        By its place.
    words : bytes
        See `lichen.boards.port.fill`.
    digest : bytes
        32 of them.
    """

    transform: int
    words: bytes
    digest: bytes

    expected = 0

    @property
    def payload(self) -> bytes:
        return self.words + self.digest

    def header(self) -> tuple[Kind, bytes]:
        """The packet that announces it."""
        count = len(self.words) // WORD_BYTES
        crc = zlib.crc32(self.payload)
        return Kind.LOAD, protocol.LOAD.pack(transform=self.transform, words=count, crc=crc)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What a transform is given, and how much it gives.

    Attributes
    ----------
    transform : int
        By its place.
    width, height : int
        Of the input.
    payload : bytes
        The input.
    expected : int
        Bytes of output.
    """

    transform: int
    width: int
    height: int
    payload: bytes
    expected: int

    def header(self) -> tuple[Kind, bytes]:
        """The packet that announces it; ValueError for a size that no packet can tell."""
        return Kind.FRAME, protocol.FRAME.pack(
            transform=self.transform, width=self.width, height=self.height, expected=self.expected
        )


@dataclass
class Tally:
    """What happened in a session, for reports and tests."""

    sent_bytes: int = 0
    received_bytes: int = 0
    sent_packets: int = 0
    repeated_packets: int = 0
    damaged: int = 0
    repeats_asked: int = 0


@dataclass
class _Poll:
    """An ACK that asks for a state: its tag, and what had been sent before it."""

    tag: int
    upto: int
    clock: int


@dataclass
class _Sequence:
    """Packets in sequence on their way to the device, numbered without end."""

    packets: list[tuple[Kind, bytes]] = field(default_factory=list)
    first: int = 0  # number of packets[0]; those before it have arrived
    next: int = 0  # to be sent
    reached: int = 0  # sent at least once, up to here
    limit: int = 0  # the device has room up to here

    @property
    def end(self) -> int:
        return self.first + len(self.packets)


class Session:
    """Questions, an opening, and frames and loads one after the other.

    Parameters
    ----------
    number : int or None
        Of the session, not 0; a random one if None.

    Attributes
    ----------
    open : bool
    output : bytearray
        Of the frame in flight, so far.
    cycles : int or None
        That the device took for the frame, once it is done; None before. 0 for a load.
    state : dict
        Fields of the last STATE packet.
    states : int
        How many have come.
    answers : dict of int to bytes
        Pages that have come, by their numbers.
    tally : Tally
    """

    def __init__(self, number: int | None = None):
        self.number = 1 + secrets.randbelow(CLOCK - 1) if number is None else number
        self.open = False
        self.output = bytearray()
        self.cycles: int | None = None
        self.state: dict[str, Any] = {}
        self.states = 0
        self.answers: dict[int, bytes] = {}
        self.tally = Tally()
        self.heartbeat = 0
        self._reader = packet.Reader(self.number)
        self._out = bytearray([protocol.DELIMITER])
        self._asked: set[int] = set()
        self._sequence = _Sequence()
        self._expected = 0  # number of the output packet that is due
        self._frame: Frame | Load | None = None
        self._tag = 0
        self._poll: _Poll | None = None
        self._progress_clock = 0
        self._ack_due = self._answer_due = self._again_due = False
        self._complained: tuple[int, int] | None = None  # of which packet, and when

    # What the host wants.

    def ask(self, page: int) -> None:
        """Ask for a page; it will be in ``answers``."""
        self.answers.pop(page, None)
        self._asked.add(page)
        self._put(Kind.READ, page)

    def begin(self) -> None:
        """Ask for the session to be opened."""
        self._put(Kind.OPEN, 0, protocol.SESSION.pack(session=self.number))

    def end(self) -> None:
        """Tell the device that nobody is there any more."""
        self._put(Kind.CLOSE, 0)
        self.open = False

    def submit(self, frame: Frame | Load) -> None:
        """Begin a frame or a load; the session is open, and the one before is done.

        Raises ValueError for a size that no packet can tell.
        """
        header = frame.header()
        size = protocol.PAYLOAD_BYTES
        body = frame.payload
        packets = [(Kind.INPUT, body[i : i + size]) for i in range(0, len(body), size)]
        self._frame, self.output, self.cycles = frame, bytearray(), None
        self._sequence.packets += [header, *packets]

    def nudge(self) -> None:
        """Say again what has not been answered: for when nothing comes."""
        if not self.open:
            self.begin()
        for page in self._asked:
            self._put(Kind.READ, page)
        if self.open:
            self._ask_state()

    @property
    def busy(self) -> bool:
        """A frame is in flight."""
        return self._frame is not None and self.cycles is None

    @property
    def arrived(self) -> int:
        """Packets of the frame that the device is known to have, its header among them."""
        return self._sequence.first

    @property
    def waiting(self) -> int:
        """Packets of the frame that the device is not known to have."""
        return len(self._sequence.packets)

    # What goes over the line.

    def send(self, room: int = 1 << 16) -> bytes:
        """The bytes to send now: at most ``room`` and one packet more."""
        if self._ack_due or self._answer_due or self._again_due:
            self._acknowledge()
        sequence = self._sequence
        while len(self._out) < room and sequence.next < min(sequence.end, sequence.limit):
            kind, payload = sequence.packets[sequence.next - sequence.first]
            self._put(kind, sequence.next % protocol.NUMBERS, payload)
            if sequence.next < sequence.reached:
                self.tally.repeated_packets += 1
            sequence.next += 1
            sequence.reached = max(sequence.reached, sequence.next)
        data, self._out = bytes(self._out), bytearray()
        self.tally.sent_bytes += len(data)
        return data

    def receive(self, data: bytes) -> None:
        """What came.

        Raises HaltedError when the device has stopped with an error.
        """
        self.tally.received_bytes += len(data)
        for item in self._reader.feed(data):
            if isinstance(item, Damaged):
                self.tally.damaged += 1
            else:
                self._take(item)

    def _put(self, kind: Kind, number: int, payload: bytes = b"") -> None:
        self._out += packet.encode(kind, number, payload, self.number)
        self.tally.sent_packets += 1

    def _acknowledge(self) -> None:
        """An ACK with all that there is to say."""
        flags = Flag(0)
        if self._answer_due:
            flags |= Flag.ANSWER
            self._tag = (self._tag + 1) % protocol.NUMBERS
            self._poll = _Poll(self._tag, self._sequence.next, self._clock)
        if self._again_due:
            flags |= Flag.AGAIN
            self.tally.repeats_asked += 1
        payload = protocol.ACK.pack(tag=self._tag, flags=flags)
        self._put(Kind.ACK, self._expected % protocol.NUMBERS, payload)
        self._ack_due = self._answer_due = self._again_due = False

    @property
    def _clock(self) -> int:
        return int(self.state.get("clock", 0))

    def _since(self, clock: int) -> int:
        """Cycles of the device since it told that clock."""
        return (self._clock - clock) % CLOCK

    def _ask_state(self) -> None:
        self._answer_due = True

    def _take(self, item: Packet) -> None:
        kind, number, payload = item
        if kind == Kind.OPENED:
            session = protocol.SESSION.unpack(payload)["session"]
            if session == self.number and not self.open:
                self.open = True
                self._ask_state()  # which tells how much room there is
        elif kind == Kind.INFO:
            self._asked.discard(number)
            self.answers[number] = payload
        elif kind == Kind.STATE and self.open:
            self._take_state(number, protocol.STATE.unpack(payload))
        elif kind in (Kind.OUTPUT, Kind.DONE) and self.open:
            self._take_output(kind, number, payload)

    def _take_output(self, kind: Kind, number: int, payload: bytes) -> None:
        distance = ahead(number, self._expected)
        if distance > 0:
            self._complain()
            return
        self._ack_due = True
        if distance < 0 or self._frame is None:
            return
        self._expected += 1
        if kind == Kind.OUTPUT:
            self.output += payload
        else:
            self.cycles = protocol.DONE.unpack(payload)["cycles"]

    def _complain(self) -> None:
        """Output was lost: ask for it again, once until the device has had time to answer."""
        seen = self._complained
        if seen is not None and seen[0] == self._expected:
            if self._since(seen[1]) <= self.heartbeat:
                return
        self._complained = self._expected, self._clock
        self._again_due = True

    def _take_state(self, number: int, state: dict[str, Any]) -> None:
        self.state = state
        self.states += 1
        if state["state"] == State.HALTED:
            raise HaltedError(Error(state["errors"]), Stuck(state["stuck"]))
        sequence, poll = self._sequence, self._poll
        reached = sequence.first + (number - sequence.first) % protocol.NUMBERS
        if reached > sequence.reached:
            raise LinkError("the device speaks of packets that were never sent")
        if reached > sequence.first:
            del sequence.packets[: reached - sequence.first]
            sequence.first = reached
            sequence.next = max(sequence.next, reached)
            self._progress_clock = state["clock"]
        sequence.limit = reached + (state["limit"] - number) % protocol.NUMBERS
        if ahead(state["sent"], self._expected) > 0:
            self._complain()
        answered = poll is not None and state["tag"] == poll.tag
        if answered:
            self._poll = None
        if sequence.first == sequence.next:
            self._progress_clock = state["clock"]  # nothing is under way
            return
        missing = answered and poll is not None and reached < poll.upto
        told = self._poll is None and Flag.AGAIN in Flag(state["flags"])
        if missing or told:
            self._go_back()
        elif self._poll is None and self._since(self._progress_clock) > self.heartbeat:
            self._ask_state()
        elif self._poll is not None and self._since(self._poll.clock) > 2 * self.heartbeat:
            self._ask_state()  # the question or its answer was lost

    def _go_back(self) -> None:
        """Send again from the first packet that has not arrived, behind a new question."""
        self._sequence.next = self._sequence.first
        self._progress_clock = self._clock
        self._ask_state()
        self._acknowledge()


def _halted(errors: Error, stuck: Stuck) -> str:
    """What has stopped a device, for people."""
    if Error.WATCHDOG in errors:
        which = "takes no input" if Stuck.INPUT in stuck else "gives no output"
        return f"the transform {which} any more"
    names = {
        Error.SIZE: "the frame does not suit its transform",
        Error.ORDER: "packets came in an order that makes no sense",
        Error.SURPLUS: "the transform gives more output than the frame has",
        Error.LOAD: "what was loaded does not suit the transform",
        Error.EMPTY: "the transform holds no network",
    }
    found = [text for error, text in names.items() if error in errors]
    return " and ".join(found) or f"an error that this version does not know ({int(errors)})"


def identity(answers: dict[int, bytes]) -> Identity:
    """What the pages of a device say.

    Raises ProtocolError for another version of the protocol and for pages that make no sense;
    KeyError where one of them is missing.
    """
    page = answers[protocol.PAGE_CAPABILITIES]
    if page[:1] != bytes([protocol.VERSION]):
        raise protocol.ProtocolError(
            f"it speaks version {page[:1].hex() or 'none'} of the protocol"
        )
    values = protocol.CAPABILITIES.unpack(page)
    values.pop("version")
    first = protocol.PAGE_TRANSFORMS
    pages = [answers[first + i] for i in range(values.pop("transforms"))]
    forms = tuple(map(protocol.transform_of, pages))
    fills = (
        (_fill(answers, *form) for form in enumerate(forms)) if not any(values["digest"]) else ()
    )
    return Identity(transforms=forms, fills=tuple(fills), **values)


def _fill(answers: dict[int, bytes], transform: int, form: PortFormat) -> Fill:
    """What a transform is filled with."""
    values = protocol.FILL.unpack(answers[protocol.PAGE_FILLS + transform])
    pages = [answers[protocol.stage_number(transform, i)] for i in range(values["stages"])]
    stages = [protocol.stage_of(page, f"stage{i + 1}") for i, page in enumerate(pages)]
    return Fill(
        templates=tuple(template for template, _ in stages),
        folding=Folding(max_width=form.max_width, stages=[folding for _, folding in stages]),
        words=values["words"],
        map=values["map"],
    )
