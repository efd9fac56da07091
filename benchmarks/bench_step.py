"""A whole MOPD step at the shape of a real model with random weights: seconds and share of each
phase, tokens a second and, on a GPU, peak memory and model FLOPs utilisation (MFU) of the teacher's
and the student's part.

Float32 weights, an EMA teacher, AdamW, bfloat16 compute on a GPU, contrastive contexts, every
rollout run to the limit; a checksum of the text says which rollouts succeed, so that about half do,
after the math verifier has read them all.

    # on a GPU; 68 GB
    python benchmarks/bench_step.py --shape qwen3-1.7b
    # on a CPU
    python benchmarks/bench_step.py --shape llama-17m --problems 8 --new-tokens 64 --steps 3
"""

import argparse
import contextlib
import functools
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import bench_trl  # noqa: E402
from bench_rollout import SHAPES  # noqa: E402

import mopd  # noqa: E402
from loss import as_head  # noqa: E402
from runtime.fast_rollout import generate  # noqa: E402
from runtime.fast_scoring import FAST  # noqa: E402
from runtime.models import head, max_length  # noqa: E402
from verifiers import Verdict, verify_batch  # noqa: E402


def checksum_verdicts(task, texts, answers, workers):
    verify_batch(task, texts, answers, workers=workers)
    return [
        Verdict(bench_trl.succeeds(t), None, "" if bench_trl.succeeds(t) else "Wrong.")
        for t in texts
    ]


def lengths(attempts, prompt):
    return [len(prompt(a)) + len(a.rollout.ids) for a in attempts]


def flops(model, lengths, completion_tokens):
    """Of one forward pass over rows of these lengths, the output matrix at the completion tokens
    only."""
    layers = [
        m.weight.numel() for m in model.base_model.modules() if isinstance(m, torch.nn.Linear)
    ]
    config, attended = model.config, sum(n * n / 2 for n in lengths)  # causal
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    return (
        2 * sum(layers) * sum(lengths)
        + 4 * attended * width * config.num_hidden_layers
        + 2 * as_head(head(model)).weight.numel() * completion_tokens
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-1.7b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=512)
    parser.add_argument("--micro-tokens", type=int, default=8192)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--steps", type=int, default=3, help="the first is left out")
    parser.add_argument(
        "--peak",
        type=float,
        default=989,
        help="TFLOP/s of the device in bfloat16 (H100, H200: 989)",
    )
    args = parser.parse_args()
    on_gpu = args.device.startswith("cuda")
    config = SHAPES[args.shape]
    bench_trl.VOCABULARY = config.vocab_size
    _, tokenizer = bench_trl.model_and_tokenizer()
    torch.manual_seed(0)
    with torch.device(args.device):
        student = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    student.config.eos_token_id = student.generation_config.eos_token_id = None
    if args.gradient_checkpointing:
        getattr(student, "activation_checkpointing_enable", student.gradient_checkpointing_enable)()
        student.disable_input_require_grads()
    mopd.verify_batch = checksum_verdicts
    teacher = mopd.make_teacher("ema", student, tokenizer)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    autocast = (
        functools.partial(torch.autocast, "cuda", torch.bfloat16)
        if on_gpu
        else contextlib.nullcontext
    )
    rng, rows, metrics = random.Random(0), [], None
    problems = [
        mopd.Problem(
            " ".join(
                f"w{rng.randrange(config.vocab_size - 4)}" for _ in range(rng.randint(60, 100))
            ),
            "1",
            "w1",
            n,
        )
        for n in range(args.problems)
    ]
    print(
        f"{args.shape}, {sum(p.numel() for p in student.parameters()) / 1e6:,.0f}M parameters, "
        f"{torch.cuda.get_device_name() if on_gpu else 'CPU'}, torch {torch.__version__}, "
        f"{args.problems} x {args.rollouts} x {args.new_tokens} tokens, "
        f"micro-batches of {args.micro_tokens}",
        flush=True,
    )
    for step in range(args.steps):
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds, start = {}, time.perf_counter()
        attempts = mopd.sample(
            student,
            tokenizer,
            problems,
            k=args.rollouts,
            task="math",
            seed=step,
            max_new_tokens=args.new_tokens,
            autocast=autocast,
            seconds=seconds,
            generate=generate,
        )
        after_rollouts = torch.cuda.max_memory_allocated() if on_gpu else 0
        for a in attempts:
            a.rollout.stopped = (
                True  # random weights never stop, and a truncated rollout would be no peer
            )
        contexts = time.perf_counter()
        mopd.plan(attempts, method="mopd", seed=step)
        mopd.write_contexts(
            attempts, teacher, peer_tokens=args.new_tokens, max_tokens=max_length(student)
        )
        seconds["contexts"] = time.perf_counter() - contexts
        student.train(args.gradient_checkpointing)
        metrics = mopd.backward(
            student,
            teacher,
            attempts,
            micro_tokens=args.micro_tokens,
            autocast=autocast,
            parts=FAST,
            seconds=seconds,
        )
        student.eval()
        update = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0).item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        teacher.update(student, 0.05)
        if on_gpu:
            torch.cuda.synchronize()
        end = time.perf_counter()
        rows.append({**seconds, "update": end - update, "all": end - start})
        memory = (
            f", peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB "
            f"({after_rollouts / 1e9:.1f} in the rollouts)"
        )
        print(
            f"  step {step}: "
            + ", ".join(f"{k} {v:.2f} s" for k, v in rows[-1].items())
            + (memory if on_gpu else ""),
            flush=True,
        )
    scored = [a for a in attempts if a.weight]
    tokens = sum(len(a.rollout.ids) for a in scored)
    of_head = (
        2 * as_head(head(teacher.model)).weight.numel() * tokens
    )  # the loss multiplies with the teacher's, too
    work = {
        "teacher": flops(teacher.model, lengths(scored, mopd.teacher_prompt_ids), 0),
        "student": 3 * flops(student, lengths(scored, mopd.student_prompt_ids), tokens) + of_head,
    }
    median = {k: statistics.median(r[k] for r in rows[1:] or rows) for k in rows[0]}
    generated = sum(len(a.rollout.ids) for a in attempts)
    print(
        f"step {median['all']:.2f} s: "
        + ", ".join(
            f"{k} {v:.2f} s ({v / median['all']:.0%})" for k, v in median.items() if k != "all"
        )
    )
    print(
        f"{generated / median['all']:,.0f} completion tokens/s in all, "
        f"{generated / median['rollout']:,.0f} in the rollouts; "
        f"{len(scored)} rollouts scored; sampler_gap {metrics['sampler_gap']:.4f}"
    )
    for k, v in work.items() if on_gpu else ():
        print(
            f"{k}: {v / 1e12:,.0f} TFLOP, {v / median[k] / 1e12:,.0f} TFLOP/s, "
            f"MFU {v / median[k] / args.peak / 1e12:.1%}"
        )


if __name__ == "__main__":
    main()
