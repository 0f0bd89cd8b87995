"""What pods ask, and what becomes of every question: asked once, or again as glibc does, over TCP, by real programs.

`python -m tests.support.lookups` is the client, a process of its own in a pod's network namespace: it reads its Plan as
JSON from standard input, prints "started", ends after its time or when its standard input closes, and prints what
became of each question as JSON. Every question has a socket and so a port of its own, as with glibc, but for those that
share one on purpose: connection tracking takes them for one flow, and sends it where it began. Times are of
CLOCK_MONOTONIC, which all processes share; those of UDP responses are the kernel's, taken when the datagram arrived, so
that a client that was not scheduled finds no gap that was not there.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import itertools
import json
import os
import resource
import select
import shlex
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import dns.message
import dns.rdatatype

from tests.support.netns import Netns

ROOT = Path(__file__).resolve().parents[2]
PORT = 53
WAIT = 2.0
"""Seconds after which a query that is asked once is lost."""
RETRY, ATTEMPTS = 5.0, 2
"""glibc's `timeout` and `attempts` (resolv.conf(5))."""
TICK = 0.001
ONCE, TCP, GLIBC, SHARED, PROGRAM = "once", "tcp", "glibc", "shared", "program"
"""The kinds of question: one UDP query; one over a TCP connection of its own; A and AAAA from one UDP socket, asked
again as glibc does; one UDP query from the socket that all of this kind have; a program that is run."""
LOST, REFUSED = "lost", "refused"
_SO_TIMESTAMPNS = 35  # socket(7); Python has no name for it
_SERVER_FAULTS = (2, 4, 5)  # SERVFAIL, NOTIMP, REFUSED: glibc goes on to the next server


@dataclass(frozen=True, slots=True)
class Question:
    """name: `*` in it is replaced by what never repeats. rcode: what a right answer has."""

    name: str
    rdtype: str = "A"
    rcode: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Rates are questions a second of each address. programs: command lines that are run in turn, `pause` seconds
    between them, each a question to `nameserver` that exit code 0 answers; `*` in them as in names. seconds: at most.
    """

    addresses: list[str]
    questions: list[Question]
    once: float = 0.0
    tcp: float = 0.0
    glibc: float = 0.0
    shared: float = 0.0
    programs: list[str] = field(default_factory=list)
    nameserver: str = ""
    pause: float = 0.1
    seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that was asked, and the address that was asked. ended: when the answer came or, if
    none did, when it was given up. outcome: "ok", LOST, REFUSED (ICMP or RST), "rcode N" or "exit N". name: as the plan
    has it."""

    kind: str
    who: str
    sent: float
    ended: float
    outcome: str
    name: str

    @property
    def seconds(self) -> float:
        return self.ended - self.sent


@dataclass(frozen=True, slots=True)
class Figures:
    """What became of questions of one kind to one address.

    lost: when each that was not answered was asked, and refused and failed likewise (a port unreachable or a reset;
    another response code than the right one). gap, since: the longest time in which there were questions and no
    answer came to any, and when it began (see `longest_gap`). slowest: seconds of the slowest answer. slow: answers
    that took over a second.
    """

    sent: int
    lost: list[float]
    refused: list[float]
    failed: list[float]
    gap: float
    since: float
    slowest: float
    slow: int

    @property
    def missing(self) -> list[float]:
        """When each was asked that did not get a right answer."""
        return sorted([*self.lost, *self.refused, *self.failed])


def figures(asked: Iterable[Asked], kind: str, who: str | None = None, after: float = 0.0) -> Figures:
    """Judge the questions of a kind and address (None: all). Those of several clients may be put together.

    after: the moment from which on gaps count.
    """
    chosen = [one for one in asked if one.kind == kind and who in (None, one.who)]
    by_outcome: dict[str, list[float]] = collections.defaultdict(list)
    for one in chosen:
        name = one.outcome if one.outcome in ("ok", LOST, REFUSED) else "failed"
        by_outcome[name].append(one.sent)
    answered = [one for one in chosen if one.outcome == "ok"]
    sent, ended = [one.sent for one in chosen], [one.ended for one in answered]
    since, gap = longest_gap([at for at in sent if at >= after], [at for at in ended if at >= after])
    times = [one.seconds for one in answered]
    return Figures(
        sent=len(chosen),
        lost=sorted(by_outcome[LOST]),
        refused=sorted(by_outcome[REFUSED]),
        failed=sorted(by_outcome["failed"]),
        gap=gap,
        since=since,
        slowest=max(times, default=0.0),
        slow=sum(seconds > 1 for seconds in times),
    )


