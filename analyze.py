"""Before and after training: does the teacher's signal agree with the verifier, will MOPD help?

    python analyze.py signal --task math        # do the teacher's scores agree with the verdicts?
    python analyze.py preflight --task math     # will training help this model on these problems?
    python analyze.py report OUT [OUT2 ...]     # curves and coloured tokens, the path is printed
    python analyze.py show OUT --step 24        # one group of these tokens in the terminal

signal and preflight take every flag of train.py but --out and --resume; --out FILE writes their
numbers as JSON. This file may import all others: models, data and rollouts come from train.py and
mopd.py, the page from runtime/report.py.

The score of a rollout is the teacher's mean token log-probability, or the log-ratio to the one
without peers. Agreement is measured within each prompt, because scores of different problems are
not comparable.
"""

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
from runtime import checkpoint, measure, parallel, report
from runtime.models import max_length
from runtime.report import grouped

# {context: (number of successes, of failures)}
SIGNAL = {
    "none": (0, 0),
    "1 success": (1, 0),
    "2 successes": (2, 0),
    "1 failure": (0, 1),
    "1s+1f": (1, 1),
    "2s+1f": (2, 1),
}
# three peers as in 2s+1f, but chosen as the ablations of --peers choose them
CONTROLS = ("random", "unrelated", "success_only")
# {context: (context of a success, of a failure)} if peers were drawn as in training, from a group
# with exactly the context's successes and failures: a rollout is no peer of itself, so a success
# sees one success fewer, and a failure one failure fewer.
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
    """(won, tied, all) over the pairs of a success and a failure.

    Won: the success has the higher score. With lengths only those pairs count whose lengths differ
    by at most a tenth of the longer one.
    """
    right = [i for i, v in enumerate(verdicts) if v]
    wrong = [i for i, v in enumerate(verdicts) if not v]
    pairs = list(itertools.product(right, wrong))
    if lengths is not None:
        sizes = {(i, j): (lengths[i], lengths[j]) for i, j in pairs}
        pairs = [pair for pair, (a, b) in sizes.items() if abs(a - b) <= 0.1 * max(a, b)]
    won = sum(scores[i] > scores[j] for i, j in pairs)
    return won, sum(scores[i] == scores[j] for i, j in pairs), len(pairs)


def ranks(values) -> numpy.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    values = numpy.asarray(values, float)
    return ((values[:, None] > values).sum(1) + (values[:, None] >= values).sum(1) + 1) / 2


def correlation(a: numpy.ndarray, b: numpy.ndarray) -> float:
    """Cosine of two arrays, 0 where one of them is zero: a constant score has no correlation."""
    norm = math.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum()) / norm if norm else 0.0


def spearman(x, y) -> float:
    """Rank correlation, ties shared."""
    return correlation(*(r - r.mean() for r in (ranks(x), ranks(y))))


def kendall(x, y) -> float:
    """Kendall's tau-b."""
    return correlation(*(numpy.sign(numpy.subtract.outer(v, v)) for v in (ranks(x), ranks(y))))


def top_hit(scores, verdicts) -> float:
    """1 if the rollout of the highest score is right, else 0; of several such rollouts the mean."""
    best = [v for s, v in zip(scores, verdicts, strict=True) if s == max(scores)]
    return sum(best) / len(best)


