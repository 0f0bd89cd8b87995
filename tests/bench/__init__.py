"""What kdns costs beside other servers: CPU time per query, time to ready, memory. Run with `python -m tests.bench`."""
