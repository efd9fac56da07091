#!/usr/bin/env bash
# Expected: a cross product is anticommutative, so \vec{b}\times\vec{a} is not \vec{a}\times\vec{b}.
# What happens: the vectors become commuting symbols and \times their product, so that both sides
# are equal. Seen in math-verify 0.9.0 with latex2sympy2_extended 1.11.0.
# Why it matters here: as a reward it accepts the answer of the wrong sign. Ours reads such products
# as text, equal in the same order only (tests/verifier_cases.jsonl, kind cross-product).
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
gold, answer = parse(r"$\vec{a}\times\vec{b}$"), parse(r"$\vec{b}\times\vec{a}$")
print("read as", gold, "and", answer)
same = verify(gold, answer)
print("a x b is the same as b x a:", same)
raise SystemExit(0 if same else 1)
PYTHON
