"""Look at a run: the lines it prints, monitors, the token view, and a self-contained HTML page.

The token view shows every token of some rollouts, coloured by the log-ratio

    log teacher(y_t | problem, peers, y_<t) - log student(y_t | problem, y_<t)

with the peers that training would choose, for each kind of context. `token_view` computes it,
`write_report` puts it and the curves of one or more runs into one page, `show` prints it in the
terminal. Needs a run's metrics.jsonl and tokens.jsonl, mopd.py and loss.py; knows nothing of data
files, optimizers or checkpoints.

    python analyze.py report OUT [OUT2 ...]
    python analyze.py show OUT --step 24
"""

import collections
import contextlib
import functools
import html
import itertools
import json
import math
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch

import mopd
import peer_context
import verifiers
from loss import CHUNK_SIZE, as_head
from runtime import parallel
from runtime.fast_loss import distill_loss
from runtime.fast_rollout import fused_norms
from runtime.fast_scoring import hidden_states
from runtime.models import head, max_length, vocabulary_size

# the token view of a step: number of groups, and of tokens of each rollout
VIEW_GROUPS, VIEW_TOKENS = 3, 400
# the teacher's contexts that the token view of every run shows
CONTEXTS = ("none", "positive", "contrastive")
PAGE_BYTES = 4_500_000  # limit of the token data in the page
TEMPLATE = Path(__file__).with_name("report.html")


# --- what a run prints and records ---


def announce(run) -> None:
    """Print the run's arithmetic: problems, tokens and memory."""
    s, mega = run.settings, 2**20
    parameters = sum(p.numel() for p in run.student.parameters())
    vocabulary = vocabulary_size(run.student)
    copies, rows = 4 + (run.teacher.kind in ("ema", "frozen")), s.problems * s.rollouts
    print(
        f"{s.method}{f' ({s.peers})' if s.peers else ''} on {s.task}: {s.model}, "
        f"{parameters / 1e6:.1f}M parameters, {s.device} in {s.dtype}; "
        f"{len(run.train)} training and {len(run.held_out)} evaluation problems"
    )
    print(
        f"{s.steps} steps of {s.problems} problems x {s.rollouts} rollouts = {rows} rollouts, "
        f"at most {rows * s.max_new_tokens:,} new tokens a step"
    )
    size = sum(p.numel() * p.element_size() for p in run.teacher.model.parameters()) / mega
    external = f", external teacher {size:,.0f} MiB" if run.teacher.kind == "external" else ""
    chunk = CHUNK_SIZE.get(torch.device(s.device).type, 256)
    shards = f", 1/{parallel.world()} of it in each process" if parallel.world() > 1 else ""
    print(
        f"memory: weights, gradient, AdamW{', teacher' if copies == 5 else ''} "
        f"{parameters * 4 * copies / mega:,.0f} MiB{external}{shards}; "
        f"logits: a whole step's would be {rows * s.max_new_tokens * vocabulary * 4 / mega:,.0f} "
        f"MiB, the loss holds those of {chunk} tokens, {chunk * vocabulary * 4 / mega:,.1f} MiB"
    )
    if s.steps:
        print(disk_line(run, parameters))
    if s.task == "code":
        print(verifiers.describe_isolation())
    if not run.held_out:
        print(
            "no --eval-data: nothing is held out, "
            "and success on the training problems is all there is to watch"
        )
    print(f"run folder: {run.out}")


def disk_line(run, parameters: int) -> str:
    """What the checkpoints will take against what is free: --keep of them and the one in writing.

    A checkpoint holds the weights, two moments and, if it is a copy of the student, the teacher.
    """
    copies = 3 + (run.teacher.kind in ("ema", "frozen"))
    count = min(run.settings.keep + 1, math.ceil(run.settings.steps / run.settings.save_every))
    need, folder = parameters * 4 * copies * count / 2**20, run.out.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**20
    line = f"disk: {count} checkpoints at a time {need:,.0f} MiB; {free:,.0f} MiB are free"
    if need > free:
        line += ": NOT ENOUGH, choose a smaller --keep, a larger --save-every or another --out"
    return line


def line_of(m: dict) -> str:
    """The line that is printed for the metrics of a step."""
    counts = "".join(
        f"  {name} {m[name]}"
        for name in ("peers_shortened", "peers_dropped", "empty_slots", "leaks", "oom_retries")
        if m.get(name)
    )
    grad_norm = "-" if m["grad_norm"] is None else f"{m['grad_norm']:.3f}"
    return (
        f"step {m['step']:4d}  loss {m['loss']:.4f}  success {m['success']:.3f}  "
        f"groups mixed/right/wrong "
        f"{m['groups_mixed']}/{m['groups_all_right']}/{m['groups_all_wrong']}  "
        f"unweighted {m['unweighted']}  truncated {m['truncated']}  "
        f"length {m['mean_completion_length']:.1f}  |g| {grad_norm}  "
        f"{sum(m['seconds'].values()):.1f}s{counts}"
    )


