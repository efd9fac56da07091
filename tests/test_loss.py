"""Both chunked losses: against the naive one, numbers worked by hand, their promises, each other.

"plain" is loss.py, "fast" is runtime/fast_loss.py, "naive" is the oracle that both must agree with.
"""

import inspect
import math
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import loss as plain_loss
from loss import DIVERGENCES, DistillOutput, Head, as_head, naive_distill_loss
from runtime import fast_loss

N, D, V = 11, 16, 60
LOSSES = pytest.mark.parametrize(
    "loss",
    [plain_loss.distill_loss, fast_loss.distill_loss, naive_distill_loss],
    ids=["plain", "fast", "naive"],
)
EVERY = pytest.mark.parametrize("divergence", DIVERGENCES)
TOP_K = pytest.mark.parametrize("top_k", [None, 1, 7, V - 1, V, V + 5])


@pytest.fixture(params=[plain_loss, fast_loss], ids=["plain", "fast"])
def implementation(request):
    return request.param


@pytest.fixture
def distill_loss(implementation):
    return implementation.distill_loss


@pytest.fixture
def nll_loss(implementation):
    return implementation.nll_loss


def problem(n=N, d=D, v=V, *, dtype=torch.float64, scale=1.0, seed=0, device="cpu"):
    """Student and teacher (of another width), one weight 0; ids and a stale sampler's logprobs."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).mul(scale).to(device, dtype)

    weights = torch.rand(n, generator=g, dtype=torch.float64)
    weights[n // 2 : n // 2 + 1] = 0
    return dict(
        student_hidden=normal(n, d),
        student_head=normal(v, d),
        teacher_hidden=normal(n, d // 2),
        teacher_head=normal(v, d // 2),
        weights=weights.to(device),
    ), dict(
        sampled_ids=torch.randint(v, (n,), generator=g).to(device),
        sampled_logprobs=(torch.randn(n, generator=g) - math.log(v)).to(device),
    )


def with_gradients(loss, args, **options):
    """The output and the gradients of student_hidden and student_head."""
    args = {k: v.detach().clone().requires_grad_(k.startswith("student")) for k, v in args.items()}
    out = loss(**args, **options)
    out.loss.backward()
    return out, args["student_hidden"].grad, args["student_head"].grad


class Naive:
    """The oracle with the names of the two others."""

    distill_loss = staticmethod(naive_distill_loss)

    @staticmethod
    def nll_loss(
        student_hidden,
        student_head,
        sampled_ids,
        weights,
        *,
        temperature=1.0,
        sampled_logprobs=None,
        is_clip=None,
    ):
        z = as_head(student_head).logits(student_hidden) / temperature
        log_p = z.log_softmax(1).gather(1, sampled_ids[:, None])[:, 0]
        weights = weights.to(log_p.dtype)
        if is_clip is not None:
            weights = weights * (log_p.detach() - sampled_logprobs).exp().clamp(max=is_clip)
        return DistillOutput(-(weights * log_p).sum(), -log_p.detach(), log_p.detach())


def from_logits(student, teacher, **options):
    """The divergence of two rows of logits: hidden states are the logits, heads the identity."""
    s, t = (torch.tensor([x], dtype=torch.float64) for x in (student, teacher))
    eye = torch.eye(s.shape[1], dtype=torch.float64)
    return with_gradients(
        options.pop("loss"),
        dict(
            student_hidden=s,
            student_head=eye,
            teacher_hidden=t,
            teacher_head=eye,
            weights=torch.ones(1, dtype=torch.float64),
        ),
        **options,
    )


def assert_same(a, b, **tolerance):
    for name in ("loss", "divergence", "student_logprobs", "teacher_logprobs"):
        x, y = getattr(a[0], name), getattr(b[0], name)
        assert (x is None) == (y is None), name
        if x is not None:
            torch.testing.assert_close(x, y, **tolerance, msg=lambda m, name=name: f"{name}: {m}")
    torch.testing.assert_close(a[1], b[1], **tolerance)
    torch.testing.assert_close(a[2], b[2], **tolerance)


# The naive loss is the oracle


@EVERY
@TOP_K
def test_value_and_both_gradients_are_the_naive_ones_in_float64(distill_loss, divergence, top_k):
    args, sampled = problem()
    options = dict(divergence=divergence, top_k=top_k, temperature=0.7, is_clip=1.5, **sampled)
    assert_same(
        with_gradients(distill_loss, args, chunk_size=4, **options),
        with_gradients(naive_distill_loss, args, **options),
        rtol=1e-9,
        atol=1e-12,
    )


@pytest.mark.parametrize("divergence", ["jsd", "reverse"])
def test_a_vocabulary_of_several_parts_is_put_together_right(distill_loss, divergence):
    """On a CPU the logits are worked out for 1,024 tokens at a time."""
    args, sampled = problem(n=6, d=5, v=2500)
    options = dict(divergence=divergence, **sampled)
    assert_same(
        with_gradients(distill_loss, args, chunk_size=4, **options),
        with_gradients(naive_distill_loss, args, **options),
        rtol=1e-9,
        atol=1e-12,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@EVERY
@pytest.mark.parametrize("top_k", [None, 7])
def test_error_against_float64_is_no_worse_than_the_naive_loss_in_the_same_dtype(
    distill_loss, dtype, divergence, top_k
):
    args, _ = problem(n=64, d=32, v=500, dtype=dtype, scale=0.6)
    options = dict(divergence=divergence, top_k=top_k)
    exact = with_gradients(naive_distill_loss, {k: v.double() for k, v in args.items()}, **options)
    ours = with_gradients(distill_loss, args, chunk_size=16, **options)
    naive = with_gradients(naive_distill_loss, args, **options)

    def errors(x):
        pairs = [(x[0].divergence, exact[0].divergence), (x[1], exact[1]), (x[2], exact[2])]
        return [((a.double() - b).norm() / b.norm()).item() for a, b in pairs]

    assert [x.dtype for x in ours[1:]] == [dtype, dtype]
    assert ours[0].divergence.dtype == torch.float32
    names = "divergence", "hidden", "head"
    for name, a, b in zip(names, errors(ours), errors(naive), strict=True):
        assert a <= 1.1 * b + 2e-7, f"{name}: error {a:.2e}, naive {b:.2e}"


def test_rounding_of_the_normaliser_does_not_shift_a_divergence_of_zero(distill_loss):
    """log z is about 9 here: rounded to float32 it is off by up to 5e-7, as the divergence was."""
    torch.manual_seed(0)
    hidden, head = torch.randn(64, 16) / 2, torch.randn(5000, 16)
    shift = torch.full((5000,), 4.0)  # of all logits: no change of the distribution
    for teacher_head in (head, Head(head, bias=shift)):
        out = distill_loss(hidden, head, hidden, teacher_head, torch.ones(64))
        assert out.divergence.square().mean().sqrt() < 7e-8


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 2e-5), (torch.bfloat16, 1.6e-2)])
@EVERY
@pytest.mark.parametrize("top_k", [None, 7])
def test_value_and_gradients_are_the_naive_ones_in_training_dtypes(
    distill_loss, dtype, tolerance, divergence, top_k
):
    args, sampled = problem(dtype=dtype, scale=0.6)
    options = dict(divergence=divergence, top_k=top_k, temperature=1.3, is_clip=1.5, **sampled)
    assert_same(
        with_gradients(distill_loss, args, chunk_size=4, **options),
        with_gradients(naive_distill_loss, args, **options),
        rtol=tolerance,
        atol=tolerance / 20,
    )


@EVERY
@pytest.mark.parametrize("top_k", [None, 3])
def test_gradients_pass_gradcheck(distill_loss, divergence, top_k):
    args, _ = problem(n=4, d=3, v=9)
    fixed = {k: v for k, v in args.items() if not k.startswith("student")}

    def f(
        hidden, head
    ):  # gradcheck runs backward several times, the loss allows one: hold its gradients
        loss = distill_loss(
            hidden, head, **fixed, divergence=divergence, top_k=top_k, chunk_size=3
        ).loss
        gradients = torch.autograd.grad(loss, (hidden, head))
        return loss.detach() + sum(
            ((x - x.detach()) * g).sum() for x, g in zip((hidden, head), gradients, strict=True)
        )

    assert torch.autograd.gradcheck(
        f, [args[k].clone().requires_grad_() for k in ("student_hidden", "student_head")]
    )


@pytest.mark.parametrize(
    "dtype,tolerance", [(torch.float64, 1e-9), (torch.float32, 2e-5), (torch.bfloat16, 1.6e-2)]
)
def test_nll_loss_takes_negative_weights_and_clips_the_ratio(nll_loss, dtype, tolerance):
    args, sampled = problem(dtype=dtype, scale=0.6)
    args = {k: args[k] for k in ("student_hidden", "student_head", "weights")}
    args["weights"] = args["weights"] - 0.4
    for options in (
        dict(),
        dict(temperature=0.7),
        dict(is_clip=1.5, sampled_logprobs=sampled["sampled_logprobs"]),
    ):
        options["sampled_ids"] = sampled["sampled_ids"]
        assert_same(
            with_gradients(nll_loss, args, chunk_size=4, **options),
            with_gradients(Naive.nll_loss, args, **options),
            rtol=tolerance,
            atol=tolerance / 20,
        )


# Worked by hand. Student p = (1/2, 1/4, 1/4), teacher q = (1/4, 1/4, 1/2), so m = (3/8, 1/4, 3/8):
#   KL(q || p) = 1/4 log(1/2) + 0 + 1/2 log 2            = log(2) / 4
#   KL(p || m) = 1/2 log(4/3) + 0 + 1/4 log(2/3)         = (5 log 2 - 3 log 3) / 4
#   and KL(q || m) is the same by symmetry, hence so is the Jensen-Shannon divergence.
HALF, QUARTER = math.log(1 / 2), math.log(1 / 4)


@LOSSES
def test_divergences_worked_by_hand(loss):
    for divergence, value in (
        ("forward", math.log(2) / 4),
        ("reverse", math.log(2) / 4),
        ("jsd", (5 * math.log(2) - 3 * math.log(3)) / 4),
    ):
        out, _, _ = from_logits(
            [HALF, QUARTER, QUARTER], [QUARTER, QUARTER, HALF], divergence=divergence, loss=loss
        )
        assert out.divergence.item() == pytest.approx(value, abs=1e-12)


@LOSSES
def test_forward_is_teacher_first_and_reverse_student_first(loss):
    """p = (1/2, 1/2), q = (1/4, 3/4)."""
    rows = [HALF, HALF], [QUARTER, math.log(3 / 4)]
    forward, grad_forward, _ = from_logits(*rows, divergence="forward", loss=loss)
    reverse, grad_reverse, _ = from_logits(*rows, divergence="reverse", loss=loss)
    assert forward.divergence.item() == pytest.approx(
        0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2), abs=1e-12
    )
    assert reverse.divergence.item() == pytest.approx(
        0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-12
    )
    torch.testing.assert_close(
        grad_forward, torch.tensor([[0.25, -0.25]], dtype=torch.float64)
    )  # p - q
    # p (a - sum p a), a = log p - log q = (log 2, log 2/3): (log 2 - log 2/3) / 4 = log(3) / 4
    torch.testing.assert_close(
        grad_reverse, torch.tensor([[1.0, -1.0]], dtype=torch.float64) * math.log(3) / 4
    )


@LOSSES
def test_jsd_of_disjoint_distributions_is_log_2(loss):
    out, _, _ = from_logits([1e4, 0, 0], [0, 0, 1e4], loss=loss)
    assert out.divergence.item() == pytest.approx(math.log(2), abs=1e-12)


@LOSSES
def test_top_k_takes_the_students_tokens_and_one_rest_bucket_on_both_sides(loss):
    """The student's top token is the first: p = (1/2, rest 1/2), q = (1/4, rest 3/4)."""
    rows = [HALF, QUARTER, QUARTER], [QUARTER, QUARTER, HALF]
    out, _, _ = from_logits(*rows, divergence="reverse", top_k=1, loss=loss)
    assert out.divergence.item() == pytest.approx(
        0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-12
    )


