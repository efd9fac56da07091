"""Shared fixtures. Real task data is optional: point MOPD_DATA at a folder with math/, science/,
tool/ and code/."""

import json
import logging
import os
import sys
from pathlib import Path

import pytest

# small tensors: a second thread costs more than it brings, most of all under load
os.environ.setdefault("OMP_NUM_THREADS", "1")
# torch's checkpoints write a line for every tensor: a failed test would be unreadable
logging.disable(logging.DEBUG)
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def data_dir():
    folder = Path(os.environ.get("MOPD_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real task data at {folder}: set MOPD_DATA to a folder that has it")
    return folder


@pytest.fixture(scope="session")
def rows(data_dir):
    """rows("math/gsm8k_test") reads one JSON Lines file of the real data as a list of dicts."""

    def read(name):
        # splitlines() would also split at U+2028
        with open(data_dir / f"{name}.jsonl", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    return read


@pytest.fixture
def two_threads():
    """As a run has by default on two cores: what threads add up in any order would not repeat."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with model/ (random weights), train.jsonl and eval.jsonl of the math world."""
    from tools import math_student, write_lines

    import tiny  # here, because many tests need no torch

    folder = tmp_path_factory.mktemp("train")
    model, tokenizer = math_student()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, rows in zip(("train", "eval"), tiny.problems("math", seed=0), strict=True):
        write_lines(folder / f"{name}.jsonl", rows[:24])
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """forks.Server: starts processes that need not import torch and transformers again."""
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork and signals")
    from forks import Server

    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the checks that take minutes")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
