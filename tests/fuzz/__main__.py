"""`python -m tests.fuzz`: builds, and lets each target run for some time; the exit status says if anything was found.

What the fuzzer has learned stays in build/fuzz/corpus, and the next run goes on from there.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tests.fuzz.build import ROOT, BuildError, build
from tests.fuzz.ground import prepare
from tests.fuzz.seeds import dictionary, seeds
from tests.fuzz.targets import TARGETS

FOLDER = ROOT / "build" / "fuzz"
SECONDS = 60
LONGEST = {"query": 1400, "wire": 1400, "tsig": 600, "master": 1000}
"""Bytes of an input; of others _MOST."""
_MOST = 4096
_SHOWN = 4000
"""Characters of a report."""
_PATIENCE = 600
"""Seconds after which a program that should have ended is ended."""
_ASAN = ("detect_leaks=0", "abort_on_error=0", "allocator_may_return_null=1", "detect_stack_use_after_return=0")
"""Leaks are not looked for: the interpreter keeps its modules, types and interned texts for as long as it lives."""
_STATES = re.compile(r"^#\d+.* cov: (\d+) ft: (\d+)", re.MULTILINE)
_EXECUTED = re.compile(r"^stat::number_of_executed_units: +(\d+)", re.MULTILINE)
_ARTIFACT = re.compile(r"Test unit written to (\S+)")
_REPORTED = re.compile(r"(Traceback|==\d+==ERROR|runtime error|ERROR: libFuzzer|SUMMARY).*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a target. report: what the fuzzer said, if there is a finding; artifact: the input that it is."""

    executed: int
    covered: int
    corpus: int
    report: str = ""
    artifact: str = ""


def environment(target: str) -> dict[str, str]:
    """What the program finds its interpreter, modules and data by."""
    return {
        "ASAN_OPTIONS": ":".join(_ASAN),
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # Python's own allocator would hide where an object ends
        "PYTHONPATH": f"{FOLDER / 'modules'}:{ROOT}",
        "KDNS_FUZZ_PYTHON": sys.executable,
        "KDNS_FUZZ_WORLDS": str(FOLDER / "worlds"),
        "KDNS_FUZZ_TARGET": target,
    }


def again(program: Path, target: str, path: str) -> str:
    """The command that shows a finding again."""
    settings = " ".join(f"{key}={value}" for key, value in environment(target).items())
    return f"env {settings} {program} {path}"


def _start(program: Path, target: str, options: Sequence[str], seconds: int, more: Mapping[str, str]) -> str:
    """Run the program; returns all that it says, whatever its exit status. seconds: that it is meant to take."""
    environ = {**os.environ, **environment(target), **more}
    environ.pop("KDNS_COMPILED", None)
    command: list[str | Path] = [program, "-detect_leaks=0", *options]
    with tempfile.TemporaryFile() as output:
        try:
            status = subprocess.run(
                command, cwd=FOLDER, env=environ, stdout=output, stderr=output, timeout=seconds + _PATIENCE
            ).returncode
        except subprocess.TimeoutExpired:
            status = -9
        output.seek(0)
        said = output.read().decode(errors="replace")
    return said if not status else f"{said}\nexit status {status}"


def fuzz(program: Path, target: str, seconds: int) -> Outcome:
    """Let a target run."""
    corpus, findings = FOLDER / "corpus" / target, FOLDER / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for data in seeds(target):
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)  # noqa: S324 - as libFuzzer names them
    tokens = FOLDER / "tokens.dict"
    tokens.write_text(dictionary())
    options = (
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST.get(target, _MOST)}",
        f"-dict={tokens}",
        f"-artifact_prefix={findings}/{target}-",
        "-print_final_stats=1",
        "-timeout=20",
        "-rss_limit_mb=2048",
        "-reload=0",
        str(corpus),
    )
    said = _start(program, target, options, seconds, {})
    states = _STATES.findall(said)
    executed = _EXECUTED.search(said)
    failed = re.search(r"\nexit status -?\d+$", said) is not None
    written = _ARTIFACT.search(said)
    reported = _REPORTED.search(said)
    return Outcome(
        int(executed[1]) if executed else 0,
        int(states[-1][0]) if states else 0,
        len(list(corpus.iterdir())),
        (reported[0][:_SHOWN] if reported else said[-_SHOWN:]) if failed else "",
        written[1] if written and failed else "",
    )


def differences(program: Path, target: str) -> list[Path]:
    """The inputs of the corpus of which something else comes when the modules run as Python."""
    inputs = sorted((FOLDER / "corpus" / target).iterdir(), key=lambda path: (path.stat().st_size, path.name))
    recorded = [FOLDER / f"{target}.{speed}" for speed in ("compiled", "python")]
    for path in recorded:
        path.unlink(missing_ok=True)
    said = _start(program, target, [*map(str, inputs)], 0, {"KDNS_FUZZ_RECORD": str(recorded[0])})
    replay: list[str | Path] = [
        sys.executable,
        "-m",
        "tests.fuzz.replay",
        target,
        FOLDER / "worlds",
        recorded[1],
        *inputs,
    ]
    environ = os.environ | {"KDNS_COMPILED": "0"}
    done = subprocess.run(replay, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    compiled, python = ([line.split() for line in path.read_text().splitlines()] for path in recorded)
    # libFuzzer calls a target with nothing before the first input.
    compiled = compiled[-len(inputs) :]
    if len(compiled) != len(inputs) or len(python) != len(inputs):
        raise BuildError(f"{target}: the corpus cannot be run through:\n{said[-2000:]}\n{done.stdout[-2000:]}")
    return [path for path, one, other in zip(inputs, compiled, python, strict=True) if one != other]


def main(
    target: Annotated[list[str] | None, typer.Argument(help=f"{', '.join(TARGETS)}; all of them without.")] = None,
    seconds: Annotated[int, typer.Option(help="How long each target runs.")] = SECONDS,
) -> None:
    """Run bytes through what reads the network, with sanitizers."""
    for name in target or ():
        if name not in TARGETS:
            raise typer.BadParameter(f"there is no target {name}; there are: {', '.join(TARGETS)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        print("building ...", flush=True)
        program = build(FOLDER)
        shutil.rmtree(FOLDER / "worlds", ignore_errors=True)
        prepare(FOLDER / "worlds")
        found = [_one(program, name, seconds) for name in target or TARGETS]
    except BuildError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    raise typer.Exit(int(any(found)))


def _one(program: Path, target: str, seconds: int) -> bool:
    """Run a target and say what came of it; whether there is a finding."""
    outcome = fuzz(program, target, seconds)
    print(
        f"{target}: {outcome.executed} executions, {outcome.covered} edges covered, "
        f"{outcome.corpus} inputs in {(FOLDER / 'corpus' / target).relative_to(ROOT)}",
        flush=True,
    )
    if outcome.report:
        print(f"{outcome.report}\n\n{target}: a finding", end="")
        print(f" in {outcome.artifact}; again:\n{again(program, target, outcome.artifact)}" if outcome.artifact else "")
        return True
    different = differences(program, target)
    for path in different[:3]:
        print(f"{target}: something else comes of {path} with KDNS_COMPILED=0")
    return bool(different)


if __name__ == "__main__":
    typer.run(main)
