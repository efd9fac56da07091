"""One row of a published data set as (prompt, gold answer, system message): fields and golds.

A row is a dict, as JSON, CSV or parquet gives it. The fields are found by their usual names or
named by the user; the golds are brought to the forms of docs/data.md. Nothing of a row is executed
or imported. What cannot be read without a guess raises ValueError, which says why.
"""

import contextlib
import functools
import json
import math
import random
import re
from dataclasses import dataclass

import math_answers
import verifiers
from runtime import data_golds
from runtime.data_golds import from_json

# Usual names, the likeliest first. A dot leads into an object: {"reward_model": {"ground_truth"}}.
PROMPTS = (
    *("prompt", "question", "problem", "query", "question_content", "text", "description"),
    *("messages", "conversations"),
)
ANSWERS = {
    "math": (
        *("answer", "final_answer", "expected_answer", "ground_truth"),
        *("reward_model.ground_truth", "gold", "target", "solution"),
    ),
    "science": (
        *("answer", "answerkey", "answer_key", "answer_idx", "answer_index", "correct_answer"),
        *("correct_option", "cop", "label", "target", "gold", "ground_truth"),
        "reward_model.ground_truth",
    ),
    "tool": ("answer", "answers", "ground_truth", "reward_model.ground_truth", "tool_calls"),
    "code": (
        *("answer", "input_output", "public_test_cases", "public_tests", "test_list", "tests"),
        *("test", "ground_truth", "reward_model.ground_truth"),
    ),
}
KEYS = ("answerkey", "answer_key", "answer_idx", "answer_index", "correct_option", "cop")
SYSTEMS = ("system",)  # under any other name it must be named: it replaces the task's instruction
# what else the functions below look at; of a parquet file nothing more is read
OTHERS = (
    *("choices", "options", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "tools", "function"),
    *("functions", "id", "starter_code", "private_test_cases", "metadata", "private_tests"),
    *("generated_tests", "test_setup_code", "test_imports", "code", "entry_point", "test_info"),
    *("instructions", "golden_answers", "instances", "nldocumentation", "name"),
    *("incorrect_answer_1", "incorrect_answer_2", "incorrect_answer_3"),
)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Number:
    """An option's number whose base, 0 or 1, only the other rows of the file can tell."""

    value: int
    options: int
    is_text: bool


@dataclass
class Read:
    """What was read of a row. used: (role, field) for the line that says where things are from.

    other: the field of another gold, which disagrees.
    """

    prompt: str
    answer: object
    system: str | None
    used: tuple[tuple[str, str], ...] = ()
    other: str | None = None


_MESSAGES = re.compile(r'\[\s*\{\s*"')  # in a cell of a CSV file


def read(row: dict, task: str, *, prompt=None, answer=None, system=None) -> list[Read]:
    """The problems of a row: one, but for ToolAlpaca's, which hold several.

    prompt, answer, system: names of the fields; None: the usual ones. ValueError for a bad row.
    """
    if task == "tool" and isinstance(row.get("NLDocumentation"), str) and not answer:
        name, pairs = data_golds.toolalpaca(row)
        used = ("prompt", "Instructions"), ("answer", name)
        for _, actions in pairs:
            verifiers.check_answer("tool", actions)
        return [Read(text, actions, system=None, used=used) for text, actions in pairs]
    prompt, value = _field(row, PROMPTS, prompt, _is_prompt, "prompt")
    message, text, reply = None, value, None
    if isinstance(value, str) and _MESSAGES.match(value):
        value = from_json(value)
    if not isinstance(value, str):
        message, text, reply = _conversation(value, task, prompt)
    name, found = _first(row, (system,)) if system else (SYSTEMS[0], row.get(SYSTEMS[0]))
    if found is not None and not isinstance(found, str):
        raise ValueError(f"field {name!r} is neither a text nor null")
    message = message if found is None else found
    if not text.strip():
        raise ValueError(f"field {prompt!r} is empty")
    convert = {"math": _math, "science": _science, "tool": _tool, "code": _code}[task]
    answer, made = convert(row, answer, Read(text, reply, message))
    used = [("prompt", prompt), ("answer", answer)]
    if made.other:
        used.append(("disagreement", f"{answer!r} and {made.other!r}"))
    return [Read(made.prompt, made.answer, made.system, tuple(used))]


