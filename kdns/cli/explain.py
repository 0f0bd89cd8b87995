"""`kdns explain`: what a pod's look-up of a name does, and what it costs."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdns.cli.objects import Context, Kubeconfig, Manifests, StateDir
from kdns.errors import DomainNameError, KdnsError

if TYPE_CHECKING:
    from kdns.cluster.publisher import Settings
    from kdns.corefile.config import ServerConfig
    from kdns.plugins import kubernetes
    from kdns.tools.explain import Answer, Data, Explanation, Request, Source, Tried
    from kdns.tools.search import Conf, Trace
    from kdns.tools.snapshot import View

_UNKNOWN, _NOT_FOUND = 1, 3
_USUAL_ZONE, _USUAL_TTL = "cluster.local", 30
_REVERSE = ("in-addr.arpa.", "ip6.arpa.")
_SHOWN = 6
"""Records of an answer that are named."""


class Policy(StrEnum):
    """dnsPolicy of a pod."""

    cluster_first = "ClusterFirst"
    default = "Default"
    none = "None"


def explain(
    name: Annotated[
        str, typer.Argument(help="Name as an application gives it, with or without a dot at its end; or an address.")
    ],
    *,
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Namespace of the pod.")] = "default",
    ndots: Annotated[
        int | None, typer.Option(min=0, max=15, help="Of the pod's resolv.conf; 5, or 1 without ClusterFirst.")
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(metavar="DOMAIN", help="Search domain behind the cluster's: the node's own, or of the dnsConfig."),
    ] = None,
    dns_policy: Annotated[Policy, typer.Option(help="Of the pod.")] = Policy.cluster_first,
    resolv_conf: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A pod's resolv.conf, in place of the options above.")
    ] = None,
    rtype: Annotated[
        str | None,
        typer.Option("--type", help="A or AAAA for one family; SRV, PTR, ... as res_search asks. Default: A and AAAA."),
    ] = None,
    manifests: Manifests = None,
    state_dir: StateDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    conf: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Corefile: zones, options, upstreams, and the objects if no other has them."),
    ] = None,
    cluster_zone: Annotated[
        str | None, typer.Option(help="The cluster's zone; that of the Corefile or cluster.local unless given.")
    ] = None,
    server: Annotated[str | None, typer.Option(metavar="ADDRESS", help="A server that is really asked.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its port.")] = 53,
    timeout: Annotated[float, typer.Option(min=0.001, max=60, help="Seconds to wait for an answer, twice.")] = 2.0,
    brief: Annotated[bool, typer.Option("--brief", help="Only the names, the answers and what they cost.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Explain what a pod's look-up of a name does, and what it costs.

    Every name that is tried and why (search list, ndots), the answer, and where that comes from: Service and
    EndpointSlices, pod, upstream, nobody. Then the queries that glibc and musl send, what would be cheaper, and, for a
    name that does not resolve, what is wrong as far as it can be seen.

    The answers are made of objects (--manifests, --kubeconfig, or those that the Corefile names), taken from a state
    directory, or asked of a --server. With a server and objects, the server answers, and the objects tell where that
    comes from. Without --conf the Corefile is taken to be as kubeadm writes it: `pods insecure`, `ttl 30`, and all else
    is forwarded. What an upstream would answer is only known to a server: else a name that leaves the cluster is taken
    to exist, and one with a search domain not to, and the output says so.

    \b
    kdns explain web -n shop --manifests zones/sample
    kdns explain api.example.com -n shop --conf /etc/coredns/Corefile --kubeconfig ~/.kube/config
    kdns explain db-2.db.data.svc.cluster.local. --kubeconfig ~/.kube/config
    kdns explain _postgres._tcp.db -n data --type SRV --state-dir /var/lib/kdns
    kdns explain web.shop -n data --server 10.96.0.10
    kdns explain web --resolv-conf /etc/resolv.conf      # in a pod: asks the nameserver in there

    Modelled are getaddrinfo and res_search of glibc 2.26 and later, and of musl 1.2.4 and later. What is in the pod's
    /etc/hosts is never asked for.

    Exit codes: 0 it resolves; 1 that could not be found out, since a server does not answer or only an upstream knows;
    2 the command line was wrong; 3 it does not resolve, or with one of glibc and musl only.
    """
    from kdns.tools import explain as tools

    sources = [bool(manifests), state_dir is not None, kubeconfig is not None or context is not None]
    if sum(sources) > 1:
        raise typer.BadParameter("give one of --manifests, --state-dir and --kubeconfig (or --context)")
    if resolv_conf is not None and (search or ndots is not None or dns_policy is not Policy.cluster_first):
        raise typer.BadParameter("--search, --ndots and --dns-policy are in the file of --resolv-conf")
    zone = _zone(cluster_zone)
    corefile = None if conf is None else _corefile(conf, cluster_zone)
    if corefile is not None:
        zone = corefile.zone
    given = _Given(manifests, state_dir, kubeconfig, context, corefile, zone, namespace)
    pod = _conf(resolv_conf, namespace, zone, dns_policy, search or [], ndots)
    request = _request(name, rtype, pod, namespace, zone)
    if server is None and not any(sources) and corefile is None:
        if not pod.nameservers:
            raise typer.BadParameter("give --manifests, --state-dir, --kubeconfig, --conf or --server to answer")
        server = pod.nameservers[0]
    with _source(given, any(sources) or corefile is not None, server, port, timeout) as source:
        explanation = tools.explain(request, source)
    if as_json:
        typer.echo(json.dumps(_facts(explanation), indent=2))
    else:
        typer.echo("\n".join((_brief if brief else _lines)(explanation)))
    if explanation.resolves is not True:
        raise typer.Exit(_UNKNOWN if explanation.resolves is None else _NOT_FOUND)


