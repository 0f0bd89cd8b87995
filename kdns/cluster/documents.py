"""From the text of a file to Kubernetes objects: YAML or JSON, any number of documents, lists of objects.

YAML is read by ryaml, document by document and item by item, which is seven times as fast as libyaml through PyYAML
and keeps memory small. Where it knows less (Kubernetes reads YAML 1.1, which has merge keys, `yes`, octal numbers) or
finds a mistake, PyYAML decides, and tells the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import yaml
from ryaml import InvalidYamlError, loads_all  # type: ignore[attr-defined]

from kdns.cluster import objects
from kdns.cluster.objects import Key, Object, ObjectError, Packed
from kdns.errors import ConfigError, Mistake

KINDS = "Service, EndpointSlice, Endpoints, Namespace, Pod, ServiceImport"
MAX_DOCUMENT = 4 << 20
"""Bytes of a YAML document, or of an item of a list that can be taken apart. An object in etcd has at most 1.5 MB."""
MAX_DEPTH = 100
MAX_ALIASED = 100_000
"""Nodes that the aliases of a YAML document may stand for."""

# Patterns that begin with text, and text that is looked for before a pattern is, are found many times as fast.
_DOCUMENT = re.compile(rb"\n---(?=\s|$)", re.MULTILINE)
_ITEMS = re.compile(rb"^items:[ \t]*(?:#.*)?\r?\n(?=( *)-\s)", re.MULTILINE)
_AFTER_ITEMS = re.compile(rb"^[^\s#-]", re.MULTILINE)
_ANCHOR = re.compile(rb"(?:^|[\s,\[{])&\S", re.MULTILINE)
_MERGE = re.compile(r"<<['\"]?\s*:")
_JSON_GAP = re.compile(rb"\}\s*\n\s*(?=\{)")
_PATH_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds.

    lines: where each object starts, as far as it is known. ignored: number of objects of kinds that make no records.
    problems: what is odd about it, though it can be used.
    """

    objects: Packed = field(default_factory=Packed)
    lines: dict[Key, int] = field(default_factory=dict)
    ignored: int = 0
    problems: tuple[Mistake, ...] = ()


def describe(key: Key) -> str:
    """A key for a message: `Service default/web`."""
    kind, namespace, name = key
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"


def parse(data: bytes, file: str) -> Content:
    """Read a file's content. file: its name, for messages; `.json` at its end says that it must be JSON.

    Raises ConfigError with one mistake.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    if file.endswith(".json"):
        return _parse_json(data, file)
    if data.lstrip()[:1] == b"{":
        with suppress(ConfigError):
            return _parse_json(data, file)
    return _parse_yaml(data, file)


def _mistake(file: str, line: int, message: str, accepted: str) -> ConfigError:
    return ConfigError([Mistake(file, line, message, accepted)])


class _Collector:
    """Gathers the objects of one file. line: where those start that come now."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.line = 1
        self.objects = Packed()
        self.lines: dict[Key, int] = {}
        self.ignored = 0
        self.problems: list[Mistake] = []

    def append(self, item: Object) -> None:
        key = item.key
        if key in self.lines and self.objects[key] != item:
            text = f"{describe(key)} is in this file more than once; this one counts"
            self.problems.append(Mistake(self.file, self.line, text))
        self.objects.rows[key] = objects.pack(item)
        self.lines[key] = self.line

    def content(self) -> Content:
        if not self.objects:
            what = f"only {self.ignored} objects of other kinds" if self.ignored else "no objects"
            self.problems.append(Mistake(self.file, 1, f"holds {what}", KINDS))
        return Content(self.objects, self.lines, self.ignored, tuple(self.problems))


def _parse_json(data: bytes, file: str) -> Content:
    """Any number of JSON documents, each starting on a line of its own."""
    found = _Collector(file)
    for start, end in _pieces(data, [match.end() for match in _JSON_GAP.finditer(data)]):
        found.line = _line(data, start)
        document = data[start:end]
        try:
            found.ignored += objects.from_json(document, found)
        except ObjectError as error:
            raise _json_error(error, document, file, found.line) from None
    return found.content()