def agreement(scores, verdicts, lengths) -> dict[str, tuple[float, int]]:
    """{measure: (value, weight of the prompt in the mean)} for MEASURES, of one prompt.

    The prompt must have successes and failures. AUC counts a tie as one half and weights all
    prompts equally; `pairs` counts strict wins and weights all pairs equally.
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
    """{place: (value, weight in the mean)} for PLACES: where in the rollouts of a prompt signal is.

    "strongest tenth": share of the divergence on the strongest tenth of the tokens; "position": its
    mean position in a rollout (0 first token, 1 last). The weight is the sum of the divergence. It
    is 0 if that is no more than rounding, as when a copy of the student reads no peer.
    """
    flat = numpy.sort(numpy.concatenate(divergences))[::-1]
    total = float(sum(d.sum() for d in divergences))
    places = sum(float(d @ numpy.linspace(0, 1, len(d))) for d in divergences)
    if total < 1e-6 * len(flat):
        return {"strongest tenth": (0.0, 0.0), "position": (0.0, 0.0)}
    return {
        "strongest tenth": (float(flat[: math.ceil(len(flat) / 10)].sum()) / total, total),
        "position": (places / total, total),
    }


def resampled(values, weights, draws) -> tuple[float, numpy.ndarray]:
    """Weighted mean over prompts, and that of each bootstrap sample; NaN where all weights are 0.

    draws (resamples, prompts): the prompts of each sample.
    """
    values, weights = numpy.asarray(values, float), numpy.asarray(weights, float)

    def weighted_mean(v, w):
        return (v * w).sum(-1) / numpy.where(w.sum(-1) > 0, w.sum(-1), numpy.nan)

    return float(weighted_mean(values, weights)), weighted_mean(values[draws], weights[draws])


def interval(estimate: float, replicates: numpy.ndarray) -> list[float | None]:
    """[estimate, lower end, upper end] of the 95 % percentile interval, None where undefined."""
    ends = (math.nan, math.nan)
    if numpy.isfinite(replicates).any():
        ends = numpy.nanpercentile(replicates, (2.5, 97.5))
    return [float(x) if math.isfinite(x) else None for x in (estimate, *ends)]


# --- the signal ---


def draw_peers(attempts, contexts, seed) -> tuple[dict[str, dict], list[list[int]]]:
    """({context: {position: Peers}}, scored positions of each prompt), with held-out peers.

    If peers were drawn from all other rollouts, as in training, a success would see one success
    fewer than a failure does, and its context alone would tell the verdict. So each prompt sets a
    pool of peers aside (the successes and failures of the largest context; three at random for that
    control). All other rollouts of the prompt are scored with the same peers from the pool. A
    prompt without a success and a failure left to score is skipped in every context. Truncated and
    empty rollouts are neither shown nor scored.
    """
    texts = [peer_context.strip_thinking(a.text) for a in attempts]
    usable = [i for i, a in enumerate(attempts) if a.rollout.stopped and texts[i]]
    n_success = max(SIGNAL[c][0] if c in SIGNAL else 3 * (c == "success_only") for c in contexts)
    n_failure = max(SIGNAL[c][1] if c in SIGNAL else 0 for c in contexts)
    n_unrelated = 3 * ("unrelated" in contexts)
    peers, scored = {c: {} for c in contexts}, []
    for mates in grouped(usable, of=lambda i: attempts[i].group):
        group, key = attempts[mates[0]].group, attempts[mates[0]].problem.key
        rng = random.Random(repr((seed, "pool", key)))
        right = [i for i in mates if attempts[i].success]
        wrong = [i for i in mates if not attempts[i].success]
        others = [i for i in usable if attempts[i].success and attempts[i].group != group]
        right = peer_context.draw(right, n_success, texts, rng)
        wrong = peer_context.draw(wrong, n_failure, texts, rng)
        mixture = peer_context.draw(mates, 3 * ("random" in contexts), texts, rng)
        unrelated = peer_context.draw(others, n_unrelated, texts, rng)
        rest = [i for i in mates if i not in {*right, *wrong, *mixture}]
        if (len(right), len(wrong), len(unrelated)) != (n_success, n_failure, n_unrelated):
            continue
        if len({attempts[i].success for i in rest}) < 2:
            continue
        scored.append(rest)
        shown = {c: (right[:n], wrong[:m]) for c, (n, m) in SIGNAL.items()} | {
            "random": (mixture[:2], mixture[2:]),
            "unrelated": (unrelated, ()),
            "success_only": (right[:3], ()),
        }
        for c in contexts:
            peers[c].update(dict.fromkeys(rest, peer_context.Peers(*shown[c])))
    return peers, scored


def read_contexts(run, attempts, peers) -> tuple[dict[str, list], set[int]]:
    """({context: a Reading of each attempt that has peers there}, positions that lost a peer).

    A peer is lost where the teacher's context window is too short.
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
            max_tokens=max_length(run.teacher.model),
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
    """Agreement of the teacher's scores with the verdicts, for each context on the same rollouts.

    Every number is [estimate, lower, upper] with a 95 % bootstrap interval over prompts. All
    contexts share the bootstrap samples, so differences are paired. "leave-one-out" is the AUC with
    the contexts of LEAVE_ONE_OUT. Raises ValueError where fewer than two prompts can be used.
    """
    peers, groups = draw_peers(attempts, contexts, run.settings.seed)
    readings, lost = read_contexts(run, attempts, peers)
    groups = [[i for i in mates if i not in lost] for mates in groups]
    groups = [mates for mates in groups if len({attempts[i].success for i in mates}) == 2]
    if len(groups) < 2:
        raise ValueError(
            f"{len(groups)} of {len(grouped(attempts))} prompts have successes and failures to "
            "spare for every context: more --problems, more --rollouts, or easier problems"
        )
    rng = numpy.random.default_rng(run.settings.seed)
    draws = rng.integers(0, len(groups), (resamples, len(groups)))
    flat = [i for mates in groups for i in mates]
    length = {i: len(attempts[i].rollout.ids) for i in flat}

    def bootstrapped(columns, names):
        """{name: resampled(...)} of what `agreement` or `where` returned for each prompt."""
        pairs = {name: zip(*(column[name] for column in columns), strict=True) for name in names}
        return {name: resampled(*pair, draws) for name, pair in pairs.items()}

    def measures(score):
        columns = []
        for mates in groups:
            verdicts, lengths = [attempts[i].success for i in mates], [length[i] for i in mates]
            columns.append(agreement([score[i] for i in mates], verdicts, lengths))
        return bootstrapped(columns, MEASURES)

    def auc(score):
        return interval(*measures(score)["AUC"])

    tables, differences, places = {}, {}, {}
    for c in contexts:
        columns = [where([readings[c][i].divergence for i in mates]) for mates in groups]
        places[c] = {name: interval(*x) for name, x in bootstrapped(columns, PLACES).items()}
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
                of_success, of_failure = LEAVE_ONE_OUT[c]
                table[c]["leave-one-out"] = auc(
                    {i: score[of_success if attempts[i].success else of_failure][i] for i in flat}
                )
            table[c] |= places[c]
        differences[kind] = {}
        for a, b in itertools.combinations(found, 2):
            (x, x_draws), (y, y_draws) = found[a]["AUC"], found[b]["AUC"]
            differences[kind][f"{b} minus {a}"] = interval(y - x, y_draws - x_draws)
    copies = 0
    for i in flat:
        shown = [j for of in peers.values() for j in of[i].successes + of[i].failures]
        copies += attempts[i].text in {attempts[j].text for j in shown}
    right = [[attempts[i].success for i in mates] for mates in groups]
    return {
        "prompts": len(grouped(attempts)),
        "prompts_used": len(groups),
        "rollouts_used": len(flat),
        "chance": float(numpy.mean([sum(v) / len(v) for v in right])),
        "resamples": resamples,
        "copies": copies / len(flat),
        "shorter is better": auc({i: -length[i] for i in flat}),
        "tables": tables,
        "AUC differences": differences,
    }


