"""Log-prob and surrogate ops against other ways to compute them: time, memory, error and FLOPs.

    python -m bench.kernels [--device cpu|cuda] [--tokens 1024 2048 4096 8192] [--vocab 151936] [--hidden 896]
                            [--dtype bfloat16] [--seconds 120] [--out runs/bench-kernels]

Each number of tokens is a round in which all providers take turns, so that ratios are fair; --seconds bounds one round,
and the table says how many samples it allowed (30 where they fit). Modes: no-grad, forward, backward, full (the two of
one call together). Memory is the peak above the inputs, gradients included, of a fresh process a provider (on a GPU: of
the allocator). Error is against float64 on the same numbers. Results go to OUT/kernels.json and OUT/kernels.png.

Inputs look like training: random weights, non-uniform upstream gradients, and for the surrogate small log-ratios of
which none is clipped, so that nothing is saved by dropping rows; that saving is the FLOP table at the end. Providers that
are not installed, or that would not fit in memory, are left out, and the output says so.
"""

import argparse
import ctypes
import itertools
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import quantiles
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.kernel_providers import Case, Provider, make_case, operations, surrogate_of
from bench.kernel_tables import markdown, plot, report
from o1core.kernels.numbers import OnePassBudget
from tests.kernels import reference

SAMPLES = 30
BYTES_A_LOGIT = 13  # that the naive way holds at its peak: three float32 tensors (measured: 12.0)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def differentiate(output: Tensor, case: Case) -> tuple[Tensor, ...]:
    leaves = case.hidden, case.weight
    return torch.autograd.grad(output, leaves, case.upstream if output.dim() else None)


def sample(function: Provider, case: Case, device: str) -> dict[str, float]:
    """Milliseconds of one call in each mode."""
    marks: list[float] = []

    def mark() -> None:
        wait(device)
        marks.append(time.perf_counter() * 1e3)

    inputs = case.hidden, case.weight, case.targets, case
    mark()
    with torch.no_grad():
        function(*inputs)
    mark()
    output = function(*inputs)
    mark()
    differentiate(output, case)
    mark()
    no_grad, forward, backward = (b - a for a, b in itertools.pairwise(marks))
    return {"no-grad": no_grad, "forward": forward, "backward": backward, "full": forward + backward}


def spread(values: list[float]) -> list[float]:
    """p20, p50, p80."""
    cuts = quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
    return [round(cuts[i], 2) for i in (1, 4, 7)]


def time_round(providers: dict[str, Provider], case: Case, device: str, seconds: float) -> dict[str, dict[str, Any]]:
    """{provider: {mode: [p20, p50, p80], "samples": n}}, the providers taking turns. One whose first call takes more
    than a third of the time is left out, but for ours and the naive one."""
    times: dict[str, list[dict[str, float]]] = {}
    for name, function in providers.items():
        first = sum(sample(function, case, device)[mode] for mode in ("no-grad", "full")) / 1e3
        if first < seconds / 3 or name in ("ours", "naive"):
            times[name] = []
        else:
            print(f"\n{name}: left out from here on, a first call in every mode took {first:.0f} s")
    start = time.perf_counter()
    while len(times["ours"]) < SAMPLES and (time.perf_counter() - start < seconds or len(times["ours"]) < 3):
        for name in times:
            times[name].append(sample(providers[name], case, device))
    return {
        name: {mode: spread([s[mode] for s in samples]) for mode in samples[0]} | {"samples": len(samples)}
        for name, samples in times.items()
    }


def resident(field: str) -> int:
    """VmRSS or VmHWM (the peak) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_of(args: argparse.Namespace, operation: str, provider: str, tokens: int) -> dict[str, int]:
    """Bytes above the inputs at the peak of one full call. In a process of its own on a CPU, where the peak is the
    resident set's; a small call first lets libraries allocate what they keep. (Linux: the peak is set back.)"""
    small = argparse.Namespace(**{**vars(args), "vocab": 256, "hidden": 64})
    function = operations(args.device)[operation][provider]
    for a, n in ((small, 64), (args, tokens)):
        case = make_case(a, n)
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            before = resident("VmRSS")
        gradients = differentiate(function(case.hidden, case.weight, case.targets, case), case)
        peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else resident("VmHWM")
    return {"peak": peak - before, "gradients": sum(g.nbytes for g in gradients)}


