"""The test API server behaves as kube-apiserver does, and fails as it is told to.

What it does right is judged by the `kubernetes` client and its Watch, what it does wrong by bare sockets.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes.client
import kubernetes.config
import kubernetes.config.incluster_config
import kubernetes.watch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import objects, procs
from tests.support.apiserver import ApiServer, ApiServerError
from tests.support.apiserver_store import SelectorError, label_selector

SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
IMPORTS = "/apis/multicluster.x-k8s.io/v1alpha1/serviceimports"
STREAM = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"
BROKEN = (http.client.IncompleteRead, http.client.RemoteDisconnected, ssl.SSLError, ConnectionError)
"""What a client sees when a connection breaks. With TLS, Python tells a RST from a FIN only at times."""
Start = Callable[..., ApiServer]
Event = tuple[str, str]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers with ApiServer's options; all end with the test."""
    servers: list[ApiServer] = []

    def begin(**options: Any) -> ApiServer:
        servers.append(ApiServer(tmp_path / f"api{len(servers)}", **options))
        return servers[-1].start()

    try:
        yield begin
    finally:
        for server in servers:
            server.kill()


@pytest.fixture
def api(start: Start) -> ApiServer:
    """A server with TLS that lets everybody in."""
    return start()


@pytest.fixture
def plain(start: Start) -> ApiServer:
    """The same without TLS, for bare sockets."""
    return start(tls=False)


def client(api: ApiServer, user: str = "token") -> Any:
    """The package's client."""
    configuration = kubernetes.client.Configuration()
    path = str(api.kubeconfig(api.folder / f"config-{user}", user))
    kubernetes.config.load_kube_config(path, client_configuration=configuration)
    configuration.retries = False
    return kubernetes.client.ApiClient(configuration)


def core(api: ApiServer, user: str = "token") -> Any:
    return kubernetes.client.CoreV1Api(client(api, user))


def names(found: Any) -> list[str]:
    return [item.metadata.name for item in found.items]


def connect(api: ApiServer, timeout: float = 3.0) -> http.client.HTTPConnection:
    if not api.tls:
        return http.client.HTTPConnection(api.host, api.port, timeout=timeout)
    context = ssl.create_default_context(cadata=api.ca_pem.decode())
    return http.client.HTTPSConnection(api.host, api.port, timeout=timeout, context=context)


def get(api: ApiServer, path: str, **headers: str) -> tuple[int, Any]:
    """Status and JSON (or text) of a GET on a connection of its own."""
    connection = connect(api)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        body = response.read()
        return response.status, json.loads(body) if body.startswith(b"{") else body.decode()
    finally:
        connection.close()


def status(connection: http.client.HTTPConnection) -> int:
    """The status of a list on an open connection."""
    connection.request("GET", SERVICES)
    return connection.getresponse().status


class Watching:
    """An open watch, read line by line."""

    def __init__(self, api: ApiServer, query: str, path: str = SERVICES, timeout: float = 3.0) -> None:
        self.connection = connect(api, timeout)
        self.connection.request("GET", f"{path}?{query}")
        self.response = self.connection.getresponse()

    def line(self) -> bytes:
        return self.response.readline()

    def next(self) -> Any:
        """The next event; None at a clean end."""
        line = self.line()
        return json.loads(line) if line else None

    def events(self, count: int) -> list[Event]:
        """Type and name of the next events."""
        found = [self.next() for _ in range(count)]
        return [(event["type"], event["object"]["metadata"].get("name", "")) for event in found]


@pytest.fixture
def watching() -> Iterator[Callable[..., Watching]]:
    """Open watches with Watching's parameters; all are closed with the test."""
    found: list[Watching] = []

    def begin(*arguments: Any, **options: Any) -> Watching:
        found.append(Watching(*arguments, **options))
        return found[-1]

    yield begin
    for watch in found:
        watch.response.close()
        watch.connection.close()


Watch = Callable[..., Watching]


@pytest.fixture
def wire() -> Iterator[Callable[..., socket.socket]]:
    """A TCP connection on which a request was sent."""
    found: list[socket.socket] = []

    def begin(api: ApiServer, target: str) -> socket.socket:
        found.append(socket.create_connection((api.host, api.port), 3.0))
        found[-1].sendall(f"GET {target} HTTP/1.1\r\nHost: api\r\n\r\n".encode())
        return found[-1]

    yield begin
    for sock in found:
        sock.close()


Wire = Callable[..., socket.socket]


def until(sock: socket.socket, end: bytes) -> bytes:
    """Read up to and with an end that has to come."""
    data = b""
    while not data.endswith(end):
        part = sock.recv(1 << 16)
        assert part, f"closed after {data!r}"
        data += part
    return data


def rest(sock: socket.socket) -> bytes:
    """Read until the peer closes."""
    data = b""
    while part := sock.recv(1 << 16):
        data += part
    return data


# Lists


def test_a_list_has_the_revision_of_the_last_change_and_items_without_kind(api: ApiServer) -> None:
    written = api.create(objects.service("web"), objects.namespace("default"))
    status, found = get(api, SERVICES)
    assert status == 200
    assert (found["kind"], found["apiVersion"]) == ("ServiceList", "v1")
    assert found["metadata"] == {"resourceVersion": str(written[1].revision)}
    (item,) = found["items"]
    assert "kind" not in item
    assert item["metadata"]["resourceVersion"] == str(written[0].revision)
    assert item["metadata"]["uid"]
    assert item["spec"] == objects.service("web")["spec"]


def test_the_client_reads_every_kind(api: ApiServer) -> None:
    api.create(
        objects.service("web"),
        objects.namespace("default"),
        objects.pod("web-1", "default", "10.1.0.1"),
        objects.endpoint_slice("web", [objects.endpoint("10.1.0.1")]),
    )
    found = core(api)
    assert names(found.list_service_for_all_namespaces()) == ["web"]
    assert names(found.list_pod_for_all_namespaces()) == ["web-1"]
    (space,) = found.list_namespace().items
    assert space.metadata.labels == {"kubernetes.io/metadata.name": "default"}
    assert space.status.phase == "Active"
    slices = kubernetes.client.DiscoveryV1Api(client(api)).list_endpoint_slice_for_all_namespaces()
    assert slices.items[0].endpoints[0].addresses == ["10.1.0.1"]


