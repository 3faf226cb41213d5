"""Small random checkpoints, made by transformers and so independent of our own loader and saver."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks a hub but the stand-in of tests/hub.py

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
SMALL = {
    "vocab_size": 272,  # the tokenizer has 259
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": True,
}


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist, which starts what is set here
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite (pytest, without a path) runs in two processes where there are two cores; -n N sets another number.
    A file stays in one process, for its fixtures, and each process computes in one thread unless the environment says so."""
    option = config.option
    if hasattr(config, "workerinput") or not config.pluginmanager.hasplugin("xdist"):
        return
    whole = config.args_source is config.ArgsSource.TESTPATHS and not option.usepdb and not option.collectonly
    if whole and option.numprocesses is None and not option.tx and len(os.sched_getaffinity(0)) > 1:
        option.numprocesses = 2
    if option.numprocesses:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        option.dist = "loadfile" if option.dist == "no" else option.dist


def pytest_configure() -> None:
    """Without a GPU, Triton kernels run in Triton's interpreter. It reads this when triton is imported, not later."""
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def write_tokenizer(folder: Path, template: str | None = CHATML) -> None:
    """A byte-level tokenizer: 256 bytes and three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in (END, START, STOP)])
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": STOP, "pad_token": END}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 256]}))


def build(folder: Path, family: str = "qwen2", seed: int = 0, shard: str = "1GB", dtype=torch.float32, **overrides):
    """Write a random checkpoint of `family` ("qwen2", "qwen3" or "llama") and return transformers' model of it.

    Every weight is drawn, those of the norms and the biases too, so that none can be mistaken for another.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    # transformers writes into the dictionaries that it is given.
    config = AutoConfig.for_model(family, **copy.deepcopy(SMALL | {"head_dim": 16} | overrides))
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.ndim == 1 else 1.5 * p.shape[-1] ** -0.5))
            if name.endswith("norm.weight"):
                p += 1
    model.config.architectures = [type(model).__name__]
    model.config.dtype = dtype
    model.save_pretrained(folder, max_shard_size=shard)
    write_tokenizer(folder)
    return model


@pytest.fixture(scope="session")
def build_checkpoint():
    return build


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """The folder of a small Qwen2 checkpoint, to be broken at will."""
    build(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="session")
def edit_json():
    """edit_json(path, **changes): set top-level fields of a JSON file; None takes a field away."""

    def edit(path: Path, **changes) -> None:
        value = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))

    return edit


SETTINGS = (  # of a run of seconds: two rounds of 10 problems x 4 samples
    "--samples 4 --picked 3 --problems 10 --rounds 2 --max-new-tokens 24 --temperature 1 --top-p 1 --ratio token --lr 1e-3"
    " --batch 4 --save-every 2 --eval-problems 3 --eval-temperature 1 --slots 8 --device cpu"
)


@pytest.fixture
def problems(tmp_path) -> Path:
    """A file of sums."""
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{a} + 5 = ?", "answer": str(a + 5)}) + "\n" for a in range(14)))
    return path


@pytest.fixture
def flags(checkpoint, problems) -> list[str]:
    """The flags of a small run on a small checkpoint."""
    return ["--model", str(checkpoint), "--data", str(problems), *SETTINGS.split()]
