"""Pages of what is not finished: a run at work, one evaluation, and both beside a finished run."""

import json
import re
import shutil
from pathlib import Path

import pytest

from o1core.files import write_json
from tests.report.page_cases import page_of, plain_test, write_log, write_run
from tests.report.test_browser import in_browser


@pytest.fixture
def at_work(tmp_path, model) -> Path:
    """A run with its base evaluated and some steps done."""
    run = tmp_path / "at-work"
    result = write_run(run, model, {"arithmetic": plain_test()})
    write_json(run / "base" / "arithmetic" / "result.json", result["base"])
    (run / "result.json").unlink()
    shutil.rmtree(run / "after")
    return run


def sets_of(page: str) -> list[dict]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(found[1]) if found else []


def test_a_run_at_work_shows_what_is_there(at_work):
    write_log(at_work, steps=2)
    page = page_of(at_work)
    assert "run at work" in page and "This run has not come to its result." in page
    assert "Training so far" in page and "arithmetic, base" in page and "75.0 %" in page
    (held,) = sets_of(page)
    assert held["total"] == 2 and all(
        p["after_all"] is None and p["before_all"]["count"] == 2 for p in held["problems"]
    )
    (at_work / "log.jsonl").unlink()
    shutil.rmtree(at_work / "base")
    page = page_of(at_work)
    assert "run at work" in page and not sets_of(page) and "Training so far" not in page, (
        "nothing is there but settings"
    )


def test_one_evaluation_has_a_page(at_work, model):
    alone = at_work.parent / "alone"
    shutil.copytree(at_work / "base" / "arithmetic", alone)
    write_json(alone / "settings.json", {"model": str(model)})
    for folder in (alone, at_work / "base" / "arithmetic"):
        page = page_of(folder)
        assert '<p class="kind">evaluation</p>' in page and "Length of completions" in page and len(sets_of(page)) == 1


def test_a_finished_run_and_one_at_work_share_a_page(run, at_work):
    page = page_of(run, at_work)
    assert [len(s["problems"]) for s in sets_of(page)] == [2, 2] and "run at work" in page and "AES" in page


def test_a_problem_has_an_address_and_a_wide_table_says_so(run, at_work, tmp_path):
    probe = """
      const at = (id) => document.getElementById(id);
      at("list").querySelectorAll("button")[1].click();
      const link = at("problem").querySelector("a").hash;
      location.hash = "#sample=1/p-1";
      dispatchEvent(new Event("hashchange"));
      return { link, set: at("set").value, facts: at("problem").querySelector(".note").textContent,
        sides: at("problem").querySelectorAll(".sides > div").length, hidden: at("which").parentElement.hidden,
        more: document.querySelectorAll(".more").length, skip: document.querySelector(".skip").hash };"""
    found = in_browser(page_of(run, at_work), tmp_path, probe, width=390)
    assert re.fullmatch(r"#sample=0/p-[01]", found["link"]) and found["set"] == "1" and "p-1" in found["facts"]
    assert (found["sides"], found["hidden"], found["skip"]) == (1, True, "#problem") and found["more"] > 0
