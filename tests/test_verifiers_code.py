"""The code verifier against hostile, honest and real programs; the real data is optional."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

import sandbox
import verifiers
from verifiers import verify, verify_batch, verify_code

linux = pytest.mark.skipif(sys.platform != "linux", reason="the isolation layers are Linux's")
SECRET = "expected-73915-output"  # the expected output, and a canary everywhere else
STDIN = {"type": "stdin", "tests": [{"input": "3 4\n", "output": SECRET + "\n"}]}
SUM = {
    "type": "stdin",
    "tests": [{"input": "3 4\n", "output": "7\n"}, {"input": "10 -2\n", "output": "8\n"}],
}
ASSERT = {"type": "assert", "tests": [f"assert f(3) == '{SECRET}'"], "entry_point": "f"}
FUNCTION = {
    "type": "functional",
    "tests": [{"input": "3", "output": json.dumps(SECRET)}],
    "entry_point": "f",
}


def fenced(program):
    return f"I think this is it.\n```python\n{program}\n```\n"


# Programs that print what they find: a leak of the secret would be judged right.
HOSTILE_STDIN = {
    "endless loop": "while True: pass",
    "sleep": "import time\ntime.sleep(1000)",
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "thread bomb": "import threading, time\nwhile True:\n"
    "    threading.Thread(target=time.sleep, args=(99,)).start()",
    "memory": "x = []\nwhile True:\n    x.append(bytearray(1 << 24))",
    "one huge allocation": "x = bytearray(1 << 40)",
    "gigabytes of output": "import sys\nwhile True:\n    sys.stdout.write('x' * 1000000)",
    "gigabytes of errors": "import sys\nwhile True:\n    sys.stderr.write('x' * 1000000)",
    "close stdout": "import os\nos.close(1)\nprint(7)",
    "replace stdout": "import sys\nclass Any:\n    def __eq__(self, other): return True\n"
    "    def write(self, text): return 1\n"
    "    closed = True\nsys.stdout = Any()\nprint(7)",
    "memory of the parent": "import os\nprint(open(f'/proc/{os.getppid()}/mem', 'rb').read(99))",
    "command line of everyone": "import glob\n"
    "for name in glob.glob('/proc/*/cmdline'): print(open(name).read())\n"
    "open('/proc/1/cmdline')",
    "environment of everyone": "import glob\n"
    "for name in glob.glob('/proc/*/environ'): print(open(name).read())\n"
    "open('/proc/1/environ')",
    "own environment": "import os\nprint(os.environ['CANARY'])",
    "read a file outside": "print(open({file!r}).read(), end='')",
    "read a file through a symlink": "import os\nos.symlink({file!r}, 'here')\n"
    "print(open('here').read(), end='')",
    "hard link to a file outside": "import os\nos.link({file!r}, 'here')\n"
    "print(open('here').read(), end='')",
    "list outside folders": "import os\nprint(os.listdir({folder!r})[0])",
    "write a file outside": "open({folder!r} + '/written', 'w').write('x')\nprint(7)",
    "write to shared memory": "open('/dev/shm/written-by-the-sandbox', 'w').write('x')\nprint(7)",
    "leave files in the temporary folder": "import tempfile, os\n"
    "fd, name = tempfile.mkstemp(prefix='left-')\n"
    "os.write(fd, b'x')\nprint(name)",
    "a deep tree without permissions": "import os\nfor i in range(3000):\n"
    "    os.mkdir('d', 0o700)\n    os.chdir('d')\n"
    "os.mkdir('e', 0)",
    "climb the stack": "import sys\nframe = sys._getframe()\nwhile frame:\n"
    "    print({{**frame.f_globals, **frame.f_locals}})\n    frame = frame.f_back",
    "frames of a traceback": "try:\n    1 / 0\nexcept Exception as e:\n"
    "    t = e.__traceback__\n    while t:\n"
    "        print(t.tb_frame.f_back and t.tb_frame.f_back.f_locals)\n        t = t.tb_next",
    "every live object": "import gc\nfor x in gc.get_objects():\n"
    "    if isinstance(x, (dict, list, tuple)):\n"
    "        s = repr(x)[:10000]\n"
    "        if 'expected-73915' in s.replace(\"'expected-73915' in s\", ''): print(s)",
    "contact a listener": "import socket\n"
    "s = socket.create_connection(('127.0.0.1', {port}), 1)\ns.send(b'x')\n"
    "print(s.recv(99).decode())",
    "kill the parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nprint(7)",
    "kill the group": "import os, signal\nos.killpg(0, signal.SIGKILL)\nprint(7)",
    "kill everybody": "import os, signal\nos.kill(-1, signal.SIGKILL)\nprint(7)",
    "daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n"
    "    if os.fork() == 0: time.sleep(1000)\n"
    "    os._exit(0)\nprint(7)",
    "child program": "import subprocess\n"
    "print(subprocess.run(['/bin/sh', '-c', 'id'], capture_output=True).stdout)",
    "ignore signals": "import signal\n"
    "for n in (signal.SIGTERM, signal.SIGINT, signal.SIGXCPU, signal.SIGALRM): signal.signal(n, "
    "signal.SIG_IGN)\nwhile True: pass",
    "os._exit": "import os\nos._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "exit in __del__": "import os\nclass X:\n    def __del__(self): os._exit(0)\nx = X()\n"
    "del x\nprint(7)",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\n"
    "def f(n): return f(n + 1) + 1\nf(0)",
    "deep recursion in C": "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n"
    "    def __getattr__(self, n): return getattr(self, n + 'x')\nA().x",
    "replace builtins": "import builtins\n"
    "builtins.print = builtins.len = builtins.open = builtins.str = lambda *a: True\nprint(7)",
    "replace json": "import sys, json\njson.loads = json.dumps = lambda *a, **k: True\n"
    "sys.modules['json'] = None\n"
    "print(7)",
    "huge integer to string": "import sys\n"
    "getattr(sys, 'set_int_max_str_digits', print)(0)\nprint(10 ** (10 ** 8))",
    "tower of powers": "print(9 ** 9 ** 9 ** 9)",
    "regex blow-up": "import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')",
    "null byte": "print(7)\0",
    "lone surrogate": "print('\ud800')",
    "nested brackets": "x = " + "(" * 100000 + ")" * 100000,
    "fill the disk": "i = 0\nwhile True:\n    open(str(i), 'wb').write(bytes(1 << 20))\n    i += 1",
    "open many files": "x = []\nwhile True: x.append(open('f', 'w'))",
    "trace another process": "import ctypes, os\n"
    "print(ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0))",
    "new namespaces": "import ctypes\nprint(ctypes.CDLL(None).unshare(0x10000000))",
    "crash": "import ctypes\nctypes.string_at(0)",
    "a thread that never ends": f"import threading\ndef f():\n    while True: pass\n"
    f"threading.Thread(target=f).start()\nprint({SECRET[:8]!r})",
    "exit handler that never ends": "import atexit, time\n"
    "atexit.register(time.sleep, 1000)\nprint(7)",
    "reads the channel": "import os\nfor fd in range(3, 64):\n"
    "    try: print(os.read(fd, 1 << 16))\n"
    "    except OSError: pass",
}
HOSTILE_CALLS = {
    "equals everything": "class Any:\n    def __eq__(self, other): return True\n"
    "    def __ne__(self, other): return False\ndef f(x): return Any()",
    "string that equals everything": "class S(str):\n    def __eq__(self, other): return True\n"
    "    __hash__ = str.__hash__\ndef f(x): return S('no')",
    "override the assertion": "import builtins, sys\n"
    "builtins.AssertionError = type('Quiet', (Exception,), {})\n"
    "sys.excepthook = print\ndef f(x): return 1",
    "exit in the function": "import os\ndef f(x): os._exit(0)",
    "sys.exit in the function": "import sys\ndef f(x): sys.exit(0)",
    "raise SystemExit at the top": "raise SystemExit(0)",
    "forged verdict on the channel": 'import os\ndef f(x):\n    os.write(3, b\'{"ok": true}\\n'
    '{"value": 1, "ok": true}\\n\')\n    os._exit(0)',
    "tests in the caller's frames": "import sys\ndef f(x):\n"
    "    frame, seen = sys._getframe(), ''\n    while frame:\n"
    "        seen += repr(frame.f_locals)\n        frame = frame.f_back\n"
    "    at = seen.find('expected-' + '73915')\n    return seen[at:at + 21]",
    "endless result": "def f(x):\n    while True: yield 1",
    "result that holds itself": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "huge result": "def f(x): return [0] * 10**8",
    "loop in the function": "def f(x):\n    while True: pass",
    "no such function": "def g(x): return 1",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Every hostile program judged once: name -> (verdict, seconds / load), and what they could
    have touched."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / SECRET).write_text(SECRET + "\n")
    os.environ["CANARY"] = SECRET
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)
    place = {"file": str(folder / SECRET), "folder": str(folder), "port": listener.getsockname()[1]}
    jobs = {
        name: (text.replace("{{", "{").replace("}}", "}"), STDIN)
        for name, text in HOSTILE_STDIN.items()
    }
    for name in jobs:
        for key, value in place.items():
            text = (
                jobs[name][0].replace("{%s!r}" % key, repr(value)).replace("{%s}" % key, str(value))
            )
            jobs[name] = text, STDIN
    for name, text in HOSTILE_CALLS.items():
        jobs[name + " (functional)"], jobs[name + " (assert)"] = (text, FUNCTION), (text, ASSERT)
    before = set(os.listdir("/tmp")) | set(
        os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else ()
    )

    def judge(job):
        load, start = sandbox.load(), time.monotonic()
        # those that end by themselves need a tenth of this second, the others all of it
        verdict = verify_code(fenced(job[0]), job[1], time_limit=1)
        seconds = time.monotonic() - start
        return verdict, seconds / max(load, sandbox.load())

    with ThreadPoolExecutor(sandbox.cores()) as pool:  # as many at a time as verify_batch
        results = dict(zip(jobs, pool.map(judge, jobs.values()), strict=True))
    yield SimpleNamespace(results=results, folder=folder, listener=listener, before=before)
    listener.close()
    del os.environ["CANARY"]


NAMES = [
    *HOSTILE_STDIN,
    *(f"{name} ({kind})" for name in HOSTILE_CALLS for kind in ("functional", "assert")),
]


@linux
@pytest.mark.parametrize("name", NAMES)
def test_hostile_program_is_wrong_in_time_and_learns_nothing(hostile, name):
    verdict, seconds = hostile.results[name]
    assert not verdict.correct
    assert SECRET not in verdict.feedback.replace("'" + str(hostile.folder / SECRET), "")
    assert 0 < len(verdict.feedback) <= 2000
    assert seconds < 3, f"{seconds:.1f} s"  # 2 for one that sleeps


def descendants(pid):
    path = f"/proc/{pid}/task/{pid}/children"
    children = [int(x) for x in Path(path).read_text().split()] if os.path.exists(path) else []
    return children + [y for x in children for y in descendants(x)]


@linux
def test_hostile_programs_leave_nothing_behind(hostile):
    time.sleep(0.3)
    assert len(descendants(sandbox._server.process.pid)) == 1, (
        "only the server itself, inside its namespaces"
    )
    now = set(os.listdir("/tmp")) | set(os.listdir("/dev/shm"))
    assert not [
        name for name in now - hostile.before if name.startswith(("sandbox-", "left-", "written"))
    ]
    assert os.listdir(hostile.folder) == [SECRET]
    with pytest.raises(TimeoutError):
        hostile.listener.accept()


@linux
def test_the_list_of_hostile_programs_is_not_shortened():
    assert len(HOSTILE_STDIN) + len(HOSTILE_CALLS) >= 60


SEARCH = """import gc, sys
def look(x):
    text = repr(x)[:1 << 20]
    at = text.find(''.join(reversed('tuptuo-51937-detcepxe')))
    if at >= 0:
        print(text[at:at + 21])
        sys.exit()
