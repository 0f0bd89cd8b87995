"""kubernetes: the DNS names of a Kubernetes cluster.

## Name

*kubernetes* - answers for Services, endpoints and pods after the Kubernetes DNS schema 1.1.0.

## Description

The objects of a cluster are turned into records when they change; a query is a look-up. The objects come from the
Kubernetes API, which is watched, or from files (`manifests`), whose changes are followed. Without **ZONES**, it answers
for the zones of its server block. One of the zones has to be something else than a reverse zone.

Without `kubeconfig` or `endpoint`, it is the API server of the cluster that kdns runs in (a pod's environment and
service account). What is needed of it: list and watch of services, namespaces, endpointslices.discovery.k8s.io; of pods
with `pods verified`; of serviceimports.multicluster.x-k8s.io with `multicluster`.

A Service of type ExternalName is a CNAME. Where it leads out of these zones, the addresses of its target are what this
very server answers for that name, by *forward* for example; if that fails, the answer is SERVFAIL.

Objects, records and how far the API was followed are kept in the state directory. After a restart the answers are
there at once, and the API server is asked for nothing but what has changed since. As long as it cannot be reached the
answers stay as they were: *ready* shows how old they are, and so do the log and `kdns_kubernetes_data_age_seconds`.
Without data from before, nothing is answered until it has been read or `startup_timeout` is over; from then on names of
these zones are SERVFAIL until it has been read.

With *metadata* in the server block, it tells others what a name says: `kubernetes/kind` (`svc` or `pod`),
`kubernetes/namespace`, `kubernetes/service`, `kubernetes/endpoint`, `kubernetes/port-name`, `kubernetes/protocol`,
`kubernetes/cluster` in zones of `multicluster`, `kubernetes/zone` with `zonal`; only `kubernetes/parse-error` for a
name that is nothing in the schema. That a name says so does not mean that it exists. With `pods verified`,
`kubernetes/client-namespace` is the namespace of the pod that asks, if it asks from its own address.

## Syntax

```
kubernetes [ZONES...] {
    endpoint URL
    tls CERT KEY CACERT
    kubeconfig FILE [CONTEXT]
    manifests PATH...
    namespaces NAMESPACE...
    namespace_labels EXPRESSION
    labels EXPRESSION
    pods disabled|insecure|verified
    endpoint_pod_names
    ttl TTL
    noendpoints
    fallthrough [ZONES...]
    ignore empty_service
    zonal
    multicluster ZONES...
    startup_timeout DURATION
    snapshot_max_age DURATION
    apiserver_qps QPS
    apiserver_burst BURST
    apiserver_max_inflight COUNT
}
```

* **ZONES**: names such as `cluster.local`, or networks such as `10.96.0.0/12` for their reverse zones.
* `endpoint` **URL**: the API server, for one that needs no more than client certificates. Of several only the
  first is used, as in CoreDNS; the log says so.
* `tls` **CERT** **KEY** **CACERT**: files with the client's certificate and key, and the certificate authority's
  certificate, for `endpoint`.
* `kubeconfig` **FILE** **[CONTEXT]**: how to reach and use the API server, as for kubectl, exec plugins included. Not
  together with `endpoint`.
* `manifests` **PATH...**: no API server, but YAML or JSON files, or folders with such files, that hold Services,
  EndpointSlices, Endpoints, Namespaces, Pods and ServiceImports. Relative paths start at the directory that *root*
  names, else at the working directory. It may be repeated.
* `namespaces` **NAMESPACE...**: only these. It may be repeated.
* `namespace_labels` **EXPRESSION**: only namespaces that the label selector matches. Not together with `namespaces`.
* `labels` **EXPRESSION**: only what the label selector matches, for example
  `environment in (staging, qa),application=nginx`: of the API's Services, EndpointSlices (which have the labels of
  their Service) and Pods; of `manifests` Services.
* `pods`: names such as `1-2-3-4.NAMESPACE.pod.ZONE`. `disabled` (default): none. `insecure`: any address.
  `verified`: only addresses that a running pod in that namespace has.
* `endpoint_pod_names`: an endpoint without hostname is named after its pod, not after its address.
* `ttl` **TTL**: seconds, 0 to 3600; default 5.
* `noendpoints`: no records of endpoints; headless Services do not exist then.
* `fallthrough` **[ZONES...]**: a name that does not exist is passed to the next plugin; only in these zones if any are
  given.
* `ignore empty_service`: a Service without a ready endpoint does not exist.
* `zonal`: `ZONE.pin._zone.SERVICE.NAMESPACE.svc.ZONE` and `ZONE.prefer._zone...` for the endpoints of a topology zone.
  Not together with `noendpoints`.
* `multicluster` **ZONES...**: those of the zones that are clusterset zones: their names come from ServiceImports and
  their EndpointSlices (Multi-Cluster Services API), endpoints are `ENDPOINT.CLUSTER.SERVICE.NAMESPACE.svc.ZONE`. A
  cluster without the resource has no ServiceImports; it may come later.
* `startup_timeout` **DURATION**: how long the whole server waits for the API at a start without data from before.
  Default: 5s.
* `snapshot_max_age` **DURATION**: how old the data from before a restart may be to be served until the source has been
  read. Default: any age.
* `apiserver_qps`, `apiserver_burst`: requests a second to the API server, and how many may come at once. Default: 5
  and 10, as for Kubernetes' own clients; 0 is the default too.
* `apiserver_max_inflight`: how many requests may wait for their answer to begin at the same time. 0, the default: any
  number.

## Metrics

* `kdns_kubernetes_objects{kind}`: the objects that are known, by kind.
* `kdns_kubernetes_data_age_seconds{}`: how long ago they were last known to be current.
* `kdns_manifest_errors{}`: files that cannot be used and stand with their last good content.
* `coredns_kubernetes_dns_programming_duration_seconds{service_kind}`: from the change of an endpoint (the annotation of
  its EndpointSlice) to the answer. service_kind: `cluster_ip` or `headless_with_selector`.
* `coredns_kubernetes_rest_client_request_duration_seconds{verb, host}`: until the API server began to answer.
* `coredns_kubernetes_rest_client_rate_limiter_duration_seconds{verb, host}`: waiting for `apiserver_qps`.
* `coredns_kubernetes_rest_client_requests_total{code, method, host}`: requests to the API server.
* `kdns_kubernetes_lists_total{kind, how}`: whole lists that the API server was asked for, as a `stream` or in `pages`.
* `kdns_kubernetes_watch_errors_total{kind, reason}`: what went wrong between the API server and kdns.

## Examples

```corefile
cluster.local:53 10.96.0.0/12 {
    kubernetes {
        manifests /etc/kdns/cluster
        pods verified
    }
}
```

Only some namespaces, and names that do not exist in the reverse zones go to the next plugin:

```corefile
.:53 {
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        manifests services.yaml endpoints.yaml
        namespaces staging test
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    whoami
}
```

The API server of a kubeconfig, and names of the clusterset beside those of the cluster:

```corefile
cluster.local clusterset.local {
    kubernetes {
        kubeconfig /etc/kdns/kubeconfig admin@prod
        multicluster clusterset.local
        snapshot_max_age 24h
    }
}
```

## Differences from CoreDNS

`manifests` and `snapshot_max_age` are new. A start without the API server answers from the last run's data.
`apiserver_qps` and `apiserver_burst` have an effect; ServiceImports are not selected by `namespace_labels`, which
CoreDNS takes for labels of the ServiceImports themselves. The duration of DNS programming does not count what was read
in a list. `endpoint` or `tls` beside `kubeconfig` are refused, where CoreDNS takes the kubeconfig and says nothing. A
port behind a zone is refused; CoreDNS drops it. An ExternalName whose target cannot be resolved is SERVFAIL; CoreDNS
answers as if it had no address. A PTR answer lists every Service that has the address; CoreDNS names one for cluster
IPs. A name that exists without records of the type is NODATA; CoreDNS says NXDOMAIN for some, such as `_tcp` below a
Service, and namespaces asked for TXT. An alias is shown for every type; CoreDNS shows it for A, AAAA and CNAME. Names
of ports have SRV records only; CoreDNS has the addresses of the Service there too. The weights of SRV records share 100
by ports; CoreDNS counts a dual-stack Service twice. Names of endpoints and of pods have addresses only; CoreDNS has SRV
records there too. Ports are `_port._protocol`; CoreDNS takes them without underscores as well. The zone's name server
is `ns.dns` in the zone; CoreDNS calls it by the name of its Service. A namespace also exists by what is in it; CoreDNS
wants its object. With `namespace_labels` there are no PTR records of what is not shown, and none of endpoints without a
Service; CoreDNS has both. Endpoints that are not ready count where the Service has `publishNotReadyAddresses`, whatever
their slices say. With `pods verified` all addresses of a pod count; CoreDNS knows one.

## See also

*forward*, *ready*, *root*, *loadbalance*.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.options import Reader
from kdns.corefile.values import Selector
from kdns.errors import ConfigValueError, Mistake
from kdns.plugins import root, schema
from kdns.plugins.aliases import chase
from kdns.plugins.chain import Next
from kdns.wire import message, names, rr
from kdns.wire.message import Query, Response
from kdns.wire.rrset import RRset
from kdns.zone import sources
from kdns.zone.clients import Namespaces
from kdns.zone.lookup import ZoneView
from kdns.zone.reader import Reader as StoreReader
from kdns.zone.store import EXPIRED
from kdns.zone.values import Records

NAME = "kubernetes"
POD_MODES = ("disabled", "insecure", "verified")
STARTUP_TIMEOUT = 5.0
_FOR_THE_API = (
    "endpoint", "tls", "kubeconfig", "startup_timeout", "apiserver_qps", "apiserver_burst", "apiserver_max_inflight",
)  # fmt: skip
_MOST = 1_000_000

_EVERYWHERE = b"\x01*"
_TARGET_AT = {rr.SRV: 6, rr.NS: 0}


@dataclass(frozen=True, slots=True)
class Options:
    """What the directive says.

    zones, fallthrough, multicluster: lower case with their last dot; fallthrough: the zones in which it holds ("." for
    all of them). manifests: paths, resolved against `root`; without any it is the Kubernetes API. endpoints: URLs. tls:
    files of certificate, key and authority. context: "" for the file's own. namespaces: empty for all. pods: one of
    POD_MODES. ttl: seconds. startup_timeout: seconds. snapshot_max_age: seconds, None for any age. apiserver_*: 0 for
    the default. node: only the pods of this node are wanted, and nothing else of the cluster (`autopath`).
    """

    zones: tuple[str, ...]
    manifests: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    tls: tuple[str, ...] = ()
    kubeconfig: str = ""
    context: str = ""
    namespaces: tuple[str, ...] = ()
    namespace_labels: Selector | None = None
    labels: Selector | None = None
    pods: str = "disabled"
    endpoint_pod_names: bool = False
    ttl: int = 5
    noendpoints: bool = False
    fallthrough: tuple[str, ...] = ()
    ignore_empty_service: bool = False
    zonal: bool = False
    multicluster: tuple[str, ...] = ()
    startup_timeout: float = STARTUP_TIMEOUT
    snapshot_max_age: float | None = None
    apiserver_qps: float = 0.0
    apiserver_burst: int = 0
    apiserver_max_inflight: int = 0
    node: str = ""


@dataclass(slots=True)
class Access:
    """How the API server is reached, as far as it is read; the names are those of Options."""

    endpoints: list[str] = field(default_factory=list)
    tls: list[str] = field(default_factory=list)
    kubeconfig: str = ""
    context: str = ""


@dataclass(slots=True)
class _Found(Access):
    """The options as far as they are read; the names are those of Options."""

    manifests: list[str] = field(default_factory=list)
    namespaces: list[str] = field(default_factory=list)
    namespace_labels: Selector | None = None
    labels: Selector | None = None
    pods: str | None = "disabled"
    endpoint_pod_names: bool = False
    ttl: int | None = 5
    noendpoints: bool = False
    fallthrough: list[str] = field(default_factory=list)
    ignore_empty_service: bool = False
    zonal: bool = False
    multicluster: list[str] = field(default_factory=list)
    startup_timeout: float | None = STARTUP_TIMEOUT
    snapshot_max_age: float | None = None
    apiserver_qps: float | None = 0.0
    apiserver_burst: int | None = 0
    apiserver_max_inflight: int | None = 0


def parse(directive: Directive, block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    zones = list(reader.zones(directive.args) if directive.args else dict.fromkeys(key.zone for key in block.keys))
    if reader.sound and zones and all(map(values.is_reverse, zones)):
        reader.refuse(directive.name, "kubernetes has reverse zones only", "a zone such as cluster.local beside them")
    found = _Found()
    options = _options(reader, found, root.directory(block))
    reader.options(options, repeatable=("manifests", "namespaces"))
    _together(reader, found, zones)
    if not reader.sound:
        return None
    settings = {item.name: getattr(found, item.name) for item in fields(found)}
    for name in ("manifests", "namespaces", "fallthrough", "multicluster", "endpoints"):
        settings[name] = tuple(dict.fromkeys(settings[name]))
    settings["tls"] = tuple(found.tls)
    return Options(zones=tuple(zones), **settings)


def access_options(reader: Reader, found: Access) -> dict[str, Callable[[Directive], None]]:
    """The readers of the options that say how the API server is reached."""
    name = reader.directive.name.text

    def endpoint(item: Directive) -> None:
        scheme = "https" if any(other.name.text == "tls" for other in reader.directive.block or ()) else "http"
        for token in reader.arguments(item, 1, None, "endpoint URL"):
            found.endpoints.append(reader.value(token, lambda text: values.url(text, scheme)) or "")

    def files(item: Directive, low: int, high: int, accepted: str) -> list[str]:
        args = reader.arguments(item, low, high, accepted)
        for token in args:
            if not token.text:
                reader.refuse(token, f"{name}: {item.name.text} has an empty argument", accepted)
        return [token.text for token in args]

    def tls(item: Directive) -> None:
        found.tls = files(item, 3, 3, "tls CERT KEY CACERT")

    def kubeconfig(item: Directive) -> None:
        found.kubeconfig, found.context = (*files(item, 1, 2, "kubeconfig FILE [CONTEXT]"), "", "")[:2]

    return {"endpoint": endpoint, "tls": tls, "kubeconfig": kubeconfig}


def _options(reader: Reader, found: _Found, directory: Path) -> dict[str, Callable[[Directive], None]]:
    """Each option's reader."""

    def manifests(item: Directive) -> None:
        for token in reader.arguments(item, 1, None, "manifests PATH..."):
            if token.text:
                found.manifests.append(str(directory / token.text))
            else:
                reader.refuse(token, "kubernetes: manifests has an empty path", "a file or folder")

    def multicluster(item: Directive) -> None:
        if reader.arguments(item, 1, None, "multicluster ZONES..."):
            found.multicluster = list(reader.zones(item.args))

    def startup_timeout(item: Directive) -> None:
        found.startup_timeout = reader.one(item, values.duration, "startup_timeout DURATION")

    def apiserver_qps(item: Directive) -> None:
        accepted = "requests a second, such as 20 or 0.5"
        found.apiserver_qps = reader.one(item, lambda text: values.number(text, accepted), "apiserver_qps QPS")

    def count(name: str) -> Callable[[Directive], None]:
        def read(item: Directive) -> None:
            setattr(found, name, reader.one(item, lambda text: values.integer(text, 0, _MOST), f"{name} COUNT"))

        return read

    def namespaces(item: Directive) -> None:
        for token in reader.arguments(item, 1, None, "namespaces NAMESPACE..."):
            found.namespaces.append(reader.value(token, _namespace) or "")

    def selector(name: str) -> Callable[[Directive], None]:
        def read(item: Directive) -> None:
            args = reader.arguments(item, 1, None, f"{name} EXPRESSION")
            if args:
                expression = " ".join(token.text for token in args)
                setattr(found, name, reader.value(args[0], lambda _: values.selector(expression)))

        return read

    def pods(item: Directive) -> None:
        found.pods = reader.one(item, lambda text: values.choice(text, POD_MODES), f"pods {'|'.join(POD_MODES)}")

    def ttl(item: Directive) -> None:
        found.ttl = reader.one(item, lambda text: values.integer(text, 0, 3600), "ttl TTL")

    def flag(name: str) -> Callable[[Directive], None]:
        def read(item: Directive) -> None:
            reader.arguments(item, 0, 0, name)
            setattr(found, name, True)

        return read

    def fallthrough(item: Directive) -> None:
        found.fallthrough = list(reader.zones(item.args)) if item.args else ["."]

    def ignore(item: Directive) -> None:
        reader.one(item, lambda text: values.choice(text, ("empty_service",)), "ignore empty_service")
        found.ignore_empty_service = True

    def snapshot_max_age(item: Directive) -> None:
        found.snapshot_max_age = reader.one(item, values.duration, "snapshot_max_age DURATION")

    return {
        **access_options(reader, found),
        "manifests": manifests,
        "namespaces": namespaces,
        "namespace_labels": selector("namespace_labels"),
        "labels": selector("labels"),
        "pods": pods,
        "endpoint_pod_names": flag("endpoint_pod_names"),
        "ttl": ttl,
        "noendpoints": flag("noendpoints"),
        "fallthrough": fallthrough,
        "ignore": ignore,
        "zonal": flag("zonal"),
        "multicluster": multicluster,
        "startup_timeout": startup_timeout,
        "snapshot_max_age": snapshot_max_age,
        "apiserver_qps": apiserver_qps,
        "apiserver_burst": count("apiserver_burst"),
        "apiserver_max_inflight": count("apiserver_max_inflight"),
    }


