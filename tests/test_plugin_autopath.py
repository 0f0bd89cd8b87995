"""autopath: the search list of a client is gone through by the server, for those whose list it knows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import dns.message
import dns.query
import dns.rcode
import pytest

from kdns.plugins import autopath, kubernetes, loads
from kdns.plugins.autopath import Handler
from kdns.wire import names, relay, rr
from kdns.wire.message import Aging, Query, Response
from kdns.wire.relay import Relay
from kdns.wire.rrset import RRset
from tests.support import objects, procs
from tests.support.configs import options, refused
from tests.support.objects import Object
from tests.support.plugins import Ground, answered, query
from tests.support.server import Server

pytestmark = pytest.mark.one_speed

COREFILE = """
.:$dns {
    bind 127.0.0.1
    ready $host:$ready
    prometheus $host:$metrics
    errors
    autopath @kubernetes
    kubernetes cluster.local {
        manifests $manifests
        pods verified
    }
    hosts /nowhere example.net {
        192.0.2.80 www.example.net
    }
    forward silent.example 127.0.0.1:1
    forward up.example 127.0.0.1:$dns
    cache
}
up.example:$dns {
    bind 127.0.0.1
    hosts /nowhere {
        192.0.2.7 www.up.example
        ttl 20
    }
}
fixed.test:$dns {
    bind 127.0.0.1
    root FOLDER
    autopath resolv.conf
    kubernetes fixed.test {
        manifests $manifests
    }
}
"""
Z = "cluster.local."
SHOP = f"shop.svc.{Z}"
POD, OTHER, BOTH, NOBODY = "127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"
SUCCESS = "coredns_autopath_success_total"


def cluster() -> list[Object]:
    return [
        objects.namespace("shop"),
        objects.namespace("other"),
        objects.service("web", "shop", ips=["10.96.0.1"]),
        objects.service("web", "other", ips=["10.96.0.2"]),
        objects.external_name("alias", f"web.other.svc.{Z}", "other"),
        objects.pod("client", "shop", POD),
        objects.pod("client", "other", OTHER),
        objects.pod("host", "shop", BOTH),
        objects.pod("host", "other", BOTH),
        objects.pod("ended", "shop", NOBODY, phase="Succeeded"),
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "resolv.conf").write_text("search ignored.test\nsearch Any.fixed.test svc.fixed.test. # two\n")
    with Server(folder, cluster(), corefile=COREFILE.replace("FOLDER", str(folder))) as started:
        yield started


def ask(server: Server, name: str, rdtype: str = "A", client: str = POD) -> list[str]:
    """The rcode if it is not NOERROR, and the records of the answer in their order."""
    asked = dns.message.make_query(name, rdtype)
    response = dns.query.udp(asked, "127.0.0.1", 3, server.port, source=client)
    assert response.question == asked.question
    rcode = [] if response.rcode() == dns.rcode.NOERROR else [dns.rcode.to_text(response.rcode())]
    return rcode + [line for rrset in response.answer for line in rrset.to_text().splitlines()]


def later(server: Server, first: str, *records: str) -> None:
    """The answer to a first name is an alias and these records."""
    assert ask(server, first) == [f"{first} {records[0].split()[1]} IN CNAME {records[0].split()[0]}", *records]


def test_a_later_name_is_the_answer_behind_an_alias(server: Server) -> None:
    other = f"web.other.svc.{Z}"
    later(server, f"web.other.{SHOP}", f"{other} 5 IN A 10.96.0.2")  # svc.ZONE
    later(server, f"web.other.svc.{SHOP}", f"{other} 5 IN A 10.96.0.2")  # ZONE
    later(server, f"web.other.svc.{Z}{SHOP}", f"{other} 5 IN A 10.96.0.2")  # as it is
    later(server, f"www.example.net.{SHOP}", "www.example.net. 3600 IN A 192.0.2.80")


def test_an_alias_that_was_found_comes_behind_ours(server: Server) -> None:
    chain = [f"alias.other.svc.{Z} 5 IN CNAME web.other.svc.{Z}", f"web.other.svc.{Z} 5 IN A 10.96.0.2"]
    later(server, f"alias.other.{SHOP}", *chain)


def test_the_first_name_is_answered_as_it_is(server: Server) -> None:
    assert ask(server, f"web.{SHOP}") == [f"web.{SHOP} 5 IN A 10.96.0.1"]
    assert ask(server, f"web.{SHOP}", "TXT") == []
    assert ask(server, SHOP) == []


def test_a_name_without_such_a_record_ends_the_search(server: Server) -> None:
    first = f"web.other.{SHOP}"
    assert ask(server, first, "TXT") == []
    assert ask(server, f"www.example.net.{SHOP}", "AAAA") == []


def test_what_is_nowhere_is_denied_for_the_first_name(server: Server) -> None:
    """`hosts` has no answer for it, and nobody else is there."""
    asked = dns.message.make_query(f"gone.example.net.{SHOP}", "A")
    response = dns.query.udp(asked, "127.0.0.1", 3, server.port)
    assert response.rcode() == dns.rcode.NXDOMAIN
    assert response.authority[0].name.to_text() == Z
    assert ask(server, f"gone.{SHOP}") == ["NXDOMAIN"]


def test_a_failure_on_the_way_is_the_answer(server: Server) -> None:
    """What cannot be asked for is not denied."""
    assert ask(server, f"www.silent.example.{SHOP}") == ["SERVFAIL"]


@pytest.mark.parametrize("client", [OTHER, BOTH, NOBODY, "127.0.0.9"])
def test_others_have_another_list_and_get_no_answer_that_was_made_for_a_pod(server: Server, client: str) -> None:
    """In turns, so that nothing that is kept for one would be seen by the other."""
    for _ in range(3):
        later(server, f"web.other.{SHOP}", f"web.other.svc.{Z} 5 IN A 10.96.0.2")
        assert ask(server, f"web.other.{SHOP}", client=client) == ["NXDOMAIN"]


def test_where_an_address_is_of_pods_of_several_namespaces_no_list_can_be_told(server: Server) -> None:
    for mine, name in (("shop", "web.other"), ("other", "web.shop")):
        assert ask(server, f"{name}.{mine}.svc.{Z}", client=BOTH) == ["NXDOMAIN"]
        assert len(ask(server, f"{name}.{mine}.svc.{Z}", client=POD if mine == "shop" else OTHER)) == 2


def test_only_first_names_are_gone_on_from(server: Server) -> None:
    assert ask(server, f"web.other.other.svc.{Z}") == ["NXDOMAIN"]
    assert ask(server, f"www.example.net.svc.{Z}") == ["NXDOMAIN"]
    assert ask(server, f"www.example.net.{Z}") == ["NXDOMAIN"]
    assert ask(server, f"www.example.net.nowhere.svc.{Z}") == ["NXDOMAIN"]


def test_the_case_of_the_question_comes_back(server: Server) -> None:
    answer = ask(server, f"WwW.example.net.Shop.SVC.{Z}")
    assert answer[0] == f"WwW.example.net.Shop.SVC.{Z} 3600 IN CNAME www.example.net."


def test_successes_are_counted_and_nothing_else(server: Server) -> None:
    before = server.metrics().value(SUCCESS)
    for name in (
        f"web.other.{SHOP}",
        f"web.{SHOP}",
        f"gone.{SHOP}",
        f"www.silent.example.{SHOP}",
        f"web.other.svc.{Z}",
    ):
        ask(server, name)
    metrics = server.metrics()
    assert metrics.value(SUCCESS, server=f"dns://127.0.0.1:{server.port}") == before + 1
    assert metrics.value("coredns_dns_responses_total", plugin="autopath") >= 1


def test_a_pod_that_comes_or_goes_is_known_at_once(server: Server) -> None:
    first = f"web.other.{SHOP}"
    answer = [f"{first} 5 IN CNAME web.other.svc.{Z}", f"web.other.svc.{Z} 5 IN A 10.96.0.2"]
    try:
        server.write_objects([*cluster(), objects.pod("late", "shop", "127.0.0.5")])
        procs.wait_until(lambda: ask(server, first, client="127.0.0.5") == answer, 10, "the new pod", 0.02)
    finally:
        server.write_objects(cluster())
    procs.wait_until(lambda: ask(server, first, client="127.0.0.5") == ["NXDOMAIN"], 10, "its end", 0.02)


HITS = "kdns_packet_cache_hits_total"


def test_what_is_made_for_a_pod_is_kept_for_it_alone(server: Server) -> None:
    """The third answers are from the packet cache; whoever gets which, it counts."""
    before = server.metrics()
    answer = [f"web.shop.{SHOP} 5 IN CNAME web.shop.svc.{Z}", f"web.shop.svc.{Z} 5 IN A 10.96.0.1"]
    for _ in range(3):
        assert ask(server, f"web.shop.{SHOP}") == answer
        for client in (OTHER, BOTH, NOBODY):
            assert ask(server, f"web.shop.{SHOP}", client=client) == ["NXDOMAIN"]
    metrics = server.metrics()
    assert metrics.value(HITS) == before.value(HITS) + 4
    assert metrics.value(SUCCESS) == before.value(SUCCESS) + 3


def test_it_is_kept_as_long_as_what_it_was_made_of(server: Server) -> None:
    """Of an answer from elsewhere that is in the cache, whose TTL counts down."""

    def ttls() -> set[int]:
        return {int(record.split()[1]) for record in ask(server, f"www.up.example.{SHOP}")}

    for _ in range(2):
        first = ttls()
    before = server.metrics()
    procs.wait_until(lambda: max(ttls()) < max(first), 5, "the TTL to count down", 0.2)
    metrics = server.metrics()
    asked = metrics.value("coredns_cache_hits_total") - before.value("coredns_cache_hits_total")
    assert len(first) == len(ttls()) == 1
    assert metrics.value(HITS) - before.value(HITS) == asked == metrics.value(SUCCESS) - before.value(SUCCESS) >= 1


# A list that is everybody's


def test_a_file_has_the_list_of_all_clients(server: Server) -> None:
    target = "web.other.svc.fixed.test."
    answer = [f"web.other.any.fixed.test. 5 IN CNAME {target}", f"{target} 5 IN A 10.96.0.2"]
    for client in (POD, NOBODY):
        assert ask(server, "web.other.any.fixed.test.", client=client) == answer
    assert ask(server, "web.gone.any.fixed.test.") == ["NXDOMAIN"]
    assert ask(server, "web.other.second.fixed.test.") == ["NXDOMAIN"]
    assert ask(server, "any.fixed.test.") == ["NXDOMAIN"]


def test_what_is_kept_of_it_goes_when_one_of_its_names_changes(server: Server) -> None:
    """Of the answer, and of a denial for which a name must not exist."""

    def settled(names: list[str]) -> bool:
        return [ask(server, f"{name}.other.any.fixed.test.")[-1].split()[-1] for name in names] == expected

    try:
        hits = server.metrics().value("kdns_packet_cache_hits_total")
        expected = ["10.96.0.2", "NXDOMAIN"]
        for _ in range(5):
            assert settled(["web", "new"])
        assert server.metrics().value("kdns_packet_cache_hits_total") >= hits + 4
        changed = [
            objects.service("web", "other", ips=["10.96.0.77"]),
            objects.service("new", "other", ips=["10.96.0.78"]),
        ]
        server.write_objects([item for item in cluster() if item["metadata"] != changed[0]["metadata"]] + changed)
        expected = ["10.96.0.77", "10.96.0.78"]
        procs.wait_until(lambda: settled(["web", "new"]), 10, "the change", 0.02)
    finally:
        server.write_objects(cluster())


# The handler alone


class Known:
    """Whoever is asked for an address knows it."""

    def of(self, address: str) -> str | None:
        return "shop"


@dataclass
class Chain:
    """The rest of the chain: what it was asked for, and its responses by name. All other names do not exist."""

    responses: dict[str, Response]

    def __post_init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, query: Query) -> Response:
        name = names.to_text(query.name)
        self.asked.append(name)
        return self.responses.get(name) or Response(
            rcode=rr.NXDOMAIN, plugin="chain", cacheable=True, depends=(query.lname,)
        )


def address(owner: str) -> Response:
    answer = [(names.lower(names.from_text(owner)), RRset(rr.A, 7, (bytes(4),)))]
    return Response(answer=answer, plugin="chain", cacheable=True)


def relayed(name: str, *addresses: str) -> Relay:
    """What another server says of a name."""
    text = "\n".join(f"{name} 60 IN A {address}" for address in addresses)
    denial = f";AUTHORITY\n{Z} 60 IN SOA {Z} {Z} 1 2 3 4 5" if not addresses else ""
    rcode = "NOERROR" if addresses else "NXDOMAIN"
    wire = dns.message.from_text(
        f"id 1\nopcode QUERY\nrcode {rcode}\nflags QR\n;QUESTION\n{name} IN A\n;ANSWER\n{text}\n{denial}\n"
    ).to_wire()
    return relay.read(wire, names.from_text(name) + b"\0\1\0\1")


def completed(name: str, chain: Chain, search: tuple[str, ...] = ("host.example.",)) -> Response:
    settings = autopath.Options((".",), search, pods=True)
    return answered(Handler(settings, Ground().site, ("in-addr.arpa.", Z), Known()), query(name), chain)


def test_all_names_of_the_list_are_tried_in_their_order() -> None:
    chain = Chain({})
    response = completed(f"Web.x.{SHOP}", chain)
    assert chain.asked == [f"Web.x.{end}" for end in (SHOP, f"svc.{Z}", Z, "host.example.")] + ["Web.x."]
    assert (response.rcode, response.cacheable, response.answer) == (rr.NXDOMAIN, False, [])


def test_the_search_domain_itself_is_no_name_of_it() -> None:
    chain = Chain({})
    assert (completed(SHOP, chain).rcode, chain.asked) == (rr.NXDOMAIN, [SHOP])


def test_no_name_is_tried_twice() -> None:
    chain = Chain({})
    settings = autopath.Options((".",), ("svc.",), pods=True)
    answered(Handler(settings, Ground().site, (".",), Known()), query("web.x.shop.svc."), chain)
    assert chain.asked == ["web.x.shop.svc.", "web.x.svc.", "web.x."]


@pytest.mark.parametrize("at", range(3))
def test_the_answer_is_kept_only_if_all_that_it_was_made_of_may_be(at: int) -> None:
    """For a list that is everybody's."""
    names_of = [f"web.{end}" for end in ("a.test.", "b.test.", "c.test.")]
    denials = {name: Response(rcode=rr.NXDOMAIN, plugin="chain", cacheable=True) for name in names_of[:2]}
    responses = {**denials, names_of[2]: address(names_of[2])}
    handler = Handler(autopath.Options((".",), ("a.test.", "b.test.", "c.test.")), Ground().site)
    assert answered(handler, query(names_of[0]), Chain(responses)).cacheable
    responses[names_of[at]].cacheable = False
    assert not answered(handler, query(names_of[0]), Chain(responses)).cacheable


