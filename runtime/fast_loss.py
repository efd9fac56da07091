"""The functions of `loss.py` with the same results, faster: buffers reused, passes in place.

On a CPU the passes over the vocabulary go block by block through its cache. On CUDA they are
compiled into three, and the first call takes seconds. `loss.py` is the oracle.
"""

import functools
import math
import warnings

import torch
from torch import Tensor

from loss import (
    DistillOutput,
    Head,
    PrecomputedGradients,
    as_head,
    check,
    chunks,
    new_gradients,
    wide_dtype,
)

# Logits whose buffers (five of 4 MB) stay in a CPU's cache while twenty passes go over them.
BLOCK = 2**20


def distill_loss(
    student_hidden: Tensor,
    student_head: Tensor | Head,
    teacher_hidden: Tensor | None,
    teacher_head: Tensor | Head | None,
    weights: Tensor,
    *,
    divergence: str = "jsd",
    top_k: int | None = None,
    temperature: float = 1.0,
    sampled_ids: Tensor | None = None,
    sampled_logprobs: Tensor | None = None,
    is_clip: float | None = None,
    chunk_size: int | None = None,
) -> DistillOutput:
    """`loss.distill_loss`, faster."""
    sides = [(student_hidden, as_head(student_head))]
    if teacher_head is not None:
        sides.append((teacher_hidden, as_head(teacher_head)))
    per_token = dict(weights=weights, sampled_ids=sampled_ids, sampled_logprobs=sampled_logprobs)
    numbers = dict(top_k=top_k, temperature=temperature, is_clip=is_clip, chunk_size=chunk_size)
    check(sides, per_token, divergence, **numbers)
    (hidden, head), gradients = sides[0], new_gradients(*sides[0])
    top_k = top_k if top_k is not None and top_k < len(head.weight) else None
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        sides, buffers = [(x, w.at(temperature, x.dtype)) for x, w in sides], {}
        outputs = [(w.bias, w.scale, w.cap) for _, w in sides]
        weights = weights.to(wide_dtype(hidden))
        loss, values = weights.new_zeros(()), weights.new_empty(3, len(hidden))
        for rows, trained in chunks(weights, chunk_size):
            logits = [
                _product(x, w.weight, rows, buffers, name)
                for (x, w), name in zip(sides, ("student", "teacher"), strict=False)
            ]
            tokens = [x if x is None else x[rows] for x in (weights, sampled_ids, sampled_logprobs)]
            values[:, rows], row_weights, gradient = _differentiate(
                logits, outputs, tokens, (divergence, top_k, is_clip), hidden.dtype, buffers
            )
            del logits  # on a GPU, before the next chunk's come
            if trained:
                loss += torch.dot(row_weights, values[0, rows])
                _add_gradients(gradients, gradient, hidden, rows, sides[0][1].weight)
            del gradient
    loss = PrecomputedGradients.apply(loss, gradients, hidden, head.weight, head.bias)
    logprobs = [] if sampled_ids is None else values[1 : 1 + len(sides)]
    return DistillOutput(loss, values[0], *logprobs)


def nll_loss(
    student_hidden: Tensor,
    student_head: Tensor | Head,
    sampled_ids: Tensor,
    weights: Tensor,
    **options,
) -> DistillOutput:
    """`loss.nll_loss`, faster."""
    fixed = dict(sampled_ids=sampled_ids, divergence="nll", top_k=None)
    return distill_loss(student_hidden, student_head, None, None, weights, **fixed, **options)


def _buffer(buffers, name, shape, like):
    """A matrix of any contents, allocated once and reused: fresh pages cost more than a pass."""
    if buffers is None:  # compiled code has no use for them
        return torch.empty(shape, dtype=wide_dtype(like), device=like.device)
    if name not in buffers or len(buffers[name]) < shape[0]:
        buffers[name] = torch.empty(shape, dtype=wide_dtype(like), device=like.device)
    return buffers[name][: shape[0]]


