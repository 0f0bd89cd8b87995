"""The modules on the way of a query run at two speeds: as Python, or compiled from the same files (setup.py).

With KDNS_COMPILED=0 in its environment a process uses the sources, though compiled modules lie beside them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Final

compiled: Final = False
"""Stands for `cython.compiled` where Cython is not installed: what asks this module is not compiled."""
_ONE_OF_THEM = "kdns.server.direct"


def is_compiled() -> bool:
    """Whether this process uses compiled modules. All of them are compiled, or none."""
    spec = importlib.util.find_spec(_ONE_OF_THEM)
    return spec is not None and not isinstance(spec.loader, SourceFileLoader)


class _Sources:
    """Finds the modules of kdns as Python."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """As importlib.abc.MetaPathFinder has it."""
        for folder in path or () if name.startswith("kdns.") else ():
            spec = FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES)).find_spec(name)
            if spec is not None:
                return spec
        return None


def use_sources() -> None:
    """Let what is imported from now on be Python."""
    sys.meta_path.insert(0, _Sources)
