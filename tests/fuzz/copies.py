"""Zones that come from others, and go to them: transfers, connections that follow, signatures, master files."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import re
import socket
import struct
import tempfile
from collections.abc import Awaitable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any
from unittest import mock

from kdns import plugins
from kdns.errors import ConfigError, FormatError
from kdns.observe.logs import Log, Sink
from kdns.plugins.budget import Budget
from kdns.server.primary import Primary
from kdns.server.secondary_feed import SecondaryPublication
from kdns.server.tcp import TcpServer
from kdns.wire import following, message, names, rr, tsig
from kdns.zone import entries, inbound, journal, masterfile
from kdns.zone.changes import Changes
from kdns.zone.inbound import Have, Inbound, Question
from kdns.zone.journal import Row
from kdns.zone.keys import key_name
from kdns.zone.masterfile import Content
from kdns.zone.store import Store, Transaction
from kdns.zone.transfer import Packer, difference
from kdns.zone.values import decode_rrsets
from tests.fuzz.ground import Stores, framed, stream_of, taken
from tests.fuzz.sound import name_at, records
from tests.support.answering import Answering

ORIGIN = b"\1z\4test\0"
IDENT, SERIAL, NOW = 7, 5, 1e9
LINEAGE = b"lineage1"
KEY = tsig.Key(b"\3key\4test\0", b"secret" * 5)
OTHER = tsig.Key(KEY.name, b"another")
COREFILE = "z.test:53 {\nsecondary {\ntransfer from 192.0.2.1\n}\n}\n"
FOLLOWED_WORLD = "secondary"
RECORDS = 2000
"""That a master file may have here: `$GENERATE` makes any number of them in a few bytes."""
_FILES = 4
_MESSAGE = struct.Struct("!BBH")
RAW, BARE, UNSIGNED, FORGED, MARKED, MARKED_OTHERWISE = 0x80, 1, 2, 4, 8, 16
"""How a message of an input is sent: all of it is the input's, without a question, without a signature, with another
key, with a lineage that is the copy's or is not."""
_TYPES = (rr.AXFR, rr.IXFR, rr.SOA)


def soa(serial: int) -> Row:
    """The SOA record of the zone that is transferred."""
    return Row(ORIGIN, rr.SOA, 300, rr.soa(b"\2ns" + ORIGIN, b"\4host" + ORIGIN, serial, 60, 60, 600, 5))


BASE = (
    Row(ORIGIN, rr.NS, 300, b"\2ns" + ORIGIN),
    Row(b"\2ns" + ORIGIN, rr.A, 300, bytes((192, 0, 2, 1))),
    Row(b"\3old" + ORIGIN, rr.A, 300, bytes((192, 0, 2, 2))),
    Row(b"\3old" + ORIGIN, rr.TXT, 300, b"\1x"),
)
"""What the copy has beside its SOA record."""


def packed(rows: Iterable[Row], preferred: int = 16 << 10) -> list[tuple[int, bytes]]:
    """Records as the messages of a transfer."""
    packer = Packer(ORIGIN, preferred)
    for row in rows:
        packer.add(row)
    return packer.done()


def compact(count: int, body: bytes, how: int = 0) -> bytes:
    """A message as inputs have it."""
    return _MESSAGE.pack(count, how, len(body)) + body


