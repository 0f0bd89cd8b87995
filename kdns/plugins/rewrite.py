r"""rewrite: other questions than the client's, and answers that fit them.

## Name

*rewrite* - changes queries on their way to the plugins behind it, and what these answer.

## Description

Each directive is a rule. They are tried in the order in which they are written, and the first one that does something
is the last one, unless it says `continue`. Rules see the query as those before them have left it. The response is
changed in reverse order.

The client sees none of this: the question comes back to it as it was asked. The name that is asked for in the end
decides which zone of the server block answers; it does not lead to another server block.

## Syntax

```
rewrite [continue|stop] name [exact] FROM TO
rewrite [continue|stop] name exact|prefix|suffix|substring|regex FROM TO [ANSWER...]
rewrite [continue|stop] type FROM TO
rewrite [continue|stop] class FROM TO
rewrite [continue|stop] edns0 local set|append|replace CODE DATA [revert]
rewrite [continue|stop] edns0 local unset CODE
rewrite [continue|stop] edns0 nsid set|append|replace [revert]
rewrite [continue|stop] edns0 subnet set|append|replace V4BITS V6BITS [revert]
rewrite [continue|stop] edns0 nsid|subnet unset
rewrite [continue|stop] ttl [exact|prefix|suffix|substring|regex] NAME SECONDS|[MIN]-[MAX]
rewrite [continue|stop] rcode [exact|prefix|suffix|substring|regex] NAME FROM TO
rewrite [continue|stop] cname [exact|prefix|suffix|substring|regex] FROM TO
```

All but the first word, or two, may be in braces instead, on as many lines as one likes.

* `continue`: go on with the next rule. `stop`: do not (the default).
* `exact` (the default), `prefix`, `suffix`, `substring`: the name is **FROM**, or begins with, ends in or contains it,
  as text and without case: the suffix `example.org` is that of `myexample.org` too. A dot is added to **FROM** and
  **TO** if they have none at the end, so that a prefix ends with a label.
* `regex`: **FROM** is an expression of RE2, which is found in the name as text in lower case with its last dot. In
  **TO**, `{1}` stands for what its first group has matched, `{0}` for the whole match. The whole name becomes **TO**.
* **NAME**: the names that are asked for to which the rule applies, as **FROM**.

A `name` rule changes the name that is asked for. Where that gives no name (a label that is empty or too long, more than
255 bytes), the client gets SERVFAIL. **ANSWER...** changes names in the response:

* `answer auto`: back, both owners of records and names in their data: the new name and those below it to the one that
  was asked for, and with `suffix` all that end in **TO** to **FROM**. With `exact` this is always done.
* `answer name FROM TO`: owners that the expression **FROM** matches. Not together with `auto`.
* `answer value FROM TO`: names in the data of CNAME, DNAME, MX, NAPTR, NS, PTR, SOA (the first one) and SRV records.

There may be several, and `answer` may be left out of all but the first. They hold for all three sections.

`type` and `class` change those of the question, such as `type ANY HINFO` and `class CH IN`; zone transfers cannot be
changed. A class other than IN that no rule has changed is REFUSED.

`edns0` changes options of the query, as other servers get them by *forward*. Of a client's own options, those pass
whose codes a rule of the server block names. `set` puts it there, `append` only if the query has none with this code,
`replace` only if it has one; `unset` takes it away.

* `local`: **CODE** is a number such as 65518 or 0xffee. **DATA** is text, hexadecimal after `0x`, or a variable:
  `{qname}` (text), `{qtype}` (2 bytes), `{client_ip}`, `{server_ip}` (4 or 16 bytes), `{client_port}`, `{server_port}`
  (2 bytes), `{protocol}` (`udp` or `tcp`), or a label of *metadata* such as `{kubernetes/namespace}`. Without a value
  the rule does nothing.
* `nsid`: asks other servers for their identifiers, by an empty option.
* `subnet`: tells other servers the client's network (RFC 7871), so many bits of an IPv4 or IPv6 address.
* `revert`: the response has the option as it was before the rule. Otherwise an answer that no other server gave has the
  local options too, if the client has sent an OPT record and there is room. Those of `nsid` and `subnet` are in no
  response, with or without it.

What is kept by *cache* is kept apart by these options.

`ttl` sets TTLs to **SECONDS**, or raises them to **MIN** and lowers them to **MAX**. `rcode` replaces a response code
by another one: names such as NXDOMAIN, or numbers from 0 to 23.

`cname` changes the target of the first CNAME record of an answer that fits, and puts in the place of what follows what
this server answers to the same question about the new target. No dot is added to its **FROM** and **TO**, but for
`exact`. It is done to every response, so that a rule behind it is only tried after `continue`.

## Metrics

None of its own.

## Examples

A Service under a name of another domain, whose clients see that domain only:

```corefile
.:53 {
    rewrite name suffix .shop.example. .shop.svc.cluster.local. answer auto
    whoami
}
```

Parts of names, and TTLs that no client sees below 30 seconds:

```corefile
.:53 {
    rewrite continue ttl regex .* 30-
    rewrite stop {
        name regex (.*)-(us-west-1)\.example\.org {1}.service.{2}.consul
        answer name (.*)\.service\.(us-west-1)\.consul {1}-{2}.example.org
        answer value (.*)\.service\.(us-west-1)\.consul {1}-{2}.example.org
    }
    whoami
}
```

Other servers get to know the client, and nobody else does:

```corefile
.:53 {
    rewrite continue edns0 local set 0xffee {client_ip} revert
    rewrite edns0 subnet set 24 56
    forward . 192.0.2.53
}
```

```corefile
.:53 {
    rewrite continue type ANY HINFO
    rewrite continue rcode suffix example.org SERVFAIL NOERROR
    rewrite cname suffix .cdn.example.net. .other.example.com.
    whoami
}
```

## Differences from CoreDNS

The client's question comes back whatever rules have done; CoreDNS forgets that where the last rule that did something
says `continue` and wants nothing done to the response. Where `answer` changes names back, they are compared without
case, and expressions see owners in lower case. In `cname` rules targets are turned to lower case, expressions are not.
Response code, authority and additional section come from the new target of a `cname` rule, and if asking for it fails
the client gets SERVFAIL. A `rcode` rule is tried once, not once for each record. What a **TO** puts in is not looked at
for further groups. A number in **TO** that is none of a group, letters beyond ASCII in names, TTLs above 2147483647 and
types of zone transfers are refused. Of clients' own options only those pass whose codes rules name. `append` adds
nothing where the option is there already. Options are in the response only if there is an OPT record in the query, and
those of `nsid` never are. A name that cannot be changed back is SERVFAIL; CoreDNS sends nothing. A class that no rule
has turned into IN is REFUSED. A response that was changed has no AD bit.

## See also

*forward*, *metadata*, *template*. RFC 6891 (EDNS), RFC 7871 (client subnet).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.lexer import Token
from kdns.corefile.options import Reader
from kdns.errors import ConfigValueError, Mistake
from kdns.plugins import rewriting
from kdns.plugins.chain import Next, in_loop
from kdns.plugins.rewriting import (
    ACTIONS,
    EXACT,
    KINDS,
    REGEX,
    UNSET,
    VARIABLES,
    ByRegex,
    ClassRule,
    ClientSubnet,
    Code,
    Draft,
    Fixed,
    InTurn,
    Lifetime,
    NameRule,
    NoName,
    OptionRule,
    Owners,
    Pattern,
    Records,
    ResponseRule,
    Rule,
    Target,
    TargetRule,
    Template,
    TypeRule,
    Values,
    Variable,
)
from kdns.plugins.site import Site
from kdns.wire import message, names, rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset

NAME = "rewrite"
SITED = True
MAX_DATA = 1024
"""Bytes of an option's data in the Corefile."""
MAX_PASSED = 4096
"""Bytes of all options that other servers get."""

