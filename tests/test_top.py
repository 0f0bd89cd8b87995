"""`kdns top`: what two looks at /metrics say, and how it is shown, on terminals of any kind."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import math
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kdns.errors import KdnsError
from kdns.tools import fetch
from kdns.tools.fetch import Place, place
from kdns.tools.live import Watch, Watched
from kdns.tools.scrape import LARGEST, Change, Name, Scrape, Upstream, View, change, parse, view
from kdns.tools.screen import Instance, Picture, frame, sparkline
from tests.support import objects, ports, procs
from tests.support.server import ROOT, Server
from tests.support.upstream import FakeUpstream

FIXTURES = Path(__file__).parent / "fixtures" / "metrics"
LIMIT = 20.0


# What is read


def seen(*bodies: str, seconds: float = 10.0) -> View:
    """What two looks say, so many seconds apart."""
    first, second = (parse(body, seconds * number) for number, body in enumerate(bodies))
    return view([change(first, second)])


def responses(**counts: float) -> str:
    lines = [f'coredns_dns_responses_total{{rcode="{rcode}",plugin="x"}} {count}' for rcode, count in counts.items()]
    return "\n".join(["coredns_panics_total 0", *lines])


@pytest.mark.parametrize(
    ("before", "after", "rcodes"),
    [
        ({"NOERROR": 100}, {"NOERROR": 150}, {"NOERROR": 5.0}),
        ({"NOERROR": 100}, {"NOERROR": 100}, {"NOERROR": 0.0}),
        ({}, {"NOERROR": 20}, {"NOERROR": 2.0}),
        ({"NOERROR": 100, "SERVFAIL": 5}, {"NOERROR": 110}, {"NOERROR": 1.0}),
        ({"NOERROR": 100}, {"NOERROR": 30}, {"NOERROR": 3.0}),  # it began anew
        ({"NOERROR": 10, "NXDOMAIN": 10}, {"NOERROR": 20, "NXDOMAIN": 50}, {"NXDOMAIN": 4.0, "NOERROR": 1.0}),
        ({"NOERROR": math.nan}, {"NOERROR": 20}, {"NOERROR": 2.0}),
        ({"NOERROR": 10}, {"NOERROR": math.nan}, {}),
        ({"NOERROR": 10}, {"NOERROR": math.inf}, {}),
        ({"NOERROR": 10}, {"NOERROR": 1e300}, {}),
        ({"NOERROR": 10}, {"NOERROR": -5}, {"NOERROR": 0.0}),
    ],
)
def test_counters_become_rates(before: dict[str, float], after: dict[str, float], rcodes: dict[str, float]) -> None:
    found = seen(responses(**before), responses(**after))
    assert dict(found.rcodes) == rcodes
    assert list(found.rcodes) == list(rcodes)
    assert found.queries == sum(rcodes.values())


def test_percentiles_are_those_of_the_time_between_the_looks() -> None:
    def body(*counts: int) -> str:
        bounds = ("0.001", "0.002", "0.004", "+Inf")
        return "\n".join(
            f'coredns_dns_request_duration_seconds_bucket{{zone="{zone}",le="{bound}"}} {count}'
            for zone in "ab"
            for bound, count in zip(bounds, counts, strict=True)
        )

    found = seen(body(1000, 1000, 1000, 1000), body(1000, 1050, 1090, 1100))
    assert found.percentiles == pytest.approx({"50": 0.002, "90": 0.004, "99": 0.004})
    assert seen(body(1, 1, 1, 1), body(1, 1, 1, 1)).percentiles == {}
    assert seen("coredns_panics_total 0", "coredns_panics_total 0").percentiles == {}
    odd = 'coredns_dns_request_duration_seconds_bucket{le="x"} 5\ncoredns_dns_request_duration_seconds_bucket 7'
    assert seen(odd, odd.replace("5", "9")).percentiles == {}


def test_a_kdns_tells_all_of_it() -> None:
    def body(factor: int) -> str:
        return f"""\
