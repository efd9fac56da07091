"""One step of MOPD: Multi-Rollout (not multi-teacher) On-Policy Distillation, arXiv 2605.12652.

    sample K rollouts per problem -> verify each -> choose peers and write what the teacher reads
    -> score every token with the student and with the teacher -> one gradient

    loss = sum_i sum_t w_it D( student(. | problem, y_i<t), teacher(. | problem, peers_i, y_i<t) )

D is the Jensen-Shannon divergence by default (directions: loss.py); w holds one normaliser for the
whole step. A *success* is right and stopped by itself, a *failure* wrong and stopped. A truncated
rollout is neither: it is never shown to others, learns from peers like a wrong one, and has reward
0 in grpo. `plan` decides what each method learns. About the paper: docs/deviations.md.

    attempts = sample(student, tokenizer, problems, k=8, task="math", ...)
    plan(attempts, method="mopd", peers="contrastive", ...)
    write_contexts(attempts, teacher, ...)
    metrics = backward(student, teacher, attempts, ...)      # gradients are in student.parameters()
"""

import contextlib
import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import attrgetter

import torch

import loss
import peer_context
import rollout
from peer_context import Peers, choose_control, choose_peers
from runtime import parallel
from runtime.metrics import Sums, timed
from runtime.models import backbone, common_vocabulary, head, product_dtype, vocabulary_size
from runtime.templates import chat_ids, completion_text, plain_text, stop_ids, student_ids
from verifiers import Verdict, verify_batch

METHODS = ("mopd", "sdpo", "opd", "grpo", "rft")
PEERS = ("contrastive", "positive", "random", "unrelated", "success_only")
NO_TEACHER = ("grpo", "rft")
COPIES = ("ema", "frozen", "current")  # teachers that are the student itself or a copy of it
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
    group: int  # index into the step's problems
    rollout: rollout.Rollout
    text: str  # of the completion, thoughts included
    verdict: Verdict
    peers: Peers = Peers((), ())  # positions in the step's list of attempts
    feedback: str = ""
    teacher_text: str = ""  # for people; the teacher reads teacher_ids
    teacher_ids: list[int] = field(default_factory=list)
    weight: float = 0.0  # of each token before the normaliser; negative for a bad grpo rollout

    @property
    def success(self) -> bool:
        """A rollout that the length limit cut is no success, whatever it says."""
        return self.verdict.correct and self.rollout.stopped


@dataclass
class Teacher:
    """Who scores the rollouts."""

    model: torch.nn.Module
    tokenizer: object
    kind: str  # "ema", "frozen", "current" (the student itself) or "external"
    vocabulary: int  # output rows that are compared: the smaller head's; later ones are padding

    @torch.no_grad()
    def update(self, student, rate: float) -> None:
        """For "ema", after each optimizer step: teacher <- (1 - rate) teacher + rate student."""
        if self.kind == "ema":
            torch._foreach_lerp_(list(self.model.parameters()), list(student.parameters()), rate)


def make_teacher(kind, student, tokenizer, external=None, external_tokenizer=None) -> Teacher:
    """The teacher of `kind`: a copy of the student, the student itself, or the `external` model.

    Raises ValueError when an id stands for different tokens in the two tokenizers.
    """
    rows = vocabulary_size(student)
    if external is None:
        model = student
        if kind != "current":
            model = copy.deepcopy(student).requires_grad_(False).eval()
        return Teacher(model, tokenizer, kind, rows)
    rows = common_vocabulary(tokenizer, external_tokenizer, min(rows, vocabulary_size(external)))
    return Teacher(external.requires_grad_(False).eval(), external_tokenizer, "external", rows)


# --- 1. sample and verify ---


