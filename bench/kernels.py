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
import importlib.util
import itertools
import json
import platform
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import quantiles

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from o1core import kernels
from o1core.kernels import fused_surrogate, torch_reference

SAMPLES = 30
CLIP = {"eps_low": 0.2, "eps_high": 0.2, "normalizer": 16.0}
BYTES_A_LOGIT = 13  # that the naive way holds at its peak: three float32 tensors (measured: 12.0)


def naive(hidden, weight, targets):
    return torch.log_softmax(F.linear(hidden, weight).float(), -1).gather(1, targets[:, None])[:, 0]


def torch_fused(hidden, weight, targets, policy):
    options = torch.nn.LinearCrossEntropyOptions(acc_policy=policy)
    return -F.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options).float()


def liger(hidden, weight, targets):
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return -LigerFusedLinearCrossEntropyLoss(reduction="none")(weight, hidden, targets).float()


def cut_cross_entropy(hidden, weight, targets):
    from cut_cross_entropy import linear_cross_entropy

    return -linear_cross_entropy(hidden, weight, targets, reduction="none").float()


def surrogate_rest(tokens, clipped, device):
    """ref_logp minus logp, advantage, cu_seqlens, mask of 16 sequences; the fraction `clipped` of tokens and sequences
    has a ratio beyond the clip."""
    generator = torch.Generator().manual_seed(3)
    shift = 1e-4 * torch.randn(tokens, generator=generator)
    sequences = 16
    cu_seqlens = torch.linspace(0, tokens, sequences + 1).long()
    advantage = torch.where(torch.rand(sequences, generator=generator) < 0.5, 1.0, -1.0)
    for s in range(round(clipped * sequences)):
        shift[cu_seqlens[s] : cu_seqlens[s + 1]] -= advantage[s]
    return shift.to(device), advantage.to(device), cu_seqlens.to(device), None


def surrogate_of(logp_of, ratio, hidden, weight, targets, case):
    """The loss of a provider's log-probs; ours goes through linear_surrogate, which never returns them."""
    shift, *rest = case["surrogate"]
    ref_logp = case["logp"] + shift
    if logp_of is None:
        return kernels.linear_surrogate(hidden, weight, targets, ref_logp, *rest, ratio=ratio, **CLIP)[0]
    logp = logp_of(hidden, weight, targets)
    return kernels.clipped_surrogate(logp, ref_logp, *rest, ratio=ratio, **CLIP)[0]


def logp_providers(device):
    providers = {
        "ours": kernels.linear_logprob,
        "naive": naive,
        "linear_cross_entropy": partial(torch_fused, policy="auto"),
        "linear_cross_entropy, accurate": partial(torch_fused, policy="accurate"),
    }
    for module, provider in {"liger_kernel": liger, "cut_cross_entropy": cut_cross_entropy}.items():
        if device == "cuda" and importlib.util.find_spec(module):
            providers[module] = provider
    return providers


def operations(device):
    """{operation: {provider: function(hidden, weight, targets, case) -> a tensor to differentiate}}"""
    logp = logp_providers(device)
    ops = {"linear_logprob": {n: lambda h, w, t, case, f=f: f(h, w, t) for n, f in logp.items()}}
    for ratio in ("sequence_mean", "token"):
        ways = {"ours": None, "naive": naive, "ours, two ops": kernels.linear_logprob}
        ops[f"linear_surrogate, {ratio}"] = {n: partial(surrogate_of, f, ratio) for n, f in ways.items()}
    return ops


def make_case(args, tokens, clipped=0.0):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, args.hidden, generator=generator)
    weight = torch.randn(args.vocab, args.hidden, generator=generator) * (3 * args.hidden**-0.5)
    case = {
        "targets": torch.randint(0, args.vocab, (tokens,), generator=generator).to(args.device),
        "upstream": torch.randn(tokens, generator=generator).to(args.device),
        "surrogate": surrogate_rest(tokens, clipped, args.device),
    }
    for name, value in {"hidden": hidden, "weight": weight}.items():
        case[name] = value.to(args.device, getattr(torch, args.dtype)).requires_grad_()
    with torch.no_grad():
        case["logp"] = kernels.linear_logprob(case["hidden"], case["weight"], case["targets"])
    return case


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def differentiate(output, case):
    leaves = case["hidden"], case["weight"]
    return torch.autograd.grad(output, leaves, case["upstream"] if output.dim() else None)


def sample(function, case, device):
    """Milliseconds of one call in each mode."""
    marks = []

    def mark():
        wait(device)
        marks.append(time.perf_counter() * 1e3)

    inputs = case["hidden"], case["weight"], case["targets"], case
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


def spread(values):
    """p20, p50, p80."""
    cuts = quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
    return [round(cuts[i], 2) for i in (1, 4, 7)]


def time_round(providers, case, device, seconds):
    """{provider: {mode: [p20, p50, p80], "samples": n}}, the providers taking turns. One whose first call takes more
    than a third of the time is left out, but for ours and the naive one."""
    times = {}
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


