"""One step of MOPD: Multi-Rollout (not multi-teacher) On-Policy Distillation, arXiv 2605.12652.

    sample K rollouts per problem -> verify each -> choose peers and write what the teacher reads
    -> score every token with the student and with the teacher -> one gradient

    loss = sum_i sum_t w_it D( teacher(. | problem, peers_i, y_i<t) || student(. | problem, y_i<t) )

D is the Jensen-Shannon divergence by default; w holds one normaliser for the whole step. The loss
is a divergence, not a reward: it starts small and need not fall. `plan` is the one place where the
methods differ.

    attempts = sample(student, tokenizer, problems, k=8, task="math", ...)
    plan(attempts, method="mopd", peers="contrastive", ...)
    write_contexts(attempts, teacher, ...)
    metrics = backward(student, teacher, attempts, ...)      # gradients are in student.parameters()

Differences from the paper: docs/deviations.md.
"""

import contextlib
import copy
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

import loss
import peer_context
import rollout
from peer_context import Peers
from runtime import parallel
from runtime.metrics import Sums, timed
from runtime.models import (
    chat_ids,
    completion_text,
    head,
    plain_text,
    product_dtype,
    stop_ids,
    student_ids,
)
from verifiers import Verdict, verify_batch

METHODS = ("mopd", "sdpo", "opd", "grpo", "rft")
PEERS = ("contrastive", "positive", "random", "unrelated", "success_only")
NO_TEACHER = ("grpo", "rft")
SLOTS = {"contrastive": (2, 1), "positive": (2, 0), "sdpo": (1, 0)}  # successes, failures


@dataclass(frozen=True)
class Problem:
    """One row of the data. `key`: its row number; it seeds this problem's random numbers."""

    prompt: str
    answer: object
    system: str
    key: int


@dataclass
class Attempt:
    """One rollout with its verdict, its peers, the teacher's prompt and its weight in the loss."""

    problem: Problem
    group: int
    rollout: rollout.Rollout
    text: str
    verdict: Verdict
    peers: Peers = Peers((), ())  # positions in the step's list of attempts
    feedback: str = ""
    teacher_text: str = ""
    teacher_ids: list[int] = field(default_factory=list)
    weight: float = 0.0  # multiplies the loss of each of its tokens; 0: nothing to learn from

    @property
    def success(self) -> bool:
        """A rollout that the length limit cut is no success, whatever it says."""
        return self.verdict.correct and self.rollout.stopped


@dataclass
class Teacher:
    """kind: "ema", "frozen", "current" (the student itself) or "external".

    vocabulary: how many output rows student and teacher share; later rows are padding.
    """

    model: torch.nn.Module
    tokenizer: object
    kind: str
    vocabulary: int

    @torch.no_grad()
    def update(self, student, rate: float) -> None:
        """EMA, once after every optimizer step: teacher <- (1 - rate) teacher + rate student."""
        if self.kind == "ema":
            torch._foreach_lerp_(list(self.model.parameters()), list(student.parameters()), rate)


def make_teacher(kind, student, tokenizer, external=None, external_tokenizer=None) -> Teacher:
    """The teacher of `kind`: a copy of the student, the student itself, or the `external` model.

    Raises ValueError when the tokenizers map any token to different ids: a divergence between
    them would compare different words.
    """
    rows = len(head(student))
    if external is None:
        model = student
        if kind != "current":
            model = copy.deepcopy(student).requires_grad_(False).eval()
        return Teacher(model, tokenizer, kind, rows)
    if tokenizer.get_vocab() != external_tokenizer.get_vocab():
        raise ValueError(
            "the teacher's vocabulary differs from the student's: "
            "use a teacher with the same tokenizer"
        )
    rows = min(rows, len(head(external)))
    return Teacher(external.requires_grad_(False).eval(), external_tokenizer, "external", rows)


# --- 1. sample and verify ---


