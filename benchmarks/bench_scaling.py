"""How a whole MOPD step grows with rollouts per problem, completion length and vocabulary: time and
peak memory.

A Llama of random float32 weights (hidden 128, 4 layers), 4 problems of 64 tokens, contrastive
contexts, EMA teacher, every rollout run to the limit. One quantity varies at a time around K 8, 64
tokens, vocabulary 32,768; each row runs in a process of its own. Memory is the peak resident set
during the steps above what was resident before the first; the column "loss" is the part of it that
the chunked divergence allocates: two chunk x V buffers and the head's gradient.

    python benchmarks/bench_scaling.py                      # about 15 minutes on two CPU cores
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import bench_trl  # noqa: E402

import mopd  # noqa: E402
from runtime.fast_rollout import generate  # noqa: E402
from runtime.fast_scoring import FAST  # noqa: E402
from verifiers import Verdict  # noqa: E402

BASE = dict(rollouts=8, length=64, vocabulary=32768)
VARIED = dict(
    rollouts=(4, 8, 16, 32),
    length=(64, 128, 256, 512, 1024),
    vocabulary=(32768, 65536, 98304, 151936),
)
PROBLEMS, PROMPT, HIDDEN = 4, 64, 128


def run(rollouts, length, vocabulary, steps):
    """(seconds by phase of a step, median; peak memory in MB) of one setting."""
    bench_trl.VOCABULARY = vocabulary
    _, tokenizer = bench_trl.model_and_tokenizer()
    torch.manual_seed(0)
    student = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=HIDDEN,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=16384,
            eos_token_id=0,
            bos_token_id=None,
            pad_token_id=0,
            tie_word_embeddings=True,
        )
    )
    mopd.verify_batch = lambda task, texts, answers, workers: [
        Verdict(bench_trl.succeeds(t), None, "" if bench_trl.succeeds(t) else "Wrong.")
        for t in texts
    ]
    teacher, rng = mopd.make_teacher("ema", student.eval(), tokenizer), random.Random(0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    problems = [
        mopd.Problem(
            " ".join(f"w{rng.randrange(vocabulary - 4)}" for _ in range(PROMPT)), None, "w1", n
        )
        for n in range(PROBLEMS)
    ]
    rows, before = [], bench_trl.reset_peak()
    for step in range(steps):
        seconds, start = {}, time.perf_counter()
        attempts = mopd.sample(
            student,
            tokenizer,
            problems,
            k=rollouts,
            task="math",
            seed=step,
            max_new_tokens=length,
            seconds=seconds,
            generate=generate,
        )
        for a in attempts:
            a.rollout.stopped = (
                True  # random weights never stop, and a truncated rollout would be no peer
            )
        mopd.plan(attempts, method="mopd", seed=step)
        mopd.write_contexts(attempts, teacher, peer_tokens=length, max_tokens=16384)
        optimizer.zero_grad(set_to_none=True)
        mopd.backward(student, teacher, attempts, seconds=seconds, parts=FAST)
        optimizer.step()
        teacher.update(student, 0.05)
        rows.append({**seconds, "all": time.perf_counter() - start})
    return {k: statistics.median(r[k] for r in rows[1:]) for k in rows[0]}, bench_trl.peak_memory()[
        1
    ] - before


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--one", help="run one setting, given as JSON, in this process")
    parser.add_argument(
        "--steps", type=int, default=3, help="steps of each row, the first of which is left out"
    )
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run(**json.loads(options.one), steps=options.steps)))
        return
    print(
        "| varied | K | tokens | vocabulary | step, s | rollout | teacher | student "
        "| memory, MB | loss, MB |\n" + "| --- " * 10 + "|"
    )
    for name, values in VARIED.items():
        for value in values:
            setting = {**BASE, name: value}
            done = subprocess.run(
                [
                    sys.executable,
                    __file__,
                    "--steps",
                    str(options.steps),
                    "--one",
                    json.dumps(setting),
                ],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                sys.exit(done.stderr)
            seconds, memory = json.loads(done.stdout.splitlines()[-1])
            loss = setting["vocabulary"] * (2 * 256 + HIDDEN) * 4 / 1e6
            print(
                f"| {name} | {' | '.join(map(str, setting.values()))} | {seconds['all']:.2f} | "
                f"{seconds['rollout']:.2f} | {seconds['teacher']:.2f} | {seconds['student']:.2f} | "
                f"{memory:.0f} | {loss:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
