"""Resource record numbers and rdata (RFC 1035 3.2 and 3.3, RFC 2782, RFC 3596, RFC 6891)."""

from __future__ import annotations

import re
import socket
import struct

A, NS, CNAME, SOA, PTR, HINFO, MX, TXT, AAAA, SRV, DNAME, OPT = 1, 2, 5, 6, 12, 13, 15, 16, 28, 33, 39, 41
DS, RRSIG, NSEC, SVCB, HTTPS, IXFR, AXFR, ANY = 43, 46, 47, 64, 65, 251, 252, 255
IN, CH, HS, NONE, ANY_CLASS = 1, 3, 4, 254, 255
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, YXDOMAIN, BADVERS = 0, 1, 2, 3, 4, 5, 6, 16

_TYPES = {
    A: "A", NS: "NS", 3: "MD", 4: "MF", CNAME: "CNAME", SOA: "SOA", 7: "MB", 8: "MG", 9: "MR", 10: "NULL", PTR: "PTR",
    HINFO: "HINFO", 14: "MINFO", MX: "MX", TXT: "TXT", 17: "RP", 18: "AFSDB", 19: "X25", 20: "ISDN", 21: "RT",
    23: "NSAP-PTR", 24: "SIG", 25: "KEY", 26: "PX", 27: "GPOS", AAAA: "AAAA", 29: "LOC", 30: "NXT", 31: "EID",
    32: "NIMLOC", SRV: "SRV", 34: "ATMA", 35: "NAPTR", 36: "KX", 37: "CERT", DNAME: "DNAME", OPT: "OPT", 42: "APL",
    DS: "DS", 44: "SSHFP", 45: "IPSECKEY", RRSIG: "RRSIG", NSEC: "NSEC", 48: "DNSKEY", 49: "DHCID", 50: "NSEC3",
    51: "NSEC3PARAM", 52: "TLSA", 53: "SMIMEA", 55: "HIP", 56: "NINFO", 57: "RKEY", 58: "TALINK", 59: "CDS",
    60: "CDNSKEY", 61: "OPENPGPKEY", 62: "CSYNC", 63: "ZONEMD", SVCB: "SVCB", HTTPS: "HTTPS", 99: "SPF", 100: "UINFO",
    101: "UID", 102: "GID", 103: "UNSPEC", 104: "NID", 105: "L32", 106: "L64", 107: "LP", 108: "EUI48", 109: "EUI64",
    128: "NXNAME", 249: "TKEY", 250: "TSIG", IXFR: "IXFR", AXFR: "AXFR", 253: "MAILB", 254: "MAILA", ANY: "ANY",
    256: "URI", 257: "CAA", 258: "AVC", 260: "AMTRELAY", 261: "RESINFO", 32768: "TA", 32769: "DLV",
}  # fmt: skip
_NUMBERS = {text: number for number, text in _TYPES.items()}
_CLASSES = {IN: "IN", CH: "CH", HS: "HS", NONE: "NONE", ANY_CLASS: "ANY"}
_RCODES = {
    NOERROR: "NOERROR", FORMERR: "FORMERR", SERVFAIL: "SERVFAIL", NXDOMAIN: "NXDOMAIN", NOTIMP: "NOTIMP",
    REFUSED: "REFUSED", YXDOMAIN: "YXDOMAIN", 7: "YXRRSET", 8: "NXRRSET", 9: "NOTAUTH", 10: "NOTZONE",
    BADVERS: "BADVERS",
}  # fmt: skip

_SRV = struct.Struct("!HHH")
_SOA = struct.Struct("!IIIII")


def type_text(number: int) -> str:
    """The mnemonic of a type, or TYPE123 (RFC 3597 5)."""
    return _TYPES.get(number) or f"TYPE{number}"


def type_number(text: str) -> int:
    """The number of a type's mnemonic, in any case, or of TYPE123. Raises ValueError."""
    text = text.upper()
    number = _NUMBERS.get(text)
    if number is None:
        match = re.fullmatch(r"TYPE(\d{1,5})", text, re.ASCII)
        if match is None or int(match[1]) > 0xFFFF:
            raise ValueError(f"{text!r} is no record type; accepted: {', '.join(_NUMBERS)} or TYPE0 to TYPE65535")
        number = int(match[1])
    return number


def class_text(number: int) -> str:
    """The mnemonic of a class, or CLASS123 (RFC 3597 5)."""
    return _CLASSES.get(number) or f"CLASS{number}"


def rcode_text(number: int) -> str:
    """The mnemonic of a response code, or RCODE123."""
    return _RCODES.get(number) or f"RCODE{number}"


def address(text: str) -> bytes:
    """rdata of an A record (4 bytes) or AAAA record (16 bytes). Raises OSError for text that is no address."""
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def address_type(rdata: bytes) -> int:
    """A for 4 bytes of rdata, AAAA for 16."""
    return A if len(rdata) == 4 else AAAA


def address_text(rdata: bytes) -> str:
    """The text of an A or AAAA record's rdata, IPv6 in its shortest form (RFC 5952)."""
    return socket.inet_ntop(socket.AF_INET if len(rdata) == 4 else socket.AF_INET6, rdata)


def srv(priority: int, weight: int, port: int, target: bytes) -> bytes:
    """rdata of an SRV record (RFC 2782): three 16-bit numbers and the target, never compressed."""
    return _SRV.pack(priority, weight, port) + target


def txt(*strings: bytes) -> bytes:
    """rdata of a TXT record: each string of at most 255 bytes behind its length."""
    return b"".join(bytes((len(string),)) + string for string in strings)


def soa(mname: bytes, rname: bytes, serial: int, refresh: int, retry: int, expire: int, minimum: int) -> bytes:
    """rdata of an SOA record; times in seconds."""
    return mname + rname + _SOA.pack(serial, refresh, retry, expire, minimum)


def hinfo(cpu: bytes, os: bytes) -> bytes:
    """rdata of an HINFO record, which RFC 8482 uses for a minimal answer to ANY."""
    return txt(cpu, os)
