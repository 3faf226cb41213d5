"""The command line: flags to calls."""

from .commands import main, parser

__all__ = ["main", "parser"]
