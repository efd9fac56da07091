#!/usr/bin/env bash
# Expected: datasets reads {"answer": "007"} as the text 007, or refuses a column of two types.
# Happens: one row with a bare integer makes the column Json(), and its strings are parsed: "007"
# arrives as the integer 7, "1e3" as 1000.0, "[1]" as a list. Strings alone stay text. No warning.
# Versions: datasets 5.2.0.
# Matters here: gold answers change with the company they keep; a verifier compares what is left.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0
cat > "$folder/show.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import datasets

print("datasets", datasets.__version__)
datasets.disable_progress_bars()
folder = Path(sys.argv[1])


def read(name, answers):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"answer": answer}) + "\n" for answer in answers))
    files = {"data_files": str(path), "cache_dir": str(folder / name)}
    table = datasets.load_dataset("json", **files)["train"]
    print(f"{name}: {answers} -> {table['answer'][:]}, {table.features['answer']}")
    return table["answer"][:]


texts = ["007", "1e3", "[1]", "x"]
alone, beside = read("strings", texts), read("beside_an_integer", [*texts, 5])
raise SystemExit(not (alone == texts and beside[0] == 7 and type(beside[0]) is int))
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder" 2> /dev/null
