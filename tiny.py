"""The embedded default: four made-up worlds, and a tiny student that learns in about a minute how
to use peers.

Needs torch, transformers, tokenizers and peer_context (the warm-up reads the real teacher prompt);
knows nothing of the training loop, which treats the tiny student like any Hub model: an ordinary
LlamaForCausalLM with an ordinary fast tokenizer and chat template, whose answers are read by the
real verifiers.

The world: a problem uses a made-up word (one of 24) that means one of 10 rules. In the warm-up
every example gives the word a fresh random meaning, so without peers the student can only guess
(right about 1 time in 10), and with peers it learns to infer: a success names the rule, a failure
rules one out. The warm-up target is the exact posterior over the rules given the peers. Then a
secret table, fixed by world and seed, gives every word its meaning, and training must discover it
by trial and error. The rule is named first and everything after it follows from it by copying: a
teacher that could copy the answer behind a wrong start would teach the student to contradict
itself, and a student that has to compute (we tried sums and products in one token) forgets, during
training, the results that training does not show.

    model, tokenizer = build("math", instruction=verifiers.INSTRUCTIONS["math"],
    verify=verifiers.verify, folder="runs") train_rows, eval_rows = problems("math", seed=0)
    # rows as in any data file: prompt, answer
"""

import functools
import hashlib
import json
import math
import os
import random
import re
import shutil
from fractions import Fraction
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import peer_context

WORDS = (
    "blick dax fep gorp kiv lorch mib nurk pog quib rell smee tove vash wug yent zib "
    "croll drib flim glon plex spiv trab"
).split()
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
END = "<|end|>"
SMALL = dict(
    hidden_size=128,
    intermediate_size=320,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
)
# the layout of peers that it learns to read
WARM_UP = dict(steps=500, batch=48, lr=3e-3, layout="turn")
PEER_WEIGHT = 0.3


# --- the worlds: names of the rules, problem, completion, answer ---

RULES = {
    "math": {
        "the sum": ("{a} + {b}", lambda a, b: a + b),
        "the difference": ("{a} - {b}", lambda a, b: a - b),
        "the opposite difference": ("{b} - {a}", lambda a, b: b - a),
        "the product": (r"{a} \cdot {b}", lambda a, b: a * b),
        "the quotient": (r"\frac{{{a}}}{{{b}}}", Fraction),
        "the inverse quotient": (r"\frac{{{b}}}{{{a}}}", lambda a, b: Fraction(b, a)),
        "the average": (r"\frac{{{a} + {b}}}{{2}}", lambda a, b: Fraction(a + b, 2)),
        "twice the sum": ("2({a} + {b})", lambda a, b: 2 * (a + b)),
        "the first squared": ("{a}^2", lambda a, b: a * a),
        "the second squared": ("{b}^2", lambda a, b: b * b),
    },
    "code": {
        "x + {c}": lambda x, c: x + c,
        "x - {c}": lambda x, c: x - c,
        "x * {c}": lambda x, c: x * c,
        "x // {c}": lambda x, c: x // c,
        "x % {c}": lambda x, c: x % c,
        "{c} - x": lambda x, c: c - x,
        "max(x, {c})": max,
        "min(x, {c})": min,
        "x * x + {c}": lambda x, c: x * x + c,
        "x * x - {c}": lambda x, c: x * x - c,
    },
    "science": {
        name: None for name in "acid base metal salt gas glass oil sugar protein mineral".split()
    },
    "tool": {
        name: None
        for name in "archive copy delete email lock print rename share tag upload".split()
    },
}
LETTERS = dict(zip(RULES["science"], "ABCDEFGHIJ"))


@functools.lru_cache(maxsize=None)
def operands(task) -> tuple[list, list]:
    """(for training, for evaluation): disjoint operands of the problems, the same for every seed."""
    rng = random.Random(f"operands {task}")
    if task == "math":
        every = [(a, b) for a in range(2, 20) for b in range(2, 20) if a != b]
    else:
        every = [(n,) for n in range(2, 100)]
    rng.shuffle(every)
    cut = len(every) * 3 // 4
    return every[:cut], every[cut:]


def problem(task, word, values) -> str:
    """The text of one problem."""
    if task == "math":
        return f"Compute {values[0]} {word} {values[1]}."
    if task == "code":
        return f"Write a Python function solve(x) that returns x {word} {values[0]}."
    if task == "science":
        options = "".join(f"\n{letter}: {name}" for name, letter in LETTERS.items())
        return f"What is {word} in sample {values[0]} made of?{options}"
    return f"Use the right tool to {word} item {values[0]}."