def sample(
    student,
    tokenizer,
    problems: list[Problem],
    *,
    k: int,
    task: str,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    max_rows: int | None = None,
    autocast=contextlib.nullcontext,
    seconds: dict | None = None,
    generate: Callable = rollout.generate,
) -> list[Attempt]:
    """K verified attempts for each problem, group after group.

    Times go into seconds["rollout"] and seconds["verify"]. With several processes each samples and
    verifies its share of the problems and all get all attempts; "verify" includes that wait.
    """
    start = time.perf_counter()
    mine = parallel.share(range(len(problems)))
    with autocast(), parallel.gathered(student):
        groups = generate(
            student,
            [student_ids(tokenizer, problems[g]) for g in mine],
            k,
            max_new_tokens=max_new_tokens,
            stop_ids=stop_ids(student, tokenizer),
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            keys=[problems[g].key for g in mine],
            max_rows=max_rows,
        )
    sampled = time.perf_counter()
    flat = [(g, r) for g, group in zip(mine, groups, strict=True) for r in group]
    # Without the stop token: not every one of them is special, so decoding would not skip it.
    said = [r.ids[:-1] if r.stopped else r.ids for _, r in flat]
    texts = [completion_text(tokenizer, ids) for ids in said]
    answers = [problems[g].answer for g, _ in flat]
    verdicts = verify_batch(task, texts, answers, workers=parallel.workers())
    more = zip(flat, texts, verdicts, strict=True)
    found = parallel.gather([(g, r, text, verdict) for (g, r), text, verdict in more])
    if seconds is not None:
        seconds["rollout"], seconds["verify"] = sampled - start, time.perf_counter() - sampled
    found.sort(key=lambda item: item[0])
    return [Attempt(problems[g], g, *rest) for g, *rest in found]


# --- 2. what each method learns from a rollout ---


def plan(attempts, *, method, peers="contrastive", feedback=True, seed=0) -> None:
    """Set every attempt's peers, feedback and weight: the one place where the methods differ.

    mopd   the teacher reads the problem and the peers; with `feedback`, a wrong rollout for which
           contrastive finds no successful peer (whatever `peers` is) also shows the verifier's
           feedback on it
    sdpo   the teacher reads one success, or else the feedback on the rollout itself
    opd    an external teacher reads the problem alone
    grpo   no teacher: weight = advantage, (r - group mean) / (group std + 1e-4)
    rft    no teacher: weight 1 for a success, 0 otherwise
    """
    texts = [peer_context.strip_thinking(a.text) for a in attempts]
    for i, a in enumerate(attempts):
        if method in ("mopd", "sdpo"):
            kind = "sdpo" if method == "sdpo" else peers
            a.peers = like = choose(attempts, texts, i, kind, seed)
            if kind not in SLOTS:  # controls: feedback exactly where contrastive would show it
                like = choose(attempts, texts, i, "contrastive", seed)
            helpless = not a.success and not like.successes
            a.feedback = a.verdict.feedback if helpless and (feedback or method == "sdpo") else ""
            a.weight = float(bool(a.peers.successes or a.peers.failures or a.feedback))
        elif method == "opd":
            a.weight = 1.0
        elif method == "grpo":
            rewards = torch.tensor([float(b.success) for b in attempts if b.group == a.group])
            spread = rewards.std(correction=0) + 1e-4
            a.weight = float((float(a.success) - rewards.mean()) / spread)
        elif method == "rft":
            a.weight = float(a.success)
        else:
            raise ValueError(f"unknown method {method!r}: use {', '.join(METHODS)}")


def choose(attempts, texts: list[str], i: int, kind: str, seed) -> Peers:
    """The peers of attempt i under one kind of context, as positions in the step.

    texts: what each attempt says. Truncated attempts and those that say nothing are never shown.
    """
    pool, groups = range(len(attempts)), [a.group for a in attempts]
    if kind in SLOTS:
        pool = [j for j in pool if groups[j] == groups[i]]
    told = {
        "correct": [attempts[j].success for j in pool],
        "usable": [attempts[j].rollout.stopped and bool(texts[j]) for j in pool],
        "texts": [texts[j] for j in pool],
        "seed": (seed, attempts[i].problem.key),
    }
    if kind not in SLOTS:
        return peer_context.choose_control(kind, groups, i=i, **told)
    successes, failures = SLOTS[kind]
    chosen = peer_context.choose_peers(
        i=pool.index(i), n_success=successes, n_failure=failures, **told
    )
    return Peers(*(tuple(pool[j] for j in part) for part in (chosen.successes, chosen.failures)))


