"""Choose the peers of a rollout and write what the teacher reads; knows nothing of models.

MOPD scores rollout i of a problem with a teacher that has read the student's *other* attempts at
the same problem:

    context_i = problem + successes (correct peers) + failure (a wrong peer) + "now solve it"

**positive** contexts hold successes only, **contrastive** ones a failure too (arXiv 2605.12652,
sections on positive peer imitation and contrastive success-failure conditioning). Differences from
the authors' code: successes are drawn at random instead of in the order of the batch, and a peer
with the same text as the rollout or as another peer is the last choice. The wording is ours.

    peers = choose_peers([True, False, True, True], 0, n_success=2, n_failure=1, seed=7)
    text = teacher_prompt(problem, successes=[texts[j] for j in peers.successes],
                          failures=[texts[j] for j in peers.failures])

`teacher_prompt` is the paper's layout, one user turn; `teacher_turns` the same as a conversation.
"""

import random
import re
from dataclasses import dataclass

SUCCESS = "\n\nA correct solution to this problem:\n\n"
ANOTHER_SUCCESS = "\n\nAnother correct solution to this problem:\n\n"
FAILURE = "\n\nAn incorrect attempt at this problem, whose mistake must not be repeated:\n\n"
FEEDBACK = "\n\nWhat was wrong with your own earlier attempt:\n\n"
INSTRUCTION = "\n\nNow solve the original problem correctly, in the required form."
# For turns. Feedback is about the rollout to be scored, which is never shown. "another attempt"
# keeps it apart from the failure that may stand just before it.
RIGHT, WRONG = "That is right. ", "That is wrong. "
TURN_FEEDBACK = "\n\nWhat was wrong with another attempt of yours, which is not shown here:\n\n"
LAYOUTS = ("turn", "turns")
# What a completion says when it has learnt to speak of peers that its reader never saw. Not among
# them: "the other solution" (of an equation), "the given solution" (in a flask), "the original
# problem", which ordinary answers say too.
LEAK_PHRASES = tuple(
    "correct solution to this problem|previous solution|earlier solution|reference solution|"
    "previous attempt|earlier attempt|failed attempt|failed solution|incorrect attempt|"
    "mistake must not be repeated|another attempt of yours|that is right.|that is wrong.".split("|")
)


@dataclass(frozen=True)
class Peers:
    """Places in the lists given to choose_peers: those shown as successes, those as failures."""

    successes: tuple[int, ...]
    failures: tuple[int, ...]
    empty: int = 0  # slots that a control could not fill


def choose_peers(
    correct, i: int, *, n_success: int, n_failure: int, usable=None, texts=None, group=None, seed=0
) -> Peers:
    """Up to n_success correct and n_failure wrong rollouts of i's group, never i itself.

    correct: whether each rollout is a success. usable: False for rollouts that may not be shown (a
    truncated one is neither success nor failure); default all. texts: a text equal to that of i or
    of a peer already chosen fills a slot only when nothing else can. group: names each rollout's
    problem; default one for all. Slots that cannot be filled stay empty.

    `seed` fixes one random order of the group's successes and one of its failures; every rollout
    takes the first allowed ones. So its peers are a uniform draw (but for equal texts), and most
    contexts of a group are equal: runtime/ reads those once. Use another seed for each run, step
    and problem, e.g. the tuple of them. Raises ValueError for an index outside the lists or lists
    of different lengths.
    """
    n = len(correct)
    usable, group = usable or [True] * n, group or [None] * n
    texts = texts or list(range(n))
    if not 0 <= i < n or not n == len(usable) == len(texts) == len(group):
        lengths = f"{len(usable)} usable, {len(texts)} texts, {len(group)} groups"
        raise ValueError(f"choose_peers: i={i}, {n} verdicts, {lengths}")
    mates = [j for j in range(n) if usable[j] and group[j] == group[i]]

    def in_order(verdict):
        order = [j for j in mates if bool(correct[j]) is verdict]
        # Shuffle first, leave i out afterwards: all rollouts of the group share one order.
        random.Random(repr((seed, verdict))).shuffle(order)
        return [j for j in order if j != i]

    successes = distinct_first(in_order(True), n_success, texts, taken=[texts[i]])
    shown = [texts[i], *(texts[j] for j in successes)]
    return Peers(successes, distinct_first(in_order(False), n_failure, texts, taken=shown))


def distinct_first(order, n, texts, *, taken=()) -> tuple[int, ...]:
    """The first n of `order`, in which repeats of a text, or of one in `taken`, move to the end."""
    seen, fresh, repeats = set(taken), [], []
    for j in order:
        (repeats if texts[j] in seen else fresh).append(j)
        seen.add(texts[j])
    return tuple((fresh + repeats)[:n])


def draw(candidates, n, texts, rng, *, taken=()) -> tuple[int, ...]:
    """Up to n of the candidates: shuffled, then `distinct_first`."""
    order = list(candidates)
    rng.shuffle(order)
    return distinct_first(order, n, texts, taken=taken)


