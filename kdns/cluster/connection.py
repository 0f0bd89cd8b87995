"""The way to a Kubernetes API server: configuration, authentication, requests, and answers as bytes.

In a pod the service account tells the server and the credentials (Kubernetes: Accessing the Kubernetes API from a Pod).
A kubeconfig is read by the `kubernetes` package (Organizing Cluster Access Using kubeconfig Files; Authenticating,
client-go credential plugins), which takes 18 MB and is loaded for nothing else. urllib3 has the connections. What can
block in there without an end of ours (a plugin, the resolver, a handshake) runs in a thread of its own, so that whoever
asked can leave when the connection is closed.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import http.client
import ipaddress
import logging
import os
import re
import shutil
import socket
import ssl
import tempfile
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from kdns import __version__
from kdns.errors import ApiError

if TYPE_CHECKING:
    import urllib3

_T = TypeVar("_T")

QPS, BURST = 5.0, 10
"""Requests a second, and how many may come at once, unless Access says otherwise: as client-go (rest.Config)."""

IN_CLUSTER = ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")
"""Environment variables of every pod: where its cluster's API server is."""

_SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_VERB = "GET"
_NO_ANSWER = "<error>"
_POOL = 10
"""Idle connections that are kept."""
_PIECE = 1 << 16
"""Bytes that one read of a body asks for: a chunk that is not larger comes whole."""
_KEEPALIVE = (30, 15, 9)
"""Seconds without a packet until the other side is probed, seconds between probes, and how many (as client-go)."""
_TOKEN_SECONDS = 60.0
"""After which a service account's token is read again."""
_LONGEST = 500
"""Characters of another program's words in a message."""
_loading = threading.Lock()
"""Held while a kubeconfig is read: the package's threads share temporary files that one of them has yet to write."""
_LOADING_SECONDS = 1.0
"""A reader waits so long for others, of which one may have a plugin that hangs."""
_FOLDER = "kdns-inline-"
"""How the name of a folder begins that has what a kubeconfig has inline."""
_importing = threading.Lock()
"""Held while the package is imported: its parts import each other, so that two threads may wait for one another."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach an API server: a kubeconfig, else an endpoint, else the cluster that this process runs in.

    endpoint: URL. cert, key, ca: files (PEM) for an https endpoint; without ca, the system's authorities count.
    kubeconfig: file; context: "" for its current one. qps: requests a second, 0 for QPS. burst: requests at once, 0 for
    BURST. max_inflight: requests that may wait for the headers of their answers, 0 for any number. token_file, ca_file:
    the service account's, where there is neither kubeconfig nor endpoint.
    """

    endpoint: str = ""
    cert: str = ""
    key: str = ""
    ca: str = ""
    kubeconfig: str = ""
    context: str = ""
    qps: float = 0.0
    burst: int = 0
    max_inflight: int = 0
    token_file: str = f"{_SERVICE_ACCOUNT}/token"
    ca_file: str = f"{_SERVICE_ACCOUNT}/ca.crt"


class Observer(Protocol):
    """Who is told of requests, from the thread that makes them. host: `name:port` as in the server's URL."""

    def request(self, verb: str, host: str, code: str, seconds: float) -> None:
        """A request has its answer's headers after `seconds`; code: the status, or "<error>" for no answer."""

    def throttled(self, verb: str, host: str, seconds: float) -> None:
        """A request has waited for the rate limit, be it for 0 seconds."""


