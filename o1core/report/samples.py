"""What a report reads of a run's folder besides its result, nothing outside of it; and a run's samples for a terminal:
problem by problem, short to long, right or wrong, before against after."""

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UserError
from ..evaluation import RunResult, read_problems
from ..model import Tokenizer, read_config
from ..rollout import read_groups
from ..run_folder import SIDES, EvaluationFolder, RunFolder
from ..text import clean, one_line
from ..training import Rows, read_log
from ..types import Group, Sample

Item = TypeVar("Item")
MOST_TRACKED = 20  # problems in a tracker's table of samples


def check_inside(folder: Path, path: Path) -> None:
    """Raises UserError where a path that a result names is not inside its folder."""
    try:
        inside = folder.resolve() in path.resolve().parents
    except (OSError, ValueError):  # no name of a file: NUL, a lone surrogate
        inside = False
    if not inside:
        raise UserError(f"{folder / 'result.json'}: {str(path)!r} leads out of {folder}; such a result is not read")


def open_tokenizer(run: RunFolder) -> Tokenizer:
    """The tokenizer of the run's pruned checkpoint, so that a run can be moved to another machine, or else of its model."""
    folder = run.pruned
    if not (folder / "tokenizer.json").exists():
        settings = run.read_settings()
        checkpoint = settings.get("checkpoint", settings.get("model"))  # before 0.2 `model` was the path
        if not isinstance(checkpoint, str):
            raise UserError(f"{run.settings}: checkpoint: must be the path of a checkpoint; name it there")
        folder = Path(checkpoint)
    tokenizer = Tokenizer(folder, read_config(folder).vocab_size)
    stated = run.read_settings().get("thought_tags") if run.settings.exists() else None
    if isinstance(stated, str) and stated.count(",") == 1:
        opens, closes = stated.split(",")
        tokenizer.find_tags((opens.strip(), closes.strip()))
    return tokenizer


def logged_steps(run: RunFolder) -> list[dict[str, Any]]:
    """The lines of the run's log; none where it has not trained."""
    return [line for line in read_log(run.log) if isinstance(line, dict)] if run.log.exists() else []


def settings_of(run: RunFolder) -> list[tuple[str, str]]:
    """What the folder's settings.json says, as text; of a path its last part, for the rest is this machine's."""
    settings = run.read_settings() if run.settings.exists() else {}
    settings.pop("checkpoint", None)
    if isinstance(settings.get("model"), str):
        settings["model"] = Path(settings["model"]).name
    if isinstance(settings.get("command"), str):
        settings["command"] = without_places(settings["command"])
    placed = {name: without_place(value) for name, value in settings.items()}
    return [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in placed.items()]


def without_place(value: Any) -> Any:
    """A setting; of a path that says where a machine keeps its files the last part."""
    if isinstance(value, list):
        return [without_place(item) for item in value]
    is_path = isinstance(value, str) and value.startswith(("/", "~", "../")) and "/" in value[1:]
    return Path(value).name if is_path else value


