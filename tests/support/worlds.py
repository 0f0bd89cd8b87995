"""Small clusters with Corefiles of many kinds, and names to ask them for: where answers are compared or fuzzed.

A world is a Corefile, the states of zones that are not SYNCED, and master files. All have the same objects, and entries
whose labels no object can have.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdns.wire import names, rr
from kdns.wire.rrset import RRset
from kdns.zone.changes import Changes
from kdns.zone.store import EXPIRED, UNSYNCED, Store
from tests.support.answering import Ground, publish
from tests.support.objects import Object, endpoint, endpoint_slice, external_name, namespace, pod, service

Z = "cluster.local"
LONG = "l" * 63


@dataclass(frozen=True, slots=True)
class World:
    """corefile: `$manifests` stands for the objects. states: by zone. direct: names of type A that it answers without
    the plugins. data: what `file`, `auto` and `secondary` have, by directive and zone."""

    corefile: str
    states: Mapping[str, int] = field(default_factory=dict)
    direct: tuple[str, ...] = ()
    data: Mapping[str, str] = field(default_factory=dict)


def objects() -> list[Object]:
    """A cluster that has something of everything."""
    outer = service("outer", ips=("10.96.1.5",))
    outer["spec"]["externalIPs"] = ["198.51.100.1"]
    many = [endpoint(f"10.1.{index // 250}.{index % 250}") for index in range(80)]
    pods = [endpoint(f"10.244.0.{last}", hostname=f"db-{last}") for last in (1, 2, 3)]
    return [
        *(namespace(name) for name in ("default", "kube-system", "a-b", "pod")),
        service("kube-dns", "kube-system", ips=("10.96.0.10", "fd00:96::a"), ports=(("dns", 53, "UDP"), ("", 53))),
        service("web", ips=("10.96.1.1", "fd00:96::1")),
        service("web", "a-b", ips=("10.96.1.1",), ports=()),
        outer,
        service("six", ips=("fd00:96::6",)),
        service(LONG, ips=("10.96.1.2",), ports=((LONG[:15], 80),)),
        service("two", ips=("10.96.1.3", "10.96.1.4")),
        service("db", ips=(), ports=(("postgres", 5432),)),
        endpoint_slice("db", pods, ports=(("postgres", 5432),)),
        service("one", ips=()),
        endpoint_slice("one", [endpoint("10.244.1.1"), endpoint("10.244.1.9", ready=False)]),
        service("big", ips=()),
        endpoint_slice("big", many),
        service("empty", ips=()),
        external_name("inside", f"web.default.svc.{Z}"),
        external_name("again", f"inside.default.svc.{Z}"),
        external_name("outside", "example.com"),
        external_name("nowhere", f"nothing.default.svc.{Z}"),
        external_name("round", f"round-2.default.svc.{Z}"),
        external_name("round-2", f"round.default.svc.{Z}"),
        pod("p", "default", "10.244.1.1"),
    ]


ODD = (b"\0", b"\1", b"\1\1", b"a\0b", b"\xff", b"a.b", b"a\\", b" ", b"\2\1\0", b"[]{|}~@", b"x" * 63)
"""Labels that only the store's own keys have to stand."""
_ONE = (RRset(rr.A, 5, (b"\x0a\0\0\1",)),)


def _kubernetes(options: str = "", zones: str = f"{Z} in-addr.arpa ip6.arpa") -> str:
    return f"kubernetes {zones} {{\nmanifests $manifests\n{options}\n}}"


def _block(*plugins: str, zone: str = ".") -> str:
    return "\n".join((f"{zone}:53 {{", *plugins, "}", ""))


