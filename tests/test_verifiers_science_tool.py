"""Science and tool verifiers: accepted and refused forms, golds of real data, bounds, feedback."""

import json
import random
import re
import time

import pytest

from verifiers import INSTRUCTIONS, TASKS, check_answer, verify

SCIENCE_FILES = [
    f"science/{field}_{part}"
    for field in ("biology", "chemistry", "material", "physics")
    for part in ("train", "test")
]
TOOL_FILES = ["tool/test", "tool/toolalpaca_real_train", "tool/bfcl_train", "tool/bfcl_test"]

CHOICES = [  # (response, the letter that is read, or None)
    ("<answer>B</answer>", "B"),
    ("<answer>\nB\n</answer>", "B"),
    ("<answer>(B)</answer>", "B"),
    ("<answer>B.</answer>", "B"),
    ("<answer>b</answer>", "B"),
    ("<answer>a</answer>", "A"),
    ("<answer>B: text of it</answer>", "B"),
    ("<answer>(b) text</answer>", "B"),
    ("<answer>B) 5 J</answer>", "B"),
    ("<answer>**B**</answer>", "B"),
    ("<answer>$\\text{B}$</answer>", "B"),
    ("<answer>\\boxed{B}</answer>", "B"),
    ("<answer>Option B</answer>", "B"),
    ("<answer>The answer is B</answer>", "B"),
    ("<answer>[B]</answer>", "B"),
    ("<ANSWER>B</ANSWER>", "B"),
    ("<answer>B: Vitamin A and C</answer>", "B"),
    ("<answer>C: CC(C)O</answer>", "C"),
    ("<answer>J</answer>", "J"),
    ("<answer>Z</answer>", "Z"),
    ("<answer>A</answer> no, <answer>C</answer>", "C"),
    ("<answer>A</answer> and <answer>C", "A"),
    ("<answer>B, B</answer>", "B"),
    ("<reasoning>A is wrong, the answer is A?</reasoning>\n<answer>\nD\n</answer>", "D"),
    ("<think><answer>A</answer></think><answer>B</answer>", "B"),
    ("<answer>B because it is larger</answer>", "B"),
    ("<answer>B\n</answer>\n\\boxed{C}", "B"),
    ("<answer>A, B</answer>", None),
    ("<answer>A and B</answer>", None),
    ("<answer>A or B</answer>", None),
    ("<answer>(A) (B)</answer>", None),
    ("<answer>A/B</answer>", None),
    ("<answer>(A) or (C) because</answer>", None),
    ("<answer>A B</answer>", None),
    ("<answer>AB</answer>", None),
    ("<answer>A: one\nB: two</answer>", None),
    ("<answer>A. one\nC. two</answer>", None),
    ("<answer>B, or C</answer>", None),
    ("<answer>A, B, C, D</answer>", None),
    ("<answer></answer>", None),
    ("<answer>a protein</answer>", None),
    ("<answer>A protein</answer>", None),
    ("<answer>I think so</answer>", None),
    ("<answer>none</answer>", None),
    ("<answer>42</answer>", None),
    ("<answer>B", None),
    ("B", None),
    ("It is B.", None),
    ("(B)", None),
    ("<think><answer>A</answer>", None),
    ("<answer>A</answer></think>", None),
    ("", None),
    ("<answer>é</answer>", None),
    ("The answer is (B).", "B"),
    ("The answer is B.", "B"),
    ("the correct answer is: (b)", "B"),
    ("Answer: C", "C"),
    ("answer: C", "C"),
    ("The answer is **D**", "D"),
    ("The answer is B because it fits", "B"),
    ("so it is \\boxed{B}", "B"),
    ("\\boxed{\\text{(C)}}", "C"),
    ("\\boxed{A} \\boxed{D}", "D"),
    ("The answer is a protein", None),
    ("The answer is a", None),
    ("The answer is A protein", None),
    ("The answer is (A) or (B)", None),
    ("The answer is A or B", None),
    ("The answer is A and B.", None),
    ("The answer is clear", None),
    ("The answer is Beta", None),
    ("\\boxed{A, B}", None),
    ("\\boxed{5}", None),
    ("\\boxed{B", None),
    ("The answer is (A). No: the answer is (C).", "C"),
    ("The answer is A, as shown.", "A"),
]


