"""Objects put into an API server over HTTP, as an administrator's client does it."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

from tests.support.apiserver import ApiServer
from tests.support.apiserver_store import BY_KIND, Object
from tests.support.apiserver_write import APPLY
from tests.support.netns import Netns

MANAGER = "tests"
SECONDS = 10.0


class RefusedError(Exception):
    """The API server's words about what it does not take."""


class Client:
    """Asks an API server with a token, the administrator's unless another one is given.

    namespace: where it asks from; None: from here.
    """

    def __init__(self, api: ApiServer, token: str | None = None, namespace: Netns | None = None) -> None:
        self.api = api
        self.token = token or api.admin
        self.namespace = namespace

    def request(
        self, method: str, path: str, body: Any = None, kind: str = "application/json", **query: str
    ) -> tuple[int, Any]:
        """Status and JSON of the answer."""
        context = ssl.create_default_context(cadata=self.api.ca_pem.decode())
        connection = http.client.HTTPSConnection(self.api.host, self.api.port, timeout=SECONDS, context=context)
        if self.namespace is None:
            connection.connect()
        else:
            self.namespace.inside(connection.connect)
        try:
            text = None if body is None else json.dumps(body)
            headers = {"Authorization": f"Bearer {self.token}", "Content-Type": kind}
            connection.request(method, f"{path}?{urlencode(query)}" if query else path, text, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def apply(self, item: Object) -> Object:
        """Server-Side Apply, as `kubectl apply --server-side`; the object as it is then. Raises RefusedError."""
        return self._asked("PATCH", path_of(item), item, APPLY, fieldManager=MANAGER, force="true")

    def install(self, items: Iterable[Object]) -> None:
        """Apply objects in their order."""
        for item in items:
            self.apply(item)

    def get(self, kind: str, namespace: str, name: str) -> Object:
        """An object. Raises RefusedError."""
        return self._asked("GET", path_of({"kind": kind, "metadata": {"namespace": namespace, "name": name}}))

    def put(self, item: Object) -> Object:
        """Update an object. Raises RefusedError."""
        return self._asked("PUT", path_of(item), item)

    def _asked(self, method: str, path: str, body: Any = None, kind: str = "application/json", **query: str) -> Object:
        code, found = self.request(method, path, body, kind, **query)
        if code not in (200, 201):
            raise RefusedError(f"{method} {path}: {code} {found.get('message', found)}")
        assert isinstance(found, dict)
        return found


def path_of(item: Object) -> str:
    """Where an object is, or is to be."""
    resource = BY_KIND[item["kind"]]
    metadata = item["metadata"]
    namespace = f"/namespaces/{metadata['namespace']}" if resource.namespaced else ""
    return f"{resource.root}{namespace}/{resource.plural}/{metadata['name']}"
