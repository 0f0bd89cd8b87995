"""What a plugin that takes part in answering is called with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kdns.wire.message import Query, Response

Next = Callable[[Query], Awaitable[Response]]
"""The rest of the chain."""
