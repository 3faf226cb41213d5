"""Reports of runs and studies: tables as text, plots as PNG, samples in a terminal, and a page of all of it."""

from .headlines import in_one_line, run_headlines
from .page import write_page
from .plots import plot_disharmony, plot_run, plot_study
from .samples import sample_lines
from .tables import Cell, Column, Table, disharmony_tables, run_table, study_tables, to_markdown, to_text

__all__ = [
    "Cell",
    "Column",
    "Table",
    "disharmony_tables",
    "in_one_line",
    "plot_disharmony",
    "plot_run",
    "plot_study",
    "run_headlines",
    "run_table",
    "sample_lines",
    "study_tables",
    "to_markdown",
    "to_text",
    "write_page",
]