def _together(reader: Reader, found: _Found, zones: Collection[str]) -> None:
    """What the options have to be beside each other."""
    name = reader.directive.name
    if found.namespaces and found.namespace_labels is not None:
        reader.refuse(name, "kubernetes has both namespaces and namespace_labels", "one of them")
    if found.zonal and found.noendpoints:
        reader.refuse(name, "kubernetes has both zonal and noendpoints, which leaves zonal nothing", "one of them")
    written = {item.name.text: item.name for item in reader.directive.block or ()}
    for word in _FOR_THE_API:
        if "manifests" in written and word in written:
            reader.refuse(written[word], f"kubernetes has both manifests and {word}", "one source: files or the API")
    if "manifests" not in written:
        access_together(reader)
    for zone in found.multicluster:
        if zone not in zones or values.is_reverse(zone):
            message = f"kubernetes has multicluster {zone}, which is not one of its zones of names"
            reader.refuse(written["multicluster"], message, ", ".join(z for z in zones if not values.is_reverse(z)))


def access_together(reader: Reader) -> None:
    """What the options that say how the API server is reached have to be beside each other."""
    name = reader.directive.name.text
    written = {item.name.text: item.name for item in reader.directive.block or ()}
    for word in ("endpoint", "tls"):
        if "kubeconfig" in written and word in written:
            reader.refuse(written[word], f"{name} has both kubeconfig and {word}", "one of them")
    if "tls" in written and "endpoint" not in written:
        reader.refuse(written["tls"], f"{name} has tls without endpoint", "endpoint URL beside it")


