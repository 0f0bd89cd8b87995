"""Knot DNS with zones that a test writes."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import dns.exception
import dns.message
import dns.query

from tests.support import ports, procs
from tests.support.resolvers import knot_configuration, program

ADDRESS = "127.0.0.1"
START_SECONDS = 10.0


class Knot:
    """Serves zones over UDP and TCP on a port of 127.0.0.1. zones: master files by origin."""

    def __init__(self, folder: Path, zones: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = ports.free_port([ADDRESS])
        self.process: subprocess.Popen[bytes] | None = None
        self._origin = next(iter(zones))
        files = {origin: folder / f"{origin}.zone" for origin in zones}
        for origin, text in zones.items():
            files[origin].write_text(text)
        (folder / "knot.conf").write_text(knot_configuration(folder, self.port, files))

    def __enter__(self) -> Self:
        with (self.folder / "log").open("wb") as log:
            command = [program("knotd") or "knotd", "-c", str(self.folder / "knot.conf")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            procs.wait_until(self._answers, START_SECONDS, "knotd", 0.02)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        if error is not None:
            error.add_note(f"log of knotd:\n{self.log[-2000:]}")

    def stop(self) -> None:
        """SIGKILL, and wait for its end."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    @property
    def log(self) -> str:
        """What it has said."""
        return (self.folder / "log").read_text(errors="replace")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"knotd ended with {self.process.returncode}:\n{self.log}"
        try:
            query = dns.message.make_query(self._origin, "SOA")
            return bool(dns.query.udp(query, ADDRESS, timeout=0.2, port=self.port).answer)
        except (OSError, dns.exception.DNSException):
            return False
