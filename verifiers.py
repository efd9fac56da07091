r"""Rule-based verifiers for math, science, tool use and code: response and gold in, Verdict out.

The input is text from a model that is optimised against these rules: no model text is evaluated
outside the sandbox, scans are linear, every recursion and every integer has a bound, and feedback
is made from the response alone: the gold answer only decides whether there is any. Math needs
math_answers.py and code sandbox.py beside this file, science and tool nothing.

    verify("math", r"so it is \boxed{\frac12}", "0.5")    # Verdict(True, '\\frac12', '')
"""

import importlib.util
import json
import math
import re
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

TASKS = ("math", "code", "science", "tool")
INSTRUCTIONS = {  # what the prompt asks for, beside the code that reads it
    "math": r"Reason step by step and put the final answer in \boxed{}.",
    "code": "Write the complete Python program or function in one fenced block: ```python ... ```.",
    "science": "Give your reasoning, then only the letter of the right option in answer tags: "
    "<answer>B</answer>.",
    "tool": "Write 'Thought: ' and what to do; then for each call a line 'Action: ' with the "
    "tool's name and a line 'Action Input: ' with its arguments as one JSON object.",
}
MAX_ANSWER, MAX_PROGRAM, MAX_FEEDBACK = 1_000, 1 << 20, 2_000  # characters


@dataclass(frozen=True)
class Verdict:
    """`answer`: what was read from the response. `feedback`: at most 2,000 characters, or ""."""

    correct: bool
    answer: str | None
    feedback: str


def verify(task: str, response: str, answer: Any) -> Verdict:
    """Verdict on any response text. ValueError only for a bad task or gold `answer`."""
    if task not in TASKS:
        check_answer(task, answer)  # raises; each verifier checks the answer, once
    judges = (verify_math, verify_code, verify_science, verify_tool)
    return dict(zip(TASKS, judges, strict=True))[task](response, answer)


def verify_batch(
    task: str, responses: Sequence[str], answers: Sequence[Any], *, workers: int | None = None
) -> list[Verdict]:
    """Verdicts of equally long lists, in order; equal (response, answer) pairs are judged once.
    Programs run `workers` at a time (by default and at most one a core)."""
    keys = [(response, repr(answer)) for response, answer in zip(responses, answers, strict=True)]
    unique = dict(zip(keys, zip(responses, answers, strict=True), strict=True))
    if task != "code":
        verdicts = {key: verify(task, *pair) for key, pair in unique.items()}
        return [verdicts[key] for key in keys]
    for answer in {id(answer): answer for answer in answers}.values():
        check_answer(task, answer)  # all of them before a program runs
    cores = _sibling("sandbox", "code").cores()
    pool = ThreadPoolExecutor(max(1, min(workers or cores, cores)))
    try:
        jobs = {key: pool.submit(verify_code, *pair) for key, pair in unique.items()}
        return [jobs[key].result() for key in keys]
    finally:  # `with` would run all that is queued, after a Ctrl-C too
        pool.shutdown(cancel_futures=True)


def check_answer(task: str, answer: Any) -> None:
    """ValueError, saying what is wrong, unless `answer` can be a gold answer of this task."""
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: choose one of {', '.join(TASKS)}")
    if task == "math":
        fault = f"is a string of 1 to {MAX_ANSWER} characters"
        if isinstance(answer, str) and 0 < len(answer.strip()) <= MAX_ANSWER:
            fault = _sibling("math_answers", "math").gold_fault(answer)
        if fault:
            raise ValueError(f"a math answer {fault}, not {answer!r:.80}")
    if task == "science" and not (isinstance(answer, str) and re.fullmatch("[A-Za-z]", answer)):
        raise ValueError(f"a science answer is one letter, not {answer!r:.80}")
    if task == "tool":
        _gold_actions(answer)
    if task == "code":
        _check_code_answer(answer)


@cache  # finding a module costs as much as comparing two numbers
def _sibling(name, task):
    if importlib.util.find_spec(name) is None:
        advice = f"{task} answers need {name}.py: copy it beside verifiers.py"
        raise ModuleNotFoundError(advice, name=name)
    return importlib.import_module(name)


def _visible(text):
    """Text outside <think>...</think>; a lone mark hides all before </think> or after <think>."""
    shown, start, hidden = [], 0, False
    for tag in re.finditer("</?think>", text):
        if not hidden and tag[0] == "<think>":
            shown.append(text[start : tag.start()])
        elif not hidden:
            shown.clear()
        start, hidden = tag.end(), tag[0] == "<think>"
    return "".join(shown) + ("" if hidden else text[start:])