class Transfers:
    """The messages of a primary: what they come to is written, and is what was sent."""

    def __init__(self, stores: Stores) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._store = Store.open(Path(self._folder.name) / "state", Changes.create(), _fail)
        self._store.journaled = lambda zone: True
        (block,) = plugins.loads(COREFILE).blocks
        (copy,) = block.plugins["secondary"].copies
        log = Log(Sink(os.open(os.devnull, os.O_WRONLY)))
        self._publication = SecondaryPublication(block, copy, self._store, log, _nothing, _nothing)
        self._publication.declare([ORIGIN])

    def __call__(self, data: bytes) -> object:
        """data: the first byte says what is asked, and how; then messages as `compact` has them."""
        kind = data[0] if data else 0
        rtype = _TYPES[kind % 3]
        have = None if rtype == rr.AXFR else Have(soa(SERIAL).rdata, LINEAGE if kind & 8 else b"")
        key = KEY if kind & 4 else None
        question = Question(IDENT, ORIGIN, rtype, have, key, NOW, follow=bool(kind & 16))
        sent = list(_sent(data[1:], question.data, rtype, key is not None))
        try:
            done = False
            for number, each in enumerate(sent):
                assert not done
                done = question.take(each, NOW)
                if done:
                    del sent[number + 1 :]
                    break
        except FormatError as error:
            return str(error)
        if not done or rtype == rr.SOA:
            return done, question.got.current
        return question.lineage, question.got.current or self._written(question, sent)

    def _written(self, question: Question, sent: list[bytes]) -> object:
        """Write what has come in the place of what there is."""
        base = Inbound(ORIGIN, None)
        question_of = ORIGIN + struct.pack("!HH", rr.AXFR, rr.IN)
        for count, body in packed([soa(SERIAL), *BASE, soa(SERIAL)]):
            base.take(_header(1, count) + question_of + body, message.QUESTION_AT + len(question_of))
        self._publication.take(ORIGIN, base, LINEAGE, 0, NOW)
        try:
            self._publication.take(ORIGIN, question.got, question.lineage, question.revision, NOW)
        except FormatError as error:
            assert self._rows() == {row[:2] + row[3:] for row in (soa(SERIAL), *BASE)}, "it is not as it was"
            return str(error)
        got = self._rows()
        new = question.got.soa
        assert new is not None
        assert (new.owner, new.type, new.rdata) in got
        assert sum(rtype == rr.SOA for _, rtype, _ in got) == 1
        if not question.got.steps:
            self._check_whole(sent, got)
        self._check_way(got, journal.serial_of(new), question.lineage == LINEAGE)
        return sorted(got)

    def _rows(self) -> set[tuple[bytes, int, bytes]]:
        """All records of the zone, but for their TTLs."""

        def action(txn: Transaction) -> set[tuple[bytes, int, bytes]]:
            (zone,) = txn.zones()
            return {
                (name, rrset.type, rdata)
                for name, rrsets in txn.below(zone, ORIGIN)
                for rrset in rrsets
                for rdata in rrset.rdatas
            }

        return self._store.read(action)

    def _check_whole(self, sent: list[bytes], got: set[tuple[bytes, int, bytes]]) -> None:
        """A zone is what the messages have, as another reader finds it; of rdata, that without names."""
        wanted = set()
        for data in sent:
            count = int.from_bytes(data[6:8])
            for owner, rtype, _, _, rdata in records(_unsigned(data))[:count]:
                if names.is_subdomain(owner.lower(), ORIGIN):
                    wanted.add((owner.lower(), rtype, rdata if rtype in (rr.A, rr.AAAA, rr.TXT) else b""))
        assert wanted == {
            (owner, rtype, rdata if rtype in (rr.A, rr.AAAA, rr.TXT) else b"") for owner, rtype, rdata in got
        }

    def _check_way(self, got: set[tuple[bytes, int, bytes]], serial: int, same: bool) -> None:
        """The difference that others are sent leads from what there was to what there is."""

        def action(txn: Transaction) -> Any:
            (zone,) = txn.zones()
            assert zone.serial == serial
            found = journal.since(txn, zone, SERIAL)
            return found and journal.condensed(found)

        found = self._store.read(action)
        if not found:
            assert not (same and journal.rises(SERIAL, serial))
            return
        assert same, "a difference leads from one lineage to another"
        theirs = Inbound(ORIGIN, SERIAL)
        for count, body in difference(ORIGIN, found):
            theirs.take(_header(1, count) + ORIGIN + struct.pack("!HH", rr.IXFR, rr.IN) + body, len(ORIGIN) + 16)
        there: dict[bytes, Any] = dict.fromkeys(inbound.touched(theirs.steps), ())
        content = Content()
        for row in (soa(SERIAL), *BASE):
            masterfile.add(content, ORIGIN, *row[:1], row.ttl, row.type, row.rdata, ("", 0))
        there |= {name: content.records(name) for name in content.names}
        kept = there | inbound.changed(
            ORIGIN, theirs.steps, {name: there[name] for name in inbound.touched(theirs.steps)}
        )
        assert theirs.done
        assert got == {
            (name, rrset.type, rdata) for name, rrsets in kept.items() for rrset in rrsets for rdata in rrset.rdatas
        }


