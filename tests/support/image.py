"""The container image: built here by buildah, unpacked, and what its files belong to.

Where no registry can be reached, the base image is made of Debian's packages, as debian:trixie-slim is: what
debootstrap calls minbase, without documents, manuals and translations.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.oci import Image
from tests.support.server import ROOT

PROGRAMS = {"buildah": "buildah", "debootstrap": "debootstrap", "git": "git", "runc": "runc"}
"""What is needed, and the Debian packages that have it."""
BASE, SUITE = "debian:trixie-slim", "trixie"
MADE = f"localhost/{BASE}"
"""The base image that is made here."""
PULL_SECONDS = 120
_EMPTIED = ("usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/linda",
            "usr/share/groff", "var/lib/apt/lists", "var/cache/apt")  # fmt: skip
_EXCLUDES = """\
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/man/*
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/lintian/*
path-exclude /usr/share/linda/*
path-exclude /usr/share/groff/*
"""
"""How dpkg keeps a slim root slim (dpkg.cfg(5))."""
_GENERATED = (
    r"/etc/(passwd|group|hosts)", r"/etc/ld\.so\.cache", r"/etc/ca-certificates\.conf", r"/etc/ssl/certs/.*",
    r"/etc/alternatives/.*", r"/usr/sbin/(ip6?tables|arptables|ebtables)(-restore|-save)?", r"/etc/inputrc",
    r"/etc/networks", r"/etc/python3/debian_config", r"/var/lib/python/python3\.13_installed", r"/var/lib/dpkg/.*",
    r"/var/cache/debconf/(config|templates|passwords)\.dat", r"/var/cache/apt/archives/lock",
    r"/opt/kdns/(pyvenv\.cfg|\.gitignore|lib64|bin/(python[0-9.]*|[Aa]ctivate[.a-z0-9]*))",
    r"/usr/share/kdns/sbom\.cdx\.json",
)  # fmt: skip
"""Files that no package has, and that are made where packages are installed, or by the Dockerfile."""


class ImageError(Exception):
    """The image cannot be built or read; the text says why."""


@dataclass(frozen=True, slots=True)
class Layer:
    """diff: the digest of its files' archive. Sizes in bytes: as a registry has it (gzip), and the archive's."""

    diff: str
    compressed: int
    size: int


@dataclass(frozen=True, slots=True)
class Built:
    """name: in the store. id: the digest of its configuration. layers: the base's first. archives: one for each."""

    name: str
    id: str
    seconds: float
    layers: tuple[Layer, ...]
    config: Mapping[str, Any]
    archives: tuple[Path, ...]


class Store:
    """Images of ours alone; a context manager. folder: for all of it, whoever removes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._buildah = ["buildah", "--root", str(folder / "store"), "--runroot", str(folder / "run")]
        self._buildah += ["--storage-driver", "overlay"]
        self._environ = {"BUILDER": " ".join(self._buildah)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Unmount what a build that failed has left."""
        subprocess.run([*self._buildah, "rm", "--all"], capture_output=True)
        subprocess.run(["umount", self.folder / "store/overlay"], capture_output=True)

    def pull_base(self) -> bool:
        """Get the base image from its registry, if that can be reached."""
        command = [*self._buildah, "pull", "--quiet", BASE]
        try:
            return subprocess.run(command, capture_output=True, timeout=PULL_SECONDS).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def make_base(self, tree: Path | None = None) -> None:
        """Make the base image here. tree: what debootstrap has made before (--variant=minbase); it is not changed."""
        root = self.folder / "base"
        if tree is None:
            _run("debootstrap", "--variant=minbase", SUITE, str(root))
        else:
            _run("cp", "-a", str(tree), str(root))
        for name in _EMPTIED:
            for entry in (root / name).iterdir() if (root / name).exists() else ():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        for path in sorted((root / "usr/share/doc").rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.name != "copyright":
                path.unlink()
        for log in (root / "var/log").rglob("*.log"):
            log.unlink()
        (root / "etc/dpkg/dpkg.cfg.d/docker").write_text(_EXCLUDES)
        container = self._do("from", "scratch")
        self._do("add", "--quiet", container, str(root), "/")
        self._do("commit", "--quiet", "--rm", container, MADE)
        self._environ["BASE"] = MADE
        shutil.rmtree(root)

    def build(self, source: Path, name: str, *, epoch: int) -> Built:
        """Build as deploy/docker/build does, with nothing from an earlier build. Raises ImageError."""
        flags = ["--pull-never", "--no-cache", "--isolation", "chroot", "--network", "host"]
        environ = self._environ | {"IMAGE": name, "SOURCE_DATE_EPOCH": str(epoch)}
        begun = time.monotonic()
        done = subprocess.run(
            [source / "deploy/docker/build", *flags],
            capture_output=True,
            text=True,
            env=os.environ | environ,
            cwd=source,
        )
        if done.returncode:
            raise ImageError(f"deploy/docker/build failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return self._describe(name, time.monotonic() - begun)

    def _describe(self, name: str, seconds: float) -> Built:
        place = self.folder / f"oci-{name.replace(':', '-')}"
        self._do("push", "--quiet", name, f"oci:{place}:image")

        def blob(digest: str) -> Path:
            return place / "blobs" / digest.replace(":", "/")

        manifest = json.loads(
            blob(json.loads((place / "index.json").read_text())["manifests"][0]["digest"]).read_text()
        )
        config = json.loads(blob(manifest["config"]["digest"]).read_text())
        archives = tuple(blob(layer["digest"]) for layer in manifest["layers"])
        layers = tuple(
            Layer(diff, path.stat().st_size, _length(path))
            for diff, path in zip(config["rootfs"]["diff_ids"], archives, strict=True)
        )
        return Built(name, manifest["config"]["digest"], seconds, layers, config["config"], archives)

    def unpack(self, built: Built, target: Path) -> Image:
        """Its files in a directory."""
        container = self._do("from", "--pull-never", built.name)
        try:
            _run("cp", "-a", self._do("mount", container), str(target))
        finally:
            self._do("rm", container)
        return Image(target, built.config)

    def _do(self, *arguments: str) -> str:
        return _run(*self._buildah, *arguments).strip()


def snapshot(folder: Path) -> Path:
    """A copy of the source tree as it is now, that stays as it is. Raises ImageError."""
    listing = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in _run("git", "-C", str(ROOT), *listing).split("\0"):
        source = ROOT / name
        if name and (source.is_symlink() or source.exists()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name, follow_symlinks=False)
    return folder


def epoch() -> int:
    """When what the image is made of besides kdns was changed last, as deploy/docker/build has it."""
    return int(_run("git", "-C", str(ROOT), "log", "-1", "--format=%ct", "--", "deploy/docker"))


def differences(one: Built, other: Built) -> list[str]:
    """The files that two builds have differently, or one of them alone."""
    found = []
    for number, (mine, theirs) in enumerate(zip(one.archives, other.archives, strict=True)):
        if one.layers[number].diff != other.layers[number].diff:
            left, right = dict(_entries(mine)), dict(_entries(theirs))
            found += sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
    return found


def _entries(archive: Path) -> Iterator[tuple[str, tuple[object, ...]]]:
    with tarfile.open(archive) as tar:
        for entry in tar:
            file = tar.extractfile(entry) if entry.isfile() else None
            content = hashlib.sha256(file.read()).hexdigest() if file is not None else entry.linkname
            yield entry.name, (entry.type, entry.mode, entry.uid, entry.gid, entry.mtime, content)


# What is in it


@dataclass(frozen=True, slots=True)
class Content:
    """What an image's files belong to. debian, python: versions by name. bytes: of the files of each package.

    unowned: files of the image's own layers that belong to none, and that nothing makes of which we know.
    """

    debian: Mapping[str, str]
    python: Mapping[str, str]
    bytes: Mapping[str, int]
    unowned: tuple[str, ...]


def content(root: Path, own: Iterable[str]) -> Content:
    """Look through an unpacked image. own: the paths of the files that its own layers bring, without the base's."""
    owners: dict[str, str] = {}
    database = root / "var/lib/dpkg"
    debian = _debian(database / "status")
    for listing in (database / "info").glob("*.list"):
        package = listing.stem.partition(":")[0]
        owners |= {_real(root, line): package for line in listing.read_text().splitlines()}
    [packages] = (root / "opt/kdns/lib").glob("python3.*/site-packages")
    python = {}
    for information in packages.glob("*.dist-info"):
        name, version = _python(information)
        python[name] = version
        with (information / "RECORD").open(newline="") as record:
            paths = (os.path.normpath(packages / row[0]) for row in csv.reader(record))
            owners |= {f"/{Path(path).relative_to(root)}": name for path in paths}
    sizes: dict[str, int] = {}
    unowned = []
    for path in own:
        file = root / path.lstrip("/")
        owner = owners.get(_real(root, path)) or owners.get(_source(_real(root, path)))
        if owner is not None and not file.is_symlink():
            sizes[owner] = sizes.get(owner, 0) + file.stat().st_size
        elif owner is None and not any(re.fullmatch(pattern, path) for pattern in _GENERATED):
            unowned.append(path)
    return Content(debian, python, sizes, tuple(sorted(unowned)))


