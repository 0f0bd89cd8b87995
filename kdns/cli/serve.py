"""`kdns serve`: the DNS server."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from kdns.errors import KdnsError


def serve(
    conf: Annotated[
        Path, typer.Option("--conf", "-conf", help="The Corefile.", show_default=True, dir_okay=False)
    ] = Path("Corefile"),
    state_dir: Annotated[
        Path | None,
        typer.Option(help="Where the zone store is kept, which the next start answers from.", envvar="KDNS_STATE_DIR"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            help="Processes that answer. Default: as multisocket says, else one for each usable CPU, up to 4.",
        ),
    ] = None,
    dns_port: Annotated[
        int, typer.Option("--dns-port", "-dns.port", min=1, max=65535, help="Port of server blocks that name none.")
    ] = 53,
) -> None:
    """Serve DNS as a Corefile says.

    Reads the Corefile and what it imports, opens the zone store, and answers over UDP and TCP until SIGTERM. SIGHUP
    or SIGUSR1 reads the Corefile again; a wrong one leaves the old one at work. What a restart needs is in the state
    directory: answers are there at once, and are brought up to date while they are given.

    The state directory is --state-dir, else KDNS_STATE_DIR, else /var/lib/kdns for root and $XDG_STATE_HOME/kdns
    (~/.local/state/kdns) for others. Only one kdns can use it at a time.

    \b
    kdns serve --conf /etc/kdns/Corefile
    kdns serve --conf Corefile --dns-port 1053 --state-dir /tmp/kdns --workers 1
    """
    from kdns import plugins
    from kdns.server import supervisor

    load = partial(plugins.load, conf, environ=os.environ, default_port=dns_port)
    supervisor.run(supervisor.Start(load, state_dir or default_state_dir(), workers=workers))


def default_state_dir() -> Path:
    """Where the zone store is kept if nobody says (XDG Base Directory Specification; hier(7) for root)."""
    if os.geteuid() == 0:
        return Path("/var/lib/kdns")
    home = os.environ.get("XDG_STATE_HOME")
    if home and Path(home).is_absolute():  # a relative one is to be ignored, says the specification
        return Path(home) / "kdns"
    try:
        return Path.home() / ".local/state/kdns"
    except RuntimeError:
        raise KdnsError(
            "no state directory: there is no home directory; name one with --state-dir or KDNS_STATE_DIR"
        ) from None
