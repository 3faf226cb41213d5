"""The rules of the house that a machine can check: short functions and files, imports that point one way, few exceptions."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {name: sorted((ROOT / name).rglob("*.py")) for name in ("o1core", "kernels", "bench", "tests")}
FILES = sorted({file for files in FOLDERS.values() for file in files if "o1core/kernels" not in str(file)})
# The ground, which every room may use; then the rooms, each of which uses those before it.
GROUND = {"kernels", "__version__", *(path.stem for path in (ROOT / "o1core").glob("*.py"))}
ROOMS = ["grading", "problems", "model", "distributed", "rollout", "recipe"]
ROOMS += ["training", "evaluation", "report", "runs", "studies", "cli"]

TOO_LONG = {  # each holds one Triton kernel of more than 60 lines, whose parts share what is in registers
    "kernels/triton_logit_gradient.py",
    "kernels/triton_partial_sums.py",
    "kernels/triton_sample.py",
    "kernels/triton_surrogate.py",
}


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize("file", [file for file in FILES if name_of(file) not in TOO_LONG], ids=name_of)
def test_functions_and_files_are_short(file):
    text = file.read_text()
    assert len(text.splitlines()) <= 500
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not [f.name for f in functions if f.end_lineno - f.lineno >= 60]


def imports(file: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, ["room", "module", ...]) of each import of our own package in a file of o1core."""
    package = file.relative_to(ROOT / "o1core").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            inside = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                yield node.lineno, inside or [alias.name]


@pytest.mark.parametrize("file", [f for f in FILES if f.is_relative_to(ROOT / "o1core")], ids=name_of)
def test_imports_inside_the_package_are_relative(file):
    for node in ast.walk(ast.parse(file.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not [name for name in names if name.split(".")[0] == "o1core"]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_uses_the_rooms_before_it_by_their_front_doors(room):
    allowed = {*GROUND, *ROOMS[: ROOMS.index(room)], room}
    for file in (ROOT / "o1core" / room).rglob("*.py"):
        for line, path in imports(file):
            assert path[0] in allowed, f"{name_of(file)}:{line} looks up to {path[0]}"
            assert path[0] == room or path[0] not in ROOMS or len(path) == 1, (
                f"{name_of(file)}:{line} passes a front door"
            )


def test_every_room_is_known():
    rooms = {path.name for path in (ROOT / "o1core").iterdir() if (path / "__init__.py").exists()}
    assert rooms - {"kernels"} <= set(ROOMS)


def test_the_formatter_is_switched_off_in_a_dozen_places_at_most():
    skips = sum(text.count("# fmt:") for text in (file.read_text() for file in FILES if file != Path(__file__)))
    assert skips <= 12
