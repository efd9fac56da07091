r"""Time and extra memory of the chunked divergence against the naive one, Liger's and the bare
matrix products.

Needs torch, and liger-kernel (benchmarks/requirements.txt) where Liger is to be measured. Every
ratio comes from pairs in one process, forward and backward, median and range; memory, on a CPU, in
a fresh process per contender. Measure on an idle machine: other load hits many short parallel
operations, such as ours, hardest (OMP_NUM_THREADS=1 avoids that).

    python benchmarks/bench_loss.py             # two minutes or more on a CPU
    python benchmarks/bench_loss.py --plain     # loss.py, not runtime/fast_loss.py
    python benchmarks/bench_loss.py --device cuda --dtype bfloat16 --tokens 8192 --hidden 2048 \
        --vocab 151936
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import loss as plain_loss
from runtime import fast_loss


def make_inputs(a):
    """A student, and a teacher that is the same head on disturbed hidden states, as in
    self-distillation."""
    torch.manual_seed(0)
    kind = dict(device=a.device, dtype=getattr(torch, a.dtype))
    hidden = torch.empty(a.tokens, a.hidden, **kind).normal_().requires_grad_()
    head = torch.empty(a.vocab, a.hidden, **kind).normal_(std=2 * a.hidden**-0.5).requires_grad_()
    teacher_hidden = hidden.detach() + torch.empty(a.tokens, a.hidden, **kind).normal_(std=0.3)
    return (
        hidden,
        head,
        teacher_hidden,
        head.detach().clone(),
        torch.full((a.tokens,), 1 / a.tokens, device=a.device),
    )


def run_ours(a, inputs, **options):
    distill_loss = plain_loss.distill_loss if a.plain else fast_loss.distill_loss
    distill_loss(*inputs, chunk_size=a.chunk_size, **options).loss.backward()


def run_naive(a, inputs, **options):
    plain_loss.naive_distill_loss(*inputs, **options).loss.backward()


def run_liger(a, inputs, *, compiled):
    """Liger's class as it is: JSD of weight 1/2, no hard loss (it computes one all the same)."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    hidden, head, teacher_hidden, teacher_head, _ = inputs
    labels = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, chunk_size=a.chunk_size, compiled=compiled
    )
    loss(hidden, head, teacher_hidden, teacher_head, labels).backward()


@torch.no_grad()
def run_products(a, inputs, buffers):
    """Both logits and both gradients, 1,024 tokens at a time into reused buffers: what no such loss
    can do without."""
    hidden, head, teacher_hidden, teacher_head, _ = inputs
    if not buffers:
        buffers.update(
            {k: head.new_empty(1024, len(head)) for k in "st"}, head=head.new_empty(head.shape)
        )
    for h, t in zip(hidden.split(1024), teacher_hidden.split(1024), strict=True):
        s = torch.mm(h, head.T, out=buffers["s"][: len(h)])
        torch.mm(t, teacher_head.T, out=buffers["t"][: len(h)])
        s @ head
        torch.mm(s.T, h, out=buffers["head"])


CONTENDERS = {
    "ours": run_ours,
    "naive": run_naive,
    "liger": partial(run_liger, compiled=True),
    "liger-eager": partial(run_liger, compiled=False),
    "products": partial(run_products, buffers={}),
    "ours-top-k": lambda a, x: run_ours(a, x, top_k=a.top_k),
    "naive-top-k": lambda a, x: run_naive(a, x, top_k=a.top_k),
}
PAIRS = [
    ("ours", "products"),
    ("ours", "liger"),
    ("ours", "liger-eager"),
    ("ours", "naive"),
    ("ours-top-k", "ours"),
    ("ours-top-k", "naive-top-k"),
]


def time_once(a, name, inputs):
    """Seconds of one forward and backward, gradients freed outside the measurement."""
    inputs[0].grad = inputs[1].grad = None
    sync = torch.cuda.synchronize if a.device == "cuda" else lambda: None
    sync()
    start = time.perf_counter()
    CONTENDERS[name](a, inputs)
    sync()
    return time.perf_counter() - start


