"""A TCP connection to a primary: questions about any number of zones, and NOTIFYs among their answers.

It is read as it comes: each message goes to whoever has asked, so that nothing waits in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from kdns.errors import FormatError
from kdns.upstream.faults import told
from kdns.wire.tsig import Key
from kdns.zone import inbound
from kdns.zone.inbound import MOST_MEMORY, Have, LineageError, Question, RcodeError

TIMEOUT = 5.0
"""Seconds for a connection to be there, and between the messages of a transfer."""
LONGEST = 600.0
"""Seconds for a transfer."""
MESSAGE = 30.0
"""Seconds for a message, once its length is here."""
QUIET = 5.0
"""Seconds without a message after which something is asked, to see whether anybody is there."""
UNSENT = 64 << 10
"""Bytes that the primary may leave untaken."""
USELESS, USELESS_RATE = 10_000, 100
"""NOTIFYs at once, and in a second, for zones that are not ours, or that are about to be asked for as it is."""
_BUFFER = 64 << 10
_LENGTH = 2

Address = tuple[str, int]


@dataclass(slots=True)
class _Asked:
    """A question that is under way. until: when all of the answer has to be here."""

    question: Question
    done: asyncio.Future[None]
    timeout: asyncio.Timeout
    until: float


class Primary:
    """A connection, used in one event loop.

    zones: those that are followed on it. refused: those that it did not give; the next one may. users: how many want it
    open. opened, heard: when it was, and when something came last, in seconds since 1970. ended: why it is not open any
    more, "" as long as it is. follows: zones can be followed on it (`kdns.wire.following`); known: is set when that is
    known, or it has ended.
    """

    def __init__(
        self,
        address: Address,
        key: Key | None,
        notified: Callable[[bytes], bool],
        quiet: Callable[[Primary], None],
        ended: Callable[[Primary], None],
        room: int = MOST_MEMORY,
    ) -> None:
        """notified: called with a zone; False if that is of no use. quiet: called when nothing came for a while. ended:
        called once, if it was open. room: bytes for the records of a transfer."""
        self.address = address
        self.zones: dict[bytes, None] = {}
        self.refused: dict[bytes, None] = {}
        self.users = 0
        self.heard = 0.0
        self.ended = ""
        self.opened = 0.0
        self.follows = False
        self.known = asyncio.Event()
        self._key = key
        self._room = room
        self._useless = self._counted = 0.0
        self._call = (notified, quiet, ended)
        self._asked: dict[int, _Asked] = {}
        self._opening: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Connect, or wait for that, if it is not done yet. Raises OSError."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._connect())
        await asyncio.shield(self._opening)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(TIMEOUT):
                reader, self._writer = await asyncio.open_connection(*self.address, limit=_BUFFER)
        except OSError as error:
            self.close(str(error) or "it does not answer in time")
            raise
        self.opened = self.heard = time.time()
        self._reading = asyncio.create_task(self._read(reader))

    def close(self, why: str = "it was closed") -> None:
        """Let go of it. Who waits for an answer gets a ConnectionError."""
        if self.ended:
            return
        self.ended = why
        self.known.set()
        for task in (self._opening, self._reading):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        if self._writer is not None:
            self._writer.transport.abort()
        for asked in self._asked.values():
            if not asked.done.done():
                asked.done.set_exception(ConnectionError(why))
        if self._writer is not None:
            self._call[2](self)

    # Questions

    async def ask(
        self, origin: bytes, rtype: int, have: Have | None = None, *, follow: bool = False, patience: float = TIMEOUT
    ) -> Question:
        """Ask about a zone; the parameters are those of Question. patience: seconds until the answer begins.

        Raises FormatError, OSError.
        """
        if self.ended or self._writer is None:
            raise ConnectionError(self.ended)
        ident = (set(random.sample(range(1 << 16), len(self._asked) + 1)) - self._asked.keys()).pop()
        question = Question(ident, origin, rtype, have, self._key, time.time(), follow=follow, room=self._room)
        loop = asyncio.get_running_loop()
        timeout = asyncio.timeout(patience)
        asked = self._asked[ident] = _Asked(question, loop.create_future(), timeout, loop.time() + LONGEST)
        self._send(question.data)
        try:
            async with timeout:
                await asked.done
        except TimeoutError:
            self.close("it does not answer in time")
            raise
        finally:
            del self._asked[ident]
            if not asked.done.done() or asked.done.cancelled():
                self.close()  # the rest of the answer would come among others
        return question

    def _send(self, data: bytes) -> None:
        assert self._writer is not None
        self._writer.write(struct.pack("!H", len(data)) + data)

    # What comes

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while not self.ended:
                size = int.from_bytes(await self._next(reader))
                async with asyncio.timeout(MESSAGE):
                    data = await reader.readexactly(size)
                self.heard = time.time()
                self._take(data)
        except asyncio.IncompleteReadError:
            self.close("it has closed the connection")
        except TimeoutError:
            self.close("it takes too long for a message")
        except OSError as error:
            self.close(told(error))
        except (FormatError, struct.error) as error:
            self.close(str(error))

    async def _next(self, reader: asyncio.StreamReader) -> bytes:
        """The length of the next message, whenever it comes."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUIET):
                    return await reader.readexactly(_LENGTH)
            self._call[1](self)

    def _take(self, data: bytes) -> None:
        """Take a message. Raises FormatError for what makes the rest useless."""
        if len(data) > 2 and not data[2] & 0x80:
            self._notify(data)
            return
        asked = self._asked.get(int.from_bytes(data[:2]))
        if asked is None or asked.done.done():
            raise FormatError("it answers what was not asked")
        try:
            last = asked.question.take(data, time.time())
        except (RcodeError, LineageError) as error:  # mostly there is no more of it
            asked.done.set_exception(error)
            self.known.set()
            return
        except (FormatError, struct.error) as error:
            asked.done.set_exception(error)
            raise
        self.follows |= bool(asked.question.lineage)
        self.known.set()
        if last:
            asked.done.set_result(None)
        else:
            now = asyncio.get_running_loop().time()
            asked.timeout.reschedule(min(now + TIMEOUT, asked.until))

    def _notify(self, data: bytes) -> None:
        assert self._writer is not None
        origin, answer = inbound.notified(data)
        if self._writer.transport.get_write_buffer_size() > UNSENT:
            raise FormatError("it takes no answers")
        self._send(answer)
        if not self._call[0](origin):
            now = asyncio.get_running_loop().time()
            self._useless = max(0.0, self._useless - (now - self._counted) * USELESS_RATE) + 1
            self._counted = now
            if self._useless > USELESS:
                raise FormatError("it sends NOTIFYs that are of no use")