frame = sys._getframe()
while frame:
    look(frame.f_globals), look(frame.f_locals)
    frame = frame.f_back
for x in gc.get_objects():
    if isinstance(x, (dict, list, tuple, set)):
        look(x)
"""


@pytest.mark.parametrize("answer", [STDIN, FUNCTION, ASSERT])
def test_no_frame_or_object_of_the_sandbox_holds_the_expected_output(answer):
    """It prints the expected output where it finds it: right in the first form, shown as the
    output in the others."""
    verify_code(
        fenced("def f(x): return 1"), answer
    )  # what the server may have kept of another test
    search = SEARCH if answer is STDIN else SEARCH + "def f(x): return 1"
    search = search if answer is STDIN else search.replace("print(", "raise SystemError(")
    verdict = verify_code(fenced(search), answer)
    assert not verdict.correct and SECRET not in verdict.feedback


@linux
def test_descriptors_of_the_server_reach_no_program():
    """Its socket would let a program answer for others. Open are the standard files and, for a
    function, the file for its result."""
    look = (
        "import os, stat\ndef is_open(fd):\n    try: return bool(os.fstat(fd))\n"
        "    except OSError: return False\n"
        "found = [fd for fd in range(1024) if is_open(fd)]\n"
    )
    f = "def f(x): return found, [fd for fd in found if stat.S_ISSOCK(os.fstat(fd).st_mode)]"
    stdin = {"type": "stdin", "tests": [{"input": "", "output": "[0, 1, 2]"}]}
    assert verify_code(fenced(look + "print(found)"), stdin).feedback == ""
    assert verify_code(fenced(look + f), call([("0", "[[0, 1, 2, 3], []]")])).feedback == ""


HONEST = {  # two numbers on one line in, their sum out
    "plain": "a, b = map(int, input().split())\nprint(a + b)",
    "main guard": "def main():\n    a, b = map(int, input().split())\n    print(a + b)\n"
    "if __name__ == '__main__':\n"
    "    main()",
    "sys.stdin.read": "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
    "sys.stdin.buffer": "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))",
    "sys.stdin.buffer.readline": "import sys\ninput = sys.stdin.buffer.readline\n"
    "a, b = map(int, input().split())\n"
    "print(a + b)",
    "sys.stdin.readline": "import sys\ninput = sys.stdin.readline\n"
    "a, b = map(int, input().split())\nprint(a + b)",
    "lines of stdin": "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))",
    "open(0)": "print(sum(map(int, open(0).read().split())))",
    "os.read": "import os\nprint(sum(map(int, os.read(0, 1000).split())))",
    "os.write": "import os\nos.write(1, str(sum(map(int, input().split()))).encode() + b'\\n')",
    "input to the end": "n = []\ntry:\n    while True: n += map(int, input().split())\n"
    "except EOFError:\n"
    "    print(sum(n))",
    "sys.stdout.write": "import sys\nsys.stdout.write(str(sum(map(int, input().split()))))",
    "buffered bytes": "import sys\n"
    "sys.stdout.buffer.write(b'%d\\n' % sum(map(int, input().split())))",
    "BytesIO as stdout": "import sys, io, os\nout = io.StringIO()\nsys.stdout = out\n"
    "print(sum(map(int, input().split())))\nsys.__stdout__.write(out.getvalue())",
    "print with end and flush": "a, b = map(int, input().split())\n"
    "print(a + b, end='', flush=True)",
    "fileinput": "import fileinput\n"
    "for line in fileinput.input(): print(sum(map(int, line.split())))",
    "exit() at the end": "print(sum(map(int, input().split())))\nexit()",
    "sys.exit(0) at the end": "import sys\nprint(sum(map(int, input().split())))\nsys.exit(0)",
    "sys.exit() in main": "import sys\ndef main():\n"
    "    print(sum(map(int, input().split())))\nsys.exit(main())",
    "exceptions": "try:\n    int('x')\nexcept ValueError as e:\n"
    "    print(sum(map(int, input().split())))\nfinally:\n"
    "    pass",
    "classes": "class Adder:\n    def __init__(self, a, b): self.a, self.b = a, b\n"
    "    def __call__(self): return self.a + self.b\nprint(Adder(*map(int, input().split()))())",
    "dataclasses": "from dataclasses import dataclass\n@dataclass\nclass P:\n    a: int\n"
    "    b: int\n"
    "p = P(*map(int, input().split()))\nprint(p.a + p.b)",
    "named tuple and enum": "from collections import namedtuple\nfrom enum import Enum\n"
    "class C(Enum):\n    A = 0\n"
    "P = namedtuple('P', 'a b')\nprint(sum(P(*map(int, input().split()))) + C.A.value)",
    "collections": "from collections import Counter, defaultdict, deque\n"
    "q = deque(map(int, input().split()))\n"
    "print(q.popleft() + q.pop())",
    "heapq and bisect": "import heapq, bisect\nh = list(map(int, input().split()))\n"
    "heapq.heapify(h)\n"
    "print(heapq.heappop(h) + heapq.heappop(h))",
    "itertools and functools": "from itertools import accumulate\nfrom functools import reduce\n"
    "print(reduce(lambda a, b: a + b, map(int, input().split())))",
    "math and decimal": "import math\nfrom decimal import Decimal\nfrom fractions import Fraction\n"
    "a, b = map(Fraction, input().split())\nprint(math.floor(a + b))",
    "setrecursionlimit": "import sys\nsys.setrecursionlimit(10**6)\n"
    "def f(n): return 0 if n == 0 else 1 + f(n - 1)\n"
    "a, b = map(int, input().split())\nprint(f(50000) - 50000 + a + b)",
    "recursion through lru_cache": "import sys\nfrom functools import lru_cache\n"
    "sys.setrecursionlimit(10**6)\n"
    "@lru_cache(None)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\n"
    "print(f(20000) - 20000 + sum(map(int, input().split())))",
    "thread with a big stack": "import sys, threading\n"
    "def main(): print(sum(map(int, input().split())))\n"
    "threading.stack_size(1 << 27)\nt = threading.Thread(target=main)\nt.start()\nt.join()",
    "threads nobody joins": "import threading, time\ndef main():\n    time.sleep(0.1)\n"
    "    print(sum(map(int, input().split())))\nthreading.Thread(target=main).start()",
    "thread pool": "from concurrent.futures import ThreadPoolExecutor\n"
    "with ThreadPoolExecutor(4) as p: print(sum(p.map(int, input().split())))",
    "asyncio": "import asyncio\nasync def main(): return sum(map(int, input().split()))\n"
    "print(asyncio.run(main()))",
    "resource limits": "import resource, sys\n"
    "resource.setrlimit(resource.RLIMIT_STACK, resource.getrlimit(resource.RLIMIT_STACK))\n"
    "print(sum(map(int, input().split())))",
    "scratch file": "with open('scratch.txt', 'w') as f: f.write(input())\n"
    "print(sum(map(int, open('scratch.txt').read().split())))",
    "tempfile": "import tempfile\nwith tempfile.TemporaryFile('w+') as f:\n"
    "    f.write(input())\n    f.seek(0)\n"
    "    print(sum(map(int, f.read().split())))",
    "numpy when there": "try:\n    import numpy as np\n"
    "    print(int(np.array(input().split(), dtype=np.int64).sum()))\nexcept ImportError:\n"
    "    print(sum(map(int, input().split())))",
    "random and time": "import random, time\nrandom.seed(1)\ntime.sleep(0.01)\n"
    "print(sum(map(int, input().split())))",
    "generators and walrus": "def g():\n    yield from map(int, input().split())\n"
    "print(total := sum(g()))",
    "match": "match input().split():\n    case [a, b]: print(int(a) + int(b))",
    "type hints and typing": "from typing import List, Optional\n"
    "def f(x: List[int]) -> Optional[int]: return sum(x)\n"
    "print(f([*map(int, input().split())]))",
    "unicode names": "größe = sum(map(int, input().split()))\nprint(größe)",
    "print to stderr": "import sys\nprint('debug', file=sys.stderr)\n"
    "print(sum(map(int, input().split())))",
    "alarm": "import signal\nsignal.alarm(100)\nprint(sum(map(int, input().split())))",
    "one second of work": "x = 0\nfor i in range(5 * 10**6): x += i\n"
    "print(sum(map(int, input().split())))",
    "exec and eval": "exec('x = sum(map(int, input().split()))')\nprint(eval('x'))",
    "trailing spaces and lines": "print(sum(map(int, input().split())), '\\n\\n')",
    "a float": "print(float(sum(map(int, input().split()))))",
    "pickle": "import pickle\nclass A:\n    pass\na = pickle.loads(pickle.dumps(A()))\n"
    "print(sum(map(int, input().split())))",
}


@pytest.mark.parametrize("name", HONEST)
def test_honest_program_is_right(name):
    assert verify_code(fenced(HONEST[name]), SUM) == verifiers.Verdict(
        True, HONEST[name] + "\n", ""
    )


def call(tests, entry="f"):
    return {
        "type": "functional",
        "entry_point": entry,
        "tests": [{"input": i, "output": o} for i, o in tests],
    }


@pytest.mark.parametrize(
    "program, answer",
    [
        (
            "class Solution:\n    def f(self, a: List[int], b: int) -> int:\n"
            "        return sum(a) + b",
            call([("[1, 2]\n3", "6")]),
        ),
        ("def f(a, b):\n    return sum(a) + b", call([("[1, 2]\n3", "6")])),
        (
            "class Solution:\n    def f(self, n):\n"
            "        return sqrt(n), Counter('aa')['a'], inf > 1, pow(3, 4, 5)",
            call([("9", "[3, 2, true, 1]")]),
        ),
        (
            "class Solution:\n    @cache\n    def f(self, n): return [[n]] * 2",
            call([("9", "[[9], [9]]")]),
        ),
        (
            "def f(s): return {'a': s[::-1], 'b': None}",
            call([('"xy\\n"', '{"b": null, "a": "\\nyx"}')]),
        ),
        ("def f(n): return n / 3", call([("1", "0.33333333")])),
        ("def f(n): return 2 ** n", call([("200", str(2**200))])),
        (
            "print('noise')\ndef f(n):\n    print('noise')\n    return n\n"
            "if __name__ == '__main__':\n    raise SystemError",
            call([("1", "1")]),
        ),
    ],
)
def test_functions_and_methods_the_way_graders_call_them(program, answer):
    assert verify_code(fenced(program), answer).feedback == ""


@pytest.mark.parametrize(
    "value, expected",
    [
        ("True", "1"),
        ("1", "true"),
        ("'1'", "1"),
        ("None", "0"),
        ("[1]", "1"),
        ("{1}", "[1]"),
        ("10**17 + 1", "100000000000000000"),
        ("float('nan')", "1"),
        ("1.001", "1"),
        ("{'a': 1}", '{"a": 1, "b": 2}'),
        ("[1, 2]", "[2, 1]"),
    ],
)
def test_json_values_of_another_type_or_value_are_wrong(value, expected):
    assert not verify_code(fenced(f"def f(x): return {value}"), call([("0", expected)])).correct


@pytest.mark.parametrize(
    "program, test",
    [
        (
            "def f(x): return (x, {x}, {x: [x]}, b'x', None, 1.5, 2 ** 80, complex(1, 2))",
            "assert f(1) == (1, {1}, {1: [1]}, b'x', None, 1.5, 2 ** 80, 1 + 2j)",
        ),
        ("def f(x):\n    for i in range(x): yield i", "assert list(f(3)) == [0, 1, 2]"),
        (
            "from collections import Counter\ndef f(x): return Counter(x)",
            "assert f('aab') == {'a': 2, 'b': 1}",
        ),
        (
            "def f(x): raise ValueError('no')",
            "try:\n    f(1)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'no'",
        ),
        (
            "state = []\ndef f(x):\n    state.append(x)\n    return len(state)",
            "f(1)\nassert f(1) == 2",
        ),
        (
            "def g(x): return -x\ndef f(x): return g(x)",
            "def check(candidate):\n"
            "    assert g(candidate(3)) == 3 and math.fabs(candidate(1)) == 1\n"
            "check(f)",
        ),
        ("def f(a, *, b=1): return a + b", "assert f(1, b=2) == 3 and f([1] and 1) == 2"),
    ],
)
def test_assertions_see_plain_data_through_the_proxy(program, test):
    assert (
        verify_code(
            fenced(program),
            {"type": "assert", "tests": [test], "entry_point": "f", "setup": "import math"},
        ).feedback
        == ""
    )


CLASSES = (
    "class Stack:\n    def __init__(self): self.x = []\n    def push(self, v): self.x.append(v)\n"
    "    def __len__(self): return len(self.x)\n    def __contains__(self, v): return v in self.x\n"
    "    def __iter__(self): return iter(self.x)\n"
    "    def __eq__(self, other): return self.x == other.x\n"
)
ERRORS = "class Refused(ValueError): pass\ndef f(x): raise Refused('no ' + str(x))"


@pytest.mark.parametrize(
    "program, test",
    [
        (
            CLASSES,
            "s = Stack()\ns.push(4)\n"
            "assert len(s) == 1 and 4 in s and 5 not in s and list(s) == [4]",
        ),
        (
            CLASSES,
            "s, t = Stack(), Stack()\ns.push(4)\nassert s != t and isinstance(s, Stack)\n"
            "t.push(4)\nassert s == t",
        ),
        (
            ERRORS,
            "try:\n    f(1)\nexcept Refused as e:\n    assert str(e) == 'no 1'\nelse:\n"
            "    assert False",
        ),
        (
            ERRORS,
            "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n"
            "        with self.assertRaises(Refused): f(1)\nT('test').debug()",
        ),
        (
            "def f(xs, d):\n    xs.sort()\n    d['k'] = xs[0]",
            "a, d = [3, 1], {}\nf(a, d)\nassert a == [1, 3] and d == {'k': 1}",
        ),
        (
            "def f(xs, key): return sorted(xs, key=key)",
            "assert f([3, 1, 2], lambda v: -v) == [3, 2, 1]",
        ),
        ("def f(g): return g('7')", "assert f(int) == 7"),
        ("def f(n): return lambda x: x + n", "assert f(1)(2) == 3"),
        (
            "def f():\n    i = 0\n    while True:\n        yield i\n        i += 1",
            "g = f()\nassert next(g) == 0 and next(g) == 1",
        ),
        (
            "import datetime\ndef f(d): return d + datetime.timedelta(days=1)",
            "import datetime\nassert f(datetime.date(2020, 2, 28)) == datetime.date(2020, 2, 29)",
        ),
        (
            "def f(d): return d / 2",
            "from decimal import Decimal\nassert f(Decimal('1.5')) == Decimal('0.75')",
        ),
        ("def f(r): return sum(r)", "assert f(range(4)) == 6"),
        ("LIMIT = 7\ndef f(x): return x % LIMIT", "assert f(9) == 9 % LIMIT"),
        (
            "class Node:\n    def __init__(self, v, next=None): self.v, self.next = v, next\n"
            "def f(head):\n    back = None\n"
            "    while head: head.next, back, head = back, head, head.next\n    return back",
            "h = f(Node(1, Node(2)))\nassert (h.v, h.next.v, h.next.next) == (2, 1, None)",
        ),
    ],
)
def test_tests_use_the_programs_classes_exceptions_and_callbacks(program, test):
    """Only plain data went to the program and came back: such tests of MBPP and LiveCodeBench
    failed for everybody."""
    answer = {"type": "assert", "tests": [test], "entry_point": "f"}
    assert verify_code(fenced(program), answer).feedback == ""
    broken = (
        test.replace("assert", "assert not", 1)
        if "assert " in test
        else test.replace("Refused", "KeyError")
    )
    assert not verify_code(fenced(program), {**answer, "tests": [broken]}).correct


@pytest.mark.parametrize(
    "program, test",
    [
        ("def f(*, xs): xs.sort()", "a = [3, 1]\nf(xs=a)\nassert a == [1, 3]"),
        (
            "def f(q, c):\n    q.append(4)\n    c['a'] += 1",
            "q, c = collections.deque([1]), collections.Counter('a')\nf(q, c)\n"
            "assert list(q) == [1, 4] and c == {'a': 2}",
        ),
        (
            "def f(g):\n    a = [[3, 1]]\n    g(a)\n    return a",
            "assert f(lambda a: a[0].sort()) == [[1, 3]]",
        ),
    ],
)
def test_what_a_call_changes_is_changed_for_the_test(program, test):
    """Only lists, dicts and sets given by position were changed: right programs were wrong."""
    answer = {"type": "assert", "tests": [test], "entry_point": "f"}
    assert verify_code(fenced(program), answer).feedback == ""
    broken = test.replace("assert", "assert not")
    assert not verify_code(fenced(program), {**answer, "tests": [broken]}).correct


@pytest.mark.parametrize(
    "program, caught, holds",
    [
        (
            "import json\ndef f(): json.loads('{')",
            "json.JSONDecodeError",
            "e.pos == 1 and e.doc == '{'",
        ),
        (
            "def f(): b'\\xff'.decode()",
            "UnicodeDecodeError",
            "e.start == 0 and e.encoding == 'utf-8'",
        ),
        ("import decimal\ndef f(): decimal.Decimal('x')", "decimal.InvalidOperation", "True"),
        ("def f(): open('x')", "FileNotFoundError", "e.errno == 2 and e.filename == 'x'"),
        ("def f(): return {}['k']", "KeyError", "str(e) == \"'k'\" and e.args == ('k',)"),
        ("def f(): raise ValueError('a', 3)", "ValueError", "e.args == ('a', 3) == eval(str(e))"),
        ("def f(): raise ValueError", "ValueError", "e.args == () and str(e) == ''"),
        ("def f(): raise ValueError('x' * 999)", "ValueError", "len(str(e)) == 999"),
        ("import sys\ndef f(): sys.exit(3)", "SystemExit", "e.code == 3"),
        (
            "class Own(Exception):\n    def __init__(self, code): self.code = code\n"
            "    def __str__(self): return f'no {self.code}'\ndef f(): raise Own(3)",
            "Own",
            "str(e) == 'no 3' and type(e) is Own",
        ),
        ("class Base(Exception): pass\nclass Own(Base): pass\ndef f(): raise Own", "Base", "True"),
        (
            "class Own(Exception): pass\n"
            "def g(h):\n    try: h()\n    except Own as e: return str(e)\n"
            "def f(): raise Own('a')",
            "Own",
            "str(Own('b')) == 'b' and g(lambda: (_ for _ in ()).throw(Own('c'))) == 'c'",
        ),
    ],
)
def test_a_caught_exception_is_the_one_that_was_raised(program, caught, holds):
    """It came as a builtin class with 200 characters of its text."""
    test = "import decimal\ntry:\n    f()\nexcept {} as e:\n    assert {}\nelse:\n    assert False"
    answer = {"type": "assert", "tests": [test.format(caught, holds)], "entry_point": "f"}
    assert verify_code(fenced(program), answer).feedback == ""
    for wrong in (caught, f"not ({holds})"), ("ImportError", holds):
        answer = {**answer, "tests": [test.format(*wrong)]}
        assert not verify_code(fenced(program), answer).correct


@pytest.mark.parametrize("error", ["unittest.SkipTest", "unittest.case._ShouldStop"])
def test_no_exception_of_a_program_has_a_unit_test_skipped(error):
    """A library's exception crossed as itself: a skipped test is a success to unittest."""
    test = (
        "import unittest\nclass T(unittest.TestCase):\n"
        "    def test(self): self.assertEqual(f(1), 2)\n"
        "result = unittest.TestResult()\nT('test').run(result)\nassert result.wasSuccessful()"
    )
    answer = {"type": "assert", "tests": [test], "entry_point": "f"}
    program = f"import unittest\ndef f(x): raise {error}('x')"
    assert not verify_code(fenced(program), answer).correct
    assert verify_code(fenced("def f(x): return 2"), answer).feedback == ""


