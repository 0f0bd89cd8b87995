"""tsig: queries with a signature are checked, their responses are signed, and queries without one can be refused."""

from __future__ import annotations

import base64
import hmac
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.tsig
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.errors import ConfigError, FormatError
from kdns.plugins import loads, tsig
from kdns.wire import message, names, relay
from kdns.wire import tsig as wire
from tests.support import objects
from tests.support.configs import options, refused
from tests.support.server import Server

SECRET, OTHER = (base64.b64encode(bytes([fill]) * 32).decode() for fill in (7, 9))
COREFILE = f"""
cluster.local:$dns {{
    bind $addresses
    prometheus $host:$metrics
    ready $host:$ready
    tsig {{
        secret key.test {SECRET}
        secrets {{$KEYS}}
    }}
    kubernetes cluster.local {{
        manifests $manifests
    }}
}}
required.test:$dns {{
    bind $addresses
    tsig required.test {{
        require A TYPE65
    }}
    whoami
}}
all.test:$dns {{
    bind $addresses
    tsig in.all.test {{
        secret key.test {OTHER}
        require all
    }}
    whoami
}}
without.test:$dns {{
    bind $addresses
    whoami
}}
none.test:$dns {{
    bind $addresses
    tsig {{
        require none
    }}
    whoami
}}
"""
KEYS = f"""# of two kinds
key "file.test" {{ algorithm hmac-sha512; secret "{OTHER}"; }};
key any.test {{
    secret "{OTHER}"; /* for
    all */
}};
"""
WEB = "web.default.svc.cluster.local"
MANY = "many.default.svc.cluster.local"
Edit = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tsig")
    keys = folder / "keys.conf"
    keys.write_text(KEYS)
    endpoints = [objects.endpoint(f"10.1.{number // 250}.{number % 250 + 1}") for number in range(100)]
    many = [objects.service("many", ips=["None"]), objects.endpoint_slice("many", endpoints)]
    web = objects.service("web", ips=["10.96.0.1"], ports=[("http", 80, "TCP")])
    corefile = COREFILE.replace("{$KEYS}", str(keys))
    with Server(folder, [web, *many], corefile=corefile) as running:
        yield running


def keyring(name: str = "key.test", secret: str = SECRET, algorithm: str = "hmac-sha256") -> dns.tsig.Key:
    return dns.tsig.Key(name, secret, algorithm)


def signed(name: str, rdtype: str = "A", key: dns.tsig.Key | None = None, **make: Any) -> dns.message.QueryMessage:
    asked = dns.message.make_query(name, rdtype, **make)
    asked.use_tsig(key or keyring())
    return asked


def ask(server: Server, asked: dns.message.Message, *, tcp: bool = False) -> dns.message.Message:
    """What dnspython makes of the answer, whose signature it has to find good."""
    send = dns.query.tcp if tcp else dns.query.udp
    return send(asked, "127.0.0.1", timeout=3, port=server.port)


def raw(server: Server, data: bytes) -> tuple[str, int, bytes, dict[str, int]]:
    """Response code, and of the TSIG record the error, the MAC, and its other fields."""
    answer = server.raw_udp(data)
    assert answer is not None
    end = message.question_end(answer)
    record = wire.find(answer, end)
    code = dns.rcode.to_text(dns.rcode.Rcode(answer[3] & 0xF))
    if record is None:
        return code, -1, b"", {}
    other = int.from_bytes(record.other)
    return code, record.error, record.mac, {"time": record.time, "other": other, "id": record.original_id}


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize("algorithm", [*wire.ALGORITHMS])
def test_a_signed_query_gets_a_signed_answer(server: Server, algorithm: str, tcp: bool) -> None:
    for edns in (-1, 0):
        asked = signed(WEB, key=keyring(algorithm=algorithm), use_edns=edns)
        answer = ask(server, asked, tcp=tcp)
        assert answer.had_tsig
        assert [str(rdata) for rrset in answer.answer for rdata in rrset] == ["10.96.0.1"]
        assert (answer.edns == 0) is (edns == 0)


