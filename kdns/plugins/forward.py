"""forward: queries that are answered by other DNS servers.

## Name

*forward* - asks upstream servers over UDP, TCP, TLS or HTTPS.

## Description

Of several *forward* in a server block the first one whose **FROM** covers the name is used, in the order in which they
are written. Answers pass as they came, whatever types they hold; ID, question and the OPT are those of the client's
query. A truncated answer over UDP is asked for again over TCP.

TCP and TLS connections are kept, and carry many queries at a time. One that the upstream closes while it is idle is
opened anew when it is needed; queries on one that ends are asked again elsewhere, once. Each query over UDP has a port
and an ID of its own; what does not match upstream, ID and question is dropped and counted.

If an upstream does not answer, or gives an answer that is malformed, the next one is asked, and the upstream is checked
every 0.5s until it answers anything: the question is `. NS`, over UDP, or over TCP with `force_tcp`, TLS or HTTPS.
After 3 failed checks it is down and not asked any more until a check succeeds. If all are down, a random one is asked.
Each worker has connections of its own, and checks for itself. After 4.5 seconds no further upstream is tried, so that
the client has its answer, if only SERVFAIL, before it asks again.

With *metadata* in the server block, `forward/upstream` is the upstream that was asked last.

## Syntax

```
forward FROM TO... {
    except ZONES...
    force_tcp
    prefer_udp
    expire DURATION
    max_age DURATION
    max_idle_conns INTEGER
    read_timeout DURATION
    max_fails INTEGER
    max_connect_attempts INTEGER
    tls CERT KEY CA
    tls_servername NAME
    doh_method GET|POST
    policy random|round_robin|sequential
    health_check DURATION [no_rec] [domain FQDN]
    max_concurrent MAX
    next RCODE...
    next_on_nodata
    failover RCODE...
    failfast_all_unhealthy_upstreams
    source_address IP
    resolver IP[:PORT]...
}
```

* **FROM**: names in this zone are forwarded; a network such as `10.0.0.0/8` stands for its reverse zones.
* **TO...**: at most 15 upstreams: an address, or a name, with or without a port; `dns://` before it changes nothing,
  `tls://` is DNS over TLS (port 853), `https://` DNS over HTTPS (port 443, path /dns-query). A file such as
  /etc/resolv.conf stands for its nameservers, as they are when the Corefile is read. The certificate has to be for the
  address, or for NAME in `tls://IP%NAME` and `tls://IP%NAME:PORT`. A name is looked up when the server has started, and
  again when its TTL is over (5s to 5m); all its addresses are upstreams.
* `except` **ZONES...**: names in these zones go to the next plugin. It may be repeated.
* `force_tcp`: ask over TCP. Otherwise it is over what the client asked over.
* `prefer_udp`: ask over UDP first, even for clients that came over TCP.
* `expire` **DURATION**: how long a connection may be idle. Default: 10s.
* `max_age` **DURATION**: no query is put on a connection that is older, but for HTTPS. Default: 0, any age.
* `max_idle_conns` **INTEGER**: how many idle connections are kept for each upstream. Default: 0, all (which are few).
* `read_timeout` **DURATION**: how long one upstream may take to answer. Default: 2s. More than 4.5s leaves no time for
  another one.
* `max_fails` **INTEGER**: more failed health checks in a row mark an upstream as down. Default: 2. 0: there are no
  checks and an upstream is never down.
* `max_connect_attempts` **INTEGER**: a query is given up after so many failures. Default: two for each upstream. 0: no
  limit but the time.
* `tls`: for `tls://` and `https://`. Without arguments, the certificate authorities are the system's. With one (**CA**)
  they are those of the file; with two (**CERT** **KEY**), these are our own certificate and its key; or all three.
  Relative paths start at the directory that *root* names. TLS 1.2 is the oldest version.
* `tls_servername` **NAME**: what the certificates of all upstreams have to be for. Not together with `tls://IP%NAME`.
* `doh_method`: of `https://`. Default: POST.
* `policy`: in which order upstreams are tried: `random` (default); `round_robin`, which begins with the next one each
  time; `sequential`, as they are written.
* `health_check` **DURATION**: the pause between health checks, instead of 0.5s. `no_rec`: without RD. `domain`
  **FQDN**: the name that is asked for.
* `max_concurrent` **MAX**: so many queries may wait for answers at a time, in each worker; the next one is REFUSED.
  At most 4096 may in any case, and the next one is SERVFAIL (`kdns_pending_rejects_total`).
  Default: 0, any number.
* `next` **RCODE...**: with these response codes, the next *forward* of the server block that covers the name is used,
  if there is one. It may be repeated.
* `next_on_nodata`: the same for NOERROR with an empty answer section.
* `failover` **RCODE...**: with these response codes, the next upstream is asked. The last one's answer counts. It may
  be repeated.
* `failfast_all_unhealthy_upstreams`: SERVFAIL if all upstreams are down, at once.
* `source_address` **IP**: the address that upstreams are asked from, over all transports.
* `resolver` **IP[:PORT]...**: where names of upstreams are looked up. Default: the nameservers of /etc/resolv.conf.

Response codes are names such as SERVFAIL or NXDOMAIN.

## Metrics

* `coredns_forward_healthcheck_broken_total{}`: queries for which all upstreams were down.
* `coredns_forward_max_concurrent_rejects_total{}`: queries refused by `max_concurrent`.
* `coredns_proxy_request_duration_seconds{proxy_name="forward", to, rcode}`: until an upstream answered.
* `coredns_proxy_healthcheck_failures_total{proxy_name="forward", to}`: failed health checks.
* `coredns_proxy_conn_cache_hits_total{proxy_name="forward", to, proto}`: queries on a connection that was there. proto:
  `tcp` or `tcp-tls`.
* `coredns_proxy_conn_cache_misses_total{proxy_name="forward", to, proto}`: those that needed a new one, which over
  `udp` are all.
* `kdns_forward_discarded_total{to, reason}`: messages that were dropped: from the wrong `peer`, with the wrong `id` or
  `question`, that are a `query`, `short` or `malformed`.
* `kdns_forward_resent_total{to}`: queries that lost their connection.
* `kdns_forward_upstreams{to, state}`: how many of those that use the upstream, each *forward* of each worker, find it
  `up`, and how many `down`.
* `kdns_forward_last_failure_timestamp_seconds{to}`: when a query to it, or a health check, last failed.

`to` is the upstream's address and port.

## Examples

What the node uses, but for one zone:

```corefile
.:53 {
    forward . /etc/resolv.conf {
        max_concurrent 1000
        except corp.example
    }
}
```

DNS over TLS, and a zone with servers of its own:

```corefile
.:53 {
    forward corp.example 10.0.0.10 10.0.0.11:5353 {
        policy sequential
        failover SERVFAIL REFUSED
    }
    forward . tls://9.9.9.9 tls://149.112.112.112 {
        tls_servername dns.quad9.net
        health_check 5s
    }
}
```

## Differences from CoreDNS

Connections carry many queries at a time, and each worker has at most two to an upstream; where an upstream closes after
some answers, up to 64. A name as upstream is looked up after the start, and again and again: until then the answer is
SERVFAIL, and nothing else has to wait for it. /etc/hosts and search domains are not used for that. With `tls://` and a
name, the certificate has to be for the name, not for its addresses. All reverse zones of a network count, not only the
first. Truncated answers are always asked for again over TCP, and a query with an OPT that an upstream does not
understand once more without. An upstream whose answer does not match or is malformed counts as failing; CoreDNS passes
FORMERR on. `max_concurrent` counts in each worker. Clients' own EDNS options are not passed on, but for those that
*rewrite* names. Zone transfers and classes other than IN are REFUSED. RA is set always, RD and CD are the client's,
and AD is for clients that have set AD or DO (RFC 6840 5.8); CoreDNS shows what the upstream has set. `max_age` may be
less than `expire`.

## See also

*cache*, *errors*, *loop*. RFC 5452, RFC 7766, RFC 7858, RFC 8484.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import monotonic

from kdns.corefile import values
from kdns.corefile.config import Directive, ServerBlock
from kdns.corefile.lexer import Token
from kdns.corefile.options import Reader
from kdns.errors import ConfigValueError, Mistake, UpstreamError
from kdns.plugins import debug, root
from kdns.plugins.chain import Next, in_loop
from kdns.plugins.site import Site
from kdns.upstream.ask import Ask
from kdns.upstream.group import Group
from kdns.upstream.resolve import nameservers
from kdns.upstream.settings import POLICIES, PORTS, Settings, Target, TlsFiles
from kdns.upstream.upstream import Surroundings
from kdns.wire import message, names, rr
from kdns.wire.message import Query, Response

NAME = "forward"
SITED = True
MAX_UPSTREAMS = 15
MOST_WAITING = 4096
"""Queries of one directive that may wait at once in a worker, so that upstreams that are gone leave room for others."""

_MOST = 1_000_000_000
_RCODES = {rr.rcode_text(number): number for number in range(24) if not rr.rcode_text(number).startswith("RCODE")}
_ALIASES = {"NOTIMPL": rr.NOTIMP}
_TO = "an address or name with or without a port, tls://, https://, or a file such as /etc/resolv.conf"
_HOST = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<other>[^\[\]:]+))(?::(?P<port>\d{1,5}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Forward:
    """One directive.

    zones, excepted: lower case with their last dot. max_concurrent: 0 for any number. next_rcodes, next_on_nodata: when
    the next directive is used.
    """

    zones: tuple[str, ...]
    targets: tuple[Target, ...]
    excepted: tuple[str, ...] = ()
    max_concurrent: int = 0
    next_rcodes: frozenset[int] = frozenset()
    next_on_nodata: bool = False
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True, slots=True)
class Options:
    """The directives of a server block, as they are written."""

    forwards: tuple[Forward, ...]


@dataclass(slots=True)
class _Found:
    """What the block says, as far as it is read."""

    settings: Settings = field(default_factory=Settings)
    excepted: list[str] = field(default_factory=list)
    next_rcodes: set[int] = field(default_factory=set)
    next_on_nodata: bool = False
    max_concurrent: int = 0
    server_name: str = ""


def parse(directive: Directive, block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive, and the files that it names as upstreams; None after a mistake."""
    reader = Reader(directive, mistakes)
    found = _Found()
    directory = root.directory(block)
    reader.options(_options(reader, found, directory), repeatable=("except", "next", "failover"))
    args = reader.arguments(directive, 2, None, "forward FROM TO...")
    zones = reader.value(args[0], values.zones) if args else None
    targets = _targets(reader, args[1:], found, directory)
    if not reader.sound or zones is None:
        return None
    forward = Forward(
        zones,
        targets,
        tuple(found.excepted),
        found.max_concurrent,
        frozenset(found.next_rcodes),
        found.next_on_nodata,
        found.settings,
    )
    return Options((forward,))


