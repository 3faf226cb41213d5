"""config.json is read strictly: each field that a family could differ in is told, and what we do not do is refused."""

import json
import math

import pytest
import torch

from o1core.errors import UserError
from o1core.model import read_config
from o1core.model.rope import Llama3, Yarn

# The published files of two checkpoints, in the spelling of transformers 4, cut to what is read.
MARCO_O1 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN3_8B = MARCO_O1 | {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "sliding_window": None,
    "vocab_size": 151936,
}


def write(folder, config) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def test_marco_o1(tmp_path):
    write(tmp_path, MARCO_O1)
    config = read_config(tmp_path)
    assert (config.num_layers, config.hidden_size, config.ffn_size) == (28, 3584, 18944)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (28, 4, 128)
    assert (config.norm_eps, config.rope_theta, config.tied, config.vocab_size) == (1e-6, 1e6, False, 152064)
    assert (config.qkv_bias, config.qk_norm, config.dtype) == (True, False, torch.bfloat16)


def test_qwen3(tmp_path):
    write(tmp_path, QWEN3_8B)
    config = read_config(tmp_path)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (32, 8, 128)
    assert (config.qkv_bias, config.qk_norm) == (False, True)


def test_spelling_of_transformers_5(tmp_path):
    write(tmp_path, MARCO_O1)
    old = read_config(tmp_path)
    new = {k: v for k, v in MARCO_O1.items() if k not in ("rope_theta", "torch_dtype")}
    rope = {"rope_theta": 1000000.0, "rope_type": "default"}
    write(tmp_path, new | {"rope_parameters": rope, "dtype": "bfloat16", "layer_types": ["full_attention"] * 28})
    assert read_config(tmp_path) == old


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SMOLLM3 = MARCO_O1 | {"architectures": ["SmolLM3ForCausalLM"], "tie_word_embeddings": True}


def test_yarn_stretches_the_context_where_config_json_leaves_that_to_us(tmp_path):
    write(tmp_path, MARCO_O1 | {"rope_scaling": YARN})
    config = read_config(tmp_path)
    assert config.max_positions == 4 * 32768
    assert config.scaling == Yarn(4.0, 0.1 * math.log(4) + 1, 32.0, 1.0, 32768, True)
    write(tmp_path, MARCO_O1 | {"rope_scaling": YARN, "max_position_embeddings": 200_000})
    assert read_config(tmp_path).max_positions == 200_000


def test_llama3_keeps_the_context_that_is_stated(tmp_path):
    write(tmp_path, MARCO_O1 | {"rope_scaling": LLAMA3, "max_position_embeddings": 131072})
    config = read_config(tmp_path)
    assert (config.max_positions, config.scaling) == (131072, Llama3(8.0, 1.0, 4.0, 8192))


def test_rope_fields_that_nothing_reads_are_named_once(tmp_path, caplog):
    """attn_factor as DeepSeek-R1-0528-Qwen3-8B ships it: transformers ignores it too, and warns."""
    shipped = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    write(tmp_path, QWEN3_8B | {"rope_scaling": shipped})
    plain = read_config(tmp_path)
    write(tmp_path, QWEN3_8B | {"rope_scaling": shipped | {"attn_factor": 0.8782488562869419}, "rope_ratio": 2})
    assert read_config(tmp_path) == plain == read_config(tmp_path)
    assert plain.scaling.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path}/config.json: rope_scaling: not read where rope_type is yarn, here as in transformers: 'rope_ratio', "
        "'attn_factor'"
    ]


@pytest.mark.parametrize("name", ["finetuned", "mrope_section"])
def test_a_default_kind_with_a_field_of_another_loads_as_it_did(tmp_path, caplog, name):
    write(tmp_path, MARCO_O1)
    plain = read_config(tmp_path)
    write(tmp_path, MARCO_O1 | {"rope_scaling": {"type": "default", name: True}})
    assert read_config(tmp_path) == plain
    assert name in caplog.text


