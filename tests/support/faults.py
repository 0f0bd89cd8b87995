"""What befalls a node-local DNS server while two pods ask it 2,000 questions a second, and what became of those.

The events are the same for kdns and for NodeLocal DNSCache: each is a function that takes a Scene.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from tests.support import lookups, procs
from tests.support.lookups import Asked, Client, Plan
from tests.support.node import LINK, QUESTIONS, Cgroup, Instance, Topology

ONCE, TCP, GLIBC = 800.0, 20.0, 100.0
"""Questions a second from each of two pods: with two for each of glibc's lookups, 2,040 in all, besides the
programs'."""
PROGRAMS = [
    "getent ahosts www-*.example",
    "getent ahosts service-1.default.svc.cluster.local",
    "dig +tries=1 +time=2 +short dig-*.example",
]
BEFORE = AFTER = 1.0


@dataclass
class Scene:
    """A topology with an instance that serves.

    make: gives another one with the number that is said. down: seconds until what died is started again. marks: what
    happened when.
    """

    topology: Topology
    instance: Instance
    make: Callable[[int], Instance]
    down: float = 1.0
    marks: list[tuple[str, float]] = field(default_factory=list)

    def mark(self, what: str) -> float:
        """Note a moment."""
        now = time.monotonic()
        self.marks.append((what, now))
        return now

    def start_again(self) -> None:
        """What kubelet does some time after the container has died."""
        time.sleep(self.down)
        self.mark("start")
        self.instance.start()
        self.mark("serving")


Event = Callable[[Scene], None]


def kill_worker(scene: Scene) -> None:
    """kill -9 of the worker; another takes its place."""
    (victim,) = scene.instance.workers()
    scene.mark("kill")
    scene.instance.send(victim)
    procs.wait_until(lambda: scene.instance.workers() not in ([], [victim]), 10, "another worker")


def kill_nursery(scene: Scene) -> None:
    """kill -9 of the process that makes workers."""
    victim = scene.instance.nursery()
    scene.mark("kill")
    scene.instance.send(victim)
    procs.wait_until(lambda: scene.instance.nursery() not in (None, victim), 10, "another nursery")


def kill_supervisor(scene: Scene) -> None:
    """kill -9 of the supervisor; started again."""
    old = scene.instance.pids()
    scene.mark("kill")
    scene.instance.send(scene.instance.supervisor())
    scene.instance.process.wait()  # type: ignore[union-attr]
    scene.start_again()
    procs.wait_until(lambda: not any(map(procs.is_alive, old)), 20, "the end of the orphans")
    scene.mark("orphans gone")


def kill_all(scene: Scene) -> None:
    """kill -9 of the whole process group; started again."""
    scene.mark("kill")
    os.killpg(scene.instance.supervisor(), signal.SIGKILL)
    scene.instance.kill()
    scene.start_again()


def kill_by_oom(scene: Scene) -> None:
    """The OOM killer chooses somebody in the cgroup; started again if the process that was started is no more."""
    assert scene.instance.cgroup is not None
    scene.mark("oom")
    scene.instance.cgroup.kill_by_oom()
    scene.mark("killed")
    time.sleep(0.3)
    if not procs.is_alive(scene.instance.supervisor()):
        scene.start_again()
    else:
        scene.instance.wait_serving()


def terminate(scene: Scene) -> None:
    """SIGTERM; started again."""
    scene.mark("SIGTERM")
    scene.instance.terminate()
    scene.mark("gone")
    scene.start_again()


def start(scene: Scene) -> None:
    """The first start on a node: for an instance that does not run."""
    scene.start_again()


def upgrade(scene: Scene) -> None:
    """A new instance is started; when it serves, and a second later, the old one gets SIGTERM."""
    old = scene.instance
    scene.mark("start")
    scene.instance = scene.make(old.number + 1).start()
    scene.mark("serving")
    time.sleep(1.0)
    scene.mark("SIGTERM")
    old.terminate()
    scene.mark("gone")


def flush_ruleset(scene: Scene) -> None:
    """`nft flush ruleset` by somebody else."""
    scene.mark("flush")
    scene.topology.node.run("nft", "flush", "ruleset")
    time.sleep(1.0)


def delete_link(scene: Scene) -> None:
    """The link with the address is deleted by somebody else. Who cannot make a dummy link here finds an empty one."""
    scene.mark("delete")
    scene.topology.node.ip("link", "delete", LINK)
    if scene.instance.makes_dummy:
        scene.topology.make_link()
    time.sleep(1.0)
    scene.instance.wait_serving(70)


def delete_rules(scene: Scene) -> None:
    """Somebody else deletes every policy routing rule that is not the kernel's own, and the routes of their tables."""
    scene.mark("delete")
    for family in ("-4", "-6"):
        for line in scene.topology.node.ip(family, "rule", "show").splitlines():
            priority, _, rule = line.partition(":")
            if priority not in ("0", "32766", "32767"):
                table = rule.split()[rule.split().index("lookup") + 1]
                scene.topology.node.ip(family, "rule", "delete", "priority", priority)
                with contextlib.suppress(subprocess.CalledProcessError):
                    scene.topology.node.ip(family, "route", "flush", "table", table)
    time.sleep(1.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """All questions of an event, and its moments."""

    asked: list[Asked]
    marks: list[tuple[str, float]]

    def moment(self, what: str) -> float:
        """When something happened first."""
        return next(at for name, at in self.marks if name == what)

    def figures(self, kind: str, who: str | None = None) -> lookups.Figures:
        """What became of the questions of a kind, to an address or in all; gaps count from the first mark on."""
        return lookups.figures(self.asked, kind, who, self.marks[0][1])


def watch(scene: Scene, event: Event, addresses: Sequence[str] = ()) -> Outcome:
    """Let it happen under load.

    addresses: what is asked, equally often (default: all that is served). Programs run in those pods whose resolv.conf
    has one of them.
    """
    family = scene.topology.family
    asked = list(addresses or family.served)
    share = 1 / len(asked)
    plan = Plan(asked, QUESTIONS, once=ONCE * share, tcp=TCP * share, glibc=GLIBC * share, seconds=180)
    scene.marks.clear()
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(Client(pod, replace(plan, programs=PROGRAMS if own in asked else [], nameserver=own)))
            for pod, own in zip(scene.topology.pods, (family.cluster_ip, family.local), strict=True)
        ]
        time.sleep(BEFORE)
        event(scene)
        time.sleep(AFTER)
        for client in clients:
            client.stop()
        return Outcome([asked for client in clients for asked in client.finish()], list(scene.marks))


@contextlib.contextmanager
def scene(
    topology: Topology, make: Callable[[int, Cgroup | None], Instance], down: float, *, cgroup: bool = False
) -> Iterator[Scene]:
    """An instance that serves, and whatever takes its place; all are gone at the end.

    make: an instance of a number, in a cgroup if there is one.
    """
    made: list[Instance] = []
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(Cgroup(topology.node.name)) if cgroup else None

        def another(number: int) -> Instance:
            made.append(make(number, group))
            stack.callback(made[-1].stop)
            return made[-1]

        instance = another(2).start()
        topology.node.run("conntrack", "-F")
        yield Scene(topology, instance, another, down)
