"""`python -m tests.support.pictures`: the pictures of the README, of a real kdns at work.

deploy/pictures/top.svg is what `kdns top` draws, deploy/pictures/status.png what Chromium shows of the status page.
"""

from __future__ import annotations

import io
import re
import tempfile
import time
from pathlib import Path

from rich.console import Console

from kdns.tools.fetch import place
from kdns.tools.live import Watch
from kdns.tools.screen import frame
from tests.support.chromium import Chromium
from tests.support.server import ROOT
from tests.support.shop import Shop, shop

PICTURES = ROOT / "deploy" / "pictures"
COLUMNS, LINES = 100, 30
WIDTH, HEIGHT = 1120, 950
RATE, SECONDS = 2000, 30.0
_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""In the SVG: fonts of another site. A browser's own will do."""
_CLIPS = re.compile(r"<clipPath .*?</clipPath>\s*| clip-path=\"[^\"]*\"", re.DOTALL)
"""In the SVG: where lines end for those fonts. Others' underscores are lower, and would be cut off."""


def main() -> None:
    """Make both."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, shop(Path(folder)) as running:
        for number in range(12):
            running.server.query(f"host{number}.corp.example", timeout=5)
        with running.ask(RATE, SECONDS):
            time.sleep(3)
            draw_top(running, PICTURES / "top.svg")
            draw_page(running, PICTURES / "status.png")


def draw_top(running: Shop, path: Path) -> None:
    """After some looks, as `kdns top --interval 1` has it."""
    watch = Watch([place(f"127.0.0.1:{running.server.metrics_port}")])
    for _ in range(10):
        watch.begin()
        while not watch.is_done:
            time.sleep(0.01)
        watch.settle()
        time.sleep(1)
    console = Console(width=COLUMNS, height=LINES, record=True, file=io.StringIO(), force_terminal=True)
    console.print(frame(watch.picture(f"{time.strftime('%H:%M:%S')}  q quits"), COLUMNS, LINES))
    picture = console.export_svg(title="kdns top", unique_id="top")
    path.write_text(_CLIPS.sub("", _FONTS.sub("", picture)))


def draw_page(running: Shop, path: Path) -> None:
    """The upper part of the page."""
    url = f"http://127.0.0.1:{running.server.metrics_port}/"
    with Chromium() as chromium:
        chromium.resize(WIDTH, HEIGHT)
        chromium.open(url)
        time.sleep(2)  # so that it knows a rate
        chromium.open(url)
        chromium.picture(path, HEIGHT)


if __name__ == "__main__":
    main()