def _json_error(error: ObjectError, document: bytes, file: str, line: int) -> ConfigError:
    """line: where the document starts."""
    line += document.count(b"\n", 0, max(0, document.find(error.item)))
    if error.at is not None:
        return _mistake(file, line + error.item.count(b"\n", 0, error.at), str(error), "JSON")
    if len(error.item) <= MAX_DOCUMENT and error.path != "$":
        with suppress(UnicodeDecodeError, yaml.YAMLError):
            line += _line_of_path(error.item.decode(), error.path)
    return _shape_error(error, file, line)


def _shape_error(error: ObjectError, file: str, line: int) -> ConfigError:
    where = "" if error.path == "$" else f" at {error.path[2:]}"
    return _mistake(file, line, f"{error}{where}", "the shape that the Kubernetes API gives it")


def _parse_yaml(data: bytes, file: str) -> Content:
    found = _Collector(file)
    directives = data.startswith(b"%") or b"\n%" in data
    cuts = [] if directives else [match.start() + 1 for match in _DOCUMENT.finditer(data)]
    line, counted = 1, 0
    for start, end in _pieces(data, cuts):
        line, counted = line + data.count(b"\n", counted, start), start
        _parse_document(data[start:end], line, found)
    return found.content()


def _parse_document(document: bytes, line: int, found: _Collector) -> None:
    """Read a document, item by item if it is a list that the text shows how to take apart."""
    head, cuts = _list_items(document)
    if not cuts:
        return _parse_piece(document, line, {}, found)
    counted = 0
    for start, end in pairwise(cuts):
        line, counted = line + document.count(b"\n", counted, start), start
        _parse_piece(document[start:end], line, head, found)
    return None


def _list_items(document: bytes) -> tuple[dict[str, Any], list[int]]:
    """The list around the items, and where each item starts and the last one ends; nothing if it is no such list.

    Lines that start with the hyphen of the first item are items: nothing else can stand there but the inside of a
    quoted text that nobody indented, and then the item before it cannot be parsed.
    """
    start = _ITEMS.search(document) if b"items:" in document else None
    if start is None or _ANCHOR.search(document):
        return {}, []
    indent = start[1]
    last = _AFTER_ITEMS.search(document, start.end())
    end = last.start() if last else len(document)
    try:
        documents = loads_all((document[: start.start()] + document[end:]).decode()) or []
    except (InvalidYamlError, ValueError):
        return {}, []
    if len(documents) != 1 or not isinstance(head := documents[0], dict) or "items" in head:
        return {}, []
    if not str(head.get("kind")).endswith("List"):
        return {}, []
    items = re.compile(rb"^" + indent + rb"-(?=\s)", re.MULTILINE)
    return head, [*(match.start() for match in items.finditer(document, start.end(), end)), end]


def _parse_piece(piece: bytes, line: int, head: dict[str, Any], found: _Collector) -> None:
    """Read YAML documents, or with the head of a list one of its items (as a sequence of one)."""
    if len(piece) > MAX_DOCUMENT:
        accepted = f"at most {MAX_DOCUMENT >> 20} MB; divide it by lines of ---, or write it as JSON"
        raise _mistake(found.file, line, f"a document of {len(piece) >> 20} MB", accepted)
    try:
        text = piece.decode()
    except UnicodeDecodeError as error:
        line += piece.count(b"\n", 0, error.start)
        raise _mistake(found.file, line, "text that is not UTF-8", "UTF-8") from None
    items: list[Object] = []
    try:
        if "<<" in text and _MERGE.search(text):
            raise ValueError
        ignored = _read_documents(loads_all(text) or (), head, items)
    except (InvalidYamlError, ValueError):
        items.clear()
        ignored = _read_carefully(text, line, head, items, found.file)
    found.ignored += ignored
    found.line = line
    for item in items:
        found.append(item)


def _read_documents(documents: Iterable[object], head: dict[str, Any], items: list[Object]) -> int:
    if head:
        return sum(objects.from_mapping(head | {"items": document}, items) for document in documents)
    return sum(objects.from_mapping(document, items) for document in documents if document is not None)