# --- math: which text is the final answer? ---

_BOX = re.compile(  # then a brace or, without one, a number, a command or a letter
    r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*(\{|[-+]?[\d.]+[^\s{}$]*"
    r"|\\(?!boxed|fbox|framebox)[a-zA-Z]+(?:\{[^{}]*\})*|[A-Za-z](?![A-Za-z]))|\\.|\{|\}",
    re.S,  # \{|\}, not [{}]: so that each branch starts with one character, re skips what is none
)
_NO_ANSWER = re.compile(  # \boxed{}, \boxed{...}, \boxed{?}, \boxed{\text{answer}}
    r"(?:\\text\s*\{)?(?:\s|\\[ ,;]|\\q?quad\b)*"
    r"(?:\.{2,}|…|\\[lc]?dots|\?+|(?:(?:your|the)\s+)?(?:final\s+)?answer)?\s*\}?",
    re.I,
)
_JOINER = re.compile(  # between boxes that make one list: "} and y = \boxed{"
    r"(?=.{0,60}$)(?:[\s$,;]|\\[,;:! ()\[\]]|\\q?quad\b|\\text\s*\{\s*(?:,|and|or)*\s*\}|and\b|or\b"
    r"|\w(?:_\w)?\s*=)*",
    re.S,
)
_MARK = re.compile(
    r"^(?P<hash>#{4,})|\banswers?\b[*_`]*\s*(?:is\b|are\b|:|=)"
    r"|^(?P<heading>[^\w\n]*(?:the )?(?:final )?answer[^\w\n]*)$",
    re.I | re.M,
)
_DISPLAY = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]", re.S)
_CLAUSE = re.compile(  # what may follow a value in a sentence
    r"\.\s+(?=[A-Z])|,\s+(?!(?:and|or|sin|cos|tan|log|ln|sqrt|pi)\b)(?=[a-z]{2})"
    r"|\s+(?:because|since)\b"
)


def _boxed(text):
    """(answers, what is missing): the last complete box that holds something and, where boxes are
    joined by commas or "and", also their list."""
    braces, boxes, bare, empty = [], [], "", False
    for m in _BOX.finditer(text):
        if m[1] == "{" or m[0] == "{":
            braces.append((m.start(), m.end()) if m[1] else None)
        elif m[1]:
            bare = m[1].rstrip(".,")
        elif m[0] == "}" and braces and (opened := braces.pop()):
            content = text[opened[1] : m.start()].strip()
            empty |= not content
            if not _NO_ANSWER.fullmatch(content):
                boxes.append((opened[0], m.end(), content))
    if not boxes and not bare:
        unclosed = r"The \boxed{ is never closed: the response is cut off or a brace is missing."
        return [], unclosed if any(braces) else "The answer box is empty." if empty else ""
    joined = [boxes[-1][2] if boxes else bare]
    for (_, end, before), (start, _, _) in zip(boxes[-2::-1], boxes[:0:-1], strict=False):
        between = text[end:start]
        listed = re.search(r",|\b(?:and|or)\b", between) and _JOINER.fullmatch(between)
        if end > start or not listed:
            break
        joined.insert(0, before)
    return [joined[-1], ", ".join(joined)][: len(joined)], ""


def _final_answers(text):
    """(answers, what is missing): the box, else what follows "answer is", "# Answer" or "####"."""
    answers, problem = _boxed(text)
    if answers or problem:
        return answers, problem
    missing = [], r"No final answer was found: it has to stand in \boxed{}."
    marks = list(_MARK.finditer(text))
    if not marks:
        return missing
    rest = text[marks[-1].end() :]
    if styled := re.match(r"[\s:=*_]*?(\*{1,3}|`)(?=\S)([^*`\n]+)(?<=\S)\1", rest):
        return [styled[2].strip()], ""
    rest = rest.strip(" \t\r\n:=*_`")
    if display := _DISPLAY.match(rest):
        value, tail = display[1] or display[2], rest[display.end() :]
    else:
        value, _, tail = rest.partition("\n")
        value = _CLAUSE.split(value)[0]
    settled = marks[-1]["hash"] or marks[-1]["heading"]  # else a later number may be the answer
    if not value.strip() or not settled and re.search(r"\d", tail):
        return missing
    return [value.strip(" *_`\n")], ""


def verify_math(response: str, answer: str) -> Verdict:
    """`answer`: the gold value as text, in LaTeX or plain notation."""
    check_answer("math", answer)
    math_answers = _sibling("math_answers", "math")
    answers, problem = _final_answers(_visible(response))
    if not answers:
        return Verdict(False, None, problem)
    for found in answers:
        if len(found) <= MAX_ANSWER and math_answers.same_answer(found, answer):
            return Verdict(True, found, "")
    found = answers[0]
    readable = len(found) <= MAX_ANSWER and math_answers.is_value(found)
    fault = "is wrong" if readable else "could not be read as a value"
    return Verdict(False, found[:MAX_ANSWER], f"The final answer {fault}: {found[:200]}")


# --- science: which letter was chosen? ---

_MARKUP = re.compile(r"\\(?:text|math|f?box)\w*|\\[()\[\]]|[*_$`{}\"'“”‘’«»「」]")
_LEAD = re.compile(  # "The best answer is option", "I choose"
    r"(?:(?:so|thus|hence|therefore|it is|i (?:would )?(?:choose|pick|select))\b[\s,]*(?=[(A-Z])"
    r"|(?:the |my )?(?:(?:best|correct|right|final|most likely)\s+)*"
    r"(?:option|choice|answer|letter)s?\b(?:\s+(?:is|must be|would be|seems to be)\b)?\s*:?\s*"
    r"|(?:选项|答案|选)[是为]?\s*:?\s*){0,3}",
    re.I,
)
_EPITHETS = """abortus albicans anthracis aureus brevis burgdorferi carota cerevisiae cholerae coli
difficile elegans falciparum fumigatus gondii influenzae melanogaster musculus niger norvegicus
pneumoniae pombe pylori rerio rubra sapiens sativa subtilis thaliana thuringiensis tuberculosis
vulgaris"""
_EPITHETS = _EPITHETS.replace("\n", " ").replace(" ", "|")  # B. subtilis is no option B
_WORDS = r"and|or|as|because|but|for|since|due|which|(?:is|seems)(?! (?:not|wrong|incorrect|false))"
_CHOICE = re.compile(
    r"(?!I\b[\s,]*(?:and|or|&)?\s*II)"  # I, II and III
    r"(?:[(\[]([A-Za-z])[)\]](?![\w=#-])"  # (b) text
    r"|([A-Za-z])(?=\W*$|\s*[:;)]|\s*\n)"  # b: text
    rf"|([A-Z])(?=\.(?:\s|$)(?!\s*(?:{_EPITHETS})\b)"  # B. text
    r"|,\s|\s+[-–—=]\s|\s*—|\s+\(|\s*[/&|]\s*[A-Z]\b|\s+[A-Z]\W*$"  # B, text; B - text; B/C; B C
    rf"|\s+(?:{_WORDS})\b))"  # B because
)
_MORE = re.compile(  # another letter, unless it starts a clause: "B, C is wrong"; "B, I and II"
    r"[)\]]?\s*\(?(?:(?:[,;/&|+]|(?:and|or|also|maybe|perhaps|possibly|alternatively|[Oo]ption)\b)"
    r"\s*)+(?!I\b[\s,]*(?:and|or|,|&)\s*(?:II|IV)\b)(?:[(\[]([A-Za-z])[)\]]|([A-Z])\b)"
    r"(?=\W*$|\s*[,;/&|+):\n]|\.(?!\s+[A-Z][a-z])|\s+(?:and|or|are|because|since)\b)"
    r"|[(\[]([A-Za-z])[)\]](?![\w=#-])|[\s,]+[(\[]?([A-Z])[)\]]?(?=\W*$|\s*[(\[][A-Z][)\]])"
)
_SECOND = re.compile(  # an option's line, or "A: text, B: text"; not "A: text, B: wrong"
    r"(?:(?:^|\n)[ \t]*[(\[]?(?=[A-Z][)\].:]\s)"
    r"|(?:[,;&/]|\b(?:and|or)\b)\s*[(\[]?(?=[A-J](?:[)\]:]|\s[-–—](?!\s[A-Z]\b)|\.(?=\s[a-z\d]))\s"
    rf"(?![a-z]*s\b|(?:are|have|would|can|and|or|not?|only|both|wrong|it|too|{_EPITHETS})\b"
    r"|cannot|ruled|incorr|false|wrongly|un|im)))([A-Z])"
)
_SAID = re.compile(
    r"\b[Aa]nswer\b\W{0,5}(?:is\b|:)(?:[\s:*$]|\\\()*"
    r"(?=((?:(?:option|choice)\s+)?(?:[A-Z]\b|[(\[][A-Za-z][)\]]).{0,300}))"
)


def _letters(text):
    """The letters that a text chooses: B, (B), b, B: text, B because; not "B cells", "C=O"."""
    text = unicodedata.normalize("NFKC", text[:5_000]).translate({ord("。"): ". ", ord("、"): ", "})
    text = _MARKUP.sub("", text).strip()
    text = text[_LEAD.match(text).end() :]
    if not (m := _CHOICE.match(text)):
        return set()
    rest = text[m.end() :]
    letters = [m[m.lastindex], *_SECOND.findall(rest)]
    while more := _MORE.match(rest):
        letters.append(more[more.lastindex])
        rest = rest[more.end() :]
    return {letter.upper() for letter in letters}


def verify_science(response: str, answer: str) -> Verdict:
    """`answer`: the right letter. Read from <answer>, else \\boxed, else "answer is (B)"."""
    check_answer("science", answer)
    text = _visible(response)
    tags = re.findall(r"<answer>([^<]*(?:<(?!/?answer>)[^<]*)*)</answer>", text, re.I)
    letters = _letters(["", *_SAID.findall(text)[-1:], *_boxed(text)[0][:1], *tags[-1:]][-1])
    if not letters:
        fault = "No option was chosen: its letter alone has to stand in <answer> tags."
        return Verdict(False, None, fault)
    if len(letters) > 1:
        return Verdict(False, None, "More than one option was chosen.")
    letter = letters.pop()
    correct = letter == answer.upper()
    return Verdict(correct, letter, "" if correct else f"The chosen option, {letter}, is wrong.")


# --- tool ---


def _json_object(pairs):
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _json_number(text):
    if len(text) > 400 or not math.isfinite(float(text)):
        raise ValueError("a number is out of range")
    return Fraction(repr(float(text)) if "e" in text.lower() else text)


_NUMBERS = dict.fromkeys(("parse_constant", "parse_float", "parse_int"), _json_number)
_JSON = json.JSONDecoder(object_pairs_hook=_json_object, **_NUMBERS)
_LABEL = re.compile(r"^[ \t]*(?:Action:(.*)|Action Input:\s*(?:```(?:json)?\s*)?)", re.M)
_FORMS = (  # what else models write, and what to say
    (r"<tool_call>|<function", "tool calls in tags are not read"),
    (r"^[ \t]*\*+\s*Action", "the labels must be plain, without bold"),
    (r"^[ \t]*(?:action|ACTION)\b", "the labels are written 'Action:' and 'Action Input:'"),
    (r"\bAction[ \t]*:", "each label must start a line"),
    (r'"(?:name|arguments|parameters|tool|action)"\s*:', "a call as one JSON object is not read"),
    (r"^[ \t]*[A-Za-z_][\w.]*\(.*\)[ \t]*$", "calls in Python notation are not read"),
)


def _read_actions(text):
    """[[name, arguments], ...]; ValueError saying what is wrong with the form. Labels count at the
    start of a line, not inside a JSON value."""
    actions, name, at = [], None, 0
    while label := _LABEL.search(text, at):
        at = label.end()
        if label[1] is not None:
            if name:
                raise ValueError("An Action has no Action Input of its own.")
            name = label[1].strip()
            continue
        if not name:
            raise ValueError("An Action Input has no Action with a name before it.")
        given = f"The Action Input of {name[:200]} is"
        try:
            arguments, at = _JSON.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            quotes = "keys and texts need double quotes; " * text.startswith("{'", at)
            raise ValueError(f"{given} not valid JSON: {quotes}{str(error)[:200]}") from None
        if not isinstance(arguments, dict):
            raise ValueError(f"{given} not a JSON object.")
        if "{" in re.compile(".*").match(text, at)[0]:
            raise ValueError(f"{given} more than one JSON object.")
        actions.append([name, arguments])
        name = None
    if name:
        raise ValueError("The last Action has no line 'Action Input: ': it is missing or cut off.")
    if not actions:
        hints = [f" ({hint})" for form, hint in _FORMS if re.search(form, text[:20_000], re.M)]
        lines = "a line 'Action: ' and a line 'Action Input: '"
        raise ValueError(f"No action was found: it needs {lines}{''.join(hints[:1])}.")
    return actions


def _same_json(left, right):
    """Equal as JSON, where a string that is a number's text equals that number; true is not 1."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same_json(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same_json, left, right))
    if {type(left), type(right)} == {str, Fraction}:
        text, number = (left, right) if isinstance(left, str) else (right, left)
        plain = re.fullmatch(r"-?(?:0|[1-9]\d{0,39})(?:\.\d{1,40})?", text, re.A)
        return bool(plain) and Fraction(text) == number
    return type(left) is type(right) and left == right


def _gold_actions(answer):
    try:
        actions = [[item["Action"].strip(), _JSON.decode(item["Action_Input"])] for item in answer]
        if not actions or not all(name and isinstance(given, dict) for name, given in actions):
            raise ValueError("an empty list, an empty name, or an input that is no object")
    except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as error:
        form = '[{"Action": "name", "Action_Input": "{\\"argument\\": 1}"}], inputs as JSON text'
        raise ValueError(f"a tool answer is a list like {form}: {error!r:.200}") from None
    return actions


def verify_tool(response: str, answer: list[dict[str, str]]) -> Verdict:
    """`answer`: the actions in order: {"Action": name, "Action_Input": JSON object as text}."""
    gold = _gold_actions(answer)
    try:
        actions = _read_actions(_visible(response))
    except ValueError as error:
        return Verdict(False, None, str(error))
    correct = _same_json(actions, gold)
    shown = "; ".join(name for name, _ in actions)[:200]
    wrong = "The actions are well formed, but their tools, inputs, number or order are wrong."
    return Verdict(correct, shown, "" if correct else wrong)


# --- code ---

_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})[ \t]*([^\s`]*)([^\n`]*)$")
_TESTS = {
    "stdin": 'an object like {"input": "1 2\\n", "output": "3\\n"}',
    "functional": 'an object like {"input": "1\\n2", "output": "3"}, arguments and result as JSON',
    "assert": "a text like assert f(1, 2) == 3",
}


def verify_code(
    response: str, answer: dict, *, time_limit: float = 2.0, memory_mb: int = 1024
) -> Verdict:
    """Run the last program of `response` on the tests in order, up to the first that fails.

    answer: {"type": "stdin", "tests": [{"input", "output"}]}, {"type": "functional", "entry_point",
    "tests": the same with JSON lines in and JSON out} or {"type": "assert", "tests": [source],
    "entry_point", "setup"?}. time_limit: CPU seconds a test; memory_mb: MiB of address space.
    ValueError: a bad answer; RuntimeError: no sandbox can start."""
    _check_code_answer(answer)
    program, fenced = _find_program(response)
    if not program.strip() or len(program) > MAX_PROGRAM:
        fault = f"No program of at most {MAX_PROGRAM} characters was found in a ```python block."
        return Verdict(False, None, fault)
    for number, test in enumerate(answer["tests"], 1):
        problem = _run_test(program, answer, test, time_limit=time_limit, memory_mb=memory_mb)
        if problem and not fenced and "SyntaxError" in problem:
            fault = "No program was found: no fenced block, and the text is not a program."
            return Verdict(False, None, fault)
        if problem:
            return Verdict(False, program, f"Test {number} failed: {problem}"[:MAX_FEEDBACK])
    return Verdict(True, program, "")


def describe_isolation() -> str:
    """One line for the log: the layers of isolation that hold here, and those that are missing."""
    return _sibling("sandbox", "code").describe_isolation()


def _find_program(text):
    """(program, fenced): the last complete block marked python, else the last block, else all the
    text. A fence in a docstring, or indented by more than three spaces, closes no block."""
    text = _visible(text)
    blocks, fence, lines, quote = [], None, [], ""
    rows = text.splitlines(keepends=True)
    last = {mark: i for i, row in enumerate(rows) for mark in ('"""', "'''") if mark in row}
    for i, row in enumerate(rows):
        mark = _FENCE.match(row) if len(row) < 200 else None
        if fence is None:
            if mark:
                fence, lines, quote = mark, [], ""
            continue
        closes = mark and mark[2].startswith(fence[2]) and not mark[3]
        if closes and len(mark[1]) <= len(fence[1]) + 3 and not (quote and last[quote] > i):
            is_python = fence[3].lower() in ("python", "python3", "py")
            blocks.append((is_python, len(blocks), "".join(lines)))
            fence = None
            continue
        lines.append(row.removeprefix(fence[1]))  # a block in a list is indented with its fence
        for found in re.findall("\"\"\"|'''", row):
            quote = "" if quote == found else quote or found
    if fence and not blocks:
        blocks = [(True, 0, "".join(lines))]
    return max(blocks)[2] if blocks else text, bool(blocks)


def _check_code_answer(answer):
    kind = answer.get("type") if isinstance(answer, dict) else None
    tests = answer.get("tests") if kind in list(_TESTS) else None
    if not (isinstance(tests, list) and tests):
        raise ValueError(f"a code answer has a 'type', of {list(_TESTS)}, and a list of 'tests'")
    entry = answer.get("entry_point")
    if kind != "stdin" and not (isinstance(entry, str) and entry.isidentifier()):
        raise ValueError(f"{kind} tests need 'entry_point', the name of the function to call")
    for number, test in enumerate(tests, 1):
        try:
            if kind == "assert":
                compile(answer.get("setup", "") + "\n" + test, "<test>", "exec")
                continue
            texts = [*(test["input"] + "").splitlines(), test["output"] + ""]
            if kind == "functional":
                list(map(json.loads, texts))
        except (TypeError, KeyError, ValueError, SyntaxError, RecursionError) as error:
            raise ValueError(f"test {number} is not {_TESTS[kind]}: {error!r:.200}") from None


def _run_test(program, answer, test, **limits):
    """What went wrong, in words that do not depend on the expected output; "" where nothing did."""
    sandbox, kind = _sibling("sandbox", "code"), answer["type"]
    if kind == "stdin":
        ran = sandbox.run_script(program, test["input"], **limits)
        problem = ran.problem or "wrong output." * (not _same_output(ran.output, test["output"]))
        shown = _show("Input", test["input"]) + _show("Output", ran.output)
    elif kind == "functional":
        args, expected = map(json.loads, test["input"].splitlines()), json.loads(test["output"])
        ran = sandbox.run_function(program, answer["entry_point"], list(args), **limits)
        problem = ran.problem or "wrong value." * (not _same_value(ran.value, expected))
        shown = _show("Input", test["input"]) + _show("Returned", repr(ran.value))
    else:
        source = answer.get("setup", "") + "\n" + test
        ran = sandbox.run_assertion(program, source, entry=answer["entry_point"], **limits)
        problem = ran.problem
        shown = _show("Call", ran.value["call"]) + _show("Returned", ran.value["value"])
    return problem and problem + shown + _show("Errors", ran.errors, tail=True)


def _show(title, text, *, tail=False, limit=500):
    text = text.strip()
    if len(text) > limit:
        text = "…" + text[-limit:] if tail else text[:limit] + "…"
    return f"\n{title}:\n{text}" if text else ""


def _same_output(printed, expected):
    """Line by line without trailing spaces; within a line the same spaces and the same tokens."""
    a, b = ([line.rstrip() for line in text.rstrip().split("\n")] for text in (printed, expected))
    if len(a) != len(b):
        return False
    split = re.compile(r"\s+|\S+").findall
    pairs = [(split(x), split(y)) for x, y in zip(a, b, strict=True) if x != y]
    return all(len(x) == len(y) and all(map(_same_token, x, y)) for x, y in pairs)


def _same_token(a, b):
    """Equal texts, or numbers within 1e-6 not both of which are whole: 001 is not 1."""
    number, whole = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", r"[+-]?\d+"
    if a == b or len(a) > 400 or not (re.fullmatch(number, a) and re.fullmatch(number, b)):
        return a == b
    if re.fullmatch(whole, b):
        return not re.fullmatch(whole, a) and len(b) < 16 and abs(float(a) - int(b)) <= 1e-6
    return math.isclose(float(a), float(b), rel_tol=1e-6, abs_tol=1e-6)


def _same_value(a, b):
    """A returned value and the test's JSON: a tuple is a list, true is not 1, floats are close."""
    if isinstance(a, (list, tuple)) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same_value, a, b))
    if type(a) is type(b) is dict:
        return a.keys() == b.keys() and all(_same_value(a[key], b[key]) for key in b)
    if float in (type(a), type(b)) and {type(a), type(b)} <= {int, float}:
        return a == b or _same_token(repr(a), repr(b))
    return type(a) is type(b) and a == b
