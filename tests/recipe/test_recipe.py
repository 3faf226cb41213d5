"""Recipes: what ships, what overrides what, and what is refused."""

import json

import pytest

from o1core.cli import main
from o1core.errors import UserError
from o1core.recipe import METHODS, SHIPPED, Recipe, read_recipe


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=lambda p: p.stem)
def test_every_shipped_recipe_reads(path):
    assert Recipe.of(**read_recipe(path.stem)).sampling.samples >= 2


def test_the_paper_recipe_is_section_4_of_the_method():
    paper = Recipe.of(**read_recipe("paper"))
    sampling, reward, objective, optimiser = paper.sampling, paper.reward, paper.objective, paper.optimiser
    assert (sampling.samples, objective.picked, reward.lam, objective.ratio) == (16, 2, 2.0, "sequence")
    assert (optimiser.lr, optimiser.schedule, optimiser.warmup) == (2e-7, "cosine", 0.1)
    assert (optimiser.grad_clip, optimiser.batch) == (10.0, 32)
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens, objective.cutoff) == (0.5, 0.8, 8192, 3072)
    assert (reward.kind, reward.low, reward.high) == ("length-harmonizing", None, None)
    assert (objective.kind, objective.advantage) == ("surrogate", "reward")
    assert paper == Recipe()


def test_the_official_recipe_differs_in_reward_and_ratio_alone():
    paper, official = read_recipe("paper"), read_recipe("official")
    changed = {k: v for k, v in official.items() if paper.get(k) != v}
    assert changed == {"reward_low": -2.0, "reward_high": 4.0, "advantage": "z-score", "ratio": "sequence_mean"}


