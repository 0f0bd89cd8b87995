"""A client that never pauses: so many queries a second, each accounted for. A process of its own, so that what a test
does meanwhile does not disturb its pace.

`python -m tests.support.pacer` reads its Plan as JSON from standard input, prints "started" when the first query is
out, ends after its time or when its standard input closes, and prints a Summary as JSON.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import dns.message

TICK = 0.001
STRAGGLERS = 2.0
STEP = 50e-6
STEPS = 16
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Plan:
    """queries: messages in hex, asked in turn, whose IDs are replaced. rate: a second. seconds: at most.

    sockets: each has a port of its own, so that the kernel spreads them over all workers.
    """

    address: str
    port: int
    queries: list[str]
    rate: int
    seconds: float
    sockets: int = 16


@dataclass(frozen=True, slots=True)
class Summary:
    """Times are of CLOCK_MONOTONIC, which all processes share.

    rcodes: answers by response code. lost: when each query that got no answer was sent. strange: answers whose ID was
    not waited for. slowest: seconds of the slowest answer. gaps: the longest pauses between two answers, as (start,
    seconds), longest first. late: the slowest of the answers that took more than 10 ms, as (sent, seconds). variants:
    how many different answers each query got, the ID apart. times: of all answers, how many took up to 1, 2, 4, ...
    times 50 µs, not cumulative, and at the end those that took longer.
    """

    sent: int
    answered: int
    rcodes: dict[str, int]
    lost: list[float]
    strange: int
    slowest: float
    gaps: list[tuple[float, float]]
    late: list[tuple[float, float]] = field(default_factory=list)
    variants: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """The bound in seconds below which that share of the answers came, as exactly as `times` tells."""
        seen = 0
        for step, count in enumerate(self.times):
            seen += count
            if seen >= share * self.answered:
                return STEP * float(1 << step)
        return self.slowest


class Pacer:
    """Runs the client from a test; a context manager that ends it in any case."""

    def __init__(
        self,
        port: int,
        names: Sequence[tuple[str, str]],
        *,
        rate: int = 10_000,
        seconds: float = 20.0,
        address: str = "127.0.0.1",
        prefix: Sequence[str] = (),
    ) -> None:
        queries = [dns.message.make_query(name, rdtype).to_wire().hex() for name, rdtype in names]
        self.plan = Plan(address, port, queries, rate, seconds)
        self.prefix = list(prefix)
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [*self.prefix, sys.executable, "-m", "tests.support.pacer"],
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

    def finish(self) -> Summary:
        """Stop asking, wait for what is on its way, and account for all of it."""
        assert self.process is not None
        output, _ = self.process.communicate(timeout=self.plan.seconds + STRAGGLERS + 10)
        found = json.loads(output)
        return Summary(**found)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class _Client:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.queries = [bytes.fromhex(query)[2:] for query in plan.queries]
        family = socket.AF_INET6 if ":" in plan.address else socket.AF_INET
        self.sockets = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(plan.sockets)]
        self.waiting: list[dict[int, tuple[float, int]]] = [{} for _ in self.sockets]
        self.answers: list[set[bytes]] = [set() for _ in self.queries]
        self.times = [0] * (STEPS + 1)
        self.poll = select.epoll()
        self.by_fd: dict[int, int] = {}
        for index, sock in enumerate(self.sockets):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            sock.connect((plan.address, plan.port))
            self.poll.register(sock.fileno(), select.EPOLLIN)
            self.by_fd[sock.fileno()] = index
        self.sent = self.answered = self.strange = 0
        self.rcodes: dict[str, int] = {}
        self.last = time.monotonic()
        self.gaps: list[tuple[float, float]] = []
        self.late: list[tuple[float, float]] = []

    def run(self) -> Summary:
        start = time.monotonic()
        end = start + self.plan.seconds
        self.poll.register(0, select.EPOLLIN | select.EPOLLHUP)
        stopped = False
        while not stopped and (now := time.monotonic()) < end:
            due = int((now - start) * self.plan.rate) + 1
            while self.sent < due:
                self._send()
                if self.sent == 1:
                    print("started", flush=True)
            stopped = self._receive(start + self.sent / self.plan.rate - time.monotonic())
        until = time.monotonic() + STRAGGLERS
        self.poll.unregister(0)
        while any(self.waiting) and time.monotonic() < until:
            self._receive(0.05)
        self.gaps.sort(key=lambda gap: -gap[1])
        self.late.sort(key=lambda answer: -answer[1])
        return Summary(
            sent=self.sent,
            answered=self.answered,
            rcodes=self.rcodes,
            lost=sorted(moment for waiting in self.waiting for moment, _ in waiting.values()),
            strange=self.strange,
            slowest=self.late[0][1] if self.late else 0.0,
            gaps=self.gaps[:10],
            late=self.late[:10],
            variants=list(map(len, self.answers)),
            times=self.times,
        )

    def _send(self) -> None:
        index = self.sent % len(self.sockets)
        ident = self.sent // len(self.sockets) & 0xFFFF
        query = self.sent // len(self.sockets) % len(self.queries)
        self.sent += 1
        self.waiting[index][ident] = time.monotonic(), query
        try:
            self.sockets[index].send(ident.to_bytes(2, "big") + self.queries[query])
        except (ConnectionRefusedError, BlockingIOError):
            return  # counts as lost

    def _receive(self, seconds: float) -> bool:
        """Take what comes within the time; True when standard input was closed."""
        stopped = False
        for fd, _ in self.poll.poll(max(seconds, TICK)):
            if fd == 0:
                stopped = True
                continue
            index = self.by_fd[fd]
            while True:
                try:
                    data = self.sockets[index].recv(65535)
                except BlockingIOError:
                    break
                except ConnectionRefusedError:
                    continue
                self._take(index, data)
        return stopped

    def _take(self, index: int, data: bytes) -> None:
        now = time.monotonic()
        found = self.waiting[index].pop(int.from_bytes(data[:2], "big"), None)
        if found is None:
            self.strange += 1
            return
        sent, query = found
        self.answered += 1
        self.answers[query].add(data[2:])
        self.times[min(int((now - sent) / STEP).bit_length(), STEPS)] += 1
        rcode = str(data[3] & 15)
        self.rcodes[rcode] = self.rcodes.get(rcode, 0) + 1
        if now - self.last > 0.01:
            self.gaps.append((self.last, now - self.last))
        if now - sent > 0.01:
            self.late.append((sent, now - sent))
        self.last = now


def main() -> None:
    """Read the plan, run it, print the summary."""
    plan = Plan(**json.loads(sys.stdin.readline()))
    print(json.dumps(asdict(_Client(plan).run())))


if __name__ == "__main__":
    main()
