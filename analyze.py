"""Before and after training: does the teacher's signal agree with the verifier, will MOPD help
here, what did a run do?

    python analyze.py signal --task math           # do the teacher's scores agree with the
    verdicts? context by context python analyze.py preflight --task math        # before any
    training: will it help this model on these problems? python analyze.py report OUT [OUT2 ...]
    # OUT/report.html: curves of the runs, tokens coloured by the teacher python analyze.py show OUT
    --step 30           # one group of these tokens in the terminal

signal and preflight take every flag of train.py but --out and --resume; --out FILE writes their
numbers as JSON. Stands on top of all other files: models, data and rollouts come from train.py and
mopd.py, the page from report.py.

Score of a rollout: the teacher's mean token log-probability, or its log-ratio to what it was
without peers. Agreement is measured within prompts, because scores of different problems do not
compare."""

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy
from transformers.utils import logging as transformers_logging

import mopd
import peer_context
import train
from runtime import measure, parallel, report
from runtime.models import max_length
from runtime.report import grouped

SIGNAL = {
    "none": (0, 0),
    "1 success": (1, 0),
    "2 successes": (2, 0),
    "1 failure": (0, 1),
    "1s+1f": (1, 1),
    "2s+1f": (2, 1),
}  # successes, failures
# the three slots of 2s+1f, filled as in mopd.py's controls
CONTROLS = ("random", "unrelated", "success_only")
# Leave-one-out in a group that has no more than the context shows: what a success and what a
# failure would read there.
LEAVE_ONE_OUT = {
    "1 success": ("none", "1 success"),
    "2 successes": ("1 success", "2 successes"),
    "1 failure": ("1 failure", "none"),
    "1s+1f": ("1 failure", "1 success"),
    "2s+1f": ("1s+1f", "2 successes"),
}
PLACES = ("strongest tenth", "position")
MEASURES = ("AUC", "pairs", "Spearman", "Kendall", "top-1", "AUC, like length")


# --- measures of one prompt ---


def pair_counts(scores, verdicts, lengths=None) -> tuple[int, int, int]:
    """(won, tied, all) over the pairs of a success and a failure; won: the success has the higher
    score.

    lengths: only pairs whose lengths differ by at most a tenth of the longer one.
    """
    of = lambda wanted: [i for i, v in enumerate(verdicts) if bool(v) is wanted]
    pairs = [
        (i, j)
        for i in of(True)
        for j in of(False)
        if lengths is None or abs(lengths[i] - lengths[j]) <= 0.1 * max(lengths[i], lengths[j])
    ]
    return (
        sum(scores[i] > scores[j] for i, j in pairs),
        sum(scores[i] == scores[j] for i, j in pairs),
        len(pairs),
    )


def ranks(values) -> numpy.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    values = numpy.asarray(values, float)
    return ((values[:, None] > values).sum(1) + (values[:, None] >= values).sum(1) + 1) / 2


def correlation(a, b) -> float:
    """Cosine of two arrays, 0 where one of them is zero: a constant score orders nothing."""
    norm = math.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum()) / norm if norm else 0.0


def spearman(x, y) -> float:
    """Rank correlation, ties shared."""
    return correlation(*(r - r.mean() for r in (ranks(x), ranks(y))))


def kendall(x, y) -> float:
    """Kendall's tau-b."""
    return correlation(*(numpy.sign(numpy.subtract.outer(v, v)) for v in (ranks(x), ranks(y))))


def top_hit(scores, verdicts) -> float:
    """1 where the rollout with the highest score is right; the share of right ones where several
    have it.
    """
    best = [v for s, v in zip(scores, verdicts) if s == max(scores)]
    return sum(best) / len(best)


def agreement(scores, verdicts, lengths) -> dict[str, tuple[float, int]]:
    """MEASURES of one prompt, which must have both classes, as (value, weight of the prompt in the
    mean over prompts).

    AUC counts ties a half and every prompt alike; `pairs` counts strict wins and every pair alike.
    """
    won, tied, total = pair_counts(scores, verdicts)
    near_won, near_tied, near = pair_counts(scores, verdicts, lengths)
    return {
        "AUC": ((won + tied / 2) / total, 1),
        "pairs": (won / total, total),
        "Spearman": (spearman(scores, verdicts), 1),
        "Kendall": (kendall(scores, verdicts), 1),
        "top-1": (top_hit(scores, verdicts), 1),
        "AUC, like length": ((near_won + near_tied / 2) / near if near else 0.0, near),
    }


