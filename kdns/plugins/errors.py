r"""errors: a line for each query that failed.

## Name

*errors* - writes what went wrong to standard output.

## Description

If another plugin could not answer, its reason is written in one line: `[ERROR] plugin/errors: `, the response code's
number, the name and type that were asked for, and the reason.

Errors that come often can be counted instead: of those that match an expression, one line says how many there were.
Each worker counts for itself, and says what it has counted when it ends.

## Syntax

```
errors [stdout] {
    stacktrace
    consolidate DURATION REGEXP [LEVEL] [show_first]
}
```

* `stdout` is where the lines go with or without it.
* `stacktrace`: write the stack too if a query fails by a mistake in kdns itself.
* `consolidate`: count the errors whose reason matches **REGEXP** anywhere, and write a line **DURATION** (up to a
  second more) after the first of them. **LEVEL** of that line is `error` (the default), `warning`, `info` or `debug`
  (written only with *debug*). With `show_first` the first one is written at once, at that level, and the count only if
  there were more. It may be repeated: the first one that matches counts.

**REGEXP** has at most 10000 characters, in the syntax of RE2.

## Metrics

None of its own.

## Examples

```corefile
.:53 {
    errors
    whoami
}
```

```corefile
.:53 {
    errors {
        stacktrace
    }
    whoami
}
```

Upstreams that do not answer make one line in five minutes:

```corefile
.:53 {
    errors {
        consolidate 5m "i/o timeout$" warning show_first
        consolidate 30s "^Loop "
    }
    forward . 192.0.2.53
}
```

## Differences from CoreDNS

An expression that takes more than 1 MB when it is compiled, such as `\pL{1000}`, is refused.

## See also

*log*, *debug*.
"""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.lexer import Token
from kdns.corefile.options import Reader
from kdns.corefile.values import Regex
from kdns.errors import Mistake
from kdns.plugins.chain import Next
from kdns.plugins.site import Site
from kdns.wire import names, rr
from kdns.wire.message import Query, Response

NAME = "errors"
SITED = True
LEVELS = ("error", "warning", "info", "debug")

_CONSOLIDATE = "consolidate DURATION REGEXP [error|warning|info|debug] [show_first]"


@dataclass(frozen=True, slots=True)
class Consolidate:
    """Errors that are counted: those whose reason `pattern` matches. period: seconds, in the Corefile `written`."""

    pattern: Regex
    period: float
    written: str
    level: str = "error"
    show_first: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """stacktrace: whether exceptions are written with their stack. consolidate: the first one that matches counts."""

    stacktrace: bool = False
    consolidate: tuple[Consolidate, ...] = ()


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    stacktrace = False
    counted: list[Consolidate] = []
    for token in reader.arguments(directive, 0, 1, "errors [stdout]"):
        reader.value(token, lambda text: values.choice(text, ("stdout",)))

    def read_stacktrace(item: Directive) -> None:
        nonlocal stacktrace
        reader.arguments(item, 0, 0, "stacktrace")
        stacktrace = True

    def consolidate(item: Directive) -> None:
        args = reader.arguments(item, 2, 4, _CONSOLIDATE)
        if not args:
            return
        period = reader.value(args[0], values.duration)
        pattern = reader.value(args[1], values.regex)
        level, show_first = _how(reader, args[2:])
        if period is not None and pattern is not None:
            counted.append(Consolidate(pattern, period, args[0].text, level, show_first))

    reader.options({"stacktrace": read_stacktrace, "consolidate": consolidate}, repeatable=("consolidate",))
    return Options(stacktrace, tuple(counted)) if reader.sound else None


def _how(reader: Reader, args: tuple[Token, ...]) -> tuple[str, bool]:
    """The level, and whether the first one is shown, in this order; both may be left out."""
    level, show_first = "error", False
    for number, token in enumerate(args):
        known = LEVELS if number == 0 else ()
        word = reader.value(token, lambda text, known=known: values.choice(text, (*known, "show_first")))  # type: ignore[misc]
        if word == "show_first":
            show_first = True
            for more in args[number + 1 :]:
                reader.refuse(more, f"errors: {values.shown(more.text)} follows show_first", _CONSOLIDATE)
            break
        level = word or level
    return level, show_first


class _Counted:
    """How often an expression has matched since `since` (time.monotonic())."""

    __slots__ = ("count", "options", "since")

    def __init__(self, options: Consolidate) -> None:
        self.options = options
        self.count = 0
        self.since = 0.0


class Handler:
    """Writes `Response.error`. With `stacktrace` also the stack of an exception, which goes on to the server."""

    def __init__(self, options: Options, site: Site) -> None:
        log = site.log.plugin(NAME)
        self._stacktrace = options.stacktrace
        self._log = log
        self._counted = [_Counted(consolidate) for consolidate in options.consolidate]
        self._lock = threading.Lock()
        if self._counted:
            site.background(self._watch())

    def passing(self, zone: bytes, server: str) -> tuple[int, ...]:
        """They are no errors."""
        return ()

    async def __call__(self, query: Query, next: Next) -> Response:
        """What the rest of the chain answers."""
        try:
            response = await next(query)
        except Exception as error:
            if self._stacktrace:
                self._log.error(f"{_question(query)}: {traceback.format_exc()}".rstrip(), kind=f"stack of {error!r}")
            raise
        except asyncio.CancelledError as error:
            if error.args:  # the reason that `cancel` gives
                self._note(rr.SERVFAIL, query, str(error.args[0]))
            raise
        if response.error:
            self._note(response.rcode, query, response.error)
        return response

    def _note(self, rcode: int, query: Query, reason: str) -> None:
        level = self._level(reason) if self._counted else "error"
        if level:
            self._say(level, f"{rcode} {_question(query)}: {reason}", f"{rcode} {reason}")

    def _say(self, level: str, text: str, kind: str) -> None:
        """kind: the text without what differs from query to query."""
        match level:
            case "error":
                self._log.error(text, kind=kind)
            case "warning":
                self._log.warning(text, kind=kind)
            case "info":
                self._log.info(text)
            case _:
                self._log.debug(text)

    def _level(self, reason: str) -> str:
        """How to write an error; "" if it is only counted."""
        for counted in self._counted:
            if not counted.options.pattern.matches(reason):
                continue
            with self._lock:
                counted.count += 1
                if counted.count > 1:
                    return ""
                counted.since = time.monotonic()
            return counted.options.level if counted.options.show_first else ""
        return "error"

    async def _watch(self) -> None:
        """Write the counts when their time has come, and at the end."""
        try:
            while True:
                await asyncio.sleep(1)
                now = time.monotonic()
                self._summarize(each for each in self._counted if now - each.since >= each.options.period)
        finally:
            self._summarize(self._counted)

    def _summarize(self, due: Iterable[_Counted]) -> None:
        for counted in due:
            with self._lock:
                count, counted.count = counted.count, 0
            options = counted.options
            if count > options.show_first:
                like = f"errors like '{options.pattern.text}' occurred in last {options.written}"
                self._say(options.level, f"{count} {like}", like)


def _question(query: Query) -> str:
    return f"{names.to_text(query.lname)} {rr.type_text(query.type)}"
