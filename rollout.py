"""Sample K rollouts for each of P prompts from a causal language model of transformers.

It works on token ids and knows nothing of text, rewards or training. Each token is sampled by
inverting the cumulative distribution function of the full softmax (or of its top_p mass):

    id = min { i : p_0 + ... + p_i > u },   p = softmax(logits / temperature)
    u = uniform(seed, key, j, t)            for token t of rollout j of the prompt with this key

u does not depend on a place in the batch. So, for given sampling options, a rollout is a function
of (weights, prompt, seed, key, j) alone, up to rounding, which varies with the batch's shape.

Unlike `model.generate` it reads each prompt once and copies its cache to k rows, drops rows that
have ended, samples without the slow `torch.multinomial`, returns log-probabilities, and takes no
top-k 50 from the model's generation config.

    groups = generate(model, [[1, 5, 7], [1, 9]], 8, max_new_tokens=64, stop_ids=[2])
    groups[1][0].ids, groups[1][0].logprobs, groups[1][0].stopped

Shapes: P prompts, R rows (rollouts decoded together), T new tokens, V vocabulary.
"""

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

PREFILL_TOKENS = 8192  # prompt tokens, with padding, in one forward pass: bounds its activations
MAX_ROWS = 256  # rollouts decoded together, unless the caller knows what fits into memory
BLOCK = 128  # vocabulary entries per partial sum in `invert_cdf`


@dataclass
class Rollout:
    """One sampled completion of a prompt."""

    prompt_ids: list[int]
    ids: list[int]  # the completion, with its stop token
    logprobs: list[float]  # of `ids` under softmax(logits / temperature): nats, float32
    stopped: bool  # False: cut by the length limit


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    k: int,
    *,
    max_new_tokens: int,
    stop_ids: Iterable[int],
    temperature: float = 1.0,
    seed: int = 0,
    keys: Sequence[int] | None = None,
    max_rows: int | None = None,
    progress: Callable[[int], None] | None = None,
    top_p: float = 1.0,
) -> list[list[Rollout]]:
    """Return P groups of k rollouts for P prompts (token ids) of any lengths.

    stop_ids: the tokens that end a rollout. With none, every rollout has max_new_tokens tokens.
    temperature: divides the logits. 0 is greedy, with log-probabilities at temperature 1.
    keys: one integer per prompt, its name for the random numbers (default: its position). Prompts
        with equal keys get equal random numbers.
    max_rows: rollouts decoded together (default: MAX_ROWS). Their cache must fit into memory.
    progress: called with the number of rollouts that have ended since the last call.
    top_p: sample from the smallest set of most probable tokens that has this mass. The
        log-probabilities stay those of the full softmax.

    The model runs in eval mode without gradients, and every module's mode is restored afterwards.
    Raises ValueError for bad arguments before any work, FloatingPointError for logits not finite.
    """
    stop_ids = {int(i) for i in stop_ids}
    keys = list(range(len(prompts))) if keys is None else [int(key) for key in keys]
    check(model, prompts, k, max_new_tokens, stop_ids, temperature, top_p, keys, max_rows)
    if not prompts:
        return []
    groups = [[None] * k for _ in prompts]
    # no_grad, not inference_mode: what a module caches here may be needed in training later, and
    # autograd refuses inference tensors.
    with eval_mode(model), torch.no_grad():
        for batch in plan_batches(prompts, k, max_rows or MAX_ROWS, same_length=not can_pad(model)):
            rows = [(p, j) for p, js in batch for j in js]
            rollouts = decode(
                model,
                [prompts[p] for p, _ in batch],
                counts=[len(js) for _, js in batch],
                uniforms=uniform_table([(int(seed), keys[p], j) for p, j in rows], max_new_tokens),
                stop_ids=stop_ids,
                temperature=temperature,
                top_p=top_p,
                progress=progress,
            )
            for (p, j), rollout in zip(rows, rollouts, strict=True):
                groups[p][j] = rollout
    return groups


