"""Our math verifier and math-verify on the same cases: right, false positives and negatives, time.

The cases are the math rows of tests/verifier_cases.jsonl and, with a path to a checkout of
huggingface/Math-Verify, the cases of its own test suite. From the suite are taken those whose two
sides each hold one marked answer: a box, or a formula between dollars that is the whole text. Left
out are those that look for a number in prose (test_number_extraction and sentences without a box),
which our prompts never ask for, those that set an option of the library (precision, strictness),
and those whose backslashes are escaped twice.

    pip install "math-verify[antlr4_13_2]==0.9.0"
    python benchmarks/verifiers_vs_math_verify.py [checkout] [--show]
"""

import argparse
import ast
import json
import logging
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import verifiers  # noqa: E402

# Where we differ from the suite on purpose: a piece of the gold or of the other side, and why.
CHAIN = "a chain of equal signs that contradicts itself, or its left side, gives no value"
BOXES = "one box a response; only boxes joined by commas, and, or are one list"
ON_PURPOSE = {
    "= 7 =11": CHAIN,
    "\\approx 11": CHAIN,
    "3+3 = 2": CHAIN,
    "\\zzz": CHAIN,
    "part (a)": BOXES,
    "Zaius": "the box counts, not a later sentence",
    "{1,3}": "a point is no set",
    "(3,17,3,7), (17,3,3,7)": "a list that repeats an item is another list",
    "|z|": "inequalities of absolute values are not solved",
    "p=7,q=2": "names are not dropped from several systems at once",
    "F_{n-k-1} F_k": "sums with an index are text: equal in the same order only",
    "1 - \\frac{1}{\\mathrm{e}}": "the suite accepts 1 + 1/e for 1 - 1/e",
}


def our_cases():
    """[(response, gold, wanted verdict)]"""
    with open(ROOT / "tests" / "verifier_cases.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [(r["response"], r["answer"], r["want"]) for r in rows if r["task"] == "math"]


def suite_cases(checkout):
    """[(response, gold, wanted verdict)] of the parametrised tests of a Math-Verify checkout."""
    found = {}
    for path in sorted(Path(checkout, "tests").glob("test_*.py")):
        for function in ast.parse(path.read_text("utf-8")).body:
            if getattr(function, "name", "") == "test_number_extraction":
                continue
            for mark in getattr(function, "decorator_list", ()):
                names, rows = parameters(mark)
                if [name.strip() for name in names.split(",")][:2] != [
                    "gold",
                    "pred",
                ] or names.count(",") != 2:
                    continue
                for gold, response, want in rows:
                    gold, response = answer_of(gold), response_of(response)
                    if gold and response and not re.search(r"\\\\[a-z]{2}", gold + response):
                        found[response, gold] = bool(want)
    return [(*pair, want) for pair, want in found.items()]


def parameters(mark):
    """(names, rows) of a pytest.mark.parametrize; ("", []) of anything else."""
    try:
        names, rows = map(ast.literal_eval, mark.args[:2])
        return names, rows
    except (AttributeError, ValueError):
        return "", []


def answer_of(text):
    """The bare gold answer: the content of the box, or the formula that is the whole text."""
    answers, _ = verifiers._boxed(text)
    if answers:
        return answers[-1]
    formula = re.fullmatch(r"\s*(\$\$?)([^$]+)\1\s*", text)
    if "\\boxed" in text:  # not closed, or escaped twice
        return ""
    bare = (
        len(text) < 40
        and not re.search("[A-Za-z]{3} ", text)
        and not re.search(r"\$|\\\(|\\boxed", text)
    )
    if formula or bare:
        return (formula[2] if formula else text).strip()
    return ""


def response_of(text):
    """A response with a box: the text itself, or its formula in one."""
    if "\\boxed" in text:
        return text
    answer = answer_of(text)
    return f"\\boxed{{{answer}}}" if answer else ""


def ours(response, gold):
    return verifiers.verify("math", response, gold).correct


def theirs(response, gold):
    from math_verify import parse, verify

    marked = gold if re.search(r"\$|\\boxed|\\\[|\\\(", gold) else f"${gold}$"
    return bool(verify(parse(marked), parse(response)))


def measure(judge, cases):
    """(verdicts, milliseconds a verdict)"""
    start = time.process_time()
    verdicts = [judge(response, gold) for response, gold, _ in cases]
    return verdicts, (time.process_time() - start) * 1e3 / len(cases)


def report(title, cases, show):
    print(f"{title}: {len(cases)} cases")
    for name, judge in (("ours", ours), ("math-verify", theirs)):
        judge(*cases[0][:2])  # imports
        verdicts, milliseconds = measure(judge, cases)
        wrong = [(case, v) for case, v in zip(cases, verdicts, strict=True) if v != case[2]]
        accepted = sum(v for _, v in wrong)
        print(
            f"  {name:12} right {len(cases) - len(wrong)}, false positives {accepted}, "
            f"false negatives {len(wrong) - accepted}, {milliseconds:.2f} ms a verdict"
        )
        if name == "ours":
            explain(wrong, show)


def explain(wrong, show):
    """Say of each difference why it is on purpose, or that it is not."""
    for (response, gold, _), verdict in wrong:
        reasons = [why for piece, why in ON_PURPOSE.items() if piece in gold or piece in response]
        if show or not reasons:
            said, why = "same" if verdict else "different", [*reasons, "NOT ON PURPOSE"][0]
            print(f"    {said}: {response[-70:]!r} and {gold[:70]!r}: {why}")
    if wrong:
        print(f"    {len(wrong)} differences; --show names the reason of each" * (not show))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkout", nargs="?", help="a checkout of huggingface/Math-Verify")
    parser.add_argument("--show", action="store_true", help="show every difference")
    settings = parser.parse_args()
    logging.disable(logging.ERROR)  # math-verify logs each text that it cannot read
    report("tests/verifier_cases.jsonl", our_cases(), settings.show)
    if settings.checkout:
        report("Math-Verify's own tests", suite_cases(settings.checkout), settings.show)


if __name__ == "__main__":
    main()
