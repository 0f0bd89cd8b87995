"""auto: zones come and go with their files."""

from __future__ import annotations

import dns.rcode
import pytest

from kdns.errors import ConfigValueError
from kdns.plugins.auto import Options
from tests.conftest import Serve
from tests.support.configs import options, refused
from tests.support.server import Server
from tests.test_plugin_file import cached, until, write

pytestmark = pytest.mark.one_speed

COREFILE = """\
.:$dns {
    bind 127.0.0.1
    ready $host:$ready
    prometheus $host:$metrics
    root $manifests
    auto test org {
        directory zones
        reload 20ms
        fallthrough fall.test
    }
    whoami
}
"""


def answers(server: Server, name: str) -> str:
    """The addresses of a name, else the rcode, or that somebody else was asked."""
    found = server.query(name)
    if any(rrset.rdtype.name == "SRV" for rrset in found.additional):
        return "whoami"
    return " ".join(server.texts(name)) or dns.rcode.to_text(found.rcode())


def test_zones_come_and_go_with_their_files(serve: Serve) -> None:
    server = serve(corefile=COREFILE)
    folder = server.manifests / "zones"
    assert "No such file" in server.log or "no such file" in server.log
    assert answers(server, "a.one.test") == "whoami"
    folder.mkdir()
    write(folder / "db.one.test", 1, "a A 192.0.2.1\n")
    until(lambda: answers(server, "a.one.test") == "192.0.2.1", "a zone")
    assert cached(server, "b.one.test") == "NXDOMAIN"

    (folder / "deep").mkdir()
    write(folder / "deep" / "db.sub.one.test", 1, "a A 192.0.2.2\n")
    until(lambda: answers(server, "a.sub.one.test") == "192.0.2.2", "a zone below another one")
    assert answers(server, "a.one.test") == "192.0.2.1"
    write(folder / "db.fall.test", 1)
    until(lambda: server.texts("ns.fall.test") == ["192.0.2.1"], "a third one")
    assert answers(server, "b.fall.test") == "whoami"

    write(folder / "db.one.test", 2, "a A 192.0.2.3\n")
    until(lambda: answers(server, "a.one.test") == "192.0.2.3", "the change")
    write(folder / "db.bad.test", 1, mistake="b FOO\n")
    until(lambda: "db.bad.test:5: unknown rdatatype" in server.log, "file and line")
    assert answers(server, "b.bad.test") == "whoami"
    assert server.metrics().value("kdns_zone_files_unusable") == 1

    write(folder / "db.other", 1, "a A 192.0.2.4\n")
    until(lambda: "zone other." in server.log, "a zone that is not asked for here")
    assert answers(server, "a.other") == "whoami"

    # A ConfigMap: the file is a link by way of another one to a folder, which is exchanged
    mounted = folder / "mounted"
    for version, address in ((1, "192.0.2.5"), (2, "192.0.2.6")):
        (mounted / f"..{version}").mkdir(parents=True)
        write(mounted / f"..{version}" / "db.map.test", version, f"a A {address}\n")
        link = mounted / "..new"
        link.symlink_to(f"..{version}")
        link.replace(mounted / "..data")
        if version == 1:
            (mounted / "db.map.test").symlink_to("..data/db.map.test")
        until(lambda: answers(server, "a.map.test") == address, address)  # noqa: B023

    write(folder / "deep" / "db.one.test", 9, "a A 192.0.2.9\n")
    until(lambda: "one.test. is also the zone of" in server.log, "a second file")
    assert answers(server, "a.one.test") == "192.0.2.3"

    (folder / "deep" / "db.sub.one.test").unlink()
    until(lambda: answers(server, "a.sub.one.test") == "NXDOMAIN", "the zone above")
    (folder / "db.fall.test").unlink()
    until(lambda: answers(server, "ns.fall.test") == "whoami", "nobody")

    folder.rename(server.manifests / "away")
    until(lambda: server.log.count("zones: no such file or directory") == 2, "the folder is gone")
    assert answers(server, "a.one.test") == "192.0.2.3"
    server.kill()
    server.start()
    assert answers(server, "a.one.test") == "192.0.2.3"
    assert "panic" not in server.log.lower()


def origin(found: Options, name: str) -> str | None:
    return found.origins()(name)


def test_what_the_directive_says() -> None:
    found = options("auto {\ndirectory /zones\n}")
    assert (found.directory, found.zones, found.reload, found.fallthrough) == ("/zones", ("example.org.",), 60.0, ())
    assert [origin(found, name) for name in ("db.a.test", "x.db.B.test.", "a.test", "dbxa")] == [
        "a.test.",
        "b.test.",
        None,
        None,
    ]
    found = options("auto a.test {\ndirectory z ^(\\w+)\\.(?P<rest>.*)$ {rest}.{1}.in\nreload 0\n}\nroot /etc")
    assert (found.directory, found.zones, found.reload) == ("/etc/z", ("a.test.",), 0.0)
    assert origin(found, "one.two.three") == "two.three.one.in."
    with pytest.raises(ConfigValueError):
        origin(found, "one.two..three")


@pytest.mark.parametrize(
    ("directive", "mistakes"),
    [
        ("auto", ["1: auto has no directory"]),
        ("auto {\ndirectory\n}", ['2: auto: "directory" has 0 arguments']),
        ("auto {\ndirectory a (b)\n}", ["2: auto: directory has an expression and no template for the origin"]),
        ("auto {\ndirectory a b {1}\n}", ['2: auto: "b" has no group']),
        ("auto {\ndirectory a ( {1}\n}", ['2: auto: "(" is no expression: missing ): (']),
        ("auto {\ndirectory a (b) {2}\n}", ['2: auto: "{2}": the expression has no group {2}']),
        ("auto {\ndirectory a (b) $1\n}", ['2: auto: "$1" is no template']),
        ("auto {\ndirectory a\nreload -1s\n}", ['3: auto: "-1s" is too short']),
        ("auto {\ndirectory a\n}\nauto {\ndirectory b\n}", ["4: auto is given twice in a server block"]),
    ],
)
def test_what_is_refused(directive: str, mistakes: list[str]) -> None:
    assert sorted(refused(directive)) == sorted(mistakes)
