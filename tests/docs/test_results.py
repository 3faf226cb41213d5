"""The figures of the README are those of the result files."""

import re
import runpy
from pathlib import Path
from statistics import mean

import pytest

from o1core.files import read_json
from o1core.metrics import over_seeds

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TINY_O1 = read_json(ROOT / "bench" / "results" / "tiny_o1.json")
QWEN = read_json(ROOT / "bench" / "results" / "qwen_gsm8k.json")
LABELS = {
    "tiny-o1": "tiny-o1: the paper's reward, two rounds",
    "lambda 0": "without correctness (lambda 0)",
    "sft": "SFT on the two shortest right samples",
    "sft x 2": "SFT, two rounds",
    "paper": "the paper's schedule: one round, 6 steps",
    "official": "the official code's schedule: 6 steps",
}


def figures(label: str) -> list[float]:
    """The numbers in the README's row of this label."""
    cells = re.search(rf"^\| {re.escape(label)} \|(.*)$", README, re.M)[1]
    return [float(number) for number in re.findall(r"-?[\d.]+", cells)]


@pytest.mark.parametrize("recipe", LABELS)
def test_the_table_of_tiny_o1_holds_the_means_of_its_seeds(recipe):
    runs = TINY_O1[recipe]
    accuracy, tokens = (mean(run["pruned"][key] for run in runs) for key in ("accuracy", "mean_tokens"))
    cut, scores = mean(run["length_cut"] for run in runs), [run["aes"] for run in runs]
    shown = figures(LABELS[recipe])
    assert shown[:3] == pytest.approx([100 * accuracy, tokens, 100 * cut], abs=0.0501)  # to one digit
    score = over_seeds(scores)
    assert shown[3:] == pytest.approx([score.mean, score.low, score.high], abs=0.00501)


def test_the_base_row_holds_the_means_of_the_same_seeds():
    base = [run["base"] for run in TINY_O1["tiny-o1"]]
    lengths = [e["mean_tokens"] for e in base]
    assert all([run["base"]["mean_tokens"] for run in runs] == lengths for runs in map(TINY_O1.get, LABELS))
    assert figures("base") == pytest.approx([100 * mean(e["accuracy"] for e in base), mean(lengths)], abs=0.0501)


def test_the_last_row_is_the_ceiling_of_the_same_seeds():
    ideal, base = ([run[key] for run in TINY_O1[name]] for name, key in (("ideal", "pruned"), ("tiny-o1", "base")))
    accuracy, tokens = (mean(e[key] for e in ideal) for key in ("accuracy", "mean_tokens"))
    cut = mean(1 - i["mean_tokens"] / b["mean_tokens"] for i, b in zip(ideal, base))
    assert figures("ideal policy") == pytest.approx([100 * accuracy, tokens, 100 * cut], abs=0.0501)


def test_the_sentence_about_sft_holds_the_difference_and_its_interval_over_the_seeds():
    own, sft = ([run["pruned"] for run in TINY_O1[name]] for name in ("tiny-o1", "sft x 2"))
    points, tokens = (over_seeds([o[key] - s[key] for o, s in zip(own, sft)]) for key in ("accuracy", "mean_tokens"))
    sentence = re.search(r"^Against SFT of as many rounds: (.*)$", README, re.M)[1].split(", AES")[0]
    shown = [float(number) for number in re.findall(r"[-+][\d.]+", sentence)]
    expected = [100 * points.mean, 100 * points.low, 100 * points.high, tokens.mean, tokens.low, tokens.high]
    assert shown == pytest.approx(expected, abs=0.0501)


def test_the_real_models_figures_are_those_of_its_result_file():
    result, gain = QWEN["result"], QWEN["paired"]["test"]["accuracy"]
    text = README.replace("\n", " ")
    assert f"the {result['base']['problems']:,} test problems" in text
    assert f"{100 * result['length_cut']:.1f} % fewer tokens" in text
    low, high = (format(100 * gain[end], "+.1f") for end in ("low", "high"))
    assert f"{100 * result['accuracy_gain']:+.1f} points of accuracy ({low} to {high}), AES {result['aes']:.2f}" in text


def test_the_chart_is_drawn_from_the_result_file(tmp_path):
    script = runpy.run_path(str(ROOT / "bench" / "tiny_o1.py"))
    script["draw"](TINY_O1, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes()[:4] == b"\x89PNG"
