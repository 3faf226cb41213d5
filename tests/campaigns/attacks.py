"""Single attacks, each of which succeeded once: `python -m tests.campaigns attacks [--only NAME]`.

An attack is a function of an empty folder. It says "ok", or what is bad. Most of them work on a small run in that folder,
or on one that was stopped half way.
"""

import functools
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from o1core.cli import main
from o1core.files import file_digest, read_json, write_json
from o1core.grading import Attempt, Grader
from o1core.model import read_config, tokenizer
from o1core.recipe import Recipe
from o1core.rollout import read_groups
from o1core.run_folder import RunFolder
from o1core.runs import Machine, Workload, plan, plan_run
from o1core.training import read_log

from .fuzz_cli import quietly, stopped_run
from .harness import ESCAPE, SECONDS, TINY, judged, outcome
from .kill import finish, make_command, start_run


def run_attacks(only: str | None, folder: Path) -> Counter[str]:
    """Counts of "NAME: ok" and "NAME: bad: ..."."""
    counts: Counter[str] = Counter()
    for name, attack in ATTACKS.items():
        if only in (None, name):
            place = folder / name
            place.mkdir()
            counts[f"{name}: {attack(place)}"] += 1
            shutil.rmtree(place, ignore_errors=True)
    return counts


@functools.cache
def finished_run() -> tuple[list[str], Path]:
    """A command without its --out, and the folder of a run that it has made."""
    folder = Path(tempfile.mkdtemp(prefix="o1core-attack-"))
    command = make_command(folder)
    verdict = outcome([*command, "--out", str(folder / "run")])
    assert verdict == "ok", verdict
    return command, folder / "run"


def shell(line: str, **environment: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of a line of bash, in which "o1core" is this Python's."""
    line = f'o1core() {{ "{sys.executable}" -m o1core "$@"; }}; {line}'
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=SECONDS, env=os.environ | environment
    )
    return done.returncode, done.stdout, done.stderr


def words(command: list[str]) -> str:
    return " ".join(f"'{word}'" for word in command)


def reader_goes_away(folder: Path) -> str:
    """A run whose output is read no further ends with its result, or not with 0."""
    command = words([*finished_run()[0], "--out", str(folder / "run")])
    status, _, _ = shell(f"o1core {command} 2>&1 | head -c 300 >/dev/null; exit ${{PIPESTATUS[0]}}")
    whole = (folder / "run" / "result.json").exists()
    return "ok" if whole == (status == 0) else f"bad: status {status}, and a result: {whole}"


def streams_closed_or_full(folder: Path) -> str:
    """Standard error that is closed or full does no harm."""
    command, run = finished_run()
    for redirected in ("2>&-", "2>/dev/full", "<&- >&- 2>&-"):
        status, out, errors = shell(f"o1core {words([*command, '--out', str(run)])} {redirected}")
        if status != 0 or "Traceback" in out + errors:
            return f"bad: {redirected}: status {status}: {(out + errors)[-200:]}"
    return "ok"


def link_at_a_temporary_name(folder: Path) -> str:
    """What a link in a stranger's run points to is not overwritten."""
    shutil.copytree(finished_run()[1], folder / "run")
    (folder / "victim").write_text("mine")
    for name in (".report.html.partial", "report.html", ".report.html.0.partial"):
        (folder / "run" / name).unlink(missing_ok=True)
        (folder / "run" / name).symlink_to(folder / "victim")
    verdict = outcome(["report", str(folder / "run")])
    return verdict if (folder / "victim").read_text() == "mine" else "bad: written through"


def link_inside_a_run(folder: Path) -> str:
    """A run does not write out of its folder through a link."""
    command, run, _ = stopped_run()
    for place in ("base", "after", "round-00", "round-00/rollouts", "base/problems/rollouts", "log.jsonl"):
        mine = folder / "run"
        shutil.copytree(run, mine)
        if (mine / place).exists():
            os.rename(mine / place, folder / "elsewhere")
        else:
            (folder / "elsewhere").mkdir()
        (mine / place).symlink_to(folder / "elsewhere")
        before = content_of(folder / "elsewhere")
        verdict = outcome([*command, "--out", str(mine)])
        if verdict != "refused" or content_of(folder / "elsewhere") != before:
            return f"bad: {place} is a link: {verdict}"
        shutil.rmtree(mine)
        shutil.rmtree(folder / "elsewhere") if (folder / "elsewhere").is_dir() else (folder / "elsewhere").unlink()
    return "ok"


def content_of(path: Path) -> dict[str, str]:
    files = [file for file in [path, *path.rglob("*")] if file.is_file()]
    return {str(file): file_digest(file) for file in files}


