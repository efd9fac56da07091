"""Rows of published shapes with our own content, containers, bad input, a stand-in for the Hub.

docs/data.md says for each data set what to type; the tests read the commands from there.
"""

import base64
import csv
import gzip
import json
import pickle
import random
import re
import shlex
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT

import tiny
import train
import verifiers
from mopd import Problem
from runtime import data, data_files, data_golds, data_rows
from runtime.data import read_problems, read_row
from runtime.templates import chat_text, student_ids

try:
    import pyarrow
    import pyarrow.parquet
except ImportError:
    pyarrow = None

PACKED = base64.b64encode(
    zlib.compress(
        pickle.dumps(json.dumps([{"input": "5 6\n", "output": "11\n", "testtype": "stdin"}]))
    )
).decode()
SOLUTION = "Twice three is six, so the answer is $\\boxed{6}$."
ADD = "def add(a, b):\n    return a + b\n"
SUM = "a, b = map(int, input().split())\nprint(a + b)\n"
TOOLS = [
    {
        "name": "weather",
        "description": "How is the weather?",
        "parameters": {"city": {"type": "str", "description": "a town"}},
    }
]
CALL = 'Thought: ask.\nAction: weather\nAction Input: {"city": "Bern"}'


def boxed(value):
    return f"So it is \\boxed{{{value}}}."


def chosen(letter):
    return f"<answer>{letter}</answer>"


def program(text):
    return f"```python\n{text}```"


BFCL = "gorilla-llm/Berkeley-Function-Calling-Leaderboard"
METALS = ["sulphur", "iron", "argon", "iodine"]

