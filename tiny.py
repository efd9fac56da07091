"""The embedded default: four made-up worlds, and a tiny student that learns them in a minute.

Needs torch, transformers, tokenizers and peer_context (the warm-up uses the real teacher prompt);
knows nothing of the training loop, which treats the tiny student like any Hub model: an ordinary
LlamaForCausalLM with a fast tokenizer and a chat template, whose answers the real verifiers judge.

The world: each problem uses a made-up word (one of 24) that means one of 10 rules. In the warm-up
every example gives the word a fresh random meaning. So without peers the student can only guess
(right about 1 time in 10), and with peers it learns to infer: a success names the rule, a failure
rules one out. The warm-up target is the exact posterior over the rules given the peers. Then a
secret table, fixed by world and seed, gives every word its meaning, and training must discover it
by trial and error.

A completion names the rule first; the rest follows from the rule by copying. If the answer could be
copied from a peer without naming the rule, the teacher would push towards the right answer after a
wrong rule, and the student would learn to contradict itself. If the student had to compute (we
tried sums and products in one token), it would forget the results that training does not show.

    model, tokenizer = build(
        "math", instruction=verifiers.INSTRUCTIONS["math"], verify=verifiers.verify, folder="runs"
    )
    train_rows, eval_rows = problems("math", seed=0)    # as in any data file: prompt, answer
"""

import functools
import hashlib
import itertools
import json
import math
import os
import random
import re
import shutil
import sys
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
    # with the usual 0.02 it learns less in these steps (benchmarks/README.md)
    initializer_range=0.06,
)
# layout: how peers are written in the warm-up, see peer_context.teacher_messages
WARM_UP = dict(steps=300, batch=24, lr=3e-3, layout="turn")
PEER_WEIGHT = 0.3  # of a peer's token in the loss; a token of the completion has 1


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
LETTERS = dict(zip(RULES["science"], "ABCDEFGHIJ", strict=True))


@functools.lru_cache(maxsize=None)
def operands(task: str) -> tuple[list, list]:
    """(for training, for evaluation): disjoint operands, the same for every seed."""
    rng = random.Random(f"operands {task}")
    if task == "math":
        every = [(a, b) for a in range(2, 20) for b in range(2, 20) if a != b]
    else:
        every = [(n,) for n in range(2, 100)]
    rng.shuffle(every)
    cut = len(every) * 3 // 4
    return every[:cut], every[cut:]


def problem(task: str, word: str, values: tuple[int, ...]) -> str:
    """The text of one problem."""
    if task == "math":
        return f"Compute {values[0]} {word} {values[1]}."
    if task == "code":
        return f"Write a Python function solve(x) that returns x {word} {values[0]}."
    if task == "science":
        options = "".join(f"\n{letter}: {name}" for name, letter in LETTERS.items())
        return f"What is {word} in sample {values[0]} made of?{options}"
    return f"Use the right tool to {word} item {values[0]}."


def completion(task: str, word: str, rule: str, values: tuple[int, ...]) -> str:
    """The answer of a student that believes `word` means `rule`: it names the rule first."""
    if task == "math":
        result = RULES["math"][rule][0].format(a=values[0], b=values[1])
        return f"{word} means {rule}. The answer is \\boxed{{{result}}}."
    if task == "code":
        body = f"def solve(x):\n    return {rule.format(c=values[0])}"
        return f"{word} means this.\n```python\n{body}\n```"
    if task == "science":
        thought = f"<reasoning>\n{word} is made of {rule}.\n</reasoning>"
        return f"{thought}\n<answer>\n{LETTERS[rule]}\n</answer>"
    action = f'Action: {rule}\nAction Input: {{"item": {values[0]}}}'
    return f"Thought: to {word} is to {rule}.\n{action}"


def outcome(task: str, rule: str, values: tuple[int, ...]):
    """The result of a rule on these operands; the verifier sees no more of the rule."""
    if task == "math":
        return RULES["math"][rule][1](*values)
    if task == "code":
        return tuple(RULES["code"][rule](x, values[0]) for x in probes(values[0]))
    return rule