def test_a_namespaced_list_and_a_single_object(api: ApiServer) -> None:
    api.create(objects.service("web", "a"), objects.service("web", "b"))
    found = core(api)
    assert [item.metadata.namespace for item in found.list_namespaced_service("b").items] == ["b"]
    assert found.read_namespaced_service("web", "a").kind == "Service"
    assert get(api, "/api/v1/namespaces/a/services/none")[1]["reason"] == "NotFound"


def test_paths_that_are_not_there(api: ApiServer) -> None:
    for path in ("/", "/api/v1/secrets", "/apis/discovery.k8s.io/v1/services", "/api/v1/services/web"):
        assert get(api, path) == (404, "404 page not found\n")
    assert get(api, "/livez") == (200, "ok")
    assert get(api, "/version")[1]["major"] == "1"


def test_only_get_is_allowed(api: ApiServer) -> None:
    with pytest.raises(kubernetes.client.ApiException) as caught:
        core(api).create_namespace(objects.namespace("new"))
    assert caught.value.status == 405


def test_a_custom_resource_is_absent_until_installed(api: ApiServer, watching: Watch) -> None:
    api.create(objects.service_import("web"))
    assert get(api, IMPORTS)[0] == 404
    assert get(api, f"{IMPORTS}?watch=1")[0] == 404
    api.install()
    _, found = get(api, IMPORTS)
    assert (found["items"][0]["kind"], found["items"][0]["spec"]["type"]) == ("ServiceImport", "ClusterSetIP")
    watch = watching(api, "watch=1", IMPORTS)
    assert watch.events(1) == [("ADDED", "web")]
    api.wait_watches(1)
    api.uninstall()
    assert watch.next() is None
    assert get(api, IMPORTS)[0] == 404


def test_pages_show_one_revision_whatever_changes_meanwhile(api: ApiServer) -> None:
    api.create(*(objects.service(f"s{number}") for number in range(5)))
    services = core(api)
    first = services.list_service_for_all_namespaces(limit=2)
    assert (names(first), first.metadata.remaining_item_count) == (["s0", "s1"], 3)
    api.delete(objects.service("s2"))
    api.create(objects.service("s22"))
    second = services.list_service_for_all_namespaces(limit=2, _continue=first.metadata._continue)
    assert names(second) == ["s2", "s3"]
    assert second.metadata.resource_version == first.metadata.resource_version
    last = services.list_service_for_all_namespaces(limit=2, _continue=second.metadata._continue)
    assert (names(last), last.metadata._continue) == (["s4"], None)
    assert names(services.list_service_for_all_namespaces()) == ["s0", "s1", "s22", "s3", "s4"]


def test_pages_of_a_selection_do_not_say_what_remains(api: ApiServer) -> None:
    api.create(*(objects.service(f"s{number}", labels={"odd": str(number % 2)}) for number in range(5)))
    first = core(api).list_service_for_all_namespaces(limit=1, label_selector="odd=1")
    assert (names(first), first.metadata.remaining_item_count) == (["s1"], None)
    assert first.metadata._continue


def test_a_continue_token_expires_and_its_answer_has_another(api: ApiServer) -> None:
    api.create(*(objects.service(f"s{number}") for number in range(4)))
    _, first = get(api, f"{SERVICES}?limit=2")
    api.create(objects.service("s9"))
    api.compact()
    status, found = get(api, f"{SERVICES}?limit=2&continue={first['metadata']['continue']}")
    assert (status, found["reason"], found["code"]) == (410, "Expired", 410)
    _, found = get(api, f"{SERVICES}?continue={found['metadata']['continue']}")
    assert [item["metadata"]["name"] for item in found["items"]] == ["s2", "s3", "s9"]
    assert get(api, f"{SERVICES}?continue=nonsense")[0] == 400


def test_a_list_from_the_watch_cache_has_no_pages(api: ApiServer) -> None:
    api.create(*(objects.service(f"s{number}") for number in range(3)))
    assert len(get(api, f"{SERVICES}?limit=1&resourceVersion=0")[1]["items"]) == 3


def test_a_list_of_an_exact_revision(api: ApiServer) -> None:
    first, second = api.create(objects.service("a"), objects.service("b"))
    exact = f"{SERVICES}?resourceVersionMatch=Exact&resourceVersion={first.revision}"
    status, found = get(api, exact)
    assert (status, [item["metadata"]["name"] for item in found["items"]]) == (200, ["a"])
    assert len(get(api, exact.replace("Exact", "NotOlderThan"))[1]["items"]) == 2
    assert len(get(api, f"{SERVICES}?limit=5&resourceVersion={first.revision}")[1]["items"]) == 1
    api.compact(second.revision)
    assert get(api, exact)[1]["reason"] == "Expired"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("resourceVersionMatch=Exact", 422),
        ("resourceVersionMatch=Exact&resourceVersion=0", 422),
        ("resourceVersionMatch=Older&resourceVersion=5", 422),
        ("sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion=1", 422),
        ("watch=1&resourceVersionMatch=NotOlderThan", 422),
        ("watch=1&sendInitialEvents=true", 422),
        ("resourceVersion=x", 400),
        ("limit=-1", 400),
        ("watch=1&resourceVersion=x", 400),
        ("labelSelector=a%20b", 400),
        ("fieldSelector=spec.type%3DClusterIP", 400),
        ("fieldSelector=name", 400),
    ],
)
def test_parameters_that_are_refused(api: ApiServer, query: str, code: int) -> None:
    status, found = get(api, f"{SERVICES}?{query}")
    assert (status, found["kind"], found["code"]) == (code, "Status", code)