_BESIDE_OPTIONS = 12 + 4 + 11
"""Bytes of a response without records: header, type and class, OPT."""
_MAX_TTL = 2**31 - 1
_CLASSES = {"IN": rr.IN, "CS": 2, "CH": rr.CH, "HS": rr.HS, "NONE": rr.NONE, "ANY": rr.ANY_CLASS}
_RCODES = {rr.rcode_text(number): number for number in range(24) if not rr.rcode_text(number).startswith("RCODE")} | {
    "NOTIMPL": rr.NOTIMP, "BADSIG": 16, "BADKEY": 17, "BADTIME": 18, "BADMODE": 19, "BADNAME": 20, "BADALG": 21,
    "BADTRUNC": 22, "BADCOOKIE": 23,
}  # fmt: skip
_NUMBER = re.compile(
    r"0x(?P<hex>[0-9a-f]{1,8})|0b(?P<bin>[01]{1,32})|0o?(?P<oct>[0-7]{1,8})|(?P<dec>[1-9]\d{0,7}|0)",
    re.IGNORECASE | re.ASCII,
)
_LABEL = re.compile(r"[^/{}\s]+/[^{}\s]+")
_NO_NAME = "a rule makes something of it that is no name"
_USAGE = {
    "name": "name [exact|prefix|suffix|substring|regex] FROM TO [answer auto|name FROM TO|value FROM TO]...",
    "type": "type FROM TO",
    "class": "class FROM TO",
    "edns0": "edns0 local|nsid|subnet set|append|replace|unset ...",
    "ttl": "ttl [exact|prefix|suffix|substring|regex] NAME SECONDS|[MIN]-[MAX]",
    "rcode": "rcode [exact|prefix|suffix|substring|regex] NAME FROM TO",
    "cname": "cname [exact|prefix|suffix|substring|regex] FROM TO",
}
_LOCAL = "edns0 local set|append|replace CODE DATA [revert], or edns0 local unset CODE"
_NSID = "edns0 nsid set|append|replace [revert], or edns0 nsid unset"
_SUBNET = "edns0 subnet set|append|replace V4BITS V6BITS [revert], or edns0 subnet unset"


