"""Tests of rollout.py and runtime/fast_rollout.py on tiny random models.

Most properties are tested of both samplers (fixtures `module` and `generate`); then one is held
against the other; the last parts test what only the fast one has. `score` is the trainer's view:
one forward pass over prompt and completion, no cache, no padding. Models are float64 where tokens
must not flip by rounding.
"""

import contextlib
import gc
import inspect
import os
import random
import subprocess
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.utils.prune
import transformers
from conftest import ROOT
from tools import random_model

import rollout
from rollout import invert_cdf, keep_top_p, plan_batches, uniform_table
from runtime import fast_rollout

V = 97
COMMON = dict(
    vocab_size=V,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=2,
)
SLIDING = dict(sliding_window=6, layer_types=["sliding_attention", "full_attention"])
KINDS = {
    "llama": ("LlamaConfig", {}),
    "gpt2": ("GPT2Config", {}),
    "qwen3": ("Qwen3Config", dict(head_dim=8)),
    "nemotron": ("NemotronConfig", {}),  # passes no further arguments to its attention
    "qwen2_sliding": ("Qwen2Config", dict(use_sliding_window=True, **SLIDING)),
    "mistral_all_sliding": ("MistralConfig", dict(sliding_window=6)),
    "gemma3": ("Gemma3TextConfig", dict(head_dim=8, **SLIDING)),
    "eager": ("LlamaConfig", dict(attn_implementation="eager")),
    "hybrid": (
        "Lfm2Config",
        dict(layer_types=["conv", "full_attention", "conv"], num_hidden_layers=3),
    ),
    "mamba": ("MambaConfig", dict(state_size=4)),  # a cache with a name of its own
    "minimax": (  # a cache class of its own
        "MiniMaxConfig",
        dict(layer_types=["linear_attention", "full_attention"])
        | dict(head_dim=8, block_size=4, num_local_experts=2, sliding_window=None),
    ),
    "bamba": (  # its own positions are wrong from the second token on
        "BambaConfig",
        dict(attn_layer_indices=[1], mamba_d_state=4, mamba_n_heads=8, mamba_d_head=8)
        | dict(mamba_chunk_size=4),
    ),
}
DRAW = random.Random(5)
# Tokens that differ: in a prompt of one repeated token nothing shows on which side the padding is.
PROMPTS = [[DRAW.randrange(2, V) for _ in range(n)] for n in (5, 14, 3, 9, 9)]
PACKS = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()

needs_packing = pytest.mark.skipif(not PACKS, reason="this build of torch lacks MKL or oneDNN")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture(params=[rollout, fast_rollout], ids=["plain", "fast"])
def module(request):
    return request.param


@pytest.fixture
def generate(module):
    return module.generate


def tiny(kind="llama", dtype=torch.float64, spread=3.0, **changes):
    name, extra = KINDS[kind]
    config = getattr(transformers, name)(**{**COMMON, **extra, **changes})
    return random_model(config, dtype=dtype, spread=spread)


def exact_dtype(kind):
    """float64, but for eager attention, whose masks overflow to NaN there, and grouped experts."""
    return torch.float32 if kind in ("eager", "minimax") else torch.float64


@torch.no_grad()
def score(model, r, temperature=1.0):
    ids = torch.tensor([r.prompt_ids + r.ids], device=model.device)
    logits = model(ids).logits[0].double() / temperature
    logprobs = logits.log_softmax(-1)[len(r.prompt_ids) - 1 : -1].cpu()
    return logprobs.gather(1, torch.tensor(r.ids)[:, None])[:, 0]


def flat(groups):
    return [r for group in groups for r in group]


def completions(groups):
    return [(r.ids, r.stopped) for r in flat(groups)]


def all_logprobs(groups):
    return torch.tensor([x for r in flat(groups) for x in r.logprobs], dtype=torch.float64)


# --- both samplers ---


