"""`hidden_states` of mopd.py, faster: prompts that several completions share are read once.

The K rollouts of a group share the student's prompt, and most of them the teacher's. Same
arguments, same results up to rounding, gradients included."""

import inspect

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

import mopd
from runtime import parallel
from runtime.fast_loss import distill_loss, nll_loss
from runtime.models import head, product_dtype


def hidden_states(model, prompts, completions) -> torch.Tensor:
    """`mopd.hidden_states`, sharing prompts where there are two completions for each or more."""
    few = 2 * len(set(map(tuple, prompts))) <= len(prompts)
    # On a GPU whole rows are faster: its flash attention takes no mask. With several processes all
    # must run the same number of forward passes, because each gathers the sharded weights.
    if few and head(model).device.type == "cpu" and parallel.world() == 1 and can_share(model):
        return shared_hidden_states(model, prompts, completions)
    return mopd.hidden_states(model, prompts, completions)


def can_share(model) -> bool:
    """Whether the model's cache is nothing but keys and values, and is kept.

    In train mode gradient checkpointing drops it; models without a cache (OpenAI-GPT, RWKV) swallow
    the argument.
    """
    layers = {type(layer) for layer in DynamicCache(config=model.config).layers}
    takes = {"past_key_values", "position_ids"} <= set(
        inspect.signature(model.base_model.forward).parameters
    )
    return takes and layers == {DynamicLayer} and not model.training


def shared_hidden_states(model, prompts, completions) -> torch.Tensor:
    """Reads each distinct prompt once, copies its cache to its completions: returns (N, D).

    Gradients flow back through the copies. Prompts are padded on the right and the padding is
    masked; every query still sees its own prompt, so no softmax gets an empty row.
    """
    device, cache = head(model).device, DynamicCache(config=model.config)
    number = {prompt: n for n, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    source = torch.tensor([number[tuple(prompt)] for prompt in prompts], device=device)
    ends = torch.tensor([len(prompt) for prompt in prompts], device=device)
    width, steps = max(map(len, prompts)), max(map(len, completions)) - 1
    ids = torch.tensor(
        [list(prompt) + [0] * (width - len(prompt)) for prompt in number], device=device
    )
    states = model.base_model(
        input_ids=ids, past_key_values=cache, use_cache=True
    ).last_hidden_state
    states = states[source, ends - 1][:, None]  # predicts the first completion token
    if steps:
        cache.batch_select_indices(source)
        rows = [completion[:-1] + [0] * (steps + 1 - len(completion)) for completion in completions]
        column = torch.arange(width + steps, device=device)
        seen = (column < ends[:, None]) | (column >= width)
        # Clamp the positions of padding to the row's last real one: they could exceed
        # max_position_embeddings.
        last = ends + torch.tensor(
            [max(0, len(completion) - 2) for completion in completions], device=device
        )
        positions = torch.minimum(ends[:, None] + column[:steps], last[:, None])
        later = model.base_model(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=seen,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        states = torch.cat([states, later], dim=1)
    return product_dtype(
        torch.cat([row[: len(c)] for row, c in zip(states, completions, strict=True)])
    )


# What train.py hands to mopd.backward unless --plain is given.
FAST = mopd.Parts(hidden_states, distill_loss, nll_loss)
