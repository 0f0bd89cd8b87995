"""A `kubernetes` directive that follows the Kubernetes API, or `autopath` that follows the pods of a node.

One thread for each kind of object lists and watches (`kdns.cluster.watch`), and one writes: it takes whatever has come
since, for as many objects as that may be, and commits it in one transaction with the versions that were reached.
Without data that may be served, it waits until every kind has been listed, so that no half of a cluster is ever
answered from.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from kdns.cluster.connection import IN_CLUSTER, Access, Connection
from kdns.cluster.delivery import Inbox
from kdns.cluster.watch import Reflector, Resource, pods_of, resources
from kdns.errors import ApiError, ConfigError, Mistake, StoreError
from kdns.observe.counters import PROGRAMMING, REST_LIMITER, REST_REQUESTS, Region
from kdns.plugins import kubernetes
from kdns.server.publication import RETRY_SECONDS, Publication

OLD_SECONDS = 10.0
"""The API server has not been heard for so long: data may be old, and the log says so."""
IDENTITY_SECONDS = 5.0
"""Between two attempts to read a configuration that cannot be used."""
_LOOK_SECONDS = 1.0
_NOT_BY_FILES = "kubeconfig FILE or endpoint URL"
_SECOND = 1_000_000_000


def access(options: kubernetes.Options) -> Access:
    """How the API server is reached, by a directive's options."""
    cert, key, ca = options.tls or ("", "", "")
    return Access(
        endpoint=options.endpoints[0] if options.endpoints else "",
        cert=cert,
        key=key,
        ca=ca,
        kubeconfig=options.kubeconfig,
        context=options.context,
        qps=options.apiserver_qps,
        burst=options.apiserver_burst,
        max_inflight=options.apiserver_max_inflight,
    )


def watched(options: kubernetes.Options) -> tuple[Resource, ...]:
    """What has to be listed and watched for a directive."""
    if options.node:
        return (pods_of(options.node),)
    return resources(
        namespaces=options.namespaces,
        namespace_labels=str(options.namespace_labels or ""),
        labels=str(options.labels or ""),
        pods_verified=options.pods == "verified",
        endpoints=not options.noendpoints,
        multicluster=bool(options.multicluster),
    )


class RestCounters:
    """Counts requests to the API server under CoreDNS's names."""

    def __init__(self, region: Region) -> None:
        self._region = region

    def request(self, verb: str, host: str, code: str, seconds: float) -> None:
        """A request whose answer began after this time. code: its status, or "<error>"."""
        REST_REQUESTS.histogram(self._region, verb, host).observe(int(seconds * _SECOND))
        name = "coredns_kubernetes_rest_client_requests_total"
        self._region.count(("count", name, "code", code, "method", verb, "host", host))

    def throttled(self, verb: str, host: str, seconds: float) -> None:
        """A request that waited so long for the rate limit."""
        REST_LIMITER.histogram(self._region, verb, host).observe(int(seconds * _SECOND))