def _namespace(text: str) -> str:
    if not values.is_namespace(text):
        raise ConfigValueError(
            f"{values.shown(text)} cannot be a namespace", "1 to 63 lower-case letters, digits and hyphens"
        )
    return text


class Handler:
    """Answers from the zone store.

    views: the zones, as they are numbered in the store. ask: what this server answers to another query. fall: the zones
    (lower case) in which what does not exist is passed on. name: of the directive, as metrics and logs have it.
    namespaces: of clients, None if they are not known.
    """

    name = NAME

    def __init__(
        self,
        options: Options,
        views: Iterable[ZoneView],
        store: StoreReader,
        ask: Next,
        namespaces: Namespaces | None = None,
    ) -> None:
        self.options = options
        self._namespaces = namespaces
        self.views = tuple(views)
        self._ask = ask
        self._views = names.Zones({view.origin: view for view in self.views})
        self._store = store
        self.fall = tuple(names.lower(names.from_text(zone)) for zone in options.fallthrough)

    def is_of_the_name(self, label: str) -> bool:
        """All that is told of others is read from the name."""
        return label != "client-namespace"

    def fact(self, label: str, name: bytes, client: str) -> str:
        """What a name in these zones says, and who the client is (`metadata`)."""
        if label == "client-namespace":
            return (self._namespaces.of(client) if self._namespaces is not None else None) or ""
        view = self._views.find(name)
        if view is None:
            return ""
        clusterset = any(names.lower(names.from_text(zone)) == view.origin for zone in self.options.multicluster)
        return schema.parts(name, view.origin, multicluster=clusterset, zonal=self.options.zonal).get(label, "")

    async def __call__(self, query: Query, next: Next) -> Response:
        view = self._views.find(query.lname)
        if view is None:
            return await next(query)
        with self._store as store:
            view.refresh(store)
            response = self._answer(store, view, query)
        if response.rcode == rr.NXDOMAIN and any(names.is_subdomain(query.lname, zone) for zone in self.fall):
            depends = response.depends
            response = await next(query)
            response.depends += depends
            return response
        if response.answer and query.type in (rr.A, rr.AAAA) and (last := response.answer[-1][1]).type == rr.CNAME:
            target = last.rdatas[0]
            links = query.links + len(response.answer)
            if links < message.LONGEST_CHAIN and self._views.find(target.lower()) is None:
                followed = message.follow(query, target, links)
                return await chase(self._ask, followed, response, self.name, whole=False)
        return response

    def _answer(self, store: StoreReader, view: ZoneView, query: Query) -> Response:
        if view.state == EXPIRED:
            return self._unavailable(view, "its data is older than snapshot_max_age and could not be read anew")
        response = Response(authoritative=True, plugin=self.name, cacheable=True, depends=(query.lname,))
        found = self._find(store, view, query.lname, response)
        denies: ZoneView | None = view
        if found is None:
            if not view.synced:
                return self._unavailable(view, "its source has not been read yet")
            response.rcode = rr.NXDOMAIN
        elif query.type == rr.ANY:
            _any(query, found, response)
            denies = None if found else view
        else:
            denies = self._typed(store, view, query, found, response)
        if denies is not None and denies.soa is not None:
            response.authority.append((denies.origin, denies.soa))
        return response

    def _unavailable(self, view: ZoneView, why: str) -> Response:
        return Response(rcode=rr.SERVFAIL, plugin=self.name, error=f"zone {names.to_text(view.origin)}: {why}")

    def _find(self, store: StoreReader, view: ZoneView, name: bytes, response: Response) -> Records | None:
        """The RRsets of a name; none for one that only exists; None if it does not exist."""
        if self.options.zonal and sources.ZONAL in name:
            return self._zonal(store, view, name, response)
        found = view.find(store, name)
        if found is None and self.options.pods == "insecure":
            return self._pod(store, view, name, response)
        if found == () and self.options.zonal and view.exists(store, _EVERYWHERE + sources.ZONAL + name):
            return None  # a headless Service without ready endpoints: nothing but its topology zones is below it
        return found

    def _typed(
        self, store: StoreReader, view: ZoneView | None, query: Query, found: Records, response: Response
    ) -> ZoneView | None:
        """Answer with the RRset of the type, following CNAMEs to names that are ours (RFC 1034 4.3.2 3a).

        Returns the zone whose SOA belongs into the answer, because the name that it ends with is in it and has no such
        RRset (RFC 2308 2.2). A chain that leaves our zones, or is cut, says nothing of that kind.
        """
        owner = query.lname
        for _ in range(message.LONGEST_CHAIN + 1):
            rrset = _of_type(found, query.type)
            if rrset is not None:
                response.answer.append((owner, rrset))
                self._additional(store, rrset, response)
                return None
            alias = _of_type(found, rr.CNAME)
            if alias is None:
                return view
            if query.links + len(response.answer) == message.LONGEST_CHAIN:
                break
            response.answer.append((owner, alias))
            owner = alias.rdatas[0].lower()
            view = self._views.find(owner) if query.type in (rr.A, rr.AAAA) else None
            if view is None or owner in response.depends:
                break
            view.refresh(store)
            response.depends += (owner,)
            target = self._find(store, view, owner, response)
            if target is None and not view.synced:
                # It may yet come: what is not known is not denied, here as little as at the question's own name.
                response.rcode, response.cacheable, response.answer = rr.SERVFAIL, False, []
                return None
            found = target or ()
        return None

    def _additional(self, store: StoreReader, rrset: RRset, response: Response) -> None:
        """Add the addresses of the names that SRV and NS records point to (RFC 2782, RFC 1034 4.2.1)."""
        skip = _TARGET_AT.get(rrset.type)
        if skip is None:
            return
        targets = dict.fromkeys(rdata[skip:] for rdata in rrset.rdatas)
        for target in targets:
            view = self._views.find(target)
            for addresses in (view.find(store, target) if view is not None else None) or ():
                if addresses.type in (rr.A, rr.AAAA):
                    response.additional.append((target, addresses))
        response.depends += tuple(targets)

    def _pod(self, store: StoreReader, view: ZoneView, name: bytes, response: Response) -> Records | None:
        """`pods insecure`: 1-2-3-4.N.pod.Z has the address that it spells, if N exists."""
        labels = names.labels(name[: len(name) - len(view.origin)] + names.ROOT)
        if len(labels) != 3 or labels[2] != b"pod":
            return None
        namespace = names.parent(name)
        response.depends += (namespace,)
        rdata = pod_address(labels[0])
        if rdata is None or not view.exists(store, namespace):
            return None
        return (RRset(rr.address_type(rdata), self.options.ttl, (rdata,)),)

    def _zonal(self, store: StoreReader, view: ZoneView, name: bytes, response: Response) -> Records | None:
        """ZONE.pin._zone.S.N.svc.Z and ZONE.prefer._zone.S.N.svc.Z.

        The store has the endpoints of a topology zone at the name whose one label is the zone, dots included, below
        _zone.S.N.svc.Z, and those of all zones at the label `*`, which no topology zone can be. A question gets at
        neither, since every name with the label _zone is answered here.
        """
        labels = names.labels(name[: len(name) - len(view.origin)] + names.ROOT)
        if len(labels) < 4 or labels[-1] != b"svc" or labels[-4] != b"_zone":
            return view.find(store, name)
        base = name
        for _ in labels[:-4]:
            base = names.parent(base)
        everywhere = view.find(store, _EVERYWHERE + base)
        response.depends += (_EVERYWHERE + base,)
        if everywhere is None or (len(labels) > 4 and labels[-5] not in (b"pin", b"prefer")):
            return None
        zone = b".".join(labels[:-5])
        if not zone:
            return ()
        found = None
        if len(zone) <= names.MAX_LABEL:
            pinned = bytes((len(zone),)) + zone + base
            response.depends += (pinned,)
            found = view.find(store, pinned) if zone != b"*" and len(pinned) <= names.MAX_NAME else None
        if found is None:
            found = everywhere if labels[-5] == b"prefer" else ()
        return found


def pod_address(label: bytes) -> bytes | None:
    """The address (4 or 16 bytes) that the first label of a pod's name spells, None if it spells none.

    Three single hyphens make an IPv4 address; anything else is IPv6 with its colons as hyphens.
    """
    if b"." in label or b":" in label:
        return None
    try:
        text = label.decode("ascii")
        return rr.address(text.replace("-", "." if text.count("-") == 3 and "--" not in text else ":"))
    except (OSError, ValueError):
        return None


def _any(query: Query, found: Records, response: Response) -> None:
    """Everything over TCP, a minimal answer over UDP (RFC 8482 4.2)."""
    if query.proto == "udp" and found:
        found = (RRset(rr.HINFO, min(rrset.ttl for rrset in found), (rr.hinfo(b"RFC8482", b""),)),)
    response.answer = [(query.lname, rrset) for rrset in found]


def _of_type(found: Records, rtype: int) -> RRset | None:
    for rrset in found:
        if rrset.type == rtype:
            return rrset
    return None
