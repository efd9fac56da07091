"""What lets a run survive: checkpoints that are whole or not there, a lock, signals, faults, too
little memory.

    OUT/lock                       locked by the process that writes here OUT/step-NNNNNN/model/
    an ordinary save_pretrained folder, float32 OUT/step-NNNNNN/state/         AdamW, a copied
    teacher, step, settings, checksums of what the run reads OUT/step-NNNNNN/manifest.json  path,
    size and sha256 of every file: it alone decides whether the rest is whole

What else the future depends on is a function of seed and step: the order of the data and the
sampler's random numbers. Needs torch and transformers; works on any object with the fields of
train.Run and knows nothing of methods or losses.

    with claim(out, resume=True):                        # no second run writes here
        load(run, MAY_CHANGE)                            # run.done: the steps of the newest whole
        checkpoint status = run_to_its_end(run, loop, command, stopped)     # loop(run, stop) calls
        save(run)
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import threading
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from runtime import parallel

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


# --- one run in a folder, and its end by a signal ---


def claim(out, *, resume):
    """Lock the folder of a run, made if need be; returns the open file that holds the lock until it
    is closed.

    The kernel lets go of the lock when the process is gone, however it ended. Python opens files
    close-on-exec, so the verifier's server, which may outlive a killed trainer by a moment, does
    not hold it on. Raises ValueError where another run writes, or where files lie that are not to
    be continued or no run's at all.
    """
    # before a lock is laid into somebody else's folder
    check_folder(out, resume)
    out.mkdir(parents=True, exist_ok=True)
    file = open(out / "lock", "a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            file.seek(0)
            raise ValueError(
                f"{out} is in use by another run (process {file.read() or 'unknown'})"
            ) from None
    # Windows, and network file systems without locks
    except (AttributeError, OSError):
        print(f"{out}: no file locks here; see to it that no second run writes to this folder")
    # another run may have come and gone since
    check_folder(out, resume)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def check_folder(out, resume):
    """ValueError unless `out` is free for a new run or, with `resume`, empty or the folder of a
    run.
    """
    if out.exists() and (
        not out.is_dir() or any(path.name not in PRELUDE for path in out.iterdir())
    ):
        if not resume:
            raise ValueError(
                f"{out} is not empty: choose another --out, or --resume to continue the run there"
            )
        if not (out / "config.json").is_file():
            raise ValueError(
                f"{out} is not the folder of a run (no config.json): nothing to resume"
            )


# what a run that died at its start may leave
PRELUDE = ("lock", "config.json.tmp")


class Abandoned(BaseException):
    """Raised by a signal where work may be left half done. Not an Exception: no `except Exception`
    shall stop it.
    """


class Stop:
    """`with Stop() as stop`: SIGTERM or the first Ctrl-C only sets `stop.signal`, its number, so
    that no update and no file is left half done; inside `with stop.abandonable():` it raises
    Abandoned, with several processes only when all enter there. Of a single process a second Ctrl-C
    is the end by the system's default, at once, even in the middle of a matrix product; so of
    several, to which torchrun then sends SIGTERM. Further signals change nothing."""

    def __init__(self):
        self.signal, self.may_raise = None, False

    def __enter__(self):
        # others cannot handle signals
        main = threading.current_thread() is threading.main_thread()
        caught = [
            n
            for n in (signal.SIGTERM, signal.SIGINT)
            if main and signal.getsignal(n) is not signal.SIG_IGN
        ]
        self.before = {number: signal.signal(number, self.ask) for number in caught}
        return self

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def ask(self, number, frame):
        if self.signal:
            if (self.signal, number) == (signal.SIGINT, signal.SIGTERM) and parallel.world() > 1:
                # torchrun's answer to a second Ctrl-C
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.signal = number
        # torchrun passes on what the terminal has sent
        if signal.SIGINT in self.before and parallel.world() == 1:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        how = (
            "saving, then stopping (Ctrl-C: at once)"
            if parallel.world() == 1
            else "stopping after this step"
        )
        with contextlib.suppress(OSError):  # a terminal that is gone
            parallel.is_main() and os.write(2, f"\n{signal.Signals(number).name}: {how}\n".encode())
        if self.may_raise:
            raise Abandoned

    def heard(self) -> bool:
        """Whether any process has had a signal, which is then everybody's. A meeting."""
        self.signal = next(filter(None, parallel.gather([self.signal])), None)
        return self.signal is not None

    @contextlib.contextmanager
    def abandonable(self):
        if self.heard():
            raise Abandoned
        # a process that left alone would leave others waiting
        self.may_raise = parallel.world() == 1
        try:
            if self.signal and self.may_raise:
                raise Abandoned
            yield
        finally:
            self.may_raise = False