# --- fields ---


def look_up(row: dict, name: str):
    """The value of a field, of a field inside an object for a dotted name, or None."""
    if name in row or "." not in name:
        return row.get(name)
    value = row
    for part in name.split("."):
        value = from_json(value)
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict):
            value = value.get(part)
        else:
            return None
    return value


@functools.lru_cache(1024)
def plain(name: str) -> str:
    """A field's name in lower case with underscores: "Correct Answer" is correct_answer."""
    return re.sub(r"[\s_-]+", "_", name.strip()).lower()


@functools.lru_cache(1024)
def _plain_names(names):
    return {plain(name): name for name in names if isinstance(name, str)}


def _first(row, names, usable=None):
    """(name, value) of the first field of these names that is there and not None, else (.., None).

    The names as they stand come first, then names that differ in case, spaces and underscores.
    """
    for loosely in (False, True):
        others = _plain_names(tuple(row)) if loosely else {}
        for name in names:
            actual = others.get(name, name) if loosely else name
            value = look_up(row, actual)
            if value is not None and (usable is None or usable(value)):
                return actual, value
    return names[0], None


def has(row: dict, name: str) -> bool:
    """Whether a row has a field of this name, be it null."""
    if name in row or name in _plain_names(tuple(row)) or look_up(row, name) is not None:
        return True
    outer, _, last = name.rpartition(".")
    value = from_json(look_up(row, outer)) if outer else None
    return isinstance(value, dict) and last in value


def _field(row, usual, named, usable, role):
    """(name, value) of the field that was named, else of the first usual one that is usable."""
    names = (named,) if named else usual
    name, value = _first(row, names, usable)
    if value is not None:
        return name, value
    name, value = _first(row, names)
    if value is not None:
        raise ValueError(f"field {name!r} is {'not a text' if role == 'prompt' else 'empty'}")
    wanted = " or ".join(map(repr, [named] if named else _short(names)))
    hint = "see --prompt-field, --answer-field"
    if role == "answer" and _first(row, ANSWERS["science"])[1] is not None:
        hint += ", or is this --task science?"
    raise ValueError(f"no field {wanted}, only {names_of(row)}: {hint}")


def _short(names):
    return [name for name in names if name in ("prompt", "question", "answer", "solution")]


def names_of(row: dict) -> str:
    """The names of a row's fields, the first twenty."""
    names = ", ".join(repr(str(name))[:40] for name in list(row)[:20])
    return names + (", ..." if len(row) > 20 else "") or "nothing"


def _is_prompt(value):
    if isinstance(value, dict):
        return isinstance(value.get("stem"), str)  # ARC's original files
    return isinstance(value, str) and bool(value.strip()) or isinstance(value, list) and value != []


def _is_there(value):
    return value not in ("", [], {}) and not (isinstance(value, str) and not value.strip())


# --- conversations ---

ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "function": "tool"}


