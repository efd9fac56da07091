"""Train a student by MOPD or a baseline: command line, data, AdamW loop, evaluation.

    python train.py --task math                                     # the tiny student in its
    made-up world python train.py --task math --model Qwen/Qwen3-1.7B --data train.jsonl --eval-data
    test.jsonl

Uses mopd.py for the step itself, checkpoint.py for what must outlive the process, and tiny.py for
the default student. Knows nothing of how a method works."""

import argparse
import contextlib
import dataclasses
import functools
import json
import logging
import math
import random
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

import mopd
import rollout
import tiny
import verifiers
from loss import DIVERGENCES
from runtime import checkpoint, data, fast_scoring, measure, parallel, report
from runtime.checkpoint import append
from runtime.fast_rollout import fused_norms, generate, rows_in_memory
from runtime.metrics import describe
from runtime.models import layouts_of, load_model, max_length, student_ids


def option(default, help, choices=None):
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass
class Settings:
    """Every setting of a run. None stands for the default of the model at hand: see TINY and REAL
    below.

    Raises ValueError for settings that are wrong in themselves or do not go together.
    """

    task: str = option(
        "math", "task family: decides the verifier and the instruction", verifiers.TASKS
    )
    model: str = option("tiny", "tiny, a Hub id, or a folder that from_pretrained reads")
    data: str = option(None, "training rows: a JSON Lines file, or OWNER/NAME:FILE on the Hub")
    eval_data: str = option(None, "evaluation rows, likewise")
    prompt_field: str = option("prompt", "field of a row that holds the problem")
    answer_field: str = option("answer", "field of a row that holds the gold answer")
    system_field: str = option("system", "field of a row that may hold a system message")
    method: str = option("mopd", "what the student learns from", mopd.METHODS)
    peers: str = option(None, "what the mopd teacher reads (default contrastive)", mopd.PEERS)
    peer_tokens: int = option(
        None, "longest peer in the teacher's prompt, in tokens; longer ones lose their middle"
    )
    no_feedback: bool = option(
        False,
        "never show mopd's teacher the verifier's feedback on a wrong rollout (default: "
        "where it has no successful peer)",
    )
    layout: str = option(
        None,
        "how the teacher's peers are written: in one user turn (the paper's), as turns of a "
        "conversation, or whichever lets the teacher itself answer better, measured before the first "
        "step",
        ("turn", "turns", "auto"),
    )
    force: bool = option(
        False, "train although the teacher was measured to be worse than the student"
    )
    teacher: str = option(
        None, "ema, frozen, current, or another model (Hub id or folder) with the same tokenizer"
    )
    ema_rate: float = option(None, "share of the student that enters the EMA teacher at each step")
    divergence: str = option(
        "jsd", "what is minimised: forward is KL(teacher || student)", DIVERGENCES
    )
    top_k: int = option(
        None,
        "compare the student's top k tokens and the rest as one (default: the full vocabulary)",
    )
    reduction: str = option(
        "token", "every token of the step counts alike, or every rollout", ("token", "sequence")
    )
    is_clip: float = option(
        None, "weight tokens by min(p_trainer / p_sampler, IS_CLIP) (default: off)"
    )
    steps: int = option(None, "optimizer steps")
    problems: int = option(32, "problems per step")
    rollouts: int = option(8, "rollouts per problem")
    max_new_tokens: int = option(None, "longest completion, in tokens")
    temperature: float = option(1.0, "sampling temperature in training")
    lr: float = option(None, "learning rate")
    warmup_steps: int = option(
        10, "steps over which the learning rate rises from 0; constant afterwards"
    )
    weight_decay: float = option(0.01, "AdamW's weight decay")
    grad_clip: float = option(None, "largest norm of the gradient")
    micro_tokens: int = option(
        None, "tokens, padding included, that go through the model at once in scoring"
    )
    plain: bool = option(
        False,
        "the plain sampler, loss and scoring instead of the fast ones in runtime/, to check these",
    )
    gradient_checkpointing: bool = option(
        False, "recompute activations in the backward pass: less memory, more time"
    )
    eval_every: int = option(None, "steps between evaluations")
    eval_problems: int = option(None, "problems of an evaluation, at most")
    eval_rollouts: int = option(8, "samples per evaluation problem: the k of mean@k and pass@k")
    eval_temperature: float = option(None, "sampling temperature in evaluation")
    eval_top_p: float = option(None, "nucleus mass in evaluation")
    save_every: int = option(None, "steps between checkpoints (default: with each evaluation)")
    keep: int = option(2, "checkpoints to keep")
    out: str = option(None, "folder of the run (default: a fresh one in runs/)")
    resume: bool = option(False, "continue the run in --out")
    seed: int = option(
        0, "seed of the data order, the rollouts and, in the tiny world, the meanings"
    )
    device: str = option(None, "cpu, cuda, ... (default: cuda where there is one)")
    dtype: str = option(
        None,
        "compute type; weights stay float32 (default: bfloat16 on cuda)",
        ("float32", "bfloat16"),
    )

    def __post_init__(self):
        for f in dataclasses.fields(self):
            choices, value = f.metadata["choices"], getattr(self, f.name)
            if choices and value is not None and value not in choices:
                raise ValueError(f"{flag(f.name)} {value}: choose from {', '.join(choices)}")
            if (
                isinstance(value, (int, float))
                and not 0 <= value < float("inf")
                or value == 0
                and f.name in POSITIVE
            ):
                wanted = "positive and finite" if f.name in POSITIVE else "finite and not negative"
                raise ValueError(f"{flag(f.name)} {value}: must be {wanted}")
        for name in ("ema_rate", "eval_top_p"):
            if (getattr(self, name) or 0) > 1:
                raise ValueError(f"{flag(name)} {getattr(self, name)}: must be at most 1")
        if self.peers and self.method != "mopd":
            raise ValueError(
                f"--peers belongs to --method mopd: leave it out with --method {self.method}"
            )
        if self.no_feedback and self.method != "mopd":
            raise ValueError("--no-feedback belongs to --method mopd: leave it out")
        if self.method in ("mopd", "sdpo", "grpo") and self.rollouts < 2:
            raise ValueError(
                f"--rollouts {self.rollouts}: --method {self.method} compares rollouts, so at least 2"
            )
        if self.method == "opd" and self.teacher in (None, *COPIES):
            raise ValueError(
                "--method opd needs --teacher MODEL: without peers a copy of the student teaches nothing"
            )
        if self.model == "tiny" and (self.data or self.eval_data):
            raise ValueError(
                "--data and --eval-data need --model: the tiny student knows only its own world"
            )
        if self.model != "tiny" and not self.data:
            raise ValueError(f"--model {self.model} needs --data FILE")
        if self.resume and not self.out:
            raise ValueError("--resume needs --out: the folder of the run to continue")
        if self.method == "mopd" and self.peers == "unrelated" and self.problems < 2:
            raise ValueError(
                "--peers unrelated needs --problems of at least 2: its peers come from other problems"
            )
        for name in ("teacher", "ema_rate", "divergence", "top_k", "peer_tokens"):
            if (
                not self.teaches
                and getattr(self, name) != type(self).__dataclass_fields__[name].default
            ):
                raise ValueError(
                    f"{flag(name)} has no meaning with --method {self.method}, which has no teacher"
                )
        if self.layout and self.method not in ("mopd", "sdpo"):
            raise ValueError(
                f"--layout has no meaning with --method {self.method}, whose teacher reads no peers"
            )
        if self.method not in ("mopd", "sdpo"):
            # what the token view of such a run shows
            self.layout = "turn"
        rate = self.ema_rate
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        real = REAL | (ON_CPU if self.device == "cpu" else {})
        for name, value in (TINY if self.model == "tiny" else real).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if rate is not None and self.teacher != "ema":
            raise ValueError(f"--ema-rate needs --teacher ema, not {self.teacher}")
        if self.method == "mopd":
            self.peers = self.peers or "contrastive"
        self.save_every = self.save_every or self.eval_every
        self.out = self.out or f"runs/{self.task}-{self.method}-{time.strftime('%Y%m%d-%H%M%S')}"
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"--device {self.device}: {str(error).splitlines()[0]}") from None
        self.dtype = self.dtype or ("bfloat16" if self.device.startswith("cuda") else "float32")

    def seed_of(self, step):
        """The seed of a step's rollouts and of its choice of peers; step 0 is evaluation, -1 the
        teacher's measurement.
        """
        return self.seed * 1_000_000 + step

    @property
    def teaches(self):
        """Whether the method has a teacher at all."""
        return self.method not in mopd.NO_TEACHER


