"""`hidden_states` and `microbatches` of mopd.py, faster: what prompts share is read once.

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

COPIES = 4
LEAST = 0.2  # share of the tokens that must be saved: reading in several passes costs more


def hidden_states(model, prompts, completions) -> torch.Tensor:
    """`mopd.hidden_states`; the beginnings that prompts share are read once, where that pays."""
    if shares(model) and shared_size(prompts, completions):
        return shared_hidden_states(model, prompts, completions)
    return mopd.hidden_states(model, prompts, completions)


def shared_size(prompts, completions) -> int | None:
    """Tokens, with padding, that are read if rows are shared; None where that does not pay."""
    alone, (read, padded) = sum(map(len, prompts)), tree_size(prompts)
    distinct = set(zip(map(tuple, prompts), map(tuple, completions), strict=True))
    alone += sum(map(len, completions))
    read += sum(len(completion) for _, completion in distinct)
    if alone - read <= LEAST * alone:
        return None
    return padded + len(distinct) * max(map(len, completions))


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
    """`mopd.microbatches`; where prompts are shared, whole groups, and a shared token counts once.

    Every completion gets a copy of its prompt's keys and values. A token's are small beside what
    reading it takes, so with the copies there may be COPIES times as many as the budget.
    """
    if not shares(model):
        return mopd.microbatches(attempts, budget, prompt)
    groups = {}
    for a in attempts:
        if a.weight:
            groups.setdefault(a.group, []).append(a)
    batches, waiting = [], sorted(groups.values(), key=lambda group: longest(group, prompt))
    while waiting:  # the group with the longest rows first
        group = waiting.pop()
        if batches and fits(batches[-1] + group, budget, prompt):
            batches[-1] += group
        elif len(group) == 1 or fits(group, budget, prompt):
            batches.append(group)
        else:  # equal prompts stay together
            group = sorted(group, key=prompt)
            waiting += [group[len(group) // 2 :], group[: len(group) // 2]]
    return batches


def longest(batch, prompt) -> int:
    return max(len(prompt(a)) + len(a.rollout.ids) for a in batch)


def fits(batch, budget: int, prompt) -> bool:
    """Whether a batch stays within the budget in the way in which `hidden_states` will read it."""
    whole = len(batch) * longest(batch, prompt)
    size = shared_size([prompt(a) for a in batch], [a.rollout.ids for a in batch])
    return whole <= budget if size is None else size <= budget and whole <= COPIES * budget


# What train.py hands to mopd.backward unless --plain is given.
FAST = mopd.Parts(hidden_states, distill_loss, nll_loss, microbatches)
