"""Tests of peer_context.py: who is shown to the teacher of a rollout, in which slot, and what the
teacher reads."""

import shutil
import subprocess
import sys
from collections import Counter

import pytest
from conftest import ROOT

import peer_context
from peer_context import (
    FAILURE,
    INSTRUCTION,
    Peers,
    choose_control,
    choose_peers,
    shorten,
    strip_thinking,
    teacher_prompt,
)

MIXED = [True, False, True, True, False, True, False, True]  # five successes, three failures
SLOTS = {
    "contrastive": dict(n_success=2, n_failure=1),
    "positive": dict(n_success=2, n_failure=0),
    "sdpo": dict(n_success=1, n_failure=0),
}
CONTROLS = ("random", "unrelated", "success_only")
GROUP = [0] * 4 + [1] * 4 + [2] * 4
CORRECT = [True, False, True, False] + [False] * 4 + [True] * 4  # mixed, all wrong, all right


def control(kind, i, *, group=GROUP, correct=CORRECT, usable=None, texts=None, seed=0):
    lists = dict(
        correct=correct,
        usable=usable or [True] * len(group),
        texts=texts or [f"text {j}" for j in range(len(group))],
        group=group,
    )
    contrastive = choose_peers(i=i, seed=seed, **SLOTS["contrastive"], **lists)
    return choose_control(kind, contrastive, i=i, seed=seed, **lists)


def contrastive_in_step(i, *, usable=None, seed=0):
    """(number of successes, number of failures) that contrastive shows to rollout i of GROUP and
    CORRECT."""
    mates = [j for j in range(len(GROUP)) if GROUP[j] == GROUP[i]]
    usable = usable or [True] * len(GROUP)
    chosen = choose_peers(
        [CORRECT[j] for j in mates],
        mates.index(i),
        n_success=2,
        n_failure=1,
        usable=[usable[j] for j in mates],
        seed=seed,
    )
    return len(chosen.successes), len(chosen.failures)


# --- choose_peers ---


@pytest.mark.parametrize("texts", [None, ["same"] * 8])
def test_no_rollout_is_its_own_peer(texts):
    for i in range(8):
        for seed in range(50):
            peers = choose_peers(MIXED, i, n_success=8, n_failure=8, texts=texts, seed=seed)
            assert sorted(peers.successes + peers.failures) == [j for j in range(8) if j != i]


@pytest.mark.parametrize("kind", SLOTS)
def test_slots_hold_what_their_label_says(kind):
    for i in range(8):
        for seed in range(50):
            peers = choose_peers(MIXED, i, **SLOTS[kind], seed=seed)
            assert all(MIXED[j] for j in peers.successes) and not any(
                MIXED[j] for j in peers.failures
            )
            assert len(set(peers.successes)) == len(peers.successes) == SLOTS[kind]["n_success"]
            assert len(peers.failures) == SLOTS[kind]["n_failure"]


def test_truncated_rollout_is_shown_neither_as_success_nor_as_failure():
    usable = [True, True, False, True, False, True, True, True]
    shown = set()
    for seed in range(100):
        peers = choose_peers(MIXED, 0, n_success=2, n_failure=1, usable=usable, seed=seed)
        shown.update(peers.successes + peers.failures)
    assert shown == {1, 3, 5, 6, 7}


@pytest.mark.parametrize(
    "correct, i, successes, failures",
    [
        ([True, False, False], 0, (), 1),  # lone success: a failure and no success
        ([True, False, False], 1, (0,), 1),
        ([True, True, True], 0, 2, ()),  # all right
        ([False, False, False], 0, (), 1),  # all wrong
        ([True, False], 1, (0,), ()),
        ([True], 0, (), ()),
    ],
)
def test_groups_at_the_edge_leave_slots_empty_instead_of_filling_them_wrongly(
    correct, i, successes, failures
):
    peers = choose_peers(correct, i, n_success=2, n_failure=1)
    for chosen, expected in ((peers.successes, successes), (peers.failures, failures)):
        assert chosen == expected if isinstance(expected, tuple) else len(chosen) == expected


