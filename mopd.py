"""One step of MOPD, Multi-Rollout On-Policy Distillation (arXiv 2605.12652): multi-*rollout*, not multi-teacher.

    sample K rollouts per problem -> verify each -> choose peers, write the teacher's prompt -> score every token with
    the student and with the teacher that has read the peers -> one gradient

    loss = sum_i sum_t w_it D( teacher(.| problem, peers_i, y_i<t) || student(.| problem, y_i<t) )

with D the Jensen-Shannon divergence by default and one normaliser in w for the whole step. The loss is a divergence,
not a reward: it starts small and need not fall. `plan` is the one place where the methods differ (mopd, sdpo, opd,
grpo, rft). Uses rollout.py, verifiers.py, peer_context.py, loss.py and parallel.py (which does nothing in a single
process); knows nothing of data files or optimizers.

Differences from the paper: full-vocabulary divergence instead of the top 100 (`top_k=100` gives theirs); README.md has
the whole list.

    attempts = sample(student, tokenizer, problems, k=8, task="math", ...)
    plan(attempts, method="mopd", peers="contrastive", ...)
    metrics = backward(student, teacher, attempts, ...)                 # gradients are in student.parameters()
"""

import contextlib
import copy
import functools
import inspect
import math
import time
from dataclasses import dataclass, field, replace

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

import parallel
import peer_context
from rollout import Rollout, fused_norms, generate
from runtime.fast_loss import distill_loss, nll_loss
from verifiers import Verdict, verify_batch

METHODS = ("mopd", "sdpo", "opd", "grpo", "rft")
PEERS = ("contrastive", "positive", "random", "unrelated", "success_only")
NO_TEACHER = ("grpo", "rft")
SLOTS = {"contrastive": (2, 1), "positive": (2, 0), "sdpo": (1, 0)}             # successes, failures


@dataclass(frozen=True)
class Problem:
    """One row of the data: user turn, gold answer, system message, and the number that names it to the sampler."""
    prompt: str
    answer: object
    system: str
    key: int


@dataclass
class Attempt:
    """A rollout and all that is decided about it in this step. `weight` multiplies the loss of each of its tokens."""
    problem: Problem
    group: int
    rollout: Rollout
    text: str
    verdict: Verdict
    peers: peer_context.Peers = peer_context.Peers((), ())      # positions in the step's list of attempts
    feedback: str = ""
    teacher_text: str = ""
    teacher_ids: list[int] = field(default_factory=list)
    weight: float = 0.0

    @property
    def success(self):
        return self.verdict.correct and self.rollout.stopped


# --- models ---

@dataclass
class Teacher:
    """kind: "ema", "frozen", "current" (the student itself) or "external"; vocabulary: head rows that are compared."""
    model: torch.nn.Module
    tokenizer: object
    kind: str
    vocabulary: int

    @torch.no_grad()
    def update(self, student, rate):
        """EMA: teacher <- (1 - rate) * teacher + rate * student, in float32; no other kind changes."""
        if self.kind == "ema":
            torch._foreach_lerp_(list(self.model.parameters()), list(student.parameters()), rate)


def make_teacher(kind, student, tokenizer, external=None, external_tokenizer=None) -> Teacher:
    """The teacher of `kind`; an external one is checked against the student's vocabulary and cut to the common part.

    Raises ValueError when the tokenizers map any token to different ids: a divergence between them would compare
    different words. Heads padded to different sizes are fine: rows beyond the smaller one belong to no token.
    """
    rows = len(head(student))
    if external is None:
        model = student if kind == "current" else copy.deepcopy(student).requires_grad_(False).eval()
        return Teacher(model, tokenizer, kind, rows)
    if tokenizer.get_vocab() != external_tokenizer.get_vocab():
        raise ValueError("the teacher's vocabulary differs from the student's: use a teacher with the same tokenizer")
    rows = min(rows, len(head(external)))
    return Teacher(external.requires_grad_(False).eval(), external_tokenizer, "external", rows)


def head(model) -> torch.Tensor:
    """The output matrix (V, D)."""
    return model.get_output_embeddings().weight


