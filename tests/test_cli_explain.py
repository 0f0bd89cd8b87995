"""`kdns explain`: what the README shows, the same from every source, and as many queries as real libraries send."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import dns.rcode
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kdns.cli import app
from kdns.wire import names
from kdns.zone.changes import Changes
from kdns.zone.store import Store
from tests.support import digs, netns, ports, procs, readme, stubs
from tests.support.apiserver import ApiServer
from tests.support.netns import Netns
from tests.support.objects import (
    Object,
    endpoint,
    endpoint_slice,
    external_name,
    namespace,
    pod,
    service,
    service_import,
    write_list,
)
from tests.support.server import Server
from tests.test_cli_query import played, respond
from tests.test_search import musl_version

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "zones" / "sample"
Z = "cluster.local"


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def costs(self) -> tuple[int, int]:
        return self.json["glibc"]["queries"], self.json["musl"]["queries"]

    @property
    def hints(self) -> list[str]:
        return list(self.json["hints"])


def explain(*arguments: object) -> Done:
    """The command, in this process."""
    done = CliRunner().invoke(app, ["explain", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


def sample(name: str, where: str = "shop", *arguments: object) -> Done:
    return explain(name, "-n", where, "--manifests", SAMPLE, *arguments, "--json")


# The README


SHOWN = readme.sessions("What a lookup costs")


@pytest.mark.parametrize("shown", [pytest.param(one, id=one.command) for one in SHOWN])
def test_the_readme_shows_what_is_printed(shown: readme.Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program, verb, *arguments = shlex.split(shown.command)
    assert (program, verb) == ("kdns", "explain")
    done = explain(*arguments)
    assert (done.out, done.err) == (shown.output, "")


def test_the_readme_has_ten_cases() -> None:
    assert len(SHOWN) >= 10


def test_it_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "kdns", "explain", "nothing", "-n", "shop", "--manifests", str(SAMPLE), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (3, "")
    assert json.loads(done.stdout)["resolves"] is False


# What it says of a name

OTHER_ZONE = f"the cluster's zone is {Z}, not"
WEB_SLICES = "EndpointSlice web-ipv4-2kqzx (2 ready); EndpointSlice web-ipv6-8mn4c (2 ready)"
NOTHING_BEHIND = "no EndpointSlice: there is nothing behind it"


@pytest.mark.parametrize(
    ("name", "where", "code", "costs", "hint"),
    [
        ("web", "shop", 0, (2, 2), ""),
        ("web", "data", 3, (8, 8), "Service web is in namespace shop: web.shop"),
        ("wbe", "shop", 3, (8, 8), "a Service with a similar name is there: web"),
        ("web.shopp", "data", 3, (8, 8), "namespace shop has a Service web: web.shop"),
        ("shop", "shop", 3, (8, 4), "Services of namespace shop are SERVICE.shop"),
        ("db-2.db", "data", 3, (8, 8), "endpoint db-2 of Service data/db is not ready"),
        ("db-2.db", "data", 3, (8, 8), "Service db-peers publishes what is not ready: db-2.db-peers"),
        ("db-9.db", "data", 3, (8, 8), "the endpoints of Service data/db: db-0, db-1, db-2"),
        ("db-0.dbs", "data", 3, (8, 8), "db-0 is an endpoint of data/db: db-0.db"),
        (
            "cart-6f7b8d5c4-h2v9s.cart",
            "shop",
            3,
            (8, 8),
            "pod cart-6f7b8d5c4-h2v9s is there as 10-244-0-21: it has no hostname (spec.hostname and spec.subdomain)",
        ),
        ("x.payments", "shop", 3, (8, 8), "Service shop/payments is an ExternalName: there is nothing below it"),
        ("reports", "shop", 0, (2, 2), ""),
        ("alerts.monitoring", "shop", 0, (4, 4), ""),
        ("kubernetes.default.svc", "shop", 0, (6, 6), ""),
        ("ns.dns.cluster.local.", "shop", 0, (2, 2), ""),
        ("web.shop.svc.cluster.locl", "data", 3, (8, 8), f"{OTHER_ZONE} cluster.locl: web.shop.svc.{Z}"),
        ("web.shop.svc.corp.example.", "data", 3, (2, 2), f"{OTHER_ZONE} corp.example: web.shop.svc.{Z}"),
        ("10-1-2-3.shop.pod", "data", 0, (6, 6), ""),
        ("10-1-2-3.shopp.pod", "data", 3, (8, 8), "a namespace with a similar name: shop"),
        ("api.example.com", "shop", 1, (8, 8), ""),
        ("payments", "shop", 1, (2, 2), ""),
        ("10.244.2.31", "shop", 0, (1, 1), ""),
        ("10.9.9.9", "shop", 1, (1, 1), ""),
        ("fd00:96::2001", "shop", 0, (1, 1), ""),
        ("b\u00fccher", "shop", 3, (0, 8), "DNS has this name as xn--bcher-kva"),
        ("a..b", "shop", 3, (0, 0), ""),
        ("x" * 64, "shop", 3, (0, 0), ""),
    ],
)  # fmt: skip
def test_a_name_of_the_sample(name: str, where: str, code: int, costs: tuple[int, int], hint: str) -> None:
    done = sample(name, where)
    assert (done.code, done.costs) == (code, costs)
    assert hint in done.hints if hint else done.hints == []
    assert done.json["resolves"] == {0: True, 1: None, 3: False}[code]


@pytest.mark.parametrize(
    ("name", "where", "origins"),
    [
        ("web", "shop", [f"Service shop/web, ClusterIP; {WEB_SLICES}"]),
        ("reports", "shop", [f"Service shop/reports, ClusterIP; {NOTHING_BEHIND}"]),
        (
            "database",
            "shop",
            [
                "Service shop/database, ExternalName db.data.svc.cluster.local",
                "Service data/db, headless; EndpointSlice db-7wz5k (2 ready, not ready: db-2)",
            ],
        ),
        ("db-2.db-peers", "data", ["endpoint db-2 of Service data/db-peers; EndpointSlice db-peers-p4s8v (3 in all)"]),
        ("vault.warehouse", "data", ["endpoint vault of Service data/warehouse; Endpoints warehouse (1 ready)"]),
        (
            "10.244.0.31",
            "data",
            [
                "endpoint db-0 of Service data/db; EndpointSlice db-7wz5k (2 ready, not ready: db-2)",
                "endpoint db-0 of Service data/db-peers; EndpointSlice db-peers-p4s8v (3 in all)",
            ],
        ),
        ("dns-version.cluster.local.", "data", []),
    ],
)  # fmt: skip
def test_where_an_answer_came_from(name: str, where: str, origins: list[str]) -> None:
    last = sample(name, where).json["steps"][-1]["answers"]
    assert list(dict.fromkeys(origin["text"] for answer in last for origin in answer["origins"])) == origins


def test_where_the_endpoints_of_a_topology_zone_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = explain("eu-1b.pin._zone.search", "-n", "data", "--conf", "zones/sample/Corefile", "--json")
    (origin,) = done.json["steps"][0]["answers"][0]["origins"]
    assert origin["text"] == (
        "endpoints of Service data/search by topology zone (eu-1b.pin); EndpointSlice search-ipv4-z9k3f (3 ready);"
        " EndpointSlice search-ipv6-c2r7q (2 ready)"
    )


def test_json_has_the_endpoints_by_slice() -> None:
    (answer, _) = sample("db", "data").json["steps"][0]["answers"]
    assert answer["rcode"] == "NOERROR"
    assert [record["data"] for record in answer["records"]] == ["10.244.0.31", "10.244.1.31"]
    (origin,) = answer["origins"]
    assert (origin["kind"], origin["namespace"], origin["name"], origin["type"]) == (
        "Service",
        "data",
        "db",
        "Headless",
    )
    assert origin["slices"] == [
        {"kind": "EndpointSlice", "name": "db-7wz5k", "ready": ["db-0", "db-1"], "not_ready": ["db-2"]}
    ]


def test_other_types() -> None:
    done = sample("_http._tcp.web", "shop", "--type", "SRV")
    assert (done.code, done.costs) == (3, (1, 1))  # musl has no search list for it
    assert "musl has no search list for other types than addresses" in done.json["notes"]
    (advice,) = done.json["cheaper"]  # it costs glibc the same, and musl finds it
    assert advice["change"] == f"the full name, with a dot at its end: _http._tcp.web.shop.svc.{Z}."
    full = sample("_http._tcp.web.shop.svc.cluster.local.", "shop", "--type", "SRV")
    assert (full.code, full.costs) == (0, (1, 1))
    slip = sample("_htp._tcp.web", "shop", "--type", "srv")
    assert slip.hints == ["the named ports of Service shop/web: _http._tcp, _https._tcp"]
    single = sample("alerts.monitoring", "shop", "--type", "A")
    assert (single.code, single.costs) == (3, (4, 2))
    assert single.hints == ["Service monitoring/alerts has no IPv4 address"]
    assert sample("31.0.244.10.in-addr.arpa", "shop", "--type", "PTR").code == 0
    for name in ("web.shop.svc", "database.shop.svc"):
        every = sample(f"{name}.cluster.local.", "shop", "--type", "ANY")
        assert (every.code, every.costs) == (0, (1, 1)), "the minimal answer is one (RFC 8482)"


@pytest.mark.parametrize("rtype", ["HTTPS", "HINFO", "RRSIG", "TYPE65280", "CNAME", "DNSKEY", "MX"])
def test_types_that_no_name_has(rtype: str) -> None:
    done = sample("web.shop.svc.cluster.local.", "shop", "--type", rtype)
    assert (done.code, done.json["glibc"]["result"]) == (3, "empty")


def test_what_musl_does_not_find() -> None:
    done = sample("web.shop", "data", "--ndots", "1")
    assert (done.code, done.costs) == (3, (6, 2))
    assert "musl tries a name with 1 dot only as it is, as ndots is 1" in done.json["notes"]


def test_more_search_domains_and_other_policies() -> None:
    more = sample("nothing", "shop", "--search", "corp.example", "--search", f"svc.{Z}")
    assert more.json["search"] == [f"shop.svc.{Z}", f"svc.{Z}", Z, "corp.example"]
    assert more.costs == (10, 10)
    default = sample("web", "shop", "--dns-policy", "Default", "--search", "corp.example")
    assert (default.json["search"], default.json["ndots"], default.code) == (["corp.example"], 1, 3)
    none = sample(f"web.shop.svc.{Z}", "shop", "--dns-policy", "None")
    assert (none.json["search"], none.costs) == ([], (2, 2))


def test_long_search_lists_and_the_root() -> None:
    long = [argument for number in range(12) for argument in ("--search", f"department-{number}.corp.example")]
    done = sample("web", "shop", *long)
    assert (done.code, done.costs) == (3, (2, 2))  # musl: as it is only
    assert "musl passes over a search line of more than 254 characters" in done.json["notes"]
    assert any("glibc before 2.26" in note for note in done.json["notes"])
    longer = [argument for number in range(33) for argument in ("--search", f"d{number}.example")]
    assert any("a kubelet takes no more than 32" in note for note in sample("web", "shop", *longer).json["notes"])
    root = sample("web", "shop", "--search", ".")
    assert 'musl before 1.2.4 finds nothing with "." in the search list' in root.json["notes"]


def test_a_pods_resolv_conf(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# of a pod\nsearch first.example\nnameserver 10.96.0.10\nnameserver fd00::10\nnameserver 10.96.0.11\n"
        f"search shop.svc.{Z}\tsvc.{Z} {Z}\noptions ndots:2 timeout:1\noptions attempts:3 edns0 strict-error\n"
    )
    done = explain("web", "--manifests", SAMPLE, "--resolv-conf", path, "--json")
    assert (done.json["search"], done.json["ndots"]) == ([f"shop.svc.{Z}", f"svc.{Z}", Z], 2)
    assert done.costs == (2, 6)
    assert "musl asks all 3 nameservers at once, glibc the first" in done.json["notes"]
    assert any("strict-error is not taken into account" in note for note in done.json["notes"])


ADVISED = [
    ("web.shop", "data"),
    ("api.example.com", "shop"),
    ("db-0.db.data", "shop"),
    (f"web.shop.svc.{Z}", "shop"),
]


@pytest.mark.parametrize(("name", "where"), ADVISED)
def test_advice_costs_what_it_says(name: str, where: str) -> None:
    done = sample(name, where)
    before = done.costs
    tried = 0
    for advice in done.json["cheaper"]:
        after = advice["glibc"], advice["musl"]
        assert after < before
        if found := re.match(r"the (?:shorter name|full name, with a dot at its end:) (\S+)$", advice["change"]):
            assert sample(found[1], where).costs == after
            tried += 1
        elif found := re.match(r"ndots:(\d+) in the pod's dnsConfig$", advice["change"]):
            assert sample(name, where, "--ndots", found[1]).costs == after
            tried += 1
        else:
            assert advice["change"] == "autopath in the server"
    assert tried


def test_larger_datagrams_are_advised_where_they_help(tmp_path: Path) -> None:
    endpoints = [endpoint(f"10.1.0.{n + 1}") for n in range(40)]
    done = explain(
        "big",
        "-n",
        "shop",
        *cluster(tmp_path, [*EMPTY, service("big", "shop", ips=()), endpoint_slice("big", endpoints, "shop")]),
    )
    assert done.costs == (8, 3)
    (advice,) = done.json["cheaper"]
    assert (advice["change"], advice["glibc"]) == ("edns0 in the pod's dnsConfig (glibc)", 4)
    path = tmp_path / "resolv.conf"
    path.write_text(f"search shop.svc.{Z}\noptions ndots:5 edns0\n")
    assert explain("big", "--resolv-conf", path, *corefile_of(tmp_path)).costs == (4, 3)


def test_no_advice_for_what_cannot_be_cheaper_or_does_not_resolve() -> None:
    assert sample("web", "shop").json["cheaper"] == []
    assert sample(f"web.shop.svc.{Z}.", "shop").json["cheaper"] == []
    assert sample("nothing", "shop").json["cheaper"] == []


# Objects that are there and hidden, or not usable


def cluster(folder: Path, objects: list[Object], options: str = "", *, extra: str = "", after: str = "") -> list[str]:
    """Arguments for objects in files and a Corefile that reads them. extra: other plugins. after: other blocks."""
    write_list(folder / "cluster.json", objects)
    corefile = folder / "Corefile"
    corefile.write_text(
        f".:53 {{\n    kubernetes {Z} in-addr.arpa ip6.arpa {{\n        manifests {folder / 'cluster.json'}\n"
        f"        {options}\n    }}\n    {extra}\n}}\n{after}\n"
    )
    return corefile_of(folder)


def corefile_of(folder: Path) -> list[str]:
    """Arguments for the Corefile in a folder."""
    return ["--conf", str(folder / "Corefile"), "--json"]


EMPTY = [namespace("shop", {"team": "a"}), namespace("data", {"team": "b"})]
WEB = service("web", "shop", ips=("10.96.1.1",), labels={"tier": "front"})
DB = service("db", "shop", ips=())


@pytest.mark.parametrize(
    ("options", "objects", "name", "hint"),
    [
        ("namespaces data", [WEB], "web", "namespace shop is hidden: `namespaces` of the Corefile shows data"),
        (
            "namespace_labels team=b",
            [WEB],
            "web",
            "namespace shop is hidden: `namespace_labels` of the Corefile does not match its labels",
        ),
        (
            "labels tier=back",
            [WEB],
            "web",
            "Service shop/web is hidden: `labels` of the Corefile does not match its labels",
        ),
        (
            "ignore empty_service",
            [WEB],
            "web",
            "Service shop/web has no endpoints, and `ignore empty_service` hides it",
        ),
        (
            "ignore empty_service",
            [WEB, endpoint_slice("web", [endpoint("10.1.0.1", pod="web-1", ready=False)], "shop")],
            "web",
            "Service shop/web has no endpoint that is ready: EndpointSlice web-1 (0 ready, not ready: web-1); nothing"
            " is ready behind it, and `ignore empty_service` hides it",
        ),
        ("noendpoints", [DB], "db", "Service shop/db is headless, and `noendpoints` leaves it no records"),
        ("", [DB], "db", "Service shop/db has no endpoint that is ready: no EndpointSlice"),
        (
            "",
            [DB, endpoint_slice("db", [endpoint("10.1.0.1", pod="db-0", ready=False)], "shop")],
            "db",
            "Service shop/db has no endpoint that is ready: EndpointSlice db-1 (0 ready, not ready: db-0)",
        ),
        ("", [{**WEB, "spec": {"type": "ClusterIP", "ports": []}}], "web", "Service shop/web has no clusterIP yet"),
        (
            "",
            [external_name("old", f"wbe.shop.svc.{Z}", "shop"), WEB],
            "old",
            f"Service shop/old is an alias of wbe.shop.svc.{Z}, which does not resolve: there is no Service wbe in"
            " namespace shop",
        ),
        ("pods verified", [pod("web-1", "shop", "10.1.0.1")], "10-1-0-2.shop.pod", ""),
    ],
)  # fmt: skip
def test_why_what_is_there_does_not_resolve(
    options: str, objects: list[Object], name: str, hint: str, tmp_path: Path
) -> None:
    done = explain(name, "-n", "shop", *cluster(tmp_path, [*EMPTY, *objects], options))
    assert done.code == 3
    assert hint in done.hints if hint else done.hints == []


def test_names_of_pods_by_mode(tmp_path: Path) -> None:
    objects = [*EMPTY, pod("web-1", "shop", "10.1.0.1")]
    verified = explain("10-1-0-1.shop.pod", "-n", "shop", *cluster(tmp_path, objects, "pods verified"))
    assert (
        verified.json["steps"][-1]["answers"][0]["origins"][0]["text"]
        == "running pod web-1 in namespace shop (pods verified)"
    )
    other = explain("10-1-0-2.shop.pod", "-n", "shop", *cluster(tmp_path, objects, "pods verified"))
    texts = [answer["missing"] for step in other.json["steps"] for answer in step["answers"]]
    assert "no running pod in namespace shop has 10.1.0.2 (pods verified)" in texts
    disabled = explain("10-1-0-1.shop.pod", "-n", "shop", *cluster(tmp_path, objects))
    assert (disabled.code, disabled.hints) == (3, ["`pods insecure` or `pods verified` makes names of pods"])
    insecure = explain("10-9-9-9.shop.pod", "-n", "shop", *cluster(tmp_path, objects, "pods insecure"))
    assert (insecure.code, insecure.costs) == (0, (6, 6))


def test_an_import_of_a_clusterset(tmp_path: Path) -> None:
    write_list(tmp_path / "c.json", [*EMPTY, service_import("shared", "shop", ips=("10.112.0.1",))])
    (tmp_path / "Corefile").write_text(
        f"{Z} clusterset.local {{\n    kubernetes {{\n        manifests {tmp_path / 'c.json'}\n"
        "        multicluster clusterset.local\n    }\n}\n"
    )
    found = explain("shared.shop.svc.clusterset.local.", "--conf", tmp_path / "Corefile", "--json")
    assert found.json["steps"][0]["answers"][0]["origins"][0]["text"].startswith(
        "ServiceImport shop/shared, ClusterSetIP"
    )
    missing = explain("other.shop.svc.clusterset.local.", "--conf", tmp_path / "Corefile", "--json")
    assert missing.json["steps"][0]["answers"][0]["missing"] == "there is no ServiceImport other in namespace shop"


def test_a_state_directory_that_is_not_complete_denies_nothing(tmp_path: Path) -> None:
    store = Store.open(tmp_path, Changes.create(), pytest.fail)
    origin = names.from_text(f"{Z}.")
    store.write(lambda txn: txn.put(txn.add_zone("test", origin), names.from_text(f"svc.{Z}."), ()))
    store.close()
    done = explain("web", "-n", "shop", "--state-dir", tmp_path, "--json")
    assert done.code == 3
    assert done.json["steps"][0]["answers"][0]["rcode"] == "SERVFAIL"
    assert done.json["steps"][0]["answers"][0]["missing"] == f"zone {Z}.: its source has not been read yet"
    other = explain("web", "--state-dir", tmp_path, "--cluster-zone", "corp.example")
    assert (other.code, other.err) == (1, f"there is no zone corp.example., but: {Z}.; --cluster-zone names one\n")


# The same from every source, and as it is


def sample_objects() -> list[Object]:
    """What zones/sample has."""
    found: list[Object] = []
    for path in sorted(SAMPLE.iterdir()):
        if path.suffix == ".yaml":
            found += yaml.safe_load_all(path.read_text())
        elif path.suffix == ".json":
            found += json.loads(path.read_text())["items"]
    return found


def big() -> list[Object]:
    """A headless Service whose answer is too large for UDP, and for what glibc has room for at first."""
    slices = [
        endpoint_slice("big", [endpoint(f"10.7.{piece}.{n + 1}") for n in range(20)], "shop", suffix=f"s{piece}")
        for piece in range(7)
    ]
    return [service("big", "shop", ips=()), *slices]


LOG = 'log . "asked {name} {type} {rcode}"'
COREFILE = f"""\
.:$dns {{
    bind 127.0.0.1
    errors
    {LOG}
    kubernetes {Z} in-addr.arpa ip6.arpa {{
        manifests $manifests
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }}
    $plugins
}}
example.com:$dns {{
    bind 127.0.0.1
    {LOG}
    hosts {{
        192.0.2.1 api.example.com
        2001:db8::1 api.example.com
    }}
}}
"""
ASKED = re.compile(r"^\[INFO\] asked (\S+) (\S+) (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Place:
    """A pod with a kdns of its own, which serves the sample, and both libraries."""

    pod: Netns
    server: Server
    glibc: stubs.Program
    musl: stubs.Program

    def live(self, *arguments: object) -> Done:
        """The command in the pod, asking the server."""
        return self.pod.inside(lambda: explain(*arguments, "--server", "127.0.0.1", "--json"))

    def count(self, program: stubs.Program, verb: str, name: str) -> tuple[int, bool]:
        """The queries that the server sees of a look-up, and whether it finds something."""
        before = self._logged()
        line = program.ask(verb, name)
        end = self._logged()
        asked = ASKED.findall(self.server.log[before:end])
        return len([name for name, _, _ in asked if not name.startswith("mark-")]), not line.startswith("!")

    def _logged(self) -> int:
        """The length of the log, when it has all that was asked: the last are queries of ours, over UDP and TCP."""
        mark = f"mark-{next(_numbers)}.example.com."
        for ask in (dns.query.udp, dns.query.tcp):
            self.pod.inside(partial(ask, dns.message.make_query(mark, "A"), "127.0.0.1", 5))
        procs.wait_until(lambda: self.server.log.count(mark) >= 2, 5, "the log")
        return len(self.server.log)


_numbers = iter(range(1 << 30))


def upstream(query: Any, proto: str) -> bytes:
    """Nothing exists, and what is broken fails."""
    broken = query.question[0].name.to_text().endswith("broken.example.")
    return bytes(respond(query, rcode=dns.rcode.SERVFAIL if broken else dns.rcode.NXDOMAIN).to_wire())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if missing := [tool for tool in ("ip", "cc", "musl-gcc") if not digs.available(tool)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    try:
        netns.require()
    except netns.NetnsUnavailableError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("explain")
    for compiler, options in (("cc", ["-lresolv"]), ("musl-gcc", ["-static"])):
        source = stubs.SOURCES / "search.c"
        subprocess.run([compiler, "-Wall", "-Werror", "-o", folder / compiler, source, *options], check=True)
    lines = f"search shop.svc.{Z} svc.{Z} {Z}\noptions ndots:5 timeout:1\n"
    with contextlib.ExitStack() as stack:
        pod = stack.enter_context(Netns("explain", f"nameserver 127.0.0.1\n{lines}"))
        port = pod.inside(lambda: stack.enter_context(played(upstream)))
        server = Server(
            folder / "kdns",
            [*sample_objects(), *big()],
            corefile=COREFILE,
            plugins=f"forward . 127.0.0.1:{port}",
            prefix=pod.prefix,
            connect=None,
            dns_port=53,
        )
        stack.enter_context(server)
        procs.wait_until(
            lambda: pod.inside(lambda: explain("web", "-n", "shop", "--server", "127.0.0.1")).code == 0, 20, "kdns"
        )
        glibc, musl = (stack.enter_context(stubs.Program(pod, [str(folder / name)])) for name in ("cc", "musl-gcc"))
        yield Place(pod, server, glibc, musl)


COUNTED = [
    "web",
    "big.shop",
    "web.shop",
    "db.data",
    "db-0.db.data",
    "db-2.db.data",
    "database",
    "alerts.monitoring.svc",
    "shop",
    f"web.shop.svc.{Z}",
    f"web.shop.svc.{Z}.",
    "api.example.com",
    "api.example.com.",
    "nothing",
    "10-244-0-11.shop.pod",
    "one.two.three.four.five.six",
    "a..b",
    "b\u00fccher",
]


@pytest.mark.parametrize("name", COUNTED)
def test_both_libraries_send_what_is_explained(place: Place, name: str) -> None:
    live = place.live(name, "-n", "shop").json
    offline = explain(name, "-n", "shop", "--conf", place.server.conf, "--json").json
    if offline["resolves"] is None:
        offline = live  # what the upstream knows changes the rest
    for library, program in (("glibc", place.glibc), ("musl", place.musl)):
        count, found = place.count(program, "addresses", name)
        if (library, name) == ("musl", "big.shop") and musl_version() < (1, 2, 4):
            count += 1  # what is truncated is asked for over TCP from then on
        assert (library, live[library]["queries"], offline[library]["queries"]) == (library, count, count)
        assert live[library]["result"] in ("found",) if found else live[library]["result"] != "found"


@pytest.mark.parametrize(
    ("name", "verb"), [("web.shop", "A"), ("web.shop", "AAAA"), ("_http._tcp.web", "SRV"), ("db.data", "AAAA")]
)
def test_other_types_cost_what_is_explained(place: Place, name: str, verb: str) -> None:
    live = place.live(name, "-n", "shop", "--type", verb).json
    for library, program in (("glibc", place.glibc), ("musl", place.musl)):
        count, _ = place.count(program, verb, name)
        assert (library, live[library]["queries"]) == (library, count)


def test_an_answer_of_many_addresses_is_explained(place: Place) -> None:
    facts = place.live("big", "-n", "shop", "--manifests", place.server.manifests).json
    assert facts["glibc"]["queries"] == 4 * 4  # two over UDP and two over TCP, for 24, 49, 101 and 204 addresses
    assert len(facts["steps"][0]["answers"][0]["records"]) == 140
    (origin,) = facts["steps"][0]["answers"][0]["origins"]
    assert origin["text"].endswith("EndpointSlice big-s4 (20 ready); 2 more")
    text = place.pod.inside(lambda: explain("big", "-n", "shop", "--server", "127.0.0.1")).out
    assert "10.7.0.6 and 134 more" in text
    assert "glibc asks everything 4 times" in text
    assert "an answer of more than 512 bytes is asked for again over TCP" in text


def test_a_failing_upstream_costs_what_is_explained(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(f"nameserver 127.0.0.1\nsearch shop.svc.{Z} svc.{Z} {Z}\noptions ndots:5 timeout:1\n")
    live = place.pod.inside(lambda: explain("www.broken.example", "--resolv-conf", path, "--json"))
    assert (live.code, live.json["source"]) == (3, "server 127.0.0.1 port 53")
    for library, program in (("glibc", place.glibc), ("musl", place.musl)):
        count, found = place.count(program, "addresses", "www.broken.example")
        assert (library, count, found) == (library, live.json[library]["queries"], False)
    assert live.json["musl"]["seconds_of_waiting"] == 1.0
    assert live.json["steps"][-1]["answers"][0]["upstream"] == ("AA: the server's own data, or handed on with the flag")


EVERYWHERE = [
    "web",
    "web.shop",
    "db.data",
    "db-2.db.data",
    "database",
    "reports",
    "nothing",
    "alerts.monitoring",
    "10.244.0.31",
]


@pytest.fixture(scope="module")
def sources(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[object]]]:
    """Arguments for each source of the same cluster."""
    folder = tmp_path_factory.mktemp("sources")
    objects = [item for item in sample_objects() if item["kind"] != "Endpoints"]  # an API gives EndpointSlices of them
    write_list(folder / "cluster.json", objects)
    with ApiServer(folder / "api") as api, Server(folder / "kdns", objects) as stopped:
        api.load(objects)
        stopped.terminate()
        yield {
            "manifests": ["--manifests", folder / "cluster.json"],
            "kubeconfig": ["--kubeconfig", api.kubeconfig(folder / "config")],
            "state directory of a stopped kdns": ["--state-dir", stopped.state_dir],
            "state directory of a running kdns": ["--state-dir", place.server.state_dir],
        }


def without_times(facts: dict[str, Any]) -> dict[str, Any]:
    """What all sources have in common: the upstream and its words are the Corefile's, and so is the TTL."""
    for step in facts["steps"]:
        for answer in step["answers"]:
            for record in answer["records"]:
                del record["ttl"]
    return {key: value for key, value in facts.items() if key != "source"}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_all_sources_explain_the_same(sources: dict[str, list[object]], name: str) -> None:
    found = {
        title: without_times(explain(name, "-n", "shop", *arguments, "--json").json)
        for title, arguments in sources.items()
    }
    expected = found["manifests"]
    for title, facts in found.items():
        assert facts == expected, title


