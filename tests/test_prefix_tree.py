"""The tree of prefixes: what it reads, and that the states are those of whole rows."""

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

import mopd
from mopd import Attempt, Problem
from rollout import Rollout
from runtime import fast_scoring
from runtime.prefix_tree import SHORTEST, prefix_tree, shared_hidden_states, tree_size
from verifiers import Verdict

V = 90
SIZES = dict(vocab_size=V, num_hidden_layers=2, num_attention_heads=4, hidden_size=32)


def tokens(rng, n):
    return [rng.randrange(3, V) for _ in range(n)]


def rows_of_groups(seed, *, groups=3, k=6):
    """(prompts, completions) as a teacher reads them: system, problem, up to three peers."""
    rng, prompts, completions = random.Random(seed), [], []
    system = tokens(rng, 12)
    for _ in range(groups):
        problem = tokens(rng, rng.randint(5, 20))
        peers = [tokens(rng, rng.randint(1, 30)) for _ in range(4)]
        for _ in range(k):
            shown = rng.choice([(0, 1, 2), (0, 1, 3), (1, 2, 3), (0, 1), (0,), ()])
            prompts.append(system + problem + [t for n in shown for t in peers[n]])
            completions.append(tokens(rng, rng.choice([1, 5, 9, 14])))
    return [*prompts, prompts[0][:5]], [*completions, tokens(rng, 4)]  # one is a prefix of others


@pytest.mark.parametrize("seed", range(4))
def test_every_prompt_is_the_path_to_its_leaf_and_parents_stand_one_level_above(seed):
    prompts = {tuple(prompt) for prompt in rows_of_groups(seed)[0]}
    nodes, leaves = prefix_tree(prompts)
    assert set(leaves) == prompts and len(set(leaves.values())) == len(prompts)
    for prompt, n in leaves.items():
        assert nodes[n].height == 0 and nodes[n].end == len(prompt) and len(nodes[n].tokens) > 0
        path = []
        while n is not None:
            path, parent = [*nodes[n].tokens, *path], nodes[n].parent
            assert nodes[n].start == (0 if parent is None else nodes[parent].end)
            assert parent is None or nodes[parent].height == nodes[n].height + 1
            n = parent
        assert tuple(path) == prompt


def test_what_prompts_share_is_counted_once():
    rng = random.Random(0)
    root, one, two = tokens(rng, 20), [1, *tokens(rng, 10)], [2, *tokens(rng, 15)]
    assert tree_size([root + one, root + two, root + one]) == (20 + 11 + 16, 20 + 2 * 16)
    few = root[: SHORTEST - 1]  # too few to be worth a level
    assert tree_size([few + one, few + two])[0] == 2 * len(few) + 11 + 16


def test_long_piece_is_spread_over_the_levels_that_its_siblings_need():
    rng = random.Random(0)
    root, a, b = tokens(rng, 10), [1, *tokens(rng, 20)], [2, *tokens(rng, 20)]
    deep = [root + a + [1] * 20, root + a + [2] * 20]
    nodes, _ = prefix_tree(map(tuple, [*deep, root + b + b]))
    widths = [max(len(n.tokens) for n in nodes if n.height == height) for height in (2, 1, 0)]
    assert widths == [10, 21, 21]


@pytest.mark.parametrize(
    "config, tolerance",
    [
        (GPT2Config(**SIZES), 1e-10),
        (LlamaConfig(**SIZES, intermediate_size=48, num_key_value_heads=2), 2e-5),  # float32 norms
    ],
    ids=["gpt2", "llama"],
)
@pytest.mark.parametrize("seed", range(2))
def test_states_and_gradients_are_those_of_whole_rows(config, tolerance, seed):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    prompts, completions = ([*rows, *rows[:5]] for rows in rows_of_groups(seed))  # five rows twice
    found = []
    for read in (mopd.hidden_states, shared_hidden_states):
        model.zero_grad()
        states = read(model, prompts, completions)
        (states * torch.arange(states.numel()).view_as(states).cos()).sum().backward()
        parameters = model.base_model.parameters()
        found.append([states.detach(), *(p.grad.clone() for p in parameters)])
    for whole, shared in zip(*found, strict=True):
        torch.testing.assert_close(
            shared, whole, rtol=tolerance, atol=tolerance * whole.abs().max()
        )


