"""`cache` in front of `forward`, as clients and the upstream see it: every option, over UDP and TCP."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from tests.conftest import Serve
from tests.support.server import Server
from tests.support.upstream import Asked, FakeUpstream

SECONDS = 3.7
"""How long clients ask, again and again."""
STEP = 0.1
FIRST = 0.35
"""How late the first answer may be, beyond what is expected, on a busy machine."""

SOA = "example. {} IN SOA ns.example. hostmaster.example. 1 7200 1800 86400 {}"
ADDRESSES = {"A": "192.0.2.", "AAAA": "2001:db8::"}
BLOCKS = {
    "counts.test": "success 9984 3600 1\ndenial 9984 1800 1\nservfail 1s",
    "keeps.test": "success 9984 3600 1\nkeepttl",
    "popular.test": "success 9984 3600 1\nprefetch 3 1m 60%",
    "unpopular.test": "success 9984 3600 1\nprefetch 1000 1m 60%",
    "stale.test": "success 9984 3600 1\nserve_stale 1h immediate 7s 1s",
    "old.test": "success 9984 3600 1\nserve_stale 1s",
    "verify.test": "success 9984 3600 1\nserve_stale 1h verify 0 9s",
    "patient.test": "success 9984 3600 1\nserve_stale 1h verify 50ms 8s 10s",
    "prefer.test": "success 9984 3600 1\ndenial 9984 1800 1\nserve_stale 1h\nserve_stale_policy prefer_positive",
    "off.test": "disable success\ndisable denial sub.off.test",
}
"""What a name in a block begins with says what the upstream answers: see `World.script`."""


OURS = """cache 30 {
denial 9984 20
}
hosts {
192.0.2.1 long.ours.test
fallthrough
}
template IN A ours.test {
match ^short
answer "{{ .Name }} 2 IN CNAME long.ours.test"
answer "long.ours.test 7 IN A 192.0.2.1"
additional "{{ .Name }} 31 IN TXT more"
fallthrough
}
template IN ANY ours.test {
match ^no
rcode NXDOMAIN
authority "ours.test 25 IN SOA . . 1 2 3 4 25"
fallthrough
}"""
"""What the server answers itself, behind its cache."""


def corefile(upstream: FakeUpstream) -> str:
    """A server block for each of BLOCKS, one whose cache has no options, OURS, and one for all else."""
    caches = {zone: f"cache {{\n{options}\n}}" for zone, options in BLOCKS.items()}
    caches |= {"plain.test": "cache", "ours.test": OURS, ".": "ready $host:$ready\ncache 2 short.test"}
    return "".join(
        f"{zone}:$dns {{\nbind $addresses\nprometheus $host:$metrics\n{lines}\nforward . {upstream.to}\n}}\n"
        for zone, lines in caches.items()
    )


class World:
    """What the upstream says. asked: how often, by name; times: when, in seconds of time.monotonic()."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.times: dict[str, list[float]] = defaultdict(list)

    async def script(self, asked: Asked) -> None:
        """The n-th answer for a name is 192.0.2.n. `LABEL-TTL.zone`; the label says what else there is."""
        name = asked.name.lower()
        self.asked[name] += 1
        self.times[name].append(time.monotonic())
        number = self.asked[name]
        what, _, seconds = name.partition(".")[0].partition("-")
        ttl = int(seconds) if seconds.isdecimal() else 60
        query = asked.message
        if what == "slow" or (what == "slower" and number > 1):
            await asyncio.sleep(0.5)
        reply = dns.message.make_response(query, recursion_available=True)
        owner = query.question[0].name
        if what == "fail" or (what == "fails" and number > 1):
            reply.set_rcode(dns.rcode.SERVFAIL)
        elif what == "no" or (what == "gone" and number > 1):
            reply.set_rcode(dns.rcode.NXDOMAIN)
            soa = SOA.format(ttl, ttl).split(" ", 4)
            reply.authority.append(dns.rrset.from_text(soa[0], int(soa[1]), *soa[2:]))
        elif what == "big":
            texts = [f'"{number:03}{"x" * 200}"' for number in range(40)]
            reply.answer.append(dns.rrset.from_text(owner, 60, "IN", "TXT", *texts))
            if asked.proto == "udp":
                reply.answer.clear()
                reply.flags |= dns.flags.TC
        elif asked.rdtype in ADDRESSES:
            address = f"{ADDRESSES[asked.rdtype]}{number % 256}"
            reply.answer.append(dns.rrset.from_text(owner, ttl, "IN", asked.rdtype, address))
            reply.flags |= dns.flags.AA
        asked.send(reply.to_wire())


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer. at: seconds since the first query. took: seconds. ttls: of all records. number: the A record's."""

    at: float
    took: float
    rcode: str
    ttls: tuple[int, ...]
    number: int


