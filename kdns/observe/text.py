"""Text for people's screens."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with all that is not printable as an escape, so that it can steer nothing that shows it."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