def longest_gap(sent: Sequence[float], answered: Iterable[float]) -> tuple[float, float]:
    """The longest time without an answer, and before it when it began: (moment, seconds).

    It is counted from the first question since the last answer, so that a client that asks nothing for a while makes
    no gap; where none was asked since, and an older one is answered, from the last answer. What comes after the last
    question does not count.
    """
    end = max(sent, default=0.0)
    events = sorted([*((moment, 0) for moment in sent), *((moment, 1) for moment in answered if moment <= end)])
    worst = 0.0, 0.0
    first: float | None = None
    last = events[0][0] if events else 0.0
    for moment, is_answer in events:
        if not is_answer:
            first = moment if first is None else first
            continue
        begun = last if first is None else first
        worst = max(worst, (moment - begun, begun))
        first, last = None, moment
    if first is not None:
        worst = max(worst, (end - first, first))
    return worst[1], worst[0]


class Client:
    """Runs the client in a pod; a context manager that ends it in any case."""

    def __init__(self, pod: Netns, plan: Plan) -> None:
        self.pod = pod
        self.plan = plan
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [*self.pod.prefix, sys.executable, "-m", "tests.support.lookups"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asdict(self.plan)) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "started\n"
        return self

    def stop(self) -> None:
        """Ask no more. What is on its way is waited for, by `finish`."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.close()

    def finish(self) -> list[Asked]:
        """Stop, and account for every question."""
        assert self.process is not None
        assert self.process.stdout is not None
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.stop()
        output = self.process.stdout.read()
        self.process.wait()
        return [Asked(*one) for one in json.loads(output)]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


# The client's process


class _Exchange:
    """One question. `socket` is what to wait for; None when it has ended."""

    seconds = WAIT
    events = select.EPOLLIN

    def __init__(self, address: str, name: str, queries: Sequence[bytes], rcode: int) -> None:
        self.address = address
        self.name = name
        self.waiting = {query[:2]: query for query in queries}
        self.rcode = rcode
        self.outcome = LOST
        self.socket: socket.socket | None = None
        self.sent = self.ended = time.monotonic()
        self.open()

    kind = ONCE

    def open(self) -> None:
        """Open a socket and ask what has no answer."""
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        try:
            self.socket.connect((self.address, PORT))
            for query in self.waiting.values():
                self.socket.send(query)
        except OSError as error:
            self.failed(error)

    def ready(self, events: int) -> None:
        """The socket has something."""
        sock = self.socket
        assert sock is not None
        while self.waiting and self.socket is sock:
            try:
                data, ancillary, _, _ = sock.recvmsg(4096, 64)
            except BlockingIOError:
                return
            except OSError as error:
                return self.failed(error)
            self.take(data, _arrival(ancillary))

    def take(self, data: bytes, at: float) -> None:
        """A response."""
        if self.waiting.pop(data[:2], None) is None:
            return
        self.ended = at
        if (rcode := data[3] & 15) != self.rcode:
            self.end(f"rcode {rcode}")
        elif not self.waiting:
            self.end("ok")

    def failed(self, error: OSError) -> None:
        """The socket reports an error: ICMP's port unreachable, a reset, or no route."""
        self.ended = time.monotonic()
        self.end(
            REFUSED if error.errno in (errno.ECONNREFUSED, errno.ECONNRESET) else errno.errorcode[error.errno or 0]
        )

    def late(self) -> None:
        """Its time is over."""
        self.ended = time.monotonic()
        self.end(LOST)

    def end(self, outcome: str) -> None:
        """That was it."""
        self.outcome = outcome
        self.close()

    def close(self) -> None:
        """Close the socket."""
        if self.socket is not None:
            self.socket.close()
        self.socket = None


class _Glibc(_Exchange):
    """res_nsend of glibc with one nameserver: an error or a server's fault begins the next attempt at once, silence
    after 5 seconds, which asks again what has no answer, from a new socket."""

    kind = GLIBC
    seconds = RETRY

    def __init__(self, address: str, name: str, queries: Sequence[bytes], rcode: int) -> None:
        self.attempt = 1
        super().__init__(address, name, queries, rcode)

    def take(self, data: bytes, at: float) -> None:
        if data[3] & 15 in _SERVER_FAULTS and data[:2] in self.waiting:
            self.ended = at
            return self.again(f"rcode {data[3] & 15}")
        super().take(data, at)

    def failed(self, error: OSError) -> None:
        self.ended = time.monotonic()
        self.again(REFUSED)

    def late(self) -> None:
        self.ended = time.monotonic()
        self.again(LOST)

    def again(self, outcome: str) -> None:
        """The next attempt, if there is one left."""
        self.close()
        if self.attempt == ATTEMPTS:
            return self.end(outcome)
        self.attempt += 1
        self.open()


