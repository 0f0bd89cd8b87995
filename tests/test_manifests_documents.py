"""From the text of a file to objects, and what is said about text that makes none."""

from __future__ import annotations

import contextlib
import json
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.cluster import documents
from kdns.cluster.objects import Port, Service
from kdns.errors import ConfigError, Mistake

SERVICE = """\
apiVersion: v1
kind: Service
metadata:
  name: NAME
spec:
  clusterIP: 10.96.0.1
  ports:
  - name: http
    port: 80
"""
WEB, API = SERVICE.replace("NAME", "web"), SERVICE.replace("NAME", "api")
OTHER = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n"


def service(name: str) -> Service:
    return Service("default", name, cluster_ips=("10.96.0.1",), ports=(Port("http", "TCP", 80),))


def read(text: str, file: str = "a.yaml") -> list[Service]:
    found = list(documents.parse(text.encode(), file).objects.values())
    assert all(isinstance(item, Service) for item in found)
    return [item for item in found if isinstance(item, Service)]


def mistake(text: str | bytes, file: str = "a.yaml") -> Mistake:
    with pytest.raises(ConfigError) as caught:
        documents.parse(text.encode() if isinstance(text, str) else text, file)
    (found,) = caught.value.mistakes
    assert found.file == file
    return found


def as_list(*items: str, indent: str = "") -> str:
    lines = []
    for item in items:
        first, *rest = item.splitlines()
        lines += [f"{indent}- {first}", *(f"{indent}  {line}" for line in rest)]
    body = "\n".join(lines)
    return f"apiVersion: v1\nitems:\n{body}\nkind: List\nmetadata:\n  resourceVersion: ''\n"


@pytest.mark.parametrize(
    "text",
    [
        f"{WEB}---\n{API}",
        f"# comment\n---\n{WEB}---\n# nothing\n---\n{API}...\n",
        f"%YAML 1.1\n---\n{WEB}---\n{API}",
        f"{WEB}--- # comment\n{API}".replace("\n", "\r\n"),
        f"\ufeff{WEB}---\n{API}",
        as_list(WEB, API),
        as_list(WEB, API, indent="  "),
        as_list(WEB, OTHER, API),
        as_list(WEB) + "---\n" + as_list(API),
        "{apiVersion: v1, kind: List, items: [\n{apiVersion: v1, kind: Service, metadata: {name: web}, spec: "
        "&s {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}},\n"
        "{apiVersion: v1, kind: Service, metadata: {name: api}, spec: *s}]}",
    ],
)
def test_yaml_documents_and_lists(text: str) -> None:
    assert read(text) == [service("web"), service("api")]


JSON_WEB, JSON_API = (
    json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "annotations": {"a": "}\n{"}},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]},
        },
        indent=4,
    )
    for name in ("web", "api")
)


@pytest.mark.parametrize("file", ["a.json", "a.yaml", "a"])
@pytest.mark.parametrize(
    "text",
    [
        f"{JSON_WEB}\n{JSON_API}\n",
        f'\n{{"kind": "List", "apiVersion": "v1", "items": [{JSON_WEB}, {JSON_API}]}}',
        "\n".join(json.dumps(json.loads(text)) for text in (JSON_WEB, JSON_API)),
    ],
)
def test_json_documents_and_lists(text: str, file: str) -> None:
    assert read(text, file) == [service("web"), service("api")]


def test_json_documents_between_yaml_marks() -> None:
    assert read(f"{JSON_WEB}\n---\n{JSON_API}\n") == [service("web"), service("api")]


def test_yaml_1_1_as_kubernetes_reads_it() -> None:
    text = (
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, creationTimestamp: 2024-01-01T00:00:00Z}\n"
        "base: &base {clusterIP: 10.96.0.1}\n"
        "spec:\n  <<: *base\n  publishNotReadyAddresses: yes\n  ports: [{name: http, port: 0120}]\n"
    )
    (found,) = read(text)
    assert (found.cluster_ips, found.publish_not_ready, found.ports[0].port) == (("10.96.0.1",), True, 80)


def test_a_list_in_yaml_is_the_same_whether_taken_apart_or_not() -> None:
    block = as_list(
        WEB, API, 'apiVersion: v1\nkind: Service\nmetadata:\n  name: x\n  annotations: {a: "- b\n      - c"}'
    )
    whole = block.replace("kind: List", "unused: &anchor 1\nkind: List")
    assert read(block) == read(whole)
    assert len(read(block)) == 3


def test_kind_of_items_comes_from_the_list() -> None:
    text = "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata:\n    name: a\n- metadata:\n    name: b\n"
    assert [item.name for item in read(text)] == ["a", "b"]


def test_other_kinds_are_counted_and_told_only_if_there_is_nothing_else() -> None:
    content = documents.parse(f"{WEB}---\n{OTHER}".encode(), "a.yaml")
    assert (content.ignored, content.problems) == (1, ())
    content = documents.parse(f"{OTHER}---\n{OTHER}".encode(), "a.yaml")
    assert content.ignored == 2
    assert "2 objects of other kinds" in content.problems[0].message
    assert "no objects" in documents.parse(b"# nothing yet\n", "a.yaml").problems[0].message