@pytest.mark.parametrize("tool", ["dig", "kdig"])
def test_other_clients_accept_our_signatures(server: Server, tool: str, needs: Callable[..., None]) -> None:
    needs(tool)
    key = ["-y", f"hmac-sha256:key.test:{SECRET}"]
    command = [tool, "@127.0.0.1", "-p", str(server.port), *key, "+retry=0", "+time=3", WEB]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert "10.96.0.1" in done.stdout
    assert "TSIG" in done.stdout
    for word in ("could not", "verify", "invalid", "failed"):
        assert word not in done.stdout + done.stderr


def test_keys_of_a_file_and_of_other_server_blocks_hold_too(server: Server) -> None:
    assert ask(server, signed(WEB, key=keyring("ANY.test", OTHER))).had_tsig
    assert ask(server, signed(WEB, key=keyring("file.test", OTHER, "hmac-sha512"))).had_tsig
    assert ask(server, signed("required.test", key=keyring("any.test", OTHER))).had_tsig
    with pytest.raises(dns.tsig.PeerBadKey):  # the file says which algorithm
        ask(server, signed(WEB, key=keyring("file.test", OTHER, "hmac-sha256")))


def test_of_two_keys_with_one_name_that_of_the_server_block_holds(server: Server) -> None:
    assert ask(server, signed("in.all.test", key=keyring(secret=OTHER))).rcode() == dns.rcode.NOERROR
    assert raw(server, signed("in.all.test").to_wire())[:2] == ("NOTAUTH", wire.BADSIG)


def test_an_unknown_key_and_a_wrong_signature_are_refused_without_a_signature(server: Server) -> None:
    assert raw(server, signed(WEB, key=keyring("nobody.test")).to_wire())[:3] == ("NOTAUTH", wire.BADKEY, b"")
    assert raw(server, signed(WEB, key=keyring(secret=OTHER)).to_wire())[:3] == ("NOTAUTH", wire.BADSIG, b"")
    assert raw(server, resigned(algorithm=b"\x08hmac-md5\0"))[:3] == ("NOTAUTH", wire.BADKEY, b"")


def resigned(*, late: int = 0, size: int = 32, algorithm: bytes = b"", digest: str = "hmac-sha256") -> bytes:
    """A query signed by ourselves, this much too late, with so many bytes of the MAC."""
    data = dns.message.make_query(WEB, "A").to_wire()
    found = wire.ALGORITHMS[digest]
    key = b"\3key\4test\0"
    stamp = int(time.time()) - late
    timers = struct.pack("!HIH", stamp >> 32, stamp & 0xFFFFFFFF, 300)
    variables = key + struct.pack("!HI", 255, 0) + (algorithm or found.name) + timers + struct.pack("!HH", 0, 0)
    mac = hmac.digest(base64.b64decode(SECRET), data + variables, found.digest)[:size]
    rdata = (algorithm or found.name) + timers + struct.pack("!H", len(mac)) + mac + data[:2] + bytes(4)
    head = data[:10] + struct.pack("!H", 1) + data[12:]
    return head + key + struct.pack("!HHIH", 250, 255, 0, len(rdata)) + rdata


def test_a_signature_of_another_time_is_answered_with_ours_and_signed(server: Server) -> None:
    assert raw(server, resigned(late=290))[:2] == ("NOERROR", 0)
    for late in (310, -310):
        data = resigned(late=late)
        code, error, mac, fields = raw(server, data)
        assert (code, error, len(mac)) == ("NOTAUTH", wire.BADTIME, 32)
        assert abs(fields["time"] + late - time.time()) < 5
        assert abs(fields["other"] - time.time()) < 5


