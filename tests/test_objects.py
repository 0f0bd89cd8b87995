"""Reading Kubernetes objects, and their form in the store."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kdns.cluster import objects
from kdns.cluster.objects import Endpoint, EndpointSlice, Namespace, Object, Pod, Port, Service, ServiceImport, Subset

META = {"name": "web", "namespace": "prod", "uid": "1", "creationTimestamp": "2024-01-01T00:00:00Z"}


def manifest(kind: str, version: str = "v1", **fields: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": META} | fields


def read(data: object) -> list[Object]:
    """Read each way there is, as JSON text, as Python values and as an item of a known kind; all must agree."""
    from_text: list[Object] = []
    from_values: list[Object] = []
    text = json.dumps(data).encode()
    ignored = objects.from_json(text, from_text)
    assert objects.from_mapping(data, from_values) == ignored
    assert from_text == from_values
    if len(from_text) == 1 and isinstance(data, dict) and "items" not in data:
        found = objects.read(data["kind"], text)
        assert found.item == from_text[0] == objects.unpack(found.packed)
        assert found.key == objects.identify(data["kind"], text)
    return from_text


def test_service() -> None:
    spec = {
        "type": "LoadBalancer",
        "clusterIP": "10.96.0.1",
        "clusterIPs": ["10.96.0.1", "fd00::1"],
        "ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"protocol": "UDP", "port": 53}],
        "publishNotReadyAddresses": True,
        "selector": {"app": "web"},
    }
    assert read(manifest("Service", metadata=META | {"labels": {"a": "b"}}, spec=spec)) == [
        Service(
            "prod",
            "web",
            "LoadBalancer",
            cluster_ips=("10.96.0.1", "fd00::1"),
            ports=(Port("http", "TCP", 80), Port("", "UDP", 53)),
            publish_not_ready=True,
            labels={"a": "b"},
        )
    ]


@pytest.mark.parametrize("spec", [{"clusterIP": "None"}, {"clusterIPs": ["None"]}, {"clusterIP": "None", "type": None}])
def test_headless_service(spec: dict[str, Any]) -> None:
    assert read(manifest("Service", spec=spec)) == [Service("prod", "web", headless=True)]


def test_cluster_ip_alone_is_enough() -> None:
    assert read(manifest("Service", spec={"clusterIP": "10.96.0.1", "clusterIPs": None})) == [
        Service("prod", "web", cluster_ips=("10.96.0.1",))
    ]


def test_external_name_is_never_headless() -> None:
    spec = {"type": "ExternalName", "externalName": "example.com", "clusterIP": "None"}
    assert read(manifest("Service", spec=spec)) == [Service("prod", "web", "ExternalName", external_name="example.com")]


def test_namespace_defaults_to_default() -> None:
    assert read(manifest("Service", metadata={"name": "web"})) == [Service("default", "web")]


def test_endpoint_slice() -> None:
    metadata = META | {"labels": {"kubernetes.io/service-name": "api"}}
    endpoints = [
        {
            "addresses": ["10.1.0.5"],
            "conditions": {"ready": True, "serving": True},
            "hostname": "db-0",
            "nodeName": "node-1",
            "zone": "eu-1a",
            "targetRef": {"kind": "Pod", "name": "api-0"},
        },
        {"addresses": ["10.1.0.6"], "conditions": {"ready": False}, "targetRef": {"kind": "Node", "name": "n"}},
        {"addresses": ["10.1.0.7"], "conditions": {"ready": None}},
        {"addresses": ["10.1.0.8"], "conditions": None},
    ]
    ports = [{"name": "http", "protocol": "TCP", "port": 80}, {"name": "any", "port": None}]
    data = manifest(
        "EndpointSlice",
        "discovery.k8s.io/v1",
        metadata=metadata,
        addressType="IPv4",
        ports=ports,
        endpoints=endpoints,
    )
    assert read(data) == [
        EndpointSlice(
            "prod",
            "web",
            "api",
            subsets=(
                Subset(
                    (Port("http", "TCP", 80),),
                    (
                        Endpoint(("10.1.0.5",), True, "db-0", "api-0", "node-1", "eu-1a"),
                        Endpoint(("10.1.0.6",), False),
                        Endpoint(("10.1.0.7",)),
                        Endpoint(("10.1.0.8",)),
                    ),
                ),
            ),
        )
    ]


def test_imported_endpoint_slice() -> None:
    labels = {
        "multicluster.kubernetes.io/service-name": "web",
        "multicluster.kubernetes.io/source-cluster": "east",
    }
    data = manifest("EndpointSlice", "discovery.k8s.io/v1", metadata=META | {"labels": labels}, endpoints=[])
    assert read(data) == [EndpointSlice("prod", "web", "", imported="web", cluster="east")]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            {"type": "ClusterSetIP", "ips": ["10.97.0.1", "fd00::1"], "ports": [{"name": "http", "port": 80}]},
            ServiceImport("prod", "web", False, ("10.97.0.1", "fd00::1"), (Port("http", "TCP", 80),)),
        ),
        ({"type": "Headless", "ips": None}, ServiceImport("prod", "web", True)),
        ({"type": "ClusterSetIP", "ips": [""]}, ServiceImport("prod", "web")),
        (None, ServiceImport("prod", "web")),
    ],
)
def test_service_import(spec: dict[str, Any] | None, expected: ServiceImport) -> None:
    (found,) = read(manifest("ServiceImport", "multicluster.x-k8s.io/v1alpha1", spec=spec))
    assert found == expected
    assert found.key == ("ServiceImport", "prod", "web")


def test_null_means_absent() -> None:
    data = manifest("EndpointSlice", "discovery.k8s.io/v1", metadata={"name": "web", "labels": None}, endpoints=None)
    assert read(data) == [EndpointSlice("default", "web", "")]


def test_endpoints_become_a_legacy_slice() -> None:
    subsets = [
        {
            "addresses": [{"ip": "10.1.0.5", "hostname": "db", "targetRef": {"kind": "Pod", "name": "web-0"}}],
            "notReadyAddresses": [{"ip": "10.1.0.6", "nodeName": "n"}],
            "ports": [{"port": 80}],
        },
        {"addresses": [{"ip": "10.1.0.7"}], "ports": [{"name": "x", "port": 81}]},
    ]
    (found,) = read(manifest("Endpoints", subsets=subsets))
    assert found == EndpointSlice(
        "prod",
        "web",
        "web",
        "",
        (
            Subset(
                (Port("", "TCP", 80),),
                (Endpoint(("10.1.0.5",), True, "db", "web-0"), Endpoint(("10.1.0.6",), False, node="n")),
            ),
            Subset((Port("x", "TCP", 81),), (Endpoint(("10.1.0.7",)),)),
        ),
        True,
    )
    assert found.key == ("Endpoints", "prod", "web")


def test_namespace() -> None:
    (found,) = read(manifest("Namespace", metadata={"name": "prod", "labels": {"a": "b"}}))
    assert found == Namespace("prod", {"a": "b"})
    assert found.key == ("Namespace", "", "prod")


@pytest.mark.parametrize(
    ("status", "ips", "running"),
    [
        ({"phase": "Running", "podIP": "1.2.3.4", "podIPs": [{"ip": "1.2.3.4"}, {"ip": "fd00::1"}]}, 2, True),
        ({"phase": "Running", "podIP": "1.2.3.4"}, 1, True),
        ({"phase": "Pending"}, 0, True),
        ({"phase": "Succeeded", "podIP": "1.2.3.4"}, 1, False),
        ({"phase": "Failed", "podIP": "1.2.3.4"}, 1, False),
        (None, 0, True),
    ],
)
def test_pod(status: dict[str, Any] | None, ips: int, running: bool) -> None:
    assert read(manifest("Pod", status=status)) == [Pod("prod", "web", ("1.2.3.4", "fd00::1")[:ips], running)]


def test_pod_that_is_being_deleted_does_not_run() -> None:
    (found,) = read(manifest("Pod", metadata=META | {"deletionTimestamp": "2024-01-01T00:00:00Z"}))
    assert isinstance(found, Pod)
    assert not found.running


def test_lists_of_any_and_of_one_kind() -> None:
    service, other = manifest("Service"), manifest("ConfigMap")
    bare = {"metadata": {"name": "x"}}
    assert len(read({"apiVersion": "v1", "kind": "List", "items": [service, other, service]})) == 2
    assert read({"apiVersion": "v1", "kind": "NamespaceList", "items": [bare]}) == [Namespace("x")]
    assert read({"apiVersion": "v1", "kind": "ServiceList", "items": None}) == []


def test_other_kinds_are_counted() -> None:
    found: list[Object] = []
    items = [manifest("ConfigMap"), manifest("Service", "serving.knative.dev/v1", spec=7), {"items": 3}]
    assert objects.from_json(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}).encode(), found) == 3
    assert found == []


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (manifest("Service", spec={"ports": [{"port": "http"}]}), "$.spec.ports[0].port"),
        (manifest("Service", spec={"ports": [{"port": 1 << 70}]}), "$.spec.ports[0].port"),
        (manifest("Service", metadata={}), "$.metadata"),
        (manifest("Pod", spec={}, status=7), "$.status"),
        ({"apiVersion": "v1", "kind": "List", "items": 7}, None),
        ([], "$"),
    ],
)
def test_wrong_shape_is_told_with_its_place(data: object, path: str | None) -> None:
    with pytest.raises(objects.ObjectError) as from_text:
        objects.from_json(json.dumps(data).encode(), [])
    with pytest.raises(objects.ObjectError) as from_values:
        objects.from_mapping(data, [])
    assert path is None or from_text.value.path == from_values.value.path == path


def test_wrong_shape_in_a_list() -> None:
    bad = manifest("Service", spec=[])
    data = {"apiVersion": "v1", "kind": "List", "items": [manifest("Pod"), bad]}
    with pytest.raises(objects.ObjectError) as caught:
        objects.from_json(json.dumps(data).encode(), [])
    assert (caught.value.path, json.loads(caught.value.item)) == ("$.spec", bad)
    with pytest.raises(objects.ObjectError) as caught:
        objects.from_mapping(data, [])
    assert caught.value.path == "$.items[1].spec"


# Items of lists and of events


def listed(**metadata: Any) -> bytes:
    return json.dumps({"metadata": META | metadata}).encode()


@pytest.mark.parametrize("kind", ["Service", "EndpointSlice", "Endpoints", "Namespace", "Pod", "ServiceImport"])
def test_an_item_tells_its_version_and_has_the_key_of_the_store(kind: str) -> None:
    found = objects.read(kind, listed(resourceVersion="42"))
    assert found.item.key == (kind, "" if kind == "Namespace" else "prod", "web")
    assert found.key == ("web" if kind == "Namespace" else "prod/web")
    assert (found.version, found.trigger) == ("42", None)
    assert objects.read(kind, msgspec.Raw(listed())).version == ""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2024-01-01T00:00:01Z", 1704067201.0),
        ("2024-01-01T00:00:01.123456789Z", 1704067201.123456),
        ("2024-01-01T02:00:01.5+02:00", 1704067201.5),
        ("2024-01-01T00:00:01", None),
        ("yesterday", None),
        ("", None),
        (None, None),
        (7, None),
    ],
)
def test_the_time_of_the_change_behind_a_slice(text: Any, seconds: float | None) -> None:
    notes = {"endpoints.kubernetes.io/last-change-trigger-time": text, "other": "x" * 100}
    found = objects.read("EndpointSlice", listed(annotations=notes)).trigger
    assert found == (None if seconds is None else pytest.approx(seconds, abs=1e-6))
    assert objects.read("Service", listed(annotations=notes)).trigger is None


@pytest.mark.parametrize(("value", "ends"), [("true", True), ("false", False), (True, False), (None, False)])
def test_the_end_of_a_streaming_list(value: Any, ends: bool) -> None:
    data = listed(resourceVersion="7", annotations={"k8s.io/initial-events-end": value})
    assert objects.read_bookmark(data) == ("7", ends)


@pytest.mark.parametrize("data", [b"{}", b'{"metadata": null}', b'{"metadata": {"annotations": [1]}}'])
def test_a_bookmark_that_says_nothing(data: bytes) -> None:
    assert objects.read_bookmark(data) == ("", False)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"metadata": 7}', b'{"metadata": {}} x'])
def test_what_is_no_bookmark(data: bytes) -> None:
    with pytest.raises(objects.ObjectError) as caught:
        objects.read_bookmark(data)
    assert caught.value.item == data


def test_an_item_of_the_wrong_shape_is_refused_and_still_known_by_its_name() -> None:
    data = json.dumps({"metadata": META | {"labels": 7}, "spec": {"ports": 7}}).encode()
    with pytest.raises(objects.ObjectError) as caught:
        objects.read("Service", data)
    assert caught.value.path == "$.metadata.labels"
    assert objects.identify("Service", data) == "prod/web"
    assert objects.identify("Namespace", data) == "web"
    assert objects.identify("Service", b'{"metadata": {"name": "web", "namespace": ""}}') == "default/web"


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"metadata": {}}', b'{"metadata": {"name": 7}}', b'{"metadata": {"name": "a"}']
)
def test_what_has_no_name_is_not_identified(data: bytes) -> None:
    assert objects.identify("Service", data) is None


anything = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), st.lists)


@given(
    st.sampled_from(["Service", "EndpointSlice", "Endpoints", "Namespace", "Pod", "ServiceImport"]),
    st.fixed_dictionaries(
        {"metadata": st.fixed_dictionaries({"name": st.text(max_size=3)}, optional={"annotations": anything})},
        optional=dict.fromkeys(("spec", "status", "endpoints", "subsets", "ports"), anything),
    ),
    st.binary(max_size=3),
)
def test_whatever_the_server_sends_is_read_or_refused(kind: str, data: dict[str, Any], tail: bytes) -> None:
    text = json.dumps(data).encode()
    with contextlib.suppress(objects.ObjectError):
        found = objects.read(kind, text)
        assert found.key == objects.identify(kind, text)
    with contextlib.suppress(objects.ObjectError):
        objects.read(kind, text + tail)
    with contextlib.suppress(objects.ObjectError):
        objects.read_bookmark(text + tail)


texts, labels = st.text(max_size=5), st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2)
ports = st.builds(Port, texts, texts, st.integers(-(2**31), 2**31 - 1))
subsets = st.builds(Subset, st.tuples(ports), st.tuples(st.from_type(Endpoint)))


@given(
    st.builds(Service, texts, texts, texts, st.booleans(), ports=st.tuples(ports), labels=labels)
    | st.builds(EndpointSlice, texts, texts, texts, subsets=st.tuples(subsets), legacy=st.booleans())
    | st.builds(Namespace, texts, labels)
    | st.from_type(Pod)
    | st.builds(ServiceImport, texts, texts, st.booleans(), st.tuples(texts), st.tuples(ports))
)
def test_every_object_survives_the_store(item: Object) -> None:
    assert objects.unpack(objects.pack(item)) == item


@example(b"\x91\xa3\x00\x00\x80")
@given(st.binary(max_size=60))
def test_what_is_no_object_of_the_store_is_a_decode_error(data: bytes) -> None:
    with contextlib.suppress(msgspec.DecodeError):
        objects.unpack(data)


@given(st.binary(max_size=60))
def test_what_is_no_json_is_a_known_error(data: bytes) -> None:
    with contextlib.suppress(objects.ObjectError):
        objects.from_json(data, [])


@pytest.mark.parametrize(
    ("data", "at"),
    [
        (b'{"kind": x}', 9),
        (b'{"kind": "Service"', 18),
        (b'{"kind": "Service"} }', 21),
        (b"", 0),
        (b'{"kind": "\xff"}', None),
        (b'{"a":' * 100_000, None),
    ],
)
def test_text_that_is_no_json(data: bytes, at: int | None) -> None:
    with pytest.raises(objects.ObjectError) as caught:
        objects.from_json(data, [])
    assert caught.value.at == at


@pytest.mark.parametrize("version", ['"apiVersion": "discovery.k8s.io/v1beta1", ', ""])
def test_an_object_of_another_api_version_is_refused_by_name(version: str) -> None:
    data = f'{{{version}"kind": "EndpointSlice", "metadata": {{"name": "a"}}}}'
    with pytest.raises(
        objects.ObjectError, match=r"EndpointSlice of apiVersion .* where 'discovery.k8s.io/v1' is expected"
    ):
        objects.from_json(data.encode(), [])
    with pytest.raises(objects.ObjectError, match="EndpointSlice of apiVersion"):
        objects.from_mapping(msgspec.json.decode(data), [])


def test_the_same_kind_of_another_group_is_another_kind() -> None:
    data = b'{"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "a"}}'
    assert objects.from_json(data, []) == 1
    assert objects.from_mapping(msgspec.json.decode(data), []) == 1
