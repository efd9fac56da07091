"""Files stay within their budgets of lines; those over it do not grow."""

import subprocess
import sys

import check_budgets
import pytest
from check_budgets import BUDGETS, CEILINGS, sizes
from conftest import ROOT


def test_no_file_outgrows_its_budget_or_its_ceiling():
    assert [size for size in sizes() if size.lines > size.limit] == []


def test_only_files_over_their_budget_have_a_ceiling():
    assert all(ceiling > BUDGETS[file] for file, ceiling in CEILINGS.items())


@pytest.mark.parametrize("lines, status", [(420, 0), (474, 0), (475, 1)])
def test_a_file_over_its_ceiling_ends_the_check_with_status_1(
    lines, status, tmp_path, monkeypatch, capsys
):
    (tmp_path / "mopd.py").write_text("pass\n" * lines)
    monkeypatch.setitem(CEILINGS, "mopd.py", 474)
    found = sizes(tmp_path)
    monkeypatch.setattr(check_budgets, "sizes", lambda: found)
    assert check_budgets.main() == status
    assert ("TOO LONG" in capsys.readouterr().out) is bool(status)


def test_the_check_runs_by_itself_and_prints_every_file():
    command = [sys.executable, ROOT / "tests" / "check_budgets.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(size.file in done.stdout for size in sizes())
