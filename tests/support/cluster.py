"""A cluster of one node that runs a Deployment as its controllers, its kubelet and kube-proxy would.

    with Cluster(folder, given) as cluster:
        cluster.deploy(cluster.api.find("Deployment", "kube-system", "kdns"), replicas=2)
        cluster.wait_rolled_out()

The API server is in a namespace of its own, behind the Service `kubernetes`; who asks it may do what roles there say.
Each pod gets a namespace and an address, which go when it has ended. DELAY seconds after a change of a pod,
EndpointSlices and kube-proxy's rules have it. Clients ask from the topology's pods.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.support import kubelet, objects, procs
from tests.support.apiserver import ApiServer
from tests.support.kubelet import Pod
from tests.support.netns import Netns
from tests.support.node import IPV4, Topology
from tests.support.objects import Object
from tests.support.proxy import Endpoint, ServicePort

DELAY = 1.0
"""Kubelet, EndpointSlice controller, and kube-proxy, which gathers changes for up to a second."""
API, API6 = ("10.244.54.1", "10.244.54.2"), ("fd00:10:244:54::1", "fd00:10:244:54::2")
API_PORT = 6443
API_SERVICE = "10.96.0.1"
ROLLOUT_SECONDS = 180.0
_TICK = 0.02

Key = tuple[str, str, str]
"""An object's kind, namespace and name."""


@dataclass(frozen=True, slots=True)
class Running:
    """A pod of the Deployment. revision: which template it has."""

    pod: Pod
    namespace: Netns
    address: str
    revision: int

    def endpoint(self, port: int) -> Endpoint:
        """What it is as an endpoint."""
        return Endpoint(self.address, port, self.pod.ready and not self.pod.deleted, self.pod.ready)


class Deployment:
    """The part of a Deployment that says how many pods of which template there are to be."""

    def __init__(self, found: Object, replicas: int, revision: int) -> None:
        self.found = found
        self.name: str = found["metadata"]["name"]
        self.template: Object = found["spec"]["template"]
        self.replicas = replicas
        self.revision = revision
        update = found["spec"]["strategy"]["rollingUpdate"]
        self.surge = _part(update["maxSurge"], replicas, math.ceil)
        self.unavailable = _part(update["maxUnavailable"], replicas, math.floor)

    def to_create(self, pods: list[Running]) -> int:
        """How many are missing of the new ones, as far as the surge allows it. Pods that end do not count."""
        new = sum(running.revision == self.revision for running in pods)
        return min(self.replicas - new, self.replicas + self.surge - len(pods))

    def to_delete(self, pods: list[Running]) -> list[Running]:
        """Old ones that can go: those that are not ready, and of the others as many as may be unavailable."""
        old = [running for running in pods if running.revision != self.revision]
        ready = [running for running in old if running.pod.ready]
        spare = sum(running.pod.ready for running in pods) - (self.replicas - self.unavailable)
        return [running for running in old if running not in ready] + ready[: max(spare, 0)]

    def is_done(self, pods: list[Running]) -> bool:
        """Whether there are all of the new ones, ready, and none of the old."""
        return len(pods) == self.replicas and all(
            running.revision == self.revision and running.pod.ready for running in pods
        )