WEB, GONE, POD = f"web.default.svc.{Z}", f"gone.default.svc.{Z}", f"1-2-3-4.default.pod.{Z}"
REVERSE, ELSEWHERE = "gone.in-addr.arpa", "gone.example.org"
FORWARD = "forward . 127.0.0.1:9"
KUBEADM = _block(
    "errors",
    "ready 127.0.0.1:8181",
    _kubernetes("pods insecure\nfallthrough in-addr.arpa ip6.arpa\nttl 30"),
    "prometheus 127.0.0.1:9153",
    "forward . 127.0.0.1:9 {\nmax_concurrent 1000\n}",
    f"cache 30 {{\ndisable success {Z}\ndisable denial {Z}\n}}",
    "loop",
    "reload",
    "loadbalance",
)
WORLDS: dict[str, World] = {
    "kubeadm": World(KUBEADM, direct=(WEB, GONE)),
    "alone": World(_block("prometheus 127.0.0.1:9153", _kubernetes()), direct=(WEB, GONE, POD, REVERSE)),
    "many plugins": World(
        _block("cancel 2s", "nsid id", "errors", "any", "cache", "minimal", "log", _kubernetes("pods verified")),
        direct=(WEB, GONE, POD, REVERSE),
    ),
    "fallthrough": World(_block(_kubernetes("fallthrough"), FORWARD), direct=(WEB,)),
    "fallthrough below": World(
        _block(_kubernetes(f"fallthrough default.svc.{Z}"), "whoami"), direct=(WEB, POD, REVERSE)
    ),
    "excepted": World(
        _block(_kubernetes(), f"forward . 127.0.0.1:9 {{\nexcept {Z} 10.in-addr.arpa\n}}"), direct=(WEB, GONE, POD)
    ),
    "excepted below": World(
        _block(_kubernetes(), f"forward . 127.0.0.1:9 {{\nexcept default.svc.{Z}\n}}"), direct=(REVERSE,)
    ),
    "excepted above": World(_block(_kubernetes(), f"forward {Z} 127.0.0.1:9 {{\nexcept local\n}}"), direct=(REVERSE,)),
    "forwarded zone": World(_block(_kubernetes(), f"forward {Z} 127.0.0.1:9"), direct=(WEB, GONE, POD, REVERSE)),
    "caches": World(_block(f"cache 30 {Z} example.org", _kubernetes()), direct=(WEB, GONE, POD)),
    "caches for less": World(
        _block("cache 3 {\ndenial 9984 2\n}", _kubernetes("ttl 4"), FORWARD), direct=(WEB, GONE, POD, REVERSE)
    ),
    "server blocks": World(
        _block(FORWARD, "cache")
        + _block(_kubernetes(), "errors", zone=Z)
        + _block("hosts {\n10.9.9.9 web.default.svc.cluster.local\n}", zone=f"default.svc.{Z}")
        + _block(_kubernetes(zones="example.org"), FORWARD, zone="example.org")
        + _block(_kubernetes("ttl 77", zones=f"pod.{Z}"), zone=f"pod.{Z}"),
        direct=(f"web.a-b.svc.{Z}", f"gone.svc.{Z}", POD, "web.default.svc.example.org", ELSEWHERE),
    ),
    "of another block": World(_block(_kubernetes(), zone=f"svc.{Z}") + _block("whoami")),
    "zones in zones": World(
        _block(_kubernetes("pods insecure", f"{Z} default.svc.{Z} svc.{Z} in-addr.arpa 10.in-addr.arpa"), "cache"),
        direct=(f"web.default.svc.default.svc.{Z}", WEB, GONE, REVERSE),
    ),
    "every name": World(_block(_kubernetes("", ".")), direct=("web.default.svc", WEB, GONE, POD, REVERSE, ELSEWHERE)),
    "unsynced": World(_block("errors", "cache", _kubernetes()), {Z: UNSYNCED}, direct=(WEB, REVERSE)),
    "expired": World(_block("errors", "cache", _kubernetes()), {Z: EXPIRED}, direct=(REVERSE,)),
    "one zone unsynced": World(
        _block(_kubernetes(zones=f"{Z} svc.{Z}")), {f"svc.{Z}": UNSYNCED}, direct=(f"web.default.svc.svc.{Z}", POD)
    ),
    "hosts": World(_block("hosts {\n10.9.9.9 web.default.svc.cluster.local\nfallthrough\n}", _kubernetes())),
    "header": World(_block("header {\nresponse set ra\n}", _kubernetes())),
    "bufsize": World(_block("bufsize 512", _kubernetes())),
    "local": World(_block("local", _kubernetes())),
    "rewrite elsewhere": World(
        _block(
            "rewrite name suffix .shop.example .svc.cluster.local answer auto",
            "rewrite ttl gone.example 60",
            "rewrite type ANY HINFO",
            "rewrite class CH IN",
            "rewrite edns0 local unset 0xffee",
            _kubernetes(),
        ),
        direct=(WEB, GONE, POD, REVERSE),
    ),
    "rewrite": World(_block(f"rewrite ttl suffix .default.svc.{Z} 60", _kubernetes()), direct=(REVERSE,)),
    "outside": World(
        _block("k8s_external example.org {\nheadless\n}", _kubernetes(), "prometheus 127.0.0.1:9153", FORWARD),
        direct=("outer.default.example.org", "web.default.example.org", WEB, GONE, POD, REVERSE, ELSEWHERE),
    ),
    "outside in the same zones": World(
        _block(f"k8s_external {Z} in-addr.arpa {{\nfallthrough\n}}", _kubernetes()),
        direct=(f"outer.default.{Z}",),
    ),
    "outside below": World(
        _block(f"k8s_external default.svc.{Z}", _kubernetes(), "whoami"),
        direct=(f"outer.default.default.svc.{Z}", f"web.a-b.svc.{Z}", WEB, GONE, POD, REVERSE),
    ),
    "outside above": World(_block("k8s_external local", _kubernetes()), direct=("outer.default.local", REVERSE)),
    "autopath": World(_block("autopath @kubernetes", _kubernetes("pods verified")), direct=(WEB, REVERSE)),
    "acl and template elsewhere": World(
        _block(
            "acl example.org {\nblock\n}",
            "acl {\nallow net 10.0.0.0/8\ndrop type ANY\n}",
            "template IN A gone.example {\nrcode NXDOMAIN\n}",
            _kubernetes(),
        ),
        direct=(WEB, GONE, POD, REVERSE),
    ),
    "acl": World(_block("acl {\nfilter type AAAA\n}", _kubernetes())),
    "template": World(
        _block(f"template IN TXT default.svc.{Z} {{\nrcode REFUSED\n}}", _kubernetes()), direct=(REVERSE,)
    ),
    "dns64": World(_block("dns64", _kubernetes())),
    "zonal": World(_block(_kubernetes("zonal"))),
    "short": World(_block(_kubernetes("ttl 0\nnoendpoints"), "loadbalance"), direct=(WEB, GONE, POD, REVERSE)),
}

