"""The test API server takes objects over HTTP as kube-apiserver does, and lets everybody do what their roles say."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import deploy, objects
from tests.support.apiserver import ApiServer
from tests.support.apiserver_store import BY_KIND, RESOURCES
from tests.support.apiserver_write import APPLY, MERGE
from tests.support.install import Client, RefusedError, path_of
from tests.support.objects import Object

CLUSTER = deploy.files("cluster/rbac.yaml", "cluster/kdns.yaml")
NODE = deploy.files("node/node-local-dns.yaml")
MAPS = "/api/v1/namespaces/shop/configmaps"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("api"), authenticate=True) as server:
        server.settings(writable=True, rbac=True)
        yield server


@pytest.fixture
def api(shared: ApiServer) -> ApiServer:
    """With two namespaces, and nothing else."""
    shared.restart("empty")
    shared.create(*(objects.namespace(name) for name in ("shop", "kube-system")))
    return shared


@pytest.fixture
def admin(api: ApiServer) -> Client:
    return Client(api)


def config_map(name: str = "settings", namespace: str = "shop", **data: Any) -> Object:
    return {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data,
    }  # fmt: skip


def plain(item: Object) -> Object:
    """Without what the API server adds."""
    kept = {"name", "namespace", "labels", "annotations"}
    return item | {"metadata": {name: value for name, value in item["metadata"].items() if name in kept}}


# Objects


def test_an_object_is_created_once_read_updated_and_deleted(admin: Client) -> None:
    code, made = admin.request("POST", MAPS, config_map(a="1"))
    assert (code, plain(made)) == (201, config_map(a="1"))
    code, refused = admin.request("POST", MAPS, config_map(a="2"))
    assert (code, refused["reason"]) == (409, "AlreadyExists")
    made["data"] = {"b": "2"}
    updated = admin.put(made)
    assert (plain(updated), updated["metadata"]["uid"]) == (config_map(b="2"), made["metadata"]["uid"])
    code, refused = admin.request("PUT", f"{MAPS}/settings", made)
    assert (code, refused["reason"]) == (409, "Conflict")
    assert admin.get("ConfigMap", "shop", "settings") == updated
    assert admin.request("DELETE", f"{MAPS}/settings")[0] == 200
    for method in ("GET", "PUT", "DELETE"):
        assert admin.request(method, f"{MAPS}/settings", None if method == "GET" else config_map())[0] == 404


def test_an_apply_takes_back_what_it_has_no_more_and_leaves_what_is_of_others(admin: Client) -> None:
    service = objects.service("web", "shop") | {"spec": {"ports": [{"port": 80}], "selector": {"app": "web"}}}
    made = admin.apply(service)
    assert made["spec"]["clusterIP"].startswith("10.96.")
    code, _ = admin.request("PATCH", path_of(service), {"spec": {"sessionAffinity": "ClientIP"}}, MERGE)
    assert code == 200
    del service["spec"]["selector"]
    again = admin.apply(service)
    assert again["spec"] == {"sessionAffinity": "ClientIP"} | {
        name: made["spec"][name] for name in ("clusterIP", "clusterIPs", "ports")
    }


def test_a_merge_patch_changes_and_removes_fields(admin: Client) -> None:
    admin.request("POST", MAPS, config_map(a="1", b="2"))
    code, found = admin.request("PATCH", f"{MAPS}/settings", {"data": {"a": None, "c": "3"}}, MERGE)
    assert (code, found["data"]) == (200, {"b": "2", "c": "3"})


@pytest.mark.parametrize(
    ("method", "path", "body", "kind", "code", "message"),
    [
        ("POST", MAPS, config_map(a=1), "", 400, "data"),
        ("POST", MAPS, config_map() | {"dat": {}}, "", 400, "dat"),
        ("POST", MAPS, config_map(namespace="other"), "", 400, "namespace of the object"),
        ("POST", MAPS.replace("shop", "none"), config_map(namespace="none"), "", 404, 'namespaces "none" not found'),
        ("POST", MAPS, config_map() | {"kind": "Secret"}, "", 400, "kind"),
        ("POST", MAPS, config_map("") | {}, "", 422, "name"),
        ("POST", MAPS, [], "", 400, "no object"),
        ("POST", f"{MAPS}/settings", config_map(), "", 405, "method"),
        ("DELETE", MAPS, None, "", 405, "method"),
        ("PUT", f"{MAPS}/other", config_map(), "", 404, "not found"),
        ("PATCH", f"{MAPS}/settings?fieldManager=a", config_map("other"), APPLY, 400, "name of the object"),
        ("PATCH", f"{MAPS}/settings", config_map(), APPLY, 400, "fieldManager"),
        ("PATCH", f"{MAPS}/here", {}, "application/strategic-merge-patch+json", 415, MERGE),
        ("POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/clusterroles", {}, "", 404, ""),
        ("POST", "/api/v1/configmaps", config_map(), "", 400, "namespace"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused(
    admin: Client, method: str, path: str, body: Any, kind: str, code: int, message: str
) -> None:
    admin.request("POST", MAPS, config_map("here"))
    found, status = _text(admin, method, path, body, kind or "application/json")
    assert (found, message in status) == (code, True), status


def _text(admin: Client, method: str, path: str, body: Any, kind: str) -> tuple[int, str]:
    try:
        code, found = admin.request(method, path, body, kind)
    except ValueError:  # "404 page not found"
        return 404, ""
    return code, str(found["message"])


# Roles


def role(name: str, rules: list[Object], namespace: str = "") -> list[Object]:
    """A role and its binding to the service account `kube-system/kdns`: of the whole cluster, or of one namespace."""
    kind = "Role" if namespace else "ClusterRole"
    group = "rbac.authorization.k8s.io"
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    subject = {"kind": "ServiceAccount", "name": "kdns", "namespace": "kube-system"}
    reference = {"apiGroup": group, "kind": kind, "name": name}
    return [
        {"apiVersion": f"{group}/v1", "kind": kind, "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": f"{kind}Binding",
            "metadata": metadata,
            "roleRef": reference,
            "subjects": [subject],
        },
    ]


def allowed(api: ApiServer) -> set[tuple[str, str]]:
    """Resources and verbs that kdns's service account is not refused."""
    asks: dict[str, Callable[[Client, str, str], tuple[int, Any]]] = {
        "get": lambda client, root, plural: client.request("GET", f"{root}/{plural}/x"),
        "list": lambda client, root, plural: client.request("GET", f"{root}/{plural}"),
        "watch": lambda client, root, plural: client.request("GET", f"{root}/{plural}", resourceVersion="x", watch="1"),
        "create": lambda client, root, plural: client.request("POST", f"{root}/{plural}", {}),
        "update": lambda client, root, plural: client.request("PUT", f"{root}/{plural}/x", {}),
        "patch": lambda client, root, plural: client.request("PATCH", f"{root}/{plural}/x", {}, APPLY),
        "delete": lambda client, root, plural: client.request("DELETE", f"{root}/{plural}/x"),
    }
    client = Client(api, api.token)
    found = set()
    for resource in RESOURCES:
        for verb, ask in asks.items() if not resource.custom else ():
            root = resource.root
            if resource.namespaced and verb not in ("list", "watch"):
                root += "/namespaces/shop"
            if ask(client, root, resource.plural)[0] != 403:
                found.add((resource.plural, verb))
    return found