def test_a_revision_of_the_future_is_too_large(api: ApiServer) -> None:
    status, found = get(api, f"{SERVICES}?resourceVersion=999999")
    assert (status, found["reason"]) == (504, "Timeout")
    assert found["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("app=web", ["web"]),
        ("app==web", ["web"]),
        ("app!=web", ["bare", "db"]),
        ("app", ["db", "web"]),
        ("!app", ["bare"]),
        ("app in (web, db)", ["db", "web"]),
        ("app notin (web)", ["bare", "db"]),
        ("app,tier=front", ["web"]),
        ("example.com/a-b=c.d_e", ["db"]),
        ("app in (web,db),!tier", ["db"]),
        ("app=", []),
    ],
)
def test_label_selectors(api: ApiServer, selector: str, expected: list[str]) -> None:
    api.create(
        objects.service("web", labels={"app": "web", "tier": "front"}),
        objects.service("db", labels={"app": "db", "example.com/a-b": "c.d_e"}),
        objects.service("bare"),
    )
    assert names(core(api).list_service_for_all_namespaces(label_selector=selector)) == expected


@given(
    st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz")),
    st.sampled_from("abc"),
    st.sets(st.sampled_from("xyz"), min_size=1),
)
def test_opposite_selectors_select_the_opposite(labels: dict[str, str], key: str, values: set[str]) -> None:
    inside, outside = (label_selector(f"{key} {word} ({', '.join(values)})") for word in ("in", "notin"))
    assert inside is not None
    assert outside is not None
    assert inside(labels) is not outside(labels)
    assert inside(labels) is (labels.get(key) in values)


@given(st.text(max_size=20))
def test_a_selector_is_understood_or_refused(text: str) -> None:
    try:
        found = label_selector(text)
    except SelectorError:
        return
    assert found is None or found({}) in (True, False)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("status.phase=Running", ["a", "b"]),
        ("status.phase!=Running", ["c"]),
        ("status.phase!=Failed,status.phase!=Succeeded,metadata.namespace=x", ["a"]),
        ("metadata.name==b", ["b"]),
    ],
)
def test_field_selectors(api: ApiServer, selector: str, expected: list[str]) -> None:
    api.create(
        objects.pod("a", "x", "10.0.0.1"),
        objects.pod("b", "y", "10.0.0.2"),
        objects.pod("c", "x", "10.0.0.3", phase="Failed"),
    )
    assert names(core(api).list_pod_for_all_namespaces(field_selector=selector)) == expected


# Watches


def test_the_client_watches_from_a_list(api: ApiServer) -> None:
    services = core(api)
    api.create(objects.service("old"))
    version = services.list_service_for_all_namespaces().metadata.resource_version
    api.create(objects.service("web"))
    api.update(objects.service("web", ips=["10.96.0.77"]))
    api.delete(objects.service("web"))
    watch = kubernetes.watch.Watch()
    found = list(watch.stream(services.list_service_for_all_namespaces, resource_version=version, timeout_seconds=1))
    assert [event["type"] for event in found] == ["ADDED", "MODIFIED", "DELETED"]
    assert {event["object"].metadata.name for event in found} == {"web"}
    versions = [int(event["object"].metadata.resource_version) for event in found]
    assert versions == [int(version) + 1, int(version) + 2, int(version) + 3]
    assert found[2]["object"].spec.cluster_ip == "10.96.0.77"
    assert found[0]["raw_object"]["kind"] == "Service"


def test_a_watch_without_a_version_begins_with_what_is_there(api: ApiServer, watching: Watch) -> None:
    api.create(objects.service("a"), objects.service("b"))
    for query in ("watch=true", "watch=1&resourceVersion=0"):
        assert watching(api, query).events(2) == [("ADDED", "a"), ("ADDED", "b")]
    api.wait_watches(2)


def test_an_open_watch_is_sent_what_changes(api: ApiServer, watching: Watch) -> None:
    watch = watching(api, "watch=1&resourceVersion=" + str(api.revision))
    api.wait_watches(1)
    before = time.monotonic()
    written = api.write(
        ("create", objects.service("a")),
        ("create", objects.namespace("elsewhere")),
        ("delete", objects.service("a")),
        ("create", objects.service("a")),
    )
    found = [watch.next() for _ in range(3)]
    after = time.monotonic()
    assert [event["type"] for event in found] == ["ADDED", "DELETED", "ADDED"]
    assert [int(event["object"]["metadata"]["resourceVersion"]) for event in found] == [
        written[0].revision,
        written[2].revision,
        written[3].revision,
    ]
    assert found[0]["object"]["metadata"]["uid"] != found[2]["object"]["metadata"]["uid"]
    assert before < written[0].time <= written[3].time < after


def test_an_object_that_is_changed_keeps_its_uid(api: ApiServer) -> None:
    api.create(objects.service("a"))
    services = core(api)
    uid = services.read_namespaced_service("a", "default").metadata.uid
    api.apply(objects.service("a", ips=()))
    assert services.read_namespaced_service("a", "default").metadata.uid == uid


@pytest.mark.parametrize("live", [True, False])
def test_an_object_that_starts_or_stops_to_match_is_added_or_deleted(
    api: ApiServer, watching: Watch, live: bool
) -> None:
    query = f"watch=1&labelSelector=app%3Dweb&resourceVersion={api.revision}"
    changes = [
        ("create", objects.service("s", labels={"app": "db"})),
        ("update", objects.service("s", labels={"app": "web"}, ips=["10.96.0.1"])),
        ("update", objects.service("s", labels={"app": "web"}, ips=["10.96.0.2"])),
        ("update", objects.service("s", labels={"app": "db"}, ips=["10.96.0.3"])),
        ("delete", objects.service("s")),
    ]
    if live:
        watch = watching(api, query)
        api.wait_watches(1)
    written = api.write(*changes)
    if not live:
        watch = watching(api, query)
    found = [watch.next() for _ in range(3)]
    assert [event["type"] for event in found] == ["ADDED", "MODIFIED", "DELETED"]
    last = found[2]["object"]
    assert (last["spec"]["clusterIP"], last["metadata"]["resourceVersion"]) == ("10.96.0.2", str(written[3].revision))


