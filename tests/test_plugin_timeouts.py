"""timeouts: what a client may take on a TCP connection."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

import dns.message
import pytest

from kdns.plugins import timeouts
from kdns.plugins.timeouts import Limits, Options
from tests.conftest import Serve
from tests.support import ports, procs
from tests.support.configs import options, refused
from tests.support.server import Server, read_message

COREFILE = """
.:$dns {
    bind 127.0.0.1
    ready $host:$ready
    prometheus $host:$metrics
    timeouts {
        read 1s
        write 1s
        idle 24h
        maxtcpqueries 9
    }
    whoami
}
last.test:$dns {
    bind 127.0.0.1
    timeouts {
        idle 2
        maxtcpqueries 3
    }
    whoami
}
slow.test:$dns {
    bind 127.0.0.1
    cancel 1800ms
    forward . $silent {
        prefer_udp
    }
}
.:$other {
    bind 127.0.0.1
    timeouts {
        write 1s
        maxtcpqueries -1
    }
    whoami
}
"""


def framed(*idents: int, name: str = "a.test") -> bytes:
    queries = [dns.message.make_query(name, "A", id=ident).to_wire() for ident in idents]
    return b"".join(struct.pack("!H", len(query)) + query for query in queries)


@pytest.fixture
def other() -> int:
    """The port of the second address."""
    return ports.free_port()


@pytest.fixture
def server(serve: Serve, other: int) -> Iterator[Server]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        yield serve(corefile=COREFILE.replace("$other", str(other)).replace("$silent", where))


def idents(sock: socket.socket) -> Iterator[int]:
    """The IDs of all answers until the connection is closed."""
    while (answer := read_message(sock)) is not None:
        yield int.from_bytes(answer[:2], "big")


def flood(sock: socket.socket) -> None:
    """Send queries until no more are read."""
    chunk = framed(*range(1000))
    for _ in range(1000):
        sock.sendall(chunk)


def closed(server: Server, reason: str) -> float:
    return server.metrics().value("kdns_tcp_connections_closed_total", reason=reason)


def test_a_message_has_to_be_complete_and_something_has_to_come_in_time(server: Server) -> None:
    with server.tcp_socket(timeout=9) as incomplete, server.tcp_socket(timeout=9) as idle:
        begun = time.monotonic()
        incomplete.sendall(framed(1)[:-1])
        idle.sendall(framed(1))
        assert incomplete.recv(1) == b""
        assert 1 <= time.monotonic() - begun < 4
        assert list(idents(idle)) == [1]
        assert 2 <= time.monotonic() - begun < 5
    assert (closed(server, "incomplete"), closed(server, "idle")) == (1, 1)


def test_the_last_query_that_a_connection_may_ask_is_answered(server: Server) -> None:
    with server.tcp_socket() as sock:
        sock.sendall(framed(1, 2, 3, 4) + b"\0")
        assert list(idents(sock)) == [1, 2, 3]
        sock.sendall(framed(5))  # while it waits for us to close
    with server.tcp_socket() as sock:
        for ident in (1, 2, 3):
            sock.sendall(framed(ident))
            assert (read_message(sock) or b"")[:2] == struct.pack("!H", ident)
        begun = time.monotonic()
        assert sock.recv(1) == b""
        assert time.monotonic() - begun < 0.5
        procs.wait_until(lambda: server.metrics().value("kdns_tcp_connections") == 0, 5, "the end of a slow client's")
    with server.tcp_socket() as sock:
        sock.sendall(framed(1, 2, 3))
        sock.shutdown(socket.SHUT_WR)
        assert list(idents(sock)) == [1, 2, 3]
    procs.wait_until(lambda: server.metrics().value("kdns_tcp_connections") == 0, 5, "the end of all")
    assert closed(server, "queries") == 3
    assert closed(server, "incomplete") == 0


def test_the_last_query_may_wait_for_its_answer(server: Server) -> None:
    with server.tcp_socket(timeout=5) as sock:
        sock.sendall(framed(1) + framed(2, name="slow.test") + framed(3) + b"\0")
        begun = time.monotonic()
        assert list(idents(sock)) == [1, 3, 2]
        assert time.monotonic() - begun > 1.7
    assert (closed(server, "queries"), closed(server, "incomplete")) == (1, 0)


def test_answers_have_to_be_taken_in_time_and_another_address_has_its_own_limits(server: Server, other: int) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", other))
        sock.settimeout(0.3)
        with pytest.raises((TimeoutError, ConnectionError)):
            flood(sock)
        begun = time.monotonic()
        procs.wait_until(lambda: closed(server, "slow") == 1, 9, "the end of a client that takes nothing")
        assert time.monotonic() - begun < 4.5
    assert closed(server, "queries") == 0


def test_options() -> None:
    found = options("timeouts {\nread 1s\nwrite 1m\nidle 24h\nmaxtcpqueries -1\n}")
    assert found == Options(1, 60, 86400, -1)
    assert options("timeouts {\nmaxtcpqueries 7\n}") == Options(maxtcpqueries=7)
    assert options("timeouts {\nread 10\nidle 60\n}") == Options(read=10, idle=60)


def test_of_each_option_the_last_one_holds_for_an_address() -> None:
    assert timeouts.together([]) == Limits(5, 5, 10, -1)
    assert timeouts.together([Options(read=2, idle=3), Options(idle=4, maxtcpqueries=5)]) == Limits(2, 5, 4, 5)
    assert timeouts.together([Options(maxtcpqueries=5), Options(maxtcpqueries=-1)]).queries == -1


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ("timeouts", "1: timeouts has none"),
        ("timeouts 5s {\nread 1s\n}", "1: timeouts has 1 argument"),
        ("timeouts {\nread 999ms\n}", '2: timeouts: "999ms" is too short'),
        ("timeouts {\nidle 25h\n}", '2: timeouts: "25h" is too long'),
        ("timeouts {\nread 0\n}", '2: timeouts: "0s" is too short'),
        ("timeouts {\nwrite\n}", '2: timeouts: "write" has 0 arguments'),
        ("timeouts {\nmaxtcpqueries 0\n}", "2: timeouts: 0 queries are none at all"),
        ("timeouts {\nmaxtcpqueries -2\n}", '2: timeouts: "-2" is out of range'),
        ("timeouts {\nreads 1s\n}", '2: timeouts has no option "reads"'),
    ],
)
def test_mistakes(directive: str, message: str) -> None:
    assert refused(directive) == [message]
