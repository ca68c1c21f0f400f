"""The front desk: `sparsight VERB`. Verbs print; everything else in the house returns.

A verb is short: it loads what it needs, calls it, and hands what comes back to screen.py. Nothing heavy is imported
before a verb needs it, so that --help answers at once.
"""

from sparsight.cli.desk import cli, main

__all__ = ["cli", "main"]
