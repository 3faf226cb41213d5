"""The model card of what a run made: README.md of `pruned/` and `adapter/`, and the base's licence beside it.

The head is the hub's YAML: base model, licence carried over from the base's card, data sets, and the results as a model index.
The rest says what was measured and how to make the same again. Nothing of this machine is in it but the names of files.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from ..evaluation import Outcome, RunResult
from ..files import read_yaml, write_atomic
from ..model import checkpoint_file, read_text
from ..run_folder import RunFolder
from ..tables import change, escaped, percent, points, signed, span, to_markdown, two_digits
from ..text import one_line
from .samples import without_place, without_places
from .tables import run_table

CARD = "README.md"
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "NOTICE", "NOTICE.txt", "USE_POLICY.md")
CARRIED = ("license", "license_name", "license_link", "language")  # of the base's YAML
LONGEST = 200  # characters of a value that is carried over
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
PAPER = "[O1-Pruner](https://arxiv.org/abs/2501.12570)"
SHOWN = (  # settings that the card names, in this order, and what it calls them
    ("method", "method"),
    ("recipe", "recipe"),
    ("data", "training data"),
    ("eval_data", "tests"),
    ("rounds", "rounds"),
    ("samples", "samples a problem"),
    ("picked", "trained on, of them"),
    ("reward", "reward"),
    ("lam", "lambda"),
    ("lr", "learning rate"),
    ("lora_rank", "rank of the adapters"),
    ("scale", "scale of the adapter"),
    ("seed", "seed"),
    ("dtype", "dtype"),
    ("day", "begun"),
    ("o1core", "o1core"),
    ("torch", "torch"),
    ("device_name", "device"),
)


def write_cards(run: RunFolder, base: Path, result: RunResult | None) -> None:
    """Write the card of the pruned checkpoint, and of the adapter where there is one. base: the model's folder. result: None
    before the run has been evaluated."""
    for folder in (run.pruned, run.adapter):
        if folder.is_dir():
            write_card(folder, run.read_settings(), base, result, folder == run.adapter)


def write_card(
    folder: Path, settings: dict[str, Any], base: Path, result: RunResult | None, adapter: bool = False
) -> None:
    """Write the card of one checkpoint or adapter, and copy the base's licence."""
    put(folder / CARD, card(settings, base_card(base), result, adapter).encode())
    for name in LICENCES:
        if (found := checkpoint_file(base, name)) is not None:
            put(folder / name, found.read_bytes())


def put(path: Path, content: bytes) -> None:
    """Write a file, unless it is there as it should be: a finished run is not touched."""
    if not path.exists() or path.read_bytes() != content:
        write_atomic(path, lambda temporary: temporary.write_bytes(content))


def base_card(base: Path) -> dict[str, Any]:
    """What the YAML of the base's own card says of licence and language; nothing where it has none, or none that is read."""
    try:
        path = checkpoint_file(base, CARD)
        text = read_text(path) if path else ""
        found = re.match(r"---\r?\n(.*?)\n---", text, re.S)
        head = read_yaml(found[1], str(path)) if found else None
    except UserError:  # a stranger's file
        return {}
    held = head if isinstance(head, dict) else {}
    return {name: held[name] for name in CARRIED if is_plain(held.get(name))}


def is_plain(value: Any) -> bool:
    """A short text, or a list of them."""
    texts = value if isinstance(value, list) else [value]
    return 0 < len(texts) <= 50 and all(isinstance(text, str) and 0 < len(text) <= LONGEST for text in texts)


