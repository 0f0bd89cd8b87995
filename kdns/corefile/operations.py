"""The types and operators of the language of expressions.

What is given a value that it cannot take raises; what a value is worked out of is always data, never code. Values are
None, bool, int, float, str, tuple or range (arrays), and dict (maps).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kdns.corefile.values import regex

MAX_RANGE = 1_000_000
"""A range has less elements than this."""
MOST = 100_000
"""Elements that one expression may go through, and elements and characters that it may make, in all."""


class Work:
    """What one expression may still do, whatever it is given."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MOST

    def spend(self, amount: int) -> None:
        """Raises ValueError where that is more than is left."""
        self.left -= amount
        if self.left < 0:
            raise ValueError(f"it takes more than {MOST} steps")

    def made(self, value: Any) -> Any:
        """A value that was made, after its size was spent."""
        self.spend(len(value) if isinstance(value, (str, tuple, dict)) else 1)
        return value


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


def chosen(one: Kind, other: Kind) -> Kind:
    """The type of what is one or the other."""
    if NIL in (one, other):
        return other if one == NIL else one
    return common((one, other))


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
        return chosen(*kinds)
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


def whole(value: Any) -> int:
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


def array(value: Any) -> Sequence[Any]:
    if not isinstance(value, (tuple, range)):
        raise TypeError("no array")
    return value


def mapping(value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError("no map")
    return value


def a_key(value: Any) -> Any:
    """A value that can be a key: an array is none, and what finds one may go through arrays within it for ever."""
    if isinstance(value, (tuple, range)):
        raise TypeError("an array is no key")
    return value


def equal(work: Work, one: Any, other: Any) -> bool:
    if isinstance(one, (tuple, range)) and isinstance(other, (tuple, range)):
        work.spend(len(one))
        return len(one) == len(other) and all(equal(work, *pair) for pair in zip(one, other, strict=True))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        work.spend(len(one))
        return one.keys() == other.keys() and all(equal(work, one[key], other[key]) for key in one)
    if isinstance(one, bool) is not isinstance(other, bool):
        return False
    return bool(one == other)


def _within(work: Work, element: Any, container: Any) -> bool:
    if container is None:
        return False
    if isinstance(container, Mapping):
        return a_key(element) in container
    if isinstance(container, range):
        return numeric(element) in container
    work.spend(len(array(container)))
    return any(equal(work, element, other) for other in container)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Work, Any, Any], bool]:
    def do(_: Work, one: Any, other: Any) -> bool:
        if isinstance(one, str):
            return compare(one.encode("utf-8", "surrogatepass"), text_of(other).encode("utf-8", "surrogatepass"))
        return compare(numeric(one), numeric(other))

    return do


def add(work: Work, one: Any, other: Any) -> Any:
    if isinstance(one, str):
        return work.made(one + text_of(other))
    return wrapped(numeric(one) + numeric(other))


def _divide(_: Work, one: Any, other: Any) -> float:
    above, below = float(numeric(one)), float(numeric(other))
    if below:
        return above / below
    return math.nan if not above or math.isnan(above) else math.copysign(math.inf, above) * math.copysign(1, below)


def _rest(_: Work, one: Any, other: Any) -> int:
    """As Go has it: the sign is that of the number that is divided."""
    above, below = whole(one), whole(other)
    return -(-above % abs(below)) if above < 0 else above % abs(below)


def _range(_: Work, one: Any, other: Any) -> range:
    found = range(whole(one), whole(other) + 1)
    if len(found) >= MAX_RANGE:
        raise ValueError("too large a range")
    return found


OPERATIONS: Mapping[str, Callable[[Work, Any, Any], Any]] = {
    "==": equal,
    "!=": lambda work, one, other: not equal(work, one, other),
    "<": _ordered(lambda one, other: one < other),
    ">": _ordered(lambda one, other: one > other),
    "<=": _ordered(lambda one, other: one <= other),
    ">=": _ordered(lambda one, other: one >= other),
    "in": _within,
    "matches": lambda _, one, other: regex(text_of(other)).matches(text_of(one)),
    "contains": lambda _, one, other: text_of(other) in text_of(one),
    "startsWith": lambda _, one, other: text_of(one).startswith(text_of(other)),
    "endsWith": lambda _, one, other: text_of(one).endswith(text_of(other)),
    "..": _range,
    "+": add,
    "-": lambda _, one, other: wrapped(numeric(one) - numeric(other)),
    "*": lambda _, one, other: wrapped(numeric(one) * numeric(other)),
    "/": _divide,
    "%": _rest,
    "**": lambda _, one, other: math.pow(numeric(one), numeric(other)),
    "^": lambda _, one, other: math.pow(numeric(one), numeric(other)),
}