@pytest.mark.parametrize(
    ("digest", "size", "expected"),
    [
        ("hmac-sha256", 32, ("NOERROR", 0)),
        ("hmac-sha256", 16, ("NOERROR", 0)),
        ("hmac-sha256", 15, ("FORMERR", -1)),
        ("hmac-sha512", 31, ("FORMERR", -1)),
        ("hmac-sha1", 16, ("NOERROR", 0)),
        ("hmac-sha1", 15, ("NOTAUTH", wire.BADTRUNC)),
        ("hmac-sha1", 10, ("NOTAUTH", wire.BADTRUNC)),
        ("hmac-sha1", 9, ("FORMERR", -1)),
        ("hmac-sha1", 0, ("FORMERR", -1)),
    ],
)
def test_a_signature_may_be_cut_to_some_length(server: Server, digest: str, size: int, expected: object) -> None:
    code, error, mac, _ = raw(server, resigned(size=size, digest=digest))
    assert (code, error) == expected
    if error in (0, wire.BADTRUNC):
        assert len(mac) == wire.ALGORITHMS[digest].size


def moved(data: bytes) -> bytes:
    """The TSIG record counted to the answers."""
    return data[:6] + struct.pack("!HHH", 1, 0, 0) + data[12:]


def followed(data: bytes) -> bytes:
    """With another record behind it."""
    return data[:10] + struct.pack("!H", 2) + data[12:] + message.opt_record(False)


def doubled(data: bytes) -> bytes:
    end = message.question_end(data)
    return data[:10] + struct.pack("!H", 2) + data[12:] + data[end:]


@pytest.mark.parametrize("edit", [moved, followed, doubled])
def test_a_record_in_another_place_is_a_format_error(server: Server, edit: Edit) -> None:
    data = signed(WEB, use_edns=-1).to_wire()
    assert raw(server, edit(data))[:2] == ("FORMERR", -1)
    elsewhere = dns.message.make_query("without.test", "A", use_edns=-1)
    elsewhere.use_tsig(keyring())
    assert raw(server, edit(elsewhere.to_wire()))[0] == "NOERROR"  # where nobody looks at signatures


def test_types_may_have_to_be_signed(server: Server) -> None:
    def code(name: str, rdtype: str, key: dns.tsig.Key | None = None) -> str:
        asked = dns.message.make_query(name, rdtype)
        if key is not None:
            asked.use_tsig(key)
        return dns.rcode.to_text(ask(server, asked).rcode())

    other = keyring("any.test", OTHER)
    assert [code("x.required.test", rdtype) for rdtype in ("A", "HTTPS", "AAAA")] == ["REFUSED", "REFUSED", "NOERROR"]
    assert [code("x.required.test", rdtype, other) for rdtype in ("A", "HTTPS")] == ["NOERROR", "NOERROR"]
    assert [code(name, "MX") for name in ("in.all.test", "all.test", "none.test")] == ["REFUSED", "NOERROR", "NOERROR"]
    assert code("in.all.test", "MX", other) == "NOERROR"


def test_signatures_are_not_looked_at_elsewhere(server: Server) -> None:
    for name in ("without.test", "all.test"):
        assert raw(server, signed(name, key=keyring("nobody.test")).to_wire())[:2] == ("NOERROR", -1)


def test_the_signature_counts_in_the_size_of_an_answer(server: Server) -> None:
    for payload in (512, 1000, 1232):
        asked = signed(MANY, use_edns=0, payload=payload)
        data = server.raw_udp(asked.to_wire())
        assert data is not None
        assert payload - 20 < len(data) <= payload
        answer = dns.message.from_wire(data, keyring={asked.keyname: asked.keyring}, request_mac=asked.mac)
        assert answer.flags & dns.flags.TC
        assert answer.edns == 0
    assert sum(len(rrset) for rrset in ask(server, signed(MANY), tcp=True).answer) == 100


def test_the_packet_cache_has_no_signed_answers(server: Server) -> None:
    data = signed(WEB).to_wire()
    entries = server.metrics().value("kdns_packet_cache_hits_total")
    macs = {raw(server, bytes([0, number]) + data[2:])[2] for number in range(3)}
    assert len(macs) == 3  # as their IDs differ
    assert server.metrics().value("kdns_packet_cache_hits_total") == entries
    plain = dns.message.make_query(WEB, "A")
    for _ in range(3):
        assert not ask(server, plain).had_tsig
    assert ask(server, signed(WEB)).had_tsig


