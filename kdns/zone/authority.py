"""What the zones of a master file or a transfer answer (RFC 1034 4.3.2), all of it from the store.

Wildcards are those of RFC 4592, DNAME is RFC 6672, denials are RFC 2308. Where a zone is signed with NSEC, clients that
want it get signatures and proofs (RFC 4035 3.1).

An answer depends on each name between the zone's apex and the one that was asked for, on the wildcard that was or would
have been used, and on the names whose addresses it has. The apex is not among them, so that a new serial ends no answer
but its own; of what else changes there, the writer says that everything has changed (`Transaction.replace`). In a plain
zone, which has none of that, an answer depends on the name itself; when it is plain no more, everything has changed.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from kdns.wire import names, rr
from kdns.wire.message import LONGEST_CHAIN, Query, Response
from kdns.wire.rrset import RRset
from kdns.zone.keys import key_name, name_key
from kdns.zone.lookup import ZoneView, denying
from kdns.zone.reader import Reader
from kdns.zone.store import EXPIRED
from kdns.zone.values import Records, decode_rrsets

_ANY_LABEL = b"\1*"
_TARGET_AT = {rr.NS: 0, rr.MX: 2, rr.SRV: 6, rr.SVCB: 2, rr.HTTPS: 2}
_FARTHEST = 1000
"""Names in front of another one that are looked at for an NSEC record: those below a cut have none."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a look-up of a name ends.

    owner: whose records it has: the name; a wildcard; or, above the name, a cut or a DNAME. found: they, none for a
    name that only exists, None if there is no such name. encloser: the closest one that exists.
    """

    owner: bytes
    found: Records | None
    encloser: bytes
    cut: bool = False


class Lookup:
    """One question, answered step by step. response: as far as it has come."""

    def __init__(
        self,
        store: Reader,
        zones: names.Zones[ZoneView],
        query: Query,
        plugin: str,
        passed: Collection[bytes] = (),
    ) -> None:
        """store: entered. zones: those in which aliases are followed here, but for those of them that are passed."""
        self._store = store
        self._zones = zones
        self._passed = passed
        self._query = query
        self._signed = query.edns is not None and query.edns.do
        self._links = query.links
        self.response = Response(authoritative=True, plugin=plugin, cacheable=True)

    def run(self, view: ZoneView) -> bytes | None:
        """Answer from a zone. Returns the name that an alias leads to, if that is not answered from the zones.

        A chain that comes back to itself, or has too many links, ends with what was found.
        """
        name = self._query.lname
        seen = set()
        found: ZoneView | None = view
        while found is not None:
            seen.add(name)
            target = self._step(found, name)
            if target is None or target in seen:
                return None
            name = target
            found = self._zones.find(name)
            if found is not None and found.origin in self._passed:
                break
        return name

    @property
    def links(self) -> int:
        """Aliases that were followed."""
        return self._links

    def _step(self, view: ZoneView, name: bytes) -> bytes | None:
        """Answer for one name of the chain; returns where it leads to."""
        view.refresh(self._store)
        if view.soa is None or view.state == EXPIRED or not view.synced:
            why = "is too old" if view.state == EXPIRED else "could not be read yet"
            error = f"zone {names.to_text(view.origin)}: its data {why}"
            self.response = Response(rcode=rr.SERVFAIL, plugin=self.response.plugin, error=error)
            return None
        place = self._place(view, name)
        if place.cut:
            self._refer(view, place)
            return None
        if place.owner != name and (dname := _of_type(place.found, rr.DNAME)) and place.owner == place.encloser:
            return self._substitute(place, name, dname)
        if place.found is None:
            self.response.rcode = rr.NXDOMAIN
            self._deny(view, name, place)
            return None
        return self._answer(view, name, place, place.found)

    # Where a name is

    def _place(self, view: ZoneView, name: bytes) -> _Place:
        """Go down from the apex to the name, or to where that is not possible."""
        if view.plain:
            self.response.depends += (name,)
            return _Place(name, self._read(view, name), name)
        wanted = self._query.type
        encloser = view.origin
        found = self._read(view, encloser)
        for step in _path(view.origin, name):
            if _of_type(found, rr.DNAME):
                return _Place(encloser, found, encloser)
            self.response.depends += (step,)
            below = self._read(view, step)
            if below is None:
                wildcard = _ANY_LABEL + encloser
                self.response.depends += (wildcard,)
                return _Place(wildcard, self._read(view, wildcard), encloser)
            if _of_type(below, rr.NS) and not (wanted == rr.DS and step == name):
                return _Place(step, below, step, cut=True)
            encloser, found = step, below
        if name == view.origin:
            self.response.depends += (name,)
        return _Place(name, found, name)

    def _read(self, view: ZoneView, name: bytes) -> Records | None:
        return view.find(self._store, name)

    # What it has

    def _answer(self, view: ZoneView, name: bytes, place: _Place, found: Records) -> bytes | None:
        wanted = self._query.type
        answer = self.response.answer
        if wanted == rr.ANY and found:
            if self._query.proto == "udp":  # RFC 8482 4.2
                found = (RRset(rr.HINFO, min(rrset.ttl for rrset in found), (rr.hinfo(b"RFC8482", b""),)),)
            answer += [(name, rrset) for rrset in found]
            return None
        rrset = _of_type(found, wanted)
        alias = _of_type(found, rr.CNAME) if rrset is None else None
        if rrset is None and alias is None:
            self._deny(view, name, place)
            return None
        if rrset is None and self._links == LONGEST_CHAIN:
            return None
        self._add(answer, name, rrset or alias, found)
        if place.owner != name:
            self._prove(view, name)
        if alias is not None:
            self._links += 1
            return alias.rdatas[0].lower()
        assert rrset is not None
        self._addresses(rrset)
        return None

    def _substitute(self, place: _Place, name: bytes, dname: RRset) -> bytes | None:
        """Answer for a name below a DNAME: with a CNAME of its own."""
        assert place.found is not None
        if self._links == LONGEST_CHAIN:
            return None
        answer = self.response.answer
        if (place.owner, dname) not in answer:  # it may be that of the name before
            self._add(answer, place.owner, dname, place.found)
        target = name[: len(name) - len(place.owner)] + dname.rdatas[0]
        if len(target) > names.MAX_NAME:
            self.response.rcode = rr.YXDOMAIN
            return None
        answer.append((name, RRset(rr.CNAME, dname.ttl, (target,))))
        self._links += 1
        return None if self._query.type in (rr.CNAME, rr.ANY) else target.lower()

    def _refer(self, view: ZoneView, place: _Place) -> None:
        """Tell who answers below a cut. It is not authoritative, unless it is for an alias in front of it."""
        assert place.found is not None
        authority = self.response.authority
        ns = _of_type(place.found, rr.NS)
        assert ns is not None
        self.response.authoritative = bool(self.response.answer)
        authority.append((place.owner, ns))
        if self._signed and _of_type(self._read(view, view.origin), rr.NSEC):
            ds = _of_type(place.found, rr.DS) or _of_type(place.found, rr.NSEC)
            if ds is not None:
                self._add(authority, place.owner, ds, place.found)
        self._addresses(ns, view)

    def _addresses(self, rrset: RRset, view: ZoneView | None = None) -> None:
        """Add the addresses of the names that records point to, as far as they are ours. view: of this zone only."""
        at = _TARGET_AT.get(rrset.type)
        if at is None:
            return
        targets = dict.fromkeys(names.at(rdata, at).lower() for rdata in rrset.rdatas)
        for target in targets:
            found = self._zones.find(target)
            if found is None or (view is not None and found is not view):
                continue
            self.response.depends += (target,)
            records = found.find(self._store, target) or ()
            for addresses in records:
                if addresses.type in (rr.A, rr.AAAA):
                    self._add(self.response.additional, target, addresses, records)

    # What it does not have

    def _deny(self, view: ZoneView, name: bytes, place: _Place) -> None:
        """Say that there is no such name, or no such records."""
        assert view.soa is not None
        soa = denying(view.soa)
        self._add(self.response.authority, view.origin, soa, self._read(view, view.origin) if self._signed else ())
        if place.owner != name:
            self._prove(view, name)
        self._prove(view, place.owner)

    def _prove(self, view: ZoneView, name: bytes) -> None:
        """Add the NSEC record of a name, or if it has none, the one that says that there is nothing there."""
        if not self._signed:
            return
        for owner, records in self._up_to(view, name):
            nsec = _of_type(records, rr.NSEC)
            if nsec is not None:
                if (owner, nsec) not in self.response.authority:
                    self._add(self.response.authority, owner, nsec, records)
                    self.response.depends += (owner,)
                return

    def _up_to(self, view: ZoneView, name: bytes) -> Iterator[tuple[bytes, Records]]:
        """A name's records, and those of the names in front of it, backwards, as far as an NSEC record may be."""
        if not _of_type(self._read(view, view.origin), rr.NSEC):
            return
        yield name, self._read(view, name) or ()
        key = name_key(view.prefix, name, view.origin)
        for _ in range(_FARTHEST):
            entry = self._store.before(key)
            if entry is None or not entry[0].startswith(view.prefix):
                return
            key, value = entry
            yield key_name(key, view.origin), decode_rrsets(value)

    def _add(
        self, section: list[tuple[bytes, RRset]], owner: bytes, rrset: RRset | None, records: Records | None
    ) -> None:
        """Add an RRset, with the signatures that are among the records of its name if they are wanted."""
        assert rrset is not None
        section.append((owner, rrset))
        signatures = _of_type(records, rr.RRSIG) if self._signed and rrset.type != rr.RRSIG else None
        if signatures is not None:
            covering = struct.pack("!H", rrset.type)
            rdatas = tuple(rdata for rdata in signatures.rdatas if rdata.startswith(covering))
            if rdatas:
                section.append((owner, RRset(rr.RRSIG, rrset.ttl, rdatas)))


def _path(origin: bytes, name: bytes) -> Iterator[bytes]:
    """The names between an apex and a name below it, the name included, from the top."""
    steps = []
    while len(name) > len(origin):
        steps.append(name)
        name = names.parent(name)
    yield from reversed(steps)


def _of_type(found: Records | None, rtype: int) -> RRset | None:
    for rrset in found or ():
        if rrset.type == rtype:
            return rrset
    return None
