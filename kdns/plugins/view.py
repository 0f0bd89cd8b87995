"""view: which of several server blocks for one zone takes a query.

## Name

*view* - lets a server block take only the queries for which expressions are true.

## Description

With it, several server blocks may have the same zone and port: split DNS, by the client's address for example. They are
tried in the order of the file: the first one whose expressions are all true takes the query, or one without *view*. If
none does, those of the next shorter zone are tried, and so on. A query that nobody takes is REFUSED.

So the server block without *view* comes last. One that stands behind it, and would never be tried, is a mistake.

An expression that cannot be worked out is false: one that takes a number of a text, for example, or one that takes
more than 100000 steps (elements that it goes through, elements and characters that it makes).

Answers are kept for all clients (the packet cache) only as far as the expressions that were tried cannot tell these
clients apart: those with `client_ip()`, `port()`, `id()`, `server_ip()` or `metadata()` can.

What the server asks itself for a client, such as the target of an alias, is tried in the same way, as that client's.
*loop* looks for loops of its own server block.

## Syntax

```
view NAME {
    expr EXPRESSION
}
```

* **NAME** is the label `view` in metrics, and the metadata `view/name`. Server blocks with one zone and port have
  different ones.
* `expr` **EXPRESSION** may be repeated; then all have to be true. Without any, the server block takes every query.

Expressions are those of expr-lang. What begins with a double quote in a Corefile goes up to the next one and loses
them; outside of such quotes `#` begins a comment, and a `{` by itself a block. Text is best written in single quotes,
and an expression with `#` or `{` as a whole in double quotes.

* Values: `'text'`, `5`, `0.5`, `true`, `false`, `nil`, `['A', 'AAAA']`, `{'a': 1}`, `1..5`
* Operators: `== != < <= > >=`, `and && or || not !`, `in`, `matches` (a regular expression of RE2), `contains`,
  `startsWith`, `endsWith`, `+ - * / % **`, `CONDITION ? VALUE : VALUE`, `??`, `VALUE | FUNCTION()`, `VALUE[0]`,
  `VALUE[1:3]`, `MAP.KEY`, `MAP?.KEY`
* `let NAME = VALUE; EXPRESSION`, `if CONDITION { VALUE } else { VALUE }`, `if CONDITION { VALUE } else if ...`
* Of the query: `name()` (lower case, with its last dot), `type()`, `class()`, `opcode()`, `id()`, `size()` in bytes,
  `do()`, `bufsize()`
* Of its way: `client_ip()`, `port()`, `server_ip()`, `server_port()` (both ports are text), `proto()`: `'udp'` or
  `'tcp'`
* `incidr(IP, CIDR)`: whether an address is in a network
* `metadata('LABEL')`: see *metadata*, which has to be in the server block too
* Of the language, for text: `len lower upper trim trimPrefix trimSuffix hasPrefix hasSuffix indexOf lastIndexOf replace
  repeat split splitAfter join toBase64 fromBase64`
* for numbers: `int float string abs ceil floor round max min mean median bitand bitor bitxor bitnand bitnot bitshl
  bitshr bitushr`
* for arrays and maps: `len concat flatten uniq reverse sort first last take get sum mean median max min count keys
  values toPairs fromPairs`
* with a condition for each element `#`: `all any none one filter find findIndex findLast findLastIndex count`; with a
  value: `map sum groupBy sortBy reduce` (`#index` in `map`, `#index` and `#acc` in `reduce`)

## Metrics

`view` is a label of the metrics of queries and of *cache*; it is empty without this directive.

## Examples

Clients of one network have an answer of their own:

```corefile
example.org {
    view office {
        expr incidr(client_ip(), '192.0.2.0/24')
    }
    hosts {
        10.0.0.1 www.example.org
    }
}
example.org {
    hosts {
        198.51.100.1 www.example.org
    }
}
```

The same for all of a list of networks:

```corefile
example.org {
    view inside {
        expr "let ip = client_ip(); any(['10.0.0.0/8', '192.168.0.0/16'], incidr(ip, #))"
    }
    whoami
}
example.org {
    forward . 192.0.2.54
}
```

Addresses are asked of one server, all else of another:

```corefile
. {
    view addresses {
        expr type() in ['A', 'AAAA'] and not (name() endsWith '.internal.')
    }
    forward . 192.0.2.53
}
. {
    forward . 192.0.2.54
}
```

## Differences from CoreDNS

A server block behind one without *view* that has the same zone and port is refused. Two views of one name for one zone
and port are refused. An expression that is no condition, such as `1`, is refused. A network that is written
out and is none is refused; CoreDNS finds the expression false. `metadata('LABEL')` is empty without *metadata* in the
server block; CoreDNS shows that of a server block that was tried before. Times (`now`, `date`, `duration`, `timezone`)
and JSON (`toJSON`, `fromJSON`), `$env` and bytes (`b'text'`) are not supported. Keys of several types make `groupBy`
and `fromPairs` fail. An expression that takes more than 100000 steps is false. A query for type DS goes to the server
block of the longest zone as any other does.

## See also

*metadata*, *log*, *bind*.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdns.corefile.config import Directive, ServerBlock, ServerConfig
from kdns.corefile.options import Reader
from kdns.errors import Mistake

NAME = "view"


@dataclass(frozen=True, slots=True)
class Options:
    """name: of the view. expressions: as written."""

    name: str
    expressions: tuple[str, ...] = ()


def parse(directive: Directive, _block: ServerBlock, mistakes: list[Mistake]) -> Options | None:
    """Read the directive; None after a mistake."""
    from kdns.plugins.conditions import condition  # for those who need it

    reader = Reader(directive, mistakes)
    args = reader.arguments(directive, 1, 1, "view NAME")
    found: list[str] = []

    def read_expression(item: Directive) -> None:
        args = reader.arguments(item, 1, None, "expr EXPRESSION")
        if args:
            text = " ".join(token.text for token in args)
            found.append(reader.value(args[0], lambda _: condition(text).text) or "")

    reader.options({"expr": read_expression}, repeatable=("expr",))
    if args and not args[0].text:
        reader.refuse(args[0], "view has an empty name", "view NAME")
    return Options(args[0].text, tuple(found)) if reader.sound else None


def name_of(block: ServerConfig) -> str:
    """The name of a server block's view; empty without one."""
    options = block.plugins.get(NAME)
    return options.name if isinstance(options, Options) else ""


class Named:
    """What is known of the queries that a view has taken (`metadata`)."""

    def __init__(self, name: str) -> None:
        self._name = name

    def is_of_the_name(self, label: str) -> bool:
        """The same for all that come here."""
        return True

    def fact(self, label: str, name: bytes, client: str) -> str:
        """The view's name."""
        return self._name if label == "name" else ""
