"""Random, mutated and hypothesis-built packets over real sockets: nobody dies, no answer is malformed, memory is flat.

Every message that SPEC has an answer for must get one, with its own ID; the others must get none.
"""

from __future__ import annotations

import functools
import itertools
import random
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdns.server import packet_cache
from tests.support import corpus, objects, procs
from tests.support.server import Server, read_message

SEED = 20260102
UDP_PACKETS, TCP_MESSAGES = 140_000, 60_000
QUARTERS = 4
WINDOW = 50
CACHE_ENTRIES = 2 * packet_cache.ENTRIES
"""What each packet cache holds at most. It is filled first, so that from there on no packet may cost memory."""
GROWTH = 6 << 20
"""Bytes. Entries of other sizes in the caches of two protocols (2 x 16 MiB at the most, mostly filled before), and what
the allocator keeps, but not a tenth of what 150,000 packets take (300 bytes each and more: 45 MB)."""
CLIENT_SIZE = 1232


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    many = [objects.endpoint(f"10.1.{index // 250}.{index % 250}") for index in range(300)]
    cluster = [
        objects.service("web"),
        objects.service("db", ips=()),
        objects.endpoint_slice("db", [objects.endpoint("10.0.0.1", hostname="db-0"), objects.endpoint("10.0.0.2")]),
        objects.service("big", ips=()),
        objects.endpoint_slice("big", many),
        objects.external_name("out", "web.default.svc.cluster.local"),
    ]
    plugins = "any\nchaos kdns-test\nnsid test"
    with Server(Path(tmp_path_factory.mktemp("hostile")), cluster, plugins=plugins, workers=2) as started:
        yield started


def check(query: bytes, answer: bytes, udp: bool) -> None:
    """An answer that a resolver would accept: its ID and opcode, QR, our sizes, and bytes that dnspython can read."""
    assert answer[:2] == query[:2]
    assert answer[2] & 0x80, "QR is not set"
    assert answer[2] & 0x78 == query[2] & 0x78, "another opcode"
    try:
        rcode, edns, end = read(bytes(2) + bytes((answer[2] & 0x87,)) + answer[3:])
    except dns.exception.DNSException as error:
        raise AssertionError(f"{error!r} in the answer {answer.hex()} to {query.hex()}") from error
    assert rcode in (0, 1, 2, 3, 4, 5, 16), f"{rcode} to {query.hex()}"
    if udp:
        limit = CLIENT_SIZE if edns else 512
        assert len(answer) <= limit, f"{len(answer)} bytes to {query.hex()}"
    assert answer[12:end] == query[12:end], "the question came back changed"


@functools.lru_cache(maxsize=4096)
def read(answer: bytes) -> tuple[int, bool, int]:
    """The response code of an answer, whether it has an OPT, and where its question ends. Many answers are the same.

    Its opcode has to be 0: dnspython reads messages of others in other ways, and what we send then is a header and at
    most a question.
    """
    message = dns.message.from_wire(answer)
    end = 12 + len(message.question[0].name.to_wire() or b"") + 4 if message.question else 12
    return message.rcode(), message.edns >= 0, end


def with_id(data: bytes, number: int) -> bytes:
    """The message with an ID of ours, as far as it has room for one."""
    return struct.pack("!H", number & 0xFFFF)[: len(data)] + data[2:]


def ask_udp(sock: socket.socket, messages: Iterable[bytes]) -> int:
    """Send datagrams in windows and check every answer; returns how many there were."""
    sock.settimeout(2.0)
    answered = 0
    numbers = itertools.count()
    for window in _batched(messages):
        waiting = {}
        for data in window:
            query = with_id(data, next(numbers))
            sock.send(query)
            if corpus.gets_answer(query):
                waiting[query[:2]] = query
        while waiting:
            try:
                answer = sock.recv(65535)
            except TimeoutError:
                pytest.fail(f"no answer to {[query.hex() for query in waiting.values()][:3]}")
            assert answer[:2] in waiting, f"an answer that nobody asked for: {answer.hex()}"
            check(waiting.pop(answer[:2]), answer, udp=True)
            answered += 1
    return answered


def _batched(messages: Iterable[bytes]) -> Iterator[tuple[bytes, ...]]:
    iterator = iter(messages)
    while window := tuple(itertools.islice(iterator, WINDOW)):
        yield window


