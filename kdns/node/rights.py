"""What this process may do (capabilities(7))."""

from __future__ import annotations

from pathlib import Path

NET_ADMIN = 12
NET_RAW = 13


def has(capability: int) -> bool:
    """Whether a capability is effective (proc_pid_status(5))."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return bool(int(fields["CapEff"], 16) >> capability & 1)