def _product(hidden, weight, rows, buffers, name):
    """hidden[rows] @ weight^T, (n, V), in hidden's dtype; on a CPU the result is then float32."""
    chunk = hidden[rows]
    if chunk.is_cuda:
        return chunk @ weight.T
    out = _buffer(buffers, name, (len(rows), len(weight)), hidden)
    if chunk.dtype != out.dtype:
        return out.copy_(chunk @ weight.T)
    # MKL takes a third longer for all columns at once.
    for part, columns in zip(weight.split(1024), out.split(1024, dim=1), strict=True):
        torch.mm(chunk, part.T, out=columns)
    return out


def _add_gradients(gradients, gradient, hidden, rows, weight):
    """From the gradient by h W^T + b, (n, V), to those of hidden states, weight and bias."""
    of_hidden, of_weight, of_bias = gradients
    if of_hidden is not None:
        of_hidden[rows] = gradient @ weight
    if of_weight is not None:
        if gradient.dtype == of_weight.dtype:
            of_weight.addmm_(gradient.T, hidden[rows])
        elif gradient.is_cuda:
            torch.addmm(
                of_weight, gradient.T, hidden[rows], out_dtype=of_weight.dtype, out=of_weight
            )
        else:  # torch has no such product on a CPU
            of_weight.addmm_(gradient.T.to(of_weight.dtype), hidden[rows].to(of_weight.dtype))
    if of_bias is not None:
        of_bias += gradient.sum(0, dtype=of_bias.dtype)


