"""file: the zones of master files, answered as Knot DNS answers them, and followed as they change."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.dnssec
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.zone
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from kdns.cli import check
from tests.conftest import Serve
from tests.support import digs, procs
from tests.support.configs import options, refused
from tests.support.knot import Knot
from tests.support.server import ROOT, Server

pytestmark = pytest.mark.one_speed

ZONE = """\
$ORIGIN {origin}.
$TTL 300
@ 3600 IN SOA ns.{origin}. host.{origin}. 7 7200 3600 1209600 60
@ NS ns
@ NS ns.elsewhere.test.
@ MX 10 mail
ns A 192.0.2.1
mail A 192.0.2.2
mail AAAA 2001:db8::2
WWW A 192.0.2.3
www TXT "one" "two"
deep.empty.below A 192.0.2.4
*.wild A 192.0.2.5
*.wild MX 5 mail
own.wild TXT "own"
x.y.wild A 192.0.2.6
*.walias CNAME www
x.*.star TXT "below a star"
sub NS ns.sub
sub NS ns.elsewhere.test.
sub DS 1 13 2 0123456789012345678901234567890123456789012345678901234567890123
ns.sub A 192.0.2.7
hidden.sub A 192.0.2.8
plain NS ns.plain
ns.plain AAAA 2001:db8::9
alias CNAME www
two CNAME alias
gone CNAME nowhere
intosub CNAME a.sub
loop1 CNAME loop2
loop2 CNAME loop1
self CNAME self
old DNAME new
a.new A 192.0.2.10
b.new CNAME www
_s._tcp SRV 1 2 3 mail
svc HTTPS 1 mail alpn=h2
odd\\.dot A 192.0.2.11
t TYPE65400 \\# 3 010203
"""
QUESTIONS = [
    *[("", rdtype) for rdtype in ("SOA", "NS", "MX", "A", "TXT", "DNSKEY", "DS")],
    *[(name, rdtype) for name in ("www", "WwW", "mail") for rdtype in ("A", "AAAA", "TXT", "MX", "CNAME")],
    *[(name, "A") for name in ("below", "empty.below", "deep.empty.below", "no.deep.empty.below", "no.below")],
    *[(f"{name}wild", rdtype) for name in ("a.", "a.b.", "", "*.") for rdtype in ("A", "MX", "TXT")],
    *[(f"{name}wild", "A") for name in ("own.", "x.own.", "y.", "z.y.", "x.y.", "x.*.")],
    *[("a.walias", rdtype) for rdtype in ("A", "TXT", "CNAME", "AAAA")],
    *[(name, rdtype) for name in ("a.star", "*.star", "x.*.star", "star") for rdtype in ("A", "TXT")],
    *[(f"{name}{cut}", rdtype) for cut in ("sub", "plain") for name in ("", "a.", "ns.", "hidden.")
      for rdtype in ("A", "NS", "DS", "SOA")],
    *[(name, rdtype) for name in ("alias", "two", "gone", "intosub") for rdtype in ("A", "CNAME", "AAAA", "TXT")],
    *[(name, rdtype) for name in ("old", "a.old", "b.old", "c.old", "a.b.old") for rdtype in ("A", "DNAME", "AAAA")],
    ("_s._tcp", "SRV"), ("_tcp", "SRV"), ("svc", "HTTPS"), ("odd\\.dot", "A"), ("t", "TYPE65400"), ("nowhere", "A"),
    ("0", "A"), ("zzz", "A"), ("a.b.c.d", "TXT"),
]  # fmt: skip
COREFILE = """\
plain.test:$dns {
    bind 127.0.0.1
    errors
    prometheus $host:$metrics
    root $folder
    file plain
}
signed.test:$dns {
    bind 127.0.0.1
    file $folder/signed
}
z.test:$dns chain.test:$dns dead.test:$dns {
    bind 127.0.0.1
    file $manifests/db z.test chain.test
    file $manifests/child child.z.test
    forward . 127.0.0.1:9 {
        max_fails 0
    }
}
below.z.test:$dns deep.below.z.test:$dns alone.test:$dns {
    bind 127.0.0.1
    file $manifests/child
}
above.test:$dns {
    bind 127.0.0.1
    file $manifests/child below.above.test {
        fallthrough
    }
}
other.test:$dns {
    bind 127.0.0.1
    hosts $manifests/hosts {
        fallthrough gone.other.test
    }
    template ANY ANY gone.other.test {
        rcode NXDOMAIN
        authority "other.test. 60 IN SOA ns.other.test. host.other.test. 1 2 3 4 60"
    }
}
refused.test:$dns {
    bind 127.0.0.1
    acl {
        block
    }
}
silent.test:$dns {
    bind 127.0.0.1
    acl {
        drop
    }
}
"""
CHANGING = """\
.:$dns {
    bind 127.0.0.1
    ready $host:$ready
    prometheus $host:$metrics
    root $folder
    kubernetes cluster.local {
        manifests $manifests
    }
    file db z.test both.test {
        reload 20ms
        fallthrough a.z.test
    }
    file late late.test {
        reload 20ms
    }
    file cluster cluster.local sub.cluster.local
    whoami
}
"""
EXCEPTIONS: dict[tuple[str, str], Callable[[tuple[set[str], ...], tuple[set[str], ...]], bool]] = {
    # RFC 4035 3.1.3.4: that there is nothing at *.star has a proof of its own, which Knot leaves out
    ("a.star", "A"): lambda ours, theirs: ours[0] > theirs[0] and any(" 47 x.*.star" in text for text in ours[0]),
    ("a.star", "TXT"): lambda ours, theirs: ours[0] > theirs[0],
    # Knot proves beside the addresses of the target that there is no HTTPS record
    ("svc", "HTTPS"): lambda ours, theirs: ours[1] < theirs[1] and len(ours[1]) == 4,
}
Shape = tuple[str, bool, set[str], set[str], set[str]]


def signed(text: str, origin: str) -> str:
    """The zone, signed with NSEC."""
    zone = dns.zone.from_text(text, origin, relativize=False)
    key = ec.generate_private_key(ec.SECP256R1())
    dnskey = dns.dnssec.make_dnskey(key.public_key(), "ECDSAP256SHA256")
    with zone.writer() as txn:
        dns.dnssec.sign_zone(zone, txn, [(key, dnskey)], lifetime=86400, add_dnskey=True, dnskey_ttl=300)
    return zone.to_text(relativize=False)


@pytest.fixture(scope="module")
def zones() -> dict[str, str]:
    """Zones that Knot has as well."""
    plain, other = (ZONE.format(origin=origin) for origin in ("plain.test", "signed.test"))
    return {"plain.test": plain, "signed.test": signed(other, "signed.test")}


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory, zones: dict[str, str]) -> Iterator[Server]:
    """Zones that stay as they are."""
    folder = tmp_path_factory.mktemp("file")
    for origin, text in zones.items():
        (folder / origin.partition(".")[0]).write_text(text)
    server = Server(folder / "kdns", corefile=COREFILE.replace("$folder", str(folder)))
    write_aliases(server.manifests)
    try:
        server.start(wait=False)
        server.wait_ready()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def knot(tmp_path_factory: pytest.TempPathFactory, zones: dict[str, str]) -> Iterator[Knot]:
    """Some of them in Knot."""
    if not digs.available("knotd"):
        pytest.skip("not installed: knotd")
    with Knot(tmp_path_factory.mktemp("knot"), zones) as knot:
        yield knot


def shape(response: dns.message.Message) -> Shape:
    """What matters of a response: it is the same whatever the order of its records."""

    def records(section: list[dns.rrset.RRset]) -> set[str]:
        return {f"{rrset.name} {rrset.ttl} {rrset.rdtype} {rdata}".lower() for rrset in section for rdata in rrset}

    return (
        dns.rcode.to_text(response.rcode()),
        bool(response.flags & dns.flags.AA),
        records(response.answer),
        records(response.authority),
        records(response.additional),
    )


@pytest.mark.parametrize("want_dnssec", [False, True], ids=["plain", "DO"])
@pytest.mark.parametrize("origin", ["plain.test", "signed.test"])
def test_answers_are_those_of_knot(still: Server, knot: Knot, origin: str, want_dnssec: bool) -> None:
    different = []
    for label, rdtype in QUESTIONS:
        name = f"{label}.{origin}".lstrip(".")
        query = dns.message.make_query(name, rdtype, want_dnssec=want_dnssec, use_edns=0, payload=4096)
        ours = dns.query.tcp(query, "127.0.0.1", 3, still.port)
        theirs = dns.query.tcp(query, "127.0.0.1", 3, knot.port)
        if (label, rdtype) in EXCEPTIONS and want_dnssec and origin == "signed.test":
            assert EXCEPTIONS[label, rdtype](shape(ours)[3:], shape(theirs)[3:])
        elif shape(ours) != shape(theirs):
            different.append(f"{name} {rdtype}\n  {shape(ours)}\n  {shape(theirs)}")
    assert not different, "\n".join(different)


# Followed as they change


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Zones that change, beside a cluster and something behind."""
    folder = tmp_path_factory.mktemp("changing")
    write(folder / "db", 1)
    write(folder / "cluster", 1, "*.svc A 192.0.2.99\n")
    with Server(folder / "kdns", corefile=CHANGING.replace("$folder", str(folder))) as found:
        yield found


