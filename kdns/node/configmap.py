"""The kube-dns ConfigMap as a volume shows it: a directory with a file for each key.

Two keys matter on a node (https://kubernetes.io/docs/tasks/administer-cluster/dns-custom-nameservers/):

* `stubDomains`, a JSON object: domain to a list of its nameservers, `{"acme.local": ["10.0.0.5", "10.0.0.6:5353"]}`;
* `upstreamNameservers`, a JSON array of up to three nameservers, `["10.0.0.1"]`.

A nameserver is an IP address with or without a port. `federations` and other keys have no meaning for a node's cache.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kdns.corefile import values
from kdns.corefile.values import shown
from kdns.errors import ConfigError, ConfigValueError, Mistake

STUB_DOMAINS = "stubDomains"
UPSTREAMS = "upstreamNameservers"
MAX_UPSTREAMS = 3

_NAMESERVER = "an IP address, or IP:PORT"
_TRIES = 5
# A DNS subdomain as Kubernetes checks it (RFC 1123): lower case, no last dot.
_DOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*", re.ASCII)
_MAX_DOMAIN = 253
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StubDomain:
    """A domain with nameservers of its own. line: where it stands in its file."""

    name: str
    nameservers: tuple[str, ...]
    line: int


@dataclass(frozen=True, slots=True)
class KubeDns:
    """What the ConfigMap says; nothing, without one. folder: where it was read, for messages."""

    folder: str = ""
    stub_domains: tuple[StubDomain, ...] = ()
    upstreams: tuple[str, ...] = ()


def read(folder: Path) -> KubeDns:
    """The ConfigMap in a directory. A key without a file says nothing. Raises ConfigError with every mistake."""
    if not folder.is_dir():
        raise ConfigError([Mistake(str(folder), 1, "is not a directory", "where the kube-dns ConfigMap is mounted")])
    mistakes: list[Mistake] = []
    texts = _texts(folder, mistakes)
    stubs = _read(_stub_domains, folder / STUB_DOMAINS, texts.get(STUB_DOMAINS), mistakes)
    upstreams = _read(_upstreams, folder / UPSTREAMS, texts.get(UPSTREAMS), mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    return KubeDns(str(folder), stubs or (), upstreams or ())


def _texts(folder: Path, mistakes: list[Mistake]) -> dict[str, str]:
    """The keys that there are.

    Kubelet changes a volume by pointing its link `..data` to another directory: keys are read again when that happened
    in between, so that they belong together.
    """
    for _ in range(_TRIES):
        before = _version(folder)
        found = {key: _text(folder / key, mistakes) for key in (STUB_DOMAINS, UPSTREAMS)}
        if _version(folder) == before:
            break
        mistakes.clear()
    return {key: text for key, text in found.items() if text is not None}


def _version(folder: Path) -> str | None:
    link = folder / "..data"
    try:
        return str(link.readlink())
    except OSError:
        return None


def _text(path: Path, mistakes: list[Mistake]) -> str | None:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except OSError as error:
        mistakes.append(Mistake(str(path), 1, f"cannot be read: {error.strerror}", "a readable file"))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        mistakes.append(Mistake(str(path), line, f"byte 0x{error.object[error.start]:02x} is not UTF-8", "UTF-8"))
    return None


def _read(
    convert: Callable[[Any, str], tuple[T, ...]], path: Path, text: str | None, mistakes: list[Mistake]
) -> tuple[T, ...] | None:
    """A key's value; None if there is none, or after a mistake."""
    if text is None:
        return None
    try:
        return convert(json.loads(text), text)
    except json.JSONDecodeError as error:
        mistakes.append(Mistake(str(path), error.lineno, f"is not JSON: {error.msg}", "JSON"))
    except RecursionError:
        mistakes.append(Mistake(str(path), 1, "is not JSON of a sensible depth", "JSON"))
    except ConfigValueError as error:
        mistakes.append(Mistake(str(path), 1, error.message, error.accepted))
    except ValueError as error:  # an integer with more digits than Python reads
        mistakes.append(Mistake(str(path), 1, f"is not JSON that can be read: {error}", "JSON"))
    return None


def _stub_domains(value: Any, text: str) -> tuple[StubDomain, ...]:
    accepted = 'a JSON object such as {"acme.local": ["10.0.0.5"]}'
    if not isinstance(value, dict | None):
        raise ConfigValueError(f"is {_kind(value)}", accepted)
    found = []
    lines = _lines(text)
    for name, servers in sorted((value or {}).items()):
        if not _DOMAIN.fullmatch(name) or len(name) > _MAX_DOMAIN:
            raise ConfigValueError(f"{shown(name)} is not a domain name in lower case", "a domain such as acme.local")
        if not isinstance(servers, list) or not servers:
            raise ConfigValueError(f"{shown(name)} has no nameservers", accepted)
        found.append(StubDomain(name, tuple(_nameserver(server) for server in servers), lines.get(name, 1)))
    return tuple(found)


def _lines(text: str) -> dict[str, int]:
    """The line in which each string of a JSON text is first, as it is written there."""
    found: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        for string in _STRING.findall(line):
            found.setdefault(string, number)
    return found


def _upstreams(value: Any, _text: str) -> tuple[str, ...]:
    accepted = f"a JSON array of at most {MAX_UPSTREAMS} nameservers"
    if not isinstance(value, list | None):
        raise ConfigValueError(f"is {_kind(value)}", accepted)
    if value and len(value) > MAX_UPSTREAMS:
        raise ConfigValueError(f"has {len(value)} nameservers", accepted)
    return tuple(_nameserver(server) for server in value or ())


def _nameserver(value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigValueError(f"a nameserver is {_kind(value)}", _NAMESERVER)
    if "%" not in value and values.ip_address(value) is not None:
        return value
    try:
        address = values.host_port(value)
    except ConfigValueError:
        address = values.Address("", 0)
    if "%" in value or not address.port or values.ip_address(address.host) is None:
        raise ConfigValueError(f"{shown(value)} is not a nameserver", _NAMESERVER)
    return value


def _kind(value: Any) -> str:
    """What JSON calls a value."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