def escape_in_a_name(folder: Path) -> str:
    """A folder's name does not drive the terminal."""
    run = folder / f"run{ESCAPE}\nrm -r ."
    shutil.copytree(finished_run()[1], run)
    model = folder / f"model{ESCAPE}"
    shutil.copytree(TINY, model)
    for command in (
        ["report", str(run)],
        ["show", str(run)],
        ["plan", "--model", str(model)],
        ["plan", "--model", str(run)],
        [*finished_run()[0], "--out", str(run)],
    ):
        verdict = outcome(command)
        if verdict not in ("ok", "refused"):
            return verdict
    return "ok"


def folder_removed_at_work(folder: Path) -> str:
    """`rm -r RUN/base` while a run goes ends it with one line at most, and the same command mends it."""
    command, run = [*finished_run()[0], "--out", str(folder / "run")], RunFolder(folder / "run")
    pid = start_run(command, run.path, lambda: None)
    deadline = time.monotonic() + SECONDS
    while not run.round(0).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    shutil.rmtree(run.path / "base")
    status, output = finish(pid)
    verdict = judged(status, output)
    if verdict not in ("ok", "refused"):
        return verdict
    return outcome(command)


def little_memory(folder: Path) -> str:
    """In 1 GiB of address space small files are read, beside the 2.5 GiB of libraries that a build of torch for CUDA maps."""
    room = (1 << 20) + (0 if torch.version.cuda is None else 5 << 19)  # KiB
    status, _, errors = shell(f"ulimit -v {room}; o1core show {finished_run()[1]} --problems 1")
    return judged(status, errors)


def rank_that_is_no_number(folder: Path) -> str:
    """RANK=x is told."""
    with mock.patch.dict(os.environ, RANK="x"):
        verdict = outcome(["prune", "--out", f"{folder}/run"])
    return "ok" if verdict == "refused" else f"bad: {verdict}"


def pipe_for_a_lock(folder: Path) -> str:
    """A pipe in place of the lock does not hang a run."""
    command, source, _ = stopped_run()
    shutil.copytree(source, folder / "run")
    (folder / "run" / "lock").unlink(missing_ok=True)
    os.mkfifo(folder / "run" / "lock")
    verdict = outcome([*command, "--out", str(folder / "run")])
    return "ok" if verdict == "refused" else f"bad: {verdict}"


