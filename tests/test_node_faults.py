"""What pods lose when a node-local DNS server is killed, upgraded or disturbed: as good as nothing.

Two pods ask 2,000 questions a second of the ClusterIP and the link-local address, each from a port of its own. Bounds
are generous, for machines that are busy; the figures themselves are printed (`pytest -rP`), and `python -m
tests.bench.node` measures more.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kdns.server import batch
from tests.conftest import Record
from tests.support import digs, faults, lookups, netns
from tests.support.faults import Event, Outcome, Scene
from tests.support.lookups import GLIBC, ONCE, PROGRAM, TCP, Client, Figures, Plan, Question
from tests.support.node import IPV4, IPV6, Cgroup, Family, Instance, Topology

NEEDED = ("unbound", "knotd", "iptables", "ip6tables", "nft", "conntrack", "sysctl", "getent", "dig")
GAP = 0.5
"""Seconds without an answer that a busy machine may make of 50 ms."""
HAND = batch.SIZE
"""What a worker holds in hand at most, and so all that dies with it."""
MOMENT = 0.25
"""Seconds around a kill in which what is lost was in hand: a busy machine takes its time to end a process."""
DOWN = 0.3

Scenes = Callable[..., contextlib.AbstractContextManager[Scene]]


@pytest.fixture(scope="module")
def topologies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Family], Topology]]:
    """The same topology of a family for all tests."""
    try:
        netns.require()
    except netns.NetnsUnavailableError as error:
        pytest.skip(str(error))
    missing = [tool for tool in NEEDED if not digs.available(tool)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    made: dict[Family, Topology] = {}
    with contextlib.ExitStack() as stack:

        def topology(family: Family) -> Topology:
            if family not in made:
                made[family] = stack.enter_context(Topology(tmp_path_factory.mktemp("node"), family))
            return made[family]

        yield topology


@pytest.fixture
def scenes(topologies: Callable[[Family], Topology], tmp_path: Path) -> Scenes:
    """An instance that serves, in a cgroup if wanted."""

    def make(
        family: Family = IPV4, *, cgroup: bool = False, **options: str
    ) -> contextlib.AbstractContextManager[Scene]:
        topology = topologies(family)
        topology.remove_link()

        def instance(number: int, group: Cgroup | None) -> Instance:
            return Instance(
                topology, tmp_path / f"{number}", number, cgroup=group, cache=options.get("cache", "cache 30")
            )

        return faults.scene(topology, instance, DOWN, cgroup=cgroup)

    return make


def note(record: Record, outcome: Outcome, addresses: Sequence[str]) -> None:
    begun = outcome.marks[0][1]
    record("moments", [f"{what} {at - begun:.3f}" for what, at in outcome.marks])
    for address in addresses:
        for kind in (ONCE, GLIBC, TCP, PROGRAM):
            found = outcome.figures(kind, address)
            missing = [round(at - begun, 3) for at in found.missing]
            record(
                f"{address} {kind}", f"{len(missing)} of {found.sent} without an answer: {missing[:3]}{missing[-3:]}"
            )
        once = outcome.figures(ONCE, address)
        record(f"{address} longest gap", f"{once.gap * 1000:.1f} ms from {once.since - begun:.3f}")


def assert_none_missing(outcome: Outcome, address: str) -> None:
    for kind in (ONCE, GLIBC, TCP, PROGRAM):
        assert not outcome.figures(kind, address).missing, kind
    assert outcome.figures(ONCE, address).gap < GAP


def assert_none_missing_but_in_hand(outcome: Outcome, address: str, moment: float) -> Figures:
    """What is lost was asked just when something was killed, and a client that asks again has its answer."""
    once = outcome.figures(ONCE, address)
    late = [at - moment for at in once.missing if abs(at - moment) > MOMENT]
    assert not late, f"{len(late)} of {once.sent} questions that nobody held when it was killed: {late[:5]}"
    assert len(once.missing) <= HAND
    assert once.gap < GAP
    assert not outcome.figures(GLIBC, address).missing
    return once


# Kills


@pytest.mark.parametrize("event", [faults.kill_worker, faults.kill_nursery], ids=["worker", "nursery"])
def test_a_killed_worker_takes_no_more_with_it_than_it_held(scenes: Scenes, record: Record, event: Event) -> None:
    with scenes() as scene:
        outcome = faults.watch(scene, event)
        note(record, outcome, IPV4.served)
        for address in IPV4.served:
            assert_none_missing_but_in_hand(outcome, address, outcome.moment("kill"))
            assert not scene.topology.tracked(address)


def test_a_killed_supervisor_is_missed_by_nobody(scenes: Scenes, record: Record) -> None:
    with scenes() as scene:
        outcome = faults.watch(scene, faults.kill_supervisor)
        note(record, outcome, IPV4.served)
        for address in IPV4.served:
            assert_none_missing_but_in_hand(outcome, address, outcome.moment("kill"))


@pytest.mark.parametrize("family", [IPV4, IPV6], ids=["IPv4", "IPv6"])
def test_when_all_are_killed_the_cluster_answers(scenes: Scenes, record: Record, family: Family) -> None:
    with scenes(family) as scene:
        outcome = faults.watch(scene, faults.kill_all, [family.cluster_ip])
        note(record, outcome, [family.cluster_ip])
        assert_none_missing_but_in_hand(outcome, family.cluster_ip, outcome.moment("kill"))


def test_the_oom_killer_takes_a_worker_and_another_is_there_at_once(scenes: Scenes, record: Record) -> None:
    if not Cgroup.available():
        pytest.skip("no memory cgroup can be made here")
    with scenes(cgroup=True) as scene:
        kept = {scene.instance.supervisor(), scene.instance.nursery()}
        outcome = faults.watch(scene, faults.kill_by_oom)
        note(record, outcome, IPV4.served)
        assert {scene.instance.supervisor(), scene.instance.nursery()} == kept
        for address in IPV4.served:
            assert_none_missing_but_in_hand(outcome, address, outcome.moment("killed"))


# What is meant to happen


def test_what_brings_the_queries_is_shown(scenes: Scenes) -> None:
    with scenes() as scene:
        found = scene.instance.metrics()
        for address in IPV4.served:
            assert found.value("kdns_node_intercepted", address=address, by="nftables") == 1
        page = scene.topology.node.run("curl", "-s", "http://127.0.0.1:9253/").stdout
        assert "node DNS" in page
        assert page.count("nftables") == len(IPV4.served)


def test_sigterm_leaves_no_question_without_an_answer(scenes: Scenes, record: Record) -> None:
    with scenes() as scene:
        outcome = faults.watch(scene, faults.terminate, [IPV4.cluster_ip])
        note(record, outcome, [IPV4.cluster_ip])
        assert_none_missing(outcome, IPV4.cluster_ip)


def test_an_upgrade_with_overlap_leaves_no_question_without_an_answer(scenes: Scenes, record: Record) -> None:
    with scenes() as scene:
        outcome = faults.watch(scene, faults.upgrade)
        note(record, outcome, IPV4.served)
        for address in IPV4.served:
            assert_none_missing(outcome, address)
            assert scene.topology.answered_by(address) == scene.instance.answer
            assert not scene.topology.tracked(address)


# What somebody else does


@pytest.mark.parametrize("event", [faults.flush_ruleset, faults.delete_link], ids=["ruleset", "link"])
def test_what_somebody_else_deletes_is_missed_by_nobody(scenes: Scenes, record: Record, event: Event) -> None:
    with scenes() as scene:
        outcome = faults.watch(scene, event)
        note(record, outcome, IPV4.served)
        assert_none_missing(outcome, IPV4.cluster_ip)
        once = outcome.figures(ONCE, IPV4.local)
        assert once.gap < GAP
        assert all(0 <= at - outcome.marks[0][1] < GAP for at in once.missing)
        for address in IPV4.served:
            assert scene.topology.answered_by(address) == scene.instance.answer


# The upstream


@pytest.mark.parametrize("silent", [False, True], ids=["killed", "silent"])
def test_an_upstream_that_is_gone_leaves_stale_answers_and_is_used_again_within_a_second(
    scenes: Scenes, record: Record, silent: bool
) -> None:
    known = [Question(f"known{number}.short.example") for number in range(20)]
    with scenes(cache="cache 30 {\n        serve_stale 1h\n    }") as scene:
        topology, pod = scene.topology, scene.topology.pods[0]
        with Client(pod, Plan([IPV4.cluster_ip], known, once=200)) as client:
            time.sleep(1)
            cut = time.monotonic()
            _go(topology, silent)
            time.sleep(2.5)
            with Client(pod, Plan([IPV4.cluster_ip], [Question("new-*.short.example")], once=50)) as new:
                time.sleep(0.5)
                _return(topology, silent)
                back = time.monotonic()
                time.sleep(1.5)
                fresh = new.finish()
            asked = [one for one in client.finish() if one.sent > cut]
        stale = scene.instance.metrics().value("coredns_cache_served_stale_total")
    found = lookups.figures(asked, ONCE)
    recovered = min((one.ended for one in fresh if one.outcome == "ok" and one.ended > back), default=back + 60) - back
    record("recovery_ms", round(recovered * 1000))
    record("slowest_ms", round(found.slowest * 1000))
    record("stale", stale)
    assert not found.missing
    assert stale >= len(known)
    assert recovered < 1.0


def _go(topology: Topology, silent: bool) -> None:
    if silent:
        topology.silence_upstream(True)
    else:
        topology.kill_server("upstream")


def _return(topology: Topology, silent: bool) -> None:
    if silent:
        topology.silence_upstream(False)
    else:
        topology.start_server("upstream")
