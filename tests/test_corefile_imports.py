"""Snippets and imports."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from kdns.corefile.config import Config
from kdns.errors import ConfigError
from kdns.plugins import load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def loaded(folder: Path) -> Config:
    return load(folder / "Corefile", environ={"HERE": str(folder)})


def plugins(folder: Path) -> list[list[str]]:
    return [list(block.plugins) for block in loaded(folder).blocks]


def mistakes(folder: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(folder)
    return [str(mistake).replace(f"{folder}/", "") for mistake in caught.value.mistakes]


def test_a_snippet_is_put_in_where_it_is_imported(folder: Path) -> None:
    write(
        folder, Corefile="(seen) {\nlog\nerrors {\nstacktrace\n}\n}\na {\nimport seen\nwhoami\n}\nb {\nimport seen\n}"
    )
    assert plugins(folder) == [["errors", "log", "whoami"], ["errors", "log"]]


def test_a_snippet_within_a_directives_block_and_within_a_snippet(folder: Path) -> None:
    write(folder, Corefile="(x) {\nlameduck 7s\n}\n(y) {\nhealth {\nimport x\n}\n}\na {\nimport y\n}")
    assert loaded(folder).blocks[0].plugins["health"].lameduck == 7


def test_a_snippet_in_one_line(folder: Path) -> None:
    write(folder, Corefile="(x) { log }\na {\nimport x\nwhoami\n}")
    assert plugins(folder) == [["log", "whoami"]]


def test_a_file_is_relative_to_the_importing_file(folder: Path) -> None:
    write(
        folder, Corefile="import sub/blocks", sub__blocks="a {\nimport common\n}", sub__common="log\nwhoami", common="x"
    )
    assert plugins(folder) == [["log", "whoami"]]


def test_an_imported_file_may_hold_blocks_and_snippets(folder: Path) -> None:
    write(
        folder,
        Corefile="import snippets\nimport blocks\na {\nimport s\n}",
        snippets="(s) {\nlog\n}",
        blocks="b {\nany\n}",
    )
    assert plugins(folder) == [["any"], ["log"]]


def test_a_pattern_takes_files_in_the_order_of_their_names_and_no_directories(folder: Path) -> None:
    write(
        folder,
        Corefile="import d/*.conf",
        d__2_dot_conf="b {\n}",
        d__1_dot_conf="a {\n}",
        d__x_dot_conf__y="",
        d__3="c {",
    )
    assert [block.keys[0].zone for block in loaded(folder).blocks] == ["a.", "b."]


def test_a_wildcard_may_stand_for_a_directory(folder: Path) -> None:
    write(folder, Corefile="import d/*/conf?", d__1__confx="a {\n}", d__2__confy="b {\n}", d__2__conf="c {\n}")
    assert [block.keys[0].zone for block in loaded(folder).blocks] == ["a.", "b."]


def test_a_pattern_without_matches_is_no_mistake_but_a_missing_file_is(folder: Path) -> None:
    write(folder, Corefile="a {\nimport custom/*.override\n}\nimport custom/*.server")
    assert plugins(folder) == [[]]
    write(folder, Corefile="(common) {\nlog\n}\na {\nimport comon\n}")
    (found,) = mistakes(folder)
    assert found.startswith('Corefile:5: import: "comon" cannot be read: No such file or directory')
    assert '"common" is near' in found


def test_arguments(folder: Path) -> None:
    snippet = (
        '(x) {\nlog {args[0]} "{args[1]}: {name}"\nbind {args[2:]}\nchaos {args[:]}\nnsid {args.0} {args[1:2]}\n}\n'
    )
    write(folder, Corefile=snippet + 'a {\nimport x b.org "two words" 127.0.0.1 ::1\n}')
    found = loaded(folder).blocks[0].plugins
    assert (found["log"].rules[0].zone, found["log"].rules[0].format) == ("b.org.", "two words: {name}")
    assert found["bind"].addresses({}) == ("127.0.0.1", "::1")
    assert found["chaos"].version == "b.org"
    assert found["nsid"].data == "b.org two words"


def test_arguments_are_passed_on_and_belong_to_the_nearest_import(folder: Path) -> None:
    inner = "(inner) {\nlog {args[0]}\n}\n"
    outer = "(outer) {\nimport inner {args[1]}\nnsid {args[0]}\n}\n"
    write(folder, Corefile=inner + outer + "a {\nimport outer a.org b.org\n}")
    found = loaded(folder).blocks[0].plugins
    assert (found["log"].rules[0].zone, found["nsid"].data) == ("b.org.", "a.org")


def test_arguments_of_a_file(folder: Path) -> None:
    write(folder, Corefile="import block a.org 1053", block="{args[0]}:{args[1]} {\nlog\n}")
    assert [(key.zone, key.port) for key in loaded(folder).blocks[0].keys] == [("a.org.", 1053)]


def test_an_empty_range_of_arguments_leaves_its_line_a_line(folder: Path) -> None:
    write(folder, Corefile="(x) {\nwhoami\n{args[:]} log\n}\na {\nimport x\n}")
    assert plugins(folder) == [["log", "whoami"]]


def test_without_an_import_the_words_of_arguments_stand_for_themselves(folder: Path) -> None:
    write(folder, Corefile="a {\nnsid {args[0]}\n}")
    assert loaded(folder).blocks[0].plugins["nsid"].data == "{args[0]}"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("{args[1]}", 'Corefile:2: "{args[1]}", but the import has 1 arguments; accepted: at least 2'),
        ("{args[0:2]}", 'Corefile:2: "{args[0:2]}" with 1 arguments; accepted: 0 to 1'),
        ("x{args[:]}", 'Corefile:2: "{args[:]}" stands inside a word; accepted: a word of its own'),
    ],
)
def test_arguments_that_are_not_there(folder: Path, word: str, message: str) -> None:
    write(folder, Corefile=f"(x) {{\nnsid {word}\n}}\na {{\nimport x y\n}}")
    assert mistakes(folder) == [message]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"Corefile": "(x) {\nimport x\n}\na {\nimport x\n}"}, "Corefile:2: import of itself: (x) > (x)"),
        (
            {"Corefile": "(x) {\nimport y\n}\n(y) {\nimport x\n}\nimport y"},
            "Corefile:2: import of itself: (y) > (x) > (y)",
        ),
        ({"Corefile": "import Corefile"}, "Corefile:1: import of itself: Corefile > Corefile"),
        ({"Corefile": "import a", "a": "import ./b", "b": "import ../*/a"}, "b:1: import of itself: a > b > a"),
        ({"Corefile": "(x) {\n}\n(x) {\n}\na"}, 'Corefile:3: snippet "x" is defined twice'),
        ({"Corefile": "(x) {\nlog"}, 'Corefile:1: snippet "x" is never closed'),
        ({"Corefile": "() {\n}\na"}, "Corefile:1: a snippet has no name"),
        ({"Corefile": "a {\nimport\n}"}, "Corefile:2: import has no name"),
        ({"Corefile": "import d/**"}, 'Corefile:1: import: pattern "d/**"'),
        ({"Corefile": "import [ab]"}, 'Corefile:1: import: pattern "[ab]"'),
        ({"Corefile": "import d", "d__x": ""}, 'Corefile:1: import: "d" is not a file'),
        ({"Corefile": "(x) {\n}\na {\nimport x {\nlog\n}\n}"}, "Corefile:4: import has a block"),
    ],
)
def test_imports_that_are_refused(folder: Path, files: dict[str, str], message: str) -> None:
    write(folder, **files)
    assert mistakes(folder)[0].startswith(message)


def test_a_named_pipe_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    write(folder, Corefile="import pipe")
    assert mistakes(folder)[0].startswith('Corefile:1: import: "pipe" is not a file')


def test_imports_that_multiply_are_stopped(folder: Path) -> None:
    snippets = "(x0) {\nlog\n}\n" + "".join(f"(x{i}) {{\n" + f"import x{i - 1}\n" * 10 + "}\n" for i in range(1, 12))
    write(folder, Corefile=snippets + "a {\nimport x11\n}")
    assert any("the imports grow too large" in mistake for mistake in mistakes(folder))


def test_a_long_chain_of_imports_is_stopped(folder: Path) -> None:
    for index in range(200):
        (folder / f"f{index}").write_text(f"import f{index + 1}")
    write(folder, Corefile="import f0")
    assert "imports are nested more than 50 deep" in mistakes(folder)[0]


def test_mistakes_name_the_imported_file(folder: Path) -> None:
    write(folder, Corefile="a {\nimport sub/x\nnope\n}", sub__x="log\nnada")
    found = mistakes(folder)
    assert [mistake.split(": ")[0] for mistake in found] == ["sub/x:2", "Corefile:3"]


def test_files_lists_all_that_was_read_and_the_directories_of_patterns(folder: Path) -> None:
    write(folder, Corefile="import d/*.x\nimport b\n", d__1_dot_x="a {\n}", b="b {\nimport d/*.y\n}")
    expected = ["Corefile", "d", "d/1.x", "b"]
    assert loaded(folder).files == tuple(str(folder / name) for name in expected)


def test_the_digest_is_over_the_content_of_all_files(folder: Path) -> None:
    write(folder, Corefile="a {\nwhoami\n}\n")
    assert loaded(folder).digest == hashlib.sha512(b"a {\nwhoami\n}\n").hexdigest()
    write(folder, Corefile="import d/*\n", d__1="a {\n}\n")
    before = loaded(folder).digest
    write(folder, d__1="a {\n}\n\n")
    after = loaded(folder).digest
    assert before != after
    write(folder, d__2="")
    assert loaded(folder).digest != after


def test_variables_in_what_is_imported(folder: Path) -> None:
    write(folder, Corefile="import {$HERE}/x", x="a {\nnsid {$HERE}\n}")
    assert loaded(folder).blocks[0].plugins["nsid"].data == str(folder)
