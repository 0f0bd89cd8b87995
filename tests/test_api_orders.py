"""Every order in which a cluster's changes arrive: right answers at each step, and no others on the way.

A kdns process follows an API server. While a step is made, all questions that it may affect are asked without a pause;
each has to go from the answer before to the answer after in one leap. Beside that, 2,000 queries a second are asked for
names that do not change.

What is expected comes from `Zone`, which says in a few lines what SPEC's table says.
"""

from __future__ import annotations

import ipaddress
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

import dns.message
import dns.rdatatype
import pytest

from tests.support import procs
from tests.support.apiserver import ApiServer, Written
from tests.support.ask import EDNS, told
from tests.support.objects import Object, endpoint, endpoint_slice, external_name, namespace, pod, service
from tests.support.pacer import Pacer
from tests.support.server import API_COREFILE, Server

Z = "cluster.local"
BOUND = 2.0
"""Seconds within which a change is answered."""
AFTER_OUTAGE = 6.0
"""Seconds within which changes are answered that were made while the API server was away."""
TYPES = ("A", "AAAA", "SRV")
PORTS = (("http", 80),)
TARGETS = (("http", 8080),)

Result = TypeVar("Result")
Question = tuple[str, str]
Outcome = tuple[str, tuple[str, ...], tuple[str, ...]]
"""Response code, and the records of answer and additional section, sorted."""


