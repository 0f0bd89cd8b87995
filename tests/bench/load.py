"""One run of load over UDP, by dnsperf or drive.c, and what the server's processes spent on it."""

from __future__ import annotations

import json
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
    latency: mean in microseconds. codes: answers by response code. p50, p99: of the latency, in microseconds. What the
    program that asks does not tell is None."""

    answered: int
    lost: int
    rate: float
    latency: float | None
    cpu: float
    codes: dict[str, int]
    p50: float | None = None
    p99: float | None = None


def pinned(cpu: str) -> list[str]:
    """A command prefix that keeps a process on one CPU."""
    return ["taskset", "-c", cpu]


def measure(target: Target, queries: Path, options: Sequence[str], pids: Sequence[int] | None = None) -> Run:
    """Ask a file of queries with dnsperf. options: its own (`-l SECONDS`, `-n 1`, `-c CLIENTS`). pids: whose CPU time
    counts, all of the server's processes by default.

    Raises RuntimeError if dnsperf fails or a process of the server is replaced meanwhile.
    """
    command = ["dnsperf", "-s", "127.0.0.1", "-p", str(target.port), "-d", str(queries), "-c", "1", "-T", "1"]
    command += ["-q", str(OUTSTANDING), "-t", "2", *options]
    return parse(*spent(target, target.pids() if pids is None else pids, command))


def drive(program: Path, target: Target, queries: Path, seconds: float, rate: float) -> Run:
    """Ask a file of queries, over and over, with drive.c. rate: 0 for as many as the server takes.

    Raises RuntimeError as `measure`.
    """
    command = [str(program), str(target.port), str(queries), str(seconds), str(rate)]
    return parse_drive(*spent(target, target.pids(), command))


def spent(target: Target, pids: Sequence[int], command: Sequence[str]) -> tuple[str, float]:
    """Run a program on the clients' CPU; what it prints, and the CPU seconds of these processes of the server.

    Raises RuntimeError if it fails or a process of the server is replaced meanwhile.
    """
    all_pids = target.pids()
    before = procs.cpu_seconds(pids)
    done = subprocess.run([*pinned(CLIENT_CPU), *command], capture_output=True, text=True, timeout=120)
    cost = procs.cpu_seconds(pids) - before
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr or done.stdout}")
    if target.pids() != all_pids:
        raise RuntimeError(f"{target.name}: a process died under load")
    return done.stdout, cost


def parse_drive(text: str, spent: float) -> Run:
    """Read what drive.c prints. spent: CPU seconds of the server."""
    found = json.loads(text)
    answered = found["answered"]
    return Run(
        answered=answered,
        lost=found["sent"] - answered,
        rate=answered / found["seconds"],
        latency=None,
        cpu=spent / max(answered, 1) * 1e6,
        codes={},
        p50=found.get("p50"),
        p99=found.get("p99"),
    )


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
