"""bench.methods: wrong input. What it prints is held to the study itself in tests/studies."""

import sys

from bench import methods


def test_a_folder_without_a_finished_method_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["methods", str(tmp_path)])
    assert methods.main() == 2
    assert capsys.readouterr().err == f"{tmp_path}: no method has finished its runs of 1 seeds\n"
