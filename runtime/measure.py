"""Is the teacher any good, and in which layout? A student learns its teacher's faults, too.

The teacher writes answers of its own after what it would read in training: after positive and
contrastive contexts (and those of the run, where they are others), in each layout that the chat
template can write, and after the bare problem. Only problems whose group holds both successes and
failures count: there every kind of context can be shown.

    table = measure(run, attempts)  # attempts: the groups of the first step
    layout = choose(table)          # "turn" (the paper's) unless "turns" leads clearly, see there

Leads are paired by problem and their standard errors are over problems; samples of one problem are
not independent.
"""

import collections
import itertools
import math
from dataclasses import replace

import numpy

import mopd
import peer_context
import rollout
from runtime import checkpoint, parallel, report
from runtime.fast_rollout import generate, rows_in_memory
from runtime.models import max_length
from runtime.templates import completion_text, layouts_of, stop_ids
from verifiers import verify_batch

SAMPLES = 64  # answers for each arm, never more than a step has rollouts
SCORED = 16  # rollouts that are scored in each layout of the run's own contexts
CONTEXTS = 2  # contexts of each problem that are written after
PAPERS = "turn"  # the layout of the paper, taken where nothing speaks against it
BARE = "none"  # the arm that reads the bare problem


def measure(run, attempts, *, layouts=None, kinds=None, only_mixed=True) -> dict:
    """How often the teacher is right when it writes itself, by kind of context and layout.

    attempts: whole groups, sampled by the student as it is now. layouts, kinds: what to measure
    (default: what the chat template can write; the run's own kind, positive and contrastive).
    only_mixed: problems with successes and failures only, else all that have such a context.

    Returns {"own": the run's kind, "problems": number of problems, "arms": {kind: {layout: arm}},
    "bare": an arm}, with arm = {"right", "samples", "stopped", "copies" (share of its right answers
    that are a peer's text, None without a right one), "tokens" (mean length of the contexts),
    "dropped" (peers, for want of room), "lead", "error" (over the student's own new answers, with
    its standard error), "rates" (problem: share right)}. Arms of the run's own kind also have
    "token_lead" and "stop_lead": log teacher - log student on the rollouts' tokens and on their
    stop tokens.
    """
    s, own = run.settings, report.own_context(run.settings)
    if kinds is None:
        # A copy of the student without peers is the student.
        external = [BARE] if run.teacher.kind == "external" else []
        kinds = list(dict.fromkeys([own, "positive", "contrastive", *external]))
    layouts = layouts or layouts_of(run.teacher.tokenizer)
    groups = report.grouped(attempts)
    if only_mixed:
        groups = [mates for mates in groups if len({a.success for a in mates}) == 2]
    members = [a for mates in groups for a in mates]
    table = {"own": own, "problems": len(groups), "arms": {}, "bare": None}
    if len(groups) < 2:
        return table
    wanted = min(SAMPLES, s.problems * s.rollouts)
    table["bare"] = bare_answers(run, members, wanted)
    for kind, layout in itertools.product(kinds, layouts):
        if kind == BARE and layout != layouts[0]:
            continue  # the bare problem looks the same in both
        copies, cuts = report.with_context(run, members, kind, s.seed_of(1), layout)
        arm = answers(run, run.teacher.model, run.teacher.tokenizer, copies, wanted)
        weighted = [len(a.teacher_ids) for a in copies if a.weight]
        arm |= {"tokens": sum(weighted) / max(len(weighted), 1), "dropped": cuts["peers_dropped"]}
        arm["lead"], arm["error"] = lead(arm, table["bare"])
        if kind == own:
            arm |= token_leads(run, copies)
        table["arms"].setdefault(kind, {})[layout] = arm
    return table