class Cluster(Topology):
    """One whose API server has the namespaces `default` and `kube-system`, and what is given."""

    def __init__(self, folder: Path, given: Mapping[Key, Object] | None = None) -> None:
        super().__init__(folder, servers=["upstream"])
        self._given = list((given or {}).values())
        self.pods_running: list[Running] = []
        self.deployment: Deployment | None = None
        self.control_plane = Netns("api")
        self.api = ApiServer(
            folder / "api",
            authenticate=True,
            host=API[1],
            port=API_PORT,
            names=[API_SERVICE],
            prefix=self.control_plane.prefix,
        )
        self.machine = kubelet.Node(
            self.node,
            config_maps=self._config_map,
            accounts=self._account,
            environ=self._environ,
            resolv_conf=f"nameserver {IPV4.upstream[1]}\n",
        )
        self._numbers = itertools.count(1)
        self._templates: list[Object] = []
        self._lock = threading.RLock()
        self._submitted = self._done = 0
        self._changes: queue.SimpleQueue[tuple[float, list[ServicePort], list[Object]] | None] = queue.SimpleQueue()
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        super().__enter__()
        with contextlib.ExitStack() as stack:
            stack.push(super().__exit__)
            stack.enter_context(self.control_plane)
            self.attach(self.control_plane, API, API6)
            stack.enter_context(self.api)
            self.api.settings(writable=True, rbac=True)
            self.api.create(*(objects.namespace(name) for name in ("default", "kube-system")), *self._given)
            threads = [threading.Thread(target=work, name=work.__name__) for work in (self._propagate, self._control)]
            stack.callback(self._end, threads)
            for thread in threads:
                thread.start()
            self._own = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._own.__exit__(*error)  # type: ignore[arg-type]

    def _end(self, threads: list[threading.Thread]) -> None:
        self._stopped.set()
        self._changes.put(None)
        for thread in threads:
            thread.join()
        for running in self.pods_running:
            running.pod.close()
            running.namespace.close()

    # What the kubelet asks the API server

    def _config_map(self, namespace: str, name: str) -> Mapping[str, str] | None:
        found = self.api.get("ConfigMap", namespace, name)
        return None if found is None else found.get("data", {})

    def _account(self, name: str) -> Mapping[str, str]:
        found = self.api.find("ServiceAccount", "kube-system", name)
        return self.api.account(name) if found.get("automountServiceAccountToken", True) else {}

    def _environ(self) -> dict[str, str]:
        """The variables of Services, the kubernetes one among them."""
        found = {"KUBERNETES_SERVICE_HOST": API_SERVICE, "KUBERNETES_SERVICE_PORT": "443"}
        for service in self.api.items("Service"):
            name = service["metadata"]["name"].upper().replace("-", "_")
            found[f"{name}_SERVICE_HOST"] = service["spec"].get("clusterIP", "")
        return {name: value for name, value in found.items() if value not in ("", "None")}

    # The Deployment

    def deploy(self, found: Object, replicas: int) -> None:
        """Make a Deployment what it says; what is there of it is updated."""
        template = found["spec"]["template"]
        with self._lock:
            if template not in self._templates:
                self._templates.append(template)
            self.deployment = Deployment(found, replicas, self._templates.index(template) + 1)

    def daemon(self, found: Object) -> Pod:
        """The pod of a DaemonSet on the node; a context manager."""
        name = f"{found['metadata']['name']}-{next(self._numbers)}"
        return Pod(name, found["spec"]["template"], self.folder / name, self.machine)

    def wait_rolled_out(self, seconds: float = ROLLOUT_SECONDS) -> float:
        """Wait until all pods are new and ready, and kube-proxy knows; returns the seconds."""

        def done() -> bool:
            with self._lock:
                return len(self.living()) == len(self.pods_running) and self.current().is_done(self.living())

        try:
            took = procs.wait_until(done, seconds, "the roll-out", _TICK)
        except AssertionError as error:
            logs = [f"log of {running.pod.name}:\n{running.pod.log}" for running in self.pods_running]
            raise AssertionError("\n".join([str(error), *logs])) from None
        self.settle()
        return took

    def settle(self) -> None:
        """Wait until EndpointSlices and kube-proxy have all Services and pods that there are."""
        self._changed()
        last = self._submitted
        procs.wait_until(lambda: self._done >= last, 20 * DELAY, "kube-proxy", _TICK)

    def current(self) -> Deployment:
        """What was deployed last."""
        assert self.deployment is not None
        return self.deployment

    def living(self) -> list[Running]:
        """The pods that are not being deleted."""
        with self._lock:
            return [running for running in self.pods_running if not running.pod.deleted]

    def _control(self) -> None:
        while not self._stopped.wait(_TICK):
            with self._lock:
                self._bury()
                if self.deployment is not None:
                    self._reconcile(self.deployment)

    def _reconcile(self, deployment: Deployment) -> None:
        for running in deployment.to_delete(self.living()):
            running.pod.delete()
            self._changed()
        for _ in range(deployment.to_create(self.living())):
            self._create(deployment)

    def _create(self, deployment: Deployment) -> None:
        number = next(self._numbers)
        name = f"{deployment.name}-{deployment.revision}-{number}"
        pair = f"10.244.{100 + number}.1", f"10.244.{100 + number}.2"
        namespace = Netns(f"pod-{number}").__enter__()
        self.attach(namespace, pair, (f"fd00:10:244:{100 + number}::1", f"fd00:10:244:{100 + number}::2"))
        pod = Pod(
            name,
            deployment.template,
            self.folder / name,
            self.machine,
            namespace=namespace,
            address=pair[1],
            changed=lambda _: self._changed(),
        )
        self.pods_running.append(Running(pod, namespace, pair[1], deployment.revision))
        pod.start()

    def _bury(self) -> None:
        """Remove those that have ended, with their networks."""
        for running in [running for running in self.pods_running if running.pod.gone]:
            self.pods_running.remove(running)
            running.pod.close()
            running.namespace.close()
            self._changed()

    # Endpoints

    def _changed(self) -> None:
        with self._lock:
            self._submitted += 1
            self._changes.put((time.monotonic() + DELAY, self._services(), self._slices()))

    def _propagate(self) -> None:
        """Bring changes to the API and to kube-proxy when they are due."""
        self.proxy.sync(self._services())
        while (change := self._changes.get()) is not None:
            due, ports, slices = change
            self._stopped.wait(due - time.monotonic())
            self.api.apply(*slices)
            self.proxy.sync(ports)
            self._done += 1

    def _services(self) -> list[ServicePort]:
        if self.api.process is None:
            return []
        ports = [ServicePort(API_SERVICE, 443, "tcp", (Endpoint(API[1], API_PORT),))]
        for service in self.api.items("Service"):
            spec = service["spec"]
            selected = self._selected(spec.get("selector", {}))
            for port in spec["ports"] if spec.get("clusterIP", "None") != "None" else []:
                target = port.get("targetPort", port["port"])
                endpoints = tuple(running.endpoint(target) for running in selected)
                protocol = port.get("protocol", "TCP").lower()
                ports.append(ServicePort(spec["clusterIP"], port["port"], protocol, endpoints))
        return ports

    def _selected(self, selector: Mapping[str, str]) -> list[Running]:
        with self._lock:
            return [running for running in self.pods_running if selector.items() <= running.pod.labels.items()]

    def _slices(self) -> list[Object]:
        """Those of Services whose selector is given."""
        found = []
        for service in self.api.items("Service"):
            if "selector" not in service["spec"]:
                continue
            endpoints = []
            for running in self._selected(service["spec"]["selector"]):
                known = running.endpoint(0)
                made = objects.endpoint(running.address, pod=running.pod.name, ready=known.ready)
                made["conditions"] |= {"serving": known.serving, "terminating": running.pod.deleted}
                endpoints.append(made)
            metadata = service["metadata"]
            ports = [
                (port["name"], port.get("targetPort", port["port"]), port.get("protocol", "TCP"))
                for port in service["spec"]["ports"]
            ]
            found.append(objects.endpoint_slice(metadata["name"], endpoints, metadata["namespace"], ports=ports))
        return found


def _part(value: int | str, whole: int, rounded: Callable[[float], int]) -> int:
    """A number, or that percentage of the whole."""
    return value if isinstance(value, int) else rounded(int(value.removesuffix("%")) * whole / 100)
