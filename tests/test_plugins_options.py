"""What each directive accepts and refuses."""

from __future__ import annotations

from typing import Any

import pytest

from kdns.corefile.values import Address, selector
from kdns.errors import ConfigError
from kdns.plugins import bind, chaos, kubernetes, loads, reload


def options(directive: str, name: str | None = None) -> Any:
    return loads(f"cluster.local 10.0.0.0/16 {{\n{directive}\n}}").blocks[0].plugins[name or directive.split()[0]]


def refused(directive: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        options(directive)
    return [mistake.message for mistake in caught.value.mistakes]


def test_health() -> None:
    assert (options("health").address, options("health").lameduck) == (Address("", 8080), 0)
    found = options("health localhost:1 {\nlameduck 1m\n}")
    assert (found.address, found.lameduck) == (Address("localhost", 1), 60)


def test_ready() -> None:
    assert (options("ready").address, options("ready").monitor) == (Address("", 8181), "until-ready")
    assert options("ready :1 {\nmonitor continuously\n}").monitor == "continuously"


def test_prometheus() -> None:
    assert options("prometheus").address == Address("localhost", 9153)
    assert options("prometheus :9153").address == Address("", 9153)


def test_reload() -> None:
    assert options("reload") == reload.Options(30, 15)
    assert options("reload 10s") == reload.Options(10, 5)
    assert options("reload 2s 0s") == reload.Options(2, 0)
    assert options("reload 1m 20s") == reload.Options(60, 20)


def test_the_delay_of_reload_varies_by_half_the_jitter() -> None:
    assert [reload.Options(30, 10).delay(chance) for chance in (0, 0.5, 1)] == [25, 30, 35]


def test_simple_directives() -> None:
    assert options("bufsize").size == 1232
    assert options("bufsize 4096").size == 4096
    assert options("errors") == options("errors stdout")
    assert options("nsid a  b").data == "a b"
    assert options("root /x").path == "/x"
    assert options("loadbalance") == options("loadbalance round_robin")
    assert options("chaos") == chaos.Options()
    assert options("chaos v b a b") == chaos.Options("v", ("a", "b"))
    assert options("any") is not None
    assert options("whoami") is not None


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ("health 8080", 'health: "8080" is not an address with a port'),
        ("health :1 :2", "health has 2 arguments"),
        ("health {\nlameduck\n}", 'health: "lameduck" has 0 arguments'),
        ("health {\nlameduck soon\n}", 'health: "soon" is not a duration'),
        ("health {\nlameduck -5s\n}", 'health: "-5s" is too short'),
        ("health {\nlameduck 5s\nlameduck 6s\n}", 'health: "lameduck" is given twice'),
        ("health {\nlameduck 5s {\nx\n}\n}", 'health: "lameduck" has a block'),
        ("ready {\nmonitor sometimes\n}", 'ready: "sometimes" is not known'),
        ("prometheus {\ntls x\n}", 'prometheus: "tls" is not supported by this version of kdns'),
        ("prometheus {\nruntime_metrics\n}", 'prometheus: "runtime_metrics" is not supported by this version of kdns'),
        ("reload 1s", 'reload: "1s" is too short'),
        ("reload 30s 500ms", 'reload: "500ms" is too short'),
        ("reload off", 'reload: "off" is not a duration'),
        ("reload 1m 1m 1m", "reload has 3 arguments"),
        ("bufsize 511", 'bufsize: "511" is out of range'),
        ("bufsize 4097", 'bufsize: "4097" is out of range'),
        ("errors stderr", 'errors: "stderr" is not known'),
        ("errors {\nstacktrace yes\n}", 'errors: "stacktrace" has 1 argument'),
        ("loadbalance random", 'loadbalance: "random" is not known'),
        ("any x", "any has 1 argument"),
        ("any {\nx\n}", 'any has no option "x"'),
        ("whoami x", "whoami has 1 argument"),
        ("chaos {\nx\n}", 'chaos has no option "x"'),
        ("root", "root has 0 arguments"),
        ('root ""', "root has an empty path"),
        (f"nsid {'x' * 129}", "nsid has 129 bytes"),
        ("bind", "bind has 0 arguments"),
        ("bind 127.0.0.1:53", 'bind: "127.0.0.1:53" is neither an address nor an interface'),
        ("bind interface-too-long", 'bind: "interface-too-long" is neither an address nor an interface'),
        ("bind lo {\nexcept\n}", 'bind: "except" has 0 arguments'),
        ("log . {common} {\nclass deny\n}", 'log: "deny" is not known'),
        ("log . {common} {\nclass\n}", 'log: "class" has 0 arguments'),
        ("log a..b", 'log: zone "a..b" has an empty label, or is too long'),
    ],
)  # fmt: skip
def test_refused(directive: str, message: str) -> None:
    assert refused(directive) == [message]