def decode(model, prompts, *, counts, uniforms, stop_ids, temperature, top_p, progress):
    """Sample one batch: counts[i] rollouts of prompts[i], by the random numbers uniforms (T, R)."""
    device, length = model.device, max(map(len, prompts))
    logits, cache, padding = prefill(model, prompts)
    source = torch.arange(len(prompts)).repeat_interleave(torch.tensor(counts)).to(device)  # (R,)
    rollouts = living = [Rollout(list(prompts[i]), [], [], False) for i in source.tolist()]
    reorder(cache, source)  # row r continues prompt source[r]
    logits, padding, uniforms = logits[source], padding[source], uniforms.to(device)
    for t in range(len(uniforms)):
        tokens, logprobs = sample_tokens(logits, uniforms[t], temperature, top_p)
        if not logprobs.isfinite().all():
            raise FloatingPointError("the model's logits are not finite")
        for rollout, token, logprob in zip(living, tokens.tolist(), logprobs.tolist(), strict=True):
            rollout.ids.append(token)
            rollout.logprobs.append(logprob)
            rollout.stopped = token in stop_ids
        at_limit = t + 1 == len(uniforms)
        keep = [r for r, rollout in enumerate(living) if not (rollout.stopped or at_limit)]
        if progress and len(keep) < len(living):
            progress(len(living) - len(keep))
        if not keep:
            return rollouts
        if len(keep) < len(living):  # rows that have ended leave the batch
            living, keep = [living[r] for r in keep], torch.tensor(keep, device=device)
            tokens, padding, uniforms = tokens[keep], padding[keep], uniforms[:, keep]
            reorder(cache, keep)
        logits, cache = forward(model, tokens[:, None], padding, length + t, cache)


def forward(model, ids, padding, past, cache):
    """Feed `ids` (R, n) after `past` columns of cache; the first padding[r] of all are padding.

    Returns the logits (R, V) of the last column, in the model's dtype, and the cache.
    """
    accepted = inspect.signature(model.forward).parameters
    columns = torch.arange(past + ids.shape[1], device=ids.device)
    options = {}
    if "position_ids" in accepted:  # counted from the first real token; padding gets 0, not less
        options["position_ids"] = (columns[past:] - padding[:, None]).clamp(min=0)
    if "logits_to_keep" in accepted:  # else the head is computed for all tokens of the prompts
        options["logits_to_keep"] = 1
    mask = columns >= padding[:, None] if padding.any() else None  # (R, past + n)
    name = cache_argument(model)
    output = model(input_ids=ids, attention_mask=mask, use_cache=True, **{name: cache}, **options)
    return output.logits[:, -1], getattr(output, name, None)


def cache_argument(model: PreTrainedModel) -> str | None:
    """The name of model.forward's cache, None without one; transformers 5.24 renamed it."""
    accepted = inspect.signature(model.forward).parameters
    return next((n for n in ("cache", "past_key_values", "cache_params") if n in accepted), None)


