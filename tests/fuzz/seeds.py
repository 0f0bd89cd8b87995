"""What the fuzzer begins with: messages that clients and servers send, and the tokens that they are made of."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import dns.flags
import dns.message
import dns.rrset

from kdns.wire import message, names, rr
from tests.fuzz.targets import USED
from tests.support import worlds
from tests.support.corpus import ID, SEEDS

_NAMES = (
    worlds.WEB, worlds.GONE, worlds.POD, worlds.REVERSE, worlds.ELSEWHERE, worlds.Z, f"db.default.svc.{worlds.Z}",
    f"big.default.svc.{worlds.Z}", f"again.default.svc.{worlds.Z}", f"outside.default.svc.{worlds.Z}",
    f"_http._tcp.{worlds.WEB}", f"dns-version.{worlds.Z}", "1.1.96.10.in-addr.arpa", ".",
    f"one.pin._zone.db.default.svc.{worlds.Z}",
)  # fmt: skip
_TYPES = (rr.A, rr.AAAA, rr.SRV, rr.PTR, rr.SOA, rr.TXT, rr.NS, rr.ANY)
_RECORDS = (
    ("www.example.com.", 60, "A", "192.0.2.1"),
    ("www.example.com.", 60, "A", "192.0.2.2"),
    ("www.example.com.", 61, "AAAA", "2001:db8::1"),
    ("example.com.", 62, "NS", "ns.example.com."),
    ("example.com.", 63, "MX", "10 mail.example.com."),
    ("_http._tcp.example.com.", 64, "SRV", "1 2 80 www.example.com."),
    ("example.com.", 65, "NAPTR", '10 20 "u" "sip" "" www.example.com.'),
    ("example.com.", 67, "TXT", '"one" "two"'),
    ("example.com.", 68, "RP", "host.example.com. text.example.com."),
    ("example.com.", 69, "HTTPS", "1 . alpn=h2"),
    ("old.example.com.", 71, "DNAME", "example.net."),
)
_SOA = ("example.com.", 300, "SOA", "ns.example.com. host.example.com. 1 2 3 4 60")


def seeds(target: str) -> Iterator[bytes]:
    """The inputs that a target begins with."""
    if target == "response":
        yield from _responses()
    elif target == "upstream":
        yield from _upstreams()
    elif target == "stream":
        queries = [data for data in _queries() if data]
        choice = random.Random(1)
        for count in (1, 1, 2, 3, 5, 9):
            for _ in range(20):
                found = [choice.choice(queries) for _ in range(count)]
                stream = b"".join(len(data).to_bytes(2, "big") + data for data in found)
                yield choice.randbytes(1) + stream
        yield b"\x50" + (len(SEEDS["a"]).to_bytes(2, "big") + SEEDS["a"]) * 120
    else:
        yield from _queries()
    if target == "wire":
        yield from (names.from_text(text) for text in _NAMES)
        yield from (bytes((len(label),)) + label + b"\0" for label in worlds.ODD)
        yield from (text.encode() for text in _NAMES)
        yield b"a\\.b\\255.\\000."
        # Behind a question: what an answer is made of.
        yield from (SEEDS["a"] + bytes(range(at, at + 60)) for at in range(0, 200, 8))


def _queries() -> Iterator[bytes]:
    yield from SEEDS.values()
    for world in range(len(USED)):
        for number, text in enumerate(_NAMES):
            for qtype in (rr.A, _TYPES[(world + number) % len(_TYPES)]):
                opt = (b"", message.opt_record(False), message.opt_record(True, 4096))[(world + number) % 3]
                header = bytes((world, number)) + message.HEADER.pack(0, message.RD, 1, 0, 0, bool(opt))[2:]
                yield header + names.from_text(text) + struct.pack("!HH", qtype, rr.IN) + opt


def _responses() -> Iterator[bytes]:
    for qtype in ("A", "AAAA", "MX", "ANY", "CNAME"):
        for use_edns in (False, True):
            asked = dns.message.make_query("www.example.com", qtype, use_edns=0 if use_edns else -1, id=7)
            for rcode, answer, authority in ((0, _RECORDS, (_SOA,)), (0, (), (_SOA,)), (3, (), (_SOA,)), (2, (), ())):
                yield _response(asked, rcode, answer, authority, ())
            chain = (("www.example.com.", 5, "CNAME", "web.example.net."), ("web.example.net.", 6, "A", "192.0.2.3"))
            yield _response(asked, 0, chain, (), _RECORDS)
    yield ID + b"\x81\x82" + bytes(8)


def _upstreams() -> Iterator[bytes]:
    """Answers behind their lengths; the first byte of an ID says whose they are."""
    for text, rtype in (("www.example.com", "A"), ("www.example.com", "AAAA"), ("example.org", "MX")):
        for count in (1, 2, 5):
            stream = b""
            for number in range(count):
                asked = dns.message.make_query(text, rtype, id=number << 8)
                answer = _response(asked, 0, _RECORDS[:number], (_SOA,), ())
                stream += len(answer).to_bytes(2, "big") + answer
            yield bytes((5 * count,)) + stream
            yield b"\xff" + stream[:-3]


def _response(asked: dns.message.Message, rcode: int, *sections: tuple[tuple[str, int, str, str], ...]) -> bytes:
    made = dns.message.make_response(asked, recursion_available=True)
    made.set_rcode(dns.rcode.Rcode(rcode))
    for section, found in zip((made.answer, made.authority, made.additional), sections, strict=True):
        for owner, ttl, rdtype, text in found:
            section.append(dns.rrset.from_text(owner, ttl, "IN", rdtype, text))
    return made.to_wire()


def tokens() -> Iterator[bytes]:
    """What messages are made of."""
    for label in worlds.LABELS:
        yield bytes((len(label),)) + label
    for text in (worlds.Z, "in-addr.arpa", "ip6.arpa", f"default.svc.{worlds.Z}", "example.com"):
        yield names.from_text(text)
    for qtype in (*_TYPES, rr.CNAME, rr.OPT, rr.AXFR, rr.HINFO, 15, 39, 41, 65, 255):
        yield struct.pack("!HH", qtype, rr.IN)
    yield from (
        message.opt_record(False),
        message.opt_record(True),
        message.opt_record(False, 512),
        b"\0\0\x29\x04\xd0\0\1\0\0\0\0",
    )
    yield from (b"\xc0\x0c", b"\xc0\x10", b"\xff\xff", b"\0\3\0\0", b"\x3f" + b"a" * 63)
    yield from (SEEDS["a"][2:12], SEEDS["edns"][2:12])


def dictionary() -> str:
    """The tokens as libFuzzer reads them."""
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in token) + '"\n' for token in tokens())
