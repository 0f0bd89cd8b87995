"""metadata: plugins tell others what they know of a query."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import pytest

from kdns.plugins import kubernetes, metadata, schema
from kdns.wire import names
from kdns.wire.message import Query, Response
from tests.support import procs
from tests.support.configs import options, refused
from tests.support.objects import pod, service
from tests.support.plugins import answered, query
from tests.support.server import Server

pytestmark = pytest.mark.one_speed

FORMAT = (
    "{name} {proto} kind={/kubernetes/kind} namespace={/kubernetes/namespace} service={/kubernetes/service} "
    "upstream={/forward/upstream} class={/log/class} {/kubernetes/parse-error}"
)
COREFILE = f"""
.:$dns {{
    bind 127.0.0.1
    ready 127.0.0.1:$ready
    metadata
    log . "{FORMAT}"
    kubernetes cluster.local {{
        manifests $manifests
    }}
    forward . 127.0.0.1:$metrics
}}
some.test:$dns {{
    bind 127.0.0.1
    metadata kubernetes.some.test
    log . "{{name}} {{/kubernetes/kind}}"
    kubernetes some.test kubernetes.some.test {{
        manifests $manifests
    }}
}}
pods.test:$dns {{
    bind 127.0.0.1
    metadata
    log . "{{name}} {{/kubernetes/client-namespace}}"
    kubernetes {{
        manifests $manifests
        pods verified
    }}
}}
unverified.test:$dns {{
    bind 127.0.0.1
    metadata
    log . "{{name}} {{/kubernetes/client-namespace}}"
    kubernetes {{
        manifests $manifests
    }}
}}
none.test:$dns {{
    bind 127.0.0.1
    log . "{{name}} {{/kubernetes/kind}}"
    kubernetes {{
        manifests $manifests
    }}
}}
.:$metrics {{
    bind 127.0.0.1
    whoami
}}
"""
"""The port of metrics is that of an upstream here."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("metadata")
    objects = [service("web", "shop"), pod("a", "shop", "127.0.0.2"), pod("b", "other", "127.0.0.3")]
    objects += [pod("c", "shop", "127.0.0.4"), pod("d", "other", "127.0.0.4")]
    with Server(folder, objects, corefile=COREFILE, addresses=["127.0.0.1"]) as started:
        yield started


def logged(server: Server, name: str, times: int = 1, *, tcp: bool = False, source: str = "127.0.0.1") -> set[str]:
    """The lines of queries for a name, without `[INFO] ` and the name."""
    mark = len(server.log)

    def lines() -> list[str]:
        return [line.removeprefix(f"[INFO] {name}. ") for line in server.log[mark:].splitlines() if f"{name}." in line]

    for _ in range(times):
        ask = dns.query.tcp if tcp else dns.query.udp
        ask(dns.message.make_query(name, "A"), "127.0.0.1", timeout=3, port=server.port, source=source)
    procs.wait_until(lambda: len(lines()) == times, 3, f"{times} lines for {name}")
    return set(lines())


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_log_shows_what_the_name_says_also_for_answers_that_are_kept(server: Server, tcp: bool) -> None:
    proto = "tcp" if tcp else "udp"
    for name, kind in (("web.shop", "success"), ("none.shop", "denial")):
        text = f"{proto} kind=svc namespace=shop service={name.split('.')[0]} upstream=- class={kind} -"
        assert logged(server, f"{name}.svc.cluster.local", 4, tcp=tcp) == {text}
    text = f"{proto} kind=- namespace=- service=- upstream=- class=denial invalid query name"
    assert logged(server, "x.cluster.local", tcp=tcp) == {text}


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_log_shows_the_upstream_that_was_asked(server: Server, tcp: bool) -> None:
    upstream = f"127.0.0.1:{server.metrics_port}"
    text = f"{'tcp' if tcp else 'udp'} kind=- namespace=- service=- upstream={upstream} class=success -"
    assert logged(server, "www.example.org", 3, tcp=tcp) == {text}


def test_only_names_in_its_zones_have_metadata(server: Server) -> None:
    assert logged(server, "web.shop.svc.kubernetes.some.test") == {"svc"}
    assert logged(server, "web.shop.svc.some.test") == {"-"}
    assert logged(server, "web.shop.svc.none.test") == {"-"}