def sample(
    student,
    tokenizer,
    problems: list[Problem],
    *,
    k: int,
    task: str,
    autocast=contextlib.nullcontext,
    seconds: dict | None = None,
    generate: Callable = rollout.generate,
    **sampling,
) -> list[Attempt]:
    """K verified attempts for each problem, group after group.

    sampling: max_new_tokens, temperature, top_p, seed, max_rows, as in rollout.generate. Times go
    into seconds["rollout"] and seconds["verify"]. With several processes each samples and verifies
    its share of the problems and all get all attempts; "verify" includes that wait.
    """
    seconds, mine = {} if seconds is None else seconds, parallel.share(range(len(problems)))
    with timed(seconds, "rollout", student), autocast(), parallel.gathered(student):
        groups = generate(
            student,
            [student_ids(tokenizer, problems[g]) for g in mine],
            k,
            stop_ids=stop_ids(student, tokenizer),
            keys=[problems[g].key for g in mine],
            **sampling,
        )
    with timed(seconds, "verify", student):
        flat = [(g, r) for g, group in zip(mine, groups, strict=True) for r in group]
        # Without the stop token: not every one of them is special, so decoding would not skip it.
        said = [(r.ids[:-1] if r.stopped else r.ids, r.prompt_ids) for _, r in flat]
        texts = [completion_text(tokenizer, ids, prompt) for ids, prompt in said]
        shown = [peer_context.strip_thinking(text) for text in texts]  # judge what peers will show
        answers = [problems[g].answer for g, _ in flat]
        verdicts = verify_batch(task, shown, answers, workers=parallel.workers())
        verified = parallel.gather(list(zip(flat, texts, verdicts, strict=True)))
    verified.sort(key=lambda item: item[0][0])  # by group: each process had some of them
    return [Attempt(problems[g], g, r, text, verdict) for (g, r), text, verdict in verified]


# --- 2. what each method learns from a rollout ---


def plan(attempts, *, method, peers="contrastive", feedback=True, seed=0) -> None:
    """Set every attempt's peers, feedback and weight: what each method learns from a rollout.

    method, peers      only it succeeded    nobody succeeded         others succeeded
    mopd contrastive   one failure          one failure, feedback    two successes, one failure
    mopd positive      weight 0             feedback                 two successes
    sdpo               weight 0             feedback                 one success
    opd                the bare problem, in every case (an external teacher)
    grpo               no teacher: weight = (r - group mean) / (group's population std + 1e-4)
    rft                no teacher: weight 1 for a success, else 0

    The numbers are maxima: attempts that were truncated or say nothing are never shown. Feedback is
    the verifier's on the rollout itself; `feedback=False` leaves it out of mopd. A rollout with
    neither peers nor feedback has weight 0. Controls: see peer_context.choose_control. seed:
    another one for each step.
    """
    texts = [peer_context.strip_thinking(a.text) for a in attempts]
    lists = {
        "correct": [a.success for a in attempts],
        "usable": [a.rollout.stopped and bool(t) for a, t in zip(attempts, texts, strict=True)],
        "texts": texts,
        "group": [a.group for a in attempts],
    }
    for i, a in enumerate(attempts):
        if method in ("mopd", "sdpo"):
            kind = "sdpo" if method == "sdpo" else peers
            options = dict(i=i, seed=(seed, a.problem.key), **lists)
            successes, failures = SLOTS.get(kind, SLOTS["contrastive"])
            a.peers = usual = choose_peers(n_success=successes, n_failure=failures, **options)
            if kind not in SLOTS:
                a.peers = choose_control(kind, usual, **options)
            # a control shows feedback exactly where contrastive would
            no_success = not a.success and not usual.successes
            a.feedback = a.verdict.feedback if no_success and (feedback or method == "sdpo") else ""
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


def write_contexts(
    attempts, teacher: Teacher, *, peer_tokens: int, max_tokens: int, layout: str = "turn"
) -> dict[str, int]:
    """Fill in teacher_text and teacher_ids of attempts with a weight; returns counts.

    layout: how the peers are written, see peer_context.teacher_messages. Each peer is cut to
    `peer_tokens` (head and tail kept). While the teacher's prompt and the completion exceed
    `max_tokens`, a peer is dropped: extra successes first, then the failure, the first success,
    the feedback; the problem and the instruction are never cut. Weight 0: no peer or feedback is
    left, it is still too long, or the completion has an id beyond teacher.vocabulary. Counts: peers
    shortened, peers or feedback dropped, tokens of all contexts.
    """
    counts = {"peers_shortened": 0, "peers_dropped": 0, "context_tokens": 0}
    shown = {j for a in attempts if a.weight for j in a.peers.successes + a.peers.failures}
    bodies = {j: peer_body(attempts[j].text, teacher.tokenizer, peer_tokens) for j in shown}
    for a in (a for a in attempts if a.weight):
        feedback = plain_text(teacher.tokenizer, a.feedback)
        kept = [*a.peers.successes[:1], *a.peers.failures, *a.peers.successes[1:]]
        counts["peers_shortened"] += sum(bodies[j][1] for j in kept)
        kept = ["feedback"] * bool(feedback) + kept  # the last one is dropped first
        planned_bare = not kept  # opd
        while True:
            successes = tuple(j for j in a.peers.successes if j in kept)
            failures = tuple(j for j in a.peers.failures if j in kept)
            messages = peer_context.teacher_messages(
                layout,
                a.problem.prompt,
                successes=[bodies[j][0] for j in successes],
                failures=[bodies[j][0] for j in failures],
                feedback=feedback if "feedback" in kept else "",
            )
            ids = chat_ids(teacher.tokenizer, a.problem.system, messages)
            fits = len(ids) + len(a.rollout.ids) <= max_tokens
            if fits or not kept:
                break
            counts["peers_dropped"] += 1
            kept.pop()
        a.peers = replace(a.peers, successes=successes, failures=failures)
        known = max(a.rollout.ids) < teacher.vocabulary
        if fits and known and (planned_bare or kept):
            a.teacher_text, a.teacher_ids = peer_context.readable(messages), ids
            counts["context_tokens"] += len(ids)
        else:
            a.weight = 0.0
    return counts


