"""The teacher measured before training: the statistics by hand, the choice of the layout, and what
a run does with it."""

import json
import math
from types import SimpleNamespace

import pytest
from tools import flags, read_lines, steps_of

import mopd
import train
from runtime import measure, parallel
from verifiers import Verdict


def arm(*rates, samples=64, stopped=1.0, **more):
    right, stops = sum(rates) / len(rates), dict.fromkeys(range(len(rates)), stopped)
    return {
        "right": right,
        "samples": samples,
        "stopped": stopped,
        "rates": dict(enumerate(rates)),
        "stop_rates": stops,
        "copies": 0.0,
        **more,
    }


def table(turn, turns, *, student=(0.2, 0.2, 0.2, 0.2), stops=(1.0, 1.0)):
    bare, arms = (
        arm(*student),
        {"turn": arm(*turn, stopped=stops[0]), "turns": arm(*turns, stopped=stops[1])},
    )
    for one in arms.values():
        one["lead"], one["error"] = measure.lead(one, bare)
        one |= {"tokens": 100.0, "dropped": 0}
    return {
        "own": "contrastive",
        "problems": len(turn),
        "bare": bare,
        "arms": {"contrastive": arms},
    }


# --- the statistics ---


def test_leads_are_paired_by_problem_with_an_error_over_problems():
    """Differences 0.5, 0.1, 0.3: mean 0.3, standard deviation 0.2; problem 3 has no partner."""
    ahead, error = measure.lead(
        arm(0.9, 0.5, 0.5, 0.7, samples=10**9), arm(0.4, 0.4, 0.2, samples=10**9)
    )
    assert ahead == pytest.approx(0.3) and error == pytest.approx(0.2 / math.sqrt(3))


def test_error_is_never_below_that_of_independent_samples():
    """Two problems that agree by chance have no spread; 8 samples of a coin still have an error of
    0.18."""
    ahead, error = measure.lead(arm(0.75, 0.75, samples=8), arm(0.5, 0.5, samples=8))
    assert ahead == 0.25 and error == pytest.approx(math.sqrt((0.75 * 0.25 + 0.5 * 0.5) / 8))


def test_fewer_than_two_common_problems_say_nothing():
    assert measure.lead(arm(1.0), arm(0.0)) == (None, None)


# --- the choice ---


@pytest.mark.parametrize(
    "turn, turns, chosen",
    [
        ((0.1, 0.2, 0.1, 0.2), (0.7, 0.8, 0.7, 0.8), "turns"),  # far ahead
        (
            (0.4, 0.4, 0.4, 0.4),
            (0.5, 0.5, 0.5, 0.5),
            "turn",
        ),  # ahead by little more than one standard error
        ((0.7, 0.8, 0.7, 0.8), (0.1, 0.2, 0.1, 0.2), "turn"),
        ((0.0, 0.0, 0.0, 0.9), (0.9, 0.9, 0.9, 0.0), "turn"),
    ],
)  # ahead on average, problems disagree
def test_turns_are_chosen_only_where_they_lead_by_two_standard_errors(turn, turns, chosen):
    assert measure.choose(table(turn, turns)) == chosen


@pytest.mark.parametrize(
    "turns, stops, chosen",
    [
        ((0.4, 0.3, 0.4, 0.3), (0.3, 1.0), "turns"),  # a little ahead, and it ends its answers
        ((0.2, 0.3, 0.2, 0.3), (0.3, 1.0), "turn"),  # ends its answers, and they are worse
        ((0.4, 0.3, 0.4, 0.3), (0.95, 1.0), "turn"),
    ],
)  # neither lead is certain
def test_a_layout_after_which_answers_end_is_chosen_if_they_are_no_worse(turns, stops, chosen):
    """On 8 problems of 8 rollouts two or three groups are mixed: right answers alone do not tell,
    unended ones do."""
    assert measure.choose(table((0.3, 0.3, 0.3, 0.3), turns, stops=stops)) == chosen


def test_a_template_with_one_layout_leaves_no_choice():
    only = table((0.1,) * 4, (0.9,) * 4)
    del only["arms"]["contrastive"]["turns"]
    assert measure.choose(only) == "turn"


def test_a_teacher_is_harmful_when_it_trails_the_student_in_every_layout():
    assert measure.harmful(table((0.0,) * 4, (0.1,) * 4, student=(0.6,) * 4))
    assert not measure.harmful(
        table((0.0,) * 4, (0.6,) * 4, student=(0.6,) * 4)
    )  # as good as the student in one
    assert not measure.harmful({"own": "contrastive", "problems": 0, "arms": {}, "bare": None})


