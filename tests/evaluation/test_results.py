"""Results as files: those of earlier versions stay readable, and nothing is lost on the way."""

import json
from pathlib import Path

import pytest

from o1core.evaluation import DisharmonyResult, RunResult, StudyResult, read_result
from o1core.files import write_json
from o1core.typed_json import to_json

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


def test_a_published_run_is_read_and_written_as_it_is(tmp_path):
    published = json.loads((PUBLISHED / "qwen_gsm8k.json").read_text())["result"] | {"checkpoint": "pruned"}
    write_json(tmp_path / "result.json", published)
    result = read_result(tmp_path)
    assert isinstance(result, RunResult)
    assert to_json(result) == published