def run_to_its_end(run, loop, command, stopped) -> int:
    """The exit status of loop(run, stop): 0; 1 after a fault; 128 + the signal's number. What ended
    it is said in one line, with the `command` that goes on from the last checkpoint; after a signal
    stopped(run) comes before it."""
    with Stop() as stop:
        try:
            try:
                loop(run, stop)
            except Abandoned:
                if run.done > run.saved:
                    save(run)
        except (OSError, FloatingPointError, MemoryError, torch.OutOfMemoryError) as error:
            # which would come again
            again = f"; to go on: {command}" * (not isinstance(error, FloatingPointError))
            saved = f"after {run.done} steps, {run.saved} of them saved in {run.out}"
            if parallel.is_main() or not getattr(error, "everywhere", False):
                print(f"train.py: error: {error} ({saved}{again})", file=sys.stderr)
            return 1
    if stop.heard():
        stopped(run)
        print(f"stopped after {run.done} of {run.settings.steps} steps; to go on: {command}")
        return 128 + stop.signal
    return 0


# CPU, oneDNN, cuBLAS and cuDNN
SHORTAGE = ("can't allocate memory", "could not create a primitive", "ALLOC_FAILED")


def within_memory(work, size, *, fits, alone, name):
    """(work(size), number of retries): after an out-of-memory error the work is done again with
    half the size.

    fits: {name: size}, where a size that was found so is kept for the next time. Raises MemoryError
    when memory lacks where alone(size) says that one rollout at a time is worked on already.
    """
    retries, size = 0, min(size, fits.get(name, size))
    while True:
        try:
            return work(size), retries
        # libraries have no common exception
        except (RuntimeError, MemoryError) as error:
            known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
            if not known and not any(text in str(error) for text in SHORTAGE):
                raise
            # the others are in the middle of it: all stop
            if parallel.world() > 1 or alone(size):
                how = (
                    "with one rollout at a time"
                    if parallel.world() == 1
                    else "(several processes do not try again)"
                )
                told = (str(error) or "no more memory").splitlines()[0]
                raise MemoryError(f"out of memory in {name} {how}: {told}") from None
        # out here: the error held the tensors of its frames
        retries, size = retries + 1, size // 2
        fits[name] = size
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        tqdm.write(
            f"out of memory in {name}: from now on at most {size} {name.partition(' ')[2]} at once"
        )


# --- checkpoints ---


def saved(out) -> list[Path]:
    """The checkpoints in a run's folder, whole or not, in the order of their steps."""
    return sorted(
        (p for p in out.glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name)), key=step_of
    )


def step_of(folder) -> int:
    return int(folder.name.removeprefix("step-"))


def own_teacher(run):
    """The teacher's model where the run would lose it: one that started as the student. None for
    the others.
    """
    return run.teacher.model if run.teacher.kind in ("ema", "frozen") else None