def folder_of(server: Server) -> Path:
    return server.folder.parent


def write(path: Path, serial: int, more: str = "", *, mistake: str = "") -> None:
    """Write a zone at once, as something that was written a while ago."""
    text = f"$TTL 300\n@ SOA ns host {serial} 1 2 3 60\n@ NS ns\nns A 192.0.2.1\n{more}{mistake}"
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    os.utime(temporary, ns=(0, time.time_ns() - 3_000_000_000))
    temporary.replace(path)


def until(condition: Callable[[], bool], what: str) -> None:
    procs.wait_until(condition, 10.0, what, 0.02)


def serial(server: Server, zone: str = "z.test") -> int:
    (rrset,) = server.query(zone, "SOA").answer
    return int(rrset[0].serial)


def change(server: Server, more: str, file: str = "db", zone: str = "z.test") -> None:
    """Write a zone with the next serial, and wait until it is served."""
    wanted = serial(server, zone) + 1
    write(folder_of(server) / file, wanted, more)
    until(lambda: serial(server, zone) == wanted, f"serial {wanted}")


def rcode(server: Server, name: str, rdtype: str = "A") -> str:
    return dns.rcode.to_text(server.query(name, rdtype).rcode())


def cached(server: Server, name: str, rdtype: str = "A") -> str:
    """What is answered when it has been asked so often that the answer is kept."""
    query = dns.message.make_query(name, rdtype)
    found = [dns.query.udp(query, "127.0.0.1", 3, server.port) for _ in range(4)][-1]
    return dns.rcode.to_text(found.rcode()) + "".join(sorted(f" {each}" for rrset in found.answer for each in rrset))


