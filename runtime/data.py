"""Rows of data files as problems: read, counted, compared with each other, fitted to a model.

Where rows come from stands in data_files.py, what a row means in data_rows.py and data_golds.py.
"""

import collections
import re
from collections.abc import Iterator

from tqdm import tqdm

import math_answers
import verifiers
from mopd import Problem
from runtime import data_files, data_rows, parallel
from runtime.data_files import find_files
from runtime.models import max_length
from runtime.templates import chat_text, student_ids

SHOWN = 5  # bad rows that are named
BAD = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)


class Bad:
    """Rows that cannot be read: their number, place and reason of the first, and of each kind.

    kinds: {reason without what it quotes: [number of rows, place, reason]}. objects: whether any of
    them is a JSON object, so that the fault may be in its fields.
    """

    def __init__(self):
        self.count, self.first, self.kinds, self.objects = 0, [], {}, False

    def add(self, place: str, reason: str) -> None:
        self.count += 1
        reason = " ".join(reason.split())
        if len(self.first) < SHOWN:
            self.first.append(f"{place}: {reason}"[:500])
        kind = re.sub(r"'.*?'|\".*?\"|\d+", "", reason)[:500]
        if kind in self.kinds or len(self.kinds) < 100:
            self.kinds.setdefault(kind, [0, place, reason[:500]])[0] += 1

    def __str__(self) -> str:
        return "; ".join(self.first) + ("; ..." if self.count > len(self.first) else "")


def say(text: str) -> None:
    """Print a line, in one process of several."""
    if parallel.is_main():
        print(text)


def read_problems(
    spec: str,
    task: str,
    *,
    prompt_field: str | None = None,
    answer_field: str | None = None,
    system_field: str | None = None,
    skip_bad_rows: bool = False,
    needs_system: bool = True,
    counts: dict | None = None,
) -> list[Problem]:
    """The rows of a data set as problems numbered by `key`; prints what was read from where.

    spec: a file or folder, or a data set on the Hub, see data_files.find_files. *_field: names of
    fields, dotted inside objects; None finds the usual ones. skip_bad_rows: go on without the rows
    that cannot be read; their number is put into counts[spec]. Raises ValueError for files
    that cannot be read, for bad rows, the first of which are named, where no row is left, and for
    a system_field that no row has (a warning without needs_system).
    """
    names = {"prompt": prompt_field, "answer": answer_field, "system": system_field}
    problems, places, bad, used, choices = [], [], Bad(), collections.Counter(), 0
    texts = {}  # one copy of a prompt that recurs: DAPO-Math-17k has each a hundred times
    there = {} if system_field else None  # the fields of all rows, until one has system_field
    files = find_files(spec)
    for place, row in _progress(_rows(files, names), "reading"):
        try:
            if isinstance(row, Exception):
                raise row
            for made in data_rows.read(row, task, **names):
                prompt = texts.setdefault(made.prompt, made.prompt)
                problems.append(_problem(made, prompt, task, len(problems)))
                places.append(place)
                used.update(made.used)
                choices += task == "math" and data_rows.is_choice(row, made)
            if there is not None:
                there = None if data_rows.has(row, system_field) else there | row
        except BAD as error:
            form = "" if isinstance(error, (ValueError, RecursionError)) else "of an unknown form: "
            bad.add(place, f"{form}{error}")
            bad.objects |= isinstance(row, dict)
    problems, note = _settle(problems, places, bad)
    where = spec if len(files) == 1 else f"{spec} ({len(files)} files)"
    if not problems:
        raise ValueError(_no_row(bad, where, task))
    _handle_bad(bad, len(problems) + bad.count, where, skip_bad_rows)
    if there:
        line = f"{where}: no row has the field {system_field!r} of --system-field"
        if needs_system:
            raise ValueError(f"{line}, only {data_rows.names_of(there)}")
        say(f"warning: {line}: they get the task's instruction")
    if counts is not None and bad.count:
        counts[spec] = bad.count
    say(f"{where}: {len(problems)} problems, {_fields(used)}{note}")
    _say_disagreements(used, where)
    _count_repeats(problems, where)
    if choices > 0.9 * len(problems):
        say(
            f"warning: {where}: {choices} of {len(problems)} answers are letters or numbers of "
            "options in the row: is this --task science?"
        )
    if task == "math":
        _count_texts(problems, where)
    return problems


