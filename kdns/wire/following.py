"""Following a zone on a TCP connection: an EDNS option by which one kdns keeps its copy of another's zones up to date.

A follower sends it with AXFR and IXFR over TCP (or TLS). Its data is the lineage that the follower's copy is of: 8
bytes, or none if it has no copy, or one of a server that knows of no lineages. The answer's first message has it too,
with the lineage of the zone store that the zone's serials were made in: who gives a copy on gives its lineage on, too,
if it has one. Serials mean something within one lineage only: whoever has a copy of another one gets the whole zone,
whatever its serial is.

From that answer on, for as long as the connection is open, the server sends NOTIFYs (RFC 1996) for the zone on that
connection when the zone has another serial than it sent last: one, until the follower has asked for the zone again. The
follower answers them and asks (IXFR) on the same connection; it need not ask for the SOA record.

Servers that do not know the option ignore it (RFC 6891 6.1.2), and are asked as RFC 1034 4.3.5 and RFC 1996 say.
"""

from __future__ import annotations

from collections.abc import Mapping

OPTION = 65053
"""Its code: one of those for local use (RFC 6891 9)."""
LINEAGE = 8
"""Bytes of a lineage, which are random."""


def lineage(options: Mapping[int, bytes]) -> bytes | None:
    """The lineage among EDNS options; empty for none, None without the option or if it is no lineage."""
    found = options.get(OPTION)
    return found if found is None or len(found) in (0, LINEAGE) else None