def check_model(model, name):
    """Refuse a model whose logits are not (final hidden states) x (output matrix)^T: the loss is worked out from these.

    Scaled (Granite, Cohere), capped (Gemma 2) and biased (Phi) heads, and models without one matrix, raise ValueError.
    Cap and bias are looked up, too: small logits do not show a cap, and a bias may start at zero.
    """
    output = model.get_output_embeddings()
    if not isinstance(getattr(output, "weight", None), torch.Tensor) or output.weight.dim() != 2:
        raise ValueError(f"{name}: no output matrix that the loss could use ({type(output).__name__})")
    ids = torch.arange(8, device=output.weight.device)[None] % len(output.weight)
    with torch.no_grad():
        mode, _ = model.training, model.eval()
        logits = model(input_ids=ids, use_cache=False).logits.float()
        plain = (model.base_model(input_ids=ids, use_cache=False).last_hidden_state @ output.weight.T).float()
        model.train(mode)
    capped = getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
    biased = getattr(output, "bias", None) is not None
    if capped or biased or plain.shape != logits.shape or (plain - logits).abs().max() > 1e-3 * logits.abs().max():
        raise ValueError(f"{name}: its logits are not hidden states times the output matrix (scaled, capped or biased "
                         "head); use a model with a plain head, such as Qwen, Llama or SmolLM")


def stop_ids(model, tokenizer) -> list[int]:
    """Every token that ends a turn: the tokenizer's and the model's own, of which there may be several."""
    found = {tokenizer.eos_token_id}
    for config in (model.config, model.generation_config):
        ids = getattr(config, "eos_token_id", None)
        found.update(ids if isinstance(ids, (list, tuple)) else [ids])
    return sorted(found - {None})