def read_row(row: dict, task: str, key: int, fields=(None, None, None)) -> Problem:
    """One row as a problem, with the task's instruction where it has no system message."""
    names = dict(zip(("prompt", "answer", "system"), fields, strict=True))
    (made,) = data_rows.read(row, task, **names)
    bad = Bad()
    problems, _ = _settle([_problem(made, made.prompt, task, key)], ["this row"], bad)
    if bad.count:
        raise ValueError(str(bad))
    return problems[0]


def _problem(made, prompt, task, key):
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("the prompt holds half a surrogate pair, which is no character") from None
    system = verifiers.INSTRUCTIONS[task] if made.system is None else made.system
    return Problem(prompt, made.answer, system, key)


def _rows(files, names) -> Iterator:
    """(place, row) of all files; BFCL's rows with their answers, which stand in another file."""
    usual = {*data_rows.PROMPTS, *data_rows.SYSTEMS, *data_rows.OTHERS}
    usual |= {name for names in data_rows.ANSWERS.values() for name in names}
    named = set(filter(None, names.values()))
    usual |= named
    roots = {data_rows.plain(name.partition(".")[0]) for name in usual}

    def wanted(column):
        return column in usual or data_rows.plain(column) in roots

    for path in files:
        golds = {}
        if (other := path.parent / data_files.ANSWERS / path.name).is_file():
            rows = (row for _, row in data_files.rows_of(other) if isinstance(row, dict))
            golds = {row.get("id"): row.get("ground_truth") for row in rows}
        for place, row in data_files.rows_of(path, wanted=wanted, named=named):
            if golds and isinstance(row, dict) and "ground_truth" not in row:
                row["ground_truth"] = golds.get(row.get("id"))
            yield place, row


def _progress(items, what, **options):
    """A bar for work of more than two seconds, in a terminal, in one process of several."""
    hidden = None if parallel.is_main() else True
    return tqdm(items, desc=what, unit=" rows", delay=2, leave=False, disable=hidden, **options)


# --- what is said of the rows ---


def _settle(problems, places, bad):
    """(problems with letters for options' numbers, note on how they count)."""
    golds = [problem.answer for problem in problems]
    if not any(isinstance(gold, data_rows.Number) for gold in golds):
        return problems, ""
    base, faults = data_rows.settle_numbers(golds)
    for n in faults:
        reason = "from 0 or from 1? give letters" if golds[n].is_text else f"from {base}"
        gold = golds[n]
        bad.add(places[n], f"the answer {gold.value} counts {gold.options} options {reason}")
    faults = set(faults)
    kept = [problem for n, problem in enumerate(problems) if n not in faults]
    letters = [
        data_rows.LETTERS[p.answer.value - base]
        if isinstance(p.answer, data_rows.Number)
        else p.answer
        for p in kept
    ]
    made = [
        Problem(p.prompt, letter, p.system, key)
        for key, (p, letter) in enumerate(zip(kept, letters, strict=True))
    ]
    return made, f"; answers count the options from {base}"


def _no_row(bad, where, task):
    """Why no row is left: the commonest reason, once."""
    if not bad.count:
        return f"{where} has no usable row: it is empty"
    if bad.count == 1:
        return str(bad)
    count, place, reason = max(bad.kinds.values(), key=lambda kind: kind[0])
    named = "prompt" in reason  # or --prompt-field: then that is what is wrong
    hint = f": is --task {task} right, and --answer-field?" if bad.objects and not named else ""
    return f"{where} has no usable row: {reason} ({count} of {bad.count} rows, first {place}){hint}"


def _handle_bad(bad, total, where, skip):
    if bad.count and skip:
        say(f"{where}: {bad.count} of {total} rows cannot be read and are left out: {bad}")
    elif bad.count:
        raise ValueError(
            f"{bad.count} of {total} rows cannot be read (--skip-bad-rows leaves them out): {bad}"
        )


def _fields(used):
    parts = []
    for role in ("prompt", "answer"):
        found = [(name, count) for (kind, name), count in used.most_common() if kind == role]
        if len(found) == 1:
            parts.append(f"{role} from {found[0][0]!r}")
        else:
            parts.append(f"{role} from " + ", ".join(f"{name!r} ({n})" for name, n in found))
    return ", ".join(parts)


def _say_disagreements(used, where):
    found = [(names, n) for (role, names), n in used.most_common() if role == "disagreement"]
    if found:
        count = sum(n for _, n in found)
        say(
            f"warning: {where}: {count} rows have two golds that disagree, in {found[0][0]}: the "
            "first is taken (--answer-field names another)"
        )