class _Tcp(_Exchange):
    kind = TCP
    events = select.EPOLLOUT

    def open(self) -> None:
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.received = b""
        try:
            self.socket.connect((self.address, PORT))
        except BlockingIOError:
            return
        except OSError as error:
            self.failed(error)

    def ready(self, events: int) -> None:
        assert self.socket is not None
        try:
            if self.events == select.EPOLLOUT:
                self.events = select.EPOLLIN
                for query in self.waiting.values():
                    self.socket.send(struct.pack("!H", len(query)) + query)
                return
            data = self.socket.recv(4096)
        except OSError as error:
            return self.failed(error)
        if not data:
            return self.failed(ConnectionResetError(errno.ECONNRESET, "closed"))
        self.received += data
        if len(self.received) >= 2 and len(self.received) >= 2 + int.from_bytes(self.received[:2], "big"):
            self.take(self.received[2:], time.monotonic())


class _Shared:
    """Questions to an address from one socket that stays open."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.waiting: dict[bytes, tuple[float, str, int]] = {}
        self.socket = socket.socket(
            socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        )
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.socket.connect((address, PORT))

    def ask(self, name: str, queries: Sequence[bytes], rcode: int) -> None:
        """Ask; where an error of an earlier query comes first (ICMP), once more."""
        [query] = queries
        self.waiting[query[:2]] = time.monotonic(), name, rcode
        with contextlib.suppress(OSError):
            self.socket.send(query)
            return
        with contextlib.suppress(OSError):
            self.socket.send(query)

    def answers(self) -> Iterator[Asked]:
        """What has come."""
        while True:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(4096, 64)
            except BlockingIOError:
                return
            except OSError:
                continue  # which query was refused is not said: it is lost
            if (found := self.waiting.pop(data[:2], None)) is not None:
                sent, name, rcode = found
                outcome = "ok" if data[3] & 15 == rcode else f"rcode {data[3] & 15}"
                yield Asked(SHARED, self.address, sent, _arrival(ancillary), outcome, name)

    def lost(self, before: float) -> Iterator[Asked]:
        """Those asked before a moment that have no answer."""
        for ident in [ident for ident, (sent, _, _) in self.waiting.items() if sent < before]:
            sent, name, _ = self.waiting.pop(ident)
            yield Asked(SHARED, self.address, sent, time.monotonic(), LOST, name)


_KINDS: tuple[type[_Exchange], ...] = (_Exchange, _Tcp, _Glibc)


class _Loop:
    """Asks as the plan says, and keeps account."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.poll = select.epoll()
        self.open: dict[int, _Exchange] = {}
        self.deadlines: dict[float, collections.deque[tuple[float, int, _Exchange]]] = {
            WAIT: collections.deque(),
            RETRY: collections.deque(),
        }
        self.asked: list[Asked] = []
        self.ids = itertools.count(os.getpid() << 16)
        self.queries = {
            (address, kind): _queries(plan.questions, kind, self.ids)
            for address in plan.addresses
            for kind in (ONCE, TCP, GLIBC, SHARED)
        }
        self.shared = {(made := _Shared(address)).socket.fileno(): made for address in plan.addresses if plan.shared}

    def run(self) -> None:
        """Until the time is over or standard input is closed, and for what is on its way then."""
        start = time.monotonic()
        streams = [
            (address, kind, rate)
            for address in self.plan.addresses
            for kind, rate in zip(_KINDS, (self.plan.once, self.plan.tcp, self.plan.glibc), strict=True)
            if rate
        ]
        counts = [0] * len(streams)
        asked_shared = 0
        for number in self.shared:
            self.poll.register(number, select.EPOLLIN)
        self.poll.register(0, select.EPOLLIN | select.EPOLLHUP)
        print("started", flush=True)
        stopped = False
        while not stopped and (passed := time.monotonic() - start) < self.plan.seconds:
            for index, (address, kind, rate) in enumerate(streams):
                while counts[index] < passed * rate:
                    counts[index] += 1
                    self.ask(address, kind)
            while asked_shared < passed * self.plan.shared:
                asked_shared += 1
                for shared in self.shared.values():
                    shared.ask(*next(self.queries[shared.address, SHARED]))
            stopped = self.turn()
        self.poll.unregister(0)
        while self.open or any(shared.waiting for shared in self.shared.values()):
            self.turn()

    def ask(self, address: str, kind: type[_Exchange]) -> None:
        """Ask the next question."""
        self.watch(kind(address, *next(self.queries[address, kind.kind])))

    def watch(self, exchange: _Exchange) -> None:
        """Wait for its socket, or note how it ended."""
        if exchange.socket is None:
            self.asked.append(
                Asked(exchange.kind, exchange.address, exchange.sent, exchange.ended, exchange.outcome, exchange.name)
            )
            return
        number = exchange.socket.fileno()
        self.open[number] = exchange
        self.poll.register(number, exchange.events)
        self.deadlines[exchange.seconds].append((time.monotonic() + exchange.seconds, number, exchange))

    def turn(self) -> bool:
        """Take what comes within a tick; True when standard input was closed."""
        stopped = False
        for number, events in self.poll.poll(TICK):
            if number == 0:
                stopped = True
                continue
            if number in self.shared:
                self.asked += self.shared[number].answers()
                continue
            exchange = self.open[number]
            before = exchange.events
            self.step(number, exchange, lambda one=exchange, seen=events: one.ready(seen))  # type: ignore[misc]
            if exchange.events != before and exchange.socket is not None:
                self.poll.modify(number, exchange.events)
        now = time.monotonic()
        for shared in self.shared.values():
            self.asked += shared.lost(now - WAIT)
        for waiting in self.deadlines.values():
            while waiting and waiting[0][0] <= now:
                _, number, exchange = waiting.popleft()
                if self.open.get(number) is exchange:
                    self.step(number, exchange, exchange.late)
        return stopped

    def step(self, number: int, exchange: _Exchange, action: Callable[[], None]) -> None:
        """Do something with an exchange, which may end or go on with another socket."""
        before = exchange.socket
        action()
        if exchange.socket is not before:
            del self.open[number]  # its socket is closed, and epoll has forgotten it
            self.watch(exchange)