def sample_records(step: int, attempts) -> list[dict]:
    """samples.jsonl of a step, a record for each group: texts, verdicts, peers, teacher prompts.

    Peers are positions in the step.
    """
    return [
        {
            "step": step,
            "problem": mates[0][1].problem.key,
            "prompt": mates[0][1].problem.prompt,
            "attempts": [
                {
                    "position": i,
                    "text": a.text,
                    "stopped": a.rollout.stopped,
                    "correct": a.verdict.correct,
                    "answer": a.verdict.answer,
                    "feedback": a.verdict.feedback,
                    "successes": a.peers.successes,
                    "failures": a.peers.failures,
                    "teacher_prompt": a.teacher_text,
                    "weight": a.weight,
                }
                for i, a in mates
            ],
        }
        for mates in grouped(enumerate(attempts), of=lambda pair: pair[1].group)
    ]


def grouped(items, *, of=lambda a: a.group) -> list[list]:
    """The items in lists of equal `of`, in the order in which these first appear."""
    groups = {}
    for item in items:
        groups.setdefault(of(item), []).append(item)
    return list(groups.values())


def example_of(attempts):
    """(a success, a failure) of one group, None where there is no mixed group.

    Of all such pairs the failure's teacher reads as many kinds of peers as possible.
    """
    pairs = []
    for mates in grouped(attempts):
        success = next((a for a in mates if a.success), None)
        pairs += [(success, a) for a in mates if success and not a.success]

    def kinds_of_peers(pair):
        return bool(pair[1].peers.successes) + bool(pair[1].peers.failures)

    return max(pairs, key=kinds_of_peers, default=None)


def summarise(run, example) -> None:
    """Print the end of a run: the example of `example_of`, evaluations, files, what to try next."""
    if example:
        success, failure = example
        print(f"--- a problem\n{failure.problem.prompt}")
        print(f"--- a success\n{success.text}\n--- a failure\n{failure.text}")
        if failure.teacher_text:
            print("--- what the teacher read before it scored this failure token by token")
            print(failure.teacher_text)
        print("---")
    evaluations = [
        record for record in read_records(run.out / "metrics.jsonl") if "eval_k" in record
    ]
    if evaluations:
        for name in ("mean", "pass"):
            ends = before_and_after(evaluations, f"eval_{name}_at_k")
            print(f"held-out {name}@{evaluations[-1]['eval_k']}: {ends}")
    tokens = " and coloured tokens" if run.done else ""
    print(f"curves{tokens}: {write_report([run.out])}")
    print(f"metrics{', samples and checkpoints' if run.done else ''}: {run.out}")
    print(
        "next: another --task, --peers or --method"
        + (", or your own --model and --data (README.md)" if run.settings.model == "tiny" else "")
        + f"; then both in one page: python analyze.py report {run.out} OTHER"
    )


def before_and_after(evaluations: list[dict], metric: str) -> str:
    """A metric of the first evaluation and of the last, if that is another."""
    ends = evaluations[:1] + evaluations[1:][-1:]
    return ", ".join(f"{record[metric]:.3f} at step {record['step']}" for record in ends)


def stopped(run) -> None:
    """Write the page of a run that a signal has stopped, with the steps taken so far."""
    if parallel.is_main() and run.done:
        with contextlib.suppress(OSError, ValueError, KeyboardInterrupt):
            print(f"curves and coloured tokens so far: {write_report([run.out])}")


def read_records(path) -> list[dict]:
    """The records of a JSON Lines file that have a step; none where there is no file.

    Unreadable lines are skipped and their number printed, so that a broken run can be looked at.
    Numbers that are not finite become None.
    """
    records, lost = [], 0
    lines = Path(path).read_bytes().split(b"\n") if Path(path).is_file() else []
    for line in filter(bytes.strip, lines):
        try:
            record = json.loads(line.decode("utf-8"), parse_constant=_finite, parse_float=_finite)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and type(record.get("step")) is int:
            records.append(record)
        else:
            lost += 1
    if lost:
        print(f"{path}: {lost} lines cannot be read and are left out")
    return records


def _finite(text):
    value = float(text)
    return value if math.isfinite(value) else None


def read_views(folder) -> list[dict]:
    """The groups in tokens.jsonl that can be shown."""
    return list(filter(_is_view, read_records(Path(folder) / "tokens.jsonl")))


def _is_view(record) -> bool:
    return (
        _has_lists(record, ("attempts",))
        and bool(record["attempts"])
        and {"problem", "prompt", "teacher"} <= record.keys()
        and all(map(_is_attempt, record["attempts"]))
    )


