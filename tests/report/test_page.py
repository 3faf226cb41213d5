"""The report page: its numbers, and what a stranger's text cannot do in it."""

import json
import re

import pytest

from o1core.charts import Line, spread_out, to_svg
from o1core.files import write_json
from o1core.report.page import write_page
from o1core.report.page.writer import embed
from o1core.report.run_charts import curves
from o1core.tables import minus
from tests.report.page_cases import (
    AGAIN,
    ANSWER,
    EVIL,
    FIRST,
    Tags,
    page_of,
    plain_test,
    problem,
    write_log,
    write_run,
    write_study,
)


def test_the_table_of_a_run_holds_its_numbers(made, page):
    words = Tags(page).words()
    base = json.loads((made / "run" / "result.json").read_text())["base"]
    assert base["accuracy"] == 0.75  # three of four by hand
    assert f"arithmetic base 75.0 % 37.5 to 87.5 % 12.5 % {base['mean_tokens']:.1f} " in words
    pruned = len(FIRST + ANSWER) + 1  # a byte is a token, and one ends the text
    assert (
        f"arithmetic pruned 75.0 % 37.5 to 87.5 % 12.5 % {pruned}.0 {pruned} arithmetic change +0.0 points −" in words
    )
    assert f"−{100 * (1 - pruned / base['mean_tokens']):.1f} %" in words
    assert "2 problems, 2 completions of each" in words


def test_every_chart_has_its_numbers_beside_it(page):
    tags = Tags(page)
    titles = (
        "Length of completions",
        "Accuracy against length",
        "Each problem",
        "Length by difficulty",
        "Reward",
        "Clip fraction",
        "Length of what is trained on",
        "Ratio to the reference",
        "KL from the reference (estimate)",
    )
    for title in titles:
        assert f"{title} " in tags.words()
        assert ("div", f"Numbers of {title}") in [(tag, a.get("aria-label")) for tag, a in tags.found]
        assert any(tag == "svg" and a["aria-label"].startswith(title) for tag, a in tags.found)
    assert "First to last step: 0.5 to 3." in tags.words()  # the reward, and the clip fraction in percent
    assert "First to last step: 10 to 60." in tags.words()
    lengths = [len(FIRST + again + ANSWER) + 1 for again in (AGAIN, AGAIN * 2)]
    assert re.search(rf"level 1 1 {sum(lengths) / 2:.1f} {len(FIRST + ANSWER) + 1}.0", tags.words())


def test_thirds_stand_in_where_problems_have_no_level(tmp_path, model):
    problems = [problem(f"p-{i}") for i in range(3)]
    texts = [[("a b", k < i) for k in range(2)] for i in range(3)]
    write_run(tmp_path / "run", model, {"plain": (problems, texts, texts)})
    assert "hardest third 1 4.0 4.0 +0.0 % 0.0 % 0.0 % middle third 1 4.0" in Tags(page_of(tmp_path / "run")).words()


def test_several_tests_have_an_average(tmp_path, model):
    result = write_run(tmp_path / "run", model, {"one": plain_test(), "two": plain_test(3)})
    words = Tags(page_of(tmp_path / "run")).words()
    assert f"average base {100 * result['base']['accuracy']:.1f} % " in words
    assert "Test: one" in words and "Test: two" in words


def test_a_run_without_a_clipped_objective_has_the_curves_it_logged(tmp_path, model):
    write_run(tmp_path / "run", model, {"arithmetic": plain_test()})
    words = Tags(page_of(tmp_path / "run")).words()
    assert "No optimiser step was logged" in words and "Reward" not in words  # fast-prompt trains nothing
    write_log(tmp_path / "run", ratio_mean=None, clip_fraction=None, approx_kl=None)
    words = Tags(page_of(tmp_path / "run")).words()
    assert "Reward" in words and "Clip fraction" not in words


