"""Per-token divergence of student and teacher over the whole vocabulary, in chunks of tokens.

    p = softmax(z_student / T)   q = softmax(z_teacher / T)   loss = sum_n weights[n] * D(p_n, q_n)

    D = "forward"  KL(q || p)    teacher first: the student must cover what the teacher does
        "reverse"  KL(p || q)    student first: the student must avoid what the teacher does not do
        "jsd"      KL(p || m) / 2 + KL(q || m) / 2,  m = (p + q) / 2

The logits z = hidden @ head^T of all N tokens are N x V numbers, and D needs several such matrices.
So, for each chunk of tokens: compute logits, divergence and (in closed form) the gradients, add
them up, free the chunk. Unlike in the usual distillation loss there is no factor T^2, and top-k
keeps all other tokens as one bucket. `naive_distill_loss` comes first: no chunks, and autograd.

    out = distill_loss(student_hidden, student_head, teacher_hidden, teacher_head, weights)
    out.loss.backward()
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

DIVERGENCES = ("jsd", "forward", "reverse")
FLOATS = (torch.float32, torch.bfloat16, torch.float64)
CHUNK_SIZE = {"cpu": 256, "cuda": 1024}  # tokens; a GPU needs larger products to come near its peak


@dataclass(frozen=True, eq=False)
class Head:
    """May stand for a head matrix: cap * tanh(scale * (h W^T + b) / cap), no tanh without cap."""

    weight: Tensor  # (V, D)
    bias: Tensor | None = None  # (V,)
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, D) -> (N, V): the product in the dtype of hidden, all else in `wide_dtype`."""
        z = (hidden @ self.weight.to(hidden.dtype).T).to(wide_dtype(hidden))
        if self.bias is not None:
            z += self.bias
        if self.scale != 1:
            z *= self.scale
        return z if self.cap is None else self.cap * torch.tanh(z / self.cap)

    def at(self, temperature: float, dtype: torch.dtype) -> "Head":
        """The head whose logits are z / temperature, its weight cast to dtype."""
        cap = None if self.cap is None else self.cap / temperature
        return Head(self.weight.to(dtype), self.bias, self.scale / temperature, cap)

    def __getitem__(self, rows: slice) -> "Head":  # of the vocabulary
        bias = None if self.bias is None else self.bias[rows]
        return replace(self, weight=self.weight[rows], bias=bias)


@dataclass
class DistillOutput:
    """`loss` is a scalar with a gradient; the others are (N,), detached, float32 or float64.

    The log-probabilities are those of `sampled_ids` at the given temperature, over the whole
    vocabulary whatever `top_k`. None without `sampled_ids`; `nll_loss` has none of a teacher.
    """

    loss: Tensor
    divergence: Tensor
    student_logprobs: Tensor | None = None
    teacher_logprobs: Tensor | None = None