POSITIVE = (
    "problems",
    "rollouts",
    "eval_rollouts",
    "steps",
    "max_new_tokens",
    "eval_every",
    "eval_problems",
    "keep",
    "save_every",
    "micro_tokens",
    "peer_tokens",
    "top_k",
    "grad_clip",
    "temperature",
    "eval_top_p",
    "is_clip",
)
# teachers that are the student itself or a copy of it
COPIES = ("ema", "frozen", "current")
# Defaults that depend on the model: right for the tiny world, the paper's for real ones. The tiny
# teacher is frozen: training on bare prompts makes so small a student forget how to read peers, and
# an EMA teacher forgets with it. Its gradients have norms of about 0.03; one of 0.4 in between
# would undo, through AdamW's momentum, what was learnt.
TINY = dict(
    layout="turn",
    steps=60,
    max_new_tokens=32,
    lr=1e-3,
    grad_clip=0.05,
    teacher="frozen",
    ema_rate=0.01,
    peer_tokens=64,
    micro_tokens=4096,
    eval_every=15,
    eval_problems=64,
    eval_temperature=1.0,
    eval_top_p=1.0,
)
REAL = dict(
    layout="auto",
    steps=200,
    max_new_tokens=1024,
    lr=1e-5,
    grad_clip=1.0,
    teacher="ema",
    ema_rate=0.05,
    peer_tokens=1024,
    micro_tokens=8192,
    eval_every=20,
    eval_problems=256,
    eval_temperature=0.6,
    eval_top_p=0.95,
)
# the activations of 8192 would fill a laptop's memory
ON_CPU = dict(micro_tokens=2048)
MAY_CHANGE = (
    "steps",
    "eval_every",
    "eval_problems",
    "eval_rollouts",
    "eval_temperature",
    "eval_top_p",
    "eval_data",
    # on resume
    "save_every",
    "keep",
    "out",
    "resume",
    "force",
    "device",
    "micro_tokens",
    "gradient_checkpointing",
)


