"""Transaction signatures (RFC 8945), on messages as bytes: a query's is checked, those of its responses are made.

The clock is passed in, as seconds since 1970. Bytes from the network raise FormatError and nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from kdns.errors import FormatError
from kdns.wire import names
from kdns.wire.message import skip_name
from kdns.wire.relay import expand

TSIG = 250
NOTAUTH = 9
BADSIG, BADKEY, BADTIME, BADTRUNC = 16, 17, 18, 22
ERRORS = {BADSIG: "BADSIG", BADKEY: "BADKEY", BADTIME: "BADTIME", BADTRUNC: "BADTRUNC"}
MOST_UNSIGNED = 99
"""Responses of a chain that may follow each other without a signature (RFC 8945 5.3.1)."""
FUDGE = 300
"""Seconds by which the clock of whoever reads our signatures may be wrong (RFC 8945 10)."""
SHORTEST = 16
"""Bytes of a MAC that are enough here; with less, but as many as RFC 8945 5.2.2.1 wants, it is BADTRUNC."""
_LEAST = 10

_HEADER = struct.Struct("!HHHHHH")
_FIXED = struct.Struct("!HHIH")
_ANY_CLASS = 255


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A way to sign. text: its name. digest: as hashlib has it. size: bytes of a MAC."""

    text: str
    digest: str
    size: int

    @property
    def name(self) -> bytes:
        """Its name in wire format."""
        return names.from_text(self.text)