def merge(found: Sequence[Options]) -> Options:
    """All directives of a server block together."""
    return Options(tuple(forward for options in found for forward in options.forwards))


# Upstreams


def _targets(reader: Reader, tokens: Sequence[Token], found: _Found, directory: Path) -> tuple[Target, ...]:
    """The upstreams, each address and port once."""
    targets: dict[str, Target] = {}
    for token in tokens:
        for target in reader.value(token, lambda text: _upstreams(text, directory)) or ():
            if found.server_name and target.server_name:
                message = f"forward has both tls_servername {found.server_name} and {values.shown(token.text)}"
                reader.refuse(token, message, "one server name for each upstream")
            if found.server_name and target.transport != "dns":
                target = replace(target, server_name=found.server_name)
            targets.setdefault(str(target), target)
    if len(targets) > MAX_UPSTREAMS:
        reader.refuse(reader.directive.name, f"forward has {len(targets)} upstreams", f"at most {MAX_UPSTREAMS}")
    if tokens and not targets and reader.sound:
        reader.refuse(tokens[0], f"forward: {values.shown(tokens[0].text)} has no nameserver", _TO)
    return tuple(targets.values())


def _upstreams(text: str, directory: Path) -> tuple[Target, ...]:
    """What one TO stands for. Raises ConfigValueError."""
    transport, separator, rest = text.rpartition("://")
    if not separator:
        transport = "dns"
    if transport not in PORTS:
        raise ConfigValueError(
            f"{transport}:// is not supported for upstreams by this version of kdns",
            ", ".join(f"{t}://" for t in PORTS),
        )
    if "/" in rest and transport != "dns":
        raise ConfigValueError(
            f"{values.shown(text)} has a path", f"{transport}://HOST; /dns-query is the path of https"
        )
    target = _address(rest, transport)
    if target is not None:
        return (target,)
    if transport == "dns" and rest.isprintable() and ("/" in rest or (directory / rest).is_file()):
        try:
            return nameservers(str(directory / rest))
        except OSError as error:
            raise ConfigValueError(f"{values.shown(rest)} cannot be read: {error.strerror}", _TO) from None
    return (_named(text, rest, transport),)


