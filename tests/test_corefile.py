"""Server blocks, keys, words, variables, and mistakes of the Corefile's syntax."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdns.corefile.config import Directive
from kdns.corefile.parser import Part, parse_text
from kdns.errors import ConfigError, Mistake
from kdns.plugins import load, load_parts, loads


def mistakes(text: str | bytes, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loads(text, environ=environ)
    return [str(mistake) for mistake in caught.value.mistakes]


def keys(text: str, **environ: str) -> list[list[tuple[str, str, int]]]:
    config = loads(text, environ=environ)
    return [[(key.scheme, key.zone, key.port) for key in block.keys] for block in config.blocks]


def words(directive: Directive) -> list[str]:
    return [directive.name.text, *(token.text for token in directive.args)]


def lines(text: str, **environ: str) -> list[list[str]]:
    """The words of the first server block's directives, whatever they are."""
    parsed = parse_text(text, "Corefile", environ, 53)
    assert not parsed.mistakes
    return [words(directive) for directive in parsed.blocks[0].directives]


# -- keys


def test_keys_are_parted_by_spaces_and_commas_also_over_lines() -> None:
    expected = [[("dns", "a.org.", 53), ("dns", "b.org.", 1053), ("dns", "c.org.", 53)]]
    assert keys("a.org, b.org:1053,\nc.org {\nwhoami\n}") == expected
    assert keys("a.org b.org:1053 c.org\n{\nwhoami\n}") == expected


def test_zones_are_in_lower_case_with_their_last_dot() -> None:
    assert keys("Cluster.LOCAL.:5353 {\n}") == [[("dns", "cluster.local.", 5353)]]
    assert keys(". {\n}") == keys(".:53 {\n}") == keys("dns://. {\n}") == [[("dns", ".", 53)]]


def test_a_single_block_goes_without_braces() -> None:
    assert keys("a.org b.org\nwhoami\nerrors {\n stacktrace\n}\nlog") == [
        [("dns", "a.org.", 53), ("dns", "b.org.", 53)]
    ]
    assert lines("a.org\nwhoami\nlog . {common}") == [["whoami"], ["log", ".", "{common}"]]


def test_a_block_may_be_keys_alone() -> None:
    assert keys("a.org") == [[("dns", "a.org.", 53)]]


def test_several_blocks_in_their_order() -> None:
    assert keys("a.org {\n}\nb.org:54 {\nwhoami\n} c.org {\n}") == [
        [("dns", "a.org.", 53)],
        [("dns", "b.org.", 54)],
        [("dns", "c.org.", 53)],
    ]


def test_the_default_port_is_given_by_the_caller() -> None:
    config = loads("a.org b.org:53 {\n}", default_port=1053)
    assert [key.port for key in config.blocks[0].keys] == [1053, 53]


@pytest.mark.parametrize(
    ("text", "zones"),
    [
        ("10.1.2.0/24", ["2.1.10.in-addr.arpa."]),
        ("10.1.2.77/24", ["2.1.10.in-addr.arpa."]),
        ("10.0.0.0/8", ["10.in-addr.arpa."]),
        ("0.0.0.0/0", ["in-addr.arpa."]),
        ("10.1.2.3/32", ["3.2.1.10.in-addr.arpa."]),
        ("10.0.0.0/14", ["0.10.in-addr.arpa.", "1.10.in-addr.arpa.", "2.10.in-addr.arpa.", "3.10.in-addr.arpa."]),
        ("192.168.0.0/23", ["0.168.192.in-addr.arpa.", "1.168.192.in-addr.arpa."]),
        ("10.9.9.8/31", ["8.9.9.10.in-addr.arpa.", "9.9.9.10.in-addr.arpa."]),
        ("2001:db8::/32", ["8.b.d.0.1.0.0.2.ip6.arpa."]),
        ("2001:db8::/31", ["8.b.d.0.1.0.0.2.ip6.arpa.", "9.b.d.0.1.0.0.2.ip6.arpa."]),
        ("fd00::/8", ["d.f.ip6.arpa."]),
    ],
)
def test_a_network_stands_for_its_reverse_zones(text: str, zones: list[str]) -> None:
    assert keys(f"{text} {{\n}}") == [[("dns", zone, 53) for zone in zones]]
    assert keys(f"{text}:1053 {{\n}}") == [[("dns", zone, 1053) for zone in zones]]


