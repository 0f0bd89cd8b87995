"""The test API server's process: commands as lines of JSON on its standard input, their results on its output.

The process ends with its standard input, so that it does not outlive the test. A command is a method of `Control`.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import os
import ssl
import sys
import time
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from tests.bench.cluster import Cluster
from tests.support import objects
from tests.support.apiserver_http import Fault, dumps
from tests.support.apiserver_serve import ApiService, bookmark_line
from tests.support.apiserver_store import BY_KIND, Entry, Object, Store, Target
from tests.support.apiserver_write import object_of

LINE = 1 << 30
"""Longest command, in bytes."""
TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"
_CHURNED_FROM = 172 << 24 | 16 << 16
_CHURNED = 1 << 20
"""New addresses of changed endpoints go through 172.16.0.0/12."""


class Control:
    """Carries out commands."""

    def __init__(self, service: ApiService) -> None:
        self._service = service
        self._ticker: asyncio.Task[None] | None = None
        self._churn: asyncio.Task[None] | None = None
        self._churned: list[tuple[float, str, str, str, str]] = []

    async def run(self, text: bytes) -> bytes:
        """One command and its result."""
        request = msgspec.json.decode(text)
        try:
            result = getattr(self, f"do_{request.pop('command')}")(**request)
            if asyncio.iscoroutine(result):
                result = await result
        except Exception as error:  # a command that fails is told so; the server goes on
            return dumps({"error": f"{type(error).__name__}: {error}"})
        return dumps({"result": result})

    # Objects

    def do_write(self, operations: list[tuple[str, Object]]) -> list[tuple[float, int]]:
        return self._service.write((operation, item) for operation, item in operations)

    def do_load(self, path: str) -> int:
        found = json.loads(Path(path).read_text())
        items = found["items"] if isinstance(found, dict) else found
        self._service.write(("apply", item) for item in items)
        gc.freeze()
        return len(items)

    def do_load_cluster(self, services: int, endpoints: int) -> int:
        cluster = Cluster(services, endpoints)
        gc.disable()
        try:
            spaces = sorted({cluster.service(number)[1] for number in range(services)})
            done = len(self._service.write(("apply", objects.namespace(name)) for name in spaces))
            done += len(self._service.write(("apply", item) for item in cluster.objects()))
            self._service.store.compact()
        finally:
            gc.enable()
        gc.freeze()
        return done

    def do_items(self, kind: str) -> list[Object]:
        snapshot = self._service.store.snapshot(BY_KIND[kind])
        return [object_of(BY_KIND[kind], snapshot.entries[key]) for key in snapshot.keys]

    def do_get(self, kind: str, namespace: str, name: str) -> Object | None:
        entry = self._service.store.get(BY_KIND[kind], Target(BY_KIND[kind], namespace, name).key)
        return None if entry is None else object_of(BY_KIND[kind], entry)

    def do_managed_fields(self, *, on: bool) -> None:
        self._service.store.managed_fields = on

    def do_install(self, kind: str) -> None:
        self._service.installed.add(BY_KIND[kind].kind)

    def do_uninstall(self, kind: str) -> None:
        self._service.installed.discard(kind)
        self._service.store.clear(BY_KIND[kind])
        for watch in list(self._service.watches):
            if watch.scope.resource.kind == kind:
                watch.finish("end")

    # History

    def do_revision(self) -> int:
        return self._service.store.revision

    def do_compact(self, revision: int | None) -> int:
        return self._service.store.compact(revision)

    def do_resend(self, revision: int) -> int:
        service = self._service
        events = (event for kind in BY_KIND.values() for event in service.store.after(kind, revision - 1))
        found = next((event for event in events if event.revision == revision), None)
        if found is None:
            raise ValueError(f"no event has revision {revision}")
        return service.resend(found)

    # Behaviour

    def do_settings(self, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self._service.settings, name, value)
        if self._ticker is not None:
            self._ticker.cancel()
        self._ticker = asyncio.get_running_loop().create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._service.settings.bookmark_seconds)
            self._service.bookmark()

    def do_bookmark(self) -> int:
        return self._service.bookmark()

    def do_tokens(self, tokens: dict[str, str]) -> None:
        self._service.tokens = tokens

    def do_forbid(self, paths: list[str]) -> None:
        self._service.forbidden = paths

    def do_certificate(self, chain: str) -> None:
        if self._service.context is None:
            raise ValueError("the server does not speak TLS")
        self._service.context.load_cert_chain(chain)

    # Faults

    def do_fault(self, **fault: Any) -> None:
        self._service.faults.append(msgspec.convert(fault, Fault))

    def do_clear_faults(self) -> None:
        self._service.faults.clear()

    def do_inject(self, path: str, data: str, split: list[int], pause: float, then: str) -> tuple[float, int]:
        found = [watch for watch in self._service.watches if path in watch.record.path]
        now = time.monotonic()
        for watch in found:
            if data:
                watch.send(base64.b64decode(data), split, pause)
            if then:
                watch.finish(then)
        return now, len(found)

    def do_inject_bookmark(self, path: str, revision: int) -> int:
        found = [watch for watch in self._service.watches if path in watch.record.path]
        for watch in found:
            watch.send(bookmark_line(watch.scope.resource, revision))
        return len(found)

    def do_break(self, then: str, *, idle: bool) -> int:
        return self._service.break_connections(then, idle=idle)

    async def do_listen(self) -> None:
        await self._service.listen()

    def do_refuse(self) -> None:
        self._service.refuse()

    def do_down(self, then: str) -> None:
        self._service.refuse()
        self._service.break_connections(then, idle=True)

    async def do_up(self, history: str) -> None:
        if history == "lost":
            self._service.store.compact()
        elif history == "empty":
            self._service.store = Store()
        elif history != "kept":
            raise ValueError(f"history is kept, lost or empty, not {history!r}")
        await self._service.listen()

    # Bookkeeping

    def do_requests(self, since: int, kind: str, path: str) -> list[dict[str, Any]]:
        found = self._service.records[since:]
        return [asdict(record) for record in found if kind in ("", record.kind) and path in record.path]

    def do_forget_requests(self) -> None:
        self._service.records.clear()

    def do_counters(self) -> dict[str, Any]:
        sent: Counter[str] = Counter()
        requests: Counter[str] = Counter()
        for record in self._service.records:
            sent[record.kind] += record.sent
            requests[record.kind] += 1
        service = self._service
        open_now = {"watches": len(service.watches), "connections": len(service.connections)}
        return {"sent": sent, "requests": requests, "accepted": service.accepted, **open_now}

    # Changes at a rate

    def do_churn(self, rate: float, duration: float, under: str, limit: int, *, trigger: bool) -> int:
        if self._churn is not None and not self._churn.done():
            raise ValueError("changes are under way")
        snapshot = self._service.store.snapshot(BY_KIND["EndpointSlice"])
        keys = [key for key in snapshot.keys if key.startswith(under)][: limit or None]
        if not keys:
            raise ValueError(f"no EndpointSlice's key begins with {under!r}")
        self._churned = []
        self._churn = asyncio.get_running_loop().create_task(self._change(keys, rate, duration, trigger=trigger))
        return len(keys)

    async def _change(self, keys: list[str], rate: float, seconds: float, *, trigger: bool) -> None:
        start = time.monotonic()
        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
            self._change_one(keys[number % len(keys)], _dotted(_CHURNED_FROM + number % _CHURNED), trigger=trigger)

    def _change_one(self, key: str, address: str, *, trigger: bool) -> None:
        resource = BY_KIND["EndpointSlice"]
        entry = self._service.store.get(resource, key)
        if entry is None:
            return
        item = _item(entry)
        endpoint = item["endpoints"][0]
        old, endpoint["addresses"] = endpoint["addresses"][0], [address]
        if trigger:
            now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            item["metadata"].setdefault("annotations", {})[TRIGGER] = now
        when, _ = self._service.send(self._service.store.write("update", item | {"kind": resource.kind}))
        owner = next((value for name, value in entry.labels.items() if name.endswith("/service-name")), "")
        self._churned.append((when, item["metadata"]["namespace"], owner, address, old))

    def do_churn_log(self, since: int) -> dict[str, Any]:
        if self._churn is not None and self._churn.done():
            self._churn.result()
        done = self._churn is None or self._churn.done()
        return {"done": done, "rows": self._churned[since:]}

    def do_stop_churn(self) -> None:
        if self._churn is not None:
            self._churn.cancel()
            self._churn = None


def _item(entry: Entry) -> Object:
    found: Object = msgspec.json.decode(entry.data)
    return found


def _dotted(address: int) -> str:
    return ".".join(str(byte) for byte in address.to_bytes(4))


def _context(options: dict[str, Any]) -> ssl.SSLContext | None:
    if not options["chain"]:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0  # every connection is a full handshake and sees a new certificate
    context.load_cert_chain(options["chain"])
    context.load_verify_locations(options["client_ca"])
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


async def _serve(options: dict[str, Any], output: int) -> None:
    service = ApiService(_context(options), options["host"], options["port"])
    control = Control(service)
    control.do_settings()
    await service.listen()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=LINE)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    _say(output, dumps({"result": None}))
    while text := await reader.readline():
        _say(output, await control.run(text))


def _say(output: int, text: bytes) -> None:
    view = memoryview(text + b"\n")
    while view:
        view = view[os.write(output, view) :]


def main() -> None:
    """Serve as the JSON in the first argument says, until standard input ends."""
    asyncio.run(_serve(json.loads(sys.argv[1]), sys.stdout.fileno()))
    os._exit(0)  # nothing to save, and connections need no farewell
