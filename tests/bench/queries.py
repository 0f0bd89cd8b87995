"""Query mixes as dnsperf reads them. Names that are not there are as search lists make them, or random."""

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
    """10,000 queries to be asked over and over: 30 % A, 15 % SRV, 15 % AAAA without data, 40 % NXDOMAIN."""
    choice = random.Random(1)
    hits = cluster.service_names()
    lines = [f"{name}. A" for name in choice.choices(hits, k=REPEATED * 30 // 100)]
    lines += [f"_http._tcp.{name}. SRV" for name in choice.choices(hits, k=REPEATED * 15 // 100)]
    lines += [f"{name}. AAAA" for name in choice.choices(hits, k=REPEATED * 15 // 100)]
    missing = [f"{name}.{suffix}" for name in EXTERNAL for suffix in _suffixes()]
    lines += _twice(choice.choices(missing, k=REPEATED * 40 // 100))
    choice.shuffle(lines)
    return _write(path, lines)


def write_fresh(path: Path, cluster: Cluster, count: int, seed: int) -> Path:
    """Queries to be asked once: 40 % A and 20 % AAAA anywhere among Services and endpoints, 40 % NXDOMAIN, every name
    of those a new one."""
    choice = random.Random(seed)
    hits = cluster.service_names() + cluster.endpoint_names()
    return _write(path, _mix(choice, count, choice.choices(hits, k=count * 3 // 5), seed))


def write_unlike(path: Path, cluster: Cluster, count: int, seed: int) -> Path:
    """The same of Services alone, and no two queries have the same bytes, as the names are in random case: also a small
    cluster's answers are all looked up."""
    choice = random.Random(seed)
    names = choice.choices(cluster.service_names(), k=count * 3 // 5)
    return _write(path, _mix(choice, count, [_in_any_case(choice, name) for name in names], seed))


def write_any(path: Path, cluster: Cluster, count: int, seed: int) -> Path:
    """Queries for Services anywhere, 40 % A and 20 % AAAA, and 40 % NXDOMAIN under search suffixes, as they come."""
    choice = random.Random(seed)
    names = choice.choices(cluster.service_names(), k=count * 3 // 5)
    missing = [f"{name}.{suffix}" for name in EXTERNAL for suffix in _suffixes()]
    lines = [f"{name}. {'AAAA' if index % 3 == 2 else 'A'}" for index, name in enumerate(names)]
    lines += _twice(choice.choices(missing, k=count * 2 // 5))
    choice.shuffle(lines)
    return _write(path, lines)


def write_suffixed(path: Path, count: int, seed: int) -> Path:
    """Queries for names of others with what search lists append to them; each name is new, all are NXDOMAIN."""
    return _write(path, _twice(_missing(count, seed)))


def write_random(path: Path, count: int, seed: int) -> Path:
    """Queries for Services that are not there: a random label in a namespace; each name is new, all are NXDOMAIN."""
    choice = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    names = (
        f"{''.join(choice.choices(letters, k=8))}{number:x}.team-{number % NAMESPACES:02d}.svc.{ZONE}"
        for number in range(count)
    )
    return _write(path, _twice(names))


def write_names(path: Path, names: Iterable[str]) -> Path:
    """A query for the A records of each name, without its last dot."""
    return _write(path, [f"{name}. A" for name in names])


def _suffixes() -> list[str]:
    """What the search lists of pods append; each namespace's own as often as all of the two others."""
    own = [f"team-{number:02d}.svc.{ZONE}" for number in range(NAMESPACES)]
    return own + [f"svc.{ZONE}", ZONE] * NAMESPACES


def _missing(count: int, seed: int) -> list[str]:
    """Names that no other seed has."""
    suffixes = _suffixes()
    return [f"h{seed:x}-{n:x}.example.com.{suffixes[n % len(suffixes)]}" for n in range(count)]


def _mix(choice: random.Random, count: int, names: list[str], seed: int) -> list[str]:
    """Names that are there, of each third one the AAAA records, and so many that are not that there are `count`."""
    lines = [f"{name}. {'AAAA' if index % 3 == 2 else 'A'}" for index, name in enumerate(names)]
    lines += _twice(_missing(count - len(names), seed))
    choice.shuffle(lines)
    return lines


def _in_any_case(choice: random.Random, name: str) -> str:
    bits = choice.getrandbits(len(name))
    return "".join([letter.upper() if bits >> place & 1 else letter for place, letter in enumerate(name)])


def _twice(names: Iterable[str]) -> list[str]:
    """A and AAAA in turns."""
    return [f"{name}. {('A', 'AAAA')[index % 2]}" for index, name in enumerate(names)]


def _write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path
