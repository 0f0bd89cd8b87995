"""template: answers that templates in the Corefile make, and what becomes of those that make none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.errors import TemplateError
from kdns.plugins import template
from kdns.wire import message, names, rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset
from tests.support.configs import options, refused
from tests.support.plugins import CLIENT, Behind, Ground, answered, query, read
from tests.support.server import Server

pytestmark = pytest.mark.one_speed

COREFILE = """
.:$dns {
    bind 127.0.0.1
    errors
    ready $host:$ready
    prometheus $host:$metrics
    template IN A a.test {
        match ^x(?P<n>[0-9]+)[.] ^y(?P<n>[0-9]+)[.]
        answer "{{ .Name }} 60 IN A 10.0.0.{{ .Group.n }}" "{{ .Name }} 60 IN A 10.0.0.9"
        authority "a.test. 60 IN NS ns.a.test"
        additional "ns.a.test 60 IN A 192.0.2.53"
        additional "ns.a.test 60 IN AAAA ::1"
        ederror 21 "why not"
        fallthrough z.a.test
    }
    template ANY ANY gone.test {
        rcode NXDOMAIN
        authority "{{ .Zone }} 60 {{ .Class }} SOA ns.{{ .Zone }} hm.{{ .Zone }} (1 60 60 60 60)"
    }
    template IN TXT txt.test {
        match "^(?P<first>.*)[.](txt[.]test[.])$"
        answer "{{ .Name }} IN TXT {{ .Group.first }} \\"{{ index .Match 2 }}|{{ .Zone }}|{{ .Class }}|{{ .Type }}\\""
        additional "q 5 TXT \\"{{ .Question.Name }}|{{ .Question.Qtype }}|{{ .Regex }}\\""
    }
    template IN A remote.test {
        answer "{{ .Name }} A {{ .Remote }}"
    }
    template IN TXT id.test {
        answer "x TXT {{ .Message.Id }} {{ .Message.RecursionDesired }} {{ (index .Message.Question 0).Name }}"
    }
    template IN A fails.test {
        answer "{{ .Name }} A {{ index .Match 7 }}"
    }
    template IN ANY servfail.test {
        rcode SERVFAIL
        ederror 5
    }
    template IN A alias.test {
        match ^ours[.]
        answer "{{ .Name }} 60 CNAME x1.a.test"
        fallthrough
    }
    template IN ANY alias.test {
        match ^nobody[.]
        answer "{{ .Name }} 60 CNAME www.elsewhere.invalid"
        fallthrough
        upstream
    }
    template IN A alias.test {
        match ^fails[.]
        answer "{{ .Name }} 60 CNAME x.fails.test"
        fallthrough
    }
    template IN A alias.test {
        match many[.]
        answer "{{ .Name }} CNAME 1.many.alias.test" "{{ .Name }} CNAME 2.many.alias.test"
        answer "{{ .Name }} CNAME 3.many.alias.test"
        fallthrough
    }
    template IN A alias.test {
        match ^self[.]
        answer "{{ .Name }} 60 CNAME {{ .Name }}"
    }
    template IN A codes.test {
        rcode BADCOOKIE
    }
    template IN A lan.test {
        match "^(?P<ip>[0-9]+(-[0-9]+){3})[.]"
        var ip replace(group('ip'), '-', '.')
        var parts "let text = ip; split(text, '.') | map(({n: #index, t: #}))"
        expr "any(['10.0.0.0/8', '192.168.0.0/16'], incidr(ip, #))"
        expr len(parts) == 4
        answer "{{ .Name }} A {{ .Var.ip }}"
        answer "{{ .Name }} A 192.0.2.{{ with index .Var.parts 3 }}{{ .t }}{{ .n }}{{ end }}"
        fallthrough in.lan.test
    }
    template IN A lan.test {
        expr name() startsWith '9-'
        answer "{{ .Name }} A 192.0.2.9"
        fallthrough more.in.lan.test
    }
    template IN A wrong.test {
        var n int(group(1))
        match "^([^.]*)[.]wrong[.]"
        answer "{{ .Name }} A 192.0.2.{{ .Var.n }}"
        fallthrough
    }
    template IN A x.meta.test {
        answer "{{ .Name }} A 192.0.2.1"
    }
    whoami
}
kept.test:$dns {
    bind 127.0.0.1
    metadata
    cache
    template IN A kept.test {
        match ^client[.]
        var ip client_ip()
        expr ip == '127.0.0.2'
        answer "{{ .Name }} A 192.0.2.2"
        fallthrough
    }
    template IN A kept.test {
        match ^way[.]
        expr proto() == 'tcp'
        answer "{{ .Name }} A 192.0.2.2"
        fallthrough
    }
    template IN A kept.test {
        match ^metadata[.]
        expr metadata('kubernetes/namespace') == ''
        answer "{{ .Name }} A 192.0.2.2"
        fallthrough
    }
    template IN A kept.test {
        match ^local[.]
        expr client_ip() == '127.0.0.2'
        answer "{{ .Name }} A 192.0.2.2"
        fallthrough
    }
    hosts {
        192.0.2.1 local.kept.test
        fallthrough
    }
    forward . 127.0.0.5:$dns
}
kept.test:$dns {
    bind 127.0.0.5
    template IN A {
        answer "{{ .Name }} A 192.0.2.1"
    }
}
elsewhere.invalid:$dns {
    bind 127.0.0.1
    acl {
        block
    }
}
cluster.local:$dns {
    bind 127.0.0.1
    metadata
    prometheus $host:$metrics
    template IN TXT svc.cluster.local {
        answer "{{ .Name }} TXT \\"{{ .Meta `kubernetes/namespace` }}|{{ .Meta `a/b` }}\\""
    }
    kubernetes cluster.local {
        manifests $manifests
    }
}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("template"), corefile=COREFILE) as running:
        yield running


