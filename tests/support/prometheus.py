"""A Prometheus as a real process, and PromQL as far as tests have to understand it."""

from __future__ import annotations

import contextlib
import json
import math
import re
import socket
import socketserver
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.support import ports, procs

READY_SECONDS = 20.0
Series = dict[str, Any]
"""As Prometheus's API has it: `metric`, and `value` or `values`."""

_LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = _LISTS | {"and", "or", "unless", "offset", "bool", "inf", "nan", "start", "end"}
_TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*")|(?P<range>\[[^]]*\])|(?P<number>\d[\w.]*)|(?P<name>[A-Za-z_:][\w:]*)|(?P<sign>\S)"""
)


@dataclass(frozen=True, slots=True)
class Expression:
    """What a query names. selectors: metrics with the labels that they are selected by. grouped: labels in `by`, `on`
    and the like. made: labels that label_replace makes."""

    selectors: tuple[tuple[str, frozenset[str]], ...]
    grouped: frozenset[str]
    made: frozenset[str]

    @property
    def metrics(self) -> frozenset[str]:
        """The names of all metrics."""
        return frozenset(name for name, _ in self.selectors)


def parse(query: str) -> Expression:
    """Take a query apart. Not for strings in other quotes, comments, and selectors by __name__."""
    selectors: list[tuple[str, frozenset[str]]] = []
    grouped: set[str] = set()
    made = frozenset(re.findall(r'"(\w+)", "\$1"', query))
    tokens = [match for match in _TOKEN.finditer(query) if match["text"] is None and match["range"] is None]
    words = [match["name"] or match["sign"] or "" for match in tokens]
    at = 0
    while at < len(words):
        word, following = words[at], words[at + 1] if at + 1 < len(words) else ""
        at += 1
        is_function = following == "(" or following in ("by", "without")
        if not tokens[at - 1]["name"] or (word not in _LISTS and (word.lower() in _WORDS or is_function)):
            continue
        if word in _LISTS:
            if following == "(":
                end = words.index(")", at)
                grouped.update(filter(str.isidentifier, words[at:end]))
                at = end
            continue
        labels: frozenset[str] = frozenset()
        if following == "{":
            end = words.index("}", at)
            labels = frozenset(filter(str.isidentifier, words[at:end]))
            at = end
        selectors.append((word, labels))
    return Expression(tuple(selectors), frozenset(grouped), made)


class Prometheus:
    """Scrapes every second. A context manager, which waits until every target has been scraped.

    jobs: for each job, its instances, and where each is scraped ("127.0.0.1:9153"). rules: a file of rules, evaluated
    every second.
    """

    def __init__(self, folder: Path, jobs: Mapping[str, Mapping[str, str]], rules: Path | None = None) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._targets = sum(map(len, jobs.values()))
        self.port = ports.free_port(("127.0.0.1",))
        self.log_path = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)] if rules is not None else [],
            "scrape_configs": [
                {
                    "job_name": job,
                    "static_configs": [
                        {"targets": [where], "labels": {"instance": instance}} for instance, where in instances.items()
                    ],
                }
                for job, instances in jobs.items()
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))

    def __enter__(self) -> Self:
        command = [
            "prometheus",
            f"--config.file={self.folder}/prometheus.yml",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        command += [f"--storage.tsdb.path={self.folder}/data", "--log.level=warn"]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder)
        try:
            procs.wait_until(self._is_ready, READY_SECONDS, f"Prometheus in {self.folder}", 0.05)
            procs.wait_until(self._has_scraped, READY_SECONDS, f"all {self._targets} targets", 0.1)
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._kill()
        if error is not None:
            error.add_note(f"log of Prometheus:\n{self.log_path.read_text()[-4000:]}")

    def _kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"it ended with {self._process.returncode}:\n{self.log_path.read_text()}"
        with contextlib.suppress(OSError):
            return self._get("/-/ready") is not None
        return False

    def _has_scraped(self) -> bool:
        """It begins up to 5 s after it is ready (updates of targets are gathered)."""
        return len(self.query("up == 1")) == self._targets

    def _get(self, path: str, **parameters: str) -> bytes:
        url = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            data: bytes = response.read()
            return data

    def _ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of the API. Raises AssertionError with Prometheus's own words for a query."""
        try:
            found = json.loads(self._get(path, **parameters))
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {json.loads(error.read())['error']}") from None
        assert found["status"] == "success", found
        assert not found.get("warnings"), found["warnings"]
        return found["data"]

    def query(self, query: str) -> list[Series]:
        """What it gives now."""
        found: list[Series] = self._ask("/api/v1/query", query=query)["result"]
        return found

    def over(self, query: str, start: float, end: float) -> list[Series]:
        """What it gives at each second from `start` to `end` (of time.time)."""
        found: list[Series] = self._ask("/api/v1/query_range", query=query, start=str(start), end=str(end), step="1")[
            "result"
        ]
        return found

    def label_values(self, selector: str, label: str) -> list[str]:
        """Grafana's label_values(selector, label)."""
        found: list[str] = self._ask(f"/api/v1/label/{label}/values", **{"match[]": selector})
        return found

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that are pending or firing."""
        found: list[dict[str, Any]] = self._ask("/api/v1/alerts")["alerts"]
        return found

    def types(self) -> dict[str, str]:
        """The type of each metric, by its name without _bucket, _sum and _count."""
        return {name: entries[0]["type"] for name, entries in self._ask("/api/v1/metadata").items()}

    def unhealthy(self) -> list[str]:
        """Targets that have not been scraped without an error, and why."""
        targets = self._ask("/api/v1/targets", state="active")["activeTargets"]
        return [f"{t['labels']['instance']}: {t['lastError']}" for t in targets if t["health"] != "up"]


def numbers(series: Series) -> list[float]:
    """The values of a series that are numbers."""
    pairs = series.get("values") or [series["value"]]
    return [value for value in (float(text) for _, text in pairs) if not math.isnan(value)]


@contextlib.contextmanager
def relayed(connect: Callable[[], socket.socket]) -> Iterator[str]:
    """Relay HTTP requests, such as into another network namespace; the address at which this is done.

    connect: makes a connection to where they go. Only for servers that close the connection after the answer.
    """

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError), connect() as other:
                other.settimeout(5)
                self.request.settimeout(5)
                request = b""
                while b"\r\n\r\n" not in request and (data := self.request.recv(65536)):
                    request += data
                other.sendall(request)
                while data := other.recv(65536):
                    self.request.sendall(data)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
