"""A Corefile of CoreDNS, line by line: what works unchanged, what differs, what is not supported.

The files of a pod are looked at without being there: paths in a Corefile mean files that were handed over, or none.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from kdns import plugins
from kdns.corefile import lexer, parser
from kdns.corefile.config import Config
from kdns.corefile.lexer import Token
from kdns.corefile.parser import Part
from kdns.errors import ConfigError, KdnsError, Mistake
from kdns.node.configmap import KubeDns
from kdns.node.template import REFUSED, Values, fill
from kdns.plugins import absent
from kdns.tools import differences

NODE = Values(("169.254.20.10", "10.96.0.10"), 53, "cluster.local", "kube-dns", "10.96.0.11")
"""What variables of a node's base file are taken for."""
NAMESERVER = "nameserver 192.0.2.1\n"
"""What a file is taken to hold that *forward* reads."""
MARK = "# not supported by kdns: "
_MISSING = "is not supported by this version of kdns"
"""What is said of a directive of CoreDNS."""
_MAX_ROUNDS = 10
_ABSOLUTE = re.compile(r"(?<=\s)(\"?)(/\S+)")


class Verdict(StrEnum):
    """What becomes of a line of a Corefile, or of a thing that an object says."""

    UNCHANGED = "unchanged"
    DIFFERS = "differs"
    UNSUPPORTED = "not supported"
    CARRIED = "carried over"
    REPLACED = "kdns's own"
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True)
class Finding:
    """What becomes of one thing. where: FILE:LINE, or an object. what: the line itself, or the thing."""

    where: str
    verdict: Verdict
    what: str
    why: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """A Corefile, or a file that it may import. path: in the pod, absolute. file, line: where the text was found."""

    path: str
    text: str
    file: str
    line: int = 1

    def where(self, line: int) -> str:
        """FILE:LINE of one of its lines, counted from 1."""
        return f"{self.file}:{self.line + line - 1}"


