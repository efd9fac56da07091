"""Shared fixtures. Real task data is optional: point MOPD_DATA at a folder with math/, science/, tool/ and code/."""

import json
import logging
import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # small tensors: a second thread costs more than it brings, most of all under load
logging.disable(
    logging.DEBUG
)  # torch's checkpoints write a line for every tensor: a failed test would be unreadable
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
        with open(
            data_dir / f"{name}.jsonl", encoding="utf-8"
        ) as file:  # splitlines() would also split at U+2028
            return [json.loads(line) for line in file]

    return read


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the checks that take minutes")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
