"""Several processes against one: the real command line under torchrun, over gloo on the CPU, with a
small model that has learned to answer at random in the right form. `JOB` runs more of the loop in
one start of the processes, which is what takes the time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from tools import math_student, read_lines, write_lines
from transformers import AutoModelForCausalLM

import mopd
import train
import verifiers
from runtime import fast_scoring

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)
ROWS = [{"prompt": f"{a} + {b}", "answer": str((a + b) % 4)} for a in range(5) for b in range(5)]


def make_folder(folder, *, tied):
    """model/ and rows.jsonl: sums modulo 4, and a model that answers "So \\boxed{d}" with d from 0
    to 3 at random."""
    model, tokenizer = math_student(tie_word_embeddings=tied)
    prompts = [
        mopd.student_ids(
            tokenizer, mopd.Problem(row["prompt"], "", verifiers.INSTRUCTIONS["math"], 0)
        )
        for row in ROWS
    ]
    answers = [
        tokenizer(f"So \\boxed{{{d}}}", add_special_tokens=False)["input_ids"] for d in range(4)
    ]
    table = torch.tensor(
        [prompt + answer + [tokenizer.eos_token_id] for prompt in prompts for answer in answers]
    )
    optimizer, start = torch.optim.AdamW(model.parameters(), lr=1e-2), len(prompts[0])
    for _ in range(80):
        ids = table[torch.randint(len(table), (16,))]
        logits = model(input_ids=ids).logits[:, start - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, start:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_lines(folder / "rows.jsonl", ROWS)
    return folder


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("untied"), tied=False)


def flags(folder, out, *more):
    """Three problems a step, so that two processes (and four) have unequal shares; micro-batches of
    two or three."""
    return [
        "--model",
        str(folder / "model"),
        "--data",
        str(folder / "rows.jsonl"),
        "--eval-data",
        str(folder / "rows.jsonl"),
        "--problems",
        "3",
        "--rollouts",
        "8",
        "--max-new-tokens",
        "16",
        "--micro-tokens",
        "150",
        "--device",
        "cpu",
        "--lr",
        "1e-3",
        "--warmup-steps",
        "0",
        "--eval-every",
        "1",
        "--eval-problems",
        "3",
        "--eval-rollouts",
        "2",
        "--steps",
        "3",
        "--force",
        "--out",
        str(out),
        *more,
    ]  # it may have learned not to answer after peers


EMA = ("--ema-rate", "0.3")


def torchrun(processes, script, *arguments, seconds=500):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        processes,
        script,
        *arguments,
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=seconds, env=environment
    )


def ran(processes, *arguments):
    done = torchrun(processes, ROOT / "train.py", *arguments)
    assert done.returncode == 0, done.stderr
    return done


# what torchrun does, without importing torch and transformers twice more: as many processes, which
# find its environment and its store
FORKED = """
pids, failed = [], 0
for rank in range({processes}):
    if (pid := os.fork()) == 0:
        os.environ |= {environment!r} | {{"RANK": str(rank), "LOCAL_RANK": str(rank)}}
        train.main()
        sys.stdout.flush(), os._exit(0)
    pids.append(pid)
while pids:
    pid, status = os.wait()
    pids.remove(pid)
    for other in pids if status and not failed else ():
        os.kill(other, signal.SIGKILL)
    failed = failed or int(status != 0)
sys.exit(failed)
"""


def ran_forked(server, processes, *arguments):
    """What train.py printed in `processes` processes that are forked, not started by torchrun."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    code = FORKED.format(processes=processes, environment=environment)
    status = server.run(arguments, code=code)
    assert status == 0, server.log.read_text()
    return server.log.read_text()


