"""A directive's source, followed into the store: what it cannot read, and what cannot be written, stays as it was."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from kdns import plugins
from kdns.errors import StoreError
from kdns.observe.logs import Log, Sink
from kdns.observe.recent import Recent
from kdns.server import publication
from kdns.server.manifest_feed import ManifestFeed
from kdns.server.publication import Publication, source_id
from kdns.wire import names
from kdns.zone.changes import Changes
from kdns.zone.store import EXPIRED, SYNCED, UNSYNCED, Store, Transaction
from tests.support import objects
from tests.support.server import ROOT

pytestmark = pytest.mark.one_speed

BROKEN = "kind: Service\nmetadata: ["
Z = names.from_text("cluster.local.")


@dataclass
class Lines:
    """A log that is kept."""

    found: list[str] = field(default_factory=list)
    recent: Recent = field(default_factory=Recent)

    def put(self, line: bytes) -> None:
        self.found.append(line.decode().rstrip())

    def repeated(self, key: str, level: str, text: str) -> bool:
        return False

    def __contains__(self, text: str) -> bool:
        return any(text in line for line in self.found)


class Bench:
    """A store, a folder of manifests and a log, which outlive the feeds of a test."""

    def __init__(self, folder: Path) -> None:
        self.manifests = folder / "manifests"
        self.manifests.mkdir()
        self.folder = folder
        self.log = Lines()
        self.committed = 0
        self.seen: list[tuple[set[int], bool]] = []
        self.store: Store
        self.open()

    def open(self) -> None:
        """Start the store, again if it was there."""
        self.store = Store.open(self.folder / "state", Changes.create(), pytest.fail)

    def restart(self) -> None:
        self.store.close()
        self.open()

    def feed(self, *options: str, key: str = ".:53", zones: str = "cluster.local 10.0.0.0/8") -> ManifestFeed:
        lines = "\n".join((f"manifests {self.manifests}", *options))
        text = f"{key} {{\n kubernetes {zones} {{\n{lines}\n}}\n}}\n"
        (block,) = plugins.loads(text).blocks
        return ManifestFeed(Publication(block, ["10.0.0.53"], self.store, Log(cast(Sink, self.log)), self._count))

    def _count(self) -> None:
        self.committed += 1

    def write(self, file: str, *found: objects.Object) -> None:
        objects.write_list(self.manifests / file, found)

    def names(self) -> set[str]:
        """Services that have a name, as name.namespace."""

        def action(txn: Transaction) -> set[str]:
            (zone,) = (zone for zone in txn.zones() if zone.origin == Z)
            return {names.to_text(name) for name, found in txn.below(zone, zone.origin) if found}

        suffix = ".svc.cluster.local."
        return {
            text.removesuffix(suffix) for text in self.store.read(action) if text.endswith(suffix) and text[0] != "_"
        }

    def states(self) -> set[int]:
        return self.store.read(lambda txn: {zone.state for zone in txn.zones()})

    def run(self, feed: ManifestFeed, *steps: Callable[[], Awaitable[None]]) -> None:
        """Follow while the steps are taken one after the other."""

        async def main() -> None:
            following = asyncio.create_task(feed.follow())
            try:
                for step in steps:
                    await step()
                    assert not following.done(), following
            finally:
                following.cancel()
                with suppress(asyncio.CancelledError):
                    await following

        asyncio.run(main())

    def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> Callable[[], Awaitable[None]]:
        """A step: wait for something to hold."""

        async def wait() -> None:
            end = time.monotonic() + seconds
            while not condition():
                assert time.monotonic() < end, (self.names(), self.log.found)
                await asyncio.sleep(0.01)

        return wait

    def do(self, action: Callable[..., Any], *arguments: Any) -> Callable[[], Awaitable[None]]:
        """A step: do something at once."""

        async def act() -> None:
            action(*arguments)

        return act

    def made_old(self, seconds: float) -> None:
        """Let the data have been current that long ago."""

        def action(txn: Transaction) -> None:
            for source in {zone.source for zone in txn.zones()}:
                txn.put_meta(f"current {source}", f"{time.time() - seconds:.3f}".encode())

        self.store.write(action)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path)
    yield found
    found.store.close()


def test_what_is_in_the_manifests_is_published_and_followed(bench: Bench) -> None:
    bench.write("a.json", objects.service("a"))
    feed = bench.feed()
    assert not feed.publication.synced
    assert feed.age() is None
    assert bench.states() == {UNSYNCED}
    bench.run(
        feed,
        bench.until(lambda: feed.publication.synced and bench.names() == {"a.default"}),
        bench.do(bench.write, "b.json", objects.service("b", ips=("10.96.0.11",))),
        bench.until(lambda: bench.names() == {"a.default", "b.default"}),
        bench.do((bench.manifests / "a.json").unlink),
        bench.until(lambda: bench.names() == {"b.default"}),
        bench.until(lambda: bench.committed == 3),
    )
    assert bench.states() == {SYNCED}
    assert feed.age() == 0.0
    assert feed.problems == 0


def test_a_restart_is_synced_before_anything_is_read(bench: Bench) -> None:
    bench.write("a.json", objects.service("a"))
    asyncio.run(bench.feed().load())
    bench.restart()
    feed = bench.feed()
    assert feed.publication.synced
    assert bench.names() == {"a.default"}
    asyncio.run(feed.load())
    assert bench.store.changes.generation == 0


def test_a_file_that_is_broken_at_a_restart_keeps_its_objects(bench: Bench) -> None:
    bench.write("a.json", objects.service("a"))
    bench.write("b.json", objects.service("b", ips=("10.96.0.11",)))
    asyncio.run(bench.feed().load())
    bench.restart()
    (bench.manifests / "a.json").write_text(BROKEN)
    bench.write("b.json", objects.service("b2", ips=("10.96.0.12",)))
    feed = bench.feed()
    bench.run(
        feed,
        bench.until(lambda: "b2.default" in bench.names()),
        bench.do(lambda: None),
        bench.until(lambda: "a.json:" in bench.log),
    )
    assert bench.names() == {"a.default", "b.default", "b2.default"}
    assert feed.publication.synced
    assert feed.problems == 1
    assert feed.age() is not None
    bench.run(
        feed,
        bench.do(bench.write, "a.json", objects.service("a2", ips=("10.96.0.13",))),
        bench.until(lambda: bench.names() == {"a2.default", "b2.default"}),
        bench.until(lambda: feed.age() == 0.0),
    )
    assert feed.problems == 0


def test_a_file_that_breaks_later_keeps_its_objects_and_says_when_it_is_repaired(bench: Bench) -> None:
    bench.write("a.json", objects.service("a"))
    feed = bench.feed()
    bench.run(
        feed,
        bench.until(lambda: bench.names() == {"a.default"}),
        bench.do((bench.manifests / "a.json").write_text, BROKEN),
        bench.until(lambda: feed.problems == 1),
        bench.do(bench.write, "b.json", objects.service("b", ips=("10.96.0.11",))),
        bench.until(lambda: bench.names() == {"a.default", "b.default"}),
        bench.do(bench.write, "a.json", objects.service("c")),
        bench.until(lambda: bench.names() == {"b.default", "c.default"}),
        bench.until(lambda: feed.problems == 0),
    )
    assert "a.json: can be used again" in bench.log


def test_nothing_is_synced_as_long_as_nothing_can_be_read(bench: Bench) -> None:
    bench.manifests.rmdir()
    feed = bench.feed()
    bench.run(
        feed,
        bench.until(lambda: feed.problems == 1),
        bench.do(bench.manifests.mkdir),
        bench.until(lambda: feed.publication.synced),
    )
    assert bench.states() == {SYNCED}


def test_with_a_broken_file_and_nothing_from_before_the_rest_is_served_but_nothing_is_denied(bench: Bench) -> None:
    bench.write("a.json", objects.service("a"))
    (bench.manifests / "b.yaml").write_text(BROKEN)
    feed = bench.feed()
    bench.run(
        feed,
        bench.until(lambda: bench.names() == {"a.default"}),
        bench.do(lambda: bench.seen.append((bench.states(), feed.publication.synced))),
        bench.do((bench.manifests / "b.yaml").unlink),
        bench.until(lambda: feed.publication.synced and bench.states() == {SYNCED}),
    )
    assert bench.seen == [({UNSYNCED}, False)]


def test_data_that_have_expired_are_not_served_again_because_of_a_change_beside_a_broken_file(bench: Bench) -> None:
    bench.write("a.json", objects.service("a"))
    asyncio.run(bench.feed().load())
    bench.restart()
    (bench.manifests / "a.json").write_text(BROKEN)
    bench.made_old(10.0)
    feed = bench.feed("snapshot_max_age 1s")
    bench.run(
        feed,
        bench.until(lambda: bench.states() == {EXPIRED}),
        bench.do(bench.write, "b.json", objects.service("b")),
        bench.until(lambda: bench.names() == {"a.default", "b.default"}),
        bench.do(lambda: bench.seen.append((bench.states(), feed.publication.synced))),
        bench.do(bench.write, "a.json", objects.service("c")),
        bench.until(lambda: feed.publication.synced and bench.states() == {SYNCED}),
    )
    assert bench.seen == [({EXPIRED}, False)]
    assert bench.names() == {"b.default", "c.default"}


def test_the_age_of_data_grows_while_their_source_cannot_be_read(bench: Bench) -> None:
    bench.write("a.json", objects.service("a"))
    feed = bench.feed()
    ages: list[float] = []
    broken = bench.manifests / "a.json"
    bench.run(
        feed,
        bench.until(lambda: feed.publication.synced and feed.age() == 0.0),
        bench.do(broken.write_text, BROKEN),
        bench.until(lambda: feed.problems == 1),
        bench.do(lambda: ages.append(feed.age() or 0.0)),
        bench.do(bench.write, "b.json", objects.service("b")),
        bench.until(lambda: bench.names() == {"a.default", "b.default"}),
        bench.do(lambda: ages.append(feed.age() or 0.0)),
        bench.do(bench.write, "a.json", objects.service("a")),
        bench.until(lambda: feed.age() == 0.0),
    )
    assert 0 < ages[0] < ages[1] < 10


def test_old_data_are_served_until_they_are_older_than_allowed(bench: Bench) -> None:
    bench.write("a.json", objects.service("a"))
    asyncio.run(bench.feed().load())
    bench.restart()
    moved = bench.manifests.rename(bench.folder / "moved")
    bench.made_old(10.0)
    feed = bench.feed("snapshot_max_age 10500ms")
    assert feed.publication.synced
    began, ages = time.monotonic(), list[float]()
    bench.run(
        feed,
        bench.until(lambda: not feed.publication.synced),
        bench.until(lambda: bench.states() == {EXPIRED}),
        bench.do(lambda: ages.append(time.monotonic() - began)),
        bench.do(moved.rename, bench.manifests),
        bench.until(lambda: feed.publication.synced and bench.states() == {SYNCED}),
    )
    assert 0.3 < ages[0] < 3
    assert "older than snapshot_max_age (10.5 s)" in bench.log
    assert bench.names() == {"a.default"}


@pytest.mark.parametrize("options", [[], ["snapshot_max_age 1h"]], ids=["for ever", "young"])
def test_data_that_may_be_served_do_not_expire(options: list[str], bench: Bench) -> None:
    bench.write("a.json", objects.service("a"))
    asyncio.run(bench.feed().load())
    bench.restart()
    bench.manifests.rename(bench.folder / "moved")
    bench.made_old(60.0)
    feed = bench.feed(*options)
    bench.run(feed, bench.until(lambda: feed.problems == 1), lambda: asyncio.sleep(0.2))
    assert feed.publication.synced
    assert bench.states() == {SYNCED}
    assert bench.names() == {"a.default"}


def test_what_was_read_anew_does_not_expire(bench: Bench) -> None:
    bench.write("a.json", objects.service("a"))
    asyncio.run(bench.feed().load())
    bench.restart()
    bench.made_old(60.0)
    feed = bench.feed("snapshot_max_age 60s")
    asyncio.run(feed.load())
    bench.run(feed, lambda: asyncio.sleep(0.2))
    assert feed.publication.synced
    assert bench.states() == {SYNCED}


def test_data_that_are_kept_do_not_become_younger_by_it(bench: Bench) -> None:
    bench.write("a.json", objects.service("a"))
    bench.write("b.json", objects.service("b", ips=("10.96.0.11",)))
    asyncio.run(bench.feed().load())
    bench.restart()
    bench.made_old(60.0)
    (bench.manifests / "a.json").write_text(BROKEN)
    feed = bench.feed()
    asyncio.run(feed.load())
    assert feed.age() == pytest.approx(60, abs=5)
    bench.write("a.json", objects.service("a"))
    asyncio.run(feed.load())
    assert feed.publication.publisher.age() == pytest.approx(0, abs=5)


def test_what_the_store_refuses_is_written_when_it_can_be(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publication, "RETRY_SECONDS", 0.02)
    bench.write("a.json", objects.service("a"))
    feed = bench.feed()
    write, refused = bench.store.write, 0

    def full(action: Callable[[Transaction], Any]) -> Any:
        nonlocal refused
        if refused % 4 < 3:
            refused += 1
            raise StoreError("zone store: No space left on device")
        refused += 1
        return write(action)

    monkeypatch.setattr(bench.store, "write", full)
    bench.run(
        feed,
        bench.until(lambda: feed.publication.synced and bench.names() == {"a.default"}),
        bench.do(bench.write, "b.json", objects.service("b", ips=("10.96.0.11",))),
        bench.until(lambda: bench.names() == {"a.default", "b.default"}),
    )
    assert refused >= 8
    assert "No space left on device; answers stay as they are" in bench.log


def test_hostile_objects_stop_nothing(bench: Bench) -> None:
    bench.write(
        "a.json",
        objects.service("a"),
        objects.service("x" * 300),
        objects.service("Capital"),
        objects.endpoint_slice("a", [objects.endpoint("10.0.0.53", "nonsense", "1.2.3.4.5")]),
        objects.service("dns", ips=("300.1.2.3",)),
        objects.endpoint_slice("dns", [objects.endpoint("10.0.0.53")]),
        objects.pod("x" * 600, "y" * 300, "10.0.0.1"),
        objects.namespace("a/b"),
    )
    feed = bench.feed("pods verified")
    bench.run(
        feed,
        bench.until(lambda: feed.publication.synced),
        bench.do(bench.write, "a.json", objects.service("b")),
        bench.until(lambda: bench.names() == {"b.default"}),
    )
    assert "a name that Kubernetes does not allow, not published" in bench.log


def test_the_same_block_has_the_same_source(bench: Bench) -> None:
    first = bench.feed()
    found = {feed.publication.publisher.source for feed in (first, bench.feed("pods verified"), bench.feed("ttl 30"))}
    assert found == {first.publication.publisher.source} == {source_id(first.publication.block)}
    others = [bench.feed(key="example.org:53"), bench.feed(key=".:5353"), bench.feed(zones="cluster.local")]
    assert len({feed.publication.publisher.source for feed in (first, *others)}) == 4
    assert [origin for origin, _ in first.publication.zones] == [Z, names.from_text("10.in-addr.arpa.")]


@pytest.mark.parametrize(
    ("feed", "others"),
    [
        ("manifest_feed", ["kubernetes", "urllib3", "http", "kdns.cluster.watch"]),
        ("cluster_feed", ["kubernetes", "urllib3", "yaml", "ryaml", "watchfiles", "kdns.cluster.manifests"]),
    ],
)
def test_a_feed_loads_no_library_of_the_other(feed: str, others: list[str]) -> None:
    code = f"import sys, kdns.server.feeds, kdns.server.{feed}; print([n for n in {others} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")