def where(divergences) -> dict[str, tuple[float, float]]:
    """Where in the rollouts of one prompt the signal lies: {name: (value, its weight in the mean:
    the divergence)}.

    "strongest tenth": share of the divergence on the strongest tenth of the tokens; "position": its
    mean position in a rollout (0 first token, 1 last). No weight where it is no more than rounding,
    as when a copy of the student reads no peer.
    """
    flat, total = (
        numpy.sort(numpy.concatenate(divergences))[::-1],
        float(sum(d.sum() for d in divergences)),
    )
    places = sum(float(d @ numpy.linspace(0, 1, len(d))) for d in divergences)
    if total < 1e-6 * len(flat):
        return {"strongest tenth": (0.0, 0.0), "position": (0.0, 0.0)}
    return {
        "strongest tenth": (float(flat[: math.ceil(len(flat) / 10)].sum()) / total, total),
        "position": (places / total, total),
    }


def resampled(values, weights, draws) -> tuple[float, numpy.ndarray]:
    """Weighted mean over prompts, as it is and for every row of prompts in `draws`; NaN where
    nothing has a weight.
    """
    values, weights = numpy.asarray(values, float), numpy.asarray(weights, float)
    mean = lambda v, w: (v * w).sum(-1) / numpy.where(w.sum(-1) > 0, w.sum(-1), numpy.nan)
    return float(mean(values, weights)), mean(values[draws], weights[draws])


def interval(estimate, replicates) -> list:
    """[estimate, lower end, upper end] of the 95 % percentile interval, None where undefined."""
    ends = (
        numpy.nanpercentile(replicates, (2.5, 97.5))
        if numpy.isfinite(replicates).any()
        else (math.nan, math.nan)
    )
    return [float(x) if math.isfinite(x) else None for x in (estimate, *ends)]


# --- the signal ---


def draw_peers(attempts, contexts, seed) -> tuple[dict[str, dict], list[list[int]]]:
    """({context: {position: Peers}}, scored positions of each prompt): peers held out of what they
    help to score.

    Were a rollout's peers drawn from all the others, as in training, a success would find one
    success fewer than a failure does, and the score could know the verdict by counting. So each
    prompt gives up a pool (the successes and failures that the largest context needs; three at
    random for that control), everything else is scored, and all of it reads the same peers. A
    prompt that leaves no success or no failure to score is left out for every context. Truncated
    rollouts and those without text are neither shown nor scored.
    """
    texts = [peer_context.strip_thinking(a.text) for a in attempts]
    usable = [i for i, a in enumerate(attempts) if a.rollout.stopped and texts[i]]
    n_success = max(SIGNAL[c][0] if c in SIGNAL else 3 * (c == "success_only") for c in contexts)
    n_failure = max(SIGNAL[c][1] if c in SIGNAL else 0 for c in contexts)
    peers, scored = {c: {} for c in contexts}, []
    for mates in grouped(usable, of=lambda i: attempts[i].group):
        group, key = attempts[mates[0]].group, attempts[mates[0]].problem.key
        rng = random.Random(repr((seed, "pool", key)))
        draw = lambda candidates, n: peer_context.draw(candidates, n, texts, rng)
        right = draw([i for i in mates if attempts[i].success], n_success)
        wrong = draw([i for i in mates if not attempts[i].success], n_failure)
        mixture = draw(mates, 3 * ("random" in contexts))
        strangers = draw(
            [i for i in usable if attempts[i].success and attempts[i].group != group], 3
        )
        rest = [i for i in mates if i not in {*right, *wrong, *mixture}]
        full = (
            len(right) == n_success
            and len(wrong) == n_failure
            and (len(strangers) == 3 or "unrelated" not in contexts)
        )
        if full and len({attempts[i].success for i in rest}) == 2:
            scored.append(rest)
            shown = {c: (right[:n], wrong[:m]) for c, (n, m) in SIGNAL.items()} | {
                "random": (mixture[:2], mixture[2:]),
                "unrelated": (strangers, ()),
                "success_only": (right[:3], ()),
            }
            for c in contexts:
                peers[c].update(dict.fromkeys(rest, peer_context.Peers(*shown[c])))
    return peers, scored


