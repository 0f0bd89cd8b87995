"""Asking several servers the same questions: many at a time, over UDP with retries, or over TCP.

A question is over when each server has answered, or has not after all tries. A server that has answered nothing
meanwhile is asked something that it has answered before: if that gets no answer either, it is gone, and GoneError ends
it all.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from kdns.errors import KdnsError
from kdns.tools.questions import Question
from kdns.wire import message, names, rr
from kdns.wire.relay import same_question

UDP_SIZE = 1232
MAX_CONNECTIONS = 16
"""TCP connections to a server at a time."""
RECEIVE_BUFFER = 1 << 20
"""Bytes, as far as the system allows: what the largest window may be answered with while this process is waiting."""
_SWEEPS = 10
"""How often in the time of a try it is looked for what has waited too long."""
_HEADER = message.HEADER
_ROOT = Question(names.ROOT, rr.NS)
_SERVER = re.compile(
    r"(?:(?P<proto>tcp|udp)://)?"
    r"(?:\[(?P<literal>[0-9A-Fa-f:.]+(?:%[^\]\s]+)?)\](?::(?P<literal_port>\d{1,5}))?"
    r"|(?P<bare>[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%\S+)?)"
    r"|(?P<host>[^\[\]:/\s]+)(?::(?P<port>\d{1,5}))?)",
    re.ASCII,
)


class GoneError(KdnsError):
    """A server that answers nothing, or nothing any more."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server to ask. host: an address, or a name that the system resolves. tcp: everything over TCP."""

    host: str
    port: int = 53
    tcp: bool = False

    def __str__(self) -> str:
        return f"{self.host} port {self.port}"


@dataclass(frozen=True, slots=True)
class Limits:
    """timeout: seconds for each of so many tries. window: questions at a time. rate: questions a second, 0 for any."""

    timeout: float = 1.0
    tries: int = 3
    window: int = 64
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a question has no answer from a server: a few words that follow its name."""

    text: str


Reply = bytes | Fault
"""A response to the question that was asked, as it came; or none."""
_Pending = tuple[float, asyncio.Future[Reply]]
_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Handle = Callable[[Question, Sequence[Reply]], None]


def target(text: str) -> Target:
    """HOST, HOST:PORT, IPv6, [IPv6]:PORT, each with tcp:// in front to ask over TCP only. Raises KdnsError."""
    match = _SERVER.fullmatch(text)
    port = int((match["port"] or match["literal_port"] or 53) if match else 0)
    if match is None or not 0 < port < 65536 or not _is_host(match["host"] or ""):
        accepted = "HOST, HOST:PORT, IPV6 or [IPV6]:PORT, with tcp:// in front to ask over TCP only"
        raise KdnsError(f"{text!r} is no server; accepted: {accepted}")
    return Target(match["literal"] or match["bare"] or match["host"], port, match["proto"] == "tcp")


def _is_host(name: str) -> bool:
    """Whether the system can be asked for its address."""
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return True


def query(question: Question, ident: int) -> bytes:
    """The message that asks: RD, and an OPT record that offers UDP_SIZE."""
    opt = b"\0" + rr.OPT.to_bytes(2, "big") + UDP_SIZE.to_bytes(2, "big") + bytes(6)
    return _HEADER.pack(ident, message.RD, 1, 0, 0, 1) + question.wire + opt


def answers(data: bytes, question: Question) -> bool:
    """Whether a message is a response to this question, as far as its header and question tell.

    A server that could not deal with the query may leave the question out.
    """
    if len(data) < message.QUESTION_AT or not data[2] & 0x80:
        return False
    _, flags, questions, records, *_ = _HEADER.unpack_from(data)
    if not questions:
        return bool(flags & 0xF) and not records
    return same_question(data, question.wire)


@dataclass(slots=True, eq=False)
class _Waiting:
    """A question that a server has been asked over UDP. first: when, first of all. odd: what else came in its place."""

    question: Question
    done: asyncio.Future[Reply]
    first: float
    due: float
    left: int
    odd: str = ""


