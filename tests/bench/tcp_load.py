"""Load over TCP: many short connections, or long ones with many queries on their way (tcp_load.c, which cc makes)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.bench.load import CLIENT_CPU, Run, pinned
from tests.bench.targets import Target
from tests.support import procs

SOURCE = Path(__file__).with_suffix(".c")
SHORT = ("-c", "20", "-n", "1")
"""A query on each connection, 20 connections at a time."""
PIPELINED = ("-c", "1", "-n", "0", "-q", "100")
"""One connection for all the time, and 100 queries written at once."""


def build(folder: Path) -> Path:
    """Compile the program into a folder. Raises RuntimeError."""
    program = folder / "tcp_load"
    command = ["cc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"cc: {done.stderr}")
    return program


def measure(program: Path, target: Target, queries: Path, options: Sequence[str]) -> Run:
    """Ask a file of queries, as dnsperf reads it. options: SHORT or PIPELINED, and `-l SECONDS`.

    Raises RuntimeError if the program fails or a process of the server is replaced meanwhile.
    """
    command = [*pinned(CLIENT_CPU), str(program), "-p", str(target.port), "-d", str(queries), *options]
    pids = target.pids()
    before = procs.cpu_seconds(pids)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    spent = procs.cpu_seconds(pids) - before
    if done.returncode:
        raise RuntimeError(f"tcp_load: {done.stderr}")
    if target.pids() != pids:
        raise RuntimeError(f"{target.name}: a process died under load")
    found = json.loads(done.stdout)
    answered = found["answered"]
    return Run(
        answered=answered,
        lost=found["lost"],
        rate=found["rate"],
        latency=found["latency"]["mean"],
        cpu=spent / max(answered, 1) * 1e6,
        codes=found["codes"],
    )