def assert_same_run(one, many, *, rounding=1e-5):
    """Texts, verdicts, peers and counts equal; loss and gradient to 1e-5; the evaluations equal."""
    assert read_lines(one / "samples.jsonl") == read_lines(many / "samples.jsonl")
    expected, found = read_lines(one / "metrics.jsonl"), read_lines(many / "metrics.jsonl")
    assert len(expected) == len(found)
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"seconds", "sampler_gap"}:  # sampler_gap is nothing but rounding
            # the gaps are means of differences between numbers of about 3, of which float32 knows
            # 2e-7
            spacing = 2e-7 if name in ("teacher_gap", "stop_gap") else 0
            assert b[name] == (
                a[name] if a[name] is None else pytest.approx(a[name], rel=rounding, abs=spacing)
            ), (a["step"], name)
    assert_close(read_lines(one / "tokens.jsonl"), read_lines(many / "tokens.jsonl"))
    first = next(line for line in found if "loss" in line)
    assert (
        first["loss"] != 0 and first["grad_norm"] > 0 and first["groups_mixed"]
    )  # or anything would be equal


def assert_close(a, b):
    """Records of the token view: numbers are rounded to 3 digits, which rounding may part; all else
    is equal."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = [a[key] for key in a], [b[key] for key in a]
    if isinstance(a, list):
        assert len(a) == len(b)
        for pair in zip(a, b, strict=True):
            assert_close(*pair)
    else:
        assert b == (pytest.approx(a, abs=0.0015) if isinstance(a, float) else a)


def assert_same_weights(one, many, step, *, rounding=1e-5):
    weights = [
        AutoModelForCausalLM.from_pretrained(out / f"step-{step:06d}" / "model").state_dict()
        for out in (one, many)
    ]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        assert (weights[0][name] - weights[1][name]).abs().max() < rounding, name


def assert_same_measurement(one, many):
    """What the teacher answered before the first step, whoever wrote which answer."""
    measured = [
        json.loads((folder / "config.json").read_text())["measured"] for folder in (one, many)
    ]
    assert (
        measured[0]["problems"] > 1
        and {"turn", "turns"} == measured[0]["arms"]["contrastive"].keys()
    )
    rates = [
        [arm["rates"] for arms in found["arms"].values() for arm in arms.values()]
        for found in measured
    ]
    assert rates[0] == rates[1]


@pytest.mark.parametrize("start", ["forked", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_take_the_steps_of_one_and_a_resume_goes_on_with_one(
    tied, tmp_path, request, start
):
    """Gradients must be summed, not averaged; the head's must be among them; the EMA must follow;
    only rank 0 writes."""
    train.main(flags(tied, tmp_path / "one", *EMA))
    arguments = flags(tied, tmp_path / "two", *EMA)
    if start == "forked":
        printed = ran_forked(request.getfixturevalue("server"), 2, *arguments)
    else:
        printed = ran(2, *arguments).stdout
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert_same_measurement(tmp_path / "one", tmp_path / "two")
    assert_same_weights(tmp_path / "one", tmp_path / "two", 3)
    assert printed.count("run folder:") == 1 and printed.count("step    3  loss") == 1
    for name in ("one", "two"):  # moments and teacher matter to the fourth step
        train.main(flags(tied, tmp_path / name, *EMA, "--steps", "4", "--resume"))
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert_same_weights(tmp_path / "one", tmp_path / "two", 4)


JOB = r"""
import json, os, pathlib, signal, sys, threading, time
import torch
import mopd, train
from runtime import parallel, setup
settings = json.loads(sys.argv[1])
leave, parallel.leave = parallel.leave, parallel.wait                   # one group for all of it


def fails(arguments):
    try:
        train.main(arguments)
    except SystemExit as stop:
        return stop.code


parallel.join()
rank = torch.distributed.get_rank()
report = {"flag": fails(settings["flag"]), "folder": fails(settings["folder"])}
load = setup.load
def broken(s):
    if rank == 1:
        raise ValueError("only rank 1 cannot read this")
    return load(s)
setup.load = broken
report["one"] = fails(settings["plain"])
setup.load = load
report["agree"] = [parallel.agree(rank == 1), parallel.agree(False)]