coredns_build_info{{version="0.1.0",revision="",goversion="3.11"}} 1
coredns_dns_requests_total{{type="A"}} {24 * factor}
coredns_dns_requests_total{{type="AAAA"}} {8 * factor}
kdns_packet_cache_hits_total {56 * factor}
kdns_packet_cache_misses_total {8 * factor}
coredns_cache_hits_total{{type="success"}} {24 * factor}
coredns_cache_misses_total {8 * factor}
coredns_cache_entries{{type="success"}} 7
coredns_cache_entries{{type="denial"}} 2
kdns_kubernetes_data_age_seconds 1.5
kdns_kubernetes_objects{{kind="Service"}} 16
kdns_kubernetes_objects{{kind="Pod"}} 0
kdns_kubernetes_synced 1
kdns_workers 2
kdns_worker_restarts_total 3
process_cpu_seconds_total {4 * factor}
process_resident_memory_bytes 1e8
coredns_proxy_request_duration_seconds_count{{to="9.9.9.9:53",rcode="NOERROR"}} {16 * factor}
coredns_proxy_request_duration_seconds_sum{{to="9.9.9.9:53",rcode="NOERROR"}} {0.125 * factor}
coredns_proxy_healthcheck_failures_total{{to="1.1.1.1:53"}} {4 * factor}
kdns_forward_upstreams{{to="9.9.9.9:53",state="up"}} 2
kdns_forward_upstreams{{to="9.9.9.9:53",state="down"}} 0
kdns_forward_upstreams{{to="1.1.1.1:53",state="up"}} 0
kdns_forward_upstreams{{to="1.1.1.1:53",state="down"}} 2
kdns_forward_upstreams{{to="part:53",state="up"}} 1
kdns_forward_upstreams{{to="part:53",state="down"}} 1
kdns_forward_upstreams{{to="left:53",state="up"}} 0
kdns_top_names{{name="a.test.",type="A",rcode="NOERROR"}} 1.5
kdns_top_names{{name="b\\"\\\\\\\\255.test.",type="A",rcode="NXDOMAIN"}} 2.5
"""

    found = seen(body(1), body(2), seconds=8.0)  # a number that leaves no rest
    assert found == View(
        software=("kdns 0.1.0",),
        queries=0,
        types={"A": 3.0, "AAAA": 1.0},
        packet_cache=0.875,
        cache=0.75,
        cache_entries=9,
        data_age=1.5,
        objects={"Service": 16},
        workers=2,
        workers_replaced=3,
        cpu=0.5,
        memory=1e8,
        upstreams=(
            Upstream("1.1.1.1:53", "down", 0.0, None, 0.5),
            Upstream("9.9.9.9:53", "up", 2.0, 0.0078125, 0.0),
            Upstream("part:53", "part", 0.0, None, 0.0),
        ),
        names=(Name('b"\\\\255.test.', "A", "NXDOMAIN", 2.5), Name("a.test.", "A", "NOERROR", 1.5)),
        missing=("queries: none yet in a server block with prometheus",),
    )


def fixture(name: str) -> Change:
    looks = [parse((FIXTURES / f"{name}-{number}.txt").read_text(), float(number)) for number in (1, 2)]
    return change(*looks)


@pytest.mark.parametrize("name", ["coredns-1.13.2", "node-cache"])
def test_coredns_tells_most_of_it_and_what_is_missing_is_said(name: str) -> None:
    found = view([fixture(name)])
    assert found.software == ("CoreDNS 1.13.2",)
    assert (found.queries, dict(found.types)["AAAA"]) == (100, 66)
    assert dict(found.rcodes) == {"NOERROR": 100, "NXDOMAIN": 0}
    assert set(found.percentiles) == {"50", "90", "99"}
    assert 0 < found.percentiles["50"] < 0.001
    assert 0.8 < (found.cache or 0) < 1
    assert [upstream.state for upstream in found.upstreams] == ["unknown", "failing"]
    assert found.upstreams[0].answers > 5
    assert 1 <= found.upstreams[1].failed_checks <= 3
    assert (found.packet_cache, found.data_age, found.workers, found.names) == (None, None, None, ())
    assert found.memory is not None
    assert found.missing == ("CoreDNS does not tell: age of data, workers, state of upstreams, names",)


def test_the_upstreams_of_an_old_coredns_are_seen() -> None:
    body = 'coredns_forward_request_duration_seconds_count{{to="9.9.9.9:53",rcode="NOERROR"}} {}\n'
    body += 'coredns_forward_healthcheck_failures_total{{to="9.9.9.9:53"}} {}\n'
    assert seen(body.format(10, 1), body.format(30, 2)).upstreams == (Upstream("9.9.9.9:53", "failing", 2.0, 0.0, 0.1),)


def test_several_servers_are_added_up() -> None:
    one, other = fixture("coredns-1.13.2"), fixture("node-cache")
    both = view([one, other])
    assert both.queries == view([one]).queries + view([other]).queries
    assert both.software == ("CoreDNS 1.13.2",)
    assert both.upstreams[0].answers == sum(view([each]).upstreams[0].answers for each in (one, other))
    kdns = [
        change(Scrape(0, {}), Scrape(2, {"kdns_kubernetes_data_age_seconds": {(): age}, "kdns_workers": {(): 2.0}}))
        for age in (3.0, 1.0)
    ]
    assert (view(kdns).data_age, view(kdns).workers) == (3.0, 4)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("kdns_configuration_outdated 1", "the configuration has a mistake, and the one from before is in use"),
        ("kdns_kubernetes_synced 0", "Kubernetes objects are not read yet"),
        (
            'kdns_node_intercepted{address="10.96.0.10",by=""} 0',
            "queries for 10.96.0.10 are not brought to the node's server",
        ),
        ('kdns_loop_detected{zone="."} 1', "what is forwarded for . comes back"),
        ('kdns_dropped_total{reason="queue"} 25', "messages get no answer: 2.5 a second"),
        (
            "kdns_memory_limit_bytes 100\nprocess_resident_memory_bytes 95",
            "over 90% of the memory limit are in use",
        ),
    ],
)
def test_what_is_not_as_it_should_be_is_said(body: str, said: str) -> None:
    assert seen("kdns_workers 1", f"kdns_workers 1\n{body}\n").attention == (said,)
    assert seen("kdns_workers 1", "kdns_workers 1\nkdns_kubernetes_synced 1\nkdns_dropped_total 0").attention == ()


def test_without_top_names_it_is_said_how_to_have_them() -> None:
    found = seen("kdns_workers 1\ncoredns_dns_responses_total 1", "kdns_workers 1\ncoredns_dns_responses_total 1")
    assert found.missing == ("names: add top_names to prometheus in the Corefile",)


@pytest.mark.parametrize(
    "body", ["", "<html><body>404</body></html>", "go_goroutines 5\nup 1\n", "coredns", "coredns_panics_total x"]
)
def test_what_is_no_such_page_is_refused(body: str) -> None:
    with pytest.raises(KdnsError, match=r"metrics"):
        parse(body, 0.0)


NAMES = st.sampled_from(
    [
        *("coredns_dns_responses_total", "coredns_dns_requests_total", "kdns_workers", "kdns_top_names"),
        *("coredns_dns_request_duration_seconds_bucket", "kdns_forward_upstreams", "coredns_build_info"),
        *("kdns_kubernetes_data_age_seconds", "kdns_kubernetes_objects", "process_cpu_seconds_total", "kdns_x_total"),
    ]
)
LABELS = st.dictionaries(
    st.sampled_from(["type", "rcode", "to", "state", "le", "name", "version"]), st.text(), max_size=3
)
VALUES = st.floats(-LARGEST, LARGEST, allow_nan=False)
SERIES = st.dictionaries(
    NAMES, st.dictionaries(LABELS.map(lambda found: tuple(sorted(found.items()))), VALUES, max_size=4)
)


@given(st.lists(st.tuples(SERIES, SERIES), min_size=1, max_size=3), st.integers(1, 120), st.integers(1, 40))
def test_whatever_a_server_tells_can_be_shown(
    looks: list[tuple[Mapping[str, Any], Mapping[str, Any]]], width: int, height: int
) -> None:
    found = view([change(Scrape(0.0, before), Scrape(0.001, after)) for before, after in looks])
    json.dumps(asdict(found), allow_nan=False)
    shown(Picture((Instance("a", found),), found, (1.0, 2.0)), width, height)


@given(
    st.one_of(
        st.text(), st.lists(st.text(alphabet='coredns_{}"=\\n,. 019+eInfaN#', max_size=40)).map("\ncoredns_".join)
    )
)
def test_garbage_is_read_or_refused(body: str) -> None:
    with contextlib.suppress(KdnsError):
        view([change(parse(body, 0.0), parse(body, 1.0))])


def test_a_large_page_is_read() -> None:
    lines = (
        f'coredns_dns_responses_total{{server="dns://:{number}",rcode="NOERROR"}} {number}' for number in range(50_000)
    )
    body = "\n".join(lines)
    found = seen(body, body)
    assert dict(found.rcodes) == {"NOERROR": 0.0}


# Where it is read


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("10.0.0.1", "http://10.0.0.1:9153/metrics"),
        ("kdns.example:9253", "http://kdns.example:9253/metrics"),
        (":9353", "http://127.0.0.1:9353/metrics"),
        ("[fd00::1]:9153", "http://[fd00::1]:9153/metrics"),
        ("[fd00::1]", "http://[fd00::1]:9153/metrics"),
        ("http://10.0.0.1", "http://10.0.0.1:80/metrics"),
        ("https://x.test/", "https://x.test:443/metrics"),
        ("http://x.test:9/y/z?a=b", "http://x.test:9/y/z?a=b"),
    ],
)
def test_addresses_are_read(text: str, url: str) -> None:
    assert place(text).url == url


@pytest.mark.parametrize(
    "text",
    ["fd00::1", "ftp://x", "x:0", "x:65536", "x:y", "a b", "http://[::1", "http://u:p@x", "x\n", "http://x:9/a b"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(KdnsError, match="accepted: HOST"):
        place(text)


@contextlib.contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[Place]:
    """A TCP server that does something with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.settimeout(LIMIT)
                        connection.recv(65536)
                        answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield place(f"127.0.0.1:{listener.getsockname()[1]}")
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(LIMIT)


def http(status: str, body: bytes, **headers: str) -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        *(f"{name}: {value}" for name, value in headers.items()),
        "Connection: close",
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (http("404 Not Found", b"no"), "status 404"),
        (http("302 Found", b"", Location="http://127.0.0.1:1/"), "status 302"),
        (b"SSH-2.0-OpenSSH\r\n", "SSH-2.0"),
        (b"", "closed"),
        (http("200 OK", b"x" * 10, **{"Content-Length": "100"}), "ended before its end"),
    ],
)
def test_what_is_wrong_with_a_server_is_said(sent: bytes, said: str) -> None:
    with (
        answering(lambda connection: connection.sendall(sent)) as where,
        pytest.raises(KdnsError, match=said) as caught,
    ):
        fetch.get(where, 5.0)
    assert where.url in str(caught.value)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x1b]0;owned\x07\x1b[2J\r\n\r\n",
        http("200 OK", b'coredns_x{a="\x1b]0;owned\x07"} \x1b[2J\n'),
        http("200 OK", b"\x1b[2J\n"),
    ],
)
def test_what_is_said_of_a_server_cannot_steer_the_terminal(sent: bytes) -> None:
    with answering(lambda connection: connection.sendall(sent)) as where:
        done = subprocess.run(
            [sys.executable, "-m", "kdns", "top", "--once", "--interval", "0.1", where.title],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            cwd=ROOT,
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"{where.url}: ")
    assert done.stderr.removesuffix("\n").isprintable()


