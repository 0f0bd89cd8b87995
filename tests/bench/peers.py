"""The servers beside which kdns is measured: each with one worker, and with the same names in its own way.

Each maker returns None where its program is not installed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.bench import native
from tests.bench.cluster import ZONE, Cluster
from tests.bench.load import OUTSTANDING
from tests.bench.targets import Other
from tests.support import ports

FLOOR, KNOT, NSD, UNBOUND, DNSMASQ, POWERDNS = "floor", "knot", "nsd", "unbound", "dnsmasq", "powerdns"
DNSDIST, KRESD = "dnsdist", "kresd"
WILDCARD = "bench.example"
"""A zone in which every name has WILDCARD_ADDRESS, for an hour."""
WILDCARD_ADDRESS = "192.0.2.1"
TTLS = (7, 20, 300)
"""And of the names ttl7, ttl20 and ttl300 in it, seconds."""
CONNECTIONS = 100
"""Over TCP, as many as one of them may have at once (some have 10 or 20, if not told)."""
_PATH = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"


@dataclass(frozen=True, slots=True)
class Key:
    """Files of a certificate and of its key, and ports for DNS over TLS and over HTTPS."""

    certificate: Path
    key: Path
    dot: int
    doh: int


def floor(folder: Path, cluster: Cluster) -> Other | None:
    """A loop in C that sends back what it gets, with the QR bit: what the kernel takes for a query and its answer."""
    if not native.has_compiler():
        return None
    folder.mkdir()
    program = native.build(native.FLOOR, folder)
    port = ports.free_port(["127.0.0.1"])
    return Other(FLOOR, port, [str(program), str(port)], ["cc", "--version"], folder / "log", answers=False)


def knot(folder: Path, cluster: Cluster, ttl: int = 5) -> Other | None:
    """Knot DNS, from a zone file. ttl: of its records."""
    folder.mkdir()
    return _knot(folder, ZONE, cluster.write_zone(folder / f"{ZONE}.zone", ttl))


def wildcard(folder: Path) -> Other | None:
    """Knot DNS with the zone WILDCARD, as somebody to ask."""
    folder.mkdir()
    zone = folder / "zone"
    records = [f"$ORIGIN {WILDCARD}.", "$TTL 3600", "@ SOA ns hostmaster 1 7200 1800 86400 3600", "@ NS ns"]
    records += [f"ns A {WILDCARD_ADDRESS}", f"* A {WILDCARD_ADDRESS}"]
    records += [f"ttl{ttl} {ttl} A {WILDCARD_ADDRESS}" for ttl in TTLS]
    zone.write_text("\n".join(records) + "\n")
    return _knot(folder, WILDCARD, zone)


def _knot(folder: Path, domain: str, zone: Path) -> Other | None:
    if not (program := _program("knotd")):
        return None
    port = ports.free_port(["127.0.0.1"])
    conf = folder / "knot.conf"
    conf.write_text(
        f"server:\n    rundir: {folder}\n    listen: 127.0.0.1@{port}\n"
        "    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n"
        f"log:\n  - target: stderr\n    any: warning\ndatabase:\n    storage: {folder}\n"
        "template:\n  - id: default\n    zonefile-sync: -1\n    zonefile-load: whole\n    journal-content: none\n"
        f"zone:\n  - domain: {domain}\n    file: {zone}\n"
    )
    return Other(KNOT, port, [program, "-c", str(conf)], [program, "--version"], folder / "log")


def nsd(folder: Path, cluster: Cluster) -> Other | None:
    """NSD, from a zone file, without its limit of responses."""
    if not (program := _program("nsd")):
        return None
    folder.mkdir()
    port = ports.free_port(["127.0.0.1"])
    zone = cluster.write_zone(folder / f"{ZONE}.zone")
    conf = folder / "nsd.conf"
    conf.write_text(
        f"""\
server:
    server-count: 1
    ip-address: 127.0.0.1@{port}
    username: ""
    chroot: ""
    zonesdir: "{folder}"
    database: ""
    pidfile: "{folder}/pid"
    xfrdfile: "{folder}/xfrd"
    xfrdir: "{folder}"
    zonelistfile: "{folder}/zones"
    cookie-secret-file: "{folder}/cookies"
    tcp-count: {CONNECTIONS}
    rrl-ratelimit: 0
    rrl-whitelist-ratelimit: 0
remote-control:
    control-enable: no
zone:
    name: "{ZONE}"
    zonefile: "{zone}"
"""
    )
    return Other(NSD, port, [program, "-d", "-c", str(conf)], [program, "-v"], folder / "log")


def powerdns(folder: Path, cluster: Cluster) -> Other | None:
    """PowerDNS Authoritative Server with its bind backend, from a zone file, with its own caches."""
    if not (program := _program("pdns_server")):
        return None
    folder.mkdir()
    port = ports.free_port(["127.0.0.1"])
    zone = cluster.write_zone(folder / f"{ZONE}.zone")
    (folder / "named.conf").write_text(f'zone "{ZONE}" {{ type master; file "{zone}"; }};\n')
    (folder / "pdns.conf").write_text(
        f"""\
