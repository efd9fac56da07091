"""Runs that are killed, stopped, starved or fed damaged files: they end as if nothing had happened,
or in one clear line.

python -m pytest --slow tests/test_checkpoint.py        # with 20 kills instead of 1
"""

import json
import os
import random
import shlex
import shutil
import signal
import sys
import threading
import time
import types
from pathlib import Path

import forks
import pytest
import torch
from tools import flags, read_lines, refused, replaced, steps_of, write_lines
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import AutoModelForCausalLM

import mopd
import sandbox
import train
import verifiers
from runtime import checkpoint, fast_rollout, fast_scoring, models, setup

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork and signals")


def every(folder, out, *more, steps=3):
    """Flags of a run that saves and evaluates after every step."""
    return flags(
        folder, out, "--steps", str(steps), "--eval-every", "1", "--save-every", "1", *more
    )


def same_weights(a, b):
    a, b = (AutoModelForCausalLM.from_pretrained(path / "model").state_dict() for path in (a, b))
    return all(torch.equal(a[name], b[name]) for name in a)


def same_runs(a, b, steps):
    """Metrics and samples value for value, no step missing or twice, and the state to the last
    bit."""
    assert [line["step"] for line in steps_of(a) if "loss" in line] == list(range(1, steps + 1))
    assert steps_of(a) == steps_of(b)
    for name in ("samples.jsonl", "tokens.jsonl"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    a, b = (path / f"step-{steps:06d}" for path in (a, b))
    assert (a / "model" / "model.safetensors").read_bytes() == (
        b / "model" / "model.safetensors"
    ).read_bytes()
    left, right = map(state_of, (a, b))
    assert left.keys() == right.keys() and any(name.startswith("optimizer.") for name in left)
    assert all(torch.equal(left[name], right[name]) for name in left)
    return True


def state_of(path):
    """The tensors in state/: AdamW's and the teacher's."""
    file = path.parent / f"{path.name}.pt"
    dcp_to_torch_save(path / "state", file)
    return torch.load(file)


# --- killed, stopped and resumed ---


@posix
@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_and_resumed_is_the_run_that_was_never_killed(
    folder, tmp_path, server, kills
):
    steps, rng, landed = 2 * kills, random.Random(kills), []
    assert server.run(every(folder, tmp_path / "whole", steps=steps)) == 0
    phases = ["saving", "backward", "evaluation", "rollout", "state", None]
    for n in range(kills):
        server.start(every(folder, tmp_path / "parts", "--resume", steps=steps))
        phase = phases[n % len(phases)]
        assert server.reach(phase or "rollout")
        time.sleep(rng.uniform(0, 0.01 if phase else 0.5))
        landed.append(" ".join(server.phases()) or "between")
        server.kill()
        assert server.wait() == -signal.SIGKILL, server.log.read_text()
        assert not any(map(checkpoint.damage, checkpoint.saved(tmp_path / "parts")))
    assert server.run(every(folder, tmp_path / "parts", "--resume", steps=steps)) == 0
    assert same_runs(tmp_path / "whole", tmp_path / "parts", steps)
    assert not list((tmp_path / "parts").glob("*.tmp"))
    print("kills landed in", {name: landed.count(name) for name in landed})


@posix
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "phase", ["start", "rollout", "backward", "update", "evaluation", "saving"]
)
def test_a_signal_saves_says_how_to_resume_and_changes_nothing(
    folder, tmp_path, server, whole, number, phase
):
    """Also in the evaluation after a step that is then saved: the resumed run makes up for it."""
    arguments = replaced(flags(folder, tmp_path / "out", "--steps", "4"), "--eval-every", "2")
    server.start(arguments, rollout=0.05, backward=0.05, update=0.05, saving=0.05)
    assert (
        phase == "start" or server.reach("update") and server.reach("rollout")
    )  # the second step: one is to be saved
    assert server.reach("evaluation" if phase == "start" else phase)
    server.kill(number)
    assert server.wait() == 128 + number
    log = server.log.read_text()
    aim = "nothing is saved; to start again" if phase == "start" else "to go on"
    command = f"{aim}: python train.py {shlex.join(arguments)} --resume"
    assert "Traceback" not in log and log.splitlines()[-1].endswith(f" steps; {command}")
    path = tmp_path / "out" / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""  # in the evaluation before the first step
    assert text.endswith("\n") or not text
    done = max((json.loads(line)["step"] for line in text.splitlines()), default=0)
    assert done == max(map(checkpoint.step_of, checkpoint.saved(tmp_path / "out")), default=0)
    train.main([*arguments, "--resume"])
    assert same_runs(whole, tmp_path / "out", 4)


