"""Whatever goes wrong between the API server and kdns, clients see nothing of it.

One real kdns of two workers follows a cluster of 300 Services in all tests. For each fault a client asks 2,000 q/s for
names that do not change, and an object changes while the fault lasts. Some of kdns's times are shorter than they are
for users (`ENTRY`), so that a test is a matter of seconds.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.conftest import Record
from tests.support import procs
from tests.support.apiserver import ALWAYS, ApiServer
from tests.support.apiserver_http import Record as Request
from tests.support.objects import Object, endpoint, endpoint_slice, namespace, service
from tests.support.pacer import Pacer, Summary
from tests.support.server import API_COREFILE, Metrics, Server

ENTRY = """
from kdns.cli import app
from kdns.cluster import watch
watch.Reflector.__init__.__kwdefaults__["pace"] = watch.Pace(
    steady=0.1, brief=0.05, silence=3.0, list_silence=0.7
)
watch.PAGE_OBJECTS = 100
app(prog_name="kdns")
"""
"""`kdns` that forgets faults after a watch of 0.1 s (for users 5 s) and takes a watch of 0.05 s (1 s) for one, so that
a test does not slow the next; takes a connection for dead after 3 s (75 s), and a streaming list after 0.7 s (6 s); and
lists in pages of 100 objects (2,000)."""
SILENCE = 3.0
RATE = 2000
AT_LEAST = 0.7
"""Seconds of queries."""
SETTLED = 3.0
"""Seconds from the end of a fault to the right answer, where back-off or Retry-After do not say more."""
LONG_BACKOFF = 6.0
"""The same after an outage of 4 s: the next attempt is 4.8 s away at most (3.2 s and half of that at random)."""
STARTED = "2 workers"
MOST_LINES = 8
"""Of the log, for one fault."""
SUMMED_UP = re.compile(r"\(\d+ more in the last 60 s\)$")
"""Lines for faults of the minute before."""
ERRORS = "kdns_kubernetes_watch_errors_total"
PATHS = {"Service": "/services", "EndpointSlice": "/endpointslices", "Namespace": "/namespaces"}
ALL = tuple(PATHS)
SERVICES = 300


def cluster() -> Iterator[Object]:
    yield from (namespace(f"team-{number}") for number in range(10))
    for number in range(SERVICES):
        name, team = f"web-{number}", f"team-{number % 10}"
        yield service(name, team, ips=[f"10.96.{number // 250}.{number % 250 + 1}"])
        yield endpoint_slice(name, [endpoint(f"10.1.{number // 250}.{number % 250 + 1}")], team)
    yield service("moving", "team-0", ips=["10.97.0.1"])
    yield service("headless", "team-0", ips=())


EXISTING = [
    *((f"web-{number}.team-{number % 10}.svc.cluster.local", "A") for number in range(0, SERVICES, 15)),
    *((f"_http._tcp.web-{number}.team-{number % 10}.svc.cluster.local", "SRV") for number in range(1, SERVICES, 30)),
    *((f"{number + 1}.0.96.10.in-addr.arpa", "PTR") for number in range(0, 250, 25)),
    *((f"10-1-0-{number + 1}.web-{number}.team-{number % 10}.svc.cluster.local", "A") for number in range(0, 250, 25)),
]
ABSENT = [(f"host{number}.example.com.team-0.svc.cluster.local", "A") for number in range(10)]
NAMES = EXISTING + ABSENT


@dataclass(frozen=True, slots=True)
class Rig:
    """An API server and a kdns that follows it."""

    api: ApiServer
    server: Server
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(2))

    def change(self, kind: str) -> Callable[[], bool]:
        """Change an object of a kind; whether DNS says so is what the result tells."""
        number = next(self.numbers)
        address = f"10.97.{number // 250}.{number % 250 + 1}"
        if kind == "Namespace":
            self.api.create(namespace(f"new-{number}"))
            return lambda: self.server.query(f"new-{number}.svc.cluster.local").rcode() == 0
        if kind == "Service":
            self.api.update(service("moving", "team-0", ips=[address]))
            return lambda: self.server.texts("moving.team-0.svc.cluster.local") == [address]
        self.api.apply(endpoint_slice("headless", [endpoint(address)], "team-0"))
        return lambda: self.server.texts("headless.team-0.svc.cluster.local") == [address]

    def requests(self, kind: str) -> list[Request]:
        return self.api.requests(path=PATHS[kind])

    def end_watch(self, kind: str, then: str = "end") -> None:
        self.api.inject(path=PATHS[kind], then=then)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("faults")
    with ApiServer(folder / "api") as api:
        api.load(cluster())
        api.settings(bookmark_seconds=1.0)
        kubeconfig = api.kubeconfig(folder / "kubeconfig", user="tokenFile")
        options = f"kubeconfig {kubeconfig}"
        with Server(folder / "kdns", corefile=API_COREFILE, kubernetes=options, workers=2, program=ENTRY) as server:
            yield Rig(api, server)
            server.terminate()


@pytest.fixture
def calm(rig: Rig) -> Iterator[Rig]:
    """The rig, with all watches open at the newest version and no fault under way, and again after the test."""
    procs.wait_until(lambda: STARTED in rig.server.log, 10, "its first lines")
    rig.api.wait_watches(3, 10)
    rig.api.bookmark()
    rig.api.forget_requests()
    yield rig
    rig.api.resume()
    rig.api.up()
    rig.api.forbid()
    rig.api.clear_faults()
    rig.api.settings(streaming="on", gone="event", split=[], split_pause=0.0, bookmark_seconds=1.0)


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, and the right reaction to it.

    begin, end: what to do. kinds: those that it is about; the others must not notice it. lasts: seconds. within:
    seconds from its end to the right answer. reason, says: of the metric, and a pattern for what the log says behind
    "KIND: " (once a minute for each kind and reason); none for what is no fault. lists: those of each kind that the API
    server granted. requests, errors: of each kind, at most. pause: seconds between the first two requests, at least.
    late: the objects change only at the end.
    """

    begin: Callable[[Rig], None]
    end: Callable[[Rig], None] = lambda rig: None
    kinds: tuple[str, ...] = ("Service",)
    lasts: float = 0.0
    within: float = SETTLED
    reason: str = ""
    says: str = ""
    lists: int = 0
    requests: int = 3
    errors: int = 3
    pause: float = 0.0
    late: bool = False
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """What there was to see. took: seconds from the fault's end until the changes were answered."""

    summary: Summary
    errors: dict[str, float]
    """How many of its reason were counted, by kind."""
    requests: dict[str, list[Request]]
    lines: list[str]
    took: float


