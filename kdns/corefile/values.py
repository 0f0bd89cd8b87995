"""Values in a Corefile: durations, addresses, numbers, zones, label selectors, regular expressions.

Each function takes the word as written and raises ConfigValueError for one that it cannot take.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from kdns.errors import ConfigValueError

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?P<sign>[-+]?)(?P<parts>(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+)", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_MAX_SECONDS = 2**63 / 1e9
_MAX_WORD = 100
_MAX_REGEX = 10000
_REGEX_MEMORY = 1 << 20
_ZONE_CHARS = re.compile(r"[-\w./*+=]+", re.ASCII)
_CIDR = re.compile(r"([0-9a-fA-F:.]+)/(\d{1,3})", re.ASCII)


def shown(text: str) -> str:
    """A word as messages quote it: escaped, and cut if it is very long."""
    cut = text if len(text) <= _MAX_WORD else text[:_MAX_WORD] + "..."
    printable = "".join(char if char.isprintable() else repr(char)[1:-1] for char in cut)
    return f'"{printable}"'


def choices(found: str, known: Iterable[str]) -> str:
    """The known words, sorted; led by the one that looks like the word that was found, if one does."""
    words = sorted(known)
    near = difflib.get_close_matches(found[:_MAX_WORD].lower(), words, n=1, cutoff=0.6)
    listed = ", ".join(words)
    return f'"{near[0]}" is near; {listed}' if near else listed


def choice(text: str, known: Collection[str]) -> str:
    """One of a few words."""
    if text not in known:
        raise ConfigValueError(f"{shown(text)} is not known", choices(text, known))
    return text


def duration(text: str, minimum: float = 0.0) -> float:
    """A duration as Go writes it (`300ms`, `1h30m`, `1.5s`, `0`), in seconds.

    minimum: the least that is accepted, in seconds.
    """
    accepted = "a duration such as 500ms, 30s, 1m30s or 2h"
    if text in ("0", "+0", "-0"):
        seconds = 0.0
    else:
        match = _DURATION.fullmatch(text)
        if match is None:
            raise ConfigValueError(f"{shown(text)} is not a duration", accepted)
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(match["parts"]))
        seconds = -seconds if match["sign"] == "-" else seconds
    if seconds < minimum:
        raise ConfigValueError(f"{shown(text)} is too short", f"at least {minimum:g}s")
    if seconds > _MAX_SECONDS:
        raise ConfigValueError(f"{shown(text)} is too long", "at most 2562047h")
    return seconds


def integer(text: str, low: int, high: int) -> int:
    """A whole number from low to high."""
    number = int(text) if re.fullmatch(r"[-+]?\d{1,18}", text, re.ASCII) else None
    if number is None or not low <= number <= high:
        problem = "is not a whole number" if number is None else "is out of range"
        raise ConfigValueError(f"{shown(text)} {problem}", f"{low} to {high}")
    return number


@dataclass(frozen=True, slots=True)
class Address:
    """A host, empty for every address of the machine, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def number(text: str, accepted: str) -> float:
    """A number that is 0 or more, such as 5 or 0.5. accepted: for the message."""
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII):
        raise ConfigValueError(f"{shown(text)} is not a number that is 0 or more", accepted)
    return float(text)


def url(text: str, scheme: str) -> str:
    """The address of an HTTP server, `https://host[:port][/path]` or `http://...`. scheme: what it is without one."""
    accepted = "a URL such as https://10.0.0.1:6443"
    try:
        parts = urlsplit(text if "://" in text else f"{scheme}://{text}")
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or not text.isprintable() or " " in text or parts.query or parts.fragment or parts.username:
        raise ConfigValueError(f"{shown(text)} is not the URL of a server", accepted)
    return parts.geturl().rstrip("/")


def host_port(text: str) -> Address:
    """`host:port`, `:port` or `[ipv6]:port`. The host is a name or an address."""
    accepted = "HOST:PORT, :PORT or [IPV6]:PORT"
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+(?:%[^\]\s]+)?)\]|([^\[\]:\s/]{0,253})):(\d{1,5})", text, re.ASCII)
    if match is None:
        raise ConfigValueError(f"{shown(text)} is not an address with a port", accepted)
    if match[1] is not None and ip_address(match[1]) is None:
        raise ConfigValueError(f"{shown(match[1])} is not an IPv6 address", accepted)
    return Address(match[1] or match[2] or "", integer(match[3], 0, 65535))


