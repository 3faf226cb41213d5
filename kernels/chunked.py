"""The torch path that ships: log-probs of a large vocabulary in bounded scratch, on any device, fast on a CPU.

Signatures and meaning of every primitive: the docstring of kernels/__init__.py. The [N, V] logits are walked in blocks
that stay in or near the cache, in buffers that are allocated once a call (fresh pages cost as much as a pass). Scratch is
at most 128 MiB (SCRATCH_BYTES), whatever N and V, beside 12 bytes for each element of hidden.

How a bf16 head is multiplied on a CPU:
- Forward: torch has no bf16 product with fp32 output on a CPU, and logits rounded to bf16 ruin ratios. bf16 numbers are
  exact in fp32, so both sides are widened and multiplied with oneDNN allowed to use its bf16 units on fp32 tensors:
  exact products, fp32 sums, fp32 logits. (The units are AMX; without it oneDNN multiplies in fp32, at half the rate of
  a bf16 product and still twice that of torch's default library on some chips.)
- Backward: the log-sum-exp is known, so the product subtracts it: hidden gets columns that hold -lse in bf16 parts,
  weight gets columns of ones, and what is rounded to bf16 is log p, not the logit. Where p matters log p is small, so
  the rounding is relative to log p (at p = 1 it is exact) and p is good to bf16. The row's coefficient is folded into the
  [N, H] operands, so that the only pass over a block is one exp.
- Products of gradients are bf16 with fp32 sums inside; across blocks they are added in fp32, and each row of d_weight is
  written once.

Left out on purpose: torch.compile and compiled C (a start in seconds on a bare machine is worth more here).
"""

from contextlib import contextmanager

import torch

from .surrogate_metrics import SurrogateMetrics

