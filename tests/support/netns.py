"""Network namespaces made for one test and removed after it."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count(1)


class NetnsUnavailableError(Exception):
    """This process may not make network namespaces; the text says why."""


def require() -> None:
    """Raises NetnsUnavailableError unless namespaces can be made here."""
    if os.geteuid():
        raise NetnsUnavailableError("network namespaces need root")
    if shutil.which("ip") is None:
        raise NetnsUnavailableError("iproute2's ip is not installed")
    name = f"kdns-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        raise NetnsUnavailableError(f"ip netns add: {made.stderr.strip()}")
    subprocess.run(["ip", "netns", "del", name], check=True)


class Netns:
    """A network namespace with its loopback up.

    role: a few letters that make its unique name readable. resolv_conf: text of the resolv.conf that commands in it
    see. Used as a context manager; at the end its processes are killed, and it is removed with its links.
    """

    def __init__(self, role: str, resolv_conf: str | None = None) -> None:
        self.name = f"kdns-{os.getpid()}-{next(_numbers)}-{role}"
        self._etc = Path("/etc/netns") / self.name
        self._resolv_conf = resolv_conf

    @property
    def prefix(self) -> list[str]:
        """What to put before a command to run it in here."""
        return ["ip", "netns", "exec", self.name]

    def __enter__(self) -> Self:
        if self._resolv_conf is not None:
            self.write_resolv_conf(self._resolv_conf)
        _ip("netns", "add", self.name)
        try:
            self.ip("link", "set", "lo", "up")
        except subprocess.CalledProcessError:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Kill what runs in it and remove it."""
        pids = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True).stdout.split()
        for pid in map(int, pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)
        shutil.rmtree(self._etc, ignore_errors=True)

    def write_resolv_conf(self, text: str) -> None:
        """What commands that begin from now on see as resolv.conf."""
        self._etc.mkdir(parents=True, exist_ok=True)
        (self._etc / "resolv.conf").write_text(text)

    def ip(self, *arguments: str) -> str:
        """`ip -n NAME ARGUMENTS`; its output. Raises CalledProcessError."""
        return _ip("-n", self.name, *arguments)

    def run(self, *command: str, timeout: float = 30, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in here and wait for it."""
        return subprocess.run([*self.prefix, *command], capture_output=True, text=True, timeout=timeout, check=check)

    def popen(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in here."""
        return subprocess.Popen([*self.prefix, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def connect(self, other: Netns, addresses: Sequence[str], other_addresses: Sequence[str]) -> tuple[str, str]:
        """Lay a veth pair to another namespace; addresses with their prefix length (`10.9.0.1/24`).

        Returns the names of both ends.
        """
        number = next(_numbers)
        ends = f"v{os.getpid() % 100000}a{number}", f"v{os.getpid() % 100000}b{number}"
        _ip("link", "add", ends[0], "netns", self.name, "type", "veth", "peer", "name", ends[1], "netns", other.name)
        for namespace, end, own in ((self, ends[0], addresses), (other, ends[1], other_addresses)):
            for address in own:
                options = ["nodad"] if ":" in address else []
                namespace.ip("address", "add", address, "dev", end, *options)
            namespace.ip("link", "set", end, "up")
        return ends

    def socket(self, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        """A socket of this process that lives in this namespace."""
        return self.inside(lambda: socket.socket(family, kind))

    def inside(self, work: Callable[[], T]) -> T:
        """Do something in this namespace: sockets and processes that it makes live there."""
        with ThreadPoolExecutor(1) as pool:  # setns moves only the thread that calls it
            return pool.submit(self._enter_and, work).result()

    def _enter_and(self, work: Callable[[], T]) -> T:
        libc = ctypes.CDLL(None, use_errno=True)
        with Path(f"/run/netns/{self.name}").open() as file:
            if libc.setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        return work()


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