STEPS = {
    # what there is; what is asked for; what comes; what the answer is then
    "a name below a wildcard": ("*.k A 192.0.2.5", "a.b.k", "x.b.k A 192.0.2.6", "NXDOMAIN"),
    "the name itself": ("*.b A 192.0.2.5", "a.b", "a.b TXT x", "NOERROR"),
    "a name below the name": ("*.c A 192.0.2.5", "a.c", "x.a.c TXT x", "NOERROR"),
    "a wildcard": ("", "a.d", "*.d A 192.0.2.5", "NOERROR 192.0.2.5"),
    "a wildcard without records": ("", "a.e", "x.*.e TXT x", "NOERROR"),
    "a cut above": ("b.f A 192.0.2.5", "b.f", "f NS ns.else.test.", "NOERROR"),
    "a DNAME above": ("b.g A 192.0.2.5", "b.g", "g DNAME d", "NOERROR 192.0.2.5 b.d.z.test. d.z.test."),
    "the target of an alias": ("h CNAME t", "h", "t A 192.0.2.8", "NOERROR 192.0.2.8 t.z.test."),
    "a wildcard below a name that is there": ("l TXT x", "a.l", "*.l A 192.0.2.5", "NOERROR 192.0.2.5"),
    "a nearer wildcard": ("*.i A 192.0.2.5", "a.b.i", "*.b.i A 192.0.2.6", "NOERROR 192.0.2.6"),
    "an address of a target": ("j MX 1 m.j", "j", "m.j A 192.0.2.5", "NOERROR 1 m.j.z.test."),
}


