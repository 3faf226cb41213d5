"""FLOPs, bytes and the time that no kernel on a chip can beat: arithmetic, not measurements."""

from o1core.kernels import configs, triton_linear

KEPT_WAVE = 2048  # rows whose exponentials are kept at a time: 0.6 GB in bf16
CHIPS = {"A800": (312e12, 2.039e12), "H100": (989e12, 3.35e12)}  # dense bf16 FLOP/s, bytes/s


def work(n: int, h: int, v: int) -> dict[str, tuple[float, float]]:
    """FLOPs and bytes of global memory of each op in bf16, every operand read once a product (L2 makes up the rest)."""
    tiles = -(-v // configs.LINEAR["sm_90"][2].constants["BLOCK_V"])
    operands = 2 * h * (n + v)
    _, chunk = triton_linear.split(n, v, h, 2)
    chunks = -(-v // chunk)
    one_gradient_pass = 3 * 2 * n * v  # dZ written once, read by two products
    add_to_d_hidden = 2 * 4 * n * h
    waves = -(-n // KEPT_WAVE)
    add_to_d_weight = 2 * 4 * v * h if waves > 1 else 2 * v * h
    return {
        "linear_logprob forward": (2 * n * v * h, operands + 2 * 2 * 4 * tiles * n),
        "linear_logprob backward": (
            6 * n * v * h,
            3 * operands + one_gradient_pass + chunks * (add_to_d_hidden + 2 * 2 * n * h),
        ),
        "kept exponentials, all": (
            6 * n * v * h,
            6 * n * h + waves * (3 * 2 * v * h + add_to_d_weight) + one_gradient_pass + 2 * 2 * n * v,
        ),
        "gather_logprob forward": (0, 2 * n * v),
        "gather_logprob backward": (0, 2 * 2 * n * v),
    }


def print_roofline(v: int = 152064) -> None:
    print(f"\nRoofline, bf16, V {v}: larger of FLOPs / peak and bytes / bandwidth, in ms (arithmetic, not measured)")
    print(f"{'op':<26}{'H':>6}{'N':>8}{'TFLOP':>9}{'GB':>8}" + "".join(f"{chip:>9}" for chip in CHIPS))
    for h in (3584, 5120):
        for n in (8192, 65536):
            for op, (flops, moved) in work(n, h, v).items():
                times = "".join(f"{1e3 * max(flops / peak, moved / band):>9.2f}" for peak, band in CHIPS.values())
                print(f"{op:<26}{h:>6}{n:>8}{flops / 1e12:>9.1f}{moved / 1e9:>8.1f}{times}")