def test_names_that_are_too_long_are_passed_over() -> None:
    long = ".".join(["x" * 60] * 3 + ["y" * 41])
    chain = Chain({})
    completed(f"{long}.{SHOP}", chain, (f"{'z' * 30}.example.",))
    assert chain.asked == [f"{long}.{end}" for end in (SHOP, f"svc.{Z}", Z)] + [f"{long}."]


@pytest.mark.parametrize(
    ("response", "goes_on"),
    [
        (Response(rcode=rr.SERVFAIL, plugin="hosts"), True),
        (Response(rcode=rr.SERVFAIL), True),
        (Response(rcode=rr.REFUSED), True),
        (Response(rcode=rr.SERVFAIL, plugin="forward", error="no answer"), False),
        (Response(rcode=rr.REFUSED, plugin="acl"), False),
        (Response(plugin="acl", silent=True), False),
    ],
)
def test_what_ends_the_search(response: Response, goes_on: bool) -> None:
    ground = Ground()
    chain = Chain({f"web.x.svc.{Z}": response, f"web.x.{Z}": address(f"web.x.{Z}")})
    handler = Handler(autopath.Options((".",), (), pods=True), ground.site, (Z,), Known())
    found = answered(handler, query(f"web.x.{SHOP}"), chain)
    assert (found.rcode == rr.NOERROR and len(found.answer) == 2) is goes_on
    assert (found.rcode, found.silent) == (rr.NOERROR, False) if goes_on else (response.rcode, response.silent)
    assert (ground.value("count", SUCCESS, "server", "") or 0) == goes_on


