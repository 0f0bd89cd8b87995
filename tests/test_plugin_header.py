"""header: flags are set and cleared in queries and responses."""

from __future__ import annotations

import dns.flags
import pytest

from kdns.plugins import header
from kdns.wire import message
from kdns.wire.message import Response
from tests.conftest import Serve
from tests.support.configs import options, refused
from tests.support.plugins import Behind, answered, query

COREFILE = """
.:$dns {
    bind 127.0.0.1
    whoami
}
a.test:$dns {
    bind 127.0.0.1
    header {
        response set ra
        Response CLEAR aa RD
    }
    whoami
}
b.test:$dns {
    bind 127.0.0.1
    header {
        query set rd
    }
    whoami
}
c.test:$dns {
    bind 127.0.0.1
    header {
        response set ra
        response clear ra
        response clear rd
        response set rd
    }
    whoami
}
"""


def test_flags_are_as_the_lines_say_and_the_last_one_decides(serve: Serve) -> None:
    server = serve(corefile=COREFILE)

    def flags(name: str, asked: int) -> str:
        both = {dns.flags.to_text(server.query(name, flags=asked, tcp=tcp).flags) for tcp in (False, True)}
        assert len(both) == 1
        return both.pop()

    assert flags("example.org", dns.flags.RD) == "QR AA RD"
    assert flags("a.test", dns.flags.RD) == "QR RA"
    assert flags("b.test", 0) == "QR AA RD"
    assert flags("c.test", 0) == "QR AA RD"


def test_the_plugins_behind_see_the_query_as_it_was_made() -> None:
    for text, before, after in (("set rd", 0, message.RD), ("clear rd", message.RD, 0)):
        behind = Behind()
        asked = query("a.test", flags=before)
        response = answered(header.Handler(options(f"header {{\nquery {text}\n}}")), asked, behind)
        assert behind.query is asked
        assert asked.flags == after
        assert not response.set_flags | response.clear_flags
        assert message.upstream_query(asked, 1)[2] << 8 & message.RD == after


@pytest.mark.parametrize(
    ("directive", "messages"),
    [
        ("header", ["1: header has nothing to do"]),
        ("header {\n}", ["1: header has nothing to do"]),
        ("header x {\nquery set rd\n}", ["1: header has 1 argument"]),
        ("header {\nset ra\n}", ['2: header: "set" is not known', '2: header: "set" has 1 argument']),
        ("header {\nresponse set\n}", ['2: header: "response" has 1 argument']),
        ("header {\nresponse unset ra\n}", ['2: header: "unset" is not known']),
        ("header {\nresponse set ra tc\n}", ['2: header: "tc" is not known']),
        ("header {\nresponse set ra {\nx\n}\n}", ['2: header: "response" has a block']),
    ],
)
def test_mistakes(directive: str, messages: list[str]) -> None:
    assert refused(directive) == messages


def test_an_answer_that_is_truncated_stays_so() -> None:
    """What a plugin behind has no room for, or an alias leads to, is to be asked for over TCP."""
    for text, flags in (("response set ra", message.TC | message.RA), ("response clear aa", message.TC)):
        handler = header.Handler(options(f"header {{\n{text}\n}}"))
        response = answered(handler, query("a.test"), Behind(Response(set_flags=message.TC, clear_flags=message.RA)))
        assert response.set_flags == flags
        assert response.clear_flags & message.RA == (0 if flags & message.RA else message.RA)