def _algorithms() -> dict[str, Algorithm]:
    found = {}
    for digest in ("sha1", "sha224", "sha256", "sha384", "sha512"):
        size = hashlib.new(digest).digest_size
        found[f"hmac-{digest}"] = Algorithm(f"hmac-{digest}", digest, size)
        if digest in ("sha256", "sha384", "sha512"):
            found[f"hmac-{digest}-{size * 4}"] = Algorithm(f"hmac-{digest}-{size * 4}", digest, size // 2)
    return found


ALGORITHMS: Mapping[str, Algorithm] = _algorithms()
"""Those of RFC 8945 6 but for MD5, by their name without the last dot."""
_BY_NAME = {algorithm.name: algorithm for algorithm in ALGORITHMS.values()}


@dataclass(frozen=True, slots=True)
class Key:
    """A secret that is shared with others.

    name: lower case wire format. algorithm: the only one that it is for, None if it is for all of them.
    """

    name: bytes
    secret: bytes
    algorithm: Algorithm | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A TSIG record (RFC 8945 4.2). start: its offset in the message. Names are in lower case."""

    start: int
    name: bytes
    algorithm: bytes
    time: int
    fudge: int
    mac: bytes
    original_id: int
    error: int = 0
    other: bytes = b""


@dataclass(frozen=True, slots=True, eq=False)
class Signed:
    """A query that has a TSIG record. key: None without a good signature. error: BADSIG and so on, 0 if all is well."""

    record: Record
    key: Key | None
    error: int = 0

    @property
    def size(self) -> int:
        """Bytes of the record that a response gets, at most."""
        other = 6 if self.error == BADTIME else 0
        return len(self.record.name) + 10 + len(self.record.algorithm) + 16 + self._mac_size + other

    @property
    def _mac_size(self) -> int:
        return _BY_NAME[self.record.algorithm].size if self.key is not None else 0


def find(data: bytes, at: int) -> Record | None:
    """The TSIG record of a message, whose records begin at an offset; None if it has none.

    Raises FormatError for records that cannot be read, and for a TSIG that is not the last of the additional section
    (RFC 8945 5.1), or whose class or TTL is another one than ANY and 0.
    """
    *_, answers, authorities, additionals = _HEADER.unpack_from(data)
    count = answers + authorities + additionals
    for index in range(count):
        start, at = at, skip_name(data, at)
        if at + _FIXED.size > len(data):
            raise FormatError("a record is cut short")
        rtype, klass, ttl, size = _FIXED.unpack_from(data, at)
        at += _FIXED.size
        if at + size > len(data):
            raise FormatError("a record's data is cut short")
        if rtype == TSIG:
            if index != count - 1 or not additionals or klass != _ANY_CLASS or ttl:
                raise FormatError("a TSIG record is not where, or not what, it should be")
            return _record(start, expand(data, start)[0].lower(), data[at : at + size])
        at += size
    return None


def _record(start: int, name: bytes, rdata: bytes) -> Record:
    algorithm, at = expand(rdata, 0)
    try:
        high, low, fudge, size = struct.unpack_from("!HIHH", rdata, at)
        at += 10
        mac = rdata[at : at + size]
        at += size
        original_id, error, others = struct.unpack_from("!HHH", rdata, at)
    except struct.error:
        raise FormatError("a TSIG record is cut short") from None
    other = rdata[at + 6 :]
    if len(other) != others:
        raise FormatError("a TSIG record is cut short, or has something behind it")
    return Record(start, name, algorithm.lower(), high << 32 | low, fudge, mac, original_id, error, other)


def check(data: bytes, record: Record, keys: Mapping[bytes, Key], now: float) -> Signed:
    """Whether a query's signature is good (RFC 8945 5.2). keys: by name.

    Raises FormatError for a MAC of a size that no algorithm could have made.
    """
    key = keys.get(record.name)
    algorithm = _BY_NAME.get(record.algorithm)
    if key is None or algorithm is None or key.algorithm not in (None, algorithm):
        return Signed(record, None, BADKEY)
    whole = hashlib.new(algorithm.digest).digest_size
    if not max(_LEAST, whole // 2) <= len(record.mac) <= algorithm.size:
        raise FormatError(f"a MAC of {len(record.mac)} bytes")
    message = _unsigned(data, record)
    expected = hmac.digest(key.secret, message + _variables(record), algorithm.digest)
    if not hmac.compare_digest(expected[: len(record.mac)], record.mac):
        return Signed(record, None, BADSIG)
    if abs(int(now) - record.time) > record.fudge:
        return Signed(record, key, BADTIME)
    if len(record.mac) < min(SHORTEST, algorithm.size):
        return Signed(record, key, BADTRUNC)
    return Signed(record, key)


def _unsigned(data: bytes, record: Record) -> bytes:
    """The message as it was before it was signed (RFC 8945 4.3.2)."""
    _, flags, *counts, additionals = _HEADER.unpack_from(data)
    return _HEADER.pack(record.original_id, flags, *counts, additionals - 1) + data[_HEADER.size : record.start]


def _variables(record: Record) -> bytes:
    """What of the record itself is signed (RFC 8945 4.3.3)."""
    head = record.name + struct.pack("!HI", _ANY_CLASS, 0) + record.algorithm
    return head + _timers(record) + struct.pack("!HH", record.error, len(record.other)) + record.other


def _timers(record: Record) -> bytes:
    return struct.pack("!HIH", record.time >> 32, record.time & 0xFFFFFFFF, record.fudge)


class Signer:
    """Signs the responses to one query, which are a chain: each signature is of the one before it too."""

    def __init__(self, signed: Signed) -> None:
        self._signed = signed
        self._before: bytes | None = None

    @property
    def mac(self) -> bytes:
        """The last one that was made."""
        return self._before or b""

    def sign_first(self, query: bytes, now: float) -> bytes:
        """A message that is no response: nothing goes before it."""
        return self.sign(query, now, first=True)

    def sign(self, message: bytes, now: float, *, first: bool = False) -> bytes:
        """The message with its TSIG record; without a MAC where there is no key (RFC 8945 5.3.2)."""
        asked, key, error = self._signed.record, self._signed.key, self._signed.error
        ident, flags, *counts, additionals = _HEADER.unpack_from(message)
        time, other = int(now), b""
        if error == BADTIME:
            time, other = asked.time, int(now).to_bytes(6)
        record = Record(0, asked.name, asked.algorithm, time, FUDGE, b"", ident, error, other)
        mac = b""
        if key is not None:
            algorithm = _BY_NAME[asked.algorithm]
            before = asked.mac if self._before is None else self._before
            tail = _variables(record) if self._before is None else _timers(record)
            signed = (b"" if first else len(before).to_bytes(2) + before) + message + tail
            mac = hmac.digest(key.secret, signed, algorithm.digest)[: algorithm.size]
            self._before = mac
        rdata = record.algorithm + _timers(record) + len(mac).to_bytes(2) + mac
        rdata += struct.pack("!HHH", ident, error, len(other)) + other
        header = _HEADER.pack(ident, flags, *counts, additionals + 1)
        return header + message[_HEADER.size :] + record.name + _FIXED.pack(TSIG, _ANY_CLASS, 0, len(rdata)) + rdata


class Asker:
    """The other side: signs a query, and checks the responses to it, which are a chain (RFC 8945 5.4)."""

    def __init__(self, key: Key) -> None:
        self._key = key
        self._algorithm = key.algorithm or ALGORITHMS["hmac-sha256"]
        self._mac = b""
        self._begun = False
        self._context: hmac.HMAC | None = None
        self._unsigned = 0

    def sign(self, query: bytes, now: float) -> bytes:
        """The query with its TSIG record."""
        blank = Record(0, self._key.name, self._algorithm.name, 0, 0, b"", int.from_bytes(query[:2]))
        signer = Signer(Signed(blank, self._key))
        data = signer.sign_first(query, now)
        self._mac = signer.mac
        self._begun = False
        self._context = None
        self._unsigned = 0
        return data

    def check(self, data: bytes, at: int, now: float) -> bool:
        """Look at the next response, whose records begin at an offset; False if it has no signature of its own.

        Then it is good only if that of a later one is. Raises FormatError for what is not signed as it has to be.
        """
        context = self._context
        if context is None:
            context = hmac.new(self._key.secret, len(self._mac).to_bytes(2) + self._mac, self._algorithm.digest)
            self._context = context
        record = find(data, at)
        if record is None:
            self._unsigned += 1
            if not self._begun or self._unsigned > MOST_UNSIGNED:
                raise FormatError("a response is not signed")
            context.update(data)
            return False
        if record.error:
            raise FormatError(f"the signature was refused ({ERRORS.get(record.error, str(record.error))})")
        if (record.name, record.algorithm) != (self._key.name, self._algorithm.name):
            raise FormatError("a response is signed with another key")
        context.update(_unsigned(data, record) + (_timers(record) if self._begun else _variables(record)))
        if not hmac.compare_digest(context.digest()[: self._algorithm.size], record.mac):
            raise FormatError("a response has a wrong signature")
        if abs(int(now) - record.time) > record.fudge:
            raise FormatError("a response was signed at another time")
        self._mac, self._begun, self._context, self._unsigned = record.mac, True, None, 0
        return True
