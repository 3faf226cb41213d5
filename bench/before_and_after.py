"""The README's thought before and after: one problem of a finished run of `o1core prune`, chosen by a rule.

    python -m bench.before_and_after [runs/tiny-o1]

On each side its sample closest to the run's mean length is printed; the problem is the one where both are closest (the sum of
both distances; the first of equal ones). `o1core show RUN --problem ID` prints all of its samples.
"""

import sys
from pathlib import Path
from statistics import mean

from o1core.model import Tokenizer, read_config
from o1core.rollout import read_groups
from o1core.run_folder import SIDES, RunFolder
from o1core.types import Group, Sample


def mean_length(group: Group) -> float:
    return mean(sample.length for sample in group.samples)


def choose(before: dict[str, Group], after: dict[str, Group]) -> tuple[str, list[Sample]]:
    """The id of the problem, and its sample of each side, by the rule above."""
    sides = (before, after)
    means = [mean(map(mean_length, side.values())) for side in sides]

    def closest(problem: str) -> list[Sample]:
        return [min(s[problem].samples, key=lambda x: abs(x.length - m)) for s, m in zip(sides, means)]

    problem = min(before, key=lambda p: sum(abs(sample.length - m) for sample, m in zip(closest(p), means)))
    return problem, closest(problem)


def main() -> None:
    run = RunFolder(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/tiny-o1"))
    tests = [run.evaluations(side) for side in SIDES]
    name = next(iter(tests[0]))
    before, after = ({g.problem: g for g in read_groups(test[name].rollouts)} for test in tests)
    problem, samples = choose(before, after)
    tokenizer = Tokenizer(run.pruned, read_config(run.pruned).vocab_size)
    print(f"problem {problem}\n{tokenizer.decode(before[problem].prompt.tolist())}")
    for side, sample in zip(SIDES, samples):
        print(f"\n{side}, {sample.length} tokens\n{tokenizer.decode(sample.ids.tolist())}")


if __name__ == "__main__":
    main()