def test_a_kept_answer_ends_with_what_it_depends_on(server: Server) -> None:
    change(server, "".join(f"{before}\n" for before, _, _, _ in STEPS.values()))
    rdtypes = {"j": "MX"}
    first = {name: cached(server, f"{name}.z.test", rdtypes.get(name, "A")) for _, name, _, _ in STEPS.values()}
    assert first["a.b.k"] == first["a.b"] == first["a.b.i"] == "NOERROR 192.0.2.5"
    assert first["a.d"] == "NXDOMAIN"
    change(server, "".join(f"{before}\n{added}\n" for before, _, added, _ in STEPS.values()))
    for title, (_, name, _, after) in STEPS.items():
        assert cached(server, f"{name}.z.test", rdtypes.get(name, "A")) == after, title
    assert len(server.query("j.z.test", "MX").additional) == 1
    change(server, "".join(f"{before}\n" for before, _, _, _ in STEPS.values()))
    assert first == {name: cached(server, f"{name}.z.test", rdtypes.get(name, "A")) for name in first}
    change(server, "@ DNAME else.test.\n")
    assert server.query("a.b.z.test").answer[0].rdtype == dns.rdatatype.DNAME


def test_glue_that_changes_is_in_the_next_referral(server: Server) -> None:
    change(server, "w NS ns.w\nns.w A 192.0.2.5\n")
    cached(server, "a.w.z.test")
    change(server, "w NS ns.w\nns.w A 192.0.2.6\n")
    (glue,) = server.query("a.w.z.test").additional
    assert [str(each) for each in glue] == ["192.0.2.6"]


def test_one_file_has_several_zones(server: Server) -> None:
    change(server, "a A 192.0.2.5\n")
    until(lambda: server.texts("a.both.test") == ["192.0.2.5"], "the other zone")
    assert server.texts("a.z.test") == ["192.0.2.5"]


def test_a_new_serial_is_what_makes_it_a_new_zone(server: Server) -> None:
    change(server, "a A 192.0.2.5\nb A 192.0.2.5\n")
    write(folder_of(server) / "db", serial(server), "a A 192.0.2.66\n")
    until(lambda: "has changed, and its serial has not" in server.log, "the warning")
    assert server.texts("a.z.test") == ["192.0.2.5"]
    change(server, "a A 192.0.2.7\n")
    assert server.texts("a.z.test") == ["192.0.2.7"]
    write(folder_of(server) / "db", 1, "")
    until(lambda: serial(server) == 1, "the old serial")
    assert "the serial of z.test. went back from" in server.log
    assert rcode(server, "b.z.test") == "NXDOMAIN"


def test_a_file_with_a_mistake_leaves_the_zone_as_it_was(server: Server) -> None:
    change(server, "a A 192.0.2.5\n")
    before = server.log.count("db:6: unknown rdatatype")
    write(folder_of(server) / "db", 1000, "a A 192.0.2.6\n", mistake="b FOO x\n")
    until(lambda: server.log.count("db:6: unknown rdatatype") == before + 2, "file and line, for both zones")
    assert server.metrics().value("kdns_zone_files_unusable") == 3  # and one that is not there
    assert server.texts("a.z.test") == ["192.0.2.5"]
    change(server, "")
    until(lambda: server.metrics().value("kdns_zone_files_unusable") == 1, "the gauge")


