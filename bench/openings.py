"""How an answer begins decides how long it gets: a model's accuracy and tokens where its answers begin with a given text.

    python -m bench.openings --model DIR --data FILE "First, calculate" "Step 1: Calculate" [--problems 100]

Every text is compared with the model's own words over the same problems, greedily; differences are paired over problems, with
95 % intervals. A good one is for `o1core prune --opening`. Take problems that no reported number uses: choosing among many
texts by a test makes it a training set. Interrupted runs resume: rerun the same command.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np
import torch

from o1core.errors import UserError
from o1core.evaluation import answers_of
from o1core.metrics import paired
from o1core.model import DTYPES, Tokenizer, read_config
from o1core.policy import opening_ids
from o1core.recipe import Recipe
from o1core.rollout import keep_freed_memory
from o1core.run_folder import RunFolder
from o1core.runs import Job, Resources, open_evaluation, open_session
from o1core.text import one_line
from o1core.types import Group

OWN = "its own words"


def main() -> int:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("openings", nargs="+", metavar="TEXT", help="what an answer begins with")
    ap.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    ap.add_argument("--data", required=True, help="problems, as for o1core prune")
    ap.add_argument("--problems", type=int, default=100, help="the first so many of them (default: %(default)s)")
    ap.add_argument("--prompt", default="boxed", help="its form: plain, boxed or paper (default: %(default)s)")
    ap.add_argument("--max-new-tokens", type=int, default=400, help="longest answer (default: %(default)s)")
    ap.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="float32 where bf16 is slow")
    ap.add_argument("--out", type=Path, default=Path("runs/openings"), help="folder (default: %(default)s)")
    args = ap.parse_args()
    keep_freed_memory()
    resources = Resources(torch.device("cuda" if torch.cuda.is_available() else "cpu"), 128)
    found: dict[str, list[Group]] = {}
    try:
        tokenizer = Tokenizer(args.model, read_config(args.model).vocab_size)
        for opening in args.openings:
            opening_ids(tokenizer, opening, args.max_new_tokens)  # refused here, not after minutes
        recipe = Recipe.of(eval_problems=args.problems, prompt=args.prompt, max_new_tokens=args.max_new_tokens)
        for opening in dict.fromkeys(["", *args.openings]):
            job = open_evaluation(args.model, args.data, args.dtype, recipe.replace(opening=opening))
            found[opening] = answers(job, args.out, resources)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(
        f"\n{len(found[''])} problems\n\n| the answer begins with | accuracy | mean tokens | ran out | points | tokens |"
    )
    print("|---|---|---|---|---|---|")
    for opening, groups in found.items():
        print(line(opening, groups, found[""]))
    return 0


def answers(job: Job, out: Path, resources: Resources) -> list[Group]:
    """The greedy answers to the job's test that begin with its recipe's opening, from a folder of their own."""
    opening = job.recipe.prompt.opening
    run = RunFolder(out / (hashlib.sha256(opening.encode()).hexdigest()[:12] if opening else OWN.replace(" ", "-")))
    (problems,) = job.tests.values()
    with open_session(job, run, resources) as session:
        policy, params = session.open(job.model), job.recipe.evaluation_params()
        rollouts = policy.sample(problems, params, run.rollouts(0), one_line(opening) or OWN, opening)
    return sorted(rollouts.groups, key=lambda group: group.problem)


def line(opening: str, groups: list[Group], own: list[Group]) -> str:
    """A row of the table. own: the answers to the same problems in the model's own words."""
    answers = answers_of(groups)
    cut = np.mean([sample.finish_reason == "length" for group in groups for sample in group.samples])
    cells = [f"`{opening}`" if opening else OWN, f"{100 * answers.correct.mean():.1f} %"]
    cells.append(f"{answers.lengths.mean():.1f}")
    cells.append(f"{100 * cut:.1f} %")
    found = paired(answers_of(own), answers)
    cells += [f"{found.accuracy.scaled(100):+.1f}", f"{found.tokens:+.1f}"] if opening else [""] * 2
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
