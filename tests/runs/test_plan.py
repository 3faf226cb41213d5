"""What a plan proposes fits, what cannot fit is refused before anything is written, and the command prints both."""

import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from o1core.cli import main
from o1core.errors import UserError
from o1core.model import ModelConfig, read_config
from o1core.recipe import Recipe, read_recipe
from o1core.rollout import fit_cache
from o1core.run_folder import RunFolder
from o1core.runs import Machine, Resources, Workload, open_job, open_session, plan, plan_run
from o1core.runs.plan import check_fits, plan_line, proposals

DATA, GIB = Path(__file__).parents[1] / "data", 1 << 30


def of(name: str, memory: float, machine: Machine = Machine(), **settings):  # noqa: B008
    """A plan in bf16 of a run whose problems are not known."""
    workload = Workload.of(Recipe.of(**read_recipe(name) | settings))
    return plan_run(read_config(DATA / name), workload, replace(machine, memory=int(memory * GIB)))


def test_every_proposal_fits_and_changes_what_it_says():
    plan = of("marco-o1", 79, Machine(cuda=True))
    assert not plan.fits
    found = list(proposals(plan))
    assert {"lora_rank", "train_last_layers"} <= {name for settings, _ in found for name in settings}
    for settings, changed in found:
        assert changed.peak.total <= 79 * GIB
        held = changed.workload.recipe.to_json() | asdict(changed.machine)
        assert {name: held[name] for name in settings} == settings


def test_marco_o1_fits_one_card_with_adapters_and_two_cards_whole():
    assert of("marco-o1", 79, Machine(cuda=True), lora_rank=32).fits
    assert of("marco-o1", 79, Machine(4, cuda=True)).fits
    assert not of("qwq-32b", 79, Machine(8, cuda=True)).fits
    assert of("qwq-32b", 79, Machine(8, True, tensor_parallel=8)).fits


def test_slots_fill_what_training_leaves_and_half_of_the_memory_at_most():
    for memory in (40, 79, 139):
        plan = of("marco-o1", memory, Machine(cuda=True), lora_rank=32)
        sample = plan.phases[0]
        assert plan.slots > 1 and sample.total <= memory * GIB
        assert sample.parts["KV cache"] <= memory * GIB / 2


def test_pages_hold_several_times_the_rows_of_lanes(monkeypatch):
    """On one 80 GB card, for evaluation alone; pages are counted by the mean length, lanes by the longest."""
    found = {}
    for kind in ("lanes", "pages"):
        monkeypatch.setenv("O1CORE_CACHE", kind)
        found[kind] = of("marco-o1", 79, Machine(cuda=True), objective="none", instruction="fast", max_new_tokens=8192)
    lanes, pages = found["lanes"], found["pages"]
    assert lanes.pages is None and lanes.slots < 40
    assert pages.slots == 256 and pages.pages * 64 > 256 * 2000
    assert pages.phases[0].parts["KV cache"] == pages.pages * 64 * 2 * 28 * 4 * 128 * 2  # k and v, layers, heads, bf16
    assert max(plan.phases[0].parts["KV cache"] for plan in found.values()) <= 79 * GIB / 2
    assert f"256 slots on {pages.pages:,} pages" in plan_line(pages)


def test_a_gpu_has_pages_by_itself_and_a_cpu_lanes(monkeypatch):
    monkeypatch.delenv("O1CORE_CACHE", raising=False)
    assert of("marco-o1", 79, Machine(cuda=True)).pages is not None
    assert of("marco-o1", 79, Machine()).pages is None


@pytest.mark.parametrize("room, slots, expected", [(0, None, (1, 16)), (0, 7, (7, 16)), (1000, None, (250, 1000))])
def test_slots_follow_from_the_pages_and_their_mean_length(room, slots, expected):
    """Rows of up to 1,000 tokens: 16 pages at their longest, 4 on average."""

    def fit(pages, completions=10_000, slots=None):
        page = 64 * 2 * 28 * 4 * 128 * 2
        config = read_config(DATA / "marco-o1")
        return fit_cache("pages", config, 1000, torch.bfloat16, pages * page, completions, slots)

    assert fit(room, slots=slots) == expected
    assert fit(1900) == (256, 1900)  # not 475: whole batches of rows
    assert fit(99_000) == (512, 513 * 16)  # a prompt whose samples come has pages of its own
    assert fit(99_000, completions=24) == (24, 25 * 16)  # no more than are asked for


