"""Name servers of other makes as real processes, all with one zone: Unbound, Knot DNS, NSD, dnsmasq and BIND."""

from __future__ import annotations

import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import dns.exception
import dns.message
import dns.rcode
import dns.rdatatype
import trustme

from tests.support import ports, procs
from tests.support.server import read_message

ADDRESS = "127.0.0.1"
ZONE = "zone.example"
SERVER_NAME = "upstream.example"
"""What the certificates of all of them are for."""

PATH = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
READY_SECONDS = 10.0
PARENT = "example"
"""The zone above, which only Unbound needs: something has to delegate to the zone for it to be found."""

BIG = 95
"""Address records of `big`: more than fit into 1232 bytes, and no more than BIND takes (100)."""

ODD = (r"nul\000byte.odd", r"dot\.inside.odd", r"sp\032ace.odd", r"high\255\128.odd", r"quo\"te.odd", "mIxEd.OdD")
"""Owners that a resolver which treats names as text would spoil."""

RECORDS = f"""\
$ORIGIN {ZONE}.
$TTL 300
@ SOA ns hostmaster 7 7200 1800 86400 60
@ NS ns
@ MX 10 mail
@ MX 20 mail.elsewhere.example.
@ CAA 0 issue "ca.example"
ns A 127.0.0.1
host A 192.0.2.1
host AAAA 2001:db8::1
mail A 192.0.2.25
several A 192.0.2.2
several A 192.0.2.3
several AAAA 2001:db8::2
text TXT "one" "two; three" "\\"\\\\ \\255\\000"
_http._tcp SRV 1 50 80 host
_http._tcp SRV 2 50 8080 several
link CNAME link2
link2 CNAME link3
link3 CNAME host
away CNAME nowhere.invalid.
*.wild A 192.0.2.9
*.wild TXT "any name"
naptr NAPTR 100 10 "u" "E2U+sip" "!^.*$!sip:info@example.com!" .
unknown TYPE65280 \\# 7 00010203c00cff
https HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1
svcb SVCB 2 host port=8443
sub NS ns.sub
ns.sub A 192.0.2.53
x.empty A 192.0.2.8
short 7 A 192.0.2.7
"""

QUESTIONS: tuple[tuple[str, str], ...] = (
    ("", "SOA"), ("", "NS"), ("", "MX"), ("", "CAA"), ("", "ANY"), ("host", "A"), ("host", "AAAA"), ("HoSt", "A"),
    ("host", "TXT"), ("several", "A"), ("text", "TXT"), ("_http._tcp", "SRV"), ("link", "A"), ("link", "AAAA"),
    ("link", "MX"), ("link", "CNAME"), ("away", "A"), ("a.b.wild", "A"), ("x.wild", "TXT"), ("x.wild", "AAAA"),
    ("naptr", "NAPTR"), ("unknown", "TYPE65280"), ("https", "HTTPS"), ("svcb", "SVCB"), ("big", "A"),
    ("deep.sub", "A"), ("sub", "NS"), ("sub", "DS"), ("empty", "A"), ("absent", "A"), ("a.b.absent", "TYPE65281"),
    ("short", "A"), *((name, "TXT") for name in ODD),
)  # fmt: skip
"""Names under the zone (empty: the zone itself) and types, for which each make has an answer of some kind."""

WITHOUT_RECORDS = frozenset({("", "ANY"), ("host", "TXT"), ("link", "MX"), ("away", "A"), ("x.wild", "AAAA")}) | {
    ("deep.sub", "A"), ("sub", "NS"), ("sub", "DS"), ("empty", "A"), ("absent", "A"), ("a.b.absent", "TYPE65281"),
}  # fmt: skip
WITH_RECORDS = tuple(question for question in QUESTIONS if question not in WITHOUT_RECORDS)
"""Those of them for which the zone has a record of the type that is asked."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files: a certificate for SERVER_NAME with its chain, its key, and the authority that signed it."""

    chain: Path
    key: Path
    authority: Path

    @classmethod
    def make(cls, folder: Path) -> Self:
        """A new authority and what it signs, in a folder."""
        found = cls(folder / "chain.pem", folder / "key.pem", folder / "authority.pem")
        authority = trustme.CA()
        leaf = authority.issue_cert(SERVER_NAME)
        authority.cert_pem.write_to_path(str(found.authority))
        leaf.private_key_pem.write_to_path(str(found.key))
        for part in leaf.cert_chain_pems:
            part.write_to_path(str(found.chain), append=True)
        return found


