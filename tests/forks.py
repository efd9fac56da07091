"""Processes that run our code, forked from one that has imported everything: a start costs no ten
seconds. They are processes of their own in all but the interpreter's start."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import ROOT

import mopd
import train
from runtime import checkpoint, parallel

WHERE = {
    "rollout": (train, "sample"),
    "backward": (mopd, "backward"),
    "update": (mopd.Teacher, "update"),
    "evaluation": (train, "evaluate"),
    "saving": (checkpoint, "save"),
    "state": (parallel, "write_state"),
}

# code of a job: the file itself, as `python train.py` runs it
TRAIN = f"import runpy\nrunpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')"
SERVER = """
import json, os, resource, signal, sys, time, traceback
sys.path[:0] = [{root!r}, {tests!r}]
import train, mopd, verifiers
from runtime import checkpoint, parallel
from forks import WHERE
trace = os.open({trace!r}, os.O_RDWR | os.O_CREAT)

def traced(name, function, slow):
    def call(*args, **kwargs):
        outside = os.pread(trace, 64, 0)
        os.pwrite(trace, f"{{outside.decode().strip()}} {{name}}".ljust(64).encode(), 0)
        time.sleep(slow)
        result = function(*args, **kwargs)
        os.pwrite(trace, outside, 0)
        return result
    return call

signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
for line in sys.stdin:
    job = json.loads(line)
    os.pwrite(trace, b" " * 64, 0)
    if (pid := os.fork()) == 0:
        status = 1
        try:
            log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1), os.dup2(log, 2)
            for name, (owner, attribute) in WHERE.items():
                slow = job["slow"].get(name, 0)
                setattr(owner, attribute, traced(name, getattr(owner, attribute), slow))
            if job["limit"]:
                resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
            sys.argv = ["train.py", *job["arguments"]]
            exec(job["code"])
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


class Server:
    """Runs train.main, or other code, in one child at a time. `trace` holds the phases that the
    child is in, from the outermost to the innermost; `log` what it printed, errors included."""

    def __init__(self, folder):
        self.trace, self.log, self.ended = folder / "trace", folder / "log", True
        source = SERVER.format(root=str(ROOT), tests=str(ROOT / "tests"), trace=str(self.trace))
        self.process = subprocess.Popen(
            [sys.executable, "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        )  # CUDA and fork do not mix

    def start(self, arguments=(), code="train.main()", limit=0, **slow):
        if not self.ended:  # a test that failed left it
            self.kill(), self.wait()
        job = {
            "arguments": list(map(str, arguments)),
            "code": code,
            "limit": limit,
            "slow": slow,
            "log": str(self.log),
        }
        print(json.dumps(job), file=self.process.stdin, flush=True)
        self.pid, self.ended = int(self.process.stdout.readline()), False

    def wait(self):
        """The exit status as subprocess has it: negative for a signal."""
        self.ended = True
        return os.waitstatus_to_exitcode(int(self.process.stdout.readline()))

    def run(self, *args, **kwargs):
        self.start(*args, **kwargs)
        return self.wait()

    def phases(self):
        return self.trace.read_text().split() if self.trace.exists() else []

    def reach(self, phase):
        """Wait until the child is in this phase; False when it ended first."""
        while phase not in self.phases():
            state = Path(f"/proc/{self.pid}/stat")
            if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
                return False
            time.sleep(0.0005)
        return True

    def kill(self, number=signal.SIGKILL):
        os.kill(self.pid, number)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
