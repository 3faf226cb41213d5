"""bench.growth: what it prints of points that were measured, and that a line ends where a point was killed."""

import json
import sys

from bench import growth


def test_the_table_the_powers_and_the_picture_of_points_that_are_there(tmp_path, monkeypatch, capsys):
    for way in growth.UPDATES:
        for i, value in enumerate(growth.AXES["completion"].values):
            killed = way == "transformers" and i == 3
            point = None if killed else (0.5 * 4**i, 1.0 * 2**i)  # quadratic in time, linear in memory
            (tmp_path / f"completion-{way}-{value}-2.json").write_text(json.dumps(point))
    monkeypatch.setattr(sys, "argv", ["growth", "--axes", "completion", "--out", str(tmp_path)])
    growth.main()
    shown = capsys.readouterr().out
    assert "| last doubling | o1core | power 2.00 | power 1.00 |" in shown
    assert "| 8,192 | o1core | 2048.00 | 64.00 |" in shown
    assert "| 512 | transformers |" in shown and "| 1,024 | transformers |" not in shown
    assert (tmp_path / "growth.png").stat().st_size > 1000