def read_contexts(run, attempts, peers) -> tuple[dict[str, list], set[int]]:
    """({context: a Reading for each attempt that has peers there}, positions that lost a peer for
    want of room).
    """
    s, versions, lost = run.settings, {}, set()
    for c, chosen in peers.items():
        copies = [
            replace(
                a,
                peers=chosen.get(i, peer_context.Peers((), ())),
                feedback="",
                weight=float(i in chosen),
            )
            for i, a in enumerate(attempts)
        ]
        mopd.write_contexts(
            copies,
            run.teacher,
            peer_tokens=s.peer_tokens,
            layout=s.layout,
            longest=max_length(run.teacher.model),
        )
        lost |= {i for i in chosen if not copies[i].weight or copies[i].peers != chosen[i]}
        versions[c] = copies
    return report.read_tokens(
        run.student,
        run.teacher,
        versions,
        temperature=s.temperature,
        budget=s.micro_tokens,
        autocast=run.autocast,
    ), lost


def measure_signal(run, attempts, *, contexts=(*SIGNAL, *CONTROLS), resamples=2000) -> dict:
    """Agreement of the teacher's scores with the verdicts over one fixed set of rollouts, context
    by context.

    Every number is [estimate, lower, upper] with a 95 % bootstrap interval over prompts; all
    contexts share the draws, so differences are paired. "leave-one-out" is the AUC of the same
    rollouts where each is itself one of the peers and so reads one fewer of its own kind.
    ValueError where fewer than two prompts can be used.
    """
    peers, groups = draw_peers(attempts, contexts, run.settings.seed)
    readings, lost = read_contexts(run, attempts, peers)
    groups = [[i for i in mates if i not in lost] for mates in groups]
    groups = [mates for mates in groups if len({attempts[i].success for i in mates}) == 2]
    if len(groups) < 2:
        raise ValueError(
            f"{len(groups)} of {len(grouped(attempts))} prompts have successes and failures to spare for "
            "every context: more --problems, more --rollouts, or easier problems"
        )
    draws = numpy.random.default_rng(run.settings.seed).integers(
        0, len(groups), (resamples, len(groups))
    )
    flat = [i for mates in groups for i in mates]
    length = {i: len(attempts[i].rollout.ids) for i in flat}

    def measures(score):
        columns = [
            agreement(*zip(*((score[i], attempts[i].success, length[i]) for i in mates)))
            for mates in groups
        ]
        return {m: resampled(*zip(*(column[m] for column in columns)), draws) for m in MEASURES}

    auc = lambda score: interval(*measures(score)["AUC"])
    tables, differences, places = {}, {}, {}
    for c in contexts:
        lies = [where([readings[c][i].divergence for i in mates]) for mates in groups]
        places[c] = {
            name: interval(*resampled(*zip(*(x[name] for x in lies)), draws)) for name in PLACES
        }
    for kind in ("log-probability", "log-ratio"):
        base = {i: float(readings["none"][i].teacher.mean()) * (kind == "log-ratio") for i in flat}
        score = {
            c: {i: float(readings[c][i].teacher.mean()) - base[i] for i in flat} for c in contexts
        }
        found = {c: measures(score[c]) for c in contexts if (kind, c) != ("log-ratio", "none")}
        table = tables[kind] = {
            c: {m: interval(*pair) for m, pair in row.items()} for c, row in found.items()
        }
        for c in table:
            if set(LEAVE_ONE_OUT.get(c, ("",))) <= set(contexts):
                reads = dict(zip((True, False), LEAVE_ONE_OUT[c]))
                table[c]["leave-one-out"] = auc(
                    {i: score[reads[attempts[i].success]][i] for i in flat}
                )
            table[c] |= places[c]
        differences[kind] = {
            f"{b} minus {a}": interval(*(y - x for x, y in zip(found[a]["AUC"], found[b]["AUC"])))
            for a, b in itertools.combinations(found, 2)
        }
    shown = lambda i: {
        attempts[j].text
        for chosen in peers.values()
        for j in chosen[i].successes + chosen[i].failures
    }
    right = [[attempts[i].success for i in mates] for mates in groups]
    return {
        "prompts": len(grouped(attempts)),
        "prompts_used": len(groups),
        "rollouts_used": len(flat),
        "chance": float(numpy.mean([sum(v) / len(v) for v in right])),
        "resamples": resamples,
        "copies": sum(attempts[i].text in shown(i) for i in flat) / len(flat),
        "shorter is better": auc({i: -length[i] for i in flat}),
        "tables": tables,
        "AUC differences": differences,
    }


