"""The image's files agree with each other, with the program and with the manifests.

What is built of them is checked and measured by `python -m tests.bench.image`: that needs packages of Debian and PyPI,
and some minutes.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kdns import __version__

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "deploy/docker"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ENTRY = re.compile(r"([a-z0-9][a-z0-9-]*)==(\S+) \\")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
CAUSE = re.compile(r"    #(?: via| {2})(?: (\S.*))?")


@dataclass(frozen=True, slots=True)
class Entry:
    """A locked package. causes: what needs it: packages, or the file that was locked (`kdns (pyproject.toml)`)."""

    version: str
    hashes: int
    causes: frozenset[str]


def locked(path: Path) -> dict[str, Entry]:
    """A lock by name. Anything else than pinned and hashed packages in it is refused."""
    found: dict[str, tuple[str, list[str], list[str]]] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        where = f"{path.name}:{number}: {line}"
        if line.startswith("#"):
            continue
        if entry := ENTRY.fullmatch(line):
            hashes, causes = list[str](), list[str]()
            found[entry[1]] = entry[2], hashes, causes
        elif HASH.fullmatch(line):
            hashes.append(line)
        elif cause := CAUSE.fullmatch(line):
            causes += [cause[1]] if cause[1] else []
        else:
            raise AssertionError(f"neither a package, nor its hash, nor its cause: {where}")
    return {name: Entry(version, len(hashes), frozenset(causes)) for name, (version, hashes, causes) in found.items()}


LOCKS = {
    "requirements.lock": ("kdns (pyproject.toml)", PYPROJECT["project"]["dependencies"]),
    "build.lock": (
        "-r deploy/docker/build.in",
        [line for line in (DOCKER / "build.in").read_text().splitlines() if not line.startswith("#")],
    ),
}
"""Each lock: how it names what was locked, and the requirements in there."""


@pytest.mark.parametrize("name", LOCKS)
def test_every_entry_of_a_lock_has_hashes_and_is_needed_by_another_or_by_us(name: str) -> None:
    lock = locked(DOCKER / name)
    root, _ = LOCKS[name]
    reached = {package for package, entry in lock.items() if root in entry.causes}
    while more := {package for package, entry in lock.items() if entry.causes & reached} - reached:
        reached |= more
    assert set(lock) == reached
    assert [package for package, entry in lock.items() if not entry.hashes] == []


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_what_was_asked_for_within_its_bounds_and_nothing_that_no_longer_is(name: str) -> None:
    lock = locked(DOCKER / name)
    root, requirements = LOCKS[name]
    asked = {canonicalize_name(found.name): found for found in map(Requirement, requirements)}
    assert {package for package, entry in lock.items() if root in entry.causes} == set(asked)
    outside = {
        package: lock[package].version
        for package, found in asked.items()
        if lock[package].version not in found.specifier
    }
    assert outside == {}


def test_a_lock_has_what_the_extras_of_a_dependency_need() -> None:
    lock = locked(DOCKER / "requirements.lock")
    for dependency in map(Requirement, PYPROJECT["project"]["dependencies"]):
        for extra in dependency.extras:
            needs = [Requirement(text) for text in metadata.requires(dependency.name) or ()]
            wanted = {canonicalize_name(n.name) for n in needs if n.marker and n.marker.evaluate({"extra": extra})}
            assert wanted, f"{dependency.name} has no extra {extra}"
            assert {name for name in wanted if dependency.name in " ".join(lock[name].causes)} == wanted


def test_kdns_is_built_with_the_build_backend_that_pyproject_names() -> None:
    assert set(PYPROJECT["build-system"]["requires"]) <= set(LOCKS["build.lock"][1])


# The Dockerfile


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and what they say, each on one line."""
    text = "\n".join(line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines)]


def said(word: str) -> list[str]:
    """What all instructions of a kind say."""
    return [text for name, text in instructions() if name == word]


def commands() -> list[str]:
    """The commands of all RUN instructions."""
    return [command.strip() for text in said("RUN") for command in re.split(r"&&|;", text)]


def environment() -> dict[str, str]:
    """The variables of the final stage."""
    final = instructions()[max(number for number, (word, _) in enumerate(instructions()) if word == "FROM") :]
    return dict(pair.split("=", 1) for word, text in final if word == "ENV" for pair in text.split())


def manifest(path: str, kind: str) -> Any:
    """The pod's specification in a manifest."""
    documents = yaml.safe_load_all((ROOT / "deploy/kubernetes" / path).read_text())
    return next(found for found in documents if found["kind"] == kind)["spec"]["template"]["spec"]


def test_stages_start_from_a_base_with_a_version_or_from_each_other() -> None:
    base = next(text for text in said("ARG") if text.startswith("BASE=")).removeprefix("BASE=")
    assert re.fullmatch(r"[a-z0-9./-]+:(?!latest)[\w.-]+(@sha256:[0-9a-f]{64})?", base)
    stages = {text.partition(" AS ")[2] for text in said("FROM")}
    assert {text.partition(" AS ")[0] for text in said("FROM")} <= stages | {"${BASE}"}
    copied = {found[1] for text in said("COPY") if (found := re.match(r"--from=(\S+)", text))}
    assert copied <= stages
    assert said("ADD") == []