def test_an_answer_follows_what_is_asked_on_one_connection(server: Server) -> None:
    asked = [signed(WEB, key=keyring(secret=secret)).to_wire() for secret in (SECRET, OTHER, SECRET)]
    answers = server.raw_tcp(*asked)
    assert [answer[3] & 0xF for answer in answers] == [0, wire.NOTAUTH, 0]


# The directive


def test_options() -> None:
    found = options(f"tsig {{\nsecret KEY.example {SECRET}\nsecret other. {OTHER}\nrequire AXFR ixfr TYPE65\n}}")
    assert found.zones == ("example.org.",)
    assert [(names.to_text(key.name), len(key.secret)) for key in found.keys] == [("key.example.", 32), ("other.", 32)]
    assert found.required == {251, 252, 65}
    for text in ("require all", "require_opcode UPDATE QUERY", "require_opcode QUERY\nrequire A"):
        assert options(f"tsig a.test b.test {{\n{text}\n}}").required is None
    assert options("tsig {\nrequire A\nrequire_opcode UPDATE\n}").required == {1}
    assert options("tsig a.test b.test {\nrequire none\n}") == tsig.Options(("a.test.", "b.test."), ())


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["secret a"], ['2: tsig: "secret" has 1 argument']),
        (["secret a !!"], ["2: tsig: the secret is no base64"]),
        (["secret a ="], ["2: tsig: the secret is no base64"]),
        (["secret a.. QUJD"], ['2: tsig: "a.." is no name of a key']),
        (["secret a QUJD", "secret A. QUJD"], ['3: tsig: key "a." is given twice']),
        (["require"], ['2: tsig: "require" has 0 arguments']),
        (["require AXRF"], ['2: tsig: "AXRF" is no record type']),
        (["require all A"], ['2: tsig: "A" follows all']),
        (["require A", "require B"], ['3: tsig: "require" is given twice']),
        (["require_opcode"], ['2: tsig: "require_opcode" has 0 arguments']),
        (["require_opcode WHAT"], ['2: tsig: "WHAT" is not known']),
        (["require_opcode NOTIFY"], ["2: tsig: require_opcode NOTIFY is not supported by this version of kdns"]),
        (["secrets /nowhere/keys"], ["2: tsig: /nowhere/keys: no such file or directory"]),
        (["secrets"], ['2: tsig: "secrets" has 0 arguments']),
    ],
)
def test_mistakes_are_refused(lines: list[str], expected: list[str]) -> None:
    assert refused("\n".join(["tsig {", *lines, "}"])) == expected


def test_a_file_of_keys_is_part_of_the_configuration(tmp_path: Path) -> None:
    corefile = f"example.org {{\nroot {tmp_path}\ntsig {{\nsecrets keys\n}}\n}}"
    digests = [loads("example.org {\nwhoami\n}").digest]
    for secret in ("QUJD", "REVG"):
        (tmp_path / "keys").write_text(f'key a {{ secret "{secret}"; }};')
        found = loads(corefile)
        assert found.digest not in digests
        digests.append(found.digest)
        assert (found.digest, found.files) == (loads(corefile).digest, (str(tmp_path / "keys"),))
    assert {len(digest) for digest in digests} == {128}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("key a {\n};", ['1: tsig: key "a" has no secret']),
        ("\nkeys", ['2: tsig: "keys" is not expected here']),
        ("key a {\nsecret !;\n};", ["2: tsig: the secret is no base64"]),
        ("key a {\nsecret QUJD\n};", ['3: tsig: "}" is not expected here']),
        ("key a {\nalgorithm hmac-md5;", ['2: tsig: "hmac-md5" is no algorithm of keys']),
        ("key a {\nsecret QUJD;\n", ["2: tsig: the end is not expected here"]),
        ("key a.. {", ['1: tsig: "a.." is no name of a key']),
        ("key a {\nsecret QUJD;\n}\nkey A. { secret QUJD; }", ['4: tsig: key "a." is given twice']),
    ],
)
def test_mistakes_in_a_file_of_keys_are_refused(tmp_path: Path, text: str, expected: list[str]) -> None:
    (tmp_path / "keys").write_text(text)
    corefile = f"example.org {{\nroot {tmp_path}\ntsig {{\nsecrets keys\n}}\n}}"
    if not expected:
        assert loads(corefile).blocks[0].plugins["tsig"].keys == ()
        return
    with pytest.raises(ConfigError) as caught:
        loads(corefile)
    assert [f"{mistake.line}: {mistake.message}" for mistake in caught.value.mistakes] == expected
    assert {mistake.file for mistake in caught.value.mistakes} == {str(tmp_path / "keys")}


