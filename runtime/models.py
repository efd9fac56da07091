"""What has to be known about a model: output layer, limits, faults of loading, the check at start.

Everything that differs between model families stands here, so that mopd.py can speak of the method
alone; chat templates are in templates.py. Families are not listed: a model is tried, see
`check_model`; docs/models.md has the results.
"""

import contextlib
import functools
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

import rollout
from loss import Head, as_head
from runtime import (
    NOT_THERE,
    fast_rollout,
    first_line,
    parallel,
    reason_of_the_hub,
    status_of,
    unreachable,
)
from runtime.templates import (  # noqa: F401 (they are looked for here, too)
    chat_ids,
    completion_text,
    layouts_of,
    plain_text,
    stop_ids,
    student_ids,
)

# --- the output layer ---

CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def head(model) -> torch.Tensor | Head:
    """The output layer: the matrix (V, D) if it is nothing else, or a Head, see loss.py.

    Rows beyond the model's logits (padding that the model cuts off) are left out. The first call
    fits the layer, see `fit_head`; a copy of the model keeps what was found.
    """
    if not hasattr(model, "head_form"):
        fit_head(model, type(model).__name__)
    output, (scale, cap, rows) = model.get_output_embeddings(), model.head_form
    weight, bias = output.weight, getattr(output, "bias", None)
    if rows < len(weight):
        weight, bias = weight[:rows], None if bias is None else bias[:rows]
    plain = bias is None and scale == 1 and cap is None
    return weight if plain else Head(weight, bias, scale, cap)


def vocabulary_size(model) -> int:
    """The number of logits: rows of the output layer without those that the model cuts off."""
    if not hasattr(model, "head_form"):
        fit_head(model, type(model).__name__)
    return model.head_form[2]


def backbone(model) -> torch.nn.Module:
    """The model without its output layer, whose last hidden states go into the loss."""
    if model.base_model is not model:
        return model.base_model
    # Llama 4's and Mllama's base_model is the model itself: take the model inside.
    inner = [part for part in model.children() if isinstance(part, PreTrainedModel)]
    return inner[0] if inner else model


@torch.no_grad()
def fit_head(model, name: str) -> None:
    """Find scale and cap of z = cap * tanh(scale * (h W^T + b) / cap) and keep them on the model.

    The bias is the output layer's, the cap the configuration's; the scale is fitted. The result
    must hold for the model's own hidden states and for enlarged ones, because small logits show no
    cap. Raises ValueError for a model whose logits are of another form.
    """
    output, size = model.get_output_embeddings(), model.get_input_embeddings().num_embeddings
    if not isinstance(getattr(output, "weight", None), torch.Tensor) or output.weight.dim() != 2:
        raise ValueError(
            f"{name}: no output matrix that the loss could use ({type(output).__name__})"
        )
    ids = (torch.arange(8, device=model.device)[None] + size // 2) % size
    with rollout.eval_mode(model):
        hidden = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
        logits = logits_of(model, ids)
        fits, rows = False, logits.shape[1]
        if hidden.shape[1] == output.weight.shape[1] and rows <= len(output.weight):
            bias = getattr(output, "bias", None)
            layer = Head(output.weight[:rows], None if bias is None else bias[:rows])
            layer = replace(layer, **scale_and_cap(layer, model.config, hidden, logits))
            factor = 100 / max(float(replace(layer, cap=None).logits(hidden).abs().max()), 1e-3)
            fits = is_close(layer.logits(hidden), logits) and is_close(
                layer.logits(hidden * factor), logits_of(model, ids, factor)
            )
    if not fits:
        raise ValueError(
            f"{name}: its logits are no cap * tanh(scale * (hidden states x output matrix + bias)"
            f" / cap), which is all that the loss can differentiate"
        )
    model.head_form = (layer.scale, layer.cap, rows)


def scale_and_cap(plain: Head, config, hidden, logits) -> dict[str, float | None]:
    """The configuration's cap, and the scale that fits the logits (n, V): 1.0 within rounding."""
    config = config.get_text_config(decoder=True)
    cap = next(filter(None, (getattr(config, field, None) for field in CAPS)), None)
    z, wanted, used = plain.logits(hidden).double(), logits.double(), torch.ones_like(logits) > 0
    if cap:
        used = wanted.abs() < 0.99 * cap  # a saturated tanh says nothing
        wanted = cap * torch.atanh((wanted / cap).clamp(-0.99, 0.99))
    scale = float((z * wanted)[used].sum() / (z * z)[used].sum().clamp(min=1e-30))
    return {"scale": 1.0 if abs(scale - 1) < 1e-4 or not z.any() else scale, "cap": cap}


def is_close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 1e-3 * wanted.abs().max())


