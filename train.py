"""Train a student by MOPD or a baseline: command line, data, AdamW loop, evaluation.

    python train.py --task math                         # the tiny student in its made-up world
    python train.py --task math --model Qwen/Qwen3-1.7B --data train.jsonl --eval-data test.jsonl

The step itself stands in mopd.py, checkpoints and signals in runtime/checkpoint.py, the default
student in tiny.py. This file knows nothing of how a method works.
"""

import os
import signal

if __name__ == "__main__":

    def leave(*_):
        """Ctrl-C during the imports below, which take seconds: one line, no traceback."""
        os.write(2, b"train.py: stopped before its first step; nothing new was saved\n")
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as it is for a process in the background
        signal.signal(signal.SIGINT, leave)

import argparse
import contextlib
import dataclasses
import logging
import math
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

import mopd
import rollout
import verifiers
from loss import DIVERGENCES
from runtime import checkpoint, fast_scoring, first_line, measure, parallel, report
from runtime.checkpoint import append
from runtime.fast_rollout import fused_norms, generate, rows_in_memory
from runtime.metrics import describe
from runtime.models import max_length
from runtime.setup import Run, prepare
from runtime.templates import student_ids


def option(default, help, choices=None):
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass
class Settings:
    """Every setting of a run; None becomes the default of the model's kind, see DEFAULTS below.

    Raises ValueError for a setting out of range and for settings that do not go together.
    """

    task: str = option(
        "math", "task family: decides the verifier and the instruction", verifiers.TASKS
    )
    model: str = option("tiny", "tiny, a Hub id, or a folder that from_pretrained reads")
    template_variables: str = option(None, "variables for the chat template, as a JSON object")
    data: str = option(None, "training rows: a file, a folder, or OWNER/NAME[:SPLIT] on the Hub")
    eval_data: str = option(None, "evaluation rows, likewise")
    prompt_field: str = option(None, "field of a row that holds the problem (default: found)")
    answer_field: str = option(None, "field of a row that holds the gold answer (default: found)")
    system_field: str = option(None, "field of a row that may hold a system message")
    skip_bad_rows: bool = option(False, "leave out rows that cannot be read")
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
        "conversation, or whichever lets the teacher itself answer better, measured before the "
        "first step",
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
            self._check_value(f)
        self._check_combination()
        self._fill_defaults()

    def _check_value(self, setting):
        name, choices = setting.name, setting.metadata["choices"]
        value = getattr(self, name)
        if choices and value is not None and value not in choices:
            raise ValueError(f"{flag(name)} {value}: choose from {', '.join(choices)}")
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return
        if not 0 <= value < float("inf") or value == 0 and name not in MAY_BE_ZERO:
            wanted = "finite and not negative" if name in MAY_BE_ZERO else "positive and finite"
            raise ValueError(f"{flag(name)} {value}: must be {wanted}")
        if name in ("ema_rate", "eval_top_p") and value > 1:
            raise ValueError(f"{flag(name)} {value}: must be at most 1")

    def _check_combination(self):
        if self.peers and self.method != "mopd":
            raise ValueError(
                f"--peers belongs to --method mopd: leave it out with --method {self.method}"
            )
        if self.no_feedback and self.method != "mopd":
            raise ValueError("--no-feedback belongs to --method mopd: leave it out")
        if self.method in ("mopd", "sdpo", "grpo") and self.rollouts < 2:
            raise ValueError(
                f"--rollouts {self.rollouts}: --method {self.method} compares rollouts, "
                "so at least 2"
            )
        if self.method == "opd" and self.teacher in (None, *mopd.COPIES):
            raise ValueError(
                "--method opd needs --teacher MODEL: "
                "without peers a copy of the student teaches nothing"
            )
        if self.model == "tiny":
            names = "data eval_data prompt_field answer_field system_field skip_bad_rows".split()
            if given := [name for name in names if getattr(self, name)]:
                said = "needs --model: the tiny student knows only its own world"
                raise ValueError(f"{flag(given[0])} {said}")
        if self.model != "tiny" and not self.data:
            raise ValueError(f"--model {self.model} needs --data FILE")
        if self.steps == 0 and self.model != "tiny" and not self.eval_data:
            raise ValueError("--steps 0 evaluates and ends: it needs --eval-data")
        if self.resume and not self.out:
            raise ValueError("--resume needs --out: the folder of the run to continue")
        if self.method == "mopd" and self.peers == "unrelated" and self.problems < 2:
            raise ValueError(
                "--peers unrelated needs --problems of at least 2: "
                "its peers come from other problems"
            )
        for name in ("teacher", "ema_rate", "divergence", "top_k", "peer_tokens"):
            # a dataclass keeps the default of a field as an attribute of the class
            if not self.teaches and getattr(self, name) != getattr(Settings, name):
                raise ValueError(
                    f"{flag(name)} has no meaning with --method {self.method}, which has no teacher"
                )
        if self.layout and self.method not in ("mopd", "sdpo"):
            raise ValueError(
                f"--layout has no meaning with --method {self.method}, whose teacher reads no peers"
            )
        teacher = self.teacher or DEFAULTS["teacher"][self.model != "tiny"]
        if self.ema_rate is not None and teacher != "ema":
            raise ValueError(f"--ema-rate needs --teacher ema, not {teacher}")

    def _fill_defaults(self):
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"--device {self.device}: {first_line(error)}") from None
        self.dtype = self.dtype or ("bfloat16" if self.device.startswith("cuda") else "float32")
        if self.method not in ("mopd", "sdpo"):
            self.layout = "turn"  # for the token view, which shows peers in every run
        if self.model != "tiny" and self.device == "cpu":
            self.micro_tokens = self.micro_tokens or MICRO_TOKENS_ON_CPU
        for name, (tiny_default, default) in DEFAULTS.items():
            if getattr(self, name) is None:
                setattr(self, name, tiny_default if self.model == "tiny" else default)
        if self.method == "mopd":
            self.peers = self.peers or "contrastive"
            if self.model == "tiny" and self.task == "tool":
                # It is the same for every wrong action there; with it, 1 of 3 seeds collapsed.
                self.no_feedback = True
        self.save_every = self.save_every or self.eval_every
        self.out = self.out or f"runs/{self.task}-{self.method}-{time.strftime('%Y%m%d-%H%M%S')}"

    def seed_of(self, step: int) -> int:
        """Seed of a step's rollouts and peers; step 0 is evaluation, -1 measures the teacher."""
        return self.seed * 1_000_000 + step

    @property
    def teaches(self) -> bool:
        """Whether the method has a teacher at all."""
        return self.method not in mopd.NO_TEACHER