@pytest.mark.parametrize(
    ("directive", "expected"),
    [
        ("tsig", ()),
        ("tsig {\nrequire AXFR IXFR\n}", ()),
        ("tsig {\nrequire A\n}", None),
        ("tsig {\nrequire all\n}", None),
        ("tsig sub.example.org {\nrequire all\n}", None),
        ("tsig example.net {\nrequire all\n}", ()),
    ],
)
def test_answers_go_round_it_where_it_does_nothing(directive: str, expected: object) -> None:
    handler = tsig.Handler(options(directive))
    assert handler.passing(b"\7example\3org\0", "dns://:53") == expected


# The format


@settings(max_examples=150)
@given(st.binary(min_size=1, max_size=64), st.sampled_from([*wire.ALGORITHMS]), st.integers(1, 4))
def test_what_we_sign_others_find_good(secret: bytes, algorithm: str, count: int) -> None:
    key = dns.tsig.Key("k.test", secret, algorithm)
    asked = dns.message.make_query("a.test", "AXFR")
    asked.use_tsig(key)
    data = asked.to_wire()
    record = wire.find(data, message.question_end(data))
    assert record is not None
    checked = wire.check(data, record, {b"\1k\4test\0": wire.Key(b"\1k\4test\0", secret)}, time.time())
    assert (checked.error, checked.key is not None) == (0, True)
    signer = wire.Signer(checked)
    plain = dns.message.make_response(dns.message.make_query("a.test", "AXFR", id=asked.id)).to_wire()
    context = None
    for number in range(count):
        answer = signer.sign(plain, time.time())
        assert len(answer) - len(plain) <= checked.size
        ring = {asked.keyname: key}
        read = dns.message.from_wire(
            answer, keyring=ring, request_mac=asked.mac, tsig_ctx=context, multi=True, xfr=True
        )
        context = read.tsig_ctx
        assert read.had_tsig, number


def pointers(count: int) -> bytes:
    """A message of 64 KB, whose first record has a chain of pointers, where the names of the others begin."""
    head = b"\0\7\0\0\0\1\0\0\0\0" + struct.pack("!H", count + 1) + b"\1a\4test\0\0\1\0\1"
    begin = len(head) + 11
    chain = b"".join(struct.pack("!H", 0xC000 | at) for at in (19, *range(begin, 16000, 2)))
    record = b"\xff\0\0\1" + bytes(4)
    last = struct.pack("!H", 0xC000 | begin + len(chain) - 2)
    return head + b"\0" + record + struct.pack("!H", len(chain)) + chain + (last + record + bytes(2)) * count


def test_names_of_many_pointers_are_not_followed() -> None:
    data = pointers(3900)
    end = message.question_end(data)
    started = time.process_time()
    assert wire.find(data, end) is None
    assert time.process_time() - started < 0.5
    with pytest.raises(FormatError, match="malformed"):
        relay.expand(data, len(data) - 12)
    assert relay.expand(data, end + 11 + 2 * 100)[0] == b"\0"


@settings(max_examples=300)
@given(st.binary(max_size=120), st.integers(0, 3), st.integers(0, 120))
def test_bytes_of_the_network_are_a_record_or_a_format_error(data: bytes, count: int, at: int) -> None:
    whole = signed("a.test", use_edns=-1).to_wire()
    end = message.question_end(whole)
    for sample in (
        whole[:10] + struct.pack("!H", count) + whole[12:end] + data,
        whole[: end + at] + data + whole[end + at + len(data) :],
    ):
        try:
            record = wire.find(sample, end)
            if record is not None:
                wire.check(sample, record, {b"\3key\4test\0": wire.Key(b"\3key\4test\0", b"secret")}, time.time())
        except FormatError:
            continue
