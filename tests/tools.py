"""What several test files share: tiny models, runs of train.py and what they wrote."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import tiny
import train
import verifiers


def random_model(config, *, seed=0, dtype=torch.float64, spread=3.0):
    """A random model in eval mode; `spread` scales its matrices, so that its distributions are far
    from uniform."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(spread)
    return model.to(dtype).eval()


def math_student(**changes):
    """(model, tokenizer): random weights, the tokenizer of the tiny math world."""
    tokenizer = tiny.build_tokenizer("math", verifiers.INSTRUCTIONS["math"], verifiers.verify)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **changes,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config), tokenizer


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def read_lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def flags(folder, out, *more):
    """The command line of three small steps on the model and the data of the fixture `folder`."""
    settings = {
        "--task": "math",
        "--model": folder / "model",
        "--data": folder / "train.jsonl",
        "--eval-data": folder / "eval.jsonl",
        "--steps": 3,
        "--problems": 3,
        "--rollouts": 4,
        "--max-new-tokens": 8,
        "--eval-every": 2,
        "--eval-problems": 4,
        "--eval-rollouts": 2,
        "--device": "cpu",
        "--lr": "1e-3",
        "--out": out,
    }
    return [str(part) for pair in settings.items() for part in pair] + list(more)


def replaced(arguments, flag, value):
    at = arguments.index(flag)
    return arguments[: at + 1] + [str(value)] + arguments[at + 2 :]


def steps_of(out):
    """The lines of a run's metrics.jsonl without their times."""
    lines = read_lines(out / "metrics.jsonl")
    for line in lines:
        line.pop("seconds", None)
    return lines


def refused(capsys, arguments):
    """Run the command line in this process; it must end with status 2 and one line, which is
    returned."""
    with pytest.raises(SystemExit) as stop:
        train.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    return error


def run_train(*arguments, **options):
    """Run train.py in a process of its own, which must succeed; returns what it printed."""
    command = [sys.executable, ROOT / "train.py", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout
