"""Master files as rows of the zone store: what is in them, what is wrong with them and where."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dns.name
import dns.rdata
import dns.rdatatype
import dns.zone
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.errors import ConfigError, Mistake
from kdns.wire import names, rr
from kdns.wire.rrset import RRset
from kdns.zone import masterfile
from kdns.zone.keys import key_name, name_key
from kdns.zone.masterfile import Content, Result
from kdns.zone.values import decode_rrsets, seal

pytestmark = pytest.mark.one_speed

ROOT = Path(__file__).resolve().parent.parent
ORIGIN = names.from_text("example.org")
HEAD = "$TTL 300\n@ 3600 IN SOA ns host 7 1 2 3 60\n"
ALL_TYPES = """\
a A 192.0.2.1
a AAAA 2001:db8::1
ns NS ns.elsewhere.test.
alias CNAME a
old DNAME new
p PTR a
h HINFO "cpu" "os"
m MX 10 a
t TXT "one" "two words" three
s SRV 1 2 3 a
n NAPTR 100 50 "s" "http" "" a
d DS 1 8 2 0123456789012345678901234567890123456789012345678901234567890123
k DNSKEY 257 3 8 AwEAAQ==
l TLSA 3 1 1 0123456789012345678901234567890123456789012345678901234567890123
f SSHFP 1 1 0123456789012345678901234567890123456789
c CAA 0 issue "ca.test"
v SVCB 1 . alpn=h2 port=8443
w HTTPS 0 a
u URI 10 1 "https://a.test/"
o LOC 52 22 23.000 N 4 53 32.000 E -2.00m 0.00m 10000m 10m
r RP host a
x AFSDB 1 a
y TYPE65400 \\# 3 010203
z SPF "v=spf1 -all"
e OPENPGPKEY AwEAAQ==
"""


@pytest.fixture(autouse=True)
def _here() -> Iterator[None]:
    """Reading goes to the folder of a file."""
    before = Path.cwd()
    yield
    os.chdir(before)


def read(folder: Path, text: str | bytes, **others: str) -> Content:
    for name, content in others.items():
        (folder / name).write_text(content)
    path = folder / "db"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return masterfile.read(path, ORIGIN)


def found(content: Content, name: str) -> dict[str, tuple[int, list[str]]]:
    """The RRsets of a name in words."""
    records = content.records(names.from_text(f"{name}.example.org" if name else "example.org"))
    return {
        rr.type_text(each.type): (
            each.ttl,
            [
                dns.rdata.from_wire("IN", dns.rdatatype.RdataType.make(each.type), rdata, 0, len(rdata)).to_text()
                for rdata in each.rdatas
            ],
        )
        for each in records
    }


def wrong(folder: Path, text: str | bytes, **others: str) -> Mistake:
    with pytest.raises(ConfigError) as caught:
        read(folder, text, **others)
    (mistake,) = caught.value.mistakes
    return mistake


def test_every_type_is_read_as_another_reader_of_the_same_library_has_it(tmp_path: Path) -> None:
    content = read(tmp_path, HEAD + ALL_TYPES)
    judge = dns.zone.from_text(HEAD + ALL_TYPES, "example.org.", relativize=False, check_origin=False)
    assert {names.from_text(owner.to_text()) for owner in judge.nodes} == set(content.names)
    for owner, node in judge.nodes.items():
        ours = content.records(names.from_text(owner.to_text()))
        theirs = {int(each.rdtype): (each.ttl, tuple(rdata.to_wire() for rdata in each)) for each in node.rdatasets}
        assert {each.type: (each.ttl, each.rdatas) for each in ours} == theirs


def test_directives(tmp_path: Path) -> None:
    text = HEAD + (
        "$ORIGIN deep.example.org.\na A 192.0.2.1\n$TTL 20\nB A 192.0.2.2\n"
        "$GENERATE 1-3 h$ A 192.0.2.$\n$INCLUDE more sub.example.org.\n$INCLUDE more\nlast A 192.0.2.9\n"
    )
    content = read(tmp_path, text, more="i TXT included\n")
    assert found(content, "a.deep") == {"A": (300, ["192.0.2.1"])}
    assert found(content, "b.deep") == {"A": (20, ["192.0.2.2"])}
    assert [found(content, f"h{n}.deep")["A"][1] for n in (1, 2, 3)] == [["192.0.2.1"], ["192.0.2.2"], ["192.0.2.3"]]
    assert found(content, "i.sub") == found(content, "i.deep") == {"TXT": (20, ['"included"'])}
    assert found(content, "last.deep")
    assert list(content.files) == [str(tmp_path / "db"), str(tmp_path / "more")]


def test_generated_records_are_of_any_type(tmp_path: Path) -> None:
    content = read(
        tmp_path,
        HEAD
        + '$GENERATE 1-3/2 m$ 60 IN MX 1$ mail-${-1,3,x}\n$GENERATE 9-9 t$ TXT "a $ b" $$\\$ ; c\n'
        + "$GENERATE 171-171 ${0,7,n}.r PTR ${0,4,X}.\nlast A 192.0.2.9\n",
    )
    assert found(content, "m1") == {"MX": (60, ["11 mail-000.example.org."])}
    assert found(content, "m3") == {"MX": (60, ["13 mail-002.example.org."])}
    assert found(content, "t9") == {"TXT": (300, ['"a 9 b" "$$"'])}
    assert found(content, "b.a.0.0.r") == {"PTR": (300, ["00AB."])}
    assert found(content, "last") == {"A": (300, ["192.0.2.9"])}


def test_a_string_that_is_too_long_is_several(tmp_path: Path) -> None:
    content = read(tmp_path, HEAD + f't TXT "one" "{"a" * 256}\\;" {"b" * 510}\n$GENERATE 1-1 g TXT {"c" * 256}\n')
    pieces = " ".join(f'"{text}"' for text in ("one", "a" * 255, "a;", "b" * 255, "b" * 255))
    assert found(content, "t") == {"TXT": (300, [pieces])}
    assert found(content, "g") == {"TXT": (300, [f'"{"c" * 255}" "c"'])}


def test_names_are_in_lower_case_and_records_come_once_with_one_ttl(tmp_path: Path) -> None:
    content = read(tmp_path, HEAD + "A 60 A 192.0.2.1\na 90 A 192.0.2.2\na 90 A 192.0.2.1\n")
    assert found(content, "a") == {"A": (60, ["192.0.2.1", "192.0.2.2"])}


def test_without_a_ttl_records_have_that_of_the_record_before(tmp_path: Path) -> None:
    content = read(tmp_path, "@ IN 500 SOA ns host 7 1 2 3 60\na A 192.0.2.1\nb 20 A 192.0.2.2\nc A 192.0.2.3\n")
    assert [found(content, name)["A"][0] for name in "abc"] == [500, 20, 20]


def test_what_is_not_in_the_zone_is_left_out_and_told(tmp_path: Path) -> None:
    content = read(tmp_path, HEAD + "a A 192.0.2.1\n\nother.test. A 192.0.2.2\norg. A 192.0.2.2\n")
    assert content.outside == Mistake(str(tmp_path / "db"), 5, "other.test. is not in the zone example.org.")
    assert content.outsiders == 2
    assert set(content.names) == {ORIGIN, b"\1a" + ORIGIN}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a A 192.0.2.300\n", 3, "Text input is malformed."),
        ("a FOO bar\n", 3, "unknown rdatatype 'FOO'"),
        ("a RRSIG A \0 2 60 20300101000000 20200101000000 1 a.b. AAAA\n", 3, "Text input is malformed."),
        ("a IN CH A 192.0.2.1\n", 3, "unknown rdatatype 'CH'"),
        ("a CH A 192.0.2.1\n", 3, "RR class is not zone's class"),
        ('\n\na TXT "no end\nb A 192.0.2.1\n', 5, "newline in quoted string"),
        ("a A 192.0.2.1\na CNAME b\n", 4, "a.example.org. has a CNAME record beside A"),
        ("a CNAME b\na A 192.0.2.1\n", 4, "a.example.org. has a A record beside a CNAME record"),
        ("a CNAME b\na CNAME c\n", 4, "a.example.org. has more than one CNAME record"),
        ("a DNAME b\na DNAME c\n", 4, "a.example.org. has more than one DNAME record"),
        ("@ SOA ns host 8 1 2 3 60\n", 3, "example.org. has more than one SOA record"),
        ("a SOA ns host 7 1 2 3 60\n", 3, "a.example.org. has an SOA record and is not the zone's apex"),
        ("a TYPE255 \\# 0\n", 3, "a.example.org. is of type ANY, which no zone has"),
        ("a NSEC3PARAM 1 0 0 -\n", 3, "a.example.org. is of type NSEC3PARAM"),
        ("$INCLUDE gone\na A 192.0.2.1\n", 3, "{folder}/gone: no such file or directory"),
        ("$INCLUDE gone", 3, "{folder}/gone: no such file or directory"),
        ("a A 192.0.2.1\n$TTL x\n", 4, "DNS TTL value is not well-formed."),
        ("$INCLUDE /dev/zero\n", 3, "/dev/zero: is no file"),
        ("$INCLUDE .\n", 3, "{folder}: is a directory"),
        ("$GENERATE 1-2 h$ A 192.0.2.$.\n", 3, "Text input is malformed."),
        ("$GENERATE 1-2 h$ MX 10\n", 3, "expecting an identifier"),
        ("$GENERATE 1-2 h${0,1,q} A 192.0.2.1\n", 3, "${{0,1,q}} is no number of $GENERATE"),
        ("$GENERATE 1\n", 3, "no stop value specified"),
        ("a A (\n192.0.2.1\nb A 192.0.2.2\n", 3, "expected EOL or EOF"),
    ],
)
def test_a_mistake_has_file_and_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    found = wrong(tmp_path, HEAD + text)
    assert (found.file, found.line) == (str(tmp_path / "db"), line), found
    assert message.format(folder=tmp_path) in found.message


def test_a_mistake_in_an_included_file_has_that_ones_name(tmp_path: Path) -> None:
    found = wrong(tmp_path, HEAD + "$INCLUDE more\n", more="a A 192.0.2.1\nb A x\n")
    assert (found.file, found.line) == (str(tmp_path / "more"), 2)


def test_a_file_that_includes_itself_comes_to_an_end(tmp_path: Path) -> None:
    ((result, _),) = process(tmp_path, HEAD + "$INCLUDE more\n", more="$INCLUDE more\n")
    assert result.mistake is not None
    assert result.mistake.message == f"{tmp_path}/more: too many open files"


def test_what_no_message_has_room_for_is_refused(tmp_path: Path) -> None:
    text = ' "' + "x" * 255 + '"'
    assert found(read(tmp_path, HEAD + "a TXT" + text * 255 + "\n"), "a")
    message = wrong(tmp_path, HEAD + "a TXT" + text * 256 + "\n").message
    assert message == "a.example.org. has a TXT record of 65536 bytes"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert wrong(tmp_path, HEAD + "$INCLUDE pipe\n").message == f"{tmp_path}/pipe: is no file"
    with pytest.raises(ConfigError, match="pipe:1: is no file"):
        masterfile.read(tmp_path / "pipe", ORIGIN)


def test_a_file_has_no_more_records_than_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masterfile, "MOST_RECORDS", 10)
    assert len(read(tmp_path, HEAD + "$GENERATE 1-8 h$ A 192.0.2.$\n").names) == 9
    mistake = wrong(tmp_path, HEAD + "$GENERATE 1-4294967295 h$ A 192.0.2.1\n")
    assert (mistake.line, mistake.message) == (3, "there are more than 10 records")


def test_many_records_of_one_name_take_no_longer_than_of_many(tmp_path: Path) -> None:
    """Comparing each with each would take minutes."""
    content = Content()
    for number in range(100_000):
        masterfile.add(content, ORIGIN, ORIGIN, 60, rr.A, number.to_bytes(4, "big"), ("db", 1))
    assert len(content.records(ORIGIN)[0].rdatas) == 100_000


def test_bytes_that_are_no_text_may_be_in_comments_and_nowhere_else(tmp_path: Path) -> None:
    assert found(read(tmp_path, HEAD.encode() + b"a A 192.0.2.1 ; caf\xe9\n"), "a")
    assert "not UTF-8" in wrong(tmp_path, HEAD.encode() + b'a TXT "caf\xe9"\n').message


def test_a_zone_has_an_soa_record(tmp_path: Path) -> None:
    mistake = wrong(tmp_path, "$TTL 1\na A 192.0.2.1\n")
    assert mistake.message == "there is no SOA record for the origin example.org."
    assert wrong(tmp_path, "").message == mistake.message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gone:1: no such file or directory; accepted: a file that can be read"):
        masterfile.read(tmp_path / "gone", ORIGIN)


# As a process


@contextlib.contextmanager
def _memory() -> Iterator[int]:
    fd = os.memfd_create("test")
    try:
        yield fd
    finally:
        os.close(fd)


def process(folder: Path, *texts: str, **others: str) -> list[tuple[Result, list[tuple[bytes, bytes]]]]:
    """What the process says of some files, and its rows."""
    for name, content in others.items():
        (folder / name).write_text(content)
    jobs = []
    for number, text in enumerate(texts):
        (folder / f"db{number}").write_text(text)
        jobs.append((f"db{number}", ORIGIN))
    with _memory() as fd:
        command = [sys.executable, "-m", "kdns.zone.masterfile"]
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(command, input=masterfile.jobs(jobs), stdout=fd, check=True, cwd=folder, env=environ)
        results = [(result, list(result.rows)) for result in masterfile.results(fd)]
        assert all(list(result.rows) == rows for result, rows in results)
        return results


def test_a_process_reads_files_one_after_the_other(tmp_path: Path) -> None:
    good = HEAD + "b A 192.0.2.2\n$INCLUDE more\nother.test. A 192.0.2.1\n* TXT x\na\\.b.c A 192.0.2.3\n"
    (first, rows), (second, none), (_, one) = process(tmp_path, good, HEAD + "a A x\n", HEAD, more="a 60 A 192.0.2.1\n")
    assert (first.mistake, first.serial, first.records, first.outsiders) == (None, 7, 5, 1)
    assert first.outside is not None
    assert first.files == (str(tmp_path / "db0"), str(tmp_path / "more"))
    assert [suffix for suffix, _ in rows] == [b"", b"*\0", b"a\0", b"b\0", b"c\0a.b\0"]
    assert decode_rrsets(seal(b"", rows[2][1])) == (rr_set(rr.A, 60, "192.0.2.1"),)
    assert second.mistake is not None
    assert (second.mistake.file, second.mistake.line) == (str(tmp_path / "db1"), 3)
    assert (none, len(one)) == ([], 1)


def rr_set(rtype: int, ttl: int, *addresses: str) -> RRset:
    return RRset(rtype, ttl, tuple(map(rr.address, addresses)))


def test_what_a_process_had_no_time_to_finish_is_no_result(tmp_path: Path) -> None:
    with _memory() as fd:
        path = tmp_path / "db"
        path.write_text(HEAD + "a A 192.0.2.1\n")
        command = [sys.executable, "-m", "kdns.zone.masterfile"]
        subprocess.run(command, input=masterfile.jobs([(str(path), ORIGIN)] * 2), stdout=fd, check=True)
        size = os.lseek(fd, 0, os.SEEK_END)
        for end in (size, size - 1, size // 2 + 1, size // 2, size // 2 - 1, 3, 0):
            os.ftruncate(fd, end)
            assert len(masterfile.results(fd)) == end // (size // 2)


NAMES = [
    "a", "B", "a.b", "*", "*.a", "@", "", "a.example.org.", "A.Example.ORG.", "other.test.", "in", "3600",
    "_s._tcp", "-", "x" * 63, "x" * 64, ".".join(["y" * 60] * 4), "a..b", ".", "a\\.b", "a\\032", "bücher",
    "xn--bcher-kva", "a;b", "cname",
]  # fmt: skip
lines = st.tuples(
    st.sampled_from(NAMES),
    st.sampled_from([" ", "\t", "  \t "]),
    st.sampled_from(["", "300 ", "0 ", "1h ", "999999999 ", "4294967295 ", "99999999999 "]),
    st.sampled_from(["", "IN ", "in ", "CH ", "IN 20 "]),
    st.sampled_from(["A 192.0.2.1", "A 192.0.2.2", "a 192.0.2.01", "A 1.2.3", "AAAA 2001:db8::1",
                     "AAAA ::ffff:192.0.2.1", "AAAA 1::2::3", "CNAME a", "cname B.example.org.",
                     "NS ns", "NS @", "PTR x.y", "TXT a", "A", "FOO x", "SOA ns host 7 1 2 3 60"]),
    st.sampled_from(["", " ", " ; A 192.0.2.9", ";", " x", " (", " ( )"]),
).map("".join)  # fmt: skip


def both_ways(folder: Path, text: str) -> bool:
    """Whether the same comes of it as of an included file, all lines of which are taken apart."""

    def outcome(text: str, **others: str) -> object:
        try:
            content = read(folder, text, other="d A 192.0.2.5\n", **others)
        except ConfigError as error:
            return error.mistakes[0].line, error.mistakes[0].message
        outside = content.outside and (content.outside.line, content.outside.message)
        return {owner: content.records(owner) for owner in content.names}, outside, content.outsiders

    return outcome(text) == outcome("$INCLUDE more\n", more=text)


directives = st.sampled_from(
    ["$ORIGIN Deep.Example.org.", "$TTL 20", "$TTL 1h", "", ";", "$GENERATE 1-2 g$ A 192.0.2.$",
     "$GENERATE 1-2 g A 192.0.2.7 ; x", "  ", "b A (", "192.0.2.8 )", 'c TXT "', '"', "$INCLUDE other"]
)  # fmt: skip


@settings(max_examples=300)
@given(head=st.sampled_from([HEAD, "@ SOA ns host 7 1 2 3 60\n", ""]), body=st.lists(lines | directives, max_size=6))
def test_plain_lines_mean_what_they_mean_taken_apart(head: str, body: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert both_ways(Path(folder), head + "\n".join(body))


@pytest.mark.parametrize("name", NAMES)
def test_names_of_plain_lines(tmp_path: Path, name: str) -> None:
    assert both_ways(tmp_path, f"$ORIGIN Example.org.\n{HEAD}a CNAME {name}\n")
    for line in (f"{name} A 192.0.2.1", f"z CNAME {name}", f"z 20 IN NS {name} ; comment", f"{name} AAAA ::1"):
        assert both_ways(tmp_path, f"{HEAD}{line}\n  60 A 192.0.2.2\n\tTXT x\nlast AAAA ::3")


labels = st.lists(st.binary(min_size=1, max_size=5), max_size=4)


@settings(max_examples=50)
@given(st.lists(labels, max_size=20))
def test_rows_are_in_the_order_of_keys(owners: list[list[bytes]]) -> None:
    content = Content()
    for owner in owners:
        name = names.join(owner).lower()[:-1] + ORIGIN
        content.names[name] = {rr.A: (1, {bytes(4): None})}
    rows = [suffix for suffix, _ in content.rows(ORIGIN)]
    assert rows == sorted(rows)
    assert {key_name(b"\0\0" + suffix, ORIGIN) for suffix in rows} == set(content.names)
    assert all(b"\0\0" + suffix == name_key(b"\0\0", key_name(b"\0\0" + suffix, ORIGIN), ORIGIN) for suffix in rows)