@dataclass(frozen=True, slots=True)
class Options:
    """The rules, as they are written."""

    rules: tuple[Rule, ...]


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    words = _words(reader)
    stop = True
    if words and words[0].text.lower() in ("continue", "stop"):
        stop = words[0].text.lower() == "stop"
        words = words[1:]
    if not words:
        if reader.sound:
            reader.refuse(directive.name, "rewrite has no rule", "rewrite [continue|stop] FIELD ...")
        return None
    field = reader.value(words[0], lambda text: values.choice(text.lower(), _USAGE))
    rule = _Parser(reader, field, stop, words).rule() if field is not None and reader.sound else None
    return Options((rule,)) if rule is not None and reader.sound else None


def merge(found: Sequence[Options]) -> Options:
    """All rules of a server block."""
    return Options(tuple(rule for options in found for rule in options.rules))


def _words(reader: Reader) -> list[Token]:
    """The words of a rule, on its line or in its block."""
    directive = reader.directive
    words = list(directive.args)
    if directive.block is None:
        return words
    if len(words) > 1:
        reader.refuse(directive.name, "rewrite has both a rule and a block", "one of them")
    for item in directive.block:
        if item.block is not None:
            reader.refuse(item.name, f"rewrite: {values.shown(item.name.text)} has a block", "a rule without braces")
        words += [item.name, *item.args]
    return words