def peer_body(text: str, tokenizer, budget: int) -> tuple[str, bool]:
    """(the text without thoughts and special tokens, see peer_context.shorten; was it cut?)."""
    text = plain_text(tokenizer, peer_context.strip_thinking(text))
    encode = functools.partial(tokenizer.encode, add_special_tokens=False)
    return peer_context.shorten(text, budget, encode, tokenizer.decode)


# --- 3. score and differentiate ---


student_prompt_ids, teacher_prompt_ids = attrgetter("rollout.prompt_ids"), attrgetter("teacher_ids")


def longer_prompt(attempt: Attempt) -> list[int]:
    return max(student_prompt_ids(attempt), teacher_prompt_ids(attempt), key=len)


def microbatches(attempts, budget: int, prompt=longer_prompt, model=None) -> list[list[Attempt]]:
    """Attempts with a weight, sorted by length, in batches of at most `budget` tokens with padding.

    prompt: what is read before the completion. A single attempt that is longer than the budget is
    a batch of its own. model: ignored here; the fast twin asks it whether prompts can be shared.
    """
    sized = [(len(prompt(a)) + len(a.rollout.ids), a) for a in attempts if a.weight]
    batches, longest = [], 0
    for size, a in sorted(sized, key=lambda pair: pair[0], reverse=True):
        # The first attempt of a batch is its longest: the others are padded to it.
        if batches and (len(batches[-1]) + 1) * longest <= budget:
            batches[-1].append(a)
        else:
            batches.append([a])
            longest = size
    return batches


def hidden_states(model, prompts, completions) -> torch.Tensor:
    """Final hidden states (N, D) at the positions that predict the completion tokens.

    prompts, completions: B lists of token ids each; N counts all completion tokens, row after row.
    Right padding: with causal attention no real token sees it, and rows keep positions 0, 1, 2...
    """
    rows = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    predicts = torch.zeros(ids.shape, dtype=torch.bool)
    for n, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        ids[n, : len(row)] = torch.tensor(row)
        # The token at t is predicted at t - 1, the first one by the last prompt token.
        predicts[n, len(prompt) - 1 : len(row) - 1] = True
    ids, predicts = ids.to(model.device), predicts.to(model.device)
    states = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state
    return product_dtype(states[predicts])