class Zone:
    """The records that there have to be: `owner -> type -> rdatas`, owners without the last dot."""

    def __init__(self, *parts: Zone, exists: Iterable[str] = ()) -> None:
        self.records: dict[str, dict[str, set[str]]] = {}
        self.exists: set[str] = set(exists).union(*(part.exists for part in parts))
        for part in parts:
            for owner, types in part.records.items():
                for rdtype, rdatas in types.items():
                    self.add(owner, rdtype, *rdatas)

    def add(self, owner: str, rdtype: str, *rdatas: str) -> None:
        self.records.setdefault(owner, {}).setdefault(rdtype, set()).update(rdatas)

    def address(self, owner: str, *addresses: str) -> None:
        for address in addresses:
            self.add(owner, "AAAA" if ":" in address else "A", address)

    def answer(self, question: Question) -> Outcome:
        """What SPEC wants as the answer; a CNAME is followed for addresses."""
        name, rdtype = question
        if name not in self.records:
            above = any(owner.endswith(f".{name}") for owner in (*self.records, *self.exists))
            return ("NOERROR" if above or name in self.exists else "NXDOMAIN"), (), ()
        types, found = self.records[name], []
        if alias := types.get("CNAME"):
            found = self._lines(name, "CNAME", alias)
            (target,) = alias
            name = target.removesuffix(".")
            types = self.records.get(name, {}) if rdtype in ("A", "AAAA") else {}
        rdatas = types.get(rdtype, set())
        more: list[str] = []
        if rdtype == "SRV":
            weight = max(1, 100 // len(rdatas)) if rdatas else 0
            targets = sorted({rdata.split()[1].removesuffix(".") for rdata in rdatas})
            rdatas = {f"0 {weight} {rdata}" for rdata in rdatas}
            for target, family in itertools.product(targets, ("A", "AAAA")):
                more += self._lines(target, family, self.records.get(target, {}).get(family, set()))
        return "NOERROR", tuple(sorted(found + self._lines(name, rdtype, rdatas))), tuple(sorted(more))

    @staticmethod
    def _lines(owner: str, rdtype: str, rdatas: Iterable[str]) -> list[str]:
        return [f"{owner}. {rdtype} {rdata}" for rdata in rdatas]


def reverse(address: str) -> str:
    return ipaddress.ip_address(address).reverse_pointer


class Space:
    """A namespace with addresses of its own, and what the Services in it have to be answered with."""

    def __init__(self, name: str, number: int = 0) -> None:
        self.name = name
        self._number = number
        self.exists = Zone(exists=[f"{name}.svc.{Z}"])

    def vip(self, number: int) -> str:
        return f"10.96.{self._number}.{number}"

    def ip(self, number: int) -> str:
        return f"10.1.{self._number}.{number}"

    def owner(self, name: str) -> str:
        return f"{name}.{self.name}.svc.{Z}"

    def service(self, name: str = "web", **options: Any) -> Object:
        return service(name, self.name, ports=PORTS, **options)

    def alias(self, name: str, target: str) -> Object:
        return external_name(name, target, self.name)

    def slice(self, name: str = "web", *endpoints: Object | str, **options: Any) -> Object:
        found = [endpoint(one) if isinstance(one, str) else one for one in endpoints]
        family = "IPv6" if any(":" in address for one in found for address in one["addresses"]) else "IPv4"
        return endpoint_slice(name, found, self.name, ports=TARGETS, address_type=family, **options)

    def endpoints(self, name: str, *endpoints: str | tuple[str, str]) -> Zone:
        """E.S.N.svc.Z and the PTR records. endpoints: an address, or a hostname and its address."""
        zone = Zone()
        for label, address in map(_named, endpoints):
            zone.address(f"{label}.{self.owner(name)}", address)
            zone.add(reverse(address), "PTR", f"{label}.{self.owner(name)}.")
        return zone

    def cluster_ip(self, name: str, ips: Sequence[str], *endpoints: str | tuple[str, str]) -> Zone:
        zone, owner = Zone(self.endpoints(name, *endpoints)), self.owner(name)
        zone.address(owner, *ips)
        for ip in ips:
            zone.add(reverse(ip), "PTR", f"{owner}.")
        for at in (owner, f"_http._tcp.{owner}"):
            zone.add(at, "SRV", f"80 {owner}.")
        return zone

    def headless(self, name: str, *endpoints: str | tuple[str, str]) -> Zone:
        zone, owner = Zone(self.endpoints(name, *endpoints)), self.owner(name)
        for label, address in map(_named, endpoints):
            zone.address(owner, address)
            for at in (owner, f"_http._tcp.{owner}"):
                zone.add(at, "SRV", f"8080 {label}.{owner}.")
        return zone

    def cname(self, name: str, target: str) -> Zone:
        zone = Zone()
        zone.add(self.owner(name), "CNAME", f"{target}.")
        return zone


def _named(one: str | tuple[str, str]) -> tuple[str, str]:
    return one if isinstance(one, tuple) else (one.replace(".", "-").replace(":", "-"), one)


class Sampler:
    """Asks questions in turn from a thread, and notes for each whenever its answer becomes another."""

    def __init__(self, server: Server, questions: Iterable[Question]) -> None:
        self.seen: dict[Question, list[Outcome]] = {question: [] for question in questions}
        self.rounds = 0
        self._queries = [(question, dns.message.make_query(*question, **EDNS).to_wire()[2:]) for question in self.seen]
        self._known: dict[bytes, Outcome] = {}
        self._socket = server.udp_socket()
        self._socket.settimeout(3.0)
        self._error: Exception | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopping.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        try:
            for number in itertools.count():
                if self._stopping.is_set():
                    return
                question, query = self._queries[number % len(self._queries)]
                outcome = self._ask(number & 0xFFFF, query)
                seen = self.seen[question]
                if not seen or seen[-1] != outcome:
                    seen.append(outcome)
                if number % len(self._queries) == len(self._queries) - 1:
                    self.rounds += 1
                    time.sleep(0.0005)
        except Exception as error:
            self._error = error

    def _ask(self, ident: int, query: bytes) -> Outcome:
        head = ident.to_bytes(2)
        self._socket.send(head + query)
        data = self._socket.recv(65535)
        assert data[:2] == head
        outcome = self._known.get(data[2:])
        if outcome is None:
            answer = told(dns.message.from_wire(data))
            outcome = self._known[data[2:]] = answer.rcode, tuple(answer.answer), tuple(answer.additional)
        return outcome

    def settle(self) -> None:
        """Return when all questions have been asked anew, beginning after the call."""
        wanted = self.rounds + 2
        procs.wait_until(lambda: self.rounds >= wanted or self._error is not None, 5.0, "two rounds of questions")
        if self._error is not None:
            raise self._error

    def forget(self) -> None:
        """Only the last answers count from now on."""
        self.settle()
        for seen in self.seen.values():
            del seen[:-1]


class Canaries:
    """Objects of every kind that are changed after a step: when they are answered, so is what was before them."""

    _numbers = itertools.count(1)

    def __init__(self, api: ApiServer, server: Server) -> None:
        self._api = api
        self._server = server

    def write(self) -> None:
        """Change them into what they never were."""
        self._number = next(self._numbers)
        a, b = divmod(self._number, 250)
        self._ips = f"10.97.{a}.{b + 1}", f"10.98.{a}.{b + 1}"
        self._api.apply(
            service("canary", "canary", ips=[self._ips[0]]),
            service("headless", "canary", ips=()),
            endpoint_slice("headless", [endpoint(self._ips[1])], "canary"),
            namespace(f"canary-{self._number}"),
        )

    def wait(self, seconds: float) -> None:
        """Wait until they show."""
        procs.wait_until(self._shown, seconds, "the change is answered")

    def _shown(self) -> bool:
        texts = self._server.texts
        addresses = *texts(f"canary.canary.svc.{Z}"), *texts(f"headless.canary.svc.{Z}")
        return addresses == self._ips and self._server.query(f"canary-{self._number}.svc.{Z}").rcode() == 0


class Order:
    """A sequence of steps, and the questions that they may affect: those of all states that are given."""

    def __init__(self, api: ApiServer, server: Server, space: Space, states: Sequence[Zone], *more: str) -> None:
        names = {name for state in states for name in state.records} | {f"{space.name}.svc.{Z}", *more}
        self.questions = [
            (name, rdtype) for name in sorted(names) for rdtype in (("PTR",) if name.endswith(".arpa") else TYPES)
        ]
        self._api = api
        self._server = server
        self._space = space
        self._canaries = Canaries(api, server)
        self._sampler = Sampler(server, self.questions)
        self.now = Zone(space.exists, WORLD)

    def __enter__(self) -> Self:
        self._sampler.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._sampler.__exit__(*error)

    def write(self, *operations: tuple[str, Object], now: Zone | None = None, by: Sequence[Zone] = ()) -> list[Written]:
        """Write objects; what is answered after that is `now` (as before, unless given).

        by: states that there are on the way to it, because the API server itself goes by them.
        """
        return self.step(lambda: self._api.write(*operations), now=now, by=by)

    def step(
        self,
        act: Callable[[], Result],
        *,
        now: Zone | None = None,
        by: Sequence[Zone] = (),
        seconds: float = BOUND,
    ) -> Result:
        """Do something; what is answered after that is `now` (as before, unless given)."""
        path = [self.now, *(Zone(self._space.exists, WORLD, state) for state in by)]
        self.now = Zone(self._space.exists, WORLD, now) if now is not None else self.now
        self._sampler.forget()
        result = act()
        self._canaries.write()
        self._canaries.wait(seconds)
        self._sampler.settle()
        for question in self.questions:
            ways = [state.answer(question) for state in (*path, self.now)]
            seen = self._sampler.seen[question]
            assert seen[-1] == ways[-1], (question, seen)
            assert _leads_through(seen, ways), (question, seen, ways)
            answer = told(self._server.query(*question, tcp=True, **EDNS))
            assert (answer.rcode, tuple(answer.answer), tuple(answer.additional)) == ways[-1], question
        return result

    def gone(self) -> None:
        """From now on the namespace itself does not exist."""
        self._space.exists = Zone()


def _leads_through(seen: Sequence[Outcome], ways: Sequence[Outcome]) -> bool:
    """True if what was seen is the first of the ways, then some of the others in their order, each at most once."""
    left = iter(ways)
    return seen[0] == ways[0] and all(any(outcome == way for way in left) for outcome in seen)


# What the tests share


STEADY = Space("steady")
WORLD = Zone(STEADY.cluster_ip("web", ["10.99.0.1"], "10.5.0.1"), STEADY.headless("db", ("db-0", "10.5.0.2")))
"""What does not change."""
STEADY_NAMES = [
    (STEADY.owner("web"), "A"),
    (STEADY.owner("web"), "AAAA"),
    (f"_http._tcp.{STEADY.owner('web')}", "SRV"),
    (reverse("10.99.0.1"), "PTR"),
    (f"10-5-0-1.{STEADY.owner('web')}", "A"),
    (STEADY.owner("db"), "A"),
    (f"db-0.{STEADY.owner('db')}", "A"),
    (reverse("10.5.0.2"), "PTR"),
]
MISSING_NAMES = [(STEADY.owner("nothing"), "A"), (f"api.example.com.{Z}", "A"), (reverse("10.250.0.1"), "PTR")]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("api")) as api:
        api.create(
            namespace("canary"),
            namespace("steady"),
            STEADY.service("web", ips=["10.99.0.1"]),
            STEADY.slice("web", "10.5.0.1"),
            STEADY.service("db", ips=()),
            STEADY.slice("db", endpoint("10.5.0.2", hostname="db-0")),
        )
        yield api


