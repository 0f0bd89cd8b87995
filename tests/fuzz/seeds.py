"""What the fuzzer begins with: messages that clients and servers send, and the tokens that they are made of."""

from __future__ import annotations

import base64
import gzip
import random
import struct
from collections.abc import Callable, Iterator

import dns.flags
import dns.message
import dns.rrset
from hpack import Encoder

from kdns.wire import following, message, names, rr, tsig
from kdns.zone.journal import Row
from tests.fuzz.copies import BARE, BASE, FORGED, MARKED, MARKED_OTHERWISE, ORIGIN, RAW, SERIAL, UNSIGNED, packed, soa
from tests.fuzz.copies import compact as compact_message
from tests.fuzz.ground import USED, stream_of
from tests.fuzz.web import LARGE, PREFACE, SLOW, frame
from tests.fuzz.web import compact as compact_frames
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
    yield from _SEEDS[target]()


def _streams() -> Iterator[bytes]:
    queries = [data for data in _queries() if data]
    choice = random.Random(1)
    for count in (1, 1, 2, 3, 5, 9):
        for _ in range(20):
            yield choice.randbytes(1) + stream_of([choice.choice(queries) for _ in range(count)])
    yield b"\x50" + stream_of([SEEDS["a"]] * 120)


def _wire() -> Iterator[bytes]:
    yield from _queries()
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


def _handshakes() -> Iterator[bytes]:
    hello = b"\x16\x03\x01\0\x05\x01\0\0\1\x03"
    for setup in range(3):
        yield bytes((setup, 0))
        for kind in range(8):
            for flight, place in ((0, 9), (0, 200), (1, 3), (2, 40), (4, 30)):
                yield bytes((setup, 1, flight, kind, 0, place, 9 * kind)) + hello
    yield bytes((0, 2, 0, 5, 0, 0, 0, 0, 6, 0, 60, 0)) + hello


_POST = [(":method", "POST"), (":path", "/dns-query"), (":scheme", "https"), (":authority", "dns.test")]


def _got(name: bytes) -> list[tuple[str, str]]:
    query = bytes(2) + SEEDS["a"][2:12] + name + b"\0\x10\0\1"
    text = base64.urlsafe_b64encode(query).rstrip(b"=").decode()
    return [(":method", "GET"), (":path", f"/dns-query?dns={text}"), *_POST[2:]]


def _requests() -> Iterator[bytes]:
    """Clients of HTTP/2 and HTTP/1.1, and some that break things."""
    encoder = Encoder()
    heads = [encoder.encode(_got(name)) for name in (SLOW, LARGE, b"\1a\0", SLOW, LARGE, b"\1a\0")]
    post, body = Encoder().encode(_POST), bytes(2) + SEEDS["a"][2:]
    asked = b"".join(frame(1, 5, 1 + 2 * number, head) for number, head in enumerate(heads))
    small = frame(4, 0, 0, b"\0\4\0\0\0\x10")
    talks = [
        asked,
        small + asked + frame(8, 0, 3, b"\0\0\xff\xff") + frame(8, 0, 0, b"\0\0\xff\xff") + frame(4, 1, 0),
        frame(4, 0, 0, b"\0\1\0\0\x01\0") + asked + frame(3, 0, 3, b"\0\0\0\x08") + frame(3, 0, 1, b"\0\0\0\x08"),
        frame(1, 4, 1, post) + frame(0, 0, 1, body[:9]) + frame(0, 1, 1, body[9:]),
        frame(1, 0, 1, post[:5])
        + frame(9, 0, 1, post[5:9])
        + frame(9, 4, 1, post[9:])
        + frame(0, 9, 1, b"\2" + body + b"\0\0"),
        frame(1, 0x2D, 1, b"\1\0\0\0\0\x10" + post + b"\0") + frame(1, 5, 1, b"\x82"),
        frame(6, 0, 0, bytes(8)) * 9 + frame(2, 0, 1, bytes(5)) + frame(7, 0, 0, bytes(8)) + asked,
        frame(1, 4, 1, post) + b"".join(frame(0, 0, 1, bytes(16000)) for _ in range(5)),
        frame(1, 4, 1, post) + frame(1, 5, 1, Encoder().encode([("trailer", "1")])) + frame(0xEE, 0, 0, b"x"),
        b"".join(frame(1, 5, number, post) + frame(3, 0, number, bytes(4)) for number in range(1, 99, 2)),
    ]
    for number, talk in enumerate(talks):
        yield bytes((40 * number % 256, 1)) + compact_frames(talk)
        yield bytes((0, 0)) + PREFACE + frame(4, 0, 0) + talk[:3000]
    get = dict(_got(LARGE))[":path"].encode()
    host = b" HTTP/1.1\r\nHost: a\r\n"
    for text in (
        b"GET " + get + host + b"\r\n",
        b"HEAD " + get + host + b"\r\nGET " + get + host + b"Connection: close\r\n\r\n",
        b"POST /dns-query" + host + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        b"POST /dns-query"
        + host
        + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body)
        + body
        + b"\r\n0\r\nA: b\r\n\r\n",
        b"POST http://a/dns-query" + host + b"Expect: 100-continue\r\nContent-Length: 12\r\n\r\n" + body[:12],
        b"CONNECT a:1" + host + b"Upgrade: h2c\r\n\r\n",
        b"POST /" + host + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ):
        yield b"\xff\0" + text
        yield b"\3\0" + text