@pytest.mark.parametrize(
    "way",
    [
        # the frames of the judge, by its module sys
        "frame = sys._getframe()\nwhile 'self' not in frame.f_locals: frame = frame.f_back\n"
        "ask = frame.f_locals['self'].ask\nframe = ask('call', ask('getattr', sys, '_getframe'))\n"
        "found = ''\nwhile frame is not None:\n    code = ask('getattr', frame, 'f_code')\n"
        "    found += str(ask('getattr', code, 'co_consts'))\n"
        "    frame = ask('getattr', frame, 'f_back')",
        "found = str(given.gi_frame.f_globals)",
        "found = str(given.gi_code.co_consts)",
        "found = str(key.__globals__)",
        "found = str(key.__globals__.get('check').__code__.co_consts)",
        "found = '{0.__globals__}'.format(key)",
        "key.__defaults__ = ('x',)\nfound = 'expected-set'",
    ],
)
def test_no_attribute_leads_a_program_to_the_text_of_the_test(way):
    """The judge did for the program what it asked, on any module or object: it could read the
    expected value from the judge's frames and return it."""
    lines = way.replace("\n", "\n    ")
    program = "import sys\ndef f(given, key):\n    " + lines + "\n    raise ValueError(found)"
    test = (
        "def check(f, key=lambda v: v):\n"
        f"    assert f((v for v in ['{SECRET}']), key) == '{SECRET}'\ncheck(f)"
    )
    answer = {"type": "assert", "tests": [test], "entry_point": "f"}
    verdict = verify_code(fenced(program), answer)
    assert not verdict.correct and "expected-" not in verdict.feedback.replace("'expected-set'", "")
    assert "AttributeError" in verdict.feedback


