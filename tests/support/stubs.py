"""Stub resolvers that pods have: what an application gets from them.

Programs of ours (tests/fixtures/stubs) read lines `VERB WHAT`, and write a line for each: what was found, words with a
blank between them, or `!` and an error. Verbs: `addresses` of a name, as applications look it up unless they want
something special; `names` of an address; `services`, as `TARGET:PORT`; others are a program's own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import pytest

from tests.support import digs
from tests.support.netns import Netns

SOURCES = Path(__file__).resolve().parents[1] / "fixtures/stubs"


class Stub(Protocol):
    """A stub resolver in a pod."""

    def find(self, verb: str, what: str) -> list[str]:
        """What it finds, sorted; nothing where it finds nothing."""


class Program:
    """A program of ours that runs in a pod and is asked line by line; a context manager."""

    def __init__(self, pod: Netns, command: list[str]) -> None:
        self.pod = pod
        self.command = command
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [*self.pod.prefix, *self.command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def find(self, verb: str, what: str) -> list[str]:
        line = self.ask(verb, what)
        return [] if line.startswith("!") else sorted(set(line.split()))

    def ask(self, verb: str, what: str) -> str:
        """The line that it writes."""
        assert self.process is not None
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{verb} {what}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"{self.command} ended at {verb} {what}"
        return line.rstrip("\n")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.communicate()


class Getent:
    """glibc's getent. database: `ahosts` asks getaddrinfo, `hosts` gethostbyname and gethostbyaddr."""

    def __init__(self, pod: Netns, database: str = "ahosts") -> None:
        self.pod = pod
        self.database = database

    def find(self, verb: str, what: str) -> list[str]:
        done = self.pod.run("getent", "hosts" if verb == "names" else self.database, what, check=False)
        assert done.returncode in (0, 2), done.stderr
        return sorted({line.split()[1 if verb == "names" else 0] for line in done.stdout.splitlines()})


class Dig:
    """dig with `+search`, which asks for one type at a time. Verbs: `A`, `AAAA`, `services` and `names`."""

    def __init__(self, pod: Netns) -> None:
        self.pod = pod

    def find(self, verb: str, what: str) -> list[str]:
        question = {"services": [what, "SRV"], "names": ["-x", what]}.get(verb, [what, verb])
        answer = digs.parse(self.pod.run("dig", "+search", "+tries=1", "+time=5", *question).stdout)
        rdtype = {"services": "SRV", "names": "PTR"}.get(verb, verb)
        rows = [line.split()[3:] for line in answer.answer]
        found = [fields for kind, *fields in rows if kind == rdtype]
        if verb == "services":
            return sorted(f"{target.removesuffix('.')}:{port}" for _, _, port, target in found)
        return sorted(rdata.removesuffix(".") for (rdata,) in found)


def compile_c(compiler: str, folder: Path) -> list[str]:
    """Build the C program; its command. compiler: `musl-gcc`, for musl's resolver."""
    program = folder / f"lookup-{compiler}"
    subprocess.run([compiler, "-static", "-O1", "-Wall", "-Werror", "-o", program, SOURCES / "lookup.c"], check=True)
    return [str(program)]


def musl(pod: Netns, folder: Path) -> Program:
    """musl's getaddrinfo in a pod; skips the test where it cannot be built."""
    if not digs.available("musl-gcc"):
        pytest.skip("not installed: musl-gcc")
    return Program(pod, compile_c("musl-gcc", folder))


def compile_java(folder: Path) -> list[str]:
    """Compile the Java program; the command that runs it, with what makes a short run cheap."""
    subprocess.run(["javac", "-d", folder, SOURCES / "Lookup.java"], check=True)
    return ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", str(folder), "Lookup"]


PYTHON = [sys.executable, "-S", "-E", str(SOURCES / "lookup.py")]
NODE = ["node", str(SOURCES / "lookup.js")]