def test_the_page_loads_nothing_and_has_no_stray_ids(page):
    tags = Tags(page)
    for _, attributes in tags.found:
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page and "<link" not in page
    ids = [a["id"] for _, a in tags.found if "id" in a]
    assert len(ids) == len(set(ids))
    used = {*re.findall(r"url\(#([^)]+)\)", page), *(a["href"][1:] for t, a in tags.found if t in ("use", "a"))}
    assert used <= set(ids)
    policy = next(a["content"] for t, a in tags.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe-inline" not in policy.split(";")[1]


def test_the_same_runs_give_the_same_bytes(made, page, tmp_path):
    assert write_page([made / "run"], tmp_path / "again.html").read_text() == page


def test_a_strangers_text_makes_no_element(evil_page):
    tags = Tags(evil_page)
    assert [t for t, _ in tags.found].count("script") == 2  # the data and the browser
    assert not any(t == "img" or any(name.startswith("on") for name in a) for t, a in tags.found)
    assert "<script>window" not in evil_page and "<img" not in evil_page
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', evil_page)[1])
    assert data[0]["problems"][0]["question"].startswith(EVIL)
    assert "".join(piece for piece, _ in data[0]["problems"][0]["before"][-1]["parts"]) == EVIL * 3


def test_json_in_a_script_cannot_end_it():
    text = embed(["</script><!--&\u2028"])
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == ["</script><!--&\u2028"]


def test_the_page_of_a_study_shows_its_rows_and_its_runs(tmp_path, model):
    write_study(tmp_path / "study", model, "compare", {"sft": "sft", "o1-pruner": "o1-pruner"})
    page = page_of(tmp_path / "study")
    words = Tags(page).words()
    assert "base 70.0 % 69.0 to 71.0 % 100.0 " in words
    assert (
        "o1-pruner 72.0 % 71.0 to 73.0 % 80.0 80.0 to 80.0 +2.0 +1.0 to +3.0 "
        "20.0 % 19.0 to 21.0 % 0.20 0.19 to 0.21 0.75 × 2.00 s" in words
    )
    for title in ("Accuracy against length, all rows", "Accuracy-efficiency score", "Inference time", "Clip fraction"):
        assert title in words
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert [s["label"] for s in data] == ["study, sft, arithmetic", "study, o1-pruner, arithmetic"]


@pytest.mark.parametrize(
    "kind, labels",
    [
        ("lambda", {"lambda 0": 0.0, "lambda 2": 2.0}),
        ("difficulty", {"percentiles 0-40": "0-40", "percentiles 60-100": "60-100"}),
    ],
)
def test_an_ablation_has_its_charts(tmp_path, model, kind, labels):
    write_study(tmp_path / "study", model, kind, labels)
    words = Tags(page_of(tmp_path / "study")).words()
    assert f"Accuracy by {kind}" in words and f"Length by {kind}" in words
    assert "Accuracy (%); the base (dashed) has 70.0." in words
    assert list(labels)[1] in words and "percentiles 0−40" not in words


def test_disharmony_has_its_chart_and_its_table(tmp_path):
    parts = [
        {
            "interval": i + 1,
            "accuracy": 0.9 - 0.1 * i,
            "accuracy_low": 0.85 - 0.1 * i,
            "accuracy_high": 0.95 - 0.1 * i,
            "mean_tokens": 50.0 * (i + 1),
        }
        for i in range(4)
    ]
    rows = [
        {"label": label, "problems": 64, "intervals": parts, "gap": {"mean": -0.3, "low": -0.35, "high": -0.25}}
        for label in ("all", "level 3")
    ]
    study = tmp_path / "study"
    study.mkdir()
    write_json(
        study / "result.json", {"study": "disharmony", "problems": 64, "samples": 512, "intervals": 4, "rows": rows}
    )
    words = Tags(page_of(study)).words()
    assert "all 64 90.0 % 85.0 to 95.0 %; 50 tokens 80.0 %" in words
    assert "−30.0 −35.0 to −25.0" in words
    assert "level 3 4 200.0 60.0 % 55.0 to 65.0 %" in words  # the numbers beside the chart
    assert 'id="samples"' not in (tmp_path / "out" / "report.html").read_text()


def test_two_runs_of_one_name_are_told_apart(tmp_path, model):
    for parent in ("a", "b"):
        write_run(tmp_path / parent / "run", model, {"t": plain_test()})
    words = Tags(page_of(tmp_path / "a" / "run", tmp_path / "b" / "run")).words()
    assert "a/run" in words and "b/run" in words


def test_hidden_characters_are_shown_as_such(tmp_path, model):
    texts = [[("a\u202eb\x1b[2J\u200b", True)]]
    write_run(tmp_path / "run", model, {"t": ([problem("p")], texts, texts)})
    data = json.loads(re.search(r'id="data">(.*?)</script>', page_of(tmp_path / "run"))[1])
    assert data[0]["problems"][0]["before"][0]["parts"] == [["a\ufffdb\ufffd[2J\ufffd", 0]]


def test_labels_are_moved_apart_and_stay_in_order():
    moved = spread_out([5.0, 5.1, 0.0, 9.9], 2.0, 0.0, 10.0)
    assert moved == [5.0, 7.0, 0.0, 9.9]
    assert spread_out([1.0, 1.0, 1.0], 10.0, 0.0, 1.0) == [0.0, 0.5, 1.0]


def test_a_long_curve_is_averaged_and_a_name_is_not_mathematics():
    chart = curves("$T$", "u", [Line("$a_1$ <b>", range(1000), [1.0] * 1000), Line("b", [1], [2.0])], 3)
    svg = to_svg(chart)
    assert "$a_1$ &lt;b&gt;" in svg and "<b>" not in svg
    assert len(chart.rows) <= 45
    assert chart.rows[0] == ["$a_1$ <b>", "24", "1"]


def test_minus_signs_are_for_numbers_alone():
    assert minus("-3 to -.5, o1-pruner 0-40 1e-05") == "−3 to −.5, o1-pruner 0-40 1e-05"