@pytest.mark.parametrize(
    "result",
    [
        "type('A', (), {'__eq__': lambda s, o: True, '__hash__': None})()",
        "type('A', (), {'__contains__': lambda s, o: True, '__gt__': lambda s, o: True, "
        "'__lt__': lambda s, o: True})()",
        "type('A', (), {'__sub__': lambda s, o: s, '__abs__': lambda s: s, '__lt__': "
        "lambda s, o: True})()",
        "type('A', (), {'__sub__': lambda s, o: 0.0})()",
        "type('f', (), {'__contains__': lambda s, o: True, '__eq__': lambda s, o: True, "
        "'__hash__': None})()",
    ],
)
@pytest.mark.parametrize(
    "test",
    [
        f"assert f(3) == '{SECRET}'",
        f"assert '{SECRET}' in f(3)",
        "assert f(3) > 10**9",
        "assert abs(f(3) - 73915.5) < 1e-6",
        f"assert f(3) in ['{SECRET}']",
    ],
)
def test_an_object_of_the_program_is_equal_to_no_value_of_the_test(result, test):
    """References to objects of the program made `__eq__` and `__contains__` of any class a right
    answer."""
    answer = {"type": "assert", "tests": [test], "entry_point": "f"}
    assert not verify_code(fenced(f"def f(x): return {result}"), answer).correct