def test_the_responses_of_others_stay_as_they_are() -> None:
    kept = address(f"web.x.{Z}")
    response = completed(f"web.x.{SHOP}", Chain({f"web.x.{Z}": kept}))
    assert [len(each.answer) for each in (response, kept)] == [2, 1]
    assert (response.cacheable, kept.cacheable) == (False, True)


def test_only_names_in_its_zones_are_completed() -> None:
    settings = autopath.Options(("example.",), (), pods=True)
    chain = Chain({})
    response = answered(Handler(settings, Ground().site, (Z,), Known()), query(f"web.x.{SHOP}"), chain)
    assert (len(chain.asked), response.cacheable) == (1, True)


def test_direct_answers_leave_denials_to_it_where_it_may_have_another() -> None:
    handler = Handler(autopath.Options((".",), (), pods=True), Ground().site, ("10.in-addr.arpa.", Z), Known())
    wire = names.from_text
    assert handler.passing(wire(Z), "") == ()
    assert [handler.completes(wire(zone)) for zone in (Z, ".", f"svc.{Z}")] == [True] * 3
    assert [handler.completes(wire(zone)) for zone in ("10.in-addr.arpa.", "example.")] == [False] * 2
    fixed = Handler(autopath.Options((".",), ("a.example.", "b.example.")), Ground().site)
    assert [fixed.completes(wire(zone)) for zone in ("example.", "a.example.", "b.example.", Z)] == [
        True,
        True,
        False,
        False,
    ]