def test_a_body_without_end_is_not_read_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "LARGEST", 1 << 20)

    def endless(connection: socket.socket) -> None:
        connection.sendall(http("200 OK", b""))
        for _ in range(100_000):
            connection.sendall(b"x" * 65536)

    with answering(endless) as where, pytest.raises(KdnsError, match="more than 1 MiB"):
        fetch.get(where, 5.0)


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 200 OK\r\nX: ", http("200 OK", b""), http("200 OK", b"coredns_x 1\n")]
)
def test_a_server_that_sends_a_byte_now_and_again_is_not_waited_for(sent: bytes) -> None:
    def dripping(connection: socket.socket) -> None:
        connection.sendall(sent)
        for _ in range(50):
            connection.sendall(b"x")
            time.sleep(0.1)

    begun = time.monotonic()
    with answering(dripping) as where:
        with pytest.raises(KdnsError, match=r"no answer in 0\.5 s"):
            fetch.get(where, 0.5)
        assert time.monotonic() - begun < 3


def test_a_server_that_is_slow_does_not_keep_the_others_from_being_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdns.tools.live.PATIENCE", 0.3)
    go_on = threading.Event()

    def slow(connection: socket.socket) -> None:
        go_on.wait(LIMIT)

    body = http("200 OK", (FIXTURES / "node-cache-1.txt").read_bytes())
    with answering(slow) as silent, answering(lambda connection: connection.sendall(body)) as quick:
        watch = Watch([silent, quick])
        for _ in range(2):
            begun = time.monotonic()
            watch.begin()
            procs.wait_until(lambda: watch.is_done, 5, "the end of a look")
            watch.settle()
            assert time.monotonic() - begun < 3
        found = watch.picture().instances
        assert (found[0].view, found[0].error) == (None, f"{silent.url}: no answer in 0.3 s")
        assert found[1].view is not None
        go_on.set()


