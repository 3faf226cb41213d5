"""What stands for a package that is not installed, so that the rows beside it run in tests and under --dry.

Each takes the arguments that the package documents, by name and shape, and computes the same in plain torch.
"""

import contextlib
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from o1core.model import read_config


def attend(queries: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """[R, H, D] of queries [R, H, D] on the first tokens of keys and values [R, T, Hkv, D]."""
    groups = queries.shape[1] // keys.shape[2]
    keys, values = (x.repeat_interleave(groups, 2).transpose(1, 2) for x in (keys, values))  # [R, H, T, D]
    seen = torch.arange(keys.shape[2], device=queries.device) < lengths[:, None]
    return torch.nn.functional.scaled_dot_product_attention(queries[:, :, None], keys, values, seen[:, None, None])[
        :, :, 0
    ]


class BatchDecodeWithPagedKVCacheWrapper:
    """FlashInfer's."""

    def __init__(self, float_workspace_buffer: Tensor, kv_layout: str = "NHD", use_tensor_cores: bool = False) -> None:
        assert float_workspace_buffer.dtype == torch.uint8 and kv_layout == "HND"

    def plan(
        self,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        q_data_type: torch.dtype,
        kv_data_type: torch.dtype,
    ) -> None:
        assert all(t.dtype == torch.int32 and t.ndim == 1 for t in (indptr, indices, last_page_len))
        rows = len(indptr) - 1
        self.table, self.shapes = (
            indices.view(rows, -1),
            ((rows, num_qo_heads, head_dim), (num_kv_heads, page_size, head_dim)),
        )
        self.lengths, self.dtypes = (self.table.shape[1] - 1) * page_size + last_page_len, (q_data_type, kv_data_type)

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor]) -> Tensor:
        keys, values = (pool[self.table.long()].transpose(2, 3).flatten(1, 2) for pool in paged_kv_cache)
        assert self.shapes == (q.shape, paged_kv_cache[0].shape[1:]) and self.dtypes == (q.dtype, keys.dtype)
        return attend(q, keys, values, self.lengths)


def flash_attn_with_kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, *, cache_seqlens: Tensor, block_table: Tensor
) -> Tensor:
    """flash-attn's: q [R, 1, H, D] on pages [pages, tokens, Hkv, D]."""
    assert q.shape[1] == 1 and k_cache.shape[1] % 256 == 0 and cache_seqlens.dtype == block_table.dtype == torch.int32
    keys, values = (pool[block_table.long()].flatten(1, 2) for pool in (k_cache, v_cache))
    return attend(q[:, 0], keys, values, cache_seqlens)[:, None]


class LLM:
    """vLLM's, of which completions are zeros."""

    def __init__(
        self,
        model: str,
        *,
        load_format: str,
        skip_tokenizer_init: bool,
        dtype: torch.dtype,
        max_model_len: int,
        max_num_seqs: int,
        enable_prefix_caching: bool,
        seed: int,
    ) -> None:
        self.config, self.longest = read_config(Path(model)), max_model_len
        assert load_format == "dummy" and skip_tokenizer_init and self.config.dtype == dtype

    def generate(self, prompts: list[dict[str, list[int]]], sampling_params: Any, use_tqdm: bool = True) -> list[Any]:
        p = sampling_params
        assert all(len(prompt["prompt_token_ids"]) + p.max_tokens <= self.longest for prompt in prompts)
        assert all(0 <= i < self.config.vocab_size for prompt in prompts for i in prompt["prompt_token_ids"])
        outputs = [SimpleNamespace(token_ids=[0] * p.max_tokens) for _ in range(p.n)]
        return [SimpleNamespace(outputs=outputs) for _ in prompts]


def sampling_params(
    *, n: int, temperature: float, top_p: float, max_tokens: int, ignore_eos: bool, detokenize: bool
) -> SimpleNamespace:
    """vLLM's SamplingParams."""
    return SimpleNamespace(n=n, max_tokens=max_tokens)


def log_probs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return torch.log_softmax((hidden @ weight.T).float(), -1).gather(1, targets[:, None])[:, 0]


class LigerFusedLinearScaledCrossEntropyFunction:
    """Liger's, as a function whose gradient is torch's own."""

    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        temperature: float,
        ignore_index: int,
        m_tiles_per_cluster: int,
        return_entropy: bool,
    ) -> tuple[Tensor, None]:
        assert temperature == 1 and not return_entropy
        return -log_probs(hidden, weight, targets), None


def linear_cross_entropy(e: Tensor, c: Tensor, targets: Tensor, *, reduction: str) -> Tensor:
    """cut_cross_entropy's."""
    assert reduction == "none"
    return -log_probs(e, c, targets)


class ChunkedLogProbFunction:
    """TRL's, which its own package runs in tests."""

    @staticmethod
    def apply(hidden: Tensor, weight: Tensor, bias: None, targets: Tensor, *settings: Any) -> tuple[Tensor]:
        assert len(settings) == 5
        return (log_probs(hidden, weight, targets),)


MODULES: dict[str, dict[str, Any]] = {
    "flashinfer": {"BatchDecodeWithPagedKVCacheWrapper": BatchDecodeWithPagedKVCacheWrapper},
    "flash_attn": {"flash_attn_with_kvcache": flash_attn_with_kvcache},
    "vllm": {"LLM": LLM, "SamplingParams": sampling_params},
    "liger_kernel": {},
    "liger_kernel.ops": {"LigerFusedLinearScaledCrossEntropyFunction": LigerFusedLinearScaledCrossEntropyFunction},
    "cut_cross_entropy": {"linear_cross_entropy": linear_cross_entropy},
    "trl": {},
    "trl.kernels": {"ChunkedLogProbFunction": ChunkedLogProbFunction},
}


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Inside, they can be imported."""
    made = {}
    for name, content in MODULES.items():
        made[name] = module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None, is_package="." not in name)
        vars(module).update(content)
    with mock.patch.dict(sys.modules, made):
        yield
