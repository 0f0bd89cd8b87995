"""`python -m tests.bench.image`: builds the container image twice, checks it, and measures its size and its start.

The base image is pulled, or made of Debian's packages where no registry can be reached. Containers are run by runc as
the manifests say. Ends with 1 if something does not hold (tests/bench/image_checks.py). Root is needed.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated

import dns.exception
import dns.message
import typer
from rich.console import Console
from rich.table import Table

from tests.bench import image_checks, report
from tests.bench.image_checks import Check
from tests.support import deploy, image, netns, oci
from tests.support.image import Built, Content, Store
from tests.support.netns import Netns
from tests.support.oci import Container, Image, Mount, Security
from tests.support.server import ROOT

RESULTS = Path(__file__).parent / "results"
REFERENCE = "python3 -c pass"
ROUNDS, COLD_ROUNDS = 9, 5
START_SECONDS = 30.0
POLL_SECONDS = 0.002
LARGEST = 12
MARKER, MARKED = "marker.test", "192.0.2.7"
SAMPLE, SAMPLED = "web.shop.svc.cluster.local", "10.96.20.1"
LOOPBACK, CLUSTER_IP = "127.0.0.1", "10.96.0.10"
OTHERS = {"coredns": "CoreDNS", "node_cache": "NodeLocal DNSCache"}
ALONE = "-localip=127.0.0.1", "-setupinterface=false", "-setupiptables=false"
"""NodeLocal DNSCache's flags, with which it changes nothing of the network."""

SERVE = """\
.:53 {
    errors
    health
    ready
    prometheus :9153
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        manifests /sample
    }
    loadbalance
}
"""
HOSTS = f"""\
.:53 {{
    bind 127.0.0.1
    hosts {{
        {MARKED} {MARKER}
    }}
}}
"""
NODE = f"""\
.:53 {{
    bind __PILLAR__LOCAL__DNS__
    hosts {{
        {MARKED} {MARKER}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to start a container. make: a new one in a network and a folder of its own. asks: the address, the name and
    the right answer that end the time; None: the end of the container does."""

    name: str
    make: Callable[[Netns, Path], Container]
    asks: tuple[str, str, str] | None = None


@dataclass(frozen=True, slots=True)
class Starts:
    """Seconds from the runtime's start, one for each round. cold: nothing of the image and of mounted programs is in
    the page cache. ratio: the median over rounds to REFERENCE's in the same round."""

    kind: str
    cold: bool
    seconds: list[float]
    median: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes: as a registry has it (gzip), and unpacked (as the archive has the files)."""

    compressed: int
    unpacked: int


@dataclass(frozen=True, slots=True)
class Report:
    """All that was found. base: where the base image is from. layers, parts: by name; packages: the largest, in bytes.
    programs: others' programs alone, without a root around them."""

    date: str
    machine: Mapping[str, str | int | float]
    versions: Mapping[str, str]
    base: str
    digest: str
    build_seconds: list[float]
    layers: Mapping[str, Size]
    parts: Mapping[str, int]
    packages: Mapping[str, int]
    packages_in_sbom: Mapping[str, int]
    programs: Mapping[str, Size]
    starts: list[Starts]
    checks: list[Check]


def main(
    base: Annotated[Path | None, typer.Option(help="What `debootstrap --variant=minbase` made, for the base.")] = None,
    coredns: Annotated[Path | None, typer.Option(help="CoreDNS's program, to start it beside.")] = None,
    node_cache: Annotated[Path | None, typer.Option(help="NodeLocal DNSCache's program, likewise.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Starts of each kind; half as many with a cold cache.")] = ROUNDS,
    record: Annotated[bool, typer.Option("--record", help=f"Write the figures to {RESULTS.name}/ as JSON.")] = False,
) -> None:
    """Build, check and measure the image."""
    console = Console(stderr=True)
    _require(console)
    others = {name: path for name, path in (("coredns", coredns), ("node_cache", node_cache)) if path is not None}
    with tempfile.TemporaryDirectory(prefix="kdns-image-") as name, Store(Path(name) / "images") as store:
        try:
            found = _measure(Path(name), store, base, others, rounds, console)
        except image.ImageError as error:
            console.print(str(error), markup=False, highlight=False)
            raise typer.Exit(1) from None
    _show(found, Console())
    if record:
        path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d-%H%M}-image.json"
        path.write_text(json.dumps(asdict(found), indent=1) + "\n")
        console.print(f"written: {path}")
    if any(one.fault for one in found.checks):
        raise typer.Exit(1)


