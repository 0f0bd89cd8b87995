"""loadbalance: the order of addresses by weights and by networks. (That they take turns is in test_spec_options.)"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdns.errors import ConfigError
from kdns.plugins import loadbalance
from kdns.wire import message, names, relay, rr
from kdns.wire.message import Response
from kdns.wire.rrset import RRset, apart, together
from tests.support import objects, ports, procs
from tests.support.configs import options, refused
from tests.support.plugins import Behind, Ground, answered, query, read
from tests.support.server import Server

pytestmark = pytest.mark.one_speed

COREFILE = """
.:$dns {
    bind 127.0.0.1
    ready $host:$ready
    prometheus $host:$metrics
    whoami
}
weights.test:$dns {
    bind 127.0.0.1
    root $folder
    loadbalance weighted weights {
        reload 50ms
    }
    hosts $folder/hosts
}
relay.test:$dns {
    bind 127.0.0.1
    loadbalance weighted $folder/weights {
        prefer 192.0.2.3
    }
    cache
    forward . 127.0.0.1:$other
}
cluster.local:$dns {
    bind 127.0.0.1
    prometheus $host:$metrics
    loadbalance {
        prefer 10.2.0.0/16 10.1.0.2
        prefer 2001:db8:2::/64
    }
    kubernetes cluster.local {
        manifests $manifests
    }
}
.:$other {
    bind 127.0.0.1
    hosts {
        192.0.2.1 a.relay.test
        192.0.2.2 a.relay.test
        192.0.2.3 b.relay.test
        192.0.2.4 b.relay.test
        192.0.2.5 b.relay.test
    }
}
"""
HOSTS = "192.0.2.1 a.weights.test b.weights.test\n192.0.2.2 a.weights.test b.weights.test\n"
WEIGHTS = """\
# one of 256 is not enough to matter

A.weights.test
192.0.2.1 1
192.0.2.2 255
a.relay.test.
  192.0.2.1    255