@LOSSES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rest_bucket_is_right_when_the_top_k_hold_nearly_everything(loss, dtype):
    """p = (1, 2 e^-40 in the rest), q = (1, 2 e^-30): log(1 - sum of the top) would be off by nats.

    Forward: 2 e^-30 (log 2e^-30 - log 2e^-40), and -2e^-30 + 2e^-40 for the first token; the sum
    is 9 * 2 e^-30 in float64.
    """
    eye = torch.eye(3, dtype=dtype)
    s, t = (
        torch.tensor([[0.0, -40, -40]], dtype=dtype),
        torch.tensor([[0.0, -30, -30]], dtype=dtype),
    )
    args = dict(
        student_hidden=s,
        student_head=eye,
        teacher_hidden=t,
        teacher_head=eye,
        weights=torch.ones(1),
    )
    out, grad, _ = with_gradients(loss, args, divergence="forward", top_k=1)
    # in float32 the first token's -2e^-30 is below its own rounding
    expected = (9 if dtype == torch.float64 else 10) * 2 * math.exp(-30)
    assert out.divergence.item() == pytest.approx(expected, rel=1e-3)
    assert grad[0, 1].item() == pytest.approx(math.exp(-40) - math.exp(-30), rel=1e-3)


@LOSSES
def test_temperature_divides_the_logits_of_both_sides(loss):
    args, sampled = problem()
    hot, hidden, head = with_gradients(
        loss, args, temperature=0.5, sampled_ids=sampled["sampled_ids"]
    )
    scaled = args | dict(
        student_hidden=args["student_hidden"] * 2, teacher_hidden=args["teacher_hidden"] * 2
    )
    cold, hidden_2, head_2 = with_gradients(loss, scaled, sampled_ids=sampled["sampled_ids"])
    assert_same((hot, hidden, head), (cold, hidden_2 * 2, head_2))