TWO_CHOICES = """(A)(B) | [A][B] | (a)(b) | (A) (B) (C) | (A)(B) because both fit | A (or B)
A (B) | A (and B) | A (possibly B) | A or maybe B | A, or maybe B | A, possibly B
A and possibly C | Option A or Option B | A: iron, B: copper | A: iron; B: copper
A: Iron, B: Copper, C: Zinc | A: iron or B: copper | (A) iron, (B) copper
(A) iron and (B) copper | A) iron, B) copper | A. iron, B. copper | A - iron, B - copper
A and B are correct | A and B are both right | A: iron, or (B) copper | A: iron & B: copper
(A) iron/(B) copper"""
ONE_CHOICE = """(A) iron | A: iron | A. iron (not B) | A (not B) | A, not B | A (B is wrong)
A (or maybe not B) | A (or iron) | A or possibly iron | A: both B and C | A: B and C
A. Both (B) and (C) | A: (B), (C) and (D) | A: true, B: false | A: iron, B: wrong
A: iron. B: copper is wrong | (A) iron, and (B) is wrong
(A): iron has more, and (B) has fewer electrons
(A) because it fits, and (B) describes another law | A: E. coli, B. subtilis
A. E. coli, B. subtilis | A, B. Franklin | (A) copper(I) oxide, copper (II) oxide
(A)(R)-2-butanol | (A) (E)-2-butene | A: C, H and O | A (C, H and O) | A: vitamin B, C
A: iron; B: too small; C: too large | A: Li, B: unlikely | A: Li; B: cannot be
A. yeast and S. cerevisiae | A. x and P. falciparum | A: N-H and O - H groups
A: reaction is exothermic; B: it is endothermic | A. Ideal gas at P: 1 atm, T: 300 K
A: iron, A: iron | A or A | (A)(A) | A: 5 g, or 5 kg | A (I and II)"""


@pytest.mark.parametrize("lead", ["", "The answer is ", "Option "])
@pytest.mark.parametrize("text", re.split(r" \| |\n", TWO_CHOICES))
def test_an_answer_that_names_two_choices_is_none(text, lead):
    """The first letter counted: (A)(B), A (or B) and "A: iron, B: copper" were right for gold A."""
    for gold in "ABC":
        verdict = verify("science", f"<answer>{lead}{text}</answer>", gold)
        assert not verdict.correct and verdict.answer is None


@pytest.mark.parametrize("text", re.split(r" \| |\n", ONE_CHOICE))
def test_a_letter_that_is_rejected_or_stands_in_an_options_text_is_no_second_choice(text):
    for gold in "AB":
        verdict = verify("science", f"<answer>{text}</answer>", gold)
        assert verdict.correct is (gold == "A") and verdict.answer == "A"


@pytest.mark.parametrize("response, letter", CHOICES)
def test_the_letter_that_is_read_is_the_choice(response, letter):
    """The first capital of an option's text, or one of two letters, was read as the choice."""
    for gold in "ABCDJZ":
        verdict = verify("science", response, gold)
        assert verdict.correct is (letter == gold) and verdict.answer == letter
        assert bool(verdict.feedback) is not verdict.correct
    assert letter is None or verify("science", response, letter.lower()).correct


@pytest.mark.parametrize("gold", ["", "AB", "1", None, 1, "é", ["A"]])
def test_a_bad_science_gold_is_refused(gold):
    with pytest.raises(ValueError, match="one letter"):
        check_answer("science", gold)
    with pytest.raises(ValueError, match="one letter"):
        verify("science", "<answer>A</answer>", gold)


def test_each_science_gold_of_the_data_is_right_in_each_form(rows):
    for name in SCIENCE_FILES:
        for row in rows(name):
            option = next(
                (
                    line
                    for line in row["prompt"].splitlines()
                    if line.startswith(f"{row['answer']}:")
                ),
                row["answer"],
            )
            for text in (row["answer"], f"\n({row['answer'].lower()})\n", option):
                verdict = verify(
                    "science",
                    f"<reasoning>\nA or B?\n</reasoning>\n<answer>\n{text}\n</answer>",
                    row["answer"],
                )
                assert verdict.correct, (row["id"], text)
            wrong = "A" if row["answer"] != "A" else "B"
            assert not verify("science", f"<answer>\n{wrong}\n</answer>", row["answer"]).correct


