"""What each command does with its parsed flags: open what they name, call one function, print what it returns."""

import argparse
import dataclasses
import json
import logging
import os
import pydoc
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..choices import SCALES, TINY
from ..distributed import at_work, check_same, on_all_ranks, on_rank0, opened, processes_asked, team_of
from ..errors import UserError
from ..hub import check_upload, upload
from ..model import DTYPES, Found, find_model, read_config
from ..problems import Fields, download_data, hub_data
from ..recipe import SPECS, OptimiserSettings, Recipe, read_recipe
from ..records import to_json
from ..report import (
    Table,
    dial_tables,
    disharmony_tables,
    in_one_line,
    logged_steps,
    rounds_table,
    run_headlines,
    run_table,
    sample_lines,
    study_tables,
    to_markdown,
    to_text,
    write_page,
)
from ..rollout import free_memory, keep_freed_memory
from ..run_folder import RunFolder
from ..runs import (
    EMBEDDED,
    Job,
    Machine,
    Resources,
    Sources,
    Workload,
    choose_threads,
    count_weights,
    open_evaluation,
    open_session,
    plan_run,
    plan_table,
)
from ..runs import open_job as open_pruning_job
from ..runs import prune as prune_run
from ..studies import (
    export_scale,
    lambda_variants,
    method_variants,
    percentile_variants,
    run_comparison,
    run_study,
    study_disharmony,
    turn_dial,
)
from ..text import one_line

log = logging.getLogger(__name__)

MOST_SLOTS_ASKED = 100_000  # by --slots
GPUS_OF_A_NODE = 8


def resolve(args: argparse.Namespace, method: str | None = None, **defaults: Any) -> Recipe:
    """The recipe of a command: the named one with its method, overridden by `defaults` and by single flags."""
    settings = read_recipe(recipe_name(args), method or args.method) | defaults
    given = vars(args)
    if args.command == "difficulty":  # that study's --percentiles is a list, and no setting
        given = {name: value for name, value in given.items() if name != "percentiles"}
    changes = {name: given[name] for name in SPECS if name in given}
    if "template" in changes:  # single variables override the recipe's
        changes["template"] = settings.get("template", {}) | dict(changes["template"])
    if "samples" in changes and "picked" not in changes:  # of fewer samples, no more than those are picked
        picked = settings.get("picked", SPECS["picked"].default)
        changes["picked"] = min(picked, changes["samples"])
    recipe = Recipe.of(**settings | changes)
    recipe.own_code()  # a file that is wrong is refused by --dry-run too
    return recipe


def why_no_gpu() -> str | None:
    """What keeps torch from a GPU, in its words and on one line; None where it has one."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return "this build of torch knows no CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return one_line(str(error).strip().partition(". ")[0])
    return "torch finds no GPU here"


def recipe_name(args: argparse.Namespace) -> str:
    """--recipe, or what stands for it."""
    return args.recipe or ("tiny-o1" if args.model is None else "paper")


def open_device(args: argparse.Namespace) -> torch.device:
    reason = why_no_gpu() if args.device != "cpu" else None
    if args.device == "cuda" and reason:
        raise UserError(f"--device cuda: {reason}; use --device cpu")
    if reason and "too old" in reason:  # there is a GPU, so its owner would wonder
        log.warning("no GPU is used: %s; the CPU computes", reason)
    keep_freed_memory()
    return torch.device("cuda" if torch.cuda.is_available() and args.device != "cpu" else "cpu")


def weights_of(checkpoint: Path) -> int:
    """How many weights a checkpoint has, by its config.json."""
    return count_weights(read_config(checkpoint), OptimiserSettings()).trained


def open_resources(args: argparse.Namespace, device: torch.device) -> Resources:
    tracker = getattr(args, "tracker", None)
    return Resources(device, slots_of(args), tracker, team_of(args.tensor_parallel), args.offload)


def slots_of(args: argparse.Namespace) -> int | None:
    slots: int | None = args.slots
    if slots is not None and not 1 <= slots <= MOST_SLOTS_ASKED:
        raise UserError(f"--slots: {slots} is not between 1 and {MOST_SLOTS_ASKED}")
    return slots


def open_alone(args: argparse.Namespace) -> Resources:
    """The resources of a command that many processes cannot share."""
    if processes_asked() > 1:
        raise UserError("study: runs in one process; start it without torchrun")
    device = open_device(args)
    choose_threads(weights_of(args.checkpoint or EMBEDDED), device)
    return open_resources(args, device)


def open_job(args: argparse.Namespace, recipe: Recipe) -> Job:
    """The job that a command's flags and a recipe ask for, opened and checked. What is on the hub was fetched before."""
    check_out(args.out or Path("runs"))
    say_how_it_evaluates(recipe)
    model, sources = args.checkpoint, args.sources
    if args.command in ("eval", "disharmony"):
        return open_evaluation(model, args.data, args.dtype, recipe, sources)
    by_level = args.command == "compare"
    return open_pruning_job(model, args.data, args.eval_data, args.dtype, recipe, by_level, sources)