def _https_answers() -> Iterator[bytes]:
    """Upstreams over HTTPS: methods and versions, statuses, and bodies that are packed."""
    asked = dns.message.make_query("www.example.com", "A", id=0)
    body = _response(asked, 0, _RECORDS[:2], (), ())
    packed = gzip.compress(body, mtime=0)
    fields = [("content-type", "application/dns-message"), ("content-length", str(len(body)))]
    for mode, status in ((1, "200"), (5, "200"), (1, "302"), (1, "500")):
        head = Encoder().encode([(":status", status), *fields])
        answer = frame(4, 0, 0) + frame(4, 1, 0) + frame(1, 4, 1, head) + frame(0, 1, 1, body)
        yield bytes((9, mode)) + compact_frames(answer + frame(6, 0, 0, bytes(8)))
        yield bytes((255, mode)) + compact_frames(frame(4, 0, 0) + frame(1, 0, 1, head[:4]) + frame(9, 4, 1, head[4:]))
        yield bytes((255, mode)) + compact_frames(answer + frame(3, 0, 1, bytes(4)) + frame(7, 0, 0, bytes(8)))
    head = Encoder().encode([(":status", "200"), fields[0], ("content-encoding", "gzip")])
    yield b"\xff\1" + compact_frames(frame(4, 0, 0) + frame(1, 4, 1, head) + frame(0, 1, 1, packed))
    start = b"HTTP/1.1 200 OK\r\nContent-Type: application/dns-message\r\n"
    for text in (
        start + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        start + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n",
        start + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed,
        b"HTTP/1.1 100 Continue\r\n\r\n" + start + b"\r\n" + body,
        b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\n\r\n",
    ):
        yield b"\xff\0" + text
        yield b"\2\4" + text


_NEW = Row(b"\3new" + ORIGIN, rr.A, 300, bytes((192, 0, 2, 9)))
_CHANGED = (soa(7), soa(SERIAL), *BASE[2:], soa(7), _NEW, soa(7))
_TWICE = (soa(9), soa(SERIAL), BASE[2], soa(7), _NEW, soa(7), _NEW, soa(9), BASE[2], soa(9))
_MANY = (
    Row(ORIGIN, 15, 60, b"\0\x0a" + ORIGIN), Row(b"\1*" + ORIGIN, rr.TXT, 60, b"\1a"),
    Row(b"\1\0" + ORIGIN, 65280, 60, b""),
    Row(b"\1c" + ORIGIN, rr.CNAME, 60, b"\3new" + ORIGIN), Row(b"\3new\4else\0", rr.A, 60, bytes(4)),
    Row(b"\4_srv" + ORIGIN, rr.SRV, 1 << 31, bytes(6) + b"\1c" + ORIGIN),
)  # fmt: skip


def _transfers() -> Iterator[bytes]:
    """What primaries give."""
    for rows in (
        (soa(7), *BASE, _NEW, *_MANY, soa(7)),
        _CHANGED,
        _TWICE,
        (soa(SERIAL),),
        (soa(3), *BASE, soa(3)),
        (soa(7), *BASE[:2], soa(8)),
        (soa(7), soa(SERIAL), _NEW, soa(7), soa(7)),
    ):
        for kind in (0, 1, 2, 4, 5, 9, 16, 17, 25):
            for preferred in (16 << 10, 90):
                how = MARKED if kind & 16 else 0
                yield bytes((kind,)) + b"".join(
                    compact_message(count, body, how if not number else UNSIGNED if number % 3 == 1 else BARE)
                    for number, (count, body) in enumerate(packed(rows, preferred))
                )
    yield b"\0" + compact_message(1, packed([soa(1)])[0][1], RAW) + compact_message(1, b"", FORGED | MARKED_OTHERWISE)


