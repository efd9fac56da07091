"""The made-up worlds: consistent with the real verifiers, honest in what the warm-up and the
evaluation show."""

import functools
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tools import run_train

import peer_context
import tiny
import verifiers

TASKS = list(tiny.RULES)


@pytest.mark.parametrize("task", TASKS)
def test_the_real_verifier_agrees_with_the_world_on_every_rule(task):
    rng = random.Random(0)
    for values in rng.sample(sum(tiny.operands(task), []), 4 if task == "code" else 30):
        for truth in rng.sample(list(tiny.RULES[task]), 3):
            gold = tiny.answer(task, truth, values)
            for rule in tiny.RULES[task]:
                same = tiny.outcome(task, rule, values) == tiny.outcome(task, truth, values)
                assert (
                    verifiers.verify(task, tiny.completion(task, "zib", rule, values), gold).correct
                    is same
                )


@pytest.mark.parametrize("task", ["code", "science", "tool"])
def test_two_rules_never_look_alike_outside_math(task):
    for values in sum(tiny.operands(task), []):
        assert len({tiny.outcome(task, rule, values) for rule in tiny.RULES[task]}) == 10


@pytest.mark.parametrize("task", TASKS)
def test_guessing_succeeds_about_one_time_in_ten(task):
    share = [
        sum(
            tiny.outcome(task, a, v) == tiny.outcome(task, b, v)
            for a in tiny.RULES[task]
            for b in tiny.RULES[task]
        )
        / 100
        for v in sum(tiny.operands(task), [])[:50]
    ]
    assert 0.099 < sum(share) / len(share) < 0.11


@pytest.mark.parametrize("task", TASKS)
def test_any_text_survives_the_tokenizer_and_fixed_sentences_are_one_token(task):
    tokenizer = tiny.build_tokenizer(task, verifiers.INSTRUCTIONS[task], verifiers.verify)
    for text in [
        *map(verifiers.INSTRUCTIONS.get, TASKS),
        "3 \\frac{1}{2} ~ é 漢字 \U0001f600\n\n x  y",
        peer_context.SUCCESS * 2,
    ]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    for text in (
        peer_context.SUCCESS,
        peer_context.FAILURE,
        peer_context.INSTRUCTION,
        verifiers.INSTRUCTIONS[task],
        "zib",
        "137",
    ):
        assert len(tokenizer(text)["input_ids"]) == 1
    assert (
        len(
            tokenizer(
                tiny.completion(task, "zib", list(tiny.RULES[task])[0], tiny.operands(task)[0][0])
            )["input_ids"]
        )
        < 15
    )


def test_warm_up_posterior_is_exact():
    """Against the definition: rules under which every shown success is right and every shown
    failure is wrong."""
    rng, seen = random.Random(1), set()
    for _ in range(400):
        _, (message,), completions, possible = tiny.warm_up_example("math", verifiers.verify, rng)
        user = message["content"]
        a, word, b = re.match(r"Compute (\d+) (\w+) (\d+)\.", user).groups()
        right = {
            m for m in re.findall(r"solution to this problem:\n\n(\w+) means (.*?)\. The", user)
        }
        wrong = {m for m in re.findall(r"repeated:\n\n(\w+) means (.*?)\. The", user)}
        told = [who for who, _ in right | wrong]
        mine = re.search(r"earlier attempt:\n\nThe final answer is wrong: (.*?)\n", user)
        for rule, ok in zip(tiny.RULES["math"], possible, strict=True):
            value = {
                name: tiny.RULES["math"][name][1](int(a), int(b)) for name in tiny.RULES["math"]
            }
            expected = all(value[r] == value[rule] for _, r in right) and all(
                value[r] != value[rule] for _, r in wrong
            )
            own = mine is None or not any(
                value[r] == value[rule]
                for r, (template, _) in tiny.RULES["math"].items()
                if template.format(a=a, b=b) == mine[1]
            )
            assert ok is ((expected or any(who != word for who in told)) and own)
        assert completions[0] == tiny.completion("math", word, "the sum", (int(a), int(b)))
        seen.add(
            (
                "other" if any(who != word for who in told) else "own",
                bool(right),
                bool(wrong),
                bool(mine),
            )
        )
    assert (
        len(seen) == 10
    )  # with and without each, about this word and about another, with feedback


