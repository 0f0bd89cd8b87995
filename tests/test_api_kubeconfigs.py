"""Several `kubernetes` directives with one kubeconfig: each reads it in its own thread."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kdns.cluster.connection import Access, Connection
from tests.support.apiserver import ApiServer


class _Nobody:
    def request(self, verb: str, host: str, code: str, seconds: float) -> None: ...
    def throttled(self, verb: str, host: str, seconds: float) -> None: ...


def test_connections_read_the_same_kubeconfig_at_the_same_time(tmp_path: Path) -> None:
    threads = 8
    for number in range(20):
        kubeconfig = ApiServer(tmp_path / str(number), port=1).kubeconfig(tmp_path / f"{number}.kubeconfig")
        connections = [Connection(Access(kubeconfig=str(kubeconfig)), _Nobody()) for _ in range(threads)]
        together = threading.Barrier(threads)

        def identity(connection: Connection, together: threading.Barrier = together) -> str:
            together.wait()
            return connection.identity()

        with ThreadPoolExecutor(threads) as pool:
            assert len(set(pool.map(identity, connections))) == 1
        for connection in connections:
            connection.close()
