"""The files of `tls` directives: read, tried, and read again when they change. Loaded only where the directive is used.

What was good stays in memory: a worker that starts while the files cannot be used gets it from the supervisor. Both
look at the files by themselves; only the supervisor speaks of what it finds.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kdns.corefile.config import ServerConfig
from kdns.errors import ConfigError, KdnsError, Mistake
from kdns.observe.logs import Log
from kdns.plugins import tls
from kdns.plugins.tls import Options

PROTOCOLS = {"tls": ("dot",), "https": ("h2", "http/1.1")}
"""Of ALPN (RFC 7301), for each scheme."""
RENEW = 4096
"""Handshakes for which OpenSSL may remember sessions: it keeps up to 20,480 of clients that use no tickets."""
_LARGEST = 1 << 20
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_VERIFY = {
    "nocert": ssl.CERT_NONE,
    "verify_if_given": ssl.CERT_OPTIONAL,
    "require_and_verify": ssl.CERT_REQUIRED,
}
_Stamp = tuple[tuple[int, int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Material:
    """What the files of one directive held when they were good. expires: of time.time()."""

    certificate: bytes
    key: bytes
    authority: bytes
    expires: float


Materials = Mapping[Options, Material]


def read(options: Options) -> Material:
    """What the files hold, tried out. Raises KdnsError."""
    certificate, key = (_file(path) for path in (options.certificate, options.key))
    authority = _file(options.authority) if options.authority else b""
    try:
        material = Material(certificate, key, authority, _expires(certificate))
    except (ValueError, IndexError, OverflowError):
        raise KdnsError(f"{options.certificate} has no certificate in PEM format") from None
    make_context(options, material, ())
    return material


def make_context(options: Options, material: Material, protocols: Iterable[str]) -> ssl.SSLContext:
    """What connections are made of. protocols: of ALPN, those that are preferred first. Raises KdnsError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 1
    names = list(protocols)
    if names:
        context.set_alpn_protocols(names)
    pair = material.certificate + b"\n" + material.key
    try:
        _load_pair(context, pair)
    except (OSError, ValueError) as error:  # no descriptor may be left for what is in memory
        raise KdnsError(f"{options.certificate} and {options.key} cannot be used: {_said(error)}") from None
    context.verify_mode = _VERIFY[options.client_auth]
    if material.authority:
        try:
            context.load_verify_locations(cadata=material.authority.decode("ascii", "replace"))
        except (ssl.SSLError, ValueError) as error:
            raise KdnsError(f"{options.authority} cannot be used: {_said(error)}") from None
    elif context.verify_mode != ssl.CERT_NONE:
        context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    if options.keylog and names:
        _open_keylog(context, options.keylog)
    return context


