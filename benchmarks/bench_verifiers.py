"""Short code verdicts a second against starting `[sys.executable, file]` for each test, in one run.

Both sides run the same program on the same input and compare its output. They alternate, because
other work on the machine changes absolute times by more than the ratio; the ratio of each pair is
one sample. `one` verifies after another on one thread, `batch` is verify_batch on all cores; the
baseline `start` starts one interpreter after another, `pool` one per core. Other work on the
machine also lowers the ratios of `batch`: where all cores are busy, two processes at a time get
less than twice what one gets. So the last line compares processor time, of which batch can use all
cores'.

    python benchmarks/bench_verifiers.py [samples]
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sandbox  # noqa: E402
import verifiers  # noqa: E402

PROGRAM = "a, b = map(int, input().split())\nprint(a + b)\n"
ANSWER = {"type": "stdin", "tests": [{"input": "3 4\n", "output": "7\n"}]}


def start_interpreter(path):
    done = subprocess.run([sys.executable, path], input="3 4\n", capture_output=True, text=True)
    assert done.stdout == "7\n"


def rate(count, work):
    start = time.perf_counter()
    work(count)
    return count / (time.perf_counter() - start)


def processor_seconds(count, work):
    """Of this process and all that it starts, the fork server with them: it ends within the
    measured time."""
    sandbox.close()
    before = sum(os.times()[:4])
    work(count)
    sandbox.close()
    return sum(os.times()[:4]) - before


def spread(values, pairs):
    values = sorted(values)
    low, high = values[pairs // 4], values[-1 - pairs // 4]
    return f"{statistics.median(values):7.1f}  (middle half {low:.1f} to {high:.1f})"


def main(pairs=15):
    serial = iter(range(10**9))

    def fresh(count):  # equal responses would be judged once
        return [f"```python\n{PROGRAM}# {next(serial)}\n```" for _ in range(count)]

    def batch(count):
        assert all(
            verdict.correct
            for verdict in verifiers.verify_batch("code", fresh(count), [ANSWER] * count)
        )

    print(verifiers.describe_isolation())
    cores = sandbox.cores()
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file, ThreadPoolExecutor(cores) as pool:
        file.write(PROGRAM), file.flush()
        sides = {
            "start": (20, lambda n: [start_interpreter(file.name) for _ in range(n)]),
            "pool": (40, lambda n: list(pool.map(start_interpreter, [file.name] * n))),
            "one": (100, lambda n: [verifiers.verify_code(text, ANSWER) for text in fresh(n)]),
            "batch": (200, batch),
        }
        batch(20)
        samples = [{name: rate(*side) for name, side in sides.items()} for _ in range(pairs)]
        start = processor_seconds(40, sides["start"][1]) / 40
        verdict = (processor_seconds(520, batch) - processor_seconds(20, batch)) / 500
    for name in sides:
        print(f"{name:14} a second: {spread([sample[name] for sample in samples], pairs)}")
    for name, base in (("one", "start"), ("batch", "pool"), ("batch", "start")):
        ratios = [sample[name] / sample[base] for sample in samples]
        print(f"{name + ' / ' + base:14} times:    {spread(ratios, pairs)}")
    print(
        f"processor time: {start * 1e3:.1f} ms a start, {verdict * 1e3:.1f} ms a verdict of batch; "
        f"{cores} idle cores allow {cores * start / verdict:.1f} times"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 15)