@pytest.mark.parametrize(
    "reply",
    [
        "'error': [{'class': ['builtins.type']}, ['X', {'builtins.tuple': [[{'class': "
        "['builtins.Exception', 'builtins.BaseException', 'builtins.object']}]]}, "
        "{'builtins.dict': [[['__eq__', {'mine': [0, 'f']}]]]}], 't']",
        "'value': {'class': ['x.Any', 'builtins.type']}",
        "'value': {'class': ['x.Any']}",
        "'value': {'yours': 0}",
    ],
)
def test_a_forged_reply_is_no_value_that_equals_the_tests(reply):
    program = "import os, json\ndef f(x):\n"
    program += f"    reply = {{{reply}}}\n"
    program += "    os.write(3, (json.dumps(reply) + chr(10)).encode())"
    for test in (f"assert f(3) == '{SECRET}'", f"assert f(3)() == '{SECRET}'"):
        answer = {"type": "assert", "tests": [test], "entry_point": "f"}
        assert not verify_code(fenced(program), answer).correct


def test_a_module_of_the_program_is_not_asked_for_the_tests_verdict():
    fake = "class np:\n    allclose = staticmethod(lambda a, b: True)\ndef f(x): return x"
    answer = {
        "type": "assert",
        "tests": ["import math\nassert math.isclose(f(1.0), 2.0)"],
        "entry_point": "f",
    }
    assert not verify_code(
        fenced(fake + "\nimport math\nmath.isclose = lambda a, b: True"), answer
    ).correct


def test_each_denied_system_call_has_a_name_and_a_number_for_each_machine():
    rows = [call.split() for calls in sandbox._DENIED.values() for call in calls.split(",")]
    assert all(
        name.isidentifier() and [n == "-" or n.isdigit() for n in numbers] == [True, True]
        for name, *numbers in rows
    )
    assert len({name for name, *_ in rows}) == len(rows) >= 35


@pytest.mark.parametrize(
    "way",
    [
        "open('/dev/stdin').read()",
        "open('/dev/fd/0').read()",
        "__import__('pathlib').Path('/dev/stdin').read_text()",
        "__import__('os').read(__import__('os').open('/dev/stdin', 0), 99).decode()",
    ],
)
def test_standard_input_has_its_names_in_dev(way):
    assert verify_code(fenced(f"print(sum(map(int, {way}.split())))"), SUM).feedback == ""


