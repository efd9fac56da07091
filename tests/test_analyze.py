"""The page, the token view, the monitors and the measures of the teacher's signal, on a random
model and by hand."""

import html.parser
import json
import math
import types

import numpy
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tools import flags, read_lines, steps_of, write_lines
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import analyze
import mopd
import peer_context
import train
from mopd import Attempt, Problem
from rollout import Rollout
from runtime import checkpoint, report
from runtime.metrics import describe
from verifiers import INSTRUCTIONS, Verdict

EVERY_STEP = ["--lr", "0.05", "--warmup-steps", "0", "--save-every", "1", "--keep", "3"]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run folder of three steps, evaluated after 2 and 3."""
    out = tmp_path_factory.mktemp("analyze") / "out"
    train.main(flags(folder, out, *EVERY_STEP))
    return out


@pytest.fixture
def ready(folder, tmp_path):
    """(prepared run, attempts of its first step with every other rollout made a success)."""
    made = train.prepare(
        train.parse(flags(folder, tmp_path / "ready", "--rollouts", "12", "--layout", "turn"))
    )
    attempts = analyze.sample_groups(made)
    for n, a in enumerate(attempts):
        a.rollout.stopped, a.verdict = True, Verdict(n % 2 == 0, str(n), "")
    return made, attempts


def attempt(
    group=0, text="x", right=False, stopped=True, answer="1", ids=(1, 2), logprobs=(-1.0, -3.0)
):
    rollout = Rollout([1], list(ids), list(logprobs), stopped)
    return Attempt(Problem("p", "1", "s", group), group, rollout, text, Verdict(right, answer, ""))


# --- measures against groups worked by hand ---


def test_pairs_ties_and_lengths_by_hand():
    """Scores 3 2 2 1, right: first and third. Pairs: 3>2 3>1 won, 2=2 tied, 2>1 won."""
    scores, verdicts = [3, 2, 2, 1], [True, False, True, False]
    assert analyze.pair_counts(scores, verdicts) == (3, 1, 4)
    assert analyze.pair_counts(scores, verdicts, [10, 11, 20, 19]) == (
        2,
        0,
        2,
    )  # 10-11 and 20-19; 9 to 10 is a tenth
    assert analyze.pair_counts([1, 2], [True, False], [10, 12]) == (0, 0, 0)
    found = analyze.agreement(scores, verdicts, [1, 1, 1, 1])
    assert (
        found["AUC"] == (0.875, 1)
        and found["pairs"] == (0.75, 4)
        and found["AUC, like length"] == (0.875, 4)
    )


def test_rank_correlations_share_ties():
    """Ranks 4 2.5 2.5 1 and, for verdicts 1 0 1 0, 3.5 1.5 3.5 1.5: sum of products 3, squares 4.5
    and 4."""
    assert list(analyze.ranks([3, 2, 2, 1])) == [4, 2.5, 2.5, 1]
    assert math.isclose(analyze.spearman([3, 2, 2, 1], [1, 0, 1, 0]), 3 / math.sqrt(4.5 * 4))
    assert math.isclose(
        analyze.kendall([3, 2, 2, 1], [1, 0, 1, 0]), 3 / math.sqrt(5 * 4)
    )  # 3 - 0 of 5 and 4 untied
    assert analyze.spearman([1, 2, 3], [3, 2, 1]) == analyze.kendall([1, 2, 3], [3, 2, 1]) == -1
    assert analyze.spearman([2, 2, 2], [1, 0, 1]) == analyze.kendall([2, 2, 2], [1, 0, 1]) == 0


def test_the_best_rollout_is_a_hit_and_ties_share():
    assert analyze.top_hit([1, 5, 2], [False, True, False]) == 1
    assert analyze.top_hit([5, 5, 2], [False, True, True]) == 0.5


def test_where_the_divergence_lies_by_hand():
    """Twelve tokens: the two strongest, 6 and 2, hold 8 of 10; positions 0, 1 (of a row of two) and
    0.5."""
    rows = [
        numpy.array([6.0, 1.0]),
        numpy.array([0.0, 2.0, 0.0]),
        numpy.array([1.0]),
        numpy.zeros(6),
    ]
    found = analyze.where(rows)
    assert found["strongest tenth"] == (0.8, 10.0)
    assert (
        math.isclose(found["position"][0], (6 * 0 + 1 * 1 + 2 * 0.5 + 1 * 0) / 10)
        and found["position"][1] == 10.0
    )
    for nothing in ([numpy.zeros(3)], [numpy.array([3e-8, -1e-8])]):
        assert set(analyze.where(nothing).values()) == {(0.0, 0.0)}


def test_the_bootstrap_draws_prompts_and_weights_them():
    draws = numpy.array([[0, 0], [1, 1], [0, 1]])
    estimate, replicates = analyze.resampled([1.0, 0.0], [1, 3], draws)
    assert estimate == 0.25 and list(replicates) == [1.0, 0.0, 0.25]
    assert analyze.interval(*analyze.resampled([0.0, 0.0], [0, 0], draws)) == [None, None, None]


# --- which rollouts are scored and what they read ---


def groups_of(*rights, size=12):
    return [
        attempt(g, f"{g}-{n}", n < right, ids=range(1, 3 + n % 3), logprobs=[-1.0] * (2 + n % 3))
        for g, right in enumerate(rights)
        for n in range(size)
    ]


def test_every_scored_rollout_of_a_prompt_reads_the_same_peers_and_never_itself():
    """Peers drawn from all others would show a success one success fewer: the score could count."""
    contexts = (*analyze.SIGNAL, *analyze.CONTROLS)
    attempts = groups_of(6, 6, 5)
    peers, scored = analyze.draw_peers(attempts, contexts, seed=3)
    assert len(scored) == 3
    for c, (n, m) in {
        **analyze.SIGNAL,
        "random": (2, 1),
        "unrelated": (3, 0),
        "success_only": (3, 0),
    }.items():
        assert set(peers[c]) == {i for mates in scored for i in mates}  # the same rows everywhere
        for mates in scored:
            assert len({(peers[c][i].successes, peers[c][i].failures) for i in mates}) == 1
            shown = peers[c][mates[0]].successes, peers[c][mates[0]].failures
            assert (len(shown[0]), len(shown[1])) == (n, m) and not set(sum(shown, ())) & set(mates)
            own = {attempts[j].group for j in sum(shown, ())} <= {attempts[mates[0]].group}
            assert own or c == "unrelated"
            if c in analyze.SIGNAL or c == "success_only":
                assert all(attempts[j].success for j in shown[0]) and not any(
                    attempts[j].success for j in shown[1]
                )
    assert all(
        attempts[j].group != attempts[i].group
        for i in peers["unrelated"]
        for j in peers["unrelated"][i].successes
    )


def test_prompts_of_one_class_are_left_out_and_truncated_rollouts_are_neither_shown_nor_scored():
    attempts = groups_of(12, 0, 6, 3, 6)
    for a in attempts[24:30] + attempts[58:]:  # the successes of group 2, two failures of group 4
        a.rollout.stopped = False
    peers, scored = analyze.draw_peers(attempts, ("none", "2s+1f", "success_only"), seed=0)
    assert [attempts[mates[0]].group for mates in scored] == [
        4
    ]  # group 3 has no success left over to score
    assert (
        len(scored[0]) == 10 - 3 - 1
        and set(peers["2s+1f"]) == set(scored[0])
        and max(scored[0]) < 58
    )
    assert all(j < 58 for p in peers["2s+1f"].values() for j in p.failures)


def test_a_score_that_only_counts_successes_is_worth_nothing_and_leave_one_out_shows_it(
    monkeypatch,
):
    """The confound: the fewer successes a rollout reads, the lower its score here, whatever it
    says."""

    def fake(run, attempts, peers):
        def reading(p):
            score = numpy.array([-2.0 + len(p.successes) - len(p.failures)])
            return report.Reading(score, score.copy(), numpy.ones(1), [], [])

        return {
            c: [reading(chosen[i]) if i in chosen else None for i in range(len(attempts))]
            for c, chosen in peers.items()
        }, set()

    monkeypatch.setattr(analyze, "read_contexts", fake)
    result = analyze.measure_signal(
        types.SimpleNamespace(settings=train.Settings()), groups_of(6, 6, 7), resamples=50
    )
    for kind in ("log-probability", "log-ratio"):
        table = result["tables"][kind]
        assert all(row["AUC"] == [0.5, 0.5, 0.5] for row in table.values())
        assert (
            table["2 successes"]["leave-one-out"]
            == [0.0, 0.0, 0.0]
            == table["2s+1f"]["leave-one-out"]
        )
        assert "leave-one-out" not in table["random"]
    assert all(x == [0, 0, 0] for x in result["AUC differences"]["log-ratio"].values())
    assert table["2s+1f"]["strongest tenth"][0] == pytest.approx(3 / 17) and table["2s+1f"][
        "position"
    ] == [0, 0, 0]  # 17 rows
    assert result["resamples"] == 50 and result["prompts_used"] == 3
    analyze.print_signal(result)


def test_the_signal_is_the_teachers_mean_log_probability_under_the_training_prompt(ready):
    made, attempts = ready
    result = analyze.measure_signal(made, attempts, contexts=("none", "1s+1f"), resamples=20)
    peers, scored = analyze.draw_peers(attempts, ("none", "1s+1f"), made.settings.seed)
    i = scored[0][0]
    text = peer_context.teacher_prompt(
        attempts[i].problem.prompt,
        successes=[attempts[j].text.strip() for j in peers["1s+1f"][i].successes],
        failures=[attempts[j].text.strip() for j in peers["1s+1f"][i].failures],
    )
    prompt = mopd.chat_ids(
        made.tokenizer, attempts[i].problem.system, [{"role": "user", "content": text}]
    )
    with torch.no_grad():
        logits = made.teacher.model(torch.tensor([prompt + attempts[i].rollout.ids])).logits[
            0, len(prompt) - 1 : -1
        ]
    expected = logits.log_softmax(-1)[range(len(attempts[i].rollout.ids)), attempts[i].rollout.ids]
    readings, lost = analyze.read_contexts(made, attempts, peers)
    assert not lost and numpy.allclose(readings["1s+1f"][i].teacher, expected.numpy(), atol=1e-4)
    assert set(result["tables"]["log-ratio"]) == {"1s+1f"} and result["rollouts_used"] == sum(
        map(len, scored)
    )


def test_too_few_usable_prompts_are_refused_with_what_to_do(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [x for x in flags(folder, "") if x not in ("--out", "")]
    with pytest.raises(SystemExit) as stop:
        analyze.main(["signal", *arguments])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "more --problems, more --rollouts, or easier problems" in error
    with pytest.raises(SystemExit) as stop:
        analyze.main(["signal", *arguments, "--resamples", "0"])
    assert stop.value.code == 2 and "--resamples 0" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        analyze.main(["signal", *arguments, "--method", "grpo"])
    assert stop.value.code == 2 and "--method grpo has no teacher" in capsys.readouterr().err


# --- preflight ---


def test_preflight_gives_numbers_and_reasons(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [x for x in flags(folder, "") if x not in ("--out", "")]
    analyze.main(["preflight", *arguments, "--out", "numbers.json"])
    printed, numbers = capsys.readouterr().out, json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["success"] == 0 and numbers["all_wrong"] == 1 and numbers["auc"] is None
    assert (
        "verdict: not like this" in printed
        and "groups are 100% all-wrong: easier problems or larger --rollouts" in printed
    )
    for wrong in (
        ["--out", "nowhere/numbers.json"],
        ["--out", "numbers.json", "--data", "nowhere.jsonl"],
    ):
        with pytest.raises(SystemExit):
            analyze.main(["preflight", *arguments, *wrong])
        assert (
            "nowhere" in capsys.readouterr().err
            and json.loads((tmp_path / "numbers.json").read_text()) == numbers
        )
    assert numbers["doubts"] and all(reason in printed for reason in numbers["doubts"])


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(all_wrong=0.92), "92% all-wrong"),
        (dict(all_right=0.9), "harder problems"),
        (dict(truncated=0.5), "--max-new-tokens"),
        (dict(weighted=0.2), "larger --rollouts"),
        (dict(teacher_gain=0.0, teacher_gain_error=0.0), "hardly better than the student"),
        (
            dict(teacher_gain=-0.15, teacher_gain_error=0.03),
            "or worse (-0.15, standard error 0.03): a larger model",
        ),
        (
            dict(teacher_gain=0.06, teacher_gain_error=0.04),
            "lead (+0.06, standard error 0.04) may be nothing: more --problems",
        ),
        (dict(auc=[0.5, 0.4, 0.6]), "AUC 0.50"),
        (dict(auc=[0.5, 0.4, 0.6], auc_prompts=3), None),
        (dict(divergence=0.0), "no signal"),
        (
            dict(
                measured={"own": "sdpo", "arms": {"sdpo": {"turn": {"lead": -0.3, "error": 0.1}}}}
            ),
            "train.py would refuse",
        ),
        (dict(problems=4), "4 problems are too few to say"),
        (dict(teacher_gain=None, auc=None, divergence=None), None),
        (dict(), None),
    ],
)
def test_each_doubt_has_its_reason(change, says):
    numbers = (
        dict(
            problems=32,
            all_wrong=0.3,
            all_right=0.1,
            truncated=0.0,
            weighted=1.0,
            teacher_gain=0.4,
            teacher_gain_error=0.05,
            auc=[0.9, 0.8, 1.0],
            auc_prompts=20,
            divergence=0.03,
            measured={"own": "sdpo", "arms": {}},
        )
        | change
    )
    found = [text.format(**numbers) for when, text in analyze.DOUBTS if when(numbers)]
    assert len(found) == (says is not None) and (says is None or says in found[0])


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--teacher", "frozen"),
        ("--method", "sdpo"),
        ("--peers", "positive", "--no-feedback"),
        ("--method", "opd", "--teacher", "MODEL"),
    ],
)
def test_preflight_runs_for_every_teacher(folder, tmp_path, capsys, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    more = [str(folder / "model") if word == "MODEL" else word for word in more]
    analyze.main(["preflight", *[x for x in flags(folder, "") if x not in ("--out", "")], *more])
    printed = capsys.readouterr().out
    assert "verdict:" in printed and ("AUC of its scores" in printed) == ("opd" not in more)


@pytest.mark.parametrize(
    "peers, context",
    [
        ("contrastive", "1s+1f"),
        ("positive", "1 success"),
        ("random", "random"),
        ("unrelated", "unrelated"),
        ("success_only", "success_only"),
    ],
)
def test_preflight_measures_the_signal_after_what_the_runs_own_teacher_reads(ready, peers, context):
    made, attempts = ready
    made.settings.peers = peers
    result = analyze.preflight(made, attempts)
    signal = analyze.measure_signal(made, attempts, contexts=("none", context))
    assert (
        result["auc_context"] == context
        and result["auc"] == signal["tables"]["log-ratio"][context]["AUC"]
    )
    analyze.print_preflight(result)


# --- the token view ---


def test_the_token_view_is_what_the_models_say_at_the_weights_that_sampled(ready):
    made, attempts = ready
    seed, seconds = made.settings.seed_of(1), {}
    record = report.token_view(made, 1, attempts, seed=seed, budget=4096, seconds=seconds)[0]
    assert seconds["view"] > 0 and set(record["attempts"][0]["contexts"]) == {
        "none",
        "positive",
        "contrastive",
    }
    mopd.plan(attempts, method="mopd", seed=seed)  # what training would choose
    mopd.write_contexts(attempts, made.teacher, peer_tokens=64, max_tokens=10_000)
    for n, (row, a) in enumerate(zip(record["attempts"], attempts[:12], strict=True)):
        assert "".join(row["tokens"]) == made.tokenizer.decode(a.rollout.ids).rstrip("\ufffd")
        assert numpy.allclose(row["student"], a.rollout.logprobs, atol=2e-3)  # the sampler's own
        context = row["contexts"]["contrastive"]
        assert (
            context["successes"] == [j + 1 for j in a.peers.successes]
            and context["prompt"] == a.teacher_text
        )
        ids = torch.tensor([a.teacher_ids + a.rollout.ids])
        with torch.no_grad():
            q = made.teacher.model(ids).logits[0, len(a.teacher_ids) - 1 : -1].log_softmax(-1)
            p = made.student(torch.tensor([a.rollout.prompt_ids + a.rollout.ids])).logits
        p = p[0, len(a.rollout.prompt_ids) - 1 : -1].log_softmax(-1)
        m = torch.logaddexp(p, q) - math.log(2)
        jsd = ((p.exp() * (p - m)).sum(-1) + (q.exp() * (q - m)).sum(-1)) / 2
        assert numpy.allclose(context["teacher"], q[range(len(q)), a.rollout.ids], atol=2e-3)
        assert numpy.allclose(context["divergence"], jsd, atol=2e-3)
        best = q[0].topk(3)
        if context["likely"][0]:
            assert numpy.allclose([x for _, x in context["likely"][0]], best.values, atol=2e-3)
        assert row["contexts"]["none"]["successes"] == [] and row["number"] == n + 1


def test_looking_changes_neither_the_run_nor_its_metrics(folder, run, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "token_view", lambda *args, **kwargs: [])
    train.main(flags(folder, tmp_path / "blind", *EVERY_STEP))
    assert (
        steps_of(run) == steps_of(tmp_path / "blind")
        and not (tmp_path / "blind" / "tokens.jsonl").exists()
    )
    assert {r["step"] for r in read_lines(run / "tokens.jsonl")} == {1, 2, 3}


def test_a_run_records_its_tokens_before_the_update(run):
    """Step 2 sampled with the weights of the checkpoint of step 1; those of step 2 are a large step
    away."""
    record = next(r for r in read_lines(run / "tokens.jsonl") if r["step"] == 2)
    tokenizer = AutoTokenizer.from_pretrained(run / "step-000002" / "model")
    problem = Problem(record["prompt"], "", INSTRUCTIONS["math"], 0)
    prompt, text = mopd.student_ids(tokenizer, problem), record["attempts"][0]["likely"][0][0][0]
    (best,) = tokenizer(text, add_special_tokens=False)["input_ids"]
    for step, same in ((1, True), (2, False)):
        model = AutoModelForCausalLM.from_pretrained(
            run / f"step-{step:06d}" / "model", dtype=torch.float32
        )
        with torch.no_grad():
            found = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)[best].item()
        assert (abs(found - record["attempts"][0]["likely"][0][0][1]) < 6e-4) is same


def test_a_resumed_run_has_each_groups_tokens_once(folder, tmp_path):
    train.main(flags(folder, tmp_path / "whole", "--steps", "4"))
    train.main(flags(folder, tmp_path / "parts", "--steps", "2"))
    with open(tmp_path / "parts" / "tokens.jsonl", "a") as file:
        file.write('{"step": 4, "attempts": []}\n')
    train.main(flags(folder, tmp_path / "parts", "--steps", "4", "--resume"))
    assert read_lines(tmp_path / "whole" / "tokens.jsonl") == read_lines(
        tmp_path / "parts" / "tokens.jsonl"
    )


def test_mixed_groups_come_first_and_long_rollouts_are_cut_and_say_so(ready, monkeypatch):
    made, attempts = ready
    monkeypatch.setattr(report, "VIEW_TOKENS", 5)
    monkeypatch.setattr(report, "VIEW_GROUPS", 1)
    for a in attempts[:12]:
        a.verdict = Verdict(False, None, "")  # the first group: all wrong
    (record,) = report.token_view(made, 1, attempts, seed=0, budget=4096, seconds={})
    assert record["prompt"] == attempts[12].problem.prompt
    for row, a in zip(record["attempts"], attempts[12:24], strict=True):
        assert len(row["tokens"]) == len(row["student"]) == min(5, len(a.rollout.ids))
        assert row["cut"] == max(0, len(a.rollout.ids) - 5)


@pytest.mark.parametrize(
    "method, extra",
    [
        (["--method", "grpo"], None),
        (["--method", "sdpo"], "sdpo"),
        (["--peers", "unrelated"], "unrelated"),
    ],
)
def test_every_method_has_a_token_view_with_its_own_context(folder, tmp_path, method, extra):
    train.main(flags(folder, tmp_path / "out", "--steps", "1", *method))
    record = read_lines(tmp_path / "out" / "tokens.jsonl")[0]
    assert list(record["attempts"][0]["contexts"]) == [
        "none",
        "positive",
        "contrastive",
        *([extra] if extra else []),
    ]
    assert record["own"] == ("none" if method[-1] == "grpo" else extra)
    assert record["teacher"] == (
        "none; a copy of the student reads" if method[-1] == "grpo" else "ema"
    )


@pytest.mark.parametrize("peers", ["random", "unrelated"])
def test_peers_are_numbered_within_their_group_and_those_of_other_problems_have_no_number(
    ready, peers
):
    made, attempts = ready
    made.settings.peers = peers
    mopd.plan(attempts, method="mopd", peers=peers, seed=1)
    mopd.write_contexts(attempts, made.teacher, peer_tokens=64, max_tokens=10_000)
    record = report.token_view(made, 1, attempts, seed=1, budget=4096, seconds={})[1]
    for row, a in zip(record["attempts"], attempts[12:24], strict=True):
        shown = row["contexts"][peers]["successes"] + row["contexts"][peers]["failures"]
        assert (
            shown
            == [
                j - 12 + 1 if peers == "random" else 0 for j in a.peers.successes + a.peers.failures
            ]
            != []
        )
        assert all(
            1 <= n <= 12 and n != row["number"] for n in row["contexts"]["contrastive"]["successes"]
        )


def test_pieces_join_to_the_text_whatever_the_tokenizer(folder):
    text = "Is 3 < 4? 漢字 \U0001f600 é\n\n  x  y"
    byte_level = AutoTokenizer.from_pretrained(folder / "model")
    core = Tokenizer(
        models.WordLevel({"[UNK]": 0, "▁Is": 1, "▁it": 2, "▁so": 3, "?": 4}, unk_token="[UNK]")
    )
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    spaces = PreTrainedTokenizerFast(
        tokenizer_object=core
    )  # decodes ▁it alone to "it", without its space
    ids = byte_level(text, add_special_tokens=False)["input_ids"]
    assert "".join(report.pieces(byte_level, ids)) == text and len(
        report.pieces(byte_level, ids)
    ) == len(ids)
    assert report.pieces(spaces, [1, 2, 3]) == ["Is", " it", " so"]


# --- the page ---


class Page(html.parser.HTMLParser):
    """Tags of a page; fails on what a browser would have to repair."""

    VOID = {"meta", "br", "link", "img", "input", "hr"}
    SVG_EMPTY = {"line", "polyline", "circle"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.scripts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open
        assert len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes)
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag, attributes):
        assert tag in self.SVG_EMPTY, f"<{tag}/> is not closed in HTML"
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += text


def test_a_run_ends_with_a_valid_page_that_needs_nothing_from_outside(run):
    text = (run / "report.html").read_text("utf-8")
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("figure") == len(report.CHARTS)
    assert (
        not [a for _, a in page.tags if "src" in a or not a.get("href", "#").startswith("#")]
        and "http" not in text
    )
    assert len(page.scripts) == 2
    assert [{**r, "run": "out"} for r in read_lines(run / "tokens.jsonl")] == json.loads(
        page.scripts[0]
    )  # in this order
    assert "%" + "DATA%" not in text and "held-out mean@2" in text


EVIL = "</script><script>alert(1)</script><!--<script><img src=x onerror=alert(1)>%DATA%%RUNS%"
EVIL += " \u2028 \ud83d"


def test_model_text_that_tries_to_inject_markup_stays_text(run, tmp_path):
    out = tmp_path / "<img src=x onerror=alert(1)>"
    out.mkdir()
    record = read_lines(run / "tokens.jsonl")[0]
    record["prompt"] = record["attempts"][0]["answer"] = record["attempts"][0]["tokens"][0] = EVIL
    (out / "tokens.jsonl").write_text(json.dumps(record) + "\n")
    (out / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text())
    (out / "config.json").write_text(json.dumps({"model": EVIL, "task": "<b>"}))
    page = Page(report.write_report([out]).read_text("utf-8"))
    assert not {"img", "b-"} & {tag for tag, _ in page.tags} and len(page.scripts) == 2
    (shown,) = json.loads(page.scripts[0])
    assert (
        shown["prompt"]
        == shown["attempts"][0]["answer"]
        == shown["attempts"][0]["tokens"][0]
        == EVIL
    )
    script = report.TEMPLATE.read_text("utf-8")
    assert (
        "innerHTML" not in script
        and "document.write" not in script
        and "insertAdjacent" not in script
    )


def test_large_runs_keep_the_newest_tokens_and_say_what_is_left_out(run, tmp_path, monkeypatch):
    record, out = read_lines(run / "tokens.jsonl")[0], tmp_path / "large"
    out.mkdir()
    monkeypatch.setattr(report, "PAGE_BYTES", 5 * len(json.dumps(record)))
    (out / "tokens.jsonl").write_text(
        "".join(json.dumps(record | {"step": n}) + "\n" for n in range(1, 21))
    )
    text = report.write_report([out]).read_text("utf-8")
    steps = [r["step"] for r in json.loads(Page(text).scripts[0])]
    assert 3 <= len(steps) <= 6 and steps == sorted(report.spread(list(range(1, 21)))[: len(steps)])
    assert f"{20 - len(steps)} of 20 recorded groups are left out" in text
    assert report.spread([1, 15, 30, 45, 60]) == [60, 1, 30, 45, 15] and report.spread([]) == []
    (out / "tokens.jsonl").write_text(
        "".join(json.dumps(record | {"step": n}) + "\n" for n in (1, 1, 1, 2, 2, 2))
    )
    monkeypatch.setattr(report, "PAGE_BYTES", int(2.5 * len(json.dumps(record))))
    steps = [
        r["step"]
        for r in json.loads(Page(report.write_report([out]).read_text("utf-8")).scripts[0])
    ]
    assert steps == [1, 2]  # not two groups of the second step
    huge = record | {"prompt": "x" * 10**6}
    (out / "tokens.jsonl").write_text(
        "".join(json.dumps(r | {"step": n}) + "\n" for n, r in ((1, record), (2, huge), (3, huge)))
    )
    text = report.write_report([out]).read_text("utf-8")
    assert [r["step"] for r in json.loads(Page(text).scripts[0])] == [
        1
    ] and "2 of 3 recorded groups are left out" in text


def test_a_broken_or_half_written_run_gives_what_there_is(run, tmp_path, capsys):
    out = tmp_path / "broken"
    out.mkdir()
    with pytest.raises(ValueError, match="nothing to show"):
        report.write_report([out])
    with pytest.raises(ValueError, match="no such run folder: .*nix"):
        report.write_report([run, tmp_path / "nix"])
    good = (run / "metrics.jsonl").read_text().splitlines()
    odd = [
        '{"step": 9, "loss": NaN, "success": 1e999}',
        '{"step": "x"}',
        "[]",
        '{"step": 10, "loss": 1, "success": "high", "seconds": 3}',
    ]
    (out / "metrics.jsonl").write_text("\n".join([*good, *odd]) + '\n{"step": 11, "lo')
    (out / "config.json").write_text('{"task": ')
    record = read_lines(run / "tokens.jsonl")[0]
    record["attempts"][0]["student"][:2] = math.nan, math.inf
    (out / "tokens.jsonl").write_bytes(
        json.dumps(record).encode()
        + b'\n{"step": 1}\n\xff\xfe\n'
        + (run / "tokens.jsonl").read_bytes()[:-50]
    )
    page = Page(report.write_report([out]).read_text("utf-8"))
    shown = json.loads(page.scripts[0], parse_constant=pytest.fail)
    assert (
        len(shown) == len(read_lines(run / "tokens.jsonl"))
        and None in shown[0]["attempts"][0]["student"]
    )
    assert "3 lines cannot be read" in capsys.readouterr().out
    (out / "metrics.jsonl").write_text(
        '{"step": true, "loss": 1}\n{"step": 1, "loss": 1e308}\n{"step": 2, "loss": -1e308}\n'
    )
    (out / "tokens.jsonl").write_text(
        '{"step": 1, "attempts": []}\n{"step": 2, "attempts": [{"number": 1}]}\n'
        + "".join(
            json.dumps(r) + "\n"
            for r in (
                {k: v for k, v in record.items() if k != "problem"},
                record | {"attempts": [record["attempts"][0] | {"contexts": {"none": [1]}}]},
                record,
            )
        )
    )
    page = Page(report.write_report([out]).read_text("utf-8"))
    assert [r["step"] for r in json.loads(page.scripts[0])] == [record["step"]]
    report.show(out)
    (out / "metrics.jsonl").unlink()
    Page(report.write_report([out]).read_text("utf-8"))


def test_several_runs_are_overlaid_in_one_page(run, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text())
    own = report.write_report([tmp_path / "other"])
    before = own.read_bytes()
    path = report.write_report([tmp_path / "other", run])
    assert path != own == tmp_path / "other" / "report.html" and own.read_bytes() == before
    text = path.read_text("utf-8")
    (held,) = [x for x in text.split("<figure>") if x.startswith("<figcaption>Held-out")]
    assert (
        held.count("<polyline") == 4 + 2 * 4 and held.count("mean@k") == 1
    )  # a key for each quantity, two runs
    assert len(Page(text).scripts) == 2 and "<b>other</b>" in text and "<b>out</b>" in text


def test_runs_whose_folders_have_one_name_are_told_apart_and_one_given_twice_is_shown_once(
    run, tmp_path
):
    for name in "ab":
        (tmp_path / name / "out").mkdir(parents=True)
        for file in ("metrics.jsonl", "tokens.jsonl"):
            (tmp_path / name / "out" / file).write_text((run / file).read_text())
    text = report.write_report(
        [tmp_path / "a" / "out", tmp_path / "b" / "out", tmp_path / "b" / ".." / "a" / "out"]
    ).read_text("utf-8")
    names = {r["run"] for r in json.loads(Page(text).scripts[0])}
    assert (
        names == {str(tmp_path / "a" / "out"), str(tmp_path / "b" / "out")}
        and text.count('<li class="run') == 2
    )


def test_a_step_without_anything_to_learn_has_no_loss_to_plot(tmp_path):
    rows = [{"step": n, "loss": 0.5 * (n != 2), "scored_tokens": 40 * (n != 2)} for n in (1, 2, 3)]
    write_lines(tmp_path / "metrics.jsonl", rows)
    found = report.read_run(tmp_path)
    assert report.curve(found.steps, "loss") == [(1, 0.5), (3, 0.5)] and len(found.steps) == 3


def test_an_evaluation_has_an_interval_over_its_problems_and_a_step_its_seconds():
    """By hand: shares 1 and 0, deviation sqrt(1/2), error 1/2 over two problems."""
    record = {"step": 0, "eval_mean_at_k": 0.5, "eval_k": 4, "eval_right": {"3": 4, "8": 0}}
    found = report.derived(record)
    assert math.isclose(found["eval_low"], 0.5 - 0.98) and math.isclose(found["eval_high"], 1.48)
    for odd in ({"3": 4}, {"3": 4, "8": "none"}, [4, 0], None):
        assert "eval_low" not in report.derived(record | {"eval_right": odd})
    found = report.derived({"step": 1, "seconds": {"rollout": 0.5, "view": None}})
    assert found == {"step": 1, "rollout": 0.5}


def test_ticks_are_round_and_curves_keep_means_of_neighbours():
    assert numpy.allclose(report.ticks(0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert report.ticks(0, 60) == [0, 20, 40, 60] and numpy.allclose(
        report.ticks(-0.23, 0), [-0.2, -0.15, -0.1, -0.05, 0]
    )
    records = [{"step": n, "x": n % 2} for n in range(1, 11)] + [{"step": 11, "x": None}]
    assert report.curve(records, "x", most=5) == [
        (1.5, 0.5),
        (3.5, 0.5),
        (5.5, 0.5),
        (7.5, 0.5),
        (9.5, 0.5),
    ]
    assert len(report.curve(records, "x")) == 10 and report.curve(records, "y") == []
    assert report.chart("nothing", [("a", 0, 0, [])]) == ""


def test_the_example_at_the_end_is_a_failure_whose_teacher_reads_successes_and_a_failure():
    attempts = groups_of(0, 2, 1, size=3)
    assert report.example_of(attempts[:3]) is None
    attempts[7].peers, attempts[5].peers = (
        peer_context.Peers((6,), (8,)),
        peer_context.Peers((3, 4), ()),
    )
    success, failure = report.example_of(attempts)
    assert failure is attempts[7] and success is attempts[6]


# --- the terminal ---


def test_the_terminal_view_is_plain_without_a_terminal_and_never_passes_on_escape_codes(
    run, tmp_path, capsys
):
    record = read_lines(run / "tokens.jsonl")[0]
    record["attempts"][0]["tokens"][0] = "\x1b]0;owned\x07evil"
    record["attempts"][0]["contexts"]["positive"]["teacher"][0] = (
        record["attempts"][0]["student"][0] + 1.5
    )
    (tmp_path / "tokens.jsonl").write_text(json.dumps(record) + "\n")
    report.show(tmp_path, context="positive")
    plain = capsys.readouterr().out
    assert "\x1b" not in plain and "\x07" not in plain and "evil[+1.5]" in plain
    report.show(tmp_path, context="positive", colour=True)
    coloured = capsys.readouterr().out
    assert f"\x1b[30;48;5;{report.BLUES[3]}m\ufffd]0;owned\ufffdevil\x1b[0m" in coloured
    assert "\u21b5\n" not in plain
    record["attempts"][0]["tokens"][0] = "\n"
    (tmp_path / "tokens.jsonl").write_text(json.dumps(record) + "\n")
    report.show(tmp_path, context="positive")
    assert "\u21b5\n[+1.5]" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no such run folder"):
        report.show(tmp_path / "nix")
    with pytest.raises(ValueError, match=f"no tokens of step 7: choose from {record['step']}"):
        report.show(tmp_path, step=7)
    with pytest.raises(
        ValueError, match="--context random: this run has none, positive, contrastive"
    ):
        report.show(tmp_path, context="random")


def test_a_wrong_flag_or_folder_ends_with_status_2(tmp_path, capsys):
    for arguments in (
        ["show", str(tmp_path)],
        ["signal", "--resume"],
        ["report", str(tmp_path)],
        ["report", str(tmp_path), "--wide"],
        [],
    ):
        with pytest.raises(SystemExit) as stop:
            analyze.main(arguments)
        assert stop.value.code == 2 and "error:" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["signal", "preflight"])
@pytest.mark.parametrize("flags", [[], ["--task", "math"]])
def test_a_folder_given_to_signal_or_preflight_is_told_where_it_belongs(command, flags, capsys):
    with pytest.raises(SystemExit) as stop:
        analyze.main([command, *flags, "runs/a"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"{command} takes no runs/a: it asks the tiny student, or a model with" in error
    assert "report and show take the folder of a run" in error


def test_numbers_that_could_not_be_written_are_refused_before_anything_is_loaded(
    monkeypatch, capsys
):
    monkeypatch.setattr(train, "prepare", lambda settings: pytest.fail("it was loaded"))
    monkeypatch.setattr(checkpoint.tempfile, "TemporaryFile", lambda dir: open("/nothing/x"))
    with pytest.raises(SystemExit) as stop:
        analyze.main(["signal", "--out", "numbers.json"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "--out . cannot be written to (No such file" in error


# --- monitors ---

HEALTHY = dict(
    loss=1.0,
    success=0.2,
    groups_mixed=6,
    groups_all_right=1,
    groups_all_wrong=3,
    truncated=0,
    unweighted=0,
    lone_success=0,
    completion_tokens=800,
    mean_completion_length=10.0,
    length_p95=12,
    distinct_answers=5.0,
    distinct_texts=6.0,
    leaks=0,
    sampled_entropy=0.4,
    teacher_gap=-0.2,
    stop_gap=-0.1,
)
SICK = [
    ("distinct_answers", dict(distinct_answers=2.0)),
    ("distinct_answers", dict(distinct_answers=0.2)),
    ("distinct_texts", dict(distinct_texts=2.5)),
    ("group_pass", dict(groups_all_wrong=7, groups_mixed=2)),
    ("length_p95", dict(length_p95=30)),
    ("unweighted_share", dict(unweighted=80)),
    ("truncated_share", dict(truncated=40)),
    ("stop_gap", dict(stop_gap=-1.5)),
    ("leak_share", dict(leaks=8)),
    ("sampled_entropy", dict(sampled_entropy=0.05)),
    ("sampled_entropy", dict(sampled_entropy=2.0)),
    ("teacher_gap", dict(teacher_gap=-1.5)),
    ("teacher_gap", dict(teacher_gap=-0.005)),
]


def history(*changes):
    return [HEALTHY | {"step": n} | change for n, change in enumerate(changes, 1)]


@pytest.mark.parametrize("n", range(len(report.MONITORS)))
def test_each_collapse_warns_once_and_not_again_after_a_resume(n):
    name, sick = SICK[n]
    steps = history(*[{}] * 10, *[sick] * 10)
    look = report.monitor()
    found = [line for m in steps for line in look(m)]
    name = "pass@k" if name == "group_pass" else name
    assert len(found) == 1 and f": {name} " in found[0] and found[0].startswith("warning: step 1")
    assert found[0].endswith(report.MONITORS[n][2])
    look = report.monitor()  # one that begins in the third step, while "now" still fills
    assert [line.split(": ", 2)[2] for m in history({}, {}, *[sick] * 8) for line in look(m)] == [
        found[0].split(": ", 2)[2]
    ]
    look = report.monitor([{"step": 0, "eval_k": 8}, *steps[:16]])
    assert [line for m in steps[16:] for line in look(m)] == []
    look = report.monitor(steps[:10])  # the start is the run's, not the first step after the resume
    assert [line for m in steps[10:] for line in look(m)] == found
    look = report.monitor()
    assert [line for m in history(*[{}] * 20) for line in look(m)] == []


def test_completions_that_shrink_are_warned_of_like_those_that_run_away():
    """A teacher that reads a solution needs fewer words, and its student gives up thinking.

    RUCBM/G-OPD#10.
    """
    look = report.monitor()
    steps = history(*[{}] * 10, *[dict(length_p95=2)] * 10)
    [line] = [line for m in steps for line in look(m)]
    assert ": length_p95 2, at the start 12: completions run away or shrink" in line


# The first steps of benchmarks/real_model.py with SmolLM2-135M-Instruct (seed 100, lr 3e-5):
# success and stop_gap.
REAL_STARTS = {
    "contrastive,turn": (
        [0.156, 0.234, 0.266, 0.156, 0.172],
        [-1.468, -1.555, -1.398, -1.242, -1.014],
    ),  # 0.05 at step 5
    "positive,turn": (
        [0.156, 0.234, 0.281, 0.172, 0.234],
        [-1.285, -1.662, -1.333, -1.309, -0.426],
    ),  # 0.10
    "contrastive,turns": (
        [0.156, 0.234, 0.281, 0.188, 0.516],
        [-0.376, 0.045, 0.004, -0.229, -0.463],
    ),  # 0.52
    "positive,turns": (
        [0.156, 0.234, 0.281, 0.219, 0.531],
        [-0.119, -0.160, 0.059, 0.012, -0.336],
    ),  # 0.54
}


@pytest.mark.parametrize("arm", REAL_STARTS)
def test_a_teacher_that_does_not_want_to_stop_is_named_by_step_five_and_no_other(arm):
    look, steps = (
        report.monitor(),
        history(*[dict(success=a, stop_gap=b) for a, b in zip(*REAL_STARTS[arm], strict=True)]),
    )
    found = [line for m in steps for line in look(m)]
    assert [line.split(":")[1] for line in found] == ([" step 5"] if arm.endswith(",turn") else [])
    assert all("the teacher would rather go on" in line for line in found)


def test_a_monitor_survives_a_step_without_its_metric():
    look = report.monitor()
    steps = history({}, dict(teacher_gap=None), *[{}] * 9, *[dict(teacher_gap=-3.0)] * 5)
    assert [line for m in steps for line in look(m)][0].startswith("warning: step 1")


def test_a_run_that_can_learn_nothing_from_its_start_warns():
    look = report.monitor()
    found = [line for m in history(*[dict(truncated=80, unweighted=80)] * 6) for line in look(m)]
    assert len(found) == 1 and found[0].endswith("if they are cut, more --max-new-tokens")


def test_agreeing_on_the_right_answer_is_not_a_collapse():
    good = dict(
        success=0.9,
        distinct_answers=1.1,
        distinct_texts=1.2,
        sampled_entropy=0.02,
        teacher_gap=-0.001,
        groups_all_wrong=0,
        groups_all_right=8,
        groups_mixed=2,
    )
    look = report.monitor()
    assert [line for m in history(*[{}] * 5, *[good] * 10) for line in look(m)] == []


def test_a_step_whose_metrics_are_missing_is_no_reason_to_warn_or_fail():
    look = report.monitor()
    assert [
        line
        for n in range(12)
        for line in look({"step": n, "loss": 0.0, "teacher_gap": None, "leaks": "many"})
    ] == []


def test_monitored_numbers_by_hand():
    attempts = [
        attempt(0, "a", True, answer="1", ids=[1], logprobs=[-1.0]),
        attempt(0, "b", answer="1", ids=[1, 2, 3], logprobs=[-2.0] * 3),
        attempt(1, "c", answer=None),
        attempt(1, "As the failed\nattempt shows", answer="2"),
    ]
    m = describe(attempts)
    assert (m["distinct_answers"], m["distinct_texts"], m["leaks"]) == (1.0, 2.0, 1)
    assert (m["length_p95"], m["length_max"]) == (3, 3)
    assert m["sampled_entropy"] == (1 + 6 + 4 + 4) / 8
    assert (
        describe([attempt(0, ids=[1] * n, logprobs=[-1.0] * n) for n in range(1, 101)])[
            "length_p95"
        ]
        == 95
    )


def test_leak_phrases_are_the_prompts_own_words_and_not_everyday_ones():
    for label in (
        peer_context.SUCCESS,
        peer_context.ANOTHER_SUCCESS,
        peer_context.FAILURE,
        peer_context.FEEDBACK,
        peer_context.RIGHT,
        peer_context.WRONG,
        peer_context.TURN_FEEDBACK,
    ):
        assert peer_context.leaks(f"So {label} we see")
    for text in (
        "The other solution is x = -2.",
        "The given solution has pH 3.",
        "Back to the original problem.",
        "",
    ):
        assert not peer_context.leaks(text)