def test_text_equal_to_own_or_to_another_peer_is_the_last_choice():
    correct, texts = [True] * 6, ["mine", "mine", "twin", "twin", "other", "mine"]
    for seed in range(100):
        chosen = choose_peers(
            correct, 0, n_success=2, n_failure=0, texts=texts, seed=seed
        ).successes
        assert sorted(texts[j] for j in chosen) == ["other", "twin"]
        three = choose_peers(correct, 0, n_success=3, n_failure=0, texts=texts, seed=seed).successes
        assert sorted(texts[j] for j in three[:2]) == ["other", "twin"] and len(three) == 3
    assert {
        choose_peers(correct, 0, n_success=2, n_failure=0, texts=texts, seed=s).successes
        for s in range(100)
    } == {(2, 4), (4, 2), (3, 4), (4, 3)}
    assert choose_peers(
        [True, True], 0, n_success=2, n_failure=1, texts=["mine", "mine"]
    ).successes == (1,)


def test_failure_with_the_text_of_a_chosen_success_is_the_last_choice():
    texts = [
        "mine",
        "flaky",
        "flaky",
        "plain wrong",
    ]  # one text, two verdicts: a code test timed out once
    for seed in range(50):
        peers = choose_peers(
            [True, True, False, False], 0, n_success=1, n_failure=1, texts=texts, seed=seed
        )
        assert peers == Peers((1,), (3,))


def test_peers_are_drawn_uniformly_not_in_batch_order():
    count = Counter()
    for seed in range(3000):
        peers = choose_peers(MIXED, 0, n_success=2, n_failure=1, seed=seed)
        count.update([*peers.successes, *peers.failures, ("first", peers.successes[0])])
    expected = {j: 1500 if MIXED[j] else 1000 for j in range(1, 8)} | {
        ("first", j): 750 for j in (2, 3, 5, 7)
    }
    for j, number in expected.items():
        assert abs(count[j] - number) < 150, (j, count[j])  # five standard deviations and more
    assert count[0] == 0


def test_draw_is_a_function_of_seed_and_rollout():
    draws = {
        (seed, i): choose_peers(MIXED, i, n_success=2, n_failure=1, seed=seed)
        for seed in (1, 2, (1, 2))
        for i in range(8)
    }
    for (seed, i), peers in reversed(draws.items()):  # another order of calls, the same peers
        assert choose_peers(MIXED, i, n_success=2, n_failure=1, seed=seed) == peers
    assert len({tuple(draws[seed, i] for i in range(8)) for seed in (1, 2, (1, 2))}) == 3


def test_most_rollouts_of_a_group_read_the_same_peers():
    """Contexts of their own for each rollout cost the teacher twice the tokens: equal ones are read
    once."""
    chosen = [choose_peers(MIXED, i, n_success=2, n_failure=1, seed=3) for i in range(8)]
    usual = max(chosen, key=chosen.count)
    shown = {*usual.successes, *usual.failures}
    assert all(chosen[i] == usual for i in range(8) if i not in shown)
    assert all(chosen[i] != usual for i in shown)


def test_draw_is_the_same_in_another_process():
    code = (
        "import peer_context as p; print([p.choose_peers([True] * 9, i, n_success=2, n_failure=0, "
        "seed=(3, 'a')).successes for i in range(9)])"
    )  # hash() of a text would differ
    here = [
        choose_peers([True] * 9, i, n_success=2, n_failure=0, seed=(3, "a")).successes
        for i in range(9)
    ]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(here)


@pytest.mark.parametrize(
    "arguments", [dict(i=3), dict(i=-1), dict(i=0, usable=[True]), dict(i=0, texts=["a"] * 4)]
)
def test_wrong_index_or_lengths_are_refused(arguments):
    with pytest.raises(ValueError, match="choose_peers"):
        choose_peers([True, False, True], n_success=1, n_failure=1, **arguments)


