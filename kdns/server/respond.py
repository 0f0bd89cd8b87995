"""From the bytes of a query to the bytes of its answer: everything that the packet cache does not know.

One `Responder` serves all sockets of one listening address. It never raises: bad input and broken plugins get the
answers that they deserve, and are counted.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from kdns.errors import FormatError
from kdns.observe.counters import QueryCounters, Region
from kdns.plugins.chain import Next
from kdns.server.packet_cache import Countdown, Entry, PacketCache, Turns
from kdns.server.sampling import Sampler, TopNames
from kdns.upstream.steps import Run
from kdns.wire import message, names, relay, rr
from kdns.wire.message import Aging, Encoded, Query, Response, Transfer
from kdns.zone.changes import name_hash

if TYPE_CHECKING:
    from kdns.plugins.secondary import Notified
    from kdns.plugins.tsig import Checker
    from kdns.plugins.views import Views
    from kdns.server.direct import Direct
    from kdns.wire.tsig import Signer

WriteDown: TypeAlias = Callable[..., None]
"""Logs a query: query, response (empty if none is sent), client, local address, protocol, seconds; known: its metadata,
if that was kept."""
_NOTIFY = 0x20
"""The opcode (RFC 1996 3.7) in the third byte of a message."""
DROPPED = "dropped"
"""Metric label for queries that no server block got; it has no closing dot, so it can be no zone."""
MOST_PENDING = 8192
"""Queries of a worker that may wait for an answer at once; each takes about 7 KB. A dead upstream makes each of them
wait for seconds, and without a bound a flood would take all memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A server block at work on one server.

    chain: its plugins. chaos: those that answer class CH, None if there are none. log: None without `log`. recursive:
    whether recursion is offered for a name (lower case), None if for none. sample: is offered each answer that is given
    in the event loop, and when its query was read; None without `top_names`. classes: what answers other classes than
    IN, before `chaos` (`rewrite`). signatures: looks at those of queries, None without `tsig`.
    transfers: it has what answers AXFR. personal: some of its answers may be kept for their clients.
    """

    counters: QueryCounters
    chain: Next
    chaos: Next | None
    log: WriteDown | None
    recursive: Callable[[bytes], bool] | None = None
    sample: Callable[[bytes, int], None] | None = None
    classes: Mapping[int, Next] = field(default_factory=dict)
    signatures: Checker | None = None
    transfers: bool = False
    personal: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Via:
    """The socket by which a query came. family: AF_INET or AF_INET6. local: where it is bound.

    direct: is asked first, None if there is none or it was asked already. streams: a query may have several responses.
    personal: the packet cache for answers that are their clients', whose packed address is behind the query in its
    keys; None if nothing asks it.
    """

    proto: str
    family: int
    local: tuple[str, int]
    cache: PacketCache
    direct: Direct | None = None
    streams: bool = False
    personal: PacketCache | None = None

    @property
    def family_label(self) -> str:
        """As metrics call the family."""
        return family_label(self.family)


class Pending(Run):
    """A query whose answer has to wait for something: to be handed to `Responder.finish` in the event loop.

    waited: what the first step has given, see Run. started: `time.monotonic_ns()` before that step. entry: the answer,
    if there is nothing to wait for, but something to do behind it. transfer: has the responses behind the first one.
    """

    __slots__ = ("block", "deliver", "entry", "query", "responder", "seen", "started", "transfer", "via", "waited")

    def __init__(
        self,
        steps: Coroutine[Any, Any, Response],
        responder: Responder,
        query: Query,
        via: Via,
        block: Block,
        seen: int,
        waited: Any,
        started: int,
    ) -> None:
        super().__init__(steps)
        self.responder = responder
        self.query = query
        self.via = via
        self.block = block
        self.seen = seen
        self.waited = waited
        self.started = started
        self.deliver: Callable[[Entry | None], None] | None = None
        self.entry: Entry | None = None
        self.transfer: Transfer | None = None

    def ended(self, value: Any, error: BaseException | None) -> None:
        """Deliver the answer."""
        self.responder.finished(self, value, error)


def family_label(family: int) -> str:
    """As CoreDNS's metrics write it: 1 for IPv4, 2 for IPv6."""
    return "1" if family == socket.AF_INET else "2"