@pytest.mark.parametrize(
    "typed, more",
    [
        ("train.py --task tool", " --out 'my runs/a' --resume"),
        ("/a/train.py --resume --out=b", ""),
        ("train.py --out b", " --resume"),
    ],
)
def test_the_command_to_go_on_is_the_one_that_was_typed_with_what_it_lacks(typed, more):
    """`--resume goes on in DIR` could not be pasted, and was said where nothing had been saved."""
    run = types.SimpleNamespace(out=Path("my runs/a"), saved=2)
    assert checkpoint.to_go_on(run, typed.split()) == f"to go on: python {typed}{more}"
    run.saved = 0
    line = checkpoint.to_go_on(run, typed.split())
    assert line == f"nothing is saved; to start again: python {typed}{more}"


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """Four steps, never stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train.main(flags(folder, out, "--steps", "4"))
    return out


@posix
def test_the_command_line_ends_by_a_signal_with_the_usual_status(folder, tmp_path, server):
    arguments = flags(folder, tmp_path / "out", "--steps", "1000", "--save-every", "900")
    server.start(arguments, code=forks.TRAIN)
    while (
        not (tmp_path / "out" / "metrics.jsonl").exists()
        or "loss" not in (tmp_path / "out" / "metrics.jsonl").read_text()
    ):
        time.sleep(0.05)
    server.kill(signal.SIGTERM)
    assert server.wait() == 143
    output = server.log.read_text()
    assert "Traceback" not in output
    assert output.splitlines()[-1].endswith(f"train.py {shlex.join(arguments)} --resume")
    assert checkpoint.damage(checkpoint.saved(tmp_path / "out")[-1]) == ""
    assert (
        "so far: " in output.splitlines()[-2]
        and "<figure>" in (tmp_path / "out" / "report.html").read_text()
    )


@posix
def test_what_is_said_after_ctrl_c_has_ended_the_reader_goes_to_the_terminal(tmp_path):
    """Ctrl-C ends `| tee log`, too: a BrokenPipeError hid the command that goes on."""
    read, write = os.pipe()
    with open(write, "w") as pipe, open(tmp_path / "terminal", "w+") as terminal:
        stream = checkpoint.OrElse(pipe, terminal)
        print("one", file=stream)
        assert os.read(read, 99) == b"one\n"
        os.close(read)
        print("two", file=stream, flush=True)
        print("three", file=stream, flush=True)
        terminal.seek(0)
        assert terminal.read() == "two\nthree\n"


@posix
def test_a_second_ctrl_c_stops_at_once_and_loses_nothing_already_saved(
    folder, tmp_path, server, whole
):
    arguments = flags(folder, tmp_path / "out", "--steps", "4", "--save-every", "1")
    assert server.run([*arguments, "--steps", "2"]) == 0
    server.start([*arguments, "--resume"], state=60)
    assert server.reach("state")
    server.kill(signal.SIGINT)
    while "SIGINT" not in server.log.read_text():
        time.sleep(0.01)
    start = time.monotonic()
    server.kill(signal.SIGINT)
    assert server.wait() == -signal.SIGINT and time.monotonic() - start < 10
    assert (tmp_path / "out" / "step-000003.tmp").is_dir()
    train.main([*arguments, "--resume"])
    assert same_runs(whole, tmp_path / "out", 4)


# --- damaged checkpoints ---


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run of four steps that keeps the checkpoints of the last two."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    train.main(flags(folder, out, "--steps", "4", "--save-every", "1"))
    return out


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


HARMS = [cut, zero, flip, Path.unlink]
FILES = ["model/model.safetensors", "model/config.json", "state/__0_0.distcp", "manifest.json"]


def harmed(path, harm, file):
    """What `damage` says of the checkpoint after this harm to this file."""
    if (harm, file) == (cut, "manifest.json"):
        cut(path / file)  # the newline alone is no loss
    harm(path / file)
    return checkpoint.damage(path)


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("file", FILES)
def test_every_damage_is_found_and_names_its_file(tmp_path, trained, harm, file):
    path = shutil.copytree(trained / "step-000004", tmp_path / "step-000004")
    assert checkpoint.damage(path) == ""
    found = harmed(path, harm, file)
    assert found and found.startswith(file if file != "manifest.json" else "")


@pytest.mark.parametrize("harm, file", [*zip(HARMS, FILES, strict=True)])
def test_a_damaged_checkpoint_is_named_passed_over_and_written_anew(
    folder, tmp_path, capsys, trained, harm, file
):
    """Each harm once and each file once: a resume sees only that there is a damage."""
    out = shutil.copytree(trained, tmp_path / "out")
    assert harmed(out / "step-000004", harm, file)
    train.main(flags(folder, out, "--steps", "4", "--save-every", "1", "--resume"))
    said = capsys.readouterr().out
    named = file if file != "manifest.json" else ""
    assert f"{out / 'step-000004'} is damaged and passed over ({named}" in said
    assert (
        f"resuming from {out / 'step-000003'}" in said
        and f"{out / 'step-000004'} was damaged and is written anew" in said
    )
    assert same_runs(trained, out, 4)
    assert [checkpoint.damage(path) for path in checkpoint.saved(out)] == ["", ""]


def test_a_run_without_a_whole_checkpoint_is_refused_not_started_afresh(
    folder, tmp_path, capsys, trained
):
    out = shutil.copytree(trained, tmp_path / "out")
    for path in checkpoint.saved(out):
        cut(path / "state" / "__0_0.distcp")
    before = sorted((path, path.stat().st_size) for path in out.rglob("*") if path.name != "lock")
    assert "no checkpoint in" in refused(capsys, flags(folder, out, "--steps", "5", "--resume"))
    assert before == sorted(
        (path, path.stat().st_size) for path in out.rglob("*") if path.name != "lock"
    )


def test_whole_checkpoints_are_not_thrown_out_for_a_damaged_newer_one(folder, tmp_path, trained):
    """--keep counts from the step that the run is at: the damaged step 4 is not one of the last two
    at step 3."""
    out = shutil.copytree(trained, tmp_path / "out")
    zero(out / "step-000004" / "manifest.json")
    shutil.copytree(out / "step-000003", out / "step-000009")
    zero(out / "step-000009" / "manifest.json")
    train.main(flags(folder, out, "--steps", "4", "--save-every", "1", "--resume"))
    assert [path.name for path in checkpoint.saved(out)] == [
        "step-000003",
        "step-000004",
        "step-000009",
    ]


def test_what_a_dead_run_left_half_saved_goes_at_the_next_save(folder, tmp_path, trained):
    out = shutil.copytree(trained, tmp_path / "out")
    shutil.copytree(out / "step-000004", out / "step-000007.tmp")
    train.main(flags(folder, out, "--steps", "5", "--resume"))
    assert not list(out.glob("*.tmp"))


def test_lines_after_the_checkpoint_and_torn_lines_are_taken_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1}\n{"step": 2, "text": "a\xe2\x80\xa8b"}\n{"step": 3}\n\0\0\0\n{"step": 2'
    )
    checkpoint.rewind(path, 2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2, "text": "a\xe2\x80\xa8b"}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


# --- refused at resume ---


@pytest.mark.parametrize(
    "name, changed", [("train.jsonl", "--data"), ("eval.jsonl", "--eval-data")]
)
def test_data_that_changed_since_the_checkpoint_is_refused(folder, tmp_path, capsys, name, changed):
    data = shutil.copytree(folder, tmp_path / "data")
    train.main(flags(data, tmp_path / "out", "--steps", "1"))
    rows = read_lines(data / name)
    rows[5]["answer"] = "77"
    write_lines(data / name, rows)
    line = refused(capsys, flags(data, tmp_path / "out", "--resume"))
    assert (
        changed in line
        and "its content is not what" in line
        and len(steps_of(tmp_path / "out")) == 3
    )


@pytest.fixture(scope="module")
def two_models(folder, tmp_path_factory):
    """(flags of a resume, folder with model/ and teacher/): of a run of two steps, the second after
    a resume with the same models, which is not refused."""
    place = tmp_path_factory.mktemp("two")
    for name in ("model", "teacher"):
        shutil.copytree(folder / "model", place / name)
    arguments = flags(folder, place / "out", "--method", "opd", "--resume")
    arguments = replaced(arguments, "--model", place / "model")
    arguments += ["--teacher", str(place / "teacher")]
    for steps in (1, 2):
        train.main(replaced(arguments, "--steps", steps))
    return arguments, place


@pytest.mark.parametrize(
    "file, old, new, named",
    [
        ("chat_template.jinja", "m['content']", "m['content'].upper()", "chat template"),
        (
            "tokenizer.json",
            '"normalizer": null',
            '"normalizer": {"type": "Lowercase"}',
            "tokenizer",
        ),
        ("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-02', "config.rms_norm_eps"),
        ("model.safetensors", None, None, "weights"),
    ],
)
@pytest.mark.parametrize("whose", ["--model", "--teacher"])
def test_another_model_in_the_same_folder_is_refused(
    folder, tmp_path, capsys, two_models, whose, file, old, new, named
):
    """A Hub model whose main branch moved on. The student's own weights are the checkpoint's,
    whatever --model holds now."""
    arguments, place = two_models
    for name in ("model", "teacher"):  # what the last test has changed
        shutil.copytree(folder / "model", place / name, dirs_exist_ok=True)
    other = place / whose.strip("-")
    out = shutil.copytree(place / "out", tmp_path / "out")
    arguments = replaced(replaced(arguments, "--out", out), "--steps", 3)
    if old:
        assert old in (other / file).read_text()
        (other / file).write_text((other / file).read_text().replace(old, new))
    else:
        model = AutoModelForCausalLM.from_pretrained(other)
        with torch.no_grad():
            model.model.norm.weight[0] += 1e-3
        model.save_pretrained(other)
    if (whose, file) == ("--model", "model.safetensors"):
        return train.main(arguments)
    line = refused(capsys, arguments)
    assert (
        f"{whose} {other}: its content is not what" in line and len(steps_of(tmp_path / "out")) == 5
    )
    assert f"({named}): put it back" in line


def test_another_evaluation_file_and_other_sizes_are_no_other_mathematics(folder, tmp_path, capsys):
    train.main(flags(folder, tmp_path / "out", "--steps", "1"))
    arguments = replaced(
        flags(folder, tmp_path / "out", "--steps", "2", "--micro-tokens", "64", "--resume"),
        "--eval-data",
        folder / "train.jsonl",
    )
    train.main(arguments)
    assert [line["step"] for line in steps_of(tmp_path / "out") if "loss" in line] == [1, 2]


def test_a_second_run_in_the_same_folder_is_refused(folder, tmp_path, capsys, trained):
    out = shutil.copytree(trained, tmp_path / "out")
    with checkpoint.claim(out, resume=True):
        assert f"in use by another run (process {os.getpid()})" in refused(
            capsys, flags(folder, out, "--resume")
        )
        assert "is not empty" in refused(capsys, flags(folder, out))
    with checkpoint.claim(tmp_path / "new", resume=False):  # a run that is still loading its model
        assert "in use by another run" in refused(capsys, flags(folder, tmp_path / "new"))
    train.main(flags(folder, out, "--steps", "5", "--resume"))


@posix
def test_the_lock_ends_with_its_process_though_the_sandbox_still_runs(tmp_path, server):
    """SIGKILL in the middle of a program: neither the verifier's server nor the program may hold
    the lock on."""
    code = f"""
