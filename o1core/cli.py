"""The command line: flags to calls, and nothing computed here.

o1core prune                                   the embedded model, on generated arithmetic, in minutes
o1core prune --model DIR --data FILE --out RUN your checkpoint on your problems
"""

import argparse
import dataclasses
import json
import logging
import pydoc
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError

from . import pipeline
from .config import DTYPES
from .errors import UserError
from .memory import keep_freed_memory
from .recipe import Recipe, flag, kind_of, read_recipe
from .report import table
from .show import show

GROUPS = {  # the first Recipe field of each group of flags in the help
    "samples": "sampling",
    "lam": "reward and objective",
    "lr": "optimiser",
    "eval_samples": "evaluation",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, 2 for bad input (one line says what to mend), 130 after Ctrl-C."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    keep_freed_memory()
    try:
        args.run(args)
    except BrokenPipeError:  # `o1core show RUN | head`
        sys.stderr.close()
    except UserError as error:
        print(f"o1core: error: {error}", file=sys.stderr)
        return 2
    except (OSError, SafetensorError) as error:  # a full disk, a folder without permission
        print(
            f"o1core: error: {error}; what was finished is kept, and the same command goes on from there",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("o1core: stopped; the same command goes on from here (train: with --resume)", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="o1core", description="O1-Pruner from scratch: shorter thoughts, no worse answers."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    for name, run, help in (
        ("prune", prune, "sample, train, evaluate before and after, and report; steps that are done are skipped"),
        ("sample", sample, "sample the completions that a run trains on"),
        ("train", train, "train on a run's samples, sampling first what is missing"),
        ("eval", evaluate, "evaluate one checkpoint on a problem file"),
    ):
        sub = command(name, run, help)
        add_job_flags(sub, name)
        if name == "train":
            sub.add_argument("--resume", action="store_true", help="go on from the run's newest training state")
    sub = command("show", page, "page through a run's samples: short to long, right or wrong, before against after")
    sub.add_argument("run_folder", metavar="RUN", type=Path, help="the folder given as --out")
    sub.add_argument("--problem", metavar="ID", help="show this problem alone (default: all)")
    sub.add_argument("--samples", metavar="N", type=int, default=4, help="completions a problem (default: 4)")
    return top


def add_job_flags(sub: argparse.ArgumentParser, name: str) -> None:
    sub.add_argument(
        "--model",
        metavar="DIR",
        type=Path,
        help="a Hugging Face folder: Qwen2, Qwen2.5, Qwen3 or Llama (default: the embedded tiny-o1)",
    )
    sub.add_argument(
        "--data", metavar="FILE", type=Path, help="problems, JSON or JSONL (default: generated arithmetic, for tiny-o1)"
    )
    sub.set_defaults(evaluates_alone=name == "eval")
    if name != "eval":
        sub.add_argument(
            "--eval-data",
            metavar="FILE",
            type=Path,
            help="problems to evaluate on (default: the last fifth of the shuffled --data)",
        )
    sub.add_argument("--out", metavar="RUN", type=Path, help="folder of the run (default: runs/ and the model's name)")
    sub.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="settings: paper, official, tiny-o1 or a JSON file; single flags override it "
        "(default: paper, and tiny-o1 for the embedded model)",
    )
    sub.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    sub.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto, a GPU if any)")
    sub.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="of the weights that compute; bf16 and fp16 ones have fp32 masters "
        "(default: auto, the checkpoint's; float32 for tiny-o1)",
    )
    sub.add_argument(
        "--slots",
        metavar="N",
        type=int,
        help="completions decoded at once (default: as many as half the free memory holds, up to 256)",
    )
    group = None
    for spec in dataclasses.fields(Recipe):
        if spec.name in GROUPS:
            group = sub.add_argument_group(f"{GROUPS[spec.name]} (defaults: the recipe's; the paper's are named)")
        kind, optional = kind_of(spec)
        default = "none" if spec.default is None else spec.default
        text = f"{spec.metadata['help']} (paper: {default})".replace("%", "%%")
        if kind is bool:
            group.add_argument(flag(spec.name), action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            choices = spec.metadata["choices"]
            metavar = None if choices else {int: "N", float: "X"}[kind]
            convert = (lambda text, kind=kind: None if text == "none" else kind(text)) if optional else kind
            if optional:
                convert.__name__ = kind.__name__
            group.add_argument(
                flag(spec.name), type=convert, choices=choices, metavar=metavar, help=text, default=argparse.SUPPRESS
            )


def resolve(args: argparse.Namespace) -> Recipe:
    """The recipe of a command: the named one, overridden by single flags."""
    settings = read_recipe(args.recipe or ("tiny-o1" if args.model is None else "paper"))
    given = vars(args)
    for spec in dataclasses.fields(Recipe):
        if spec.name in given and not (spec.type is bool and given[spec.name] is None):
            settings = settings | {spec.name: given[spec.name]}
    return Recipe(**settings)


def start(args: argparse.Namespace, recipe: Recipe) -> tuple[pipeline.Job, Path, pipeline.Place]:
    """What the flags ask for, opened and checked."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; use --device cpu")
    cuda = torch.cuda.is_available() and args.device != "cpu"
    if args.evaluates_alone:
        job = pipeline.open_evaluation(args.model, args.data, args.dtype, recipe)
    else:
        job = pipeline.open_job(args.model, args.data, args.eval_data, args.dtype, recipe)
    place = pipeline.Place(torch.device("cuda" if cuda else "cpu"), args.slots)
    return job, args.out or Path("runs") / (args.model.resolve().name if args.model else "tiny-o1"), place


def on_a_job(work):
    """A command that resolves its recipe, prints it and stops if asked to, and else hands the opened job to `work`."""

    def run(args: argparse.Namespace) -> None:
        recipe = resolve(args)
        if args.dry_run:
            print(json.dumps(recipe.to_json(), indent=2))
        else:
            work(args, *start(args, recipe))

    return run


@on_a_job
def prune(args: argparse.Namespace, job: pipeline.Job, run: Path, place: pipeline.Place) -> None:
    summary = pipeline.prune(job, run, place)
    print(table(summary))
    print(f"plot: {run / 'plot.png'}\npruned checkpoint: {summary['checkpoint']}\nlook at samples: o1core show {run}")


@on_a_job
def sample(args: argparse.Namespace, job: pipeline.Job, run: Path, place: pipeline.Place) -> None:
    pipeline.run_sample(job, run, place)
    print(f"sampled; train on it with: o1core train --out {run} and the same flags")


@on_a_job
def train(args: argparse.Namespace, job: pipeline.Job, run: Path, place: pipeline.Place) -> None:
    print(f"pruned checkpoint: {pipeline.run_train(job, run, place, args.resume)}")


@on_a_job
def evaluate(args: argparse.Namespace, job: pipeline.Job, run: Path, place: pipeline.Place) -> None:
    print(json.dumps(pipeline.run_evaluation(job, run, place), indent=2))


def page(args: argparse.Namespace) -> None:
    if args.samples < 1:
        raise UserError(f"--samples: {args.samples} is below 1")
    lines = show(args.run_folder, args.problem, args.samples)
    if sys.stdout.isatty():
        pydoc.pager("\n".join(lines))
    else:
        for line in lines:
            print(line)