def test_sampled_logprobs_are_those_of_the_full_softmax_even_with_top_k(distill_loss):
    args, sampled = problem()
    out = distill_loss(**args, top_k=3, temperature=0.7, sampled_ids=sampled["sampled_ids"])
    for x, side in ((out.student_logprobs, "student"), (out.teacher_logprobs, "teacher")):
        log_p = (args[f"{side}_hidden"] @ args[f"{side}_head"].T / 0.7).log_softmax(-1)
        torch.testing.assert_close(x, log_p.gather(1, sampled["sampled_ids"][:, None])[:, 0])
        assert not x.requires_grad


# Promises


@EVERY
@pytest.mark.parametrize("top_k", [None, 7])
def test_chunk_size_does_not_matter(distill_loss, divergence, top_k):
    args, sampled = problem()
    options = dict(divergence=divergence, top_k=top_k, is_clip=2.0, **sampled)
    results = [with_gradients(distill_loss, args, chunk_size=c, **options) for c in (1, 3, N, 1000)]
    for other in results[1:]:
        assert_same(results[0], other, rtol=1e-10, atol=1e-13)


def test_cpu_blocks_inside_a_chunk_do_not_mix_rows(distill_loss, monkeypatch):
    args, sampled = problem()
    whole = with_gradients(distill_loss, args, top_k=7, is_clip=2.0, **sampled)
    monkeypatch.setattr("runtime.fast_loss.BLOCK", 2 * len(args["student_head"]))
    assert_same(
        with_gradients(distill_loss, args, top_k=7, is_clip=2.0, **sampled),
        whole,
        rtol=1e-10,
        atol=1e-13,
    )


