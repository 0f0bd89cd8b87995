"""HTTP for /metrics, /health and /ready, and the self-probe of `health`.

One thread accepts for all addresses and one short-lived thread answers each connection, so that no client holds up the
supervisor's event loop. A connection has one request, 5 seconds to send it, and 5 to take the response; when there are
too many, the one that has been open longest goes, so that a probe always gets in.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import selectors
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, cast

from kdns.errors import KdnsError
from kdns.observe.counters import Histogram

if TYPE_CHECKING:
    from kdns.observe.metrics import Exposition

REQUEST_SECONDS = 5.0
"""Time to send a request, and again to take its response."""
FINISH_SECONDS = 1.0
"""Time for the client to close its side after that."""
MAX_REQUEST = 16384
"""Bytes of a request, headers included."""
MAX_CONNECTIONS = 64
"""Connections over all addresses; beyond, the oldest is closed."""
PROBE_SECONDS = 1.0
PROBE_TIMEOUT = 3.0

_BACKLOG = 128
_PAUSE = 0.05
_IP_FREEBIND = 15
_PLAIN = "text/plain; charset=utf-8"
_ALLOWED = "GET, HEAD"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a page answers: an HTTP status, headers without Content-Length, and the body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Page = Callable[[Message], Reply]
"""A page gets the request's headers. It is called in any thread, by several at once."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A page at a path of an address.

    host: address or name, "" for all addresses of both families. port: 0 for any that is free.
    directive: whose it is, for error messages.
    """

    host: str
    port: int
    path: str
    page: Page
    directive: str


def plain(status: int, text: str) -> Reply:
    """A reply of plain text."""
    return Reply(status, {"Content-Type": _PLAIN}, text.encode())


def health_page(headers: Message) -> Reply:
    """200 as long as the process can answer at all, while it shuts down too."""
    return plain(HTTPStatus.OK, "OK")


def metrics_page(make: Callable[[], Exposition]) -> Page:
    """The page that shows the metrics in the format that the request's headers ask for.

    make: is called once, by the first request.
    """
    lock = threading.Lock()
    made: list[Exposition] = []

    def page(headers: Message) -> Reply:
        with lock:
            made[:] = made or [make()]
        found, body = made[0].render(headers.get("Accept") or "", headers.get("Accept-Encoding") or "")
        return Reply(HTTPStatus.OK, found, body)

    return page


class Readiness:
    """The page /ready: whether all that must be ready is.

    A directive that was ready once is not asked again, unless they are watched `continuously` (CoreDNS's `monitor`).
    """

    def __init__(
        self,
        checks: Mapping[str, Callable[[], bool]],
        log: Callable[[str], None],
        *,
        continuously: bool = False,
        notes: Callable[[], list[str]] = list,
    ) -> None:
        """checks: by the name of the directive; called in any thread. One that raises is not ready.
        log: is told who is not ready when somebody asks, in any thread.
        notes: lines to add to "OK", such as that data is old; called in any thread."""
        self._checks = dict(checks)
        self._log = log
        self._continuously = continuously
        self._notes = notes
        self._seen: set[str] = set()
        self._stopping = False

    def stop(self) -> None:
        """From now on: shutting down."""
        self._stopping = True

    def not_ready(self) -> list[str]:
        """The names that are not ready, in order."""
        return sorted(name for name, check in self._checks.items() if not self._ready(name, check))

    def _ready(self, name: str, check: Callable[[], bool]) -> bool:
        if name in self._seen and not self._continuously:
            return True
        try:
            ready = check()
        except Exception:
            return False
        if ready:
            self._seen.add(name)
        return ready

    def __call__(self, headers: Message) -> Reply:
        if self._stopping:
            return plain(HTTPStatus.SERVICE_UNAVAILABLE, "Shutting down")
        names = self.not_ready()
        if not names:
            return plain(HTTPStatus.OK, "\n".join(["OK", *self._notes()]))
        text = ",".join(names)
        self._log(f'Plugins not ready: "{text}"')
        return plain(HTTPStatus.SERVICE_UNAVAILABLE, text)


class _TooLarge(Exception):  # noqa: N818
    """The request has more than MAX_REQUEST bytes."""


class _Incoming(io.RawIOBase):
    """A request as it comes, bounded in bytes and in time as a whole."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._until = time.monotonic() + REQUEST_SECONDS
        self._room = MAX_REQUEST

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if self._room <= 0:
            raise _TooLarge
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        count = self._connection.recv_into(buffer, min(len(buffer), self._room))
        self._room -= count
        return count


class _Handler(BaseHTTPRequestHandler):
    """One request of one connection."""

    protocol_version = "HTTP/1.1"
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = _PLAIN
    disable_nagle_algorithm = True

    def __init__(
        self, connection: socket.socket, client: object, pages: Mapping[str, Page], report: Callable[[str], None]
    ) -> None:
        self._pages = pages
        self._report = report
        super().__init__(connection, client, cast(socketserver.BaseServer, None))

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Incoming(self.connection))

    def handle(self) -> None:
        self.requestline = self.request_version = self.command = ""
        self.close_connection = True
        try:
            self.handle_one_request()
        except _TooLarge:
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def do_GET(self) -> None:
        page = self._pages.get(self.path.partition("?")[0])
        if page is None:
            self._send(plain(HTTPStatus.NOT_FOUND, "404 page not found\n"))
            return
        try:
            reply = page(self.headers)
        except Exception as error:
            self._report(f"{self.path!r} failed: {error!r}")
            reply = plain(HTTPStatus.INTERNAL_SERVER_ERROR, "500 internal error\n")
        self._send(reply)

    do_HEAD = do_GET  # noqa: N815

    def _refuse(self) -> None:
        reply = plain(HTTPStatus.METHOD_NOT_ALLOWED, "405 method not allowed\n")
        self._send(Reply(reply.status, {**reply.headers, "Allow": _ALLOWED}, reply.body))

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse  # noqa: N815

    def _send(self, reply: Reply) -> None:
        self.connection.settimeout(REQUEST_SECONDS)
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def version_string(self) -> str:
        return "kdns"

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged."""


@dataclass(slots=True)
class _Site:
    listener: socket.socket
    pages: Mapping[str, Page]


class Binding:
    """Sockets for a set of endpoints, bound but not yet served: see HttpServer.bind."""

    def __init__(self, sites: dict[tuple[str, int], _Site], new: list[socket.socket]) -> None:
        self.sites = sites
        self._new = new

    def abandon(self) -> None:
        """Close what was bound for this; what was served before is not touched."""
        for listener in self._new:
            listener.close()


class HttpServer:
    """Serves endpoints, and others after a reload. An address that stays keeps its socket."""

    def __init__(self, report: Callable[[str], None], *, anywhere: bool = False) -> None:
        """report: is told of errors in pages, in any thread. anywhere: bind to addresses that the machine does not
        have, or not yet (ip(7) IP_FREEBIND)."""
        self._report = report
        self._anywhere = anywhere
        self._sites: dict[tuple[str, int], _Site] = {}
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._ending: set[socket.socket] = set()
        self._wake, self._woken = socket.socketpair()
        self._accepting: threading.Thread | None = None
        self._closed = False

    def bind(self, endpoints: Iterable[Endpoint]) -> Binding:
        """Sockets for these endpoints, taken over from what is served now or newly bound.

        Raises KdnsError that names address and directive; then nothing has changed.
        """
        sites: dict[tuple[str, int], _Site] = {}
        new: list[socket.socket] = []
        for endpoint in endpoints:
            at = (endpoint.host, endpoint.port)
            site = sites.get(at)
            if site is None:
                served = self._sites.get(at)
                try:
                    listener = served.listener if served else _listen(endpoint, self._anywhere)
                except KdnsError:
                    Binding({}, new).abandon()
                    raise
                if served is None:
                    new.append(listener)
                site = sites[at] = _Site(listener, {})
            site.pages = {**site.pages, endpoint.path: endpoint.page}
        return Binding(sites, new)

    def serve(self, binding: Binding) -> None:
        """Serve these endpoints from now on and no others."""
        with self._lock:
            gone = [site.listener for at, site in self._sites.items() if at not in binding.sites]
            self._sites = binding.sites
            for listener in gone:
                listener.close()
        if self._accepting is None:
            self._accepting = threading.Thread(target=self._accept_all, name="http", daemon=True)
            self._accepting.start()
        else:
            self._wake.send(b"!")

    def address(self, host: str, port: int) -> tuple[str, int]:
        """Where a client on this machine reaches the endpoint's address, with the port that 0 became."""
        with self._lock:
            found = self._sites[host, port].listener.getsockname()
        any_address = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
        return any_address.get(host, found[0]), found[1]

    def close(self, timeout: float = 1.0) -> None:
        """Stop. Connections have `timeout` seconds to end, then they are cut."""
        self._closed = True
        self.serve(Binding({}, []))
        if self._accepting:
            self._accepting.join()
        end = time.monotonic() + timeout
        with self._lock:
            running = dict(self._open)
        for thread in running.values():
            thread.join(max(end - time.monotonic(), 0.0))
        for connection in running:
            _cut(connection)
        self._wake.close()
        self._woken.close()

    def _accept_all(self) -> None:
        while not self._closed:
            try:
                self._accept_some()
            except OSError:  # no descriptor for a selector: do not spin until there is one
                time.sleep(_PAUSE)

    def _accept_some(self) -> None:
        """Accept at these sites until there are others."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            with self._lock:
                sites = self._sites
                for site in sites.values():
                    selector.register(site.listener, selectors.EVENT_READ, site)
            while sites is self._sites:
                for ready, _ in selector.select():
                    self._accept(ready.data)

    def _accept(self, site: _Site | None) -> None:
        if site is None:
            self._woken.recv(16)
            return
        try:
            connection, client = site.listener.accept()
        except BlockingIOError:
            return
        except OSError:
            time.sleep(_PAUSE)  # no descriptors
            return
        if not self._make_room():
            connection.close()
            return
        thread = threading.Thread(target=self._handle, args=(connection, client, site), name="http", daemon=True)
        with self._lock:
            self._open[connection] = thread
        try:
            thread.start()
        except RuntimeError:
            self._forget(connection)

    def _make_room(self) -> bool:
        """Cut the oldest connection when there are too many. Whether there is room: those cut may take time to end."""
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                self._ending.add(oldest)
                _cut(oldest)
            return len(self._ending) < MAX_CONNECTIONS

    def _handle(self, connection: socket.socket, client: object, site: _Site) -> None:
        try:
            _Handler(connection, client, site.pages, self._report)
            _finish(connection)
        except (OSError, ValueError):
            pass
        except Exception as error:
            self._report(f"HTTP request failed: {error!r}")
        finally:
            self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.pop(connection, None)
            self._ending.discard(connection)
            connection.close()


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _finish(connection: socket.socket) -> None:
    """Let the client take the response: closing while it still sends would reset the connection under it."""
    connection.shutdown(socket.SHUT_WR)
    end = time.monotonic() + FINISH_SECONDS
    while (left := end - time.monotonic()) > 0:
        connection.settimeout(left)
        if not connection.recv(65536):
            return


def _listen(endpoint: Endpoint, anywhere: bool) -> socket.socket:
    """A listening socket. As in CoreDNS another instance may have the same address (SO_REUSEPORT)."""
    where = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    try:
        return _listen_all(endpoint.port) if not endpoint.host else _listen_at(endpoint.host, endpoint.port, anywhere)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KdnsError(f"{endpoint.directive}: cannot listen on {where}:{endpoint.port}: {reason}") from error


def _listen_all(port: int) -> socket.socket:
    try:
        return _bound(socket.AF_INET6, ("::", port), both=True)
    except OSError:
        if socket.has_dualstack_ipv6():
            raise
        return _bound(socket.AF_INET, ("", port))


def _listen_at(host: str, port: int, anywhere: bool) -> socket.socket:
    """At the first of the host's addresses, IPv4 before IPv6."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    return _bound(family, address, anywhere=anywhere)


