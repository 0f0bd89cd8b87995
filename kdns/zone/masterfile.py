"""Master files (RFC 1035 5) as rows of the zone store; `python -m kdns.zone.masterfile` is a process that reads them.

dnspython takes 20 MB, and holds the interpreter for seconds where a file is large; what it leaves behind is gone with
the process. That reads jobs from standard input, JSON lists of a path and an origin (hexadecimal wire format), one a
line, and answers each of them on standard output, see `results`:

    4 bytes     length of the head
    head        JSON, the fields of a Result without its rows
    rows        each a length of 2 bytes and the suffix of its key, a length of 4 bytes and the value without checksum
    2 bytes     0xFFFF: there are no more rows

Numbers are big endian.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import resource
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from kdns.errors import ConfigError, Mistake
from kdns.wire import names, rr
from kdns.wire.rrset import RRset
from kdns.zone.keys import name_key
from kdns.zone.values import Records, encode_rrsets

ACCEPTED = "a master file (RFC 1035 5)"
MOST_FILES = 64
"""Files that may be open: an `$INCLUDE` that leads back to its own file comes to an end."""
MOST_RECORDS = 10_000_000
"""Records of a file; what has more (`$GENERATE 0-4294967295`) would take all memory."""
MOST_DATA = 65535
"""Bytes of a record's data (RFC 1035 3.2.1)."""

_HEAD = struct.Struct("!I")
_SUFFIX = struct.Struct("!H")
_END = 0xFFFF
_SINGLE = {rr.SOA: "SOA", rr.CNAME: "CNAME", rr.DNAME: "DNAME"}
_BESIDE_CNAME = frozenset((rr.CNAME, rr.RRSIG, rr.NSEC, 25))  # RFC 4034 2.1, 3, 4: and KEY
_NSEC3 = frozenset((50, 51))
_META = range(128, 256)  # RFC 6895 3.1: of queries and of messages
_PLACE = re.compile(r"^.*?:\d+: ")
"""dnspython writes file and line in front of most that it says; it is told where by ourselves."""
_LEAST_PREFIX = b"\0\0"