def _queries(questions: Sequence[Question], kind: str, ids: Iterator[int]) -> Iterator[tuple[str, list[bytes], int]]:
    """For ever: a question's name, its messages, and the response code that they should have."""
    types = ("A", "AAAA") if kind == GLIBC else (None,)
    made = [
        (q.name, [dns.message.make_query(_plain(q.name), t or q.rdtype).to_wire()[2:] for t in types], q.rcode)
        for q in questions
    ]
    for name, messages, rcode in itertools.cycle(made):
        found = []
        unique = b"%08x" % (next(ids) & 0xFFFFFFFF)
        for message in messages:
            body = message.replace(b"00000000", unique) if "*" in name else message
            found.append((next(ids) & 0xFFFF).to_bytes(2, "big") + body)
        yield name, found, rcode


def _plain(name: str) -> str:
    return name.replace("*", "00000000")


def _arrival(ancillary: Sequence[tuple[int, int, bytes]]) -> float:
    """When the kernel took the datagram in, on the monotonic clock."""
    for _, kind, data in ancillary:
        if kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = struct.unpack("qq", data[:16])
            return time.monotonic() - (time.time() - float(seconds) - float(nanoseconds) / 1e9)
    return time.monotonic()


def _run_programs(plan: Plan, asked: list[Asked], stop: threading.Event) -> None:
    for number in itertools.count():
        command = plan.programs[number % len(plan.programs)]
        begun = time.monotonic()
        arguments = shlex.split(command.replace("*", f"{os.getpid()}-{number}"))
        done = subprocess.run(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        outcome = "ok" if done.returncode == 0 else f"exit {done.returncode}"
        asked.append(Asked(PROGRAM, plan.nameserver, begun, time.monotonic(), outcome, command))
        if stop.wait(plan.pause):
            return


def main() -> None:
    """Read the plan, run it, print what became of all questions."""
    read = json.loads(sys.stdin.readline())
    plan = Plan(**read | {"questions": [Question(**one) for one in read["questions"]]})
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loop = _Loop(plan)
    ran: list[Asked] = []
    stop = threading.Event()
    runner = threading.Thread(target=_run_programs, args=(plan, ran, stop))
    if plan.programs:
        runner.start()
    loop.run()
    stop.set()
    if plan.programs:
        runner.join()
    print(json.dumps([[a.kind, a.who, a.sent, a.ended, a.outcome, a.name] for a in [*loop.asked, *ran]]))


if __name__ == "__main__":
    main()