def completion(task, word, rule, values) -> str:
    """What a student that believes `word` means `rule` answers: the rule first, then what follows
    from it.
    """
    if task == "math":
        result = RULES["math"][rule][0].format(a=values[0], b=values[1])
        return f"{word} means {rule}. The answer is \\boxed{{{result}}}."
    if task == "code":
        return f"{word} means this.\n```python\ndef solve(x):\n    return {rule.format(c=values[0])}\n```"
    if task == "science":
        return f"<reasoning>\n{word} is made of {rule}.\n</reasoning>\n<answer>\n{LETTERS[rule]}\n</answer>"
    return (
        f'Thought: to {word} is to {rule}.\nAction: {rule}\nAction Input: {{"item": {values[0]}}}'
    )


def outcome(task, rule, values):
    """What the verifier can see of a rule on these operands: rules of the same outcome are right or
    wrong together.
    """
    if task == "math":
        return RULES["math"][rule][1](*values)
    if task == "code":
        return tuple(RULES["code"][rule](x, values[0]) for x in probes(values[0]))
    return rule


def answer(task, rule, values):
    """The gold answer in the form that the verifier reads."""
    if task == "math":
        return str(outcome(task, rule, values))
    if task == "code":
        tests = [
            {"input": str(x), "output": str(y)}
            for x, y in zip(probes(values[0]), outcome(task, rule, values))
        ]
        return {"type": "functional", "entry_point": "solve", "tests": tests}
    if task == "science":
        return LETTERS[rule]
    return [{"Action": rule, "Action_Input": json.dumps({"item": values[0]})}]


@functools.lru_cache(maxsize=None)
def probes(c) -> tuple[int, ...]:
    """Test inputs of the code world. On the first one all ten rules differ, so that the first test
    settles it.
    """
    settles = next(
        x
        for x in range(c + 1, 10 * c)
        if len({rule(x, c) for rule in RULES["code"].values()}) == 10
    )
    return settles, 2 * c + 1, c - 1


def secret_table(task, seed) -> dict[str, str]:
    """The meaning of every word: what training has to find out."""
    rng = random.Random(f"secret {task} {seed}")
    return {word: rng.choice(list(RULES[task])) for word in WORDS}


def problems(task, *, seed=0) -> tuple[list[dict], list[dict]]:
    """(training rows, evaluation rows) under the secret table; evaluation uses operands that
    training never shows.
    """
    table, rng = secret_table(task, seed), random.Random(f"order {task} {seed}")
    sets = []
    for values in operands(task):
        rows = [
            {
                "prompt": problem(task, word, v),
                "answer": answer(task, table[word], v),
                "system": None,
            }
            for word in WORDS
            for v in values
        ]
        rng.shuffle(rows)
        sets.append(rows)
    return tuple(sets)


# --- the tokenizer: bytes, plus one token for every word and fixed sentence ---


