"""CRISP: its gradient against the equation in float64, its teacher on disk, and whole runs that are cut short."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import o1core.model
from o1core.cli import main
from o1core.errors import UserError
from o1core.model import add_adapters, draw_adapters
from o1core.problems import instruct
from o1core.recipe import Recipe
from o1core.run_folder import RunFolder
from o1core.runs.loop import Round, teacher_prompts
from o1core.training import with_reference
from o1core.training.teacher import open_teacher
from o1core.types import Problem
from tests.training.test_memory import Stopped, stop_at
from tests.training.test_step import VOCAB, assert_same_gradients, make_examples, reference_logprobs, updater_of

CRISP = Recipe.of(objective="crisp", grad_clip=1e9, micro_tokens=64)


def prompts_of(examples) -> dict[str, torch.Tensor]:
    """Each teacher's prompt: the student's, and five tokens more."""
    return {e.problem: torch.cat((e.prompt, torch.arange(5, dtype=torch.int32) + 20)) for e in examples}


def taught_step(model, recipe, examples, folder):
    """An update on all examples by the teacher that the model is now. Returns the updater and the metrics."""
    updater = updater_of(model, VOCAB, recipe)
    reference = reference_logprobs(model, VOCAB, examples, recipe)
    teacher = open_teacher(folder, updater, examples, prompts_of(examples))
    drift(model)
    updater.follow_masters()
    updater.teacher_head = teacher.head
    batch = teacher.teach(with_reference(examples, reference)), 1e-2
    return updater, updater.step(*batch), batch


@torch.no_grad()
def drift(model) -> None:
    """What the round's earlier steps do to the weights, the head's among them; the teacher stays behind."""
    generator = torch.Generator().manual_seed(3)
    for p in model.parameters():
        if p.requires_grad:
            p += 0.02 * torch.randn(p.shape, generator=generator)


def log_softmax_of(twin, prompt, ids):
    hidden = twin.hidden(torch.cat((prompt, ids)).long()[None])
    return (hidden @ twin.lm_head.T)[0, len(prompt) - 1 : -1, :VOCAB].log_softmax(-1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_is_that_of_the_reverse_kl_in_float64(checkpoint, tmp_path, checkpointing):
    model = o1core.model.load(checkpoint, torch.float32)[0]
    examples = make_examples()
    recipe = CRISP.replace(checkpointing=checkpointing)
    updater, metrics, _ = taught_step(model, recipe, examples, tmp_path / "teacher")
    found = {name: master.grad for name, (_, master) in updater.pairs.items()}

    teacher, twin = (o1core.model.load(checkpoint, torch.float64)[0] for _ in range(2))
    drift(twin)
    total, tokens = 0.0, 0
    for e in examples:
        log_p = log_softmax_of(twin, e.prompt, e.ids)
        with torch.no_grad():
            log_q = log_softmax_of(teacher, prompts_of(examples)[e.problem], e.ids)
        total, tokens = total + (log_p.exp() * (log_p - log_q)).sum(), tokens + len(e.ids)
    (total / tokens).backward()
    assert_same_gradients(found, twin)
    assert metrics["loss"] == pytest.approx((total / tokens).item(), rel=1e-5)
    assert (metrics["units"], metrics["clip_fraction"]) == (tokens, 0)


def test_adapters_learn_from_a_teacher_with_the_frozen_head(checkpoint, tmp_path):
    model = o1core.model.load(checkpoint, torch.float32)[0]
    add_adapters(model, 4, 8.0, "all", None)
    draw_adapters(model, 0)
    updater, metrics, batch = taught_step(model, CRISP.replace(lora_rank=4), make_examples(), tmp_path / "teacher")
    assert not (tmp_path / "teacher" / "head.safetensors").exists()
    assert metrics["loss"] > 0 and all(master.grad.any() for _, master in updater.pairs.values())
    assert updater.step(*batch)["loss"] < metrics["loss"], "the student comes nearer to its teacher"


def test_the_teacher_is_made_once_and_its_damage_is_named(checkpoint, tmp_path):
    model = o1core.model.load(checkpoint, torch.float32)[0]
    updater, examples, folder = updater_of(model, VOCAB, CRISP), make_examples(), tmp_path / "teacher"
    first = open_teacher(folder, updater, examples, prompts_of(examples))
    drift(model)
    again = open_teacher(folder, updater, examples, prompts_of(examples))
    for i in range(2):
        a, b = (teacher.teach(examples)[[4, 1][i]].taught() for teacher in (first, again))
        assert torch.equal(a, b) and a.shape == (len(examples[[4, 1][i]].ids), 64)
    with pytest.raises(UserError, match="belongs to other rollouts"):
        open_teacher(folder, updater, [replace(examples[0], ids=examples[1].ids), *examples[1:]], {})
    part = folder / "part-00000.safetensors"
    save_file({"hidden": load_file(part)["hidden"] + 1}, part)
    with pytest.raises(UserError, match=r"part-00000.safetensors: damaged"):
        open_teacher(folder, updater, examples, prompts_of(examples))


def test_the_teacher_is_asked_what_the_student_is_asked_and_to_be_concise(checkpoint):
    tokenizer = o1core.model.load(checkpoint, torch.float32)[1]
    problem = Problem("p", "What is 1 + 1?", "2")
    ids = teacher_prompts(tokenizer, [problem], "concise")["p"].tolist()
    assert "What is 1 + 1?\nSolve this concisely" in tokenizer.decode(ids)
    assert ids == tokenizer.prompt(instruct(problem, "concise", 0).question)


@pytest.mark.parametrize("method", [[], ["--lora-rank", "4"]], ids=["full", "adapters"])
def test_a_run_cut_short_ends_with_the_same_bits_and_leaves_no_teacher(flags, tmp_path, monkeypatch, method):
    whole, again = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "again")
    command = ["train", *flags, "--method", "crisp", *method]
    assert main([*command, "--out", str(whole.path)]) == 0
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(Round, "step", stop_at(11))
        main([*command, "--out", str(again.path)])
    assert again.teacher(1).exists() and not again.teacher(0).exists()
    if method:  # the teacher cannot be made again of weights that have moved: the round starts again
        shutil.rmtree(again.teacher(1))
    assert main([*command, "--resume", "--out", str(again.path)]) == 0
    expected, found = (load_file(run.pruned / "model.safetensors") for run in (whole, again))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not [run for run in (whole, again) if list(run.path.glob("round-*/teacher"))]
    losses = [json.loads(line)["loss"] for line in whole.log.read_text().splitlines()]
    assert len(losses) == 16 and min(losses) > 0


def test_a_student_with_an_instruction_is_refused(flags, tmp_path, capsys):
    command = ["prune", *flags, "--method", "crisp", "--out", str(tmp_path / "run")]
    assert main([*command, "--instruction", "concise"]) == 2
    assert "--objective crisp: the student is asked without an instruction" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--teacher-instruction: .?none.? is not concise or fast"):
        Recipe.of(teacher_instruction="none")
    assert not (tmp_path / "run").exists()