@pytest.mark.parametrize("task", TASKS)
def test_a_warm_up_batch_has_every_completion_token_but_the_rule_as_a_target(task):
    tokenizer = tiny.build_tokenizer(task, "Do it.", verifiers.verify)
    ids, weights, where, posterior = tiny.warm_up_batch(
        task, tokenizer, "Do it.", verifiers.verify, 17, random.Random(2)
    )
    _, rules = tiny.rule_tokens(task, tokenizer)
    assert ids.shape == (17, 1 + weights.shape[1]) and len(set(rules)) == 10
    for row in range(17):
        text = tokenizer.decode(ids[row])
        start = text.rindex("<|assistant|>") + len("<|assistant|>")
        word, values = next(
            (word, values)
            for word in tiny.WORDS
            for values in sum(tiny.operands(task), [])
            if f"<|user|>{tiny.problem(task, word, values)}" in text
        )
        rule = rules.index(ids[row, where[row] + 1])
        completion = tiny.completion(task, word, list(tiny.RULES[task])[rule], values)
        assert text[start:].startswith(f"{completion}<|end|>")
        assert weights[row, where[row]] == 0
        weights[row, where[row]] = 1
        # targets of full weight, and of the peers' weight
        assert tokenizer.decode(ids[row, 1:][weights[row] == 1]) == f"{completion}<|end|>"
        others = tokenizer.decode(ids[row, 1:][(0 < weights[row]) & (weights[row] < 1)])
        before = text[: text.index("<|user|>")] + f"<|user|>{tiny.problem(task, word, values)}"
        assert before + others == text[:start]
    rng = random.Random(2)  # the same examples
    possible = [tiny.warm_up_example(task, verifiers.verify, rng)[3] for _ in range(17)]
    for row, known in zip(posterior, torch.tensor(possible), strict=True):
        assert torch.allclose(row, known / known.sum())
    assert len({tuple(known) for known in possible}) > 3


@pytest.mark.parametrize("task", TASKS)
def test_the_rule_has_one_token_in_one_place_whatever_the_word_and_the_operands(task):
    tokenizer = tiny.build_tokenizer(task, "Do it.", verifiers.verify)
    position, rules = tiny.rule_tokens(task, tokenizer)
    for word in tiny.WORDS[::5]:
        for values in sum(tiny.operands(task), [])[::7]:
            for rule, token in zip(tiny.RULES[task], rules, strict=True):
                ids = tokenizer(tiny.completion(task, word, rule, values))["input_ids"]
                assert ids[position] == token


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_operands_are_never_trained_on_and_the_table_is_secret_but_fixed(task):
    train, held_out = tiny.problems(task, seed=3)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    assert not set(tiny.operands(task)[0]) & set(tiny.operands(task)[1])
    assert (train, held_out) == tiny.problems(task, seed=3)
    assert tiny.secret_table(task, 3) != tiny.secret_table(task, 4)
    for row in train:
        verifiers.check_answer(task, row["answer"])


def test_the_warmed_up_student_is_cached_by_what_determines_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "WARM_UP", dict(tiny.WARM_UP, steps=2, batch=4))
    made, tokenizer = tiny.build(
        "tool", seed=0, instruction="Act.", verify=verifiers.verify, folder=tmp_path, progress=False
    )
    folders = list(tmp_path.iterdir())
    monkeypatch.setattr(tiny, "warm_up", lambda *args, **kwargs: pytest.fail("warmed up again"))
    read, again = tiny.build(
        "tool", seed=0, instruction="Act.", verify=verifiers.verify, folder=tmp_path, progress=False
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(made.state_dict().values(), read.state_dict().values(), strict=True)
    )
    assert tokenizer.get_vocab() == again.get_vocab() and len(folders) == 1
    for change in (dict(seed=1), dict(instruction="Act now.")):
        with pytest.raises(pytest.fail.Exception, match="warmed up again"):
            tiny.build(
                "tool",
                **{"seed": 0, "instruction": "Act.", **change},
                verify=verifiers.verify,
                folder=tmp_path,
                progress=False,
            )


