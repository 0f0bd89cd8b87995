"""autopath for the pods of one node: what it asks of the API server, what it knows of pods, and what it keeps."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import lmdb
import pytest

from kdns.zone.store import DATABASES
from tests.support import procs
from tests.support.apiserver import ApiServer
from tests.support.loopback import Node
from tests.support.objects import Object, pod
from tests.support.server import Server
from tests.support.volume import Volume

pytestmark = pytest.mark.one_speed

Z = "cluster.local."
WEB, OUTSIDE = f"web.other.svc.{Z}", "www.example.net."
SELECTED = "spec.nodeName=node-1,status.phase!=Succeeded,status.phase!=Failed,status.phase!=Unknown"
HERE, ELSEWHERE, LATE, HOST = (f"127.0.0.{number}" for number in range(2, 6))
SOON = 5.0
MANY = 2000
COREFILE = """\
cluster.local:$dns 10.0.0.0/8:$dns {
    bind 127.0.0.1
    errors
    prometheus $host:$metrics
    ready $host:$ready
    $kubernetes
    file $plugins cluster.local
}
.:$dns {
    bind 127.0.0.1
    hosts /nowhere example.net {
        192.0.2.80 www.example.net
    }
}
"""
MARK = "hosts /nowhere taken.cluster.local {\n192.0.2.9 taken.cluster.local\n}"
ZONE = f"""\
$ORIGIN {Z}
@ 5 SOA ns hostmaster 1 7200 1800 86400 5
@ 5 NS ns
ns 5 A 192.0.2.53
web.other.svc 5 A 10.96.0.2
"""


def directive(kubeconfig: Path, node: str = "node-1") -> str:
    return f"autopath @kubernetes {{\n node {node}\n kubeconfig {kubeconfig}\n}}"


def pods() -> list[Object]:
    return [
        pod("web", "shop", HERE, node="node-1"),
        pod("web", "else", ELSEWHERE, node="node-2"),
        pod("ended", "shop", "127.0.0.9", node="node-1", phase="Succeeded"),
        pod("proxy", "kube-system", HOST, node="node-1"),
        pod("agent", "monitoring", HOST, node="node-1"),
    ]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path / "api", tls=False) as started:
        started.load(pods())
        yield started


Start = Callable[..., Server]


@pytest.fixture
def start(api: ApiServer, tmp_path: Path) -> Iterator[Start]:
    """Start a server with other lines in the place of `autopath`, if any are given."""
    zone, config = tmp_path / "zone", api.kubeconfig(tmp_path / "kubeconfig")
    zone.write_text(ZONE)
    started: list[Server] = []

    def begin(lines: str = "") -> Server:
        text = lines or directive(config)
        server = Server(tmp_path, corefile=COREFILE, kubernetes=text, plugins=str(zone), addresses=["127.0.0.1"])
        started.append(server)
        return server.start()

    yield begin
    for server in started:
        server.kill()


def ask(server: Server, name: str, client: str) -> str:
    """The last word of the answer to a client, or the response code of one that denies."""
    response = dns.query.udp(dns.message.make_query(name, "A"), "127.0.0.1", 3, server.port, source=client)
    lines = [line for rrset in response.answer for line in rrset.to_text().splitlines()]
    return lines[-1].split()[-1] if lines else dns.rcode.to_text(response.rcode())


def completes(server: Server, client: str, namespace: str = "shop") -> bool:
    """Whether the first name of a client's search list is answered with a later one."""
    found = ask(server, f"web.other.{namespace}.svc.{Z}", client)
    assert found in ("10.96.0.2", "NXDOMAIN")
    return found == "10.96.0.2"


def soon(condition: Callable[[], bool], what: str) -> None:
    procs.wait_until(condition, SOON, what, 0.02)


def knows(server: Server, client: str = HERE, namespace: str = "shop") -> None:
    soon(lambda: completes(server, client, namespace), f"{client} to be known")


def test_only_pods_of_the_node_are_asked_for_and_known(api: ApiServer, start: Start) -> None:
    """Nothing else of the cluster; a pod elsewhere goes through its list by itself, as does who is nobody."""
    api.load(
        pod(f"pod-{number}", "else", f"10.{number >> 8}.{number & 255}.1", node="node-2") for number in range(MANY)
    )
    before = api.counters().sent
    server = start()
    knows(server)
    assert not completes(server, ELSEWHERE, "else")
    assert not completes(server, "127.0.0.9")
    assert not completes(server, HOST, "kube-system")
    assert not completes(server, HERE, "else")
    asked = {(each.path, each.query.get("fieldSelector")) for each in api.requests() if each.path != "/api"}
    assert {found for found in asked if "namespaces" not in found[0]} == {("/api/v1/pods", SELECTED)}
    sent = sum(api.counters().sent.values()) - sum(before.values())
    assert 0 < sent < 10 * MANY, "what is elsewhere is not sent"
    metrics = server.metrics()
    assert metrics.value("kdns_kubernetes_objects", kind="Pod") == 3
    assert metrics.value("kdns_kubernetes_objects") == 3
    assert metrics.value("coredns_autopath_success_total") >= 1
    assert server.ready().body.strip() in ("OK", "")


