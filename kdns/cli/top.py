"""`kdns top`: what DNS servers do, now and again."""

from __future__ import annotations

from typing import Annotated

import typer

from kdns.errors import KdnsError


def top(
    addresses: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ADDRESS]...",
            help="HOST, HOST:PORT, :PORT or a URL. Default: http://127.0.0.1:9153/metrics.",
            show_default=False,
        ),
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, print once, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as a JSON object; with or without --once.")] = False,
) -> None:
    """Show what a DNS server does, from its /metrics: a live view on a terminal, which q or Ctrl-C ends.

    Queries a second by type and response code, the time until the response (half, 90 % and 99 % of the queries are
    answered in it), hits of the caches, age of the data, workers, upstreams and their state, and the names that are
    asked for most, if `prometheus` in the Corefile has `top_names`. Rates are those between two looks. Several servers
    are added up, and listed one by one.

    Works with CoreDNS and NodeLocal DNSCache as well, and says what they do not tell.

    Where standard output is no terminal it is as with --once. NO_COLOR is respected.

    \b
    kdns top
    kdns top 10.244.0.5 10.244.1.7 --interval 5
    kdns top http://169.254.20.10:9253/metrics
    kdns top --json | jq .total.rcodes

    Exit codes: 0 all went well; 1 with --once: no server could be seen twice; 2 the command line was wrong.
    """
    from kdns.tools.fetch import place

    try:
        places = [place(text) for text in addresses or ["127.0.0.1"]]
    except KdnsError as error:
        raise typer.BadParameter(str(error), param_hint="ADDRESS") from None
    from kdns.tools.live import live, look_once

    if once or as_json or not live(places, interval):
        look_once(places, interval, as_json=as_json)