@pytest.fixture(scope="module")
def server(api: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("kdns")
    options = f"kubeconfig {api.kubeconfig(folder / 'kubeconfig')}"
    with Server(folder, corefile=API_COREFILE, kubernetes=options) as server:
        yield server


@pytest.fixture(autouse=True)
def _names_that_do_not_change(server: Server) -> Iterator[None]:
    """During each test: not one answer but the right one, and none that is lost."""
    with Pacer(server.port, STEADY_NAMES + MISSING_NAMES, rate=2000, seconds=60.0) as pacer:
        yield
        summary = pacer.finish()
    assert (summary.lost, summary.strange) == ([], 0)
    assert summary.variants[: len(STEADY_NAMES)] == [1] * len(STEADY_NAMES)
    assert summary.rcodes.keys() == {"0", "3"}
    turns = summary.sent // (16 * (len(STEADY_NAMES) + len(MISSING_NAMES)))
    missing = 16 * len(MISSING_NAMES)
    assert missing * turns <= summary.rcodes["3"] <= missing * (turns + 1)


_numbers = itertools.count(1)
Begin = Callable[..., Order]


@pytest.fixture
def space(api: ApiServer) -> Space:
    """A namespace of the test's own."""
    number = next(_numbers)
    space = Space(f"space-{number}", number)
    api.create(namespace(space.name))
    return space


@pytest.fixture
def begin(api: ApiServer, server: Server, space: Space) -> Iterator[Begin]:
    """Begin to watch the questions that the given states answer, after the namespace has shown."""
    with ExitStack() as stack:

        def begin(*states: Zone, more: Iterable[str] = ()) -> Order:
            order = Order(api, server, space, states, *more)
            procs.wait_until(lambda: server.query(f"{space.name}.svc.{Z}").rcode() == 0, BOUND, "namespace")
            return stack.enter_context(order)

        yield begin


# Services and their slices


def test_a_slice_may_come_before_its_service_and_go_after_it(begin: Begin, space: Space) -> None:
    ready = space.cluster_ip("web", [space.vip(1)], space.ip(1), space.ip(2))
    order = begin(ready)
    order.write(("create", space.slice("web", space.ip(1), space.ip(2))))
    order.write(("create", space.service(ips=[space.vip(1)])), now=ready)
    order.write(("delete", space.service()), now=Zone())
    order.write(("delete", space.slice()))


def test_a_service_may_come_before_its_slice_and_go_after_it(begin: Begin, space: Space) -> None:
    bare, ready = space.cluster_ip("web", [space.vip(2)]), space.cluster_ip("web", [space.vip(2)], space.ip(1))
    order = begin(ready)
    order.write(("create", space.service(ips=[space.vip(2)])), now=bare)
    order.write(("create", space.slice("web", space.ip(1))), now=ready)
    order.write(("delete", space.slice()), now=bare)
    order.write(("delete", space.service()), now=Zone())


def test_the_same_for_headless_services(begin: Begin, space: Space) -> None:
    ready = space.headless("web", ("a", space.ip(1)), ("b", space.ip(2)))
    pieces = space.slice("web", endpoint(space.ip(1), hostname="a"), endpoint(space.ip(2), hostname="b"))
    order = begin(ready)
    order.write(("create", pieces))
    order.write(("create", space.service(ips=())), now=ready)
    order.write(("delete", space.service()), now=Zone())
    order.write(("create", space.service(ips=())), now=ready)
    order.write(("delete", pieces), now=Zone())
    order.write(("create", pieces), now=ready)
    order.write(("delete", pieces), ("delete", space.service()), now=Zone())


def test_a_service_and_its_slices_in_one_batch(begin: Begin, space: Space) -> None:
    ready = space.cluster_ip("web", [space.vip(4)], space.ip(1), space.ip(2))
    items = [
        space.service(ips=[space.vip(4)]),
        space.slice("web", space.ip(1)),
        space.slice("web", space.ip(2), suffix="2"),
    ]
    order = begin(ready)
    for first in (items, items[::-1]):
        order.write(*(("create", item) for item in first), now=ready)
        order.write(*(("delete", item) for item in first), now=Zone())


# Made again, and other types


def test_a_service_is_made_again_with_another_cluster_ip(begin: Begin, space: Space) -> None:
    old = space.cluster_ip("web", [space.vip(1)], space.ip(1))
    inherited = space.cluster_ip("web", [space.vip(2)], space.ip(1))
    new = space.cluster_ip("web", [space.vip(2)], space.ip(2))
    both = space.cluster_ip("web", [space.vip(2)], space.ip(1), space.ip(2))
    order = begin(old, new)
    order.write(("create", space.service(ips=[space.vip(1)])), now=space.cluster_ip("web", [space.vip(1)]))
    order.write(("create", space.slice("web", space.ip(1))), now=old)
    order.write(("delete", space.service()), now=Zone())
    order.write(("create", space.service(ips=[space.vip(2)])), now=inherited)
    order.write(("create", space.slice("web", space.ip(2), suffix="2")), now=both)
    order.write(("delete", space.slice()), now=new)


def test_a_service_is_made_again_at_once(begin: Begin, space: Space) -> None:
    old = space.cluster_ip("web", [space.vip(3)], space.ip(1))
    new = space.cluster_ip("web", [space.vip(4)], space.ip(1))
    headless = space.headless("web", space.ip(1))
    order = begin(old, new, headless)
    order.write(
        ("create", space.service(ips=[space.vip(3)])),
        ("create", space.slice("web", space.ip(1))),
        now=old,
        by=[space.cluster_ip("web", [space.vip(3)])],
    )
    again = ("delete", space.service())
    order.write(again, ("create", space.service(ips=[space.vip(4)])), now=new, by=[Zone()])
    order.write(again, ("create", space.service(ips=())), now=headless, by=[Zone()])
    alias = space.alias("web", STEADY.owner("web"))
    order.write(again, ("create", alias), now=space.cname("web", STEADY.owner("web")), by=[Zone()])
    order.write(again, ("create", space.service(ips=[space.vip(3)])), now=old, by=[Zone()])


@pytest.mark.parametrize("slices", ["before", "after"])
def test_a_service_goes_through_all_types(begin: Begin, space: Space, slices: str) -> None:
    pieces = space.slice("web", endpoint(space.ip(1), hostname="a"), space.ip(2))
    ready = (("a", space.ip(1)), space.ip(2))
    kinds: list[tuple[Object, Callable[..., Zone]]] = [
        (space.service(ips=[space.vip(5)]), lambda *ready: space.cluster_ip("web", [space.vip(5)], *ready)),
        (space.service(ips=()), lambda *ready: space.headless("web", *ready)),
        (space.alias("web", STEADY.owner("web")), lambda *_: space.cname("web", STEADY.owner("web"))),
        (space.service(ips=[space.vip(6)]), lambda *ready: space.cluster_ip("web", [space.vip(6)], *ready)),
        (space.alias("web", STEADY.owner("web")), lambda *_: space.cname("web", STEADY.owner("web"))),
        (space.service(ips=()), lambda *ready: space.headless("web", *ready)),
        (space.service(ips=[space.vip(5)]), lambda *ready: space.cluster_ip("web", [space.vip(5)], *ready)),
    ]
    order = begin(*(zone(*ready) for _, zone in kinds))
    if slices == "before":
        order.write(("create", pieces))
    for item, zone in kinds:
        if slices == "before":
            order.write(("apply", item), now=zone(*ready))
            continue
        order.write(("apply", item), now=zone())
        order.write(("create", pieces), now=zone(*ready))
        order.write(("delete", pieces), now=zone())


# Slices


def test_a_slice_whose_service_label_changes(begin: Begin, space: Space) -> None:
    def state(one: Sequence[str], two: Sequence[str]) -> Zone:
        return Zone(space.headless("one", *one), space.cluster_ip("two", [space.vip(1)], *two))

    moving = space.slice("one", space.ip(2), suffix="moving")
    staying = space.slice("one", space.ip(1))
    other = moving | {"metadata": moving["metadata"] | {"labels": {"kubernetes.io/service-name": "two"}}}
    nobody = moving | {"metadata": moving["metadata"] | {"labels": {}}}
    order = begin(state([space.ip(1), space.ip(2)], [space.ip(2)]))
    order.write(
        ("create", space.service("one", ips=())),
        ("create", space.service("two", ips=[space.vip(1)])),
        now=state([], []),
    )
    order.write(("create", staying), now=state([space.ip(1)], []))
    order.write(("create", moving), now=state([space.ip(1), space.ip(2)], []))
    order.write(("update", other), now=state([space.ip(1)], [space.ip(2)]))
    order.write(("update", nobody), now=state([space.ip(1)], []))
    order.write(("update", moving), now=state([space.ip(1), space.ip(2)], []))
    order.write(("delete", nobody), now=state([space.ip(1)], []))


@pytest.mark.parametrize("headless", [True, False])
def test_an_address_is_in_two_slices_while_it_is_moved(begin: Begin, space: Space, headless: bool) -> None:
    def state(*ready: str) -> Zone:
        return space.headless("web", *ready) if headless else space.cluster_ip("web", [space.vip(2)], *ready)

    def piece(suffix: str, *addresses: str) -> Object:
        return space.slice("web", *addresses, suffix=suffix)

    one, two, three = space.ip(1), space.ip(2), space.ip(3)
    every, without = state(one, two, three), state(one, three)
    order = begin(every)
    order.write(("create", space.service(ips=() if headless else [space.vip(2)])), now=state())
    order.write(("create", piece("a", one, two)), now=state(one, two))
    order.write(("create", piece("b", three)), now=every)
    order.write(("update", piece("b", three, two)))
    order.write(("update", piece("a", one)))
    # Back, first gone and then there: the API server itself is without it for a moment.
    order.write(("update", piece("b", three)), ("update", piece("a", one, two)), now=every, by=[without])
    # Into a new slice, and the old one is deleted.
    order.write(("create", piece("c", one, two)), ("delete", piece("a")))
    order.write(("delete", piece("b")), ("update", piece("c", one, two, three)), now=every, by=[state(one, two)])


def test_dual_stack_is_added_and_taken_away(begin: Begin, space: Space) -> None:
    six = space.slice("web", "2001:db8:3::1", suffix="6")
    four = space.cluster_ip("web", [space.vip(3)], space.ip(1))
    dual = space.cluster_ip("web", [space.vip(3), "fd00:96::33"], space.ip(1))
    whole = space.cluster_ip("web", [space.vip(3), "fd00:96::33"], space.ip(1), "2001:db8:3::1")
    order = begin(whole)
    order.write(("create", space.slice("web", space.ip(1))))
    order.write(("create", space.service(ips=[space.vip(3)])), now=four)
    order.write(("update", space.service(ips=[space.vip(3), "fd00:96::33"])), now=dual)
    order.write(("create", six), now=whole)
    order.write(
        ("update", space.service(ips=[space.vip(3)])),
        now=space.cluster_ip("web", [space.vip(3)], space.ip(1), "2001:db8:3::1"),
    )
    order.write(("delete", six), now=four)


def test_dual_stack_is_added_to_a_headless_service(begin: Begin, space: Space) -> None:
    four = space.slice("web", endpoint(space.ip(1), hostname="a"))
    six = space.slice("web", endpoint("2001:db8:3::2", hostname="a"), suffix="6")
    whole = space.headless("web", ("a", space.ip(1)), ("a", "2001:db8:3::2"))
    order = begin(whole)
    order.write(("create", space.service(ips=())))
    order.write(("create", four), now=space.headless("web", ("a", space.ip(1))))
    order.write(("create", six), now=whole)
    order.write(("delete", four), now=space.headless("web", ("a", "2001:db8:3::2")))


def test_readiness_flips(begin: Begin, space: Space) -> None:
    def pieces(name: str, a: bool | None, b: bool | None) -> Object:
        return space.slice(name, endpoint(space.ip(1), ready=a), endpoint(space.ip(2), ready=b))

    def state(*ready: str) -> Zone:
        return Zone(space.headless("web", *ready), space.headless("always", space.ip(1), space.ip(2)))

    one, two = space.ip(1), space.ip(2)
    order = begin(state(one, two))
    order.write(("create", space.service("always", ips=(), publish_not_ready=True)), ("create", space.service(ips=())))
    order.write(("create", pieces("always", False, True)), now=state())
    for a, b in (
        (False, False),
        (True, False),
        (True, True),
        (False, True),
        (True, False),
        (None, None),
        (False, False),
    ):
        ready = [address for address, is_ready in ((one, a), (two, b)) if is_ready is not False]
        order.write(("apply", pieces("web", a, b)), now=state(*ready))
        order.write(("apply", pieces("always", b, a)))


# Namespaces


@pytest.mark.parametrize("last", ["namespace", "service"])
def test_a_namespace_terminates(begin: Begin, space: Space, last: str) -> None:
    ready = Zone(space.cluster_ip("web", [space.vip(1)], space.ip(1)), space.headless("db", space.ip(2)))
    items = [
        space.service(ips=[space.vip(1)]),
        space.slice("web", space.ip(1)),
        space.service("db", ips=()),
        space.slice("db", space.ip(2)),
    ]
    alive = namespace(space.name)
    dying = alive | {
        "metadata": alive["metadata"] | {"deletionTimestamp": "2026-05-06T07:08:09Z", "deletionGracePeriodSeconds": 0},
        "status": {"phase": "Terminating"},
    }
    order = begin(ready)
    order.write(
        *(("create", item) for item in items),
        now=ready,
        by=[Zone(space.cluster_ip("web", [space.vip(1)]), space.headless("db"))],
    )
    order.write(("update", dying))
    order.write(("delete", items[3]), now=space.cluster_ip("web", [space.vip(1)], space.ip(1)))
    order.write(("delete", items[2]))
    if last == "namespace":
        order.write(("delete", items[1]), now=space.cluster_ip("web", [space.vip(1)]))
        order.write(("delete", items[0]), now=Zone())
        order.gone()
        order.write(("delete", alive), now=Zone())
    else:
        order.write(("delete", alive))
        order.write(("delete", items[1]), now=space.cluster_ip("web", [space.vip(1)]))
        order.gone()
        order.write(("delete", items[0]), now=Zone())


# Older than what is known


def test_watch_events_that_are_older_than_what_is_known_change_nothing(
    api: ApiServer, begin: Begin, space: Space
) -> None:
    web, web_again = space.cluster_ip("web", [space.vip(1)]), space.cluster_ip("web", [space.vip(2)])
    before, after = space.headless("db", space.ip(1)), space.headless("db", space.ip(2))
    order = begin(Zone(web, before), Zone(web_again, after))
    written = order.write(("create", space.service(ips=[space.vip(1)])), now=web)
    written += order.write(("create", space.service("db", ips=())))
    written += order.write(("create", space.slice("db", space.ip(1))), now=Zone(web, before))
    written += order.write(("delete", space.service()), now=before)
    order.write(("create", space.service(ips=[space.vip(2)])), now=Zone(web_again, before))
    order.write(("update", space.slice("db", space.ip(2))), now=Zone(web_again, after))

    def resend() -> None:
        for old in written:
            assert api.resend(old.revision) == 1

    order.step(resend)
    order.write(("delete", space.service("db")), now=web_again)
    order.write(("delete", space.service()), now=Zone())
    order.step(resend)


# Lists


@pytest.mark.parametrize(("streaming", "gone"), [("on", "event"), ("on", "status"), ("invalid", "event")])
def test_a_relist_changes_only_what_has_changed(
    api: ApiServer, server: Server, begin: Begin, space: Space, streaming: str, gone: str
) -> None:
    old = Zone(
        space.cluster_ip("kept", [space.vip(1)], space.ip(1)),
        space.headless("kept-db", ("a", space.ip(2)), ("b", space.ip(3))),
        space.cluster_ip("changed", [space.vip(2)], space.ip(4)),
        space.headless("changed-db", space.ip(5), space.ip(6)),
        space.cluster_ip("deleted", [space.vip(3)], space.ip(7)),
    )
    new = Zone(
        space.cluster_ip("kept", [space.vip(1)], space.ip(1)),
        space.headless("kept-db", ("a", space.ip(2)), ("b", space.ip(3))),
        space.cluster_ip("changed", [space.vip(4)], space.ip(4)),
        space.headless("changed-db", space.ip(5), space.ip(8)),
        space.cluster_ip("added", [space.vip(5)], space.ip(9)),
    )
    order = begin(old, new)
    order.write(
        ("create", space.service("kept", ips=[space.vip(1)])),
        ("create", space.service("kept-db", ips=())),
        ("create", space.service("changed", ips=[space.vip(2)])),
        ("create", space.service("changed-db", ips=())),
        ("create", space.service("deleted", ips=[space.vip(3)])),
        now=Zone(
            *(
                space.cluster_ip(name, [space.vip(number)])
                for number, name in ((1, "kept"), (2, "changed"), (3, "deleted"))
            )
        ),
    )
    order.write(
        ("create", space.slice("kept", space.ip(1))),
        ("create", space.slice("kept-db", endpoint(space.ip(2), hostname="a"), endpoint(space.ip(3), hostname="b"))),
        ("create", space.slice("changed", space.ip(4))),
        ("create", space.slice("changed-db", space.ip(5), space.ip(6))),
        ("create", space.slice("deleted", space.ip(7))),
        now=old,
    )
    before = _lists(server)
    api.settings(streaming=streaming, gone=gone)

    def outage() -> None:
        api.down()
        api.write(
            ("update", space.service("changed", ips=[space.vip(4)])),
            ("update", space.slice("changed-db", space.ip(5), space.ip(8))),
            ("delete", space.service("deleted")),
            ("delete", space.slice("deleted")),
            ("create", space.slice("added", space.ip(9))),
            ("create", space.service("added", ips=[space.vip(5)])),
        )
        api.up("lost")

    try:
        order.step(outage, now=new, seconds=AFTER_OUTAGE)
    finally:
        api.settings(streaming="on", gone="event")
    assert _lists(server) == before + 3


def test_a_relist_without_a_difference_changes_nothing_at_all(api: ApiServer, server: Server) -> None:
    before, generation = _lists(server), server.metrics().value("kdns_store_generation")
    api.create(pod("unasked", "steady", "10.5.0.9"))  # all that kdns has is older than this
    api.compact()
    api.break_watches("end")
    procs.wait_until(lambda: _lists(server) == before + 3, AFTER_OUTAGE, "three lists", 0.05)
    api.wait_watches(3)
    assert server.metrics().value("kdns_store_generation") == generation


def _lists(server: Server) -> float:
    return server.metrics().value("kdns_kubernetes_lists_total")


# All orders at once


def test_changes_in_any_order_end_in_the_same_answers(begin: Begin, space: Space) -> None:
    final = Zone(
        space.cluster_ip("web", [space.vip(1), "fd00:96::71"], space.ip(1), space.ip(2)),
        space.headless("db", ("a", space.ip(3)), space.ip(4)),
        space.cname("alias", STEADY.owner("web")),
    )
    items = [
        space.service("web", ips=[space.vip(1), "fd00:96::71"]),
        space.slice("web", space.ip(1)),
        space.slice("web", space.ip(2), endpoint(space.ip(5), ready=False), suffix="2"),
        space.service("db", ips=()),
        space.slice("db", endpoint(space.ip(3), hostname="a"), space.ip(4)),
        space.alias("alias", STEADY.owner("web")),
    ]
    order = begin(final)
    chooser = random.Random(3)
    for _ in range(8):
        chooser.shuffle(items)
        order.write(*(("create", item) for item in items), now=final)
        chooser.shuffle(items)
        order.write(*(("delete", item) for item in items), now=Zone())
