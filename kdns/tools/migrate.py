"""Which servers there are to take over from, and what becomes of each."""

from __future__ import annotations

from collections.abc import Sequence

from kdns.errors import KdnsError
from kdns.tools import coredns
from kdns.tools.carry import COREFILE, Plan
from kdns.tools.coredns import KubeObject
from kdns.tools.corefiles import Source
from kdns.tools.takeover import Given, Options, Takeover, with_corefile
from kdns.tools.takeover_cluster import Cluster
from kdns.tools.takeover_node import Node

BARE = "/etc/coredns/Corefile"
"""Where a Corefile is taken to be that was given by itself."""


def plans(objects: Sequence[KubeObject], bare: Sequence[Source], options: Options) -> list[Plan]:
    """What to do about CoreDNS, NodeLocal DNSCache, or both.

    bare: Corefiles that were given by themselves. Raises KdnsError if there is neither, or several of one.
    """
    makes: tuple[type[Takeover], ...] = (Cluster, Node)
    found = []
    for is_one, make in zip((coredns.is_coredns, coredns.is_node_cache), makes, strict=True):
        workloads = [each for each in objects if is_one(each)]
        if len(workloads) > 1:
            names = ", ".join(each.title for each in workloads)
            raise KdnsError(f"there are several: {names}; accepted: the objects of one of them")
        if workloads:
            found.append(make(Given(objects, workloads[0], None, options)).plan)
    sources = [*bare] if found else [*bare, *(each.source(COREFILE, BARE) for each in with_corefile(objects))]
    for source in sources:
        make = Node if "__PILLAR__" in source.text else Cluster
        found.append(make(Given(objects, None, source, options)).plan)
    if not found:
        kinds = ", ".join(sorted({each.kind for each in objects})) or "nothing"
        raise KdnsError(f"there is no CoreDNS in this ({kinds}); accepted: its ConfigMap and Deployment, or a Corefile")
    return found