# --- the controls: the slots of contrastive, filled differently ---


@pytest.mark.parametrize("usable", [None, [True, True, False] * 4])
def test_random_control_keeps_slots_and_labels_and_ignores_verdicts(usable):
    seen = {i: (set(), set()) for i in range(12)}
    for seed in range(200):
        for i in range(12):
            peers = control("random", i, usable=usable, seed=seed)
            assert (len(peers.successes), len(peers.failures)) == contrastive_in_step(
                i, usable=usable, seed=seed
            )
            assert (
                len({*peers.successes, *peers.failures, i})
                == len(peers.successes) + len(peers.failures) + 1
            )
            seen[i][0].update(peers.successes)
            seen[i][1].update(peers.failures)
    for i, (successes, failures) in seen.items():
        others = {
            j for j in range(12) if GROUP[j] == GROUP[i] and j != i and (usable or [True] * 12)[j]
        }
        slots = contrastive_in_step(i, usable=usable)
        assert successes == (others if slots[0] else set()) and failures == (
            others if slots[1] else set()
        )


def test_unrelated_control_shows_successes_of_other_problems_as_successes():
    seen = {i: set() for i in range(12)}
    usable = [True] * 8 + [True, False, True, True]
    for seed in range(200):
        for i in range(12):
            peers = control("unrelated", i, usable=usable, seed=seed)
            slots = sum(contrastive_in_step(i, usable=usable, seed=seed))
            assert (
                peers.failures == ()
                and len(set(peers.successes)) == len(peers.successes) == slots - peers.empty
            )
            seen[i].update(peers.successes)
    assert all(
        seen[i] == {0, 2, 8, 10, 11} - set(range(i // 4 * 4, i // 4 * 4 + 4)) for i in range(12)
    )


def test_success_only_control_turns_the_failure_into_one_more_success():
    group, correct = [0] * 8, MIXED
    for seed in range(100):
        for i in range(8):
            peers = control("success_only", i, group=group, correct=correct, seed=seed)
            assert len(set(peers.successes)) == 3 and peers.failures == () and peers.empty == 0
            assert all(correct[j] and j != i for j in peers.successes)
    for i in range(8, 12):  # an all-right group: contrastive fills two slots
        assert len(control("success_only", i).successes) == 2


@pytest.mark.parametrize(
    "kind, i, filled, empty",
    [
        (
            "success_only",
            1,
            2,
            1,
        ),  # contrastive: two successes, one failure; only two successes to be had
        ("success_only", 0, 1, 1),  # one success, one failure
        ("success_only", 4, 0, 1),  # all wrong: the one failure slot
        ("unrelated", 4, 1, 0),
        ("random", 4, 1, 0),
    ],
)
def test_slot_that_a_control_cannot_fill_is_counted(kind, i, filled, empty):
    peers = control(kind, i)
    assert (len(peers.successes) + len(peers.failures), peers.empty) == (filled, empty)


def test_unrelated_control_without_another_success_stays_empty_and_is_counted():
    peers = control(
        "unrelated", 1, group=[0] * 4 + [1] * 2, correct=[True, False, True, False, False, False]
    )
    assert peers == Peers((), (), 3)


@pytest.mark.parametrize("kind", CONTROLS)
def test_control_prefers_texts_not_seen(kind):
    texts = (
        [f"text {j % 4}" for j in range(12)] if kind == "unrelated" else ["a", "a", "a", "b"] * 3
    )
    for seed in range(50):
        for i in range(8, 12):
            chosen = control(kind, i, texts=texts, seed=seed)
            shown = [texts[j] for j in chosen.successes + chosen.failures]
            if kind == "unrelated":  # strangers: 0 and 2, two texts, both needed
                assert sorted(shown) == ["text 0", "text 2"]
            else:
                assert ("b" in shown) == (i != 11)


@pytest.mark.parametrize("kind", ["random", "success_only"])
def test_control_does_not_depend_on_the_order_of_the_problems_in_the_step(kind):
    for seed in range(20):
        for i in range(4):  # a group alone, and behind eight other rollouts
            alone = control(kind, i, group=[0] * 4, correct=CORRECT[:4], seed=seed)
            behind = control(
                kind, 8 + i, group=[1] * 8 + [0] * 4, correct=[True] * 8 + CORRECT[:4], seed=seed
            )
            assert behind.successes == tuple(8 + j for j in alone.successes)
            assert behind.failures == tuple(8 + j for j in alone.failures)


def test_unknown_control_is_refused():
    with pytest.raises(ValueError, match="unknown control 'contrastiv'"):
        control("contrastiv", 0)


# --- what the teacher reads ---


def test_teacher_prompt_has_problem_successes_failure_feedback_instruction_in_this_order():
    text = teacher_prompt(
        "THE PROBLEM", successes=["GOOD ONE", "GOOD TWO"], failures=["BAD"], feedback="WRONG SIGN"
    )
    parts = ["THE PROBLEM", "GOOD ONE", "GOOD TWO", "BAD", "WRONG SIGN", INSTRUCTION]
    places = [text.index(part) for part in parts]
    assert places == sorted(places) and places[0] == 0 and text.endswith(INSTRUCTION)
    assert all(text.count(part) == 1 for part in parts)
    assert text.index(FAILURE) + len(FAILURE) == text.index("BAD")


def test_a_failure_is_never_announced_as_correct():
    alone = teacher_prompt("P", failures=["BAD"])
    assert "A correct" not in alone and "Another correct" not in alone and "incorrect" in alone
    assert "incorrect" not in teacher_prompt("P", successes=["GOOD", "FINE"])


def test_without_peers_and_feedback_the_teacher_reads_what_the_student_reads():
    assert teacher_prompt("P") == "P"


@pytest.mark.parametrize(
    "text, kept",
    [
        ("plain", "plain"),
        ("<think>aa</think>\n\nanswer", "answer"),
        ("aa</think>answer", "answer"),
        ("start <think>aa</think>middle<think>bb</think> end", "start middle end"),
        ("answer <think>unclosed", "answer"),
        ("<think>a<think>b</think>c", "c"),
        ("a</think>b<think>c</think>d", "bd"),
        ("<think>all</think>", ""),
        ("", ""),
        ("if a < b and c > d", "if a < b and c > d"),
    ],
)
def test_thinking_is_stripped(text, kept):
    assert strip_thinking(text) == kept


def test_thinking_is_stripped_from_peers_and_not_from_the_problem():
    text = teacher_prompt(
        "What does <think>x</think> mean?",
        successes=["<think>secret one</think>GOOD"],
        failures=["secret two</think>BAD"],
    )
    assert text.startswith("What does <think>x</think> mean?")
    assert "secret" not in text and "GOOD" in text and "BAD" in text


@pytest.mark.parametrize(
    "budget, expected",
    [
        (20, "abcdefghij"),
        (10, "abcdefghij"),
        (9, "abcd\n[...]\nfghij"),
        (4, "ab\n[...]\nij"),
        (1, "\n[...]\nj"),
    ],
)
def test_long_peer_keeps_its_head_and_the_tail_with_the_answer(budget, expected):
    assert shorten("abcdefghij", budget, list, "".join) == (expected, budget < 10)


def test_file_works_alone_in_an_empty_folder(tmp_path):
    shutil.copy(peer_context.__file__, tmp_path)
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None;"
        "import peer_context as p;"
        "q = p.choose_peers([True, False, True], 0, n_success=2, n_failure=1);"
        "print(q.successes, q.failures)"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "(2,) (1,)"
