"""`kdns node`: node-cache's flags as Go reads them, and what is served with them."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kdns.cli import app
from kdns.cli import node as command
from kdns.node.loader import Paths
from kdns.node.settings import PROBLEMS, Settings
from tests.support.loopback import BASE, Node
from tests.support.procs import wait_until
from tests.support.server import Server
from tests.support.upstream import FakeUpstream
from tests.support.volume import Volume

ERRORS = "coredns_nodecache_setup_errors_total"
LOOKING_EVERY = "import kdns.cli.node; kdns.cli.node.LOOK_SECONDS = {}; kdns.cli.app()"
"""`python -m kdns`, but it looks at its files more or less often."""


# The command line


@dataclass
class Seen:
    """What a command line comes to."""

    instance: command.Instance
    workers: int
    metrics: tuple[str, int]


@dataclass
class Parser:
    """Runs command lines, but for serving."""

    seen: list[Seen] = field(default_factory=list)

    def __call__(self, *arguments: str) -> Seen:
        done = CliRunner().invoke(app, ["node", *arguments])
        assert done.exit_code == 0, done.output
        return self.seen[-1]

    def settings(self, *arguments: str) -> Settings:
        return self("-localip", "169.254.20.10", *arguments).instance.settings

    def refused(self, *arguments: str) -> str:
        """What is said about a command line that is wrong."""
        before = len(self.seen)
        done = CliRunner().invoke(app, ["node", *arguments])
        assert (done.exit_code, len(self.seen)) == (2, before)
        return done.output


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Parser:
    parser = Parser()

    def serve(self: command.Instance, workers: int, metrics: tuple[str, int]) -> None:
        parser.seen.append(Seen(self, workers, metrics))

    monkeypatch.setattr(command.Instance, "serve", serve)
    monkeypatch.setenv("KUBE_DNS_SERVICE_HOST", "10.96.0.10")
    monkeypatch.setenv("KUBE_DNS_UPSTREAM_SERVICE_HOST", "10.96.0.11")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    return parser


def test_without_flags_but_the_address_everything_is_as_in_node_cache(parse: Parser) -> None:
    seen = parse("-localip", "169.254.20.10")
    assert seen.instance.settings == Settings(
        addresses=("169.254.20.10",),
        port=53,
        interface="nodelocaldns",
        setup_interface=True,
        setup_iptables=True,
        skip_teardown=False,
        sync_seconds=60,
        health_port=8080,
        services=frozenset({"10.96.0.10", "10.96.0.11"}),
    )
    assert seen.instance.paths == Paths(Path("/etc/coredns/Corefile.base"), Path("/etc/Corefile"), None)
    assert (seen.metrics, seen.workers, seen.instance.pidfile) == (("", 9353), 1, None)
    values = seen.instance.values
    assert (values.domain, values.service, values.cluster_dns, values.port) == (
        "cluster.local",
        "kube-dns",
        "10.96.0.10",
        53,
    )


def test_the_store_is_where_the_command_line_or_the_environment_says(
    parse: Parser, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse("-localip", "::1").instance.state_dir == Path("/var/lib/kdns/node")
    monkeypatch.setenv("KDNS_STATE_DIR", "/somewhere")
    assert parse("-localip", "::1").instance.state_dir == Path("/somewhere")
    assert parse("-localip", "::1", "-state-dir=/else").instance.state_dir == Path("/else")


def test_the_add_ons_arguments_are_taken_as_they_are(parse: Parser) -> None:
    seen = parse(
        *("-localip", "169.254.20.10,10.96.0.10", "-conf", "/etc/Corefile", "-upstreamsvc", "kube-dns-upstream"),
        *("-pidfile", "/tmp/node-cache.pid"),  # noqa: S108
    )
    assert seen.instance.settings.addresses == ("169.254.20.10", "10.96.0.10")
    assert seen.instance.values.addresses == ("169.254.20.10", "10.96.0.10")
    assert seen.instance.paths.conf == Path("/etc/Corefile")
    assert seen.instance.values.cluster_dns == "10.96.0.11"
    assert seen.instance.pidfile == Path("/tmp/node-cache.pid")  # noqa: S108


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["-setupiptables=false"], "setup_iptables", False),
        (["--setupiptables=F"], "setup_iptables", False),
        (["-setupiptables=0"], "setup_iptables", False),
        (["-setupiptables"], "setup_iptables", True),
        (["-setupiptables=false", "-setupiptables=TRUE"], "setup_iptables", True),
        (["--setupinterface=False"], "setup_interface", False),
        (["-skipteardown"], "skip_teardown", True),
        (["-skipteardown=t"], "skip_teardown", True),
        (["-interfacename", "dns0"], "interface", "dns0"),
        (["-interfacename=a=b"], "interface", "a=b"),
        (["--health-port", "8081"], "health_port", 8081),
        (["-dns.port=5353"], "port", 5353),
        (["--dns.port", "5353"], "port", 5353),
        (["-p", "5353"], "port", 5353),
        (["-p=5353"], "port", 5353),
        (["-syncinterval", "90"], "sync_seconds", 90),
        (["-syncinterval", "1m30s"], "sync_seconds", 90),
        (["-syncinterval=500ms"], "sync_seconds", 0.5),
        (["-syncinterval=30ns"], "sync_seconds", 30),
        (["-localip", "-setupiptables", "-localip", "192.0.2.1"], "addresses", ("192.0.2.1",)),
    ],
)
def test_flags_are_written_as_go_has_them(parse: Parser, arguments: list[str], name: str, value: Any) -> None:
    found = getattr(parse.settings(*arguments), name)
    assert (found, type(found) is bool) == (value, type(value) is bool)


def test_other_flags(parse: Parser) -> None:
    seen = parse(
        *("-localip=::1", "-corefile", "/tmp/c", "-basecorefile", "/tmp/b", "-kubednscm=/tmp/k", "-workers=2"),  # noqa: S108
        *("-metrics-listen-address", "[::1]:9999", "-domain", "Corp.Example.", "-reloadwithsignal"),
    )
    assert seen.instance.paths == Paths(Path("/tmp/b"), Path("/tmp/c"), Path("/tmp/k"))  # noqa: S108
    assert (seen.metrics, seen.workers) == (("::1", 9999), 2)
    assert seen.instance.values.domain == "corp.example"
    both = parse("-localip=::1", "-conf", "/tmp/c", "-corefile", "/tmp/d")  # noqa: S108
    assert both.instance.paths.conf == Path("/tmp/c")  # noqa: S108


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("169.254.20.10,fd00::0:10", ("169.254.20.10", "fd00::10")),
        ("192.0.2.1,192.0.2.1", ("192.0.2.1",)),
        ("::ffff:192.0.2.1", ("192.0.2.1",)),
    ],
)
def test_addresses_may_be_of_both_families_and_each_counts_once(
    parse: Parser, text: str, addresses: tuple[str, ...]
) -> None:
    assert parse("-localip", text).instance.settings.addresses == addresses


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "-localip: at least one address is needed"),
        (["-localip", "169.254.20.10,,10.96.0.10"], "'' is not an IP address"),
        (["-localip", "169.254.20.10, 10.96.0.10"], "' 10.96.0.10' is not an IP address"),
        (["-localip", "__PILLAR__LOCAL__DNS__"], "the installer was to put an address there"),
        (["-localip", "fe80::1%eth0"], "has a zone"),
        (["-localip"], "-localip has no value"),
        (["-localip", "::1", "-setupiptables", "false"], '"false" is no option'),
        (["-localip", "::1", "-setupiptables=no"], '-setupiptables: "no" is neither true nor false'),
        (["-localip", "::1", "-syncinterval", "soon"], "is not a duration"),
        (["-localip", "::1", "-syncinterval", "0"], "0 would be for ever"),
        (["-localip", "::1", "-syncinterval", "-5s"], "is too short"),
        (["-localip", "::1", "-interfacename", "sixteen-letters-"], "cannot be the name of a link"),
        (["-localip", "::1", "-interfacename", "a/b"], "cannot be the name of a link"),
        (["-localip", "::1", "-interfacename", "a b"], "has a space"),
        (["-localip", "::1", "-interfacename", ""], "cannot be the name of a link"),
        (["-localip", "::1", "-interfacename=", "dns0"], '"dns0" is no option'),
        (["-localip", "::1", "-metrics-listen-address", "9353"], "is not an address with a port"),
        (["-localip", "::1", "-health-port", "http"], "health-port"),
        (["-localip", "::1", "-dns.port", "65536"], "dns.port"),
        (["-localip", "::1", "-domain", "no domain"], "is not a zone"),
        (["-localip", "::1", "-quiet"], "-quiet"),
        (["-localips", "::1"], '"localip" is near'),
        (["---localip", "::1"], "There is no option"),
        (["-localip", "::1", "--"], "There is no option"),
    ],
)
def test_what_cannot_be_done_is_refused(parse: Parser, arguments: list[str], said: str) -> None:
    assert said in " ".join(parse.refused(*arguments).replace("│", " ").split())


def test_a_service_that_the_environment_does_not_know_is_no_mistake_until_it_is_wanted(
    parse: Parser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAMED_SERVICE_HOST", "None")
    assert parse("-localip", "::1", "-upstreamsvc", "named").instance.values.cluster_dns == ""
    assert parse("-localip", "::1", "-upstreamsvc", "nobody").instance.values.cluster_dns == ""


def test_plugins_and_version_are_listed() -> None:
    plugins = CliRunner().invoke(app, ["node", "-plugins"])
    assert (plugins.exit_code, "forward" in plugins.output.split(), "kubernetes" in plugins.output.split()) == (
        0,
        True,
        False,
    )
    assert re.match(r"kdns +\d", CliRunner().invoke(app, ["node", "--version"]).output)


def test_check_takes_base_files_and_refuses_kubernetes_in_them(tmp_path: Path) -> None:
    base = tmp_path / "Corefile.base"
    base.write_text("__PILLAR__DNS__DOMAIN__ {\n    bind __PILLAR__LOCAL__DNS__\n    whoami\n}\n")
    done = CliRunner().invoke(app, ["check", "--node", str(base)])
    assert (done.exit_code, done.output.splitlines()[1:]) == (0, ["  cluster.local. on dns port 53: bind whoami"])
    assert CliRunner().invoke(app, ["check", str(base)]).exit_code == 1
    base.write_text("__PILLAR__DNS__DOMAIN__ {\n    kubernetes\n    bind __PILLAR__WHAT__\n}\n")
    assert f"{base}:3: " in CliRunner().invoke(app, ["check", "--node", str(base)]).output
    base.write_text("__PILLAR__DNS__DOMAIN__ {\n    errors\n    kubernetes\n}\n")
    done = CliRunner().invoke(app, ["check", "--node", str(base)])
    assert (done.exit_code, f"{base}:3: kubernetes has no place on a node" in done.output) == (1, True)
    done = CliRunner().invoke(app, ["check", "--node", str(tmp_path / "none")])
    assert (done.exit_code, "cannot be read" in done.output) == (1, True)


# A real process


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream() as running:
        yield running


def cluster(upstream: FakeUpstream) -> str:
    """BASE with a cluster's DNS."""
    return BASE.replace("$cluster", str(upstream.port))


