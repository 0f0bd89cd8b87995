"""The status page: its facts, its HTML in a browser, and that it is there whatever state kdns is in."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import kdns
from kdns.observe import page, status, text
from kdns.observe.counters import HISTOGRAMS, PROXY_REQUESTS, QueryCounters, Region, Totals
from kdns.observe.notes import TopName
from kdns.observe.recent import Message
from kdns.observe.status import (
    Block,
    Counts,
    PacketCache,
    Process,
    Queries,
    Server,
    Source,
    Status,
    Upstream,
    ZoneState,
)
from kdns.server.status import Pace, as_json
from tests.conftest import Serve
from tests.support import objects, ports, procs, server
from tests.support.chromium import Chromium
from tests.support.shop import Shop, shop

pytestmark = pytest.mark.one_speed

COUNTS = Counts(Queries(0, None, {}, {}, {}, {}), (), (), PacketCache(0, 0, 0, 0, None), worker_restarts=0, loops=())
WELL = Status(
    version="0.1.0",
    host="node-1",
    mode="cluster",
    now=1000.0,
    started=900.0,
    files=("/etc/kdns/Corefile",),
    digest="ab" * 64,
    outdated=False,
    servers=(Server("dns://:53", ("udp 10.0.0.1:53",), (Block(("cluster.local.",), ("kubernetes", "forward")),)),),
    sources=(Source(("cluster.local.",), "Kubernetes API of this cluster", True, 0.0, {"Service": 5, "Pod": 0}, 0),),
    zones=(ZoneState("cluster.local.", 17, "synced"),),
    store_entries=12,
    store_bytes=1 << 20,
    processes=(Process("supervisor", 1, 900.0, 1 << 20), Process("worker 0", 2, 990.0, None)),
    wanted=1,
    memory=1 << 20,
    limit=1 << 27,
    ways={"169.254.20.10": "nftables"},
    counts=COUNTS,
    top_names=(),
    names_wanted=False,
    messages=(),
)
VOID = {"meta", "link"}


class Document(HTMLParser):
    """Reads HTML strictly: every element is closed in order. shown: the texts that a reader sees."""

    def __init__(self, body: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.shown: list[str] = []
        self.feed(body.decode())
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        assert len({name for name, _ in attrs}) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.shown.append(data.strip())


# Facts


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (WELL, ()),
        (replace(WELL, wanted=2), ("1 of 2 workers answer",)),
        (replace(WELL, processes=(Process("worker 0", 2, 1.0, None, well=False),)), ("0 of 1 workers answer",)),
        (replace(WELL, ways={"a": "link", "b": ""}), ("queries for b are not brought here",)),
        (
            replace(WELL, outdated=True),
            ("the configuration has a mistake, and the one from before is in use: see the last errors",),
        ),
        (
            replace(WELL, sources=(Source(("a.", "b."), "", False, None, {}, 0),)),
            ("a. b.: not read yet; what is not known is answered with SERVFAIL",),
        ),
        (
            replace(WELL, sources=(Source(("a.",), "", True, 31.4, {}, 2),)),
            (
                "a.: data is 31 s old; answers stay as they were then",
                "a.: 2 files cannot be used; what they said before is served",
            ),
        ),
        (replace(WELL, sources=(Source(("a.",), "", True, 29.0, {}, 0),)), ()),
        (
            replace(WELL, sources=(Source(("a.",), "", True, None, {}, 0, unreached=2),)),
            ("a.: 2 zones cannot be fetched; what is there is served until it expires",),
        ),
        (
            replace(
                WELL,
                counts=replace(
                    COUNTS,
                    upstreams=(Upstream("a", 1, 1, 0, None, 0, None), Upstream("b", 0, 2, 0, None, 0, None)),
                    loops=("example.org.",),
                ),
            ),
            (
                "upstream a is down for 1 of 2 that use it",
                "upstream b is down",
                "what is forwarded for example.org. comes back to this server",
            ),
        ),
        (replace(WELL, memory=125 << 20), ("98% of the memory limit are in use",)),
        (replace(WELL, memory=125 << 20, limit=None), ()),
    ],
)
def test_what_is_not_as_it_should_be_is_said(facts: Status, said: tuple[str, ...]) -> None:
    assert status.attention(facts) == said


def test_the_counters_of_all_processes_are_put_together() -> None:
    totals = Totals()
    for number in (1, 2):
        region = Region.create()
        totals.add_region(region)
        queries = QueryCounters(region, "dns://:53", ".")
        for proto, rdtype, rcode in (("udp", "A", "NOERROR"), ("udp", "AAAA", "NXDOMAIN"), ("tcp", "A", "NOERROR")):
            region.cells[queries.key(proto, "1", rdtype, rcode, "", False, 50, 100)] += number
        queries.duration(300_000, number)
        hidden = QueryCounters(region, "dns://:53", "hidden.", shown=False)
        region.cells[hidden.key("udp", "1", "A", "REFUSED", "", False, 50, 100)] += 1
        PROXY_REQUESTS.histogram(region, "forward", "9.9.9.9:53", "NOERROR").observe(4_000_000)
        region.set(("gauge", "kdns_forward_upstreams", "to", "9.9.9.9:53", "state", "up" if number == 1 else "down"), 1)
        region.set(("gauge", "kdns_forward_upstreams", "to", "left", "state", "up"), 0)
        region.set(("shared", "kdns_forward_last_failure_timestamp_seconds", "to", "9.9.9.9:53"), number)
        region.count(("count", "coredns_proxy_healthcheck_failures_total", "proxy_name", "forward", "to", "9.9.9.9:53"))
        cache = ("server", "dns://:53", "zones", ".", "view", "")
        for kind in ("success", "denial"):
            typed = ("server", "dns://:53", "type", kind, "zones", ".", "view", "")
            region.count(("count", "coredns_cache_hits_total", *typed), 2)
            region.set(("gauge", "coredns_cache_entries", *typed), 3)
        region.count(("count", "coredns_cache_requests_total", *cache), 10)
        region.count(("count", "coredns_cache_served_stale_total", *cache), 1)
        region.count(("count", "kdns_packet_cache_hits_total"), 3)
        region.count(("count", "kdns_packet_cache_misses_total"), 1)
        region.count(("count", "kdns_worker_restarts_total"))
        region.set(("shared", "kdns_loop_detected", "zone", "."), number - 1)
        for durations in HISTOGRAMS:
            if durations is not PROXY_REQUESTS:
                durations.histogram(region, *("x" for _ in durations.labels)).observe(1)
    cells = totals.totals()
    found = status.counts(cells, 5.0)
    assert status.answered(cells) == 9
    assert found.queries.percentiles == pytest.approx({"50": 0.000375, "90": 0.000475, "99": 0.0004975})
    assert replace(found.queries, percentiles={}) == Queries(
        9, 5.0, {"NOERROR": 6, "NXDOMAIN": 3}, {"A": 6, "AAAA": 3}, {"udp": 6, "tcp": 3}, {}
    )
    assert found.upstreams == (Upstream("9.9.9.9:53", 1, 1, 2, 0.004, 2, 2),)
    (kept,) = found.caches
    assert (kept.zones, kept.entries, kept.requests, kept.hits) == (".", {"success": 6, "denial": 6}, 20, 8)
    assert (kept.hit_rate, kept.stale) == (0.4, 2)
    assert found.packet_cache == PacketCache(0, 0, 6, 2, 0.75)
    assert (found.worker_restarts, found.loops) == (2, (".",))
    nothing = status.counts({}, None)
    assert nothing == COUNTS


def test_what_a_thousand_caches_cost_is_not_the_square_of_it() -> None:
    cells: dict[tuple[str, ...], tuple[int, ...]] = {}
    for number in range(2000):
        zone = f"zone{number}.test."
        where = ("server", "dns://:53", "zones", zone, "view", "")
        cells["count", "coredns_cache_requests_total", *where] = (5,)
        for kind in ("success", "denial"):
            labels = ("server", "dns://:53", "type", kind, "zones", zone, "view", "")
            cells["gauge", "coredns_cache_entries", *labels] = (1,)
            cells["count", "coredns_cache_hits_total", *labels] = (2,)
    begun = time.thread_time()
    caches = status.counts(cells, None).caches
    assert time.thread_time() - begun < 0.5
    assert {(cache.hits, tuple(cache.entries.items())) for cache in caches} == {(4, (("success", 1), ("denial", 1)))}
    assert len(caches) == 2000


def test_queries_a_second_are_those_of_the_last_half_minute() -> None:
    pace = Pace()
    assert pace.tell(100, 1000.0) is None
    assert pace.tell(150, 1000.5) is None
    assert pace.tell(300, 1010.0) == 20
    assert pace.tell(300, 1030.0) == pytest.approx(200 / 30)
    assert pace.tell(900, 1040.0) == pytest.approx(600 / 30)
    assert pace.tell(900, 9000.0) == 0


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (text.span(0), "0 s"),
        (text.span(-5), "0 s"),
        (text.span(59.9), "59 s"),
        (text.span(60), "1 min"),
        (text.span(3725), "1 h 2 min"),
        (text.span(3600 * 24 * 3 + 5), "3 d"),
        (text.span(3600 * 27), "1 d 3 h"),
        (text.ago(10, 75), "1 min 5 s ago"),
        (text.ago(10, 10.9), "now"),
        (text.ago(10, 9), "now"),
        (text.age(None), "none"),
        (text.age(0.4), "current"),
        (text.age(90), "1 min 30 s old"),
        (text.seconds(None), "-"),
        (text.seconds(0.000_012), "12 µs"),
        (text.seconds(0.0123), "12.3 ms"),
        (text.seconds(2.5), "2.5 s"),
        (text.size(5 << 20), "5.0 MiB"),
        (text.size(3 << 30), "3.00 GiB"),
        (text.percent(None), "-"),
        (text.percent(0.123), "12.3%"),
        (text.rate(0.0123), "0.0123"),
        (text.rate(99.94), "99.9"),
        (text.rate(12345.6), "12,346"),
        (text.times(1), "once"),
        (text.times(1234), "1,234 times"),
        (text.moment(0), "1970-01-01 00:00:00 UTC"),
    ],
)
def test_values_are_written_for_people(found: str, shown: str) -> None:
    assert found == shown


# HTML

HOSTILE = "<script>alert(1)</script>\"'&amp;$version${x}\x1b[2J\u202e\n\0\udcff"


def filled(word: str) -> Status:
    """A status in which every text is this one."""
    upstream = Upstream(word, 1, 1, 5, 0.5, 3, 950.0)
    counts = replace(
        COUNTS,
        queries=Queries(3, 5.5, {word: 3}, {word: 3}, {word: 3}, {"50": 0.1, "99": 0.2}),
        upstreams=(upstream,),
        caches=(status.Cache(word, word, {word: 1}, 5, 3, 0.6, 1),),
        loops=(word,),
    )
    return replace(
        WELL,
        version=word,
        host=word,
        files=(word, word),
        digest=word,
        servers=(Server(word, (word,), (Block((word,), (word,)),)),),
        sources=(Source((word,), word, False, 100.0, {word: 1}, 1),),
        zones=(ZoneState(word, 1, word),),
        processes=(Process(word, 1, None, None, well=False),),
        ways={word: ""},
        counts=counts,
        top_names=(TopName(word, word, word, 1.0),),
        names_wanted=True,
        messages=(Message("ERROR", word, word, 1.0, 2.0),),
        attention=(word,),
    )


@hypothesis_settings(max_examples=60)
@given(st.text(max_size=30))
def test_any_text_is_shown_and_none_is_markup(word: str) -> None:
    plain, hostile = Document(page.render(filled("x"))), Document(page.render(filled(word)))
    assert hostile.tags == plain.tags
    assert len(hostile.attributes) == len(plain.attributes)
    shown = text.printable(word).strip()
    assert not shown or sum(shown in each for each in hostile.shown) >= 20


def test_a_text_that_would_be_markup_is_text() -> None:
    body = page.render(filled(HOSTILE), ["/metrics"])
    assert b"<script" not in body
    assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", body)
    document = Document(body)
    assert document.tags == Document(page.render(filled("x"), ["/metrics"])).tags
    assert text.printable(HOSTILE) in document.shown
    json.loads(as_json(filled(HOSTILE)))


def test_parts_without_anything_to_show_are_left_out() -> None:
    bare = replace(WELL, servers=(), sources=(), zones=(), ways={}, processes=(), wanted=0, files=(), limit=None)
    document = Document(page.render(bare))
    titles = {"Last warnings and errors", "Caches", "Processes", "Server blocks"}
    assert titles <= set(document.shown)
    for title in ("Sources", "Zones", "Upstreams", "Queries", "Names asked for most", "Addresses of this node"):
        assert title not in document.shown
        assert title in Document(page.render(filled("x"))).shown


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_for_everybody(scheme: str) -> None:
    """WCAG 2.2 AA asks for 4.5."""
    light, dark = re.findall(r":root\{(.*?)\}", page.STYLE, re.DOTALL)
    colours = dict(re.findall(r"--(\w+):(#\w{6})", light if scheme == "light" else dark))
    for above in ("text", "dim", "good", "bad"):
        for below in ("back", "card", "mark"):
            high, low = sorted((luminance(colours[above]), luminance(colours[below])), reverse=True)
            assert (high + 0.05) / (low + 0.05) > 4.5, (above, below)


# A server


def get(port: int, path: str = "/", method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def facts(port: int) -> Any:
    code, headers, body = get(port, Accept="application/json")
    assert (code, headers["Content-Type"]) == (200, "application/json")
    return json.loads(body)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A kdns that has been asked for a while, with one upstream that is down."""
    with shop(tmp_path_factory.mktemp("shop")) as shop_:
        for number in range(16):
            shop_.server.query(f"host{number}.corp.example", timeout=5)
        with shop_.ask(300, 10):
            time.sleep(2)
        port = shop_.server.metrics_port
        procs.wait_until(lambda: any(each["down"] for each in facts(port)["counts"]["upstreams"]), 10, "one is down")
        procs.wait_until(lambda: bool(facts(port)["messages"] and facts(port)["top_names"]), 10, "the workers' notes")
        yield shop_