def test_a_server_that_comes_back_is_seen_from_its_second_look_on() -> None:
    bodies: list[str | KdnsError] = [
        responses(NOERROR=100), responses(NOERROR=110), KdnsError("refused"), responses(NOERROR=5), responses(NOERROR=9)
    ]  # fmt: skip

    def get(where: Place, timeout: float) -> str:
        body = bodies.pop(0)
        if isinstance(body, KdnsError):
            raise body
        return body

    watched = Watched(place("x"), get)
    found = []
    while bodies:
        watched.begin()
        procs.wait_until(lambda: watched.is_done, 5, "the look")
        watched.settle()
        instance = watched.instance()
        rise = round(instance.view.queries * watched.change.seconds, 6) if instance.view and watched.change else None
        found.append((instance.error, rise))
    assert found == [("", None), ("", 10), ("refused", None), ("", None), ("", 4)]


# How it is shown

FULL = View(
    software=("kdns 0.1.0",),
    queries=12345.6,
    types={name: 1000.0 / (number + 1) for number, name in enumerate(("A", "AAAA", "SRV", "PTR", "TXT", "MX", "NS"))},
    rcodes={"NOERROR": 9000.0, "NXDOMAIN": 3000.0, "SERVFAIL": 1.0, "REFUSED": 0.0},
    percentiles={"50": 0.0001, "90": 0.001, "99": 0.5},
    packet_cache=0.9,
    cache=0.5,
    cache_entries=1234,
    data_age=90.0,
    objects={"Service": 5000},
    workers=4,
    workers_replaced=1,
    cpu=1.5,
    memory=1e8,
    upstreams=(Upstream("9.9.9.9:53", "up", 10, 0.01, 0), Upstream("1.1.1.1:53", "down", 0, None, 2)),
    names=tuple(Name(f"name-{number}.test.", "A", "NXDOMAIN", 100.0 - number) for number in range(40)),
    attention=("something is wrong",),
)


