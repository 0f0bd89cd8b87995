r"""template: answers that are written in the Corefile.

## Name

*template* - answers queries with records that templates make of them.

## Description

A query whose name is in one of the zones, and whose type fits, is answered if one of the expressions matches its name.
Of several *template* the first one that matches answers. Where the zone and the type fit and no expression does, the
answer is SERVFAIL, unless `fallthrough` covers the name: then the next *template* is tried, and in the end the next
plugin.

Where a rule has conditions (`expr`) that are not all true for a query, it is as if no expression had matched. Where a
variable or a condition cannot be worked out, the answer is SERVFAIL, and *errors* writes why.

If the answer is an alias (CNAME) and the query is for A or AAAA records, what this server answers for the alias's
target is added.

Templates are those of Go's text/template; what they make has to be one record, as in a master file (RFC 1035 5): owner,
TTL, class, type, data. Without a TTL it is 3600. Names are absolute, with or without a dot at the end. If a template
makes no record, the answer is SERVFAIL, and *errors* writes why.

## Syntax

```
template CLASS TYPE [ZONES...] {
    match REGEXP...
    var NAME EXPRESSION
    expr EXPRESSION
    answer RECORD...
    authority RECORD...
    additional RECORD...
    rcode RCODE
    ederror CODE [REASON]
    fallthrough [ZONES...]
}
```

* **CLASS**: `IN` or `ANY`.
* **TYPE**: such as `A`, or `ANY` for all types. Queries for type ANY fit all.
* **ZONES**: names in these zones; default: those of the server block.
* `match` **REGEXP...**: of RE2. The name is matched in lower case, with its last dot, as it is written in master files.
  The first expression that matches counts. Default: `.*`. It may be repeated, as may the five that follow.
* `var` **NAME** **EXPRESSION**: a value that is worked out for each query that matches: `.Var.NAME` in templates, and
  **NAME** in the expressions below it.
* `expr` **EXPRESSION**: a condition that has to be true too.
* `answer`, `authority`, `additional` **RECORD...**: templates for the records of these sections.
* `rcode` **RCODE**: the response code, such as `NXDOMAIN`. Default: `NOERROR`. With `SERVFAIL` there is nothing else in
  the answer.
* `ederror` **CODE** [**REASON**]: an extended error (RFC 8914), from 0 to 65535, and a text, for clients that speak
  EDNS. The text is left out where it has no room.
* `fallthrough`: with **ZONES**, only for names in these.

`upstream`, which old Corefiles have, changes nothing.

A template has

* `.Name`: the name, in lower case, with its last dot
* `.Zone`: which of the zones it is in; `.Class`, `.Type`: of the question
* `.Match`: what the expression matches, and what each of its groups does: `index .Match 1`
* `.Group`: the same by the groups' names, and by their numbers: `.Group.a`, `index .Group "1"`
* `.Question.Name` (as it was asked), `.Question.Qtype`, `.Question.Qclass` (numbers)
* `.Message`: the query's header, as in `.Message.Id` or `.Message.RecursionDesired`, and `.Message.Question`
* `.Remote`: the client's address
* `.Regex`: the expression
* `.Meta "LABEL"`: what *metadata* has under a label
* `.Var`: the variables, as in `.Var.a`

and variables, `if`, `with`, `range`, comments, `define`, `template` and `block`, and the functions `and`, `or`, `not`,
`eq`, `ne`, `lt`, `le`, `gt`, `ge`, `index`, `slice`, `len`, `print`, `println`, `printf`, `html`, `js`, `urlquery`, and
`parseInt TEXT BASE BITS`. Write `{{ $x }}` with the blank, as `{$x}` stands for a variable of the environment.

The expressions of `var` and `expr` are those of *view*, with its functions, and `group('NAME')` or `group(NUMBER)`:
what a group matches, empty if there is no such group. One with `#` or `{` has to be in double quotes.

Answers of templates that look at nothing but the name and the question are kept in the packet cache. So are those of
rules with variables and conditions, unless one calls `client_ip()`, `port()`, `id()`, `server_ip()` or `metadata()`:
then nothing that such a rule was asked for is kept, whoever answers it. What *forward* brings for queries that a rule
has passed on is not kept in *cache* either, if the rule calls anything else than `name()`, `type()`, `class()`, `do()`,
`group()` and `incidr()`.

## Metrics

* `coredns_template_matches_total{server, zone, view, class, type}`: queries that matched.
* `coredns_template_template_failures_total{server, zone, view, class, type, section, template}`: templates that failed.
* `coredns_template_rr_failures_total{server, zone, view, class, type, section, template}`: those that made no record.

## Examples

A name under `ip.example` is an address:

```corefile
.:53 {
    template IN A ip.example {
        match "^(?P<a>[0-9]+)-(?P<b>[0-9]+)-(?P<c>[0-9]+)-(?P<d>[0-9]+)[.]ip[.]example[.]$"
        answer "{{ .Name }} 60 IN A {{ .Group.a }}.{{ .Group.b }}.{{ .Group.c }}.{{ .Group.d }}"
        fallthrough
    }
    template ANY ANY ip.example {
        rcode NXDOMAIN
        authority "{{ .Zone }} 60 IN SOA ns.{{ .Zone }} hostmaster.{{ .Zone }} (1 60 60 60 60)"
    }
    whoami
}
```

A name is an address only if that is a private one:

```corefile
.:53 {
    template IN A lan.example {
        match "^(?P<ip>[0-9]{1,3}(-[0-9]{1,3}){3})[.]lan[.]example[.]$"
        var ip replace(group('ip'), '-', '.')
        expr "any(['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16'], incidr(ip, #))"
        answer "{{ .Name }} 60 IN A {{ .Var.ip }}"
        fallthrough
    }
    whoami
}
```

No search path leads out of the cluster and back into it:

```corefile
.:53 {
    template IN ANY cluster.local.example.org {
        rcode NXDOMAIN
        ederror 15 "the search path of a node"
    }
    whoami
}
```

## Differences from CoreDNS

A template that asks for a field, a function or a template that is not here is refused when the Corefile is read; so are
`call`, and what would write a whole message or question. Within `define` and `block` such a field makes the template
fail. Of `printf`, `%T`, `%p`, `*` and `[n]` make the template fail. What a template makes has no directives (`$ORIGIN`,
`$INCLUDE`). A template that takes 100000 steps, makes 65536 characters, or uses templates more than 100 deep, fails.
Classes other than IN, and ANY for IN, are refused, as this server answers no others here. The extended error is sent to
clients that speak EDNS, and to no others; a text of more than 900 bytes is refused. An alias whose target could not be
looked up is SERVFAIL, and one that leads to itself ends after 10 links. Queries that the packet cache answers are not
counted as matches. An `expr` that is no condition is refused. Expressions are those of *view*, and differ as they do
there.

## See also

*rewrite*, *hosts*, *metadata*; https://pkg.go.dev/text/template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from kdns.corefile import gotemplate, values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.goformat import Unsigned
from kdns.corefile.gotemplate import LEAF, MAP, METHOD, Shape, Struct
from kdns.corefile.lexer import Token
from kdns.corefile.options import Reader
from kdns.corefile.values import Regex
from kdns.errors import ConfigValueError, Mistake, TemplateError
from kdns.plugins.chain import Next, in_loop
from kdns.plugins.rewriting import text_of
from kdns.plugins.site import Site
from kdns.wire import message, names, rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset, together

if TYPE_CHECKING:
    from kdns.plugins.variables import Variables

NAME = "template"
SITED = True
TTL = 3600
KEPT = 1024
"""Texts of a server block whose records are remembered."""
SECTIONS = ("answer", "authority", "additional")
LONGEST_REASON = 900
"""Bytes of an extended error's text."""

