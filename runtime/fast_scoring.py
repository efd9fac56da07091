"""`hidden_states` and `microbatches` of mopd.py, faster: what rows share is read once.

The K rollouts of a group share the student's prompt, and the teacher's contexts of a group say
nearly the same; where answers are short, rollouts are often equal. Same arguments, same results up
to rounding, gradients included.
"""

import inspect

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

import mopd
import rollout
from runtime import parallel
from runtime.fast_loss import distill_loss, nll_loss
from runtime.models import backbone
from runtime.prefix_tree import shared_hidden_states, tree_size

MAX_COPIES = 4  # see `microbatches`
MIN_SAVED = 0.2  # share of the tokens that must be saved: reading in several passes costs more


def hidden_states(model, prompts, completions) -> torch.Tensor:
    """`mopd.hidden_states`; what rows share is read once, where that pays."""
    if shares(model) and shared_size(prompts, completions):
        return shared_hidden_states(model, prompts, completions)
    return mopd.hidden_states(model, prompts, completions)


def shared_size(prompts, completions) -> int | None:
    """Tokens, with padding, that are read if rows are shared; None where that does not pay."""
    rows = set(zip(map(tuple, prompts), map(tuple, completions), strict=True))
    of_prompts, padded = tree_size({prompt for prompt, _ in rows})
    shared = of_prompts + sum(len(completion) for _, completion in rows)
    whole = sum(map(len, prompts)) + sum(map(len, completions))
    if whole - shared <= MIN_SAVED * whole:
        return None
    return padded + len(rows) * max(map(len, completions))


def shares(model) -> bool:
    """Whether prompts are shared in this run with this model.

    Not on a GPU, where whole rows are faster: its flash attention takes no mask. Not with several
    processes: all must run equally many forward passes, because each gathers the sharded weights.
    """
    return model.device.type == "cpu" and parallel.world() == 1 and can_share(model)


def can_share(model) -> bool:
    """Whether the model's cache is nothing but keys and values, and is kept.

    In train mode gradient checkpointing drops it; models without a cache (OpenAI-GPT, RWKV) swallow
    the argument. `model.can_share = False` forbids it: models.check_model has found it wrong.
    """
    if model.training or not getattr(model, "can_share", True):
        return False
    part = backbone(model)
    layers = {type(layer) for layer in DynamicCache(config=model.config).layers}
    takes_positions = "position_ids" in inspect.signature(part.forward).parameters
    return takes_positions and bool(rollout.cache_argument(part)) and layers == {DynamicLayer}


def microbatches(attempts, budget: int, prompt=mopd.longer_prompt, model=None) -> list[list]:
    """`mopd.microbatches`; where rows are shared, group after group, a shared token counted once.

    Every distinct row has a copy of its prompt's keys and values, and every row has states. Those
    of a token are small beside what reading it takes, so with the copies there may be MAX_COPIES
    times as many tokens as the budget.
    """
    if not shares(model):
        return mopd.microbatches(attempts, budget, prompt)
    groups = {}
    for a in attempts:
        if a.weight:
            groups.setdefault(a.group, []).append(a)
    batches, waiting = [], []
    for group in sorted(groups.values(), key=lambda group: -longest(group, prompt)):
        # equal rows stay together where a group is divided
        waiting += sorted(group, key=lambda a: (prompt(a), a.rollout.ids))

    while waiting:
        n = count_that_fits(waiting, budget, prompt)
        start = n  # of the group in which the batch would end
        while 0 < start < len(waiting) and waiting[start].group == waiting[start - 1].group:
            start -= 1
        n = start or n  # only a group that is a batch by itself is divided: it is read twice
        batches.append(waiting[:n])
        waiting = waiting[n:]
    return batches


def count_that_fits(waiting, budget: int, prompt) -> int:
    """How many of the first attempts make a batch, at least 1: steps double, then halve."""
    n, step = 1, 1
    while n + step <= len(waiting) and fits(waiting[: n + step], budget, prompt):
        n, step = n + step, 2 * step
    while step > 1:
        step //= 2
        if n + step <= len(waiting) and fits(waiting[: n + step], budget, prompt):
            n += step
    return n


def longest(batch, prompt) -> int:
    return max(len(prompt(a)) + len(a.rollout.ids) for a in batch)


def fits(batch, budget: int, prompt) -> bool:
    """Whether a batch stays within the budget in the way in which `hidden_states` will read it."""
    whole = len(batch) * longest(batch, prompt)
    size = shared_size([prompt(a) for a in batch], [a.rollout.ids for a in batch])
    return whole <= budget if size is None else size <= budget and whole <= MAX_COPIES * budget


# What train.py hands to mopd.backward unless --plain is given.
FAST = mopd.Parts(hidden_states, distill_loss, nll_loss, microbatches)
