"""Transfers that come in: what is as it has to be becomes a zone, and everything else is a format error."""

from __future__ import annotations

import contextlib
import hmac
import struct
import time
import tracemalloc
from collections.abc import Iterable

import dns.message
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.errors import FormatError
from kdns.wire import following, names, rr, tsig
from kdns.wire.message import opt_record, option
from kdns.wire.rrset import RRset
from kdns.zone import inbound, journal, transfer
from kdns.zone.inbound import Have, Inbound, LineageError, Question, RcodeError, TooLargeError
from kdns.zone.journal import Difference, Row
from kdns.zone.keys import key_name
from kdns.zone.values import Records, decode_rrsets

ORIGIN = b"\7example\4test\0"


def soa(serial: int) -> Row:
    return Row(ORIGIN, rr.SOA, 300, rr.soa(b"\2ns" + ORIGIN, b"\4host" + ORIGIN, serial, 60, 60, 600, 5))


def name(label: str) -> bytes:
    return names.join([label.encode()])[:-1] + ORIGIN


def a(label: str, address: str = "192.0.2.1", ttl: int = 300) -> Row:
    return Row(name(label), rr.A, ttl, rr.address(address))


def messages(rows: Iterable[Row], rtype: int = rr.AXFR, preferred: int = transfer.PREFERRED) -> list[bytes]:
    """The messages of a response."""
    packer = transfer.Packer(ORIGIN, preferred)
    for row in rows:
        packer.add(row)
    question = ORIGIN + struct.pack("!HH", rtype, rr.IN)
    return [struct.pack("!HHHHHH", 7, 0x8400, 1, count, 0, 0) + question + body for count, body in packer.done()]


def taken(data: Iterable[bytes], serial: int | None = None, room: int = inbound.MOST_MEMORY) -> Inbound:
    found = Inbound(ORIGIN, serial, room)
    for one in data:
        found.take(one, inbound.records_at(one, 7, ORIGIN, rr.AXFR if serial is None else rr.IXFR))
    return found


def rows_of(found: Inbound) -> set[Row]:
    return {
        Row(key_name(b"\0\0" + suffix, ORIGIN), rrset.type, rrset.ttl, rdata)
        for suffix, value in found.rows()
        for rrset in decode_rrsets(bytes(4) + value)
        for rdata in rrset.rdatas
    }


@pytest.mark.parametrize("preferred", [100, 16384])
def test_a_whole_zone(preferred: int) -> None:
    zone = [soa(5), a("ns"), Row(name("x"), rr.NS, 300, name("ns")), Row(name("x"), 15, 300, b"\0\5" + name("mail"))]
    found = taken(messages([*zone, soa(5)], preferred=preferred))
    assert (found.done, found.current, found.steps) == (True, False, [])
    assert rows_of(found) == set(zone)


def test_what_comes_takes_no_more_memory_than_is_counted() -> None:
    hosts = [f"h{number}" for number in range(3000)]
    removed, added = [a(host) for host in hosts], [a(host, "192.0.2.2") for host in hosts]
    there: dict[bytes, Records] = {row.owner: (RRset(rr.A, 300, (row.rdata,)),) for row in removed}
    there[ORIGIN] = (RRset(rr.SOA, 300, (soa(5).rdata,)),)
    for rows, serial in (
        ([soa(6), soa(5), *removed, soa(6), *added, soa(6)], 5),
        ([soa(6), *removed, soa(6)], None),
    ):
        data = messages(rows, rr.IXFR if serial else rr.AXFR)
        tracemalloc.start()
        found = taken(data, serial)
        if serial:
            inbound.changed(ORIGIN, found.steps, there)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert 0.7 * most < found._memory
        with pytest.raises(TooLargeError):
            taken(data, serial, found._memory - 1)


def test_names_in_data_are_written_in_full() -> None:
    head = struct.pack("!HHHHHH", 7, 0x8400, 1, 3, 0, 0) + ORIGIN + struct.pack("!HH", rr.AXFR, rr.IN)
    numbers = struct.pack("!IIIII", 5, 60, 60, 600, 5)
    apex = b"\xc0\x0c" + struct.pack("!HHIH", rr.SOA, rr.IN, 300, 24) + b"\xc0\x0c\xc0\x0c" + numbers
    mail = b"\4MAIL\xc0\x0c" + struct.pack("!HHIH", 15, rr.IN, 0x80000001, 4) + b"\0\5\xc0\x0c"
    found = taken([head + apex + mail + apex])
    assert Row(name("mail"), 15, 0, b"\0\5" + ORIGIN) in rows_of(found)
    assert found.soa == Row(ORIGIN, rr.SOA, 300, ORIGIN + ORIGIN + numbers)