def _cell(x) -> str:
    """An estimate with its interval."""
    return "-" if x is None or x[0] is None else f"{x[0]:.2f} [{x[1]:.2f}, {x[2]:.2f}]"


def print_signal(result: dict) -> None:
    print(
        f"{result['prompts_used']} of {result['prompts']} prompts and {result['rollouts_used']} "
        f"rollouts, the same for every context, {result['chance']:.2f} of them right.\n"
        f"AUC of shortness alone {_cell(result['shorter is better'])}; "
        f"{result['copies']:.0%} have the text of a peer of some context."
    )
    if result["prompts_used"] < FEW:
        print(
            f"{result['prompts_used']} prompts are too few: "
            "their intervals are too narrow to believe."
        )
    with_interval = ("AUC", "AUC, like length", "leave-one-out")
    without = ("pairs", "Spearman", "Kendall", "top-1")
    for kind, table in result["tables"].items():
        print(
            f"\n{kind:16s}"
            + "".join(f"{name:>19s}" for name in with_interval)
            + "".join(f"{name:>10s}" for name in without)
            + "".join(f"{name:>19s}" for name in PLACES)
        )
        for c, row in table.items():
            estimates = ["-" if row[name][0] is None else f"{row[name][0]:.2f}" for name in without]
            print(
                f"{c:16s}"
                + "".join(f"{_cell(row.get(name)):>19s}" for name in with_interval)
                + "".join(f"{estimate:>10s}" for estimate in estimates)
                + "".join(f"{_cell(row[name]):>19s}" for name in PLACES)
            )
        print("AUC, paired:")
        for name, x in result["AUC differences"][kind].items():
            if "2s+1f" in name or name.endswith("minus none") or name == "1s+1f minus 1 success":
                print(f"  {name:32s}{_cell(x)}")


