"""What the API server sends, from bytes to deliveries: no sockets, clocks or threads.

After the Kubernetes documentation, "Kubernetes API Concepts": efficient detection of changes, watch bookmarks,
streaming lists, retrieving large results sets in chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec
from msgspec import Struct, field

from kdns.cluster import objects
from kdns.cluster.delivery import Delivery
from kdns.errors import ApiError

LINE_LIMIT = 16 * 2**20
"""Bytes of the longest event. etcd takes no object over 1.5 MiB."""

Note: TypeAlias = Callable[[str, str], None]
"""Told the reason (of API_REASONS) and the text of something that was left out, while all else goes on."""

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Event(Struct, frozen=True, gc=False):
    type: str
    object: msgspec.Raw


class _Cause(Struct, frozen=True, gc=False):
    reason: str | None = None


class _Details(Struct, frozen=True, gc=False):
    causes: list[_Cause] | None = None


class Status(Struct, frozen=True, gc=False):
    """A Status object: what went wrong. code: as in HTTP. reason: one word, such as Expired."""

    code: int | None = None
    reason: str | None = None
    message: str | None = None
    details: _Details | None = None

    @property
    def expired(self) -> bool:
        """The resourceVersion is too old to go on from, or newer than anything the server has: a list is needed."""
        causes = (self.details.causes or ()) if self.details is not None else ()
        return (
            self.code == 410
            or self.reason in ("Expired", "Gone")
            or any(cause.reason == "ResourceVersionTooLarge" for cause in causes)
            or "too large resource version" in (self.message or "").lower()
        )


class _ListMeta(Struct, frozen=True, gc=False, rename="camel"):
    resource_version: str
    token: str | None = field(name="continue", default=None)


class _Page(Struct, frozen=True, gc=False):
    """A page of a list. No field has a default: what is not there was not said, and is no empty list."""

    kind: str
    metadata: _ListMeta
    items: list[msgspec.Raw] | None


_event = msgspec.json.Decoder(_Event)
_status = msgspec.json.Decoder(Status)
_page = msgspec.json.Decoder(_Page)


def read_status(body: bytes | msgspec.Raw) -> Status:
    """The Status object in a response's body or an ERROR event; an empty one if it is something else."""
    try:
        return _status.decode(body)
    except _UNREADABLE:
        return Status()


class Lines:
    """Cuts a stream of bytes, however it is divided, at its newlines. limit: bytes of the longest line."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that end in this chunk, without their newlines. Raises ApiError (too_large)."""
        lines = chunk.split(b"\n")
        tail = lines.pop()
        suspect = self._size + len(chunk) > self._limit
        if lines:
            lines[0] = b"".join((*self._parts, lines[0]))
            self._parts, self._size = [], 0
        self._parts.append(tail)
        self._size += len(tail)
        if suspect and max((self._size, *map(len, lines))) > self._limit:
            raise ApiError(f"an event of more than {self._limit} bytes", "too_large")
        return lines

    def end(self) -> bytes:
        """What came after the last newline."""
        return b"".join(self._parts)