@pytest.mark.parametrize("name", EVERYWHERE)
def test_a_server_says_the_same_as_far_as_it_knows(place: Place, sources: dict[str, list[object]], name: str) -> None:
    offline = explain(name, "-n", "shop", *sources["manifests"], "--json").json
    for more in ([], sources["manifests"]):
        live = place.live(name, "-n", "shop", *more).json
        assert [step["name"] for step in live["steps"]] == [step["name"] for step in offline["steps"]]
        for key in ("glibc", "musl", "resolves", "cheaper"):
            assert live[key] == offline[key]
        if more:
            assert live["hints"] == offline["hints"]
            assert live["steps"][0]["answers"][0]["origins"] == offline["steps"][0]["answers"][0]["origins"]
        assert all(answer["milliseconds"] is not None for step in live["steps"] for answer in step["answers"])


def test_a_server_that_does_not_agree_with_the_data(place: Place, tmp_path: Path) -> None:
    write_list(tmp_path / "c.json", [namespace("shop"), service("new", "shop", ips=("10.96.9.9",))])
    behind = place.live("new", "-n", "shop", "--manifests", tmp_path / "c.json")
    assert behind.hints == [
        f"the server does not have it, but the data does: Service shop/new, ClusterIP; {NOTHING_BEHIND}"
    ]
    ahead = place.live("web", "-n", "shop", "--manifests", tmp_path / "c.json").json
    assert ahead["steps"][0]["answers"][0]["upstream"] == "the server's own data (AA); the data does not have it"


