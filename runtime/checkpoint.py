"""How a run survives: atomic checkpoints, a lock on its folder, signals, faults, out of memory.

    OUT/lock                       locked by the process that writes here
    OUT/step-NNNNNN/model/         an ordinary save_pretrained folder, float32
    OUT/step-NNNNNN/state/         AdamW, the teacher if it is a copy of the student, step,
                                   settings, checksums of the run's inputs
    OUT/step-NNNNNN/manifest.json  path, size and sha256 of every file: the checkpoint is whole
                                   exactly when this file is there and all of it agrees

Data order and random numbers are functions of (seed, step), so they need not be saved. Needs torch
and transformers; works on any object with the fields of train.Run and knows nothing of methods or
losses.

    with claim(out, resume=True):                       # no second run writes here
        load(run, MAY_CHANGE)                           # run.done: steps of the newest checkpoint
        status = run_to_its_end(run, loop, stopped, sys.argv)  # loop(run, stop) calls save(run)
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from runtime import first_line, parallel, templates

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


# --- one run in a folder, and its end by a signal ---


def claim(out: Path, *, resume: bool):
    """Lock the folder of a run, created if need be; closing the returned file releases the lock.

    The kernel releases it when the process ends in any way. Child processes do not inherit it
    (Python opens files close-on-exec): the verifier's server may outlive a killed trainer by a
    moment. Raises ValueError where another run writes, and as `check_folder` and `try_to_write` do.
    """
    # first: no lock file may appear in a folder that is not a run's
    check_folder(out, resume)
    try_to_write(out)
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
    # AttributeError: no fcntl on Windows; OSError: network file systems without locks
    except (AttributeError, OSError):
        print(f"{out}: no file locks here; see to it that no second run writes to this folder")
    # again: another run may have written here between the first check and the lock
    check_folder(out, resume)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def check_folder(out: Path, resume: bool) -> None:
    """Raises ValueError unless `out` is missing, empty or, with `resume`, the folder of a run."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file: give a folder")
    if out.exists() and any(path.name not in PRELUDE for path in out.iterdir()):
        if not resume:
            raise ValueError(
                f"{out} is not empty: choose another --out, or --resume to continue the run there"
            )
        if not (out / "config.json").is_file():
            raise ValueError(
                f"{out} is not the folder of a run (no config.json): nothing to resume"
            )


