"""What a supervisor needs of a part that brings queries to its sockets: on a node, `kdns.node`."""

from __future__ import annotations

from typing import Protocol


class Setup(Protocol):
    """Links, addresses and packet rules outside of this process.

    None of these raises: what fails is logged and counted, and `follow` tries it again. DNS is served meanwhile.
    """

    async def prepare(self) -> None:
        """Before the sockets are opened: what they need to be bound."""

    async def open(self) -> None:
        """All workers answer: bring queries to the sockets."""

    async def follow(self) -> None:
        """Keep it so, until cancelled."""

    async def withdraw(self) -> None:
        """Bring no more queries; those that are in the sockets will be answered."""

    async def remove(self, *, alone: bool) -> None:
        """After the last answer: leave nothing behind. alone: no other instance needs what two may share."""
