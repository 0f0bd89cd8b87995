"""Kubernetes objects from files: what `manifests PATH...` names, read once and followed from then on.

A path is a file or a folder. Of a folder count the files that end in .yaml, .yml or .json, in subfolders too, except
hidden ones (a leading dot) and what is below hidden folders. Symbolic links are followed, which with the rule for
hidden ones is what a mounted ConfigMap needs. A file holds any number of objects: YAML documents, JSON documents, lists
of either kind (`kubectl get -o yaml`, `-o json`). Objects of kinds that make no records are passed over.

The unit is the file. One that cannot be read, parsed or understood keeps the objects that it had, and so does one
that is empty (somebody is writing it) and a folder that is gone (a volume that is not mounted). A file that is gone
takes its objects with it. Where several files have the same object, the last counts: files in the order of the given
paths, within a folder in the order of their names.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

from watchfiles import awatch

from kdns.cluster import documents
from kdns.cluster.documents import Content
from kdns.cluster.objects import Key, Object, Packed
from kdns.errors import ConfigError, Mistake

SUFFIXES = (".yaml", ".yml", ".json")
MAX_FILE = 256 << 20
"""Bytes of a file."""

_STEP, _BURST, _PULSE = 20, 200, 400
"""Milliseconds: a burst of changes has ended; it is read though it has not; between two looks at the clock."""
_RESCAN, _RESCAN_UNWATCHED = 10.0, 0.5
"""Seconds after which everything is looked at again, with and without a watch that works."""
_RACY = 100_000_000
"""Nanoseconds: a file changed so shortly before it was read may have changed again without another time stamp."""
_MAX_LINKS = 40


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All objects of all files.

    problems: what is wrong now, files first that could not be used. ignored: objects of kinds that make no records.
    """

    objects: Packed
    problems: tuple[Mistake, ...]
    ignored: int


@dataclass(frozen=True, slots=True)
class Change:
    """What one look at the files found: everything belongs into one transaction.

    put: objects that are new or different. deleted: keys of those that are gone. problems: those that were not there
    before. solved: those that are not there any more.
    """

    put: tuple[Object, ...] = ()
    deleted: tuple[Key, ...] = ()
    problems: tuple[Mistake, ...] = ()
    solved: tuple[Mistake, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.put or self.deleted or self.problems or self.solved)


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it was last read: its last good content, and why that is not what it holds now."""

    digest: str
    content: Content
    problem: Mistake | None = None


@dataclass(slots=True)
class _Look:
    """One look at the file system.

    files: in the order in which they count; None for one that was there and is out of sight. folders: real paths of
    those whose entries matter. links: other paths whose change matters, in real folders. missing: a given path is.
    """

    files: dict[Path, os.stat_result | None] = field(default_factory=dict)
    problems: list[Mistake] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    missing: bool = False

    def watched(self) -> list[str]:
        """The folders to be watched, each without what is below it."""
        folders = self.folders | {os.path.dirname(link) for link in self.links}  # noqa: PTH120
        return sorted(folder for folder in folders if Path(folder).is_dir())

    def concerns(self, path: str) -> bool:
        return path in self.links or os.path.dirname(path) in self.folders  # noqa: PTH120


class ManifestSource:
    """The objects of some files and folders.

    paths: absolute, or relative to the working directory. Nothing is read before `load`.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self._roots = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - resolve() would follow links
        self._look = _Look()
        self._files: dict[Path, _File] = {}
        self._objects = Packed()
        self._problems: tuple[Mistake, ...] = ()

    @property
    def objects(self) -> Packed:
        """All objects, as they were last read."""
        return self._objects

    @property
    def unusable(self) -> list[str]:
        """The files and folders whose objects are not what they hold now, since they cannot be read or understood."""
        files = [str(path) for path, file in self._files.items() if file.problem is not None]
        return sorted({*files, *(problem.file for problem in self._look.problems)})

    def load(self) -> Snapshot:
        """Read what changed since the last time (all, the first time) and return everything."""
        self._reread()
        return Snapshot(
            self._objects,
            self._problems,
            sum(file.content.ignored for file in self._files.values()),
        )

    def refresh(self) -> Change:
        """Read what changed since the last time, and return the difference. Blocks; a bad file raises nothing."""
        before, was = self._objects, self._problems
        self._reread()
        merged, now = self._objects, self._problems
        return Change(
            tuple([merged[key] for key, row in merged.rows.items() if before.rows.get(key) != row]),
            tuple([key for key in before if key not in merged]),
            tuple([problem for problem in now if problem not in was]),
            tuple([problem for problem in was if problem not in now]),
        )

    def _reread(self) -> None:
        self._look = _look(self._roots, self._files)
        files: dict[Path, _File] = {}
        for path, info in self._look.files.items():
            old = self._files.get(path)
            if old is not None and (info is None or old.digest == _digest(info)):
                files[path] = old
            elif info is not None:
                files[path] = _read(path, info, old)
        self._objects, problems = _merge(files)
        self._files = files
        self._problems = tuple(dict.fromkeys(self._look.problems + problems))

    async def changes(self) -> AsyncGenerator[Change, None]:
        """Follow the files for ever: one item for each look that found something, first what changed since the last.

        Closing the generator (`contextlib.aclosing`) ends it. One at a time, and no `load` or `refresh` meanwhile.
        """
        while True:
            try:
                async with aclosing(self._watch()) as changes:
                    async for change in changes:
                        yield change
                continue
            except (OSError, RuntimeError, ExceptionGroup):
                pass  # No inotify, or no more of it: look again and again, and try to get it back.
            if change := await asyncio.to_thread(self.refresh):
                yield change
            await asyncio.sleep(_RESCAN_UNWATCHED)

    async def _watch(self) -> AsyncGenerator[Change, None]:
        """Follow until another set of folders is to be watched.

        Raises OSError, RuntimeError or ExceptionGroup if they cannot be watched.
        """
        if change := await asyncio.to_thread(self.refresh):
            yield change
        folders = self._look.watched()
        if not folders:
            raise FileNotFoundError
        due = 0.0  # What changed before the watch began shows at its first pulse.
        bursts = awatch(
            *folders,
            watch_filter=None,
            debounce=_BURST,
            step=_STEP,
            rust_timeout=_PULSE,
            yield_on_timeout=True,
            recursive=False,
        )
        async with aclosing(bursts):
            async for burst in bursts:
                now = time.monotonic()
                if now < due and not any(self._look.concerns(path) for _, path in burst):
                    continue
                if change := await asyncio.to_thread(self.refresh):
                    yield change
                if self._look.watched() != folders:
                    return
                due = now if self._look.missing else now + _RESCAN


