"""What the plugins without data of their own answer, judged by dnspython."""

from __future__ import annotations

import socket

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import pytest

from kdns.plugins import any as any_
from kdns.plugins import bufsize, chaos, loadbalance, nsid, whoami
from kdns.wire import message, rr
from kdns.wire.message import Query
from tests.support.plugins import CLIENT, Behind, Ground, answered, read


def query(
    name: str, rdtype: str = "A", rdclass: str = "IN", proto: str = "udp", client: tuple[str, int] = CLIENT, **edns: int
) -> Query:
    asked = dns.message.make_query(name, rdtype, rdclass, use_edns=0 if edns else -1, **edns)  # type: ignore[arg-type]
    return message.parse(asked.to_wire(), proto, client, ("192.0.2.1", 53), message.DEFAULT_UDP)


def asking_nsid() -> Query:
    asked = dns.message.make_query("a.org", "A", use_edns=0, options=[dns.edns.NSIDOption(b"")])
    return message.parse(asked.to_wire(), "udp", CLIENT, ("192.0.2.1", 53), message.DEFAULT_UDP)


# -- any


def test_any_is_answered_with_hinfo() -> None:
    asked = query("Foo.example.org", "ANY")
    response = answered(any_.Handler(any_.Options()), asked)
    (rrset,) = read(asked, response).answer
    assert rrset.to_text() == 'Foo.example.org. 8482 IN HINFO "ANY obsoleted" "See RFC 8482"'
    assert (response.plugin, response.cacheable) == ("any", True)


def test_other_types_pass_any() -> None:
    assert answered(any_.Handler(any_.Options()), query("example.org", "HINFO")).plugin == "behind"


# -- chaos


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("version.bind", "v1"),
        ("VERSION.Server", "v1"),
        ("hostname.bind", socket.gethostname()),
        ("id.server", socket.gethostname()),
    ],
)
def test_chaos_tells_about_the_server(name: str, text: str) -> None:
    asked = query(name, "TXT", "CH")
    response = answered(chaos.Handler(chaos.Options("v1", ())), asked)
    (rrset,) = read(asked, response).answer
    assert (rrset.rdclass, rrset.ttl, rrset[0].strings) == (dns.rdataclass.CH, 0, (text.encode(),))
    assert (response.plugin, response.cacheable) == ("chaos", True)


def test_chaos_names_all_authors_and_its_answer_is_not_kept() -> None:
    asked = query("authors.bind", "TXT", "CH")
    handler = chaos.Handler(chaos.Options("v1", tuple("abcdefgh")))
    responses = [answered(handler, asked) for _ in range(20)]
    orders = {response.answer[0][1].rdatas for response in responses}
    assert len(orders) > 1
    assert {frozenset(order) for order in orders} == {frozenset(rr.txt(char.encode()) for char in "abcdefgh")}
    assert not any(response.cacheable for response in responses)


@pytest.mark.parametrize("asked", [("version.bind", "TXT", "IN"), ("version.bind", "A", "CH"), ("x.bind", "TXT", "CH")])
def test_other_questions_pass_chaos(asked: tuple[str, str, str]) -> None:
    assert answered(chaos.Handler(chaos.Options()), query(*asked)).plugin == "behind"


def test_a_long_version_is_cut() -> None:
    asked = query("version.bind", "TXT", "CH")
    (rrset,) = read(asked, answered(chaos.Handler(chaos.Options("x" * 300)), asked)).answer
    assert rrset[0].strings == (b"x" * 255,)


# -- nsid


def test_nsid_is_sent_to_who_asks() -> None:
    asked = asking_nsid()
    (option,) = read(asked, answered(nsid.Handler(nsid.Options("here")), asked)).options
    assert (option.otype, option.to_wire()) == (dns.edns.OptionType.NSID, b"here")


def test_nsid_is_the_name_of_the_machine_by_default() -> None:
    response = answered(nsid.Handler(nsid.Options()), asking_nsid())
    assert response.edns_options[4:] == socket.gethostname().encode()


def test_nsid_is_not_sent_to_others() -> None:
    handler = nsid.Handler(nsid.Options("here"))
    assert not answered(handler, query("a.org")).edns_options
    assert not answered(handler, query("a.org", payload=1232)).edns_options


# -- bufsize


@pytest.mark.parametrize(
    ("asked", "limit"),
    [
        (query("a.org", payload=4096), 1400),
        (query("a.org", payload=1300), 1300),
        (query("a.org", payload=100), 512),
        (query("a.org"), 512),
        (query("a.org", proto="tcp", payload=4096), 65535),
    ],
)
def test_bufsize_limits_what_is_sent_and_offered(asked: Query, limit: int) -> None:
    behind = Behind()
    answered(bufsize.Handler(bufsize.Options(1400)), asked, behind)
    assert behind.query is asked
    assert (asked.limit, asked.udp_size) == (limit, 1400)


# -- whoami


@pytest.mark.parametrize(
    ("client", "proto", "address"),
    [
        (("192.0.2.7", 4711), "udp", "foo.org. 0 IN A 192.0.2.7"),
        (("2001:db8::7", 4711), "tcp", "foo.org. 0 IN AAAA 2001:db8::7"),
        (("fe80::7%eth0", 4711), "tcp", "foo.org. 0 IN AAAA fe80::7"),
        (("::ffff:192.0.2.7", 4711), "tcp", "foo.org. 0 IN A 192.0.2.7"),
    ],
)
def test_whoami_tells_the_clients_address_and_port(client: tuple[str, int], proto: str, address: str) -> None:
    asked = query("foo.org", "TXT", proto=proto, client=client)
    response = answered(whoami.Handler(whoami.Options()), asked)
    found = read(asked, response)
    assert not found.answer
    assert [rrset.to_text() for rrset in found.additional] == [address, f"_{proto}.foo.org. 0 IN SRV 0 0 4711 ."]
    assert found.flags & dns.flags.AA
    assert (response.plugin, response.cacheable) == ("whoami", False)


def test_whoami_at_the_root_and_at_the_longest_name() -> None:
    asked = query(".")
    found = read(asked, answered(whoami.Handler(whoami.Options()), asked))
    assert [rrset.name.to_text() for rrset in found.additional] == [".", "_udp."]
    longest = query(".".join(["x" * 63] * 3 + ["y" * 61]))
    assert len(read(longest, answered(whoami.Handler(whoami.Options()), longest)).additional) == 1


# -- loadbalance


def test_loadbalance_lets_addresses_rotate() -> None:
    assert answered(loadbalance.Handler(loadbalance.Options(), Ground().site), query("a.org")).rotate