def test_equal_completions_of_equal_prompts_are_read_once():
    rng = random.Random(0)
    a, b, c, d = tokens(rng, 20), tokens(rng, 20), tokens(rng, 9), tokens(rng, 9)
    prompts, completions = [a, a, b, a], [c, c, c, d]
    model, sizes = AutoModelForCausalLM.from_config(GPT2Config(**SIZES)).eval(), []
    model.base_model.register_forward_pre_hook(
        lambda module, args, options: sizes.append(tuple(options["input_ids"].shape)),
        with_kwargs=True,
    )
    shared_hidden_states(model, prompts, completions)
    assert sizes == [(2, 20), (3, 8)]
    assert fast_scoring.shared_size(prompts, completions) == 2 * 20 + 3 * 9
    assert fast_scoring.shared_size([a, a], [c, c]) == 20 + 9
    assert fast_scoring.shared_size([a, b], [c, c]) is None  # equal completions alone share nothing


def attempts_of(prompts, completions, groups):
    problem, verdict = Problem("", "", "", 0), Verdict(True, None, "")
    return [
        Attempt(problem, g, Rollout(p, c, [], True), "", verdict, teacher_ids=p, weight=1.0)
        for p, c, g in zip(prompts, completions, groups, strict=True)
    ]


@pytest.mark.parametrize("budget", [1, 60, 200, 10**6])
def test_batches_hold_every_attempt_once_and_stay_within_the_budget(budget):
    prompts, completions = rows_of_groups(0)
    attempts = attempts_of(prompts, completions, [n // 6 for n in range(len(prompts))])
    attempts[3].weight = 0.0
    model = AutoModelForCausalLM.from_config(GPT2Config(**SIZES)).eval()
    batches = fast_scoring.microbatches(attempts, budget, mopd.teacher_prompt_ids, model)
    counted = [id(a) for batch in batches for a in batch]
    assert sorted(counted) == sorted(id(a) for n, a in enumerate(attempts) if n != 3)
    for batch in batches:
        size = len(batch) * fast_scoring.longest(batch, mopd.teacher_prompt_ids)
        prompts, ids = [a.teacher_ids for a in batch], [a.rollout.ids for a in batch]
        shared = fast_scoring.shared_size(prompts, ids)
        assert len(batch) == 1 or (shared or size) <= budget
        assert len(batch) == 1 or size <= fast_scoring.MAX_COPIES * budget
    if budget == 10**6:
        assert len(batches) == 1
    if budget == 200:  # more than whole rows would allow
        whole = mopd.microbatches(attempts, budget, mopd.teacher_prompt_ids)
        assert len(batches) < len(whole)


def test_model_that_cannot_share_gets_the_plain_batches():
    prompts, completions = rows_of_groups(0)
    attempts = attempts_of(prompts, completions, [n // 6 for n in range(len(prompts))])
    model = AutoModelForCausalLM.from_config(GPT2Config(**SIZES)).train()
    found = fast_scoring.microbatches(attempts, 200, mopd.teacher_prompt_ids, model)
    assert found == mopd.microbatches(attempts, 200, mopd.teacher_prompt_ids)


def test_rows_that_share_too_little_stay_within_the_budget_as_whole_rows():
    """The budget once counted what sharing would read, and the rows were then read whole."""
    rng = random.Random(0)
    prompts = [tokens(rng, 300), *(tokens(rng, 10) for _ in range(6))]
    attempts = attempts_of(prompts, [tokens(rng, 8)] * 7, range(7))
    model = AutoModelForCausalLM.from_config(GPT2Config(**SIZES)).eval()
    for batch in fast_scoring.microbatches(attempts, 400, mopd.teacher_prompt_ids, model):
        assert len(batch) * fast_scoring.longest(batch, mopd.teacher_prompt_ids) <= 400


def test_a_group_that_fits_is_not_divided():
    rng = random.Random(0)
    contexts = [tokens(rng, 50) for _ in range(4)]
    attempts = attempts_of(
        [contexts[n // 4] for n in range(16)],
        [tokens(rng, 10) for _ in range(16)],
        sorted([0, 1, 2, 3] * 4),
    )
    model = AutoModelForCausalLM.from_config(GPT2Config(**SIZES)).eval()
    batches = fast_scoring.microbatches(attempts, 250, mopd.student_prompt_ids, model)
    # two groups take 2 x (50 + 4 x 10); of a third one a row would fit
    assert [sorted(a.group for a in batch) for batch in batches] == [
        [0] * 4 + [1] * 4,
        [2] * 4 + [3] * 4,
    ]


def test_equal_rows_stay_in_one_batch_where_a_group_is_divided():
    rng = random.Random(0)
    prompt, c, d = tokens(rng, 10), tokens(rng, 100), tokens(rng, 100)
    attempts = attempts_of([prompt] * 4, [c, d, c, d], [0] * 4)
    model = AutoModelForCausalLM.from_config(GPT2Config(**SIZES)).eval()
    batches = fast_scoring.microbatches(attempts, 130, mopd.student_prompt_ids, model)
    found = [[a.rollout.ids for a in batch] for batch in batches]
    assert sorted(found) == sorted([[c, c], [d, d]])
