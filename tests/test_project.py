"""The project keeps its own rules: types, style, arrows between its rooms, dependencies, documents."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdns.cli import app
from kdns.cli.node import example
from kdns.plugins import load

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = sorted((ROOT / "kdns").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "kdns").rglob("*.md")])

ROOMS: dict[str, set[str]] = {
    "wire": set(),
    "zone": {"wire"},
    "cluster": {"wire", "zone"},
    "corefile": set(),
    "observe": {"corefile"},
    "upstream": {"wire", "observe"},
    "plugins": {"wire", "zone", "corefile", "observe", "upstream"},
    "node": {"wire", "corefile", "observe"},
    "server": {"wire", "zone", "cluster", "corefile", "plugins", "observe", "upstream", "node"},
    "tools": {"wire", "zone", "cluster", "corefile", "plugins", "observe", "node"},
    "cli": {"wire", "zone", "cluster", "corefile", "plugins", "observe", "upstream", "node", "server", "tools"},
}
"""Each package of kdns, and those that it may import. `kdns.errors` and `kdns.__version__` are for all."""

IMPORT_NAMES = {
    "google-re2": "re2",
    "prometheus-client": "prometheus_client",
    "pyyaml": "yaml",
    "dnspython": "dns",
    "kubernetes-validate": "kubernetes_validate",
}
"""What a distribution is imported as, where that is not its name."""

NOT_IMPORTED = {
    "helm-binary": "run as a program",
    "mypy": "run as a program",
    "pytest-xdist": "an option of pytest",
    "ruff": "run as a program",
    "types-cachetools": "read by mypy",
    "types-psutil": "read by mypy",
    "types-PyYAML": "read by mypy",
}
"""Declared for the tests, and used otherwise than by an import."""


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, as an absolute dotted name."""
    package = path.relative_to(ROOT).with_suffix("").parts[: None if path.name == "__init__.py" else -1]
    if path.name == "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def run(*arguments: str) -> None:
    """Run a Python module as a program in the top folder; it has to succeed."""
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_types_are_complete_and_right() -> None:
    run("mypy")


def test_ruff_has_nothing_to_say() -> None:
    run("ruff", "check")


def test_code_is_formatted() -> None:
    run("ruff", "format", "--check")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_between_rooms_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT / "kdns").parts[0]
    if room.endswith(".py"):
        if room == "__main__.py":
            return
        allowed = {"errors", "speed"}
    else:
        allowed = ROOMS[room] | {room, "errors", "speed", "__version__"}
    used = {name.split(".")[1] for name in imports(path) if name.startswith("kdns.")}
    assert used <= allowed


def test_every_room_has_its_arrows() -> None:
    assert {path.parent.name for path in (ROOT / "kdns").glob("*/__init__.py")} <= set(ROOMS)


def test_a_worker_loads_no_library_of_the_control_plane() -> None:
    control = ["dnslib", "kubernetes", "prometheus_client", "rich", "ryaml", "typer", "watchfiles", "yaml"]
    seldom = ["h2", "httpx", "re2"]
    code = f"import sys, kdns.server.worker; print([name for name in {control + seldom} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_supervisor_loads_directives_where_they_are_used() -> None:
    seldom = [f"kdns.plugins.{name}" for name in ("file", "auto", "transfer", "k8s_external", "autopath")]
    seldom += ["kdns.zone.authority", "kdns.zone.masterfile"]
    modules = "kdns.server.supervisor, kdns.server.feeds, kdns.server.publication"
    code = f"import sys, {modules}; print([name for name in {seldom} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def distributions(requirements: list[str]) -> set[str]:
    """Names of distributions, without versions and extras."""
    return {re.split(r"[^A-Za-z0-9_.-]", requirement)[0] for requirement in requirements}


def modules(names: set[str]) -> set[str]:
    """What those distributions are imported as."""
    return {IMPORT_NAMES.get(name, name) for name in names}


def third_party(paths: list[Path]) -> set[str]:
    """Top-level modules that files import and that neither we nor Python bring."""
    found = {name.split(".")[0] for path in paths for name in imports(path)}
    return found - set(sys.stdlib_module_names) - {"kdns", "tests"}


def test_what_kdns_imports_is_what_it_depends_on() -> None:
    compiler = {"cython"}  # asked for by what is compiled, and not missed by what is not
    assert third_party(SOURCES) - compiler == modules(distributions(PYPROJECT["project"]["dependencies"]))


def test_what_the_tests_import_is_declared_and_what_is_declared_is_used() -> None:
    own = distributions(PYPROJECT["project"]["dependencies"])
    extras = PYPROJECT["project"]["optional-dependencies"]
    declared = {name for requirements in extras.values() for name in distributions(requirements)}
    used = third_party(TESTS)
    assert used <= modules(own | declared)
    assert modules(declared - set(NOT_IMPORTED)) <= used


def test_dependencies_have_a_lower_and_an_upper_bound() -> None:
    for requirement in PYPROJECT["project"]["dependencies"]:
        assert re.fullmatch(r"[\w.-]+(\[\w+\])?>=[\d.]+,<[\d.]+", requirement), requirement


def test_make_installs_the_programs_that_tests_ask_for() -> None:
    asked = {
        name
        for path in TESTS
        for calls in re.findall(r'\b(?:needs|require)\(("[^)]*)\)|^TOOLS = (".*)$', path.read_text(), re.MULTILINE)
        for name in re.findall(r'"([^"]+)"', "".join(calls))
    }
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", "")
    line = re.search(r"^TEST_TOOLS := (.*)$", makefile, re.MULTILINE)
    assert line is not None
    assert asked - {"getent"} <= {tool.split("=")[0] for tool in line[1].split()}  # every Debian has that


def test_nothing_is_left_to_do() -> None:
    words = re.compile("|".join(["TO" + "DO", "FIX" + "ME", "X" * 3 + r"\b"]))
    for path in [*SOURCES, *TESTS]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not words.search(line), f"{path.relative_to(ROOT)}:{number}: {line}"


def corefiles() -> Iterator[tuple[str, str]]:
    """Every Corefile in zones/ and in fenced blocks of the documents: where it stands, and its text."""
    for path in sorted((ROOT / "zones").rglob("Corefile*")):
        yield str(path.relative_to(ROOT)), path.read_text()
    for path in DOCUMENTS:
        text = path.read_text()
        for match in re.finditer(r"^```corefile\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            yield f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}", match[1]


@pytest.mark.parametrize(("where", "text"), [pytest.param(where, text, id=where) for where, text in corefiles()])
def test_every_corefile_that_we_show_is_accepted(
    where: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_NAME", "node-1")  # as a node's pods have it
    file = tmp_path / "Corefile"
    file.write_text(text)
    assert (example(file) if "__PILLAR__" in text else load(file, environ={})).blocks


def test_the_readme_shows_a_corefile() -> None:
    assert any(where.startswith("README.md:") for where, _ in corefiles())


def test_the_readme_lists_the_commands_that_there_are() -> None:
    text = (ROOT / "README.md").read_text()
    commands = {command.callback.__name__ for command in app.registered_commands if command.callback is not None}
    assert set(re.findall(r"^\| `kdns (\w+)", text, re.MULTILINE)) == commands


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_in_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target