def ask_tcp(server: Server, messages: Iterable[bytes]) -> int:
    """Pipeline messages in windows on one connection and check every answer; returns how many there were."""
    answered = 0
    numbers = itertools.count()
    with server.tcp_socket() as sock:
        for window in _batched(messages):
            queries = [with_id(data, next(numbers)) for data in window]
            waiting = {query[:2]: query for query in queries if corpus.gets_answer(query)}
            sock.sendall(b"".join(struct.pack("!H", len(query)) + query for query in queries))
            while waiting:
                try:
                    answer = read_message(sock)
                except TimeoutError:
                    answer = None
                if answer is None:
                    pytest.fail(f"no answer over TCP to {[query.hex() for query in waiting.values()][:3]}")
                assert answer[:2] in waiting, f"an answer that nobody asked for: {answer.hex()}"
                check(waiting.pop(answer[:2]), answer, udp=False)
                answered += 1
    return answered


def fill_caches(server: Server) -> None:
    """Ask as many names as the caches of UDP and TCP hold, on the sockets of all workers."""
    names = [f"\x0bname-{number:06d}".encode() + corpus.WEB for number in range(CACHE_ENTRIES)]
    queries = [corpus.ID + corpus.QUERY + name + corpus.A for name in names]
    for _ in range(2 * server.workers):
        with server.udp_socket() as sock:
            ask_udp_quickly(sock, queries)
    for _ in range(2):
        with server.tcp_socket() as tcp:
            for window in _batched(queries):
                tcp.sendall(b"".join(struct.pack("!H", len(query)) + query for query in window))
                for _ in window:
                    read_message(tcp)


def ask_udp_quickly(sock: socket.socket, queries: Iterable[bytes]) -> None:
    """Send in windows and wait for as many answers, without a look at them."""
    sock.settimeout(2.0)
    for window in _batched(queries):
        for query in window:
            sock.send(query)
        for _ in window:
            sock.recv(4096)


def right_answers(server: Server) -> None:
    assert server.texts("web.default.svc.cluster.local") == ["10.96.0.10"]
    assert server.texts("web.default.svc.cluster.local", tcp=True) == ["10.96.0.10"]
    assert len(server.texts("big.default.svc.cluster.local", tcp=True)) == 300
    assert server.query("no.default.svc.cluster.local").rcode() == dns.rcode.NXDOMAIN


def test_each_message_of_the_corpus_is_answered_as_promised(server: Server) -> None:
    expected = {
        "a": "NOERROR", "nxdomain": "NXDOMAIN", "0x20": "NOERROR", "any": "NOERROR", "chaos": "NOERROR",
        "root": "SERVFAIL", "elsewhere": "SERVFAIL", "edns-version": "BADVERS", "edns-twice": "FORMERR",
        "edns-as-answer": "FORMERR", "edns-cut-option": "FORMERR", "notify": "NOTIMP", "update": "NOTIMP",
        "iquery": "NOTIMP", "opcode-15": "NOTIMP", "no-question": "FORMERR", "two-questions": "FORMERR",
        "counts": "FORMERR", "class-any": "REFUSED", "pointer-to-itself": "FORMERR", "label-64": "FORMERR",
        "label-type-10": "FORMERR", "name-255": "NXDOMAIN", "name-256": "FORMERR", "trailing": "FORMERR",
        "binary-labels": "NXDOMAIN", "dots-in-label": "NXDOMAIN", "zone-in-label": "SERVFAIL", "axfr": "REFUSED",
        "header": "FORMERR", "name-cut": "FORMERR", "type-cut": "FORMERR",
    }  # fmt: skip
    found = {}
    for name, data in corpus.SEEDS.items():
        if not corpus.gets_answer(data):
            continue
        for answer in (server.raw_udp(data), *server.raw_tcp(data)):
            assert answer is not None, f"no answer to {name}"
            plain = answer[:2] + bytes((answer[2] & 0x87,)) + answer[3:]
            found[name] = dns.rcode.to_text(dns.message.from_wire(plain).rcode())
            if name in expected:
                assert found[name] == expected[name], name


@pytest.mark.parametrize("name", ["response", "header-cut", "one-byte", "nothing"])
def test_what_gets_no_answer_gets_none(server: Server, name: str) -> None:
    assert server.raw_udp(corpus.SEEDS[name], timeout=0.2) is None
    both = server.raw_tcp(corpus.SEEDS[name], with_id(corpus.SEEDS["a"], 7), timeout=0.2)
    assert [answer[:2] for answer in both] == [b"\x00\x07"]


