"""Short code verdicts a second against starting `[sys.executable, file]` for each test: python benchmarks/bench_verifiers.py

Both sides run the same program on the same input and compare its output. They alternate within one run, because other work on
the machine changes absolute times by more than the ratio; the ratio of each pair is one sample. `one` verifies after another
on one thread, `batch` is verify_batch on all cores; the baseline starts one interpreter after another, `pool` one per core."""

import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import verifiers                                              # noqa: E402

PROGRAM = "a, b = map(int, input().split())\nprint(a + b)\n"
ANSWER = {"type": "stdin", "tests": [{"input": "3 4\n", "output": "7\n"}]}


def start_interpreter(path):
    done = subprocess.run([sys.executable, path], input="3 4\n", capture_output=True, text=True)
    assert done.stdout == "7\n"


def rate(count, work):
    start = time.perf_counter()
    work(count)
    return count / (time.perf_counter() - start)


def main(pairs=15):
    serial = iter(range(10**9))                               # a comment makes every response new: nothing is judged once for many
    fresh = lambda count: [f"```python\n{PROGRAM}# {next(serial)}\n```" for _ in range(count)]          # noqa: E731

    def batch(count):
        assert all(verdict.correct for verdict in verifiers.verify_batch("code", fresh(count), [ANSWER] * count))

    print(verifiers.describe_isolation())
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file, ThreadPoolExecutor(verifiers._cores()) as pool:
        file.write(PROGRAM), file.flush()
        sides = {"start": (20, lambda n: [start_interpreter(file.name) for _ in range(n)]),
                 "pool": (40, lambda n: list(pool.map(start_interpreter, [file.name] * n))),
                 "one": (100, lambda n: [verifiers.verify_code(text, ANSWER) for text in fresh(n)]), "batch": (200, batch)}
        batch(20)
        samples = [{name: rate(*side) for name, side in sides.items()} for _ in range(pairs)]
    for name in sides:
        rates = sorted(sample[name] for sample in samples)
        print(f"{name:6} {statistics.median(rates):7.1f} a second  (middle half {rates[pairs // 4]:.1f} to {rates[-1 - pairs // 4]:.1f})")
    for name, base in (("one", "start"), ("batch", "pool"), ("batch", "start")):
        ratios = sorted(sample[name] / sample[base] for sample in samples)
        print(f"{name} / {base}: {statistics.median(ratios):.1f} times  (middle half {ratios[pairs // 4]:.1f} to {ratios[-1 - pairs // 4]:.1f})")


if __name__ == "__main__":
    main()