def _address(text: str, transport: str) -> Target | None:
    """`IP`, `[IPV6]:PORT` and the like; None if it is no address."""
    match = _HOST.fullmatch(text)
    if values.ip_address(text.partition("%")[0]) is not None and text.count(":") > 1:
        host, port = text, None
    elif match is not None:
        host, port = match["v6"] or match["other"], match["port"]
    else:
        return None
    address, percent, zone = host.partition("%")
    server_name = ""
    if percent and transport != "dns":
        server_name, colon, digits = zone.partition(":")
        server_name = _server_name(server_name)
        port = digits if colon else port
    elif percent:
        address = host
    canonical = values.ip_address(address)
    if canonical is None or (percent and not zone):
        return None
    return Target(transport, canonical, _port(port, transport), server_name)


def _named(text: str, rest: str, transport: str) -> Target:
    host, _, port = rest.partition(":")
    bare = host.removesuffix(".")
    try:
        name = values.zone(host)
    except ConfigValueError:
        name = ""
    if not name.strip(".") or re.fullmatch(r"[\d.]+", bare) or not re.fullmatch(r"[-\w.]+", bare, re.ASCII):
        raise ConfigValueError(f"{values.shown(text)} is neither an address, a file, nor a name", _TO)
    return Target(transport, name.removesuffix("."), _port(port or None, transport))


