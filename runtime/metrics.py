"""What a step is described by: sums over its micro-batches, counts over its groups, times."""

import contextlib
import math
import time

import torch

import peer_context
from runtime import parallel


class Sums:
    """What the metrics of a step are made of, added up over micro-batches and processes."""

    def __init__(self):
        self.loss = self.tokens = self.gap = self.lead = self.stops = self.stop_lead = 0.0

    def add(self, batch, out, targets) -> None:
        self.loss += out.loss.item()
        if not batch[0].weight:  # padding of the list of micro-batches
            return
        self.tokens += len(targets[0])
        self.gap += (out.student_logprobs - targets[1]).abs().sum().item()
        if getattr(out, "teacher_logprobs", None) is not None:
            ratio = out.teacher_logprobs - out.student_logprobs
            lasts = torch.tensor([len(a.rollout.ids) for a in batch]).cumsum(0) - 1
            lasts = lasts[torch.tensor([a.rollout.stopped for a in batch])].to(ratio.device)
            self.lead += ratio.sum().item()
            self.stops += len(lasts)
            self.stop_lead += ratio[lasts].sum().item()

    def metrics(self, teaches: bool) -> dict:
        values = parallel.total(
            [self.loss, self.tokens, self.gap, self.lead, self.stops, self.stop_lead]
        )
        value, tokens, gap, lead, stops, stop_lead = values
        return {
            "loss": value,
            "sampler_gap": gap / tokens if tokens else None,
            "scored_tokens": int(tokens),
            "teacher_gap": lead / tokens if tokens and teaches else None,
            "stop_gap": stop_lead / stops if stops else None,
        }


@contextlib.contextmanager
def timed(seconds: dict, name: str, model):
    """Add the block's time to seconds[name]; waits for a GPU, or the next block had its work."""
    start = time.perf_counter()
    yield
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def describe(attempts) -> dict:
    """Counts and means over a step's attempts: what its groups looked like.

    distinct_*: different answers and texts in a group, averaged over groups. sampled_entropy: mean
    of -log p over the sampled tokens, an unbiased estimate of the entropy of the law that they were
    sampled from. leaks: completions that speak of peers. length_p95: 95 % of the completions are no
    longer."""
    groups, answers, texts = {}, {}, {}
    for a in attempts:
        groups.setdefault(a.group, []).append(a.success)
        answers.setdefault(a.group, set()).update(
            [] if a.verdict.answer is None else [a.verdict.answer]
        )
        texts.setdefault(a.group, set()).add(a.text)
    right, wrong = sum(all(g) for g in groups.values()), sum(not any(g) for g in groups.values())
    lengths = sorted(len(a.rollout.ids) for a in attempts)
    tokens = sum(lengths)
    return {
        "success": sum(a.success for a in attempts) / len(attempts),
        "groups_mixed": len(groups) - right - wrong,
        "groups_all_right": right,
        "groups_all_wrong": wrong,
        "truncated": sum(not a.rollout.stopped for a in attempts),
        "unweighted": sum(not a.weight for a in attempts),
        "empty_slots": sum(a.peers.empty for a in attempts),
        "lone_success": sum(a.success and sum(groups[a.group]) == 1 for a in attempts),
        "completion_tokens": tokens,
        "mean_completion_length": tokens / len(attempts),
        "length_p95": lengths[math.ceil(0.95 * len(lengths)) - 1],
        "length_max": lengths[-1],
        "distinct_answers": sum(map(len, answers.values())) / len(groups),
        "distinct_texts": sum(map(len, texts.values())) / len(groups),
        "leaks": sum(peer_context.leaks(a.text) for a in attempts),
        "sampled_entropy": -sum(x for a in attempts for x in a.rollout.logprobs) / tokens,
    }
