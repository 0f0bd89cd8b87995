"""dig, kdig and delv run as a person would, and what they print, parsed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Answer:
    """What dig or kdig printed. Records are lines with single spaces: `owner ttl class type rdata`.

    status: the response code's name, empty if nothing came. flags: in lower case. edns: the lines of the OPT.
    """

    status: str
    flags: frozenset[str]
    sections: dict[str, list[str]] = field(default_factory=dict)
    edns: tuple[str, ...] = ()
    text: str = ""

    @property
    def answer(self) -> list[str]:
        return self.sections.get("ANSWER", [])

    @property
    def authority(self) -> list[str]:
        return self.sections.get("AUTHORITY", [])

    @property
    def additional(self) -> list[str]:
        return self.sections.get("ADDITIONAL", [])

    def rdata(self) -> list[str]:
        """What stands behind the type in each record of the answer section."""
        return [line.split(" ", 4)[4] for line in self.answer]


def available(tool: str) -> bool:
    """True if the program is in PATH."""
    return shutil.which(tool) is not None


def dig(port: int, *arguments: str, server: str = "127.0.0.1", prefix: Sequence[str] = ()) -> Answer:
    """`dig @SERVER -p PORT ARGUMENTS`, without retries. prefix: a command to run it under (`ip netns exec ...`)."""
    return parse(_run([*prefix, "dig", f"@{server}", "-p", str(port), "+tries=1", "+time=3", *arguments]))


def kdig(port: int, *arguments: str, server: str = "127.0.0.1", prefix: Sequence[str] = ()) -> Answer:
    """`kdig @SERVER -p PORT ARGUMENTS`, without retries."""
    return parse(_run([*prefix, "kdig", f"@{server}", "-p", str(port), "+retry=0", "+time=3", *arguments]))


def delv(port: int, *arguments: str, server: str = "127.0.0.1") -> str:
    """What `delv +noroot` (without DNSSEC validation) prints."""
    return _run(["delv", "-i", f"@{server}", "-p", str(port), *arguments])


def parse(text: str) -> Answer:
    """Read the output of dig or kdig: of several messages in it, the last one."""
    status, flags = "", frozenset[str]()
    sections: dict[str, list[str]] = {}
    edns: list[str] = []
    current: list[str] | None = None
    for line in text.splitlines():
        if "->>HEADER<<-" in line:
            status = _first(r"status: (\w+)", line)
            sections, edns, current = {}, [], None
        elif match := re.match(r";; flags: ([a-z ]*)", line, re.IGNORECASE):
            flags = frozenset(match[1].lower().split())
        elif "PSEUDOSECTION" in line.upper():
            current = edns
        elif match := re.match(r";; (\w+) SECTION:", line):
            current = sections.setdefault(match[1], [])
        elif not line.strip():
            current = None
        elif current is edns or (current is not None and not line.startswith(";")):
            current.append(" ".join(line.split()))
    return Answer(status, flags, sections, tuple(edns), text)


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else ""


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30).stdout
