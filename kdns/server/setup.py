"""What a supervisor needs of a part that brings queries to its sockets: on a node, `kdns.node`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Setup(Protocol):
    """Links, addresses and packet rules outside of this process.

    None of these raises: what fails is logged and counted, and `follow` tries it again. DNS is served meanwhile.
    """

    def ways(self) -> Mapping[str, str]:
        """What brings queries here now, by the address that they are for; "" if nothing does. In any thread."""

    async def prepare(self) -> None:
        """Before the sockets are opened: what they need to be bound."""

    async def open(self, listening: frozenset[tuple[str, int]]) -> None:
        """All workers answer: bring queries to the sockets, which are bound to these addresses and ports.

        Called again after a reload, before the sockets are closed that are not among them any more.
        """

    async def follow(self) -> None:
        """Keep it so, until cancelled."""

    async def suspend(self) -> None:
        """No worker answers: let the queries go where they go without us, until `open` is called again."""

    async def withdraw(self) -> None:
        """Bring no more queries; those that are in the sockets will be answered."""

    async def remove(self, *, alone: bool) -> None:
        """After the last answer: leave nothing behind. alone: no other instance needs what two may share."""