lock = checkpoint.claim(train.Path({str(tmp_path / "out")!r}), resume=False)
print(verifiers.describe_isolation(), flush=True)
answer = {{"type": "stdin", "tests": [{{"input": "", "output": "1"}}]}}
verifiers.verify_code("```python\\nwhile True: pass\\n```", answer, time_limit=60)
"""
    server.start(code=code)
    while not server.log.exists() or "code sandbox" not in server.log.read_text():
        time.sleep(0.01)
    time.sleep(0.3)
    with pytest.raises(ValueError, match="in use"):
        checkpoint.claim(tmp_path / "out", resume=False)
    server.kill()
    server.wait()
    checkpoint.claim(tmp_path / "out", resume=False).close()


def test_a_system_without_file_locks_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "fcntl", None)
    checkpoint.claim(tmp_path / "out", resume=False).close()
    assert "no file locks here" in capsys.readouterr().out


# --- disks ---


@posix
@pytest.mark.parametrize(
    "limit, says",
    [
        (100_000, "cannot save"),
        pytest.param(250_000, "cannot save", marks=pytest.mark.slow),
        pytest.param(2_000, "cannot write", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_ends_the_run_in_one_line_and_the_last_checkpoint_stays(
    folder, tmp_path, server, limit, says
):
    """A limit on the size of files fails as a full disk does: in the weights, in the state, in the
    log."""
    assert server.run(flags(folder, tmp_path / "out", "--steps", "1")) == 0
    arguments = every(folder, tmp_path / "out", "--resume", steps=4)
    if says == "cannot write":
        for name in ("samples", "tokens"):  # too long already: refused before any work
            (tmp_path / "out" / f"{name}.jsonl").unlink()
    assert server.run(arguments, limit=limit) == 1
    last = server.log.read_text().splitlines()[-1]
    assert (
        "Traceback" not in server.log.read_text()
        and last.startswith("train.py: error:")
        and says in last
    )
    assert "File too large" in last  # as the system words it, whoever wrote
    assert [checkpoint.damage(path) for path in checkpoint.saved(tmp_path / "out")] == [""]
    assert not list((tmp_path / "out").glob("*.tmp"))
    assert server.run(arguments) == 0
    assert [line["step"] for line in steps_of(tmp_path / "out") if "loss" in line] == [1, 2, 3, 4]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_without_space_ends_the_run_in_one_line(folder, tmp_path, capsys, trained):
    out = shutil.copytree(trained, tmp_path / "out")
    (out / "metrics.jsonl").unlink()
    (out / "metrics.jsonl").symlink_to("/dev/full")
    assert_fault(
        capsys,
        flags(folder, out, "--steps", "5", "--resume"),
        "metrics.jsonl: No space left on device",
    )


def assert_fault(capsys, arguments, says):
    """The run ends with status 1 and one line."""
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 1 and error.startswith("train.py: error:") and says in error
    return error


@pytest.mark.parametrize(
    "at, says",
    [("train_step", "cannot write"), ("evaluate", "cannot write"), ("save", "cannot save")],
)
def test_a_run_folder_that_is_gone_ends_the_run_in_one_line(
    folder, tmp_path, capsys, monkeypatch, at, says
):
    owner = checkpoint if at == "save" else train
    original = getattr(owner, at)

    def loses_the_folder(run, *args):
        if run.done == 1 or at != "evaluate":
            shutil.rmtree(run.out, ignore_errors=True)
        return original(run, *args)

    monkeypatch.setattr(owner, at, loses_the_folder)
    assert_fault(capsys, every(folder, tmp_path / "out"), says)
    assert not (tmp_path / "out").exists()


OBEDIENT = """
# root without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH obeys the modes of files
import ctypes
head, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
ctypes.CDLL(None).capget(head, sets)
sets[0] &= ~6
ctypes.CDLL(None).capset(head, sets)
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="root writes everywhere, but for Linux's capabilities"
)
@pytest.mark.parametrize("at", ["start", "saving"])
def test_a_read_only_run_folder_ends_the_run_in_one_line(folder, tmp_path, trained, server, at):
    out = shutil.copytree(trained, tmp_path / "out")
    turn = f"os.chmod({str(out)!r}, 0o555)"
    late = (
        f"save = checkpoint.save\ndef late(run):\n    {turn}\n    save(run)\ncheckpoint.save = late"
    )
    code = OBEDIENT + (turn if at == "start" else late) + "\ntrain.main()"
    status = server.run(flags(folder, out, "--steps", "5", "--resume"), code=code)
    out.chmod(0o755)
    last = server.log.read_text().splitlines()[-1]
    assert (
        "Traceback" not in server.log.read_text()
        and "Permission denied" in last
        and str(out) in last
    )
    assert status == (2 if at == "start" else 1) and [
        checkpoint.damage(path) for path in checkpoint.saved(out)
    ] == ["", ""]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_no_half_written_file_and_names_the_one_it_was_for(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    (tmp_path / "metrics.jsonl.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="cannot write .*metrics.jsonl: No space left on device"):
        checkpoint.rewind(path, 1)
    assert [file.name for file in tmp_path.iterdir()] == [
        "metrics.jsonl"
    ] and path.read_text() == '{"step": 1}\n'


def test_an_out_that_cannot_be_written_is_refused_before_anything_is_loaded(
    folder, tmp_path, capsys, monkeypatch
):
    """A folder that was not there was tried only after the teacher had been measured."""
    monkeypatch.setattr(train, "prepare", lambda settings: pytest.fail("it was loaded"))
    (tmp_path / "file").write_text("mine")
    assert f"--out {tmp_path / 'file'} is a file" in refused(
        capsys, flags(folder, tmp_path / "file")
    )
    line = refused(capsys, flags(folder, tmp_path / "file" / "out"))
    assert f"--out {tmp_path / 'file' / 'out'} cannot be written to (Not a directory)" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_a_try_to_write_leaves_nothing_behind(tmp_path):
    checkpoint.try_to_write(tmp_path / "new" / "out")
    (tmp_path / "old").mkdir()
    checkpoint.try_to_write(tmp_path / "old")
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]


def test_an_error_of_the_tiny_students_cache_says_what_it_is(tmp_path, capsys, monkeypatch):
    def fails(*args, folder, **options):
        raise OSError(f"cannot write {folder}/tiny-math-123")

    monkeypatch.setattr(setup.tiny, "build", fails)
    line = refused(capsys, ["--out", str(tmp_path / "out")])
    said = f"the warmed-up tiny student is kept in {tmp_path}, for later runs: "
    assert f"{said}cannot write {tmp_path}/tiny-math-123" in line


# --- numbers and memory ---


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_is_never_trained_on(
    folder, tmp_path, capsys, monkeypatch, what
):
    backward, runs = mopd.backward, []

    def poisoned(student, *args, **kwargs):
        metrics = backward(student, *args, **kwargs)
        runs.append(student)
        if len(runs) == 2:
            metrics["loss"] = float("nan") if what == "loss" else metrics["loss"]
            next(student.parameters()).grad[0, 0] = float("inf") if what == "gradient" else 0.0
        return metrics

    monkeypatch.setattr(mopd, "backward", poisoned)
    error = assert_fault(
        capsys, flags(folder, tmp_path / "out", "--save-every", "1"), "no update was made"
    )
    assert (
        "failed-step-2.jsonl" in error
        and "--resume" not in error
        and "a resume would come here again" in error
    )
    dumped = [
        json.loads(line)
        for line in (tmp_path / "out" / "failed-step-2.jsonl").read_text().splitlines()
    ]
    assert len(dumped) == 3 and all(len(line["attempts"]) == 4 for line in dumped)
    assert [path.name for path in checkpoint.saved(tmp_path / "out")] == ["step-000001"]
    saved = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out" / "step-000001" / "model"
    ).state_dict()
    assert all(torch.equal(saved[name], value) for name, value in runs[-1].state_dict().items())
    assert [line["step"] for line in steps_of(tmp_path / "out") if "loss" in line] == [1]


