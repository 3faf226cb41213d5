"""A study's folder: every path in it is named here, once.

study.json       which study it is          seed-0/LABEL/    a run for each variant and seed
inference.json   times, of compare          result.json      the rows, with table.md and plot.png
"""

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..files import read_object, write_json
from ..run_folder import RunFolder, holds_something


@dataclass(frozen=True)
class StudyFolder:
    """The paths of a study, whether they exist or not."""

    path: Path

    @property
    def study(self) -> Path:
        return self.path / "study.json"

    @property
    def inference(self) -> Path:
        return self.path / "inference.json"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def table(self) -> Path:
        return self.path / "table.md"

    @property
    def plot(self) -> Path:
        return self.path / "plot.png"

    def run_name(self, seed: int, label: str) -> str:
        """The path of a variant's run of a seed, as result.json has it."""
        return f"seed-{seed}/{label.replace(' ', '-')}"

    def run(self, seed: int, label: str) -> RunFolder:
        return RunFolder(self.path / self.run_name(seed, label))

    def claim(self, kind: str) -> None:
        """Make the folder a study's of this kind. Raises UserError where it holds something else."""
        held = read_object(self.study).get("study") if self.study.exists() else None
        if held not in (None, kind) or (held is None and holds_something(self.path)):
            raise UserError(f"{self.path}: is not empty and holds no study {kind}; choose another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.study, {"study": kind})
