"""What models really write: cases in the families of public reports on answer checkers.

verifier_cases.jsonl, and verifier_neighbours.jsonl with neighbours of each kind, hold a row for
each: task, response, answer and the verdict wanted.
"""

import json
import re
from collections import Counter

import pytest
from conftest import ROOT

import math_answers
import verifiers


def read(name):
    with open(ROOT / "tests" / name, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


CASES, NEIGHBOURS = read("verifier_cases.jsonl"), read("verifier_neighbours.jsonl")


def name_of(row):
    return f"{row.get('kind', row['task'])}: {row['response'][:40]} | {str(row['answer'])[:30]}"


@pytest.mark.parametrize("row", [*CASES, *NEIGHBOURS], ids=name_of)
def test_the_verdict_is_the_one_wanted(row):
    """Half of the cases were judged wrongly at first, in both directions."""
    verdict = verifiers.verify(row["task"], row["response"], row["answer"])
    assert verdict.correct is row["want"], verdict.feedback
    assert bool(verdict.feedback) is not verdict.correct


def test_each_task_has_right_and_wrong_cases():
    wanted = Counter((row["task"], row["want"]) for row in [*CASES, *NEIGHBOURS])
    assert all(wanted[task, want] >= 4 for task in verifiers.TASKS for want in (True, False))


def holds(example):
    """Is "left = right" the same answer, or "left ≠ right" another one?"""
    left, sign, right = re.match(r"(.*?) ([=≠]) (.*)", example).groups()
    math_answers._read.cache_clear()
    return math_answers.same_answer(left, right) is (sign == "=")


@pytest.mark.parametrize("example", math_answers.EXAMPLES)
def test_each_rewriting_rule_does_what_its_example_says(example):
    assert holds(example)


@pytest.mark.parametrize("number", range(len(math_answers.EXAMPLES)))
def test_no_rewriting_rule_is_idle(number, monkeypatch):
    """A rule whose example holds without it would be a line that nobody dares to remove."""
    rules = math_answers._RULES
    others = [rule for rule in rules if rule is not rules[number]]
    monkeypatch.setattr(math_answers, "_RULES", others)
    assert not holds(math_answers.EXAMPLES[number])
    math_answers._read.cache_clear()


@pytest.mark.parametrize(
    "gold", ["proof", "Proof.", r"\text{notfound}", "n/a", "", r"\boxed{5}", "#### 5"]
)
def test_golds_that_can_never_be_matched_are_refused(gold):
    """Public sets hold "proof" for what has no short answer: every rollout would be wrong."""
    with pytest.raises(ValueError, match="math answer"):
        verifiers.check_answer("math", gold)


def test_a_long_text_as_gold_is_refused():
    verifiers.check_answer("math", r"\text{The midpoints form a regular hexagon}")
    with pytest.raises(ValueError, match="short text"):
        verifiers.check_answer(
            "math", "We first show that " + "the sum of these numbers is even and " * 4
        )


@pytest.mark.parametrize(
    "response, said",
    [
        ('<tool_call>{"name": "f", "arguments": {}}</tool_call>', "tags"),
        ("f(x=1)", "Python"),
        ('**Action:** f\n**Action Input:** {"x": 1}', "bold"),
        ('action: f\naction input: {"x": 1}', "'Action:'"),
        ("Action: f\nAction Input: {'x': 1}", "double quotes"),
        ('{"name": "f", "arguments": {"x": 1}}', "one JSON object"),
        ('Action: f\nAction Input: {"x": 1} or maybe {"x": 2}', "more than one"),
        ('{"action": "f", "action_input": {"x": 1}}', "one JSON object"),
        ('Action: f\nAction_Input: {"x": 1}', "no line 'Action Input: '"),
        ('I call Action: f with Action Input: {"x": 1}', "start a line"),
    ],
)
def test_the_feedback_on_a_tool_call_says_which_form_was_wrong(response, said):
    gold = [{"Action": "f", "Action_Input": '{"x": 1}'}]
    verdict = verifiers.verify("tool", response, gold)
    assert not verdict.correct and said in verdict.feedback