def test_other_names_are_answered_by_the_server_block_that_they_belong_to(start: Start) -> None:
    server = start()
    knows(server)
    assert ask(server, f"{OUTSIDE}shop.svc.{Z}", HERE) == "192.0.2.80"
    assert ask(server, f"nobody.{OUTSIDE}shop.svc.{Z}", HERE) == "NXDOMAIN"
    assert ask(server, f"{OUTSIDE}shop.svc.{Z}", ELSEWHERE) == "NXDOMAIN"


def test_pods_come_and_go(api: ApiServer, start: Start) -> None:
    server = start()
    late = pod("late", "shop", LATE, node="node-1")
    api.create(late)
    knows(server, LATE)
    api.update(pod("late", "shop", LATE, node="node-1", phase="Failed"))
    soon(lambda: not completes(server, LATE), "its end")
    api.update(late)
    knows(server, LATE)
    api.delete(late)
    soon(lambda: not completes(server, LATE), "its deletion")
    api.create(pod("late", "else", LATE, node="node-1"))
    knows(server, LATE, "else")
    assert not completes(server, LATE)


def test_an_address_is_that_of_its_last_pod_whatever_was_missed(api: ApiServer, start: Start) -> None:
    """Of two pods with one address in different namespaces neither counts; after events that nobody kept there is a
    list. What one client is answered is kept for no other, over TCP either."""
    server = start()
    two = pod("two", "shop", LATE, node="node-1")
    two["status"]["podIPs"].append({"ip": "127.0.0.10"})
    api.create(two)
    knows(server, LATE)
    knows(server, "127.0.0.10")
    api.create(pod("next", "else", LATE, node="node-1"))
    soon(lambda: not completes(server, LATE), "two of one address")
    assert not completes(server, LATE, "else")
    api.refuse()
    api.break_connections()
    api.delete(two)
    api.compact()
    api.listen()
    procs.wait_until(lambda: completes(server, LATE, "else"), 15, "a new list", 0.02)
    for client, namespace in [(HERE, "shop"), (LATE, "else")] * 3:
        for asked in ("shop", "else"):
            query = dns.message.make_query(f"web.other.{asked}.svc.{Z}", "A")
            assert completes(server, client, asked) is (asked == namespace)
            over_tcp = dns.query.tcp(query, "127.0.0.1", 3, server.port, source=client)
            assert bool(over_tcp.answer) is (asked == namespace)
    assert not completes(server, "127.0.0.10")


def test_what_is_known_outlives_the_api_server_and_a_restart(api: ApiServer, start: Start) -> None:
    """Then the watch goes on where it was, without a list."""
    server = start()
    knows(server)
    api.down()
    assert completes(server, HERE)
    server.kill()
    server.start()
    assert completes(server, HERE)
    api.forget_requests()
    api.up()
    api.create(pod("late", "shop", LATE, node="node-1"))
    procs.wait_until(lambda: completes(server, LATE), 15, "the new pod", 0.02)
    assert not [each for each in api.requests() if each.is_list]


def test_without_the_api_server_it_serves_at_once(api: ApiServer, start: Start) -> None:
    api.down()
    server = start()
    assert ask(server, WEB, HERE) == "10.96.0.2"
    assert not completes(server, HERE)
    assert server.ready().status == 200
    api.up()
    procs.wait_until(lambda: completes(server, HERE), 15, "the pods", 0.02)


def test_without_the_api_server_nothing_is_known_of_another_node(api: ApiServer, start: Start, tmp_path: Path) -> None:
    """Its addresses may be those of other namespaces' pods."""
    server = start()
    knows(server)
    server.terminate()
    api.down()
    server.write_corefile(kubernetes=directive(tmp_path / "kubeconfig", "node-2"))
    server.start()
    assert not completes(server, HERE)


