"""What the processes of a test's world do, and the same work in one process."""

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

import o1core.model
from o1core.distributed import (
    allot_weights,
    copy_weights,
    drop_weights,
    export_checkpoint,
    load_part,
    processes,
    team_of,
    trained_model,
)
from o1core.model import checkpoint, draw_adapters, read_config
from o1core.policy import Policy, select
from o1core.recipe import Recipe
from o1core.rollout import engine, lanes, pages, sampling
from o1core.run_folder import RunFolder
from o1core.training import Updater, reference_logprobs, with_reference
from o1core.training.state import Progress, load_state, save_state, trained_tensors
from o1core.training.teacher import open_teacher
from o1core.types import Example, Problem
from tests.rollout.graphed import Graphed

VOCAB = 259


@dataclass(frozen=True)
class Trained:
    """What training left: weights, gradient norms and metrics of each step."""

    weights: dict[str, Tensor]
    norms: list[float]
    metrics: list[dict[str, float]]


def make_examples(count: int, seed: int = 0, vocab: int = VOCAB, samples: int = 1) -> list[Example]:
    """samples: of each prompt."""
    g = torch.Generator().manual_seed(seed)
    examples = []
    for i in range(count):
        t, n = (int(torch.randint(low, high, (), generator=g)) for low, high in ((1, 9), (1, 20)))
        prompt, ids = (torch.randint(vocab, (m,), generator=g, dtype=torch.int32) for m in (t, n))
        if i % samples:
            prompt = examples[-1].prompt
        examples.append(Example(f"p{i}", prompt, ids, torch.zeros(n), float(torch.randn((), generator=g)), False))
    return examples


def updater_on(folder: Path, dtype: torch.dtype, recipe: Recipe, vocab: int = VOCAB) -> Updater:
    plain = o1core.model.load(folder, dtype)[0]
    model = trained_model(plain, folder, lambda m: select(m, recipe.optimiser))
    draw_adapters(model, 0)
    return Updater(model, vocab, recipe.objective, recipe.optimiser, recipe.execution)


def train(folder: Path, dtype: torch.dtype, steps: int, batch: int, samples: int = 1, **settings: object) -> Trained:
    """Some steps on random examples, `samples` of each prompt, on a shifted reference; CRISP's teacher is the policy with a
    longer prompt."""
    recipe = Recipe.of(**{"lr": 1e-3, "ratio": "token", "micro_tokens": 64} | settings)
    updater = updater_on(folder, dtype, recipe)
    metrics = []
    for step in range(steps):
        examples = make_examples(batch, step, samples=samples)
        reference = reference_logprobs(updater.model, VOCAB, examples, 64)
        batch_of_step = with_reference(examples, [r + 0.1 for r in reference])
        if recipe.objective.kind == "crisp":
            prompts = {e.problem: torch.cat((e.prompt, torch.arange(5, dtype=torch.int32))) for e in examples}
            teacher = open_teacher(
                folder / f"teacher-{made_by()}-{recipe.optimiser.lora_rank}-{step}", updater, examples, prompts
            )
            updater.teacher_head, batch_of_step = teacher.head, teacher.teach(batch_of_step)
        metrics.append(updater.step(batch_of_step, recipe.optimiser.lr))
    weights = {name: whole(p.detach()).clone() for name, p in updater.model.named_parameters()}
    return Trained(weights, [m["grad_norm"] for m in metrics], metrics)


