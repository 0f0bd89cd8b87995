"""Load over TCP: many short connections, or long ones with many queries on their way (tcp_load.c, which cc makes)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.bench import load, native
from tests.bench.load import Run
from tests.bench.targets import Target

SOURCE = Path(__file__).with_suffix(".c")
SHORT = ("-c", "20", "-n", "1")
"""A query on each connection, 20 connections at a time."""
PIPELINED = ("-c", "1", "-n", "0", "-q", "100")
"""One connection for all the time, and 100 queries written at once."""


def build(folder: Path) -> Path:
    """Compile the program into a folder. Raises RuntimeError."""
    return native.build(SOURCE.stem, folder)


def measure(program: Path, target: Target, queries: Path, options: Sequence[str]) -> Run:
    """Ask a file of queries, as dnsperf reads it. options: SHORT or PIPELINED, and `-l SECONDS`.

    Raises RuntimeError if the program fails or a process of the server is replaced meanwhile.
    """
    command = [str(program), "-p", str(target.port), "-d", str(queries), *options]
    text, spent = load.spent(target, target.pids(), command)
    found = json.loads(text)
    answered = found["answered"]
    return Run(
        answered=answered,
        lost=found["lost"],
        rate=found["rate"],
        latency=found["latency"]["mean"],
        cpu=spent / max(answered, 1) * 1e6,
        codes=found["codes"],
        p50=found["latency"]["p50"],
        p99=found["latency"]["p99"],
    )