@pytest.mark.parametrize(
    "name, value",
    [
        ("randint(1, 1)", 1),
        ("len(ascii_lowercase)", 26),
        ("date(2020, 1, 3).day", 3),
        ("datetime.date(2020, 1, 3).day", 3),
        ("mean([1, 3])", 2),
        ("gcd(4, 6)", 2),
        ("len(StringIO('ab').read())", 2),
        ("itemgetter(0)([5])", 5),
        ("deepcopy([1])[0]", 1),
        ("search('b', 'ab').start()", 1),
        ("sum(accumulate([1, 2]))", 4),
    ],
)
def test_names_that_graders_define_need_no_import(name, value):
    """LiveCodeBench and LeetCode put `from random import *` and the like before each solution."""
    program = f"class Solution:\n    def f(self, x): return {name}"
    assert verify_code(fenced(program), call([("0", str(value))])).feedback == ""


@pytest.mark.parametrize(
    "response, program",
    [
        (
            '```python\ndef f():\n    """\n    ```\n    f()\n    ```\n    """\nprint(7)\n```',
            "print(7)\n",
        ),
        ('```python\n"""\n```\nf()\n```\n"""\nprint(7)\n```\nDone.', "print(7)\n"),
        ("- So:\n\n    ```python\n    print(7)\n    ```", "print(7)\n"),
    ],
)
def test_a_block_ends_at_its_own_fence_not_at_one_in_a_docstring(response, program):
    verdict = verify_code(response, {"type": "stdin", "tests": [{"input": "", "output": "7"}]})
    assert verdict.correct and verdict.answer.endswith(program)


@pytest.mark.parametrize(
    "out, expected, same",
    [
        ("1", "1\n", True),
        ("1 \n\n", "1", True),
        ("1\n2", "1 2", False),
        ("1  2", "1 2", False),
        (" 1", "1", False),
        ("0.3333333", "0.33333334", True),
        ("1.0", "1", True),
        ("1", "1.0", True),
        ("10000001", "10000002", False),
        ("001", "1", False),
        ("1e3", "1000", True),
        ("1e18", "1000000000000000001", False),
        ("0.1", "0.2", False),
        ("nan", "nan", True),
        ("nan", "0.5", False),
        ("inf", "1e999", False),
        ("yes", "Yes", False),
        ("a 1.0000001", "a 1.0", True),
        ("", "\n", True),
        ("", "0", False),
        ("1\n\n2", "1\n2", False),
    ],
)
def test_outputs_compare_by_token_with_tolerance_for_floats_only(out, expected, same):
    assert (
        verify_code(
            fenced(f"print({out!r}, end='')"),
            {"type": "stdin", "tests": [{"input": "", "output": expected}]},
        ).correct
        is same
    )


@pytest.mark.parametrize(
    "response, program",
    [
        ("```python\nprint(1)\n```\nand\n```python\nprint(7)\n```", "print(7)\n"),
        ("```python\nprint(7)\n```\noutput:\n```\n7\n```", "print(7)\n"),
        ("```\nprint(1)\n```\n```\nprint(7)\n```", "print(7)\n"),
        (
            "<think>```python\nprint(1)\n```</think>```py\nprint(2)\n```\n```python3\nprint(7)\n```",
            "print(7)\n",
        ),
        ("```python\nprint(1)\n```</think>\n~~~python\nprint(7)\n~~~", "print(7)\n"),
        ("```python\nprint(7)\n```\n<think>```python\nprint(1)\n```", "print(7)\n"),
        ("1. So:\n   ```Python\n   if 1:\n       print(7)\n   ```", "if 1:\n    print(7)\n"),
        ("````python\nx = '''\n```\n'''\nprint(7)\n````", "x = '''\n```\n'''\nprint(7)\n"),
        ("print(7)", "print(7)"),
        ("```python\nprint(7)", "print(7)"),
    ],
)
def test_the_last_python_block_outside_the_thinking_is_the_program(response, program):
    verdict = verify_code(response, {"type": "stdin", "tests": [{"input": "", "output": "7"}]})
    assert verdict == verifiers.Verdict(True, program, "")


@pytest.mark.parametrize(
    "response",
    [
        "",
        "   ",
        "I cannot do this, sorry.",
        "<think>```python\nprint(7)\n```",
        "```python\n```",
        "x" * (1 << 21),
    ],
)
def test_no_program_is_said_to_be_none(response):
    verdict = verify_code(response, SUM)
    assert (
        not verdict.correct and verdict.answer is None and verdict.feedback.startswith("No program")
    )


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        [],
        "7",
        {"type": "stdin", "tests": []},
        {"type": "stdin", "tests": [{"input": "1"}]},
        {"type": "stdin", "tests": [{"input": 1, "output": 2}]},
        {"type": "functional", "tests": [{"input": "1", "output": "1"}]},
        {"type": "functional", "entry_point": "f", "tests": [{"input": "x", "output": "1"}]},
        {"type": "assert", "tests": ["assert f("], "entry_point": "f"},
        {"type": "assert", "tests": [3], "entry_point": "f"},
        {"type": "other", "tests": ["1"]},
    ],
)
def test_bad_answers_raise_and_say_why(answer):
    with pytest.raises(ValueError, match="test|type"):
        verify_code("```python\n1\n```", answer)


def test_tests_run_in_order_and_stop_at_the_first_failure():
    answer = {
        "type": "stdin",
        "tests": [
            {"input": "1", "output": "1"},
            {"input": "2", "output": "0"},
            {"input": "9", "output": "9"},
        ],
    }
    assert (
        verify_code(fenced("n = input()\nwhile n == '9': pass\nprint(n)"), answer).feedback
        == "Test 2 failed: wrong output.\nInput:\n2\nOutput:\n2"
    )


def test_feedback_shows_input_output_and_traceback_never_the_expected_output():
    wrong, error = (
        verify_code(fenced("print('mine')"), STDIN).feedback,
        verify_code(fenced("x = 1\nprint(x / 0)"), STDIN).feedback,
    )
    assert "3 4" in wrong and "mine" in wrong
    assert (
        "line 2" in error
        and "ZeroDivisionError: division by zero" in error
        and "verifiers" not in error
    )
    for program in (
        "def f(x): return 'mine'",
        "def f(x): return x / 0",
        "def f(x): return",
        "def g(x): 1",
        "def f(x",
        "def f(x):\n    while 1: pass",
    ):
        for answer in (FUNCTION, ASSERT):
            text = verify_code(fenced(program), answer, time_limit=0.5).feedback
            assert text.startswith("Test 1 failed") and SECRET not in text


@pytest.mark.parametrize(
    "program",
    [
        "print(1)",
        "print(1 / 0)",
        "import os; os._exit(3)",
        "print('x' * 100000)",
        "def f(x): return 5",
        "def f(x): return [x] * 9",
        "def f(x): raise KeyError(x)",
    ],
)
def test_feedback_is_the_same_for_every_expected_output(program):
    kinds = [
        [
            {"type": "stdin", "tests": [{"input": "3", "output": out}]}
            for out in ("alpha", "8\n9", "0.25")
        ],
        [
            {"type": "functional", "entry_point": "f", "tests": [{"input": "3", "output": out}]}
            for out in ('"alpha"', "[8, 9]", "0.25")
        ],
        [
            {"type": "assert", "entry_point": "f", "tests": [f"assert f(3) == {out}"]}
            for out in ("'alpha'", "[8, 9]", "0.25")
        ],
    ]
    for answers in kinds:
        assert len({verify_code(fenced(program), answer) for answer in answers}) == 1


def test_batch_keeps_order_and_a_poisoned_row_changes_nothing():
    programs = [f"a, b = map(int, input().split())\nprint(a + b + {i % 3})" for i in range(12)]
    programs[5] = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nwhile True: pass"
    responses = [fenced(program) for program in programs] + [
        "\0" * 1000,
        "```" * 1000,
        "<think>" * 1000,
    ]
    verdicts = verify_batch("code", responses, [SUM] * len(responses))
    assert [verdict.correct for verdict in verdicts] == [
        i % 3 == 0 and i != 5 for i in range(12)
    ] + [False] * 3
    assert [verdict.answer for verdict in verdicts[:12]] == [program + "\n" for program in programs]