def fetch(args: argparse.Namespace) -> None:
    """Set args.checkpoint, the model's folder (None: the embedded one), and args.sources. What the hub has and the disk does
    not is downloaded, by rank 0; with --dry-run all but the weights."""

    def act() -> dict[str, Any]:
        check_model(args.model)
        held = held_settings(folder_of(args))
        model: Found | None = None
        named: dict[str, Any] = {"model": TINY}
        with at_work():
            if args.model is not None:
                resumed = held.get("revision") if held.get("model") == args.model else None
                model = find_model(args.model, args.revision or resumed, weights=not args.dry_run)
                named = {"model": args.model, "revision": model.commit}
            data, files = fetch_data(args, held)
        named |= data | {f"{role}_field": name for role, name in vars(fields_of(args)).items()}
        named |= {"method": getattr(args, "method", None), "recipe": recipe_name(args), "command": args.typed}
        named = {key: value for key, value in named.items() if value}
        return {"folder": str(model.folder) if model and model.commit else None, "files": files, "named": named}

    found = on_rank0("the download", act)
    folder = found["folder"] or args.model  # a path on disk is each rank's own
    args.checkpoint = Path(folder) if folder else None
    args.sources = Sources(found["named"], fields_of(args), found["files"])


def fetch_data(args: argparse.Namespace, held: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """(what settings.json says of the problems, the files of each data set on the hub). held: the settings of the run that is
    resumed, if there is one, whose commits are taken again."""
    earlier = [data for name in [held.get("data"), *(held.get("eval_data") or [])] if name and (data := hub_data(name))]
    files: dict[str, list[str]] = {}

    def found(source: str, split: str) -> str:
        data = hub_data(source)
        if data is None:
            return source
        data = next((other for other in earlier if other._replace(revision=None) == data), data)
        commit, paths = download_data(data, split)
        files[f"{split} {source}"] = [str(path) for path in paths]
        return data.at(commit)

    named: dict[str, Any] = {}
    if args.data is not None:
        named["data"] = found(args.data, "test" if args.command in ("eval", "disharmony") else "train")
    if tests := getattr(args, "eval_data", None):
        named["eval_data"] = [found(test, "test") for test in tests]
    return named, files


def fields_of(args: argparse.Namespace) -> Fields:
    return Fields(args.question_field, args.answer_field, args.level_field)


def held_settings(folder: Path) -> dict[str, Any]:
    """The settings of the run that the folder holds, if it holds one: a run resumes at the revision that it began with."""
    run = RunFolder(folder)
    return run.read_settings() if run.settings.exists() else {}


def check_out(out: Path) -> None:
    """Raise UserError where --out is no folder and cannot be made one. A finished run is only read."""
    there = next(path for path in (out, *out.parents, Path("/")) if path.exists())
    if not there.is_dir():
        raise UserError(f"--out: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK) and not (out / "result.json").exists():
        raise UserError(f"--out: nothing can be written to {there.absolute()}; name another folder")


def check_model(named: str | None) -> None:
    """Raise UserError where --model is a run and no checkpoint."""
    model = Path(named or "")
    if named is not None and (model / "settings.json").exists() and not (model / "config.json").exists():
        pruned = RunFolder(model).pruned
        way = f"its checkpoint is {pruned}" if pruned.exists() else "which has not come to a checkpoint yet"
        raise UserError(f"--model: {model} is the folder of a run; {way}")


def say_how_it_evaluates(recipe: Recipe) -> None:
    """An evaluation that samples cuts the distribution as training does, which changes what it measures."""
    top_p, top_k = recipe.sampling.top_p, recipe.sampling.top_k
    if recipe.evaluation.temperature > 0 and (top_p < 1 or top_k > 0):
        cut = f"--top-p {top_p:g}" + (f" --top-k {top_k}" if top_k else "")
        log.warning(
            "the evaluation samples at --eval-temperature %g with training's %s; --top-p 1 --top-k 0 samples from the "
            "whole distribution",
            *(recipe.evaluation.temperature, cut),
        )


def folder_of(args: argparse.Namespace, prefix: str = "") -> Path:
    """--out, or a folder named after the model."""
    model = Path(args.model).resolve().name if args.model else TINY
    return args.out or Path("runs") / (prefix + model)


def say_what_would_run(args: argparse.Namespace, recipe: Recipe) -> None:
    """The method, and what the model and the data hold, to stderr; what is wrong with them is refused. What a run without
    them generates has nothing to check."""
    method = getattr(args, "method", None) or args.methods
    about = f"method {method}, recipe {recipe_name(args)}"
    fetch(args)
    if args.model is None and args.data is None:
        about += "; the embedded tiny-o1 on generated problems"
    else:
        job = open_job(args, recipe)
        tests = ", ".join(f"{len(test):,} of {name}" for name, test in job.tests.items())
        about += f"; model {named(job.model)}; {len(job.train):,} problems to train on, {tests} to evaluate"
    print(one_line(about), file=sys.stderr)


def what_runs(args: argparse.Namespace, job: Job) -> str:
    """The first line of a run: "Prune tiny-o1 (1 M) on 96 problems x 16 samples, 2 rounds, method o1-pruner; evaluate 300"."""
    weights = weights_of(job.model)
    size = f"{weights / 1e9:.1f} B" if weights >= 1e9 else f"{max(1, round(weights / 1e6))} M"
    recipe, tests = job.recipe, sum(map(len, job.tests.values()))
    each = f" x {recipe.evaluation.samples} samples" if recipe.evaluation.samples > 1 else ""
    model = f"{job.name} ({size})"
    if args.command == "eval":
        return f"Evaluate {model} on {tests:,} problems{each}"
    rounds = f", {recipe.sampling.rounds} rounds" if recipe.sampling.rounds > 1 else ""
    work = f"{model} on {len(job.train):,} problems x {recipe.sampling.samples} samples"
    if recipe.objective.kind == "none":  # nothing is trained
        work, rounds = model, ""
    about = f"{args.command.capitalize()} {work}{rounds}, method {args.method}"
    return about + (f"; evaluate {tests:,}{each}" if args.command == "prune" else "")


def named(path: Path) -> str:
    """A path as it is printed: a folder's name may hold what a terminal obeys."""
    return one_line(str(path))


def on_a_job(
    work: Callable[[argparse.Namespace, Job, RunFolder, Resources], None],
) -> Callable[[argparse.Namespace], None]:
    """A command that resolves its recipe, prints it and stops if asked to, and else hands the opened job to `work`."""

    def run(args: argparse.Namespace) -> None:
        if args.dry_run:
            say_what_would_run(args, recipe := resolve(args))
            print(json.dumps(recipe.to_json(), indent=2))
            return
        with opened(open_device(args), args.timeout) as device:
            fetch(args)
            resources = on_all_ranks("the resources", lambda: open_resources(args, device))
            job = on_all_ranks("the job", lambda: open_job(args, resolve(args)))
            check_same("the settings", job.settings | {"out": str(args.out), "tensor_parallel": args.tensor_parallel})
            log.info("%s", what_runs(args, job))
            choose_threads(weights_of(job.model), device)
            work(args, job, RunFolder(folder_of(args)), resources)

    return run


@on_a_job
def prune(args: argparse.Namespace, job: Job, run: RunFolder, resources: Resources) -> None:
    if args.push_to_hub:
        if job.recipe.objective.kind == "none":
            raise UserError(f"--push-to-hub {args.push_to_hub}: this method trains nothing; leave the flag out")
        on_rank0("the upload", lambda: check_upload(args.push_to_hub))
    result = prune_run(job, run, resources)
    table = run_table(result)
    print(f"{to_text(table)}\n{table.note}")
    if (rounds := rounds_table(logged_steps(run))) is not None:
        print(f"\n{to_text(rounds)}\n{rounds.note}")
    print(f"\n{in_one_line(run_headlines(result))}, {result.seconds:.0f} seconds")
    print(f"plot: {named(run.plot)}\npruned checkpoint: {one_line(result.checkpoint)}")
    if args.push_to_hub:
        push(args.push_to_hub, run)
    print(f"samples in the terminal: o1core show {named(run.path)}; as a page: o1core report {named(run.path)}")


def push(name: str, run: RunFolder) -> None:
    """Upload what the run made, by rank 0: the pruned checkpoint, and its adapter in a folder of its own."""
    folders = {"": run.pruned} | ({"adapter": run.adapter} if run.adapter.exists() else {})

    def act() -> str:
        with at_work():
            return upload(name, folders, f"Pruned with o1core {__version__}")

    print(f"on the hub: {one_line(on_rank0('the upload', act))}")


@on_a_job
def dial(args: argparse.Namespace, job: Job, run: RunFolder, resources: Resources) -> None:
    if processes_asked() > 1:
        raise UserError("dial: runs in one process; start it without torchrun")
    if args.scale is not None:
        print(f"checkpoint: {named(export_scale(job, run, args.scale, resources))}")
    if args.scales or args.scale is None:
        (table,) = dial_tables(turn_dial(job, run, args.scales or SCALES, resources))
        print(f"{to_text(table)}\n{table.note}\nplot: {named(run.dials / 'plot.png')}")


@on_a_job
def sample(args: argparse.Namespace, job: Job, run: RunFolder, resources: Resources) -> None:
    with open_session(job, run, resources) as session:
        session.sample()
    print(f"sampled; train on it with: o1core train --out {named(run.path)} and the same flags")


@on_a_job
def train(args: argparse.Namespace, job: Job, run: RunFolder, resources: Resources) -> None:
    with open_session(job, run, resources) as session:
        print(f"pruned checkpoint: {named(session.train(args.resume))}")


@on_a_job
def evaluate(args: argparse.Namespace, job: Job, run: RunFolder, resources: Resources) -> None:
    with open_session(job, run, resources) as session:
        print(json.dumps(to_json(session.evaluate_alone()), indent=2))


def disharmony(args: argparse.Namespace) -> None:
    recipe = resolve(args, problems=64, samples=512, picked=1)
    if args.dry_run:
        say_what_would_run(args, recipe)
        print(json.dumps(recipe.to_json(), indent=2))
        return
    fetch(args)
    job = open_job(args, recipe.replace(eval_problems=recipe.selection.problems))
    folder = folder_of(args, "study-disharmony-")
    result = study_disharmony(job, args.intervals, folder, open_alone(args))
    print_study(folder, disharmony_tables(result))


def study(args: argparse.Namespace) -> None:
    """study lambda, difficulty or compare: one run per variant."""
    if not 1 <= args.seeds <= 1000:
        raise UserError(f"--seeds: {args.seeds} is not between 1 and 1000")
    match args.command:
        case "lambda":
            variants = lambda_variants(resolve(args), args.values)
        case "difficulty":
            variants = percentile_variants(resolve(args), args.percentiles)
        case _:
            variants = method_variants(args.methods, lambda method: resolve(args, method))
    if args.dry_run:
        say_what_would_run(args, variants[0].recipe)
        print(json.dumps({v.label: v.recipe.to_json() for v in variants}, indent=2))
        return
    fetch(args)
    resources, folder = open_alone(args), folder_of(args, f"study-{args.command}-")
    opener = partial(open_job, args)
    run = run_comparison if args.command == "compare" else partial(run_study, args.command)
    result = run(opener, variants, args.seeds, folder, resources)
    print_study(folder, study_tables(result))


def print_study(folder: Path, tables: list[Table]) -> None:
    """What a study prints at its end."""
    print("\n\n".join(map(to_markdown, tables)))
    print(f"\nplot: {named(folder / 'plot.png')}\nthe same as a page: o1core report {named(folder)}")


def plan(args: argparse.Namespace) -> None:
    """Nothing is loaded: config.json alone is read."""
    cuda, memory = args.device == "cuda", args.gpu_memory
    if memory is None:
        memory = 80.0 if cuda else free_memory(torch.device("cpu")) / (1 << 30)
    if args.gpus < 1 or not 1 <= memory <= 10**4 or args.tensor_parallel < 1:
        raise UserError("--gpus, --gpu-memory, --tensor-parallel: at least 1 is needed, and at most 10,000 GiB")
    config, recipe = read_config(find_model(args.model or EMBEDDED, args.revision, weights=False).folder), resolve(args)
    if args.gpus % args.tensor_parallel or config.num_kv_heads % args.tensor_parallel:
        raise UserError(
            f"--tensor-parallel: {args.tensor_parallel} must divide --gpus {args.gpus} and the model's "
            f"{config.num_kv_heads} key and value heads"
        )
    dtype = config.dtype if args.dtype == "auto" else DTYPES[args.dtype]
    machine = Machine(args.gpus, cuda, args.tensor_parallel, args.offload, int(memory * (1 << 30)))
    planned = plan_run(dataclasses.replace(config, dtype=dtype), Workload.of(recipe), machine, slots_of(args))
    table = plan_table(planned)
    print(f"{to_text(table)}\n\n{table.note}")
    if planned.fits and args.gpus <= GPUS_OF_A_NODE:
        start = "o1core" if args.gpus == 1 else f"torchrun --nproc-per-node {args.gpus} -m o1core"
        print(f"Start it with: {start} prune --model {one_line(args.model or TINY)} --data FILE and the same settings.")


def check_run(folder: Path) -> None:
    """Raise UserError where RUN is a checkpoint, as RUN/pruned is."""
    if (folder / "config.json").exists() and not (folder / "settings.json").exists():
        run = folder.parent if RunFolder(folder.parent).settings.exists() else None
        way = f"its run is {run}" if run else "name the folder that a run was given as --out"
        raise UserError(f"{folder}: is a checkpoint and no run; {way}")


def report(args: argparse.Namespace) -> None:
    for run in args.run_folders:
        check_run(run)
    out = args.out or args.run_folders[0] / "report.html"
    if out.is_dir():
        raise UserError(f"--out: {out} is a folder; name a file, such as {out / 'report.html'}")
    print(named(write_page(args.run_folders, out)))


def show(args: argparse.Namespace) -> None:
    for flag, count in (("--problems", args.problems), ("--samples", args.samples)):
        if count is not None and count < 1:
            raise UserError(f"{flag}: {count} is below 1")
    check_run(args.run_folder)
    lines = sample_lines(args.run_folder, args.problem, args.problems, args.samples)
    if sys.stdout.isatty():
        pydoc.pager("\n".join(lines))
    else:
        for line in lines:
            print(line)