# name in docs/data.md: (files of the set: path -> rows, a right answer, a wrong one)
SETS = {
    "GSM8K, Hub": (
        {
            "openai/gsm8k/main/train-00000-of-00001.parquet": [
                {
                    "question": "Two crates hold 600 pears each. How many pears?",
                    "answer": "600 * 2 = <<600*2=1200>>1200 pears.\n#### 1,200",
                }
            ],
            "openai/gsm8k/main/test-00000-of-00001.parquet": [],
            "openai/gsm8k/socratic/train-00000-of-00001.parquet": [],
        },
        boxed(1200),
        boxed(600),
    ),
    "GSM8K, GitHub": (
        {
            "grade_school_math/data/train.jsonl": [
                {
                    "question": "A pen costs 3 and a book 5. Both?",
                    "answer": "3+5=<<3+5=8>>8\n#### 8",
                }
            ]
        },
        boxed(8),
        boxed(3),
    ),
    "MATH": (
        {
            f"EleutherAI/hendrycks_math/{subject}/{split}-00000-of-00001.parquet": [
                {
                    "problem": f"What is twice three in {subject}?",
                    "level": "Level 1",
                    "type": subject,
                    "solution": SOLUTION,
                }
            ]
            for subject in ("algebra", "geometry")
            for split in ("train", "test")
        },
        boxed(6),
        boxed(5),
    ),
    "MATH-500": (
        {
            "HuggingFaceH4/MATH-500/test.jsonl": [
                {
                    "problem": "Halve one.",
                    "solution": "It is $\\boxed{\\frac12}$.",
                    "answer": "\\frac12",
                    "subject": "Prealgebra",
                    "level": 1,
                    "unique_id": "test/x/1.json",
                }
            ]
        },
        boxed("0.5"),
        boxed(2),
    ),
    "DAPO-Math-17k": (
        {
            "BytedTsinghua-SIA/DAPO-Math-17k/data/dapo-math-17k.parquet": [
                {
                    "data_source": "math_dapo",
                    "prompt": [
                        {"content": "Say 30 + 4 in the form Answer: $Answer", "role": "user"}
                    ],
                    "ability": "MATH",
                    "reward_model": {"ground_truth": "34", "style": "rule"},
                    "extra_info": {"index": "0-1"},
                }
            ]
        },
        boxed(34),
        boxed(35),
    ),
    "DAPO-Math-17k, processed": (
        {
            f"open-r1/DAPO-Math-17k-Processed/{part}/train-00000-of-00001.parquet": [
                {
                    "prompt": "Add 30 and 4.",
                    "solution": "34",
                    "data_source": "math_dapo",
                    "source_prompt": [{"content": "Add.", "role": "user"}],
                    "ability": "MATH",
                    "reward_model": {"ground_truth": "34", "style": "rule"},
                    "extra_info": {"index": "0-1"},
                }
            ]
            for part in ("all", "cn", "en")
        },
        boxed(34),
        boxed(35),
    ),
    "DeepMath-103K": (
        {
            "zwhe99/DeepMath-103K/data/train-00000-of-00001.parquet": [
                {
                    "question": "Is 7 a prime number?",
                    "final_answer": "Yes",
                    "difficulty": 1.0,
                    "topic": "numbers",
                    "r1_solution_1": "Seven has no divisor. \\boxed{Yes}",
                }
            ]
        },
        boxed("\\text{Yes}"),
        boxed("\\text{No}"),
    ),
    "DeepMath-103K, TRL": (
        {
            "trl-lib/DeepMath-103K/data/train-00000-of-00001.parquet": [
                {
                    "prompt": [{"content": "Halve three.", "role": "user"}],
                    "solution": "$\\frac{3}{2}$",
                }
            ],
            "trl-lib/DeepMath-103K/data/test-00000-of-00001.parquet": [],
        },
        boxed("1.5"),
        boxed("3"),
    ),
    "OpenR1-Math-220k": (
        {
            "open-r1/OpenR1-Math-220k/data/train-00000-of-00001.parquet": [
                {
                    "problem": "Twice three?",
                    "solution": SOLUTION,
                    "answer": "6",
                    "problem_type": "Algebra",
                    "question_type": "math-word-problem",
                    "generations": ["<think>3+3</think> \\boxed{6}", "\\boxed{7}"],
                    "messages": [
                        {"role": "user", "content": "Twice three?"},
                        {"role": "assistant", "content": "\\boxed{7}"},
                    ],
                }
            ],
            "open-r1/OpenR1-Math-220k/extended/train-00000-of-00001.parquet": [],
        },
        boxed(6),
        boxed(7),
    ),
    "NuminaMath-CoT": (
        {
            "AI-MO/NuminaMath-CoT/data/train-00000-of-00001.parquet": [
                {
                    "source": "own",
                    "problem": "Solve $x^2 = 9$.",
                    "solution": "Thus $x = \\boxed{3}$ or $x = \\boxed{-3}$.",
                    "messages": [{"role": "user", "content": "Solve."}],
                },
                {
                    "source": "own",
                    "problem": "Prove that there is no largest number.",
                    "solution": "Suppose there were one; adding one would make a larger number.",
                    "messages": [{"role": "user", "content": "Prove."}],
                },
            ],
            "AI-MO/NuminaMath-CoT/data/test-00000-of-00001.parquet": [],
        },
        boxed("3, -3"),
        boxed(3),
    ),
    "NuminaMath-1.5": (
        {
            "AI-MO/NuminaMath-1.5/data/train-00000-of-00001.parquet": [
                {
                    "problem": "Twice three?",
                    "solution": SOLUTION,
                    "answer": "6",
                    "problem_type": "Algebra",
                    "synthetic": False,
                },
                {"problem": "Prove it.", "solution": "Clear.", "answer": "proof"},
                {"problem": "Find it.", "solution": "Gone.", "answer": "notfound"},
            ]
        },
        boxed(6),
        boxed(3),
    ),
    "AIME 2024, HuggingFaceH4": (
        {
            "HuggingFaceH4/aime_2024/data/train-00000-of-00001.parquet": [
                {
                    "id": 1,
                    "problem": "Thirty and three?",
                    "solution": "\\boxed{033}",
                    "answer": "033",
                    "url": "",
                    "year": "2024",
                }
            ]
        },
        boxed(33),
        boxed(3),
    ),
    "AIME 2024, Maxwell-Jia": (
        {
            "Maxwell-Jia/AIME_2024/aime_2024_problems.parquet": [
                {
                    "ID": "2024-I-1",
                    "Problem": "Thirty and three?",
                    "Solution": "30 + 3 = \\boxed{33}",
                    "Answer": 33,
                }
            ]
        },
        boxed("033"),
        boxed(3),
    ),
    "AIME 2025, math-ai": (
        {"math-ai/aime25/test.jsonl": [{"problem": "Ten times seven?", "answer": "70", "id": "0"}]},
        boxed(70),
        boxed(7),
    ),
    "AIME 2025, opencompass": (
        {
            "opencompass/AIME2025/aime2025-I.jsonl": [
                {"question": "Ten times seven?", "answer": "70"}
            ],
            "opencompass/AIME2025/aime2025-II.jsonl": [
                {"question": "Ten times seven degrees?", "answer": "70^\\circ"}
            ],
        },
        boxed(70),
        boxed(7),
    ),
    "SciKnowEval": (
        {
            "sciknoweval_chemistry.jsonl": [
                {
                    "prompt": {"default": "Answer with A, B, C or D."},
                    "question": "Which of these is a metal?",
                    "answer": "",
                    "type": "mcq-4-choices",
                    "domain": "Chemistry",
                    "choices": {"text": METALS, "label": ["A", "B", "C", "D"]},
                    "answerKey": "B",
                },
                {
                    "prompt": {"default": "Answer freely."},
                    "question": "Describe iron.",
                    "answer": "A metal.",
                    "type": "open-ended-qa",
                    "domain": "Chemistry",
                    "choices": {"text": [], "label": []},
                    "answerKey": "",
                },
            ]
        },
        chosen("B"),
        chosen("A"),
    ),
    "GPQA": (
        {
            "Idavidrein/gpqa/gpqa_diamond.csv": [
                {
                    "Question": "Which of these is a metal?",
                    "Correct Answer": "iron\n",
                    "Incorrect Answer 1": "argon, a gas",
                    "Incorrect Answer 2": 'the "yellow" one',
                    "Incorrect Answer 3": "iodine",
                    "Explanation": "Iron is.",
                    "Extra Revised Question": "",
                }
            ],
            "Idavidrein/gpqa/gpqa_main.csv": [],
        },
        None,  # the order of the options is the row's
        None,
    ),
    "MMLU-Pro": (
        {
            "TIGER-Lab/MMLU-Pro/data/test-00000-of-00001.parquet": [
                {
                    "question_id": 70,
                    "question": "Which of these is a metal?",
                    "options": [*METALS, "neon", "argon gas", "ozone", "xenon", "radon", "helium"],
                    "answer": "B",
                    "answer_index": 1,
                    "cot_content": "",
                    "category": "chemistry",
                }
            ],
            "TIGER-Lab/MMLU-Pro/data/validation-00000-of-00001.parquet": [],
        },
        chosen("B"),
        chosen("A"),
    ),
    "MMLU": (
        {
            f"cais/mmlu/{part}/test-00000-of-00001.parquet": [
                {
                    "question": "Which of these is a metal?",
                    "subject": "chemistry",
                    "choices": METALS,
                    "answer": 1,
                }
            ]
            for part in ("all", "anatomy")
        },
        chosen("B"),
        chosen("A"),
    ),
    "ARC": (
        {
            f"allenai/ai2_arc/{part}/train-00000-of-00001.parquet": [
                {
                    "id": "x_1",
                    "question": "Which of these is a metal?",
                    "choices": {"text": METALS, "label": ["1", "2", "3", "4"]},
                    "answerKey": "2",
                }
            ]
            for part in ("ARC-Challenge", "ARC-Easy")
        },
        chosen("B"),
        chosen("C"),
    ),
    "LiveCodeBench": (
        {
            "livecodebench/code_generation_lite/test.jsonl": [
                {
                    "question_title": "sum",
                    "question_content": "Print the sum of two integers.",
                    "platform": "atcoder",
                    "question_id": "x1",
                    "starter_code": "",
                    "public_test_cases": json.dumps(
                        [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
                    ),
                    "private_test_cases": PACKED,
                    "metadata": "{}",
                }
            ],
            "livecodebench/code_generation_lite/test2.jsonl": [],
        },
        program(SUM),
        program("input()\nprint(3)\n"),  # right in the public test alone
    ),
    "TACO": (
        {
            "BAAI/TACO/ALL/train-00000-of-00001.parquet": [
                {
                    "question": "Print the sum of two integers.",
                    "solutions": "[]",
                    "starter_code": "",
                    "input_output": json.dumps({"inputs": ["1 2\n"], "outputs": ["3\n"]}),
                    "difficulty": "EASY",
                }
            ]
        },
        program(SUM),
        program("print(4)\n"),
    ),
    "APPS": (
        {
            "codeparrot/apps/train.jsonl": [
                {
                    "id": 1,
                    "question": "Add two numbers.",
                    "solutions": "[]",
                    "starter_code": "def add(a, b):\n\t",
                    "input_output": json.dumps(
                        {"fn_name": "add", "inputs": [[1, 2], [5, 5]], "outputs": [[3], [10]]}
                    ),
                    "difficulty": "introductory",
                    "url": "",
                }
            ],
            "codeparrot/apps/test.jsonl": [],
        },
        program(ADD),
        program(ADD.replace("+", "*")),
    ),
    "CodeContests": (
        {
            "deepmind/code_contests/data/train-00000-of-00001-a1b2.parquet": [
                {
                    "name": "1_A. Sum",
                    "description": "Print the sum of two integers.",
                    "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
                    "private_tests": {"input": ["2 2\n"], "output": ["4\n"]},
                    "generated_tests": {"input": ["9 9\n"], "output": ["0\n"]},
                    "solutions": {"language": [3], "solution": [SUM]},
                }
            ]
        },
        program(SUM),
        program("input()\nprint(3)\n"),
    ),
    "MBPP": (
        {
            f"google-research-datasets/mbpp/{part}/train-00000-of-00001.parquet": [
                {
                    "task_id": 601,
                    "text": "Write a function to add two numbers.",
                    "code": ADD,
                    "test_list": ["assert set([add(1, 2)]) == {3}", "assert add(5, 5) == 10"],
                    "test_setup_code": "",
                    "challenge_test_list": [],
                }
            ]
            for part in ("full", "sanitized")
        },
        program(ADD),
        program("def add(a, b):\n    return 3\n"),
    ),
    "HumanEval": (
        {
            "openai/openai_humaneval/openai_humaneval/test-00000-of-00001.parquet": [
                {
                    "task_id": "HumanEval/500",
                    "prompt": 'def add(a, b):\n    """Add two numbers."""\n',
                    "canonical_solution": "    return a + b\n",
                    "test": "METADATA = {}\n\n\ndef check(candidate):\n"
                    "    assert candidate(1, 2) == 3\n    assert candidate(5, 5) == 10\n",
                    "entry_point": "add",
                }
            ]
        },
        program(ADD),
        program("def add(a, b):\n    return 3\n"),
    ),
    "KodCode": (
        {
            "KodCode/KodCode-V1/data/train-00000-of-00001.parquet": [
                {
                    "version": "v1.0",
                    "style": "instruct",
                    "question_id": "x_1",
                    "question": "Write a function that adds two numbers.",
                    "solution": ADD,
                    "test": "from solution import add\n\n"
                    "def test_small():\n    assert add(1, 2) == 3\n"
                    "\ndef test_large():\n    assert add(5, 5) == 10\n",
                    "test_info": [
                        {
                            "docstring": "Adds.",
                            "function_declaration": "def add(a, b):",
                            "function_name": "add",
                            "parameter_list": "(a, b)",
                        }
                    ],
                }
            ]
        },
        program(ADD),
        program("def add(a, b):\n    return 3\n"),
    ),
    "ToolAlpaca": (
        {
            "ToolAlpaca/data/eval_simulated.json": [
                {
                    "Name": "Sky",
                    "Description": "The weather.",
                    "NLDocumentation": 'weather: How is it?\nParameters: {"city": "a town"}',
                    "Function_Description": {},
                    "Instructions": ["How is it in Bern?", "And in Bern now?"],
                    "Golden_Answers": [
                        [{"Action": "weather", "Action_Input": '{"city": "Bern"}'}],
                        [{"Action": "weather", "Action_Input": '{"city": "Bern"}'}],
                    ],
                }
            ]
        },
        CALL,
        CALL.replace("Bern", "Rome"),
    ),
    "BFCL": (
        {
            f"{BFCL}/BFCL_v3_simple.json": [
                {
                    "id": "simple_0",
                    "question": [[{"role": "user", "content": "How is it in Bern?"}]],
                    "function": TOOLS,
                },
                {
                    "id": "simple_1",
                    "question": [[{"role": "user", "content": "How is it in Paris?"}]],
                    "function": TOOLS,
                },
            ],
            f"{BFCL}/possible_answer/BFCL_v3_simple.json": [
                {"id": "simple_0", "ground_truth": [{"weather": {"city": ["Bern"]}}]},
                {"id": "simple_1", "ground_truth": [{"weather": {"city": ["Paris", ""]}}]},
            ],
        },
        CALL,
        CALL.replace("Bern", "Rome"),
    ),
    "xlam-function-calling-60k": (
        {
            "Salesforce/xlam-function-calling-60k/xlam_function_calling_60k.json": [
                {
                    "id": 0,
                    "query": "How is it in Bern?",
                    "answers": json.dumps([{"name": "weather", "arguments": {"city": "Bern"}}]),
                    "tools": json.dumps(TOOLS),
                }
            ]
        },
        CALL,
        CALL.replace("Bern", "Rome"),
    ),
    "ToolACE": (
        {
            "Team-ACE/ToolACE/data.json": [
                {
                    "system": "You compose functions. Here is a list in JSON:\n"
                    + json.dumps(TOOLS)
                    + "\nPut calls in the format [func(a=b)].",
                    "conversations": [
                        {"from": "user", "value": "How is it in Bern?"},
                        {"from": "assistant", "value": '[weather(city="Bern")]'},
                        {"from": "tool", "value": "[]"},
                        {"from": "assistant", "value": "It rains."},
                    ],
                },
                {
                    "system": "Here is a list in JSON:\n" + json.dumps(TOOLS),
                    "conversations": [
                        {"from": "user", "value": "How is it?"},
                        {"from": "assistant", "value": "Where?"},
                    ],
                },
            ]
        },
        CALL,
        CALL.replace("Bern", "Rome"),
    ),
}


def write(path: Path, rows: list[dict]) -> None:
    """Rows in the container that the name asks for; JSON Lines where there is no pyarrow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]) if rows else ["Question"])
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".json" and "BFCL" not in path.name:
        path.write_text(json.dumps(rows, indent=1), "utf-8")
    elif path.suffix == ".parquet" and pyarrow:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path = path.with_suffix(".jsonl") if path.suffix == ".parquet" else path
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def commands() -> dict[str, list[str]]:
    """The flags that docs/data.md's table gives for each data set."""
    text = (ROOT / "docs" / "data.md").read_text("utf-8")
    lines = re.findall(r"^\| ([^|]+) \| `(--task [^`]+)` \| [^|]+ \|$", text, re.M)
    return {name: shlex.split(flags) for name, flags in lines}


def options_of(flags):
    """(data, task, keyword arguments of read_problems) of flags of train.py."""
    settings = train.Settings(model="some", **dict(_pairs(flags)))
    names = ("prompt_field", "answer_field", "system_field", "skip_bad_rows")
    return settings.data, settings.task, {name: getattr(settings, name) for name in names}


def _pairs(flags):
    flags = list(flags)
    while flags:
        name = flags.pop(0).removeprefix("--").replace("-", "_")
        yield name, True if name == "skip_bad_rows" else flags.pop(0)


def made(tmp_path, monkeypatch, name):
    """The problems of one set, read by its command in a folder laid out as its home is."""
    files, _, _ = SETS[name]
    for path, rows in files.items():
        write(tmp_path / path, rows)
    monkeypatch.chdir(tmp_path)
    spec, task, options = options_of(commands()[name])
    return read_problems(spec, task, **options), task


def test_the_table_of_the_page_on_data_has_these_sets_and_no_command_has_more_than_two_fields():
    assert list(commands()) == list(SETS) and len(SETS) == 31
    for flags in commands().values():
        assert sum(flag.endswith("-field") for flag in flags) <= 2


@pytest.mark.parametrize("name", [name for name in SETS if name != "GPQA"])
def test_a_published_set_is_read_as_the_page_says_and_its_golds_verify(tmp_path, monkeypatch, name):
    problems, task = made(tmp_path, monkeypatch, name)
    _, right, wrong = SETS[name]
    assert problems and [p.key for p in problems] == list(range(len(problems)))
    for problem in problems:
        assert verifiers.verify(task, right, problem.answer).correct
        assert not verifiers.verify(task, wrong, problem.answer).correct
        assert problem.system == verifiers.INSTRUCTIONS[task]
        if task == "science":  # or the student could not know what the letters mean
            assert all(
                f"\n{a}: {t}" in problem.prompt for a, t in zip("ABCD", METALS, strict=False)
            )
        if task == "tool":
            assert "weather" in problem.prompt and "a town" in problem.prompt


@pytest.mark.parametrize("name", SETS)
def test_a_command_for_the_hub_means_the_same_files_there(tmp_path, monkeypatch, name):
    """A local folder may be read with all that is in it; a repository has several sets."""
    spec, _, _ = options_of(commands()[name])
    head, _, wanted = spec.partition(":")
    names = [path.removeprefix(head + "/") for path in SETS[name][0] if path.startswith(head + "/")]
    if not names or not re.fullmatch(r"[\w.-]+/[\w.-]+", head):
        pytest.skip("a file of its own")
    chosen = data_files.select(names, wanted, spec)
    assert chosen and chosen == data_files.select(names, wanted, spec, several=True)


def test_gpqas_options_stand_in_an_order_fixed_by_the_row(tmp_path, monkeypatch):
    (problem,), task = made(tmp_path, monkeypatch, "GPQA")
    listed = re.findall(r"^([A-D]): (.*)$", problem.prompt, re.M)
    assert sorted(text for _, text in listed) == sorted(
        ["iron", "argon, a gas", 'the "yellow" one', "iodine"]
    )
    assert dict(listed)[problem.answer] == "iron"
    (again,), _ = made(tmp_path, monkeypatch, "GPQA")
    assert again == problem
    letters = set()
    for n in range(40):
        row = {"Question": f"Which? {n}", "Correct Answer": "a"}
        row |= {f"Incorrect Answer {i}": str(i) for i in (1, 2, 3)}
        letters.add(read_row(row, "science", 0).answer)
    assert letters == set("ABCD")


def test_of_several_sets_in_a_repository_one_must_be_named():
    names = ["all/test-00000-of-00001.parquet", "anatomy/test-00000-of-00001.parquet"]
    with pytest.raises(ValueError, match="2 data sets: write cais/mmlu:all/test or"):
        data_files.select(names, "test", "cais/mmlu:test")
    with pytest.raises(ValueError, match="several splits: write x/y:test or x/y:validation"):
        data_files.select(["test.jsonl", "data/dev.jsonl"], "", "x/y")
    with pytest.raises(ValueError, match="1 of the 2 files train-... are there"):
        data_files.select(["train-00000-of-00002.parquet"], "", "x/y")
    with pytest.raises(ValueError, match="no such data file, folder or split.*: a.csv"):
        data_files.select(["a.csv", "README.md"], "train", "x/y:train")
    assert data_files.select(["train.csv", "test.csv", "README.md"], "", "x/y") == ["train.csv"]


# --- containers ---

ROWS = [{"prompt": "1+1", "answer": "2"}, {"prompt": "1+2 \u2028 \u00e9", "answer": "3"}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
CONTAINERS = {
    "rows.jsonl": LINES,
    "blank.jsonl": "\n\n" + LINES.replace("\n", "\r\n\r\n") + "\n\n",
    "bom.jsonl": "\ufeff" + LINES,
    "one-line.json": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=2),
    "bom.json": "\ufeff" + json.dumps(ROWS, indent=2),
    "object.json": json.dumps({"version": 1, "data": ROWS}),
    "pretty-object.json": json.dumps({"version": 1, "data": ROWS}, indent=2),
    "lines-in.json": LINES,
    "array-in.jsonl": json.dumps(ROWS),
    "rows.csv": "prompt,answer\n1+1,2\n1+2 \u2028 \u00e9,3\n",
    "bom.csv": "\ufeffprompt,answer\r\n1+1,2\r\n1+2 \u2028 \u00e9,3\r\n",
    "semicolon.csv": "prompt;answer\n1+1;2\n1+2 \u2028 \u00e9;3\n",
    "rows.tsv": "prompt\tanswer\n1+1\t2\n1+2 \u2028 \u00e9\t3\n",
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_rows(tmp_path, name, packed):
    content = CONTAINERS[name].encode()
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    problems = read_problems(str(path), "math")
    assert [(p.prompt, p.answer) for p in problems] == [(r["prompt"], r["answer"]) for r in ROWS]


def test_a_folder_is_read_whole_and_a_split_of_it_alone(tmp_path):
    write(tmp_path / "all" / "a.jsonl", ROWS[:1])
    write(tmp_path / "all" / "deeper" / "b.csv", ROWS[1:])
    (tmp_path / "all" / "README.md").write_text("not data")
    (tmp_path / "all" / ".hidden.jsonl").write_text("not data")
    assert len(read_problems(str(tmp_path / "all"), "math")) == 2
    write(tmp_path / "split" / "train.jsonl", ROWS[:1])
    write(tmp_path / "split" / "test.jsonl", ROWS)
    with pytest.raises(ValueError, match="several splits: write .*split:test or .*split:train"):
        read_problems(str(tmp_path / "split"), "math")
    assert len(read_problems(f"{tmp_path / 'split'}:test", "math")) == 2


@pytest.mark.skipif(pyarrow is None, reason="needs pyarrow")
def test_parquet_is_read_in_shards_and_only_the_columns_that_are_needed(tmp_path, monkeypatch):
    rows = [{"prompt": [{"role": "user", "content": f"{n}"}], "answer": n} for n in range(600)]
    for shard in range(2):
        some = [row | {"generations": ["x" * 50], "Own": "7"} for row in rows[shard::2]]
        write(tmp_path / "set" / f"train-{shard:05d}-of-00002.parquet", some)
    seen = []
    monkeypatch.setattr(
        data_rows,
        "read",
        lambda row, *a, read=data_rows.read, **k: seen.append(row) or read(row, *a, **k),
    )
    problems = read_problems(str(tmp_path / "set"), "math")
    assert sorted(int(p.prompt) for p in problems) == list(range(600))
    assert set(seen[0]) == {"prompt", "answer"}
    assert {p.answer for p in read_problems(str(tmp_path / "set"), "math", answer_field="Own")} == {
        "7"
    }


@pytest.mark.skipif(pyarrow is not None, reason="pyarrow is there")
def test_parquet_without_pyarrow_names_the_package(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1" + b"x" * 20 + b"PAR1")
    with pytest.raises(ValueError, match="rows.parquet is parquet.*: pip install pyarrow$"):
        read_problems(str(tmp_path / "rows.parquet"), "math")


def test_one_row_with_a_list_of_calls_is_a_row_where_its_field_is_named(tmp_path):
    row = {"instruction": "?", "answer": [{"Action": "f", "Action_Input": "{}"}]}
    for name, indent in (("rows.jsonl", None), ("pretty.json", 2)):
        (tmp_path / name).write_text(json.dumps(row, indent=indent))
        (problem,) = read_problems(str(tmp_path / name), "tool", prompt_field="instruction")
        assert problem.prompt == "?" and problem.answer == row["answer"]


@pytest.mark.parametrize("column", ["PK", "BZ"])
def test_a_header_that_begins_like_a_packed_file_is_read(tmp_path, column):
    (tmp_path / "rows.csv").write_text(f"{column},prompt,answer\n1,1+1,2\n")
    assert read_problems(str(tmp_path / "rows.csv"), "math")[0].answer == "2"


# --- fields and golds ---


@pytest.mark.parametrize(
    "answer, gold",
    [
        (7, "7"),
        (7.0, "7"),
        (0.25, "0.25"),
        ("033", "033"),
        ('["42"]', '["42"]'),  # to the verifier it is 42, so it stays as it is
        ('"42"', '"42"'),
        ('["\\\\frac12"]', "\\frac12"),
        ("[0, 1)", "[0, 1)"),
        ("[1, 2]", "[1, 2]"),
        (["\\frac12"], "\\frac12"),
        ("It is \\boxed{1}. No: $\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}"),
        ("2 + 2 = 4\n#### 4", "4"),
        ("2 + 2 = 4\n#### 4 \n", "4"),
    ],
)
def test_math_golds_of_published_forms(answer, gold):
    assert read_row({"prompt": "?", "answer": answer}, "math", 0).answer == gold


@pytest.mark.parametrize(
    "answer", [True, [1], [], {}, float("nan"), "", "proof", "notfound", "N/A", ["1", "2"]]
)
def test_math_golds_that_nothing_can_match_are_refused(answer):
    with pytest.raises(ValueError):
        read_row({"prompt": "?", "answer": answer}, "math", 0)


def test_a_worked_solution_without_a_marked_answer_is_refused_and_an_unfinished_box_too():
    for text in ("By symmetry both have the same area.", "Hence $\\boxed{\\frac{1}{2}$"):
        with pytest.raises(ValueError, match="field 'solution'"):
            read_row({"problem": "?", "solution": text}, "math", 0)


def test_dotted_names_lead_into_objects_lists_and_json_in_texts():
    row = {"a": {"b": [{"c": "Two?"}]}, "x": '{"y": "2"}', "prompt": "no", "answer": "3"}
    problem = read_row(row, "math", 0, ("a.b.0.c", "x.y", None))
    assert (problem.prompt, problem.answer) == ("Two?", "2")


def test_a_missing_key_and_none_are_the_same_and_an_empty_system_message_is_none_at_all():
    row = {"prompt": None, "question": "1+1?", "answer": None, "solution": "2", "system": None}
    problem = read_row(row, "math", 0)
    assert (problem.prompt, problem.answer) == ("1+1?", "2")
    assert problem.system == verifiers.INSTRUCTIONS["math"]
    assert read_row(row | {"system": ""}, "math", 0).system == ""
    with pytest.raises(ValueError, match="no field 'prompt' or 'question', only 'prompt'"):
        read_row({"prompt": None, "answer": "1"}, "math", 0)


def test_messages_give_the_system_message_and_one_user_turn():
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "1+1?"}]},
    ]
    problem = read_row({"messages": turns, "answer": "2"}, "math", 0)
    assert (problem.system, problem.prompt) == ("Be brief.", "1+1?")
    as_text = read_row({"prompt": json.dumps(turns), "answer": "2"}, "math", 0)
    assert (as_text.system, as_text.prompt) == ("Be brief.", "1+1?")
    answered = [*turns, {"role": "assistant", "content": "It is \\boxed{2}."}]
    assert read_row({"messages": answered}, "math", 0).answer == "2"