def write_contexts(
    attempts, teacher: Teacher, *, peer_tokens: int, longest: int, layout: str = "turn"
) -> dict[str, int]:
    """Fill in teacher_text and teacher_ids of attempts with a weight; returns counts of cuts.

    layout: how the peers are written, see peer_context.teacher_messages. Each peer is cut to
    `peer_tokens` (head and tail kept). While prompt and completion exceed `longest` tokens, a peer
    is dropped: extra successes first, then the failure, the first success, the feedback. The
    problem, the instruction and the generation prompt are never cut. The attempt is skipped
    (weight 0) if no peer or feedback fits, if even the bare problem does not fit, or if it
    contains a token that the teacher does not have.
    """
    counts = {"peers_shortened": 0, "peers_dropped": 0, "context_tokens": 0}
    shown = {j for a in attempts if a.weight for j in a.peers.successes + a.peers.failures}
    bodies = {j: peer_body(attempts[j].text, teacher.tokenizer, peer_tokens) for j in shown}
    for a in attempts:
        if not a.weight:
            continue
        successes, failures = list(a.peers.successes), list(a.peers.failures)
        feedback = plain_text(teacher.tokenizer, a.feedback)
        counts["peers_shortened"] += sum(bodies[j][1] for j in successes + failures)
        bare = not (successes or failures or feedback)
        while True:
            messages = peer_context.teacher_messages(
                layout,
                a.problem.prompt,
                successes=[bodies[j][0] for j in successes],
                failures=[bodies[j][0] for j in failures],
                feedback=feedback,
            )
            ids = chat_ids(teacher.tokenizer, a.problem.system, messages)
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
        a.peers = replace(a.peers, successes=tuple(successes), failures=tuple(failures))
        known = max(a.rollout.ids) < teacher.vocabulary
        if fits and known and (bare or successes or failures or feedback):
            a.teacher_text, a.teacher_ids = peer_context.readable(messages), ids
            counts["context_tokens"] += len(ids)
        else:
            a.weight = 0.0
    return counts


def peer_body(text: str, tokenizer, budget: int) -> tuple[str, bool]:
    """(the text without thoughts and special tokens, of at most `budget` tokens; was it cut?)."""

    def encode(part):
        return tokenizer(part, add_special_tokens=False)["input_ids"]

    text = plain_text(tokenizer, peer_context.strip_thinking(text))
    return peer_context.shorten(text, budget, encode, tokenizer.decode)


# --- 3. score and differentiate ---


def student_tokens(attempt: Attempt) -> int:
    """Length of the row that the student reads."""
    return len(attempt.rollout.prompt_ids) + len(attempt.rollout.ids)


def teacher_tokens(attempt: Attempt) -> int:
    """Length of the row that the teacher reads."""
    return len(attempt.teacher_ids) + len(attempt.rollout.ids)


def longer_tokens(attempt: Attempt) -> int:
    return max(student_tokens(attempt), teacher_tokens(attempt))


def microbatches(attempts, budget: int, size=longer_tokens) -> list[list[Attempt]]:
    """Attempts with a weight, sorted by length, in batches of at most `budget` tokens with padding.

    A single attempt that is longer than the budget is a batch of its own.
    """
    batches = []
    for a in sorted((a for a in attempts if a.weight), key=size, reverse=True):
        # The first attempt of a batch is its longest: the others are padded to it.
        if batches and (len(batches[-1]) + 1) * size(batches[-1][0]) <= budget:
            batches[-1].append(a)
        else:
            batches.append([a])
    return batches


def hidden_states(model, prompts, completions) -> torch.Tensor:
    """Final hidden states (N, D) at the positions that predict the completion tokens.

    prompts, completions: lists of B lists of token ids; N counts all completion tokens, row after
    row. Right padding: with causal attention no real token sees it, and every row keeps positions
    0, 1, 2, ...
    """
    rows = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    predicts = torch.zeros(ids.shape, dtype=torch.bool)
    for n, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        ids[n, : len(row)] = torch.tensor(row)
        # The token at t is predicted at t - 1, the first one by the last prompt token.
        predicts[n, len(prompt) - 1 : len(row) - 1] = True
    device = head(model).device
    states = model.base_model(input_ids=ids.to(device), use_cache=False).last_hidden_state
    return product_dtype(states[predicts.to(device)])


@dataclass(frozen=True)
class Parts:
    """The three pieces that have a faster twin with the same signature and results in runtime/."""

    hidden_states: Callable = hidden_states
    distill_loss: Callable = loss.distill_loss
    nll_loss: Callable = loss.nll_loss