prepare = train.prepare
def keep(s):
    global run
    run = prepare(s)
    return run
train.prepare = keep
for arguments in settings["runs"]:
    train.main(arguments)
local = lambda tensors: sum(t.to_local().numel() for t in tensors)
moments = [s[name] for s in run.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
report["local"] = [local(run.student.parameters()), local(run.teacher.model.parameters()),
                   local(moments)]
report["all"] = sum(p.numel() for p in run.student.parameters())
first = next(run.student.parameters())
first.grad = torch.zeros_like(first)
if rank == 1:
    first.grad.to_local()[0] = float("inf")
report["finite"] = True
try:
    torch.nn.utils.clip_grad_norm_([first], 1.0, error_if_nonfinite=True)
except RuntimeError:
    report["finite"] = False
pathlib.Path(settings["report"] + str(rank)).write_text(json.dumps(report))

if rank == 1:
    step = train.train_step
    def die(run, n, *rest):
        if n == 3:
            pathlib.Path(settings["report"]).write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        return step(run, n, *rest)
    train.train_step = die
train.main(settings["endless"])
"""


@pytest.mark.slow
def test_other_methods_refusals_and_a_killed_process(untied, tmp_path):
    """Refusals end all processes with status 2 and one line, whoever found the fault; a dead
    process ends the job at once."""
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    # Seed 1: with 0 one entry of the head has a gradient that is nothing but rounding, which AdamW
    # makes 3e-5 of a weight.
    kinds = {
        "frozen": ("--teacher", "frozen", "--seed", "1"),
        "grpo": ("--method", "grpo"),
        "ema": ("--seed", "1"),
        "current": ("--teacher", "current", "--gradient-checkpointing", "--reduction", "sequence"),
    }
    settings = {
        "flag": flags(untied, tmp_path / "a", "--lr", "-1"),
        "folder": flags(untied, tmp_path / "full"),
        "plain": flags(untied, tmp_path / "b"),
        "report": str(tmp_path / "report"),
        "runs": [flags(untied, tmp_path / f"{kind}-2", *more) for kind, more in kinds.items()],
        "endless": flags(untied, tmp_path / "c", "--steps", "100000", "--eval-every", "100000"),
    }
    done = torchrun(2, tmp_path / "job.py", json.dumps(settings))
    ended, died = time.time(), float((tmp_path / "report").read_text())
    assert (
        done.returncode != 0 and ended - died < 60
    )  # seconds on an idle machine; gloo waits for hours
    assert "SIGKILL" in done.stderr
    for rank in (0, 1):
        report = json.loads((tmp_path / f"report{rank}").read_text())
        assert (report["flag"], report["folder"], report["one"], report["agree"]) == (
            2,
            2,
            2,
            [True, False],
        )
        assert not report["finite"]  # on rank 0 too, whose own shard is finite
        student, teacher, moments = report["local"]
        assert student == teacher == moments / 2 and 0.45 < student / report["all"] < 0.55
    for says in (
        "--lr -1.0: must be finite and not negative",
        f"{tmp_path / 'full'} is not empty",
        "only rank 1 cannot read this",
    ):
        assert done.stderr.count(says) == 1
    assert not (tmp_path / "b").exists()
    for kind, more in kinds.items():
        train.main(flags(untied, tmp_path / f"{kind}-1", *more))
        assert_same_run(tmp_path / f"{kind}-1", tmp_path / f"{kind}-2")
        assert_same_weights(tmp_path / f"{kind}-1", tmp_path / f"{kind}-2", 3)


@pytest.mark.slow
def test_a_signal_stops_all_processes_after_a_step_and_the_command_goes_on(untied, tmp_path):
    """Only one worker gets it: the other must hear of it, save with it and leave with it."""
    out = tmp_path / "out"
    (tmp_path / "job.py").write_text(
        "import os, signal, sys, train\nstep = train.train_step\n"
        "def asked(run, n, *rest):\n"
        "    if n == 2 and os.environ['RANK'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return step(run, n, *rest)\n"
        "train.train_step = asked\ntrain.main(sys.argv[1:])\n"
    )
    done = torchrun(
        2,
        tmp_path / "job.py",
        *flags(untied, out, "--eval-every", "100", "--save-every", "100", "--steps", "9"),
    )
    assert done.returncode != 0 and "Traceback (most recent call last)" not in done.stdout
    said = "stopped after 1 of 9 steps; to go on: the same torchrun command, with --resume\n"
    assert said in done.stdout
    assert (out / "step-000001" / "manifest.json").is_file()
    whole = tmp_path / "whole"
    more = ("--eval-every", "100", "--save-every", "100", "--steps", "3")
    train.main(flags(untied, whole, *more))
    assert "resuming from" in ran(2, *flags(untied, out, *more, "--resume")).stdout
    assert_same_run(whole, out)


@pytest.mark.slow
def test_steps_in_which_nothing_can_be_learned_change_nothing_in_two_processes_either(
    tied, tmp_path
):
    """Every rollout is cut: no micro-batch, so the sharded teacher never runs; then it does."""
    more = ("--max-new-tokens", "3", "--steps", "2", "--no-feedback")
    train.main(flags(tied, tmp_path / "one", *more))
    ran(2, *flags(tied, tmp_path / "two", *more))
    for out in ("one", "two"):
        steps = [line for line in read_lines(tmp_path / out / "metrics.jsonl") if "loss" in line]
        assert [(m["loss"], m["grad_norm"], m["unweighted"], m["truncated"]) for m in steps] == [
            (0.0, None, 24, 24)
        ] * 2
    assert_same_weights(tmp_path / "one", tmp_path / "two", 2, rounding=1e-12)


FAULTS = r"""
import os, resource, sys
import torch
import mopd, train; from runtime import checkpoint
rank, fault, arguments = os.environ["RANK"], sys.argv[1], sys.argv[2:]
if fault == "not finite" and rank == "1":
    norm = torch.nn.utils.clip_grad_norm_
    def poisoned(parameters, limit):
        parameters = list(parameters)
        parameters[0].grad.to_local()[0] = float("inf")
        return norm(parameters, limit)
    torch.nn.utils.clip_grad_norm_ = poisoned
if fault == "memory" and rank == "1":
    def hungry(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    mopd.backward = hungry
if fault == "log" and rank == "0":
    def full(path, record):
        raise OSError(f"cannot write {path}: No space left on device")
    train.append = full
if fault == "disk":
    save = checkpoint.save
    def full(run):  # a limit on the size of files fails as a full disk does
        limit = 5000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        save(run)
    checkpoint.save = full
train.main(arguments)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, says",
    [
        ("not finite", "the gradient's norm inf: no update was made"),
        ("memory", "out of memory in scoring tokens (several processes do not try again)"),
        ("log", "metrics.jsonl: No space left on device"),
        ("disk", "step-000001: [Errno 27] File too large"),
    ],
)
def test_a_fault_of_one_process_ends_all_with_a_line_each_and_no_traceback(
    untied, tmp_path, fault, says
):
    (tmp_path / "job.py").write_text(FAULTS)
    done = torchrun(
        2,
        tmp_path / "job.py",
        fault,
        *flags(untied, tmp_path / "out", "--eval-every", "100", "--save-every", "1"),
    )
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("train.py:")]
    assert says in told[0] + told[-1] and len(told) == (
        1 if fault in ("not finite", "disk") else 2
    ), done.stderr
    assert all(says in line or "another process is gone" in line for line in told), told
    assert (
        done.stderr.count("Traceback") <= 1 and "ChildFailedError" in done.stderr
    )  # torchrun's own, at the end


