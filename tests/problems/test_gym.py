import ast
import importlib.util
import json
import sys

import pytest

from o1core.cli import main
from o1core.errors import UserError
from o1core.grading import MAX_TASK_ANSWER_CHARS, Attempt, Grader, grade
from o1core.problems import find_overlap, gym_problems
from o1core.problems.gym import CLOSING
from o1core.rollout import read_groups

library = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="the extra o1core[gym] is not installed"
)
# Of different kinds: a number, a word, yes or no, a board of several lines, an expression that sympy parses, a path with
# other right answers, text that eval reads, a list whose gold answer it reads, an integral.
TASKS = [
    "chain_sum",
    "spell_backward",
    "syllogism",
    "mini_sudoku",
    "countdown",
    "n_queens",
    "number_sorting",
    "simple_integration",
]

WRONG = {"syllogism": "maybe", "simple_integration": "2*x*y"}  # where the gold answer and a "1" may be right


@pytest.fixture(scope="module")
def grader():
    with Grader(workers=1, seconds=20) as grader:
        yield grader


@pytest.fixture(scope="module")
def made():
    return {name: gym_problems(name, 4, seed=0) for name in TASKS}


def graded(grader, rows):
    """Verdicts of (completion text, gold answer, task) rows."""
    return grader.grade_many([Attempt(*row) for row in rows])


def verdicts(grader, problems, answers):
    return [v.correct for v in graded(grader, [(text, p.answer, p.task) for p, text in zip(problems, answers)])]


@library
@pytest.mark.parametrize("name", TASKS)
def test_gold_answers_are_right_and_others_wrong(grader, made, name):
    problems = made[name]
    assert verdicts(grader, problems, [rf"I think 1.\n\boxed{{{p.answer}}}" for p in problems]) == [True] * 4
    assert verdicts(grader, problems, [f"<answer>{p.answer}</answer>" for p in problems]) == [True] * 4
    wrong = [WRONG.get(name, f"{p.answer}1") for p in problems]
    assert verdicts(grader, problems, [rf"\boxed{{{text}}}" for text in wrong]) == [False] * 4


@library
def test_a_problem_asks_for_a_box_and_carries_its_task(made):
    problem = made["chain_sum"][0]
    assert problem.question.endswith(f"\n\n{CLOSING}")
    assert (problem.subject, problem.level) == ("chain_sum", None)
    assert ast.literal_eval(problem.task)["dataset"] == "chain_sum"
    assert ast.literal_eval(problem.task)["entry"]["answer"] == problem.answer


@library
def test_another_right_answer_than_the_gold_one_is_right(grader, made):
    problem = made["countdown"][0]
    assert verdicts(grader, [problem], [rf"\boxed{{({problem.answer}) + 0*0}}"]) == [
        False
    ]  # uses numbers it was not given
    assert verdicts(grader, [problem], [rf"\boxed{{0 + ({problem.answer})}}"]) == [False]
    assert verdicts(grader, [problem], [rf"\boxed{{ ( {problem.answer} ) }}"]) == [True]


@library
def test_seeds_make_other_problems_and_a_seed_the_same(made):
    assert gym_problems("chain_sum", 4, seed=0) == made["chain_sum"]
    other = gym_problems("chain_sum", 4, seed=1)
    assert find_overlap(made["chain_sum"], other) == []
    assert find_overlap(made["chain_sum"], [other[0], made["chain_sum"][2]]) == [made["chain_sum"][2]]


@library
def test_the_same_problems_whatever_the_hash_seed(monkeypatch):
    # word_ladder walks through sets of words, whose order a process draws at random.
    first = gym_problems("word_ladder", 3, seed=0)
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    assert gym_problems("word_ladder", 3, seed=0) == first


@library
def test_a_hostile_answer_runs_nothing(grader, made, tmp_path):
    # The scorers of n_queens, countdown and simple_integration come to eval the answer.
    target = tmp_path / "touched"
    program = f"__import__('os').system('touch {target}')"
    eval(program.replace("touched", "by-hand"))
    for text in (program, f"[{program}]", f"open('{target}', 'w')", f"exec({program!r})"):
        problems = [made[name][0] for name in TASKS]
        assert verdicts(grader, problems, [f"<answer>{text}</answer>"] * len(problems)) == [False] * len(problems)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["by-hand"]


