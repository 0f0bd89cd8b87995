"""`kdns node`: NodeLocal DNSCache's job, with its flags."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from kdns.errors import ConfigValueError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kdns.corefile.config import Config
    from kdns.corefile.parser import Part
    from kdns.node.loader import Loader, Paths
    from kdns.node.settings import Settings
    from kdns.node.template import Values
    from kdns.observe.counters import Region
    from kdns.observe.logs import Log
    from kdns.server.setup import Setup

LOOK_SECONDS = 10.0
"""How often the base file and the ConfigMap are looked at: as often as node-cache does."""

STATE_DIR = Path("/var/lib/kdns/node")
_API = "KUBERNETES_SERVICE_HOST"
_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")
_SWITCHES = (
    "setupinterface", "setupiptables", "skipteardown", "reloadwithsignal", "quiet", "plugins", "version",
)  # fmt: skip


class GoFlags(TyperCommand):
    """A command whose options are written as Go's package flag has them (https://pkg.go.dev/flag).

    One dash or two; `-name value` and `-name=value`; switches alone or as `-name=false`, never with a second word. So
    that typer can show and read them, a switch has a twin `--no-name`.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(self._rewritten(ctx, list(args))))

    def _rewritten(self, ctx: Any, args: list[str]) -> Iterator[str]:
        """The same as typer takes it."""
        from kdns.corefile.values import choices, shown

        names = {name.lstrip("-") for param in self.params for name in (*param.opts, *param.secondary_opts)}
        switches = {*_SWITCHES, *(f"no-{name}" for name in _SWITCHES), "h", "help"}
        while args:
            arg = args.pop(0)
            name, equals, value = arg.removeprefix("-").removeprefix("-").partition("=")
            dashes = "-" if len(name) == 1 else "--"
            if not arg.startswith("-"):
                ctx.fail(f"{shown(arg)} is no option; switches are turned off with -name=false.")
            elif name in _SWITCHES and equals:
                if value not in _TRUE + _FALSE:
                    ctx.fail(f"-{name}: {shown(value)} is neither true nor false.")
                yield f"--{name}" if value in _TRUE else f"--no-{name}"
            elif name in switches and not equals:
                yield dashes + name
            elif name in names - switches:
                if not equals and not args:
                    ctx.fail(f"-{name} has no value.")
                yield from (dashes + name, value if equals else args.pop(0))
            else:
                known = choices(name, (word for word in names if not word.startswith("no-")))
                ctx.fail(f"There is no option {shown(arg)}; there are: {known}.")


def _addresses(text: str) -> tuple[str, ...]:
    """`-localip`, each address once, in its shortest form."""
    from ipaddress import IPv6Address, ip_address

    if not text:
        raise typer.BadParameter("at least one address is needed", param_hint="-localip")
    found = []
    for word in text.removesuffix(",").split(","):  # manuals for IPVS let people take out a variable behind the comma
        try:
            address = ip_address(word)
        except ValueError:
            hint = "; the installer was to put an address there" if "__PILLAR__" in word else ""
            raise typer.BadParameter(f"{word!r} is not an IP address{hint}", param_hint="-localip") from None
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        if "%" in word:
            raise typer.BadParameter(f"{word!r} has a zone", param_hint="-localip")
        found.append(str(mapped or address))
    return tuple(dict.fromkeys(found))


def _seconds(text: str) -> float:
    """`-syncinterval`: seconds, or a duration.

    node-cache takes a duration for a number of seconds: its default of 60 ns means 60 s, and what somebody wrote who
    wanted 30 s is 30ns. So less than a millisecond counts a second for each nanosecond here too.
    """
    from kdns.corefile import values

    try:
        seconds = values.duration(text if text[-1:].isalpha() else f"{text}s")
    except ConfigValueError as error:
        raise typer.BadParameter(str(error), param_hint="-syncinterval") from None
    if not seconds:
        raise typer.BadParameter("0 would be for ever", param_hint="-syncinterval")
    return seconds if seconds >= 1e-3 else round(seconds * 1e9)


def _metrics(text: str) -> tuple[str, int]:
    """`-metrics-listen-address`."""
    from kdns.corefile import values

    try:
        address = values.host_port(text)
    except ConfigValueError as error:
        raise typer.BadParameter(str(error), param_hint="-metrics-listen-address") from None
    host = "" if address.host in ("0.0.0.0", "::") else address.host  # noqa: S104 (Go listens to both families)
    return host, address.port


def _interface(text: str) -> str:
    """`-interfacename`, as Linux allows it (dev_valid_name in net/core/dev.c)."""
    if not 0 < len(text.encode()) < 16 or text in (".", "..") or set(text) & set("/:") or not text.isprintable():
        raise typer.BadParameter(f"{text!r} cannot be the name of a link", param_hint="-interfacename")
    if any(char.isspace() for char in text):
        raise typer.BadParameter(f"{text!r} has a space", param_hint="-interfacename")
    return text