def compare(a, ours, other, inputs):
    """Median seconds of both and the median and range of the ratios of alternating pairs."""
    for name in (ours, other):
        time_once(a, name, inputs)  # warm-up, and compilation where there is any
    pairs = []
    for i in range(a.pairs):
        order = (ours, other) if i % 2 else (other, ours)  # neither always runs second
        seconds = {name: time_once(a, name, inputs) for name in order}
        pairs.append((seconds[ours], seconds[other]))
    ratios = sorted(y / x for x, y in pairs)
    mine, theirs = (statistics.median(x) for x in zip(*pairs, strict=True))
    print(
        f"{ours:>11} {mine:8.3f} s   {other:>11} {theirs:8.3f} s   "
        f"{other} / {ours} = {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        flush=True,
    )


def extra_bytes(a, name):
    """Peak memory of one forward and backward beyond the inputs, gradients included; on a CPU for a
    fresh process."""
    inputs = make_inputs(a)
    if a.device == "cuda":
        time_once(a, name, inputs)  # compiles what there is to compile
        inputs[0].grad = inputs[1].grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        time_once(a, name, inputs)
        return torch.cuda.max_memory_allocated() - before
    small = argparse.Namespace(**vars(a) | dict(tokens=4, hidden=8, vocab=256))
    CONTENDERS[name](small, make_inputs(small))  # libraries load outside the measurement
    before = peak_resident_bytes()
    CONTENDERS[name](a, inputs)
    return peak_resident_bytes() - before


def peak_resident_bytes() -> int:
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure_memory(a, name):
    """`extra_bytes`, or None where it fails. A GPU's allocator knows its peak; of a CPU the whole
    process tells."""
    if a.device == "cuda":
        try:
            return extra_bytes(a, name)
        except torch.OutOfMemoryError as error:
            print(f"{name:>11} failed: {error}", flush=True)
            return None
    out = subprocess.run(
        [sys.executable, *sys.argv, "--memory-of", name], capture_output=True, text=True
    )
    if out.returncode:
        print(f"{name:>11} failed: {out.stderr.strip().splitlines()[-1]}", flush=True)
        return None
    return json.loads(out.stdout.splitlines()[-1])


def read_arguments():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--device", default="cpu")
    p.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    p.add_argument("--tokens", type=int, default=2048)
    p.add_argument("--hidden", type=int, default=256)
    p.add_argument("--vocab", type=int, default=49152)
    p.add_argument("--top-k", type=int, default=100)
    p.add_argument(
        "--chunk-size", type=int, help="of ours and Liger's (default 256 on a CPU, 1024 on a GPU)"
    )
    p.add_argument("--pairs", type=int, default=5)
    p.add_argument("--plain", action="store_true", help="ours is loss.py, not runtime/fast_loss.py")
    p.add_argument(
        "--only",
        nargs="+",
        choices=list(CONTENDERS),
        default=list(CONTENDERS),
        help="who to measure",
    )
    p.add_argument("--memory-of", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    a = p.parse_args()
    a.chunk_size = a.chunk_size or (1024 if a.device == "cuda" else 256)
    return a


def main():
    a = read_arguments()
    if a.memory_of:
        print(json.dumps(extra_bytes(a, a.memory_of)))
        return
    names = set(a.only)
    try:
        import liger_kernel.chunked_loss  # noqa: F401
    except ImportError as error:
        print(f"Liger is left out ({error}): pip install -r benchmarks/requirements.txt")
        names -= {"liger", "liger-eager"}
    where = (
        torch.cuda.get_device_name()
        if a.device == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    print(
        f"{a.tokens} tokens, hidden {a.hidden}, vocabulary {a.vocab}, {a.dtype}, "
        f"chunks of {a.chunk_size}, {where}, torch {torch.__version__}; "
        f"{'plain' if a.plain else 'fast'} loss, jsd, forward + backward, "
        f"{a.pairs} pairs: median (range)"
    )
    extra = {}
    for name in CONTENDERS:
        if name in names - {"products"} and (size := measure_memory(a, name)):
            extra[name] = size
    for name, size in extra.items():
        rival = extra.get("ours-top-k" if name.endswith("top-k") else "ours")
        print(
            f"{name:>11} {size / 1e6:8.0f} MB extra"
            + (f", {size / rival:.1f} times ours" if rival else "")
        )
    inputs = make_inputs(a)
    for ours, other in PAIRS:
        if {ours, other} <= names:
            compare(a, ours, other, inputs)


if __name__ == "__main__":
    main()
