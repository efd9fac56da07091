"""Sample K rollouts for each of P prompts from a causal language model of transformers, with their log-probabilities.

Needs token ids and a decoder-only model with absolute or rotary positions; knows nothing of text, rewards or training.
One decoding step draws every row's next token by inverting the distribution function,

    id = min { i : p_0 + ... + p_i > u },   p = softmax(logits / temperature),   u = uniform(seed, key, j, position)

where u belongs to the rollout, not to the batch: rollout j of a prompt is a function of (weights, prompt, seed, key, j)
alone, up to the rounding of the model's own arithmetic, which varies a little with the shape of the batch.
The log-probability of the sampled token comes out of the same pass. What differs from `model.generate`, which it
replaces: each prompt is read once and its cache copied K times, finished rows leave the batch, the cache is written in
place, no `torch.multinomial` (the slowest part of a step for a small model), no top-k 50 from a generation config. On a
CPU in float32 the weights are copied into a layout that suits few rows, which takes their size in memory once more. On
a GPU the kernels of one step are recorded and replayed (unless the model has hooks, as a sharded one has), attention
reads each row's cache once (`attention_kernel`), and norms are fused.

    groups = generate(model, [[1, 5, 7], [1, 9]], 8, max_new_tokens=64, stop_ids=[2])
    groups[1][0].ids, groups[1][0].logprobs, groups[1][0].stopped
"""
import contextlib
import functools
import hashlib
import inspect
import warnings
import weakref
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

try:
    import triton
    import triton.language as tl
except ImportError:                     # builds of torch for a CPU come without
    triton = None

PREFILL_TOKENS = 8192        # prompt tokens, padding included, that go through the model at once
CPU_MEMORY = 2 * 2**30       # bytes of cache and logits for one batch on a CPU, where larger batches gain nothing
GPU_SHARE = 0.45             # on a GPU: this share of what the process has not allocated
BLOCK = 128                  # vocabulary entries that share one partial sum in `invert_cdf`
UNRECORDABLE = weakref.WeakSet()            # models that a GPU could not record a step of


@dataclass
class Rollout:
    """One completion. `ids` includes the stop token; `stopped` is False where the length limit cut it;
    `logprobs[t]` is the log-probability of `ids[t]` under softmax(logits / temperature), in nats, float32."""
    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float]
    stopped: bool


def generate(model, prompts, k, *, max_new_tokens, stop_ids, temperature=1.0, seed=0, keys=None, max_rows=None,
             progress=None, top_p=1.0):
    """Return P groups of k `Rollout`s for `prompts`, P lists of token ids of any lengths.

    stop_ids: the tokens that end a rollout, any number of them (none: every rollout runs to `max_new_tokens`).
    temperature: divides the logits; 0 is greedy, with log-probabilities at temperature 1.
    top_p: sample from the smallest set of most probable tokens that holds this mass; `logprobs` stay those of the
        full softmax(logits / temperature).
    seed, keys: integers; `keys` names each prompt (default: its position) so that its rollouts do not depend on which
        other prompts are sampled with it. Two prompts with the same key get the same random numbers.
    max_rows: rollouts decoded at once; the default follows from the model's shape and the device's memory.
    progress: called with the number of rollouts that have newly finished, P * k in all.

    The model runs in eval mode without gradients and gets its modes back, also after an exception. Raises ValueError
    before any work for arguments that cannot be right, and FloatingPointError where the logits are not finite.
    """
    config = model.config.get_text_config(decoder=True)
    stop_ids = sorted({int(i) for i in stop_ids})
    keys = list(range(len(prompts))) if keys is None else [int(key) for key in keys]
    check(model, config, prompts, k, max_new_tokens, stop_ids, temperature, top_p, keys, max_rows)
    if not prompts:
        return []
    sampler = Sampler(model, config, max_new_tokens, stop_ids, temperature, top_p, progress)
    longest = max(map(len, prompts)) + max_new_tokens
    max_rows = max_rows or rows_in_memory(model, config, longest)
    groups = [[None] * k for _ in prompts]
    # not inference_mode: what a module keeps from here may meet autograd
    pays = max_new_tokens > 8                  # packing takes about as long as it saves in so many steps
    packed = packed_weights(model, min(max_rows, k * len(prompts))) if pays else contextlib.nullcontext()
    here = torch.cuda.device(model.device) if model.device.type == "cuda" else contextlib.nullcontext()
    with here, eval_mode(model), torch.no_grad(), packed, fused_norms(model):
        for batch in plan_batches(prompts, k, max_rows, same_length=not sampler.can_pad):
            counts = [len(js) for _, js in batch]
            rows = [(p, j) for p, js in batch for j in js]
            uniforms = uniform_table([(int(seed), keys[p], j) for p, j in rows], max_new_tokens)
            outputs = sampler.run([prompts[p] for p, _ in batch], counts, uniforms)
            for (p, j), (ids, logprobs, stopped) in zip(rows, outputs):
                groups[p][j] = Rollout(list(prompts[p]), ids, logprobs, stopped)
    return groups


