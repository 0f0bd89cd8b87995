"""The benchmark's own parts: what it reads, calculates, draws and publishes. It measures nothing here."""

from __future__ import annotations

import base64
import re
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from xml.etree import ElementTree

import dns.message
import dns.name
import dns.zone
import pytest
import typer

from tests.bench import __main__ as command
from tests.bench import (
    api,
    beside,
    chart,
    following,
    h2load,
    load,
    native,
    peers,
    published,
    queries,
    report,
    workloads,
)
from tests.bench.cluster import ZONE, Cluster
from tests.bench.load import Run
from tests.bench.nodes import Nodes
from tests.bench.published import Record
from tests.bench.targets import KDNS, PYTHON
from tests.bench.workloads import (
    AIMS,
    BUSY,
    CHANGING,
    JSON_TWO,
    LIMIT,
    PACED,
    QUIET,
    REPEATED,
    SIZED,
    SNAPSHOT,
    Ratio,
    Start,
    Verdict,
)
from tests.support import objects, procs
from tests.support.server import ROOT, Server

CLUSTER = Cluster(100, 3)
DNSPERF = """\
DNS Performance Testing Tool
Version 2.10.0

Statistics:

  Queries sent:         1200
  Queries completed:    1000 (83.33%)
  Queries lost:         200 (16.67%)

  Response codes:       NOERROR 600 (60.00%), NXDOMAIN 400 (40.00%)
  Average packet size:  request 51, response 103
  Run time (s):         2.000000
  Queries per second:   500.000000

  Average Latency (s):  0.000250 (min 0.000004, max 0.039158)
  Latency StdDev (s):   0.001916
"""
H2LOAD = """\
finished in 3.01s, 5079.33 req/s, 653.22KB/s
requests: 15338 total, 15338 started, 15238 done, 15230 succeeded, 8 failed, 0 errored, 0 timeout
status codes: 15230 2xx, 0 3xx, 8 4xx, 0 5xx
traffic: 1.91MB (2006823) total, 380.95KB (390093) headers (space savings 59.21%), 1.24MB (1300000) data
                     min         max         mean         sd        +/- sd
time for request:      871us     24.51ms     19.60ms      1.91ms    95.11%
time for connect:     1.10ms      1.10ms      1.10ms         0us   100.00%
"""


def run(cpu: float, p99: float = 20.0, rate: float = 1000.0) -> Run:
    return Run(answered=10, lost=0, rate=rate, latency=5.0, cpu=cpu, codes={}, p50=p99 / 2, p99=p99)


def runs(*costs: float) -> list[Run]:
    return [run(cost) for cost in costs]


def verdict(found: Sequence[Verdict], workload: str, what: str) -> Verdict:
    (one,) = (one for one in found if (one.workload, one.what) == (workload, what))
    return one


# What is read


def test_dnsperf_is_read() -> None:
    found = load.parse(DNSPERF, spent=0.005)
    assert found == Run(1000, 200, 500.0, 250.0, 5.0, {"NOERROR": 600, "NXDOMAIN": 400})


def test_h2load_is_read() -> None:
    found = h2load.parse(H2LOAD, spent=1.523)
    assert found == Run(15230, 8, 5079.33, found.latency, found.cpu, {"2xx": 15230, "4xx": 8})
    assert (found.latency, found.cpu) == pytest.approx((19600, 100))
    with pytest.raises(RuntimeError, match="not connected"):
        h2load.parse("not connected", spent=1)


def test_queries_become_requests(tmp_path: Path) -> None:
    asked = queries.write_repeated(tmp_path / "queries", CLUSTER)
    lines = h2load.write_uris(tmp_path / "uris", asked, 8443).read_text().splitlines()
    texts = [line.removeprefix("https://127.0.0.1:8443/dns-query?dns=") for line in lines]
    found = [dns.message.from_wire(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))) for text in texts]
    shown = [f"{one.question[0].name} {dns.rdatatype.to_text(one.question[0].rdtype)}" for one in found]
    assert shown == asked.read_text().splitlines()
    assert dns.message.from_wire(h2load.write_body(tmp_path / "body", asked).read_bytes()) == found[0]


def test_a_report_of_dnsperf_that_lacks_something_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Queries lost"):
        load.parse(DNSPERF.replace("Queries lost", "Queries gone"), spent=0.005)


