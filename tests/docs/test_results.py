"""The figures of the README are those of the result files."""

import re
import runpy
from pathlib import Path
from statistics import mean

import pytest

from bench.controls import Found, table
from o1core.files import read_json
from o1core.metrics import over_seeds
from o1core.records import from_json

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGE = (ROOT / "bench" / "results" / "tiny_o1.md").read_text()
SIX = read_json(ROOT / "bench" / "results" / "tiny_o1.json")  # recipes, three seeds
TEN = read_json(ROOT / "bench" / "results" / "tiny_o1_ten_seeds.json")  # seeds, three recipes
QWEN = read_json(ROOT / "bench" / "results" / "qwen_gsm8k.json")
LABELS = {
    "tiny-o1": "tiny-o1: the paper's reward, two rounds",
    "sft": "SFT on the two shortest right samples",
    "sft x 2": "SFT, two rounds",
}


def figures(label: str, text: str = README) -> list[float]:
    """The numbers in the text's row of this label."""
    cells = re.search(rf"^\| {re.escape(label)} \|(.*)$", text, re.M)[1]
    return [float(number) for number in re.findall(r"-?[\d.]+", cells)]


def of_seeds(runs: list[dict], *keys: str, factor: float = 1.0) -> list[float]:
    """The mean of one figure over the seeds, with the ends of its interval."""
    values = []
    for run in runs:
        for key in keys:
            run = run[key]
        values.append(factor * run)
    found = over_seeds(values)
    return [found.mean, found.low, found.high]


@pytest.mark.parametrize("recipe", LABELS)
def test_the_readmes_table_of_tiny_o1_holds_the_means_of_ten_seeds(recipe):
    runs = TEN[recipe]
    assert len(runs) == 10
    tokens, cut = of_seeds(runs, "pruned", "mean_tokens")[0], of_seeds(runs, "length_cut", factor=100)[0]
    shown = figures(LABELS[recipe])
    accuracy = of_seeds(runs, "pruned", "accuracy", factor=100)
    assert shown[:5] == pytest.approx([*accuracy, tokens, cut], abs=0.0501)  # to one digit
    assert shown[5:] == pytest.approx(of_seeds(runs, "aes"), abs=0.00501)


@pytest.mark.parametrize(
    "results, recipe", [(of, recipe) for of in (TEN, SIX) for recipe in of if recipe != "ideal"], ids=str
)
def test_the_pages_tables_hold_the_means_of_their_seeds(results, recipe):
    part = PAGE[PAGE.index("## Six recipes") :] if results is SIX else PAGE
    shown, runs = figures(recipe, part), results[recipe]
    assert shown[:3] == pytest.approx(of_seeds(runs, "pruned", "accuracy", factor=100), abs=0.0501)
    assert shown[3:6] == pytest.approx(of_seeds(runs, "pruned", "mean_tokens"), abs=0.0501)
    assert shown[9:12] == pytest.approx(of_seeds(runs, "length_cut", factor=100), abs=0.0501)
    assert shown[12:] == pytest.approx(of_seeds(runs, "aes"), abs=0.00501)


def test_the_base_row_holds_the_means_of_the_same_seeds():
    runs = TEN["tiny-o1"]
    lengths = [run["base"]["mean_tokens"] for run in runs]
    assert all([run["base"]["mean_tokens"] for run in TEN[recipe]] == lengths for recipe in LABELS)
    expected = [*of_seeds(runs, "base", "accuracy", factor=100), mean(lengths)]
    assert figures("base") == pytest.approx(expected, abs=0.0501)


def test_the_last_row_is_the_ceiling_of_the_same_seeds():
    ideal, base = ([run[key] for run in TEN[name]] for name, key in (("ideal", "pruned"), ("tiny-o1", "base")))
    accuracy, tokens = (mean(e[key] for e in ideal) for key in ("accuracy", "mean_tokens"))
    cut = mean(1 - i["mean_tokens"] / b["mean_tokens"] for i, b in zip(ideal, base))
    assert figures("ideal policy") == pytest.approx([100 * accuracy, tokens, 100 * cut], abs=0.0501)


def test_the_sentence_about_sft_holds_the_differences_and_their_intervals_over_the_seeds():
    own, sft = TEN["tiny-o1"], TEN["sft x 2"]
    differences = [
        {key: o["pruned"][key] - s["pruned"][key] for key in ("accuracy", "mean_tokens")} | {"aes": o["aes"] - s["aes"]}
        for o, s in zip(own, sft)
    ]
    text = README.replace("\n", " ")
    sentence = re.search(r"against SFT of as many rounds: (.*?)\. Better", text)[1]
    shown = [float(number) for number in re.findall(r"[-+][\d.]+\d", sentence)]
    expected = [*of_seeds(differences, "accuracy", factor=100), *of_seeds(differences, "mean_tokens")]
    assert shown[:6] == pytest.approx(expected, abs=0.0501)
    assert shown[6:] == pytest.approx(of_seeds(differences, "aes"), abs=0.00501)


def test_the_real_models_figures_are_those_of_its_result_file():
    result, gain = QWEN["result"], QWEN["paired"]["test"]["accuracy"]
    text = README.replace("\n", " ")
    assert f"the {result['base']['problems']:,} test problems" in text
    assert f"{100 * result['length_cut']:.1f} % fewer tokens" in text
    low, high = (format(100 * gain[end], "+.1f") for end in ("low", "high"))
    assert f"{100 * result['accuracy_gain']:+.1f} points of accuracy ({low} to {high}), AES {result['aes']:.2f}" in text


def test_the_chart_is_drawn_from_the_result_file(tmp_path):
    script = runpy.run_path(str(ROOT / "bench" / "tiny_o1.py"))
    script["draw"](SIX, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes()[:4] == b"\x89PNG"


def test_the_table_of_controls_is_that_of_its_result_file():
    page = (ROOT / "bench" / "results" / "qwen_gsm8k.md").read_text()
    held = read_json(ROOT / "bench" / "results" / "qwen_controls.json")
    assert held.pop("problems") == 300
    rows = {name: from_json(Found, row, name) for name, row in held.items()}
    assert table(rows) in page