def _differentiate(logits, outputs, tokens, options, dtype, buffers):
    """Values (3, n), weights (n,) and the weighted gradient by h W^T + b, (n, V) in `dtype`.

    logits: the products h W^T, (n, V), of the student and the teacher, both overwritten.
    outputs: bias, scale and cap of each. options: divergence, top_k, is_clip.
    tokens: weights, ids and sampled_logprobs, (n,) or None.
    """
    if logits[0].is_cuda:
        return _compiled()(logits, outputs, tokens, options, dtype)
    z = logits[0]
    values, weights = z.new_empty(3, len(z)), torch.empty_like(tokens[0])
    size = max(1, BLOCK // z.shape[1])
    for i in (slice(i, i + size) for i in range(0, len(z), size)):
        block = [x[i] for x in logits], outputs, [x if x is None else x[i] for x in tokens]
        values[:, i], weights[i] = _differentiate_in_place(*block, options, buffers)
    return values, weights, z.to(dtype)


@functools.cache
def _compiled():
    """`_differentiate` for a GPU: three passes over the vocabulary instead of fifty."""

    def eager(logits, outputs, tokens, options, dtype):
        logits = [x.to(wide_dtype(x)) for x in logits]
        values, weights = _differentiate_in_place(logits, outputs, tokens, options, None)
        return values, weights, logits[0].to(dtype)

    compiled = torch.compile(eager)

    def differentiate(logits, outputs, tokens, options, dtype):
        nonlocal compiled
        for x in (*logits, *tokens):
            if x is not None:
                # else the last, shorter chunk would be compiled anew
                torch._dynamo.maybe_mark_dynamic(x, 0)
        try:
            return compiled(logits, outputs, tokens, options, dtype)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of many kinds: no Triton, no C compiler, ...
            if compiled is eager:
                raise
            warnings.warn(
                f"torch.compile does not work here, the loss is slower without: {error!r}",
                stacklevel=2,
            )
            compiled = eager
            return eager(logits, outputs, tokens, options, dtype)

    return differentiate


def _differentiate_in_place(logits, outputs, tokens, options, buffers):
    """Values (3, n) and weights (n,); logits[0] is overwritten by the weighted gradient."""
    (weights, ids, sampled_logprobs), (divergence, top_k, is_clip) = tokens, options
    z, scale, slope = logits[0], outputs[0][1], None
    for x, (bias, x_scale, x_cap) in zip(logits, outputs, strict=True):
        if bias is not None:
            x.add_(bias)
        if x_cap is None and x_scale != 1:
            x.mul_(x_scale)
        if x_cap is not None:
            x.mul_(x_scale / x_cap).tanh_()
            if x is z:
                slope = torch.mul(x, x, out=_buffer(buffers, "slope", x.shape, x)).neg_().add_(1)
            x.mul_(x_cap)
    none = z.new_zeros(len(z))
    # log p[id] is read before the logits are overwritten
    picked = [none if ids is None else x.gather(1, ids[:, None])[:, 0] for x in logits]
    if divergence == "nll":
        norms = [_softmax(z, z)]
        # the gradient of -log p[id] is p - onehot(id)
        z.scatter_add_(1, ids[:, None], -z.new_ones(len(z), 1))
    elif top_k is None:
        value, *norms = _compare(*logits, divergence, buffers)
    else:
        value, *norms = _compare_top_k(*logits, divergence, buffers, top_k=top_k)
    logprobs = [
        (x - top - log_z).to(z.dtype) for x, (top, log_z) in zip(picked, norms, strict=True)
    ]
    if divergence == "nll":
        values = torch.stack([-logprobs[0], logprobs[0], none])
    else:
        values = torch.stack([value.to(z.dtype), *logprobs])
    if is_clip is not None:
        weights = weights * (values[1] - sampled_logprobs).exp().clamp(max=is_clip)
    z.mul_((weights * scale)[:, None])
    if slope is not None:
        z.mul_(slope)
    return values, weights


def _softmax(x, out):
    """out = softmax(x) and, unless out is x, x = log softmax(x).

    Returns the maximum of each row and log sum exp(x - maximum). log in float64: a float32 rounding
    error here is added to every entry of log softmax, and KL(p, p) would be 1e-7 instead of 0.
    """
    top = x.amax(1, keepdim=True)
    torch.exp(x.sub_(top), out=out)
    total = out.sum(1, keepdim=True)
    out.div_(total)
    log_z = total.double().log()
    if out is not x:
        x.sub_(log_z.to(x.dtype))
    return top[:, 0], log_z[:, 0]


def _compare(z, z_teacher, divergence, buffers):
    """Overwrites z by dD/dz and uses z_teacher up. Returns D and each side's pair from `_softmax`.

    One exp per side and, for jsd, one log. Adding a constant to a row of logits changes nothing, so
    every gradient is of the form p (a - sum p a).
    """
    p, q, m = (_buffer(buffers, name, z.shape, z) for name in "pqm")
    norms = (_, log_z), (_, log_z_teacher) = _softmax(z, p), _softmax(z_teacher, q)
    # the parts of both log_z that float32 could not hold; subtracted from the results below
    lost, lost_teacher = (x.to(z.dtype) - x for x in (log_z, log_z_teacher))
    if divergence == "forward":  # sum q (log q - log p), gradient p - q
        value = torch.mul(q, z_teacher.sub_(z), out=m).sum(1) + lost_teacher - lost
        torch.sub(p, q, out=z)
        return value, *norms
    if divergence == "reverse":  # sum p a with a = log p - log q, gradient p (a - sum p a)
        mean = torch.mul(p, z.sub_(z_teacher), out=m).sum(1)
        z.sub_(mean[:, None]).mul_(p)
        return mean + lost - lost_teacher, *norms
    # clamped: both may underflow
    torch.lerp(p, q, 0.5, out=m).clamp_(min=torch.finfo(m.dtype).tiny).log_()
    a, b = z.sub_(m), z_teacher.sub_(m)  # a = log p - log m, gradient p (a - sum p a) / 2
    mean_a, mean_b = torch.mul(p, a, out=m).sum(1), torch.mul(q, b, out=m).sum(1)
    a.sub_(mean_a[:, None]).mul_(p.mul_(0.5))
    return (mean_a + mean_b + lost + lost_teacher) / 2, *norms


def _compare_top_k(z, z_teacher, divergence, buffers, *, top_k):
    """As `_compare`, on the student's top_k tokens and one bucket for all others."""
    top = z.topk(top_k, dim=1).indices  # the choice of tokens is not differentiated
    few = []
    for x in (z, z_teacher):
        kept = x.gather(1, top)
        x.scatter_(1, top, -math.inf)
        # over the others alone: log(1 - sum of the top) cancels
        rest = sum(_softmax(x, x)).to(x.dtype)
        few.append(torch.cat([kept, rest[:, None]], dim=1))
    value_and_norms = _compare(*few, divergence, buffers)
    z.mul_(few[0][:, top_k:]).scatter_(1, top, few[0])  # z holds the softmax within the bucket
    return value_and_norms
