"""`top_names`: which names are asked for most, found by looking at few answers, in every way that answers go."""

from __future__ import annotations

import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.name
import dns.rcode
import pytest

from kdns.observe.counters import QueryCounters, Region
from kdns.observe.notes import Notes, TopName, read, top_names
from kdns.observe.recent import Message
from kdns.plugins import loads, prometheus
from kdns.plugins.chain import link
from kdns.server import sampling
from kdns.server.respond import Block, Responder, Waiting
from kdns.server.sampling import INTERVAL, LONGEST, Sampler, TopNames
from kdns.wire import names
from kdns.wire.message import Query, Response
from tests.support import objects, procs
from tests.support.configs import options, refused
from tests.support.server import Server
from tests.support.upstream import Asked, FakeUpstream, reply

pytestmark = pytest.mark.one_speed

SECOND = 1_000_000_000
METRIC = "kdns_top_names"


def answer(name: str, rdtype: str = "A", rcode: int = 0, rdclass: str = "IN") -> bytes:
    query = dns.message.make_query(name, rdtype, rdclass, id=4711)
    response = dns.message.make_response(query)
    response.set_rcode(dns.rcode.Rcode(rcode))
    return response.to_wire()


# The option


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("prometheus", 0),
        ("prometheus :9153 {\n}", 0),
        ("prometheus {\ntop_names\n}", 20),
        ("prometheus :9153 {\ntop_names 1\n}", 1),
        ("prometheus {\ntop_names 100\n}", 100),
    ],
)
def test_it_is_off_unless_asked_for_and_has_a_usual_number(text: str, most: int) -> None:
    assert options(text).top_names == most


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("prometheus {\ntop_names 0\n}", '2: prometheus: "0" is out of range'),
        ("prometheus {\ntop_names 101\n}", '2: prometheus: "101" is out of range'),
        ("prometheus {\ntop_names many\n}", '2: prometheus: "many" is not a whole number'),
        ("prometheus {\ntop_names 5 6\n}", '2: prometheus: "top_names" has 2 arguments'),
        ("prometheus {\ntop_names {\nx\n}\n}", '2: prometheus: "top_names" has a block'),
        ("prometheus {\ntopnames\n}", '2: prometheus has no option "topnames"'),
        ("prometheus {\ntop_names\ntop_names 5\n}", '3: prometheus: "top_names" is given twice'),
    ],
)
def test_a_mistake_in_it_is_named(text: str, mistake: str) -> None:
    assert refused(text) == [mistake]


# What is looked at


@pytest.mark.parametrize(
    ("message", "question"),
    [
        (answer("Web.Shop.svc.CLUSTER.local", "AAAA"), ("web.shop.svc.cluster.local.", 28, 0)),
        (answer(".", "NS", 2), (".", 2, 2)),
        (answer("x.test", "TYPE65280", 3), ("x.test.", 65280, 3)),
        (answer(r"a\000b\255.test"), (r"a\000b\255.test.", 1, 0)),
        (answer("version.bind", "TXT", rdclass="CH"), None),
        (answer("x.test")[:20], None),
        (answer("x.test")[:5] + b"\0" + answer("x.test")[6:], None),
        (b"\0" * 12, None),
        (b"", None),
    ],
)
def test_the_question_of_an_answer(message: bytes, question: tuple[str, int, int] | None) -> None:
    found = sampling.read(message)
    assert (None if found is None else (names.to_text(found[0]), *found[1:])) == question


def test_the_longest_name_is_read_from_the_part_that_is_looked_at() -> None:
    name = ".".join(["x" * 63] * 3 + ["y" * 61])
    whole = answer(name)
    assert len(whole) > 255
    found = sampling.read(whole[:LONGEST])
    assert found is not None
    assert names.to_text(found[0]) == f"{name}."


