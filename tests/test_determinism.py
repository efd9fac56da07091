"""The same step twice gives the same gradient, to the last bit, also where two threads share it."""

import random

import pytest
import torch
from conftest import ROOT  # noqa: F401 (puts our files on the path)
from transformers import LlamaConfig, LlamaForCausalLM

import mopd
from peer_context import Peers
from rollout import Rollout
from runtime import fast_scoring
from verifiers import Verdict


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = dict(hidden_size=256, intermediate_size=64, num_hidden_layers=1, vocab_size=128)
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=4, **sizes)).eval()


def attempts_of(groups: int, size: int) -> list[mopd.Attempt]:
    """Groups that share a prompt of 9 tokens and two contexts of 14; completions of 2."""
    draw = random.Random(0)

    def ids(n):
        return [draw.randrange(128) for _ in range(n)]

    made = []
    for g in range(groups):
        prompt, contexts = ids(9), [ids(5), ids(5)]
        for n in range(size):
            rollout = Rollout(prompt, ids(2), [-5.0] * 2, True)
            problem = mopd.Problem("", "", "", g)
            attempt = mopd.Attempt(problem, g, rollout, "", Verdict(n % 2 == 0, None, ""))
            attempt.weight, attempt.peers = 1.0, Peers((), ())
            attempt.teacher_ids = prompt + contexts[n % 2]
            made.append(attempt)
    return made


@pytest.mark.parametrize(
    "parts",
    [fast_scoring.FAST, pytest.param(mopd.Parts(), marks=pytest.mark.slow)],
    ids=["fast", "plain"],
)
def test_twenty_gradients_of_one_step_by_two_threads_are_equal_to_the_last_bit(
    model, two_threads, parts
):
    """The gradient of x[rows] with repeated rows is added up in the order in which threads come.

    Runs of one seed parted at step 3 or 4. torch divides such work among threads from 32,768
    numbers on; three groups, so that two threads meet in the rows of the middle one.
    """
    attempts = attempts_of(groups=3, size=54)
    assert len(attempts) * model.config.hidden_size > 32_768
    teacher, first = mopd.make_teacher("current", model, None), None
    for _ in range(20):
        model.zero_grad(set_to_none=True)
        mopd.backward(model, teacher, attempts, micro_tokens=100_000, parts=parts)
        found = [p.grad for p in model.parameters()]
        first = first or found
        for name, a, b in zip(dict(model.named_parameters()), first, found, strict=True):
            assert torch.equal(a, b), name