# What is asked


@dataclass(frozen=True, slots=True)
class _Corefile:
    """A Corefile, and in it the directive that has the cluster's zone. zone: without a dot at its end."""

    path: Path
    blocks: tuple[ServerConfig, ...]
    block: ServerConfig
    options: kubernetes.Options
    zone: str

    @property
    def port(self) -> int:
        return self.block.keys[0].port


@dataclass(frozen=True, slots=True)
class _Given:
    """Where the answers come from, as the command line has it."""

    manifests: list[Path] | None
    state_dir: Path | None
    kubeconfig: Path | None
    context: str | None
    corefile: _Corefile | None
    zone: str
    namespace: str


def _zone(text: str | None) -> str:
    """A zone as search domains have it: lower case, without a dot at its end."""
    from kdns.wire import names

    if text is None:
        return _USUAL_ZONE
    try:
        return names.to_text(names.lower(names.from_text(text))).removesuffix(".")
    except (DomainNameError, UnicodeEncodeError) as error:
        raise typer.BadParameter(str(error)) from None


def _corefile(path: Path, cluster_zone: str | None) -> _Corefile:
    """Read a Corefile. Raises ConfigError, and KdnsError if it has no such zone."""
    from kdns import plugins
    from kdns.corefile import values
    from kdns.plugins import kubernetes

    config = plugins.load(path, environ=os.environ)
    known = []
    for block in config.blocks:
        options: kubernetes.Options | None = block.plugins.get(kubernetes.NAME)
        if options is None:
            continue
        for zone in options.zones:
            if values.is_reverse(zone) or zone in options.multicluster:
                continue
            if cluster_zone is None or zone == f"{_zone(cluster_zone)}.":
                return _Corefile(path, config.blocks, block, options, zone.removesuffix("."))
            known.append(zone)
    wanted = f"the zone {_zone(cluster_zone)}." if cluster_zone is not None else "a zone of a cluster"
    raise KdnsError(f"{path}: no kubernetes directive has {wanted}; there are: {', '.join(known) or 'none'}")


def _conf(path: Path | None, namespace: str, zone: str, policy: Policy, more: Sequence[str], ndots: int | None) -> Conf:
    """The pod's resolv.conf."""
    from kdns.tools import search
    from kdns.wire import names

    if path is not None:
        try:
            return search.read_conf(path.read_text(errors="replace"))
        except OSError as error:
            raise KdnsError(f"{path}: {error.strerror}") from None
    if not names.is_label(namespace):
        raise typer.BadParameter(f"{namespace!r} is no namespace; accepted: 1 to 63 letters, digits and hyphens")
    for domain in more:
        if domain != "." and search.wire_name(domain) is None:
            raise typer.BadParameter(f"{domain!r} is no search domain")
    if policy is Policy.cluster_first:
        return search.pod_conf(namespace, zone, more, 5 if ndots is None else ndots)
    return search.Conf(tuple(more), 1 if ndots is None else ndots)


def _request(name: str, rtype: str | None, conf: Conf, namespace: str, zone: str) -> Request:
    from kdns.tools import search
    from kdns.tools.explain import Request
    from kdns.wire import names, rr

    if not name:
        raise typer.BadParameter("the name is empty")
    try:
        number = None if rtype is None else rr.type_number(rtype)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if search.is_address(name):
        if number not in (None, rr.PTR):
            raise typer.BadParameter(f"{name} is an address, for which nothing is asked; --type PTR asks for its name")
        try:
            reverse = names.to_text(names.reverse(name))
        except ValueError:
            raise typer.BadParameter(f"{name} is an old form of an address; give all of its parts") from None
        return Request(reverse, conf, (rr.PTR,), namespace, zone, name)
    return Request(name, conf, search.ADDRESSES if number is None else (number,), namespace, zone)


