"""Other people's files of completions, read: every row becomes Generations, one a completion.

    JSONL or a JSON list   rows of vLLM, of the OpenAI protocol and its batches, of lm-eval, verl and most scripts
    samples.jsonl          our own (run_folder.py)
    .parquet               lighteval's details, MathArena's outputs and any flat table (extra: pyarrow)
    Inspect's log          .eval, or as .json

The fields decide, not the file's name. A row is first flattened: what stands inside `doc`, `model_response`, `response.body` or
`output` comes up. Then each of a Generation's parts is the first of its field names that is there. A row may hold one
completion or a list of them, and beside a list, lists of tokens, finish reasons and verdicts.

Left out on purpose: completions of several turns.
"""

import hashlib
import json
import lzma
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import decode, open_regular, parse_json, read_json
from ..problems import parquet_rows
from ..text import clean

ID = (*("problem_idx", "problem_id", "unique_id", "question_id", "doc_id", "custom_id", "id", "idx", "index"),)
SAMPLE_ID = ("sample_id", "request_id", "uid")  # often one a completion, so a question says more of the problem
QUESTION = ("question", "problem", "query", "user_message", "input", "prompt", "full_prompt", "example")
TEXT = (
    *(
        "resps",  # lm-eval's, whose document may have any of the others
        "completion",
        "completions",
        "outputs",
        "output",
        "responses",
        "response",
        "generations",
        "generation",
    ),
    *("generated_text", "model_output", "predictions", "prediction", "code", "text", "choices"),
)
GOLD = (
    *("gold_answer", "gold", "golds", "ground_truth", "ground_truth_answer", "expected_answer", "target", "gts", "gt"),
    *("reference_answer", "reference", "correct_answer", "answer", "solution"),
)
TOKENS = (
    *("tokens", "output_tokens", "completion_tokens", "generated_tokens", "num_generated_tokens", "num_tokens"),
    *("response_length", "cont_tokens", "token_ids"),
)
VERDICT = ("correct", "is_correct", "exact_match", "acc", "score", "scores")
FINISH = ("finish_reason", "finish_reasons", "stop_reason", "stop_reasons")
MODEL = ("model_name", "model")
CUT = ("length", "max_tokens", "model_length", "max_length")  # finish reasons of what met a limit of tokens
FIX = "correct or replace it"
MOST_LINE = 256 << 20  # bytes of a line, or of an archive's file: a problem with hundreds of long completions
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    KeyError,
    EOFError,
    RuntimeError,
    OSError,
)  # what zipfile raises
ARCHIVED = re.compile(r"samples/[^/]+\.json")  # the samples of an Inspect .eval


@dataclass(frozen=True)
class Generation:
    """A completion of somebody's file. None: the file does not say.

    problem: its id, or where the rows have none a hash of the question. golds: each of them is right. correct: the file's own
    verdict. prompt: as the model was asked, which may end inside a thought.
    """

    problem: str
    question: str | None
    text: str
    golds: tuple[str, ...]
    tokens: int | None
    cut_off: bool | None
    correct: bool | None
    model: str = ""
    prompt: str = ""


def read_generations(path: Path) -> list[Generation]:
    """All completions of a file, in its order. Raises UserError that names the file and the row: it holds no completions, no
    ids and no questions, or is damaged."""
    found = [g for where, row in rows_of(path) for g in generations(row, where)]
    if not found:
        raise UserError(f"{path}: holds no completions; a row needs a field such as completion, output or response")
    return found


def rows_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of every row, flattened."""
    filters: dict[str, str] = {}
    for where, value in raw_rows(path):
        if not isinstance(value, dict):
            raise UserError(f"{where}: a row must be an object with an id and a completion, not {type(value).__name__}")
        row = flattened(value)
        if "filter" in row and "doc_id" in row:  # lm-eval writes a document once for each of its filters
            first = filters.setdefault("filter", str(row["filter"]))
            if row["filter"] != first:
                continue
        yield where, row


def raw_rows(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".parquet":
        yield from parquet_rows(path)
        return
    if path.suffix == ".eval":
        yield from archived_rows(path)
        return
    with open_regular(path) as file:
        first = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        file.seek(0)
        if first[:1] == b"[":
            yield from ((f"{path}, item {at}", row) for at, row in enumerate(read_json(path), 1))
            return
        line = file.readline(MOST_LINE)
        if first[:1] == b"{" and not is_whole(line):  # one object over many lines
            yield from log_rows(read_json(path), path)
            return
        at = 1
        while line:
            if len(line) == MOST_LINE:
                raise UserError(f"{path}, line {at}: is longer than {MOST_LINE >> 20} MiB; write one row a line")
            if line.strip():
                value = parse_json(decode(line, f"{path}, line {at}"), f"{path}, line {at}", FIX)
                if is_inspect(value):
                    yield from log_rows(value, path)
                else:
                    yield f"{path}, line {at}", value
            line, at = file.readline(MOST_LINE), at + 1


def is_whole(line: bytes) -> bool:
    """Whether a line is a JSON value by itself."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def is_inspect(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("samples"), list) and isinstance(value.get("eval"), dict)