def suffer(rig: Rig, fault: Fault) -> Seen:
    """Begin a fault, change an object of each kind, end the fault after a time, and wait for the right answers."""
    before, logged = rig.server.metrics(), len(rig.server.log)
    with Pacer(rig.server.port, NAMES, rate=RATE, seconds=60) as pacer:
        started = time.monotonic()
        time.sleep(0.1)
        fault.begin(rig)
        expected = [] if fault.late else [rig.change(kind) for kind in fault.kinds]
        time.sleep(fault.lasts)
        fault.end(rig)
        expected += [rig.change(kind) for kind in fault.kinds] if fault.late else []
        took = procs.wait_until(lambda: all(is_right() for is_right in expected), fault.within, "the changes", 0.01)
        rig.api.wait_watches(3, 10)
        time.sleep(max(0.2, started + AT_LEAST - time.monotonic()))
        summary = pacer.finish()
    after = rig.server.metrics()
    return Seen(
        summary,
        {kind: counted(after, kind, fault.reason) - counted(before, kind, fault.reason) for kind in ALL},
        {kind: rig.requests(kind) for kind in ALL},
        [line for line in rig.server.log[logged:].splitlines() if not SUMMED_UP.search(line)],
        took,
    )


def counted(metrics: Metrics, kind: str, reason: str) -> float:
    return metrics.value(ERRORS, kind=kind, **({"reason": reason} if reason else {}))


