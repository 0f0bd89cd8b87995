"""autopath: the client's search list, gone through by the server.

## Name

*autopath* - answers the first name of a search list with what a later one has.

## Description

A pod that looks for `www.example.org` asks for `www.example.org.NAMESPACE.svc.cluster.local` first, and goes on through
its search list with each name that does not exist. This plugin does that in its place: if the first name does not
exist, it looks up the others in their order, the name as it is at last, in the rest of the server block's plugins. What
the first of them says that is not NXDOMAIN is the answer, behind a CNAME from the name that was asked. So the client
sends one query in the place of four. If none exists, the answer is the NXDOMAIN for the first name, and the client goes
on by itself. A name that exists without a record of the type ends the search too, and so does a failure.

With `@kubernetes` the list is the one that the kubelet gives to pods: `NAMESPACE.svc.ZONE`, `svc.ZONE`, `ZONE`, and the
search domains in `/etc/resolv.conf` of this server, which pods have from their nodes. **ZONE** is that of *kubernetes*
which the name is in. The client's namespace is that of the pod that has its address. Pods on their node's network have
the address of the node: where they are of different namespaces, no search list can be told, and none is gone through.

With `node`, it knows the pods of one node only, and needs no *kubernetes*: for `kdns node`, which has nobody else to
answer. Those pods alone are listed and watched (field selector `spec.nodeName`), so that its memory does not grow with
the cluster. What is needed of the API server: list and watch of pods. The names are looked up in the rest of the server
block's plugins as far as they are in its zones, the others by the server block that they belong to. What is known of
pods is kept in the state directory. Without the API server that stays as it was, and a pod that is not known goes
through its search list by itself.

Answers for a pod are kept in the packet cache for its address alone, as long as all that they were made of holds; not
beside *dns64*, *metadata*, *rewrite* or *view*, nor where *loadbalance* wants another order each time.

## Syntax

```
autopath [ZONES...] RESOLV-CONF
autopath [ZONES...] @kubernetes {
    node NAME
    endpoint URL
    tls CERT KEY CACERT
    kubeconfig FILE [CONTEXT]
}
```

* **ZONES**: only for names in these zones. Without any, those of the server block.
* **RESOLV-CONF**: a file with the line `search DOMAIN...` (resolv.conf(5)), as it is when the Corefile is read. It
  holds for every client. A relative path starts at *root*'s directory.
* `@kubernetes`: the search list of pods. Without a block, *kubernetes* has to be in the same server block, with
  `pods verified`.
* `node` **NAME**: of the pods on this node, whatever else is in the server block; mostly `{$NODE_NAME}`, a variable
  that a pod has from the downward API (`spec.nodeName`). If no pod is on a node of that name, the log says so.
  **ZONES** are the zones of the cluster then, but for reverse zones; the root is none.
* `endpoint`, `tls`, `kubeconfig`: how the API server is reached, beside `node`, as for *kubernetes*; default: as in a
  pod.

## Metrics

* `coredns_autopath_success_total{server}`: queries that were answered with a later name than the first.

With `node`, those of *kubernetes* about the API server as well.

## Examples

```corefile
.:53 {
    autopath @kubernetes
    kubernetes cluster.local {
        manifests /etc/kdns/cluster
        pods verified
    }
    forward . 192.0.2.53
}
```

On a node:

```corefile
cluster.local:53 {
    cache 30
    autopath @kubernetes {
        node worker-1
    }
    forward . 10.96.0.10 {
        force_tcp
    }
}
.:53 {
    cache 30
    forward . /etc/resolv.conf
}
```

## Differences from CoreDNS

`node` is new. The counter is of queries that were answered with a later name; CoreDNS counts those for names that exist
as they were asked, too. An answer for the first name is given as it is; CoreDNS puts a second CNAME in front of one
that is an alias already. The name of the search domain itself is looked up as any other; CoreDNS answers it with
SERVFAIL. Where no plugin answers for a name, the next one is tried; CoreDNS answers with SERVFAIL. All addresses of a
pod count; CoreDNS knows one. Where pods of different namespaces have one address, there is no search list; CoreDNS
takes that of any of them. `@kubernetes` without *kubernetes* or without `pods verified`, and a file without search
domains, are refused; CoreDNS does nothing then. Of other plugins, `@erratic` is not here.

## See also

*kubernetes*, *forward*, *cache*, resolv.conf(5).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock, ServerConfig
from kdns.corefile.lexer import Token
from kdns.corefile.options import Reader
from kdns.errors import ConfigValueError, Mistake
from kdns.plugins import kubernetes, root
from kdns.plugins.chain import Next
from kdns.plugins.site import Site
from kdns.wire import message, names, rr
from kdns.wire.message import Aging, Query, Response
from kdns.wire.rrset import RRset
from kdns.zone import clients
from kdns.zone.clients import Namespaces

NAME = "autopath"
_RESOLV_CONF = Path("/etc/resolv.conf")
_LONGEST_FILE = 1 << 16
_SVC = b"\x03svc"
_TAKE_PART = "metadata", "dns64", "rewrite", "view"
"""Directives that are asked before, and whose own say in an answer would not be known."""
_FOREVER = float(1 << 33)
_LABEL = "[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_NODE = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_ACCEPTED = "a file with a line of search domains, or @kubernetes"


@dataclass(frozen=True, slots=True)
class Options:
    """zones: lower case with their last dot. pods: the list is that of pods. search: domains, lower case with their
    last dot; of a list of pods those behind the cluster's. watch: how the pods of a node are followed, in the terms of
    `kubernetes`; None if they are not.
    """

    zones: tuple[str, ...]
    search: tuple[str, ...]
    pods: bool = False
    watch: kubernetes.Options | None = None

    def cluster(self, block: ServerConfig) -> tuple[str, ...]:
        """The zones of the cluster, for a list of pods."""
        found: tuple[str, ...] = self.zones if self.watch is not None else block.plugins[kubernetes.NAME].zones
        return found


def needs_clients(block: ServerConfig) -> bool:
    """Whether `kubernetes` has to know the namespaces of a server block's clients."""
    options = block.plugins.get(NAME)
    return isinstance(options, Options) and options.pods and options.watch is None


