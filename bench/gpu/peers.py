"""Rows beside other people's kernels and engines, which nothing here depends on: each runs where its wheel is installed.

Attention: FlashInfer on our pages, flash-attn on pages of its own size. Rollouts: vLLM on a model of the same shape. It draws
the weights itself and its logits are nearly uniform, so that its sampler has more to do than on a real model. What stands for a
package that is not installed, in tests and under --dry: stand_ins.py.
"""

import importlib.util
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from o1core import kernels
from o1core.model import ModelConfig

from .decode import REAL, SHAPE, over_pages, paged_inputs
from .engine import SAMPLES, SEVEN_B, prompts
from .measure import Bar, Found, Row, Sizes, milliseconds, seven_b

FLASHINFER_SCRATCH = 128 << 20  # bytes, as its documentation asks for


def flashinfer(queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor) -> Callable[[], Tensor]:
    """Its decode attention over our pages [pages, Hkv, 64, D]; what it plans on the host is done before."""
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    rows, pages = table.shape
    (_, heads, size), page = queries.shape, keys.shape[2]
    scratch = torch.empty(FLASHINFER_SCRATCH, dtype=torch.uint8, device=queries.device)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(scratch, "HND", use_tensor_cores=True)
    starts = torch.arange(0, rows * pages + 1, pages, dtype=torch.int32, device=queries.device)
    in_last = (lengths - 1) % page + 1
    numbers = heads, keys.shape[1], size, page
    wrapper.plan(starts, table.flatten(), in_last, *numbers, q_data_type=queries.dtype, kv_data_type=keys.dtype)
    return lambda: wrapper.run(queries, (keys, values))


def flash_attn(queries: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor) -> Callable[[], Tensor]:
    """Its attention over a cache in pages [pages, tokens, Hkv, D], each of 256 tokens or a multiple."""
    from flash_attn import flash_attn_with_kvcache

    theirs = over_pages(queries, keys, values, table, lengths)
    paged = {"cache_seqlens": lengths, "block_table": theirs["block_table"]}
    return lambda: flash_attn_with_kvcache(queries[:, None], theirs["key"], theirs["value"], **paged)[:, 0]


def attention(peer: Callable[..., Callable[[], Tensor]], sizes: Sizes) -> Found:
    """Decode attention on the same numbers, theirs over ours."""
    if importlib.util.find_spec(peer.__name__) is None:
        return {"theirs / ours": "not installed"}
    inputs = paged_inputs(sizes)
    ours, theirs = partial(kernels.paged_attention, *inputs, sizes.length), peer(*inputs)
    found: Found = {"largest difference": (theirs() - ours()).abs().max().item()}
    return found | {"theirs / ours": milliseconds(theirs, sizes) / milliseconds(ours, sizes)}


def config_json(config: ModelConfig) -> dict[str, Any]:
    """A Qwen2's config.json, for who loads a folder."""
    return {
        "architectures": [config.architecture],
        "model_type": "qwen2",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied,
        "torch_dtype": str(config.dtype).removeprefix("torch."),
    }


def vllm_rollouts(sizes: Sizes) -> Found:
    """The row "rollouts" by vLLM: the same prompts and settings, each completion as long as it may be."""
    if importlib.util.find_spec("vllm") is None:
        return {"tokens/s": "not installed"}
    # Its engine in this process: one of bench.gpu's may have no children.
    with TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}):
        import vllm

        Path(folder, "config.json").write_text(json.dumps(config_json(seven_b(sizes))))
        engine = vllm.LLM(
            model=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype=sizes.dtype,
            max_model_len=sizes.length + 1,
            max_num_seqs=sizes.prompts * SAMPLES,
            enable_prefix_caching=True,  # as ours gives a prompt's pages to all of its samples
            seed=0,
        )
        asked = [{"prompt_token_ids": ids} for ids in prompts(sizes, max(sizes.length - sizes.new_tokens, 1))]

        def sample(new_tokens: int) -> float:
            params = vllm.SamplingParams(n=SAMPLES, max_tokens=new_tokens, ignore_eos=True, detokenize=False, **REAL)
            start = time.perf_counter()
            outputs = engine.generate(asked, params, use_tqdm=False)
            taken = time.perf_counter() - start
            assert all(len(o.token_ids) == new_tokens for request in outputs for o in request.outputs)
            return taken

        sample(min(4, sizes.new_tokens))
        return {"tokens/s": len(asked) * SAMPLES * sizes.new_tokens / sample(sizes.new_tokens)}


ROWS = [
    *(
        Row(
            f"against {peer.__name__}",
            SHAPE,
            {"theirs / ours": Bar("at least", 0.9), "largest difference": Bar("at most", 0.02)},
            partial(attention, peer),
        )
        for peer in (flashinfer, flash_attn)
    ),
    Row(
        "vLLM's rollouts",
        SEVEN_B + ", {prompts} prompts x 8 samples, {new_tokens} new tokens up to {length:,}, prefill included",
        {},
        vllm_rollouts,
        limit=240,
    ),
]
