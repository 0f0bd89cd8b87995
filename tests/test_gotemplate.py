"""Templates are read and run as Go's text/template does it. What is expected here is what Go made of the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdns.corefile import gotemplate
from kdns.corefile.goformat import Unsigned, printed, sprintf
from kdns.corefile.gotemplate import LEAF, MAP, METHOD, Shape, Struct, parse
from kdns.errors import ConfigValueError, TemplateError

SHAPE: Shape = {
    **dict.fromkeys(("Name", "Zone", "Regex", "Match", "Class", "Type", "Remote"), LEAF),
    "Group": MAP,
    "Meta": METHOD,
    "Message": {"Id": LEAF, "RecursionDesired": LEAF, "Question": LEAF},
    "Question": {"Name": LEAF, "Qtype": LEAF, "Qclass": LEAF},
}
QUESTION = Struct("Question", {"Name": "WWW.a.test.", "Qtype": Unsigned(1), "Qclass": Unsigned(1)})
DATA = Struct(
    "the data",
    {
        "Name": "www.a.test.",
        "Zone": "a.test.",
        "Regex": ".*",
        "Match": ["www.a.test.", "ww", "7"],
        "Group": {"0": "www.a.test.", "1": "ww", "x": "ww", "n": "7", "e": ""},
        "Class": "IN",
        "Type": "A",
        "Remote": "192.0.2.7",
        "Question": QUESTION,
        "Message": Struct("Message", {"Id": Unsigned(77), "RecursionDesired": True, "Question": [QUESTION]}),
        "Meta": lambda label: "meta" if label == "a/b" else "",
    },
)
MADE = [
    ("plain", "plain"),
    ("{{ .Name }} 60 IN A 10.{{ .Group.x }}", "www.a.test. 60 IN A 10.ww"),
    ('{{.Group.nope}}|{{index .Group "nope"}}|{{ .Group.e }}', "<no value>||"),
    ("{{index .Match 0}}-{{index .Match 2}}", "www.a.test.-7"),
    ("{{ parseInt .Group.n 10 8 }}", "7"),
    ('{{ parseInt "0x1f" 0 64 }} {{ parseInt "017" 0 64 }}', "31 15"),
    ('{{ parseInt "0b11" 0 64 }} {{ parseInt "1_000" 0 64 }}', "3 1000"),
    ("a {{- .Name -}} b", "awww.a.test.b"),
    ("a  {{- /* c */ -}}  b", "ab"),
    ("a {{/* c */}} b", "a  b"),
    ('{{- if eq .Class "IN" }}yes{{ else }}no{{ end -}}', "yes"),
    ("{{ if .Group.e }}a{{ else if .Group.x }}b{{ else }}c{{ end }}", "b"),
    ("{{ with .Group.x }}[{{ . }}]{{ end }}{{ with .Group.e }}x{{ else }}empty{{ end }}", "[ww]empty"),
    ("{{ with .Group.e }}x{{ else with .Group.n }}{{ . }}{{ end }}", "7"),
    ("{{ range $i, $m := .Match }}{{ $i }}={{ $m }};{{ end }}", "0=www.a.test.;1=ww;2=7;"),
    ("{{ range .Match }}{{ . }},{{ else }}none{{ end }}", "www.a.test.,ww,7,"),
    ("{{ range $k, $v := .Group }}{{ $k }}:{{ $v }} {{ end }}", "0:www.a.test. 1:ww e: n:7 x:ww "),
    ("{{ range $v := .Group }}{{ $v }} {{ end }}", "www.a.test. ww  7 ww "),
    ("{{ range 3 }}{{ . }}{{ end }}", "012"),
    ("{{ range $i := 3 }}{{ $i }}{{ end }}", "012"),
    ("{{ range $i, $m := .Match }}{{ if eq $i 1 }}{{ continue }}{{ end }}{{ $m }}{{ end }}", "www.a.test.7"),
    ("{{ range .Match }}{{ break }}{{ end }}x", "x"),
    ('{{ $x := .Name }}{{ $x }}{{ $x = "b" }}{{ $x }}', "www.a.test.b"),
    ("{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ $y := 3 }}{{ end }}{{ $x }}", "2"),
    ("{{ $.Name }} {{ range .Match }}{{ $.Zone }}{{ end }}", "www.a.test. a.test.a.test.a.test."),
    ("{{ .Match }} {{ .Group }}", "[www.a.test. ww 7] map[0:www.a.test. 1:ww e: n:7 x:ww]"),
    ('{{ print 1 2 "a" 3 4 }} {{ print "a" "b" }} {{ println 1 "a" }}', "1 2a3 4 ab 1 a\n"),
    (
        '{{ printf "%s-%d-%03d-%x-%q-%v" .Name 5 7 255 "a\\"b" .Match }}',
        'www.a.test.-5-007-ff-"a\\"b"-[www.a.test. ww 7]',
    ),
    (
        '{{ printf "%d" .Name }} {{ printf "%s" 5 }} {{ printf "%s" }}',
        "%!d(string=www.a.test.) %!s(int=5) %!s(MISSING)",
    ),
    ('{{ printf "x" 1 }} {{ printf "%" }} {{ printf "%z" 1 }}', "x%!(EXTRA int=1) %!(NOVERB) %!z(int=1)"),
    (
        '{{ printf "%5s|%-5s|%.2s|%05d|%+d|% d|%x|%X" "ab" "ab" "abc" 42 42 42 "hi" "hi" }}',
        "   ab|ab   |ab|00042|+42| 42|6869|6869",
    ),
    ('{{ printf "%#x|%08b|%o|%c|%U|%t" 255 5 8 65 65 true }}', "0xff|00000101|10|A|U+0041|true"),
    ('{{ printf "%d" (parseInt "5" 10 8) }} {{ printf "%s" (parseInt "5" 10 8) }}', "5 %!s(uint64=5)"),
    ('{{ printf "%v %v %v" 1.5 1000000.0 0.00001 }} {{ 1e3 }} {{ 1.0 }}', "1.5 1e+06 1e-05 1000 1"),
    ("{{ 123456789.0 }} {{ 1e21 }} {{ 1e20 }} {{ 0.1 }}", "1.23456789e+08 1e+21 1e+20 0.1"),
    (
        '{{ printf "%f %.2f %e %g %6.2f|%-8.1f|" 1.5 1.555 12345.678 0.1 3.14159 2.0 }}',
        "1.500000 1.55 1.234568e+04 0.1   3.14|2.0     |",
    ),
    ("{{ slice .Name 0 3 }} {{ slice .Match 1 2 }} {{ slice .Name 4 }}", "www [ww] a.test."),
    ("{{ index .Name 0 }}", "119"),
    ('{{ and 1 0 "x" }} {{ or 0 "" "y" }} {{ not .Group.e }} {{ and .Group.x .Group.n }}', "0 y true 7"),
    (
        '{{ eq 1 1 }} {{ eq "a" "b" "a" }} {{ ne 1 2 }} {{ lt 1 2 }} {{ le 2 2 }} {{ gt "b" "a" }} {{ ge 1 2 }}',
        "true true true true true true false",
    ),
    ('{{ eq .Group.nope "x" }} {{ eq .Group.nope .Group.nope2 }}', "false true"),
    ('{{ lt (parseInt "5" 10 8) 6 }} {{ eq (parseInt "5" 10 8) 5 }}', "true true"),
    ('{{ .Name | printf "%s!" | len }}', "12"),
    ("{{ (index .Message.Question 0).Name }} {{ .Question.Name }} {{ .Question.Qtype }}", "WWW.a.test. WWW.a.test. 1"),
    ("{{ .Message.Id }} {{ .Message.RecursionDesired }}", "77 true"),
    ('{{ .Meta "a/b" }} {{ .Meta "x" }} {{ "a/b" | .Meta }}', "meta  meta"),
    ("{{ true }} {{ false | not }}", "true true"),
    ("{{ 'a' }} {{ '\\n' }} {{ 0x1F }} {{ 0b11 }} {{ 1_000 }} {{ -5 }} {{ +5 }} {{ 017 }}", "97 10 31 3 1000 -5 5 15"),
    ('{{ "a\\tb\\x41\\u00e9\\101" }} {{ `raw\\n` }}', "a\tbAéA raw\\n"),
    ("{{- 3}} {{-3}}", "3 -3"),
    ('{{ (print 1) }} {{ (len "abc") }}', "1 3"),
    ('{{ printf "%s" (printf "%d" 5) }}', "5"),
    ('{{ if and (eq .Class "IN") (ne .Type "AAAA") }}ok{{ end }}', "ok"),
    ('{{ if not (eq .Type "A") }}ok{{ else }}A{{ end }}', "A"),
    ("{{ with $x := .Name }}{{ $x }}{{ . }}{{ end }}", "www.a.test.www.a.test."),
    ("{{ if $x := .Group.n }}{{ $x }}{{ end }}", "7"),
    ("{{ with .Question }}{{ .Name }}{{ end }}", "WWW.a.test."),
    ("{{ with .Group }}{{ .x }}{{ .nope }}{{ end }}", "ww<no value>"),
    ('{{ index .Group "x" 0 }}', "119"),
    ("{{ index .Match }}", "[www.a.test. ww 7]"),
    (
        '{{ print }} {{ print nil }} {{ printf "%v" nil }} {{ print .Group.nope }} {{ printf "%s" .Group.nope }}',
        " <nil> <nil> <nil> %!s(<nil>)",
    ),
    ("{{ .Group.nope.foo }}", "<no value>"),
    ("{{.Name|len}}", "11"),
    ("{{ $x:=1 }}{{$x}}", "1"),
    ('{{ if true }}{{ end }} }} {{ "}}" }}', " }} }}"),
    (
        '{{ printf "%v %d %s" .Group .Match .Match }}',
        "map[0:www.a.test. 1:ww e: n:7 x:ww] [%!d(string=www.a.test.) %!d(string=ww) %!d(string=7)] [www.a.test. ww 7]",
    ),
    ('{{ printf "%6.3d|%x|%X|% x|%#x" 7 -255 "az" "abc" "abc" }}', "   007|-ff|617A|61 62 63|0x616263"),
    ('{{ printf "%05s|%5t|%-7t|" "ab" true false }}', "000ab| true|false  |"),
    ("{{ eq nil nil }}", "true"),
    ("{{ slice .Match 0 2 3 }} {{ slice .Match }}", "[www.a.test. ww] [www.a.test. ww 7]"),
    ("{{ $x := index .Match 1 }}{{ $x }}{{ with $x }}{{ . }}{{ end }}", "wwww"),
    ('{{ .Name -}}   \n  x {{- " y" }}', "www.a.test.x y"),
    ('{{ 5 | printf "%d %d" 3 }}', "3 5"),
    ('{{ $x := "" }}{{ range $x = .Match }}{{ end }}{{ $x }}', "7"),
    ("{{ 9223372036854775807 }} {{ -9223372036854775808 }}", "9223372036854775807 -9223372036854775808"),
    ("{{ (.Name) }} {{ ((.Name)) }}", "www.a.test. www.a.test."),
    ("{{ if (eq 1 1) }}x{{end}}", "x"),
    ("{{/*a*/}}{{/* b\nc */ -}}   x", "x"),
    ("{{ if 0 }}a{{ end }}{{ if 0.0 }}b{{ end }}{{ if .Match }}c{{ end }}", "c"),
    ("{{ if .Question }}d{{ end }}", "d"),
    ('{{ define "x" }}[{{ . }}]{{ end }}{{ template "x" .Zone }}{{ template `x` 5 }}', "[a.test.][5]"),
    ('{{ template "x" . }}{{ define "x" }}{{ .Name }}{{ $.Zone }}{{ end }}', "www.a.test.a.test."),
    ('{{ define "x" }}{{ . }}{{ end }}a{{ template "x" }}', "a<no value>"),
    ('{{ $y := 1 }}{{ block "x" .Match }}{{ range . }}{{ . }},{{ end }}{{ end }}{{ $y }}', "www.a.test.,ww,7,1"),
    ('{{ define "x" }}a{{ end }}{{ define "x" }} {{ end }}{{ template "x" }}', "a"),
    ('{{ define "x" }} {{ end }}{{ define "x" }}a{{ end }}{{ template "x" }}', "a"),
    (
        '{{ define "down" }}{{ . }}{{ if ne . "" }}{{ template "down" (slice . 1) }}{{ end }}{{ end }}'
        '{{ template "down" "abc" }}',
        "abcbcc",
    ),
    ('{{ define "x" }}{{ template "y" . }}!{{ end }}{{ define "y" }}{{ . }}{{ end }}{{ template "x" .Class }}', "IN!"),
    (
        "{{ range .Match }}{{ template `x` . }}{{ end }}{{ define `x` }}{{ range 2 }}{{ break }}{{ end }}.{{ end }}",
        "...",
    ),
    ('{{ html "<a b=\'c\'>" "&" }} {{ "\\"" | html }} {{ html 5 6 }}', "&lt;a b=&#39;c&#39;&gt;&amp; &#34; 5 6"),
    ('{{ js "a\\"b\'c<d>&=\\n\\\\" }}', "a\\\"b\\'c\\u003Cd\\u003E\\u0026\\u003D\\u000A\\\\"),
    ('{{ urlquery "a b/c?d=é~*" }} {{ urlquery .Group.n }}', "a+b%2Fc%3Fd%3D%C3%A9~%2A 7"),
]
WRITTEN_BY_GO = [
    ("a {{- .Name -}} b", "a{{.Name}}b"),
    ("a  {{- /* c */ -}}  b", "ab"),
    ('{{- if eq .Class "IN" }}yes{{ else }}no{{ end -}}', '{{if eq .Class "IN"}}yes{{else}}no{{end}}'),
    (
        "{{ if .Group.e }}a{{ else if .Group.x }}b{{ else }}c{{ end }}",
        "{{if .Group.e}}a{{else}}{{if .Group.x}}b{{else}}c{{end}}{{end}}",
    ),
    ("{{ range $i, $m := .Match }}{{ $i }}={{ $m }};{{ end }}", "{{range $i, $m := .Match}}{{$i}}={{$m}};{{end}}"),
    ("{{ range .Match }}{{ . }},{{ else }}none{{ end }}", "{{range .Match}}{{.}},{{else}}none{{end}}"),
    ("{{ range $k, $v := .Group }}{{ $k }}:{{ $v }} {{ end }}", "{{range $k, $v := .Group}}{{$k}}:{{$v}} {{end}}"),
    ("{{ range $v := .Group }}{{ $v }} {{ end }}", "{{range $v := .Group}}{{$v}} {{end}}"),
    ("{{ range 3 }}{{ . }}{{ end }}", "{{range 3}}{{.}}{{end}}"),
    ("{{ range $i := 3 }}{{ $i }}{{ end }}", "{{range $i := 3}}{{$i}}{{end}}"),
    (
        "{{ range $i, $m := .Match }}{{ if eq $i 1 }}{{ continue }}{{ end }}{{ $m }}{{ end }}",
        "{{range $i, $m := .Match}}{{if eq $i 1}}{{continue}}{{end}}{{$m}}{{end}}",
    ),
    ("{{ range .Match }}{{ break }}{{ end }}x", "{{range .Match}}{{break}}{{end}}x"),
    ('{{ $x := .Name }}{{ $x }}{{ $x = "b" }}{{ $x }}', '{{$x := .Name}}{{$x}}{{$x = "b"}}{{$x}}'),
    (
        "{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ $y := 3 }}{{ end }}{{ $x }}",
        "{{$x := 1}}{{if true}}{{$x = 2}}{{$y := 3}}{{end}}{{$x}}",
    ),
    ("{{ $.Name }} {{ range .Match }}{{ $.Zone }}{{ end }}", "{{$.Name}} {{range .Match}}{{$.Zone}}{{end}}"),
    (
        '{{ printf "%s-%d-%03d-%x-%q-%v" .Name 5 7 255 "a\\"b" .Match }}',
        '{{printf "%s-%d-%03d-%x-%q-%v" .Name 5 7 255 "a\\"b" .Match}}',
    ),
    (
        '{{ printf "%5s|%-5s|%.2s|%05d|%+d|% d|%x|%X" "ab" "ab" "abc" 42 42 42 "hi" "hi" }}',
        '{{printf "%5s|%-5s|%.2s|%05d|%+d|% d|%x|%X" "ab" "ab" "abc" 42 42 42 "hi" "hi"}}',
    ),
    (
        '{{ printf "%f %.2f %e %g %6.2f|%-8.1f|" 1.5 1.555 12345.678 0.1 3.14159 2.0 }}',
        '{{printf "%f %.2f %e %g %6.2f|%-8.1f|" 1.5 1.555 12345.678 0.1 3.14159 2.0}}',
    ),
    (
        "{{ 'a' }} {{ '\\n' }} {{ 0x1F }} {{ 0b11 }} {{ 1_000 }} {{ -5 }} {{ +5 }} {{ 017 }}",
        "{{'a'}} {{'\\n'}} {{0x1F}} {{0b11}} {{1_000}} {{-5}} {{+5}} {{017}}",
    ),
    ("{{- 3}} {{-3}}", "{{3}} {{-3}}"),
    (
        '{{ if and (eq .Class "IN") (ne .Type "AAAA") }}ok{{ end }}',
        '{{if and (eq .Class "IN") (ne .Type "AAAA")}}ok{{end}}',
    ),
    ('{{ if not (eq .Type "A") }}ok{{ else }}A{{ end }}', '{{if not (eq .Type "A")}}ok{{else}}A{{end}}'),
    ("{{ with $x := .Name }}{{ $x }}{{ . }}{{ end }}", "{{with $x := .Name}}{{$x}}{{.}}{{end}}"),
    ("{{ if $x := .Group.n }}{{ $x }}{{ end }}", "{{if $x := .Group.n}}{{$x}}{{end}}"),
    ("{{ $x:=1 }}{{$x}}", "{{$x := 1}}{{$x}}"),
    ('{{ if true }}{{ end }} }} {{ "}}" }}', '{{if true}}{{end}} }} {{"}}"}}'),
    (
        '{{ printf "%6.3d|%x|%X|% x|%#x" 7 -255 "az" "abc" "abc" }}',
        '{{printf "%6.3d|%x|%X|% x|%#x" 7 -255 "az" "abc" "abc"}}',
    ),
    ('{{ printf "%05s|%5t|%-7t|" "ab" true false }}', '{{printf "%05s|%5t|%-7t|" "ab" true false}}'),
    (
        "{{ $x := index .Match 1 }}{{ $x }}{{ with $x }}{{ . }}{{ end }}",
        "{{$x := index .Match 1}}{{$x}}{{with $x}}{{.}}{{end}}",
    ),
    ('{{ .Name -}}   \n  x {{- " y" }}', '{{.Name}}x{{" y"}}'),
    ('{{ $x := "" }}{{ range $x = .Match }}{{ end }}{{ $x }}', '{{$x := ""}}{{range $x = .Match}}{{end}}{{$x}}'),
    ("{{ 9223372036854775807 }} {{ -9223372036854775808 }}", "{{9223372036854775807}} {{-9223372036854775808}}"),
    ("{{ if (eq 1 1) }}x{{end}}", "{{if (eq 1 1)}}x{{end}}"),
    ("{{/*a*/}}{{/* b\nc */ -}}   x", "x"),
    (
        "{{ if 0 }}a{{ end }}{{ if 0.0 }}b{{ end }}{{ if .Match }}c{{ end }}",
        "{{if 0}}a{{end}}{{if 0.0}}b{{end}}{{if .Match}}c{{end}}",
    ),
    ("{{ if .Question }}d{{ end }}", "{{if .Question}}d{{end}}"),
]
FAILS = [
    "{{index .Match 5}}",
    '{{ parseInt "ff" 16 8 }} {{ parseInt "1ff" 16 8 }}',
    '{{ parseInt "gg" 16 8 }}',
    '{{ parseInt "0x1f" 16 64 }}',
    '{{ parseInt "-1" 10 64 }}',
    "{{ parseInt 5 10 64 }}",
    '{{ parseInt "1" }}',
    "{{ len .Name }} {{ len .Match }} {{ len .Group }} {{ len 5 }}",
    "{{ slice .Name 3 1 }}",
    "{{ slice .Name 0 99 }}",
    '{{ eq 1 "a" }}',
    "{{ eq 1 1.0 }}",
    "{{ lt true false }}",
    "{{ .Meta }}",
    "{{ .Meta 5 }}",
    '{{ .Name "x" }}',
    "{{ with .Name }}{{ .x }}{{ end }}",
    "{{ range .Name }}x{{ end }}",
    "{{ index .Group 1 }}",
    '{{ index .Match "a" }}',
    "{{ len .Group.nope }}",
    "{{ not }}",
    "{{ eq 1 }}",
    "{{ and }}",
    '{{ ge 2 1 }} {{ le "a" "b" }} {{ gt 1.5 1.2 }} {{ lt 1 1.5 }}',
    '{{ le 1 "a" }}',
    "{{ eq .Match .Match }}",
    '{{ ne 1 "a" }}',
    '{{ slice "abc" 0 1 2 }}',
    "{{ .Name . }}",
    "{{ 1 2 }}",
    '{{ "a" "b" }}',
    '{{ len "a" "b" }}',
    "{{ .Group.x.y }}",
    "{{ printf 5 }}",
    "{{ true false }}",
    '{{ define "x" }}{{ .Foo }}{{ end }}{{ template "x" . }}',
    '{{ define "x" }}{{ . }}{{ end }}{{ template "x" . }}',
    '{{ define "x" }}{{ template "x" . }}{{ end }}{{ template "x" . }}',
    '{{ define "x" }}{{ template "y" . }}{{ end }}{{ block "y" . }}{{ range 9 }}{{ template "x" . }}{{ end }}{{ end }}',
]
NO_TEMPLATES = [
    "a {{ /* c */ }} b",
    "{{ break }}",
    "{{ $x }}",
    "{{ if true }}{{ $y := 3 }}{{ end }}{{ $y }}",
    '{{ "a" | "b" }}',
    '{{ "unterminated }}',
    '{{ "bad\\q" }}',
    "{{ .Name",
    "{{ }}",
    "{{}}",
    "{{ end }}",
    "{{ if .Name }}",
    "{{ if }}x{{ end }}",
    "{{ else }}",
    "{{ if .Name }}a{{ else }}b{{ else }}c{{ end }}",
    "{{ foo }}",
    '{{ "a".Foo }}',
    "{{ 1.Foo }}",
    '{{ .Name }}{{ "x"}}{{"y" }}{{-"z"}}',
    "{{ $x, $y := 1 }}",
    "{{ range $a, $b, $c := .Match }}{{ end }}",
    "{{ print(1) }}",
    '{{ print "a"(1) }}',
    "{{ if true }}a{{ else if }}b{{ end }}",
    "{{ with .Name }}a{{ else if .Zone }}b{{ end }}",
    "{{ range .Match }}a{{ else if .Zone }}b{{ end }}",
    "{{ continue }}",
    "{{ range .Match }}{{ end }}{{ break }}",
    "{{ _x }}",
    "{{ .x-y }}",
    "{{ .Name. }}",
    "{{ ..Name }}",
    "{{ % }}",
    "{{ 1e400 }}",
    "{{ 08 }}",
    "{{ ( }}",
    "{{ ) }}",
    "{{ .Name) }}",
    "{{ | len }}",
    "{{/* a }}",
    "{{/* a */ x }}",
    '{{ if true }}{{ define "x" }}{{ end }}{{ end }}',
    '{{ define "x" }}{{ define "y" }}{{ end }}{{ end }}',
    '{{ define "x" }}a',
    "{{ define x }}{{ end }}",
    '{{ define "x" . }}{{ end }}',
    '{{ define "x" }}a{{ end }}{{ define "x" }}b{{ end }}',
    '{{ define "x" }}a{{ else }}{{ end }}',
    '{{ block "x" }}{{ end }}',
    '{{ $y := 1 }}{{ block "x" . }}{{ $y }}{{ end }}',
    '{{ range .Match }}{{ block "x" . }}{{ break }}{{ end }}{{ end }}',
    "{{ template .Name }}",
    '{{ template "x" . . | }}',
]


def numbered(cases: list[object]) -> list[object]:
    return [pytest.param(case, id=str(number)) for number, case in enumerate(cases)]


@pytest.mark.parametrize("case", numbered([*MADE]))
def test_a_template_makes_what_it_makes_in_go(case: tuple[str, str]) -> None:
    text, made = case
    assert parse(text, SHAPE).run(DATA) == made


@pytest.mark.parametrize("case", numbered([*WRITTEN_BY_GO]))
def test_a_template_is_written_as_go_does_it(case: tuple[str, str]) -> None:
    """Metrics have it as a label. What is written so is the same template."""
    text, source = case
    template = parse(text, SHAPE)
    assert str(template) == source
    assert parse(source, SHAPE).run(DATA) == template.run(DATA)


def test_what_is_defined_in_a_template_is_not_written_with_it() -> None:
    template = parse('{{ define `x"` }}a{{ end }}b{{ template `x"` .Name }}{{ block "y" 5 }}{{ end }}', SHAPE)
    assert str(template) == 'b{{template "x\\"" .Name}}{{template "y" 5}}'


@pytest.mark.parametrize("text", numbered([*FAILS]))
def test_what_fails_in_go_fails(text: str) -> None:
    template = parse(text, SHAPE)
    with pytest.raises(TemplateError):
        template.run(DATA)


@pytest.mark.parametrize("text", numbered([*NO_TEMPLATES]))
def test_what_go_does_not_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigValueError):
        parse(text, SHAPE)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{{ .Foo }}", ".Foo is not supported"),
        ("{{ $.Foo }}", ".Foo is not supported"),
        ("{{ range .Match }}{{ $.Foo }}{{ end }}", ".Foo is not supported"),
        ("{{ .Message.Extra }}", ".Message.Extra is not supported"),
        ("{{ .Name.Foo }}", ".Name.Foo: .Name has no fields"),
        ("{{ . }}", ". is not supported by itself"),
        ("{{ $ }}", "$ is not supported by itself"),
        ("{{ .Question }}", ".Question is not supported by itself"),
        ("{{ $.Message }}", "$.Message is not supported by itself"),
        ('{{ template "x" }}', 'the template "x" is not defined'),
        ('{{ block "x" . }}{{ end }}{{ $.Foo }}', ".Foo is not supported"),
        ('{{ template "x" .Foo }}{{ define "x" }}{{ end }}', ".Foo is not supported"),
        ("{{ call .Name }}", "call is not supported"),
        ("{{ foo }}", 'there is no function "foo"'),
        ("{{ nil }}", "nil is no command"),
        ("{{ $x = 1 }}", "the variable $x is not declared"),
        ("{{ 9223372036854775808 }}", '"9223372036854775808" is no number'),
    ],
)
def test_what_is_not_here_is_refused_by_name(text: str, problem: str) -> None:
    with pytest.raises(ConfigValueError) as caught:
        parse(text, SHAPE)
    assert caught.value.message.endswith(f": {problem}")


def test_what_a_template_uses_is_known() -> None:
    text = '{{ .Name }}{{ with .Question }}{{ .Name }}{{ $.Zone }}{{ end }}{{ if len .Match }}{{ .Meta "x" }}{{ end }}'
    assert parse(text, SHAPE).uses == {"Name", "Question", "Zone", "Match", "Meta"}
    for text in ("{{ with . }}{{ .Remote }}{{ end }}", "{{ $x := . }}{{ $x.Remote }}", "{{ (or $ .).Remote }}"):
        assert parse(text, SHAPE).uses == {"Remote"}, text
    for text in ('{{ block "x" . }}{{ .Remote }}{{ end }}', '{{ define "x" }}{{ $.Remote }}{{ end }}'):
        assert parse(text, SHAPE).uses == {"Remote"}, text
    assert parse("plain", SHAPE).uses == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        "{{ " + "(" * 101 + "." + ")" * 101 + " }}",
        "{{ " + "(" * 5000 + "." + ")" * 5000 + " }}",
        "{{ if .Name }}" * 5000 + "{{ end }}" * 5000,
        "{{ if .Name }}" + "{{ else if .Name }}" * 5000 + "{{ end }}",
        "{{ 1" + "0" * 5000 + " }}",
        "{{ 1" + "0" * 5000 + ".5 }}",
    ],
    ids=["parentheses", "many", "if", "else-if", "integer", "float"],
)
def test_a_template_without_measure_is_refused(text: str) -> None:
    with pytest.raises(ConfigValueError):
        parse(text, SHAPE)


def test_a_template_of_some_depth_is_none_of_them() -> None:
    assert parse("{{ if .Name }}" * 50 + "{{ " + "(" * 50 + "1" + ")" * 50 + " }}" + "{{ end }}" * 50, SHAPE).run(
        DATA
    ) == "1"  # fmt: skip
    assert parse("{{ if .Group.e }}" + "{{ else if .Group.e }}" * 99 + "{{ else }}1{{ end }}", SHAPE).run(DATA) == "1"
    assert str(parse("{{ if (eq 1 1) }}{{ end }}" * 500, SHAPE)).startswith("{{if (eq 1 1)}}{{end}}")


@pytest.mark.parametrize(
    "text",
    [
        '{{ $x := "ab" }}{{ range 60 }}{{ $x = print $x $x }}{{ end }}',
        '{{ printf "%' + "9" * 5000 + 'd" 1 }}',
        '{{ printf "%.' + "9" * 5000 + 'd" 1 }}',
    ],
    ids=["print", "width", "precision"],
)
def test_texts_have_an_end_too(text: str) -> None:
    with pytest.raises(TemplateError, match="more than"):
        parse(text, SHAPE).run(DATA)


def test_a_template_that_does_not_end_in_time_fails() -> None:
    loop = parse("{{ range 1000 }}{{ range 1000 }}{{ end }}{{ end }}", SHAPE)
    with pytest.raises(TemplateError, match="more than 100000 steps"):
        loop.run(DATA)
    long = parse('{{ range 1000 }}{{ printf "%999d" 1 }}{{ end }}', SHAPE)
    with pytest.raises(TemplateError, match="more than 65536 characters"):
        long.run(DATA)


@pytest.mark.parametrize("form", ["%*d", "%[1]d", "%T", "%p", "%9999d"])
def test_printf_without_what_is_not_here(form: str) -> None:
    with pytest.raises(TemplateError):
        sprintf(form, [1])


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_written_with_an_exponent_from_a_million_on(value: float) -> None:
    text = printed(value)
    assert float(text) == value
    assert ("e" in text) == (value != 0 and not 1e-4 <= abs(value) < 1e6)


VALUES = st.one_of(
    st.text(), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.none(), st.lists(st.text(max_size=3), max_size=3)
)


@given(st.text(alphabet="%+-# 0.123vsdqxXcbotUeg!", max_size=12), st.lists(VALUES, max_size=3))
def test_printf_makes_a_text_of_anything(form: str, given_values: list[object]) -> None:
    assert isinstance(sprintf(form, given_values), str)


WORDS = [
    "if", "with", "range", "else", "end", ".Name", ".Group.x", "$x", ":=", "=", "|", "(", ")", "index", "printf", "len",
    '"%s"', "0", "1", "nil", ".", "$", "eq", "and", "not", "slice", ".Match", "-", "parseInt", "'a'", "break", ",",
]  # fmt: skip


@settings(max_examples=300)
@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=5), max_size=6), st.lists(st.text(max_size=3), max_size=6))
def test_whatever_is_written_is_refused_fails_or_makes_a_text(actions: list[list[str]], texts: list[str]) -> None:
    text = "".join("{{ " + " ".join(words) + " }}" + "".join(texts[:1]) for words in actions)
    try:
        template = parse(text, SHAPE)
    except ConfigValueError:
        return
    assert str(parse(str(template), SHAPE)) == str(template)
    try:
        made = template.run(DATA)
    except TemplateError:
        return
    assert len(made) <= gotemplate.LONGEST


@given(st.text(max_size=40))
def test_names_of_all_kinds_go_through(name: str) -> None:
    data = Struct("the data", {**DATA.fields, "Name": name, "Match": [name], "Group": {"x": name}})
    text = "{{ .Name }}|{{ index .Match 0 }}|{{ .Group.x }}|{{ len .Name }}"
    size = len(name.encode("utf-8", "surrogateescape"))
    assert parse(text, SHAPE).run(data) == f"{name}|{name}|{name}|{size}"
