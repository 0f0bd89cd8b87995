"""Forged answers: nothing that an attacker sends to a resolver's sockets reaches a client or the cache (RFC 5452)."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest

from tests.support import ports
from tests.support.server import Server, read_message

ADDRESS = "127.0.0.1"
NAME, TRUE, FALSE = "bank.example.", "192.0.2.1", "203.0.113.66"
VICTIM = "victim.example."
CACHED = """\
cluster.local:$dns {
    bind 127.0.0.1
    ready 127.0.0.1:$ready
    whoami
}
.:$dns {
    bind 127.0.0.1
    errors
    prometheus 127.0.0.1:$metrics
    cache 3600
    forward . $upstream {
        max_fails 0
        $options
    }
}
"""
SECONDS = 5.0
FLOOD = 2000


@dataclass
class Resolver:
    """kdns with this test as its upstream: nothing is answered but what the test sends."""

    server: Server
    udp: socket.socket
    tcp: socket.socket

    def ask(self, name: str = NAME, rdtype: str = "A") -> tuple[socket.socket, dns.message.Message]:
        """A client's query, on its way."""
        query = dns.message.make_query(name, rdtype, id=secrets.randbits(16), use_edns=0, payload=1232)
        client = self.server.udp_socket()
        client.settimeout(SECONDS)
        client.send(query.to_wire())
        return client, query

    def asked(self) -> tuple[dns.message.Message, tuple[str, int]]:
        """What kdns asks over UDP, and from where."""
        data, where = self.udp.recvfrom(65535)
        return dns.message.from_wire(data), where

    def answer(self, name: str, *addresses: str) -> list[str]:
        """Ask for a name that kdns has to ask for, give it this answer; what the client gets."""
        client, _ = self.ask(name)
        with client:
            query, where = self.asked()
            assert query.question[0].name == dns.name.from_text(name), "kdns knew something already"
            self.udp.sendto(response(query, a(name, *addresses)).to_wire(), where)
            return received(client)

    def knows(self, name: str) -> list[str]:
        """What the cache has for a name."""
        client, _ = self.ask(name)
        with client:
            found = received(client)
        self.udp.setblocking(False)
        with pytest.raises(BlockingIOError):
            self.udp.recv(1)
        self.udp.settimeout(SECONDS)
        return found

    def discarded(self) -> dict[str, float]:
        """Messages that kdns has dropped, by reason."""
        samples = self.server.metrics().samples
        return {
            dict(labels)["reason"]: value
            for (name, labels), value in samples.items()
            if name == "kdns_forward_discarded_total" and value
        }


Start = Callable[..., Resolver]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    port = ports.free_port([ADDRESS])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for sock in (udp, tcp):
            sock.bind((ADDRESS, port))
            sock.settimeout(SECONDS)
        tcp.listen()
        with contextlib.ExitStack() as stack:

            def begin(options: str = "") -> Resolver:
                text = CACHED.replace("$upstream", f"{ADDRESS}:{port}").replace("$options", options)
                server = stack.enter_context(Server(tmp_path, corefile=text, addresses=[ADDRESS]))
                return Resolver(server, udp, tcp)

            yield begin


def a(name: str, *addresses: str) -> dns.rrset.RRset:
    return dns.rrset.from_text(name, 300, "IN", "A", *addresses)


def response(query: dns.message.Message, *answer: dns.rrset.RRset) -> dns.message.Message:
    """An answer that belongs to a query."""
    made = dns.message.make_response(query, recursion_available=True)
    made.answer.extend(answer)
    return made


def received(client: socket.socket) -> list[str]:
    """The addresses of the answer that a client gets."""
    message = dns.message.from_wire(client.recv(65535))
    assert message.rcode() == dns.rcode.NOERROR
    return sorted(str(rdata) for rrset in message.answer for rdata in rrset)


def instead(query: dns.message.Message, **changed: object) -> dns.message.Message:
    """The false answer to another question, with the ID of this one."""
    asked = query.question[0]
    values: dict[str, object] = {"qname": asked.name, "rdtype": asked.rdtype, "rdclass": asked.rdclass} | changed
    other = dns.message.make_query(**values, id=query.id)  # type: ignore[arg-type]
    return response(other, a(NAME, FALSE))


def forgeries(query: dns.message.Message) -> Iterator[tuple[str, bytes]]:
    """Answers that an upstream's address could be made to send by a guess; why each is none, and its bytes."""
    false = response(query, a(NAME, FALSE))
    behind_id = false.to_wire()[2:]
    for number in range(FLOOD):
        yield "id", struct.pack("!H", (query.id + 1 + number * 31 % 65535) % 65536) + behind_id
    yield "question", instead(query, qname=dns.name.from_text(VICTIM)).to_wire()
    yield "question", instead(query, qname=dns.name.from_text(f"x.{NAME}")).to_wire()
    yield "question", instead(query, rdtype=dns.rdatatype.AAAA).to_wire()
    yield "question", instead(query, rdclass=dns.rdataclass.CH).to_wire()
    none = response(query, a(NAME, FALSE))
    none.question.clear()
    yield "question", none.to_wire()
    false.flags &= ~dns.flags.QR
    yield "query", false.to_wire()
    yield "short", query.to_wire()[:2]