def test_pods_of_a_state_directory_without_its_corefile(place: Place) -> None:
    done = explain("10-9-9-9.shop.pod", "-n", "shop", "--state-dir", place.server.state_dir, "--json")
    assert (done.code, done.costs) == (0, (6, 6))
    other = explain("web", "-n", "shop", "--state-dir", place.server.state_dir, "--json")
    assert other.json["steps"][0]["answers"][0]["origins"][0]["name"] == "web"


def test_an_api_that_refuses_is_an_error(tmp_path: Path) -> None:
    with ApiServer(tmp_path / "api") as api:
        api.create(service("web", "shop"))
        config = api.kubeconfig(tmp_path / "config")
        api.forbid("/services")
        done = explain("web", "-n", "shop", "--kubeconfig", config)
    assert (done.code, done.out) == (1, "")
    assert 'list of services in API group "" is not allowed' in done.err


def test_what_of_the_data_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("kind: Service\nmetadata: [\n")
    done = explain("web", "-n", "shop", "--manifests", tmp_path, "--manifests", SAMPLE)
    assert done.code == 0
    assert f"{tmp_path}/broken.yaml" in done.err


# Corefiles

OUTSIDE = "example.org:53 {\n    whoami\n}"


@pytest.mark.parametrize(
    ("extra", "after", "name", "first", "code"),
    [
        ("forward . 192.0.2.1 tls://192.0.2.2", "", "example.com.", "forwarded to 192.0.2.1:53 or 192.0.2.2:853", 1),
        ("forward example.com 192.0.2.1", "", "www.example.com.", "forwarded to 192.0.2.1:53", 1),
        ("forward example.com 192.0.2.1", "", "www.example.org.", "no plugin of the server block answers for it", 3),
        (
            "forward . 192.0.2.1 {\n except example.com\n}",
            "",
            "www.example.com.",
            "no plugin of the server block answers for it",
            3,
        ),
        ("forward . 192.0.2.1", OUTSIDE, "www.example.org.", "whoami has no such records for it", 3),
        ("hosts {\n 192.0.2.7 www.example.com\n}", "", "www.example.com.", "the plugin hosts", 0),
        ("local", "", "localhost.", "the plugin local", 0),
        (
            f"rewrite name suffix .corp .shop.svc.{Z}",
            "",
            "web.corp.",
            f"Service shop/web, ClusterIP; {NOTHING_BEHIND}",
            0,
        ),
        ("rewrite name a.test b.test\nforward b.test 192.0.2.1", "", "a.test.", "forwarded to 192.0.2.1:53", 1),
        ("forward . 192.0.2.1", "", f"web.shop.svc.{Z}.", f"Service shop/web, ClusterIP; {NOTHING_BEHIND}", 0),
    ],
)  # fmt: skip
def test_what_a_corefile_makes_of_a_name(
    extra: str, after: str, name: str, first: str, code: int, tmp_path: Path
) -> None:
    done = explain(name, "-n", "shop", *cluster(tmp_path, [*EMPTY, WEB], extra=extra, after=after))
    (answer, *_) = done.json["steps"][0]["answers"]
    said = [origin["text"] for origin in answer["origins"]] + [answer["upstream"], answer["missing"]]
    assert first in said
    assert done.code == code


