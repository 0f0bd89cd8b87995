"""Authoritative look-up in the store (RFC 1034 4.3.2), as far as one name goes."""

from __future__ import annotations

from msgspec import structs

from kdns.wire import rr
from kdns.wire.rrset import RRset
from kdns.zone.keys import name_key, zone_prefix
from kdns.zone.reader import Reader
from kdns.zone.store import SYNCED, UNSYNCED
from kdns.zone.values import Records, decode_rrsets


class ZoneView:
    """A zone as readers see it, with its SOA at hand.

    number, origin: as in the store. soa: the SOA RRset, None as long as the zone has no apex. state, plain: see
    `store.Zone`.
    """

    __slots__ = ("_commit", "number", "origin", "plain", "prefix", "soa", "state")

    def __init__(self, number: int, origin: bytes) -> None:
        self.number = number
        self.origin = origin
        self.prefix = zone_prefix(number)
        self.soa: RRset | None = None
        self.state = UNSYNCED
        self.plain = False
        self._commit = -1

    def refresh(self, reader: Reader) -> None:
        """Read what may change again if anything was written since. The reader is entered."""
        if reader.commit == self._commit:
            return
        zone = reader.zone(self.number)
        if zone is None or zone.origin != self.origin:
            self.state, self.plain = UNSYNCED, False
        else:
            self.state, self.plain = zone.state, zone.plain
        apex = decode_rrsets(reader.find(self.prefix) or b"", rr.SOA)
        self.soa = apex[0] if apex else None
        self._commit = reader.commit

    @property
    def synced(self) -> bool:
        """True if a name that is not in the zone does not exist."""
        return self.state == SYNCED

    def find(self, reader: Reader, name: bytes, wanted: int = rr.ANY) -> Records | None:
        """RRsets of a name of the zone, all or those of one type; none for a name that only exists; None if not."""
        value = reader.find(name_key(self.prefix, name, self.origin))
        return None if value is None else decode_rrsets(value, wanted)

    def exists(self, reader: Reader, name: bytes) -> bool:
        """True if the name has an entry or is above one."""
        return reader.find(name_key(self.prefix, name, self.origin)) is not None


def denying(soa: RRset) -> RRset:
    """A zone's SOA RRset as negative answers have it (RFC 2308 3)."""
    minimum = int.from_bytes(soa.rdatas[0][-4:], "big")
    return soa if soa.ttl <= minimum else structs.replace(soa, ttl=minimum)
