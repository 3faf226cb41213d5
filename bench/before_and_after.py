"""The README's thought before and after: one problem of a finished run of `o1core prune`, chosen by a rule.

    python -m bench.before_and_after [runs/tiny-o1]

The problem is the one whose mean lengths before and after are closest to the run's own means (the sum of both distances);
of its samples the longest is printed on each side. `o1core show RUN --problem ID` prints all of them.
"""

import sys
from pathlib import Path
from statistics import mean

from o1core.model import Tokenizer, read_config
from o1core.rollout import Group, Sample, read_groups
from o1core.run_folder import SIDES, RunFolder


def mean_length(group: Group) -> float:
    return mean(sample.length for sample in group.samples)


def choose(before: dict[str, Group], after: dict[str, Group]) -> str:
    """The id of the problem by the rule above."""
    means = [mean(map(mean_length, side.values())) for side in (before, after)]
    return min(before, key=lambda p: sum(abs(mean_length(s[p]) - m) for s, m in zip((before, after), means)))


def longest(group: Group) -> Sample:
    return max(group.samples, key=lambda sample: sample.length)


def main() -> None:
    run = RunFolder(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/tiny-o1"))
    tests = [run.evaluations(side) for side in SIDES]
    name = next(iter(tests[0]))
    before, after = ({g.problem: g for g in read_groups(test[name].rollouts)} for test in tests)
    problem = choose(before, after)
    tokenizer = Tokenizer(run.pruned, read_config(run.pruned).vocab_size)
    print(f"problem {problem}\n{tokenizer.decode(before[problem].prompt.tolist())}")
    for side, groups in zip(SIDES, (before, after)):
        sample = longest(groups[problem])
        print(f"\n{side}, {sample.length} tokens\n{tokenizer.decode(sample.ids.tolist())}")


if __name__ == "__main__":
    main()