def test_a_watch_of_one_namespace(api: ApiServer, watching: Watch) -> None:
    watch = watching(api, f"watch=1&resourceVersion={api.revision}", "/api/v1/namespaces/b/services")
    api.create(objects.service("web", "a"), objects.service("web", "b"))
    assert watch.next()["object"]["metadata"]["namespace"] == "b"


def test_a_compacted_version_is_gone(api: ApiServer, watching: Watch) -> None:
    old = api.revision
    api.create(objects.service("a"))
    services = core(api)
    assert watching(api, f"watch=1&resourceVersion={old}").events(1) == [("ADDED", "a")]
    api.compact()
    with pytest.raises(kubernetes.client.ApiException) as caught:
        list(kubernetes.watch.Watch().stream(services.list_service_for_all_namespaces, resource_version=str(old)))
    assert (caught.value.status, "Expired: too old resource version" in caught.value.reason) == (410, True)
    watch = watching(api, f"watch=1&resourceVersion={old}")
    event = watch.next()
    assert (event["type"], event["object"]["code"], watch.next()) == ("ERROR", 410, None)
    api.settings(gone="status")
    assert get(api, f"{SERVICES}?watch=1&resourceVersion={old}")[1]["reason"] == "Expired"
    assert watching(api, f"watch=1&resourceVersion={api.revision}").response.status == 200


def test_a_watch_ends_in_time_and_its_connection_goes_on(api: ApiServer, watching: Watch) -> None:
    watch = watching(api, "watch=1&timeoutSeconds=1")
    start = time.monotonic()
    assert watch.next() is None
    assert 0.8 < time.monotonic() - start < 2
    watch.connection.request("GET", SERVICES)
    assert watch.connection.getresponse().status == 200
    assert {record.connection for record in api.requests()} == {1}
    api.settings(watch_seconds=0.1)
    assert watching(api, "watch=1&timeoutSeconds=100").next() is None


def test_bookmarks_come_to_those_who_asked(api: ApiServer, watching: Watch) -> None:
    asked = watching(api, "watch=1&allowWatchBookmarks=true")
    unasked = watching(api, "watch=1")
    ahead = watching(api, f"watch=1&allowWatchBookmarks=true&resourceVersion={api.revision + 5}")
    api.wait_watches(3)
    (written,) = api.create(objects.namespace("n"))
    api.settings(bookmark_seconds=0.05)
    event = asked.next()
    assert (event["type"], event["object"]["kind"]) == ("BOOKMARK", "Service")
    assert event["object"]["metadata"]["resourceVersion"] == str(written.revision)
    assert asked.next()["type"] == "BOOKMARK"
    api.settings(bookmark_seconds=60)
    api.create(objects.service("a"))
    assert unasked.events(1) == [("ADDED", "a")]
    api.create(*(objects.service(f"b{number}") for number in range(4)))
    assert ahead.events(1) == [("ADDED", "b3")]


def test_a_bookmark_on_command(api: ApiServer, watching: Watch) -> None:
    watch = watching(api, "watch=1&allowWatchBookmarks=1")
    api.wait_watches(1)
    assert api.bookmark() == 1
    assert watch.next()["object"]["metadata"]["resourceVersion"] == str(api.revision)
    assert api.bookmark_at(7) == 1
    assert watch.next()["object"]["metadata"]["resourceVersion"] == "7"


def test_a_streaming_list_ends_with_its_bookmark_and_goes_on_as_a_watch(api: ApiServer, watching: Watch) -> None:
    api.create(objects.service("a", labels={"app": "x"}), objects.service("b"))
    (last,) = api.create(objects.namespace("n"))
    watch = watching(api, f"{STREAM}&allowWatchBookmarks=true&labelSelector=app%3Dx")
    assert watch.events(1) == [("ADDED", "a")]
    end = watch.next()
    assert (end["type"], end["object"]["metadata"]["annotations"]) == (
        "BOOKMARK",
        {"k8s.io/initial-events-end": "true"},
    )
    assert end["object"]["metadata"]["resourceVersion"] == str(last.revision)
    api.create(objects.service("c", labels={"app": "x"}))
    assert watch.events(1) == [("ADDED", "c")]
    api.wait_watches(1)
    api.bookmark()
    assert "annotations" not in watch.next()["object"]["metadata"]
    assert [record.kind for record in api.requests()] == ["stream"]


def test_a_streaming_list_of_the_future_is_an_error_event(api: ApiServer, watching: Watch) -> None:
    event = watching(api, f"{STREAM}&resourceVersion=999999").next()
    assert (event["type"], event["object"]["code"]) == ("ERROR", 504)


@pytest.mark.parametrize(("mode", "code"), [("invalid", 422), ("bad_request", 400)])
def test_a_server_without_streaming_lists_refuses_them(api: ApiServer, mode: str, code: int) -> None:
    api.settings(streaming=mode)
    assert get(api, f"{SERVICES}?{STREAM}&allowWatchBookmarks=true")[0] == code


def test_a_server_that_does_not_know_streaming_lists_sends_no_end(api: ApiServer, watching: Watch) -> None:
    api.create(objects.service("a"))
    api.settings(streaming="ignored", bookmark_seconds=0.05)
    watch = watching(api, f"{STREAM}&allowWatchBookmarks=true")
    assert watch.events(1) == [("ADDED", "a")]
    event = watch.next()
    assert (event["type"], "annotations" in event["object"]["metadata"]) == ("BOOKMARK", False)


def test_each_event_is_a_chunk(plain: ApiServer, wire: Wire) -> None:
    plain.create(objects.service("a"), objects.service("b"))
    sock = wire(plain, f"{SERVICES}?watch=1")
    head, _, body = until(sock, b"}\n\r\n").partition(b"\r\n\r\n")
    plain.wait_watches(1)
    assert b"Transfer-Encoding: chunked" in head
    plain.create(objects.service("c"))
    body += until(sock, b"}\n\r\n") if body.count(b"\r\n") < 6 else b""
    for name in ("a", "b", "c"):
        size, _, body = body.partition(b"\r\n")
        chunk, body = body[: int(size, 16)], body[int(size, 16) :]
        assert json.loads(chunk)["object"]["metadata"]["name"] == name
        assert chunk.endswith(b"}\n")
        assert body.startswith(b"\r\n")
        body = body[2:]


