"""One source, two speeds: what compiles is compiled or Python, in every process, as it was meant to be."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kdns import speed as kdns_speed
from tests.conftest import Serve
from tests.support import speed
from tests.support.netns import Netns
from tests.support.server import ROOT, Metrics

# What runs


def version(**environ: str) -> bool:
    """What `kdns version` says."""
    command = [sys.executable, "-m", "kdns", "version", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, check=True)
    compiled: bool = json.loads(done.stdout)["compiled"]
    return compiled


def test_all_modules_that_compile_have_the_speed_of_this_run() -> None:
    assert kdns_speed.is_compiled() is speed.meant()
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in speed.typed()]
    assert "kdns.server.direct" in names
    files = [str(importlib.import_module(name).__file__) for name in names]
    assert [file.endswith(speed.SUFFIX) for file in files] == [speed.meant()] * len(files)


def test_a_server_has_the_speed_of_this_run_also_in_a_namespace(serve: Serve, make_netns: Callable[..., Netns]) -> None:
    assert serve().metrics().value("kdns_compiled") == speed.meant()
    network = make_netns("speed")
    server = serve(prefix=network.prefix, connect=None)
    url = f"http://127.0.0.1:{server.metrics_port}/metrics"
    page = network.run("curl", "-sf", "--retry", "99", "--retry-connrefused", "--retry-max-time", "20", url)
    assert Metrics(page.stdout).value("kdns_compiled") == speed.meant()


def test_a_command_has_the_speed_of_this_run_unless_it_is_told_to_be_python() -> None:
    assert version() is speed.meant()
    assert version(KDNS_COMPILED="0") is False


def test_a_test_cannot_start_what_does_not_know_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(speed.VARIABLE, "0" if not speed.meant() else "1")
    with pytest.raises(AssertionError, match="not in the environment"):
        subprocess.run([sys.executable, "-c", ""], env={})
    subprocess.run([sys.executable, "-c", ""], env={speed.VARIABLE: "0"}, check=True)


# What types say


def declared(path: Path) -> dict[str, tuple[set[str], set[str]]]:
    """Attributes and functions of each class in a file of types; those of the module as those of the class ""."""
    found: dict[str, tuple[set[str], set[str]]] = {"": (set(), set())}
    name = ""
    text = re.sub(r"\(\s*\n(.*?)\n\s*\)", "(...)", path.read_text(), flags=re.DOTALL)
    for line in text.splitlines():
        if start := re.match(r"cdef class (\w+).*:$", line):
            name = start[1]
            found[name] = set(), set()
        elif words := re.match(r"( *)cp?def (?!class |extern)(.*)", line):
            name = name if words[1] else ""
            if function := re.search(r"(\w+)\(", words[2]):
                found[name][1].add(function[1])
            else:
                found[name][0].update(part.split()[-1].lstrip("*") for part in words[2].split(","))
    return found


def inherited(source: Path, name: str) -> set[str]:
    """The attributes that a class has of one in another file of types."""
    text = source.with_suffix(".pxd").read_text()
    base = re.search(rf"^cdef class {name}\((\w+)\):$", text, re.MULTILINE)
    module = re.search(rf"^from ([\w.]+) cimport .*\b{base[1]}\b", text, re.MULTILINE) if base else None
    if base is None or module is None:
        return set()
    return declared(ROOT / f"{module[1].replace('.', '/')}.pxd")[base[1]][0]


@pytest.mark.parametrize("path", speed.typed(), ids=lambda path: str(path.relative_to(ROOT)))
def test_types_have_every_attribute_of_a_class_and_no_function_that_is_not_there(path: Path) -> None:
    """Without a type an attribute cannot be set; the sources alone do not show it."""
    found = declared(path.with_suffix(".pxd"))
    tree = ast.parse(path.read_text())
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    assert set(found) - {""} <= set(classes)
    for name, (attributes, functions) in found.items():
        body = classes[name].body if name else tree.body
        assert functions <= {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assigned = {
            node.attr
            for node in (ast.walk(classes[name]) if name else ())
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            if isinstance(node.value, ast.Name) and node.value.id == "self"
        }
        assert assigned <= attributes | inherited(path, name), name


# What pytest says of compiled modules that are not those of the sources


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two modules with types, one of them in a folder, and one without."""
    monkeypatch.delenv(speed.VARIABLE, raising=False)
    (tmp_path / "kdns/below").mkdir(parents=True)
    for name in ("one.py", "one.pxd", "below/two.py", "below/two.pxd", "below/three.py"):
        (tmp_path / "kdns" / name).touch()
        os.utime(tmp_path / "kdns" / name, (100, 100))
    return tmp_path


