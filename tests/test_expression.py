"""Expressions: what they mean, checked against expr-lang's own results, and what is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.corefile import expression
from kdns.corefile.expression import Function
from kdns.corefile.operations import ANY, BOOL, INT, STRING
from kdns.errors import ConfigValueError

FUNCTIONS = {
    "name": Function((), STRING, lambda context: context),
    "size": Function((), INT, lambda _: 40, personal=True),
    "same": Function((STRING, STRING), BOOL, lambda _, one, other: one == other),
    "fails": Function((), STRING, lambda _: 1 / 0),
}
NAME = "a.b.test."


def parsed(text: str) -> expression.Expression:
    return expression.parse(text, FUNCTIONS, [("given", STRING), ("whatever", ANY)])


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
        (r"'\x41\u0042\103\n'", "ABC\n"), (r"'it\'s'", "it's"), (r"'\ud800\u0041'", "\ufffdA"),
        ("1 in {a: 1}.b", False), (r"`a\n`", r"a\n"), ('"a" + \'b\'', "ab"),
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
        ("let x = 42; x * 2", 84), ("let x = 42; let y = size(); x + y", 82),
        ("let x = size(); 'a' + (let y = x; 'b')", "ab"),
        ("let parts = name() | split('.'); parts[0] + parts[-2]", "atest"), ("(1; size(); 'a')", "a"), ("1; 2;", 2),
        ("let n = size(); map([1, 2], {let m = # + n; m * 2})", (82, 84)), ("[let a = size(); a, 1]", (40, 1)),
        ("map([[1, 2], [3]], {let row = #; map(row, # + len(row))})", ((3, 4), (4,))),
        ("let e = 'let'; {a: e}.a", "let"), ("let x = 1; if x == 1 { 'a' } else { 'b' }", "a"),
        ("if false { 1 } else if size() > 50 { 2 } else { let z = 3; z }", 3), ("if true { nil } else { 2 }", None),
        ("[if true { 1 } else { 2 }, 3]", (1, 3)), ("{'if': 2}.if", 2),
        ("find([1, 2, 3, 4], # > 2)", 3), ("findLast([1, 2, 3, 4], # > 2)", 4), ("findIndex([1, 2, 3, 4], # > 2)", 2),
        ("findLastIndex([1, 2, 3, 4], # > 2)", 3), ("find([1], # > 2)", None), ("findIndex([1], # > 2)", None),
        ("findLastIndex([1], # > 2)", None), ("count([true, false, true])", 2), ("concat([1, 2], 3..4)", (1, 2, 3, 4)),
        ("flatten([1, 2, [3, [4]]])", (1, 2, 3, 4)), ("uniq([1, 2, 1.0, 3, 2, true])", (1, 2, 3, True)),
        ("reduce(1..9, #acc + #)", 45), ("reduce(1..9, #acc + #, 0)", 45), ("reduce([], #acc + #, 5)", 5),
        ("reduce(['a', 'b', 'c'], #acc + # + string(#index))", "ab1c2"), ("map(['a', 'b'], #index)", (0, 1)),
        ("[1, 2] | reduce(#acc * #)", 2), ("sum([1, 2.5])", 3.5), ("sum([])", 0), ("sum(['a', 'bc'], len(#))", 3),
        ("mean([1, 2, 3])", 2.0), ("mean(1, [2, [3, 4]])", 2.5), ("mean([])", 0.0), ("median([3, 1, 2])", 2.0),
        ("median(1, 2)", 1.5), ("max(5, 7)", 7), ("max([1, [9, 2]], 3.5)", 9), ("min(5, 7.0)", 5), ("min([])", None),
        ("first([1, 2])", 1), ("last([1, 2])", 2), ("first([])", None), ("take([1, 2, 3], 2)", (1, 2)),
        ("take([1], 5)", (1,)), ("reverse([3, 1, 4])", (4, 1, 3)), ("sort([3, 1, 4])", (1, 3, 4)),
        ("sort(['b', 'a'], 'desc')", ("b", "a")), ("sortBy([{a: 2}, {a: 1}], .a)[0].a", 1),
        ("sortBy(['a', 'ccc', 'bb'], len(#), 'desc')", ("ccc", "bb", "a")),
        ("groupBy(['a', 'bb', 'c'], len(#))[1]", ("a", "c")), ("keys({a: 1, b: 2})", ("a", "b")),
        ("values({a: 1, b: 2})", (1, 2)), ("toPairs({a: 1})", (("a", 1),)), ("fromPairs([['a', 1]]).a", 1),
        ("get([1, 2], 1)", 2), ("get([1, 2], 2)", None), ("get([1, 2], -1)", 2), ("get({a: 1}, 'a')", 1),
        ("get({a: 1}.b, 'a')", None), ("repeat('Hi', 3)", "HiHiHi"), ("splitAfter('a,b,c', ',')", ("a,", "b,", "c")),
        ("splitAfter('a,b,c', ',', 2)", ("a,", "b,c")), ("toBase64('Hello World')", "SGVsbG8gV29ybGQ="),
        ("fromBase64('SGVsbG8gV29ybGQ=')", "Hello World"), ("abs(-5)", 5), ("abs(-0.5)", 0.5), ("ceil(1.5)", 2.0),
        ("floor(1.5)", 1.0), ("round(1.5)", 2.0), ("round(-2.5)", -3.0), ("round(2)", 2.0),
        ("floor(1 / 0)", float("inf")),
        ("bitand(0b1010, 0b1100)", 0b1000), ("bitor(0b1010, 0b1100)", 0b1110), ("bitxor(0b1010, 0b1100)", 0b110),
        ("bitnand(0b1010, 0b1100)", 0b10), ("bitnot(0b1010)", -0b1011), ("bitshl(0b101101, 2)", 0b10110100),
        ("bitshr(0b101101, 2)", 0b1011), ("bitushr(-0b101, 2)", 4611686018427387902), ("bitshl(1, 64)", 0),
        ("bitshr(-5, 70)", -1), ("string([1, 'a', {b: nil}])", "[1 a map[b:<nil>]]"), ("string(1 / 0)", "+Inf"),
        ("string(1234567.0)", "1.234567e+06"), ("string(0.1234567)", "0.1234567"),
        ("size() / 8", 5.0), ("same(name(), 'a.b.test.')", True), ("true /* a */ // b", True),
        ("given + name()", "therea.b.test."), ("let x = size(); whatever + x", 47),
        ("[1] | any(# + whatever == 8)", True),
    ],
)  # fmt: skip
def test_values(text: str, value: object) -> None:
    found = parsed(text).value(NAME, ("there", 7))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "fails() == ''", "int(name()) == 1", "[1][5] == 1", "5 % size() == 1 and 5 % (size() - 40) == 0",
        "{a: 1}.a.b == 1", "'a' matches (name() + '(')", "len(1..10000000) > 5", "any({a: 1}.b, true)", "2 ** 5000 > 1",
        "({a: 1}.a) contains 'x'", "not {a: 1}.a", "1", "'true'", "nil", "1 / 0; fails() == ''; true",
        "reduce([], #acc + #) == 1", "sort([1, 'a'])[0] == 1", "sort([1], 'up')[0] == 1", "take([1], -1) == []",
        "repeat('a', -1) == ''", "bitshl(1, -1) == 0", "string(sum(['a'])) == '0'", "max({a: 'b'}.a) == 'b'",
        "groupBy([[1]], #) == {}",
        "fromPairs([[1, 2], [1.0, 3]]) == {}", "fromBase64('?') == ''", "int('99999999999999999999') > 0",
        "float('1_0') == 10", "fromPairs([[[1], 2]]) != nil", "{a: [1]}[{a: [1]}.a] == nil", "{({a: 1}.a): 1} != nil",
        "get({a: [1]}, [1]) == nil", "not ({a: [1]}.a in {a: 1})",
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
        ("let x = 1", 'character 10 of the expression: the end where ";" belongs'),
        ("let x = 1;", "character 11 of the expression: the end where a value belongs"),
        ("let len = 1; len", 'character 5 of the expression: "len" has a meaning already'),
        ("let name = 1; 2", 'character 5 of the expression: "name" has a meaning already'),
        ("let given = 1; 2", 'character 5 of the expression: "given" has a meaning already'),
        ("let x = 1; let x = 2; x", 'character 16 of the expression: "x" has a meaning already'),
        ("let in = 1; 2", 'character 5 of the expression: "in" behind let'),
        ("(let x = 1; x) + x", 'character 18 of the expression: "x" is not known'),
        ("given + 1", 'character 7 of the expression: "+" between string and int'),
        ("given()", 'character 1 of the expression: "given" is a variable, which cannot be called'),
        ("1 | given()", 'character 5 of the expression: "given" is a variable, which cannot be called'),
        ("1 | nam()", 'character 5 of the expression: "nam" is not known'),
        ("1 | now()", 'character 5 of the expression: "now" is not supported by this version of kdns'),
        ("1 + let x = 1; x", 'character 5 of the expression: "let" where a value belongs'),
        ("if 1 { 2 } else { 3 }", 'character 1 of the expression: "if" behind int'),
        ("if true { 2 }", 'character 14 of the expression: the end where "else" belongs'),
        ("if true { 2 } else 3", 'character 20 of the expression: "3" where "{" belongs'),
        ("any([1], let x = #; x == 1; 2)", 'character 1 of the expression: "any" has a condition that is int'),
        ("any([1], #index == 0)", 'character 11 of the expression: "index" behind #'),
        ("sortBy([1], #, 5)", 'character 1 of the expression: "sortBy" has int behind its value'),
        ("max(1, 'a')", 'character 1 of the expression: "max" is given string'),
        ("max()", 'character 1 of the expression: "max" has 0 arguments'),
        ("first('a')", 'character 1 of the expression: "first" is given string'),
        ("now() > 1", 'character 1 of the expression: "now" is not supported by this version of kdns'),
        ("'a", "character 1 of the expression: a quote that is opened here is never closed"),
        (r"'\400'", r'text from character 1 of the expression has the escape "\400"'),
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


@pytest.mark.parametrize(
    "text",
    [
        "any(1..1000, any(1..1000, # == 0))", "len(map(1..200000, #)) > 0", "repeat('a', 200000) == ''",
        "repeat(repeat('a', 1000), 1000) == ''", "reduce(1..100, #acc + #acc, 'abc') == ''",
        "len(replace(repeat('a', 50000), 'a', 'bbb')) > 0", "join(split(repeat('a', 30000), ''), 'bbbbb') == ''",
        "len(reduce(1..100, [#acc, #acc], 1)) > 0 and flatten(reduce(1..40, [#acc, #acc], 1)) == []",
        "let a = reduce(1..40, [#acc, #acc], 1); let b = reduce(1..40, [#acc, #acc], 1); a == b",
        "string(reduce(1..40, [#acc, #acc], 1)) == ''", "max(reduce(1..40, [#acc, #acc], 1)) == 1",
        "len(uniq(1..90000)) > 0", "sort(1..200000)[0] == 1", "string(1..200000) == ''",
        "len(concat(1..60000, 1..60000)) > 0", "sum(1..200000) > 0",
    ],
)  # fmt: skip
def test_what_takes_too_much_is_given_up_soon(text: str) -> None:
    with pytest.raises(ValueError, match=r"more than 100000 steps|too deep"):
        parsed(text).value(NAME, ("there", 7))


def test_whether_a_function_was_personal_that_is_called_anywhere() -> None:
    assert parsed("true or size() > 1").personal
    assert not parsed("name() == 'a'").personal
    assert parsed("let x = 1; if true { name() } else { let y = map([1], size()); 'a' }").personal
    assert parsed("lower(name()) == given").calls == {"name"}


WORDS = st.sampled_from([
    "1", "2.5", "'a'", "true", "nil", "name()", "size()", "[", "]", "(", ")", "{", "}", ",", ":", "?", ".", "#", "and",
    "or", "not", "in", "==", "<", "+", "-", "*", "/", "%", "**", "..", "??", "|", "any(", "map(", "len(", "split(",
    "matches", "contains", "'('", "let", "\\", "`", "x", " ", "let x =", ";", "if", "else", "#acc", "reduce(",
    "sortBy(", "max(", "get(", "repeat(", "fromPairs(", "bitshl(", "given",
])  # fmt: skip


@given(st.lists(WORDS, max_size=12).map(" ".join))
def test_whatever_is_written_is_refused_with_a_reason_or_is_true_or_not(text: str) -> None:
    with contextlib.suppress(ConfigValueError):
        assert parsed(text).holds(NAME) in (True, False)
