"""Per-token divergence between a student and a teacher over the vocabulary, computed a few tokens at a time.

Needs torch only, and knows nothing of models, prompts or rollouts: it sees hidden states and output matrices.

    p = softmax(h_s W_s^T / T)    q = softmax(h_t W_t^T / T)    loss = sum_n weights[n] * D(p_n, q_n)

    D = "forward"  KL(q || p)      teacher first: the student must cover what the teacher does
        "reverse"  KL(p || q)      student first: the student must avoid what the teacher does not do
        "jsd"      KL(p || m) / 2 + KL(q || m) / 2,  m = (p + q) / 2

All logits at once would be N x V. Here each chunk of tokens gets its logits, its divergence and, because the gradients
have closed forms, its share of the gradients at once; then the next has its memory. Backward only scales the result.
Unlike the usual distillation loss there is no T^2 factor, and top-k keeps the rest of the vocabulary as one bucket.

    out = distill_loss(student_hidden, student.lm_head.weight, teacher_hidden, teacher.lm_head.weight, weights)
    out.loss.backward()
"""

import functools
import math
import warnings
from dataclasses import dataclass

import torch

DIVERGENCES = ("jsd", "forward", "reverse")
CHUNK_SIZE = {"cpu": 256, "cuda": 1024}                # tokens at once: on a GPU larger products run closer to its peak
BLOCK = 2 ** 20             # logits whose buffers (five of 4 MB) stay in a CPU's cache while twenty passes go over them


@dataclass
class DistillOutput:
    """`loss` is a scalar with a gradient; the others are (N,), float32 (float64 for float64 inputs) and detached.

    The log-probabilities are those of `sampled_ids` at the given temperature, over the full vocabulary whatever `top_k`
    is, and None where nothing was sampled (or, for `nll_loss`, where there is no teacher).
    """

    loss: torch.Tensor
    divergence: torch.Tensor
    student_logprobs: torch.Tensor | None = None
    teacher_logprobs: torch.Tensor | None = None


def distill_loss(student_hidden, student_head, teacher_hidden, teacher_head, weights, *, divergence="jsd", top_k=None,
                 temperature=1.0, sampled_ids=None, sampled_logprobs=None, is_clip=None,
                 chunk_size=None) -> DistillOutput:
    """sum_n weights[n] * D(student_n, teacher_n), never holding more than chunk_size x V logits of each side.

    student_hidden (N, D) and student_head (V, D) receive gradients, teacher_hidden (N, D') and teacher_head (V, D') do
    not. Matrix products run in the hidden states' dtype (float32, bfloat16, float64; autocast is ignored), all else in
    float32 (float64). A head of another dtype (a float32 master) is cast for the products, its gradient is not rounded.
    weights (N,): masks and normalisers. A row of weight 0 gets its divergence, but no gradient is worked out for it.
    top_k: compare the student's top_k tokens one by one and all other tokens as a single one.
    temperature divides both sides' logits. sampled_ids (N,) asks for the log-probabilities of these tokens. With
    sampled_logprobs (N,), the sampler's, and is_clip, weights are multiplied by min(exp(student - sampled), is_clip),
    a constant for the gradient. chunk_size: CHUNK_SIZE by default. Backward can run once. On a GPU the first call takes
    seconds: torch.compile. Raises ValueError for arguments that do not fit together.
    """
    _check(student_hidden, student_head, weights, sampled_ids, sampled_logprobs, is_clip, temperature, chunk_size)
    _check_teacher(student_hidden, student_head, teacher_hidden, teacher_head, divergence, top_k)
    k = top_k if top_k is not None and top_k < len(student_head) else None
    teacher = teacher_hidden.detach(), teacher_head.detach().to(teacher_hidden.dtype)
    value, student, teacher, loss = _run(student_hidden, student_head, teacher, weights, sampled_ids, sampled_logprobs,
                                         (divergence, k, temperature, is_clip), chunk_size)
    return DistillOutput(loss, value, *((None, None) if sampled_ids is None else (student, teacher)))


