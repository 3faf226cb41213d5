"""The way in: parse the arguments, run one command, turn errors into one line and an exit status.

torch is imported when a command needs it, so that `o1core --help` answers at once.
"""

import argparse
import contextlib
import io
import logging
import os
import sys
from typing import NoReturn

from safetensors import SafetensorError

from .. import __version__, interrupts
from ..errors import UserError
from ..text import clean, one_line

COMMANDS = {  # name: help
    "prune": "sample, train, evaluate before and after, and report; finished steps are skipped",
    "sample": "sample the completions that a run trains on",
    "train": "train on a run's samples, sampling first what is missing",
    "eval": "evaluate one checkpoint on a problem file",
    "study": "the paper's studies, each with a table and a plot",
    "plan": "say what a run needs on GPUs of a size, part by part, and which settings would fit",
    "report": "write one page, report.html, of runs and studies: tables, charts, samples side by side",
    "show": "page through a run's samples: short to long, right or wrong, before against after",
}


class Parser(argparse.ArgumentParser):
    """argparse, with one line for what is wrong: a command's usage would fill the screen above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"o1core: error: {one_line(message)}; see {self.prog} --help\n")


class CleanFormatter(logging.Formatter):
    """Log lines that name other people's ids and files without their control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record))


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0; 2 for bad input, where one line says how to fix it; 128 + the signal's
    number after Ctrl-C or SIGTERM."""
    argv = sys.argv[1:] if argv is None else argv
    interrupts.install()
    try:
        with contextlib.redirect_stderr(sys.stderr if is_first() else io.StringIO()):
            args = parse(argv)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(CleanFormatter("%(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[handler])
        logging.getLogger("matplotlib").setLevel(logging.WARNING)
        args.run(args)
    except BrokenPipeError:  # `o1core show RUN | head`
        sys.stderr.close()
    except UserError as error:
        print(f"o1core: error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except (OSError, SafetensorError) as error:  # a full disk, a folder without permission
        print(
            f"o1core: error: {one_line(str(error))}; finished work is kept: rerun the same command to continue",
            file=sys.stderr,
        )
        return 2
    except interrupts.Interrupted as stop:
        interrupts.ignore()
        print(f"o1core: {stop}; rerun the same command to continue (train: with --resume)", file=sys.stderr)
        return 128 + stop.number
    return 0


def is_first() -> bool:
    """Whether this process tells what is wrong with a command line that all of torchrun's processes have got."""
    return os.environ.get("RANK", "0") == "0"


def parse(argv: list[str]) -> argparse.Namespace:
    command = argv[0] if argv and argv[0] in COMMANDS else ""
    top = parser(command)
    args, unknown = top.parse_known_args(argv)
    if unknown:  # found by the parser of all commands, which does not know whose flags they are
        top.prog = f"{top.prog} {command}"
        top.error(f"unknown: {' '.join(unknown)}")
    return args


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """The argument parser, with the flags of one command (None: of all of them, which imports torch)."""
    top = Parser(prog="o1core", description="O1-Pruner from scratch: shorter thoughts, no worse answers.")
    top.add_argument("--version", action="version", version=f"o1core {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, help in COMMANDS.items():
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        if command in (None, name):
            from .flags import add_flags

            add_flags(sub, name)
    return top
