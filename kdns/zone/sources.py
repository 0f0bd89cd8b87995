"""What a source of zones is called in the store, and what it keeps beside its own zones."""

from __future__ import annotations

EXTERNAL = "external"
"""Zones for clients outside of the cluster (`k8s_external`)."""
CLIENTS = "clients"
"""The index of clients (`kdns.zone.clients`)."""
ZONAL = b"\5_zone"
"""The label below which a Service's zone has what `zonal` looks up. No name there is one that can be asked for: see
`kdns.plugins.kubernetes`."""
_OF_CLUSTER = "kubernetes-"


def beside(source: str, what: str) -> str:
    """What the zones are kept under that a source has beside its own. what: EXTERNAL or CLIENTS."""
    return f"{source}/{what}"


def whose(source: str) -> str:
    """The source to which that belongs; a source's own name is its own."""
    return source.partition("/")[0]


def what(source: str) -> str:
    """EXTERNAL or CLIENTS for what a source has beside its own zones; "" for those."""
    return source.partition("/")[2]


def is_inner(source: str, name: bytes) -> bool:
    """Whether a name (wire format) in a zone of that source is there for look-ups only, and not one of the zone's."""
    return ZONAL in name and source.startswith(_OF_CLUSTER)
