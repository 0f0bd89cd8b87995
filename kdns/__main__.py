"""`python -m kdns` is the command `kdns`."""

from kdns.cli import app

app(prog_name="kdns")