def nll_loss(student_hidden, student_head, sampled_ids, weights, *, temperature=1.0, sampled_logprobs=None,
             is_clip=None, chunk_size=None) -> DistillOutput:
    """-sum_n weights[n] * log p_n(sampled_ids[n]): arguments, chunks and gradients as in `distill_loss`, no teacher.

    Weights of 1/N give supervised training; advantages, of either sign, give the policy gradient, and is_clip truncated
    importance weights beside it. In the output `divergence` is -log p and `teacher_logprobs` is None.
    """
    if sampled_ids is None:
        raise ValueError("nll_loss needs sampled_ids")
    _check(student_hidden, student_head, weights, sampled_ids, sampled_logprobs, is_clip, temperature, chunk_size)
    value, student, _, loss = _run(student_hidden, student_head, None, weights, sampled_ids, sampled_logprobs,
                                   ("nll", None, temperature, is_clip), chunk_size)
    return DistillOutput(loss, value, student)


def naive_distill_loss(student_hidden, student_head, teacher_hidden, teacher_head, weights, *, divergence="jsd",
                       top_k=None, temperature=1.0, sampled_ids=None, sampled_logprobs=None, is_clip=None,
                       chunk_size=None) -> DistillOutput:
    """The same mathematics in the plainest code, left to autograd, with all N x V logits at once: the oracle."""
    wide = torch.float64 if student_hidden.dtype == torch.float64 else torch.float32
    s = (student_hidden @ student_head.to(student_hidden.dtype).T).to(wide) / temperature    # (N, V)
    with torch.no_grad():
        t = (teacher_hidden @ teacher_head.to(teacher_hidden.dtype).T).to(wide) / temperature
    log_p, log_q = s.log_softmax(-1), t.log_softmax(-1)
    student = teacher = None
    if sampled_ids is not None:
        student = log_p.detach().gather(1, sampled_ids[:, None]).squeeze(1)
        teacher = log_q.gather(1, sampled_ids[:, None]).squeeze(1)
    if top_k is not None and top_k < s.shape[1]:
        top = s.detach().topk(top_k, dim=-1).indices
        log_p, log_q = (torch.cat([x.gather(1, top), x.scatter(1, top, -math.inf).logsumexp(-1, keepdim=True)], dim=-1)
                        for x in (log_p, log_q))                   # (N, top_k + 1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    kl = lambda a, b: (a.exp() * (a - b)).sum(-1)
    value = {"forward": lambda: kl(log_q, log_p), "reverse": lambda: kl(log_p, log_q),
             "jsd": lambda: (kl(log_p, log_m) + kl(log_q, log_m)) / 2}[divergence]()
    weights = weights.to(wide)
    if is_clip is not None:
        weights = weights * (student - sampled_logprobs).exp().clamp(max=is_clip)
    return DistillOutput((weights * value).sum(), value.detach(), student, teacher)