def try_to_write(out: Path) -> None:
    """Raises ValueError where no file can be made in `out`; folders made for the try go again."""
    made = [folder for folder in (out, *out.parents) if not os.path.exists(folder)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise ValueError(
            f"--out {out} cannot be written to ({error.strerror}): choose another folder"
        ) from None
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # another run may have begun to use it
                folder.rmdir()


# files that a run may leave when it dies before its first step: the folder still counts as empty
PRELUDE = ("lock", "config.json.tmp")


class Abandoned(BaseException):
    """Raised by a signal inside Stop.abandonable; no `except Exception` may catch it."""


class OrElse(io.TextIOBase):
    """Writes to one stream and, once its reader is gone, to another: Ctrl-C ends `| tee`, too."""

    def __init__(self, stream, other):
        self.stream, self.other = stream, other

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
            self.stream.flush()
        except BrokenPipeError:
            with open(os.devnull, "w") as nowhere:  # takes what is left in the stream
                os.dup2(nowhere.fileno(), self.stream.fileno())
            self.stream = self.other
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        self.stream.flush()


class Stop:
    """`with Stop() as stop`: SIGTERM and the first Ctrl-C end the run without half-done work.

    The signal's number is kept in `stop.signal`: no update or file is left half done. Inside
    `with stop.abandonable():` the signal raises Abandoned at once; with several ranks Abandoned is
    raised only when all of them enter that block. A second Ctrl-C kills the process at once.
    """

    def __init__(self):
        self.signal, self.may_raise = None, False

    def __enter__(self):
        # signal.signal raises in any other thread
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
            return
        self.signal, alone = number, parallel.world() == 1
        # The default action kills even inside a matmul. torchrun passes the first Ctrl-C on to
        # ranks that have it from the terminal already, and turns the second into a SIGTERM.
        if alone or number == signal.SIGINT:
            signal.signal(signal.SIGINT if alone else signal.SIGTERM, signal.SIG_DFL)
        sys.stdout = OrElse(sys.stdout, sys.stderr)
        if parallel.is_main():
            with contextlib.suppress(OSError):  # the terminal may be closed
                os.write(2, f"\n{signal.Signals(number).name}: saving, then stopping\n".encode())
        if self.may_raise:
            raise Abandoned

    def heard(self) -> bool:
        """Whether any rank has had a signal; all ranks then take over its number. A collective."""
        self.signal = next(filter(None, parallel.gather([self.signal])), None)
        return self.signal is not None

    @contextlib.contextmanager
    def abandonable(self):
        if self.heard():
            raise Abandoned
        # a rank that raised alone would leave the others waiting in a collective
        self.may_raise = parallel.world() == 1
        try:
            if self.signal and self.may_raise:
                raise Abandoned
            yield
        finally:
            self.may_raise = False


def run_to_its_end(run, loop, stopped, typed: list[str]) -> int:
    """Run loop(run, stop) and return the exit status: 0, 1 after a fault, 128 + a signal's number.

    Where it did not end by itself, one line says why and how to go on with the command line
    `typed`, program first; after a signal stopped(run) is called before.
    """
    # Stop.ask changes sys.stdout; whoever calls this gets it back
    with contextlib.redirect_stdout(sys.stdout), Stop() as stop:
        try:
            try:
                loop(run, stop)
            except Abandoned:
                if run.done > run.saved:
                    save(run)
        except (OSError, FloatingPointError, MemoryError, torch.OutOfMemoryError) as error:
            line = f"{error}; after {run.done} steps"
            line += f", {run.saved} of them saved in {run.out}" if run.saved else ""
            # a resume would compute the same loss that is not finite
            if not isinstance(error, FloatingPointError):
                line += f"; {to_go_on(run, typed)}"
            if parallel.is_main() or not getattr(error, "everywhere", False):
                print(f"train.py: error: {line}", file=sys.stderr)
            return 1
        if stop.heard():
            stopped(run)
            print(f"stopped after {run.done} of {run.settings.steps} steps; {to_go_on(run, typed)}")
            return 128 + stop.signal
    return 0


def to_go_on(run, typed: list[str]) -> str:
    """What to type: the command as it was typed, with --resume and the folder of the run."""
    given = {word.partition("=")[0] for word in typed}
    more = [] if "--out" in given else ["--out", str(run.out)]
    more += [] if "--resume" in given else ["--resume"]
    command = f"python {shlex.join([*typed, *more])}"
    if parallel.world() > 1:  # this process does not know what torchrun was given
        command = ", with ".join(filter(None, ["the same torchrun command", shlex.join(more)]))
    return f"to go on: {command}" if run.saved else f"nothing is saved; to start again: {command}"


# out of memory in the words of CPU, oneDNN, cuBLAS and cuDNN, which raise plain RuntimeErrors
SHORTAGE = ("can't allocate memory", "could not create a primitive", "ALLOC_FAILED")


def within_memory(work, size, *, fits, alone, name):
    """(work(size), number of retries): work is tried again with half the size when out of memory.

    fits: {name: size}; the size that fitted is kept there for the next call. Raises MemoryError
    when alone(size) says that work(size) handles one rollout at a time already, and with several
    ranks at the first shortage.
    """
    retries, size = 0, min(size, fits.get(name, size))
    while True:
        try:
            return work(size), retries
        except (RuntimeError, MemoryError) as error:
            known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
            if not known and not any(text in str(error) for text in SHORTAGE):
                raise
            # the other ranks are inside this work's collectives, so one rank cannot repeat it
            if parallel.world() > 1 or alone(size):
                how = (
                    "with one rollout at a time"
                    if parallel.world() == 1
                    else "(several processes do not try again)"
                )
                reason = (str(error) or "no more memory").splitlines()[0]
                raise MemoryError(f"out of memory in {name} {how}: {reason}") from None
        # outside of the `except`: there the traceback keeps the tensors of its frames alive
        retries, size = retries + 1, size // 2
        fits[name] = size
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        tqdm.write(
            f"out of memory in {name}: from now on at most {size} {name.partition(' ')[2]} at once"
        )


# --- checkpoints ---


def saved(out: Path) -> list[Path]:
    """The checkpoints in a run's folder, whole or damaged, in the order of their steps."""
    return sorted(
        (p for p in out.glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name)), key=step_of
    )


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def own_teacher(run):
    """The teacher's model if it is a copy of the student, which nothing else saves; else None."""
    return run.teacher.model if run.teacher.kind in ("ema", "frozen") else None


