"""`kdns query`: a small dig."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdns.errors import DomainNameError

if TYPE_CHECKING:
    from kdns.tools.exchange import Reply, Server

_FLAGS = ("qr", "aa", "tc", "rd", "ra", "ad", "cd")
_CLASSES = {"IN": 1, "CH": 3, "HS": 4, "ANY": 255}
_NSID = 3
_OTHER_RCODE = 3


def query(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Domain name, always taken as complete: no search list.")
    ] = None,
    rtype: Annotated[
        str, typer.Argument(metavar="[TYPE]", help="Record type: A, AAAA, SRV, PTR, TXT, ANY, TYPE65, ...")
    ] = "A",
    *,
    server: Annotated[str, typer.Option(help="Address of the server.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its UDP or TCP port.")] = 53,
    reverse: Annotated[
        str | None, typer.Option("--reverse", "-x", metavar="ADDRESS", help="Ask for the names of an address (PTR).")
    ] = None,
    tcp: Annotated[bool, typer.Option("--tcp", help="Ask over TCP at once.")] = False,
    edns: Annotated[bool, typer.Option(help="Send an OPT record (EDNS).")] = True,
    dnssec: Annotated[bool, typer.Option("--dnssec", help="Set the DO flag.")] = False,
    bufsize: Annotated[
        int, typer.Option(min=0, max=65535, help="UDP size offered in the OPT record, in bytes.")
    ] = 1232,
    klass: Annotated[str, typer.Option("--class", metavar="CLASS", help="IN, CH, HS or ANY.")] = "IN",
    timeout: Annotated[float, typer.Option(min=0.001, max=60, help="Seconds to wait for an answer.")] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Ask a DNS server one question, and show its answer and the time it took.

    A truncated answer is asked for again over TCP, and the output says so. Records are printed as in a master file.

    \b
    kdns query web.shop.svc.cluster.local --port 5300
    kdns query _dns._udp.kube-dns.kube-system.svc.cluster.local SRV --port 5300
    kdns query -x 10.96.0.10 --port 5300
    kdns query version.bind TXT --class CH --server 10.96.0.10

    Exit codes: 0 the answer is NOERROR; 1 there was no answer, or none that can be read; 2 the command line was wrong;
    3 the answer is another one (NXDOMAIN, SERVFAIL, REFUSED, ...).
    """
    from kdns.tools.exchange import Server, exchange

    if (name is None) == (reverse is None):
        raise typer.BadParameter("give either a NAME or --reverse ADDRESS")
    if dnssec and not edns:
        raise typer.BadParameter("--dnssec sets a flag in the OPT record, which --no-edns leaves out")
    question = _question(name, rtype, klass, reverse)
    where = Server(server, port)
    reply = exchange(question, where, tcp=tcp, edns=bufsize if edns else None, dnssec=dnssec, timeout=timeout)
    facts = describe(reply, where)
    typer.echo(json.dumps(facts, indent=2) if as_json else "\n".join(_lines(facts)))
    if facts["status"] != "NOERROR":
        raise typer.Exit(_OTHER_RCODE)


def _question(name: str | None, rtype: str, klass: str, reverse: str | None) -> Any:
    from dnslib import DNSQuestion

    from kdns.wire import names, rr

    try:
        if reverse is not None:
            wire, number = names.reverse(reverse), rr.PTR
        else:
            wire, number = names.from_text(name or "."), rr.type_number(rtype)
    except (DomainNameError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    if klass.upper() not in _CLASSES:
        raise typer.BadParameter(f"{klass!r} is no class; accepted: {', '.join(_CLASSES)}")
    return DNSQuestion(names.labels(wire), number, _CLASSES[klass.upper()])


def describe(reply: Reply, server: Server) -> dict[str, Any]:
    """A reply as JSON has it."""
    from kdns.wire import rr

    record = reply.record
    header = record.header
    opt = next((extra for extra in record.ar if extra.rtype == rr.OPT), None)
    rcode = header.rcode | (opt.edns_rcode << 4 if opt is not None else 0)
    return {
        "status": rr.rcode_text(rcode),
        "id": header.id,
        "flags": [flag for flag in _FLAGS if getattr(header, flag)],
        "edns": None if opt is None else _edns(opt),
        "question": [
            {"name": _name(asked.qname), "class": rr.class_text(asked.qclass), "type": rr.type_text(asked.qtype)}
            for asked in record.questions
        ],
        "answer": _section(record.rr),
        "authority": _section(record.auth),
        "additional": _section([extra for extra in record.ar if extra is not opt]),
        "server": server.host,
        "port": server.port,
        "proto": reply.proto,
        "retried_over_tcp": reply.retried,
        "size": reply.size,
        "milliseconds": round(reply.seconds * 1000, 3),
    }


def _edns(opt: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"version": opt.edns_ver, "do": bool(opt.edns_do), "udp_size": opt.edns_len, "options": {}}
    for option in opt.rdata:
        if option.code == _NSID:
            facts["nsid"] = option.data.decode("utf-8", "backslashreplace")
        else:
            facts["options"][str(option.code)] = option.data.hex()
    return facts


def _section(records: list[Any]) -> list[dict[str, Any]]:
    from kdns.wire import rr

    return [
        {
            "name": _name(record.rname),
            "ttl": record.ttl,
            "class": rr.class_text(record.rclass),
            "type": rr.type_text(record.rtype),
            "data": _data(record),
        }
        for record in records
    ]


def _data(record: Any) -> str:
    """rdata as a master file has it; of types that dnslib does not know, as RFC 3597 writes them."""
    from dnslib import TXT, DNSBuffer

    from kdns.wire import rr

    if record.rtype == rr.HINFO:
        return str(TXT.parse(DNSBuffer(record.rdata.data), len(record.rdata.data)).toZone())
    return str(record.rdata.toZone())


def _name(label: Any) -> str:
    from kdns.wire import names

    return names.to_text(names.join(label.label))


def _lines(facts: dict[str, Any]) -> list[str]:
    """The same for people."""
    lines = [f";; {facts['status']}, flags {' '.join(facts['flags'])}, id {facts['id']}"]
    if edns := facts["edns"]:
        do = ", do" if edns["do"] else ""
        nsid = f", nsid {edns['nsid']}" if "nsid" in edns else ""
        rest = "".join(f", option {code}: {data}" for code, data in edns["options"].items())
        lines.append(f";; EDNS version {edns['version']}, UDP size {edns['udp_size']}{do}{nsid}{rest}")
    if facts["retried_over_tcp"]:
        lines.append(";; truncated over UDP, so asked again over TCP")
    lines += ["", ";; question"]
    lines += [f";{asked['name']} {asked['class']} {asked['type']}" for asked in facts["question"]]
    for section in ("answer", "authority", "additional"):
        if records := facts[section]:
            lines += ["", f";; {section}", *_aligned(records)]
    took = f"{facts['milliseconds']:.1f} ms"
    where = f"{facts['server']} port {facts['port']} over {facts['proto'].upper()}"
    return [*lines, "", f";; {facts['size']} bytes from {where} in {took}"]


def _aligned(records: list[dict[str, Any]]) -> list[str]:
    columns = ("name", "ttl", "class", "type")
    widths = [max(len(str(record[column])) for record in records) for column in columns]
    return [
        "  ".join(
            [*(f"{record[column]:<{width}}" for column, width in zip(columns, widths, strict=True)), record["data"]]
        )
        for record in records
    ]