def answer(task: str, rule: str, values: tuple[int, ...]):
    """The gold answer in the form that the verifier reads."""
    if task == "math":
        return str(outcome(task, rule, values))
    if task == "code":
        cases = zip(probes(values[0]), outcome(task, rule, values), strict=True)
        tests = [{"input": str(x), "output": str(y)} for x, y in cases]
        return {"type": "functional", "entry_point": "solve", "tests": tests}
    if task == "science":
        return LETTERS[rule]
    return [{"Action": rule, "Action_Input": json.dumps({"item": values[0]})}]


@functools.lru_cache(maxsize=None)
def probes(c: int) -> tuple[int, ...]:
    """Test inputs of the code world; on the first all ten rules have different results.

    Few, because each test starts a process, in up to 5 ms.
    """
    rules = RULES["code"].values()
    first = next(x for x in range(c + 1, 10 * c) if len({rule(x, c) for rule in rules}) == 10)
    return first, c - 1


def secret_table(task: str, seed: int) -> dict[str, str]:
    """{word: its rule}, which training has to find out."""
    rng = random.Random(f"secret {task} {seed}")
    return {word: rng.choice(list(RULES[task])) for word in WORDS}


def problems(task: str, *, seed: int = 0) -> tuple[list[dict], list[dict]]:
    """(training rows, evaluation rows) under the secret table, with disjoint operands."""
    table, rng = secret_table(task, seed), random.Random(f"order {task} {seed}")
    sets = []
    for values in operands(task):
        rows = []
        for word, v in itertools.product(WORDS, values):
            prompt, gold = problem(task, word, v), answer(task, table[word], v)
            rows.append({"prompt": prompt, "answer": gold, "system": None})
        rng.shuffle(rows)
        sets.append(rows)
    return tuple(sets)


# --- the tokenizer: bytes, plus one token for every word and fixed sentence ---


def build_tokenizer(task: str, instruction: str, verify) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with single tokens for words, numbers, fixed texts and, but for code,
    the names of rules.
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
    # in code a rule has no name of its own: it is in the token of the fixed text before the number
    names = [] if task == "code" else list(RULES[task])
    values = operands(task)[0][0]
    variable = [*WORDS, *names, *(str(n) for n in range(200))]
    if task == "science":
        variable += LETTERS.values()
        # the list of options is the same in every problem
        fixed += [" made of?" + problem(task, WORDS[0], values).partition(" made of?")[2]]
    cuts = re.compile("|".join(map(re.escape, sorted(variable, key=len, reverse=True))))
    for text in [
        problem(task, WORDS[0], values),
        *(completion(task, WORDS[0], rule, values) for rule in RULES[task]),
        *(feedback_on(task, rule, values, verify) for rule in RULES[task]),
    ]:
        fixed += cuts.split(text)  # the texts between the variable parts
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


def warm_up_example(
    task: str, verify, rng: random.Random
) -> tuple[str, list[dict], list[str], list[bool]]:
    """(problem, conversation, completion of every rule, whether the peers leave it possible).

    Word, operands and true meaning are random. There are up to two successes and three failures. In
    a tenth of the examples they are about another word and tell nothing about this one (so short a
    warm-up does not teach that of successes: docs/results.md). A quarter of the examples without
    success have the verifier's feedback on a wrong attempt.
    """
    values = rng.choice(sum(operands(task), []))
    word, truth = rng.choice(WORDS), rng.choice(list(RULES[task]))
    outcomes = {rule: outcome(task, rule, values) for rule in RULES[task]}
    right = [rule for rule in outcomes if outcomes[rule] == outcomes[truth]]
    wrong = [rule for rule in outcomes if outcomes[rule] != outcomes[truth]]
    n_success, n_failure = rng.choice(
        [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (2, 0), (2, 1)]
    )
    successes, failures = rng.choices(right, k=n_success), rng.choices(wrong, k=n_failure)
    subject = rng.choice(WORDS) if rng.random() < 0.1 else word
    shown = [
        [completion(task, subject, rule, values) for rule in rules]
        for rules in (successes, failures)
    ]
    ruled_out = {outcomes[rule] for rule in failures if subject == word}
    feedback = ""
    if not successes and rng.random() < 0.25:
        tried = rng.choice(wrong)
        feedback = feedback_on(task, tried, values, verify)
        if task != "tool":  # whose feedback is the same for every wrong action
            ruled_out.add(outcomes[tried])
    text = problem(task, word, values)
    messages = peer_context.teacher_messages(
        WARM_UP["layout"], text, successes=shown[0], failures=shown[1], feedback=feedback
    )
    if successes and subject == word:
        possible = [rule in right for rule in outcomes]
    else:
        possible = [result not in ruled_out for result in outcomes.values()]
    return text, messages, [completion(task, word, rule, values) for rule in outcomes], possible


