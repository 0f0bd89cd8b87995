"""hosts: answers from a hosts file and from the Corefile."""

from __future__ import annotations

import os
from pathlib import Path

import dns.flags
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.observe.counters import Totals
from kdns.observe.metrics import Exposition, SupervisorState
from kdns.plugins import hosts
from kdns.wire import names, rr
from tests.conftest import Serve
from tests.support import procs
from tests.support.configs import options, refused
from tests.support.plugins import Behind, Ground, answered, query
from tests.support.server import Server

COREFILE = """
.:$dns {
    bind 127.0.0.1
    ready $host:$ready
    prometheus $host:$metrics
    root $manifests
    hosts file . {
        10.9.9.9 inline.test both.test
        ttl 77
        reload 100ms
    }
    whoami
}
example.org:$dns {
    bind 127.0.0.1
    hosts $manifests/same b.example.org c.example.org {
        reload 0s
        no_reverse
        fallthrough c.example.org
    }
    whoami
}
d.test:$dns {
    bind 127.0.0.1
    hosts $manifests/same {
        fallthrough
        fallthrough_unsupported
    }
    whoami
}
"""
FILE = """\
# a comment
127.0.0.1\tlocalhost  LoopBack.test # another
10.0.0.1 web.test www.test.
10.0.0.2 web.test
10.0.0.1 web.test
2001:db8::1 web.test
fe80::1%eth0 six.test
::ffff:10.0.0.3 mapped.test
10.0.0.4 both.test
2001:db8::4 both.test
10.0.0.5 *.wild.test deep.x.wild.test
10.0.0.6 own.wild.test
10.0.0.7 a.b.example.org a.c.example.org example.org
10.0.0.8 a.d.test

10.0.0
10.0.0.256 bad.test
10.0.0.9
10.0.0.10 good.test bad..test
"""


@pytest.fixture
def server(serve: Serve, tmp_path: Path) -> Server:
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "file").write_text(FILE)
    (tmp_path / "manifests" / "same").symlink_to("file")
    return serve(corefile=COREFILE, folder=tmp_path)


def went_on(server: Server, name: str, rdtype: str = "A") -> bool:
    """Whether a query came to whoami, which is behind."""
    return bool(server.query(name, rdtype).additional)


def failed(server: Server, name: str, rdtype: str = "A") -> bool:
    return server.query(name, rdtype).rcode() == dns.rcode.SERVFAIL


def empty(server: Server, name: str, rdtype: str) -> bool:
    found = server.query(name, rdtype)
    return found.rcode() == dns.rcode.NOERROR and bool(found.flags & dns.flags.AA) and len(found.to_wire()) < 60


def test_names_have_the_addresses_of_their_lines(server: Server) -> None:
    assert server.texts("web.test") == ["10.0.0.1", "10.0.0.2"]
    assert server.texts("WWW.test") == ["10.0.0.1"]
    assert server.texts("web.test", "AAAA") == ["2001:db8::1"]
    assert server.texts("six.test", "AAAA") == ["fe80::1"]
    assert server.texts("mapped.test") == ["10.0.0.3"]
    assert server.texts("loopback.test", tcp=True) == ["127.0.0.1"]
    assert server.texts("good.test") == ["10.0.0.10"]
    found = server.query("Web.Test")
    assert (found.answer[0].ttl, found.answer[0].name.to_text()) == (77, "Web.Test.")
    assert found.flags & dns.flags.AA
    assert failed(server, "bad.test")
    assert "hosts: " in server.log
    assert "file: 4 lines make no sense and are left out, the first is 16" in server.log


def test_a_name_of_the_corefile_has_the_addresses_from_there_only(server: Server) -> None:
    assert server.texts("inline.test") == ["10.9.9.9"]
    assert server.texts("both.test") == ["10.9.9.9"]
    assert empty(server, "both.test", "AAAA")
    assert failed(server, "4.0.0.10.in-addr.arpa", "A")
    assert went_on(server, "4.0.0.10.in-addr.arpa", "PTR")


def test_a_star_stands_for_one_label(server: Server) -> None:
    assert server.texts("a.wild.test") == ["10.0.0.5"]
    assert empty(server, "a.wild.test", "AAAA")
    assert server.texts("own.wild.test") == ["10.0.0.6"]
    assert server.texts("deep.x.wild.test") == ["10.0.0.5"]
    for name in ("wild.test", "a.b.wild.test"):
        assert failed(server, name)
    assert server.texts("5.0.0.10.in-addr.arpa", "PTR") == ["deep.x.wild.test."]