def answer(server: Server, name: str, rdtype: str = "A", **options: Any) -> tuple[str, list[str]]:
    """Response code, and all records."""
    found = server.query(name, rdtype, **options)
    sections = found.answer + found.authority + found.additional
    return dns.rcode.to_text(found.rcode()), [record for rrset in sections for record in str(rrset).split("\n")]


NS = ["a.test. 60 IN NS ns.a.test.", "ns.a.test. 60 IN A 192.0.2.53", "ns.a.test. 60 IN AAAA ::1"]


@pytest.mark.parametrize("tcp", [False, True])
def test_records_are_made_of_what_matches(server: Server, tcp: bool) -> None:
    for name in ("x7.a.test.", "Y7.A.test."):
        made = [f"{name.lower()} 60 IN A 10.0.0.7", f"{name.lower()} 60 IN A 10.0.0.9", *NS]
        code, records = answer(server, name, tcp=tcp, use_edns=0)
        assert (code, [record.lower() for record in records]) == ("NOERROR", [record.lower() for record in made])
    assert answer(server, "x7.a.test", "ANY")[1] == answer(server, "x7.a.test", "A")[1]
    assert server.query("x7.a.test").flags & dns.flags.AA


def test_an_extended_error_is_for_those_who_speak_edns(server: Server) -> None:
    found = server.query("x7.a.test", use_edns=0)
    (option,) = found.options
    assert isinstance(option, dns.edns.EDEOption)
    assert (option.code, option.text) == (21, "why not")
    assert server.query("x7.a.test", use_edns=False).edns == -1


@pytest.mark.parametrize(("payload", "size"), [(512, 0), (1232, 900)])
def test_the_text_of_an_extended_error_is_left_out_where_it_has_no_room(payload: int, size: int) -> None:
    asked = query("a.test", use_edns=0, payload=payload)
    made = answered(handler(f'template IN A {{\nrcode NXDOMAIN\nederror 15 "{"x" * 900}"\n}}'), asked)
    (option,) = read(asked, made).options
    assert isinstance(option, dns.edns.EDEOption)
    assert (option.code, len(option.text or "")) == (15, size)
    assert len(message.encode(asked, made).wire) <= payload


def test_a_name_without_a_match_falls_through_where_that_is_said(server: Server) -> None:
    assert answer(server, "q.a.test") == ("SERVFAIL", [])
    code, records = answer(server, "q.z.a.test")
    assert code == "NOERROR"
    assert any("SRV" in record for record in records)  # of whoami
    assert any("SRV" in record for record in answer(server, "x1.a.test", "AAAA")[1])
    assert any("SRV" in record for record in answer(server, "a.tes", "A")[1])


def test_a_denial_for_all_types(server: Server) -> None:
    soa = "gone.test. 60 IN SOA ns.gone.test. hm.gone.test. 1 60 60 60 60"
    for rdtype in ("A", "TXT", "TYPE65280", "ANY"):
        assert answer(server, "a.gone.test", rdtype) == ("NXDOMAIN", [soa])