def naive_distill_loss(
    student_hidden: Tensor,
    student_head: Tensor | Head,
    teacher_hidden: Tensor,
    teacher_head: Tensor | Head,
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
    """The oracle: all N x V logits at once, gradients by autograd. No checks, no chunks."""
    z = as_head(student_head).logits(student_hidden) / temperature  # (N, V)
    z_teacher = as_head(teacher_head).logits(teacher_hidden).detach() / temperature
    pair, logprobs = [z.log_softmax(1), z_teacher.log_softmax(1)], [None, None]
    if sampled_ids is not None:
        logprobs = [x.detach().gather(1, sampled_ids[:, None])[:, 0] for x in pair]
    if top_k is not None and top_k < z.shape[1]:
        top = z.detach().topk(top_k, dim=1).indices
        for i, x in enumerate(pair):
            rest = x.scatter(1, top, -math.inf).logsumexp(1, keepdim=True)
            pair[i] = torch.cat([x.gather(1, top), rest], dim=1)  # (N, top_k + 1)
    log_p, log_q = pair
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    terms = {"forward": [(log_q, log_p)], "reverse": [(log_p, log_q)]}
    terms["jsd"] = [(log_p, log_m), (log_q, log_m)]
    kls = [(a.exp() * (a - b)).sum(1) for a, b in terms[divergence]]  # KL(a || b)
    value = sum(kls) / len(kls)
    if is_clip is not None:
        weights = weights * (logprobs[0] - sampled_logprobs).exp().clamp(max=is_clip)
    return DistillOutput((weights.to(z.dtype) * value).sum(), value.detach(), *logprobs)


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
    """sum_n weights[n] * D(student_n, teacher_n), holding a few chunk_size x V matrices at a time.

    student_hidden (N, D) and student_head (V, D), or a Head's weight and bias, receive gradients;
    teacher_hidden (N, D') and teacher_head (V, D') do not. weights (N,) hold masks and normalisers:
    a row of weight 0 gets its divergence and no gradient. Products run in the dtype of the hidden
    states (float32, bfloat16, float64; autocast is ignored), all else in `wide_dtype`. A head of
    another dtype is cast for the products, its gradient adds up in float32. Backward runs once.

    top_k: compare the student's top_k tokens one by one and all others as one bucket.
    temperature: divides the logits of both sides.
    sampled_ids: (N,) int64, asks for their log-probabilities.
    is_clip: multiply weights by min(exp(student_logprobs - sampled_logprobs), is_clip), a constant
        for the gradient; sampled_logprobs (N,) are the sampler's.
    chunk_size: tokens at a time, by default CHUNK_SIZE.
    Raises ValueError for arguments that do not fit together.
    """
    sides = [(student_hidden, as_head(student_head))]
    if teacher_head is not None:
        sides.append((teacher_hidden, as_head(teacher_head)))
    per_token = dict(weights=weights, sampled_ids=sampled_ids, sampled_logprobs=sampled_logprobs)
    numbers = dict(top_k=top_k, temperature=temperature, is_clip=is_clip, chunk_size=chunk_size)
    check(sides, per_token, divergence, **numbers)
    hidden, head = sides[0]
    gradients = new_gradients(hidden, head)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        cast = [(x, w.at(temperature, x.dtype)) for x, w in sides]
        weights = weights.to(wide_dtype(hidden))
        loss, values = weights.new_zeros(()), weights.new_empty(1 + len(sides), len(hidden))
        for rows, trained in chunks(weights, chunk_size):
            ids = None if sampled_ids is None else sampled_ids[rows]
            chunk = [(x[rows], w) for x, w in cast]
            values[:, rows], gradient = _differentiate(chunk, ids, divergence, top_k)
            if trained:
                factor = weights[rows]
                if is_clip is not None:
                    ratio = (values[1, rows] - sampled_logprobs[rows]).exp()
                    factor = factor * ratio.clamp(max=is_clip)
                loss += (factor * values[0, rows]).sum()
                _add_gradients(gradients, gradient, factor[:, None], rows, *cast[0])
            del gradient  # before the next chunk takes its memory
    loss = PrecomputedGradients.apply(loss, gradients, hidden, head.weight, head.bias)
    return DistillOutput(loss, values[0], *([] if sampled_ids is None else values[1:]))


def nll_loss(
    student_hidden: Tensor,
    student_head: Tensor | Head,
    sampled_ids: Tensor,
    weights: Tensor,
    **options,
) -> DistillOutput:
    """-sum_n weights[n] * log p_n(sampled_ids[n]): `distill_loss` without a teacher or top_k.

    Weights of 1/N give supervised training; advantages, of either sign, give the policy gradient.
    """
    fixed = dict(sampled_ids=sampled_ids, divergence="nll", top_k=None)
    return distill_loss(student_hidden, student_head, None, None, weights, **fixed, **options)


def chunks(weights: Tensor, chunk_size: int | None) -> Iterator[tuple[Tensor, bool]]:
    """Row numbers, and whether they train: rows of weight 0 may hold NaN, and 0 * NaN is NaN."""
    size = chunk_size or CHUNK_SIZE.get(weights.device.type, CHUNK_SIZE["cpu"])
    for rows, trained in ((weights.nonzero(), True), ((weights == 0).nonzero(), False)):
        for i in range(0, len(rows), size):
            yield rows[i : i + size, 0], trained


def _differentiate(sides, ids, divergence, top_k):
    """(1 + sides, n): D, each side's log p(ids); (n, V): dD / d(scale * (h W^T + b))."""
    z, *z_teacher = logits = [head.logits(hidden) for hidden, head in sides]
    values = [z.new_zeros(len(z)) for _ in sides]
    if ids is not None:
        values = [x.gather(1, ids[:, None])[:, 0] - x.logsumexp(1) for x in logits]
    cap = sides[0][1].cap
    slope = None if cap is None else 1 - (z / cap).square_()  # of cap * tanh(x / cap)
    if divergence == "nll":
        value, gradient = -values[0], z.softmax(1)
        gradient.scatter_add_(1, ids[:, None], -torch.ones_like(z[:, :1]))  # p - onehot(id)
    elif top_k is None or top_k >= z.shape[1]:
        value, gradient = _compare(z, *z_teacher, divergence)
    else:
        value, gradient = _compare_top_k(z, *z_teacher, divergence, top_k)
    return torch.stack([value, *values]), gradient if slope is None else gradient.mul_(slope)


def _compare(z, z_teacher, divergence):
    """D (n,) and dD/dz (n, V). In place: z_teacher is used up."""
    (p, log_z), (q, log_z_teacher) = _softmax(z), _softmax(z_teacher)
    # log q - log p from the logits: log p and log q would be rounded before they are subtracted
    log_ratio = z_teacher.sub_(z).sub_((log_z_teacher - log_z).to(z.dtype)[:, None])
    if divergence == "forward":
        return log_ratio.mul_(q).sum(1), p.sub_(q)
    if divergence == "reverse":
        return _kl(p, log_ratio.neg_())
    # log p - log m = log 2 - log(1 + q / p), finite even where p or q underflows
    log_p_m = softplus(log_ratio, threshold=40).neg_().add_(math.log(2))
    kl_q_m = log_ratio.add_(log_p_m).mul_(q).sum(1)  # log q - log m, times q
    kl_p_m, gradient = _kl(p, log_p_m)  # as if m were constant: the terms through m cancel
    return (kl_p_m + kl_q_m) / 2, gradient.div_(2)


def _kl(p, a):
    """For a = log p - log r: KL(p || r) = sum p a, and its d/dz: p (a - sum p a)."""
    value = a.mul_(p).sum(1)
    return value, a.sub_(p.mul_(value[:, None]))  # a is p a by now


def _compare_top_k(z, z_teacher, divergence, top_k):
    """As `_compare`, on the student's top_k tokens and one bucket of all others. Uses up both."""
    top, few = z.topk(top_k, dim=1).indices, []  # the choice of tokens is not differentiated
    for x in (z_teacher, z):  # the student last: `in_bucket` is needed below
        kept = x.gather(1, top)
        # over the others alone: log(1 - sum of the top) is off by nats where the top has nearly all
        in_bucket, rest = _softmax(x.scatter_(1, top, -math.inf))
        few.append(torch.cat([kept, rest[:, None].to(x.dtype)], dim=1))  # (n, top_k + 1)
    value, gradient = _compare(few[1], few[0], divergence)
    # the bucket's gradient reaches its tokens by their shares of it
    return value, in_bucket.mul_(gradient[:, top_k:]).scatter_(1, top, gradient[:, :top_k])


def _softmax(z):
    """softmax(z) and log sum exp(z), (n,), which is max z - log max softmax(z)."""
    p = z.softmax(1)
    return p, z.amax(1).double() - p.amax(1).double().log()  # in float32 KL(p, p) would be 1e-7


def new_gradients(hidden: Tensor, head: Head) -> list[Tensor | None]:
    """Zeros for hidden states, weight and bias; None where no gradient is asked for."""
    wide, zeros = wide_dtype(hidden), []
    for x, dtype in ((hidden, hidden.dtype), (head.weight, wide), (head.bias, wide)):
        wanted = x is not None and x.requires_grad and torch.is_grad_enabled()
        zeros.append(torch.zeros_like(x, dtype=dtype) if wanted else None)
    return zeros


def _add_gradients(gradients, gradient, factor, rows, hidden, head):
    """gradient, (n, V), is d/d(scale * (h W^T + b)); factor, (n, 1), multiplies its rows."""
    gradient.mul_(factor * head.scale)
    of_hidden, of_weight, of_bias = gradients
    if of_hidden is not None:
        of_hidden[rows] = gradient.to(hidden.dtype) @ head.weight
    if of_weight is not None:
        of_weight.addmm_(gradient.T, hidden[rows].to(gradient.dtype))
    if of_bias is not None:
        of_bias += gradient.sum(0)


class PrecomputedGradients(torch.autograd.Function):
    """A loss whose gradients are known: backward multiplies them by the incoming one, in place."""

    @staticmethod
    def forward(ctx, loss, gradients, *inputs):
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx, grad_loss):
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("backward ran before and its gradients are gone: compute it again")
        return None, None, *[None if x is None else x.mul_(grad_loss) for x in gradients]