def test_autopath_goes_through_the_search_list_for_a_pod(tmp_path: Path) -> None:
    arguments = cluster(tmp_path, [*EMPTY, WEB], "pods verified", extra="autopath @kubernetes\nforward . 192.0.2.1")
    inside = explain("web.shop.svc", "-n", "data", *arguments)
    assert (inside.code, inside.costs) == (0, (2, 2))
    outside = explain("www.example.com", "-n", "data", *arguments)
    (step,) = outside.json["steps"]
    assert (step["answers"][0]["upstream"], outside.costs) == ("forwarded to 192.0.2.1:53", (2, 2))


def test_autopath_of_a_node_asks_the_server_block_of_a_name(tmp_path: Path) -> None:
    cluster(tmp_path, [*EMPTY, WEB])
    (tmp_path / "Corefile").write_text(
        f"{Z}:53 {{\n kubernetes {{\n manifests {tmp_path / 'cluster.json'}\n }}\n"
        " autopath @kubernetes {\n node n\n }\n}\n.:53 {\n forward . 192.0.2.1\n}\n"
    )
    inside = explain("web.shop.svc", "-n", "data", *corefile_of(tmp_path))
    assert (inside.code, inside.costs) == (0, (2, 2))
    outside = explain("www.example.com", "-n", "data", *corefile_of(tmp_path))
    (step,) = outside.json["steps"]
    assert (step["answers"][0]["upstream"], outside.costs) == ("forwarded to 192.0.2.1:53", (2, 2))