def test_what_a_template_sees(server: Server) -> None:
    code, records = answer(server, "Ab.txt.Test", "TXT")
    assert code == "NOERROR"
    assert [record.partition(" ")[2] for record in records] == [
        '3600 IN TXT "ab" "txt.test.|txt.test.|IN|TXT"',
        '5 IN TXT "Ab.txt.Test.|16|^(?P<first>.*)[.](txt[.]test[.])$"',
    ]


def test_names_with_all_that_a_label_can_have(server: Server) -> None:
    """They are in templates as they are written in master files."""
    for label, shown in (
        (r"a\.b", "a.b"),
        (r"a\"b", r"a\"b"),
        (r"a\032b", "a b"),
        (r"a\\b", r"a\\b"),
        (r"\255", r"\255"),
    ):
        code, records = answer(server, f"{label}.txt.test", "TXT")
        assert code == "NOERROR", label
        assert f'TXT "{shown}" "txt.test.|' in records[0]


def test_a_template_that_makes_no_record_is_servfail_logged_and_counted(server: Server) -> None:
    before = server.metrics()
    assert answer(server, "x777.a.test") == ("SERVFAIL", [])
    assert answer(server, "a.fails.test") == ("SERVFAIL", [])
    after = server.metrics()
    labels = {"server": f"dns://127.0.0.1:{server.port}", "view": "", "class": "IN", "type": "A", "section": "answer"}

    def more(what: str, **more: str) -> float:
        name = f"coredns_template_{what}_total"
        return after.value(name, **labels | more) - before.value(name, **labels | more)

    made = "{{.Name}} 60 IN A 10.0.0.{{.Group.n}}"
    assert more("rr_failures", zone="a.test.", template=made) == 1
    assert more("template_failures", zone="fails.test.", template="{{.Name}} A {{index .Match 7}}") == 1
    assert f'2 x777.a.test. A: the template "{made}" makes "x777.a.test. 60 IN A 10.0.0.777"' in server.log
    assert 'a.fails.test. A: the template "{{.Name}} A {{index .Match 7}}" fails: the index 7 is out' in server.log


def test_matches_are_counted(server: Server) -> None:
    before = server.metrics()
    answer(server, "1.gone.test", "A")
    answer(server, "2.gone.test", "TYPE65280")
    after = server.metrics()
    for rdtype in ("A", ""):
        labels = {
            "server": f"dns://127.0.0.1:{server.port}",
            "zone": "gone.test.",
            "view": "",
            "class": "IN",
            "type": rdtype,
        }
        name = "coredns_template_matches_total"
        assert after.value(name, **labels) - before.value(name, **labels) == 1


def test_response_codes(server: Server) -> None:
    found = server.query("a.servfail.test", use_edns=0)
    assert (found.rcode(), found.options) == (dns.rcode.SERVFAIL, ())
    assert answer(server, "a.codes.test", use_edns=0)[0] == "BADCOOKIE"


def test_an_alias_is_followed_through_this_server(server: Server) -> None:
    made = ["x1.a.test. 60 IN A 10.0.0.1", "x1.a.test. 60 IN A 10.0.0.9"]
    assert answer(server, "ours.alias.test") == ("NOERROR", ["ours.alias.test. 60 IN CNAME x1.a.test.", *made])
    alone = ["nobody.alias.test. 60 IN CNAME www.elsewhere.invalid."]
    assert answer(server, "nobody.alias.test", "TXT") == ("NOERROR", alone)
    for name in ("fails.alias.test", "nobody.alias.test"):
        assert answer(server, name) == ("SERVFAIL", []), name


def test_an_alias_of_itself_ends(server: Server) -> None:
    code, records = answer(server, "self.alias.test")
    assert (code, records) == ("NOERROR", ["self.alias.test. 60 IN CNAME self.alias.test."])


def test_aliases_that_lead_to_as_many_each_end_soon(server: Server) -> None:
    name = "coredns_template_matches_total"
    before = server.metrics().value(name, zone="alias.test.")
    assert answer(server, "many.alias.test")[0] == "NOERROR"
    assert 10 < server.metrics().value(name, zone="alias.test.") - before < 200