def prefill(model, prompts):
    """Read each prompt once. Returns logits (P, V), the cache, and padding (P,): see `forward`."""
    length = max(map(len, prompts))
    padding = [length - len(prompt) for prompt in prompts]
    # On the left, so that all rows end in the same column. Any id will do: the mask hides it.
    ids = [[prompt[0]] * n + list(prompt) for prompt, n in zip(prompts, padding, strict=True)]
    ids, padding = (torch.tensor(numbers, device=model.device) for numbers in (ids, padding))
    cache, size = None, length  # recurrent: one pass (some restart the state), its own cache
    if can_pad(model):
        # Made without a config, the cache keeps all columns of sliding layers, too; the model's
        # mask hides those outside the window.
        cache, size = DynamicCache(), max(1, PREFILL_TOKENS // len(prompts))
    for start in range(0, length, size):
        logits, cache = forward(model, ids[:, start : start + size], padding, start, cache)
    if type(cache) is not DynamicCache and not hasattr(cache, "linear_cache"):
        # a class of its own may hold state that `reorder` does not copy
        kind = f"{type(model).__name__} keeps its state in {type(cache).__name__}"
        raise ValueError(f"{kind}, whose rows this sampler cannot expand to k rollouts")
    return logits, cache, padding


def reorder(cache: Cache, rows: Tensor) -> None:
    """Row i of the cache becomes its old row rows[i]."""
    cache.reorder_cache(rows)  # the one such method that is right for every class of layers
    states = getattr(cache, "linear_cache", [])  # MiniMax keeps these beside its layers
    states[:] = [state[rows] if len(state) else state for state in states]


def can_pad(model: PreTrainedModel) -> bool:
    """Whether prompts of different lengths can share a batch; `model.can_pad = False` forbids it.

    Left padding needs position ids and a cache of keys and values only: a recurrent state (Mamba,
    linear attention) would absorb the padding.
    """
    config = model.config.get_text_config(decoder=True)
    layers = {type(layer) for layer in DynamicCache(config=config).layers}
    accepted = inspect.signature(model.forward).parameters
    allowed = getattr(model, "can_pad", True) and "position_ids" in accepted
    return allowed and layers <= {DynamicLayer, DynamicSlidingWindowLayer}


def max_positions(model: PreTrainedModel) -> int | None:
    """The longest sequence that the model can read; None: any.

    A learned table of positions ends. Rotary positions go on, but dynamic and longrope rescale all
    rows once the longest exceeds the original length: that is the limit.
    """
    config = model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        name = "original_max_position_embeddings"
        return rope.get(name) or getattr(config, name, limit)
    rotary = any(name.endswith("inv_freq") for name, _ in model.named_buffers())
    return None if rotary else limit


def sample_tokens(logits: Tensor, u: Tensor, temperature: float, top_p: float):
    """Sample from logits (R, V) by u (R,). Returns ids (R,) and log-probabilities (R,), float32."""
    logits = logits.float()
    if temperature == 0:
        ids = logits.argmax(-1)
        return ids, (logits.gather(1, ids[:, None]) - logits.logsumexp(-1, keepdim=True))[:, 0]
    probs = (logits if temperature == 1 else logits / temperature).softmax(-1)
    ids = invert_cdf(probs if top_p == 1 else keep_top_p(probs, top_p), u)
    return ids, probs.gather(1, ids[:, None])[:, 0].log()  # of the full softmax, top-p or not


def invert_cdf(weights: Tensor, u: Tensor) -> Tensor:
    """Sample an index per row in proportion to weights (R, V) >= 0; u (R,) in [0, 1 - 2^-52].

    One running sum over V would be slow, and in float32 it can end at 0.9998 for V = 150,000. So
    entries are summed in blocks, the block is found in the running sum of these sums, and the entry
    in a running sum inside the block, both in float64. u is scaled by the sum itself. An index of
    weight 0 is never chosen: the first running sum *greater* than the target has a positive weight.
    """
    rows, size = weights.shape
    if size % BLOCK:
        weights = F.pad(weights, (0, -size % BLOCK))
    blocks = weights.view(rows, -1, BLOCK)
    upto = blocks.sum(-1).double().cumsum(-1)  # (R, V / BLOCK)
    target = (u * upto[:, -1])[:, None]
    block = torch.searchsorted(upto, target, right=True)
    block.clamp_(max=upto.shape[1] - 1)  # NaN would index past the end; `decode` raises for it
    before = torch.where(block > 0, upto.gather(1, (block - 1).clamp_(min=0)), 0.0)
    inside = blocks[torch.arange(rows, device=block.device), block[:, 0]].double().cumsum(-1)
    # The two running sums round apart: keep the target below the end of the block.
    target = torch.minimum(target - before, inside[:, -1:] * (1 - 2.0**-52))
    index = block * BLOCK + torch.searchsorted(inside, target, right=True)
    return index[:, 0].clamp_(max=size - 1)


def keep_top_p(probs: Tensor, top_p: float) -> Tensor:
    """Zero `probs` (R, V) outside the smallest set of most probable tokens of mass >= top_p."""
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.double().cumsum(-1) - ordered  # mass of the more probable tokens
    kept = ordered.masked_fill_(before >= top_p, 0.0)
    return torch.zeros_like(probs).scatter_(1, order, kept)


def uniform_table(names: Sequence[tuple[int, int, int]], length: int) -> Tensor:
    """Uniform numbers in [0, 1), float64, (length, R). Column r depends on names[r] alone.

    Column r is the SplitMix64 stream (Steele, Lea and Flood 2014) that starts from a hash of its
    (seed, key, j), so it does not depend on `length`. 52 bits: with 53, u * total could round up to
    total in `invert_cdf`.
    """

    def shift(x, n):  # logical right shift: >> on int64 copies the sign bit
        return (x >> n) & ((1 << (64 - n)) - 1)

    digests = [hashlib.blake2b(repr(name).encode(), digest_size=8).digest() for name in names]
    start = torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests])
    # int64 products wrap around, as they should. The constants are the unsigned ones minus 2^64.
    x = start + torch.arange(1, length + 1)[:, None] * -0x61C8864680B583EB
    x = (x ^ shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ shift(x, 27)) * -0x6B2FB644ECCEEE15
    return shift(x ^ shift(x, 31), 12).double() * 2.0**-52