@pytest.mark.parametrize("kind, temperature", [*((kind, 0.7) for kind in KINDS), ("llama", 1.0)])
def test_sampler_logprobs_are_the_trainers_under_left_padding(generate, kind, temperature):
    model = tiny(kind, exact_dtype(kind))
    options = dict(max_new_tokens=12, stop_ids=range(2, 10), temperature=temperature)
    groups = generate(model, PROMPTS, 3, **options)
    assert [[r.prompt_ids for r in group] for group in groups] == [[p] * 3 for p in PROMPTS]
    assert len({len(r.ids) for r in flat(groups)}) > 3  # rows left the batch at different times
    for r in flat(groups):
        assert len(r.logprobs) == len(r.ids)
        logprobs = torch.tensor(r.logprobs).double()
        torch.testing.assert_close(logprobs, score(model, r, temperature), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2_sliding", "hybrid"])
def test_rollout_does_not_depend_on_its_batch(generate, kind):
    model, keys = tiny(kind), [40, 41, 42, 43, 44]

    def sample(order, k, max_rows, new=10):
        groups = generate(
            model,
            [PROMPTS[i] for i in order],
            k,
            max_new_tokens=new,
            stop_ids=[3, 4, 5, 6],
            seed=7,
            keys=[keys[i] for i in order],
            max_rows=max_rows,
        )
        pairs = zip(order, groups, strict=True)
        return {(i, j): (r.ids, r.stopped) for i, group in pairs for j, r in enumerate(group)}

    reference = sample(range(5), 4, None)
    assert len({tuple(ids) for ids, _ in reference.values()}) == len(reference)
    for order, k, max_rows in [
        ((4, 2, 0, 3, 1), 4, None),
        ((1, 3), 4, 1),
        (range(5), 4, 3),
        (range(5), 6, 7),
        ([2], 2, None),
    ]:
        for name, value in sample(order, k, max_rows).items():
            assert name[1] >= 4 or value == reference[name], (order, k, max_rows, name)
    longer = sample(range(5), 4, None, new=15)  # nor on the length limit, up to the limit
    for name, (ids, _) in longer.items():
        assert ids[:10] == reference[name][0]


def test_seed_and_key_change_the_rollouts(generate):
    model = tiny()

    def sample(**names):
        return completions(generate(model, PROMPTS[:1], 4, max_new_tokens=8, stop_ids=[], **names))

    assert sample(seed=1) == sample(seed=1) != sample(seed=2)
    assert sample(keys=[0]) == sample() != sample(keys=[5])
    assert sample(seed=1, keys=[0]) != sample(seed=0, keys=[1])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_first_token_follows_the_softmax(generate, temperature):
    model, n = tiny(spread=8.0), 20000
    (group,) = generate(
        model, PROMPTS[:1], n, max_new_tokens=1, stop_ids=[], temperature=temperature
    )
    with torch.no_grad():
        logits = model(torch.tensor(PROMPTS[:1])).logits[0, -1]
    expected = n * (logits / temperature).softmax(-1)
    counts = torch.bincount(torch.tensor([r.ids[0] for r in group]), minlength=V)
    cell = torch.where(expected < 5, 0, torch.arange(V) + 1)  # rare tokens share one cell
    cell = cell.unique(return_inverse=True)[1]
    zeros = torch.zeros(V, dtype=torch.float64)
    counts = zeros.index_add(0, cell, counts.double())
    expected = zeros.index_add(0, cell, expected.double())
    counts, expected = counts[expected > 0], expected[expected > 0]
    chi2, freedom = ((counts - expected) ** 2 / expected).sum().item(), len(counts) - 1
    assert freedom > 50 and expected.max() > 20 * expected.min()
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5  # by chance 1 in 20,000; the seed is fixed


def test_tokens_of_one_rollout_are_independent(generate):
    """The same uniform at every position would make the pairs of a flat model equal."""
    model = tiny(spread=0.0)
    (group,) = generate(model, PROMPTS[:1], 2000, max_new_tokens=2, stop_ids=[])
    equal = sum(r.ids[0] == r.ids[1] for r in group)
    assert 3 <= equal <= 45  # 2000 / 97 = 20.6, sd 4.5


def test_generation_config_is_ignored(generate):
    """Hub models ship temperature, top-k and repetition penalties for chatting.

    top-k 50 is the default of `model.generate` itself.
    """
    model = tiny(spread=0.0)
    model.generation_config.update(
        top_k=5, temperature=0.1, do_sample=False, max_length=3, eos_token_id=[0], min_p=0.5
    )
    model.config.use_cache = False
    groups = generate(model, PROMPTS[:1], 40, max_new_tokens=40, stop_ids=[])
    assert len({i for r in flat(groups) for i in r.ids}) == V


def test_stop_token_is_kept_when_pad_equals_eos(generate):
    model = tiny(pad_token_id=1)
    assert model.config.pad_token_id == model.config.eos_token_id == 1
    prompts = [[1, 1, 7], [8, 1, 9, 10, 11]]  # pad ids inside a prompt are tokens like any other
    rollouts = flat(generate(model, prompts, 100, max_new_tokens=20, stop_ids=[1]))
    stopped = [r for r in rollouts if r.stopped]
    assert 5 < len(stopped) < len(rollouts)
    for r in rollouts:
        assert (r.ids[-1] == 1) == r.stopped and 1 not in r.ids[:-1]
        assert len(r.logprobs) == len(r.ids) and (r.stopped or len(r.ids) == 20)
    for r in rollouts[::20]:
        logprobs = torch.tensor(r.logprobs).double()
        torch.testing.assert_close(logprobs, score(model, r), atol=1e-5, rtol=0)


def test_every_stop_id_stops(generate):
    rollouts = flat(generate(tiny(), PROMPTS, 40, max_new_tokens=20, stop_ids={3, 50, 96}))
    assert {r.ids[-1] for r in rollouts if r.stopped} == {3, 50, 96}
    assert not any({3, 50, 96} & set(r.ids[:-1]) for r in rollouts)


def test_truncated_rollout_gets_no_stop_token(generate):
    for r in flat(generate(tiny(), PROMPTS, 4, max_new_tokens=6, stop_ids=[])):
        assert not r.stopped and len(r.ids) == 6


def test_stop_token_exactly_at_the_limit_is_a_stop(generate):
    stop_ids = [30, 31, 32, 33]
    (group,) = generate(tiny(), PROMPTS[:1], 200, max_new_tokens=3, stop_ids=stop_ids)
    last = [r for r in group if len(r.ids) == 3 and r.ids[-1] in stop_ids]
    assert last and all(r.stopped for r in last)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_greedy_is_model_generate_and_logprobs_are_at_temperature_one(generate, kind):
    model = tiny(kind)
    groups = generate(model, PROMPTS, 2, max_new_tokens=12, stop_ids=[1], temperature=0)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        options = dict(do_sample=False, max_new_tokens=12, eos_token_id=1, pad_token_id=0)
        out = model.generate(torch.tensor([prompt]), **options)
        assert group[0].ids == group[1].ids == out[0, len(prompt) :].tolist()
        logprobs = torch.tensor(group[0].logprobs).double()
        torch.testing.assert_close(logprobs, score(model, group[0]), atol=1e-5, rtol=0)


def test_dropout_is_off_and_every_mode_is_restored(generate):
    model = tiny(attention_dropout=0.9, kind="llama")
    quiet = generate(model, PROMPTS, 2, max_new_tokens=8, stop_ids=[])
    model.train()
    model.model.layers[1].eval()  # a frozen part stays frozen
    modes = [part.training for part in model.modules()]
    assert generate(model, PROMPTS, 2, max_new_tokens=8, stop_ids=[]) == quiet
    assert [part.training for part in model.modules()] == modes

    def fail(ended):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, PROMPTS, 2, max_new_tokens=8, stop_ids=[], progress=fail)
    assert [part.training for part in model.modules()] == modes


