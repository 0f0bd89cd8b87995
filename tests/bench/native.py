"""Programs in C, which cc makes when they are needed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent
DRIVE, FLOOR = "drive", "floor"


def has_compiler() -> bool:
    """Whether there is a cc."""
    return shutil.which("cc") is not None


def build(name: str, folder: Path) -> Path:
    """Compile a program into a folder, unless it is there. Raises RuntimeError."""
    program = folder / name
    if not program.exists():
        command = ["cc", "-O2", "-Wall", "-Wextra", "-pthread", "-o", str(program), str(SOURCES / f"{name}.c")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"cc: {done.stderr}")
    return program