def _look(roots: Iterable[Path], known: Iterable[Path]) -> _Look:
    """known: files that were there before."""
    look = _Look()
    for root in roots:
        look.links.update(_links(root))
        try:
            info = root.stat()
        except OSError as error:
            look.missing = True
            look.problems.append(Mistake(str(root), 1, _text(error), "a file or folder that can be read"))
            gone = isinstance(error, FileNotFoundError)
            _keep(look, [path for path in known if path.is_relative_to(root) and not (gone and path == root)])
            continue
        if stat.S_ISDIR(info.st_mode):
            _walk(root, known, look)
        else:
            _keep(look, [root])
            look.files[root] = info
    return look


def _keep(look: _Look, files: Iterable[Path]) -> None:
    """Move files to the end of the order, out of sight for now."""
    for path in sorted(files):
        look.files.pop(path, None)
        look.files[path] = None


def _walk(root: Path, known: Iterable[Path], look: _Look) -> None:
    """Add what is in a folder. A folder to which links lead in several ways is entered once."""
    found: dict[Path, os.stat_result | None] = {}
    waiting, entered = [root], set()
    while waiting:
        folder = waiting.pop()
        try:
            real = folder.resolve(strict=True)
            entries = sorted(entry.name for entry in os.scandir(folder)) if real not in entered else []
        except OSError as error:
            look.problems.append(Mistake(str(folder), 1, _text(error), "a folder that can be read"))
            found.update(dict.fromkeys(path for path in known if path.is_relative_to(folder)))
            continue
        entered.add(real)
        look.folders.add(str(real))
        for path in [folder / name for name in entries if not name.startswith(".")]:
            try:
                if path.is_symlink():
                    look.links.update(_links(path))
                info = path.stat()
            except OSError as error:
                if path.suffix in SUFFIXES:
                    look.problems.append(Mistake(str(path), 1, _text(error), "a file that can be read"))
                    if not isinstance(error, FileNotFoundError):
                        found[path] = None
                continue
            if stat.S_ISDIR(info.st_mode):
                waiting.append(path)
            elif path.suffix in SUFFIXES:
                found[path] = info
    _keep(look, found)
    look.files.update(found)


def _links(path: Path) -> Iterator[str]:
    """Where a path leads to, and every symbolic link on the way, each as its name in a folder without links."""
    for _ in range(_MAX_LINKS):
        parts = path.parts
        for depth in range(1, len(parts) + 1):
            step = Path(*parts[:depth])
            if step.is_symlink():
                here = step.parent.resolve() / step.name
                yield str(here)
                path = here.parent / step.readlink() / Path(*parts[depth:])
                break
        else:
            yield str(path.resolve())
            return


def _digest(info: os.stat_result) -> str:
    return f"{info.st_mtime_ns}-{info.st_size}-{info.st_ino}"


def _text(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _read(path: Path, info: os.stat_result, old: _File | None) -> _File:
    """Read a file; if that fails, what was good before stays."""
    racy = abs(time.time_ns() - info.st_mtime_ns) < _RACY
    digest = _digest(info) + ("-racy" if racy else "")
    try:
        return _File(digest, _content(path, info))
    except OSError as error:
        problem = Mistake(str(path), 1, _text(error), "a file that can be read")
    except ConfigError as error:
        problem = error.mistakes[0]
    return _File(digest, old.content if old is not None else Content(), problem)


def _content(path: Path, info: os.stat_result) -> Content:
    """Raises OSError or ConfigError."""
    name = str(path)
    if not stat.S_ISREG(info.st_mode):
        raise ConfigError([Mistake(name, 1, "is neither a file nor a folder", "a YAML or JSON file")])
    with path.open("rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ConfigError([Mistake(name, 1, "is too large", f"at most {MAX_FILE >> 20} MB")])
    if not data:
        raise ConfigError([Mistake(name, 1, "is empty", "objects; to remove its objects remove the file")])
    return documents.parse(data, name)


def _merge(files: Mapping[Path, _File]) -> tuple[Packed, list[Mistake]]:
    """The objects that count, and all that is to be told about the files."""
    merged = Packed()
    origin: dict[Key, Path] = {}
    problems = [file.problem for file in files.values() if file.problem is not None]
    for path, file in files.items():
        problems += file.content.problems
        found = file.content.objects
        for key, row in found.rows.items():
            there = merged.rows.setdefault(key, row)
            if there != row and merged[key] != found[key]:
                text = f"{documents.describe(key)} is also in {origin[key]}, and different; this one counts"
                problems.append(Mistake(str(path), file.content.lines.get(key, 1), text))
                merged.rows[key] = row
            origin[key] = path
    return merged, problems