def test_addresses_have_the_names_of_their_lines(server: Server) -> None:
    assert server.texts("1.0.0.10.in-addr.arpa", "PTR") == ["web.test.", "www.test."]
    assert server.texts(names.to_text(names.reverse("2001:db8::1")), "PTR") == ["web.test."]
    assert server.query("1.0.0.10.in-addr.arpa", "PTR").answer[0].ttl == 77
    assert went_on(server, "11.0.0.10.in-addr.arpa", "PTR")
    assert went_on(server, "web.test", "PTR")


def test_other_types_are_empty_and_other_names_fail(server: Server) -> None:
    assert empty(server, "web.test", "TXT")
    assert empty(server, "www.test", "AAAA")
    for rdtype in ("A", "AAAA", "TXT"):
        assert failed(server, "nowhere.test", rdtype)


def test_only_names_in_the_zones_are_taken_from_the_file_and_asked_for(server: Server) -> None:
    assert server.texts("a.b.example.org") == ["10.0.0.7"]
    assert failed(server, "x.b.example.org")
    assert went_on(server, "example.org")


def test_fallthrough_holds_for_its_zones(server: Server) -> None:
    assert server.texts("a.c.example.org") == ["10.0.0.7"]
    assert went_on(server, "x.c.example.org")
    assert went_on(server, "x.c.example.org", "TXT")
    assert empty(server, "a.c.example.org", "TXT")


def test_with_fallthrough_unsupported_other_types_go_on(server: Server) -> None:
    assert server.texts("a.d.test") == ["10.0.0.8"]
    assert empty(server, "a.d.test", "AAAA")
    assert went_on(server, "a.d.test", "TXT")
    assert went_on(server, "x.d.test", "TXT")


def test_the_file_is_read_again_when_it_changes(server: Server) -> None:
    path = server.manifests / "file"
    entries = server.metrics().value("coredns_hosts_entries", hostsfile=str(path))
    unreadable = ("kdns_hosts_unreadable", frozenset({("hostsfile", str(path))}))
    assert server.metrics().samples[unreadable] == 0
    assert server.metrics().value("coredns_hosts_reload_timestamp_seconds") == int(path.stat().st_mtime)
    path.write_text(FILE + "10.0.0.20 new.test\n")
    procs.wait_until(lambda: server.texts("new.test") == ["10.0.0.20"], 5, "the new line")
    assert server.metrics().value("coredns_hosts_entries", hostsfile=str(path)) == entries + 2
    path.unlink()
    procs.wait_until(lambda: "cannot be read" in server.log, 5, "a line in the log")
    assert server.texts("new.test") == ["10.0.0.20"]
    assert server.metrics().samples[unreadable] == 1
    os.mkfifo(path)
    procs.wait_until(lambda: "cannot be read: not a file" in server.log, 5, "another line in the log")
    path.unlink()
    path.write_text("10.0.0.21 new.test\n")
    procs.wait_until(lambda: server.texts("new.test") == ["10.0.0.21"], 5, "the file that is there again")
    assert server.metrics().samples[unreadable] == 0
    assert failed(server, "web.test")
    assert server.texts("inline.test") == ["10.9.9.9"]
    assert server.texts("a.b.example.org") == ["10.0.0.7"], "with reload 0s it is read once"


def test_a_file_that_is_not_there_is_said_once_and_the_corefile_is_answered(tmp_path: Path) -> None:
    ground = Ground()
    handler = hosts.Handler(hosts.Options(str(tmp_path / "hosts"), lines=("10.0.0.1 a.test",)), ground.site)
    handler.look()
    assert ground.log.lines == [f"[WARNING] plugin/hosts: {tmp_path}/hosts cannot be read: No such file or directory"]
    assert answered(handler, query("a.test")).answer
    unreadable = ("shared", "kdns_hosts_unreadable", "hostsfile", f"{tmp_path}/hosts")
    assert ground.value(*unreadable) == 0, "the Corefile's line may be all that is wanted"
    hosts.Handler(hosts.Options(f"{tmp_path}/hosts", reload=0), ground.site)
    assert ground.value(*unreadable) == 1
    assert len(ground.background) == 1
    for steps in ground.background:
        steps.close()