def measure_feedback(run, attempts, layout) -> dict | None:
    """What the verifier's feedback does to the teacher, on problems that no rollout solved.

    Only there is feedback shown without a success beside it. Returns {"with": an arm, "without":
    the arm that these rollouts would read else (the failure alone; the bare problem where no
    failure is shown), "harmful": whether the teacher with feedback is right, or ends its answers,
    less often by more than two standard errors}; None with fewer than two such problems.
    """
    s = run.settings
    groups = [m for m in report.grouped(attempts) if not any(a.success for a in m)]
    members = [a for mates in groups for a in mates]
    copies, _ = report.with_context(run, members, report.own_context(s), s.seed_of(1), layout)
    told = [a if a.feedback else replace(a, weight=0.0) for a in copies]
    if len({a.group for a in told if a.weight}) < 2:
        return None
    wanted = min(SAMPLES, s.problems * s.rollouts)
    arm = answers(run, run.teacher.model, run.teacher.tokenizer, told, wanted)
    quiet = [
        replace(a, feedback="", weight=float(bool(a.weight and a.peers.failures))) for a in told
    ]
    if any(a.weight for a in quiet):
        limit = max_length(run.teacher.model)
        mopd.write_contexts(
            quiet, run.teacher, peer_tokens=s.peer_tokens, max_tokens=limit, layout=layout
        )
        without = answers(run, run.teacher.model, run.teacher.tokenizer, quiet, wanted)
    else:
        without = bare_answers(run, members, wanted)
    leads = lead(arm, without), lead(arm, without, "stop_rates", "stopped")
    return {
        "with": arm,
        "without": without,
        "harmful": any(ahead is not None and ahead < -2 * error for ahead, error in leads),
    }


def bare_answers(run, members, wanted) -> dict:
    """New answers of the student to the problems of `members`.

    Not the rollouts: a mixed group of a hard problem is one in which the student was lucky.
    """
    nobody = peer_context.Peers((), ())
    asked = [
        replace(a, teacher_ids=a.rollout.prompt_ids, peers=nobody, weight=1.0) for a in members
    ]
    return answers(run, run.student, run.tokenizer, asked, wanted)


