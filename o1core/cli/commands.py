"""The command line: flags to calls, and nothing computed here.

o1core prune                                   the embedded model, on generated arithmetic, in minutes
o1core prune --model DIR --data FILE --out RUN your checkpoint on your problems
o1core study compare                           all methods side by side; also disharmony, lambda, difficulty
o1core report RUN                              a page of a run or a study
"""

import argparse
import dataclasses
import json
import logging
import pydoc
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError

from ..errors import UserError
from ..model import DTYPES
from ..recipe.methods import METHODS
from ..recipe.recipe import Recipe, flag, kind_of, read_recipe
from ..report.page import write_page
from ..report.show import show
from ..report.tables import disharmony_table, study_table, table
from ..rollout import keep_freed_memory
from ..runs import pipeline
from ..studies import studies
from ..text import one_line

GROUPS = {  # the first Recipe field of each group of flags in the help
    "samples": "problems and sampling",
    "objective": "reward and objective",
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
        print(f"o1core: error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except (OSError, SafetensorError) as error:  # a full disk, a folder without permission
        print(
            f"o1core: error: {one_line(str(error))}; what was finished is kept, and the same command goes on from there",
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
    kinds = commands.add_parser(
        "study",
        help="the paper's studies, each with a table and a plot",
        description="The paper's studies, each with a table and a plot.",
    )
    kinds = kinds.add_subparsers(required=True, metavar="STUDY")
    for name, run, help in (
        ("disharmony", disharmony, "accuracy by length: are the long answers the right ones?"),
        ("lambda", study, "prune under several lambdas, the weight of a right answer against the length"),
        ("difficulty", study, "prune on the hardest, the middle and the easiest problems"),
        ("compare", study, "all methods on all tests: accuracy, length, AES and inference time"),
    ):
        sub = kinds.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        sub.set_defaults(run=run)
        add_job_flags(sub, name)
        if name == "disharmony":
            sub.add_argument(
                "--intervals",
                metavar="N",
                type=int,
                default=4,
                help="parts that each problem's samples are "
                "cut into by length (default: 4; of --problems 64 and --samples 512)",
            )
        else:
            sub.add_argument(
                "--seeds",
                metavar="N",
                type=int,
                default=1,
                help="repetitions, each with random numbers of its own (default: 1)",
            )
        if name == "lambda":
            sub.add_argument("--values", metavar="X,X", default="0,1,2,5", help="lambdas (default: %(default)s)")
        if name == "difficulty":
            sub.add_argument(
                "--percentiles",
                metavar="A-B,A-B",
                default="0-40,30-70,60-100",
                help="of reference accuracy, 0 is the hardest (default: %(default)s)",
            )
        if name == "compare":
            sub.add_argument("--methods", metavar="NAME,NAME", default=",".join(METHODS), help="(default: %(default)s)")
    sub = command(
        "report", report, "write one page, report.html, of runs and studies: tables, charts, samples side by side"
    )
    sub.add_argument("run_folders", metavar="RUN", type=Path, nargs="+", help="folders given as --out")
    sub.add_argument("--out", metavar="FILE", type=Path, help="(default: report.html in the first folder)")
    sub = command("show", samples, "page through a run's samples: short to long, right or wrong, before against after")
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
        "--data",
        metavar="FILE",
        help="problems, JSON or JSONL, or reasoning-gym:TASK (default: generated arithmetic, for tiny-o1)",
    )
    sub.set_defaults(command=name)
    if name not in ("eval", "disharmony"):
        sub.add_argument(
            "--eval-data",
            metavar="FILE",
            nargs="+",
            help="problems to evaluate on, one file or several (default: the last fifth of the shuffled --data)",
        )
    if name != "compare":
        sub.add_argument(
            "--method",
            choices=tuple(METHODS),
            default="o1-pruner",
            help="what is done with the samples: it sets objective, reward, advantage, instruction and the like; single "
            "flags override it (default: o1-pruner)",
        )
    sub.add_argument("--out", metavar="RUN", type=Path, help="folder of the run (default: runs/ and the model's name)")
    sub.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="settings: paper, official, marco-o1, qwq-32b, tiny-o1 or a JSON file; single flags override it "
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
    taken = {action.dest for action in sub._actions} | ({"percentiles"} if name == "difficulty" else set())
    for spec in dataclasses.fields(Recipe):
        if spec.name in GROUPS:
            group = sub.add_argument_group(f"{GROUPS[spec.name]} (defaults: the recipe's; the paper's are named)")
        if spec.name in taken:
            continue
        kind, optional = kind_of(spec)
        default = "none" if spec.default is None else spec.default
        text = f"{spec.metadata['help']} (paper: {default})".replace("%", "%%")
        if kind is bool:
            group.add_argument(flag(spec.name), action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            choices = spec.metadata["choices"]
            metavar = None if choices else {int: "N", float: "X", str: "TEXT"}[kind]
            convert = (lambda text, kind=kind: None if text == "none" else kind(text)) if optional else kind
            if optional:
                convert.__name__ = kind.__name__
            names = [flag(spec.name), *(["--limit"] if spec.name == "problems" else [])]
            group.add_argument(
                *names, type=convert, choices=choices, metavar=metavar, help=text, default=argparse.SUPPRESS
            )


def resolve(args: argparse.Namespace, method: str | None = None, **defaults) -> Recipe:
    """The recipe of a command: the named one with its method, overridden by `defaults` and by single flags."""
    settings = (
        read_recipe(args.recipe or ("tiny-o1" if args.model is None else "paper"), method or args.method) | defaults
    )
    given = vars(args)
    for spec in dataclasses.fields(Recipe):
        own = spec.name != "percentiles" or args.command != "difficulty"  # that study's flag of this name is a list
        if own and spec.name in given and not (spec.type is bool and given[spec.name] is None):
            settings = settings | {spec.name: given[spec.name]}
    return Recipe(**settings)


def open_place(args: argparse.Namespace) -> pipeline.Place:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; use --device cpu")
    cuda = torch.cuda.is_available() and args.device != "cpu"
    return pipeline.Place(torch.device("cuda" if cuda else "cpu"), args.slots)


def open_job(args: argparse.Namespace, recipe: Recipe) -> pipeline.Job:
    """The job that a command's flags and a recipe ask for, opened and checked."""
    if args.command in ("eval", "disharmony"):
        return pipeline.open_evaluation(args.model, args.data, args.dtype, recipe)
    return pipeline.open_job(
        args.model, args.data, args.eval_data, args.dtype, recipe, by_level=args.command == "compare"
    )


def folder_of(args: argparse.Namespace, prefix: str = "") -> Path:
    """--out, or one named after the model."""
    return args.out or Path("runs") / (prefix + (args.model.resolve().name if args.model else "tiny-o1"))


def on_a_job(work):
    """A command that resolves its recipe, prints it and stops if asked to, and else hands the opened job to `work`."""

    def run(args: argparse.Namespace) -> None:
        recipe = resolve(args)
        if args.dry_run:
            print(json.dumps(recipe.to_json(), indent=2))
        else:
            place = open_place(args)
            work(args, open_job(args, recipe), folder_of(args), place)

    return run


@on_a_job
def prune(args: argparse.Namespace, job: pipeline.Job, run: Path, place: pipeline.Place) -> None:
    summary = pipeline.prune(job, run, place)
    print(table(summary))
    print(f"plot: {run / 'plot.png'}\npruned checkpoint: {summary['checkpoint']}")
    print(f"look at samples: o1core show {run}, or as a page: o1core report {run}")


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


def disharmony(args: argparse.Namespace) -> None:
    recipe = resolve(args, problems=64, samples=512, picked=1)
    if args.dry_run:
        return print(json.dumps(recipe.to_json(), indent=2))
    job = open_job(args, replace(recipe, eval_problems=recipe.problems))
    folder = folder_of(args, "study-disharmony-")
    told(folder, disharmony_table(studies.study_disharmony(job, args.intervals, folder, open_place(args))))


def study(args: argparse.Namespace) -> None:
    """study lambda, difficulty or compare: one run a variant."""
    if args.seeds < 1:
        raise UserError(f"--seeds: {args.seeds} is below 1")
    match args.command:
        case "lambda":
            variants = studies.by_lambda(resolve(args), args.values)
        case "difficulty":
            variants = studies.by_percentiles(resolve(args), args.percentiles)
        case "compare":
            variants = studies.by_method(args.methods, lambda method: resolve(args, method))
    if args.dry_run:
        return print(json.dumps({v.label: v.recipe.to_json() for v in variants}, indent=2))
    place, folder = open_place(args), folder_of(args, f"study-{args.command}-")
    told(
        folder,
        study_table(studies.run_study(args.command, partial(open_job, args), variants, args.seeds, folder, place)),
    )


def told(folder: Path, table: str) -> None:
    """What a study says at its end."""
    print(table)
    print(f"\nplot: {folder / 'plot.png'}\nthe same as a page: o1core report {folder}")


def report(args: argparse.Namespace) -> None:
    out = args.out or args.run_folders[0] / "report.html"
    if out.is_dir():
        raise UserError(f"--out: {out} is a folder; name a file, such as {out / 'report.html'}")
    print(write_page(args.run_folders, out))


def samples(args: argparse.Namespace) -> None:
    if args.samples < 1:
        raise UserError(f"--samples: {args.samples} is below 1")
    lines = show(args.run_folder, args.problem, args.samples)
    if sys.stdout.isatty():
        pydoc.pager("\n".join(lines))
    else:
        for line in lines:
            print(line)