@pytest.mark.parametrize(
    "turns, says",
    [
        (["user", "assistant", "user"], "a conversation of 3 turns"),
        (["assistant", "user"], "a conversation of 2 turns"),
        (["user", "user"], "a conversation of 2 turns"),
        ([], "not a text"),
    ],
)
def test_other_conversations_are_refused_with_the_reason(turns, says):
    row = {"messages": [{"role": role, "content": "x"} for role in turns], "answer": "2"}
    with pytest.raises(ValueError, match=says):
        read_row(row, "math", 0)


def test_answer_is_the_gold_of_a_row_that_has_it_and_disagreement_is_said_once(tmp_path, capsys):
    def golds(*rows):
        write(tmp_path / "rows.jsonl", [{"prompt": f"{n}?"} | r for n, r in enumerate(rows)])
        problems = read_problems(str(tmp_path / "rows.jsonl"), "math")
        return [p.answer for p in problems], capsys.readouterr().out

    row = {"answer": "56", "expected_answer": "57"}
    found, said = golds(row, row, row | {"expected_answer": "56.0"}, {"answer": "1"})
    assert found == ["56", "56", "56", "1"] and said.count("disagree") == 1
    assert "2 rows have two golds that disagree, in 'answer' and 'expected_answer'" in said
    found, said = golds({"answer": "3 + 3 = 6\n#### 6", "final_answer": "7"})
    assert found == ["6"] and "1 rows have two golds" in said
    found, said = golds(
        {"answer": "We add the numbers and get the result.", "final_answer": "7"},
        {"answer": "", "solution": "\\boxed{7}"},
        {"answer": ["5", "6"], "ground_truth": "7"},
        {"answer": "Thus $\\boxed{5", "solution": "\\boxed{7}"},
    )
    assert found == ["7"] * 4 and "disagree" not in said
    found, said = golds({"answer": "\\text{the third Monday after Easter}", "target": "7"})
    assert found == ["\\text{the third Monday after Easter}"] and "disagree" in said
    with pytest.raises(ValueError, match="no placeholder"):
        golds({"answer": "proof", "solution": "Hence $\\boxed{QED}$."})