def assert_clients_saw_nothing(summary: Summary) -> None:
    """Each query got its answer, and always the same; of what does not exist only the serial of the zone changes."""
    assert summary.sent > RATE * AT_LEAST * 0.9
    assert not summary.lost
    assert not summary.strange
    assert summary.answered == summary.sent
    absent = sum(turn // 16 % len(NAMES) >= len(EXISTING) for turn in range(summary.sent))
    assert summary.rcodes == {"0": summary.sent - absent, "3": absent}
    assert set(summary.variants[: len(EXISTING)]) == {1}


def lists(requests: list[Request]) -> list[Request]:
    """Streaming lists, and the first pages of others."""
    return [r for r in requests if r.is_list and "continue" not in r.query]


def check(rig: Rig, fault: Fault, record: Record) -> None:
    known = rig.api.revision
    seen = suffer(rig, fault)
    record("answered_after_ms", round(seen.took * 1000))
    record("requests", {kind: len(found) for kind, found in seen.requests.items() if found})
    assert_clients_saw_nothing(seen.summary)
    for kind, requests in seen.requests.items():
        if kind not in fault.kinds:
            assert not requests, f"{kind} was not touched"
            assert not seen.errors[kind]
            continue
        assert len(requests) <= fault.requests
        assert seen.errors[kind] <= (fault.errors if fault.reason else 0)
        assert seen.errors[kind] or fault.shared or not fault.reason
        if seen.errors[kind]:
            assert re.search(rf"plugin/kubernetes: kubernetes [^:]+: {kind}: {fault.says}", rig.server.log)
        assert len([request for request in lists(requests) if request.status == 200]) == fault.lists
        if not fault.lists:
            assert not lists(requests)
            resumed_at = [int(request.query["resourceVersion"]) for request in requests]
            assert all(known <= version <= rig.api.revision for version in resumed_at)
        if fault.pause:
            assert requests[1].time - requests[0].time >= fault.pause
    assert any(seen.errors.values()) == bool(fault.reason)
    assert len(seen.lines) <= MOST_LINES
    assert not [line for line in seen.lines if "Traceback" in line or "[ERROR]" in line]


# Faults


def refused(status: int, *, retry_after: int | str = "", times: int = 1) -> Callable[[Rig], None]:
    """The watch of Services ends, and the next ones are answered with a status."""

    def begin(rig: Rig) -> None:
        rig.api.fault(path=PATHS["Service"], kind="watch", status=status, retry_after=retry_after, times=times)
        rig.end_watch("Service")

    return begin


def injected(data: bytes, then: str = "") -> Callable[[Rig], None]:
    """Bytes come on the watch of Services, and then it ends in a way."""

    def begin(rig: Rig) -> None:
        rig.api.inject(data, path=PATHS["Service"], then=then)

    return begin


def broken(then: str) -> Callable[[Rig], None]:
    return lambda rig: rig.end_watch("Service", then)


def forbidden(rig: Rig) -> None:
    rig.api.forbid(PATHS["Service"])
    rig.end_watch("Service")


def slow(rig: Rig) -> None:
    rig.api.fault(path=PATHS["Service"], kind="watch", delay=1.5)
    rig.end_watch("Service")


def error_event(rig: Rig) -> None:
    rig.api.error_event(500, path=PATHS["Service"])


def unknown_event(rig: Rig) -> None:
    rig.api.event("PARTY", {"kind": "Service"}, path=PATHS["Service"])


def large(rig: Rig) -> None:
    rig.api.apply(service("large", "team-0", ips=["10.97.255.2"], annotations={"note": "x" * 1_500_000}))


def gone(how: str, kind: str = "Service", **settings: str) -> tuple[Callable[[Rig], None], Callable[[Rig], None]]:
    """The watch ends, and before the next one begins its version is compacted. how: `event` or `status`."""

    def begin(rig: Rig) -> None:
        rig.api.settings(gone=how, **settings)
        rig.api.fault(path=PATHS[kind], kind="watch", delay=0.4)
        rig.end_watch(kind)

    return begin, compact


def compact(rig: Rig) -> None:
    """Only the watches that are open now have a version to go on from."""
    rig.api.compact()
    rig.api.bookmark()


def gone_and_cut(rig: Rig) -> None:
    """The watch is too old, and the streaming list that follows breaks off in the middle of an object."""
    rig.api.fault(path=PATHS["EndpointSlice"], kind="watch", status=410)
    rig.api.fault(path=PATHS["EndpointSlice"], kind="stream", cut=50_000, then="rst")
    rig.end_watch("EndpointSlice")


def expire_pages(rig: Rig) -> None:
    """A list in pages, and before the second page comes, the version of the first one is compacted."""
    path = PATHS["Service"]
    rig.api.settings(streaming="invalid")
    rig.api.fault(path=path, kind="watch", status=410)
    rig.api.fault(path=path, kind="list")  # the first page: nothing happens to it
    rig.api.fault(path=path, kind="list", delay=0.4)
    rig.end_watch("Service")
    rig.api.wait_requests(2, "list", path)


def wrong_shape(rig: Rig) -> None:
    """One of the Services that clients ask for comes as something that is none."""
    metadata = {"name": "web-0", "namespace": "team-0", "resourceVersion": str(rig.api.revision)}
    item = {"kind": "Service", "apiVersion": "v1", "metadata": metadata, "spec": {"clusterIP": 5, "ports": "many"}}
    rig.api.event("MODIFIED", item, path=PATHS["Service"])


def divided(rig: Rig) -> None:
    """Events come as three chunks; one of the two places between them is inside of a character."""
    rig.api.settings(split=[900, 901], split_pause=0.05)
    item = service("umlauts", "team-0", ips=["10.97.255.1"], annotations={"note": "\u00e4" * 1000})
    rig.api.apply(item)


def failing(rig: Rig) -> None:
    rig.api.fault(status=500, times=ALWAYS)
    rig.api.break_watches("end")


def rotated(rig: Rig) -> None:
    rig.api.rotate()
    rig.api.break_watches("end")


FAULTS = {
    "410 as an ERROR event": Fault(*gone("event"), reason="expired", says=".*410", lists=1, requests=2),
    "410 as a status": Fault(*gone("status"), reason="expired", says=".*410", lists=1, requests=2),
    "403": Fault(
        forbidden,
        lambda rig: rig.api.forbid(),
        lasts=1.0,
        reason="forbidden",
        says='watch of services in API group "" is not allowed',
        requests=6,
        errors=5,
    ),
    "429 with Retry-After": Fault(
        refused(429, retry_after=1), within=1.25 + SETTLED, reason="throttled", says="status 429", pause=1.0
    ),
    "429 without Retry-After": Fault(refused(429, times=2), reason="throttled", says="status 429"),
    **{
        f"{status}": Fault(refused(status, times=2), reason="server", says=r"status 5\d\d")
        for status in (500, 502, 503, 504)
    },
    **{
        f"{status} with Retry-After": Fault(
            refused(status, retry_after=1), within=1.25 + SETTLED, reason="server", says=r"status 5\d\d", pause=1.0
        )
        for status in (500, 503)
    },
    "RST": Fault(broken("rst"), reason="connection", says=".*ended before it was complete"),
    "FIN": Fault(broken("fin"), reason="connection", says=".*ended before it was complete"),
    "end in the middle of a line": Fault(
        injected(b'{"type":"MODIFIED","object":{"kind":"Serv', "end"), reason="malformed", says="no event"
    ),
    "FIN in the middle of a line": Fault(
        injected(b'{"type":"MODIFIED","object":{"kind":"Serv', "fin"),
        reason="connection",
        says=".*ended before it was complete",
    ),
    "a chunk that ends inside a character": Fault(divided, requests=0),
    "a watch that ends inside a character": Fault(
        injected(b'{"type":"MODIFIED","object":{"metadata":{"name":"\xc3', "end"), reason="malformed", says="no event"
    ),
    "a line that is no JSON": Fault(injected(b"<html>502</html>\n"), reason="malformed", says="no event"),
    "a line that is too long": Fault(
        injected(b"x" * (17 << 20) + b"\n"), reason="too_large", says="an event of more than 16777216 bytes"
    ),
    "an ERROR event of another code": Fault(
        error_event,
        reason="error_event",
        says="an ERROR event: 500",
    ),
    "an unknown type of event": Fault(
        unknown_event,
        reason="unsupported",
        says="events of type 'PARTY' are ignored",
        requests=0,
    ),
    "an object of a wrong shape": Fault(
        wrong_shape, reason="malformed", says="(Service team-0/web-0|no event)", requests=0
    ),
    "the largest object that etcd takes": Fault(
        large,
        requests=0,
    ),
    "silence": Fault(
        lambda rig: rig.api.silence(PATHS["Service"], new=False),
        within=SILENCE + SETTLED,
        reason="silent",
        says=".*nothing more came, and the connection is open",
    ),
    "slow answers": Fault(
        slow,
        within=1.5 + SETTLED,
        requests=1,
    ),
    "410, and the list breaks off": Fault(
        gone_and_cut,
        kinds=("EndpointSlice",),
        reason="connection",
        says=".*ended before it was complete",
        lists=2,
        requests=4,
    ),
    **{
        f"410 where streaming lists are {how}": Fault(
            *gone("event", kind, streaming=how),
            kinds=(kind,),
            within=within,
            reason="expired",
            says=".*410",
            lists=count,
            requests=7,
        )
        for how, kind, within, count in (
            ("invalid", "Service", SETTLED, 1),
            ("bad_request", "EndpointSlice", SETTLED, 1),
            ("ignored", "Namespace", 2.0 + SETTLED, 2),
        )
    },
    "410 for the second page of a list": Fault(
        expire_pages, compact, reason="expired", says=".*410", lists=2, requests=6
    ),
}
OUTAGES = {
    "down, history kept": Fault(
        lambda rig: rig.api.down(),
        lambda rig: rig.api.up(),
        kinds=ALL,
        lasts=0.5,
        reason="connection",
        says=".*",
        errors=5,
    ),
    "down, history lost": Fault(
        lambda rig: rig.api.down("rst"),
        lambda rig: rig.api.up("lost"),
        kinds=ALL,
        lasts=0.5,
        reason="connection",
        says=".*",
        lists=1,
        requests=6,
        errors=5,
    ),
    "refused for 4 s": Fault(
        lambda rig: rig.api.down(),
        lambda rig: rig.api.up(),
        kinds=ALL,
        lasts=4.0,
        within=LONG_BACKOFF,
        reason="connection",
        says=".*",
        errors=8,
    ),
    "500 for 2 s": Fault(
        failing,
        lambda rig: rig.api.clear_faults(),
        kinds=ALL,
        lasts=2.0,
        within=LONG_BACKOFF,
        reason="server",
        says=r"status 5\d\d",
        requests=8,
        errors=7,
    ),
    "stopped, connections open": Fault(
        lambda rig: rig.api.pause(),
        lambda rig: rig.api.resume(),
        kinds=ALL,
        lasts=SILENCE + 1.0,
        late=True,
        reason="silent",
        says=".*(nothing more came|does not end)",
    ),
    "401, and the file has the new token": Fault(
        rotated,
        kinds=ALL,
        reason="unauthorized",
        says="status 401",
        shared=True,
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_of_one_kind(calm: Rig, fault: Fault, record: Record) -> None:
    check(calm, fault, record)


@pytest.mark.parametrize("fault", OUTAGES.values(), ids=OUTAGES.keys())
def test_a_fault_of_the_whole_api_server(calm: Rig, fault: Fault, record: Record) -> None:
    check(calm, fault, record)


def test_a_token_that_is_revoked_before_the_file_has_the_next(calm: Rig, record: Record) -> None:
    user = "system:serviceaccount:kube-system:kdns"

    def revoke(rig: Rig) -> None:
        rig.api.set_tokens({"the next one": user})
        rig.end_watch("Service")

    def follow(rig: Rig) -> None:
        rig.api.set_tokens({rig.api.token: user, "the next one": user})
        rig.api.rotate()

    revoked = Fault(revoke, follow, lasts=1.0, reason="unauthorized", says="status 401", requests=6, errors=5)
    check(calm, revoked, record)
