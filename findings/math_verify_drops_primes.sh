#!/usr/bin/env bash
# Expected: math-verify tells a function from its derivative: f'(x) is not f(x).
# What happens: the prime is lost while the formula is normalised, both sides are read as f(x), and
# verify() says that they are equal. Seen in math-verify 0.9.0 with latex2sympy2_extended 1.11.0.
# Why it matters here: as a reward it accepts the function where its derivative was asked for;
# tests/verifier_cases.jsonl holds the case, and our verifier keeps the prime as part of the name.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet \
    "math-verify[antlr4_13_2]==0.9.0" "latex2sympy2_extended==1.11.0" 2>/dev/null
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from math_verify import parse, verify

for package in ("math-verify", "latex2sympy2_extended"):
    print(package, version(package))
gold, answer = parse(r"$f'(x)$"), parse(r"$f(x)$")
print("read as", gold, "and", answer)
same = verify(gold, answer)
print("f'(x) is the same as f(x):", same)
raise SystemExit(0 if same else 1)
PYTHON
