"""`python -m tests.fuzz.replay TARGET WORLDS RECORD INPUT...`: notes what comes of inputs, without a fuzzer."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.fuzz.ground import Stores
from tests.fuzz.targets import TARGETS, Recorder


def main(target: str, folder: str, record: str, *inputs: str) -> None:
    recorder = Recorder(TARGETS[target](Stores(Path(folder))), Path(record))
    for path in inputs:
        recorder(Path(path).read_bytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