def test_metadata(server: Server) -> None:
    name = "web.default.svc.cluster.local"
    assert answer(server, name, "TXT") == ("NOERROR", [f'{name}. 3600 IN TXT "default|"'])


@pytest.mark.parametrize(
    ("name", "code", "records"),
    [
        ("10-1-2-3.lan.test", "NOERROR", ["10.1.2.3", "192.0.2.33"]),
        ("192-168-2-1.lan.test", "NOERROR", ["192.168.2.1", "192.0.2.13"]),
        ("8-8-8-8.lan.test", "SERVFAIL", []),
        ("8-8-8-8.in.lan.test", "SERVFAIL", []),
        ("9-9-9-9.in.lan.test", "NOERROR", ["192.0.2.9"]),
        ("9-9-9-9-9.in.lan.test", "NOERROR", ["192.0.2.9"]),
        ("5.wrong.test", "NOERROR", ["192.0.2.5"]),
        ("x.wrong.test", "SERVFAIL", []),
    ],
)
def test_variables_and_conditions(server: Server, name: str, code: str, records: list[str]) -> None:
    assert answer(server, name) == (code, [f"{name}. 3600 IN A {each}" for each in records])


def test_what_cannot_be_worked_out_says_why() -> None:
    made = handler("template IN A {\nvar n int(name())\n}")
    assert answered(made, query("a.test")).error == "var n cannot be worked out: a.test. is no whole number"
    made = handler("template IN A {\nexpr int(name()) == 1\nfallthrough\n}")
    assert answered(made, query("a.test")).error.startswith('expr "int(name()) == 1" cannot be worked out: a.test. is')


@pytest.mark.parametrize("rdtype", ["A", "ANY"])
def test_what_conditions_do_not_hold_for_goes_on(server: Server, rdtype: str) -> None:
    assert any("SRV" in record for record in answer(server, "8-8-8-8.more.in.lan.test", rdtype)[1])


@pytest.mark.parametrize("name", ["client.kept.test", "local.kept.test", "way.kept.test"])
def test_no_cache_keeps_for_others_what_conditions_have_let_pass(server: Server, name: str) -> None:
    """Not what the template answers, and not what others do where it does not."""

    def found(number: int) -> str:
        ask = dns.query.tcp if name.startswith("way") and number == 2 else dns.query.udp
        asked = dns.message.make_query(name, "A")
        return str(ask(asked, "127.0.0.1", 3, server.port, source=f"127.0.0.{number}").answer[0][0])

    for number in (1, 1, 1, 2, 2, 2, 1, 3, 2, 3, 3):
        assert found(number) == ("192.0.2.2" if number == 2 else "192.0.2.1")


def test_a_condition_that_tells_no_clients_apart_keeps_nothing_from_being_kept(server: Server) -> None:
    def hits() -> tuple[float, float]:
        metrics = server.metrics()
        return metrics.value("kdns_packet_cache_hits_total"), metrics.value("coredns_template_matches_total")

    before = hits()
    assert {answer(server, "10-7-7-7.lan.test")[0] for _ in range(6)} == {"NOERROR"}
    after = hits()
    assert (after[0] - before[0], after[1] - before[1]) == (4, 2)


def test_what_is_made_for_one_query_is_not_kept_for_others(server: Server) -> None:
    for ident in (7, 8, 9, 10):
        asked = dns.message.make_query("a.id.test", "TXT", id=ident)
        found = dns.message.from_wire(server.raw_udp(asked.to_wire()) or b"")
        assert str(found.answer[0][0]) == f'"{ident}" "true" "a.id.test."'
    assert answer(server, "a.remote.test")[1] == ["a.remote.test. 3600 IN A 127.0.0.1"]
    before = server.metrics().value("kdns_packet_cache_hits_total")
    for _ in range(6):
        answer(server, "x200.a.test")
    assert server.metrics().value("kdns_packet_cache_hits_total") - before == 4


def test_counters_have_the_name_of_the_view() -> None:
    ground = Ground()
    text = "template IN A {\nrcode NXDOMAIN\n}"
    answered(template.Handler(options(text, "."), replace(ground.site, view="inner")), query("a.test"))
    labels = ("server", "", "zone", ".", "view", "inner", "class", "IN", "type", "A")
    assert ground.value("count", "coredns_template_matches_total", *labels) == 1


def handler(*directives: str, zones: str = ".") -> template.Handler:
    return template.Handler(template.merge([options(each, zones) for each in directives]), Ground().site)