def test_training_works_after_sampling(generate):
    """A tensor that a module makes while sampling and keeps may enter a later backward pass.

    It could not if it came from inference mode.
    """
    model, kept = tiny(), []

    def scale(layer, args):
        kept.append(kept[0] if kept else torch.full((32,), 2.0, dtype=torch.float64))
        return (args[0] * kept[0],)

    model.lm_head.register_forward_pre_hook(scale)
    first, *_ = flat(generate(model, PROMPTS, 2, max_new_tokens=12, stop_ids=[]))
    assert all(p.grad is None for p in model.parameters())
    model.train()
    model(torch.tensor([first.prompt_ids + first.ids])).logits.sum().backward()
    assert model.lm_head.weight.grad is not None


def test_top_p_cuts_the_tail_and_logprobs_stay_those_of_the_full_softmax(generate):
    model = tiny(spread=2.0)
    options = dict(max_new_tokens=4, stop_ids=[], temperature=0.7, top_p=0.5)
    groups = generate(model, PROMPTS, 40, **options)
    for r in flat(groups)[::8]:
        logprobs = torch.tensor(r.logprobs).double()
        torch.testing.assert_close(logprobs, score(model, r, 0.7), atol=1e-5, rtol=0)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0, -1]
        probs, order = (logits / 0.7).softmax(-1).sort(descending=True)
        nucleus = order[: int((probs.cumsum(-1) < 0.5).sum()) + 1].tolist()
        assert {r.ids[0] for r in group} <= set(nucleus)


def test_each_prompt_is_read_once_and_cost_follows_the_living(generate):
    model, calls = tiny(), []

    def note(layer, args, kwargs):
        calls.append(tuple(kwargs["input_ids"].shape))

    model.register_forward_pre_hook(note, with_kwargs=True)
    rollouts = flat(generate(model, PROMPTS, 8, max_new_tokens=30, stop_ids=range(2, 12)))
    assert calls[0] == (5, 14) and all(columns == 1 for _, columns in calls[1:])
    decoded, needed = sum(rows for rows, _ in calls[1:]), sum(len(r.ids) - 1 for r in rollouts)
    assert needed <= decoded < 1.15 * needed + 8
    assert len(calls) == max(len(r.ids) for r in rollouts)


def test_head_is_computed_for_one_token_of_each_row(generate):
    """Logits of whole prompts would take more memory than anything else."""
    model, columns = tiny(), []
    model.lm_head.register_forward_pre_hook(lambda head, args: columns.append(args[0].shape[1]))
    generate(model, PROMPTS, 2, max_new_tokens=4, stop_ids=[])
    assert columns == [1] * 4


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2_sliding"])
def test_prefill_in_slices_gives_the_same_rollouts(module, generate, kind, monkeypatch):
    """No forward pass has more than PREFILL_TOKENS tokens: it bounds the memory."""
    model, sizes, options = tiny(kind), [], dict(max_new_tokens=8, stop_ids=[3])

    def note(layer, args, kwargs):
        sizes.append(kwargs["input_ids"].numel())

    model.register_forward_pre_hook(note, with_kwargs=True)
    whole = completions(generate(model, PROMPTS, 3, **options))
    assert max(sizes) == 5 * 14
    sizes.clear()
    monkeypatch.setattr(module, "PREFILL_TOKENS", 20)
    assert completions(generate(model, PROMPTS, 3, **options)) == whole
    assert max(sizes) <= 20


def test_progress_counts_every_rollout_once(generate):
    many = range(2, 12)
    for max_rows, stop_ids in ((None, many), (4, many), (None, []), (None, range(V))):
        told = []
        options = dict(max_new_tokens=10, stop_ids=stop_ids, max_rows=max_rows)
        generate(tiny(), PROMPTS, 4, progress=told.append, **options)
        assert sum(told) == 20


