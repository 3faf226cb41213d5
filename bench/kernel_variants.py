"""Every Triton kernel that ships and every way in which it is launched: what bench.compiled_kernels compiles."""

from dataclasses import dataclass, replace
from typing import Any

import triton.language as tl

from o1core.kernels import configs
from o1core.kernels.triton_advantage import advantage_kernel
from o1core.kernels.triton_attention_merge import attention_merge_kernel
from o1core.kernels.triton_gather_backward import gather_backward_kernel
from o1core.kernels.triton_gather_forward import gather_forward_kernel
from o1core.kernels.triton_kept_gradient import kept_gradient_kernel
from o1core.kernels.triton_logit_gradient import logit_gradient_kernel
from o1core.kernels.triton_merge import merge_kernel
from o1core.kernels.triton_paged_attention import paged_attention_kernel
from o1core.kernels.triton_partial_sums import partial_sums_kernel
from o1core.kernels.triton_partial_sums_tma import partial_sums_tma_kernel
from o1core.kernels.triton_sample import sample_kernel
from o1core.kernels.triton_surrogate import LEVELS, surrogate_kernel
from o1core.kernels.triton_write_pages import write_pages_kernel

KERNELS = {
    "linear.partial_sums": partial_sums_kernel,
    "linear.partial_sums_tma": partial_sums_tma_kernel,
    "linear.merge": merge_kernel,
    "linear.logit_gradient": logit_gradient_kernel,
    "kept.gradient": kept_gradient_kernel,
    "gather.forward": gather_forward_kernel,
    "gather.backward": gather_backward_kernel,
    "surrogate": surrogate_kernel,
    "advantage": advantage_kernel,
    "sample": sample_kernel,
    "pages.attention": paged_attention_kernel,
    "pages.merge": attention_merge_kernel,
    "pages.write": write_pages_kernel,
}
PRODUCTS = ("linear.partial_sums", "linear.partial_sums_tma", "linear.logit_gradient", "pages.attention")
PAGES = ("pages.attention", "pages.merge", "pages.write")
# Kernels that stream matrices, whose loads must be wide or asynchronous. The others read a few numbers a row.
STREAMS = (*PRODUCTS, "kept.gradient", "gather.forward", "gather.backward")
COMPUTE_CAPABILITY = {"sm_80": 80, "sm_90": 90, "sm_100": 100, "other": 86}
DTYPES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}
TABLES = {
    "linear.merge": configs.MERGE,
    "kept.gradient": configs.KEPT,
    "gather.forward": configs.GATHER,
    "gather.backward": configs.GATHER,
    "surrogate": configs.SURROGATE,
    "advantage": configs.ADVANTAGE,
    "sample": configs.SAMPLE,
    "pages.merge": configs.ATTENTION_MERGE,
    "pages.write": configs.WRITE_PAGES,
}

# Arguments divisible by 16, beside all pointers, in every launch at the sizes that matter. The number of rows is not,
# nor is the size of a vocabulary without its padding.
DIVISIBLE = (
    "room",
    "width",
    "hidden_stride",
    "weight_stride",
    "d_logits_stride",
    "kept_stride",
    "row_stride",
    "d_row_stride",
    "query_stride",
    "key_stride",
    "value_stride",
    "page_stride",
)
PHYSICAL_COLUMNS = ("gather.forward", "gather.backward")  # there, columns is what a row holds, padding included
POINTERS_OF_INPUT = (
    *("hidden", "weight", "logits", "d_logits", "kept", "out"),
    *("queries", "keys", "values", "new_keys", "new_values", "cos", "sin", "turned"),
)
INT32_POINTERS_OF_PAGES = ("page_table", "lengths")
INT64_POINTERS = ("targets", "picked", "cu_seqlens", "lengths", "group", "ids")
INT32_POINTERS = ("flags",)
FLOAT64_POINTERS = ("uniforms",)
BOOL_POINTERS = ("mask", "correct")
INT_SCALARS = (
    *("rows", "columns", "tiles", "blocks", "first_column", "vocab_size", "sequences", "samples", "kept_rows"),
    *("splits", "query_heads", "table_stride", "top_k"),
)
DESCRIPTOR_ROWS = {"hidden": "BLOCK_N", "weight": "BLOCK_V"}
FLOAT_SCALARS = ("inv_temperature", "low", "high", "per_unit", "lam", "scale", "top_p", "temperature")


