"""The records of a master file (RFC 1035 5), one after the other, as dnspython reads them.

Plain lines, which say no more than has to be (`www 300 IN A 192.0.2.1`), are most of a large file. They are taken as a
whole, in a tenth of the time; all others are taken apart by dnspython, and so are those of included files.

Import it only in a process that reads: dnspython takes 20 MB.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeAlias

import dns.grange
import dns.name
import dns.rdataclass
import dns.tokenizer
import dns.transaction
import dns.zonefile

from kdns.wire import names, rr

Place: TypeAlias = tuple[str, int]
"""File and line."""
Take: TypeAlias = Callable[[bytes, int, int, bytes, Place], None]
"""Takes a record: owner (lower case wire format), TTL, type, rdata, where it begins."""
LONGEST_STRING = 255
"""Bytes of a string in a record (RFC 1035 3.3)."""

_NAMES = {"CNAME": rr.CNAME, "NS": rr.NS, "PTR": rr.PTR}
_NAME = r"(@|(?:[a-z0-9_*-]+\.)*[a-z0-9_*-]+\.?)"
_PLAIN = re.compile(
    rf"{_NAME}?[ \t]+(?:([0-9]{{1,9}})[ \t]+)?(?:IN[ \t]+)?"
    rf"(?:A[ \t]+([0-9.]+)|AAAA[ \t]+([0-9a-f:]+)|(CNAME|NS|PTR)[ \t]+{_NAME})[ \t]*(?:;.*)?\n?",
    re.ASCII | re.IGNORECASE,
)
_COUNTER = re.compile(r"\\.|\$\$|\$\{[^}]*\}?|\$")
_COUNTED = re.compile(r"\$(?:\{([+-]?\d{1,9})(?:,(\d{1,3})(?:,([doxXnN]))?)?\})?", re.ASCII)


class Reader(dns.zonefile.Reader):
    """Reads a file and hands on each record, of whatever zone.

    at: file and line where the last record begins. inside: it has begun, and not ended.
    """

    def __init__(self, file: IO[str], path: Path, origin: bytes, take: Take) -> None:
        """origin: what names are relative to in the beginning."""
        self.at = (str(path), 1)
        self.inside = False
        self._path = path
        self._take = take
        self._owner: bytes | None = None
        dns.zonefile.open = open_file  # type: ignore[attr-defined]  # for `$INCLUDE`
        tokenizer = _Tokenizer(_Lines(file), str(path), self)
        super().__init__(tokenizer, dns.rdataclass.IN, _Sink(self), allow_include=True)
        self.current_origin: dns.name.Name = dns.name.from_wire(origin, 0)[0]
        self.last_name = self.current_origin

    @property
    def last_name(self) -> dns.name.Name:
        """The last owner, which a line without one has too."""
        if self._owner is not None:
            self.last_name = dns.name.from_wire(self._owner, 0)[0]
        return self._last_name

    @last_name.setter
    def last_name(self, name: dns.name.Name) -> None:
        self._last_name, self._owner = name, None

    def where(self) -> Place:
        """Where something is wrong. Behind a directive its line is over."""
        file, line = self.tok.where()
        return self.at if self.inside else (self._file(file), max(1, line - (not self.tok.eof)))

    def take(self, owner: dns.name.Name, ttl: int, rdata: Any) -> None:
        """Hand on a record that was taken apart."""
        self._take(_wire(owner).lower(), ttl, int(rdata.rdtype), rdata.to_wire(), self.at)

    def take_line(self, line: str, number: int) -> bool:
        """Take a plain line; False, and nothing has happened, if it is none or has something wrong."""
        match = _PLAIN.fullmatch(line)
        if match is None:
            return False
        owner, stated, a, aaaa, kind, target = match.groups()
        above = _wire(self.current_origin)
        ttl = int(stated) if stated else self._implicit_ttl()
        name = _name(owner, above) if owner else self._owner or _wire(self.last_name)
        rtype, rdata = (_NAMES[kind.upper()], _name(target, above)) if kind else _address(a, aaaa)
        if ttl is None or name is None or rdata is None:
            return False
        if stated:
            self.last_ttl, self.last_ttl_known = ttl, True
        self._owner = name.lower()
        self.at = (str(self._path), number)
        self._take(self._owner, ttl, rtype, rdata, self.at)
        return True

    def _rr_line(self) -> None:
        self._begin(super()._rr_line)

    def _generate_line(self) -> None:
        self._begin(self._generate)

    def _generate(self) -> None:
        """`$GENERATE RANGE OWNER [TTL] [CLASS] TYPE DATA`: a line of its own for each number. DATA may have several
        words; dnspython takes one."""
        words: list[str] = []
        while not (token := self.tok.get()).is_eol_or_eof():
            words.append(f'"{token.value}"' if token.is_quoted_string() else token.value)
        start, stop, step = dns.grange.from_text(words[0] if words else "")
        line = " ".join(words[1:])
        tokenizer = self.tok
        try:
            for number in range(start, stop + 1, step):
                self.tok = Tokenizer(_generated(line, number))
                super()._rr_line()
        finally:
            self.tok = tokenizer

    def _begin(self, read: Callable[[], Any]) -> None:
        file, line = self.tok.where()
        self.at = (self._file(file), line)
        self.inside = True
        read()
        self.inside = False

    def _file(self, name: str) -> str:
        return str(self._path.parent / name)


class Tokenizer(dns.tokenizer.Tokenizer):
    """Takes strings of any length: a longer one than fits is several, as CoreDNS has it."""

    def get_remaining(self, max_tokens: int | None = None) -> list[dns.tokenizer.Token]:
        """The other tokens of a line."""
        return [part for token in super().get_remaining(max_tokens) for part in _parts(token)]


class _Tokenizer(Tokenizer):
    """Gives plain lines to the reader as a whole."""

    def __init__(self, lines: _Lines, name: str, reader: Reader) -> None:
        super().__init__(lines, name)
        self._lines = lines
        self._reader = reader

    def get(self, want_leading: bool = False, want_comment: bool = False) -> dns.tokenizer.Token:
        """The next token."""
        if want_leading and want_comment:  # between entries
            while (line := self._lines.line()) and self._reader.take_line(line, self.line_number):
                self._lines.skip()
                self.line_number += 1
        return super().get(want_leading, want_comment)


def _parts(token: dns.tokenizer.Token) -> list[dns.tokenizer.Token]:
    if len(token.value) <= LONGEST_STRING:
        return [token]
    data = token.unescape_to_bytes().value
    starts = range(0, len(data), LONGEST_STRING)
    parts = ("".join(f"\\{byte:03d}" for byte in data[at : at + LONGEST_STRING]) for at in starts)
    return [dns.tokenizer.Token(token.ttype, part, has_escape=True) for part in parts]


class _Lines:
    """A file for a tokenizer, which reads it by characters, and of which whole lines can be looked at."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._line = ""
        self._at = 0

    def line(self) -> str:
        """The next line, of which nothing was read; empty at the end, and inside of a line."""
        if self._at == len(self._line):
            self._line, self._at = self._file.readline(), 0
        return "" if self._at else self._line

    def skip(self) -> None:
        """Go on behind that line."""
        self._at = len(self._line)

    def read(self, _: int) -> str:
        """The next character; empty at the end."""
        if self._at == len(self._line):
            self._line, self._at = self._file.readline(), 0
            if not self._line:
                return ""
        self._at += 1
        return self._line[self._at - 1]