def log_rows(value: Any, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The samples of an Inspect log that is JSON, as rows."""
    if not is_inspect(value):
        raise UserError(f"{path}: is one object, and no log of Inspect; write a JSON list, or one row a line")
    for at, sample in enumerate(value["samples"], 1):
        where = f"{path}, samples[{at}]"
        yield where, inspect_row(sample, value["eval"], where)


def archived_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The samples of an Inspect .eval as rows: a zip archive with header.json and a file for each sample."""
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                names = sorted(name for name in archive.namelist() if ARCHIVED.fullmatch(name))
                header = unpacked(archive, "header.json", path)
                if not isinstance(header, dict) or not isinstance(header.get("eval"), dict) or not names:
                    raise UserError(f"{path}: is no finished log of Inspect; score a log whose samples are done")
                for name in names:
                    where = f"{path}, {name}"
                    yield where, inspect_row(unpacked(archive, name, path), header["eval"], where)
        except NotImplementedError:  # newer logs are packed in a way that only later Pythons read
            raise UserError(
                f"{path}: is packed with Zstandard; write it as JSON: inspect log convert --to json"
            ) from None
        except DAMAGED as error:
            raise UserError(f"{path}: is damaged, or no log of Inspect: {error}; {FIX}") from None


def unpacked(archive: zipfile.ZipFile, name: str, path: Path) -> Any:
    """The JSON of an archive's file. The size that an archive states may be a lie, so no more than it is read."""
    with archive.open(name) as file:
        raw = file.read(MOST_LINE + 1)
    if len(raw) > MOST_LINE:
        raise UserError(f"{path}, {name}: holds more than {MOST_LINE >> 20} MiB; {FIX}")
    return parse_json(decode(raw, f"{path}, {name}"), f"{path}, {name}", FIX)


def inspect_row(sample: Any, task: dict[str, Any], where: str) -> dict[str, Any]:
    """A sample of an Inspect log as a row."""
    output = sample.get("output") if isinstance(sample, dict) else None
    if not isinstance(output, dict):
        raise UserError(f"{where}: has no output; score a log whose samples are done")
    scores = sample.get("scores") or {}
    first = next(iter(scores.values()), None) if isinstance(scores, dict) else None
    return {
        "id": sample.get("id"),
        "question": asked(sample.get("input")),
        "choices": output.get("choices") or [],
        "target": sample.get("target"),
        "usage": output.get("usage"),
        "correct": first.get("value") if isinstance(first, dict) else None,
        "model": task.get("model"),
    }


def flattened(row: dict[str, Any]) -> dict[str, Any]:
    """The row with what others nest brought up: the outer field wins."""
    for name in ("doc", "model_response", "metric", "metrics", "response", "body", "usage", "output"):
        inner = row.get(name)
        if isinstance(inner, dict):
            row = inner | {key: value for key, value in row.items() if key != name}
    if isinstance(row.get("choices"), list) and "gold_index" in row:  # lighteval: the gold answers are among them
        at = row["gold_index"] if isinstance(row["gold_index"], list) else [row["gold_index"]]
        golds = [row["choices"][i] for i in at if isinstance(i, int) and 0 <= i < len(row["choices"])]
        row = {key: value for key, value in row.items() if key != "choices"} | {"gold": golds}
    if "choices" in row and not are_completions(row["choices"]):
        row = {key: value for key, value in row.items() if key != "choices"}
    if row.get("gold_answer") is not None and row.get("answer") is not None and first_of(row, TEXT) is None:
        row = row | {"completion": row["answer"]}  # MathArena's
    ids = row.get("token_ids")
    if isinstance(ids, list) and all(isinstance(token, int) for token in ids):  # of one completion
        row = row | {"token_ids": len(ids) or None}
    if isinstance(row.get("messages"), list) and row["messages"]:
        *before, last = row["messages"]
        if isinstance(last, dict) and last.get("role") == "assistant":
            row = {"completion": last, "question": asked(before)} | row
    return row


def are_completions(choices: Any) -> bool:
    """Whether choices are those of the OpenAI protocol, and not what a multiple-choice question offers."""
    return isinstance(choices, list) and all(isinstance(c, dict) and "label" not in c for c in choices)


def generations(row: dict[str, Any], where: str) -> Iterator[Generation]:
    """The completions of one row."""
    ours = {"problem", "sample", "completion", "tokens"} <= row.keys()  # a line of our own samples.jsonl
    names = ("problem",) if ours else ID
    text = first_of(row, TEXT)
    if text is None:
        raise UserError(
            f"{where}: no completion; a row needs a field such as completion, output or response, and has "
            f"{', '.join(map(repr, map(clean, list(row)[:12])))}"
        )
    question = asked(first_of(row, ("question",) if ours else QUESTION))
    name = first_of(row, names)
    if name is None and question is None and (name := first_of(row, SAMPLE_ID)) is None:
        raise UserError(f"{where}: no id and no question; give each row the id of its problem, in a field id")
    problem = id_of(name) if name is not None else hashlib.sha256(str(question).encode()).hexdigest()[:16]
    items = several(text, where)
    if not items:
        raise UserError(f"{where}: holds an empty list of completions; sample it again, or take it out of the file")
    golds = next((found for field in (GOLD[:-2] if ours else GOLD) if (found := gold_texts(row.get(field)))), ())
    prompt = row.get("prompt")
    counts, reasons, verdicts = (first_of(row, part) for part in (TOKENS, FINISH, VERDICT))
    for at, item in enumerate(items):
        own = item if isinstance(item, dict) else {}
        yield Generation(
            problem=problem,
            question=question,
            text=text_of(item, where),
            golds=golds,
            tokens=count_of(first_of(own, TOKENS, default=nth(counts, at, len(items)))),
            cut_off=cut_of(first_of(own, FINISH, default=nth(reasons, at, len(items)))),
            correct=verdict_of(first_of(own, VERDICT, default=nth(verdicts, at, len(items)))),
            model=str(first_of(row, MODEL, default="")),
            prompt=prompt if isinstance(prompt, str) else "",
        )


def id_of(name: Any) -> str:
    """An id as text; a table with a gap has turned its whole numbers into floats."""
    return str(int(name)) if isinstance(name, float) and name.is_integer() else str(name)


def first_of(row: dict[str, Any], names: Sequence[str], default: Any = None) -> Any:
    """The first of these fields that is there, and neither null nor the NaN of a table's gap."""
    held = (row[name] for name in names if row.get(name) is not None)
    return next((value for value in held if not (isinstance(value, float) and math.isnan(value))), default)


def several(value: Any, where: str) -> list[Any]:
    """The completions that a field holds: one, a list, a list in a list (lm-eval's resps), or the steps of one (OpenAI's
    responses: reasoning, then a message)."""
    if not isinstance(value, list):
        return [value]
    items = [item for part in value for item in (part if isinstance(part, list) else [part])]
    kinds = [item.get("type") if isinstance(item, dict) else None for item in items]
    if "reasoning" not in kinds:
        return items
    return ["".join(text_of(item, where) for item, kind in zip(items, kinds) if kind == "message")]


def nth(values: Any, at: int, count: int) -> Any:
    """What belongs to the completion `at` of `count`: an item of a list as long, or the row's own value where there is one
    completion."""
    if isinstance(values, list) and len(values) == count:
        return values[at]
    return values if count == 1 or isinstance(values, str) else None


def text_of(item: Any, where: str) -> str:
    """The text of a completion: a string, vLLM's {"text"}, a message, or a choice that holds one. A thought that stands
    beside the answer comes before it, between its tags."""
    if isinstance(item, dict):
        inner = item.get("message")
        message: dict[str, Any] = inner if isinstance(inner, dict) else item
        thought = first_of(message, ("reasoning_content", "reasoning"))
        content = first_of(message, ("content", "text", "completion", "generated_text"), default="")
        if isinstance(content, list):  # Inspect's parts
            parts = [part for part in content if isinstance(part, dict)]
            thought = thought or "".join(str(part.get("reasoning") or "") for part in parts) or None
            content = "".join(str(part.get("text") or "") for part in parts)
        item = f"<think>{thought}</think>{content}" if isinstance(thought, str) and thought else content
    if not isinstance(item, str):
        raise UserError(f"{where}: a completion must be text, not {type(item).__name__}")
    return item


def asked(value: Any) -> str | None:
    """The question of a row: text, or the last user turn of messages."""
    if isinstance(value, list):
        turns = [t for t in value if isinstance(t, dict) and t.get("role") == "user"]
        value = turns[-1].get("content") if turns else None
        if isinstance(value, list):
            value = "".join(str(part.get("text") or "") for part in value if isinstance(part, dict))
    return value if isinstance(value, str) else None


def gold_texts(value: Any) -> tuple[str, ...]:
    """The gold answers of a field; none where it is empty or holds something else."""
    values = value if isinstance(value, list) else [value]
    held = (v for v in values if isinstance(v, str | int | float | Decimal) and v == v)  # NaN is a table's gap
    return tuple(text for v in held if (text := str(v)).strip())


def count_of(value: Any) -> int | None:
    """A count of tokens, or the length of a list of token ids; an empty one says nothing."""
    if isinstance(value, list):
        return len(value) or None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        return None
    return int(value)


def cut_of(value: Any) -> bool | None:
    return value.lower() in CUT if isinstance(value, str) else None


def verdict_of(value: Any) -> bool | None:
    """Right or wrong as others write it: true, 1.0, Inspect's "C" and "I"; None for anything between."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    return {"C": True, "I": False}.get(value) if isinstance(value, str) else None
