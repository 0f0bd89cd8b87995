"""A question on its way to an upstream, and which messages can be its answer."""

from __future__ import annotations

import struct

from msgspec import Struct

from kdns.wire import relay
from kdns.wire.message import HEADER, QUESTION_AT, RD


class Ask(Struct, frozen=True, eq=False, gc=False):
    """A query without the ID, which each transmission has its own.

    body: the message from its third byte on. question: name, type and class as asked.
    """

    body: bytes
    question: bytes

    @property
    def has_opt(self) -> bool:
        """Whether there is an OPT behind the question."""
        return len(self.body) > QUESTION_AT - 2 + len(self.question)

    def plain(self) -> Ask:
        """The same without the OPT, for a server that does not know EDNS (RFC 6891 6.2.2 and 7)."""
        return Ask(self.body[:8] + b"\0\0" + self.question, self.question)

    def mismatch(self, data: bytes) -> str:
        """Why a message with the right ID is no answer to this, as a label for metrics; "" if it is one.

        Names compare without case. An error may come without the question: some servers send it so to what they do
        not understand.
        """
        if len(data) < QUESTION_AT:
            return "short"
        if not data[2] & 0x80:
            return "query"
        if data[4:6] != b"\0\1":
            return "" if data[4:6] == b"\0\0" and data[3] & 0xF else "question"
        question = self.question
        return "" if data.startswith(question, QUESTION_AT) or relay.same_question(data, question) else "question"


def plain_ask(name: bytes, rtype: int, *, recursion: bool = True) -> Ask:
    """A question of our own in class IN, without an OPT. name: in wire format."""
    question = name + struct.pack("!HH", rtype, 1)
    return Ask(HEADER.pack(0, RD if recursion else 0, 1, 0, 0, 0)[2:] + question, question)