def shown(picture: Picture, width: int, height: int | None, **options: Any) -> list[str]:
    """The lines of the screen."""
    out = io.StringIO()
    console = Console(file=out, width=width, height=height or 100, **options)
    console.print(frame(picture, width, height))
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("height", [3, 5, 8, 12, 24, 50])
@pytest.mark.parametrize("width", [12, 25, 40, 80, 100, 140, 250])
@pytest.mark.parametrize("count", [1, 3])
def test_a_screen_of_any_size_is_not_left(width: int, height: int, count: int) -> None:
    instances = (Instance("10.0.0.1:9153", FULL), Instance("b", FULL), Instance("c", None, "refused"))[:count]
    lines = shown(Picture(instances, FULL, (1.0, 5.0, 3.0), "12:00:00  q quits"), width, height)
    assert all(len(line) <= width for line in lines)
    if height >= 24 and width >= 80:
        assert len(lines) <= height
        text = "\n".join(lines)
        for wanted in ("12,346", "NXDOMAIN", "AAAA", "90.0%", "1 min 30 s old", "! something is wrong", "1.1.1.1:53"):
            assert wanted in text, text
        assert "name-2.test." in text
        assert lines[0].endswith("12:00:00  q quits")


def test_before_the_second_look_no_rate_is_shown() -> None:
    nothing = Picture((Instance("a", None), Instance("b", None, "b: refused")), View(), ())
    assert shown(nothing, 80, 24)[1:] == ["! b: refused", "rates are there after two looks"]
    assert len(shown(nothing, 8, 3)) == 3


