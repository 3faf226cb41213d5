"""FLOPs, bytes and the time that no kernel on a chip can beat: arithmetic, not measurements."""

from o1core.kernels import configs, triton_linear
from o1core.kernels.triton_tiles import BAND_TILES

KEPT_WAVE = 8192  # rows whose exponentials are kept at a time: 2.5 GB in bf16
CHIPS = {"A800": (312e12, 2.039e12), "H100": (989e12, 3.35e12)}  # dense bf16 FLOP/s, bytes/s


def tile_bytes(n: int, h: int, v: int) -> int:
    """Bytes of both operands of one of our kernels over tiles, as often as they are read from global memory: a band of row
    tiles stays in L2 (14 MB at H 3584) while the weight passes once, so hidden is read once and the weight once a band."""
    band = BAND_TILES * configs.LINEAR["sm_90"][2].constants["BLOCK_N"]
    return 2 * h * (n + -(-n // band) * v)


def work(n: int, h: int, v: int) -> dict[str, tuple[float, float]]:
    """FLOPs and bytes of global memory of each op in bf16. Operands of our kernels are counted as often as they are read
    (tile_bytes); those of the library's products, whose order of tiles is its own, once a product. The scratch is a large
    card's."""
    tiles = -(-v // configs.LINEAR["sm_90"][2].constants["BLOCK_V"])
    _, chunk = triton_linear.split(n, v, h, 2, 4 * triton_linear.SCRATCH_BYTES)
    chunks = -(-v // chunk)
    # A chunk of the vocabulary: our kernel reads hidden and the chunk, two products read them and dZ again.
    gradients = tile_bytes(n, h, v) + (chunks - 1) * 2 * n * h
    products = 2 * 2 * h * v + chunks * 2 * 2 * n * h + 3 * 2 * n * v
    add_to_d_hidden = chunks * 2 * 4 * n * h
    waves = -(-n // KEPT_WAVE)
    kept_forward = waves * tile_bytes(min(n, KEPT_WAVE), h, v)
    kept_products = waves * 2 * 2 * v * h + 2 * 2 * n * h
    add_to_d_weight = waves * 2 * 4 * v * h if waves > 1 else 2 * v * h
    return {
        "linear_logprob forward": (2 * n * v * h, tile_bytes(n, h, v) + 2 * 2 * 4 * tiles * n),
        "linear_logprob backward": (6 * n * v * h, gradients + products + add_to_d_hidden),
        "kept exponentials, all": (6 * n * v * h, kept_forward + kept_products + add_to_d_weight + (3 + 2) * 2 * n * v),
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
