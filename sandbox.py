"""Run an untrusted Python program: with input and output, as a function, or under assertion tests.

    run_script(source, "3 4\\n")                          # Outcome(problem="", output="7\\n", ...)
    run_function(source, "double", [4]).value             # 8
    run_assertion(source, "assert double(4) == 8")        # Outcome(problem="", ...)

    caller --asks--> fork server --fork--> sandbox: the program; sees no test, no expected output
                                 \\--fork--> judge: assertion tests only; trusted, calls the sandbox

The fork server is this file, run by a clean interpreter; it never reads a program. It enters
namespaces and drops its powers once. describe_isolation() names the layers that hold and that miss.

Covered:
- files: a new root with the interpreter and system libraries, read-only, and one scratch folder of
  256 MiB, removed afterwards; nothing of the caller's, no /proc (mount namespace, Landlock)
- network, shared memory, message queues (namespaces, seccomp); environment variables (empty)
- other processes: none can be seen, signalled, traced or started (PID namespace, seccomp)
- memory, CPU time, waiting, output, open files, threads: limited; what remains is killed
- the tests: expected outputs stay in the caller; the judge copies plain arguments, and none of the
  program's objects is equal to a value of the test. For the program it uses only what it has
  passed, by no attribute that leads to the test's text
- a program that crashes, exits, forges its replies or kills its server: its verdict only

Not covered:
- faults of the Linux kernel in the calls that remain; timing and caches of the processor
- a program that reads the interpreter's own files, or fills its limits on every core at once
- a class that the test names: its comparisons with its own kind and `in` are the program's word
- a function that the test passes as an argument: the program may call it at any time
- other systems than Linux: limits and a fresh folder only; nothing without os.fork (Windows)
"""

import ast
import atexit
import builtins
import ctypes
import gc
import json
import linecache
import marshal
import math
import operator
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
import types
from _thread import allocate_lock  # threading would be one more module in each fork
from contextlib import suppress
from functools import lru_cache, partial, partialmethod
from typing import Any, NamedTuple

MAX_OUTPUT = 8 << 20  # bytes
_LINUX = sys.platform == "linux"
_STARRED = """typing string re datetime collections heapq bisect copy math random statistics
itertools functools operator io sys json""".split()  # LiveCodeBench and LeetCode define their names
_MODULES = _STARRED + ["os", "decimal", "fractions", "time"]
_ADVICE = "No program was judged. Needed: sys.executable, ulimit -n and -u, room in /tmp."
_server, _lock = None, allocate_lock()


class Outcome(NamedTuple):
    """`problem`: "" or what went wrong. `value`: a function's result, or the judge's report."""

    problem: str
    output: str
    errors: str
    value: Any = None


# --- the caller's side: `limits` are time_limit=2.0, CPU seconds, and memory_mb=1024, MiB ---


def run_script(source: str, stdin: str, **limits: float) -> Outcome:
    """Run a whole program on `stdin`. RuntimeError, here and below: the sandbox itself failed."""
    job = {"source": source, "stdin": stdin.encode("utf-8", "surrogatepass")}
    return Outcome(*_execute([job], **limits)[:3])