def test_text_has_all_of_it() -> None:
    text = "\n".join(shown(Picture((Instance("a", FULL),), FULL, ()), 100, None))
    assert "name-39.test." in text
    assert "NS" not in text.split("name asked for")[0].split()


def test_a_name_cannot_steer_the_terminal() -> None:
    hostile = replace(
        FULL,
        software=("\x1b[2Jkdns",),
        names=(Name("\x1b]0;owned\x07\u202e.test.", "\x1b", "\r\n", 5.0),),
        types={"\x1b[31mA": 5.0},
        upstreams=(Upstream("\x1b[5m", "down", 0, None, 1),),
        attention=("\x1b[H",),
        missing=("\x9b",),
    )
    for height in (24, None):
        lines = shown(Picture((Instance("\x1b[1m", hostile, "\x1bc"),), hostile, ()), 120, height)
        assert all(line.isprintable() for line in lines)
        assert "\\x1b]0;owned\\x07\\u202e.test." in "\n".join(lines)


def test_brackets_and_colons_are_no_markup() -> None:
    names = ("[/x].svc.", "[link=http://evil.test]good[/link].", "[red]x.", ":heart:.test.")
    hostile = replace(
        FULL,
        names=tuple(Name(name, "[b]A", "[u]NOERROR", 5.0) for name in names),
        types={"[i]AAAA": 5.0},
        upstreams=(Upstream("[fd00::10]:53", "up", 0, None, 0),),
    )
    for width in (80, 200):
        lines = shown(Picture((Instance("[fd00::1]:9153", hostile), Instance("b", None)), hostile, ()), width, None)
        text = "\n".join(lines)
        for wanted in (*names, "[b]A", "[u]NOERROR", "[i]AAAA", "[fd00::10]:53"):
            assert wanted in text
        assert any(line.startswith("[fd00::1]:9153") for line in lines)


def test_an_upstream_that_is_down_is_shown_before_others() -> None:
    upstreams = [Upstream(f"10.0.0.{number:02}:53", "up", 5.0, 0.001, 0) for number in range(30)]
    found = replace(FULL, upstreams=(*upstreams, Upstream("10.9.9.9:53", "down", 0, None, 1)))
    text = "\n".join(shown(Picture((Instance("a", found),), found, ()), 80, 24))
    assert "10.9.9.9:53" in text
    assert "10.0.0.29:53" not in text


def test_servers_are_listed_beside_their_sum() -> None:
    half = replace(FULL, queries=6000.0, data_age=None, workers=None, memory=None)
    instances = (Instance("one:9153", FULL), Instance("two:9153", half), Instance("three:9153", None, "refused"))
    lines = shown(Picture(instances, FULL, ()), 100, 50)
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()[:1]}
    assert rows["one:9153"][0] == "12,346"
    assert rows["two:9153"] == ["6,000", "500", "ms", "90.0%", "50.0%", "-", "-", "-"]
    assert rows["three:9153"] == ["-"]
    assert "! refused" in lines


@pytest.mark.parametrize(
    ("history", "bars"),
    [
        ((), ""),
        ((5.0,), ""),
        ((0.0, 0.0), ""),
        ((1.0, 8.0), "▂█"),
        ((0.0, 4.0, 8.0), "▁▅█"),
        (tuple(range(100)), "█" * 12),
    ],
)
def test_the_last_minute_is_a_line_of_bars(history: tuple[float, ...], bars: str) -> None:
    found = sparkline(history)
    assert found == bars if len(history) < 50 else len(found) == len(bars)


# A server