class _Parser:
    """One rule. words: from its field on."""

    def __init__(self, reader: Reader, field: str, stop: bool, words: list[Token]) -> None:
        self._reader = reader
        self._field = field
        self._stop = stop
        self._at = words[0]
        self._words = words[1:]

    def rule(self) -> Rule | None:
        """The rule; None after a mistake."""
        known: dict[str, Callable[[], Rule | None]] = {
            "name": self._name,
            "type": self._type,
            "class": self._class,
            "edns0": self._edns0,
            "ttl": self._ttl,
            "rcode": self._rcode,
            "cname": self._cname,
        }
        return known[self._field]()

    def _refuse(self, token: Token, message: str, accepted: str) -> None:
        self._reader.refuse(token, f"rewrite: {message}", accepted)

    def _has(self, low: int, high: int | None, accepted: str = "") -> bool:
        """Whether there are so many words behind the field; a mistake if not."""
        count = len(self._words)
        if low <= count and (high is None or count <= high):
            return True
        self._refuse(self._at, f"{self._field} has {_arguments(count)}", accepted or _USAGE[self._field])
        return False

    def _kind(self, without: int) -> str | None:
        """How names are matched: the first word, if there are more than so many."""
        if len(self._words) == without:
            return EXACT
        return self._reader.value(self._words.pop(0), lambda text: values.choice(text.lower(), KINDS))

    def _pattern(self, kind: str | None, token: Token, *, dot: bool = True) -> Pattern | None:
        if kind == REGEX:
            regex = self._reader.value(token, values.regex)
            return Pattern(REGEX, regex=regex) if regex is not None else None
        text = self._text(kind, token, dot=dot)
        return Pattern(kind, text) if kind is not None and text is not None else None

    def _text(self, kind: str | None, token: Token, *, dot: bool = True) -> str | None:
        """A name, or a part of one, in lower case."""
        if kind == EXACT:
            return self._reader.value(token, _whole)
        text = self._reader.value(token, _part)
        return rewriting.dotted(text) if text is not None and dot else text

    def _template(
        self, pattern: Pattern | None, kind: str | None, token: Token, *, dot: bool = True
    ) -> Template | None:
        """TO. What it is for a regular expression may have its groups."""
        text = self._text(kind, token, dot=dot)
        if text is None or kind != REGEX:
            return Template((text,)) if text is not None else None
        template = Template.read(text)
        if pattern is not None and pattern.regex is not None and template.groups > pattern.regex.groups:
            message = f"{values.shown(token.text)} has {{{template.groups}}}, and the expression fewer groups"
            self._refuse(token, message, f"{{0}} to {{{pattern.regex.groups}}}")
        return template

    # Rules

    def _name(self) -> NameRule | None:
        if not self._has(2, None):
            return None
        kind = self._kind(2)
        if kind is None:
            return None
        pattern = self._pattern(kind, self._words[0])
        to = self._template(pattern, kind, self._words[1])
        auto, answers = self._answers(self._words[2:])
        if pattern is None or to is None:
            return None
        return NameRule(self._stop, pattern, to, auto or kind == EXACT, answers)

    def _answers(self, words: list[Token]) -> tuple[bool, tuple[Owners | Values, ...]]:
        """What is done to the response: whether `auto`, and the rest."""
        auto = False
        found: list[Owners | Values] = []
        at = self._at
        while words:
            at = words[0]
            if at.text == "answer":
                words = words[1:]
            elif not found and not auto:
                self._refuse(at, f"{values.shown(at.text)} follows a rule", "answer auto|name|value")
                break
            if not words:
                self._refuse(at, "answer has 0 arguments", "answer auto, answer name FROM TO, answer value FROM TO")
                break
            what = self._reader.value(words[0], lambda text: values.choice(text, ("auto", "name", "value")))
            if what is None:
                break
            if what == "auto":
                auto, words = True, words[1:]
                continue
            change = self._by_regex(words[0], words[1:3])
            if change is None:
                break
            found.append(Owners(change) if what == "name" else Values(change))
            words = words[3:]
        if auto and any(isinstance(change, Owners) for change in found):
            self._refuse(at, "has both answer auto and answer name", "one of them")
        return auto, tuple(found)

    def _by_regex(self, at: Token, words: list[Token]) -> ByRegex | None:
        if len(words) < 2:
            self._refuse(at, f"answer {at.text} has {_arguments(len(words))}", f"answer {at.text} FROM TO")
            return None
        pattern = self._pattern(REGEX, words[0])
        to = self._template(pattern, REGEX, words[1])
        if pattern is None or pattern.regex is None or to is None:
            return None
        return ByRegex(pattern.regex, to)

    def _type(self) -> TypeRule | None:
        if not self._has(2, 2):
            return None
        old, new = (self._reader.value(token, _type) for token in self._words)
        return TypeRule(self._stop, old, new) if old is not None and new is not None else None

    def _class(self) -> ClassRule | None:
        if not self._has(2, 2):
            return None
        old, new = (self._reader.value(token, lambda text: _one_of(text, _CLASSES, "class")) for token in self._words)
        return ClassRule(self._stop, old, new) if old is not None and new is not None else None

    def _ttl(self) -> ResponseRule | None:
        if not self._has(2, 3):
            return None
        pattern = self._pattern(self._kind(2), self._words[0])
        change = self._reader.value(self._words[1], _lifetime)
        return ResponseRule(self._stop, pattern, change) if pattern is not None and change is not None else None

    def _rcode(self) -> ResponseRule | None:
        if not self._has(3, 4):
            return None
        pattern = self._pattern(self._kind(3), self._words[0])
        old, new = (self._reader.value(token, _rcode) for token in self._words[1:])
        if pattern is None or old is None or new is None:
            return None
        return ResponseRule(self._stop, pattern, Code(old, new))

    def _cname(self) -> TargetRule | None:
        if not self._has(2, 3):
            return None
        kind = self._kind(2)
        dot = kind == EXACT
        for token in self._words:
            if not token.text:
                self._refuse(token, "cname has an empty argument", _USAGE["cname"])
        pattern = self._pattern(kind, self._words[0], dot=dot)
        to = self._template(pattern, kind, self._words[1], dot=dot)
        return TargetRule(self._stop, Target(pattern, to)) if pattern is not None and to is not None else None

    def _edns0(self) -> OptionRule | None:
        if not self._has(2, None):
            return None
        kind = self._reader.value(self._words[0], lambda text: values.choice(text.lower(), ("local", "nsid", "subnet")))
        action = self._reader.value(self._words[1], lambda text: values.choice(text.lower(), ACTIONS))
        if kind is None or action is None:
            return None
        revert = action != UNSET and self._words[-1].text == "revert"
        if revert:
            self._words.pop()
        match kind:
            case "local":
                return self._local(action, revert)
            case "nsid":
                is_whole = self._has(2, 2, _NSID)
                return OptionRule(self._stop, action, message.NSID, Fixed(b""), False, revert) if is_whole else None
        return self._subnet(action, revert)

    def _local(self, action: str, revert: bool) -> OptionRule | None:
        count = 3 if action == UNSET else 4
        if not self._has(count, count, _LOCAL):
            return None
        code = self._reader.value(self._words[2], lambda text: _number(text, 65535))
        source: Fixed | Variable | None = Fixed(b"")
        if action != UNSET:
            source = self._reader.value(self._words[3], _data)
        if code is None or source is None:
            return None
        return OptionRule(self._stop, action, code, source, True, revert)

    def _subnet(self, action: str, revert: bool) -> OptionRule | None:
        count = 2 if action == UNSET else 4
        if not self._has(count, count, _SUBNET):
            return None
        v4: int | None = 0
        v6: int | None = 0
        if action != UNSET:
            v4 = self._reader.value(self._words[2], lambda text: _number(text, 32))
            v6 = self._reader.value(self._words[3], lambda text: _number(text, 128))
        if v4 is None or v6 is None:
            return None
        return OptionRule(self._stop, action, rewriting.SUBNET, ClientSubnet(v4, v6), False, revert)