def test_an_object_that_is_there_twice_is_told_with_its_line() -> None:
    text = f"{WEB}---\n{WEB}---\n{WEB.replace('10.96.0.1', '10.96.0.2')}"
    content = documents.parse(text.encode(), "a.yaml")
    assert [item.cluster_ips for item in read(text)] == [("10.96.0.2",)]
    assert [problem.line for problem in content.problems] == [20]
    assert "Service default/web" in content.problems[0].message


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (f"{WEB}---\n{API}\tx: 1\n", 20, "tab character"),
        (f"{WEB}---\n{API}x: [1,\n", 21, "while parsing a flow"),
        (f"{WEB}---\n{API.replace('80', 'http')}", 19, "expected `int"),
        (f"{WEB}---\n{API.replace('name: api', 'nam: api')}", 13, "`name`"),
        (f"{WEB}kind: Service\n", 10, "second time"),
        (f"{WEB}---\njust text\n", 11, "expected an object"),
        (f"{WEB}labels: *missing\n", 10, "missing"),
        (f"{WEB}x: !!int abc\n", 1, "tag"),
        (f"{WEB}x: 'a\0b'\n", 10, "control characters"),
        (as_list(WEB, API.replace("80", "http")), 20, "expected `int"),
        (as_list(WEB, API + "\tx: 1"), 21, "tab character"),
        (as_list(WEB, API).replace("kind: List", "kind: List\nx: &anchor 1").replace("port: 80", "port: a"), 11, "int"),
        ("%YAML 1.1\n---\n" + f"{WEB}---\n{API.replace('80', 'http')}", 21, "expected `int"),
    ],
)
def test_yaml_mistakes_are_told_with_their_line(text: str, line: int, words: str) -> None:
    found = mistake(text)
    assert (found.line, words in found.message) == (line, True), found


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (f"{JSON_WEB}\n{JSON_API[:-1]}", 38, "truncated"),
        (f"{JSON_WEB}\n{JSON_API.replace('80', 'eighty')}", 34, "malformed"),
        (f"{JSON_WEB}\n{JSON_API.replace('80', 'true')}", 34, "expected `int"),
        (f'{{"kind": "List",\n"items": [{JSON_WEB},\n{JSON_API.replace("80", "true")}]}}', 35, "expected `int"),
        ("\n{ ]", 2, "malformed"),
        ("[" * 100_000, 1, ""),
        ('{"a":' * 100_000, 1, "deep"),
    ],
)
def test_json_mistakes_are_told_with_their_line(text: str, line: int, words: str) -> None:
    found = mistake(text, "a.json")
    assert (found.line, words in found.message) == (line, True), found


def test_text_that_is_not_utf8_is_told_with_its_line() -> None:
    assert mistake(f"{WEB}---\n{API}# ".encode() + b"\xff\n").line == 20


BOMB = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
MERGE_BOMB = "a: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "aliases"),
        (MERGE_BOMB, "aliases"),
        ("a: &a [*a]\n", "no target"),
        ("[" * 200_000, "deep"),
        ("- " * 5000 + "x", "deep"),
        ("x: " + "a" * (documents.MAX_DOCUMENT + 1), "MB"),
    ],
)
def test_yaml_that_would_exhaust_memory_or_stack_is_refused_at_once(text: str, words: str) -> None:
    tracemalloc.start()
    started = time.monotonic()
    found = mistake(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert words in found.message
    assert time.monotonic() - started < 5
    assert peak < 100 << 20


@pytest.mark.parametrize("separator", ["list", "documents"])
def test_memory_for_a_large_file_is_that_of_its_objects(separator: str) -> None:
    padding = "#" * 10_000
    names = [f"svc-{number}" for number in range(1000)]
    items = [f"{SERVICE.replace('NAME', name)}{padding}\n" for name in names]
    data = (as_list(*items) if separator == "list" else "---\n".join(items)).encode()
    del items
    tracemalloc.start()
    content = documents.parse(data, "a.yaml")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(content.objects) == 1000
    assert peak < len(data) // 2


@given(st.binary(max_size=200), st.sampled_from(["a.yaml", "a.json"]))
def test_random_bytes_are_read_or_refused(data: bytes, file: str) -> None:
    with contextlib.suppress(ConfigError):
        documents.parse(data, file)


@given(st.data())
def test_mutated_manifests_are_read_or_refused(data: st.DataObject) -> None:
    text = bytearray(f"{WEB}---\n{as_list(API, WEB)}---\n{JSON_API}\n".encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        piece = data.draw(
            st.sampled_from(
                [b"", b"\n", b"- ", b"&a ", b"*a", b"!!int ", b"<<: ", b"{", b"]", b"'", b"%", b"\xff", b"? "]
            )
        )
        text[at : at + data.draw(st.integers(0, 3))] = piece
    with contextlib.suppress(ConfigError):
        documents.parse(bytes(text), "a.yaml")
