"""The process that workers are forked from.

It has loaded what workers need, has one thread, and does nothing but fork when the supervisor asks: a worker is there
within milliseconds, and all workers share the memory of the modules. It is itself forked from the supervisor, before
that has threads and descriptors, and shares that memory with it too; only when it has to be started again, a fresh
interpreter loads the modules once more. It ends with the supervisor.

The supervisor sends, on a SOCK_SEQPACKET socket, one message per worker: the number of file descriptors (4 bytes, big
endian), and then these, at most GROUP with each message: the plan (pickled), the worker's control socket, its
counters, the store's changes, and its sockets in the order of the plan. The answer is the worker's pid (8 bytes, big
endian) with a pidfd. A message with a negative number is the pid of a child that has ended, and its status.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import gc
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

GROUP = 200
COUNT = struct.Struct("!i")
PID = struct.Struct("!q")
ENDED = struct.Struct("!qi")
_START_SECONDS = 10.0
_USUAL = "cache", "errors", "health", "hosts", "loadbalance", "loop", "ready", "reload"
"""Directives that the Corefiles of clusters have: what a worker needs of others, it loads itself."""


class Nursery:
    """The supervisor's side: starts the process, and starts it again when it is gone.

    pid: of the process. ended: is told the pid and the wait status of each worker that has ended.
    """

    def __init__(self) -> None:
        """To be made before this process has other threads, if memory is to be shared: they cannot be forked."""
        self.ended: Callable[[int, int], None] = _ignore
        self._lock = asyncio.Lock()
        self._socket: socket.socket
        self._answer: asyncio.Future[tuple[int, int]] | None = None
        self._watching = False
        self._start(_fork if threading.active_count() == 1 else _spawn)

    def _start(self, create: Callable[[socket.socket], int]) -> None:
        """Start the process; returns before it is ready."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.pid = create(theirs)
        ours.setblocking(False)
        self._socket = ours
        self._started = time.monotonic()
        self._watching = False

    async def fork(self, fds: Sequence[int]) -> tuple[int, int]:
        """A new worker with these file descriptors (see above): its pid and a pidfd.

        Raises OSError: then there may be a worker all the same, and the process has been started again.
        """
        async with self._lock:
            try:
                return await self._fork(fds)
            except OSError:
                self._forget()
                self._start(_spawn)
                raise

    async def _fork(self, fds: Sequence[int]) -> tuple[int, int]:
        self._watch()
        self._answer = asyncio.get_running_loop().create_future()
        self._socket.send(COUNT.pack(len(fds)))
        for start in range(0, len(fds), GROUP):
            group = array.array("i", fds[start : start + GROUP])
            self._socket.sendmsg([b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, group)])
        try:
            async with asyncio.timeout(_START_SECONDS):
                return await self._answer
        except TimeoutError as error:
            raise OSError(f"no answer from process {self.pid} in {_START_SECONDS:g} s") from error

    def _receive(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, ENDED.size, 1)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        for fd in fds:
            os.set_inheritable(fd, False)  # or a nursery that is started again would have it
        if len(data) == ENDED.size:
            pid, status = ENDED.unpack(data)
            self.ended(-pid, status)
        elif len(data) == PID.size and fds and self._answer is not None and not self._answer.done():
            self._answer.set_result((PID.unpack(data)[0], fds[0]))
        else:
            self._lost()

    def _lost(self) -> None:
        """The process has ended. It is started again at once, unless it ends as soon as it is started."""
        asyncio.get_running_loop().remove_reader(self._socket)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(OSError("its parent process has ended"))
        elif time.monotonic() - self._started > 1.0:
            self._forget()
            with contextlib.suppress(OSError):  # then the next fork tries again
                self._start(_spawn)
                self._watch()

    def _watch(self) -> None:
        if not self._watching:
            asyncio.get_running_loop().add_reader(self._socket, self._receive)
            self._watching = True

    def _forget(self) -> None:
        with contextlib.suppress(ValueError, OSError, RuntimeError):
            asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        _end(self.pid)

    def close(self) -> None:
        """End the process. Workers go on."""
        self._forget()


def _ignore(_: int, __: int) -> None:
    pass


def _fork(link: socket.socket) -> int:
    """A nursery that goes on with what this process has loaded, and with no descriptor but the link; its pid."""
    _load()
    pid = os.fork()
    if pid:
        return pid
    try:
        for fd in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, link.fileno()}:  # noqa: PTH208
            with contextlib.suppress(OSError):  # that of the directory itself is closed already
                os.close(fd)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _serve(link)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _spawn(link: socket.socket) -> int:
    """A nursery in an interpreter of its own; its pid."""
    command = [sys.executable, "-m", "kdns.server.nursery", str(link.fileno())]
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, link.fileno(), link.fileno()),  # lets it through (posix_spawn_file_actions_adddup2(3))
    ]
    return os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)


def _end(pid: int) -> None:
    """Kill a child, and wait for a second until it is gone. Does nothing if it was waited for before."""
    with contextlib.suppress(ChildProcessError):
        for _ in range(200):
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)


def serve(link: socket.socket, run: Callable[[bytes, list[int]], None]) -> None:
    """The nursery's side: fork for each request until the supervisor is gone. run: what a child does, then ends."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    poll.register(link, select.POLLIN)
    poll.register(reading, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if reading in ready:
            os.read(reading, 4096)
            _reap(link)
        if link.fileno() in ready:
            fds = _take(link)
            if fds is None:
                return
            pid = os.fork()
            if not pid:
                os.close(reading)
                os.close(writing)
                _become_worker(link, fds, run)
            pidfd = os.pidfd_open(pid)
            with contextlib.suppress(OSError):
                socket.send_fds(link, [PID.pack(pid)], [pidfd])
            for fd in (pidfd, *fds):
                os.close(fd)


def _take(link: socket.socket) -> list[int] | None:
    """One request's file descriptors; None if the supervisor is gone."""
    try:
        head = link.recv(COUNT.size)
        if not head:
            return None
        (count,) = COUNT.unpack(head)
        fds: list[int] = []
        while len(fds) < count:
            data, group, _, _ = socket.recv_fds(link, 1, GROUP)
            if not data:
                return None
            fds += group
        return fds
    except OSError:
        return None


def _reap(link: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with contextlib.suppress(OSError):
                link.send(ENDED.pack(-pid, status))


def _become_worker(link: socket.socket, fds: list[int], run: Callable[[bytes, list[int]], None]) -> None:
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        link.close()
        with os.fdopen(fds[0], "rb") as file:
            file.seek(0)
            plan = file.read()
        run(plan, fds[1:])
        status = 0
    finally:
        os._exit(status)


def _load() -> None:
    """Have all that a worker needs, where no collection will look at it: what is written to is shared no more."""
    import encodings.idna  # noqa: F401 (getaddrinfo uses it)

    from kdns.plugins import MODULES
    from kdns.server import worker  # noqa: F401

    for name in _USUAL:
        MODULES[name]
    gc.collect()
    gc.freeze()


def _serve(link: socket.socket) -> None:
    from kdns.server import worker

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text("kdns-nursery")
    serve(link, lambda plan, fds: worker.run(pickle.loads(plan), fds))  # noqa: S301


if __name__ == "__main__":
    _load()
    _serve(socket.socket(fileno=int(sys.argv[1])))