@dataclass
class Place:
    """A server, its upstream, and what clients saw of each name."""

    server: Server
    world: World
    seen: dict[str, list[Seen]] = field(default_factory=lambda: defaultdict(list))

    def ask(self, name: str, rdtype: str = "A", *, tcp: bool = False, started: float = 0.0) -> Seen:
        before = time.monotonic()
        reply = self.server.query(name, rdtype, tcp=tcp)
        after = time.monotonic()
        sections = (*reply.answer, *reply.authority)
        number = int(str(reply.answer[0][0]).rpartition(".")[2]) if reply.answer and rdtype == "A" else 0
        ttls = tuple(rrset.ttl for rrset in sections)
        return Seen(before - started, after - before, dns.rcode.to_text(reply.rcode()), ttls, number)


WATCHED = (
    "a-3.counts.test", "no-2.counts.test", "fail.counts.test", "a-300.short.test", "a-300.plain.test", "a-0.plain.test",
    "a-2.keeps.test", "a-3.popular.test", "a-3.unpopular.test", "fails-1.stale.test", "a-1.stale.test",
    "fails-1.old.test", "fails-1.verify.test", "a-1.verify.test", "slower-1.patient.test", "gone-1.prefer.test",
    "gone-1.stale.test", "a-60.off.test", "no-60.off.test", "no-60.sub.off.test", "a-60.none.test",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Clients ask for all names every STEP seconds, by turns over UDP and TCP."""
    world = World()
    with FakeUpstream(world.script) as upstream:
        folder = tmp_path_factory.mktemp("cache")
        with Server(folder, corefile=corefile(upstream)) as server:
            found = Place(server, world)
            started = time.monotonic()
            turn = 0
            while time.monotonic() < started + SECONDS:
                for name in WATCHED:
                    found.seen[name].append(found.ask(name, tcp=turn % 3 == 2, started=started))
                turn += 1
                time.sleep(max(0.0, started + turn * STEP - time.monotonic()))
            yield found


def falls(seen: list[Seen]) -> bool:
    """Whether the TTL of each answer of the upstream is what is left of the first."""
    first: dict[int, Seen] = {}
    for one in seen:
        first.setdefault(one.number, one)
        begun = first[one.number]
        for ttl in one.ttls:
            elapsed = one.at - begun.at
            if not begun.ttls[0] - elapsed - 1.2 <= ttl <= begun.ttls[0] - elapsed + 1.2:
                return False
    return True


def test_ttls_fall_until_the_upstream_is_asked_again(place: Place) -> None:
    seen = place.seen["a-3.counts.test"]
    assert place.world.asked["a-3.counts.test"] == 2
    assert [*dict.fromkeys(one.number for one in seen)] == [1, 2]
    assert {one.ttls[0] for one in seen if one.number == 1} == {3, 2, 1}
    assert falls(seen)
    first, second = place.world.times["a-3.counts.test"]
    assert 3 <= second - first < 3 + FIRST


def test_denials_last_as_the_soa_says(place: Place) -> None:
    seen = place.seen["no-2.counts.test"]
    assert place.world.asked["no-2.counts.test"] == 2
    assert {one.rcode for one in seen} == {"NXDOMAIN"}
    assert {one.ttls for one in seen} == {(2,), (1,)}


def test_failures_last_as_servfail_says(place: Place) -> None:
    seen = place.seen["fail.counts.test"]
    assert {one.rcode for one in seen} == {"SERVFAIL"}
    assert 3 <= place.world.asked["fail.counts.test"] <= 4


def test_a_ttl_is_the_longest_and_zones_say_which_names(place: Place) -> None:
    assert {one.ttls[0] for one in place.seen["a-300.short.test"]} == {2, 1}
    assert place.world.asked["a-300.short.test"] == 2
    assert {one.ttls[0] for one in place.seen["a-60.none.test"]} == {60}
    assert place.world.asked["a-60.none.test"] == len(place.seen["a-60.none.test"])


def test_without_options_answers_last_as_they_say_but_at_least_5_seconds(place: Place) -> None:
    assert place.seen["a-300.plain.test"][0].ttls == (300,)
    assert place.world.asked["a-300.plain.test"] == place.world.asked["a-0.plain.test"] == 1
    assert place.seen["a-0.plain.test"][0].ttls == (5,)
    assert falls(place.seen["a-0.plain.test"])


def test_keepttl(place: Place) -> None:
    assert {one.ttls[0] for one in place.seen["a-2.keeps.test"]} == {2}
    assert place.world.asked["a-2.keeps.test"] == 2


def test_prefetch_asks_before_the_end_for_what_is_popular(place: Place) -> None:
    popular, unpopular = (place.world.times[name] for name in ("a-3.popular.test", "a-3.unpopular.test"))
    gaps = [later - earlier for earlier, later in pairwise(popular)]
    assert len(gaps) >= 2
    assert max(gaps) < 2.5
    assert min(gaps) >= 0.8
    assert unpopular[1] - unpopular[0] >= 3


def test_serve_stale_answers_at_once_and_asks_again_no_sooner_than_told(place: Place) -> None:
    seen = place.seen["fails-1.stale.test"]
    assert {(one.rcode, one.number) for one in seen} == {("NOERROR", 1)}
    assert {one.ttls[0] for one in seen if one.at > seen[0].at + 1.2} == {7}
    assert 3 <= place.world.asked["fails-1.stale.test"] <= 4
    times = place.world.times["fails-1.stale.test"]
    assert min(later - earlier for earlier, later in pairwise(times)) >= 0.95


def test_serve_stale_renews_for_the_next_client(place: Place) -> None:
    seen = place.seen["a-1.stale.test"]
    stale = [one for one in seen if one.ttls == (7,)]
    assert 2 <= len(stale) <= 6
    assert place.world.asked["a-1.stale.test"] >= 3
    assert place.seen["gone-1.stale.test"][-1].rcode == "NXDOMAIN"


def test_stale_answers_end(place: Place) -> None:
    seen = place.seen["fails-1.old.test"]
    assert {one.rcode for one in seen if one.at < seen[0].at + 1.8} == {"NOERROR"}
    assert {one.rcode for one in seen if one.at > seen[0].at + 2.2} == {"SERVFAIL"}
    assert {one.ttls[0] for one in seen if 1.2 < one.at - seen[0].at < 1.8} == {0}


def test_serve_stale_verify_asks_first(place: Place) -> None:
    seen = place.seen["fails-1.verify.test"]
    late = [one for one in seen if one.at > seen[0].at + 1.2]
    assert {(one.rcode, one.number, one.ttls) for one in late} == {("NOERROR", 1, (9,))}
    assert place.world.asked["fails-1.verify.test"] > len(late)
    assert {one.ttls for one in place.seen["a-1.verify.test"]} == {(1,)}


def test_serve_stale_verify_does_not_wait_for_ever(place: Place) -> None:
    """The upstream takes 500 ms, clients are told what is stale after 50, and get what is new as soon as it is here."""
    seen = place.seen["slower-1.patient.test"]
    stale = [one for one in seen if one.ttls == (8,)]
    assert stale
    assert stale[0].took < 0.4
    assert {one.number for one in stale} <= {1, 2, 3}
    assert {1, 2} <= {one.number for one in seen}


def test_serve_stale_policy_prefers_what_there_was(place: Place) -> None:
    seen = place.seen["gone-1.prefer.test"]
    assert {(one.rcode, one.number) for one in seen} == {("NOERROR", 1)}
    assert place.world.asked["gone-1.prefer.test"] > 1


def test_disable(place: Place) -> None:
    for name, kept in (("a-60.off.test", False), ("no-60.sub.off.test", False), ("no-60.off.test", True)):
        assert place.world.asked[name] == (1 if kept else len(place.seen[name]))


def test_metrics(place: Place) -> None:
    """Answers of the packet cache are answers of the cache."""
    asked = len(place.seen["a-60.off.test"])
    here = place.server.metrics()
    where = {"zones": "plain.test.", "view": ""}

    def value(name: str, **labels: str) -> float:
        return here.value(f"coredns_cache_{name}", **(where | labels))

    assert value("requests_total") == 2 * asked
    assert value("misses_total") == 2
    assert value("hits_total", type="success") == 2 * asked - 2
    assert value("entries", type="success") == 2
    stale = here.value("coredns_cache_served_stale_total", zones="stale.test.")
    assert stale >= sum(one.ttls == (7,) for name in WATCHED for one in place.seen[name])
    assert here.value("coredns_cache_prefetch_total", zones="popular.test.") >= 2
    assert here.value("coredns_cache_prefetch_total", zones="unpopular.test.") == 0


# Single questions


@pytest.mark.parametrize(
    ("name", "ttls"), [("long", [30]), ("no.long", [20]), ("short", [2, 7, 30])], ids=["hosts", "denial", "mixed"]
)
def test_answers_of_our_own_have_no_longer_ttls_and_are_not_kept(place: Place, name: str, ttls: list[int]) -> None:
    for _ in range(2):
        reply = place.server.query(f"{name}.ours.test")
        assert [rrset.ttl for section in reply.sections[1:] for rrset in section] == ttls


def test_hits_are_equal_to_the_first_answer(place: Place) -> None:
    query = dns.message.make_query("a-60.hits.plain.test", "A", id=7).to_wire()
    first, *others = [place.server.raw_udp(query) for _ in range(4)]
    assert first is not None
    assert dns.message.from_wire(first).flags & dns.flags.AA
    assert set(others) == {first}
    assert [place.server.raw_tcp(query), place.server.raw_tcp(query)] == [[first], [first]]
    assert place.world.asked["a-60.hits.plain.test"] == 1


def test_do_cd_and_type_are_kept_apart_and_the_case_of_names_is_not(place: Place) -> None:
    name = "a-60.keys.plain.test"
    for _ in range(3):
        place.server.query(name)
        place.server.query(name.upper())
        place.server.query(name, want_dnssec=True)
        place.server.query(name, flags=dns.flags.RD | dns.flags.CD)
        place.server.query(name, "AAAA")
    assert place.world.asked[name] == 4


def test_a_large_answer_is_kept_whole_and_cut_for_each_client(place: Place) -> None:
    small = place.server.query("big.plain.test", "TXT", use_edns=False)
    assert small.flags & dns.flags.TC
    assert len(small.answer) == 0 or len(small.answer[0]) < 40
    whole = place.server.query("big.plain.test", "TXT", tcp=True)
    assert len(whole.answer[0]) == 40
    assert place.world.asked["big.plain.test"] == 2  # over UDP, then over TCP


def test_a_thousand_clients_asking_a_cold_name_cause_one_query(place: Place) -> None:
    name = "slow-60.plain.test"
    query = dns.message.make_query(name, "A").to_wire()
    clients = [place.server.udp_socket() for _ in range(200)]
    streams = [place.server.tcp_socket() for _ in range(50)]
    try:
        for number in range(800):
            clients[number % len(clients)].send(struct.pack("!H", number) + query[2:])
        framed = struct.pack("!H", len(query)) + query
        for stream in streams:
            stream.sendall(framed * 4)
        streams[0].close()
        answers = [received(clients[number % len(clients)]) for number in range(800)]
        assert sorted(answer[:2] for answer in answers) == sorted(struct.pack("!H", number) for number in range(800))
        assert {answer[2:] for answer in answers} == {answers[0][2:]}
        for stream in streams[1:]:
            stream.settimeout(3)
            assert len(exactly(stream, 4 * (2 + len(answers[0])))) == 4 * (2 + len(answers[0]))
    finally:
        for sock in clients + streams:
            sock.close()
    assert place.world.asked[name] == 1


def received(sock: socket.socket) -> bytes:
    sock.settimeout(3)
    return sock.recv(4096)


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := sock.recv(size - len(data))):
        data += part
    return data


def test_a_client_that_hangs_up_leaves_the_query_to_the_next(place: Place) -> None:
    query = dns.message.make_query("slow-60.left.plain.test", "A").to_wire()
    with place.server.tcp_socket() as stream:
        stream.sendall(struct.pack("!H", len(query)) + query)
        wait(lambda: place.world.asked["slow-60.left.plain.test"] == 1)
    started = time.monotonic()
    assert place.ask("slow-60.left.plain.test").number == 1
    assert time.monotonic() - started < 0.95
    assert place.world.asked["slow-60.left.plain.test"] == 1


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_capacity_is_bounded(serve: Serve) -> None:
    world = World()
    with FakeUpstream(world.script) as upstream:
        text = (
            ".:$dns {\nbind $addresses\nready $host:$ready\nprometheus $host:$metrics\n"
            f"cache {{\nsuccess 1024\ndenial 1024\n}}\nforward . {upstream.to}\n}}\n"
        )
        server = serve(corefile=text)
        server.query("a-60.test")
        with server.udp_socket() as sock:
            sock.settimeout(3)
            for first in range(0, 1500, 50):
                for number in range(first, first + 50):
                    sock.send(dns.message.make_query(f"no-60.{number}.test", "A", id=number).to_wire())
                for _ in range(50):
                    sock.recv(4096)
        server.query("a-60.test")
        assert world.asked["a-60.test"] == 1
        server.query("no-60.0.test")
        assert world.asked["no-60.0.test"] == 2
        wait(lambda: server.metrics().value("coredns_cache_evictions_total", type="denial") == 1501 - 1024)
        assert server.metrics().value("coredns_cache_entries", type="denial") == 1024
        assert server.metrics().value("coredns_cache_entries", type="success") == 1
