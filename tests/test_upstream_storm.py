"""Many queries at once through one upstream: none is lost, few connections are open, and nothing is asked twice."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from tests.conftest import Record
from tests.support import clients, resolvers
from tests.support.clients import ask_many, connections_to
from tests.support.resolvers import ADDRESS, ZONE, Certificate, Resolver
from tests.support.server import Server, read_message
from tests.support.upstream import Asked, FakeUpstream, reply

NAMES = 20_000
MOST_CONNECTIONS = 2
FORWARDING = """\
cluster.local:$dns {
    bind 127.0.0.1
    ready 127.0.0.1:$ready
    whoami
}
.:$dns {
    bind 127.0.0.1
    errors
    prometheus 127.0.0.1:$metrics
    $plugins
}
"""


class Watched:
    """The most connections to a port that were open at a time, looked at every few milliseconds."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.most = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._end.wait(0.01):
            self.most = max(self.most, connections_to(self.port)[clients.ESTABLISHED])

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


@pytest.fixture
def knot(tmp_path: Path, needs: Callable[..., None]) -> Iterator[Resolver]:
    needs("knotd")
    folder = tmp_path / "knot"
    folder.mkdir()
    with resolvers.knot(folder, Certificate.make(folder)) as started:
        yield started


@contextlib.contextmanager
def forwarding(folder: Path, plugins: str) -> Iterator[Server]:
    with Server(folder / "kdns", corefile=FORWARDING, plugins=plugins, addresses=[ADDRESS]) as server:
        yield server


def names(count: int = NAMES) -> list[str]:
    """Names that are all different, and all there."""
    return [f"n{number}.wild.{ZONE}" for number in range(count)]


def test_20_000_names_through_one_upstream_take_at_most_two_connections_and_none_is_lost(
    tmp_path: Path, knot: Resolver, record: Record
) -> None:
    forward = f"forward . {ADDRESS}:{knot.port} {{\n    force_tcp\n}}"
    before = connections_to(knot.port).total()
    with forwarding(tmp_path, forward) as server, Watched(knot.port) as watched:
        begin = time.monotonic()
        asked = ask_many(server.port, names(), window=200)
        record("answers a second", round(NAMES / (time.monotonic() - begin)))
        opened = connections_to(knot.port).total() - before
    assert Counter(query.rcode for query in asked) == {clients.NOERROR: NAMES}
    assert max(query.tries for query in asked) == 1
    assert 1 <= watched.most <= MOST_CONNECTIONS
    assert opened <= MOST_CONNECTIONS, "closed ones counted"


def test_an_upstream_that_is_killed_in_the_middle_and_comes_back_makes_no_client_wait_for_its_own_retry(
    tmp_path: Path, knot: Resolver, record: Record
) -> None:
    forward = f"cache {{\n    servfail 1s\n}}\nforward . {ADDRESS}:{knot.port} {{\n    force_tcp\n}}"
    with (
        forwarding(tmp_path, forward) as server,
        Watched(knot.port) as watched,
        ThreadPoolExecutor(1) as pool,
    ):
        asking = pool.submit(ask_many, server.port, names(), window=2000, rate=5000, again=1.5)
        time.sleep(1.2)
        killed = time.monotonic()
        knot.kill()
        time.sleep(0.8)
        knot.start()
        back = time.monotonic()
        asked = asking.result()
    failed = [query for query in asked if query.servfails]
    record("SERVFAILs", sum(query.servfails for query in asked))
    record("longest wait", round(max(query.longest for query in asked), 3))
    assert Counter(query.rcode for query in asked) == {clients.NOERROR: NAMES}
    assert not any(query.unanswered for query in asked)
    assert max(query.longest for query in asked) < clients.RETRY_SECONDS
    assert failed, "the upstream was gone"
    assert all(killed - 0.5 < query.first < back + 1 for query in failed)
    assert watched.most <= MOST_CONNECTIONS


# A cold name that many want

