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

A kdns whose *secondary* has a copy of a zone follows it: on the connection on which it has asked for the zone, it is
told of changes at once, if `to` has its address. It may connect to any of several servers of one cluster, as from a
Service: each zone store has a lineage, 8 random bytes, by which it sees that serials are of another one, and gets the
whole zone then, as it was up to five seconds ago, and at once what has changed since; but if the follower's copy is of
a later resourceVersion than this server has reached, SERVFAIL. What a server has as a copy itself is of the lineage of
where it came from. A copy of the store's files begins another lineage, and so does a start of the machine: a power cut
may have taken serials that others know.

A worker has room for 2000 followers, less where memory is short, and for 1000 zones of each. For more, one of the
client address with most of them makes room, the one that was silent longest: whoever opens thousands of connections is
in its own way. One that asks for nothing for 30 seconds is disconnected; `idle` and `maxtcpqueries` of *timeouts* are
for others. What they are told takes a quarter of a CPU of each worker: where they are many, and changes too, they are
told less often, of several changes together, but once a second at least.

`to *` lets every pod have the zones, and take part of what there is for followers. Nodes behind one NAT share an
address. Let only those transfer who are to: by `to` with their addresses, `tsig` with `require AXFR IXFR`, or `acl`
with `block type AXFR IXFR` for the networks of the pods.

A worker sends 50 transfers at a time, 10 of them to one client address; more wait for up to 30 seconds, and are
SERVFAIL then, or at once if 4000 wait already, or 1000 of one address. Who takes nothing for as long as `write` of
*timeouts* says is disconnected. So is, after 10 seconds, who has taken less than 16 KiB a second of each transfer, if
an address waits that has fewer, and anybody, if one waits that has fewer by two. As long as there are places, a link
may be as slow as it is.

Small differences are made at once, for a twentieth of a worker's time for one client address, and a quarter for all;
more of them, and large ones, one after the other, for a quarter again. They are shared by all who have the same serial.

The names of `zonal` (*kubernetes*) are in no transfer, as there is no end to them: a copy does not have them.

The serial of a cluster's zone counts 256ths of a second, and rises with each change: it rises too when the zone is
made anew because the zone store is lost, if the clock is right. Two servers of one cluster do not have the same
serials, so the copy of one that does not follow has to come from one of them: from a Service it would come from any.

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
* `kdns_followers`: connections on which zones are followed.

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

IXFR sends differences: CoreDNS sends the whole zone whenever something has changed. NOTIFYs are repeated until they are
answered: CoreDNS sends three. A transfer of a name that is no zone is NOTAUTH, and of a zone that no *transfer* has
REFUSED: CoreDNS asks the next plugin. An IXFR without an SOA record is FORMERR: CoreDNS says SERVFAIL. IXFR over UDP is
answered: CoreDNS says REFUSED. Every change of a cluster sends a NOTIFY: CoreDNS sends none for *kubernetes*.
`source` is not supported: a NOTIFY leaves from the address that the host has for the way to where it goes.

## See also

*tsig*, *acl*, *file*, *kubernetes*; RFC 1995, RFC 1996, RFC 5936.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import ConfigValueError, FormatError, KdnsError, Mistake
from kdns.plugins.chain import Next, in_task
from kdns.plugins.networks import packed
from kdns.plugins.outgoing import Outgoing, Slot, Whole
from kdns.plugins.site import Site
from kdns.wire import following, message, names, rr, tsig
from kdns.wire.message import Query, Response, Transfer, skip_name
from kdns.wire.relay import expand
from kdns.zone import journal
from kdns.zone import transfer as messages
from kdns.zone.journal import Row
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

    reader.options({"to": to}, ("source",), ("to",))
    if reader.sound and not (found or anyone):
        reader.refuse(directive.name, "transfer has no `to`", "to ADDRESS...")
    return Options((Rule(zones, tuple(found), anyone),)) if reader.sound else None


def merge(found: Sequence[Options]) -> Options:
    """Several directives of one server block as one."""
    return Options(tuple(rule for options in found for rule in options.rules))