def _header(questions: int, count: int, more: int = 0) -> bytes:
    return message.HEADER.pack(IDENT, 0x8400, questions, count, 0, more)


def _sent(data: bytes, query: bytes, rtype: int, signed: bool) -> Iterator[bytes]:
    """The messages of an input."""
    signer = other = None
    if signed:
        record = tsig.find(query, message.question_end(query))
        assert record is not None
        signer, other = (tsig.Signer(tsig.Signed(record, key)) for key in (KEY, OTHER))
    at = 0
    while at + _MESSAGE.size <= len(data):
        count, how, size = _MESSAGE.unpack_from(data, at)
        at += _MESSAGE.size
        body = data[at : at + size]
        at += size
        if how & RAW:
            yield body
            continue
        mark = b""
        if how & (MARKED | MARKED_OTHERWISE):
            theirs = LINEAGE if how & MARKED else b"lineage2"
            mark = message.opt_record(False, options=message.option(following.OPTION, theirs))
        asked = b"" if how & BARE else ORIGIN + struct.pack("!HH", rtype, rr.IN)
        made = _header(int(bool(asked)), count, int(bool(mark))) + asked + body + mark
        if signer is not None and other is not None and not how & UNSIGNED:
            made = (other if how & FORGED else signer).sign(made, NOW)
        yield made


def _unsigned(data: bytes) -> bytes:
    """A message without what may stand behind its answers."""
    at = message.QUESTION_AT
    for _ in range(int.from_bytes(data[4:6])):
        at = name_at(data, at)[1] + 4
    for _ in range(int.from_bytes(data[6:8])):
        at = name_at(data, at)[1] + 10
        at += int.from_bytes(data[at - 2 : at])
    return data[:8] + bytes(4) + data[12:at]


def _fail(text: str) -> None:
    raise AssertionError(text)


def _nothing() -> None:
    pass