COREFILE = """\
.:$dns {
    bind 127.0.0.1
    ready 127.0.0.1:$ready
    prometheus 127.0.0.1:$metrics {
        top_names 5
    }
    kubernetes cluster.local {
        manifests $manifests
    }
    forward . $plugins
}
"""
WEB, NOTHING = "web.default.svc.cluster.local", "nothing.default.svc.cluster.local"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    cluster = [objects.service("web", ips=["10.96.0.1"])]
    with (
        FakeUpstream() as upstream,
        Server(tmp_path_factory.mktemp("top"), cluster, corefile=COREFILE, plugins=upstream.to) as server,
    ):
        yield server


@pytest.fixture
def asked(server: Server) -> Iterator[None]:
    """Somebody asks all the time."""
    stop = threading.Event()
    queries = [dns.message.make_query(name, "A").to_wire() for name in (WEB, WEB, WEB, NOTHING)]

    def ask() -> None:
        with server.udp_socket() as sock:
            sock.settimeout(1)
            while not stop.wait(0.002):
                for query in queries:
                    with contextlib.suppress(OSError):
                        sock.send(query)
                for _ in queries:
                    with contextlib.suppress(OSError):
                        sock.recv(4096)

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    stop.set()
    thread.join()


def test_exactly_what_was_asked_between_two_looks_is_shown(server: Server) -> None:
    watched = Watched(place(f"127.0.0.1:{server.metrics_port}"))

    def look() -> None:
        watched.begin()
        procs.wait_until(lambda: watched.is_done, 10, "the look")
        watched.settle()

    server.query(WEB)
    look()
    for _ in range(30):
        server.query(WEB)
        server.query(WEB, "AAAA")
    for number in range(20):
        server.query(NOTHING)
        server.query(f"host{number}.test")
    look()
    assert watched.change is not None
    found, seconds = view([watched.change]), watched.change.seconds
    counts = {kind: round(value * seconds, 3) for kind, value in {**found.types, **found.rcodes}.items()}
    assert {kind: count for kind, count in counts.items() if count} == {
        "A": 70, "AAAA": 30, "NOERROR": 80, "NXDOMAIN": 20
    }  # fmt: skip
    assert round(found.queries * seconds, 3) == 100
    (upstream,) = found.upstreams
    assert (upstream.state, round(upstream.answers * seconds, 3)) == ("up", 20)
    assert found.packet_cache == pytest.approx(0.75, abs=0.05)
    assert (found.workers, found.data_age, found.objects["Service"]) == (1, 0.0, 1)
    assert 0 < found.percentiles["50"] <= found.percentiles["99"] < 5


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kdns", "top", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )


@pytest.mark.usefixtures("asked")
def test_once_as_json_has_everything_for_scripts(server: Server) -> None:
    gone = f"127.0.0.1:{ports.free_port()}"
    where = f"127.0.0.1:{server.metrics_port}"
    done = run(where, gone, "--once", "--json", "--interval", "1.2")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert set(found) == {"interval", "total", "instances"}
    one, other = found["instances"]
    assert set(one) == {"address", "error", "view"}
    assert set(found["total"]) == set(View.__slots__)
    assert (one["address"], one["error"], one["view"]) == (where, None, found["total"])
    assert (other["address"], other["view"]) == (gone, None)
    assert other["error"] == f"http://{gone}/metrics: Connection refused"
    total = found["total"]
    assert total["queries"] == pytest.approx(sum(total["rcodes"].values()))
    assert total["rcodes"]["NOERROR"] == pytest.approx(3 * total["rcodes"]["NXDOMAIN"], rel=0.1)
    assert {name["name"] for name in total["names"]} >= {f"{WEB}.", f"{NOTHING}."}


