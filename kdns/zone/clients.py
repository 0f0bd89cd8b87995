"""Which namespace a client is in, by its address: an index beside the zones, which `autopath` reads at each query.

It is kept as a zone is, but never served. Its origin is the root; a pod's address is a name of one label, in
hexadecimal, with a TXT record for each namespace that has running pods at that address. Those on their node's network
share one.
"""

from __future__ import annotations

from typing import Protocol

from kdns.wire import names, rr
from kdns.wire.rrset import RRset
from kdns.zone.lookup import ZoneView
from kdns.zone.reader import Reader
from kdns.zone.values import Records

ORIGIN = names.ROOT


class Namespaces(Protocol):
    """Knows the namespaces of clients."""

    def of(self, address: str) -> str | None:
        """The namespace of the pod that has an address; None if there is none, or if it cannot be told which."""
        ...


def name_of(address: str) -> bytes | None:
    """The name that an address has in the index, as text; None for what is no address."""
    try:
        return owner(rr.address(address.partition("%")[0]))
    except (OSError, ValueError):
        return None


def owner(rdata: bytes) -> bytes:
    """The name that an address (4 or 16 bytes) has in the index."""
    return names.join([rdata.hex().encode()])


def entry(namespaces: set[str]) -> Records:
    """What the index has at an address."""
    return (RRset(rr.TXT, 0, tuple(rr.txt(namespace.encode()) for namespace in sorted(namespaces))),)


def namespaces(rrsets: Records | None) -> set[str]:
    """The namespaces in an entry."""
    return {rdata[1:].decode() for rrset in rrsets or () for rdata in rrset.rdatas}


class Nobody:
    """Knows none: there is no store."""

    def of(self, address: str) -> str | None:
        """See Namespaces."""
        return None


class StoredNamespaces:
    """Reads the index in the store. view: of its zone."""

    def __init__(self, view: ZoneView, store: Reader) -> None:
        self._view = view
        self._store = store

    def of(self, address: str) -> str | None:
        """See Namespaces."""
        name = name_of(address)
        if name is None:
            return None
        with self._store as store:
            found = namespaces(self._view.find(store, name))
        return found.pop() if len(found) == 1 else None
