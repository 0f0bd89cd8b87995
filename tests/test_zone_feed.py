"""What follows master files: how many are read at once, and what a reader's end means."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kdns.cli import check
from kdns.server.zone_feed import Files, ZoneFeed, ZonePublication, of_auto
from kdns.zone import masterfile
from tests.support.configs import options


def test_no_more_than_some_directives_are_read_at_once() -> None:
    lock, now, most = threading.Lock(), 0, 0

    def look() -> Files:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        return {}

    publication = cast(Any, SimpleNamespace(declare=lambda _: None, zones=dict, synced=False))

    async def load() -> None:
        turns = asyncio.Semaphore(2)
        feeds = [ZoneFeed(cast(ZonePublication, publication), look, 60.0, {}, turns) for _ in range(6)]
        await asyncio.gather(*(feed.load() for feed in feeds))

    asyncio.run(load())
    assert most == 2


def test_check_tells_of_a_file_that_ends_what_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "db").write_text("@ 1 SOA ns host 1 2 3 4 5\n")
    (tmp_path / "Corefile").write_text(f"z.test {{\n file {tmp_path}/db\n}}\n")
    assert check.report(tmp_path / "Corefile")["ok"]
    monkeypatch.setattr(masterfile, "__name__", "kdns.zone.nothing")
    (mistake,) = check.report(tmp_path / "Corefile")["mistakes"]
    assert mistake["text"].startswith(f"{tmp_path}/db:1: what read it has ended with 1; accepted: a smaller file")


def test_a_folder_in_the_folder_that_may_not_be_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("db.a.test", "lost+found/db.b.test", "more/db.c.test", "more/db.x..y"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def access(path: Path, *_: object, **__: object) -> bool:
        return path.name != "lost+found"

    monkeypatch.setattr("os.access", access)  # root may read everything
    warnings: list[str] = []
    found = of_auto(options(f"auto {{\ndirectory {tmp_path}\n}}"), warnings.append)
    assert [path.name for path in found.values()] == ["db.a.test", "db.c.test"]
    assert warnings[0] == f"{tmp_path}/lost+found: permission denied; it is passed over"
    assert warnings[1].startswith(f"{tmp_path}/more/db.x..y: its name makes no zone: ")