def test_names_that_fall_through_are_forwarded(tmp_path: Path) -> None:
    arguments = cluster(tmp_path, [*EMPTY, WEB], "fallthrough in-addr.arpa", extra="forward . 192.0.2.1")
    done = explain("10.99.99.99", "-n", "shop", *arguments)
    (answer,) = done.json["steps"][0]["answers"]
    assert (answer["upstream"], answer["missing"]) == (
        "forwarded to 192.0.2.1:53",
        "no Service and no ready endpoint has 10.99.99.99",
    )
    kept = explain("fd00::99", "-n", "shop", *arguments)
    assert (kept.code, kept.json["steps"][0]["answers"][0]["rcode"]) == (3, "NXDOMAIN")


def test_a_hosts_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    arguments = cluster(tmp_path, [*EMPTY, WEB], extra=f"hosts {tmp_path / 'none'} {{\n fallthrough\n}}")
    done = explain("web", "-n", "shop", *arguments)
    assert done.code == 0
    assert f"{tmp_path / 'none'} cannot be read" in done.err


def test_another_zone_and_several_of_them(tmp_path: Path) -> None:
    write_list(tmp_path / "c.json", [*EMPTY, WEB])
    (tmp_path / "Corefile").write_text(
        f"corp.example other.example:5353 {{\n    kubernetes corp.example {{\n        manifests {tmp_path / 'c.json'}\n"
        "        ttl 30\n    }\n}\n"
    )
    done = explain("web", "-n", "shop", "--conf", tmp_path / "Corefile", "--json")
    assert (done.code, done.json["search"][2]) == (0, "corp.example")
    wrong = explain("web", "-n", "shop", "--conf", tmp_path / "Corefile", "--cluster-zone", Z)
    assert (wrong.code, wrong.err) == (
        1,
        f"{tmp_path / 'Corefile'}: no kubernetes directive has the zone {Z}.; there are: corp.example.\n",
    )
    plain = explain(
        "web", "-n", "shop", "--manifests", tmp_path / "c.json", "--cluster-zone", "Corp.Example.", "--json"
    )
    assert plain.json["steps"] == done.json["steps"]