def test_what_is_not_in_the_zone_is_left_out() -> None:
    other = Row(b"\3www\5other\4test\0", rr.A, 300, rr.address("192.0.2.66"))
    found = taken(messages([soa(5), other, a("ns"), soa(5)]))
    assert (found.outside, rows_of(found)) == (1, {soa(5), a("ns")})


def test_rows_are_in_the_order_of_keys_whatever_their_names_and_types() -> None:
    labels = [b"\0", b"\0\0", b"\1", b"\1\1", b"a", b"a\0", b"\xff", b"z"]
    owners = [
        names.join([*some, *names.labels(ORIGIN)]) for one in labels for some in ([one], [b"b", one], [b"\0", one])
    ]
    zone = [Row(owner, rtype, 5, bytes(rtype & 3)) for owner in owners for rtype in (65280, 65281, 16)]
    found = taken(messages([soa(5), *zone, soa(5)]))
    keys = [suffix for suffix, _ in found.rows()]
    assert keys == sorted(keys)
    assert len(keys) == len(set(keys)) == len(owners) + 1
    assert rows_of(found) == {soa(5), *zone}


def test_a_single_soa_says_that_nothing_is_newer() -> None:
    for serial in (5, 6, 100):
        found = taken(messages([soa(5)], rr.IXFR), serial)
        assert (found.done, found.current) == (True, True)
    found = taken(messages([soa(5)], rr.IXFR), 4)
    assert not found.done  # the rest of it is in other messages
    found.take(one := messages([a("ns"), soa(5)], rr.IXFR)[0], inbound.records_at(one, 7, ORIGIN, rr.IXFR))
    assert (found.done, found.current, rows_of(found)) == (True, False, {soa(5), a("ns")})


@pytest.mark.parametrize("preferred", [100, 16384])
def test_differences_one_behind_the_other(preferred: int) -> None:
    rows = [soa(7), soa(5), a("old"), soa(6), a("new"), soa(6), soa(7), a("newer"), soa(7)]
    found = taken(messages(rows, rr.IXFR, preferred), 5)
    assert found.done
    assert [(step.removed, step.added) for step in found.steps] == [([a("old")], [a("new")]), ([], [a("newer")])]
    assert [journal.serial_of(step.after) for step in found.steps] == [6, 7]


SECOND = Row(ORIGIN, rr.SOA, 300, rr.soa(b"\2ns" + ORIGIN, b"\5other" + ORIGIN, 5, 60, 60, 600, 5))


@pytest.mark.parametrize(
    ("rows", "serial", "reason"),
    [
        ([a("ns"), soa(5)], None, "does not begin with the SOA"),
        ([soa(5), a("ns"), soa(6)], None, "ends with another serial"),
        ([soa(5), soa(5), a("ns")], None, "behind its end"),
        ([soa(5), soa(5)._replace(owner=name("sub")), soa(5)], None, "below the apex"),
        ([soa(5), a("ns"), Row(name("ns"), rr.CNAME, 300, name("x")), soa(5)], None, "CNAME record beside"),
        ([soa(5), Row(name("ns"), rr.AXFR, 300, b""), soa(5)], None, "type AXFR"),
        ([soa(5), Row(name("ns"), rr.A, 300, b"123"), soa(5)], None, "an address of 3 bytes"),
        ([soa(5), Row(name("ns"), rr.NS, 300, b"\1"), soa(5)], None, "malformed"),
        ([soa(7), soa(4), a("old"), soa(7), soa(7)], 5, "another serial than we have"),
        ([soa(7), soa(5), soa(6), soa(5), soa(7), soa(7)], 5, "another serial than we have"),
        ([soa(7), soa(5), soa(7), soa(7)._replace(rdata=SECOND.rdata)], 5, "ends with another SOA record"),
        ([SECOND, soa(4), SECOND, soa(5)], 4, "ends with another SOA record"),
        ([SECOND, soa(4), soa(5), SECOND], 4, "ends with another SOA record"),
        ([soa(7), soa(5), soa(7), soa(7), a("ns")], 5, "behind its end"),
    ],
)
def test_what_is_wrong_is_refused(rows: list[Row], serial: int | None, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        rows_of(taken(messages(rows, rr.AXFR if serial is None else rr.IXFR), serial))


def test_responses_to_something_else_are_refused() -> None:
    good = messages([soa(5), soa(5)])[0]
    for bad in (
        good[:4],
        b"\0\x08" + good[2:],
        good[:2] + b"\x04" + good[3:],
        good[:2] + b"\x86" + good[3:],
        good[:2] + b"\xa4" + good[3:],
        good.replace(b"\7example", b"\7Wxample", 1),
        good.replace(struct.pack("!HH", rr.AXFR, 1), struct.pack("!HH", rr.IXFR, 1)),
    ):
        with pytest.raises(FormatError):
            taken([bad])
    with pytest.raises(RcodeError, match="REFUSED"):
        taken([good[:3] + b"\x05" + good[4:]])
    other = messages([soa(5)])[0].replace(struct.pack("!HH", rr.SOA, 1), struct.pack("!HH", rr.SOA, 3))
    with pytest.raises(FormatError, match="class CH"):
        taken([other])
    empty = good[:6] + bytes(6) + good[12 : 12 + len(ORIGIN) + 4]
    with pytest.raises(FormatError, match="no records"):
        taken([empty])


def test_a_zone_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound, "MOST_BYTES", 1 << 20)
    rows = [soa(5), *(Row(name(f"n{number}"), 16, 5, bytes([200]) + b"x" * 200) for number in range(6000)), soa(5)]
    with pytest.raises(FormatError, match="more than 1 MiB"):
        taken(messages(rows))