def check(model, config, prompts, k, max_new_tokens, stop_ids, temperature, top_p, keys, max_rows):
    """Refuse what would fail later, or not fail and be wrong."""
    def require(condition, message):
        if not condition:
            raise ValueError(message)
    vocabulary = model.get_input_embeddings().num_embeddings
    parameters = inspect.signature(model.forward).parameters
    require(not getattr(model.config, "is_encoder_decoder", False), "generate needs a decoder-only model")
    require("past_key_values" in parameters,
            f"{type(model).__name__} keeps no past_key_values: its state cannot be expanded to k rollouts")
    require(k >= 1, f"k must be at least 1, not {k}")
    require(max_new_tokens >= 1, f"max_new_tokens must be at least 1, not {max_new_tokens}")
    require(temperature >= 0, f"temperature must be 0 (greedy) or positive, not {temperature}")
    require(0 < top_p <= 1, f"top_p must be in (0, 1], not {top_p}")
    require(max_rows is None or max_rows >= 1, f"max_rows must be at least 1, not {max_rows}")
    require(len(keys) == len(prompts), f"{len(keys)} keys for {len(prompts)} prompts")
    require(all(0 <= i < vocabulary for i in stop_ids), f"stop ids outside the vocabulary ({vocabulary})")
    limit = getattr(config, "max_position_embeddings", None)
    if any(name.endswith("inv_freq") for name, _ in model.named_buffers()):
        limit = None                                # rotary positions go on beyond the trained length; a table does not
    for p, prompt in enumerate(prompts):
        require(len(prompt) > 0, f"prompt {p} is empty")
        require(min(prompt) >= 0 and max(prompt) < vocabulary,
                f"prompt {p} has ids outside the vocabulary ({vocabulary})")
        require(limit is None or len(prompt) + max_new_tokens <= limit,
                f"prompt {p}: {len(prompt)} + {max_new_tokens} new tokens exceed the model's {limit} positions")