def test_what_is_printed_says_when_the_failure_does_harm():
    found = table((0.1,) * 4, (0.2,) * 4)
    found["arms"]["positive"] = table((0.1,) * 4, (0.9,) * 4)["arms"]["contrastive"]
    assert not [
        line for line in measure.lines_of(found) if "does harm" in line
    ]  # turn is chosen: 0.1 and 0.1
    found["arms"]["contrastive"]["turns"] |= {"rates": dict(enumerate((0.6,) * 4)), "right": 0.6}
    assert [line for line in measure.lines_of(found) if "try --peers positive" in line]
    assert (
        "0 groups"
        in measure.lines_of({"own": "contrastive", "problems": 0, "arms": {}, "bare": None})[0]
    )


# --- the measurement and the run ---


@pytest.fixture
def judged(monkeypatch):
    """Verdicts by a rule of the text, so that a random model has groups of both kinds."""

    def rule(task, texts, answers, **_):
        return [Verdict(len(text) % 2 == 0, text[:3], "odd" * (len(text) % 2)) for text in texts]

    monkeypatch.setattr(mopd, "verify_batch", rule)
    monkeypatch.setattr(measure, "verify_batch", rule)


def prepared(folder, out, *more):
    return train.prepare(
        train.parse(flags(folder, out, "--rollouts", "8", "--max-new-tokens", "30", *more))
    )


def mixed(attempts):
    for n, a in enumerate(attempts):
        a.rollout.stopped, a.verdict = True, Verdict(n % 2 == 0, str(n), "")
    return attempts


def test_every_arm_has_the_asked_for_samples_spread_over_the_problems(folder, tmp_path, judged):
    run = prepared(folder, tmp_path / "a")
    found = measure.measure(run, mixed(train.sample_step(run, 1)[0]))
    assert (
        set(found["arms"]) == {"contrastive", "positive"}
        and found["problems"] == 3
        and found["own"] == "contrastive"
    )
    for by_layout in [{"bare": found["bare"]}, *found["arms"].values()]:
        for one in by_layout.values():
            assert (
                one["samples"] == 24 and len(one["rates"]) == 3
            )  # 3 problems x 8 rollouts are fewer than 64
            assert one["right"] == pytest.approx(sum(one["rates"].values()) / 3)
    turn, turns = (found["arms"]["contrastive"][layout] for layout in ("turn", "turns"))
    assert turns["tokens"] > turn["tokens"] > 0 and {"token_lead", "stop_lead"} <= turn.keys()
    assert "token_lead" not in found["arms"]["positive"]["turn"]
    again = measure.measure(run, mixed(train.sample_step(run, 1)[0]))
    assert json.dumps(again) == json.dumps(found)  # a resume that comes here finds the same


def test_bare_answers_are_new_ones_not_the_rollouts_and_differ_among_themselves(
    folder, tmp_path, judged, monkeypatch
):
    """A mixed group of a hard problem is one where the student was lucky: its rollouts overstate
    the student."""
    run, seen = prepared(folder, tmp_path / "a"), []
    real = measure.generate
    monkeypatch.setattr(measure, "generate", lambda *a, **k: seen.append(real(*a, **k)) or seen[-1])
    attempts = mixed(train.sample_step(run, 1)[0])
    measure.measure(run, attempts)
    fresh = {tuple(r.ids) for group in seen[0] for r in group}
    assert len(fresh) > 20 and not fresh & {tuple(a.rollout.ids) for a in attempts}


def test_groups_of_one_kind_are_not_measured(folder, tmp_path):
    run = prepared(folder, tmp_path / "a")
    attempts = train.sample_step(run, 1)[0]
    for a in attempts:
        a.verdict = Verdict(False, None, "no")
    assert measure.measure(run, attempts) == {
        "own": "contrastive",
        "problems": 0,
        "arms": {},
        "bare": None,
    }
    attempts[0].verdict, attempts[0].rollout.stopped = Verdict(True, "1", ""), True
    assert measure.measure(run, attempts)["arms"] == {}  # one problem says nothing


def test_a_run_measures_once_keeps_its_rollouts_and_its_layout_through_a_resume(
    folder, tmp_path, judged, monkeypatch, capsys
):
    asked, long = [], ("--max-new-tokens", "30")  # so that some rollouts end
    real = measure.decide

    def decide(run, attempts):
        asked.append([list(a.rollout.ids) for a in attempts])
        real(run, attempts)
        run.settings.layout = "turns"
        return {"problems": 3}

    monkeypatch.setattr(measure, "decide", decide)
    train.main(flags(folder, tmp_path / "out", "--steps", "2", "--save-every", "2", *long))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["layout"] == "turns" and config["measured"] == {"problems": 3}
    groups = [line["attempts"] for line in read_lines(tmp_path / "out" / "samples.jsonl")]
    assert any("[assistant]" in a["teacher_prompt"] for group in groups for a in group)
    train.main(
        flags(folder, tmp_path / "out", "--steps", "3", "--resume", *long)
    )  # with auto, the default
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["layout"] == "turns" and config["measured"] == {"problems": 3} and len(asked) == 1
    with pytest.raises(SystemExit):
        train.main(
            flags(folder, tmp_path / "out", "--steps", "4", "--resume", "--layout", "turn", *long)
        )
    assert "--layout is turn now and was turns" in capsys.readouterr().err
    monkeypatch.setattr(measure, "decide", real)
    train.main(flags(folder, tmp_path / "fixed", "--steps", "2", "--layout", "turns", *long))
    # measuring changes nothing of the training
    assert steps_of(tmp_path / "out")[:4] == steps_of(tmp_path / "fixed")[:4]