def _bound(
    family: int,
    address: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes],
    both: bool = False,
    anywhere: bool = False,
) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        if anywhere:
            listener.setsockopt(socket.SOL_IP, _IP_FREEBIND, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


class HealthProbe:
    """Once a second a request to the own /health, timed: a server that is overloaded shows it here first."""

    def __init__(
        self,
        address: tuple[str, int],
        counter: Histogram,
        failed: Callable[[], None],
        warn: Callable[[str], None],
        *,
        seconds: float = PROBE_SECONDS,
    ) -> None:
        """address: see HttpServer.address. failed, warn: called in the probe's thread for a request that failed, and
        with what to log about one that failed or took over a second. seconds: between requests."""
        self._address = address
        self._counter = counter
        self._failed = failed
        self._warn = warn
        self._seconds = seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """End it, and wait a moment for a request under way."""
        self._stopped.set()
        self._thread.join(0.5)

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            self.probe()

    def probe(self) -> None:
        """One request, counted."""
        host, port = self._address
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/health"
        start = time.monotonic_ns()
        error = _ask(host, port)
        elapsed = time.monotonic_ns() - start
        self._counter.observe(elapsed)
        if error:
            self._failed()
            self._warn(f"Local health request to {url} failed: {error}")
        elif elapsed > 1_000_000_000:
            self._warn(f"Local health request to {url} took {elapsed / 1e9:.3f} s, more than 1 s")


def _ask(host: str, port: int) -> str:
    """What went wrong with a GET of /health, "" if nothing."""
    connection = http.client.HTTPConnection(host, port, timeout=PROBE_TIMEOUT)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
        return "" if status == HTTPStatus.OK else f"status {status}"
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