"""


TYPICAL = "web.default.svc.cluster.local"
FIXED = "two.default.svc.cluster.local"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loadbalance")
    (folder / "weights").write_text(WEIGHTS)
    (folder / "hosts").write_text(HOSTS)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    corefile = COREFILE.replace("$folder", str(folder)).replace("$other", str(ports.free_port()))
    found = []
    for name, addresses in (
        ("web", ["10.1.0.1", "10.1.0.2", "10.2.0.1", "10.2.0.2"]),
        ("two", ["10.1.0.1", "10.2.0.1"]),
    ):
        found.append(objects.service(name, ips=()))
        found.append(objects.endpoint_slice(name, [objects.endpoint(address) for address in addresses]))
    with Server(folder / "server", found, corefile=corefile) as running:
        yield running


def order(server: Server, name: str) -> tuple[str, ...]:
    """The addresses as they come."""
    return tuple(str(rdata) for rrset in server.query(name).answer for rdata in rrset)


def firsts(server: Server, name: str, count: int = 60) -> Counter[str]:
    """How often each address comes first."""
    return Counter(order(server, name)[0] for _ in range(count))


def test_the_heavier_address_comes_first_mostly(server: Server) -> None:
    """Of 256 times once it does not; that this is so for more than 15 of 60 does not happen."""
    assert firsts(server, "a.weights.test")["192.0.2.2"] > 45
    assert firsts(server, "a.relay.test")["192.0.2.1"] > 45


def test_names_that_have_no_weights_take_turns(server: Server) -> None:
    assert set(firsts(server, "b.weights.test")) == {"192.0.2.1", "192.0.2.2"}


def test_preferred_addresses_come_first_and_the_others_vary(server: Server) -> None:
    orders = {order(server, "b.relay.test") for _ in range(60)}
    assert {found[0] for found in orders} == {"192.0.2.3"}
    assert {found[1:] for found in orders} == {("192.0.2.4", "192.0.2.5"), ("192.0.2.5", "192.0.2.4")}


def test_networks_are_preferred_in_their_order(server: Server) -> None:
    orders = {order(server, TYPICAL) for _ in range(60)}
    assert {found[2:] for found in orders} == {("10.1.0.2", "10.1.0.1")}
    assert {found[:2] for found in orders} == {("10.2.0.1", "10.2.0.2"), ("10.2.0.2", "10.2.0.1")}


def test_an_order_without_chance_is_kept_in_the_packet_cache(server: Server) -> None:
    before = server.metrics().value("kdns_packet_cache_hits_total")
    assert {order(server, FIXED) for _ in range(10)} == {("10.2.0.1", "10.1.0.1")}
    assert server.metrics().value("kdns_packet_cache_hits_total") - before == 8


def test_new_weights_count_soon_and_a_file_with_a_mistake_changes_nothing(server: Server, folder: Path) -> None:
    try:
        (folder / "weights").write_text("b.weights.test\n192.0.2.1 255\n192.0.2.2 1\n")
        procs.wait_until(lambda: firsts(server, "b.weights.test", 8)["192.0.2.1"] == 8, 5, "the new weights")
        assert firsts(server, "b.weights.test")["192.0.2.1"] > 45
        (folder / "weights").write_text("b.weights.test\n192.0.2.1 256\n")
        said = 'weights:2: "256" is out of range; accepted: 1 to 255'
        procs.wait_until(lambda: said in server.log, 5, "the mistake")
        assert firsts(server, "b.weights.test")["192.0.2.1"] > 45
        (folder / "weights").unlink()
        procs.wait_until(lambda: "weights cannot be read: No such file" in server.log, 5, "the loss")
        assert firsts(server, "b.weights.test")["192.0.2.1"] > 45
        assert server.log.count(said) == 1
    finally:
        (folder / "weights").write_text(WEIGHTS)
    procs.wait_until(lambda: firsts(server, "a.weights.test", 8)["192.0.2.2"] == 8, 5, "the old weights")


# Without a server

NAME = names.from_text("a.test")


def weighted(path: Path, text: str, prefer: str = "") -> tuple[loadbalance.Handler, Ground]:
    path.write_text(text)
    ground = Ground()
    found = options(f"loadbalance weighted {path} {{\nreload 0\n{prefer}\n}}")
    return loadbalance.Handler(found, ground.site), ground


def addresses(*texts: str, owner: bytes = NAME, ttl: int = 5) -> tuple[bytes, RRset]:
    rdatas = tuple(rr.address(text) for text in texts)
    return owner, RRset(rr.address_type(rdatas[0]), ttl, rdatas)


def test_chances_are_as_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address without a weight has 1. The generator is seeded: 1500 times, 3 : 1 : 2 within four sigmas."""
    handler, _ = weighted(tmp_path / "weights", "a.test\n192.0.2.1 3\n192.0.2.3 2\n")
    monkeypatch.setattr(loadbalance, "random", random.Random(7))
    behind = Behind(Response(answer=[addresses("192.0.2.1", "192.0.2.2", "192.0.2.3")], cacheable=True))
    counts: Counter[str] = Counter()
    for _ in range(1500):
        response = answered(handler, query("a.test"), behind)
        assert (response.cacheable, response.rotate) == (False, False)
        ((_, rrset),) = response.answer
        counts[rr.address_text(rrset.rdatas[0])] += 1
    assert abs(counts["192.0.2.1"] - 750) < 80
    assert abs(counts["192.0.2.2"] - 250) < 60
    assert abs(counts["192.0.2.3"] - 500) < 75


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        (("192.0.2.1", "192.0.2.2"), True),
        (("192.0.2.1", "192.0.2.2", "192.0.2.3"), False),
        (("192.0.2.1", "198.51.100.1", "198.51.100.2"), False),
        (("192.0.2.1", "198.51.100.1"), True),
    ],
)
def test_an_order_in_which_chance_has_a_part_is_not_kept(found: tuple[str, ...], kept: bool) -> None:
    handler = loadbalance.Handler(options("loadbalance {\nprefer 192.0.2.1 192.0.2.0/24\n}"), Ground().site)
    behind = Behind(Response(answer=[addresses(*found)], cacheable=True, personal=True))
    response = answered(handler, query("a.test"), behind)
    assert (response.cacheable, response.personal) == (kept, kept)


