"""tls: the certificate of servers that speak TLS.

## Name

*tls* - sets the certificate of `tls://` and `https://` servers, and what is asked of their clients.

## Description

A key with `tls://` is DNS over TLS (RFC 7858, port 853), one with `https://` DNS over HTTPS (RFC 8484, port 443, path
/dns-query), over HTTP/2 and HTTP/1.1. Both want TLS 1.2 or later, and have no UDP socket. Behind both are the same
plugins and caches as behind UDP and TCP, and *timeouts* holds for both.

A `tls://` key needs the directive. An `https://` key without it speaks plain HTTP, for a proxy that has the certificate
(HTTP/2 too, if the proxy begins with it).

The files are looked at each second, and read again when they have changed: a Secret that is mounted may change, as may
files that are replaced one after the other. New connections get the new certificate, those that are open stay. While
the files cannot be used, say as one is missing or the key is another certificate's, the last good ones are used, in
workers that are replaced too, and the log says so. When the server starts, and when the configuration is read again,
they have to be good.

## Syntax

```
tls CERT KEY [CA] {
    client_auth nocert|verify_if_given|require_and_verify
    keylog FILE
}
```

* **CERT** is a file with the certificate and those between it and a known authority, **KEY** one with its key, without
  a password; **CA** one with the authorities of clients' certificates, without which they are those of the system. All
  are in PEM format; relative paths begin at *root*'s directory.
* `client_auth`: whether clients are asked for a certificate. `nocert`: they are not (the default). `verify_if_given`:
  one may be given, and has to be good. `require_and_verify`: one has to be given, and good.
* `keylog`: write the secrets of all connections to **FILE**, with which others can decrypt what was recorded of them.
  For debugging only.

Server blocks that share an address have the same directive.

## Metrics

* `kdns_tls_handshakes_total{result}`: handshakes that came to their end ("complete") and that did not ("failed").
* `kdns_tcp_connections_closed_total{reason}`: "handshake": it took too long (`read` of *timeouts*); "tls": what came is
  no TLS, or breaks it, or the client has not the certificate that it should; "http": the same of HTTP; "flood": far
  more frames than requests that were answered.
* `kdns_tls_certificate_expiry_timestamp_seconds{certificate}`: when the first one of a file's certificates ends.
* `kdns_tls_certificate_unusable{certificate}`: 1 while the files cannot be used, and older ones are.
* `coredns_dns_https_responses_total{server, status}`: HTTP responses by status.

## Examples

DNS over TLS at port 853, and what is asked over it in the cluster's own zone:

```corefile
tls://.:853 {
    tls /etc/kdns/tls/tls.crt /etc/kdns/tls/tls.key
    whoami
}
```

One server block for all three transports; clients with TLS need a certificate of ours:

```corefile
.:53 tls://. https://. {
    tls tls.crt tls.key clients.crt {
        client_auth require_and_verify
    }
    root /etc/kdns/tls
    whoami
}
```

Plain HTTP for a proxy:

```corefile
https://.:8080 {
    whoami
}

tls://. {
    tls /etc/kdns/tls/tls.crt /etc/kdns/tls/tls.key
    whoami
}
```

## Differences from CoreDNS

`client_auth request` and `client_auth require`, which accept any certificate and never look at it, are refused:
Python's TLS asks for none that it would not verify. Certificates by ACME (`tls` without files) are refused. A `tls://`
key without `tls` is refused: CoreDNS serves unencrypted DNS there. A `tls` that no key of its server block uses is
refused, as are different ones at one address: CoreDNS takes any of them. Changed files are read again: CoreDNS reads
them when it starts. Over HTTPS, a method other than GET and POST is 405 and a message over 65535 bytes is 413: with
CoreDNS both are 400. Over HTTPS, a query that cannot be read is answered with FORMERR: with CoreDNS it is status 400.

## See also

*timeouts*, *root*, RFC 7858, RFC 8484.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from kdns.corefile.config import Directive, ServerBlock, ServerConfig, ServerKey
from kdns.corefile.lexer import Token
from kdns.corefile.options import Reader
from kdns.corefile.values import choices, shown
from kdns.errors import ConfigValueError, Mistake
from kdns.plugins import bind, root

NAME = "tls"
SCHEMES = frozenset(("tls", "https"))
"""The schemes whose servers use the directive."""
CLIENT_AUTH = ("nocert", "verify_if_given", "require_and_verify")
_UNVERIFIED = ("request", "require")


@dataclass(frozen=True, slots=True)
class Options:
    """Paths, "" for none. client_auth: one of CLIENT_AUTH. at: the directive's word."""

    certificate: str
    key: str
    authority: str = ""
    client_auth: str = "nocert"
    keylog: str = ""
    at: Token = field(default=Token("tls", "", 0), compare=False)