def _port(text: str | None, transport: str) -> int:
    return PORTS[transport] if text is None else values.integer(text, 1, 65535)


# Options


def _options(reader: Reader, found: _Found, directory: Path) -> dict[str, Callable[[Directive], None]]:
    """Each option's reader."""

    def keep(**changed: object) -> None:
        found.settings = replace(found.settings, **changed)  # type: ignore[arg-type]

    def flag(option: str, setting: str) -> Callable[[Directive], None]:
        def read(item: Directive) -> None:
            reader.arguments(item, 0, 0, option)
            keep(**{setting: True})

        return read

    def duration(option: str, setting: str, minimum: float = 0.0) -> Callable[[Directive], None]:
        def read(item: Directive) -> None:
            value = reader.one(item, lambda text: values.duration(text, minimum), f"{option} DURATION")
            keep(**{setting: value or 0.0})

        return read

    def count(option: str, setting: str) -> Callable[[Directive], None]:
        def read(item: Directive) -> None:
            keep(**{setting: reader.one(item, lambda text: values.integer(text, 0, _MOST), f"{option} INTEGER") or 0})

        return read

    def choice(option: str, setting: str, known: tuple[str, ...]) -> Callable[[Directive], None]:
        def read(item: Directive) -> None:
            keep(**{setting: reader.one(item, lambda text: values.choice(text, known), f"{option} {'|'.join(known)}")})

        return read

    def excepted(item: Directive) -> None:
        found.excepted += reader.zones(reader.arguments(item, 1, None, "except ZONES..."))

    def max_concurrent(item: Directive) -> None:
        accepted = "max_concurrent MAX"
        found.max_concurrent = reader.one(item, lambda text: values.integer(text, 0, _MOST), accepted) or 0

    def rcodes(item: Directive) -> set[int]:
        tokens = reader.arguments(item, 1, None, f"{item.name.text} RCODE...")
        return {rcode for token in tokens if (rcode := reader.value(token, _rcode)) is not None}

    def next_rcodes(item: Directive) -> None:
        found.next_rcodes |= rcodes(item)

    def next_on_nodata(item: Directive) -> None:
        reader.arguments(item, 0, 0, "next_on_nodata")
        found.next_on_nodata = True

    def failover(item: Directive) -> None:
        codes = rcodes(item)
        if rr.NOERROR in codes:
            reader.refuse(item.name, "forward: failover has NOERROR", "other response codes")
        keep(failover=found.settings.failover | codes)

    def tls(item: Directive) -> None:
        keep(tls=_tls(reader, item, directory))

    def tls_servername(item: Directive) -> None:
        found.server_name = reader.one(item, _server_name, "tls_servername NAME") or ""

    def health_check(item: Directive) -> None:
        _health_check(reader, item, keep)

    def source_address(item: Directive) -> None:
        keep(source=reader.one(item, _ip, "source_address IP") or "")

    def resolver(item: Directive) -> None:
        tokens = reader.arguments(item, 1, None, "resolver IP[:PORT]...")
        keep(resolvers=tuple(target for token in tokens if (target := reader.value(token, _resolver)) is not None))

    return {
        "except": excepted,
        "force_tcp": flag("force_tcp", "force_tcp"),
        "prefer_udp": flag("prefer_udp", "prefer_udp"),
        "expire": duration("expire", "expire"),
        "max_age": duration("max_age", "max_age"),
        "max_idle_conns": count("max_idle_conns", "max_idle"),
        "read_timeout": duration("read_timeout", "read_timeout", 0.001),
        "max_fails": count("max_fails", "max_fails"),
        "max_connect_attempts": count("max_connect_attempts", "max_attempts"),
        "tls": tls,
        "tls_servername": tls_servername,
        "doh_method": choice("doh_method", "doh_method", ("GET", "POST")),
        "policy": choice("policy", "policy", POLICIES),
        "health_check": health_check,
        "max_concurrent": max_concurrent,
        "next": next_rcodes,
        "next_on_nodata": next_on_nodata,
        "failover": failover,
        "failfast_all_unhealthy_upstreams": flag("failfast_all_unhealthy_upstreams", "failfast"),
        "source_address": source_address,
        "resolver": resolver,
    }


