"""What a plugin's handler may use of the worker that it is in."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from kdns.observe.counters import Region
from kdns.observe.logs import Log
from kdns.plugins.budget import Budget
from kdns.plugins.chain import Next
from kdns.zone.changes import Changes


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """The surroundings of a handler in one server block of one worker.

    log: has lines for debugging if the server block has `debug`. zones: those of the server block, as in metrics ("."
    or "cluster.local."). token: random text, the same in all workers of a configuration. ask: what this server answers
    to a query, all plugins of the right server block included; to be awaited as the next of a chain. background: runs a
    coroutine in the event loop for as long as the worker serves; to be called in any thread. changes: which names of
    our zones have changed. budget: of memory, for what is kept. view: the name of the server block's view, as in
    metrics. own: what this server block answers to a query, whichever takes it; None is as `ask`.
    """

    region: Region
    log: Log
    zones: tuple[str, ...]
    token: str
    ask: Next
    background: Callable[[Coroutine[Any, Any, None]], None]
    changes: Changes
    budget: Budget
    view: str = ""
    own: Next | None = None