class Peer(asyncio.DatagramProtocol):
    """A server that is asked, from one UDP socket and some TCP connections.

    heard: when it answered a question last (time.monotonic()), 0 if it never did. answered: how many, without those
    that were asked to see whether it is there.
    """

    def __init__(self, server: Target, limits: Limits) -> None:
        self.server = server
        self.heard = 0.0
        self.answered = 0
        self._limits = limits
        self._ident = 0
        self._waiting: dict[int, _Waiting] = {}
        self._transport: asyncio.DatagramTransport | None = None
        self._streams = _Streams(server, limits.timeout)
        self._refused = False
        self._known: Question | None = None
        self._probe: asyncio.Task[Reply] | None = None

    async def open(self) -> None:
        """Raises GoneError for a host that cannot be resolved, and where no socket can be had."""
        if self.server.tcp:
            return
        loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await loop.create_datagram_endpoint(
                lambda: self, remote_addr=(self.server.host, self.server.port)
            )
        except OSError as error:
            raise GoneError(f"cannot ask {self.server}: {error.strerror or error}") from None
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)

    def close(self) -> None:
        """Let go of all sockets."""
        self._streams.close()
        if self._transport is not None:
            self._transport.abort()

    def begin(self, question: Question) -> _Pending:
        """Send a question."""
        now = time.monotonic()
        if self.server.tcp:
            return now, asyncio.ensure_future(self._over_tcp(question))
        return now, self._over_udp(question, now)

    async def end(self, question: Question, pending: _Pending) -> Reply:
        """What the server says to it. Raises GoneError if it has answered nothing since, and does not now."""
        began, future = pending
        reply = await self._complete(question, future)
        if isinstance(reply, bytes):
            self.answered += 1
            self._known = self._known or question
        elif self.heard < began and not await self._is_there():
            raise GoneError(f"{self.server} {reply.text}, after {self.answered:,} answers")
        return reply

    async def meet(self, question: Question) -> None:
        """Raises GoneError unless the server answers this question or another one."""
        reply = await self._ask(question)
        if isinstance(reply, Fault) and not self.heard:
            await self._ask(_ROOT)
            if not self.heard:
                raise GoneError(f"{self.server} {reply.text}")

    async def _is_there(self) -> bool:
        """Whether it answers what it has answered before. Those who want to know at the same time ask once."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._ask(self._known or _ROOT))
        return isinstance(await asyncio.shield(self._probe), bytes)

    async def _ask(self, question: Question) -> Reply:
        return await self._complete(question, self.begin(question)[1])

    async def _complete(self, question: Question, future: asyncio.Future[Reply]) -> Reply:
        reply = await future
        if isinstance(reply, bytes) and reply[2] & 0x02 and not self.server.tcp:
            return await self._over_tcp(question, "truncates over UDP, and ")
        return reply

    async def _over_tcp(self, question: Question, before: str = "") -> Reply:
        try:
            data = await self._streams.ask(query(question, self._next_ident()))
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            return Fault(f"{before}over TCP {_reason(error, self._limits.timeout)}")
        if not answers(data, question):
            return Fault(f"{before}over TCP {_oddity(data)}")
        self.heard = time.monotonic()
        return data

    # UDP

    def _over_udp(self, question: Question, now: float) -> asyncio.Future[Reply]:
        ident = self._next_ident()
        future = asyncio.get_running_loop().create_future()
        due = now + self._limits.timeout
        self._waiting[ident] = waiting = _Waiting(question, future, now, due, self._limits.tries - 1)
        self._send(ident, question)
        return waiting.done

    def _next_ident(self) -> int:
        while True:
            self._ident = (self._ident + 1) & 0xFFFF
            if self._ident not in self._waiting:
                return self._ident

    def _send(self, ident: int, question: Question) -> None:
        assert self._transport is not None
        self._transport.sendto(query(question, ident))

    def datagram_received(self, data: bytes, addr: object) -> None:
        """A datagram of the server has come."""
        ident = int.from_bytes(data[:2], "big")
        waiting = self._waiting.get(ident)
        if waiting is None:
            return  # a second answer, or one that nobody waits for any more
        if not answers(data, waiting.question):
            waiting.odd = _oddity(data)
        else:
            self.heard = time.monotonic()
            del self._waiting[ident]
            _finish(waiting, data)

    def error_received(self, exc: Exception) -> None:
        """Nothing listens there, which may pass: a server may be about to start again."""
        self._refused = isinstance(exc, ConnectionRefusedError)

    def sweep(self, now: float) -> None:
        """Ask again what has waited for too long, or give it up."""
        for ident in [ident for ident, waiting in self._waiting.items() if waiting.due <= now]:
            waiting = self._waiting[ident]
            if waiting.left:
                waiting.left -= 1
                waiting.due = now + self._limits.timeout
                self._send(ident, waiting.question)
            else:
                del self._waiting[ident]
                _finish(waiting, self._silence(waiting))

    def _silence(self, waiting: _Waiting) -> Fault:
        if waiting.odd:
            return Fault(f"over UDP {waiting.odd}")
        tries = "1 try" if self._limits.tries == 1 else f"{self._limits.tries} tries"
        if self._refused and self.heard < waiting.first:
            return Fault("refuses UDP: nothing listens there")
        return Fault(f"gives no answer over UDP: {tries} of {self._limits.timeout:g} s")


def _finish(waiting: _Waiting, reply: Reply) -> None:
    if not waiting.done.done():
        waiting.done.set_result(reply)


def _oddity(data: bytes) -> str:
    """What a message is that does not answer the question."""
    if len(data) < message.QUESTION_AT:
        return f"sends {len(data)} bytes that are no message"
    if not data[2] & 0x80:
        return "sends a message that is no response"
    return "answers another question"


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"gives no answer within {timeout:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "refuses connections"
    if isinstance(error, asyncio.IncompleteReadError):
        return "closes the connection before the answer is complete"
    return str(getattr(error, "strerror", None) or error)


class _Streams:
    """TCP connections to a server, each with one query at a time, kept for the next one (RFC 7766)."""

    def __init__(self, server: Target, timeout: float) -> None:
        self._server = server
        self._timeout = timeout
        self._idle: list[_Stream] = []
        self._room = asyncio.Semaphore(MAX_CONNECTIONS)

    async def ask(self, data: bytes) -> bytes:
        """Raises OSError, TimeoutError or IncompleteReadError."""
        async with self._room:
            if self._idle:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # the server may have closed it since
                    return await self._exchange(self._idle.pop(), data)
            async with asyncio.timeout(self._timeout):
                stream = await asyncio.open_connection(self._server.host, self._server.port)
            return await self._exchange(stream, data)

    async def _exchange(self, stream: _Stream, data: bytes) -> bytes:
        reader, writer = stream
        try:
            async with asyncio.timeout(self._timeout):
                writer.write(len(data).to_bytes(2, "big") + data)
                while True:
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    found = await reader.readexactly(size)
                    if found[:2] == data[:2]:
                        break
        except BaseException:
            writer.transport.abort()
            raise
        self._idle.append(stream)
        return found

    def close(self) -> None:
        for _, writer in self._idle:
            writer.transport.abort()
        self._idle.clear()


@dataclass(slots=True)
class Pace:
    """Lets questions pass at a rate. rate: a second; 0 for any."""

    rate: float
    _next: float = field(default=0.0)

    async def wait(self) -> None:
        """Until it is the next one's turn."""
        if not self.rate:
            return
        now = time.monotonic()
        self._next = max(self._next, now)
        wait, self._next = self._next - now, self._next + 1 / self.rate
        if wait > 0:
            await asyncio.sleep(wait)


