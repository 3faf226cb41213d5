"""`o1core score FILE...`: completions that others made, by one ruler. No torch is imported, unless a tokenizer counts."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from ..grading import THINK, ThoughtTags
from ..problems import load_problems
from ..records import to_json
from ..scoring import Judge, Score, compared, score_charts, score_file, score_tables, to_csv
from ..tables import to_latex, to_text
from ..text import one_line

MOST_BUDGETS = 50


def add_flags(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("files", metavar="FILE", type=Path, nargs="+", help="JSONL, JSON or parquet: a row a completion")
    sub.add_argument("--base", metavar="FILE", type=Path, help="compare with this file, over the problems of both")
    sub.add_argument(
        "--data", metavar="FILE", type=Path, help="problems with their gold answers, for rows that have none"
    )
    sub.add_argument(
        "--tokenizer", metavar="DIR", type=Path, help="count tokens with this checkpoint's (default: the file's)"
    )
    sub.add_argument("--samples", metavar="N", type=int, help="of each problem the first N completions (default: all)")
    sub.add_argument(
        "--aes",
        metavar="A/B/C,A/B/C",
        default="1/3/5",
        help="coefficients of AES: of the length cut, a gain and a loss of accuracy (default: %(default)s)",
    )
    sub.add_argument(
        "--budgets",
        metavar="N,N",
        help="token budgets, the last bounds the area (default: 8 to the longest completion)",
    )
    sub.add_argument(
        "--as-graded", action="store_true", help="keep the verdicts that a file has (default: grade again)"
    )
    sub.add_argument(
        "--truncated",
        choices=("wrong", "keep"),
        default="wrong",
        help="what was cut off: wrong unless a whole box stands after the thought, or keep as graded (default: wrong)",
    )
    sub.add_argument(
        "--thought-tags", metavar="OPEN,CLOSE", help="what opens and closes a thought (default: <think>,</think>)"
    )
    sub.add_argument("--grader", metavar="FILE.py:FUNCTION", help="judge answers with a function of your own")
    form = sub.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print all numbers as JSON")
    form.add_argument("--csv", action="store_true", help="print a line a model, all numbers as columns")
    form.add_argument("--latex", action="store_true", help="print the tables as LaTeX (booktabs)")
    sub.add_argument("--chart", metavar="FILE", type=Path, help="write curves over token budgets and k as a PNG file")
    sub.set_defaults(run=score)


def score(args: argparse.Namespace) -> None:
    if args.samples is not None and args.samples < 1:
        raise UserError(f"--samples: {args.samples} is below 1")
    coefficients, budgets = [coefficients_of(text) for text in args.aes.split(",")], budgets_of(args.budgets)
    golds: dict[str, str] = {}
    for problem in load_problems(args.data) if args.data else []:
        golds |= {problem.id: problem.answer, problem.question: problem.answer}
    judge = Judge(golds, tags_of(args.thought_tags), args.truncated, args.grader, args.as_graded, args.samples)
    if args.tokenizer:
        judge = replace(judge, count=counter(args.tokenizer))
    base = only(score_file(args.base, judge), args.base) if args.base else None
    found = [s for path in args.files for s in score_file(path, judge)]
    scores = told_apart([*([base] if base else []), *found])
    say(compared(scores, base is not None, coefficients, budgets), args)


def say(scores: list[Score], args: argparse.Namespace) -> None:
    """Print the scores in the form that was asked for, and draw them."""
    tables = score_tables(scores)
    if args.json:
        print(json.dumps(to_json(scores), indent=2))
    elif args.csv:
        print(to_csv(scores), end="")
    elif args.latex:
        print("\n\n".join(f"% {table.title}. {one_line(table.note)}\n{to_latex(table)}" for table in tables))
    else:
        print("\n\n".join(f"{table.title}\n{to_text(table)}\n{one_line(table.note)}" for table in tables))
    if args.chart:
        from ..charts import write_png

        charts = score_charts(scores)
        if not charts:
            raise UserError("--chart: nothing to draw: no tokens are known and each problem has one completion")
        write_png(charts, "", args.chart)


def only(scores: list[Score], path: Path) -> Score:
    if len(scores) > 1:
        raise UserError(f"--base: {path} holds {len(scores)} models; keep the rows of one in a file of its own")
    return scores[0]


def told_apart(scores: list[Score]) -> list[Score]:
    """The scores, with a number behind names that two have in common."""
    found: list[Score] = []
    for s in scores:
        same = sum(other.name.rpartition(" #")[0] == s.name or other.name == s.name for other in found)
        found.append(replace(s, name=f"{s.name} #{same + 1}") if same else s)
    return found


def coefficients_of(text: str) -> tuple[float, float, float]:
    try:
        alpha, beta, gamma = (float(part) for part in text.split("/"))
    except ValueError:
        alpha = beta = gamma = -1.0
    if not (0 <= alpha <= 1000 and 0 <= beta <= 1000 and 0 <= gamma <= 1000):
        raise UserError(f"--aes: {text} is not A/B/C, three numbers from 0 to 1,000, such as 1/3/5 or 1/5/10")
    return alpha, beta, gamma


def budgets_of(text: str | None) -> list[int]:
    parts = text.split(",") if text is not None else []
    budgets = [int(part) for part in parts if part.strip().isdecimal() and len(part) < 12 and 0 < int(part) < 10**9]
    if len(budgets) < len(parts) or budgets != sorted(set(budgets)) or len(budgets) > MOST_BUDGETS:
        raise UserError(
            f"--budgets: {text} is not a rising list of at most {MOST_BUDGETS} numbers of tokens, such as 2000,4000"
        )
    return budgets


def tags_of(text: str | None) -> ThoughtTags:
    if text is None:
        return THINK
    opens, comma, closes = text.partition(",")
    if not comma or not opens.strip() or not closes.strip():
        raise UserError(f"--thought-tags: {text} is not OPEN,CLOSE, such as <think>,</think>")
    return ThoughtTags((opens.strip(),), (closes.strip(),))


def counter(folder: Path) -> Callable[[str], int]:
    """How many tokens a text has, by a checkpoint's tokenizer, which runs in a worker with limits."""
    from ..model import Tokenizer, read_config  # torch comes with it

    tokenizer = Tokenizer(folder, read_config(folder).vocab_size)
    return lambda text: len(tokenizer.encode(text))