@pytest.mark.parametrize(
    "settings, memory, flags",
    [
        ({"micro_tokens": 65536, "checkpointing": True}, 140, "; --micro-tokens 4096 would fit"),
        ({"micro_tokens": 16384, "checkpointing": False}, 145, "; --micro-tokens 4096 would fit"),
        ({"micro_tokens": 16384, "checkpointing": False}, 114, "; --checkpointing --micro-tokens 4096 would fit"),
        ({}, 40, "; --train-last-layers 7 would fit"),
        ({}, 23, "; --lora-rank 32 would fit"),
    ],
)
def test_a_refusal_names_the_cheapest_change_that_fits(settings, memory, flags):
    with pytest.raises(UserError, match=flags):
        check_fits(of("marco-o1", memory, **settings))


SMOL = ModelConfig("LlamaForCausalLM", 49152, 576, 1536, 30, 9, 3, 64, 1e-5, 1e5, 8192, True, torch.bfloat16)


@pytest.mark.parametrize("machine", [Machine(cuda=True, memory=24 * GIB), Machine(memory=22 * GIB)], ids=["GPU", "CPU"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_small_model_is_trained_on_24_gb_with_the_settings_of_the_paper(machine, dtype):
    """SmolLM2-135M: 16,384 tokens a micro-batch are too many on a CPU, and fewer are taken."""
    recipe = Recipe.of(**read_recipe("paper"))
    found = plan_run(replace(SMOL, dtype=dtype), Workload.of(recipe), machine)
    assert found.fits and 3072 <= found.micro_tokens <= (16384 if machine.cuda else 4096)
    asked = plan_run(replace(SMOL, dtype=dtype), Workload.of(recipe.replace(micro_tokens=65536)), machine)
    assert not asked.fits, "what is asked for is not changed"


def test_a_run_is_planned_for_its_own_problems_and_lengths():
    """A 0.5B model with adapters on 4 problems x 4 samples x 64 tokens took 4.7 GiB; 14.3 were planned by defaults."""
    qwen = ModelConfig("Qwen2ForCausalLM", 151936, 896, 4864, 24, 14, 2, 64, 1e-6, 1e6, 32768, True, torch.float32)
    recipe = Recipe.of(samples=4, max_new_tokens=64, lora_rank=16, batch=16, rounds=2)
    found = plan_run(qwen, Workload.of(recipe, prompt=100, problems=4, tested=4), Machine(memory=22 * GIB))
    assert found.slots == 16, "no more than the completions that are asked for"
    assert 3 * GIB < found.peak.total < 6 * GIB
    whole = plan_run(qwen, Workload.of(recipe), Machine(memory=22 * GIB))
    assert whole.slots > 16 and whole.peak.total > 2 * found.peak.total


def session_of(folder: Path, **settings):
    job = open_job(None, None, None, "float32", Recipe.of(problems=8, eval_problems=2, **settings))
    return open_session(job, RunFolder(folder), Resources(torch.device("cpu")))


def test_after_training_the_last_evaluation_asks_for_no_memory_to_train(tmp_path, monkeypatch):
    for done in (False, True):
        monkeypatch.setattr(RunFolder, "pruned_state", lambda self, done=done: (done, done))
        with session_of(tmp_path / "run") as session:
            session.check_memory()
        assert [phase.name for phase in session.plan.phases] == ["sample"] + ["reference", "update", "save"] * (
            not done
        )


def test_a_resumed_run_cuts_its_batches_as_before(tmp_path, monkeypatch):
    """Another cut would change the last bits. What is asked for comes first."""
    found = []
    for free, asked in ((420 << 20, None), (8 << 30, None), (8 << 30, 5000)):
        monkeypatch.setattr(plan, "free_memory", lambda device, free=free: free)
        with session_of(tmp_path / "run", max_new_tokens=2000, micro_tokens=asked) as session:
            session.check_memory()
            session.claim()
            found.append(session.job.settings["micro_tokens"])
    assert found == [2048, 2048, 5000]


def test_what_cannot_fit_at_all_is_said_so():
    with pytest.raises(UserError, match="use a smaller model, or more GPUs"):
        check_fits(of("marco-o1", 8))


def test_a_run_that_cannot_fit_is_refused_before_its_folder_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan, "free_memory", lambda device: 1 << 20)
    for command in ("prune", "train", "eval", "sample"):
        assert main([command, "--device", "cpu", "--out", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert "o1core: error: memory: " in error and error.count("\n") == 1
        assert not (tmp_path / "run" / "settings.json").exists()


def test_the_command_prints_parts_and_a_verdict(capsys):
    assert main(f"plan --model {DATA / 'qwq-32b'} --recipe qwq-32b --gpus 8 --gpu-memory 79".split()) == 0
    printed = capsys.readouterr().out
    assert "moments" in printed and "It does not fit. These would:" in printed and "--tensor-parallel" in printed
    assert main(f"plan --model {DATA / 'marco-o1'} --recipe marco-o1 --lora-rank 32".split()) == 0
    assert "It fits.\nStart it with: o1core prune --model " in capsys.readouterr().out
    assert main(f"plan --model {DATA / 'marco-o1'} --device cpu --gpu-memory 30 --recipe marco-o1".split()) == 0
    printed = capsys.readouterr().out
    assert "libraries" in printed and "GiB of main memory, of 30.0" in printed and "A800" not in printed


def test_offloading_leaves_room_to_sample_and_is_proposed():
    machines = [Machine(8, True, offload=offload) for offload in ("none", "moments", "optimiser")]
    sizes = [of("qwq-32b", 79, machine).phases[0].parts for machine in machines]
    assert [("moments" in parts, "fp32 masters" in parts) for parts in sizes] == [
        (True, True),
        (False, True),
        (False, False),
    ]
    assert not any("gradients" in parts for parts in sizes), "they are dropped before a round is sampled"
    plan = of("qwq-32b", 79, machines[0])
    assert {"offload": "optimiser"} in [settings for settings, _ in proposals(plan)]


def test_adapters_are_whole_on_every_rank():
    one, eight = (of("marco-o1", 79, Machine(n, True), lora_rank=32).phases[-1].parts for n in (1, 8))
    assert one["moments"] == eight["moments"] and one["gradients"] == eight["gradients"]
    assert eight["weights"] < one["weights"] / 7


def test_a_run_prints_its_plan_once_before_it_samples(flags, tmp_path, caplog):
    caplog.set_level("INFO", "o1core")
    assert main(["train", *flags, "--rounds", "1", "--slots", "5", "--out", str(tmp_path / "run")]) == 0
    (told,) = (message for message in caplog.messages if message.startswith("memory"))
    needs, _, settled = told.partition("; ")
    assert re.fullmatch(
        r"memory: \S+ MiB to sample, \S+ MiB to reference, \S+ MiB to update, \S+ MiB to save, of \S+ GiB free", needs
    )
    assert settled == "5 slots, 212 tokens a micro-batch"  # 4 examples of 29 tokens before the answer, and 24
    assert caplog.messages.index(told) < next(i for i, m in enumerate(caplog.messages) if m.startswith("round 1"))


def test_a_cut_checkpoint_is_refused_before_anything_is_said_of_memory(flags, checkpoint, tmp_path, caplog, capsys):
    caplog.set_level("INFO", "o1core")
    cut = shutil.copytree(checkpoint, tmp_path / "cut")
    weights = next(cut.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(["train", *flags, "--model", str(cut), "--out", str(tmp_path / "run")]) == 2
    assert not caplog.messages
    assert "not a whole safetensors file" in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", ["--gpus 0", "--gpu-memory 0", "--gpus 8 --tensor-parallel 3", "--slots 0"])
def test_a_wrong_machine_is_refused(flags, capsys):
    assert main(f"plan --model {DATA / 'marco-o1'} {flags}".split()) == 2
    assert capsys.readouterr().err.count("\n") == 1