def _conversation(value, task, name):
    """(system message or None, user turn, the assistant's first turn or None) of messages."""
    if isinstance(value, dict):
        return None, value["stem"], None
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]  # BFCL: a list of turns, each a list of messages
    if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
        raise ValueError(f"field {name!r} is neither a text nor one list of messages")
    turns = []
    for message in value:
        role = message.get("role") or message.get("from") or ""
        text = next((message[key] for key in ("content", "value") if message.get(key)), "")
        turns.append((ROLES.get(role, role), _text_of(text, name), message))
    system = None
    if turns and turns[0][0] in ("system", "developer"):
        system = turns.pop(0)[1]
    roles = [role for role, _, _ in turns]
    after = roles[2:3] if task == "tool" else roles[2:]  # a call's replies come after the answer
    if (
        roles[:1] != ["user"]
        or roles[1:2] not in ([], ["assistant"])
        or after not in ([], ["tool"])
    ):
        shown = ", ".join(roles[:6]) + (", ..." if len(roles) > 6 else "")
        raise ValueError(
            f"field {name!r} is a conversation of {len(roles)} turns ({shown}); "
            "a system message and one user turn are read"
        )
    reply = None
    if len(turns) > 1:
        reply = turns[1][2].get("tool_calls") or turns[1][1]
    return system, turns[0][1], reply


def _text_of(content, name):
    if isinstance(content, list):  # parts: [{"type": "text", "text": ...}]
        if not all(
            isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
        ):
            raise ValueError(f"field {name!r} has a message that is not only text")
        content = "\n".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ValueError(f"field {name!r} has a message that is not a text")
    return content


def _gold(row, task, named, convert, reply=None):
    """(field, its value, its gold, field of a gold that disagrees or None).

    convert(value, name) gives the gold and raises ValueError where there is none. Without a named
    field `answer` is taken where it is usable, else the first of the other usual fields; of
    messages that go on, it is the assistant's turn.
    """
    turns = () if reply is None else ("messages", "conversations")
    name, value = _field(row, ANSWERS[task] + turns, named, _is_there, "answer")
    value = reply if plain(name) in turns else value
    if named or plain(name) != "answer":
        return name, value, convert(value, name), None
    golds, fault = [], None
    no_value = isinstance(value, str) and value.strip().isalpha()  # "proof", "notfound"
    for field, found in [(name, value), *_other_fields(row, ANSWERS[task], name)]:
        if not golds and no_value and plain(field) == "solution":
            continue
        try:
            golds.append((field, found, convert(found, field)))
        except ValueError as error:
            fault = fault or error
        if golds and task in ("tool", "code"):  # their other fields are more tests or a message
            break
    if not golds:
        raise fault
    golds.sort(key=lambda gold: _is_unsure(gold[2], *gold[:2]))
    others = [
        (field, gold)
        for field, found, gold in golds[1:]
        if isinstance(gold, Number) or not _is_unsure(gold, field, found)
    ]
    other = next((field for field, gold in others if _differ(task, golds[0][2], gold)), None)
    return *golds[0], other


def _other_fields(row, names, taken):
    columns, seen = _plain_names(tuple(row)), {taken}
    for name in names:
        name = name if name in row else columns.get(name, name)
        value = look_up(row, name)
        if name not in seen and value is not None and _is_there(value):
            seen.add(name)
            yield name, value


def _is_unsure(gold, name, value):
    """Whether another gold is to be preferred: to a sentence, and to a number of an option."""
    if isinstance(gold, str) and plain(name) == "answer" and gold == value:
        return _is_prose(gold)
    return isinstance(gold, Number)


def _is_prose(text):
    text = re.sub(r"\\text\{[^{}]*\}", "", text)
    return len(re.findall(r"(?<![\\A-Za-z])[A-Za-z]{3,}", text)) > 3


def _differ(task, one, other):
    if task == "science" and isinstance(other, Number) and not isinstance(one, Number):
        return LETTERS.index(one.upper()) - other.value not in (0, -1)  # it counts from 0 or 1
    if task == "science" or one == other:
        return one != other and str(one).upper() != str(other).upper()
    return not math_answers.same_answer(one, other)


# --- math ---


def _math(row, named, made):
    name, _, gold, other = _gold(row, "math", named, math_gold, made.answer)
    return name, Read(made.prompt, gold, made.system, other=other)