def peak_in_a_fresh_process(args: argparse.Namespace, operation: str, provider: str, tokens: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.kernels", "--device", args.device, "--vocab", str(args.vocab)]
    command += ["--hidden", str(args.hidden), "--dtype", args.dtype, "--peak", operation, provider, str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr.strip().splitlines()[-1:]}


def errors(args: argparse.Namespace, providers: dict[str, Provider], tokens: int = 128) -> dict[str, dict[str, float]]:
    """{provider: largest error of logp, relative error (Frobenius) of d_hidden and d_weight} against float64."""
    case = make_case(args, tokens)
    hidden, weight = (x.detach().double().requires_grad_() for x in (case.hidden, case.weight))
    truth = reference.linear_logprob(hidden, weight, case.targets)
    true_gradients = torch.autograd.grad(truth, (hidden, weight), case.upstream.double())
    result = {}
    for name, function in providers.items():
        logp = function(case.hidden, case.weight, case.targets, case)
        found = differentiate(logp, case)
        relative = [((g.double() - t).norm() / t.norm()).item() for g, t in zip(found, true_gradients)]
        result[name] = dict(zip(("logp", "d_hidden", "d_weight"), ((logp - truth).abs().max().item(), *relative)))
    return result


def addmm_flops(_: Any, a_shape: torch.Size, b_shape: torch.Size, *args: Any, **kwargs: Any) -> int:
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


def flop_table(vocab: int = 2048, hidden: int = 64, tokens: int = 1024) -> list[dict[str, float]]:
    """FLOPs of linear_surrogate, forward and backward, over NVH against the fraction of rows that clip: by formula, and
    as torch's own counter counts them in a run of the CPU path (whose backward has 3 more columns than H)."""
    shape = argparse.Namespace(vocab=vocab, hidden=hidden, device="cpu", dtype="bfloat16")
    in_place = {torch.ops.aten.addmm_: addmm_flops}  # not among those that torch's counter knows
    rows = []
    for clipped in (0.0, 0.25, 0.5, 0.75, 1.0):
        row = {"clipped": clipped, "two passes": 2 + 6 * (1 - clipped), "one pass": 2 + 4 * (1 - clipped)}
        case = make_case(shape, tokens, clipped)
        for way, wave in {"two passes": 0, "one pass": tokens}.items():
            counter = FlopCounterMode(display=False, custom_mapping=in_place)
            with mock.patch.object(OnePassBudget, "rows_a_wave", return_value=wave), counter:
                loss = surrogate_of(None, "token", case.hidden, case.weight, case.targets, case)
                differentiate(loss, case)
            row[way + ", counted"] = round(counter.get_total_flops() / (tokens * vocab * hidden), 2)
        rows.append(row)
    return rows


def available_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def processor(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.split(": ")[1] for x in lines if "model name" in x), platform.processor() or platform.machine())


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A record for each operation at each number of tokens, reported as it is made."""
    ops = operations(args.device)
    records = []
    for tokens in sorted(args.tokens):
        for operation in args.operations or ops:
            providers = ops[operation]
            fits = dict(providers)
            if tokens * args.vocab * BYTES_A_LOGIT > available_bytes(args.device):
                print(f"\n{operation}, {tokens} tokens: naive left out, its logits do not fit in the free memory")
                del fits["naive"]
            case = make_case(args, tokens)
            results = time_round(fits, case, args.device, args.seconds)
            del case
            for provider in fits.keys() - results.keys():
                del providers[provider]
            for provider, result in results.items():
                result["memory"] = peak_in_a_fresh_process(args, operation, provider, tokens)
            records.append({"operation": operation, "tokens": tokens, "results": results})
            report(records[-1])
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--operations", nargs="+", help="the names in the report (default: all)")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-kernels"))
    parser.add_argument("--peak", nargs=3, metavar=("OPERATION", "PROVIDER", "TOKENS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(json.dumps(peak_of(args, args.peak[0], args.peak[1], int(args.peak[2]))))
        return

    name = processor(args.device)
    setting = {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "dtype": args.dtype}
    setting |= {"vocab": args.vocab, "hidden": args.hidden}
    print(f"# Kernels on {name}\n\n{setting}")
    records = measure(args)
    accuracy = errors(args, operations(args.device)["linear_logprob"])
    print("\n## Error against float64: largest of logp (nats), relative of the gradients\n")
    print(markdown([{"provider": p, **e} for p, e in accuracy.items()]))
    flops = flop_table()
    print("\n## FLOPs of linear_surrogate over NVH (stored logits: 6) against the fraction of rows clipped\n")
    print(markdown(flops))
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"setting": setting, "records": records, "errors": accuracy, "flops": flops}
    (args.out / "kernels.json").write_text(json.dumps(record, indent=1))
    plot(records, args.out / "kernels.png")
    print(f"\n{args.out}/kernels.json, {args.out}/kernels.png")


if __name__ == "__main__":
    main()