@pytest.mark.one_speed  # each kind of message is sent at both speeds by the tests above
def test_200000_packets_leave_the_server_as_it_was(server: Server, record: Callable[[str, object], None]) -> None:
    choice = random.Random(SEED)
    fill_caches(server)
    pids = server.pids()
    workers = server.worker_pids()
    memory = []
    answered = 0
    start = time.monotonic()
    for _ in range(QUARTERS):
        for _ in range(10):
            with server.udp_socket() as sock:
                answered += ask_udp(sock, corpus.packets(UDP_PACKETS // QUARTERS // 10, choice))
        for _ in range(10):
            answered += ask_tcp(server, corpus.packets(TCP_MESSAGES // QUARTERS // 10, choice))
        memory.append(procs.private(workers))
    record("seconds", round(time.monotonic() - start, 1))
    record("answered", answered)
    record("private_mib_of_workers_after_each_quarter", [round(size / 2**20, 1) for size in memory])
    assert answered > 100_000
    assert server.pids() == pids, "a process was replaced"
    assert server.metrics().value("coredns_panics_total") == 0
    assert memory[-1] - memory[0] < GROWTH
    right_answers(server)


def test_streams_that_are_no_messages_harm_nobody(server: Server) -> None:
    choice = random.Random(SEED + 1)
    pids = server.pids()
    good = struct.pack("!H", len(corpus.SEEDS["a"])) + corpus.SEEDS["a"]
    for number in range(500):
        with server.tcp_socket() as sock:
            kind = number % 5
            if kind == 0:
                sock.sendall(choice.randbytes(choice.randrange(1, 2000)))
            elif kind == 1:
                sock.sendall(good[: choice.randrange(len(good))])
            elif kind == 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with RST
                sock.sendall(good * 20)
            elif kind == 3:
                sock.sendall(b"\x00\x00" * 100 + good)
            else:
                for byte in good:
                    sock.sendall(bytes((byte,)))
                answer = read_message(sock)
                assert answer is not None
                check(corpus.SEEDS["a"], answer, udp=False)
    assert server.pids() == pids
    right_answers(server)


labels = st.binary(min_size=0, max_size=70)
names = st.one_of(
    st.lists(labels, max_size=12).map(lambda found: b"".join(bytes((len(x) & 0xFF,)) + x for x in found) + b"\x00"),
    st.lists(labels, max_size=6).map(lambda found: b"".join(bytes((len(x) & 0xFF,)) + x for x in found) + corpus.WEB),
    st.binary(max_size=40),
)
numbers16 = st.one_of(st.sampled_from([0, 1, 2, 5, 6, 12, 16, 28, 33, 41, 250, 251, 252, 255]), st.integers(0, 0xFFFF))
counts = st.one_of(st.sampled_from([0, 1, 1, 1, 2]), st.integers(0, 0xFFFF))
records = st.builds(
    lambda name, rtype, klass, ttl, length, rdata: (
        name + struct.pack("!HHIH", rtype, klass, ttl, len(rdata) if length is None else length) + rdata
    ),
    names,
    numbers16,
    numbers16,
    st.integers(0, 0xFFFFFFFF),
    st.one_of(st.none(), st.none(), st.integers(0, 0xFFFF)),
    st.binary(max_size=60),
)
built = st.builds(
    lambda flags, count, name, rtype, klass, more, rest: (
        corpus.ID
        + struct.pack("!HHHHH", flags, count, *more)
        + name
        + struct.pack("!HH", rtype, klass)
        + b"".join(rest)
    )[:4096],
    st.one_of(st.just(0x0100), st.integers(0, 0xFFFF)),
    st.one_of(st.just(1), counts),
    names,
    numbers16,
    st.one_of(st.just(1), numbers16),
    st.tuples(counts, counts, counts),
    st.lists(records, max_size=4),
)


@settings(max_examples=300, suppress_health_check=list(HealthCheck), derandomize=True)
@given(messages=st.lists(built, min_size=1, max_size=40))
def test_whatever_hypothesis_builds_is_answered_in_form(server: Server, messages: list[bytes]) -> None:
    with server.udp_socket() as sock:
        ask_udp(sock, messages)
    ask_tcp(server, messages)