_QUESTION: Shape = {"Name": LEAF, "Qtype": LEAF, "Qclass": LEAF}
_FLAGS = {
    "Response": message.QR, "Authoritative": message.AA, "Truncated": message.TC, "RecursionDesired": message.RD,
    "RecursionAvailable": message.RA, "Zero": 0x40, "AuthenticatedData": message.AD, "CheckingDisabled": message.CD,
}  # fmt: skip
SHAPE: Shape = {
    **dict.fromkeys(("Name", "Zone", "Class", "Type", "Match", "Remote", "Regex"), LEAF),
    "Group": MAP,
    "Meta": METHOD,
    "Question": _QUESTION,
    "Var": MAP,
    "Message": {**dict.fromkeys(("Id", "Opcode", "Rcode", "Question", *_FLAGS), LEAF)},
}
"""What a template may use."""
_PERSONAL = frozenset(("Remote", "Message", "Meta"))
"""What may differ between equal queries."""
_MORE_RCODES = ("BADSIG", "BADKEY", "BADTIME", "BADMODE", "BADNAME", "BADALG", "BADTRUNC", "BADCOOKIE")
RCODES: Mapping[str, int] = {
    **{rr.rcode_text(number): number for number in (*range(11), rr.BADVERS)},
    **{text: 16 + index for index, text in enumerate(_MORE_RCODES)},
}
_META_TYPES = frozenset((0, rr.OPT, *range(128, 256)))
_BESIDE_REASON = 11 + 4 + 2
"""Bytes of an OPT record with an extended error, but for the text."""
_USAGE = "template CLASS TYPE [ZONES...]"


