"""Time the sampler against `model.generate(do_sample=True, num_return_sequences=K)`.

Same random weights, same prompts, same sampling law (full softmax, temperature 1), alternating in
one process. The sampler is runtime/fast_rollout.py, or with --plain rollout.py.

Two workloads: every rollout runs to the limit, and lengths vary (geometric, mean a third of the
limit). Random weights give no natural stop, so the second makes a random share of the vocabulary
stop tokens, for both sides: the mass of that share is the chance to stop at each token. Medians
over the pairs; the ratio is the median of the pairs' ratios with its range. Tokens a second count
what the rollouts hold, stop token included.

    python benchmarks/bench_rollout.py  # CPU: Llama, hidden 256, 6 layers, 8 x 8 x 64 tokens
    python benchmarks/bench_rollout.py --shape qwen3-1.7b --prompts 32 --new-tokens 512   # a GPU
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import rollout
from runtime import fast_rollout

SHAPES = {
    "llama-17m": LlamaConfig(
        vocab_size=49152,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    ),
    **{
        f"qwen3-{name}": Qwen3Config(
            vocab_size=151936,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=40960,
            tie_word_embeddings=name != "8b",
        )
        for name, hidden, inner, layers, heads in (
            ("0.6b", 1024, 3072, 28, 16),
            ("1.7b", 2048, 6144, 28, 16),
            ("4b", 2560, 9728, 36, 32),
            ("8b", 4096, 12288, 36, 32),
        )
    },
}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-17m")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        default=80,
        help="mean prompt length; lengths vary by a quarter",
    )
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--lengths", choices=("limit", "geometric", "both"), default="both")
    parser.add_argument(
        "--plain", action="store_true", help="time rollout.py, not the fast sampler"
    )
    parser.add_argument(
        "--bandwidth", type=float, default=3350, help="GB/s of the GPU (H100 SXM 3350, H200 4800)"
    )
    return parser.parse_args()


def run_ours(model, prompts, args, stops, seed):
    sampler = rollout if args.plain else fast_rollout
    groups = sampler.generate(
        model, prompts, args.rollouts, max_new_tokens=args.new_tokens, stop_ids=stops, seed=seed
    )
    return [len(r.ids) for group in groups for r in group]


def run_theirs(model, prompts, args, stops, seed):
    torch.manual_seed(seed)
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=args.device)
    mask = torch.tensor(
        [[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=args.device
    )
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            num_return_sequences=args.rollouts,
            max_new_tokens=args.new_tokens,
            eos_token_id=stops or None,
            pad_token_id=0,
        )[:, longest:].cpu()
    stop = torch.isin(out, torch.tensor(stops))
    return torch.where(stop.any(1), stop.int().argmax(1) + 1, args.new_tokens).tolist()


def timed(run, *args):
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    lengths = run(*args)
    return time.perf_counter() - start, lengths


def bandwidth_seconds(model, prompts, lengths, args):
    """Seconds to read the weights and each living row's cache once per token, at --bandwidth."""
    config, size = model.config, model.dtype.itemsize
    weights = sum(p.numel() for p in model.parameters()) * size
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * size
    starts = [len(p) for p in prompts for _ in range(args.rollouts)]
    cache = sum(
        per_token * (n * start + n * (n + 1) // 2) for start, n in zip(starts, lengths, strict=True)
    )
    return (weights * max(lengths) + cache) / (args.bandwidth * 1e9)


def compare(model, prompts, args, stops, title):
    pairs = []
    for pair in range(args.pairs + 1):  # the first pair warms up and is dropped
        ours, lengths = timed(run_ours, model, prompts, args, stops, pair)
        theirs, their_lengths = timed(run_theirs, model, prompts, args, stops, pair)
        pairs.append((ours, theirs, sum(lengths), sum(their_lengths)))
        print(f"  pair {pair}: {ours:.2f} s and {theirs:.2f} s", flush=True)
    pairs, median = pairs[1:], statistics.median
    ratios = sorted(theirs / ours for ours, theirs, _, _ in pairs)
    print(f"{title}: ratio {median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    ours_name = "rollout.py" if args.plain else "runtime/fast_rollout.py"
    for side, name in enumerate((ours_name, "model.generate")):
        seconds = median(p[side] for p in pairs)
        speed = median(p[2 + side] / p[side] for p in pairs)
        length = sum(p[2 + side] for p in pairs) / len(pairs) / len(lengths)
        print(f"  {name} {seconds:.2f} s, {speed:,.0f} tokens/s, mean length {length:.1f}")
    if args.device == "cuda":
        share = bandwidth_seconds(model, prompts, lengths, args) / ours
        print(f"  {share:.0%} of what {args.bandwidth:.0f} GB/s allow (see `bandwidth_seconds`)")


def main():
    args = parse_args()
    torch.manual_seed(0)
    config = SHAPES[args.shape]
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
    draw = random.Random(0)
    low, high = args.prompt_tokens * 3 // 4, args.prompt_tokens * 5 // 4
    prompts = [
        [draw.randrange(config.vocab_size) for _ in range(draw.randint(low, high))]
        for _ in range(args.prompts)
    ]
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{args.shape}, {parameters / 1e6:.0f}M parameters, {dtype}, {args.device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}: {args.prompts} prompts of "
        f"{low} to {high} tokens x {args.rollouts} rollouts x {args.new_tokens} tokens, "
        f"{args.pairs} pairs"
    )
    if args.lengths != "geometric":
        compare(model, prompts, args, [], "all to the limit")
    if args.lengths != "limit":
        hazard = 3 / args.new_tokens
        stops = sorted(draw.sample(range(config.vocab_size), round(hazard * config.vocab_size)))
        compare(model, prompts, args, stops, "geometric lengths")


if __name__ == "__main__":
    main()
