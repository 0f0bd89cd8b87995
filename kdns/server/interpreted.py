"""Stands for the module `cython` where Cython is not installed: what asks it is not compiled."""

from typing import Final

compiled: Final = False
