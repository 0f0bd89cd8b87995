"""Keys of the zone store: a name inside its zone, as bytes whose order is the order of the tree (RFC 4034 6.1).

A key is the zone's number (2 bytes, big endian), then the labels between the zone's apex and the name, the one nearest
the apex first, each closed by a zero byte. So the names at and below a name are exactly the keys that start with its
key. Inside a label the bytes 0 and 1 are written as 1 1 and 1 2, so that no label can be read as two, and the order of
names stays the order of keys.

A name has at most 255 bytes, so the longest key has 509 of LMDB's 511.
"""

from __future__ import annotations

import re
import struct

from kdns.wire import names

try:
    import cython
except ImportError:
    from kdns import speed as cython

_ZONE = struct.Struct("!H")
_ESCAPE = re.compile(rb"\x01[\x01\x02]")


def zone_prefix(number: int) -> bytes:
    """The key of a zone's apex, which starts every key of the zone. number: 0 to 65535."""
    return _ZONE.pack(number)


if not cython.compiled:  # else it is in keys.pxd, with the same meaning

    def plain_key(prefix: bytes, name: bytes, end: int) -> bytes | None:
        """The key of the name's labels before an offset; None if one of them has a byte that is written as two."""
        labels = []
        at = 0
        while at < end:
            step = at + 1 + name[at]
            labels.append(name[at + 1 : step])
            at = step
        if not labels:
            return prefix
        labels.reverse()
        key = b"\0".join(labels)
        return None if b"\1" in key or key.count(b"\0") >= len(labels) else prefix + key + b"\0"


def name_key(prefix: bytes, name: bytes, origin: bytes) -> bytes:
    """The key of a name (lower case wire format) in the zone with that key prefix and origin, above which it lies."""
    end = len(name) - len(origin)
    key = plain_key(prefix, name, end)
    if key is not None:
        return key
    labels = names.labels(name[:end] + names.ROOT)
    labels.reverse()
    return prefix + b"".join([label.replace(b"\1", b"\1\2").replace(b"\0", b"\1\1") + b"\0" for label in labels])


def key_name(key: bytes, origin: bytes) -> bytes:
    """The name of a key: the inverse of `name_key`."""
    labels = key[2:-1].split(b"\0") if len(key) > 2 else []
    relative = [_ESCAPE.sub(lambda match: bytes((match[0][1] - 1,)), label) for label in labels]
    return names.join(reversed(relative))[:-1] + origin