def action(name, text):
    return f"Action: {name}\nAction Input: {text}\n"


def gold_of(*pairs):
    return [{"Action": name, "Action_Input": text} for name, text in pairs]


ONE, TWO = (
    gold_of(("find", '{"q": "x {y}", "n": 5}')),
    gold_of(("a", '{"k": 1}'), ("b", '{"k": 2}')),
)
CALLS = [  # (response, gold, correct)
    (action("find", '{"q": "x {y}", "n": 5}'), ONE, True),
    ("Thought: use find.\n" + action("find", '{"n": 5, "q": "x {y}"}'), ONE, True),
    (action("find", '{"q": "x {y}", "n": 5.0}'), ONE, True),
    (action("find", '{"q": "x {y}", "n": "5"}'), ONE, True),
    (action("find", '{"q": "x {y}", "n": "5.0"}'), ONE, True),
    (action("  find \t", '{"q": "x {y}", "n": 5} and so on'), ONE, True),
    (action("find", '\n{\n "q": "x {y}",\n "n": 5e0\n}') + "Observation: done", ONE, True),
    ('Action: find\r\nAction Input: {"q": "x {y}", "n": 5}\r\n', ONE, True),
    (action("find", '```json\n{"q": "x {y}", "n": 5}\n```'), ONE, True),
    ("  " + action("find", '{"q": "x {y}", "n": 5}'), ONE, True),
    (
        "Thought: maybe Action: other with Action Input: {}\n"
        + action("find", '{"q": "x {y}", "n": 5}'),
        ONE,
        True,
    ),
    (
        "<think>"
        + action("other", "{}")
        + "</think>"
        + "\n"
        + action("find", '{"q": "x {y}", "n": 5}'),
        ONE,
        True,
    ),
    (action("a", '{"k": 1}') + "Thought: next\n" + action("b", '{"k": 2}'), TWO, True),
    (
        action("a-b_c.d/é (x)", '{"é": [1, {"z": null}]}'),
        gold_of(("a-b_c.d/é (x)", '{"\\u00e9": [1, {"z": null}]}')),
        True,
    ),
    (action("a", "{}"), gold_of(("a", "{}")), True),
    (
        action("a", '{"t": "Action: b\\nAction Input: {}"}'),
        gold_of(("a", '{"t": "Action: b\\nAction Input: {}"}')),
        True,
    ),
    (action("a", '{"v": true}'), gold_of(("a", '{"v": true}')), True),
    (action("a", '{"v": 0.1}'), gold_of(("a", '{"v": "0.1"}')), True),
    (action("a", '{"v": 9007199254740993}'), gold_of(("a", '{"v": 9007199254740993}')), True),
    (action("a", '{"v": 1e2}'), gold_of(("a", '{"v": 100}')), True),
    # wrong, whatever the gold is
    (action("find", '{"q": "x {y}", "n": 6}'), ONE, False),
    (action("Find", '{"q": "x {y}", "n": 5}'), ONE, False),
    (action("fin", '{"q": "x {y}", "n": 5}'), ONE, False),
    (action("find", '{"q": "x {y}"}'), ONE, False),
    (action("find", '{"q": "x {y}", "n": 5, "m": 1}'), ONE, False),
    (action("find", '{"q": "x {y} ", "n": 5}'), ONE, False),
    (action("a", '{"k": 2}') + action("b", '{"k": 1}'), TWO, False),
    (action("b", '{"k": 2}') + action("a", '{"k": 1}'), TWO, False),
    (action("a", '{"k": 1}'), TWO, False),
    (action("a", '{"k": 1}') + action("b", '{"k": 2}') + action("b", '{"k": 2}'), TWO, False),
    ('Action: a\nAction: b\nAction Input: {"k": 1}\nAction Input: {"k": 2}', TWO, False),
    ('Action Input: {"k": 1}\n' + action("b", '{"k": 2}'), TWO, False),
    (action("a", '{"k": 1}') + 'Action Input: {"k": 1}', gold_of(("a", '{"k": 1}')), False),
    (action("a", '{"k": 1}') + "Action: b", gold_of(("a", '{"k": 1}')), False),
    (action("a", '{"k": 1'), gold_of(("a", '{"k": 1}')), False),
    (action("a", "k=1"), gold_of(("a", '{"k": 1}')), False),
    (action("a", '{"k": 1, "k": 1}'), gold_of(("a", '{"k": 1}')), False),
    (action("a", '{"o": {"k": 2, "k": 1}}'), gold_of(("a", '{"o": {"k": 1}}')), False),
    (action("a", "{'k': 1}"), gold_of(("a", '{"k": 1}')), False),
    (action("a", '["k"]'), gold_of(("a", "{}")), False),
    (action("a", ""), gold_of(("a", "{}")), False),
    (action("", "{}"), gold_of(("a", "{}")), False),
    ("I would call Action: a with Action Input: {}", gold_of(("a", "{}")), False),
    ("", ONE, False),
    ("Action: a", ONE, False),
    (action("a", '{"v": 1}'), gold_of(("a", '{"v": true}')), False),
    (action("a", '{"v": true}'), gold_of(("a", '{"v": 1}')), False),
    (action("a", '{"v": "true"}'), gold_of(("a", '{"v": true}')), False),
    (action("a", '{"v": null}'), gold_of(("a", '{"v": 0}')), False),
    (action("a", '{"v": "02134"}'), gold_of(("a", '{"v": 2134}')), False),
    (action("a", '{"v": "1.10"}'), gold_of(("a", '{"v": "1.1"}')), False),
    (action("a", '{"v": [1, 2]}'), gold_of(("a", '{"v": [2, 1]}')), False),
    (action("a", '{"v": [1]}'), gold_of(("a", '{"v": 1}')), False),
    (action("a", '{"v": NaN}'), gold_of(("a", '{"v": "NaN"}')), False),
    (action("a", '{"v": 1e999}'), gold_of(("a", '{"v": 5}')), False),
    (action("a", '{"v": 0.30000000000000004}'), gold_of(("a", '{"v": 0.3}')), False),
    (action("a", '{"v": 9007199254740992}'), gold_of(("a", '{"v": 9007199254740993}')), False),
    ("<think>" + action("a", "{}"), gold_of(("a", "{}")), False),
    (action("a", '{"v": "٣"}'), gold_of(("a", '{"v": 3}')), False),
    (action("a", '{"t": "\n"}'), gold_of(("a", '{"t": "\\n"}')), False),
]