# Who answers


@contextlib.contextmanager
def _source(given: _Given, has_data: bool, server: str | None, port: int, timeout: float) -> Iterator[Source]:
    """Whoever answers. What could not be used of the data is told."""
    from kdns.tools.exchange import Server
    from kdns.tools.explain import Live
    from kdns.wire import names

    with contextlib.ExitStack() as stack:
        data = None
        if has_data:
            view = stack.enter_context(_view(given))
            for text in (*view.problems, *view.warnings):
                typer.echo(text, err=True)
            data = _data(given, view)
        if server is not None:
            yield Live(Server(server, port), names.from_text(given.zone), timeout, data)
        else:
            assert data is not None
            yield data


def _view(given: _Given) -> contextlib.AbstractContextManager[View]:
    """The cluster's data."""
    from kdns.server import cluster_feed
    from kdns.tools import snapshot

    options = given.corefile.options if given.corefile is not None else None
    settings = _settings(given)
    if given.state_dir is not None:
        return snapshot.of_state_dir(given.state_dir, settings.records if options is not None else None)
    if given.kubeconfig is not None or given.context is not None:
        return snapshot.of_kubeconfig(given.kubeconfig, given.context, settings)
    paths: Sequence[str | Path] = given.manifests or (options.manifests if options is not None else ())
    if paths:
        return snapshot.of_manifests(paths, settings)
    assert options is not None
    return snapshot.of_api(cluster_feed.access(options), settings, pod_labels=str(options.labels or ""))


def _settings(given: _Given) -> Settings:
    """What is published: by the Corefile, or as kubeadm's has it."""
    from kdns.cluster.publisher import Settings
    from kdns.cluster.records import RecordOptions
    from kdns.plugins import k8s_external
    from kdns.server import publication
    from kdns.wire import names

    if given.corefile is not None:
        outside = given.corefile.block.plugins.get(k8s_external.NAME)
        return publication.settings(given.corefile.options, (), outside)
    reverse = tuple(map(names.from_text, _REVERSE))
    records = RecordOptions(names.ROOT, ttl=_USUAL_TTL, pods="insecure")
    return Settings((names.from_text(given.zone),), reverse, records=records)


def _data(given: _Given, view: View) -> Data:
    """The data with the plugins that answer from it."""
    from kdns.tools.explain import Data
    from kdns.tools.offline import Offline
    from kdns.tools.origins import Origins

    if given.corefile is not None:
        corefile = given.corefile
        offline = Offline(view, corefile.blocks, corefile.port, namespace=given.namespace)
        for text in offline.warnings:
            typer.echo(text, err=True)
        return Data(_title(given), offline, Origins(view, _settings(given), corefile.options.pods, given.namespace))
    pods = _pods(given, view) if given.state_dir is not None else "insecure"
    offline = Offline(view, [_usual_block(given, view, pods)], 53, "forwarded to an upstream")
    settings = None if given.state_dir is not None else _settings(given)
    return Data(_title(given), offline, Origins(view, settings, pods, given.namespace))


def _usual_block(given: _Given, view: View, pods: str) -> ServerConfig:
    """The server block that kubeadm writes. Raises KdnsError if the data does not have the cluster's zone."""
    from kdns.corefile.config import ServerConfig, ServerKey
    from kdns.corefile.lexer import Token
    from kdns.plugins import kubernetes
    from kdns.wire import names

    zones = [names.to_text(zone.origin) for zone in view.zones()]
    if f"{given.zone}." not in zones:
        raise KdnsError(f"there is no zone {given.zone}., but: {', '.join(zones) or 'none'}; --cluster-zone names one")
    options = kubernetes.Options(
        tuple(dict.fromkeys(zones)), pods=pods, ttl=_USUAL_TTL, zonal=True, fallthrough=_REVERSE
    )
    return ServerConfig((ServerKey("dns", ".", 53, Token(".", "", 0)),), {kubernetes.NAME: options})


def _pods(given: _Given, view: View) -> str:
    """How a kdns answers names of pods, by what is in its state directory.

    One with `pods verified` and no pod looks like one with `pods insecure`.
    """
    from kdns.wire import names

    zone = names.from_text(given.zone)
    if not any(each.origin == zone for each in view.zones()):
        return "disabled"
    below = view.entries(zone, b"\x03pod" + zone)
    if any(rrsets for _, rrsets in below):
        return "verified"
    return "insecure" if len(below) > 1 else "disabled"