def records(*rows: Row) -> dict[bytes, Records]:
    found: dict[bytes, dict[int, list[Row]]] = {}
    for row in rows:
        found.setdefault(row.owner, {}).setdefault(row.type, []).append(row)
    return {
        owner: tuple(
            RRset(rtype, some[0].ttl, tuple(row.rdata for row in some)) for rtype, some in sorted(types.items())
        )
        for owner, types in found.items()
    }


def test_differences_have_to_fit() -> None:
    steps = taken(messages([soa(6), soa(5), a("old"), soa(6), a("new"), soa(6)], rr.IXFR), 5).steps
    there = {**records(soa(5), a("old")), name("new"): ()}
    after = inbound.changed(ORIGIN, steps, there)
    assert after == {**records(soa(6), a("new")), name("old"): ()}
    with pytest.raises(FormatError, match="what is to be removed"):
        inbound.changed(ORIGIN, steps, {**records(soa(5), a("old", "192.0.2.2")), name("new"): ()})
    with pytest.raises(FormatError, match="CNAME"):
        inbound.changed(ORIGIN, steps, {**there, name("new"): (RRset(rr.CNAME, 5, (name("x"),)),)})


ROWS = st.builds(
    lambda label, number, ttl: a(label, f"192.0.2.{number}", ttl),
    st.sampled_from(["a", "b", "c"]),
    st.integers(1, 6),
    st.just(300),
)


@settings(max_examples=100)
@given(st.sets(ROWS, max_size=12), st.sets(ROWS, max_size=12), st.integers(80, 400))
def test_a_difference_that_we_send_leads_to_what_we_have(before: set[Row], after: set[Row], preferred: int) -> None:
    removed, added = sorted(before - after), sorted(after - before)
    sent = transfer.difference(ORIGIN, Difference(soa(5), soa(6), removed, added))
    question = ORIGIN + struct.pack("!HH", rr.IXFR, rr.IN)
    head = struct.pack("!HHH", 7, 0x8400, 1)
    found = taken([head + struct.pack("!HHH", count, 0, 0) + question + body for count, body in sent], 5)
    assert found.done
    there = dict.fromkeys(inbound.touched(found.steps), ()) | records(soa(5), *sorted(before))
    got = inbound.changed(ORIGIN, found.steps, {owner: there[owner] for owner in inbound.touched(found.steps)})
    kept = {**there, **got}
    assert {
        Row(owner, rrset.type, rrset.ttl, rdata)
        for owner, rrsets in kept.items()
        for rrset in rrsets
        for rdata in rrset.rdatas
    } == {soa(6), *after}


@settings(max_examples=300)
@given(st.binary(max_size=80), st.integers(0, 60), st.sampled_from([None, 5]))
def test_bytes_of_the_network_raise_nothing_else(data: bytes, at: int, serial: int | None) -> None:
    rtype = rr.AXFR if serial is None else rr.IXFR
    good = messages([soa(7), soa(5), a("old"), soa(7), a("new"), soa(7)], rtype)[0]
    start = 12 + len(ORIGIN) + 4
    for sample in (good[:start] + data, good[: start + at] + data + good[start + at + len(data) :], data):
        try:
            rows_of(taken([sample], serial))
        except FormatError:
            continue


