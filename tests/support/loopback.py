"""`kdns node` on addresses of the loopback interface, which need no network to be set up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.server import Metrics, Server
from tests.support.volume import Volume

ERRORS = "coredns_nodecache_setup_errors_total"
BASE = """\
__PILLAR__DNS__DOMAIN__ {
    bind __PILLAR__LOCAL__DNS__ __PILLAR__DNS__SERVER__
    forward . __PILLAR__CLUSTER__DNS__:$cluster {
        force_tcp
    }
}
.:$dns {
    errors
    bind __PILLAR__LOCAL__DNS__
    forward . __PILLAR__UPSTREAM__SERVERS__ {
        force_tcp
    }
    health __PILLAR__LOCAL__DNS__:$health
    $plugins
}
"""


class Node(Server):
    """`kdns node` on loopback addresses, which need no setting up. arguments: added to its own."""

    def __init__(self, folder: Path, volume: Volume, *arguments: str, corefile: str = BASE, **options: Any) -> None:
        self.volume = volume
        self.arguments = arguments
        self.result = folder / "result"
        super().__init__(folder, corefile=corefile, addresses=["127.0.0.1"], **options)

    def command(self) -> list[str]:
        serve = super().command()
        own = ["node", "-localip", "127.0.0.1", "-basecorefile", str(self.conf), "-conf", str(self.result)]
        own += ["--state-dir", str(self.state_dir)]
        own += ["-kubednscm", str(self.volume.folder), f"-dns.port={self.port}", "-upstreamsvc=up"]
        own += ["-metrics-listen-address", f"127.0.0.1:{self.metrics_port}", *self.arguments]
        return [*serve[: serve.index("serve")], *own]

    def counted(self) -> float:
        """Complaints about the ConfigMap."""
        return Metrics(self.get("/metrics", self.metrics_port).body).value(ERRORS, errortype="configmap")