def as_head(head: Tensor | Head) -> Head:
    return head if isinstance(head, Head) else Head(head)


def wide_dtype(x: Tensor) -> torch.dtype:  # float64 for float64 alone
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check(sides, per_token, divergence, **positive) -> None:
    """ValueError where arguments of `distill_loss` do not fit. per_token: tensors (N,) by name."""
    hidden, n, v = sides[0][0], len(sides[0][0]), len(sides[0][1].weight)
    tensors = [(name, x, (n,)) for name, x in per_token.items()]
    for side, (x, w) in zip(("student", "teacher"), sides, strict=False):
        tensors += [(f"{side}_hidden", x, (n, x.shape[-1])), (f"{side}_head.bias", w.bias, (v,))]
        tensors.append((f"{side}_head (cut to a shared V)", w.weight, (v, x.shape[-1])))
        if not math.isfinite(w.scale) or (w.cap is not None and not 0 < w.cap < math.inf):
            raise ValueError(f"{side}_head: scale must be finite, cap > 0: {w.scale}, {w.cap}")
        if wide_dtype(x) != wide_dtype(hidden):
            raise ValueError(f"student_hidden is {hidden.dtype}, teacher_hidden {x.dtype}")
    for name, x, shape in tensors:
        dtypes = (torch.int64,) if name == "sampled_ids" else FLOATS
        if x is not None and (x.shape, x.device, x.dtype in dtypes) != (shape, hidden.device, True):
            found = f"{tuple(x.shape)}, {x.dtype} on {x.device}"
            raise ValueError(f"{name} must be {shape}, {dtypes} on {hidden.device}, not {found}")
    needed = ["sampled_ids"] * (divergence == "nll")
    needed += [] if positive["is_clip"] is None else ["sampled_ids", "sampled_logprobs"]
    if missing := [name for name in needed if per_token[name] is None]:
        raise ValueError(f"nll_loss and is_clip need {missing[0]}")
    known = DIVERGENCES if len(sides) == 2 else ["nll"]
    if divergence not in known:
        raise ValueError(f"divergence must be one of {', '.join(known)}, not {divergence!r}")
    for name, x in positive.items():
        if x is not None and not x > 0:
            raise ValueError(f"{name} must be positive, not {x}")
