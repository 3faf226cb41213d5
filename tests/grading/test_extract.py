"""Finding the answer in a completion."""

import pytest

from o1core.grading import extract_answer, extract_final


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"First \boxed{3}. Wait, that is wrong: \boxed{4}", "4"),
        (r"\boxed{\frac{1}{\sqrt{2}}} holds.", r"\frac{1}{\sqrt{2}}"),
        (r"so \boxed{\{ x | x > \frac{1}{2} \}}", r"\{ x | x > \frac{1}{2} \}"),
        (r"\boxed{\left\{ 3 \right.}", r"\left\{ 3 \right."),
        (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"so \fbox{7}", "7"),
        (r"\boxed{12} and then \boxed{13", "12"),
        (r"\boxed{12 and then \boxed{13}", "13"),
        (r"a stray } and { around \boxed{5} }", "5"),
        (r"the answer is $\boxed 2$.", "2"),
        (r"Put it in \boxed{}. It is \boxed{6}. I used \boxed{}.", "6"),
        (r"The answer is \boxed{}, that is 8", "8"),
        ("18 + 2 = 20\n#### 1,234", "1,234"),
        ("#### Step 3: add\nso we get 17", "17"),
        ("The answer is (b).", "B"),
        ("Answer: C", "C"),
        ("**Answer: B**\n", "B"),
        ("Answer: A train leaves at 5", "5"),
        ("The answer is B. There were 12 of them", "B"),
        ("It makes 1,234.5 in all.", "1,234.5"),
        ("so x = -3.", "-3"),
        ("10-3=7 and 10-3", "3"),
        ("about 3/4 of it", "3/4"),
        (r"which leaves \frac{3}{4} of it", r"\frac{3}{4}"),
        ("we have 3, 4, and 5 apples.", "5"),
        ("Water is H2O and costs $6", "6"),
        ("it grew by 50%", "50%"),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 100_000,
        r"\boxed" + " " * 500_000,
        "####" + "\n" * 500_000 + "x",
        "#### " * 100_000,
        "answer is " + " " * 500_000 + "x",
        "the answer is (" * 50_000,
        "answer is B" + "*" * 500_000 + "x",
    ],
)
def test_extraction_takes_linear_time(text):
    # Anything quadratic in half a million characters would take hours and meet the test's time limit.
    assert extract_answer(text) is None


def test_finding_the_last_number_takes_linear_time():
    assert extract_answer("1" + ",111" * 100_000 + "1") == "1111"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So \\boxed{1 2\n3 4}. Done", "1 2\n3 4"),
        (r"\boxed{\text{True}} it is", "True"),
        ('\\boxed{{"a": 1}}', '{"a": 1}'),
        ("<answer>\nno\n</answer> <answer> yes\nno </answer> bye", "yes\nno"),
        ("The answer is 5. No: the answer is **abc**", "abc"),
        ("Answer:\n\n1 2\n3 4\n\nI am sure.", "1 2\n3 4"),
        ("Final answer: `B A`\nThank you", "B A"),
        ("I think\n\n  left, right \n", "left, right"),
        ("answer is", "answer is"),
        (" \n", None),
    ],
)
def test_extract_final(text, answer):
    assert extract_final(text) == answer


@pytest.mark.parametrize(
    "text", ["answer is " * 50_000, "answer" + " " * 500_000, "<answer>" * 100_000, "\n" * 500_000]
)
def test_extraction_of_any_answer_takes_linear_time(text):
    assert extract_final(text) in (text.strip().rpartition("\n")[2] or None, "answer is")