def max_length(model) -> int:
    """The longest sequence, in tokens, that the model has positions for."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 2**31


# --- text to tokens ---

def chat_ids(tokenizer, system, user) -> list[int]:
    """Token ids of the conversation with the generation prompt, by the chat template (thinking off if it can be).

    Rendered to text first and tokenised without special tokens: the template writes its own, and a second BOS would be
    one too many. Where a template has no system role the system message opens the user turn.
    """
    if _has_system_role(tokenizer):
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    else:
        messages = [{"role": "user", "content": f"{system}\n\n{user}"}]
    return tokenizer(_render(tokenizer, messages), add_special_tokens=False)["input_ids"]


def _render(tokenizer, messages) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)


@functools.lru_cache(maxsize=8)
def _has_system_role(tokenizer) -> bool:
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template: use an instruction-tuned model, or give it one")
    try:
        text = _render(tokenizer, [{"role": "system", "content": "<system?>"}, {"role": "user", "content": "."}])
    except Exception as error:                      # templates refuse the role with an exception type of their own
        text = str(error)
    if "<system?>" not in text:
        print("the chat template has no system role: system messages open the user turn")
    return "<system?>" in text


def student_ids(tokenizer, problem) -> list[int]:
    return chat_ids(tokenizer, problem.system, problem.prompt)


def completion_text(tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True)


# --- 1. sample and verify ---

def sample(student, tokenizer, problems, *, k, task, max_new_tokens, temperature=1.0, top_p=1.0, seed=0, max_rows=None,
           autocast=contextlib.nullcontext, seconds=None) -> list[Attempt]:
    """K verified attempts for each problem, group after group; times go into seconds["rollout"] and ["verify"].

    With several processes each samples and verifies its share of the problems, and all get all attempts; the wait for
    the slowest counts as "verify".
    """
    start = time.perf_counter()
    mine = parallel.share(range(len(problems)))
    with autocast(), parallel.gathered(student):
        groups = generate(student, [student_ids(tokenizer, problems[g]) for g in mine], k,
                          max_new_tokens=max_new_tokens, stop_ids=stop_ids(student, tokenizer),
                          temperature=temperature, top_p=top_p, seed=seed, keys=[problems[g].key for g in mine],
                          max_rows=max_rows)
    sampled = time.perf_counter()
    flat = [(g, rollout) for g, group in zip(mine, groups) for rollout in group]
    written = [r.ids[:-1] if r.stopped else r.ids for _, r in flat]     # not every stop token is one that decode skips
    texts = [completion_text(tokenizer, ids) for ids in written]
    verdicts = verify_batch(task, texts, [problems[g].answer for g, _ in flat], workers=parallel.workers())
    found = parallel.gather([(*pair, text, verdict) for pair, text, verdict in zip(flat, texts, verdicts)])
    if seconds is not None:
        seconds["rollout"], seconds["verify"] = sampled - start, time.perf_counter() - sampled
    return [Attempt(problems[g], g, *rest) for g, *rest in sorted(found, key=lambda item: item[0])]


# --- 2. what each method learns from a rollout ---

def plan(attempts, *, method, peers="contrastive", feedback=False, seed=0) -> None:
    """Set every attempt's peers, feedback and weight: the one place where the methods differ.

    mopd   the teacher reads the problem and the peers
    sdpo   the teacher reads one success, or else the feedback on the rollout itself
    opd    an external teacher reads the problem alone
    grpo   no teacher: weight = advantage, (r - group mean) / (group std + 1e-4)
    rft    no teacher: weight 1 for a success, 0 otherwise
    """
    texts = [peer_context.strip_thinking(a.text) for a in attempts]
    facts = dict(group=[a.group for a in attempts], correct=[a.success for a in attempts], texts=texts,
                 usable=[a.rollout.stopped and bool(text) for a, text in zip(attempts, texts)])
    groups = {}
    for i, a in enumerate(attempts):
        groups.setdefault(a.group, []).append(i)
    for i, a in enumerate(attempts):
        mates = groups[a.group]
        if method in ("mopd", "sdpo"):
            a.peers = _choose(facts, i, mates, "sdpo" if method == "sdpo" else peers, seed=(seed, a.problem.key))
            shows_feedback = (method == "sdpo" or feedback) and not a.success and not a.peers.successes
            a.feedback = a.verdict.feedback if shows_feedback else ""
            a.weight = float(bool(a.peers.successes or a.peers.failures or a.feedback))
        elif method == "opd":
            a.weight = 1.0
        elif method == "grpo":
            rewards = torch.tensor([float(attempts[j].success) for j in mates])
            a.weight = float((float(a.success) - rewards.mean()) / (rewards.std(correction=0) + 1e-4))
        elif method == "rft":
            a.weight = float(a.success)
        else:
            raise ValueError(f"unknown method {method!r}: use {', '.join(METHODS)}")


def _choose(facts, i, mates, kind, *, seed) -> peer_context.Peers:
    """Peers of attempt i, whose group is at `mates`. Truncated rollouts and those without an answer are never shown."""
    if kind not in SLOTS:
        return peer_context.choose_control(kind, i=i, seed=seed, **facts)
    n_success, n_failure = SLOTS[kind]
    correct, usable, texts = ([facts[name][j] for j in mates] for name in ("correct", "usable", "texts"))
    chosen = peer_context.choose_peers(correct, mates.index(i), n_success=n_success, n_failure=n_failure, usable=usable,
                                       texts=texts, seed=seed)
    return peer_context.Peers(tuple(mates[j] for j in chosen.successes), tuple(mates[j] for j in chosen.failures))


def write_contexts(attempts, teacher, *, peer_tokens, longest) -> dict[str, int]:
    """Fill in teacher_text and teacher_ids of attempts with a weight; returns counts of peers shortened and dropped.

    Each peer is cut to `peer_tokens` (head and tail kept). While prompt and completion exceed `longest` tokens, a peer
    is dropped: extra successes first, then the failure, the first success, the feedback. The problem, the instruction
    and the generation prompt are never cut. A context that loses everything, or does not fit bare, takes the weight
    along; so does a token beyond the common vocabulary, which an external teacher cannot read. Special tokens that a
    peer spells out are broken up: they would end the user turn.
    """
    counts = {"peers_shortened": 0, "peers_dropped": 0}
    encode = lambda text: teacher.tokenizer(text, add_special_tokens=False)["input_ids"]
    special = [token.content for token in teacher.tokenizer.added_tokens_decoder.values() if token.special]

    def harmless(text):
        for token in special:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    @functools.cache
    def body(j):
        text = harmless(peer_context.strip_thinking(attempts[j].text))
        return peer_context.shorten(text, peer_tokens, encode, teacher.tokenizer.decode)

    def bodies(positions):
        counts["peers_shortened"] += sum(body(j)[1] for j in positions)
        return [body(j)[0] for j in positions]

    for a in attempts:
        if not a.weight:
            continue
        successes, failures, feedback = bodies(a.peers.successes), bodies(a.peers.failures), harmless(a.feedback)
        bare = not (successes or failures or feedback)
        while True:
            text = peer_context.teacher_prompt(a.problem.prompt, successes=successes, failures=failures,
                                               feedback=feedback)
            ids = chat_ids(teacher.tokenizer, a.problem.system, text)
            fits = len(ids) + len(a.rollout.ids) <= longest
            if fits or not (successes or failures or feedback):
                break
            counts["peers_dropped"] += 1
            if len(successes) > 1 or (successes and not failures):
                successes.pop()
            elif failures:
                failures.pop()
            else:
                feedback = ""
        a.peers = replace(a.peers, successes=a.peers.successes[:len(successes)],
                          failures=a.peers.failures[:len(failures)])
        if fits and (bare or successes or failures or feedback) and max(a.rollout.ids) < teacher.vocabulary:
            a.teacher_text, a.teacher_ids = text, ids
        else:
            a.weight = 0.0
    return counts


# --- 3. score and differentiate ---

def student_tokens(attempt) -> int:
    """Length of the row that the student reads."""
    return len(attempt.rollout.prompt_ids) + len(attempt.rollout.ids)


def teacher_tokens(attempt) -> int:
    return len(attempt.teacher_ids) + len(attempt.rollout.ids)


def longer_tokens(attempt) -> int:
    return max(student_tokens(attempt), teacher_tokens(attempt))


def microbatches(attempts, budget, size=longer_tokens) -> list[list[Attempt]]:
    """Attempts with a weight, sorted by length, in batches of at most `budget` tokens with padding (or one attempt)."""
    batches = []
    for a in sorted((a for a in attempts if a.weight), key=size, reverse=True):     # the first sets the row length
        if batches and (len(batches[-1]) + 1) * size(batches[-1][0]) <= budget:
            batches[-1].append(a)
        else:
            batches.append([a])
    return batches


def hidden_states(model, prompts, completions) -> torch.Tensor:
    """Final hidden states (N, D) at the positions that predict the completion tokens, row after row.

    Right padding: with causal attention no real token sees it and every row keeps positions 0, 1, 2, ...
    """
    rows = [prompt + completion for prompt, completion in zip(prompts, completions)]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    where = torch.zeros(ids.shape, dtype=torch.bool)
    for n, (prompt, row) in enumerate(zip(prompts, rows)):
        ids[n, :len(row)] = torch.tensor(row)
        where[n, len(prompt) - 1:len(row) - 1] = True       # the token at t is predicted at t - 1, the stop token too
    device = head(model).device
    read = model.base_model(input_ids=ids.to(device), use_cache=False).last_hidden_state
    return _product_dtype(read[where.to(device)])


def shared_hidden_states(model, prompts, completions) -> torch.Tensor:
    """`hidden_states` that reads each distinct prompt once, copies its cache to its completions and reads only them.

    The K rollouts of a group share the student's prompt. Gradients flow back through the copies. Shorter prompts are
    padded on the right, where a mask hides the padding from the completions: no row is ever without anything to see.
    """
    device, cache = head(model).device, DynamicCache(config=model.config)
    number = {prompt: n for n, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    source = torch.tensor([number[tuple(prompt)] for prompt in prompts], device=device)
    ends = torch.tensor([len(prompt) for prompt in prompts], device=device)
    longest, steps = max(map(len, prompts)), max(map(len, completions)) - 1
    ids = torch.tensor([list(prompt) + [0] * (longest - len(prompt)) for prompt in number], device=device)
    read = model.base_model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
    states = read[source, ends - 1][:, None]                     # predicts the first completion token
    if steps:
        cache.batch_select_indices(source)
        ids = torch.tensor([completion[:-1] + [0] * (steps + 1 - len(completion)) for completion in completions],
                           device=device)
        column = torch.arange(longest + steps, device=device)
        seen = (column < ends[:, None]) | (column >= longest)
        # What pads a short completion gets no position that no row has: it might be beyond the model's last.
        last = ends + torch.tensor([max(0, len(completion) - 2) for completion in completions], device=device)
        positions = torch.minimum(ends[:, None] + column[:steps], last[:, None])
        read = model.base_model(input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=cache,
                                use_cache=True).last_hidden_state
        states = torch.cat([states, read], dim=1)
    return _product_dtype(torch.cat([row[:len(completion)] for row, completion in zip(states, completions)]))


def completion_states(model, prompts, completions) -> torch.Tensor:
    """`shared_hidden_states` where at most half as many prompts as completions are distinct, else `hidden_states`."""
    shares = 2 * len(set(map(tuple, prompts))) <= len(prompts) and can_share(model)
    shares = shares and head(model).device.type == "cpu"    # a GPU's flash kernel wants whole rows, and is faster so
    shares = shares and parallel.world() == 1           # else processes would gather the shards unequally often
    return (shared_hidden_states if shares else hidden_states)(model, prompts, completions)


def teacher_states(model, batch, budget) -> torch.Tensor:
    """The teacher's `completion_states` of a batch made by the student's lengths: it reads more, so fewer at once. Its
    states are small, and the student's micro-batches need not shrink for its sake."""
    found = {}                                  # of several processes none may read more often than the others
    for part in microbatches(batch, budget, teacher_tokens) if parallel.world() == 1 else [batch]:
        states = completion_states(model, [a.teacher_ids for a in part], [a.rollout.ids for a in part])
        found.update(zip(map(id, part), states.split([len(a.rollout.ids) for a in part])))
    return torch.cat([found[id(a)] for a in batch])


