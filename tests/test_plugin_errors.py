"""errors: what failed is written, or counted."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from kdns.corefile.values import Regex
from kdns.observe.logs import Log, Sink
from kdns.plugins import errors
from kdns.plugins.errors import Consolidate
from kdns.wire import rr
from kdns.wire.message import Query, Response
from tests.conftest import Serve
from tests.support import procs
from tests.support.configs import options, refused
from tests.support.plugins import Behind, Ground, answered, query
from tests.support.server import Server

pytestmark = pytest.mark.one_speed

COREFILE = """
.:$dns {
    bind 127.0.0.1
    errors
}
many.test:$dns {
    bind 127.0.0.1
    errors {
        consolidate 1s nothing warning
        consolidate 1s "^no plugin .* answers this$" warning
        consolidate 1s "no plugin" error
    }
}
first.test:$dns {
    bind 127.0.0.1
    errors {
        consolidate 1s "no PLUGIN"
        consolidate 1s "no plugin" info show_first
    }
}
late.test:$dns {
    bind 127.0.0.1
    errors {
        consolidate 1h "no plugin"
    }
}
debug.test:$dns {
    bind 127.0.0.1
    errors {
        consolidate 0s "no plugin" debug show_first
    }
}
"""
REASON = "no plugin of the server block answers this"


def wait_for(server: Server, line: str) -> None:
    procs.wait_until(lambda: line in server.log, 8, line)


def test_errors_are_written_and_counted(serve: Serve) -> None:
    server = serve(corefile=COREFILE)
    server.query("Plain.test", "AAAA")
    wait_for(server, f"[ERROR] plugin/errors: 2 plain.test. AAAA: {REASON}\n")
    server.query("one.first.test")
    wait_for(server, f"[INFO] plugin/errors: 2 one.first.test. A: {REASON}\n")
    for _ in range(2):
        server.query("a.many.test")
        server.query("a.many.test", tcp=True)
    wait_for(server, "[WARNING] plugin/errors: 4 errors like '^no plugin .* answers this$' occurred in last 1s\n")
    server.query("two.first.test")
    server.query("three.first.test")
    wait_for(server, "[INFO] plugin/errors: 2 errors like 'no plugin' occurred in last 1s\n")
    for _ in range(3):
        server.query("a.late.test")
        server.query("a.debug.test")
    server.write_corefile(COREFILE + "# changed\n")
    server.signal(signal.SIGUSR1)
    wait_for(server, "[ERROR] plugin/errors: 3 errors like 'no plugin' occurred in last 1h\n")
    for absent in ("a.many.test", "three.first.test", "a.late.test", "a.debug.test", "DEBUG", "like 'nothing'"):
        assert absent not in server.log
    assert "1 errors" not in server.log


def handler(ground: Ground, *consolidate: Consolidate, stacktrace: bool = False) -> errors.Handler:
    return errors.Handler(errors.Options(stacktrace, consolidate), ground.site)


def fail(handler: errors.Handler, reason: str, name: str = "Foo.org") -> None:
    response = answered(handler, query(name), Behind(Response(rcode=rr.SERVFAIL, error=reason)))
    assert (response.rcode, response.error) == (rr.SERVFAIL, reason)


def test_a_failure_is_a_line_and_everything_else_is_none() -> None:
    ground = Ground()
    fail(handler(ground), "no route")
    answered(handler(ground), query("a.org"))
    assert ground.log.lines == ["[ERROR] plugin/errors: 2 foo.org. A: no route"]
    assert not ground.background


@pytest.mark.parametrize("stacktrace", [True, False])
def test_the_stack_of_an_exception_is_written_only_if_wanted(stacktrace: bool) -> None:
    async def broken(_query: Query) -> Response:
        raise ZeroDivisionError("by nought")

    ground = Ground()
    with pytest.raises(ZeroDivisionError):
        answered(handler(ground, stacktrace=stacktrace), query("a.org"), broken)
    assert ["by nought" in text and "Traceback" in text for text in ground.log.lines] == [True] * stacktrace


def test_one_mistake_that_many_names_meet_is_one_kind_of_message() -> None:
    async def broken(_query: Query) -> Response:
        raise ZeroDivisionError("by nought")

    with Path(os.devnull).open("wb") as nowhere:
        sink = Sink(nowhere.fileno())
        handler = errors.Handler(errors.Options(stacktrace=True), replace(Ground().site, log=Log(sink)))
        for number in range(30):
            with pytest.raises(ZeroDivisionError):
                answered(handler, query(f"{number}.org"), broken)
        sink.close()
    assert [message.count for message in sink.recent.messages()] == [30]


def test_the_first_expression_that_matches_counts_and_the_rest_is_written_at_the_end() -> None:
    ground = Ground()
    both = handler(
        ground, Consolidate(Regex("out$"), 60, "1m", "warning"), Consolidate(Regex("time"), 60, "1m", show_first=True)
    )
    for reason in ("a time out", "b time out", "time is up", "time flies", "else", "x" * 2000 + "out"):
        fail(both, reason)

    async def end() -> None:
        task = asyncio.create_task(ground.background[0])
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    said = ["time is up", "else"]
    assert ground.log.lines == [f"[ERROR] plugin/errors: 2 foo.org. A: {reason}" for reason in said]
    ground.log.lines.clear()
    asyncio.run(end())
    assert ground.log.lines == [
        "[WARNING] plugin/errors: 3 errors like 'out$' occurred in last 1m",
        "[ERROR] plugin/errors: 2 errors like 'time' occurred in last 1m",
    ]


def test_options() -> None:
    assert options("errors") == options("errors stdout") == errors.Options()
    assert options("errors {\nstacktrace\n}") == errors.Options(stacktrace=True)
    found = options('errors {\nconsolidate 5m "a b$"\nconsolidate 1s x warning\nconsolidate 1s x info show_first\n}')
    assert found.consolidate == (
        Consolidate(Regex("a b$"), 300, "5m"),
        Consolidate(Regex("x"), 1, "1s", "warning"),
        Consolidate(Regex("x"), 1, "1s", "info", True),
    )
    assert options("errors {\nconsolidate 5m x show_first\n}").consolidate == (
        Consolidate(Regex("x"), 300, "5m", "error", True),
    )


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ("errors stderr", '1: errors: "stderr" is not known'),
        ("errors {\nstacktrace on\n}", '2: errors: "stacktrace" has 1 argument'),
        ("errors {\nconsolidate 5m\n}", '2: errors: "consolidate" has 1 argument'),
        ("errors {\nconsolidate x x\n}", '2: errors: "x" is not a duration'),
        ("errors {\nconsolidate -1s x\n}", '2: errors: "-1s" is too short'),
        ("errors {\nconsolidate 5m x fatal\n}", '2: errors: "fatal" is not known'),
        ("errors {\nconsolidate 5m x info warning\n}", '2: errors: "warning" is not known'),
        ("errors {\nconsolidate 5m x show_first info\n}", '2: errors: "info" follows show_first'),
        ("errors {\nconsolidate 5m (\n}", '2: errors: "(" is no expression: missing )'),
        (f"errors {{\nconsolidate 5m {'x' * 10001}\n}}", "2: errors: the expression has 10001 characters"),
    ],
)
def test_mistakes(directive: str, message: str) -> None:
    (found,) = refused(directive)
    assert found.startswith(message)