def test_logprobs_are_near_the_trainers_in_bfloat16_and_under_autocast(generate):
    model = tiny(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        for r in flat(generate(model, PROMPTS, 3, max_new_tokens=8, stop_ids=[3])):
            assert (torch.tensor(r.logprobs).double() - score(model, r)).abs().max() < 0.2
    for r in flat(generate(model.bfloat16(), PROMPTS, 3, max_new_tokens=8, stop_ids=[3])):
        assert (torch.tensor(r.logprobs).double() - score(model, r)).abs().max() < 0.2


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(prompts=[[5], []]), "prompt 1 is empty"),
        (dict(prompts=[[5, V]]), "prompt 0 has ids outside the vocabulary"),
        (dict(prompts=[[5, -1]]), "prompt 0 has ids outside the vocabulary"),
        (
            dict(prompts=[[5], [4] * 60]),
            "prompt 1: 60 \\+ 5 new tokens exceed the model's 64 positions",
        ),
        (dict(k=0), "k must be at least 1"),
        (dict(max_new_tokens=0), "max_new_tokens must be at least 1"),
        (dict(max_rows=0), "max_rows must be at least 1"),
        (dict(temperature=-1.0), "temperature must be"),
        (dict(top_p=0.0), "top_p must be"),
        (dict(keys=[1, 2]), "2 keys for 1 prompts"),
        (dict(stop_ids=[V]), "stop ids"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(generate, change, message):
    arguments = dict(prompts=[[5, 6]], k=2, max_new_tokens=5, stop_ids=[1]) | change
    model = tiny("gpt2")
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=message):
        generate(model, arguments.pop("prompts"), arguments.pop("k"), **arguments)


def test_rotary_models_may_pass_their_trained_length(generate):
    (group,) = generate(tiny(), [[5] * 60], 1, max_new_tokens=10, stop_ids=[])
    assert len(group[0].ids) == 10


def test_no_prompts_give_no_groups(generate):
    assert generate(tiny(), [], 4, max_new_tokens=5, stop_ids=[1]) == []


def test_models_with_a_recurrent_state_get_no_padding(generate):
    model, masks = tiny("hybrid"), []

    def note(layer, args, kwargs):
        masks.append(kwargs["attention_mask"])

    model.register_forward_pre_hook(note, with_kwargs=True)
    generate(model, PROMPTS, 2, max_new_tokens=3, stop_ids=[])
    assert len(masks) == 4 * 3  # four lengths, three passes each
    assert not any(mask is not None for mask in masks)


def test_models_without_a_cache_are_refused(generate):
    torch.manual_seed(0)
    config = transformers.OpenAIGPTConfig(vocab_size=V, n_embd=16, n_layer=1, n_head=2)
    model = transformers.OpenAIGPTLMHeadModel(config)
    with pytest.raises(ValueError, match="keeps no past_key_values"):
        generate(model, [[5, 6]], 2, max_new_tokens=3, stop_ids=[])


def test_models_with_a_cache_class_of_their_own_are_refused(generate, monkeypatch):
    """Its rows might hold state that reordering does not copy."""
    model = tiny("hybrid")

    class OwnCache(transformers.DynamicCache):
        pass

    forward = model.forward

    name = rollout.cache_argument(model)

    def with_own_cache(input_ids=None, past_key_values=None, **options):
        return forward(input_ids, **{name: OwnCache(config=model.config)}, **options)

    monkeypatch.setattr(model, "forward", with_own_cache)
    with pytest.raises(ValueError, match="keeps its state in OwnCache"):
        generate(model, [[5, 6]], 2, max_new_tokens=3, stop_ids=[])


def test_logits_that_are_not_finite_are_an_error(generate):
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(FloatingPointError):
        generate(model, PROMPTS, 2, max_new_tokens=3, stop_ids=[])


def test_rows_in_memory_counts_the_cache_and_the_logits_of_a_row(monkeypatch):
    model = tiny(dtype=torch.float32)
    per_token = 2 * 2 * 2 * 8 * 4  # keys and values, 2 layers, 2 heads of size 8, 4 bytes
    per_row = 10 * per_token + 16 * V
    for memory, rows in ((7 * per_row, 7), (8 * per_row - 1, 7), (1, 1)):
        monkeypatch.setattr(fast_rollout, "CPU_MEMORY", memory)
        assert fast_rollout.rows_in_memory(model, 10) == rows


# --- what both use ---


def test_top_p_keeps_the_token_that_crosses_the_threshold():
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.05, 0.9, 0.05, 0.0]])
    for top_p, first in ((0.65, [0, 0.4, 0, 0.3]), (0.71, [0, 0.4, 0.2, 0.3])):
        expected = torch.tensor([first, [0, 0.9, 0, 0]])
        torch.testing.assert_close(keep_top_p(probs, top_p), expected)


@pytest.mark.parametrize("size", [5, 128, 129, 1000, 151_936])
def test_zero_probability_is_never_chosen(size):
    """Running sums in float32 end below or above 1 at such sizes.

    u at both ends of its range must stay inside.
    """
    generator = torch.Generator().manual_seed(size)
    weights = torch.rand(6, size, generator=generator)
    weights *= torch.rand(6, size, generator=generator) < 0.5
    weights[:, :2], weights[:, -2:], weights[:, 2] = 0, 0, 1
    weights[5], weights[5, 2] = 0, 1e-30  # everything in one token
    weights /= weights.sum(-1, keepdim=True)
    total, upto = weights.double().sum(-1, keepdim=True), weights.double().cumsum(-1)
    for u in (0.0, 2.0**-52, 0.25, 0.999999, 1 - 2.0**-52):
        ids = invert_cdf(weights, torch.full((6,), u, dtype=torch.float64))[:, None]
        assert (weights.gather(1, ids) > 0).all()
        exact = torch.searchsorted(upto, u * total, right=True)
        above = upto.gather(1, ids) - u * total
        ends = u in (0.0, 1 - 2.0**-52)
        assert (ends and (ids - exact).abs().max() == 0) or above.abs().max() < 1.0
        below = above - weights.gather(1, ids)  # u lies inside the token's own interval
        assert (above > -1e-6).all() and (below < 1e-6).all()