def test_drive_asks_at_an_even_rate_and_tells_the_latency(tmp_path: Path) -> None:
    program = native.build(native.DRIVE, tmp_path)
    asked = queries.write_repeated(tmp_path / "queries", CLUSTER)
    seen: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(10)

        def respond() -> None:
            """To all but the last."""
            for _ in range(50):
                data, peer = sock.recvfrom(4096)
                seen.append(data)
                if len(seen) < 50:
                    sock.sendto(data[:2] + b"\x80" + data[3:], peer)

        thread = threading.Thread(target=respond)
        thread.start()
        text = subprocess.run(
            [program, str(sock.getsockname()[1]), asked, "0.25", "200"], capture_output=True, text=True, check=True
        ).stdout
        thread.join()
    found = load.parse_drive(text, spent=0.049)
    assert (found.answered, found.lost) == (49, 1)
    assert found.cpu == pytest.approx(1000)
    assert found.p50 is not None
    assert found.p99 is not None
    assert 0 < found.p50 <= found.p99
    lines = [
        f"{message.question[0].name} {dns.rdatatype.to_text(message.question[0].rdtype)}"
        for message in map(dns.message.from_wire, seen)
    ]
    assert lines == asked.read_text().splitlines()[:50]
    assert [int.from_bytes(data[:2], "big") for data in seen] == list(range(50))


def response_of(port: int, query: bytes) -> bytes | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        try:
            sock.connect(("127.0.0.1", port))
            sock.send(query)
            return sock.recv(4096)
        except OSError:
            return None


def test_the_floor_turns_the_qr_bit_and_nothing_else(tmp_path: Path) -> None:
    target = peers.floor(tmp_path / "floor", CLUSTER)
    assert target is not None
    query = dns.message.make_query("web.shop.svc.cluster.local", "AAAA").to_wire()
    target.start()
    try:
        procs.wait_until(lambda: response_of(target.port, query) is not None, 10, "a response")
        response = response_of(target.port, query)
    finally:
        target.stop()
    assert response == query[:2] + bytes([query[2] | 0x80]) + query[3:]


# What is asked


def shares(lines: Sequence[str], names: set[str]) -> dict[str, float]:
    """Of the queries, by type, or "missing" for names that are not there."""
    kinds = [kind if name.lower() in names else "missing" for name, kind in (line.split() for line in lines)]
    return {kind: kinds.count(kind) / len(kinds) for kind in sorted(set(kinds))}


def zone_names(folder: Path) -> set[str]:
    zone = dns.zone.from_file(str(CLUSTER.write_zone(folder / "zone")), relativize=False, check_origin=False)
    return {name.to_text() for name in zone.nodes}


def test_repeated_names_are_addresses_services_and_names_that_are_not_there(tmp_path: Path) -> None:
    lines = queries.write_repeated(tmp_path / "queries", CLUSTER).read_text().splitlines()
    assert shares(lines, zone_names(tmp_path)) == {"A": 0.3, "AAAA": 0.15, "SRV": 0.15, "missing": 0.4}


def test_names_that_are_new_are_neither_asked_twice_nor_there(tmp_path: Path) -> None:
    asked: list[str] = []
    for seed in (1, 2):
        asked += queries.write_suffixed(tmp_path / "suffixed", 500, seed).read_text().splitlines()
        asked += queries.write_random(tmp_path / "random", 500, seed).read_text().splitlines()
    assert len({line.split()[0] for line in asked}) == 2000
    assert shares(asked, zone_names(tmp_path)) == {"missing": 1.0}
    assert all(line.split()[0].endswith(f"{ZONE}.") for line in asked)


def test_no_two_queries_of_services_in_random_case_are_the_same(tmp_path: Path) -> None:
    lines = queries.write_unlike(tmp_path / "queries", CLUSTER, 5000, 1).read_text().splitlines()
    assert len(set(lines)) == 5000
    assert shares(lines, zone_names(tmp_path)) == {"A": 0.4, "AAAA": 0.2, "missing": 0.4}


FOLLOWED = """\
cluster.local:$dns {
    bind 127.0.0.1
    ready 127.0.0.1:$ready
    kubernetes cluster.local {
        manifests $manifests
    }
    transfer {
        to *
    }
}
"""


