"""rdata as a master file has it."""

from __future__ import annotations

from dnslib import RDMAP, DNSBuffer, DNSError

from kdns.wire import rr


def rdata_text(rtype: int, rdata: bytes) -> str:
    """In the type's own form (RFC 1035 5.1); where dnslib does not know the type, or cannot read this, as RFC 3597."""
    known = RDMAP.get(rr.type_text(rtype))
    if known is not None:
        try:
            return str(known.parse(DNSBuffer(rdata), len(rdata)).toZone())
        except (DNSError, ValueError):
            pass
    return f"\\# {len(rdata)} {rdata.hex()}"
