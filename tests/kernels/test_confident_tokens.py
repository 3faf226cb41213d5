"""Log-probs and gradients of likely tokens, where 1 - p is a small difference: at most twice torch's own error.

Errors are relative to the largest true number, and the mean over a few seeds: logits of 200 are rounded by 8e-6 in fp32
before anything is made of them, in another order by each product. Below 1e-6 they count as none. Truth is float64 torch.
"""

from statistics import mean

import pytest
import torch

from o1core import kernels
from o1core.kernels import dispatch
from o1core.kernels.numbers import Softmax
from tests.kernels import reference
from tests.kernels.triton_cases import DEVICE

FLOOR = 1e-6
# rows, hidden size, vocabulary, 1 - p of the targets, where the logits lie
CASES = [
    (1, 8, 3, 0.5, 0.0),
    (1, 8, 3, 6e-5, 0.0),
    (1, 8, 3, 6e-5, 200.0),
    (3, 8, 70, 6e-5, 200.0),
    (3, 8, 70, 6e-5, -200.0),
    (3, 16, 1000, 1e-3, 0.0),
    (3, 16, 1000, 1e-6, 30.0),
    (5, 16, 300, 0.9, 200.0),
]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def head_of(n, h, v, rest, level, seed, dtype):
    """hidden and weight whose targets have about probability 1 - rest, with logits around level."""
    generator = torch.Generator().manual_seed(seed)
    rest *= 1 + 0.07 * seed / 6  # 1 + 6e-5 is rounded by another amount for each seed
    hidden = torch.randn(n, h, generator=generator, dtype=torch.float64)
    weight = torch.randn(v, h, generator=generator, dtype=torch.float64) * h**-0.5
    hidden[:, 0], weight[:, 0] = 8.0, level / 8.0
    targets = torch.randperm(v, generator=generator)[:n]
    for _ in range(4):  # a target's logit is set in its own row and moves a little in the others
        logits = hidden @ weight.T
        for row, target in enumerate(targets.tolist()):
            others = torch.cat((logits[row, :target], logits[row, target + 1 :])).logsumexp(0)
            missing = others + torch.tensor((1 - rest) / rest).double().log() - logits[row, target]
            weight[target, 1:] += missing * hidden[row, 1:] / hidden[row, 1:].square().sum()
    return hidden.to(DEVICE, dtype), weight.to(DEVICE, dtype), targets.to(DEVICE)


def relative(found, truth):
    return ((found.double() - truth).abs().max() / truth.abs().max()).item()


def assert_no_worse_than_torch(results, names):
    """results: for each seed (ours, torch's, truth), each with an entry a name."""
    for i, name in enumerate(names):
        error = mean(relative(ours[i], truth[i]) for ours, _, truth in results)
        allowed = max(2 * mean(relative(of_torch[i], truth[i]) for _, of_torch, truth in results), FLOOR)
        assert error <= allowed, f"{name}: error {error:.2g}, allowed {allowed:.2g}"


def derivatives(op, leaves, targets, upstream, **options):
    """What the op returns, and the gradients of each of it."""
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    outputs = op(*leaves, targets, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    gradients = [torch.autograd.grad((o * upstream).sum(), leaves, retain_graph=True) for o in outputs]
    return (*outputs, *(g for of_output in gradients for g in of_output))


def upstream_of(n, dtype):
    return torch.linspace(0.5, 2.0, n, dtype=dtype, device=DEVICE)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_log_probs_of_a_linear_head(backend, case):
    results = []
    for seed in range(6):
        hidden, weight, targets = head_of(*case, seed, torch.float32)
        single, double = (hidden, weight), (hidden.double(), weight.double())
        results.append(
            [
                derivatives(kernels.linear_logprob, single, targets, upstream_of(len(hidden), torch.float32)),
                derivatives(reference.linear_logprob, single, targets, upstream_of(len(hidden), torch.float32)),
                derivatives(reference.linear_logprob, double, targets, upstream_of(len(hidden), torch.float64)),
            ]
        )
    assert_no_worse_than_torch(results, ("logp", "d_hidden", "d_weight"))


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_log_probs_from_stored_logits(backend, case, entropy):
    results = []
    for seed in range(6):
        hidden, weight, targets = head_of(*case, seed, torch.float64)
        logits, upstream = (hidden @ weight.T).float(), upstream_of(len(hidden), torch.float32)
        results.append(
            [
                derivatives(op.gather_logprob, [logits.to(d)], targets, upstream.to(d), entropy=entropy)
                for op, d in ((kernels, torch.float32), (reference, torch.float32), (reference, torch.float64))
            ]
        )
    assert_no_worse_than_torch(
        results, ("logp", "entropy", "d_logits", "d_logits of entropy") if entropy else ("logp", "d_logits")
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_log_probs_with_kept_exponentials(backend, case):
    run, results = dispatch.primitives(torch.device(DEVICE)), []
    for seed in range(6):
        hidden, weight, targets = head_of(*case, seed, torch.float32)
        upstream = upstream_of(len(hidden), torch.float32)
        kept = run.kept_forward(hidden, weight, targets, Softmax(1.0, len(weight)))
        rows = [(kept.logp, run.kept_gradient(kept, targets, upstream, 1.0, None))]
        for d in (torch.float32, torch.float64):
            logits = (hidden.to(d) @ weight.to(d).T).requires_grad_()
            exact = reference.gather_logprob(logits, targets)
            rows.append((exact, torch.autograd.grad(exact, logits, upstream.to(d))[0]))
        results.append(rows)
    assert_no_worse_than_torch(results, ("logp", "d_logits"))


def test_float64_keeps_its_digits(backend):
    """1 - p = 6e-5 at logits of 200: 1e-9 of it, where fp32 scalars or one stored log-sum-exp would leave 1e-7."""
    hidden, weight, targets = head_of(3, 8, 70, 6e-5, 200.0, 0, torch.float64)
    upstream = upstream_of(3, torch.float64)
    ours, truth = (
        derivatives(op.linear_logprob, (hidden, weight), targets, upstream, temperature=0.7)
        for op in (kernels, reference)
    )
    for a, b in zip(ours, truth):
        assert relative(a, b) < 1e-9
