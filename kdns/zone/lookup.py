"""Authoritative look-up in the store (RFC 1034 4.3.2), as far as one name goes."""

from __future__ import annotations

from kdns.wire import rr
from kdns.wire.rrset import RRset
from kdns.zone.keys import name_key, zone_prefix
from kdns.zone.reader import Reader
from kdns.zone.store import SYNCED, UNSYNCED
from kdns.zone.values import Records, decode_rrsets


class ZoneView:
    """A zone as readers see it, with its SOA at hand.

    number, origin: as in the store. soa: the SOA RRset, None as long as the zone has no apex. state: see `store.Zone`.
    """

    __slots__ = ("_generation", "number", "origin", "prefix", "soa", "state")

    def __init__(self, number: int, origin: bytes) -> None:
        self.number = number
        self.origin = origin
        self.prefix = zone_prefix(number)
        self.soa: RRset | None = None
        self.state = UNSYNCED
        self._generation = -1

    def refresh(self, reader: Reader) -> None:
        """Read state and SOA again if anything in the store has changed. The reader is entered."""
        if reader.generation == self._generation:
            return
        zone = reader.zone(self.number)
        self.state = UNSYNCED if zone is None else zone.state
        apex = decode_rrsets(reader.find(self.prefix) or b"", rr.SOA)
        self.soa = apex[0] if apex else None
        self._generation = reader.generation

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