# The directive

CLUSTER = "kubernetes cluster.local {\npods verified\n}"


def test_options(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("nameserver 10.0.0.1\ndomain a.example\n; search no\nsearch B.example c.example.\n")
    found = options(f"autopath x.example 10.0.0.0/8 {tmp_path}/list")
    assert found == autopath.Options(("x.example.", "10.in-addr.arpa."), ("b.example.", "c.example."))
    assert options(f"autopath list\nroot {tmp_path}").zones == ("example.org.",)
    assert options(f"autopath @kubernetes\n{CLUSTER}").pods
    (tmp_path / "domain").write_text("search a.example\ndomain b.example c.example\n")
    assert options(f"autopath {tmp_path}/domain").search == ("b.example.",)


def test_the_list_of_pods_goes_on_with_that_of_this_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "resolv.conf"
    monkeypatch.setattr(autopath, "_RESOLV_CONF", conf)
    assert options(f"autopath @kubernetes\n{CLUSTER}").search == ()
    conf.write_text("search node.example bad..name Region.example\n")
    assert options(f"autopath @kubernetes\n{CLUSTER}").search == ("node.example.", "region.example.")


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("autopath", "1: autopath has 0 arguments"),
        ('autopath ""', "1: autopath: the file has no name"),
        ("autopath @kubernetes {\nx\n}\n" + CLUSTER, '2: autopath has no option "x"'),
        ("autopath @erratic", '1: autopath: "@erratic" is not supported'),
        ("autopath @kubernetes", "1: autopath @kubernetes without kubernetes"),
        (
            "autopath @kubernetes\nkubernetes c.example",
            "1: autopath @kubernetes does not know the namespaces of its clients",
        ),
        ("autopath /nowhere/list", '1: autopath: "/nowhere/list" cannot be read: No such file or directory'),
        ("autopath /dev/null", '1: autopath: "/dev/null" has no search domain'),
        (f"autopath @kubernetes\nautopath @kubernetes\n{CLUSTER}", "2: autopath is given twice in a server block"),
    ],
)
def test_mistakes(text: str, mistake: str) -> None:
    assert refused(text) == [mistake]


