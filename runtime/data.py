"""Rows of data files as problems."""

import json
import re
from pathlib import Path

import verifiers
from mopd import Problem
from runtime.models import max_length
from runtime.templates import student_ids


def find_file(spec) -> Path:
    """A local file, or OWNER/NAME:FILE of a data set on the Hub."""
    if Path(spec).is_file():
        return Path(spec)
    repo, colon, name = spec.partition(":")
    if not colon or repo.count("/") != 1:
        what = "a folder, not a data file" if Path(spec).is_dir() else "no such data file"
        raise ValueError(f"{what}: {spec} (for a file on the Hub write OWNER/NAME:FILE)")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, name, repo_type="dataset"))
    except Exception as error:  # of the network, the Hub, the disk
        raise ValueError(
            f"cannot load {spec} from the Hub: {str(error).strip().splitlines()[0]}"
        ) from None


def read_problems(
    spec: str, task: str, *, prompt_field=None, answer_field=None, system_field=None
) -> list[Problem]:
    """The rows of a JSON Lines file, or of one on the Hub, as problems numbered by `key`.

    prompt_field, answer_field, system_field: names of the fields (default prompt, answer, system).
    A bad row raises ValueError with file and line number.
    """
    fields = prompt_field or "prompt", answer_field or "answer", system_field or "system"
    path, problems = find_file(spec), []
    for number, line in enumerate(
        path.read_bytes().split(b"\n"), 1
    ):  # splitlines() would split at U+2028 too
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
            problems.append(read_row(row, task, len(problems), fields))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}:{number}: not one JSON object: {error.msg} at column {error.colno}"
            ) from None
        except (ValueError, RecursionError) as error:  # errors of UTF-8 are ValueErrors too
            raise ValueError(f"{path}:{number}: {error}") from None
    if not problems:
        raise ValueError(f"{path} has no usable row: it is empty")
    return problems


def read_row(row: dict, task: str, key: int, fields=("prompt", "answer", "system")) -> Problem:
    """One row as a problem, with the task's instruction where it has no system message."""
    for name in fields[:2]:
        if name not in row:
            raise ValueError(
                f"no field {name!r}, only {', '.join(map(repr, row))}: "
                "see --prompt-field, --answer-field"
            )
    prompt, answer, system = row[fields[0]], row[fields[1]], row.get(fields[2])
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"field {fields[0]!r} is not a text")
    prompt.encode("utf-8")  # half a surrogate pair cannot be written or tokenised
    if system is not None and not isinstance(system, str):
        raise ValueError(f"field {fields[2]!r} is neither a text nor null")
    verifiers.check_answer(task, answer)
    if task == "code":  # the statement rarely says what the tests will call
        if answer.get("starter_code"):
            prompt += f"\n\nStart from this code:\n```python\n{answer['starter_code']}\n```"
        elif answer.get("entry_point") and not re.search(
            rf"\b{re.escape(answer['entry_point'])}\s*\(", prompt
        ):
            prompt += f"\n\nThe function must be called {answer['entry_point']}."
    return Problem(prompt, answer, system or verifiers.INSTRUCTIONS[task], key)


def fitting(problems, model, tokenizer, max_new_tokens: int, name: str) -> list[Problem]:
    """The problems whose prompt and `max_new_tokens` fit the model; prints how many do not.

    name: of the data, for messages. Raises ValueError where none is left.
    """
    room = max_length(model) - max_new_tokens
    kept = [p for p in problems if len(student_ids(tokenizer, p)) <= room]
    if len(kept) < len(problems):
        print(
            f"{name}: {len(problems) - len(kept)} of {len(problems)} rows are too long for the "
            f"model with --max-new-tokens {max_new_tokens} and left out"
        )
    if not kept:
        raise ValueError(f"{name} has no usable row ({len(problems)} rows read, none left)")
    return kept
