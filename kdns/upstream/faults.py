"""What goes wrong with an upstream."""

from __future__ import annotations

from kdns.errors import KdnsError


class UpstreamError(KdnsError):
    """An upstream gave no usable answer; the text says why, without naming it."""


class ConnectionLostError(UpstreamError):
    """The connection ended while a query was on it, which says little about the upstream: it may be asked again."""
