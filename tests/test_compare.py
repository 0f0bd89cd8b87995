"""`kdns compare`: the same questions to two servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.rrset
import pytest

from kdns.tools.asking import GoneError, Limits, Target
from kdns.tools.compare import Comparison, Options, Result
from kdns.tools.questions import Question
from kdns.wire import names, rr
from tests.support import procs
from tests.support.knot import Knot
from tests.support.objects import Object, endpoint, endpoint_slice, external_name, namespace, pod, service
from tests.support.server import ROOT, Server
from tests.support.upstream import Asked, FakeUpstream, reply

SHOP = "shop.svc.cluster.local"
ZONES = ("cluster.local", "in-addr.arpa", "ip6.arpa")
QUICK = Limits(timeout=0.15, tries=2, window=16)
QUESTION_COUNT = 300


def kdns(*arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command, run to its end in the top folder."""
    command = [sys.executable, "-m", "kdns", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=60)


def cluster() -> list[Object]:
    many = [endpoint(f"10.2.0.{number}") for number in range(200)]
    return [
        namespace("shop"),
        service("web", "shop", ips=("10.96.0.10", "fd00:96::10"), ports=(("http", 80), ("dns", 53, "UDP"))),
        endpoint_slice("web", [endpoint("10.1.1.1", pod="web-1")], "shop"),
        service("db", "shop", ips=()),
        endpoint_slice("db", [endpoint(f"10.1.0.{n + 1}", hostname=f"db-{n}") for n in range(3)], "shop"),
        endpoint_slice("db", [endpoint("fd00:1::1", hostname="db-0")], "shop", suffix="6", address_type="IPv6"),
        service("big", "shop", ips=()),
        endpoint_slice("big", many, "shop"),
        service("twin", "shop", ips=("10.96.0.10",)),
        external_name("inside", f"web.{SHOP}", "shop"),
        external_name("outside", "api.example.com", "shop"),
        pod("web-1", "shop", "10.1.1.1"),
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """kdns with a cluster, and no other server to ask."""
    with Server(tmp_path_factory.mktemp("compare"), cluster(), kubernetes="pods verified") as started:
        yield started


@pytest.fixture(scope="module")
def zones(server: Server) -> dict[str, str]:
    """Its zones as master files."""
    return {zone: kdns("records", "--state-dir", server.state_dir, "--zone", zone).stdout for zone in ZONES}


def local(port: int) -> str:
    return f"127.0.0.1:{port}"


def compared(server: Server, other: int, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of a comparison over all names of the cluster."""
    cluster = ["--state-dir", str(server.state_dir)]
    done = kdns("compare", local(server.port), local(other), *cluster, "--json", *options)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def rows(found: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Name, type, what differs, and both sides, of every difference that is shown."""
    return [
        (each["name"], each["type"], aspect["what"], aspect["first"], aspect["second"])
        for each in found["differences"]
        for aspect in each["aspects"]
    ]


# The same zone in another make of server


def test_kdns_and_knot_answer_the_same_from_the_same_zones(
    server: Server, zones: dict[str, str], needs: Callable[..., None], tmp_path: Path
) -> None:
    needs("knotd")
    with Knot(tmp_path, zones) as knot:
        code, found = compared(server, knot.port, "--sections", "answer,authority", "--serials")
        text = kdns("compare", local(server.port), local(knot.port), "--state-dir", server.state_dir)
    assert rows(found) == []
    assert (code, found["different"]) == (0, 0)
    assert found["questions"] > QUESTION_COUNT
    reasons = {each["why"]: each["count"] for each in found["on_purpose"]}
    assert reasons == {"an alias is followed for A and AAAA only": 1}, "TXT of the alias in the cluster"
    assert found["same"] == found["questions"] - 1
    assert (text.returncode, text.stderr) == (0, "")
    assert re.match(rf"{found['questions']:,} questions to 127\.0\.0\.1 port .* s: no difference\n", text.stdout)


CHANGES = [
    (f"web.{SHOP}.\t5\tIN\tA\t10.96.0.10\n", f"web.{SHOP}.\t5\tIN\tA\t10.96.0.11\n"),
    (f"db-1.db.{SHOP}.\t5\tIN\tA\t10.1.0.2\n", ""),
    (f"_http._tcp.web.{SHOP}.\t5\t", f"_http._tcp.web.{SHOP}.\t6\t"),
    (f"outside.{SHOP}.\t5\tIN\tCNAME\tapi.example.com.", f"outside.{SHOP}.\t5\tIN\tCNAME\tapi.example.org."),
]


def test_each_change_of_a_record_is_found_and_nothing_else(
    server: Server, zones: dict[str, str], needs: Callable[..., None], tmp_path: Path
) -> None:
    needs("knotd")
    changed = dict(zones)
    for before, after in CHANGES:
        assert before in changed["cluster.local"]
        changed["cluster.local"] = changed["cluster.local"].replace(before, after)
    changed["in-addr.arpa"] = re.sub(r"(2\.0\.2\.10\.in-addr.*PTR\t)10-2-0-2\.", r"\1ten.", changed["in-addr.arpa"])
    with Knot(tmp_path, changed) as knot:
        code, found = compared(server, knot.port)
        plain = kdns("compare", local(server.port), local(knot.port), "--state-dir", server.state_dir)
        less = compared(server, knot.port, "--ttl", "less")[1]
        other_way = compared(server, knot.port, "--ttl", "ignore", "--limit", "1")[1]
    assert code == 3
    wanted = [
        *(
            (name, "A", "answer", "10.96.0.10", "10.96.0.11")
            for name in (f"web.{SHOP}.", "wEb.sHoP.sVc.cLuStEr.lOcAl.")
        ),
        (f"inside.{SHOP}.", "A", "answer", f"web.{SHOP}. 10.96.0.10", f"web.{SHOP}. 10.96.0.11"),
        (f"db-1.db.{SHOP}.", "A", "rcode", "NOERROR", "NXDOMAIN"),
        (f"db-1.db.{SHOP}.", "A", "answer", "10.1.0.2", "nothing"),
        (f"db-1.db.{SHOP}.", "AAAA", "rcode", "NOERROR", "NXDOMAIN"),
        (f"_http._tcp.web.{SHOP}.", "SRV", "TTL", "5", "6"),
        *(
            (name, rtype, "answer", f"{prefix}api.example.com.", f"{prefix}api.example.org.")
            for name, rtype, prefix in (
                (f"outside.{SHOP}.", "CNAME", ""),
                ("oUtSiDe.sHoP.sVc.cLuStEr.lOcAl.", "CNAME", ""),
                *((f"outside.{SHOP}.", rtype, "CNAME ") for rtype in ("A", "AAAA", "TXT")),
            )
        ),
        ("2.0.2.10.in-addr.arpa.", "PTR", "answer", f"10-2-0-2.big.{SHOP}.", f"ten.big.{SHOP}."),
    ]
    assert sorted(rows(found)) == sorted(wanted)
    assert found["different"] == len(found["differences"]) == sum(kind["count"] for kind in found["kinds"])
    assert plain.returncode == 3
    assert f"{found['different']} different\n" in plain.stdout
    assert "TTLs count down in a cache" in plain.stdout
    assert sorted(rows(less)) == sorted(rows(found)), "those of the second server are more, not less"
    assert other_way["different"] == found["different"] - 1
    assert len(other_way["differences"]) == 1, "the limit"


def test_what_kdns_does_on_purpose_is_told_from_other_differences(
    server: Server, zones: dict[str, str], needs: Callable[..., None], tmp_path: Path
) -> None:
    """Knot says what CoreDNS does: one PTR of several, addresses at names of ports, other weights, other apex NS."""
    needs("knotd")
    text = zones["cluster.local"]
    odd = text + f"_http._tcp.web.{SHOP}.\t5\tIN\tA\t10.96.0.10\n"
    odd = odd.replace("SRV\t0 50 53 ", "SRV\t0 25 53 ").replace("SRV\t0 50 80 ", "SRV\t0 25 80 ")
    odd = odd.replace("NS\tns.dns.cluster.local.", f"NS\tweb.{SHOP}.")
    single = re.sub(r"^10\.0\.96\.10\.in-addr.*twin.*\n", "", zones["in-addr.arpa"], flags=re.MULTILINE)
    assert odd.count(" 25 ") == 2
    assert single != zones["in-addr.arpa"]
    with Knot(tmp_path, {**zones, "cluster.local": odd, "in-addr.arpa": single}) as knot:
        code, found = compared(server, knot.port)
        strict_code, strict = compared(server, knot.port, "--strict")
        files = kdns(
            "compare", local(server.port), local(knot.port), "--queries", "-", stdin="10.0.96.10.in-addr.arpa PTR\n"
        )
    assert rows(found) == []
    assert code == 0
    assert {each["why"]: each["count"] for each in found["on_purpose"]} == {
        "PTR lists every Service that has the address": 1,
        "a zone's name server is ns.dns and the zone, whatever the Service is called": 1,
        "an alias is followed for A and AAAA only": 1,
        "names of ports have SRV records only": 1,
        "the weights of SRV records share 100 by ports, not by addresses": 1,
    }
    assert (strict_code, strict["different"], strict["expected"]) == (3, found["expected"], 0)
    assert files.returncode == 3, "without the cluster it cannot be known"


# Servers that a test scripts


def questions(count: int) -> list[Question]:
    return [Question(names.from_text(f"n{number}.example"), rr.A) for number in range(count)]


async def right(asked: Asked) -> None:
    asked.send(reply(asked, "A 192.0.2.1"))


def run(
    first: FakeUpstream,
    second: FakeUpstream,
    count: int = 40,
    *,
    limits: Limits = QUICK,
    tcp: bool = False,
    again: int = 0,
) -> Result:
    """Compare two servers over so many questions."""
    servers = Target("127.0.0.1", first.port), Target("127.0.0.1", second.port, tcp)
    return Comparison(servers, Options(), limits, again=again).run(questions(count))


def texts(result: Result) -> list[tuple[str, str, str, str]]:
    """Name, what differs, and both sides."""
    return [
        (names.to_text(difference.question.name), aspect.what, aspect.first, aspect.second)
        for difference in result.found
        for aspect in difference.aspects
    ]


def for_name(label: str, otherwise: Callable[[Asked], Any]) -> Callable[[Asked], Any]:
    """A script that does something else for one name."""

    async def script(asked: Asked) -> None:
        await (otherwise if asked.name == f"{label}.example" else right)(asked)

    return script


def test_a_server_that_fails_sometimes_is_seen_and_when_it_passes_too() -> None:
    """The first question of each time opens the connection, too."""
    times: Counter[str] = Counter()

    async def sometimes(asked: Asked) -> None:
        times[asked.name] += 1
        fails = times[asked.name] <= {"n3.example": 2, "n30.example": 1}.get(asked.name, 0)
        asked.send(reply(asked, rcode="SERVFAIL") if fails else reply(asked, "A 192.0.2.1"))

    with FakeUpstream(right) as first, FakeUpstream(sometimes) as second:
        result = run(first, second)
        times.clear()
        after = run(first, second, again=1)
    assert sorted(texts(result)) == sorted(
        (f"{name}.example.", what, *sides)
        for name in ("n3", "n30")
        for what, sides in (("rcode", ("NOERROR", "SERVFAIL")), ("answer", ("192.0.2.1", "nothing")))
    )
    assert (after.different, after.passing, after.found, after.questions) == (0, 2, [], 40)


async def _silent(_: Asked) -> None:
    pass


async def _wrong(asked: Asked) -> None:
    other = dns.message.make_query("elsewhere.example", "A")
    other.id = asked.message.id
    asked.send(dns.message.make_response(other).to_wire())


async def _garbage(asked: Asked) -> None:
    asked.send(reply(asked, "A 192.0.2.1")[:-9])


async def _echo(asked: Asked) -> None:
    asked.send(asked.data)


async def _short(asked: Asked) -> None:
    asked.send(asked.data[:2] + b"\x80")


@pytest.mark.parametrize(
    ("script", "what", "told"),
    [
        (_silent, "no answer", "gives no answer over UDP: 2 tries of 0.15 s"),
        (_wrong, "no answer", "over UDP answers another question"),
        (_garbage, "malformed", "is malformed: a record is cut short"),
        (_echo, "no answer", "over UDP sends a message that is no response"),
        (_short, "no answer", "over UDP sends 3 bytes that are no message"),
    ],
)
def test_what_cannot_be_used_is_a_difference_of_that_question_alone(
    script: Callable[[Asked], Any], what: str, told: str
) -> None:
    with FakeUpstream(right) as first, FakeUpstream(for_name("n7", script)) as second:
        result = run(first, second)
    assert texts(result) == [("n7.example.", what, "NOERROR", told)]
    assert (result.questions, result.same) == (40, 39)


def test_the_last_question_without_an_answer_is_no_server_that_is_gone() -> None:
    with FakeUpstream(right) as first, FakeUpstream(for_name("n39", _silent)) as second:
        assert [name for name, *_ in texts(run(first, second))] == ["n39.example."]
        alone = run(first, second, limits=Limits(timeout=0.15, tries=2, window=1))
    assert [name for name, *_ in texts(alone)] == ["n39.example."], "it is asked something else then"


def test_a_lost_datagram_is_asked_again() -> None:
    lost: set[str] = set()

    async def loses_the_first(asked: Asked) -> None:
        if asked.name in lost:
            await right(asked)
        lost.add(asked.name)

    with FakeUpstream(right) as first, FakeUpstream(loses_the_first) as second:
        result = run(first, second)
    assert (result.different, result.questions) == (0, 40)
    assert len(second.asked) == 81, "the first one is asked in advance, to see whether the server is there"


def test_what_is_truncated_is_asked_over_tcp() -> None:
    async def large(asked: Asked) -> None:
        asked.send(reply(asked, tc=True) if asked.proto == "udp" else reply(asked, "A 192.0.2.1"))

    with FakeUpstream(large) as first, FakeUpstream(large) as second:
        result = run(first, second)
        connections = len(second.connections)
    assert (result.different, result.questions) == (0, 40)
    assert 1 <= connections <= 16, "connections are used again"
    with FakeUpstream(large) as first, FakeUpstream(large, tcp=False) as second:
        found = texts(run(first, second, 3))
    assert [row[1:] for row in found] == [
        ("no answer", "NOERROR", "truncates over UDP, and over TCP refuses connections")
    ] * 3


def test_over_tcp_alone() -> None:
    async def closes_after_each(asked: Asked) -> None:
        await right(asked)
        if asked.on is not None:
            asked.close()

    with FakeUpstream(right) as first, FakeUpstream(closes_after_each, udp=False) as second:
        result = run(first, second, tcp=True)
        assert {asked.proto for asked in second.asked} == {"tcp"}
    assert (result.different, result.questions) == (0, 40)
    with FakeUpstream(right) as first, FakeUpstream(for_name("n7", _silent), udp=False) as second:
        found = texts(run(first, second, tcp=True))
    assert found == [("n7.example.", "no answer", "NOERROR", "over TCP gives no answer within 0.15 s")]


def test_a_server_that_drops_out_ends_it_with_how_far_it_was() -> None:
    async def leaves(asked: Asked) -> None:
        if asked.number < 100:
            await right(asked)

    start = time.monotonic()
    with FakeUpstream(right) as first, FakeUpstream(leaves) as second, pytest.raises(GoneError) as caught:
        run(first, second, 5000)
    assert re.fullmatch(
        rf"127\.0\.0\.1 port {second.port} gives no answer over UDP: 2 tries of 0\.15 s, after 99 answers",
        str(caught.value),
    )
    assert time.monotonic() - start < 3, "two rounds of tries, and no more"


def test_a_server_whose_process_ends_says_so(tmp_path: Path) -> None:
    def stop() -> None:
        while len(second.asked) < 500:
            time.sleep(0.001)
        second.stop()

    with FakeUpstream(right) as first, FakeUpstream(right) as second:
        thread = threading.Thread(target=stop)
        thread.start()
        with pytest.raises(GoneError, match=r"refuses UDP: nothing listens there, after [45]\d\d answers"):
            run(first, second, 100_000)
        thread.join()


def test_what_was_found_before_a_server_dropped_out_is_shown() -> None:
    async def leaves(asked: Asked) -> None:
        if asked.number < 30:
            asked.send(reply(asked, "A 192.0.2.2"))

    text = "".join(f"n{number}.example A\n" for number in range(5000))
    with FakeUpstream(right) as first, FakeUpstream(leaves) as second:
        arguments = "compare", local(first.port), local(second.port), "--queries", "-", "--timeout", "0.15"
        done = kdns(*arguments, "--json", stdin=text)
    found = json.loads(done.stdout)
    assert (done.returncode, found["different"]) == (1, found["questions"])
    assert 0 < found["questions"] < 5000
    assert found["unfinished"] == done.stderr.rstrip()
    assert "gives no answer over UDP" in done.stderr


def test_what_was_found_before_an_interrupt_is_shown() -> None:
    async def other(asked: Asked) -> None:
        asked.send(reply(asked, "A 192.0.2.2"))

    with FakeUpstream(right) as first, FakeUpstream(other) as second:
        command = [sys.executable, "-m", "kdns", "compare", local(first.port), local(second.port), "--queries", "-"]
        with subprocess.Popen(
            [*command, "--rate", "50"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as running:
            assert running.stdin is not None
            running.stdin.write("".join(f"n{number}.example A\n" for number in range(1000)))
            running.stdin.flush()
            running.stdin.close()
            running.stdin = None
            procs.wait_until(lambda: len(second.asked) > 10, 20, "some questions are asked")
            running.send_signal(signal.SIGINT)
            shown, _ = running.communicate(timeout=20)
    assert running.returncode == 130
    assert re.search(r"^\d+ questions to .*: \d+ different, and not all is asked$", shown, re.MULTILINE), shown


def test_nobody_at_the_start() -> None:
    with FakeUpstream(right) as first:
        nobody = FakeUpstream()
        with pytest.raises(GoneError, match=rf"^127.0.0.1 port {nobody.port} refuses UDP: nothing listens there$"):
            run(first, nobody)
        with pytest.raises(GoneError, match=r"over TCP refuses connections$"):
            run(first, nobody, tcp=True)
        result = Comparison((Target("127.0.0.1", first.port),) * 2, Options(), QUICK).run([])
    assert result.questions == 0


def test_questions_go_at_the_rate_that_is_allowed() -> None:
    with FakeUpstream(right) as first, FakeUpstream(right) as second:
        start = time.monotonic()
        run(first, second, 50, limits=Limits(rate=100))
        took = time.monotonic() - start
    assert 0.45 < took < 2


def test_the_window_bounds_what_is_on_its_way() -> None:
    waiting: list[int] = []
    most = 0

    async def slow(asked: Asked) -> None:
        nonlocal most
        waiting.append(asked.number)
        most = max(most, len(waiting))
        await asyncio.sleep(0.01)
        waiting.remove(asked.number)
        await right(asked)

    with FakeUpstream(right) as first, FakeUpstream(slow) as second:
        run(first, second, 100, limits=Limits(window=7))
    assert most == 7


# The command


def test_a_log_of_kdns_is_asked_again(server: Server, tmp_path: Path) -> None:
    with Server(tmp_path, cluster(), plugins="log . {combined}") as logging:
        asked = ((f"web.{SHOP}", "A"), (f"web.{SHOP}", "A"), (f"none.{SHOP}", "AAAA"), ("x.example", "A"))
        for name, rtype in asked:
            logging.query(name, rtype)
        wanted = [f'"{rtype} IN {name}. ' for name, rtype in asked]
        procs.wait_until(lambda: all(logging.log.count(w) >= wanted.count(w) for w in wanted), 5, "the log is written")
        log = tmp_path / "queries.log"
        log.write_text(logging.log)
        done = kdns("compare", local(server.port), local(logging.port), "--log", log)
        piped = kdns("compare", local(server.port), local(logging.port), "--log", "-", "--json", stdin=logging.log)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match("[34] questions to ", done.stdout)  # the one that found the server ready may be among them
    found = json.loads(piped.stdout)
    assert found["questions"] >= 3
    assert found["lines"]["repeated"] >= 1
    assert found["lines"]["unusable"] > 0
    assert re.fullmatch(r"[\d,]+ of [\d,]+ lines are no query of a log; the first is \d+: .*\n", done.stderr)


def test_differences_are_shown_as_a_table_of_every_kind_and_all_are_counted() -> None:
    async def odd(asked: Asked) -> None:
        number = int(asked.name.split(".")[0][1:])
        asked.send(reply(asked, rcode="REFUSED") if number == 39 else reply(asked, "A 192.0.2.2"))

    text = "".join(f"n{number}.example A\n" for number in range(40))
    with FakeUpstream(right) as first, FakeUpstream(odd) as second:
        arguments = "compare", local(first.port), local(second.port), "--queries", "-"
        done = kdns(*arguments, "--limit", "3", stdin=text)
        none = kdns(*arguments, "--limit", "0", stdin=text)
    assert done.returncode == none.returncode == 3
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    head = ["name", "type", "differs in", f"127.0.0.1 port {first.port}", f"127.0.0.1 port {second.port}"]
    assert re.split(r"  +", lines[0].replace("in 127", "in  127")) == head
    cells = [re.split(r"  +", line.strip()) for line in lines[2:6]]
    assert [row for row in cells if len(row) == 5 and row[2] == "answer"] == [
        [f"n{number}.example.", "A", "answer", "192.0.2.1", "192.0.2.2"] for number in (0, 1)
    ]
    assert ["n39.example.", "A", "rcode", "NOERROR", "REFUSED"] in cells
    assert lines[6] == "3 of 40 are shown (--limit)"
    summary = [
        rf"40 questions to 127\.0\.0\.1 port {first.port} and 127\.0\.0\.1 port {second.port}, \S+ s: 40 different",
        "  39: answer",
        "  1: rcode NOERROR / REFUSED, answer",
        r"serials of SOA records were not compared \(--serials\)",
    ]
    assert re.fullmatch("\n".join(summary), none.stdout.rstrip("\n"))


def test_a_terminal_has_a_bar() -> None:
    ours, theirs = pty.openpty()
    text = "".join(f"n{number}.example A\n" for number in range(200))
    with (
        FakeUpstream(right) as first,
        FakeUpstream(right) as second,
        contextlib.closing(os.fdopen(ours, "rb", 0)) as screen,
    ):
        command = ["compare", local(first.port), local(second.port), "--rate", "400", "--queries", "-"]
        process = subprocess.Popen(
            [sys.executable, "-m", "kdns", *command],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=theirs, text=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        )  # fmt: skip
        os.close(theirs)
        out, _ = process.communicate(text, timeout=30)
        shown = b""
        with contextlib.suppress(OSError):  # the other side is closed
            while part := screen.read(65536):
                shown += part
    assert process.returncode == 0
    assert "no difference" in out
    assert re.search(rb"[1-9]\d* asked, 0 different", shown), shown


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["127.0.0.1", "127.0.0.2"], 2, "give a cluster"),
        (["127.0.0.1", "127.0.0.2", "--queries", "a", "--log", "b"], 2, "give a cluster"),
        (["127.0.0.1", "127.0.0.2", "--manifests", "zones", "--state-dir", "b"], 2, "give a cluster"),
        (["127.0.0.1", ":53", "--queries", "README.md"], 2, "':53' is no server"),
        (["127.0.0.1", "::1", "--queries", "-", "--sections", "answers"], 2, "accepted: answer, authority, additional"),
        (["127.0.0.1", "::1", "--manifests", "zones", "--zone", "a..b"], 2, "--zone"),
        (["127.0.0.1", "::1", "--queries", "nowhere"], 1, "nowhere cannot be read: No such file or directory"),
        (["127.0.0.1", "::1", "--queries", "-"], 1, "there is nothing to ask"),
        (["127.0.0.1", "::1", "--state-dir", "nowhere"], 1, "nowhere has no zone store"),
        (["no such host.invalid", "::1", "--queries", "README.md"], 2, "is no server"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: list[str], code: int, told: str) -> None:
    done = kdns("compare", *arguments, stdin="")
    assert (done.returncode, done.stdout) == (code, "")
    assert told in " ".join(done.stderr.replace("│", " ").split())


def test_a_server_that_is_not_there_is_one_line_and_exit_code_1(server: Server) -> None:
    nobody = FakeUpstream().port
    done = kdns("compare", local(server.port), local(nobody), "--state-dir", server.state_dir, "--timeout", "0.2")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"127.0.0.1 port {nobody} refuses UDP: nothing listens there\n"


def test_beside_a_kdns_that_serves_it_is_the_first_to_go() -> None:
    code = "from kdns.cli.compare import _be_first_to_go; _be_first_to_go(); "
    code += "print(open('/proc/self/oom_score_adj').read())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "1000"