# -- bind


def test_bind_takes_addresses_and_interfaces() -> None:
    found = options("bind lo 10.0.0.1 0:0:0:0:0:0:0:1\nbind eth0 {\nexcept 10.0.0.2 lo\n}", "bind")
    interfaces = {"lo": ("127.0.0.1", "::1"), "eth0": ("10.0.0.2", "10.0.0.3")}
    assert found.addresses(interfaces) == ("127.0.0.1", "::1", "10.0.0.1", "10.0.0.3")


def test_an_interface_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match='this machine has no interface "eth1"; accepted: "eth0" is near; eth0, lo'):
        options("bind eth1").addresses({"lo": (), "eth0": ()})


def test_bind_that_leaves_nothing() -> None:
    with pytest.raises(ConfigError, match="Corefile:2: bind leaves no address"):
        options("bind lo {\nexcept lo\n}").addresses({"lo": ("127.0.0.1",)})


def test_the_loopback_interface_has_its_address() -> None:
    assert "127.0.0.1" in bind.interface_addresses()["lo"]


def test_conflicts_behind_the_names_of_interfaces() -> None:
    blocks = loads("a {\nbind lo\n}\na {\nbind 127.0.0.1\n}").blocks
    assert not bind.conflicts(blocks)
    (found,) = bind.conflicts(blocks, {"lo": ("127.0.0.1", "::1")})
    assert str(found).startswith("Corefile:4: dns://a.:53 is served already, by Corefile:1")


def test_a_mistake_in_bind_is_no_conflict_too() -> None:
    with pytest.raises(ConfigError) as caught:
        loads("a {\nbind 127.0.0.1\n}\na {\nbind 1:2\n}")
    assert [mistake.line for mistake in caught.value.mistakes] == [5]


# -- kubernetes

ALL = """kubernetes cluster.local 10.96.0.0/15 {
    manifests a /b
    manifests c
    namespaces default x
    labels "environment in (staging," qa),app=nginx
    pods verified
    endpoint_pod_names
    ttl 0
    fallthrough in-addr.arpa 10.0.0.0/8
    ignore empty_service
    zonal
    snapshot_max_age 1h
}"""


def test_kubernetes_with_everything() -> None:
    assert options(ALL) == kubernetes.Options(
        zones=("cluster.local.", "96.10.in-addr.arpa.", "97.10.in-addr.arpa."),
        manifests=("a", "/b", "c"),
        namespaces=("default", "x"),
        labels=selector("environment in (staging,qa),app=nginx"),
        pods="verified",
        endpoint_pod_names=True,
        ttl=0,
        fallthrough=("in-addr.arpa.", "10.in-addr.arpa."),
        ignore_empty_service=True,
        zonal=True,
        snapshot_max_age=3600,
    )


def test_kubernetes_has_the_zones_of_its_block() -> None:
    found = options("kubernetes {\nmanifests x\nnoendpoints\nnamespace_labels a=b\nfallthrough\n}")
    assert found == kubernetes.Options(
        zones=("cluster.local.", "0.10.in-addr.arpa."),
        manifests=("x",),
        namespace_labels=selector("a=b"),
        noendpoints=True,
        fallthrough=(".",),
    )


def test_manifests_are_looked_for_below_root() -> None:
    assert options("kubernetes {\nmanifests x /y\n}\nroot /etc/kdns", "kubernetes").manifests == ("/etc/kdns/x", "/y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("namespaces", 'kubernetes: "namespaces" has 0 arguments'),
        ("namespaces A", 'kubernetes: "A" cannot be a namespace'),
        ("namespaces a\nnamespace_labels b", "kubernetes has both namespaces and namespace_labels"),
        ("labels a in", 'kubernetes: label selector "a in" ends before ('),
        ("pods yes", 'kubernetes: "yes" is not known'),
        ("ttl 3601", 'kubernetes: "3601" is out of range'),
        ("ttl", 'kubernetes: "ttl" has 0 arguments'),
        ("zonal\nnoendpoints", "kubernetes has both zonal and noendpoints, which leaves zonal nothing"),
        ("ignore", 'kubernetes: "ignore" has 0 arguments'),
        ("ignore everything", 'kubernetes: "everything" is not known'),
        ("snapshot_max_age 1", 'kubernetes: "1" is not a duration'),
        ("fallthrough a..b", 'kubernetes: zone "a..b" has an empty label, or is too long'),
        ("endpoint_pod_name", 'kubernetes has no option "endpoint_pod_name"'),
        ("upstream", 'kubernetes has no option "upstream"'),
        ('manifests ""', "kubernetes: manifests has an empty path"),
        ("endpoint https://a", "kubernetes has both manifests and endpoint"),
        ("kubeconfig x", "kubernetes has both manifests and kubeconfig"),
        ("startup_timeout 1s", "kubernetes has both manifests and startup_timeout"),
        ("apiserver_qps 1", "kubernetes has both manifests and apiserver_qps"),
        ("multicluster", 'kubernetes: "multicluster" has 0 arguments'),
        ("multicluster a.b", "kubernetes has multicluster a.b., which is not one of its zones of names"),
        ("multicluster 10.0.0.0/16",
         "kubernetes has multicluster 0.10.in-addr.arpa., which is not one of its zones of names"),
    ],
)  # fmt: skip
def test_kubernetes_refuses(text: str, message: str) -> None:
    manifests = "" if text.startswith("manifests") else "manifests x\n"
    assert refused(f"kubernetes {{\n{manifests}{text}\n}}") == [message]