class Answer:
    """An answer whose headers have come. One thread reads; any may close.

    status: of HTTP. retry_after: seconds that the server asks to wait, None if it does not.
    """

    def __init__(
        self, response: urllib3.BaseHTTPResponse, host: str, path: str, ended: Callable[[Answer], object]
    ) -> None:
        self.status = response.status
        self.retry_after = _seconds(response.headers.get("Retry-After"), time.time())
        self._response = response
        self._what = f"{host}: the answer to {_VERB} {path}"
        self._host = host
        self._ended = ended
        self._lock = threading.Lock()
        self._reading = False
        self._closed = False
        # Of urllib3's ways this has each chunk at once and for the least CPU; read1 is for bodies that have no chunks.
        self._pieces = response.read_chunked(_PIECE) if response.chunked else iter(lambda: response.read1(_PIECE), b"")

    def read(self, limit: int) -> bytes:
        """The whole body. Raises ApiError as `stream` does, and "too_large" for more than `limit` bytes."""
        pieces, size = [], 0
        for piece in self.stream():
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                self.close()
                raise ApiError(f"{self._what} is larger than {limit} bytes", "too_large")
        return b"".join(pieces)

    def stream(self) -> Iterator[bytes]:
        """The body as it comes, never b"".

        Raises ApiError: "connection" if the body ends before it is complete, "silent" if nothing came for as long as
        `get` allowed, "tls", and "closed" after `close`.
        """
        while piece := self._next():
            yield piece

    def close(self) -> None:
        """Let go of the connection. A read that waits in another thread ends now."""
        with self._lock:
            self._closed = True
            if self._reading:
                # A socket that another thread waits on must not be closed; that thread does it when it wakes.
                with contextlib.suppress(OSError, RuntimeError, ValueError):
                    self._response.shutdown()
                return
        self._end()

    def _next(self) -> bytes:
        with self._lock:
            if self._closed:
                raise _closed(self._host)
            self._reading = True
        piece, failure = b"", None
        try:
            piece = next(self._pieces, b"")
        except Exception as error:
            failure = error
        with self._lock:
            self._reading = False
            closed, self._closed = self._closed, self._closed or failure is not None
        if closed or failure or not piece:
            self._end()
        if closed:  # what was read with it, of TLS, may be bytes that were not decrypted
            raise _closed(self._host) from failure
        if failure:
            self._fail(failure)
        return piece

    def _end(self) -> None:
        self._response.close()
        self._ended(self)

    def _fail(self, error: Exception) -> NoReturn:
        import urllib3

        if isinstance(error, urllib3.exceptions.ReadTimeoutError):
            raise ApiError(
                f"{self._what} has stopped: nothing more came, and the connection is open", "silent"
            ) from error
        if isinstance(error, urllib3.exceptions.SSLError):
            raise ApiError(f"{self._what} broke off: TLS: {_words(_last(error))}", "tls") from error
        if isinstance(error, (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)):
            raise ApiError(
                f"{self._what} ended before it was complete: {_words(_last(error))}", "connection"
            ) from error
        raise error