def plan_batches(prompts, k: int, max_rows: int, *, same_length: bool = False) -> list[list]:
    """Batches of (prompt's position, range of its rollouts j), at most max_rows rollouts in each.

    Prompts of similar length come together, the longest first: what exceeds the memory fails at
    once. A group is split only if k > max_rows.
    """
    batches, room, length = [], 0, None
    for p in sorted(range(len(prompts)), key=lambda p: -len(prompts[p])):
        for start in range(0, k, max_rows):
            js = range(start, min(k, start + max_rows))
            if len(js) > room or (same_length and len(prompts[p]) != length):
                batches.append([])
                room, length = max_rows, len(prompts[p])
            batches[-1].append((p, js))
            room -= len(js)
    return batches


@contextlib.contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off inside; then every module gets its own mode back (some may be frozen in eval)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def check(model, prompts, k, max_new_tokens, stop_ids, temperature, top_p, keys, max_rows):
    """Raise ValueError for arguments that would fail later or silently give wrong rollouts."""

    def require(condition, message):
        if not condition:
            raise ValueError(message)

    name, limit = type(model).__name__, max_positions(model)
    vocabulary = model.get_input_embeddings().num_embeddings
    encoder = getattr(model.config, "is_encoder_decoder", False)
    require(not encoder, f"{name} has an encoder: generate needs a decoder-only model")
    require(cache_argument(model), f"{name} keeps no past_key_values to expand to k rollouts")
    for argument, value in dict(k=k, max_new_tokens=max_new_tokens, max_rows=max_rows).items():
        require(value is None or value >= 1, f"{argument} must be at least 1, not {value}")
    require(temperature >= 0, f"temperature must be 0 (greedy) or positive, not {temperature}")
    require(0 < top_p <= 1, f"top_p must be in (0, 1], not {top_p}")
    require(len(keys) == len(prompts), f"{len(keys)} keys for {len(prompts)} prompts")
    outside = f"ids outside the vocabulary ({vocabulary})"
    require(all(0 <= i < vocabulary for i in stop_ids), f"stop {outside}")
    for p, prompt in enumerate(prompts):
        require(len(prompt) > 0, f"prompt {p} is empty")
        require(min(prompt) >= 0 and max(prompt) < vocabulary, f"prompt {p} has {outside}")
        sizes = f"prompt {p}: {len(prompt)} + {max_new_tokens} new tokens"
        fits = limit is None or len(prompt) + max_new_tokens <= limit
        require(fits, f"{sizes} exceed the model's {limit} positions")