def run_function(source: str, name: str, args: list, **limits: float) -> Outcome:
    """Call a function of the program, or a method of its class Solution, with JSON values; `value`
    is its result as JSON: a list for a tuple, texts as keys."""
    problem, out, err, reply = _execute([{"source": source, "call": [name, args]}], **limits)
    try:  # the reply is written by the program: any nonsense is possible
        return Outcome(problem, out, err, json.loads(reply)["value"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return Outcome(problem or "the function returned nothing that can be read.", out, err)


def run_assertion(source: str, test: str, *, entry: str = "", **limits: float) -> Outcome:
    """Run Python tests against the program's functions and classes. `value`: {"ok": did they hold,
    "call" and "value": the last call of the function `entry` and its result}. No test can use the
    identity of plain values and of what they hold, fields of named tuples, `with`, type()."""
    jobs = [{"source": test, "entry": entry}, {"source": source}]
    problem, out, err, reply = _execute(jobs, **limits)
    report = {"ok": False, "call": "", "value": "", **json.loads(reply or b"{}")}
    problem = problem or ("" if report["ok"] else "the assertion does not hold.")
    return Outcome(problem, out, err, report)


def describe_isolation() -> str:
    """One line for the log: the layers of isolation that hold here, and those that are missing."""
    return _connect().layers if hasattr(os, "fork") else "not available here: it needs os.fork"


def _execute(jobs, tried=0, killed=None, *, time_limit=2.0, memory_mb=1024):
    """Run the program's job, after its judge's if any: (problem, output, errors, reply)."""
    limits, server = (time_limit, memory_mb << 20), _connect()
    try:
        reply = _memory_file()
        channel = socket.socketpair() if jobs[1:] else ()
        given = [(reply, *channel[:1]), channel[1:]]
        runs = [_Run(server, *each, limits) for each in zip(jobs, given, strict=False)]
        for end in channel:
            end.close()
        problem = _wait(runs[0].status, time_limit)
        code, cpu, out, err = [run.end() for run in runs][-1]
    except (OSError, EOFError) as error:
        time.sleep(min(0.1 + tried, 2))  # until the system has cleared a dead server away
        ended = server.process.poll()  # 1: by an error of its own; late where two threads poll
        if ended == 1 or tried == 9:  # 17 seconds, in which other programs held what it needs
            raise RuntimeError(f"the code sandbox failed: {error!r}. {_ADVICE}") from error
        if ended is not None and killed not in (None, server):  # the second
            return "the sandbox was killed from outside.", "", "", b""
        killed = server if ended is not None else killed
        return _execute(jobs, tried + 1, killed, time_limit=time_limit, memory_mb=memory_mb)
    reply = os.pread(reply.fileno(), MAX_OUTPUT + 1, 0)
    judged = jobs[1:] and b'"lost": true' not in reply  # then the program's end was our doing
    if max(len(out), len(err), len(reply)) > MAX_OUTPUT:
        problem = f"more than {MAX_OUTPUT >> 20} MiB of output."
    elif not problem and cpu > time_limit * 0.99:
        problem = f"time limit of {time_limit:g} s exceeded."
    elif not problem and code and not judged:
        how = f"signal {code & 127}" if code & 127 else f"exit code {code >> 8}"
        problem = f"the program ended with {how}."
    if problem and b"MemoryError" in err[-999:]:
        problem = "memory limit exceeded."
    return problem, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"), reply


class _Run:
    """A process that the server forks, with `given` as descriptors 3 and, for the judge, 4."""

    def __init__(self, server, job, given, limits):
        self.out, self.err = _memory_file(), _memory_file()
        self.status, far = socket.socketpair()
        stdin, job = _memory_file(job.get("stdin", b"")), _memory_file(marshal.dumps((job, limits)))
        with far, stdin, job:
            files = far, job, stdin, self.out, self.err, *given
            socket.send_fds(server.socket, [b"r"], [file.fileno() for file in files])

    def end(self):
        """Have the server kill what still runs: (status, CPU seconds, output, errors)."""
        with self.status, self.out, self.err:
            self.status.settimeout(10)
            self.status.shutdown(socket.SHUT_WR)
            ended = marshal.loads(self.status.recv(99))
            return *ended, *(os.pread(f.fileno(), MAX_OUTPUT + 1, 0) for f in (self.out, self.err))


def _memory_file(data=b""):
    if _LINUX:
        file = open(os.memfd_create("sandbox"), "w+b", 0)
    else:
        file = __import__("tempfile").TemporaryFile(buffering=0)
    file.write(data)
    file.seek(0)
    return file


def _wait(status, time_limit):
    """Until the process has ended, or must: why it must, or nothing."""
    elapsed, start, poll = 0.0, time.monotonic(), select.poll()
    poll.register(status, select.POLLIN)
    while not poll.poll(100):
        elapsed += (time.monotonic() - start) / load()  # the seconds of a busy machine count less
        start = time.monotonic()
        if elapsed > 1.5 * time_limit + 0.5:
            return f"time limit of {time_limit:g} s exceeded (waiting or sleeping)."
    return ""


def load() -> float:
    """How many processes want each core now, at least 1."""
    running = 1
    with suppress(OSError), open("/proc/loadavg") as file:
        running = int(file.read().split()[3].split("/")[0]) - 1  # but for us
    return min(8.0, max(1.0, running / cores()))  # a busy host keeps no sleeper for minutes


def cores() -> int:
    """The cores that this process may use, by affinity and by its container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max") as file:
        quota, period = map(int, file.read().split())
        count = min(count or 1, quota // period)
    return max(1, count or 1)


def _connect():
    """This process's fork server, started on first use and again where it has died. It ends with
    its socket, not by PR_SET_PDEATHSIG, which fires when the *thread* that started it ends."""
    global _server
    if not hasattr(os, "fork"):
        raise RuntimeError(f"code verification is {describe_isolation()}")
    with _lock:
        if _server and _server.process.poll() is None:
            return _server
        import subprocess

        kept = {"LD_LIBRARY_PATH", "PYTHONHOME"} & os.environ.keys()
        env = {name: os.environ[name] for name in kept} | {"PYTHONHASHSEED": "0"}
        command = [sys.executable, "-BPs", "-Xutf8", os.path.abspath(__file__)]
        quiet = {"stdout": subprocess.DEVNULL, "start_new_session": True, "cwd": "/"}
        try:
            near, far = socket.socketpair()
            with far:
                process = subprocess.Popen(command, stdin=far, env=env, **quiet)
            near.settimeout(60)
            if not (layers := near.recv(4096).decode()):
                raise ChildProcessError(f"it ended with {process.wait()}")
        except (OSError, TypeError) as error:
            raise RuntimeError(f"the code sandbox did not start: {error}. {_ADVICE}") from error
        _server = types.SimpleNamespace(socket=near, process=process, layers=layers)
        return _server


def close(*, wait: bool = True) -> None:
    """End this process's fork server, if there is one; the next run starts another."""
    global _server, _lock
    if _server:
        _server.socket.close()
        if wait:
            _server.process.wait()
    _server, _lock = None, allocate_lock()


# Values between judge and program: JSON that keeps the type. What is derived comes as its series.
_SERIES = [f"builtins.{n}" for n in "dict list set bytearray tuple frozenset bytes".split()]
_BY_PARTS = """builtins.range collections.Counter decimal.Decimal fractions.Fraction datetime.date
datetime.time datetime.datetime datetime.timedelta""".split()
_PARTS = dict.fromkeys(_SERIES, lambda series: [list(series)])  # type: what makes it again
_PARTS |= dict.fromkeys(_BY_PARTS, lambda value: value.__reduce__()[1])
_PARTS["builtins.complex"] = complex.__getnewargs__
_PARTS["builtins.dict"] = lambda mapping: [[[*pair] for pair in mapping.items()]]
_PARTS["collections.deque"] = lambda queue: [list(queue), queue.maxlen]
_PARTS["numpy.ndarray"] = lambda array: [array.tolist(), str(array.dtype)]
_SHARED = (*_MODULES, "builtins", "solution")  # no unittest: its SkipTest would pass


@lru_cache(None)
def _kind(kind):
    names = [f"{base.__module__}.{base.__name__}" for base in kind.__mro__]
    series = [name for name in names if name in _SERIES]
    return series[0] if series and names[0] not in _PARTS else names[0]


def _pack(value, peer):
    """JSON values as they are, others as {type: parts}, objects as references to them."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    kind = _kind(type(value))
    if kind == "builtins.list":
        return [_pack(item, peer) for item in value]
    if type(value) is _Reference:
        return {"yours": value._number}
    if getattr(value, "shape", None) == ():  # a number of numpy's
        return _pack(value.item(), peer)
    if kind in _PARTS and not getattr(value, "tzinfo", None):
        return {kind: _pack([*_PARTS[kind](value)], peer)}
    if isinstance(value, types.ModuleType):
        return {"module": value.__name__}
    builtin = type(value) is type and value.__module__ == "builtins"
    if builtin or isinstance(value, type) and issubclass(value, BaseException):
        return {"class": [f"{base.__module__}.{base.__name__}" for base in value.__mro__]}
    peer.kept[id(value)] = value
    return {"mine": [id(value), type(value).__name__]}


def _unpack(data, peer):
    """The value of what _pack wrote, trusting nothing."""
    if not isinstance(data, dict):
        return [_unpack(item, peer) for item in data] if isinstance(data, list) else data
    ((kind, parts),) = data.items()
    if kind in _PARTS:
        module, _, name = kind.partition(".")
        make = getattr(__import__(module), name.replace("ndarray", "array"))
        return make(*_unpack(parts, peer))
    if kind == "module":
        return __import__(parts) if parts in (*_MODULES, "numpy") else None
    if kind == "class":
        return _class(*parts)
    if kind == "yours":
        return peer.kept[parts]
    return peer.references.setdefault(parts[0], _Reference(peer, *parts))


@lru_cache(None)
def _class(*names):
    """A builtin class or a library's exception; for the program's, one like it of the same base."""
    module, _, name = names[0].rpartition(".")
    found = module.split(".")[0] in _SHARED and getattr(sys.modules.get(module), name, None)
    if isinstance(found, type) and (module == "builtins" or issubclass(found, BaseException)):
        return found
    return type(name, (_class(*names[1:]),), {"__module__": module})


# --- the fork server ---


def _isolate():
    """Enter the layers in a new process: (folder for the sandboxes, which layers hold)."""
    layers = _enter_namespaces()
    folder = base = f"/tmp/sandbox-{os.urandom(8).hex()}"
    os.mkdir(base, 0o700)
    if inner := os.fork():  # the first of the PID namespace: its end ends all
        os.close(0)  # or the caller would not see the end of the socket
        code = os.waitpid(inner, 0)[1] >> 8
        _attempt(_remove_tree, folder)
        os._exit(code)
    _attempt(_libc, "prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    mounted = _attempt(_libc, "unshare", 0x20000) and _attempt(_build_root, base)  # CLONE_NEWNS
    base = "/sandbox" if mounted else base
    layers["mount namespace"] = mounted
    layers["no_new_privs"] = _attempt(_libc, "prctl", _PR_SET_NO_NEW_PRIVS, 1)
    layers["Landlock"] = _attempt(_landlock, base)
    header = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    layers["no capabilities"] = _attempt(_libc, "capset", header, bytes(24))
    _attempt(_libc, "prctl", _PR_SET_DUMPABLE, 0)  # not traceable
    _attempt(_filter)  # built once, inherited by all
    if (trial := os.fork()) == 0:
        os._exit(not _attempt(_seccomp))
    layers["seccomp"] = os.waitpid(trial, 0)[1] == 0
    os.makedirs(base, exist_ok=True)
    os.chmod(base, 0o300)  # a folder in it cannot be found but by its name, a random one
    on, off = (", ".join(n for n, held in layers.items() if held == kept) for kept in (True, False))
    text = f"code sandbox: resource limits, fresh folder, {on}; missing: {off or 'nothing'}"
    if not (mounted or layers["Landlock"] or layers["seccomp"]):
        text += "; NO STRONG ISOLATION: programs reach this user's files"
    return base, text


def _limit(**limits):
    import resource  # not on Windows

    for name, value in limits.items():
        pair = value if isinstance(value, tuple) else (value, value)
        _attempt(resource.setrlimit, getattr(resource, "RLIMIT_" + name), pair)


def _prepare():
    """What each child needs and can inherit, made once: pages that it writes to are copied."""
    _limit(STACK=(1 << 29, -1), CORE=0, FSIZE=1 << 24, NPROC=4096)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="surrogateescape")
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", errors="surrogateescape")
    sys.stderr = sys.__stderr__ = open(2, "w", 1, encoding="utf-8", errors="backslashreplace")
    sys.argv = ["program.py"]
    sys.set_int_max_str_digits(0)  # CPU time is the limit
    os.environ.clear()
    _common_names()
    os.open, builtins.open = _open, partial(open, opener=_open)
    sys.modules["io"].open = builtins.open
    gc.collect()
    gc.freeze()


def _open(path, flags, mode=0o777, *, dir_fd=None, real=os.open):
    """os.open() that knows /dev/stdin and its like, which lead to /proc: there is none."""
    known = {"/dev/stdin": 0, "/dev/fd/0": 0, "/dev/stdout": 1, "/dev/fd/1": 1, "/dev/stderr": 2}
    fd = known.get(str(path))
    return real(path, flags, mode, dir_fd=dir_fd) if fd is None else os.dup(fd)


def _serve():
    """Give up all power but to fork, then fork for each request until the caller is gone."""
    base, text = _isolate()
    sock, poll, runs = socket.socket(fileno=os.dup(0)), select.poll(), {}
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    _prepare()
    sock.sendall(text.encode())
    pidfds = hasattr(os, "pidfd_open") and _attempt(os.pidfd_open, os.getpid())
    poll.register(sock, select.POLLIN)
    while True:
        for fd, _ in poll.poll(None if pidfds else 5):
            if fd != sock.fileno():  # the end of a child, or the caller's word that it must end
                poll.unregister(fd)
                _attempt(os.kill, runs[fd][0], signal.SIGKILL) if fd in runs else os.close(fd)
                continue
            request, fds, *_ = socket.recv_fds(sock, 1, 8)
            if not request:
                os._exit(0)
            work = f"{base}/{os.urandom(16).hex()}"
            pid = _fork() if _attempt(os.mkdir, work, 0o700) else -1
            if pid == 0:
                _work(work, fds[1:])
            for extra in fds[pid > 0 :]:  # all, where other programs hold what it needs
                os.close(extra)
            if pid > 0:
                runs[fds[0]] = pid, work
                for watched in [fds[0], os.pidfd_open(pid)] if pidfds else fds[:1]:
                    poll.register(watched, select.POLLIN)
        while runs and (ended := os.wait4(-1, os.WNOHANG))[0]:
            pid, code, usage = ended
            for status in [status for status, run in runs.items() if run[0] == pid]:
                _attempt(os.killpg, pid, signal.SIGKILL)  # the rest of its group
                _attempt(os.write, status, marshal.dumps((code, usage.ru_utime + usage.ru_stime)))
                _attempt(poll.unregister, status)
                os.close(status)
                _attempt(_remove_tree, runs.pop(status)[1])


def _remove_tree(folder):
    """Remove a folder of any depth and permissions: subfolders move up beside it and follow."""
    left = [folder]
    for path in left:
        os.chmod(path, 0o700)
        for entry in list(os.scandir(path)):
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.path, 0o700)  # what cannot be written to cannot be moved
                left.append(f"{folder}-{len(left)}")
                os.rename(entry.path, left[-1])
            else:
                os.unlink(entry.path)
        os.rmdir(path)


def _work(work, fds):
    """Put the descriptors in place, set the limits, then do what is asked, and end."""
    code = 1
    try:
        os.setsid()
        job, (cpu, memory) = marshal.loads(os.read(fds[0], os.fstat(fds[0]).st_size))  # trusted
        for place, fd in enumerate(fds[1:]):  # input, output, errors, and what the job needs
            os.dup2(fd, place)
        os.closerange(len(fds) - 1, 1024)
        os.chdir(work)
        _limit(CPU=math.ceil(cpu), AS=memory, NOFILE=64)
        _attempt(_libc, "prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)  # die with the server
        _attempt(_seccomp)
        (_run_script if "stdin" in job else _judge if "entry" in job else _run_functions)(job)
        code = 0
    except SystemExit as stop:  # as the interpreter does
        if not isinstance(code := stop.code or 0, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:
        _report(error)
    finally:
        os._exit(code & 255)


def _load_program(source, module, names):
    module.__dict__.update(names)
    sys.modules[module.__name__] = module
    linecache.cache["program.py"] = len(source), None, source.splitlines(True), "program.py"
    exec(compile(source, "program.py", "exec"), module.__dict__)


def _report(error):
    """Print a traceback without our own frames."""
    shown = traceback.TracebackException.from_exception(error)
    shown.stack[:] = [frame for frame in shown.stack if frame.filename != __file__]
    print(*shown.format(), sep="", end="", file=sys.stderr)


def _run_script(job):
    os.close(3)  # for what a function returns
    try:
        _load_program(job["source"], types.ModuleType("__main__"), {})
    finally:  # as the interpreter does
        for name, finish in (("threading", "_shutdown"), ("atexit", "_run_exitfuncs")):
            if name in sys.modules:
                getattr(sys.modules[name], finish)()
        for file in (sys.stdout, sys.__stdout__):
            if not file.closed:
                file.flush()


_BINARY = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift".split()
_TOLD = {*_BINARY, *"lt le gt ge contains".split()}  # would tell the program a value of the test
_OTHERS = "eq neg getitem setitem delitem call".split()
_BUILTIN = "len iter next str repr bool int float abs round hash getattr setattr isinstance".split()
_HIDDEN = ("_", "gi_", "cr_", "ag_")  # attributes that lead from a function to the test's text
_OPERATIONS = {name: getattr(builtins, name) for name in _BUILTIN}  # by the special method's name
_OPERATIONS |= {n: getattr(operator, f"__{n}__") for n in [*_TOLD, *_OTHERS]}
_OPERATIONS |= {f"r{n}": lambda a, b, do=_OPERATIONS[n]: do(b, a) for n in _BINARY}


class _Reference:
    """An object that lives at the other end of a channel: what is done to it is done there."""

    def __init__(self, peer, number, kind):
        self.__dict__.update(_peer=peer, _number=number, _kind=kind)

    def __eq__(self, other):  # never to a value of the test, which the program would see
        theirs = isinstance(other, _Reference) and self is not other
        return bool(self._peer.ask("eq", self, other)) if theirs else self is other

    def __instancecheck__(self, value):
        return isinstance(value, _Reference) and bool(self._peer.ask("isinstance", value, self))

    def _do(self, operation, /, *args, **kwargs):
        if {operation, operation[1:]} & _TOLD and self._kind not in self._peer.classes:  # radd: add
            raise TypeError(f"{operation}: the test names no class {self._kind}")
        return self._peer.ask(operation, self, *args, **kwargs)


for _name in set(_OPERATIONS) - {"isinstance", "eq"}:  # __call__, __getattr__, __add__, ...
    setattr(_Reference, f"__{_name}__", partialmethod(_Reference._do, _name))


class _Peer:
    """One end of the channel between judge and program, which has names of its `own`."""

    def __init__(self, fd, own=None):
        os.set_blocking(fd, True)
        self.file, self.own = socket.socket(fileno=fd).makefile("rw"), own
        self.kept, self.references = {}, {}
        self.classes, self.entry, self.call, self.value, self.lost = (), None, "", "", False

    def ask(self, operation, /, *args, **kwargs):
        """Have the other end do something, and do what it asks for meanwhile."""
        if watched := operation == "call" and args[0] is self.entry:
            shown = [*map(repr, args[1:]), *(f"{name}={kwargs[name]!r}" for name in kwargs)]
            self.call, self.value = f"({', '.join(shown)})", ""
        given = [*kwargs.values(), *args]
        outer, self.lost = self.lost, True  # until the reply comes
        print(json.dumps([operation, [*kwargs], _pack(given, self)]), file=self.file, flush=True)
        while isinstance(reply := json.loads(self.file.readline()), list):
            self.answer(*reply)
        self.lost = outer
        for old, new in zip(given, _unpack(reply.get("changed", []), self), strict=False):
            if _kind(type(old)) in _PARTS and hasattr(old, "clear"):
                old.clear()
                (old.extend if hasattr(old, "extend") else old.update)(new)
        if "error" in reply:
            kind, args, text = _unpack(reply["error"], self)
            error = issubclass(kind, BaseException) and kind(*args)
            if str(error) != text:  # the program's class writes its own
                error.args = (text,)
            raise error
        value = _unpack(reply["value"], self)
        if watched:
            self.value = f"<{value._kind} object>" if type(value) is _Reference else repr(value)
        return value

    def answer(self, operation, names, given):
        before, given = json.dumps(given), _unpack(given, self)
        kwargs = dict(zip(names, given, strict=False))
        try:
            value = self.do(operation, *given[len(names) :], **kwargs)
            reply = {"value": _pack(value, self)}
        except BaseException as error:
            _report(error)
            text, args = str(error), error.__reduce__()[1]
            if self.own is None:  # a program reads no more of an error of the test
                text, args = text[:200], ()
            reply = {"error": _pack([type(error), args, text], self)}
        if json.dumps(after := _pack(given, self)) != before:
            reply["changed"] = after
        print(json.dumps(reply), file=self.file, flush=True)

    def do(self, operation, target, /, *args, **kwargs):
        if operation == "defined" and self.own is not None:
            return {name: self.own[name] for name in target if name in self.own}
        hidden = operation in ("getattr", "setattr") and args[0].startswith(_HIDDEN)
        if self.own is None and (hidden or id(target) not in self.kept):
            raise AttributeError(f"{operation}: the test's own")  # or a program could read the test
        return _OPERATIONS[operation](target, *args, **kwargs)


def _run_functions(job):
    """Load the program with the names that graders define; answer one call, or a judge's."""
    module, common = types.ModuleType("solution"), _common_names()
    with suppress(SystemExit):
        _load_program(job["source"], module, common)
    own = {name: value for name, value in vars(module).items() if value is not common.get(name)}
    solution = own.get("Solution")
    for name in dir(solution) if solution else ():  # a new object for each call
        own[name] = lambda *args, of=name, **kwargs: getattr(solution(), of)(*args, **kwargs)
    if "call" in job:
        name, args = job["call"]
        reply = json.dumps({"value": own[name](*args)}, default=lambda n: n.item(*n.shape))  # numpy
        os.write(3, reply.encode())
        return
    peer = _Peer(3, own)
    while line := peer.file.readline():
        peer.answer(*json.loads(line))


def _judge(job):
    """Run an assertion test; the names that it does not define are the program's."""
    tests, peer, ok = dict(_common_names()), _Peer(4), False
    with suppress(BaseException):  # its text may hold the expected value
        names = {node.id for node in ast.walk(ast.parse(job["source"])) if hasattr(node, "id")}
        wanted = [name for name in names if name == job["entry"] or not hasattr(builtins, name)]
        peer.classes = {name for name in wanted if name[:1].isupper()}
        tests |= peer.ask("defined", wanted)
        peer.entry = tests.get(job["entry"])
        exec(compile(job["source"], "<test>", "exec"), tests)
        ok = not peer.lost
    call = peer.call and job["entry"] + peer.call
    report = {"ok": ok, "call": call[:600], "value": peer.value[:600], "lost": peer.lost}
    os.write(3, json.dumps(report).encode())


@lru_cache(None)
def _common_names():
    """What graders define before a solution: modules and their names that hide no builtin."""
    exec("\n".join(f"from {module} import *" for module in _STARRED), names := {})
    names = {name: value for name, value in names.items() if not hasattr(builtins, name)}
    return names | {name: __import__(name) for name in _MODULES}


# --- the layers of isolation on Linux ---

_LIBRARY = ctypes.CDLL(None, use_errno=True) if _LINUX else None
# os.fork would spend half a millisecond on threading, and seed random anew: verdicts repeat.
_fork = ctypes.PyDLL(None).fork if _LINUX else getattr(os, "fork", None)
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_NOSUID_NODEV, _MNT_DETACH = 0x1000, 0x4000, 0x40000, 6, 2
_DENIED = {  # purpose: system calls, each with its number on x86_64 and on aarch64
    "processes": "fork 57 -, vfork 58 -, execve 59 221, execveat 322 281",
    "signals": "kill 62 129, tkill 200 130, tgkill 234 131, rt_sigqueueinfo 129 138, "
    "rt_tgsigqueueinfo 297 240, pidfd_send_signal 424 424, pidfd_open 434 434, pidfd_getfd 438 438",
    "tracing": "ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271",
    "network": "socket 41 198",
    "mounts": "unshare 272 97, setns 308 268, mount 165 40, umount2 166 39, pivot_root 155 41",
    "file modes": "chmod 90 -, fchmod 91 52, fchmodat 268 53, fchmodat2 452 452",
    "kernel surfaces": "io_uring_setup 425 425, bpf 321 280, perf_event_open 298 241, "
    "userfaultfd 323 282, keyctl 250 219, add_key 248 217, request_key 249 218",
    "memory": "shmget 29 194, msgget 68 186, semget 64 190, mq_open 240 180, memfd_create 319 279",
}
# The column above, audit number, clone, prlimit64:
_MACHINES = {"x86_64": (0, 0xC000003E, 56, 302), "aarch64": (1, 0xC00000B7, 220, 261)}


def _libc(name, *args):
    """Call a function of the C library (arguments left out are 0); OSError where it fails."""
    args += (0,) * (5 - len(args))
    result = getattr(_LIBRARY, name)(*args)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def _attempt(function, *args):
    try:
        function(*args)
        return True
    except (OSError, AttributeError, KeyError, ValueError, TypeError):
        return False


def _enter_namespaces():
    layers = {"user namespace": _attempt(_own_user)}
    flags = {"network": 0x40000000, "IPC": 0x8000000, "PID": 0x20000000}  # CLONE_NEWNET and so on
    return layers | {f"{n} namespace": _attempt(_libc, "unshare", f) for n, f in flags.items()}


def _own_user():
    user, group = os.geteuid(), os.getegid()
    _libc("unshare", 0x10000000)  # CLONE_NEWUSER
    files = {"setgroups": "deny", "uid_map": f"65534 {user} 1", "gid_map": f"65534 {group} 1"}
    for name, text in files.items():
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


@lru_cache(None)
def _readable():
    """What a Python program has to read: the interpreter's own folders and the system's."""
    wanted = "/usr/lib /lib /lib64 /usr/lib64 /usr/local/lib /usr/share/zoneinfo".split()
    wanted += "/etc/ld.so.cache /dev/null /dev/urandom".split()
    packages = [path for path in sys.path if path.endswith("-packages")]
    wanted += [sys.prefix, sys.base_prefix, sys.exec_prefix, *packages]
    wanted = {*filter(os.path.exists, [*wanted, *map(os.path.realpath, wanted)])} - {"/"}
    return sorted(p for p in wanted if not any(p.startswith(other + "/") for other in wanted))


def _build_root(folder):
    """A new root of read-only views of what is readable, and one writable folder."""
    _libc("mount", None, b"/", None, _MS_REC | _MS_PRIVATE)
    _libc("mount", b"tmpfs", b"/proc", b"tmpfs")  # is everywhere, and holds nothing needed now
    os.mkdir("/proc/sandbox")
    for path in _readable():
        view = "/proc" + path
        os.makedirs(os.path.dirname(view), exist_ok=True)
        os.mkdir(view) if os.path.isdir(path) else os.close(os.open(view, os.O_CREAT))
        _libc("mount", os.fsencode(path), os.fsencode(view), None, _MS_BIND | _MS_REC)
    read_only = struct.pack("QQQQ", 3, 0, 0, 0)  # MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID
    _libc("syscall", 442, -100, b"/proc", 0x8000, read_only, 32)  # mount_setattr, recursive
    size = b"size=256m,nr_inodes=65536"
    _libc("mount", b"tmpfs", b"/proc/sandbox", b"tmpfs", _MS_NOSUID_NODEV, size)
    os.rmdir(folder)  # not needed now, and out of reach soon
    os.chdir("/proc")
    _libc("pivot_root", b".", b".")
    _libc("umount2", b".", _MNT_DETACH)  # the old root
    os.chdir("/")


def _landlock(base):
    create, add_rule, restrict = 444, 445, 446  # landlock_create_ruleset and so on
    abi = _libc("syscall", create, None, 0, 1)
    rights = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1  # all that concern files
    rules = _libc("syscall", create, struct.pack("Q", rights), 8, 0)
    for path in [*_readable(), base]:
        fd = os.open(path, os.O_PATH)
        allowed = 13 if os.path.isdir(path) else 6 if path.startswith("/dev/") else 4
        allowed = rights if path == base else allowed  # 13: execute, read files, read folders
        _libc("syscall", add_rule, rules, 1, struct.pack("=Qi", allowed, fd), 0)
        os.close(fd)
    _libc("syscall", restrict, rules, 0)


@lru_cache(None)
def _filter():
    """A seccomp program that denies what no solution needs; its own threads and limits remain."""
    column, arch, clone, prlimit = _MACHINES[os.uname().machine]
    rows = [call.split()[1:] for calls in _DENIED.values() for call in calls.split(",")]
    load_word, equal, at_least, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    number, machine, argument = 0, 4, 16  # offsets in seccomp_data
    kill, permit = (end, 0, 0, 0x80000000), (end, 0, 0, 0x7FFF0000)
    deny, enosys = (end, 0, 0, 0x50001), (end, 0, 0, 0x50026)  # EPERM and ENOSYS
    code = [(load_word, 0, 0, machine), (equal, 1, 0, arch), kill]
    code += [(load_word, 0, 0, number), (at_least, 0, 1, 1 << 30), deny]  # the x32 numbers
    for row in rows:
        code += [(equal, 0, 1, int(row[column])), deny] if row[column] != "-" else []
    code += [(equal, 0, 1, 435), enosys]  # clone3: the C library falls back to clone
    code += [(equal, 0, 4, clone), (load_word, 0, 0, argument)]
    code += [(any_bit, 1, 0, 0x10000), deny, permit]  # CLONE_THREAD
    code += [(equal, 0, 3, prlimit), (load_word, 0, 0, argument)]
    code += [(equal, 1, 0, 0), deny, permit]  # prlimit of process 0: of itself
    buffer = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
    return struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer)), buffer


def _seccomp():
    _libc("prctl", _PR_SET_SECCOMP, 2, _filter()[0])  # SECCOMP_MODE_FILTER


if __name__ == "__main__":
    _serve()
else:  # not in the children of the server, which run exit handlers
    atexit.register(close)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=partial(close, wait=False))