class Connection:
    """An API server, for any number of threads.

    Configuration and credentials are read when they are needed first, and again after `renew`. Files of certificates
    are read again for each new TCP connection, a service account's token once a minute; a plugin runs again when its
    token is about to expire. A plugin that hangs cannot be ended: it outlives this, and kdns. Certificates and keys
    that a kubeconfig has inline, or that a plugin gives, are files in the system's folder for temporary ones for as
    long as they are in use.

    moved: what was read after `renew` is not of the `identity` that was read first. It may be another cluster, to which
    no version of the first one's objects means anything: from then on this asks nothing more.
    """

    def __init__(
        self, access: Access, observer: Observer, *, connect_seconds: float = 5.0, login_seconds: float = 30.0
    ) -> None:
        """connect_seconds: for one address. login_seconds: for reading the configuration, its plugin included."""
        self._access = access
        self._observer = observer
        self._connect_seconds = connect_seconds
        self._login_seconds = login_seconds
        self._changed = threading.Condition()
        self._bucket = _Bucket(access.qps or QPS, access.burst or BURST, time.monotonic())
        self._inflight = 0
        self._answers: set[Answer] = set()
        self._session: _Session | None = None
        self._users = Counter[_Session]()
        self._identity = ""
        self.moved = False
        self._renewals = 0
        self._login: _Task[tuple[_Session, dict[str, str]]] | None = None
        self._closed = False

    def identity(self) -> str:
        """Text that tells this cluster from another: it depends on the server's URL and its authorities only.

        Raises ApiError as `get` does.
        """
        return self._authenticated()[0].identity

    def get(self, path: str, query: Mapping[str, str], *, silence: float) -> Answer:
        """Ask for a path, and wait for the headers of the answer; its status may be any.

        Waits before that for the rate limit, and for `max_inflight`. silence: seconds without a byte after which this,
        or reading the answer, fails. Raises ApiError: "configuration", also once it has `moved`; "connection", "tls",
        "silent", "closed".
        """
        session, headers = self._authenticated()
        with self._using(session):
            self._throttle(session.host)
            return self._ask(session, headers, path, query, silence)

    def renew(self) -> None:
        """Forget configuration and credentials: the next `get` reads files and runs plugins again."""
        with self._changed:
            session, self._session = self._session, None
            self._renewals += 1
        if session is not None:
            self._retire(session)

    def close(self) -> None:
        """End every `get`, and every read of an answer, with ApiError "closed"; for good."""
        with self._changed:
            self._closed = True
            answers = tuple(self._answers)
            self._changed.notify_all()
        for answer in answers:
            answer.close()
        self.renew()

    @contextlib.contextmanager
    def _using(self, session: _Session) -> Iterator[None]:
        """Keep a session as it is, though another may take its place meanwhile."""
        with self._changed:
            self._users[session] += 1
        try:
            yield
        finally:
            with self._changed:
                self._users[session] -= 1
            self._retire(session)

    def _retire(self, session: _Session) -> None:
        """Close a session unless it is the one to use, or still in use."""
        with self._changed:
            if session is self._session or self._users[session]:
                return
            del self._users[session]
        session.close()

    def _ask(
        self, session: _Session, headers: dict[str, str], path: str, query: Mapping[str, str], silence: float
    ) -> Answer:
        self._enter()
        code, start = _NO_ANSWER, time.monotonic()
        try:
            answer = self._exchange(session, headers, path, query, silence)
            code = str(answer.status)
            return answer
        finally:
            self._leave()
            self._observer.request(_VERB, session.host, code, time.monotonic() - start)

    def _check(self) -> None:
        """Raises ApiError if nothing may be asked any more."""
        if self._closed:
            raise _closed(_title(self._access))
        if self.moved:
            raise ApiError(
                f"{_title(self._access)}: the configuration leads to another API server, or one with another"
                " authority, than before",
                "configuration",
            )

    def _authenticated(self) -> tuple[_Session, dict[str, str]]:
        """The server, and headers that say who we are. However many ask, one thread finds out."""
        with self._changed:
            self._check()
            if self._login is None or self._login.done:
                self._login = self._start(self._authenticate)
            login = self._login
        try:
            return self._result(login, self._login_seconds)
        except TimeoutError:
            raise ApiError(
                f"{_title(self._access)}: its exec plugin, or reading its files, has not ended after"
                f" {self._login_seconds:g} s; accepted: a plugin that prints an ExecCredential within that time",
                "configuration",
            ) from None

    def _authenticate(self) -> tuple[_Session, dict[str, str]]:
        with self._changed:
            session, renewals = self._session, self._renewals
        if session is None:
            session = _load(self._access)
            try:
                self._accept(session, renewals)
            except ApiError:
                session.close()
                raise
        try:
            return session, session.credentials()
        except ApiError:
            self.renew()  # the next `get` reads what may have been repaired by then
            raise

    def _accept(self, session: _Session, renewals: int) -> None:
        """Use a session, which was loaded after so many renewals, from now on. Raises ApiError if it must not be."""
        with self._changed:
            self._identity = self._identity or session.identity
            if session.identity != self._identity:
                self.moved = True
            self._check()
            if renewals == self._renewals:
                self._session = session

    def _throttle(self, host: str) -> None:
        start = time.monotonic()
        with self._changed:
            self._check()
            self._changed.wait_for(lambda: self._closed or self.moved, self._bucket.reserve(start))
            self._check()
        self._observer.throttled(_VERB, host, time.monotonic() - start)

    def _enter(self) -> None:
        limit = self._access.max_inflight
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self.moved or not limit or self._inflight < limit)
            self._check()
            self._inflight += 1

    def _leave(self) -> None:
        with self._changed:
            self._inflight -= 1
            self._changed.notify_all()

    def _exchange(
        self, session: _Session, headers: dict[str, str], path: str, query: Mapping[str, str], silence: float
    ) -> Answer:
        def send() -> urllib3.BaseHTTPResponse:
            return session.send(path, query, headers, self._connect_seconds, silence)

        task = self._start(send, lambda response: response.close())
        try:
            response = self._result(task, self._connect_seconds + silence)
        except TimeoutError:
            raise session.silent(self._connect_seconds + silence) from None
        answer = Answer(response, session.host, path, self._forget)
        with self._changed:
            self._answers.add(answer)
            closed = self._closed
        if closed:
            answer.close()
            raise _closed(session.host)
        return answer

    def _forget(self, answer: Answer) -> None:
        with self._changed:
            self._answers.discard(answer)

    def _start(self, work: Callable[[], _T], discard: Callable[[_T], object] | None = None) -> _Task[_T]:
        """Work in a thread of its own. discard: what to do with a result that nobody waits for any more."""
        task = _Task[_T]()

        def run() -> None:
            result, error = None, None
            try:
                result = work()
            except Exception as caught:
                error = caught
            with self._changed:
                task.result, task.error, task.done = result, error, True
                self._changed.notify_all()
                unwanted = task.abandoned
            if unwanted and discard is not None and result is not None:
                discard(result)

        threading.Thread(target=run, name="kubernetes", daemon=True).start()
        return task

    def _result(self, task: _Task[_T], seconds: float) -> _T:
        """What a task makes. Raises what it raises, TimeoutError, and ApiError when the connection is closed."""
        with self._changed:
            self._changed.wait_for(lambda: task.done or self._closed, seconds)
            if not task.done:
                task.abandoned = True
                self._check()
                raise TimeoutError
        if task.error is not None:
            raise task.error
        assert task.result is not None
        return task.result