def print_signal(result):
    cell = lambda x: "-" if x is None or x[0] is None else f"{x[0]:.2f} [{x[1]:.2f}, {x[2]:.2f}]"
    print(
        f"{result['prompts_used']} of {result['prompts']} prompts and {result['rollouts_used']} rollouts, the same "
        f"for every context, {result['chance']:.2f} of them right.\nAUC of shortness alone "
        f"{cell(result['shorter is better'])}; {result['copies']:.0%} have the text of a peer of some context."
    )
    if result["prompts_used"] < FEW:
        print(
            f"{result['prompts_used']} prompts are too few: their intervals are too narrow to believe."
        )
    wide, narrow = (
        ("AUC", "AUC, like length", "leave-one-out"),
        ("pairs", "Spearman", "Kendall", "top-1"),
    )
    short = lambda x: "-" if x[0] is None else f"{x[0]:.2f}"
    for kind, table in result["tables"].items():
        print(
            f"\n{kind:16s}"
            + "".join(f"{name:>19s}" for name in wide)
            + "".join(f"{name:>10s}" for name in narrow)
            + "".join(f"{name:>19s}" for name in PLACES)
        )
        for c, row in table.items():
            print(
                f"{c:16s}"
                + "".join(f"{cell(row.get(name)):>19s}" for name in wide)
                + "".join(f"{short(row[name]):>10s}" for name in narrow)
                + "".join(f"{cell(row[name]):>19s}" for name in PLACES)
            )
        print("AUC, paired:")
        for name, x in result["AUC differences"][kind].items():
            if "2s+1f" in name or name.endswith("minus none") or name == "1s+1f minus 1 success":
                print(f"  {name:32s}{cell(x)}")


def sample_groups(run) -> list[mopd.Attempt]:
    """The rollouts of a first training step."""
    s = run.settings
    return mopd.sample(
        run.student,
        run.tokenizer,
        train.batch_of(run.train, 1, s),
        k=s.rollouts,
        task=s.task,
        seed=s.seed_of(1),
        max_new_tokens=s.max_new_tokens,
        temperature=s.temperature,
        autocast=run.autocast,
    )


# --- preflight ---

# (when, what to do), filled in from the numbers of `preflight`
DOUBTS = (
    (
        lambda r: r["problems"] < FEW,
        "{problems} problems are too few to say: more --problems (32 by default)",
    ),
    (
        lambda r: r["truncated"] > 0.25,
        "{truncated:.0%} of the rollouts are cut and no use: raise --max-new-tokens",
    ),
    (
        lambda r: r["all_wrong"] > 0.75,
        "groups are {all_wrong:.0%} all-wrong: easier problems or larger --rollouts",
    ),
    (
        lambda r: r["all_right"] > 0.75,
        "groups are {all_right:.0%} all-right, little is left to learn: harder problems",
    ),
    (
        lambda r: r["weighted"] < 0.5,
        "only {weighted:.0%} of the rollouts have something to learn from: larger --rollouts",
    ),
    (
        lambda r: (
            r["teacher_gain"] is not None and r["teacher_gain"] + 2 * r["teacher_gain_error"] < 0.05
        ),
        "the teacher, where it writes itself, is hardly better than the student or worse ({teacher_gain:+.2f}, standard "
        "error {teacher_gain_error:.2f}): a larger model or another prompt",
    ),
    (
        lambda r: (
            r["teacher_gain"] is not None
            and 0.05 - 2 * r["teacher_gain_error"]
            <= r["teacher_gain"]
            <= 2 * r["teacher_gain_error"]
        ),
        "the teacher's lead ({teacher_gain:+.2f}, standard error {teacher_gain_error:.2f}) may be nothing: more "
        "--problems to be sure, a larger model or another prompt",
    ),
    (
        lambda r: r["auc"] is not None and r["auc_prompts"] >= FEW and r["auc"][0] < 0.55,
        "its scores hardly tell right from wrong (AUC {auc[0]:.2f}): the gradient would be noise",
    ),
    (
        lambda r: r["divergence"] is not None and r["divergence"] < 1e-4,
        "teacher and student agree on every token: there is no signal to learn from",
    ),
)
# fewer prompts than this say little, and their intervals nothing
FEW = 8
# What of SIGNAL is nearest to what the run's teacher reads; a control is measured as itself.
NEAREST = {"contrastive": "1s+1f", "positive": "1 success", "sdpo": "1 success"}