def save(run) -> None:
    """Write the checkpoint of the `run.done` steps taken so far, and keep the last --keep of them.

    Everything is written to a temporary folder and synced to the disk before it is renamed: readers
    and a crash at any moment find the whole checkpoint or none. Raises OSError when it cannot be
    written; earlier checkpoints are then untouched.
    """
    final = run.out / f"step-{run.done:06d}"
    staging, main = run.out / f"{final.name}.tmp", parallel.is_main()
    try:
        if main:
            for dead in run.out.glob("step-*.tmp"):  # left by a crash in this function
                shutil.rmtree(dead)
            # no parents=True: if the run folder has been deleted, fail
            staging.mkdir()
        parallel.wait()
        parallel.write_state(staging / "state", run.student, run.optimizer, own_teacher(run))
        weights = parallel.whole_weights(run.student)
        if main:
            run.student.save_pretrained(staging / "model", state_dict=weights)
            run.tokenizer.save_pretrained(staging / "model")
            state = {
                "step": run.done,
                "settings": dataclasses.asdict(run.settings),
                "inputs": run.inputs,
                "measured": run.measured,
                "date": templates.writing.date.isoformat(),
            }
            (staging / "state" / "run.json").write_text(json.dumps(state) + "\n", "utf-8")
            write_manifest(staging)
            # the JSON Lines too: `rewind` relies on their lines up to this step
            for path in [*staging.rglob("*"), staging, *run.out.glob("*.jsonl")]:
                sync(path)
    except Exception as error:
        shutil.rmtree(staging, ignore_errors=True)
        if parallel.left_alone(error):
            raise
        cause = parallel.of_the_system(error)
        fault = OSError(f"cannot save {final}: {first_line(cause)}")
        fault.everywhere = getattr(error, "everywhere", False)
        raise fault from error
    if main:
        if final.exists():
            tqdm.write(f"{final} was damaged and is written anew")
            discard(final)
        staging.rename(final)
        sync(run.out)
        past = [folder for folder in saved(run.out) if step_of(folder) <= run.done]
        for old in past[: -run.settings.keep]:
            discard(old)
    run.saved = run.done


def discard(folder: Path) -> None:
    """Remove a checkpoint, renamed first: half removed it must not look like a checkpoint."""
    shutil.rmtree(folder.rename(folder.with_name(folder.name + ".old.tmp")))


def write_manifest(folder: Path) -> None:
    """Write manifest.json: path, size and sha256 of every file in the folder."""
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


def damage(folder: Path, only: str | None = None) -> str:
    """The first disagreement of a checkpoint, or of one file in it, with its manifest, or ""."""
    try:
        for file in json.loads((folder / "manifest.json").read_text("utf-8"))["files"]:
            path = folder / file["path"]
            if only not in (None, file["path"]):
                continue
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


def checksum(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def checksum_of_rows(problems) -> str | None:
    """sha256 of the problems read from a data file, None where there are none."""
    rows = [dataclasses.astuple(problem) for problem in problems]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest() if rows else None


def checksum_of(value, *blocks: bytes) -> str:
    """sha256 of a value of JSON and of bytes."""
    sha = hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode())
    for block in blocks:
        sha.update(block)
    return sha.hexdigest()


# no part of what a model is: the version that wrote its configuration, the type that was asked for;
# and the checksum of everything, in which new defaults show
PASSING = ("transformers_version", "dtype", "torch_dtype", "checksum")


