"""Durations, addresses, numbers, zones, label selectors and regular expressions."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.corefile import values
from kdns.corefile.values import Address
from kdns.errors import ConfigValueError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("5s", 5), ("1m30s", 90), ("1.5h", 5400), ("300ms", 0.3), (".5s", 0.5), ("1.s", 1), ("+2s", 2),
     ("10us", 1e-5), ("10µs", 1e-5), ("10\u03bcs", 1e-5), ("7ns", 7e-9), ("1h1m1s1ms", 3661.001)],
)  # fmt: skip
def test_durations_as_go_writes_them(text: str, seconds: float) -> None:
    assert values.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "5S", "1d", "-1s", "5s!", "\u0665s", "1e3s", "9999999999h", "."])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ConfigValueError):
        values.duration(text)


def test_a_duration_below_the_minimum() -> None:
    with pytest.raises(ConfigValueError, match='"1s" is too short; accepted: at least 2s'):
        values.duration("1s", 2)


@pytest.mark.parametrize(
    ("text", "address"),
    [(":8080", Address("", 8080)), ("localhost:1", Address("localhost", 1)), ("[::1]:80", Address("::1", 80)),
     ("127.0.0.1:65535", Address("127.0.0.1", 65535)), ("[fe80::1%eth0]:0", Address("fe80::1%eth0", 0))],
)  # fmt: skip
def test_addresses_with_a_port(text: str, address: Address) -> None:
    assert values.host_port(text) == address
    assert values.host_port(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", "8080", "localhost", ":", ":x", ":65536", "::1:80", "[::1]", "[x]:1", "a:1:2", "a b:1"]
)
def test_what_is_no_address_with_a_port(text: str) -> None:
    with pytest.raises(ConfigValueError):
        values.host_port(text)


@pytest.mark.parametrize("text", ["", "x", "1.0", "4", "-1", "1_0", "²", "0" * 19])
def test_what_is_no_number_in_range(text: str) -> None:
    assert values.integer("3", 0, 3) == 3
    with pytest.raises(ConfigValueError):
        values.integer(text, 0, 3)


def test_classless_zones_of_rfc_2317_are_names() -> None:
    assert values.zones("0/25.2.0.192.in-addr.arpa") == ("0/25.2.0.192.in-addr.arpa.",)


@pytest.mark.parametrize(
    ("expression", "selected"),
    [
        ("env=prod", [{"env": "prod"}, {"env": "prod", "x": ""}]),
        ("env==prod", [{"env": "prod"}]),
        ("env!=prod", [{}, {"env": "dev"}]),
        ("env", [{"env": ""}, {"env": "x"}]),
        ("!env", [{}, {"x": ""}]),
        ("env in (a, b)", [{"env": "a"}, {"env": "b"}]),
        ("env notin (a,b)", [{}, {"env": "c"}]),
        ("env in (a,)", [{"env": "a"}, {"env": ""}]),
        ("env=", [{"env": ""}]),
        ("env!=", [{}, {"env": "x"}]),
        (" a = 1 , b in (2),!c , example.com/d ", [{"a": "1", "b": "2", "example.com/d": ""}]),
        ("in in (in),notin=in", [{"in": "in", "notin": "in"}]),
        ("", [{}, {"a": "b"}]),
    ],
)
def test_selectors_select(expression: str, selected: list[dict[str, str]]) -> None:
    selector = values.selector(expression)
    assert all(selector.matches(labels) for labels in selected)
    assert pickle.loads(pickle.dumps(selector)) == selector  # noqa: S301


@pytest.mark.parametrize(
    ("expression", "passed_over"),
    [
        ("env=prod", [{}, {"env": "dev"}, {"Env": "prod"}]),
        ("env!=prod", [{"env": "prod"}]),
        ("env", [{}]),
        ("!env", [{"env": ""}]),
        ("env in (a, b)", [{}, {"env": "c"}, {"env": ""}]),
        ("env notin (a,b)", [{"env": "a"}]),
        ("a=1,b=2", [{"a": "1"}, {"b": "2"}]),
    ],
)
def test_selectors_pass_over(expression: str, passed_over: list[dict[str, str]]) -> None:
    assert not any(values.selector(expression).matches(labels) for labels in passed_over)


@pytest.mark.parametrize(
    "expression",
    [",", "a,", "a,,b", "a=b=c", "a in", "a in b", "a in ()", "a in (b", "a in (b c)", "a b", "=a", "!", "!a=b", "a>1",
     "a<1", "-a", "a/b/c", "a=-b", "a=" + "x" * 64, "x" * 64, "A_/b", "a=b c", "a (b)", "ä"],
)  # fmt: skip
def test_what_is_no_selector(expression: str) -> None:
    with pytest.raises(ConfigValueError, match="label selector"):
        values.selector(expression)


@pytest.mark.parametrize(
    "convert",
    [
        values.duration,
        values.host_port,
        values.zone,
        values.zones,
        values.selector,
        values.regex,
        lambda t: values.integer(t, 0, 9),
    ],
)
@given(text=st.one_of(st.text(), st.text(alphabet="0123456789abcdefhmnsuµ.:/%[]-+=!(), ")))
def test_any_text_has_a_value_or_is_refused(convert: Callable[[str], object], text: str) -> None:
    try:
        value = convert(text)
    except ConfigValueError as error:
        value = error.message
    assert value is not None


@given(st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_the_reverse_zones_of_a_network_cover_it_and_nothing_else(address: int, prefix: int) -> None:
    text = ".".join(str(address >> shift & 255) for shift in (24, 16, 8, 0))
    zones = values.zones(f"{text}/{prefix}")
    octets = {zone.count(".") - 2 for zone in zones}
    assert len(octets) == 1
    assert len(set(zones)) * 2 ** (32 - 8 * octets.pop()) == 2 ** (32 - prefix)
    reverse = ".".join([*reversed(text.split(".")), "in-addr.arpa."])
    assert sum(f".{reverse}".endswith(f".{zone}") for zone in zones) == 1


@pytest.mark.parametrize(
    "text",
    ["", "a", "!a", "a=b", "a!=b", "a in (b,c)", "a notin (b,c)", "x.io/a=b,!c,d notin (e,f)"],
)
def test_a_selector_is_written_as_the_kubernetes_api_takes_it(text: str) -> None:
    assert str(values.selector(text)) == text
    assert values.selector(str(values.selector(text))) == values.selector(text)


@pytest.mark.parametrize(
    ("expression", "text", "parts"),
    [
        (r"^\pN+[[:alpha:]]\Q.*\E$", "12x.*", ["12x.*"]),
        ("(a)|(b)", "xb", ["b", "", "b"]),
        ("(?i)É(.)", "xéö", ["éö", "ö"]),
        (r"\C$", "ö", ["\ufffd"]),
        ("^.$", "\udc80", ["?"]),
        ("(?P<first>.)(.)", "abc", ["ab", "a", "b"]),
        ("x", "abc", None),
    ],
)
def test_expressions_match_as_those_of_go(expression: str, text: str, parts: list[str] | None) -> None:
    found = values.regex(expression)
    assert found.search(text) == parts
    assert found.matches(text) is (parts is not None)
    copy = pickle.loads(pickle.dumps(found))  # noqa: S301
    assert (copy, copy.search(text)) == (found, parts)


def test_an_expression_tells_of_its_groups() -> None:
    found = values.regex("(a)(?P<last>b)")
    assert (found.groups, dict(found.names), repr(found)) == (2, {"last": 2}, "Regex('(a)(?P<last>b)')")


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("(", "missing )"),
        ("(?=x)", "invalid perl operator"),
        (r"(.)\1", "invalid escape sequence"),
        ("x{1001}", "invalid repetition size"),
        (r"\pL{1000}", "pattern too large"),
        ("\udc80", "it is not UTF-8"),
        ("x" * 10001, "has 10001 characters"),
    ],
)
def test_what_is_no_expression(expression: str, problem: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigValueError, match=re.escape(problem)):
        values.regex(expression)
    assert capfd.readouterr() == ("", "")


def test_an_expression_that_repeats_what_is_repeated_takes_no_time() -> None:
    assert not values.regex("(a+)+$").matches("a" * 1000 + "b")
