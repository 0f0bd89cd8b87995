"""tsig: signatures of queries and responses.

## Name

*tsig* - checks the signatures of queries, signs their responses, and refuses queries that have none.

## Description

A query that is signed with one of the keys (TSIG, RFC 8945) is answered, and the response is signed with the same key,
each of its messages if it is a zone transfer. A query whose signature is not good gets NOTAUTH, with the reason in its
TSIG record: BADKEY for a key or algorithm that is not known, BADSIG for a wrong signature, BADTIME if it was made at
another time than now, BADTRUNC for a signature of less than 16 bytes. A query without a signature is answered as ever,
unless `require` has its type: then it is REFUSED.

Algorithms: hmac-sha1, hmac-sha224, hmac-sha256, hmac-sha384, hmac-sha512, hmac-sha256-128, hmac-sha384-192 and
hmac-sha512-256. Clocks may differ by as much as the query says, mostly 300 seconds.

The keys of all server blocks at an address hold for each of them; of two with one name, that of the server block that
has the query. A server block without *tsig* takes no notice of signatures, and neither does one for names outside of
**ZONES**. Servers that queries are forwarded to get no signature. The packet cache has no signed responses.

## Syntax

```
tsig [ZONES...] {
    secret NAME KEY
    secrets FILE
    require [QTYPE...|all|none]
    require_opcode [OPCODE...|none]
}
```

* **ZONES**: names in these zones; default: those of the server block.
* `secret`: the secret **KEY**, in base64, of the key **NAME**. It may be given several times.
* `secrets`: the keys of **FILE**, written as for BIND; `tsig-keygen` makes such files. A relative path starts at
  *root*'s directory. It is read when the Corefile is, and with *reload* a change of it is one of the Corefile: a Secret
  that is mounted may be renewed. For a key that several servers share, give the new one another name, and let the files
  have both until all use it.

  ```
  key "example." {
      algorithm hmac-sha256;
      secret "X28hl0BOfAL5G0jsmJWSacrwn7YRm2f6U5brnzwWEus=";
  };
  ```

* `require`: types of queries that have to be signed, such as `AXFR IXFR`; `all` of them or, the default, `none`.
* `require_opcode`: with `QUERY` all queries have to be signed, as with `require all`. `IQUERY`, `STATUS` and `UPDATE`
  change nothing, as nobody gets an answer to these but NOTIMP.

## Metrics

None.

## Examples

Zone transfers are for those who have the key:

```corefile
example.org:53 {
    tsig {
        secret transfer.example.org. NoTCJU+DMqFWywaPyxSijrDEA/eC3nK0xi3AMEZuPVk=
        require AXFR IXFR
    }
    whoami
}
```

Nobody else is answered at all:

```corefile
.:53 {
    tsig {
        secret clients.example. X28hl0BOfAL5G0jsmJWSacrwn7YRm2f6U5brnzwWEus=
        require all
    }
    forward . 10.1.0.2
}
```

## Differences from CoreDNS

A secret that is no base64 is refused at the start: with CoreDNS no signature of that key is good. The `algorithm` of a
key in **FILE** is the only one that the key is for. A signature that was cut to 16 bytes or more is good. Where a
query's TSIG record is not its last record the answer is FORMERR. Names of keys compare without case. An algorithm that
is not here is BADKEY; CoreDNS says BADSIG. `require_opcode` with `NOTIFY` or `all` is refused: a NOTIFY is taken from
the addresses of the primaries of *secondary*, and its signature is not looked at.

## See also

*acl*; RFC 8945; tsig-keygen(8), which makes keys.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.lexer import Token
from kdns.corefile.options import Reader
from kdns.errors import ConfigValueError, DomainNameError, Mistake
from kdns.plugins import root
from kdns.plugins.chain import Next
from kdns.wire import names, rr, tsig
from kdns.wire.message import Query, Response
from kdns.wire.tsig import Key

NAME = "tsig"
_OPCODES = ("QUERY", "IQUERY", "STATUS", "UPDATE", "none")
_UNUSUAL = frozenset((rr.ANY, rr.AXFR, rr.IXFR))
_WORD = re.compile(r'"([^"\n]*)"|([{};])|([^\s{};"]+)')
_COMMENT = re.compile(r'("[^"\n]*")|/\*.*?\*/|(?://|#)[^\n]*', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Options:
    """zones: lower case with their last dot. required: types, None for all of them. sums: the paths of files of keys,
    and the SHA-512 of each."""

    zones: tuple[str, ...]
    keys: tuple[Key, ...]
    required: frozenset[int] | None = frozenset()
    sums: tuple[tuple[str, bytes], ...] = ()


def parse(directive: Directive, block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    zones = reader.zones(directive.args) or tuple(dict.fromkeys(key.zone for key in block.keys))
    keys: dict[bytes, Key] = {}
    sums: dict[str, bytes] = {}
    required: frozenset[int] | None = frozenset()

    def add(token: Token, key: Key | None) -> None:
        if key is not None and key.name in keys:
            reader.refuse(token, f"tsig: key {values.shown(names.to_text(key.name))} is given twice", "one secret each")
        elif key is not None:
            keys[key.name] = key

    def secret(item: Directive) -> None:
        args = reader.arguments(item, 2, 2, "secret NAME KEY")
        if args:
            name, data = reader.value(args[0], _name), reader.value(args[1], _secret)
            add(args[0], Key(name, data) if name is not None and data is not None else None)

    def secrets(item: Directive) -> None:
        args = reader.arguments(item, 1, 1, "secrets FILE")
        for token in args:
            path = root.directory(block) / token.text
            try:
                data = path.read_bytes()
            except OSError as error:
                reason = (error.strerror or "cannot be read").lower()
                reader.refuse(token, f"tsig: {path}: {reason}", "a file of keys that can be read")
                continue
            sums[str(path.absolute())] = hashlib.sha512(data).digest()
            for at, key in _of_file(data.decode(errors="surrogateescape"), path, mistakes):
                add(at, key)

    def require(item: Directive) -> None:
        nonlocal required
        required = _required(reader, reader.arguments(item, 1, None, "require QTYPE...|all|none"))

    by_opcode = False

    def require_opcode(item: Directive) -> None:
        nonlocal by_opcode
        for token in reader.arguments(item, 1, None, "require_opcode OPCODE...|none"):
            by_opcode |= reader.value(token, _opcode) == "QUERY"

    known = {"secret": secret, "secrets": secrets, "require": require, "require_opcode": require_opcode}
    reader.options(known, (), ("secret", "secrets"))
    required = None if by_opcode else required
    return Options(zones, tuple(keys.values()), required, tuple(sums.items())) if reader.sound else None


def _required(reader: Reader, words: Sequence[Token]) -> frozenset[int] | None:
    first = words[0].text if words else ""
    if first in ("all", "none"):
        for token in words[1:]:
            reader.refuse(token, f"tsig: {values.shown(token.text)} follows {first}", f"require {first}")
        return None if first == "all" else frozenset()
    found = (reader.value(token, _type) for token in words)
    return frozenset(number for number in found if number is not None)


def _type(text: str) -> int:
    try:
        return rr.type_number(text)
    except ValueError:
        raise ConfigValueError(f"{values.shown(text)} is no record type", "such as AXFR, or all or none") from None


def _opcode(text: str) -> str:
    if text in ("NOTIFY", "all"):
        problem = f"require_opcode {text} is not supported by this version of kdns"
        raise ConfigValueError(problem, f"{', '.join(_OPCODES)}; a NOTIFY is taken from primaries only")
    return values.choice(text, _OPCODES)


def _name(text: str) -> bytes:
    try:
        return names.lower(names.from_text(text))
    except (DomainNameError, UnicodeEncodeError):
        raise ConfigValueError(f"{values.shown(text)} is no name of a key", "a domain name") from None


def _secret(text: str) -> bytes:
    accepted = "base64, as tsig-keygen prints it"
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigValueError("the secret is no base64", accepted) from None
    if not found:
        raise ConfigValueError("the secret is empty", accepted)
    return found


def _algorithm(text: str) -> tsig.Algorithm:
    found = tsig.ALGORITHMS.get(text.lower().removesuffix("."))
    if found is None:
        raise ConfigValueError(f"{values.shown(text)} is no algorithm of keys", ", ".join(tsig.ALGORITHMS))
    return found


def _of_file(text: str, path: Path, mistakes: list[Mistake]) -> Iterator[tuple[Token, Key]]:
    """The keys of a file, each with the word that has its name."""
    words = _words(text, str(path))
    try:
        while words:
            yield _key(words, path)
    except _UnexpectedError as error:
        mistakes.append(Mistake(str(path), error.token.line, f"tsig: {error.message}", error.accepted))


class _UnexpectedError(Exception):
    def __init__(self, token: Token, message: str, accepted: str) -> None:
        super().__init__(message)
        self.token = token
        self.message = message
        self.accepted = accepted


def _words(text: str, path: str) -> list[Token]:
    """The words of a file of keys, the last one first; quotes are taken off."""

    def blank(match: re.Match[str]) -> str:
        return match[1] or "\n" * match[0].count("\n")

    found = []
    for number, line in enumerate(_COMMENT.sub(blank, text).split("\n"), 1):
        found += [Token(match[1] or match[2] or match[3] or "", path, number) for match in _WORD.finditer(line)]
    return found[::-1]


def _key(words: list[Token], path: Path) -> tuple[Token, Key]:
    """Take one `key NAME { algorithm NAME; secret TEXT; };` off. Raises _UnexpectedError."""
    last = Token("", str(path), words[0].line)

    def take(*wanted: str) -> Token:
        token = words.pop() if words else last
        if wanted and token.text not in wanted:
            found = values.shown(token.text) if token.text else "the end"
            raise _UnexpectedError(token, f"{found} is not expected here", " or ".join(wanted))
        return token

    def value(convert: Callable[[str], object]) -> object:
        token = take()
        try:
            return convert(token.text)
        except ConfigValueError as error:
            raise _UnexpectedError(token, error.message, error.accepted) from None

    take("key")
    at = words[-1] if words else last
    name = value(_name)
    take("{")
    secret: object = None
    algorithm: object = None
    while (option := take("algorithm", "secret", "}")).text != "}":
        if option.text == "secret":
            secret = value(_secret)
        else:
            algorithm = value(_algorithm)
        take(";")
    if words and words[-1].text == ";":
        take(";")
    if secret is None:
        raise _UnexpectedError(at, f"key {values.shown(at.text)} has no secret", 'secret "BASE64";')
    assert isinstance(name, bytes)
    assert isinstance(secret, bytes)
    assert algorithm is None or isinstance(algorithm, tsig.Algorithm)
    return at, Key(name, secret, algorithm)


class Checker:
    """Looks at the signatures of a server block's queries, before its plugins have them."""

    def __init__(self, options: Options, others: Iterable[Options]) -> None:
        """others: those of all server blocks at the address."""
        self._zones = names.zone_set(options.zones)
        keys = (*(key for other in others for key in other.keys), *options.keys)
        self._keys = {key.name: key for key in keys}

    def check(self, query: Query) -> None:
        """Note in a query what its signature is worth, if it has one. Raises FormatError."""
        if self._zones.find(query.lname) is None:
            return
        record = tsig.find(query.data, query.question_end)
        if record is not None:
            query.signed = tsig.check(query.data, record, self._keys, time.time())


class Handler:
    """Refuses what is not signed, or not well."""

    def __init__(self, options: Options) -> None:
        self._zones = names.zone_set(options.zones)
        self._required = options.required

    def passing(self, zone: bytes, _: str) -> tuple[int, ...] | None:
        """Queries with a signature are none of those that are answered directly."""
        if self._required is not None and self._required <= _UNUSUAL:
            return ()
        apart = self._zones.find(zone) is None and not any(
            names.is_subdomain(below, zone) for below in self._zones.by_zone
        )
        return () if apart else None

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the rest of the chain answers, if the query may be answered."""
        signed = query.signed
        if signed is not None and signed.error:
            return Response(rcode=tsig.NOTAUTH, plugin=NAME)
        required = self._required is None or query.type in self._required
        if signed is None and required and self._zones.find(query.lname) is not None:
            return Response(rcode=rr.REFUSED, plugin=NAME)
        return await next(query)
