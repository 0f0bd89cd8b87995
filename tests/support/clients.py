"""A client that asks many names over UDP, and again where no answer comes, as stub resolvers do."""

from __future__ import annotations

import heapq
import itertools
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

RETRY_SECONDS = 5.0
"""After how long glibc asks again (resolv.conf(5), `timeout`)."""
NO_ANSWER, NOERROR, SERVFAIL = -1, 0, 2
ESTABLISHED, TIME_WAIT = 1, 6
_HEADER = struct.Struct("!HHHHHH")
_RD = 0x0100
_TYPE_A_CLASS_IN = struct.pack("!HH", 1, 1)
_BURST = 50


@dataclass(slots=True, eq=False)
class Query:
    """A question and what became of it.

    first, sent, answered: time.monotonic(); of the first and of the latest transmission, and of the last answer. tries:
    transmissions. unanswered: those of them to which nothing came. servfails: answers of that kind. rcode: of the last
    answer, NO_ANSWER if there is none.
    """

    name: str
    first: float = 0.0
    sent: float = 0.0
    answered: float = 0.0
    tries: int = 0
    unanswered: int = 0
    servfails: int = 0
    rcode: int = NO_ANSWER
    longest: float = 0.0
    """Seconds from any transmission to its answer, at most."""


def ask_many(
    port: int,
    names: Iterable[str],
    *,
    window: int = 100,
    rate: float = 0.0,
    again: float = 0.0,
    seconds: float = 60.0,
) -> list[Query]:
    """Ask 127.0.0.1 for the A records of many names; returns when each is answered, or the time is over.

    window: so many in flight. rate: new questions a second, 0 for as fast as can be. again: after SERVFAIL the same is
    asked again after so many seconds, 0 for never. What is not answered within RETRY_SECONDS is asked again.
    """
    with _Asker(port, [Query(name) for name in names], window, rate, again) as asker:
        asker.run(time.monotonic() + seconds)
        return asker.queries


class _Asker:
    def __init__(self, port: int, queries: list[Query], window: int, rate: float, again: float) -> None:
        self.queries = queries
        self._window, self._rate, self._again = window, rate, again
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.setblocking(False)
        self._socket.connect(("127.0.0.1", port))
        self._flight: dict[int, Query] = {}
        self._later: list[tuple[float, int, Query]] = []
        self._numbers = itertools.count()

    def __enter__(self) -> _Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def run(self, deadline: float) -> None:
        new = iter(self.queries)
        start, begun, exhausted = time.monotonic(), 0, False
        while (now := time.monotonic()) < deadline:
            self._expire(now)
            while self._later and self._later[0][0] <= now and len(self._flight) < self._window:
                self._send(heapq.heappop(self._later)[2])
            most = int((now - start) * self._rate) if self._rate else len(self.queries)
            for _ in range(min(_BURST, most - begun, self._window - len(self._flight))):
                query = next(new, None)
                exhausted = query is None
                if query is None:
                    break
                begun += 1
                self._send(query)
            exhausted = exhausted or begun == len(self.queries)
            if exhausted and not self._flight and not self._later:
                return
            self._receive()

    def _send(self, query: Query) -> None:
        ident = next(self._numbers) % 65536
        while ident in self._flight:
            ident = next(self._numbers) % 65536
        query.sent = time.monotonic()
        query.first = query.first or query.sent
        query.tries += 1
        self._flight[ident] = query
        labels = b"".join(bytes([len(label)]) + label.encode() for label in query.name.split("."))
        self._socket.send(_HEADER.pack(ident, _RD, 1, 0, 0, 0) + labels + b"\0" + _TYPE_A_CLASS_IN)

    def _expire(self, now: float) -> None:
        for ident, query in itertools.takewhile(
            lambda item: now - item[1].sent > RETRY_SECONDS, list(itertools.islice(self._flight.items(), _BURST))
        ):
            del self._flight[ident]
            query.unanswered += 1
            self._send(query)

    def _receive(self) -> None:
        if not select.select([self._socket], [], [], 0.001)[0]:
            return
        for _ in range(_BURST):
            try:
                data = self._socket.recv(4096)
            except BlockingIOError:
                return
            query = self._flight.pop(int.from_bytes(data[:2], "big"), None)
            if query is not None:
                self._answered(query, data[3] & 0xF)

    def _answered(self, query: Query, rcode: int) -> None:
        query.answered, query.rcode = time.monotonic(), rcode
        query.longest = max(query.longest, query.answered - query.sent)
        if rcode == SERVFAIL:
            query.servfails += 1
            if self._again:
                heapq.heappush(self._later, (query.answered + self._again, next(self._numbers), query))


def connections_to(port: int) -> Counter[int]:
    """How many TCP connections clients in this network namespace have to a port of 127.0.0.1, by state (proc(5)).

    Those that a client has closed stay as TIME_WAIT for a minute.
    """
    peer = f"0100007F:{port:04X}"
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return Counter(int(fields[3], 16) for fields in lines if fields[2] == peer)