def _require(console: Console) -> None:
    try:
        netns.require()
    except netns.NetnsUnavailableError as error:
        console.print(str(error))
        raise typer.Exit(2) from None
    missing = {package for program, package in image.PROGRAMS.items() if shutil.which(program) is None}
    if missing or oci.missing():
        names = sorted(missing | ({"runc", "golang-github-containers-common"} if oci.missing() else set()))
        console.print(f"not everything is installed; Debian has it in: {' '.join(names)}")
        raise typer.Exit(2)


def _measure(
    folder: Path, store: Store, base: Path | None, others: Mapping[str, Path], rounds: int, console: Console
) -> Report:
    machine = report.machine()
    pulled = base is None and store.pull_base()
    if not pulled:
        console.print("base image: made of Debian's packages")
        store.make_base(base)
    source = image.snapshot(folder / "source")
    built = []
    for name in ("kdns:one", "kdns:two"):
        console.print(f"building {name}")
        built.append(store.build(source, name, epoch=image.epoch()))
    unpacked = store.unpack(built[0], folder / "root")
    found = image.content(unpacked.root, image.own_files(built[0]))
    console.print("checks")
    checks = image_checks.of_files(source, built[0], built[1], unpacked, found)
    (folder / "runs").mkdir()
    checks += image_checks.of_runs(unpacked, folder / "runs")
    starts = _starts(folder / "starts", unpacked, others, rounds, console)
    debian, python = image.listed(unpacked.root)
    return Report(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine,
        versions=_versions(found) | {OTHERS[name]: _version(name, path) for name, path in others.items()},
        base="pulled" if pulled else "made with debootstrap, reduced as a slim image is",
        digest=built[0].id,
        build_seconds=[one.seconds for one in built],
        layers=_layers(built[0]),
        parts=_parts(built[0], found),
        packages=dict(sorted(found.bytes.items(), key=lambda item: -item[1])[:LARGEST]),
        packages_in_sbom={"debian": len(debian), "python": len(python)},
        programs={
            OTHERS[name]: Size(len(gzip.compress(path.read_bytes(), 6)), path.stat().st_size)
            for name, path in others.items()
        },
        starts=starts,
        checks=checks,
    )


# Size


def _layers(built: Built) -> dict[str, Size]:
    names = "base", "Debian packages", "Python packages", "kdns"
    found = {name: Size(one.compressed, one.size) for name, one in zip(names, built.layers, strict=True)}
    total = Size(sum(one.compressed for one in built.layers), sum(one.size for one in built.layers))
    return found | {"all": total}


def _parts(built: Built, found: Content) -> dict[str, int]:
    """Bytes of the files of the base image, of Python, of other packages of Debian, and of Python packages."""

    def of(names: Iterable[str]) -> int:
        return sum(found.bytes.get(name, 0) for name in names)

    python = {name for name in found.debian if "python3" in name}
    return {
        "base": built.layers[0].size,
        "Python, of Debian": of(python),
        "other packages of Debian": of(found.debian.keys() - python - found.python.keys()),
        "Python packages": of(found.python.keys() - {"kdns"}),
        "kdns": of({"kdns"}),
    }


def _versions(found: Content) -> dict[str, str]:
    debian = {name: found.debian[name] for name in ("python3.13-minimal", "libnftables1", "iptables", "base-files")}
    programs = {"buildah": ["buildah", "--version"], "runc": ["runc", "--version"]}
    return {"kdns": found.python["kdns"], **debian} | {name: _first_line(*words) for name, words in programs.items()}