def save(run):
    """Write the checkpoint of the `run.done` steps taken so far. Of those up to here the last
    --keep stay.

    Everything goes into a temporary folder and to the disk before one rename shows it: a reader,
    and a run that dies at any moment, sees the whole checkpoint or none. Raises OSError when it
    cannot; what was there stays as it was.
    """
    final = run.out / f"step-{run.done:06d}"
    staging, main = run.out / f"{final.name}.tmp", parallel.is_main()
    try:
        if main:
            for dead in run.out.glob("step-*.tmp"):  # of a run that died in here
                shutil.rmtree(dead)
            # not its parents: a run folder gone is an error
            staging.mkdir()
        parallel.wait()
        parallel.write_state(staging / "state", run.student, run.optimizer, own_teacher(run))
        weights = parallel.whole_weights(run.student)
        if main:
            run.student.save_pretrained(staging / "model", state_dict=weights)
            run.tokenizer.save_pretrained(staging / "model")
            facts = {
                "step": run.done,
                "settings": dataclasses.asdict(run.settings),
                "inputs": run.inputs,
                "measured": run.measured,
            }
            (staging / "state" / "run.json").write_text(json.dumps(facts) + "\n", "utf-8")
            write_manifest(staging)
            for path in [*staging.rglob("*"), staging, *run.out.glob("*.jsonl")]:
                sync(path)  # the lines up to this step too
    except Exception as error:
        shutil.rmtree(staging, ignore_errors=True)
        if parallel.left_alone(error):
            raise
        told = parallel.of_the_system(error)
        fault = OSError(f"cannot save {final}: {(str(told).strip() or repr(told)).splitlines()[0]}")
        fault.everywhere = getattr(error, "everywhere", False)
        raise fault from error
    if main:
        if final.exists():
            tqdm.write(f"{final} was damaged and is written anew")
            discard(final)
        staging.rename(final)
        sync(run.out)
        for old in [folder for folder in saved(run.out) if step_of(folder) <= run.done][
            : -run.settings.keep
        ]:
            discard(old)
    run.saved = run.done


def discard(folder):
    """Remove a checkpoint; renamed first, so that a half-removed one is never taken for one."""
    shutil.rmtree(folder.rename(folder.with_name(folder.name + ".old.tmp")))


