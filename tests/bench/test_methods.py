"""bench.methods: differences over problems, against ones computed by hand; wrong input."""

import sys

import numpy as np
import pytest

from bench import methods
from bench.methods import changes


def test_differences_are_paired_over_the_problems_of_all_evaluations():
    before = [
        (np.array([[10, 20], [30, 30]]), np.array([[True, False], [True, True]])),
        (np.array([[40, 40]]), np.array([[False, False]])),
    ]
    after = [
        (np.array([[10, 10], [30, 10]]), np.array([[True, True], [True, True]])),
        (np.array([[40, 42]]), np.array([[False, False]])),
    ]
    points, tokens = changes(before, after)
    for found, differences in ((points, [50, 0, 0]), (tokens, [-5, -10, 1])):
        mean, half = np.mean(differences), 1.96 * np.std(differences, ddof=1) / 3**0.5
        assert found == pytest.approx((mean, mean - half, mean + half), rel=1e-3)


def test_a_folder_without_a_finished_method_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["methods", str(tmp_path)])
    assert methods.main() == 2
    assert capsys.readouterr().err == f"{tmp_path}: no method has finished its runs of 1 seeds\n"