def can_share(model) -> bool:
    """Whether the model's cache is nothing but keys and values, and kept: recomputation, in train mode, drops it, and
    models without a cache (OpenAI-GPT, RWKV) swallow the argument."""
    layers = {type(layer) for layer in DynamicCache(config=model.config).layers}
    takes = {"past_key_values", "position_ids"} <= set(inspect.signature(model.base_model.forward).parameters)
    return takes and layers == {DynamicLayer} and not model.training


def _product_dtype(hidden):
    """Under autocast the last norm returns float32; the head product shall not run in it."""
    kind = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden


def backward(student, teacher, attempts, *, method="mopd", divergence="jsd", top_k=None, temperature=1.0,
             reduction="token", is_clip=None, micro_tokens=8192, autocast=contextlib.nullcontext, seconds=None) -> dict:
    """Accumulate the gradient of the step's loss into the student's parameters; returns metrics (None where undefined).

    The normaliser is fixed here, before the first backward, over the whole step: "token" counts every completion token
    alike, "sequence" every attempt alike, and only attempts that the method learns from count (for grpo: all of them).
    So any split into micro-batches gives the same gradient. Without any such attempt the loss is 0, without a gradient.
    """
    counted = attempts if method == "grpo" else [a for a in attempts if a.weight]
    total = sum(len(a.rollout.ids) for a in counted) if reduction == "token" else len(counted)
    clock = {"teacher": 0.0, "student": 0.0}
    loss, scored, gap, lead = 0.0, 0, 0.0, 0.0
    options = dict(temperature=temperature, is_clip=is_clip)
    batches = microbatches(attempts, micro_tokens, student_tokens if parallel.world() == 1 else longer_tokens)
    while len(batches) % parallel.world():              # as many for every process; weight 0 adds nothing to anything
        batches.append([replace(batches[-1][-1], weight=0.0)])
    teaches = method not in NO_TEACHER
    with fused_norms(student, *([teacher.model] if teaches else [])):
        for batch in parallel.share(batches):
            completions, device = [a.rollout.ids for a in batch], head(student).device
            ids = torch.tensor([t for c in completions for t in c], device=device)                              # (N,)
            sampled = torch.tensor([x for a in batch for x in a.rollout.logprobs], device=device)               # (N,)
            weights = torch.tensor([a.weight / (total if reduction == "token" else total * len(a.rollout.ids))
                                    for a in batch for _ in a.rollout.ids], device=device)                      # (N,)

            if teaches:
                start = time.perf_counter()
                with torch.no_grad(), autocast():
                    read = parallel.inside(teacher.model, lambda: teacher_states(teacher.model, batch, micro_tokens))
                if device.type == "cuda":
                    torch.cuda.synchronize(device)              # else the student's clock would show the teacher's work
                clock["teacher"] += time.perf_counter() - start

            def score():
                hidden = completion_states(student, [a.rollout.prompt_ids for a in batch], completions)
                matrix = head(student)
                if not teaches:
                    out = nll_loss(hidden, matrix, ids, weights, sampled_logprobs=sampled, **options)
                else:
                    rows = slice(teacher.vocabulary)            # the padding of differently padded heads is left out
                    out = distill_loss(hidden, matrix[rows], read, head(teacher.model)[rows], weights, top_k=top_k,
                                       divergence=divergence, sampled_ids=ids, sampled_logprobs=sampled, **options)
                return out.loss, out

            start = time.perf_counter()
            with autocast():
                value, out = parallel.inside(student, score)
            value.backward()
            loss += value.item()
            if batch[0].weight:                                 # not one of the padding
                scored += len(ids)
                gap += (out.student_logprobs - sampled).abs().sum().item()
                if teaches:
                    lead += (out.teacher_logprobs - out.student_logprobs).sum().item()
            clock["student"] += time.perf_counter() - start
    if teaches:
        parallel.release(teacher.model)
    loss, scored, gap, lead = parallel.total([loss, scored, gap, lead])
    if seconds is not None:
        seconds.update(clock)
    return {"loss": loss, "sampler_gap": gap / scored if scored else None, "scored_tokens": int(scored),
            "teacher_gap": lead / scored if scored and teaches else None}


