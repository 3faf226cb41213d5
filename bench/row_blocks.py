"""What a decode step's matrix products cost by their number of rows, and which numbers give a row the same bits here.

    python -m bench.row_blocks [--dtype float32] [--hidden 896 --ffn 4864 --vocab 151936]

The engine gives products 64 rows, or another number where it has the same bits on this machine (o1core/rollout/row_bits.py).
The table says what is lost where only 64 rows may be used: a step of 8 rows costs as much as one of 64.
"""

import argparse
import time
from statistics import median

import torch
from torch import Tensor

from o1core.rollout.row_bits import product, product_sizes


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    ap.add_argument("--runs", type=int, default=5, help="timings of each number of rows (default: %(default)s)")
    for name, default in (("hidden", 896), ("ffn", 4864), ("vocab", 151936)):
        ap.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    args = ap.parse_args()
    dtype, hidden = getattr(torch, args.dtype), args.hidden
    shapes = {
        "qkv": (hidden + 256, hidden, True),
        "o": (hidden, hidden, False),
        "gate, up": (2 * args.ffn, hidden, False),
        "down": (hidden, args.ffn, False),
        "head": (args.vocab, hidden, False),
    }
    batches = product_sizes(tuple(shapes.values()), dtype, torch.device("cpu"), False, torch.get_num_threads())
    print(f"{args.dtype}, {torch.get_num_threads()} threads; batches of {batches.base} rows hold: {batches.holds}")
    weights = {name: torch.randn(shape[:2]).to(dtype) for name, shape in shapes.items()}
    print(f"{'rows':>5}{'block':>7}  {'ms per layer':>12}{'ms of the head':>16}{'us per row and layer':>22}")
    for rows in (8, 16, 24, 32, 48, 64, 128):
        layer = sum(seconds(weights[name], rows, args.runs) for name in shapes if name != "head")
        head = seconds(weights["head"], rows, args.runs)
        used = "+".join(map(str, batches.cut(rows)))
        print(f"{rows:5}{used:>7}  {layer * 1e3:12.2f}{head * 1e3:16.1f}{layer / rows * 1e6:22.1f}", flush=True)


@torch.inference_mode()
def seconds(weight: Tensor, rows: int, runs: int) -> float:
    """Median seconds of one product."""
    x, multiply = torch.randn(rows, weight.shape[1]).to(weight.dtype), product(weight, None, packed=False)
    taken = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        multiply(x)
        taken.append(time.perf_counter() - start)
    return median(taken[1:])


if __name__ == "__main__":
    main()
