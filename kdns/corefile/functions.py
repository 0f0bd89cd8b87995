"""The language's own functions: those that take values, and those that go through an array.

What makes more than its arguments have says so before it makes it (`Work`).
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from kdns.corefile.goformat import printed
from kdns.corefile.operations import (
    ANY,
    ARRAY,
    BOOL,
    FLOAT,
    INT,
    MAP,
    NUMBERS,
    STRING,
    Kind,
    Work,
    a_key,
    add,
    array,
    boolean,
    equal,
    mapping,
    numeric,
    text_of,
    whole,
    wrapped,
)  # fmt: skip

MAX_NESTING = 50
"""How deep arrays and maps may be within each other where a function goes into them."""
_BITS = 64


class Builtin(NamedTuple):
    """call: is given the work and the arguments. gives: the type, or what makes it of the arguments' types.

    least: how many of the arguments there have to be. of: types that the first one may have, if not only one; that all
    may have where there may be any number (many).
    """

    takes: tuple[Kind, ...]
    gives: Kind | Callable[[Sequence[Kind]], Kind]
    call: Callable[..., Any]
    least: int
    of: tuple[str, ...] = ()
    many: bool = False


def _first(kinds: Sequence[Kind]) -> Kind:
    return kinds[0]


def _element(kinds: Sequence[Kind]) -> Kind:
    """The type of an element of the first argument."""
    return (kinds[0].of or ANY) if kinds[0].name == "array" else ANY


def _number(kinds: Sequence[Kind]) -> Kind:
    return kinds[0] if all(kind.name in NUMBERS for kind in kinds) else ANY


# Text


def _size(text: str) -> bytes:
    return text_of(text).encode("utf-8", "surrogatepass")


def _split(_: Work, text: str, separator: str, most: int = -1) -> tuple[str, ...]:
    if not most:
        return ()
    limit = most - 1 if most > 0 else -1
    if separator:
        return tuple(text_of(text).split(separator, limit))
    return tuple(text) if limit < 0 or limit >= len(text) else (*text[:limit], text[limit:])


def _split_after(work: Work, text: str, separator: str, most: int = -1) -> tuple[str, ...]:
    parts = _split(work, text, separator, most)
    return (*(part + separator for part in parts[:-1]), *parts[-1:])


def _replaced(work: Work, text: str, old: str, new: str, most: int = -1) -> str:
    count = text_of(text).count(old) if most < 0 else min(most, text.count(old))
    work.spend(count * len(text_of(new)))
    return text.replace(old, new, most)


def _repeated(work: Work, text: str, count: int) -> str:
    if whole(count) < 0:
        raise ValueError(f"repeat {count} times")
    work.spend(len(text_of(text)) * count)
    return text * count


def _joined(work: Work, parts: Any, glue: str = "") -> str:
    work.spend(sum(len(text_of(part)) + len(glue) for part in array(parts)))
    return glue.join(parts)


def _to_base64(_: Work, text: str) -> str:
    return base64.b64encode(text_of(text).encode("utf-8", "surrogateescape")).decode()


def _from_base64(_: Work, text: str) -> str:
    plain = text_of(text).replace("\r", "").replace("\n", "")
    return base64.b64decode(plain, validate=True).decode("utf-8", "surrogateescape")


# Numbers


def _integer(_: Work, value: Any) -> int:
    if isinstance(value, str):
        if not re.fullmatch(r"[-+]?[0-9]{1,19}", value, re.ASCII) or wrapped(int(value)) != int(value):
            raise ValueError(f"{value[:40]} is no whole number")
        return int(value)
    return int(wrapped(math.trunc(numeric(value))))


def _floating(_: Work, value: Any) -> float:
    if isinstance(value, str) and not re.fullmatch(r"[-+.0-9a-zA-Z]+", value, re.ASCII):
        raise ValueError(f"{value[:40]} is no number")
    return float(value) if isinstance(value, str) else float(numeric(value))


def _absolute(_: Work, value: Any) -> Any:
    return wrapped(abs(numeric(value)))


def _rounding(do: Callable[[float], float]) -> Callable[[Work, Any], float]:
    def call(_: Work, value: Any) -> float:
        number = float(numeric(value))
        return float(do(number)) if math.isfinite(number) else number

    return call


def _half_away(number: float) -> float:
    return math.copysign(math.floor(abs(number) + 0.5), number) if abs(number) < 1 << 52 else number


def _numbers(work: Work, values: Sequence[Any]) -> Iterator[Any]:
    """All numbers in arrays that may be within each other."""
    return map(numeric, _flat(work, values))


def _mean(work: Work, *values: Any) -> float:
    count, total = 0, 0.0
    for number in _numbers(work, values):
        count, total = count + 1, total + number
    return total / count if count else 0.0


def _median(work: Work, *values: Any) -> float:
    found = sorted(map(float, _numbers(work, values)))
    middle = len(found) // 2
    if len(found) % 2:
        return found[middle]
    return (found[middle - 1] + found[middle]) / 2 if found else 0.0


def _shift(count: int) -> int:
    if count < 0:
        raise ValueError("a negative shift")
    return min(_BITS, count)


def _bits(do: Callable[[int, int], int]) -> Builtin:
    return Builtin((INT, INT), INT, lambda _, one, other: wrapped(do(whole(one), whole(other))), 2)


# Arrays and maps


def _flat(work: Work, values: Sequence[Any], depth: int = 0) -> Iterator[Any]:
    if depth > MAX_NESTING:
        raise ValueError("too deep an array")
    for value in values:
        work.spend(1)
        if isinstance(value, (tuple, range)):
            yield from _flat(work, value, depth + 1)
        else:
            yield value


def _every(work: Work, value: Any) -> tuple[Any, ...]:
    """An array with all of its elements."""
    work.spend(len(array(value)))
    return tuple(value)


def _unique(work: Work, value: Any) -> tuple[Any, ...]:
    found: list[Any] = []
    for element in array(value):
        work.spend(1 + len(found))
        if not any(equal(work, element, other) for other in found):
            found.append(element)
    return tuple(found)


def _taken(_: Work, value: Any, count: int) -> Any:
    if whole(count) < 0:
        raise ValueError(f"take {count} elements")
    return array(value)[:count]


def _at(_: Work, value: Any, key: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return value.get(a_key(key))
    return array(value)[key] if -len(array(value)) <= whole(key) < len(value) else None


def _ordered(values: Sequence[Any]) -> Sequence[Any]:
    """Values that have an order: numbers, or texts."""
    for value in values:
        if isinstance(values[0], str):
            text_of(value)
        else:
            numeric(value)
    return values


def _descends(order: Any) -> bool:
    if order not in ("asc", "desc"):
        raise ValueError("an order is asc or desc")
    return bool(order == "desc")


def _sorted(work: Work, value: Any, order: str = "asc") -> tuple[Any, ...]:
    return tuple(sorted(_ordered(_every(work, value)), reverse=_descends(order)))


def _from_pairs(work: Work, value: Any) -> dict[Any, Any]:
    work.spend(len(array(value)))
    found = {}
    for pair in value:
        key, each = array(pair)
        found[a_key(key)] = each
    _one_type(found)
    return found


def _one_type(keys: Iterable[Any]) -> None:
    """Numbers of several types would be one key: 1, 1.0 and true."""
    if len({type(key) for key in keys}) > 1:
        raise TypeError("keys of several types")


# Type conversion


def plain(work: Work, value: Any, depth: int = 0) -> Any:
    """A value as templates have it: with lists for arrays."""
    if depth > MAX_NESTING:
        raise ValueError("too deep a value")
    if isinstance(value, (tuple, range)):
        work.spend(len(value))
        return [plain(work, each, depth + 1) for each in value]
    if isinstance(value, Mapping):
        work.spend(len(value))
        return {key: plain(work, each, depth + 1) for key, each in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' if value < 0 else '+'}Inf"
    return work.made(value)


def _length(_: Work, value: Any) -> int:
    return len(value)


_SPACE = " \t\n\v\f\r\x85\xa0"
_MASK = (1 << _BITS) - 1
_TEXTS = (STRING, STRING)
_ARRAYS = ("array",)
BUILTINS: Mapping[str, Builtin] = {
    "len": Builtin((ANY,), INT, _length, 1, ("string", "array", "map")),
    "lower": Builtin((STRING,), STRING, lambda _, text: text_of(text).lower(), 1),
    "upper": Builtin((STRING,), STRING, lambda _, text: text_of(text).upper(), 1),
    "trim": Builtin(_TEXTS, STRING, lambda _, text, chars=_SPACE: text_of(text).strip(chars) if chars else text, 1),
    "trimPrefix": Builtin(_TEXTS, STRING, lambda _, text, part=" ": text_of(text).removeprefix(part), 1),
    "trimSuffix": Builtin(_TEXTS, STRING, lambda _, text, part=" ": text_of(text).removesuffix(part), 1),
    "hasPrefix": Builtin(_TEXTS, BOOL, lambda _, text, part: text_of(text).startswith(text_of(part)), 2),
    "hasSuffix": Builtin(_TEXTS, BOOL, lambda _, text, part: text_of(text).endswith(text_of(part)), 2),
    "indexOf": Builtin(_TEXTS, INT, lambda _, text, part: _size(text).find(_size(part)), 2),
    "lastIndexOf": Builtin(_TEXTS, INT, lambda _, text, part: _size(text).rfind(_size(part)), 2),
    "replace": Builtin((STRING, STRING, STRING, INT), STRING, _replaced, 3),
    "repeat": Builtin((STRING, INT), STRING, _repeated, 2),
    "split": Builtin((STRING, STRING, INT), Kind("array", STRING), _split, 2),
    "splitAfter": Builtin((STRING, STRING, INT), Kind("array", STRING), _split_after, 2),
    "join": Builtin((ARRAY, STRING), STRING, _joined, 1),
    "toBase64": Builtin((STRING,), STRING, _to_base64, 1),
    "fromBase64": Builtin((STRING,), STRING, _from_base64, 1),
    "int": Builtin((ANY,), INT, _integer, 1, (*NUMBERS, "string")),
    "float": Builtin((ANY,), FLOAT, _floating, 1, (*NUMBERS, "string")),
    "string": Builtin((ANY,), STRING, lambda work, value: printed(plain(work, value)), 1),
    "abs": Builtin((ANY,), _first, _absolute, 1, NUMBERS),
    "ceil": Builtin((ANY,), FLOAT, _rounding(math.ceil), 1, NUMBERS),
    "floor": Builtin((ANY,), FLOAT, _rounding(math.floor), 1, NUMBERS),
    "round": Builtin((ANY,), FLOAT, _rounding(_half_away), 1, NUMBERS),
    "max": Builtin((ANY,), _number, lambda work, *all: max(_numbers(work, all), default=None), 1,
                   (*NUMBERS, "array"), many=True),
    "min": Builtin((ANY,), _number, lambda work, *all: min(_numbers(work, all), default=None), 1,
                   (*NUMBERS, "array"), many=True),
    "mean": Builtin((ANY,), FLOAT, _mean, 1, (*NUMBERS, "array"), many=True),
    "median": Builtin((ANY,), FLOAT, _median, 1, (*NUMBERS, "array"), many=True),
    "bitand": _bits(lambda one, other: one & other),
    "bitor": _bits(lambda one, other: one | other),
    "bitxor": _bits(lambda one, other: one ^ other),
    "bitnand": _bits(lambda one, other: one & ~other),
    "bitshl": _bits(lambda one, count: one << _shift(count)),
    "bitshr": _bits(lambda one, count: one >> _shift(count)),
    "bitushr": _bits(lambda one, count: (one & _MASK) >> _shift(count)),
    "bitnot": Builtin((INT,), INT, lambda _, one: ~whole(one), 1),
    "concat": Builtin((ANY,), ARRAY, lambda work, *all: sum((_every(work, each) for each in all), ()), 1, _ARRAYS,
                      many=True),
    "flatten": Builtin((ARRAY,), ARRAY, lambda work, value: tuple(_flat(work, array(value))), 1),
    "uniq": Builtin((ARRAY,), ARRAY, _unique, 1),
    "reverse": Builtin((ARRAY,), ARRAY, lambda work, value: _every(work, value)[::-1], 1),
    "sort": Builtin((ARRAY, STRING), ARRAY, _sorted, 1),
    "first": Builtin((ARRAY,), _element, lambda _, value: array(value)[0] if value else None, 1),
    "last": Builtin((ARRAY,), _element, lambda _, value: array(value)[-1] if value else None, 1),
    "take": Builtin((ARRAY, INT), _first, _taken, 2),
    "get": Builtin((ANY, ANY), _element, _at, 2, ("array", "map")),
    "keys": Builtin((MAP,), ARRAY, lambda _, value: tuple(mapping(value)), 1),
    "values": Builtin((MAP,), ARRAY, lambda _, value: tuple(mapping(value).values()), 1),
    "toPairs": Builtin((MAP,), Kind("array", ARRAY), lambda _, value: tuple(mapping(value).items()), 1),
    "fromPairs": Builtin((ARRAY,), ANY, _from_pairs, 1),
}  # fmt: skip

# What goes through an array

Pairs: TypeAlias = Iterator[tuple[Any, Any]]


class Predicate(NamedTuple):
    """A function that goes through an array: of each element, and of what was found for it, it makes its value.

    gives: the type, of those of the array and of what was found. judges: what is found has to be a condition.
    optional: it may stand alone, and is the element itself then. more: what may stand behind it. backwards: it begins
    with the last element. counts: it is given indices for the elements. pointers: what there is beside the element.
    """

    gives: Callable[[Kind, Kind], Kind]
    through: Callable[..., Any]
    judges: bool = True
    optional: bool = False
    more: Kind | None = None
    backwards: bool = False
    counts: bool = False
    pointers: tuple[str, ...] = ()


def _summed(work: Work, pairs: Pairs) -> Any:
    total: Any = 0
    for _, value in pairs:
        total = add(work, total, numeric(value))
    return total


def _grouped(_: Work, pairs: Pairs) -> dict[Any, Any]:
    found: dict[Any, list[Any]] = {}
    for element, key in pairs:
        found.setdefault(a_key(key), []).append(element)
        _one_type(found)
    return {key: tuple(elements) for key, elements in found.items()}


def _sorted_by(_: Work, pairs: Pairs, order: str = "asc") -> tuple[Any, ...]:
    found = list(pairs)
    _ordered([value for _, value in found])
    return tuple(element for element, _ in sorted(found, key=lambda pair: pair[1], reverse=_descends(order)))


def _good(pairs: Pairs) -> Iterator[Any]:
    """The elements for which the condition is true."""
    return (element for element, good in pairs if boolean(good))


def _found(_: Work, pairs: Pairs) -> Any:
    return next(_good(pairs), None)


def _kept(kind: Kind, _: Kind) -> Kind:
    return kind if kind.name == "array" else ARRAY


def _one_of(kind: Kind, _: Kind) -> Kind:
    return _element((kind,))


REDUCE = "reduce"
"""The one that hands on what it has so far: what an expression does with it is in `kdns.corefile.expression`."""
PREDICATES: Mapping[str, Predicate] = {
    "all": Predicate(lambda *_: BOOL, lambda _, pairs: all(boolean(good) for _, good in pairs)),
    "any": Predicate(lambda *_: BOOL, lambda _, pairs: any(boolean(good) for _, good in pairs)),
    "none": Predicate(lambda *_: BOOL, lambda _, pairs: not any(boolean(good) for _, good in pairs)),
    "one": Predicate(lambda *_: BOOL, lambda _, pairs: sum(boolean(good) for _, good in pairs) == 1),
    "count": Predicate(lambda *_: INT, lambda _, pairs: sum(boolean(good) for _, good in pairs), optional=True),
    "filter": Predicate(_kept, lambda _, pairs: tuple(_good(pairs))),
    "find": Predicate(_one_of, _found),
    "findLast": Predicate(_one_of, _found, backwards=True),
    "findIndex": Predicate(lambda *_: INT, _found, counts=True),
    "findLastIndex": Predicate(lambda *_: INT, _found, counts=True, backwards=True),
    "map": Predicate(
        lambda _, found: Kind("array", found), lambda _, pairs: tuple(value for _, value in pairs), judges=False,
        pointers=("index",),
    ),
    "sum": Predicate(lambda _, found: found, _summed, judges=False, optional=True),
    "groupBy": Predicate(lambda *_: ANY, _grouped, judges=False),
    "sortBy": Predicate(_kept, _sorted_by, judges=False, more=STRING),
    REDUCE: Predicate(lambda _, found: found, _found, judges=False, more=ANY, pointers=("index", "acc")),
}  # fmt: skip
ELSEWHERE = frozenset(("date", "duration", "fromJSON", "now", "timezone", "toJSON"))
"""Functions of the language that are not here."""