@dataclass(frozen=True)
class Parts:
    """The pieces that have a faster twin with the same signature and results in runtime/."""

    hidden_states: Callable = hidden_states
    distill_loss: Callable = loss.distill_loss
    nll_loss: Callable = loss.nll_loss
    microbatches: Callable = microbatches


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

    The normaliser is taken over the whole step before the first backward pass, so the gradients of
    the micro-batches, and of the processes, simply add up. reduction "token": the number of
    completion tokens; "sequence": the number of attempts, each by its mean token. Only attempts
    with a weight count; for grpo all, so that a group of equal rewards dilutes the step instead of
    raising the others' share. Where none counts, the loss is 0 and there is no gradient.
    temperature: the sampler's, above 0. is_clip: exact only for top_p = 1. Metrics: docs/metrics.md
    """
    teaches, seconds = method not in NO_TEACHER, {} if seconds is None else seconds
    counted = attempts if method == "grpo" else [a for a in attempts if a.weight]
    total = sum(len(a.rollout.ids) for a in counted) if reduction == "token" else len(counted)
    options = dict(temperature=temperature, is_clip=is_clip)
    states, sums = {}, Sums()
    if teaches:
        options |= dict(divergence=divergence, top_k=top_k)
        with timed(seconds, "teacher", student):
            states = teacher_states(teacher, attempts, micro_tokens, autocast, parts)
    for batch in my_microbatches(attempts, micro_tokens, student_prompt_ids, student, parts):
        with timed(seconds, "student", student):
            targets = targets_of(batch, total, reduction, student.device)
            score = functools.partial(
                student_loss, student, teacher, batch, states, targets, options, parts
            )
            with autocast():
                value, out = parallel.inside(student, score)
            value.backward()
            sums.add(batch, out, targets)
    if teaches:
        parallel.release(teacher.model)  # its FSDP shards were gathered until here, for its head
    return sums.metrics(teaches)


def my_microbatches(attempts, budget: int, prompt, model, parts: Parts) -> list[list[Attempt]]:
    """Micro-batches of this process's part of the attempts; with several processes equally many.

    FSDP gathers the weights in every forward pass, so all processes must run the same number: the
    shorter lists are padded with a copy of weight 0, which changes neither loss nor gradient.
    """
    if parallel.world() > 1:  # every one gets rows of all lengths
        attempts = [a for batch in microbatches(attempts, budget) for a in batch]
    shares = [attempts[rank :: parallel.world()] for rank in range(parallel.world())]
    lists = [parts.microbatches(share, budget, prompt, model) for share in shares]
    [mine] = parallel.share(lists)  # the list of this rank
    missing = max(map(len, lists)) - len(mine)
    # Padding is an attempt whose teacher states this rank has: its own or, without any, rank 0's.
    return mine + [[replace((mine or lists[0])[-1][-1], weight=0.0)] for _ in range(missing)]


@torch.no_grad()
def teacher_states(teacher: Teacher, attempts, budget: int, autocast, parts) -> dict:
    """{id(a.rollout): the teacher's final hidden states (T, D)}; padding copies share a rollout.

    A pass of its own, before the student's: the teacher reads longer rows, so its micro-batches
    hold fewer, and equal contexts stand side by side. The price: N x D for the whole step.
    """
    found = {}
    for batch in my_microbatches(attempts, budget, teacher_prompt_ids, teacher.model, parts):
        prompts, completions = [a.teacher_ids for a in batch], [a.rollout.ids for a in batch]
        forward = functools.partial(parts.hidden_states, teacher.model, prompts, completions)
        with autocast():
            states = parallel.inside(teacher.model, forward)
        for a, of_one in zip(batch, states.split(list(map(len, completions))), strict=True):
            found[id(a.rollout)] = of_one
    return found


def targets_of(batch, total: int, reduction: str, device) -> tuple[torch.Tensor, ...]:
    """(sampled ids, their log-probabilities when sampled, weights) of a micro-batch, (N,) each."""
    ids, logprobs, weights = [], [], []
    for a in batch:
        t = len(a.rollout.ids)
        ids += a.rollout.ids
        logprobs += a.rollout.logprobs
        weights += [a.weight / (total if reduction == "token" else total * t)] * t
    return tuple(torch.tensor(values, device=device) for values in (ids, logprobs, weights))


def student_loss(student, teacher, batch, states: dict, targets, options: dict, parts: Parts):
    """(loss, the loss function's output) of a micro-batch. states: of `teacher_states`, or none."""
    ids, sampled, weights = targets
    prompts, completions = [a.rollout.prompt_ids for a in batch], [a.rollout.ids for a in batch]
    hidden = parts.hidden_states(student, prompts, completions)
    options = options | dict(sampled_logprobs=sampled)
    if not states:
        out = parts.nll_loss(hidden, head(student), ids, weights, **options)
    else:
        rows = slice(teacher.vocabulary)  # the padding of differently padded heads is left out
        student_head, teacher_head = head(student)[rows], head(teacher.model)[rows]
        teacher_hidden = torch.cat([states[id(a.rollout)] for a in batch])
        sides = (hidden, student_head, teacher_hidden, teacher_head)
        out = parts.distill_loss(*sides, weights, sampled_ids=ids, **options)
    return out.loss, out  # the loss by itself: FSDP looks there for what backward will start from
