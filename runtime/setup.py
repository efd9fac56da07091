"""From settings to a run: data, student, teacher and optimizer, loaded and checked."""

import contextlib
import functools
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

import mopd
import tiny
import verifiers
from runtime import checkpoint, data, models, parallel, templates
from runtime.models import load_model
from runtime.templates import layouts_of

# what a resumed run may change
MAY_CHANGE = {
    *("eval_data", "eval_every", "eval_problems", "eval_rollouts", "eval_temperature"),
    *("eval_top_p", "steps", "save_every", "keep", "out", "resume", "force"),
    *("device", "micro_tokens", "gradient_checkpointing"),
    *("prompt_field", "answer_field", "system_field", "skip_bad_rows"),  # the rows are compared
}


@dataclass
class Run:
    """What a run consists of, made by `prepare`."""

    settings: object  # train.Settings
    out: Path
    student: torch.nn.Module
    tokenizer: object
    teacher: mopd.Teacher
    optimizer: torch.optim.Optimizer
    train: list[mopd.Problem]
    held_out: list[mopd.Problem]
    inputs: dict  # checksums of data, descriptions of models
    autocast: object
    done: int = 0  # steps taken
    saved: int = 0  # steps in the last checkpoint
    fits: dict = field(default_factory=dict)  # see checkpoint.within_memory
    first: tuple | None = None  # rollouts of step 1, if the teacher was measured on them
    measured: dict | None = None  # that measurement, see runtime/measure.py


def load(settings):
    """(student, tokenizer, teacher, training problems, held-out problems, inputs).

    Raises ValueError or OSError for data and models that cannot be used.
    """
    s, out, held_out, external, bad_rows = settings, Path(settings.out), [], (), {}
    for name in (s.model, s.teacher):
        if name not in ("tiny", *mopd.COPIES):
            models.refuse_place(name)  # before the data is read
    if s.model == "tiny":
        train, held_out = (
            [data.read_row(row, s.task, n) for n, row in enumerate(rows)]
            for rows in tiny.problems(s.task, seed=s.seed)
        )
        try:
            student, tokenizer = tiny.build(
                s.task,
                instruction=verifiers.INSTRUCTIONS[s.task],
                verify=verifiers.verify,
                folder=out.parent,
                device=s.device,
            )
        except OSError as error:
            raise ValueError(
                f"the warmed-up tiny student is kept in {out.parent}, for later runs: {error} "
                "(run in a folder that can be written, or give train.py --out DIR/NAME)"
            ) from None
    else:
        options = {f: getattr(s, f) for f in ("prompt_field", "answer_field", "system_field")}
        options |= {"skip_bad_rows": s.skip_bad_rows, "counts": bad_rows}
        train = data.read_problems(s.data, s.task, **options)
        if s.eval_data:
            held_out = data.read_problems(s.eval_data, s.task, needs_system=False, **options)
            data.say_overlap(train, held_out)
        student, tokenizer = load_model(s.model)
    inputs = {
        "data": checkpoint.checksum_of_rows(train),
        "eval_data": checkpoint.checksum_of_rows(held_out),
        "model": checkpoint.describe_model(student, tokenizer, weights=False),
    }
    if bad_rows:
        inputs["bad_rows"] = bad_rows
    limits = (student, tokenizer, s.max_new_tokens)
    train = data.fitting(train, *limits, s.data or "the tiny world")
    if s.eval_data or held_out:
        held_out = data.fitting(held_out, *limits, s.eval_data or "the tiny world")
        held_out = random.Random(s.seed).sample(held_out, min(s.eval_problems, len(held_out)))
    if len(train) < s.problems and s.steps:
        raise ValueError(
            f"{len(train)} usable training rows are fewer than --problems {s.problems}"
        )
    if s.teaches and s.teacher not in mopd.COPIES:
        external = load_model(s.teacher)
        inputs["teacher"] = checkpoint.describe_model(*external)
        external[0].to(getattr(torch, s.dtype))  # not trained: no float32 master weights
    if s.gradient_checkpointing:
        models.recompute_activations(student)
    teacher = mopd.make_teacher(
        s.teacher if s.teaches else "current", student, tokenizer, *external
    )
    if s.layout == "turns" and "turns" not in layouts_of(teacher.tokenizer):
        raise ValueError(
            "--layout turns: the chat template has no place for earlier turns of the assistant; "
            "use turn"
        )
    return student, tokenizer, teacher, train, held_out, inputs


def prepare(settings) -> Run:
    """Load and check everything before any work; errors as in `load` and checkpoint.load."""
    s, kind, start = settings, torch.device(settings.device).type, time.perf_counter()
    if s.resume:
        contents = {"data", "eval_data", "model"}
        contents |= {"teacher"} if s.teaches and s.teacher not in mopd.COPIES else set()
        parallel.by_main(lambda: checkpoint.check_settings(s, MAY_CHANGE, contents))
    templates.begin(s.template_variables, checkpoint.date_of(Path(s.out)) if s.resume else None)
    student, tokenizer, teacher, train, held_out, inputs = parallel.in_turn(lambda: load(s))
    for model in (student, teacher.model):
        parallel.shard(model, device=s.device, dtype=s.dtype)
    # fused: on a GPU the default holds temporary copies of all weights, on a CPU it is a slow loop
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=s.lr, weight_decay=s.weight_decay, fused=kind in ("cpu", "cuda")
    )
    autocast = contextlib.nullcontext
    if s.dtype == "bfloat16":
        autocast = functools.partial(torch.autocast, kind, torch.bfloat16)
    models.check_run(s, student, teacher, autocast, time.perf_counter() - start)
    run = Run(
        s, Path(s.out), student, tokenizer, teacher, optimizer, train, held_out, inputs, autocast
    )
    if s.resume:
        checkpoint.load(run, MAY_CHANGE)
    return run