def _version(name: str, program: Path) -> str:
    command = [program, *(ALONE if name == "node_cache" else ()), "-version"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return next((line for line in lines if line.startswith("CoreDNS-")), "unknown")


def _first_line(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0]


# Start


def _starts(folder: Path, unpacked: Image, others: Mapping[str, Path], rounds: int, console: Console) -> list[Starts]:
    """All kinds in turns, so that what else happens on the machine meets all of them."""
    folder.mkdir()
    kinds = list(_kinds(folder, unpacked, others))
    found = []
    for cold in (False, True):
        seconds: dict[str, list[float]] = {kind.name: [] for kind in kinds}
        for number in range(-(-rounds // 2) if cold else rounds):
            console.print(f"starts, {'cold' if cold else 'warm'}: round {number + 1}")
            for kind in kinds:
                place = folder / f"{kind.name.replace(' ', '-').replace(',', '')}-{cold}-{number}"
                if cold:
                    _forget([unpacked.root, *others.values()])
                seconds[kind.name].append(_start(kind, place))
                shutil.rmtree(place)
        reference = seconds[REFERENCE]
        found += [
            Starts(
                name,
                cold,
                [round(one, 4) for one in own],
                round(median(own), 4),
                round(median(one / other for one, other in zip(own, reference, strict=True)), 2),
            )
            for name, own in seconds.items()
        ]
    return found


def _kinds(folder: Path, unpacked: Image, others: Mapping[str, Path]) -> Iterator[Kind]:
    given = deploy.files("cluster/kdns.yaml", "node/node-local-dns.yaml")
    cluster, node = (_security(given[key]) for key in (image_checks.DEPLOYMENT, image_checks.DAEMON_SET))
    for name, text in (("serve", SERVE), ("hosts", HOSTS), ("node", NODE)):
        (folder / name).write_text(text)
    (folder / "state").mkdir()
    (folder / "state").chmod(0o777)
    shutil.copytree(ROOT / "zones/sample", folder / "sample")
    bare = folder / "without bytecode"
    subprocess.run(["cp", "-a", unpacked.root, bare], check=True)
    for cache in list(bare.rglob("__pycache__")):
        shutil.rmtree(cache)

    def kdns(place: str, state: Path | None = None, root: Path | None = None) -> Callable[[Netns, Path], Container]:
        def make(network: Netns, own: Path) -> Container:
            own.mkdir()
            (own / "state").mkdir()
            (own / "state").chmod(0o777)
            mounts = [Mount(folder / place, "/etc/kdns/Corefile"), Mount(folder / "sample", "/sample")]
            mounts += [Mount(state or own / "state", "/var/lib/kdns")]
            started = Image(root or unpacked.root, unpacked.config)
            return Container(started, own / "container", network, mounts=mounts, security=cluster)

        return make

    def program(
        *command: str, mounted: Path | None = None, security: Security = cluster
    ) -> Callable[[Netns, Path], Container]:
        def make(network: Netns, own: Path) -> Container:
            (own / "run").mkdir(parents=True)
            mounts = [
                Mount(folder / "hosts", "/etc/kdns/Corefile"),
                Mount(folder / "node", "/etc/coredns/Corefile.base"),
            ]
            mounts += [Mount(own / "run", "/run")]
            mounts += [Mount(mounted, "/program", read_only=True)] if mounted is not None else []
            return Container(unpacked, own / "container", network, command=command, mounts=mounts, security=security)

        return make

    marker, sample = (LOOPBACK, MARKER, MARKED), (LOOPBACK, SAMPLE, SAMPLED)
    yield Kind("true", program("/bin/true"))
    yield Kind(REFERENCE, program("/opt/kdns/bin/python3", "-c", "pass"))
    yield Kind("kdns serve, empty state directory", kdns("serve"), sample)
    yield Kind("kdns serve, store of the last run", kdns("serve", folder / "state"), sample)
    yield Kind("kdns serve, no bytecode", kdns("serve", root=bare), sample)
    yield Kind("kdns serve, hosts", kdns("hosts"), marker)
    intercepted = ["kdns", "node", f"-localip=169.254.20.10,{CLUSTER_IP}", "-conf=/run/Corefile"]
    yield Kind("kdns node", program(*intercepted, security=node), (CLUSTER_IP, MARKER, MARKED))
    if "coredns" in others:
        started = program("/program", "-conf", "/etc/kdns/Corefile", mounted=others["coredns"])
        yield Kind("CoreDNS, hosts", started, marker)
    if "node_cache" in others:
        command = "/program", *ALONE, "-conf=/etc/kdns/Corefile"
        started = program(*command, mounted=others["node_cache"], security=node)
        yield Kind("NodeLocal DNSCache, hosts", started, marker)


def _security(found: Mapping[str, object]) -> Security:
    spec = found["spec"]["template"]["spec"]  # type: ignore[index]
    return oci.security_of(spec, spec["containers"][0])


def _start(kind: Kind, place: Path) -> float:
    """Seconds from the runtime's start to the first right answer, or to the end. Others' addresses are asked for from a
    pod."""
    with Netns("start") as network, Netns("pod") as pod, kind.make(network, place) as container:
        network.connect(pod, ["10.244.1.1/24"], ["10.244.1.2/24"])
        pod.ip("route", "add", "default", "via", "10.244.1.1")
        begun = time.monotonic()
        container.start()
        if kind.asks is None:
            assert container.process is not None
            code = container.process.wait()  # with a time limit it would look every 50 ms
            took = time.monotonic() - begun
            if code:
                raise RuntimeError(f"{kind.name} ended with {code}:\n{container.log}")
            return took
        address, name, right = kind.asks
        query = dns.message.make_query(name, "A").to_wire()
        with (network if address == LOOPBACK else pod).socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(POLL_SECONDS)
            sock.connect((address, 53))
            while not _gives(sock, query, right):
                if time.monotonic() - begun > START_SECONDS:
                    raise RuntimeError(f"{kind.name}: no right answer in {START_SECONDS:g} s:\n{container.log}")
            return time.monotonic() - begun


def _gives(sock: socket.socket, query: bytes, right: str) -> bool:
    """Whether the right answer comes to this query, or has come late to the last one."""
    try:
        sock.send(query)
        answer = dns.message.from_wire(sock.recv(4096)).answer
    except TimeoutError:
        return False
    except (OSError, dns.exception.DNSException):
        time.sleep(POLL_SECONDS)
        return False
    return [str(found) for rrset in answer for found in rrset] == [right]


def _forget(places: Sequence[Path]) -> None:
    """Take files out of the page cache (posix_fadvise(2))."""
    os.sync()
    for place in places:
        for path in [place] if place.is_file() else place.rglob("*"):
            if path.is_file() and not path.is_symlink():
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


# What is shown


def _show(found: Report, console: Console) -> None:
    sizes = Table(title=f"Size, base {found.base}", title_justify="left")
    for head in ("layer", "compressed", "unpacked"):
        sizes.add_column(head, justify="left" if head == "layer" else "right")
    for name, size in [
        *found.layers.items(),
        *((f"{name}, program alone", one) for name, one in found.programs.items()),
    ]:
        sizes.add_row(name, f"{size.compressed / 1e6:.1f} MB", f"{size.unpacked / 1e6:.1f} MB")
    console.print(sizes)
    for title, parts in (("Files", found.parts), ("Largest packages above the base", found.packages)):
        table = Table(title=title, title_justify="left")
        table.add_column("")
        table.add_column("MB", justify="right")
        for name, count in parts.items():
            table.add_row(name, f"{count / 1e6:.1f}")
        console.print(table)
    starts = Table(title="Start: from the runtime's start to the first right answer, or the end", title_justify="left")
    for head in ("what", "page cache", "median", "least, most", f"/ {REFERENCE}"):
        starts.add_column(head, justify="left" if head in ("what", "page cache") else "right")
    for one in found.starts:
        ends = f"{min(one.seconds):.3f}, {max(one.seconds):.3f}"
        starts.add_row(one.kind, "cold" if one.cold else "warm", f"{one.median:.3f} s", ends, f"{one.ratio:.2f}")
    console.print(starts)
    console.print(f"built in {' and '.join(f'{one:.0f} s' for one in found.build_seconds)}; {found.digest}")
    for each in found.checks:
        console.print(f"{'holds' if not each.fault else 'DOES NOT HOLD'}: {each.name}", highlight=False)
        if each.fault:
            console.print(f"    {each.fault}", highlight=False, markup=False)


if __name__ == "__main__":
    typer.run(main)