MAY_BE_ZERO = "steps ema_rate lr warmup_steps weight_decay eval_temperature seed".split()
# Setting: (default for the tiny student, default for other models, which is the paper's). The tiny
# teacher is frozen: training on prompts without peers makes so small a student forget how to read
# peers, and an EMA teacher would forget with it. The tiny student's gradients have norms of about
# 0.03; without clipping one outlier of 0.4 undoes, through AdamW's momentum, what was learnt.
DEFAULTS = {
    "layout": ("turn", "auto"),
    "teacher": ("frozen", "ema"),
    "ema_rate": (0.01, 0.05),
    "peer_tokens": (64, 1024),
    "steps": (36, 200),
    "max_new_tokens": (32, 1024),
    "lr": (1e-3, 1e-5),
    "grad_clip": (0.05, 1.0),
    "micro_tokens": (4096, 8192),
    "eval_every": (12, 20),
    "eval_problems": (64, 256),
    "eval_temperature": (1.0, 0.6),
    "eval_top_p": (1.0, 0.95),
}
MICRO_TOKENS_ON_CPU = 2048  # the activations of 8192 would fill a laptop's memory
# the headings of --help, by the setting that each stands above
GROUPS = {
    "task": "task, model and data",
    "method": "method",
    "steps": "training",
    "eval_every": "evaluation and files",
    "seed": "seed and device",
}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse(arguments: list[str], program: str = "train.py") -> Settings:
    """Settings from the command line; an error prints one line and exits with status 2."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.error = lambda message: parser.exit(
        2, f"{program}: error: {message} (--help lists the flags)\n"
    )
    for f in dataclasses.fields(Settings):
        if f.name in GROUPS:
            group = parser.add_argument_group(GROUPS[f.name])
        help, default = f.metadata["help"], f.default
        if f.type is bool:
            group.add_argument(flag(f.name), action="store_true", help=help)
            continue
        if f.name in DEFAULTS:
            tiny_default, default = DEFAULTS[f.name]
            on_cpu = f", on a CPU {MICRO_TOKENS_ON_CPU}" if f.name == "micro_tokens" else ""
            default = f"{default}{on_cpu}; tiny: {tiny_default}"
        if default is not None:
            help += f" (default {default})"
        choices = f.metadata["choices"]
        group.add_argument(flag(f.name), type=f.type, choices=choices, default=f.default, help=help)
    try:
        return Settings(**vars(parser.parse_args(arguments)))
    except ValueError as error:
        parser.exit(2, f"{program}: error: {error}\n")


# --- the loop ---


def batch_of(problems: list, step: int, settings: Settings) -> list[mopd.Problem]:
    """The problems of a step (counted from 1), a function of seed and step.

    They are shuffled anew in each epoch; no problem is twice in a step.
    """
    size = settings.problems
    epoch, position = divmod(step - 1, len(problems) // size)
    order = list(range(len(problems)))
    random.Random(f"{settings.seed} {epoch}").shuffle(order)
    return [problems[n] for n in order[position * size : (position + 1) * size]]


def sample(run: Run, problems, *, k: int, **options) -> tuple[list[mopd.Attempt], int]:
    """(attempts, retries): mopd.sample with as many rollouts at once as fit in memory."""
    s = run.settings
    length = max(len(student_ids(run.tokenizer, p)) for p in problems) + s.max_new_tokens

    def work(rows):
        return mopd.sample(
            run.student,
            run.tokenizer,
            problems,
            k=k,
            task=s.task,
            max_rows=rows,
            max_new_tokens=s.max_new_tokens,
            autocast=run.autocast,
            generate=rollout.generate if s.plain else generate,
            **options,
        )

    with run.autocast():  # it sets the type of the cache: bfloat16 takes half the memory
        rows = min(len(problems) * k, rows_in_memory(run.student, length))
    return checkpoint.within_memory(
        work, rows, fits=run.fits, alone=lambda rows: rows == 1, name="generating rollouts"
    )


def sample_step(run: Run, step: int) -> tuple[list[mopd.Attempt], int, dict[str, float]]:
    """(attempts, retries, seconds by phase) of the rollouts of a step."""
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


def evaluate(run: Run) -> dict:
    """mean@k and pass@k over the held-out problems.

    Every evaluation uses the same random numbers, so two of them differ by the weights alone. Also
    the number of different answers per problem, which falls when training narrows the student, and
    for each row of the data the number of right samples.
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