def test_a_file_may_come_later_and_its_names_are_servfail_until_then(server: Server) -> None:
    path = folder_of(server) / "late"
    assert rcode(server, "a.late.test") == rcode(server, "late.test", "SOA") == "SERVFAIL"
    assert f"{path}:1: no such file or directory" in server.log
    write(path, 5, "a A 192.0.2.5\n")
    until(lambda: rcode(server, "a.late.test") == "NOERROR", "the zone")
    path.unlink()
    until(lambda: server.log.count(f"{path}:1: no such file or directory") == 2, "the message")
    assert server.texts("a.late.test") == ["192.0.2.5"]


def test_what_does_not_exist_goes_on_only_where_it_shall(server: Server) -> None:
    change(server, "b.a A 192.0.2.5\n")
    assert server.query("x.a.z.test").additional  # whoami
    assert rcode(server, "x.z.test") == "NXDOMAIN"
    assert not server.query("a.z.test").additional  # it exists
    assert server.texts("b.a.z.test") == ["192.0.2.5"]


def test_kubernetes_answers_before_file_for_what_is_in_its_zone(server: Server) -> None:
    for name in ("a.svc.cluster.local", "a.sub.cluster.local", "ns.sub.cluster.local"):
        assert cached(server, name) == "NXDOMAIN"
    assert server.query("cluster.local", "SOA").answer[0][0].minimum == 5


# Aliases that lead out of the zones


def write_aliases(folder: Path) -> None:
    (folder / "hosts").write_text("192.0.2.77 a.other.test\n")
    write(folder / "child", 5)
    chain = "".join(f"c{number} CNAME c{number + 1}\n" for number in range(12))
    long = ".".join(["x" * 60] * 3)
    write(
        folder / "db",
        1,
        "out CNAME a.other.test.\nmissing CNAME gone.other.test.\ndead CNAME a.dead.test.\n"
        "refused CNAME a.refused.test.\nsilent CNAME a.silent.test.\nnobody CNAME a.invalid.\n"
        "d DNAME other.test.\nw.x CNAME out\n*.w CNAME a.other.test.\n"
        f"{chain}c12 A 192.0.2.12\nlong DNAME {long}\nloop DNAME loop.loop\nping CNAME ping.chain.test.\n"
        f"*.wild DNAME other.test.\nchild NS ns.child\nchild DS 1 13 2 {'01' * 32}\n"
        f"below NS ns.child\nbelow DS 1 13 2 {'02' * 32}\n",
    )


def shown(server: Server, name: str, rdtype: str = "A", *, tcp: bool = False) -> tuple[str, list[str]]:
    """The rcode, and the answer section with its owners."""
    found = server.query(name, rdtype, tcp=tcp)
    lines = [f"{rrset.name} {rdata}" for rrset in found.answer for rdata in rrset]
    return dns.rcode.to_text(found.rcode()), lines


def test_an_alias_is_completed_by_what_this_server_answers(still: Server) -> None:
    assert shown(still, "out.z.test") == ("NOERROR", ["out.z.test. a.other.test.", "a.other.test. 192.0.2.77"])
    assert shown(still, "any.w.z.test")[1] == ["any.w.z.test. a.other.test.", "a.other.test. 192.0.2.77"]
    assert shown(still, "w.x.z.test")[1][-1] == "a.other.test. 192.0.2.77"
    assert shown(still, "a.d.z.test")[1] == [
        "d.z.test. other.test.",
        "a.d.z.test. a.other.test.",
        "a.other.test. 192.0.2.77",
    ]
    assert shown(still, "out.z.test", "CNAME") == ("NOERROR", ["out.z.test. a.other.test."])
    missing = still.query("missing.z.test")
    assert (missing.rcode(), missing.authority[0].rdtype) == (dns.rcode.NXDOMAIN, dns.rdatatype.SOA)
    assert [rrset.rdtype for rrset in missing.answer] == [dns.rdatatype.CNAME]