def test_everything_there_is_to_know_is_told_as_json(busy: Shop) -> None:
    found = facts(busy.server.metrics_port)
    assert set(found) == set(Status.__slots__)
    assert (found["version"], found["mode"], found["outdated"]) == (kdns.__version__, "cluster", False)
    assert found["files"] == [str(busy.server.conf)]
    assert 0 < found["now"] - found["started"] < 120
    (listening,) = found["servers"]
    assert listening["sockets"] == [f"{proto} 127.0.0.1:{busy.server.port}" for proto in ("udp", "tcp")]
    assert [block["zones"] for block in listening["blocks"]] == [["."], ["corp.example."]]
    assert listening["blocks"][1]["plugins"] == ["bind", "prometheus", "errors", "cache", "forward"]
    (source,) = found["sources"]
    assert source["zones"] == ["cluster.local.", "in-addr.arpa.", "ip6.arpa."]
    assert source["origin"] == "Kubernetes API of kubeconfig"
    assert (source["synced"], source["objects"]["Service"]) == (True, 16)
    assert {zone["zone"]: zone["state"] for zone in found["zones"]} == dict.fromkeys(source["zones"], "synced")
    assert all(0 < zone["serial"] < 1 << 32 for zone in found["zones"])
    assert found["store_entries"] > 100
    roles = {process["role"]: process["pid"] for process in found["processes"]}
    assert set(roles) == {"supervisor", "nursery", "worker 0", "worker 1"}
    assert set(roles.values()) == set(busy.server.pids())
    assert all(1 << 20 < process["memory"] < 1 << 28 for process in found["processes"])
    upstreams = {each["to"]: each for each in found["counts"]["upstreams"]}
    assert set(upstreams) == {busy.gone, busy.upstream.to}
    assert upstreams[busy.gone]["down"] > 0
    assert found["now"] - upstreams[busy.gone]["last_failure"] < 10
    assert upstreams[busy.upstream.to]["down"] == 0
    assert upstreams[busy.upstream.to]["answers"] > 10
    queries = found["counts"]["queries"]
    assert queries["total"] == sum(queries["rcodes"].values()) == sum(queries["types"].values()) > 450
    assert queries["rcodes"]["NXDOMAIN"] > 100
    assert {cache["zones"] for cache in found["counts"]["caches"]} == {".", "corp.example."}
    assert found["counts"]["packet_cache"]["hits"] > 100
    assert "web.shop.svc.cluster.local." in {name["name"] for name in found["top_names"]}
    (message,) = found["messages"]
    assert message["text"].startswith(f"plugin/forward: upstream {busy.gone} is down: ")
    assert found["attention"] == [line for line in found["attention"] if busy.gone in line] != []


