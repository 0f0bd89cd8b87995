"""The whole server before an API server: every way to reach it and to say who asks, and what goes wrong on that way.

One kdns of many server blocks goes all ways at once. Each block has its own zone, WAY.test, and its own namespace, WAY,
by which the API server's log tells their requests apart.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dns.rcode
import pytest
import trustme

from tests.conftest import Serve
from tests.support import procs
from tests.support.apiserver import ApiServer
from tests.support.apiserver_http import Record as Request
from tests.support.objects import Object, namespace, service
from tests.support.server import API_COREFILE, ROOT, Metrics, Server

SERVICE_ACCOUNT = "system:serviceaccount:kube-system:kdns"
ERRORS = "kdns_kubernetes_watch_errors_total"
EXEC = "client.authentication.k8s.io/v1"
AGE = "kdns_kubernetes_data_age_seconds"
LIMITER = "coredns_kubernetes_rest_client_rate_limiter_duration_seconds"
FEW_SECONDS = 6.0
"""What "goes on within seconds" may take on a busy machine."""
SLOW = 0.4
"""Seconds by which the answers of a slow API server are late."""
SKEW = timedelta(minutes=5)
"""A plugin's token counts as expired so long before it is."""

BASE = """\
.:$dns {
    bind $addresses
    errors
    health $host:$health
    ready $host:$ready
    prometheus $host:$metrics
}
"""
WATCHED = """
import os, sys

def note(event, arguments):
    if event == "import" and arguments[0].partition(".")[0] in ("kubernetes", "urllib3"):
        with open(LOG, "a") as log:
            print(os.getpid(), arguments[0], file=log)

sys.addaudithook(note)
"""
"""A sitecustomize.py: whoever imports the Kubernetes client is noted with the number of its process, forks too."""


def block(way: str, *lines: str) -> str:
    """A server block whose zone and namespace are named after the way."""
    options = "".join(f"        {line}\n" for line in (f"namespaces {way}", *lines))
    return f"{way}.test:$dns {{\n    bind $addresses\n    kubernetes {way}.test {{\n{options}    }}\n}}\n"


def objects(way: str, ip: str) -> list[Object]:
    return [namespace(way), service("web", way, ips=[ip])]


def addresses(server: Server, way: str, name: str = "web") -> list[str]:
    return server.texts(f"{name}.{way}.svc.{way}.test")


def requests(api: ApiServer, way: str) -> list[Request]:
    """Those of a way, in the order in which they came."""
    selected = f"metadata.name={way}"
    return [
        request
        for request in api.requests()
        if f"/namespaces/{way}/" in request.path or request.query.get("fieldSelector") == selected
    ]


def lists(found: list[Request]) -> list[Request]:
    return [request for request in found if request.is_list]


def refused(found: list[Request]) -> list[str]:
    """The paths that were answered with 401."""
    return [request.path for request in found if request.status == 401]


def write_kubeconfig(
    path: Path, api: ApiServer, user: dict[str, Any], *, context: str = "test", authority: str = ""
) -> Path:
    """One with one context. authority: file; unless given, one is made beside the kubeconfig, which names no folder."""
    if not authority:
        made = path.with_name(f"{path.name}.ca")
        made.write_bytes(api.ca_pem)
        authority = made.name
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": api.url, "certificate-authority": authority}}],
        "users": [{"name": "kdns", "user": user}],
        "contexts": [{"name": context, "context": {"cluster": "test", "user": "kdns"}}],
        "current-context": context,
    }
    path.write_text(json.dumps(document))
    return path


class Plugin:
    """A credential plugin: a script that prints what `publish` said last, and counts how often it ran."""

    def __init__(self, folder: Path) -> None:
        self._credential = folder / "credential.json"
        self._calls = folder / "calls"
        self._calls.touch()
        self.user = {"exec": {"apiVersion": EXEC, "interactiveMode": "Never"}}
        self.user["exec"]["command"] = str(folder / "plugin")
        text = f"#!/bin/sh\necho call >> {shlex.quote(str(self._calls))}\ncat {shlex.quote(str(self._credential))}\n"
        write_script(folder / "plugin", text)

    @property
    def calls(self) -> int:
        return len(self._calls.read_text().splitlines())

    def publish(self, token: str, expires: datetime) -> None:
        status = {"token": token, "expirationTimestamp": expires.strftime("%Y-%m-%dT%H:%M:%SZ")}
        self._credential.write_text(credential(status))


