"""What a source of zones is called in the store, and what it keeps beside its own zones."""

from __future__ import annotations

EXTERNAL = "external"
"""Zones for clients outside of the cluster (`k8s_external`)."""
CLIENTS = "clients"
"""The index of clients (`kdns.zone.clients`)."""


def beside(source: str, what: str) -> str:
    """What the zones are kept under that a source has beside its own. what: EXTERNAL or CLIENTS."""
    return f"{source}/{what}"


def whose(source: str) -> str:
    """The source to which that belongs; a source's own name is its own."""
    return source.partition("/")[0]


def what(source: str) -> str:
    """EXTERNAL or CLIENTS for what a source has beside its own zones; "" for those."""
    return source.partition("/")[2]