def test_operations_that_cannot_be_done(api: ApiServer) -> None:
    api.create(objects.service("a"))
    for operation, name in (("create", "a"), ("update", "b"), ("delete", "b"), ("patch", "a")):
        with pytest.raises(ApiServerError, match=operation):
            api.write((operation, objects.service(name)))
    assert names(core(api).list_service_for_all_namespaces()) == ["a"]


def test_objects_as_large_as_real_ones(api: ApiServer) -> None:
    api.create(objects.service("a"))
    api.managed_fields()
    api.create(objects.service("b"))
    small, large = core(api).list_service_for_all_namespaces().items
    assert small.metadata.managed_fields is None
    assert large.metadata.managed_fields[0].manager == "kube-controller-manager"


# Credentials


@pytest.mark.parametrize("user", ["token", "tokenFile", "cert", "cert-data", "exec"])
def test_a_kubeconfig_lets_the_client_in(start: Start, user: str) -> None:
    api = start(authenticate=True)
    assert core(api, user).list_service_for_all_namespaces().items == []
    who = "kdns" if user.startswith("cert") else "system:serviceaccount:kube-system:kdns"
    assert [record.user for record in api.requests("list")] == [who]
    assert api.exec_calls == (user == "exec")


def test_nobody_is_let_in_without_a_credential(start: Start) -> None:
    api = start(authenticate=True)
    assert get(api, SERVICES)[1]["reason"] == "Unauthorized"
    assert get(api, SERVICES, Authorization="Bearer wrong")[0] == 401
    assert get(api, SERVICES, Authorization=f"Bearer {api.token}")[0] == 200
    assert get(api, "/livez")[0] == 200
    api.settings(authenticate=False)
    assert get(api, SERVICES)[0] == 200
    assert get(api, SERVICES, Authorization="Bearer wrong")[0] == 401