def test_batch_runs_equal_pairs_once(monkeypatch):
    ran, real = [], verifiers.verify_code
    monkeypatch.setattr(verifiers, "verify_code", lambda *args: ran.append(args) or real(*args))
    other = {"type": "stdin", "tests": [{"input": "3 4\n", "output": "12\n"}]}
    rows = [
        (HONEST["plain"], SUM),
        (HONEST["plain"], other),
        ("print(1)", SUM),
        (HONEST["plain"], dict(SUM)),
        ("print(1)", SUM),
    ]
    verdicts = verifiers.verify_batch(
        "code", [fenced(row[0]) for row in rows], [row[1] for row in rows]
    )
    assert [verdict.correct for verdict in verdicts] == [True, False, False, True, False] and len(
        ran
    ) == 3


def test_batch_refuses_unequal_lengths_and_bad_answers_before_any_work():
    with pytest.raises(ValueError):
        verify_batch("code", ["x"], [SUM, SUM])
    with pytest.raises(ValueError):
        verify_batch("code", ["x", "y"], [SUM, {}])
    assert verify_batch("code", [], []) == []


def test_limits_can_be_set():
    assert not verify_code(
        fenced("x = bytearray(1 << 29)\nprint(sum(map(int, input().split())))"), SUM, memory_mb=256
    ).correct
    burn = fenced(
        "import time\nwhile time.process_time() < 2.1: pass\nprint(sum(map(int, input().split())))"
    )
    assert verify_code(burn, {**SUM, "tests": SUM["tests"][:1]}, time_limit=5).correct
    assert "time limit of 0.5 s" in verify_code(burn, SUM, time_limit=0.5).feedback


HEADER = f"""
import sys
sys.path.insert(0, {str(Path(verifiers.__file__).parent)!r})
import threading, sandbox, verifiers
answer = {SUM!r}
response = {fenced(HONEST["plain"])!r}
"""
SCRIPT = (
    HEADER
    + """
print(verifiers.verify("code", response, answer).correct)
print([v.correct for v in verifiers.verify_batch("code", [response, "no"], [answer] * 2)])
thread = threading.Thread(target=lambda: print(verifiers.verify("code", response, answer).correct))
thread.start(); thread.join()
print(verifiers.verify("code", response, answer).correct)
"""
)


