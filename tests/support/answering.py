"""What a worker answers with, without its process and sockets: its plugins, its packet cache, its zone store.

    with Answering(folder, objects, corefile) as worker:
        worker.respond(query)

The data is what a supervisor would publish of these objects. `states` leaves zones as they are before their source has
been read, or when it has been away for too long. What would run in the background does not.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kdns import plugins
from kdns.cluster.manifests import ManifestSource
from kdns.corefile.config import Config, ServerConfig
from kdns.observe.counters import Region
from kdns.observe.logs import Log, Sink
from kdns.plugins import kubernetes
from kdns.plugins.budget import Budget
from kdns.server import sockets
from kdns.server.direct import Direct, Served
from kdns.server.packet_cache import Entry, PacketCache
from kdns.server.plan import Beside, Plan
from kdns.server.publication import Publication
from kdns.server.respond import Pending, Responder, Via
from kdns.server.worker import Worker
from kdns.wire import names
from kdns.zone import masterfile
from kdns.zone.changes import Changes
from kdns.zone.reader import Reader
from kdns.zone.store import SYNCED, Store, Transaction
from tests.support.objects import Object, write_list

CLIENT, LOCAL = ("192.0.2.7", 40000), ("192.0.2.1", 53)
Counted = dict[tuple[str, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Ground:
    """What workers share: a configuration, and the store with the data that it asks for. path: of the store. zones,
    beside: as in a Plan."""

    path: Path
    config: Config
    zones: tuple[tuple[tuple[bytes, int], ...], ...]
    beside: dict[int, Beside]
    changes: Changes

    def names(self) -> list[bytes]:
        """All names that the store has."""
        store = Store.open(self.path, self.changes, _fail)
        try:
            return store.read(
                lambda txn: sorted({name for zone in txn.zones() for name, _ in txn.below(zone, zone.origin)})
            )
        finally:
            store.close()


def publish(
    folder: Path,
    objects: Iterable[Object],
    corefile: str,
    states: Mapping[str, int] | None = None,
    data: Mapping[str, str] | None = None,
) -> Ground:
    """Publish objects as a Corefile wants them. In it `$manifests` stands for where they lie.

    states: of zones, as the store has them; SYNCED without. data: of zones that are no cluster's, see `fill`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifests = write_list(folder / "cluster.json", objects)
    config = plugins.loads(corefile.replace("$manifests", str(manifests)))
    changes = Changes.create()
    store = Store.open(folder / "state", changes, _fail)
    try:
        items = list(ManifestSource([manifests]).load().objects.values())
        zones = []
        beside = {}
        for index, block in enumerate(config.blocks):
            found: tuple[tuple[bytes, int], ...] = ()
            if kubernetes.NAME in block.plugins:
                publication = Publication(block, ["192.0.2.1"], store, Log(Sink()), lambda: None)
                publication.publisher.replace(items)
                found = publication.zones
                beside[index] = publication.beside
            zones.append(found)
        for title, text in (data or {}).items():
            store.write(fill(folder, config.blocks, title, text))
        wanted = {names.from_text(zone): state for zone, state in (states or {}).items()}

        def mark(txn: Any) -> None:
            for zone in txn.zones():
                if zone.origin in wanted:
                    txn.set_state(zone, wanted[zone.origin])

        store.write(mark)
    finally:
        store.close()
    return Ground(folder / "state", config, tuple(zones), beside, changes)


def fill(folder: Path, blocks: Sequence[ServerConfig], title: str, text: str) -> Callable[[Transaction], None]:
    """Write a zone as the first such directive would. title: directive and zone. text: a master file."""
    directive, zone = title.split()
    origin = names.from_text(zone)
    path = folder / "master"
    path.write_text(text)
    with contextlib.chdir(folder):  # reading changes it
        rows = list(masterfile.read(path, origin).rows(origin))
    block = next(block for block in blocks if directive in block.plugins)
    options = block.plugins[directive]
    sources = options.sources(block)
    of_file = [zone.rstrip(".") + "." in each.zones for each in options.files] if directive == "file" else [True]
    source = sources[of_file.index(True)]

    def action(txn: Transaction) -> None:
        zone = txn.add_zone(source.id, origin, given_serial=True)
        txn.replace(zone, rows)
        txn.set_state(zone, SYNCED)

    return action


def _fail(text: str) -> None:
    raise AssertionError(text)


class Answering(Worker):
    """A worker for one listening address. region: its counters. reported: what was reported of plugins that failed.

    without_direct: everything goes through the plugins.
    """

    def __init__(self, ground: Ground, reader: Reader, *, without_direct: bool = False, proto: str = "udp") -> None:
        """reader: of the ground's store, which can be opened once in a process."""
        servers = sockets.servers(ground.config.blocks, {})
        plan = Plan(0, ground.config.blocks, servers, ground.zones, "", "token", beside=ground.beside)
        self.region = Region.create()
        control, self._peer = socket.socketpair()
        super().__init__(plan, [control.detach(), os.dup(self.region.fd), ground.changes.fd])
        self._nowhere = os.open(os.devnull, os.O_WRONLY)
        self._sink = Sink(self._nowhere)
        self._log = Log(self._sink)
        self.reported: list[str] = []
        self.changes = self._changes
        self.reader = self._store = reader
        self._without_direct = without_direct
        chains = [self._chains(index, config) for index, config in enumerate(plan.blocks)]
        self._reached = self._reach(chains)
        self.responder: Responder = self._responder(servers[0], chains)
        self.cache = PacketCache(self._changes, self._region, Budget())
        self.via = Via(proto, socket.AF_INET, LOCAL, self.cache)
        self.direct = self.responder.direct(proto, self.via.family_label)

    def respond(
        self, data: bytes, client: tuple[str, int] = CLIENT, local: tuple[str, int] = LOCAL
    ) -> Entry | Pending | None:
        """The answer of the plugins to a message, or what says that it gets none, or has to wait for one."""
        return self.responder.respond(data, self.via, client, local)

    def give_up(self, pending: Pending) -> None:
        """Forget a query that has to wait."""
        self._waiting.queries.discard(pending)

    def counted(self) -> Counted:
        """What has been counted, but for how long it took."""
        return {
            key: cells
            for key, cells in self.region.read().items()
            if any(cells) and not key[0].endswith("duration") and key[0] != "gauge"
        }

    def _start(self, steps: Coroutine[Any, Any, None]) -> None:
        steps.close()

    def _direct(self, served: dict[bytes, Served]) -> Callable[[str, str], Direct | None]:
        return (lambda proto, family: None) if self._without_direct else super()._direct(served)

    def _failed(self, text: str) -> None:
        self.reported.append(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sink.flush()
        os.close(self._nowhere)
        self._control.close()
        self._peer.close()
        self._connections.epoll.close()