def test_a_service_account_lets_the_client_in(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    api = start(authenticate=True)
    folder = tmp_path / "account"
    loader = kubernetes.config.incluster_config.InClusterConfigLoader(
        str(folder / "token"), str(folder / "ca.crt"), environ=api.service_account(folder)
    )
    configuration = kubernetes.client.Configuration()
    loader.load_and_set(configuration)
    services = kubernetes.client.CoreV1Api(kubernetes.client.ApiClient(configuration))
    assert services.list_service_for_all_namespaces().items == []
    assert (folder / "namespace").read_text() == "kube-system"


def test_a_rotated_token_is_in_the_files_and_the_old_one_is_refused(
    start: Start, watching: Watch, tmp_path: Path
) -> None:
    api = start()
    api.service_account(tmp_path / "account")
    exec_plugin = core(api, "exec")
    exec_plugin.list_service_for_all_namespaces()
    watch = watching(api, "watch=1")
    api.wait_watches(1)
    old = api.token
    new = api.rotate()
    assert (tmp_path / "account" / "token").read_text() == new
    assert get(api, SERVICES, Authorization=f"Bearer {old}")[0] == 401
    assert get(api, SERVICES, Authorization=f"Bearer {new}")[0] == 200
    assert core(api, "exec").list_service_for_all_namespaces().items == []
    api.create(objects.service("a"))
    assert watch.events(1) == [("ADDED", "a")]
    kept = api.rotate(keep_old=True)
    assert [get(api, SERVICES, Authorization=f"Bearer {token}")[0] for token in (new, kept)] == [200, 200]
    api.set_tokens({})
    assert get(api, SERVICES, Authorization=f"Bearer {kept}")[0] == 401


def test_the_exec_plugin_prints_a_credential(api: ApiServer) -> None:
    document = api.kubeconfig(api.folder / "config", "exec").read_text()
    assert "client.authentication.k8s.io/v1" in document
    done = subprocess.run([api.folder / "exec-plugin"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["status"]["token"] == api.token


def test_a_certificate_of_another_ca_is_not_trusted(start: Start) -> None:
    api, other = start(authenticate=True), start()
    certificate, key = other.client_certificate()
    context = ssl.create_default_context(cadata=api.ca_pem.decode())
    context.load_cert_chain(certificate, key)
    connection = http.client.HTTPSConnection(api.host, api.port, timeout=3, context=context)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        status(connection)
    connection.close()


def serial(api: ApiServer, ca: bytes) -> str:
    """The serial number of the server's certificate."""
    context = ssl.create_default_context(cadata=ca.decode())
    with (
        socket.create_connection((api.host, api.port), 3) as sock,
        context.wrap_socket(sock, server_hostname=api.host) as secure,
    ):
        found = secure.getpeercert()
    assert found is not None
    return str(found["serialNumber"])


def test_the_server_certificate_can_be_exchanged(api: ApiServer, watching: Watch, tmp_path: Path) -> None:
    api.service_account(tmp_path)
    watch = watching(api, "watch=1")
    ca = api.ca_pem
    first = serial(api, ca)
    assert serial(api, ca) == first
    api.new_certificate()
    assert serial(api, ca) != first
    api.new_certificate(new_ca=True)
    with pytest.raises(ssl.SSLCertVerificationError):
        serial(api, ca)
    assert serial(api, (tmp_path / "ca.crt").read_bytes()) != first
    api.create(objects.service("a"))
    assert watch.events(1) == [("ADDED", "a")]


def test_a_resource_can_be_forbidden(api: ApiServer) -> None:
    api.forbid("services")
    with pytest.raises(kubernetes.client.ApiException) as caught:
        core(api).list_service_for_all_namespaces()
    assert (caught.value.status, "cannot list resource" in caught.value.body) == (403, True)
    assert get(api, "/api/v1/namespaces/a/services?watch=1")[1]["reason"] == "Forbidden"
    assert get(api, "/api/v1/pods")[0] == 200
    api.forbid()
    assert get(api, SERVICES)[0] == 200


# Faults


def test_a_status_for_the_next_requests_that_match(api: ApiServer) -> None:
    api.fault(path="services", kind="list", times=2, status=429, retry_after=7)
    assert get(api, "/api/v1/pods")[0] == 200
    assert get(api, "/livez")[0] == 200
    connection = connect(api)
    for _ in range(2):
        connection.request("GET", SERVICES)
        response = connection.getresponse()
        assert (response.status, response.headers["Retry-After"]) == (429, "7")
        assert json.loads(response.read())["reason"] == "TooManyRequests"
    connection.request("GET", SERVICES)
    assert connection.getresponse().status == 200
    connection.close()


def test_a_status_with_a_body_of_its_own(api: ApiServer) -> None:
    api.fault(status=503, body="<html>gateway</html>")
    assert get(api, SERVICES) == (503, "<html>gateway</html>")
    assert get(api, SERVICES)[0] == 200


def test_faults_can_be_cleared(api: ApiServer) -> None:
    api.fault(times=1000, status=500)
    assert get(api, SERVICES)[0] == 500
    api.clear_faults()
    assert get(api, SERVICES)[0] == 200


@pytest.mark.parametrize("server", ["api", "plain"])
@pytest.mark.parametrize("then", ["fin", "rst"])
def test_a_connection_that_closes_before_any_answer(request: pytest.FixtureRequest, server: str, then: str) -> None:
    api: ApiServer = request.getfixturevalue(server)
    api.fault(then=then)
    with pytest.raises(BROKEN):
        get(api, SERVICES)
    assert get(api, SERVICES)[0] == 200


def test_a_list_cut_off_with_a_proper_end(api: ApiServer) -> None:
    api.create(objects.service("a"))
    api.fault(cut=100, then="end")
    connection = connect(api)
    connection.request("GET", SERVICES)
    body = connection.getresponse().read()
    assert len(body) == 100
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)
    connection.request("GET", SERVICES)
    json.loads(connection.getresponse().read())
    connection.close()


@pytest.mark.parametrize("then", ["fin", "rst", ""])
def test_a_list_cut_off_in_a_chunk(plain: ApiServer, wire: Wire, then: str) -> None:
    plain.create(objects.service("a"))
    plain.fault(cut=100, then=then)
    sock = wire(plain, SERVICES)
    if then == "rst":
        with pytest.raises(ConnectionResetError):
            rest(sock)
        return
    size, _, part = rest(sock).partition(b"\r\n\r\n")[2].partition(b"\r\n")
    assert (int(size, 16) > 100, len(part)) == (True, 100)


def test_a_streaming_list_cut_off_among_its_initial_events(api: ApiServer, watching: Watch) -> None:
    api.create(*(objects.service(f"s{number}") for number in range(50)))
    api.fault(kind="stream", cut=5000)
    watch = watching(api, STREAM)
    with pytest.raises(BROKEN):
        watch.response.read()
    assert watching(api, f"{STREAM}&allowWatchBookmarks=1").events(51)[50][0] == "BOOKMARK"


def test_a_cut_counts_what_an_open_watch_sends_too(api: ApiServer, watching: Watch) -> None:
    api.fault(kind="watch", cut=700, then="end")
    watch = watching(api, "watch=1")
    api.wait_watches(1)
    api.create(objects.service("a"), objects.service("b"))
    assert watch.events(1) == [("ADDED", "a")]
    with pytest.raises(json.JSONDecodeError):
        watch.next()
    assert watch.line() == b""


def test_a_slow_answer(api: ApiServer) -> None:
    api.fault(delay=0.3)
    start = time.monotonic()
    assert get(api, SERVICES)[0] == 200
    assert time.monotonic() - start >= 0.3
    api.fault(delay=0.2, status=500)
    assert get(api, SERVICES)[0] == 500


def chunks(sock: socket.socket, count: int) -> list[bytes]:
    """The next chunks of a body."""
    file = sock.makefile("rb")
    found = []
    for _ in range(count):
        found.append(file.read(int(file.readline(), 16)))
        assert file.readline() == b"\r\n"
    return found


def opened(plain: ApiServer, wire: Wire) -> socket.socket:
    """A watch past its head."""
    sock = wire(plain, f"{SERVICES}?watch=1&resourceVersion={plain.revision}")
    until(sock, b"\r\n\r\n")
    plain.wait_watches(1)
    return sock


def test_an_event_in_several_chunks_divided_inside_a_character(plain: ApiServer, wire: Wire) -> None:
    sock = opened(plain, wire)
    line = json.dumps({"type": "ADDED", "object": {"metadata": {"name": "é"}}}, ensure_ascii=False).encode() + b"\n"
    at = line.index("é".encode()) + 1
    plain.inject(line, split=(at, 5), pause=0.01)
    parts = chunks(sock, 3)
    assert [len(part) for part in parts] == [5, at - 5, len(line) - at]
    assert b"".join(parts) == line
    with pytest.raises(UnicodeDecodeError):
        parts[1].decode()


def test_every_event_in_several_chunks(plain: ApiServer, wire: Wire) -> None:
    sock = opened(plain, wire)
    plain.settings(split=[1, -2])
    plain.create(objects.service("a"))
    parts = chunks(sock, 3)
    assert (parts[0], parts[2]) == (b"{", b"}\n")
    assert json.loads(b"".join(parts))["object"]["metadata"]["name"] == "a"


def test_the_client_reads_events_in_several_chunks(api: ApiServer) -> None:
    api.settings(split=[1, 50, -3], split_pause=0.001)
    services = core(api)
    found = kubernetes.watch.Watch().stream(services.list_service_for_all_namespaces, timeout_seconds=5)
    api.create(objects.service("a", annotations={"text": "één"}))
    assert next(found)["object"].metadata.annotations == {"text": "één"}


@pytest.mark.parametrize("code", [410, 500])
def test_an_error_event(api: ApiServer, watching: Watch, code: int) -> None:
    watch = watching(api, "watch=1")
    api.wait_watches(1)
    api.error_event(code)
    event = watch.next()
    assert (event["type"], event["object"]["kind"], event["object"]["code"]) == ("ERROR", "Status", code)
    assert watch.next() is None


def test_an_error_event_for_the_next_watch(api: ApiServer, watching: Watch) -> None:
    api.create(objects.service("a"))
    line = b'{"type":"ERROR","object":{"kind":"Status","code":500}}\n'
    api.fault(kind="watch", data=line, then="fin")
    watch = watching(api, "watch=1")
    assert watch.events(1) == [("ADDED", "a")]
    assert watch.line() == line
    with pytest.raises(BROKEN):
        watch.response.read()


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"ADDED","obj\n',
        b"\xff\xfe\n",
        b"\n",
        b'{"type":"PATCHED","object":{"kind":"Service"}}\n',
        b'{"type":"ADDED","object":{"kind":"Service","metadata":[]}}\n',
        b'{"type":"ADDED","object":"' + b"x" * 5_000_000 + b'"}\n',
    ],
    ids=["malformed", "no text", "empty", "unknown type", "wrong shape", "very long"],
)
def test_a_line_that_no_server_should_send(api: ApiServer, watching: Watch, line: bytes) -> None:
    watch = watching(api, "watch=1")
    api.wait_watches(1)
    other = watching(api, "watch=1", SLICES)
    api.wait_watches(2)
    api.inject(line, path="services")
    assert watch.line() == line
    api.create(objects.service("a"), objects.endpoint_slice("a", []))
    assert watch.events(1) == [("ADDED", "a")]
    assert other.events(1) == [("ADDED", "a-1")]


