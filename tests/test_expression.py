"""Expressions: what they mean, checked against expr-lang's own results, and what is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.corefile import expression
from kdns.corefile.expression import Function
from kdns.corefile.operations import BOOL, INT, STRING
from kdns.errors import ConfigValueError

FUNCTIONS = {
    "name": Function((), STRING, lambda context: context),
    "size": Function((), INT, lambda _: 40, personal=True),
    "same": Function((STRING, STRING), BOOL, lambda _, one, other: one == other),
    "fails": Function((), STRING, lambda _: 1 / 0),
}
NAME = "a.b.test."


def parsed(text: str) -> expression.Expression:
    return expression.parse(text, FUNCTIONS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7), ("(1 + 2) * 3", 9), ("7 / 2", 3.5), ("8 / 2 / 2", 2.0), ("-7 % 3", -1), ("7 % -3", 1),
        ("5 - 3 - 1", 1), ("-2 ** 2", -4.0), ("2 ** 3 ** 2", 512.0), ("2 ^ 3", 8.0),
        ("9223372036854775807 + 1 < 0", True),
        ("0xff + 0b11 + 0o17 + 1_000", 1273), (".5 + 1e3", 1000.5), ("1 / 0 > 5", True), ("0.1 + 0.2 == 0.3", False),
        ("1 == 1.0", True), ("[1, 2] == [1, 2.0]", True), ("nil == nil", True), ("[1] == [true]", False),
        ("'a' < 'b'", True), ("1 < 2 < 3", True), ("3 > 2 > 2", False), ("1 < 2 == true", True),
        ("not true == false", True), ("!true == false", True), ("not true or true", True),
        ("not (true or true)", False),
        ("1 == 2 or 2 == 2 and 3 == 4", False), ("false || false || true", True), ("true && not false", True),
        ("nil ?? 5", 5), ("{a: 1}.b ?? 'none'", "none"), ("true ? 1 : 2", 1), ("false ?: true", True),
        ("false ? 1 : true ? 2 : 3", 2), ("2 in 1..3", True), ("4 not in 1..3", True), ("'x' in ['x', 'y']", True),
        ("'a' in {'a': 1}", True), ("{'a': {'b': 2}}.a.b", 2), ("{(name()): 1}[name()]", 1), ("{1: 2}['1']", 2),
        ("{a: 1}.b?.c", None), ("[1, 2, 3][-1]", 3), ("[1, 2, 3][1:]", (2, 3)), ("'abc'[:-1]", "ab"),
        ("'abc'[5:9]", ""),
        ("'abc' matches '^a.c$'", True), ("'abc' matches 'b'", True), ("name() not matches '^b'", True),
        (r"name() matches '^a\\.b\\.'", True), (r"name() matches `^a\.b\.`", True), ("'abc' matches name()", False),
        ("name() startsWith 'a.' and name() endsWith '.test.' and name() contains '.b.'", True),
        (r"'\x41\u0042\103\n'", "ABC\n"), (r"'it\'s'", "it's"), (r"`a\n`", r"a\n"), ('"a" + \'b\'', "ab"),
        ("len('äb')", 2), ("len([1, 2])", 2), ("lower('ABC') + upper('d')", "abcD"), ("trim('  a ')", "a"),
        ("trim('xay', 'xy')", "a"), ("trimPrefix('abc', 'a')", "bc"), ("trimSuffix('abc', 'c')", "ab"),
        ("hasPrefix('abc', 'a') and hasSuffix('abc', 'c')", True), ("indexOf('äbc', 'c')", 3),
        ("lastIndexOf('abcabc', 'c')", 5), ("replace('aXbX', 'X', 'y')", "ayby"),
        ("replace('aXbX', 'X', 'y', 1)", "aybX"), ("split('a.b.c', '.', 2)", ("a", "b.c")),
        ("split('abc', '', 2)", ("a", "bc")), ("split('a.b', '.', 0)", ()), ("join(['a', 'b'], '.')", "a.b"),
        ("int('5') + int(5.7)", 10), ("float('0.5')", 0.5), ("string(5) + string(0.5) + string(true)", "50.5true"),
        ("any(['b', 'test'], name() endsWith '.' + # + '.')", True), ("any(['a'], {# == 'b'})", False),
        ("all([1, 2], # > 0)", True), ("none([1, 2], # > 5)", True), ("one([1, 2], # > 1)", True),
        ("count([1, 2, 3], # > 1)", 2), ("filter([1, 2, 3], # > 1)", (2, 3)), ("map([{'a': 1}], .a)", (1,)),
        ("any([1], any([2], # == 2))", True), ("name() | split('.') | len()", 4), ("'ABC' | lower() == 'abc'", True),
        ("size() / 8", 5.0), ("same(name(), 'a.b.test.')", True), ("true /* a */ // b", True),
    ],
)  # fmt: skip
def test_values(text: str, value: object) -> None:
    found = parsed(text).value(NAME)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "fails() == ''", "int(name()) == 1", "[1][5] == 1", "5 % size() == 1 and 5 % (size() - 40) == 0",
        "{a: 1}.a.b == 1", "'a' matches (name() + '(')", "len(1..10000000) > 5", "any({a: 1}.b, true)", "2 ** 5000 > 1",
        "({a: 1}.a) contains 'x'", "not {a: 1}.a", "1", "'true'", "nil",
    ],
)  # fmt: skip
def test_what_cannot_be_worked_out_or_is_no_condition_does_not_hold(text: str) -> None:
    assert parsed(text).holds(NAME) is False


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "character 1 of the expression: the end where a value belongs"),
        ("1 +", "character 4 of the expression: the end where a value belongs"),
        ("(1", 'character 3 of the expression: the end where ")" belongs'),
        ("1 2", 'character 3 of the expression: "2" where the expression should end'),
        ("name", 'character 1 of the expression: "name" is a function'),
        ("nam()", 'character 1 of the expression: "nam" is not known'),
        ("name(1)", 'character 1 of the expression: "name" has 1 arguments'),
        ("same(1, 'a')", 'character 1 of the expression: "same" is given int'),
        ("lower()", 'character 1 of the expression: "lower" has 0 arguments'),
        ("len(1)", 'character 1 of the expression: "len" is given int'),
        ("1 == '1'", 'character 3 of the expression: "==" between int and string'),
        ("1 + 'a'", 'character 3 of the expression: "+" between int and string'),
        ("1 and true", 'character 3 of the expression: "and" between int and bool'),
        ("not 1", 'character 1 of the expression: "not" of int'),
        ("-'a'", 'character 1 of the expression: "-" of string'),
        ("'a' in 'abc'", 'character 5 of the expression: "in" between string and string'),
        ("'a' in [1, 2]", 'character 5 of the expression: "in" between string and array of int'),
        ("1 not == 2", 'character 7 of the expression: "==" behind not'),
        ("1.5..3", 'character 4 of the expression: ".." between float and int'),
        ("1 ? 2 : 3", 'character 3 of the expression: "?" behind int'),
        ("nil ?? true or false", 'character 13 of the expression: "or" beside ??'),
        ("'a'.b", 'character 4 of the expression: "." takes string of string'),
        ("'a'[0]", 'character 4 of the expression: "[" takes int of string'),
        ("name().lower()", 'character 8 of the expression: "lower" is a method, which no value has'),
        ("any('a', true)", 'character 1 of the expression: "any" is given string'),
        ("any([1], #)", 'character 1 of the expression: "any" has a condition that is int'),
        ("# == 1", 'character 1 of the expression: "#" where a value belongs'),
        ("let x = 1; x", 'character 1 of the expression: "let" is not supported by this version of kdns'),
        ("sum([1])", 'character 1 of the expression: "sum" is not supported by this version of kdns'),
        ("'a", "character 1 of the expression: a quote that is opened here is never closed"),
        (r"'\q'", r'text from character 1 of the expression has the escape "\q"'),
        ("9223372036854775808", 'character 1 of the expression: "9223372036854775808" is too large'),
        ("0x", 'character 2 of the expression: "x" where the expression should end'),
        ("'a' matches '('", '"(" is no expression: missing ): ('),
        ("(" * 100, 'character 51 of the expression: "(" is nested more than 50 deep'),
        ("1" + "+1" * 100, 'character 100 of the expression: "+" is the operator of more than 50 in a row'),
        ("[1].a" + "[0]" * 100, 'character 4 of the expression: "." takes string of array of int'),
        ("{a: 1}.b" + "[0]" * 100, 'character 153 of the expression: "[" is behind more than 50 in a row'),
        ("1" * 10001, "the expression has 10001 characters"),
        ("1 ~ 2", 'character 3 of the expression: "~"'),
    ],
)
def test_refused(text: str, problem: str) -> None:
    with pytest.raises(ConfigValueError) as caught:
        parsed(text)
    assert caught.value.message == problem
    assert caught.value.accepted


def test_many_conditions_in_a_row_are_no_nest() -> None:
    text = " or ".join(f"name() == 'x{number}'" for number in range(400))
    assert not parsed(text).holds(NAME)
    assert parsed(f"{text} or true").holds(NAME)


def test_whether_a_function_was_personal_that_is_called_anywhere() -> None:
    assert parsed("true or size() > 1").personal
    assert not parsed("name() == 'a'").personal


WORDS = st.sampled_from([
    "1", "2.5", "'a'", "true", "nil", "name()", "size()", "[", "]", "(", ")", "{", "}", ",", ":", "?", ".", "#", "and",
    "or", "not", "in", "==", "<", "+", "-", "*", "/", "%", "**", "..", "??", "|", "any(", "map(", "len(", "split(",
    "matches", "contains", "'('", "let", "\\", "`", "x", " ",
])  # fmt: skip


@given(st.lists(WORDS, max_size=12).map(" ".join))
def test_whatever_is_written_is_refused_with_a_reason_or_is_true_or_not(text: str) -> None:
    with contextlib.suppress(ConfigValueError):
        assert parsed(text).holds(NAME) in (True, False)
