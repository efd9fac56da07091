"""What README.md and docs/ show is true: links, code, rows of data, layouts, columns of metrics."""

import inspect
import json
import re

import pytest
from conftest import ROOT

import mopd
import peer_context
import train
import verifiers
from mopd import Attempt, Problem
from rollout import Rollout
from runtime import data
from runtime.metrics import Sums, describe

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(name: str, language: str) -> list[str]:
    """The fenced blocks of a language in a page."""
    text = (ROOT / name).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8"))
    files = [link for link in links if not link.startswith("http")]
    assert [file for file in files if not (page.parent / file).is_file()] == []


def test_the_code_of_the_readme_runs(capsys):
    """But for the block that needs a model of the Hub, whose imports are checked."""
    ours, with_a_model = blocks("README.md", "python")
    exec(ours, {})
    printed = capsys.readouterr().out
    assert "A correct solution" in printed and "Verdict(correct=True" in printed
    for line in with_a_model.splitlines():
        if line.startswith("from "):
            exec(line, {})


def test_the_row_of_the_readme_is_read():
    (row,) = blocks("README.md", "json")
    assert data.read_row(json.loads(row), "math", 0).prompt == "What is 7 times 8?"


@pytest.mark.parametrize("task", verifiers.TASKS)
def test_every_row_of_the_page_on_data_is_read_under_its_task(task):
    sections = re.split(
        r"^## `--task (\w+)`$", (ROOT / "docs" / "data.md").read_text("utf-8"), flags=re.M
    )
    text = dict(zip(sections[1::2], sections[2::2], strict=True))[task].partition("\n## ")[0]
    rows = [
        json.loads(line)
        for block in re.findall(r"^```json\n(.*?)^```$", text, re.M | re.S)
        for line in block.splitlines()
    ]
    assert rows
    for row in rows:
        problem = data.read_row(row, task, 0)
        assert not verifiers.verify(task, "I do not know.", problem.answer).correct


def test_the_layouts_are_shown_as_they_are_written():
    attempts = dict(successes=[r"It is \boxed{56}."], failures=[r"It is \boxed{54}."])
    one, turns = blocks("docs/layouts.md", "")
    problem = "What is 7 times 8?"
    assert one == f"[user]\n{peer_context.teacher_prompt(problem, **attempts)}\n"
    assert turns == peer_context.readable(peer_context.teacher_turns(problem, **attempts)) + "\n"


def test_every_row_of_the_known_faults_names_a_test_that_exists():
    """A renamed or deleted test would leave a fault that nothing catches."""
    text = (ROOT / "docs" / "known_faults.md").read_text("utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    faults = [row for row in rows if row[1].strip() not in ("Fault", "---")]
    assert len(faults) > 60 and all(len(row) == 6 and "`test_" in row[4] for row in faults)
    for file, name in set(re.findall(r"(test_\w+\.py)::(\w+)", text)):
        source = (ROOT / "tests" / file).read_text("utf-8")
        assert f"\ndef {name}(" in source, f"{file}::{name}"


def test_the_page_on_metrics_lists_every_column():
    rollout = Rollout([1], [2], [-1.0], True)
    attempt = Attempt(
        Problem("", "", "", 0), 0, rollout, "text", verifiers.Verdict(True, "text", "")
    )
    columns = {"step", *Sums().metrics(True), *describe([attempt])}
    for function in (train.train_step, train.evaluate, mopd.write_contexts):
        columns |= set(re.findall(r'"(\w+)":', inspect.getsource(function)))
    assert {"loss", "oom_retries", "eval_right", "context_tokens", "grad_norm"} <= columns
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    listed = {
        name
        for line in text.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert columns == listed