def test_a_harmful_teacher_stops_the_run_before_anything_is_written_unless_forced(
    folder, tmp_path, judged, monkeypatch, capsys
):
    bad = table((0.0,) * 4, (0.0,) * 4, student=(0.6,) * 4)
    monkeypatch.setattr(measure, "measure", lambda run, attempts: bad)
    with pytest.raises(SystemExit) as stop:
        train.main(flags(folder, tmp_path / "out"))
    error = capsys.readouterr().err
    assert (
        stop.value.code == 2
        and error.count("\n") == 1
        and "the teacher is worse than the student (-0.600" in error
    )
    assert "--force" in error and not (tmp_path / "out").exists()
    train.main(flags(folder, tmp_path / "out", "--steps", "1", "--force"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["layout"] == "turn"


def test_feedback_is_measured_where_no_rollout_is_right_and_left_out_where_answers_no_longer_end(
    folder, tmp_path, judged
):
    run = prepared(folder, tmp_path / "a")
    attempts = train.sample_step(run, 1)[0]
    for a in attempts:
        a.rollout.stopped, a.verdict = True, Verdict(False, None, "The sign is wrong.")
    real, seen = measure.generate, []

    def generate(model, prompts, k, **options):
        groups = real(model, prompts, k, **options)
        told = ["sign" in run.tokenizer.decode(prompt) for prompt in prompts]
        seen.append(sum(told))
        for group, reads in zip(groups, told, strict=True):
            for r in group:
                r.stopped = not (reads and endless)
        return groups

    measure.generate = generate
    try:
        for endless in (False, True):
            found = measure.measure_feedback(run, attempts, "turn")
            assert found["with"]["stopped"] == 1.0 - endless and found["without"]["stopped"] == 1.0
            assert found["harmful"] or not endless
        assert seen[0] > 0 and seen[1] == 0  # the failure alone, without feedback
        run.settings.peers = "positive"  # no failure is shown: then the bare problem
        assert measure.measure_feedback(run, attempts, "turn")["without"]["samples"] == 24
        run.settings.peers = "contrastive"
        attempts[0].verdict = attempts[4 * 2].verdict = attempts[-1].verdict = Verdict(
            True, "1", ""
        )
        assert (
            measure.measure_feedback(run, attempts, "turn") is None
        )  # every problem has a success
    finally:
        measure.generate = real


def test_feedback_that_does_harm_stays_out_of_the_run_and_of_its_resume(
    folder, tmp_path, judged, monkeypatch
):
    monkeypatch.setattr(measure, "measure", lambda run, attempts: table((0.5,) * 4, (0.5,) * 4))
    harm = {"with": arm(0.0, 0.0), "without": arm(0.0, 0.0), "harmful": True}
    monkeypatch.setattr(measure, "measure_feedback", lambda run, attempts, layout: harm)
    train.main(flags(folder, tmp_path / "out", "--steps", "1"))

    def saved():
        return json.loads((tmp_path / "out" / "config.json").read_text())

    assert saved()["no_feedback"] is True and saved()["measured"]["feedback"]["harmful"]
    train.main(flags(folder, tmp_path / "out", "--steps", "2", "--resume"))
    assert saved()["no_feedback"] is True
    train.main(
        flags(folder, tmp_path / "other", "--steps", "1", "--layout", "turn")
    )  # not measured: as asked for
    assert json.loads((tmp_path / "other" / "config.json").read_text())["no_feedback"] is False


def test_process_0_decides(monkeypatch):
    run = SimpleNamespace(
        settings=SimpleNamespace(layout="auto", force=False, method="opd", no_feedback=False)
    )
    monkeypatch.setattr(measure, "measure", lambda run, attempts: table((0.5,) * 4, (0.5,) * 4))
    monkeypatch.setattr(parallel, "gather", lambda items: [("turns", False), *items])
    measure.decide(run, [])
    assert run.settings.layout == "turns"


def test_turns_are_refused_where_the_template_cannot_write_them(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("runtime.setup.layouts_of", lambda tokenizer: ("turn",))
    with pytest.raises(SystemExit):
        train.main(flags(folder, tmp_path / "out", "--layout", "turns"))
    assert (
        "--layout turns: the chat template has no place for earlier turns"
        in capsys.readouterr().err
    )
