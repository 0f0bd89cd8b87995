"""Query mixes as dnsperf reads them: 40 % A hits, 20 % AAAA NODATA, 40 % NXDOMAIN as search lists make them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

from tests.bench.cluster import NAMESPACES, ZONE, Cluster

REPEATED = 10_000
EXTERNAL = [f"{host}.{domain}" for host in ("api", "www", "login", "cdn", "events") for domain in (
    "example.com", "example.org", "example.net", "payments.example.com", "storage.example.org",
    "queue.example.net", "mail.example.com", "metrics.example.org", "auth.example.net", "img.example.com",
)]  # fmt: skip


def write_repeated(path: Path, cluster: Cluster) -> Path:
    """10,000 queries that dnsperf asks over and over."""
    choice = random.Random(1)
    hits = cluster.service_names()
    lines = _mix(choice, REPEATED, hits, [f"{name}.{suffix}" for name in EXTERNAL for suffix in _suffixes()])
    return _write(path, lines)


def write_fresh(path: Path, cluster: Cluster, count: int, seed: int) -> Path:
    """Queries to be asked once: hits anywhere among Services and endpoints, every NXDOMAIN name a new one."""
    choice = random.Random(seed)
    suffixes = _suffixes()
    missing = [f"h{seed:x}-{n:x}.example.com.{suffixes[n % len(suffixes)]}" for n in range(count * 2 // 5)]
    lines = _mix(choice, count, cluster.service_names() + cluster.endpoint_names(), missing)
    return _write(path, lines)


def write_names(path: Path, names: Iterable[str]) -> Path:
    """A query for the A records of each name, without its last dot."""
    return _write(path, [f"{name}. A" for name in names])


def _suffixes() -> list[str]:
    """What the search lists of pods append; each namespace's own as often as all of the two others."""
    own = [f"team-{number:02d}.svc.{ZONE}" for number in range(NAMESPACES)]
    return own + [f"svc.{ZONE}", ZONE] * NAMESPACES


def _mix(choice: random.Random, count: int, hits: list[str], missing: list[str]) -> list[str]:
    """missing: used each once if there are just as many as needed, else chosen from."""
    wanted = count * 2 // 5
    absent = missing if len(missing) == wanted else choice.choices(missing, k=wanted)
    lines = [f"{name}. A" for name in choice.choices(hits, k=wanted)]
    lines += [f"{name}. AAAA" for name in choice.choices(hits, k=count // 5)]
    lines += [f"{name}. {('A', 'AAAA')[index % 2]}" for index, name in enumerate(absent)]
    choice.shuffle(lines)
    return lines


def _write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path
