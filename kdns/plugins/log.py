"""log: a line for each query.

## Name

*log* - writes queries and what was answered to standard output.

## Description

Each query of the server block that one of the directives selects gives one line that starts with `[INFO] `. The first
directive whose name covers the question decides.

## Syntax

```
log [NAMES...] [FORMAT] {
    class CLASSES...
}
```

* **NAMES**: only questions for these names and what is below them; default `.`.
* **FORMAT**: the last argument, if it has a `{`; default `{common}`.
* `class` **CLASSES...**: only answers of these classes. `success`: with records. `denial`: NXDOMAIN, or no records of
  that type. `error`: all other response codes. `all` (the default). It may be repeated.

In a format these are replaced; everything else is written as it is:

* `{type}`, `{name}`, `{class}`: of the question, the name in lower case
* `{proto}`: udp or tcp; `{remote}`, `{port}`: the client's address (IPv6 in brackets) and port; `{local}`: ours
* `{size}`, `{rsize}`: bytes of the query and of the response
* `{duration}`: from query to response, in seconds with an `s` behind
* `{rcode}`: the response code, `-` if no response is sent
* `{>rflags}`: the flags of the response, as in `qr,aa,rd`, or `-` likewise
* `{>id}`, `{>opcode}`: of the query; `{>do}`: true or false; `{>bufsize}`: the UDP size that the client offers
* `{/log/class}`: the class as above; `{/log/type}`: NOERROR, NODATA, NXDOMAIN, DELEGATION, SERVERERROR, OTHERERROR,
  META or UPDATE
* `{/LABEL}`: a value that *metadata* knows, such as `{/kubernetes/namespace}`; `-` if there is none. What is known only
  of a query that had to wait for its answer, as `{/forward/upstream}`, others do not have.
* `{common}`: `{remote}:{port} - {>id} "{type} {class} {name} {proto} {size} {>do} {>bufsize}" {rcode} {>rflags}
  {rsize} {duration}`
* `{combined}`: `{common}` and ` "{>opcode}"`

## Metrics

None of its own.

## Examples

```corefile
.:53 {
    log
    whoami
}
```

Only what is denied or fails below example.org, in a format of one's own, and everything elsewhere:

```corefile
.:53 {
    log example.org "{remote} asked {name} {type}: {rcode}" {
        class denial error
    }
    log . {combined}
    whoami
}
```

## Differences from CoreDNS

`{rsize}` is the size of the response as it is sent. A single argument with a `{` is a format; CoreDNS takes it for a
name. `{/log/class}` and `{/log/type}` need no *metadata*. Where a plugin failed there is the SERVFAIL that the client
gets, with its flags and its size; CoreDNS writes `-` and 0.

## See also

*errors*, *metadata*.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.errors import FormatError, Mistake
from kdns.wire import message, names, rr
from kdns.wire.message import Metadata

NAME = "log"
CLASSES = ("all", "success", "denial", "error")
COMMON = (
    '{remote}:{port} - {>id} "{type} {class} {name} {proto} {size} {>do} {>bufsize}" '
    "{rcode} {>rflags} {rsize} {duration}"
)
COMBINED = COMMON + ' "{>opcode}"'
_PLACEHOLDER = re.compile(
    r"\{(type|name|class|proto|size|remote|port|local|>id|>opcode|>do|>bufsize|rcode|rsize|duration|>rflags"
    r"|/[^{}/]+/[^{}]+)\}"
)
_FLAGS = (
    (0x8000, "qr"), (0x400, "aa"), (0x200, "tc"), (0x100, "rd"), (0x80, "ra"), (0x40, "z"), (0x20, "ad"), (0x10, "cd"),
)  # fmt: skip
_NOTIFY, _UPDATE = 4, 5
_FIXED = struct.Struct("!HHIH")
EVERYTHING = frozenset(("all",))


@dataclass(frozen=True, slots=True)
class Rule:
    """One name of one directive. zone: lower case with its last dot. classes: of CLASSES."""

    zone: str = "."
    format: str = COMMON
    classes: frozenset[str] = EVERYTHING


@dataclass(frozen=True, slots=True)
class Options:
    """The rules, in the order written; the first that covers a name decides."""

    rules: tuple[Rule, ...] = field(default=(Rule(),))


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    args = list(directive.args)
    line = COMMON
    if args and "{" in args[-1].text:
        token = args.pop()
        line = token.text.replace("{common}", COMMON).replace("{combined}", COMBINED)
    zones = list(reader.zones(args)) or ["."]
    classes: set[str] = set()

    def read_class(item: Directive) -> None:
        for token in reader.arguments(item, 1, None, f"class {'|'.join(CLASSES)}..."):
            classes.add(reader.value(token, lambda text: values.choice(text, CLASSES)) or "all")

    reader.options({"class": read_class}, repeatable=("class",))
    chosen = frozenset(classes) or EVERYTHING
    return Options(tuple(Rule(zone, line, chosen) for zone in zones)) if reader.sound else None


def merge(found: Sequence[Options]) -> Options:
    """Several directives of one server block as one."""
    return Options(tuple(rule for options in found for rule in options.rules))


class Logger:
    """Turns a finished query into its line."""

    def __init__(self, options: Options, known: Callable[[bytes, str], Metadata] | None = None) -> None:
        """known: what is known of a query for a name (lower case) of a client (`metadata`)."""
        self._known = known
        self._rules: list[tuple[bytes, frozenset[str], list[str]]] = []
        for rule in options.rules:
            # Literals at even places, the names of placeholders at odd ones.
            self._rules.append((names.from_text(rule.zone), rule.classes, _PLACEHOLDER.split(rule.format)))

    def line(
        self,
        query: bytes,
        response: bytes,
        client: tuple[str, int],
        local: tuple[str, int],
        proto: str,
        seconds: float,
        known: Metadata | None = None,
    ) -> str | None:
        """The whole line without its line end, `[INFO] ` in front; None if no rule wants it.

        query, response: the messages as received and sent, the response empty if there was none. proto: "udp" or
        "tcp". seconds: from one to the other. known: the query's metadata, if it was kept. None also for a query that
        cannot be read.
        """
        try:
            asked = message.parse(query, proto, client, local, message.MAX_MESSAGE)
        except (FormatError, struct.error):
            return None
        rule = next((rule for rule in self._rules if names.is_subdomain(asked.lname, rule[0])), None)
        if rule is None:
            return None
        _, classes, parts = rule
        kind = response_type(asked.type, response)
        answer_class = _CLASS_OF.get(kind, "error")
        if "all" not in classes and answer_class not in classes:
            return None
        if known is None and self._known is not None:
            known = self._known(asked.lname, client[0])
        facts = _Facts(asked, response, seconds, kind, answer_class, known)
        return "[INFO] " + "".join(facts.text(part) if index % 2 else part for index, part in enumerate(parts))


@dataclass(frozen=True, slots=True)
class _Facts:
    """What placeholders stand for."""

    query: message.Query
    response: bytes
    seconds: float
    kind: str
    answer_class: str
    known: Metadata | None

    def text(self, placeholder: str) -> str:
        value = _VALUES.get(placeholder)
        if value is not None:
            return value(self)
        return (self.known.value(placeholder[1:]) if self.known is not None else "") or "-"

    def bufsize(self) -> int:
        if self.query.proto == "tcp":
            return message.MAX_MESSAGE
        return max(message.MIN_UDP, self.query.edns.payload) if self.query.edns else message.MIN_UDP


_VALUES: dict[str, Callable[[_Facts], str]] = {
    "type": lambda facts: rr.type_text(facts.query.type),
    "name": lambda facts: names.to_text(facts.query.lname),
    "class": lambda facts: rr.class_text(facts.query.klass),
    "proto": lambda facts: facts.query.proto,
    "size": lambda facts: str(len(facts.query.data)),
    "remote": lambda facts: _host(facts.query.client[0]),
    "port": lambda facts: str(facts.query.client[1]),
    "local": lambda facts: _host(facts.query.local[0]),
    ">id": lambda facts: str(facts.query.id),
    ">opcode": lambda facts: str((facts.query.flags & message.OPCODE) >> 11),
    ">do": lambda facts: "true" if facts.query.edns and facts.query.edns.do else "false",
    ">bufsize": lambda facts: str(facts.bufsize()),
    "rcode": lambda facts: rr.rcode_text(response_code(facts.response)) if facts.response else "-",
    "rsize": lambda facts: str(len(facts.response)),
    "duration": lambda facts: _seconds(facts.seconds),
    ">rflags": lambda facts: _flags(facts.response) if facts.response else "-",
    "/log/class": lambda facts: facts.answer_class,
    "/log/type": lambda facts: facts.kind,
}
_CLASS_OF = {"NOERROR": "success", "DELEGATION": "success", "NXDOMAIN": "denial", "NODATA": "denial"}


def response_type(asked: int, response: bytes) -> str:
    """NOERROR, NODATA, NXDOMAIN, DELEGATION, SERVERERROR, OTHERERROR, META (NOTIFY, transfers) or UPDATE.

    asked: the question's type. NODATA is a NOERROR with an SOA but no answer (RFC 2308 2.2), DELEGATION one with NS
    records alone. OTHERERROR without a response, as in CoreDNS.
    """
    if not response:
        return "OTHERERROR"
    _, flags, _, answers, authorities, _ = message.HEADER.unpack_from(response)
    opcode = (flags & message.OPCODE) >> 11
    if opcode in (_NOTIFY, _UPDATE):
        return "META" if opcode == _NOTIFY else "UPDATE"
    if asked in (rr.AXFR, rr.IXFR):
        return "META"
    rcode = response_code(response)
    if answers:
        return {rr.NOERROR: "NOERROR", rr.SERVFAIL: "SERVERERROR", rr.NOTIMP: "SERVERERROR"}.get(rcode, "OTHERERROR")
    if rcode == rr.NOERROR:
        types = _types(response)[:authorities]
        if rr.SOA in types:
            return "NODATA"
        return "DELEGATION" if rr.NS in types else "NOERROR"
    return {rr.NXDOMAIN: "NXDOMAIN", rr.SERVFAIL: "SERVERERROR", rr.NOTIMP: "SERVERERROR"}.get(rcode, "OTHERERROR")


def response_code(response: bytes) -> int:
    """The response code, with the upper bits that an OPT has (RFC 6891 6.1.3)."""
    _, flags, *_, additionals = message.HEADER.unpack_from(response)
    code: int = flags & 0xF
    if additionals:
        for rtype, _, ttl in reversed(_records(response)):
            if rtype == rr.OPT:
                code |= ttl >> 24 << 4
    return code


def _types(response: bytes) -> list[int]:
    return [rtype for rtype, _, _ in _records(response)]


def _records(response: bytes) -> list[tuple[int, int, int]]:
    """Type, class and TTL of each record behind the question, as far as the message can be read."""
    found = []
    _, _, questions, *counts = message.HEADER.unpack_from(response)
    at = message.QUESTION_AT
    try:
        if questions:
            at = message.question_end(response)
        for _ in range(sum(counts)):
            while 0 < response[at] < 0xC0:
                at += 1 + response[at]
            at += 2 if response[at] else 1
            rtype, klass, ttl, size = _FIXED.unpack_from(response, at)
            found.append((rtype, klass, ttl))
            at += _FIXED.size + size
    except (FormatError, IndexError, struct.error):
        return found
    return found


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _seconds(seconds: float) -> str:
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def _flags(response: bytes) -> str:
    flags = message.HEADER.unpack_from(response)[1]
    return ",".join(text for bit, text in _FLAGS if flags & bit)