def own_files(built: Built) -> set[str]:
    """The files and links that are in the image and not in its base."""
    found: set[str] = set()
    for archive in built.archives[1:]:
        with tarfile.open(archive) as tar:
            names = [(entry.name.removeprefix("./"), entry.isdir()) for entry in tar]
        for name, is_directory in names:
            folder, _, last = name.rpartition("/")
            if last.startswith(".wh."):
                found.discard(f"/{folder}/{last.removeprefix('.wh.')}")
            elif not is_directory:
                found.add(f"/{name}")
    return found


def listed(root: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The Debian and the Python packages of the image's SBOM, versions by name."""
    bom = json.loads((root / "usr/share/kdns/sbom.cdx.json").read_text())
    found: dict[str, dict[str, str]] = {"deb": {}, "pypi": {}}
    for component in bom["components"]:
        kind = component.get("purl", "").removeprefix("pkg:").partition("/")[0]
        if kind in found:
            found[kind][_canonical(component["name"], kind)] = component["version"]
    main = bom["metadata"]["component"]
    return found["deb"], found["pypi"] | {main["name"]: main["version"]}


def _debian(status: Path) -> dict[str, str]:
    """Installed packages, from dpkg's database (deb-control(5))."""
    found = {}
    for paragraph in status.read_text().split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            found[fields["Package"]] = fields["Version"]
    return found


def _python(information: Path) -> tuple[str, str]:
    text = (information / "METADATA").read_text()
    fields = dict(re.findall(r"^(Name|Version): (.*)$", text.split("\n\n", 1)[0], re.MULTILINE))
    return _canonical(fields["Name"], "pypi"), fields["Version"]


def _canonical(name: str, kind: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower() if kind == "pypi" else name


def _real(root: Path, path: str) -> str:
    """A path in the image with the links to the folders that it is in followed."""
    found = ""
    for part in Path(path).parts[1:-1]:
        step = root / f"{found}/{part}".lstrip("/")
        target = os.path.normpath(Path(f"{found}/{part}").parent / step.readlink()) if step.is_symlink() else None
        found = f"{found}/{part}" if target is None else target.rstrip("/")
    return f"{found}/{Path(path).name}"


def _source(path: str) -> str:
    """The module that bytecode was compiled from."""
    found = re.fullmatch(r"(.*)/__pycache__/(.*)\.cpython-\d+\.pyc", path)
    return f"{found[1]}/{found[2]}.py" if found else path


def _length(archive: Path) -> int:
    with gzip.open(archive) as file:
        return sum(len(piece) for piece in iter(lambda: file.read(1 << 20), b""))


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ImageError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout
