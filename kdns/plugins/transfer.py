"""transfer: whole zones, and what has changed in them, for other servers.

## Name

*transfer* - lets other servers have copies of zones (AXFR, IXFR), and tells them of changes (NOTIFY).

## Description

The zones of *kubernetes*, *k8s_external*, *file* and *auto* of the same server block are transferred to the addresses
that `to` names. Others, and those who ask for AXFR over UDP, are REFUSED; a name that is not the apex of a zone is
NOTAUTH; a zone that is not complete yet is SERVFAIL.

AXFR (RFC 5936) is over TCP or TLS. All of a zone is of one commit of the zone store, however fast the cluster changes
and however slowly the client reads.

IXFR (RFC 1995) sends what has changed since the client's serial as one difference, if the journal of the zone goes
back so far, and else the whole zone. The journal is in the zone store and outlives a restart: of each zone the last 4
MiB. When a zone is written anew as a whole, its journal begins anew. Over UDP the answer is the zone's SOA record if
the difference does not fit.

When a zone has changed, each address of `to` gets a NOTIFY (RFC 1996), at once if it got none in the last quarter of a
second, and again after 1, 2, 4 and up to 60 seconds until it answers; and when the server starts. They are not signed.

A worker sends 50 transfers at a time; more wait for up to 30 seconds, and are SERVFAIL then. Who takes nothing for as
long as `write` of *timeouts* says is disconnected.

The serial of a cluster's zone counts 256ths of a second, and rises with each change: it rises too when the zone is
made anew because the zone store is lost, if the clock is right. Two servers of one cluster do not have the same
serials, so a copy has to come from one of them: from a Service it would come from any.

## Syntax

```
transfer [ZONES...] {
    to ADDRESS...
}
```

* **ZONES**: those that are transferred, and zones below them; default: those of the server block. Of several *transfer*
  that have a zone, the one with the longest of these counts.
* `to`: who may have them: addresses, with the port at which they get NOTIFY, such as `192.0.2.1`, `192.0.2.1:5300`,
  `2001:db8::1` or `[2001:db8::1]:5300`; default port: 53. `*` is everyone, who gets no NOTIFY. It may be given several
  times.

## Metrics

* `kdns_transfers_total{result}`: whole zones ("axfr") and differences ("ixfr") that were sent, those that had nothing
  to send ("current"), and those that were not to be had ("refused", "failed").
* `kdns_notifies_total{result}`: NOTIFYs that were sent ("sent") and that were answered ("answered").

## Examples

The cluster's zone, for two servers; one of them is told of changes at another port:

```corefile
cluster.local:53 {
    kubernetes cluster.local
    transfer {
        to 192.0.2.10 192.0.2.11:5300
    }
}
```

Only for those who have the key, wherever they are:

```corefile
cluster.local:53 {
    tsig {
        secret transfer.example. NoTCJU+DMqFWywaPyxSijrDEA/eC3nK0xi3AMEZuPVk=
        require AXFR IXFR
    }
    kubernetes cluster.local
    transfer {
        to *
    }
}
```

## Differences from CoreDNS

IXFR sends differences: CoreDNS sends the whole zone whenever something has changed. NOTIFYs are repeated until they
are answered: CoreDNS sends three. A transfer of a name that is no zone is NOTAUTH, and of a zone that no *transfer*
has REFUSED: CoreDNS asks the next plugin. An IXFR without an SOA record is FORMERR: CoreDNS says SERVFAIL. Every
change of a cluster sends a NOTIFY: CoreDNS sends none for *kubernetes*.

## See also

*tsig*, *acl*, *file*, *kubernetes*; RFC 1995, RFC 1996, RFC 5936.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import ConfigValueError, FormatError, KdnsError, Mistake
from kdns.plugins.chain import Next, in_task
from kdns.plugins.networks import packed
from kdns.plugins.outgoing import Outgoing, Whole
from kdns.plugins.site import Site
from kdns.wire import message, names, rr, tsig
from kdns.wire.message import Query, Response, skip_name
from kdns.wire.relay import expand
from kdns.zone import journal
from kdns.zone import transfer as messages
from kdns.zone.store import SYNCED, Transaction, Zone
from kdns.zone.transfer import Messages

NAME = "transfer"
ANYONE = "*"
PORT = 53
_TYPES = frozenset((rr.AXFR, rr.IXFR))


@dataclass(frozen=True, slots=True)
class Rule:
    """A directive. zones: lower case with their last dot. to: addresses and ports; anyone: and everyone else."""

    zones: tuple[str, ...]
    to: tuple[tuple[str, int], ...]
    anyone: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """The directives of a server block, in their order."""

    rules: tuple[Rule, ...]

    def by_zone(self) -> names.Zones[Rule]:
        """The directive for each zone; of several the first one."""
        found: dict[bytes, Rule] = {}
        for rule in self.rules:
            for zone in rule.zones:
                found.setdefault(names.lower(names.from_text(zone)), rule)
        return names.Zones(found)


def parse(directive: Directive, block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    zones = reader.zones(directive.args) or tuple(dict.fromkeys(key.zone for key in block.keys))
    found: dict[tuple[str, int], None] = {}
    anyone = False

    def to(item: Directive) -> None:
        nonlocal anyone
        for token in reader.arguments(item, 1, None, "to ADDRESS..."):
            if token.text == ANYONE:
                anyone = True
            elif (address := reader.value(token, address_port)) is not None:
                found[address] = None

    reader.options({"to": to}, (), ("to",))
    if reader.sound and not (found or anyone):
        reader.refuse(directive.name, "transfer has no `to`", "to ADDRESS...")
    return Options((Rule(zones, tuple(found), anyone),)) if reader.sound else None


def merge(found: Sequence[Options]) -> Options:
    """Several directives of one server block as one."""
    return Options(tuple(rule for options in found for rule in options.rules))


def address_port(text: str) -> tuple[str, int]:
    """An address, with or without a port. Raises ConfigValueError."""
    accepted = "an address such as 192.0.2.1, 192.0.2.1:5300, 2001:db8::1 or [2001:db8::1]:5300"
    alone = values.ip_address(text.removeprefix("[").removesuffix("]") if text.startswith("[") else text)
    if alone is not None:
        return alone, PORT
    try:
        found = values.host_port(text)
    except ConfigValueError:
        found = values.Address("", 0)
    address = values.ip_address(found.host)
    if address is None or not found.port:
        raise ConfigValueError(f"{values.shown(text)} is no address", accepted)
    return address, found.port


@dataclass(frozen=True, slots=True)
class Held:
    """The zones in the store that a server block can transfer.

    numbers: of the zones of a cluster. sources: those of other directives, and the only zones of each that count, None
    for all of them.
    """

    numbers: Collection[int] = ()
    sources: Mapping[str, names.Zones[bool] | None] | None = None

    def find(self, txn: Transaction, origin: bytes) -> Zone | None:
        """The zone with an apex. What is of a cluster goes first, as its plugins do."""
        zones = [zone for zone in txn.zones() if zone.origin == origin]
        for zone in zones:
            if zone.number in self.numbers:
                return zone
        for source, within in (self.sources or {}).items():
            for zone in zones:
                if zone.source == source and (within is None or within.find(origin)):
                    return zone
        return None


class Handler:
    """Answers AXFR and IXFR."""

    def __init__(self, options: Options, held: Held, outgoing: Outgoing, site: Site) -> None:
        self._rules = options.by_zone()
        self._allowed = {
            id(rule): None if rule.anyone else frozenset(packed(host) for host, _ in rule.to) for rule in options.rules
        }
        self._held = held
        self._outgoing = outgoing
        self._region = site.region
        self._log = site.log.plugin(NAME)

    def passing(self, _: bytes, __: str) -> tuple[int, ...] | None:
        """What is answered directly is no transfer."""
        return ()

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the rest of the chain answers, or a zone."""
        if query.type not in _TYPES:
            return await next(query)
        rule = self._rules.find(query.lname)
        if rule is None or not self._allows(rule, query) or (query.proto == "udp" and query.type == rr.AXFR):
            return self._refuse(rr.REFUSED, "refused")
        serial = None
        if query.type == rr.IXFR:
            serial = client_serial(query)
            if serial is None:
                return self._refuse(rr.FORMERR, "refused")
        await in_task()
        try:
            return await self._answer(query, serial)
        except (KdnsError, TimeoutError) as error:
            response = self._refuse(rr.SERVFAIL, "failed")
            response.error = str(error) or "too many transfers"
            return response

    def _allows(self, rule: Rule, query: Query) -> bool:
        allowed = self._allowed[id(rule)]
        return allowed is None or packed(query.client[0]) in allowed

    def _refuse(self, rcode: int, result: str) -> Response:
        self._count(result)
        return Response(rcode=rcode, plugin=NAME)

    def _count(self, result: str) -> None:
        self._region.count(("count", "kdns_transfers_total", "result", result))

    async def _answer(self, query: Query, serial: int | None) -> Response:
        """A zone, or what has changed in it since a serial. Raises KdnsError, TimeoutError."""
        slot = await self._outgoing.slot()
        try:
            found = await self._find(query, serial)
        except BaseException:
            slot.close()
            raise
        if isinstance(found, Response):
            slot.close()
            return found
        return Response(authoritative=True, transfer=slot.of(query.lname, *found), plugin=NAME)

    async def _find(self, query: Query, serial: int | None) -> Response | tuple[Messages, object]:
        """The messages, and what has to be there as long as they are sent; or why there are none."""
        entries: list[bytes] | None = None
        with self._outgoing.snapshot() as found, found.open() as txn:
            zone = self._held.find(txn, query.lname)
            if zone is None:
                return self._refuse(tsig.NOTAUTH, "refused")
            soa = messages.soa(zone.origin, txn.get(zone, zone.origin) or ())
            if serial is not None and serial != zone.serial:
                entries = journal.since(txn, zone, serial)
        if zone.state != SYNCED or soa is None:
            return self._refuse(rr.SERVFAIL, "failed")
        if serial is not None and not journal.rises(serial, zone.serial):
            self._count("current")
            return messages.alone(soa), None
        if entries is not None:
            difference = await self._outgoing.difference(zone, entries)
            if query.proto != "udp" or self._fits(query, difference):
                self._count("ixfr")
                return difference, None
        if query.proto == "udp":
            self._count("current")
            return messages.alone(soa), None
        whole = await self._outgoing.whole(zone)
        if whole is None:
            return self._refuse(rr.SERVFAIL, "failed")
        self._count("axfr")
        self._tell(query, whole)
        return whole.messages, whole

    def _fits(self, query: Query, found: Messages) -> bool:
        """Whether it is one message that a client can get over UDP."""
        signature = query.signed.size if query.signed is not None else 0
        opt = len(message.opt_record(False)) if query.edns is not None else 0
        return len(found) == 1 and query.question_end + len(found[0][1]) + opt + signature <= query.limit

    def _tell(self, query: Query, whole: Whole) -> None:
        count = sum(count for count, _ in whole.messages)
        name = names.to_text(whole.zone.origin)
        self._log.info(f"transfer of {count} records of zone {name} to {query.client[0]}, serial {whole.zone.serial}")


def client_serial(query: Query) -> int | None:
    """The serial in the authority section of an IXFR query (RFC 1995 3); None if there is not one SOA record."""
    data, at = query.data, query.question_end
    if data[6:10] != b"\0\0\0\1":
        return None
    try:
        name, behind = expand(data, at)
        if name.lower() != query.lname or int.from_bytes(data[behind : behind + 2]) != rr.SOA:
            return None
        at = skip_name(data, skip_name(data, behind + 10))
    except FormatError:
        return None
    end = behind + 10 + int.from_bytes(data[behind + 8 : behind + 10])
    return int.from_bytes(data[at : at + 4]) if at + 20 == end <= len(data) else None