def test_a_file_with_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("search a..example\n")
    assert "1: autopath: zone" in refused(f"autopath {tmp_path}/list")[0]


def test_the_index_is_kept_only_for_the_list_of_pods(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("search a.example\n")
    for text, wanted in ((f"autopath {tmp_path}/list", False), ("autopath @kubernetes", True), ("", False)):
        (block,) = loads(f". {{\n{text}\n{CLUSTER}\n}}").blocks
        assert autopath.needs_clients(block) is wanted


@pytest.mark.parametrize(
    ("beside", "kept"),
    [
        ("cache\nloadbalance {\nprefer 10.0.0.0/8\n}", True),
        ("rewrite ttl . 5", False),
        ("dns64", False),
        ("metadata", False),
    ],
)
def test_nothing_is_kept_for_a_client_where_more_has_a_part_in_it(beside: str, kept: bool) -> None:
    (block,) = loads(f". {{\nautopath @kubernetes\n{CLUSTER}\n{beside}\n}}").blocks
    assert autopath.is_personal(block) is kept


def test_all_that_an_answer_was_made_of_has_to_be_there_still() -> None:
    """The first that is over ends it, and all of them are asked for with it (`prefetch`); one of another server that is
    not kept keeps it from being kept at all."""
    asked: list[float] = []
    kept = [Aging(at + 10.0, at, True, memoryview(b""), (1, 2), partial(asked.append, at)) for at in (20.0, 40.0)]
    (shop, svc, last) = [f"a.b.{end}" for end in (SHOP, f"svc.{Z}", Z)]
    denial = Response(relay=relayed(svc), cacheable=True, aging=kept[0], plugin="cache")
    found = Response(relay=relayed(last, "192.0.2.1"), ttl=60, cacheable=True, aging=kept[1], plugin="cache")
    chain = Chain({svc: denial, last: found})
    response = completed(shop, chain)
    assert (response.personal, response.cacheable) == (True, False)
    assert response.aging is not None
    assert (response.aging.until, response.aging.expires) == (20.0, 50.0)
    assert sorted(response.aging.counted)[:4] == [1, 1, 2, 2]
    assert len(response.aging.counted) == 5
    assert response.aging.asked is not None
    response.aging.asked()
    assert asked == [20.0, 40.0]
    denial.aging, denial.cacheable = None, False
    response = completed(shop, chain)
    assert (response.personal, response.cacheable, response.aging) == (False, False, None)


NODE = "autopath @kubernetes {\nnode node-1\n}"


def test_the_pods_of_a_node() -> None:
    found = options(NODE)
    assert (found.pods, found.zones) == (True, ("example.org.",))
    assert found.watch == kubernetes.Options(zones=(), node="node-1")
    found = options("autopath a.example 10.0.0.0/8 @kubernetes {\nnode n\nkubeconfig /c admin\n}", ".")
    assert found.zones == ("a.example.", "10.in-addr.arpa.")
    assert (found.watch.kubeconfig, found.watch.context) == ("/c", "admin")
    watch = options("autopath @kubernetes {\nnode n\nendpoint api:6443\ntls a b c\n}").watch
    assert (watch.endpoints, watch.tls) == (("https://api:6443",), ("a", "b", "c"))


def test_they_are_followed_whatever_else_is_in_the_server_block() -> None:
    for text, of_node in ((NODE, True), ("autopath @kubernetes", False)):
        (block,) = loads(f"a.example {{\n{text}\n{CLUSTER}\n}}").blocks
        assert (autopath.watches(block), autopath.needs_clients(block)) == (of_node, not of_node)
        zones = block.plugins["autopath"].cluster(block)
        assert zones == (("a.example.",) if of_node else ("cluster.local.",))
    (block,) = loads("a.example {\nwhoami\n}").blocks
    assert not autopath.watches(block)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("kubeconfig /c", "1: autopath @kubernetes has a block without node"),
        ("node", '2: autopath: "node" has 0 arguments'),
        ("node a b", '2: autopath: "node" has 2 arguments'),
        ("node a,spec.nodeName!=b", '2: autopath: "a,spec.nodeName!=b" cannot be the name of a node'),
        ("node {$NOT_SET}", "2: autopath: the name of the node is empty"),
        ("node Node", '2: autopath: "Node" cannot be the name of a node'),
        ("node a\nnode b", '3: autopath: "node" is given twice'),
        ("node a\nendpoint http://x\nkubeconfig /c", "3: autopath has both kubeconfig and endpoint"),
        ("node a\ntls a b c", "3: autopath has tls without endpoint"),
        ('node a\nkubeconfig ""', "3: autopath: kubeconfig has an empty argument"),
        ("node a\npods verified", '3: autopath has no option "pods"'),
    ],
)
def test_what_a_block_may_not_have(block: str, message: str) -> None:
    assert refused(f"autopath @kubernetes {{\n{block}\n}}") == [message]


