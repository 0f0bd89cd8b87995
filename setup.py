"""Compiles the modules on the way of a query, where there is a C compiler; without one they run as Python.

A module is compiled if it has a `.pxd` beside it, which gives the types. All of them are, or none: they share types.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = ["-O2", "-fno-semantic-interposition", "-Wno-unreachable-code"]


def extensions() -> list[Extension]:
    """The modules to compile, as C."""
    if os.environ.get("KDNS_COMPILED") == "0":
        return []
    from Cython.Build import cythonize

    found = [
        Extension(".".join(path.with_suffix("").parts), [str(path.with_suffix(".py"))], extra_compile_args=FLAGS)
        for path in sorted(Path("kdns").rglob("*.pxd"))
        if path.with_suffix(".py").exists()
    ]
    return cythonize(
        found,
        build_dir="build/c",
        nthreads=os.cpu_count() or 1,
        language_level=3,
        compiler_directives={"annotation_typing": False, "freethreading_compatible": False},
        quiet=True,
    )


class Build(build_ext):
    """Goes on without compiled modules where they cannot be made."""

    def run(self) -> None:
        self.parallel = os.cpu_count()
        try:
            super().run()
        except Exception as error:
            for name in map(self.get_ext_fullname, (extension.name for extension in self.extensions)):
                Path(self.get_ext_fullpath(name)).unlink(missing_ok=True)
            print(f"kdns: not compiled, it will run as Python: {error}", file=sys.stderr)
            self.extensions = []


setup(ext_modules=extensions(), cmdclass={"build_ext": Build})
