"""Expressions of the Corefile, in the language of expr-lang/expr as CoreDNS uses it.

An expression is read, its types are checked, and it becomes a function of a context that only the functions it calls
know. What the language has and this module has not is refused by name.

Numbers are 64-bit integers, which wrap, and floats; `/` and `**` give floats. Text is in single or double quotes with
escapes, or in backquotes without. Operators, from the loosest to the tightest: `?:`, `|`, `or ||`, `and &&`,
comparisons with `in contains matches startsWith endsWith` (all with `not` in front too), `..`, `+ -`, `* / %`,
`not !`, unary `-`, `** ^`, `??`. `let NAME = VALUE;` names a value for what follows it, and `if CONDITION { VALUE }
else { VALUE }` chooses as `?:` does. Values with `;` between them are all worked out, and the last one counts.

What an expression may do is bounded (`operations.MOST`), whatever the values are that its functions give.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isinf
from typing import Any, NamedTuple, TypeAlias

from kdns.corefile.functions import BUILTINS, ELSEWHERE, PREDICATES, REDUCE, Predicate
from kdns.corefile.operations import (
    ACCEPTED,
    ANY,
    BOOL,
    FLOAT,
    INT,
    NIL,
    NUMBERS,
    OPERATIONS,
    ORDERED,
    STRING,
    Kind,
    Work,
    a_key,
    array,
    boolean,
    chosen,
    common,
    fits,
    numeric,
    result,
    text_of,
    wrapped,
)  # fmt: skip
from kdns.corefile.values import choices, regex, shown
from kdns.errors import ConfigValueError

MAX_TEXT = 10_000
MAX_DEPTH = 50

Run: TypeAlias = Callable[["Scope"], Any]


@dataclass(frozen=True, slots=True)
class Function:
    """What an expression can call. takes: of its arguments. call: is given the context and the arguments; may raise.

    checks: what each argument that is written out has to be; raise ConfigValueError. personal: its value is not the
    same for all queries of the same bytes.
    """

    takes: tuple[Kind, ...]
    gives: Kind
    call: Callable[..., Any]
    checks: tuple[Callable[[str], object] | None, ...] = ()
    personal: bool = False


class Scope(NamedTuple):
    """What an expression is worked out for.

    work: what it may still do. values: of the variables. element: of the array that is gone through. at: its index.
    so_far: what `reduce` has made of those before.
    """

    context: Any
    work: Work
    values: tuple[Any, ...] = ()
    element: Any = None
    at: int = 0
    so_far: Any = None


@dataclass(frozen=True, slots=True)
class Expression:
    """One that can be worked out. kind: of its value. calls: the functions that it calls. personal: one of them is."""

    text: str
    kind: Kind
    run: Run
    calls: frozenset[str]
    personal: bool

    def value(self, context: Any, values: tuple[Any, ...] = ()) -> Any:
        """Its value. values: of the variables that it was given. Raises whatever the functions and operators raise."""
        return self.run(Scope(context, Work(), values))

    def holds(self, context: Any) -> bool:
        """Whether its value is true; it is not where it cannot be worked out."""
        try:
            return self.value(context) is True
        except Exception:
            return False


def parse(text: str, functions: Mapping[str, Function], given: Sequence[tuple[str, Kind]] = ()) -> Expression:
    """Read an expression that may call these functions and has these variables. Raises ConfigValueError."""
    if len(text) > MAX_TEXT:
        raise ConfigValueError(f"the expression has {len(text)} characters", f"at most {MAX_TEXT}")
    parser = _Parser(text, functions, given)
    term = parser.whole()
    calls = frozenset(parser.calls)
    return Expression(text, term.kind, term.run, calls, any(functions[name].personal for name in calls))


def is_reserved(name: str, functions: Mapping[str, Function]) -> bool:
    """Whether no variable may have a name, as the language gives it a meaning."""
    return name in {*functions, *BUILTINS, *PREDICATES, *ELSEWHERE, *_WORDS, *_LITERALS}


# Words


class _Word(NamedTuple):
    """kind: number, text, name, operator, end. value: of numbers and text. at: counted from 1."""

    kind: str
    text: str
    at: int
    value: Any = None


_WORD = re.compile(
    r"""
    (?P<blank>\s+ | //[^\n]* | /\*.*?\*/)
    | (?P<number>0[xX][0-9A-Fa-f_]+ | 0[oO][0-7_]+ | 0[bB][01_]+
        | (?:[0-9][0-9_]*(?:\.(?!\.)[0-9_]*)? | \.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?)
    | (?P<text>'(?:[^'\\\n]|\\.)*' | "(?:[^"\\\n]|\\.)*" | `[^`]*`)
    | (?P<name>[A-Za-z_$][A-Za-z0-9_$]*)
    | (?P<operator>\*\*|\.\.|\?\.|\?\?|\|\||&&|==|!=|<=|>=|[-+*/%^<>!?:.,;|(){}\[\]\#=])
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_ESCAPE = re.compile(r"\\(?:([abfnrtv\\'\"])|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([0-7]{3})|(.))")
_CONTROL = dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True))
_WORDS = frozenset((
    "and", "or", "not", "in", "contains", "matches", "startsWith", "endsWith", "let", "if", "else",
))  # fmt: skip
_LITERALS = frozenset(("true", "false", "nil", "$env"))
_BINARY: Mapping[str, int] = {
    "|": 0, "or": 10, "||": 10, "and": 15, "&&": 15, "==": 20, "!=": 20, "<": 20, ">": 20, "<=": 20, ">=": 20,
    "in": 20, "matches": 20, "contains": 20, "startsWith": 20, "endsWith": 20, "..": 25, "+": 30, "-": 30, "*": 60,
    "/": 60, "%": 60, "**": 100, "^": 100, "??": 500,
}  # fmt: skip
_UNARY: Mapping[str, int] = {"not": 50, "!": 50, "-": 90, "+": 90}
_NEGATED = frozenset(("in", "matches", "contains", "startsWith", "endsWith"))
_RIGHT = frozenset(("**", "^"))
_OPERATORS = "an operator such as ==, in, and"


def _words(text: str) -> list[_Word]:
    found = []
    at = 0
    while at < len(text):
        match = _WORD.match(text, at)
        if match is None:
            what = "a quote that is opened here is never closed" if text[at] in "'\"`" else f"{shown(text[at])}"
            raise ConfigValueError(f"character {at + 1} of the expression: {what}", _OPERATORS)
        word = match[0]
        if match.lastgroup == "number":
            found.append(_Word("number", word, at + 1, _number(word, at + 1)))
        elif match.lastgroup == "text":
            found.append(_Word("text", word, at + 1, word[1:-1] if word[0] == "`" else _unescaped(word[1:-1], at + 1)))
        elif match.lastgroup == "name":
            found.append(_Word("operator" if word in _WORDS else "name", word, at + 1))
        elif match.lastgroup == "operator":
            found.append(_Word("operator", word, at + 1))
        at = match.end()
    found.append(_Word("end", "", len(text) + 1))
    return found


def _number(word: str, at: int) -> int | float:
    plain = word.replace("_", "")
    try:
        if plain[:2].lower() in ("0x", "0o", "0b"):
            number: int | float = int(plain, 0)
        elif re.fullmatch(r"[0-9]+", plain):
            number = int(plain)
        else:
            number = float(plain)
    except ValueError:
        raise ConfigValueError(
            f"character {at} of the expression: {shown(word)} is not a number", "such as 5"
        ) from None
    if number >= 1 << 63 if isinstance(number, int) else isinf(number):
        raise ConfigValueError(f"character {at} of the expression: {shown(word)} is too large", f"to {(1 << 63) - 1}")
    return number


def _unescaped(text: str, at: int) -> str:
    def one(match: re.Match[str]) -> str:
        simple, byte, short, wide, octal, wrong = match.groups()
        code = int(octal, 8) if octal is not None else int(byte or short or wide or "0", 16)
        if wrong is not None or code > (0xFF if octal is not None else 0x10FFFF):
            problem = f"text from character {at} of the expression has the escape {shown(match[0])}"
            raise ConfigValueError(problem, r"\\ for a backslash; \n, \t, \x41, A, or text in backquotes")
        if simple is not None:
            return _CONTROL.get(simple, simple)
        return chr(code) if not 0xD800 <= code < 0xE000 else "\ufffd"  # half of a pair is no character

    return _ESCAPE.sub(one, text)


# Terms

_NOTHING: Any = object()


def _nothing(_: Scope) -> Any:
    return None


@dataclass(frozen=True, slots=True)
class _Term:
    """A part of an expression. constant: its value, if it is written out. depth: of what it is made of."""

    kind: Kind
    run: Run
    constant: Any = _NOTHING
    depth: int = 1


def _constant(kind: Kind, value: Any) -> _Term:
    return _Term(kind, lambda _: value, value)


class _Parser:
    """Reads an expression by its operators' precedence, and makes its functions on the way."""

    def __init__(self, text: str, functions: Mapping[str, Function], given: Sequence[tuple[str, Kind]]) -> None:
        self.text = text
        self.functions = functions
        self.words = _words(text)
        self.at = 0
        self.depth = 0
        self.calls: set[str] = set()
        self.elements: list[tuple[Kind, tuple[str, ...]]] = []  # of what is gone through, with what else `#` is there
        self.variables: dict[str, _Term] = {}
        self.places = 0  # of variables whose values a scope has
        for name, kind in given:
            self.declare(name, _Term(kind, _nothing))

    # Words

    @property
    def word(self) -> _Word:
        return self.words[self.at]

    def is_next(self, *operators: str) -> bool:
        return self.word.kind == "operator" and self.word.text in operators

    def take(self, operator: str) -> bool:
        found = self.is_next(operator)
        self.at += found
        return found

    def expect(self, operator: str) -> None:
        if not self.take(operator):
            raise self.wrong(self.word, f"where {shown(operator)} belongs", operator)

    def wrong(self, word: _Word, problem: str, accepted: str) -> ConfigValueError:
        found = shown(word.text) if word.kind != "end" else "the end"
        return ConfigValueError(f"character {word.at} of the expression: {found} {problem}", accepted)

    # Grammar

    def whole(self) -> _Term:
        """The whole text."""
        term = self.sequence()
        if self.word.kind != "end":
            raise self.wrong(self.word, "where the expression should end", _OPERATORS)
        return term

    def sequence(self) -> _Term:
        """Values with semicolons between them, of which the last one counts."""
        terms = [self.expression(0)]
        while self.take(";") and self.word.kind != "end":
            terms.append(self.expression(0))
        if len(terms) == 1:
            return terms[0]
        *before, last = [term.run for term in terms]

        def run(scope: Scope) -> Any:
            for each in before:
                each(scope)
            return last(scope)

        return _Term(terms[-1].kind, run, depth=_deeper(*terms))

    def expression(self, least: int) -> _Term:
        """What binds at least as tightly."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.wrong(self.word, f"is nested more than {MAX_DEPTH} deep", "less")
        if least == 0 and self.is_next("let", "if"):
            term = self.variable() if self.take("let") else self.choice()
            self.depth -= 1
            return term
        left = self.primary()
        before = ""
        while self.word.kind == "operator":
            word = self.word
            negated = word.text == "not"
            operator = self.words[self.at + 1] if negated else word
            if negated and operator.text not in _NEGATED:
                raise self.wrong(operator, "behind not", ", ".join(sorted(_NEGATED)))
            if operator.kind != "operator" or _BINARY.get(operator.text, -1) < least:
                break
            if before == "??" and operator.text not in ("??", "|"):
                raise self.wrong(operator, "beside ??", "parentheses around one of them")
            self.at += 1 + negated
            left = self.operation(left, operator)
            if negated:
                left = self.unary("not", left, operator)
            before = operator.text
            if left.depth > MAX_DEPTH:
                raise self.wrong(operator, f"is the operator of more than {MAX_DEPTH} in a row", "less")
        if least == 0:
            left = self.conditional(left)
        self.depth -= 1
        return left

    def operation(self, left: _Term, operator: _Word) -> _Term:
        """What an operator, which is taken, makes of what is in front of it and what follows."""
        text = operator.text
        if text == "|":
            name = self.word
            if name.kind != "name":
                raise self.wrong(name, "behind |", "a function")
            self.at += 1
            if not self.is_next("("):
                raise self.wrong(self.word, f"behind {name.text}", "(")
            self.check_known(name)
            return self.postfix(self.call(name, [left]))
        following = _BINARY[text] + (text not in _RIGHT)
        if text in ("or", "||", "and", "&&"):
            terms = [left, self.expression(following)]
            while self.word.kind == "operator" and _BINARY.get(self.word.text) == _BINARY[text]:
                self.at += 1
                terms.append(self.expression(following))
            return self.junction(terms, operator, _BINARY[text] == _BINARY["or"])
        right = self.expression(following)
        term = self.binary(left, operator, right)
        if text in ORDERED and self.is_next(*ORDERED):
            terms = [term]
            while self.is_next(*ORDERED):
                another = self.word
                self.at += 1
                left, right = right, self.expression(following)
                terms.append(self.binary(left, another, right))
            return self.junction(terms, operator, False)
        return term

    def variable(self) -> _Term:
        """`let NAME = VALUE;` behind the word, and what the name stands for VALUE in."""
        name = self.word
        if name.kind != "name":
            raise self.wrong(name, "behind let", "a name")
        if name.text in self.variables or is_reserved(name.text, self.functions):
            raise self.wrong(name, "has a meaning already", "another name")
        self.at += 1
        self.expect("=")
        value = self.expression(0)
        self.expect(";")
        self.declare(name.text, value)
        body = self.sequence()
        del self.variables[name.text]
        if value.constant is not _NOTHING:
            return body
        self.places -= 1
        work_out, run_body = value.run, body.run

        def run(scope: Scope) -> Any:
            return run_body(scope._replace(values=(*scope.values, work_out(scope))))

        return _Term(body.kind, run, depth=_deeper(value, body))

    def declare(self, name: str, value: _Term) -> None:
        """Give a value a name; one that is written out needs no place."""
        if value.constant is _NOTHING:
            place = self.places
            self.places += 1
            value = _Term(value.kind, lambda scope: scope.values[place])
        self.variables[name] = value

    def choice(self) -> _Term:
        """`if CONDITION { VALUE } else { VALUE }`, or with another `if` behind the else."""
        word = self.word
        self.expect("if")
        condition = self.expression(0)
        yes = self.braces()
        self.expect("else")
        no = self.expression(0) if self.is_next("if") else self.braces()
        return self.one_of(condition, yes, no, word)

    def braces(self) -> _Term:
        self.expect("{")
        term = self.sequence()
        self.expect("}")
        return term

    def conditional(self, condition: _Term) -> _Term:
        """A condition, and what it chooses from, if that follows."""
        word = self.word
        if not self.take("?"):
            return condition
        if self.take(":"):
            yes = condition
        else:
            yes = self.expression(0)
            self.expect(":")
        return self.one_of(condition, yes, self.expression(0), word)

    def one_of(self, condition: _Term, yes: _Term, no: _Term, word: _Word) -> _Term:
        """What a condition chooses."""
        if not fits(condition.kind, "bool"):
            raise self.wrong(word, f"behind {condition.kind}", "a condition")
        test, one, other = condition.run, yes.run, no.run

        def run(scope: Scope) -> Any:
            return one(scope) if boolean(test(scope)) else other(scope)

        return _Term(chosen(yes.kind, no.kind), run, depth=_deeper(condition, yes, no))

    def primary(self) -> _Term:
        """What operators work on."""
        word = self.word
        if word.kind == "operator" and word.text in _UNARY:
            self.at += 1
            return self.postfix(self.unary(word.text, self.expression(_UNARY[word.text]), word))
        if self.take("("):
            term = self.sequence()
            self.expect(")")
            return self.postfix(term)
        if self.elements and self.is_next("#", "."):
            return self.element()
        self.at += 1
        if word.kind in ("number", "text"):
            kind = STRING if word.kind == "text" else INT if isinstance(word.value, int) else FLOAT
            return self.postfix(_constant(kind, word.value))
        if word.kind == "operator" and word.text == "[":
            return self.postfix(self.array())
        if word.kind == "operator" and word.text == "{":
            return self.postfix(self.map())
        if word.kind != "name":
            raise self.wrong(word, "where a value belongs", "text, a number, an array, a map, or a function's call")
        return self.postfix(self.name(word))

    def name(self, word: _Word) -> _Term:
        """What a word means."""
        if word.text in ("true", "false"):
            return _constant(BOOL, word.text == "true")
        if word.text == "nil":
            return _constant(NIL, None)
        variable = self.variables.get(word.text)
        if variable is not None and not self.is_next("("):
            return variable
        self.check_known(word)
        if self.is_next("("):
            return self.call(word, [])
        raise self.wrong(word, "is a function", f"{word.text}(...)")

    def check_known(self, word: _Word) -> None:
        """Refuse what is no function."""
        if word.text in self.variables:
            raise self.wrong(word, "is a variable, which cannot be called", word.text)
        functions = {*self.functions, *BUILTINS, *PREDICATES}
        if word.text not in functions:
            problem = "is not supported by this version of kdns" if word.text in ELSEWHERE else "is not known"
            raise self.wrong(word, problem, choices(word.text, functions | self.variables.keys()))

    def element(self) -> _Term:
        """`#`, or `.field`, of the element that is looked at; `#index` and `#acc`."""
        kind, pointers = self.elements[-1]
        if self.take("#") and self.word.kind == "name":
            word = self.word
            self.at += 1
            if word.text not in pointers:
                raise self.wrong(word, "behind #", ", ".join(f"#{each}" for each in pointers) or "nothing")
            if word.text == "index":
                return self.postfix(_Term(INT, lambda scope: scope.at))
            return self.postfix(_Term(ANY, lambda scope: scope.so_far))
        return self.postfix(_Term(kind, lambda scope: scope.element))

    def array(self) -> _Term:
        """The elements up to `]`."""
        terms: list[_Term] = []
        while not self.take("]"):
            if terms:
                self.expect(",")
                if self.take("]"):
                    break
            terms.append(self.expression(0))
        kind = Kind("array", common([term.kind for term in terms]) if terms else ANY)
        if all(term.constant is not _NOTHING for term in terms):
            return _constant(kind, tuple(term.constant for term in terms))
        runs = [term.run for term in terms]
        return _Term(kind, lambda scope: scope.work.made(tuple([run(scope) for run in runs])), depth=_deeper(*terms))

    def map(self) -> _Term:
        """Keys and values up to `}`."""
        keys: list[Run] = []
        terms: list[_Term] = []
        while not self.take("}"):
            if terms:
                self.expect(",")
                if self.take("}"):
                    break
            keys.append(self.key())
            self.expect(":")
            terms.append(self.expression(0))
        runs = [term.run for term in terms]

        def run(scope: Scope) -> Any:
            return scope.work.made({text_of(key(scope)): value(scope) for key, value in zip(keys, runs, strict=True)})

        return _Term(Kind("map", common([term.kind for term in terms]) if terms else ANY), run, depth=_deeper(*terms))

    def key(self) -> Run:
        word = self.word
        if self.take("("):
            term = self.expression(0)
            self.expect(")")
            if not fits(term.kind, "string"):
                raise self.wrong(word, f"is a key of type {term.kind}", "text")
            return term.run
        self.at += 1
        if word.kind not in ("name", "text", "number"):
            raise self.wrong(word, "where a key belongs", "a word, text, or (EXPRESSION)")
        value = word.value if word.kind == "text" else word.text
        return lambda _: value

    def postfix(self, term: _Term) -> _Term:
        """A value with the members, indices and slices behind it."""
        while True:
            word = self.word
            if term.depth > MAX_DEPTH:
                raise self.wrong(word, f"is behind more than {MAX_DEPTH} in a row", "less")
            if self.take(".") or self.take("?."):
                if word.text == "?." and self.take("["):
                    term = self.index(term, word, optional=True)
                    continue
                name = self.word
                if name.kind != "name" and name.text not in _WORDS:
                    raise self.wrong(name, f"behind {word.text}", "a member's name")
                self.at += 1
                if self.is_next("("):
                    raise self.wrong(name, "is a method, which no value has", "FUNCTION(VALUE) or VALUE | FUNCTION()")
                term = self.member(term, _constant(STRING, name.text), word, optional=word.text == "?.")
            elif self.take("["):
                term = self.index(term, word, optional=False)
            else:
                return term

    def index(self, term: _Term, word: _Word, *, optional: bool) -> _Term:
        """What `[` up to `]` takes of a value."""
        start = _constant(INT, 0)
        if not self.is_next(":"):
            start = self.expression(0)
        if not self.take(":"):
            self.expect("]")
            return self.member(term, start, word, optional=optional)
        end: _Term | None = None
        if not self.is_next("]"):
            end = self.expression(0)
        self.expect("]")
        if not (fits(term.kind, "array", "string") and fits(start.kind, "int")):
            raise self.wrong(word, f"takes a slice of {term.kind}", "text or an array, and whole numbers")
        if end is not None and not fits(end.kind, "int"):
            raise self.wrong(word, f"takes a slice up to {end.kind}", "a whole number")
        value, low, high = term.run, start.run, end.run if end is not None else lambda _: None

        def run(scope: Scope) -> Any:
            found, first, last = value(scope), low(scope), high(scope)
            size = len(found)
            first = min(max(first + size if first < 0 else first, 0), size)
            last = size if last is None else min(max(last + size if last < 0 else last, 0), size)
            return scope.work.made(found[first : max(first, last)])

        return _Term(term.kind, run, depth=_deeper(term, start))

    def member(self, term: _Term, key: _Term, word: _Word, *, optional: bool) -> _Term:
        """One element of an array, or one value of a map."""
        of = term.kind.name
        good = fits(key.kind, "int") if of == "array" else fits(key.kind, "string") if of == "map" else of == "any"
        if not good:
            raise self.wrong(word, f"takes {key.kind} of {term.kind}", "an array and a number, or a map and text")
        value, wanted = term.run, key.run

        def run(scope: Scope) -> Any:
            found = value(scope)
            if found is None and optional:
                return None
            at = wanted(scope)
            if isinstance(found, Mapping):
                return found.get(a_key(at))
            if isinstance(found, str) or isinstance(at, bool) or not isinstance(at, int):
                raise TypeError("no member")
            if not -len(found) <= at < len(found):
                raise IndexError(at)
            return found[at]

        kind = (term.kind.of or ANY) if of == "array" and not optional else ANY
        return _Term(kind, run, depth=_deeper(term, key))

    # Calls

    def call(self, word: _Word, args: list[_Term]) -> _Term:
        """A function's call; the words from `(` on are next. args: those that stand in front."""
        self.expect("(")
        if word.text in PREDICATES and word.text not in self.functions:
            return self.predicate(word, args)
        while not self.take(")"):
            if args and self.words[self.at - 1].text != "(":
                self.expect(",")
                if self.take(")"):
                    break
            args.append(self.expression(0))
        function = self.functions.get(word.text)
        if function is None:
            return self.builtin(word, args)
        self.arguments(word, args, function.takes, len(function.takes))
        for arg, check in zip(args, function.checks, strict=False):
            if check is not None and arg.constant is not _NOTHING:
                check(arg.constant)
        self.calls.add(word.text)
        call, runs = function.call, [arg.run for arg in args]
        return _Term(
            function.gives, lambda scope: call(scope.context, *[run(scope) for run in runs]), depth=_deeper(*args)
        )

    def arguments(self, word: _Word, args: Sequence[_Term], takes: Sequence[Kind], least: int) -> None:
        usage = f"{word.text}({', '.join(map(str, takes))})"
        if not least <= len(args) <= len(takes):
            raise self.wrong(word, f"has {len(args)} arguments", usage)
        for arg, kind in zip(args, takes, strict=False):
            if kind.name != "any" and not fits(arg.kind, *(NUMBERS if kind is FLOAT else (kind.name,))):
                raise self.wrong(word, f"is given {arg.kind}", usage)

    def builtin(self, word: _Word, args: list[_Term]) -> _Term:
        """A call of one of the language's own functions."""
        builtin = BUILTINS[word.text]
        takes = builtin.takes * max(1, len(args)) if builtin.many else builtin.takes
        self.arguments(word, args, takes, builtin.least)
        for arg in args if builtin.many else args[:1]:
            if builtin.of and not fits(arg.kind, *builtin.of):
                raise self.wrong(word, f"is given {arg.kind}", ", ".join(builtin.of))
        call, runs = builtin.call, [arg.run for arg in args]
        kind = builtin.gives if isinstance(builtin.gives, Kind) else builtin.gives([arg.kind for arg in args])

        def run(scope: Scope) -> Any:
            return scope.work.made(call(scope.work, *[run(scope) for run in runs]))

        return _Term(kind, run, depth=_deeper(*args))

    def predicate(self, word: _Word, args: list[_Term]) -> _Term:
        """A call that goes through an array with a condition or expression: `any(array, # == 1)`."""
        predicate = PREDICATES[word.text]
        piped = bool(args)
        array = args[0] if piped else self.expression(0)
        usage = f"{word.text}(ARRAY, {'CONDITION' if predicate.judges else 'VALUE'}), in which # is each element"
        if not fits(array.kind, "array"):
            raise self.wrong(word, f"is given {array.kind}", usage)
        element = array.kind.of or ANY
        each = _Term(element, lambda scope: scope.element)
        more: _Term | None = None
        if not (predicate.optional and self.is_next(")")):
            if not piped:
                self.expect(",")
            self.elements.append((element, predicate.pointers))
            each = self.braces() if self.is_next("{") else self.expression(0)
            self.elements.pop()
            if predicate.more is not None and not self.is_next(")"):
                self.expect(",")
                more = self.expression(0)
        self.take(",")
        self.expect(")")
        if predicate.judges and not fits(each.kind, "bool"):
            raise self.wrong(word, f"has a condition that is {each.kind}", usage)
        if more is not None and predicate.more == STRING and not fits(more.kind, "string"):
            raise self.wrong(word, f"has {more.kind} behind its value", "'asc' or 'desc'")
        run = _reduced(array, each, more) if word.text == REDUCE else _gone_through(predicate, array, each, more)
        terms = (array, each) if more is None else (array, each, more)
        return _Term(predicate.gives(array.kind, each.kind), run, depth=_deeper(*terms))

    # Operators

    def unary(self, operator: str, term: _Term, word: _Word) -> _Term:
        """`not`, `-` or `+` before a value."""
        run = term.run
        if operator in ("not", "!"):
            if not fits(term.kind, "bool"):
                raise self.wrong(word, f"of {term.kind}", "not of a condition")
            return _Term(BOOL, lambda scope: not boolean(run(scope)), depth=term.depth + 1)
        if not fits(term.kind, *NUMBERS):
            raise self.wrong(word, f"of {term.kind}", "a number")
        sign = -1 if operator == "-" else 1
        if term.constant is not _NOTHING:
            return _constant(term.kind, sign * term.constant)
        return _Term(term.kind, lambda scope: wrapped(sign * numeric(run(scope))), depth=term.depth + 1)

    def junction(self, terms: list[_Term], word: _Word, either: bool) -> _Term:
        """`or` and `and`."""
        for term in terms:
            if not fits(term.kind, "bool"):
                raise self.wrong(word, f"between {' and '.join(str(term.kind) for term in terms)}", "conditions")
        runs = [term.run for term in terms]

        def any_of(scope: Scope) -> bool:
            return any(boolean(run(scope)) for run in runs)

        def all_of(scope: Scope) -> bool:
            return all(boolean(run(scope)) for run in runs)

        return _Term(BOOL, any_of if either else all_of, depth=_deeper(*terms))

    def binary(self, left: _Term, word: _Word, right: _Term) -> _Term:
        """Any other operator between two values."""
        operator = word.text
        kind = result(operator, left.kind, right.kind)
        if kind is None:
            raise self.wrong(word, f"between {left.kind} and {right.kind}", ACCEPTED.get(operator, "numbers"))
        one, other, depth = left.run, right.run, _deeper(left, right)
        if operator == "??":

            def coalesce(scope: Scope) -> Any:
                found = one(scope)
                return other(scope) if found is None else found

            return _Term(kind, coalesce, depth=depth)
        if operator == "matches" and right.constant is not _NOTHING:
            matches = regex(right.constant).matches
            return _Term(kind, lambda scope: matches(text_of(one(scope))), depth=depth)
        do = OPERATIONS[operator]
        return _Term(kind, lambda scope: do(scope.work, one(scope), other(scope)), depth=depth)


def _gone_through(predicate: Predicate, array_term: _Term, term: _Term, more: _Term | None) -> Run:
    """What goes through an array, with what it finds for each element."""
    whole, each, through = array_term.run, term.run, predicate.through
    extra = more.run if more is not None else None

    def pairs(scope: Scope, found: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        context, work, values = scope[:3]
        places = range(len(found))
        for index in reversed(places) if predicate.backwards else places:
            work.spend(1)
            element = found[index]
            yield index if predicate.counts else element, each(Scope(context, work, values, element, index))

    def run(scope: Scope) -> Any:
        given = pairs(scope, array(whole(scope)))
        if extra is None:
            return through(scope.work, given)
        return through(scope.work, given, extra(scope))

    return run


def _reduced(array_term: _Term, term: _Term, first: _Term | None) -> Run:
    """What makes one value of an array, beginning with a first one, or with the first element."""
    whole, each, start = array_term.run, term.run, first.run if first is not None else None

    def run(scope: Scope) -> Any:
        found = array(whole(scope))
        if start is None and not found:
            raise ValueError("reduce of an empty array")
        context, work, values = scope[:3]
        so_far = start(scope) if start is not None else found[0]
        for index in range(0 if start is not None else 1, len(found)):
            work.spend(1)
            so_far = each(Scope(context, work, values, found[index], index, so_far))
        return so_far

    return run


def _deeper(*terms: _Term) -> int:
    return 1 + max((term.depth for term in terms), default=0)