def test_an_account_may_do_what_the_manifests_roles_say_and_nothing_else(api: ApiServer, admin: Client) -> None:
    assert allowed(api) == set()
    admin.install(CLUSTER.values())
    kinds = ("services", "namespaces", "endpointslices")
    assert allowed(api) == {(kind, verb) for kind in kinds for verb in ("list", "watch")}
    code, refused = Client(api, api.token).request("GET", "/api/v1/configmaps")
    who = 'User "system:serviceaccount:kube-system:kdns"'
    what = 'cannot list resource "configmaps" in API group "" at the cluster scope'
    assert (code, refused["message"]) == (403, f"configmaps is forbidden: {who} {what}")
    admin.request("DELETE", path_of(next(item for key, item in CLUSTER.items() if key[0] == "ClusterRoleBinding")))
    assert allowed(api) == set()


def test_a_role_in_a_namespace_allows_nothing_elsewhere(api: ApiServer, admin: Client) -> None:
    admin.install(role("one", [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}], "shop"))
    client = Client(api, api.token)
    assert client.request("GET", MAPS)[0] == 200
    assert client.request("GET", MAPS.replace("shop", "kube-system"))[0] == 403
    assert client.request("GET", "/api/v1/configmaps")[0] == 403


def test_names_in_a_rule_are_of_single_objects(api: ApiServer, admin: Client) -> None:
    names = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"], "resourceNames": ["here"]}
    admin.install([*role("one", [names]), config_map("here"), config_map("there")])
    client = Client(api, api.token)
    assert [client.request("GET", f"{MAPS}/{name}")[0] for name in ("here", "there")] == [200, 403]
    assert client.request("GET", MAPS)[0] == 403


# Manifests


def test_every_object_of_the_manifests_is_taken_to_its_place(admin: Client) -> None:
    for item in (*CLUSTER.values(), *NODE.values()):
        made = admin.apply(item)
        stored = admin.get(item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"])
        assert stored == made
        if item["kind"] == "Service":
            made["spec"] = {name: value for name, value in made["spec"].items() if name in item["spec"]}
        assert plain(made) == item


def test_a_misspelt_field_is_refused(admin: Client) -> None:
    found = deploy.files("cluster/kdns.yaml")["Deployment", "kube-system", "kdns"]
    found["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(RefusedError, match="livenesProbe"):
        admin.apply(found)


@pytest.mark.parametrize("server_side", [True, False])
def test_kubectl_installs_the_same(
    api: ApiServer, tmp_path: Path, needs: Callable[..., None], server_side: bool
) -> None:
    kubectl = "kubectl"  # not of Debian
    needs(kubectl)
    kubeconfig = api.kubeconfig(tmp_path / "config")
    kubeconfig.write_text(kubeconfig.read_text().replace(api.token, api.admin))
    for folder in ("cluster", "node"):
        options = ["--validate=false", *(["--server-side"] if server_side else [])]
        command = [kubectl, "apply", *options, "-k", str(deploy.FOLDER / folder)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"KUBECONFIG": str(kubeconfig)})
        assert done.returncode == 0, done.stderr
    for kind, namespace, name in (*CLUSTER, *NODE):
        found = api.find(kind, namespace, name)
        wanted = (CLUSTER | NODE)[kind, namespace, name]
        assert {part: found.get(part) for part in ("data", "rules", "subjects")} == {
            part: wanted.get(part) for part in ("data", "rules", "subjects")
        }
        assert BY_KIND[kind].namespaced == bool(namespace)
