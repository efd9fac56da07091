"""Compare the methods on the tiny math world: same rollout budget, each at its best learning rate
of one small grid.

    # about 20 minutes on two idle cores; picks up where it stopped
    python benchmarks/compare_methods.py

Every run is `python train.py --task math ...` in a process of its own with one thread, so any cell
can be repeated alone. The learning rate is chosen by the final held-out mean@8 on another seed than
those of the table; the intervals are 95 % bootstrap intervals over the table's seeds, which vary
the secret meanings, the order of the data and the sampling, not the warmed-up student. Cells
already in OUT are not run again: use a fresh one after changing the code. Writes OUT/table.md and
OUT/table.json.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
METHODS = {
    name: ["--peers", name]
    for name in ("contrastive", "positive", "random", "unrelated", "success_only")
}
METHODS |= {name: ["--method", name] for name in ("sdpo", "grpo", "rft")}
METHODS |= {
    f"{name}, no feedback": ["--peers", name, "--no-feedback"]
    for name in ("contrastive", "positive")
}


def run(method, lr, seed, options) -> dict[int, float]:
    """Train one cell unless its result is there; returns {step: held-out mean@8}."""
    name = method.replace(", ", "-").replace(" ", "-")
    folder = options.out / f"{name}-{lr}-{seed}-{options.steps}x{options.problems}"
    if not (folder / "step-{:06d}".format(options.steps)).is_dir():
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            "--task",
            "math",
            *METHODS[method],
            "--lr",
            str(lr),
            "--seed",
            str(seed),
            "--steps",
            str(options.steps),
            "--problems",
            str(options.problems),
            "--eval-every",
            str(options.steps // 4),
            "--save-every",
            str(options.steps),
            "--device",
            "cpu",
            "--out",
            str(folder),
        ]
        done = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    curve = {line["step"]: line["eval_mean_at_k"] for line in lines if "eval_mean_at_k" in line}
    print(
        f"{method:20s} lr {lr:g} seed {seed}:",
        *(f"{step}: {v:.3f}" for step, v in curve.items()),
        flush=True,
    )
    return curve


def interval(values) -> str:
    """Mean and 95 % bootstrap interval over seeds."""
    rng = random.Random(0)
    means = sorted(statistics.fmean(rng.choices(values, k=len(values))) for _ in range(10_000))
    return f"{statistics.fmean(values):.2f} [{means[250]:.2f}, {means[-251]:.2f}]"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--choice-seeds", nargs="+", type=int, default=[100], help="choose the learning rate"
    )
    parser.add_argument("--lrs", nargs="+", type=float, default=[5e-4, 1e-3, 2e-3])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if options.steps % 4:
        parser.error(
            "--steps must be a multiple of 4: the table reads the curves at a quarter and at half"
        )
    with ThreadPoolExecutor(options.jobs) as pool:
        run(
            options.methods[0], options.lrs[0], options.choice_seeds[0], options
        )  # makes the student for all
        trial = {
            (m, lr, s): pool.submit(run, m, lr, s, options)
            for m in options.methods
            for lr in options.lrs
            for s in options.choice_seeds
        }
        score = {key: job.result()[options.steps] for key, job in trial.items()}
        best = {
            m: max(options.lrs, key=lambda lr: sum(score[m, lr, s] for s in options.choice_seeds))
            for m in options.methods
        }
        jobs = {
            m: [pool.submit(run, m, best[m], s, options) for s in options.seeds]
            for m in options.methods
        }
        curves = {m: [job.result() for job in jobs[m]] for m in options.methods}
    quarters = [options.steps // 4, options.steps // 2, options.steps]
    rows = [
        f"| method | learning rate | {' | '.join(f'step {q}' for q in quarters)} "
        "| each seed at the end |",
        "| --- " * 6 + "|",
    ]
    for m in options.methods:
        cells = [interval([curve[q] for curve in curves[m]]) for q in quarters]
        each = ", ".join(f"{curve[options.steps]:.2f}" for curve in curves[m])
        rows.append(f"| {m} | {best[m]:g} | {' | '.join(cells)} | {each} |")
    (options.out / "table.md").write_text("\n".join(rows) + "\n", "utf-8")
    choice = {f"{m} {lr:g} {s}": value for (m, lr, s), value in score.items()}
    (options.out / "table.json").write_text(
        json.dumps({"best_lr": best, "curves": curves, "choice": choice}, indent=1)
    )
    print("\n".join(rows))


if __name__ == "__main__":
    main()