class Waiting:
    """The queries of a worker that wait, and how many may."""

    __slots__ = ("most", "queries")

    def __init__(self, most: int = MOST_PENDING) -> None:
        self.most = most
        self.queries: set[Pending] = set()  # adding and discarding need no lock, as counting would


class Responder:
    """Answers for one listening address.

    label: as in metrics, `dns://:53`. blocks: server blocks by the zone (lower case) that they answer for; False where
    `views` decide. personal: see Block. waiting: of all addresses of the worker. dump: takes messages that are no
    queries, and what is to be said of them (`debug`). top: the names that the worker is asked for most, None without
    `top_names`. direct: makes what answers without the plugins, for a protocol and an address family as metrics call
    them. notified: takes NOTIFYs, None if nobody wants any.
    """

    def __init__(
        self,
        label: str,
        blocks: Mapping[bytes, Block | Literal[False]],
        region: Region,
        report: Callable[[str], None],
        waiting: Waiting,
        dump: Callable[[str, bytes], None] | None = None,
        top: TopNames | None = None,
        direct: Callable[[str, str], Direct | None] = lambda proto, family: None,
        views: Views[Block] | None = None,
        notified: Notified | None = None,
    ) -> None:
        self.direct = direct
        self._label = label
        self._blocks = names.Zones(blocks)
        self._region = region
        self._report = report
        self._dump = dump
        self._views = views
        self._notified = notified
        known = [block for block in blocks.values() if block]
        if views is not None:
            known += [each.block for found in views.zones.by_zone.values() for each in found]
        self.personal = any(block.personal for block in known)
        self._top = top if any(block.sample is not None for block in known) else None
        self._panics = region.series(("count", "coredns_panics_total"), 1)
        self._waiting = waiting
        self.dropped = Block(QueryCounters(region, label, DROPPED), _refuse, None, None)

    def respond(self, data: bytes, via: Via, client: tuple[str, int], local: tuple[str, int]) -> Entry | Pending | None:
        """The answer to a message, or None if it gets none. local: the address that was asked."""
        if via.direct is not None:
            try:
                entry = via.direct.answer(data[2:], via.cache)
            finally:
                via.direct.leave()
            if entry is not None:
                return entry
        if len(data) < message.QUESTION_AT or data[2] & 0x80:
            self._malformed("short" if len(data) < message.QUESTION_AT else "response", data, client)
            return None
        if data[2] & 0x78 and not (data[2] & 0x78 == _NOTIFY and self._notified):
            self._malformed("opcode", data, client)
            return self._plain(data, rr.NOTIMP, via)
        try:
            query = message.parse(data, via.proto, client, local, message.DEFAULT_UDP)
        except FormatError:
            self._malformed("format", data, client)
            return self._plain(data, rr.FORMERR, via)
        if query.edns is not None and query.edns.version:
            return self._finished(query, Response(rcode=rr.BADVERS), via, self.dropped, 0)
        query.server = self._label
        name = query.lname if query.type != rr.DS else self._above(query.lname)
        block = self._blocks.find(name) or self._taking(query)
        if block.signatures is not None:
            try:
                block.signatures.check(query)
            except FormatError:
                self._malformed("format", data, client)
                return self._plain(data, rr.FORMERR, via)
        if self._notified and data[2] & 0x78:
            return self._finished(query, Response(self._notified.take(query), authoritative=True), via, block, 0)
        if query.klass == rr.IN and block is not self.dropped:
            if query.type in (rr.AXFR, rr.IXFR) and not (block.transfers and (via.streams or via.proto == "udp")):
                return self._finished(query, Response(rcode=rr.REFUSED), via, block, 0)
            chain: Next | None = block.chain
        else:
            chain = block.classes.get(query.klass) or (block.chaos if query.klass == rr.CH else None)
        if chain is None:
            return self._finished(query, Response(rcode=rr.REFUSED), via, block, 0)
        return self._run(chain(query), query, via, block)

    def _above(self, name: bytes) -> bytes:
        """Whose server block has a DS record: the zone's above the cut (RFC 4035 3.1.4.1), if that is here too.

        Not the root's, which most have for what is not theirs; so does CoreDNS.
        """
        zone = name if name in self._blocks.by_zone else names.ROOT
        while len(zone) > 1:
            zone = names.parent(zone)
            if zone in self._blocks.by_zone and zone != names.ROOT:
                return zone
        return name

    def _taking(self, query: Query) -> Block:
        """The server block that views choose."""
        return (self._views.find(query) if self._views is not None else None) or self.dropped

    def sampler(self) -> Sampler | None:
        """What a thread offers its answers to; None if nobody wants any."""
        return Sampler(self._top, self._is_sampled) if self._top is not None else None

    def _is_sampled(self, name: bytes) -> bool:
        block = self._blocks.find(name)
        if block:
            return block.sample is not None
        return self._views is not None and any(each.block.sample is not None for each in self._views.at(name))

    def finish(self, pending: Pending, deliver: Callable[[Entry | None], None]) -> None:
        """Let a pending answer be worked out, in the event loop, and deliver it there; None if nothing is sent."""

        pending.deliver = deliver
        if pending.waited is None:
            pending.go_on()
        else:
            pending.wait_for(pending.waited)

    def finished(self, pending: Pending, response: Any, error: BaseException | None) -> None:
        """Deliver what has come of a pending answer; nothing if that was cancelled, as the worker ends."""
        self._waiting.queries.discard(pending)
        deliver, pending.deliver = pending.deliver, None  # which refers to it
        if isinstance(error, asyncio.CancelledError) or deliver is None:
            return
        if error is not None:
            response = self.panic(error)
        if response.silent:
            self._unanswered(pending.query, pending.via, pending.block, pending.started)
            deliver(None)
            return
        entry = self._finished(pending.query, response, pending.via, pending.block, pending.seen)
        if pending.via.streams:
            pending.transfer = response.transfer
        elif response.transfer is not None:
            response.transfer.close()  # a stream that has begun refers to it: it would go with a collection, much later
        if pending.query.metadata is not None and pending.block.log is not None:
            block = replace(pending.block, log=partial(pending.block.log, known=pending.query.metadata))
            entry = Entry(entry.response, entry.cell, entry.turns, block, ())  # the packet cache has the other one
        deliver(entry)

    def _run(self, steps: Any, query: Query, via: Via, block: Block) -> Entry | Pending | None:
        """Take the first step of the plugins, which is the last one unless they wait."""
        seen = via.cache.seen
        started = time.monotonic_ns()
        try:
            waited = steps.send(None)
        except StopIteration as end:
            if end.value.silent:
                self._unanswered(query, via, block, started)
                return None
            if end.value.transfer is not None and via.streams:
                pending = Pending(steps, self, query, via, block, seen, None, started)
                pending.entry = self._finished(query, end.value, via, block, seen)
                pending.transfer = end.value.transfer
                return pending
            return self._finished(query, end.value, via, block, seen)
        except Exception as error:
            return self._finished(query, self.panic(error), via, block, seen)
        if len(self._waiting.queries) >= self._waiting.most:
            steps.close()
            self._region.count(("count", "kdns_pending_rejects_total"))
            return self._finished(query, Response(rcode=rr.SERVFAIL), via, block, seen)
        pending = Pending(steps, self, query, via, block, seen, waited, started)
        self._waiting.queries.add(pending)
        return pending

    def _finished(self, query: Query, response: Response, via: Via, block: Block, seen: int) -> Entry:
        """Encode, count, and keep what may be kept."""
        if block.recursive is not None and query.klass == rr.IN:
            response.recursion = response.recursion or block.recursive(query.lname)
        transfer = response.transfer
        if transfer is not None and transfer.name != query.lname:  # another name was put in its place
            response = Response(rcode=rr.REFUSED, plugin=response.plugin)
        try:
            encoded = _encoded(query, response)
        except Exception as error:
            response = self.panic(error)
            encoded = _encoded(query, response)
        if transfer is not None and response.transfer is None:
            transfer.followed = None
        wire = encoded.wire
        cell = block.counters.key(
            via.proto,
            via.family_label,
            rr.type_text(query.type),
            rr.rcode_text(response.rcode),
            response.plugin,
            query.edns is not None and query.edns.do,
            len(query.data),
            len(wire),
        )
        key = query.data[2:]
        cache: PacketCache | None = None
        if response.cacheable:
            cache = via.cache
        elif response.personal and block.personal and via.personal is not None:
            cache = via.personal
            key += socket.inet_pton(via.family, query.client[0])
        if cache is None or query.signed is not None or not cache.wants(key):
            return Entry(wire[2:], cell, _turns(encoded), block, ())
        hashes = tuple(map(name_hash, response.depends))
        if response.aging is not None:
            entry = Entry(b"", cell, _countdown(query, encoded, response.aging), block, hashes)
        else:
            entry = Entry(wire[2:], cell, _turns(encoded), block, hashes)
        cache.put(key, entry, seen)
        return entry

    def _unanswered(self, query: Query, via: Via, block: Block, started: int) -> None:
        """Count and log a query that a plugin wants no answer for, as CoreDNS does."""
        counters, size = block.counters, len(query.data)
        do = query.edns is not None and query.edns.do
        cell = counters.key(via.proto, via.family_label, rr.type_text(query.type), "NOERROR", "", do, size, 0)
        counters.cells[cell] += 1
        counters.cells[cell + 1] += size
        elapsed = time.monotonic_ns() - started
        counters.duration(elapsed)
        if block.log is not None:
            block.log(query.data, b"", query.client, query.local, query.proto, elapsed / 1e9)

    def _plain(self, data: bytes, rcode: int, via: Via) -> Entry:
        """An answer to what could not be parsed."""
        wire = message.error(data, rcode)
        key = self.dropped.counters.key
        cell = key(via.proto, via.family_label, "other", rr.rcode_text(rcode), "", False, len(data), len(wire))
        return Entry(wire[2:], cell, None, self.dropped, ())

    def _malformed(self, reason: str, data: bytes, client: tuple[str, int]) -> None:
        self._region.count(("count", "kdns_malformed_total", "reason", reason))
        if self._dump is not None:
            self._dump(f"no query ({reason}), {len(data)} bytes from {client[0]} port {client[1]}", data)

    def panic(self, error: BaseException) -> Response:
        """Count and report what should not have been raised; the answer is SERVFAIL."""
        self._region.cells[self._panics] += 1
        self._report("".join(traceback.format_exception(error)).rstrip())
        return Response(rcode=rr.SERVFAIL)


