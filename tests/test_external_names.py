"""Services of type ExternalName whose targets are not ours: completed by what this server itself answers for them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import dns.flags
import dns.rcode
import pytest

from tests.conftest import Serve
from tests.support import objects, procs
from tests.support.server import Server
from tests.support.upstream import Asked, FakeUpstream, reply

CLUSTER = [
    objects.service("web", ips=["10.96.0.1"]),
    *(
        objects.external_name(name, target)
        for name, target in (
            ("api", "api.example.com"), ("chain", "chain.example.com"), ("none", "none.example.com"),
            ("nodata", "nodata.example.com"), ("broken", "broken.example.com"), ("other", "web.other.test"),
            ("twice", "api.default.svc.cluster.local"), ("back", "back.example.com"), ("far", "far.example.com"),
        )
    ),
]  # fmt: skip
COREFILE = """
.:$dns {{
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        manifests $manifests
        fallthrough in-addr.arpa ip6.arpa
    }}
    {cache}
    {forward}
    health $host:$health
    ready $host:$ready
    prometheus $host:$metrics
}}
{more}
"""


async def script(asked: Asked) -> None:
    label = asked.name.partition(".")[0].lower()
    if asked.rdtype == "AAAA":
        asked.send(reply(asked, "AAAA 2001:db8::7"))
    elif label == "chain":
        asked.send(reply(asked, "CNAME chain.example.com."))
    elif label == "none":
        asked.send(reply(asked, rcode="NXDOMAIN"))
    elif label == "nodata":
        asked.send(reply(asked))
    elif label == "broken":
        asked.send(reply(asked, rcode="SERVFAIL"))
    else:
        asked.send(reply(asked, "A 192.0.2.7", "A 192.0.2.8", ttl=50))


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream(script) as running:
        yield running


def start(serve: Serve, upstream: FakeUpstream | None, cache: str = "", more: str = "") -> Server:
    forward = f"forward . {upstream.to}" if upstream is not None else ""
    return serve(CLUSTER, corefile=COREFILE.format(cache=cache, forward=forward, more=more))


def answer(server: Server, name: str, rdtype: str = "A", tcp: bool = False) -> list[str]:
    response = server.query(f"{name}.default.svc.cluster.local", rdtype, tcp=tcp)
    assert response.flags & dns.flags.AA
    return sorted(rrset.to_text() for rrset in response.answer)


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("cache", ["", "cache"])
def test_the_cname_comes_first_and_the_targets_addresses_after_it(
    serve: Serve, upstream: FakeUpstream, cache: str, tcp: bool
) -> None:
    server = start(serve, upstream, cache)
    for _ in range(3):
        response = server.query("api.default.svc.cluster.local", tcp=tcp)
        assert [rrset.to_text() for rrset in response.answer[:1]] == [
            "api.default.svc.cluster.local. 5 IN CNAME api.example.com."
        ]
        (addresses,) = response.answer[1:]
        assert sorted(map(str, addresses)) == ["192.0.2.7", "192.0.2.8"]
        assert addresses.ttl in (range(48, 51) if cache else range(50, 51))
        assert response.rcode() == dns.rcode.NOERROR
        assert response.flags & dns.flags.RA
        assert not response.authority
    assert len(upstream.names()) == (1 if cache else 3)
    assert answer(server, "api", "AAAA", tcp)[1:] == ["api.example.com. 60 IN AAAA 2001:db8::7"]
    assert answer(server, "twice", tcp=tcp)[0].startswith("api.default.svc.cluster.local. 5 IN CNAME api.example.com.")


def test_the_targets_ttls_are_those_that_the_cache_gives_them(serve: Serve, upstream: FakeUpstream) -> None:
    server = start(serve, upstream, "cache 7")
    for _ in range(3):
        addresses = server.query("api.default.svc.cluster.local").answer[1]
        assert addresses.ttl in (6, 7)


def test_other_types_get_the_cname_alone(serve: Serve, upstream: FakeUpstream) -> None:
    server = start(serve, upstream)
    for rdtype in ("TXT", "CNAME", "MX"):
        assert answer(server, "api", rdtype) == ["api.default.svc.cluster.local. 5 IN CNAME api.example.com."]
    assert upstream.names() == []


def test_a_target_without_addresses_leaves_the_cname(serve: Serve, upstream: FakeUpstream) -> None:
    server = start(serve, upstream)
    for name in ("none", "nodata"):
        assert answer(server, name) == [f"{name}.default.svc.cluster.local. 5 IN CNAME {name}.example.com."]


def test_a_failure_upstream_is_servfail_so_that_the_client_tries_again(serve: Serve, upstream: FakeUpstream) -> None:
    server = start(serve, upstream)
    response = server.query("broken.default.svc.cluster.local")
    assert (response.rcode(), response.answer) == (dns.rcode.SERVFAIL, [])
    procs.wait_until(lambda: "broken.example.com., which it leads to, is SERVFAIL" in server.log, 5, "the reason")
    upstream.stop()
    assert server.query("api.default.svc.cluster.local").rcode() == dns.rcode.SERVFAIL
    assert server.texts("web.default.svc.cluster.local") == ["10.96.0.1"]


def test_a_target_whose_answer_is_truncated_and_cannot_be_had_over_tcp_is_a_failure(serve: Serve) -> None:
    async def truncated(asked: Asked) -> None:
        asked.send(reply(asked, tc=True))

    with FakeUpstream(truncated, tcp=False) as upstream:
        server = start(serve, upstream)
        response = server.query("api.default.svc.cluster.local")
        assert (response.rcode(), response.answer) == (dns.rcode.SERVFAIL, [])
        procs.wait_until(lambda: "api.example.com., which it leads to, is truncated" in server.log, 5, "the reason")


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("cache", ["", "cache"])
def test_names_of_two_server_blocks_that_lead_to_each_other_end_after_some_links(
    tmp_path: Path, cache: str, tcp: bool
) -> None:
    block = "{zone}:$dns {{\nkubernetes {zone} {{\nmanifests $manifests/{zone}\n}}\n{cache}\n}}\n"
    text = "".join(block.format(zone=zone, cache=cache) for zone in ("one.test", "two.test"))
    server = Server(tmp_path, corefile=text + "cluster.local:$dns {\nwhoami\n}\n")
    for zone, other in (("one.test", "two.test"), ("two.test", "one.test")):
        (server.manifests / zone).mkdir()
        server.write_objects([objects.external_name("a", f"a.default.svc.{other}")], f"{zone}/all.json")
    with server:
        ask = functools.partial(server.query, "a.default.svc.one.test", tcp=tcp)
        procs.wait_until(lambda: ask().rcode() == dns.rcode.NOERROR, 10, "the zones")
        owners = [rrset.name.to_text() for rrset in ask().answer]
    assert owners == ["a.default.svc.one.test.", "a.default.svc.two.test."]


def test_without_forward_the_cname_stays_alone(serve: Serve) -> None:
    server = start(serve, None)
    assert answer(server, "api") == ["api.default.svc.cluster.local. 5 IN CNAME api.example.com."]


def test_the_target_may_be_in_another_server_block(serve: Serve, upstream: FakeUpstream) -> None:
    more = "other.test:$dns {\n    hosts {\n        192.0.2.99 web.other.test\n    }\n}"
    server = start(serve, upstream, more=more)
    assert answer(server, "other") == [
        "other.default.svc.cluster.local. 5 IN CNAME web.other.test.",
        "web.other.test. 3600 IN A 192.0.2.99",
    ]
    assert upstream.names() == []


def test_recursion_is_offered_where_a_forward_covers_the_name(serve: Serve, upstream: FakeUpstream) -> None:
    more = "other.test:$dns {\n    whoami\n}"
    server = start(serve, upstream, more=more)
    for name, offered in {"web.default.svc.cluster.local": True, "example.com": True, "a.other.test": False}.items():
        for _ in range(3):
            assert bool(server.query(name).flags & dns.flags.RA) is offered
