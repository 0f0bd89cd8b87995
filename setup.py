"""Compiles the modules on the way of a query, where there is a C compiler; without one they run as Python.

A module is compiled if it has a `.pxd` beside it, which gives the types. All of them are, or none: they share types.
With KDNS_COMPILED=0 in the environment none is. One line says what came of it: `compiled: yes`, or `no` and why.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = ["-O2", "-g0", "-fno-semantic-interposition", "-Wno-unreachable-code", "-Wno-maybe-uninitialized"]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
UNWANTED = os.environ.get("KDNS_COMPILED") == "0"


def obstacle() -> str:
    """Why nothing can be compiled here; "" if it can."""
    if UNWANTED:
        return "KDNS_COMPILED is 0"
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        return f"no {include}/Python.h: Debian has it in python{sys.version_info[0]}.{sys.version_info[1]}-dev"
    command = [*compiler, f"-I{include}", "-fsyntax-only", "-x", "c", "-"]
    try:
        subprocess.run(command, input=b"#include <Python.h>\n", capture_output=True, check=True)
    except FileNotFoundError:
        return f"no C compiler ({compiler[0]})"
    except subprocess.CalledProcessError as error:
        return f"{compiler[0]} cannot compile: {error.stderr.decode(errors='replace').strip() or error.returncode}"
    return ""


def modules() -> list[Extension]:
    """What has types."""
    paths = sorted(path.with_suffix("") for path in Path("kdns").rglob("*.pxd"))
    return [Extension(".".join(path.parts), [f"{path}.py"], extra_compile_args=FLAGS) for path in paths]


def as_c(found: list[Extension]) -> dict[str, list[str]]:
    """The sources of modules in C, by their names."""
    from Cython.Build import cythonize
    from Cython.Compiler import Options

    Options.emit_code_comments = False
    directives = {"annotation_typing": False, "freethreading_compatible": False, "show_performance_hints": False}
    made = cythonize(
        found,
        build_dir="build/c",
        nthreads=os.cpu_count() or 1,
        language_level=3,
        compiler_directives=directives,
        quiet=True,
    )
    return {extension.name: extension.sources for extension in made}


class Build(build_ext):
    """Goes on without compiled modules where they cannot be made."""

    def run(self) -> None:
        """Compile all, the largest first; remove what is of no use."""
        self.parallel = self.parallel or os.cpu_count()
        places = [Path(self.build_lib, "kdns"), *([Path("kdns")] if self.inplace else [])]
        why = WHY
        try:
            if self.extensions:
                sources = as_c(modules())
                for extension in self.extensions:
                    extension.sources = sources[extension.name]
                self.extensions.sort(key=lambda extension: -Path(extension.sources[0]).stat().st_size)
                super().run()
        except Exception as error:
            why = f"it failed: {error}"
            self.extensions = []
        if not UNWANTED:
            self._remove_others(places)
        print(f"compiled: no, {why}" if why else f"compiled: yes, {len(self.extensions)} modules")

    def _remove_others(self, places: list[Path]) -> None:
        wanted = {Path(*extension.name.split(".")) for extension in self.extensions}
        for place in places:
            for path in place.rglob(f"*{SUFFIX}"):
                name = Path("kdns", path.relative_to(place)).with_name(path.name.removesuffix(SUFFIX))
                if name not in wanted:
                    path.unlink()


WHY = obstacle()
setup(ext_modules=[] if WHY else modules(), cmdclass={"build_ext": Build})