def test_smollm3_has_layers_without_rotary_embedding(tmp_path):
    stated = [1, 1, 0] + [1] * 25
    write(tmp_path, SMOLLM3 | {"no_rope_layers": stated})
    assert read_config(tmp_path).nope_layers == (2,)
    write(tmp_path, {k: v for k, v in SMOLLM3.items() if k != "tie_word_embeddings"})
    config = read_config(tmp_path)
    assert config.nope_layers == (3, 7, 11, 15, 19, 23, 27) and config.tied  # as transformers has it


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["Qwen2MoeForCausalLM"]},
            "architectures: Qwen2MoeForCausalLM is not supported; these are: ",
        ),
        ({"architectures": None}, "architectures: None is not supported"),
        ({"architectures": "Qwen2ForCausalLM "}, "architectures: Qwen2ForCausalLM  is not supported"),
        ({"rope_scaling": YARN | {"type": "dynamic"}}, "rope type 'dynamic' is not supported, only default, linear, "),
        (
            {"rope_parameters": {"rope_type": "longrope"}},
            "rope type 'longrope' is not supported, only default, linear, ",
        ),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope type ['yarn'] is not supported"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_parameters: full_attention is not"),
        ({"rope_scaling": {"type": "yarn"}}, "factor: expected float, found None"),
        ({"rope_scaling": YARN | {"factor": 0.5}}, "factor: must be from 1.0 to 1,000,000.0, found 0.5"),
        ({"rope_scaling": YARN | {"factor": float("inf")}}, "factor: must be from 1.0 to 1,000,000.0, found inf"),
        ({"rope_scaling": YARN | {"attention_factor": 0}}, "attention_factor: must be from 0.001 to 1,000.0, found 0"),
        ({"rope_scaling": YARN | {"beta_fast": 1, "beta_slow": 1.0}}, "beta_fast 1 must be above beta_slow 1"),
        ({"rope_scaling": YARN | {"truncate": 1}}, "truncate: expected bool, found 1"),
        (
            {"rope_scaling": YARN | {"original_max_position_embeddings": 4.0}},
            "original_max_position_embeddings: expected int",
        ),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1}}, "high_freq_factor 1 must be above low_freq_factor 1"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": None}}, "low_freq_factor: expected float, found None"),
        (SMOLLM3 | {"no_rope_layers": [1] * 27}, "no_rope_layers: expected 28 times 0 or 1, found [1, 1"),
        (SMOLLM3 | {"no_rope_layers": [True] * 28}, "no_rope_layers: expected 28 times 0 or 1, found [True"),
        (SMOLLM3 | {"no_rope_layer_interval": 0}, "no_rope_layer_interval: must be from 1 to 65,536, found 0"),
        ({"rope_scaling": "linear"}, "rope_scaling: expected an object, found 'linear'"),
        ({"rope_scaling": {"factor": 4.0}}, "rope_scaling: factor is stated without a rope_type; add one of default, "),
        (
            {"rope_scaling": YARN | {"original_max_positon_embeddings": 4096}},
            "'original_max_positon_embeddings' is read by nothing; did you mean original_max_position_embeddings?",
        ),
        (
            {"rope_scaling": YARN, "original_max_position_embedding": 4096},
            "'original_max_position_embedding' is read by nothing; did you mean original_max_position_embeddings?",
        ),
        ({"rope_scaling": YARN | {"betafast": 16}}, "'betafast' is read by nothing; did you mean beta_fast?"),
        ({"rope_scaling": YARN, "rope_parameters": LLAMA3}, "rope_parameters and rope_scaling differ; take one of"),
        ({"rope_interleaved": True}, "rope_interleaved = True is not supported, only False"),
        ({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5 is not"),
        ({"use_sliding_window": True}, "use_sliding_window = True is not supported, only False"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types: only 'full_attention' is supported"),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
        ({"mlp_bias": True}, "mlp_bias = True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported, only 'silu'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config = {'quant_method': 'fp8'} is not"),
        ({"torch_dtype": "float8"}, "torch_dtype = 'float8' is not supported, only float32"),
        ({"rope_theta": None}, "rope_theta: expected float, found None"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps: expected float, found '1e-6'"),
        ({"vocab_size": None}, "vocab_size: expected int, found None"),
        ({"vocab_size": 152064.0}, "vocab_size: expected int, found 152064.0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: must be from 1 to 4,096, found 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers: expected int, found True"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: expected bool, found 1"),
        ({"num_key_value_heads": 3}, "num_attention_heads 28 is not a multiple of num_key_value_heads 3"),
        ({"hidden_size": 3580}, "hidden_size 3580 is not a multiple of num_attention_heads 28; state head_dim"),
        ({"head_dim": 127}, "head_dim 127 is odd"),
        ({"architectures": ["Qwen3ForCausalLM"]}, "head_dim: expected int, found None"),  # Qwen3 does not derive it
    ],
)
def test_refused(tmp_path, changes, message):
    write(tmp_path, MARCO_O1 | changes)
    with pytest.raises(UserError) as error:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value) and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json: no such file"),
        (b'{"vocab_size": 1', "config.json: not valid JSON"),
        (b"\xff\xfe", "config.json: not valid JSON"),
        (b"[]", "config.json: must hold a JSON object, not a list"),
    ],
)
def test_broken_file(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


NUMBERS = {  # field: the largest value, and one too many of it
    "vocab_size": (2**24, 2**24 + 1),
    "hidden_size": (2**20, 2**20 + 28),
    "intermediate_size": (2**22, 2**22 + 1),
    "num_hidden_layers": (4096, 4097),
    "num_attention_heads": (4, 2**16 + 1),
    "num_key_value_heads": (28, 2**16 + 1),
    "head_dim": (2**14, 2**14 + 2),
    "max_position_embeddings": (2**30, 2**30 + 1),
    "rms_norm_eps": (1.0, 1.01),
    "rope_theta": (1e15, 1.1e15),
}
NO_NUMBER = ("true", "null", '"1"', "[1]", "{}", "-1", "0", "1" + "0" * 400, "1e400", "-Infinity", "NaN", "1e999")


@pytest.mark.parametrize("field", NUMBERS)
def test_a_number_is_taken_in_its_range_alone(tmp_path, field):
    most, above = NUMBERS[field]
    text = json.dumps(MARCO_O1 | {"head_dim": 128, field: "HERE"})
    (tmp_path / "config.json").write_text(text.replace('"HERE"', json.dumps(most)))
    read_config(tmp_path)
    for value in (*NO_NUMBER, json.dumps(above)):
        (tmp_path / "config.json").write_text(text.replace('"HERE"', value))
        if (field, value) == ("head_dim", "null"):  # derived
            continue
        with pytest.raises(UserError, match=rf"config\.json: {field}: (expected|must be from \S+ to \S+,) ") as error:
            read_config(tmp_path)
        assert len(str(error.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": "x" * 10**6},
        {"architectures": ["\x1b]0;title\x07"]},
        {"architectures": [[["x"]]]},
        {"rope_scaling": ["x"] * 10**5},
        {"rope_parameters": {"rope_type": ["\x1b[2J"]}},
        {"quantization_config": {str(i): {"a": "b" * 1000} for i in range(1000)}},
        {"layer_types": {"a": 1}},
        {"torch_dtype": {"\x07": 1}},
        {"hidden_act": "\u202egelu"},
    ],
)
def test_what_stands_in_a_file_is_shown_short_and_clean(tmp_path, changes):
    write(tmp_path, MARCO_O1 | changes)
    with pytest.raises(UserError) as error:
        read_config(tmp_path)
    assert str(error.value).isprintable() and len(str(error.value)) < 600 + len(str(tmp_path))
