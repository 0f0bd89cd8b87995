"""Which upstream is asked, which next, when one is down, and names as upstreams."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from kdns.errors import UpstreamError
from kdns.observe.counters import Region
from kdns.upstream.meters import Standing
from kdns.upstream.resolve import nameservers
from kdns.upstream.settings import Target
from tests.support import procs
from tests.support.upstream import ADDRESS, Asked, Asking, FakeUpstream, addresses, reply, usual


def run(steps: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(steps, 20))


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.get_running_loop().run_in_executor(None, procs.wait_until, condition, 5.0, "the condition")


async def silent(_: Asked) -> None:
    return


def checks(upstream: FakeUpstream) -> list[Asked]:
    return [asked for asked in list(upstream.asked) if asked.rdtype == "NS"]


def test_a_failure_leads_to_checks_until_one_is_answered() -> None:
    async def steps() -> None:
        with FakeUpstream(silent) as upstream:
            async with Asking(upstream.target, read_timeout=0.1, max_attempts=1, health_interval=0.02) as asking:
                assert checks(upstream) == []
                with pytest.raises(UpstreamError):
                    await asking.ask()
                await until(lambda: len(checks(upstream)) == 1)
                upstream.script = usual
                await until(lambda: asking.group.upstreams[0].fails == 0 and len(checks(upstream)) > 1)
                count = len(checks(upstream))
                await asyncio.sleep(0.15)
                assert len(checks(upstream)) == count
                assert (checks(upstream)[0].message.question[0].to_text(), checks(upstream)[0].proto) == (
                    ". IN NS",
                    "udp",
                )

    run(steps())


def test_any_answer_is_a_healthy_one() -> None:
    async def refuses(asked: Asked) -> None:
        if asked.rdtype == "NS":
            asked.send(asked.data[:2] + b"\x80\x05" + bytes(8))

    async def steps() -> None:
        with FakeUpstream(refuses) as upstream:
            async with Asking(upstream.target, read_timeout=0.1, max_attempts=1, health_interval=0.02) as asking:
                with pytest.raises(UpstreamError):
                    await asking.ask()
                await until(lambda: len(checks(upstream)) == 1)
                await asyncio.sleep(0.1)
                assert len(checks(upstream)) == 1
                assert asking.counted("coredns_proxy_healthcheck_failures_total") == 0

    run(steps())


def test_more_failed_checks_than_max_fails_take_an_upstream_out_until_it_recovers() -> None:
    async def steps() -> None:
        with FakeUpstream(tcp=False, udp=False) as bad, FakeUpstream() as good:
            options = {"policy": "sequential", "health_interval": 0.02, "max_fails": 2}
            async with Asking(bad.target, good.target, **options) as asking:
                first = asking.group.upstreams[0]
                assert addresses(await asking.ask()) == [ADDRESS]
                await until(lambda: first.is_down)
                assert asking.counted("coredns_proxy_healthcheck_failures_total", to=bad.to) >= 3
                assert asking.counted("coredns_forward_healthcheck_broken_total") == 0
                bad._udp = bad._tcp = True
                bad.start()
                await until(lambda: not first.is_down)
                before = len(bad.names())
                await asking.ask()
                assert len(bad.names()) == before + 1

    run(steps())


def standing(asking: Asking, upstream: FakeUpstream) -> tuple[int, int]:
    """How many find it up, and how many down."""
    up, down = (asking.counted("kdns_forward_upstreams", to=upstream.to, state=state) for state in ("up", "down"))
    return up, down


def test_metrics_tell_which_upstream_is_down_and_when_it_last_failed() -> None:
    async def steps() -> None:
        failure = "kdns_forward_last_failure_timestamp_seconds"
        with FakeUpstream(tcp=False, udp=False) as bad, FakeUpstream() as good:
            async with Asking(bad.target, good.target, policy="sequential", health_interval=0.02) as asking:
                assert (standing(asking, bad), standing(asking, good)) == ((1, 0), (1, 0))
                assert asking.counted(failure) == 0
                begun = int(time.time())
                await asking.ask()
                await until(lambda: standing(asking, bad) == (0, 1))
                assert begun <= asking.counted(failure, to=bad.to) <= time.time()
                assert (standing(asking, good), asking.counted(failure, to=good.to)) == ((1, 0), 0)
                bad._udp = bad._tcp = True
                bad.start()
                await until(lambda: standing(asking, bad) == (1, 0))
                assert asking.counted(failure, to=bad.to) >= begun
            assert (standing(asking, bad), standing(asking, good)) == ((0, 0), (0, 0))

    run(steps())


def test_without_room_for_their_counters_upstreams_are_checked_all_the_same() -> None:
    region = Region.create(1)
    number = 0
    while not region.refused:
        region.count(("count", f"a_{number}_total"))
        number += 1
    upstream = Standing(region, "192.0.2.1:53")
    region.set(("gauge", "kdns_packet_cache_entries"), 0)  # has no room either, and shares the cell
    upstream.set(down=True)
    upstream.set(down=False)
    region.set(("gauge", "kdns_packet_cache_entries"), 0)
    upstream.leave()


def test_upstreams_that_are_only_asked_for_addresses_are_not_shown_among_the_others() -> None:
    async def steps() -> None:
        async def loopback(asked: Asked) -> None:
            asked.send(reply(asked, *(["A 127.0.0.1"] if asked.rdtype == "A" else [])))

        with FakeUpstream(loopback) as resolver, FakeUpstream() as upstream:
            named = Target("dns", "dns.test", upstream.port)
            async with Asking(named, resolvers=(resolver.target,)) as asking:
                await until(lambda: standing(asking, upstream) == (1, 0))
                assert addresses(await asking.ask()) == [ADDRESS]
                assert standing(asking, resolver) == (0, 0)

    run(steps())


def test_max_fails_0_never_checks_and_never_takes_one_out() -> None:
    async def steps() -> None:
        with FakeUpstream(silent) as upstream:
            async with Asking(upstream.target, read_timeout=0.06, max_fails=0, health_interval=0.01) as asking:
                for _ in range(4):
                    with pytest.raises(UpstreamError):
                        await asking.ask()
                assert checks(upstream) == []
                assert not asking.group.upstreams[0].is_down

    run(steps())


@pytest.mark.parametrize("failfast", [False, True])
def test_if_all_are_down_a_random_one_is_asked_once_or_none_with_failfast(failfast: bool) -> None:
    async def steps() -> None:
        with FakeUpstream() as one, FakeUpstream() as two:
            async with Asking(one.target, two.target, failfast=failfast) as asking:
                for upstream in asking.group.upstreams:
                    upstream.fails = 3
                if failfast:
                    with pytest.raises(UpstreamError, match="every upstream is down"):
                        await asking.ask()
                else:
                    for _ in range(40):
                        assert addresses(await asking.ask()) == [ADDRESS]
                    assert one.names()
                    assert two.names()
                assert asking.counted("coredns_forward_healthcheck_broken_total") == (1 if failfast else 40)

    run(steps())


def test_policies() -> None:
    async def steps() -> None:
        with FakeUpstream() as one, FakeUpstream() as two, FakeUpstream() as three:
            servers = (one, two, three)

            async def order(policy: str, count: int) -> list[int]:
                for server in servers:
                    server.asked.clear()
                found = []
                async with Asking(*(server.target for server in servers), policy=policy) as asking:
                    for _ in range(count):
                        before = [len(server.asked) for server in servers]
                        await asking.ask()
                        found.append(next(n for n, server in enumerate(servers) if len(server.asked) > before[n]))
                return found

            assert await order("sequential", 6) == [0] * 6
            assert await order("round_robin", 6) == [1, 2, 0, 1, 2, 0]
            assert set(Counter(await order("random", 60))) == {0, 1, 2}

    run(steps())


def test_max_attempts_bounds_the_failures_of_one_query() -> None:
    async def steps(most: int | None, expected: int) -> None:
        with FakeUpstream(silent) as one, FakeUpstream(silent) as two:
            options = {"read_timeout": 0.06, "max_fails": 0, "max_attempts": most}
            async with Asking(one.target, two.target, **options) as asking:
                with pytest.raises(UpstreamError):
                    await asking.ask()
            assert len(one.asked) + len(two.asked) == expected

    run(steps(1, 1))
    run(steps(3, 3))
    run(steps(None, 4))


def test_failover_asks_the_next_upstream_and_the_last_ones_answer_counts() -> None:
    def saying(rcode: str) -> Callable[[Asked], Coroutine[object, object, None]]:
        async def script(asked: Asked) -> None:
            asked.send(reply(asked, rcode=rcode))

        return script

    async def steps() -> None:
        with FakeUpstream(saying("SERVFAIL")) as one, FakeUpstream(saying("REFUSED")) as two:
            async with Asking(one.target, two.target, policy="sequential", failover=frozenset((2,))) as asking:
                assert (await asking.ask()).rcode == 5
            async with Asking(one.target, two.target, policy="sequential", failover=frozenset((2, 5))) as asking:
                assert (await asking.ask()).rcode == 5
            async with Asking(one.target, two.target, policy="sequential") as asking:
                assert (await asking.ask()).rcode == 2
            two.script = silent
            options = {"policy": "sequential", "failover": frozenset((2,)), "read_timeout": 0.1, "max_fails": 0}
            async with Asking(one.target, two.target, **options) as asking:
                assert (await asking.ask()).rcode == 2  # better than nothing

    run(steps())


# Names of upstreams


def named(port: int, host: str = "dns.example") -> Target:
    return Target("dns", host, port)


def test_an_upstream_given_by_name_is_looked_up_and_all_its_addresses_are_used() -> None:
    async def resolver(asked: Asked) -> None:
        records = {"A": ["A 127.0.0.1", "A 127.0.0.2"], "AAAA": []}[asked.rdtype]
        asked.send(reply(asked, *records))

    async def steps() -> None:
        one, names = FakeUpstream(), FakeUpstream(resolver)
        with names, one, FakeUpstream(address="127.0.0.2", port=one.port) as two:
            async with Asking(named(one.port), resolvers=(names.target,), policy="round_robin") as asking:
                await until(lambda: len(asking.group.upstreams) == 2)
                await asking.ask()
                await asking.ask()
            assert (len(one.names()), len(two.names())) == (1, 1)
            assert sorted(asked.rdtype for asked in names.asked) == ["A", "AAAA"]

    run(steps())


def test_until_a_name_is_known_the_error_says_so_and_then_it_is_tried_again() -> None:
    async def steps() -> None:
        async def nothing(asked: Asked) -> None:
            asked.send(reply(asked, rcode="NXDOMAIN"))

        async def here(asked: Asked) -> None:
            asked.send(reply(asked, *(["A 127.0.0.1"] if asked.rdtype == "A" else [])))

        with FakeUpstream(nothing) as names, FakeUpstream() as one:
            async with Asking(named(one.port), resolvers=(names.target,)) as asking:
                with pytest.raises(UpstreamError, match=r"dns\.example: not looked up yet"):
                    await asking.ask()
                await until(lambda: len(names.asked) >= 2)
                with pytest.raises(UpstreamError, match=rf"dns\.example: {names.to}: NXDOMAIN"):
                    await asking.ask()
                names.script = here
                await until(lambda: bool(asking.group.upstreams))
                assert addresses(await asking.ask()) == [ADDRESS]

    run(steps())


def test_known_addresses_stay_while_they_cannot_be_looked_up_and_change_when_they_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kdns.upstream.resolve.SHORTEST", 0.05)
    where = "127.0.0.1"

    async def resolver(asked: Asked) -> None:
        asked.send(reply(asked, *([f"A {where}"] if asked.rdtype == "A" else []), ttl=0))

    async def steps() -> None:
        nonlocal where
        with FakeUpstream(resolver) as names, FakeUpstream() as one:
            async with Asking(named(one.port), resolvers=(names.target,)) as asking:
                await until(lambda: bool(asking.group.upstreams))
                names.stop()
                await asyncio.sleep(0.2)
                assert addresses(await asking.ask()) == [ADDRESS]
                where = "127.0.0.2"
                names.start()
                await until(lambda: [u.target.host for u in asking.group.upstreams] == ["127.0.0.2"])

    run(steps())


def test_nameservers_are_read_as_the_resolver_does(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# comment\nnameserver 10.0.0.1 # here\nsearch a.example\nnameserver 2001:db8::1;there\nnameserver x\n"
        "nameserver\n  nameserver 10.0.0.1\nnameserver fe80::1%lo\noptions ndots:5\n"
    )
    assert [target.host for target in nameservers(str(path))] == ["10.0.0.1", "2001:db8::1", "fe80::1%lo"]


def test_without_resolver_the_file_is_asked_for_nameservers(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"

    async def steps() -> None:
        async with Asking(named(1), resolv_conf=str(path)) as asking:
            await asyncio.sleep(0.05)
            with pytest.raises(UpstreamError, match=r"dns\.example: no nameserver is known"):
                await asking.ask()
            path.write_text("nameserver 127.0.0.1\n")
            await until(lambda: "127.0.0.1:53" in str(asking.group._unresolved))

    run(steps())


def test_what_waits_on_an_address_that_is_not_used_any_more_goes_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdns.upstream.resolve.SHORTEST", 0.05)
    where = "127.0.0.1"

    async def resolver(asked: Asked) -> None:
        asked.send(reply(asked, *([f"A {where}"] if asked.rdtype == "A" else []), ttl=0))

    async def steps(tcp: bool) -> None:
        nonlocal where
        where = "127.0.0.1"
        names, old = FakeUpstream(resolver), FakeUpstream(silent)
        with names, old, FakeUpstream(address="127.0.0.2", port=old.port):
            async with Asking(named(old.port), resolvers=(names.target,), health_interval=0.02) as asking:
                await until(lambda: bool(asking.group.upstreams))
                asking.group.upstreams[0].check()
                waiting = asyncio.create_task(asking.ask(tcp=tcp))
                await until(lambda: bool(old.names()))
                where = "127.0.0.2"
                assert addresses(await waiting) == [ADDRESS]
                assert asking.counted("kdns_forward_resent_total") == 1
                count = len(checks(old))
                await asyncio.sleep(0.1)
                assert len(checks(old)) <= count + 1

    run(steps(tcp=True))
    run(steps(tcp=False))
