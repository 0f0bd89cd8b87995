"""One run of load over HTTP/2, by h2load: dnsperf's own loses answers that come together in one record of TLS."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path

import dns.message

from tests.bench import load
from tests.bench.load import Run
from tests.bench.targets import Target

_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}


def write_uris(path: Path, queries: Path, port: int) -> Path:
    """The queries of a file, as dnsperf reads it, in GET requests (RFC 8484 4.1) of a server on 127.0.0.1."""
    targets = (target(_wire(line)) for line in queries.read_text().splitlines())
    path.write_text("".join(f"https://127.0.0.1:{port}{found}\n" for found in targets))
    return path


def target(query: bytes) -> str:
    """Path and parameter of a GET request."""
    return f"/dns-query?dns={base64.urlsafe_b64encode(query).rstrip(b'=').decode()}"


def write_body(path: Path, queries: Path) -> Path:
    """The first of these queries, as a POST request has it."""
    path.write_bytes(_wire(queries.read_text().partition("\n")[0]))
    return path


def _wire(line: str) -> bytes:
    name, kind = line.split()
    return dns.message.make_query(name, kind, id=0).to_wire()


def measure(server: Target, options: Sequence[str]) -> Run:
    """Ask over one connection. options: h2load's own (`-D SECONDS`, `-m STREAMS`, `-i FILE`).

    Raises RuntimeError if h2load fails or a process of the server is replaced meanwhile.
    """
    return parse(*load.spent(server, server.pids(), ["h2load", "-c", "1", "-t", "1", *options]))


def parse(text: str, spent: float) -> Run:
    """Read h2load's report. spent: CPU seconds of the server. Answers are those of status 2xx."""
    codes = {f"{kind}xx": int(count) for count, kind in re.findall(r"(\d+) ([2-5])xx", text)}
    rate = re.search(r"finished in .*?, ([\d.]+) req/s", text)
    lost = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", text)
    mean = re.search(r"time for request: +\S+ +\S+ +([\d.]+)(us|ms|s) ", text)
    if rate is None or lost is None or mean is None or "2xx" not in codes:
        raise RuntimeError(f"h2load's report is none:\n{text}")
    answered = codes["2xx"]
    return Run(
        answered=answered,
        lost=int(lost[1]),
        rate=float(rate[1]),
        latency=float(mean[1]) * _UNITS[mean[2]],
        cpu=spent / max(answered, 1) * 1e6,
        codes={kind: count for kind, count in codes.items() if count},
    )
