"""The flags of each command. Those of a recipe are made from its settings: name, type, range and help are there.

--help shows the flags that most people use, --help-all the rest too.
"""

import argparse
import contextlib
import json
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from ..choices import DTYPE_NAMES, FEW_METHODS, MOST_SCALE, PATIENCE, SCALES, TINY, TRACKERS, Offload
from ..files import read_object
from ..recipe import METHODS, SHIPPED, SPECS, Spec, flag

COMMAND_OF = {"eval": "evaluate"}  # the functions that are not called like their command
STUDIES = {  # name: help
    "disharmony": "accuracy by length: are the long answers the right ones?",
    "lambda": "prune under several lambdas, the weight of a right answer against the length",
    "difficulty": "prune on the hardest, the middle and the easiest problems",
    "compare": "several methods on all tests: accuracy, length, AES and inference time",
}
OWN_CODE = "NAME|FILE.py:FUNCTION"
METAVARS: dict[type, str] = {int: "N", float: "X", str: "TEXT"}
A_MONTH = 30 * 86400  # seconds
SHOWN = {  # by --help, of all commands; then of commands that train, that evaluate, and of one study
    *("help", "help_all", "run_folders", "run_folder", "problem", "resume", "gpus", "gpu_memory", "values", "seeds"),
    *("intervals", "methods", "model", "data", "eval_data", "method", "recipe", "out", "dry_run"),
    *("max_new_tokens", "eval_problems"),
}
SHOWN_OF = {
    "eval": SHOWN | {"eval_samples", "eval_temperature"},
    "dial": {"help", "help_all", "out", "scales", "scale", "device", "slots"},
    "difficulty": SHOWN | {"percentiles", "problems", "samples", "rounds"},
}
SHOWN_ELSE = SHOWN | {"problems", "samples", "rounds", "reward", "lr", "lora_rank"}
OVERRIDES = (
    "RUN.yaml, or RUN.json, holds flags by their names, such as `eval_data: [a.jsonl]`; a run's settings.json is one. A flag "
    "overrides this file, the file the method, the method the recipe, and the recipe the defaults that are named here."
)
TORCHRUN = (
    "Several GPUs: torchrun --nproc-per-node N -m o1core ... . torchrun listens on all network interfaces and trusts whoever "
    "connects, and ranks that save a training state send each other pickled plans. On a machine that others can reach, give "
    "the run a network of its own: unshare -rn sh -c 'ip link set lo up; torchrun --standalone --nproc-per-node N -m o1core "
    "...'."
)


def add_flags(sub: argparse.ArgumentParser, name: str, everything: bool = True) -> None:
    """Add a command's flags, and the function that runs it as `run`. everything: --help shows all of them."""
    fill(sub, name)
    for parser in of_studies(sub) or [sub]:
        command = parser.get_default("command")
        hidden = [action for action in parser._actions if action.dest not in SHOWN_OF.get(command, SHOWN_ELSE)]
        if command:
            parser.epilog = f"{OVERRIDES} {TORCHRUN}" if everything else OVERRIDES
            count = 1 + sum(bool(action.option_strings) for action in parser._actions)
            parser.add_argument("--help-all", action="help", help=f"show all {count} flags and exit")
        for action in hidden if command and not everything else []:
            action.help = argparse.SUPPRESS