def test_a_zone_of_another_cluster_is_not_made_up(tmp_path: Path) -> None:
    write_list(tmp_path / "other.json", [*EMPTY, WEB])
    after = f"other.local:53 {{\n    kubernetes {{\n        manifests {tmp_path / 'other.json'}\n    }}\n}}"
    done = explain("web.shop.svc.other.local.", *cluster(tmp_path, EMPTY, after=after))
    assert done.code == 1
    assert done.json["steps"][0]["answers"][0]["upstream"] == (
        "answered from a zone of the Corefile that is not in this data"
    )


def test_a_corefile_alone_reads_what_its_directive_names(tmp_path: Path) -> None:
    with ApiServer(tmp_path / "api") as api:
        api.create(service("web", "shop"))
        config = api.kubeconfig(tmp_path / "config")
        (tmp_path / "Corefile").write_text(f"{Z} {{\n    kubernetes {{\n        kubeconfig {config} test\n    }}\n}}\n")
        assert explain("web", "-n", "shop", "--conf", tmp_path / "Corefile").code == 0
    (tmp_path / "Corefile").write_text(". {\n    whoami\n}\n")
    none = explain("web", "--conf", tmp_path / "Corefile")
    assert (none.code, none.err) == (
        1,
        f"{tmp_path / 'Corefile'}: no kubernetes directive has a zone of a cluster; there are: none\n",
    )