def test_what_an_alias_leads_to_may_fail(still: Server) -> None:
    assert shown(still, "dead.z.test") == ("SERVFAIL", [])
    assert shown(still, "refused.z.test") == ("SERVFAIL", [])
    assert shown(still, "silent.z.test") == ("SERVFAIL", [])


def test_that_nobody_at_all_answers_for_a_target_is_kept(still: Server) -> None:
    before = still.metrics().value("kdns_packet_cache_hits_total")
    assert cached(still, "nobody.z.test") == "NOERROR a.invalid."
    assert still.metrics().value("kdns_packet_cache_hits_total") > before


def test_names_in_no_zone_are_refused_where_nobody_else_could_answer(still: Server) -> None:
    assert rcode(still, "above.test", "SOA") == rcode(still, "a.above.test") == "REFUSED"
    assert rcode(still, "ns.below.above.test") == "NOERROR"
    assert rcode(still, "gone.below.above.test") == "SERVFAIL"


def test_chains_come_to_an_end(still: Server) -> None:
    code, lines = shown(still, "c0.z.test")
    assert (code, len(lines)) == ("NOERROR", 10)
    assert shown(still, "c2.z.test")[1][-1] == "c12.z.test. 192.0.2.12"
    types = [line.split()[3] for line in digs.dig(still.port, "a.loop.z.test", "A").answer]
    assert types == ["DNAME"] + ["CNAME"] * 10
    assert shown(still, "ping.z.test") == (
        "NOERROR",
        ["ping.z.test. ping.chain.test.", "ping.chain.test. ping.chain.test."],
    )


def test_a_name_that_a_dname_makes_too_long_is_yxdomain(still: Server) -> None:
    code, lines = shown(still, "y" * 60 + ".yyyy.long.z.test")
    assert (code, len(lines)) == ("YXDOMAIN", 1)


def test_a_dname_at_a_wildcard_is_a_record_as_others(still: Server) -> None:
    assert shown(still, "a.wild.z.test") == ("NOERROR", [])
    assert shown(still, "a.wild.z.test", "DNAME") == ("NOERROR", ["a.wild.z.test. other.test."])


def test_ds_is_above_the_cut_and_all_else_below(still: Server) -> None:
    assert shown(still, "child.z.test", "DS")[1] == [f"child.z.test. 1 13 2 {'01' * 32}"]
    assert shown(still, "child.z.test", "SOA")[1][0].split()[3] == "5"
    assert still.query("x.child.z.test", "DS").authority[0].name.to_text() == "child.z.test."


def test_ds_is_asked_of_the_server_block_above(still: Server) -> None:
    assert shown(still, "below.z.test", "DS")[1] == [f"below.z.test. 1 13 2 {'02' * 32}"]
    assert shown(still, "below.z.test", "SOA")[1][0].split()[3] == "5"
    for name, above in (("deep.below.z.test", "below.z.test."), ("alone.test", "alone.test.")):
        assert [rrset.name.to_text() for rrset in still.query(name, "DS").authority] == [above]


def test_any_is_minimal_over_udp_only(still: Server) -> None:
    assert shown(still, "z.test", "ANY") == ("NOERROR", ['z.test. "RFC8482" ""'])
    assert len(shown(still, "z.test", "ANY", tcp=True)[1]) == 2


# At a start


