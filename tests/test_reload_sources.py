"""Reloads that change where names come from."""

from __future__ import annotations

import signal

import dns.rcode

from tests.conftest import Serve
from tests.support import procs
from tests.support.objects import service, write_list

OTHER = """\
.:$dns {{
    bind $addresses
    prometheus 127.0.0.1:$metrics
    health 127.0.0.1:$health
    ready 127.0.0.1:$ready
    kubernetes {zones} {{
        manifests {path}
    }}
}}
"""
FAILED = "coredns_reload_failed_total"


def test_a_reload_to_another_zone_never_answers_for_it_before_it_is_read(serve: Serve) -> None:
    server = serve([service("web", ips=["10.96.0.1"])])
    other = server.folder / "other"
    other.mkdir()
    write_list(other / "cluster.json", [service("web", ips=["10.96.0.2"])])
    server.write_corefile(OTHER.format(zones="other.test", path=other))
    server.signal(signal.SIGHUP)
    seen = set()

    def moved() -> bool:
        response = server.query("web.default.svc.other.test")
        seen.add(response.rcode())
        return bool(response.answer)

    procs.wait_until(moved, 10, "the new zone")
    assert seen <= {dns.rcode.NOERROR, dns.rcode.SERVFAIL}
    assert server.texts("web.default.svc.other.test") == ["10.96.0.2"]
    assert server.metrics().value(FAILED) == 0


def test_a_reload_to_a_source_that_cannot_be_read_is_refused(serve: Serve) -> None:
    server = serve([service("web", ips=["10.96.0.1"])])
    server.write_corefile(OTHER.format(zones="other.test", path=server.folder / "nowhere"))
    server.signal(signal.SIGHUP)
    procs.wait_until(lambda: server.metrics().value(FAILED) == 1, 10, "the failed reload")
    assert server.texts("web.default.svc.cluster.local") == ["10.96.0.1"]
    assert "could not be read" in server.log
