"""Aliases (CNAME, DNAME) that lead out of the zones of a plugin, to what this very server answers."""

from __future__ import annotations

from kdns.plugins.chain import Next, in_loop
from kdns.wire import message, names, rr
from kdns.wire.message import Query, Response


async def chase(ask: Next, query: Query, response: Response, plugin: str, *, whole: bool) -> Response:
    """Complete the response to an alias with what this server answers to its target.

    ask: this server. query: for the target. whole: the response code is that of the target as well, and so is the SOA
    where there is no answer. Where nobody answers for the target the alias stays alone. After a failure the client is
    to try again.
    """
    await in_loop()
    found = await ask(query)
    if not found.plugin:
        response.cacheable &= found.cacheable
        return response
    truncated = found.relay is not None and found.relay.truncated
    if truncated or found.silent or found.rcode not in (rr.NOERROR, rr.NXDOMAIN):
        what = "truncated" if truncated else "not answered" if found.silent else rr.rcode_text(found.rcode)
        error = f"{names.to_text(query.lname)}, which it leads to, is {what}"
        return Response(rcode=rr.SERVFAIL, plugin=plugin, error=error)
    opened = message.opened(found)
    response.answer += opened.answer
    if whole:
        response.rcode = found.rcode
        if not opened.answer:
            response.authority += [(owner, rrset) for owner, rrset in opened.authority if rrset.type == rr.SOA]
    response.cacheable = False
    response.recursion = found.recursion
    return response
