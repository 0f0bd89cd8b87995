"""`kdns demo`: the sample cluster of zones/sample on this machine's loopback."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdns.errors import KdnsError

if TYPE_CHECKING:
    from rich.table import Table

SAMPLE = Path(__file__).resolve().parent / "sample"
ADDRESS = "127.0.0.1"
PORT = 5300
_HTTP = ("health", "ready", "metrics")


@dataclass(frozen=True, slots=True)
class Example:
    """A question worth asking the sample cluster. name: for PTR, the address."""

    shows: str
    name: str
    type: str

    def dig(self, port: int) -> str:
        """The command line that asks it."""
        asked = f"-x {self.name}" if self.type == "PTR" else f"{self.name} {self.type}"
        return f"dig @{ADDRESS} -p {port} {asked}"


EXAMPLES = (
    Example("cluster IP, IPv4", "web.shop.svc.cluster.local", "A"),
    Example("cluster IP, IPv6", "web.shop.svc.cluster.local", "AAAA"),
    Example("named port", "_http._tcp.web.shop.svc.cluster.local", "SRV"),
    Example("port over UDP", "_dns._udp.kube-dns.kube-system.svc.cluster.local", "SRV"),
    Example("headless: ready pods", "cart.shop.svc.cluster.local", "A"),
    Example("StatefulSet member", "db-0.db.data.svc.cluster.local", "A"),
    Example("members, with port", "_postgres._tcp.db.data.svc.cluster.local", "SRV"),
    Example("not ready ones too", "db-peers.data.svc.cluster.local", "A"),
    Example("alias in the cluster", "database.shop.svc.cluster.local", "A"),
    Example("alias to outside", "payments.shop.svc.cluster.local", "CNAME"),
    Example("no pods behind it", "reports.shop.svc.cluster.local", "A"),
    Example("Endpoints by hand", "vault.warehouse.data.svc.cluster.local", "A"),
    Example("one topology zone", "eu-1b.pin._zone.search.data.svc.cluster.local", "A"),
    Example("pod by its address", "10-244-0-11.shop.pod.cluster.local", "A"),
    Example("address to name", "10.96.0.10", "PTR"),
    Example("schema version", "dns-version.cluster.local", "TXT"),
    Example("no such Service", "nothing.shop.svc.cluster.local", "A"),
)
TO_TRY = (EXAMPLES[0], EXAMPLES[6], EXAMPLES[8], EXAMPLES[14], EXAMPLES[16])


def demo(
    port: Annotated[
        int, typer.Option(min=1, max=65532, help="UDP and TCP port for DNS; the next three are for HTTP.")
    ] = PORT,
) -> None:
    """Serve a sample cluster on 127.0.0.1, and show what can be asked.

    A web shop with its databases, in files that kdns follows as it would follow a cluster: change one and ask again.
    Nothing outside of 127.0.0.1 is touched. Ctrl-C ends it.

    \b
    kdns demo
    kdns demo --port 5400
    """
    import tempfile

    from kdns import plugins
    from kdns.server import supervisor

    require_free(port)
    try:
        temporary = tempfile.TemporaryDirectory(prefix="kdns-demo-")
    except OSError as error:
        raise KdnsError(f"no folder for temporary files: {error.strerror}; name one with TMPDIR") from None
    with temporary as folder:
        conf = Path(folder) / "Corefile"
        conf.write_text(corefile(port))
        load = partial(plugins.load, conf, environ=os.environ)
        start = supervisor.Start(load, Path(folder) / "state", workers=1, ready=lambda: introduce(port))
        supervisor.run(start)


def corefile(port: int) -> str:
    """The sample's Corefile with that DNS port, the three HTTP ports behind it, and the manifests' full path."""
    text = (SAMPLE / "Corefile").read_text()
    text = re.sub(r":(530[0-3])\b", lambda match: f":{int(match[1]) - PORT + port}", text)
    return re.sub(r"manifests \S+", lambda _: f'manifests "{SAMPLE.resolve()}"', text)


def require_free(port: int) -> None:
    """Raise KdnsError, naming the port, unless all that the demo listens on are free."""
    import socket

    wanted = [("DNS", socket.SOCK_DGRAM, port), ("DNS", socket.SOCK_STREAM, port)]
    wanted += [(name, socket.SOCK_STREAM, port + 1 + index) for index, name in enumerate(_HTTP)]
    for name, kind, number in wanted:
        with socket.socket(socket.AF_INET, kind) as sock:
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((ADDRESS, number))
            except OSError as error:
                proto = "TCP" if kind == socket.SOCK_STREAM else "UDP"
                raise KdnsError(
                    f"{ADDRESS} port {number}/{proto} ({name}) is not free: {error.strerror}; take others with --port"
                ) from None


def introduce(port: int) -> None:
    """Print the table of names and the lines to try."""
    from rich.console import Console

    Console().print(table())
    typer.echo(f"\nTry, in another terminal (or `kdns query --port {port} NAME TYPE`):\n")
    for example in TO_TRY:
        typer.echo(f"  {example.dig(port)}")
    typer.echo(f"\nChange a file in {SAMPLE.resolve()} and ask again.")
    for index, path in enumerate(_HTTP):
        typer.echo(f"http://{ADDRESS}:{port + 1 + index}/{path}")
    watched = port + len(_HTTP)
    typer.echo(f"http://{ADDRESS}:{watched}/ in a browser, or `kdns top :{watched}`, shows what it does.")
    typer.echo("Ctrl-C ends it.\n")


def table() -> Table:
    """The sample's names, and what each of them shows."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    names = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    names.add_column("name", no_wrap=True)
    names.add_column("type", no_wrap=True)
    names.add_column("what it shows")
    for example in EXAMPLES:
        names.add_row(example.name, example.type, example.shows)
    return names
