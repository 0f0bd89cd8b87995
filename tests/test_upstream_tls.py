"""Queries over TLS and HTTPS: whose certificate counts, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import ssl
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import trustme

from kdns.errors import UpstreamError
from kdns.upstream.settings import TlsFiles
from tests.support.upstream import ADDRESS, Asked, Asking, FakeUpstream, addresses, reply, usual

NAME = "dns.example"


@dataclass(frozen=True)
class Keys:
    """A certificate authority, servers that it vouches for, and a client. server: for NAME; address: for 127.0.0.1."""

    authority: str
    certificate: str
    key: str
    server: trustme.LeafCert
    address: trustme.LeafCert
    ca: trustme.CA

    def context(self, certificate: trustme.LeafCert, *, clients: bool = False, h2: bool = False) -> ssl.SSLContext:
        """What a server uses. clients: whether it asks them for a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        if clients:
            self.ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        if h2:
            context.set_alpn_protocols(["h2"])
        return context

    @property
    def files(self) -> TlsFiles:
        return TlsFiles(self.authority)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder: Path = tmp_path_factory.mktemp("keys")
    ca = trustme.CA()
    client = ca.issue_cert("client@example")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    client.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    client.private_key_pem.write_to_path(folder / "key.pem")
    authority, certificate, key = (str(folder / name) for name in ("ca.pem", "cert.pem", "key.pem"))
    return Keys(authority, certificate, key, ca.issue_cert(NAME), ca.issue_cert("127.0.0.1"), ca)


def run(steps: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(steps, 20))


@pytest.mark.parametrize("proto", ["tls", "https"])
def test_the_certificate_has_to_be_for_the_address_or_the_name_that_is_given(keys: Keys, proto: str) -> None:
    async def steps() -> None:
        for certificate, named in ((keys.address, ""), (keys.server, NAME)):
            context = keys.context(certificate, h2=proto == "https")
            with FakeUpstream(**{proto: context}) as upstream:  # type: ignore[arg-type]
                good = replace(upstream.target, server_name=named)
                async with Asking(good, tls=keys.files) as asking:
                    assert addresses(await asking.ask()) == [ADDRESS]
                    assert addresses(await asking.ask(tcp=False)) == [ADDRESS]
                assert [asked.proto for asked in upstream.asked] == [proto] * 2
                bad = replace(upstream.target, server_name="" if named else NAME)
                async with Asking(bad, tls=keys.files, max_attempts=1, max_fails=0) as asking:
                    with pytest.raises(UpstreamError, match=r"(?i)certificate.*mismatch"):
                        await asking.ask()
                assert len(upstream.asked) == 2

    run(steps())


@pytest.mark.parametrize("proto", ["tls", "https"])
def test_an_authority_that_is_not_ours_does_not_count(keys: Keys, proto: str) -> None:
    async def steps() -> None:
        with FakeUpstream(**{proto: keys.context(keys.address)}) as upstream:  # type: ignore[arg-type]
            async with Asking(upstream.target, max_fails=0) as asking:
                with pytest.raises(UpstreamError, match=r"certificate verify failed|unable to get local issuer"):
                    await asking.ask()

    run(steps())


@pytest.mark.parametrize("proto", ["tls", "https"])
def test_our_own_certificate_is_shown_to_a_server_that_asks_for_one(keys: Keys, proto: str) -> None:
    async def steps() -> None:
        context = keys.context(keys.address, clients=True, h2=proto == "https")
        with FakeUpstream(**{proto: context}) as upstream:  # type: ignore[arg-type]
            files = TlsFiles(keys.authority, keys.certificate, keys.key)
            async with Asking(upstream.target, tls=files) as asking:
                assert addresses(await asking.ask()) == [ADDRESS]
            async with Asking(upstream.target, tls=keys.files, max_fails=0) as asking:
                with pytest.raises(UpstreamError):
                    await asking.ask()

    run(steps())


def test_tls_before_1_2_is_not_spoken(keys: Keys) -> None:
    assert keys.files.context().minimum_version == ssl.TLSVersion.TLSv1_2


def test_many_queries_share_two_tls_connections_and_one_that_ends_loses_none(keys: Keys) -> None:
    async def script(asked: Asked) -> None:
        assert asked.on is not None
        if asked.on.number == 0 and asked.on.asked > 50:
            asked.close()
        else:
            await usual(asked)

    async def steps() -> None:
        with FakeUpstream(script, tls=keys.context(keys.address)) as upstream:
            async with Asking(upstream.target, tls=keys.files) as asking:
                assert all(addresses(answer) == [ADDRESS] for answer in await asking.many(200))
                assert asking.counted("coredns_proxy_conn_cache_hits_total", proto="tcp-tls") > 190
            assert upstream.most_open <= 2

    run(steps())