class _Task(Generic[_T]):
    """Work that a thread does, and somebody waits for."""

    __slots__ = ("abandoned", "done", "error", "result")

    def __init__(self) -> None:
        self.result: _T | None = None
        self.error: Exception | None = None
        self.done = False
        self.abandoned = False


class _Bucket:
    """A token bucket: `rate` a second, and `size` at once."""

    __slots__ = ("_rate", "_size", "_then", "_tokens")

    def __init__(self, rate: float, size: int, now: float) -> None:
        self._rate, self._size, self._tokens, self._then = rate, size, float(size), now

    def reserve(self, now: float) -> float:
        """Take a token; seconds until there is one. now: seconds of a clock that only rises."""
        self._tokens = min(self._size, self._tokens + (now - self._then) * self._rate) - 1
        self._then = now
        return max(0.0, -self._tokens / self._rate)


class _Folder:
    """A folder that nobody else may read. It goes with `remove`, with whoever holds this, and with the process."""

    def __init__(self) -> None:
        """Raises OSError."""
        self.path = Path(tempfile.mkdtemp(prefix=_FOLDER))
        self.remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def take(self, configuration: Any) -> None:
        """Give the files that the package has written for a configuration other names in here. Raises OSError.

        It would hand them to the next reader of a kubeconfig with the same content too, for as long as they are there.
        Where there are none, the folder goes.
        """
        options = {name: getattr(configuration, name) for name in ("ssl_ca_cert", "cert_file", "key_file")}
        written = {path for path in options.values() if path and self._is_ours(Path(path))}
        names = {path: str(self.path / f"{number}.pem") for number, path in enumerate(written)}
        for path, name in names.items():
            shutil.copy(path, name)
            if Path(path).parent == self.path:  # else another thread's, which is about to do this
                Path(path).unlink()
        for option, path in options.items():
            setattr(configuration, option, names.get(path, path))
        if not names:
            self.remove()

    def _is_ours(self, path: Path) -> bool:
        return path.parent.parent == self.path.parent and path.parent.name.startswith(_FOLDER)


@dataclass(frozen=True, slots=True)
class _Target:
    """A server, as a configuration tells of it.

    url: without a slash at its end. authority: file with the certificate authorities, "" for the system's. cert, key:
    files, "" for none. verified: its certificate has to be one that it should have. name: what its certificate is for,
    "" for the host of the URL. proxy: URL, "" for none; direct: hosts, domains and networks that are asked without it,
    with commas between. authorization: the value of that header, None for none; may read a file or run a plugin.
    """

    url: str
    authority: str = ""
    cert: str = ""
    key: str = ""
    verified: bool = True
    name: str = ""
    proxy: str = ""
    direct: str = ""
    authorization: Callable[[], str | None] = lambda: None

    def pool(self) -> urllib3.PoolManager:
        """Connections to it. Raises whatever a URL of a proxy leads to that is none."""
        import urllib3

        idle, between, probes = _KEEPALIVE
        options: dict[str, Any] = {
            "cert_reqs": ssl.CERT_REQUIRED if self.verified else ssl.CERT_NONE,
            "ca_certs": self.authority or None,
            "cert_file": self.cert or None,
            "key_file": self.key or None,
            "retries": False,
            "maxsize": _POOL,
            "socket_options": [
                *urllib3.connection.HTTPConnection.default_socket_options,
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
                (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle),
                (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, between),
                (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes),
            ],
        }
        if self.name:
            options["server_hostname"] = self.name
        if not self.proxy or _is_direct(self.url, self.direct):
            return urllib3.PoolManager(**options)
        if self.proxy.startswith("socks"):
            from urllib3.contrib.socks import SOCKSProxyManager

            return SOCKSProxyManager(self.proxy, **options)
        return urllib3.ProxyManager(self.proxy, **options)


