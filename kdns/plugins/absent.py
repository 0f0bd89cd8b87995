"""The plugins of CoreDNS that this version does not have, and what to do instead.

Who adds one of them takes its line away here, and changes its line in the README's table.
"""

from __future__ import annotations

from collections.abc import Mapping

_ELSEWHERE = "another server for these names, and a server block that forwards to it"
_PLAIN = "DNS over UDP, TCP, TLS or HTTPS"
INSTEAD: Mapping[str, str] = {
    "azure": _ELSEWHERE,
    "clouddns": _ELSEWHERE,
    "dnssec": "nothing: the cluster's zones are not signed",
    "dnstap": "log",
    "etcd": _ELSEWHERE,
    "geoip": "nothing: there is no database of places",
    "grpc": "forward over UDP, TCP, TLS or HTTPS",
    "grpc_server": _PLAIN,
    "https": "nothing: connections are bounded, 1000 for each worker",
    "https3": _PLAIN,
    "nomad": _ELSEWHERE,
    "on": "nothing: commands at start and end belong to the pod (postStart, preStop)",
    "pprof": "nothing: it is for Go",
    "proxyproto": _PLAIN,
    "quic": _PLAIN,
    "route53": _ELSEWHERE,
    "shed": "nothing: what waits is bounded (max_concurrent of forward)",
    "sign": "nothing: the cluster's zones are not signed",
    "trace": "log; kdns_* and coredns_* metrics",
}
"""By name: what to do instead, or why there is nothing to do."""
