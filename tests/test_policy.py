"""The interface: load, sample, score, pick, split, step, evaluate, compare, save; and a reward, an objective and an
optimiser of one's own. All of it on tiny-o1."""

import dataclasses
import json

import pytest
import torch

import o1core
from o1core.cli import main
from o1core.errors import UserError
from o1core.problems import arithmetic_problems
from o1core.training.objectives import Preference, Surrogate

PROBLEMS = arithmetic_problems("train", 3, seed=3)


@pytest.fixture
def policy() -> o1core.Policy:
    return o1core.load(max_new_tokens=150)


def test_a_policy_is_loaded_in_the_dtype_that_is_asked_for_and_has_its_parts():
    loaded = o1core.load(o1core.EMBEDDED, dtype=torch.float64, device="cpu")
    assert loaded.model.embed.dtype == torch.float64
    assert isinstance(loaded.tokenizer, o1core.Tokenizer) and isinstance(loaded.engine, o1core.Engine)
    assert o1core.load().model.embed.dtype == torch.float32, "it is small"
    assert o1core.load(dtype="bfloat16").model.embed.dtype == torch.bfloat16


def test_the_public_names_are_listed_and_each_is_there():
    assert set(dir(o1core)) == set(o1core.__all__)
    assert all(getattr(o1core, name) is not None for name in dir(o1core))


def test_samples_are_graded_and_kept_where_a_folder_is_given(policy, tmp_path):
    first = policy.sample(PROBLEMS, n=4, folder=tmp_path, seed=1)
    assert first.lengths.shape == first.correct.shape == (3, 4) and first.limit == 150
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = policy.sample(PROBLEMS, n=4, folder=tmp_path, seed=1)
    assert torch.equal(first.lengths, again.lengths)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    assert torch.equal(policy.sample(PROBLEMS, n=4, seed=1).lengths, first.lengths), "without a folder it is the same"


def test_what_is_cut_off_is_wrong_unless_it_is_kept_as_graded(policy):
    """After 60 tokens tiny-o1 has written a number, and no answer yet."""
    cut = policy.sample(PROBLEMS, n=4, max_new_tokens=60, temperature=0.0)
    assert cut.truncated.all() and not cut.correct.any()
    policy.truncated = "keep"
    kept = policy.sample(PROBLEMS, n=4, max_new_tokens=60, temperature=0.0)
    assert kept.correct.any()


def test_a_reward_of_ones_own_asks_for_what_it_needs_by_name(policy):
    rollouts = policy.sample(PROBLEMS, n=4)
    seen = {}

    def counting(lengths, correct, problems, truncated, state):
        seen.update(state, shape=truncated.shape, problems=problems)
        return -lengths, {"calls": state.get("calls", 0) + 1}

    scored = rollouts.score(counting)
    assert torch.equal(scored.reward, -rollouts.lengths.float()) and scored.state == {"calls": 1}
    assert seen == {"shape": (3, 4), "problems": [p.id for p in PROBLEMS]}
    assert rollouts.score(counting, scored.state).state == {"calls": 2} and seen["calls"] == 1
    named = rollouts.score("kimi", alpha=0.5).reward
    assert torch.equal(named, o1core.rewards.kimi(rollouts.lengths, rollouts.correct, 0.5))


@pytest.mark.parametrize(
    "reward, message",
    [
        (lambda lengths, correct: lengths[:, :1], r"returns \[3, 1\]; it must be a tensor \[3, 4\]"),
        (lambda lengths, correct: lengths / 0 * 0, "numbers that are not finite"),
        (lambda lengths, correct: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda lengths, wrong: lengths, "asks for 'wrong'"),
        (lambda lengths, correct: None, "returns NoneType"),
    ],
)
def test_a_reward_that_fails_is_named(policy, reward, message):
    with pytest.raises(UserError, match=f"--reward <lambda>: .*{message}"):
        policy.sample(PROBLEMS, n=4).score(reward)


def test_a_batch_has_the_reference_of_the_policy_that_sampled(policy):
    trainer = o1core.Trainer(policy, lr=1e-3, ratio="token")
    picked = policy.sample(PROBLEMS, n=4, temperature=1.0).score("accuracy").pick(4)
    late = policy.sample(PROBLEMS, n=4, temperature=1.0).score("accuracy").pick(4)
    batches = list(picked.split(5))
    assert [len(batch) for batch in batches] == [5, 5, 2]
    gaps = [(e.reference - e.logprobs).abs().max() for batch in batches for e in batch]
    assert max(gaps) < 1e-4
    first, second, _ = (trainer.step(batch) for batch in batches)
    assert first["ratio_max"] == pytest.approx(1, abs=1e-4) and second["ratio_max"] > 1.001
    with pytest.raises(UserError, match="trained after it had sampled these rollouts"):
        late.split(5)


def test_a_folder_of_rollouts_is_not_filled_up_by_a_policy_that_moved(policy, tmp_path):
    trainer = o1core.Trainer(policy, lr=1e-3)
    (batch,) = policy.sample(PROBLEMS, n=2, temperature=1.0, folder=tmp_path).score().pick(2).split(6)
    trainer.step(batch)
    with pytest.raises(UserError, match="made with steps 0, not 1; name another folder"):
        policy.sample(PROBLEMS, n=2, temperature=1.0, folder=tmp_path)