HOST, ALIAS, OTHER = (f"{label}.example.org" for label in ("host", "alias", "other"))
BELOW, HOST_BELOW = "gone.sub.example.org", "host.sub.example.org"
ALL = (HOST, ELSEWHERE, OTHER, BELOW, HOST_BELOW)
MASTER = """\
$TTL 300
@ 600 SOA ns hostmaster 7 3600 600 86400 30
@ NS ns
ns A 192.0.2.53
host 77 A 192.0.2.1
host AAAA 2001:db8::1
two A 192.0.2.2
two A 192.0.2.3
two TXT "two"
alias CNAME host
away CNAME host.example.net.
deep.er.and A 192.0.2.4
@ MX 10 host
_http._tcp SRV 0 0 80 host
child DS 1 8 1 ABCDEF0123456789ABCDEF0123456789ABCDEF01
"""
SHORT = "$TTL 5\n@ SOA NS.example.net. host.master 1 2 3 4 300\n@ NS ns.example.net.\n@ A 192.0.2.9\n"
LONG_SOA = MASTER.replace("ns hostmaster", f"{'a.' * 115}x {LONG}.{LONG}.{LONG}.{LONG[:36]}")
"""A negative answer has more than 512 bytes."""
PLAIN = "file example.org"
_FILE = "file db example.org"
_COPY = f"secondary {Z} example.org {{\ntransfer from 192.0.2.1\n%s\n}}"
WORLDS |= {
    "file": World(_block("errors", "cache", _FILE, "loadbalance", FORWARD), direct=ALL, data={PLAIN: MASTER}),
    "file that is kept for less": World(
        _block("cache 30 {\ndenial 9984 20\n}", _FILE), direct=ALL, data={PLAIN: MASTER}
    ),
    "file beside kubernetes": World(
        _block("prometheus 127.0.0.1:9153", _kubernetes("fallthrough"), _FILE, FORWARD),
        direct=(WEB, *ALL),
        data={PLAIN: MASTER},
    ),
    "file below kubernetes": World(
        _block(_kubernetes(zones="org"), "file db example.org"), direct=("host.other.org",), data={PLAIN: MASTER}
    ),
    "file above kubernetes": World(
        _block(_kubernetes(zones=f"{Z} sub.example.org"), _FILE),
        direct=(WEB, GONE, POD, *ALL, f"host.{Z}"),
        data={PLAIN: MASTER},
    ),
    "files in files": World(
        _block("file db example.org sub.example.org", "file db deeper.sub.example.org"),
        direct=ALL,
        data={PLAIN: MASTER, "file sub.example.org": MASTER, "file deeper.sub.example.org": MASTER + "* A 192.0.2.1"},
    ),
    "file of another block": World(
        _block(_FILE) + _block("whoami", zone="sub.example.org"), direct=(HOST, ELSEWHERE, OTHER), data={PLAIN: MASTER}
    ),
    "file with fallthrough": World(
        _block(f"{_FILE} {{\nfallthrough sub.example.org gone.example.org example.net\n}}", FORWARD),
        direct=(HOST, OTHER),
        data={PLAIN: MASTER},
    ),
    "file with fallthrough of all": World(
        _block(f"{_FILE} {{\nfallthrough\n}}", FORWARD), direct=(HOST,), data={PLAIN: MASTER}
    ),
    "file with a short TTL": World(
        _block("minimal", "any", _FILE), direct=ALL, data={PLAIN: MASTER.replace(" 30\n", " 900\n")}
    ),
    "file with an SOA of other names": World(_block(_FILE), direct=(*ALL, ALIAS), data={PLAIN: SHORT}),
    "file with a long SOA": World(_block(_FILE), direct=(HOST,), data={PLAIN: LONG_SOA}),
    "file with a wildcard": World(_block(_FILE), data={PLAIN: MASTER + "x.*.er A 192.0.2.1\n"}),
    "file with a cut": World(_block(_FILE), data={PLAIN: MASTER + "cut NS ns\nns.cut A 192.0.2.1\n"}),
    "file with a DNAME": World(_block(_FILE), data={PLAIN: MASTER + "sub DNAME example.net.\n"}),
    "file that is signed": World(_block(_FILE), data={PLAIN: MASTER + "@ NSEC host A NS SOA NSEC\n"}),
    "file behind hosts": World(_block("hosts {\n10.9.9.9 a.example.com\n}", _FILE), data={PLAIN: MASTER}),
    "file behind rewrite": World(_block(f"rewrite ttl suffix .{Z} 60", _FILE), direct=ALL, data={PLAIN: MASTER}),
    "file that was not read": World(_block(_FILE, FORWARD)),
    "auto": World(
        _block("auto example.org example.net {\ndirectory zones\n}", zone="org"),
        direct=(HOST_BELOW, BELOW),
        data={"auto sub.example.org": MASTER, "auto org": MASTER, "auto example.net": MASTER},
    ),
    "file of the root": World(
        _block("errors", "file db . example.org", FORWARD),
        direct=(*ALL, WEB, GONE, POD, REVERSE, f"host.{Z}", "host.other.org"),
        data={"file .": MASTER.replace("@ 600 SOA", "@ 0 SOA").replace(" 77 ", " 0 "), PLAIN: MASTER},
    ),
    "file and auto": World(
        _block(_FILE, "auto org {\ndirectory zones\n}"),
        direct=(HOST, ELSEWHERE, OTHER, "host.other.org"),
        data={PLAIN: MASTER, "auto sub.example.org": MASTER, "auto other.org": MASTER},
    ),
    "secondary": World(
        _block("errors", "cache", _COPY % f"fallthrough pod.{Z}", "transfer {\nto *\n}", FORWARD),
        direct=(WEB, GONE, f"host.{Z}", *ALL),
        data={"secondary example.org": MASTER, f"secondary {Z}": MASTER},
    ),
    "secondary that waits": World(
        _block(_COPY % "fallback", FORWARD), direct=ALL, data={"secondary example.org": MASTER}
    ),
    "secondary that has expired": World(
        _block(_COPY % "", FORWARD),
        {"example.org": EXPIRED},
        direct=(WEB, GONE, POD, f"host.{Z}"),
        data={"secondary example.org": MASTER, f"secondary {Z}": MASTER},
    ),
}
ASKED = (*ALL, f"host.{Z}", "host.other.org", ALIAS)
"""Names that worlds with master files are asked for."""


