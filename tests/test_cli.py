"""`kdns check` and `kdns records`, as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import dns.name
import dns.rdatatype
import dns.zone
import pytest

from kdns.wire import names, rr
from kdns.wire.rrset import RRset
from kdns.zone.changes import Changes
from kdns.zone.store import Store, Transaction

pytestmark = pytest.mark.one_speed

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "zones" / "sample"
SOUND = """\
cluster.local:1053 10.96.0.0/16:1053 {
    errors
    kubernetes {
        manifests cluster
    }
}
.:1053 {
    whoami
}
"""


def kdns(*arguments: str | Path, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command, run to its end in the top folder. environ: added to the environment."""
    given = os.environ | dict(environ or {})
    command = [sys.executable, "-m", "kdns", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=60)


def test_check_says_what_a_sound_file_would_serve(tmp_path: Path) -> None:
    (tmp_path / "Corefile").write_text(SOUND)
    done = kdns("check", tmp_path / "Corefile")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{tmp_path}/Corefile: no mistakes",
        "  cluster.local. on dns port 1053, 96.10.in-addr.arpa. on dns port 1053: errors kubernetes",
        "  . on dns port 1053: whoami",
    ]


def test_check_prints_every_mistake_of_every_file(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("cluster.local {\n    kubernets\n    reload 1s 2s 3s\n}\n")
    (tmp_path / "two").write_text(SOUND)
    (tmp_path / "three").write_text(". {\n    dnssec\n}\n")
    done = kdns("check", tmp_path / "one", tmp_path / "two", tmp_path / "three")
    assert done.returncode == 1
    places = [line.split(": ")[0] for line in done.stderr.splitlines()]
    assert places == [f"{tmp_path}/one:2", f"{tmp_path}/one:3", f"{tmp_path}/three:2"]
    assert "kubernetes" in done.stderr.splitlines()[0]
    assert "not supported by this version" in done.stderr.splitlines()[2]
    assert done.stdout.startswith(f"{tmp_path}/two: no mistakes\n")


def test_check_as_json(tmp_path: Path) -> None:
    (tmp_path / "sound").write_text(SOUND)
    (tmp_path / "broken").write_text(". {\n    nonsense\n}\n")
    done = kdns("check", "--json", tmp_path / "sound", tmp_path / "broken")
    sound, broken = json.loads(done.stdout)
    assert done.returncode == 1
    assert sound["ok"] is True
    assert sound["servers"][1] == {"zones": [{"scheme": "dns", "zone": ".", "port": 1053}], "plugins": ["whoami"]}
    assert broken["ok"] is False
    assert [(each["file"], each["line"]) for each in broken["mistakes"]] == [(f"{tmp_path}/broken", 2)]
    assert broken["mistakes"][0]["message"]
    assert broken["mistakes"][0]["accepted"]


def test_check_takes_variables_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "Corefile").write_text("{$ZONE}:53 {\n    whoami\n}\n")
    done = kdns("check", tmp_path / "Corefile", environ={"ZONE": "example.org"})
    assert "  example.org. on dns port 53: whoami" in done.stdout


def test_check_of_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = kdns("check", tmp_path / "none")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert str(tmp_path / "none") in done.stderr


def zone_of(text: str, origin: str) -> dns.zone.Zone:
    """A master file as dnspython reads it."""
    return dns.zone.from_text(text, origin, relativize=False, check_origin=True)


def lines(text: str) -> set[tuple[str, ...]]:
    """The records of a master file, their columns."""
    return {tuple(line.split("\t")) for line in text.splitlines()}


def test_records_of_the_sample_follow_the_schema() -> None:
    done = kdns("records", "--manifests", SAMPLE, "--pods", "verified", "--endpoint-pod-names", "--ttl", "30")
    assert (done.returncode, done.stderr) == (0, "")
    found = lines(done.stdout)
    for owner, rtype, data in [
        ("dns-version", "TXT", '"1.1.0"'),
        ("ns.dns", "A", "10.96.0.10"),
        ("web.shop.svc", "A", "10.96.20.1"),
        ("web.shop.svc", "AAAA", "fd00:96::2001"),
        ("_https._tcp.web.shop.svc", "SRV", "0 100 443 web.shop.svc.cluster.local."),
        ("_dns._udp.kube-dns.kube-system.svc", "SRV", "0 100 53 kube-dns.kube-system.svc.cluster.local."),
        ("db-1.db.data.svc", "A", "10.244.1.31"),
        ("_postgres._tcp.db.data.svc", "SRV", "0 50 5432 db-0.db.data.svc.cluster.local."),
        ("db-2.db-peers.data.svc", "A", "10.244.2.31"),
        ("cart-6f7b8d5c4-h2v9s.cart.shop.svc", "A", "10.244.0.21"),
        ("vault.warehouse.data.svc", "A", "192.0.2.40"),
        ("reports.shop.svc", "A", "10.96.20.2"),
        ("payments.shop.svc", "CNAME", "api.payments.example.com."),
        ("10-244-0-11.shop.pod", "A", "10.244.0.11"),
        ("prometheus.monitoring.svc", "A", "10.96.40.1"),
        ("alerts.monitoring.svc", "AAAA", "fd00:96::4002"),
    ]:
        ttl = "28800" if owner == "dns-version" else "30"
        assert (f"{owner}.cluster.local.", ttl, "IN", rtype, data) in found
    owners = {record[0] for record in found}
    assert "db-2.db.data.svc.cluster.local." not in owners
    assert "cart-6f7b8d5c4-x7c2n.cart.shop.svc.cluster.local." not in owners


