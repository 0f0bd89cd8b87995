"""`kdns query` and `kdns version`, as processes, against a server that the test plays."""

from __future__ import annotations

import json
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.reversename
import dns.rrset
import pytest

from tests.support import ports

Answer = Callable[[dns.message.Message, str], bytes]


def kdns(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, run to its end."""
    return subprocess.run([sys.executable, "-m", "kdns", *arguments], capture_output=True, text=True, timeout=30)


@contextmanager
def played(answer: Answer) -> Iterator[str]:
    """A server on 127.0.0.1 that sends what `answer` makes of a query and "udp" or "tcp" (b"": nothing); its port."""

    class Udp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, sock = self.request
            if wire := answer(dns.message.from_wire(data), "udp"):
                sock.sendto(wire, self.client_address)

    class Tcp(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            size = int.from_bytes(self.rfile.read(2), "big")
            if wire := answer(dns.message.from_wire(self.rfile.read(size)), "tcp"):
                self.wfile.write(len(wire).to_bytes(2, "big") + wire)

    class Streams(socketserver.TCPServer):
        allow_reuse_address = True  # connections of others to this port may be in TIME_WAIT

    with socketserver.UDPServer(("127.0.0.1", ports.free_port(("127.0.0.1",))), Udp) as udp:
        port = udp.server_address[1]
        with Streams(("127.0.0.1", port), Tcp) as tcp:
            threads = [threading.Thread(target=each.serve_forever, args=(0.02,)) for each in (udp, tcp)]
            for thread in threads:
                thread.start()
            try:
                yield str(port)
            finally:
                udp.shutdown()
                tcp.shutdown()
                for thread in threads:
                    thread.join()


def respond(
    query: dns.message.Message, *records: str, rcode: dns.rcode.Rcode = dns.rcode.NOERROR
) -> dns.message.Message:
    """A response with records in master file format, given as "TTL TYPE DATA", at the question's name."""
    response = dns.message.make_response(query, our_payload=1232)
    response.flags |= dns.flags.AA
    response.set_rcode(rcode)
    for record in records:
        ttl, rtype, data = record.split(" ", 2)
        rrset = dns.rrset.from_text(query.question[0].name, int(ttl), query.question[0].rdclass, rtype, data)
        response.answer.append(rrset)
    return response


def test_an_answer_is_shown_with_its_flags_size_server_and_time() -> None:
    with played(lambda query, _: respond(query, "5 A 10.96.20.1").to_wire()) as port:
        done = kdns("query", "Web.shop.svc.cluster.local", "--port", port)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0].startswith(";; NOERROR, flags qr aa rd, id ")
    assert lines[1] == ";; EDNS version 0, UDP size 1232"
    assert ";Web.shop.svc.cluster.local. IN A" in lines
    assert "Web.shop.svc.cluster.local.  5  IN  A  10.96.20.1" in lines
    assert f";; 71 bytes from 127.0.0.1 port {port} over UDP in " in lines[-1]
    assert lines[-1].endswith(" ms")


@pytest.mark.parametrize(
    ("rtype", "data"),
    [
        ("AAAA", "fd00:96::a"),
        ("CNAME", "db.data.svc.cluster.local."),
        ("SRV", "0 100 53 kube-dns.kube-system.svc.cluster.local."),
        ("PTR", "web.shop.svc.cluster.local."),
        ("TXT", '"1.1.0"'),
        ("SOA", "ns.dns.cluster.local. hostmaster.cluster.local. 7 7200 1800 86400 5"),
        ("HINFO", '"RFC8482" ""'),
        ("TYPE65280", "\\# 2 abcd"),
    ],
)
def test_record_data_is_printed_as_in_a_master_file(rtype: str, data: str) -> None:
    with played(lambda query, _: respond(query, f"30 {rtype} {data}").to_wire()) as port:
        done = kdns("query", "name.example", rtype, "--port", port)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("name.example.")]
    assert dns.rrset.from_text("name.example.", 30, "IN", *line.split(None, 4)[3:]) == dns.rrset.from_text(
        "name.example.", 30, "IN", rtype, data
    )


def test_json_has_the_same_facts() -> None:
    def answer(query: dns.message.Message, _: str) -> bytes:
        response = respond(query, "5 A 10.0.0.1")
        response.use_edns(
            0,
            dns.flags.DO,
            1232,
            options=[
                dns.edns.GenericOption(dns.edns.OptionType.NSID, b"node-a"),
                dns.edns.GenericOption(dns.edns.OptionType(9), b"\1"),
            ],
        )
        return response.to_wire()

    with played(answer) as port:
        facts = json.loads(kdns("query", "a.example", "A", "--port", port, "--json").stdout)
    assert facts["status"] == "NOERROR"
    assert facts["flags"] == ["qr", "aa", "rd"]
    assert facts["edns"] == {"version": 0, "do": True, "udp_size": 1232, "options": {"9": "01"}, "nsid": "node-a"}
    assert facts["answer"] == [{"name": "a.example.", "ttl": 5, "class": "IN", "type": "A", "data": "10.0.0.1"}]
    assert (facts["proto"], facts["port"], facts["retried_over_tcp"]) == ("udp", int(port), False)


