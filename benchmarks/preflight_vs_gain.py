"""Does `analyze.py preflight` predict what training brings? On tiny worlds that differ in task, group size and warm-up.

    python benchmarks/preflight_vs_gain.py            # some twenty minutes on a CPU; picks up where it stopped

For each configuration: the preflight numbers of 32 problems x K rollouts, then the gain in held-out mean@8 of a short
run (30 steps of 16 problems x K, same learning rate), and over all of them the rank correlation of each number with the
gain. A short warm-up gives a student that reads peers badly. Writes OUT/NAME.json for each and OUT/table.md.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import analyze
import report
import tiny
import train

CONFIGURATIONS = [("math", 8, 100), ("math", 8, 200), ("math", 8, 500), ("math", 4, 500), ("science", 8, 150),
                  ("science", 8, 500), ("tool", 8, 100), ("tool", 8, 500), ("tool", 4, 250)]        # task, K, warm-up
NUMBERS = ("predicted_gain", "teacher_gain", "gap", "divergence", "auc", "mixed", "success")


def measure(task, rollouts, warm_up, options) -> dict:
    """Preflight and gain of one configuration, read from its file when it is there."""
    name = f"{task}-{rollouts}-{warm_up}"
    path, folder = options.out / f"{name}.json", options.out / name
    if path.is_file():
        return json.loads(path.read_text("utf-8"))
    tiny.WARM_UP = dict(tiny.WARM_UP, steps=warm_up)
    flags = ["--task", task, "--rollouts", str(rollouts), "--device", "cpu", "--steps", str(options.steps),
             "--eval-every", str(options.steps)]
    run = train.prepare(train.parse([*flags, "--out", str(options.out / f"{name}-preflight")]))
    result = analyze.preflight(run, analyze.sample_groups(run))
    analyze.print_preflight(result)
    if not (folder / f"step-{options.steps:06d}").is_dir():
        train.main([*flags, "--problems", "16", "--out", str(folder)])
    held = [r["eval_mean_at_k"] for r in report.read_records(folder / "metrics.jsonl") if "eval_k" in r]
    result |= {"name": name, "start": held[0], "end": held[-1], "gain": held[-1] - held[0]}
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/preflight"))
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = [measure(*configuration, options) for configuration in CONFIGURATIONS]
    value = lambda r, name: r[name] if not isinstance(r[name], list) else r[name][0]
    cell = lambda x: "-" if x is None else f"{x:.3f}"
    rows = [f"| task-K-warm-up | {' | '.join(NUMBERS)} | held-out, start and end | gain | doubts |",
            "| --- " * (len(NUMBERS) + 4) + "|"]
    for r in sorted(results, key=lambda r: -r["gain"]):
        rows.append(f"| {r['name']} | {' | '.join(cell(value(r, name)) for name in NUMBERS)} | {r['start']:.3f}, "
                    f"{r['end']:.3f} | {r['gain']:+.3f} | {len(r['doubts'])} |")
    for name in NUMBERS:
        pairs = [(value(r, name), r["gain"]) for r in results if value(r, name) is not None]
        rows.append(f"Spearman of {name} with the gain: {analyze.spearman(*zip(*pairs)):+.2f} ({len(pairs)} runs)")
    (options.out / "table.md").write_text("\n".join(rows) + "\n", "utf-8")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