@pytest.mark.parametrize("origin", ["cluster.local", "10.in-addr.arpa", "0.0.d.f.ip6.arpa"])
def test_other_programs_read_the_master_file(origin: str, tmp_path: Path, needs: Callable[..., None]) -> None:
    needs("named-checkzone")
    done = kdns("records", "--manifests", SAMPLE, "--zone", origin)
    file = tmp_path / "zone"
    file.write_text(done.stdout)
    checked = subprocess.run(
        ["named-checkzone", "-k", "fail", origin, file], capture_output=True, text=True, timeout=30
    )
    assert checked.returncode == 0, checked.stdout
    assert len(list(zone_of(done.stdout, origin).iterate_rdatas())) == len(done.stdout.splitlines()) > 8


def test_records_as_json_are_the_same_records() -> None:
    rows = json.loads(kdns("records", "--manifests", SAMPLE, "--json", "shop.svc.cluster.local").stdout)
    text = kdns("records", "--manifests", SAMPLE, "shop.svc.cluster.local").stdout
    assert {(row["name"], str(row["ttl"]), "IN", row["type"], row["data"]) for row in rows} == lines(text)


def test_records_at_and_below_a_name() -> None:
    done = kdns("records", "--manifests", SAMPLE, "DB.data.svc.cluster.local")
    assert {record[0] for record in lines(done.stdout)} == {
        "db.data.svc.cluster.local.",
        "db-0.db.data.svc.cluster.local.",
        "db-1.db.data.svc.cluster.local.",
        "_postgres._tcp.db.data.svc.cluster.local.",
    }


def test_a_reverse_zone_points_to_every_name_of_an_address() -> None:
    done = kdns("records", "--manifests", SAMPLE, "--zone", "244.10.in-addr.arpa", "--cluster-zone", "corp.example")
    pointers = {record[4] for record in lines(done.stdout) if record[0] == "31.0.244.10.in-addr.arpa."}
    assert pointers == {"db-0.db.data.svc.corp.example.", "db-0.db-peers.data.svc.corp.example."}
    assert not [record for record in lines(done.stdout) if record[0].endswith(".96.10.in-addr.arpa.")]


def test_what_no_label_can_hold_is_told_on_stderr(tmp_path: Path) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "bad name", "namespace": "default"},
        "spec": {"clusterIP": "10.0.0.1"},
    }
    (tmp_path / "service.json").write_text(json.dumps(service))
    done = kdns("records", "--manifests", tmp_path)
    assert "bad name" in done.stderr
    assert "10.0.0.1" not in done.stdout
    assert done.returncode == 0


def test_manifests_that_cannot_be_read_are_told_and_the_rest_is_used(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("kind: Service\nmetadata: [\n")
    done = kdns(
        "records", "--manifests", tmp_path / "broken.yaml", "--manifests", tmp_path / "none.yaml", "--manifests", SAMPLE
    )
    assert done.returncode == 1
    assert [line.split(": ")[0].rsplit(":", 1)[0] for line in done.stderr.splitlines()] == [
        f"{tmp_path}/none.yaml",
        f"{tmp_path}/broken.yaml",
    ]
    assert "web.shop.svc.cluster.local.\t5\tIN\tA\t10.96.20.1\n" in done.stdout


def test_a_cluster_without_its_dns_service_is_served_from_the_loopback(tmp_path: Path) -> None:
    done = kdns("records", "--manifests", tmp_path, "ns.dns.cluster.local")
    assert done.stdout == "ns.dns.cluster.local.\t5\tIN\tA\t127.0.0.1\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An open store with one zone and one address."""
    opened = Store.open(tmp_path / "state", Changes.create(), lambda text: pytest.fail(text))
    origin = names.from_text("cluster.local.")
    soa = rr.soa(names.from_text("ns.dns.cluster.local."), names.from_text("hostmaster.cluster.local."), 1, 2, 3, 4, 5)

    def fill(txn: Transaction) -> None:
        zone = txn.add_zone("test", origin)
        txn.put(zone, origin, (RRset(rr.SOA, 5, (soa,)),))
        web = names.from_text("web.shop.svc.cluster.local.")
        txn.put(zone, web, (RRset(rr.A, 5, (rr.address("10.0.0.7"),)),))

    opened.write(fill)
    return opened


def test_records_of_a_state_directory_that_is_in_use(store: Store) -> None:
    done = kdns("records", "--state-dir", store.directory)
    assert done.stderr == ""
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [
        "cluster.local.",
        "web.shop.svc.cluster.local.",
    ]
    below = kdns("records", "--state-dir", store.directory, "shop.svc.cluster.local")
    assert below.stdout == "web.shop.svc.cluster.local.\t5\tIN\tA\t10.0.0.7\n"
    store.close()


def test_a_zone_that_the_store_does_not_have_is_named_with_those_it_has(store: Store) -> None:
    store.close()
    done = kdns("records", "--state-dir", store.directory, "--zone", "example.org")
    assert (done.returncode, done.stderr) == (1, "the zone store has no zone example.org.; it has: cluster.local.\n")


def test_a_directory_without_a_store_is_an_error(tmp_path: Path) -> None:
    done = kdns("records", "--state-dir", tmp_path)
    assert (done.returncode, done.stderr) == (1, f"{tmp_path} has no zone store (data.mdb)\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--manifests", "x", "--state-dir", "y"],
        ["--state-dir", "x", "--ttl", "5"],
        ["--manifests", "x", "--ttl", "3601"],
        ["--manifests", "x", "--zone", "a..b"],
        ["--manifests", "x", "--cluster-zone", "cluster.local"],
        ["--manifests", "x", "www.example.org"],
        ["--manifests", "x", "--pods", "insecure"],
    ],
)
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str]) -> None:
    done = kdns("records", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("Error: ")
