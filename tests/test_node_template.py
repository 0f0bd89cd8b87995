"""The node's Corefile: variables of the base file, the kube-dns ConfigMap, and what happens when either is wrong."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kdns.corefile.config import Config
from kdns.corefile.parser import Part
from kdns.errors import ConfigError, KdnsError, Mistake
from kdns.node import configmap, loader
from kdns.node.configmap import KubeDns, StubDomain
from kdns.node.loader import Loader, Paths
from kdns.node.template import Values, fill, service_variable
from kdns.observe.logs import Log, Sink
from kdns.plugins import load_parts
from tests.support.volume import Volume

VALUES = Values(("169.254.20.10", "10.96.0.10"), 53, "cluster.local", "kube-dns-upstream", "10.96.0.11")
BASE = """\
__PILLAR__DNS__DOMAIN__:53 {
    errors
    bind __PILLAR__LOCAL__DNS__ __PILLAR__DNS__SERVER__
    forward . __PILLAR__CLUSTER__DNS__ {
            force_tcp
    }
    health __PILLAR__LOCAL__DNS__:8080
}
.:53 {
    bind __PILLAR__LOCAL__DNS__
    forward . __PILLAR__UPSTREAM__SERVERS__ {
            force_tcp
    }
}
"""


NOTHING = KubeDns()


def filled(base: str, kube_dns: KubeDns = NOTHING, values: Values = VALUES) -> list[str]:
    return [part.data.decode() for part in fill(base.encode(), "/base", values, kube_dns)]


def mistakes(base: str, values: Values = VALUES) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        fill(base.encode(), "/base", values, NOTHING)
    return [str(mistake) for mistake in caught.value.mistakes]


def test_variables_stand_for_the_nodes_addresses_the_domain_the_cluster_dns_and_resolv_conf() -> None:
    assert filled(BASE) == [
        """\
