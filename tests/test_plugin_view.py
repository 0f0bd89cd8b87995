"""view: several server blocks for one zone, and whose queries each of them takes."""

from __future__ import annotations

from collections.abc import Iterator

import dns.message
import dns.query
import dns.rcode
import pytest

from kdns.errors import ConfigError
from kdns.plugins import loads, view
from tests.support import procs
from tests.support.objects import external_name, service
from tests.support.server import Server

pytestmark = pytest.mark.one_speed

HOSTS = """
    hosts {
        %s
    }
    prometheus 127.0.0.1:$metrics
"""


def block(zone: str, text: str, name: str = "", *expressions: str) -> str:
    """A server block. expressions: with a view of that name."""
    written = "".join(f"\n        expr {each}" for each in expressions)
    views = f"\n    view {name} {{{written}\n    }}" if name else ""
    return f"{zone}:$dns {{\n    bind 127.0.0.1{views}\n{text}\n}}\n"


def hosts(*lines: str) -> str:
    return HOSTS % "\n        ".join(lines)


def client(number: int) -> str:
    return f"client_ip() == '127.0.0.{number}'"


KUBERNETES = """
    kubernetes cluster.local {
        manifests $manifests
        namespaces %s
    }
    prometheus 127.0.0.1:$metrics
"""
CACHED = """
    cache
    forward . %s:$dns
    prometheus 127.0.0.1:$metrics
"""
COREFILE = "".join((
    block("ready.test", "    ready 127.0.0.1:$ready\n    whoami"),
    # By the client: hosts, what kubernetes has, and what forward brings and cache keeps.
    block("split.test", hosts("10.0.0.1 a.split.test"), "one", client(1)),
    block("split.test", hosts("10.0.0.2 a.split.test"), "two", "incidr(client_ip(), '127.0.0.2/32')"),
    block("split.test", hosts("10.0.0.9 a.split.test")),
    block("cluster.local", KUBERNETES % "one", "k1", client(1)),
    block("cluster.local", KUBERNETES % "two"),
    block("cached.test", CACHED % "127.0.0.5", "c1", client(1)),
    block("cached.test", CACHED % "127.0.0.6"),
    block("cached.test", hosts("10.0.0.1 a.cached.test")).replace("127.0.0.1\n", "127.0.0.5\n", 1),
    block("cached.test", hosts("10.0.0.2 a.cached.test")).replace("127.0.0.1\n", "127.0.0.6\n", 1),
    block(
        "let.test", hosts("10.0.0.1 a.let.test"), "l1",
        "\"let ip = client_ip(); if type() == 'A' { any(['127.0.0.1/32'], incidr(ip, #)) } else { false }\"",
    ),
    block("let.test", hosts("10.0.0.2 a.let.test")),
    # By the question alone.
    block("types.test", hosts("10.0.0.1 a.types.test", "fd00::1 a.types.test"), "six", "type() == 'AAAA'"),
    block("types.test", hosts("10.0.0.4 a.types.test")),
    block("kept.test", "    kubernetes kept.test {\n        manifests $manifests\n    }", "a", "type() == 'A'"),
    block("mixed.test", hosts("10.0.0.1 web.one.svc.mixed.test"), "m1", client(1)),
    block("mixed.test", "    kubernetes mixed.test {\n        manifests $manifests\n    }", "m2", "type() == 'A'"),
    # Who does not take it leaves it to the next, then to the shorter zone, then to nobody.
    block("deep.up.test", hosts("10.0.0.1 a.deep.up.test"), "d1", client(1), "true"),
    block("deep.up.test", hosts("10.0.0.2 a.deep.up.test"), "d2", client(2), "name() endsWith '.deep.up.test.'"),
    block("up.test", hosts("10.0.0.7 a.deep.up.test"), "u", "client_ip() in ['127.0.0.3', '127.0.0.4']"),
    block("never.test", hosts("10.0.0.1 a.never.test"), "broken", "int(name()) == 1 or true"),
    block("all.test", hosts("10.0.0.1 a.all.test"), "all"),
    # What is known of the query.
    block("known.test", "    metadata" + hosts("10.0.0.1 a.known.test"), "me", "metadata('view/name') == 'me'"),
    block("known.test", hosts("10.0.0.2 a.known.test")),
    block("unknown.test", hosts("10.0.0.1 a.unknown.test"), "me", "metadata('view/name') == 'me'"),
    block("unknown.test", hosts("10.0.0.2 a.unknown.test")),
    # The query that loop sends out has the port 0 as long as it is inside.
    block("loop.test", "    loop\n    forward . 127.0.0.1:$dns", "l", "port() != '0'"),
    block("loop.test", hosts("10.0.0.1 a.loop.test")),
    # An alias leads to what the client would be told itself.
    block("alias.test", "    kubernetes alias.test {\n        manifests $manifests\n    }"),
    block("zone.test", "    file $manifests/../zone"),
))  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    objects = [
        service("web", "one", ips=("10.96.0.1",)),
        service("web", "two", ips=("10.96.0.2",)),
        external_name("ext", "a.split.test", "one"),
        external_name("some", "a.deep.up.test", "one"),
    ]
    folder = tmp_path_factory.mktemp("view")
    (folder / "zone").write_text("@ 1 SOA ns host 1 2 3 4 5\nsome 1 CNAME a.deep.up.test.\n")
    with Server(folder, objects, corefile=COREFILE, addresses=["127.0.0.1"]) as started:
        yield started


