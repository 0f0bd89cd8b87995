"""kdns: cluster DNS for Kubernetes."""

import os

__version__ = "0.1.0"

if os.environ.get("KDNS_COMPILED") == "0":
    from kdns import speed

    speed.use_sources()