def _tls(reader: Reader, item: Directive, directory: Path) -> TlsFiles:
    """`tls [CERT KEY] [CA]`; that the files can be used is tried at once."""
    tokens = reader.arguments(item, 0, 3, "tls [CERT KEY] [CA]")
    for token in tokens:
        try:
            (directory / token.text).read_bytes()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            problem = f"forward: tls: {values.shown(token.text)} cannot be read: {why}"
            reader.refuse(token, problem, "a file in PEM format")
    paths = [str(directory / token.text) for token in tokens]
    certificate, key = paths[:2] if len(paths) > 1 else ("", "")
    files = TlsFiles(paths[-1] if len(paths) in (1, 3) else "", certificate, key)
    if reader.sound:
        try:
            files.context()
        except (OSError, ValueError) as error:
            reader.refuse(item.name, f"forward: tls cannot use these files: {error}", "CERT KEY CA in PEM format")
    return files


def _health_check(reader: Reader, item: Directive, keep: Callable[..., None]) -> None:
    accepted = "health_check DURATION [no_rec] [domain FQDN]"
    tokens = reader.arguments(item, 1, 4, accepted)
    if tokens:
        keep(health_interval=reader.value(tokens[0], values.duration) or 0.0)
    words = list(tokens[1:])
    while words:
        word = words.pop(0)
        if word.text == "no_rec":
            keep(health_recursion=False)
        elif word.text == "domain" and words:
            zone = reader.value(words.pop(0), values.zone)
            keep(health_domain=names.lower(names.from_text(zone or ".")))
        else:
            reader.refuse(word, f"forward: health_check has {values.shown(word.text)}", accepted)


def _rcode(text: str) -> int:
    known = _RCODES | _ALIASES
    if text.upper() not in known:
        raise ConfigValueError(f"{values.shown(text)} is no response code", values.choices(text.upper(), _RCODES))
    return known[text.upper()]


def _server_name(text: str) -> str:
    name = values.zone(text).removesuffix(".")
    if not re.fullmatch(r"[-\w.]+", name, re.ASCII):
        raise ConfigValueError(f"{values.shown(text)} is not a server's name", "a name such as dns.quad9.net")
    return name


def _ip(text: str) -> str:
    address = values.ip_address(text)
    if address is None:
        raise ConfigValueError(f"{values.shown(text)} is not an IP address", "such as 10.0.0.1 or 2001:db8::1")
    return address


def _resolver(text: str) -> Target:
    target = _address(text, "dns")
    if target is None:
        raise ConfigValueError(f"{values.shown(text)} is not an address", "IP, IP:PORT or [IPV6]:PORT")
    return target


# Answering


