"""Queries over HTTPS (RFC 8484), with HTTP/2 where the server has it. Imported only where an upstream needs it."""

from __future__ import annotations

import asyncio
import base64
import ssl
import sys
from contextlib import AbstractAsyncContextManager
from functools import partial
from importlib.util import find_spec

import httpx

from kdns.errors import ConnectionLostError, UpstreamError
from kdns.upstream.ask import Ask
from kdns.upstream.faults import NOT_USED, TIMEOUT
from kdns.upstream.settings import Settings, Target
from kdns.upstream.steps import in_task
from kdns.wire.message import MAX_MESSAGE, QUESTION_AT

PATH = "/dns-query"
_TYPE = "application/dns-message"
_CONNECT_SECONDS = 1.5
_MAX_CONNECTIONS = 2
_NO_ID = b"\0\0"
if find_spec("sniffio") is None:
    # httpcore tries to import it several times for each query; this says at once that it is not there.
    sys.modules["sniffio"] = None  # type: ignore[assignment]


class Https:
    """The HTTP client for one address. To be used in the event loop only."""

    def __init__(self, target: Target, settings: Settings, context: ssl.SSLContext) -> None:
        """context: for this client alone, which sets ALPN in it."""
        self._method = settings.doh_method
        self._url = f"https://{target}{PATH}"
        self._headers = {"accept": _TYPE, "accept-encoding": "identity"}
        if target.server_name:
            port = "" if target.port == 443 else f":{target.port}"
            self._headers["host"] = target.server_name + port
        self._extensions = {"sni_hostname": target.server_name or target.host}
        self._transport = partial(
            httpx.AsyncHTTPTransport,
            verify=context,
            http2=True,
            trust_env=False,
            limits=httpx.Limits(
                max_connections=_MAX_CONNECTIONS,
                max_keepalive_connections=settings.max_idle or None,
                keepalive_expiry=settings.expire,
            ),
            local_address=settings.source or None,
        )
        self._client = self._new_client()
        self._heard = 0.0  # when the last answer came, of the event loop's clock

    def _new_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=self._transport(), trust_env=False, follow_redirects=False)

    async def ask(self, ask: Ask, until: float) -> bytes:
        """The answer. until: of the event loop's clock. Raises ConnectionLostError or UpstreamError."""
        await in_task()
        client, loop = self._client, asyncio.get_running_loop()
        if client.is_closed:
            raise ConnectionLostError(NOT_USED)
        sent = loop.time()
        try:
            async with asyncio.timeout_at(until):
                async with self._stream(_NO_ID + ask.body) as response:
                    data = await self._read(response)
        except TimeoutError:
            if self._heard < sent:
                await self._abandon(client)
            raise UpstreamError(f"no answer over HTTPS in time: {TIMEOUT}") from None
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError) as error:
            raise ConnectionLostError(f"the HTTPS connection ended: {_said(error)}") from None
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
            raise UpstreamError(f"HTTPS: {_said(error)}") from None
        except UpstreamError:
            raise
        except Exception as error:  # what h2 and others say of a broken answer, some of which httpx lets through
            await self._abandon(client)
            raise ConnectionLostError(f"the HTTPS connection ended: {_said(error)}") from None
        self._heard = loop.time()
        wrong = ask.mismatch(data)
        if wrong:
            raise UpstreamError(f"malformed answer over HTTPS ({wrong})")
        return data

    def _stream(self, message: bytes) -> AbstractAsyncContextManager[httpx.Response]:
        stream = partial(
            self._client.stream,
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            extensions=self._extensions,
        )
        if self._method == "GET":
            text = base64.urlsafe_b64encode(message).rstrip(b"=").decode()
            return stream("GET", self._url, params={"dns": text}, headers=self._headers)
        return stream("POST", self._url, content=message, headers=self._headers | {"content-type": _TYPE})

    async def _read(self, response: httpx.Response) -> bytes:
        """The body, which cannot be longer than a DNS message."""
        found = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.status_code != httpx.codes.OK or found != _TYPE:
            raise UpstreamError(f"HTTP status {response.status_code}, content type {found[:64]!r}")
        if "content-encoding" in response.headers:  # a few bytes could become any number
            raise UpstreamError("an answer over HTTPS that is packed, which was not asked for")
        data = b""
        async for part in response.aiter_raw():
            data += part
            if len(data) > MAX_MESSAGE:
                raise UpstreamError(f"an answer of more than {MAX_MESSAGE} bytes")
        if len(data) < QUESTION_AT:
            raise UpstreamError(f"an answer of {len(data)} bytes")
        return data

    async def _abandon(self, client: httpx.AsyncClient) -> None:
        """Go over to new connections, as nothing has come on the old ones since a query was sent that has timed out.

        HTTP keeps using a connection whose other end has vanished until the kernel gives it up, which takes minutes.
        """
        if self._client is client and not client.is_closed:
            self._client = self._new_client()
            await client.aclose()

    async def close(self) -> None:
        """End all connections."""
        await self._client.aclose()


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
