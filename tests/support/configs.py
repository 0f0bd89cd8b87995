"""What a directive in a Corefile is understood as, or refused for."""

from __future__ import annotations

from typing import Any

import pytest

from kdns.errors import ConfigError
from kdns.plugins import loads


def options(directive: str, zones: str = "example.org") -> Any:
    """The Options of a directive, alone in a server block of these zones."""
    return loads(f"{zones} {{\n{directive}\n}}").blocks[0].plugins[directive.split()[0]]


def refused(directive: str, zones: str = "example.org") -> list[str]:
    """What is wrong with it: line (1 is the first of the directive) and message of each mistake."""
    with pytest.raises(ConfigError) as caught:
        options(directive, zones)
    return [f"{mistake.line - 1}: {mistake.message}" for mistake in caught.value.mistakes]