def answers(run, model, tokenizer, copies, wanted) -> dict:
    """`wanted` answers of `model`, evenly over the problems, after the contexts of `copies`."""
    s, limit, rows = run.settings, max_length(model), []
    for mates in report.grouped(copies):
        fits = [a for a in mates if a.weight and len(a.teacher_ids) + s.max_new_tokens <= limit]
        rows += enumerate(fits[:: max(1, len(fits) // CONTEXTS)][:CONTEXTS])
    each = math.ceil(wanted / max(len(rows), 1))
    mine, sampler = parallel.share(rows), rollout.generate if s.plain else generate

    def write(most):
        with run.autocast(), parallel.gathered(model):
            return sampler(
                model,
                [a.teacher_ids for _, a in mine],
                each,
                max_new_tokens=s.max_new_tokens,
                stop_ids=stop_ids(model, tokenizer),
                temperature=s.temperature,
                max_rows=most,
                seed=s.seed_of(-1),
                keys=[a.problem.key * CONTEXTS + n for n, a in mine],
            )

    longest = max([len(a.teacher_ids) for _, a in rows], default=0) + s.max_new_tokens
    with run.autocast():  # which halves the cache
        most = min(len(rows) * each, rows_in_memory(model, longest)) or 1
    groups, _ = checkpoint.within_memory(
        write, most, fits=run.fits, alone=lambda n: n == 1, name="generating answers"
    )
    flat = [(a, rollout) for (_, a), group in zip(mine, groups, strict=True) for rollout in group]
    texts = [
        completion_text(tokenizer, r.ids[:-1] if r.stopped else r.ids, r.prompt_ids)
        for _, r in flat
    ]
    texts = [peer_context.strip_thinking(text) for text in texts]
    verdicts = verify_batch(
        s.task, texts, [a.problem.answer for a, _ in flat], workers=parallel.workers()
    )
    shown = {
        id(a): {copies_text(copies, j) for j in a.peers.successes + a.peers.failures}
        for a, _ in flat
    }
    found = [
        (
            a.problem.key,
            verdict.correct and r.stopped,
            r.stopped,
            text in shown[id(a)],
        )
        for (a, r), text, verdict in zip(flat, texts, verdicts, strict=True)
    ]
    found = parallel.gather(found)
    right, copied = [row for row in found if row[1]], [row for row in found if row[1] and row[3]]
    rates, stop_rates = (shares_by_problem(found, column) for column in (1, 2))
    return {
        "right": sum(rates.values()) / max(len(rates), 1),
        "stopped": sum(stop_rates.values()) / max(len(rates), 1),
        "samples": len(found),
        "rates": rates,
        "stop_rates": stop_rates,
        "copies": len(copied) / len(right) if right else None,
    }


def shares_by_problem(found, column: int) -> dict[int, float]:
    """{problem: share of its rows where `column` is true}."""
    marks = collections.defaultdict(list)
    for row in found:
        marks[row[0]].append(row[column])
    return {key: sum(values) / len(values) for key, values in marks.items()}


def copies_text(copies, position) -> str:
    """The text of the peer at a position, as it was shown (but for cuts)."""
    return peer_context.strip_thinking(copies[position].text)


def lead(arm, other, rates="rates", mean="right") -> tuple[float | None, float | None]:
    """(mean difference of two arms' rates over their common problems, its standard error).

    The standard error is over problems, but never below that of independent samples: where a
    handful of problems agree by chance, their spread says nothing.
    """
    both = sorted(arm[rates].keys() & other[rates].keys())
    if len(both) < 2:
        return None, None
    leads = numpy.array([arm[rates][key] - other[rates][key] for key in both])
    sampling = math.sqrt(sum(x[mean] * (1 - x[mean]) / max(x["samples"], 1) for x in (arm, other)))
    return float(leads.mean()), max(float(leads.std(ddof=1)) / math.sqrt(len(leads)), sampling)


def token_leads(run, copies) -> dict:
    """Mean log teacher - log student over tokens, and stop tokens, of at most SCORED rollouts."""
    rows = [a for a in copies if a.weight]
    rows = rows[:: math.ceil(len(rows) / SCORED) or 1]
    settings = run.settings

    def score(micro_tokens):
        return report.read_tokens(
            run.student,
            run.teacher,
            {"own": rows},
            temperature=settings.temperature,
            budget=micro_tokens,
            autocast=run.autocast,
        )["own"]

    def alone(micro_tokens):
        return all(len(batch) == 1 for batch in mopd.microbatches(rows, micro_tokens))

    read, _ = checkpoint.within_memory(
        score, settings.micro_tokens, fits=run.fits, alone=alone, name="scoring tokens"
    )
    ratios = [reading.teacher - reading.student for reading in read]
    ends = [float(ratio[-1]) for a, ratio in zip(rows, ratios, strict=True) if a.rollout.stopped]
    return {
        "token_lead": float(numpy.concatenate(ratios).mean()) if ratios else None,
        "stop_lead": sum(ends) / len(ends) if ends else None,
    }


def choose(table) -> str:
    """The paper's layout, unless the other leads it by more than two standard errors.

    Either in right answers, or in answers that end while it is right no less often: with a handful
    of problems the first is seldom certain, and a teacher that does not stop makes a student that
    does not stop, whatever it knows.
    """
    arms = table["arms"].get(table["own"], {})
    if PAPERS not in arms:
        return next(iter(arms), PAPERS)
    best = PAPERS
    for layout in arms:
        pair = arms[layout], arms[PAPERS]
        right, error = lead(*pair)
        stops, stop_error = lead(*pair, "stop_rates", "stopped")
        if layout == PAPERS or right is None:
            continue
        if right > 2 * error or (right >= 0 and stops > 2 * stop_error):
            best = layout
    return best


def harmful(table) -> bool:
    """Whether the teacher trails the student by two standard errors in every layout."""
    arms = table["arms"].get(table["own"], {}).values()
    known = [arm for arm in arms if arm.get("lead") is not None]
    return bool(known) and all(arm["lead"] < -2 * arm["error"] for arm in known)


def lines_of(table) -> list[str]:
    """The table and what follows from it, to be printed."""
    if not table["arms"] or table["problems"] < 2:
        return [
            f"teacher not measured: {table['problems']} groups of the first step hold both "
            "successes and failures, two are needed; small models may learn to ramble from `turn`, "
            "see docs/layouts.md"
        ]
    lines = [
        f"before training, on {table['problems']} problems with successes and failures: who writes "
        "the answer is right in",
        f"{'':24s}right  lead on the student [95 %]   stops  copied  context  dropped",
        row_of("the student", table["bare"]),
    ]
    for kind, by_layout in table["arms"].items():
        lines += [row_of(f"{kind}, {layout}", arm) for layout, arm in by_layout.items()]
    for layout, arm in table["arms"].get(table["own"], {}).items():
        if arm.get("token_lead") is not None:
            lines.append(
                f"  log teacher - log student on the rollouts, {layout}: {arm['token_lead']:+.3f}, "
                f"on their stop tokens {number(arm['stop_lead'], '+.3f')}"
            )
    layout = choose(table)
    kinds = [table["arms"].get(kind, {}) for kind in ("contrastive", "positive")]
    if all(layout in by_layout for by_layout in kinds):
        ahead, error = lead(*(by_layout[layout] for by_layout in kinds))
        if ahead is not None and ahead < -2 * error:
            lines.append(
                f"the failure does harm: contrastive is right {-ahead:.3f} (standard error "
                f"{error:.3f}) less often than positive: try --peers positive"
            )
    return lines


def row_of(name: str, arm) -> str:
    """One arm as a row of the table; "-" for what it does not have."""
    if not arm["samples"]:
        return f"  {name:22s}no context leaves room for --max-new-tokens"
    ahead = "-"
    if arm.get("lead") is not None:
        ends = (arm["lead"] + sign * 1.96 * arm["error"] for sign in (-1, 1))
        ahead = "{:+.3f} [{:+.3f}, {:+.3f}]".format(arm["lead"], *ends)
    return (
        f"  {name:22s}{arm['right']:.3f}  {ahead:26s}{arm['stopped']:9.2f}"
        f"{number(arm['copies'], '.2f'):>8s}{number(arm.get('tokens'), '.0f'):>9s}"
        f"{number(arm.get('dropped'), 'd'):>9s}"
    )


def number(value, form: str) -> str:
    return "-" if value is None else format(value, form)


def decide(run, attempts) -> dict:
    """Measure, print, and settle the layout and whether feedback is shown; returns the table.

    Sets run.settings.layout and, where feedback does harm, run.settings.no_feedback; rank 0 decides
    for all. Raises parallel.Refused where the teacher is worse than the student in every layout,
    unless --force.
    """
    s, table = run.settings, measure(run, attempts)
    control = table["own"] not in (*mopd.SLOTS, BARE)  # which may well be worse than the student
    layout, worse = parallel.gather([(choose(table), harmful(table) and not control)])[0]
    for line in lines_of(table):
        print(line)
    print(f"layout of the peers: {layout}")
    if worse and not s.force:
        arm = table["arms"][table["own"]][layout]
        raise parallel.Refused(
            f"the teacher is worse than the student ({arm['lead']:+.3f}, standard error "
            f"{arm['error']:.3f}, stops in {arm['stopped']:.0%}) in every layout, and the student "
            "would learn its faults: use a larger model, another prompt, --peers positive or "
            "--method grpo, or go on with --force"
        )
    s.layout = layout
    table["feedback"] = settle_feedback(run, attempts)
    return table


def settle_feedback(run, attempts) -> dict | None:
    """Measure feedback in the run's layout, say what it does, and leave it out where it does harm.

    sdpo is defined by its feedback: there the run only says so.
    """
    s = run.settings
    if s.no_feedback or s.method not in ("mopd", "sdpo"):
        return None
    found = measure_feedback(run, attempts, s.layout)
    if found is None:
        return None
    harm = parallel.gather([found["harmful"]])[0]
    told, without = found["with"], found["without"]
    print(
        f"on problems that no rollout solved, after feedback: right {told['right']:.3f}, stops "
        f"{told['stopped']:.2f}; without it: right {without['right']:.3f}, stops "
        f"{without['stopped']:.2f}"
    )
    if harm and s.method == "mopd":
        print("feedback does harm and is left out")
        s.no_feedback = True
    elif harm:
        print("warning: feedback does harm here, and sdpo lives on it: try --method mopd")
    return found
