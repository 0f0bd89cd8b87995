"""The HTTP side of the supervisor: /metrics, the status page, /health and /ready as the Corefile asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from email.message import Message
from functools import partial
from typing import TYPE_CHECKING

from kdns.corefile.config import Config
from kdns.errors import KdnsError
from kdns.observe.counters import HEALTH_REQUESTS, Region
from kdns.observe.http import Endpoint, HealthProbe, HttpServer, Readiness, Reply, health_page, metrics_page
from kdns.observe.logs import Log
from kdns.plugins import health, prometheus, ready

if TYPE_CHECKING:
    from kdns.observe.metrics import Exposition

StatusReply = Callable[[tuple[str, ...], Message], Reply]
"""Answers a request for the status page: the other paths at that address, and the headers. Called in any thread."""


class Pages:
    """What is served now, and the exchange for what a new configuration asks for."""

    def __init__(
        self, exposition: Callable[[], Exposition], show: StatusReply, own: Region, log: Log, *, anywhere: bool = False
    ) -> None:
        """exposition: makes what is at /metrics, when somebody first asks for it. anywhere: serve at addresses too that
        the machine does not have yet."""
        self._server = HttpServer(lambda text: log.error(text, key="http"), anywhere=anywhere)
        self._metrics = metrics_page(exposition)
        self._show = show
        self._own = own
        self._log = log
        self._readiness: list[Readiness] = []
        self._probes: list[HealthProbe] = []
        self._more: HttpServer | None = None

    def prepare(
        self, config: Config, checks: Mapping[str, Callable[[], bool]], notes: Callable[[], list[str]]
    ) -> Callable[[], None]:
        """Bind what the configuration asks for; calling the result serves it. Raises KdnsError, then nothing changes.

        checks: whether a directive is ready, by its name. notes: lines that /ready has to say beside.
        """
        readiness: list[Readiness] = []
        endpoints: list[Endpoint] = []
        for block in config.blocks:
            for name, options in block.plugins.items():
                if name == prometheus.NAME:
                    endpoints.append(self._endpoint(name, options.address, "/metrics", self._metrics))
                elif name == health.NAME:
                    endpoints.append(self._endpoint(name, options.address, "/health", health_page))
                elif name == ready.NAME:
                    continuously = options.monitor == "continuously"
                    page = Readiness(checks, self._log.plugin("ready").info, continuously=continuously, notes=notes)
                    readiness.append(page)
                    endpoints.append(self._endpoint(name, options.address, "/ready", page))
        endpoints += self._status_pages(endpoints)
        binding = self._server.bind(endpoints)

        def serve() -> None:
            self._server.serve(binding)
            self._readiness = readiness
            self._probe(endpoints)

        return serve

    def serve_metrics(self, host: str, port: int) -> None:
        """Serve /metrics and the status page at one more address, as long as the process lives.

        An error is only logged.
        """
        more = HttpServer(lambda text: self._log.error(text, key="http"))
        try:
            endpoints = [Endpoint(host, port, "/metrics", self._metrics, "metrics")]
            more.serve(more.bind([*endpoints, *self._status_pages(endpoints)]))
        except KdnsError as error:
            self._log.error(f"{error}; DNS is served without it")
            return
        self._more = more

    def _status_pages(self, endpoints: Iterable[Endpoint]) -> list[Endpoint]:
        """The page at / wherever there is /metrics, with the way to what else is there."""
        paths: dict[tuple[str, int], list[str]] = {}
        for endpoint in endpoints:
            found = paths.setdefault((endpoint.host, endpoint.port), [])
            if endpoint.path not in found:
                found.append(endpoint.path)
        return [
            Endpoint(host, port, "/", partial(self._show, tuple(sorted(found))), prometheus.NAME)
            for (host, port), found in paths.items()
            if "/metrics" in found
        ]

    def _endpoint(self, name: str, address: object, path: str, page: object) -> Endpoint:
        return Endpoint(address.host, address.port, path, page, name)  # type: ignore[attr-defined, arg-type]

    def _probe(self, endpoints: Iterable[Endpoint]) -> None:
        """Ask each /health once a second, as CoreDNS does."""
        for probe in self._probes:
            probe.close()
        log = self._log.plugin("health")
        self._probes = [
            HealthProbe(
                self._server.address(endpoint.host, endpoint.port),
                HEALTH_REQUESTS.histogram(self._own),
                lambda: self._own.count(("count", "coredns_health_request_failures_total")),
                lambda text: log.warning(text, key="probe"),
            )
            for endpoint in endpoints
            if endpoint.path == "/health"
        ]
        for probe in self._probes:
            probe.start()

    def not_ready(self) -> None:
        """Say on /ready that the server is shutting down."""
        for page in self._readiness:
            page.stop()

    def close(self) -> None:
        """Stop serving."""
        for probe in self._probes:
            probe.close()
        self._server.close()
        if self._more is not None:
            self._more.close()
