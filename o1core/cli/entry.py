"""The way in: parse the arguments, run one command, turn errors into one line and an exit status.

torch is imported when a command needs it, so that `o1core --help` answers at once. A run of days goes on when its terminal
goes away: what can no longer be printed is dropped.
"""

import argparse
import contextlib
import io
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TextIO

from safetensors import SafetensorError

from .. import __version__, interrupts
from ..errors import UserError
from ..text import nearest, one_line
from .run_file import TAKES_FILE, flags_in

COMMANDS = {  # name: help
    "prune": "sample, train, evaluate before and after, and report; finished steps are skipped",
    "sample": "sample the completions that a run trains on",
    "train": "train on a run's samples, sampling first what is missing",
    "eval": "evaluate one checkpoint on a problem file",
    "study": "the paper's studies, each with a table and a plot",
    "plan": "say what a run needs on GPUs of a size, part by part, and which settings would fit",
    "dial": "evaluate a run's adapter at several scales, or export one: a family of models from one run",
    "report": "write one page, report.html, of runs (at work too), studies and evaluations: tables, charts, samples",
    "score": "grade and measure completions that others made: pass@k, maj@k, tokens, AES, intervals",
    "show": "page through a run's samples: short to long, right or wrong, before against after",
}
RERUN = "finished work is kept: rerun the same command to continue"


