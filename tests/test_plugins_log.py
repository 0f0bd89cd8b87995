"""The line that `log` writes for a query."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.plugins import loads
from kdns.plugins.log import Logger, Options

SOA = "example.org. 5 IN SOA ns.example.org. h.example.org. 1 2 3 4 5"
NS = "example.org. 5 IN NS ns.example.org."
A = "www.example.org. 5 IN A 192.0.2.1"


def logger(directives: str) -> Logger:
    return Logger(loads(f". {{\n{directives}\n}}").blocks[0].plugins["log"])


def asked(name: str = "www.example.org", rdtype: str = "A", **options: int | bool) -> dns.message.Message:
    query = dns.message.make_query(name, rdtype, **options)  # type: ignore[arg-type]
    query.id = 29008
    return query


def answer(
    query: dns.message.Message, rcode: dns.rcode.Rcode = dns.rcode.NOERROR, *records: str, authority: str = ""
) -> bytes:
    response = dns.message.make_response(query)
    response.flags |= dns.flags.AA
    response.set_rcode(rcode)
    for section, texts in ((response.answer, records), (response.authority, (authority,) if authority else ())):
        for text in texts:
            section.append(dns.rrset.from_text(*text.split(" ", 4)))  # type: ignore[arg-type]
    return response.to_wire()


def line(
    log: Logger, query: dns.message.Message, response: bytes, client: str = "192.0.2.7", proto: str = "udp"
) -> str | None:
    return log.line(query.to_wire(), response, (client, 50759), ("192.0.2.1", 53), proto, 0.037990251)


def test_the_common_format() -> None:
    query = asked("WWW.example.org", payload=4096, want_dnssec=True)
    assert line(logger("log"), query, answer(query, dns.rcode.NOERROR, A), "::1") == (
        '[INFO] [::1]:50759 - 29008 "A IN www.example.org. udp 44 true 4096" NOERROR qr,aa,rd 60 0.037990251s'
    )


def test_the_combined_format_ends_with_the_opcode() -> None:
    query = asked()
    text = line(logger("log . {combined}"), query, answer(query, dns.rcode.NXDOMAIN), proto="tcp")
    assert text == (
        '[INFO] 192.0.2.7:50759 - 29008 "A IN www.example.org. tcp 33 false 65535" '
        'NXDOMAIN qr,aa,rd 33 0.037990251s "0"'
    )


@pytest.mark.parametrize(
    ("placeholder", "text"),
    [
        ("{type}", "SRV"), ("{name}", "www.example.org."), ("{class}", "IN"), ("{proto}", "udp"), ("{size}", "33"),
        ("{remote}", "192.0.2.7"), ("{port}", "50759"), ("{local}", "192.0.2.1"), ("{>id}", "29008"),
        ("{>opcode}", "0"), ("{>do}", "false"), ("{>bufsize}", "512"), ("{rcode}", "REFUSED"), ("{rsize}", "33"),
        ("{duration}", "0.037990251s"),
        ("{>rflags}", "qr,aa,rd"), ("{/log/class}", "error"), ("{/log/type}", "OTHERERROR"), ("{unknown}", "{unknown}"),
        ("{ {type} }", "{ SRV }"), ("} {type", "} {type"), ("{{name}}", "{www.example.org.}"),
    ],
)  # fmt: skip
def test_placeholders(placeholder: str, text: str) -> None:
    query = asked(rdtype="SRV")
    assert line(logger(f'log . "{placeholder}"'), query, answer(query, dns.rcode.REFUSED)) == f"[INFO] {text}"


def test_a_format_alone_is_for_all_names() -> None:
    query = asked()
    assert line(logger('log "{name}"'), query, answer(query)) == "[INFO] www.example.org."


def test_an_extended_response_code() -> None:
    query = asked(payload=1232)
    assert line(logger('log "{rcode}"'), query, answer(query, dns.rcode.BADVERS)) == "[INFO] BADVERS"


def test_the_first_rule_that_covers_the_name_decides() -> None:
    log = logger('log example.org a.net "one {name}"\nlog WWW.example.org "two {name}"\nlog b.net "three {name}"')
    for name, expected in (("www.example.org", "one"), ("a.net", "one"), ("x.b.net", "three")):
        query = asked(name)
        assert line(log, query, answer(query)) == f"[INFO] {expected} {name}."
    query = asked("xa.net")
    assert line(log, query, answer(query)) is None


@pytest.mark.parametrize(
    ("rcode", "records", "authority", "answer_class", "kind"),
    [
        (dns.rcode.NOERROR, [A], "", "success", "NOERROR"),
        (dns.rcode.NOERROR, [], NS, "success", "DELEGATION"),
        (dns.rcode.NOERROR, [], "", "success", "NOERROR"),
        (dns.rcode.NOERROR, [], SOA, "denial", "NODATA"),
        (dns.rcode.NXDOMAIN, [], SOA, "denial", "NXDOMAIN"),
        (dns.rcode.NXDOMAIN, [A], SOA, "error", "OTHERERROR"),
        (dns.rcode.SERVFAIL, [], "", "error", "SERVERERROR"),
        (dns.rcode.REFUSED, [], "", "error", "OTHERERROR"),
    ],
)
def test_classes(rcode: dns.rcode.Rcode, records: list[str], authority: str, answer_class: str, kind: str) -> None:
    query = asked()
    response = answer(query, rcode, *records, authority=authority)
    for wanted in ("success", "denial", "error"):
        text = line(logger(f'log . "{{/log/type}}" {{\nclass {wanted}\n}}'), query, response)
        assert text == (f"[INFO] {kind}" if wanted == answer_class else None)
    assert line(logger("log . {\nclass all\n}"), query, response)


def test_classes_add_up() -> None:
    query = asked()
    log = logger("log . {\nclass denial\nclass error success\n}")
    assert all(
        line(log, query, answer(query, rcode)) for rcode in (dns.rcode.NXDOMAIN, dns.rcode.REFUSED, dns.rcode.NOERROR)
    )


def test_a_name_cannot_forge_a_line() -> None:
    query = asked(r"a\010[INFO]\032b.example.org")
    text = line(logger('log "{name}"'), query, answer(query))
    assert text == r"[INFO] a\010[info]\032b.example.org."


@given(st.binary(), st.binary(min_size=12))
def test_what_cannot_be_read_gives_no_line(query: bytes, response: bytes) -> None:
    text = Logger(Options()).line(query, response, ("192.0.2.7", 1), ("192.0.2.1", 53), "udp", 0.0)
    assert text is None or "\n" not in text
