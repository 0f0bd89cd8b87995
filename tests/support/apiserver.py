"""A Kubernetes API server for tests: real HTTP/1.1 and TLS in its own process, with faults on command.

    with ApiServer(folder) as api:
        api.create(objects.service("web"))
        api.kubeconfig(folder / "config")
        ...
        api.fault(kind="watch", status=429, retry_after=1)

The process plays etcd too: `down` and `up` end and begin the API server alone, as its client sees it (open connections
break, new ones are refused), and objects and history remain; `stop` and `kill` end the process, and all is forgotten.
`python -m tests.support.apiserver` is that process.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import trustme
import yaml

from tests.support import apiserver_control, ports, procs
from tests.support.apiserver_http import Record, status
from tests.support.apiserver_rbac import ADMIN
from tests.support.objects import Object

ROOT = Path(__file__).resolve().parents[2]
COMMAND_SECONDS = 10.0
LOAD_SECONDS = 180.0
ALWAYS = 1 << 30
"""A fault for every request to come."""
_POLL = 0.02


class ApiServerError(Exception):
    """The server could not do what it was told."""


@dataclass(frozen=True, slots=True)
class Written:
    """An object that was written: when its event was handed to the sockets (CLOCK_MONOTONIC), and its revision."""

    time: float
    revision: int


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums over all requests since the start or `forget_requests`, by kind; connections ever accepted; what is open."""

    sent: dict[str, int]
    """Bytes of responses, heads included, before TLS."""
    requests: dict[str, int]
    accepted: int
    watches: int
    connections: int


@dataclass(frozen=True, slots=True)
class Changed:
    """One change of `churn`: when (CLOCK_MONOTONIC), and the first endpoint's new and old address."""

    time: float
    namespace: str
    service: str
    address: str
    old: str