def test_pairs_are_picked_by_their_own_objective(policy):
    trainer = o1core.Trainer(policy, objective="dpo", lr=0.0)
    rollouts = policy.sample(PROBLEMS, n=4, temperature=1.0)
    rollouts = o1core.Rollouts(
        [
            dataclasses.replace(
                g, samples=tuple(dataclasses.replace(s, correct=k == 0) for k, s in enumerate(g.samples))
            )
            for g in rollouts.groups
        ],
        rollouts.limit,
        rollouts.reference,
    )
    batches = list(rollouts.score("accuracy").pick(Preference(0.1), cutoff=4000).split(2))
    assert all(len(batch) % 2 == 0 and batch[0].advantage == 1 for batch in batches)
    trainer.step(batches[0])
    with pytest.raises(UserError, match="a batch of 3 examples, of which the objective wants 2 together"):
        trainer.step(batches[0][:1] * 3)


def test_an_objective_and_an_optimiser_of_ones_own(policy):
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    loss = Surrogate(2, "reward", False, "token", 0.2, 0.2)
    trainer = o1core.Trainer(policy, objective=loss, optimiser=lambda named: torch.optim.SGD(named.values()), lr=0.0)
    (batch,) = policy.sample(PROBLEMS, n=2, temperature=1.0).score().pick(2).split(6)
    trainer.step(batch)
    assert all(torch.equal(before[name], p) for name, p in policy.model.named_parameters()), "a rate of 0"
    trainer.step(batch, lr=1e-2)
    assert any(not torch.equal(before[name], p) for name, p in policy.model.named_parameters())


def test_adapters_are_sampled_from_merged_and_saved_merged(policy, tmp_path):
    trainer = o1core.Trainer(policy, lora_rank=4, lr=1e-2, ratio="token")
    for batch in policy.sample(PROBLEMS, n=4, temperature=1.0).score().pick(4).split(4):
        trainer.step(batch)
    policy.save(tmp_path / "pruned")
    greedy = policy.sample(PROBLEMS, n=1, temperature=0.0)
    loaded = o1core.load(tmp_path / "pruned", max_new_tokens=150).sample(PROBLEMS, n=1, temperature=0.0)
    assert torch.equal(greedy.lengths, loaded.lengths)


def test_an_evaluation_is_greedy_and_compared_problem_by_problem(policy):
    before = policy.evaluate(PROBLEMS)
    assert (before.problems, before.samples) == (3, 1)
    found = o1core.compare(before, policy.evaluate(PROBLEMS))
    assert found.accuracy_gain == found.length_cut == 0 and found.paired is not None


OWN = """
import torch
def short(lengths, correct):
    return correct - lengths / lengths.amax(1, keepdim=True)
def flat(lengths, correct):
    return lengths[0]
def nan(lengths, correct):
    return lengths * float("nan")
def bad(lengths, correct):
    raise RuntimeError("no idea")
"""


def test_a_run_trains_on_a_reward_of_ones_own(flags, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(OWN)
    command = ["train", *flags, "--reward", f"{own}:short", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["reward"] == f"{own}:short" and len(settings["reward_print"]) == 64
    rewards = [json.loads(line)["reward"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(-1 <= reward <= 1 for reward in rewards)


@pytest.mark.parametrize(
    "name, message",
    [
        ("flat", r"returns [4]; it must be a tensor [2, 4]"),
        ("nan", "returns numbers that are not finite"),
        ("bad", "RuntimeError: no idea"),
        ("missing", "defines no missing"),
    ],
)
def test_a_reward_that_fails_is_refused_before_anything_is_left_behind(flags, tmp_path, capsys, name, message):
    own = tmp_path / "own.py"
    own.write_text(OWN)
    assert main(["prune", *flags, "--reward", f"{own}:{name}", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"--reward {own}:{name}: " in error and message in error
    assert not (tmp_path / "run").exists()


GRADER = """
import time
def even(text, problem):
    return len(text) % 2 == 0
def hangs(text, problem):
    while True:
        pass
def raises(text, problem):
    raise ValueError("cannot tell")
"""


def test_a_grader_of_ones_own_judges_and_what_it_cannot_is_counted(policy, tmp_path, caplog):
    own = tmp_path / "own.py"
    own.write_text(GRADER)
    policy.grader = f"{own}:even"
    found = policy.sample(PROBLEMS, n=4, temperature=1.0)
    texts = [[policy.tokenizer.decode(s.ids.tolist()) for s in g.samples] for g in found.groups]
    stopped = ~found.truncated
    expected = torch.tensor([[len(text) % 2 == 0 for text in row] for row in texts])
    assert torch.equal(found.correct[stopped], expected[stopped])
    policy.grader = f"{own}:raises"
    assert not policy.sample(PROBLEMS, n=2, temperature=1.0).correct.any()
    assert "cannot tell" in caplog.text


def test_a_grader_that_is_not_there_is_refused(flags, tmp_path, capsys):
    assert main(["prune", *flags, "--grader", "nowhere.py:right", "--out", str(tmp_path / "run")]) == 2
    assert "--grader nowhere.py:right" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_what_the_interface_cannot_do_is_said(policy, tmp_path):
    policy.sample(PROBLEMS, n=2, folder=tmp_path)
    with pytest.raises(UserError, match=r"made with n 2, not 4"):
        policy.sample(PROBLEMS, n=4, folder=tmp_path)
    with pytest.raises(UserError, match=r'made with opening "", not "So "'):
        policy.sample(PROBLEMS, n=2, folder=tmp_path, opening="So ")
    with pytest.raises(UserError, match="two problems have one id"):
        policy.sample([PROBLEMS[0], PROBLEMS[0]], n=2)
    rollouts = policy.sample(PROBLEMS, n=2)
    with pytest.raises(UserError, match="its state cannot be saved as JSON"):
        rollouts.score(lambda lengths, correct, state: (lengths, {"mean": lengths.mean()}))
    assert list(o1core.Picked([], 0, 0, 3).split(4)) == []
    o1core.Trainer(policy, lora_rank=2)
    with pytest.raises(UserError, match="adapters that another Trainer trains"):
        o1core.Trainer(policy, lora_rank=2)