class _TokenFile:
    """The header of a service account: its token, read again when it was read a minute ago."""

    def __init__(self, path: str) -> None:
        """Raises OSError, and ApiError for an empty file."""
        self._path = path
        self._read()

    def _read(self) -> None:
        token = Path(self._path).read_text()
        if not token.strip():
            raise _unusable(f"token of the service account {self._path}: it is empty", "a token")
        self._header = f"Bearer {token}"
        self._due = time.monotonic() + _TOKEN_SECONDS

    def __call__(self) -> str:
        if time.monotonic() >= self._due:
            self._read()
        return self._header


@dataclass(frozen=True, slots=True, eq=False)
class _Session:
    """What one reading of the configuration gave.

    host: `name:port` of the server's URL. folder: files that are of this session only, None for none.
    """

    target: _Target
    pool: urllib3.PoolManager
    title: str
    host: str
    identity: str
    folder: _Folder | None

    def close(self) -> None:
        """Let go of idle connections and of files."""
        self.pool.clear()
        if self.folder is not None:
            self.folder.remove()

    def credentials(self) -> dict[str, str]:
        """Headers that authenticate. Reads a token file again, or runs a plugin, when that is due.

        Raises ApiError "configuration".
        """
        try:
            with _logged():  # a plugin that fails now leaves the old token, which may still do
                value = self.target.authorization()
        except ApiError:
            raise
        except Exception as error:
            raise _unusable(f"{self.title}: {_words(error)}", "credentials that can be read") from error
        if not value:
            return {}
        value = _trimmed(value)
        if not (value.isascii() and value.isprintable()):
            raise _unusable(
                f"{self.title}: its credentials have characters that no header can have", "a token of one line"
            )
        return {"Authorization": value}

    def send(
        self, path: str, query: Mapping[str, str], headers: dict[str, str], connect: float, silence: float
    ) -> urllib3.BaseHTTPResponse:
        """A response whose headers have come. connect, silence: seconds. Raises ApiError."""
        import urllib3

        start = time.monotonic()
        asked = f"?{urlencode(query, quote_via=quote)}" if query else ""
        own = {"Accept": "application/json", "User-Agent": f"kdns/{__version__}"}
        timeout = urllib3.Timeout(connect=connect, read=silence)
        try:
            return self.pool.request(
                _VERB, f"{self.target.url}{path}{asked}", headers=headers | own, timeout=timeout, preload_content=False
            )
        except urllib3.exceptions.ReadTimeoutError as error:
            waited = time.monotonic() - start
            if waited < silence:  # the handshake, for which there is as much time as for connecting
                raise ApiError(f"{self.host}: no TLS handshake within {connect:g} s", "connection") from error
            raise self.silent(waited) from error
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            raise self._failure(error, connect) from error

    def silent(self, seconds: float) -> ApiError:
        """No answer came within that time."""
        return ApiError(f"{self.host}: no answer within {seconds:.3g} s", "silent")

    def _failure(self, error: Exception, connect: float) -> ApiError:
        import urllib3

        causes = tuple(_causes(error))
        for cause in causes:
            if isinstance(cause, urllib3.exceptions.ProxyError):
                proxy = urlsplit(self.target.proxy)
                return ApiError(f"{self.host}: proxy {_netloc(proxy.netloc)}: {_words(causes[-1])}", "connection")
            if isinstance(cause, urllib3.exceptions.NewConnectionError):
                break  # one of ConnectTimeoutError too, whatever the cause
            if isinstance(cause, urllib3.exceptions.ConnectTimeoutError):
                return ApiError(f"{self.host}: no connection within {connect:g} s", "connection")
            if isinstance(cause, ssl.SSLError):
                return self._tls(cause)
            if isinstance(cause, (FileNotFoundError, PermissionError)):
                return ApiError(
                    f"{self.title}: a file of its certificates is gone or cannot be read ({_words(cause)})",
                    "configuration",
                )
        return ApiError(f"{self.host}: {_words(causes[-1])}", "connection")

    def _tls(self, error: ssl.SSLError) -> ApiError:
        if not isinstance(error, ssl.SSLCertVerificationError):
            return ApiError(
                f"{self.host}: TLS: {_words(error)}; check that the server speaks TLS and accepts our certificate",
                "tls",
            )
        target = self.target
        name = target.name or urlsplit(target.url).hostname
        signer = f"an authority of {target.authority}" if target.authority else "an authority that this system trusts"
        return ApiError(
            f"{self.host}: TLS: {error.verify_message}; check that the server's certificate is for {name}, is valid"
            f" now, and is signed by {signer}",
            "tls",
        )