def test_a_node_without_pods_is_doubted(api: ApiServer, start: Start, tmp_path: Path) -> None:
    server = start(directive(api.kubeconfig(tmp_path / "kubeconfig"), "other"))
    soon(lambda: "no pod runs on a node other; is that its name?" in server.log, "a line of the log")
    server.write_corefile(kubernetes=directive(tmp_path / "kubeconfig"))
    server.signal(signal.SIGHUP)
    knows(server)
    assert server.log.count("is that its name?") == 1


def test_what_is_not_allowed_is_said(api: ApiServer, start: Start) -> None:
    api.forbid("/pods")
    server = start()
    soon(lambda: "[WARNING] plugin/autopath: autopath cluster.local" in server.log, "a line of the log")
    assert 'watch of pods in API group "" is not allowed' in server.log
    assert not completes(server, HERE)
    api.forbid()
    procs.wait_until(lambda: completes(server, HERE), 15, "the pods", 0.02)


def test_outside_of_a_cluster_it_has_to_be_told_where_the_api_server_is(start: Start, tmp_path: Path) -> None:
    server = start()
    server.terminate()
    server.write_corefile(kubernetes="autopath @kubernetes {\nnode node-1\n}")
    code, said = server.run()
    assert code == 1
    assert f"{tmp_path}/Corefile:1: autopath: this is no pod of a cluster" in said
    assert "kubeconfig FILE or endpoint URL in the directive" in said
    assert "manifests" not in said


def test_a_reload_follows_another_node_and_forgets_what_is_not_followed(
    api: ApiServer, start: Start, tmp_path: Path
) -> None:
    """A new configuration is taken without the API server, too, and without a kubeconfig that can be read."""
    server = start()
    knows(server)
    config = tmp_path / "kubeconfig"
    server.write_corefile(kubernetes=directive(config, "node-2"))
    server.signal(signal.SIGHUP)
    knows(server, ELSEWHERE, "else")
    soon(lambda: not completes(server, HERE), "the first node's pods to be forgotten")
    assert kept(server)
    server.write_corefile(kubernetes="")
    server.signal(signal.SIGHUP)
    soon(lambda: not completes(server, ELSEWHERE, "else"), "no autopath")
    soon(lambda: not kept(server), "nothing of it to be kept")
    api.down()
    server.write_corefile(kubernetes=directive(config, "node-2"))
    server.signal(signal.SIGHUP)
    soon(lambda: server.log.count("plugin/autopath: autopath cluster.local") >= 1, "it to be followed")
    server.write_corefile(kubernetes="")
    server.signal(signal.SIGHUP)
    soon(lambda: not kept(server), "nothing of it to be kept")
    server.write_corefile(kubernetes=f"{directive(config.with_name('missing'))}\n{MARK}")
    server.signal(signal.SIGHUP)
    soon(lambda: ask(server, f"taken.{Z}", HERE) == "192.0.2.9", "the new configuration")
    soon(lambda: "[ERROR] plugin/autopath: autopath cluster.local" in server.log, "what is wrong with it")


ON_A_NODE = """\
__PILLAR__DNS__DOMAIN__:$dns {
    errors
    bind __PILLAR__LOCAL__DNS__
    prometheus $host:$metrics
    $plugins
    template IN A {
        match "^web[.]other[.]svc[.]cluster[.]local[.]$"
        answer "{{ .Name }} 5 IN A 10.96.0.2"
        fallthrough
    }
    template ANY ANY {
        rcode NXDOMAIN
    }
}
"""


def test_a_node_that_cannot_keep_pods_answers_without_them(api: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no directory")
    lines = directive(api.kubeconfig(tmp_path / "kubeconfig")).replace("node-1", "{$NODE_NAME}")
    environ = {"NODE_NAME": "node-1"}
    with Node(tmp_path, Volume(tmp_path / "cm"), corefile=ON_A_NODE, plugins=lines, environ=environ) as server:
        assert ask(server, WEB, HERE) == "10.96.0.2"
        assert not completes(server, HERE)
        assert f"[WARNING] state directory {tmp_path}/state: " in server.log
        (tmp_path / "state").unlink()
        procs.wait_until(lambda: completes(server, HERE), 15, "the pods", 0.02)
        assert server.metrics().value("kdns_kubernetes_objects") == 3


def kept(server: Server) -> list[bytes]:
    """The keys of all that the store of a server has for autopath."""
    with lmdb.open(str(server.state_dir), readonly=True, max_dbs=8) as env:
        databases = [env.open_db(name, create=False) for name in DATABASES]
        with env.begin() as txn:
            rows = [row for database in databases for row in txn.cursor(database)]
    return [key for key, value in rows if b"autopath-" in key or b"autopath-" in value]
