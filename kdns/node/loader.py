"""Reading the node's configuration, again and again.

A wrong base file is an error; a wrong ConfigMap is not, since a cluster's DNS must not depend on what is added to it:
its last good content goes on, and nothing of it at the start.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdns.corefile.config import Config
from kdns.corefile.parser import Part
from kdns.errors import ConfigError, KdnsError, Mistake
from kdns.node import configmap
from kdns.node.configmap import KubeDns
from kdns.node.template import Values, fill
from kdns.observe.logs import Log

DEFAULT_KUBE_DNS = Path("/etc/kube-dns")
CONFIGMAP = "configmap"

_Results = dict[tuple[Part, ...], Config | ConfigError]


@dataclass(frozen=True, slots=True)
class Paths:
    """Where the configuration lies.

    base: the base file, see `template`. conf: where its result is written; the Corefile itself if there is no base
    file. kube_dns: the ConfigMap's directory; None for DEFAULT_KUBE_DNS, if there is one.
    """

    base: Path
    conf: Path
    kube_dns: Path | None = None


class Loader:
    """Called for the configuration as the files are now. Not to be called from two threads at a time."""

    def __init__(
        self,
        paths: Paths,
        values: Values,
        understand: Callable[[Sequence[Part]], Config],
        log: Log,
        count: Callable[[str], None],
    ) -> None:
        """understand: reads a Corefile; raises ConfigError. count: told CONFIGMAP for each complaint about one.

        Raises KdnsError if the result would be written over the base file.
        """
        if paths.base.resolve() == paths.conf.resolve():
            raise KdnsError(f"{paths.base} is the base file and the result: the one would be written over the other")
        self._paths = paths
        self._values = values
        self._understand = understand
        self._log = log
        self._count = count
        self._kube_dns = KubeDns()
        self._had_base = False
        self._before: _Results = {}
        self._now: _Results = {}
        self._said: dict[str, str] = {}

    def __call__(self) -> Config:
        """Raises ConfigError with every mistake of the base file, or of the Corefile where there is none."""
        self._before, self._now = self._now, {}
        base = self._base()
        if base is None:
            return self._without_base()
        config, parts = self._with_kube_dns(base)
        self._write(b"\n".join(part.data for part in parts))
        return config

    @property
    def incomplete(self) -> bool:
        """Whether the kube-dns ConfigMap cannot be used as it is now."""
        return CONFIGMAP in self._said

    def _base(self) -> bytes | None:
        """The base file; None where there never was one."""
        try:
            data = self._paths.base.read_bytes()
        except OSError as error:
            if isinstance(error, FileNotFoundError | NotADirectoryError) and not self._had_base:
                return None
            raise _unreadable(self._paths.base, f"cannot be read: {error.strerror}") from None
        self._had_base = True
        return data

    def _without_base(self) -> Config:
        """Installers that fill in the variables themselves mount the Corefile, and no base file."""
        conf, base = self._paths.conf, self._paths.base
        try:
            data = conf.read_bytes()
        except OSError as error:
            raise _unreadable(conf, f"cannot be read: {error.strerror}; and there is no base file {base}") from None
        self._say_once(
            "base", f"there is no base file {base}: {conf} is served as it is, without the kube-dns ConfigMap"
        )
        return self._understood([Part(data, str(conf))])

    def _with_kube_dns(self, base: bytes) -> tuple[Config, list[Part]]:
        """The configuration, with the ConfigMap if that can be used; otherwise as `_complain` says."""
        try:
            wanted = self._read_kube_dns()
            result = self._filled(base, wanted)
        except ConfigError as error:
            problem = error
        else:
            self._take(wanted)
            return result
        result = self._filled(base, self._kube_dns)
        self._complain(problem)
        return result

    def _take(self, wanted: KubeDns) -> None:
        if wanted != self._kube_dns:
            stubs = ", ".join(stub.name for stub in wanted.stub_domains) or "none"
            upstreams = ", ".join(wanted.upstreams) or "none"
            self._log.info(f"kube-dns ConfigMap: stub domains: {stubs}; upstream nameservers: {upstreams}")
        self._kube_dns = wanted
        self._said.pop(CONFIGMAP, None)

    def _filled(self, base: bytes, kube_dns: KubeDns) -> tuple[Config, list[Part]]:
        parts = fill(base, str(self._paths.base), self._values, kube_dns)
        return self._understood(parts), parts

    def _understood(self, parts: list[Part]) -> Config:
        """The Corefile of these parts; what the last call found out of the same is not worked out again.

        What may change while the parts do not is: what is imported, the keys of `tsig`, and mistakes of the base file,
        which may be in files that a directive names.
        """
        key = tuple(parts)
        found = self._now.get(key) or self._before.get(key)
        if found is None:
            try:
                found = self._understand(parts)
            except ConfigError as error:
                found = error
        lasting = isinstance(found, Config) or all(mistake.file != parts[0].file for mistake in found.mistakes)
        if lasting and b"import" not in parts[0].data and b"secrets" not in parts[0].data:
            self._now[key] = found
        if isinstance(found, ConfigError):
            raise found
        return found

    def _read_kube_dns(self) -> KubeDns:
        folder = self._paths.kube_dns
        if folder is None and not DEFAULT_KUBE_DNS.is_dir():
            return KubeDns()
        return configmap.read(folder or DEFAULT_KUBE_DNS)

    def _complain(self, error: ConfigError) -> None:
        instead = "what it said before goes on" if self._kube_dns.folder else "this starts without it"
        mistakes = "; ".join(map(str, error.mistakes))
        if self._say_once(CONFIGMAP, f"the kube-dns ConfigMap cannot be used, {instead}: {mistakes}"):
            self._count(CONFIGMAP)

    def _write(self, data: bytes) -> None:
        """Leave the result where NodeLocal DNSCache has it, for people who look there."""
        conf = self._paths.conf.resolve()
        temporary = conf.with_name(f".{conf.name}.kdns-{os.getpid()}")
        try:
            if conf.exists() and conf.read_bytes() == data:
                return
            temporary.write_bytes(data)
            temporary.replace(conf)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            self._say_once("write", f"{conf} cannot be written, and need not be: {error.strerror}")

    def _say_once(self, subject: str, text: str) -> bool:
        """Warn, unless this was the last thing said about the subject; whether it was said."""
        new = self._said.get(subject) != text
        if new:
            self._said[subject] = text
            self._log.warning(text)
        return new


def _unreadable(path: Path, problem: str) -> ConfigError:
    return ConfigError([Mistake(str(path), 1, problem, "a readable file")])
