"""What `make fuzz` runs holds for the fuzzer's first inputs and for mutations of them, without sanitizers.

What it once found is here too.
"""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Callable, Iterator

import pytest
from hpack import Encoder

from tests.fuzz import sound, web
from tests.fuzz.ground import Stores, prepare
from tests.fuzz.seeds import dictionary, seeds
from tests.fuzz.targets import TARGETS
from tests.support import corpus

QUERY = corpus.SEEDS["edns"]
FEWER = {"tls": 40, "doh": 40, "master": 100}
"""Mutations of what takes some milliseconds each."""
ANSWER = (
    QUERY[:2] + b"\x85\0" + QUERY[4:6] + b"\0\1" + QUERY[8:47] + b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4\x0a\0\0\1" + corpus.OPT
)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    path = tmp_path_factory.mktemp("worlds")
    prepare(path)
    opened = Stores(path)
    yield opened
    opened.close()


@pytest.mark.parametrize("title", TARGETS)
def test_the_first_inputs_and_mutations_of_them(title: str, stores: Stores) -> None:
    target = TARGETS[title](stores)
    choice = random.Random(title)
    known = list(seeds(title))
    for data in known:
        target(data)
    for _ in range(FEWER.get(title, 200)):
        mutated = bytearray(choice.choice(known))
        for _ in range(choice.choice((1, 1, 2, 5))):
            corpus.mutate(mutated, choice, known)
        target(bytes(mutated[:4096]))


def test_the_dictionary_is_what_libfuzzer_reads() -> None:
    lines = dictionary().splitlines()
    assert len(lines) > 40
    assert all(re.fullmatch(r'"(\\x[0-9a-f]{2})+"', line) for line in lines)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([(":status", "200"), ("content-length", "2")], "ended: InvalidBodyLengthError"),
        ([(":status", "20x")], "ended: invalid literal"),
        ([(":status", "200"), ("content-encoding", "gzip")], "packed"),
    ],
)
def test_an_upstream_over_https_that_breaks_its_answer(
    fields: list[tuple[str, str]], reason: str, stores: Stores
) -> None:
    head = Encoder().encode([*fields, ("content-type", "application/dns-message")])
    answer = web.frame(4, 0, 0) + web.frame(1, 4, 1, head) + web.frame(0, 1, 1, gzip.compress(ANSWER))
    found = TARGETS["doh"](stores)(b"\3\1" + web.compact(answer))
    assert isinstance(found, list)
    assert reason in found[0]


def test_a_sound_answer_passes() -> None:
    sound.check_answer(QUERY, ANSWER)


@pytest.mark.parametrize(
    "broken",
    [
        lambda data: b"\0\0" + data[2:],
        lambda data: data[:2] + b"\x05" + data[3:],
        lambda data: data[:12] + b"\3WEB" + data[16:],
        lambda data: data + b"\0",
        lambda data: data[:-1],
        lambda data: data.replace(b"\xc0\x0c", b"\xc0\x2f"),
        lambda data: data.replace(b"\xc0\x0c", b"\x80\x0c"),
        lambda data: data.replace(b"\0\4\x0a", b"\0\5\x0a"),
        lambda data: data[:7] + b"\2" + data[8:],
    ],
)
def test_an_answer_that_no_client_could_use_does_not(broken: Callable[[bytes], bytes]) -> None:
    assert broken(ANSWER) != ANSWER
    with pytest.raises(AssertionError):
        sound.check_answer(QUERY, broken(ANSWER))