def test_a_prefix_within_the_last_octet_gives_a_zone_for_each_address() -> None:
    found = keys("10.0.0.128/25 {\n}")[0]
    assert len(found) == 128
    assert found[0] == ("dns", "128.0.0.10.in-addr.arpa.", 53)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("a.org:99999", '"99999" is out of range; accepted: 1 to 65535'),
        ("a.org:http", '"http" is not a whole number; accepted: 1 to 65535'),
        (":53", '":53" has no zone; accepted: a zone before the port, such as .:53'),
        ("a..org", 'zone "a..org" has an empty label, or is too long'),
        ("a.org,b.org", '"a.org,b.org" is not a zone'),
        ("bücher.de", 'zone "bücher.de" has letters beyond ASCII; accepted: its xn-- form'),
        ("10.0.0.0/33", '"10.0.0.0/33" is not a network in CIDR notation'),
        ("dsn://a.org", '"dsn://a.org" has an unknown scheme; accepted: "dns" is near;'),
        ("tls://a.org", "tls://a.org has no certificate; accepted: tls CERT KEY in its server block"),
        ("grpc://a.org", "grpc:// is not supported by this version of kdns; accepted: dns://, tls://, https://, or no"),
        ("quic://a.org", "quic:// is not supported by this version of kdns"),
        ("https3://a.org", "https3:// is not supported by this version of kdns"),
        (f"{'a' * 64}.org", "has an empty label, or is too long"),
    ],
)
def test_a_key_that_cannot_be_served_is_a_mistake(key: str, message: str) -> None:
    (found,) = mistakes(f"# first line\n{key} {{\n}}")
    assert found.startswith("Corefile:2: ")
    assert message in found


def test_schemes_have_their_own_ports() -> None:
    parsed = parse_text("tls://a https://a quic://a grpc://a https3://a tls://a:1 {\n}", "Corefile", {}, 53)
    assert [key.port for key in parsed.blocks[0].keys] == [853, 443, 853, 443, 443, 1]


# -- the same zone twice


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a.org {\n}\nA.ORG. {\n}", 3),
        ("a.org a.org:53 {\n}", 1),
        ("a.org {\nbind 127.0.0.1\n}\na.org {\n}", 4),
        ("a.org {\n}\na.org {\nbind 127.0.0.1\n}", 3),
        ("a.org {\nbind ::1\n}\na.org {\nbind 127.0.0.1 0:0:0:0:0:0:0:1\n}", 4),
        ("10.0.0.0/16 {\n}\n0.10.in-addr.arpa {\n}", 3),
    ],
)
def test_a_zone_is_served_once_at_an_address_and_port(text: str, line: int) -> None:
    (found,) = mistakes(text)
    assert found.startswith(f"Corefile:{line}: dns://")
    assert "is served already, by Corefile:1" in found


def test_one_zone_at_different_addresses_and_ports() -> None:
    loads("a.org {\nbind 127.0.0.1\n}\na.org {\nbind ::1\n}\na.org:54 {\n}")


# -- words


def test_quotes_keep_spaces_line_ends_and_comment_signs() -> None:
    assert lines('.\nx "a b" "c\nd" "#e" ""\ny') == [["x", "a b", "c\nd", "#e", ""], ["y"]]


def test_in_quotes_only_the_quote_is_escaped() -> None:
    assert lines(r'''.
x "say \"hi\"" "\d+\\" \w a"b"''') == [["x", 'say "hi"', r"\d+\\", r"\w", 'a"b"']]


def test_a_quote_ends_its_word() -> None:
    assert lines('.\nx "a"b') == [["x", "a", "b"]]


def test_comments_run_to_the_end_of_the_line_also_within_a_word() -> None:
    assert lines(".\nx a#b c\ny # z {\nw") == [["x", "a"], ["y"], ["w"]]


def test_a_backslash_at_the_end_of_a_line_joins_it_with_the_next() -> None:
    assert lines(".\nx a \\\n  b\\\n c\ny") == [["x", "a", "b", "c"], ["y"]]


def test_byte_order_mark_and_windows_line_ends() -> None:
    assert keys("\ufeffa.org {\r\n  whoami\r\n}\r\n") == [[("dns", "a.org.", 53)]]
    assert lines(".\r\nx a \\\r\nb\r\ny\r\n") == [["x", "a", "b"], ["y"]]


def test_a_brace_in_quotes_is_a_word() -> None:
    assert lines('.\nx "{" "}"\ny') == [["x", "{", "}"], ["y"]]