@functools.lru_cache(maxsize=None)
def feedback_on(task: str, rule: str, values: tuple[int, ...], verify) -> str:
    """The verifier's feedback on an attempt by `rule` where another rule is meant."""
    outcomes = {name: outcome(task, name, values) for name in RULES[task]}
    other = next(name for name in RULES[task] if outcomes[name] != outcomes[rule])
    attempt = completion(task, WORDS[0], rule, values)
    return verify(task, attempt, answer(task, other, values)).feedback


@functools.lru_cache(maxsize=None)
def rule_tokens(task: str, tokenizer) -> tuple[int, list[int]]:
    """(where the completions of the ten rules first differ, their tokens there).

    Both are the same for all words and operands, each of which is one token.
    """
    texts = [completion(task, WORDS[0], rule, operands(task)[0][0]) for rule in RULES[task]]
    ways = tokenizer(texts, add_special_tokens=False)["input_ids"]
    position = next(n for n in range(len(ways[0])) if len({way[n] for way in ways}) > 1)
    return position, [way[position] for way in ways]


def warm_up_batch(
    task: str, tokenizer, instruction: str, verify, size: int, rng: random.Random
) -> tuple[torch.Tensor, ...]:
    """`size` examples, padded: (ids, weights, where, posterior).

    ids (B, L); weights of the targets ids[:, 1:] (B, L - 1); position that predicts the rule (B,);
    the posterior over the ten rules (B, 10).

    The completion names a rule drawn at random, so that the student stays consistent after any
    start. At the position of the rule the target is the posterior instead of that token. The peers
    are predicted too, with weight PEER_WEIGHT: they are more examples of how an answer follows from
    a rule. The system message and the problem are not.
    """
    system = {"role": "system", "content": instruction}
    examples = [warm_up_example(task, verify, rng) for _ in range(size)]
    chats = tokenizer.apply_chat_template(
        [[system, *messages] for _, messages, _, _ in examples],
        tokenize=False,
        add_generation_prompt=True,
    )
    chosen = [rng.choice(completions) + END for _, _, completions, _ in examples]
    encode = functools.partial(tokenizer, add_special_tokens=False, return_attention_mask=False)
    texts, prompts, endings = (
        encode(strings)["input_ids"] for strings in ([e[0] for e in examples], chats, chosen)
    )
    length = max(len(p) + len(e) for p, e in zip(prompts, endings, strict=True))
    user_token = tokenizer.convert_tokens_to_ids("<|user|>")
    position, _ = rule_tokens(task, tokenizer)
    ids, weights, where = [], [], []
    for text, prompt, ending in zip(texts, prompts, endings, strict=True):
        padding = [0] * (length - len(prompt) - len(ending))
        untrained = prompt.index(user_token) + 1 + len(text)
        of_peers = [PEER_WEIGHT] * (len(prompt) - untrained)
        of_ending = [1.0] * len(ending)
        of_ending[position] = 0.0
        ids.append(prompt + ending + padding)
        # shifted by one: position t predicts token t + 1
        weights.append([0.0] * (untrained - 1) + of_peers + of_ending + padding)
        where.append(len(prompt) - 1 + position)
    posterior = torch.tensor([possible for *_, possible in examples]).float()
    posterior /= posterior.sum(1, keepdim=True)
    return *map(torch.tensor, (ids, weights, where)), posterior