def address_port(text: str) -> tuple[str, int]:
    """An address, with or without a port. Raises ConfigValueError."""
    accepted = "an address such as 192.0.2.1, 192.0.2.1:5300, 2001:db8::1 or [2001:db8::1]:5300"
    alone = values.ip_address(text[1:-1] if text.startswith("[") and text.endswith("]") else text)
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


class Found(NamedTuple):
    """What is sent to a client.

    zone: as it is then. lineage: the store's, if the client follows the zone from then on; revision: with it. kept: has
    to be there as long as the messages are sent.
    """

    messages: Messages
    zone: Zone
    lineage: bytes | None = None
    revision: int = 0
    kept: object = None


class There(NamedTuple):
    """A zone in the store, its SOA record if it has one, the store's lineage, and the revision of the data."""

    zone: Zone
    soa: Row | None
    lineage: bytes | None
    revision: int


class Wanted(NamedTuple):
    """What a client asks for.

    zone: as it is. soa: its SOA record. serial: what the client has, None for nothing. lineage: the store's, if the
    client is to follow the zone; then any serial may be one that the zone has had, and else only those below. revision:
    that of the data. least: that of what the client has.
    """

    zone: Zone
    soa: Row
    serial: int | None
    lineage: bytes | None
    revision: int = 0
    least: int = 0

    @property
    def current(self) -> bool:
        """Whether the client has the zone as it is, or says that it has a newer one."""
        if self.serial is None:
            return False
        return self.serial == self.zone.serial or not (self.lineage or journal.rises(self.serial, self.zone.serial))


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
        self._changes = site.changes
        self._generation = -1
        self._known: dict[bytes, There] = {}

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
        try:
            found = self._at_once(query, serial) if query.proto != "udp" else None
            if found is None:
                await in_task()
                return await self._answer(query, serial)
        except (KdnsError, TimeoutError) as error:
            response = self._refuse(rr.SERVFAIL, "failed")
            response.error = str(error) or "too many transfers"
            return response
        return found

    def _allows(self, rule: Rule, query: Query) -> bool:
        allowed = self._allowed[id(rule)]
        return allowed is None or packed(query.client[0]) in allowed

    def _refuse(self, rcode: int, result: str) -> Response:
        self._count(result)
        return Response(rcode=rcode, plugin=NAME)

    def _count(self, result: str) -> None:
        self._region.count(("count", "kdns_transfers_total", "result", result))

    def _at_once(self, query: Query, serial: int | None) -> Response | None:
        """An answer of one message, if it takes little to make; else None. It takes no place of a transfer."""
        wanted = self._wanted(query, serial)
        if isinstance(wanted, Response):
            return wanted
        if wanted.current:
            self._count("current")
            return self._sent(query, Found(messages.alone(wanted.soa), wanted.zone, wanted.lineage, wanted.revision))
        made = None
        if wanted.serial is not None:
            followed = wanted.lineage is not None
            made = self._outgoing.difference_at_once(wanted.zone, wanted.serial, query.client[0], followed=followed)
        if made is None or len(made.messages) > 1:
            return None
        self._count("ixfr")
        return self._sent(query, Found(made.messages, made.zone, wanted.lineage, wanted.revision))

    def _sent(self, query: Query, found: Found, slot: Slot | None = None) -> Response:
        done = slot.close if slot is not None else _nothing
        followed = found.zone if found.lineage else None
        lineage = found.lineage and (found.zone.lineage or found.lineage)
        transfer = Transfer(query.lname, found.messages, done, found.kept, followed, partial(self._has_to_yield, query))
        options = message.option(following.OPTION, following.mark(lineage, found.revision)) if lineage else b""
        return Response(authoritative=True, transfer=transfer, edns_options=options, plugin=NAME)

    def _has_to_yield(self, query: Query, *, slow: bool) -> bool:
        """Whether a transfer has to end, as others wait for its place. slow: its client takes it slowly."""
        host = query.client[0]
        if not self._outgoing.has_to_yield(host, slow=slow):
            return False
        why = "is taken slowly" if slow else "is one of many"
        text = f"transfer of zone {names.to_text(query.lname)} to {host} {why} while others wait, and was ended"
        self._log.warning(text, key="yield")
        return True

    async def _answer(self, query: Query, serial: int | None) -> Response:
        """A zone, or what has changed in it since a serial. Raises KdnsError, TimeoutError."""
        slot = await self._outgoing.slot(query.client[0])
        try:
            found = await self._find(query, serial)
        except BaseException:
            slot.close()
            raise
        if isinstance(found, Response):
            slot.close()
            return found
        return self._sent(query, found, slot)

    def _wanted(self, query: Query, serial: int | None) -> Response | Wanted:
        """What a client asks for, or why it does not get it."""
        theirs = following.lineage(query.edns.options) if query.edns is not None and query.proto != "udp" else None
        there = self._there(query.lname)
        if there is None:
            return self._refuse(tsig.NOTAUTH, "refused")
        if there.zone.state != SYNCED or there.soa is None:
            return self._refuse(rr.SERVFAIL, "failed")
        ours = there.lineage if theirs is not None else None
        if ours is None or theirs == (there.zone.lineage or ours):
            return Wanted(there.zone, there.soa, serial, ours, there.revision)
        least = following.revision(query.edns.options) if query.edns is not None else 0
        if 0 < there.revision < least and self._revision(there.zone) < least:
            text = f"{query.client[0]} has a later copy of zone {names.to_text(query.lname)}, and gets none from here"
            self._log.warning(text, key="behind")
            response = self._refuse(rr.SERVFAIL, "failed")
            mark = following.mark(there.zone.lineage or ours, there.revision)
            response.edns_options = message.option(following.OPTION, mark)
            return response
        return Wanted(there.zone, there.soa, None, ours, there.revision, least)

    def _revision(self, zone: Zone) -> int:
        """That of a zone's data now: it rises too where nothing changes."""
        with self._outgoing.store as reader:
            return reader.transaction().revision(zone)

    def _there(self, origin: bytes) -> There | None:
        """The zone with an apex. What was read of it is good until something changes."""
        generation = self._changes.generation
        if generation != self._generation:
            self._known.clear()
            self._generation = generation
        found = self._known.get(origin)
        if found is None:
            with self._outgoing.store as reader:
                txn = reader.transaction()
                zone = self._held.find(txn, origin)
                if zone is None:
                    return None
                soa = messages.soa(zone.origin, txn.get(zone, zone.origin) or ())
                found = self._known[origin] = There(zone, soa, txn.lineage, txn.revision(zone))
        return found

    async def _find(self, query: Query, serial: int | None) -> Response | Found:
        """What is sent, or why there is nothing."""
        wanted = self._wanted(query, serial)
        if isinstance(wanted, Response):
            return wanted
        _, soa, serial, lineage, revision, least = wanted
        if wanted.current:
            self._count("current")
            return Found(messages.alone(soa), wanted.zone, lineage, revision)
        made = None
        if serial is not None:
            host, followed = query.client[0], lineage is not None
            made = await self._outgoing.difference(wanted.zone, serial, host, followed=followed)
        if made is not None and (query.proto != "udp" or self._fits(query, made.messages)):
            self._count("ixfr")
            return Found(made.messages, made.zone, lineage, revision, made)
        if query.proto == "udp":
            self._count("current")
            return Found(messages.alone(soa), wanted.zone)
        whole = await self._outgoing.whole(wanted.zone, followed=lineage is not None, revision=least)
        if whole is None:
            return self._refuse(rr.SERVFAIL, "failed")
        self._count("axfr")
        self._tell(query, whole)
        return Found(whole.messages, whole.zone, lineage, whole.revision, whole)

    def _fits(self, query: Query, found: Messages) -> bool:
        """Whether it is one message that a client can get over UDP."""
        signature = query.signed.size if query.signed is not None else 0
        opt = len(message.opt_record(False)) if query.edns is not None else 0
        return len(found) == 1 and query.question_end + len(found[0][1]) + opt + signature <= query.limit

    def _tell(self, query: Query, whole: Whole) -> None:
        count = sum(count for count, _ in whole.messages)
        name = names.to_text(whole.zone.origin)
        self._log.info(f"transfer of {count} records of zone {name} to {query.client[0]}, serial {whole.zone.serial}")


def _nothing() -> None:
    """What is to be done when nothing was taken."""


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