def killed_rank(folder: Path) -> str:
    """Where nobody else watches the ranks, one that was killed is named as dead by the others, at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "o1core", *finished_run()[0], "--out", str(folder / "run")]
    ranks = []
    for rank in ("0", "1"):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
        ranks.append(subprocess.Popen(command, env=os.environ | own, **pipes))  # type: ignore[call-overload]
    begun = time.monotonic()
    while not (folder / "run" / "round-00").exists() and time.monotonic() - begun < SECONDS:
        time.sleep(0.05)
    ranks[1].kill()
    try:
        errors = ranks[0].communicate(timeout=SECONDS)[1]
    except subprocess.TimeoutExpired:
        ranks[0].kill()
        return "bad: rank 0 waits on"
    finally:
        ranks[1].communicate()
    told = errors.replace("\r", "\n").strip().splitlines()[-1]
    said = told.startswith("o1core: error: ") and "rank 1 died" in told and "gave up" not in told
    return "ok" if ranks[0].returncode == 2 and said else f"bad: status {ranks[0].returncode}: {told[-300:]!r}"


def one_bit_of_the_records(folder: Path) -> str:
    """A flipped bit in the settings or the problems is said; in the log, the one line is lost and the rest stays."""
    rng = random.Random(0)
    for name in ("settings.json", "base/problems/problems.json", "log.jsonl"):
        run = RunFolder(folder / "run")
        shutil.copytree(finished_run()[1], run.path)
        file = run.path / name
        raw = bytearray(file.read_bytes())
        raw[rng.randrange(len(raw) // 4, len(raw) // 2)] ^= 1 << rng.randrange(7)
        file.write_bytes(raw)
        if name == "log.jsonl":  # a warning, which goes where the process began to log
            status, _, errors = shell(f"o1core report {run.path}")
        else:
            status, errors = quietly(functools.partial(main, ["report", str(run.path)]))
        if judged(status, errors) not in ("ok", "refused") or f"{name}: " not in errors:
            return f"bad: {name} was changed: status {status}, told {errors[-300:]!r}"
        if name == "log.jsonl" and (status or len(read_log(file)) != len(read_log(finished_run()[1] / name)) - 1):
            return "bad: more than the damaged line of the log is lost"
        shutil.rmtree(run.path)
    return "ok"


def run_of_an_older_version(folder: Path) -> str:
    """Where a default has changed since, a line says which flags continue the run, and they do."""
    command, source, _ = stopped_run()
    run = RunFolder(folder / "run")
    shutil.copytree(source, run.path)
    held = {name: value for name, value in read_json(run.settings).items() if name not in ("sha256", "o1core")}
    write_json(run.settings, held | {"cutoff": 3000, "dynamic_sampling": True})
    command = [*command, "--out", str(run.path)]
    status, errors = quietly(lambda: main(command))
    flags = "--dynamic-sampling --cutoff 3000"
    if status != 2 or f"continue it with {flags}, or choose another --out" not in errors:
        return f"bad: status {status}, told {errors[-300:]!r}"
    status, errors = quietly(lambda: main([*command, *flags.split()]))
    states = "written under other settings"  # the training state's own record was not changed with it
    return "ok" if status == 2 and states in errors else f"bad: status {status}, told {errors[-300:]!r}"


# What strangers' checkpoints and a busy machine do


def problems_of(folder: Path, *questions: str) -> list[str]:
    """A small evaluation of a copy of the embedded model on these questions, without its --out."""
    shutil.copytree(TINY, folder / "model")
    rows = (json.dumps({"problem": question, "answer": "5"}) + "\n" for question in questions)
    (folder / "problems.jsonl").write_text("".join(rows))
    command = ["eval", "--model", str(folder / "model"), "--data", str(folder / "problems.jsonl")]
    return [*command, "--max-new-tokens", "8", "--device", "cpu"]


def edited(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tokenizer_that_a_word_sets_off(folder: Path) -> str:
    """What a tokenizer does at a word of the data stays in its worker: it swells, it ends the process, it never returns."""
    command = problems_of(folder, "What is 2 + 3? trigger Q" + "a" * 40)
    file = folder / "model" / "tokenizer.json"
    whole = file.read_text()
    steps = [("trigger", "§§§"), ("§", "¶" * 1000), ("¶", "¤" * 300), ("¤", "x" * 300)]
    grows = [{"type": "Replace", "pattern": {"String": one}, "content": other} for one, other in steps]
    never = {"type": "Split", "pattern": {"Regex": "Q(a|a)*b"}, "behavior": "Isolated", "invert": False}
    before = json.loads(whole)["pre_tokenizer"]
    cases = {
        "swells": {"normalizer": {"type": "Sequence", "normalizers": grows}},
        "never returns": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [never, before]}},
    }
    for name, changes in cases.items():
        edited(file, **changes)
        with mock.patch.object(tokenizer, "SECONDS", 1.0):
            verdict = outcome([*command, "--out", str(folder / "run")])
        if verdict != "refused":
            return f"bad: {name}: {verdict}"
        file.write_text(whole)
    return "ok"


def sparse_files(folder: Path) -> str:
    """A file of 4.5 GB that takes no room on the disk is neither read nor copied."""
    command = problems_of(folder, "What is 2 + 3?")
    for name in ("tokenizer.json", "merges.txt"):
        file = folder / "model" / name
        held = file.read_bytes() if file.exists() else None
        with file.open("ab") as sparse:
            sparse.truncate(4608 << 20)
        verdict = outcome([*command, "--out", str(folder / "run")])
        if verdict != "refused":
            return f"bad: {name}: {verdict}"
        file.unlink()
        if held is not None:
            file.write_bytes(held)
    return "ok"


def inputs_that_change(folder: Path) -> str:
    """A run that was stopped does not go on with other files than it began with."""
    command, source, _ = stopped_run()
    shutil.copytree(source, folder / "run")
    model, data = Path(command[2]), Path(command[4])
    weights = (model / "model.safetensors").read_bytes()
    middle = len(weights) // 2
    changes = {
        model / "tokenizer_config.json": lambda raw: raw.replace(b"assistant", b"Assistant"),
        model / "tokenizer.json": lambda raw: raw + b" ",
        model / "model.safetensors": lambda raw: raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :],
        data: lambda raw: raw.replace(b"+ 5", b"+  5"),
    }
    for path, change in changes.items():
        held, times = path.read_bytes(), path.stat()
        path.write_bytes(change(held))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        try:
            verdict = outcome([*command, "--out", str(folder / "run")])
        finally:
            path.write_bytes(held)
        if verdict != "refused":
            return f"bad: another {path.name}: {verdict}"
    return "ok"


def evaluation_under_another_template(folder: Path) -> str:
    """The same --out does not answer with what another template gave."""
    command = [*problems_of(folder, "What is 2 + 3?"), "--out", str(folder / "run")]
    if (verdict := outcome(command)) != "ok":
        return f"bad: {verdict}"
    (folder / "model" / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    verdict = outcome(command)
    return "ok" if verdict == "refused" else f"bad: {verdict}"


def verdicts_under_load(folder: Path) -> str:
    """An answer that takes half of its processor time is right beside busy processes, too."""
    slow = Attempt(r"\boxed{((((((((x))))))))}", "x")
    with ExitStack() as stack:
        grader = stack.enter_context(Grader(workers=1, seconds=1))
        grader.grade_many([Attempt(r"\boxed{x+1}", "1+x")])  # the worker has started
        for process in [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]:
            stack.callback(process.wait)
            stack.callback(process.kill)
        verdict = grader.grade_many([slow])[0]
    return "ok" if verdict.correct else f"bad: {verdict.fault}"


def template_that_asks_the_clock(folder: Path) -> str:
    """A prompt depends on the day that its run began on, on no second and on no chance."""
    command = problems_of(folder, "What is 2 + 3?")
    template = folder / "model" / "chat_template.jinja"
    template.write_text("{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }} {{ messages[-1].content }}")
    prompts = []
    for name in ("one", "two"):
        if (verdict := outcome([*command, "--out", str(folder / name)])) != "ok":
            return f"bad: {verdict}"
        found = [path for path in (folder / name).rglob("rollouts") if path.is_dir()]
        prompts.append([group.prompt.tolist() for path in found for group in read_groups(path)])
    if not prompts[0] or prompts[0] != prompts[1]:
        return "bad: two prompts of one day differ"
    template.write_text("{{ ['a', 'b'] | random }} {{ messages[-1].content }}")
    verdict = outcome([*command, "--out", str(folder / "three")])
    return "ok" if verdict == "refused" else f"bad: a template that draws: {verdict}"


def threads_that_spin(folder: Path) -> str:
    """Threads that wait leave their core to others: what says so is set before torch is imported."""
    command = words([*problems_of(folder, "What is 2 + 3?"), "--out", str(folder / "run")])
    status, _, errors = shell(f"o1core {command}", OMP_DISPLAY_ENV="TRUE", OMP_NUM_THREADS="2")
    passive = "OMP_WAIT_POLICY = 'PASSIVE'" in errors
    return "ok" if status == 0 and passive else f"bad: status {status}, told {errors[-300:]!r}"


def plan_of_a_small_run(folder: Path) -> str:
    """A few short answers of half a billion weights with adapters take under 5 GiB: their plan is not for 14."""
    half = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "intermediate_size": 4864}
    half |= {"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936}
    half |= {"max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(half | {"torch_dtype": "bfloat16"}))
    few = Recipe.of(lora_rank=16, problems=4, samples=4, picked=4, batch=4, max_new_tokens=64, eval_problems=4)
    config = replace(read_config(folder), dtype=torch.bfloat16)
    found = plan_run(config, Workload.of(few, prompt=200), Machine(memory=12 << 30))
    return "ok" if found.fits and found.peak.total < 5 << 30 else f"bad: planned for {found.peak.total / 2**30:.1f} GiB"


def memory_that_an_evaluation_lacks(folder: Path) -> str:
    """`eval` and `sample` are refused like `prune` before they load what does not fit, and leave nothing behind."""
    command = [*problems_of(folder, "What is 2 + 3?")[1:], "--out", str(folder / "run")]
    with mock.patch.object(plan, "free_memory", lambda device: 1 << 20):
        for name in ("eval", "sample"):
            verdict = outcome([name, *command])
            if verdict != "refused" or (folder / "run" / "settings.json").exists():
                return f"bad: {name}: {verdict}"
    return "ok"


def template_that_fails_when_rendered(folder: Path) -> str:
    """Prompts are rendered before a folder is claimed: nothing is left behind, and the corrected checkpoint runs."""
    command = [*problems_of(folder, "What is 2 + 3?"), "--out", str(folder / "run")]
    template = folder / "model" / "chat_template.jinja"
    for text in ("{{ 'x' * 10**9 }}", "{{ '%1000000000d' % 1 }}", "{{ '\ud800' }}", "{{ 1 / 0 }}"):
        template.write_text(text, encoding="utf-8", errors="surrogatepass")
        verdict = outcome(command)
        if verdict != "refused" or (folder / "run").exists():
            return f"bad: {text}: {verdict}, a folder left behind: {(folder / 'run').exists()}"
    template.unlink()
    return outcome(command)


ATTACKS: dict[str, Callable[[Path], str]] = {
    attack.__name__: attack
    for attack in (
        reader_goes_away,
        streams_closed_or_full,
        link_at_a_temporary_name,
        link_inside_a_run,
        escape_in_a_name,
        folder_removed_at_work,
        little_memory,
        rank_that_is_no_number,
        pipe_for_a_lock,
        killed_rank,
        one_bit_of_the_records,
        run_of_an_older_version,
        tokenizer_that_a_word_sets_off,
        sparse_files,
        inputs_that_change,
        evaluation_under_another_template,
        verdicts_under_load,
        template_that_asks_the_clock,
        threads_that_spin,
        plan_of_a_small_run,
        memory_that_an_evaluation_lacks,
        template_that_fails_when_rendered,
    )
}
