r"""Do the methods teach a real model something? A small pretrained model on two small tasks made up
here, on two CPU cores.

    # hours; goes on where it stopped
    python benchmarks/real_model.py --model HuggingFaceTB/SmolLM2-135M-Instruct
    python benchmarks/real_model.py --model FOLDER --task capitals --arms grpo contrastive,turns \
        --seeds 0

Two tasks. capitals: name the capital of a country (math verifier, which compares words); functions:
write a one-line Python function (code verifier). The evaluation asks in words that training never
uses, and some of its problems are about countries or functions that training never shows. Every run
is `python train.py ...` in a process of its own with one thread. The learning rate is the better of
--lrs on another seed than those of the table, after --choice-steps steps. Intervals are 95 % t
intervals over seeds; "minus grpo" pairs the runs by seed. Writes OUT/NAME/ for each run (finished
ones are not run again), OUT/table.md, OUT/TASK.svg and OUT/results.json.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Feedback is left out of mopd, as --layout auto does here: it measures that this teacher does not
# end its answers after it.
ARMS = {
    f"{peers},{layout}": ["--peers", peers, "--layout", layout, "--no-feedback"]
    for layout in ("turns", "turn")
    for peers in ("contrastive", "positive")
}
ARMS |= {
    "sdpo,turns": ["--method", "sdpo", "--layout", "turns"],
    "grpo": ["--method", "grpo"],
    "contrastive,turns,feedback": ["--peers", "contrastive", "--layout", "turns"],
}
CAPITALS = """France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Poland
Warsaw, Austria Vienna, Hungary Budapest, Greece Athens, Norway Oslo, Sweden Stockholm, Finland
Helsinki, Denmark Copenhagen, Ireland Dublin, Russia Moscow, Ukraine Kyiv, Turkey Ankara, Egypt
Cairo, Kenya Nairobi, Japan Tokyo, China Beijing, India New_Delhi, Pakistan Islamabad, Iran
Tehran, Iraq Baghdad, Thailand Bangkok, Vietnam Hanoi, Indonesia Jakarta, Philippines Manila,
Australia Canberra, Canada Ottawa, Mexico Mexico_City, Cuba Havana, Brazil Brasilia, Argentina
Buenos_Aires, Chile Santiago, Peru Lima, Colombia Bogota, Venezuela Caracas, Ecuador Quito,
Uruguay Montevideo, Morocco Rabat, Algeria Algiers, Tunisia Tunis, Ethiopia Addis_Ababa, Nigeria
Abuja, Ghana Accra, Senegal Dakar, Belgium Brussels, Switzerland Bern, Romania Bucharest, Bulgaria
Sofia, Serbia Belgrade, Croatia Zagreb, Lebanon Beirut, Syria Damascus"""
FUNCTIONS = {
    "add": ("x plus {n}", lambda x, n: x + n),
    "times": ("x times {n}", lambda x, n: x * n),
    "minus": ("x minus {n}", lambda x, n: x - n),
    "from": ("{n} minus x", lambda x, n: n - x),
}
# train.py, but for the coloured tokens of evaluated steps, which would take a quarter of the time
# here.
WITHOUT_VIEW = """
import sys
import train
from runtime import report
report.VIEW_GROUPS = 0
train.main(sys.argv[1:])
"""
SPARE = 7  # every seventh country or function is kept out of training


def add_rows(train, held_out, n, asked, other, answer):
    """Problem n goes to the training rows as `asked`, to the evaluation's as `other`, or both."""
    row = {"answer": answer, "seen": n % SPARE != 0}
    if n % SPARE:
        train += [{"prompt": question, **row} for question in asked]
    if n % SPARE == 0 or n % 3 == 0:
        held_out.append({"prompt": other, **row})


def capitals() -> tuple[list[dict], list[dict]]:
    """(training rows, evaluation rows); "seen" says whether training asks about the country."""
    train, held_out = [], []
    for n, pair in enumerate(CAPITALS.replace("\n", " ").split(", ")):
        country, city = pair.split()
        answer = f"\\text{{{city.replace('_', ' ')}}}"
        asked = [f"What is the capital of {country}?", f"Name the capital city of {country}."]
        asked = [f"{question} Reply only with: The answer is <city>." for question in asked]
        other = f"Which city is the capital of {country}? Reply only with: The answer is <city>."
        add_rows(train, held_out, n, asked, other, answer)
    return train, held_out


def functions() -> tuple[list[dict], list[dict]]:
    """The same of one-line Python functions. The model knows how; it rarely stops when the function
    is written."""
    train, held_out = [], []
    for n, (name, number) in enumerate(
        (name, number) for number in range(2, 14) for name in FUNCTIONS
    ):
        said, compute = FUNCTIONS[name]
        called, said = f"{name}_{number}", said.format(n=number)
        tests = [{"input": str(x), "output": str(compute(x, number))} for x in (5, 12)]
        asked = [
            f"Write a Python function {called}(x) that returns {said}.",
            f"Define {called}(x) in Python. It returns {said}.",
        ]
        other = f"Implement {called}(x), which gives back {said}, in Python."
        answer = {"type": "functional", "entry_point": called, "tests": tests}
        add_rows(train, held_out, n, asked, other, answer)
    return train, held_out