@dataclass
class Resolver:
    """A name server that stays in the foreground, on ports of 127.0.0.1.

    tls_port, https_port: None where this make has no such listener. lacks: names and types of WITH_RECORDS for
    which it can hold no record.
    """

    make: str
    port: int
    command: list[str]
    folder: Path
    certificate: Certificate
    tls_port: int | None = None
    https_port: int | None = None
    lacks: frozenset[str] = frozenset()
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> Self:
        """Start it (again), and wait until it answers for the zone."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        try:
            procs.wait_until(self.answers, READY_SECONDS, self.make, 0.02)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None
        return self

    def answers(self) -> bool:
        """True if it has the zone, over UDP and wherever else it listens."""
        assert self.process is not None
        assert self.process.poll() is None, f"{self.make} ended with {self.process.returncode}:\n{self.log}"
        question = dns.message.make_query(f"host.{ZONE}", "A").to_wire()
        try:
            answer = dns.message.from_wire(self.ask(question, "udp", timeout=0.2))
            for port in (self.tls_port, self.https_port):
                if port is not None:
                    socket.create_connection((ADDRESS, port), 0.2).close()
        except OSError:
            return False
        return answer.rcode() == dns.rcode.NOERROR and bool(answer.answer)

    def kill(self) -> None:
        """SIGKILL to all of its processes; returns when they are gone and the ports are free."""
        if self.process is None:
            return
        leader = self.process.pid
        while left := [found.pid for found in procs.session(leader)]:
            procs.kill(left)
        self.process.wait(READY_SECONDS)
        self.process = None

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        if error is not None:
            error.add_note(f"log of {self.make}:\n{self.log[-2000:]}")

    @property
    def log_path(self) -> Path:
        """Its standard output and error."""
        return self.folder / "log"

    @property
    def log(self) -> str:
        """What it has said."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def ask(self, query: bytes, transport: str, timeout: float = 3.0) -> bytes:
        """The response to a query over "udp", "tcp" or "tls", as it came."""
        port = self.tls_port if transport == "tls" else self.port
        assert port is not None, f"{self.make} has no {transport}"
        return ask(port, query, transport, self.certificate.authority, timeout)

    def ask_each(self, queries: Sequence[bytes], transport: str) -> list[bytes]:
        """The response to each query, all over one connection; what is truncated over UDP is asked again over TCP."""
        if transport == "udp":
            answers = (self.ask(query, "udp") for query in queries)
            return [
                self.ask(query, "tcp") if answer[2] & 0x02 else answer
                for query, answer in zip(queries, answers, strict=True)
            ]
        port = self.tls_port if transport == "tls" else self.port
        assert port is not None, f"{self.make} has no {transport}"
        return ask_each(port, queries, transport, self.certificate.authority)


