"""A ConfigMap volume as kubelet makes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Volume:
    """A directory whose keys are links through `..data`, which is exchanged at once."""

    def __init__(self, folder: Path, **keys: Any) -> None:
        self.folder = folder
        self.number = 0
        folder.mkdir()
        self.write(**keys)

    def write(self, **keys: Any) -> None:
        """Put other keys there; values that are no text are written as JSON."""
        self.number += 1
        data = self.folder / f"..{self.number}"
        data.mkdir()
        for name, value in keys.items():
            (data / name).write_text(value if isinstance(value, str) else json.dumps(value))
        link = self.folder / "..data_tmp"
        link.symlink_to(data.name)
        link.rename(self.folder / "..data")
        for entry in self.folder.iterdir():
            if not entry.name.startswith("..") and entry.name not in keys:
                entry.unlink()
        for name in keys:
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(f"..data/{name}")