def due(settings: Settings, step: int, every: int) -> bool:
    return step % every == 0 or step == settings.steps


def recorded(settings: Settings, step: int) -> bool:
    """Whether samples and token view of a step are written to the run's folder.

    So it is for steps that end with an evaluation, and for step 1, which has the weights of
    evaluation 0.
    """
    return step == 1 or due(settings, step, settings.eval_every)


def train_step(run: Run, step: int, abandonable=contextlib.nullcontext):
    """(metrics, attempts, token view) of one step, with the update of student and teacher.

    Inside `abandonable` (checkpoint.Stop) nothing changes that outlives the step. Raises
    FloatingPointError before the update where loss or gradient are not finite, and writes the
    rollouts to the run's folder.
    """
    s, seed, cuts = run.settings, run.settings.seed_of(step), {}
    parts = mopd.Parts() if s.plain else fast_scoring.FAST
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
                max_tokens=max_length(run.teacher.model),
                layout=s.layout,
            )

        def score(micro_tokens):
            view = []
            if recorded(s, step):
                view = report.token_view(
                    run, step, attempts, seed=seed, budget=micro_tokens, seconds=seconds
                )
            # an attempt that ran out of memory has left a part of the gradient
            run.optimizer.zero_grad(set_to_none=True)
            # eval mode, because the sampler used no dropout; but transformers recomputes
            # activations in train mode only
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
                    parts=parts,
                )
            run.student.eval()
            return metrics, view

        # all of weight 1: the token view reads the rollouts of weight 0, too
        every = [dataclasses.replace(a, weight=1.0) for a in attempts]

        def one_at_a_time(micro_tokens):
            batches = parts.microbatches(every, micro_tokens, mopd.student_prompt_ids, run.student)
            return all(len(batch) == 1 for batch in batches)

        (metrics, view), more = checkpoint.within_memory(
            score, s.micro_tokens, fits=run.fits, alone=one_at_a_time, name="scoring tokens"
        )
    lr, grad_norm = s.lr * min(1.0, step / max(1, s.warmup_steps)), None
    # without a scored token the gradient is 0, but AdamW's momentum and the EMA would still move
    if metrics["scored_tokens"]:
        grad_norm = parallel.number(
            torch.nn.utils.clip_grad_norm_(run.student.parameters(), s.grad_clip)
        )
        if not math.isfinite(metrics["loss"]) or not math.isfinite(grad_norm):
            fail(run, step, attempts, metrics["loss"], grad_norm)
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)  # frees memory for the next rollouts
        run.teacher.update(run.student, s.ema_rate)
    record = {
        "step": step,
        **metrics,
        **describe(attempts),
        **cuts,
        "oom_retries": retries + more,
        "grad_norm": grad_norm,
        "lr": lr,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }
    return record, attempts, view