def _is_attempt(record) -> bool:
    return (
        _has_lists(record, ("tokens", "student", "likely"))
        and {"number", "right", "cut"} <= record.keys()
        and isinstance(record.get("contexts"), dict)
        and bool(record["contexts"])
        and all(map(_is_context, record["contexts"].values()))
    )


def _is_context(record) -> bool:
    names = ("successes", "failures", "teacher", "divergence", "likely")
    return _has_lists(record, names) and "prompt" in record


def _has_lists(record, names) -> bool:
    return isinstance(record, dict) and all(isinstance(record.get(name), list) for name in names)


# --- monitors ---

# the metric at the start is the mean over START steps, the one now the median over WINDOW steps
START, WINDOW = 2, 5
# (metric, test for a collapse, text of the warning). The test gets the metric now and at the start,
# and whether success has risen by 0.1.
MONITORS = (
    (
        "distinct_answers",
        lambda now, start, better: 1 <= now < start / 2 and not better,
        "the rollouts of a group agree without being right: lower --lr, more --rollouts",
    ),
    (
        "distinct_answers",
        lambda now, start, better: now < min(1, start / 2) and not better,
        "hardly a rollout gives an answer any more, see samples.jsonl: lower --lr",
    ),
    (
        "distinct_texts",
        lambda now, start, better: now < start / 2 and not better,
        "the rollouts of a group are copies of each other: lower --lr "
        "(with --teacher ema, --ema-rate too)",
    ),
    (
        "group_pass",
        lambda now, start, better: now < start - 0.2,
        "fewer problems are solved by any rollout, the student forgets: lower --lr "
        "(with --teacher ema, --ema-rate too)",
    ),
    (
        "length_p95",
        lambda now, start, better: now > 2 * start or now < start / 4,
        "completions run away or shrink: see in samples.jsonl whether the teacher's peers do, too",
    ),
    (
        "unweighted_share",
        lambda now, start, better: now > 0.95,
        "hardly a rollout teaches anything, and where none does there is no update: "
        "easier problems, more --rollouts or, if they are cut, more --max-new-tokens",
    ),
    (
        "truncated_share",
        lambda now, start, better: now > 0.25 and now > start + 0.1,
        "completions no longer end, and one that is cut teaches nobody: "
        "lower --lr if they have gone wrong (samples.jsonl), raise --max-new-tokens if not",
    ),
    (
        "stop_gap",
        lambda now, start, better: now < -0.8 and not better,
        "the teacher would rather go on where the student stops, "
        "and the student will learn that from it: try the other --layout, --no-feedback, "
        "or preflight",
    ),
    (
        "leak_share",
        lambda now, start, better: now > 0.05 and now > 2 * start,
        "completions speak of peers they never saw: the student copies the teacher's manner",
    ),
    (
        "sampled_entropy",
        lambda now, start, better: now < start / 5 and not better,
        "the student is sure of itself and no better: lower --lr, or --divergence forward",
    ),
    (
        "sampled_entropy",
        lambda now, start, better: now > 3 * start + 0.3 and not better,
        "the student falls apart: lower --lr",
    ),
    (
        "teacher_gap",
        lambda now, start, better: now < 5 * start - 0.05,
        "student and teacher part: lower --lr, or let the teacher follow "
        "(--teacher ema, a higher --ema-rate)",
    ),
    (
        "teacher_gap",
        lambda now, start, better: start < 0 and now > start / 20 and not better,
        "the teacher says what the student says before that is right: "
        "an EMA follows too fast, lower --ema-rate",
    ),
)