def test_tied_embedding_gets_the_gradient_of_both_uses(distill_loss):
    args, sampled = problem()
    fixed = {k: args[k] for k in ("teacher_hidden", "teacher_head", "weights")}
    gradients = []
    for loss in (distill_loss, naive_distill_loss):
        table = args["student_head"].clone().requires_grad_()
        loss(torch.tanh(table[sampled["sampled_ids"]]), table, **fixed).loss.backward()
        gradients.append(table.grad)
    torch.testing.assert_close(*gradients)


@LOSSES
def test_teacher_is_not_in_the_graph(loss):
    args, _ = problem()
    args = {k: v.clone().requires_grad_() for k, v in args.items()}
    loss(**args).loss.backward()
    assert args["teacher_hidden"].grad is None and args["teacher_head"].grad is None
    assert args["student_hidden"].grad.abs().sum() > 0


def test_one_tensor_as_both_heads_gets_only_the_students_gradient(distill_loss):
    args, _ = problem()
    args["teacher_hidden"] = args["student_hidden"].flip(0)
    head = args["student_head"].clone().requires_grad_()
    distill_loss(**args | dict(student_head=head, teacher_head=head)).loss.backward()
    _, _, expected = with_gradients(
        naive_distill_loss, args | dict(teacher_head=args["student_head"])
    )
    torch.testing.assert_close(head.grad, expected)


def test_rows_of_weight_zero_get_a_divergence_but_no_gradient(distill_loss):
    args, sampled = problem()
    zero = args["weights"] == 0
    for loss in (distill_loss, naive_distill_loss):
        out, hidden, _ = with_gradients(loss, args, **sampled)
        assert zero.any() and (hidden[zero] == 0).all() and (hidden[~zero] != 0).any(1).all()
        assert (out.divergence > 0).all() and torch.isfinite(out.student_logprobs).all()
    kept = {k: v[~zero] if len(v) == N else v for k, v in args.items()}
    assert_same(
        (out, hidden[~zero], with_gradients(distill_loss, args)[2]),
        (out, *with_gradients(distill_loss, kept)[1:]),
    )


def test_garbage_in_a_masked_row_does_not_reach_the_loss_or_the_head(distill_loss):
    args, _ = problem(dtype=torch.float32)
    args["student_hidden"][args["weights"] == 0] = math.nan
    out, hidden, head = with_gradients(distill_loss, args)
    assert torch.isfinite(out.loss) and torch.isfinite(hidden).all() and torch.isfinite(head).all()


@pytest.mark.parametrize("top_k", [None, 2])
@EVERY
@LOSSES
def test_extreme_logits_are_finite(loss, divergence, top_k):
    rows = torch.tensor(
        [[1e4, -1e4, 0, 5], [-1e4, 1e4, 1e4, 0], [0, 0, 0, 0], [1e4, 1e4, 1e4, 1e4]]
    )
    eye = torch.eye(4)
    for teacher in (rows, rows.roll(1, 0), rows.flip(1)):
        args = dict(
            student_hidden=rows,
            student_head=eye,
            teacher_hidden=teacher,
            teacher_head=eye,
            weights=torch.ones(4),
        )
        out, hidden, head = with_gradients(
            loss,
            args,
            divergence=divergence,
            top_k=top_k,
            sampled_ids=torch.arange(4),
            sampled_logprobs=torch.full((4,), -1e4),
            is_clip=2.0,
        )
        for x in (
            out.loss,
            out.divergence,
            out.student_logprobs,
            out.teacher_logprobs,
            hidden,
            head,
        ):
            assert torch.isfinite(x).all()


@pytest.mark.parametrize("top_k", [None, 5])
def test_no_tokens_or_no_weight_give_loss_zero_and_gradients_zero(distill_loss, nll_loss, top_k):
    full, _ = problem()
    for args in (problem(n=0)[0], full | dict(weights=torch.zeros(N))):
        n = len(args["weights"])
        out, hidden, head = with_gradients(distill_loss, args, top_k=top_k)
        assert out.loss.item() == 0 and out.divergence.shape == (n,)
        assert (
            hidden.shape == (n, D) and not hidden.any() and head.shape == (V, D) and not head.any()
        )
        args = {k: args[k] for k in ("student_hidden", "student_head", "weights")}
        out, hidden, head = with_gradients(
            nll_loss, args, sampled_ids=torch.zeros(n, dtype=torch.int64)
        )
        assert out.loss.item() == 0 and not hidden.any() and not head.any()