def test_uniforms_are_uniform_and_do_not_depend_on_the_length():
    names = [(seed, key, j) for seed in (0, -1, 2**80) for key in range(40) for j in range(4)]
    table = uniform_table(names, 500)
    assert table.shape == (500, len(names)) and table.dtype == torch.float64
    assert torch.equal(uniform_table(names[7:9], 20), table[:20, 7:9])
    assert table.min() >= 0 and table.max() < 1
    assert abs(table.mean().item() - 0.5) < 0.004 and abs(table.var().item() - 1 / 12) < 0.002
    counts = torch.histc(table, 100, 0, 1)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 99 + 4 * 198**0.5
    centred = table - 0.5
    n = table.numel() ** 0.5
    assert (centred[1:] * centred[:-1]).mean().abs() * 12 < 4 / n  # neighbours in time
    assert (centred[:, 1:] * centred[:, :-1]).mean().abs() * 12 < 4 / n  # and in the group
    assert len(table.unique()) == table.numel()


def test_uniforms_of_known_seeds(monkeypatch):
    """SplitMix64's test vector from its author: what it gives from state 1234567."""
    vector = (6457827717110365317, 3203168211198807973, 9817491932198370423)
    digest = SimpleNamespace(digest=lambda: (1234567).to_bytes(8, "little"))
    monkeypatch.setattr(rollout.hashlib, "blake2b", lambda *args, **options: digest)
    table = uniform_table([(0, 0, 0)], 3)
    assert [int(u * 2**52) for u in table[:, 0].tolist()] == [x >> 12 for x in vector]


def test_batches_are_full_and_hold_everything_once():
    prompts = [[0] * n for n in (3, 9, 4, 9, 1)]
    for k, max_rows in ((4, 8), (4, 3), (1, 2), (5, 100), (2, 1)):
        batches = plan_batches(prompts, k, max_rows)
        pairs = [(p, j) for batch in batches for p, js in batch for j in js]
        assert sorted(pairs) == [(p, j) for p in range(5) for j in range(k)]
        assert all(sum(len(js) for _, js in batch) <= max_rows for batch in batches)
        lengths = [len(prompts[p]) for batch in batches for p, _ in batch]
        assert lengths == sorted(lengths, reverse=True)
    for batch in plan_batches(prompts, 4, 100, same_length=True):
        assert len({len(prompts[p]) for p, _ in batch}) == 1


# --- one against the other ---


def assert_same(found, expected, atol=1e-12):
    assert completions(found) == completions(expected)
    assert [r.prompt_ids for r in flat(found)] == [r.prompt_ids for r in flat(expected)]
    torch.testing.assert_close(all_logprobs(found), all_logprobs(expected), atol=atol, rtol=0)


CHOICES = {
    "softmax": dict(),
    "greedy": dict(temperature=0),
    "top-p": dict(temperature=0.7, top_p=0.6),
    "small batches": dict(max_rows=7, seed=5, keys=[9, 8, 7, 6, 5]),
}
# how a token is chosen does not depend on the model's kind: with padding and without it suffice
EVERY_CHOICE = ("llama", "hybrid")


@pytest.mark.parametrize(
    "kind, choice",
    [
        (kind, choice)
        for kind in KINDS
        for choice in CHOICES
        if kind in EVERY_CHOICE or choice in ("softmax", "small batches")
    ],
)
def test_fast_sampler_gives_the_rollouts_of_the_plain_one(kind, choice):
    model = tiny(kind, exact_dtype(kind))
    options = dict(max_new_tokens=20, stop_ids=range(2, 20)) | CHOICES[choice]
    expected = rollout.generate(model, PROMPTS, 4, **options)
    assert len({len(r.ids) for r in flat(expected)}) > 1  # some rows left, others stayed
    found = fast_rollout.generate(model, PROMPTS, 4, **options)
    assert_same(found, expected, 1e-12 if exact_dtype(kind) == torch.float64 else 1e-5)


@needs_packing
def test_fast_sampler_gives_the_rollouts_of_the_plain_one_with_packed_float32_weights():
    model, options = tiny(dtype=torch.float32), dict(max_new_tokens=20, stop_ids=range(2, 9))
    expected = rollout.generate(model, PROMPTS, 4, **options)
    assert_same(fast_rollout.generate(model, PROMPTS, 4, **options), expected, 1e-5)


def test_both_samplers_have_the_same_signature():
    assert inspect.signature(rollout.generate) == inspect.signature(fast_rollout.generate)
    assert fast_rollout.Rollout is rollout.Rollout


# --- the fast sampler alone: CPU ---