def _primaries() -> Iterator[bytes]:
    notify = message.notify(1, ORIGIN)
    for rows in ((soa(7), *BASE, _NEW, soa(7)), _CHANGED, (soa(SERIAL),)):
        for preferred in (16 << 10, 90):
            found = []
            for number, rtype in enumerate((rr.AXFR, rr.IXFR, rr.SOA)):
                question = ORIGIN + struct.pack("!HH", rtype, rr.IN)
                for count, body in packed(rows, preferred):
                    found.append(message.HEADER.pack(number << 8, 0x8400, 1, count, 0, 0) + question + body)
            yield b"\x40" + stream_of(found)
            yield b"\1" + stream_of([notify, *found, notify])
    yield b"\xff" + stream_of([notify, notify[:-4], b"", b"\3"])


def _followers() -> Iterator[bytes]:
    """Who follows zones, and answers NOTIFYs or does not."""
    option = message.opt_record(False, options=message.option(following.OPTION, b""))
    asks = []
    for zone in ("example.org", worlds.Z):
        origin = names.from_text(zone)
        record = b"\xc0\x0c" + struct.pack("!HHIH", rr.SOA, rr.IN, 0, 22) + bytes(2) + struct.pack("!5I", 7, 1, 1, 1, 1)
        for rtype, authority in ((rr.AXFR, b""), (rr.IXFR, record), (rr.SOA, b"")):
            header = message.HEADER.pack(1, 0, 1, 0, bool(authority), 1)
            asks.append(header + origin + struct.pack("!HH", rtype, rr.IN) + authority + option)
    notify = message.notify(1, ORIGIN)
    answer = notify[:2] + b"\xa4" + notify[3:]
    for ask in asks:
        yield b"\xff" + stream_of([ask])
        yield b"\x20" + stream_of([ask, answer, SEEDS["a"], answer, ask, notify])
    yield b"\x10" + stream_of([*asks, answer, *asks])


def _signatures() -> Iterator[bytes]:
    for algorithm in range(len(tsig.ALGORITHMS)):
        for number in range(4):
            yield bytes((algorithm, number))
    for place in range(0, 150, 7):
        for kind in range(4):
            yield bytes((place % 8, 3 if place % 2 else place % 3, kind, 0, place, 1))
    yield b"\0\x83" + SEEDS["tsig"]


def _master_files() -> Iterator[bytes]:
    start = "$TTL 300\n@ SOA ns host 7 60 60 600 60\n@ NS ns\n"
    for text in (
        'ns A 192.0.2.1\nwww 60 IN AAAA 2001:db8::1\n  TXT "a b" c\n',
        "$ORIGIN a.z.test.\nb CNAME @\n$GENERATE 1-9/2 h${0,3,x} A 192.0.2.$\nc MX 10 ( mail\n )\n",
        "$INCLUDE other sub\nx.test. A 192.0.2.1\na\\.b\\003 PTR *.c\n",
        'a TYPE65280 \\# 3 010203\nd DS 1 8 1 ABCD\ne CAA 0 issue "x"\nf NAPTR 1 2 "u" "" "!a!b!" .\n',
        "g HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1\nh LOC 1 2 3 N 4 5 6 E 7m\ni APL 1:192.0.2.0/24\n",
        "j RRSIG A 8 2 60 20300101000000 20200101000000 1 z.test. AAAA\nk NSEC a A\nl TLSA 3 1 1 ab\n",
        '$TTL 1w2d3h4m5s\nm HINFO "a" "b" ; c\nn SPF x\no 4294967296 A 192.0.2.1\np CH A 192.0.2.1\n',
    ):
        yield (start + text).encode()
        yield text.encode()


_SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "query": _queries,
    "wire": _wire,
    "response": _responses,
    "stream": _streams,
    "upstream": _upstreams,
    "tls": _handshakes,
    "https": _requests,
    "doh": _https_answers,
    "transfer": _transfers,
    "primary": _primaries,
    "follower": _followers,
    "tsig": _signatures,
    "master": _master_files,
}


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