class Intake:
    """The objects of one kind, as they come in a watch or a list.

    namespaces: objects of others are left out; empty for all. version: the resourceVersion that the watch starts from;
    None for a list, streaming (`feed`) or in pages (`page`).

    Attributes: version: what is reached. listing: the list is not complete yet. error: why the stream cannot be
    followed any further; what came before it is delivered. old: how many events told of what was known already.
    """

    def __init__(
        self, kind: str, namespaces: frozenset[str], version: str | None, note: Note, *, limit: int = LINE_LIMIT
    ) -> None:
        self._kind = kind
        self._namespaces = namespaces
        self._note = note
        self._lines = Lines(limit)
        self._delivery = Delivery(kind, complete=version is None)
        self._news = False
        self._puzzled = False  # told of an unknown type of event, which is enough
        self.version = version
        self._told = version  # what the last delivery said
        self._number = _number(version or "")
        self.listing = version is None
        self.error: ApiError | None = None
        self.old = 0

    @property
    def listed(self) -> int | None:
        """How many objects of the list have come; None once it is complete."""
        return len(self._delivery.rows) + len(self._delivery.kept) if self.listing else None

    def feed(self, chunk: bytes) -> Delivery | None:
        """Take in bytes of a watch; what they bring. Look at `error` then."""
        try:
            lines = self._lines.feed(chunk)
        except ApiError as error:
            self.error = error
            lines = []
        self._events(lines)
        return self.take()

    def end(self) -> Delivery | None:
        """The watch has ended; what its last line brings, if it had no newline. Look at `error` then."""
        self._events([self._lines.end()])
        return self.take()

    def page(self, body: bytes) -> str:
        """Take in a page of a list; the token that continues it, "" if it was the last. Raises ApiError (malformed)."""
        try:
            page = _page.decode(body)
        except _UNREADABLE as error:
            raise ApiError(f"no list of objects: {error}", "malformed") from None
        if page.kind != f"{self._kind}List" or not page.metadata.resource_version:
            raise ApiError(f"no {self._kind}List with a resourceVersion, but {page.kind[:100]!r}", "malformed")
        if self.version is None:
            self.version = page.metadata.resource_version
        for item in page.items or ():
            self._object(item, gone=False)
        if not page.metadata.token:
            self._complete(self.version)
        return page.metadata.token or ""

    def take(self) -> Delivery | None:
        """What has come since the last time, if there is anything; of a list nothing before it is complete."""
        if self.listing or not self._news:
            return None
        delivery, self._delivery = self._delivery, Delivery(self._kind)
        delivery.version = self.version or ""
        self._told = self.version
        self._news = False
        return delivery

    def _events(self, lines: list[bytes]) -> None:
        for line in lines:
            if not line or self.error is not None:
                continue
            try:
                event = _event.decode(line)
            except _UNREADABLE as error:
                if not line.isspace():
                    self.error = ApiError(f"no event: {error}: {line[:100]!r}", "malformed")
                continue
            match event.type:
                case "ADDED" | "MODIFIED":
                    self._object(event.object, gone=False)
                case "DELETED":
                    self._object(event.object, gone=True)
                case "BOOKMARK":
                    self._bookmark(event.object)
                case "ERROR":
                    self.error = _error_event(read_status(event.object))
                case unknown if not self._puzzled:
                    self._puzzled = True
                    self._note("unsupported", f"events of type {unknown[:100]!r} are ignored")

    def _object(self, data: msgspec.Raw, *, gone: bool) -> None:
        key: str | None
        packed = trigger = None
        try:
            key, version, _, packed, trigger = objects.read(self._kind, data)
        except objects.ObjectError as error:
            key, version = objects.identify(self._kind, data), _version(data)
            if not gone and self._selected(key):
                text = f"{self._kind} {key or 'without a name'}: {error.path}: {error}; what is known of it stays"
                self._note("malformed", text)
        if not self.listing and not self._advance(version):
            self.old += 1
            return
        if key is None or not self._selected(key):
            return
        if gone:
            self._delivery.delete(key)
        elif packed is not None:
            self._delivery.put(key, packed, None if self.listing else trigger)
        elif self.listing:
            self._delivery.keep(key)
        self._news = True

    def _selected(self, key: str | None) -> bool:
        return not self._namespaces or (key or "").partition("/")[0] in self._namespaces

    def _bookmark(self, data: msgspec.Raw) -> None:
        try:
            version, ends = objects.read_bookmark(data)
        except objects.ObjectError as error:
            self._note("malformed", f"a bookmark that is none: {error}")
            return
        if not self.listing:
            self._advance(version)
            self._news |= self.version != self._told
        elif ends and version:
            self._complete(version)
        elif ends:
            self.error = ApiError("a streaming list that ends without a resourceVersion", "malformed")

    def _complete(self, version: str) -> None:
        self.version, self._number = version, _number(version)
        self.listing, self._news = False, True

    def _advance(self, version: str) -> bool:
        """Note the version of an event; False if it was reached before. Only numbers can be compared."""
        number = _number(version)
        if number is not None and self._number is not None and number <= self._number:
            return False
        if version:
            self.version, self._number = version, number
        return True


def _number(version: str) -> int | None:
    return int(version) if len(version) < 32 and version.isdecimal() else None


def _version(data: msgspec.Raw) -> str:
    try:
        return objects.read_bookmark(data)[0]
    except objects.ObjectError:
        return ""


def _error_event(status: Status) -> ApiError:
    text = f"an ERROR event: {status.code or ''} {status.reason or ''}: {(status.message or 'no message')[:500]}"
    return ApiError(text, "expired" if status.expired else "error_event")
