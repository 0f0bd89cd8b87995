"""The worker processes: started, replaced when they end, exchanged for others on a reload."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kdns.errors import KdnsError
from kdns.observe import notes
from kdns.observe.counters import Region, Totals
from kdns.observe.logs import Log
from kdns.server import worker
from kdns.server.nursery import Nursery
from kdns.server.plan import Place, Plan
from kdns.zone.changes import Changes

if TYPE_CHECKING:
    from kdns.server.certificates import Keyring

START_SECONDS = 10.0
STOP_SECONDS = worker.PATIENCE * 2 + 2.0
HANGING_SECONDS = 10
"""A worker that has not shown for so long that it is well is replaced. It loses what it has cached, so this is not for
one that a busy machine does not let run: seconds in which we were kept waiting ourselves do not count."""
SILENT_SECONDS = 2
"""One that has not shown it for so long is not counted upon."""
_LATE = 0.25
_HEALTHY = 1.0
_LONGEST_PAUSE = 5.0

Sockets = Mapping[tuple[Place, int], socket.socket]
"""Listening sockets by where they listen and the index of the worker that has them."""


@dataclass(frozen=True, slots=True)
class Worker:
    """How a worker is. since: when its process was started, of time.time(). well: whether it is counted upon."""

    index: int
    pid: int
    since: float
    well: bool


@dataclass(eq=False, slots=True)
class Process:
    """A worker process. since: when it was started, of time.time(). ended: set when it is gone."""

    pid: int
    pidfd: int
    control: socket.socket
    region: Region
    since: float
    ended: asyncio.Event

    def kill(self) -> None:
        """End it at once."""
        if not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class Crew:
    """The workers of one configuration, one for each index, each kept running until `stop`."""

    def __init__(
        self,
        plan: Plan,
        count: int,
        sockets: Sockets,
        staff: Staff,
        tell: Callable[[bool], None] = lambda _: None,
        keyring: Keyring | None = None,
        heard: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        """tell: is called when no worker answers any more (False), and when one does again (True). heard: with what
        workers say besides.
        """
        self.count = count
        self._tell = tell
        self._heard = heard
        self._keyring = keyring
        self._well: set[int] = set()
        self._plan = plan
        self._sockets = sockets
        self._staff = staff
        self._processes: dict[int, Process] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    @property
    def pids(self) -> list[int]:
        """The processes that are running."""
        return [process.pid for process in self._processes.values() if not process.ended.is_set()]

    @property
    def workers(self) -> list[Worker]:
        """Those whose processes are running, by their index. In any thread."""
        found = sorted(self._processes.copy().items())
        return [
            Worker(index, process.pid, process.since, index in self._well)
            for index, process in found
            if not process.ended.is_set()
        ]

    async def start(self) -> None:
        """Start all workers and wait until they answer.

        Raises KdnsError if one does not, and then none is left; nor is one if this is cancelled.
        """
        starting = asyncio.gather(*(self._start(index) for index in range(self.count)), return_exceptions=True)
        try:
            started = await asyncio.shield(starting)
        except asyncio.CancelledError:
            await starting
            await self.stop()
            raise
        failed = [result for result in started if isinstance(result, BaseException)]
        if failed:
            await self.stop()
            raise failed[0]
        self._keepers = [asyncio.create_task(self._keep(index)) for index in range(self.count)]

    async def stop(self, *, leaving: bool = False) -> None:
        """Let the workers finish what they have in hand, and wait until they are gone.

        One that is being started is waited for: if nobody followed it, it would take the supervisor for dead.
        leaving: nobody will read the workers' sockets after them.
        """
        self._stopping.set()
        for process in self._processes.values():
            with contextlib.suppress(OSError):
                process.control.send(worker.LEAVE if leaving else worker.STOP)
        waits = [process.ended.wait() for process in self._processes.values()]
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.gather(*waits)
        except TimeoutError:
            for process in self._processes.values():
                process.kill()
        if self._keepers:
            _, stuck = await asyncio.wait(self._keepers, timeout=2 * START_SECONDS)
            for keeper in stuck:
                keeper.cancel()
        for process in self._processes.values():
            self._hang_up(process)

    async def _start(self, index: int) -> None:
        plan = replace(self._plan, index=index)
        if self._keyring is not None:
            plan = replace(plan, materials=self._keyring.materials())
        sockets = [self._sockets[place, index] for place in plan.places]
        process = await self._staff.hire(plan, sockets)
        self._processes[index] = process
        if self._stopping.is_set():
            process.kill()
        loop = asyncio.get_running_loop()
        ready = asyncio.create_task(loop.sock_recv(process.control, 16))
        ended = asyncio.create_task(process.ended.wait())
        done, pending = await asyncio.wait((ready, ended), timeout=START_SECONDS, return_when="FIRST_COMPLETED")
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        if ready not in done or ready.exception() is not None or ready.result() != worker.READY:
            process.kill()
            raise KdnsError(f"worker {index} (process {process.pid}) did not begin to answer")
        loop.add_reader(process.control, self._hear, process)
        self._note(index, well=True)

    def _hear(self, process: Process) -> None:
        try:
            said = process.control.recv(1024)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if said:
            self._heard(said)
        else:
            asyncio.get_running_loop().remove_reader(process.control)

    def _hang_up(self, process: Process) -> None:
        if process.control.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(process.control)
        process.control.close()

    def _note(self, index: int, *, well: bool) -> None:
        before = bool(self._well)
        if well:
            self._well.add(index)
        else:
            self._well.discard(index)
        if bool(self._well) != before:
            self._tell(not before)

    async def _keep(self, index: int) -> None:
        """Replace the worker of an index whenever it ends; at once, unless it keeps ending."""
        pause = 0.0
        while True:
            started = time.monotonic()
            await self._end_of(index)
            if self._stopping.is_set():
                return
            self._note(index, well=False)
            self._hang_up(self._processes[index])
            pause = 0.0 if time.monotonic() - started > _HEALTHY else min(max(0.1, pause * 2), _LONGEST_PAUSE)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
                return
            self._staff.restarted()
            try:
                await self._start(index)
            except KdnsError as error:
                if not self._stopping.is_set():
                    self._staff.log.error(str(error), kind="worker not started")

    async def _end_of(self, index: int) -> None:
        """Wait until a worker has ended; one that hangs is ended."""
        process = self._processes[index]
        beats, silent = -1, 0
        while True:
            due = time.monotonic() + 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.ended.wait(), 1)
            if process.ended.is_set():  # its counters are gone
                return
            late = time.monotonic() - due > _LATE
            if process.region.beats != beats:
                beats, silent = process.region.beats, 0
                self._note(index, well=True)
            elif not late:
                silent += 1
            if silent >= SILENT_SECONDS:
                self._note(index, well=False)
            if silent >= HANGING_SECONDS:
                self._staff.log.error(f"worker process {process.pid} hangs, and is replaced", kind="worker hangs")
                process.kill()
                silent = 0


class Staff:
    """Starts worker processes and follows what becomes of them."""

    def __init__(self, nursery: Nursery, totals: Totals, own: Region, changes: Changes, log: Log) -> None:
        self.log = log
        self._totals = totals
        self._own = own
        self._changes = changes
        self._nursery = nursery
        nursery.ended = self._ended

    @property
    def nursery_pid(self) -> int:
        """The process that workers are forked from."""
        return self._nursery.pid

    async def hire(self, plan: Plan, sockets: list[socket.socket]) -> Process:
        """Start a worker. Raises KdnsError. Not to be cancelled: the worker would be there, and nobody's."""
        try:
            try:
                process = await self._hire(plan, sockets)
            except OSError:
                process = await self._hire(plan, sockets)
        except OSError as error:
            raise KdnsError(f"a worker could not be started: {error}") from error
        self._totals.add_region(process.region)
        asyncio.get_running_loop().add_reader(process.pidfd, self._gone, process)
        return process

    async def _hire(self, plan: Plan, sockets: list[socket.socket]) -> Process:
        """Try once, with a control socket and counters of its own.

        The nursery may have ended when the worker was there already, and nobody knows of it: such a worker never hears
        GO, and must share nothing with the next one that it could mistake for its own. Raises OSError.
        """
        with contextlib.ExitStack() as undo:
            region = Region.create()
            undo.callback(region.close)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(ours.close)
            ours.setblocking(False)
            with theirs, os.fdopen(os.memfd_create("kdns-plan", os.MFD_CLOEXEC), "wb") as file:
                file.write(pickle.dumps(plan))
                file.flush()
                fds = [file.fileno(), theirs.fileno(), region.fd, self._changes.fd]
                pid, pidfd = await self._nursery.fork(fds + [sock.fileno() for sock in sockets])
            undo.pop_all()
        with contextlib.suppress(OSError):  # it has ended already
            ours.send(worker.GO)
        return Process(pid, pidfd, ours, region, time.time(), asyncio.Event())

    def restarted(self) -> None:
        """Count a replacement."""
        self._own.count(("count", "kdns_worker_restarts_total"))

    def close(self) -> None:
        """End the process that workers are forked from."""
        self._nursery.close()

    def _gone(self, process: Process) -> None:
        asyncio.get_running_loop().remove_reader(process.pidfd)
        with contextlib.suppress(ChildProcessError):  # it is ours if its parent died and we are process 1
            os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOHANG)
        process.ended.set()
        os.close(process.pidfd)
        for last in notes.read([process.region.board.read()]):
            self.log.recent.merge(last.messages)
        self._totals.retire(process.region)

    def _ended(self, pid: int, status: int) -> None:
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
            self.log.warning(f"worker process {pid} was ended by {name}", kind=f"worker ended by {name}")
        elif status:
            code = os.waitstatus_to_exitcode(status)
            self.log.warning(f"worker process {pid} ended with status {code}", kind=f"worker ended with {code}")
