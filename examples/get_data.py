"""Rows of a public data set as JSON Lines: python examples/get_data.py gsm8k

Downloads from the Hub, once, and writes NAME/train.jsonl and NAME/eval.jsonl into --out (default
data/), in the rows of docs/data.md. Parquet needs pyarrow: pip install pyarrow
"""

import argparse
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from runtime import data

# name: (task, training rows, evaluation rows), as train.py's --task, --data and --eval-data
SETS = {
    "gsm8k": ("math", "openai/gsm8k:main/train", "openai/gsm8k:main/test"),
    "arc": ("science", "allenai/ai2_arc:ARC-Challenge/train", "allenai/ai2_arc:ARC-Challenge/test"),
    "mbpp": (
        "code",
        "google-research-datasets/mbpp:full/train",
        "google-research-datasets/mbpp:full/test",
    ),
}


def get_data(name: str, out: Path) -> list[Path]:
    """Write both files of a set, replacing older ones; ValueError, in one line, where it fails."""
    task, *specs = SETS[name]
    problems = [data.read_problems(spec, task, skip_bad_rows=True) for spec in specs]
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "train.jsonl", out / "eval.jsonl"]
    for path, some in zip(paths, problems, strict=True):
        rows = data.as_rows(some, task)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_text(text, "utf-8")
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=SETS)
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder (default data)")
    options = parser.parse_args()
    # offline, it warns at every retry
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        train, held_out = get_data(options.name, options.out / options.name)
    except (ValueError, OSError) as error:
        sys.exit(f"get_data.py: error: {error}")
    model = "HuggingFaceTB/SmolLM2-135M-Instruct"
    files = f"--data {train} --eval-data {held_out}"
    print(f"python train.py --task {SETS[options.name][0]} --model {model} {files}")


if __name__ == "__main__":
    main()