def test_while_the_true_answer_is_slow_forged_ones_from_its_address_change_nothing(start: Start) -> None:
    resolver = start()
    client, _ = resolver.ask()
    with client:
        query, where = resolver.asked()
        sent: dict[str, int] = {}
        for number, (reason, data) in enumerate(forgeries(query)):
            resolver.udp.sendto(data, where)
            sent[reason] = sent.get(reason, 0) + 1
            if number % 50 == 49:
                time.sleep(0.005)  # a socket holds some hundred
        resolver.udp.sendto(response(query, a(NAME, TRUE)).to_wire(), where)
        assert received(client) == [TRUE]
    assert resolver.knows(NAME) == [TRUE]
    assert resolver.answer(VICTIM, "192.0.2.2") == ["192.0.2.2"]
    assert resolver.discarded().keys() >= sent.keys() - {"short"}
    assert resolver.discarded()["id"] > FLOOD / 10


def test_answers_from_another_address_or_port_change_nothing(start: Start) -> None:
    resolver = start()
    client, _ = resolver.ask()
    with client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
        query, where = resolver.asked()
        false = response(query, a(NAME, FALSE)).to_wire()
        near.bind((ADDRESS, 0))
        near.sendto(false, where)
        for last in (2, 3):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
                elsewhere.bind((f"127.0.0.{last}", resolver.udp.getsockname()[1]))
                elsewhere.sendto(false, where)
        resolver.udp.sendto(response(query, a(NAME, TRUE)).to_wire(), where)
        assert received(client) == [TRUE]
    assert resolver.knows(NAME) == [TRUE]
    assert resolver.discarded() == {"peer": 3.0}


def test_answers_to_the_ports_beside_it_change_nothing(start: Start) -> None:
    resolver = start()
    client, _ = resolver.ask()
    with client:
        query, where = resolver.asked()
        false = response(query, a(NAME, FALSE)).to_wire()
        for port in range(max(where[1] - 200, 1), min(where[1] + 201, 65536)):
            if port != where[1]:
                resolver.udp.sendto(false, (where[0], port))
        resolver.udp.sendto(response(query, a(NAME, TRUE)).to_wire(), where)
        assert received(client) == [TRUE]
    assert resolver.knows(NAME) == [TRUE]


def test_an_answer_that_comes_after_the_true_one_changes_nothing(start: Start) -> None:
    resolver = start()
    client, _ = resolver.ask()
    with client:
        query, where = resolver.asked()
        resolver.udp.sendto(response(query, a(NAME, TRUE)).to_wire(), where)
        for _ in range(50):
            resolver.udp.sendto(response(query, a(NAME, FALSE)).to_wire(), where)
        assert received(client) == [TRUE]
    assert resolver.knows(NAME) == [TRUE]


def test_records_for_other_names_are_not_kept_for_them(start: Start) -> None:
    resolver = start()
    client, _ = resolver.ask()
    with client:
        query, where = resolver.asked()
        poisoned = response(query, a(NAME, TRUE), a(VICTIM, FALSE))
        poisoned.authority.append(dns.rrset.from_text("example.", 300, "IN", "NS", "ns.evil.example."))
        poisoned.authority.append(dns.rrset.from_text(VICTIM, 300, "IN", "NS", "ns.evil.example."))
        poisoned.additional += [a("ns.evil.example.", FALSE), a("other.example.", FALSE)]
        resolver.udp.sendto(poisoned.to_wire(), where)
        client.recv(65535)
    for name in (VICTIM, "other.example.", "ns.evil.example.", f"deeper.{NAME}", "example."):
        assert resolver.answer(name, "192.0.2.3") == ["192.0.2.3"], name
    assert TRUE in resolver.knows(NAME)


def test_the_target_of_a_cname_is_not_kept_as_an_answer_of_its_own(start: Start) -> None:
    resolver = start()
    client, _ = resolver.ask()
    with client:
        query, where = resolver.asked()
        alias = dns.rrset.from_text(NAME, 300, "IN", "CNAME", VICTIM)
        resolver.udp.sendto(response(query, alias, a(VICTIM, FALSE)).to_wire(), where)
        client.recv(65535)
    assert resolver.answer(VICTIM, TRUE) == [TRUE]


def test_ports_and_ids_are_hard_to_guess(start: Start) -> None:
    resolver = start()
    idents, where = [], []
    for number in range(300):
        client, _ = resolver.ask(f"n{number}.example.")
        with client:
            query, peer = resolver.asked()
            idents.append(query.id)
            where.append(peer[1])
            resolver.udp.sendto(response(query, a(f"n{number}.example.", TRUE)).to_wire(), peer)
            received(client)
    for seen, most in ((idents, 65536), (where, 61000 - 32768)):
        assert len(set(seen)) > 285, "values come again more often than by chance"
        steps = [abs(one - other) for one, other in itertools.pairwise(seen)]
        assert sorted(steps)[150] > most / 10, "each value tells the next one"
        assert max(seen) - min(seen) > most * 0.9


def test_over_tcp_too_only_id_and_question_make_an_answer(start: Start) -> None:
    resolver = start("force_tcp")
    client, _ = resolver.ask()
    connection, _ = resolver.tcp.accept()
    with client, connection:
        connection.settimeout(SECONDS)
        data = read_message(connection)
        assert data is not None
        query = dns.message.from_wire(data)
        messages = [data for reason, data in forgeries(query) if reason != "short"]
        messages.append(response(query, a(NAME, TRUE)).to_wire())
        connection.sendall(b"".join(struct.pack("!H", len(data)) + data for data in messages))
        assert received(client) == [TRUE]
        client.send(dns.message.make_query(NAME, "A", use_edns=0, payload=1232).to_wire())
        assert received(client) == [TRUE]
    assert resolver.discarded().keys() == {"id", "question", "query"}