@dataclass(slots=True)
class Content:
    """What a master file holds: the RRsets of each name (lower case), by type a TTL and the rdatas.

    outside: the first record that is not in the zone, and how many there are. files: those that the records are in.
    count: how many records were read.
    """

    names: dict[bytes, dict[int, tuple[int, dict[bytes, None]]]] = field(default_factory=dict)
    files: dict[str, None] = field(default_factory=dict)
    outside: Mistake | None = None
    outsiders: int = 0
    count: int = 0

    def records(self, name: bytes) -> Records:
        """A name's RRsets, in the order of their types."""
        return tuple(RRset(rtype, ttl, tuple(rdatas)) for rtype, (ttl, rdatas) in sorted(self.names[name].items()))

    def rows(self, origin: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Its rows for `Transaction.replace`."""
        keys = sorted((name_key(_LEAST_PREFIX, name, origin), name) for name in self.names)
        for key, name in keys:
            yield key[len(_LEAST_PREFIX) :], encode_rrsets(key, self.records(name))[4:]


def read(path: Path, origin: bytes) -> Content:
    """Read a master file. Paths of `$INCLUDE` start at its folder, to which this process goes.

    Raises ConfigError with the first mistake; its file may be one that is included.
    """
    import dns.exception

    from kdns.zone.entries import Place, Reader, open_file

    content = Content()

    def take(owner: bytes, ttl: int, rtype: int, rdata: bytes, at: Place) -> None:
        content.files[at[0]] = None
        add(content, origin, owner, ttl, rtype, rdata, at)

    try:
        with open_file(path) as file:
            os.chdir(path.parent)
            reader = Reader(file, path, origin, take)
            try:
                reader.read()
            except (dns.exception.DNSException, OSError, ValueError) as error:
                raise ConfigError([_mistake(error, path.parent, *reader.where())]) from None
    except OSError as error:
        raise ConfigError([Mistake(str(path), 1, _text(error), "a file that can be read")]) from None
    if rr.SOA not in content.names.get(origin, {}):
        text = f"there is no SOA record for the origin {names.to_text(origin)}"
        raise ConfigError([Mistake(str(path), 1, text, "one SOA record at the zone's apex")])
    return content


def add(
    content: Content, origin: bytes, owner: bytes, ttl: int, rtype: int, rdata: bytes, where: tuple[str, int]
) -> None:
    """Add a record. Raises ConfigError if it cannot be there beside the others."""
    content.count += 1
    if content.count > MOST_RECORDS:
        text = f"there are more than {MOST_RECORDS} records"
        raise ConfigError([Mistake(*where, text, "fewer of them")])
    if not names.is_subdomain(owner, origin):
        text = f"{names.to_text(owner)} is not in the zone {names.to_text(origin)}"
        content.outside = content.outside or Mistake(*where, text)
        content.outsiders += 1
        return
    there = content.names.setdefault(owner, {})
    ttl_there, rdatas = there.get(rtype, (ttl, {}))
    wrong = _wrong(there, rtype, rdata, at_apex=owner == origin)
    if wrong is not None:
        text, accepted = wrong
        raise ConfigError([Mistake(*where, f"{names.to_text(owner)} {text}", accepted)])
    rdatas[rdata] = None
    there[rtype] = (min(ttl, ttl_there), rdatas)  # RFC 2181 5.2: those of an RRset do not differ


def _wrong(
    there: dict[int, tuple[int, dict[bytes, None]]], rtype: int, rdata: bytes, *, at_apex: bool
) -> tuple[str, str] | None:
    """What is wrong with a record beside those that its name has, and what is accepted."""
    text = rr.type_text(rtype)
    if rtype in _NSEC3:
        return f"is of type {text}", "a zone that is signed with NSEC, or not at all"
    if rtype in _META or rtype == rr.OPT or not rtype:
        return f"is of type {text}, which no zone has", "types of data"
    if len(rdata) > MOST_DATA:
        return f"has a {text} record of {len(rdata)} bytes", f"at most {MOST_DATA}"
    if rtype == rr.SOA and not at_apex:
        return "has an SOA record and is not the zone's apex", "one SOA record, at the apex"
    if rtype in _SINGLE and rtype in there and rdata not in there[rtype][1]:
        return f"has more than one {text} record", "one of them"
    if rtype not in _BESIDE_CNAME and rr.CNAME in there:
        return f"has a {text} record beside a CNAME record", "CNAME, or others"
    if rtype == rr.CNAME and there.keys() - _BESIDE_CNAME:
        others = ", ".join(rr.type_text(number) for number in sorted(there.keys() - _BESIDE_CNAME))
        return f"has a CNAME record beside {others}", "CNAME, or others"
    return None


def _mistake(error: Exception, folder: Path, file: str, line: int) -> Mistake:
    if isinstance(error, OSError):
        return Mistake(file, line, f"{folder / str(error.filename)}: {_text(error)}", "a file that can be read")
    return Mistake(file, line, _text(error), ACCEPTED)


def _text(error: Exception) -> str:
    if isinstance(error, UnicodeError) or "surrogates not allowed" in str(error):
        return "there are bytes that are not UTF-8"
    if isinstance(error, OSError):
        return (error.strerror or type(error).__name__).lower()
    text = _PLACE.sub("", str(error).replace("\n", " "))
    return text or type(error).__doc__ or type(error).__name__


# As a process


def main() -> None:
    """Read jobs and answer them."""
    os.nice(10)  # others answer meanwhile
    resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_FILES, MOST_FILES))
    with contextlib.suppress(OSError):  # a file that needs more memory than there is ends this process and no other
        Path("/proc/self/oom_score_adj").write_text("1000")
    start = Path.cwd()
    for line in sys.stdin:
        path, origin = json.loads(line)
        os.chdir(start)
        _answer(sys.stdout.buffer, start / path, bytes.fromhex(origin))
        sys.stdout.buffer.flush()
        gc.collect()  # files that were open at a mistake


def _answer(out: IO[bytes], path: Path, origin: bytes) -> None:
    content = Content()
    head: dict[str, Any] = {"mistake": None, "outside": None, "outsiders": 0, "serial": 0, "records": 0}
    try:
        content = read(path, origin)
        (soa,) = content.names[origin][rr.SOA][1]
        head["serial"] = int.from_bytes(soa[-20:-16], "big")
        head["records"] = sum(len(rdatas) for types in content.names.values() for _, rdatas in types.values())
        if content.outside is not None:
            head["outside"] = [content.outside.file, content.outside.line, content.outside.message]
            head["outsiders"] = content.outsiders
    except ConfigError as error:
        (mistake,) = error.mistakes
        head["mistake"] = [mistake.file, mistake.line, mistake.message, mistake.accepted]
    head["files"] = list({str(path): None} | content.files)
    data = json.dumps(head).encode()
    out.write(_HEAD.pack(len(data)) + data)
    for suffix, value in content.rows(origin):
        out.write(_SUFFIX.pack(len(suffix)) + suffix + _HEAD.pack(len(value)) + value)
    out.write(_SUFFIX.pack(_END))


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a job.

    mistake: why there are no rows. files: those that it was read from. outside: the first record that is not in the
    zone and was left out, of so many. rows: to be gone through again and again, as long as the file is open that they
    are in.
    """

    mistake: Mistake | None
    files: tuple[str, ...]
    outside: Mistake | None
    outsiders: int
    serial: int
    records: int
    rows: Rows


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows in a file that stay there. start: the offset of the first one."""

    fd: int
    start: int

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        with open(os.dup(self.fd), "rb") as file:  # noqa: PTH123
            file.seek(self.start)
            while (size := _SUFFIX.unpack(file.read(2))[0]) != _END:
                suffix = file.read(size)
                (size,) = _HEAD.unpack(file.read(4))
                yield suffix, file.read(size)


def results(fd: int) -> list[Result]:
    """What the process has written to a file, for each job in turn; not what it had no time to finish."""
    found = []
    with open(os.dup(fd), "rb") as file, contextlib.suppress(struct.error, ValueError):  # noqa: PTH123
        file.seek(0)
        while True:
            (size,) = _HEAD.unpack(file.read(4))
            head = json.loads(file.read(size))
            rows = Rows(fd, file.tell())
            while (size := _SUFFIX.unpack(file.read(2))[0]) != _END:
                file.seek(size, os.SEEK_CUR)
                file.seek(_HEAD.unpack(file.read(4))[0], os.SEEK_CUR)
            found.append(
                Result(
                    _restored(head["mistake"]),
                    tuple(head["files"]),
                    _restored(head["outside"]),
                    head["outsiders"],
                    head["serial"],
                    head["records"],
                    rows,
                )
            )
    return found


def jobs(wanted: Iterable[tuple[str, bytes]]) -> bytes:
    """What the process is to read, for paths and origins."""
    return b"".join(json.dumps([path, origin.hex()]).encode() + b"\n" for path, origin in wanted)


def _restored(fields: list[Any] | None) -> Mistake | None:
    return None if fields is None else Mistake(*fields)


if __name__ == "__main__":
    main()