@pytest.mark.parametrize("response, gold, correct", CALLS)
def test_calls_are_right_where_names_order_and_values_are(response, gold, correct):
    """Labels inside JSON values, doubled keys and numbers as text were misread."""
    verdict = verify("tool", response, gold)
    assert verdict.correct is correct and bool(verdict.feedback) is not correct


@pytest.mark.parametrize(
    "gold",
    [
        None,
        "x",
        [],
        [{}],
        {"Action": "a"},
        [{"Action": "a"}],
        gold_of(("a", "[1]")),
        gold_of(("a", "{")),
        gold_of(("", "{}")),
        gold_of(("a", '{"k": 1, "k": 2}')),
        [{"Action": "a", "Action_Input": {}}],
        [{"Action": 1, "Action_Input": "{}"}],
        [None],
    ],
)
def test_a_bad_tool_gold_is_refused(gold):
    for call in (
        lambda: check_answer("tool", gold),
        lambda: verify("tool", action("a", "{}"), gold),
    ):
        with pytest.raises(ValueError, match="tool answer"):
            call()


def test_each_tool_gold_of_the_data_is_right_and_a_changed_one_wrong(rows):
    for name in TOOL_FILES:
        for row in rows(name):
            calls = [(item["Action"], item["Action_Input"]) for item in row["answer"]]
            plain = "Thought: I know what to do.\n" + "".join(action(*call) for call in calls)
            neat = [
                (tool, json.dumps(json.loads(text), indent=2, sort_keys=True))
                for tool, text in calls
            ]
            pretty = "".join(f"Thought: next\n{action(*call)}" for call in neat)
            assert (
                verify("tool", plain, row["answer"]).correct
                and verify("tool", pretty, row["answer"]).correct
            ), row["id"]
            assert not verify("tool", plain + action(*calls[0]), row["answer"]).correct
            assert not verify(
                "tool", "".join(action(*call) for call in calls[1:]), row["answer"]
            ).correct
            assert not verify(
                "tool", "".join(action(tool, text[:-1]) for tool, text in calls), row["answer"]
            ).correct