def test_log_shows_the_namespace_of_the_client(server: Server) -> None:
    for tcp in (False, True):
        for zone, number, namespace in (
            ("pods", 2, "shop"),
            ("pods", 3, "other"),
            ("pods", 2, "shop"),
            ("pods", 4, "-"),
            ("pods", 1, "-"),
            ("unverified", 2, "-"),
        ):
            text = logged(server, f"web.shop.svc.{zone}.test", 2, tcp=tcp, source=f"127.0.0.{number}")
            assert text == {namespace}, (zone, number)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("", {}),
        ("svc", {"kind": "svc"}),
        ("shop.svc", {"kind": "svc", "namespace": "shop"}),
        ("web.shop.svc", {"kind": "svc", "namespace": "shop", "service": "web"}),
        ("a.web.shop.svc", {"kind": "svc", "namespace": "shop", "service": "web", "endpoint": "a"}),
        (
            "_http._tcp.web.shop.svc",
            {"kind": "svc", "namespace": "shop", "service": "web", "port-name": "http", "protocol": "tcp"},
        ),
        (
            "a.b.web.shop.svc",
            {"kind": "svc", "namespace": "shop", "service": "web", "port-name": "a", "protocol": "b"},
        ),
        ("1-2-3-4.shop.pod", {"kind": "pod", "namespace": "shop", "service": "1-2-3-4"}),
        ("x.y.z.web.shop.svc", schema.NO_NAME),
        ("web.shop.other", schema.NO_NAME),
        ("a.pin._zone.web.shop.svc", schema.NO_NAME),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_parts_of_a_name(name: str, parts: dict[str, str]) -> None:
    assert parsed(name) == parts


def parsed(name: str, *, multicluster: bool = False, zonal: bool = False) -> dict[str, str]:
    whole = names.from_text(f"{name}.cluster.local" if name else "cluster.local")
    return schema.parts(whole, names.from_text("cluster.local"), multicluster=multicluster, zonal=zonal)


def test_the_parts_of_names_with_clusters_and_topology_zones() -> None:
    found = parsed("a.c1.web.shop.svc", multicluster=True)
    assert (found["endpoint"], found["cluster"], "protocol" in found) == ("a", "c1", False)
    assert parsed("_http._tcp.web.shop.svc", multicluster=True)["protocol"] == "tcp"
    found = parsed("eu.west.prefer._zone.web.shop.svc", zonal=True)
    assert (found["zone"], found["service"]) == ("eu.west", "web")
    for wrong in ("a.other._zone.web.shop.svc", "a.pin._zone.web.shop.pod", "a.pin.x.web.shop.svc"):
        assert parsed(wrong, zonal=True) == schema.NO_NAME
    assert parsed("a.pin._zone.web.shop.svc", zonal=True, multicluster=True) == schema.NO_NAME


class Knows:
    """A provider."""

    def is_of_the_name(self, label: str) -> bool:
        return label == "name"

    def fact(self, label: str, name: bytes, client: str) -> str:
        return {"name": names.to_text(name), "client": client}.get(label, "")


def test_an_answer_that_was_made_with_more_than_the_question_is_not_kept() -> None:
    handler = metadata.Handler(metadata.Options())
    handler.gather({"knows": Knows(), "other": object()})
    for label, value, kept in (
        ("knows/name", "web.test.", True),
        ("knows/none", "", False),
        ("knows/client", "192.0.2.7", False),
        ("noted/before", "yes", False),
        ("nobody/knows", "", True),
        ("other/name", "", True),
    ):

        async def uses(query: Query, label: str = label, value: str = value) -> Response:
            assert query.metadata is not None
            query.metadata.note("noted/before", "yes")
            assert query.metadata.value(label) == value
            return Response(cacheable=True)

        assert answered(handler, query("Web.test"), uses).cacheable is kept


def test_what_kubernetes_knows_of_a_client_is_not_the_same_for_all() -> None:
    nothing: Any = None
    handler = kubernetes.Handler(options("kubernetes"), (), nothing, nothing)
    assert not handler.is_of_the_name("client-namespace")
    assert handler.is_of_the_name("namespace")


@pytest.mark.parametrize(
    ("directive", "messages"),
    [
        ("metadata a..b", ['1: metadata: zone "a..b" has an empty label, or is too long']),
        ("metadata {\nx\n}", ['2: metadata has no option "x"']),
        (
            'metadata\nlog . "{/kubernetes/client-pod-name}"\n'
            "view x {\nexpr metadata('kubernetes/client-label/a') == ''\n}",
            [
                "2: metadata kubernetes/client-pod-name is not supported by this version of kdns",
                "4: metadata kubernetes/client-label/ is not supported by this version of kdns",
            ],
        ),
        ("metadata\nmetadata", ["2: metadata is given twice in a server block"]),
    ],
)
def test_mistakes(directive: str, messages: list[str]) -> None:
    assert refused(directive) == messages


def test_zones() -> None:
    assert options("metadata", "a.org b.org") == metadata.Options(("a.org.", "b.org."))
    assert options("metadata Example.org b.org.") == metadata.Options(("example.org.", "b.org."))
