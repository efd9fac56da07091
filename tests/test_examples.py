"""The examples run and print what they say they print."""

import math
import re
import sys

import pytest
import torch
from conftest import ROOT

import peer_context
import tiny
import verifiers

sys.path.insert(0, str(ROOT / "examples"))
import one_step  # noqa: E402


@pytest.fixture
def student():
    """(model, tokenizer): it knows the first 4 problems and answers each by one of 3 rules.

    Such a student needs seconds of training instead of half a minute of the real warm-up.
    """
    torch.manual_seed(0)
    instruction = verifiers.INSTRUCTIONS["math"]
    tokenizer = tiny.build_tokenizer("math", instruction, verifiers.verify)
    config = tiny.LlamaConfig(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
        **tiny.SMALL,
    )
    model = tiny.LlamaForCausalLM(config)
    texts = []
    for row in tiny.problems("math", seed=0)[0][:4]:
        a, word, b = re.fullmatch(r"Compute (\d+) (\w+) (\d+)\.", row["prompt"]).groups()
        for rule in list(tiny.RULES["math"])[:3]:
            turns = [
                {"role": "system", "content": instruction},
                {"role": "user", "content": row["prompt"]},
                {
                    "role": "assistant",
                    "content": tiny.completion("math", word, rule, (int(a), int(b))),
                },
            ]
            texts.append(tokenizer.apply_chat_template(turns, tokenize=False))
    rows = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    # The end of the answer is a target, the padding behind it (the same token) is not.
    targets = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        model(input_ids=rows["input_ids"], labels=targets).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer


def test_one_step_prints_verdicts_the_teachers_prompt_the_loss_and_the_gradient(student, capsys):
    model, tokenizer = student
    one_step.one_step(model, tokenizer, problems=4, k=16)
    printed = capsys.readouterr().out
    verdicts = re.findall(r"^ [> ] \[\d+\] (right|wrong) ", printed, re.M)
    assert len(verdicts) == 16 and set(verdicts) == {"right", "wrong"}
    prompt = "\n".join(re.findall(r"^   \| (.*)$", printed, re.M))
    assert peer_context.SUCCESS in prompt and peer_context.FAILURE in prompt
    assert float(re.search(r"these tokens: (\S+)", printed)[1]) > 0
    squares = [float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None]
    norm = float(re.search(r"gradient norm: ([\d.]+);", printed)[1])
    assert norm > 0 and norm == pytest.approx(math.sqrt(sum(squares)), abs=1e-5)


STAND_IN = """
import runpy, tiny, tools
def build(*args, **options):
    model, tokenizer = tools.math_student()
    model.save_pretrained({folder!r})
    return model, tokenizer
tiny.build = build
runpy.run_path({script!r}, run_name="__main__")
"""


def test_one_step_prints_no_bar_of_transformers(server, tmp_path):
    """It stood in the middle of the first stage, from the second start on."""
    script = str(ROOT / "examples" / "one_step.py")
    code = STAND_IN.format(folder=str(tmp_path), script=script)
    assert server.run(code=code) == 0, server.log.read_text()
    log = server.log.read_text()
    assert log.startswith("1. 8 rollouts of one problem") and "it/s]" not in log, log


def test_one_step_is_shorter_than_60_lines():
    assert len((ROOT / "examples" / "one_step.py").read_text("utf-8").splitlines()) < 60