def math_gold(value, name: str) -> str:
    """The gold in a field: the value as it stands where the verifier takes it, or what is in it.

    A text with #### or a box gives what stands there. ValueError where no value is found.
    """
    text = math_text(value, name)
    if "####" in text:
        text = text.rsplit("####", 1)[1].strip().partition("\n")[0].strip()
    elif re.search(r"\\(?:boxed|fbox)", text):
        boxes, fault = verifiers._boxed(text)
        if not boxes:
            raise ValueError(f"field {name!r} has no complete \\boxed answer: {fault}".rstrip(": "))
        text = boxes[-1]
    elif plain(name) in ("solution", "messages", "conversations") and _is_prose(text):
        raise ValueError(f"field {name!r} is a text without #### or \\boxed: no answer to read")
    verifiers.check_answer("math", text)
    if isinstance(value, str) and value != text:  # an older checkpoint knows the value as it stood
        with contextlib.suppress(ValueError):
            verifiers.check_answer("math", value)
            return value if math_answers.same_answer(text, value) else text
    return text


def math_text(value, name: str) -> str:
    """A gold value as text: a text, a number, or a list of one text, also as JSON in a text."""
    if isinstance(value, str) and re.match(r'\s*(\[\s*)?".*"\s*\]?\s*$', value, re.S):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if type(value) is int:
        return str(value)
    if type(value) is float and math.isfinite(value):
        return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)
    if not isinstance(value, str):
        kind = "a list" if isinstance(value, list) else f"not a text or number ({value!r:.40})"
        raise ValueError(f"field {name!r} is {kind}")
    return value.strip()


# --- science ---


def _science(row, named, made):
    options, other = _gpqa(row) if named is None else None, None
    if options:  # the right one is first: an order fixed by the row
        name, value, right = "Correct Answer", None, options[0]
        random.Random(made.prompt).shuffle(options)
        letter, options = LETTERS[options.index(right)], [("", text) for text in options]
    else:
        options = _options(row)

        def letter_of(value, name):
            return _letter(value, options, made.prompt, name)

        name, value, letter, other = _gold(row, "science", named, letter_of)
    prompt = made.prompt
    shown = _shows_options(prompt, "A") and all(text in prompt for _, text in options)
    if options and not shown:
        lines = [f"{mark}: {text}" for mark, (_, text) in zip(LETTERS, options, strict=False)]
        prompt = prompt.rstrip() + "\n\n" + "\n".join(lines)
    elif isinstance(value, str) and value.upper() == letter:
        letter = value  # the prompt is as it was, so a small letter stays one, too
    if not isinstance(letter, Number):
        verifiers.check_answer("science", letter)
    return name, Read(prompt, letter, made.system, other=other)


def _gpqa(row):
    """The right option and the wrong ones of GPQA's columns, or None."""
    names = _plain_names(tuple(row))
    wanted = ["correct_answer", *(f"incorrect_answer_{n}" for n in (1, 2, 3))]
    if not all(name in names for name in wanted):
        return None
    texts = [row[names[name]] for name in wanted]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("a 'Correct Answer' or an 'Incorrect Answer' is empty")
    texts = [text.strip() for text in texts]
    if len(set(texts)) < len(texts):
        raise ValueError("two of the options are the same")
    return texts


