"""Which of a plugin's differences from CoreDNS matter to a Corefile, and what there is in the place of missing plugins.

The sentences are those of the plugins' manual pages; here stands when each of them matters. One that is not here is
taken to matter always.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from kdns.corefile.config import Directive
from kdns.corefile.lexer import Token
from kdns.corefile.values import ip_address
from kdns.plugins import MANUALS

_SECTION = re.compile(r"^## Differences from CoreDNS\n+(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_SENTENCE = re.compile(r"(?<=\.)\s+(?=[A-Z`*/])")
_ADDRESS = re.compile(r"\[?([0-9A-Fa-f.:]+?)(?:%\S+)?\]?(?::\d+)?", re.ASCII)

When: TypeAlias = Callable[[Directive], Iterator[Token]]
"""The words of a directive at which a sentence matters; none if it does not."""


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence of a plugin's manual, at the word that it is about."""

    file: str
    line: int
    text: str


def sentences(name: str) -> list[str]:
    """What a plugin's manual says of its differences from CoreDNS, sentence by sentence."""
    match = _SECTION.search(inspect.getdoc(MANUALS[name]) or "")
    text = " ".join(match[1].split()) if match else "None."
    return [] if text == "None." else _SENTENCE.split(text)


def notes(directive: Directive) -> Iterator[Note]:
    """What is different about a directive, as it is written; nothing about one that kdns does not have."""
    name = directive.name.text
    if name not in MANUALS:
        return
    for sentence in sentences(name):
        for at in _when(name, sentence)(directive):
            yield Note(at.file, at.line, sentence)


def _when(name: str, sentence: str) -> When:
    known = WHEN.get(name, {})
    return next((when for start, when in known.items() if sentence.startswith(start)), always)


# When something matters


def always(directive: Directive) -> Iterator[Token]:
    """Whatever else is written."""
    yield directive.name


def never(_: Directive) -> Iterator[Token]:
    """kdns refuses what it would matter to, or has more than CoreDNS."""
    yield from ()


def option(*names: str) -> When:
    """With one of these options."""

    def when(directive: Directive) -> Iterator[Token]:
        yield from (item.name for item in directive.block or () if item.name.text in names)

    return when


def without(name: str) -> When:
    """Without this option."""

    def when(directive: Directive) -> Iterator[Token]:
        if all(item.name.text != name for item in directive.block or ()):
            yield directive.name

    return when


def argument(pattern: str) -> When:
    """With an argument in which this is found."""
    found = re.compile(pattern)

    def when(directive: Directive) -> Iterator[Token]:
        if any(found.search(arg.text) for arg in directive.args):
            yield directive.name

    return when


def rule(*fields: str) -> When:
    """With a rule of *rewrite* for one of these fields."""

    def when(directive: Directive) -> Iterator[Token]:
        words = [arg.text.lower() for arg in directive.args]
        if len(words) < 2:
            words += [word.text.lower() for item in directive.block or () for word in (item.name, *item.args)]
        if words and (words[1:2] if words[0] in ("continue", "stop") else words[:1])[0] in fields:
            yield directive.name

    return when


_RECORDS = ("answer", "authority", "additional")


def _in(options: Sequence[str], pattern: str) -> When:
    """With one of these options, in whose arguments this is found."""
    found = re.compile(pattern)

    def when(directive: Directive) -> Iterator[Token]:
        for item in directive.block or ():
            if item.name.text in options and any(found.search(a.text) for a in item.args):
                yield item.name

    return when


def _prefix_and_block(directive: Directive) -> Iterator[Token]:
    if directive.args and directive.block:
        yield directive.block[0].name


def _short_chaos(directive: Directive) -> Iterator[Token]:
    if len(directive.args) < 2:
        yield directive.name


def _sole_format(directive: Directive) -> Iterator[Token]:
    if len(directive.args) == 1 and "{" in directive.args[0].text:
        yield directive.name


def _own_size(directive: Directive) -> Iterator[Token]:
    """Formats with the size of the response; those that are not written out have it."""
    formats = [arg.text for arg in directive.args if "{" in arg.text]
    if not formats or any(part in text for text in formats for part in ("{rsize}", "{common}", "{combined}")):
        yield directive.name


def _named_upstreams(directive: Directive) -> Iterator[Token]:
    """Upstreams that are no addresses and no files."""
    for arg in directive.args[1:]:
        rest = arg.text.rpartition("://")[2]
        match = _ADDRESS.fullmatch(rest)
        if "/" not in rest and (match is None or ip_address(match[1]) is None):
            yield directive.name
            return


