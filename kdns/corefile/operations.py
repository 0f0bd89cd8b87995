"""The types, operators and functions of the language of expressions.

What is given a value that it cannot take raises; what a value is worked out of is always data, never code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kdns.corefile.values import regex

MAX_RANGE = 1_000_000
"""A range has less elements than this."""


class Kind(NamedTuple):
    """A type. of: that of an array's elements or a map's values, if it is known to be one."""

    name: str
    of: Kind | None = None

    def __str__(self) -> str:
        return f"{self.name} of {self.of}" if self.of is not None else self.name


ANY, BOOL, INT, FLOAT, STRING, NIL, MAP, ARRAY = (
    Kind(name) for name in ("any", "bool", "int", "float", "string", "nil", "map", "array")
)
NUMBERS = ("int", "float")


def fits(kind: Kind, *names: str) -> bool:
    return kind.name == "any" or kind.name in names


def common(kinds: Sequence[Kind]) -> Kind:
    """The type that all of these are of."""
    return kinds[0] if kinds and all(kind == kinds[0] for kind in kinds) else ANY


ORDERED = ("<", ">", "<=", ">=")
_TEXTS = ("matches", "contains", "startsWith", "endsWith")
ACCEPTED: Mapping[str, str] = {
    **dict.fromkeys(("==", "!="), "two values of one type"),
    **dict.fromkeys(_TEXTS, "two texts"),
    **dict.fromkeys(ORDERED, "two numbers or two texts"),
    **dict.fromkeys(("%", ".."), "two whole numbers"),
    "in": "an element and an array of such, or a key and a map",
    "+": "two numbers or two texts",
}


def result(operator: str, left: Kind, right: Kind) -> Kind | None:
    """The type of what an operator gives; None if it cannot be between these."""
    kinds = (left, right)

    def both(*names: str) -> bool:
        return all(fits(kind, *names) for kind in kinds)

    if operator in ("==", "!="):
        return BOOL if _comparable(*kinds) else None
    if operator in ORDERED:
        return BOOL if both(*NUMBERS) or both("string") else None
    if operator in _TEXTS:
        return BOOL if both("string") else None
    if operator == "in":
        return BOOL if _holds(*kinds) else None
    if operator == "??":
        return right if left is NIL else common(kinds)
    if operator == "..":
        return Kind("array", INT) if both("int") else None
    if operator == "%":
        return INT if both("int") else None
    if operator == "+" and both("string"):
        return STRING if STRING in kinds else ANY
    if not both(*NUMBERS):
        return None
    if operator in ("/", "**", "^") or FLOAT in kinds:
        return FLOAT
    return INT if kinds == (INT, INT) else ANY


def _comparable(left: Kind, right: Kind) -> bool:
    if "any" in (left.name, right.name) or "nil" in (left.name, right.name) or left.name == right.name:
        return True
    return left.name in NUMBERS and right.name in NUMBERS


def _holds(element: Kind, container: Kind) -> bool:
    if container.name == "array":
        return _comparable(element, container.of or ANY)
    return container.name == "any" or (container.name == "map" and fits(element, "string"))


# Values


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("no condition")
    return value


def numeric(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError("no number")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("no whole number")
    return value


def text_of(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def wrapped(number: Any) -> Any:
    """A whole number as 64 bits hold it."""
    return number if isinstance(number, float) else (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, (tuple, range)) and isinstance(other, (tuple, range)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, bool) is not isinstance(other, bool):
        return False
    return bool(one == other)


def _within(element: Any, container: Any) -> bool:
    if isinstance(container, Mapping):
        return element in container
    if isinstance(container, range):
        return numeric(element) in container
    if not isinstance(container, tuple):
        raise TypeError("nothing to be in")
    return any(_equal(element, other) for other in container)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def do(one: Any, other: Any) -> bool:
        if isinstance(one, str):
            return compare(one.encode("utf-8", "surrogatepass"), text_of(other).encode("utf-8", "surrogatepass"))
        return compare(numeric(one), numeric(other))

    return do


def _add(one: Any, other: Any) -> Any:
    if isinstance(one, str):
        return one + text_of(other)
    return wrapped(numeric(one) + numeric(other))


def _divide(one: Any, other: Any) -> float:
    above, below = float(numeric(one)), float(numeric(other))
    if below:
        return above / below
    return math.nan if not above or math.isnan(above) else math.copysign(math.inf, above) * math.copysign(1, below)


def _rest(one: Any, other: Any) -> int:
    """As Go has it: the sign is that of the number that is divided."""
    above, below = _whole(one), _whole(other)
    return -(-above % abs(below)) if above < 0 else above % abs(below)


def _range(one: Any, other: Any) -> range:
    found = range(_whole(one), _whole(other) + 1)
    if len(found) >= MAX_RANGE:
        raise ValueError("too large a range")
    return found


OPERATIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": _equal,
    "!=": lambda one, other: not _equal(one, other),
    "<": _ordered(lambda one, other: one < other),
    ">": _ordered(lambda one, other: one > other),
    "<=": _ordered(lambda one, other: one <= other),
    ">=": _ordered(lambda one, other: one >= other),
    "in": _within,
    "matches": lambda one, other: regex(text_of(other)).matches(text_of(one)),
    "contains": lambda one, other: text_of(other) in text_of(one),
    "startsWith": lambda one, other: text_of(one).startswith(text_of(other)),
    "endsWith": lambda one, other: text_of(one).endswith(text_of(other)),
    "..": _range,
    "+": _add,
    "-": lambda one, other: wrapped(numeric(one) - numeric(other)),
    "*": lambda one, other: wrapped(numeric(one) * numeric(other)),
    "/": _divide,
    "%": _rest,
    "**": lambda one, other: math.pow(numeric(one), numeric(other)),
    "^": lambda one, other: math.pow(numeric(one), numeric(other)),
}


# The language's own functions


class Builtin(NamedTuple):
    """least: how many of the arguments there have to be. of: types that the first one may have, if not only one."""

    takes: tuple[Kind, ...]
    gives: Kind
    call: Callable[..., Any]
    least: int
    of: tuple[str, ...] = ()


def _integer(value: Any) -> int:
    if isinstance(value, str):
        if not re.fullmatch(r"[-+]?[0-9]+", value, re.ASCII):
            raise ValueError(value)
        return _whole(int(value))
    return int(wrapped(math.trunc(numeric(value))))


def _floating(value: Any) -> float:
    return float(value) if isinstance(value, str) else float(numeric(value))


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return (
        value if isinstance(value, str) else f"{numeric(value):g}" if isinstance(value, float) else str(_whole(value))
    )


def _split(text: str, separator: str, most: int = -1) -> tuple[str, ...]:
    if not most:
        return ()
    limit = most - 1 if most > 0 else -1
    if separator:
        return tuple(text.split(separator, limit))
    return tuple(text) if limit < 0 or limit >= len(text) else (*text[:limit], text[limit:])


def _find(text: str, part: str) -> int:
    """The offset in bytes, as Go counts."""
    return text.encode("utf-8", "surrogatepass").find(part.encode("utf-8", "surrogatepass"))


def _find_last(text: str, part: str) -> int:
    return text.encode("utf-8", "surrogatepass").rfind(part.encode("utf-8", "surrogatepass"))


def _replaced(text: str, old: str, new: str, most: int = -1) -> str:
    return text.replace(old, new, most)


def _joined(parts: Any, glue: str = "") -> str:
    return glue.join(text_of(part) for part in parts)


_SPACE = " \t\n\v\f\r\x85\xa0"
BUILTINS: Mapping[str, Builtin] = {
    "len": Builtin((ANY,), INT, lambda value: len(value), 1, ("string", "array", "map")),
    "lower": Builtin((STRING,), STRING, lambda text: text_of(text).lower(), 1),
    "upper": Builtin((STRING,), STRING, lambda text: text_of(text).upper(), 1),
    "trim": Builtin((STRING, STRING), STRING, lambda text, chars=_SPACE: text.strip(chars) if chars else text, 1),
    "trimPrefix": Builtin((STRING, STRING), STRING, lambda text, part=" ": text.removeprefix(part), 1),
    "trimSuffix": Builtin((STRING, STRING), STRING, lambda text, part=" ": text.removesuffix(part), 1),
    "hasPrefix": Builtin((STRING, STRING), BOOL, lambda text, part: text_of(text).startswith(text_of(part)), 2),
    "hasSuffix": Builtin((STRING, STRING), BOOL, lambda text, part: text_of(text).endswith(text_of(part)), 2),
    "indexOf": Builtin((STRING, STRING), INT, _find, 2),
    "lastIndexOf": Builtin((STRING, STRING), INT, _find_last, 2),
    "replace": Builtin((STRING, STRING, STRING, INT), STRING, _replaced, 3),
    "split": Builtin((STRING, STRING, INT), Kind("array", STRING), _split, 2),
    "join": Builtin((ARRAY, STRING), STRING, _joined, 1),
    "int": Builtin((ANY,), INT, _integer, 1, (*NUMBERS, "string")),
    "float": Builtin((ANY,), FLOAT, _floating, 1, (*NUMBERS, "string")),
    "string": Builtin((ANY,), STRING, _written, 1, (*NUMBERS, "string", "bool")),
}
PREDICATES: Mapping[str, tuple[Kind | None, Callable[[Any], Any]]] = {
    "all": (BOOL, lambda pairs: all(boolean(good) for _, good in pairs)),
    "any": (BOOL, lambda pairs: any(boolean(good) for _, good in pairs)),
    "none": (BOOL, lambda pairs: not any(boolean(good) for _, good in pairs)),
    "one": (BOOL, lambda pairs: sum(boolean(good) for _, good in pairs) == 1),
    "count": (INT, lambda pairs: sum(boolean(good) for _, good in pairs)),
    "filter": (None, lambda pairs: tuple(element for element, good in pairs if boolean(good))),
    "map": (ARRAY, lambda pairs: tuple(value for _, value in pairs)),
}
"""The type of what each gives (None: of what it is given), made of the elements and what was found for each."""
ELSEWHERE = frozenset((
    "abs", "bitand", "bitnand", "bitnot", "bitor", "bitshl", "bitshr", "bitushr", "bitxor", "ceil", "concat", "date",
    "duration", "find", "findIndex", "findLast", "findLastIndex", "first", "flatten", "floor", "fromBase64", "fromJSON",
    "fromPairs", "get", "groupBy", "keys", "last", "max", "mean", "median", "min", "now", "reduce", "repeat", "reverse",
    "round", "sort", "sortBy", "splitAfter", "sum", "take", "timezone", "toBase64", "toJSON", "toPairs", "uniq",
    "values",
))  # fmt: skip
"""Functions of the language that are not here."""
