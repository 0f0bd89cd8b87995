"""Following a zone on a TCP connection: an EDNS option by which one kdns keeps its copy of another's zones up to date.

A follower sends it with AXFR and IXFR over TCP (or TLS). Its data is the lineage that the follower's copy is of: 8
bytes, or none if it has no copy, or one of a server that knows of no lineages. The answer's first message has it too,
with the lineage of the zone store that the zone's serials were made in: who gives a copy on gives its lineage on, too,
if it has one. Serials mean something within one lineage only: whoever has a copy of another one gets the whole zone,
whatever its serial is.

Behind a lineage there may be the revision of the data, 8 bytes more: the resourceVersion that the server has reached,
which means the same in all lineages of one cluster. A follower whose copy is of another lineage and of a later revision
gets SERVFAIL, with this server's own: it is behind the one that was followed, and has nothing that is new there.

From that answer on, for as long as the connection is open, the server sends NOTIFYs (RFC 1996) for the zone on that
connection when the zone has another serial than it sent last: one, until the follower has asked for the zone again. The
follower answers them and asks (IXFR) on the same connection; it need not ask for the SOA record.

Servers that do not know the option ignore it (RFC 6891 6.1.2), and are asked as RFC 1034 4.3.5 and RFC 1996 say.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

OPTION = 65053
"""Its code: one of those for local use (RFC 6891 9)."""
LINEAGE = 8
"""Bytes of a lineage, which are random."""
_REVISION = struct.Struct("!Q")


def lineage(options: Mapping[int, bytes]) -> bytes | None:
    """The lineage among EDNS options; empty for none, None without the option or if it is no lineage."""
    found = options.get(OPTION)
    return found[:LINEAGE] if found is not None and len(found) in (0, LINEAGE, LINEAGE + _REVISION.size) else None


def revision(options: Mapping[int, bytes]) -> int:
    """The revision among EDNS options; 0 without any."""
    found = options.get(OPTION, b"")
    return int.from_bytes(found[LINEAGE:]) if len(found) == LINEAGE + _REVISION.size else 0


def mark(lineage: bytes, revision: int) -> bytes:
    """The option's data."""
    return lineage + _REVISION.pack(revision) if lineage and revision else lineage
