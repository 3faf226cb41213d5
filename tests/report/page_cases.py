"""Hand-written runs and studies whose numbers are known, and a reader of the page's elements and text."""

import json
from html.parser import HTMLParser
from pathlib import Path

import torch

from o1core.evaluation import Evaluation, RunResult, compare
from o1core.files import write_json
from o1core.model import Tokenizer
from o1core.records import to_json
from o1core.report.page import write_page
from o1core.rollout import write_shard
from o1core.types import Group, Sample

EVIL = '<script>window.pwned=1</script><img src=x onerror="window.pwned=1">\'"</style></title>&amp;]]>-->'

FIRST = "First, 47+8=55. Then 55-9=46. So the answer is 46."

AGAIN = "\nWait, let me check that again. 47+8=55, 55-9=46. Yes, 46."

ANSWER = "\nFinal answer: \\boxed{46}"

END = 258


def sample(tokenizer: Tokenizer, text: str, correct: bool, answer: str | None = "46") -> Sample:
    ids = torch.tensor([*tokenizer.encode(text), END], dtype=torch.int32)
    return Sample(ids, torch.zeros(len(ids)), "stop", answer, correct)


def problem(name: str, question: str = "What is 47+8-9?", level: str | None = None, answer: str = "46") -> dict:
    return {"id": name, "question": question, "answer": answer, "level": level, "subject": None}


def write_side(
    folder: Path, tokenizer: Tokenizer, problems: list[dict], texts: list[list[tuple[str, bool]]]
) -> Evaluation:
    """problems.json and rollouts of one test on one side; returns its evaluation."""
    prompt = torch.tensor(tokenizer.prompt("?"), dtype=torch.int32)
    groups = [
        Group(p["id"], prompt, tuple(sample(tokenizer, text, correct) for text, correct in row))
        for p, row in zip(problems, texts)
    ]
    write_shard(folder / "rollouts", groups)
    write_json(folder / "problems.json", problems)
    lengths = [float(s.length) for g in groups for s in g.samples]
    verdicts = [s.correct for g in groups for s in g.samples]
    accuracy = sum(verdicts) / len(verdicts)
    return Evaluation(
        accuracy=accuracy,
        accuracy_low=accuracy / 2,
        accuracy_high=(1 + accuracy) / 2,
        truncated=0.125,
        mean_tokens=sum(lengths) / len(lengths),
        median_tokens=sorted(lengths)[len(lengths) // 2],
        tokens_per_second=1.0,
        problems=len(groups),
        samples=len(groups[0].samples),
        seconds=1.0,
    )


def write_log(run: Path, steps: int = 6, **fields) -> None:
    names = {
        "reward": 0.5,
        "mean_length": 90.0,
        "ratio_mean": 1.0,
        "clip_fraction": 0.1,
        "approx_kl": 0.01,
        "loss": 0.2,
    }
    lines = [{"step": i + 1, **{k: v * (i + 1) for k, v in (names | fields).items() if v}} for i in range(steps)]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(run: Path, model: Path, tests: dict[str, tuple[list[dict], list, list]]) -> dict:
    """A run folder of hand-written completions; tests: {name: (problems, texts before, texts after)}."""
    run.mkdir(parents=True)
    tokenizer = Tokenizer(model, 272)
    write_json(run / "settings.json", {"model": str(model), "method": "o1-pruner", "lam": 2.0})
    sides = {
        side: {name: write_side(run / side / name, tokenizer, t[0], t[i]) for name, t in tests.items()}
        for i, side in ((1, "base"), (2, "after"))
    }
    result = to_json(RunResult(compare(sides["base"], sides["after"]), 3.0, "pruned", {}))
    write_json(run / "result.json", result)
    return result


def plain_test(count: int = 2) -> tuple[list[dict], list, list]:
    """Problems of two completions each: before with a re-check, after without, one wrong on each side."""
    problems = [problem(f"p-{i}", f"What is 47+8-9, number {i}?", str(1 + i % 2)) for i in range(count)]
    before = [[(FIRST + AGAIN + ANSWER, True), (FIRST + AGAIN + AGAIN + ANSWER, i > 0)] for i in range(count)]
    after = [[(FIRST + ANSWER, True), (FIRST + ANSWER, i < count - 1)] for i in range(count)]
    return problems, before, after


def spread(mean: float) -> dict:
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}


def write_study(study: Path, model: Path, kind: str, labels: dict[str, object]) -> None:
    """A study whose runs are plain; row i has accuracy 0.7 + i/100, 100 - 10 i tokens and AES i/10."""
    rows = []
    for i, (label, value) in enumerate({"base": None, **labels}.items()):
        measures = {
            "accuracy": spread(0.7 + i / 100),
            "mean_tokens": spread(100 - 10 * i),
            "length_cut": spread(i / 10),
            "accuracy_gain": spread(i / 100),
            "aes": spread(i / 10) if i else None,
        }
        name = f"seed-0/{label.replace(' ', '-')}"
        if i:
            write_run(study / name, model, {"arithmetic": plain_test()})
            write_log(study / name)
        rows.append(
            {
                "label": label,
                "value": value,
                "runs": [name] if i else [],
                "average": measures,
                "tests": {"arithmetic": measures},
                "inference": {"seconds": 2.0, "ratio": 1 - i / 8} if kind == "compare" else None,
            }
        )
    write_json(
        study / "result.json", {"study": kind, "tests": ["arithmetic"], "seeds": 3, "rows": rows, "settings": {}}
    )


class Tags(HTMLParser):
    """Every element of a page with its attributes, and the text outside of scripts and styles."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.quiet = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.quiet = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self.quiet = None

    def handle_data(self, data):
        if self.quiet is None:
            self.text.append(data)

    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def page_of(folder: Path, *others: Path) -> str:
    out = folder.parent / "out" / "report.html"
    assert write_page([folder, *others], out) == out
    return out.read_text()


def evil_run(folder: Path, model: Path) -> Path:
    problems = [problem(EVIL, EVIL + "x" * 400, EVIL, EVIL)]
    texts = [[(EVIL * 3, True), ("plain", False)]]
    write_run(folder, model, {"t": (problems, texts, texts)})
    settings = json.loads((folder / "settings.json").read_text())
    write_json(folder / "settings.json", settings | {"note": EVIL})
    return folder