def test_lines_are_counted_over_comments_quotes_and_joined_lines() -> None:
    parsed = parse_text('. {\n# one\nx "a\nb" \\\n c\n\ny\n}', "Corefile", {}, 53)
    assert [directive.name.line for directive in parsed.blocks[0].directives] == [3, 7]


def test_blocks_within_blocks() -> None:
    parsed = parse_text(". {\nx a {\n y b {\n  z\n }\n w\n}\nv\n}", "Corefile", {}, 53)
    x, v = parsed.blocks[0].directives
    assert x.block is not None
    assert [words(item) for item in x.block] == [["y", "b"], ["w"]]
    assert [words(item) for item in x.block[0].block or ()] == [["z"]]
    assert v.block is None


def test_a_block_may_stand_in_one_line() -> None:
    assert loads(". { errors { stacktrace } }").blocks[0].plugins["errors"].stacktrace


# -- variables


def test_variables_of_both_kinds_also_within_words() -> None:
    text = '{$ZONE}:{%PORT%} {\nlog . "{$WHO} asks {name}"\n}'
    assert keys(text, ZONE="a.org", PORT="54", WHO="x y") == [[("dns", "a.org.", 54)]]
    rule = loads(text, environ={"ZONE": "a", "PORT": "54", "WHO": "x y"}).blocks[0].plugins["log"].rules[0]
    assert rule.format == "x y asks {name}"


def test_an_unset_variable_is_empty() -> None:
    assert keys("a.org {$MORE} {\n}") == [[("dns", "a.org.", 53)]]


def test_the_content_of_a_variable_is_one_word_and_never_syntax() -> None:
    assert lines(".\nx {$A}", A="b { # c") == [["x", "b { # c"]]
    assert lines(".\nx {$A} {$B}", A="{", B="{$A}") == [["x", "{", "{$A}"]]


# -- mistakes


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "there is no server block; accepted: at least one"),
        ("# nothing", 1, "there is no server block"),
        ("a.org {\nwhoami", 1, "the block that opens here is never closed; accepted: a }"),
        ("a.org {\n}\n}", 3, "a } closes nothing"),
        ("a.org\nwhoami\n}", 3, "a } closes nothing"),
        ("a.org, {\n}", 1, "another zone should follow the comma"),
        ("a.org,", 1, "another zone should follow the comma"),
        ("{\nwhoami\n}", 1, "a server block has no zone"),
        ("a.org {\nwhoami\n{\nlog\n}\n}", 3, "a { stands alone"),
        ("a.org {\nerrors {\nstacktrace\n} log\n}", 4, '"log" follows a } in its line'),
        ('a.org {\nlog . "open\n}\n', 2, "a quote that is opened here is never closed"),
        ("a.org {\nkubernets\n}", 2, 'unknown directive "kubernets"; accepted: "kubernetes" is near; acl, any,'),
        ("a.org {\nxyzzy\n}", 2, 'unknown directive "xyzzy"; accepted: acl, any,'),
        (
            "a.org {\ndnssec\n}",
            2,
            "dnssec is not supported by this version of kdns; accepted: nothing: the cluster's zones are not signed",
        ),
        ("a.org {\netcd\n}", 2, "etcd is not supported by this version of kdns"),
        ("a.org {\nwhoami\nwhoami\n}", 3, "whoami is given twice in a server block"),
    ],
)
def test_a_mistake_says_where_and_what_and_what_would_be_accepted(text: str, line: int, message: str) -> None:
    assert any(found.startswith(f"Corefile:{line}: {message}") for found in mistakes(text))


def test_all_mistakes_are_reported_in_the_order_of_the_file() -> None:
    text = "a..org {\nwhoami 1\nhealth {\nlameduk 5s\n}\n}\nb.org {\nnope\nttl 5\n}\nb.org {\nready x y\n}"
    found = mistakes(text)
    assert [mistake.split(": ")[0] for mistake in found] == [f"Corefile:{line}" for line in (1, 2, 4, 8, 9, 11, 12)]
    assert '"lameduck" is near' in found[2]


def test_text_that_is_not_utf8() -> None:
    (found,) = mistakes(b"a.org {\n# \xff\n}")
    assert found == "Corefile:2: byte 0xff is not UTF-8; accepted: UTF-8"