def describe_model(model, tokenizer, *, weights=True) -> dict:
    """What `differences` compares on resume: the configuration, and sha256 of the other parts.

    With `weights` of the weights, too: of each up to 4,096 evenly spaced numbers are hashed, enough
    to notice another model, not a flipped bit. "checksum" is that of all parts; older checkpoints
    have nothing else.
    """
    words, numbers = tokenizer.get_vocab(), []
    # merges and normalisers as well as words; truncation and padding change when it is used
    if tokenizer.is_fast:
        words = json.loads(tokenizer.backend_tokenizer.to_str()) | {
            "truncation": None,
            "padding": None,
        }
    parts = {
        "config": {
            name: value
            for name, value in model.config.to_dict().items()
            if name not in PASSING and name[0] != "_"
        },
        "stop ids": model.generation_config.eos_token_id if model.generation_config else None,
        "tokenizer": words,
        "special tokens": tokenizer.all_special_ids,
        "chat template": tokenizer.chat_template,
    }
    for name, weight in model.state_dict().items() if weights else ():
        values = weight.flatten()[:: weight.numel() // 4096 + 1].float().cpu().numpy()
        numbers += [f"{name} {tuple(weight.shape)}".encode(), values.tobytes()]
    described = {name: checksum_of(part) for name, part in parts.items()}
    described["config"] = json.loads(json.dumps(parts["config"], default=str))
    described["checksum"] = checksum_of(list(parts.values()), *numbers)
    return described | ({"weights": checksum_of(None, *numbers)} if weights else {})


def differences(then, now) -> list[str]:
    """Where two values of JSON differ, as dotted names; [""] for values that are not two objects.

    What only one of two objects holds is no difference: versions of transformers add settings with
    defaults and drop others.
    """
    if not (isinstance(then, dict) and isinstance(now, dict)):
        return [] if then == now else [""]
    return [
        f"{name}.{inner}".rstrip(".")
        for name in then
        if name in now and name not in PASSING and name[0] != "_"
        for inner in differences(then[name], now[name])
    ]


def newest_whole(out: Path) -> Path | None:
    """The newest whole checkpoint, None where there is none; damaged ones are skipped and reported.

    Raises ValueError when all are damaged: a fresh start would overwrite the run.
    """
    for folder in reversed(saved(out)):
        fault = damage(folder)
        if not fault:
            return folder
        print(
            f"{folder} is damaged and passed over ({fault}); "
            "it stays until the run is past this step again"
        )
    if saved(out):
        raise ValueError(
            f"no checkpoint in {out} is whole: mend one, or start a new run in another --out"
        )
    return None


def load(run, may_change) -> None:
    """Restore `run` from its newest whole checkpoint; `run.done` stays 0 where there is none.

    Raises ValueError where a setting that is not in `may_change` differs from the checkpoint's.
    Data files, --model (apart from its weights) and an external teacher are compared by content.
    """
    newest, stored = parallel.by_main(lambda: newest_of(run, may_change))
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
        raise ValueError(f"{newest}/state does not fit this model: {first_line(error)}") from error
    run.done = run.saved = stored["step"]
    # --layout auto was decided before the first step; a resume keeps the decision
    run.settings.layout = stored["settings"]["layout"]
    run.settings.no_feedback = stored["settings"]["no_feedback"]
    run.measured = stored.get("measured")
    ended = run.done >= run.settings.steps
    more = f": all {run.settings.steps} --steps are done, a larger number trains on"
    print(f"resuming from {newest}{more if ended else ''}")


def newest_of(run, may_change):
    """(newest whole checkpoint, its run.json), (None, None) without one; errors as in `load`."""
    newest = newest_whole(run.out)
    if newest is None:
        return None, None
    stored = stored_in(newest)
    _compare_settings(run.settings, stored, newest, may_change, run.inputs)
    for name, before in stored["settings"].items():
        now = getattr(run.settings, name, before)
        # of what may change only a file that kept its name must have kept its content
        if name in run.inputs and (name not in may_change or now == before):
            _compare_content(name, before, now, newest, stored["inputs"], run.inputs)
    return newest, stored


def stored_in(folder: Path) -> dict:
    """A checkpoint's run.json; the settings of older ones in today's words."""
    stored = json.loads((folder / "state" / "run.json").read_text("utf-8"))
    stored["old"] = "layout" not in stored["settings"]  # feedback had to be asked for then
    if stored["old"]:
        feedback = stored["settings"].pop("feedback", False)
        quiet = stored["settings"]["method"] == "mopd" and not feedback
        stored["settings"] |= {"layout": "turn", "no_feedback": quiet}
    return stored


def check_settings(settings, may_change, by_content) -> None:
    """Raises ValueError where plain settings are not those of a run to be resumed: before a load.

    by_content: the settings whose content `load` compares.
    """
    for folder in reversed(saved(Path(settings.out))):
        if not damage(folder, "state/run.json"):
            return _compare_settings(settings, stored_in(folder), folder, may_change, by_content)


def _compare_settings(settings, stored, newest, may_change, by_content):
    changes, ways = [], []
    for name, then in stored["settings"].items():
        now, option = getattr(settings, name, then), "--" + name.replace("_", "-")
        # What `auto` has settled, and what an old default was, is taken from the checkpoint.
        open_still = (("layout", "auto"), ("no_feedback", False))
        settled = (stored["old"] or settings.layout == "auto") and (name, now) in open_still
        if name in by_content and name in stored["inputs"] and "tiny" not in (now, then):
            continue
        if name not in may_change and now != then and not settled:
            way = f"with {option} {shlex.quote(str(then))}"
            if then is None or isinstance(then, bool):
                way = f"with{'' if then else 'out'} {option}"
            changes.append(f"{option} is {now} now and was {then}")
            ways.append(way)
    if changes:
        more = f" (and {len(changes) - 3} more)" if len(changes) > 3 else ""
        said = f"{', '.join(changes[:3])} in {newest}{more}"
        raise ValueError(f"{said}: resume {', '.join(ways[:3])}")


def _compare_content(name, before, now, newest, recorded, inputs):
    """Raises ValueError where the content of data or of a model is not what was recorded."""
    then, found = recorded.get(name, inputs[name]), inputs[name]
    if isinstance(then, str) and isinstance(found, dict):  # older checkpoints: see describe_model
        found = found["checksum"]
    names, option = differences(then, found), "--" + name.replace("_", "-")
    if names:
        more = [f"{len(names) - 3} more"] if len(names) > 3 else []
        where = f" ({', '.join(names[:3] + more)})" if names != [""] else ""
        way = "put it back" if now == before else f"resume with {option} {shlex.quote(str(before))}"
        raise ValueError(
            f"{option} {now}: its content is not what {newest} was made with{where}: "
            f"{way}, or start a new run"
        )


# --- files ---


def begin(run) -> None:
    """Rewind the run's folder to the checkpoint, or empty it, and write config.json."""
    for name in ("metrics.jsonl", "samples.jsonl", "tokens.jsonl"):
        rewind(run.out / name, run.done or -1)
    config = dataclasses.asdict(run.settings) | {"date": templates.writing.date.isoformat()}
    config |= {"measured": run.measured} if run.measured else {}
    config |= {"bad_rows": run.inputs["bad_rows"]} if "bad_rows" in run.inputs else {}
    replace(run.out / "config.json", [json.dumps(config, indent=1).encode(), b"\n"])


def date_of(out: Path) -> str | None:
    """The date that the chat templates of a run write; None for a run that has not saved one."""
    try:
        return json.loads((out / "config.json").read_text("utf-8")).get("date")
    except (OSError, ValueError):  # a run that died before its first step
        return None


def sync(path: Path) -> None:
    """fsync a file, or the entries of a folder."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def replace(path: Path, blocks) -> None:
    """Replace a file's content atomically by these blocks of bytes."""
    staging = path.with_name(path.name + ".tmp")
    try:
        with open(staging, "wb") as file:
            file.writelines(blocks)
        sync(staging)
    except OSError as error:
        staging.unlink(missing_ok=True)  # the disk may be full: give the space back
        raise OSError(f"cannot write {path}: {error.strerror}") from error
    staging.replace(path)
    sync(path.parent)


def append(path: Path, record: dict) -> None:
    """Add one line to a JSON Lines file, on rank 0; OSError names the file where that fails."""
    if not parallel.is_main():
        return
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    except OSError as error:  # "No space left on device" comes without the file's name
        raise OSError(f"cannot write {path}: {error.strerror}") from error


def rewind(path: Path, done: int) -> None:
    """Remove the records of steps after `done` from a JSON Lines file: the run writes them again.

    Lines that a crash left unreadable are removed too. They cannot be of steps up to `done`: `save`
    syncs those before the checkpoint appears.
    """
    if not path.is_file():
        return

    def kept():
        with open(path, "rb") as file:
            # line by line: the files of long runs may exceed memory
            for number, line in enumerate(file, 1):
                try:
                    if json.loads(line)["step"] <= done and line.endswith(b"\n"):
                        yield line
                except (ValueError, KeyError, TypeError):
                    print(f"{path}:{number}: an unfinished line is left out")

    replace(path, kept())
