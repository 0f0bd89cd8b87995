"""What the expressions of `view` can ask of a query, and how they decide."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kdns.corefile import expression, values
from kdns.corefile.expression import Expression, Function
from kdns.corefile.operations import BOOL, INT, STRING, Kind
from kdns.errors import ConfigValueError
from kdns.plugins import view
from kdns.wire import message, names, rr
from kdns.wire.message import Metadata, Query


class Asked(NamedTuple):
    """A query. known: its metadata in the server block, None without the directive."""

    query: Query
    known: Metadata | None = None


def condition(
    text: str, functions: Mapping[str, Function] | None = None, given: Sequence[tuple[str, Kind]] = ()
) -> Expression:
    """An expression that can be true or false, of variables that are given. functions: default, those of `view`.

    Raises ConfigValueError.
    """
    found = expression.parse(text, FUNCTIONS if functions is None else functions, given)
    if found.kind.name not in ("bool", "any"):
        raise ConfigValueError(f"the expression is {found.kind} and no condition", "such as name() == 'example.org.'")
    return found


class View:
    """A server block's expressions at work. personal: they can tell queries of the same bytes apart."""

    def __init__(self, options: view.Options) -> None:
        self.name = options.name
        self._conditions = tuple(condition(text) for text in options.expressions)
        self.personal = any(one.personal for one in self._conditions)

    def takes(self, asked: Asked) -> bool:
        """Whether the server block is to answer a query."""
        return all(one.holds(asked) for one in self._conditions)


def _network(text: str) -> Any:
    try:
        return ipaddress.ip_network(text if text.partition("/")[2].isdecimal() else "", strict=False)
    except ValueError:
        problem = f"{values.shown(text)} is not a network in CIDR notation"
        raise ConfigValueError(problem, "such as 10.0.0.0/16 or 2001:db8::/32") from None


def _in_network(_: Asked, address: str, network: str) -> bool:
    found = ipaddress.ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found) in _network(network)


def _label(text: str) -> str:
    plugin, slash, name = text.partition("/")
    if not (plugin and slash and name):
        raise ConfigValueError(f"{values.shown(text)} is no label of metadata", "PLUGIN/NAME, as kubernetes/namespace")
    return text


def _bufsize(asked: Asked) -> int:
    query = asked.query
    if query.proto != "udp":
        return message.MAX_MESSAGE
    return max(message.MIN_UDP, query.edns.payload) if query.edns is not None else message.MIN_UDP


def _metadata(asked: Asked, label: str) -> str:
    return asked.known.value(label) if asked.known is not None else ""


FUNCTIONS: Mapping[str, Function] = {
    "bufsize": Function((), INT, _bufsize),
    "class": Function((), STRING, lambda asked: rr.class_text(asked.query.klass)),
    "client_ip": Function((), STRING, lambda asked: asked.query.client[0].partition("%")[0], personal=True),
    "do": Function((), BOOL, lambda asked: asked.query.edns is not None and asked.query.edns.do),
    "id": Function((), INT, lambda asked: asked.query.id, personal=True),
    "incidr": Function((STRING, STRING), BOOL, _in_network, (None, _network)),
    "metadata": Function((STRING,), STRING, _metadata, (_label,), personal=True),
    "name": Function((), STRING, lambda asked: names.to_text(asked.query.lname)),
    "opcode": Function((), INT, lambda asked: (asked.query.flags & message.OPCODE) >> 11),
    "port": Function((), STRING, lambda asked: str(asked.query.client[1]), personal=True),
    "proto": Function((), STRING, lambda asked: asked.query.proto),
    "server_ip": Function((), STRING, lambda asked: asked.query.local[0].partition("%")[0], personal=True),
    "server_port": Function((), STRING, lambda asked: str(asked.query.local[1])),
    "size": Function((), INT, lambda asked: len(asked.query.data)),
    "type": Function((), STRING, lambda asked: rr.type_text(asked.query.type)),
}
"""What an expression can ask of a query. Ports and protocols are the same for all that one socket's cache keeps."""