def test_the_options_are_in_the_query() -> None:
    seen: list[tuple[dns.message.Message, str]] = []

    def answer(query: dns.message.Message, proto: str) -> bytes:
        seen.append((query, proto))
        return respond(query).to_wire()

    with played(answer) as port:
        kdns("query", "a.example", "--port", port)
        kdns("query", "a.example", "--port", port, "--no-edns")
        kdns("query", "version.bind", "TXT", "--port", port, "--class", "ch", "--dnssec", "--bufsize", "4096", "--tcp")
        kdns("query", "--reverse", "fd00::1", "--port", port)
        kdns("query", "-x", "10.96.0.10", "--port", port)
    questions = [query.question[0].to_text() for query, _ in seen]
    assert questions[:3] == ["a.example. IN A", "a.example. IN A", "version.bind. CH TXT"]
    assert questions[3] == f"{dns.reversename.from_address('fd00::1')} IN PTR"
    assert questions[4] == "10.0.96.10.in-addr.arpa. IN PTR"
    assert [(query.edns, query.payload) for query, _ in seen[:3]] == [(0, 1232), (-1, 0), (0, 4096)]
    assert [bool(query.ednsflags & dns.flags.DO) for query, _ in seen[:3]] == [False, False, True]
    assert [proto for _, proto in seen] == ["udp", "udp", "tcp", "udp", "udp"]


def test_a_truncated_answer_is_asked_for_again_over_tcp() -> None:
    def answer(query: dns.message.Message, proto: str) -> bytes:
        response = respond(query, *(["5 A 10.0.0.1", "5 A 10.0.0.2"] if proto == "tcp" else []))
        if proto == "udp":
            response.flags |= dns.flags.TC
        return response.to_wire()

    with played(answer) as port:
        done = kdns("query", "many.example", "--port", port)
    assert ";; truncated over UDP, so asked again over TCP" in done.stdout
    assert done.stdout.count("many.example.  5  IN  A  10.0.0.") == 2
    assert f"from 127.0.0.1 port {port} over TCP" in done.stdout


def test_another_response_code_is_exit_code_3() -> None:
    with played(lambda query, _: respond(query, rcode=dns.rcode.NXDOMAIN).to_wire()) as port:
        done = kdns("query", "none.example", "--port", port)
    assert done.returncode == 3
    assert done.stdout.startswith(";; NXDOMAIN, ")


def test_an_extended_response_code_is_put_together() -> None:
    with played(lambda query, _: respond(query, rcode=dns.rcode.BADVERS).to_wire()) as port:
        assert json.loads(kdns("query", "a.example", "--port", port, "--json").stdout)["status"] == "BADVERS"


def test_answers_to_somebody_else_are_not_taken() -> None:
    def answer(query: dns.message.Message, _: str) -> bytes:
        response = respond(query, "5 A 10.0.0.1")
        response.id ^= 1
        return response.to_wire()

    with played(answer) as port:
        done = kdns("query", "a.example", "--port", port, "--timeout", "0.2")
    assert (done.returncode, done.stderr) == (1, f"no answer from 127.0.0.1 port {port} over UDP within 0.2 s\n")


@pytest.mark.parametrize("proto", ["udp", "tcp"])
def test_silence_is_one_line_and_exit_code_1(proto: str) -> None:
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as silent:
        silent.bind(("127.0.0.1", 0))
        if proto == "tcp":
            silent.listen()
        port = silent.getsockname()[1]
        options = ["--tcp"] if proto == "tcp" else []
        done = kdns("query", "a.example", "--port", str(port), "--timeout", "0.2", *options)
    assert done.returncode == 1
    assert done.stderr == f"no answer from 127.0.0.1 port {port} over {proto.upper()} within 0.2 s\n"
    assert done.stdout == ""


def test_a_port_without_a_server_is_one_line_and_exit_code_1() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    done = kdns("query", "a.example", "--port", str(port))
    assert (done.returncode, done.stderr) == (1, f"nothing listens at 127.0.0.1 port {port} over UDP\n")


@pytest.mark.parametrize("host", ["a..b", f"{'a' * 64}.b"])
def test_a_server_that_no_name_can_be_is_one_line_and_exit_code_1(host: str) -> None:
    done = kdns("query", "a.example", "--server", host)
    assert (done.returncode, done.stderr) == (1, f"{host!r} is no name of a host; accepted: labels of 1 to 63 bytes\n")


def test_a_malformed_answer_is_one_line_and_exit_code_1() -> None:
    with played(lambda query, _: respond(query, "5 A 10.0.0.1").to_wire()[:-3]) as port:
        done = kdns("query", "a.example", "--port", port)
    assert done.returncode == 1
    assert done.stderr.startswith(f"the answer of 127.0.0.1 port {port} cannot be read: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a.example", "--reverse", "10.0.0.1"],
        ["a..example"],
        ["a.example", "BOGUS"],
        ["a.example", "--class", "XX"],
        ["--reverse", "10.0.0"],
        ["a.example", "--dnssec", "--no-edns"],
        ["a.example", "--port", "0"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str]) -> None:
    done = kdns("query", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("Error: ")


def test_version_says_what_a_bug_report_needs() -> None:
    facts = json.loads(kdns("version", "--json").stdout)
    assert list(facts) == ["kdns", "compiled", "python", "platform", "lmdb", "py-lmdb"]
    assert facts["python"].endswith(sys.version.split()[0])
    text = kdns("version").stdout
    assert all(str(facts[key]) in text for key in ("kdns", "python", "platform", "lmdb"))


def test_starting_a_command_loads_no_library_of_another() -> None:
    heavy = ["rich.console", "dnslib", "kubernetes", "prometheus_client", "lmdb", "msgspec", "watchfiles", "yaml"]
    code = f"import sys, kdns.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("[]\n", "")
