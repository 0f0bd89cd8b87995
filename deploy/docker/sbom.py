"""Adds the Debian packages of a root to a list of Python packages (CycloneDX, JSON).

sbom.py PYTHON DPKG: the list, and a copy of the root's /var/lib/dpkg. Prints both in one; ends with 1 if that does not
fit CycloneDX's schema.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid5

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

SCHEMA = SchemaVersion.V1_6
FIELDS = "${Package} ${Version} ${Architecture} ${source:Package} ${source:Version}\n"


def debian(dpkg: str) -> Iterator[Component]:
    """The system and its packages. Their URLs name the source package too, by which vulnerabilities are known."""
    release = platform.freedesktop_os_release()
    name, version = release["ID"], release["VERSION_ID"]
    yield Component(type=ComponentType.OPERATING_SYSTEM, name=name, version=version, bom_ref=f"{name}-{version}")
    command = ["dpkg-query", f"--admindir={dpkg}", "--show", f"--showformat={FIELDS}"]
    for line in subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines():
        package, number, architecture, source, source_number = line.split()
        upstream = source if source_number == number else f"{source}@{source_number}"
        qualifiers = {"arch": architecture, "distro": f"{name}-{version}", "upstream": upstream}
        url = PackageURL("deb", name, package, number, qualifiers)
        yield Component(type=ComponentType.LIBRARY, name=package, version=number, purl=url, bom_ref=str(url))


def written(bom: Bom) -> str:
    """As JSON."""
    return make_outputter(bom, OutputFormat.JSON, SCHEMA).output_as_string(indent=1)


def main(python: str, dpkg: str) -> int:
    """Read, add, check, print."""
    bom = Bom.from_json(json.loads(Path(python).read_text()))
    found = list(debian(dpkg))
    bom.components.update(found)
    bom.register_dependency(bom.metadata.component, found)
    bom.serial_number = UUID(int=0)
    bom.serial_number = uuid5(bom.serial_number, written(bom))  # the same list has the same number
    text = written(bom)
    mistakes = JsonStrictValidator(SCHEMA).validate_str(text, all_errors=True)
    for mistake in mistakes or ():
        print(mistake, file=sys.stderr)
    print(text)
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
