"""dig, kdig, delv and glibc read our answers as dnspython does."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.rdataclass
import dns.reversename
import pytest

from tests.support import digs, procs
from tests.support.ask import Told, told
from tests.support.netns import Netns
from tests.support.objects import Object, endpoint, endpoint_slice, external_name, namespace, service
from tests.support.server import Server

Z = "cluster.local"
SHOP = f"shop.svc.{Z}"
TOOLS: dict[str, Callable[..., digs.Answer]] = {"dig": digs.dig, "kdig": digs.kdig}
NAMES = [
    (f"web.{SHOP}", "A"),
    (f"web.{SHOP}", "AAAA"),
    (f"web.{SHOP}", "SRV"),
    (f"web.{SHOP}", "TXT"),
    (f"WeB.sHOp.svc.{Z}", "A"),
    (f"_http._tcp.web.{SHOP}", "SRV"),
    (f"db.{SHOP}", "A"),
    (f"db-0.db.{SHOP}", "AAAA"),
    (f"db.{SHOP}", "SRV"),
    (f"inside.{SHOP}", "A"),
    (f"outside.{SHOP}", "A"),
    (f"gone.{SHOP}", "A"),
    (f"api.example.com.{SHOP}", "AAAA"),
    (f"quiet.svc.{Z}", "A"),
    (f"svc.{Z}", "NS"),
    (Z, "SOA"),
    (Z, "NS"),
    (f"dns-version.{Z}", "TXT"),
    ("10.0.96.10.in-addr.arpa", "PTR"),
    ("example.com", "A"),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "+edns": {"use_edns": 0, "payload": 1232},
    "+noedns": {"use_edns": False},
    "+tcp": {"tcp": True},
    "+bufsize=512": {"use_edns": 0, "payload": 512},
    "+dnssec": {"use_edns": 0, "want_dnssec": True},
    "+nsid": {"use_edns": 0},
    "+norecurse": {"flags": 0},
    "+cdflag": {"flags": 0x0110},
}
"""Of dig and kdig, and the same for dnspython."""


def cluster() -> list[Object]:
    many = [endpoint(f"10.2.{number // 250}.{number % 250}") for number in range(300)]
    return [
        service("web", "shop", ips=("10.96.0.10", "fd00:96::10"), ports=(("http", 80), ("dns", 53, "UDP"))),
        service("db", "shop", ips=()),
        endpoint_slice("db", [endpoint(f"10.1.0.{n + 1}", hostname=f"db-{n}") for n in range(3)], "shop"),
        endpoint_slice("db", [endpoint("fd00:1::1", hostname="db-0")], "shop", suffix="6", address_type="IPv6"),
        service("big", "shop", ips=()),
        endpoint_slice("big", many, "shop"),
        external_name("inside", f"web.{SHOP}", "shop"),
        external_name("outside", "api.example.com", "shop"),
        namespace("quiet"),
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("judges")
    with Server(folder, cluster(), plugins="nsid rack-7\nchaos kdns-judged") as started:
        yield started


def summary(answer: digs.Answer) -> Told:
    """What dig or kdig said, in the terms of dnspython's answer; the OPT is not a record there."""

    def lines(section: list[str]) -> list[str]:
        return sorted(
            f"{owner} {rtype} {rdata}" for owner, _, _, rtype, rdata in (line.split(" ", 4) for line in section)
        )

    everything = [*answer.answer, *answer.authority, *answer.additional]
    ttls = frozenset(int(line.split()[1]) for line in everything)
    sections = lines(answer.answer), lines(answer.authority), lines(answer.additional)
    return Told(answer.status, answer.flags, *sections, ttls)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("tool", TOOLS)
def test_dig_and_kdig_agree_with_dnspython(server: Server, needs: Callable[..., None], tool: str, option: str) -> None:
    needs(tool)
    for name, rdtype in NAMES:
        name = name.lower() if tool == "kdig" else name  # which kdig does itself
        expected = told(server.query(name, rdtype, **OPTIONS[option]))
        found = TOOLS[tool](server.port, option, name, rdtype)
        assert summary(found) == expected, found.text
        assert_edns(found, option, tool)
        assert "malformed" not in found.text.lower()
        assert "extra bytes" not in found.text.lower()