def credential(status: dict[str, str]) -> str:
    return json.dumps({"apiVersion": EXEC, "kind": "ExecCredential", "status": status})


def write_script(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.chmod(0o755)
    temporary.replace(path)


def watch_imports(folder: Path) -> Path:
    """Make a folder for PYTHONPATH whose interpreters note imports of the Kubernetes client; the file of the notes."""
    found = folder / "imports"
    (folder / "sitecustomize.py").write_text(WATCHED.replace("LOG", repr(str(found))))
    return found


def fresh() -> datetime:
    """When a token expires that holds for the whole test."""
    return datetime.now(UTC) + timedelta(hours=1)


# All ways


@dataclass
class Ways:
    """A server that goes all ways; the API servers, with and without TLS; what the ways have their credentials from."""

    api: ApiServer
    plain: ApiServer
    server: Server
    plugin: Plugin
    token_file: Path
    imports: Path
    tokens: dict[str, str] = field(default_factory=dict)

    def replace_token(self, way: str, token: str) -> None:
        """From now on the API server takes this token of a way, and none that it had."""
        self.tokens = {known: user for known, user in self.tokens.items() if user != way} | {token: way}
        self.api.set_tokens(self.tokens)

    def break_watches(self, way: str) -> None:
        """End the two watches of a way's namespace."""
        self.api.inject(path=f"/namespaces/{way}/", then="fin")

    def wait_watches(self, way: str, since: int) -> list[Request]:
        """Wait until both are there again; the requests of the way after the first `since`."""

        def back() -> bool:
            return len([each for each in requests(self.api, way)[since:] if each.status == 200]) >= 2

        procs.wait_until(back, FEW_SECONDS, "both watches", 0.02)
        return requests(self.api, way)[since:]


WAYS = {
    "token": "token",
    "tokenfile": "tokenfile",
    "cert": "kdns",
    "certdata": "kdns",
    "exec": "exec",
    "context": "context",
    "relative": "relative",
    "tls": "kdns",
    "rate": "rate",
    "inflight": "inflight",
}
"""Each way that needs TLS, and who the API server takes it for."""
PLAIN = ("plain", "several")


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    folder = tmp_path_factory.mktemp("ways")
    imports = watch_imports(folder)
    with ExitStack() as stack:
        api = stack.enter_context(ApiServer(folder / "api", authenticate=True))
        plain = stack.enter_context(ApiServer(folder / "plain", tls=False))
        api.create(*(item for number, way in enumerate(WAYS) for item in objects(way, f"10.96.1.{number}")))
        plain.create(*(item for number, way in enumerate(PLAIN) for item in objects(way, f"10.96.2.{number}")))
        api.fault(path="/namespaces/inflight/", kind="stream", delay=SLOW, times=2)
        plugin = Plugin(folder)
        plugin.publish("exec-1", fresh())
        token_file = folder / "token"
        token_file.write_text("tokenfile-1")
        blocks = write_ways(folder, api, plain, plugin, token_file)
        environ = {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
        server = Server(folder, corefile=BASE + blocks, environ=environ)
        found = Ways(api, plain, server, plugin, token_file, imports)
        for way in WAYS:
            found.replace_token(way, f"{way}-1")
        stack.enter_context(server)
        yield found
        server.terminate()


def write_ways(folder: Path, api: ApiServer, plain: ApiServer, plugin: Plugin, token_file: Path) -> str:
    """Write what the ways need; the server blocks."""
    authority = folder / "ca.crt"
    authority.write_bytes(api.ca_pem)
    cert, key = api.client_certificate()

    def kubeconfig(way: str, user: dict[str, Any]) -> str:
        return f"kubeconfig {write_kubeconfig(folder / f'{way}.config', api, user)}"

    users: dict[str, dict[str, Any]] = {way: {"token": f"{way}-1"} for way in ("token", "relative", "rate", "inflight")}
    users |= {"tokenfile": {"tokenFile": str(token_file)}, "exec": plugin.user}
    lines = {way: [kubeconfig(way, user)] for way, user in users.items()}
    lines["relative"] = ["kubeconfig relative.config"]
    lines["rate"] += ["apiserver_qps 1", "apiserver_burst 1"]
    lines["inflight"] += ["apiserver_max_inflight 1"]
    lines["cert"] = [f"kubeconfig {api.kubeconfig(folder / 'cert.config', 'cert')}"]
    lines["certdata"] = [f"kubeconfig {api.kubeconfig(folder / 'certdata.config', 'cert-data')}"]
    lines["tls"] = [f"endpoint {api.url}", f"tls {cert} {key} {authority}"]
    lines["plain"] = [f"endpoint {plain.url}"]
    lines["several"] = [f"endpoint {plain.url} {api.url}"]
    write_contexts(folder / "context.config", api)
    lines["context"] = [f"kubeconfig {folder / 'context.config'} second"]
    assert set(lines) == {*WAYS, *PLAIN}
    return "".join(block(way, *options) for way, options in lines.items())


def write_contexts(path: Path, api: ApiServer) -> None:
    """A kubeconfig of two contexts, of which the first, the current one, leads nowhere."""
    document = json.loads(write_kubeconfig(path, api, {"token": "context-1"}, context="second").read_text())
    document["clusters"].append({"name": "away", "cluster": {"server": "https://127.0.0.1:1"}})
    document["contexts"].append({"name": "first", "context": {"cluster": "away", "user": "kdns"}})
    document["current-context"] = "first"
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_leads_to_the_cluster(ways: Ways, way: str) -> None:
    assert addresses(ways.server, way) == [f"10.96.1.{list(WAYS).index(way)}"]
    assert {request.user for request in requests(ways.api, way) if request.status == 200} == {WAYS[way]}


@pytest.mark.parametrize("way", PLAIN)
def test_an_endpoint_may_do_without_tls(ways: Ways, way: str) -> None:
    assert addresses(ways.server, way) == [f"10.96.2.{PLAIN.index(way)}"]


def test_of_several_endpoints_the_first_is_used_and_the_log_says_so(ways: Ways) -> None:
    said = [line for line in ways.server.log.splitlines() if "several endpoints" in line]
    assert len(said) == 1
    assert f"only the first is used: {ways.plain.url}" in said[0]
    assert requests(ways.plain, "several")
    assert not requests(ways.api, "several")


def test_each_kind_of_object_is_asked_for_once_at_a_start(ways: Ways) -> None:
    found = requests(ways.api, "token")
    assert len({request.path for request in lists(found)}) == len(lists(found)) == 3


def test_apiserver_qps_and_burst_space_the_requests(ways: Ways) -> None:
    first, second, third = (request.time for request in requests(ways.api, "rate")[:3])
    assert 0.7 < second - first < 2
    assert 0.7 < third - second < 2


def test_the_metric_of_the_rate_limiter_shows_the_waiting(ways: Ways) -> None:
    host = f"{ways.api.host}:{ways.api.port}"
    metrics = ways.server.metrics()
    assert metrics.value(f"{LIMITER}_count", verb="GET", host=host) >= 3 * len(WAYS)
    assert metrics.value(f"{LIMITER}_sum", verb="GET", host=host) == pytest.approx(1 + 2, abs=0.8)


def test_apiserver_max_inflight_1_never_has_two_requests_wait(ways: Ways) -> None:
    found = requests(ways.api, "inflight")[:3]
    slow = [each.time for each in found if "/namespaces/inflight/" in each.path]
    assert len(slow) == 2
    assert slow[1] - slow[0] > SLOW - 0.05
    assert not any(slow[0] < each.time < slow[0] + SLOW - 0.05 for each in found)


def test_a_plugins_token_is_used_until_it_is_about_to_expire(ways: Ways) -> None:
    calls, since = ways.plugin.calls, len(requests(ways.api, "exec"))
    ways.break_watches("exec")
    ways.wait_watches("exec", since)
    assert ways.plugin.calls == calls


def test_a_plugin_runs_again_after_a_401_and_before_its_token_expires(ways: Ways) -> None:
    calls, since = ways.plugin.calls, len(requests(ways.api, "exec"))
    expires = datetime.now(UTC) + SKEW + timedelta(seconds=3)
    ways.plugin.publish("exec-2", expires)
    ways.replace_token("exec", "exec-2")
    ways.break_watches("exec")
    found = ways.wait_watches("exec", since)
    assert len(refused(found)) == len(set(refused(found))) <= 2, "more than one for a watch"
    assert calls < ways.plugin.calls <= calls + len(refused(found))
    assert not lists(found)

    time.sleep(max(0.0, (expires - SKEW - datetime.now(UTC)).total_seconds()))
    calls, since = ways.plugin.calls, len(requests(ways.api, "exec"))
    ways.plugin.publish("exec-3", fresh())
    ways.replace_token("exec", "exec-3")
    ways.break_watches("exec")
    found = ways.wait_watches("exec", since)
    assert not refused(found)
    assert ways.plugin.calls == calls + 1


def test_a_token_file_is_read_again_after_a_401(ways: Ways) -> None:
    since = len(requests(ways.api, "tokenfile"))
    ways.token_file.write_text("tokenfile-2\n")
    ways.replace_token("tokenfile", "tokenfile-2")
    ways.break_watches("tokenfile")
    found = ways.wait_watches("tokenfile", since)
    assert 1 <= len(refused(found)) == len(set(refused(found))) <= 2
    assert not lists(found)


def test_the_kubernetes_client_is_loaded_by_the_supervisor_alone(ways: Ways) -> None:
    assert ways.server.process is not None
    found = {int(line.split()[0]) for line in ways.imports.read_text().splitlines()}
    assert found == {ways.server.process.pid}
    assert len(ways.server.pids()) > 1


def test_a_worker_has_no_way_to_an_api_server() -> None:
    code = "import sys, kdns.server.worker, kdns.server.nursery; print(*{'kubernetes', 'urllib3'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_manifests_need_no_kubernetes_client(serve: Serve, tmp_path: Path) -> None:
    imports = watch_imports(tmp_path)
    imports.touch()
    server = serve([service("web")], environ={"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"})
    assert server.texts("web.default.svc.cluster.local") == ["10.96.0.10"]
    server.terminate()
    assert imports.read_text() == ""


# In a pod

SERVICE_ACCOUNT_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
MOUNT = f"""\
mount -t tmpfs tmpfs /var/run && mkdir -p {SERVICE_ACCOUNT_FOLDER} &&
mount --bind "$0" {SERVICE_ACCOUNT_FOLDER} && exec "$@"
"""


class ServiceAccount:
    """A folder as the kubelet makes it: its files are links into another one, which is exchanged at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0
        folder.mkdir()
        for name in ("token", "ca.crt"):
            (folder / name).symlink_to(Path("..data", name))

    def write(self, token: str, authority: bytes) -> None:
        self._count += 1
        data = self.folder / f"..{self._count}"
        data.mkdir()
        (data / "token").write_text(token)
        (data / "ca.crt").write_bytes(authority)
        link = self.folder / "..data_tmp"
        link.symlink_to(data.name)
        link.replace(self.folder / "..data")

    @property
    def prefix(self) -> list[str]:
        """To run a command that sees it where a pod does, and nobody else. Skips the test where that cannot be."""
        prefix = ["unshare", "--mount", "sh", "-c", MOUNT, str(self.folder)]
        tried = subprocess.run([*prefix, "true"], capture_output=True, text=True)
        if tried.returncode:
            pytest.skip(f"no mounts of its own, for which it has to be root: {tried.stderr.strip()}")
        return prefix


def test_in_a_pod_the_service_account_is_used_and_its_token_read_again_as_it_rotates(
    serve: Serve, tmp_path: Path
) -> None:
    with ApiServer(tmp_path / "api", authenticate=True) as api:
        api.create(service("web", ips=["10.96.0.1"]))
        account = ServiceAccount(tmp_path / "account")
        account.write(api.token, api.ca_pem)
        pod = {"KUBERNETES_SERVICE_HOST": api.host, "KUBERNETES_SERVICE_PORT": str(api.port)}
        server = serve(corefile=API_COREFILE, prefix=account.prefix, environ=pod)
        assert server.texts("web.default.svc.cluster.local") == ["10.96.0.1"]
        assert {request.user for request in api.requests()} == {SERVICE_ACCOUNT}

        account.write(api.rotate(keep_old=True), api.ca_pem)
        api.set_tokens({api.token: SERVICE_ACCOUNT})
        api.forget_requests()
        api.break_watches()
        api.create(service("new", ips=["10.96.0.2"]))
        wait_for_answer(server, "new", "10.96.0.2")
        api.wait_watches(3)
        found = api.requests()
        assert 1 <= len(refused(found)) == len(set(refused(found))) <= 3, "more than one for a watch"
        assert not lists(found)
        assert server.metrics().value(ERRORS, reason="unauthorized") == len(refused(found))
        assert server.log.count("status 401") == len(refused(found))


def wait_for_answer(server: Server, name: str, ip: str) -> None:
    procs.wait_until(lambda: server.texts(f"{name}.default.svc.cluster.local") == [ip], FEW_SECONDS, f"{name}: {ip}")


# The server's certificate


def test_a_server_certificate_may_change(serve: Serve, tmp_path: Path) -> None:
    with ApiServer(tmp_path / "api", authenticate=True) as api:
        api.create(service("web", ips=["10.96.0.1"]))
        kubeconfig = write_kubeconfig(tmp_path / "config", api, {"token": api.token})
        server = serve(corefile=API_COREFILE, kubernetes=f"kubeconfig {kubeconfig}")
        api.forget_requests()

        api.new_certificate()
        api.break_connections()
        api.create(service("same-ca", ips=["10.96.0.2"]))
        wait_for_answer(server, "same-ca", "10.96.0.2")
        assert server.metrics().value(ERRORS, reason="tls") == 0

        api.wait_watches(3)
        api.new_certificate(new_ca=True)
        api.break_connections()
        api.create(service("new-ca", ips=["10.96.0.3"]))
        procs.wait_until(lambda: server.metrics().value(ERRORS, reason="tls") >= 3 * 2, FEW_SECONDS, "TLS errors", 0.05)
        assert server.texts("web.default.svc.cluster.local") == ["10.96.0.1"]
        assert server.query("new-ca.default.svc.cluster.local").rcode() == dns.rcode.NXDOMAIN
        said = re.findall(r"^\[WARNING\].* TLS: .* is signed by an authority of (\S+)$", server.log, re.MULTILINE)
        assert said == [f"{kubeconfig}.ca"] * 3, "one line for each kind"

        Path(f"{kubeconfig}.ca").write_bytes(api.ca_pem)
        wait_for_answer(server, "new-ca", "10.96.0.3")
        api.wait_watches(3)
        assert server.metrics().value(ERRORS, reason="tls") <= 3 * 6
        assert len(lists(api.requests())) == 3, "another authority may be that of another cluster: all is read anew"


def is_current(server: Server) -> bool:
    reply = server.get("/metrics", server.metrics_port)
    samples = Metrics(reply.body).samples if reply.status == 200 else {}
    return [age for (name, _), age in samples.items() if name == AGE] == [0.0]


def test_another_authority_is_another_cluster_at_the_next_start(serve: Serve, tmp_path: Path) -> None:
    with ApiServer(tmp_path / "api") as api:
        api.create(service("web", ips=["10.96.0.1"]))
        kubeconfig = write_kubeconfig(tmp_path / "config", api, {"token": api.token})
        server = serve(corefile=API_COREFILE, kubernetes=f"kubeconfig {kubeconfig}")
        for new_ca, expected in ((False, 0), (True, 3), (False, 0)):
            server.terminate()
            api.new_certificate(new_ca=new_ca)
            Path(f"{kubeconfig}.ca").write_bytes(api.ca_pem)
            api.forget_requests()
            server.start(wait=False)
            procs.wait_until(server.answers, FEW_SECONDS, "an answer")
            assert server.texts("web.default.svc.cluster.local") == ["10.96.0.1"]
            procs.wait_until(lambda: is_current(server), FEW_SECONDS, "current data in the store", 0.02)
            assert len(lists(api.requests())) == expected


# Mistakes


@dataclass(frozen=True, slots=True)
class Mistake:
    """Options that cannot be used yet. said: how the log says that, as a regular expression; repair: what helps."""

    options: tuple[str, ...]
    said: str
    repair: Callable[[], object]
    lines: int = 1


class Blunderer:
    """Makes mistakes, each in files of its own."""

    def __init__(self, folder: Path, api: ApiServer) -> None:
        self.folder = folder
        self.api = api

    def path(self, way: str) -> Path:
        return self.folder / f"{way}.config"

    def kubeconfig(self, way: str, user: dict[str, Any] | None = None, **more: str) -> Path:
        return write_kubeconfig(self.path(way), self.api, user or {"token": self.api.token}, **more)

    def mistake(self, way: str, said: str, repair: Callable[[], object], *, context: str = "") -> Mistake:
        """One of a kubeconfig that the log names."""
        return Mistake((f"kubeconfig {self.path(way)} {context}",), f"{re.escape(str(self.path(way)))}.*{said}", repair)

    def no_file(self) -> Mistake:
        said = "No such file or directory; accepted: a file that can be read"
        return self.mistake("no-file", said, lambda: self.kubeconfig("no-file"))

    def no_context(self) -> Mistake:
        self.kubeconfig("no-context", context="old")
        said = r"name new .*; accepted: .* \(it has: old\)"
        return self.mistake("no-context", said, lambda: self.kubeconfig("no-context", context="new"), context="new")

    def no_plugin(self) -> Mistake:
        return self._plugin("no-plugin", "", "No such file or directory")

    def plugin_fails(self) -> Mistake:
        return self._plugin("plugin-fails", "echo no login today >&2; exit 3", "3. no login today")

    def plugin_babbles(self) -> Mistake:
        return self._plugin("plugin-babbles", "echo welcome", "failed to decode process output")

    def _plugin(self, way: str, script: str, said: str) -> Mistake:
        path = self.folder / f"{way}.sh"
        if script:
            write_script(path, f"#!/bin/sh\n{script}\n")
        self.kubeconfig(way, {"exec": {"apiVersion": EXEC, "command": str(path), "interactiveMode": "Never"}})
        good = f"#!/bin/sh\nprintf %s {shlex.quote(credential({'token': self.api.token}))}\n"
        accepted = "accepted: an exec plugin that prints an ExecCredential and returns 0"
        return self.mistake(way, f"{said}.*; {accepted}", lambda: write_script(path, good))

    def no_authority(self) -> Mistake:
        path = self.folder / "none.crt"
        self.kubeconfig("no-authority", authority=str(path))
        return self.mistake("no-authority", f"{path}; accepted: ", lambda: path.write_bytes(self.api.ca_pem))

    def no_certificate(self) -> Mistake:
        cert, key = self.api.client_certificate()
        own, authority = self.folder / "own.crt", self.folder / "own.ca"
        authority.write_bytes(self.api.ca_pem)
        options = (f"endpoint {self.api.url}", f"tls {own} {key} {authority}")
        said = f"client certificate {own} with key {key}: No such file or directory; accepted: files"
        return Mistake(options, said, lambda: own.write_bytes(cert.read_bytes()))

    def other_authority(self) -> Mistake:
        path = self.folder / "other.crt"
        trustme.CA().cert_pem.write_to_path(str(path))
        options = (f"kubeconfig {self.kubeconfig('other-authority', authority=str(path))}",)
        said = f"TLS: .* check that .* signed by an authority of {path}"
        return Mistake(options, said, lambda: path.write_bytes(self.api.ca_pem), lines=3)

    def other_token(self) -> Mistake:
        options = (f"kubeconfig {self.kubeconfig('other-token', {'token': 'forged'})}",)
        return Mistake(options, "status 401: Unauthorized", lambda: self.kubeconfig("other-token"), lines=3)


MISTAKES: dict[str, Callable[[Blunderer], Mistake]] = {
    "no-file": Blunderer.no_file,
    "no-context": Blunderer.no_context,
    "no-plugin": Blunderer.no_plugin,
    "plugin-fails": Blunderer.plugin_fails,
    "plugin-babbles": Blunderer.plugin_babbles,
    "no-authority": Blunderer.no_authority,
    "no-certificate": Blunderer.no_certificate,
    "other-authority": Blunderer.other_authority,
    "other-token": Blunderer.other_token,
}


@dataclass
class Mended:
    """What a server of all mistakes has answered, and then without them; and all that it said."""

    mistakes: dict[str, Mistake]
    rcodes: dict[str, dns.rcode.Rcode]
    answers: dict[str, list[str]]
    log: str

    def said(self, way: str) -> int:
        return count_lines(self.mistakes[way].said, self.log)


def count_lines(pattern: str, log: str) -> int:
    return sum(bool(re.search(pattern, line)) for line in log.splitlines())


@pytest.fixture(scope="module")
def mended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mended]:
    folder = tmp_path_factory.mktemp("mistakes")
    with ExitStack() as stack:
        api = stack.enter_context(ApiServer(folder / "api", authenticate=True))
        api.create(*(item for number, way in enumerate(MISTAKES) for item in objects(way, f"10.96.3.{number}")))
        blunderer = Blunderer(folder, api)
        found = Mended({way: make(blunderer) for way, make in MISTAKES.items()}, {}, {}, "")
        blocks = [block(way, "startup_timeout 500ms", *each.options) for way, each in found.mistakes.items()]
        server = Server(folder, corefile=BASE + "".join(blocks))
        stack.callback(server.kill)
        server.start(wait=False)
        procs.wait_until(server.answers, FEW_SECONDS, "an answer")

        def all_said() -> bool:
            return all(count_lines(each.said, server.log) >= each.lines for each in found.mistakes.values())

        def all_answered() -> bool:
            found.answers = {way: addresses(server, way) for way in MISTAKES}
            return all(found.answers.values())

        with suppress(AssertionError):  # it is for the tests to say which is missing
            procs.wait_until(all_said, FEW_SECONDS, "all said", 0.05)
        found.rcodes = {way: server.query(f"web.{way}.svc.{way}.test").rcode() for way in MISTAKES}
        for mistake in found.mistakes.values():
            mistake.repair()
        with suppress(AssertionError):
            procs.wait_until(all_answered, 2 * FEW_SECONDS, "all answered", 0.05)
        found.log = server.log
        yield found


@pytest.mark.parametrize("way", MISTAKES)
def test_a_mistake_is_said_once_and_over_when_it_is_repaired(mended: Mended, way: str) -> None:
    assert mended.said(way) == mended.mistakes[way].lines
    assert mended.rcodes[way] == dns.rcode.SERVFAIL
    assert mended.answers[way] == [f"10.96.3.{list(MISTAKES).index(way)}"]


def test_kdns_check_needs_none_of_the_files(tmp_path: Path) -> None:
    limits = ("apiserver_qps 0.5", "apiserver_burst 3", "apiserver_max_inflight 2")
    options = {
        "file": ("kubeconfig /nowhere/config", *limits),
        "context": ("kubeconfig nowhere admin@prod",),
        "tls": ("endpoint https://10.0.0.1:6443", "tls /nowhere/tls.crt /nowhere/tls.key /nowhere/ca.crt", *limits),
        "plain": ("endpoint http://10.0.0.1:8080 http://10.0.0.2:8080",),
        "pod": limits,
    }
    conf = tmp_path / "Corefile"
    conf.write_text(
        "".join(block(way, *lines) for way, lines in options.items())
        .replace("$dns", "53")
        .replace("    bind $addresses\n", "")
    )
    command = [sys.executable, "-m", "kdns", "check", str(conf)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no mistakes" in done.stdout