def found(server: Server, name: str, number: int, rdtype: str = "A", *, tcp: bool = False) -> str:
    """The first record that a client gets, else the response code."""
    ask = dns.query.tcp if tcp else dns.query.udp
    query = dns.message.make_query(name, rdtype)
    answer = ask(query, "127.0.0.1", timeout=3, port=server.port, source=f"127.0.0.{number}")
    return str(answer.answer[-1][0]) if answer.answer else dns.rcode.to_text(answer.rcode())


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.split.test", ["10.0.0.1", "10.0.0.2", "10.0.0.9"]),
        ("web.one.svc.cluster.local", ["10.96.0.1", "NXDOMAIN", "NXDOMAIN"]),
        ("web.two.svc.cluster.local", ["NXDOMAIN", "10.96.0.2", "10.96.0.2"]),
        ("web.one.svc.mixed.test", ["10.0.0.1", "10.96.0.1"]),
        ("a.let.test", ["10.0.0.1", "10.0.0.2", "10.0.0.2"]),
        ("a.cached.test", ["10.0.0.1", "10.0.0.2", "10.0.0.2"]),
        ("a.deep.up.test", ["10.0.0.1", "10.0.0.2", "10.0.0.7", "10.0.0.7", "REFUSED"]),
        ("ext.one.svc.alias.test", ["10.0.0.1", "10.0.0.2", "10.0.0.9"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_client_is_told_what_another_one_s_view_says(
    server: Server, name: str, expected: list[str], tcp: bool
) -> None:
    """Each answer is given often enough to be kept, in all orders."""
    clients = range(1, len(expected) + 1)
    for order in (clients, reversed(clients), clients):
        for number in order:
            for _ in range(4):
                assert found(server, name, number, tcp=tcp) == expected[number - 1]


def test_a_view_by_the_question_alone(server: Server) -> None:
    for _ in range(4):
        assert found(server, "a.types.test", 1, "AAAA") == "fd00::1"
        assert found(server, "a.types.test", 1) == "10.0.0.4"


def test_answers_are_kept_where_the_expressions_cannot_tell_clients_apart(server: Server) -> None:
    def hits(name: str, rdtype: str) -> float:
        before = server.metrics().value("kdns_packet_cache_hits_total")
        for number in (1, 2, 1, 2, 1, 2):
            assert found(server, name, number, rdtype) in ("10.96.0.1", "NXDOMAIN")
        return server.metrics().value("kdns_packet_cache_hits_total") - before

    assert hits("web.one.svc.kept.test", "A") == 4
    assert hits("none.one.svc.cluster.local", "A") == 0


def test_an_expression_that_cannot_be_worked_out_is_false(server: Server) -> None:
    assert found(server, "a.never.test", 1) == "REFUSED"


def test_a_view_without_expressions_takes_all(server: Server) -> None:
    assert found(server, "a.all.test", 1) == "10.0.0.1"


def test_metadata_is_there_for_expressions_where_the_directive_is(server: Server) -> None:
    assert found(server, "a.known.test", 1) == "10.0.0.1"
    assert found(server, "a.unknown.test", 1) == "10.0.0.2"


def test_loop_looks_for_loops_of_its_own_server_block(server: Server) -> None:
    procs.wait_until(lambda: "Loop (" in server.log, 5, "the loop to be found")
    assert server.metrics().value("kdns_loop_detected", zone="loop.test.") == 1
    assert found(server, "a.loop.test", 1) == "SERVFAIL"


def test_metrics_have_the_view(server: Server) -> None:
    for number in (1, 2, 3, 3):
        found(server, "m.split.test", number)
        found(server, "m.cached.test", number)
    metrics = server.metrics()
    labels = {"server": f"dns://127.0.0.1:{server.port}"}
    for zone, names in {"split.test.": ("one", "two", ""), "types.test.": ("six", "")}.items():
        for name in names:
            for metric in ("requests_total", "responses_total", "request_duration_seconds_count"):
                assert metrics.value(f"coredns_dns_{metric}", zone=zone, view=name, **labels) > 0, (zone, name, metric)
            enabled = {"zone": zone, "view": name, "name": "hosts", **labels}
            assert metrics.samples["coredns_plugin_enabled", frozenset(enabled.items())] == 1
        assert metrics.value("coredns_dns_requests_total", zone=zone, view="other", **labels) == 0
    for name in ("c1", ""):
        assert metrics.value("coredns_cache_requests_total", zones="cached.test.", view=name, **labels) > 0
    assert metrics.value("coredns_dns_requests_total", zone="dropped", view="", **labels) > 0


def refused(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loads(text)
    return [f"{mistake.line}: {mistake.message}" for mistake in caught.value.mistakes]


def viewed(*expressions: str) -> str:
    return ". {\nview v {\n" + "".join(f"expr {each}\n" for each in expressions) + "}\nwhoami\n}"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (". {\nview\n}", ["2: view has 0 arguments"]),
        (". {\nview a b\n}", ["2: view has 2 arguments"]),
        ('. {\nview ""\n}', ["2: view has an empty name"]),
        (". {\nview a {\nexp true\n}\n}", ['3: view has no option "exp"']),
        (". {\nview a {\nexpr\n}\n}", ['3: view: "expr" has 0 arguments']),
        (". {\nview a\nview b\n}", ["3: view is given twice in a server block"]),
        (viewed("true", "name()"), ["4: view: the expression is string and no condition"]),
        (viewed("incidr(client_ip(), '10.0.0.1')"), ['3: view: "10.0.0.1" is not a network in CIDR notation']),
        (
            viewed("incidr(client_ip(), '10.0.0.0/0.0.0.255')"),
            ['3: view: "10.0.0.0/0.0.0.255" is not a network in CIDR notation'],
        ),
        (viewed("metadata('kubernetes') == ''"), ['3: view: "kubernetes" is no label of metadata']),
        (viewed("geoip() == ''"), ['3: view: character 1 of the expression: "geoip" is not known']),
        (viewed("type() = 'A'"), ['3: view: character 8 of the expression: "=" where the expression should end']),
        (
            viewed("type() == 'A"),
            ["3: view: character 11 of the expression: a quote that is opened here is never closed"],
        ),
    ],
)
def test_mistakes(text: str, messages: list[str]) -> None:
    assert refused(text) == messages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a {\n}\na {\nview x\n}", "3: dns://a.:53 is served already, by x:1, which takes every query"),
        ("a {\nview x\n}\na {\nview x\n}", '4: dns://a.:53 is served already, by x:1, with view "x"'),
        ("a {\nview x\n}\na {\n}\na {\n}", "6: dns://a.:53 is served already, by x:4"),
        (
            "a {\nview x\n}\na {\nview y\nbind 127.0.0.1\n}",
            '4: dns://a.:53 is served already, by x:1, with view "x"',
        ),
    ],
)
def test_server_blocks_that_views_do_not_tell_apart(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(text, file="x")
    assert [f"{mistake.line}: {mistake.message}" for mistake in caught.value.mistakes] == [message]


def test_server_blocks_that_views_tell_apart() -> None:
    text = "a {\nview x\nbind 127.0.0.1 127.0.0.2\n}\na {\nview y\nbind 127.0.0.2\n}\na {\nbind 127.0.0.1\n}\na:54 {\n}"
    assert [view.name_of(each) for each in loads(text).blocks] == ["x", "y", "", ""]


@pytest.mark.parametrize("name", ["some.one.svc.alias.test", "some.zone.test"])
def test_that_nobody_answers_for_a_target_is_not_kept_for_others(server: Server, name: str) -> None:
    assert {found(server, name, 5) for _ in range(4)} == {"a.deep.up.test."}
    assert [found(server, name, number) for number in (1, 2, 3, 5)] == [
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.7",
        "a.deep.up.test.",
    ]