@pytest.mark.parametrize("name", ["system_prompt", "System"])
def test_only_system_replaces_the_tasks_instruction_unless_another_field_is_named(name):
    row = {"prompt": "1+1?", "answer": "2", name: "Be brief."}
    assert read_row(row, "math", 0).system == verifiers.INSTRUCTIONS["math"]
    assert read_row(row, "math", 0, (None, None, name)).system == "Be brief."
    assert read_row(row | {"system": "Be long."}, "math", 0).system == "Be long."


OPTIONS = "Which?\nA: iron\nB: argon"
METHOD = {"type": "functional", "entry_point": "f", "starter_code": "class Solution:\n  pass\n"}
METHOD["tests"] = [{"input": "1", "output": "1"}]
ASSERT = {"type": "assert", "entry_point": "add", "tests": ["assert add(1, 2) == 3"], "note": None}
START = "\n\nStart from this code:\n```python\nclass Solution:\n  pass\n\n```"
# (task, prompt, answer, the prompt of the problem): the first version of runtime/data.py gave these
PLAIN_ROWS = [
    ("math", " 7 * 8? ", " 56 ", " 7 * 8? "),
    ("math", "?", '["42"]', "?"),
    ("math", "?", "$\\frac12$ ", "?"),
    ("math", "?", "\\fbox{5}", "?"),
    ("science", OPTIONS, "B", OPTIONS),
    ("science", OPTIONS, "b", OPTIONS),
    ("tool", "?", [{"Action": " f ", "Action_Input": '{"x":1.50,  "y":"\\u00e9"}'}], "?"),
    ("tool", "?", [{"Action": "f", "Action_Input": "{}", "Thought": "call"}], "?"),
    ("code", "Use class Solution:\n  pass\n", METHOD, "Use class Solution:\n  pass\n" + START),
    ("code", "Add.", ASSERT, "Add.\n\nThe function must be called add."),
    ("code", "Write add(a, b).\n", ASSERT, "Write add(a, b).\n"),
]