def without_places(command: str) -> str:
    """The command with the last part alone of every such path; nothing where it is no command of a shell."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quote that is not closed
        return ""
    parts = [word.partition("=") if word.startswith("-") else ("", "", word) for word in words]
    return shlex.join(flag + equals + without_place(value) for flag, equals, value in parts)


def sample_lines(run: Path, problem: str | None = None, problems: int | None = None, samples: int = 4) -> Iterator[str]:
    """Lines on every problem of a run's evaluations, or of its first rollouts where it has not been evaluated.

    problem: this one alone; problems: at most so many, evenly spaced in the order of their ids, so that nobody chose them.
    samples: completions of each problem and side, spread from the shortest to the longest. Raises UserError where the
    folder holds no rollouts or not the problem.
    """
    folder = RunFolder(run)
    evaluated = {side: by_problem(folder.evaluations(side)) for side in SIDES}
    sides = {side: groups for side, groups in evaluated.items() if groups}
    if not sides:
        places = (folder.own_evaluation.rollouts, folder.rollouts(0))
        found = next((sampled for place in places if (sampled := read_groups(place))), None)
        if found is None:
            raise UserError(f"{run}: holds no rollouts; `o1core sample` or `o1core eval` makes them")
        sides = {"sampled": {g.problem: g for g in found}}
    tokenizer = open_tokenizer(folder)
    first = next(iter(sides.values()))
    if problem is not None and problem not in first:
        raise UserError(f"{run}: no problem {problem}; the first is {next(iter(first))}")
    names = list(first) if problem is None else [problem]
    for name in names if problems is None else evenly(names, problems):
        yield f"=== problem {one_line(name)}"
        yield clean(tokenizer.decode(first[name].prompt.tolist()).strip())
        for side, groups in sides.items():
            if group := groups.get(name):
                yield from show_group(group, side, tokenizer, samples)
        yield ""


def tracked_result(run: RunFolder, result: RunResult) -> dict[str, Any]:
    """What a tracker gets of a result: of each test accuracy, tokens and AES before and after, and a table of samples."""
    found: dict[str, Any] = {}
    for test, outcome in result.comparison.tests.items():
        for side, evaluation in (("before", outcome.base), ("after", outcome.pruned)):
            found[f"{test}/accuracy_{side}"] = evaluation.accuracy
            found[f"{test}/tokens_{side}"] = evaluation.mean_tokens
        if outcome.aes is not None:
            found[f"{test}/aes"] = outcome.aes
        found[f"{test}/samples"] = sample_rows(run, test)
    return found


def sample_rows(run: RunFolder, test: str) -> Rows:
    """The first completion of some problems, evenly spaced, before and after."""
    evaluated = {side: run.evaluation(side, test) for side in SIDES}
    sides = [{g.problem: g.samples[0] for g in read_groups(folder.rollouts)} for folder in evaluated.values()]
    problems = [p for p in read_problems(evaluated[SIDES[0]]) if p.id in sides[0] and p.id in sides[1]]
    tokenizer = open_tokenizer(run)
    rows: list[list[str | float]] = []
    for p in evenly(problems, MOST_TRACKED):
        cells: list[str | float] = [p.id, p.question, p.answer]
        for side in sides:
            s = side[p.id]
            cells += [clean(tokenizer.decode(s.ids.tolist()).strip()), "right" if s.correct else "wrong", s.length]
        rows.append(cells)
    columns = [f"{name} {side}" for side in ("before", "after") for name in ("completion", "verdict", "tokens")]
    return Rows(["problem", "question", "gold", *columns], rows)


def by_problem(folders: dict[str, EvaluationFolder]) -> dict[str, Group]:
    """The groups by their problem's id; of several tests by test/id, since two files may both begin at 1."""
    named = [(test, group) for test, folder in folders.items() for group in read_groups(folder.rollouts)]
    return {group.problem if len(folders) == 1 else f"{test}/{group.problem}": group for test, group in named}


def show_group(group: Group, side: str, tokenizer: Tokenizer, count: int) -> Iterator[str]:
    mean = sum(s.length for s in group.samples) / len(group.samples)
    right = sum(s.correct for s in group.samples)
    yield f"--- {side}: {right} of {len(group.samples)} right, mean {mean:.0f} tokens"
    for s in short_to_long(group, count):
        verdict = "RIGHT" if s.correct else "WRONG"
        cut = ", ran out of tokens" if s.finish_reason == "length" else ""
        yield f"[{verdict}, {s.length} tokens, answer {one_line(str(s.answer))}{cut}]"
        yield "    " + clean(tokenizer.decode(s.ids.tolist()).strip()).replace("\n", "\n    ")


def short_to_long(group: Group, count: int) -> list[Sample]:
    """At most `count` of a group's samples, evenly spread from the shortest to the longest."""
    return evenly(sorted(group.samples, key=lambda s: s.length), count)


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` items, evenly spaced from the first to the last."""
    last, count = len(items) - 1, min(count, len(items))
    return [items[i] for i in sorted({round(i * last / max(1, count - 1)) for i in range(count)})]