def test_gradients_are_only_computed_where_they_are_asked_for(distill_loss):
    args, _ = problem()
    args["student_hidden"].requires_grad_()
    distill_loss(**args).loss.backward()
    torch.testing.assert_close(
        args["student_hidden"].grad, with_gradients(naive_distill_loss, args)[1]
    )
    assert args["student_head"].grad is None
    with torch.no_grad():
        assert not distill_loss(**args).loss.requires_grad


def test_upstream_factor_scales_both_gradients(distill_loss):
    args, _ = problem()
    _, hidden, head = with_gradients(distill_loss, args)

    def scaled(**kwargs):
        out = distill_loss(**kwargs)
        out.loss = out.loss * -3
        return out

    _, hidden_3, head_3 = with_gradients(scaled, args)
    torch.testing.assert_close((hidden * -3, head * -3), (hidden_3, head_3))


def test_second_backward_is_refused_instead_of_scaling_twice(distill_loss):
    args, _ = problem()
    args["student_hidden"].requires_grad_()
    loss = distill_loss(**args).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute it again"):
        loss.backward()


def test_bfloat16_hidden_states_leave_the_gradient_of_a_float32_head_unrounded(distill_loss):
    """Over eight draws: in a single one, chance decides whose rounding errors cancel better."""
    ours, naive, size = [], [], []
    for seed in range(8):
        args, _ = problem(n=64, dtype=torch.float32, seed=seed)
        for side in ("student", "teacher"):
            args[f"{side}_hidden"] = args[f"{side}_hidden"].bfloat16()
        _, hidden, head = with_gradients(distill_loss, args)
        assert hidden.dtype == torch.bfloat16 and head.dtype == torch.float32
        assert (head != head.bfloat16().float()).any()
        in_float64 = {k: v.double() for k, v in args.items()}
        _, _, exact = with_gradients(naive_distill_loss, in_float64)
        ours.append(head - exact)
        naive.append(with_gradients(naive_distill_loss, args)[2] - exact)
        size.append(exact)
    ours, naive, size = (torch.stack(x).norm() for x in (ours, naive, size))
    assert ours <= naive < 0.05 * size


