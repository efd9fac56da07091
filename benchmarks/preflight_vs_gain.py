"""Does `analyze.py preflight` predict what training brings? On tiny worlds that differ in task,
group size and warm-up.

    # forty minutes on a CPU core; picks up where it stopped
    python benchmarks/preflight_vs_gain.py

For each configuration and seed: the preflight numbers of 32 problems x K rollouts, then the gain in
held-out mean@8 of a short run (30 steps of 16 problems x K, same learning rate), and over all of
them the rank correlation of each number with the gain. A short warm-up gives a student that reads
peers badly. Writes OUT/NAME.json for each and OUT/table.md, whose rows are means over seeds.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import analyze
import tiny
import train
from runtime import report

CONFIGURATIONS = [
    ("math", 8, 100),
    ("math", 8, 200),
    ("math", 8, 500),
    ("math", 4, 500),
    ("science", 8, 150),
    ("science", 8, 500),
    ("tool", 8, 100),
    ("tool", 8, 500),
    ("tool", 4, 250),
]  # task, K, warm-up
NUMBERS = ("predicted_gain", "gap", "divergence", "auc", "mixed", "success")


def measure(task, rollouts, warm_up, seed, options) -> dict:
    """Preflight and gain of one configuration and seed, read from its file when it is there."""
    configuration = f"{task}-{rollouts}-{warm_up}"
    name = f"{configuration}-{seed}"
    path, folder = options.out / f"{name}.json", options.out / name
    if path.is_file():
        return json.loads(path.read_text("utf-8"))
    tiny.WARM_UP = dict(tiny.WARM_UP, steps=warm_up, batch=48)
    flags = [
        "--task",
        task,
        "--rollouts",
        str(rollouts),
        "--device",
        "cpu",
        "--steps",
        str(options.steps),
        "--eval-every",
        str(options.steps),
        "--seed",
        str(seed),
    ]
    run = train.prepare(train.parse([*flags, "--out", str(options.out / f"{name}-preflight")]))
    result = analyze.preflight(run, analyze.sample_groups(run))
    analyze.print_preflight(result)
    if not (folder / f"step-{options.steps:06d}").is_dir():
        train.main([*flags, "--problems", "16", "--out", str(folder)])
    held = [
        r["eval_mean_at_k"] for r in report.read_records(folder / "metrics.jsonl") if "eval_k" in r
    ]
    result |= {
        "configuration": configuration,
        "start": held[0],
        "end": held[-1],
        "gain": held[-1] - held[0],
    }
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/preflight"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = [
        measure(*configuration, seed, options)
        for configuration in CONFIGURATIONS
        for seed in options.seeds
    ]
    for r in results:
        r["auc"] = r["auc"] and r["auc"][0]

    def mean(values):
        return analyze.mean([value for value in values if value is not None])

    def cell(x):
        return "-" if x is None else f"{x:.3f}"

    rows = [
        f"| task-K-warm-up | {' | '.join(NUMBERS)} | held-out, start and end "
        "| gain, each seed | seeds in doubt |",
        "| --- " * (len(NUMBERS) + 4) + "|",
    ]
    for same in sorted(
        report.grouped(results, of=lambda r: r["configuration"]),
        key=lambda s: -mean(r["gain"] for r in s),
    ):
        values = " | ".join(cell(mean(r[name] for r in same)) for name in NUMBERS)
        rows.append(
            f"| {same[0]['configuration']} | {values} | {mean(r['start'] for r in same):.3f}, "
            f"{mean(r['end'] for r in same):.3f} | "
            f"{', '.join(format(r['gain'], '+.3f') for r in same)} | "
            f"{sum(bool(r['doubts']) for r in same)} of {len(same)} |"
        )
    for name in NUMBERS:
        pairs = [(r[name], r["gain"]) for r in results if r[name] is not None]
        if len(pairs) > 2:
            rho = analyze.spearman(*zip(*pairs, strict=True))
            rows.append(f"Spearman of {name} with the gain: {rho:+.2f} ({len(pairs)} runs)")
    (options.out / "table.md").write_text("\n".join(rows) + "\n", "utf-8")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
