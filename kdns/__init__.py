"""kdns: cluster DNS for Kubernetes."""

__version__ = "0.1.0"
