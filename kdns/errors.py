"""Every exception that kdns raises on purpose."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

API_REASONS = (
    "configuration", "connection", "tls", "silent", "closed", "unauthorized", "forbidden", "not_found", "throttled",
    "server", "expired", "malformed", "too_large", "error_event", "unsupported", "internal",
)  # fmt: skip


class KdnsError(Exception):
    """Base of all errors whose text is meant for the person at the terminal."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong in a configuration file: what was found, where, and what would be accepted."""

    file: str
    line: int
    message: str
    accepted: str = ""

    def __str__(self) -> str:
        text = f"{self.file}:{self.line}: {self.message}"
        return f"{text}; accepted: {self.accepted}" if self.accepted else text


class ConfigError(KdnsError):
    """A configuration that cannot be used.

    mistakes: all that is wrong with it, in the order of the file.
    """

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


class ConfigValueError(KdnsError):
    """A word of a configuration file that does not say what it should.

    accepted: what would be.
    """

    def __init__(self, message: str, accepted: str) -> None:
        self.message = message
        self.accepted = accepted
        super().__init__(f"{message}; accepted: {accepted}")


class DomainNameError(KdnsError):
    """Text or bytes that are not a domain name (RFC 1035 2.3.4, 3.1)."""


class TemplateError(KdnsError):
    """A template makes nothing of a query; the text says why."""


class UpstreamError(KdnsError):
    """An upstream gave no usable answer; the text says why, without naming it."""


class ConnectionLostError(UpstreamError):
    """The connection ended while a query was on it, which says little about the upstream: it may be asked again."""


class FormatError(KdnsError):
    """A message that breaks RFC 1035's format; the answer is FORMERR."""


class StoreError(KdnsError):
    """The zone store cannot be opened or written."""


class ApiError(KdnsError):
    """The Kubernetes API server could not be asked, or its answer cannot be used.

    reason: one of API_REASONS, for metrics and for whoever reacts to it.
    """

    def __init__(self, message: str, reason: str) -> None:
        self.reason = reason
        super().__init__(message)


class NodeError(KdnsError):
    """Something that brings queries to a node's sockets was refused; the text says what and why."""