def test_data_from_before_is_served_where_the_file_cannot_be_used(serve: Serve, tmp_path: Path) -> None:
    corefile = "test:$dns {\n bind 127.0.0.1\n root $manifests\n"
    corefile += "".join(f" file {name} {name}.test {{\n reload 20ms\n}}\n" for name in "abc") + "}\n"
    folder = tmp_path / "manifests"
    folder.mkdir()
    for name in "abc":
        write(folder / name, 7, "a A 192.0.2.5\n")
    server = serve(corefile=corefile, folder=tmp_path)
    server.kill()
    (folder / "a").write_text("nonsense")
    (folder / "b").unlink()
    write(folder / "c", 7, "a A 192.0.2.6\n")  # at a start the file counts, whatever its serial
    server.start()
    until(lambda: server.texts("a.c.test") == ["192.0.2.6"], "the file")
    until(lambda: f"{folder}/a:1: " in server.log and f"{folder}/b:1: " in server.log, "the messages")
    assert server.texts("a.a.test") == server.texts("a.b.test") == ["192.0.2.5"]


@pytest.mark.parametrize(
    ("text", "lines", "message"),
    [
        ("@ 1 SOA ns host 1 2 3 4 5\na 1 A x\n", "", "db:2: Text input is malformed.; accepted: a master file"),
        (None, "reload 0s", "db:1: no such file or directory; accepted: a file that can be read"),
    ],
)
def test_a_new_zone_has_to_be_right(tmp_path: Path, text: str | None, lines: str, message: str) -> None:
    server = Server(tmp_path, corefile=f"z.test:$dns {{\n bind 127.0.0.1\n file $manifests/db {{\n {lines}\n}}\n}}\n")
    if text is not None:
        (server.manifests / "db").write_text(text)
    code, said = server.run()
    assert code == 1
    assert f"{server.manifests}/{message}" in said


def test_check_reads_the_files_that_are_there(tmp_path: Path) -> None:
    corefile = tmp_path / "Corefile"
    corefile.write_text(f"z.test {{\n root {tmp_path}\n file db z.test y.test\n file gone x.test\n}}\n")
    write(tmp_path / "db", 1)
    assert check.report(corefile)["ok"]
    write(tmp_path / "db", 1, mistake="a A x\n")
    (mistake,) = check.report(corefile)["mistakes"]
    assert mistake["text"].startswith(f"{tmp_path}/db:5: Text input is malformed.; accepted: a master file")
    corefile.write_text(f"z.test {{\n file {tmp_path}/gone {{\n reload 0\n}}\n}}\n")
    assert [each["file"] for each in check.report(corefile)["mistakes"]] == [f"{tmp_path}/gone"]


def test_the_example_is_right() -> None:
    assert check.report(ROOT / "zones" / "example" / "Corefile")["ok"]


# In the Corefile


def test_what_the_directive_says() -> None:
    (found,) = options("file db").files
    assert (found.path, found.zones, found.reload, found.fallthrough) == ("db", ("example.org.",), 60.0, ())
    (found,) = options("file /db A.test 10.0.0.0/8 {\nreload 0\nfallthrough b.test\nupstream\n}").files
    assert (found.path, found.zones) == ("/db", ("a.test.", "10.in-addr.arpa."))
    assert (found.reload, found.fallthrough) == (0.0, ("b.test.",))
    assert [each.zones for each in options("file x a.test\nfile y b.test {\nfallthrough\n}").files] == [
        ("a.test.",),
        ("b.test.",),
    ]
    assert options("file x\nroot /etc").files[0].path == "/etc/x"


@pytest.mark.parametrize(
    ("directive", "mistakes"),
    [
        ("file", ["1: file has 0 arguments"]),
        ('file ""', ["1: file has an empty path"]),
        ("file db a..b", ['1: file: zone "a..b" has an empty label, or is too long']),
        ("file db {\nreload x\n}", ['2: file: "x" is not a duration']),
        ("file db {\nreload_by_mtime x\n}", ['2: file: "reload_by_mtime" has 1 argument']),
        ("file db {\nupstream 192.0.2.1\n}", ['2: file: "upstream" has 1 argument']),
        ("file a\nfile b", ["2: file: the zone example.org. has another file in this server block"]),
        ("file a b.test\nfile b c.test b.test", ["2: file: the zone b.test. has another file in this server block"]),
    ],
)
def test_what_is_refused(directive: str, mistakes: list[str]) -> None:
    assert refused(directive) == mistakes