@dataclass(slots=True, eq=False)
class Statement:
    """A line of a Corefile with the block that it opens. first, last: lines, counted from 1."""

    words: list[Token]
    first: int
    last: int
    above: Statement | None
    inner: list[Statement] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its first word."""
        return self.words[0].text


@dataclass(frozen=True, slots=True)
class Judgement:
    """What kdns makes of a Corefile.

    findings: a line each, of the files that are read. mistakes: by path and line. config: what would be served; None if
    there are mistakes. read: paths of the sources that are imported, and of the Corefile.
    """

    findings: tuple[Finding, ...]
    mistakes: Mapping[str, Mapping[int, tuple[Mistake, ...]]]
    config: Config | None
    read: frozenset[str]


def judge(sources: Sequence[Source], environ: Mapping[str, str], port: int = 53, *, node: bool = False) -> Judgement:
    """Look at a Corefile, the first source, and what it imports of the others; the rest are files that it may name.

    environ: the container's. port: of server blocks that name none. node: it is the base file of a node.
    """
    with tempfile.TemporaryDirectory(prefix="kdns-migrate-") as folder:
        look = _Look(Path(folder), sources, node)
        return look.judge(environ, port)


class _Look:
    """The files of a pod in a folder, so that imports find them. Paths in them lead there."""

    def __init__(self, root: Path, sources: Sequence[Source], node: bool) -> None:
        self._root = root
        self._sources = sources
        self._node = node
        self._statements = {source.path: statements(source) for source in sources}
        self._tls: set[tuple[str, int]] = set()
        for source in sources:
            path = self._path(source.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._with_own_paths(source))

    def judge(self, environ: Mapping[str, str], port: int) -> Judgement:
        main = self._sources[0]
        environ = {name: self._known_here(value) for name, value in environ.items()}
        parts = [Part(self._path(main.path).read_bytes(), str(self._path(main.path)))]
        found: dict[str, dict[int, list[Mistake]]] = {}
        config = None
        notes: dict[tuple[str, int], list[str]] = {}
        read = {main.path}
        try:
            if self._node:
                parts = fill(parts[0].data, parts[0].file, NODE, KubeDns())
            parsed = parser.parse_parts(parts, environ, port)
            read |= {self._known(file) for file in parsed.files}
            for block in parsed.blocks:
                for directive in block.directives:
                    for note in differences.notes(directive):
                        notes.setdefault((self._known(note.file), note.line), []).append(note.text)
            config = plugins.load_parts(
                parts, environ=environ, default_port=port, refused=REFUSED if self._node else None
            )
        except ConfigError as error:
            for mistake in error.mistakes:
                found.setdefault(self._known(mistake.file), {}).setdefault(mistake.line, []).append(mistake)
        for path, line in self._tls:
            notes.setdefault((path, line), []).append("The files are not looked at here.")
        mistakes = {path: {line: tuple(each) for line, each in lines.items()} for path, lines in found.items()}
        sources = [source for source in self._sources if source.path in read]
        findings = tuple(self._findings(sources, mistakes, notes))
        return Judgement(findings, mistakes, config, frozenset(source.path for source in sources))

    def _path(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def _known(self, file: str) -> str:
        """The path in the pod of a file in the folder."""
        return file.removeprefix(str(self._root))

    def _with_own_paths(self, source: Source) -> str:
        """A text with the same lines, in which what is read at once is read from the folder."""
        lines = source.text.split("\n")
        for statement in self._statements[source.path]:
            at = statement.first - 1
            if statement.name == "import":
                for word in statement.words[2:]:  # arguments: *forward* may read them
                    if word.text.startswith("/"):
                        self._stand_in(word.text)
                lines[at] = _ABSOLUTE.sub(rf"\g<1>{self._root}\g<2>", lines[at])
            elif statement.name == "forward" and statement.above is not None:
                for path in re.findall(_ABSOLUTE, lines[at]):
                    self._stand_in(path[1].strip('"'))
                lines[at] = _ABSOLUTE.sub(rf"\g<1>{self._root}\g<2>", lines[at])
            elif statement.name == "tls" and statement.above is not None and statement.above.name == "forward":
                lines[at : statement.last] = [""] * (statement.last - at)
                self._tls.add((source.path, statement.first))
        return "\n".join(lines)

    def _known_here(self, value: str) -> str:
        """The value of a variable; a path leads to the folder."""
        if not value.startswith("/"):
            return value
        self._stand_in(value)
        return f"{self._root}{value}"

    def _stand_in(self, path: str) -> None:
        """Put something where nothing is known of a file."""
        file = self._path(path)
        if all(source.path != path for source in self._sources) and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(NAMESERVER)

    def _findings(
        self,
        sources: Sequence[Source],
        mistakes: Mapping[str, Mapping[int, tuple[Mistake, ...]]],
        notes: Mapping[tuple[str, int], list[str]],
    ) -> Iterator[Finding]:
        told: dict[tuple[str, ...], str] = {}
        for source in sources:
            lines = source.text.split("\n")
            wrong = {line: tuple(map(self._told, each)) for line, each in mistakes.get(source.path, {}).items()}
            for statement in self._statements[source.path]:  # what is in a block goes with it
                if statement.above is not None and statement.above.first in wrong:
                    wrong.setdefault(statement.first, (f"Part of {source.where(statement.above.first)}.",))
            for line in sorted({*(each.first for each in self._statements[source.path]), *wrong}):
                where, what = source.where(line), lines[line - 1].strip() if line <= len(lines) else ""
                if line in wrong:
                    yield Finding(where, Verdict.UNSUPPORTED, what, tuple(dict.fromkeys(wrong[line])))
                elif (source.path, line) in notes:
                    why = tuple(dict.fromkeys(notes[source.path, line]))
                    same = told.setdefault(why, where)
                    yield Finding(where, Verdict.DIFFERS, what, why if same == where else (f"As in {same}.",))
                else:
                    yield Finding(where, Verdict.UNCHANGED, what)
        for path in mistakes.keys() - {source.path for source in self._sources}:
            for line, each in mistakes[path].items():
                yield Finding(f"{path}:{line}", Verdict.UNSUPPORTED, "", tuple(map(self._told, each)))

    def _told(self, mistake: Mistake) -> str:
        name, _, rest = mistake.message.partition(" ")
        if name in absent.INSTEAD and rest == _MISSING:
            return f"{mistake.message}; instead: {absent.INSTEAD[name]}"
        text = f"{mistake.message}; accepted: {mistake.accepted}" if mistake.accepted else mistake.message
        return text.replace(str(self._root), "")


def statements(source: Source) -> list[Statement]:
    """The lines of a Corefile that say something, those in blocks too, in their order."""
    tokens = lexer.tokenize(source.text, source.path, {}, [])
    found: list[Statement] = []
    open_blocks: list[Statement] = []
    starts = True
    for token in tokens:
        last = token.line + token.text.count("\n")
        if token.closes:
            if open_blocks:
                open_blocks.pop().last = token.line
            starts = True
        elif token.opens:
            if found:
                open_blocks.append(found[-1])
            starts = True
        elif starts or (token.starts_line and not _goes_on(found, open_blocks)):
            above = open_blocks[-1] if open_blocks else None
            statement = Statement([token], token.line, last, above)
            if above is not None:
                above.inner.append(statement)
            found.append(statement)
            starts = False
        else:
            found[-1].words.append(token)
            found[-1].last = max(found[-1].last, last)
    return found


def _goes_on(found: Sequence[Statement], open_blocks: Sequence[Statement]) -> bool:
    """Whether the zones of a server block go on in the next line, behind a comma."""
    return not open_blocks and bool(found) and found[-1].words[-1].text.endswith(",")


# Without what is not supported


def without(
    sources: Sequence[Source], environ: Mapping[str, str], port: int = 53, *, node: bool = False
) -> list[Source]:
    """The sources with everything commented out that kdns refuses, each with the reason.

    Raises KdnsError if no working Corefile is left, or where lines cannot be taken apart.
    """
    found = list(sources)
    for _ in range(_MAX_ROUNDS):
        judgement = judge(found, environ, port, node=node)
        if judgement.config is not None:
            return found
        changed = [_commented(source, judgement.mistakes.get(source.path, {})) for source in found]
        if changed == found:
            break
        found = changed
    left = [finding for finding in judgement.findings if finding.verdict is Verdict.UNSUPPORTED]
    told = "\n".join(f"{finding.where}: {'; '.join(finding.why)}" for finding in left)
    raise KdnsError(f"without what is not supported there is no Corefile that works:\n{told}")


def _commented(source: Source, mistakes: Mapping[int, tuple[Mistake, ...]]) -> Source:
    """One file without the statements that have mistakes."""
    all_of_it = statements(source)
    reasons: dict[int, str] = {}
    for line, why in sorted(mistakes.items()):
        statement = _at(all_of_it, line)
        if statement is None:
            continue
        while _left_alone(statement, reasons, all_of_it):
            assert statement.above is not None
            statement = statement.above
        reasons.setdefault(all_of_it.index(statement), why[0].message)
    reasons = {
        index: reason
        for index, reason in reasons.items()
        if not any(_holds(all_of_it[other], all_of_it[index]) for other in reasons)
    }
    lines = source.text.split("\n")
    for index, reason in sorted(reasons.items(), reverse=True):
        statement = all_of_it[index]
        _require_own_lines(source, statement, all_of_it)
        lines[statement.first - 1 : statement.last] = _as_comment(lines[statement.first - 1 : statement.last], reason)
    return Source(source.path, "\n".join(lines), source.file, source.line)


def _at(found: Iterable[Statement], line: int) -> Statement | None:
    """The innermost statement that a line belongs to."""
    around = [each for each in found if each.first <= line <= each.last]
    return max(around, key=lambda each: (each.first, -each.last), default=None)


def _left_alone(statement: Statement, gone: Mapping[int, str], found: Sequence[Statement]) -> bool:
    """Whether a server block would have nothing left without a statement: it would answer REFUSED for its zones."""
    above = statement.above
    if above is None or above.above is not None:
        return False
    return all(each is statement or found.index(each) in gone for each in above.inner)


def _require_own_lines(source: Source, statement: Statement, found: Sequence[Statement]) -> None:
    def is_inside(other: Statement | None) -> bool:
        while other is not None and other is not statement:
            other = other.above
        return other is not None

    for other in found:
        shares = other.first in (statement.first, statement.last) or other.last in (statement.first, statement.last)
        if shares and not is_inside(other) and not _holds(other, statement):
            where = source.where(statement.first)
            raise KdnsError(f"{where}: {statement.name} shares its line with others; write it in lines of its own")
    above = statement.above
    if above is not None and (above.first == statement.first or above.last == statement.last):
        where = source.where(statement.first)
        raise KdnsError(f"{where}: {statement.name} stands beside a brace; write it in lines of its own")


def _holds(outer: Statement, inner: Statement) -> bool:
    above = inner.above
    while above is not None:
        if above is outer:
            return True
        above = above.above
    return False


def _as_comment(lines: Sequence[str], reason: str) -> list[str]:
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    margin = lines[0][:indent]
    return [f"{margin}{MARK}{reason}", *(f"{margin}# {line[indent:]}".rstrip() for line in lines)]


def directives(config: Config, name: str) -> list[object]:
    """The options of a plugin in all server blocks that have it."""
    return [block.plugins[name] for block in config.blocks if name in block.plugins]