def node(
    localip: Annotated[
        str, typer.Option("--localip", help="Addresses that queries come to, parted by commas; IPv4, IPv6 or both.")
    ] = "",
    conf: Annotated[
        Path | None, typer.Option("--conf", help="Where the base file's result is written. Default: --corefile.")
    ] = None,
    corefile: Annotated[Path, typer.Option("--corefile", help="The same, if there is no --conf.")] = Path(
        "/etc/Corefile"
    ),
    basecorefile: Annotated[Path, typer.Option("--basecorefile", help="The base file, with variables.")] = Path(
        "/etc/coredns/Corefile.base"
    ),
    kubednscm: Annotated[
        Path | None,
        typer.Option(
            "--kubednscm", help="Directory of the kube-dns ConfigMap. Default: /etc/kube-dns, if it is there."
        ),
    ] = None,
    upstreamsvc: Annotated[
        str, typer.Option("--upstreamsvc", help="Service that is the cluster's DNS, for __PILLAR__CLUSTER__DNS__.")
    ] = "kube-dns",
    domain: Annotated[
        str, typer.Option("--domain", help="The cluster's domain, for __PILLAR__DNS__DOMAIN__; not in node-cache.")
    ] = "cluster.local",
    interfacename: Annotated[str, typer.Option("--interfacename", help="Link for the addresses.")] = "nodelocaldns",
    setupinterface: Annotated[
        bool, typer.Option("--setupinterface/--no-setupinterface", help="Make the link, and bring queries here.")
    ] = True,
    setupiptables: Annotated[
        bool, typer.Option("--setupiptables/--no-setupiptables", help="Make packet rules.")
    ] = True,
    skipteardown: Annotated[
        bool, typer.Option("--skipteardown/--no-skipteardown", help="Leave link and rules behind at the end.")
    ] = False,
    syncinterval: Annotated[
        str, typer.Option("--syncinterval", help="Pause between checks of link and rules: 60, 1m30s; 30ns is 30 s.")
    ] = "60",
    health_port: Annotated[
        int, typer.Option("--health-port", min=1, max=65535, help="Port of health, whose packets are not tracked.")
    ] = 8080,
    metrics_listen_address: Annotated[
        str, typer.Option("--metrics-listen-address", help="One more place for /metrics.")
    ] = "0.0.0.0:9353",
    dns_port: Annotated[
        int,
        typer.Option("--dns.port", "-p", min=1, max=65535, help="Port of DNS, and of server blocks that name none."),
    ] = 53,
    pidfile: Annotated[Path | None, typer.Option("--pidfile", help="Has the process's number while it serves.")] = None,
    reloadwithsignal: Annotated[
        bool,
        typer.Option(
            "--reloadwithsignal/--no-reloadwithsignal", help="Changes take effect within 10 s, with it or without."
        ),
    ] = False,
    workers: Annotated[
        int, typer.Option("--workers", min=1, max=64, help="Processes that answer; not in node-cache.")
    ] = 1,
    state_dir: Annotated[
        Path,
        typer.Option(
            "--state-dir",
            help="Where zones of secondary, file and auto are kept, and pods of autopath; not in node-cache.",
            envvar="KDNS_STATE_DIR",
        ),
    ] = STATE_DIR,
    quiet: Annotated[bool, typer.Option("--quiet/--no-quiet", hidden=True)] = False,
    plugins: Annotated[bool, typer.Option("--plugins/--no-plugins", help="List the directives, and end.")] = False,
    version: Annotated[bool, typer.Option("--version/--no-version", help="Say the version, and end.")] = False,
) -> None:
    """Serve a node's DNS in the place of NodeLocal DNSCache, with the flags of its `node-cache`.

    Brings queries to the -localip addresses here, for as long as this lives: should it die, those to a ClusterIP go to
    the cluster's DNS again, in that moment. The base file's variables are filled in, and the kube-dns ConfigMap's stub
    domains and upstream nameservers added; both are followed. Without a base file, --conf is served as it is.

    Options have one dash or two, and take their value after a space or `=`; switches are turned off with `=false`.

    \b
    kdns node -localip 169.254.20.10,10.96.0.10 -conf /etc/Corefile -upstreamsvc kube-dns-upstream
    kdns node -localip 127.0.0.1 -basecorefile Corefile.base -conf /tmp/Corefile -dns.port 5300
    """
    if plugins:
        from kdns.node.template import REFUSED
        from kdns.plugins import MANUALS

        typer.echo("\n".join(sorted(MANUALS.keys() - REFUSED)))
        return
    if version:
        from kdns.cli.version import version as say_version

        say_version()
        return
    if quiet:
        raise typer.BadParameter("is not supported: kdns says what it serves", param_hint="-quiet")
    del reloadwithsignal  # it asks for what is done in any case
    from kdns.node.loader import Paths
    from kdns.node.settings import Settings

    addresses = _addresses(localip)
    metrics = _metrics(metrics_listen_address)
    settings = Settings(
        addresses=addresses,
        port=dns_port,
        interface=_interface(interfacename),
        setup_interface=setupinterface,
        setup_iptables=setupiptables,
        skip_teardown=skipteardown,
        sync_seconds=_seconds(syncinterval),
        health_port=health_port,
        services=_services(),
    )
    paths = Paths(basecorefile, conf or corefile, kubednscm)
    instance = Instance(settings, paths, _values(addresses, dns_port, domain, upstreamsvc), pidfile, state_dir)
    instance.serve(workers, metrics)