def test_a_long_word_is_cut_in_messages_and_control_characters_are_shown_escaped() -> None:
    assert len(mistakes("x" * 100_000 + " {\n}")[0]) < 300
    assert r'"\x1b[31m"' in mistakes("a.org {\n\x1b[31m\n}")[0]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "Corefile", environ={})
    assert caught.value.mistakes == (
        Mistake(
            str(tmp_path / "Corefile"),
            1,
            f'"{tmp_path / "Corefile"}" cannot be read: No such file or directory',
            "a readable file",
        ),
    )


# -- the result


def test_plugins_are_in_the_fixed_order() -> None:
    config = loads(". {\nwhoami\nlog\nany\nerrors\nbufsize\nnsid\nreload\n}")
    assert list(config.blocks[0].plugins) == ["reload", "nsid", "bufsize", "errors", "log", "any", "whoami"]


def test_a_configuration_can_be_pickled() -> None:
    text = (
        'a.org 10.0.0.0/14 {\nkubernetes {\nmanifests x\nlabels "a in (b, c),!d"\n}\nbind lo {\nexcept ::1\n}\n'
        "log . {combined} {\nclass denial\n}\nhealth {\nlameduck 5s\n}\n}"
    )
    config = loads(text)
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301


WORDS = st.sampled_from(
    [
        "{", "}", "\n", " ", ",", '"', "\\", "#", "import", "(a)", "a", ".", "a.org:53", "10.0.0.0/14", "{$X}", "{%X%}",
        "{args[0]}", "{args[:]}", "{args[1:0]}", "tls://", "*", "..", "/", "\0", "\r\n", "\ufeff", "log", "kubernetes",
        "labels", "bind", "health", "lameduck", "1h", "a in (b", "fallthrough", "/dev/zero", "[", "²", "::/0", "-1",
    ]
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(), st.binary(), st.lists(WORDS).map(" ".join), st.lists(WORDS).map("".join)))
@example("import {args[0]}")
@example("(a) {\nimport a\n}\nimport a")
@example("{ " * 5000)
@example(". {\n" + "x {\n" * 5000)
@example("\ud800 {\n}")
@example("{$" * 100_000)
@example(". {\nhealth {\nlameduck " + "1" * 100_000 + "\n}\n}")
def test_whatever_the_text_it_is_read_or_refused(text: str | bytes) -> None:
    found: tuple[Mistake, ...] = ()
    try:
        assert loads(text, environ={"X": "{$X}"}).blocks
    except ConfigError as error:
        found = error.mistakes or (Mistake("", 0, ""),)
    assert all(mistake.line >= 1 and mistake.message for mistake in found)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.text(), max_size=4).map(lambda row: row or [""]), max_size=5))
def test_quoted_words_come_back_as_they_were(rows: list[list[str]]) -> None:
    def quote(word: str) -> str:
        return '"' + word.replace('"', '\\"') + '"'

    rows = [
        [word.replace("\\", "/").replace("\r", "").replace("{$", "").replace("{%", "") for word in row] for row in rows
    ]
    text = ".\n" + "\n".join("x " + " ".join(map(quote, row)) for row in rows)
    assert lines(text) == [["x", *row] for row in rows]


def test_a_corefile_of_several_texts_is_one_configuration_whose_mistakes_name_each_ones_file() -> None:
    first, second = b". {\nwhoami\n}\n", b"\na.org {\nnonsense\n}\n. {\nwhoami\n}\n"
    with pytest.raises(ConfigError) as caught:
        load_parts([Part(first, "/etc/one"), Part(second, "/etc/two")], environ={})
    assert [(mistake.file, mistake.line) for mistake in caught.value.mistakes] == [("/etc/two", 3), ("/etc/two", 5)]
    assert "/etc/one:1" in caught.value.mistakes[1].message


def test_every_text_counts_for_the_digest_and_so_does_where_one_ends() -> None:
    texts = [(b"a {\n}\n", b"b {\n}\n"), (b"a {\n}\n", b"c {\n}\n"), (b"a {\n}\nb {\n}\n",), (b"a {\n", b"}\nb {\n}\n")]
    digests = [load_parts([Part(text, "x") for text in parts], environ={}).digest for parts in texts]
    assert len(set(digests)) == len(texts)


def test_a_directive_may_be_refused_with_a_reason() -> None:
    text = b". {\nerrors\nkubernetes\n}\n"
    assert load_parts([Part(text, "x")], environ={}).blocks
    with pytest.raises(ConfigError) as caught:
        load_parts([Part(text, "x")], environ={}, refused={"kubernetes": ("not here", "something else")})
    assert str(caught.value) == "x:3: not here; accepted: something else"