def test_without_a_terminal_it_prints_once_and_without_a_server_it_says_why(server: Server) -> None:
    done = run(f"127.0.0.1:{server.metrics_port}", "--interval", "0.2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"kdns top  127.0.0.1:{server.metrics_port}  kdns ")
    assert "\x1b" not in done.stdout
    gone = ports.free_port()
    done = run(f":{gone}", "--interval", "0.1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"http://127.0.0.1:{gone}/metrics: Connection refused\n"
    assert run("ftp://x").returncode == 2


class Terminal:
    """`kdns top` on a terminal of its own."""

    def __init__(self, *arguments: str, interval: float = 0.2, **environ: str) -> None:
        self.output = ""
        self._master, self._slave = pty.openpty()
        self.resize(24, 80)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **environ}
        for name in ("COLUMNS", "LINES"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kdns", "top", *arguments, "--interval", str(interval)],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=environment,
            start_new_session=True,
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def resize(self, lines: int, columns: int) -> None:
        """Be a terminal of that size."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, key: str) -> None:
        """Press a key."""
        os.write(self._master, key.encode())

    def frames(self) -> list[list[str]]:
        """Each screen that was drawn, as its lines, without colours."""
        parts = self.output.split("\x1b[H")[1:]
        return [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", part).replace("\r", "").split("\n") for part in parts]

    def wait_for(self, condition: Callable[[list[str]], bool], what: str) -> list[str]:
        """Read until a complete screen is as it should be."""
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            before = len(self.output)
            self.read(0.1)
            frames = self.frames()
            found = [each for each in (frames if len(self.output) == before else frames[:-1]) if condition(each)]
            if found:
                self.output = "\x1b[H" + self.output.rpartition("\x1b[H")[2]
                return found[-1]
        raise AssertionError(f"{what}: {self.output[-3000:]!r}")

    def read(self, seconds: float) -> None:
        """Take what it has written."""
        while select.select([self._master], [], [], seconds)[0]:
            try:
                self.output += os.read(self._master, 1 << 16).decode()
            except OSError:
                return
            seconds = 0.0

    def ended(self) -> int:
        """Its exit code; its terminal is as it was."""
        code = self.process.wait(LIMIT)
        self.read(0.1)
        flags = termios.tcgetattr(self._slave)[3]
        assert flags & termios.ECHO
        assert flags & termios.ICANON
        assert self.output.rstrip().endswith(("\x1b[?25h", "\x1b[?1049l"))
        assert "\x1b[?1049l" in self.output
        assert "Traceback" not in self.output
        return code


@pytest.mark.usefixtures("asked")
def test_a_live_view_follows_the_size_of_its_terminal_and_restarts_of_the_server(server: Server) -> None:
    with Terminal(f"127.0.0.1:{server.metrics_port}") as terminal:
        screen = terminal.wait_for(lambda lines: any(WEB in line for line in lines), "the names")
        assert len(screen) <= 24
        assert "q quits" in screen[0]
        assert any("NXDOMAIN" in line for line in screen)
        terminal.resize(10, 40)
        screen = terminal.wait_for(lambda lines: len(lines) <= 10, "the small screen")
        assert all(len(line) <= 40 for line in screen)
        terminal.resize(30, 100)
        server.kill()
        terminal.wait_for(lambda lines: any("Connection refused" in line for line in lines), "the failure")
        server.start()
        terminal.wait_for(
            lambda lines: not any("refused" in line for line in lines) and any("NOERROR" in line for line in lines),
            "the server again",
        )
        terminal.press("x")
        terminal.press("q")
        assert terminal.ended() == 0


def test_a_new_size_does_not_wait_for_the_next_look(server: Server) -> None:
    with Terminal(f"127.0.0.1:{server.metrics_port}", interval=3600) as terminal:
        terminal.wait_for(lambda lines: "q quits" in lines[0], "the screen")
        terminal.resize(10, 40)
        screen = terminal.wait_for(lambda lines: max(map(len, lines)) <= 40, "the small screen")
        assert len(screen) <= 10
        terminal.press("q")
        assert terminal.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(server: Server, number: signal.Signals) -> None:
    with Terminal(f"127.0.0.1:{server.metrics_port}", NO_COLOR="1") as terminal:
        terminal.wait_for(lambda lines: any("queries/s" in line for line in lines), "the screen")
        assert not re.search(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d)", terminal.output)
        terminal.process.send_signal(number)
        assert terminal.ended() == 0


def test_a_terminal_that_can_do_nothing_gets_text(server: Server) -> None:
    with Terminal(f"127.0.0.1:{server.metrics_port}", TERM="dumb") as terminal:
        assert terminal.process.wait(LIMIT) == 0
        terminal.read(0.2)
        assert "\x1b" not in terminal.output
        assert "queries/s" in terminal.output