def ask(port: int, query: bytes, transport: str, authority: Path | None = None, timeout: float = 3.0) -> bytes:
    """The response of whoever has a port of ADDRESS, over "udp", "tcp" or "tls" (for SERVER_NAME), as it came."""
    if transport != "udp":
        return ask_each(port, [query], transport, authority, timeout)[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        sock.connect((ADDRESS, port))
        sock.send(query)
        return sock.recv(65535)


def ask_each(
    port: int, queries: Sequence[bytes], transport: str, authority: Path | None = None, timeout: float = 3.0
) -> list[bytes]:
    """The responses to queries that are asked one after the other over one connection ("tcp" or "tls")."""
    with socket.create_connection((ADDRESS, port), timeout) as plain:
        if transport == "tcp":
            return [_ask_stream(plain, query) for query in queries]
        context = ssl.create_default_context(cafile=str(authority))
        with context.wrap_socket(plain, server_hostname=SERVER_NAME) as sock:
            return [_ask_stream(sock, query) for query in queries]


def _ask_stream(sock: socket.socket, query: bytes) -> bytes:
    sock.sendall(struct.pack("!H", len(query)) + query)
    answer = read_message(sock)
    assert answer is not None, "closed without an answer"
    return answer


HOP_BY_HOP = 0x00A0
"""The header's RA and AD: what the server that is asked says of itself, not of the answer."""


def bare(message: bytes) -> tuple[bytes, bytes | None]:
    """A message without what every hop has its own of, and its OPT record.

    The ID is 0, RA and AD are not set, TTLs are 0, and the OPT is cut out; all else, compression too, is as it came.
    """
    data = bytearray(message)
    data[0:2] = bytes(2)
    data[2:4] = (int.from_bytes(data[2:4], "big") & ~HOP_BY_HOP).to_bytes(2, "big")
    questions, *sections = struct.unpack_from("!4H", data, 4)
    offset = 12
    for _ in range(questions):
        offset = _after_name(message, offset) + 4
    opt = None
    for _ in range(sum(sections)):
        start, offset = offset, _after_name(message, offset)
        rtype, length = int.from_bytes(message[offset : offset + 2], "big"), offset + 8
        data[offset + 4 : length] = bytes(4)
        offset = length + 2 + int.from_bytes(message[length : length + 2], "big")
        if rtype == dns.rdatatype.OPT:
            assert opt is None, "two OPT records"
            opt = start, offset
    assert offset == len(message), "something behind the last record"
    if opt is None:
        return bytes(data), None
    data[10:12] = (sections[2] - 1).to_bytes(2, "big")
    del data[slice(*opt)]
    return bytes(data), message[slice(*opt)]


def _after_name(message: bytes, offset: int) -> int:
    while (length := message[offset]) and length < 0xC0:
        offset += length + 1
    return offset + (2 if length else 1)


def write_zone(path: Path) -> Path:
    """The common zone as a master file."""
    lines = [f"big 300 A 198.51.100.{number + 1}" for number in range(BIG)]
    lines += [f'{name} 300 TXT "odd {number}"' for number, name in enumerate(ODD)]
    path.write_text(RECORDS + "\n".join(lines) + "\n")
    return path


def program(name: str) -> str | None:
    """Where a server's program is; None if it is not installed."""
    return shutil.which(name, path=PATH)


def unbound(folder: Path, certificate: Certificate) -> Resolver:
    """A resolver that has the zone in a file, and asks nobody else: its answers come with RA, and age in its cache."""
    port, tls, https = (ports.free_port([ADDRESS]) for _ in range(3))
    conf = folder / "unbound.conf"
    conf.write_text(
        f"""\
server:
    directory: "{folder}"
    chroot: ""
    username: ""
    pidfile: ""
    use-syslog: no
    verbosity: 1
    num-threads: 1
    interface: {ADDRESS}@{port}
    interface: {ADDRESS}@{tls}
    interface: {ADDRESS}@{https}
    tls-port: {tls}
    https-port: {https}
    tls-service-key: "{certificate.key}"
    tls-service-pem: "{certificate.chain}"
    module-config: "iterator"
    do-ip6: no
    do-not-query-localhost: yes
    do-not-query-address: 0.0.0.0/0
    rrset-roundrobin: no
    minimal-responses: no
    local-zone: "example." transparent
    local-zone: "invalid." static
remote-control:
    control-enable: no
auth-zone:
    name: {ZONE}
    zonefile: "{write_zone(folder / "zone")}"
    for-downstream: no
    for-upstream: yes
"""
    )
    command = [program("unbound") or "unbound", "-d", "-p", "-c", str(conf)]
    return Resolver("unbound", port, command, folder, certificate, tls, https)


_KNOT = """\
server:
    rundir: {folder}
    listen: {address}@{port}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stderr
    any: warning
database:
    storage: {folder}
template:
  - id: default
    zonefile-sync: -1
    zonefile-load: whole
    journal-content: none
zone:
"""


def knot_configuration(folder: Path, port: int, files: Mapping[str, Path]) -> str:
    """knot.conf for a folder of its own, and master files by origin."""
    zones = "".join(f"  - domain: {origin}\n    file: {file}\n" for origin, file in files.items())
    return _KNOT.format(folder=folder, address=ADDRESS, port=port) + zones


def knot(folder: Path, certificate: Certificate) -> Resolver:
    """An authoritative server over UDP and TCP (TLS came with Knot DNS 3.4)."""
    port = ports.free_port([ADDRESS])
    conf = folder / "knot.conf"
    conf.write_text(knot_configuration(folder, port, {ZONE: write_zone(folder / "zone")}))
    return Resolver("knot", port, [program("knotd") or "knotd", "-c", str(conf)], folder, certificate)


def nsd(folder: Path, certificate: Certificate) -> Resolver:
    """An authoritative server, over TLS too."""
    port, tls = (ports.free_port([ADDRESS]) for _ in range(2))
    conf = folder / "nsd.conf"
    conf.write_text(
        f"""\
server:
    ip-address: {ADDRESS}@{port}
    ip-address: {ADDRESS}@{tls}
    tls-port: {tls}
    tls-service-key: "{certificate.key}"
    tls-service-pem: "{certificate.chain}"
    server-count: 1
    username: ""
    chroot: ""
    zonesdir: "{folder}"
    database: ""
    pidfile: "{folder}/pid"
    zonelistfile: "{folder}/zone.list"
    xfrdfile: "{folder}/xfrd.state"
    xfrdir: "{folder}"
    round-robin: no
remote-control:
    control-enable: no
zone:
    name: {ZONE}
    zonefile: "{write_zone(folder / "zone")}"
"""
    )
    return Resolver("nsd", port, [program("nsd") or "nsd", "-d", "-c", str(conf)], folder, certificate, tls)


def bind(folder: Path, certificate: Certificate) -> Resolver:
    """`named` as an authoritative server, over TLS and HTTPS too."""
    port, tls, https = (ports.free_port([ADDRESS]) for _ in range(3))
    conf = folder / "named.conf"
    conf.write_text(
        f"""\
tls own {{ key-file "{certificate.key}"; cert-file "{certificate.chain}"; }};
options {{
    directory "{folder}";
    pid-file none;
    session-keyfile "{folder}/session.key";
    managed-keys-directory "{folder}";
    listen-on port {port} {{ {ADDRESS}; }};
    listen-on port {tls} tls own {{ {ADDRESS}; }};
    listen-on port {https} tls own http default {{ {ADDRESS}; }};
    listen-on-v6 {{ none; }};
    recursion no;
    dnssec-validation no;
    empty-zones-enable no;
    notify no;
    allow-transfer {{ none; }};
    rrset-order {{ order none; }};
}};
controls {{ }};
zone "{ZONE}" {{ type primary; file "{write_zone(folder / "zone")}"; }};
"""
    )
    command = [program("named") or "named", "-g", "-n", "1", "-U", "1", "-c", str(conf)]
    return Resolver("bind", port, command, folder, certificate, tls, https)


def dnsmasq(folder: Path, certificate: Certificate) -> Resolver:
    """What kube-dns was made of: the same names in options, as it reads no zone files. UDP and TCP only."""
    port = ports.free_port([ADDRESS])
    conf = folder / "dnsmasq.conf"
    conf.write_text("\n".join(_dnsmasq_lines(port)) + "\n")
    command = [program("dnsmasq") or "dnsmasq", "--keep-in-foreground", f"--conf-file={conf}"]
    lacks = frozenset({"SOA", "NS", *ODD})
    return Resolver("dnsmasq", port, command, folder, certificate, lacks=lacks)


def _dnsmasq_lines(port: int) -> Iterator[str]:
    yield from (f"port={port}", f"listen-address={ADDRESS}", "bind-interfaces", "user=root", "pid-file=")
    yield from ("no-resolv", "no-hosts", "no-round-robin", "local-ttl=300", f"local=/{ZONE}/", "edns-packet-max=1232")
    addresses = {"host": ["192.0.2.1", "2001:db8::1"], "mail": ["192.0.2.25"], "short": ["192.0.2.7"]}
    addresses |= {"several": ["192.0.2.2", "192.0.2.3", "2001:db8::2"], "x.empty": ["192.0.2.8"]}
    addresses["big"] = [f"198.51.100.{number + 1}" for number in range(BIG)]
    for name, values in addresses.items():
        yield from (f"host-record={name}.{ZONE},{value}" for value in values)
    yield f"mx-host={ZONE},mail.{ZONE},10"  # of several it gives another one first each time
    yield from (f"address=/wild.{ZONE}/192.0.2.9", f"txt-record=x.wild.{ZONE},any name")
    yield f"txt-record=text.{ZONE},one,two; three"
    yield f"srv-host=_http._tcp.{ZONE},host.{ZONE},80,1,50"
    yield from (
        f"cname=link.{ZONE},link2.{ZONE}",
        f"cname=link2.{ZONE},link3.{ZONE}",
        f"cname=link3.{ZONE},host.{ZONE}",
    )
    yield f"naptr-record=naptr.{ZONE},100,10,u,E2U+sip,!^.*$!sip:info@example.com!"
    yield f"caa-record={ZONE},0,issue,ca.example"
    yield f"dns-rr=unknown.{ZONE},65280,00010203c00cff"
    yield f"dns-rr=https.{ZONE},65,00010000010003026832"
    yield f"dns-rr=svcb.{ZONE},64,000204686f737407657861 6d706c6500".replace(" ", "")


MAKES: dict[str, Callable[[Path, Certificate], Resolver]] = {
    "unbound": unbound,
    "knot": knot,
    "nsd": nsd,
    "dnsmasq": dnsmasq,
    "bind": bind,
}
PROGRAMS = {"unbound": "unbound", "knot": "knotd", "nsd": "nsd", "dnsmasq": "dnsmasq", "bind": "named"}


def installed(makes: Sequence[str] = tuple(MAKES)) -> list[str]:
    """Those of the makes that this machine has."""
    return [make for make in makes if program(PROGRAMS[make])]
