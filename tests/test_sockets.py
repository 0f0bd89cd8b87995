"""Which addresses a configuration listens on."""

from __future__ import annotations

import pytest

from kdns import plugins
from kdns.errors import KdnsError
from kdns.server import sockets


def check(text: str) -> None:
    blocks = plugins.loads(text).blocks
    sockets.refuse_shared_ports(blocks, sockets.servers(blocks, {}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (".:8080 {\n health\n whoami\n}", "health :8080 and DNS :8080 overlap; accepted: another port"),
        (".:53 {\n bind 127.0.0.1\n ready :53\n whoami\n}", "ready :53 and DNS 127.0.0.1:53 overlap"),
        (".:53 {\n prometheus 127.0.0.1:53\n whoami\n}", "prometheus 127.0.0.1:53 and DNS :53 overlap"),
        (".:53 {\n health :9000\n ready 127.0.0.1:9000\n whoami\n}", "overlap; accepted: another port, or one address"),
    ],
)
def test_http_where_something_else_listens_is_refused(text: str, message: str) -> None:
    with pytest.raises(KdnsError) as caught:
        check(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        ".:53 {\n health :9000\n ready :9000\n prometheus :9000\n whoami\n}",
        ".:53 {\n bind 127.0.0.1\n health 127.0.0.2:53\n whoami\n}",
        "a.test:53 {\n health\n whoami\n}\nb.test:53 {\n health\n whoami\n}",
    ],
)
def test_http_beside_everything_else_is_fine(text: str) -> None:
    check(text)