def warm_up(model, tokenizer, task, instruction, verify, *, seed, device="cpu", progress=True):
    """Train the student, supervised, to infer a rule from peers and to follow it; returns it."""
    steps, size, peak = WARM_UP["steps"], WARM_UP["batch"], WARM_UP["lr"]
    model.to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    rng = random.Random(f"warm-up {task} {seed}")
    _, rule_ids = rule_tokens(task, tokenizer)
    for step in tqdm(range(steps), desc="warm-up", disable=None if progress else True):
        if progress and step % 100 == 99 and not sys.stderr.isatty():  # no bar in a log
            print(f"warm-up: step {step + 1} of {steps}", flush=True)
        batch = warm_up_batch(task, tokenizer, instruction, verify, size, rng)
        ids, weights, where, posterior = (tensor.to(device) for tensor in batch)
        optimizer.zero_grad()
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        # the head only where there is a target: its logits are most of the memory
        learnt = weights > 0
        nll = torch.nn.functional.cross_entropy(
            model.lm_head(hidden[:, :-1][learnt]), ids[:, 1:][learnt], reduction="none"
        )
        plain = (nll * weights[learnt]).sum() / weights.ge(1).sum()
        logits = model.lm_head(hidden[torch.arange(len(ids)), where])
        at_rule = torch.log_softmax(logits, -1)[:, rule_ids]
        (plain - (posterior * at_rule).sum() / size).backward()
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1, (step + 1) / 50) * cosine
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def build(
    task: str,
    *,
    instruction: str,
    verify,
    seed: int = 0,
    folder="runs",
    device: str = "cpu",
    progress: bool = True,
):
    """(model, tokenizer) of the warmed-up tiny student, cached in `folder`.

    instruction: the system message of the task; verify: verifiers.verify, whose feedback the
    student learns to use. The cache is keyed by everything that determines the weights: task, seed,
    instruction, shape, warm-up settings, the verifier's feedback, and the sources of this file and
    of peer_context. Raises OSError where `folder` cannot be written, ValueError where
    the cached student is damaged.
    """
    tokenizer = build_tokenizer(task, instruction, verify)
    feedback = [feedback_on(task, rule, operands(task)[0][0], verify) for rule in RULES[task]]
    sources = [Path(f).read_text("utf-8") for f in (__file__, peer_context.__file__)]
    determined_by = json.dumps([task, seed, instruction, SMALL, WARM_UP, feedback, sources])
    key = hashlib.sha256(determined_by.encode()).hexdigest()
    cache = Path(folder) / f"tiny-{task}-{key[:12]}"
    if cache.is_dir():
        try:
            model = AutoModelForCausalLM.from_pretrained(cache, dtype=torch.float32)
            return model, AutoTokenizer.from_pretrained(cache)
        except (OSError, ValueError, SafetensorError):
            raise ValueError(f"{cache}, the warmed-up student, is damaged: delete it") from None
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
    # one head starts with keys = queries, so with a leaning to equal tokens: without it the student
    # still mixes up the operands after 250 steps
    attention, head_dim = model.model.layers[0].self_attn, config.head_dim
    with torch.no_grad():
        attention.k_proj.weight[:head_dim] = attention.q_proj.weight[:head_dim]
    staging = cache.with_name(f"{cache.name}.{os.getpid()}.tmp")
    # fail before the warm-up, not after it, where the folder cannot be written
    staging.mkdir(parents=True)
    staging.rmdir()
    if progress:
        print(
            f"warming up the tiny student, half a minute; it is kept in {cache} for the next run",
            flush=True,
        )
    warm_up(
        model, tokenizer, task, instruction, verify, seed=seed, device=device, progress=progress
    )
    try:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
    # safetensors turns an OSError, such as a full disk, into its own error
    except (OSError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise OSError(f"cannot save the warmed-up student in {staging}: {error}") from error
    try:
        # atomic: a second process never reads half a folder
        staging.rename(cache)
    except OSError:  # another process was first, with the same weights
        shutil.rmtree(staging)
    return model, tokenizer