def sample_groups(run: train.Run) -> list[mopd.Attempt]:
    """The rollouts of the first training step."""
    return train.sample_step(run, 1)[0]


# --- preflight ---

# (condition, text) over the numbers of `preflight`, which are also filled into the text
DOUBTS = (
    (
        lambda r: measure.harmful(r["measured"]),
        "train.py would refuse: the teacher is worse than the student in every layout (--force)",
    ),
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
        "the teacher, where it writes itself, is hardly better than the student or worse "
        "({teacher_gain:+.2f}, standard error {teacher_gain_error:.2f}): "
        "a larger model or another prompt",
    ),
    (
        lambda r: (
            r["teacher_gain"] is not None
            and 0.05 - 2 * r["teacher_gain_error"]
            <= r["teacher_gain"]
            <= 2 * r["teacher_gain_error"]
        ),
        "the teacher's lead ({teacher_gain:+.2f}, standard error {teacher_gain_error:.2f}) "
        "may be nothing: more --problems to be sure, a larger model or another prompt",
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
# with fewer prompts than this, bootstrap intervals are too narrow
FEW = 8
# {context of the run's teacher: the one of SIGNAL that is most like it}; a control is in CONTROLS
NEAREST = {"contrastive": "1s+1f", "positive": "1 success", "sdpo": "1 success"}


def mean(values: list) -> float | None:
    """The mean of a list, None of an empty one."""
    return sum(values) / len(values) if values else None


def preflight(run: train.Run, attempts: list[mopd.Attempt]) -> dict:
    """A forecast of the training from the rollouts of one step; `doubts`: reasons not to train.

    `teacher_gain`: how much more often than the student the teacher is right when it writes answers
    itself after its context, on the same problems. `predicted_gain`: that, times the share of
    rollouts with a weight. `gap`: mean log teacher - log student on the student's tokens (arXiv
    2605.30070 finds that it predicts the final gain).
    """
    s, own = run.settings, report.own_context(run.settings)
    table = measure.measure(run, attempts)
    if s.layout == "auto":
        s.layout = measure.choose(table)
        table["feedback"] = measure.settle_feedback(run, attempts)
    mopd.plan(
        attempts, method=s.method, peers=s.peers, feedback=not s.no_feedback, seed=s.seed_of(1)
    )
    mopd.write_contexts(
        attempts,
        run.teacher,
        peer_tokens=s.peer_tokens,
        layout=s.layout,
        max_tokens=max_length(run.teacher.model),
    )
    rates = [mean([a.success for a in mates]) for mates in grouped(attempts)]
    every = measure.measure(run, attempts, kinds=[own], layouts=[s.layout], only_mixed=False)
    arm = every["arms"][own][s.layout]
    readings = report.read_tokens(
        run.student,
        run.teacher,
        {"own": attempts},
        temperature=s.temperature,
        budget=s.micro_tokens,
        autocast=run.autocast,
    )["own"]
    readings = [reading for reading in readings if reading]
    gap = divergence = None
    if readings:
        gap = float(numpy.concatenate([r.teacher - r.student for r in readings]).mean())
        divergence = float(numpy.concatenate([r.divergence for r in readings]).mean())
    signal, context = {}, NEAREST.get(own, own)
    if context != "none":  # opd's teacher reads no peers
        # ValueError: too few prompts, which print_preflight reports
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
        "teacher_gain": arm["lead"],
        "teacher_gain_error": arm["error"],
        "predicted_gain": weighted * (arm["lead"] or 0.0),
        "gap": gap,
        "divergence": divergence,
        "auc_context": context,
        "auc_prompts": signal.get("prompts_used"),
        "auc": signal["tables"]["log-ratio"][context]["AUC"] if signal else None,
    }
    return result | {"doubts": [text.format(**result) for when, text in DOUBTS if when(result)]}