@pytest.mark.parametrize(
    ("use", "cacheable"),
    [
        (".Name", True),
        (".Question.Name", True),
        ("with .Name }}{{ . }}{{ end", True),
        (".Remote", False),
        (".Message.Id", False),
        ('.Meta "a/b"', False),
        ("with . }}{{ .Remote }}{{ end", False),
        ("range .Match }}{{ with $ }}{{ .Remote }}{{ end }}{{ end", False),
        ("$x := . }}{{ $x.Message.Id", False),
        ("(or $).Remote", False),
        ('(and . $).Meta "a/b"', False),
    ],
)
def test_whether_an_answer_may_be_kept(use: str, cacheable: bool) -> None:
    made = handler('template IN TXT {\nanswer "{{ .Name }} TXT \\"{{ ' + use.replace('"', '\\"') + ' }}\\""\n}')
    response = answered(made, query("a.test", "TXT"))
    assert response.answer
    assert response.cacheable == cacheable


@pytest.mark.parametrize(
    ("zones", "passes"),
    [("other.test", True), ("cluster.local", False), ("local", False), ("a.cluster.local", False), (".", False)],
)
def test_direct_answers_go_past_it_where_no_template_is_for_them(zones: str, passes: bool) -> None:
    made = handler(f"template IN TXT {zones} {{\nrcode NXDOMAIN\n}}")
    assert (made.passing(names.from_text("cluster.local"), "dns://:53") == ()) == passes


def test_what_is_asked_for_an_alias_is_asked_of_the_server() -> None:
    asked: list[Query] = []

    async def ask(question: Query) -> Response:
        asked.append(question)
        address = RRset(rr.A, 9, (rr.address("192.0.2.1"),))
        return Response(answer=[(question.lname, address)], plugin="there", set_flags=message.TC, cacheable=True)

    text = 'template IN A {\nanswer "{{ .Name }} CNAME b.test" "{{ .Name }} CNAME c.test"\n}'
    made = template.Handler(options(text, "."), Ground(ask=ask).site)
    question = query("a.test")
    response = answered(made, question)
    assert [each.lname for each in asked] == [b"\1b\4test\0", b"\1c\4test\0"]
    assert [each.links for each in asked] == [1, 6]
    assert not response.cacheable
    found = read(question, response)
    assert found.flags & dns.flags.TC
    assert [owner for owner, _ in response.answer] == [b"\1a\4test\0", b"\1b\4test\0", b"\1c\4test\0"]


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("a.test. 60 IN A 192.0.2.1", ("a.test.", "A", 60, "192.0.2.1")),
        ("A.test IN 60 A 192.0.2.1", ("a.test.", "A", 60, "192.0.2.1")),
        ("a A 192.0.2.1", ("a.", "A", 3600, "192.0.2.1")),
        ("a 1h A 192.0.2.1 ; why", ("a.", "A", 3600, "192.0.2.1")),
        ("a 5 A 192.0.2.1\nb 5 A 192.0.2.2", ("a.", "A", 5, "192.0.2.1")),
        ("a 5 HTTPS 1 . alpn=h2", ("a.", "HTTPS", 5, '1 . alpn="h2"')),
        (r"a 5 TYPE65280 \# 2 abcd", ("a.", "TYPE65280", 5, r"\# 2 abcd")),
        (f"a 5 TXT {'x' * 254}\\234y", ("a.", "TXT", 5, f'"{"x" * 254}\\234" "y"')),
        (". 5 MX 10 mx", (".", "MX", 5, "10 mx.")),
    ],
)
def test_a_record_is_what_a_master_file_has(text: str, made: tuple[str, str, int, str]) -> None:
    owner, rrset = template.record(text)
    question = query(names.to_text(owner), made[1])
    found = read(question, Response(answer=[(owner, rrset)])).answer[0]
    assert (str(found.name), rr.type_text(found.rdtype), found.ttl, str(found[0])) == made


@pytest.mark.parametrize(
    "text",
    [
        "", "  ", "a", "a 60", "a IN", "a A", "a A 192.0.2.256", "a A 192.0.2.1 x", "a..b A 192.0.2.1",
        "a ANY 1", "a 60 IN OPT", "a NOTYPE x", "$INCLUDE /etc/passwd", f"{'x' * 64} A 192.0.2.1", 'a TXT "x',
        "a 4294967296 A 192.0.2.1", r"a TXT \300", "a SOA a b 1 2 3", f"a TXT {'x' * 70000}", "; nothing",
        "a A \udcff", " 60 A 192.0.2.1",
    ],
)  # fmt: skip
def test_what_is_no_record_says_so(text: str) -> None:
    with pytest.raises(TemplateError):
        template.record(text)


