"""Servers that are looked at again and again, on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from types import FrameType

from rich.console import Console, RenderableType
from rich.live import Live

from kdns.errors import KdnsError
from kdns.observe.text import printable
from kdns.tools.fetch import Place, get
from kdns.tools.scrape import Change, Scrape, View, change, parse, view
from kdns.tools.screen import Instance, Picture, frame

PATIENCE = 3.0
"""Seconds that a server has to answer."""
_HISTORY = 60
_TEXT_WIDTH = 100
"""Columns of a text that goes to no terminal."""
_TICK, _SHORT = 0.1, 0.01
_QUIT = ("q", "Q", "\x03", "\x04")


class Watched:
    """One server, and what was seen of it. Each look is a thread, which nobody has to wait for."""

    def __init__(self, where: Place, fetch: Callable[[Place, float], str] = get) -> None:
        self.where = where
        self.change: Change | None = None
        self.error = ""
        self._fetch = fetch
        self._last: Scrape | None = None
        self._found: Scrape | KdnsError | None = None
        self._looking: threading.Thread | None = None

    def begin(self) -> None:
        """Begin to look, unless the last look has not ended."""
        if self.is_done:
            self._found = None
            self._looking = threading.Thread(target=self._look, name="look", daemon=True)
            self._looking.start()

    def _look(self) -> None:
        try:
            body = self._fetch(self.where, PATIENCE)
            taken = time.monotonic()
            try:
                self._found = parse(body, taken)
            except KdnsError as error:
                self._found = KdnsError(f"{self.where.url}: {error}")
        except KdnsError as error:
            self._found = error
        except Exception as error:  # whatever it is, the others are to be seen
            self._found = KdnsError(f"{self.where.url}: {type(error).__name__}: {printable(str(error))}")

    @property
    def is_done(self) -> bool:
        """Whether the look has ended."""
        return self._looking is None or not self._looking.is_alive()

    def settle(self) -> None:
        """Take what was seen. A look that has not ended has seen nothing."""
        found = self._found if self.is_done else None
        if isinstance(found, Scrape):
            self.change = change(self._last, found) if self._last is not None else None
            self._last, self.error = found, ""
        else:
            self.change, self._last = None, None
            self.error = str(found or f"{self.where.url}: no answer in {PATIENCE:g} s")

    def instance(self) -> Instance:
        """How it is."""
        return Instance(self.where.title, view([self.change]) if self.change is not None else None, self.error)


class Watch:
    """All servers together."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._watched = [Watched(where) for where in places]
        self._history: deque[float] = deque(maxlen=_HISTORY)
        self._until = 0.0
        self.total = View()

    def begin(self) -> None:
        """Begin to look at all of them."""
        self._until = time.monotonic() + PATIENCE
        for each in self._watched:
            each.begin()

    @property
    def is_done(self) -> bool:
        """Whether all have been seen, or have had their time."""
        return all(each.is_done for each in self._watched) or time.monotonic() > self._until

    def settle(self) -> None:
        """Take what was seen of all of them."""
        for each in self._watched:
            each.settle()
        changes = [each.change for each in self._watched if each.change is not None]
        self.total = view(changes) if changes else View()
        if changes:
            self._history.append(self.total.queries)

    @property
    def seen(self) -> bool:
        """Whether one of them was seen twice in a row."""
        return any(each.change is not None for each in self._watched)

    def picture(self, corner: str = "") -> Picture:
        """All that was seen last."""
        return Picture(tuple(each.instance() for each in self._watched), self.total, tuple(self._history), corner)


def look_once(places: Sequence[Place], interval: float, *, as_json: bool) -> None:
    """Look twice and print. Raises KdnsError if nothing could be seen."""
    watch = Watch(places)
    for pause in (interval, 0.0):
        due = time.monotonic() + pause
        watch.begin()
        while not watch.is_done:
            time.sleep(_SHORT)
        watch.settle()
        time.sleep(max(due - time.monotonic(), 0.0))
    picture = watch.picture()
    if as_json:
        print(json.dumps(as_facts(picture, interval), indent=2))
    elif watch.seen:
        console = Console()
        if not console.is_terminal:
            console = Console(width=_TEXT_WIDTH)
        console.print(frame(picture, console.width))
    if not watch.seen:
        raise KdnsError("\n".join(instance.error for instance in picture.instances))


def as_facts(picture: Picture, interval: float) -> dict[str, object]:
    """What is printed as JSON."""
    return {
        "interval": interval,
        "total": asdict(picture.total),
        "instances": [
            {
                "address": instance.title,
                "error": instance.error or None,
                "view": None if instance.view is None else asdict(instance.view),
            }
            for instance in picture.instances
        ],
    }


# On a terminal


class _Ended(BaseException):
    """A signal asks for the end."""


def live(places: Sequence[Place], interval: float) -> bool:
    """Show them until q or Ctrl-C; False, and nothing is done, where there is no terminal to show them on."""
    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        return False
    watch = Watch(places)
    with _ending(), _keys() as pressed, contextlib.suppress(_Ended, KeyboardInterrupt):
        screen = _Screen(console, watch)
        with Live(get_renderable=screen.draw, console=console, screen=True, auto_refresh=False) as shown:
            _follow(watch, interval, screen, shown, pressed)
    return True


class _Screen:
    """Draws what was seen last, in the size that the terminal has now."""

    def __init__(self, console: Console, watch: Watch) -> None:
        self._console = console
        self._watch = watch
        self.picture = watch.picture()

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines of the terminal."""
        return self._console.size

    def draw(self) -> RenderableType:
        """The screen as it is to be now."""
        return frame(self.picture, *self.size)

    def update(self) -> None:
        """Take what was seen last."""
        self.picture = self._watch.picture(f"{time.strftime('%H:%M:%S')}  q quits")


def _follow(watch: Watch, interval: float, screen: _Screen, shown: Live, pressed: Callable[[float], str]) -> None:
    """Look at each interval, and at each tick at the keys and the size of the terminal."""
    size = screen.size
    while True:
        due = time.monotonic() + interval
        watch.begin()
        fresh = False
        while not fresh or time.monotonic() < due:
            if pressed(_TICK) in _QUIT:
                return
            if not fresh and watch.is_done:
                fresh = True
                watch.settle()
                screen.update()
                shown.refresh()
            elif screen.size != size:
                size = screen.size
                shown.refresh()


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """What tells the key that was pressed within some seconds, "" if none was. Keys are not echoed meanwhile."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def pressed(patience: float) -> str:
        if not select.select([fd], [], [], patience)[0]:
            return ""
        return os.read(fd, 1).decode("ascii", "ignore") or "\x04"

    try:
        tty.setcbreak(fd)
        yield pressed
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _no_key(patience: float) -> str:
    time.sleep(patience)
    return ""


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end what is inside as Ctrl-C does, so that the terminal is left as it was."""

    def end(number: int, at: FrameType | None) -> None:
        raise _Ended

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
