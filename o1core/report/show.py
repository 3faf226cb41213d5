"""A run's samples as text for a terminal: problem by problem, short to long, right or wrong, before against after."""

from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from ..files import read_json
from ..model import Tokenizer, read_config
from ..rollout import Group, read_groups
from ..text import clean

FOLDERS = ("base", "after")  # of a run; the evaluations before and after


def show(run: Path, problem: str | None = None, samples: int = 4) -> Iterator[str]:
    """Lines on every problem of a run's evaluations, or of its first rollouts where it has not been evaluated.

    samples: completions of each problem and side, spread from the shortest to the longest. Raises UserError where the
    folder holds no rollouts or not the problem.
    """
    sides = {side: by_problem(tests(run / side)) for side in FOLDERS}
    sides = {name: groups for name, groups in sides.items() if groups}
    if not sides:
        places = (run / "rollouts", run / "round-00" / "rollouts")
        found = next((groups for place in places if (groups := read_groups(place))), None)
        if found is None:
            raise UserError(f"{run}: holds no rollouts; `o1core sample` or `o1core eval` make them")
        sides = {"sampled": {g.problem: g for g in found}}
    tokenizer = open_tokenizer(run)
    first = next(iter(sides.values()))
    if problem is not None and problem not in first:
        raise UserError(f"{run}: no problem {problem}; the first is {next(iter(first))}")
    for name in [problem] if problem is not None else first:
        yield f"=== problem {name}"
        yield clean(tokenizer.decode(first[name].prompt.tolist()).strip())
        for side, groups in sides.items():
            if name in groups:
                yield from show_group(groups[name], side, tokenizer, samples)
        yield ""


def tests(side: Path) -> list[Path]:
    """The rollout folders of an evaluation before or after, one a test."""
    return sorted(side.glob("*/rollouts"))


def by_problem(folders: list[Path]) -> dict[str, Group]:
    """The groups by their problem's id; of several tests by test/id, since two files may both begin at 1."""
    named = [(folder.parent.name, group) for folder in folders for group in read_groups(folder)]
    return {group.problem if len(folders) == 1 else f"{test}/{group.problem}": group for test, group in named}


def show_group(group: Group, side: str, tokenizer: Tokenizer, count: int) -> Iterator[str]:
    ordered = sorted(group.samples, key=lambda s: s.length)
    mean = sum(s.length for s in ordered) / len(ordered)
    right = sum(s.correct for s in ordered)
    yield f"--- {side}: {right} of {len(ordered)} right, mean {mean:.0f} tokens"
    last = len(ordered) - 1
    chosen = sorted({round(i * last / max(1, count - 1)) for i in range(min(count, len(ordered)))})
    for s in (ordered[i] for i in chosen):
        verdict = "RIGHT" if s.correct else "WRONG"
        cut = ", ran out of tokens" if s.finish_reason == "length" else ""
        yield f"[{verdict}, {s.length} tokens, answer {clean(str(s.answer))}{cut}]"
        yield "    " + clean(tokenizer.decode(s.ids.tolist()).strip()).replace("\n", "\n    ")


def open_tokenizer(run: Path) -> Tokenizer:
    """The tokenizer of the run's pruned checkpoint, so that a run can be moved to another machine, or else of its model."""
    folder = run / "pruned"
    if not (folder / "tokenizer.json").exists():
        folder = Path(read_json(run / "settings.json")["model"])
    return Tokenizer(folder, read_config(folder).vocab_size)