def dry_run(capsys, *flags) -> dict:
    assert main(["prune", "--dry-run", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_flag_overrides_its_recipe(capsys):
    resolved = dry_run(capsys, "--recipe", "official", "--lam", "5", "--dynamic-sampling", "--limit", "none")
    assert (resolved["lam"], resolved["dynamic_sampling"], resolved["problems"]) == (5.0, True, None)
    assert resolved["ratio"] == "sequence_mean"


def test_a_recipe_file_is_read_and_its_gaps_are_the_defaults(capsys, tmp_path):
    (tmp_path / "mine.json").write_text('{"lr": 1e-6, "rounds": 3}')
    resolved = dry_run(capsys, "--recipe", str(tmp_path / "mine.json"))
    assert resolved == Recipe.of(lr=1e-6, rounds=3).to_json()


def test_variables_of_the_template_are_typed_and_override_the_recipe_one_by_one(capsys, tmp_path):
    (tmp_path / "mine.json").write_text('{"template": {"enable_thinking": true, "style": "short"}}')
    words = "--template enable_thinking=false --template n=3 --template x=1e-1 --template y=1_0 --template z=NaN"
    resolved = dry_run(capsys, "--recipe", str(tmp_path / "mine.json"), *words.split(), "--template", "t=a=b")
    assert resolved["template"] == {
        **{"enable_thinking": False, "style": "short", "n": 3, "x": 0.1, "y": "1_0", "z": "NaN", "t": "a=b"}
    }


def test_cut_off_means_wrong_unless_asked_otherwise():
    assert {Recipe.of(**read_recipe(name)).reward.truncated for name in ("paper", "official", "tiny-o1")} == {"wrong"}
    assert all("truncated" not in settings for settings in METHODS.values())


def test_the_tags_of_a_thought():
    assert Recipe().prompt.tags is None
    assert Recipe.of(thought_tags="<Thought>, </Thought>").prompt.tags == ("<Thought>", "</Thought>")


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"learning_rate": 1}', "learning_rate is not a setting"),
        ('{"lr": "fast"}', 'lr: must be a number, not "fast"'),
        ('{"rounds": true}', "rounds: must be a whole number, not true"),
        ('{"dynamic_sampling": 1}', "dynamic_sampling: must be true or false, not 1"),
        ('{"lr": -1}', "lr: -1.0 is below 0"),
        ('{"learning-rate": 1, "methods": {}}', "learning-rate is not a setting"),
        ('{"temprature": 1}', "did you mean temperature?"),
        ('{"methods": {"sft": {"rounds": 0}}}', "rounds: 0 is below 1"),
        ('{"template": 3}', "template: must be an object, not 3"),
        ('{"ratio": "words"}', 'ratio: "words" is not sequence or sequence_mean or token or cispo'),
        ("[1]", "a recipe is a JSON object"),
        ('{"lr": ', "not valid JSON"),
    ],
)
def test_a_wrong_recipe_file_names_the_key(tmp_path, text, message):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_recipe(str(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"samples": 1}, "--samples: 1 is below 2"),
        ({"picked": 17}, "--picked: 17 of 16"),
        ({"eps_low": -0.1}, "--eps-low"),
        ({"top_p": 0.0}, "--top-p"),
        ({"grad_clip": 0.0}, "--grad-clip"),
        ({"reward_low": 1.0, "reward_high": 0.0}, "--reward-low"),
        ({"train_last_layers": 0}, "--train-last-layers"),
        ({"percentiles": "70-30"}, "--percentiles: 70-30 is not LOW-HIGH"),
        ({"percentiles": "all"}, "--percentiles: all is not"),
        ({"budget_low": 9, "budget_high": 8}, "--budget-low: 9 is above"),
        ({"reward": "l1-max"}, "--reward l1-max: needs --instruction"),
        ({"reward": "lead"}, "--reward lead: needs --length-limit"),
        ({"reward": "lead", "length_limit": 80}, "--length-floor: 1000 is above --length-limit 80"),
        ({"reward": "lead", "length_limit": 8000, "memory_rate": 1.5}, "--memory-rate: 1.5 is above 1"),
        ({"reward": "grpo-lambda", "alpha": 0.4}, "--lam: 2.0 is above 1, the most that --reward grpo-lambda allows"),
        ({"reward": "overlong", "alpha": 1.5}, "--alpha: 1.5 is above 1"),
        ({"reward": "a-dlp", "accuracy_reference": 1.2}, "--accuracy-reference: 1.2 is above 1"),
        ({"memory_rate": -0.1}, "--memory-rate: -0.1 is below 0"),
        ({"retained": 0.0}, "--retained: 0.0 is not above 0"),
        ({"retained": 2.0}, "--retained: 2.0 is above 1"),
        ({"temperature": 0.0}, "--temperature: 16 greedy completions of a problem are all the same"),
        ({"eval_samples": 4}, "--eval-samples: 4 greedy completions of a problem are all the same"),
        ({"thought_tags": "<think>"}, "--thought-tags: <think> is not OPEN,CLOSE"),
        ({"thought_tags": "a,a"}, "--thought-tags: a,a is not OPEN,CLOSE"),
        ({"template": {"messages": 1}}, "--template: messages is set by o1core itself"),
        ({"template": {"a b": 1}}, "--template: a b is no name"),
        ({"template": {"a": [1]}}, r"--template: a: \[1\] is neither true, false, a number nor text"),
        ({"template": {"a": float("inf")}}, "--template: a: inf is neither"),
        ({"reward": "mine.py"}, '--reward: "mine.py" is not FILE.py:function'),
        ({"grader": "mine"}, '--grader: "mine" is not FILE.py:function'),
        (
            {"instruction": "exact", "eval_budget": 9000},
            "--eval-budget: 9000 tokens do not fit within --max-new-tokens",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        Recipe.of(**wrong)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--method", "l1-max", "--instruction", "none"], "--reward l1-max: needs --instruction exact or max"),
        (
            ["--method", "fast-prompt", "--instruction", "none"],
            "--objective none: the base would be compared with itself",
        ),
        (
            ["--method", "crisp", "--instruction", "fast"],
            "--objective crisp: the student is asked without an instruction",
        ),
        (
            ["--method", "hapo", "--rounds", "1"],
            "--reward hapo: refers to the answers of earlier rounds; needs --rounds 2",
        ),
        (["--method", "dot", "--samples", "10", "--picked", "2"], "--reward dot: of ten samples none is 3 deviations"),
        (["--method", "lead", "--length-limit", "none"], "--reward lead: needs --length-limit"),
        (["--method", "grpo-lambda", "--lam", "2"], "--lam: 2.0 is above 1"),
        (["--method", "a-dlp", "--accuracy-reference", "1.5"], "--accuracy-reference: 1.5 is above 1"),
        (["--method", "gfpo", "--retained", "0"], "--retained: 0.0 is not above 0"),
    ],
)
def test_a_method_without_what_it_needs_is_refused_in_one_line(capsys, flags, message):
    assert main(["prune", "--dry-run", *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_an_unknown_recipe_names_those_that_ship(capsys):
    assert main(["prune", "--recipe", "fast", "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "marco-o1, official, paper, qwen3-1.7b, qwen3-4b, qwen3-8b, qwq-32b, r1-distill-1.5b, tiny-o1" in error


@pytest.mark.parametrize("method", METHODS)
def test_every_method_fits_the_recipes_that_ship(method):
    for name in (path.stem for path in SHIPPED.glob("*.json")):
        Recipe.of(**read_recipe(name, method))


def test_phases_count_the_evaluations_between_rounds():
    plain, validated = Recipe.of(rounds=2), Recipe.of(rounds=2, eval_every="round", validation_problems=8)
    parts = [plain.phase(index, part) for index in (0, 1) for part in (0, 1)]
    assert [*parts, plain.phase()] == ["2/6", "3/6", "4/6", "5/6", "6/6"]
    parts = [validated.phase(-1, 2)] + [validated.phase(index, part) for index in (0, 1) for part in (0, 1, 2)]
    assert [*parts, validated.phase()] == [f"{n}/9" for n in range(2, 10)]
    assert Recipe.of(objective="none", instruction="fast").phase() == "2/2"