def test_an_event_of_any_type_and_shape(api: ApiServer, watching: Watch) -> None:
    watch = watching(api, "watch=1")
    api.wait_watches(1)
    api.event("RENAMED", 5)
    assert watch.next() == {"type": "RENAMED", "object": 5}


def test_nothing_to_inject_into_is_a_mistake(api: ApiServer) -> None:
    with pytest.raises(ApiServerError, match="no watch"):
        api.inject(b"\n")


def test_an_event_older_than_the_list(api: ApiServer, watching: Watch) -> None:
    old, _ = api.create(objects.service("a"), objects.service("b"))
    api.delete(objects.service("a"))
    watch = watching(api, f"watch=1&resourceVersion={api.revision}")
    api.wait_watches(1)
    assert api.resend(old.revision) == 1
    event = watch.next()
    assert (event["type"], event["object"]["metadata"]["resourceVersion"]) == ("ADDED", str(old.revision))
    api.compact()
    with pytest.raises(ApiServerError, match="resend: ExpiredError"):
        api.resend(old.revision)
    assert api.revision == old.revision + 2


def test_silence_of_open_watches_and_of_new_ones(api: ApiServer, watching: Watch) -> None:
    watch = watching(api, "watch=1", timeout=0.5)
    other = watching(api, "watch=1", SLICES)
    api.wait_watches(2)
    api.silence("/services")
    api.create(objects.service("a"), objects.endpoint_slice("a", []))
    with pytest.raises(TimeoutError):
        watch.next()
    with pytest.raises(TimeoutError):
        watching(api, "watch=1", timeout=0.3)
    assert other.events(1) == [("ADDED", "a-1")]
    assert get(api, SERVICES)[0] == 200
    api.clear_faults()
    assert watching(api, "watch=1").events(1) == [("ADDED", "a")]


def test_a_silent_watch_never_ends(api: ApiServer, watching: Watch) -> None:
    watch = watching(api, "watch=1&timeoutSeconds=1", timeout=1.5)
    api.wait_watches(1)
    api.silence(new=False)
    with pytest.raises(TimeoutError):
        watch.next()
    assert watching(api, "watch=1").response.status == 200


@pytest.mark.parametrize("then", ["fin", "rst", "end"])
def test_all_watches_break(api: ApiServer, plain: ApiServer, watching: Watch, then: str) -> None:
    for server in (api, plain):
        found = [watching(server, "watch=1"), watching(server, "watch=1", SLICES)]
        server.wait_watches(2)
        assert server.break_watches(then) == 2
        for watch in found:
            if then == "end":
                assert watch.next() is None
                continue
            with pytest.raises(BROKEN) as caught:
                watch.response.read()
            if not server.tls:
                assert (caught.type is ConnectionResetError) is (then == "rst")
        server.wait_watches(0)


def test_idle_connections_break_too(api: ApiServer) -> None:
    connection = connect(api)
    connection.request("GET", SERVICES)
    connection.getresponse().read()
    assert api.break_connections() == 1
    with pytest.raises(BROKEN):
        status(connection)
    connection.close()


def test_connections_are_refused_while_open_ones_stay(api: ApiServer, watching: Watch) -> None:
    watch = watching(api, "watch=1")
    api.wait_watches(1)
    api.refuse()
    with pytest.raises(ConnectionRefusedError):
        get(api, SERVICES)
    api.create(objects.service("a"))
    assert watch.events(1) == [("ADDED", "a")]
    api.listen()
    assert get(api, SERVICES)[0] == 200


# Ends and beginnings


@pytest.mark.parametrize("then", ["fin", "rst"])
def test_the_server_goes_down_and_comes_up_with_its_history(api: ApiServer, watching: Watch, then: str) -> None:
    watch = watching(api, "watch=1")
    api.wait_watches(1)
    version = api.revision
    api.down(then)
    with pytest.raises(BROKEN):
        watch.response.read()
    with pytest.raises(ConnectionRefusedError):
        get(api, SERVICES)
    api.create(objects.service("a"))
    api.up()
    assert watching(api, f"watch=1&resourceVersion={version}").events(1) == [("ADDED", "a")]


def test_the_server_comes_back_without_its_history(api: ApiServer, watching: Watch) -> None:
    version = api.revision
    api.create(objects.service("a"))
    api.restart("lost")
    assert watching(api, f"watch=1&resourceVersion={version}").next()["object"]["reason"] == "Expired"
    assert watching(api, f"watch=1&resourceVersion={api.revision}").response.status == 200
    assert len(get(api, SERVICES)[1]["items"]) == 1


