"""The flags of each command. Those of a recipe are made from its settings: name, type, range and help are there."""

import argparse
import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from ..distributed import PATIENCE, Offload
from ..model import DTYPES
from ..recipe import METHODS, SPECS, flag
from ..training import TRACKERS
from . import commands

STUDIES = {  # name: help
    "disharmony": "accuracy by length: are the long answers the right ones?",
    "lambda": "prune under several lambdas, the weight of a right answer against the length",
    "difficulty": "prune on the hardest, the middle and the easiest problems",
    "compare": "all methods on all tests: accuracy, length, AES and inference time",
}
METAVARS: dict[type, str] = {int: "N", float: "X", str: "TEXT"}
A_MONTH = 30 * 86400  # seconds
ALIASES = {"problems": ["--limit"]}


def add_flags(sub: argparse.ArgumentParser, name: str) -> None:
    """Add a command's flags, and the function that runs it as `run`."""
    match name:
        case "report":
            sub.add_argument("run_folders", metavar="RUN", type=Path, nargs="+", help="folders given as --out")
            sub.add_argument(
                "--out", metavar="FILE", type=Path, help="the page (default: report.html in the first folder)"
            )
        case "show":
            sub.add_argument("run_folder", metavar="RUN", type=Path, help="the folder given as --out")
            sub.add_argument("--problem", metavar="ID", help="show this problem only (default: all)")
            sub.add_argument("--problems", metavar="N", type=int, help="show this many, evenly spaced (default: all)")
            sub.add_argument("--samples", metavar="N", type=int, default=4, help="completions a problem (default: 4)")
        case "plan":
            add_plan_flags(sub)
        case "study":
            kinds = sub.add_subparsers(required=True, metavar="STUDY")
            for kind, help in STUDIES.items():
                add_study_flags(kinds.add_parser(kind, help=help, description=help[0].upper() + help[1:] + "."), kind)
            return
        case _:
            add_job_flags(sub, name)
            if name == "train":
                sub.add_argument("--resume", action="store_true", help="continue from the run's newest training state")
    sub.set_defaults(run=getattr(commands, {"eval": "evaluate", "show": "show"}.get(name, name)))


def add_plan_flags(sub: argparse.ArgumentParser) -> None:
    sub.usage = "%(prog)s --model DIR [--gpus N] [--gpu-memory GIB] [FLAGS]"
    sub.set_defaults(command="plan")
    sub.add_argument("--model", metavar="DIR", type=Path, required=True, help="a folder with the model's config.json")
    sub.add_argument("--gpus", metavar="N", type=int, default=1, help="GPUs, one process each (default: 1)")
    sub.add_argument("--gpu-memory", metavar="GIB", type=float, default=80.0, help="memory of a GPU (default: 80)")
    sub.add_argument(
        "--tensor-parallel",
        metavar="N",
        type=int,
        default=1,
        help="GPUs that hold one copy to sample from (default: 1)",
    )
    add_offload_flag(sub)
    sub.add_argument("--slots", metavar="N", type=int, help="completions decoded at once (default: as many as fit)")
    sub.add_argument(
        "--dtype", choices=("auto", *DTYPES), default="auto", help="type of the weights (default: the model's)"
    )
    sub.add_argument(
        "--method", choices=tuple(METHODS), default="o1-pruner", help="see o1core prune --help (default: o1-pruner)"
    )
    sub.add_argument("--recipe", metavar="NAME|FILE", help="see o1core prune --help (default: paper)")
    add_recipe_flags(sub, skipped=set())


def add_study_flags(sub: argparse.ArgumentParser, kind: str) -> None:
    add_job_flags(sub, kind)
    sub.set_defaults(run=commands.disharmony if kind == "disharmony" else commands.study)
    if kind == "disharmony":
        sub.add_argument(
            "--intervals",
            metavar="N",
            type=int,
            default=4,
            help="parts that each problem's samples are cut into by length "
            "(default: 4; of --problems 64 and --samples 512)",
        )
    else:
        sub.add_argument(
            "--seeds", metavar="N", type=int, default=1, help="repetitions, each with its own random seed (default: 1)"
        )
    if kind == "lambda":
        sub.add_argument("--values", metavar="X,X", default="0,1,2,5", help="lambdas (default: %(default)s)")
    if kind == "difficulty":
        sub.add_argument(
            "--percentiles",
            metavar="A-B,A-B",
            default="0-40,30-70,60-100",
            help="of reference accuracy, 0 is the hardest (default: %(default)s)",
        )
    if kind == "compare":
        methods = ",".join(METHODS)
        sub.add_argument("--methods", metavar="NAME,NAME", default=methods, help="methods (default: %(default)s)")


