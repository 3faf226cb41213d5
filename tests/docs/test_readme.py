"""What the README and the result pages say can be typed, can be: commands, Python snippets, flags, links, file names."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import torch

import o1core.model
from o1core.cli import main, parser
from o1core.cli.entry import parse
from o1core.recipe.methods import METHODS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "bench" / "results").glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
TINY = str(Path(o1core.__file__).parent / "tiny_o1")
MATH, GSM8K = (str(ROOT / "tests" / "data" / name) for name in ("math.jsonl", "gsm8k.jsonl"))
FIXTURES = {  # what the README writes: what stands for it here
    "DIR": TINY,
    "Marco-o1": TINY,
    "QwQ-32B-Preview": TINY,
    "FILE": MATH,
    "Qwen/Qwen3-0.6B": TINY,
    "openai/gsm8k": GSM8K,
    "train.jsonl": MATH,
    "test.jsonl": MATH,
    "gsm8k.jsonl": GSM8K,
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.M | re.S)


def shell_commands() -> list[list[str]]:
    lines = [line for block in blocks(README, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(part) for line in lines for part in line.split("#")[0].split("&&") if part.strip()]


@pytest.mark.parametrize("command", [c for c in shell_commands() if c[0] == "o1core"], ids=" ".join)
def test_commands_of_the_readme_parse(command, tmp_path, capsys):
    """All of them by the real parser, and those with --dry-run up to the resolved settings."""
    (tmp_path / "mine.py").write_text("def reward(lengths, correct):\n    return correct / lengths\n")
    fixtures = FIXTURES | {"RUN": str(tmp_path / "run"), "mine.py:reward": f"{tmp_path / 'mine.py'}:reward"}
    arguments = [fixtures.get(word, word) for word in command[1:]]
    args = parser().parse_args(arguments)
    if hasattr(args, "dry_run"):
        assert main([*arguments, *([] if args.dry_run else ["--dry-run"])]) == 0
        assert '"lam"' in capsys.readouterr().out


def test_commands_of_the_first_page_parse(tmp_path, monkeypatch):
    """By the real parser, with the page's own run file."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "start.md").read_text()
    (run,) = blocks(page, "yaml")
    Path("run.yaml").write_text(run)
    settings = Path("runs/qwen3/settings.json")
    settings.parent.mkdir(parents=True)
    settings.write_text('{"model": "Qwen/Qwen3-0.6B", "lr": 1e-6, "model_print": {}, "threads": 1}')
    lines = [line.split() for block in blocks(page, "sh") for line in block.splitlines() if line.startswith("o1core")]
    parsed = [parse(words[1:]) for words in lines]
    assert len(parsed) >= 4 and {args.model for args in parsed} == {"Qwen/Qwen3-0.6B"}
    assert parsed[-2].lora_rank == 32 and parsed[-1].lr == 1e-6


def test_extras_that_the_readme_installs_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r'pip install -e "\.\[(\w+)\]"', README))
    assert named
    assert named <= extras.keys()


def test_other_shell_commands_are_pip_and_pytest():
    assert {command[0] for command in shell_commands()} == {"o1core", "pip", "pytest"}


def test_the_training_script_of_the_readme_is_that_of_bench():
    (script,) = blocks(README, "python")
    assert (ROOT / "bench" / "own_training_loop.py").read_text().endswith(f'"""\n\n{script}')
    assert len(script.splitlines()) <= 40


def test_the_training_script_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    """On 4 problems x 4 samples: the pruned checkpoint loads, and its weights have moved."""
    (script,) = blocks(README, "python")
    for whole, small in (
        ('"train", 200', '"train", 4'),
        ('"test", 200', '"test", 2'),
        ("n=16)", "n=4, max_new_tokens=150)"),
    ):
        assert whole in script
        script = script.replace(whole, small)
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "README.md", "exec"), {})
    assert "clip_fraction" in capsys.readouterr().out
    (before, _), (after, _) = (
        o1core.model.load(folder, torch.float32) for folder in (TINY, tmp_path / "runs/own-loop")
    )
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith("https://"):
            path, _, heading = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.M) if heading else []
            assert not heading or heading in {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_flags_and_modules_that_a_page_names_exist(page):
    text = page.read_text()
    for path in re.findall(r"`((?:o1core|kernels|tests|bench)/[\w./*-]+)`", text):
        assert list(ROOT.glob(path.rstrip("/"))), path
    for module in re.findall(r"python -m ((?:bench|tests)(?:\.\w+)+)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    options = all_options() | TORCHRUN
    for flag in re.findall(r"`(--[a-z][\w-]*)[^`]*`", text):
        assert flag in options, flag


TORCHRUN = {"--nproc-per-node", "--nnodes", "--max-restarts", "--rdzv-backend", "--rdzv-endpoint"}


def all_options() -> set[str]:
    """Every flag of every command."""
    found, todo = set(), [parser()]
    while todo:
        for action in todo.pop()._actions:
            found.update(action.option_strings)
            if isinstance(action.choices, dict):
                todo += action.choices.values()
    return found


def test_the_readme_is_read_in_minutes():
    assert 900 <= len(README.split()) <= 1400


def test_the_page_of_methods_has_all_of_them():
    named = set(
        re.findall(
            r"`([\w-]+)`", "".join(re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "methods.md").read_text(), re.M))
        )
    )
    assert named == METHODS.keys()