@pytest.mark.parametrize("task, prompt, answer, wanted", PLAIN_ROWS, ids=range(len(PLAIN_ROWS)))
def test_a_plain_row_is_left_as_it_is_so_that_old_checkpoints_resume(task, prompt, answer, wanted):
    before = json.dumps(answer)
    problem = read_row({"prompt": prompt, "answer": answer, "system": None}, task, 3)
    assert problem == Problem(wanted, json.loads(before), verifiers.INSTRUCTIONS[task], 3)
    assert json.dumps(problem.answer) == before
    again = data.as_rows([problem], task)[0]
    assert read_row(again, task, 3) == problem  # files that were written read back the same


def test_a_system_message_with_a_list_stays_where_the_gold_is_in_our_form():
    calls = [{"Action": "f", "Action_Input": "{}"}]
    row = {"prompt": "?", "answer": calls, "system": 'Tools: [{"name": "f"}]'}
    assert read_row(row, "tool", 0) == Problem("?", calls, row["system"], 0)


# --- science ---


@pytest.mark.parametrize(
    "more",
    [
        {"choices": METALS, "answer": 1},
        {"choices": METALS, "answer": "B"},
        {"choices": METALS, "answer": "(b)"},
        {"choices": METALS, "answer": "iron"},
        {"choices": json.dumps(METALS), "answer": "B"},
        {"options": {"text": METALS, "label": ["1", "2", "3", "4"]}, "answer": "2"},
        {
            "options": [{"label": a, "text": t} for a, t in zip("ABCD", METALS, strict=True)],
            "answer": "B",
        },
        {
            "options": [{"key": a, "value": t} for a, t in zip("abcd", METALS, strict=True)],
            "answer": "b",
        },
        {"options": dict(zip("ABCD", METALS, strict=True)), "answer": "B"},
        {"options": [f"{a}. {t}" for a, t in zip("ABCD", METALS, strict=True)], "answer": "B"},
        {"A": METALS[0], "B": METALS[1], "C": METALS[2], "D": METALS[3], "answer": "B"},
    ],
)
def test_options_of_every_form_are_written_into_the_prompt(more):
    problem = read_row({"question": "Which is a metal?"} | more, "science", 0)
    assert problem.answer == "B"
    assert problem.prompt == "Which is a metal?\n\nA: sulphur\nB: iron\nC: argon\nD: iodine"


def test_arcs_original_rows_have_the_choices_inside_the_question():
    inner = [{"text": text, "label": label} for label, text in zip("ABCD", METALS, strict=True)]
    row = {"id": "1", "question": {"stem": "Which?", "choices": inner}, "answerKey": "B"}
    problem = read_row(row, "science", 0)
    assert problem.prompt.startswith("Which?\n\nA: sulphur") and problem.answer == "B"


def test_a_science_row_whose_options_the_student_cannot_see_is_refused():
    with pytest.raises(ValueError, match="found in the prompt, nor in a field"):
        read_row({"prompt": "Which of them is a metal?", "answer": "B"}, "science", 0)
    shown = {"prompt": "Which is a metal? (A) argon (B) iron (C) neon", "answer": "B"}
    assert read_row(shown, "science", 0).prompt == shown["prompt"]
    with pytest.raises(ValueError, match="no options like"):
        read_row(shown | {"answer": "D"}, "science", 0)
    statements = "Consider these. A: 1 > 2. B: 2 > 1. Which hold?"
    row = {"prompt": statements, "choices": ["both", "the second alone"], "answer": 1}
    assert read_row(row, "science", 0).prompt.endswith("\n\nA: both\nB: the second alone")
    named = {"prompt": "Which is a metal, iron or argon?", "choices": ["iron", "argon"]}
    assert read_row(named | {"answer": 0}, "science", 0).prompt.endswith("\n\nA: iron\nB: argon")


def test_whether_numbers_count_options_from_0_or_from_1_is_told_by_the_file(tmp_path):
    def letters(*answers):
        rows = [
            {"question": f"{n}?", "choices": METALS, "answer": a} for n, a in enumerate(answers)
        ]
        write(tmp_path / "rows.jsonl", rows)
        return "".join(p.answer for p in read_problems(str(tmp_path / "rows.jsonl"), "science"))

    assert letters(1, 3) == "BD"
    assert letters(0, 3) == "AD"
    assert letters(1, 4) == "AD"
    assert letters("0", "3") == "AD"
    assert letters("1", "4") == "AD"
    with pytest.raises(ValueError, match="from 0 or from 1"):
        letters("1", "3")
    with pytest.raises(ValueError, match="1 of 2 rows cannot be read.*counts 4 options from 0"):
        letters(0, 4)


@pytest.mark.parametrize("answer", ["B", "b", "(B)"])
def test_a_letter_that_is_also_the_text_of_another_option_is_refused(answer):
    row = {"question": "Which group?", "options": ["O", "AB", answer, "A"], "answer": answer}
    says = "ambiguous: option B, or the text of option C"
    with pytest.raises(ValueError, match=says):
        read_row(row, "science", 0)
    with pytest.raises(ValueError, match=says):
        read_row(row | {"options": dict(zip("ABCD", row["options"], strict=True))}, "science", 0)
    key = {"question": "?", "options": row["options"], "answerKey": answer}
    assert read_row(key, "science", 0).answer == "B"
    assert read_row(row | {"answer_idx": "C"}, "science", 0).answer == "C"
    same = row | {"options": ["A", answer, "C", "D"]}
    assert read_row(same, "science", 0).answer == "B"
    name = {"question": "?", "options": ["E. coli", "A. thaliana"], "answer": "A. thaliana"}
    assert read_row(name, "science", 0).answer == "B"