def _load(access: Access) -> _Session:
    """Read the configuration. Raises ApiError "configuration"."""
    folder = None
    if access.kubeconfig:
        with contextlib.suppress(OSError):  # nothing can be written, which not every kubeconfig needs
            folder = _Folder()
    try:
        return _session(access, folder)
    except Exception as error:  # the package raises whatever a mistake in a kubeconfig leads to
        if folder is not None:
            folder.remove()
        if isinstance(error, ApiError):
            raise
        raise _unusable(f"{_title(access)}: {_words(error)}", "a configuration that kubectl accepts") from error


def _session(access: Access, folder: _Folder | None) -> _Session:
    with _importing:
        import urllib3

    title = _title(access)
    if access.kubeconfig:
        target = _from_kubeconfig(access, folder)
    elif access.endpoint:
        target = _with_proxy(_Target(access.endpoint.rstrip("/"), access.ca, access.cert, access.key))
    else:
        target = _with_proxy(_from_cluster(access))
    url = urlsplit(target.url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise _unusable(f"{title}: the server's URL is {target.url!r}", "a URL such as https://10.0.0.1:6443")
    if url.scheme == "https":
        _check_certificates(target, title)
        if not target.verified:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    authority = Path(target.authority).read_bytes() if url.scheme == "https" and target.authority else b""
    digest = hashlib.sha256(target.url.encode() + b"\0" + authority)
    return _Session(target, target.pool(), title, _netloc(url.netloc), digest.hexdigest(), folder)


def _with_proxy(target: _Target) -> _Target:
    """The same, reached as HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY of the environment say."""
    from urllib.request import getproxies_environment

    proxies = getproxies_environment()
    proxy = proxies.get(urlsplit(target.url).scheme) or proxies.get("all", "")
    return replace(target, proxy=proxy, direct=proxies.get("no", ""))


def _is_direct(url: str, rules: str) -> bool:
    """Whether one of the rules is for the host of a URL: itself, a domain that it is in, its network, or "*"."""
    parts = urlsplit(url.lower())
    host = parts.hostname or ""
    for rule in filter(None, map(str.strip, rules.lower().split(","))):
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(host) in ipaddress.ip_network(rule, strict=False):
                return True
        name = rule.lstrip(".")
        if rule == "*" or any(text == name or text.endswith(f".{name}") for text in (host, parts.netloc)):
            return True
    return False


def _from_kubeconfig(access: Access, folder: _Folder | None) -> _Target:
    with _importing:
        from kubernetes.client import Configuration
        from kubernetes.config import ConfigException, load_kube_config

    configuration = Configuration()
    _check_file(access.kubeconfig, "kubeconfig")
    alone = _loading.acquire(timeout=_LOADING_SECONDS)
    try:
        with _logged() as said:
            load_kube_config(
                config_file=access.kubeconfig,
                context=access.context or None,
                client_configuration=configuration,
                persist_config=False,
                temp_file_path=folder and str(folder.path),
            )
        if folder is not None:
            folder.take(configuration)
    except ConfigException as error:
        known = ", ".join(_contexts(access.kubeconfig)) or "none"
        raise _unusable(
            f"{_title(access)}: {_words(error)}", f"a complete kubeconfig with one of its contexts (it has: {known})"
        ) from error
    finally:
        if alone:
            _loading.release()
    if said:
        raise _unusable(
            f"{_title(access)}: {'; '.join(said)}", "an exec plugin that prints an ExecCredential and returns 0"
        )
    return _Target(
        configuration.host,
        configuration.ssl_ca_cert or "",
        configuration.cert_file or "",
        configuration.key_file or "",
        configuration.verify_ssl,
        configuration.tls_server_name or "",
        configuration.proxy or "",
        configuration.no_proxy or "",
        lambda: configuration.get_api_key_with_prefix("BearerToken"),
    )


def _contexts(kubeconfig: str) -> list[str]:
    """Names of the contexts of a kubeconfig, as far as it can be read."""
    import yaml

    with contextlib.suppress(OSError, yaml.YAMLError, AttributeError, TypeError, KeyError):
        return [str(context["name"]) for context in yaml.safe_load(Path(kubeconfig).read_text())["contexts"]]
    return []


def _from_cluster(access: Access) -> _Target:
    missing = [name for name in IN_CLUSTER if not os.environ.get(name)]
    if missing:
        raise _unusable(
            f"this is not a pod of a cluster: {' and '.join(missing)} not in the environment",
            "running in a pod, or kubeconfig FILE [CONTEXT], or endpoint URL",
        )
    _check_file(access.token_file, "token of the service account")
    _check_file(access.ca_file, "authorities of the service account")
    if not Path(access.ca_file).read_bytes():
        raise _unusable(f"authorities of the service account {access.ca_file}: it is empty", "certificates (PEM)")
    host, port = (os.environ[name] for name in IN_CLUSTER)
    where = f"[{host}]" if ":" in host else host
    return _Target(f"https://{where}:{port}", access.ca_file, authorization=_TokenFile(access.token_file))


def _trimmed(value: str) -> str:
    """A header's value without the line end that a token has from its file; the token is after the scheme."""
    scheme, _, token = value.partition(" ")
    return f"{scheme} {token.strip()}".strip()


def _check_certificates(target: _Target, title: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority, cert, key = target.authority, target.cert, target.key
    try:
        if authority:
            context.load_verify_locations(authority)
    except OSError as error:
        raise _unusable(f"{title}: authorities {authority}: {_words(error)}", "a file of certificates (PEM)") from error
    try:
        if cert or key:
            context.load_cert_chain(cert or key, key or None, password="")
    except OSError as error:
        raise _unusable(
            f"{title}: client certificate {cert} with key {key}: {_words(error)}",
            "files (PEM) of a certificate and its key, which is not encrypted",
        ) from error


def _check_file(path: str, what: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise _unusable(f"{what} {path}: {_words(error)}", "a file that can be read") from error


def _unusable(found: str, accepted: str) -> ApiError:
    return ApiError(f"{found}; accepted: {accepted}", "configuration")


def _closed(what: str) -> ApiError:
    return ApiError(f"{what}: closed", "closed")


def _title(access: Access) -> str:
    """What an error in the configuration is in."""
    if access.kubeconfig:
        return f"kubeconfig {access.kubeconfig}" + (f" {access.context}" if access.context else "")
    return f"endpoint {access.endpoint}" if access.endpoint else "service account"


def _netloc(netloc: str) -> str:
    """Host and port of a URL, without user and password."""
    return netloc.rpartition("@")[2]


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """What this thread logs as root, which is how the package tells that a plugin failed; it goes nowhere else."""
    root, thread, texts = logging.getLogger(), threading.get_ident(), list[str]()

    def capture(entry: logging.LogRecord) -> bool:
        if entry.thread == thread:
            texts.append(_shortened(entry.getMessage()))
        return entry.thread != thread

    # Without a handler, logging.error() would put one there that stays.
    last = logging.lastResort if not root.handlers else None
    root.addFilter(capture)
    if last is not None:
        root.addHandler(last)
    try:
        yield texts
    finally:
        root.removeFilter(capture)
        if last is not None:
            root.removeHandler(last)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, in the order of the stack."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        inner = next((value for value in reversed(current.args) if isinstance(value, BaseException)), None)
        current = current.__cause__ or inner or (None if current.__suppress_context__ else current.__context__)


def _last(error: BaseException) -> BaseException:
    return tuple(_causes(error))[-1]


def _words(error: BaseException) -> str:
    """An error in a line."""
    text = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
    return _shortened(text or str(error)) or type(error).__name__


def _shortened(text: str) -> str:
    """One line. The package names places in a kubeconfig by what is there, secrets included: that is left out."""
    text = " ".join(re.sub(r"\{.*\}", "{...}", text, flags=re.DOTALL).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _seconds(text: str | None, now: float) -> float | None:
    """A Retry-After in seconds (RFC 9110 10.2.3: a number, or a date). now: Unix time."""
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return float(text[:9])
    with contextlib.suppress(ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    return None