class _Sink(dns.transaction.Transaction):
    """Takes each record; dnspython's own ways keep objects of some kilobytes."""

    def __init__(self, reader: Reader) -> None:
        super().__init__(_Everywhere())
        self._reader = reader

    def add(self, *args: Any) -> None:
        """A record was read."""
        self._reader.take(*args)

    def _set_origin(self, _: Any) -> None:
        """`$ORIGIN` changes nothing but what relative names are."""


class _Everywhere(dns.transaction.TransactionManager):
    """Has all names, so that those outside of the zone come too, and are not dropped without a word."""

    def origin_information(self) -> tuple[dns.name.Name, bool, dns.name.Name]:
        """The root, and no relative names."""
        return dns.name.root, False, dns.name.root


def open_file(path: Path | str, **_: Any) -> IO[str]:
    """Open a file to read it. What is none (a pipe, a device) may never begin or never end: it raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is a directory" if stat.S_ISDIR(mode) else "is no file", str(path))
    return open(fd, encoding="utf-8", errors="surrogateescape")  # noqa: PTH123


def _generated(line: str, number: int) -> str:
    """A line of `$GENERATE` for a number. `$` and `${OFFSET,WIDTH,BASE}` stand for it, `$$` for `$`; what is behind a
    backslash stays. Bases n and N are nibbles with dots, the last one first (`ip6.arpa`)."""

    def count(match: re.Match[str]) -> str:
        if match[0].startswith("\\"):
            return match[0]
        if match[0] == "$$":
            return "$"
        counted = _COUNTED.fullmatch(match[0])
        value = number + int(counted[1] or 0) if counted is not None else -1
        if counted is None or value < 0:
            raise ValueError(f"{match[0]} is no number of $GENERATE")
        width, base = int(counted[2] or 0), counted[3] or "d"
        if base not in "nN":
            return format(value, base).zfill(width)
        return ".".join(reversed(format(value, "x" if base == "n" else "X").zfill(width // 2 + 1)))

    return _COUNTER.sub(count, line)


def _wire(name: dns.name.Name) -> bytes:
    wire = name.to_wire()
    assert wire is not None
    return wire


def _name(text: str, above: bytes) -> bytes | None:
    """A name without escapes in wire format; None if it is too long. above: what a relative one is below."""
    if text == "@":
        return above
    labels = text.encode().split(b".")
    end = above if labels[-1] else names.ROOT
    name = b"".join([bytes((len(label),)) + label for label in labels if label]) + end
    return name if len(name) <= names.MAX_NAME and max(map(len, labels)) <= names.MAX_LABEL else None


def _address(a: str | None, aaaa: str | None) -> tuple[int, bytes | None]:
    family, rtype, text = (socket.AF_INET, rr.A, a) if a else (socket.AF_INET6, rr.AAAA, aaaa or "")
    try:
        return rtype, socket.inet_pton(family, text)
    except OSError:
        return rtype, None