def fail(run: Run, step: int, attempts, loss: float, grad_norm: float):
    """Write the rollouts of a step to the run's folder and raise FloatingPointError."""
    path = run.out / f"failed-step-{step}.jsonl"
    if parallel.is_main():
        path.unlink(missing_ok=True)  # an earlier run may have failed in the same step
    for record in report.sample_records(step, attempts):
        append(path, record)
    fault = FloatingPointError(
        f"the loss is {loss:.4g} and the gradient's norm {grad_norm:.4g}: no update was made; "
        f"the rollouts are in {path}; a resume would come here again, a new run from a "
        "checkpoint's model/ with another --lr need not"
    )
    fault.everywhere = True  # every rank raises it, so only rank 0 prints it
    raise fault


def train(run: Run, stop: checkpoint.Stop) -> None:
    """The loop. A signal raises checkpoint.Abandoned, between two steps or in an unfinished one."""
    s, example, metrics_file = run.settings, None, run.out / "metrics.jsonl"
    past = report.read_records(metrics_file)
    warnings_in = report.monitor(past)

    def evaluate_now():
        with stop.abandonable():
            record = {"step": run.done, **evaluate(run)}
        append(metrics_file, record)
        tqdm.write(
            f"step {run.done:4d}  held-out mean@{record['eval_k']} {record['eval_mean_at_k']:.3f}  "
            f"pass@{record['eval_k']} {record['eval_pass_at_k']:.3f}"
        )

    # evaluation 0, or one that was due when the run was stopped
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
        for line in (report.line_of(metrics), *warnings_in(metrics)):
            tqdm.write(line)
        if recorded(s, step):
            for record in report.sample_records(step, attempts):
                append(run.out / "samples.jsonl", record)
            for record in view:
                append(run.out / "tokens.jsonl", record)
        run.done = step
        if run.held_out and due(s, step, s.eval_every):
            evaluate_now()
        if due(s, step, s.save_every):
            checkpoint.save(run)
    if parallel.is_main():
        report.summarise(run, example)


def main(arguments: list[str] | None = None) -> None:
    """The command line; exits with 2 for errors before the first step, else as run_to_its_end."""
    typed = sys.argv if arguments is None else ["train.py", *arguments]
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # offline, it warns at every retry
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with parallel.together(), contextlib.ExitStack() as held:
        try:
            parallel.join()
            settings = parallel.in_turn(lambda: parse(typed[1:]))
            # the default has a timestamp, which may differ between ranks: use rank 0's
            settings.out = parallel.gather([settings.out])[0]
            out = Path(settings.out)

            def lock():
                held.enter_context(checkpoint.claim(out, resume=settings.resume))

            existed = parallel.agree(os.path.exists(out))
            parallel.by_main(lock if existed else lambda: checkpoint.try_to_write(out))
            run = prepare(settings)
            report.announce(run)
            if run.settings.layout == "auto" and run.settings.steps:
                if parallel.is_main():
                    print("sampling the first step, to measure the teacher on it", flush=True)
                run.first = sample_step(run, 1)
                run.measured = measure.decide(run, run.first[0])
            # create a new folder only now, after all checks have passed
            parallel.by_main(lambda: None if existed else lock())
            parallel.by_main(lambda: checkpoint.begin(run))
        except parallel.REFUSALS as error:
            everywhere = isinstance(error, parallel.Refused)
            if parallel.is_main() or not everywhere:
                print(f"train.py: error: {error}", file=sys.stderr)
            # not after an error of this rank alone: the others are still inside a collective
            if everywhere:
                parallel.leave()
            sys.exit(2)
        except KeyboardInterrupt:
            print("train.py: stopped before its first step; nothing new was saved", file=sys.stderr)
            sys.exit(130)
        status = checkpoint.run_to_its_end(run, train, report.stopped, typed)
    # every rank reaches this line, also after a signal; a fault (1) may be of this rank alone
    if status != 1:
        parallel.leave()
    if status:
        sys.exit(status)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, before)
    main()