def build(folder: Path, world: World) -> Ground:
    """The world's store, with the odd entries besides."""
    ground = publish(folder, objects(), world.corefile, world.states, world.data)
    changes = Changes.create()
    store = Store.open(ground.path, changes, print)

    def add(txn: Any) -> None:
        for zone in txn.zones():
            for label in ODD:
                name = names.join([label])[:-1] + zone.origin
                txn.put(zone, name, _ONE)
                if len(name) + 2 <= names.MAX_NAME:
                    txn.put(zone, names.join([b"a"])[:-1] + name, _ONE)

    try:
        store.write(add)
    finally:
        store.close()
    return ground


LABELS = (
    b"web", b"gone", b"default", b"svc", b"pod", b"cluster", b"local", b"in-addr", b"arpa", b"ip6", b"10", b"96",
    b"10-0-0-1", b"1-2-3-4", b"fd00--1", b"_http", b"_tcp", b"*", b"kube-system", b"example", b"org", b"_zone", *ODD,
)  # fmt: skip


def near(known: list[bytes], choice: random.Random) -> Iterator[bytes]:
    """Each of these names, one below it, one beside it, its parent, and one with its labels run together."""
    for name in known:
        yield name
        label = choice.choice(LABELS)
        one = bytes((len(label),)) + label
        if len(name) + len(one) <= names.MAX_NAME:
            yield one + name
        if name != names.ROOT:
            yield one + names.parent(name)
            yield names.parent(name)
            found = names.labels(name)
            if len(found) > 1 and len(b".".join(found[:2])) <= names.MAX_LABEL:
                yield names.join([b".".join(found[:2]), *found[2:]])


def mixed(name: bytes, choice: random.Random) -> bytes:
    """The name with some letters in upper case."""
    return bytes(byte ^ 0x20 if 0x61 <= byte <= 0x7A and choice.random() < 0.5 else byte for byte in name)