launch=bind
bind-config={folder}/named.conf
local-address=127.0.0.1
local-port={port}
socket-dir={folder}
receiver-threads=1
distributor-threads=1
max-tcp-connections={CONNECTIONS}
security-poll-suffix=
webserver=no
loglevel=3
"""
    )
    command = [program, f"--config-dir={folder}", "--daemon=no", "--guardian=no"]
    return Other(POWERDNS, port, command, [program, "--version"], folder / "log")


_UNBOUND = """\
server:
    directory: "{folder}"
    chroot: ""
    username: ""
    pidfile: ""
    use-syslog: no
    verbosity: 0
    num-threads: 1
    interface: 127.0.0.1@{port}
    incoming-num-tcp: {connections}
    do-ip6: no
    do-not-query-localhost: no
    prefetch: no
    msg-cache-size: 128m
    rrset-cache-size: 256m
{more}"""
_UNBOUND_TLS = """\
    interface: 127.0.0.1@{key.dot}
    tls-port: {key.dot}
    interface: 127.0.0.1@{key.doh}
    https-port: {key.doh}
    tls-service-pem: "{key.certificate}"
    tls-service-key: "{key.key}"
"""


def unbound(folder: Path, cluster: Cluster, key: Key | None = None) -> Other | None:
    """Unbound with the zone file as an auth-zone. key: for TLS too."""
    server = f'    module-config: "iterator"\n{_UNBOUND_TLS.format(key=key) if key is not None else ""}'
    zone = f'auth-zone:\n    name: "{ZONE}"\n    zonefile: "{folder}/{ZONE}.zone"\n    for-upstream: no\n'
    target = _unbound(folder, f"{server}remote-control:\n    control-enable: no\n{zone}")
    if target is not None:
        cluster.write_zone(folder / f"{ZONE}.zone")
    return target


def forwarder(folder: Path, upstream: int) -> Other | None:
    """Unbound that asks a port of 127.0.0.1 over TCP, and validates nothing."""
    forward = f'forward-zone:\n    name: "."\n    forward-addr: 127.0.0.1@{upstream}\n'
    server = '    module-config: "iterator"\n    tcp-upstream: yes\n'
    return _unbound(folder, f"{server}remote-control:\n    control-enable: no\n{forward}")


def _unbound(folder: Path, more: str) -> Other | None:
    if not (program := _program("unbound")):
        return None
    folder.mkdir()
    port = ports.free_port(["127.0.0.1"])
    conf = folder / "unbound.conf"
    conf.write_text(_UNBOUND.format(folder=folder, port=port, connections=CONNECTIONS, more=more))
    return Other(UNBOUND, port, [program, "-d", "-p", "-c", str(conf)], [program, "-V"], folder / "log")


def dnsdist(folder: Path, domain: str, upstream: int, key: Key) -> Other | None:
    """dnsdist in front of a port of 127.0.0.1, with a cache of its own, for TLS."""
    if not (program := _program("dnsdist")):
        return None
    folder.mkdir()
    port = ports.free_port(["127.0.0.1"])
    conf = folder / "dnsdist.conf"
    files = f'"{key.certificate}", "{key.key}"'
    conf.write_text(
        f"""\
setLocal("127.0.0.1:{port}")
addTLSLocal("127.0.0.1:{key.dot}", {files}, {{provider="openssl", maxInFlight={OUTSTANDING}}})
addDOHLocal("127.0.0.1:{key.doh}", {files}, "/dns-query")
newServer({{address="127.0.0.1:{upstream}", healthCheckMode="up"}})
getPool(""):setCache(newPacketCache(100000))
setSecurityPollSuffix("")
"""
    )
    command = [program, "--supervised", "--disable-syslog", "-C", str(conf)]
    return Other(DNSDIST, port, command, [program, "--version"], folder / "log")


def kresd(folder: Path, domain: str, upstream: int, key: Key) -> Other | None:
    """Knot Resolver that asks a port of 127.0.0.1 for a domain, for TLS."""
    if not (program := _program("kresd")):
        return None
    folder.mkdir()
    port = ports.free_port(["127.0.0.1"])
    conf = folder / "kresd.conf"
    conf.write_text(
        f"""\
net.listen("127.0.0.1", {port}, {{kind = "dns"}})
net.listen("127.0.0.1", {key.dot}, {{kind = "tls"}})
net.listen("127.0.0.1", {key.doh}, {{kind = "doh2"}})
net.tls("{key.certificate}", "{key.key}")
net.ipv6 = false
trust_anchors.remove(".")
modules.unload("priming")
modules.unload("detect_time_skew")
cache.open(100 * MB, "lmdb://{folder}/cache")
policy.add(policy.suffix(policy.STUB("127.0.0.1@{upstream}"), policy.todnames({{"{domain}"}})))
"""
    )
    command = [program, "-n", "-c", str(conf), str(folder)]
    return Other(KRESD, port, command, [program, "--version"], folder / "log")


def dnsmasq(folder: Path, cluster: Cluster) -> Other | None:
    """dnsmasq with the address records in a hosts file; SRV records it has none."""
    if not (program := _program("dnsmasq")):
        return None
    folder.mkdir()
    port = ports.free_port(["127.0.0.1"])
    hosts = cluster.write_hosts(folder / "hosts")
    folder.chmod(0o755)
    options = ["--keep-in-foreground", "--conf-file=/dev/null", "--user=root", f"--port={port}", "--no-resolv"]
    options += ["--listen-address=127.0.0.1", "--bind-interfaces", "--no-hosts", f"--addn-hosts={hosts}"]
    options += [f"--local=/{ZONE}/", "--cache-size=10000", "--local-ttl=5", "--neg-ttl=5", "--pid-file="]
    return Other(DNSMASQ, port, [program, *options], [program, "--version"], folder / "log")


def _program(name: str) -> str | None:
    return shutil.which(name, path=_PATH)


MAKERS: Mapping[str, Callable[[Path, Cluster], Other | None]] = {
    FLOOR: floor,
    KNOT: knot,
    NSD: nsd,
    UNBOUND: unbound,
    DNSMASQ: dnsmasq,
    POWERDNS: powerdns,
}