@library
def test_an_answer_that_hangs_its_scorer_is_wrong(made):
    problem = made["countdown"][0]
    with Grader(workers=1, seconds=1) as grader:
        pairs = [(rf"\boxed{{{text}}}", "", problem.task) for text in ("9**9**9**9", problem.answer)]
        assert [(v.correct, v.fault) for v in graded(grader, pairs)] == [(False, "timeout"), (True, None)]


@library
def test_no_number_is_not_the_right_number(grader):
    # Its scorer takes min(1.0, exp(-distance)), which is 1.0 where the distance is not a number.
    problems = gym_problems("complex_arithmetic", 2, seed=0)
    texts = [rf"\boxed{{{problems[0].answer}}}", r"\boxed{nan}"]
    assert verdicts(grader, problems, texts) == [True, False]
    assert verdicts(grader, problems, [r"\boxed{nan+nani}", r"\boxed{inf}"]) == [False, False]


@library
def test_a_task_s_answer_in_the_mix_with_others(grader, made):
    task = made["spell_backward"][0]
    found = graded(grader, [(rf"\boxed{{{task.answer}}}", task.answer, task.task), (r"\boxed{1+x}", "x+1", None)])
    assert [v.correct for v in found] == [True, True]
    assert grade(f"Answer: {task.answer}", task.answer, task.task)
    found = graded(grader, [("", "", task.task), ("a" * (MAX_TASK_ANSWER_CHARS + 1), "", task.task)])
    assert [v.fault for v in found] == ["no answer", "too long"]


def test_a_task_that_cannot_be_scored_is_an_error_and_not_a_wrong_answer():
    task = repr({"dataset": "no_such_task", "entry": {"answer": "1", "metadata": {}}})
    with Grader(workers=1) as grader, pytest.raises(UserError, match="pip install reasoning-gym"):
        graded(grader, [(r"\boxed{1}", "1", task)])


def test_a_missing_library_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"reasoning-gym:chain_sum: .* pip install reasoning-gym") as caught:
        gym_problems("chain_sum", 1, seed=0)
    assert "\n" not in str(caught.value)


@library
@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("chain_sums", 1, "no such task; did you mean chain_sum or "),
        ("???", 1, "no such task; there are: ab, "),
        ("chain_sum", 0, "at least 1"),
        ("needle_haystack\n", 1, "no such task; did you mean needle_haystack"),
        ("coin_flip", 1, "cannot be used: its scorer"),
        ("tower_of_hanoi", 200, "different problems under this seed; ask for no more"),
    ],
)
def test_bad_names_and_counts_are_told(name, count, message):
    with pytest.raises(UserError, match=message):
        gym_problems(name, count, seed=0)


@library
def test_a_whole_run_on_a_task(checkpoint, tmp_path):
    flags = [
        "--model",
        str(checkpoint),
        "--device",
        "cpu",
        "--samples",
        "4",
        "--picked",
        "4",
        "--problems",
        "6",
        "--eval-problems",
        "3",
        "--max-new-tokens",
        "8",
        "--temperature",
        "1",
        "--cutoff",
        "600",
    ]
    task = "reasoning-gym:chain_sum"
    run = tmp_path / "run"
    assert main(["prune", *flags, "--data", task, "--eval-data", task, "--out", str(run)]) == 0
    tested = json.loads((run / "after" / "chain_sum" / "problems.json").read_text())["problems"]
    trained = {group.problem for group in read_groups(run / "round-00" / "rollouts")}
    assert len(tested) == 3 and len(trained) == 6 and not trained & {p["id"] for p in tested}


@library
def test_an_unknown_task_is_one_line_and_status_2(checkpoint, capsys):
    assert main(["prune", "--model", str(checkpoint), "--data", "reasoning-gym:chain_sums"]) == 2
    error = capsys.readouterr().err
    assert "no such task; did you mean chain_sum" in error and error.count("\n") == 1
