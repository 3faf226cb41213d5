"""Where an answer is looked for: after the thought, and in whole completions only."""

import pytest

from o1core.errors import UserError
from o1core.grading import Attempt, Grader, ThoughtTags, after_thought, leaves_thought_open

MARCO = ThoughtTags(opens=("<Thought>",), closes=("</Thought>",))
SKY = ThoughtTags(opens=("<|begin_of_thought|>",), closes=("<|end_of_thought|>",))


@pytest.fixture(scope="module")
def grader():
    with Grader(workers=1) as grader:
        yield grader


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("no thought at all", "no thought at all"),
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),  # the prompt opened it
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>a", None),
        ("<think>a</think>b<think>c", None),
        ("<think>a<think>b</think>c", "c"),  # a second tag within a thought opens no second one
        ("", ""),
    ],
)
def test_the_part_after_the_last_thought(text, rest):
    assert after_thought(text) == rest


def test_a_thought_that_the_prompt_opened():
    assert after_thought("2 + 2 makes 4", in_thought=True) is None
    assert after_thought("2 + 2</think> makes 4", in_thought=True) == " makes 4"


def test_tags_of_the_checkpoint_s_own():
    assert after_thought("<Thought>5</Thought>\n<Output>6</Output>", MARCO) == "\n<Output>6</Output>"
    assert after_thought("<Thought>5\n<Output>6", MARCO) is None
    assert after_thought("<|begin_of_thought|>5", SKY) is None
    assert after_thought("<think>5", SKY) == "<think>5"  # plain text to this checkpoint


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),  # thinking switched off
        ("What does <think> do?<|im_end|>\n<|im_start|>assistant\n", False),
        ("<|im_start|>assistant\n", False),
    ],
)
def test_whether_a_prompt_leaves_a_thought_open(prompt, is_open):
    assert leaves_thought_open(prompt) is is_open


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("<think>It is \\boxed{4}", "4", False),
        ("<think>\nmaybe 3, then 4", "4", False),
        ("<think>The answer is 4.</think>\nI cannot say.", "4", False),
        ("<think>Try \\boxed{4}? No.</think> The answer is \\boxed{6}.", "4", False),
        ("<think>Try \\boxed{4}? No.</think> The answer is \\boxed{6}.", "6", True),
        ("<think>Try \\boxed{4}? No, that fails.</think> The answer is 5.", "5", True),
        ("2+2 makes 4.\n</think>\n\n\\boxed{4}", "4", True),
        ("<think>a</think> So \\boxed{12}. <think>or perhaps 13", "12", False),
    ],
)
def test_no_answer_is_taken_from_a_thought(grader, text, gold, right):
    assert grader.grade_many([Attempt(text, gold)])[0].correct is right


def test_a_thought_without_an_end_is_no_answer(grader):
    before = grader.counts["no answer"]
    verdicts = grader.grade_many([Attempt("<think>4", "4"), Attempt("so 4", "4", in_thought=True)])
    assert [(v.correct, v.answer, v.fault) for v in verdicts] == [(False, None, "no answer")] * 2
    assert grader.counts["no answer"] == before + 2


CUT = [
    ("we have 3 and then 4", False),
    ("The answer is 4. Let me check: 2 +", False),
    ("It is \\boxed{4}. Let me check: 2 +", True),
    ("It is \\boxed{4", False),
    ("<think>\\boxed{4} or", False),
    ("<think>\\boxed{5}</think>so 4 is", False),
    ("<think>\\boxed{5}</think>so \\boxed{4} is", True),
]


@pytest.mark.parametrize(("text", "right"), CUT)
def test_a_completion_that_was_cut_off_is_wrong_without_a_box(grader, text, right):
    assert grader.grade_many([Attempt(text, "4", cut_off=True)])[0].correct is right


def test_cut_off_is_counted_and_can_be_switched_off():
    with Grader(workers=1) as strict, Grader(workers=1, truncated="keep") as lenient:
        cut = [Attempt(text, "4", cut_off=True) for text, _ in CUT[:2]]
        assert [v.fault for v in strict.grade_many(cut)] == ["cut off"] * 2
        assert strict.counts["cut off"] == 2
        assert lenient.grade_many([Attempt("we have 3 and then 4", "4", cut_off=True)])[0].correct
        # The rule about thoughts stays on.
        assert lenient.grade_many([Attempt("<think>so 4", "4", cut_off=True)])[0].fault == "no answer"
    with pytest.raises(UserError, match="truncated"):
        Grader(truncated="mask")
