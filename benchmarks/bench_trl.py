"""Time whole training steps against TRL's SDPOTrainer: same model, prompts, rewards, sampling law
and algorithm (SDPO).

Needs trl (requirements.txt here). The workload: a Llama of 17M parameters with random float32
weights, 8 prompts of 60 to 120 tokens x 8 rollouts x 64 tokens, reward by a checksum of the text
(half of them succeed), a teacher (EMA 0.05) that reads one success, the student's top 100 tokens
and the rest compared by JSD, importance weights clipped at 2, AdamW. Micro-batches are of equal
size: 8 rows of TRL's, 2,048 tokens of ours. Each side runs in fresh processes, alternating; the
first step of each is left out. Memory is the peak resident set during the steps above what was
resident before the first.

    python benchmarks/bench_trl.py       # 5 pairs, about 15 minutes on two CPU cores
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

VOCABULARY, PROMPTS, ROLLOUTS, NEW_TOKENS = 49152, 8, 8, 64
TOP_K, IS_CLIP, LR, EMA = 100, 2.0, 1e-5, 0.05
MICRO_TOKENS = 2048  # TRL's 8 rows are about as many: 8 x (124 to 184) tokens, and contexts
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }} <|end|> {% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def model_and_tokenizer():
    """Words w0, w1, ... are the vocabulary, so that any completion is read back as the tokens it
    was."""
    words = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    words += [f"w{n}" for n in range(VOCABULARY - len(words))]
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>", chat_template=CHAT
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config), tokenizer


def prompts(steps):
    rng = random.Random(0)
    return [
        " ".join(f"w{rng.randrange(VOCABULARY - 4)}" for _ in range(rng.randint(60, 120)))
        for _ in range(steps * PROMPTS)
    ]


def succeeds(text):
    return zlib.crc32(text.encode()) % 2 == 1


def peak_memory():
    """(MB resident now, MB resident at the highest since the last `reset_peak`)."""
    status = Path("/proc/self/status").read_text()
    return [
        int(re.search(rf"{name}:\s+(\d+)", status)[1]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM")
    ]


def reset_peak():
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()[0]


def run_ours(steps, top_k):
    import mopd
    from runtime.fast_rollout import generate
    from runtime.fast_scoring import FAST
    from verifiers import Verdict

    mopd.verify_batch = lambda task, texts, answers, workers: [
        Verdict(succeeds(t), None, "" if succeeds(t) else "Wrong.") for t in texts
    ]
    student, tokenizer = model_and_tokenizer()
    teacher = mopd.make_teacher("ema", student.eval(), tokenizer)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR, weight_decay=0.0, fused=True)
    problems = [mopd.Problem(text, None, "w1", n) for n, text in enumerate(prompts(steps))]
    times, before = [], reset_peak()
    for step in range(steps):
        start = time.perf_counter()
        attempts = mopd.sample(
            student,
            tokenizer,
            problems[step * PROMPTS : (step + 1) * PROMPTS],
            k=ROLLOUTS,
            task="math",
            seed=step,
            max_new_tokens=NEW_TOKENS,
            generate=generate,
        )
        for a in attempts:
            a.rollout.stopped = (
                True  # random weights never stop, and a truncated rollout would be no peer
            )
        mopd.plan(attempts, method="sdpo", seed=step)
        mopd.write_contexts(attempts, teacher, peer_tokens=NEW_TOKENS, max_tokens=2048)
        optimizer.zero_grad(set_to_none=True)
        mopd.backward(
            student,
            teacher,
            attempts,
            top_k=top_k,
            is_clip=IS_CLIP,
            micro_tokens=MICRO_TOKENS,
            parts=FAST,
        )
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        teacher.update(student, EMA)
        times.append(time.perf_counter() - start)
    return times, peak_memory()[1] - before


def run_trl(steps, batch):
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    class Clock(TrainerCallback):
        times, before = [], 0.0

        def on_step_begin(self, args, state, control, **kwargs):
            if not self.times:
                self.before = reset_peak()
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            self.times.append(time.perf_counter() - self.start)

    def reward(completions, **kwargs):
        return [float(succeeds(completion[0]["content"])) for completion in completions]

    scratch = tempfile.TemporaryDirectory()
    rows = [
        {"prompt": [{"role": "system", "content": "w1"}, {"role": "user", "content": text}]}
        for text in prompts(steps)
    ]
    folder = scratch.name
    model, tokenizer = model_and_tokenizer()
    model.save_pretrained(folder)  # the trainer loads its EMA teacher from a folder
    config = SDPOConfig(
        output_dir=folder,
        model_init_kwargs={"dtype": "float32"},
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        max_steps=steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=PROMPTS * ROLLOUTS // batch,
        num_generations=ROLLOUTS,
        max_completion_length=NEW_TOKENS,
        learning_rate=LR,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        distillation_mode="topk_logits",
        distillation_topk=TOP_K,
        distillation_add_tail=True,
        distillation_alpha=0.5,
        distillation_is_clip=IS_CLIP,
        teacher_model_kind="ema",
        teacher_update_rate=EMA,
        shuffle_dataset=False,
    )
    clock = Clock()
    SDPOTrainer(
        model=folder,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    ).train()
    return clock.times, peak_memory()[1] - clock.before


SIDES = {
    "ours": lambda steps: run_ours(steps, TOP_K),
    "ours-full": lambda steps: run_ours(steps, None),
    "trl-8": lambda steps: run_trl(steps, 8),
    "trl-64": lambda steps: run_trl(steps, 64),
}


def measure(side, steps):
    done = subprocess.run(
        [sys.executable, __file__, "--side", side, "--steps", str(steps)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--side", choices=SIDES, help="run one side in this process and print its figures"
    )
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["ours", "ours-full", "trl-8"])
    parser.add_argument(
        "--steps", type=int, default=3, help="steps of each process, the first of which is left out"
    )
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    if options.side:
        times, memory = SIDES[options.side](options.steps)
        print(json.dumps({"seconds": statistics.median(times[1:]), "memory": memory}))
        return
    rounds = []
    for _ in range(options.pairs):
        rounds.append({side: measure(side, options.steps) for side in options.sides})
        print(
            "  ".join(
                f"{side} {r['seconds']:.1f} s {r['memory']:.0f} MB"
                for side, r in rounds[-1].items()
            ),
            flush=True,
        )
    for theirs in (side for side in options.sides if side.startswith("trl")):
        for ours in (side for side in options.sides if side.startswith("ours")):
            ratios = sorted(r[theirs]["seconds"] / r[ours]["seconds"] for r in rounds)
            memory = statistics.median(r[theirs]["memory"] / r[ours]["memory"] for r in rounds)
            print(
                f"{theirs} / {ours}: time {statistics.median(ratios):.2f} "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f}), memory {memory:.2f}"
            )


if __name__ == "__main__":
    main()