def test_a_server_that_does_not_speak_tls_is_given_up_in_time() -> None:
    async def steps() -> None:
        with FakeUpstream() as upstream:
            async with Asking(replace(upstream.target, transport="tls"), max_attempts=1, max_fails=0) as asking:
                start = time.monotonic()
                with pytest.raises(UpstreamError, match="no tcp-tls connection"):
                    await asking.ask()
                assert time.monotonic() - start < 2

    run(steps())


def test_files_that_are_gone_cost_answers_and_not_the_worker(keys: Keys, tmp_path: Path) -> None:
    copy = tmp_path / "ca.pem"
    content = Path(keys.authority).read_bytes()

    async def steps() -> None:
        with FakeUpstream(tls=keys.context(keys.address)) as upstream:
            async with Asking(upstream.target, tls=TlsFiles(str(copy)), max_fails=0) as asking:
                with pytest.raises(UpstreamError, match="no such file"):
                    await asking.ask()
                copy.write_bytes(content)
                assert addresses(await asking.ask()) == [ADDRESS]

    run(steps())


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_https_asks_by_the_method_that_is_set_with_id_0_over_http_2(keys: Keys, method: str) -> None:
    async def steps() -> None:
        with FakeUpstream(https=keys.context(keys.server, h2=True)) as upstream:
            target = replace(upstream.target, server_name=NAME)
            async with Asking(target, tls=keys.files, doh_method=method) as asking:
                assert all(addresses(answer) == [ADDRESS] for answer in await asking.many(50))
            assert upstream.most_open <= 2
            for asked in upstream.asked:
                assert asked.data[:2] == b"\0\0"
                assert asked.headers[":method"] == method
                assert asked.headers[":path"].startswith("/dns-query")
                assert asked.headers[":authority"] == f"{NAME}:{upstream.port}"
                assert asked.headers["accept"] == "application/dns-message"
                assert asked.headers["accept-encoding"] == "identity"
                assert asked.headers.get("content-type") == ("application/dns-message" if method == "POST" else None)

    run(steps())


def test_an_https_query_looks_for_no_modules(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    finder = Mock(find_spec=Mock(return_value=None))

    async def steps() -> None:
        with FakeUpstream(https=keys.context(keys.address, h2=True)) as upstream:
            async with Asking(upstream.target, tls=keys.files) as asking:
                await asking.ask()
                monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
                await asking.ask()

    run(steps())
    assert [call.args[0] for call in finder.find_spec.call_args_list] == []


@pytest.mark.parametrize("how", ["silent", "reset", "wrong", "malformed"])
def test_https_faults_lead_to_the_next_upstream(keys: Keys, how: str) -> None:
    async def script(asked: Asked) -> None:
        if how == "reset":
            asked.reset()
        elif how == "wrong":
            asked.send(reply(asked, "A 203.0.113.9").replace(b"\x04test", b"\x04evil"))
        elif how == "malformed":
            asked.send(reply(asked, "A 203.0.113.9")[:-1])

    async def steps() -> None:
        context = keys.context(keys.address, h2=True)
        with FakeUpstream(script, https=context) as bad, FakeUpstream(https=context) as good:
            options = {"tls": keys.files, "policy": "sequential", "read_timeout": 0.3, "max_fails": 0}
            async with Asking(bad.target, good.target, **options) as asking:
                assert addresses(await asking.ask()) == [ADDRESS]
            assert len(bad.asked) == len(good.asked) == 1

    run(steps())


def test_an_https_connection_on_which_nothing_comes_any_more_is_given_up(keys: Keys) -> None:
    silent: set[int] = set()

    async def script(asked: Asked) -> None:
        if asked.on is not None and asked.on.number not in silent:
            await usual(asked)

    async def steps() -> None:
        with FakeUpstream(script, https=keys.context(keys.address, h2=True)) as upstream:
            async with Asking(upstream.target, tls=keys.files, read_timeout=0.5) as asking:
                await asking.ask()
                silent.update(connection.number for connection in upstream.connections)
                assert addresses(await asking.ask()) == [ADDRESS]
                assert upstream.open == 1

    run(steps())