def choose_control(kind, contrastive, correct, i, *, usable, texts, group, seed=0) -> Peers:
    """An ablation: at most as many peers as `contrastive`, which are i's under that setting.

    "random": drawn from the group whatever the verdict, with the labels of contrastive's.
    "unrelated": successes of other problems, labelled successes. "success_only": the failure
    becomes one more success. The lists run over the whole step, otherwise the arguments are those
    of choose_peers. Slots that cannot be filled stay empty, counted in `empty`.
    """
    members = [j for j in range(len(correct)) if group[j] == group[i]]
    n_success = len(contrastive.successes)
    slots = n_success + len(contrastive.failures)
    # By i's place in its group: i itself would change with the order of the problems in the step.
    rng = random.Random(repr((seed, members.index(i), kind)))
    others = [j for j in members if j != i and usable[j]]
    if kind == "random":
        chosen = draw(others, slots, texts, rng, taken=[texts[i]])
        return Peers(chosen[:n_success], chosen[n_success:])
    if kind == "unrelated":
        outside = [j for j in range(len(correct)) if group[j] != group[i]]
        candidates = [j for j in outside if usable[j] and correct[j]]
    elif kind == "success_only":
        candidates = [j for j in others if correct[j]]
    else:
        raise ValueError(f"unknown control {kind!r}: use random, unrelated or success_only")
    chosen = draw(candidates, slots, texts, rng, taken=[texts[i]])
    return Peers(chosen, (), slots - len(chosen))


def teacher_prompt(problem, *, successes=(), failures=(), feedback="") -> str:
    """What the teacher reads as one user turn: problem, successes, failures, feedback, instruction.

    Everything stays inside this turn: peers added after the chat template has closed it would be
    read as the model's own words or as another turn. Without peers and feedback it is the bare
    problem, so that the teacher's context and the student's are the same. Chains of thought are
    removed from the peers (see `strip_thinking`).
    """
    parts = [problem]
    for n, text in enumerate(successes):
        parts += [ANOTHER_SUCCESS if n else SUCCESS, strip_thinking(text)]
    for text in failures:
        parts += [FAILURE, strip_thinking(text)]
    if feedback:
        parts += [FEEDBACK, feedback]
    return "".join(parts + [INSTRUCTION]) if len(parts) > 1 else problem


def teacher_turns(problem, *, successes=(), failures=(), feedback="") -> list[dict[str, str]]:
    """What the teacher reads as a conversation: [{"role": "user" or "assistant", "content"}, ...].

    Each peer is an exchange: the problem as the user's turn, the attempt as the assistant's; its
    verdict opens the user turn that follows. Unlike in teacher_prompt failures come first, so that
    the last attempt read is a success; then comes the problem again, with the feedback on the
    rollout that is scored, if there is any. Roles alternate, as chat templates expect. A copy of
    the problem for every peer is the price (does it pay? docs/layouts.md). Without peers and
    feedback: the bare problem.
    """
    messages, verdict = [], ""
    for text, after in [(text, WRONG) for text in failures] + [(text, RIGHT) for text in successes]:
        messages += [
            {"role": "user", "content": verdict + problem},
            {"role": "assistant", "content": strip_thinking(text)},
        ]
        verdict = after
    note = TURN_FEEDBACK + feedback if feedback else ""
    return [*messages, {"role": "user", "content": verdict + problem + note}]


def teacher_messages(layout, problem, **peers) -> list[dict[str, str]]:
    """What the teacher reads in one of LAYOUTS: `teacher_prompt` or `teacher_turns`."""
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}: use {', '.join(LAYOUTS)}")
    if layout == "turns":
        return teacher_turns(problem, **peers)
    return [{"role": "user", "content": teacher_prompt(problem, **peers)}]


def readable(messages) -> str:
    """A conversation as a text to look at: a single turn as it is, several under their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in messages)


def strip_thinking(text) -> str:
    """The text without `<think>…</think>`; a lone `</think>` takes all before it, a lone `<think>`
    all after it.
    """
    while "<think>" in text or "</think>" in text:  # again: what remains may form new marks
        text = re.sub(r"(?s)<think>.*?(</think>|\Z)", "", text).rpartition("</think>")[2]
    return text.strip()


def leaks(text) -> bool:
    """Whether a completion speaks of peers, by LEAK_PHRASES."""
    text = " ".join(text.lower().split())
    return any(phrase in text for phrase in LEAK_PHRASES)


def shorten(text, budget, encode, decode) -> tuple[str, bool]:
    """(text, False) if it has at most `budget` tokens, else (its first and last ones, True).

    Of the first and last ones there are `budget` in all, a mark between them. The tail is kept
    because that is where the answer stands. encode: text to token ids; decode: the reverse.
    """
    ids = encode(text)
    if len(ids) <= budget:
        return text, False
    head = budget // 2
    return decode(ids[:head]) + "\n[...]\n" + decode(ids[len(ids) - (budget - head) :]), True
