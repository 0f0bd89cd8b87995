"""Knot, NSD and BIND that have a copy of a zone, or give one away."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.zone

from tests.support import ports, procs
from tests.support.resolvers import program

ADDRESS = "127.0.0.1"
KEY = "key.test"
SECRET = "NoTCJU+DMqFWywaPyxSijrDEA/eC3nK0xi3AMEZuPVk="  # noqa: S105
START_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server works: its folder and port; the zone, and the port of the other server."""

    folder: Path
    port: int
    zone: str
    other: int


def _knot(at: Place) -> str:
    return f"""
server:
    rundir: {at.folder}
    listen: {ADDRESS}@{at.port}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stderr
    any: info
database:
    storage: {at.folder}
key:
  - id: {KEY}
    algorithm: hmac-sha256
    secret: {SECRET}
remote:
  - id: other
    address: {ADDRESS}@{at.other}
    key: {KEY}
acl:
  - id: notified
    address: {ADDRESS}
    action: notify
zone:
  - domain: {at.zone}
    storage: {at.folder}
    master: other
    acl: notified
    refresh-min-interval: 2
"""


def _nsd(at: Place) -> str:
    return f"""
server:
    ip-address: {ADDRESS}@{at.port}
    username: ""
    chroot: ""
    zonesdir: "{at.folder}"
    pidfile: ""
    database: ""
    xfrdfile: "{at.folder}/xfrd.state"
    xfrdir: "{at.folder}"
    zonelistfile: "{at.folder}/zone.list"
    server-count: 1
    verbosity: 2
remote-control:
    control-enable: no
key:
    name: "{KEY}"
    algorithm: hmac-sha256
    secret: "{SECRET}"
zone:
    name: "{at.zone}"
    zonefile: "zone"
    request-xfr: {ADDRESS}@{at.other} {KEY}
    allow-notify: {ADDRESS} NOKEY
"""


def _bind(at: Place) -> str:
    return f"""
options {{
    directory "{at.folder}"; listen-on port {at.port} {{ {ADDRESS}; }}; listen-on-v6 {{ none; }};
    pid-file none; session-keyfile none; recursion no; dnssec-validation no; notify no; min-refresh-time 1;
}};
controls {{ }};
key "{KEY}" {{ algorithm hmac-sha256; secret "{SECRET}"; }};
zone "{at.zone}" {{
    type secondary; file "zone"; masterfile-format text;
    primaries {{ {ADDRESS} port {at.other} key "{KEY}"; }};
    allow-notify {{ {ADDRESS}; }};
}};
"""


SECONDARIES: Mapping[str, tuple[list[str], Callable[[Place], str]]] = {
    "knotd": (["-c"], _knot),
    "nsd": (["-d", "-c"], _nsd),
    "named": (["-g", "-n", "1", "-c"], _bind),
}
"""Programs that have copies of zones: their options in front of the configuration, and what is in that."""


def _knot_primary(at: Place) -> str:
    head, _, _ = _knot(at).partition("acl:")
    return f"""{head}
acl:
  - id: followers
    address: {ADDRESS}
    key: {KEY}
    action: transfer
zone:
  - domain: {at.zone}
    storage: {at.folder}
    file: zone
    notify: other
    acl: followers
    zonefile-load: difference
    zonefile-sync: -1
    journal-content: changes
"""


def _nsd_primary(at: Place) -> str:
    head, _, _ = _nsd(at).partition("zone:\n")
    return f"""{head}
zone:
    name: "{at.zone}"
    zonefile: "zone"
    provide-xfr: {ADDRESS} {KEY}
    notify: {ADDRESS}@{at.other} {KEY}
    store-ixfr: yes
    create-ixfr: yes
"""


def _bind_primary(at: Place) -> str:
    head, _, _ = _bind(at).partition("zone ")
    head = head.replace(
        "notify no;", "notify explicit; notify-delay 0; serial-query-rate 100; ixfr-from-differences yes;"
    )
    return f"""{head}
zone "{at.zone}" {{
    type primary; file "zone"; allow-transfer {{ key "{KEY}"; }};
    also-notify {{ {ADDRESS} port {at.other} key "{KEY}"; }};
}};
"""


PRIMARIES: Mapping[str, tuple[list[str], Callable[[Place], str]]] = {
    "knotd": (["-c"], _knot_primary),
    "nsd": (["-d", "-c"], _nsd_primary),
    "named": (["-g", "-n", "1", "-c"], _bind_primary),
}
"""The same that have the zone in a file, which they read again on SIGHUP."""


class Other:
    """One of them at work. name: of the program."""

    def __init__(
        self,
        name: str,
        folder: Path,
        zone: str,
        other: int,
        port: int | None = None,
        kinds: Mapping[str, tuple[list[str], Callable[[Place], str]]] = SECONDARIES,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.folder = folder
        self.zone = zone
        self.port = port or ports.free_port([ADDRESS])
        self.process: subprocess.Popen[bytes] | None = None
        self._options, configure = kinds[name]
        self._conf = folder / "conf"
        self._conf.write_text(configure(Place(folder, self.port, zone, other)))

    def start(self) -> Self:
        """Start it, and do not wait."""
        with (self.folder / "log").open("ab") as log:
            command = [program(self.name) or self.name, *self._options, str(self._conf)]
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        if error is not None:
            error.add_note(f"log of {self.name}:\n{self.log[-3000:]}")

    def kill(self) -> None:
        """SIGKILL to all of its processes, and wait for their end."""
        if self.process is not None:
            for _ in range(20):
                left = [found.pid for found in procs.session(self.process.pid)]
                if not left:
                    break
                procs.kill(left)
                self.process.poll()
            self.process.wait()

    @property
    def log(self) -> str:
        """What it has said."""
        return (self.folder / "log").read_text(errors="replace")

    def serial(self) -> int | None:
        """That of its copy; None while it has none."""
        try:
            query = dns.message.make_query(self.zone, "SOA")
            answer = dns.query.udp(query, ADDRESS, timeout=0.5, port=self.port)
        except (OSError, dns.exception.DNSException):
            return None
        return int(answer.answer[0][0].serial) if answer.answer else None

    def addresses(self, name: str) -> list[str]:
        """The A records of a name."""
        answer = dns.query.udp(dns.message.make_query(name, "A"), ADDRESS, timeout=2, port=self.port)
        return sorted(str(rdata) for rrset in answer.answer for rdata in rrset)
