"""bench.controls: which problems are left for its test, and what it says of the rows."""

import json

import numpy as np
import pytest

from bench import controls, qwen_gsm8k
from o1core.errors import UserError
from o1core.metrics import Answers, paired
from o1core.problems import load_problems


def test_what_the_stages_train_on_or_choose_by_is_left_out(tmp_path):
    """Against the files that bench.qwen_gsm8k writes, drawn from as its stages do."""
    data = tmp_path / "gsm8k.jsonl"
    data.write_text(
        "".join(json.dumps({"question": f"{n} + 1?", "answer": f"#### {n + 1}"}) + "\n" for n in range(1600))
    )
    problems = load_problems(data)
    qwen_gsm8k.split(data, tmp_path)
    used = {p.id for p in load_problems(tmp_path / "validation.jsonl")}
    for stage in qwen_gsm8k.STAGES:
        of = stage.selection
        used |= {p.id for p in load_problems(tmp_path / "train.jsonl", shuffle_seed=of.shuffle_seed, limit=of.problems)}
    assert controls.drawn_before(problems) == used

    controls.split(problems, tmp_path / "controls", 20, 30)
    train, test = ({p.id for p in load_problems(tmp_path / f"controls/{n}.jsonl")} for n in ("train", "second-test"))
    assert (len(train), len(test)) == (20, 30) and not train & test and not (train | test) & used
    with pytest.raises(UserError, match="fewer --tests fit"):
        controls.split(problems, tmp_path / "controls", 20, 1600)


def answered(right: list[int], tokens: list[int]) -> Answers:
    return Answers([str(i) for i in range(len(right))], np.array(tokens)[:, None], np.array(right)[:, None])


def test_the_table_holds_every_row_against_the_base_and_the_papers_row_less_each_other():
    base = answered([1, 0, 1, 0] * 10, [40, 60, 50, 50] * 10)
    rows = {"paper": answered([1, 1, 1, 0] * 10, [20, 40, 30, 30] * 10), "sft": answered([1, 0, 0, 0] * 10, [10] * 40)}
    found = controls.compare(base, rows)
    assert (found["base"].accuracy, found["base"].tokens, found["base"].change) == (0.5, 50.0, None)
    assert found["paper"].change == paired(base, rows["paper"]) and found["paper"].paper_less is None
    assert found["sft"].paper_less == paired(rows["sft"], rows["paper"])
    lines = controls.table(found).splitlines()
    assert len(lines) == 2 + 3 and len({line.count("|") for line in lines}) == 1
    assert lines[3].startswith("| paper | 75.0 % | 30.0 | +25.0 (") and "| 40.0 % |" in lines[3]
    assert "+50.0 (" in lines[4] and "+20.0 (" in lines[4]