CLIENTS = 1000


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many file descriptors as there may be: a thousand clients have a socket each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def slowly(asked: Asked) -> None:
    """The right answer, after 300 ms."""
    await asyncio.sleep(0.3)
    asked.send(reply(asked, "A 192.0.2.1", ttl=300))


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "force_tcp"])
def test_a_thousand_clients_that_ask_one_cold_name_cause_one_upstream_query(
    tmp_path: Path, many_files: None, tcp: bool
) -> None:
    with FakeUpstream(slowly) as upstream, contextlib.ExitStack() as stack:
        options = "{\n    force_tcp\n}" if tcp else ""
        server = stack.enter_context(forwarding(tmp_path, f"cache 30\nforward . {upstream.to} {options}"))
        streams = [stack.enter_context(server.tcp_socket()) for _ in range(CLIENTS // 10)]
        sockets = [stack.enter_context(server.udp_socket()) for _ in range(CLIENTS - len(streams))]
        queries = [dns.message.make_query("cold.example", "A", id=number).to_wire() for number in range(CLIENTS)]
        for sock, query in zip(sockets, queries, strict=False):
            sock.send(query)
        for sock, query in zip(streams, queries[len(sockets) :], strict=True):
            sock.sendall(struct.pack("!H", len(query)) + query)
        answers = [dns.message.from_wire(data) for data in [*received(sockets), *map(read_message, streams)] if data]
        assert sorted(answer.id for answer in answers) == list(range(CLIENTS))
        assert {str(answer.answer[0][0]) for answer in answers} == {"192.0.2.1"}
        assert upstream.names() == ["cold.example"]


def received(sockets: list[socket.socket], seconds: float = 4.0) -> list[bytes]:
    """One datagram from each; those that came in time."""
    waiting = {sock.fileno(): sock for sock in sockets}
    poll = select.poll()
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    found, deadline = [], time.monotonic() + seconds
    while waiting and time.monotonic() < deadline:
        for descriptor, _ in poll.poll(100):
            found.append(waiting.pop(descriptor).recv(4096))
            poll.unregister(descriptor)
    return found


def test_a_thousand_names_that_all_fail_cause_one_upstream_query_each(tmp_path: Path) -> None:
    async def fails(asked: Asked) -> None:
        asked.send(reply(asked, rcode="SERVFAIL"))

    with FakeUpstream(fails) as upstream, forwarding(tmp_path, f"cache 30\nforward . {upstream.to}") as server:
        for _ in range(3):
            asked = ask_many(server.port, [f"n{number}.example" for number in range(CLIENTS)])
            assert {query.rcode for query in asked} == {dns.rcode.SERVFAIL}
        assert len(upstream.names()) == len(set(upstream.names())) == CLIENTS


# TTLs

SHOWN = {"short.example": 3, "long.example": 30, "late.example": 20}
"""Names, and the TTL with which the cache begins: the upstream's or its own longest."""


async def with_ttls(asked: Asked) -> None:
    """What the test of TTLs asks for; the answer for `late` takes its time."""
    await asyncio.sleep(1.2 if asked.name == "late.example" else 0)
    asked.send(reply(asked, "A 192.0.2.1", ttl={"short.example": 3, "late.example": 20}.get(asked.name, 300)))


def test_ttls_count_down_by_the_second_until_the_name_is_asked_for_again(tmp_path: Path) -> None:
    with FakeUpstream(with_ttls) as upstream:
        plugins = f"cache 30 {{\n    success 1000 30 1\n}}\nforward . {upstream.to}"
        with forwarding(tmp_path, plugins) as server:
            seen = watch_ttls(server, 4.5)
        for name, first in SHOWN.items():
            assert_counts_down(name, first, seen[name])
        assert Counter(upstream.names()) == {"short.example": 2, "long.example": 1, "late.example": 1}


def assert_counts_down(name: str, first: int, seen: list[tuple[float, int]]) -> None:
    """Each TTL is what is left of the first one, in whole seconds; when nothing is left it begins again."""
    began, before = seen[0][0], first
    for at, shown in seen:
        if shown > before:
            assert at - began > first - 0.2, f"{name} is new again after {at - began:.2f} s"
            began = at
        before = shown
        left = first - (at - began)
        assert left - 0.3 < shown < left + 1.3, f"{name} shows {shown} when {left:.2f} s are left"
        assert 1 <= shown <= first, f"{name} shows {shown}"


def watch_ttls(server: Server, seconds: float) -> dict[str, list[tuple[float, int]]]:
    """The TTLs of answers that come over UDP and TCP by turns, and when."""
    seen: dict[str, list[tuple[float, int]]] = {name: [] for name in SHOWN}
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        for name, found in seen.items():
            message = server.query(name, tcp=len(found) % 2 == 1)
            found.append((time.monotonic() - begun, message.answer[0].ttl))
        time.sleep(0.1)
    return seen