# Of a lineage


def question(rtype: int, lineage: bytes = b"lineage1", revision: int = 0) -> Question:
    have = Have(soa(5).rdata, lineage, revision)
    return Question(7, ORIGIN, rtype, have, None, time.time(), follow=True)


def marked(data: bytes, lineage: bytes) -> bytes:
    """A response with the option of following."""
    opt = opt_record(False, options=option(following.OPTION, lineage))
    return data[:10] + b"\0\1" + data[12:] + opt


def ask(rows: Iterable[Row], theirs: bytes, rtype: int = rr.IXFR, ours: bytes = b"lineage1") -> Question:
    asked = question(rtype, ours)
    first, *rest = messages(rows, rtype)
    for data in (marked(first, theirs) if theirs else first, *rest):
        asked.take(data, time.time())
    return asked


def test_a_query_says_which_lineage_the_copy_is_of_and_how_far_it_goes() -> None:
    for rtype, lineage, revision, told in [
        (rr.AXFR, b"lineage1", 0, b"lineage1"),
        (rr.IXFR, b"lineage1", 0, b"lineage1"),
        (rr.IXFR, b"lineage1", 258, b"lineage1\0\0\0\0\0\0\1\2"),
        (rr.IXFR, b"", 258, b""),
    ]:
        found = dns.message.from_wire(question(rtype, lineage, revision).data)
        assert [(int(one.otype), one.to_wire()) for one in found.options] == [(following.OPTION, told)]
    without = dns.message.from_wire(inbound.query(7, ORIGIN, rr.AXFR))
    assert without.edns < 0


DIFFERENCE = [soa(7), soa(5), a("old"), soa(7), a("new"), soa(7)]
WHOLE = [soa(3), a("new"), soa(3)]


def test_serials_of_the_same_lineage_are_compared() -> None:
    found = ask(DIFFERENCE, b"lineage1")
    assert (found.lineage, found.got.done, len(found.got.steps)) == (b"lineage1", True, 1)
    assert ask([soa(5)], b"lineage1").got.current
    found = ask([soa(5)], following.mark(b"lineage1", 1 << 63))
    assert (found.lineage, found.revision, found.got.current) == (b"lineage1", 1 << 63, True)
    found = ask(DIFFERENCE, b"", ours=b"")
    assert (found.lineage, len(found.got.steps)) == (b"", 1)


def test_a_copy_of_another_lineage_is_replaced_whatever_the_serials_are() -> None:
    for theirs, ours in [(b"lineage2", b"lineage1"), (b"", b"lineage1"), (b"lineage2", b"")]:
        found = ask(WHOLE, theirs, ours=ours)
        assert (found.lineage, found.got.done, found.got.current) == (theirs, True, False)
        assert rows_of(found.got) == {soa(3), a("new")}
        with pytest.raises(LineageError):
            ask([soa(3)], theirs, ours=ours)
        with pytest.raises(FormatError, match="another serial"):
            ask(DIFFERENCE, theirs, ours=ours)
    assert ask(WHOLE, b"lineage2", rr.AXFR).lineage == b"lineage2"
    assert ask(WHOLE, b"short", rr.AXFR).lineage == b""  # which is none


@settings(max_examples=300)
@given(st.binary(max_size=80), st.integers(0, 120), st.sampled_from([rr.AXFR, rr.IXFR, rr.SOA]))
def test_bytes_of_a_connection_raise_nothing_else(data: bytes, at: int, rtype: int) -> None:
    good = marked(messages(DIFFERENCE, rtype)[0], b"lineage1")
    told = bytes.fromhex("000724000001000000000000") + ORIGIN + struct.pack("!HH", rr.SOA, rr.IN)
    for sample in (data, good[:at] + data + good[at + len(data) :], good[:at]):
        with contextlib.suppress(FormatError):
            question(rtype).take(sample, time.time())
    for sample in (data, told[:at] + data + told[at + len(data) :], told[:at]):
        with contextlib.suppress(FormatError):
            inbound.notified(sample)
    origin, answer = inbound.notified(told)
    assert (origin, answer) == (ORIGIN, told[:2] + b"\xa4" + told[3:])


# Signed


KEY = tsig.Key(b"\3key\4test\0", b"secret" * 5)


