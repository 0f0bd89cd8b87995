"""Messages that a hostile or broken client may send: a seed corpus in bytes, and mutations of it.

Mutations are drawn from a given Random, so that a seed gives the same packets on every machine.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

QUERY = b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
"""The header of an ordinary query behind its ID: RD, one question."""
WITH_EDNS = b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01"
ID = b"\xab\xcd"
A, TXT, AAAA, SRV, ANY, AXFR = (struct.pack("!HH", number, 1) for number in (1, 16, 28, 33, 255, 252))
WEB = b"\x03web\x07default\x03svc\x07cluster\x05local\x00"
MISSING = b"\x03api\x07example\x03com\x07default\x03svc\x07cluster\x05local\x00"
OPT = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00"
OPT_DO = b"\x00\x00\x29\x10\x00\x00\x00\x80\x00\x00\x00"


def _opt(options: bytes, version: int = 0, size: int = 1232) -> bytes:
    return b"\x00\x00\x29" + struct.pack("!HBBHH", size, 0, version, 0, len(options)) + options


SEEDS: dict[str, bytes] = {
    # What clients send
    "a": ID + QUERY + WEB + A,
    "aaaa": ID + QUERY + WEB + AAAA,
    "0x20": ID + QUERY + b"\x03wEB\x07DeFault\x03SVC\x07cLUSTEr\x05LOcAl\x00" + A,
    "nxdomain": ID + QUERY + MISSING + A,
    "srv": ID + QUERY + b"\x05_http\x04_tcp" + WEB + SRV,
    "headless": ID + QUERY + b"\x02db\x07default\x03svc\x07cluster\x05local\x00" + A,
    "large": ID + QUERY + b"\x03big\x07default\x03svc\x07cluster\x05local\x00" + A,
    "large-srv": ID + WITH_EDNS + b"\x03big\x07default\x03svc\x07cluster\x05local\x00" + SRV + OPT,
    "external": ID + QUERY + b"\x03out\x07default\x03svc\x07cluster\x05local\x00" + A,
    "version": ID + QUERY + b"\x0bdns-version\x07cluster\x05local\x00" + TXT,
    "ptr": ID + QUERY + b"\x0210\x010\x0296\x0210\x07in-addr\x04arpa\x00\x00\x0c\x00\x01",
    "ptr6": ID + QUERY + b"\x011" + b"\x010" * 31 + b"\x03ip6\x04arpa\x00\x00\x0c\x00\x01",
    "soa": ID + QUERY + b"\x07cluster\x05local\x00\x00\x06\x00\x01",
    "any": ID + QUERY + WEB + ANY,
    "axfr": ID + QUERY + b"\x07cluster\x05local\x00" + AXFR,
    "ixfr": ID + b"\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x07cluster\x05local\x00\x00\xfb\x00\x01"
    + b"\xc0\x0c\x00\x06\x00\x01\x00\x00\x00\x00\x00\x16\x00\x00" + struct.pack("!5I", 1, 2, 3, 4, 5),
    "chaos": ID + QUERY + b"\x07version\x04bind\x00\x00\x10\x00\x03",
    "root": ID + QUERY + b"\x00\x00\x02\x00\x01",
    "elsewhere": ID + QUERY + b"\x07example\x03com\x00" + A,
    "edns": ID + WITH_EDNS + WEB + A + OPT,
    "edns-do": ID + WITH_EDNS + WEB + A + OPT_DO,
    "edns-512": ID + WITH_EDNS + WEB + A + _opt(b"", size=512),
    "edns-0": ID + WITH_EDNS + WEB + A + _opt(b"", size=0),
    "nsid": ID + WITH_EDNS + WEB + A + _opt(b"\x00\x03\x00\x00"),
    "cookie": ID + WITH_EDNS + WEB + A + _opt(b"\x00\x0a\x00\x08" + b"c" * 8),
    "subnet": ID + WITH_EDNS + WEB + A + _opt(b"\x00\x08\x00\x07\x00\x01\x18\x00\x0a\x01\x02"),
    "padding": ID + WITH_EDNS + WEB + A + _opt(b"\x00\x0c\x01\x00" + bytes(256)),
    "tsig": ID + WITH_EDNS + WEB + A + b"\x03key\x00\x00\xfa\x00\xff\x00\x00\x00\x00\x00\x1e\x08hmac-md5\x00"
    + bytes(6) + b"\x01\x2c\x00\x04mac!" + ID + bytes(4),
    # What only the broken and the hostile send
    "edns-version": ID + WITH_EDNS + WEB + A + _opt(b"", version=1),
    "edns-twice": ID + b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x02" + WEB + A + OPT + OPT,
    "edns-as-answer": ID + b"\x01\x00\x00\x01\x00\x01\x00\x00\x00\x00" + WEB + A + OPT,
    "edns-named": ID + WITH_EDNS + WEB + A + b"\x03web" + OPT,
    "edns-cut-option": ID + WITH_EDNS + WEB + A + _opt(b"\x00\x03\x00\x09x"),
    "edns-cut": ID + WITH_EDNS + WEB + A + OPT[:6],
    "response": ID + b"\x81\x80" + QUERY[2:] + WEB + A,
    "notify": ID + b"\x20" + QUERY[1:] + b"\x07cluster\x05local\x00\x00\x06\x00\x01",
    "update": ID + b"\x28" + QUERY[1:] + b"\x07cluster\x05local\x00\x00\x06\x00\x01",
    "iquery": ID + b"\x08" + QUERY[1:] + WEB + A,
    "opcode-15": ID + b"\x78" + QUERY[1:] + WEB + A,
    "every-flag": ID + b"\x07\xff" + QUERY[2:] + WEB + A,
    "no-question": ID + b"\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    "two-questions": ID + b"\x01\x00\x00\x02\x00\x00\x00\x00\x00\x00" + WEB + A + MISSING + AAAA,
    "counts": ID + b"\x01\x00\x00\x01\xff\xff\xff\xff\xff\xff" + WEB + A,
    "questions": ID + b"\x01\x00\xff\xff\x00\x00\x00\x00\x00\x00" + WEB + A,
    "class-any": ID + QUERY + WEB + b"\x00\x01\x00\xff",
    "type-0": ID + QUERY + WEB + b"\x00\x00\x00\x01",
    "type-opt": ID + QUERY + WEB + b"\x00\x29\x00\x01",
    "type-65535": ID + QUERY + WEB + b"\xff\xff\xff\xff",
    "pointer-to-itself": ID + QUERY + b"\xc0\x0c" + A,
    "pointer-forward": ID + QUERY + b"\x03web\xc0\x12\x00" + A,
    "pointer-loop-behind": ID + b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01" + WEB + A + b"\xc0\x2d" + A + bytes(6),
    "label-type-01": ID + QUERY + b"\x43web\x00" + A,
    "label-type-10": ID + QUERY + b"\x83web\x00" + A,
    "label-64": ID + QUERY + b"\x40" + b"a" * 64 + b"\x05local\x00" + A,
    "label-63": ID + QUERY + b"\x3f" + b"a" * 63 + WEB + A,
    "name-255": ID + QUERY + (b"\x3f" + b"a" * 63) * 3 + b"\x2f" + b"a" * 47 + b"\x07cluster\x05local\x00" + A,
    "name-256": ID + QUERY + (b"\x3f" + b"a" * 63) * 3 + b"\x30" + b"a" * 48 + b"\x07cluster\x05local\x00" + A,
    "labels-127": ID + QUERY + b"\x01a" * 127 + b"\x00" + A,
    "labels-in-zone": ID + QUERY + b"\x01a" * 118 + b"\x07cluster\x05local\x00" + A,
    "binary-labels": ID + QUERY + b"\x08\x00\xff.\\\x00\x01\x02\x03\x03svc\x07cluster\x05local\x00" + A,
    "dots-in-label": ID + QUERY + b"\x0bweb.default\x03svc\x07cluster\x05local\x00" + A,
    "zone-in-label": ID + QUERY + b"\x0dcluster\x05local\x00" + A,
    "name-cut": ID + QUERY + WEB[:9],
    "type-cut": ID + QUERY + WEB + b"\x00",
    "trailing": ID + QUERY + WEB + A + b"trailing",
    "trailing-much": ID + QUERY + WEB + A + bytes(4000),
    "header": ID + QUERY,
    "header-cut": ID + QUERY[:-1],
    "one-byte": b"\x00",
    "nothing": b"",
    "zeros": bytes(512),
    "ones": b"\xff" * 512,
    "http": b"GET / HTTP/1.1\r\nHost: cluster.local\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),
}  # fmt: skip


def gets_answer(data: bytes) -> bool:
    """Whether SPEC has an answer for a message: all but those shorter than a header, and responses."""
    return len(data) >= 12 and not data[2] & 0x80


def packets(count: int, choice: random.Random, longest: int = 4096) -> Iterator[bytes]:
    """That many packets: of ten one seed as it is, two of random bytes, seven seeds that were mutated."""
    seeds = list(SEEDS.values())
    for _ in range(count):
        kind = choice.randrange(10)
        if kind == 0:
            yield choice.choice(seeds)[:longest]
        elif kind <= 2:
            yield _random(choice)
        else:
            data = bytearray(choice.choice(seeds))
            for _ in range(choice.choice((1, 1, 1, 2, 3, 8))):
                mutate(data, choice, seeds)
            yield bytes(data[:longest])


def _random(choice: random.Random) -> bytes:
    """Random bytes, half of them behind the header of a query."""
    body = choice.randbytes(choice.choice((0, 1, 11, 12, 13, 17, 40, 100, 512, 1232)))
    return ID + QUERY + body if choice.random() < 0.5 else body


def mutate(data: bytearray, choice: random.Random, seeds: list[bytes]) -> None:
    """Change one thing about a message. seeds: others, whose ends it may get."""
    kind = choice.randrange(12)
    at = choice.randrange(len(data) + 1)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << choice.randrange(8)
    elif kind == 1 and at < len(data):
        data[at] = choice.randrange(256)
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        del data[at : at + choice.randrange(1, 8)]
    elif kind == 4:
        data[at:at] = choice.randbytes(choice.randrange(1, 8))
    elif kind == 5:
        other = choice.choice(seeds)
        data[at:] = other[choice.randrange(len(other) + 1) :]
    elif kind == 6 and len(data) >= 12:
        count = choice.choice((0, 1, 2, 255, 0xFFFF))
        struct.pack_into("!H", data, choice.choice((4, 6, 8, 10)), count)
    elif kind == 7:
        data[at:at] = bytes((0xC0 | choice.randrange(64), choice.randrange(256)))
    elif kind == 8 and at < len(data):
        data[at] = choice.choice((0, 1, 63, 64, 127, 128, 191, 192, 255))
    elif kind >= 9:
        letters = [index for index, byte in enumerate(data) if chr(byte).isalpha()]
        if letters:
            data[choice.choice(letters)] = choice.randrange(256)