# Hostile


@pytest.mark.parametrize(
    "arguments",
    [
        ["web"],
        ["", "--manifests", "x"],
        ["web", "--manifests", "x", "--state-dir", "y"],
        ["web", "--manifests", "x", "--context", "y"],
        ["web", "--manifests", "x", "--ndots", "16"],
        ["web", "--manifests", "x", "-n", "no/namespace"],
        ["web", "--manifests", "x", "--search", "a..b"],
        ["web", "--manifests", "x", "--cluster-zone", "a..b"],
        ["web", "--manifests", "x", "--type", "NONSENSE"],
        ["10.0.0.1", "--manifests", "x", "--type", "A"],
        ["127.1", "--manifests", "x"],
        ["web", "--manifests", "x", "--resolv-conf", "y", "--ndots", "2"],
        ["web", "--manifests", "x", "--port", "0"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str]) -> None:
    done = explain(*arguments)
    assert (done.code, done.out) == (2, "")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for option in ("--conf", "--resolv-conf", "--state-dir", "--kubeconfig"):
        done = explain(
            "web", option, tmp_path / "none", *([] if option != "--resolv-conf" else ["--manifests", SAMPLE])
        )
        assert (done.code, done.out) == (1, ""), option
        assert str(tmp_path / "none") in done.err


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.one_of(st.text(max_size=300), st.text(st.sampled_from("a.\\-_0 *\t\n\x00\udcff\u00fc"), max_size=40)))
def test_any_text_is_explained_or_refused(name: str) -> None:
    done = CliRunner().invoke(app, ["explain", "--manifests", str(SAMPLE / "monitoring.json"), "--", name])
    assert done.exception is None or isinstance(done.exception, SystemExit), name
    assert done.exit_code in (0, 1, 2, 3)
    assert all(char.isprintable() or char == "\n" for char in done.stdout)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    command = [sys.executable.encode(), b"-m", b"kdns", b"explain", b"\xff\xfe", b"--manifests", bytes(SAMPLE)]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert (done.returncode, b"Traceback" in done.stderr) == (3, False)