def _options(row):
    """[(label or "", text), ...] of a row's choices; [] where it has none."""
    stem = row.get("question")
    _, found = _first(row, ("choices", "options"))
    if found is None and isinstance(stem, dict):
        found = stem.get("choices")  # ARC's original files
    found = from_json(found)
    if found is None:
        columns = _plain_names(tuple(row))
        found = {
            mark: row[columns[mark.lower()]] for mark in LETTERS[:10] if mark.lower() in columns
        }
        found = {mark: text for mark, text in found.items() if text is not None}
        if len(found) < 2:
            return []
    if isinstance(found, dict) and isinstance(found.get("text"), list):
        labels, texts = found.get("label") or [""] * len(found["text"]), found["text"]
    elif isinstance(found, dict):
        found = {label: text for label, text in found.items() if text is not None}
        labels, texts = list(found), list(found.values())
    elif isinstance(found, list) and all(isinstance(option, dict) for option in found):
        labels = [o.get("label") or o.get("key") or "" for o in found]
        texts = [o.get("text") or o.get("value") or o.get("content") for o in found]
    elif isinstance(found, list):
        labels, texts = [""] * len(found), found
    else:
        raise ValueError("the choices are neither a list nor an object")
    texts = [str(t) if isinstance(t, (int, float)) else t for t in texts]
    if len(labels) != len(texts) or not 2 <= len(texts) <= 26:
        raise ValueError(f"{len(texts)} choices with {len(labels)} labels")
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("one of the choices is not a text")
    marked = [
        re.match(rf"\s*\(?{mark}[.):]\s+", t) for mark, t in zip(LETTERS, texts, strict=False)
    ]
    if all(marked):  # "A. iron": the letter stands in the text
        texts = [text[m.end() :] for text, m in zip(texts, marked, strict=True)]
    return [(str(label), text.strip()) for label, text in zip(labels, texts, strict=True)]