def _title(given: _Given) -> str:
    """What the answers are made of."""
    corefile = given.corefile
    by = "" if corefile is None else f", by {corefile.path}"
    if given.state_dir is not None:
        return f"state directory {given.state_dir}{by}"
    if given.kubeconfig is not None or given.context is not None:
        words = ["kubeconfig", str(given.kubeconfig or ""), given.context or ""]
        return f"{' '.join(filter(None, words))}{by}"
    if given.manifests:
        return f"manifests {' '.join(map(str, given.manifests))}{by}"
    return f"the cluster of {corefile.path if corefile is not None else ''}"


# What is printed


def _lines(explanation: Explanation) -> list[str]:
    """The explanation for people."""
    from kdns.observe.text import printable

    request, conf = explanation.request, explanation.request.conf
    head = [f"{request.address or request.name}, looked up by a pod in namespace {request.namespace}"]
    head.append(f"search {' '.join(conf.search) or 'nothing'}; ndots:{conf.ndots}")
    head.append(f"answers: {explanation.source}")
    lines = [*head, ""]
    for number, tried in enumerate(explanation.tried, 1):
        lines += _step(number, tried, explanation)
    if not any(tried.sent for tried in explanation.tried):
        lines = [*head, "", f"nothing is asked: {_no_name(request.name)}"]
    lines += ["", *_totals(explanation)]
    lines += [f"  {note}" for note in explanation.notes]
    if explanation.resolves is None:
        lines += ["", "it resolves if the upstream knows it"]
    if explanation.hints:
        lines += ["", "what may be wrong:", *(f"  {hint}" for hint in explanation.hints)]
    if explanation.advice:
        lines += ["", *_advice(explanation)]
    return [printable(line) for line in lines]


def _brief(explanation: Explanation) -> list[str]:
    """The least that there is to say."""
    from kdns.observe.text import printable

    lines = [f"{one.name}  {_answers(one.answers)}" for one in explanation.tried]
    lines += [
        f"{library}: {_queries(trace.queries)}, {_result(explanation, trace)}"
        for library, trace in (("glibc", explanation.glibc), ("musl", explanation.musl))
    ]
    return [printable(line) for line in (*lines, *explanation.hints)]


def _queries(count: int) -> str:
    return "1 query" if count == 1 else f"{count} queries"


def _no_name(text: str) -> str:
    """Why a name is never asked for."""
    from kdns.wire import names

    try:
        names.from_text(text)
    except (DomainNameError, UnicodeEncodeError) as error:
        return str(error)
    return "it is no name of a host"


def _step(number: int, tried: Tried, explanation: Explanation) -> list[str]:
    lines = [f"{number}. {tried.name}  {_answers(tried.answers)}".rstrip()]
    lines.append(f"   {_count(tried)}: {_why(tried, explanation)}")
    found = [origin.text for answer in tried.answers for origin in answer.origins]
    nothing = [answer.missing.text for answer in tried.answers if answer.missing is not None]
    upstream = [answer.upstream for answer in tried.answers if answer.upstream]
    if all(answer.assumed or not answer.outcome.found for answer in tried.answers):
        found += nothing
    return [*lines, *(f"   {text}" for text in dict.fromkeys((*found, *upstream)))]


def _answers(answers: Sequence[Answer]) -> str:
    """The answers to the questions for one name."""
    if not answers:
        return "no name that can be asked for"
    took = [answer.seconds for answer in answers if answer.seconds is not None]
    times = f"  ({max(took) * 1000:.1f} ms)" if took else ""
    if all(answer.assumed and not answer.records for answer in answers):
        return "not known here, taken to exist" if answers[0].outcome.found else "not known here, taken for NXDOMAIN"
    rcodes = dict.fromkeys(answer.rcode for answer in answers)
    if len(rcodes) == 1 and "NOERROR" not in rcodes:
        return f"{answers[0].rcode}{times}"
    aliases = [r for each in answers for r in each.records if r.type == "CNAME" and each.type not in ("CNAME", "ANY")]
    parts = [f"alias of {record.data}" for record in dict.fromkeys(aliases)]
    for answer in answers:
        data = [record.data for record in answer.records if answer.type in (record.type, "ANY")]
        more = f" and {len(data) - _SHOWN} more" if len(data) > _SHOWN else ""
        text = " ".join(data[:_SHOWN]) + more or ("not known here" if answer.assumed else "none")
        parts.append(f"{answer.type} {text if answer.rcode == 'NOERROR' else answer.rcode}")
    return "; ".join(parts) + times