def logits_of(model, ids, factor: float = 1.0) -> torch.Tensor:
    """The model's logits (n, V), with what enters its output layer multiplied by factor."""

    def enlarge(layer, inputs):
        return (inputs[0] * factor, *inputs[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(enlarge)
    try:
        return model(input_ids=ids, use_cache=False).logits[0].float()
    finally:
        hook.remove()


# --- loading ---


def load_model(name: str):
    """(model in float32 and eval mode, tokenizer) from the Hub or a folder.

    Raises ValueError, with the way out, for what cannot be loaded or would be loaded with weights
    or tokens missing. `check_model` comes when the model stands where it will run.
    """
    refuse_place(name)
    name = os.path.expanduser(name)  # from_pretrained would take ~ for a Hub id
    if not Path(name).is_dir():
        print(f"{name}: no folder here, so it is fetched from the Hub or its cache", flush=True)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        refuse_config(config, name)
        # Sizes that differ are in the report, too, instead of in an error without names.
        model, report = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    except Refusal:
        raise
    except Exception as error:  # damaged files raise whatever their readers raise
        raise ValueError(f"cannot load a model from {name}: {reason_of(error, name)}") from None
    refuse_report(report, name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise ValueError(
            f"{name} has no tokenizer that can be read: copy tokenizer.json and "
            f"tokenizer_config.json from the model that it was made from ({first_line(error)})"
        ) from None
    repair(model, name)
    fit_head(model, name)
    refuse_ids(model, tokenizer, name)
    if hasattr(config, "vision_config") and not hasattr(model.config, "vision_config"):
        print(f"{name}: only its language model is loaded, trained and saved, no images or sound")
    return model.eval(), tokenizer


ADAPTER = (
    "it is an adapter (LoRA): merge it into its base model (merge_and_unload of peft), save that "
    "and give its folder"
)


class Refusal(ValueError):
    """A refusal that says all there is to say."""


def reason_of(error: Exception, name: str) -> str:
    """What an error of loading means, in one line."""
    text = str(error)
    if not Path(name).is_dir() and (unreachable(error) or status_of(error)):
        return f"no such folder here; {reason_of_the_hub(error)}"
    if "is not a valid model identifier" in text:
        return f"no such folder here; {NOT_THERE}"
    with contextlib.suppress(Exception):  # no such repository, no network
        if find_adapter_config_file(name):
            return ADAPTER
    if "trust_remote_code" in text:
        return (
            "it needs code from its own repository, which is not run here: take a model whose "
            "architecture transformers knows"
        )
    if "does not recognize this architecture" in text:
        return f"{first_line(error)} (a newer transformers may know it)"
    if "AutoModelForCausalLM" in text:
        return "it is no causal language model"
    if "Safetensor" in type(error).__name__ or "PytorchStream" in text:
        fault = first_line(error).partition(". ")[0]
        return f"its weights are damaged or cut short ({fault}): copy them again"
    return first_line(error)


def refuse_place(name: str) -> None:
    """Raise ValueError for a name that is neither a model folder nor could be one on the Hub."""
    place = Path(os.path.expanduser(name))
    if place.is_dir():
        refuse_folder(place)
    elif place.is_file():
        raise ValueError(f"{name} is a file: give its folder, with config.json and the tokenizer")
    elif not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise ValueError(f"no such model folder: {name}")


def refuse_folder(folder: Path) -> None:
    """Raise ValueError for a folder that holds something else than a model."""
    file = folder / "config.json"
    is_model = file.is_file() and b'"model_type"' in file.read_bytes()
    inner = sorted(folder.glob("step-*/model/config.json")) or [*folder.glob("model/config.json")]
    if inner and not is_model:
        raise ValueError(f"{folder} is of a run: its newest model is {inner[-1].parent}")
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"cannot load a model from {folder}: {ADAPTER}")
    if not (folder / "config.json").is_file():
        raise ValueError(f"cannot load a model from {folder}: it has no config.json")
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.stat().st_size < 1000:
            if file.read_bytes().startswith(b"version https://git-lfs"):
                raise ValueError(
                    f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull` there"
                )


def refuse_config(config, name: str) -> None:
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        method = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
        raise Refusal(
            f"{name} has quantised weights ({method or 'quantization_config'}), which cannot be "
            "trained: take the unquantised model, or load, dequantize() and save it first"
        )


def refuse_report(report: dict, name: str) -> None:
    """Raise ValueError where weights of the model were not in the files: they are random now."""
    missing, misfits = sorted(report["missing_keys"]), sorted(report["mismatched_keys"])
    if missing:
        extra = sorted(report["unexpected_keys"])
        besides = f"; the files have {some(extra)} instead" if extra else ""
        raise ValueError(
            f"{name}: its files lack {some(missing)}{besides}: a checkpoint of another "
            "architecture, or one that was saved in part"
        )
    if misfits:
        key, found, wanted = misfits[0]
        raise ValueError(
            f"{name}: {some([k for k, *_ in misfits])} of the wrong size (first: {tuple(found)} in "
            f"the file, {tuple(wanted)} by config.json): config.json is of another model"
        )


def some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def refuse_ids(model, tokenizer, name: str) -> None:
    """Raise ValueError if stop tokens or the chat template have ids that the model does not know.

    Other tokens beyond the model's (of images, say) are only said: they need not turn up.
    """
    size = min(model.get_input_embeddings().num_embeddings, vocabulary_size(model))
    sources = {"a stop token": stop_ids(model, tokenizer)}
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "?"}]
        sources["the chat template"] = chat_ids(tokenizer, "?", turns)
    for source, ids in sources.items():
        if max(ids, default=0) >= size:
            token = tokenizer.convert_ids_to_tokens(max(ids))
            raise ValueError(
                f"{name}: {source} has id {max(ids)} ({token}), but the model knows only {size}: "
                "the tokenizer is of another model, or the model's embeddings were not resized"
            )
    beyond = sorted((n, token) for token, n in tokenizer.get_vocab().items() if n >= size)
    if beyond:
        number, token = beyond[0]
        print(
            f"{name}: {len(beyond)} tokens of its tokenizer, from {token!r} ({number}) on, have no "
            f"row in the model, which has {size}: text with one of them will be refused"
        )


# --- the check at start ---

LONG_WINDOW = 16384  # tokens: longer windows are not tried on a GPU
NEW_TOKENS = 16  # more than runtime.fast_rollout.PACKING_TOKENS, so that the fast path is taken
LENGTHS, COMMON = (12, 20, 30), 10  # of the prompts, and of what they begin with alike


def check_model(
    model,
    name: str,
    generate: Callable | None = fast_rollout.generate,
    hidden_states: Callable | None = None,
    *,
    autocast: Callable = contextlib.nullcontext,
    seconds: float = 60.0,
) -> None:
    """Raise ValueError unless sampler, training path and the model itself agree.

    A few tokens are sampled from prompts of unequal length and scored again by the plain forward
    pass of each unpadded row and by the path of training. One prompt is longer than any window of
    the configuration, unless that would take more than `seconds`. Sharing prompts or padding them
    is given up, and said, where only that is wrong.

    generate: the run's sampler; None for a model that only scores. hidden_states: its training
    path (default: the fast one). autocast: as in training.
    """
    if hidden_states is None:
        from runtime.fast_scoring import hidden_states  # which imports this module

    repair(model, name)
    if not hasattr(model, "head_form"):
        fit_head(model, name)
    measure = functools.partial(largest_gaps, model, name, generate, hidden_states, autocast)
    room = max_length(model) - NEW_TOKENS
    start, lengths = time.perf_counter(), [max(1, min(n, room)) for n in LENGTHS]
    refuse_gaps(model, name, measure, lengths)
    window, took = largest_window(model.config), time.perf_counter() - start
    if max(LENGTHS) < window + 3 <= room:
        # A GPU reads thousands of tokens in the time of one; beyond that its memory is at stake.
        on_cpu = model.device.type == "cpu"
        slow = took * window / sum(LENGTHS) > seconds if on_cpu else window > LONG_WINDOW
        if parallel.agree(slow):  # by the slowest rank's clock: all run the same collectives
            print(
                f"{name}: no prompt beyond its window of {window} tokens was tried: too long here"
            )
        else:
            refuse_gaps(model, name, measure, [lengths[0], window + 3])


def check_run(settings, student, teacher, autocast, loading: float) -> None:
    """`check_model` of the student and an external teacher, each in about the time of loading, s.

    Copies of the student need no check, and the tiny student none at all.
    """
    limits = dict(autocast=autocast, seconds=max(5.0, loading))
    if settings.model != "tiny":
        paths = ()
        if settings.plain:
            import mopd  # which imports this module

            paths = rollout.generate, mopd.hidden_states
        check_model(student, settings.model, *paths, **limits)
    for switch in ("can_pad", "can_share"):
        if teacher.kind != "external" and hasattr(student, switch):
            setattr(teacher.model, switch, getattr(student, switch))
    if teacher.kind == "external":
        check_model(teacher.model, settings.teacher, None, **limits)


def refuse_gaps(model, name: str, measure: Callable, lengths: list[int]) -> None:
    """ValueError where the paths part by more than rounding, with prompts of these lengths.

    What can be switched off is, by attributes that rollout.can_pad and fast_scoring.can_share read.
    """
    sampling, training = measure(lengths)
    if training:
        model.can_share = False
        sampling, now = measure(lengths)
        if not now:
            print(f"{name}: prompts are not shared in scoring, that is {training:.2g} nats off")
        training = now
    if sampling and rollout.can_pad(model):
        model.can_pad = False
        now, training = measure(lengths)
        if not now:
            print(f"{name}: prompts are not padded in sampling, that is {sampling:.2g} nats off")
        sampling = now
    for path, gap in (("training path", training), ("sampler", sampling)):
        if gap:
            raise parallel.Refused(
                f"{name}: the log-probabilities of its {path} are {gap:.2g} nats off those of its "
                "plain forward pass, so it cannot be trained here (see docs/models.md)"
            )


def largest_gaps(model, name, generate, hidden_states, autocast, lengths) -> list[float]:
    """The sampler's and the training path's differences from the plain forward pass, in nats.

    0 where they are within rounding in one of two draws: a router's near-tie, which rounding
    decides, will not come twice; a fault will.
    """
    draws = []
    for seed in (0, 1):
        try:
            with rollout.eval_mode(model), torch.no_grad(), autocast():
                limit = rounding(model)
                found = parallel.gather([gaps(model, generate, hidden_states, lengths, seed)])
            # the largest of all ranks, which decide alike; NaN is no number to compare
            draws.append(
                [
                    max(gap if gap == gap else torch.inf for gap in g)
                    for g in zip(*found, strict=True)
                ]
            )
            parallel.release(model)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of whatever kind a model raises inside
            if parallel.left_alone(error):
                raise
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            text = (str(error).strip() or "no message").splitlines()[0]
            raise parallel.Refused(f"{name} cannot be trained here: {kind}{text}") from error
        if all(gap <= limit for gap in draws[-1]):
            return [0.0, 0.0]
    smaller = [min(pair) for pair in zip(*draws, strict=True)]
    return [0.0 if gap <= limit else gap for gap in smaller]


def gaps(model, generate, hidden_states, lengths, seed: int) -> tuple[float, float]:
    """One draw: the differences that `largest_gaps` returns."""
    # From the middle of the vocabulary: control tokens and those of images stand at its ends.
    draw, size = random.Random(seed), vocabulary_size(model)

    def some_ids(n):
        return [draw.randrange(size // 3, size - size // 3) for _ in range(n)]

    prompts = [some_ids(n) for n in lengths]
    prompts = [(prompts[0][:COMMON] + prompt[COMMON:])[: len(prompt)] for prompt in prompts]
    rows = [rollout.Rollout(prompt, some_ids(NEW_TOKENS), [], False) for prompt in prompts * 2]
    if generate:
        with parallel.gathered(model):
            groups = generate(model, prompts, 2, max_new_tokens=NEW_TOKENS, stop_ids=[], seed=seed)
        rows = [r for group in groups for r in group]
    plain = torch.stack([plain_logprobs(model, r.prompt_ids, r.ids) for r in rows])
    sampled = torch.tensor([r.logprobs for r in rows], device=plain.device) if generate else plain

    def score():
        states = hidden_states(model, [r.prompt_ids for r in rows], [r.ids for r in rows])
        return as_head(head(model)).logits(states).log_softmax(-1)

    ids = torch.tensor([token for r in rows for token in r.ids], device=plain.device)
    trained = parallel.inside(model, score).gather(1, ids[:, None]).view_as(plain)
    return tuple(of_rows(model, other - plain) for other in (sampled, trained))


def plain_logprobs(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Log-probabilities (T,) of a completion by the model's own forward pass over the one row."""
    ids = torch.tensor([prompt + completion], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.float().log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]


# How far rounding may move log-probabilities, in nats: of any token in float32; in bfloat16, where
# single tokens of a sound model move by half a nat, on average over a row.
ROUNDING = {torch.float32: 0.01, torch.float64: 0.01, torch.bfloat16: 0.25}


def rounding(model) -> float:
    return ROUNDING.get(compute_dtype(model), ROUNDING[torch.bfloat16])


def of_rows(model, differences: torch.Tensor) -> float:
    """What `rounding` limits, of differences (R, T) of log-probabilities."""
    sizes = differences.abs()
    return float(sizes.max() if rounding(model) < 0.1 else sizes.mean(1).max())


def compute_dtype(model) -> torch.dtype:
    kind = model.device.type
    enabled = torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if enabled else model.dtype


def largest_window(config) -> int:
    """The largest window, or chunk of attention, in tokens, that the configuration declares."""
    found = [0]
    for name, value in config.get_text_config(decoder=True).to_dict().items():
        is_window = ("window" in name and "layers" not in name) or "chunk_size" in name
        if is_window and isinstance(value, int) and not isinstance(value, bool):
            found.append(value)
    return max(found)


def repair(model, name: str) -> None:
    """Undo what makes a family's sampler and its scoring part, where it is a known small thing.

    Zamba 2 and Nemotron-H clamp the steps of their Mamba layers from below, at time_step_min, when
    they read many tokens, but not when they read one, which cannot be changed from here.
    """
    clamped = [m for m in model.modules() if getattr(m, "time_step_limit", (0,))[0] > 0]
    for module in clamped:
        module.time_step_limit = (0.0, module.time_step_limit[1])
    if clamped:
        print(f"{name}: its Mamba layers do not clamp their steps from below, as in decoding")


def common_vocabulary(tokenizer, other, rows: int) -> int:
    """How many ids, from 0 and at most `rows`, stand for the same token in both tokenizers.

    Tokens that only one of them has at its end (added ones) are left out. Raises ValueError where
    an id stands for two tokens: a divergence would compare different words.
    """
    mine, its = (
        {n: token for token, n in x.get_vocab().items() if n < rows} for x in (tokenizer, other)
    )
    last = max(mine.keys() & its.keys(), default=-1)
    for n in sorted(mine.keys() | its.keys()):
        if mine.get(n) != its.get(n):
            if n > last:
                return n
            raise ValueError(
                f"the teacher's vocabulary differs from the student's: id {n} is {mine.get(n)!r} "
                f"to the student and {its.get(n)!r} to the teacher; use a teacher with the same "
                "tokenizer"
            )
    return rows


def max_length(model) -> int:
    """The longest sequence, in tokens, that the model was made for."""
    config = model.config.get_text_config(decoder=True)
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    return min(filter(None, [*limits, rollout.max_positions(model)]), default=2**31)


# --- settings of a forward pass ---


def product_dtype(hidden: torch.Tensor) -> torch.Tensor:
    """Autocast leaves the final norm's output in float32: cast back, or the head runs in it."""
    kind = hidden.device.type
    enabled = torch.is_autocast_enabled(kind)
    return hidden.to(torch.get_autocast_dtype(kind)) if enabled else hidden


def recompute_activations(model) -> None:
    """Turn on gradient checkpointing. ValueError for a model with dropout.

    transformers recomputes in train mode only, where dropout is active: the trainer would then
    score the tokens under other probabilities than the sampler.
    """
    for name, value in model.config.to_dict().items():
        is_dropout = "dropout" in name or name.endswith("pdrop")
        if is_dropout and isinstance(value, float) and value > 0:
            raise ValueError(
                f"--gradient-checkpointing would train under dropout: set {name} to 0 in the config"
            )
    # activation_checkpointing_enable is the newer name
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    # this hook serves frozen embeddings only, and hooks slow the rollouts down
    model.disable_input_require_grads()