# Words


def _arguments(count: int) -> str:
    return f"{count} arguments" if count != 1 else "1 argument"


def _part(text: str) -> str:
    """A part of a name, in lower case."""
    if not text.isascii():
        raise ConfigValueError(f"{values.shown(text)} has letters beyond ASCII", "the xn-- form of a name")
    return text.lower()


def _whole(text: str) -> str:
    """A name, as rules see names."""
    try:
        return rewriting.text_of(rewriting.name_of(_part(text) or ".").lower())
    except NoName:
        raise ConfigValueError(f"{values.shown(text)} is no name", "a name such as example.org") from None


def _type(text: str) -> int:
    try:
        number = rr.type_number(text)
    except ValueError as error:
        raise ConfigValueError(
            f"{values.shown(text)} is no record type", str(error).partition("accepted: ")[2]
        ) from None
    if number in (rr.AXFR, rr.IXFR, rr.OPT):
        raise ConfigValueError(f"{rr.type_text(number)} is no type that can be changed", "a type of records, or ANY")
    return number


def _one_of(text: str, known: dict[str, int], what: str) -> int:
    if text.upper() not in known:
        raise ConfigValueError(f"{values.shown(text)} is no {what}", values.choices(text.upper(), known))
    return known[text.upper()]


def _rcode(text: str) -> int:
    if text.isascii() and text.isdigit():
        return values.integer(text, 0, 23)
    return _one_of(text, _RCODES, "response code")


