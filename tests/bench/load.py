"""One run of dnsperf and what the server's processes spent on it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.targets import Target
from tests.support import procs

SERVER_CPU, CLIENT_CPU = "0", "1"
PACE = 10_000
OUTSTANDING = 100


@dataclass(frozen=True, slots=True)
class Run:
    """cpu: microseconds of the server's processes (user and system) for each answered query. rate: answers a second.
    latency: mean in microseconds. codes: answers by response code."""

    answered: int
    lost: int
    rate: float
    latency: float
    cpu: float
    codes: dict[str, int]


def pinned(cpu: str) -> list[str]:
    """A command prefix that keeps a process on one CPU."""
    return ["taskset", "-c", cpu]


def measure(target: Target, queries: Path, options: Sequence[str]) -> Run:
    """Ask a file of queries with dnsperf. options: its own (`-l SECONDS`, `-n 1`, `-Q RATE`).

    Raises RuntimeError if dnsperf fails or a process of the server is replaced meanwhile.
    """
    command = ["dnsperf", "-s", "127.0.0.1", "-p", str(target.port), "-d", str(queries), "-c", "1", "-T", "1"]
    command += ["-q", str(OUTSTANDING), "-t", "2", *options]
    pids = target.pids()
    before = procs.cpu_seconds(pids)
    done = subprocess.run([*pinned(CLIENT_CPU), *command], capture_output=True, text=True, timeout=120)
    spent = procs.cpu_seconds(pids) - before
    if done.returncode:
        raise RuntimeError(f"dnsperf: {done.stderr or done.stdout}")
    if target.pids() != pids:
        raise RuntimeError(f"{target.name}: a process died under load")
    return parse(done.stdout, spent)


def parse(text: str, spent: float) -> Run:
    """Read dnsperf's report. spent: CPU seconds of the server."""
    answered = int(_number(r"Queries completed:\s+(\d+)", text))
    codes = re.search(r"Response codes:\s+(.*)", text)
    return Run(
        answered=answered,
        lost=int(_number(r"Queries lost:\s+(\d+)", text)),
        rate=_number(r"Queries per second:\s+([\d.]+)", text),
        latency=_number(r"Average Latency \(s\):\s+([\d.]+)", text) * 1e6,
        cpu=spent / max(answered, 1) * 1e6,
        codes={name: int(count) for name, count in re.findall(r"(\w+) (\d+)", codes[1] if codes else "")},
    )


def _number(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"dnsperf's report has no {pattern!r}:\n{text}")
    return float(match[1])