def add_job_flags(sub: argparse.ArgumentParser, name: str) -> None:
    """The flags of every command that works on a checkpoint and problems."""
    sub.usage = "%(prog)s [--model DIR --data FILE] [--recipe NAME|FILE] [--out RUN] [FLAGS]"
    sub.set_defaults(command=name)
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
            help="sets objective, reward, advantage, instruction and the like; single flags override it "
            "(default: o1-pruner)",
        )
    sub.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="settings: paper, official, marco-o1, qwq-32b, tiny-o1 or a JSON file; single flags override it "
        "(default: paper, and tiny-o1 for the embedded model)",
    )
    sub.add_argument("--out", metavar="RUN", type=Path, help="the run's folder (default: runs/ and the model's name)")
    sub.add_argument("--dry-run", action="store_true", help="print the resolved settings and stop")
    add_resource_flags(sub)
    add_process_flags(sub)
    if name not in ("sample", "eval", "disharmony"):
        sub.add_argument(
            "--tracker",
            choices=TRACKERS,
            help="send the lines of log.jsonl there too (default: none; each is an extra)",
        )
    add_recipe_flags(sub, skipped={"percentiles"} if name == "difficulty" else set())


def add_resource_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where to compute (default: auto, a GPU if any)",
    )
    sub.add_argument(
        "--dtype",
        choices=("auto", *DTYPES),
        default="auto",
        help="type of the weights that compute; bf16 and fp16 weights have fp32 masters "
        "(default: auto, the checkpoint's; float32 for tiny-o1)",
    )
    sub.add_argument(
        "--slots",
        metavar="N",
        type=int,
        help="completions decoded at once (default: as many as fit into half of the free memory, up to 256, or 512 where the "
        "KV cache has pages, as on a GPU; O1CORE_CACHE=lanes or pages in the environment overrides that)",
    )


def add_process_flags(sub: argparse.ArgumentParser) -> None:
    """What concerns many processes: `torchrun --nproc-per-node N -m o1core ...`."""
    sub.add_argument(
        "--tensor-parallel",
        metavar="N",
        type=positive,
        default=1,
        help="processes of a node that share one copy of the weights to sample from, up to the model's key and value "
        "heads; the update is sharded over all processes anyway (default: 1)",
    )
    add_offload_flag(sub)
    sub.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        default=PATIENCE,
        help="a process that waits for another one this long gives up (default: %(default)g)",
    )


def add_offload_flag(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--offload",
        choices=get_args(Offload),
        default="none",
        help="what waits in the host's memory while a GPU samples: the optimiser's moments, or the fp32 weights too "
        "(default: none)",
    )


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or not 1 <= int(text) <= 10**6:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 to 1,000,000")
    return int(text)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= A_MONTH:
        raise argparse.ArgumentTypeError(
            f"{text} is not a number of seconds, more than 0 and at most a month's {A_MONTH:,}"
        )
    return value


def add_recipe_flags(sub: argparse.ArgumentParser, skipped: set[str]) -> None:
    """A flag per setting of a recipe, in the groups of its parts. Flags that are not given leave no attribute."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, spec in SPECS.items():
        if name in skipped:
            continue
        title = spec.group.title if spec.group else "randomness"
        if title not in groups:
            groups[title] = sub.add_argument_group(f"{title} (defaults: the recipe's; the paper's are named)")
        default = "none" if spec.field.default is None else spec.field.default
        help = f"{spec.field.metadata['help']} (paper: {default})".replace("%", "%%")
        names = [flag(name), *ALIASES.get(name, [])]
        if spec.kind is dict:
            groups[title].add_argument(
                *names,
                dest=name,
                metavar="KEY=VALUE",
                type=key_value,
                action="append",
                default=argparse.SUPPRESS,
                help=help,
            )
        elif spec.kind is bool:
            action = argparse.BooleanOptionalAction
            groups[title].add_argument(*names, dest=name, action=action, default=argparse.SUPPRESS, help=help)
        else:
            choices = None if spec.field.metadata["own_code"] else spec.field.metadata["choices"]
            groups[title].add_argument(
                *names,
                dest=name,
                type=converter(spec.kind, spec.optional),
                choices=choices,
                metavar=None if choices else METAVARS[spec.kind],
                default=argparse.SUPPRESS,
                help=help,
            )


def key_value(text: str) -> tuple[str, bool | int | float | str]:
    """("enable_thinking", False) of "enable_thinking=false". What JSON reads as true, false or a finite number is that, and
    all else is text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text} is not KEY=VALUE, such as enable_thinking=false")
    with contextlib.suppress(ValueError, RecursionError):
        read = json.loads(value)
        if isinstance(read, bool | int | float) and abs(read) < math.inf:
            return key, read
    return key, value


def converter(kind: type, optional: bool) -> Callable[[str], Any]:
    """Text to a setting's value; "none" to None where that is allowed. It has the type's name for argparse's errors."""
    if not optional:
        return kind

    def convert(text: str) -> Any:
        return None if text == "none" else kind(text)

    convert.__name__ = kind.__name__
    return convert