def test_autocast_does_not_change_the_result(distill_loss):
    args, _ = problem(dtype=torch.float32)
    plain = with_gradients(distill_loss, args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(with_gradients(distill_loss, args), plain)


def test_different_vocabularies_are_refused_and_both_are_named(distill_loss):
    args, _ = problem()
    with pytest.raises(ValueError, match=f"{V}.*{V - 2}"):
        distill_loss(**args | dict(teacher_head=args["teacher_head"][:-2]))


@pytest.mark.parametrize(
    "change",
    [
        dict(weights=torch.ones(N + 1)),
        dict(weights=torch.ones(N, dtype=torch.int64)),
        dict(divergence="kl"),
        dict(top_k=0),
        dict(temperature=0.0),
        dict(chunk_size=0),
        dict(is_clip=2.0),
        dict(sampled_ids=torch.zeros(N)),
        dict(teacher_hidden=torch.ones(N - 1, D // 2).double()),
        dict(student_hidden=torch.ones(N, D + 1)),
        dict(student_hidden=torch.ones(N, D, dtype=torch.float16)),
        dict(student_head=torch.ones(V, D, dtype=torch.int64)),
        dict(teacher_hidden=torch.ones(N, D // 2, dtype=torch.float32)),
        dict(student_hidden=torch.ones(1, N, D)),
        dict(weights=torch.ones(N, device="meta")),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_any_work(distill_loss, change):
    with pytest.raises(ValueError):
        distill_loss(**problem()[0] | change)


def test_a_teacher_is_never_ignored_and_never_missing(implementation):
    args, sampled = problem()
    bare = args | dict(teacher_hidden=None, teacher_head=None)
    for given, divergence in ((args, "nll"), (bare, "jsd")):
        with pytest.raises(ValueError, match="divergence must be one of"):
            implementation.distill_loss(**given, **sampled, divergence=divergence)
    student = {k: args[k] for k in ("student_hidden", "student_head", "weights")}
    for option in (dict(top_k=3), dict(divergence="jsd"), dict(beta=1)):
        with pytest.raises(TypeError):
            implementation.nll_loss(**student, sampled_ids=sampled["sampled_ids"], **option)


class LiveTensors(TorchDispatchMode):
    """Follows every storage an operation returns.

    In bytes: `largest` is the biggest, `peak` the most that was alive at once.
    """

    def __init__(self, *known):
        super().__init__()
        self.known = {x.untyped_storage().data_ptr() for x in known}
        self.live, self.largest, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_flatten(result)[0]:
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in self.known:
                storage = x.untyped_storage()
                self.live[storage._cdata] = (
                    torch.multiprocessing.reductions.StorageWeakRef(storage),
                    storage.nbytes(),
                )
        self.live = {k: v for k, v in self.live.items() if not v[0].expired()}
        self.largest = max([self.largest, *(size for _, size in self.live.values())])
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


@EVERY
@pytest.mark.parametrize("top_k", [None, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", [None, "all"])
def test_nothing_larger_than_a_chunk_of_logits_is_ever_alive(
    distill_loss, divergence, top_k, dtype, head
):
    n, d, v, chunk = 240, 8, 1000, 20  # N x V is twelve chunks, V x D two fifths of one
    args, sampled = problem(n=n, d=d, v=v, dtype=dtype)
    args = {k: x.requires_grad_(k.startswith("student")) for k, x in args.items()}
    inputs = [*args.values(), *sampled.values()]
    if head is not None:
        args = with_heads(args, head)
        inputs += [args["student_head"].bias, args["teacher_head"].bias]
    with LiveTensors(*inputs) as memory:
        distill_loss(
            **args, divergence=divergence, top_k=top_k, chunk_size=chunk, is_clip=2.0, **sampled
        ).loss.backward()
    assert memory.largest == chunk * v * 4
    # against 12 chunks for one matrix of all logits
    assert memory.peak < (7 if head is None else 8) * chunk * v * 4 + 2 * v * d * 4
    with LiveTensors(*inputs) as naive:
        naive_distill_loss(**args, divergence=divergence, top_k=top_k).loss.backward()
    assert naive.largest >= n * v * 4  # the measurement does see what it should


def test_a_bfloat16_head_is_never_copied_to_float32(distill_loss):
    """Per chunk such copies took gigabytes and most of the time: huggingface/trl#6863."""
    d, v = 64, 500
    args, _ = problem(n=8, d=d, v=v, dtype=torch.bfloat16)
    args = {k: x.requires_grad_(k.startswith("student")) for k, x in args.items()}
    with LiveTensors(*args.values()) as memory:
        distill_loss(**args, chunk_size=2).loss.backward()
    gradient, chunk = v * d * 4, 2 * v * 4
    assert memory.largest == gradient and memory.peak < 1.5 * gradient + 8 * chunk


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@EVERY
@pytest.mark.parametrize("top_k", [None, 7])
@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_cuda_agrees_with_the_naive_loss(distill_loss, divergence, top_k, dtype, tolerance):
    torch._dynamo.reset()  # it compiles only so many kinds of one function
    fast_loss._compiled.cache_clear()
    args, sampled = problem(n=65, d=32, v=500, dtype=dtype, scale=0.6, device="cuda")
    options = dict(divergence=divergence, top_k=top_k, temperature=0.7, is_clip=1.5, **sampled)
    assert_same(
        with_gradients(distill_loss, args, chunk_size=16, **options),
        with_gradients(naive_distill_loss, args, **options),
        rtol=tolerance,
        atol=tolerance / 20,
    )


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize(
    "divergence, top_k", [("jsd", None), ("forward", None), ("reverse", 7), ("nll", None)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("plain_head", [True, False])
def test_what_a_gpu_compiles_computes_the_same(divergence, top_k, dtype, plain_head):
    """The code is the GPU's, only compiled for a CPU."""
    torch._dynamo.reset()
    fast_loss._compiled.cache_clear()
    generator = torch.Generator().manual_seed(0)
    for n in (20, 7, 1):  # the last chunks of a batch are shorter
        sides = 1 if divergence == "nll" else 2
        products = [torch.randn(n, 300, generator=generator).to(dtype) for _ in range(sides)]
        outputs = [(None, 1 / 0.7, None)] * sides
        if not plain_head:
            outputs = [(torch.randn(300, generator=generator), 1.5, 3.0) for _ in range(sides)]
        tokens = [
            torch.rand(n, generator=generator),
            torch.randint(300, (n,), generator=generator),
            -5 * torch.rand(n, generator=generator),
        ]
        options = (divergence, top_k, 2.0)
        eager = [x.clone().float() for x in products]
        values, weights = fast_loss._differentiate_in_place(eager, outputs, tokens, options, None)
        with warnings.catch_warnings(action="error"):  # none of falling back
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            copies = [x.clone() for x in products]
            found = fast_loss._compiled()(copies, outputs, tokens, options, dtype)
        torch.testing.assert_close(found[0], values, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[1], weights, rtol=1e-5, atol=1e-6)
        assert found[2].dtype == dtype
        rtol = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(found[2].float(), eager[0], rtol=rtol, atol=1e-7)


# Heads with a scale, a cap or a bias

HEADS = {
    "bias": dict(bias=True),
    "scale": dict(scale=0.3),
    "cap": dict(cap=2.0),
    "all": dict(bias=True, scale=1.7, cap=3.0),
}
EVERY_HEAD = pytest.mark.parametrize("head", HEADS)
WHAT = pytest.mark.parametrize(
    "divergence, top_k", [*((d, k) for d in DIVERGENCES for k in (None, 7)), ("nll", None)]
)


def with_heads(args, student, teacher=None):
    """The same arguments with Heads, each of a kind of HEADS, in place of the matrices."""
    args = dict(args)
    for side, kind in (("student", student), ("teacher", teacher or student)):
        matrix, options = args[f"{side}_head"], dict(HEADS[kind])
        if options.pop("bias", False):
            generator = torch.Generator().manual_seed(len(side))
            bias = torch.randn(len(matrix), generator=generator, dtype=torch.float64)
            options["bias"] = bias.to(matrix)
        args[f"{side}_head"] = Head(matrix, **options)
    return args


def everything(loss, args, divergence, **options):
    """All outputs and gradients by name; divergence "nll" calls nll_loss, which knows no top_k."""
    head, hidden = as_head(args["student_head"]), args["student_hidden"].clone().requires_grad_()
    weight = head.weight.detach().clone().requires_grad_()
    bias = None if head.bias is None else head.bias.clone().requires_grad_()
    student = dict(student_hidden=hidden, student_head=replace(head, weight=weight, bias=bias))
    if divergence == "nll":
        options.pop("top_k", None)
        out = loss.nll_loss(**student, weights=args["weights"], **options)
    else:
        out = loss.distill_loss(**args | student, divergence=divergence, **options)
    out.loss.backward()
    found = dict(vars(out), hidden=hidden.grad, weight=weight.grad)
    return found if bias is None else found | dict(bias=bias.grad)


def assert_all_close(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, x in found.items():
        assert (x is None) == (expected[name] is None), name
        if x is not None:
            message = f"{name}: {{}}".format
            torch.testing.assert_close(x, expected[name], **tolerance, msg=message)


@EVERY_HEAD
@WHAT
def test_value_and_gradients_of_any_head_are_the_naive_ones(
    implementation, divergence, top_k, head
):
    args, sampled = problem()
    args = with_heads(args, head)
    options = dict(top_k=top_k, temperature=0.7, is_clip=1.5, **sampled)
    found = everything(implementation, args, divergence, chunk_size=4, **options)
    expected = everything(Naive, args, divergence, **options)
    assert ("bias" in found) == (head in ("bias", "all"))
    assert_all_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("student, teacher", [("cap", "bias"), ("bias", "scale"), ("scale", "cap")])
@pytest.mark.parametrize("top_k", [None, 7])
def test_student_and_teacher_may_have_heads_of_different_kinds(
    implementation, student, teacher, top_k
):
    args = with_heads(problem()[0], student, teacher)
    found = everything(implementation, args, "jsd", top_k=top_k)
    assert_all_close(found, everything(Naive, args, "jsd", top_k=top_k), rtol=1e-9, atol=1e-12)
    plain_teacher = args | dict(teacher_head=args["teacher_head"].weight)
    found = everything(implementation, plain_teacher, "jsd", top_k=top_k)
    expected = everything(Naive, plain_teacher, "jsd", top_k=top_k)
    assert_all_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.bfloat16, 1.6e-2)])
@EVERY_HEAD
@WHAT
def test_heads_agree_with_the_naive_loss_in_training_dtypes(
    implementation, dtype, tolerance, divergence, top_k, head
):
    args, sampled = problem(dtype=dtype, scale=0.6)
    args, options = with_heads(args, head), dict(top_k=top_k, temperature=1.3, **sampled)
    found = everything(implementation, args, divergence, chunk_size=4, is_clip=1.5, **options)
    expected = everything(Naive, args, divergence, is_clip=1.5, **options)
    assert_all_close(found, expected, rtol=tolerance, atol=tolerance / 20)


@EVERY_HEAD
@WHAT
def test_gradients_of_any_head_are_the_numeric_ones(implementation, divergence, top_k, head):
    """Central differences in float64, for hidden states, weight and bias."""
    args, sampled = problem(n=3, d=2, v=7)
    args = with_heads(args, head)
    options = dict(top_k=3 if top_k else None, temperature=0.7)
    if divergence == "nll":
        options["sampled_ids"] = sampled["sampled_ids"]
    found = everything(implementation, args, divergence, **options)
    step = 1e-6
    tensors = dict(hidden=args["student_hidden"], weight=args["student_head"].weight)
    if args["student_head"].bias is not None:
        tensors["bias"] = args["student_head"].bias
    for name, x in tensors.items():
        numeric = torch.zeros_like(x)
        for i in range(x.numel()):
            value = x.view(-1)[i].item()
            losses = []
            for sign in (1, -1):
                x.view(-1)[i] = value + sign * step
                losses.append(everything(implementation, args, divergence, **options)["loss"])
            x.view(-1)[i] = value
            numeric.view(-1)[i] = (losses[0] - losses[1]).detach() / (2 * step)
        assert found[name].abs().max() > 1e-3
        torch.testing.assert_close(found[name], numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("top_k", [None, 7])
def test_a_head_that_is_only_a_matrix_gives_the_matrix_bits(implementation, top_k):
    args, sampled = problem(dtype=torch.float32)
    matrix = everything(implementation, args, "jsd", top_k=top_k, **sampled)
    heads = {f"{side}_head": Head(args[f"{side}_head"]) for side in ("student", "teacher")}
    same = everything(implementation, args | heads, "jsd", top_k=top_k, **sampled)
    assert_all_close(same, matrix, rtol=0, atol=0)


@pytest.mark.parametrize("head", ["bias", "all"])
def test_a_slice_of_a_head_is_the_head_of_these_tokens(implementation, head):
    args = with_heads(problem()[0], head)
    whole, part = args["student_head"], args["student_head"][: V - 9]
    hidden = args["student_hidden"]
    torch.testing.assert_close(part.logits(hidden), whole.logits(hidden)[:, : V - 9])
    args |= dict(student_head=part, teacher_head=args["teacher_head"][: V - 9])
    found, expected = (everything(x, args, "jsd") for x in (implementation, Naive))
    assert_all_close(found, expected, rtol=1e-9, atol=1e-12)


def test_saturated_caps_are_finite_and_pass_no_gradient(implementation):
    args, sampled = problem(dtype=torch.float32, scale=100.0)
    args = with_heads(args, "cap")
    for divergence, top_k in (("jsd", None), ("forward", 7), ("reverse", None), ("nll", None)):
        found = everything(implementation, args, divergence, top_k=top_k, **sampled)
        assert all(x is None or torch.isfinite(x).all() for x in found.values())
        assert not found["hidden"][0].any()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(bias=torch.zeros(V - 1).double()), "student_head.bias"),
        (dict(bias=torch.zeros(V, dtype=torch.int64)), "student_head.bias"),
        (dict(bias=torch.zeros(V, device="meta").double()), "student_head.bias"),
        (dict(cap=0.0), "cap"),
        (dict(cap=math.inf), "cap"),
        (dict(scale=math.nan), "scale"),
    ],
)
def test_heads_that_do_not_fit_are_refused_with_their_name(distill_loss, change, message):
    args, _ = problem()
    with pytest.raises(ValueError, match=message):
        distill_loss(**args | dict(student_head=Head(args["student_head"], **change)))


def tiny_model(family):
    """A tiny random model of a family, and the Head that its logits should be."""
    import transformers

    sizes = dict(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    own = {
        "Granite": dict(logits_scaling=8.0),
        "Cohere": dict(logit_scale=0.25),
        "Gemma2": dict(final_logit_softcapping=3.0, head_dim=8),
        "Phi": {},
        "Llama": {},
    }[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**sizes, **own)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    output = model.get_output_embeddings()
    with torch.no_grad():
        output.weight.normal_()  # logits of several units, so that a cap shows
        if output.bias is not None:
            output.bias.normal_()
    head = {
        "Granite": Head(output.weight, scale=1 / 8.0),
        "Cohere": Head(output.weight, scale=0.25),
        "Gemma2": Head(output.weight, cap=3.0),
        "Phi": Head(output.weight, bias=output.bias),
        "Llama": Head(output.weight),
    }[family]
    return model, head


@pytest.mark.parametrize("family", ["Granite", "Cohere", "Gemma2", "Phi", "Llama"])
def test_a_head_gives_the_logits_of_the_models_that_have_such_heads(implementation, family):
    """Against transformers' own forward pass: the logits, the NLL and its gradients."""
    model, head = tiny_model(family)
    ids = torch.arange(1, 13).reshape(2, 6)
    logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
    torch.testing.assert_close(head.logits(hidden), logits, rtol=1e-5, atol=1e-5)
    assert logits.abs().max() > 0.5
    if family != "Llama":
        plain = hidden @ head.weight.T
        assert (plain - logits).abs().max() > 0.1 * logits.abs().max()
    targets = torch.arange(12)
    expected = torch.nn.functional.cross_entropy(logits, targets)
    inputs = [head.weight, *([] if head.bias is None else [head.bias])]
    gradients = torch.autograd.grad(expected, inputs)
    out = implementation.nll_loss(hidden.detach(), head, targets, torch.full((12,), 1 / 12))
    torch.testing.assert_close(out.loss, expected, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(out.loss, inputs)
    if model.config.tie_word_embeddings:  # the model's own gradient includes the embedding's
        inputs_of_head = torch.nn.functional.cross_entropy(head.logits(hidden.detach()), targets)
        gradients = torch.autograd.grad(inputs_of_head, inputs)
    torch.testing.assert_close(found, gradients, rtol=1e-4, atol=1e-6)


# The plain loss is the oracle of the fast one


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("head", [None, *HEADS])
@WHAT
def test_plain_and_fast_loss_give_the_same_values_and_gradients(divergence, top_k, head, dtype):
    args, sampled = problem(n=40, d=24, v=700, dtype=dtype, scale=0.5)
    args = args if head is None else with_heads(args, head)
    options = dict(top_k=top_k, temperature=1.1, is_clip=1.5, **sampled)
    plain = everything(plain_loss, args, divergence, **options)
    fast = everything(fast_loss, args, divergence, **options)
    assert_all_close(fast, plain, rtol=1e-6, atol=1e-6 if dtype == torch.float32 else 1e-12)


def test_plain_and_fast_loss_take_the_same_arguments():
    for name in ("distill_loss", "nll_loss"):
        plain, fast = (inspect.signature(getattr(x, name)) for x in (plain_loss, fast_loss))
        assert plain == fast
    naive, plain = map(inspect.signature, (naive_distill_loss, plain_loss.distill_loss))
    assert [(x.name, x.default) for x in naive.parameters.values()] == [
        (x.name, x.default) for x in plain.parameters.values()
    ]