TASKS = {
    "capitals": ("math", capitals, 16),
    "functions": ("code", functions, 64),
}  # verifier, rows, new tokens


def run(task, arm, lr, seed, steps, options) -> dict:
    """One run, unless its result is there: {"curve": {step: {...}}, "seconds", ...}."""
    model = f"{Path(options.model).name}-{options.dtype}"
    folder = options.out / f"{model}-{task}-{arm.replace(',', '-')}-{lr}-{seed}-{steps}"
    result = folder.parent / f"{folder.name}.json"
    if result.is_file():
        return json.loads(result.read_text("utf-8"))
    shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
    verifier, _, new_tokens = TASKS[task]
    quarter = max(1, steps // 4) if steps == options.steps else steps
    command = [
        sys.executable,
        "-c",
        WITHOUT_VIEW,
        "--task",
        verifier,
        "--model",
        options.model,
        *ARMS[arm],
        "--data",
        str(options.out / f"{task}.jsonl"),
        "--eval-data",
        str(options.out / f"{task}-eval.jsonl"),
        "--lr",
        str(lr),
        "--seed",
        str(seed),
        "--steps",
        str(steps),
        "--warmup-steps",
        "4",
        "--problems",
        "8",
        "--rollouts",
        "8",
        "--max-new-tokens",
        str(new_tokens),
        "--temperature",
        "0.7",
        "--eval-temperature",
        "0.7",
        "--eval-top-p",
        "1",
        "--eval-every",
        str(quarter),
        "--save-every",
        str(steps),
        "--keep",
        "1",
        "--micro-tokens",
        "16384",
        "--device",
        "cpu",
        "--dtype",
        options.dtype,
        "--out",
        str(folder),
    ]
    start = time.time()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    lines = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    seen = [row["seen"] for row in read(options.out / f"{task}-eval.jsonl")]
    curve = {}
    for line in lines:
        if "eval_k" in line:
            new = [
                count / line["eval_k"]
                for row, count in line["eval_right"].items()
                if not seen[int(row)]
            ]
            curve[str(line["step"])] = {
                "mean": line["eval_mean_at_k"],
                "pass": line["eval_pass_at_k"],
                "distinct": line["eval_distinct_answers"],
                "unseen": statistics.fmean(new),
                "right": line["eval_right"],
            }
    steps_of = [line for line in lines if "loss" in line]
    numbers = {
        "curve": curve,
        "seconds": time.time() - start,
        "arm": arm,
        "lr": lr,
        "seed": seed,
        "task": task,
        "warnings": [text for text in done.stdout.splitlines() if text.startswith("warning: step")],
        **{
            name: [line[name] for line in steps_of]
            for name in (
                "success",
                "truncated",
                "stop_gap",
                "teacher_gap",
                "loss",
                "distinct_answers",
                "mean_completion_length",
            )
        },
    }
    result.write_text(json.dumps(numbers) + "\n", "utf-8")
    for checkpoint in folder.glob("step-*"):
        shutil.rmtree(checkpoint)  # 2 GB each
    print(
        f"{task} {arm:18s} lr {lr:g} seed {seed}: "
        + ", ".join(f"{step}: {point['mean']:.3f}" for step, point in curve.items()),
        flush=True,
    )
    return numbers


# Two-sided 95 % points of Student's t for 2, 3, ... values.
T = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def interval(values) -> str:
    """Mean and 95 % t interval of a few values; the mean alone of one."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.2f}"
    half = T[min(len(values), len(T) + 1) - 2] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.2f} [{mean - half:.2f}, {mean + half:.2f}]"


COLOURS = ("#1f77b4", "#17becf", "#7f7f7f", "#c7c7c7", "#d62728", "#2ca02c", "#9467bd")


def picture(task, options, found) -> str:
    """Held-out mean@8 by step as SVG: a line for each arm, a band from the lowest to the highest
    seed."""
    x, y = (lambda step: 50 + 440 * int(step) / options.steps), (lambda value: 240 - 200 * value)
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 280" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="700" height="280" fill="white"/>',
    ]
    for value in (0, 0.25, 0.5, 0.75, 1):
        parts.append(
            f'<path d="M50 {y(value)}H490" stroke="#ddd"/>'
            f'<text x="44" y="{y(value) + 4}" text-anchor="end">{value:g}</text>'
        )
    for a, colour in zip(options.arms, COLOURS, strict=False):
        curves = [found[task, a, seed]["curve"] for seed in options.seeds]
        steps = sorted(curves[0], key=int)
        values = {step: [curve[step]["mean"] for curve in curves] for step in steps}
        band = [f"{x(t):.0f},{y(min(values[t])):.0f}" for t in steps] + [
            f"{x(t):.0f},{y(max(values[t])):.0f}" for t in reversed(steps)
        ]
        line = " ".join(f"{x(t):.0f},{y(statistics.fmean(values[t])):.0f}" for t in steps)
        parts.append(
            f'<polygon points="{" ".join(band)}" fill="{colour}" opacity="0.15"/>'
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
    ends = sorted(
        (
            statistics.fmean(
                found[task, a, s]["curve"][str(options.steps)]["mean"] for s in options.seeds
            ),
            a,
            colour,
        )
        for a, colour in zip(options.arms, COLOURS, strict=False)
    )
    at = 250.0
    for value, a, colour in ends:  # from below; labels keep 14 units apart
        at = min(at - 14, y(value) + 4)
        parts.append(f'<text x="496" y="{at:.0f}" fill="{colour}">{a} {value:.2f}</text>')
    parts += [
        f'<text x="{x(t):.0f}" y="256" text-anchor="middle">{t}</text>'
        for t in range(0, options.steps + 1, options.steps // 4)
    ]
    name = Path(options.model).name
    return (
        "\n".join(
            [
                *parts,
                f'<text x="50" y="20">{task}: held-out mean@8 by step, mean and range of '
                f"{len(options.seeds)} seeds ({name})</text>",
                "</svg>",
            ]
        )
        + "\n"
    )


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model", required=True, help="a Hub id or a folder that from_pretrained reads"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/real-model"))
    parser.add_argument("--task", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS)[:6], choices=ARMS)
    parser.add_argument("--lrs", nargs="+", type=float, default=[1e-5, 3e-5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--choice-seed", type=int, default=100)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--choice-steps", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if options.steps % 4 or options.steps == options.choice_steps:
        parser.error("--steps must be a multiple of 4 and another number than --choice-steps")
    options.out.mkdir(parents=True, exist_ok=True)
    for task in options.task:
        for name, rows in zip((task, f"{task}-eval"), TASKS[task][1](), strict=True):
            (options.out / f"{name}.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in rows), "utf-8"
            )
    with ThreadPoolExecutor(options.jobs) as pool:
        trial = {
            (t, a, lr): pool.submit(
                run, t, a, lr, options.choice_seed, options.choice_steps, options
            )
            for t in options.task
            for a in options.arms
            for lr in options.lrs
        }
        end = str(options.choice_steps)
        score = {key: job.result()["curve"][end]["mean"] for key, job in trial.items()}
        best = {
            (t, a): max(options.lrs, key=lambda lr, key=(t, a): score[*key, lr])
            for t in options.task
            for a in options.arms
        }
        jobs = {
            (t, a, s): pool.submit(run, t, a, best[t, a], s, options.steps, options)
            for s in options.seeds
            for t in options.task
            for a in options.arms
        }  # seeds outermost: usable early
        found = {key: job.result() for key, job in jobs.items()}
    quarters = [str(options.steps * n // 4) for n in (1, 2, 4)]
    columns = [
        *(f"mean@8, step {q}" for q in quarters),
        "minus grpo",
        "pass@8",
        "distinct answers",
        "unseen, mean@8",
        "seconds",
    ]
    rows = [
        f"| task | arm | lr | start | {' | '.join(columns)} |",
        "| --- " * (len(columns) + 4) + "|",
    ]
    for t, a in best:
        runs = [found[t, a, s] for s in options.seeds]

        def at(step, name, runs=runs):
            return interval([one["curve"][step][name] for one in runs])

        start = statistics.fmean(one["curve"]["0"]["mean"] for one in runs)
        last = [at(quarters[-1], name) for name in ("pass", "distinct", "unseen")]
        if a != "grpo" and "grpo" in options.arms:
            pairs = [
                (
                    one["curve"][quarters[-1]]["mean"],
                    found[t, "grpo", one["seed"]]["curve"][quarters[-1]]["mean"],
                )
                for one in runs
            ]
            last.insert(0, interval([mine - its for mine, its in pairs]))
        else:
            last.insert(0, "")
        rows.append(
            f"| {t} | {a} | {best[t, a]:g} | {start:.2f} | "
            + " | ".join(
                [
                    *(at(q, "mean") for q in quarters),
                    *last,
                    f"{statistics.fmean(one['seconds'] for one in runs):.0f}",
                ]
            )
            + " |"
        )
    for t in options.task:
        (options.out / f"{t}.svg").write_text(picture(t, options, found), "utf-8")
    (options.out / "table.md").write_text("\n".join(rows) + "\n", "utf-8")
    results = {
        "choice": {" ".join(map(str, key)): value for key, value in score.items()},
        "runs": list(found.values()),
    }
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