def test_nodes_get_what_there_is(tmp_path: Path) -> None:
    cluster = [objects.service(f"s{number}", ips=[f"10.0.0.{number + 1}"]) for number in range(100)]
    with Server(tmp_path, cluster, corefile=FOLLOWED, addresses=["127.0.0.1"]) as server:
        nodes = Nodes(server.port, ZONE, 20)
        try:
            nodes.connect()
            nodes.run(5, nodes.settled)
            (first,) = nodes.serials()
            assert nodes.transfers == {"axfr": 20, "ixfr": 0, "current": 0}
            server.write_objects([*cluster[1:], objects.service("s0", ips=["10.9.9.9"])])
            nodes.run(5, lambda: nodes.serials() != {first} and nodes.settled() and len(nodes.serials()) == 1)
            assert nodes.transfers == {"axfr": 20, "ixfr": 20, "current": 0}
            (found,) = [part for part in nodes.parts if "10.9.9.9" in part.added]
            assert (len(found.times), "10.0.0.1" in found.added) == (20, False)
            for lineage, kind in ((None, "current"), (b"another!", "axfr")):
                nodes.close()
                nodes.clear()
                nodes.connect(lineage)
                nodes.run(5, nodes.settled)
                assert nodes.transfers[kind] == sum(nodes.transfers.values()) == 20
            assert nodes.failed == 0
        finally:
            nodes.close()


# What is calculated


def test_a_ratio_is_the_median_over_rounds_of_ratios_in_the_same_round() -> None:
    servers = {KDNS: runs(2, 8, 3), peers.KNOT: runs(1, 8, 4)}
    assert workloads.ratio(servers, KDNS, peers.KNOT) == 1
    assert workloads.ratio(servers, KDNS, peers.FLOOR) is None


def test_aims_are_judged() -> None:
    measured = {
        REPEATED: {KDNS: runs(2.3), peers.FLOOR: runs(2.0), peers.KNOT: runs(2.2)},
        PACED: {KDNS: [run(8, p99=30)], peers.KNOT: [run(10, p99=29)]},
        SIZED: {"100 Services": runs(4, 5), "10 Services": runs(3, 4), "1,000 Services": runs(4, 4)},
        CHANGING: {QUIET: runs(2), BUSY: runs(2.4)},
    }
    starts = {JSON_TWO: Start(1, 1, 90_000_000, 100_000_001), SNAPSHOT: Start(0.3, None, 1, 1)}
    found = workloads.judge(measured, starts)
    judged = {(one.workload, one.what): (round(one.value, 3), one.unit, one.met) for one in found}
    assert judged == {
        (REPEATED, "CPU, kdns / floor"): (1.15, "", True),
        (REPEATED, "CPU, kdns / knot"): (1.045, "", False),
        (PACED, "CPU, kdns / knot"): (0.8, "", True),
        (PACED, "p99, kdns / knot"): (1.034, "", False),
        (SIZED, "CPU, 100 Services / 10 Services"): (1.286, "", False),
        (CHANGING, f"CPU, {BUSY} / {QUIET}"): (1.2, "", True),
        (JSON_TWO, "memory after load"): (100_000_001, "MB", False),
        (SNAPSHOT, "start to first answer"): (0.3, "s", True),
    }
    assert verdict(found, SIZED, "CPU, 100 Services / 10 Services").own == 4.5


def test_what_a_change_costs_for_a_node_is_what_is_more_than_without_any() -> None:
    def stretch(count: int, cpu: tuple[float, float]) -> following.Stretch:
        return following.Stretch(2, count, cpu, {}, None, None, None, None)

    assert following.cost(stretch(10, (0.1, 0.1)), stretch(20, (0.2, 1.2)), 100) == pytest.approx(500)


def test_what_was_not_measured_is_not_judged() -> None:
    assert workloads.judge({}, {}) == []


def test_every_workload_of_an_aim_is_one_that_a_part_measures() -> None:
    """A part that renames its workload would leave the aim out without a word."""
    sources = "".join(path.read_text() for path in (ROOT / "tests/bench").glob("*.py") if path.stem != "workloads")
    constants = {value: name for name, value in vars(workloads).items() if isinstance(value, str)}
    for aim in AIMS:
        wanted = aim.start if isinstance(aim, workloads.Limit) else aim.workload
        assert re.search(rf"\b{constants[wanted]}\b", sources), wanted
        if isinstance(aim, Ratio):
            assert {aim.subject, aim.reference} & {KDNS, *peers.MAKERS, BUSY, QUIET, workloads.ONE, workloads.TWO}


# What is shown


def record() -> Record:
    servers = [KDNS, PYTHON, *peers.MAKERS]
    costs = {
        name: [run(1.0 + number, p99=10.0 + number, rate=1e6 / (number + 1))] for number, name in enumerate(servers)
    }
    measured = {REPEATED: costs, PACED: costs, LIMIT: costs}
    return Record(
        date="2026-01-02T03:04:05+00:00",
        machine={"cpu": "A < B & C", "cores": 2, "kernel": "6.1.0-9-amd64"},
        versions={name: f"1.{number}" for number, name in enumerate(servers)},
        memory=dict.fromkeys(servers, 50_000_000),
        runs=measured,
        aims=workloads.judge(measured, {}),
    )


