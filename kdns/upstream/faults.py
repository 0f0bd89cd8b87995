"""How it is said what goes wrong with an upstream."""

from __future__ import annotations

import os
import ssl

NOT_USED = "the upstream is not used any more"
"""Why a query is lost when the addresses of an upstream's name change, or the worker ends."""

TIMEOUT = "i/o timeout"
"""How a reason ends if a wait is over, as in CoreDNS, whose users have expressions for it (`consolidate` of errors)."""


def told(error: OSError) -> str:
    """What the kernel or the TLS library says, in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    return os.strerror(error.errno).lower() if error.errno else str(error) or type(error).__name__
