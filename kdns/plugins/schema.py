"""What a name says after the Kubernetes DNS schema, whether there is such a thing or not."""

from __future__ import annotations

from kdns.wire import names

_KINDS = (b"svc", b"pod")
_DIRECTIVES = (b"pin", b"prefer")
NO_NAME = {"parse-error": "invalid query name"}
"""For a name that is nothing in the schema."""


def parts(name: bytes, zone: bytes, *, multicluster: bool, zonal: bool) -> dict[str, str]:
    """The parts of a name below a zone, both lower case, as metadata calls them; those that it does not have are not
    there. NO_NAME for one that is nothing in the schema.

    multicluster: the zone is one of the clusterset. zonal: names may have topology zones.
    """
    labels = names.labels(name[: len(name) - len(zone)] + names.ROOT)
    if not labels:
        return {}
    if labels[-1] not in _KINDS:
        return NO_NAME
    found = dict(zip(("kind", "namespace", "service"), (_text(label) for label in reversed(labels)), strict=False))
    left = labels[:-3]
    if len(left) > 2:
        if multicluster or not zonal or left[-1] != b"_zone" or labels[-1] != b"svc" or left[-2] not in _DIRECTIVES:
            return NO_NAME
        found["zone"] = ".".join(map(_text, left[:-2]))
    elif len(left) == 2 and multicluster and not any(label.startswith(b"_") for label in left):
        found["endpoint"], found["cluster"] = map(_text, left)
    elif len(left) == 2:
        found["port-name"], found["protocol"] = (_text(label).removeprefix("_") for label in left)
    elif left:
        found["endpoint"] = _text(left[0])
    return found


def _text(label: bytes) -> str:
    return names.to_text(bytes((len(label),)) + label + names.ROOT).removesuffix(".")