def print_preflight(r: dict) -> None:
    print(
        f"student: {r['success']:.3f} right; groups {r['mixed']:.0%} mixed, "
        f"{r['all_wrong']:.0%} all wrong, {r['all_right']:.0%} all right; "
        f"{r['truncated']:.0%} truncated; {r['weighted']:.0%} with something to learn from"
    )
    print("\n".join([*measure.lines_of(r["measured"]), f"layout of the peers: {r['layout']}"]))
    if r["teacher_gain"] is not None:
        print(
            f"on all {r['problems']} problems the teacher leads the student by "
            f"{r['teacher_gain']:+.3f} (standard error {r['teacher_gain_error']:.3f})"
        )
    if r["gap"] is not None:
        print(
            f"on the student's tokens: log teacher - log student {r['gap']:+.3f} on average, "
            f"divergence {r['divergence']:.4f}"
        )
    if r["auc_context"] != "none":
        auc = "unknown" if r["auc"] is None else "{:.2f} [{:.2f}, {:.2f}]".format(*r["auc"])
        few = ", which are too few" if (r["auc_prompts"] or 0) < FEW else ""
        print(
            f"AUC of its scores after {r['auc_context']}: {auc} over the {r['auc_prompts'] or 0} "
            f"prompts with successes and failures to spare{few}"
        )
    print(f"success that the student could take over from its teacher: {r['predicted_gain']:+.3f}")
    if not r["doubts"]:
        print("verdict: train; nothing here speaks against it")
        return
    print("verdict: not like this, because")
    for reason in r["doubts"]:
        print(f"- {reason}")


# --- command line ---

COLUMNS = """
 Contexts: none, numbers of successes (s) and failures (f) held out of the same group, the three
 controls of --peers. AUC: how often a success scores higher than a failure of the same prompt, ties
 a half; like length: of pairs whose lengths differ by a tenth at most; leave-one-out: the AUC that
 peers drawn as in training would show, where a success reads one success fewer; pairs: strict wins
 over all pairs; Spearman, Kendall: with the verdict; top-1: how often the best-scored rollout is
 right; strongest tenth: share of the divergence on the tenth of the tokens where it is strongest;
 position: where it lies, 0 the first token, 1 the last. In brackets 95 % intervals over prompts."""


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """(options of this file, flags left for train.py); an error exits with status 2."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    page = commands.add_parser(
        "report",
        help="write OUT/report.html, of several runs OUT/comparison.html",
        allow_abbrev=False,
    )
    page.add_argument("folders", nargs="+", metavar="OUT", help="run folders")
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
    for before, word in zip(["", *rest], rest, strict=False):
        if word[:1] != "-" and before[:1] != "-":  # neither a flag nor the value of one
            parser.error(
                f"{options.command} takes no {word}: it asks the tiny student, or a model with "
                "--model and --data; report and show take the folder of a run"
            )
    return options, rest


def main(arguments: list[str] | None = None) -> None:
    options, rest = parse(arguments)
    try:
        if options.command == "report":
            return print(report.write_report(options.folders))
        if options.command == "show":
            return report.show(options.folder, step=options.step, context=options.context)
        if options.command == "signal":
            # larger groups than in training, because the peers are held out of them; if `rest`
            # has these flags too, its later ones win
            rest = ["--problems", "64", "--rollouts", "32", *rest]
        settings = train.parse(rest, "analyze.py")
        if options.command == "signal" and options.resamples < 1:
            raise ValueError(f"--resamples {options.resamples}: must be positive")
        if options.out and (options.out.is_dir() or not options.out.parent.is_dir()):
            raise ValueError(f"--out {options.out}: not a file in a folder that is there")
        if options.out:
            checkpoint.try_to_write(options.out.parent)
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
            print_signal(result)
        else:
            result = preflight(run, attempts)
            print_preflight(result)
        if options.out:
            options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    except BrokenPipeError:  # `| head` closed the pipe: no traceback, now or when Python exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except parallel.REFUSALS as error:
        print(f"analyze.py: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
