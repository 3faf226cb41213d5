"""bench.gpu without a GPU: every row's code runs at tiny sizes, bars and verdicts are right, a bad row takes none down."""

import inspect
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from bench.gpu import __main__ as command
from bench.gpu import decode, peers, sharded
from bench.gpu.engine import idle
from bench.gpu.head import head_case
from bench.gpu.measure import CARDS, TINY, Bar, Row, Sizes, card_of, seven_b
from bench.gpu.training import flops
from bench.kernel_providers import cut_cross_entropy, liger, naive
from o1core import SamplingParams
from o1core.model import ModelConfig, read_config
from tests.bench.echo import echo
from tests.distributed.worlds import gathered, start

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(params=["pages", "rows"])
def attention_of_torch(request, monkeypatch):
    """varlen_attn has no CPU path: its arguments are bound to its real signature, and attention is computed from them. On
    rows: a build that takes no pages."""
    real = inspect.signature(decode.varlen_attn)

    def on_cpu(*args, **kwargs):
        bound = real.bind(*args, **kwargs).arguments
        if "block_table" in bound and request.param == "rows":
            raise RuntimeError("no pages")
        query, out = bound["query"], []
        assert bound["cu_seq_q"].tolist() == list(range(len(query) + 1)) and bound["max_q"] == 1
        for row, q in enumerate(query):
            if "block_table" in bound:
                of_row = (bound[name][bound["block_table"][row].long()].flatten(0, 1) for name in ("key", "value"))
                k, v = (x[: bound["seqused_k"][row]] for x in of_row)  # [T, Hkv, D]
            else:
                start, end = bound["cu_seq_k"][row : row + 2].tolist()
                k, v = bound["key"][start:end], bound["value"][start:end]
            k, v = (x.repeat_interleave(len(q) // x.shape[1], 1).transpose(0, 1) for x in (k, v))
            out.append(torch.nn.functional.scaled_dot_product_attention(q[:, None], k, v)[:, 0])
        return torch.stack(out)

    monkeypatch.setattr(decode, "varlen_attn", on_cpu)
    return request.param


def test_attention_is_held_to_torchs_own(attention_of_torch):
    found = decode.against_torch(TINY)
    assert found["largest difference"] < 1e-6 and found["varlen_attn takes pages"] == (attention_of_torch == "pages")


@pytest.mark.parametrize("attention_of_torch", ["pages"], indirect=True)
def test_every_row_runs_at_tiny_sizes(attention_of_torch, tmp_path, monkeypatch, capsys):
    settings = SamplingParams(**decode.REAL), SamplingParams(temperature=0.0), SamplingParams(top_k=9, top_p=0.9)
    monkeypatch.setattr(decode, "SAMPLED", settings)
    monkeypatch.setenv("O1CORE_CACHE", "pages")  # as on a GPU
    command.main(["--sizes", "tiny", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert list(rows) == list(command.ROWS)
    figures = {(name, figure["figure"]): figure for name, row in rows.items() for figure in row["figures"]}
    skipped = {key for key, figure in figures.items() if figure["value"] is None}
    assert skipped == {
        ("against liger_kernel", "theirs / ours"),
        ("against cut_cross_entropy", "theirs / ours"),
        ("against flashinfer", "theirs / ours"),
        ("against flashinfer", "largest difference"),
        ("against flash_attn", "theirs / ours"),
        ("against flash_attn", "largest difference"),
        ("vLLM's rollouts", "tokens/s"),
        ("FSDP", "tokens/s over one card's"),
        ("FSDP", "gradient norm, relative difference"),
        ("FSDP", "peak / plan of a rank"),
        ("training step", "MFU"),
        *((row.name, "peak / plan") for row in command.ROWS.values() if row.planned),
        *(("gradients", f"{path} bfloat16") for path in ("chunked", "linear", "gather", "kept", "waves")),
    }
    for row, figure in (
        *(("gradients", f"{path} float32") for path in ("chunked", "linear", "gather", "kept", "waves")),
        ("same bits", "tensors that differ"),
        ("against varlen_attn", "largest difference"),
        ("sampling", "ids that differ"),
        ("batch invariance", "completions that differ"),
        ("graphs", "completions that differ"),
        ("one pass", "rows at a time / tokens"),
    ):
        assert figures[row, figure]["verdict"] == "met", (row, figure)
    table = (tmp_path / "gpu.md").read_text()
    assert all(name in table for name in command.ROWS)


def test_every_row_is_walked_on_a_pretended_gpu():
    """In a process of its own, since this one may be in Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", "bench.gpu", "--dry"], env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.partition(":")[0] for line in lines[:-1]] == [*command.ROWS, "the product"]
    assert lines[-1] == "0 failed; nothing was measured."
    walked = "not walked, for torch" if torch.version.cuda is None else "on a pretended cuda:0"
    assert lines[-2].startswith(f"the product: {walked}")
    assert all("on a pretended sm_90" in line for line in lines[:-2])
    kernels = {name: re.search(r"(\d+) kernels", line)[1] for name, line in zip(command.ROWS, lines)}
    assert kernels["paged attention"] == kernels["against flashinfer"] == "2" and int(kernels["training step"]) > 5
    held = {
        name: float(found[1])
        for name, line in zip(command.ROWS, lines)
        if (found := re.search(r"([\d.]+) of the", line))
    }
    assert held.keys() == {name for name, row in command.ROWS.items() if row.planned} and max(held.values()) <= 1
    # Of what runs a model the plan is no more than a tenth too much.
    assert (
        min(
            held[name]
            for name in ("decode step", "idle GPU", "rollouts", "batch invariance", "graphs", "training step")
        )
        >= 0.9
    )


FAULTS = {
    "torch.ones(3, device=product.GPU) + torch.ones(3)": "device",
    "product.Captured(None)(lambda *numbers: torch.ones(3, device=product.GPU).sum().item(), 0, 1, 1)": "captured step",
    "torch.ops.aten.histogram.bin_ct(torch.ones(3, device=product.GPU))": "no CUDA kernel",
}


@pytest.mark.skipif(torch.version.cuda is None, reason="this build of torch knows no CUDA")
def test_on_a_pretended_gpu_the_faults_of_a_first_day_raise():
    code = ["import torch", "from bench.gpu import product", "with product.on_pretended_gpu(lambda *_: None):"]
    for fault in FAULTS:
        code += [" try:", f"  {fault}", "  print('passed')", " except Exception as error:", "  print(repr(error))"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], env=environment, capture_output=True, text=True)
    told = done.stdout.splitlines()
    assert len(told) == len(FAULTS), done.stdout + done.stderr
    assert all(word in line for word, line in zip(FAULTS.values(), told)), told


def test_a_peer_that_is_not_installed_is_skipped_and_a_stand_in_shows_that_its_row_is_right():
    from bench.gpu.stand_ins import stand_ins

    rows = [command.ROWS[name] for name in ("against flashinfer", "against flash_attn")]
    with stand_ins():
        for found in (row.run(TINY) for row in rows):
            assert found["largest difference"] < 1e-6 and found["theirs / ours"] > 0
        assert command.ROWS["vLLM's rollouts"].run(TINY)["tokens/s"] > 0
        case = head_case(TINY)
        expected = naive(case.hidden, case.weight, case.targets)
        for peer in (liger, cut_cross_entropy):
            torch.testing.assert_close(peer(case.hidden, case.weight, case.targets), expected)


def test_the_config_that_vllm_gets_is_the_models_own(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(peers.config_json(seven_b(Sizes()))))
    assert read_config(tmp_path) == seven_b(Sizes())
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert (theirs.num_hidden_layers, theirs.hidden_size, theirs.vocab_size) == (28, 3584, 152064)


def norms_of(processes: int, folder: Path) -> list[float]:
    gathered(processes, *start(rank_of_a_row, processes, str(folder)))
    return [json.loads((folder / f"{r}.json").read_text())["norm"] for r in range(processes)]


def rank_of_a_row(pipe, folder: str) -> None:
    sharded.main(["cpu", folder])
    pipe.send_bytes(pickle.dumps((True, None)))


def test_two_ranks_take_the_step_of_one(tmp_path):
    alone, both = norms_of(1, tmp_path), norms_of(2, tmp_path)
    assert both == pytest.approx([alone[0]] * 2, rel=1e-5) and alone[0] > 0


def test_flops_of_a_step_by_hand():
    """One layer of width 8: 2 heads over 1 of 4 numbers, an MLP of 12, a tied head of 20 rows; 5 tokens in one sequence."""
    config = ModelConfig("Qwen2ForCausalLM", 20, 8, 12, 1, 2, 1, 4, 1e-6, 1e4, 64, True, torch.float32)
    weights = 8 * (8 + 4 + 4) + 8 * 8 + 3 * 8 * 12 + 20 * 8
    assert flops(config, 5, 5) == 6 * 5 * (weights + 2 * 4 * 5)


def test_without_a_gpu_the_rows_and_bars_are_printed(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in command.ROWS) and "TFLOP/s at least 700" in printed
    assert printed.splitlines()[-1] == "No GPU here: nothing was measured." and not list(tmp_path.iterdir())


def test_a_row_measured_again_keeps_the_others(tmp_path):
    before = command.new_record("CPU") | {"rows": {"sampling": {"what": "", "seconds": 1, "figures": []}}}
    (tmp_path / "gpu.json").write_text(json.dumps(before))
    command.main(["--sizes", "tiny", "--out", str(tmp_path), "--only", "addmm"])
    assert list(json.loads((tmp_path / "gpu.json").read_text())["rows"]) == ["sampling", "addmm"]


def test_rows_without_time_left_are_skipped(tmp_path):
    command.main(["--sizes", "tiny", "--out", str(tmp_path), "--minutes", "0"])
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    verdicts = {figure["verdict"] for row in rows.values() for figure in row["figures"]}
    assert verdicts == {"skipped (no time left; measure it with --only)"}


def test_a_row_that_overruns_dies_or_fails_takes_no_other_down():
    worker = command.Worker(None, echo)
    for word, limit, error in (
        ("sleep", 0.1, "took over"),
        ("die", 60, "the process ended"),
        ("fail", 60, "ValueError: x"),
    ):
        first = worker.process.pid
        assert error in worker.run(word, limit)["error"]
        assert worker.process.pid != first
    assert worker.run("row", 60) == {"found": {}, "seconds": 0}
    worker.stop()


def test_a_bar_follows_the_card():
    rate, moved, exact = Bar("at least", 450, "flops"), Bar("at most", 18, "bandwidth"), Bar("at most", 0)
    h100, a100 = card_of("NVIDIA H100 80GB HBM3"), card_of("NVIDIA A100-SXM4-80GB")
    assert rate.on(h100) == rate and card_of("NVIDIA GeForce GTX 1080") is None
    assert rate.on(a100).value == pytest.approx(450 * 312 / 989)
    assert moved.on(a100).value == pytest.approx(18 * 3.35 / 2.039)
    assert rate.on(None) is None and exact.on(None) == exact
    assert card_of("NVIDIA H100 PCIe") == CARDS["H100 PCIe"]


def test_verdicts_name_what_is_missing():
    row = Row("x", "", {"fast": Bar("at least", 2, "flops"), "right": Bar("at most", 0)}, lambda sizes: {})
    found = row.judge({"found": {"fast": 1.0, "right": 0.0, "more": 5.0}}, CARDS["H100"])
    assert [(f["figure"], f["verdict"]) for f in found] == [("fast", "missed"), ("right", "met"), ("more", "")]
    found = row.judge({"found": {"fast": "not installed", "right": 0.0}}, None)
    assert [f["verdict"] for f in found] == ["skipped (not installed)", "met"]
    assert row.judge({"found": {"fast": 1.0}}, None)[0]["verdict"] == "an H100's bar: at least 2"
    assert {f["verdict"] for f in row.judge({"error": "boom"}, None)} == {"missed (boom)"}


def test_idle_is_what_no_kernel_covers_of_the_second_half():
    assert idle([(0, 1), (10, 12), (11, 14), (13, 13.5), (18, 20)]) == pytest.approx(4 / 10)
    assert idle([(0, 16), (14, 20)]) == 0