@given(st.text(max_size=40))
def test_whatever_a_template_makes_is_a_record_or_says_that_it_is_none(text: str) -> None:
    for line in (text, f"a 60 IN {text}", f"{text} A 192.0.2.1", f"a TXT {text}"):
        try:
            owner, rrset = template.record(line)
        except TemplateError:
            continue
        assert len(owner) <= 255
        assert read(query("a.test", use_edns=0), Response(answer=[(owner, rrset)])).answer is not None


@given(st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=4))
def test_no_name_breaks_a_template(labels: list[bytes]) -> None:
    name = names.join([*labels, b"test"])
    data = message.HEADER.pack(1, message.RD, 1, 0, 0, 0) + name + b"\0\x10\0\1"
    asked = message.parse(data, "udp", CLIENT, ("192.0.2.1", 53), message.DEFAULT_UDP)
    made = handler(
        'template IN TXT test {\nmatch "^(.*)[.]test[.]$"\n'
        'answer "{{ .Name }} TXT x" "x TXT {{ .Group.x }}{{ index .Match 1 }}"\n}'
    )
    response = answered(made, asked, Behind())
    assert response.rcode in (rr.NOERROR, rr.SERVFAIL)
    assert response.answer[0][0] == name.lower() if response.answer else response.error
    read(asked, response)


@pytest.mark.parametrize(
    ("directive", "messages"),
    [
        ("template", ["1: template has 0 arguments"]),
        ("template IN", ["1: template has 1 argument"]),
        ("template CH TXT", ['1: template: "CH" is not known']),
        ("template IN WHAT", ['1: template: "WHAT" is no record type']),
        ("template IN A a..b", ['1: template: zone "a..b" has an empty label, or is too long']),
        ("template IN A {\nmatch\n}", ['2: template: "match" has 0 arguments']),
        ("template IN A {\nmatch (\n}", ['2: template: "(" is no expression: missing ): (']),
        ('template IN A {\nanswer "{{ .Foo }}"\n}', ['2: template: template "{{ .Foo }}": .Foo is not supported']),
        ("template IN A {\nauthority {{\n}", ['2: template: template "{{": an action has no end']),
        ("template IN A {\nrcode WHAT\n}", ['2: template: "WHAT" is not known']),
        ("template IN A {\nrcode\n}", ['2: template: "rcode" has 0 arguments']),
        ("template IN A {\nederror x\n}", ['2: template: "x" is not a whole number']),
        (f"template IN A {{\nederror 1 {'x' * 901}\n}}", ["2: template: the reason has 901 bytes"]),
        ("template IN A {\nederror 1 2 3\n}", ['2: template: "ederror" has 3 arguments']),
        ("template IN A {\nvar x\n}", ['2: template: "var" has 1 argument']),
        ("template IN A {\nexpr\n}", ['2: template: "expr" has 0 arguments']),
        ('template IN A {\nvar "" 1\n}', ["2: template: a variable has an empty name"]),
        ("template IN A {\nvar 1a 1\n}", ['2: template: "1a" is no name of a variable']),
        ("template IN A {\nvar group 1\n}", ['2: template: "group" has a meaning already']),
        ("template IN A {\nvar len 1\n}", ['2: template: "len" has a meaning already']),
        ("template IN A {\nvar true 1\n}", ['2: template: "true" has a meaning already']),
        ("template IN A {\nvar a 1\nvar a 2\n}", ['3: template: "a" has a meaning already']),
        (
            "template IN A {\nexpr a == 1\nvar a 1\n}",
            ['2: template: character 1 of the expression: "a" is not known'],
        ),
        (
            "template IN A {\nvar a 1\nexpr a == 'x'\n}",
            ['3: template: character 3 of the expression: "==" between int and string'],
        ),
        ("template IN A {\nexpr name()\n}", ["2: template: the expression is string and no condition"]),
        ("template IN A {\nttl 5\n}", ['2: template has no option "ttl"']),
    ],
)  # fmt: skip
def test_mistakes(directive: str, messages: list[str]) -> None:
    assert refused(directive) == messages