def build_tokenizer(task, instruction, verify) -> PreTrainedTokenizerFast:
    """Byte-level (any text has ids), with single tokens for words, rules, numbers and the world's
    fixed sentences.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: n for n, c in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    fixed = [
        peer_context.SUCCESS,
        peer_context.ANOTHER_SUCCESS,
        peer_context.FAILURE,
        peer_context.FEEDBACK,
        peer_context.INSTRUCTION,
        instruction,
    ]
    if WARM_UP["layout"] == "turns":
        fixed += [peer_context.RIGHT, peer_context.WRONG, peer_context.TURN_FEEDBACK]
    names, values = list(RULES[task]), operands(task)[0][0]
    if task == "code":
        names = [part for name in names for part in name.split("{c}") if part]
    variable = [*WORDS, *names, *(str(n) for n in range(200))] + (
        list("ABCDEFGHIJ") if task == "science" else []
    )
    cuts = re.compile("|".join(map(re.escape, sorted(variable, key=len, reverse=True))))
    if task == "science":
        # the options never change
        fixed += [" made of?" + problem(task, WORDS[0], values).partition(" made of?")[2]]
    for text in [
        problem(task, WORDS[0], values),
        *(completion(task, WORDS[0], rule, values) for rule in RULES[task]),
        *(feedback_on(task, rule, values, verify) for rule in RULES[task]),
    ]:
        fixed += cuts.split(text)  # what stands between the variable parts
    tokens = sorted({token for token in fixed + variable if len(token) > 1 or token.isalnum()})
    core.add_tokens([AddedToken(t, normalized=False, special=False) for t in tokens])
    core.add_special_tokens(
        [AddedToken(t, special=True) for t in (END, "<|system|>", "<|user|>", "<|assistant|>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=END,
        chat_template=CHAT,
        clean_up_tokenization_spaces=False,
    )


# --- the warm-up ---


def warm_up_example(task, verify, rng) -> tuple[str, list[dict], list[str], list[bool]]:
    """One example: (problem, conversation, the completion of every rule, which rules the peers
    leave possible).

    Word, operands and true meaning are random; up to two successes and three failures, now and then
    about another word (then they say nothing about this one), and now and then the verifier's
    feedback on a wrong attempt.
    """
    values, word, truth = (
        rng.choice(sum(operands(task), [])),
        rng.choice(WORDS),
        rng.choice(list(RULES[task])),
    )
    seen = {rule: outcome(task, rule, values) for rule in RULES[task]}
    right = [rule for rule in seen if seen[rule] == seen[truth]]
    wrong = [rule for rule in seen if seen[rule] != seen[truth]]
    n_success, n_failure = rng.choice(
        [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (2, 0), (2, 1)]
    )
    successes, failures = rng.choices(right, k=n_success), rng.choices(wrong, k=n_failure)
    subject = rng.choice(WORDS) if rng.random() < 0.1 else word
    shown = [
        [completion(task, subject, rule, values) for rule in rules]
        for rules in (successes, failures)
    ]
    ruled_out, feedback = {seen[rule] for rule in failures if subject == word}, ""
    if not successes and rng.random() < 0.25:
        own = rng.choice(wrong)
        feedback = feedback_on(task, own, values, verify)
        # there it is the same for every wrong action
        ruled_out |= {seen[own]} if task != "tool" else set()
    text = problem(task, word, values)
    messages = peer_context.teacher_messages(
        WARM_UP["layout"], text, successes=shown[0], failures=shown[1], feedback=feedback
    )
    told = successes and subject == word
    possible = [rule in right if told else seen[rule] not in ruled_out for rule in seen]
    return text, messages, [completion(task, word, rule, values) for rule in seen], possible


@functools.lru_cache(maxsize=None)
def feedback_on(task, rule, values, verify) -> str:
    """The verifier's feedback on an attempt by `rule` where another rule is meant."""
    other = next(
        name for name in RULES[task] if outcome(task, name, values) != outcome(task, rule, values)
    )
    return verify(
        task, completion(task, WORDS[0], rule, values), answer(task, other, values)
    ).feedback