def write_manifest(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    listed = [
        {
            "path": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size,
            "sha256": checksum(path),
        }
        for path in files
    ]
    (folder / "manifest.json").write_text(json.dumps({"files": listed}, indent=1) + "\n", "utf-8")


def damage(folder) -> str:
    """What is wrong with a checkpoint by its manifest, "" where it is whole."""
    try:
        for file in json.loads((folder / "manifest.json").read_text("utf-8"))["files"]:
            path = folder / file["path"]
            if not path.is_file():
                return f"{file['path']} is missing"
            if path.stat().st_size != file["size"]:
                return f"{file['path']} has {path.stat().st_size} bytes instead of {file['size']}"
            if checksum(path) != file["sha256"]:
                return f"{file['path']} has another checksum"
    except FileNotFoundError:
        return "no manifest.json"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"manifest.json or a file in it cannot be read: {error!r:.200}"
    return ""


def checksum(path) -> str:
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def checksum_of_rows(problems) -> str | None:
    """One checksum of all that the rows of a data file say, after renamed fields and added
    instructions.
    """
    rows = [dataclasses.astuple(problem) for problem in problems]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest() if rows else None


def checksum_of_model(model, tokenizer, *, weights=True) -> str:
    """One checksum of what a model computes and how it is spoken to: configuration, ids that end a
    text, tokenizer, chat template and, with `weights`, up to 4,096 numbers of each, evenly spread
    (other weights, not one flipped bit, are what a resume must notice)."""
    passing = ("transformers_version", "dtype", "torch_dtype")
    config = {
        name: value
        for name, value in model.config.to_dict().items()
        if name not in passing and name[0] != "_"
    }
    words = tokenizer.get_vocab()
    # all its rules; use sets the last two
    if tokenizer.is_fast:
        words = json.loads(tokenizer.backend_tokenizer.to_str()) | {
            "truncation": None,
            "padding": None,
        }
    told = [
        config,
        model.generation_config.eos_token_id if model.generation_config else None,
        words,
        tokenizer.all_special_ids,
        tokenizer.chat_template,
    ]
    sha = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, weight in model.state_dict().items() if weights else ():
        some = weight.flatten()[:: weight.numel() // 4096 + 1]
        sha.update(f"{name} {tuple(weight.shape)}".encode() + some.float().cpu().numpy().tobytes())
    return sha.hexdigest()


def newest_whole(out) -> Path | None:
    """The newest whole checkpoint; damaged ones are named and passed over. None where nothing was
    ever saved.

    Raises ValueError when all are damaged: to start afresh there would be to throw the run away.
    """
    for folder in reversed(saved(out)):
        fault = damage(folder)
        if not fault:
            return folder
        print(
            f"{folder} is damaged and passed over ({fault}); it stays until the run is past this step again"
        )
    if saved(out):
        raise ValueError(
            f"no checkpoint in {out} is whole: mend one, or start a new run in another --out"
        )
    return None


def load(run, may_change):
    """Put `run` where its newest whole checkpoint was; `run.done` stays 0 where nothing was saved
    yet.

    Raises ValueError where settings other than `may_change`, or what the data files, the folder of
    --model (but for its weights) and that of an external teacher hold, are not those of the
    checkpoint.
    """
    newest, facts = parallel.by_main(lambda: newest_of(run, may_change))
    if newest is None:
        print(f"nothing saved in {run.out} yet: starting afresh")
        return
    weights = AutoModelForCausalLM.from_pretrained(
        newest / "model", dtype=torch.float32
    ).state_dict()
    parallel.load_weights(run.student, weights)
    try:
        parallel.read_state(newest / "state", run.student, run.optimizer, own_teacher(run))
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"{newest}/state does not fit this model: {str(error).splitlines()[0]}"
        ) from error
    run.done = run.saved = facts["step"]
    # "auto" is decided once
    run.settings.layout = facts["settings"].get("layout", "turn")
    run.settings.no_feedback = facts["settings"].get("no_feedback", False)
    run.measured = facts.get("measured")
    print(f"resuming from {newest}")


def newest_of(run, may_change):
    """(the newest whole checkpoint, its run.json), refused where it is not this run's; (None, None)
    where none is.
    """
    newest = newest_whole(run.out)
    if newest is None:
        return None, None
    facts = json.loads((newest / "state" / "run.json").read_text("utf-8"))
    for name, value in facts["settings"].items():
        now, option = getattr(run.settings, name, value), "--" + name.replace("_", "-")
        settled = run.settings.layout == "auto" and (name, now) in (
            ("layout", "auto"),
            ("no_feedback", False),
        )
        if name not in may_change and now != value and not settled:
            raise ValueError(
                f"{option} is {now} now and was {value} in {newest}: resume with the same settings"
            )
        if name in facts["inputs"] and now == value and run.inputs[name] != facts["inputs"][name]:
            raise ValueError(
                f"{option} {now}: its content is not what {newest} was made with: put it back, or start "
                "a new run"
            )
    return newest, facts


# --- files ---


def sync(path):
    """Have the system write a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":  # where folders cannot be opened
        return
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def replace(path, blocks):
    """Put bytes in the place of a file's content; whoever reads it sees the old or the new, never a
    part.
    """
    staging = path.with_name(path.name + ".tmp")
    try:
        with open(staging, "wb") as file:
            file.writelines(blocks)
        sync(staging)
    except OSError as error:
        staging.unlink(missing_ok=True)  # it would keep a full disk full
        raise OSError(f"cannot write {path}: {error.strerror}") from error
    staging.replace(path)
    sync(path.parent)


def append(path, record):
    """Add one line to a JSON Lines file; OSError with its name where that is impossible."""
    if not parallel.is_main():
        return
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    except OSError as error:  # a full disk names no file
        raise OSError(f"cannot write {path}: {error.strerror}") from error


def rewind(path, done):
    """Take the records of steps after `done` out of a JSON Lines file: the run will write them
    again. So for lines that a dying process or machine left unreadable: those up to the checkpoint
    were on the disk before it was."""
    if not path.is_file():
        return

    def kept():
        with open(path, "rb") as file:
            # the files of long runs do not fit into memory
            for number, line in enumerate(file, 1):
                try:
                    if json.loads(line)["step"] <= done and line.endswith(b"\n"):
                        yield line
                except (ValueError, KeyError, TypeError):
                    print(f"{path}:{number}: an unfinished line is left out")

    replace(path, kept())