@contextlib.contextmanager
def garbage(answer: Callable[[bytes], bytes]) -> Iterator[int]:
    """A server on 127.0.0.1 that sends what is made of a query; its port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, sock = self.request
            sock.sendto(answer(data), self.client_address)

    with socketserver.UDPServer(("127.0.0.1", ports.free_port(("127.0.0.1",))), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def asked_by(port: int, timeout: float = 0.2) -> Done:
    return explain("web.", "--server", "127.0.0.1", "--port", port, "--timeout", timeout)


def test_a_server_that_is_silent_refuses_or_answers_something_else() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        done = asked_by(silent.getsockname()[1])
    assert done.code == 1
    assert re.fullmatch(
        r"no answer from 127.0.0.1 port \d+ over UDP within 0.2 s; it was asked 2 times for web. A\n", done.err
    )
    closed = asked_by(ports.free_port(("127.0.0.1",)))
    assert (closed.code, closed.err.split(";")[0].endswith("over UDP")) == (1, True)
    with garbage(
        lambda data: data[:2] + b"\x80\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05other\x00\x00\x01\x00\x01"
    ) as port:
        other = asked_by(port)
    assert (other.code, "answers another question than web. A" in other.err) == (1, True)


@dataclass
class Garbled:
    """A server that answers whatever it is told to."""

    port: int = 0
    tail: bytes = b""
    echo: bool = False
    counts: tuple[int, int, int] = (0, 0, 0)

    def answer(self, data: bytes) -> bytes:
        if self.echo:  # the question, as it was asked, then anything
            counts = b"".join(count.to_bytes(2, "big") for count in self.counts)
            return data[:2] + b"\x84\x00\x00\x01" + counts + data[12:] + self.tail
        return data[:2] + b"\x80" + bytes(9) + self.tail


@pytest.fixture(scope="module")
def garbled() -> Iterator[Garbled]:
    found = Garbled()
    with garbage(found.answer) as port:
        found.port = port
        yield found


RECORDS = st.tuples(
    st.sampled_from([b"\xc0\x0c", b"\x03\xff\x00\x80\x00", b"\xc0\xff", b"\x00"]),
    st.sampled_from([1, 5, 6, 16, 28, 33, 41, 999]).map(lambda number: number.to_bytes(2, "big")),
    st.binary(max_size=30),
).map(lambda parts: parts[0] + parts[1] + b"\0\1\0\0\0\5" + len(parts[2]).to_bytes(2, "big") + parts[2])


@settings(max_examples=80)
@given(
    tail=st.one_of(st.binary(max_size=120), st.lists(RECORDS, max_size=3).map(b"".join)),
    echo=st.booleans(),
    counts=st.tuples(*[st.integers(0, 2)] * 3),
)
def test_garbage_from_a_server_is_one_line(
    garbled: Garbled, tail: bytes, echo: bool, counts: tuple[int, int, int]
) -> None:
    garbled.tail, garbled.echo, garbled.counts = tail, echo, counts
    done = asked_by(garbled.port, 2)
    assert done.code in (0, 1, 3)
    assert done.err.count("\n") <= 1
    assert all(char.isprintable() or char == "\n" for char in done.out + done.err)


def test_views_are_tried_in_the_order_of_the_file(tmp_path: Path) -> None:
    arguments = cluster(tmp_path, EMPTY)
    corefile = tmp_path / "Corefile"
    written = corefile.read_text()
    inside, documents = "incidr(client_ip(), '10.0.0.0/8')", "incidr(client_ip(), '192.0.2.0/24')"
    for number, taken in enumerate((inside, documents), 1):
        written += f"\na.test {{\nview v{number} {{\nexpr {taken}\n}}\nhosts {{\n192.0.2.{number} www.a.test\n}}\n}}\n"
    corefile.write_text(f"{written}\na.test {{\nhosts {{\n192.0.2.3 www.a.test\n}}\n}}\n")
    done = explain("www.a.test.", "-n", "shop", *arguments)
    assert "192.0.2.2" in done.out
    assert "192.0.2.1 " not in done.out
    assert "192.0.2.3" not in done.out
    assert "views are tried for a client at 192.0.2.1" in done.err