@contextlib.contextmanager
def eval_mode(model):
    """Dropout off inside; every module's own mode back afterwards (parts of a model may be frozen in eval mode)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def packed_weights(model, rows):
    """Linear layers in float32 on a CPU multiply through oneDNN inside, by weights packed once for about `rows` rows.

    MKL, which they use otherwise, is up to 2.5 times as slow for a few rows and a tall matrix (the head); prompts of
    thousands of tokens lose a little. torch has only private names for this; where they or either library are missing,
    or memory for the copies, nothing changes. A model under torch.compile compiles anew at each call.
    """
    ops, layers = torch.ops.mkldnn, []
    if (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
            and hasattr(ops, "_reorder_linear_weight")):
        layers = [layer for layer in model.modules() if type(layer) is torch.nn.Linear and "forward" not in vars(layer)
                  and type(layer.weight) is torch.nn.Parameter     # not one that a hook works out at each call
                  and layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32]

    def forward(layer, packed, input):
        if torch.is_autocast_enabled("cpu"):
            return torch.nn.Linear.forward(layer, input)
        return ops._linear_pointwise(input, packed, layer.bias, "none", [], "")

    try:
        for layer in layers:
            try:
                layer.forward = functools.partial(forward, layer, ops._reorder_linear_weight(layer.weight, rows))
            except RuntimeError:                                   # out of memory: this one and the rest stay plain
                break
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


@contextlib.contextmanager
def fused_norms(*models):
    """RMS norms on a GPU run as torch's one kernel inside, not as the eight of transformers. Norms that compute
    something else (Gemma's multiply by 1 + weight), which a trial tells, stay as they are."""
    def forward(norm, eps, x):
        return F.rms_norm(x.to(norm.weight.dtype), norm.weight.shape, norm.weight, eps)

    def is_rms_norm(norm):
        weight, eps = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", None)
        if type(weight) is not torch.nn.Parameter or weight.dim() != 1 or eps is None or "forward" in vars(norm):
            return False
        trial = torch.linspace(-2, 3, len(weight), dtype=weight.dtype, device=weight.device)[None]
        with torch.no_grad():
            return (len(inspect.signature(norm.forward).parameters) == 1
                    and torch.allclose(forward(norm, eps, trial), norm(trial), rtol=0.02, atol=0.02))

    norms = [m for model in models if model.device.type == "cuda" for m in model.modules() if is_rms_norm(m)]
    for norm in norms:
        norm.forward = functools.partial(forward, norm, norm.variance_epsilon)
    try:
        yield
    finally:
        for norm in norms:
            vars(norm).pop("forward", None)                        # gone already where a model was named twice


def cache_dtype(dtype, device):
    """Under autocast attention casts what it reads at every step; stored in that type, the cast happens once."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype


def rows_in_memory(model, config, length):
    """Rows of `length` tokens whose cache and logits fit the memory of the model's device. It counts what this process
    has allocated, not what is free, so that the same run makes the same batches next time."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * heads * size * cache_dtype(model.dtype, model.device.type).itemsize
    per_row = length * per_token + 16 * config.vocab_size    # logits, probabilities, one more
    memory = CPU_MEMORY
    if model.device.type == "cuda":
        total = torch.cuda.get_device_properties(model.device).total_memory
        memory = GPU_SHARE * (total - torch.cuda.memory_allocated(model.device))
    return max(1, int(memory // per_row))


def plan_batches(prompts, k, max_rows, *, same_length=False):
    """Batches of (prompt, its rollout numbers), at most max_rows rollouts each, prompts of similar length together;
    a group is split only when k > max_rows. The longest come first: what does not fit in memory fails at once."""
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


def uniform_table(names, length):
    """Uniform numbers in [0, 1), float64 (length, len(names)): column r is the SplitMix64 stream (Steele, Lea and Flood
    2014) that starts from a hash of names[r], so row t does not depend on `length`. 52 bits: with one more, u * total
    could round up to total."""
    digests = [hashlib.blake2b(repr(name).encode(), digest_size=8).digest() for name in names]
    start = torch.tensor([int.from_bytes(d, "little", signed=True) for d in digests])
    def shift(x, n):                                # logical right shift: >> on int64 copies the sign bit
        return (x >> n) & ((1 << (64 - n)) - 1)
    x = start + torch.arange(1, length + 1)[:, None] * -0x61C8864680B583EB  # int64 arithmetic wraps, as it should
    x = (x ^ shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ shift(x, 27)) * -0x6B2FB644ECCEEE15
    return shift(x ^ shift(x, 31), 12).double() * 2.0**-52


def invert_cdf(weights, u):
    """Sample one index per row in proportion to `weights` (R, V), non-negative; u (R,) float64 in [0, 1 - 2^-52].

    A running sum of 150,000 float32 probabilities can end at 0.9998 (it depends on the device's accumulator), and it is
    the one pass over the vocabulary that does not vectorise. So: sums of BLOCK entries, their running sum in float64,
    then the running sum inside one block. u is scaled by the sum itself. A weight of zero is never chosen: the first
    index whose running sum is *greater* than the target has a positive weight.
    """
    rows, size = weights.shape
    blocks = F.pad(weights, (0, -size % BLOCK)).view(rows, -1, BLOCK) if size % BLOCK else weights.view(rows, -1, BLOCK)
    upto = blocks.sum(-1).double().cumsum(-1)                                    # (R, V / BLOCK)
    target = (u * upto[:, -1])[:, None]
    block = torch.searchsorted(upto, target, right=True).clamp_(max=upto.shape[1] - 1)  # for NaN
    before = torch.where(block > 0, upto.gather(1, (block - 1).clamp_(min=0)), 0.0)
    inside = blocks[torch.arange(rows, device=block.device), block[:, 0]].double().cumsum(-1)  # (R, BLOCK)
    target = torch.minimum(target - before, inside[:, -1:] * (1 - 2.0**-52))     # the two sums round apart
    return (block * BLOCK + torch.searchsorted(inside, target, right=True))[:, 0].clamp_(max=size - 1)


def keep_top_p(probs, top_p):
    """`probs` (R, V) with everything outside the smallest set of most probable tokens of mass >= top_p set to 0."""
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.double().cumsum(-1) - ordered                               # mass of the more probable tokens
    return torch.zeros_like(probs).scatter_(1, order, ordered.masked_fill_(before >= top_p, 0.0))


class BufferLayer(DynamicLayer):
    """Keys and values of one layer, (rows, heads, capacity, size), written in place: `DynamicLayer` copies the whole
    cache at each step. Sliding layers keep everything too; the model's mask hides what is out of the window."""

    def __init__(self, parts, counts, length, room, column=None):
        """parts: the filled layers of consecutive slices of the prompts; prompt i gets counts[i] rows, aligned to the
        right within the first `length` columns, with `room` more columns to come. column: for steps that are recorded,
        the tensor (1,) that holds the column of the step's token; then `update` returns all columns, empty ones too."""
        super().__init__()
        self.length, self.column, self.is_initialized = length, column, True
        self.keys = self.copy_rows([part.keys for part in parts], counts, room)
        self.values = self.copy_rows([part.values for part in parts], counts, room)

    def copy_rows(self, parts, counts, room):
        _, heads, _, size = parts[0].shape
        dtype = cache_dtype(parts[0].dtype, parts[0].device.type)
        # zeros: a masked weight of 0 times a stray NaN is NaN
        buffer = parts[0].new_zeros(sum(counts), heads, self.length + room, size, dtype=dtype)
        slots = iter(buffer.split(counts))
        for part in parts:
            start = self.length - part.shape[2]
            for prompt, slot in zip(part, slots):  # broadcasts: no temporary of the whole size
                slot[:, :, start:self.length] = prompt
        return buffer

    def update(self, key_states, value_states, *args, **kwargs):
        if self.column is not None:
            for buffer, states in ((self.keys, key_states), (self.values, value_states)):
                buffer.index_copy_(2, self.column, states.to(buffer.dtype))
            return self.keys, self.values
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length:end] = key_states
        self.values[:, :, self.length:end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self):
        return self.length

    def reorder_cache(self, beam_idx):
        """Slot i takes what slot beam_idx[i] held; only rows that move are copied, so they must not be read later."""
        moved = (beam_idx != torch.arange(len(beam_idx), device=beam_idx.device)).nonzero()[:, 0]
        end = self.length if self.column is None else None
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            buffer[moved, :, :end] = buffer[beam_idx[moved], :, :end]
            setattr(self, name, buffer[:len(beam_idx)])


def attend(module, query, key, value, attention_mask=None, scaling=None, *, first, used, **options):
    """Attention of one new token per row, (R, heads, 1, size), over `used` columns of its buffer from `first` on, both
    (R,): how far a row has come is in tensors, not in shapes, so that the step can be recorded."""
    more = [name for name in ("softcap", "sliding_window", "s_aux", "position_bias") if options.get(name) is not None]
    if more or attention_mask is not None:
        wanted = ", ".join(more) or "a mask of its own"
        raise NotImplementedError(f"{type(module).__name__} wants {wanted} in attention")
    rows, heads, capacity, size = key.shape
    query = query.to(key.dtype).reshape(rows, heads, -1, size).contiguous()         # grouped by their head of the cache
    if value.shape == key.shape and kernel_works(key.device.type, key.dtype, query.shape[2], size):
        output = torch.empty_like(query)
        launch_attention(query, key, value, output, first, used, scaling or size**-0.5)
    else:
        column = torch.arange(capacity, device=key.device)
        seen = (column >= first[:, None]) & (column < (first + used)[:, None])
        output = F.scaled_dot_product_attention(query, key, value, seen[:, None, None], scale=scaling)
    return output.reshape(rows, 1, -1, value.shape[3]), None


def launch_attention(query, key, value, output, first, used, scale):
    """`attention_kernel` for all rows and heads; query and output (R, heads of the cache, queries of each, size)."""
    rows, heads, group, size = query.shape
    attention_kernel[rows, heads](query, key, value, output, first, used, scale, *key.stride()[:3], group, size,
                                  max(16, triton.next_power_of_2(group)), max(16, triton.next_power_of_2(size)), 64)


@functools.cache
def kernel_works(device, dtype, group, size):
    """Whether this is a GPU and Triton is here, can compile (it needs a C compiler) and finds enough shared memory for
    heads of this size. Tried once."""
    if triton is None or device != "cuda" or dtype.itemsize != 2:
        return False
    query, key = (torch.zeros(1, 1, n, size, dtype=dtype, device=device) for n in (group, 64))
    one = torch.ones(1, dtype=torch.long, device=device)
    try:
        launch_attention(query, key, key, torch.empty_like(query), one - 1, one, 1.0)
    except Exception as error:                                     # of many kinds
        warnings.warn(f"Triton does not work here, decoding is slower without: {error!r}")
        return False
    return True


if triton:
    @triton.jit
    def attention_kernel(query, key, value, output, first, used, scale, row_stride, head_stride, column_stride,
                         GROUP: tl.constexpr, SIZE: tl.constexpr, GROUPS: tl.constexpr, SIZES: tl.constexpr,
                         COLUMNS: tl.constexpr):
        """One program reads the cache of one row and head once, for all query heads that share it, with a running
        softmax. torch's kernels read what is masked, copy the cache for each query head, or are made for long queries.
        GROUPS, SIZES: GROUP and SIZE rounded up to what the tensor cores take."""
        row, head = tl.program_id(0), tl.program_id(1)
        g, d = tl.arange(0, GROUPS)[:, None], tl.arange(0, SIZES)[None, :]
        inside = (g < GROUP) & (d < SIZE)
        at = ((row * tl.num_programs(1) + head) * GROUP + g) * SIZE + d
        q = tl.load(query + at, inside, 0.0)                                    # (GROUPS, SIZES)
        start = row.to(tl.int64) * row_stride + head * head_stride
        begin = tl.load(first + row)
        end = begin + tl.load(used + row)
        top, total = tl.full([GROUPS], float("-inf"), tl.float32), tl.zeros([GROUPS], tl.float32)
        mean = tl.zeros([GROUPS, SIZES], tl.float32)
        for column in range(begin, end, COLUMNS):
            c = column + tl.arange(0, COLUMNS)
            where, there = start + c[:, None] * column_stride + d, (c[:, None] < end) & (d < SIZE)
            k = tl.load(key + where, there, 0.0)                                # (COLUMNS, SIZES)
            v = tl.load(value + where, there, 0.0)
            scores = tl.where(c[None, :] < end, tl.dot(q, tl.trans(k)) * scale, float("-inf"))
            new_top = tl.maximum(top, tl.max(scores, 1))
            p, fade = tl.exp(scores - new_top[:, None]), tl.exp(top - new_top)
            top, total = new_top, total * fade + tl.sum(p, 1)
            mean = mean * fade[:, None] + tl.dot(p.to(v.dtype), v)
        tl.store(output + at, (mean / total[:, None]).to(q.dtype), inside)


class Sampler:
    """What stays the same from batch to batch: the model, what its forward takes, and how to draw a token."""

    def __init__(self, model, config, max_new_tokens, stop_ids, temperature, top_p, progress):
        self.model, self.config, self.max_new_tokens = model, config, max_new_tokens
        self.temperature, self.top_p = temperature, top_p
        self.progress = progress or (lambda finished: None)
        parameters = inspect.signature(model.forward).parameters
        layers = {type(layer) for layer in DynamicCache(config=config).layers}
        # Left padding needs position ids and a cache of keys and values only; a recurrent state (Mamba, linear
        # attention) would absorb the padding. Such models get batches of one prompt length and their own cache.
        self.can_pad = layers <= {DynamicLayer, DynamicSlidingWindowLayer} and "position_ids" in parameters
        # A ready-made 4-D mask saves building one at each step, but knows no sliding window and no additive bias.
        self.mask_4d = (layers == {DynamicLayer} and config._attn_implementation == "sdpa"
                        and not getattr(config, "alibi", False))
        self.options = {"use_cache": True} | ({"logits_to_keep": 1} if "logits_to_keep" in parameters else {})
        self.is_stop = torch.zeros(model.get_input_embeddings().num_embeddings, dtype=torch.bool, device=model.device)
        self.is_stop[stop_ids] = True
        self.check_every = 1 if model.device.type == "cpu" else 8           # each check waits for the device
        # On a GPU most of a step is the time to launch its kernels one by one: record them once, replay them at once.
        # The model must take attention from outside, and nothing may run in Python at each step (hooks, as of FSDP).
        self.records = (model.device.type == "cuda" and self.mask_4d and self.can_pad
                        and getattr(model, "_supports_attention_backend", False) and model not in UNRECORDABLE
                        and getattr(config, "attn_logit_softcapping", None) is None
                        and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()))

    def forward(self, ids, mask, positions, cache):
        """Logits (R, V) of the last position, in the model's dtype, and the cache."""
        if self.can_pad:
            self.options["position_ids"] = positions
        output = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, **self.options)
        return output.logits[:, -1], getattr(output, "past_key_values", None)

    def draw(self, logits, u):
        """Sampled ids (R,) and their log-probabilities (R,) float32."""
        logits = logits.float()
        if self.temperature == 0:
            ids = logits.argmax(-1)
            return ids, (logits.gather(1, ids[:, None]) - logits.logsumexp(-1, keepdim=True))[:, 0]
        probs = (logits if self.temperature == 1 else logits / self.temperature).softmax(-1)
        ids = invert_cdf(probs if self.top_p == 1 else keep_top_p(probs, self.top_p), u)
        return ids, probs.gather(1, ids[:, None])[:, 0].log()               # the log of the full softmax, top-p or not

    def prefill(self, prompts, counts, column):
        """Read each prompt once. Returns the cache with counts[i] rows for prompt i, logits (R, V), padding (R,)."""
        device, length, parts, logits = self.model.device, len(prompts[0]), [], []
        step = max(1, PREFILL_TOKENS // length) if self.can_pad else len(prompts)
        for some in (prompts[i:i + step] for i in range(0, len(prompts), step)):
            longest = len(some[0])                                          # plan_batches puts the longest first
            pads = [longest - len(prompt) for prompt in some]               # on the left: all rows end together
            ids = torch.tensor([prompt[:1] * pad + list(prompt) for pad, prompt in zip(pads, some)], device=device)
            positions = torch.arange(longest, device=device) - torch.tensor(pads, device=device)[:, None]
            mask = positions >= 0
            last, cache = self.forward(ids, mask if any(pads) else None, positions.clamp(min=0),
                                       DynamicCache() if self.can_pad else None)
            logits.append(last)
            parts.append(cache)
        source = torch.arange(len(prompts)).repeat_interleave(torch.tensor(counts)).to(device)
        if self.can_pad:
            cache = Cache(layers=[BufferLayer(layers, counts, length, self.max_new_tokens - 1, column)
                                  for layers in zip(*(part.layers for part in parts))])
        elif type(cache) is not DynamicCache:                               # a class of its own may leave state behind
            raise ValueError(f"{type(self.model).__name__} keeps its state in {type(cache).__name__}, whose rows this "
                             "sampler cannot expand to k rollouts")
        else:
            cache.reorder_cache(source)
        padding = torch.tensor([length - len(prompt) for prompt in prompts], device=device)
        return cache, torch.cat(logits)[source], padding[source]

    def run(self, prompts, counts, uniforms):
        """Decode one batch. Returns (ids, logprobs, stopped) for each row."""
        try:
            return self.decode(prompts, counts, uniforms)
        except NotImplementedError as error:                                # from `attend`, in the first step
            if not self.records:
                raise
            self.record_no_more(error)
        return self.decode(prompts, counts, uniforms)

    def record_no_more(self, reason):
        warnings.warn(f"decoding steps of {type(self.model).__name__} are not recorded, hence slower: {reason}")
        UNRECORDABLE.add(self.model)
        self.records = False

    def decode(self, prompts, counts, uniforms):
        batch, living = Batch(self, prompts, counts, uniforms), sum(counts)
        step = batch.step
        for t in range(1, self.max_new_tokens):
            if t % self.check_every == 0 and (left := len(batch.ended) - int(batch.ended.sum())) < living:
                self.progress(living - left)
                living = left
                if not living:
                    break
                # Moving rows costs, and so does recording a step of another shape; dead rows cost, too.
                if living <= (0.5 if self.records else 0.875) * len(batch.ended):
                    batch.shrink(living)
                    step = batch.step
            if self.records and step == batch.step and t + 1 < self.max_new_tokens:
                step = batch.record()
            else:
                step()
        self.progress(living)
        return self.collect(batch.ids, batch.logprobs)

    def collect(self, ids, logprobs):
        """Cut each row of the tables (T, R) after its first stop token."""
        stops = self.is_stop[ids]
        lengths = torch.where(stops.any(0), stops.int().argmax(0) + 1, len(ids))
        if not logprobs.isfinite().all():
            raise FloatingPointError("the model's logits are not finite")
        table = zip(ids.T.tolist(), logprobs.T.tolist(), lengths.tolist(), stops.any(0).tolist())
        return [(row_ids[:n], row_logprobs[:n], stopped) for row_ids, row_logprobs, n, stopped in table]


class Batch:
    """Rollouts in flight. What changes from step to step is in tensors, which change in place: so a step can be
    recorded. `column` is None where it will not be; then the cache and the mask grow with each step."""

    def __init__(self, sampler, prompts, counts, uniforms):
        device, length = sampler.model.device, len(prompts[0])
        self.sampler, self.length, self.drawn = sampler, length, 0
        self.uniforms = uniforms.to(device)                                 # (T, R), like ids and logprobs
        self.ids = torch.zeros(uniforms.shape, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(uniforms.shape, device=device)
        self.t, column = (torch.tensor([n], device=device) for n in (0, length - 1))
        self.column = column if sampler.records else None
        self.cache, logits, padding = sampler.prefill(prompts, counts, self.column)
        # One entry per slot: which row it holds, its last token and the token's position, whether the row has ended.
        self.row, self.token = torch.arange(len(padding), device=device), torch.zeros_like(padding)
        self.positions, self.padding, self.ended = (length - 1 - padding)[:, None], padding, padding < 0
        self.is_padded = len(prompts[-1]) < length
        self.mask = torch.arange(length + sampler.max_new_tokens, device=device) >= padding[:, None]
        self.draw(logits)

    def draw(self, logits):
        token, logprob = self.sampler.draw(logits, self.uniforms[self.t, self.row])
        self.ids[self.t, self.row], self.logprobs[self.t, self.row] = token, logprob
        self.token.copy_(token)
        self.ended |= self.sampler.is_stop[token]
        self.drawn += 1
        for number in (self.t, self.positions, self.column):
            if number is not None:
                number += 1

    def step(self):
        """Read the last tokens and draw the next."""
        config, sampler = self.sampler.config, self.sampler
        if self.column is not None:
            now = functools.partial(attend, first=self.padding, used=self.positions[:, 0] + 1)
            AttentionInterface.register("rollout", now)
            before, config._attn_implementation = config._attn_implementation, "rollout"
            try:
                logits, _ = sampler.forward(self.token[:, None], None, self.positions, self.cache)
            finally:
                config._attn_implementation = before
                AttentionInterface.register("rollout", attend)              # without this step's tensors
        else:
            seen = self.mask[:, :self.length + self.drawn] if self.is_padded else None
            seen = seen[:, None, None] if self.is_padded and sampler.mask_4d else seen
            logits, _ = sampler.forward(self.token[:, None], seen, self.positions, self.cache)
            self.held = logits      # until the next have come: memory given back and taken anew costs more than a pass
        self.draw(logits)

    def record(self):
        """Do a step, which warms up its shape, and return what does the next ones: the replay of one that is recorded
        here, or `step` where that cannot be, as with a model that waits for the device to read a value."""
        fault = ""                      # not the error itself, whose traceback would hold all of this in memory
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                                          # "prototype feature"
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("error")                                  # waits shall fail now, not below
        try:
            self.step()
        except (NotImplementedError, torch.OutOfMemoryError):
            raise
        except RuntimeError as error:
            fault = str(error)
        finally:
            torch.cuda.set_sync_debug_mode(before)
        if fault:
            self.step()                 # nothing had changed that it does not write again; any other error comes again
        else:
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.stream(torch.cuda.current_stream()):                 # put back also where it fails
                    with torch.cuda.graph(graph, stream=recording_stream(self.row.device),
                                          capture_error_mode="thread_local"):
                        self.step()
                return graph.replay
            except RuntimeError as error:
                fault = str(error)
        self.sampler.record_no_more(fault)
        return self.step

    def shrink(self, living):
        """Leave out the rows that have ended: their slots take living rows from behind."""
        keep = torch.arange(living, device=self.row.device)
        keep[self.ended[:living]] = living + (~self.ended[living:]).nonzero()[:, 0]
        self.cache.reorder_cache(keep)
        for name in ("row", "token", "positions", "padding", "mask", "ended"):
            setattr(self, name, getattr(self, name)[keep])


@functools.cache
def recording_stream(device):
    """One for each device: torch's own belongs to the first that recorded anything."""
    return torch.cuda.Stream(device)
