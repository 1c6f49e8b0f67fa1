"""The command line, `quad`: a thin face over the flows."""

from flows.cli.app import main

__all__ = ["main"]
