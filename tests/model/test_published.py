"""Published mixtures of experts: their configurations on the meta device, and every name of their index accounted for."""

import json

import pytest
import torch

from o1core.model import Transformer, layout, read_config
from o1core.model.checkpoint import Stored, beside, check_tensors, stacks_of, unstacked
from o1core.runs.footprint import active

QWEN3_30B_A3B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN36_35B_A3B = {
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "image_token_id": 248056,
    "model_type": "qwen3_5_moe",
    "text_config": {
        "attention_bias": False,
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 10,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 262144,
        "mlp_only_layers": [],
        "model_type": "qwen3_5_moe_text",
        "moe_intermediate_size": 512,
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "num_attention_heads": 16,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
        "shared_expert_intermediate_size": 512,
        "vocab_size": 248320,
    },
    "tie_word_embeddings": False,
    "vision_config": {"depth": 27, "hidden_size": 1152, "model_type": "qwen3_5_moe"},
}
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
# model: its config.json, its index's names, how many tensors the index has; the text model's parameters, and billions of
# them that compute a token, as published
MODELS = {
    "Qwen3-30B-A3B": (QWEN3_30B_A3B, QWEN3_30B_NAMES, 18_867, 30_532_122_624, 3.3),
    "Qwen3.6-35B-A3B": (QWEN36_35B_A3B, QWEN36_35B_NAMES, 1_811, 34_660_610_688, 3.46),
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
    described, patterns, tensors, parameters, computing = MODELS[name]
    (tmp_path / "config.json").write_text(json.dumps(described))
    config = read_config(tmp_path)
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
