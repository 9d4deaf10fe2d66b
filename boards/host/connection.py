"""A session over a line: waits, asks again, and says in a sentence what is wrong.

How long it waits follows from the device: while a frame is in flight, states come at a pace that
the device's clock sets, and nothing is taken for silence that is not long in that measure. So a
simulated device may be as slow as it likes. Seconds alone count only before a device has said
anything, and as a lower bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from lichen.boards.host.session import (
    Frame,
    HaltedError,
    Identity,
    LinkError,
    Load,
    Session,
    identity,
)
from lichen.boards.link import protocol
from lichen.boards.link.protocol import Error, ProtocolError
from lichen.errors import UserError

ANSWER_S = 10.0
"""How long a device that has not said anything yet may take to answer."""

ASK_S = 0.3
"""Until a question is asked again."""

SILENCE_S = 2.0
"""The least that counts as silence of a device that has spoken."""

SILENCE_BEATS = 50
"""How many states must have been missed in silence."""

ATTEMPTS = 8
"""How often a frame is begun before a line is given up on."""

READ_S = 0.05
"""How long a read may wait for the first byte."""


class LineError(Exception):
    """A line cannot be used any more; the message says why."""


class Line(Protocol):
    """Bytes to a device and back.

    ``name`` is what people call it. Methods raise LineError when the device is gone.
    """

    name: str

    def write(self, data: bytes) -> None:
        """Send bytes; returns when they are on their way."""

    def read(self, seconds: float) -> bytes:
        """What has come; waits at most so long for the first byte."""

    def close(self) -> None:
        """Let go of the line."""


class SilentError(UserError):
    """Nothing answers, or nothing that makes sense."""


class EmptyError(UserError):
    """A transform that is filled at run time does not hold what it should."""


class TakenError(LinkError):
    """Another host has opened a session."""


class Connection:
    """What is at the other end of a line, and frames through it.

    Parameters
    ----------
    line : Line
    patience_s : float
        How long it may take until something answers.

    Attributes
    ----------
    identity : Identity
    session : Session
        The one that is open, or the last one.
    repeated : int
        How many frames had to be begun again.

    Raises SilentError where nothing answers, UserError where what does speaks another protocol.
    """

    def __init__(self, line: Line, *, patience_s: float = ANSWER_S):
        self.line = line
        self._patience_s = patience_s
        self.session = Session()
        self.repeated = 0
        self._beat_s = 0.0  # the longest time between two states
        self.identity = self._identify()

    def close(self) -> None:
        """End the session and let go of the line."""
        try:
            if self.session.open:
                self.session.end()
                self.line.write(self.session.send())
        except LineError:
            pass
        finally:
            self.line.close()

    def counters(self) -> dict[str, int]:
        """Fields of `protocol.COUNTERS`."""
        self._ask([protocol.PAGE_COUNTERS])
        return protocol.COUNTERS.unpack(self.session.answers[protocol.PAGE_COUNTERS])

    def clock_hz(self) -> float:
        """Frequency of the device's clock, as it has measured it against its oscillator."""
        cycles = self.counters()["ratio"]
        return self.identity.oscillator_hz * cycles / protocol.RATIO_CYCLES

    def loaded(self) -> list[bytes]:
        """Digests of the networks that the transforms hold, zeros for none; empty where none is
        filled at run time."""
        pages = [protocol.PAGE_FILLS + i for i in range(len(self.identity.fills))]
        self._ask(pages)
        return [protocol.FILL.unpack(self.session.answers[page])["digest"] for page in pages]

    def run(
        self,
        frame: Frame | Load,
        progress: Callable[[int], object] = lambda done: None,
        check: Callable[[], object] = lambda: None,
    ) -> bytes:
        """The output of a frame; ``progress`` takes the bytes of input that have arrived.

        ``check`` is called whenever a session has been opened, for others may have used the device
        before. Raises EmptyError for a transform that has to be filled before, UserError when the
        output cannot be had.
        """
        reason, attempts = "", ATTEMPTS
        for attempt in range(ATTEMPTS):
            if attempt == attempts:
                break
            self.repeated += attempt > 0
            try:
                if not self.session.open:
                    self._open()
                    check()
                self.session.submit(frame)
                self._finish(frame, progress)
                return bytes(self.session.output)
            except TakenError:
                raise UserError(
                    f"another program has taken the board on {self.line.name}; "
                    "close it and try again."
                ) from None
            except LinkError as error:
                reason = str(error)
                self.session = Session()
                if isinstance(error, HaltedError):  # which no line brings about
                    if error.errors == Error.EMPTY:
                        raise EmptyError(f"the board on {self.line.name}: {reason}.") from None
                    attempts = min(attempts, attempt + 2)
            except LineError as error:
                raise UserError(f"the board on {self.line.name} is gone ({error}).") from None
        raise UserError(f"the board on {self.line.name} failed {attempts} times: {reason}.")

    def _identify(self) -> Identity:
        try:
            self._ask([protocol.PAGE_CAPABILITIES])
            page = self.session.answers[protocol.PAGE_CAPABILITIES]
            count = page[1] if page[:1] == bytes([protocol.VERSION]) and len(page) > 1 else 0
            self._ask([protocol.PAGE_TRANSFORMS + i for i in range(count)])
            self._ask_fills(count)
            found = identity(self.session.answers)
        except ProtocolError as error:
            raise UserError(
                f"what answers on {self.line.name} is too old or too new: {error}."
            ) from None
        except LineError as error:
            raise UserError(f"the board on {self.line.name} is gone ({error}).") from None
        self.session.heartbeat = found.heartbeat
        self._patience_s = ANSWER_S
        return found

    def _ask_fills(self, transforms: int) -> None:
        """The pages of what fills transforms, where they are filled."""
        answers = self.session.answers
        page = answers[protocol.PAGE_CAPABILITIES]
        if not transforms or any(protocol.CAPABILITIES.unpack(page)["digest"]):
            return
        for transform in range(transforms):
            number = protocol.PAGE_FILLS + transform
            self._ask([number])
            stages = protocol.FILL.unpack(answers[number])["stages"]
            self._ask([protocol.stage_number(transform, i) for i in range(stages)])

    def _ask(self, pages: list[int]) -> None:
        for page in pages:  # one by one: a question replaces one that has no answer yet
            self.session.ask(page)
            self._until(partial(self.session.answers.__contains__, page))

    def _open(self) -> None:
        self.session.heartbeat = self.identity.heartbeat
        self.session.begin()
        self._until(lambda: self.session.open)

    def _until(self, reached: Callable[[], bool]) -> None:
        """Talk until something is reached; UserError where the device does not answer."""
        begin = asked = time.monotonic()
        valid = self.session.tally.damaged
        while not reached():
            self._turn()
            now = time.monotonic()
            if now - begin > max(self._patience_s, SILENCE_BEATS * self._beat_s):
                if self.session.tally.damaged > valid:
                    raise SilentError(
                        f"what comes over {self.line.name} makes no sense; is it the right port, "
                        "and at the right rate?"
                    )
                raise SilentError(
                    f"nothing answers on {self.line.name}; is the board powered and flashed? "
                    "`lichen flash` loads a bitstream."
                )
            if now - asked > max(ASK_S, 4 * self._beat_s):
                self.session.nudge()
                asked = now

    def _turn(self) -> bool:
        """Send what there is and take what comes; whether anything came."""
        data = self.session.send()
        if data:
            self.line.write(data)
        came = self.line.read(READ_S)
        self.session.receive(came)
        return bool(came)

    def _finish(self, frame: Frame | Load, progress: Callable[[int], object]) -> None:
        """Talk until the frame is done."""
        session = self.session
        total = session.waiting
        states, heard = session.states, time.monotonic()
        steady = False  # whether the time since ``heard`` is that between two states
        while session.busy:
            self._turn()
            now = time.monotonic()
            if session.states != states:
                if steady:
                    self._beat_s = max(self._beat_s, now - heard)
                states, heard, steady = session.states, now, True
                done = (total - session.waiting) * protocol.PAYLOAD_BYTES
                progress(min(len(frame.payload), max(0, done)))
            elif now - heard > max(SILENCE_S, SILENCE_BEATS * self._beat_s):
                self._find()
                heard, steady = time.monotonic(), False
        if len(session.output) != frame.expected:
            raise LinkError("output is missing")

    def _find(self) -> None:
        """Nothing is heard of the session: ask whose session is open.

        Raises LinkError where none is, so that the device has forgotten it, and TakenError where it
        is another host's.
        """
        whose = self.counters()["session"]
        if whose == protocol.ENDED:
            raise LinkError("it has been reset")
        if whose != self.session.number:
            raise TakenError("another host has opened it")
        self.session.nudge()


__all__ = [
    "Connection",
    "EmptyError",
    "HaltedError",
    "Line",
    "LineError",
    "SilentError",
    "TakenError",
]
