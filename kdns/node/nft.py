"""Tables of nftables that last no longer than this process.

A table with `flags owner` belongs to the netlink socket that made it, and the kernel removes it when that socket is
closed, however the process ends (nft(8), Linux 5.12). So the socket must be in one process only: programs that are
executed do not get it, and a child that is forked has to let go of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from pathlib import Path
from typing import Final

from kdns.errors import NodeError

_LIBRARY = "libnftables.so.1"
_NETLINK_NETFILTER = 12
_FD_SETSIZE = 1024
_SPARE = 24


class Owned:
    """The tables that one netlink socket owns.

    A context runs one command in its life: with a second one libnftables might open another socket in place of this.
    """

    def __init__(self, library: Library, commands: str) -> None:
        """Make tables; commands as nft(8) has them, carried out together or not at all. Raises NodeError."""
        self._library = library
        self._context: int | None = library.open()
        try:
            _keep_to_this_process()
            library.run(self._context, commands)
            _keep_to_this_process()  # libnftables opens its socket anew where the kernel interrupts a listing
        except OSError as error:
            self.close()
            raise NodeError(f"nftables cannot be used: {error}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the tables."""
        if self._context is not None:
            self._library.close(self._context)
            self._context = None


class Library:
    """libnftables(3), as far as it is used here."""

    def __init__(self) -> None:
        """Raises NodeError if the library, or the kernel's side of it, is not there."""
        try:
            self._calls: Final = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise NodeError(f"nftables cannot be used: {error}") from error
        self._declare()
        self.close(self.open())

    def _declare(self) -> None:
        context = ctypes.c_void_p
        for name, result, arguments in (
            ("nft_ctx_new", context, (ctypes.c_uint32,)),
            ("nft_ctx_free", None, (context,)),
            ("nft_ctx_buffer_output", ctypes.c_int, (context,)),
            ("nft_ctx_buffer_error", ctypes.c_int, (context,)),
            ("nft_ctx_get_output_buffer", ctypes.c_char_p, (context,)),
            ("nft_ctx_get_error_buffer", ctypes.c_char_p, (context,)),
            ("nft_run_cmd_from_buffer", ctypes.c_int, (context, ctypes.c_char_p)),
        ):
            call = getattr(self._calls, name)
            call.restype, call.argtypes = result, arguments

    def open(self) -> int:
        """A new context. Raises NodeError."""
        _check_that_sockets_can_be_had()
        context: int | None = self._calls.nft_ctx_new(0)
        if context is None:
            raise NodeError("nftables cannot be used: no memory")
        self._calls.nft_ctx_buffer_output(context)
        self._calls.nft_ctx_buffer_error(context)
        return context

    def run(self, context: int, commands: str) -> str:
        """Run commands; returns what they print. Raises NodeError with what was refused, and why."""
        if self._calls.nft_run_cmd_from_buffer(context, commands.encode()):
            lines = self._calls.nft_ctx_get_error_buffer(context).decode(errors="replace").splitlines()
            raise NodeError(" ".join(lines[0].split()) if lines else "refused without a reason")
        return str(self._calls.nft_ctx_get_output_buffer(context).decode(errors="replace"))

    def close(self, context: int) -> None:
        """Close a context and its socket."""
        self._calls.nft_ctx_free(context)

    def do(self, commands: str) -> str:
        """Run commands in a context of their own; returns what they print. Raises NodeError."""
        context = self.open()
        try:
            return self.run(context, commands)
        finally:
            self.close(context)

    def tables(self) -> frozenset[str]:
        """The names of all tables of the family inet. Raises NodeError."""
        words = (line.split() for line in self.do("list tables").splitlines())
        return frozenset(word[2] for word in words if word[:2] == ["table", "inet"])


def _check_that_sockets_can_be_had() -> None:
    """libnftables ends the process where it gets no socket, or one that does not fit into an fd_set (select(2))."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
            fd = sock.fileno()
    except OSError as error:
        raise NodeError(f"nftables cannot be used: {error}") from error
    if fd >= _FD_SETSIZE - _SPARE:
        raise NodeError("nftables cannot be used: too many open files")


def let_go() -> None:
    """To be called in a child that was forked: have no part in any table, be it only just being made."""
    for fd in _sockets():
        os.close(fd)


def _keep_to_this_process() -> None:
    """Let programs that are executed not have our sockets, which libnftables does not see to. Raises OSError."""
    for fd in _sockets():
        with contextlib.suppress(OSError):  # another thread's, which is closed meanwhile
            os.set_inheritable(fd, False)


def _sockets() -> set[int]:
    """The descriptors of this process that are sockets of nftables."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if str(entry.readlink()).startswith("socket:"):
                with socket.socket(fileno=os.dup(int(entry.name))) as sock:
                    if (sock.family, sock.proto) == (socket.AF_NETLINK, _NETLINK_NETFILTER):
                        found.add(int(entry.name))
        except OSError:  # closed meanwhile
            continue
    return found