def _count(tried: Tried) -> str:
    """The queries of a step."""
    if tried.glibc == tried.musl:
        return _queries(tried.glibc or 0)
    words = [
        f"{library} {count}" for library, count in (("glibc", tried.glibc), ("musl", tried.musl)) if count is not None
    ]
    only = "" if None not in (tried.glibc, tried.musl) else " only"
    return f"{', '.join(words)}{only}"


def _why(tried: Tried, explanation: Explanation) -> str:
    from kdns.tools.search import Why

    request, conf = explanation.request, explanation.request.conf
    count = request.name.count(".")
    dots = f"{count} {'dot' if count == 1 else 'dots'}"
    if tried.why is Why.SEARCH:
        order = f"search domain {conf.search.index(tried.domain) + 1} of {len(conf.search)}"
        if tried is not explanation.tried[0]:
            return order
        return f"{order}, as {dots} {'is' if count == 1 else 'are'} fewer than ndots:{conf.ndots}"
    if request.address:
        return "the reverse name of the address, and nothing else"
    return {
        Why.FULL: "a dot at its end: it is tried as it is, and nothing else",
        Why.FIRST: f"as it is, first: {dots}, and ndots:{conf.ndots}",
        Why.LAST: "as it is, after the search list",
        Why.ALONE: "as it is: there is no search list",
    }[tried.why]


def _totals(explanation: Explanation) -> list[str]:
    rows = [("", "queries", "for nothing", "")]
    for library, trace in (("glibc", explanation.glibc), ("musl", explanation.musl)):
        rows.append((library, str(trace.queries), str(trace.wasted), _result(explanation, trace)))
    return [f"{first:<5}  {queries:>7}  {wasted:>11}  {result}".rstrip() for first, queries, wasted, result in rows]


def _result(explanation: Explanation, trace: Trace) -> str:
    from kdns.tools.search import Verdict

    if trace.verdict is Verdict.FOUND:
        tried = next(one for one in explanation.tried if one.name == trace.steps[-1].name)
        unknown = any(answer.assumed for answer in tried.answers)
        return f"{'depends on' if unknown else 'found as'} {tried.name}"
    wait = f", after {trace.wait:g} s" if trace.wait else ""
    return {
        Verdict.EMPTY: "not found: it exists, without such records",
        Verdict.ABSENT: "not found",
        Verdict.AGAIN: f"temporary failure{wait}",
        Verdict.FAILED: "failure",
        Verdict.UNASKED: "not found: nothing is asked",
    }[trace.verdict]


def _advice(explanation: Explanation) -> list[str]:
    lines = ["glibc   musl  would be cheaper with"]
    for advice in explanation.advice:
        note = f" ({advice.note})" if advice.note else ""
        lines.append(f"{advice.glibc:>5}  {advice.musl:>5}  {advice.change}{note}")
    return lines


def _facts(explanation: Explanation) -> dict[str, Any]:
    """The same as JSON has it."""
    request, conf = explanation.request, explanation.request.conf
    return {
        "name": request.name,
        "address": request.address or None,
        "namespace": request.namespace,
        "search": list(conf.search),
        "ndots": conf.ndots,
        "source": explanation.source,
        "steps": [_step_facts(tried, explanation) for tried in explanation.tried],
        "glibc": _trace_facts(explanation.glibc),
        "musl": _trace_facts(explanation.musl),
        "resolves": explanation.resolves,
        "hints": list(explanation.hints),
        "notes": list(explanation.notes),
        "cheaper": [
            {"change": each.change, "glibc": each.glibc, "musl": each.musl, "note": each.note}
            for each in explanation.advice
        ],
    }


def _step_facts(tried: Tried, explanation: Explanation) -> dict[str, Any]:
    return {
        "name": tried.name,
        "why": _why(tried, explanation),
        "answers": [_answer_facts(answer) for answer in tried.answers],
        "glibc": tried.glibc,
        "musl": tried.musl,
    }


def _answer_facts(answer: Answer) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "type": answer.type,
        "rcode": None if answer.assumed and not answer.records else answer.rcode,
        "records": [asdict(record) for record in answer.records],
        "origins": [asdict(origin) for origin in answer.origins],
        "missing": None if answer.missing is None else answer.missing.text,
        "upstream": answer.upstream or None,
        "assumed": answer.assumed,
        "milliseconds": None if answer.seconds is None else round(answer.seconds * 1000, 3),
    }


def _trace_facts(trace: Trace) -> dict[str, Any]:
    return {
        "queries": trace.queries,
        "for_nothing": trace.wasted,
        "result": trace.verdict.name.lower(),
        "seconds_of_waiting": trace.wait,
    }