def test_weights_that_are_not_finite_end_the_run_in_one_line(folder, tmp_path, capsys, monkeypatch):
    update = mopd.Teacher.update

    def poisoned(teacher, student, rate):
        update(teacher, student, rate)
        with torch.no_grad():
            next(student.parameters()).fill_(float("nan"))

    monkeypatch.setattr(mopd.Teacher, "update", poisoned)
    assert_fault(capsys, flags(folder, tmp_path / "out"), "the model's logits are not finite")


def exhausted():
    torch.empty(1 << 50)  # the allocator's own error, not an imitation


@pytest.fixture
def gradients(monkeypatch):
    """The gradients of every step, as they reach the clipping."""
    found, clip = [], torch.nn.utils.clip_grad_norm_

    def keep(parameters, *args, **kwargs):
        parameters = list(parameters)
        found.append([p.grad.clone() for p in parameters])
        return clip(parameters, *args, **kwargs)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", keep)
    return found


@pytest.mark.parametrize(
    "fails", ["above 300 tokens", "in the middle of the step", "in generating"]
)
def test_out_of_memory_halves_the_work_and_gives_the_same_gradient(
    folder, tmp_path, monkeypatch, gradients, fails
):
    arguments = flags(
        folder, tmp_path / "out", "--steps", "1", "--micro-tokens", "600", "--method", "sdpo"
    )
    monkeypatch.setattr(fast_scoring, "shares", lambda model: False)  # all goes through `hungry`
    train.main(arguments)
    hidden_states, run, calls = mopd.hidden_states, fast_rollout.Sampler.run, []

    def hungry(model, prompts, completions):
        rows = zip(prompts, completions, strict=True)
        calls.append(len(prompts) * max(len(p) + len(c) for p, c in rows))
        if (
            calls[-1] > 300
            and fails.startswith("above")
            or len(calls) == 3
            and fails.startswith("in the middle")
        ):
            exhausted()
        return hidden_states(model, prompts, completions)

    def hungry_run(self, prompts, counts, uniforms):
        if sum(counts) > 5 and fails == "in generating":
            exhausted()
        return run(self, prompts, counts, uniforms)

    monkeypatch.setattr(models, "check_run", lambda *args: None)  # it samples six rollouts
    monkeypatch.setattr(mopd, "hidden_states", hungry)
    monkeypatch.setattr(fast_rollout.Sampler, "run", hungry_run)
    train.main(replaced(arguments, "--out", tmp_path / "hungry"))
    plain, retried = (
        [line for line in steps_of(tmp_path / name) if "loss" in line][0]
        for name in ("out", "hungry")
    )
    counts = [
        sum(line["oom_retries"] for line in steps_of(tmp_path / name)) for name in ("out", "hungry")
    ]
    assert counts[0] == 0 < counts[1]  # in generating: in the evaluation before the step
    assert (
        retried["loss"] == pytest.approx(plain["loss"], rel=1e-5)
        and retried["success"] == plain["success"]
    )
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_out_of_memory_in_the_token_view_of_a_step_without_weights_halves_the_work(
    folder, tmp_path, monkeypatch
):
    """Nothing is to be scored there, so the view alone says whether one rollout at a time is read
    already."""
    hidden_states = mopd.hidden_states
    monkeypatch.setattr(models, "check_run", lambda *args: None)  # it reads several rows
    monkeypatch.setattr(fast_scoring, "shares", lambda model: False)
    monkeypatch.setattr(
        mopd,
        "hidden_states",
        lambda model, prompts, completions: (
            exhausted() if len(prompts) > 1 else hidden_states(model, prompts, completions)
        ),
    )
    train.main(
        flags(folder, tmp_path / "out", "--steps", "1", "--method", "grpo", "--max-new-tokens", "1")
    )
    (step,) = [line for line in steps_of(tmp_path / "out") if "loss" in line]
    assert (
        step["oom_retries"] > 0
        and step["unweighted"] == 12
        and (tmp_path / "out" / "tokens.jsonl").read_text()
    )