def compiled(tree: Path, name: str, at: int = 200) -> Path:
    path = tree / "kdns" / f"{name}{speed.SUFFIX}"
    path.touch()
    os.utime(path, (at, at))
    return path


def test_all_or_none_is_compiled(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert speed.fault(tree) == ""
    compiled(tree, "one")
    assert speed.fault(tree) == "kdns/below/two.py is not compiled, and others are"
    two = compiled(tree, "below/two")
    assert speed.fault(tree) == ""
    three = compiled(tree, "below/three")
    assert speed.fault(tree) == "kdns/below/three.py is compiled, and has no types any longer"
    monkeypatch.setenv(speed.VARIABLE, "0")
    assert speed.fault(tree) == ""
    monkeypatch.setenv(speed.VARIABLE, "1")
    three.unlink()
    assert speed.fault(tree) == ""
    two.unlink()
    compiled(tree, "one").unlink()
    assert speed.fault(tree) == "nothing is compiled, and KDNS_COMPILED is 1"


@pytest.mark.parametrize("suffix", ["py", "pxd"])
def test_what_has_changed_has_to_be_compiled_again(tree: Path, suffix: str) -> None:
    compiled(tree, "one")
    compiled(tree, "below/two")
    os.utime(tree / f"kdns/below/two.{suffix}", (300, 300))
    assert speed.fault(tree) == "kdns/below/two.py has changed since it was compiled"


def _set(node: ast.ClassDef) -> set[str]:
    """The attributes that a class gives to `self`."""
    return {
        found.attr
        for found in ast.walk(node)
        if isinstance(found, ast.Attribute)
        and isinstance(found.ctx, ast.Store)
        and isinstance(found.value, ast.Name)
        and found.value.id == "self"
    }


@pytest.mark.parametrize("source", speed.typed(), ids=lambda path: path.stem)
def test_every_attribute_of_a_class_with_types_has_one(source: Path) -> None:
    """Compiled, it would not be there."""
    parts = re.split(r"^cdef class (\w+)\b.*:$", source.with_suffix(".pxd").read_text(), flags=re.MULTILINE)
    types = dict(zip(parts[1::2], parts[2::2], strict=True))
    classes = {node.name: node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.ClassDef)}
    assert types.keys() <= classes.keys()
    for name, text in types.items():
        assert _set(classes[name]) <= set(re.findall(r"\w+", text)) | inherited(source, name), name


def test_tests_of_answers_run_at_both_speeds_and_those_of_other_things_at_one() -> None:
    both = {path.name for path in (ROOT / "tests").glob("test_*.py") if speed.concerns(path)}
    answers = {"names", "packet_cache", "direct", "message", "store", "zone_keys", "server_tcp", "spec_messages"}
    answers |= {"spec_records", "spec_options", "cache", "upstream_streams", "relay", "hostile", "fuzz", "speed"}
    others = {"deploy_chart", "project", "readme", "watch", "node_network", "migrate", "apiserver", "unbreakable"}
    assert {f"test_{name}.py" for name in answers} <= both
    assert not {f"test_{name}.py" for name in others} & both