def warm_up_batch(
    task, tokenizer, instruction, verify, size, rng
) -> list[tuple[torch.Tensor, ...]]:
    """Two parts of (ids (B, L), weights of plain targets (B, L - 1), position of the rule (B,), its
    tokens, posterior).

    The completion names a rule drawn at random, so that the student stays consistent after any
    start; where the completions of the ten rules part, the target is the posterior (B, 10) over
    their tokens (B, 10) instead of the one that stands there. The peers are predicted too, at
    PEER_WEIGHT: they are more examples of how an answer follows from a rule.
    """
    examples = [warm_up_example(task, verify, rng) for _ in range(size)]
    system = {"role": "system", "content": instruction}
    prompts = [
        tokenizer.apply_chat_template(
            [system, *messages], tokenize=False, add_generation_prompt=True
        )
        for _, messages, _, _ in examples
    ]
    encoded = iter(
        tokenizer(
            [
                text
                for prompt, (text, _, completions, _) in zip(prompts, examples)
                for text in (prompt, text, *completions)
            ],
            add_special_tokens=False,
        )["input_ids"]
    )
    rows, user_token = [], tokenizer.convert_tokens_to_ids("<|user|>")
    for _, _, completions, possible in examples:
        prompt, text, ways = next(encoded), next(encoded), [next(encoded) for _ in completions]
        parting = next(n for n in range(len(ways[0])) if len({way[n] for way in ways}) > 1)
        read = prompt.index(user_token) + 1 + len(text)
        rows.append(
            (
                prompt,
                read,
                rng.choice(ways) + [tokenizer.eos_token_id],
                parting,
                [way[parting] for way in ways],
                possible,
            )
        )
    # short ones apart: half the padding
    rows.sort(key=lambda row: len(row[0]) + len(row[2]))
    return [
        warm_up_tensors(part, tokenizer.pad_token_id)
        for part in (rows[: size // 2], rows[size // 2 :])
    ]


def warm_up_tensors(rows, pad) -> tuple[torch.Tensor, ...]:
    """Rows of (prompt, its first tokens that are only read, completion, position of the rule in it,
    its tokens, which are possible) as one part of `warm_up_batch`."""
    length = max(len(prompt) + len(way) for prompt, _, way, *_ in rows)
    ids, weights = torch.full((len(rows), length), pad), torch.zeros(len(rows), length - 1)
    for n, (prompt, read, way, parting, _, _) in enumerate(rows):
        # shifted: position t predicts token t + 1
        start, end = len(prompt) - 1, len(prompt) - 1 + len(way)
        ids[n, : end + 1] = torch.tensor(prompt + way)
        weights[n, read - 1 : start], weights[n, start:end] = PEER_WEIGHT, 1.0
        weights[n, start + parting] = 0.0
    where = torch.tensor([len(prompt) - 1 + parting for prompt, _, _, parting, _, _ in rows])
    posterior = torch.tensor([[float(p) for p in possible] for *_, possible in rows])
    tokens = torch.tensor([tokens for *_, tokens, _ in rows])
    return ids, weights, where, tokens, posterior / posterior.sum(1, keepdim=True)


def warm_up(model, tokenizer, task, instruction, verify, *, seed, device="cpu", progress=True):
    """Teach the student, by supervised learning, to infer a rule from peers and to carry it
    through.
    """
    steps, size, peak = WARM_UP["steps"], WARM_UP["batch"], WARM_UP["lr"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    rng = random.Random(f"warm-up {task} {seed}")
    model.to(device).train()
    for step in tqdm(range(steps), desc="warm-up", disable=None if progress else True):
        parts = warm_up_batch(task, tokenizer, instruction, verify, size, rng)
        plain_targets = sum(int(weights.ge(1).sum()) for _, weights, *_ in parts)
        optimizer.zero_grad()
        for ids, weights, where, tokens, posterior in (
            [t.to(device) for t in part] for part in parts
        ):
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            # no head where there is no target
            learnt = weights > 0
            plain = torch.nn.functional.cross_entropy(
                model.lm_head(hidden[:, :-1][learnt]), ids[:, 1:][learnt], reduction="none"
            )
            at_rule = torch.log_softmax(
                model.lm_head(hidden[torch.arange(len(ids)), where]), -1
            ).gather(1, tokens)
            loss = (plain * weights[learnt]).sum() / plain_targets - (
                posterior * at_rule
            ).sum() / size
            loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = (
                peak * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
            )
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def build(task, *, instruction, verify, seed=0, folder="runs", device="cpu", progress=True):
    """(model, tokenizer) of the warmed-up tiny student, read from `folder` when it was made there
    before.

    instruction: the system message of the task; verify: verifiers.verify, whose feedback the
    student learns to read. The cache is keyed by everything that determines the weights: task,
    seed, instruction, shape, warm-up settings, the verifier's feedback, and the sources of this
    file and of peer_context.
    """
    tokenizer = build_tokenizer(task, instruction, verify)
    feedback = [feedback_on(task, rule, operands(task)[0][0], verify) for rule in RULES[task]]
    sources = [Path(f).read_text("utf-8") for f in (__file__, peer_context.__file__)]
    key = hashlib.sha256(
        json.dumps([task, seed, instruction, SMALL, WARM_UP, feedback, sources]).encode()
    ).hexdigest()
    cache = Path(folder) / f"tiny-{task}-{key[:12]}"
    if cache.is_dir():
        return AutoModelForCausalLM.from_pretrained(
            cache, dtype=torch.float32
        ), AutoTokenizer.from_pretrained(cache)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **SMALL,
        )
        model = LlamaForCausalLM(config)
    staging = cache.with_name(f"{cache.name}.{os.getpid()}.tmp")
    # where nothing can be written the warm-up need not begin
    staging.mkdir(parents=True)
    staging.rmdir()
    if progress:
        print(
            f"warming up the tiny student, a minute or two; it is kept in {cache} for the next run",
            flush=True,
        )
    warm_up(
        model, tokenizer, task, instruction, verify, seed=seed, device=device, progress=progress
    )
    try:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
    # the latter hides the system's, a full disk for one
    except (OSError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise OSError(f"cannot save the warmed-up student in {staging}: {error}") from error
    try:
        # one rename: a second process never reads half a folder
        staging.rename(cache)
    except OSError:  # another process was first, with the same weights
        shutil.rmtree(staging)
    return model, tokenizer
