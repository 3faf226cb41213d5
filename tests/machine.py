"""What this machine's library of matrix products promises. Tests of equal bits are skipped where it promises less than they
need: the order in which it adds up a product differs from processor to processor, and the engine says so in a warning."""

import pytest
import torch

from o1core.model import Transformer
from o1core.rollout.row_bits import attention_sizes, model_sizes

SPANS = (64, 128, 256, 512)  # tokens of a block of keys that the tests reach
CPU = torch.device("cpu")


def skip_where_a_row_is_rounded_by_its_place(model: Transformer, vocab: int) -> None:
    """For tests that a completion has the same bits in any company."""
    config, threads = model.config, torch.get_num_threads()
    heads = config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim
    attention = [attention_sizes(span, *heads, model.embed.dtype, CPU, threads) for span in SPANS]
    if not all(batches.holds for batches in (model_sizes(model, vocab), *attention)):
        pytest.skip("matrix products on this machine round a row by its place in the batch")


def skip_where_a_batch_is_rounded_by_its_size(
    spans: tuple[int, ...], kv_heads: int, group: int, size: int, dtype: torch.dtype = torch.float32, most: int = 64
) -> None:
    """For tests that a row's attention has the same bits in a batch of any size."""
    for span in spans:
        batches = attention_sizes(span, kv_heads, group, size, dtype, CPU, torch.get_num_threads())
        fewest = 1 if kv_heads > 1 else 2  # a product that is alone is computed twice
        if not all(batches.cut(rows) == [rows] for rows in range(fewest, most + 1)):
            pytest.skip("products of several matrices on this machine round by their number")