@dataclass(frozen=True)
class Variant:
    """One kernel as it is launched: target chip, dtype of the inputs, compile-time flags beside the launch's own. Sizes
    of 1 are compile-time constants to Triton; ones is the launch where all of them are."""

    kernel: str
    target: str
    dtype: str
    flags: tuple[tuple[str, int], ...] = ()
    ones: bool = False

    def name(self) -> str:
        flags = [f"{key}={int(value)}" for key, value in self.flags]
        return " ".join([self.kernel, self.dtype, *flags, *(["sizes=1"] if self.ones else [])])

    def launch(self) -> configs.Launch:
        size = DTYPES[self.dtype]
        if self.kernel == "pages.attention":
            return configs.ATTENTION[size]
        if self.kernel == "linear.partial_sums_tma":
            return configs.LINEAR_TMA[self.target]
        if self.kernel in PRODUCTS:
            return configs.LINEAR[self.target][size]
        launch = TABLES[self.kernel]["gpu"]
        if self.kernel == "kept.gradient":
            block_v = configs.LINEAR[self.target][size].constants["BLOCK_V"]
            launch = launch._replace(constants={**launch.constants, "BLOCK_V": block_v})
        return launch

    def constants(self) -> dict[str, Any]:
        """The compile-time arguments, in the order of the kernel's parameters."""
        names = KERNELS[self.kernel].arg_names
        constants: dict[str, Any] = {**self.launch().compile_time(), **dict(self.flags)}
        constants["ACC"] = tl.float64 if self.dtype == "fp64" else tl.float32
        if self.ones:
            constants |= dict.fromkeys((*INT_SCALARS, *DIVISIBLE), 1)
            if self.kernel == "linear.partial_sums_tma":  # whose rows are a multiple of 16 bytes
                del constants["width"]
        return {name: constants[name] for name in names if name in constants}

    def signature(self) -> dict[str, str]:
        """The type of every parameter, as Triton writes it."""
        constants = self.constants()
        return {
            name: "constexpr" if name in constants else self._type_of(name) for name in KERNELS[self.kernel].arg_names
        }

    def _type_of(self, name: str) -> str:
        if self.kernel == "linear.partial_sums_tma" and name in ("hidden", "weight"):
            blocks = self.launch().constants
            return f"tensordesc<{self.dtype}[{blocks[DESCRIPTOR_ROWS[name]]},{blocks['BLOCK_H']}]>"
        if name in POINTERS_OF_INPUT:
            return f"*{self.dtype}"
        if self.kernel in PAGES and name in INT32_POINTERS_OF_PAGES:
            return "*i32"
        if name in INT32_POINTERS:
            return "*i32"
        if name in FLOAT64_POINTERS:
            return "*fp64"
        if name in INT64_POINTERS:
            return "*i64"
        if name in BOOL_POINTERS:
            return "*i1"
        if name in FLOAT_SCALARS:
            return "fp64"
        if name in INT_SCALARS or name in DIVISIBLE:
            return "i32"
        return "*fp64" if self.dtype == "fp64" else "*fp32"

    def divisible(self) -> list[str]:
        """The parameters that every launch at a real size has divisible by 16."""
        kinds = self.signature()
        names = [] if self.ones else [*DIVISIBLE, *(["columns"] if self.kernel in PHYSICAL_COLUMNS else [])]
        return [name for name, kind in kinds.items() if kind.startswith("*") or name in names]


def _entropy(kernel: str, entropy: bool) -> tuple[tuple[str, int], ...]:
    keep = (("KEEP", False),) if kernel.startswith("linear.partial_sums") else ()
    return (("ENTROPY", entropy), *keep)


def _linear_and_gather(target: str) -> list[Variant]:
    """fp16 (bf16 with another name of an instruction, and never kept) only where there is a product, on server chips; fp16,
    fp64, sm_100 and other chips with the entropy only; and on those not the kernels whose configuration does not depend on
    the chip. sm_100 multiplies fp64 as sm_90 does, by the same configuration."""
    every, found = target in ("sm_80", "sm_90"), []
    for dtype in {"sm_100": ("bf16", "fp32"), "other": ("bf16", "fp32", "fp64")}.get(target, DTYPES):
        tma = ["linear.partial_sums_tma"] if target in configs.LINEAR_TMA and DTYPES[dtype] == 2 else []
        for entropy in (False, True) if dtype in ("bf16", "fp32") and every else (True,):
            kernels = ["linear.partial_sums", *tma, "linear.logit_gradient"]
            if every and dtype != "fp16":
                kernels += ["gather.forward", "gather.backward"]
            found += [Variant(kernel, target, dtype, _entropy(kernel, entropy)) for kernel in kernels]
        if dtype != "fp16":
            keepers = ["linear.partial_sums", *tma]
            found += [Variant(kernel, target, dtype, (("ENTROPY", False), ("KEEP", True))) for kernel in keepers]
        if every and dtype != "fp16":
            found.append(Variant("kept.gradient", target, dtype, (("PICK", True),)))
    return found


def _loss(target: str) -> list[Variant]:
    """The kernels whose configuration does not depend on the chip."""
    found = []
    for dtype in ("fp32", "fp64"):
        found.append(Variant("linear.merge", target, dtype, (("ENTROPY", dtype == "fp32"),)))
        for level in LEVELS.values() if dtype == "fp32" else (LEVELS["token"],):
            found.append(Variant("surrogate", target, dtype, (("LEVEL", level), ("HAS_MASK", True))))
    found.append(Variant("linear.merge", target, "fp32", (("ENTROPY", False),)))
    found.append(Variant("surrogate", target, "fp32", (("LEVEL", 2), ("HAS_MASK", False))))
    found.append(Variant("advantage", target, "fp32"))
    for greedy in (False, True):
        found.append(Variant("sample", target, "bf16", (("GREEDY", greedy), ("FILTER", False))))
    found.append(Variant("sample", target, "bf16", (("GREEDY", False), ("FILTER", True))))
    return found


def _pages(target: str) -> list[Variant]:
    """Heads of 128 numbers, 7 queries to a key as in Qwen2-7B."""
    found = []
    for dtype in ("bf16", "fp32", "fp64") if target in ("sm_80", "sm_90") else ("bf16",):
        found.append(Variant("pages.attention", target, dtype, (("GROUP", 7), ("BLOCK_D", 128))))
        found.append(Variant("pages.merge", target, dtype, (("BLOCK_D", 128),)))
        found.append(Variant("pages.write", target, dtype, (("HALF", 64),)))
    return found


def shipped(targets: list[str]) -> list[Variant]:
    """Every configuration that a launcher can ask for, less what compiles to nothing new."""
    found = []
    for target in targets:
        found += _linear_and_gather(target)
        found += _pages(target)
        if target in ("sm_80", "sm_90"):
            found += _loss(target)
    one_a_kernel = {variant.kernel: variant for variant in found if variant.dtype in ("bf16", "fp32")}
    return found + [replace(variant, ones=True) for variant in one_a_kernel.values()]