def _values(addresses: tuple[str, ...], port: int, domain: str, service: str) -> Values:
    """What the base file's variables stand for; the cluster's DNS is looked for in the environment."""
    from kdns.corefile import values
    from kdns.node.template import Values, service_variable

    try:
        zone = values.zone(domain)
    except ConfigValueError as error:
        raise typer.BadParameter(str(error), param_hint="--domain") from None
    cluster_dns = values.ip_address(os.environ.get(service_variable(service), "")) or ""
    return Values(addresses, port, zone.rstrip(".") or zone, service, cluster_dns)


def _services() -> frozenset[str]:
    """The ClusterIPs of the Services that the container's environment tells of, but for the API server's.

    That one is there in any case: it does not show that Services of the namespace are.
    https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
    """
    from kdns.corefile import values

    hosts = (text for name, text in os.environ.items() if name.endswith("_SERVICE_HOST") and name != _API)
    return frozenset(address for text in hosts if (address := values.ip_address(text)) is not None)


@dataclass(slots=True)
class Instance:
    """What `kdns node` is made of. log, loader: there once the supervisor has called `setup`."""

    settings: Settings
    paths: Paths
    values: Values
    pidfile: Path | None
    state_dir: Path
    log: Log = field(init=False)
    loader: Loader = field(init=False)

    def serve(self, workers: int, metrics: tuple[str, int]) -> None:
        """Serve until SIGTERM or SIGINT. Raises KdnsError if it cannot be started."""
        from kdns.server.supervisor import Start, run

        start = Start(
            load=self.load,
            state_dir=self.state_dir,
            on_demand=True,
            workers=workers,
            setup=self.setup,
            metrics=metrics,
            places=tuple(f"{address}#{self.settings.port}" for address in self.settings.addresses),
            look_every=LOOK_SECONDS,
            ready=self.ready,
            incomplete=lambda: self.loader.incomplete,
        )
        if self.pidfile is not None:
            with contextlib.suppress(OSError):  # one that a killed instance has left says nothing of this one
                self.pidfile.unlink()
        try:
            run(start)
        finally:
            self.forget()

    def setup(self, log: Log, region: Region) -> Setup:
        """The network, and the configuration's loader, which both log and count what goes wrong."""
        from kdns.node.loader import Loader
        from kdns.node.network import Network
        from kdns.node.settings import PROBLEMS

        def count(kind: str, times: int = 1) -> None:
            region.count(("count", "coredns_nodecache_setup_errors_total", "errortype", kind), times)

        for kind in PROBLEMS:  # a rate needs a value before the first one
            count(kind, 0)
        self.log = log
        self.loader = Loader(self.paths, self.values, lambda parts: understand(parts, self.values.port), log, count)
        return Network(self.settings, log, count)

    def load(self) -> Config:
        """The configuration as the files are now. Raises ConfigError."""
        return self.loader()

    def ready(self) -> None:
        """Queries are answered."""
        if self.pidfile is None:
            return
        try:
            self.pidfile.write_text(f"{os.getpid()}\n")
        except OSError as error:
            self.log.warning(f"pid file {self.pidfile} cannot be written: {error.strerror}")

    def forget(self) -> None:
        """Remove the pid file, unless it is another instance's."""
        if self.pidfile is None:
            return
        with contextlib.suppress(OSError, ValueError):
            if int(self.pidfile.read_text()) == os.getpid():
                self.pidfile.unlink()


def understand(parts: Sequence[Part], port: int) -> Config:
    """A node's Corefile. port: of server blocks that name none. Raises ConfigError."""
    from kdns import plugins
    from kdns.node.template import REFUSED

    return plugins.load_parts(parts, environ=os.environ, default_port=port, refused=REFUSED)


def example(file: Path) -> Config:
    """A base file as it is on some node, for `kdns check`. Raises ConfigError."""
    from kdns.errors import ConfigError, Mistake
    from kdns.node.configmap import KubeDns
    from kdns.node.template import Values, fill

    try:
        base = file.read_bytes()
    except OSError as error:
        mistake = Mistake(str(file), 1, f"cannot be read: {error.strerror}", "a readable file")
        raise ConfigError([mistake]) from None
    values = Values(("169.254.20.10", "10.96.0.10"), 53, "cluster.local", "kube-dns", "10.96.0.11")
    return understand(fill(base, str(file), values, KubeDns()), values.port)