def test_the_length_of_a_name_of_a_node() -> None:
    assert options(f"autopath @kubernetes {{\nnode {'a' * 253}\n}}").watch.node == "a" * 253
    assert len(refused(f"autopath @kubernetes {{\nnode {'a' * 254}\n}}")) == 1


@pytest.mark.parametrize("zones", [".", "10.0.0.0/8", "cluster.local ."])
def test_the_zone_of_the_cluster_has_to_be_told(zones: str) -> None:
    assert refused(NODE, zones) == ["1: autopath @kubernetes with node does not know the cluster's zone"]


def test_a_file_takes_no_block(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("search a.example\n")
    assert refused(f"autopath {tmp_path}/list {{\nnode a\n}}") == ['2: autopath has no option "node"']


def of_node(asked: Chain, search: tuple[str, ...] = ()) -> Handler:
    """A handler that follows the pods of a node, in the server block of Z; `asked` is this server."""
    settings = autopath.Options((Z,), search, pods=True, watch=kubernetes.Options(zones=(), node="n"))
    site = replace(Ground().site, zones=(Z,), ask=asked)
    return Handler(settings, site, (Z,), Known())


def test_names_outside_are_looked_up_by_the_server_block_that_they_belong_to() -> None:
    """With `node`."""
    beside, rest = Chain({"web.x.": address("web.x.")}), Chain({})
    response = answered(of_node(beside, ("host.example.",)), query(f"web.x.{SHOP}"), rest)
    assert rest.asked == [f"web.x.{end}" for end in (SHOP, f"svc.{Z}", Z)]
    assert beside.asked == ["web.x.host.example.", "web.x."]
    assert [rrset.type for _, rrset in response.answer] == [rr.CNAME, rr.A]


def test_server_blocks_that_ask_each_other_come_to_an_end() -> None:
    """As they may where a search domain of the node is the first one of pods."""
    asked = 0

    async def again(query: Query) -> Response:
        nonlocal asked
        asked += 1
        inner = replace(query, lname=names.lower(names.from_text(f"web.{SHOP}")), name=names.from_text(f"web.{SHOP}"))
        return await handler(inner, Chain({}))

    handler = of_node(cast(Chain, again), ("a.example.", "b.example."))
    assert answered(handler, query(f"web.{SHOP}"), Chain({})).rcode == rr.NXDOMAIN
    assert 0 < asked < 10