def card(settings: dict[str, Any], carried: dict[str, Any], result: RunResult | None, adapter: bool) -> str:
    """The text of a card."""
    model = str(settings.get("model", "tiny-o1"))
    name = one_line(Path(model).name)
    on_hub = HUB_NAME.fullmatch(model) is not None and not Path(model).exists()
    head: dict[str, Any] = {"base_model": model, "base_model_relation": "adapter" if adapter else "finetune"}
    head = (head if on_hub else {}) | carried
    head |= {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    if datasets := datasets_of(settings):
        head["datasets"] = datasets
    head["tags"] = ["o1core", "o1-pruner", "reasoning", "efficient-reasoning", *(["lora"] if adapter else [])]
    if result:
        head["model-index"] = [{"name": f"{name}-pruned", "results": index_of(result)}]
    origin = f"[{escaped(model)}](https://huggingface.co/{model})" if on_hub else f"**{escaped(name)}**"
    what = "adapter (LoRA) for" if adapter else "version of"
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n",
        f"# {escaped(name)}, pruned\n",
        f"A{'n' if adapter else ''} {what} {origin} that thinks shorter, trained with o1core by the method "
        f"{escaped(str(settings.get('method', 'o1-pruner')))} ({PAPER} and what came after).\n",
        *results_of(result),
        "## How it was made\n",
        *made(settings),
        "## Use\n",
        use(adapter, model if on_hub else name),
    ]
    return "\n".join(parts)


def datasets_of(settings: dict[str, Any]) -> list[str]:
    """The data sets on the hub among the files of the run: OWNER/NAME of OWNER/NAME:SPLIT@COMMIT."""
    tests = settings.get("eval_data") or []
    named = [settings.get("data"), *(tests if isinstance(tests, list) else [tests])]
    found = [re.split(r"[:@]", name)[0] for name in named if isinstance(name, str) and not Path(name).exists()]
    return list(dict.fromkeys(name for name in found if HUB_NAME.fullmatch(name)))


def index_of(result: RunResult) -> list[dict[str, Any]]:
    """The hub's model index: of each test accuracy, tokens and the differences to the base with their intervals."""
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": one_line(test), "type": one_line(test)},
            "metrics": metrics_of(outcome),
        }
        for test, outcome in result.comparison.tests.items()
    ]


def metrics_of(outcome: Outcome) -> list[dict[str, Any]]:
    after, gain, cut, score = outcome.pruned, outcome.gain, outcome.cut.scaled(-1), outcome.score
    found = [
        ("accuracy", "accuracy, %", round(100 * after.accuracy, 2), ""),
        ("mean_tokens", "mean tokens of a completion", round(after.mean_tokens, 1), ""),
        ("accuracy_gain", "accuracy against the base, points", round(100 * gain.mean, 2), span(gain, signed)),
        ("token_change", "tokens against the base, %", round(100 * cut.mean, 2), span(cut, change)),
    ]
    if score is not None:
        found.append(("aes", "AES (1/3/5) against the base", round(score.mean, 3), span(score, two_digits)))
    return [
        {"type": kind, "name": name + (f" (95 % interval, paired: {ends})" if ends else ""), "value": value}
        for kind, name, value, ends in found
    ]


def results_of(result: RunResult | None) -> list[str]:
    if result is None:
        return ["It has not been evaluated.\n"]
    average, table = result.comparison.average, run_table(result)
    said = (
        f"Accuracy {percent(average.base.accuracy)} to {percent(average.pruned.accuracy)} ({points(average.gain.mean)}), "
        f"mean tokens {average.base.mean_tokens:.0f} to {average.pruned.mean_tokens:.0f} ({change(-average.cut.mean)}).\n"
    )
    return ["## Results\n", said, to_markdown(table) + "\n", escaped(table.note) + "\n"]


def made(settings: dict[str, Any]) -> list[str]:
    """The settings that matter, and the command."""
    rows = [(said, settings[name]) for name, said in SHOWN if settings.get(name) not in (None, "", [])]
    lines = ["| | |", "|---|---|"]
    lines += [f"| {said} | {escaped(shown(value))} |" for said, value in rows]
    command = settings.get("command")
    said = one_line(without_places(command)) if isinstance(command, str) else ""
    block = [f"    {said}\n"] if said else []
    return ["\n".join(lines) + "\n", *block]


def shown(value: Any) -> str:
    """A setting as text; of a path its last part, for the rest is this machine's."""
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    text = str(without_place(value))
    return Path(text).name if "/" in text and Path(text).exists() else text


def use(adapter: bool, name: str) -> str:
    if adapter:
        lines = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            "",
            f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({json.dumps(name)}), "THIS_FOLDER")',
        ]
    else:
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
            'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")',
        ]
    return "\n".join(f"    {line}".rstrip() for line in lines) + "\n"