def _encoded(query: Query, response: Response) -> Encoded:
    """The response as bytes, signed if the query is; the first one of a transfer."""
    if query.signed is None and response.transfer is None:
        return message.encode(query, response)
    signer = _signer(query)
    if response.transfer is not None:
        response.transfer.stream = _stream(query, response, response.transfer, signer)
        return Encoded(next(response.transfer.stream), None)
    assert query.signed is not None
    assert signer is not None
    room = replace(query, limit=query.limit - query.signed.size)
    return Encoded(signer.sign(message.encode(room, response).wire, time.time()), None)


def _signer(query: Query) -> Signer | None:
    if query.signed is None:
        return None
    from kdns.wire.tsig import Signer

    return Signer(query.signed)


def _stream(query: Query, response: Response, transfer: Transfer, signer: Signer | None) -> Iterator[bytes]:
    for wire in message.transfer_messages(query, response, transfer):
        yield wire if signer is None else signer.sign(wire, time.time())


def _turns(encoded: Encoded) -> Turns | None:
    """What changes from one answer to the next."""
    return Turns(encoded.rotation, random.randrange(1 << 16)) if encoded.rotation is not None else None


def _countdown(query: Query, encoded: Encoded, aging: Aging) -> Countdown:
    """The same where TTLs change too."""
    wire, rotation, ttls = encoded
    if aging.counts_down and not ttls:  # its records are not another server's bytes
        ttls = relay.read(wire, message.question(query)).ttls
    return Countdown(aging, wire[2:], tuple([at - 2 for at in ttls]), rotation, random.randrange(1 << 16))


async def _refuse(_: Query) -> Response:
    return Response(rcode=rr.REFUSED)
