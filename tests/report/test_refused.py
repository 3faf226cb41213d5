"""Folders and results that are no run or study, or lead out of one: a page is refused in a line that names the place."""

import json
import re
import shutil

import pytest

from o1core.errors import UserError
from o1core.files import write_json
from o1core.report.page import write_page
from tests.report.page_cases import write_study


def test_folders_that_are_no_run_say_what_makes_one(tmp_path, run):
    with pytest.raises(
        UserError, match=r"nowhere: holds no result.json; `o1core prune --out .*nowhere` or `o1core study"
    ):
        write_page([tmp_path / "nowhere"], tmp_path / "report.html")
    with pytest.raises(UserError, match=r"arithmetic: is not a run or a study; `o1core prune --out RUN`"):
        side = run / "base" / "arithmetic"
        write_json(side / "result.json", {"accurate": 1.0})
        write_page([side], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "change, said",
    [
        ({"base": {"accuracy": "high", "mean_tokens": 1}}, 'base: accuracy: must be a number, not "high"'),
        ({"base": {"accuracy": 1}}, "base: lacks mean_tokens"),
        ({"length_cut": None}, "length_cut: must be a number, not null"),
        ({"length_cut": float("nan")}, "length_cut: must be a number, not NaN"),
        ({"tests": {}}, "tests: is empty"),
        ({"tests": []}, "tests: must be an object"),
    ],
)
def test_a_broken_result_is_named(run, edit_json, change, said):
    write_json(run / "result.json", json.loads((run / "result.json").read_text()) | change)
    with pytest.raises(UserError, match=re.escape(said)):
        write_page([run], run / "report.html")


@pytest.mark.parametrize("name", ["../../other", "/etc", ".", "", "a/b", "..", "nul\0"])
def test_the_name_of_a_test_stays_in_its_run(run, name):
    result = json.loads((run / "result.json").read_text())
    result["tests"] = {name: result["tests"]["arithmetic"]}
    write_json(run / "result.json", result)
    with pytest.raises(UserError, match=r"leads out of|is not the name of a test"):
        write_page([run], run / "report.html")


@pytest.mark.parametrize("place", ["../run", "seed-0/../../run", "{absolute}", "link", "."])
def test_the_runs_of_a_study_stay_in_its_folder(tmp_path, model, run, place):
    write_study(tmp_path / "study", model, "lambda", {"lambda 2": 2.0})
    (tmp_path / "study" / "link").symlink_to(run)
    result = json.loads((tmp_path / "study" / "result.json").read_text())
    result["rows"][1]["runs"] = ["seed-0/lambda-2", place.format(absolute=run)]
    write_json(tmp_path / "study" / "result.json", result)
    with pytest.raises(UserError, match="leads out of"):
        write_page([tmp_path / "study"], tmp_path / "report.html")


def test_a_study_without_its_runs_names_the_command(tmp_path, model):
    write_study(tmp_path / "study", model, "lambda", {"lambda 2": 2.0})
    shutil.rmtree(tmp_path / "study" / "seed-0")
    with pytest.raises(UserError, match=r"lambda-2: is not there; `o1core study lambda --out .*study` makes it again"):
        write_page([tmp_path / "study"], tmp_path / "report.html")