def test_a_path_of_any_bytes_can_be_a_label(tmp_path: Path) -> None:
    ground = Ground()
    hosts.Handler(hosts.Options(f"{tmp_path}/\udcff\u2028", reload=0), ground.site)
    totals = Totals()
    totals.add_region(ground.region)
    state = SupervisorState("1")
    _, body = Exposition(totals, lambda: state).render()
    label = rf'{{hostsfile="{tmp_path}/\\udcff\\u2028"}}'
    assert f"kdns_hosts_unreadable{label} 1.0\n" in body.decode()
    assert f"coredns_hosts_entries{label} 0.0\n" in body.decode()


def test_no_reverse(tmp_path: Path) -> None:
    options = hosts.Options(str(tmp_path), lines=("10.0.0.1 a.test",), reverse=False, reload=0)
    ground = Ground()
    assert answered(hosts.Handler(options, ground.site), query("1.0.0.10.in-addr.arpa", "PTR")).plugin == "behind"
    assert not ground.background


def test_a_table_is_exchanged_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("10.0.0.1 a.test b.test\n")
    handler = hosts.Handler(hosts.Options(str(path), reload=0), Ground().site)
    path.write_text("10.0.0.2 b.test c.test\n")
    handler.look()
    found = {name: answered(handler, query(name), Behind()).answer for name in ("a.test", "b.test", "c.test")}
    assert [[rrset.rdatas for _, rrset in answer] for answer in found.values()] == [
        [],
        [(b"\x0a\0\0\2",)],
        [(b"\x0a\0\0\2",)],
    ]


@given(st.lists(st.text(alphabet=st.characters(blacklist_characters="\n")), max_size=20))
def test_no_line_of_a_file_breaks_it(lines: list[str]) -> None:
    everything = names.Zones({names.ROOT: True})
    found, strange = hosts.read(lines, everything)
    assert all(1 <= number <= len(lines) for number in strange)
    table = hosts.Table.of(found, 5, reverse=True)
    assert all(table.find(name) for name in found)
    good, none = hosts.read([*lines, "192.0.2.1 good.test"], everything)
    assert rr.address("192.0.2.1") in good[names.from_text("good.test")]
    assert none == strange


def test_options() -> None:
    assert options("hosts", "a.org b.org") == hosts.Options(zones=("a.org.", "b.org."))
    assert options("hosts /x A.org 10.0.0.0/8").zones == ("a.org.", "10.in-addr.arpa.")
    found = options(
        "hosts x {\n10.0.0.1 a.example.org # c\nttl 5\nreload 1m\nno_reverse\nfallthrough a.example.org\n"
        "fallthrough_unsupported\n::1 example.org\n}"
    )
    assert found == hosts.Options(
        "x",
        ("example.org.",),
        ("10.0.0.1 a.example.org", "::1 example.org"),
        5,
        False,
        60,
        ("a.example.org.",),
        True,
    )
    assert options("hosts {\nfallthrough\n}").fallthrough == (".",)


@pytest.mark.parametrize(
    ("directive", "messages"),
    [
        ('hosts ""', ["1: hosts has an empty path"]),
        ("hosts x a..b", ['1: hosts: zone "a..b" has an empty label, or is too long']),
        ("hosts {\nttl 0\n}", ['2: hosts: "0" is out of range']),
        ("hosts {\nttl\n}", ['2: hosts: "ttl" has 0 arguments']),
        ("hosts {\nttl 5\nttl 6\n}", ['3: hosts: "ttl" is given twice']),
        ("hosts {\nreload -1s\n}", ['2: hosts: "-1s" is too short']),
        ("hosts {\nno_reverse x\n}", ['2: hosts: "no_reverse" has 1 argument']),
        ("hosts {\nfallthrough x..y\n}", ['2: hosts: zone "x..y" has an empty label, or is too long']),
        ("hosts {\nfallthrough_unsupported\n}", ["1: hosts has fallthrough_unsupported without fallthrough"]),
        ("hosts {\nfallthru\n}", ['2: hosts: "fallthru" is neither an address nor an option']),
        ("hosts {\n10.0.0.1\n}", ["2: hosts: 10.0.0.1 has no name behind it"]),
        ("hosts {\n10.0.0.300 example.org\n}", ['2: hosts: "10.0.0.300" is neither an address nor an option']),
        ("hosts {\n10.0.0.1 example.org a..b\n}", ['2: hosts: "a..b" is no name']),
        ("hosts {\n10.0.0.1 example.com\n}", ['2: hosts: "example.com" is in none of the zones']),
        ("hosts {\n10.0.0.1 example.org {\nx\n}\n}", ['2: hosts: "10.0.0.1" has a block']),
    ],
)
def test_mistakes(directive: str, messages: list[str]) -> None:
    assert refused(directive) == messages
