"""One MOPD step on the tiny math world, each stage printed: python examples/one_step.py

The first start warms up the tiny student (half a minute) and keeps it in runs/.
"""

import sys
from pathlib import Path

from torch.nn.utils import get_total_norm
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import mopd
import tiny
import verifiers
from runtime import data
from runtime.models import max_length


def one_step(student, tokenizer, *, problems=8, k=8, seed=0):
    """Sample, verify, choose peers, differentiate; leaves the gradient in student.parameters()."""
    rows, _ = tiny.problems("math", seed=seed)
    batch = [data.read_row(row, "math", key) for key, row in enumerate(rows[:problems])]
    teacher = mopd.make_teacher("ema", student, tokenizer)

    options = dict(k=k, task="math", max_new_tokens=32, seed=seed)
    attempts = mopd.sample(student, tokenizer, batch, **options)
    mopd.plan(attempts, method="mopd", peers="contrastive", seed=seed)
    room = max_length(teacher.model)
    mopd.write_contexts(attempts, teacher, peer_tokens=64, max_tokens=room)

    # A failure whose teacher reads both kinds of peers, if the step has one.
    both = [a for a in attempts if not a.success and a.peers.successes and a.peers.failures]
    failure = both[0] if both else attempts[0]
    print(f"1. {k} rollouts of one problem of {problems}, verified: {failure.problem.prompt}")
    for i, a in enumerate(attempts):
        if a.group == failure.group:
            mark = ">" if a is failure else " "
            verdict = "right" if a.success else "wrong"
            print(f" {mark} [{i}] {verdict}  {a.text!r}  {a.verdict.feedback}")

    print(f"2. the teacher of the rollout marked > reads these peers: {failure.peers}")
    print("   | " + failure.teacher_text.replace("\n", "\n   | "))

    metrics = mopd.backward(student, teacher, attempts)
    learning, tokens = sum(bool(a.weight) for a in attempts), metrics["scored_tokens"]
    print(f"3. {learning} of {len(attempts)} rollouts have peers or feedback: {tokens} tokens")
    print(f"   loss, the mean divergence of these tokens: {metrics['loss']:.5f}")

    norm = get_total_norm([p.grad for p in student.parameters() if p.grad is not None])
    print(f"4. gradient norm: {norm:.5f}; now optimizer.step() and teacher.update(student, rate)")


if __name__ == "__main__":
    logging.disable_progress_bar()  # of transformers, when it saves or loads the student
    instruction = verifiers.INSTRUCTIONS["math"]
    one_step(*tiny.build("math", instruction=instruction, verify=verifiers.verify))