def of_studies(sub: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers of the studies, where `sub` is that of the command `study`."""
    return [
        p for action in sub._actions if isinstance(action, argparse._SubParsersAction) for p in action.choices.values()
    ]


def fill(sub: argparse.ArgumentParser, name: str) -> None:
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
            if name == "dial":
                add_dial_flags(sub)
            if name == "prune":
                help = "upload the result as this model repository, with its card; log in with hf auth login"
                sub.add_argument("--push-to-hub", metavar="OWNER/NAME", help=help)
            if name == "train":
                sub.add_argument("--resume", action="store_true", help="continue from the run's newest training state")
    sub.set_defaults(run=command(COMMAND_OF.get(name, name)))


def command(name: str) -> Callable[[argparse.Namespace], None]:
    """The function of cli/commands.py that runs a command, imported when it does: it needs torch."""

    def run(args: argparse.Namespace) -> None:
        getattr(import_module(".commands", __package__), name)(args)

    return run


def add_dial_flags(sub: argparse.ArgumentParser) -> None:
    """Besides a job's, which come from the run's settings.json."""
    sub.usage = "%(prog)s RUN [--scales X ...] [--scale X]"
    sub.add_argument("out", metavar="RUN", type=Path, help="the folder of a run with an adapter (--lora-rank)")
    stated = " ".join(f"{scale:g}" for scale in SCALES)
    help = f"evaluate the adapter at these scales; 0 is the base, 1 as trained (default: {stated})"
    sub.add_argument("--scales", metavar="X", type=scale_number, nargs="+", help=help)
    help = "export the merged checkpoint of this scale, to RUN/dial/scale-X/checkpoint"
    sub.add_argument("--scale", metavar="X", type=scale_number, help=help)


def add_plan_flags(sub: argparse.ArgumentParser) -> None:
    sub.usage = "%(prog)s --model DIR [--gpus N] [--gpu-memory GIB] [FLAGS]"
    sub.set_defaults(command="plan")
    sub.add_argument(
        "--model",
        metavar="DIR|NAME",
        type=model_name,
        required=True,
        help="a folder with config.json, or a name on the hub",
    )
    add_revision_flag(sub)
    sub.add_argument("--gpus", metavar="N", type=int, default=1, help="GPUs, one process each (default: 1)")
    sub.add_argument(
        "--gpu-memory",
        metavar="GIB",
        type=float,
        help="memory of a GPU (default: 80; with --device cpu the main memory that is free here)",
    )
    sub.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where to compute (default: cuda)")
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
        "--dtype", choices=("auto", *DTYPE_NAMES), default="auto", help="type of the weights (default: the model's)"
    )
    sub.add_argument(
        "--method",
        metavar="NAME",
        choices=tuple(METHODS),
        default="o1-pruner",
        help="see o1core prune --help (default: o1-pruner)",
    )
    sub.add_argument("--recipe", metavar="NAME|FILE", help="see o1core prune --help (default: paper)")
    add_recipe_flags(sub, skipped=set())


def add_study_flags(sub: argparse.ArgumentParser, kind: str) -> None:
    add_job_flags(sub, kind)
    sub.set_defaults(run=command("disharmony" if kind == "disharmony" else "study"))
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
        sub.add_argument(
            "--methods",
            metavar="NAME,NAME|all",
            default=",".join(FEW_METHODS),
            help="methods, or all of them (default: %(default)s)",
        )


def add_job_flags(sub: argparse.ArgumentParser, name: str) -> None:
    """The flags of every command that works on a checkpoint and problems."""
    sub.usage = "%(prog)s [RUN.yaml] [--model DIR|NAME --data FILE|NAME] [--recipe NAME|FILE] [--out RUN] [FLAGS]"
    sub.set_defaults(command=name)
    sub.add_argument(
        "--model",
        metavar="DIR|NAME",
        type=model_name,
        help="a Hugging Face folder, or a name on the hub such as Qwen/Qwen3-0.6B: Qwen2, Qwen2.5, Qwen3 or Llama (default: "
        "the embedded tiny-o1)",
    )
    add_revision_flag(sub)
    sub.add_argument(
        "--data",
        metavar="FILE|NAME[:SPLIT]",
        help="problems: JSON, JSONL, CSV or parquet, a data set on the hub such as openai/gsm8k:train, or reasoning-gym:TASK "
        "(default: generated arithmetic, for tiny-o1)",
    )
    if name not in ("eval", "disharmony"):
        sub.add_argument(
            "--eval-data",
            metavar="FILE|NAME",
            nargs="+",
            help="problems to evaluate on, one file or several, as --data (default: the last fifth of the shuffled --data)",
        )
    for role in ("question", "answer", "level"):
        sub.add_argument(
            f"--{role}-field",
            metavar="FIELD",
            help=f"the field of problem files that holds the {role}; A.B is the field B in A (default: the published names)",
        )
    if name != "compare":
        sub.add_argument(
            "--method",
            metavar="NAME",
            choices=tuple(METHODS),
            default="o1-pruner",
            help=f"sets objective, reward, advantage and the like: {', '.join(METHODS)} (default: o1-pruner)",
        )
    sub.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="settings: paper, official, marco-o1, qwq-32b, tiny-o1 or a JSON file (default: paper, and tiny-o1 for the "
        "embedded model)",
    )
    if name != "dial":  # whose folder stands first
        help = "the run's folder (default: runs/ and the model's name)"
        sub.add_argument("--out", metavar="RUN", type=Path, help=help)
    sub.add_argument("--dry-run", action="store_true", help="check the model and the data, print the settings and stop")
    add_resource_flags(sub)
    add_process_flags(sub)
    if name not in ("sample", "eval", "disharmony"):
        sub.add_argument(
            "--tracker",
            choices=TRACKERS,
            help="send the lines of log.jsonl there too (default: none; each is an extra)",
        )
    skipped = {"difficulty": {"percentiles"}, "eval": {"problems"}}  # not theirs
    add_recipe_flags(sub, skipped.get(name, set()))


def add_revision_flag(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--revision", metavar="REV", help="branch, tag or commit of a --model on the hub (default: main)")


def model_name(text: str) -> str | None:
    """--model as it is typed; None for the embedded model, by its name."""
    return None if text == TINY and not Path(text).exists() else text


def add_resource_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where to compute (default: auto, a GPU if any)",
    )
    sub.add_argument(
        "--dtype",
        choices=("auto", *DTYPE_NAMES),
        default="auto",
        help="number format of the weights; with the two of 16 bits training keeps copies of 32 bits "
        "(default: auto, the checkpoint's; float32 for tiny-o1)",
    )
    sub.add_argument(
        "--slots",
        metavar="N",
        type=int,
        help="completions generated at the same time (default: as many as fit into half of the free memory, up to 256, or "
        "512 on a GPU)",
    )


def add_process_flags(sub: argparse.ArgumentParser) -> None:
    """What concerns many processes: `torchrun --nproc-per-node N -m o1core ...`."""
    sub.add_argument(
        "--tensor-parallel",
        metavar="N",
        type=positive,
        default=1,
        help="GPUs of a node that share one copy of the weights to sample from, where one GPU cannot hold it; training "
        "always divides the weights among all GPUs (default: 1)",
    )
    add_offload_flag(sub)
    sub.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=seconds,
        default=PATIENCE,
        help="of several processes: end the run when another one has not answered for this long (default: %(default)g)",
    )


def add_offload_flag(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--offload",
        choices=get_args(Offload),
        default="none",
        help="to save GPU memory while it samples, move to the host's memory: moments, those of the optimiser; optimiser, "
        "its copies of the weights too (default: none)",
    )


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or not 1 <= int(text) <= 10**6:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 to 1,000,000")
    return int(text)


def scale_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MOST_SCALE:
        raise argparse.ArgumentTypeError(
            f"{text} is not a number from 0 (the base) over 1 (as trained) to {MOST_SCALE:g}"
        )
    return value


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
    stated = read_object(SHIPPED / "paper.json")
    for name, spec in SPECS.items():
        if name in skipped:
            continue
        title = spec.group.title if spec.group else "randomness"
        if title not in groups:
            groups[title] = sub.add_argument_group(title)
        within = spec.field.metadata["within"]
        choices = None if within.own_code else within.choices
        given: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": help_of(spec, name in stated)}
        if spec.kind is bool:
            given |= {"action": argparse.BooleanOptionalAction}
        elif spec.kind is dict:
            given |= {"action": "append", "type": key_value, "metavar": "KEY=VALUE"}
        else:
            given |= {"type": converter(spec.kind, spec.optional), "choices": choices}
            given |= {"metavar": None if choices else OWN_CODE if within.own_code else METAVARS[spec.kind]}
        groups[title].add_argument(*spellings(name, sub), **given)


def spellings(name: str, sub: argparse.ArgumentParser) -> list[str]:
    """What a setting's flag is called: `eval` has one number of problems, for which all three names stand."""
    alone = sub.get_default("command") == "eval"
    if name == ("eval_problems" if alone else "problems"):
        return [flag(name), "--limit", *(["--problems"] if alone else [])]
    return [flag(name)]


def help_of(spec: Spec, of_paper: bool) -> str:
    """A setting's help, with its default: the paper's where the paper states one."""
    default = spec.default
    text: str = spec.field.metadata["help"]
    if default is None or default == {} or default == "":
        shown = "" if "(none:" in text else " (default: none)"
    else:
        shown = f" ({'paper' if of_paper else 'default'}: {default})"
    return f"{text}{shown}".replace("%", "%%")


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
