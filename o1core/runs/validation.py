"""Evaluation between rounds (--eval-every round), on a part of the training problems that nobody trains on and no test shares.

The policy is measured before the first round and after each. With --keep best a rule decides which round becomes RUN/pruned:
of the rounds whose accuracy does not lie below the base's, the one with the fewest tokens. "Below" is the paired 95 % interval:
all of it is under zero. Once a round does lie below, training stops: what follows starts from a worse policy. Where every
round lies below, the most accurate is kept, and the run says so.

All of it is read back from RUN/validation, so an interrupted run decides as it would have.
"""

import logging
import shutil
from pathlib import Path

from ..errors import UserError
from ..evaluation import Evaluation, Outcome, finished_evaluation, outcome
from ..model import adapted, save_adapter
from ..policy import Policy
from ..recipe import Recipe
from ..run_folder import RunFolder
from ..training import Send
from ..types import Problem

log = logging.getLogger(__name__)


class Validation:
    """The measurements of a run between its rounds. found: of the policy after so many rounds, in their order."""

    def __init__(self, policy: Policy, problems: list[Problem], recipe: Recipe, run: RunFolder, send: Send) -> None:
        self.policy, self.problems, self.recipe, self.run, self.send = policy, problems, recipe, run, send
        self.params, self.keeps = recipe.evaluation_params(), recipe.evaluation.keep == "best"
        self.found: list[Evaluation] = []

    def measure(self, rounds: int) -> bool:
        """Evaluate the policy after so many rounds, unless the folder holds it, and with --keep best keep its weights where it
        is the best so far. Returns whether training should stop."""
        for done in range(len(self.found), rounds):  # of an interrupted run
            held = self.read(done)
            if held is None:
                where = self.run.validation(done).path
                raise UserError(f"{where}: is lost, and its policy is gone; restore it, or choose another --out")
            self.found.append(held)
        self.found.append(self.read(rounds) or self.sample(rounds))
        if rounds == 0 or not self.keeps:
            return False
        log.info("after round %d, on %d held-out problems: %s", rounds, len(self.problems), self.against_base(rounds))
        if self.best() == rounds:
            self.keep_weights(rounds)
        if not is_below(self.against_base(rounds)):
            return False
        log.warning("accuracy fell below the base's after round %d; training stops here", rounds)
        return True

    def read(self, rounds: int) -> Evaluation | None:
        return finished_evaluation(self.run.validation(rounds), self.problems)

    def sample(self, rounds: int) -> Evaluation:
        label = f"{self.recipe.phase(rounds - 1, 2)} validate {f'after round {rounds}' if rounds else 'the base'}"
        found = self.policy.evaluate(self.problems, self.params, self.run.validation(rounds), label)
        self.send(
            self.policy.steps, {"validation_accuracy": found.accuracy, "validation_mean_tokens": found.mean_tokens}
        )
        return found

    def against_base(self, rounds: int) -> Outcome:
        return outcome(self.found[0], self.found[rounds])

    def best(self) -> int:
        """The round that the rule keeps, from 1 on."""
        rounds = range(1, len(self.found))
        good = [done for done in rounds if not is_below(self.against_base(done))]
        if good:
            return min(good, key=lambda done: self.found[done].mean_tokens)
        return max(rounds, key=lambda done: self.found[done].accuracy)

    def keep_weights(self, rounds: int) -> None:
        """Write the checkpoint after a round, and drop that of the round that was the best before."""
        kept = self.run.kept(rounds)
        if not self.run.alone(kept.exists):
            if adapted(self.policy.trained):
                self.run.alone(lambda: save_adapter(self.policy.trained, self.policy.folder, self.adapter(rounds)))
            self.policy.save(kept)

        def drop_others() -> None:
            for place in [place(done) for done in range(1, rounds) for place in (self.run.kept, self.adapter)]:
                shutil.rmtree(place, ignore_errors=True)

        self.run.alone(drop_others)

    def adapter(self, rounds: int) -> Path:
        return self.run.kept(rounds).with_name("adapter")

    def export(self) -> None:
        """Make the best round's checkpoint RUN/pruned, and its adapter RUN/adapter."""
        best = self.best()
        said = self.against_base(best)
        log.info("kept: round %d of %d, on held-out problems %s", best, len(self.found) - 1, said)
        if is_below(said):
            log.warning("every round's accuracy lies below the base's; the most accurate round is kept")

        def copy() -> None:
            if self.adapter(best).exists():
                shutil.copytree(self.adapter(best), self.run.adapter, dirs_exist_ok=True)

        self.run.alone(copy)
        self.run.write_pruned(lambda pruned: self.run.alone(lambda: copy_folder(self.run.kept(best), pruned)))


def copy_folder(source: Path, target: Path) -> None:
    shutil.copytree(source, target)


def is_below(outcome: Outcome) -> bool:
    """Whether accuracy lies below the base's: the whole interval of the difference is under zero."""
    gain = outcome.gain
    return (gain.mean if gain.high is None else gain.high) < 0
