"""Published mixtures of experts: their configurations on the meta device, and every name of their index accounted for."""

from pathlib import Path

import pytest
import torch

from o1core.model import Transformer, layout, read_config
from o1core.model.checkpoint import Stored, beside, check_tensors, stacks_of, unstacked
from o1core.runs.footprint import active

DATA = Path(__file__).parents[1] / "data"
ATTENTION = "self_attn.{q_proj,k_proj,v_proj,o_proj,q_norm,k_norm}.weight"
NORMS = "{input_layernorm,post_attention_layernorm}.weight"
MLP = "{gate_proj,up_proj,down_proj}.weight"
VISION = (
    "blocks.{0:27}.{norm1,norm2,attn.qkv,attn.proj,mlp.linear_fc1,mlp.linear_fc2}.{weight,bias}",
    "merger.{norm,linear_fc1,linear_fc2}.{weight,bias}",
    "patch_embed.proj.{weight,bias}",
    "pos_embed.weight",
)
QWEN3_30B_NAMES = (
    "lm_head.weight",
    "model.{embed_tokens,norm}.weight",
    *(f"model.layers.{{0:48}}.{name}" for name in (NORMS, ATTENTION, "mlp.gate.weight", "mlp.experts.{0:128}." + MLP)),
)
SHARED = ("mlp.{gate,shared_expert_gate}.weight", "mlp.shared_expert." + MLP)
LINEAR = ("{A_log,dt_bias}", "{conv1d,in_proj_qkv,in_proj_z,in_proj_b,in_proj_a,norm,out_proj}.weight")
LINEAR_LAYERS = "{" + ",".join(str(i) for i in range(40) if i % 4 != 3) + "}"
INNER = "model.language_model."
QWEN36_35B_NAMES = (
    "lm_head.weight",
    INNER + "{embed_tokens,norm}.weight",
    *(f"{INNER}layers.{{0:40}}.{name}" for name in (NORMS, *SHARED, "mlp.experts.{gate_up_proj,down_proj}")),
    *(f"{INNER}layers.{LINEAR_LAYERS}.linear_attn.{name}" for name in LINEAR),
    f"{INNER}layers.{{3,7,11,15,19,23,27,31,35,39}}.{ATTENTION}",
    *(f"model.visual.{name}" for name in VISION),
    "mtp.{fc,norm,pre_fc_norm_embedding,pre_fc_norm_hidden}.weight",
    *(f"mtp.layers.0.{name}" for name in (NORMS, ATTENTION, *SHARED, "mlp.experts.{0:256}." + MLP)),
)
# model, whose config.json is in tests/data: its index's names, how many tensors the index has; the text model's parameters, and
# billions of them that compute a token, as published
MODELS = {
    "Qwen3-30B-A3B": (QWEN3_30B_NAMES, 18_867, 30_532_122_624, 3.3),
    "Qwen3.6-35B-A3B": (QWEN36_35B_NAMES, 1_811, 34_660_610_688, 3.46),
}


def expanded(pattern: str) -> list[str]:
    """ "{a,b}" is each of them, "{0:3}" is 0, 1, 2."""
    before, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    choices, _, after = rest.partition("}")
    low, colon, high = choices.partition(":")
    options = map(str, range(int(low), int(high))) if colon else choices.split(",")
    ends = expanded(after)
    return [before + option + end for option in options for end in ends]


@pytest.mark.parametrize("name", MODELS)
def test_every_name_of_the_index_is_accounted_for(tmp_path, name):
    patterns, tensors, parameters, computing = MODELS[name]
    config = read_config(DATA / name.lower())
    with torch.device("meta"):
        model = Transformer(config).to(config.dtype)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert active(config) == pytest.approx(computing * 1e9, rel=0.02)
    index = {n for pattern in patterns for n in expanded(pattern)}
    assert len(index) == tensors
    shapes = {theirs: shape for theirs, _, _, shape in layout(config)}
    shapes |= {stack: shape for stack, shape, _ in stacks_of(config)}
    stored = {n: Stored(tmp_path, shapes.get(n, (1,)), "BF16") for n in index}
    check_tensors(tmp_path, config, unstacked(config, stored))  # raises UserError where a name is missing or left over
    left = {what: len(names) for what, names in beside(index).items()}
    assert left == ({} if name == "Qwen3-30B-A3B" else {"vision": 333, "multi-token prediction": 785})