def parsed(picture: str) -> ElementTree.Element:
    return ElementTree.fromstring(picture)  # noqa: S314 (it is our own)


def test_the_chart_is_well_formed_and_the_same_each_time() -> None:
    text = published.draw(record())
    assert text == published.draw(record())
    root = parsed(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    shown = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for name in chart.NAMES.values():
        assert shown.count(name) == (5 if name != chart.NAMES[peers.FLOOR] else 4)
    assert any(text and "A < B & C, 2 CPUs, Linux 6.1.0, 2026-01-02" in text for text in shown)


def test_bars_are_as_long_as_their_figures_and_within_the_picture() -> None:
    root = parsed(published.draw(record()))
    width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
    bars = [dict(element.attrib) for element in root.iter("{http://www.w3.org/2000/svg}rect")][1:]
    first = [float(bar["width"]) for bar in bars[: len(chart.NAMES)]]
    assert [length / first[0] for length in first] == pytest.approx(range(1, len(first) + 1), rel=0.01)
    for bar in bars:
        assert float(bar["x"]) + float(bar["width"]) < width
        assert float(bar["y"]) + float(bar["height"]) < height


def test_the_chart_has_colours_for_light_and_dark_pages() -> None:
    style = parsed(published.draw(record())).find("{http://www.w3.org/2000/svg}style")
    assert style is not None
    light, dark = (style.text or "").split("@media (prefers-color-scheme: dark)")
    for kind in ("card", "kdns", "floor", "other", "small"):
        assert f".{kind} " in light
        assert f".{kind} " in dark


def test_a_report_is_read_as_it_was_written() -> None:
    found = report.Report(
        date="2026-01-02T03:04:05+00:00",
        machine={"cpu": "x", "cores": 2},
        versions={KDNS: "1"},
        cluster=CLUSTER,
        starts={SNAPSHOT: Start(0.2, None, 1, 2)},
        memory={KDNS: 5},
        runs={REPEATED: {KDNS: runs(2, 3), peers.KNOT: runs(4, 4)}},
        api=api.Figures(),
        ttls={},
        followers=following.Figures(),
        copies=[],
    )
    read = published.read(report.as_json(found))
    assert read.runs == found.runs
    assert read.aims == workloads.judge(found.runs, found.starts)
    assert verdict(read.aims, REPEATED, "CPU, kdns / knot").value == median([2 / 4, 3 / 4])


def test_the_readme_has_a_place_for_the_figures() -> None:
    old = f"a\n{published.BEGIN}old\n{published.END}b\n"
    assert published.placed(old, "new\n") == f"a\n{published.BEGIN}new\n{published.END}b\n"
    with pytest.raises(ValueError, match="to here"):
        published.placed(f"a\n{published.BEGIN}", "new")


def test_the_readme_shows_what_was_recorded() -> None:
    """Table and chart are those that the JSON gives which the README names."""
    readme = published.README.read_text()
    shown = readme.partition(published.BEGIN)[2].partition(published.END)[0]
    path = published.RESULTS / re.findall(r"\(tests/bench/results/([\w-]+\.json)\)", shown)[0]
    kept = published.read(path.read_text())
    assert shown == published.section(kept, path)
    assert published.CHART.read_text() == published.draw(kept)


# What can be chosen


def test_groups_stand_for_their_parts() -> None:
    assert command._parts(["forward", "udp"]) == {"udp", "cache", "misses", "ttls"}
    with pytest.raises(typer.BadParameter, match="accepted: udp, tcp"):
        command._parts(["upd"])


def test_every_server_can_be_measured_and_drawn() -> None:
    assert set(beside.SERVERS) == set(chart.NAMES)
    assert set(beside.OVER_TCP) < set(beside.SERVERS)
    assert set(beside.SHORT.servers) < set(beside.SERVERS)


def test_debian_has_all_that_is_measured() -> None:
    """The packages that `make bench` installs bring each peer's program."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", "")
    line = re.search(r"^BENCH_TOOLS := (.*)$", makefile, re.MULTILINE)
    assert line is not None
    tools = {tool.partition("=")[0] for tool in line[1].split()}
    source = (ROOT / "tests/bench/peers.py").read_text()
    assert tools >= {"dnsperf", "h2load", "taskset", "cc", *re.findall(r'_program\("(\w+)"\)', source)}
