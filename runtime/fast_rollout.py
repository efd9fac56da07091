"""`generate` of rollout.py, faster: the same arguments, the same random numbers, the same rollouts.

What saves time, in the order of this file:

- `packed_weights` (CPU, float32): weights in a layout that suits few rows. Takes their size in
  memory once more.
- `fused_norms` (GPU): one kernel for each RMS norm.
- `BufferLayer`: a cache of fixed size, written and reordered in place.
- `attend` (GPU): attention that reads each row's cache once, in a Triton kernel where there is one.
- `Sampler` and `Batch`: dead rows stay in the batch until enough have ended; a 4-D mask made once;
  on a GPU the kernels that decode one token are captured in a CUDA graph and replayed.

Where one of these does not fit the model or the machine, decoding goes on without it. The results
differ from those of `rollout.generate` by the rounding of the forward pass only.

    from runtime.fast_rollout import generate
"""

import contextlib
import functools
import inspect
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

import rollout
from rollout import PREFILL_TOKENS, Rollout

try:
    import triton
    import triton.language as tl
except ImportError:  # builds of torch for a CPU come without
    triton = None

PACKING_TOKENS = 8  # packing the weights takes about as long as it saves in so many new tokens
CPU_MEMORY = 2 * 2**30  # bytes of cache and logits of a batch on a CPU: larger ones gain nothing
GPU_SHARE = 0.45  # the same on a GPU: a share of the memory that this process has not allocated
UNCAPTURABLE = weakref.WeakSet()  # models whose decoding cannot be captured in a CUDA graph


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
    """Return P groups of k rollouts for P prompts. Arguments and errors: see `rollout.generate`."""
    stop_ids = sorted({int(i) for i in stop_ids})
    keys = list(range(len(prompts))) if keys is None else [int(key) for key in keys]
    rollout.check(model, prompts, k, max_new_tokens, stop_ids, temperature, top_p, keys, max_rows)
    if not prompts:
        return []
    max_rows = max_rows or rows_in_memory(model, max(map(len, prompts)) + max_new_tokens)
    sampler = Sampler(model, max_new_tokens, stop_ids, temperature, top_p, progress)
    groups = [[None] * k for _ in prompts]
    with contextlib.ExitStack() as stack:
        if model.device.type == "cuda":
            stack.enter_context(torch.cuda.device(model.device))
        stack.enter_context(rollout.eval_mode(model))
        stack.enter_context(torch.no_grad())  # not inference_mode: see rollout.generate
        if max_new_tokens > PACKING_TOKENS:
            stack.enter_context(packed_weights(model, min(max_rows, k * len(prompts))))
        stack.enter_context(fused_norms(model))
        for batch in rollout.plan_batches(prompts, k, max_rows, same_length=not sampler.can_pad):
            counts = [len(js) for _, js in batch]
            rows = [(p, j) for p, js in batch for j in js]
            uniforms = rollout.uniform_table(
                [(int(seed), keys[p], j) for p, j in rows], max_new_tokens
            )
            completions = sampler.run([prompts[p] for p, _ in batch], counts, uniforms)
            for (p, j), (ids, logprobs, stopped) in zip(rows, completions, strict=True):
                groups[p][j] = Rollout(list(prompts[p]), ids, logprobs, stopped)
    return groups


@contextlib.contextmanager
def packed_weights(model: torch.nn.Module, rows: int) -> Iterator[None]:
    """Inside, float32 linear layers on a CPU multiply by weights packed once for `rows` rows.

    This goes through oneDNN. MKL, the default, is up to 2.5 times as slow for a few rows and a tall
    matrix (the head); prompts of thousands of tokens lose a little. torch has only private names
    for it: where they, one of the libraries or the memory for the copies are missing, nothing
    changes. A model under torch.compile is compiled anew by each call.
    """
    ops, layers = torch.ops.mkldnn, []
    available = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if available and hasattr(ops, "_reorder_linear_weight"):
        layers = [module for module in model.modules() if can_pack(module)]

    def forward(layer, packed, input):
        if torch.is_autocast_enabled("cpu"):
            return torch.nn.Linear.forward(layer, input)
        return ops._linear_pointwise(input, packed, layer.bias, "none", [], "")

    try:
        for layer in layers:
            try:
                packed = ops._reorder_linear_weight(layer.weight, rows)
            except RuntimeError:  # out of memory: this layer and the rest stay as they are
                break
            layer.forward = functools.partial(forward, layer, packed)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def can_pack(module: torch.nn.Module) -> bool:
    """Whether this is an ordinary float32 linear layer on the CPU."""
    return (
        type(module) is torch.nn.Linear
        and "forward" not in vars(module)  # someone else's replacement
        and type(module.weight) is torch.nn.Parameter  # not computed by a hook at each call
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
    )