async def ask(
    questions: Iterable[Question],
    peers: Sequence[Peer],
    handle: Handle,
    limits: Limits,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Ask all servers all questions.

    handle: gets each question with a reply of each server. tick: is called now and then. Raises GoneError for a server
    that answers nothing (any more).
    """
    waiting = iter(questions)
    pace = Pace(limits.rate)
    first = next(waiting, None)
    if first is None:
        return
    async with _sweeping(peers, limits, tick):
        await _all(peer.meet(first) for peer in peers)
        every = itertools.chain((first,), waiting)
        await _all(_work(every, peers, handle, pace) for _ in range(limits.window))


async def _all(work: Iterable[Coroutine[None, None, None]]) -> None:
    """Do all of it at once; the first failure ends the rest, and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _work(questions: Iterator[Question], peers: Sequence[Peer], handle: Handle, pace: Pace) -> None:
    for question in questions:
        await pace.wait()
        begun = [peer.begin(question) for peer in peers]
        handle(question, [await peer.end(question, pending) for peer, pending in zip(peers, begun, strict=True)])


@contextlib.asynccontextmanager
async def _sweeping(peers: Sequence[Peer], limits: Limits, tick: Callable[[], None]) -> AsyncIterator[None]:
    """Give up for the peers what has waited too long."""

    async def sweep() -> None:
        while True:
            await asyncio.sleep(min(limits.timeout / _SWEEPS, 0.1))
            for peer in peers:
                peer.sweep(time.monotonic())
            tick()

    task = asyncio.create_task(sweep())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