class Counted(TopNames):
    """Notes what it is given."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self.looks = 0

    def add(self, question: tuple[bytes, int, int], weight: float, now: float) -> None:
        self.found[names.to_text(question[0])] += int(weight)
        self.looks += 1


def test_few_answers_are_looked_at_and_they_stand_for_all() -> None:
    counted = Counted()
    sampler = Sampler(counted)
    wanted = {"half.test": 0.5, "fourth.test": 0.25, "small.test": 0.05, "rest.test": 0.2}
    wires = {name: answer(name) for name in wanted}
    chance = random.Random(1)
    total, seconds, batch = 0, 20, 64
    for tick in range(seconds * 4000):  # a batch of 64 each 250 microseconds
        name = chance.choices(list(wanted), list(wanted.values()))[0]
        sampler.offer(wires[name], batch, tick * SECOND // 4000)
        total += batch
    assert counted.looks <= seconds * SECOND / INTERVAL + 1
    assert sum(counted.found.values()) == pytest.approx(total, rel=0.001)
    for name, share in wanted.items():
        assert counted.found[f"{name}."] / total == pytest.approx(share, abs=0.03)


def test_every_one_of_a_few_answers_is_looked_at() -> None:
    counted = Counted()
    sampler = Sampler(counted)
    for number in range(300):
        sampler.one(answer(f"{number}.test"), number * INTERVAL)
    assert counted.found == Counter({f"{number}.test.": 1 for number in range(300)})


def test_a_pair_that_always_comes_together_is_counted_alike() -> None:
    """As A and AAAA of one look-up, of which the first always comes after a pause."""
    counted = Counted()
    sampler = Sampler(counted)
    for number in range(4000):
        sampler.one(answer("first.test"), number * SECOND)
        sampler.one(answer("second.test"), number * SECOND + 1000)
    assert counted.found["first.test."] == pytest.approx(4000, rel=0.1)
    assert counted.found["second.test."] == pytest.approx(4000, rel=0.1)


def test_names_of_other_server_blocks_are_not_counted() -> None:
    async def nobody(_: Query) -> Response:
        return Response()

    def block(sampler: Sampler | None) -> Block:
        counters = QueryCounters(region, "dns://:53", ".")
        return Block(counters, link([], nobody), None, None, None, sampler.one if sampler is not None else None)

    counted = Counted()
    with Region.create() as region:
        blocks = {names.from_text("in.test."): block(Sampler(counted)), names.from_text("out.test."): block(None)}
        sampler = Responder("dns://:53", blocks, region, print, Waiting(), None, counted).sampler()
        assert sampler is not None
        for number, name in enumerate(("x.in.test", "x.out.test", "elsewhere.test", "in.test")):
            sampler.offer(answer(name), 1, number * INTERVAL)
        assert counted.found == Counter({"x.in.test.": 1, "in.test.": 1})
        assert Responder("dns://:53", {}, region, print, Waiting(), None, counted).sampler() is None


# What is told


def test_notes_come_back_as_they_were_and_what_is_damaged_is_left_out() -> None:
    notes = Notes((Message("ERROR", "k", "t\U0001f600", 1.0, 2.0, 3),), (TopName("a.test.", "A", "NOERROR", 1.5),))
    data = notes.encode()
    assert read([data, data[:-3], b"", b"\xc1", b"\x93\1\2\3", Notes().encode()]) == [notes, Notes()]


def test_workers_are_added_up_and_only_so_many_names_are_told() -> None:
    def notes(**rates: float) -> Notes:
        return Notes(names=tuple(TopName(name, "A", "NOERROR", rate) for name, rate in rates.items()))

    found = top_names([notes(a=5, b=3), notes(b=4, c=1), notes(c=1)], 2)
    assert found == [TopName("b", "A", "NOERROR", 7), TopName("a", "A", "NOERROR", 5)]


# A server


COREFILE = """\
(all) {
    bind 127.0.0.1
    prometheus 127.0.0.1:$metrics {
        top_names 5
    }
}
.:$dns {
    import all
    ready 127.0.0.1:$ready
    kubernetes cluster.local {
        manifests $manifests
    }
    $plugins
}
hidden.test:$dns {
    bind 127.0.0.1
    prometheus 127.0.0.1:$metrics
    whoami
}
"""
WEB, NOTHING = "web.default.svc.cluster.local", "nothing.default.svc.cluster.local"


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeUpstream]:
    async def denies(asked: Asked) -> None:
        asked.send(reply(asked, rcode="NXDOMAIN"))

    with FakeUpstream(denies) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def started() -> float:
    return time.monotonic()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, upstream: FakeUpstream, started: float) -> Iterator[Server]:
    cluster = [objects.service("web", ips=["10.96.0.1"])]
    folder: Path = tmp_path_factory.mktemp("top-names")
    with Server(folder, cluster, corefile=COREFILE, plugins=f"forward . {upstream.to}", workers=2) as server:
        yield server


def ask_over_udp(server: Server, queries: dict[bytes, int], batches: int) -> None:
    """So many batches of so many of each query, each answered before the next; from several ports, for both workers."""
    socks = [server.udp_socket() for _ in range(8)]
    for number in range(batches):
        sock = socks[number % len(socks)]
        sock.settimeout(5)
        for query, count in queries.items():
            for _ in range(count):
                sock.send(query)
        for _ in range(sum(queries.values())):
            sock.recv(4096)
        time.sleep(INTERVAL / SECOND)
    for sock in socks:
        sock.close()


def told(server: Server) -> dict[tuple[str, str, str], float]:
    found = server.metrics().samples.items()
    return {
        (labels["name"], labels["type"], labels["rcode"]): value
        for (name, pairs), value in found
        if name == METRIC and (labels := dict(pairs))
    }


def test_the_metric_tells_names_types_codes_and_about_how_often(server: Server, started: float) -> None:
    web, aaaa, nothing, outside, hidden = (
        dns.message.make_query(name, rdtype).to_wire()
        for name, rdtype in (
            (WEB.upper(), "A"),
            (WEB, "AAAA"),
            (NOTHING, "A"),
            ("outside.test", "A"),
            ("x.hidden.test", "A"),
        )
    )
    begun = time.monotonic()
    ask_over_udp(server, {web: 8, aaaa: 4, nothing: 2, outside: 1, hidden: 8}, 300)
    with server.tcp_socket() as sock:
        for _ in range(300):
            sock.sendall(len(web).to_bytes(2, "big") + web)
            size = int.from_bytes(_exactly(sock, 2), "big")
            _exactly(sock, size)
    wanted = {
        (f"{WEB}.", "A", "NOERROR"): 300 * 8 + 300,
        (f"{WEB}.", "AAAA", "NOERROR"): 300 * 4,
        (f"{NOTHING}.", "A", "NXDOMAIN"): 300 * 2,
        ("outside.test.", "A", "NXDOMAIN"): 300,
    }
    ended = time.monotonic()
    time.sleep(1.5)  # workers tell once a second
    procs.wait_until(lambda: wanted.keys() <= told(server).keys(), 10, "all names in the metric")
    found = told(server)
    assert set(found) - {("dns-version.cluster.local.", "TXT", "NOERROR")} == set(wanted)
    total, rates = sum(wanted.values()), sum(found[key] for key in wanted)
    for key, count in wanted.items():
        assert found[key] / rates == pytest.approx(count / total, abs=0.12), (found, wanted)
    assert 0.8 * total / (time.monotonic() - started) < rates < 1.2 * total / (ended - begun)


def test_no_more_names_are_told_than_wanted_and_any_byte_may_be_in_them(server: Server) -> None:
    strange = [rf"{'many' * number}\000\255\"\\\010.cluster.local" for number in range(1, 9)]
    queries = {dns.message.make_query(name, "A").to_wire(): 30 for name in strange}
    ask_over_udp(server, queries, 12)

    def shown() -> bool:
        return any("\\000\\255" in name for name, _, _ in told(server))

    procs.wait_until(shown, 10, "a name with strange bytes")
    assert len(told(server)) == 5
    assert all(dns.name.from_text(name) for name, _, _ in told(server))


def test_without_the_option_nothing_is_told(server: Server) -> None:
    server.write_corefile(COREFILE.replace("top_names 5", ""))
    server.signal(signal.SIGUSR1)
    procs.wait_until(lambda: not told(server), 10, "no names")


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += sock.recv(size - len(data))
    return data


def test_the_largest_number_of_several_server_blocks_counts() -> None:
    text = "a.test {\nprometheus {\ntop_names 7\n}\n}\nb.test {\nprometheus {\ntop_names 9\n}\n}\nc.test {\nwhoami\n}\n"
    assert prometheus.most_names(loads(text).blocks) == 9
    assert prometheus.most_names(loads("c.test {\nprometheus\n}").blocks) == 0
