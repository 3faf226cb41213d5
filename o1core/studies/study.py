"""A study whose rows are runs, from its variants to what it leaves behind."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ..evaluation import DisharmonyResult, StudyResult
from ..files import write_atomic, write_record
from ..report import Table, plot_study, study_tables, to_markdown
from ..runs import Resources
from ..typed_json import to_json
from .measures import with_measures
from .pruning import OpenJob, run_variants
from .study_folder import StudyFolder
from .timing import inference_times
from .variants import Variant

Result = TypeVar("Result", StudyResult, DisharmonyResult)


def run_study(
    kind: str, open_job: OpenJob, variants: list[Variant], seeds: int, path: Path, resources: Resources
) -> StudyResult:
    """The study `kind` (lambda, difficulty, compare) in the folder `path`: returns what its result.json says."""
    result = run_variants(kind, open_job, variants, seeds, path, resources)
    folder = StudyFolder(path)
    if kind == "compare":
        times = inference_times(open_job, variants, folder, resources)
        result = replace(result, rows=[replace(row, inference=times[row.label]) for row in result.rows])
        result = with_measures(folder, result, variants[0].recipe.sampling.max_new_tokens)
    return write_outputs(folder, result, study_tables, plot_study)


def write_outputs(
    folder: StudyFolder, result: Result, tables: Callable[[Result], list[Table]], plot: Callable[[Result, Path], None]
) -> Result:
    """Write what a study leaves behind; result.json comes last."""
    text = "\n\n".join(map(to_markdown, tables(result))) + "\n"
    write_atomic(folder.table, lambda path: path.write_text(text, encoding="utf-8"))
    plot(result, folder.plot)
    write_record(folder.result, to_json(result))
    return result