def parse(directive: Directive, block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    reader = Reader(directive, mistakes)
    directory = root.directory(block)
    if not directive.args and any(item.name.text == "acme" for item in directive.block or ()):
        reader.refuse(directive.name, "tls: acme is not supported by this version of kdns", "tls CERT KEY [CA]")
        return None
    args = reader.arguments(directive, 2, 3, "tls CERT KEY [CA]")
    for token in args:
        if not token.text:
            reader.refuse(token, "tls has an empty path", "tls CERT KEY [CA]")
    paths = [str(directory / token.text) for token in args] + [""]
    found = Options(paths[0], paths[1], paths[2], at=directive.name) if args else None

    def client_auth(item: Directive) -> None:
        nonlocal found
        value = reader.one(item, _client_auth, "client_auth TYPE")
        if value and found is not None:
            found = replace(found, client_auth=value)

    def keylog(item: Directive) -> None:
        nonlocal found
        value = reader.one(item, _path, "keylog FILE")
        if value and found is not None:
            found = replace(found, keylog=str(directory / value))

    reader.options({"client_auth": client_auth, "keylog": keylog})
    return found if reader.sound else None


def _client_auth(text: str) -> str:
    if text in _UNVERIFIED:
        problem = f"client_auth {text}, which looks at no certificate, is not supported by this version of kdns"
        raise ConfigValueError(problem, ", ".join(CLIENT_AUTH))
    if text not in CLIENT_AUTH:
        raise ConfigValueError(f"{shown(text)} is no type of client_auth", choices(text, CLIENT_AUTH))
    return text


def _path(text: str) -> str:
    if not text:
        raise ConfigValueError("the path is empty", "a path")
    return text


def conflicts(blocks: Iterable[ServerConfig], interfaces: bind.Interfaces | None = None) -> list[Mistake]:
    """What is wrong between schemes and certificates, within server blocks and among those that share an address.

    interfaces: as for `bind.conflicts`.
    """
    mistakes: list[Mistake] = []
    taken: list[tuple[ServerKey, tuple[str, ...], Options | None]] = []
    for block in blocks:
        if NAME in block.plugins and block.plugins[NAME] is None:
            continue
        options = block.plugins.get(NAME)
        mistakes += _alone(block, options)
        if bind.NAME in block.plugins and block.plugins[bind.NAME] is None:
            continue
        hosts = bind.hosts(block, interfaces)
        for key in block.keys:
            others = [other for other in taken if other[0].port == key.port and _overlap(hosts, other[1])]
            mistakes += _shared(key, options, others)
        taken += [(key, hosts, options) for key in block.keys]
    return mistakes


def _alone(block: ServerConfig, options: Options | None) -> Iterator[Mistake]:
    """What is wrong with a server block whatever the others are."""
    for token in dict.fromkeys(key.token for key in block.keys if key.scheme == "tls" and options is None):
        yield Mistake(token.file, token.line, f"{token.text} has no certificate", "tls CERT KEY in its server block")
    if options is not None and not any(key.scheme in SCHEMES for key in block.keys):
        at = options.at
        yield Mistake(at.file, at.line, "tls is used by no key of this server block", "a key such as tls://.:853")


def _overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return "" in one or "" in other or bool(set(one) & set(other))


def _shared(
    key: ServerKey, options: Options | None, others: list[tuple[ServerKey, tuple[str, ...], Options | None]]
) -> Iterator[Mistake]:
    """What is wrong with a key beside those before it at the same port and address."""
    token = key.token
    for other, _, theirs in others:
        where = f"{other.token.file}:{other.token.line}"
        if other.scheme != key.scheme:
            message = f"{key.scheme}://{key.zone}:{key.port} is at the port of {other.scheme}://{other.zone} in {where}"
            yield Mistake(token.file, token.line, message, "another port, or bind with different addresses")
            return
        if key.scheme in SCHEMES and options != theirs:
            message = f"{key.scheme}://{key.zone}:{key.port} shares its address with {where}, where tls is different"
            yield Mistake(token.file, token.line, message, "the same tls directive in both")
            return