class _ChunkedLoss(torch.autograd.Function):
    """Forward works out the loss and both gradients chunk by chunk; backward multiplies them by grad_output."""

    @staticmethod
    def forward(ctx, hidden, head, teacher, weights, ids, sampled_logprobs, options, chunk_size, grad_enabled):
        wide = _wide(hidden)
        wants = [grad_enabled and x.requires_grad for x in (hidden, head)]
        grad_hidden = torch.zeros_like(hidden) if wants[0] else None
        grad_head = torch.zeros(head.shape, dtype=wide, device=head.device) if wants[1] else None
        weights, cast_head, buffers = weights.to(wide), head.to(hidden.dtype), {}
        values, loss = hidden.new_empty(3, len(hidden), dtype=wide), hidden.new_zeros((), dtype=wide)
        for train, all_rows in ((True, weights.nonzero()[:, 0]), (False, (weights == 0).nonzero()[:, 0])):
            for rows in all_rows.split(chunk_size) if len(all_rows) else ():
                s = _logits(hidden, cast_head, rows, buffers, "student")
                t = None if teacher is None else _logits(*teacher, rows, buffers, "teacher")
                facts = [x if x is None else x[rows] for x in (weights, ids, sampled_logprobs)]
                values[:, rows], w, grad = _finish(s, t, facts, options, hidden.dtype, buffers)
                del s, t                               # on a GPU, before the next chunk's come
                if train:
                    loss += torch.dot(w, values[0, rows])
                if train and wants[0]:
                    grad_hidden[rows] = grad @ cast_head
                if train and wants[1]:
                    _add_product(grad_head, grad, hidden[rows])
                del grad
        ctx.grads, ctx.head_dtype = (grad_hidden, grad_head), head.dtype
        ctx.mark_non_differentiable(values)
        return loss, values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss, _):
        if ctx.grads is None:
            raise RuntimeError("this loss has been through backward once and its gradients are gone; compute it again")
        (grad_hidden, grad_head), ctx.grads = ctx.grads, None      # scaled in place: a copy would be another V x D
        if grad_hidden is not None:
            grad_hidden.mul_(grad_loss)
        if grad_head is not None:
            grad_head = grad_head.mul_(grad_loss).to(ctx.head_dtype)
        return grad_hidden, grad_head, *[None] * 7


def _run(hidden, head, teacher, weights, ids, sampled_logprobs, options, chunk_size):
    chunk_size = chunk_size or CHUNK_SIZE.get(hidden.device.type, 256)
    with torch.autocast(hidden.device.type, enabled=False):
        loss, values = _ChunkedLoss.apply(hidden, head, teacher, weights.detach(), ids, sampled_logprobs, options,
                                          chunk_size, torch.is_grad_enabled())
    return *values, loss