@pytest.mark.parametrize(
    "owner, name, says",
    [(mopd, "hidden_states", "scoring"), (fast_rollout.Sampler, "run", "generating")],
)
def test_out_of_memory_with_one_rollout_alone_ends_the_run_in_one_line(
    folder, tmp_path, capsys, monkeypatch, owner, name, says
):
    monkeypatch.setattr(fast_scoring, "shares", lambda model: False)
    monkeypatch.setattr(owner, name, lambda *args: exhausted())
    arguments = flags(
        folder, tmp_path / "out", "--layout", "turn"
    )  # else step 1 is sampled to measure
    arguments = [a for a in arguments if a != "--eval-data" and not a.endswith("eval.jsonl")]
    monkeypatch.setattr(models, "check_run", lambda *args: None)  # the check at the start
    error = assert_fault(capsys, arguments, f"out of memory in {says}")
    assert "one rollout at a time" in error


def test_other_errors_are_not_taken_for_want_of_memory():
    def fails(size):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        checkpoint.within_memory(fails, 8, fits={}, alone=lambda size: False, name="scoring tokens")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("could not create a primitive"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_size_for_which_memory_did_not_suffice_is_not_tried_again(error):
    tried, fits = [], {}

    def work(size):
        tried.append(size)
        if size > 20:
            raise error
        return size

    def run():
        return checkpoint.within_memory(
            work, 100, fits=fits, alone=lambda size: size == 1, name="scoring tokens"
        )

    assert run() == (12, 3) and run() == (12, 0) and tried == [100, 50, 25, 12, 12]
    with pytest.raises(
        MemoryError, match="out of memory in scoring tokens with one rollout at a time: ."
    ):
        checkpoint.within_memory(
            lambda size: work(99), 1, fits={}, alone=lambda size: size == 1, name="scoring tokens"
        )


# --- the verifier ---


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("victim", ["guard", pytest.param("fork server", marks=pytest.mark.slow)])
def test_a_killed_sandbox_server_costs_no_verdict(victim):
    """The guard that the trainer started, and its child that forks: that one's death was noticed
    too late."""
    program = (
        "```python\ndef f(x):\n    for i in range(1_500_000): pass\n    return 2 * x + {} * 0\n```"
    )
    answer = {
        "type": "functional",
        "entry_point": "f",
        "tests": [{"input": "2", "output": "4"}] * 2,
    }
    for delay in (0.05, 0.15, 0.25):
        verifiers.describe_isolation()
        guard = sandbox._server.process.pid
        found = [guard] if victim == "guard" else children(guard)
        assert len(found) == 1
        timer = threading.Timer(delay, os.kill, (found[0], signal.SIGKILL))
        timer.start()
        programs = [program.format(n) for n in range(8 * os.cpu_count())]
        verdicts = verifiers.verify_batch("code", programs, [answer] * len(programs))
        assert not timer.is_alive()  # it was killed at work
        assert all(verdict.correct for verdict in verdicts)


def children(pid):
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    return [
        int(stat.split()[0]) for stat in stats if int(stat.rpartition(")")[2].split()[1]) == pid
    ]


# --- odd steps ---

ODD = ("wrong", "right", "truncated", "empty", "identical")


@pytest.mark.parametrize(
    "method",
    [
        ["--method", "mopd"],
        ["--peers", "positive"],
        ["--method", "sdpo"],
        ["--method", "grpo"],
        ["--method", "rft"],
    ],
    ids=lambda flags: flags[1],
)
@pytest.mark.parametrize("odd", ODD)
def test_a_step_of_one_kind_of_rollout_trains_on_what_there_is(
    folder, tmp_path, monkeypatch, odd, method
):
    generate = train.generate

    def odd_rollouts(model, prompts, k, *, stop_ids, **options):
        groups = generate(model, prompts, k, stop_ids=stop_ids, **options)
        for group in groups if stop_ids else []:  # not the trial at the start
            for r in group:
                written = {"empty": [], "identical": group[0].ids[:5]}.get(odd, r.ids[:5])
                r.ids, r.stopped = written + stop_ids[: odd != "truncated"], odd != "truncated"
                r.logprobs = [-1.0] * len(r.ids)
        return groups

    def verdicts(task, texts, answers, workers=None):
        assert odd != "empty" or not any(texts)
        correct = odd in ("right", "truncated", "identical")
        return [verifiers.Verdict(correct, None, "" if correct else "No.")] * len(texts)

    monkeypatch.setattr(train, "generate", odd_rollouts)
    monkeypatch.setattr(mopd, "verify_batch", verdicts)
    train.main(flags(folder, tmp_path / "out", "--steps", "1", "--weight-decay", "0.5", *method))
    for line in (line for line in steps_of(tmp_path / "out") if "loss" in line):
        right = odd in ("right", "identical")
        assert line["groups_all_right"] == 3 * right and line["groups_all_wrong"] == 3 * (not right)
        assert line["truncated"] == 12 * (odd == "truncated")
        learns = {"grpo": False, "rft": right}.get(
            method[1], odd != "truncated"
        )  # by peers or by feedback
        assert line["unweighted"] == 12 * (not learns) and (line["grad_norm"] is None) == (
            not learns
        )
    unmoved = same_weights(folder, tmp_path / "out" / "step-000001")
    assert unmoved == (not learns)