def test_nothing_is_installed_that_is_not_locked_or_recommended_only() -> None:
    pip = [command for command in commands() if re.search(r"\bpip\b.* install ", command)]
    assert len(pip) == 3
    for command in pip:
        assert "--no-deps" in command
        assert "--require-hashes" in command or "--no-index" in command, command
    apt = [command for command in commands() if "apt-get install" in command]
    assert len(apt) == 2
    for command in apt:
        assert "--no-install-recommends" in command
    assert "rm -rf /var/lib/apt/lists/*" in said("RUN")[0]  # the stage whose layer is in the image


def test_the_last_user_is_the_manifests_and_has_a_name_and_the_state_directory() -> None:
    uid, gid = map(int, said("USER")[-1].split(":"))
    pod = manifest("cluster/kdns.yaml", "Deployment")
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (uid, gid)
    [user] = [words.split(":") for words in re.findall(r"echo '(\S*:\S*:\S*)' >>/etc/passwd", said("RUN")[0])]
    state = environment()["KDNS_STATE_DIR"]
    assert user[2:6] == [str(uid), str(gid), "kdns", state]
    assert f"install --directory --owner={uid} --group={gid} --mode=0750 {state}" in commands()
    assert uid > 0


def test_a_nodes_instance_is_not_the_images_user_who_would_have_no_capabilities() -> None:
    [container] = manifest("node/node-local-dns.yaml", "DaemonSet")["containers"]
    assert container["securityContext"]["capabilities"]["add"]
    assert container["securityContext"]["runAsUser"] == 0


def test_the_manifests_command_files_and_state_are_where_the_image_has_them() -> None:
    [program] = ast.literal_eval(said("ENTRYPOINT")[0])
    assert str(Path(program).parent) == environment()["PATH"].split(":")[0]
    pods = [manifest("cluster/kdns.yaml", "Deployment"), manifest("node/node-local-dns.yaml", "DaemonSet")]
    for [container] in (pod["containers"] for pod in pods):
        assert container["command"][0] == Path(program).name
        assert container["image"] == f"kdns:{__version__}"
    [container] = pods[0]["containers"]
    assert [*container["command"][1:], *container["args"]] == ast.literal_eval(said("CMD")[0])
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {said("WORKDIR")[-1], environment()["KDNS_STATE_DIR"]} <= mounted
    exposed = {tuple(port.upper().split("/")) for port in said("EXPOSE")[0].split()}
    assert exposed <= {(str(port["containerPort"]), port["protocol"]) for port in container["ports"]}


def test_the_labels_say_which_version_and_licence_it_is() -> None:
    labels = dict(re.findall(r'(\S+)="([^"]*)"', " ".join(said("LABEL"))))
    assert labels["org.opencontainers.image.version"] == __version__ == PYPROJECT["project"]["version"]
    assert labels["org.opencontainers.image.licenses"] == PYPROJECT["project"]["license"]
    assert labels["org.opencontainers.image.description"] == PYPROJECT["project"]["description"]


# The build context


def allowed(path: str) -> bool:
    """Whether .dockerignore lets a file into the build context: the last pattern that matches it or a folder that it
    is in decides (https://docs.docker.com/build/concepts/context/#dockerignore-files)."""
    inside = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        parts = [re.escape(part).replace(r"\*", "[^/]*") for part in line.removeprefix("!").split("/")]
        pattern = "/".join(parts).replace("[^/]*[^/]*/", "(?:.*/)?")
        if re.fullmatch(f"{pattern}(?:/.*)?", path):
            inside = line.startswith("!")
    return inside


def sources() -> Iterator[Path]:
    """Every file of the repository, what is made beside it (caches, a virtualenv, git's own) by example."""
    for path in sorted(ROOT.iterdir()):
        if path.name in (".git", ".venv"):
            yield path / "config"
        elif path.is_dir() and not path.is_symlink():
            yield from (found for found in path.rglob("*") if not found.is_dir() or found.is_symlink())
        else:
            yield path


def test_the_build_context_has_what_is_copied_from_it_and_nothing_else() -> None:
    copied = [word for text in said("COPY") if not text.startswith("--from") for word in text.split()[:-1]]
    assert [word for word in copied if not (ROOT / word).exists()] == []
    wanted = {
        str(path.relative_to(ROOT))
        for path in sources()
        if any(path.is_relative_to(ROOT / word) for word in copied)
        and "__pycache__" not in path.parts
        and path.suffix != ".so"
    }
    assert {str(path.relative_to(ROOT)) for path in sources() if allowed(str(path.relative_to(ROOT)))} == wanted