SCRATCH_BYTES = 128 * 2**20
FORWARD_BLOCK = 8 * 2**20  # bytes of a block of logits, and of as many log-probs
FORWARD_COLUMNS = 2048  # a block is at least this wide where its operands allow: a narrower one makes a slow product
BACKWARD_BLOCK = 16 * 2**20  # bytes of a block of probabilities
BACKWARD_COLUMNS = 1024
LOG_RATIO_LIMIT = 20.0


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and log-probs: float32, or float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _block(rows: int, columns: int, size: int, elements: int, min_columns: int) -> tuple[int, int]:
    """Rows and columns of a block of at most `elements`, all rows before more columns; the operands [rows, size] and
    [columns, size] are not larger than the block."""
    side = max(256, elements // size)
    width = min(columns, side, max(min_columns, elements // max(rows, 1)))
    return max(1, min(rows, side, elements // width)), width


@contextmanager
def _bf16_units(dtype: torch.dtype):
    """Inside, fp32 products on a CPU may round their operands to bf16: exact for operands that came from bf16.

    The switch is the process's; another thread that multiplies fp32 matrices meanwhile is affected too."""
    if dtype != torch.bfloat16:
        yield
        return
    switch = torch.backends.mkldnn.matmul
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        yield
    finally:
        switch.fp32_precision = before


def forward(hidden, weight, targets, inv_temperature, vocab_size, want_entropy):
    acc = accumulator(hidden.dtype)
    tokens = hidden.shape[0]
    targets = targets.long()
    rows, columns = _block(tokens, vocab_size, hidden.shape[1], FORWARD_BLOCK // acc.itemsize, FORWARD_COLUMNS)
    starts = range(0, vocab_size, columns)
    scratch = hidden.new_empty(2, rows * columns, dtype=acc)
    # One log-sum-exp and one entropy for each block of the vocabulary, merged at the end.
    lse_parts = hidden.new_empty(len(starts), tokens, dtype=acc)
    entropy_parts = torch.empty_like(lse_parts) if want_entropy else None
    picked = hidden.new_empty(tokens, dtype=acc)
    with _bf16_units(hidden.dtype):
        for c, start in enumerate(starts):
            w = weight[start : min(start + columns, vocab_size)].to(acc)
            width = len(w)
            for r in range(0, tokens, rows):
                part = slice(r, min(r + rows, tokens))
                z, log_p = scratch[:, : (part.stop - r) * width].view(2, -1, width)
                torch.mm(hidden[part].to(acc), w.T, out=z)
                if inv_temperature != 1:
                    z *= inv_temperature
                torch.log_softmax(z, 1, out=log_p)
                lse_parts[c, part] = z[:, 0] - log_p[:, 0]
                column = targets[part] - start
                inside = (column >= 0) & (column < width)
                here = z.gather(1, column.clamp_(0, width - 1)[:, None])[:, 0]
                picked[part] = torch.where(inside, here, picked[part])
                if want_entropy:
                    entropy_parts[c, part] = -torch.exp(log_p, out=z).mul_(log_p).sum(1)
    lse = lse_parts.logsumexp(0)
    entropy = None
    if want_entropy:
        # H = sum over blocks of P(block) (H(block) - log P(block))
        log_share = lse_parts - lse
        entropy = (log_share.exp() * (entropy_parts - log_share)).sum(0)
    return picked - lse, lse, entropy


def _gradient_dtype(hidden: torch.Tensor, exact: bool) -> torch.dtype:
    """The dtype of the backward products: bf16 where the chip multiplies it, else the accumulator's."""
    if hidden.dtype != torch.bfloat16 or exact:
        return accumulator(hidden.dtype)
    on_chip = hidden.device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if on_chip else torch.float32


def _parts(values: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """values as a sum of tensors of dtype, exact to fp32: one part, or three of bf16."""
    parts = []
    for _ in range(3 if dtype == torch.bfloat16 else 1):
        parts.append(values.to(dtype))
        values = values - parts[-1]
    return parts


def _target_logits(hidden, weight, targets, inv_temperature, acc):
    picked = hidden.new_empty(len(targets), dtype=acc)
    for part in torch.arange(len(targets), device=hidden.device).split(1024):
        picked[part] = (hidden[part].to(acc) * weight[targets[part]].to(acc)).sum(1)
    return picked * inv_temperature


def accumulate(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total += a b, added in the dtype of total."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def backward(
    hidden,
    weight,
    targets,
    lse,
    logp_grad,
    entropy_grad,
    entropy,
    inv_temperature,
    vocab_size,
    need_hidden,
    need_weight,
):
    # A block B holds p - [j = target], so that d_hidden = -diag(s) B W and d_weight = -B^T diag(s) X with s the upstream
    # gradient over the temperature. With an entropy gradient the factor differs from column to column and goes into B.
    acc = accumulator(hidden.dtype)
    work = _gradient_dtype(hidden, exact=entropy_grad is not None)
    tokens, size = hidden.shape
    targets = targets.long()
    target_logp = _target_logits(hidden, weight, targets, inv_temperature, acc) - lse
    if entropy_grad is None:
        at_target = target_logp.expm1()
        scale = logp_grad.to(acc) * -inv_temperature
    else:
        logp_grad, entropy_grad = logp_grad.to(acc)[:, None], entropy_grad.to(acc)[:, None]
        entropy = entropy[:, None]
        target_logp = target_logp[:, None]
        at_target = target_logp.exp() * (logp_grad + entropy_grad * (target_logp + entropy)) - logp_grad
        at_target = at_target[:, 0]
        scale = torch.full_like(lse, -inv_temperature)

    offsets = _parts(lse / -inv_temperature, work)
    x = torch.cat((hidden.to(work), torch.stack(offsets, 1)), 1)
    scaled = (hidden * scale[:, None]).to(work) if need_weight else None
    d_hidden = hidden.new_zeros(tokens, size, dtype=acc) if need_hidden else None
    d_weight = torch.empty_like(weight) if need_weight else None
    if need_weight:
        d_weight[vocab_size:] = 0
    rows, columns = _block(tokens, vocab_size, size, BACKWARD_BLOCK // work.itemsize, BACKWARD_COLUMNS)
    scratch = hidden.new_empty(rows * columns, dtype=work)
    w_buffer = hidden.new_ones(columns, x.shape[1], dtype=work)
    for start in range(0, vocab_size, columns):
        stop = min(start + columns, vocab_size)
        w = w_buffer[: stop - start]
        w[:, :size] = weight[start:stop]
        d_w = None
        if need_weight and rows != tokens:
            d_w = weight.new_zeros(stop - start, size, dtype=acc)
        for r in range(0, tokens, rows):
            part = slice(r, min(r + rows, tokens))
            block = scratch[: (part.stop - r) * len(w)].view(-1, len(w))
            torch.mm(x[part], w.T, out=block)
            if inv_temperature != 1:
                block *= inv_temperature
            if entropy_grad is None:
                block.exp_()
            else:
                p = block.exp()
                block += entropy[part]
                block.mul_(entropy_grad[part]).add_(logp_grad[part]).mul_(p)
            column = targets[part] - start
            here = ((column >= 0) & (column < len(w))).nonzero()[:, 0]
            block[here, column[here]] = at_target[part][here].to(work)
            if need_hidden:
                accumulate(d_hidden[part], block, w[:, :size])
            if d_w is not None:
                accumulate(d_w, block.T, scaled[part])
            elif need_weight:
                product = d_weight[start:stop]
                if product.dtype == work:
                    torch.mm(block.T, scaled, out=product)
                else:
                    product.copy_(block.T @ scaled)
        if d_w is not None:
            d_weight[start:stop] = d_w
    if need_hidden:
        d_hidden = d_hidden.mul_(scale[:, None]).to(hidden.dtype)
    return d_hidden, d_weight


def kept_forward(hidden, weight, targets, inv_temperature, vocab_size):
    acc = accumulator(hidden.dtype)
    tokens = hidden.shape[0]
    kept = hidden.new_empty(tokens, vocab_size, dtype=acc)
    lse = hidden.new_empty(tokens, dtype=acc)
    rows = max(64, FORWARD_BLOCK // acc.itemsize // vocab_size)
    scratch = hidden.new_empty(min(rows, tokens), vocab_size, dtype=acc)
    w = weight[:vocab_size].to(acc)
    with _bf16_units(hidden.dtype):
        for r in range(0, tokens, rows):
            part = slice(r, min(r + rows, tokens))
            z = scratch[: part.stop - r]
            torch.mm(hidden[part].to(acc), w.T, out=z)
            if inv_temperature != 1:
                z *= inv_temperature
            torch.log_softmax(z, 1, out=kept[part])
            lse[part] = z[:, 0] - kept[part, 0]
    return kept.gather(1, targets.long()[:, None])[:, 0], lse, kept, kept.new_empty(0, tokens)


def kept_gradient(kept, maxima, targets, logp, lse, logp_grad, inv_temperature, picked):
    # What is kept here is log p whole, so neither maxima nor lse is needed.
    if picked is not None:
        kept, targets, logp, logp_grad = kept[picked], targets[picked], logp[picked], logp_grad[picked]
    scale = logp_grad.to(kept.dtype)[:, None] * -inv_temperature
    kept.exp_().mul_(scale)
    return kept.scatter_(1, targets.long()[:, None], logp.expm1()[:, None] * scale)


def gather_forward(logits, targets, inv_temperature, vocab_size, want_entropy):
    acc = accumulator(logits.dtype)
    tokens = logits.shape[0]
    logp, lse = logits.new_empty(tokens, dtype=acc), logits.new_empty(tokens, dtype=acc)
    entropy = torch.empty_like(lse) if want_entropy else None
    rows = max(1, min(tokens, FORWARD_BLOCK // acc.itemsize // vocab_size))
    scratch = logits.new_empty(2, rows, vocab_size, dtype=acc)
    for r in range(0, tokens, rows):
        part = slice(r, min(r + rows, tokens))
        z, log_p = scratch[:, : part.stop - r]
        torch.mul(logits[part, :vocab_size], inv_temperature, out=z)
        torch.log_softmax(z, 1, out=log_p)
        lse[part] = z[:, 0] - log_p[:, 0]
        logp[part] = log_p.gather(1, targets[part].long()[:, None])[:, 0]
        if want_entropy:
            entropy[part] = -torch.exp(log_p, out=z).mul_(log_p).sum(1)
    return logp, lse, entropy


def gather_backward(logits, targets, lse, logp_grad, entropy_grad, entropy, inv_temperature, vocab_size, inplace):
    acc = accumulator(logits.dtype)
    tokens = logits.shape[0]
    d_logits = logits if inplace else torch.empty_like(logits)
    d_logits[:, vocab_size:] = 0
    rows = max(1, min(tokens, FORWARD_BLOCK // acc.itemsize // vocab_size))
    scratch = logits.new_empty(rows, vocab_size, dtype=acc)
    for r in range(0, tokens, rows):
        part = slice(r, min(r + rows, tokens))
        z = scratch[: part.stop - r]
        torch.mul(logits[part, :vocab_size], inv_temperature, out=z)
        z -= lse[part, None]
        grad = logp_grad[part, None].to(acc)
        if entropy_grad is None:
            z.exp_().mul_(grad)
        else:
            p = z.exp()
            z.add_(entropy[part, None]).mul_(entropy_grad[part, None]).add_(grad).mul_(p)
        z.scatter_add_(1, targets[part].long()[:, None], -grad)
        d_logits[part, :vocab_size] = z.mul_(-inv_temperature)
    return d_logits


def surrogate(logp, ref_logp, advantage, cu_seqlens, mask, ratio, eps_low, eps_high, normalizer):
    acc = accumulator(logp.dtype)
    tokens, sequences = len(logp), len(advantage)
    logp, ref_logp, advantage = logp.to(acc), ref_logp.to(acc), advantage.to(acc)
    owner = torch.repeat_interleave(
        torch.arange(sequences, device=logp.device), cu_seqlens.diff().long(), output_size=tokens
    )
    log_ratio = logp - ref_logp
    count = torch.ones_like(logp)
    if mask is not None:
        log_ratio = torch.where(mask, log_ratio, 0)
        count = mask.to(acc)
    per_token = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    kl_sum = (torch.expm1(per_token) - per_token).sum()
    if ratio == "token":
        exists, share, signal = count, count, advantage[owner]
    else:
        length = logp.new_zeros(sequences).index_add_(0, owner, count)
        exists, signal = (length > 0).to(acc), advantage
        share = count if ratio == "sequence" else count / length[owner].clamp(min=1)
        log_ratio = logp.new_zeros(sequences).index_add_(0, owner, log_ratio * share)
    r = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    clipped = ((r > 1 + eps_high) & (signal > 0)) | ((r < 1 - eps_low) & (signal < 0))
    gain = torch.minimum(r * signal, r.clamp(1 - eps_low, 1 + eps_high) * signal) * exists
    dead = clipped | (log_ratio.abs() > LOG_RATIO_LIMIT)
    slope = torch.where(dead, 0, r * signal * (-1.0 / normalizer))
    d_logp = slope * share if ratio == "token" else slope[owner] * share
    loss_sum = -gain.sum()
    ratios = r * exists
    sums = (exists.sum(), count.sum(), (clipped * exists).sum(), ratios.sum(), kl_sum, loss_sum)
    ratio_max = ratios.amax() if len(ratios) else ratios.sum()
    metrics = SurrogateMetrics(torch.stack(sums).double(), ratio_max.double())
    return loss_sum / normalizer, d_logp, metrics


def length_harmonizing_advantage(lengths, correct, group, lam):
    group = group.long()
    groups = int(group.max()) + 1 if len(group) else 0
    stacked = torch.stack((torch.ones_like(lengths, dtype=torch.float64), lengths.double(), correct.double()), dim=1)
    means = stacked.new_zeros(groups, 3).index_add_(0, group, stacked)
    means = (means[:, 1:] / means[:, :1])[group]
    return (means[:, 0] / stacked[:, 1] - 1 + lam * (stacked[:, 2] - means[:, 1])).float()
