"""The Corefiles of kubeadm and of the NodeLocal add-on serve unchanged, and what kdns lacks of CoreDNS is told."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdns.plugins import MANUALS
from tests.support import digs, procs
from tests.support.apiserver import ApiServer
from tests.support.netns import Netns
from tests.support.node import NODE_LOCAL
from tests.support.objects import namespace, service
from tests.support.server import ROOT, Server

KUBEADM = """\
.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 {
       disable success cluster.local
       disable denial cluster.local
    }
    loop
    reload
    loadbalance
}
"""
"""What kubeadm puts into the ConfigMap `coredns` (Kubernetes 1.33)."""

HERE, WORLD, CLUSTER_DNS = "10.9.0.1", "10.9.0.2", "10.96.0.99"
LOCAL_DNS, DNS_SERVER = "169.254.20.10", "10.96.0.10"
PILLARS = {
    "__PILLAR__DNS__DOMAIN__": "cluster.local",
    "__PILLAR__LOCAL__DNS__": LOCAL_DNS,
    "__PILLAR__DNS__SERVER__": DNS_SERVER,
    "__PILLAR__CLUSTER__DNS__": CLUSTER_DNS,
    "__PILLAR__UPSTREAM__SERVERS__": "/etc/resolv.conf",
}

OF_COREDNS = (
    "root", "metadata", "geoip", "cancel", "proxyproto", "quic", "grpc_server", "https", "https3", "timeouts",
    "multisocket", "reload", "nsid", "bufsize", "bind", "debug", "trace", "ready", "health", "pprof", "shed",
    "prometheus", "errors", "log", "dnstap", "local", "dns64", "any", "chaos", "loadbalance", "tsig", "rewrite",
    "autopath", "acl", "cache", "header", "dnssec", "tls", "minimal", "template", "transfer", "hosts", "route53",
    "azure", "clouddns", "k8s_external", "kubernetes", "file", "auto", "secondary", "etcd", "loop", "forward", "grpc",
    "erratic", "whoami", "on", "sign", "view", "nomad",
)  # fmt: skip
"""Every directive of CoreDNS 1.13."""
START_SECONDS = 20.0


def node_local() -> str:
    text = NODE_LOCAL
    for name, value in PILLARS.items():
        text = text.replace(name, value)
    return text


def check(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """`kdns check` on a Corefile of that text."""
    (folder / "Corefile").write_text(text)
    command = [sys.executable, "-m", "kdns", "check", str(folder / "Corefile")]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)


@pytest.mark.parametrize("text", [KUBEADM, node_local()], ids=["kubeadm", "node-local"])
def test_check_has_nothing_to_say_about_the_corefiles_that_clusters_have(tmp_path: Path, text: str) -> None:
    done = check(tmp_path, text)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path}/Corefile: no mistakes\n")


def test_check_names_every_plugin_of_coredns_that_is_not_here_and_its_line(tmp_path: Path) -> None:
    lacking = [name for name in OF_COREDNS if name not in MANUALS]
    done = check(tmp_path, "\n".join([".:53 {", *(f"    {name} some thing" for name in lacking), "    whoami", "}"]))
    assert done.returncode == 1
    told = [line.split("; ")[0] for line in done.stderr.splitlines()]
    assert told == [
        f"{tmp_path}/Corefile:{number}: {name} is not supported by this version of kdns"
        for number, name in enumerate(lacking, 2)
    ]


@contextlib.contextmanager
def upstream(place: Netns, address: str, *options: str) -> Iterator[None]:
    """dnsmasq on port 53 of an address, which knows what its options say and has nobody to ask."""
    own = ["--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file=", "--no-resolv", "--no-hosts"]
    process = place.popen("dnsmasq", *own, f"--listen-address={address}", "--bind-interfaces", *options)
    try:
        yield
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def node(make_netns: Callable[..., Netns], needs: Callable[..., None]) -> tuple[Netns, Netns]:
    """A node, and the world around it, which its resolv.conf names."""
    needs("dnsmasq", "dig", "ip")
    here, world = make_netns("node", f"nameserver {WORLD}\n"), make_netns("world")
    here.connect(world, [f"{HERE}/24"], [f"{WORLD}/24"])
    for address in (LOCAL_DNS, DNS_SERVER):
        here.ip("address", "add", f"{address}/32", "dev", "lo")
    world.ip("address", "add", f"{CLUSTER_DNS}/32", "dev", "lo")
    here.ip("route", "add", f"{CLUSTER_DNS}/32", "via", WORLD)
    return here, world


def answers(place: Netns, server: str, name: str, *options: str) -> list[str] | None:
    """The rdata that dig shows; None if nothing came."""
    found = digs.dig(53, name, *options, server=server, prefix=place.prefix)
    return sorted(found.rdata()) if found.status in ("NOERROR", "NXDOMAIN") else None


def wait_for(place: Netns, server: Server, address: str, name: str, rdata: list[str]) -> None:
    def right() -> bool:
        assert server.process is not None
        assert server.process.poll() is None, "it ended"
        return answers(place, address, name) == rdata

    try:
        procs.wait_until(right, START_SECONDS, f"{name} {rdata}", 0.05)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{server.log}") from None


MOUNT = """\
mount -t tmpfs tmpfs /var/run && mkdir -p /var/run/secrets/kubernetes.io/serviceaccount &&
mount --bind "$0" /var/run/secrets/kubernetes.io/serviceaccount && exec "$@"
"""
"""Runs a command with a service account where a Pod has it. $0: its folder."""


def test_kubeadms_corefile_serves_unchanged_in_a_pod(node: tuple[Netns, Netns], tmp_path: Path) -> None:
    here, world = node
    api = ApiServer(tmp_path / "api", authenticate=True, host=WORLD, port=6443)
    with contextlib.ExitStack() as stack:
        stack.callback(api.kill)
        world.inside(api.start)
        api.create(namespace("default"))
        api.create(service("web", ips=["10.96.0.20"]))
        stack.enter_context(upstream(world, WORLD, "--address=/host.example/192.0.2.1", "--local-ttl=300"))
        environ = api.service_account(tmp_path / "account")
        prefix = [*here.prefix, "unshare", "--mount", "sh", "-c", MOUNT, str(tmp_path / "account")]
        server = stack.enter_context(Server(tmp_path, corefile=KUBEADM, connect=None, prefix=prefix, environ=environ))
        wait_for(here, server, HERE, "web.default.svc.cluster.local", ["10.96.0.20"])
        wait_for(here, server, HERE, "host.example", ["192.0.2.1"])
        assert answers(here, HERE, "host.example", "+tcp") == ["192.0.2.1"]
        assert answers(here, HERE, "10-1-2-3.default.pod.cluster.local") == ["10.1.2.3"]
        assert answers(here, HERE, "-x10.96.0.20", "PTR") == ["web.default.svc.cluster.local."]
        assert ttl(here, HERE, "web.default.svc.cluster.local") == 30
        assert 25 <= ttl(here, HERE, "host.example") <= 30, "cached for at most 30 s"
        assert "ERROR" not in server.log


def test_node_locals_corefile_serves_unchanged_on_a_node(node: tuple[Netns, Netns], tmp_path: Path) -> None:
    here, world = node
    cluster = [
        "--address=/cluster.local/10.96.0.20",
        "--ptr-record=20.0.96.10.in-addr.arpa,web.default.svc.cluster.local",
    ]
    with contextlib.ExitStack() as stack:
        stack.enter_context(upstream(world, WORLD, "--address=/host.example/192.0.2.1"))
        stack.enter_context(upstream(world, CLUSTER_DNS, *cluster))
        server = stack.enter_context(Server(tmp_path, corefile=node_local(), connect=None, prefix=here.prefix))
        for address in (LOCAL_DNS, DNS_SERVER):
            wait_for(here, server, address, "web.default.svc.cluster.local", ["10.96.0.20"])
            wait_for(here, server, address, "host.example", ["192.0.2.1"])
            assert answers(here, address, "host.example", "+tcp") == ["192.0.2.1"]
            assert answers(here, address, "-x10.96.0.20", "PTR") == ["web.default.svc.cluster.local."]
        assert "ERROR" not in server.log


def ttl(place: Netns, server: str, name: str) -> int:
    """The TTL of the first record of an answer."""
    return int(digs.dig(53, name, server=server, prefix=place.prefix).answer[0].split()[1])