def mean(values):
    """The mean of a list, None of an empty one."""
    return sum(values) / len(values) if values else None


def preflight(run, attempts) -> dict:
    """What can be known before training, from the rollouts of one step; `doubts` are the reasons
    not to train so.

    `predicted_gain`: the share of rollouts with a weight, times how much more often the teacher is
    right, where it writes the answer itself after what it reads, than the student is on the same
    problems. `gap`: mean log teacher - log student on the student's tokens (arXiv 2605.30070 finds
    that it predicts the final gain).
    """
    s, own = run.settings, report.own_context(run.settings)
    table = measure.measure(run, attempts)
    if s.layout == "auto":
        s.layout = measure.choose(table)
        if s.method == "mopd" and not s.no_feedback:
            table["feedback"] = measure.measure_feedback(run, attempts, s.layout)
            s.no_feedback = measure.feedback_harms(table["feedback"])
    mopd.plan(
        attempts, method=s.method, peers=s.peers, feedback=not s.no_feedback, seed=s.seed_of(1)
    )
    mopd.write_contexts(
        attempts,
        run.teacher,
        peer_tokens=s.peer_tokens,
        layout=s.layout,
        longest=max_length(run.teacher.model),
    )
    rates = [mean([a.success for a in mates]) for mates in grouped(attempts)]
    every = measure.measure(run, attempts, kinds=[own], layouts=[s.layout], only_mixed=False)[
        "arms"
    ][own][s.layout]
    student = {mates[0].problem.key: rate for mates, rate in zip(grouped(attempts), rates)}
    lead, error = measure.lead(
        every, {"rates": student, "right": mean(rates), "samples": len(attempts)}
    )
    read = report.read_tokens(
        run.student,
        run.teacher,
        {"own": attempts},
        temperature=s.temperature,
        budget=s.micro_tokens,
        autocast=run.autocast,
    )["own"]
    readings = [reading for reading in read if reading]
    tokens = lambda name: numpy.concatenate([getattr(r, name) for r in readings])
    signal, context = {}, NEAREST.get(own, own)
    if context != "none":  # opd's teacher reads no peers
        # too few prompts: print_preflight says so
        with contextlib.suppress(ValueError):
            signal = measure_signal(run, attempts, contexts=("none", context))
    weighted = mean([a.weight > 0 for a in attempts])
    result = {
        "problems": len(rates),
        "success": mean(rates),
        "mixed": mean([0 < x < 1 for x in rates]),
        "all_wrong": mean([x == 0 for x in rates]),
        "all_right": mean([x == 1 for x in rates]),
        "truncated": mean([not a.rollout.stopped for a in attempts]),
        "weighted": weighted,
        "measured": table,
        "layout": s.layout,
        "teacher_gain": lead,
        "teacher_gain_error": error,
        "predicted_gain": weighted * (lead or 0.0),
        "gap": float((tokens("teacher") - tokens("student")).mean()) if readings else None,
        "divergence": float(tokens("divergence").mean()) if readings else None,
        "auc_context": context,
        "auc_prompts": signal.get("prompts_used"),
        "auc": signal["tables"]["log-ratio"][context]["AUC"] if signal else None,
    }
    return result | {"doubts": [text.format(**result) for when, text in DOUBTS if when(result)]}


def print_preflight(r):
    print(
        f"student: {r['success']:.3f} right; groups {r['mixed']:.0%} mixed, {r['all_wrong']:.0%} all wrong, "
        f"{r['all_right']:.0%} all right; {r['truncated']:.0%} truncated; {r['weighted']:.0%} with something to "
        "learn from"
    )
    print("\n".join([*measure.lines_of(r["measured"]), f"layout of the peers: {r['layout']}"]))
    if r["teacher_gain"] is not None:
        print(
            f"on all {r['problems']} problems the teacher leads the student by {r['teacher_gain']:+.3f} "
            f"(standard error {r['teacher_gain_error']:.3f})"
        )
    if r["gap"] is not None:
        print(
            f"on the student's tokens: log teacher - log student {r['gap']:+.3f} on average, divergence "
            f"{r['divergence']:.4f}"
        )
    if r["auc_context"] != "none":
        auc = "unknown" if r["auc"] is None else "{:.2f} [{:.2f}, {:.2f}]".format(*r["auc"])
        few = ", which are too few" if (r["auc_prompts"] or 0) < FEW else ""
        print(
            f"AUC of its scores after {r['auc_context']}: {auc} over the {r['auc_prompts'] or 0} prompts with "
            f"successes and failures to spare{few}"
        )
    print(f"success that the student could take over from its teacher: {r['predicted_gain']:+.3f}")
    print(
        "\n".join(["verdict: not like this, because", *(f"- {reason}" for reason in r["doubts"])])
        if r["doubts"]
        else "verdict: train; nothing here speaks against it"
    )