def describe(attempts) -> dict:
    """Counts and means over a step's attempts: what the groups looked like and what could be learned from them.

    distinct_*: different answers and texts in a group, averaged over groups. sampled_entropy: mean of -log p over the
    sampled tokens, an unbiased estimate of the entropy of the law that they were sampled from. leaks: completions that
    speak of peers. length_p95: 95 % of the completions are no longer.
    """
    groups, answers, texts = {}, {}, {}
    for a in attempts:
        groups.setdefault(a.group, []).append(a.success)
        answers.setdefault(a.group, set()).update([] if a.verdict.answer is None else [a.verdict.answer])
        texts.setdefault(a.group, set()).add(a.text)
    right, wrong = sum(all(g) for g in groups.values()), sum(not any(g) for g in groups.values())
    lengths = sorted(len(a.rollout.ids) for a in attempts)
    tokens = sum(lengths)
    return {"success": sum(a.success for a in attempts) / len(attempts),
            "groups_mixed": len(groups) - right - wrong, "groups_all_right": right, "groups_all_wrong": wrong,
            "truncated": sum(not a.rollout.stopped for a in attempts),
            "unweighted": sum(not a.weight for a in attempts), "empty_slots": sum(a.peers.empty for a in attempts),
            "lone_success": sum(a.success and sum(groups[a.group]) == 1 for a in attempts),
            "completion_tokens": tokens, "mean_completion_length": tokens / len(attempts),
            "length_p95": lengths[math.ceil(0.95 * len(lengths)) - 1], "length_max": lengths[-1],
            "distinct_answers": sum(map(len, answers.values())) / len(groups),
            "distinct_texts": sum(map(len, texts.values())) / len(groups),
            "leaks": sum(peer_context.leaks(a.text) for a in attempts),
            "sampled_entropy": -sum(x for a in attempts for x in a.rollout.logprobs) / tokens}
