"""The real Hub code against a stand-in server: data sets, their splits, examples/get_data.py."""

import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse

import pytest
from conftest import ROOT
from test_data import write

ROWS = [{"question": f"{n}+1?", "answer": f"One more is {n + 1}.\n#### {n + 1}"} for n in range(4)]


class StandIn(http.server.BaseHTTPRequestHandler):
    """Serves server.folder/OWNER/NAME as data sets, in the Hub's protocol."""

    def respond(self, body):
        parts = urllib.parse.unquote(self.path.partition("?")[0]).strip("/").split("/")
        content, tag = None, None
        if parts[:2] == ["api", "datasets"] and parts[4:6] == ["tree", "main"]:
            folder = self.server.folder / "/".join(parts[2:4])
            files = [path for path in folder.rglob("*") if path.is_file()]
            entries = [
                {
                    "type": "file",
                    "path": path.relative_to(folder).as_posix(),
                    "size": path.stat().st_size,
                    "oid": "0" * 40,
                }
                for path in files
            ]
            content = json.dumps(entries).encode() if files else None
        elif parts[:1] == ["datasets"] and parts[3:5] == ["resolve", "main"]:
            path = self.server.folder / "/".join(parts[1:3] + parts[5:])
            content = path.read_bytes() if path.is_file() else None
            tag = f'"{parts[-1]}-{len(content or b"")}"'
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("X-Repo-Commit", "0" * 40)
        if tag:
            self.send_header("ETag", tag)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound" if tag else "RepoNotFound")
        self.end_headers()
        if body and content:
            self.wfile.write(content)

    def do_GET(self):
        self.respond(True)

    def do_HEAD(self):
        self.respond(False)

    def log_message(self, *args):
        pass


# in a process that has imported everything: the Hub's client reads its environment at its import
FRESH = """
import runpy
for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
    del sys.modules[name]
os.environ.update({environment!r})
os.chdir({folder!r})
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.fixture
def hub(tmp_path):
    """(folder of the stand-in's data sets, run(arguments) in a process that asks it)."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.folder = tmp_path / "sets"
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def run(*arguments, offline="0", port=server.server_port, forks=None):
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{port}",
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": offline,
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        if forks:
            code = FRESH.format(environment=environment, folder=str(tmp_path), script=arguments[0])
            return forks.run(arguments[1:], code=code), forks.log.read_text()
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            env=os.environ | environment,
            cwd=tmp_path,
        )

    yield server.folder, run
    server.shutdown()


def read(*specs):
    """Arguments of Python that print a line for each spec: its rows, or why it is refused."""
    return "-c", (
        f"import json, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from runtime.data_files import find_files, rows_of\n"
        f"for spec in {specs}:\n"
        "    try: print([row['question'] for p in find_files(spec) for _, row in rows_of(p)])\n"
        "    except ValueError as error: print('refused:', error)"
    )


def answered(done):
    """[lines that say what is fetched], then the other lines of `read`."""
    lines = done.stdout.splitlines()
    fetched = [line for line in lines if "so it is fetched" in line]
    return fetched, *[line for line in lines if line not in fetched]


def test_a_split_of_a_data_set_is_downloaded_with_all_its_shards_and_kept(hub):
    folder, run = hub
    for n in range(2):
        write(folder / f"someone/sums/main/train-{n:05d}-of-00002.jsonl", ROWS[n : n + 1])
    write(folder / "someone/sums/main/test-00000-of-00001.jsonl", ROWS[2:3])
    write(folder / "someone/sums/other/train.jsonl", ROWS[3:])
    names = ("main/train", "test", "other/train.jsonl", "main")
    specs = [f"someone/sums:{name}" for name in names]
    done = run(*read(*specs, "someone/sums"))
    fetched, *lists, refused = answered(done)
    assert fetched == [
        f"{spec}: no file or folder here, so it is fetched from the Hub or its cache"
        for spec in (*specs, "someone/sums")
    ]
    train = "['0+1?', '1+1?']"
    assert lists == [train, "['2+1?']", "['3+1?']", train], done
    assert "2 data sets: write someone/sums:main/train or someone/sums:other/train" in refused
    # without a network: from what was downloaded
    _, *said = answered(run(*read(*specs), offline="1"))
    assert [line for line in said if line.startswith("[")] == lists
    assert len(said) == len(lists) + 3, said  # a line where files had to be listed: not for FILE
    assert said[0].startswith("someone/sums: the Hub gave no list of files")


def test_bfcls_answers_are_downloaded_with_its_questions(hub, tmp_path):
    folder, run = hub
    write(folder / "b/BFCL/BFCL_v3_simple.json", [{"id": "0", "question": "?"}])
    write(folder / "b/BFCL/possible_answer/BFCL_v3_simple.json", [{"id": "0"}])
    _, *rows = answered(run(*read("b/BFCL:BFCL_v3_simple.json")))
    assert rows == ["['?']"]
    cached = (tmp_path / "home").rglob("possible_answer/BFCL_v3_simple.json")
    assert [path.read_text() for path in cached] == ['{"id": "0"}\n']


@pytest.mark.parametrize("offline", ["0", "1"])
def test_what_the_hub_does_not_have_and_no_network_are_one_line(hub, offline):
    _, run = hub
    specs = ("someone/nothing", "someone/nothing:train.jsonl", "someone/nothing:train")
    _, *lines = answered(run(*read(*specs), offline=offline))
    assert len(lines) == 3
    for line, spec in zip(lines, specs, strict=True):
        assert line.startswith(f"refused: cannot load {spec} from the Hub: "), line
        said = "HF_HUB_OFFLINE is set, and it was not downloaded before: unset it, or give a local"
        assert (said in line) == (offline == "1") and "cannot be reached" not in line


def test_get_data_writes_files_that_train_reads(hub, tmp_path, server):
    folder, run = hub
    name = "{}-00000-of-00001.parquet"
    write(folder / "openai/gsm8k/main" / name.format("train"), ROWS[:3])
    write(folder / "openai/gsm8k/main" / name.format("test"), ROWS[3:])
    script = str(ROOT / "examples" / "get_data.py")
    status, printed = run(script, "gsm8k", "--out", "own", forks=server)
    assert status == 0, printed
    rows = [
        json.loads(line) for line in (tmp_path / "own/gsm8k/train.jsonl").read_text().splitlines()
    ]
    assert rows == [{"prompt": f"{n}+1?", "answer": f"{n + 1}"} for n in range(3)]
    assert len((tmp_path / "own/gsm8k/eval.jsonl").read_text().splitlines()) == 1
    command = printed.splitlines()[-1]
    assert command.startswith("python train.py --task math --model ")
    assert command.endswith("--data own/gsm8k/train.jsonl --eval-data own/gsm8k/eval.jsonl")


@pytest.mark.parametrize("options", [{"offline": "1"}, {"port": 9}])
@pytest.mark.slow
def test_get_data_without_a_network_is_one_line_and_writes_nothing(hub, tmp_path, options):
    """Nothing answers at port 9: the Hub's client tries for half a minute."""
    _, run = hub
    done = run(str(ROOT / "examples" / "get_data.py"), "gsm8k", **options)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "get_data.py: error: cannot load openai/gsm8k:main/train from the Hub" in done.stderr
    assert not (tmp_path / "data").exists()
