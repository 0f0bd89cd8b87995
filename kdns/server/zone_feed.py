"""The zones of a `file` or `auto` directive, read from master files and followed into the store.

Files are looked at every so often, as the directive says, and read in a process of their own (`kdns.zone.masterfile`).
All that a look has found is written in one transaction. A file that cannot be used leaves its zone as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kdns.corefile.config import ServerConfig
from kdns.errors import ConfigError, ConfigValueError, Mistake, StoreError
from kdns.observe.logs import Log
from kdns.plugins import auto, file
from kdns.wire import names
from kdns.zone import masterfile
from kdns.zone.masterfile import Result
from kdns.zone.store import SYNCED, Store, Transaction, Zone

SETTLED = 0.5
"""Seconds for which a file has not been changed when it is read again: somebody may be writing it."""
RETRY_SECONDS = 1.0

Files = dict[bytes, Path]
"""A master file for each origin."""


class ZonePublication:
    """What a directive publishes. block: its server block. source: what its zones are kept under.

    synced: there is something to answer from. origin: where it comes from, in words.
    """

    def __init__(
        self,
        directive: str,
        block: ServerConfig,
        source: str,
        names_of: tuple[str, ...],
        origin: str,
        store: Store,
        log: Log,
        committed: Callable[[], None],
        refused: Callable[[], None],
    ) -> None:
        """names_of: the zones that the directive names. committed, refused: as for Publication."""
        self.directive = directive
        self.block = block
        self.source = source
        self.names = names_of
        self.origin = origin
        self.log = log
        self.synced = False
        self._store = store
        self._committed = committed
        self._refused = refused
        self._records: dict[bytes, int] = {}

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return self.origin

    def counts(self) -> dict[str, int]:
        """How many records were read."""
        return {"records": sum(self._records.values())}

    def zones(self) -> dict[bytes, Zone]:
        """Those in the store, by origin."""
        return {zone.origin: zone for zone in self._store.read(Transaction.zones) if zone.source == self.source}

    def declare(self, origins: Iterable[bytes]) -> None:
        """Let these zones be there, if without any data: their names are SERVFAIL then. Raises StoreError."""

        def action(txn: Transaction) -> None:
            for origin in origins:
                txn.add_zone(self.source, origin, given_serial=True)

        self._store.write(action)

    def write(self, found: Mapping[bytes, Result], gone: Iterable[Zone]) -> None:
        """Write zones, and drop some, in one transaction. Raises StoreError; then nothing has happened."""

        def action(txn: Transaction) -> None:
            for origin, result in found.items():
                zone = txn.add_zone(self.source, origin, given_serial=True)
                txn.replace(zone, result.rows)
                txn.set_state(zone, SYNCED)
            for zone in gone:
                txn.drop_zone(zone)

        try:
            self._store.write(action)
        except StoreError:
            self._refused()
            raise
        self._committed()
        for zone in gone:
            self._records.pop(zone.origin, None)
        self._records |= {origin: result.records for origin, result in found.items()}


@dataclass(slots=True)
class _Known:
    """A master file as it was last read.

    seen: all files that it consists of, as they were. serial: that was taken since this process runs, None if none was.
    young: they had been changed just then, and may have been incomplete; was_young: when the serial was taken. problem:
    why they cannot be used.
    """

    path: Path
    seen: dict[str, str] = field(default_factory=dict)
    serial: int | None = None
    young: bool = False
    was_young: bool = False
    problem: Mistake | None = None


class ZoneFeed:
    """One directive's files, published and followed. publication: where to."""

    startup_timeout = 0.0
    """Where a start has to wait for files, it does so before anything else."""
    of_cluster: Literal[False] = False
    may_lack = True

    def __init__(
        self,
        publication: ZonePublication,
        look: Callable[[], Files],
        reload: float,
        fixed: Files,
        turns: asyncio.Semaphore,
    ) -> None:
        """look: which files there are now; raises OSError. reload: seconds between looks, 0 for one look only. fixed:
        files that the directive names, be they there or not. turns: how many of all feeds may read at once.

        Raises StoreError.
        """
        self._turns = turns
        self.publication = publication
        self._look = look
        self._reload = reload
        self._known: dict[bytes, _Known] = {}
        self._trouble = ""
        self._looked = False
        self._pause = reload
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False
        publication.declare(fixed)
        zones = publication.zones()
        publication.synced = bool(zones) and all(zone.state == SYNCED for zone in zones.values())

    @property
    def read_first(self) -> bool:
        """Whether a start has nothing to answer from before the files are read."""
        return not self.publication.synced

    @property
    def problems(self) -> int:
        """Files that cannot be used; of their zones, what was read before is served."""
        return sum(known.problem is not None for known in self._known.values()) + bool(self._trouble)

    def age(self) -> float | None:
        """Files are as old as they are."""
        return None

    async def load(self) -> None:
        """Read all files. Raises ConfigError for mistakes in those whose zones have no data from before."""
        await self._in_thread(self._all)
        self._looked = True
        lacking = {origin for origin, zone in self.publication.zones().items() if zone.state != SYNCED}
        mistakes = []
        for origin in lacking & self._known.keys():
            problem = self._known[origin].problem
            if problem is not None and (self._known[origin].seen or not self._reload):
                mistakes.append(problem)
        if mistakes:
            raise ConfigError(mistakes)

    async def follow(self) -> None:
        """Read all files, if that was not done, and from then on those that change."""
        while True:
            if not self._looked:
                await self._in_thread(self._all)
                self._looked = True
            if not self._reload:
                await asyncio.Event().wait()
            await asyncio.sleep(self._pause)
            await self._in_thread(self._changed)

    async def loaded(self) -> None:
        """Nobody has to wait."""

    async def stop(self) -> None:
        """End what runs."""
        self._stopped = True
        child = self._child
        if child is not None:
            child.kill()

    async def _in_thread(self, steps: Callable[[], None]) -> None:
        """Take steps that block. They have ended when this ends, however that is."""
        async with self._turns:
            self._stopped = False
            working = asyncio.ensure_future(asyncio.to_thread(steps))
            try:
                await asyncio.shield(working)
            except asyncio.CancelledError:
                await self.stop()
                await asyncio.wait((working,))
                raise

    # In a thread

    def _all(self) -> None:
        self._take(first=True)

    def _changed(self) -> None:
        self._take(first=False)

    def _take(self, *, first: bool) -> None:
        """Look at the files, read those that have changed, and write their zones."""
        self._pause = self._reload
        try:
            wanted = self._look()
            self._complain("")
        except OSError as error:
            self._complain(
                f"{error.filename}: {(error.strerror or 'cannot be read').lower()}; its zones stay as they were"
            )
            return
        there = self.publication.zones()
        gone = [zone for origin, zone in there.items() if origin not in wanted]
        for origin in self._known.keys() - wanted.keys():
            del self._known[origin]
        jobs = {origin: path for origin, path in wanted.items() if self._is_due(origin, path, first=first)}
        with contextlib.ExitStack() as files:
            found = dict(self._read(jobs, files))
            taken = {origin: result for origin, result in found.items() if self._accepts(origin, result, there)}
            if self._stopped:
                return
            try:
                if taken or gone:
                    self.publication.write(taken, gone)
            except StoreError as error:
                self.publication.log.error(f"{error}; answers stay as they are until it can be written", key="store")
                self._pause = RETRY_SECONDS
                for origin in taken:
                    self._known[origin].seen.clear()
                    self._known[origin].serial = None
                return
        self._tell(taken, gone)
        self.publication.synced = all(zone.state == SYNCED for zone in self.publication.zones().values())

    def _is_due(self, origin: bytes, path: Path, *, first: bool) -> bool:
        """Whether a file is to be read now."""
        known = self._known.get(origin)
        if known is None or known.path != path:
            serial = known.serial if known is not None else None
            known = self._known[origin] = _Known(path, serial=serial, problem=known.problem if known else None)
        seen = {name: _digest(name) for name in known.seen or (str(path),)}
        if known.seen == seen:
            return False
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # it may never end, or never begin
                raise OSError(errno.EINVAL, "is no file", str(path))
            age = time.time() - max(Path(name).stat().st_mtime for name in seen)
        except OSError as error:
            missing = Mistake(
                str(error.filename), 1, (error.strerror or "cannot be read").lower(), "a file that can be read"
            )
            if str(error.filename) == str(path):
                self._refuse(origin, missing)
                known.seen = {}
                return False
            age = SETTLED
        known.young = 0 <= age < SETTLED
        if known.young and not first:
            self._pause = min(self._reload, SETTLED)
            return False
        return True

    def _read(self, jobs: Files, files: contextlib.ExitStack) -> Iterator[tuple[bytes, Result]]:
        """What came of reading files. It is there until `files` is closed. One that ends the reader is a problem."""
        waiting = list(jobs.items())
        while waiting and not self._stopped:
            fd = os.memfd_create("kdns-zones", os.MFD_CLOEXEC)
            files.callback(os.close, fd)
            before = {origin: _digest(str(path)) for origin, path in waiting}
            command = [sys.executable, "-m", masterfile.__name__]
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=fd)
            if self._stopped:
                self._child.kill()
            self._child.communicate(masterfile.jobs((str(path), origin) for origin, path in waiting))
            ended = self._child.returncode
            self._child = None
            found = masterfile.results(fd)
            for (origin, _), result in zip(waiting, found, strict=False):
                known = self._known[origin]
                known.seen = {name: _digest(name) for name in result.files} | {result.files[0]: before[origin]}
                yield origin, result
            waiting = waiting[len(found) :]
            if waiting and not self._stopped:
                origin, path = waiting.pop(0)
                # What was killed may have been so for others that took the memory: it is read again at the next look.
                self._known[origin].seen = {str(path): before[origin]} if ended >= 0 else {}
                self._refuse(origin, _too_much(str(path), ended))

    def _accepts(self, origin: bytes, result: Result, there: Mapping[bytes, Zone]) -> bool:
        """Whether what was read takes the place of what is there; if not, why is said."""
        known = self._known[origin]
        if result.mistake is not None:
            self._refuse(origin, result.mistake)
            return False
        self._refuse(origin, None)
        zone = names.to_text(origin)
        if result.outside is not None:
            more = f"; {result.outsiders} such records are left out" if result.outsiders > 1 else "; it is left out"
            self.publication.log.warning(f"{result.outside}{more}")
        before, known.serial = known.serial, result.serial
        was_young, known.was_young = known.was_young, known.young
        if before is None or origin not in there:
            return True
        if before == result.serial and not was_young:
            text = f"{known.path}: has changed, and its serial has not ({before}); zone {zone} stays as it was"
            self.publication.log.warning(text)
            return False
        if (result.serial - before) & 0xFFFFFFFF >= 1 << 31:
            text = f"{known.path}: the serial of {zone} went back from {before} to {result.serial}"
            self.publication.log.warning(f"{text}; secondaries do not follow that (RFC 1982)")
        return True

    def _refuse(self, origin: bytes, problem: Mistake | None) -> None:
        """Keep in mind why a file cannot be used, None if it can be, and say so once."""
        known = self._known[origin]
        if problem is not None and problem != known.problem:
            self.publication.log.error(f"{problem}; zone {names.to_text(origin)} stays as it was")
        elif problem is None and known.problem is not None:
            self.publication.log.info(f"{known.path}: can be used again")
        known.problem = problem

    def _complain(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            self.publication.log.error(trouble)
        self._trouble = trouble

    def _tell(self, taken: Mapping[bytes, Result], gone: Iterable[Zone]) -> None:
        for origin, result in taken.items():
            text = f"zone {names.to_text(origin)}: serial {result.serial}, {result.records} records"
            self.publication.log.info(f"{text}, of {self._known[origin].path}")
        for zone in gone:
            self.publication.log.info(f"zone {names.to_text(zone.origin)}: its file is gone, and so is the zone")


def unusable(blocks: Iterable[ServerConfig]) -> list[Mistake]:
    """What is wrong with files of `file`, and would keep a server from starting that has no data from before."""
    mistakes, jobs = [], []
    for each in (each for block in blocks if file.NAME in block.plugins for each in block.plugins[file.NAME].files):
        for origin, path in of_file(each).items():
            if path.exists():
                jobs.append((str(path), origin))
            elif not each.reload:
                mistakes.append(Mistake(str(path), 1, "no such file or directory", "a file that can be read"))
    if jobs:
        with tempfile.TemporaryFile() as rows:
            command = [sys.executable, "-m", masterfile.__name__]
            ended = subprocess.run(command, input=masterfile.jobs(jobs), stdout=rows, check=False).returncode
            found = masterfile.results(rows.fileno())
        mistakes += [result.mistake for result in found if result.mistake is not None]
        if len(found) < len(jobs):
            mistakes.append(_too_much(jobs[len(found)][0], ended))
    return list(dict.fromkeys(mistakes))


def _too_much(path: str, ended: int) -> Mistake:
    """What is said of a file that has ended the process that read it."""
    return Mistake(path, 1, f"what read it has ended with {ended}", "a smaller file")


def _digest(path: str) -> str:
    """What is different when a file is."""
    try:
        info = Path(path).stat()
    except OSError:
        return ""
    return f"{info.st_mtime_ns}-{info.st_size}-{info.st_ino}"


# Which files


def of_file(each: file.File) -> Files:
    """The file of a `file` directive, for each of its zones."""
    path = Path(os.path.abspath(each.path))  # noqa: PTH100 - resolve() would follow links
    return {names.lower(names.from_text(zone)): path for zone in each.zones}


def of_auto(options: auto.Options, warn: Callable[[str], None]) -> Files:
    """The files in the folder of an `auto` directive, and in those below it, that have a zone.

    Neither hidden files and folders, which a mounted ConfigMap has, nor links to folders. Of several files with one
    zone the first one counts, in the order of their names. warn: called with a sentence about each that does not, and
    about folders that are not for us (`lost+found`). Raises OSError if the folder cannot be read.
    """
    origin_of = options.origins()
    found: Files = {}
    top = Path(os.path.abspath(options.directory))  # noqa: PTH100
    for path in _below(top, warn):
        try:
            zone = origin_of(path.name)
        except ConfigValueError as error:
            warn(f"{path}: its name makes no zone: {error}")
            continue
        if zone is None:
            continue
        origin = names.lower(names.from_text(zone))
        if origin in found:
            warn(f"{path}: {zone} is also the zone of {found[origin]}, which counts")
        found.setdefault(origin, path)
    return found


def _below(folder: Path, warn: Callable[[str], None]) -> Iterator[Path]:
    folders = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            folders.append(Path(entry.path))
        elif _is_file(entry):
            yield Path(entry.path)
    for below in folders:
        if os.access(below, os.R_OK | os.X_OK, effective_ids=True):
            yield from _below(below, warn)
        else:
            warn(f"{below}: permission denied; it is passed over")


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:  # a link that leads nowhere
        return False