@contextlib.contextmanager
def fused_norms(*models: torch.nn.Module) -> Iterator[None]:
    """Inside, RMS norms on a GPU run as torch's one kernel, not as the eight of transformers.

    Norms that compute something else (Gemma's multiply by 1 + weight) stay as they are; a trial
    tells them apart.
    """

    def forward(norm, eps, x):
        return F.rms_norm(x.to(norm.weight.dtype), norm.weight.shape, norm.weight, eps)

    def is_rms_norm(norm):
        weight, eps = getattr(norm, "weight", None), getattr(norm, "variance_epsilon", None)
        if type(weight) is not torch.nn.Parameter or weight.dim() != 1 or eps is None:
            return False
        if "forward" in vars(norm) or len(inspect.signature(norm.forward).parameters) != 1:
            return False
        trial = torch.linspace(-2, 3, len(weight), dtype=weight.dtype, device=weight.device)[None]
        with torch.no_grad():
            return torch.allclose(forward(norm, eps, trial), norm(trial), rtol=0.02, atol=0.02)

    on_gpu = [model for model in models if model.device.type == "cuda"]
    norms = [module for model in on_gpu for module in model.modules() if is_rms_norm(module)]
    for norm in norms:
        norm.forward = functools.partial(forward, norm, norm.variance_epsilon)
    try:
        yield
    finally:
        for norm in norms:
            vars(norm).pop("forward", None)  # None: gone already if a model was named twice


def cache_dtype(dtype: torch.dtype, device: str) -> torch.dtype:
    """The type to store keys and values in.

    Under autocast attention casts whatever it reads, for every token: stored in autocast's type,
    the cast happens once.
    """
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype


def rows_in_memory(model: PreTrainedModel, length: int) -> int:
    """Rows of `length` tokens whose cache and logits fit the memory of the model's device.

    Counts what this process has allocated, not what is free: a run that is repeated forms the same
    batches.
    """
    config = model.config.get_text_config(decoder=True)
    try:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        width = heads * size
    except (AttributeError, RuntimeError, TypeError):  # no heads, or others in each layer
        width = config.hidden_size
    dtype = cache_dtype(model.dtype, model.device.type)
    per_token = 2 * config.num_hidden_layers * width * dtype.itemsize
    per_row = length * per_token + 16 * config.vocab_size  # logits, probabilities, one more
    memory = CPU_MEMORY
    if model.device.type == "cuda":
        total = torch.cuda.get_device_properties(model.device).total_memory
        memory = GPU_SHARE * (total - torch.cuda.memory_allocated(model.device))
    return max(1, int(memory // per_row))


class BufferLayer(DynamicLayer):
    """Keys and values of one layer, (rows, heads, capacity, size), written in place.

    `DynamicLayer` copies the whole cache for every token. Sliding layers keep everything, too; the
    model's mask hides what is outside the window.
    """

    def __init__(self, parts, counts, length, room, column=None):
        """Expand the filled layers of consecutive slices of the prompts to the rows of a batch.

        Prompt i gets counts[i] rows, aligned on the right within the first `length` columns; `room`
        more columns are for the new tokens. column: where decoding is captured, the tensor (1,)
        with the column of the current token; then `update` returns all columns, empty ones too.
        """
        super().__init__()
        self.length, self.column, self.is_initialized = length, column, True
        self.keys = self.copy_rows([part.keys for part in parts], counts, room)
        self.values = self.copy_rows([part.values for part in parts], counts, room)

    def copy_rows(self, parts, counts, room):
        _, heads, _, size = parts[0].shape
        dtype = cache_dtype(parts[0].dtype, parts[0].device.type)
        shape = (sum(counts), heads, self.length + room, size)
        buffer = parts[0].new_zeros(shape, dtype=dtype)  # a masked weight of 0 times NaN is NaN
        slots = iter(buffer.split(counts))
        for part in parts:
            start = self.length - part.shape[2]
            for prompt, slot in zip(part, slots, strict=False):
                slot[:, :, start : self.length] = prompt  # broadcast: no temporary of full size
        return buffer

    def update(self, key_states, value_states, *args, **kwargs):
        if self.column is not None:
            for buffer, states in ((self.keys, key_states), (self.values, value_states)):
                buffer.index_copy_(2, self.column, states.to(buffer.dtype))
            return self.keys, self.values
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self):
        return self.length

    def reorder_cache(self, beam_idx):
        """Row i becomes the old row beam_idx[i]; only rows that change are copied."""
        rows = torch.arange(len(beam_idx), device=beam_idx.device)
        changed = (beam_idx != rows).nonzero()[:, 0]
        end = self.length if self.column is None else None
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            buffer[changed, :, :end] = buffer[beam_idx[changed], :, :end]
            setattr(self, name, buffer[: len(beam_idx)])


def attend(module, query, key, value, attention_mask=None, scaling=None, *, first, used, **options):
    """Attention of one new token per row, query (R, heads, 1, size), as transformers calls it.

    Row r sees the columns first[r] to first[r] + used[r] - 1 of its buffer. These stand in tensors,
    not in shapes, so that it can be captured.
    """
    names = ("softcap", "sliding_window", "s_aux", "position_bias")
    extras = [name for name in names if options.get(name) is not None]
    if extras or attention_mask is not None:
        wanted = ", ".join(extras) or "a mask of its own"
        raise NotImplementedError(f"{type(module).__name__} wants {wanted} in attention")
    rows, heads, capacity, size = key.shape
    # Query heads are grouped by the head of the cache that they share.
    query = query.to(key.dtype).reshape(rows, heads, -1, size).contiguous()
    same_size = value.shape == key.shape
    if same_size and kernel_works(key.device.type, key.dtype, query.shape[2], size):
        output = torch.empty_like(query)
        launch_attention(query, key, value, output, first, used, scaling or size**-0.5)
    else:
        column = torch.arange(capacity, device=key.device)
        seen = (column >= first[:, None]) & (column < (first + used)[:, None])
        output = F.scaled_dot_product_attention(
            query, key, value, seen[:, None, None], scale=scaling
        )
    return output.reshape(rows, 1, -1, value.shape[3]), None


def launch_attention(query, key, value, output, first, used, scale):
    """Run `attention_kernel` for all rows and heads of the cache.

    query, output: (R, heads of the cache, query heads that share each, size).
    """
    rows, heads, group, size = query.shape
    attention_kernel[rows, heads](
        query,
        key,
        value,
        output,
        first,
        used,
        scale,
        *key.stride()[:3],
        group,
        size,
        max(16, triton.next_power_of_2(group)),
        max(16, triton.next_power_of_2(size)),
        64,
    )


@functools.cache
def kernel_works(device: str, dtype: torch.dtype, group: int, size: int) -> bool:
    """Whether `attention_kernel` runs here, tried once for each shape.

    It needs a GPU, Triton with a C compiler, and enough shared memory for heads of this size.
    """
    if triton is None or device != "cuda" or dtype.itemsize != 2:
        return False
    query, key = (torch.zeros(1, 1, n, size, dtype=dtype, device=device) for n in (group, 64))
    one = torch.ones(1, dtype=torch.long, device=device)
    try:
        launch_attention(query, key, key, torch.empty_like(query), one - 1, one, 1.0)
    except Exception as error:  # of many kinds
        warnings.warn(
            f"Triton does not work here, decoding is slower without: {error!r}", stacklevel=2
        )
        return False
    return True


if triton:

    @triton.jit
    def attention_kernel(
        query,
        key,
        value,
        output,
        first,
        used,
        scale,
        row_stride,
        head_stride,
        column_stride,
        GROUP: tl.constexpr,
        SIZE: tl.constexpr,
        GROUPS: tl.constexpr,
        SIZES: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):
        """One program reads the cache of one row and head, for all query heads that share it.

        It keeps a running softmax. torch's kernels read what is masked, copy the cache for each
        query head, or are made for long queries. GROUPS, SIZES: GROUP and SIZE rounded up to what
        the tensor cores take.
        """
        row, head = tl.program_id(0), tl.program_id(1)
        g, d = tl.arange(0, GROUPS)[:, None], tl.arange(0, SIZES)[None, :]
        inside = (g < GROUP) & (d < SIZE)
        at = ((row * tl.num_programs(1) + head) * GROUP + g) * SIZE + d
        q = tl.load(query + at, inside, 0.0)  # (GROUPS, SIZES)
        start = row.to(tl.int64) * row_stride + head * head_stride
        begin = tl.load(first + row)
        end = begin + tl.load(used + row)
        top, total = tl.full([GROUPS], float("-inf"), tl.float32), tl.zeros([GROUPS], tl.float32)
        mean = tl.zeros([GROUPS, SIZES], tl.float32)
        for column in range(begin, end, COLUMNS):
            c = column + tl.arange(0, COLUMNS)
            offsets = start + c[:, None] * column_stride + d
            filled = (c[:, None] < end) & (d < SIZE)
            k = tl.load(key + offsets, filled, 0.0)  # (COLUMNS, SIZES)
            v = tl.load(value + offsets, filled, 0.0)
            scores = tl.where(c[None, :] < end, tl.dot(q, tl.trans(k)) * scale, float("-inf"))
            new_top = tl.maximum(top, tl.max(scores, 1))
            p, fade = tl.exp(scores - new_top[:, None]), tl.exp(top - new_top)
            top, total = new_top, total * fade + tl.sum(p, 1)
            mean = mean * fade[:, None] + tl.dot(p.to(v.dtype), v)
        tl.store(output + at, (mean / total[:, None]).to(q.dtype), inside)


class Sampler:
    """What stays the same from batch to batch: the model, its options, how to sample a token."""

    def __init__(self, model, max_new_tokens, stop_ids, temperature, top_p, progress):
        config = model.config.get_text_config(decoder=True)
        self.model, self.config, self.max_new_tokens = model, config, max_new_tokens
        self.temperature, self.top_p = temperature, top_p
        self.progress = progress or (lambda ended: None)
        self.can_pad = rollout.can_pad(model)
        # A 4-D mask saves building one for every token, but knows no sliding window and no additive
        # bias.
        layers = {type(layer) for layer in DynamicCache(config=config).layers}
        self.mask_4d = (
            layers == {DynamicLayer}
            and config._attn_implementation == "sdpa"
            and not getattr(config, "alibi", False)
        )
        accepted = inspect.signature(model.forward).parameters
        self.cache_name = rollout.cache_argument(model)
        self.takes_positions = "position_ids" in accepted  # Bamba's own are wrong: always give them
        self.options = {"use_cache": True}
        if "logits_to_keep" in accepted:
            self.options["logits_to_keep"] = 1
        vocabulary = model.get_input_embeddings().num_embeddings
        self.is_stop = torch.zeros(vocabulary, dtype=torch.bool, device=model.device)
        self.is_stop[stop_ids] = True
        self.check_every = 1 if model.device.type == "cpu" else 8  # a check waits for the device
        # On a GPU, launching the kernels of one token one by one takes most of its time: capture
        # them once, replay them at once. The model must take attention from outside, and no Python
        # may have to run for each token (hooks, as of FSDP).
        self.captures = (
            model.device.type == "cuda"
            and self.mask_4d
            and self.can_pad
            and getattr(model, "_supports_attention_backend", False)
            and model not in UNCAPTURABLE
            and getattr(config, "attn_logit_softcapping", None) is None
            and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        )

    def forward(self, ids, mask, positions, cache):
        """Logits (R, V) of the last position, in the model's dtype."""
        if self.takes_positions:
            self.options["position_ids"] = positions
        output = self.model(
            input_ids=ids, attention_mask=mask, **{self.cache_name: cache}, **self.options
        )
        return output.logits[:, -1]

    def prefill(self, prompts, counts, column):
        """Read each prompt once, the longest first.

        Returns the cache with counts[i] rows for prompt i, logits (R, V), and padding (R,).
        """
        device, length = self.model.device, len(prompts[0])
        source = torch.arange(len(prompts)).repeat_interleave(torch.tensor(counts)).to(device)
        if not self.can_pad:
            logits, cache, padding = rollout.prefill(self.model, prompts)
            rollout.reorder(cache, source)
            return cache, logits[source], padding[source]
        caches, logits, size = [], [], max(1, PREFILL_TOKENS // length)
        for start in range(0, len(prompts), size):
            part = prompts[start : start + size]
            width = len(part[0])
            padding = [width - len(prompt) for prompt in part]  # left: all rows end together
            ids = [[prompt[0]] * n + list(prompt) for prompt, n in zip(part, padding, strict=True)]
            ids, padding = torch.tensor(ids, device=device), torch.tensor(padding, device=device)
            positions = torch.arange(width, device=device) - padding[:, None]
            mask = positions >= 0 if len(part[-1]) < width else None
            caches.append(DynamicCache())
            logits.append(self.forward(ids, mask, positions.clamp(min=0), caches[-1]))
        cache = Cache(
            layers=[
                BufferLayer(layers, counts, length, self.max_new_tokens - 1, column)
                for layers in zip(*(cache.layers for cache in caches), strict=True)
            ]
        )
        padding = torch.tensor([length - len(prompt) for prompt in prompts], device=device)
        return cache, torch.cat(logits)[source], padding[source]

    def run(self, prompts, counts, uniforms):
        """Sample one batch. Returns (ids, logprobs, stopped) for each row."""
        try:
            return self.decode(prompts, counts, uniforms)
        except NotImplementedError as error:  # from `attend`, at the first token
            if not self.captures:
                raise
            self.stop_capturing(error)
        return self.decode(prompts, counts, uniforms)

    def stop_capturing(self, reason):
        warnings.warn(
            f"decoding of {type(self.model).__name__} is not captured in a CUDA graph, hence "
            f"slower: {reason}",
            stacklevel=2,
        )
        UNCAPTURABLE.add(self.model)
        self.captures = False

    def decode(self, prompts, counts, uniforms):
        batch, living = Batch(self, prompts, counts, uniforms), sum(counts)
        advance = batch.advance
        for t in range(1, self.max_new_tokens):
            if t % self.check_every == 0:
                left = len(batch.ended) - int(batch.ended.sum())
                if left < living:
                    self.progress(living - left)
                    living = left
                    if not living:
                        break
                    # Dead rows cost time; so does moving rows, or capturing for another shape.
                    if living <= (0.5 if self.captures else 0.875) * len(batch.ended):
                        batch.shrink(living)
                        advance = batch.advance
            if self.captures and advance == batch.advance and t + 1 < self.max_new_tokens:
                advance = batch.capture()
            else:
                advance()
        self.progress(living)
        return self.collect(batch.ids, batch.logprobs)

    def collect(self, ids, logprobs):
        """Cut each column of the tables (T, R) after its first stop token."""
        stops = self.is_stop[ids]
        stopped = stops.any(0)
        lengths = torch.where(stopped, stops.int().argmax(0) + 1, len(ids))
        if not logprobs.isfinite().all():
            raise FloatingPointError("the model's logits are not finite")
        columns = (table.tolist() for table in (ids.T, logprobs.T, lengths, stopped))
        return [
            (row_ids[:n], row_logprobs[:n], row_stopped)
            for row_ids, row_logprobs, n, row_stopped in zip(*columns, strict=True)
        ]


class Batch:
    """The rows that are decoded together.

    Whatever changes from token to token stands in tensors that change in place: so decoding can be
    captured. `column` is None where it will not be; then the cache and the mask grow by a column
    for each token.
    """

    def __init__(self, sampler, prompts, counts, uniforms):
        device, length = sampler.model.device, len(prompts[0])
        self.sampler, self.length, self.sampled = sampler, length, 0
        self.uniforms = uniforms.to(device)  # (T, R), like ids and logprobs
        self.ids = torch.zeros(uniforms.shape, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(uniforms.shape, device=device)
        self.t, column = (torch.tensor([n], device=device) for n in (0, length - 1))
        self.column = column if sampler.captures else None
        self.cache, logits, padding = sampler.prefill(prompts, counts, self.column)
        # One entry per slot: its row in the tables, its last token, the token's position, whether
        # the row has ended.
        self.row = torch.arange(len(padding), device=device)
        self.token = torch.zeros_like(padding)
        self.positions, self.padding = (length - 1 - padding)[:, None], padding
        self.ended = padding < 0
        self.is_padded = len(prompts[-1]) < length
        self.mask = torch.arange(length + sampler.max_new_tokens, device=device) >= padding[:, None]
        self.append_tokens(logits)

    def append_tokens(self, logits):
        """Sample the next token of each slot and write it into the tables."""
        token, logprob = rollout.sample_tokens(
            logits,
            self.uniforms[self.t, self.row],
            self.sampler.temperature,
            self.sampler.top_p,
        )
        self.ids[self.t, self.row], self.logprobs[self.t, self.row] = token, logprob
        self.token.copy_(token)
        self.ended |= self.sampler.is_stop[token]
        self.sampled += 1
        for number in (self.t, self.positions, self.column):
            if number is not None:
                number += 1

    def advance(self):
        """Feed the last token of each slot and sample the next."""
        config, sampler = self.sampler.config, self.sampler
        if self.column is not None:
            attention = functools.partial(attend, first=self.padding, used=self.positions[:, 0] + 1)
            AttentionInterface.register("rollout", attention)
            before, config._attn_implementation = config._attn_implementation, "rollout"
            try:
                logits = sampler.forward(self.token[:, None], None, self.positions, self.cache)
            finally:
                config._attn_implementation = before
                AttentionInterface.register("rollout", attend)  # lets go of the batch's tensors
        else:
            mask = self.mask[:, : self.length + self.sampled] if self.is_padded else None
            mask = mask[:, None, None] if self.is_padded and sampler.mask_4d else mask
            logits = sampler.forward(self.token[:, None], mask, self.positions, self.cache)
            # Keep a reference until the next token: to free and allocate this buffer again costs
            # more than to compute it.
            self.held = logits
        self.append_tokens(logits)

    def capture(self):
        """Advance by one token, which warms up this shape, and return what advances by the next.

        That is the replay of a graph captured here, or `advance` where decoding cannot be captured,
        as of a model that waits for the device to read a value.
        """
        fault = ""  # the text alone: the error's traceback would hold all of this in memory
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "prototype feature"
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("error")  # a wait fails now, not in the capture
        try:
            self.advance()
        except (NotImplementedError, torch.OutOfMemoryError):
            raise
        except RuntimeError as error:
            fault = str(error)
        finally:
            torch.cuda.set_sync_debug_mode(before)
        if fault:
            # What failed left nothing behind that is not overwritten now. An error that has nothing
            # to do with capturing is raised again here.
            self.advance()
        else:
            graph = torch.cuda.CUDAGraph()
            try:
                # The outer context restores the current stream also where capturing fails.
                with torch.cuda.stream(torch.cuda.current_stream()):
                    with torch.cuda.graph(
                        graph,
                        stream=capture_stream(self.row.device),
                        capture_error_mode="thread_local",
                    ):
                        self.advance()
                return graph.replay
            except RuntimeError as error:
                fault = str(error)
        self.sampler.stop_capturing(fault)
        return self.advance

    def shrink(self, living):
        """Drop the rows that have ended: living rows from behind move into their slots."""
        keep = torch.arange(living, device=self.row.device)
        keep[self.ended[:living]] = living + (~self.ended[living:]).nonzero()[:, 0]
        rollout.reorder(self.cache, keep)
        for name in ("row", "token", "positions", "padding", "mask", "ended"):
            setattr(self, name, getattr(self, name)[keep])


@functools.cache
def capture_stream(device: torch.device) -> "torch.cuda.Stream":
    """One stream per device: torch's default for captures belongs to the device that came first."""
    return torch.cuda.Stream(device)
