"""bench.make_tiny_o1: what its batches count, stage by stage, and a model of a few steps from end to end."""

import re

import pytest

from bench import make_tiny_o1, tiny_o1_behaviour
from bench.make_tiny_o1 import STAGES, batches, main, write_tokenizer_and_configs
from o1core.model import Tokenizer, read_config


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer_and_configs(folder)
    return Tokenizer(folder, read_config(folder).vocab_size)


def counted(tokenizer, batch) -> list[str]:
    """The text that the loss counts, row by row."""
    ids, counts = batch
    return [tokenizer.decode(row[mask].tolist(), special=True) for row, mask in zip(ids, counts)]


def test_whole_completions_count_and_the_token_that_ends_them(tokenizer):
    stream = batches(tokenizer, 1, 1000)
    for text in [text for _ in range(10) for text in counted(tokenizer, next(stream))]:
        assert text.startswith("First I ") and text.count("Final answer") == 1 and text.endswith("}<|im_end|>")


def test_right_sums_come_before_slips(tokenizer):
    stream = batches(tokenizer, 0, 150)
    texts = ["".join(text for _ in range(5) for text in counted(tokenizer, next(stream)))]
    for _ in range(125):
        next(stream)
    texts.append("".join(text for _ in range(20) for text in counted(tokenizer, next(stream))))
    wrong = []
    for text in texts:
        sums = re.findall(r"(\d+)([-+*])(\d+)=(\d+)", text)
        wrong.append(sum({"+": a + b, "-": a - b, "*": a * b}[op] != c for a, op, b, c in as_numbers(sums)) / len(sums))
    assert wrong[0] == 0 and 0.005 < wrong[1] < 0.1


def as_numbers(sums):
    return [(int(a), op, int(b), int(c)) for a, op, b, c in sums]


def test_the_stages_end_with_the_law_that_the_model_is_meant_to_follow():
    assert [s.until for s in STAGES] == sorted(s.until for s in STAGES)
    assert STAGES[-1] == (1.0, make_tiny_o1.LAW)


def test_a_model_of_a_few_steps_and_a_folder_that_exists(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tiny_o1_behaviour, "EVALUATED", 24)
    monkeypatch.setattr(tiny_o1_behaviour, "LONGEST", 8)
    out = tmp_path / "model"
    assert main(["--steps", "3", "--out", str(out)]) == 0
    assert "python -m bench.make_tiny_o1 --steps 3 --seed 0\n" in (out / "README.md").read_text()
    capsys.readouterr()
    assert main(["--steps", "1", "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
