"""What taking over from CoreDNS and from NodeLocal DNSCache have in common: the Corefile, and where it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from kdns.errors import KdnsError
from kdns.tools import carry, coredns, corefiles
from kdns.tools.carry import COREFILE, Plan
from kdns.tools.coredns import Data, KubeObject, Pod, items, part
from kdns.tools.corefiles import Source, Verdict

_DNS_PORT = 53


@dataclass(frozen=True, slots=True)
class Options:
    """image: of kdns. without_unsupported: comment out what kdns refuses."""

    image: str = "kdns:0.1.0"
    without_unsupported: bool = False


@dataclass(frozen=True, slots=True)
class Given:
    """What is known of one server. workload: None with a Corefile alone, which then is `bare`."""

    objects: Sequence[KubeObject]
    workload: KubeObject | None
    bare: Source | None
    options: Options


def with_corefile(objects: Iterable[KubeObject]) -> list[KubeObject]:
    """The ConfigMaps that have a Corefile."""
    return [each for each in objects if each.kind == "ConfigMap" and COREFILE in part(each.data, "data")]


class Takeover:
    """Makes a plan. A subclass carries over the objects and writes those of kdns.

    own: what names of ours begin with. main: the Corefile as it is, and in `configmap` under `key` if that is known.
    imported: the other files that ConfigMaps give to the pod. sources: all of these as they are to be. config: what is
    to be served; None if something is not supported and has to stay. is_possible: whether there are manifests for it at
    all.
    """

    part = ""
    own = ""
    is_node = False

    def __init__(self, given: Given) -> None:
        """Raises KdnsError if there is no Corefile, or none is left without what is not supported."""
        self.given = given
        self.pod = Pod(given.workload) if given.workload is not None else None
        files = self.pod.files(given.objects) if self.pod is not None else []
        self.main, self.configmap, self.key = self._main(files)
        self.imported = [each for each in files if each[0].path != self.main.path]
        self.namespace = next((each.namespace for each in (given.workload, self.configmap) if each), "kube-system")
        self.plan = Plan(self.part, self.configmap.title if self.configmap is not None else self.main.file)
        self.sources = [self.main, *(source for source, _, _ in self.imported)]
        self.environ = self.pod.environ() if self.pod is not None else {}
        self.port = self._port()
        self.is_possible = True
        self._judge()
        self._tell_unknown()
        self.carry()
        if self.config is None or not self.is_possible:
            return
        if given.options.without_unsupported or self.plan.verdict is not Verdict.UNSUPPORTED:
            self.write()

    def carry(self) -> None:
        """Note what becomes of the objects, and make those of kdns."""
        raise NotImplementedError

    def write(self) -> None:
        """Fill in the plan's files."""
        raise NotImplementedError

    def base_file(self, pod: Pod) -> str:
        """The path of the file that is read."""
        folder = PurePosixPath("/", str(pod.container.get("workingDir") or ""))
        return str(folder / (pod.flags.get("conf") or COREFILE))

    def beside(self, kind: str) -> list[KubeObject]:
        """The objects of a kind in the namespace of the workload; all of them where none is known."""
        workload = self.given.workload
        found = [each for each in self.given.objects if each.kind == kind]
        return [each for each in found if workload is None or each.is_beside(workload)]

    @property
    def origin(self) -> str:
        """What the manifests are made from."""
        return self.given.workload.title if self.given.workload is not None else self.plan.origin

    def _main(self, files: Sequence[tuple[Source, KubeObject, str]]) -> tuple[Source, KubeObject | None, str]:
        """The Corefile, and where it is. Raises KdnsError."""
        if self.given.bare is not None:
            return self.given.bare, None, COREFILE
        assert self.pod is not None
        path = self.base_file(self.pod)
        for source, owner, key in files:
            if source.path == path:
                return source, owner, key
        mounted = ", ".join(self.pod.configmaps()) or "none"
        raise KdnsError(
            f"{self.pod.workload.title} reads {path}, which is in no ConfigMap that was given; accepted: those that it"
            f" mounts too ({mounted})"
        )

    def _port(self) -> int:
        flags = self.pod.flags if self.pod is not None else {}
        port = flags.get("dns.port") or flags.get("p") or ""
        return int(port) if port.isdigit() and 0 < int(port) < 65536 else _DNS_PORT

    # ConfigMaps of the pod

    def beside_corefile(self, volume: Mapping[str, Any]) -> Iterator[Data]:
        """What else is in the volume of the Corefile, as sources of a projected volume."""
        assert self.configmap is not None
        for source in items(part(volume, "projected"), "sources"):
            if part(source, "configMap").get("name") != self.configmap.name:
                yield self.without_unsupported(source)
        everything = {key: key for key in part(self.configmap.data, "data")}
        keys = dict(coredns.configmaps(volume))[self.configmap.name] or everything
        if others := {key: path for key, path in keys.items() if key != self.key}:
            chosen = [{"key": key, "path": path} for key, path in others.items()]
            yield self.without_unsupported({"configMap": {"name": self.configmap.name, "items": chosen}})
            if self.configmap.name not in self.changed():
                told = f"stays in {self.configmap.title}, whose changes are followed; it must not be deleted"
                self.plan.carried(self.origin, f"{', '.join(others)} beside the Corefile", told)

    def without_unsupported(self, source: Data) -> Data:
        """A volume, or a part of a projected one: the copy of its ConfigMap if there has to be one."""
        name = str(part(source, "configMap").get("name"))
        if name not in self.changed():
            return source
        told = f"in a copy, {self.copy(name)}, without what is not supported"
        self.plan.carried(self.origin, f"ConfigMap {name}", told)
        return {**source, "configMap": {**source["configMap"], "name": self.copy(name)}}

    def changed(self) -> dict[str, Data]:
        """The texts of ConfigMaps, other than the Corefile's, out of which something was commented."""
        texts = {source.path: source.text for source in self.sources}
        found: dict[str, Data] = {}
        for source, owner, key in self.imported:
            if texts[source.path] != source.text:
                found.setdefault(owner.name, part(owner.data, "data"))[key] = texts[source.path]
        return found

    def copy(self, name: str) -> str:
        """The name of a ConfigMap's copy."""
        return f"{self.own}-{name}"

    def copies(self, labels: Mapping[str, str]) -> list[Data]:
        """Those ConfigMaps as they are to be."""
        found = [carry.configmap(self.copy(name), data, labels) for name, data in self.changed().items()]
        for each in found:
            each["metadata"]["namespace"] = self.namespace
        return found

    # Its Corefile

    def _judge(self) -> None:
        """Note what becomes of each line, and take out what has to go."""
        judgement = corefiles.judge(self.sources, self.environ, self.port, node=self.is_node)
        self.plan.findings += judgement.findings
        self.config = judgement.config
        if self.config is None and self.given.options.without_unsupported:
            self.sources = corefiles.without(self.sources, self.environ, self.port, node=self.is_node)
            self.config = corefiles.judge(self.sources, self.environ, self.port, node=self.is_node).config

    def _tell_unknown(self) -> None:
        known = {each.name for each in self.beside("ConfigMap")}
        for name in self.pod.configmaps() if self.pod is not None else ():
            if name not in known:
                told = "it was not given: whatever it adds to the Corefile is not looked at"
                self.plan.left_out(self.origin, f"ConfigMap {name}", told)