class Primaries:
    """Bytes of a primary over TCP, in pieces: who has asked gets an answer, or is told why there is none."""

    def __init__(self, stores: Stores) -> None:
        self._loop = asyncio.new_event_loop()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setblocking(False)

    def __call__(self, data: bytes) -> object:
        """data: the first byte says how long the pieces are, and a message's first one whose ID it gets, if any."""
        random.seed(0)
        return self._loop.run_until_complete(self._ask(data[:1], data[1:]))

    async def _ask(self, first: bytes, stream: bytes) -> list[str]:
        have = Have(soa(SERIAL).rdata, LINEAGE)
        ended: list[Primary] = []
        primary = Primary(
            self._listening.getsockname(), None, lambda origin: origin == ORIGIN, _fail_quiet, ended.append
        )
        await primary.open()
        sock, _ = await self._loop.sock_accept(self._listening)
        waiting = [
            asyncio.ensure_future(_awaited(primary.ask(ORIGIN, rtype, have if rtype != rr.AXFR else None, follow=True)))
            for rtype in _TYPES
        ]
        with sock:
            asked = b""
            while len(framed(asked)) < len(_TYPES):
                asked += await self._loop.sock_recv(sock, 4096)
            idents = [query[:2] for query in framed(asked)]
            messages = framed(stream)
            sent = [
                idents[each[0] % 4] + each[2:] if len(each) > 1 and each[0] % 4 < len(idents) else each
                for each in messages
            ]
            stream = stream_of(sent) + stream[len(stream_of(messages)) :]
            size = max(1 + 3 * first[0], len(stream) // 8) if first else 1
            with contextlib.suppress(OSError):
                for at in range(0, len(stream), size):
                    await self._loop.sock_sendall(sock, stream[at : at + size])
                    await asyncio.sleep(0)
                sock.shutdown(socket.SHUT_WR)
            _, late = await asyncio.wait(waiting, timeout=4)
            assert not late, "who has asked waits on a connection that is closed"
        reading = primary._reading
        assert reading is not None
        await asyncio.wait((reading,), timeout=4)
        assert reading.cancelled() or reading.exception() is None
        assert ended == [primary]
        assert primary.ended
        errors = [future.exception() for future in waiting]
        assert all(error is None or isinstance(error, FormatError | OSError) for error in errors), errors
        return [type(error).__name__ for error in errors]


def _fail_quiet(_: Primary) -> None:
    raise AssertionError("nothing was heard for a while")


async def _awaited(answer: Awaitable[Question]) -> Question:
    return await answer


class Followers:
    """Bytes of a follower over TCP, in pieces, with NOTIFYs on their way: what it gets are whole messages."""

    def __init__(self, stores: Stores) -> None:
        self._served = Answering(*stores.open(FOLLOWED_WORLD), proto="tcp")
        self._connections = self._served._connections
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._loop = asyncio.new_event_loop()
        served = self._served
        self._server = TcpServer(self._listening, served.responder, served.changes, self._connections, Budget())
        self._loop.run_until_complete(self._listen())

    async def _listen(self) -> None:
        self._server.start()

    def __call__(self, data: bytes) -> None:
        """data: the first byte says how long the pieces are."""
        stream = data[1:]
        size = max(1 + 3 * data[0], len(stream) // 8) if data else 1
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        received = self._loop.run_until_complete(asyncio.wait_for(self._serve(pieces), 10))
        assert not self._served.reported, self._served.reported
        answers = framed(received)
        assert stream_of(answers) == received, "a message is cut short"
        for answer in answers:
            records(answer)

    async def _serve(self, pieces: list[bytes]) -> bytes:
        received = b""
        connections, shared = self._connections, self._connections.following
        assert shared is not None
        with socket.create_connection(self._listening.getsockname()) as client:
            client.setblocking(False)
            for number, piece in enumerate(pieces):
                with contextlib.suppress(ConnectionError, BlockingIOError):
                    client.send(piece)
                await asyncio.sleep(0)
                for connection in list(connections.followed.values()):
                    connection.notify(message.notify(number, ORIGIN))
                received += taken(client)
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_WR)
            while connections.open or connections.followed:
                received += taken(client)
                await asyncio.sleep(0)
            received += taken(client)
        assert not shared.count, "somebody who has gone follows a zone"
        assert not connections.shares
        return received


class Signatures:
    """Signed messages that are changed on their way, both ways: what is taken for good says what was signed."""

    _QUERY = inbound.query(IDENT, ORIGIN, rr.AXFR)

    def __init__(self, stores: Stores) -> None:
        self._algorithms = list(tsig.ALGORITHMS.values())

    def __call__(self, data: bytes) -> object:
        """data: the first byte says which algorithm, the second one which message is changed, or if the rest is one;
        then four bytes for each change."""
        if len(data) < 2:
            return None
        key = tsig.Key(KEY.name, KEY.secret, self._algorithms[data[0] % len(self._algorithms)])
        number = data[1] % 4
        asker = tsig.Asker(key)
        query = asker.sign(self._QUERY, NOW)
        arrives = self._changed(query, data[2:], bool(data[1] & 0x80)) if number == 3 else query
        try:
            found = self._checked(query, arrives, key)
        except FormatError as error:
            return str(error)
        if found is None or number == 3:
            return found
        return self._answered(found, asker, number, data)

    def _changed(self, made: bytes, rest: bytes, whole: bool) -> bytes:
        if whole:
            return rest
        changed = bytearray(made)
        for at in range(0, len(rest) - 3, 4):
            place = int.from_bytes(rest[at + 1 : at + 3]) % (len(changed) + 1)
            kind, value = rest[at] % 4, rest[at + 3]
            if kind == 0 and place < len(changed):
                changed[place] = value
            elif kind == 1 and place < len(changed):
                changed[place] ^= 1 << value % 8
            elif kind == 2:
                del changed[place : place + 1 + value]
            else:
                changed[place:place] = bytes((value,))
        return bytes(changed)

    def _checked(self, made: bytes, data: bytes, key: tsig.Key) -> tsig.Signed | None:
        """As a server does it. Raises FormatError."""
        if len(data) < message.QUESTION_AT:
            return None
        query = message.parse(data, "tcp", ("192.0.2.7", 40000), ("192.0.2.1", 53), message.DEFAULT_UDP)
        record = tsig.find(data, query.question_end)
        if record is None:
            return None
        signed = tsig.check(data, record, {key.name: key}, NOW)
        if signed.error == 0:
            assert _said(data, record) == _said(made, _record(made)), "it is not what was signed"
        return signed

    def _answered(self, signed: tsig.Signed, asker: tsig.Asker, number: int, data: bytes) -> object:
        signer = tsig.Signer(signed)
        packets = packed([soa(SERIAL), *BASE, soa(SERIAL)], 80)[:3]
        question = ORIGIN + struct.pack("!HH", rr.AXFR, rr.IN)
        made = [signer.sign(_header(1, count) + question + body, NOW) for count, body in packets]
        for plain, answer in zip(packets, made, strict=True):
            assert len(answer) - len(plain[1]) - len(question) - message.QUESTION_AT <= signed.size
        arrives = list(made)
        arrives[number] = self._changed(made[number], data[2:], bool(data[1] & 0x80))
        found: list[object] = []
        for was, each in zip(made, arrives, strict=True):
            try:
                at = inbound.records_at(each, IDENT, ORIGIN, rr.AXFR)
                found.append(asker.check(each, inbound.question_end(each), NOW))
            except FormatError as error:
                found.append(str(error))
                break
            assert at
            if found[-1]:
                assert _said(each, _record(each)) == _said(was, _record(was)), "it is not what was signed"
        return found


def _record(data: bytes) -> tsig.Record:
    record = tsig.find(data, inbound.question_end(data))
    assert record is not None
    return record


def _said(data: bytes, record: tsig.Record) -> bytes:
    """What a signature is of: all but the ID, and the record itself."""
    return data[2 : record.start]


class MasterFiles:
    """A master file: what it holds, or a mistake in it; and the same as if all of its lines were taken apart."""

    def __init__(self, stores: Stores) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name) / "zone"
        self._open = entries.open_file
        self._opens = 0

    def _opened(self, path: Path | str, **_: Any) -> IO[str]:
        """The file itself, whatever is included, and not without end."""
        self._opens += 1
        if self._opens > _FILES:
            raise OSError(errno.EMFILE, "too many open files", str(path))
        return self._open(self._path)

    def __call__(self, data: bytes) -> object:
        """data: the file."""
        self._path.write_bytes(data)
        with (
            mock.patch.object(masterfile, "MOST_RECORDS", RECORDS),
            mock.patch.object(entries, "open_file", self._opened),
        ):
            found = self._read()
            with mock.patch.object(entries, "_PLAIN", re.compile("(?!)")):
                assert found == self._read(), "plain lines mean something else"
        return found

    def _read(self) -> object:
        self._opens = 0
        with contextlib.chdir("."):
            try:
                content = masterfile.read(self._path, ORIGIN)
            except ConfigError as error:
                (mistake,) = error.mistakes
                assert mistake.line > 0
                assert mistake.message
                return mistake.line, mistake.message.replace(str(self._path.parent), "")
        rows = list(content.rows(ORIGIN))
        assert [suffix for suffix, _ in rows] == sorted({suffix for suffix, _ in rows})
        found = {key_name(b"\0\0" + suffix, ORIGIN): decode_rrsets(bytes(4) + value) for suffix, value in rows}
        assert found == {name: content.records(name) for name in content.names}
        return repr(found), content.outsiders
