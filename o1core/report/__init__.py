"""Reports of runs and studies: tables as text, plots as PNG, samples in a terminal, and a page of all of it."""

from ..tables import Cell, Column, Table, to_markdown, to_text
from .card import write_card, write_cards
from .dial import dial_chart, dial_tables, plot_dial
from .page import write_page
from .run_charts import plot_run
from .samples import logged_steps, open_tokenizer, sample_lines, tracked_result
from .study_charts import plot_disharmony, plot_study
from .tables import disharmony_tables, in_one_line, rounds_table, run_headlines, run_table, study_tables

__all__ = [
    "Cell",
    "Column",
    "Table",
    "dial_chart",
    "dial_tables",
    "disharmony_tables",
    "in_one_line",
    "logged_steps",
    "open_tokenizer",
    "plot_dial",
    "plot_disharmony",
    "plot_run",
    "plot_study",
    "rounds_table",
    "run_headlines",
    "run_table",
    "sample_lines",
    "study_tables",
    "to_markdown",
    "to_text",
    "tracked_result",
    "write_card",
    "write_cards",
    "write_page",
]