def resident(field):
    """VmRSS or VmHWM (the peak) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_of(args, operation, provider, tokens):
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
        gradients = differentiate(function(case["hidden"], case["weight"], case["targets"], case), case)
        peak = torch.cuda.max_memory_allocated() if args.device == "cuda" else resident("VmHWM")
    return {"peak": peak - before, "gradients": sum(g.nbytes for g in gradients)}


def peak_in_a_fresh_process(args, operation, provider, tokens):
    command = [sys.executable, "-m", "bench.kernels", "--device", args.device, "--vocab", str(args.vocab)]
    command += ["--hidden", str(args.hidden), "--dtype", args.dtype, "--peak", operation, provider, str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr.strip().splitlines()[-1:]}


def errors(args, providers, tokens=128):
    """{provider: largest error of logp, relative error (Frobenius) of d_hidden and d_weight} against float64."""
    case = make_case(args, tokens)
    leaves = [case[name].detach().double().requires_grad_() for name in ("hidden", "weight")]
    truth = torch_reference.linear_logprob(*leaves, case["targets"])
    true_gradients = torch.autograd.grad(truth, leaves, case["upstream"].double())
    result = {}
    for name, function in providers.items():
        logp = function(case["hidden"], case["weight"], case["targets"], case)
        found = differentiate(logp, case)
        relative = [((g.double() - t).norm() / t.norm()).item() for g, t in zip(found, true_gradients)]
        result[name] = dict(zip(("logp", "d_hidden", "d_weight"), ((logp - truth).abs().max().item(), *relative)))
    return result


def addmm_flops(_, a_shape, b_shape, *args, **kwargs):
    return 2 * a_shape[0] * a_shape[1] * b_shape[1]


def flop_table(vocab=2048, hidden=64, tokens=1024):
    """FLOPs of linear_surrogate, forward and backward, over NVH against the fraction of rows that clip: by formula, and
    as torch's own counter counts them in a run of the CPU path (whose backward has 3 more columns than H)."""
    shape = argparse.Namespace(vocab=vocab, hidden=hidden, device="cpu", dtype="bfloat16")
    in_place = {torch.ops.aten.addmm_: addmm_flops}  # not among those that torch's counter knows
    rows = []
    choose = fused_surrogate.rows_a_wave
    try:
        for clipped in (0.0, 0.25, 0.5, 0.75, 1.0):
            row = {"clipped": clipped, "two passes": 2 + 6 * (1 - clipped), "one pass": 2 + 4 * (1 - clipped)}
            case = make_case(shape, tokens, clipped)
            for way, wave in {"two passes": 0, "one pass": tokens}.items():
                fused_surrogate.rows_a_wave = lambda *_, wave=wave: wave
                with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
                    loss = surrogate_of(None, "token", case["hidden"], case["weight"], case["targets"], case)
                    differentiate(loss, case)
                row[way + ", counted"] = round(counter.get_total_flops() / (tokens * vocab * hidden), 2)
            rows.append(row)
    finally:
        fused_surrogate.rows_a_wave = choose
    return rows


def markdown(rows):
    """A list of dicts with the same keys as a table."""
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    lines += [" | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def report(record):
    print(f"\n## {record['operation']}, {record['tokens']} tokens\n")
    rows = []
    for name, result in record["results"].items():
        row = {"provider": name}
        for mode in ("no-grad", "forward", "backward", "full"):
            low, middle, high = result[mode]
            row[f"{mode} ms (p20, p80)"] = f"{middle:.0f} ({low:.0f}, {high:.0f})"
        base = record["results"].get("naive", result)
        row |= {f"{mode} / naive": result[mode][1] / base[mode][1] for mode in ("no-grad", "full")}
        memory = result["memory"]
        row["MB above inputs"] = round(memory["peak"] / 1e6) if "peak" in memory else str(memory["error"])
        row["less gradients"] = round((memory["peak"] - memory["gradients"]) / 1e6) if "peak" in memory else ""
        rows.append(row | {"samples": result["samples"]})
    print(markdown(rows), flush=True)


def plot(records, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(r["operation"] for r in records))
    figure, panels = pyplot.subplots(1, len(names), figsize=(5 * len(names), 4), squeeze=False)
    for panel, name in zip(panels[0], names):
        of_name = [r for r in records if r["operation"] == name]
        for provider in dict.fromkeys(p for r in of_name for p in r["results"]):
            points = [(r["tokens"], r["results"][provider]["full"]) for r in of_name if provider in r["results"]]
            x = [n for n, _ in points]
            low, middle, high = zip(*(values for _, values in points))
            panel.plot(x, middle, marker="o", label=provider)
            panel.fill_between(x, low, high, alpha=0.2)
        panel.set(title=name, xlabel="tokens", ylabel="forward + backward, ms (p50; band p20 to p80)")
        panel.set(xscale="log", yscale="log")
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def available_bytes(device):
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def main():
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
        print(json.dumps(peak_of(args, *args.peak[:2], int(args.peak[2]))))
        return

    name = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    if args.device == "cpu":
        name = next(
            (x.split(": ")[1] for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), name
        )
    setting = {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "dtype": args.dtype}
    setting |= {"vocab": args.vocab, "hidden": args.hidden}
    print(f"# Kernels on {name}\n\n{setting}")
    ops = operations(args.device)
    ops = {key: ops[key] for key in args.operations or ops}
    records = []
    for tokens in sorted(args.tokens):
        for operation, providers in ops.items():
            fits = dict(providers)
            if tokens * args.vocab * BYTES_A_LOGIT > available_bytes(args.device):
                print(
                    f"\n{operation}, {tokens} tokens: naive left out, its logits do not fit in the memory that is free"
                )
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