# --- command line ---

COLUMNS = """
 Contexts: none, numbers of successes (s) and failures (f) held out of the same group, the three controls of --peers.
 AUC: how often a success scores higher than a failure of the same prompt, ties a half; like length: of pairs whose
 lengths differ by a tenth at most; leave-one-out: the AUC that peers drawn as in training would show, where a success
 reads one success fewer; pairs: strict wins over all pairs; Spearman, Kendall: with the verdict; top-1: how often the
 best-scored rollout is right; strongest tenth: share of the divergence on the tenth of the tokens where it is
 strongest; position: where it lies, 0 the first token, 1 the last. In brackets 95 % intervals over prompts."""


def parse(arguments):
    """(our options, the flags left for train.py)"""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    page = commands.add_parser("report", help="write OUT/report.html", allow_abbrev=False)
    page.add_argument(
        "folders", nargs="+", metavar="OUT", help="run folders; the page goes into the first"
    )
    group = commands.add_parser(
        "show", help="one group of coloured tokens in the terminal", allow_abbrev=False
    )
    group.add_argument("folder", metavar="OUT")
    group.add_argument("--step", type=int, help="a step that was evaluated (default: the last)")
    group.add_argument(
        "--context", help="what the teacher reads (default: what the run's own teacher does)"
    )
    for name, help in (
        ("signal", "do the teacher's scores agree with the verdicts?"),
        ("preflight", "will training help this model on these problems?"),
    ):
        note = "; here 64 --problems and 32 --rollouts by default." if name == "signal" else "."
        note = (
            "Takes every flag of train.py but --out and --resume"
            + note
            + COLUMNS * (name == "signal")
        )
        one = commands.add_parser(name, help=help, allow_abbrev=False, epilog=note)
        one.add_argument("--out", type=Path, help="write the numbers to this JSON file")
        if name == "signal":
            one.add_argument(
                "--resamples", type=int, default=2000, help="bootstrap draws (default 2000)"
            )
    for one in (parser, *commands.choices.values()):
        one.error = lambda message: parser.exit(
            2, f"analyze.py: error: {message} (--help lists what there is)\n"
        )
    options, rest = parser.parse_known_args(arguments)
    if "--resume" in rest:
        parser.error("--resume belongs to train.py")
    if rest and options.command in ("report", "show"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options, rest


def main(arguments=None):
    options, rest = parse(arguments)
    try:
        if options.command == "report":
            return print(report.write_report(options.folders))
        if options.command == "show":
            return report.show(options.folder, step=options.step, context=options.context)
        # Signal holds peers out of the groups it scores, so it needs larger groups than training;
        # later flags win.
        settings = train.parse(
            ["--problems", "64", "--rollouts", "32", *rest]
            if options.command == "signal"
            else rest,
            "analyze.py",
        )
        if options.command == "signal" and options.resamples < 1:
            raise ValueError(f"--resamples {options.resamples}: must be positive")
        if options.out and (options.out.is_dir() or not options.out.parent.is_dir()):
            raise ValueError(f"--out {options.out}: not a file in a folder that is there")
        if not settings.teaches:
            raise ValueError(
                f"--method {settings.method} has no teacher to look at: use mopd, sdpo or opd"
            )
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        run = train.prepare(settings)
        attempts = sample_groups(run)
        if options.command == "signal" and settings.layout == "auto":
            settings.layout = "turn"
            print("the paper's layout of peers; for the other: --layout turns")
        if options.command == "signal":
            result = measure_signal(run, attempts, resamples=options.resamples)
        else:
            result = preflight(run, attempts)
        {"signal": print_signal, "preflight": print_preflight}[options.command](result)
        if options.out:
            options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except parallel.REFUSALS as error:
        print(f"analyze.py: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
