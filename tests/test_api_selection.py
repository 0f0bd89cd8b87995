"""What is asked of the API server, and what of it is answered, by the options that select.

One kdns of many server blocks, each with its own zone WAY.test, reads the same API server. Each has a token of its own,
by which the API server's log tells whose request it was.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import Serve
from tests.support import procs
from tests.support.apiserver import ApiServer
from tests.support.apiserver_http import Record as Request
from tests.support.objects import Object, endpoint, endpoint_slice, namespace, pod, service
from tests.support.pacer import Pacer
from tests.support.server import API_COREFILE, Server

SOON = 2.0
"""Seconds within which a change is answered."""
RELOAD = 5.0
"""Seconds within which a reload and the lists that it needs are done."""
AROUND = 0.1
"""Seconds before a reload and after it, for which names that stay are asked too."""
WAYS = {
    "plain": "",
    "one": "namespaces alpha",
    "several": "namespaces alpha beta",
    "team": "namespace_labels team=blue",
    "label": "labels app=web",
    "set": "labels app in (web, db),tier!=test",
    "pods": "pods verified",
    "bare": "noendpoints",
    "podsone": "namespaces alpha\n pods verified\n labels app=web",
}
SERVICES, SLICES, NAMESPACES, PODS = "services", "endpointslices", "namespaces", "pods"
RUNNING = "status.phase!=Succeeded,status.phase!=Failed,status.phase!=Unknown"
SPACES = {"alpha": 1, "beta": 2, "gamma": 3}


def labelled(item: Object, **labels: str) -> Object:
    """The same object with these labels beside those that it has."""
    metadata = item["metadata"]
    return item | {"metadata": metadata | {"labels": metadata.get("labels", {}) | labels}}


def web(space: str, app: str = "web") -> Object:
    return service("web", space, ips=[f"10.96.{SPACES[space]}.1"], labels={"app": app})


def db_slice(space: str, app: str = "db") -> Object:
    found = [endpoint(f"10.1.{SPACES[space]}.1", hostname="a")]
    return endpoint_slice("db", found, space, labels={"app": app})


def db(space: str, app: str = "db") -> Object:
    return service("db", space, ips=(), labels={"app": app})


def runner(space: str, app: str = "web") -> Object:
    return pod("runner", space, f"10.2.{SPACES[space]}.1", labels={"app": app})


def cluster() -> list[Object]:
    items: list[Object] = []
    for space in SPACES:
        items += [web(space), db(space), db_slice(space), runner(space)]
    teams = {"alpha": "blue", "beta": "red", "gamma": "blue"}
    return [namespace(name, {"team": team}) for name, team in teams.items()] + items


class Way:
    """One server block: what it asks and what it answers."""

    def __init__(self, api: ApiServer, server: Server, name: str) -> None:
        self._api = api
        self._server = server
        self.name = name

    def asked(self) -> dict[str, dict[str, str]]:
        """The selectors of its requests by path; the same path always has the same."""
        found: dict[str, dict[str, str]] = {}
        for request in self.requests():
            selectors = {key: value for key, value in request.query.items() if key.endswith("Selector")}
            assert found.setdefault(request.path, selectors) == selectors
        return found

    def requests(self) -> list[Request]:
        return [request for request in self._api.requests() if request.user == self.name]

    def answer(self, name: str, rdtype: str = "A") -> str:
        """The first label of a response code that denies, else the rdatas in one line."""
        return answer(self._server, f"{name}.{self.name}.test", rdtype)

    def becomes(self, expected: str, name: str, rdtype: str = "A") -> None:
        what = f"{name}.{self.name}.test {rdtype} {expected!r}"
        procs.wait_until(lambda: self.answer(name, rdtype) == expected, SOON, what)

    def stays(self, expected: str, name: str) -> None:
        """The answer is this, after all that the API server has sent until now was taken in."""
        number = _marks[self.name] = _marks.get(self.name, 0) + 1
        ip = f"10.99.0.{number}"
        self._api.apply(
            labelled(service("mark", "alpha", ips=[ip]), app="web"),
            labelled(service("mark-db", "alpha", ips=()), app="web"),
            labelled(endpoint_slice("mark-db", [endpoint(ip)], "alpha"), app="web"),
            labelled(pod("mark", "alpha", ip), app="web"),
            namespace(f"mark-{self.name}-{number}", {"team": "blue"}),
        )
        self.becomes(ip, "mark.alpha.svc")
        self.becomes(ip, "mark-db.alpha.svc")
        if "pods verified" in WAYS[self.name]:
            self.becomes(ip, f"10-99-0-{number}.alpha.pod")
        if "namespaces" not in WAYS[self.name]:
            self.becomes("NODATA", f"mark-{self.name}-{number}.svc")
        assert self.answer(name) == expected


_marks: dict[str, int] = {}


def answer(server: Server, name: str, rdtype: str) -> str:
    """The response code if it denies, "NODATA", or the rdatas of the answer, sorted, in one line."""
    response = server.query(name, rdtype)
    if response.rcode():
        return response.rcode().name
    return " ".join(sorted(str(rdata) for rrset in response.answer for rdata in rrset)) or "NODATA"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("api"), authenticate=True) as api:
        api.set_tokens({api.token: "test"} | {f"token-{way}": way for way in WAYS})
        api.load(cluster())
        yield api


def kubeconfig(api: ApiServer, folder: Path, way: str) -> Path:
    path = api.kubeconfig(folder / f"{way}.kubeconfig")
    path.write_text(path.read_text().replace(api.token, f"token-{way}"))
    return path


@pytest.fixture(scope="module")
def server(api: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("kdns")
    corefile = ".:$dns {\n    bind $addresses\n    ready $host:$ready\n    prometheus $host:$metrics\n}\n"
    for way, options in WAYS.items():
        lines = f"kubeconfig {kubeconfig(api, folder, way)}\n{options}"
        corefile += f"{way}.test:$dns {{\n bind $addresses\n kubernetes {way}.test {{\n{lines}\n}}\n}}\n"
    with Server(folder, corefile=corefile) as server:
        yield server


@pytest.fixture
def way(api: ApiServer, server: Server) -> Callable[[str], Way]:
    return lambda name: Way(api, server, name)


def paths(space: str = "") -> dict[str, str]:
    """The paths of the collections by their plural; of those in a namespace if one is given."""
    where = f"/namespaces/{space}" if space else ""
    return {
        SERVICES: f"/api/v1{where}/services",
        SLICES: f"/apis/discovery.k8s.io/v1{where}/endpointslices",
        NAMESPACES: "/api/v1/namespaces",
        PODS: f"/api/v1{where}/pods",
    }


CLUSTER = paths()


# What is asked


def test_without_options_three_kinds_are_asked_for_as_a_whole(way: Callable[[str], Way]) -> None:
    assert way("plain").asked() == {CLUSTER[SERVICES]: {}, CLUSTER[SLICES]: {}, CLUSTER[NAMESPACES]: {}}


def test_of_one_namespace_nothing_else_is_asked_for(way: Callable[[str], Way]) -> None:
    alpha = paths("alpha")
    assert way("one").asked() == {
        alpha[SERVICES]: {},
        alpha[SLICES]: {},
        CLUSTER[NAMESPACES]: {"fieldSelector": "metadata.name=alpha"},
    }
    selector = {"labelSelector": "app=web"}
    assert way("podsone").asked() == {
        alpha[SERVICES]: selector,
        alpha[SLICES]: selector,
        alpha[PODS]: selector | {"fieldSelector": RUNNING},
        CLUSTER[NAMESPACES]: {"fieldSelector": "metadata.name=alpha"},
    }


def test_several_namespaces_are_asked_for_as_the_whole_cluster(way: Callable[[str], Way]) -> None:
    assert way("several").asked() == way("plain").asked()


def test_selectors_are_applied_by_the_api_server(way: Callable[[str], Way]) -> None:
    assert way("team").asked() == {
        CLUSTER[SERVICES]: {},
        CLUSTER[SLICES]: {},
        CLUSTER[NAMESPACES]: {"labelSelector": "team=blue"},
    }
    for name, selector in (("label", "app=web"), ("set", "app in (db,web),tier!=test")):
        assert way(name).asked() == {
            CLUSTER[SERVICES]: {"labelSelector": selector},
            CLUSTER[SLICES]: {"labelSelector": selector},
            CLUSTER[NAMESPACES]: {},
        }


def test_pods_are_asked_for_by_pods_verified_alone_and_only_those_that_run(way: Callable[[str], Way]) -> None:
    assert way("pods").asked() == way("plain").asked() | {CLUSTER[PODS]: {"fieldSelector": RUNNING}}
    for name in WAYS.keys() - {"pods", "podsone"}:
        assert not [path for path in way(name).asked() if path.endswith("/pods")]


def test_noendpoints_asks_for_no_endpointslices(way: Callable[[str], Way]) -> None:
    assert way("bare").asked() == {CLUSTER[SERVICES]: {}, CLUSTER[NAMESPACES]: {}}


def test_nothing_is_asked_for_but_lists_and_watches_of_known_kinds(api: ApiServer, server: Server) -> None:
    requests = api.requests()
    assert {request.user for request in requests} == WAYS.keys()
    assert {request.path.rpartition("/")[2] for request in requests} == {SERVICES, SLICES, NAMESPACES, PODS}
    assert {(request.method, request.kind, request.status) for request in requests} <= {
        ("GET", kind, 200) for kind in ("list", "watch", "stream")
    }
    assert all(request.agent.startswith("kdns/") for request in requests)


# What is answered


def shown(way: Way, name: str) -> set[str]:
    """The namespaces that answer a name with an address."""
    return {space for space in SPACES if way.answer(f"{name}.{space}.svc")[0].isdigit()}


@pytest.mark.parametrize(
    ("name", "spaces"),
    [("plain", "alpha beta gamma"), ("one", "alpha"), ("several", "alpha beta"), ("team", "alpha gamma")],
)
def test_namespaces_that_are_not_selected_do_not_exist(way: Callable[[str], Way], name: str, spaces: str) -> None:
    selected = set(spaces.split())
    assert shown(way(name), "web") == shown(way(name), "db") == shown(way(name), "a.db") == selected
    for space in SPACES:
        assert way(name).answer(f"{space}.svc") == ("NODATA" if space in selected else "NXDOMAIN")


def test_what_labels_do_not_select_does_not_exist(way: Callable[[str], Way]) -> None:
    assert [shown(way("label"), name) for name in ("web", "db")] == [set(SPACES), set()]
    assert [shown(way("set"), name) for name in ("web", "db")] == [set(SPACES), set(SPACES)]
    assert way("label").answer("db.alpha.svc") == "NXDOMAIN"
    assert way("label").answer("alpha.svc") == "NODATA"


def test_noendpoints_has_no_headless_services(way: Callable[[str], Way]) -> None:
    assert [shown(way("bare"), name) for name in ("web", "db", "a.db")] == [set(SPACES), set(), set()]


# What changes


@pytest.mark.parametrize(("name", "spaces"), [("one", "alpha"), ("several", "alpha beta"), ("team", "alpha gamma")])
def test_services_that_come_and_go_are_shown_in_selected_namespaces_only(
    api: ApiServer, way: Callable[[str], Way], name: str, spaces: str
) -> None:
    items = [service("late", space, ips=[f"10.96.{number}.9"]) for space, number in SPACES.items()]
    api.create(*items)
    for space, number in SPACES.items():
        if space in spaces.split():
            way(name).becomes(f"10.96.{number}.9", f"late.{space}.svc")
        else:
            way(name).stays("NXDOMAIN", f"late.{space}.svc")
    api.delete(*items)
    for space in SPACES:
        way(name).becomes("NXDOMAIN", f"late.{space}.svc")


def test_a_namespace_begins_and_ceases_to_match(api: ApiServer, way: Callable[[str], Way]) -> None:
    team = way("team")
    api.update(namespace("beta", {"team": "blue"}))
    team.becomes("10.96.2.1", "web.beta.svc")
    assert [team.answer(name) for name in ("beta.svc", "a.db.beta.svc")] == ["NODATA", "10.1.2.1"]
    api.update(service("web", "beta", ips=["10.96.2.8"], labels={"app": "web"}))
    team.becomes("10.96.2.8", "web.beta.svc")
    api.update(namespace("beta", {"team": "red"}), web("beta"))
    team.becomes("NXDOMAIN", "web.beta.svc")
    assert [team.answer(name) for name in ("beta.svc", "db.beta.svc", "a.db.beta.svc")] == ["NXDOMAIN"] * 3
    api.update(namespace("beta"))
    team.stays("NXDOMAIN", "web.beta.svc")
    api.update(namespace("beta", {"team": "blue", "more": "yes"}))
    team.becomes("10.96.2.1", "web.beta.svc")
    api.update(namespace("beta", {"team": "red"}))
    team.becomes("NXDOMAIN", "web.beta.svc")
    assert way("plain").answer("web.beta.svc") == "10.96.2.1"


def test_a_service_of_a_namespace_that_is_not_yet_known_waits_for_it(api: ApiServer, way: Callable[[str], Way]) -> None:
    team, early = way("team"), service("web", "delta", ips=["10.96.4.1"])
    api.create(early)
    team.stays("NXDOMAIN", "web.delta.svc")
    assert way("plain").answer("web.delta.svc") == "10.96.4.1"
    api.create(namespace("delta", {"team": "blue"}))
    team.becomes("10.96.4.1", "web.delta.svc")
    api.delete(namespace("delta"))
    team.becomes("NXDOMAIN", "web.delta.svc")
    api.delete(early)


def test_a_service_begins_and_ceases_to_match(api: ApiServer, way: Callable[[str], Way]) -> None:
    label = way("label")
    api.update(db("beta", "web"))
    label.stays("NXDOMAIN", "db.beta.svc")  # its slices do not match yet
    api.update(db_slice("beta", "web"))
    label.becomes("10.1.2.1", "db.beta.svc")
    assert label.answer("a.db.beta.svc") == "10.1.2.1"
    api.update(web("beta", "other"))
    label.becomes("NXDOMAIN", "web.beta.svc")
    api.update(web("beta"))
    label.becomes("10.96.2.1", "web.beta.svc")
    api.update(db("beta"))
    label.becomes("NXDOMAIN", "db.beta.svc")
    assert label.answer("a.db.beta.svc") == "NXDOMAIN"
    api.update(db_slice("beta"))
    label.stays("NXDOMAIN", "db.beta.svc")
    assert way("plain").answer("db.beta.svc") == "10.1.2.1"


def test_a_pod_comes_gets_an_address_ends_and_is_deleted(api: ApiServer, way: Callable[[str], Way]) -> None:
    pods, name = way("pods"), "10-3-0-1.alpha.pod"
    running = pod("job", "alpha", "10.3.0.1")
    pending = running | {"status": {"phase": "Pending"}}
    api.create(pending)
    pods.stays("NXDOMAIN", name)
    api.update(running)
    pods.becomes("10.3.0.1", name)
    api.update(pod("job", "alpha", "10.3.0.1", phase="Succeeded"))
    pods.becomes("NXDOMAIN", name)
    api.update(running)
    pods.becomes("10.3.0.1", name)
    api.update(running | {"metadata": running["metadata"] | {"deletionTimestamp": "2026-05-06T07:08:09Z"}})
    pods.becomes("NXDOMAIN", name)
    api.update(pod("job", "alpha", "10.3.0.2", "fd00:3::2"))
    pods.becomes("10.3.0.2", "10-3-0-2.alpha.pod")
    assert pods.answer("fd00-3--2.alpha.pod", "AAAA") == "fd00:3::2"
    assert pods.answer("10-3-0-2.beta.pod") == pods.answer(name) == "NXDOMAIN"
    api.delete(running)
    pods.becomes("NXDOMAIN", "10-3-0-2.alpha.pod")
    pods.becomes("NXDOMAIN", "fd00-3--2.alpha.pod", "AAAA")


def test_pods_that_share_an_address_hold_it_until_the_last_one_is_gone(
    api: ApiServer, way: Callable[[str], Way]
) -> None:
    pods, one, two = way("pods"), pod("one", "alpha", "10.3.0.7"), pod("two", "alpha", "10.3.0.7")
    api.create(one, two)
    pods.becomes("10.3.0.7", "10-3-0-7.alpha.pod")
    api.delete(one)
    pods.stays("10.3.0.7", "10-3-0-7.alpha.pod")
    api.delete(two)
    pods.becomes("NXDOMAIN", "10-3-0-7.alpha.pod")


def test_pods_are_selected_by_namespace_and_labels_too(api: ApiServer, way: Callable[[str], Way]) -> None:
    some = way("podsone")
    assert [some.answer(f"10-2-{number}-1.{space}.pod") for space, number in SPACES.items()] == [
        "10.2.1.1",
        "NXDOMAIN",
        "NXDOMAIN",
    ]
    api.update(runner("alpha", "other"))
    some.becomes("NXDOMAIN", "10-2-1-1.alpha.pod")
    api.update(runner("alpha"))
    some.becomes("10.2.1.1", "10-2-1-1.alpha.pod")


# Reload


class Reloading:
    """A server whose options change while it is asked for names that stay."""

    def __init__(self, serve: Serve, api: ApiServer, folder: Path, options: str) -> None:
        self._lines = f"kubeconfig {kubeconfig(api, folder, 'plain')}\n"
        self.server = serve(corefile=API_COREFILE, kubernetes=self._lines + options)

    def change(self, options: str, shows: dict[str, str], stays: Sequence[str]) -> None:
        """Reload with other options. shows: answers to wait for. stays: names whose answers never change."""
        names = [(f"{name}.cluster.local", "A") for name in stays]
        before = [answer(self.server, *name) for name in names]
        with Pacer(self.server.port, names, rate=1000, seconds=30.0) as pacer:
            time.sleep(AROUND)
            self.server.write_corefile(kubernetes=self._lines + options)
            self.server.signal(signal.SIGHUP)
            for name, expected in shows.items():
                procs.wait_until(lambda: self.answer(name) == expected, RELOAD, f"{name} {expected}")  # noqa: B023
            time.sleep(AROUND)
            summary = pacer.finish()
        assert summary.lost == []
        assert summary.rcodes.keys() == {"3" if text == "NXDOMAIN" else "0" for text in before}
        # The SOA of one that denies has another serial after each change.
        assert {count for count, text in zip(summary.variants, before, strict=True) if text != "NXDOMAIN"} == {1}
        assert [answer(self.server, *name) for name in names] == before

    def answer(self, name: str) -> str:
        return answer(self.server, f"{name}.cluster.local", "A")

    def has(self, kind: str, count: int) -> None:
        """Wait until so many objects of a kind are known."""
        metric = "kdns_kubernetes_objects"
        procs.wait_until(lambda: self.server.metrics().value(metric, kind=kind) == count, SOON, f"{count} {kind}", 0.05)


def test_a_reload_widens_and_narrows_the_namespaces(serve: Serve, api: ApiServer, tmp_path: Path) -> None:
    kdns = Reloading(serve, api, tmp_path, "namespaces alpha")
    alpha, beta = ["web.alpha.svc", "a.db.alpha.svc"], ["web.beta.svc", "a.db.beta.svc"]
    assert [kdns.answer(name) for name in beta] == ["NXDOMAIN"] * 2
    never = ["web.nowhere.svc"]
    shows = {"web.beta.svc": "10.96.2.1", "a.db.beta.svc": "10.1.2.1", "web.gamma.svc": "NXDOMAIN"}
    kdns.change("namespaces alpha beta", shows, alpha + never)
    kdns.has("Namespace", 2)  # what is not selected is not even kept
    kdns.change("namespaces beta", dict.fromkeys(alpha, "NXDOMAIN"), beta + never)
    shows = {"web.alpha.svc": "10.96.1.1", "a.db.alpha.svc": "10.1.1.1", "web.gamma.svc": "10.96.3.1"}
    kdns.change("", shows, beta + never)
    kdns.change("namespace_labels team=blue", dict.fromkeys(beta, "NXDOMAIN"), [*alpha, "web.gamma.svc", *never])
    kdns.change("namespaces alpha", {"web.gamma.svc": "NXDOMAIN"}, alpha + never)


def test_a_reload_changes_the_labels(serve: Serve, api: ApiServer, tmp_path: Path) -> None:
    kdns = Reloading(serve, api, tmp_path, "labels app=web")
    web, db = ["web.alpha.svc", "web.beta.svc"], ["db.alpha.svc", "a.db.beta.svc"]
    assert [kdns.answer(name) for name in db] == ["NXDOMAIN"] * 2
    kdns.change("labels app in (web, db)", {"db.alpha.svc": "10.1.1.1", "a.db.beta.svc": "10.1.2.1"}, web)
    kdns.change("labels app=db", dict.fromkeys(web, "NXDOMAIN"), db)
    kdns.change("", {"web.alpha.svc": "10.96.1.1", "web.beta.svc": "10.96.2.1"}, db)


def test_a_reload_turns_pods_verified_and_back(serve: Serve, api: ApiServer, tmp_path: Path) -> None:
    kdns = Reloading(serve, api, tmp_path, "")
    stays = ["web.alpha.svc", "a.db.beta.svc", "10-2-9-9.alpha.pod"]
    assert [kdns.answer(name) for name in ("10-2-1-1.alpha.pod", "alpha.pod")] == ["NXDOMAIN"] * 2
    shows = {"10-2-1-1.alpha.pod": "10.2.1.1", "10-2-2-1.beta.pod": "10.2.2.1", "alpha.pod": "NODATA"}
    kdns.change("pods verified", shows, stays)
    late = pod("late", "alpha", "10.2.1.7")
    api.create(late)
    procs.wait_until(lambda: kdns.answer("10-2-1-7.alpha.pod") == "10.2.1.7", SOON, "a pod")
    kdns.change("", dict.fromkeys(shows, "NXDOMAIN"), stays)
    kdns.change("noendpoints", {"a.db.beta.svc": "NXDOMAIN", "db.alpha.svc": "NXDOMAIN"}, ["web.alpha.svc"])
    api.delete(late)
    shows = {"10-2-1-1.alpha.pod": "10.2.1.1", "10-2-1-7.alpha.pod": "NXDOMAIN", "a.db.beta.svc": "10.1.2.1"}
    kdns.change("pods verified", shows, ["web.alpha.svc"])