class Parser(argparse.ArgumentParser):
    """argparse, with one line for what is wrong: a command's usage would fill the screen above it. A name that is mistyped
    gets its nearest match."""

    reading: ClassVar[str] = ""  # the run file that the words come from

    def error(self, message: str) -> NoReturn:
        place = f"{self.reading}: " if self.reading else ""
        self.exit(2, f"o1core: error: {one_line(place + message)}; see {self.prog} --help\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += nearest(str(value), map(str, action.choices or ()))
            raise


class Lasting:
    """A text stream to a reader who may go away, as the terminal of a run or `head` does, or a disk that may be full. What
    cannot be written is dropped, and so is all that follows. lost: the first error."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.lost: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        if self.lost is None:
            self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        if self.lost is None:
            self._try(self.stream.flush)

    def _try(self, action: Any) -> None:
        try:
            action()
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self.lost = error
            with contextlib.suppress(OSError, ValueError):  # what is in its buffer is written somewhere at the end
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class CleanFormatter(logging.Formatter):
    """Log lines that name other people's ids and files, each on one line and without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0; 2 for bad input, where one line says how to fix it; 128 + the signal's
    number after Ctrl-C or SIGTERM."""
    argv = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported: waiting threads leave their core
    if (
        "PYTORCH_CUDA_ALLOC_CONF" not in os.environ
    ):  # every micro-batch has another shape: without it a GPU's memory tears
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    interrupts.install()
    with lasting_streams() as printed:
        status = run(argv)
        printed.flush()
    if printed.lost is not None and not isinstance(printed.lost, BrokenPipeError):  # no reader who had seen enough
        with contextlib.suppress(OSError, ValueError):
            print(f"o1core: error: standard output cannot be written: {printed.lost}; {RERUN}", file=sys.stderr)
        return status or 2
    return status


def run(argv: list[str]) -> int:
    try:
        args = parse(argv)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(CleanFormatter("%(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[handler])
        logging.getLogger("matplotlib").setLevel(logging.WARNING)
        args.run(args)
    except UserError as error:
        return refuse(str(error))
    except MemoryError:
        return refuse(f"out of memory; {RERUN}, with more memory, or a smaller --micro-tokens or --slots")
    except (OSError, SafetensorError) as error:  # a full disk, a folder without permission or gone
        return refuse(f"{error}; {RERUN}")
    except interrupts.Interrupted as stop:
        interrupts.ignore()
        print(f"o1core: {stop}; rerun the same command to continue (train: with --resume)", file=sys.stderr)
        return 128 + stop.number
    return 0


def refuse(message: str) -> int:
    print(f"o1core: error: {one_line(message)}", file=sys.stderr)
    return 2


@contextlib.contextmanager
def lasting_streams() -> Iterator[Lasting]:
    """Standard output and error that outlast their readers. A stream that was closed before the start (2>&-) leads nowhere,
    so that no file gets its number and the text that was meant for it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w"))
    out, err = Lasting(sys.stdout), Lasting(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out


def is_first() -> bool:
    """Whether this process tells what is wrong with a command line that all of torchrun's processes have got."""
    rank = os.environ.get("RANK", "0")
    return rank == "0" or not rank.isdecimal()


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments, with the function of their command as `run`."""
    command = argv[0] if argv and argv[0] in COMMANDS else ""
    everything = "--help-all" in argv
    top = parser(command, everything)
    with contextlib.ExitStack() as quiet:
        if not is_first():
            quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
        typed, argv = argv, with_run_file(top, argv)
        args, unknown = top.parse_known_args(argv)
        if unknown:  # found by the parser of all commands, which does not know whose flags they are
            last = leaf(top, argv)
            flag = unknown[0].partition("=")[0]
            last.error(f"unknown: {' '.join(unknown)}{nearest(flag, last._option_string_actions)}")
    args.typed = shlex.join(["o1core", *typed])  # what settings.json and the model card say of how a run was made
    return args


def with_run_file(top: argparse.ArgumentParser, argv: list[str]) -> list[str]:
    """The arguments with a file that stands after the command (`prune run.yaml`) replaced by the flags that it holds."""
    if argv[:1] == ["dial"]:
        return with_settings(top, argv)
    at = 2 if argv[:1] == ["study"] else 1
    if not argv or argv[0] not in TAKES_FILE or len(argv) <= at or argv[at].startswith("-"):
        return argv
    command, path = argv[:at], argv[at]
    try:
        words = flags_in(Path(path), leaf(top, command)._option_string_actions)
        Parser.reading = path
        top.parse_known_args([*command, *words])  # so that an error names the file
    except UserError as error:
        raise error if is_first() else SystemExit(2) from None
    finally:
        Parser.reading = ""
    return [*command, *words, *argv[at + 1 :]]


def with_settings(top: argparse.ArgumentParser, argv: list[str]) -> list[str]:
    """The arguments of a command about a run that exists (`dial RUN`), with the flags that its settings.json stands for."""
    if len(argv) < 2 or not {"-h", "--help", "--help-all"}.isdisjoint(argv):
        return argv
    if argv[1].startswith("-"):
        raise UserError(f"{argv[0]}: the run's folder must stand first, as in: o1core {argv[0]} RUN {argv[1]} ...")
    settings = Path(argv[1]) / "settings.json"
    if not settings.exists():
        raise UserError(f"{argv[1]}: holds no settings.json; name the folder that a run was given as --out")
    return [*argv[:2], *flags_in(settings, leaf(top, argv)._option_string_actions), *argv[2:]]


def leaf(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.ArgumentParser:
    """The parser of the command, or of the study, that the arguments name."""
    for word in argv:
        below = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if below and word in below[0]:
            parser = below[0][word]
    return parser


def add_flags(sub: argparse.ArgumentParser, name: str, everything: bool) -> None:
    """Add a command's flags, importing what they need."""
    if name == "score":
        from . import score

        score.add_flags(sub)
    else:
        from . import flags

        flags.add_flags(sub, name, everything)


def parser(command: str | None = None, everything: bool = True) -> argparse.ArgumentParser:
    """The argument parser, with the flags of one command (None: of all of them, which imports torch). everything: --help
    shows all flags, not only those that most people use."""
    top = Parser(prog="o1core", description="O1-Pruner from scratch: shorter thoughts, no worse answers.")
    top.add_argument("--version", action="version", version=f"o1core {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, help in COMMANDS.items():
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        if command in (None, name):
            add_flags(sub, name, everything)
    return top
