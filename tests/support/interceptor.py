"""`kdns.node.network` without the rest of kdns: a process that answers every query with its own name.

    python -m tests.support.interceptor NAME SETTINGS

SETTINGS is a `Settings` as JSON, or a list of addresses of this machine that are served without a `Network`. With one
more field, "bound": lists of the addresses that have sockets, at first and after each SIGHUP.

Standard output gets the log, a line "counted KIND" for each error counted, and "open" when queries are brought here.
SIGTERM ends it as the supervisor would end; SIGUSR1 the same, as if another instance were there. SIGUSR2 begins the end
and says "withdrawn"; SIGTERM has to follow.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

import dns.message
import dns.rrset

from kdns.node.network import Network
from kdns.node.settings import Settings
from kdns.observe.logs import Log, Sink

_IPV6_TRANSPARENT = 75


def answer(name: str, query: bytes) -> bytes:
    """A response that says the name."""
    message = dns.message.from_wire(query)
    response = dns.message.make_response(message)
    response.answer.append(dns.rrset.from_text(message.question[0].name, 1, "IN", "TXT", name))
    return response.to_wire()


def take(name: str, sock: socket.socket) -> None:
    """Answer what has come."""
    while True:
        try:
            query, peer = sock.recvfrom(65535)
        except BlockingIOError:
            return
        sock.sendto(answer(name, query), peer)


def listening(address: str, port: int, kind: socket.SocketKind, *, anywhere: bool) -> socket.socket:
    """A socket bound to an address. anywhere: which this machine need not have."""
    six = ip_address(address).version == 6
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if anywhere and six:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    elif anywhere:
        sock.setsockopt(socket.SOL_IP, socket.IP_TRANSPARENT, 1)
    sock.bind((address, port))
    if kind == socket.SOCK_STREAM:
        sock.listen(64)
    return sock


@dataclass(frozen=True)
class Served:
    """What answers at one address."""

    udp: socket.socket
    tcp: asyncio.Server

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.udp.fileno())
        self.udp.close()
        self.tcp.close()


async def serve(name: str, addresses: Iterable[str], port: int, *, anywhere: bool) -> dict[str, Served]:
    """Answer at all addresses, over UDP and TCP; returns what answers, by address."""
    loop = asyncio.get_running_loop()
    served = {}

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(2))
                response = answer(name, await reader.readexactly(size))
                writer.write(len(response).to_bytes(2) + response)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    for address in addresses:
        udp = listening(address, port, socket.SOCK_DGRAM, anywhere=anywhere)
        udp.setblocking(False)
        loop.add_reader(udp.fileno(), take, name, udp)
        tcp = listening(address, port, socket.SOCK_STREAM, anywhere=anywhere)
        served[address] = Served(udp, await asyncio.start_server(converse, sock=tcp))
    return served


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def main(name: str, text: str) -> None:
    fields = json.loads(text)
    if isinstance(fields, list):
        await serve(name, tuple(fields), 53, anywhere=False)
        say("open")
        await asyncio.Event().wait()
    bound = [tuple(each) for each in fields.pop("bound", [fields["addresses"]])]
    settings = Settings(**{**fields, "addresses": tuple(fields["addresses"])})
    read, write = os.pipe()
    network = Network(settings, Log(Sink(write)), lambda kind: say(f"counted {kind}"))
    loop = asyncio.get_running_loop()
    loop.add_reader(read, lambda: say(os.read(read, 1 << 16).decode().rstrip()))
    stop: asyncio.Future[bool] = loop.create_future()
    loop.add_signal_handler(signal.SIGTERM, stop.set_result, True)
    loop.add_signal_handler(signal.SIGUSR1, stop.set_result, False)
    leaving = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR2, leaving.set)
    await network.prepare()
    served: dict[str, Served] = {}
    changing = asyncio.Lock()

    async def change() -> None:
        async with changing:
            now = bound.pop(0)
            new = [address for address in now if address not in served]
            served.update(await serve(name, new, settings.port, anywhere=True))
            await network.open(frozenset((address, settings.port) for address in now))
            for address in served.keys() - set(now):
                served.pop(address).close()

    changes = []
    loop.add_signal_handler(signal.SIGHUP, lambda: changes.append(loop.create_task(change())))
    await change()
    follower = asyncio.create_task(network.follow())
    say("open")
    await asyncio.wait((stop, asyncio.create_task(leaving.wait())), return_when=asyncio.FIRST_COMPLETED)
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)
    await network.withdraw()
    for each in served.values():
        each.tcp.close()
    say("withdrawn")
    await network.remove(alone=await stop)
    await asyncio.sleep(0.05)  # the last lines of the log
    say("removed")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
