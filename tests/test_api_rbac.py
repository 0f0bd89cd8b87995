"""Permissions: the roles in deploy/ allow what is used and no more; one that is missing is told, costs no answer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml

from tests.support import procs
from tests.support.apiserver import ApiServer
from tests.support.objects import endpoint, endpoint_slice, namespace, pod, service, service_import
from tests.support.server import API_COREFILE, READY_SECONDS, ROOT, Server

FOLDER = ROOT / "deploy" / "kubernetes"
ACCOUNT = {"kind": "ServiceAccount", "name": "kdns", "namespace": "kube-system"}
BASE, PODS, MULTICLUSTER = (
    "cluster/rbac.yaml", "components/pods-verified/rbac.yaml", "components/multicluster/rbac.yaml",
)  # fmt: skip
FILES = {BASE: "kdns", PODS: "kdns-pods", MULTICLUSTER: "kdns-multicluster"}
OF_NODES = {"components/node-autopath/rbac.yaml": "node-local-dns-pods"}
"""The roles of the files, by their path."""
GROUPS = {
    "services": "",
    "namespaces": "",
    "pods": "",
    "endpointslices": "discovery.k8s.io",
    "serviceimports": "multicluster.x-k8s.io",
}
KINDS = {
    "services": "Service",
    "namespaces": "Namespace",
    "pods": "Pod",
    "endpointslices": "EndpointSlice",
    "serviceimports": "ServiceImport",
}
EVERYTHING = "pods verified\nmulticluster clusterset.local"
COREFILE = API_COREFILE.replace("kubernetes cluster.local", "kubernetes cluster.local clusterset.local")
SOON = 3.0
"""Seconds within which a fault shows."""
RECOVERY = 8.0
"""Seconds within which a fault that is over is found to be."""

Permission = tuple[str, str, str]
"""API group, resource, verb."""


def documents(file: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / file).read_text()))


def allowed(*files: str) -> set[Permission]:
    """What the roles of these files allow."""
    rules = [
        rule for file in files for role in documents(file) if role["kind"] == "ClusterRole" for rule in role["rules"]
    ]
    assert all(rule.keys() == {"apiGroups", "resources", "verbs"} for rule in rules)
    return {each for rule in rules for each in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])}


def used(api: ApiServer) -> set[Permission]:
    """What was asked of the API server, in the terms of RBAC."""
    found = set()
    for request in api.requests():
        path = re.fullmatch(r"/(?:api|apis/([^/]+))/v[^/]+(?:/namespaces/[^/]+)?/([^/]+)", request.path)
        assert path is not None, request.path
        assert request.method == "GET"
        found.add((path[1] or "", path[2], "watch" if request.kind == "stream" else request.kind))
    return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("api"), authenticate=True) as api:
        api.install()
        api.create(
            namespace("shop"),
            service("web", "shop", ips=["10.96.0.1"]),
            endpoint_slice("web", [endpoint("10.1.0.1", hostname="a")], "shop"),
            pod("web-0", "shop", "10.1.0.1"),
            service_import("far", "shop", ips=["10.112.0.1"]),
        )
        yield api


@pytest.fixture
def api(shared: ApiServer) -> Iterator[ApiServer]:
    """Without any permission taken away, and nothing asked so far."""
    shared.forget_requests()
    yield shared
    shared.forbid()
    shared.settings(streaming="on")


class Start(Protocol):
    """Start a server with these options; wait until it is ready, or only until anything is answered."""

    def __call__(self, options: str, *, ready: bool = True) -> Server: ...


@pytest.fixture
def start(api: ApiServer, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(options: str, *, ready: bool = True) -> Server:
            lines = f"kubeconfig {api.kubeconfig(tmp_path / 'kubeconfig')}\nstartup_timeout 200ms\n{options}\n"
            server = Server(tmp_path / "kdns", corefile=COREFILE, kubernetes=lines)
            stack.callback(server.kill)
            server.start(wait=ready)
            wait_for_answers(server)
            return server

        yield start


def wait_for_answers(server: Server) -> None:
    procs.wait_until(server.answers, READY_SECONDS, "any answer")


# What the files say


def test_every_file_binds_its_role_to_the_service_account() -> None:
    files = FILES | OF_NODES
    assert {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("rbac*.yaml")} == files.keys()
    for file, name in files.items():
        component = "node" if file in OF_NODES else "cluster"
        labels = {"app.kubernetes.io/name": "kdns", "app.kubernetes.io/component": component}
        account = ACCOUNT | ({"name": "node-local-dns"} if file in OF_NODES else {})
        found = {item["kind"]: item for item in documents(file)}
        assert found.keys() - {"ServiceAccount"} == {"ClusterRole", "ClusterRoleBinding"}
        assert found["ClusterRole"]["metadata"] == {"name": name, "labels": labels}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
        binding = found["ClusterRoleBinding"]
        assert (binding["roleRef"], binding["subjects"]) == (role, [account])
        assert {item["apiVersion"] for item in found.values()} <= {"v1", "rbac.authorization.k8s.io/v1"}
    (made,) = (item for item in documents(BASE) if item["kind"] == "ServiceAccount")
    labels = {"app.kubernetes.io/name": "kdns", "app.kubernetes.io/component": "cluster"}
    assert {"kind": "ServiceAccount", **made["metadata"]} == ACCOUNT | {"labels": labels}


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ("", [BASE]),
        ("pods verified", [BASE, PODS]),
        ("multicluster clusterset.local", [BASE, MULTICLUSTER]),
        (EVERYTHING, list(FILES)),
        ("namespaces shop\n" + EVERYTHING, list(FILES)),
    ],
    ids=["plain", "pods", "multicluster", "everything", "one namespace"],
)
def test_the_roles_allow_exactly_what_is_used(api: ApiServer, start: Start, options: str, files: list[str]) -> None:
    api.settings(streaming="invalid")  # so that lists are asked for as lists, too
    server = start(options)
    assert server.texts("web.shop.svc.cluster.local") == ["10.96.0.1"]
    api.wait_watches(len(allowed(*files)) // 2)
    assert used(api) == allowed(*files)


def test_with_streaming_lists_nothing_but_watches_is_asked_for(api: ApiServer, start: Start) -> None:
    start(EVERYTHING)
    assert used(api) == {permission for permission in allowed(*FILES) if permission[2] == "watch"}


def test_a_role_without_endpointslices_is_enough_for_noendpoints(api: ApiServer, start: Start) -> None:
    start("noendpoints")
    assert {resource for _, resource, _ in used(api)} == {"services", "namespaces"}


# What happens without one


def rcode(server: Server, name: str) -> str:
    return server.query(name).rcode().name


NAMES = [
    "web.shop.svc.cluster.local",
    "nothing.shop.svc.cluster.local",
    "shop.svc.cluster.local",
    "10-1-0-1.shop.pod.cluster.local",
    "far.shop.svc.clusterset.local",
    "api.example.com.cluster.local",
]
KNOWN = ["NOERROR", "NXDOMAIN", "NOERROR", "NOERROR", "NOERROR", "NXDOMAIN"]


def told(server: Server, permission: str) -> list[str]:
    """The lines of the log that name a permission."""
    return [line for line in server.log.splitlines() if permission in line and "is not allowed" in line]


def errors(server: Server, resource: str) -> float:
    return server.metrics().value("kdns_kubernetes_watch_errors_total", kind=KINDS[resource], reason="forbidden")


def wait_until_known(server: Server) -> None:
    procs.wait_until(lambda: server.ready().status == 200, RECOVERY, "/ready")
    assert [rcode(server, name) for name in NAMES] == KNOWN


@pytest.mark.parametrize("resource", GROUPS)
def test_without_one_permission_nothing_is_answered_from_half_a_cluster(
    api: ApiServer, start: Start, resource: str
) -> None:
    api.forbid(f"/{resource}")
    server = start(EVERYTHING, ready=False)
    permission = f'watch of {resource} in API group "{GROUPS[resource]}"'
    procs.wait_until(lambda: bool(told(server, permission)), SOON, f"a line about {permission}")
    assert [rcode(server, name) for name in NAMES] == ["SERVFAIL"] * len(NAMES)
    assert (server.ready().status, server.health().status) == (503, 200)
    procs.wait_until(lambda: errors(server, resource) >= 2, SOON, "the metric counts on")
    assert [rcode(server, name) for name in NAMES] == ["SERVFAIL"] * len(NAMES)
    assert {other for other in GROUPS if errors(server, other)} == {resource}
    assert len(told(server, permission)) == 1  # however often it is tried
    assert len(api.requests(path=f"/{resource}")) < 10
    api.forbid()
    wait_until_known(server)


def test_the_message_names_the_namespace_to_which_the_permission_is_limited(api: ApiServer, start: Start) -> None:
    api.forbid("/services")
    api.settings(streaming="invalid")
    server = start("namespaces shop", ready=False)
    procs.wait_until(lambda: bool(told(server, 'services in API group "" in namespace shop')), SOON, "a line")


@pytest.mark.parametrize("resource", ["services", "endpointslices"])
def test_a_permission_that_is_taken_away_takes_no_answer_away(api: ApiServer, start: Start, resource: str) -> None:
    server = start(EVERYTHING)
    wait_until_known(server)
    api.forbid(f"/{resource}")
    api.break_watches()
    procs.wait_until(lambda: errors(server, resource) >= 2, SOON, "it is refused")
    assert [rcode(server, name) for name in NAMES] == KNOWN
    assert server.ready().status == 200
    assert server.metrics().value("kdns_kubernetes_data_age_seconds") > 0
    api.forbid()
    procs.wait_until(lambda: server.metrics().value("kdns_kubernetes_data_age_seconds") == 0, RECOVERY, "current data")


def test_after_a_restart_with_an_option_that_needs_another_permission_what_is_unknown_is_not_denied(
    api: ApiServer, start: Start
) -> None:
    server = start("")
    assert rcode(server, NAMES[0]) == "NOERROR"
    server.terminate()
    api.forbid("/pods")
    server.write_corefile(kubernetes=f"{server.lines['kubernetes']}pods verified")
    server.start(wait=False)
    wait_for_answers(server)
    procs.wait_until(lambda: bool(told(server, 'watch of pods in API group ""')), SOON, "a line")
    assert rcode(server, "web.shop.svc.cluster.local") == "NOERROR"
    assert rcode(server, "10-1-0-1.shop.pod.cluster.local") == "SERVFAIL"
    assert rcode(server, "nothing.shop.svc.cluster.local") == "SERVFAIL"
    api.update(service("web", "shop", ips=["10.96.0.77"]))
    procs.wait_until(
        lambda: server.texts("web.shop.svc.cluster.local") == ["10.96.0.77"], SOON, "what is known, as it is"
    )
    assert server.ready().status == 503
    api.forbid()
    procs.wait_until(lambda: server.ready().status == 200, RECOVERY, "/ready")
    assert rcode(server, "10-1-0-1.shop.pod.cluster.local") == "NOERROR"
    assert rcode(server, "nothing.shop.svc.cluster.local") == "NXDOMAIN"