@pytest.mark.slow
@pytest.mark.parametrize("how", ["two Ctrl-C", "torchrun killed"])
def test_a_second_ctrl_c_ends_all_at_once_and_so_does_a_dead_torchrun(untied, tmp_path, how):
    """A terminal sends Ctrl-C to all processes, torchrun passes it on, and answers the second with
    SIGTERM."""
    (tmp_path / "job.py").write_text(
        "import pathlib, sys, time, train\nstep = train.train_step\n"
        "def slow(run, n, *rest):\n"
        "    found = step(run, n, *rest)\n"
        f"    pathlib.Path({str(tmp_path)!r}, 'pid' + str(train.parallel.dist.get_rank()))"
        ".write_text(str(train.checkpoint.os.getpid()))\n"
        f"    time.sleep({100 if how == 'two Ctrl-C' else 0.5})\n    return found\n"
        "train.train_step = slow\ntrain.main(sys.argv[1:])\n"
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        tmp_path / "job.py",
        *flags(untied, tmp_path / "out", "--steps", "1000", "--eval-every", "1000"),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with open(tmp_path / "log", "w") as log:
        job = subprocess.Popen(
            list(map(str, command)), env=environment, stdout=log, stderr=log, start_new_session=True
        )
    pids = [tmp_path / f"pid{rank}" for rank in (0, 1)]
    while not all(path.exists() and path.read_text() for path in pids):
        assert job.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    start, alive = (
        time.time(),
        lambda: [
            path
            for path in pids
            if os.path.exists(f"/proc/{path.read_text()}/stat")
            and open(f"/proc/{path.read_text()}/stat").read().split()[2] != "Z"
        ],
    )
    if how == "two Ctrl-C":
        for _ in range(2):
            os.killpg(job.pid, signal.SIGINT)
            time.sleep(2)
    else:
        job.kill()
    while alive() and time.time() - start < 60:
        time.sleep(0.1)
    job.wait()
    assert not alive() and time.time() - start < 20  # torchrun's own patience is 30 s
    if how == "torchrun killed":
        assert (
            list((tmp_path / "out").glob("step-*/manifest.json"))
            and "stopped after" in (tmp_path / "log").read_text()
        )


@pytest.mark.slow
def test_four_processes_and_resumes_between_one_two_and_four(tied, untied, tmp_path, monkeypatch):
    """Four processes for three problems: one has none to sample and must still come to every
    meeting.

    The single process does not share prompts here: what that rounds otherwise grows from step to
    step.
    """
    monkeypatch.setattr(fast_scoring, "can_share", lambda model: False)
    for name, folder in (("tied", tied), ("untied", untied)):
        one, two, four = (tmp_path / f"{name}-{n}" for n in (1, 2, 4))
        train.main(flags(folder, one, *EMA))
        ran(2, *flags(folder, two, *EMA))
        ran(4, *flags(folder, four, *EMA))
        assert_same_run(one, two)
        assert_same_run(one, four)
        shutil.copytree(one, tmp_path / f"{name}-1-4")
        train.main(flags(folder, one, *EMA, "--steps", "5", "--resume"))
        for out in (two, tmp_path / f"{name}-1-4"):
            assert (
                "resuming from"
                in ran(4, *flags(folder, out, *EMA, "--steps", "5", "--resume")).stdout
            )
            assert_same_run(one, out)
            assert_same_weights(one, out, 5)


@pytest.mark.slow
def test_bfloat16_shards_stay_float32(tied, tmp_path):
    """Rounded are the weights that travel, not the masters: a step of 1e-6 would vanish in
    bfloat16."""
    done = ran(
        2, *flags(tied, tmp_path / "out", "--dtype", "bfloat16", "--lr", "1e-6", "--steps", "1")
    )
    before = AutoModelForCausalLM.from_pretrained(tied / "model", dtype=torch.float32).state_dict()
    after = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out" / "step-000001" / "model"
    ).state_dict()
    moved = (after["model.embed_tokens.weight"] - before["model.embed_tokens.weight"]).abs()
    assert 0 < moved.max() < 3e-6 and "bfloat16" in done.stdout
