"""Faults of other trainers that no other test file would catch: see docs/known_faults.md."""

import json
import shutil

import pytest
from tools import flags, math_student, random_model, steps_of
from transformers import GPT2Config

import mopd
import rollout
import train
import verifiers
from rollout import Rollout
from runtime import fast_rollout, models


def test_rollouts_and_verdicts_stay_with_their_problem(monkeypatch):
    """Prompts repeated instead of interleaved gave rollouts to other problems.

    PeterGriffinJin/Search-R1#65. The sampler and the verifier here repeat what they were asked.
    """
    student, tokenizer = math_student()
    problems = [mopd.Problem(f"What is {n} plus {n}?", str(2 * n), "", n) for n in (3, 1, 2)]

    def generate(model, prompts, k, **options):
        lengths = range(1, k + 1)
        return [[Rollout(p, p[:n], [-1.0] * n, False) for n in lengths] for p in prompts]

    def verify(task, texts, answers, workers):
        return [verifiers.Verdict(False, answer, "") for answer in answers]

    monkeypatch.setattr(mopd, "verify_batch", verify)
    attempts = mopd.sample(
        student, tokenizer, problems, k=4, task="math", max_new_tokens=4, generate=generate
    )
    assert [a.problem.key for a in attempts] == [3] * 4 + [1] * 4 + [2] * 4
    for n, a in enumerate(attempts):
        assert a.rollout.prompt_ids == models.student_ids(tokenizer, a.problem)
        assert a.verdict.answer == a.problem.answer and a.group == n // 4
        assert len(a.rollout.ids) == n % 4 + 1


@pytest.mark.parametrize(
    "generate", [rollout.generate, fast_rollout.generate], ids=["plain", "fast"]
)
def test_gradient_checkpointing_leaves_the_cache_to_the_sampler(generate):
    """In train mode it switches the cache off: each token reads all again. huggingface/trl#2653."""
    model, columns = math_student()[0].double(), []
    options = dict(max_new_tokens=6, stop_ids=[])
    expected = generate(model, [[5, 6, 7], [8]], 2, **options)
    models.recompute_activations(model)
    model.train()
    model.register_forward_pre_hook(
        lambda _, args, kwargs: columns.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    assert generate(model, [[5, 6, 7], [8]], 2, **options) == expected
    assert columns == [3, 1, 1, 1, 1, 1] and model.training


def test_gradient_checkpointing_is_refused_for_a_model_with_dropout():
    """Activations are recomputed in train mode, so under dropout. huggingface/trl#3000."""
    sizes = dict(vocab_size=20, n_embd=8, n_layer=1, n_head=2)
    with pytest.raises(ValueError, match="set attn_pdrop to 0"):
        quiet = dict(embd_pdrop=0.0, resid_pdrop=0.0)
        models.recompute_activations(random_model(GPT2Config(**sizes, **quiet, attn_pdrop=0.1)))


def test_tokens_are_scored_without_dropout_as_they_were_sampled(folder, tmp_path):
    """Train mode gives other probabilities than the sampler's. unslothai/unsloth-zoo#832."""
    noisy = shutil.copytree(folder, tmp_path / "noisy")
    config = json.loads((noisy / "model" / "config.json").read_text("utf-8"))
    (noisy / "model" / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.5}))
    train.main(flags(noisy, tmp_path / "out", "--steps", "1"))
    (step,) = [line for line in steps_of(tmp_path / "out") if "loss" in line]
    assert step["scored_tokens"] > 0 and step["sampler_gap"] < 1e-4


def step_of(folder, out, *more):
    """(run after one step that had something to learn, the student's weights before it)."""
    settings = train.parse(flags(folder, out, "--layout", "turn", "--warmup-steps", "0", *more))
    run = train.prepare(settings)
    before = {name: weight.clone() for name, weight in run.student.state_dict().items()}
    metrics, *_ = train.train_step(run, 1)
    assert metrics["scored_tokens"] > 0 and metrics["grad_norm"] > 0
    return run, before


def test_no_gradient_is_kept_while_sampling(folder, tmp_path):
    """Gradients as large as the model took the memory of the rollouts. NVIDIA-NeMo/RL#1147."""
    run, _ = step_of(folder, tmp_path / "out")
    assert all(p.grad is None for p in run.student.parameters())


def test_a_small_learning_rate_moves_nearly_every_weight(folder, tmp_path):
    """bfloat16 has 8 bits: a weight of 0.02 does not move by 1e-6. meta-pytorch/torchtune#2254.

    The teacher's average moves by a twentieth of that.
    """
    run, before = step_of(folder, tmp_path / "out", "--lr", "1e-6", "--dtype", "bfloat16")
    for model in (run.student, run.teacher.model):
        # tokens that the step did not read have no gradient
        weights = {k: v for k, v in model.state_dict().items() if "embed_tokens" not in k}
        moved = sum((v != before[k]).sum().item() for k, v in weights.items())
        assert moved > 0.9 * sum(v.numel() for v in weights.values())


def test_an_answer_is_never_run_as_a_program(tmp_path):
    """`eval` of an answer, behind a filter or not, ran what the policy wrote.

    verl-project/verl#7607.
    """
    trap = tmp_path / "ran"
    program = f"open({str(trap)!r}, 'w').write('7')"
    golds = {"math": "7", "science": "B", "tool": [{"Action": "f", "Action_Input": "{}"}]}
    forms = (
        r"\boxed{%s}",
        "The answer is %s",
        "<answer>%s</answer>",
        "Action: f\nAction Input: %s",
    )
    for task, gold in golds.items():
        for form in forms:
            assert not verifiers.verify(task, form % program, gold).correct
            assert not trap.exists(), (task, form)
