"""Helpers for tests that run real processes, sockets and network namespaces. Knows nothing of pytest."""