class ApiServer:
    """An API server on the loopback.

    folder: for certificates, credentials and the log. tls: HTTPS; else HTTP. authenticate: whether a request needs a
    token or a client certificate; a token that is given has to be valid in any case. names: addresses that its
    certificate has beside `host`. prefix: a command to run it under (`ip netns exec ...`).
    """

    def __init__(
        self,
        folder: Path,
        *,
        tls: bool = True,
        authenticate: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
        names: Sequence[str] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.tls = tls
        self.host = host
        self.port = port or ports.free_port((host,))
        self.log_path = folder / "apiserver.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._authenticate = authenticate
        self._names = (host, "localhost", "kubernetes.default.svc", *names)
        self._prefix = list(prefix)
        self._ca = trustme.CA()
        self._client_ca = trustme.CA()
        self._chain = folder / "server.pem"
        self._issue()
        self._client_ca.cert_pem.write_to_path(str(folder / "client-ca.pem"))
        self._tokens: dict[str, str] = {}
        self._published: list[Callable[[str], None]] = []
        self._lock = threading.Lock()
        self._buffer = b""
        self.token = secrets.token_urlsafe(24)
        """The valid token of `system:serviceaccount:kube-system:kdns`."""
        self.admin = secrets.token_urlsafe(24)
        """The token of one who may do everything."""

    # Its process

    def start(self, seconds: float = COMMAND_SECONDS) -> Self:
        """Start the process, with no objects; returns when it listens. Port and certificates are as before."""
        options = {
            "host": self.host,
            "port": self.port,
            "chain": str(self._chain) if self.tls else "",
            "client_ca": str(self.folder / "client-ca.pem"),
        }
        program = [sys.executable, "-X", "faulthandler", "-m", "tests.support.apiserver"]
        command = [*self._prefix, *program, json.dumps(options)]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0
            )
        self._buffer = b""
        self._result(seconds, "start")
        self.command("settings", authenticate=self._authenticate)
        self.set_tokens({self.token: "system:serviceaccount:kube-system:kdns", self.admin: ADMIN})
        return self

    def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(number)
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self.process = None

    def pause(self) -> None:
        """SIGSTOP: connections stay, and the kernel accepts new ones, but nothing answers; commands do not either."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        if error is not None:
            error.add_note(f"log of the API server:\n{self.log[-4000:]}")

    @property
    def pid(self) -> int:
        """Its process."""
        assert self.process is not None
        return self.process.pid

    @property
    def cpu_seconds(self) -> float:
        """CPU time that it has used."""
        return procs.cpu_seconds([self.pid])

    @property
    def log(self) -> str:
        """What it wrote to standard error, from every start."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def url(self) -> str:
        """As in a kubeconfig's `server`."""
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    def command(self, command: str, *, seconds: float = COMMAND_SECONDS, **arguments: Any) -> Any:
        """Send a command and wait for its result. Raises ApiServerError."""
        with self._lock:
            assert self.process is not None
            assert self.process.stdin is not None
            text = memoryview(msgspec.json.encode({"command": command, **arguments}) + b"\n")
            try:
                while text:
                    text = text[self.process.stdin.write(text) or 0 :]
            except BrokenPipeError:
                raise self._ended(command) from None
            return self._result(seconds, command)

    def _ended(self, command: str) -> ApiServerError:
        """What to raise where the process has ended, with how it ended."""
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        return ApiServerError(f"{command}: the process has ended with {self.process.returncode}; log:\n{self.log}")

    def _result(self, seconds: float, command: str) -> Any:
        assert self.process is not None
        assert self.process.stdout is not None
        deadline = time.monotonic() + seconds
        ready = select.poll()
        ready.register(self.process.stdout, select.POLLIN)
        parts = [self._buffer]
        while b"\n" not in parts[-1]:
            left = deadline - time.monotonic()
            if left <= 0 or not ready.poll(left * 1000):
                raise ApiServerError(f"{command}: no result within {seconds} s; log:\n{self.log}")
            data = self.process.stdout.read(1 << 20)
            if not data:
                raise self._ended(command)
            parts.append(data)
        text, _, self._buffer = b"".join(parts).partition(b"\n")
        found = msgspec.json.decode(text)
        if "error" in found:
            raise ApiServerError(f"{command}: {found['error']}")
        return found["result"]

    # Objects

    def write(self, *operations: tuple[str, Object]) -> list[Written]:
        """Write objects in that order, with no request answered between them.

        operations: `create`, `update`, `apply` (either) or `delete`, and the object. Raises ApiServerError at the first
        that cannot be done; those before it are done.
        """
        return [Written(*row) for row in self.command("write", operations=operations)]

    def create(self, *items: Object) -> list[Written]:
        """Objects that are not there."""
        return self.write(*(("create", item) for item in items))

    def update(self, *items: Object) -> list[Written]:
        """Objects that are there; each keeps its uid."""
        return self.write(*(("update", item) for item in items))

    def apply(self, *items: Object) -> list[Written]:
        """Create or update."""
        return self.write(*(("apply", item) for item in items))

    def delete(self, *items: Object) -> list[Written]:
        """Delete objects; only kind, name and namespace matter."""
        return self.write(*(("delete", item) for item in items))

    def load(self, items: Iterable[Object]) -> int:
        """Apply any number of objects, through a file; returns how many."""
        path = self.folder / "load.json"
        path.write_bytes(msgspec.json.encode(list(items)))
        return int(self.command("load", path=str(path), seconds=LOAD_SECONDS))

    def load_cluster(self, services: int = 5000, endpoints: int = 10) -> int:
        """Apply the objects of tests.bench.cluster.Cluster and their namespaces, then compact; returns how many."""
        return int(self.command("load_cluster", services=services, endpoints=endpoints, seconds=LOAD_SECONDS))

    def items(self, kind: str) -> list[Object]:
        """All objects of a kind, as they are now."""
        found: list[Object] = self.command("items", kind=kind)
        return found

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """An object as it is now. namespace: empty for one that has none."""
        found: Object | None = self.command("get", kind=kind, namespace=namespace, name=name)
        return found

    def find(self, kind: str, namespace: str, name: str) -> Object:
        """An object that is there. Raises ApiServerError."""
        found = self.get(kind, namespace, name)
        if found is None:
            raise ApiServerError(f"there is no {kind} {name} in namespace {namespace!r}")
        return found

    def managed_fields(self, *, on: bool = True) -> None:
        """Give objects that are written from now on the managedFields that real ones have."""
        self.command("managed_fields", on=on)

    def install(self, kind: str = "ServiceImport") -> None:
        """Install a CustomResourceDefinition."""
        self.command("install", kind=kind)

    def uninstall(self, kind: str = "ServiceImport") -> None:
        """Remove a CustomResourceDefinition and its objects; its watches end."""
        self.command("uninstall", kind=kind)

    # History

    @property
    def revision(self) -> int:
        """The resourceVersion of the last change."""
        return int(self.command("revision"))

    def compact(self, revision: int | None = None) -> int:
        """Forget the history up to a revision (now, unless given); watches and continue tokens from before are gone."""
        return int(self.command("compact", revision=revision))

    def resend(self, revision: int) -> int:
        """Send the event of a revision again to the open watches of its resource; returns to how many."""
        return int(self.command("resend", revision=revision))

    def bookmark(self) -> int:
        """Send a bookmark now; returns to how many watches."""
        return int(self.command("bookmark"))

    def bookmark_at(self, revision: int, path: str = "") -> int:
        """Send a bookmark of any revision to watches whose path has `path` in it; returns to how many."""
        return int(self.command("inject_bookmark", path=path, revision=revision))

    def churn(self, rate: float, seconds: float, *, under: str = "", limit: int = 0, trigger: bool = True) -> int:
        """Begin to change EndpointSlices, `rate` a second for `seconds`; returns how many take turns.

        Each change gives a slice's first endpoint another address from 172.16.0.0/12. under: only slices whose
        `namespace/name` begins so. limit: only so many (0: all). trigger: set the last-change-trigger-time annotation.
        """
        return int(self.command("churn", rate=rate, duration=seconds, under=under, limit=limit, trigger=trigger))

    def churned(self, since: int = 0) -> list[Changed]:
        """The changes so far, from the one of that number on."""
        return [Changed(*row) for row in self.command("churn_log", since=since)["rows"]]

    def wait_churn(self, seconds: float) -> list[Changed]:
        """Wait until the changes end; all of them."""
        procs.wait_until(lambda: bool(self.command("churn_log", since=ALWAYS)["done"]), seconds, "changes end", _POLL)
        return self.churned()

    def stop_churn(self) -> None:
        """No more changes."""
        self.command("stop_churn")

    # Behaviour

    def settings(self, **changes: Any) -> None:
        """Change fields of tests.support.apiserver_serve.Settings."""
        self.command("settings", **changes)

    def forbid(self, *paths: str) -> None:
        """Answer 403 to requests whose path has one of these in it, instead of those before; none: to no request."""
        self.command("forbid", paths=paths)

    # Faults

    def fault(
        self,
        *,
        path: str = "",
        kind: str = "",
        times: int = 1,
        delay: float = 0.0,
        status: int = 0,
        retry_after: int | str = "",
        body: str | None = None,
        data: bytes = b"",
        split: Sequence[int] = (),
        cut: int | None = None,
        then: str = "",
    ) -> None:
        """What happens to the next requests that match: see tests.support.apiserver_http.Fault."""
        self.command(
            "fault",
            path=path,
            kind=kind,
            times=times,
            delay=delay,
            status=status,
            retry_after=str(retry_after),
            body=body,
            data=base64.b64encode(data).decode(),
            split=split,
            cut=cut,
            then=then,
        )

    def clear_faults(self) -> None:
        """Requests from now on meet no fault."""
        self.command("clear_faults")

    def inject(
        self, data: bytes = b"", *, path: str = "", split: Sequence[int] = (), pause: float = 0.0, then: str = ""
    ) -> float:
        """Send bytes to the open watches whose path has `path` in it, as one chunk or as several; returns when.

        split: offsets where to divide them. pause: seconds between the parts. then: how the watch ends after that:
        `end`, `fin`, `rst`, `silent` (never another byte); empty: it goes on. Raises ApiServerError if there is none.
        """
        encoded = base64.b64encode(data).decode()
        when, count = self.command("inject", path=path, data=encoded, split=split, pause=pause, then=then)
        if not count:
            raise ApiServerError(f"inject: no watch of {path!r} is open")
        return float(when)

    def event(self, kind: str, item: Any, *, path: str = "", split: Sequence[int] = (), then: str = "") -> float:
        """Send an event of any type with any object to the open watches, whatever the store has."""
        line = msgspec.json.encode({"type": kind, "object": item}) + b"\n"
        return self.inject(line, path=path, split=split, then=then)

    def error_event(self, code: int, message: str = "fault on command", *, path: str = "", then: str = "end") -> float:
        """Send an ERROR event with a Status to the open watches, which then end, as kube-apiserver's do."""
        return self.event("ERROR", status(code, message), path=path, then=then)

    def silence(self, path: str = "", *, new: bool = True) -> None:
        """Open watches never send another byte, nor (new) is a watch answered from now on, until `clear_faults`."""
        self.command("inject", path=path, data="", split=(), pause=0.0, then="silent")
        if new:
            for kind in ("watch", "stream"):
                self.fault(path=path, kind=kind, times=ALWAYS, then="silent")

    def break_watches(self, then: str = "rst") -> int:
        """Break the connections of all watches by `rst` or `fin`, or `end` them cleanly; returns how many."""
        return int(self.command("break", then=then, idle=False))

    def break_connections(self, then: str = "rst") -> int:
        """Break all connections, idle ones too; returns how many."""
        return int(self.command("break", then=then, idle=True))

    def refuse(self) -> None:
        """Stop listening; open connections stay."""
        self.command("refuse")

    def listen(self) -> None:
        """Listen again."""
        self.command("listen")

    def down(self, then: str = "fin") -> None:
        """The API server is gone: all connections break, and new ones are refused."""
        self.command("down", then=then)

    def up(self, history: str = "kept") -> None:
        """The API server is back at its port.

        history: `kept`; `lost` (all that was is compacted: older versions are gone); `empty` (another cluster: no
        objects, and resourceVersions that begin anew).
        """
        self.command("up", history=history)

    def restart(self, history: str = "kept") -> None:
        """`down` and `up`."""
        self.down()
        self.up(history)

    # Bookkeeping

    def requests(self, kind: str = "", path: str = "") -> list[Record]:
        """The requests so far of that kind (as in Record) whose path has `path` in it."""
        return msgspec.convert(self.command("requests", since=0, kind=kind, path=path), list[Record])

    def forget_requests(self) -> None:
        """Begin the log of requests and the counters anew; what open watches send from now on is not counted."""
        self.command("forget_requests")

    def counters(self) -> Counters:
        """Sums."""
        return msgspec.convert(self.command("counters"), Counters)

    def wait_watches(self, count: int, seconds: float = 5.0) -> float:
        """Wait until so many watches are open, past their initial events; returns the seconds it took."""
        try:
            return procs.wait_until(lambda: self.counters().watches == count, seconds, f"{count} watches", _POLL)
        except AssertionError as error:
            raise AssertionError(f"{error}; there are {self.counters().watches}") from None

    def wait_requests(self, count: int, kind: str = "", path: str = "", seconds: float = 5.0) -> list[Record]:
        """Wait until there are at least so many requests, as `requests` selects them; returns them."""
        what = f"{count} requests {kind} {path}"
        procs.wait_until(lambda: len(self.requests(kind, path)) >= count, seconds, what, _POLL)
        return self.requests(kind, path)

    # Credentials

    def _issue(self) -> None:
        self._ca.issue_cert(*self._names).private_key_and_cert_chain_pem.write_to_path(str(self._chain))

    @property
    def ca_pem(self) -> bytes:
        """The certificate of the CA that signed the server's."""
        return self._ca.cert_pem.bytes()

    def new_certificate(self, *, new_ca: bool = False) -> None:
        """Serve new connections with another certificate, signed by another CA where asked.

        Kubeconfigs that were written keep the CA they have; `ca.crt` of a service account follows.
        """
        if new_ca:
            self._ca = trustme.CA()
        self._issue()
        self.command("certificate", chain=str(self._chain))
        for publish in self._published:
            publish(self.token)

    def set_tokens(self, tokens: Mapping[str, str]) -> None:
        """These tokens are valid for the users they stand for, and no others."""
        self._tokens = dict(tokens)
        self.command("tokens", tokens=self._tokens)

    def rotate(self, *, keep_old: bool = False) -> str:
        """Make another token valid, and unless `keep_old` revoke the present one; returns it.

        It is written into service account folders and for exec plugins; kubeconfigs that have a token are left alone.
        """
        old, self.token = self.token, secrets.token_urlsafe(24)
        tokens = self._tokens | {self.token: self._tokens[old]}
        for publish in self._published:
            publish(self.token)
        self.set_tokens({token: user for token, user in tokens.items() if keep_old or token != old})
        return self.token

    def client_certificate(self, name: str = "kdns") -> tuple[Path, Path]:
        """Files with a client's certificate and key; its user is `name`."""
        found = self._client_ca.issue_cert(f"{name}.test", common_name=name)
        certificate, key = self.folder / f"client-{name}.crt", self.folder / f"client-{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in found.cert_chain_pems))
        found.private_key_pem.write_to_path(str(key))
        return certificate, key

    @property
    def exec_calls(self) -> int:
        """How often the exec plugin of a kubeconfig ran."""
        path = self.folder / "exec-calls"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def kubeconfig(self, path: Path, user: str = "token", *, context: str = "test", insecure: bool = False) -> Path:
        """Write a kubeconfig with one context, which is the current one.

        user: `none`, `token` (the present one, in the file), `tokenFile` (of a service account folder beside it),
        `cert` (client certificate in files), `cert-data` (in the file), or `exec` (a plugin that prints the present
        token).
        insecure: do not verify the server's certificate.
        """
        cluster: dict[str, Any] = {"server": self.url}
        if self.tls and insecure:
            cluster["insecure-skip-tls-verify"] = True
        elif self.tls:
            cluster["certificate-authority-data"] = base64.b64encode(self.ca_pem).decode()
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "kdns", "user": self._user(user, path)}],
            "contexts": [{"name": context, "context": {"cluster": "test", "user": "kdns"}}],
            "current-context": context,
        }
        path.write_text(yaml.safe_dump(document))
        return path

    def _user(self, user: str, path: Path) -> dict[str, Any]:
        if user == "none":
            return {}
        if user == "token":
            return {"token": self.token}
        if user == "tokenFile":
            folder = path.with_name(f"{path.name}-account")
            self.service_account(folder)
            return {"tokenFile": str(folder / "token")}
        if user in ("cert", "cert-data"):
            certificate, key = self.client_certificate()
            if user == "cert":
                return {"client-certificate": str(certificate), "client-key": str(key)}
            data = [base64.b64encode(file.read_bytes()).decode() for file in (certificate, key)]
            return {"client-certificate-data": data[0], "client-key-data": data[1]}
        if user == "exec":
            return {"exec": self._plugin()}
        raise ValueError(f"no such user: {user!r}")

    def _plugin(self) -> dict[str, Any]:
        version = "client.authentication.k8s.io/v1"
        credential = self.folder / "exec-credential.json"

        def publish(token: str) -> None:
            found = {"apiVersion": version, "kind": "ExecCredential", "status": {"token": token}}
            _replace(credential, json.dumps(found).encode())

        self._publish(publish)
        script = self.folder / "exec-plugin"
        script.write_text(f"#!/bin/sh\necho call >> '{self.folder / 'exec-calls'}'\ncat '{credential}'\n")
        script.chmod(0o755)
        return {"apiVersion": version, "command": str(script), "interactiveMode": "Never", "args": []}

    def account(self, name: str = "kdns", namespace: str = "kube-system") -> dict[str, str]:
        """What the token volume of a service account's Pods has: its token, the CA, and the namespace."""
        token = self.token if (namespace, name) == ("kube-system", "kdns") else secrets.token_urlsafe(24)
        if token not in self._tokens:
            self.set_tokens(self._tokens | {token: f"system:serviceaccount:{namespace}:{name}"})
        return {"token": token, "ca.crt": self.ca_pem.decode(), "namespace": namespace}

    def service_account(self, folder: Path) -> dict[str, str]:
        """Write `token`, `ca.crt` and `namespace` as Kubernetes mounts them; returns the environment of a Pod."""
        folder.mkdir(parents=True, exist_ok=True)

        def publish(token: str) -> None:
            _replace(folder / "token", token.encode())
            _replace(folder / "ca.crt", self.ca_pem)

        self._publish(publish)
        (folder / "namespace").write_text("kube-system")
        return {"KUBERNETES_SERVICE_HOST": self.host, "KUBERNETES_SERVICE_PORT": str(self.port)}

    def _publish(self, publish: Callable[[str], None]) -> None:
        publish(self.token)
        self._published.append(publish)


def _replace(path: Path, data: bytes) -> None:
    """Exchange a file's content at once, as the kubelet does."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(data)
    temporary.replace(path)


if __name__ == "__main__":
    apiserver_control.main()