def test_another_cluster_comes_back(api: ApiServer) -> None:
    api.create(objects.service("a"))
    version = api.revision
    api.restart("empty")
    assert get(api, SERVICES)[1]["items"] == []
    assert api.revision < version


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_the_process_ends_and_starts_again_at_its_port(api: ApiServer, end: str) -> None:
    api.create(objects.service("a"))
    port, pid = api.port, api.pid
    getattr(api, end)()
    assert not procs.is_alive(pid)
    with pytest.raises(ConnectionRefusedError):
        get(api, SERVICES)
    api.start()
    assert (api.port, get(api, SERVICES)[1]["items"]) == (port, [])
    assert core(api).list_service_for_all_namespaces().items == []


def test_the_process_ends_with_the_test_that_started_it(api: ApiServer) -> None:
    assert api.process is not None
    assert api.process.stdin is not None
    api.process.stdin.close()
    assert api.process.wait(5) == 0


def test_a_paused_server_accepts_and_says_nothing(plain: ApiServer) -> None:
    plain.pause()
    connection = connect(plain, timeout=0.3)
    connection.request("GET", SERVICES)
    with pytest.raises(TimeoutError):
        connection.getresponse()
    plain.resume()
    connection.close()
    assert get(plain, SERVICES)[0] == 200


def test_a_paused_server_can_be_killed(api: ApiServer) -> None:
    api.pause()
    api.kill()
    api.start()
    api.pause()
    api.stop()


# Bookkeeping


def test_requests_are_noted(start: Start, watching: Watch) -> None:
    api = start(authenticate=True)
    before = time.monotonic()
    get(api, f"{SERVICES}?limit=5", Authorization=f"Bearer {api.token}", **{"User-Agent": "kdns/0"})
    get(api, "/api/v1/pods?watch=1")
    first, second = api.requests()
    assert (first.kind, first.method, first.path, first.query) == ("list", "GET", SERVICES, {"limit": "5"})
    assert (first.agent, first.user, first.status) == ("kdns/0", "system:serviceaccount:kube-system:kdns", 200)
    assert (second.kind, second.user, second.status) == ("watch", "", 401)
    assert before < first.time < second.time < time.monotonic()
    assert first.ended is not None
    assert [record.path for record in api.requests("list")] == [SERVICES]
    assert api.requests(path="pods") == [second]
    api.forget_requests()
    assert api.requests() == []


def test_bytes_are_counted_as_they_are_on_the_wire(plain: ApiServer, wire: Wire) -> None:
    plain.create(*(objects.service(f"s{number}") for number in range(100)))
    seen = {}
    for kind, query in (("list", ""), ("watch", "?watch=1"), ("stream", f"?{STREAM}&allowWatchBookmarks=1")):
        plain.fault(cut=20_000, then="fin")
        seen[kind] = len(rest(wire(plain, SERVICES + query)))
    counted = plain.counters()
    assert counted.sent == seen
    assert counted.requests == {"list": 1, "watch": 1, "stream": 1}
    assert counted.accepted == 3


def test_waiting_has_a_bound(api: ApiServer) -> None:
    with pytest.raises(AssertionError, match=r"1 watches: not within .* there are 0"):
        api.wait_watches(1, 0.1)
    get(api, SERVICES)
    assert api.wait_requests(1, "list")[0].path == SERVICES
    with pytest.raises(AssertionError, match="2 requests"):
        api.wait_requests(2, "list", seconds=0.1)
    api.pause()
    with pytest.raises(ApiServerError, match="no result"):
        api.command("revision", seconds=0.1)


def test_changes_at_a_rate_are_events_and_are_told(api: ApiServer, watching: Watch) -> None:
    api.load_cluster(60, 2)
    watch = watching(api, f"watch=1&resourceVersion={api.revision}", SLICES)
    api.wait_watches(1)
    assert api.churn(200, 0.3, under="team-0") == 20
    with pytest.raises(ApiServerError, match="under way"):
        api.churn(1, 1)
    found = api.wait_churn(5)
    assert len(found) == 60
    assert 0.2 < found[-1].time - found[0].time < 0.6
    for change in found:
        event = watch.next()
        metadata = event["object"]["metadata"]
        assert event["type"] == "MODIFIED"
        assert metadata["namespace"] == change.namespace
        assert metadata["labels"]["kubernetes.io/service-name"] == change.service
        assert event["object"]["endpoints"][0]["addresses"] == [change.address]
        assert "endpoints.kubernetes.io/last-change-trigger-time" in metadata["annotations"]
        assert len(event["object"]["endpoints"]) == 2
    assert len({change.address for change in found}) == 60
    assert found[20].old == found[0].address
    assert api.churned(50) == found[50:]


def test_changes_can_be_stopped(api: ApiServer) -> None:
    api.load_cluster(5, 1)
    api.churn(100, 60)
    api.stop_churn()
    assert len(api.churned()) < 100
    with pytest.raises(ApiServerError, match="no EndpointSlice"):
        api.churn(1, 1, under="nowhere/")


def test_objects_from_a_list(api: ApiServer) -> None:
    assert api.load(objects.service(f"s{number}") for number in range(1000)) == 1000
    assert len(core(api).list_service_for_all_namespaces().items) == 1000


def test_a_large_cluster_is_loaded_and_streamed_quickly(
    api: ApiServer, watching: Watch, record: Callable[[str, object], None]
) -> None:
    assert api.load_cluster(10_000, 10) == 20_050
    record("CPU seconds of loading 10,000 Services with 10 endpoints each", api.cpu_seconds)
    before = api.cpu_seconds
    for path in (SERVICES, SLICES):
        watch = watching(api, f"{STREAM}&allowWatchBookmarks=1", path, timeout=10)
        count = 0
        while b"initial-events-end" not in watch.line():
            count += 1
        assert count == 10_000
    used = api.cpu_seconds - before
    record("CPU seconds of streaming them", used)
    assert used < 1.5
    assert api.counters().sent["stream"] > 20_000_000


def test_its_log_is_empty_when_all_went_well(api: ApiServer, watching: Watch) -> None:
    watch = watching(api, "watch=1")
    api.wait_watches(1)
    watch.response.close()
    watch.connection.close()
    api.wait_watches(0)
    get(api, SERVICES)
    assert api.log == ""
    assert api.log_path.exists()