def _count_repeats(problems, where):
    first, again, clashes, example = {}, 0, 0, None
    for problem in problems:
        earlier = first.setdefault((problem.prompt, problem.system), problem)
        if earlier is not problem:
            again += 1
            if earlier.answer != problem.answer:
                clashes += 1
                example = example or (earlier, problem)
    if example:
        a, b = example
        say(
            f"warning: {where}: {clashes} rows have another answer than an earlier row with "
            f"the same prompt: {a.answer!r:.60} and {b.answer!r:.60} for {a.prompt!r:.60}"
        )
    if again:
        say(f"{where}: {again} of {len(problems)} rows repeat the prompt of an earlier one")


def _count_texts(problems, where):
    """A gold that is no value is matched by the same text alone: say how many, of the first."""
    golds = list(dict.fromkeys(problem.answer for problem in problems))
    odd = [gold for gold in golds if not re.fullmatch(r"-?[\d.,/]+", gold)][:1000]
    odd = [gold for gold in odd if not math_answers.is_value(gold)]
    if odd:
        say(
            f"{where}: {len(odd)} different answers are no values and matched as text alone: "
            + ", ".join(f"{gold!r:.40}" for gold in odd[:3])
        )


def say_overlap(train: list[Problem], held_out: list[Problem]) -> None:
    """Print how many evaluation rows have the prompt of a training row."""
    known = {" ".join(problem.prompt.split()) for problem in train}
    both = sum(" ".join(problem.prompt.split()) in known for problem in held_out)
    if both:
        say(
            f"warning: {both} of {len(held_out)} evaluation rows have the prompt of a training "
            "row: the evaluation is not held out"
        )


# --- what fits the model ---


def fitting(problems, model, tokenizer, max_new_tokens: int, name: str) -> list[Problem]:
    """The problems whose prompt and `max_new_tokens` fit the model; prints how many do not.

    name: of the data, for messages. Raises ValueError where none is left.
    """
    room = max_length(model) - max_new_tokens
    surely, unsure = _bounded(problems, tokenizer, room), {}
    for problem, fits in zip(problems, surely, strict=True):
        if not fits:
            unsure[problem.prompt, problem.system] = problem
    lengths = _lengths(list(unsure.values()), tokenizer)
    lengths = dict(zip(unsure, lengths, strict=True))
    kept = [p for p in problems if lengths.get((p.prompt, p.system), 0) <= room]
    if len(kept) < len(problems):
        say(
            f"{name}: {len(problems) - len(kept)} of {len(problems)} rows are too long for the "
            f"model with --max-new-tokens {max_new_tokens} and left out"
        )
    if not kept:
        raise ValueError(f"{name} has no usable row ({len(problems)} rows read, none left)")
    return kept


def _bounded(problems, tokenizer, room) -> list[bool]:
    """Which problems are so short that they need no tokenising.

    A token holds a byte or more of what the tokenizer's normaliser makes of the text: of ASCII at
    most twice as much (a space before each character), else 11 bytes for one (U+FDFA in NFKC).
    """
    frames, surely = {}, []
    for problem in problems:
        frame = frames.get(problem.system)
        if frame is None and len(frames) < 64:
            probe = Problem("x", "", problem.system, 0)
            frame = frames[problem.system] = len(student_ids(tokenizer, probe))
        text = problem.prompt
        size = 2 * len(text) if text.isascii() else 12 * len(text.encode("utf-8"))
        surely.append(frame is not None and frame + size <= room)
    return surely


def _lengths(problems, tokenizer, batch: int = 256) -> list[int]:
    """Tokens of each prompt, tokenised in batches."""
    lengths = []
    with _progress(None, "tokenising", total=len(problems)) as bar:
        for start in range(0, len(problems), batch):
            some = problems[start : start + batch]
            texts = [
                chat_text(tokenizer, p.system, [{"role": "user", "content": p.prompt}])
                for p in some
            ]
            ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
            lengths += map(len, ids)
            bar.update(len(some))
    return lengths


def as_rows(problems: list[Problem], task: str) -> list[dict]:
    """The rows that read back as these problems, to write to a JSON Lines file."""
    return [
        {"prompt": p.prompt, "answer": p.answer}
        | ({} if p.system == verifiers.INSTRUCTIONS[task] else {"system": p.system})
        for p in problems
    ]
