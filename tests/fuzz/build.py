"""Builds what `make fuzz` runs: the compiled modules with sanitizers, in a copy of the tree, and a program around them.

Nothing is built in place: a module with sanitizers can be loaded by nothing but the program that has their runtime.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HARNESS = Path(__file__).with_name("harness.c")
SANITIZERS = "address,bool,bounds,float-cast-overflow,integer-divide-by-zero,return,shift,unreachable"
"""Of UndefinedBehaviorSanitizer, what AddressSanitizer does not see either way and compiles in a minute."""
BESIDE = (
    "plugins/kubernetes", "zone/values", "zone/inbound", "zone/masterfile", "zone/entries", "wire/tsig", "server/http1",
    "server/http2", "server/hpack", "server/doh", "server/primary", "upstream/https",
)  # fmt: skip
"""Modules that are always Python, and compiled here so that the fuzzer sees which of their branches it takes."""
_COPIED = ("setup.py", "pyproject.toml", "README.md", "LICENSE")


class BuildError(Exception):
    """Something cannot be built; the text has the compiler's words."""


def build(folder: Path) -> Path:
    """Build everything, or what has changed since, in a folder; returns the program. Raises BuildError.

    The modules for it are in `folder/modules`.
    """
    source = folder / "src"
    _copy(source)
    _compile(source, folder / "modules")
    program = folder / "fuzz"
    if not program.exists() or program.stat().st_mtime < HARNESS.stat().st_mtime:
        _link(program)
    return program


def _copy(source: Path) -> None:
    """Bring the copy of the tree up to date; what has not changed keeps its time, for it need not be compiled again."""
    wanted = {path.relative_to(ROOT) for name in ("py", "pxd") for path in (ROOT / "kdns").rglob(f"*.{name}")}
    wanted.update(map(Path, _COPIED))
    for path in wanted:
        data, copy = (ROOT / path).read_bytes(), source / path
        if not copy.exists() or copy.read_bytes() != data:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(data)
    for module in BESIDE:
        types = source / "kdns" / f"{module}.pxd"
        wanted.add(types.relative_to(source))
        if not types.exists():
            types.touch()
    for copy in (source / "kdns").rglob("*"):
        if copy.suffix in (".py", ".pxd") and copy.relative_to(source) not in wanted:
            copy.unlink()


def _compile(source: Path, modules: Path) -> None:
    """Install the copy into a folder. What compiles it comes from pyproject.toml, as it does for `make install`."""
    flags = f"-gline-tables-only -UNDEBUG -fno-omit-frame-pointer -fsanitize={SANITIZERS},fuzzer-no-link"
    environ = {
        "CC": "clang",
        "CFLAGS": f"{flags} -fno-sanitize-recover=all",
        "CCC_OVERRIDE_OPTIONS": "# x-g0 O1",  # what setup.py says of these: lines for reports, and compile sooner
        "LDSHARED": "clang -shared",
        "LDFLAGS": f"-fsanitize={SANITIZERS}",
    }
    for module in source.glob("build/lib*/**/*.py"):
        module.unlink()  # one that is gone would be installed for ever
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--verbose", "--no-deps"]
    said = _run([*command, "--upgrade", "--target", modules, source], environ)
    if "compiled: yes" not in said:
        raise BuildError(f"the modules are not compiled:\n{said[-3000:]}")


def _link(program: Path) -> None:
    have = sysconfig.get_config_vars()
    name = f"python{have['LDVERSION']}"
    if have["Py_ENABLE_SHARED"]:
        library = ["-L", have["LIBDIR"], f"-Wl,-rpath,{have['LIBDIR']}", f"-l{name}"]
    else:
        library = [f"{have['LIBPL']}/lib{name}.a", *have["LIBS"].split(), *have["SYSLIBS"].split()]
    include = f"-I{sysconfig.get_path('include')}"
    sanitizers = f"-fsanitize={SANITIZERS},fuzzer"
    # -rdynamic: the modules take the sanitizers' functions, and the fuzzer's, from the program.
    _run(["clang", "-g", "-O1", "-Wall", "-Wextra", sanitizers, include, HARNESS, *library, "-rdynamic", "-o", program])


def _run(command: list[str | Path], environ: Mapping[str, str] | None = None) -> str:
    if not shutil.which(command[0]):
        raise BuildError(f"there is no {command[0]}: `make fuzz` installs it on Debian")
    inherited = {key: value for key, value in os.environ.items() if key not in ("KDNS_COMPILED", "PYTHONPATH")}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=inherited | dict(environ or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise BuildError(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}")
    return done.stdout