@pytest.mark.parametrize(
    "form",
    [
        *("{}: {}", "{}. {}", "({}) {}", "[{}] {}", "**{}.** {}", "*{}.* {}", "**{}** {}"),
        *("{} - {}", "{} {}", "{}、{}", '"{}": {}', "<{}> {}", "${}$. {}", "Option {} {}"),
        *("- {}) {}", "**Option {}:** {}", "\u9009\u9879{}\uff1a{}", "{}\uff0e{}", "| {} | {} |"),
    ],
)
@pytest.mark.parametrize("letters", ["ABCD", "abcd"])
def test_options_in_the_prompt_are_found_however_they_are_marked(form, letters):
    lines = [form.format(*pair) for pair in zip(letters, METALS, strict=True)]
    row = {"prompt": "Which is a metal?\n" + "\n".join(lines), "answer": "B"}
    assert read_row(row, "science", 0).prompt == row["prompt"]
    with pytest.raises(ValueError, match="no options like 'A: …' or 'A\\) …' were found"):
        read_row(row | {"answer": "E"}, "science", 0)


@pytest.mark.parametrize(
    "prompt",
    [
        "A metal is hard. Which one is it?",
        "Is f(a, b) larger than a + b?",
        "Let $A$ and $B$ be points. Which is nearer?",
        "Is vitamin B or a vitamin C right?",
    ],
)
def test_letters_of_a_sentence_are_no_options(prompt):
    with pytest.raises(ValueError, match="no options like"):
        read_row({"prompt": prompt, "answer": "B"}, "science", 0)


def test_answer_is_the_gold_of_science_rows_and_a_letter_goes_before_a_number(tmp_path, capsys):
    rows = [
        {"question": "1?", "options": METALS, "answer": "B", "answerKey": "A"},
        {"question": "2?", "options": METALS, "answer": "A metal.", "answerKey": "B"},
        {"question": "3?", "options": METALS, "answer": "2", "answerKey": "B"},
        {"question": "4?", "options": METALS, "answer": "B", "answer_index": 1},
        {"question": "5?", "options": METALS, "answer": "B", "answer_index": 3},
    ]
    write(tmp_path / "rows.jsonl", rows)
    assert {p.answer for p in read_problems(str(tmp_path / "rows.jsonl"), "science")} == {"B"}
    said = capsys.readouterr().out
    assert said.count("disagree") == 1 and "2 rows have two golds that disagree" in said


# --- tool ---


def test_openais_tool_calls_are_read():
    call = {"id": "c", "type": "function"}
    call["function"] = {"name": "weather", "arguments": '{"city": "Bern"}'}
    row = {
        "messages": [
            {"role": "user", "content": "How is it in Bern?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "rain", "tool_call_id": "c"},
        ],
        "tools": [{"type": "function", "function": TOOLS[0]}],
    }
    problem = read_row(row, "tool", 0)
    assert problem.answer == [{"Action": "weather", "Action_Input": '{"city": "Bern"}'}]
    assert problem.prompt.startswith("Tools:\nweather: How is the weather?\nParameters: {")


def test_calls_in_python_notation_are_parsed_and_nothing_is_run():
    text = "[Get It(a=\"x(1), y\", b=[1, {'c': None}], d=true), other.f()]"
    assert data_golds.python_calls(text) == [
        ("Get It", {"a": "x(1), y", "b": [1, {"c": None}], "d": True}),
        ("other.f", {}),
    ]
    for bad in (
        "[f(a=g())]",
        "[f(a=__import__('os'))]",
        "[f(1)]",
        "[f(a=1]",
        "[f(**{})]",
        "f(a=1)",
        "[f]",
        "[" + "(" * 5_000 + "]",
        "[f(a=" + "[" * 5_000 + ")]",
    ):
        with pytest.raises(ValueError):
            data_golds.python_calls(bad)


def test_toolalpacas_training_rows_give_the_dialogues_of_one_call():
    def step(name, given):
        return [[name, given, "log"], "reply"]

    ask, bern = step("getDetails", '{"Question": "Where?"}'), step("weather", '{"city": "Bern"}')
    row = {
        "Name": "Sky",
        "NLDocumentation": "weather: How is it?",
        "Instructions": [],
        "Instances": [
            {"input": "In Bern?\nHint: city", "intermediate_steps": [ask, bern]},
            {"input": "In two towns?", "intermediate_steps": [bern, bern]},
            {"input": "Nothing?"},
        ],
    }
    problem = read_row(row, "tool", 0)
    assert problem.prompt.endswith("\n\nIn Bern?") and verifiers.verify(
        "tool", CALL, problem.answer
    )


def test_a_call_of_a_tool_that_is_not_listed_is_refused():
    row = {"query": "?", "answers": [{"name": "other", "arguments": {}}], "tools": TOOLS}
    with pytest.raises(ValueError, match="'other', which is none of the row's tools"):
        read_row(row, "tool", 0)


@pytest.mark.parametrize("tools", ["weather(city), time(city)", ["weather", "time"]])
def test_tools_that_are_plain_text_beside_the_prompt_are_ignored(tools):
    answer = [{"Action": "weather", "Action_Input": '{"city": "Rome"}'}]
    row = {"prompt": "Tools: weather(city). Rome?", "answer": answer, "tools": tools}
    assert read_row(row, "tool", 0).prompt == row["prompt"]


# --- code ---


def test_livecodebench_functions_are_called_and_packed_tests_count():
    start = "class Solution:\n    def addTwo(self, a: int, b: int) -> int:\n        "
    private = json.dumps([{"input": "5\n6", "output": "11", "testtype": "functional"}])
    row = {
        "question_content": "Add two numbers.",
        "starter_code": start,
        "public_test_cases": json.dumps(
            [{"input": "1\n2", "output": "3", "testtype": "functional"}]
        ),
        "private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(private))).decode(),
        "metadata": json.dumps({"func_name": "addTwo"}),
    }
    problem = read_row(row, "code", 0)
    assert "class Solution" in problem.prompt and len(problem.answer["tests"]) == 2
    right = program(start + "return a + b\n")
    assert verifiers.verify("code", right, problem.answer).correct
    assert not verifiers.verify("code", right.replace("a + b", "3"), problem.answer).correct


@pytest.mark.parametrize("protocol", range(6))
def test_a_packed_text_is_read_for_every_pickle_protocol_or_refused(protocol):
    packed = base64.b64encode(zlib.compress(pickle.dumps("tests \u00e9", protocol))).decode()
    if protocol == 0:  # a text in another, older writing, which LiveCodeBench does not use
        with pytest.raises(ValueError, match="not plain text but UNICODE"):
            data_golds.unpack_text(packed)
    else:
        assert data_golds.unpack_text(packed) == "tests \u00e9"


class Runs:
    def __reduce__(self):
        return print, ("a row was executed",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Runs()),
        pickle.dumps(["a", "b"]),
        pickle.dumps(b"bytes"),
        pickle.dumps("cut short" * 99)[:50],
        pickle.dumps("x")[:-1],
        b"",
        b"\x80\x04\xff",
    ],
)
def test_packed_tests_that_are_not_one_text_are_refused_and_nothing_runs(content, capsys):
    packed = base64.b64encode(zlib.compress(content)).decode()
    with pytest.raises(ValueError, match="the packed tests cannot be read") as error:
        data_golds.unpack_text(packed)
    assert "\n" not in str(error.value) and capsys.readouterr().out == ""


def test_packed_tests_that_unpack_without_end_or_are_cut_short_are_refused():
    large = zlib.compress(pickle.dumps("x" * 100_000))
    with pytest.raises(ValueError, match="more than 0 MB"):
        data_golds.unpack_text(base64.b64encode(large).decode(), limit=10_000)
    with pytest.raises(ValueError, match="cut short"):
        data_golds.unpack_text(base64.b64encode(large[:-20]).decode())
    for bad in ("!", "QUJD", "\u00e9"):
        with pytest.raises(ValueError, match="the packed tests cannot be read"):
            data_golds.unpack_text(bad)


def test_a_result_that_is_a_list_is_unwrapped_only_where_every_result_is():
    def golds(*outputs):
        tests = {"fn_name": "f", "inputs": [[n] for n in range(len(outputs))], "outputs": outputs}
        row = {"question": "f(x)?", "input_output": json.dumps(tests)}
        return [test["output"] for test in read_row(row, "code", 0).answer["tests"]]

    assert golds([1], [2]) == ["1", "2"]
    assert golds([1], [2, 3]) == ["[1]", "[2, 3]"]
    assert golds(1, 2) == ["1", "2"]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "?", "input_output": ""},
        {"question": "?", "input_output": '{"inputs": [], "outputs": []}'},
        {"question": "?", "input_output": '{"inputs": ["1"], "outputs": []}'},
        {"question": "?", "test_list": ["assert ((("]},
        {"question": "?", "test_list": ["assert 1 == 1"]},
        {"question": "?", "test": "import unittest", "entry_point": "f"},
        {"question": "?", "test": "@pytest.mark.x\ndef test_a():\n    assert f()"},
        {"question": "?", "public_tests": {"input": [], "output": []}},
        {"question": "?", "public_test_cases": "[{", "metadata": "{}"},
    ],
)
def test_code_rows_without_usable_tests_are_refused(row, tmp_path):
    write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ValueError, match="rows.jsonl:1: ") as error:
        read_problems(str(tmp_path / "rows.jsonl"), "code")
    assert "\n" not in str(error.value)


