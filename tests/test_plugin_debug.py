"""debug: more in the log, for finding faults."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.plugins import debug
from kdns.plugins.debug import hexdump
from kdns.wire.message import Query, Response
from tests.conftest import Serve
from tests.support import procs
from tests.support.configs import options, refused
from tests.support.plugins import Ground, Lines, answered, query
from tests.support.server import Server

pytestmark = pytest.mark.one_speed

COREFILE = """
debug.test:$dns {
    bind 127.0.0.1
    debug
    local
    errors {
        consolidate 1s "no plugin" debug
    }
}
.:$dns {
    bind 127.0.0.1
    local
    errors {
        consolidate 1s "no plugin" debug
    }
}
"""


def test_a_hexdump_is_what_text2pcap_reads() -> None:
    data = bytes.fromhex("000a01000001000000000001076578616d706c65056c6f63616c00000100010000291000000080000000")
    assert hexdump(data) == [
        "debug: 000000 00 0a 01 00 00 01 00 00 00 00 00 01 07 65 78 61",
        "debug: 000010 6d 70 6c 65 05 6c 6f 63 61 6c 00 00 01 00 01 00",
        "debug: 000020 00 29 10 00 00 00 80 00 00 00",
        "debug: 00002a",
    ]


@given(st.binary(max_size=300))
def test_every_byte_stands_at_its_offset(data: bytes) -> None:
    *lines, last = hexdump(data)
    found = b""
    for line in lines:
        match = re.fullmatch(r"debug: ([0-9a-f]{6})((?: [0-9a-f]{2}){1,16})", line)
        assert match is not None
        assert int(match[1], 16) == len(found)
        found += bytes.fromhex(match[2])
    assert found == data
    assert last == f"debug: {len(data):06x}"


def test_a_message_is_written_only_to_a_log_for_debugging() -> None:
    log = Lines()
    debug.dump(log, "odd", b"\1\2")
    assert not log.lines
    log.debugging = True
    debug.dump(log, "odd", b"\1\2")
    assert log.lines == ["[DEBUG] odd", "debug: 000000 01 02", "debug: 000002"]


def test_a_server_block_with_debug_has_lines_of_that_level_and_others_have_not(serve: Serve) -> None:
    server = serve(corefile=COREFILE)
    for zone in ("other.test", "debug.test"):
        server.query(f"localhost.{zone}")
        server.query(f"a.{zone}")
    line = "[DEBUG] plugin/local: localhost.debug.test. A asked for by 127.0.0.1\n"
    procs.wait_until(lambda: line in server.log, 5, line)
    line = "[DEBUG] plugin/errors: 1 errors like 'no plugin' occurred in last 1s\n"
    procs.wait_until(lambda: line in server.log, 5, line)
    assert server.log.count("[DEBUG]") == 2


def wait_for(server: Server, pattern: str) -> None:
    procs.wait_until(lambda: re.search(pattern, server.log) is not None, 5, pattern)


def test_messages_that_are_no_queries_are_written_where_a_server_block_has_debug(serve: Serve) -> None:
    server = serve(corefile=COREFILE)
    for data, reason in (
        (b"\0\1\2", "short"),
        (bytes.fromhex("00018000" + "0000" * 4), "response"),
        (bytes(12), "format"),
    ):
        server.raw_udp(data, timeout=0.1)
        line = rf"\[DEBUG\] plugin/debug: no query \({reason}\), {len(data)} bytes from 127.0.0.1 port \d+\n"
        expected = line + "\n".join(hexdump(data)) + "\n"
        wait_for(server, expected)
    quiet = serve(corefile=COREFILE.replace("    debug\n", ""))
    quiet.raw_udp(bytes(12))
    assert "debug" not in quiet.log


def test_the_stack_of_an_exception_is_written_and_the_exception_goes_on() -> None:
    async def broken(_query: Query) -> Response:
        raise ZeroDivisionError("by nought")

    ground = Ground(debug=True)
    with pytest.raises(ZeroDivisionError):
        answered(debug.Handler(debug.Options(), ground.site), query("Foo.org"), broken)
    first, *stack = ground.log.lines
    assert first == "[DEBUG] plugin/debug: foo.org. A of 192.0.2.7 ended in an exception"
    assert stack[0] == "debug: Traceback (most recent call last):"
    assert stack[-1] == "debug: ZeroDivisionError: by nought"
    assert len(stack) > 4
    assert not any("\n" in line for line in stack)


def test_it_takes_no_options() -> None:
    assert options("debug") == debug.Options()
    assert refused("debug on") == ["1: debug has 1 argument"]
    assert refused("debug {\nx\n}") == ['2: debug has no option "x"']