def made_by() -> str:
    return f"{processes()}-ranks" if dist.is_initialized() else "plain"


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def train_at_real_widths(folder: Path) -> tuple[float, dict[str, Tensor]]:
    """The gradient norm of a step, and 256 rows of every weight after it."""
    vocab = 151936
    updater = updater_on(folder, torch.float32, Recipe.of(lr=1e-3, ratio="token", micro_tokens=64), vocab)
    examples = make_examples(3, 0, vocab)
    examples = with_reference(examples, [torch.full((len(e.ids),), -12.0) for e in examples])
    norm = updater.step(examples, 1e-3)["grad_norm"]
    weights = ((name, whole(p.detach())) for name, p in updater.model.named_parameters())
    return norm, {name: w[:: max(1, len(w) // 256)].clone() for name, w in weights}


def train_all(jobs: list[tuple]) -> list[Trained]:
    """Several trainings in one world."""
    return [train(*positional, **settings) for *positional, settings in jobs]


def sampled_by_a_team(folder: Path, members: int, prompts: list[list[int]], ids: Tensor) -> tuple[Tensor, list]:
    """Hidden states of ids and greedy completions of a model whose weights `members` ranks share."""
    team = team_of(members)
    tokenizer = o1core.model.load(folder)[1]
    model = load_part(folder, torch.float32, torch.device("cpu"), team)
    with torch.no_grad():
        hidden = model.hidden(ids)
    params = o1core.SamplingParams(temperature=0, max_new_tokens=40)
    texts = [c.ids for [c] in o1core.Engine(model, tokenizer, slots=4).generate(prompts, params)]
    return hidden, texts


def sampled_by_ranks_that_drift(folder: Path, kind: str, prompts: list[list[int]]) -> list:
    """Completions of a team whose second rank samples other tokens than its first. kind: of the cache, or "graphs" for pages
    whose steps are replayed, the team's sums with them."""
    os.environ["O1CORE_CACHE"] = "pages" if kind == "graphs" else kind
    if kind == "graphs":
        engine.PageDecoder = Graphed
    team = team_of(2)
    tokenizer = o1core.model.load(folder)[1]
    model = load_part(folder, torch.float32, torch.device("cpu"), team)
    module, sample = (lanes if kind == "lanes" else pages), sampling.sample
    if team.member:
        module.sample = lambda logits, *rest: sample(logits.roll(1, -1), *rest)
    params = o1core.SamplingParams(max_new_tokens=20)
    return [c.ids for [c] in o1core.Engine(model, tokenizer, 4, team).generate(prompts, params)]


def copied_weights(folder: Path, members: int, dtype: torch.dtype) -> tuple[int, dict[str, Tensor], dict[str, Tensor]]:
    """This rank's place in its team; the weights of its copy after it was dropped and filled from shards; the same read
    from disk."""
    team = team_of(members)
    sharded = trained_model(o1core.model.load(folder, dtype)[0], folder, lambda m: m.requires_grad_(True))
    copy = load_part(folder, dtype, torch.device("cpu"), team)
    from_disk = {name: p.detach().clone() for name, p in copy.named_parameters()}
    drop_weights(copy)
    assert all(p.untyped_storage().nbytes() == 0 for p in copy.parameters())
    allot_weights(copy)
    for p in copy.parameters():
        p.detach().fill_(torch.nan)
    copy_weights(sharded, read_config(folder), copy, team)
    return team.member, {name: p.detach().clone() for name, p in copy.named_parameters()}, from_disk


def exported(folder: Path, out: Path, dtype: torch.dtype) -> None:
    model = trained_model(o1core.model.load(folder, dtype)[0], folder, lambda m: m.requires_grad_(True))
    export_checkpoint(model, folder, out, dtype)


def everything_of(folder: Path, out: Path, prompts: list[list[int]], ids: Tensor, recipe: dict) -> tuple:
    """Of one model in one world of two: what copied_weights, sampled_by_a_team and train give, and an exported checkpoint."""
    copied = copied_weights(folder, 2, torch.bfloat16)
    sampled = sampled_by_a_team(folder, 2, prompts, ids)
    exported(folder, out, torch.float32)
    return copied, sampled, train(folder, torch.float32, 2, 6, **recipe)


def bytes_read(folder: Path) -> tuple[int, int]:
    """Bytes of the slices that loading shards reads, and of all weights that it fills, on this rank."""
    plain = o1core.model.load(folder, torch.float32)[0]
    read = 0
    original = checkpoint.safe_open

    @contextlib.contextmanager
    def counting(path: Path, framework: str):
        with original(path, framework=framework) as file:
            yield CountingFile(file, count)

    def count(size: int) -> None:
        nonlocal read
        read += size

    checkpoint.safe_open = counting
    try:
        trained_model(plain, folder, lambda m: m.requires_grad_(True))
    finally:
        checkpoint.safe_open = original
    return read, sum(p.nbytes for p in plain.parameters())


class CountingFile:
    """A safetensors file that counts the bytes that are taken from it."""

    def __init__(self, file, count) -> None:
        self.file, self.count = file, count

    def keys(self):
        return self.file.keys()

    def get_slice(self, name: str):
        outer, inner = self, self.file.get_slice(name)

        class Slice:
            get_shape, get_dtype = inner.get_shape, inner.get_dtype

            def __getitem__(self, index):
                tensor = inner[index]
                outer.count(tensor.nbytes)
                return tensor

        return Slice()


PROBLEMS = [Problem(str(a), f"{a} + 5 = ?", str(a + 5)) for a in range(10)]
PARAMS = o1core.SamplingParams(n=3, temperature=1.0, max_new_tokens=24, seed=1)


def sample(folder: Path, out: Path, count: int, members: int = 1, opening: str = "") -> dict[str, list]:
    """problem: (ids, log-probs) of its samples, of the first `count` problems."""
    team = team_of(members)
    tokenizer = o1core.model.load(folder)[1]
    model = load_part(folder, torch.float32, torch.device("cpu"), team)
    policy = Policy(folder, model, tokenizer, o1core.Engine(model, tokenizer, 4, team), 24)
    groups = policy.sample(PROBLEMS[:count], PARAMS, out, opening=opening).groups
    return {g.problem: [(s.ids.tolist(), s.logprobs.tolist()) for s in g.samples] for g in groups}


def steps(updater: Updater, first: int, last: int) -> None:
    for step in range(first, last):
        examples = make_examples(7, seed=step)
        updater.step(with_reference(examples, reference_logprobs(updater.model, VOCAB, examples, 64)), 1e-3)


def digest(updater: Updater) -> str:
    """Of all that is trained, whole."""
    result = hashlib.sha256()
    for name, tensor in sorted(trained_tensors(updater).items()):
        result.update(name.encode() + whole(tensor).contiguous().view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def state_recipe(kind: str) -> Recipe:
    return Recipe.of(optimiser=kind, lr=1e-3, ratio="token", micro_tokens=64)


def save_and_go_on(folder: Path, out: Path, kinds: list[str]) -> list[tuple[str, str]]:
    """Digests after two steps, which are saved, and after four."""
    digests = []
    for kind in kinds:
        updater = updater_on(folder, torch.bfloat16, state_recipe(kind))
        steps(updater, 0, 2)
        save_state(RunFolder(out / kind), updater, Progress(0, 2, 2), {"kind": kind})
        updater.written()
        saved = digest(updater)
        with updater.resting("none"):
            pass
        steps(updater, 2, 4)
        digests.append((saved, digest(updater)))
    return digests


def load_and_go_on(folder: Path, out: Path, kinds: list[str], last: int = 4) -> list[tuple[str, str]]:
    """Digests of the state that is loaded, and after the steps up to `last`."""
    digests = []
    for kind in kinds:
        updater = updater_on(folder, torch.bfloat16, state_recipe(kind))
        if last > 2:
            steps(updater, 7, 8)  # what is loaded replaces all of it
        progress = load_state(RunFolder(out / kind), updater, {"kind": kind})
        assert progress == Progress(0, 2, 2)
        loaded = digest(updater)
        steps(updater, 2, last)
        digests.append((loaded, digest(updater)))
    return digests