cluster.local:53 {
    errors
    bind 169.254.20.10 10.96.0.10 \n\
    forward . 10.96.0.11 {
            force_tcp
    }
    health 169.254.20.10:8080
}
.:53 {
    bind 169.254.20.10 10.96.0.10
    forward . /etc/resolv.conf {
            force_tcp
    }
}
"""
    ]


def test_an_ipv6_address_before_a_port_gets_brackets() -> None:
    values = Values(("fd00::10", "fd00:96::a"), 53, "cluster.local", "kube-dns", "fd00:96::b")
    base = "health __PILLAR__LOCAL__DNS__:8080\nbind __PILLAR__LOCAL__DNS__\nforward . __PILLAR__CLUSTER__DNS__:5353"
    assert filled(base, values=values) == [
        "health [fd00::10]:8080\nbind fd00::10 fd00:96::a\nforward . [fd00:96::b]:5353"
    ]


@pytest.mark.parametrize(
    "block", [" {\n            force_tcp\n    }", " {\n\tforce_tcp\n}", " { force_tcp }", "{force_tcp}"]
)
def test_upstream_nameservers_are_asked_over_udp_and_lines_keep_their_numbers(block: str) -> None:
    base = f". {{\n    forward . __PILLAR__UPSTREAM__SERVERS__{block}\n    nonsense\n}}\n"
    [text] = filled(base, KubeDns(upstreams=("192.0.2.1", "192.0.2.2:5353")))
    assert "force_tcp" not in text
    assert "forward . 192.0.2.1 192.0.2.2:5353\n" in text
    assert text.split("\n").index("    nonsense") == base.split("\n").index("    nonsense")


def test_a_block_with_more_than_force_tcp_stays_and_so_does_that_of_the_cluster_dns() -> None:
    more = ". {\n    forward . __PILLAR__UPSTREAM__SERVERS__ {\n        force_tcp\n        max_fails 5\n    }\n}\n"
    assert filled(more, KubeDns(upstreams=("192.0.2.1",))) == [
        more.replace("__PILLAR__UPSTREAM__SERVERS__", "192.0.2.1")
    ]
    [text] = filled(BASE, KubeDns(upstreams=("192.0.2.1",)))
    assert text.count("force_tcp") == 1
    assert "forward . 10.96.0.11 {\n            force_tcp" in text


def test_a_cluster_dns_that_the_environment_does_not_know_is_a_mistake_in_each_line_that_wants_it() -> None:
    unknown = Values(("169.254.20.10",), 53, "cluster.local", "kube-dns-upstream", "")
    found = mistakes(BASE + "forward . __PILLAR__CLUSTER__DNS__\n", unknown)
    assert [text.split(": ")[0] for text in found] == ["/base:4", "/base:15"]
    assert "KUBE_DNS_UPSTREAM_SERVICE_HOST" in found[0]
    assert filled(". {\n bind __PILLAR__LOCAL__DNS__ # __PILLAR__CLUSTER__DNS__\n}", values=unknown)


def test_a_variable_that_nobody_knows_is_a_mistake_but_not_in_a_comment() -> None:
    [text] = mistakes("a {\n# __PILLAR__X__\nbind __PILLAR__LOCALDNS__ # __PILLAR__Y__\n}")
    assert text.startswith('/base:3: "__PILLAR__LOCALDNS__" is not known; accepted: __PILLAR__CLUSTER__DNS__, ')


def test_bytes_that_are_no_utf8_are_complained_about_where_they_stand() -> None:
    with pytest.raises(ConfigError) as caught:
        load_parts(fill(b". {\n__PILLAR__DNS__SERVER__ \xff\n}", "/base", VALUES, KubeDns()), environ={})
    assert str(caught.value).startswith("/base:2: byte 0xff")


def test_a_stub_domain_is_a_server_block_at_the_same_addresses_that_asks_its_nameservers() -> None:
    stubs = (StubDomain("acme.local", ("192.0.2.1", "[2001:db8::1]:5353"), 1),)
    config = load_parts(fill(BASE.encode(), "/base", VALUES, KubeDns("/cm", stubs)), environ={})
    block = config.blocks[-1]
    assert [(key.zone, key.port) for key in block.keys] == [("acme.local.", 53)]
    assert list(block.plugins) == ["bind", "errors", "cache", "forward"]
    [forward] = block.plugins["forward"].forwards
    assert [(target.host, target.port) for target in forward.targets] == [("192.0.2.1", 53), ("2001:db8::1", 5353)]
    assert block.plugins["bind"].addresses({}) == VALUES.addresses


def test_a_mistake_in_a_stub_domain_names_the_configmaps_file_and_line() -> None:
    stubs = (StubDomain("cluster.local", ("192.0.2.1",), 3),)
    with pytest.raises(ConfigError) as caught:
        load_parts(fill(BASE.encode(), "/base", VALUES, KubeDns("/cm", stubs)), environ={})
    assert str(caught.value).startswith("/cm/stubDomains:3: dns://cluster.local.:53 is served already, by /base:1")


def test_a_services_environment_variable_is_named_as_kubernetes_names_it() -> None:
    assert service_variable("kube-dns-upstream") == "KUBE_DNS_UPSTREAM_SERVICE_HOST"


# The ConfigMap


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path / "kube-dns")


def test_stub_domains_and_upstream_nameservers_are_read_from_a_volume(volume: Volume) -> None:
    stubs = '{\n  "b.local": ["192.0.2.1:5353"],\n  "a.local": ["2001:db8::1", "[2001:db8::2]:54"]\n}'
    volume.write(stubDomains=stubs, upstreamNameservers=["192.0.2.3"], federations="nobody=looks")
    assert configmap.read(volume.folder) == KubeDns(
        str(volume.folder),
        (StubDomain("a.local", ("2001:db8::1", "[2001:db8::2]:54"), 3), StubDomain("b.local", ("192.0.2.1:5353",), 2)),
        ("192.0.2.3",),
    )


@pytest.mark.parametrize(
    "keys", [{}, {"stubDomains": {}, "upstreamNameservers": []}, {"stubDomains": None, "upstreamNameservers": None}]
)
def test_a_configmap_may_say_nothing(volume: Volume, keys: dict[str, Any]) -> None:
    volume.write(**keys)
    assert configmap.read(volume.folder) == KubeDns(str(volume.folder))


@pytest.mark.parametrize(
    ("key", "value", "line", "said"),
    [
        ("stubDomains", "", 1, "is not JSON"),
        ("stubDomains", '{\n"a": [,]}', 2, "is not JSON"),
        ("stubDomains", "[" * 100_000, 1, "depth"),
        ("stubDomains", ["a"], 1, "is an array"),
        ("stubDomains", {"": ["192.0.2.1"]}, 1, "is not a domain name"),
        ("stubDomains", {"Acme.local": ["192.0.2.1"]}, 1, "is not a domain name"),
        ("stubDomains", {"acme.local.": ["192.0.2.1"]}, 1, "is not a domain name"),
        ("stubDomains", {"a {\nwhoami\n}\nb": ["192.0.2.1"]}, 1, "is not a domain name"),
        ("stubDomains", {"a" * 64: ["192.0.2.1"]}, 1, "is not a domain name"),
        ("stubDomains", {"a." * 127 + "a": ["192.0.2.1"]}, 1, "is not a domain name"),
        ("stubDomains", {"a": []}, 1, "no nameservers"),
        ("stubDomains", {"a": "192.0.2.1"}, 1, "no nameservers"),
        ("stubDomains", {"a": [None]}, 1, "a nameserver is null"),
        ("stubDomains", {"a": ["ns.acme.local"]}, 1, "is not a nameserver"),
        ("stubDomains", {"a": ["/etc/resolv.conf"]}, 1, "is not a nameserver"),
        ("stubDomains", {"a": ["tls://192.0.2.1"]}, 1, "is not a nameserver"),
        ("stubDomains", {"a": ["192.0.2.1:0"]}, 1, "is not a nameserver"),
        ("stubDomains", {"a": ["192.0.2.1:65536"]}, 1, "is not a nameserver"),
        ("stubDomains", {"a": ["[2001:db8::1]"]}, 1, "is not a nameserver"),
        ("stubDomains", {"a": ["fe80::1%eth0"]}, 1, "is not a nameserver"),
        ("stubDomains", {"a": ["192.0.2.1 192.0.2.2"]}, 1, "is not a nameserver"),
        ("upstreamNameservers", {"a": "b"}, 1, "is an object"),
        ("upstreamNameservers", ["192.0.2.1"] * 4, 1, "4 nameservers"),
        ("upstreamNameservers", ["192.0.2.1:abc"], 1, "is not a nameserver"),
        ("upstreamNameservers", "[" + "1" * 5000 + "]", 1, "is not JSON that can be read"),
        ("upstreamNameservers", [53], 1, "a nameserver is a number"),
    ],
)
def test_what_kubernetes_dns_would_refuse_is_a_mistake(
    volume: Volume, key: str, value: Any, line: int, said: str
) -> None:
    volume.write(**{key: value})
    with pytest.raises(ConfigError) as caught:
        configmap.read(volume.folder)
    [mistake] = caught.value.mistakes
    assert (mistake.file, mistake.line) == (str(volume.folder / key), line)
    assert said in str(mistake)


def test_a_key_that_is_no_utf8_is_a_mistake_in_its_line(volume: Volume) -> None:
    (volume.folder / "stubDomains").write_bytes(b"{\n\xff}")
    with pytest.raises(ConfigError, match="stubDomains:2: byte 0xff"):
        configmap.read(volume.folder)


@pytest.mark.parametrize("before", [b'{"old": ["192.0.2.1"]}', b"\xff"])
def test_keys_that_are_exchanged_while_they_are_read_belong_together(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    volume.write(stubDomains="", upstreamNameservers=["192.0.2.1"])
    (volume.folder / "stubDomains").write_bytes(before)
    read_bytes, number = Path.read_bytes, volume.number

    def exchanged(path: Path) -> bytes:
        found = read_bytes(path)
        if volume.number == number:
            volume.write(stubDomains={"new": ["192.0.2.2"]}, upstreamNameservers=["192.0.2.2"])
        return found

    monkeypatch.setattr(Path, "read_bytes", exchanged)
    found = configmap.read(volume.folder)
    assert ([stub.name for stub in found.stub_domains], found.upstreams) == (["new"], ("192.0.2.2",))


# Following both


class Place:
    """A Loader on files in a folder, what it says and what it counts."""

    def __init__(self, folder: Path, values: Values = VALUES, *, kube_dns: Path | None = None) -> None:
        self.base, self.conf = folder / "Corefile.base", folder / "Corefile"
        self.log_file = folder / "log"
        self.counted: list[str] = []
        self.file = self.log_file.open("wb")
        self.log = Log(Sink(self.file.fileno()))
        paths = Paths(self.base, self.conf, kube_dns or folder / "kube-dns")
        self.load = Loader(paths, values, understand, self.log, self.counted.append)

    def said(self) -> str:
        """All lines so far."""
        assert self.log.flush()
        return self.log_file.read_text()

    def zones(self) -> list[str]:
        """What is served."""
        return [key.zone for block in self.load().blocks for key in block.keys]


def understand(parts: Sequence[Part]) -> Config:
    return load_parts(parts, environ={})


@pytest.fixture
def place(tmp_path: Path, volume: Volume) -> Place:
    found = Place(tmp_path)
    found.base.write_text(BASE)
    return found


def test_base_file_and_configmap_are_served_together_and_the_digest_tells_every_change(
    place: Place, volume: Volume
) -> None:
    digests = [place.load().digest]
    volume.write(stubDomains={"acme.local": ["192.0.2.1"]})
    digests.append(place.load().digest)
    assert place.zones() == ["cluster.local.", ".", "acme.local."]
    volume.write(stubDomains={"acme.local": ["192.0.2.2"]})
    digests.append(place.load().digest)
    volume.write(upstreamNameservers=["192.0.2.1"])
    digests.append(place.load().digest)
    place.base.write_text(BASE + "# changed\n")
    digests.append(place.load().digest)
    assert len(set(digests)) == len(digests)
    assert place.load().digest == digests[-1]
    assert place.counted == []


def test_a_wrong_configmap_at_the_start_is_left_out_said_and_counted_once(place: Place, volume: Volume) -> None:
    volume.write(stubDomains={"acme.local": ["nowhere"]}, upstreamNameservers=["192.0.2.1"])
    assert place.zones() == ["cluster.local.", "."]
    assert "/etc/resolv.conf" in place.conf.read_text()
    place.load()
    assert place.counted == ["configmap"]
    assert place.said().count("kube-dns ConfigMap cannot be used") == 1
    assert f'{volume.folder}/stubDomains:1: "nowhere" is not a nameserver' in place.said()


def test_a_configmap_that_goes_wrong_later_leaves_what_it_said_before(place: Place, volume: Volume) -> None:
    volume.write(stubDomains={"acme.local": ["192.0.2.1"]})
    before = place.load().digest
    volume.write(stubDomains="{")
    assert place.load().digest == before
    assert place.counted == ["configmap"]
    assert "what it said before goes on" in place.said()
    volume.write(stubDomains={"other.local": ["192.0.2.1"]})
    assert place.zones()[-1] == "other.local."
    volume.write(stubDomains="{")
    assert place.zones()[-1] == "other.local."
    assert place.counted == ["configmap"] * 2


def test_a_stub_domain_that_the_base_file_serves_itself_is_the_configmaps_mistake(place: Place, volume: Volume) -> None:
    volume.write(stubDomains={"acme.local": ["192.0.2.1"], "cluster.local": ["192.0.2.1"]})
    assert place.zones() == ["cluster.local.", "."]
    assert place.counted == ["configmap"]
    assert f"{volume.folder}/stubDomains:1: dns://cluster.local.:53 is served already" in place.said()


def test_a_wrong_base_file_is_an_error_whatever_the_configmap_says(place: Place, volume: Volume) -> None:
    volume.write(stubDomains="{")
    place.base.write_text(". {\n    nonsense\n}\n")
    with pytest.raises(ConfigError) as caught:
        place.load()
    assert [str(mistake).split(": ")[0] for mistake in caught.value.mistakes] == [f"{place.base}:2"]
    assert not place.conf.exists()


def test_a_directory_that_was_named_but_is_not_there_is_complained_about_until_it_is(tmp_path: Path) -> None:
    place = Place(tmp_path, kube_dns=tmp_path / "later")
    place.base.write_text(BASE)
    assert place.zones() == ["cluster.local.", "."]
    assert place.counted == ["configmap"]
    Volume(tmp_path / "later").write(stubDomains={"acme.local": ["192.0.2.1"]})
    assert place.zones()[-1] == "acme.local."


def test_the_usual_directory_is_read_if_it_is_there(
    tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "DEFAULT_KUBE_DNS", volume.folder)
    counted: list[str] = []
    paths = Paths(tmp_path / "base", tmp_path / "conf")
    paths.base.write_text(BASE)
    load = Loader(paths, VALUES, understand, Log(Sink()), counted.append)
    volume.write(stubDomains={"acme.local": ["192.0.2.1"]})
    assert len(load().blocks) == 3
    monkeypatch.setattr(loader, "DEFAULT_KUBE_DNS", tmp_path / "none")
    assert len(load().blocks) == 2
    assert counted == []


def test_the_result_is_written_at_once_and_only_when_it_changed(place: Place, volume: Volume) -> None:
    place.load()
    assert place.conf.read_text() == filled(BASE)[0]
    before = place.conf.stat()
    place.load()
    assert (place.conf.stat().st_ino, place.conf.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    volume.write(stubDomains={"acme.local": ["192.0.2.1"]})
    place.load()
    assert place.conf.stat().st_ino != before.st_ino
    assert "acme.local:53 {\n    errors\n    cache 30\n    bind 169.254.20.10 10.96.0.10\n" in place.conf.read_text()
    assert len(load_parts([Part(place.conf.read_bytes(), "x")], environ={}).blocks) == 3
    assert sorted(entry.name for entry in place.conf.parent.iterdir()) == [
        "Corefile",
        "Corefile.base",
        "kube-dns",
        "log",
    ]


def test_a_result_that_cannot_be_written_is_said_once_and_served_all_the_same(place: Place) -> None:
    place.conf.mkdir()
    assert place.zones() == place.zones() == ["cluster.local.", "."]
    assert place.said().count("cannot be written") == 1
    assert place.counted == []
    assert list(place.conf.parent.glob(".Corefile*")) == []


def test_a_result_that_cannot_be_put_in_its_place_leaves_nothing_behind(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(path: Path, target: Path) -> None:
        assert path.read_bytes()
        raise OSError(errno.EBUSY, f"{target} is a mount point")

    monkeypatch.setattr(Path, "replace", busy)
    assert place.zones() == ["cluster.local.", "."]
    assert "cannot be written" in place.said()
    assert list(place.conf.parent.glob(".Corefile*")) == []


def test_a_link_to_the_result_stays_a_link(place: Place, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    place.conf.symlink_to("elsewhere/Corefile")
    place.load()
    assert place.conf.is_symlink()
    assert (tmp_path / "elsewhere" / "Corefile").read_text() == filled(BASE)[0]


def test_without_a_base_file_the_corefile_is_served_as_it_is_and_followed(place: Place, volume: Volume) -> None:
    place.base.unlink()
    volume.write(stubDomains={"acme.local": ["192.0.2.1"]})
    place.conf.write_text("a.org {\n    whoami\n}\n")
    assert place.zones() == ["a.org."]
    place.conf.write_text("b.org {\n    whoami\n}\n")
    assert place.zones() == ["b.org."]
    assert place.said().count(f"there is no base file {place.base}") == 1
    place.base.write_text(BASE)
    assert place.zones() == ["cluster.local.", ".", "acme.local."]


def test_a_base_file_that_goes_away_is_an_error_and_not_another_configuration(place: Place) -> None:
    place.load()
    place.base.unlink()
    with pytest.raises(ConfigError, match=r"Corefile\.base:1: cannot be read: No such file"):
        place.load()


def test_without_base_file_and_corefile_both_are_named(place: Place) -> None:
    place.base.unlink()
    with pytest.raises(ConfigError) as caught:
        place.load()
    assert str(place.base) in str(caught.value)
    assert str(place.conf) in str(caught.value)


def test_a_base_file_that_cannot_be_read_is_an_error_even_if_there_is_a_corefile(place: Place) -> None:
    place.conf.write_text("a.org {\n    whoami\n}\n")
    place.base.unlink()
    place.base.mkdir()
    with pytest.raises(ConfigError, match=r"Corefile\.base:1: cannot be read: Is a directory"):
        place.load()


def test_the_result_is_never_written_over_the_base_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "base")
    with pytest.raises(KdnsError, match="base file"):
        Loader(Paths(tmp_path / "base", tmp_path / "link"), VALUES, understand, Log(Sink()), print)


# What it costs


def test_thousands_of_stub_domains_make_a_corefile_that_grows_with_them_and_keep_their_lines(volume: Volume) -> None:
    names = [f"d{number:04}.example" for number in range(3000)]
    volume.write(stubDomains=json.dumps({name: ["192.0.2.1"] for name in names}, indent=0))
    found = configmap.read(volume.folder)
    lines = (volume.folder / "stubDomains").read_text().split("\n")
    assert all(f'"{stub.name}"' in lines[stub.line - 1] for stub in found.stub_domains)
    parts = fill(BASE.encode(), "/base", VALUES, found)
    assert sum(len(part.data) for part in parts) < 3000 * 200
    assert [(part.file, part.line) for part in parts[1:]] == [
        (f"{volume.folder}/stubDomains", stub.line) for stub in found.stub_domains
    ]


class Counting:
    """A Loader in a folder, and how often it has a Corefile read."""

    def __init__(self, folder: Path, volume: Volume) -> None:
        self.base = folder / "Corefile.base"
        self.base.write_text(BASE)
        self.times = 0
        self.missing: Path | None = None
        self.counted: list[str] = []
        self.load = Loader(
            Paths(self.base, folder / "Corefile", volume.folder), VALUES, self.read, Log(Sink()), self.counted.append
        )

    def read(self, parts: Sequence[Part]) -> Config:
        self.times += 1
        if self.missing is not None and not self.missing.exists():
            raise ConfigError([Mistake(str(self.base), 1, f"{self.missing} is not there", "a file")])
        return load_parts(parts, environ={})


@pytest.fixture
def counting(tmp_path: Path, volume: Volume) -> Counting:
    return Counting(tmp_path, volume)


def test_what_has_not_changed_is_not_read_again_and_what_has_is(counting: Counting, volume: Volume) -> None:
    volume.write(stubDomains={"acme.local": ["192.0.2.1"]})
    first = counting.load()
    assert (counting.load(), counting.load(), counting.times) == (first, first, 1)
    volume.write(stubDomains={"acme.local": ["192.0.2.2"]})
    assert counting.load().digest != first.digest
    counting.base.write_text(BASE + "# changed\n")
    counting.load()
    assert (counting.times, counting.counted) == (3, [])


def test_a_configmap_that_stays_wrong_is_not_read_again_and_another_wrong_one_is_counted(
    counting: Counting, volume: Volume
) -> None:
    volume.write(stubDomains={"cluster.local": ["192.0.2.1"]})
    for _ in range(3):
        assert len(counting.load().blocks) == 2
    assert (counting.times, counting.counted) == (2, ["configmap"])
    volume.write(stubDomains="{")
    for _ in range(3):
        assert len(counting.load().blocks) == 2
    assert (counting.times, counting.counted) == (2, ["configmap"] * 2)
    volume.write(stubDomains={"acme.local": ["192.0.2.1"]})
    assert len(counting.load().blocks) == 3


def test_what_the_base_file_imports_is_followed(counting: Counting, tmp_path: Path) -> None:
    counting.base.write_text(BASE + "import more\n")
    with pytest.raises(ConfigError, match="more"):
        counting.load()
    (tmp_path / "more").write_text("a.org {\n    whoami\n}\n")
    assert [key.zone for key in counting.load().blocks[-1].keys] == ["a.org."]
    (tmp_path / "more").write_text("b.org {\n    whoami\n}\n")
    assert [key.zone for key in counting.load().blocks[-1].keys] == ["b.org."]


def test_its_files_of_keys_are_followed(counting: Counting, tmp_path: Path) -> None:
    counting.base.write_text(BASE + f"a.org {{\n    tsig {{\n        secrets {tmp_path / 'keys'}\n    }}\n}}\n")
    (tmp_path / "keys").write_text("key a { wrong; };")
    with pytest.raises(ConfigError, match="wrong"):
        counting.load()
    digests = set()
    for secret in ("QUJD", "REVG", "QUJD"):
        (tmp_path / "keys").write_text(f'key a {{ secret "{secret}"; }};')
        digests.add(counting.load().digest)
    assert len(digests) == 2


def test_a_mistake_of_the_base_file_may_go_without_a_change_of_it(counting: Counting, tmp_path: Path) -> None:
    counting.missing = tmp_path / "ca.pem"
    with pytest.raises(ConfigError, match=r"ca\.pem"):
        counting.load()
    counting.missing.touch()
    assert counting.load().blocks