def test_warming_up_leaves_the_global_random_state_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "WARM_UP", dict(tiny.WARM_UP, steps=1, batch=2))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    tiny.build(
        "math",
        seed=0,
        instruction="Box it.",
        verify=verifiers.verify,
        folder=tmp_path,
        progress=False,
    )
    assert torch.equal(torch.rand(1), expected)


def test_before_the_warm_up_one_head_of_the_first_layer_prefers_equal_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "warm_up", lambda model, *args, **kwargs: model)
    model, _ = tiny.build(
        "math", instruction="Box it.", verify=verifiers.verify, folder=tmp_path, progress=False
    )
    for n, layer in enumerate(model.model.layers):
        queries, keys = (
            getattr(layer.self_attn, name).weight.view(4, 32, 128) for name in ("q_proj", "k_proj")
        )
        assert [torch.equal(q, k) for q, k in zip(queries, keys, strict=True)] == [
            (n, head) == (0, 0) for head in range(4)
        ]
        assert 0.055 < queries[1].std() < 0.065


def test_a_damaged_cache_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "WARM_UP", dict(tiny.WARM_UP, steps=1, batch=2))
    build = functools.partial(
        tiny.build, "math", instruction="Box it.", verify=verifiers.verify, folder=tmp_path
    )
    build(progress=False)
    (weights,) = tmp_path.glob("tiny-*/model.safetensors")
    for harm in (lambda: weights.write_bytes(weights.read_bytes()[:500]), weights.unlink):
        harm()
        with pytest.raises(ValueError, match=f"{weights.parent}, .* is damaged: delete it"):
            build(progress=False)


def test_a_cache_that_cannot_be_written_is_one_line_before_the_warm_up_or_after_it(
    tmp_path, monkeypatch
):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(tiny, "WARM_UP", dict(tiny.WARM_UP, steps=1, batch=2))
    arguments = dict(seed=0, instruction="Box it.", verify=verifiers.verify, progress=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))  # as on a disk that fills up
    try:
        with pytest.raises(OSError, match="cannot save the warmed-up student in .*: "):
            tiny.build("math", folder=tmp_path, **arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
    seen = []
    monkeypatch.setattr(tiny, "warm_up", lambda *args, **kwargs: seen.extend(tmp_path.iterdir()))
    tiny.build("math", folder=tmp_path / "new", **arguments)
    assert [path.name for path in seen] == ["new"] and not list(
        seen[0].glob("*.tmp")
    )  # a kill in the warm-up leaves nothing
    shutil.rmtree(tmp_path / "new")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(
        tiny, "warm_up", lambda *args, **kwargs: pytest.fail("warmed up for nothing")
    )
    with pytest.raises(OSError):
        tiny.build("math", folder=tmp_path / "file" / "runs", **arguments)


def assert_learned(printed):
    found = re.search(r"mean@8: ([\d.]+) at step 0, ([\d.]+) at step", printed)
    before, after = map(float, found.groups())
    assert after >= 0.75 and after - before >= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("task", TASKS)
def test_the_default_run_learns(task, seed, tmp_path):
    """What the README promises of `python train.py --task ...`: held-out mean@8 ends at 0.8 or
    more; 0.05 less is allowed, because an end moves with the machine."""
    assert_learned(run_train("--task", task, "--seed", seed, "--out", tmp_path / "out"))


LEARN_TO_READ_TURNS = """
import sys, tiny, train
tiny.WARM_UP["layout"] = "turns"
train.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_student_warmed_up_on_turns_learns_from_turns(tmp_path):
    """The layout is a matter of what the student can read, not of the method: the same world, peers
    as turns."""
    command = [
        sys.executable,
        "-c",
        LEARN_TO_READ_TURNS,
        "--task",
        "math",
        "--layout",
        "turns",
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(tiny.__file__).parent)
    assert done.returncode == 0, done.stderr
    assert_learned(done.stdout)