def chain(count: int, *unsigned: int, key: tsig.Key = KEY) -> tuple[tsig.Asker, list[bytes]]:
    """Responses to a signed query; those with these numbers without a signature of their own."""
    asker = tsig.Asker(KEY)
    query = asker.sign(inbound.query(7, ORIGIN, rr.AXFR), time.time())
    record = tsig.find(query, 12 + len(ORIGIN) + 4)
    assert record is not None
    assert tsig.check(query, record, {KEY.name: KEY}, time.time()).error == 0
    signer = tsig.Signer(tsig.Signed(record, key))
    plain = messages([soa(5), *(a(f"n{number}") for number in range(count * 3)), soa(5)], preferred=120)[:count]
    found, waiting, mac = [], b"", record.mac
    for number, data in enumerate(plain):
        if number in unsigned:
            waiting += data
            found.append(data)
        elif not waiting:
            signed = signer.sign(data, time.time())
            mac = signer.mac
            found.append(signed)
        else:  # as RFC 8945 5.3.1 has it
            now = int(time.time())
            timers = struct.pack("!HIH", now >> 32, now & 0xFFFFFFFF, 300)
            mac = hmac.digest(key.secret, len(mac).to_bytes(2) + mac + waiting + data + timers, "sha256")
            waiting = b""
            name = tsig.ALGORITHMS["hmac-sha256"].name
            rdata = name + timers + struct.pack("!H", 32) + mac + data[:2] + bytes(4)
            tail = KEY.name + struct.pack("!HHIH", 250, 255, 0, len(rdata)) + rdata
            found.append(data[:10] + struct.pack("!H", 1) + data[12:] + tail)
            signer = tsig.Signer(tsig.Signed(record, key))
            signer._before = mac
    return asker, found


def checked(asker: tsig.Asker, responses: Iterable[bytes]) -> list[bool]:
    return [asker.check(data, inbound.question_end(data), time.time()) for data in responses]


def test_a_chain_of_signatures_is_checked() -> None:
    assert checked(*chain(4)) == [True] * 4
    assert checked(*chain(6, 1, 2, 4)) == [True, False, False, True, False, True]


@pytest.mark.parametrize("unsigned", [(), (1, 2)])
@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_response_that_was_changed_is_found(unsigned: tuple[int, ...], number: int) -> None:
    asker, responses = chain(4, *unsigned)
    data = responses[number]
    responses[number] = data.replace(b"\xc0\0\2\1", b"\xc0\0\2\2", 1)
    assert responses[number] != data
    with pytest.raises(FormatError, match="wrong signature"):
        checked(asker, responses)


def test_a_chain_has_to_begin_with_a_signature_and_be_by_our_key() -> None:
    with pytest.raises(FormatError, match="not signed"):
        checked(*chain(3, 0))
    with pytest.raises(FormatError, match="wrong signature"):
        checked(*chain(3, key=tsig.Key(KEY.name, b"another")))
    asker, responses = chain(2)
    with pytest.raises(FormatError, match="wrong signature"):
        checked(asker, responses[1:])
    asker, responses = chain(1)
    with pytest.raises(FormatError, match="another time"):
        asker.check(responses[0], inbound.question_end(responses[0]), time.time() + 1000)
    refused = tsig.Signer(tsig.Signed(tsig.Record(0, KEY.name, b"\x0bhmac-sha256\0", 0, 0, b"", 7), None, tsig.BADKEY))
    answer = refused.sign(messages([soa(5)])[0], time.time())
    with pytest.raises(FormatError, match="BADKEY"):
        asker.check(answer, inbound.question_end(answer), time.time())


def test_short_messages_of_long_names_are_bounded() -> None:
    long = names.join([b"x" * 60] * 3 + [b"y" * 40])[:-1] + ORIGIN
    (data,) = messages([soa(1), Row(long, 65280, 300, b"")])
    found = Inbound(ORIGIN, None, 1 << 20)
    at = inbound.records_at(data, 7, ORIGIN, rr.AXFR)
    found.take(data, at)
    pointer = struct.pack("!H", 0xC000 | at)
    record = pointer + struct.pack("!HHIH", rr.NS, rr.IN, 300, 2) + pointer
    packed = data[:6] + struct.pack("!H", 1501) + data[8:at] + long + struct.pack("!HHIH", 65280, 1, 0, 0)
    found.take(packed + record * 1500, at)
    with pytest.raises(FormatError, match="names in full take more than 1 MiB, more than the limit of memory"):
        found.take(packed + record * 1500, at)