def assert_edns(found: digs.Answer, option: str, tool: str) -> None:
    """Our OPT as they show it. Without a reason to send one, kdig sends none."""
    text = " ".join(found.edns).lower()
    if option == "+noedns" or (tool == "kdig" and option in ("+tcp", "+norecurse", "+cdflag")):
        assert text == ""
        return
    assert "version: 0" in text
    assert "1232" in text
    assert ("flags: do" in text) == (option == "+dnssec")
    assert ("rack-7" in text) == (option == "+nsid")


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("address", ["10.96.0.10", "fd00:96::10", "10.1.0.2", "10.96.0.99"])
def test_reverse_look_ups_agree(server: Server, needs: Callable[..., None], tool: str, address: str) -> None:
    needs(tool)
    expected = told(server.query(str(dns.reversename.from_address(address)), "PTR"))
    assert summary(TOOLS[tool](server.port, "-x", address)) == expected
    assert expected.rcode == ("NXDOMAIN" if address == "10.96.0.99" else "NOERROR")


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", ["version.bind", "id.server", "nothing.bind"])
def test_class_ch_agrees(server: Server, needs: Callable[..., None], tool: str, name: str) -> None:
    needs(tool)
    expected = told(server.query(name, "TXT", rdclass=dns.rdataclass.CH))
    assert summary(TOOLS[tool](server.port, name, "CH", "TXT")) == expected
    wanted = {"version.bind": ['"kdns-judged"'], "id.server": [f'"{socket.gethostname()}"'], "nothing.bind": []}
    assert expected.rdata == wanted[name]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_truncated_answer_is_seen_as_such_and_asked_for_again_over_tcp(
    server: Server, needs: Callable[..., None], tool: str
) -> None:
    needs(tool)
    whole = server.texts(f"big.{SHOP}", tcp=True)
    for option in ("+bufsize=512", "+noedns", "+bufsize=1232"):
        cut = TOOLS[tool](server.port, "+ignore", option, f"big.{SHOP}")
        assert "tc" in cut.flags
        assert 20 <= len(cut.answer) < 80
        again = TOOLS[tool](server.port, option, f"big.{SHOP}")
        assert "tc" not in again.flags
        assert "(TCP)" in again.text
        assert sorted(again.rdata()) == whole


@pytest.mark.parametrize(
    ("name", "rdtype"), [pair for pair in NAMES if pair[0] not in (f"outside.{SHOP}", "example.com")]
)
def test_delv_agrees(server: Server, needs: Callable[..., None], name: str, rdtype: str) -> None:
    needs("delv")
    expected = told(server.query(name, rdtype))
    said = digs.delv(server.port, name, rdtype)
    lines = [" ".join(line.split()) for line in said.splitlines() if line.strip() and not line.startswith(";")]
    found = [line.split(" ", 4) for line in lines]
    assert sorted(f"{owner.lower()} {rtype} {rdata}" for owner, _, _, rtype, rdata in found) == [
        line.replace(line.split()[0], line.split()[0].lower(), 1) for line in expected.answer
    ]
    if expected.rcode == "NXDOMAIN":
        assert "ncache nxdomain" in said
    elif not expected.answer:
        assert "ncache nxrrset" in said
    else:
        assert "; authoritative" in said


# glibc, in a network namespace where the server is at port 53

RESOLVE = """
import json, socket, sys
found = {}
for name, family in json.loads(sys.argv[1]):
    try:
        items = socket.getaddrinfo(name, None, family, socket.SOCK_STREAM, 0, socket.AI_CANONNAME)
        found[f"{name} {family}"] = [sorted({item[4][0] for item in items}), items[0][3]]
    except socket.gaierror as error:
        none = error.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
        found[f"{name} {family}"] = [[], "none" if none else str(error)]
for address in json.loads(sys.argv[2]):
    try:
        found[address] = socket.gethostbyaddr(address)[0]
    except (socket.herror, socket.gaierror) as error:
        found[address] = "none"
print(json.dumps(found))
"""
COREFILE = """\
.:53 {
    bind 127.0.0.1
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        manifests $manifests
    }
    loadbalance
}
"""


def test_glibc_agrees(make_netns: Callable[..., Netns], tmp_path: Path, server: Server) -> None:
    place = make_netns("glibc", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    hosts = [name for name, rdtype in NAMES if rdtype in ("A", "AAAA") and not name.startswith(("outside", "example"))]
    families = {socket.AF_INET: "A", socket.AF_INET6: "AAAA"}
    asked = [(f"{name}.", int(family)) for name in [*hosts, f"big.{SHOP}"] for family in families]
    addresses = ["10.96.0.10", "fd00:96::10", "10.1.0.2", "10.96.0.99"]
    with Server(tmp_path, cluster(), corefile=COREFILE, prefix=place.prefix, connect=None):
        seen = ["getent", "ahosts", f"web.{SHOP}."]
        procs.wait_until(lambda: place.run(*seen, check=False).returncode == 0, 20, "the server", 0.05)
        script = [sys.executable, "-c", RESOLVE, json.dumps(asked), json.dumps(addresses)]
        found = json.loads(place.run(*script).stdout)
    for name, family in asked:
        answer = told(server.query(name, families[socket.AddressFamily(family)], tcp=True))
        wanted = sorted(line.split()[2] for line in answer.answer if " CNAME " not in line)
        assert found[f"{name} {family}"][0] == wanted, name
        if wanted:
            canonical = f"web.{SHOP}" if name.startswith("inside") else name.rstrip(".")
            assert found[f"{name} {family}"][1].rstrip(".") == canonical
        else:
            assert found[f"{name} {family}"][1] == "none"
    assert [found[address] for address in addresses] == [f"web.{SHOP}", f"web.{SHOP}", f"db-1.db.{SHOP}", "none"]