class Handler:
    """Hands queries to upstreams."""

    __slots__ = ("_everywhere", "_forwards")

    def __init__(self, options: Options, site: Site) -> None:
        wrong = None
        log = site.log.plugin(NAME)
        if log.debugging:

            def wrong(text: str, data: bytes) -> None:
                debug.dump(log, text, data)

        around = Surroundings(site.region, site.log.plugin(NAME), site.background, wrong)
        self._forwards = tuple(_Forwarder(forward, around) for forward in options.forwards)
        self._everywhere = all(forwarder.everywhere for forwarder in self._forwards)

    def covers(self, name: bytes) -> bool:
        """Whether recursion is offered for a name (lower case)."""
        return self._everywhere or any(forwarder.covers(name) for forwarder in self._forwards)

    def covers_below(self, zone: bytes) -> bool | None:
        """What `covers` says of a zone (lower case) and of every name below it; None if that is not the same."""
        for forwarder in self._forwards:
            if forwarder.differs_below(zone):
                return None
        return self.covers(zone)

    async def __call__(self, query: Query, next: Next) -> Response:
        """The answer of the first directive that covers the name, or of a later one if it says so."""
        covering = self._forwards
        if not self._everywhere:
            covering = tuple([forwarder for forwarder in covering if forwarder.covers(query.lname)])
            if not covering:
                return await next(query)
        await in_loop()
        begun = monotonic()
        for forwarder in covering[:-1]:
            response = await forwarder.ask(query, begun)
            if not forwarder.passes_on(response):
                return response
        return await covering[-1].ask(query, begun)


class _Forwarder:
    """One directive at work. everywhere: it covers every name."""

    __slots__ = (
        "_excepted", "_force_tcp", "_forward", "_group", "_most", "_prefer_udp", "_region", "_waiting", "_zones",
        "everywhere",
    )  # fmt: skip

    def __init__(self, forward: Forward, around: Surroundings) -> None:
        self._forward = forward
        self._most = forward.max_concurrent or _MOST
        self._force_tcp = forward.settings.force_tcp
        self._prefer_udp = forward.settings.prefer_udp
        self._group = Group(forward.targets, forward.settings, around)
        self._region = around.region
        self._zones = tuple(map(_wire, forward.zones))
        self._excepted = tuple(map(_wire, forward.excepted))
        self.everywhere = names.ROOT in self._zones and not self._excepted
        self._waiting = 0

    def covers(self, name: bytes) -> bool:
        """Whether a name (lower case) is to be forwarded. An apex of FROM is, whatever `except` says."""
        if not any(names.is_subdomain(name, zone) for zone in self._zones):
            return False
        return name in self._zones or not any(names.is_subdomain(name, zone) for zone in self._excepted)

    def differs_below(self, zone: bytes) -> bool:
        """Whether `covers` may say something else of a name below a zone (lower case) than of the zone."""
        known = self._zones + self._excepted
        if any(names.is_subdomain(other, zone) and other != zone for other in known):
            return True
        return zone in self._zones and any(names.is_subdomain(zone, other) for other in self._excepted)

    def passes_on(self, response: Response) -> bool:
        """Whether the answer of the next directive is wanted instead of this one."""
        if response.relay is None:
            return False
        if response.relay.rcode in self._forward.next_rcodes:
            return True
        return self._forward.next_on_nodata and response.rcode == rr.NOERROR and not response.relay.counts[0]

    async def ask(self, query: Query, begun: float) -> Response:
        """What the upstreams answer, or SERVFAIL and why. In the event loop. begun: when the query came."""
        if self._waiting >= self._most:
            self._region.count(("count", "coredns_forward_max_concurrent_rejects_total"))
            text = f"more than {self._most} queries at a time (max_concurrent)"
            return Response(rcode=rr.REFUSED, plugin=NAME, error=text)
        if self._waiting >= MOST_WAITING:
            self._region.count(("count", "kdns_pending_rejects_total"))
            return Response(rcode=rr.SERVFAIL, plugin=NAME, recursion=True)
        tcp = self._force_tcp or (not self._prefer_udp and query.proto != "udp")
        ask = Ask(message.upstream_query(query, 0)[2:], message.question(query))
        self._waiting += 1
        asked = None if query.metadata is None else partial(query.metadata.note, "forward/upstream")
        try:
            return Response(relay=await self._group.ask(ask, tcp, begun, asked), plugin=NAME, recursion=True)
        except UpstreamError as error:
            return Response(rcode=rr.SERVFAIL, plugin=NAME, recursion=True, error=str(error))
        finally:
            self._waiting -= 1


def _wire(zone: str) -> bytes:
    return names.lower(names.from_text(zone))