def test_the_data_of_kdns_is_copied_to_where_its_links_lead() -> None:
    copied = [text.split() for text in said("COPY") if not text.startswith("--from")]
    places = {word: target.removesuffix(word) for *words, target in copied for word in words}
    for package, patterns in PYPROJECT["tool"]["setuptools"]["package-data"].items():
        for pattern in patterns:
            found = [path.resolve().relative_to(ROOT) for path in (ROOT / package.replace(".", "/")).glob(pattern)]
            assert found, f"{package} has no {pattern}"
            for path in found:
                assert [place for word, place in places.items() if path.is_relative_to(word)] == ["/src/"], path


# What is left out of the packages


REFUSE = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        for package, modules in {refused!r}:
            if name == package and modules == "all" or name.startswith(package + ".") and name != package:
                raise ImportError(name + " is not in the image")

sys.meta_path.insert(0, Refused())
"""


def test_kdns_imports_nothing_of_a_package_that_the_image_leaves_out() -> None:
    [step] = [text for text in said("RUN") if "/site-packages/kubernetes" in text]
    removed = re.findall(r"rm -r (\S+)", step)
    emptied = next(
        found[1].split() for found in [re.search(r"find (.+?) -name '\*\.py' ! -name __init__\.py", step)] if found
    )
    assert removed
    assert emptied
    refused = [("kubernetes." + path.replace("/", "."), "all") for path in removed]
    refused += [("kubernetes." + path.replace("/", "."), "modules") for path in emptied]
    statements = {
        ast.unparse(node)
        for path in sorted((ROOT / "kdns").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and "kubernetes" in ast.unparse(node).split(" import ")[0]
        and "kdns" not in ast.unparse(node)
    }
    assert any("load_kube_config" in statement for statement in statements)
    program = "\n".join([REFUSE.format(refused=refused), *sorted(statements)])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# deploy/docker/build


@dataclass(frozen=True, slots=True)
class Building:
    """What `deploy/docker/build` did. asked: the arguments of the builder that it took, and its variables."""

    code: int
    errors: str
    builder: str
    asked: list[str]
    variables: dict[str, str]


def build(folder: Path, builders: Mapping[str, bool], *arguments: str, **variables: str) -> Building:
    """Run it where some builders are installed. builders: whether they work."""
    folder.mkdir()
    for name, works in builders.items():
        info = f"case $1 in info) exit {0 if works else 1} ;; esac"
        told = f'printf "%s\\n" {name} "$@" >{folder}/asked; env >{folder}/variables'
        (folder / name).write_text(f"#!/bin/sh\n{info}\n{told}\n")
        (folder / name).chmod(0o755)
    for name in ("dirname", "env", "git", "printenv", "sed", "sh"):
        (folder / name).symlink_to(shutil.which(name) or name)
    environ = {"PATH": str(folder), "HOME": os.environ.get("HOME", "/"), **variables}
    done = subprocess.run([DOCKER / "build", *arguments], capture_output=True, text=True, env=environ, cwd=folder)
    asked = (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else [""]
    lines = (folder / "variables").read_text().splitlines() if (folder / "variables").exists() else []
    return Building(
        done.returncode, done.stderr, asked[0], asked[1:], dict(line.split("=", 1) for line in lines if "=" in line)
    )


def test_the_first_builder_that_works_builds(tmp_path: Path) -> None:
    done = build(tmp_path / "bin", {"docker": False, "podman": True, "buildah": True}, "--platform", "linux/arm64")
    assert (done.code, done.builder) == (0, "podman")
    assert (done.asked[0], done.asked[-1]) == ("build", ".")
    assert " ".join(done.asked).endswith(
        f"--tag kdns:{__version__} --file deploy/docker/Dockerfile --platform linux/arm64 ."
    )
    assert "--timestamp" in done.asked


def test_without_a_builder_it_says_what_builds(tmp_path: Path) -> None:
    done = build(tmp_path / "bin", {"docker": False})
    assert (done.code, done.builder) == (1, "")
    assert re.search("docker .*podman or buildah", done.errors)


def test_what_a_build_behind_a_proxy_needs_reaches_it(tmp_path: Path) -> None:
    variables = {"CA_FILE": "/some/ca.pem", "HTTPS_PROXY": "http://proxy:3128", "PIP_INDEX_URL": "http://index/simple"}
    done = build(tmp_path / "bin", {"docker": True}, **variables, SOURCE_DATE_EPOCH="17", IMAGE="registry/kdns:x")
    pairs = set(zip(done.asked, done.asked[1:], strict=False))
    assert ("--secret", "id=ca,src=/some/ca.pem") in pairs
    given = {"HTTPS_PROXY", "PIP_INDEX_URL", "SOURCE_DATE_EPOCH"}
    assert {name for flag, name in pairs if flag == "--build-arg"} == given
    assert ("--tag", "registry/kdns:x") in pairs
    assert (done.variables["SOURCE_DATE_EPOCH"], done.variables["DOCKER_BUILDKIT"]) == ("17", "1")