def asked_for(server: Server, upstream: FakeUpstream, name: str) -> bool:
    """Ask for a name; whether that upstream was asked, over UDP."""
    assert server.texts(name) == ["192.0.2.1"]
    return name in upstream.names("udp")


def test_cluster_dns_upstreams_and_stub_domains_are_asked_as_configured_and_followed_as_they_change(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    volume = Volume(tmp_path / "kube-dns", upstreamNameservers=["127.0.0.1:1"])
    with FakeUpstream() as other, FakeUpstream() as stub:
        volume.write(upstreamNameservers=[other.to], stubDomains={"acme.local": [stub.to]})
        server = Node(
            tmp_path,
            volume,
            corefile=cluster(upstream),
            program=LOOKING_EVERY.format(0.2),
            environ={"UP_SERVICE_HOST": "127.0.0.1"},
        )
        with server:
            for name, asked, proto in (
                ("a.cluster.local", upstream, "tcp"),
                ("b.example.org", other, "udp"),
                ("c.acme.local", stub, "udp"),
            ):
                assert server.texts(name) == ["192.0.2.1"]
                assert [query.proto for query in asked.asked if query.name == name] == [proto]
            wait_until(lambda: server.health().status == 200, 10, "/health")
            wait_until(lambda: server.get("/", server.metrics_port).status == 200, 10, "the status page")
            page = server.get("/", server.metrics_port)
            assert ("node DNS" in page.body, stub.to in page.body) == (True, True)

            volume.write(upstreamNameservers=[stub.to])
            wait_until(partial(asked_for, server, stub, "d.example.org"), 10, "the new nameserver")
            assert "acme.local" not in server.result.read_text()

            volume.write(upstreamNameservers=["nowhere"])
            wait_until(lambda: server.counted() == 1, 10, "a complaint")
            assert asked_for(server, stub, "e.example.org")
            assert f'{volume.folder}/upstreamNameservers:1: "nowhere" is not a nameserver' in server.log

            server.write_corefile(server.template.replace("errors\n", "nonsense\n"))
            wait_until(
                lambda: f"{server.conf}:8: unknown directive" in server.log, 10, "a complaint about the base file"
            )
            assert asked_for(server, stub, "f.example.org")


def test_a_wrong_configmap_does_not_keep_it_from_starting_and_signals_reload(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    volume = Volume(tmp_path / "kube-dns", stubDomains={"acme.local": [upstream.to], ".": ["x"]})
    corefile = cluster(upstream).replace("__PILLAR__UPSTREAM__SERVERS__", upstream.to)
    options: dict[str, Any] = {"program": LOOKING_EVERY.format(3600), "environ": {"UP_SERVICE_HOST": "127.0.0.1"}}
    with Node(tmp_path, volume, corefile=corefile, **options) as server:

        def written(text: str) -> bool:
            return text in server.result.read_text()

        assert server.texts("a.example.org") == ["192.0.2.1"]
        wait_until(lambda: server.counted() == 1, 10, "a count")
        assert "the kube-dns ConfigMap cannot be used, this starts without it" in server.log
        assert server.metrics().value("kdns_configuration_outdated") == 1
        for sent in (signal.SIGHUP, signal.SIGUSR1):
            volume.write(stubDomains={f"acme{sent}.local": [upstream.to]})
            server.signal(sent)
            wait_until(partial(written, f"acme{sent}.local:"), 10, "a reload")
            assert server.metrics().value("kdns_configuration_outdated") == 0


def test_the_pid_file_is_there_while_it_serves(tmp_path: Path, upstream: FakeUpstream) -> None:
    pidfile = tmp_path / "node-cache.pid"
    volume = Volume(tmp_path / "kube-dns")
    options: dict[str, Any] = {"corefile": cluster(upstream), "environ": {"UP_SERVICE_HOST": "127.0.0.1"}}
    with Node(tmp_path, volume, "-pidfile", str(pidfile), "--workers=2", **options) as server:
        assert server.process is not None
        pid = server.process.pid
        wait_until(lambda: pidfile.exists() and pidfile.read_text() == f"{pid}\n", 10, "a pid file")
        wait_until(lambda: len(server.worker_pids()) == 2, 10, "two workers")
        samples = server.metrics().samples
        assert {kind: samples[ERRORS, frozenset({("errortype", kind)})] for kind in PROBLEMS} == dict.fromkeys(
            PROBLEMS, 0
        )
        server.terminate()
        assert not pidfile.exists()


def test_a_pid_file_of_another_instance_stays_and_one_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    instance = command.Instance(
        Settings(("::1",), 53),
        Paths(tmp_path / "b", tmp_path / "c"),
        command._values(("::1",), 53, ".", "x"),
        None,
        tmp_path / "state",
    )
    instance.ready()
    instance.forget()
    instance.pidfile = tmp_path / "pid"
    instance.pidfile.write_text("1\n")
    instance.forget()
    assert instance.pidfile.exists()
    instance.ready()
    instance.forget()
    assert not instance.pidfile.exists()


def test_what_is_wrong_with_the_base_file_ends_the_start(tmp_path: Path, upstream: FakeUpstream) -> None:
    volume = Volume(tmp_path / "kube-dns")
    server = Node(tmp_path, volume, corefile=cluster(upstream))
    code, said = server.run()
    assert (code, said.startswith(f"{server.conf}:3: __PILLAR__CLUSTER__DNS__ has no value")) == (1, True)
    assert "UP_SERVICE_HOST" in said
    server.write_corefile(". {\n    errors\n    kubernetes cluster.local\n}\n")
    code, said = server.run()
    assert (code, said.startswith(f"{server.conf}:3: kubernetes has no place on a node")) == (1, True)
    server.conf.unlink()
    code, said = server.run()
    assert (code, str(server.conf) in said, str(server.result) in said) == (1, True, True)