def is_number(value) -> bool:
    """Whether a metric can be drawn: a finite number, no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def derived(record) -> dict:
    """The numbers of a line of metrics.jsonl, and those that follow from it.

    A step's seconds by phase and the shares of its counts, an evaluation's 95 % interval over
    problems. What needs a number that is missing is left out.
    """
    m = {name: value for name, value in record.items() if is_number(value)}
    if isinstance(record.get("seconds"), dict):
        m |= {phase: value for phase, value in record["seconds"].items() if is_number(value)}
    groups = sum(m.get(f"groups_{kind}", 0) for kind in ("mixed", "all_right", "all_wrong"))
    rollouts = m.get("completion_tokens", 0) / (m.get("mean_completion_length") or 1)
    parts = [
        ("mixed_share", "groups_mixed", groups),
        ("all_right_share", "groups_all_right", groups),
        ("all_wrong_share", "groups_all_wrong", groups),
        ("truncated_share", "truncated", rollouts),
        ("leak_share", "leaks", rollouts),
        ("unweighted_share", "unweighted", rollouts),
    ]
    m |= {share: m[name] / of for share, name, of in parts if name in m and of}
    if "all_wrong_share" in m:
        m["group_pass"] = 1 - m["all_wrong_share"]
    right = record.get("eval_right")
    right = list(filter(is_number, right.values())) if isinstance(right, dict) else []
    if len(right) > 1 and m.get("eval_k") and "eval_mean_at_k" in m:
        reach = 1.96 * float(numpy.std(right, ddof=1)) / m["eval_k"] / len(right) ** 0.5
        m["eval_low"], m["eval_high"] = m["eval_mean_at_k"] - reach, m["eval_mean_at_k"] + reach
    return m


def monitor(past=()):
    """A function to be called with the metrics of each step; it returns the new warnings.

    Each monitor warns once in a run. past: the records before a resume, whose warnings have been
    printed.
    """
    # {metric: (its first values, its last)}; steps without the metric do not count
    kept, said = {}, set()

    def look(metrics) -> list[str]:
        m = derived(metrics)
        for name, value in m.items():
            first, last = kept.setdefault(name, ([], collections.deque(maxlen=WINDOW)))
            last.append(value)
            if len(first) < START:
                first.append(value)
        lines = []
        for name, collapsed, cause in MONITORS:
            if cause in said or {name, "success"} - m.keys() or len(kept[name][1]) < WINDOW:
                continue
            (start, now), (before, success) = (
                (numpy.mean(first), numpy.median(last))
                for first, last in (kept[name], kept["success"])
            )
            if collapsed(now, start, success >= before + 0.1):
                said.add(cause)
                called = "pass@k" if name == "group_pass" else name
                lines.append(
                    f"warning: step {metrics['step']}: {called} {now:.3g}, "
                    f"at the start {start:.3g}: {cause}"
                )
        return lines

    for record in past:
        if "loss" in record:
            look(record)
    return look


# --- how student and teacher read tokens ---


@dataclass
class Reading:
    """How student and teacher score the tokens of one attempt."""

    student: numpy.ndarray  # log-probabilities (T,)
    teacher: numpy.ndarray  # (T,)
    divergence: numpy.ndarray  # jsd (T,)
    student_top: list  # the likeliest tokens: T lists of (id, log-probability)
    teacher_top: list


@torch.no_grad()
def read_tokens(
    student,
    teacher,
    versions,
    *,
    temperature,
    budget,
    limit=None,
    top=0,
    autocast=contextlib.nullcontext,
) -> dict[str, list[Reading | None]]:
    """{context: a Reading of the first `limit` tokens of each attempt, None for those of weight 0}.

    versions: {context: the same attempts, as `plan` and `write_contexts` leave them there}. The
    student reads no context, so it runs once over each attempt. Same temperature and common
    vocabulary as in training; no gradients, no random numbers. budget: tokens, padding included,
    that go through the models at once. top: how many of the likeliest tokens to keep.
    """
    # one attempt for all contexts, with the longest of its prompts: micro-batches must fit all
    merged = [
        replace(
            copies[0],
            weight=float(any(a.weight for a in copies)),
            teacher_ids=max((a.teacher_ids for a in copies), key=len),
        )
        for copies in zip(*versions.values(), strict=True)
    ]
    place = {id(a): n for n, a in enumerate(merged)}
    found = {name: [None] * len(merged) for name in versions}

    def read(model, prompts, ids):
        return parallel.inside(model, lambda: hidden_states(model, prompts, ids))

    with fused_norms(student, teacher.model):  # as in training
        for batch in mopd.microbatches(merged, budget):
            with autocast():
                own = read(
                    student,
                    [a.rollout.prompt_ids for a in batch],
                    [a.rollout.ids[:limit] for a in batch],
                )
            own = own.split([len(a.rollout.ids[:limit]) for a in batch])
            own_top = [
                likeliest(states, head(student)[: teacher.vocabulary], temperature, top)
                for states in own
            ]
            for name, copies in versions.items():
                rows = [r for r, a in enumerate(batch) if copies[place[id(a)]].weight]
                if rows:
                    ids = [batch[r].rollout.ids[:limit] for r in rows]
                    with autocast():
                        states = read(
                            teacher.model,
                            [copies[place[id(batch[r])]].teacher_ids for r in rows],
                            ids,
                        )
                    mine = torch.cat([own[r] for r in rows])
                    values, tops = compare(mine, student, states, teacher, ids, temperature, top)
                    ends = itertools.accumulate(map(len, ids))
                    for r, end in zip(rows, ends, strict=True):
                        span = slice(end - len(own[r]), end)
                        found[name][place[id(batch[r])]] = Reading(
                            *values[:, span], own_top[r], tops[span]
                        )
    for model in (teacher.model, student):
        parallel.release(model)
    return found


def compare(own, student, states, teacher, ids, temperature, top):
    """(array (3, N), the teacher's likeliest tokens).

    The rows of the array: the student's and the teacher's log-probabilities of ids, the divergence.
    """
    rows, flat = slice(teacher.vocabulary), torch.tensor(sum(ids, []), device=own.device)
    out = distill_loss(
        own,
        head(student)[rows],
        states,
        head(teacher.model)[rows],
        torch.zeros(len(flat), device=own.device),
        temperature=temperature,
        sampled_ids=flat,
    )
    values = torch.stack([out.student_logprobs, out.teacher_logprobs, out.divergence])
    tops = likeliest(states, head(teacher.model)[rows], temperature, top)
    return values.float().cpu().numpy(), tops


def likeliest(hidden, matrix, temperature: float, top: int) -> list[list[tuple[int, float]]]:
    """The `top` likeliest tokens at each position: (id, log-probability).

    64 positions at a time: the logits of all would not fit into memory.
    """
    found, output = [], as_head(matrix).at(temperature, hidden.dtype)
    for part in hidden.split(64) if top else ():
        best = output.logits(part).log_softmax(-1).topk(top)
        for ids, logprobs in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            found.append(list(zip(ids, logprobs, strict=True)))
    return found


def own_context(settings) -> str:
    """The name of the context that the run's own teacher reads."""
    if settings.method == "opd" or not settings.teaches:
        return "none"
    return settings.peers or settings.method


def with_context(run, attempts, kind: str, seed: int, layout: str) -> tuple[list, dict]:
    """(copies of the attempts as `plan` and `write_contexts` leave them, the counts of cuts).

    kind: "none" (the problem alone), "sdpo" or one of mopd.PEERS; the peers are those that training
    with this seed chooses.
    """
    s = run.settings
    copies = [
        replace(a, peers=peer_context.Peers((), ()), feedback="", teacher_text="", teacher_ids=[])
        for a in attempts
    ]
    method = {"none": "opd", "sdpo": "sdpo"}.get(kind, "mopd")
    mopd.plan(copies, method=method, peers=kind, feedback=not s.no_feedback, seed=seed)
    cuts = mopd.write_contexts(
        copies,
        run.teacher,
        peer_tokens=s.peer_tokens,
        layout=layout,
        max_tokens=max_length(run.teacher.model),
    )
    return copies, cuts


def with_contexts(run, attempts, seed) -> dict[str, list]:
    """{context: copies of the attempts under it}, for CONTEXTS and the run's own context."""
    versions = {
        name: with_context(run, attempts, name, seed, run.settings.layout)[0] for name in CONTEXTS
    }
    if own_context(run.settings) not in CONTEXTS:
        versions[own_context(run.settings)] = [replace(a) for a in attempts]
    return versions


# --- the token view ---


def token_view(run, step, attempts, *, seed, budget, seconds) -> list[dict]:
    """tokens.jsonl of a step, a record for each group: tokens with their scores in every context.

    Up to VIEW_GROUPS groups, mixed ones first; the first VIEW_TOKENS tokens of each rollout. Where
    there is no peer to show, the teacher reads the problem alone. For methods without a teacher the
    student itself is the teacher. Changes neither models nor random numbers, so it may run between
    sampling and update; its time is added as seconds["view"].
    """
    start, s = time.perf_counter(), run.settings
    groups = sorted(grouped(attempts), key=lambda mates: len({a.success for a in mates}) == 1)[
        :VIEW_GROUPS
    ]
    records, text_of = [], token_texts(run.tokenizer)
    for mates in groups:
        first = next(i for i, a in enumerate(attempts) if a is mates[0])
        versions = with_contexts(run, mates, seed)
        readings = read_tokens(
            run.student,
            run.teacher,
            versions,
            temperature=s.temperature,
            limit=VIEW_TOKENS,
            budget=budget,
            top=3,
            autocast=run.autocast,
        )
        # some rollout is too long for the teacher, or has a token that it does not know
        if None in readings["none"]:
            continue
        rows = []
        for n, a in enumerate(mates):
            ids, plain = a.rollout.ids[:VIEW_TOKENS], readings["none"][n]
            rows.append(
                {
                    "number": n + 1,
                    "right": a.success,
                    "stopped": a.rollout.stopped,
                    "answer": a.verdict.answer,
                    "tokens": pieces(run.tokenizer, ids),
                    "cut": len(a.rollout.ids) - len(ids),
                    "student": short(plain.student),
                    "likely": list(map(text_of, plain.student_top)),
                    "contexts": {
                        name: context_record(
                            readings[name][n] or plain,
                            copies[n],
                            len(mates),
                            text_of,
                            first=0 if name in CONTEXTS else first,
                        )
                        for name, copies in versions.items()
                    },
                }
            )
        records.append(
            {
                "step": step,
                "problem": mates[0].problem.key,
                "prompt": mates[0].problem.prompt,
                "teacher": run.teacher.kind if s.teaches else "none; a copy of the student reads",
                "own": own_context(s),
                "attempts": rows,
            }
        )
    seconds["view"] = time.perf_counter() - start
    return records


def context_record(reading, attempt, size, text_of, *, first) -> dict:
    """One rollout under one context.

    A peer is written as its number in the group, counted from 1, or 0 if it is of another problem;
    the group is the `size` positions of the step from `first` on. `likely` is None at tokens where
    teacher and student agree.
    """

    def number(position):
        return position - first + 1 if 0 <= position - first < size else 0

    tops = zip(reading.teacher_top, reading.divergence, strict=True)
    return {
        "successes": list(map(number, attempt.peers.successes)),
        "prompt": attempt.teacher_text,
        "failures": list(map(number, attempt.peers.failures)),
        "teacher": short(reading.teacher),
        "divergence": short(reading.divergence),
        "likely": [text_of(best) if d >= 0.0005 else None for best, d in tops],
    }


def short(values) -> list[float | None]:
    """Rounded to 3 digits for JSON, None where not finite."""
    return [round(float(v), 3) if math.isfinite(v) else None for v in values]


def token_texts(tokenizer):
    """A function from [(id, log-probability)] to [[text, rounded log-probability]]."""

    @functools.cache
    def text(token):
        return tokenizer.decode([token], clean_up_tokenization_spaces=False)

    return lambda pairs: [[text(token), *short([value])] for token, value in pairs]


def pieces(tokenizer, ids: list[int]) -> list[str]:
    """The text that each token adds; joined, they are the whole text.

    A token is decoded together with the tokens before it, because many tokenizers drop a leading
    space. A character spread over several tokens is given to the last of them.
    """
    decode, found = functools.partial(tokenizer.decode, clean_up_tokenization_spaces=False), []
    for t in range(len(ids)):
        window = ids[max(0, t - 8) : t]
        before = decode(window).rstrip("\ufffd") if window else ""
        after = decode([*window, ids[t]])
        added = after[len(before) :] if after.startswith(before) else decode([ids[t]])
        found.append(added.rstrip("\ufffd"))
    return found


# --- the terminal view ---

ANOTHER = "another problem's"
# 256-colour backgrounds, weak to strong
BLUES, ORANGES = (189, 153, 117, 75, 33), (230, 223, 216, 214, 208)


def show(folder, *, step: int | None = None, context: str | None = None, colour=None) -> None:
    """Print the first group of a step in the token view, default the last step.

    context: what the teacher reads, default what the run's own does. colour: default whether
    standard output is a terminal; without it strong log-ratios are printed behind their token.
    Raises ValueError for a folder, step or context that is not there.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"no such run folder: {folder}")
    records = read_views(folder)
    steps = sorted({r["step"] for r in records})
    if not records or step not in (None, *steps):
        raise ValueError(
            f"{folder} has no tokens of {'any step' if step is None else f'step {step}'}"
            + (f": choose from {', '.join(map(str, steps))}" if steps else "")
        )
    record = next(r for r in records if r["step"] == (steps[-1] if step is None else step))
    known, context = record["attempts"][0]["contexts"], context or record.get("own", "contrastive")
    if context not in known:
        raise ValueError(f"--context {context}: this run has {', '.join(known)}")
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") if colour is None else colour
    print(
        f"step {record['step']}, problem {record['problem']}, teacher: {record['teacher']}, "
        f"context: {context}\n{clean(record['prompt'])}"
    )
    for a in record["attempts"]:
        c = a["contexts"][context]
        verdict = "right" if a["right"] else "wrong" if a.get("stopped", True) else "truncated"
        print(f"\n#{a['number']} {verdict}, {peers_of(c)}")
        # not strict: a damaged record may have lists of unequal lengths
        for text, teacher, student in zip(a["tokens"], c["teacher"], a["student"], strict=False):
            ratio = (teacher or 0) - (student or 0)
            level = min(4, int(abs(ratio) * 2))
            if abs(ratio) >= (0.1 if colour else 0.5):
                # a newline itself shows no colour
                text = text.replace("\n", "\u21b5\n")
            if colour and abs(ratio) >= 0.1:
                text = (
                    f"\x1b[30;48;5;{(BLUES if ratio > 0 else ORANGES)[level]}m{clean(text)}\x1b[0m"
                )
            else:
                text = clean(text) + (f"[{ratio:+.1f}]" if abs(ratio) >= 0.5 else "")
            print(text, end="")
        print(f" [{a['cut']} more tokens]" if a["cut"] else "")
    print("\nblue or +: the teacher wants more of this token; orange or -: less (nats)")


def clean(text: str) -> str:
    """The text without control characters: completions must not send escape codes to a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def peers_of(context: dict) -> str:
    """The peers of a context in words."""
    seen = []
    for numbers, label in ((context["successes"], "right"), (context["failures"], "wrong")):
        seen += [f"{f'#{n}' if n else ANOTHER} as {label}" for n in numbers]
    return f"the teacher reads {', '.join(seen) or 'the problem alone'}"


# --- the page ---

CHARTS = (  # title, {label: metric}
    (
        "Held-out success",
        {
            "mean@k": "eval_mean_at_k",
            "pass@k": "eval_pass_at_k",
            "95 % from": "eval_low",
            "to": "eval_high",
        },
    ),
    ("Training success", {"mean@k": "success", "pass@k": "group_pass"}),
    (
        "Loss (a divergence need not fall), log teacher - log student",
        {"loss": "loss", "gap": "teacher_gap"},
    ),
    (
        "Completion length, tokens",
        {"mean": "mean_completion_length", "95 %": "length_p95", "longest": "length_max"},
    ),
    (
        "Share of the groups, of the rollouts",
        {
            "mixed": "mixed_share",
            "all right": "all_right_share",
            "all wrong": "all_wrong_share",
            "truncated": "truncated_share",
        },
    ),
    (
        "Seconds per step",
        {name: name for name in ("rollout", "verify", "teacher", "student", "view")},
    ),
)
TEACHERS = ("teacher", "ema_rate", "divergence", "top_k")
SHOWN = (
    "task",
    "method",
    "peers",
    "model",
    "data",
    *TEACHERS,
    "lr",
    "steps",
    "problems",
    "rollouts",
    "max_new_tokens",
    "seed",
)


def curve(records: list[dict], metric: str, most: int = 400) -> list[tuple[float, float]]:
    """[(step, value)] of the records where the metric is a number.

    More than `most` points are replaced by means of neighbours.
    """
    points = [(r["step"], r[metric]) for r in records if is_number(r.get(metric))]
    size = math.ceil(len(points) / most) or 1
    return [
        tuple(map(float, numpy.mean(points[n : n + size], axis=0)))
        for n in range(0, len(points), size)
    ]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, three to six of them."""
    raw = (high - low) / 5 or 1.0
    unit = 10 ** math.floor(math.log10(raw))
    unit *= next(m for m in (1, 2, 5, 10) if m * unit >= raw * 0.999)
    return [
        n * unit for n in range(math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9) + 1)
    ]


def chart(title: str, lines) -> str:
    """One figure as HTML, "" where there are no points.

    lines: (label, colour number, dash number, points). Lines of one label, from several runs, share
    an entry of the legend, which gives their last values.
    """
    lines = [line for line in lines if line[3]]
    if not lines:
        return ""
    xs, ys = ([point[axis] for line in lines for point in line[3]] for axis in (0, 1))
    x0, x1, y0, y1 = min(0, *xs), max(*xs, 1), min(0, *ys), max(0, *ys)
    y0, y1 = (y0, y1) if y1 > y0 else (y0, y0 + 1)

    def px(x):
        return 40 + 290 * (x - x0) / (x1 - x0)

    def py(y):
        return 150 - 138 * (y - y0) / (y1 - y0)

    parts = [
        f'<line x1="40" x2="330" y1="{py(y):.1f}" y2="{py(y):.1f}"/>'
        f'<text x="35" y="{py(y) + 4:.1f}">{f"{y:.3g}".replace("e-0", "e-")}</text>'
        for y in ticks(y0, y1)
    ]
    parts += [
        f'<text class="x" x="{px(x):.1f}" y="167">{x:g}</text>'
        for x in ticks(x0, x1)
        if x == int(x)
    ]
    for _, colour, dash, points in lines:
        if len(points) > 1:
            path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
            parts.append(f'<polyline class="c{colour % 6} d{dash % 4}" points="{path}"/>')
        else:
            place = f'cx="{px(points[0][0]):.1f}" cy="{py(points[0][1]):.1f}"'
            parts.append(f'<circle class="c{colour % 6}" r="3" {place}/>')
    key = ""
    for same in grouped(lines, of=lambda line: line[0]):
        look = f"d{same[0][2] % 4}" + (f" c{same[0][1] % 6}" if len(same) == 1 else "")
        values = " ".join(
            f'<b class="c{colour % 6}">{points[-1][1]:.3g}</b>' for _, colour, _, points in same
        )
        key += (
            '<span><svg class="key" viewBox="0 0 22 8" aria-hidden="true">'
            f'<polyline class="{look}" points="0,4 22,4"/></svg>'
            f"{html.escape(same[0][0])} {values}</span>"
        )
    title = html.escape(title)
    return (
        f"<figure><figcaption>{title}</figcaption>"
        f'<svg viewBox="0 0 340 172" role="img" aria-label="{title} by step">{"".join(parts)}</svg>'
        f'<div class="legend">{key}</div></figure>'
    )


def write_report(folders) -> Path:
    """Write report.html of one run; of several comparison.html, in the first's folder.

    Returns its path. It has the curves of all runs, and the token view of as many steps as fit into
    PAGE_BYTES.
    Broken and unfinished runs can be shown. Raises ValueError for a folder that is missing, and
    where no folder has any record.
    """
    once = {}
    for folder in map(Path, folders):
        once.setdefault(folder.resolve(), folder)
    folders = list(once.values())
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise ValueError(f"no such run folder: {', '.join(missing)}")
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        run.name = str(folder) if names.count(run.name) > 1 else run.name
    views = [{"run": run.name} | record for run in runs for record in run.views]
    if not views and not any(run.records for run in runs):
        raise ValueError(
            f"{', '.join(map(str, folders))}: no record in metrics.jsonl or tokens.jsonl, "
            "nothing to show"
        )
    kept, size, seen, ranks = {}, 0, collections.Counter(), []
    order = {run.name: spread(sorted({record["step"] for record in run.views})) for run in runs}
    # a second group of a step only when every step of every run has one
    for n, record in enumerate(views):
        seen[record["run"], record["step"]] += 1
        ranks.append(
            (seen[record["run"], record["step"]], order[record["run"]].index(record["step"]), n)
        )
    for *_, n in sorted(ranks):
        # escape "<": </script> in a completion would end the element, <!-- change how it is parsed
        text = json.dumps(views[n], allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
        if size + len(text) <= PAGE_BYTES:
            size += len(text)
            kept[n] = text
    lost = len(views) - len(kept)
    note = "" if views else "No tokens were recorded: a run writes them with its steps."
    if lost:
        note = f"{lost} of {len(views)} recorded groups are left out to keep the page small."
    parts = {
        "TITLE": html.escape(", ".join(run.name for run in runs)),
        "NOTE": note,
        "RUNS": "".join(itertools.starmap(run_summary, enumerate(runs))),
        "CHARTS": "".join(figure(runs, title, metrics) for title, metrics in CHARTS),
        "DATA": "[" + ",".join(kept[n] for n in sorted(kept)) + "]",
    }
    # in one pass: a mark such as %DATA% inside a completion must stay text
    page = re.sub(
        "%(TITLE|NOTE|RUNS|CHARTS|DATA)%", lambda mark: parts[mark[1]], TEMPLATE.read_text("utf-8")
    )
    path = folders[0] / ("report.html" if len(folders) == 1 else "comparison.html")
    path.write_text(page, "utf-8", errors="replace")
    return path


def spread(steps: list[int]) -> list[int]:
    """Ascending steps by importance: the last, the first, then always the farthest from all before.

    So any number of them from the start is spread over the run.
    """
    order, distance = [], {step: math.inf for step in steps}
    while distance:
        order.append(max(distance, key=lambda step: (distance[step], step if not order else -step)))
        del distance[order[-1]]
        distance = {step: min(d, abs(step - order[-1])) for step, d in distance.items()}
    return order


@dataclass
class Record:
    """The content of a run folder."""

    name: str
    config: dict
    records: list[dict]  # of metrics.jsonl, see `derived`
    steps: list[dict]  # the training steps among them
    warnings: list[str]
    views: list[dict]


def read_run(folder: Path) -> Record:
    records, warnings_in = list(map(derived, read_records(folder / "metrics.jsonl"))), monitor()
    config = {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        config = dict(json.loads((folder / "config.json").read_text("utf-8")))
    steps = [r for r in records if "loss" in r]
    for m in steps:
        # a step without scored tokens has loss 0, which would look like a small divergence
        if m.get("scored_tokens") == 0:
            del m["loss"]
    return Record(
        folder.resolve().name,
        config,
        records,
        steps,
        [line for m in steps for line in warnings_in(m)],
        read_views(folder),
    )


def figure(runs, title, metrics) -> str:
    """One chart of all runs: colours stand for runs and dashes for metrics.

    For a single run colours stand for metrics.
    """
    lines = []
    for n, run in enumerate(runs):
        for j, (label, metric) in enumerate(metrics.items()):
            colour, dash = (n, j) if len(runs) > 1 else (j, 0)
            lines.append((label, colour, dash, curve(run.records, metric)))
    return chart(title, lines)


def run_summary(n, run) -> str:
    """Settings, held-out success before and after, and the warnings of the n-th run."""
    held = [r for r in run.records if "eval_mean_at_k" in r]
    ends = "no evaluation recorded"
    if held:
        ends = f"held-out mean@{held[0].get('eval_k')} {before_and_after(held, 'eval_mean_at_k')}"
    idle = ("ema_rate",) if run.config.get("teacher") != "ema" else ()
    idle = TEACHERS if run.config.get("method") in mopd.NO_TEACHER else idle
    settings = ", ".join(
        f"{k} {run.config[k]}" for k in SHOWN if run.config.get(k) is not None and k not in idle
    )
    return (
        f'<li class="run c{n % 6}"><div><b>{html.escape(run.name)}</b>: {html.escape(ends)}; '
        f"{len(run.steps) or 'no'} step{'s' * (len(run.steps) != 1)}"
        f"<br><small>{html.escape(settings) or 'no config.json'}</small>"
        + "".join(f"<br><em>{html.escape(line)}</em>" for line in run.warnings)
        + "</div></li>\n"
    )
