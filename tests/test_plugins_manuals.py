"""Every directive's manual page is complete, and what it shows as an example can be used."""

from __future__ import annotations

import re
import textwrap
from types import ModuleType

import pytest

from kdns.plugins import MANUALS, MODULES, ORDER, loads

HEADINGS = ["Name", "Description", "Syntax", "Metrics", "Examples", "Differences from CoreDNS", "See also"]


def examples(module: ModuleType) -> list[str]:
    return re.findall(r"^```corefile\n(.*?)^```$", textwrap.dedent(module.__doc__ or ""), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", MANUALS)
def test_a_manual_has_the_fixed_headings(name: str) -> None:
    assert re.findall(r"^## (.+)$", MANUALS[name].__doc__ or "", re.MULTILINE) == HEADINGS


@pytest.mark.parametrize(("name", "text"), [(name, text) for name in MANUALS for text in examples(MANUALS[name])])
def test_an_example_is_a_configuration_that_can_be_loaded(name: str, text: str) -> None:
    assert name in text
    assert loads(text).blocks


@pytest.mark.parametrize("name", MANUALS)
def test_a_manual_has_an_example(name: str) -> None:
    assert examples(MANUALS[name])


def test_every_plugin_has_a_place_in_the_order() -> None:
    assert set(MODULES) <= set(ORDER)
    assert len(ORDER) == len(set(ORDER)) == 47
