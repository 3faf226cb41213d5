"""Runs that are made once, and their pages."""

from pathlib import Path

import pytest

from o1core.model import Tokenizer
from tests.report.page_cases import evil_run, page_of, plain_test, write_log, write_run


@pytest.fixture(scope="module")
def model(tmp_path_factory, build_checkpoint) -> Path:
    """A checkpoint whose tokenizer can write any text: its tokens are bytes."""
    folder = tmp_path_factory.mktemp("page") / "model"
    build_checkpoint(folder)
    return folder


@pytest.fixture
def tokenizer(model) -> Tokenizer:
    return Tokenizer(model, 272)


@pytest.fixture
def run(tmp_path, model) -> Path:
    write_run(tmp_path / "run", model, {"arithmetic": plain_test()})
    write_log(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def made(tmp_path_factory, model) -> Path:
    """A run with its page, to be read only: made/run and made/out/report.html."""
    folder = tmp_path_factory.mktemp("made")
    write_run(folder / "run", model, {"arithmetic": plain_test()})
    write_log(folder / "run")
    page_of(folder / "run")
    return folder


@pytest.fixture
def page(made) -> str:
    return (made / "out" / "report.html").read_text()


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory, model) -> str:
    """The page of a run whose texts, names and settings are all EVIL."""
    return page_of(evil_run(tmp_path_factory.mktemp("evil") / "run", model))