class _Loader(yaml.CSafeLoader):
    """YAML 1.1 as Kubernetes reads it, which is without dates."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
    }


def _read_carefully(text: str, line: int, head: dict[str, Any], items: list[Object], file: str) -> int:
    """Read what ryaml could not, or say why it cannot be read. line: where the text starts."""
    at = 0
    try:
        _guard(text)
        documents = list(yaml.load_all(text, _Loader))
        ignored = 0
        for at, document in enumerate(documents):  # noqa: B007
            ignored += _read_documents([document], head, items)
        return ignored
    except ObjectError as error:
        path = error.path.replace("$.items", "$", 1) if head else error.path
        raise _shape_error(error, file, line + _line_of_path(text, path, at)) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = ", ".join(filter(None, (error.problem, error.context)))
        raise _mistake(file, line + (mark.line if mark else 0), why, "YAML") from None
    except yaml.reader.ReaderError as error:
        raise _mistake(file, line + text.count("\n", 0, error.position), error.reason, "YAML") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        raise _mistake(file, line, f"a value that does not suit its tag ({error})", "YAML") from None


@dataclass(slots=True)
class _Open:
    """A collection that has begun. before: nodes before it. keys: of a mapping. at_key: the next node is a key."""

    anchor: str | None
    before: int
    keys: set[str] | None
    at_key: bool = True


def _guard(text: str) -> None:
    """Refuse YAML that is nested without end, that aliases make huge, and keys that are there twice.

    Raises yaml.YAMLError. The parser's events are read in a loop, so that none of it can exhaust the stack.
    """
    sizes: dict[str, int] = {}
    open_nodes: list[_Open] = []
    total = aliased = 0
    for event in yaml.parse(text, yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            closed = open_nodes.pop()
            if closed.anchor:
                sizes[closed.anchor] = total - closed.before
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        if open_nodes:
            _check_key(event, open_nodes[-1])
        size = 1
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor or "", 0)
            aliased += size
            _refuse(size == 0, f"alias *{event.anchor} has no target", event)
            _refuse(aliased > MAX_ALIASED, f"aliases stand for more than {MAX_ALIASED} values", event)
        elif isinstance(event, yaml.CollectionStartEvent):
            sizes.pop(event.anchor or "", None)
            keys: set[str] | None = set() if isinstance(event, yaml.MappingStartEvent) else None
            open_nodes.append(_Open(event.anchor, total, keys))
            _refuse(len(open_nodes) > MAX_DEPTH, f"nested more than {MAX_DEPTH} deep", event)
        elif event.anchor:
            sizes[event.anchor] = 1
        total += size


def _check_key(event: yaml.NodeEvent, mapping: _Open) -> None:
    if mapping.keys is None:
        return
    if mapping.at_key and isinstance(event, yaml.ScalarEvent) and event.value != "<<":
        _refuse(event.value in mapping.keys, f"key {event.value!r} for the second time", event)
        mapping.keys.add(event.value)
    mapping.at_key = not mapping.at_key


def _refuse(wrong: bool, why: str, event: Any) -> None:
    if wrong:
        raise yaml.MarkedYAMLError(problem=why, problem_mark=event.start_mark)


def _line_of_path(text: str, path: str, document: int = 0) -> int:
    """How many lines before the value at a path (`$.spec.ports[0]`), or before the last of its steps that is there."""
    _guard(text)
    for at, node in enumerate(yaml.compose_all(text, yaml.CSafeLoader)):
        if at == document and node is not None:
            break
    else:
        return 0
    line = node.start_mark.line
    for key, index in _PATH_STEP.findall(path):
        following = None
        if key and isinstance(node, yaml.MappingNode):
            following = next(((name, value) for name, value in node.value if name.value == key), None)
        elif index and isinstance(node, yaml.SequenceNode) and int(index) < len(node.value):
            following = (node.value[int(index)],) * 2
        if following is None:
            break
        line, node = following[0].start_mark.line, following[1]
    return int(line)


def _pieces(data: bytes, cuts: list[int]) -> list[tuple[int, int]]:
    """The stretches between cuts, from the start of the data to its end."""
    bounds = [0, *cuts, len(data)]
    return [(start, end) for start, end in pairwise(bounds) if start < end]


def _line(data: bytes, at: int) -> int:
    return 1 + data.count(b"\n", 0, at)