@dataclass(frozen=True, slots=True)
class Rule:
    """A directive.

    type: rr.ANY for all. zones, fallthrough: lower case with their last dot. answer, authority, additional: texts of
    templates. lines: `var` and `expr` in their order, the name (empty for a condition) and the expression of each.
    error: an extended error's code and text.
    """

    type: int
    zones: tuple[str, ...]
    matches: tuple[Regex, ...]
    lines: tuple[tuple[str, str], ...] = ()
    answer: tuple[str, ...] = ()
    authority: tuple[str, ...] = ()
    additional: tuple[str, ...] = ()
    rcode: int = rr.NOERROR
    error: tuple[int, str] | None = None
    fallthrough: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Options:
    """The directives of a server block, in their order."""

    rules: tuple[Rule, ...]


def parse(directive: Directive, block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    args = reader.arguments(directive, 2, None, _USAGE)
    rtype = rr.ANY
    if args:
        reader.value(args[0], lambda text: values.choice(text.upper(), ("IN", "ANY")))
        rtype = reader.value(args[1], _type) or rr.ANY
    zones = reader.zones(args[2:]) or tuple(dict.fromkeys(key.zone for key in block.keys))
    found: dict[str, Any] = {"type": rtype, "zones": zones}
    lists: dict[str, list[Any]] = {word: [] for word in ("match", *SECTIONS)}

    def several(word: str, convert: Callable[[str], object]) -> Callable[[Directive], None]:
        def read(item: Directive) -> None:
            lists[word] += (
                reader.value(token, convert) for token in reader.arguments(item, 1, None, f"{word} TEXT...")
            )

        return read

    lines: list[tuple[str, str]] = []

    def line(item: Directive) -> None:
        is_variable = item.name.text == "var"
        usage = "var NAME EXPRESSION" if is_variable else "expr EXPRESSION"
        args = reader.arguments(item, 1 + is_variable, None, usage)
        if args:
            name = args[0].text if is_variable else ""
            found = (name, " ".join(token.text for token in args[is_variable:]))
            if is_variable and not name:
                reader.refuse(args[0], "template: a variable has an empty name", usage)
            elif reader.value(args[0], lambda _: _worked([*lines, found])) is not None:
                lines.append(found)

    def rcode(item: Directive) -> None:
        code = reader.one(item, lambda text: values.choice(text.upper(), RCODES), "rcode RCODE")
        found["rcode"] = RCODES[code or "NOERROR"]

    def ederror(item: Directive) -> None:
        found["error"] = _error(reader, reader.arguments(item, 1, 2, "ederror CODE [REASON]"))

    def fallthrough(item: Directive) -> None:
        found["fallthrough"] = reader.zones(item.args) if item.args else (".",)

    readers = {"match": several("match", Regex), **{word: several(word, _checked) for word in SECTIONS}}
    readers |= {"var": line, "expr": line}
    once = {"rcode": rcode, "ederror": ederror, "fallthrough": fallthrough, "upstream": lambda item: None}
    reader.options({**readers, **once}, repeatable=tuple(readers))
    if not reader.sound:
        return None
    found["lines"] = tuple(lines)
    found |= {word: tuple(texts) for word, texts in lists.items()}
    found["matches"] = found.pop("match") or (Regex(".*"),)
    return Options((Rule(**found),))


def merge(found: Sequence[Options]) -> Options:
    """Several directives of one server block as one."""
    return Options(tuple(rule for options in found for rule in options.rules))


def _type(text: str) -> int:
    try:
        return rr.type_number(text)
    except ValueError:
        raise ConfigValueError(f"{values.shown(text)} is no record type", "such as A, TYPE65 or ANY") from None


def _worked(lines: Sequence[tuple[str, str]]) -> Variables:
    from kdns.plugins.variables import Variables  # for those who need it

    return Variables(lines)


def _checked(text: str) -> str:
    gotemplate.parse(text, SHAPE)
    return text


def _error(reader: Reader, args: tuple[Token, ...]) -> tuple[int, str] | None:
    code = reader.value(args[0], lambda text: values.integer(text, 0, 65535)) if args else None
    reason = args[1].text if len(args) > 1 else ""
    size = len(reason.encode(errors="replace"))
    if size > LONGEST_REASON:
        reader.refuse(args[1], f"template: the reason has {size} bytes", f"at most {LONGEST_REASON}")
    return None if code is None else (code, reason)


# Records


def record(text: str) -> tuple[bytes, RRset]:
    """The owner (lower case) and the record that a text is. Raises TemplateError."""
    import dns.exception
    import dns.name
    import dns.rdata
    import dns.rdataclass
    import dns.rdatatype
    import dns.ttl

    from kdns.zone.entries import Tokenizer

    ttl, klass = TTL, dns.rdataclass.IN
    text = text.lstrip("\r\n")
    if text[:1] in (" ", "\t"):
        raise TemplateError("there is no owner")
    words = Tokenizer(text)
    try:
        owner = words.as_name(words.get(), dns.name.root).to_wire()
        while True:
            word = words.get().unescape()
            if not word.is_identifier():
                raise TemplateError("there is no type")
            try:
                ttl = dns.ttl.from_text(word.value)
                continue
            except dns.exception.DNSException:
                pass
            if word.value.upper() not in dns.rdataclass.RdataClass.__members__:
                break
            klass = dns.rdataclass.from_text(word.value)
        rtype = dns.rdatatype.from_text(word.value)
        if rtype in _META_TYPES:
            raise TemplateError(f"there are no records of type {word.value}")
        data = dns.rdata.from_text(klass, rtype, words, dns.name.root, False).to_wire()
    except TemplateError:
        raise
    except Exception as error:  # whatever it is, the text is no record
        raise TemplateError(str(error) or type(error).__name__) from None
    if owner is None or data is None or len(data) > 0xFFFF:
        raise TemplateError("it is no record")
    return owner.lower(), RRset(int(rtype), ttl, (data,), int(klass))


@dataclass(frozen=True, slots=True)
class _Match:
    """A query that a rule is for. groups: what its expression matches, then what its groups do. type: as a text.
    variables: their values."""

    zone: str
    regex: Regex
    groups: list[str]
    type: str
    variables: Mapping[str, Any] = field(default_factory=dict)

    def by_name(self) -> dict[str, str]:
        """What the groups match by their numbers and names."""
        group = {str(number): text for number, text in enumerate(self.groups)}
        return group | {text: self.groups[number] for text, number in self.regex.names.items()}


class _Rule:
    """A rule at work. is_personal: whether its answers are for one client. variables: None without any."""

    __slots__ = ("fall", "is_personal", "rule", "sections", "variables", "zones")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.zones = names.Zones({names.lower(names.from_text(zone)): zone for zone in rule.zones})
        self.fall = names.zone_set(rule.fallthrough)
        self.sections = {
            section: [gotemplate.parse(text, SHAPE) for text in getattr(rule, section)] for section in SECTIONS
        }
        uses = {name for templates in self.sections.values() for template in templates for name in template.uses}
        self.is_personal = not uses.isdisjoint(_PERSONAL)
        self.variables = _worked(rule.lines) if rule.lines else None

    def option(self, query: Query) -> bytes:
        """The extended error, without its text where that has no room."""
        if self.rule.error is None:
            return b""
        code, reason = self.rule.error
        text = reason.encode("utf-8", "replace")
        if query.question_end + _BESIDE_REASON + len(text) > query.limit:
            text = b""
        return message.option(message.EDE, code.to_bytes(2) + text)

    def concerns(self, query: Query) -> bool:
        """Whether its zones and its type fit."""
        if self.zones.find(query.lname) is None:
            return False
        return self.rule.type == rr.ANY or query.type in (rr.ANY, self.rule.type)

    def match(self, query: Query, name: str) -> _Match | None:
        """What the first expression that matches says of a name."""
        for regex in self.rule.matches:
            groups = regex.search(name)
            if groups is not None:
                text = rr.type_text(query.type if query.type != rr.ANY else self.rule.type)
                zone = self.zones.find(query.lname) or ""
                return _Match(zone, regex, groups, "" if text.startswith("TYPE") else text)
        return None


class Handler:
    """Answers what its rules are for, passes on everything else."""

    def __init__(self, options: Options, site: Site) -> None:
        self._site = site
        self._rules = [_Rule(rule) for rule in options.rules]
        self._record = lru_cache(KEPT)(record)

    def passing(self, zone: bytes, server: str) -> tuple[int, ...] | None:
        """No rule is for them if none is for names in the zone."""
        for rule in self._rules:
            if rule.zones.find(zone) is not None:
                return None
            if any(names.is_subdomain(below, zone) for below in rule.zones.by_zone):
                return None
        return ()

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the first rule that matches makes of the query, or what the rest of the chain answers."""
        name = ""
        personal = apart = False
        for rule in self._rules:
            if not rule.concerns(query):
                continue
            name = name or text_of(query.lname)
            match = rule.match(query, name)
            if match is not None and rule.variables is not None:
                personal = personal or rule.variables.personal
                apart = apart or rule.variables.apart
                try:
                    match = _judged(query, match, rule.variables)
                except TemplateError as error:
                    response = Response(rcode=rr.SERVFAIL, plugin=NAME, error=str(error))
                    break
            if match is not None:
                response = await self._answer(query, rule, match, name)
                break
            if rule.fall.find(query.lname) is None:
                response = Response(rcode=rr.SERVFAIL, plugin=NAME)
                break
        else:
            response = await next(query)
        if personal:
            response.cacheable = False
        if apart:
            response.apart = True
        return response

    async def _answer(self, query: Query, rule: _Rule, match: _Match, name: str) -> Response:
        self._count("matches", query, match)
        if rule.rule.rcode == rr.SERVFAIL:
            return Response(rcode=rr.SERVFAIL, plugin=NAME)
        data = _data(query, match, name)
        try:
            answer, authority, additional = (self._made(query, rule, match, section, data) for section in SECTIONS)
        except TemplateError as error:
            return Response(rcode=rr.SERVFAIL, plugin=NAME, error=str(error))
        response = Response(
            rcode=rule.rule.rcode,
            authoritative=True,
            answer=answer,
            authority=authority,
            additional=additional,
            edns_options=rule.option(query),
            cacheable=not rule.is_personal,
            plugin=NAME,
        )
        aliases = [rrset for _, rrset in response.answer if rrset.type == rr.CNAME]
        if aliases and query.type in (rr.A, rr.AAAA) and query.links < message.LONGEST_CHAIN:
            return await self._follow(query, response)
        return response

    def _made(self, query: Query, rule: _Rule, match: _Match, section: str, data: Struct) -> list[tuple[bytes, RRset]]:
        """The records of a section. Raises TemplateError."""
        found = []
        for template in rule.sections[section]:
            kind = "template"
            try:
                text = template.run(data)
                kind = "rr"
                found.append(self._record(text))
            except TemplateError as error:
                self._count(f"{kind}_failures", query, match, "section", section, "template", str(template))
                what = "fails" if kind == "template" else f"makes {values.shown(text)}, which is no record"
                raise TemplateError(f"the template {values.shown(str(template))} {what}: {error}") from None
        return together(found)

    async def _follow(self, query: Query, response: Response) -> Response:
        """The response with what this server answers for the targets of its aliases behind each."""
        await in_loop()
        answer: list[tuple[bytes, RRset]] = []
        followed = 0
        for owner, rrset in response.answer:
            answer.append((owner, rrset))
            for target in rrset.rdatas if rrset.type == rr.CNAME else ():
                links = message.links_of(query.links + 1, followed)
                followed += 1
                found = await self._site.ask(message.follow(query, target, links))
                if not found.plugin:  # nobody answers for it
                    continue
                found = message.opened(found)
                if found.rcode not in (rr.NOERROR, rr.NXDOMAIN):
                    text = f"{names.to_text(target)}, which it leads to, is {rr.rcode_text(found.rcode)}"
                    return Response(rcode=rr.SERVFAIL, plugin=NAME, error=text)
                answer += found.answer
                response.set_flags |= found.set_flags & message.TC
        return replace(response, answer=answer, cacheable=False)

    def _count(self, what: str, query: Query, match: _Match, *more: str) -> None:
        where = ("server", query.server, "zone", match.zone, "view", self._site.view)
        labels = (*where, "class", "IN", "type", match.type, *more)
        self._site.region.count(("count", f"coredns_template_{what}_total", *labels))


def _judged(query: Query, match: _Match, variables: Variables) -> _Match | None:
    """A match with the values of the variables; None if a condition is not true. Raises TemplateError."""
    from kdns.plugins.variables import Matched

    values = variables.judge(Matched(query, query.metadata, match.by_name()))
    return replace(match, variables=values) if values is not None else None


def _data(query: Query, match: _Match, name: str) -> Struct:
    """What a template sees."""
    question = Struct(
        ".Question",
        {"Name": text_of(query.name), "Qtype": Unsigned(query.type), "Qclass": Unsigned(query.klass)},
    )
    header: dict[str, Any] = {flag: bool(query.flags & bit) for flag, bit in _FLAGS.items()}
    header |= {"Id": Unsigned(query.id), "Opcode": 0, "Rcode": 0, "Question": [question]}
    return Struct(
        "the data",
        {
            "Name": name,
            "Zone": match.zone,
            "Class": rr.class_text(query.klass),
            "Type": match.type,
            "Match": match.groups,
            "Group": match.by_name(),
            "Var": match.variables,
            "Regex": match.regex.text,
            "Remote": query.client[0],
            "Question": question,
            "Message": Struct(".Message", header),
            "Meta": partial(_meta, query),
        },
    )


def _meta(query: Query, label: str) -> str:
    return query.metadata.value(label) if query.metadata is not None else ""