def test_the_one_that_was_first_takes_the_place_of_the_one_that_is_now(tmp_path: Path) -> None:
    handler, _ = weighted(tmp_path / "weights", "a.test\n" + "".join(f"192.0.2.{n} 1\n" for n in range(2, 5)))
    section = [addresses("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4")]
    found = set()
    for _ in range(200):
        response = answered(handler, query("a.test"), Behind(Response(answer=list(section))))
        found.add(tuple(rr.address_text(rdata)[-1] for _, rrset in response.answer for rdata in rrset.rdatas))
    assert found == {tuple("1234"), tuple("2134"), tuple("3214"), tuple("4231")}
    assert section == [addresses("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4")]


def test_other_records_keep_their_places_and_srv_has_its_addresses_behind(tmp_path: Path) -> None:
    handler, _ = weighted(tmp_path / "weights", "a.test\n2001:db8::2 255\n", "prefer 2001:db8::/32")
    text = (names.from_text("x.test"), RRset(rr.TXT, 5, (rr.txt(b"x"),)))
    srv = [(NAME, RRset(rr.SRV, 5, (rr.srv(0, 1, 80, NAME),)))]
    additional = [addresses("192.0.2.1"), text, addresses("2001:db8::1", "2001:db8::2")]
    for rdtype in ("SRV", "MX"):
        behind = Behind(Response(answer=list(srv), additional=list(additional)))
        response = answered(handler, query("a.test", rdtype), behind)
        assert response.answer == srv
        kinds = [rrset.type for _, rrset in apart(response.additional)]
        assert kinds == [rr.AAAA, rr.TXT, rr.AAAA, rr.A]
        assert read(query("a.test", rdtype, use_edns=0), response).additional


def test_what_is_denied_or_has_one_address_is_let_be(tmp_path: Path) -> None:
    handler, _ = weighted(tmp_path / "weights", "a.test\n192.0.2.1 3\n", "prefer 192.0.2.0/24")
    two = [addresses("10.0.0.1", "192.0.2.1")]
    for response in (
        Response(rcode=rr.NXDOMAIN, answer=list(two), cacheable=True),
        Response(answer=[addresses("192.0.2.1")], cacheable=True),
    ):
        found = answered(handler, query("a.test"), Behind(response))
        assert found is response
        assert (found.cacheable, found.rotate) == (True, True)


def test_names_without_weights_take_turns_and_are_not_kept_as_they_may_get_some(tmp_path: Path) -> None:
    handler, _ = weighted(tmp_path / "weights", "b.test\n192.0.2.1 255\n")
    response = Response(answer=[addresses("192.0.2.1", "192.0.2.2")], cacheable=True, personal=True)
    assert answered(handler, query("a.test"), Behind(response)) is response
    assert (response.cacheable, response.personal, response.rotate) == (False, False, True)


def test_weights_are_for_addresses_that_were_asked_for_or_are_those_of_services(tmp_path: Path) -> None:
    handler, _ = weighted(tmp_path / "weights", "a.test\n192.0.2.1 255\n")
    response = Response(additional=[addresses("192.0.2.1", "192.0.2.2")])
    assert answered(handler, query("a.test", "MX"), Behind(response)) is response
    assert answered(handler, query("a.test", "SRV"), Behind(response)) is not response


def test_another_servers_response_stays_as_it_is_for_others(tmp_path: Path) -> None:
    handler, _ = weighted(tmp_path / "weights", "a.test\n192.0.2.2 255\n")
    asked = query("a.test")
    whole = message.encode(asked, Response(answer=[addresses("192.0.2.1", "192.0.2.2", ttl=60)])).wire
    passed = Response(relay=relay.read(whole, message.question(asked)), ttl=30, cacheable=True)
    found = answered(handler, asked, Behind(passed))
    assert passed.relay is not None
    assert found.relay is None
    assert [rrset.ttl for _, rrset in found.answer] == [30]
    assert not found.cacheable


