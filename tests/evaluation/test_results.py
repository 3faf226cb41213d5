"""Results as files: those of earlier versions stay readable, and nothing is lost on the way."""

import json
from pathlib import Path

import pytest

from o1core.errors import UserError
from o1core.evaluation import DisharmonyResult, RunResult, StudyResult, read_result
from o1core.files import write_json
from o1core.records import to_json
from tests.campaigns.fuzz_report import pristine

PUBLISHED = Path(__file__).parents[2] / "bench" / "results"


@pytest.mark.parametrize(
    "name, kind", [("compare", StudyResult), ("lambda", StudyResult), ("disharmony", DisharmonyResult)]
)
def test_the_published_studies_are_read_and_written_as_they_are(tmp_path, name, kind):
    published = json.loads((PUBLISHED / f"study_{name}.json").read_text())
    write_json(tmp_path / "result.json", published)
    result = read_result(tmp_path)
    assert isinstance(result, kind)
    assert json.dumps(to_json(result)) == json.dumps(published)


@pytest.mark.parametrize("change", [{"budgets": [8]}, {"accuracy_within": [0.5] * 3}])
def test_curves_that_do_not_match_are_refused(tmp_path, change):
    study = pristine("study")
    result = json.loads((study / "result.json").read_text())
    result["rows"][1]["measures"] |= change
    write_json(tmp_path / "result.json", result)
    with pytest.raises(UserError, match=r"result.json: rows: sft: measures: budgets and accuracies do not match"):
        read_result(tmp_path)


def test_a_published_run_is_read_and_written_as_it_is(tmp_path):
    published = json.loads((PUBLISHED / "qwen_gsm8k.json").read_text())["result"] | {"checkpoint": "pruned"}
    write_json(tmp_path / "result.json", published)
    result = read_result(tmp_path)
    assert isinstance(result, RunResult)
    assert to_json(result) == published
