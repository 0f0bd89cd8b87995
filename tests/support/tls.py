"""Certificates, and connections that use them."""

from __future__ import annotations

import socket
import ssl
import struct
from pathlib import Path

import trustme


class Issued:
    """A certificate authority of a test, and files with what it issues in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        self.issue("server")

    def issue(self, name: str, host: str = "dns.test") -> None:
        """Write NAME.crt (with all of the chain) and NAME.key, each in one step."""
        leaf = self.authority.issue_cert(host)
        chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        for ending, content in (("crt", chain), ("key", leaf.private_key_pem.bytes())):
            new = self.folder / f".{name}.{ending}"
            new.write_bytes(content)
            new.replace(self.folder / f"{name}.{ending}")

    def client(self, *alpn: str, own: str = "", version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """What trusts the authority. own: whose certificate it shows. version: of TLS, no other."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if own:
            context.load_cert_chain(self.folder / f"{own}.crt", self.folder / f"{own}.key")
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context


def connect(port: int, context: ssl.SSLContext, timeout: float = 3.0) -> ssl.SSLSocket:
    """A connection to 127.0.0.1 whose handshake is done."""
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout), server_hostname="dns.test")


def framed(data: bytes) -> bytes:
    """A message behind its length."""
    return struct.pack("!H", len(data)) + data