GROUPS = {
    "task": "task, model and data",
    "method": "method",
    "steps": "training",
    "eval_every": "evaluation and files",
    # by their first setting, for --help
    "seed": "seed and device",
}


def flag(name):
    return "--" + name.replace("_", "-")


def parse(arguments, program="train.py") -> Settings:
    """Settings from the command line; what is wrong with it ends the program with one line and
    status 2.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.error = lambda message: parser.exit(
        2, f"{program}: error: {message} (--help lists the flags)\n"
    )
    for f in dataclasses.fields(Settings):
        if f.name in GROUPS:
            group = parser.add_argument_group(GROUPS[f.name])
        kind = (
            {"action": "store_true"}
            if f.type is bool
            else {"type": f.type, "choices": f.metadata["choices"]}
        )
        on_cpu = f", on a CPU {ON_CPU[f.name]}" if f.name in ON_CPU else ""
        default = (
            f.default if f.name not in REAL else f"{REAL[f.name]}{on_cpu}; tiny: {TINY[f.name]}"
        )
        note = "" if default is None or f.type is bool else f" (default {default})"
        group.add_argument(flag(f.name), default=f.default, help=f.metadata["help"] + note, **kind)
    try:
        return Settings(**vars(parser.parse_args(arguments)))
    except ValueError as error:
        parser.exit(2, f"{program}: error: {error}\n")


# --- data and models ---


def fitting(problems, student, tokenizer, settings, name) -> list[mopd.Problem]:
    """The problems whose prompt and --max-new-tokens the model has room for; the others are counted
    out loud.
    """
    room = max_length(student) - settings.max_new_tokens
    kept = [p for p in problems if len(student_ids(tokenizer, p)) <= room]
    if len(kept) < len(problems):
        print(
            f"{name}: {len(problems) - len(kept)} of {len(problems)} rows are too long for the model with "
            f"--max-new-tokens {settings.max_new_tokens} and left out"
        )
    if not kept:
        raise ValueError(f"{name} has no usable row ({len(problems)} rows read, none left)")
    return kept


@dataclass
class Run:
    """What a run consists of, made by `prepare`. inputs: checksums of what it reads; done: the
    steps taken so far; saved: the number of these that the last checkpoint holds; fits: see
    checkpoint.within_memory; first: what `sample` returned for step 1, where the teacher was
    measured on it; measured: that table, see runtime/measure.py."""

    settings: Settings
    out: Path
    student: torch.nn.Module
    tokenizer: object
    teacher: mopd.Teacher
    optimizer: torch.optim.Optimizer
    train: list
    held_out: list
    inputs: dict
    autocast: object
    done: int = 0
    saved: int = 0
    fits: dict = field(default_factory=dict)
    first: tuple | None = None
    measured: dict | None = None


def load(settings):
    """(student, tokenizer, teacher, training, held-out problems, checksums); what can be refused is
    refused here.
    """
    s, out, held_out, external = settings, Path(settings.out), [], ()
    if s.model == "tiny":
        train, held_out = (
            [data.read_row(row, s.task, n) for n, row in enumerate(rows)]
            for rows in tiny.problems(s.task, seed=s.seed)
        )
        student, tokenizer = tiny.build(
            s.task,
            instruction=verifiers.INSTRUCTIONS[s.task],
            verify=verifiers.verify,
            folder=out.parent,
            device=s.device,
        )
    else:
        fields = dict(
            prompt_field=s.prompt_field, answer_field=s.answer_field, system_field=s.system_field
        )
        train = data.read_problems(s.data, s.task, **fields)
        if s.eval_data:
            held_out = data.read_problems(s.eval_data, s.task, **fields)
            if data.find_file(s.data).samefile(data.find_file(s.eval_data)):
                print(
                    "warning: --data and --eval-data are the same file: the evaluation is not held out"
                )
        student, tokenizer = load_model(s.model)
        # refuses what it cannot sample from
        generate(student, [[0, 1], [0]], 2, max_new_tokens=2, stop_ids=[])
    inputs = {
        "data": checkpoint.checksum_of_rows(train),
        "eval_data": checkpoint.checksum_of_rows(held_out),
        "model": checkpoint.checksum_of_model(student, tokenizer, weights=False),
    }
    train = fitting(train, student, tokenizer, s, s.data or "the tiny world")
    if s.eval_data or held_out:
        held_out = fitting(held_out, student, tokenizer, s, s.eval_data or "the tiny world")
        held_out = random.Random(s.seed).sample(held_out, min(s.eval_problems, len(held_out)))
    if len(train) < s.problems:
        raise ValueError(
            f"{len(train)} usable training rows are fewer than --problems {s.problems}"
        )
    if s.teaches and s.teacher not in COPIES:
        external = load_model(s.teacher)
        inputs["teacher"] = checkpoint.checksum_of_model(*external)
        external[0].to(getattr(torch, s.dtype))  # it needs no master weights
    # transformers recomputes in train mode only
    if s.gradient_checkpointing:
        dropout = [
            name
            for name, value in student.config.to_dict().items()
            if ("dropout" in name or name.endswith("pdrop"))
            and isinstance(value, float)
            and value > 0
        ]
        if dropout:
            raise ValueError(
                f"--gradient-checkpointing would train under dropout: set {dropout[0]} to 0 in the config"
            )
        # its newer name
        getattr(student, "activation_checkpointing_enable", student.gradient_checkpointing_enable)()
        # a hook for frozen embeddings; rollouts are slower with hooks
        student.disable_input_require_grads()
    teacher = mopd.make_teacher(
        s.teacher if s.teaches else "current", student, tokenizer, *external
    )
    if s.layout == "turns" and "turns" not in layouts_of(teacher.tokenizer):
        raise ValueError(
            "--layout turns: the chat template has no place for earlier turns of the assistant; use turn"
        )
    return student, tokenizer, teacher, train, held_out, inputs


def prepare(settings) -> Run:
    """Load and check everything, before any work."""
    s = settings
    student, tokenizer, teacher, train, held_out, inputs = parallel.in_turn(lambda: load(s))
    for model in (student, teacher.model):
        parallel.shard(model, device=s.device, dtype=s.dtype)
    optimizer = torch.optim.AdamW(
        student.parameters(),
        lr=s.lr,
        weight_decay=s.weight_decay,
        # else it copies the weights
        fused=torch.device(s.device).type == "cuda",
    )
    autocast = functools.partial(torch.autocast, torch.device(s.device).type, torch.bfloat16)
    run = Run(
        s,
        Path(s.out),
        student,
        tokenizer,
        teacher,
        optimizer,
        train,
        held_out,
        inputs,
        autocast if s.dtype == "bfloat16" else contextlib.nullcontext,
    )
    if s.resume:
        checkpoint.load(run, MAY_CHANGE)
    return run


# --- the loop ---


def batch_of(problems, step, settings) -> list[mopd.Problem]:
    """The problems of a step (from 1): shuffled anew each epoch, none twice in a step, a function
    of seed and step.
    """
    per_epoch = len(problems) // settings.problems
    epoch, position = divmod(step - 1, per_epoch)
    order = list(range(len(problems)))
    random.Random(f"{settings.seed} {epoch}").shuffle(order)
    return [
        problems[n]
        for n in order[position * settings.problems : (position + 1) * settings.problems]
    ]


def sample(run, problems, *, k, **options):
    """(attempts, retries): mopd.sample with as many rollouts at once as there is memory for."""
    longest = (
        max(len(student_ids(run.tokenizer, p)) for p in problems) + run.settings.max_new_tokens
    )
    work = lambda rows: mopd.sample(
        run.student,
        run.tokenizer,
        problems,
        k=k,
        task=run.settings.task,
        max_rows=rows,
        max_new_tokens=run.settings.max_new_tokens,
        autocast=run.autocast,
        generate=rollout.generate if run.settings.plain else generate,
        **options,
    )
    with run.autocast():  # which halves the cache
        rows = min(len(problems) * k, rows_in_memory(run.student, longest))
    return checkpoint.within_memory(
        work, rows, fits=run.fits, alone=lambda rows: rows == 1, name="generating rollouts"
    )


def sample_step(run, step):
    """(attempts, retries, seconds) of the rollouts of a step."""
    s, seconds = run.settings, {}
    attempts, retries = sample(
        run,
        batch_of(run.train, step, s),
        k=s.rollouts,
        seed=s.seed_of(step),
        temperature=s.temperature,
        seconds=seconds,
    )
    return attempts, retries, seconds


def evaluate(run) -> dict:
    """mean@k and pass@k over the held-out problems, with the same random numbers each time:
    evaluations are paired.

    Also the number of different answers per problem, which falls when training narrows the student,
    and by row of the data the number of right samples.
    """
    s, k = run.settings, run.settings.eval_rollouts
    attempts, retries = sample(
        run,
        run.held_out,
        k=k,
        seed=s.seed_of(0),
        temperature=s.eval_temperature,
        top_p=s.eval_top_p,
    )
    groups = [attempts[n : n + k] for n in range(0, len(attempts), k)]
    answers = [{a.verdict.answer for a in g if a.verdict.answer is not None} for g in groups]
    return {
        "eval_mean_at_k": sum(a.success for a in attempts) / len(attempts),
        "eval_pass_at_k": sum(any(a.success for a in g) for g in groups) / len(groups),
        "eval_k": k,
        "eval_distinct_answers": sum(map(len, answers)) / len(groups),
        "eval_right": {g[0].problem.key: sum(a.success for a in g) for g in groups},
        "oom_retries": retries,
    }


def due(settings, step, every) -> bool:
    return step % every == 0 or step == settings.steps


def recorded(settings, step) -> bool:
    """Whether a step's groups are kept: of evaluated steps, and of the first, whose weights
    evaluation 0 has seen.
    """
    return step == 1 or due(settings, step, settings.eval_every)


def train_step(run, step, abandonable=contextlib.nullcontext):
    """(metrics, attempts, token view) of one step, the update of optimizer and teacher included.

    Nothing that outlives the step changes inside `abandonable`. A loss or gradient that is not
    finite raises FloatingPointError before the update, and leaves the rollouts in the run's folder
    for study.
    """
    s, seed, cuts = run.settings, run.settings.seed_of(step), {}
    with abandonable():
        attempts, retries, seconds = (
            run.first if run.first and step == 1 else sample_step(run, step)
        )
        run.first = None
        mopd.plan(attempts, method=s.method, peers=s.peers, feedback=not s.no_feedback, seed=seed)
        if s.teaches:
            cuts = mopd.write_contexts(
                attempts,
                run.teacher,
                peer_tokens=s.peer_tokens,
                longest=max_length(run.teacher.model),
                layout=s.layout,
            )

        def score(micro_tokens):
            view = []
            if recorded(s, step):
                view = report.token_view(
                    run, step, attempts, seed=seed, budget=micro_tokens, seconds=seconds
                )
            # what is left of a try for which memory did not suffice
            run.optimizer.zero_grad(set_to_none=True)
            # else in eval mode: dropout would part it from the sampler
            run.student.train(s.gradient_checkpointing)
            fast = [] if s.plain else [run.student, *([run.teacher.model] if s.teaches else [])]
            with fused_norms(*fast):
                metrics = mopd.backward(
                    run.student,
                    run.teacher,
                    attempts,
                    method=s.method,
                    divergence=s.divergence,
                    top_k=s.top_k,
                    temperature=s.temperature,
                    reduction=s.reduction,
                    is_clip=s.is_clip,
                    micro_tokens=micro_tokens,
                    autocast=run.autocast,
                    seconds=seconds,
                    parts=mopd.Parts() if s.plain else fast_scoring.FAST,
                )
            run.student.eval()
            return metrics, view

        # the token view reads all of them
        every = [dataclasses.replace(a, weight=1.0) for a in attempts]
        alone = lambda size: all(
            len(batch) == 1 for batch in mopd.microbatches(every, size, mopd.student_tokens)
        )
        (metrics, view), more = checkpoint.within_memory(
            score, s.micro_tokens, fits=run.fits, alone=alone, name="scoring tokens"
        )
    lr, grad_norm = s.lr * min(1.0, step / max(1, s.warmup_steps)), None
    # else nothing to learn: momentum and EMA would move on alone
    if metrics["scored_tokens"]:
        grad_norm = parallel.number(
            torch.nn.utils.clip_grad_norm_(run.student.parameters(), s.grad_clip)
        )
        if not math.isfinite(metrics["loss"]) or not math.isfinite(grad_norm):
            failed = run.out / f"failed-step-{step}.jsonl"
            if parallel.is_main():
                failed.unlink(missing_ok=True)  # of an earlier try
            for record in report.sample_records(step, attempts):
                append(failed, record)
            fault = FloatingPointError(
                f"the loss is {metrics['loss']:.4g} and the gradient's norm {grad_norm:.4g}: no update was made; the "
                f"rollouts are in {failed}; a resume would come here again, a new run from a checkpoint's model/ with "
                "another --lr need not"
            )
            fault.everywhere = True
            raise fault
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)  # its memory is the next rollouts'
        run.teacher.update(run.student, s.ema_rate)
    return (
        {
            "step": step,
            **metrics,
            **describe(attempts),
            **cuts,
            "oom_retries": retries + more,
            "grad_norm": grad_norm,
            "lr": lr,
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
        },
        attempts,
        view,
    )


def train(run, stop):
    """The loop. A signal ends it by checkpoint.Abandoned, between two steps or in one that is then
    forgotten.
    """
    s, example, metrics_file = run.settings, None, run.out / "metrics.jsonl"
    past = report.read_records(metrics_file)
    look = report.monitor(past)

    def evaluate_now():
        with stop.abandonable():
            record = {"step": run.done, **evaluate(run)}
        append(metrics_file, record)
        tqdm.write(
            "step {step:4d}  held-out mean@{eval_k} {eval_mean_at_k:.3f}  pass@{eval_k} {eval_pass_at_k:.3f}".format(
                **record
            )
        )

    # the start, or what a run that was stopped left to be done
    if run.held_out and due(s, run.done, s.eval_every):
        if not parallel.agree(any(r["step"] == run.done and "eval_k" in r for r in past)):
            evaluate_now()
    for step in tqdm(
        range(run.done + 1, s.steps + 1),
        desc="steps",
        initial=run.done,
        total=s.steps,
        disable=None if parallel.is_main() else True,
    ):
        metrics, attempts, view = train_step(run, step, stop.abandonable)
        example = report.example_of(attempts) or example
        append(metrics_file, metrics)
        for line in (report.line_of(metrics), *look(metrics)):
            tqdm.write(line)
        if recorded(s, step):
            for name, records in (
                ("samples", report.sample_records(step, attempts)),
                ("tokens", view),
            ):
                for record in records:
                    append(run.out / f"{name}.jsonl", record)
        run.done = step
        if run.held_out and due(s, step, s.eval_every):
            evaluate_now()
        if due(s, step, s.save_every):
            checkpoint.save(run)
    if parallel.is_main():
        report.summarise(run, example)


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # offline, it tells of every try
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with parallel.together(), contextlib.ExitStack() as held:
        try:
            parallel.join()
            settings = parallel.in_turn(lambda: parse(arguments))
            # its default names the second
            settings.out = parallel.gather([settings.out])[0]
            out = Path(settings.out)

            def lock():
                held.enter_context(checkpoint.claim(out, resume=settings.resume))

            existed = parallel.agree(out.exists())
            parallel.by_main(lock if existed else lambda: None)
            run = prepare(settings)
            report.announce(run)
            if run.settings.layout == "auto":
                run.first = sample_step(run, 1)
                run.measured = measure.decide(run, run.first[0])
            # a new folder when nothing is left to refuse
            parallel.by_main(lambda: None if existed else lock())
            parallel.by_main(lambda: begin(run))
        except parallel.REFUSALS as error:
            shared = isinstance(error, parallel.Refused)
            if parallel.is_main() or not shared:
                print(f"train.py: error: {error}", file=sys.stderr)
            # else the others are waiting for something else
            if shared:
                parallel.leave()
            sys.exit(2)
        except KeyboardInterrupt:
            print("train.py: stopped before the first step; nothing was saved", file=sys.stderr)
            sys.exit(130)
        more = [
            *(["--out", settings.out] if "--out" not in arguments else []),
            *(["--resume"] if not settings.resume else []),
        ]
        command = shlex.join([*parallel.launcher(), sys.argv[0], *arguments, *more])
        status = checkpoint.run_to_its_end(run, train, command, report.stopped)
    if status != 1:  # all come to this end, a signal's too
        parallel.leave()
    if status:
        sys.exit(status)


def begin(run):
    """Put the run's folder where the checkpoint, or the start, was."""
    for name in ("metrics.jsonl", "samples.jsonl", "tokens.jsonl"):
        checkpoint.rewind(run.out / name, run.done or -1)
    config = dataclasses.asdict(run.settings) | ({"measured": run.measured} if run.measured else {})
    checkpoint.replace(run.out / "config.json", [json.dumps(config, indent=1).encode(), b"\n"])


if __name__ == "__main__":
    main()
