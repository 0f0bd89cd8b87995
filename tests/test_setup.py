"""setup.py: what has types is compiled where that can be, all of it or nothing, and goes into wheels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support import digs, speed
from tests.support.server import ROOT

PYPROJECT = """\
[build-system]
requires = ["setuptools", "Cython"]
build-backend = "setuptools.build_meta"

[project]
name = "kdns"
version = "1"

[tool.setuptools.packages.find]
include = ["kdns*"]
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of two small modules with types, and our setup.py, compiled in place."""
    if not digs.available("cc"):
        pytest.skip("not installed: cc")
    pytest.importorskip("Cython")
    tmp_path = tmp_path_factory.mktemp("setup")
    (tmp_path / "kdns/below").mkdir(parents=True)
    for name in ("__init__", "below/__init__", "below/first", "second"):
        (tmp_path / f"kdns/{name}.py").write_text("def twice(value: int) -> int:\n    return value + value\n")
    for name in ("below/first", "second"):
        (tmp_path / f"kdns/{name}.pxd").write_text("cpdef long twice(long value) except? -1\n")
    (tmp_path / "pyproject.toml").write_text(PYPROJECT)
    for name in ("setup.py", "MANIFEST.in"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    assert setup(tmp_path, "build_ext", "--inplace") == "compiled: yes, 2 modules"
    return tmp_path


@pytest.fixture
def project(compiled: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(compiled, tmp_path / "project")


def setup(project: Path, *command: str, **environ: str) -> str:
    """Run setup.py; its last line."""
    inherited = {name: value for name, value in os.environ.items() if name != speed.VARIABLE}
    words = [sys.executable, "setup.py", "--quiet", *command]
    environ = {speed.VARIABLE: "", **inherited, **environ}
    done = subprocess.run(words, cwd=project, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1] if done.stdout else ""


def in_place(project: Path) -> list[str]:
    return sorted(path.name.partition(".")[0] for path in (project / "kdns").rglob(f"*{speed.SUFFIX}"))


def broken_for(word: str, folder: Path) -> str:
    """A compiler that fails where a word is among its arguments."""
    path = folder / "broken-cc"
    path.write_text(f'#!/bin/sh\ncase "$*" in *{word}*) exit 1 ;; esac\nexec cc "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_what_has_types_is_compiled_beside_its_source_and_what_has_changed_again(project: Path) -> None:
    assert in_place(project) == ["first", "second"]
    times = {path: path.stat().st_mtime_ns for path in (project / "build").rglob("*.o")}
    (project / "kdns/second.py").write_text("def twice(value: int) -> int:\n    return value * 2\n")
    (project / "kdns/below/first.pxd").unlink()
    assert setup(project, "build_ext", "--inplace") == "compiled: yes, 1 modules"
    assert in_place(project) == ["second"]
    changed = [path.stem for path, time in times.items() if path.exists() and path.stat().st_mtime_ns != time]
    assert changed == ["second"]


@pytest.mark.parametrize(
    ("compiler", "line"),
    [
        ("no-such-compiler", "no, no C compiler (no-such-compiler)"),
        ("false", "no, false cannot compile: 1"),
        ("half", "no, it failed: "),
        ("linker", "no, it failed: "),
    ],
)
def test_a_compiler_that_is_missing_or_fails_leaves_nothing_compiled(
    project: Path, tmp_path: Path, compiler: str, line: str
) -> None:
    assert in_place(project) == ["first", "second"]
    (project / "kdns/second.py").write_text("def twice(value: int) -> int:\n    return value * 2\n")
    broken = {"half": "/second.c", "linker": "-shared*second"}
    cc = broken_for(broken[compiler], tmp_path) if compiler in broken else compiler
    said = setup(project, "build_ext", "--inplace", CC=cc)
    assert said.startswith(f"compiled: {line}"), said
    assert in_place(project) == []


def test_who_wants_python_keeps_what_is_compiled(project: Path) -> None:
    assert setup(project, "build_ext", "--inplace", KDNS_COMPILED="0") == "compiled: no, KDNS_COMPILED is 0"
    assert in_place(project) == ["first", "second"]


def wheel(project: Path, **environ: str) -> tuple[str, list[str]]:
    """Make a wheel; the end of its name, and its modules and types."""
    setup(project, "bdist_wheel", **environ)
    [path] = (project / "dist").glob("*.whl")
    names = sorted(name for name in zipfile.ZipFile(path).namelist() if name.startswith("kdns/"))
    path.unlink()
    return path.stem.removeprefix("kdns-1-"), names


def test_a_wheel_is_compiled_or_pure(project: Path) -> None:
    sources = ["kdns/__init__.py", "kdns/below/__init__.py", "kdns/below/first.pxd", "kdns/below/first.py"]
    sources += ["kdns/second.pxd", "kdns/second.py"]
    tag, names = wheel(project)
    assert tag.startswith(f"cp{sys.version_info[0]}{sys.version_info[1]}-")
    assert names == sorted([*sources, f"kdns/below/first{speed.SUFFIX}", f"kdns/second{speed.SUFFIX}"])
    assert wheel(project, CC="no-such-compiler") == ("py3-none-any", sources)


def test_a_source_distribution_has_what_compiling_needs(project: Path) -> None:
    setup(project, "sdist")
    [path] = (project / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "pyproject.toml", "kdns/second.py", "kdns/second.pxd", "kdns/below/first.pxd"} <= names
    assert not [name for name in names if name.endswith((".c", ".so"))]
