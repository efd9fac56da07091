"""How much there is to read: python tests/count_code.py runs/count [-v]

The folder is a run's; nothing is written to it, but the tiny student is kept beside it.

Counted are Python tokens of the project without tests and benchmarks (comments, line ends and
indentation left out), then what one step of the tiny math world enters: functions of this project,
files, and calls from one file to another, each pair of caller and callee once, with --plain and
without. -v lists the functions.
"""

import io
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def python_tokens() -> int:
    """Tokens of every Python file that a reader of the project may want to read."""
    total = 0
    for pattern in ("*.py", "runtime/*.py", "examples/*.py"):
        for path in ROOT.glob(pattern):
            read = io.BytesIO(path.read_bytes()).readline
            total += sum(t.type not in LAYOUT for t in tokenize.tokenize(read))
    return total


def entered(function) -> tuple[set, set]:
    """(functions, calls between files) of this project that a call of `function` enters."""
    functions, calls = set(), set()

    def name(frame):
        code = frame.f_code
        path = Path(code.co_filename)
        if ROOT not in path.parents or "tests" in path.parts or code.co_name[0] == "<":
            return None  # a comprehension belongs to its function
        return str(path.relative_to(ROOT)), code.co_qualname.replace(".<locals>", "")

    def profile(frame, event, argument):
        if event != "call" or (callee := name(frame)) is None:
            return
        functions.add(callee)
        caller = frame.f_back
        while caller is not None and name(caller) is None:
            caller = caller.f_back  # through torch, a thread pool, functools
        if caller is not None and name(caller)[0] != callee[0]:
            calls.add((name(caller), callee))

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return functions, calls


def main(folder: str) -> None:
    import train
    from runtime import setup

    print(f"{python_tokens():,} Python tokens")
    for plain in (True, False):
        settings = train.Settings(task="math", out=folder, plain=plain, problems=8, rollouts=4)
        run = setup.prepare(settings)
        functions, calls = entered(lambda run=run: train.train_step(run, 2))
        print(
            f"one step, {'plain' if plain else 'fast'}: {len(functions)} functions in "
            f"{len({f for f, _ in functions})} files, {len(calls)} calls from file to file"
        )
        if "-v" in sys.argv:
            for function in sorted(functions):
                print("  ", *function)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("give the folder of a run: python tests/count_code.py runs/count")
    main(sys.argv[1])