def ip_address(text: str) -> str | None:
    """An IP address in its shortest form, or None if it is none."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def zone(text: str) -> str:
    """A domain name in lower case with its last dot: `cluster.local` becomes `cluster.local.`."""
    accepted = "a domain name such as cluster.local, or . for all names"
    if text == ".":
        return text
    bare = text.removesuffix(".")
    if not bare.isascii():
        raise ConfigValueError(f"zone {shown(text)} has letters beyond ASCII", "its xn-- form")
    if not _ZONE_CHARS.fullmatch(bare):
        raise ConfigValueError(f"{shown(text)} is not a zone", accepted)
    if len(bare) > 253 or not all(0 < len(label) <= 63 for label in bare.split(".")):
        raise ConfigValueError(
            f"zone {shown(text)} has an empty label, or is too long", "labels of 1 to 63 bytes, together at most 253"
        )
    return bare.lower() + "."


def zones(text: str) -> tuple[str, ...]:
    """A zone, or the reverse zones of a network in CIDR notation.

    A prefix that ends within an octet (for IPv6, within four bits) gives one zone for each value of that octet that
    it covers, as in CoreDNS: 10.0.0.0/14 gives 0.10 to 3.10.in-addr.arpa, 10.0.0.0/25 gives 128 zones of one address.
    """
    match = _CIDR.fullmatch(text)
    if match is None:
        return (zone(text),)
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        # RFC 2317 names such as 0/25.2.0.192.in-addr.arpa do not get here: they have letters.
        raise ConfigValueError(
            f"{shown(text)} is not a network in CIDR notation", "such as 10.0.0.0/16 or 2001:db8::/32"
        ) from None
    step, suffix = (8, "in-addr.arpa.") if network.version == 4 else (4, "ip6.arpa.")
    prefix = -(-network.prefixlen // step) * step
    parts = prefix // step
    found = []
    for subnet in network.subnets(new_prefix=prefix):
        labels = subnet.network_address.reverse_pointer.split(".")[:-2]
        found.append(".".join([*labels[len(labels) - parts :], suffix]))
    return tuple(found)


def network(text: str) -> str:
    """A network in CIDR notation, or one address: 10.1.2.3/8 becomes 10.0.0.0/8, 192.0.2.1 becomes 192.0.2.1/32."""
    try:
        if "/" not in text or _CIDR.fullmatch(text):
            return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        pass
    raise ConfigValueError(f"{shown(text)} is neither a network nor an address", "such as 10.0.0.0/8 or 2001:db8::1")


def is_reverse(name: str) -> bool:
    """True for a zone of addresses: in-addr.arpa, ip6.arpa and what is below them."""
    return f".{name}".endswith((".in-addr.arpa.", ".ip6.arpa."))


def is_namespace(text: str) -> bool:
    """True for the name of a Kubernetes namespace (RFC 1123 label in lower case)."""
    return re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", text) is not None


class Regex:
    """A regular expression of RE2: what it takes to match one is linear in the text, whatever the text.

    It is pickled as its text. ConfigValueError for one that RE2 does not take.
    """

    __slots__ = ("_compiled", "text")

    def __init__(self, text: str) -> None:
        import re2  # it takes 3 MB, and most servers have no use for it

        options = re2.Options()
        options.log_errors = False
        options.max_mem = _REGEX_MEMORY
        try:
            self._compiled: Any = re2.compile(text.encode(), options)
        except (re2.error, UnicodeEncodeError) as error:
            reason = error.args[0]
            problem = reason.decode(errors="replace") if isinstance(reason, bytes) else "it is not UTF-8"
            raise ConfigValueError(
                f"{shown(text)} is no expression: {problem}", "a regular expression of RE2, such as ^failed.*timeout$"
            ) from None
        self.text = text

    def matches(self, text: str) -> bool:
        """Whether it matches anywhere in a text."""
        return self._compiled.search(text.encode("utf-8", "replace")) is not None

    def search(self, text: str) -> list[str] | None:
        """What it matches first, and what each of its groups does ("" for one that takes no part); None if it does not
        match."""
        match = self._compiled.search(text.encode("utf-8", "replace"))
        if match is None:
            return None
        return [part.decode("utf-8", "replace") for part in (match.group(), *match.groups(b""))]

    @property
    def groups(self) -> int:
        """How many groups it has."""
        count: int = self._compiled.groups
        return count

    @property
    def names(self) -> Mapping[str, int]:
        """The numbers of those groups that have names."""
        return {name.decode(): number for name, number in self._compiled.groupindex.items()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Regex) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Regex({self.text!r})"

    def __reduce__(self) -> tuple[type[Regex], tuple[str]]:
        return Regex, (self.text,)


def regex(text: str) -> Regex:
    """A regular expression as CoreDNS takes it, of at most 10000 characters."""
    if len(text) > _MAX_REGEX:
        raise ConfigValueError(f"the expression has {len(text)} characters", f"at most {_MAX_REGEX}")
    return Regex(text)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition of a label selector.

    present: the key has to be there (True, and then its value among `values` unless those are empty); or it must not
    be, or not with one of `values` (False).
    """

    key: str
    present: bool
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels meets it."""
        if self.key not in labels:
            return not self.present
        if not self.values:
            return self.present
        return (labels[self.key] in self.values) is self.present

    def __str__(self) -> str:
        if not self.values:
            return self.key if self.present else f"!{self.key}"
        if len(self.values) == 1:
            return f"{self.key}{'=' if self.present else '!='}{next(iter(self.values))}"
        return f"{self.key} {'in' if self.present else 'notin'} ({','.join(sorted(self.values))})"


@dataclass(frozen=True, slots=True)
class Selector:
    """A Kubernetes label selector: all its requirements must be met. Without any, it selects everything."""

    requirements: tuple[Requirement, ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether it selects an object with these labels."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        """As the Kubernetes API takes it in `labelSelector`."""
        return ",".join(map(str, self.requirements))


_SELECTOR_TOKEN = re.compile(r"\s*(?:(==|!=|[=!(),<>])|([^\s=!(),<>]+))")
_LABEL_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", re.ASCII)
_LABEL_PREFIX = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*", re.ASCII)


def selector(text: str) -> Selector:
    """A label selector as `kubectl -l` takes it.

    Requirements parted by commas: `key`, `!key`, `key=value`, `key==value`, `key!=value`, `key in (a, b)`,
    `key notin (a, b)`.
    """
    return _SelectorParser(text).parse()


class _SelectorParser:
    """The selector's tokens and how far they are read; an operator is (True, text), a word (False, text)."""

    def __init__(self, text: str) -> None:
        self.text = text
        found = _SELECTOR_TOKEN.findall(text.strip())
        self.tokens: list[tuple[bool, str]] = [(bool(operator), operator or word) for operator, word in found]
        self.at = 0

    def parse(self) -> Selector:
        requirements = []
        while self.at < len(self.tokens):
            requirements.append(self._requirement())
            if self.at < len(self.tokens):
                self._expect(",")
                if self.at == len(self.tokens):
                    raise self._error("ends with a comma")
        return Selector(tuple(requirements))

    def _requirement(self) -> Requirement:
        if self._take("!"):
            return Requirement(self._key(), False)
        key = self._key()
        operator = self._peek()
        if operator is None or operator == (True, ","):
            return Requirement(key, True)
        self.at += 1
        if operator in ((True, "="), (True, "==")):
            return Requirement(key, True, frozenset((self._value(),)))
        if operator == (True, "!="):
            return Requirement(key, False, frozenset((self._value(),)))
        if operator in ((False, "in"), (False, "notin")):
            return Requirement(key, operator[1] == "in", self._set())
        raise self._error(f"has {shown(operator[1])} where an operator belongs")

    def _set(self) -> frozenset[str]:
        self._expect("(")
        if self._peek() == (True, ")"):
            raise self._error("has an empty set")
        found = {self._value()}
        while self._take(","):
            found.add(self._value())
        self._expect(")")
        return frozenset(found)

    def _key(self) -> str:
        token = self._peek()
        if token is None or token[0]:
            raise self._error(f"has {shown(token[1])} where a label's key belongs" if token else "ends before a key")
        self.at += 1
        prefix, slash, name = token[1].rpartition("/")
        if not _LABEL_NAME.fullmatch(name) or (slash and not (_LABEL_PREFIX.fullmatch(prefix) and len(prefix) <= 253)):
            raise self._error(f"has the key {shown(token[1])}, which no label can have")
        return token[1]

    def _value(self) -> str:
        token = self._peek()
        if token is None or token[0]:
            return ""
        self.at += 1
        if not _LABEL_NAME.fullmatch(token[1]):
            raise self._error(f"has the value {shown(token[1])}, which no label can have")
        return token[1]

    def _peek(self) -> tuple[bool, str] | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def _take(self, operator: str) -> bool:
        found = self._peek() == (True, operator)
        self.at += found
        return found

    def _expect(self, operator: str) -> None:
        if not self._take(operator):
            token = self._peek()
            raise self._error(f"has {shown(token[1])} where {operator} belongs" if token else f"ends before {operator}")

    def _error(self, problem: str) -> ConfigValueError:
        return ConfigValueError(
            f"label selector {shown(self.text)} {problem}",
            "key, !key, key=value, key!=value, key in (a, b), key notin (a, b), parted by commas",
        )