API = """kubernetes cluster.local clusterset.local {
    endpoint 10.0.0.1:6443 https://10.0.0.2:6443
    tls client.crt client.key ca.crt
    multicluster clusterset.local
    startup_timeout 30s
    apiserver_qps 2.5
    apiserver_burst 20
    apiserver_max_inflight 3
}"""


def test_kubernetes_without_manifests_reads_the_api() -> None:
    assert options("kubernetes").manifests == ()
    assert options("kubernetes").startup_timeout == 5
    assert options(API) == kubernetes.Options(
        zones=("cluster.local.", "clusterset.local."),
        endpoints=("https://10.0.0.1:6443", "https://10.0.0.2:6443"),
        tls=("client.crt", "client.key", "ca.crt"),
        multicluster=("clusterset.local.",),
        startup_timeout=30,
        apiserver_qps=2.5,
        apiserver_burst=20,
        apiserver_max_inflight=3,
    )


def test_an_endpoint_without_scheme_is_https_beside_tls_and_http_else() -> None:
    assert options("kubernetes {\nendpoint [::1]:8080\n}").endpoints == ("http://[::1]:8080",)
    assert options("kubernetes {\nendpoint a:1\ntls a b c\n}").endpoints == ("https://a:1",)


@pytest.mark.parametrize(("text", "file", "context"), [("x", "x", ""), ("/a/b admin@prod", "/a/b", "admin@prod")])
def test_kubeconfig_has_a_file_and_may_have_a_context(text: str, file: str, context: str) -> None:
    found = options(f"kubernetes {{\nkubeconfig {text}\n}}")
    assert (found.kubeconfig, found.context) == (file, context)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("endpoint", 'kubernetes: "endpoint" has 0 arguments'),
        ("endpoint ftp://a", 'kubernetes: "ftp://a" is not the URL of a server'),
        ("endpoint https://a:b", 'kubernetes: "https://a:b" is not the URL of a server'),
        ("endpoint https://", 'kubernetes: "https://" is not the URL of a server'),
        ("endpoint https://a\ntls a b", 'kubernetes: "tls" has 2 arguments'),
        ("tls a b c", "kubernetes has tls without endpoint"),
        ("kubeconfig", 'kubernetes: "kubeconfig" has 0 arguments'),
        ("kubeconfig a b c", 'kubernetes: "kubeconfig" has 3 arguments'),
        ('kubeconfig ""', "kubernetes: kubeconfig has an empty argument"),
        ("kubeconfig a\nendpoint https://b", "kubernetes has both kubeconfig and endpoint"),
        ("startup_timeout 5", 'kubernetes: "5" is not a duration'),
        ("apiserver_qps -1", 'kubernetes: "-1" is not a number that is 0 or more'),
        ("apiserver_burst 1.5", 'kubernetes: "1.5" is not a whole number'),
        ("apiserver_max_inflight -1", 'kubernetes: "-1" is out of range'),
    ],
)
def test_kubernetes_refuses_for_the_api(text: str, message: str) -> None:
    assert refused(f"kubernetes {{\n{text}\n}}") == [message]


def test_kubernetes_needs_a_zone_of_names() -> None:
    assert refused("kubernetes in-addr.arpa ip6.arpa 10.0.0.0/8 {\nmanifests x\n}") == [
        "kubernetes has reverse zones only"
    ]


def test_a_mistake_in_a_key_is_not_blamed_on_kubernetes() -> None:
    with pytest.raises(ConfigError) as caught:
        loads("a..b {\nkubernetes {\nmanifests x\n}\n}")
    assert len(caught.value.mistakes) == 1
