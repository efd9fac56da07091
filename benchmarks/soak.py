"""Soak: a long run of the smallest tiny world must not grow. Needs Linux (/proc); the trainer runs
in its own process.

    python benchmarks/soak.py                 # 2,000 steps; about ten minutes on one CPU core

Every 50 steps: resident memory of the trainer and of its children, open files, processes, time per
step. At the end the resident memory against that at step 200, the range of the counts, and the time
per step of the first and the last quarter. Exit status 1 where memory has grown by more than 5 %,
files or processes by more than 2, or the time per step by more than a quarter. Step times leave out
evaluations and checkpoints, which lie between the steps.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def family(pid) -> list[int]:
    """The process and all its descendants."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int(
                (entry / "stat").read_text().rpartition(")")[2].split()[1]
            )
        except OSError:  # gone since it was listed
            pass
    found = [pid]
    for parent in found:  # grows while it is walked
        found += [child for child, of in parents.items() if of == parent]
    return found


def resident(pid) -> float:
    """MiB of resident memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def sample(pid) -> dict:
    mother, *children = family(pid)
    return {
        "rss": resident(mother),
        "rss_children": sum(map(resident, children)),
        "files": len(os.listdir(f"/proc/{mother}/fd")),
        "processes": 1 + len(children),
    }


def steps_in(path) -> list[dict]:
    lines = path.read_text("utf-8").split("\n")[:-1] if path.is_file() else []
    return [record for record in map(json.loads, lines) if "loss" in record]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--task", default="math")
    parser.add_argument(
        "--out", type=Path, help="folder of the run, new; the warmed-up student lies beside it"
    )
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="soak-")) / "run"
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "--task",
        options.task,
        "--steps",
        str(options.steps),
        "--problems",
        "2",
        "--rollouts",
        "2",
        "--eval-every",
        "50",
        "--save-every",
        "50",
        "--eval-problems",
        "4",
        "--eval-rollouts",
        "2",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    with open(f"{out}.log", "w") as log:
        trainer = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    samples, reached = {}, 0
    while trainer.poll() is None:
        time.sleep(1)
        reached = len(steps_in(out / "metrics.jsonl"))
        if reached // 50 * 50 not in {0, *samples}:
            try:
                now = samples[reached // 50 * 50] = sample(trainer.pid)
            except OSError:  # it ended just now
                break
            print(
                "step {:5d}  resident {rss:.1f} MiB, of children {rss_children:.1f} MiB  "
                "open files {files}  processes {processes}".format(reached, **now),
                flush=True,
            )
    if trainer.wait():
        sys.exit(f"{' '.join(command)}\nended with status {trainer.returncode}: see {out}.log")
    times = [sum(step["seconds"].values()) for step in steps_in(out / "metrics.jsonl")]
    first, last = samples[200], samples[max(samples)]
    quarter = len(times) // 4
    print(
        f"resident memory {first['rss']:.1f} MiB at step 200, "
        f"{last['rss']:.1f} MiB at step {max(samples)}: {last['rss'] / first['rss'] - 1:+.1%}"
    )
    grown = last["rss"] > 1.05 * first["rss"]
    for name in ("files", "processes"):
        values = [s[name] for step, s in samples.items() if step >= 200]
        print(f"{name}: {min(values)} to {max(values)}")
        grown |= max(values) > values[0] + 2  # a file may be open just when it is looked at
    early, late = statistics.median(times[:quarter]), statistics.median(times[-quarter:])
    print(f"seconds a step: {early:.4f} in the first quarter, {late:.4f} in the last (medians)")
    sys.exit(grown or late > 1.25 * early)


if __name__ == "__main__":
    main()
