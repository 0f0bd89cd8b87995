"""Supervisor, workers, UDP, TCP and the packet cache."""
