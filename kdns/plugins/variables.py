"""What `var` and `expr` of `template` work out of a query that one of its expressions matches."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kdns.corefile import expression, functions
from kdns.corefile.expression import Expression, Function
from kdns.corefile.operations import ANY, NIL, STRING, Kind, Work
from kdns.corefile.values import shown
from kdns.errors import ConfigValueError, TemplateError
from kdns.plugins import conditions
from kdns.wire.message import Metadata, Query


class Matched(NamedTuple):
    """A query, with what is known of it as `conditions.Asked` has it. groups: what matched, by name and number."""

    query: Query
    known: Metadata | None
    groups: Mapping[str, str]


def _group(matched: Matched, name: Any) -> str:
    return matched.groups.get(str(name), "") if isinstance(name, (int, str)) and not isinstance(name, bool) else ""


FUNCTIONS: Mapping[str, Function] = {**conditions.FUNCTIONS, "group": Function((ANY,), STRING, _group)}
_SHARED = frozenset(("class", "do", "group", "incidr", "name", "type"))
"""Functions of what `cache` knows queries by."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class Variables:
    """Those of one rule, and its conditions, at work.

    personal: they can tell queries of the same bytes apart. apart: they can tell apart what is one query for `cache`.
    """

    def __init__(self, lines: Sequence[tuple[str, str]]) -> None:
        """lines: the name, empty for a condition, and the expression of each, in their order: what is above counts.

        Raises ConfigValueError.
        """
        self._variables: dict[str, Expression] = {}
        self._conditions: list[Expression] = []
        given: list[tuple[str, Kind]] = []
        for name, text in lines:
            if not name:
                self._conditions.append(conditions.condition(text, FUNCTIONS, given))
                continue
            self._check(name)
            self._variables[name] = found = expression.parse(text, FUNCTIONS, given)
            given.append((name, ANY if found.kind == NIL else found.kind))
        every = (*self._variables.values(), *self._conditions)
        self.personal = any(each.personal for each in every)
        self.apart = not all(each.calls <= _SHARED for each in every)

    def _check(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigValueError(f"{shown(name)} is no name of a variable", "letters, digits and _, no digit first")
        if name in self._variables or expression.is_reserved(name, FUNCTIONS):
            raise ConfigValueError(f"{shown(name)} has a meaning already", "another name")

    def judge(self, matched: Matched) -> dict[str, Any] | None:
        """The values for templates; None if not all conditions are true. Raises TemplateError."""
        values: tuple[Any, ...] = ()
        shaped = {}
        what = ""
        try:
            for name, variable in self._variables.items():
                what = f"var {name}"
                values += (variable.value(matched, values),)
                shaped[name] = functions.plain(Work(), values[-1])
            for condition in self._conditions:
                what = f"expr {shown(condition.text)}"
                if condition.value(matched, values) is not True:
                    return None
        except Exception as error:  # whatever it is, there is no value
            raise TemplateError(f"{what} cannot be worked out: {error}") from None
        return shaped