def backward(
    student,
    teacher: Teacher,
    attempts,
    *,
    method: str = "mopd",
    divergence: str = "jsd",
    top_k: int | None = None,
    temperature: float = 1.0,
    reduction: str = "token",
    is_clip: float | None = None,
    micro_tokens: int = 8192,
    autocast=contextlib.nullcontext,
    seconds: dict | None = None,
    parts: Parts = Parts(),  # noqa: B008 (frozen)
) -> dict:
    """Accumulate the gradient of the step's loss into the student's parameters; returns metrics.

    The normaliser is computed once per step, before the first backward pass, so the gradient does
    not depend on the micro-batches: "token" counts every completion token alike, "sequence" every
    attempt. Only attempts that the method learns from count (for grpo: all of them). Without any
    the loss is 0, without a gradient.

    teacher_gap: mean of log teacher - log student over the scored tokens; stop_gap: over the stop
    tokens among them. A teacher that does not want to stop teaches the student not to.
    """
    teaches, seconds = method not in NO_TEACHER, {} if seconds is None else seconds
    counted = attempts if method == "grpo" else [a for a in attempts if a.weight]
    lengths = [len(a.rollout.ids) for a in counted]
    total = sum(lengths) if reduction == "token" else len(lengths)
    options = dict(temperature=temperature, is_clip=is_clip)
    if teaches:
        options |= dict(divergence=divergence, top_k=top_k)
    sums = Sums()
    for batch in parallel.share(even_microbatches(attempts, micro_tokens)):
        read = None
        with timed(seconds, "teacher", student):
            if teaches:
                read = teacher_hidden(teacher, batch, micro_tokens, autocast, parts)
        with timed(seconds, "student", student):
            targets = targets_of(batch, total, reduction, head(student).device)
            score = functools.partial(
                student_loss, student, teacher, batch, read, targets, options, parts
            )
            with autocast():
                value, out = parallel.inside(student, score)
            value.backward()
            sums.add(batch, out, targets)
    if teaches:
        parallel.release(teacher.model)
    return sums.metrics(teaches)


def even_microbatches(attempts, budget: int) -> list[list[Attempt]]:
    """Micro-batches by the student's lengths; with several processes the same number for each.

    FSDP gathers the weights in every forward pass, so all processes must run equally many: the list
    is padded with copies of weight 0, which change neither loss nor gradient.
    """
    batches = microbatches(
        attempts, budget, student_tokens if parallel.world() == 1 else longer_tokens
    )
    while len(batches) % parallel.world():
        batches.append([replace(batches[-1][-1], weight=0.0)])
    return batches


@torch.no_grad()
def teacher_hidden(teacher: Teacher, batch, budget: int, autocast, parts: Parts) -> torch.Tensor:
    """The teacher's hidden states (N, D) of a batch that was made by the student's lengths.

    The teacher reads more than the student, so it takes fewer rows at once; its states are small.
    With several processes it takes the batch whole: all must run the same number of passes.
    """
    groups = [batch] if parallel.world() > 1 else microbatches(batch, budget, teacher_tokens)
    found = {}
    for rows in groups:
        prompts, completions = [a.teacher_ids for a in rows], [a.rollout.ids for a in rows]
        read = functools.partial(parts.hidden_states, teacher.model, prompts, completions)
        with autocast():
            states = parallel.inside(teacher.model, read)
        found.update(zip(map(id, rows), states.split(list(map(len, completions))), strict=True))
    return torch.cat([found[id(a)] for a in batch])


def targets_of(batch, total: int, reduction: str, device) -> tuple[torch.Tensor, ...]:
    """(sampled ids, their log-probabilities when sampled, weights) of a micro-batch, (N,) each."""
    share = {
        "token": lambda a: a.weight / total,
        "sequence": lambda a: a.weight / total / len(a.rollout.ids),
    }
    weights = [share[reduction](a) for a in batch for _ in a.rollout.ids]
    ids = [t for a in batch for t in a.rollout.ids]
    sampled = [x for a in batch for x in a.rollout.logprobs]
    return tuple(torch.tensor(values, device=device) for values in (ids, sampled, weights))


def student_loss(student, teacher: Teacher, batch, read, targets, options: dict, parts: Parts):
    """(loss, the loss function's output) of a micro-batch; `read`: the teacher's states or None."""
    ids, sampled, weights = targets
    prompts, completions = [a.rollout.prompt_ids for a in batch], [a.rollout.ids for a in batch]
    hidden, matrix = parts.hidden_states(student, prompts, completions), head(student)
    if read is None:
        out = parts.nll_loss(hidden, matrix, ids, weights, sampled_logprobs=sampled, **options)
    else:
        rows = slice(teacher.vocabulary)  # the padding of differently padded heads is left out
        options = options | dict(sampled_ids=ids, sampled_logprobs=sampled)
        its = head(teacher.model)[rows]
        out = parts.distill_loss(hidden, matrix[rows], read, its, weights, **options)
    return out.loss, out