def test_rare_stop_checks_give_the_same_rollouts(monkeypatch):
    """On a GPU dead rows go on for a few tokens until the next check; those tokens are dropped."""
    model, original = tiny(), fast_rollout.Sampler.__init__
    options = dict(max_new_tokens=21, stop_ids=range(2, 8))

    def lazy(self, *args):
        original(self, *args)
        self.check_every = 8

    monkeypatch.setattr(fast_rollout.Sampler, "__init__", lazy)
    found = fast_rollout.generate(model, PROMPTS, 6, **options)
    assert_same(found, rollout.generate(model, PROMPTS, 6, **options))


def test_autocast_halves_the_cache_and_lets_more_rows_in():
    model = tiny(dtype=torch.float32)
    before = fast_rollout.rows_in_memory(model, 1000)
    with torch.autocast("cpu", torch.bfloat16):
        assert 1.9 * before < fast_rollout.rows_in_memory(model, 1000) <= 2 * before + 1


@needs_packing
def test_packed_weights_compute_the_same_and_leave_no_trace():
    model, hooked, ids = tiny(dtype=torch.float32), [], torch.tensor(PROMPTS[1:2] * 5)
    first, *others, last = [part for part in model.modules() if type(part) is torch.nn.Linear]
    first.bias = torch.nn.Parameter(torch.randn(first.out_features))
    first.register_forward_hook(lambda *_: hooked.append(True))
    last.forward = someones_own = last.forward
    with torch.no_grad():
        expected = model(ids).logits
        with pytest.raises(KeyError), fast_rollout.packed_weights(model, 5):
            assert all("forward" in vars(layer) for layer in (first, *others))
            assert last.forward is someones_own
            torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
            raise KeyError
        with fast_rollout.packed_weights(model, 5), torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(ids).logits.isfinite().all()  # a model may enter autocast on its own
    assert len(hooked) == 3 and last.forward is someones_own
    assert not any("forward" in vars(layer) for layer in (first, *others))


@needs_packing
def test_generate_packs_and_goes_on_without_memory_for_it(monkeypatch):
    model, packed = tiny(dtype=torch.float32), []

    def note(ended):
        packed.append(sum("forward" in vars(part) for part in model.modules()))

    def sample(length):
        options = dict(max_new_tokens=length, stop_ids=[], progress=note)
        return completions(fast_rollout.generate(model, PROMPTS[:1], 2, **options))

    def full(*_):
        raise RuntimeError("can't allocate memory")

    expected = sample(12)
    sample(8)  # too short to pay
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", full)
    assert sample(12) == expected
    assert packed[0] > 5 and packed[1:] == [0, 0]


def test_weights_that_a_hook_computes_are_not_packed():
    model = tiny(dtype=torch.float32)
    torch.nn.utils.prune.l1_unstructured(model.lm_head, "weight", amount=0.5)
    with fast_rollout.packed_weights(model, 5):
        assert "forward" not in vars(model.lm_head)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_only_float32_is_packed(dtype):
    model = tiny(dtype=dtype)
    with fast_rollout.packed_weights(model, 5):
        assert not any("forward" in vars(part) for part in model.modules())


# --- the fast sampler alone: what a GPU does, taken by the CPU ---


def advance_only(batch):
    """In the place of `Batch.capture`: advance by one token, and the same way by the next."""
    batch.advance()
    return batch.advance


def capturing_on_cpu(monkeypatch, capture=advance_only):
    """Let a CPU decode in the fixed shapes that a GPU captures; by default without capturing."""
    original = fast_rollout.Sampler.__init__

    def init(self, *args):
        original(self, *args)
        self.captures, self.check_every = True, 1

    monkeypatch.setattr(fast_rollout.Sampler, "__init__", init)
    monkeypatch.setattr(fast_rollout.Batch, "capture", capture)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "nemotron"])
def test_decoding_in_fixed_shapes_gives_the_rollouts_of_the_plain_sampler(kind, monkeypatch):
    model, options = tiny(kind), dict(max_new_tokens=20, stop_ids=range(2, 12))
    expected = rollout.generate(model, PROMPTS, 4, **options)
    before, calls, attend = model.config._attn_implementation, [], fast_rollout.attend

    def note(*args, **kwargs):
        calls.append(args[1].shape)
        return attend(*args, **kwargs)

    capturing_on_cpu(monkeypatch)
    monkeypatch.setattr(fast_rollout, "attend", note)
    assert_same(fast_rollout.generate(model, PROMPTS, 4, **options), expected, 1e-5)
    assert len({shape[0] for shape in calls}) > 1  # dead rows left
    assert model.config._attn_implementation == before