def is_personal(block: ServerConfig) -> bool:
    """Whether what is made for a pod may be kept for it: nothing that is asked before has a part in it."""
    options = block.plugins.get(NAME)
    return isinstance(options, Options) and options.pods and block.plugins.keys().isdisjoint(_TAKE_PART)


def watches(block: ServerConfig) -> bool:
    """Whether the pods of a node have to be followed for a server block."""
    options = block.plugins.get(NAME)
    return isinstance(options, Options) and options.watch is not None


def parse(directive: Directive, block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    args = reader.arguments(directive, 1, None, "autopath [ZONES...] RESOLV-CONF, or @kubernetes in its place")
    if not args:
        return None
    *zone_tokens, source = args
    zones = reader.zones(zone_tokens) or tuple(dict.fromkeys(key.zone for key in block.keys))
    pods, watch = source.text.startswith("@"), None
    search: tuple[str, ...] | None
    if not pods:
        reader.no_block()
        search = reader.value(source, lambda text: _domains(text, root.directory(block)))
    else:
        search = _usable(_RESOLV_CONF)
        if source.text != "@kubernetes":
            reader.refuse(source, f"autopath: {values.shown(source.text)} is not supported", _ACCEPTED)
        elif directive.block:
            watch = _watch(reader, source, zones)
        else:
            _check_kubernetes(reader, source, block)
    return Options(zones, search or (), pods, watch) if reader.sound else None


def _watch(reader: Reader, source: Token, zones: Sequence[str]) -> kubernetes.Options | None:
    """How the pods of a node are followed; None after a mistake."""
    found = kubernetes.Access()
    name = ""

    def node(item: Directive) -> None:
        nonlocal name
        name = reader.one(item, _node, "node NAME") or ""

    reader.options({"node": node, **kubernetes.access_options(reader, found)})
    kubernetes.access_together(reader)
    if reader.sound and not name:
        reader.refuse(source, "autopath @kubernetes has a block without node", "node NAME in it, or no block")
    elif "." in zones or all(map(values.is_reverse, zones)):
        message = "autopath @kubernetes with node does not know the cluster's zone"
        reader.refuse(source, message, "autopath cluster.local @kubernetes")
    if not reader.sound:
        return None
    return kubernetes.Options(
        zones=(),
        endpoints=tuple(found.endpoints),
        tls=tuple(found.tls),
        kubeconfig=found.kubeconfig,
        context=found.context,
        node=name,
    )


def _node(text: str) -> str:
    if not text:
        raise ConfigValueError(
            "the name of the node is empty", "node NAME; a variable of the environment has to be set"
        )
    if len(text) > 253 or not _NODE.fullmatch(text):
        raise ConfigValueError(
            f"{values.shown(text)} cannot be the name of a node", "lower-case letters, digits, hyphens and dots"
        )
    return text


def _check_kubernetes(reader: Reader, source: Token, block: ServerBlock) -> None:
    beside = [each for each in block.directives if each.name.text == kubernetes.NAME]
    words = {(item.name.text, *(arg.text for arg in item.args)) for each in beside for item in each.block or ()}
    if not beside:
        accepted = "kubernetes in the same server block, or `node NAME` in a block of autopath"
        reader.refuse(source, "autopath @kubernetes without kubernetes", accepted)
    elif ("pods", "verified") not in words:
        message = "autopath @kubernetes does not know the namespaces of its clients"
        reader.refuse(source, message, "kubernetes with `pods verified` in the same server block")


def _domains(path: str, directory: Path) -> tuple[str, ...]:
    if not path:
        raise ConfigValueError("the file has no name", _ACCEPTED)
    try:
        words = _search_words(directory / path)
    except OSError as error:
        raise ConfigValueError(f"{values.shown(path)} cannot be read: {error.strerror}", _ACCEPTED) from None
    found = tuple(values.zone(word) for word in words)
    if not found:
        raise ConfigValueError(f"{values.shown(path)} has no search domain", "a line such as: search example.org")
    return found


def _usable(path: Path) -> tuple[str, ...]:
    """The search domains of a file that need not be there; those that are none are left out."""
    found = []
    try:
        words = _search_words(path)
    except OSError:
        return ()
    for word in words:
        try:
            found.append(values.zone(word))
        except ConfigValueError:
            continue
    return tuple(found)


def _search_words(path: Path) -> list[str]:
    """What the last line `search` or `domain` of a file says (resolv.conf(5)). Raises OSError."""
    with path.open(errors="replace") as file:
        text = file.read(_LONGEST_FILE)
    found: list[str] = []
    for line in text.splitlines():
        words = re.split(r"[#;]", line, maxsplit=1)[0].split()
        if len(words) > 1 and words[0] in ("search", "domain"):
            found = words[1:] if words[0] == "search" else words[1:2]
    return found


class Handler:
    """Goes on to the other names of a search list where the first does not exist.

    cluster: the zones of the cluster, for a list of pods. namespaces: knows those of its clients, None for a list that
    is everybody's.
    """

    def __init__(
        self, options: Options, site: Site, cluster: Sequence[str] = (), namespaces: Namespaces | None = None
    ) -> None:
        self._zones = names.zone_set(options.zones)
        self._search = [names.lower(names.from_text(domain)) for domain in options.search]
        self._namespaces = namespaces
        wire = [names.lower(names.from_text(zone)) for zone in cluster if not values.is_reverse(zone)]
        self._cluster = names.Zones({zone: zone for zone in wire})
        self._region = site.region
        self._ask = site.ask
        self._own = names.zone_set(site.zones) if options.watch is not None else None
        self._cells: dict[str, int] = {}

    def passing(self, zone: bytes, server: str) -> tuple[int, ...]:
        """What exists."""
        return ()

    def completes(self, zone: bytes) -> bool:
        """In zones that names of a first search domain may be in."""
        firsts = self._cluster.by_zone if self._namespaces is not None else self._search[:1]
        return any(names.is_subdomain(first, zone) or names.is_subdomain(zone, first) for first in firsts)

    async def __call__(self, query: Query, next: Next) -> Response:
        domain = self._first_domain(query.lname) if self._zones.find(query.lname) else None
        first = await next(query)
        if domain is None or first.rcode != rr.NXDOMAIN:
            return first
        made = _Made(self._region.cells)
        made.add(first)
        is_personal = self._namespaces is not None
        if is_personal:
            made.depends += (clients.name_of(query.client[0]) or b"",)
        search = self._rest(domain, query)
        found = await self._complete(query, domain, search, made, next) if search is not None else None
        if found is None:
            response, aging = first, made.aging(first)
        else:
            counted = self._count(query.server) if found.rcode == rr.NOERROR and not found.silent else ()
            response, aging = _renamed(query, found), made.aging(found, counted)
        response.depends = made.depends
        response.aging = aging if made.is_kept else None
        response.cacheable = made.is_kept and not is_personal
        response.personal = made.is_kept and is_personal
        return response

    def _first_domain(self, name: bytes) -> bytes | None:
        """The first domain of the search list that a name (lower case) is of, as far as the name tells; None if none.

        For a list of pods that is NAMESPACE.svc.ZONE, of any namespace.
        """
        if self._namespaces is None:
            domain = self._search[0]
            return domain if name != domain and names.is_subdomain(name, domain) else None
        zone = self._cluster.find(name)
        if zone is None:
            return None
        above = _SVC + zone
        at = len(name) - len(above)
        if at <= 0 or not names.is_subdomain(name, above):
            return None
        step = 0
        while step + 1 + name[step] < at:
            step += 1 + name[step]
        return name[step:] if step else None

    def _rest(self, domain: bytes, query: Query) -> list[bytes] | None:
        """The domains behind the first in the client's search list, the root at last; None if it has another list."""
        if self._namespaces is None:
            return [*self._search[1:], names.ROOT]
        namespace = self._namespaces.of(query.client[0])
        above = names.parent(domain)
        if namespace is None or domain != names.join([namespace.encode()])[:-1] + above:
            return None
        return [above, names.parent(above), *self._search, names.ROOT]

    async def _complete(
        self, query: Query, domain: bytes, search: Sequence[bytes], made: _Made, next: Next
    ) -> Response | None:
        """What the first of the other names says that is not NXDOMAIN, if there is one."""
        base = query.name[: len(query.name) - len(domain)]
        for behind in dict.fromkeys(search):
            if len(base) + len(behind) > names.MAX_NAME:
                continue
            found = await self._look_up(query, base + behind, next)
            made.add(found)
            if found.plugin and not _says_nothing(found):
                return found
        return None

    async def _look_up(self, query: Query, name: bytes, next: Next) -> Response:
        """What is answered for another name: with `node` by the server block that it belongs to, else by this one.

        How often one block can ask another is bounded: that one may have search domains in this.
        """
        if self._own is None or self._own.find(name.lower()):
            return await next(message.follow(query, name, query.links))
        links = message.links_of(query.links, 1)
        if links >= message.LONGEST_CHAIN:
            return Response(rcode=rr.REFUSED)
        return await self._ask(message.follow(query, name, links))

    def _count(self, server: str) -> tuple[int]:
        """Count a success; returns where it is counted."""
        cell = self._cells.get(server)
        if cell is None:
            key = ("count", "coredns_autopath_success_total", "server", server)
            cell = self._cells[server] = self._region.series(key, 1)
        self._region.cells[cell] += 1
        return (cell,)


class _Made:
    """What an answer is made of: several responses, and what is known of the client.

    is_kept: whether it stays the same until a name changes, or what is kept of one of them is over. depends: the names.
    """

    def __init__(self, cells: memoryview) -> None:
        self.is_kept = True
        self.depends: tuple[bytes, ...] = ()
        self._cells = cells
        self._agings: list[Aging] = []

    def add(self, response: Response) -> None:
        """Note a response."""
        self.is_kept &= response.cacheable and (response.relay is None or response.aging is not None)
        self.depends += response.depends
        if response.aging is not None:
            self._agings.append(response.aging)

    def aging(self, found: Response, counted: tuple[int, ...] = ()) -> Aging | None:
        """How the one that is the answer ages. All of them are asked for each time that it is. counted: what counts
        that as well."""
        agings = self._agings
        if not (agings or counted):
            return None
        until = min((aging.until for aging in agings), default=_FOREVER)
        expires, counts_down = (found.aging.expires, found.aging.counts_down) if found.aging else (until, False)
        counted += tuple(cell for aging in agings for cell in aging.counted)
        asked = [aging.asked for aging in agings if aging.asked is not None]
        return Aging(expires, until, counts_down, self._cells, counted, partial(_tell, asked) if asked else None)


def _tell(every: Sequence[Callable[[], None]]) -> None:
    for asked in every:
        asked()


def _says_nothing(response: Response) -> bool:
    """Whether the search goes on: the name does not exist, or a plugin has no answer for it and no reason to give."""
    if response.rcode == rr.SERVFAIL:
        return response.relay is None and not response.error
    return response.rcode == rr.NXDOMAIN


def _renamed(query: Query, found: Response) -> Response:
    """A response for another name, as the answer to a query."""
    opened = message.opened(found)
    answer = opened.answer
    if answer:
        owner, rrset = answer[0]
        answer = [(query.lname, RRset(rr.CNAME, rrset.ttl, (owner,))), *answer]
    return replace(opened, answer=answer, plugin=NAME)
