"""Tokens that tokenizer.json does not know and the files beside it do: added as transformers adds them, or refused."""

import json

import pytest
from transformers import PreTrainedTokenizerFast

from o1core.errors import UserError
from o1core.model import Tokenizer

PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
THREE = {
    str(256 + i): {"content": t, "special": True, **PLAIN}
    for i, t in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
}
TEXTS = ("<think>\n1 </think>2<|done|>", "a<|im_end|> <pad> [UNK]", "word <think>", "x  <keep>  y wordy", "<img><unk>")


def token(content, special=False, **flags):
    return {"content": content, "special": special, **PLAIN, **flags}


CASES = {  # changes of tokenizer_config.json, added_tokens.json, special_tokens_map.json
    "a thought's tags": [{"added_tokens_decoder": THREE | {"259": token("<think>"), "260": token("</think>")}}],
    "and an end of text": [
        {
            "added_tokens_decoder": THREE | {"259": token("<think>"), "260": token("<|done|>", True)},
            "eos_token": "<|done|>",
        }
    ],
    "in another order": [
        {"added_tokens_decoder": {"260": token("<|done|>", True)} | THREE | {"259": token("<think>")}}
    ],
    "with flags": [
        {
            "added_tokens_decoder": THREE
            | {"259": token("<keep>", lstrip=True, rstrip=True), "260": token("word", single_word=True)}
        }
    ],
    "with other flags than in tokenizer.json": [
        {"added_tokens_decoder": THREE | {"258": token("<|im_end|>", False, rstrip=True)}, "eos_token": "<|endoftext|>"}
    ],
    "a special token by its name alone": [
        {"added_tokens_decoder": THREE, "eos_token": "<|done|>", "unk_token": "[UNK]"}
    ],
    "named as an object": [
        {"added_tokens_decoder": THREE, "eos_token": {"__type": "AddedToken", "content": "<|done|>", "lstrip": True}}
    ],
    "more special tokens": [{"added_tokens_decoder": THREE, "additional_special_tokens": ["<keep>", "<img>"]}],
    "named ones of one's own": [{"added_tokens_decoder": THREE, "extra_special_tokens": {"image_token": "<img>"}}],
    "a letter as a special token": [{"added_tokens_decoder": THREE, "unk_token": "w"}],
    "added_tokens.json": [{}, {"<think>": 259, "</think>": 260}],
    "special_tokens_map.json": [{}, {"<think>": 259}, {"eos_token": {"content": "<|done|>", "lstrip": False}}],
    "and it goes first": [{"eos_token": "<|im_end|>"}, {}, {"eos_token": "<|endoftext|>"}],
}


def put(folder, config, added=None, special=None):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    for name, value in (("added_tokens.json", added), ("special_tokens_map.json", special)):
        if value:
            (folder / name).write_text(json.dumps(value))


@pytest.mark.parametrize("name", CASES)
def test_ids_and_texts_are_those_of_transformers(checkpoint, name):
    put(checkpoint, *CASES[name])
    ours, theirs = Tokenizer(checkpoint, 272), PreTrainedTokenizerFast.from_pretrained(checkpoint)
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, special=True) == theirs.decode(ids)
    assert ours.size == len(theirs)
    assert theirs.eos_token_id in ours.eos_ids


def test_a_token_without_a_row_in_the_model_is_left_out(checkpoint):
    put(checkpoint, {"pad_token": "<pad>", "unk_token": "<unk>"}, {"<think>": 259})
    opened = Tokenizer(checkpoint, 260)
    assert (opened.size, opened.token_id("<think>"), opened.token_id("<pad>")) == (260, 259, None)
    assert max(opened.encode("<pad><think><unk>")) == 259


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"added_tokens_decoder": THREE | {"261": token("<think>")}},
            "'<think>' has id 261 there, and 259 is the next",
        ),
        ({"added_tokens_decoder": []}, r"added_tokens_decoder: expected an object, found \[\]"),
        ({"added_tokens_decoder": {"x": token("a")}}, "an added token has the id 'x'"),
        ({"added_tokens_decoder": {"-1": token("a")}}, "an added token has the id '-1'"),
        ({"added_tokens_decoder": {"9" * 5000: token("a")}}, "an added token has the id "),
        ({"added_tokens_decoder": {"259": 5}}, "added_tokens_decoder: expected a string"),
        ({"added_tokens_decoder": {"259": {"special": True}}}, "added_tokens_decoder: expected a string"),
        ({"added_tokens_decoder": {"259": token("a", lstrip=1)}}, "added_tokens_decoder: expected a string"),
        ({"additional_special_tokens": [["a"]]}, "extra_special_tokens: expected a string"),
    ],
)
def test_tokens_that_do_not_belong_to_the_tokenizer_are_refused(checkpoint, config, message):
    put(checkpoint, config)
    with pytest.raises(UserError, match=rf"tokenizer_config\.json: .*{message}") as error:
        Tokenizer(checkpoint, 272)
    assert str(error.value).isprintable() and len(str(error.value)) < 500 + len(str(checkpoint))