def test_records_apart_and_together() -> None:
    records = [addresses("192.0.2.1", "192.0.2.2"), addresses("192.0.2.1", ttl=6), addresses("::1", "::2")]
    assert [len(rrset.rdatas) for _, rrset in apart(records)] == [1] * 5
    assert together(apart(records)) == records
    assert together([addresses("192.0.2.1"), addresses("192.0.2.1")]) == [addresses("192.0.2.1")]


def test_a_file_that_is_not_there_yet_or_never(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    ground = Ground()
    handler = loadbalance.Handler(options(f"loadbalance weighted {path}"), ground.site)
    assert ground.log.lines == [f"[WARNING] plugin/loadbalance: {path} cannot be read: No such file or directory"]
    handler.look()
    assert len(ground.log.lines) == 1
    for steps in ground.background:
        steps.close()
    assert refused(f"loadbalance weighted {path} {{\nreload 0\n}}") == [
        f'1: loadbalance: "{path}" cannot be read: No such file or directory'
    ]
    assert refused(f"loadbalance weighted {tmp_path} {{\nreload 0\n}}") == [
        f'1: loadbalance: "{tmp_path}" cannot be read: not a file'
    ]
    assert refused("loadbalance weighted /a\0b {\nreload 0\n}") == [
        '1: loadbalance: "/a\\x00b" cannot be read: not a file'
    ]
    path.write_text("a.test\n")
    ground = Ground()
    loadbalance.Handler(options(f"loadbalance weighted {path} {{\nreload 0\n}}"), ground.site)
    assert not ground.background


def test_every_mistake_in_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    lines = [
        "192.0.2.1 1", "192.0.2.1", "a.test", "x 1", "192.0.2.1 0", "192.0.2.1 256", "192.0.2.1 x", "192.0.2.1 1 1",
        "a..b",
    ]  # fmt: skip
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError) as caught:
        loadbalance.read(path)
    assert [mistake.line for mistake in caught.value.mistakes] == [1, 2, 4, 5, 6, 7, 8, 9]
    assert {mistake.file for mistake in caught.value.mistakes} == {str(path)}
    with pytest.raises(ConfigError) as refusal:
        options(f"loadbalance weighted {path}")
    assert refusal.value.mistakes == caught.value.mistakes


def test_options(tmp_path: Path) -> None:
    assert options("loadbalance {\nprefer 10.0.0.1/8 2001:db8::1\nprefer 192.0.2.0/24\n}") == loadbalance.Options(
        prefer=("10.0.0.0/8", "2001:db8::1/128", "192.0.2.0/24")
    )
    assert options("loadbalance weighted w {\nreload 1m\n}") == loadbalance.Options("w", 60.0)
    assert options(f"loadbalance weighted w\nroot {tmp_path}") == loadbalance.Options(str(tmp_path / "w"), 30.0)


@pytest.mark.parametrize(
    ("directive", "messages"),
    [
        ("loadbalance weighted", ["1: loadbalance weighted has no file"]),
        ("loadbalance weighted a b", ["1: loadbalance has 3 arguments"]),
        ("loadbalance round_robin x", ["1: loadbalance round_robin has 1 argument"]),
        ("loadbalance {\nreload 1m\n}", ['2: loadbalance: "reload" is only for weighted']),
        ("loadbalance weighted x {\nreload soon\n}", ['2: loadbalance: "soon" is not a duration']),
        ("loadbalance {\nprefer\n}", ['2: loadbalance: "prefer" has 0 arguments']),
        ("loadbalance {\nprefer x\n}", ['2: loadbalance: "x" is neither a network nor an address']),
    ],
)
def test_mistakes(directive: str, messages: list[str]) -> None:
    assert refused(directive) == messages
