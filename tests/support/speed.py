"""At which speed kdns is meant to run here: compiled, or as Python.

KDNS_COMPILED in the environment says it: 0 means Python, 1 that everything has to be compiled (`make test` says one
after the other). Without it, what lies beside the sources is used.
"""

from __future__ import annotations

import ast
import os
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
VARIABLE = "KDNS_COMPILED"
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))


def typed(root: Path = ROOT) -> list[Path]:
    """The modules that compile, as their sources."""
    return sorted(path.with_suffix(".py") for path in (root / "kdns").rglob("*.pxd"))


def compiled(root: Path = ROOT) -> dict[Path, Path]:
    """Compiled modules for this interpreter, by their sources, of which some may be gone."""
    found = (root / "kdns").rglob(f"*{SUFFIX}")
    return {path.with_name(path.name.removesuffix(SUFFIX) + ".py"): path for path in found}


def meant() -> bool:
    """Whether kdns is meant to run compiled."""
    word = os.environ.get(VARIABLE)
    return word == "1" or (word != "0" and bool(compiled()))


def fault(root: Path = ROOT) -> str:
    """What is wrong with the compiled modules, if they are used; "" if nothing is."""
    if os.environ.get(VARIABLE) == "0":
        return ""
    found, wanted = compiled(root), typed(root)
    if not found:
        return "nothing is compiled, and KDNS_COMPILED is 1" if os.environ.get(VARIABLE) == "1" else ""
    for source in sorted(found.keys() | set(wanted)):
        name = source.relative_to(root)
        if source not in found:
            return f"{name} is not compiled, and others are"
        if source not in wanted:
            return f"{name} is compiled, and has no types any longer"
        if found[source].stat().st_mtime < max(path.stat().st_mtime for path in (source, source.with_suffix(".pxd"))):
            return f"{name} has changed since it was compiled"
    return ""


# The tests of what compiles


ELSEWHERE = (
    "kdns.cluster", "kdns.node", "kdns.tools",
    "tests.support.apiserver", "tests.support.cluster", "tests.support.node", "tests.support.oci",
)  # fmt: skip
"""What the tests of other things import: how objects become records, the network of a node, tools, API servers."""
ONE_SPEED = "pytestmark = pytest.mark.one_speed"
"""A line of a file whose tests are of processes, files or output, though they reach what compiles."""


def concerns(path: Path) -> bool:
    """Whether the tests of a file are of what compiles, so that they have to pass at both speeds.

    They are if the file, or what it imports of `tests.support` and `tests.fuzz`, imports a module that compiles, or if
    it starts servers; they are not if it imports something of ELSEWHERE, or says ONE_SPEED.
    """
    own = set(_imports(path))
    if ONE_SPEED in path.read_text().splitlines():
        return False
    if any(name == other or name.startswith(f"{other}.") for name in own for other in ELSEWHERE):
        return False
    typed_modules = {".".join(source.relative_to(ROOT).with_suffix("").parts) for source in typed()}
    return bool(_reached(path) & typed_modules) or bool({"tests.support.server.Server", "tests.conftest.Serve"} & own)


def _reached(path: Path) -> set[str]:
    """What a file imports, with what that imports of `tests.support` and `tests.fuzz`."""
    found, waiting = set[str](), [path]
    while waiting:
        for name in _imports(waiting.pop()):
            source = ROOT / f"{name.replace('.', '/')}.py"
            if name not in found and name.startswith(("tests.support.", "tests.fuzz.")) and source.exists():
                waiting.append(source)
            found.add(name)
    return found


@cache
def _imports(path: Path) -> tuple[str, ...]:
    """Every module, or name in one, that a file imports, wherever in it."""

    def names() -> Iterator[str]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    return tuple(names())


# What tests start


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: a process of Python that would not know of its speed is not started."""
    if event == "subprocess.Popen" and VARIABLE in os.environ:
        executable, command, _, environ = arguments
        words = [command] if isinstance(command, str | bytes | os.PathLike) else command
        if environ is not None and VARIABLE not in environ and sys.executable in (executable, *map(str, words)):
            raise AssertionError(f"{VARIABLE} is not in the environment of {command}")