def test_a_model_that_waits_for_the_device_is_decoded_without_capturing(monkeypatch):
    """As on a GPU, but that the wait is made up: the token that found out is decoded again."""
    model, options = tiny(), dict(max_new_tokens=20, stop_ids=range(2, 12))
    expected = rollout.generate(model, PROMPTS, 4, **options)
    mode, forward = [0], model.model.norm.forward
    capturing_on_cpu(monkeypatch, fast_rollout.Batch.capture)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode.append)

    def waits(x):
        if mode[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return forward(x)

    monkeypatch.setattr(model.model.norm, "forward", waits)
    with pytest.warns(UserWarning, match="LlamaForCausalLM is not captured.*synchronizing"):
        found = fast_rollout.generate(model, PROMPTS, 4, **options)
    assert completions(found) == completions(expected)
    assert mode == [0, "error", 0] and model in fast_rollout.UNCAPTURABLE


def test_models_that_want_more_of_attention_are_decoded_without_capturing(monkeypatch):
    model, options = tiny(), dict(max_new_tokens=20, stop_ids=range(2, 12))
    expected = rollout.generate(model, PROMPTS, 4, **options)
    attend, told = fast_rollout.attend, []

    def with_softcap(*args, **kwargs):
        return attend(*args, **kwargs, softcap=30.0)

    capturing_on_cpu(monkeypatch)
    monkeypatch.setattr(fast_rollout, "attend", with_softcap)
    says = "LlamaForCausalLM is not captured.*LlamaAttention wants softcap"
    with pytest.warns(UserWarning, match=says):
        found = fast_rollout.generate(
            model, PROMPTS, 4, max_rows=8, progress=told.append, **options
        )
    assert completions(found) == completions(expected)
    assert sum(told) == 20 and model in fast_rollout.UNCAPTURABLE
    x, first, used = torch.zeros(2, 1, 1, 8), torch.zeros(2), torch.ones(2)
    with pytest.raises(NotImplementedError, match="a mask of its own"):
        attend(torch.nn.Identity(), x, x, x, attention_mask=x, first=first, used=used)


def test_a_failed_capture_keeps_nothing_in_memory(monkeypatch):
    model, batches, init = tiny(), [], fast_rollout.Batch.__init__

    def noted_init(self, *args):
        batches.append(weakref.ref(self))
        init(self, *args)

    capturing_on_cpu(monkeypatch, fast_rollout.Batch.capture)
    monkeypatch.setattr(fast_rollout.Batch, "__init__", noted_init)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(fast_rollout, "capture_stream", lambda device: None)

    @contextlib.contextmanager
    def fails(graph, **options):
        raise RuntimeError("operation not permitted when stream is capturing")
        yield

    monkeypatch.setattr(torch.cuda, "graph", fails)
    gc.collect()
    gc.disable()
    try:
        with pytest.warns(UserWarning, match="not permitted"):
            fast_rollout.generate(model, PROMPTS, 4, max_new_tokens=12, stop_ids=[])
        assert len(batches) == 1 and batches[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind, norms", [("llama", 5), ("qwen3", 9), ("gemma3", 0), ("gpt2", 0)])
def test_fused_norms_compute_the_same_and_leave_no_trace(kind, norms):
    """RMS norms are replaced; layer norms and Gemma's (1 + weight) are not."""
    model = tiny(kind, torch.float32)
    with torch.no_grad():
        for part in model.modules():
            if "Norm" in type(part).__name__ and kind != "gemma3":
                part.weight.uniform_(0.5, 1.5)
    ids = torch.tensor([PROMPTS[1]])
    expected = model(ids).logits
    gpu = SimpleNamespace(device=torch.device("cuda"), modules=model.modules)
    with fast_rollout.fused_norms(gpu, gpu):
        assert sum("forward" in vars(part) for part in model.modules()) == norms
        torch.testing.assert_close(model(ids).logits, expected)
    with pytest.raises(RuntimeError), fast_rollout.fused_norms(gpu):
        raise RuntimeError
    assert not any("forward" in vars(part) for part in model.modules())
    with fast_rollout.fused_norms(model):  # on a CPU
        assert not any("forward" in vars(part) for part in model.modules())


KERNEL = """
import sys, torch, triton
sys.path.insert(0, {root!r})
from runtime import fast_rollout
launched, launch, works = [], fast_rollout.launch_attention, fast_rollout.kernel_works
if {device!r} == "cpu":  # the interpreter runs the kernel where attend would not
    fast_rollout.kernel_works = lambda device, dtype, group, size: dtype == torch.{dtype}
options = dict(device={device!r}, dtype=torch.{dtype})
shapes = ((3, 2, 2, 32, 150), (2, 3, 3, 64, 70), (2, 1, 1, 80, 200), (2, 2, 7, 128, 65))
for rows, heads, group, size, capacity in (*shapes, (2, 2, 1, 8, 70)):
    torch.manual_seed(0)
    q = torch.randn(rows, 1, 3, heads * group, size, **options)[:, :, 1].transpose(1, 2)
    k, v = (torch.randn(rows, capacity, heads, size, **options).transpose(1, 2) for _ in "kv")
    v[:, :, capacity - 3:] = float("nan")  # columns not written yet
    first = torch.randint(0, 10, (rows,)).to({device!r})
    used = torch.tensor([1, capacity - 20, min(64, capacity - 20)][:rows]).to({device!r})
    seen = dict(first=first, used=used)
    values = v.float().nan_to_num()
    expected, _ = fast_rollout.attend(None, q.float(), k.float(), values, None, **seen)
    assert fast_rollout.kernel_works({device!r}, torch.{dtype}, group, size)
    fast_rollout.launch_attention = lambda *args: launched.append(launch(*args))
    found = fast_rollout.attend(None, q, k, v, None, **seen)[0]
    fast_rollout.launch_attention = launch
    torch.testing.assert_close(found.float(), expected, atol={atol}, rtol=0)
assert len(launched) == 5
fast_rollout.kernel_works = works
"""


def interpreter_loops_between_tensors():
    triton = fast_rollout.triton
    return triton and [int(part) for part in triton.__version__.split(".")[:2]] >= [3, 7]


@pytest.mark.slow
@pytest.mark.skipif(
    not interpreter_loops_between_tensors(),
    reason="needs Triton (comes with torch's builds for CUDA) of 3.7 or later, whose interpreter "
    "loops between tensors",
)
def test_attention_kernel_in_tritons_interpreter():
    code = KERNEL.format(root=str(ROOT), device="cpu", dtype="float16", atol=2e-3)
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


# --- CUDA ---

WIDE = dict(
    hidden_size=128,
    intermediate_size=192,
    head_dim=32,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def note_captures(monkeypatch):
    """What each capture returned: the replay of a graph, or `advance` where it failed."""
    returned, capture = [], fast_rollout.Batch.capture

    def noted(self):
        returned.append(capture(self))
        return returned[-1]

    monkeypatch.setattr(fast_rollout.Batch, "capture", noted)
    return returned


@needs_cuda
@pytest.mark.parametrize("dtype, atol", [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_attention_kernel_on_a_gpu_under_cuda(dtype, atol):
    exec(KERNEL.format(root=str(ROOT), device="cuda", dtype=dtype, atol=atol), {})


@needs_cuda
@pytest.mark.parametrize("kind", ["llama", "qwen3", "qwen2_sliding", "gemma3", "hybrid"])
def test_cuda_gives_the_rollouts_of_the_cpu_in_float64(generate, kind):
    options = dict(max_new_tokens=24, stop_ids=range(2, 8))
    expected = rollout.generate(tiny(kind), PROMPTS, 4, **options)
    assert_same(generate(tiny(kind).cuda(), PROMPTS, 4, **options), expected, 1e-4)


@needs_cuda
@pytest.mark.parametrize("autocast", [False, True])
def test_cuda_replays_graphs_in_bfloat16_and_agrees_with_the_trainer(autocast, monkeypatch):
    dtype = torch.float32 if autocast else torch.bfloat16
    model, replays = tiny("qwen3", dtype, **WIDE).cuda(), []
    capture = fast_rollout.Batch.capture

    def counted(self):
        replay = capture(self)
        return lambda: replays.append(1) or replay()

    monkeypatch.setattr(fast_rollout.Batch, "capture", counted)
    errors = []
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        options = dict(max_new_tokens=40, stop_ids=[2, 3, 4])
        for r in flat(fast_rollout.generate(model, PROMPTS, 16, **options)):
            errors += (score(model, r) - torch.tensor(r.logprobs)).abs().tolist()
    assert len(replays) > 20
    assert sum(errors) / len(errors) < 0.02 and max(errors) < 0.3  # logits of about 3 to 8


@needs_cuda
def test_cuda_rollouts_do_not_depend_on_the_batch(generate):
    model = tiny("qwen3", torch.float64, **WIDE).cuda()
    options = dict(max_new_tokens=24, stop_ids=range(2, 8))
    together = generate(model, PROMPTS, 6, keys=range(5), **options)
    for p, prompt in enumerate(PROMPTS):
        (alone,) = generate(model, [prompt], 3, keys=[p], max_rows=2, **options)
        assert [r.ids for r in alone] == [r.ids for r in together[p]][:3]


@needs_cuda
@pytest.mark.parametrize(
    "noticed",
    [
        True,
        pytest.param(
            False,
            marks=pytest.mark.skipif(
                torch.__version__ < "2.12",
                reason="torch before 2.12 leaves its allocator in a capture that failed",
            ),
        ),
    ],
)
def test_cuda_goes_on_where_decoding_cannot_be_captured(noticed, monkeypatch):
    """Noticed while the shape warms up, or only in the capture."""
    model = tiny("llama", torch.float32).cuda()
    options = dict(max_new_tokens=24, stop_ids=range(2, 8))
    expected = completions(fast_rollout.generate(model, PROMPTS, 4, **options))
    forward = model.model.norm.forward

    def waits(x):
        x.sum().item()
        return forward(x)

    monkeypatch.setattr(model.model.norm, "forward", waits)
    if not noticed:
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    with pytest.warns(UserWarning, match="not captured"):
        found = fast_rollout.generate(model, PROMPTS, 4, **options)
    assert completions(found) == expected
    monkeypatch.undo()
    torch.cuda.empty_cache()  # the device is as before
    other, captures = tiny("llama", torch.float32).cuda(), note_captures(monkeypatch)
    assert completions(fast_rollout.generate(other, PROMPTS, 4, **options)) == expected
    assert captures and not any(getattr(c, "__name__", "") == "advance" for c in captures)
    captures.clear()
    fast_rollout.generate(model, PROMPTS, 4, **options)  # not tried again
    assert not captures


@needs_cuda
def test_cuda_attention_goes_on_without_triton(monkeypatch):
    model = tiny("qwen3", torch.bfloat16, **WIDE).cuda()
    options = dict(max_new_tokens=12, stop_ids=[])
    with_kernel = flat(fast_rollout.generate(model, PROMPTS, 4, **options))
    monkeypatch.setattr(fast_rollout, "kernel_works", lambda *kind: False)
    without = flat(fast_rollout.generate(model, PROMPTS, 4, **options))
    same = sum(a.ids[:3] == b.ids[:3] for a, b in zip(with_kernel, without, strict=True))
    assert same > len(without) / 2  # but for rounding
