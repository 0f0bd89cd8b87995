"""One question over UDP and over TCP, which have to agree, and the answer as sorted lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.support import procs
from tests.support.server import Server

Expected = tuple[str, list[str]]
"""Response code, and the records of the answer section as in Told."""
EDNS: dict[str, Any] = {"use_edns": 0, "payload": 1232}


@dataclass(frozen=True, slots=True)
class Told:
    """A response. Records are `owner TYPE rdata`, owners and rdata in master file format, in no order of their own.

    flags: in lower case, as dig writes them. ttls: those of all records of the three sections.
    """

    rcode: str
    flags: frozenset[str]
    answer: list[str]
    authority: list[str]
    additional: list[str]
    ttls: frozenset[int]

    @property
    def rdata(self) -> list[str]:
        """The rdata of the answer section."""
        return sorted(line.split(" ", 2)[2] for line in self.answer)


def told(message: dns.message.Message) -> Told:
    """Read a response."""
    sections = (message.answer, message.authority, message.additional)
    return Told(
        dns.rcode.to_text(message.rcode()),
        frozenset(dns.flags.to_text(message.flags).lower().split()),
        lines(message.answer),
        lines(message.authority),
        lines(message.additional),
        frozenset(int(rrset.ttl) for section in sections for rrset in section),
    )


def lines(section: Iterable[dns.rrset.RRset]) -> list[str]:
    """The records of a section, sorted."""
    return sorted(f"{rrset.name} {dns.rdatatype.to_text(rrset.rdtype)} {rdata}" for rrset in section for rdata in rrset)


def ask(server: Server, name: str, rdtype: str = "A", **options: Any) -> Told:
    """Ask over UDP and over TCP, each three times, so that the packet cache answers too; all have to be equal.

    options: as for `Server.query`; the UDP query offers 1232 bytes, and its answer must not be truncated.
    """
    options = EDNS | options
    found = [told(server.query(name, rdtype, tcp=tcp, **options)) for tcp in (False, True) * 3]
    assert "tc" not in found[0].flags, f"{name} {rdtype} is truncated"
    for other in found[1:]:
        assert other == found[0], f"{name} {rdtype}: UDP and TCP, or a later answer, differ"
    return found[0]


def shows_within(server: Server, seconds: float, name: str, rdtype: str, expected: Expected) -> float:
    """Wait until UDP and TCP both give a response code and answer section; returns the seconds it took."""

    def both() -> bool:
        return all(seen(server, name, rdtype, tcp=tcp) == expected for tcp in (False, True))

    try:
        return procs.wait_until(both, seconds, f"{name} {rdtype} {expected}")
    except AssertionError as error:
        now = [seen(server, name, rdtype, tcp=tcp) for tcp in (False, True)]
        raise AssertionError(f"{error}; UDP and TCP say {now}") from None


def seen(server: Server, name: str, rdtype: str, *, tcp: bool = False) -> Expected:
    """Response code and answer section as they are now, by the same query as that of `ask`."""
    answer = told(server.query(name, rdtype, tcp=tcp, **EDNS))
    return answer.rcode, answer.answer


def records(owner: str, rdtype: str, rdatas: Sequence[str]) -> list[str]:
    """Lines as in Told."""
    return sorted(f"{owner}. {rdtype} {rdata}" for rdata in rdatas)