def _own_entries(directive: Directive) -> Iterator[Token]:
    """Lines of *hosts* that are an address with names."""
    yield from (item.name for item in directive.block or () if ip_address(item.name.text) is not None)


def _encrypted_by_name(directive: Directive) -> Iterator[Token]:
    if any(arg.text.startswith("tls://") for arg in directive.args[1:]):
        yield from _named_upstreams(directive)


WHEN: Mapping[str, Mapping[str, When]] = {
    "acl": {"The extended error": always, "Queries that are let": always},
    "autopath": {
        "`node` is new": never,
        "The counter is": always,
        "An answer for": always,
        "The name of the search": always,
        "Where no plugin": always,
        "All addresses of": argument(r"^@"),
        "Where pods of": argument(r"^@"),
        "`@kubernetes` without": never,
        "Of other plugins": never,
    },
    "auto": {
        "`fallthrough` is new": never,
        "Hidden files": always,
        "Of several files": always,
        "A folder that cannot": always,
        "A template with": never,
        "A second": never,
        "What it answers": always,
    },
    "bind": {"Addresses are compared": never, "That no address is left": never},
    "bufsize": {"The OPT record": always},
    "cache": {
        "Hits keep the AA bit": always,
        "An NXDOMAIN at the end": always,
        "An empty answer": always,
        "The TTL of a denial": always,
        "The newer of an answer": always,
        "A failure replaces nothing": option("serve_stale"),
        "One query serves all": always,
        "Answers from this server's own zones": always,
        "**CAPACITY** is exact": option("success", "denial"),
        "`coredns_cache_drops_total`": always,
    },
    "cancel": {"The client gets SERVFAIL": always},
    "chaos": {"The default authors": _short_chaos},
    "debug": {"Lines are written": always, "An exception does not": always},
    "dns64": {
        "Clients with DO": always,
        "Where there are no": always,
        "Nothing is made if": always,
        "NXDOMAIN without": always,
        "Behind a prefix": _prefix_and_block,
        "The lengths": never,
    },
    "erratic": {
        "Each worker": always,
        "Answers are truncated": option("truncate"),
        "`drop` without": option("drop"),
        "AXFR is REFUSED": always,
        "It has no part": always,
    },
    "errors": {"An expression that takes": never},
    "file": {
        "An answer has no NS": always,
        "The TTL of a denial": always,
        "A wildcard is never": always,
        "A name that only exists": option("fallthrough"),
        "An alias that leads": always,
        "An alias whose": always,
        "A query for ANY": always,
        "Records from before": always,
        "A file that is there": always,
        "Files with CNAME": always,
        "Records outside": always,
        "Paths of `$INCLUDE`": always,
        "`fallthrough` is for": option("fallthrough"),
        "A file that has changed": without("reload_by_mtime"),
        "Two files": never,
        "Addresses behind": never,
        "Referrals have DS": always,
    },
    "forward": {
        "Connections carry many": always,
        "A name as upstream": _named_upstreams,
        "/etc/hosts and search domains": _named_upstreams,
        "With `tls://` and a name": _encrypted_by_name,
        "All reverse zones": argument(r"^[0-9A-Fa-f:.]+/\d+$"),
        "Truncated answers": always,
        "An upstream whose answer": always,
        "`max_concurrent` counts": option("max_concurrent"),
        "Clients' own EDNS": always,
        "Zone transfers and": always,
        "RA is set": always,
        "`max_age` may be": never,
    },
    "header": {"In a query": option("query")},
    "health": {"Written twice": never},
    "hosts": {
        "A name of the Corefile": _own_entries,
        "A name with a line of its own": always,
        "The same address twice": never,
        "A line of the Corefile": never,
    },
    "import": {"Arguments are new": never, "A directory that matches": never},
    "k8s_external": {
        "A name that leads": always,
        "Of addresses and": always,
        "If the host name": always,
        "SRV answers have": always,
        "`ttl` is that": always,
        "Below a Service": always,
        "Names of ports": always,
        "A name that exists": always,
        "Reverse zones have": argument(r"^[0-9A-Fa-f:.]+/\d+$|\.arpa\.?$"),
        "`fallthrough` holds": option("fallthrough"),
        "The weights of SRV": always,
        "Without a zone of names": never,
    },
    "kubernetes": {
        "`manifests` and": never,
        "A start without the API": always,
        "`apiserver_qps` and": option("apiserver_qps", "apiserver_burst", "multicluster"),
        "The duration of DNS": always,
        "`endpoint` or `tls`": never,
        "A port behind a zone": never,
        "An ExternalName whose": always,
        "A PTR answer lists": always,
        "A name that exists": always,
        "An alias is shown": always,
        "Names of ports": always,
        "The weights of SRV": always,
        "The zone's name server": always,
        "Names of endpoints and": always,
        "Ports are": always,
        "A namespace also": always,
        "With `namespace_labels`": option("namespace_labels"),
        "Endpoints that are not": always,
        "With `pods verified`": _in(("pods",), "verified"),
    },
    "loadbalance": {
        "CoreDNS shuffles": always,
        "Records that are": argument("weighted"),
        "With `weighted`": argument("weighted"),
        "`prefer` may": never,
    },
    "log": {
        "`{rsize}` is the size": _own_size,
        "A single argument": _sole_format,
        "`{/log/class}`": never,
        "Where a plugin failed": never,
    },
    "loop": {"CoreDNS ends its process": always, "It looks for one": always},
    "metadata": {
        "A value that depends": never,
        "`kubernetes/client-pod-name` and": never,
        "Where pods of different": always,
    },
    "minimal": {"An alias whose target": always, "The dates of signatures": always},
    "multisocket": {"The number is": always, "More than 64": never, "Without the directive": never},
    "nsid": {"The length has": never},
    "prometheus": {"The options `tls`": never, "`top_names`": never},
    "reload": {"The hash is": always},
    "rewrite": {
        "The client's question": never,
        "Where `answer` changes": rule("name"),
        "In `cname` rules": rule("cname"),
        "Response code, authority": rule("cname"),
        "A `rcode` rule": rule("rcode"),
        "What a **TO** puts": never,
        "A number in **TO**": never,
        "Of clients' own options": rule("edns0"),
        "`append` adds nothing": rule("edns0"),
        "Options are in the response": rule("edns0"),
        "A name that cannot": never,
        "A class that no rule": rule("class"),
        "A response that was changed": rule("name", "ttl", "rcode", "cname"),
    },
    "root": {"More than one": never},
    "tls": {
        "`client_auth request` and": never,
        "Certificates by ACME": never,
        "A `tls://` key without": never,
        "A `tls` that no key": never,
        "Changed files are": always,
        "Over HTTPS, a method": always,
        "Over HTTPS, a query": always,
    },
    "secondary": {
        "Copies are kept": always,
        "Zones of a": never,
        "`key` and `fallback`": never,
        "`catalog` is not": never,
        "The time until": always,
        "A NOTIFY from": always,
    },
    "template": {
        "A template that asks": never,
        "Of `printf`": _in(_RECORDS, "printf"),
        "What a template makes": _in(_RECORDS, r"\$[A-Z]+"),
        "Within `define`": _in(_RECORDS, "define|block"),
        "A template that takes": _in(_RECORDS, "range|printf|template|block"),
        "Classes": never,
        "The extended error": option("ederror"),
        "An alias whose": _in(_RECORDS, "CNAME"),
        "Queries that the packet": always,
        "An `expr` that": never,
        "Expressions are those": option("var", "expr"),
    },
    "transfer": {
        "IXFR sends differences": always,
        "NOTIFYs are repeated": option("to"),
        "A transfer of": always,
        "An IXFR without": always,
        "Every change of": option("to"),
        "`source` is not": never,
        "IXFR over UDP": always,
    },
    "tsig": {
        "A secret that": never,
        "The `algorithm` of": option("secrets"),
        "A signature that": always,
        "Where a query's": always,
        "`require_opcode` with": never,
        "Names of keys": always,
        "An algorithm that": always,
    },
    "timeouts": {"A new connection": always, "The default of `read`": without("read")},
    "view": {
        "A server block behind": never,
        "Two views of one name": never,
        "An expression that is": never,
        "A network that": never,
        "`metadata('LABEL')` is empty": option("expr"),
        "Times (`now`": never,
        "Keys of several": _in(("expr",), "groupBy|fromPairs"),
        "An expression that takes": _in(("expr",), r"reduce|repeat|\.\."),
        "A query for type DS": always,
    },
    "whoami": {"A name that is": always},
}
"""When a sentence of a manual matters, by the words that it starts with."""