def _open_keylog(context: ssl.SSLContext, path: str) -> None:
    """Let the secrets be written to a file that nobody else may read. Raises KdnsError."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
        context.keylog_filename = path
    except OSError as error:
        raise KdnsError(f"{path} cannot be written: {error.strerror}") from None


def _load_pair(context: ssl.SSLContext, pem: bytes) -> None:
    """Load what is in memory: the ssl module takes files only, and those on the disk may be others by now."""
    number = os.memfd_create("kdns-tls", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(number), "wb") as file:
            file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{number}", password=_no_password)
    finally:
        os.close(number)


def _no_password() -> str:
    raise ValueError("the key is protected by a password")


def _file(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_LARGEST + 1)
    except (OSError, ValueError) as error:
        raise KdnsError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > _LARGEST:
        raise KdnsError(f"{path} has more than {_LARGEST} bytes")
    return data


def _said(error: Exception) -> str:
    """What OpenSSL says, without its file and line."""
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return "the key is not that of the certificate"
    return reason.lower().replace("_", " ") if reason else str(error)


def _stamp(options: Options) -> _Stamp:
    """What changes when a file does, be it another one under its name."""
    found: list[tuple[int, int, int, int] | None] = []
    for path in filter(None, (options.certificate, options.key, options.authority)):
        try:
            status = Path(path).stat()
        except (OSError, ValueError):
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


# When certificates end


def _expires(pem: bytes) -> float:
    """When the first of the certificates ends. Raises ValueError, IndexError or OverflowError if there is none."""
    found = []
    for part in pem.split(_BEGIN)[1:]:
        text = (_BEGIN + part.partition(_END)[0] + _END + b"\n").decode("ascii")
        found.append(_not_after(ssl.PEM_cert_to_DER_cert(text)))
    return min(found)


def _not_after(der: bytes) -> float:
    """The end of a certificate's validity (RFC 5280 4.1: behind version, serial number, algorithm and issuer)."""
    at, _, _ = _element(der, 0)
    at, _, _ = _element(der, at)
    if der[at] == 0xA0:
        at = _element(der, at)[1]
    for _ in range(3):
        at = _element(der, at)[1]
    at = _element(der, at)[0]
    at = _element(der, at)[1]
    start, end, tag = _element(der, at)
    text = der[start:end].decode("ascii")
    if tag == 0x17:  # UTCTime: two digits for 1950 to 2049
        text = ("19" if text >= "5" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Where the content of an element begins and ends (X.690 8.1), and its tag."""
    tag, size = der[at], der[at + 1]
    at += 2
    if size & 0x80:
        count = size & 0x7F
        size = int.from_bytes(der[at : at + count], "big")
        at += count
    return at, at + size, tag


# Following them


class Certificate:
    """The files of one directive, and what was good of them last."""

    def __init__(self, options: Options, kept: Material | None = None) -> None:
        """kept: for when the files cannot be used now. Raises KdnsError if they cannot, and there is none."""
        self.options = options
        self.problem = ""
        self._failed = 0
        self._stamp = _stamp(options)
        try:
            self.material = read(options)
        except KdnsError as error:
            if kept is None:
                raise
            self.material = kept
            self.problem = str(error)

    def look(self) -> bool:
        """Read the files if they have changed, or are not good; True if there is another certificate by that.

        Files that are replaced one after the other do not fit for a moment: `problem` says so the second time.
        """
        stamp = _stamp(self.options)
        if stamp == self._stamp and not (self.problem or self._failed):
            return False
        self._stamp = stamp
        try:
            material = read(self.options)
        except KdnsError as error:
            self._failed += 1
            if self._failed > 1:
                self.problem = str(error)
            return False
        self.problem, self._failed = "", 0
        changed = material != self.material
        self.material = material
        return changed


class Credential(Certificate):
    """The same in a worker: what its connections are made of. protocols: of ALPN."""

    def __init__(self, options: Options, protocols: Iterable[str], kept: Material | None) -> None:
        super().__init__(options, kept)
        self._protocols = tuple(protocols)
        self._given = 0
        self._context = make_context(options, self.material, self._protocols)

    def context(self) -> ssl.SSLContext:
        """For one more connection."""
        self._given += 1
        if self._given >= RENEW:
            self._renew()
        return self._context

    def look(self) -> bool:
        """As Certificate does."""
        changed = super().look()
        if changed:
            self._renew()
        return changed

    def _renew(self) -> None:
        self._given = 0
        with contextlib.suppress(KdnsError):  # `keylog` cannot be written any more: the one that there is stays
            self._context = make_context(self.options, self.material, self._protocols)


class Keyring:
    """The certificates of a configuration, in the supervisor."""

    def __init__(self, blocks: Iterable[ServerConfig], log: Log) -> None:
        """Raises ConfigError with the files that cannot be used."""
        self._log = log
        self._told: dict[Options, str] = {}
        self.certificates: dict[Options, Certificate] = {}
        mistakes = []
        for options in _used(blocks):
            try:
                self.certificates[options] = Certificate(options)
                make_context(options, self.certificates[options].material, ("dot",))
            except KdnsError as error:
                mistakes.append(
                    Mistake(options.at.file, options.at.line, f"tls: {error}", "CERT KEY [CA] in PEM format")
                )
        if mistakes:
            raise ConfigError(mistakes)

    def warn(self) -> None:
        """Say what is dangerous."""
        for options in self.certificates:
            if options.keylog:
                self._log.warning(f"the secrets of all connections are written to {options.keylog}")

    def materials(self) -> dict[Options, Material]:
        """What was good last, for workers that start."""
        return {options: certificate.material for options, certificate in self.certificates.items()}

    def look(self) -> None:
        """Read what has changed, and say so. In one thread at a time."""
        for options, certificate in self.certificates.items():
            if certificate.look():
                ends = datetime.fromtimestamp(certificate.material.expires, UTC)
                self._log.info(f"{options.certificate} was read again; it is good until {ends:%Y-%m-%d %H:%M} UTC")
            if certificate.problem != self._told.get(options, ""):
                self._told[options] = certificate.problem
                if certificate.problem:
                    self._log.error(f"{certificate.problem}; what was there before stays in use")

    def states(self) -> list[tuple[str, float, bool]]:
        """For each certificate its path, when it ends, and whether the files can be used now. In any thread."""
        return [
            (options.certificate, certificate.material.expires, not certificate.problem)
            for options, certificate in self.certificates.items()
        ]


def _used(blocks: Iterable[ServerConfig]) -> list[Options]:
    return list(dict.fromkeys(block.plugins[tls.NAME] for block in blocks if tls.NAME in block.plugins))


def check(blocks: Iterable[ServerConfig]) -> list[Mistake]:
    """The mistakes in the files of a configuration's `tls` directives; nothing is written."""
    mistakes = []
    for options in _used(blocks):
        try:
            read(options)
        except KdnsError as error:
            mistakes.append(Mistake(options.at.file, options.at.line, f"tls: {error}", "CERT KEY [CA] in PEM format"))
    return mistakes