class ClusterFeed:
    """One directive's API server, followed.

    publication: where to. was_current: this process has had all that the API server has; `snapshot_max_age` does not
    count for what it keeps of that.
    """

    problems = 0
    of_cluster: Literal[True] = True
    read_first = False
    may_lack = False

    def __init__(
        self,
        publication: Publication,
        own: Region,
        *,
        first: bool,
        was_current: bool = False,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """own: counters of this process. first: nothing has been answered yet from this source by this process.

        Raises ConfigError if there is no telling where the API server is.
        """
        self.publication = publication
        self._own = own
        self._options = publication.options
        self._check(environ)
        self._resources = watched(self._options)
        self._scopes = {resource.kind: resource.scope for resource in self._resources}
        self._reflectors: list[Reflector] = []
        self._missing = set(self._scopes)  # kinds of which the store may lack something
        self._unread = set(self._scopes)  # kinds that this process has not listed
        self._replacing = False  # what the store has is of another cluster
        self._versions: dict[str, str] | None = None
        self.was_current = was_current
        self._told_current = False  # the store knows that its data is current
        self._inbox = Inbox()
        self._stopping = threading.Event()
        self._connection: Connection | None = None
        self._running: asyncio.Future[None] | None = None
        self._synced = asyncio.Event()
        if first:
            try:
                self._begin(strict=True)
                publication.refuse_old()
            except StoreError as error:
                publication.tell_refused(error)

    @property
    def startup_timeout(self) -> float:
        """Seconds for which a start waits for the first complete data; 0 if there are some from before."""
        return 0.0 if self.publication.synced else self._options.startup_timeout

    async def loaded(self) -> None:
        """Wait until the data is complete for the first time. It is followed by somebody."""
        await self._synced.wait()

    def _check(self, environ: Mapping[str, str]) -> None:
        options = self._options
        if not (options.kubeconfig or options.endpoints or all(map(environ.get, IN_CLUSTER))):
            token = self.publication.block.keys[0].token
            directive = self.publication.directive
            message = f"{directive}: this is no pod of a cluster: {' and '.join(IN_CLUSTER)} are not set"
            ways = "kubeconfig FILE, endpoint URL or manifests PATH..." if options.zones else _NOT_BY_FILES
            accepted = f"{ways} in the directive"
            raise ConfigError([Mistake(token.file, token.line, message, accepted)])
        if len(options.endpoints) > 1:
            self.publication.log.warning(f"of several endpoints only the first is used: {options.endpoints[0]}")

    def _begin(self, *, strict: bool) -> None:
        publisher = self.publication.publisher
        self._versions = publisher.begin(self._scopes, strict=strict)
        self._missing = set(self._scopes) - set(self._versions)
        self.publication.synced = publisher.synced

    # State

    def age(self) -> float | None:
        """Seconds since the data were known to be current; None if there are none."""
        behind = [reflector.behind() for reflector in self._reflectors]
        known = [seconds for seconds in behind if seconds is not None]
        if not behind or len(known) < len(behind) or self._missing:
            return self.publication.publisher.age()
        return max(known)

    def _current(self) -> bool:
        return not self._missing and self._live()

    def _live(self) -> bool:
        return bool(self._reflectors) and all(reflector.behind() == 0.0 for reflector in self._reflectors)

    # From the event loop

    async def load(self) -> None:
        """Start to follow, and wait until everything has been read once. Raises what ends it before.

        Does nothing for a source without zones: nobody is answered from it.
        """
        if not self.publication.zones:
            return
        running = self._start()
        synced = asyncio.ensure_future(self.loaded())
        try:
            await asyncio.wait((synced, running), return_when=asyncio.FIRST_COMPLETED)
        finally:
            synced.cancel()
        if running.done():
            running.result()

    async def follow(self) -> None:
        """Follow for ever."""
        running = self._start()
        tasks = [
            asyncio.create_task(self.publication.expire(lambda: self.was_current)),
            asyncio.create_task(self.publication.stay_current(self._current)),
            asyncio.create_task(self._tell_age()),
        ]
        try:
            await asyncio.shield(running)
        finally:
            for task in tasks:
                task.cancel()
            await self.stop()

    async def stop(self) -> None:
        """End the threads. What they have not written by now comes again after the next start."""
        self._stopping.set()
        self._inbox.close()
        if self._connection is not None:
            self._connection.close()
        for reflector in self._reflectors:
            reflector.stop()
        running, self._running = self._running, None
        if running is not None:
            await asyncio.wait((running,))

    def _start(self) -> asyncio.Future[None]:
        if self._running is None:
            self._stopping = threading.Event()
            self._inbox = Inbox()
            loop = asyncio.get_running_loop()
            own = ThreadPoolExecutor(1, "kubernetes")  # the loop's own threads are few, and this one stays
            self._running = loop.run_in_executor(own, self._run, loop)
            own.shutdown(wait=False)
        return self._running

    async def _tell_age(self) -> None:
        """Say in the log when the data begin to be old, and when they are no longer."""
        log, old = self.publication.log, 0.0
        if self.publication.synced and not self.was_current and (age := self.publication.publisher.age()) is not None:
            log.info(f"{self.publication.title}: data of {age:.0f} s ago is served until the API server is heard")
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            age = self.age()
            if age is None:
                continue
            if age > OLD_SECONDS and not old:
                text = f"the API server was last heard {age:.0f} s ago; answers stay as they were then"
                log.warning(f"{self.publication.title}: {text}")
            elif age == 0.0 and old:
                log.info(f"{self.publication.title}: the API server is heard again, after {old:.0f} s")
            old = age if age > OLD_SECONDS else 0.0

    # In the writing thread

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._versions is None:
            self._begin(strict=False)
        connection = self._connection = Connection(access(self._options), RestCounters(self._own))
        try:
            if not self._identify(connection):
                return
            versions = self._versions or {}
            if self.publication.publisher.expired:  # all of it is read anew: how old it is cannot be told otherwise
                versions, self._missing = {}, set(self._scopes)
            self._reflectors = [self._reflector(each, connection, versions.get(each.kind)) for each in self._resources]
            for reflector in self._reflectors:
                reflector.start()
            while not self._stopping.is_set() and not connection.moved:
                self._step(loop)
        finally:
            connection.close()
            for reflector in self._reflectors:
                reflector.stop()
            for reflector in self._reflectors:
                reflector.join(5.0)
            self._versions = None  # those in the store are newer

    def _identify(self, connection: Connection) -> bool:
        """Forget versions of another cluster. False if it was stopped meanwhile."""
        title, unusable = self.publication.title, False
        while not self._stopping.is_set():
            try:
                identity = connection.identity()
                if self.publication.publisher.identify(identity):
                    self._versions = {}
                    self._missing = set(self._scopes)
                    self._replacing = True
                if unusable:
                    self.publication.log.info(f"{title}: the API server's configuration can be used now")
                return True
            except (ApiError, StoreError) as error:
                if self._stopping.is_set():
                    break
                unusable = True
                self.publication.log.error(f"{title}: {error}", key=f"{title} configuration")
                self._count("", error.reason if isinstance(error, ApiError) else "configuration")
                self._stopping.wait(IDENTITY_SECONDS)
        return False

    def _reflector(self, resource: Resource, connection: Connection, version: str | None) -> Reflector:
        return Reflector(
            resource,
            connection,
            self._inbox,
            version,
            self._report,
            listed=self._listed,
            recovered=self._recovered,
        )

    def _step(self, loop: asyncio.AbstractEventLoop) -> None:
        """Write what has come, if anything has.

        What has nothing yet, or that of another cluster, waits for all kinds. With data from before that is not
        complete for the options of now, what comes is written as it comes: nothing is denied until all is there.
        """
        publication = self.publication
        publication.synced = publication.publisher.synced  # it may have expired
        nothing_yet = not publication.synced and self._missing == set(self._scopes)
        wanted = frozenset(self._missing if self._replacing or nothing_yet else ())
        found = self._inbox.take(wanted, _LOOK_SECONDS)
        listed = {delivery.kind for delivery in found if delivery.complete}
        missing, unread = self._missing - listed, self._unread - listed
        current = not missing and self._live()
        renewed = current or not (missing or unread)
        complete = renewed or (publication.synced and not missing)
        self.was_current |= renewed
        self._told_current &= current
        news = (complete and not publication.synced) or (current and not self._told_current)
        if found or news:
            try:
                outcome = publication.publisher.deliver(found, complete=complete, current=current)
            except StoreError as error:
                publication.tell_refused(error)
                self._inbox.put_back(found)
                self._stopping.wait(RETRY_SECONDS)
                return
            self._missing, self._unread = missing, unread
            self._told_current = current
            publication.tell(outcome)
            self._observe(outcome.programmed)
            self._replacing &= bool(missing)
            if complete:
                publication.synced = True
            if listed and self._options.node:
                self._doubt_node()
        if publication.synced and not self._synced.is_set():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._synced.set)

    def _doubt_node(self) -> None:
        """Say that there are no pods: a name that no node has is no error to the API server."""
        if not self.publication.counts().get("Pod"):
            title, node = self.publication.title, self._options.node
            self.publication.log.warning(f"{title}: no pod runs on a node {node}; is that its name?", key=title)

    def _observe(self, programmed: list[tuple[str, float]]) -> None:
        now = time.time()
        for kind, since in programmed:
            PROGRAMMING.histogram(self._own, kind).observe(max(0, int((now - since) * _SECOND)))

    # In the threads of the reflectors

    def _report(self, kind: str, reason: str, text: str) -> None:
        self._count(kind, reason)
        title = self.publication.title
        self.publication.log.warning(f"{title}: {kind}: {text}", key=f"{title} {kind} {reason}")

    def _listed(self, kind: str, how: str) -> None:
        self._own.count(("count", "kdns_kubernetes_lists_total", "kind", kind, "how", how))

    def _recovered(self, kind: str, seconds: float) -> None:
        title = self.publication.title
        self.publication.log.info(f"{title}: {kind}: followed again, after {seconds:.1f} s", key=f"{title} {kind}")

    def _count(self, kind: str, reason: str) -> None:
        self._own.count(("count", "kdns_kubernetes_watch_errors_total", "kind", kind, "reason", reason))