def _letter(value, options, prompt, name):
    """The right option's letter; a Number where the answer counts options from 0 or from 1."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if type(value) is float and value == int(value):
        value = int(value)
    if type(value) is int:
        if not options:
            raise ValueError(f"the answer {value} counts options, and the row has none")
        return Number(value, len(options), False)
    if not isinstance(value, str):
        raise ValueError(f"field {name!r} is no option's letter, number or text")
    text = value.strip()
    letter = re.fullmatch(r"\(?([A-Za-z])\)?[.:]?", text)
    if not options:
        if not letter:
            raise ValueError(f"a science answer is one letter, not {text!r:.80}")
        if not _shows_options(prompt, letter[1].upper()):
            raise ValueError(
                "no options like 'A: …' or 'A) …' were found in the prompt, nor in a field "
                f"(choices, options): the student could not know what {letter[1]} is"
            )
        return letter[1].upper()
    at = _option_of(text, letter, options, plain(name) in KEYS)
    if at is not None:
        return LETTERS[at]
    if re.fullmatch(r"\d{1,2}", text):
        return Number(int(text), len(options), True)
    raise ValueError(f"the answer {text!r:.60} is none of the {len(options)} options")


def _option_of(text, letter, options, is_key):
    """Which option an answer means by its label, its letter or its text; None where by none.

    letter: the match where it is a letter alone. is_key: the field never holds an option's text.
    """
    labels = [label.strip().lower() for label, _ in options]
    same = [n for n, (_, option) in enumerate(options) if option == text]
    number, at = re.fullmatch(r"\d{1,2}", text), None
    if text.lower() in labels:
        at = labels.index(text.lower())
    elif letter and LETTERS.index(letter[1].upper()) < len(options):
        at = LETTERS.index(letter[1].upper())
    if same and not is_key and (at not in same and at is not None or number and at is None):
        meant = f"option {LETTERS[at]}" if at is not None else "an option's number"
        raise ValueError(
            f"the answer {text!r} is ambiguous: {meant}, or the text of option {LETTERS[same[0]]}"
        )
    if at is not None:
        return at
    if len(same) == 1 and not number:
        return same[0]
    marked = re.match(r"\(?([A-Za-z])[).:]", text)  # "B: iron", "(B) iron"
    if marked and LETTERS.index(marked[1].upper()) < len(options):
        return LETTERS.index(marked[1].upper())
    return None


# An option's letter: at the start of a line with anything but letters around it, "**A.** iron",
# "Option A iron"; inside a line with brackets or a sign, "(A) iron", "A: iron", "A - iron".
_OPTION_LINE = re.compile(
    r"^[^A-Za-z\n]{0,20}(?:(?:option|choice)[^A-Za-z\n]{1,9})?([A-Za-z])(?![A-Za-z])", re.M | re.I
)
_OPTION_INLINE = re.compile(
    r"""(?:^|(?<=[\s(\[{<*_"'`$、，；]))([A-Za-z])(?=[*_"'`$]{0,3}\s*[.):：\]}>、．）])"""
    r"|\*\*([A-Z])\*\*|\b(?:[Oo]ption|[Cc]hoice)\s([A-Z])\b|(?<!\S)([A-Z])(?=\s[-–—]\s)"
)


def _shows_options(prompt, letter):
    """Whether a prompt lists options: A, then B, and the right one."""
    found = {m.start(1): m[1] for m in _OPTION_LINE.finditer(prompt)}
    for m in _OPTION_INLINE.finditer(prompt):
        found[m.start(m.lastindex)] = m[m.lastindex]
    marks = [found[at].upper() for at in sorted(found)]
    return letter in marks and "A" in marks and "B" in marks[marks.index("A") :]


def is_choice(row: dict, made: Read) -> bool:
    """Whether a gold that was read for math is an option's letter, or its number, in the row."""
    gold = made.answer.strip("(). ").upper()
    if not re.fullmatch("[A-J]|[0-9]", gold):
        return False
    with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError):
        if options := _options(row):
            if gold.isdecimal() and ("A" in row or gold in (str(text) for _, text in options)):
                return False  # the value of an option, not its number
            return gold.isalpha() or int(gold) <= len(options)
    return gold.isalpha() and _shows_options(made.prompt, gold)


def settle_numbers(golds: list) -> tuple[int, list[int]]:
    """(base, positions of golds that it cannot be): do these Numbers count from 0 or from 1?

    A 0 tells, and a number as high as there are options. Otherwise integers count from 0, as in
    MMLU; texts of digits are as often the one as the other, and are refused.
    """
    numbers = [(n, gold) for n, gold in enumerate(golds) if isinstance(gold, Number)]
    zero = any(gold.value == 0 for _, gold in numbers)
    full = any(gold.value == gold.options for _, gold in numbers)
    base = int(full and not zero)
    unsure = not zero and not full
    bad = [
        n
        for n, gold in numbers
        if not base <= gold.value < base + gold.options or unsure and gold.is_text
    ]
    return base, bad


# --- tool and code ---


def _tool(row, named, made):
    name, _, (actions, as_it_is), _ = _gold(row, "tool", named, _actions, made.answer)
    tools, system = _first(row, ("tools", "functions", "function"), _are_tools)[1], made.system
    if tools is None and system and not as_it_is:
        tools = data_golds.tools_in(system)  # ToolACE: it also asks for another form of answer
        system = None if tools else system
    prompt = made.prompt
    if tools:
        described = dict(data_golds.described(tools))
        called = [action["Action"].strip() for action in actions]
        if missing := [tool for tool in called if tool not in described]:
            raise ValueError(f"the answer calls {missing[0]!r}, which is none of the row's tools")
        prompt = "\n".join(["Tools:", *described.values(), "", made.prompt])
    return name, Read(prompt, actions, system)


def _actions(value, name):
    """(actions, whether the value is that already and so is left as it is)."""
    with contextlib.suppress(ValueError):
        verifiers.check_answer("tool", value)
        return value, True
    actions = data_golds.tool_actions(from_json(value))
    verifiers.check_answer("tool", actions)
    return actions, False


def _are_tools(value):
    """Whether a field describes tools; a text like "weather(city)" beside the prompt does not."""
    value = from_json(value)
    items = value if isinstance(value, list) else [value]
    return any(isinstance(from_json(item), dict) for item in items)


def _code(row, named, made):
    def tests(value, name):
        answer = data_golds.code_answer(row, plain(name), value)
        verifiers.check_answer("code", answer)
        return answer

    name, _, answer, _ = _gold(row, "code", named, tests)
    return name, Read(data_golds.code_prompt(made.prompt, answer), answer, made.system)
