"""Inputs and the error rule that the tests of the torch kernels and of the Triton kernels share.

Import as `from tests.kernels.kernel_cases import ...` (pytest's importlib mode resolves it from the repository's root).
"""

import itertools

import torch

RATIOS = ("sequence", "sequence_mean", "token")
TEMPERATURES = (1.0, 0.7)
CLIP = {"eps_low": 0.2, "eps_high": 0.3}

# docs: the error against float64 may be torch's own in the same dtype plus this much.
EXTRA_ERROR = {torch.float64: 1e-10, torch.float32: 5e-4, torch.float16: 1e-2, torch.bfloat16: 1e-2}


def head_case(tokens, vocab, size=16, dtype=torch.float64, seed=0, logit_scale=1.0, known=None):
    """hidden [tokens, size] and weight [vocab, size] (leaves that want gradients), targets [tokens] below `known`.
    Logits have about the standard deviation logit_scale."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, size, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocab, size, generator=generator, dtype=torch.float64) * (logit_scale * size**-0.5)
    targets = torch.randint(0, known or vocab, (tokens,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def upstream(shape, seed=1, dtype=torch.float32):
    """A gradient from above that differs from row to row, with a zero and both signs."""
    value = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    if value.numel() > 2:
        value.view(-1)[1] = 0
    return value


def surrogate_case(logp, lengths, seed=30, spread=0.4, masked=0.25):
    """ref_logp near logp, advantages of both signs and one zero, cu_seqlens, and a mask that empties the last sequence.

    spread is the standard deviation of a token's log-ratio: with this seed some units are clipped at every ratio level.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    assert logp.shape == (tokens,)
    ref_logp = logp.detach() + spread * torch.randn(tokens, generator=generator, dtype=torch.float64).to(logp.dtype)
    advantage = torch.randn(len(lengths), generator=generator, dtype=torch.float64).to(logp.dtype)
    if len(lengths) > 2:
        advantage[1] = 0
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    mask = torch.rand(tokens, generator=generator) >= masked
    if lengths:
        mask[tokens - lengths[-1] :] = False
    return ref_logp, advantage, cu_seqlens, mask


# (log-ratio, advantage) of one-token sequences on both sides of every edge of the surrogate under CLIP, and whether the
# gradient passes. min(r A, clip(r) A) is flat above 1 + eps_high for A > 0 and below 1 - eps_low for A < 0; the clamp
# of the log-ratio at 20 stops the gradient wherever the clip did not.
EDGES = [
    (0.0, 1.0, True),
    (0.0, -1.0, True),
    (0.25, 1.0, True),
    (0.27, 1.0, False),
    (0.27, -1.0, True),
    (-0.22, -1.0, True),
    (-0.23, -1.0, False),
    (-0.23, 1.0, True),
    (0.27, 0.0, False),
    (19.9, -1.0, True),
    (20.1, -1.0, False),
    (-19.9, 1.0, True),
    (-20.1, 1.0, False),
]


def edge_case(dtype=torch.float64):
    """logp (a leaf), ref_logp, advantage, cu_seqlens and the expected mask of gradients that pass, from EDGES."""
    log_ratio, advantage, passes = zip(*EDGES)
    logp = torch.tensor(log_ratio, dtype=dtype).requires_grad_()
    cu_seqlens = torch.arange(len(EDGES) + 1)
    return logp, torch.zeros(len(EDGES), dtype=dtype), torch.tensor(advantage, dtype=dtype), cu_seqlens, passes


def gradients(output, leaves, upstreams):
    """The gradients of leaves under the given gradients of one or more outputs."""
    outputs = output if isinstance(output, tuple) else (output,)
    return torch.autograd.grad(outputs, leaves, [u.to(o.dtype) for o, u in zip(outputs, upstreams)])


def in_float64(*tensors):
    """The same values as float64 leaves."""
    return [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]


def assert_as_near_as_torch(ours, torch_own, truth, dtype, name=""):
    """The rule for every dtype and shape: the largest error against float64 is at most that of plain torch in the same
    dtype plus EXTRA_ERROR."""
    assert torch.isfinite(ours).all(), f"{name}: not finite"
    error, allowed = ((x.detach().double() - truth.detach()).abs().max().item() for x in (ours, torch_own))
    allowed += EXTRA_ERROR[dtype]
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def assert_same_metrics(a, b, rtol=1e-7):
    torch.testing.assert_close(a.sums, b.sums, rtol=rtol, atol=rtol)
    torch.testing.assert_close(a.ratio_max, b.ratio_max, rtol=rtol, atol=rtol)