def _lifetime(text: str) -> Lifetime:
    low, dash, high = text.partition("-")
    accepted = "SECONDS, MIN-MAX, MIN- or -MAX"
    if not low and not high:
        raise ConfigValueError(f"{values.shown(text)} is no TTL", accepted)
    for number in (low, high):
        if number and not (number.isascii() and number.isdigit() and len(number) < 11 and int(number) <= _MAX_TTL):
            raise ConfigValueError(f"{values.shown(text)} is no TTL", f"{accepted}, each from 0 to {_MAX_TTL}")
    if not dash:
        high = low
    lifetime = Lifetime(int(low or 0), int(high or _MAX_TTL))
    if lifetime.low > lifetime.high:
        raise ConfigValueError(f"{values.shown(text)} ends before it begins", accepted)
    return lifetime


def _number(text: str, high: int) -> int:
    """A number from 0 as Go writes it: 0x, 0b and 0o are understood."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ConfigValueError(f"{values.shown(text)} is not a whole number", f"0 to {high}")
    bases = {"hex": 16, "bin": 2, "oct": 8, "dec": 10}
    number = next(int(digits, bases[name]) for name, digits in match.groupdict().items() if digits is not None)
    if number > high:
        raise ConfigValueError(f"{values.shown(text)} is out of range", f"0 to {high}")
    return number


def _data(text: str) -> Fixed | Variable:
    """What an option has."""
    if text.startswith("{") and text.endswith("}"):
        name = text[1:-1]
        if name not in VARIABLES and not _LABEL.fullmatch(name):
            known = ", ".join(f"{{{variable}}}" for variable in VARIABLES)
            raise ConfigValueError(f"{values.shown(text)} is no variable", f"{known} or {{PLUGIN/LABEL}}")
        return Variable(name)
    if text.startswith("0x"):
        if not re.fullmatch(r"([0-9a-fA-F]{2})*", text[2:]):
            raise ConfigValueError(f"{values.shown(text)} is not hexadecimal", "two digits for each byte")
        data = bytes.fromhex(text[2:])
    else:
        data = text.encode(errors="replace")
    if len(data) > MAX_DATA:
        raise ConfigValueError(f"the data has {len(data)} bytes", f"at most {MAX_DATA}")
    return Fixed(data)


# Answering


class Handler:
    """Changes queries on their way to the rest of the chain, and its responses.

    classes: those other than IN that rules turn into another.
    """

    def __init__(self, options: Options, site: Site) -> None:
        self._rules = options.rules
        self._ask = site.ask
        edns = [rule for rule in options.rules if isinstance(rule, OptionRule)]
        self._codes = frozenset(rule.code for rule in edns)
        self._shown = frozenset(rule.code for rule in edns if rule.local)
        changed = [rule for rule in options.rules if isinstance(rule, ClassRule)]
        self.classes = frozenset(rule.old for rule in changed) - {rr.IN}

    def passing(self, zone: bytes, server: str) -> tuple[int, ...] | None:
        """They do, where no rule can have to do with the zone."""
        text = rewriting.text_of(zone)
        return () if all(rule.spares(text) for rule in self._rules) else None

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the rest of the chain answers to the query that the rules make of this one."""
        draft = Draft.of(query)
        try:
            for rule in self._rules:
                if rule.apply(draft) and rule.stop:
                    break
        except NoName:
            return Response(rcode=rr.SERVFAIL, plugin=NAME, error=_NO_NAME)
        if query.klass != rr.IN and (draft.klass != rr.IN or draft.type in (rr.AXFR, rr.IXFR)):
            return Response(rcode=rr.REFUSED)
        asked = draft.asked(self._codes)
        if asked.passed and len(message.passed_options(asked)) > MAX_PASSED:
            error = f"more than {MAX_PASSED} bytes of EDNS options"
            return Response(rcode=rr.SERVFAIL, plugin=NAME, error=error)
        response = await next(asked)
        query.flags = asked.flags  # `header` may have changed them
        if response.silent:
            return response
        is_from_elsewhere = response.relay is not None
        if draft.changes or draft.name != query.lname:
            try:
                response = await self._changed(draft, asked, response)
            except NoName:
                return Response(rcode=rr.SERVFAIL, plugin=NAME, error=_NO_NAME)
        if draft.varies:
            response.cacheable = False
        if self._shown and not is_from_elsewhere:
            self._show(draft, response)
        return response

    async def _changed(self, draft: Draft, asked: Query, response: Response) -> Response:
        """The response after all that the rules want done to it. Raises NoName."""
        opened = message.opened(response)
        reply = replace(opened)
        renaming: list[Owners | Values] = []
        asked_again = 0
        for change in reversed(draft.changes):
            if isinstance(change, (Owners, Values)):
                renaming.append(change)
            elif isinstance(change, Code):
                reply.rcode = change.new if reply.rcode == change.old else reply.rcode
            elif isinstance(change, Lifetime):
                _everywhere(reply, change.records)
            else:
                _rename(reply, renaming)
                renaming = []
                before, reply = reply, await self._retarget(change, asked, reply, asked_again)
                asked_again += reply is not before
        _rename(reply, renaming)
        is_counting = response.aging is not None and response.aging.counts_down
        if is_counting and any(isinstance(change, Lifetime) for change in draft.changes):
            response.cacheable = reply.cacheable = False  # as its TTLs count down, they leave their limits
        if response.relay is None or draft.name != draft.query.lname or _content(reply) != _content(opened):
            return reply
        return response

    async def _retarget(self, target: Target, asked: Query, reply: Response, before: int) -> Response:
        """The response with another target of a CNAME record, and what there is at that. Raises NoName.

        before: how often that was done to this response.
        """
        kept: Records = []
        name = None
        for owner, rrset in reply.answer:
            if rrset.type == rr.CNAME:
                name = target.target(rrset.rdatas[0])
                kept.append((owner, rrset if name is None else RRset(rr.CNAME, rrset.ttl, (name,), rrset.klass)))
            if name is not None:
                break
        links = asked.links + len(kept)
        if name is None or links > message.LONGEST_CHAIN:
            return reply
        await in_loop()
        found = await self._ask(message.follow(asked, name, message.links_of(links, before)))
        if found.plugin and (found.silent or found.rcode not in (rr.NOERROR, rr.NXDOMAIN)):
            what = "not answered" if found.silent else rr.rcode_text(found.rcode)
            error = f"{names.to_text(name.lower())}, a new target of an alias, is {what}"
            return Response(rcode=rr.SERVFAIL, plugin=NAME, error=error)
        found = message.opened(found) if found.plugin else Response()
        return replace(
            reply,
            rcode=found.rcode,
            answer=kept + found.answer,
            authority=found.authority,
            additional=found.additional,
            recursion=reply.recursion or found.recursion,
            set_flags=reply.set_flags & ~message.TC | found.set_flags & message.TC,
            cacheable=False,
        )

    def _show(self, draft: Draft, response: Response) -> None:
        """Put local options into the response, if there is room, as they were before what is to be reverted."""
        options = dict(draft.options)
        for code, data in reversed(draft.before):
            if data is None:
                options.pop(code, None)
            else:
                options[code] = data
        shown = b"".join([message.option(code, options[code]) for code in sorted(self._shown) if code in options])
        if len(shown) + len(response.edns_options) + _BESIDE_OPTIONS + len(draft.query.name) <= draft.query.limit:
            response.edns_options += shown


def _everywhere(response: Response, change: Callable[[Records], Records]) -> None:
    response.answer = change(response.answer)
    response.authority = change(response.authority)
    response.additional = change(response.additional)


def _rename(response: Response, changes: Sequence[Owners | Values]) -> None:
    """Change names in all records. Raises NoName."""
    owners = tuple(change.text for change in changes if isinstance(change, Owners))
    values = tuple(change.text for change in changes if isinstance(change, Values))
    if owners:
        _everywhere(response, Owners(InTurn(owners)).records)
    if values:
        _everywhere(response, Values(InTurn(values)).records)


def _content(response: Response) -> tuple[int, Records, Records, Records]:
    return response.rcode, response.answer, response.authority, response.additional
