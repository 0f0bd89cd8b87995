"""loop: what is forwarded and comes back is found out, and ends."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import dns.rcode
import pytest

from kdns.plugins import loop
from kdns.wire import message, names, relay, rr
from kdns.wire.message import Query, Response
from tests.conftest import Serve
from tests.support import objects, ports, procs
from tests.support.configs import options, refused
from tests.support.plugins import Behind, Ground, answered, query
from tests.support.server import ROOT, Server

pytestmark = pytest.mark.one_speed

QUICK = """
from kdns.plugins import loop
loop.AGAIN = 0.3
loop.PAUSES = (0, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2)
"""
"""What no option says, as sitecustomize, which every process of a server imports."""
COREFILE = """
.:$dns {
    bind 127.0.0.1
    errors
    ready $host:$ready
    prometheus $host:$metrics
    kubernetes cluster.local {
        manifests $manifests
    }
    loop
    $plugins
}
"""
WEB = "web.default.svc.cluster.local"
CLUSTER = [objects.service("web", ips=["10.96.0.1"])]


Start = Callable[..., Server]


@pytest.fixture
def start(serve: Serve, tmp_path: Path) -> Start:
    """Start servers with this line behind `loop`, which do not wait long."""
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "sitecustomize.py").write_text(QUICK)
    environ = {"PYTHONPATH": f"{tmp_path}/quick:{ROOT}"}
    return lambda line, **more: serve(CLUSTER, corefile=COREFILE, plugins=line, environ=environ, **more)


def looping(server: Server) -> bool:
    return server.metrics().value("kdns_loop_detected", zone=".") == 1


def answers(server: Server) -> bool:
    """Whether what is not ours is answered by `whoami`, here or elsewhere."""
    return bool(server.query("example.org").additional)


def refuses(server: Server) -> bool:
    """Whether what would be forwarded is answered with SERVFAIL at once."""
    begun = time.monotonic()
    failed = server.query("example.org").rcode() == dns.rcode.SERVFAIL
    return failed and time.monotonic() - begun < 1


def test_a_server_that_forwards_to_itself_fails_at_once_but_for_its_own_names(start: Start) -> None:
    port = ports.free_port()
    server = start(f"forward . 127.0.0.1:{port}", dns_port=port, workers=2)
    procs.wait_until(lambda: server.log.count(" detected for zone .: ") == 2, 10, "the loop, in both workers")
    assert f" -> 127.0.0.1:{port}) detected for zone .: queries that are forwarded come back" in server.log
    assert looping(server)
    assert refuses(server)
    assert server.texts(WEB) == ["10.96.0.1"]
    procs.wait_until(lambda: "errors: 2 example.org. A: Loop (127.0.0.1:" in server.log, 3, "the reason")
    time.sleep(0.7)
    assert server.log.count(" detected for zone .: ") == 2, "it is said once"
    server.write_corefile(plugins="whoami")
    server.signal(signal.SIGUSR1)
    procs.wait_until(lambda: answers(server), 10, "an answer by the new configuration")
    procs.wait_until(lambda: not looping(server), 10, "the metric")


def test_two_servers_that_forward_to_each_other_until_one_has_a_server_of_its_own(start: Start) -> None:
    one, other = ports.free_port(), ports.free_port()
    second = start(f"forward . 127.0.0.1:{one} {{\nmax_fails 0\n}}", dns_port=other)
    first = start(f"forward . 127.0.0.1:{other} {{\nmax_fails 0\n}}", dns_port=one)
    procs.wait_until(lambda: looping(first) or looping(second), 10, "the loop")
    procs.wait_until(lambda: refuses(first) and refuses(second), 10, "an end of it")
    assert first.texts(WEB) == second.texts(WEB) == ["10.96.0.1"]
    second.write_corefile(plugins="whoami")
    second.signal(signal.SIGUSR1)
    procs.wait_until(lambda: answers(first), 10, "an answer from behind the other server")
    procs.wait_until(lambda: not looping(first), 10, "the metric")
    assert not looping(second)


def test_without_a_loop_nothing_changes(serve: Serve, start: Start) -> None:
    behind = serve(corefile=".:$dns {\nbind 127.0.0.1\nprometheus $host:$metrics\nwhoami\n}\n")
    server = start(f"cache\nforward . 127.0.0.1:{behind.port}")
    assert server.query("example.org").additional
    hinfo = {"type": "other"}
    procs.wait_until(lambda: behind.metrics().value("coredns_dns_requests_total", **hinfo) > 0, 5, "the random name")
    time.sleep(1)
    assert behind.metrics().value("coredns_dns_requests_total", **hinfo) == 1
    assert not looping(server)
    assert "plugin/loop" not in server.log
    assert server.metrics().value("coredns_cache_misses_total") >= 1
    assert not server.metrics().value("coredns_cache_misses_total", server=""), "the random name was asked of nobody"


class Upstream:
    """What a chain that ends in another server answers. It comes back if there is a `loop`."""

    def __init__(self, handler: loop.Handler | None = None) -> None:
        self.handler = handler
        self.loop = False
        self.silent = False
        self.broken = False
        self.asked = 0

    async def __call__(self, query: Query) -> Response:
        assert self.handler is not None
        return await self.handler(query, self.forward)

    async def forward(self, query: Query) -> Response:
        self.asked += 1
        if self.silent:
            await asyncio.sleep(60)
        if self.broken:
            return Response(rcode=rr.SERVFAIL)
        if not self.loop:
            return Response(rcode=rr.NXDOMAIN)
        assert self.handler is not None
        data = message.upstream_query(query, 7)
        asked = message.parse(data, "udp", ("192.0.2.1", 4711), ("192.0.2.2", 53), message.DEFAULT_UDP)
        back = message.encode(asked, await self.handler(asked, self.forward))
        return Response(relay=relay.read(back.wire, message.question(query)))


def test_a_loop_is_seen_and_so_is_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PATIENCE", 0.05)
    monkeypatch.setattr(loop, "PAUSES", (0, *[0.01] * 50))
    monkeypatch.setattr(loop, "AGAIN", 0.02)
    upstream = Upstream()
    ground = Ground(ask=upstream)
    upstream.handler = handler = loop.Handler(loop.Options(), ground.site)

    async def until(text: str) -> None:
        await asyncio.to_thread(procs.wait_until, lambda: text in "\n".join(ground.log.lines), 5, text)

    async def test() -> None:
        watch = asyncio.create_task(ground.background[0])
        upstream.silent = upstream.loop = True
        await asyncio.sleep(0.03)
        upstream.silent, upstream.broken = False, True
        await asyncio.sleep(0.03)
        assert not ground.log.lines
        upstream.broken = False
        await until("[ERROR] plugin/loop: Loop (192.0.2.1:4711 -> 192.0.2.2:53) detected for zone .: ")
        assert ground.value("shared", "kdns_loop_detected", "zone", ".") == 1
        behind = Behind()
        response = await handler(query("example.org"), behind)
        assert (response.rcode, response.plugin, behind.query) == (rr.SERVFAIL, "loop", None)
        upstream.silent = True
        await asyncio.sleep(0.1)
        upstream.silent, upstream.broken = False, True
        await asyncio.sleep(0.1)
        assert ground.value("shared", "kdns_loop_detected", "zone", ".") == 1, "silence and failure say nothing"
        upstream.broken = upstream.loop = False
        await until("[INFO] plugin/loop: the loop for zone . has ended")
        assert (await handler(query("example.org"), behind)).plugin == "behind"
        await watch
        assert ground.value("shared", "kdns_loop_detected", "zone", ".") == 0
        assert len(ground.log.lines) == 2

    asyncio.run(asyncio.wait_for(test(), 10))


def test_if_nobody_ever_answers_it_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PATIENCE", 0.01)
    monkeypatch.setattr(loop, "PAUSES", (0, 0.01, 0.01))
    upstream = Upstream()
    upstream.silent = True
    ground = Ground(ask=upstream)
    upstream.handler = loop.Handler(loop.Options(), ground.site)
    asyncio.run(asyncio.wait_for(ground.background[0], 5))
    assert upstream.asked == 3
    assert not ground.log.lines


def test_only_hinfo_queries_below_the_token_have_come_round() -> None:
    ground = Ground(("Example.org.",))
    handler = loop.Handler(loop.Options(), ground.site)
    (answer,) = answered(handler, query("x.T0ken.example.org", "HINFO")).answer
    assert rr.hinfo(b"kdns: loop", b"192.0.2.7:40000 -> 192.0.2.1:53") in answer[1].rdatas
    for name, rdtype in (("x.t0ken.example.org", "A"), ("x.t0ken.org", "HINFO"), ("xt0ken.example.org", "HINFO")):
        assert answered(handler, query(name, rdtype)).plugin == "behind"
    ground.background[0].close()


def test_it_takes_no_options() -> None:
    assert options("loop") == loop.Options()
    assert refused("loop x") == ["1: loop has 1 argument"]
    assert refused("loop {\nx\n}") == ['2: loop has no option "x"']
    longest = ".".join(["x" * 49] * 3)
    assert options("loop", longest) == loop.Options()
    assert names.from_text("x" * 16 + "." + "t" * 40 + "." + longest)
    assert refused("loop", longest + ".y") == ["1: loop: the zone is too long for a random name in it"]
