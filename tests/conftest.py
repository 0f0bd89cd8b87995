"""Fixtures for all tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from kdns.zone.changes import Changes
from kdns.zone.store import Store
from tests.support import digs, netns, speed
from tests.support.netns import Netns
from tests.support.publishing import empty
from tests.support.server import Server

settings.register_profile("kdns", deadline=None)
settings.load_profile("kdns")

LONGEST = (
    "node_network", "node_faults", "api_faults", "rolling_update", "api_static", "unbreakable", "install",
    "node_instances", "apiserver", "migrate", "monitoring_live", "api_access", "api_rbac", "hostile", "connection",
    "publisher", "spec_messages", "compare", "search", "top", "server_tcp", "deploy_manifests", "deploy_chart",
    "cli_explain", "api_restarts",
)  # fmt: skip
"""Test files that take longest, in that order."""

Serve = Callable[..., Server]
Record = Callable[[str, object], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--what-compiles", action="store_true", help="run only the tests of what compiles")


def pytest_configure(config: pytest.Config) -> None:
    """Run at one speed: with all that is compiled as it is in the sources, in all processes that tests start."""
    if fault := speed.fault():
        pytest.exit(f"{fault}; make compile", returncode=pytest.ExitCode.USAGE_ERROR)
    sys.addaudithook(speed.watch)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What is not run is not even read."""
    is_test = collection_path.match("test_*.py")
    return (is_test and config.getoption("--what-compiles") and not speed.concerns(collection_path)) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that the last ones are short and end together."""
    if config.getoption("--what-compiles"):
        both = [item for item in items if item.get_closest_marker("one_speed") is None]
        config.hook.pytest_deselected(items=list(set(items) - set(both)))
        items[:] = both
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem.removeprefix("test_"), len(place)))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store that all tests of a file use, one after the other."""
    opened = Store.open(tmp_path_factory.mktemp("state"), Changes.create(), pytest.fail)
    yield opened
    opened.close()


@pytest.fixture
def store(shared: Store) -> Store:
    """An empty store."""
    empty(shared)
    return shared


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KDNS_STATE_DIR", raising=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid():
        pytest.skip("mounting a tmpfs needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "kdns-test", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start servers with Server's parameters, each in its own folder unless one is given; all end with the test."""
    with contextlib.ExitStack() as stack:
        count = 0

        def start(objects: Any = (), *, folder: Path | None = None, **options: Any) -> Server:
            nonlocal count
            count += 1
            return stack.enter_context(Server(folder or tmp_path / f"server{count}", objects, **options))

        yield start


@pytest.fixture
def make_netns() -> Iterator[Callable[..., Netns]]:
    """Make network namespaces with Netns's parameters; all are removed with the test."""
    try:
        netns.require()
    except netns.NetnsUnavailableError as error:
        pytest.skip(str(error))
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(Netns(*arguments, **options))


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Record:
    """Note a figure: a property of the test in a JUnit report, and a line that `pytest -rP` shows."""

    def note(name: str, value: object) -> None:
        record_property(name, value)
        print(f"{name}: {value}")

    return note


def require(*tools: str) -> None:
    """For fixtures of modules: skip where a program is not installed, or namespaces cannot be made."""
    if missing := [tool for tool in tools if not digs.available(tool)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    try:
        netns.require()
    except netns.NetnsUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def needs() -> Callable[..., None]:
    """Skip the test where a program that it runs is not installed."""

    def check(*tools: str) -> None:
        missing = [tool for tool in tools if not digs.available(tool)]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}")

    return check