def _wide(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _buffer(buffers, name, shape, like):
    """A matrix with arbitrary contents, allocated once and handed out again: fresh pages cost more than a pass."""
    if buffers is None:                                            # compiled code has no use for them
        return torch.empty(shape, dtype=_wide(like), device=like.device)
    if name not in buffers or len(buffers[name]) < shape[0]:
        buffers[name] = torch.empty(shape, dtype=_wide(like), device=like.device)
    return buffers[name][:shape[0]]


def _logits(hidden, head, rows, buffers, name):
    """hidden[rows] @ head^T, (rows, V): the product in hidden's dtype, the result in float32; on a GPU as it comes."""
    chunk = hidden[rows]
    if chunk.is_cuda:
        return chunk @ head.T
    out = _buffer(buffers, name, (len(rows), len(head)), hidden)
    if chunk.dtype != out.dtype:
        return out.copy_(chunk @ head.T)
    for part, columns in zip(head.split(1024), out.split(1024, dim=1)):    # MKL takes a third longer for all at once
        torch.mm(chunk, part.T, out=columns)
    return out


def _finish(s, t, facts, options, dtype, buffers):
    """From both sides' products with the head (n, V) to values (3, n), weights (n,) and the gradient by s (n, V) in
    `dtype`. facts: weights, ids and sampled_logprobs of the rows; options: divergence, k, temperature, is_clip."""
    if s.is_cuda:
        return _fused()(s, t, facts, options, dtype)
    values, weights = s.new_empty(3, len(s)), torch.empty_like(facts[0])
    step = max(1, BLOCK // s.shape[1])
    for i in (slice(i, i + step) for i in range(0, len(s), step)):
        values[:, i], weights[i] = _differentiate(s[i], None if t is None else t[i],
                                                  [None if x is None else x[i] for x in facts], options, buffers)
    return values, weights, s.to(dtype)


@functools.cache
def _fused():
    """`_finish` for a GPU, compiled: three passes over the vocabulary, not fifty. As it is where nothing compiles."""
    def plain(s, t, facts, options, dtype):
        s, t = s.to(_wide(s)), None if t is None else t.to(_wide(t))
        values, weights = _differentiate(s, t, facts, options, None)
        return values, weights, s.to(dtype)

    compiled = torch.compile(plain)

    def fused(s, t, facts, options, dtype):
        nonlocal compiled
        for x in (s, t, *facts):
            if x is not None:
                torch._dynamo.maybe_mark_dynamic(x, 0)             # else the last, shorter chunk would be compiled anew
        try:
            return compiled(s, t, facts, options, dtype)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:                                 # of many kinds: no Triton, no C compiler, ...
            if compiled is plain:
                raise
            warnings.warn(f"torch.compile does not work here, the loss is slower without: {error!r}")
            compiled = plain
            return plain(s, t, facts, options, dtype)
    return fused


def _differentiate(s, t, facts, options, buffers):
    """Overwrites the student's logits s by the gradient, which the weights multiply; returns values and weights."""
    weights, ids, sampled_logprobs = facts
    divergence, k, temperature, is_clip = options
    for x in (s, t):
        if x is not None and temperature != 1:
            x.div_(temperature)
    none = s.new_zeros(len(s))
    # log p[id] is read before the logits are overwritten
    picked = [none if x is None or ids is None else x.gather(1, ids[:, None])[:, 0] for x in (s, t)]
    if divergence == "nll":
        norms = [_softmax(s, s)]
        s.scatter_add_(1, ids[:, None], -s.new_ones(len(s), 1))    # the gradient of -log p[id] is p - onehot(id)
    elif k is None:
        value, *norms = _compare(s, t, divergence, buffers)
    else:
        value, *norms = _compare_top_k(s, t, divergence, buffers, k=k)
    logprobs = [(x - top - log_z).to(s.dtype) for x, (top, log_z) in zip(picked, norms)]
    values = torch.stack([-logprobs[0], logprobs[0], none] if divergence == "nll" else [value.to(s.dtype), *logprobs])
    if is_clip is not None:
        weights = weights * (values[1] - sampled_logprobs).exp().clamp(max=is_clip)
    s.mul_((weights / temperature)[:, None])
    return values, weights


def _softmax(x, out):
    """out = softmax(x) and, unless out is x, x = log softmax(x). Returns max(x), log sum exp(x - max(x)), both (rows,).

    The log in float64: rounded, it would shift all of log softmax(x) against softmax(x), and the divergence with it.
    """
    top = x.amax(1, keepdim=True)
    torch.exp(x.sub_(top), out=out)
    total = out.sum(1, keepdim=True)
    out.div_(total)
    log_z = total.double().log()
    if out is not x:
        x.sub_(log_z.to(x.dtype))
    return top[:, 0], log_z[:, 0]


def _compare(s, t, divergence, buffers):
    """Overwrite the student's logits s by dD/ds. Returns D and each side's pair from `_softmax`. t is used up.

    One exp per side and, for jsd, one log. A shift of the logits changes nothing, so gradients are p (a - sum p a).
    """
    p, q, m = (_buffer(buffers, name, s.shape, s) for name in "pqm")
    norms = (_, z_s), (_, z_t) = _softmax(s, p), _softmax(t, q)
    late_s, late_t = z_s.to(s.dtype) - z_s, z_t.to(s.dtype) - z_t          # what rounding log_z has left in s and t
    if divergence == "forward":                          # sum q (log q - log p), gradient p - q
        value = torch.mul(q, t.sub_(s), out=m).sum(1) + late_t - late_s
        torch.sub(p, q, out=s)
        return value, *norms
    if divergence == "reverse":                          # sum p a with a = log p - log q, gradient p (a - sum p a)
        mean = torch.mul(p, s.sub_(t), out=m).sum(1)
        s.sub_(mean[:, None]).mul_(p)
        return mean + late_s - late_t, *norms
    torch.lerp(p, q, 0.5, out=m).clamp_(min=torch.finfo(m.dtype).tiny).log_()  # both may underflow
    a, b = s.sub_(m), t.sub_(m)                          # a = log p - log m, gradient p (a - sum p a) / 2
    mean_a, mean_b = torch.mul(p, a, out=m).sum(1), torch.mul(q, b, out=m).sum(1)
    a.sub_(mean_a[:, None]).mul_(p.mul_(0.5))
    return (mean_a + mean_b + late_s + late_t) / 2, *norms


def _compare_top_k(s, t, divergence, buffers, *, k):
    """As `_compare`, on the student's top k tokens and one bucket for all others."""
    top = s.topk(k, dim=1).indices                                 # the choice of tokens is not differentiated
    small = []
    for x in (s, t):
        kept = x.gather(1, top)
        x.scatter_(1, top, -math.inf)
        rest = sum(_softmax(x, x)).to(x.dtype)                     # over the rest alone: log(1 - sum of top) cancels
        small.append(torch.cat([kept, rest[:, None]], dim=1))
    value_and_norms = _compare(*small, divergence, buffers)
    s.mul_(small[0][:, k:]).scatter_(1, top, small[0])             # s holds the softmax within the rest
    return value_and_norms


def _add_product(total, grad, hidden):
    """total += grad^T @ hidden, (V, D), summed in total's dtype."""
    if grad.dtype == total.dtype:
        total.addmm_(grad.T, hidden)
    elif grad.is_cuda:
        torch.addmm(total, grad.T, hidden, out_dtype=total.dtype, out=total)
    else:                                                          # torch has no such product on CPU
        total.addmm_(grad.T.to(total.dtype), hidden.to(total.dtype))


def _check(hidden, head, weights, sampled_ids, sampled_logprobs, is_clip, temperature, chunk_size):
    if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[1]:
        raise ValueError(f"hidden (N, D) and head (V, D) do not fit: {tuple(hidden.shape)}, {tuple(head.shape)}")
    for name, x in (("hidden", hidden), ("head", head)):
        if x.dtype not in (torch.float32, torch.bfloat16, torch.float64):
            raise ValueError(f"{name} must be float32, bfloat16 or float64, not {x.dtype}")
    for name, x in (("weights", weights), ("sampled_ids", sampled_ids), ("sampled_logprobs", sampled_logprobs)):
        if x is not None and x.shape != hidden.shape[:1]:
            raise ValueError(f"{name} must be (N,) = ({len(hidden)},), not {tuple(x.shape)}")
        if x is not None and not (x.dtype == torch.int64 if name == "sampled_ids" else x.is_floating_point()):
            raise ValueError(f"{name} has the wrong dtype: {x.dtype}")
    for x in (head, weights, sampled_ids, sampled_logprobs):
        if x is not None and x.device != hidden.device:
            raise ValueError(f"tensors on different devices: {x.device} and {hidden.device}")
    if is_clip is not None and (sampled_logprobs is None or sampled_ids is None):
        raise ValueError("is_clip needs sampled_ids and sampled_logprobs")
    if temperature <= 0 or (chunk_size is not None and chunk_size < 1) or (is_clip is not None and is_clip <= 0):
        raise ValueError("temperature, chunk_size and is_clip must be positive")


def _check_teacher(student_hidden, student_head, teacher_hidden, teacher_head, divergence, top_k):
    if len(student_head) != len(teacher_head):
        raise ValueError(f"the student's head has {len(student_head)} tokens, the teacher's {len(teacher_head)}: "
                         "cut both to the common vocabulary first")
    if len(student_hidden) != len(teacher_hidden):
        raise ValueError(f"{len(student_hidden)} student rows, {len(teacher_hidden)} teacher rows")
    if _wide(student_hidden) != _wide(teacher_hidden) or student_hidden.device != teacher_hidden.device:
        raise ValueError(f"student is {student_hidden.dtype} on {student_hidden.device}, "
                         f"teacher {teacher_hidden.dtype} on {teacher_hidden.device}")
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}, not {divergence!r}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    _check(teacher_hidden, teacher_head, None, None, None, None, 1.0, 1)