def test_requests_are_answered_as_http_wants(busy: Shop) -> None:
    port = busy.server.metrics_port
    code, headers, body = get(port, Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert (code, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert int(headers["Content-Length"]) == len(body)
    assert headers["Cache-Control"] == "no-store"
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "script" not in policy
    assert get(port)[1]["Content-Type"].startswith("text/html")
    assert get(port, Accept="text/html, application/json")[1]["Content-Type"].startswith("text/html")
    code, headers, body = get(port, method="HEAD")
    assert (code, body) == (200, b"")
    assert int(headers["Content-Length"]) > 5000
    assert get(port, "/?x=1")[0] == 200
    assert get(port, "/index.html")[0] == 404
    assert get(port, method="POST")[0] == 405
    assert get(busy.server.health_port, "/")[0] == 404
    assert get(port, "/metrics")[0] == 200


def test_it_takes_little_cpu_time(busy: Shop) -> None:
    assert busy.server.process is not None
    supervisor = [busy.server.process.pid]
    before = procs.cpu_seconds(supervisor)
    for _ in range(20):
        assert get(busy.server.metrics_port)[0] == 200
    assert (procs.cpu_seconds(supervisor) - before) / 20 < 0.03


def test_a_browser_shows_it_on_any_screen(busy: Shop, needs: Callable[..., None]) -> None:
    needs("chromium")
    url = f"http://127.0.0.1:{busy.server.metrics_port}/"
    Document(get(busy.server.metrics_port)[2])
    with Chromium() as chromium:
        for width, scheme, background in (
            (360, "light", "rgb(255, 255, 255)"),
            (768, "dark", "rgb(20, 24, 28)"),
            (1280, "light", "rgb(255, 255, 255)"),
        ):
            chromium.resize(width, 800)
            chromium.prefer(scheme)
            chromium.open(url)
            assert chromium.evaluate("document.documentElement.scrollWidth") == width
            assert chromium.evaluate("getComputedStyle(document.body).backgroundColor") == background
            elements = "[...document.querySelectorAll('body :not(thead, thead *)')]"
            wide = f"{elements}.filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML)"
            assert chromium.evaluate(wide) == []
        shown = chromium.evaluate("document.body.innerText")
        assert chromium.evaluate("document.compatMode") == "CSS1Compat"
        assert chromium.evaluate("document.querySelector('footer a').href") == f"{url}metrics"
        assert chromium.said == []
    for wanted in (
        *("Needs attention", f"{busy.gone} is down", "2 of 2", "never replaced", "cluster.local.", "synced"),
        *("16 Service", "web.shop.svc.cluster.local.", "NXDOMAIN", "worker 1", "kubernetes loop forward"),
    ):
        assert wanted in shown, shown


def test_a_style_that_is_not_ours_is_not_used(busy: Shop, needs: Callable[..., None]) -> None:
    """The policy is what keeps it out, should a text ever become markup."""
    needs("chromium")
    with Chromium() as chromium:
        chromium.open(f"http://127.0.0.1:{busy.server.metrics_port}/")
        script = (
            "document.head.append(Object.assign(document.createElement('style'), {textContent: 'body{color:red}'}))"
        )
        chromium.evaluate(f"{script}; 1")
        assert chromium.evaluate("getComputedStyle(document.body).color") != "rgb(255, 0, 0)"
        assert any("Content Security Policy" in line for line in chromium.said)


def test_what_a_worker_said_is_kept_when_it_is_gone(busy: Shop) -> None:
    port = busy.server.metrics_port
    before = facts(port)
    for pid in busy.server.worker_pids():
        os.kill(pid, signal.SIGKILL)
    procs.wait_until(lambda: facts(port)["counts"]["worker_restarts"] == 2, 10, "the replacements")
    procs.wait_until(lambda: len(facts(port)["processes"]) == 4, 10, "new workers")
    found = facts(port)
    counts = {message["text"]: message["count"] for message in found["messages"]}
    assert [count for line, count in counts.items() if "was ended by SIGKILL" in line] == [2]
    assert before["messages"][0]["text"] in counts
    pids = {process["role"]: process["pid"] for process in found["processes"]}
    assert pids["worker 0"] not in {process["pid"] for process in before["processes"]}
    assert "replaced 2 times" in Document(get(port)[2]).shown


# Odd states


def watched(port: int, stop: threading.Event, seen: list[int | str]) -> None:
    while not stop.is_set():
        for accept in ("text/html", "application/json"):
            try:
                code, _, body = get(port, Accept=accept)
                seen.append(code)
                if accept == "text/html":
                    Document(body)
            except ConnectionRefusedError:
                seen.append(0)


def test_it_is_there_while_the_api_was_never_reached_and_while_it_reloads_and_ends(tmp_path: Path) -> None:
    options = f"endpoint http://127.0.0.1:{ports.free_port()}\nstartup_timeout 1s"
    stopped = threading.Event()
    seen: list[int | str] = []
    started = server.Server(tmp_path, corefile=server.API_COREFILE, kubernetes=options, workers=1)
    try:
        started.start(wait=False)
        port = started.metrics_port
        procs.wait_until(started.answers, 20, "an answer")
        lines = [line for line in facts(port)["attention"] if "not read yet" in line]
        assert len(lines) == 1
        watching = threading.Thread(target=watched, args=(port, stopped, seen))
        watching.start()
        try:
            for number in range(3):
                started.write_corefile(kubernetes=f"{options}\nttl {number + 7}")
                started.signal(signal.SIGUSR1)
                time.sleep(0.2)
            started.write_corefile(kubernetes="nonsense")
            started.signal(signal.SIGUSR1)
            procs.wait_until(lambda: facts(port)["outdated"] is True, 10, "the mistake")
            found = facts(port)
            assert any("the configuration has a mistake" in line for line in found["attention"])
            assert any("nonsense" in message["text"] for message in found["messages"])
            started.terminate()
        finally:
            stopped.set()
            watching.join()
    finally:
        started.kill()
    assert set(seen) <= {200, 0}
    assert 200 in seen


def test_before_the_workers_answer_the_page_says_so(tmp_path: Path) -> None:
    options = f"endpoint http://127.0.0.1:{ports.free_port()}\nstartup_timeout 10s"
    started = server.Server(tmp_path, corefile=server.API_COREFILE, kubernetes=options, workers=2)
    try:
        started.start(wait=False)
        procs.wait_until(lambda: started.get("/", started.metrics_port).status == 200, 10, "the page")
        found = facts(started.metrics_port)
        assert found["attention"][0] == "0 of 2 workers answer"
        assert [process["role"] for process in found["processes"]] == ["supervisor", "nursery"]
    finally:
        started.kill()


def test_every_address_of_prometheus_has_it_with_links_to_what_is_there(serve: Serve) -> None:
    other = ports.free_port()
    corefile = server.COREFILE.replace("ready $host:$ready", "ready $host:$metrics").replace(
        "$plugins\n}", f"}}\nother.test:$dns {{\n bind $addresses\n prometheus 127.0.0.1:{other}\n whoami\n}}"
    )
    started = serve([objects.service("web")], corefile=corefile.replace("$ready", "$metrics"))
    procs.wait_until(lambda: started.get("/", other).status == 200, 10, "the page")
    links = re.compile(rb'<a href="([^"]+)">')
    assert links.findall(get(started.metrics_port)[2]) == [b"/metrics", b"/ready"]
    assert links.findall(get(other)[2]) == [b"/metrics"]
    (source,) = facts(other)["sources"]
    assert source["origin"] == f"manifests {started.manifests}"