HOSTILE = {
    "tags": "<answer>" * 100_000,
    "tags with letters": "<answer>a<" * 100_000,
    "an open tag": "<answer>" + "a<" * 300_000,
    "options": "<answer>" + "A, B, " * 100_000 + "</answer>",
    "spaces in a tag": "<answer>B" + " " * 10**6 + "x</answer>",
    "phrases": "the answer is " * 100_000,
    "a long phrase": "the answer is " + "(A) or " * 100_000,
    "stars": "answer" + "*" * 10**6,
    "actions": 'Action: a\nAction Input: {"a": 2}\n' * 30_000,
    "inputs": "Action Input:" * 100_000,
    "lists": "Action: a\nAction Input: " + "[" * 10**6,
    "objects": "Action: a\nAction Input: " + '{"a":' * 300_000,
    "digits": 'Action: a\nAction Input: {"a": ' + "9" * 10**6 + "}",
    "exponent": 'Action: a\nAction Input: {"a": 1e999999999}',
    "small exponent": 'Action: a\nAction Input: {"a": 1e-999999999}',
    "digits in a string": 'Action: a\nAction Input: {"a": "' + "9" * 10**6 + '"}',
    "spaces": "Action:" + " " * 10**6,
    "lines": "\n" * 10**6 + "Action:",
    "input and spaces": ("Action Input:" + " " * 100) * 10_000,
    "fences": "Action: a\nAction Input:" + "```" * 300_000,
    "think": "<think></think>" * 100_000,
    "surrogates": 'Action: \ud800\nAction Input: {"\ud800": "\\ud800"}',
    "null": "\0" * 10**6,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_costs_less_than_a_second(name):
    """Patterns that scan a megabyte quadratically hung the training step."""
    for task, gold in (("science", "C"), ("tool", gold_of(("a", '{"a": 1}')))):
        start = time.process_time()
        verdict = verify(task, HOSTILE[name], gold)
        assert time.process_time() - start < 1.0
        assert not verdict.correct and 0 < len(verdict.feedback) <= 2_000


def test_random_text_never_raises():
    pieces = [
        "<answer>",
        "</answer>",
        "A",
        "B",
        "(",
        ")",
        ".",
        ":",
        " or ",
        "\n",
        "\\boxed{",
        "}",
        "The answer is ",
        "Action: ",
        "Action Input: ",
        "{",
        '"k"',
        ":",
        "1",
        "]",
        "[",
        ",",
        "<think>",
        "</think>",
        "true",
        "\0",
        "\ud800",
        "é",
        "*",
        "$",
    ]
    rng = random.Random(0)
    for _ in range(4_000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 30)))
        for task, gold in (("science", "A"), ("tool", gold_of(("A", '{"k": 1}')))):
            verdict = verify(task, text, gold)
            assert bool(verdict.feedback) is not verdict.correct and len(verdict.feedback) <= 2_000


def test_feedback_is_the_same_for_every_gold(rows):
    rng, golds = random.Random(1), [row["answer"] for name in TOOL_FILES for row in rows(name)]
    responses = [
        "".join(action(item["Action"], item["Action_Input"]) for item in gold)
        for gold in rng.sample(golds, 100)
    ]
    for response in responses + [
        "",
        "Action: a",
        action("a", "{"),
        action("a", '{"k": 1, "k": 1}'),
        "Action Input: {}",
    ]:
        verdicts = [verify("tool", response, gold) for gold in rng.sample(golds, 30)]
        assert len({verdict.feedback for verdict in verdicts if not verdict.correct}) == 1
    for response, _ in CHOICES:
        assert (
            len(
                {
                    verdict.feedback
                    for verdict in (verify("science", response, gold) for gold in "ABCDEJZ")
                    if not verdict.correct
                }
            )
            == 1
        )


def test_each_task_has_an_instruction_that_names_its_form():
    assert set(INSTRUCTIONS) == set(TASKS)
    assert "\\boxed{}" in INSTRUCTIONS["math"] and "<answer>" in INSTRUCTIONS["science"]
    assert "Action Input: " in INSTRUCTIONS["tool"] and "```python" in INSTRUCTIONS["code"]