@pytest.mark.parametrize("way", ["file", "stdin", "-c"])
def test_unguarded_script_notebook_and_thread(way, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = {"file": [str(tmp_path / "script.py")], "stdin": ["-"], "-c": ["-c", SCRIPT]}[way]
    done = subprocess.run(
        [sys.executable, *command],
        input=SCRIPT if way == "stdin" else "",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (
        done.stdout.split("\n") == ["True", "[True, False]", "True", "True", ""]
        and done.stderr == ""
    )


def test_server_started_in_a_thread_outlives_the_thread():
    sandbox.close()
    thread = threading.Thread(target=verifiers.describe_isolation)
    thread.start(), thread.join()
    process = sandbox._server.process
    time.sleep(0.5)
    assert verify_code(fenced(HONEST["plain"]), SUM).correct and sandbox._server.process is process


def test_killed_server_is_started_again_and_the_verdict_is_right():
    slow = fenced("import time\ntime.sleep(1)\n" + HONEST["plain"])
    with ThreadPoolExecutor(1) as pool:
        for delay in (0.5, 0):
            verify_code(fenced(HONEST["plain"]), SUM)
            job = pool.submit(
                verify_code,
                slow if delay else fenced(HONEST["plain"]),
                {**SUM, "tests": SUM["tests"][:1]},
            )
            time.sleep(delay)
            sandbox._server.process.kill()
            assert job.result().correct


@linux
def test_server_and_programs_die_with_a_killed_trainer(tmp_path):
    script = (
        HEADER + "import os\nverifiers.describe_isolation()\n"
        "print(sandbox._server.process.pid, flush=True)\n"
        f"verifiers.verify_code({fenced('while True: pass')!r}, answer, time_limit=100)\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    server = int(trainer.stdout.readline())
    time.sleep(0.5)
    family = [server, *descendants(server)]
    assert len(family) >= 3
    trainer.kill(), trainer.wait()
    for _ in range(50):
        time.sleep(0.1)
        states = {
            pid: Path(f"/proc/{pid}/stat") for pid in family if os.path.exists(f"/proc/{pid}")
        }
        alive = [
            pid for pid, file in states.items() if "Z" not in file.read_text().rsplit(")")[1][:3]
        ]
        if not alive:
            break
    assert not alive


@linux
def test_server_holds_none_of_the_trainers_descriptors(tmp_path):
    import fcntl

    sandbox.close()
    with open(tmp_path / "lock", "w") as file:
        os.set_inheritable(file.fileno(), True)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert verify_code(fenced(HONEST["plain"]), SUM).correct
    with open(tmp_path / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@linux
def test_forked_child_of_the_trainer_uses_a_server_of_its_own():
    assert verify_code(fenced(HONEST["plain"]), SUM).correct
    pid = os.fork()
    if pid == 0:
        right = verify_code(fenced(HONEST["plain"]), SUM).correct
        sandbox.close()
        os._exit(0 if right else 1)
    assert os.waitpid(pid, 0)[1] == 0 and verify_code(fenced(HONEST["plain"]), SUM).correct


@linux
@pytest.mark.parametrize(
    "missing",
    [
        ["_enter_namespaces"],
        ["_build_root"],
        ["_landlock"],
        ["_seccomp"],
        ["_landlock", "_seccomp"],
        ["_enter_namespaces", "_build_root", "_landlock", "_seccomp"],
    ],
)
def test_each_layer_can_be_missing_and_is_named(missing, tmp_path):
    """As in a container without user namespaces, or on an old kernel: it still runs, and says what
    it lacks."""
    source = Path(sandbox.__file__).read_text()
    for name in missing:
        head = f"def {name}(" + source.split(f"def {name}(")[1].split(":\n")[0] + ":\n"
        fault = (
            "    return {name + ' namespace': False for name in ('user', 'network', "
            "'IPC', 'PID')}\n"
        )
        source = source.replace(
            head, head + (fault if name == "_enter_namespaces" else "    raise OSError\n")
        )
    (tmp_path / "sandbox.py").write_text(source)
    shutil.copy(verifiers.__file__, tmp_path)
    wrong = fenced("import os; os.mkdir('a', 0); open('b', 'w')")
    script = (
        SCRIPT.replace(str(Path(verifiers.__file__).parent), str(tmp_path))
        + f"wrong = {wrong!r}\nprint(verifiers.describe_isolation())\n"
        "print(verifiers.verify_code(wrong, answer).correct)\n"
    )
    before = set(os.listdir("/tmp"))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    *lines, layers, wrong = done.stdout.splitlines()
    assert (
        lines == ["True", "[True, False]", "True", "True"]
        and wrong == "False"
        and done.stderr == ""
    )
    words = {
        "_enter_namespaces": "user namespace",
        "_build_root": "mount namespace",
        "_landlock": "Landlock",
        "_seccomp": "seccomp",
    }
    assert all(words[name] in layers.split("missing: ")[1] for name in missing)
    assert ("NO STRONG ISOLATION" in layers) == (len(missing) == 4)
    for _ in range(50):
        left = [name for name in set(os.listdir("/tmp")) - before if name.startswith("sandbox-")]
        if not left:
            break
        time.sleep(0.1)
    assert not left


def run_altered(tmp_path, changes, script):
    """Output of a script that verifies with a copy of sandbox.py in which texts are replaced."""
    source = Path(sandbox.__file__).read_text()
    for old, new in {"tried == 9": "tried == 0", **changes}.items():
        assert source.count(old) == 1
        source = source.replace(old, new)
    (tmp_path / "sandbox.py").write_text(source)
    shutil.copy(verifiers.__file__, tmp_path)
    header = HEADER.replace(str(Path(verifiers.__file__).parent), str(tmp_path))
    command = [sys.executable, "-c", header + script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


TRY = """
for check, give in (verifiers.verify, lambda x: x), (verifiers.verify_batch, lambda x: [x]):
    try:
        print(check("code", give(response), give(answer)))
    except RuntimeError as error:
        print("RuntimeError:", error)
"""


@linux
@pytest.mark.parametrize(
    "changes, setup, named",
    [
        ({}, "sys.executable = '/nowhere/python'", "'/nowhere/python'"),
        ({}, "sys.executable = None", "NoneType"),
        ({}, "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))", "open files"),
        (
            {},
            "import resource\nsandbox._connect()\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))",
            "open files",
        ),
        ({"NPROC=4096": "NOFILE=8"}, "", "the code sandbox failed"),
        ({"/tmp/sandbox-": "/nowhere/sandbox-"}, "", "it ended with 1"),
        ({"nr_inodes=65536": "nr_inodes=1"}, "", "room in /tmp"),
        ({"pid = _fork() if": "pid = -1 if"}, "", "room in /tmp"),
    ],
)
def test_a_failure_of_the_sandbox_itself_is_no_verdict(changes, setup, named, tmp_path):
    """The program was marked wrong, "killed from outside" or "ended with exit code 1", and the
    student trained on it."""
    lines = run_altered(tmp_path, changes, setup + TRY).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("RuntimeError: the code sandbox") and "No program was judged" in line
        assert named in line


@linux
def test_a_program_that_holds_all_of_a_shared_resource_makes_no_other_program_wrong():
    """No folder could be made while another program held all inodes of the scratch space: its
    neighbour "ended with exit code 1"."""
    hog = "import time\ntry:\n    for i in range(10**6): open(str(i), 'w').close()\n"
    hog += "except OSError: print('full')\ntime.sleep(1.5)"
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(sandbox.run_script, hog, "", time_limit=5)
        for _ in range(10):
            time.sleep(0.2)
            assert verify_code(fenced(HONEST["plain"]), SUM).feedback == ""
        assert job.result().output == "full\n"


@pytest.mark.parametrize(
    "program, output",
    [
        ("def f(x): return 10**5000", "[1]"),
        ("def f(x): return 10**400", "1.5"),
        ("def f(x): return 1.5", "1" + "0" * 400),
        ("def f(x): return {1}", "[1]"),
        ("def f(x): return complex(1, 2)", "1"),
    ],
)
def test_a_result_of_any_size_or_type_gets_a_verdict(program, output):
    """An integer of 4,301 digits or beyond every float raised out of verify, into the training."""
    verdict = verify_code(fenced(program), call([("1", output)]))
    assert not verdict.correct and verdict.feedback.startswith("Test 1 failed")


@pytest.mark.parametrize(
    "value",
    [
        "{'builtins.bytes': [1 << 40]}",
        "{'builtins.tuple': [{'builtins.range': [0, 1 << 40, 1]}]}",
        "{'fractions.Fraction': [7 ** (10 ** 5), 3 ** (10 ** 5)]}",
        "{'yours': 0}",
        "{'builtins.tuple': {'builtins.dict': 3}}",
        "None",
    ],
)
def test_a_forged_result_costs_the_caller_neither_memory_nor_time(value):
    """`tuple` of a forged range was made in the trainer and took its memory."""
    program = f"import json, os\ndef f(x):\n    value = {value}\n"
    program += "    os.write(3, json.dumps({'value': value}).encode())\n    os._exit(0)"
    start = time.process_time()
    assert not verify_code(fenced(program), call([("1", "[1]")])).correct
    assert time.process_time() - start < 1


@linux
def test_a_folder_without_permissions_is_removed_with_what_is_beside_it():
    """It stayed, and after three of them the scratch space was full for every later program."""
    program = "import os\nos.mkdir('d')\nos.mkdir('d/e', 0)\n"
    program += "for i in range(5): open(f'd/{i}', 'wb').write(bytes((1 << 24) - 1))"
    for _ in range(5):
        assert sandbox.run_script(program, "").problem == ""


def test_import_without_fork_says_what_is_missing(tmp_path):
    script = (
        "import os, sys\n"
        "for name in ('fork', 'register_at_fork', 'sched_getaffinity'): delattr(os, name)\n"
        "sys.modules['resource'] = None\nsys.platform = 'win32'\n"
        + HEADER
        + "print(verifiers.describe_isolation())\n"
        "try:\n    verifiers.verify_code(response, answer)\nexcept RuntimeError as e:\n"
        "    print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.count("not available here: it needs os.fork") == 2


def reference(rows, name):
    for row in rows(name):
        yield (
            row["id"],
            fenced((row["prompt"] if name.endswith("humaneval") else "") + row["solution"]),
            row["answer"],
        )


def check_references(cases):
    """One test of one MBPP reference takes 3.6 to 4.3 CPU seconds, bare too: it gets more time."""
    slow, cases = (
        [case for case in cases if case[0] == "mbpp-123"],
        [case for case in cases if case[0] != "mbpp-123"],
    )
    verdicts = verify_batch("code", [case[1] for case in cases], [case[2] for case in cases])
    assert [
        (case[0], verdict.feedback)
        for case, verdict in zip(cases, verdicts, strict=True)
        if not verdict.correct
    ] == []
    assert all(verify_code(case[1], case[2], time_limit=15).correct for case in slow)


def test_a_sample_of_the_reference_solutions_is_right(rows):
    check_references(
        [
            case
            for name in ("humaneval", "mbpp_test", "mbpp_train")
            for case in list(reference(rows, f"code/{name}"))[::12]
        ]
    )


@pytest.mark.slow
def test_all_reference_solutions_are_right(rows):
    check_references(
        [
            case
            for name in ("humaneval", "mbpp_test", "mbpp_train")
            for case in reference(rows, f"code/{name}")
        ]
    )


def test_solutions_of_other_problems_are_wrong_and_leak_no_expected_value(rows):
    cases = list(reference(rows, "code/mbpp_test"))[:40]
    renamed = [
        case[1].replace(case[2]["entry_point"], other[2]["entry_point"])
        for case, other in zip(cases, cases[1:], strict=False)
    ]
    verdicts = verify_batch("code", renamed, [other[2] for other in cases[1:]])
    assert sum(verdict.correct for verdict in verdicts) <= 1
    for verdict, other in zip(verdicts, cases[1:], strict=True):
        for line in "\n".join(other[2]["tests"]).splitlines():
            assert line.strip() not in verdict.feedback


def test_all_answers_of_the_real_data_have_the_right_shape(rows):
    for name in (
        "humaneval",
        "mbpp_test",
        "mbpp_train",
        "lcb_train",
        "lcb_test",
        "codeforces_train",
        "code_contests_test",
    ):
        for row in rows(f"code/{name}"):
            verifiers._check_code_answer(row["answer"])


def test_verify_reaches_the_code_verifier():
    assert verify("code", fenced(HONEST["plain"]), SUM).correct