# --- what is said of the rows ---


def test_bad_rows_are_counted_the_first_five_named_and_left_out_where_asked(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    lines = [
        json.dumps({"prompt": f"{n}?", "answer": "proof" if n % 2 else "1"}) for n in range(20)
    ]
    path.write_text("\n".join([*lines, '{"cut": ']))
    with pytest.raises(ValueError) as error:
        read_problems(str(path), "math")
    text = str(error.value)
    assert text.startswith("11 of 21 rows cannot be read (--skip-bad-rows leaves them out): ")
    assert re.findall(r"rows\.jsonl:(\d+): ", text) == ["2", "4", "6", "8", "10"]
    assert "\n" not in text and text.endswith("; ...")
    counts = {}
    problems = read_problems(str(path), "math", skip_bad_rows=True, counts=counts)
    assert [p.prompt for p in problems] == [f"{n}?" for n in range(0, 20, 2)]
    assert [p.key for p in problems] == list(range(10)) and counts == {str(path): 11}
    assert "11 of 21 rows cannot be read and are left out" in capsys.readouterr().out
    path.write_text("\n".join(lines[1::2]))
    with pytest.raises(ValueError, match="no usable row: a math answer is a value"):
        read_problems(str(path), "math", skip_bad_rows=True)


@pytest.mark.parametrize("skip", [False, True])
def test_where_all_rows_are_bad_the_reason_is_said_once_and_the_task_is_asked_for(tmp_path, skip):
    """One reason stood there five times, before a --skip-bad-rows that would leave no row."""
    path = tmp_path / "rows.jsonl"
    write(path, [{"prompt": f"{n}?", "answer": {"n": n}} for n in range(9)] + [{"prompt": "?"}])
    with pytest.raises(ValueError) as error:
        read_problems(str(path), "math", skip_bad_rows=skip)
    reason = "field 'answer' is not a text or number ({'n': 0})"
    assert str(error.value) == (
        f"{path} has no usable row: {reason} (9 of 10 rows, first {path}:1): "
        "is --task math right, and --answer-field?"
    )


@pytest.mark.parametrize(
    "row",
    [
        {"question": "A metal?", "choices": ["iron", "air"], "answer": "A"},
        {"question": "A metal?", "choices": ["iron", "air"], "answer": 0},
        {"question": "A metal? (A) iron (B) air", "answer": "(B)"},
    ],
)
def test_rows_of_multiple_choice_under_math_are_a_warning(tmp_path, capsys, row):
    """They trained without a word: the student's 'iron' was wrong, and 'A' no sum."""
    sums = [{"question": f"{n} + {n}?", "answer": str(2 * n)} for n in range(9)]
    sums[0] |= {"A": 2, "B": 3}  # options of a sum, whose answer is a value
    write(tmp_path / "rows.jsonl", [row] * 19 + sums[:1])
    read_problems(str(tmp_path / "rows.jsonl"), "math")
    said = capsys.readouterr().out
    assert " answers are letters or numbers of options in the row: is this --task science?" in said
    write(tmp_path / "rows.jsonl", [row] * 9 + sums)
    read_problems(str(tmp_path / "rows.jsonl"), "math")
    assert "--task science" not in capsys.readouterr().out


def test_the_choice_of_fields_repeats_and_contradictions_are_said(tmp_path, capsys):
    rows = [{"question": "1+1?", "final_answer": "2"}, {"question": "1+1?", "final_answer": "3"}]
    write(
        tmp_path / "rows.jsonl", [*rows, rows[0], {"question": "1+2?", "answer": "\\overline{CD}"}]
    )
    read_problems(str(tmp_path / "rows.jsonl"), "math")
    said = capsys.readouterr().out
    assert (
        "4 problems, prompt from 'question', answer from 'final_answer' (3), 'answer' (1)" in said
    )
    assert (
        "1 rows have another answer than an earlier row with the same prompt: '2' and '3'" in said
    )
    assert "2 of 4 rows repeat the prompt of an earlier one" in said
    assert "1 different answers are no values and matched as text alone: " in said


@pytest.mark.parametrize("role", ["prompt", "answer", "system"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet"])
def test_a_named_field_that_no_row_has_is_refused_with_the_fields_there_are(tmp_path, name, role):
    """A mistyped --system-field left the task's instruction in place without a word."""
    if name == "x.parquet" and pyarrow is None:
        pytest.skip("needs pyarrow")
    write(tmp_path / name, [{"prompt": "1+1?", "answer": "2", "sys": "Be brief.", "mine": "5"}])
    with pytest.raises(ValueError, match="'sis'.* only 'prompt', 'answer', 'sys', 'mine'"):
        read_problems(str(tmp_path / name), "math", **{f"{role}_field": "sis"})
    (made,) = read_problems(str(tmp_path / name), "math", system_field="sys")
    assert made.system == "Be brief."


def test_a_system_field_may_be_null_or_be_missing_in_some_rows(tmp_path):
    for field, row in (("sys", {"sys": None}), ("m.sys", {"m": {"sys": None}})):
        write(tmp_path / "x.jsonl", [{"prompt": "1?", "answer": "1", **row}])
        assert read_problems(str(tmp_path / "x.jsonl"), "math", system_field=field)
    rows = [{"prompt": "1?", "answer": "1"}, {"prompt": "2?", "answer": "2", "o": {"sys": "x"}}]
    write(tmp_path / "x.jsonl", rows)
    problems = read_problems(str(tmp_path / "x.jsonl"), "math", system_field="o.sys")
    assert [p.system == "x" for p in problems] == [False, True]


def test_evaluation_rows_without_the_system_field_are_a_warning(tmp_path, capsys):
    """Only the training rows may have system messages; there is no flag for one file alone."""
    write(tmp_path / "x.jsonl", [{"prompt": "1?", "answer": "1"}])
    options = dict(system_field="sys", needs_system=False)
    assert read_problems(str(tmp_path / "x.jsonl"), "math", **options)
    assert "warning: " in (said := capsys.readouterr().out) and "no row has the field 'sys'" in said


def test_a_row_of_another_task_says_so(tmp_path):
    row = {"question": "A metal?", "choices": {"text": ["iron", "air"], "label": ["A", "B"]}}
    write(tmp_path / "arc.jsonl", [row | {"answerKey": "A"}])
    with pytest.raises(ValueError, match="--answer-field, or is this --task science"):
        read_problems(str(tmp_path / "arc.jsonl"), "math")


@pytest.mark.parametrize(
    "row",
    [
        {"question": "1?", "A": 4, "B": 5, "C": 1, "answer": "2"},
        {"question": "1?", "options": ["1", "2", "3"], "answer": "2"},
        {"question": "1?", "choices": {"text": ["a", "b"], "label": 3}, "answer": "2"},
    ],
)
def test_values_beside_options_are_no_multiple_choice_and_no_bad_rows(tmp_path, capsys, row):
    """The last was counted as read and as bad at once."""
    write(tmp_path / "rows.jsonl", [row] * 3)
    assert len(read_problems(str(tmp_path / "rows.jsonl"), "math")) == 3
    said = capsys.readouterr().out
    assert "--task science" not in said and "cannot be read" not in said


def test_evaluation_rows_that_are_training_rows_are_counted(capsys):
    def problem(prompt):
        return read_row({"prompt": prompt, "answer": "1"}, "math", 0)

    held_out = [problem("one\ntwo"), problem("three")]
    data.say_overlap([problem("one two "), problem("four")], held_out)
    assert "1 of 2 evaluation rows have the prompt of a training row" in capsys.readouterr().out
    data.say_overlap([problem("four")], held_out)
    assert capsys.readouterr().out == ""


# --- bad input of every container ---


def refused(path, task="math", limit=None, monkeypatch=None):
    """The one line with which a file is refused."""
    if limit:
        original = data_files.rows_of
        monkeypatch.setattr(
            data_files, "rows_of", lambda p, **options: original(p, **options, limit=limit)
        )
    with pytest.raises(ValueError) as error:
        read_problems(str(path), task)
    assert "\n" not in str(error.value)
    return str(error.value)


DEEP = "[" * 100_000


BAD_FILES = [
    (
        "x.jsonl",
        b'{"prompt": "1+1", "ans',
        "JSON object or array: Unterminated string starting at column 19",
    ),
    (
        "x.jsonl",
        LINES.encode() + b'\n{"ans',
        "not one JSON object: Unterminated string starting at column 2",
    ),
    ("x.json", b'[{"prompt": "1+1", "answer": "2"}', "x.json:1: not one JSON object or array"),
    ("x.json", b'[\n{"prompt": "1+1",\n"ans', "x.json:3: not one JSON object or array"),
    ("x.jsonl", b'{"prompt": "\xe9", "answer": "2"}', "x.jsonl:1: not UTF-8 (byte 0xe9"),
    ("x.json", b'[{"prompt": "1+1"} {"a": 1}]', "Expecting ',' delimiter at column 20"),
    ("x.json", b'[{"prompt": "1+1"}] x', "x.json:1: not one JSON object or array: Extra data"),
    ("x.json", b'[{"prompt": "1+1"},]', "Expecting value at column 20"),
    ("x.json", b'[{"prompt":\n "\xe9"}]', "x.json:2: not UTF-8 (byte 0xe9"),
    ("x.csv", b"prompt,answer\n\xe9,2\n", "x.csv:2: not UTF-8 (byte 0xe9"),
    ("x.jsonl", '{"prompt": "1"}'.encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
    ("x.jsonl", DEEP.encode(), "x.jsonl:1: row 1 is nested too deeply"),
    ("x.jsonl", ('{"a": ' + DEEP + "}").encode(), "x.jsonl:1: nested too deeply"),
    ("x.jsonl", b'{"a": ' + b"1" * 5000 + b"}", "x.jsonl:1: a number has too many digits"),
    ("x.json", b'[{"a": ' + b"1" * 5000 + b"}]", "array: a number has too many digits"),
    ("x.csv", b'prompt,answer\n"1+1,2\n', "x.csv:2: not CSV: unexpected end of data"),
    ("x.csv", b"prompt,answer\n1,2,3\n", "x.csv:2: 3 cells, and the header has 2"),
    ("x.csv", b"prompt,prompt\n1,2\n", "two columns of one name"),
    ("x.json", b'{"train": [{"a": 1}], "test": [{"a": 1}]}', "several lists ('train', 'test')"),
    ("x.jsonl.gz", gzip.compress(LINES.encode())[:-12], "the gzip file is cut short"),
    ("x.jsonl.gz", gzip.compress(b"x" * 9)[:10] + b"\xff" * 30, "the gzip file is damaged"),
    ("x.zip", b"PK\x03\x04....", "is a zip file: unpack it first"),
    ("x.jsonl", b"\x28\xb5\x2f\xfd....", "is a zstandard file: unpack it first"),
    ("x.jsonl", b"", "no usable row: it is empty"),
    ("x.json", b"[]", "no usable row: it is empty"),
    ("x.json", b"[1, 2]", "no usable row: not a JSON object (2 of 2 rows, first "),
    ("x.csv", b"prompt,answer\n", "no usable row: it is empty"),
    ("x.jsonl", b"\x00" * 99, "x.jsonl:1: not one JSON object"),
]


@pytest.mark.parametrize("name, content, says", BAD_FILES, ids=range(len(BAD_FILES)))
def test_bad_input_ends_in_one_line(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    assert says in refused(tmp_path / name)


LARGE_FILES = [
    ("x.jsonl", b'{"prompt": "' + b"x" * 5000 + b'"}', "x.jsonl:1: one line of more than"),
    ("x.jsonl", b"{}\n" + b" " * 5000, "x.jsonl:2: one line of more than"),
    ("x.json", b"[\n" + b'{"prompt": "1", "answer": "2"},\n' * 99, "JSON array of more than"),
    ("x.csv", b"prompt,answer\n" + b'"' + b"x\n" * 5000, "x.csv:1025: one CSV row of more"),
    ("x.csv", b"prompt,answer\n" + b"x" * 5000, "one line of more than"),
    ("x.jsonl.gz", gzip.compress(b"\n" * 900_000), "unpacks to more than 200 times its size"),
    ("x.json.gz", gzip.compress(b" " * 900_000), "x.json.gz:1: one line of more than"),
]


@pytest.mark.parametrize("name, content, says", LARGE_FILES, ids=range(len(LARGE_FILES)))
def test_what_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch, name, content, says):
    (tmp_path / name).write_bytes(content)
    assert says in refused(tmp_path / name, limit=2048, monkeypatch=monkeypatch)


def test_empty_lines_without_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "MAX_BLANK", 1000)
    (tmp_path / "x.jsonl").write_text(LINES + "\n" * 2000)
    assert "x.jsonl:1003: more than 1000 empty lines" in refused(tmp_path / "x.jsonl")


@pytest.mark.skipif(pyarrow is None, reason="needs pyarrow")
def test_damaged_parquet_is_one_line(tmp_path):
    write(tmp_path / "x.parquet", ROWS)
    whole = (tmp_path / "x.parquet").read_bytes()
    for damaged in (whole[:-9], whole[:40], b"PAR1" + b"\xff" * 60 + b"PAR1"):
        (tmp_path / "x.parquet").write_bytes(damaged)
        assert "the parquet file is damaged" in refused(tmp_path / "x.parquet")


def test_random_damage_of_a_file_never_ends_in_anything_but_rows_or_one_line(tmp_path):
    chance, path = random.Random(0), tmp_path / "x"
    for name, content in CONTAINERS.items():
        for _ in range(30):
            bad = bytearray(content.encode())
            for _ in range(chance.randrange(1, 4)):
                bad[chance.randrange(len(bad))] = chance.randrange(256)
            path = tmp_path / name
            path.write_bytes(bytes(bad[: chance.randrange(1, len(bad) + 1)]))
            try:
                read_problems(str(path), "math", skip_bad_rows=True)
            except ValueError as error:
                assert "\n" not in str(error)


# --- what fits the model ---


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.build_tokenizer("math", verifiers.INSTRUCTIONS["math"], verifiers.verify)


class Sized:
    """A model of which only the number of positions matters."""

    def __init__(self, positions):
        self.config = tiny.LlamaConfig(max_position_embeddings=positions)

    def named_buffers(self):
        return []


def test_fitting_keeps_exactly_the_problems_whose_prompt_fits(tokenizer, capsys):
    """Most are not tokenised, so the shortcut must never keep a problem that is too long."""
    chance, letters = random.Random(1), "ab 12é漢\ufdfa€"
    texts = ["".join(chance.choices(letters, k=chance.randrange(1, 80))) for _ in range(300)]
    problems = [Problem(t, "1", ("", "Be brief.")[n % 2], n) for n, t in enumerate(texts)]
    for room in (40, 90, 200):
        wanted = [p for p in problems if len(student_ids(tokenizer, p)) <= room - 10]
        assert data.fitting(problems, Sized(room), tokenizer, 10, "x") == wanted
        left = len(problems) - len(wanted)
        assert not left or f"x: {left} of 300 rows are too long" in capsys.readouterr().out


def test_short_prompts_are_not_tokenised_and_the_others_once_in_batches(tokenizer, monkeypatch):
    calls = []
    monkeypatch.setattr(
        data, "_lengths", lambda problems, t: calls.append(problems) or [0] * len(problems)
    )
    short, long = Problem("1+1?", "2", "Be brief.", 0), Problem("x" * 999, "2", "Be brief.", 1)
    data.fitting([short, long, replace(long, key=2)], Sized(512), tokenizer, 10, "x")
    assert [len(problems) for problems in calls] == [1]


def test_an_empty_system_message_writes_no_system_turn(tokenizer):
    turns = [{"role": "user", "content": "1+1?"}]
    assert "<|system|>" not in chat_text(tokenizer, "", turns)
    assert chat_text(tokenizer, "", turns) != chat_text(tokenizer, "Be brief.", turns)
