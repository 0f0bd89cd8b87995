"""Text for people's screens."""

from __future__ import annotations

from datetime import UTC, datetime

NOTHING = "-"
"""In the place of a value that there is not."""
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def printable(text: str) -> str:
    """The text with all that is not printable as an escape, so that it can steer nothing that shows it."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def span(length: float) -> str:
    """A time in seconds, in its two largest units."""
    left = max(0, int(length))
    parts = []
    for name, unit in _UNITS:
        number, left = divmod(left, unit)
        parts.append(f"{number} {name}" if number else "")
    first = next((index for index, part in enumerate(parts) if part), len(parts) - 1)
    return " ".join(filter(None, parts[first : first + 2])) or "0 s"


def ago(time: float, now: float) -> str:
    """How long ago a time was."""
    return f"{span(now - time)} ago" if now - time >= 1 else "now"


def age(length: float | None) -> str:
    """How old data is; None if there is none."""
    if length is None:
        return "none"
    return "current" if length < 1 else f"{span(length)} old"


def moment(time: float) -> str:
    """A time of day, of time.time()."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def seconds(length: float | None) -> str:
    """A short time in seconds."""
    if length is None:
        return NOTHING
    if length < 0.001:
        return f"{length * 1e6:.0f} µs"
    return f"{length * 1e3:.3g} ms" if length < 1 else f"{length:.3g} s"


def size(count: float) -> str:
    """A number of bytes."""
    return f"{count / (1 << 20):,.1f} MiB" if count < 1 << 30 else f"{count / (1 << 30):,.2f} GiB"


def percent(share: float | None) -> str:
    """A share, of which 1 is all."""
    return NOTHING if share is None else f"{share:.1%}"


def rate(each_second: float) -> str:
    """How many a second."""
    return f"{each_second:,.0f}" if each_second >= 100 else f"{each_second:.3g}"


def times(number: int) -> str:
    """How often."""
    return "once" if number == 1 else f"{number:,} times"
